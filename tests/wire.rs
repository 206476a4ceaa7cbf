//! Every kind of event on every kind of sink, as it goes over the wire.
//!
//! Real brokers and an HTTP server receive the events through the sinks, which are built from a config. Each kind of
//! sink has one file in `tests/golden/`, `BLESS=1` writes them.

#![allow(clippy::unwrap_used)] // a test that panics has failed, which is what it is for

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use dtorrent::config::{self, BrokerKind, Config};
use dtorrent::model::{Entity, Epoch, EventId, JournalEntry, Kind, Rev, Seq, SinkName, Timestamp};
use dtorrent::port::{Clock, Connected, Delivery, Sink};
use dtorrent::sinks::mqtt::MqttSink;
use dtorrent::sinks::nats::NatsSink;
use dtorrent::sinks::webhook::{Endpoint, WebhookSink};
use dtorrent_peers::mosquitto::{Mosquitto, Options};

use self::harness::can_run;
use self::harness::nats::{self, NatsServer, Subscriber};
use self::harness::receiver::Receiver;
use self::harness::recorder::{Message, Recorder};
use self::samples::{assert_golden, event, hash, home, time};

#[allow(dead_code)] // the tests in tests/live need more of it
#[path = "live/harness/mod.rs"]
mod harness;
#[path = "rules/samples.rs"]
mod samples;

/// The time of the samples: webhooks sign the time of a request.
struct FixedClock;

impl Clock for FixedClock {
    fn now(&self) -> Timestamp {
        time()
    }
}

/// Returns one event of each kind, in the order of [`Kind::ALL`].
fn deliveries() -> Vec<(Kind, Delivery)> {
    let epoch = Epoch(0x7f3a_9c21);
    let delivery = |number: u64, kind: Kind| match kind {
        Kind::Updated => {
            let id = EventId::Updated { server: home(), epoch, rev: Rev(number) };
            let event = event(kind, id);
            let body = event.to_json().into();
            Delivery::Updated { hash: hash(), event: Arc::new(event), body }
        }
        _ => {
            let id = EventId::Journal { server: home(), epoch, seq: Seq(number) };
            Delivery::Event(JournalEntry::new(event(kind, id), Rev(number)))
        }
    };
    (1..).zip(Kind::ALL).map(|(number, kind)| (*kind, delivery(number, *kind))).collect()
}

fn config(sink: &str) -> Config {
    let text = format!("[servers.home]\nurl = \"scgi://127.0.0.1:1\"\n{sink}");
    config::parse(Path::new("golden.toml"), text.as_bytes()).unwrap()
}

fn broker(sink: &str) -> BrokerKind {
    config(sink).brokers.into_values().next().unwrap().kind
}

/// Sends one event of each kind, in order.
#[allow(clippy::disallowed_methods)] // a test's own task
async fn send_all(sink: &dyn Sink) {
    let Connected { mut link, drive } = sink.connect().await.unwrap();
    let drive = tokio::spawn(drive);
    for (kind, delivery) in deliveries() {
        link.send(delivery).await.unwrap_or_else(|error| panic!("{kind:?}: {error}"));
    }
    drive.abort();
}

/// Returns the last level of the topic or subject of a kind of event.
fn topic(kind: Kind) -> String {
    let of_torrent = if kind.entity() == Entity::Torrent { format!("/torrent/{}", hash()) } else { String::new() };
    format!("dtorrent/home{of_torrent}/event/{}", kind.as_str())
}

