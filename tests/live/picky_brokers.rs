//! Brokers that do not take all that MQTT allows, and close the connection over it or say nothing.

use std::sync::{Arc, Mutex};

use dtorrent::model::ServerName;
use dtorrent::port::{CommandSource as _, Delivery, Sink as _};
use dtorrent::sinks::broker::BrokerSink as _;
use dtorrent::sinks::mqtt::{MqttSink, Settings};
use rumqttc::v5::mqttbytes::v5::PublishProperties;

use super::mqtt_link::{Broker, OpenLink, Subscriber, event, settings, state};
use crate::harness::picky::{Packet, PickyBroker, Verdict};

fn closes_if(is_too_much: bool) -> Verdict {
    if is_too_much { Verdict::Close } else { Verdict::Pass }
}

fn servers(count: usize) -> Vec<ServerName> {
    (0..count).map(|n| ServerName::parse(&format!("s{n}")).unwrap()).collect()
}

/// Delivers an event and a state, and receives a command, through a picky broker in front of `broker`.
async fn works(broker: &Broker, picky: &PickyBroker) -> MqttSink {
    let sink = MqttSink::new(Settings { servers: servers(6), ..settings(&picky.url()) }).unwrap();
    let mut seen = Subscriber::new(broker.port, &["dtorrent/home/#"]).await;
    for round in 0..2 {
        let mut open = loop {
            if sink.connect().await.is_ok() {
                break OpenLink::connect(&sink).await;
            }
        };
        open.send(event(round)).await.unwrap();
        open.send(state("{}")).await.unwrap();
        assert!(seen.next().await.topic.ends_with(b"event/finished"));
        assert!(seen.next().await.topic.ends_with(b"state"));
        open.close().await;
    }
    let mut commands = sink.commands();
    let sender = Subscriber::new(broker.port, &[]).await;
    // Published until the subscription is there.
    let publish = async {
        loop {
            sender.publish("dtorrent/s5/command/resync", "{}", false, PublishProperties::default()).await;
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    };
    // What is learned takes a few attempts.
    let received = async {
        loop {
            if let Ok(command) = commands.next().await {
                break command;
            }
        }
    };
    let command = tokio::select! {
        command = received => command,
        () = publish => unreachable!("it never ends"),
    };
    assert_eq!(command.address.server.as_deref(), Some("s5"));
    sink
}

/// Checks that everything works with such a broker, and what is said to be missing.
async fn check(judge: impl Fn(&Packet<'_>) -> Verdict + Send + Sync + 'static, missing: &[&str]) -> usize {
    let broker = Broker::open().await.expect("mosquitto is installed");
    let picky = PickyBroker::before(broker.port, judge).await;
    let sink = works(&broker, &picky).await;
    let notes = sink.notes();
    assert_eq!(notes.len(), missing.len(), "{notes:?}");
    for (note, missing) in notes.iter().zip(missing) {
        assert!(note.contains(missing), "{note}");
    }
    picky.refused()
}

#[tokio::test]
async fn a_broker_that_takes_eight_filters_at_once_takes_the_commands_of_six_servers_and_is_scanned() {
    let Some(broker) = Broker::open().await else { return };
    let picky = PickyBroker::before(broker.port, |packet| closes_if(packet.filters().len() > 8)).await;
    let sink = works(&broker, &picky).await;
    let server = servers(6).pop().unwrap();
    let mut open = OpenLink::connect(&sink).await;
    open.send(Delivery::ServerStatus { server: server.clone(), is_online: true }).await.unwrap();
    let found = sink.scan_retained(&servers(6)).await.unwrap();
    assert_eq!(found[&server], ["dtorrent/s5/status"]);
    open.close().await;
    assert_eq!((picky.refused(), sink.notes()), (0, Vec::new()));
}

#[tokio::test]
async fn a_broker_that_takes_one_filter_at_once_gets_them_one_by_one() {
    if Broker::open().await.is_none() {
        return;
    }
    check(|packet| closes_if(packet.filters().len() > 1), &[]).await;
}

#[tokio::test]
async fn a_broker_that_answers_mqtt_5_in_mqtt_3_1_1_is_spoken_to_in_mqtt_3_1_1() {
    if Broker::open().await.is_none() {
        return;
    }
    let refuses = |packet: &Packet<'_>| match packet.level {
        5 => Verdict::Answer(&[0x20, 0x02, 0x00, 0x01]),
        _ => Verdict::Pass,
    };
    assert_eq!(check(refuses, &["does not speak MQTT 5"]).await, 1, "it is remembered");
}

#[tokio::test]
async fn a_broker_that_says_nothing_to_mqtt_5_is_spoken_to_in_mqtt_3_1_1() {
    if Broker::open().await.is_none() {
        return;
    }
    let is_deaf = |packet: &Packet<'_>| if packet.level == 5 { Verdict::Ignore } else { Verdict::Pass };
    assert_eq!(check(is_deaf, &["does not speak MQTT 5"]).await, 2, "it is remembered");
}

/// What an outage looks like from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outage {
    None,
    AtConnect,
    AfterConnack,
}