#[tokio::test]
async fn every_kind_of_event_on_mqtt_matches_the_golden_file() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mosquitto = Mosquitto::start(folder.path(), &Options::default()).await.unwrap();
    let recorder = Recorder::listen(mosquitto.port).await;
    let BrokerKind::Mqtt(settings) = broker(&format!("[brokers.b]\nkind = \"mqtt\"\nurl = \"{}\"\n", mosquitto.url()))
    else {
        unreachable!("the config has this kind")
    };
    send_all(&MqttSink::new(*settings).unwrap()).await;
    let mut text = String::new();
    for kind in Kind::ALL {
        let topic = topic(*kind);
        let find = |all: &[_]| all.iter().find(|message: &&Message| message.topic == topic).cloned();
        let message = recorder.wait_for(&topic, find).await;
        let properties = &message.properties;
        writeln!(text, "{topic}\nQoS {}, retain {}", message.qos as u8, message.retain).unwrap();
        writeln!(text, "content-type: {}", properties.content_type.as_deref().unwrap_or("none")).unwrap();
        for (name, value) in &properties.user_properties {
            writeln!(text, "{name}: {value}").unwrap();
        }
        writeln!(text, "{}\n", message.text()).unwrap();
    }
    assert_golden("events-mqtt.txt", &text);
}

#[tokio::test]
async fn every_kind_of_event_on_nats_matches_the_golden_file() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let subscriber = Subscriber::listen(&server).await;
        let BrokerKind::Nats(settings) = broker(&format!("[brokers.b]\nkind = \"nats\"\nurl = \"{}\"\n", server.url()))
        else {
            unreachable!("the config has this kind")
        };
        send_all(&NatsSink::new(*settings, Default::default()).unwrap()).await;
        let mut text = String::new();
        for kind in Kind::ALL {
            let message = subscriber.on(&topic(*kind).replace('/', ".")).await;
            writeln!(text, "{}", message.subject).unwrap();
            let headers = message.headers.unwrap_or_default();
            let mut lines: Vec<String> = headers
                .iter()
                .flat_map(|(name, values)| values.iter().map(move |value| format!("{name}: {value}")))
                .collect();
            lines.sort();
            writeln!(text, "{}\n{}\n", lines.join("\n"), String::from_utf8_lossy(&message.payload)).unwrap();
        }
        assert_golden("events-nats.txt", &text);
    }
}

#[tokio::test]
async fn every_kind_of_event_in_every_webhook_format_matches_its_golden_file() {
    let secret = "secret = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"\n";
    let template =
        "template = '{\"title\": {{ title }}, \"text\": {{ text }}, \"level\": {{ level }}, \"id\": {{ event.id }}}'\n";
    for (name, lines) in [
        ("standard", secret.to_owned()),
        ("dtorrent", "format = \"dtorrent\"\n".to_owned()),
        ("ntfy", "format = \"ntfy\"\n".to_owned()),
        ("discord", "format = \"discord\"\n".to_owned()),
        ("slack", "format = \"slack\"\n".to_owned()),
        ("apprise", "format = \"apprise\"\n".to_owned()),
        ("template", template.to_owned()),
    ] {
        let receiver = Receiver::start().await;
        let webhook = format!("[webhooks.w]\nurl = \"{}\"\nevents = [\"*\"]\n{lines}", receiver.url());
        let settings = config(&webhook).webhooks.into_values().next().unwrap().settings;
        let endpoint = Arc::new(Endpoint::new(settings, Arc::new(FixedClock)).unwrap());
        send_all(&WebhookSink::new(SinkName::parse("w").unwrap(), endpoint)).await;
        let requests = receiver.until("each kind was posted", |requests| requests.len() == Kind::ALL.len()).await;
        let mut text = String::new();
        for (kind, mut request) in Kind::ALL.iter().zip(requests) {
            writeln!(text, "# {}\n{} {}", kind.as_str(), request.method, request.path).unwrap();
            request.headers.remove("host"); // a free port
            request.headers.remove("content-length");
            for (name, value) in &request.headers {
                writeln!(text, "{name}: {}", value.replace(env!("CARGO_PKG_VERSION"), "VERSION")).unwrap();
            }
            writeln!(text, "{}\n", String::from_utf8_lossy(&request.body)).unwrap();
        }
        assert_golden(&format!("webhook-{name}.txt"), &text);
    }
}