#[tokio::test]
async fn an_outage_lowers_neither_session_nor_last_will_nor_qos() {
    let Some(broker) = Broker::open().await else { return };
    let outage = Arc::new(Mutex::new(Outage::None));
    let lowered = Arc::new(Mutex::new(Vec::new()));
    let judge = {
        let (outage, lowered) = (Arc::clone(&outage), Arc::clone(&lowered));
        move |packet: &Packet<'_>| {
            let has_will = packet.will() == Some((1, true));
            if packet.is_connect() && !has_will && !packet.keeps_session() {
                lowered.lock().unwrap().push("a connection without last will and session");
            }
            if packet.publish().is_some_and(|(qos, _)| qos == 0) {
                lowered.lock().unwrap().push("a message with QoS 0");
            }
            match *outage.lock().unwrap() {
                Outage::AtConnect => Verdict::Close,
                Outage::AfterConnack => closes_if(!packet.is_connect()),
                Outage::None => Verdict::Pass,
            }
        }
    };
    let picky = PickyBroker::before(broker.port, judge).await;
    let sink = MqttSink::new(settings(&picky.url())).unwrap();
    let mut commands = sink.commands();
    for kind in [Outage::AtConnect, Outage::AfterConnack] {
        *outage.lock().unwrap() = kind;
        for _ in 0..4 {
            assert!(sink.connect().await.is_err(), "{kind:?}");
            assert!(commands.next().await.is_err(), "{kind:?}");
        }
    }
    *outage.lock().unwrap() = Outage::None;
    let mut seen = Subscriber::new(broker.port, &["dtorrent/home/#"]).await;
    let mut open = OpenLink::connect(&sink).await;
    open.send(event(1)).await.unwrap();
    assert!(seen.next().await.topic.ends_with(b"event/finished"));
    open.close().await;
    let next = tokio::time::timeout(std::time::Duration::from_millis(500), commands.next()).await;
    assert!(next.is_err(), "it waits for commands");
    assert_eq!(*lowered.lock().unwrap(), Vec::<&str>::new());
    assert_eq!(sink.notes(), Vec::<String>::new());
}

#[tokio::test]
async fn check_says_what_a_broker_does_not_take() {
    let Some(broker) = Broker::open().await else { return };
    let judge = |packet: &Packet<'_>| closes_if(packet.level == 5);
    let picky = PickyBroker::before(broker.port, judge).await;
    let sink = MqttSink::new(settings(&picky.url())).unwrap();
    sink.probe().await.unwrap();
    let notes = sink.notes();
    assert!(notes.len() == 1 && notes[0].contains("does not speak MQTT 5"), "{notes:?}");
    let status = Subscriber::new(broker.port, &["dtorrent/bridge/#"]).await;
    status.publish("dtorrent/bridge/mark", "", false, PublishProperties::default()).await;
    let mut status = status;
    assert_eq!(status.next().await.topic, "dtorrent/bridge/mark", "no last will was published");
}
