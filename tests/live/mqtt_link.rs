//! The MQTT sink and command source against a real mosquitto.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dtorrent::model::{
    Epoch, Event, EventId, InfoHash, JournalEntry, Kind, Retain, Rev, Seq, ServerName, SinkName, Timestamp,
};
use dtorrent::port::{CommandSource as _, Connected, DeliverError, Delivery, Incoming, Link, ReplyTo, Sink as _};
use dtorrent::sinks::mqtt::{BrokerUrl, ClientCert, MqttCommands, MqttSink, Prefix, Settings, Version};
use dtorrent::tls::Trust;
use dtorrent_peers::mosquitto::{Mosquitto, Options, Tls};
use dtorrent_peers::process::{Process, free_port};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, StreamExt as _};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectProperties, Filter, Packet, Publish, PublishProperties};
use rumqttc::v5::{AsyncClient, Event as ClientEvent, MqttOptions};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::harness::certificates::Certificates;
use crate::harness::skip::are_installed;

const SOON: Duration = Duration::from_secs(15);
const HASH: &str = "3f786850e387550fdab836ed7e6dc881de23001b";

// --- a broker ------------------------------------------------------------------------------------

/// A mosquitto of one test.
pub struct Broker {
    mosquitto: Mosquitto,
    pub port: u16,
    _folder: TempDir,
}

impl Broker {
    /// Starts a broker; `None` if the test is skipped.
    async fn start(options: Options) -> Option<Self> {
        if !are_installed(&[("mosquitto", "mosquitto")]) {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let mosquitto = Mosquitto::start(folder.path(), &options).await.unwrap();
        Some(Self { port: mosquitto.port, mosquitto, _folder: folder })
    }

    pub async fn open() -> Option<Self> {
        Self::start(Options::default()).await
    }

    /// Starts a broker with a further line of mosquitto.conf.
    async fn with(line: &str) -> Option<Self> {
        Self::start(Options { lines: vec![line.to_owned()], ..Options::default() }).await
    }

    fn process(&mut self) -> &mut Process {
        self.mosquitto.process()
    }

    /// Returns how often the log contains a text.
    fn count_in_log(&self, text: &str) -> usize {
        self.mosquitto.output().lines().filter(|line| line.contains(text)).count()
    }

    fn settings(&self) -> Settings {
        settings(&self.mosquitto.url())
    }
}

fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

pub fn settings(url: &str) -> Settings {
    Settings {
        name: SinkName::parse("bus").unwrap(),
        instance: "main".into(),
        url: BrokerUrl::parse(url).unwrap(),
        username: None,
        password: None,
        trust: Trust::default(),
        client_id: None,
        client_cert: None,
        version: Version::Auto,
        prefix: Prefix::default(),
        servers: vec![home()],
        retain: Retain::All,
        home_assistant: None,
    }
}

// --- deliveries ----------------------------------------------------------------------------------

fn home() -> ServerName {
    ServerName::parse("home").unwrap()
}

fn hash() -> InfoHash {
    HASH.parse().unwrap()
}

pub fn event(seq: u64) -> Delivery {
    let id = EventId::Journal { server: home(), epoch: Epoch(0x7f3a_9c21), seq: Seq(seq) };
    Delivery::Event(JournalEntry::stored(
        id,
        Kind::Finished,
        Some(hash()),
        Rev(seq),
        Timestamp::from_millis(1_795_328_701_114),
        Bytes::from(format!(r#"{{"seq":{seq}}}"#)),
    ))
}

pub fn state(body: impl Into<Bytes>) -> Delivery {
    Delivery::State { server: home(), hash: hash(), body: body.into(), retain: true }
}

/// A link with its drive in a task, so that a test can await what it sends.
pub struct OpenLink {
    link: Box<dyn Link>,
    drive: tokio::task::JoinHandle<DeliverError>,
}

impl OpenLink {
    pub async fn connect(sink: &MqttSink) -> Self {
        Self::of(timeout(SOON, sink.connect()).await.expect("an answer in time").expect("a connection"))
    }

    #[allow(clippy::disallowed_methods)]
    fn of(Connected { link, drive }: Connected) -> Self {
        Self { link, drive: tokio::spawn(drive) }
    }

    pub async fn send(&mut self, delivery: Delivery) -> Result<(), DeliverError> {
        timeout(SOON, self.link.send(delivery)).await.expect("a verdict in time")
    }

    pub async fn close(self) {
        timeout(SOON, self.link.close()).await.expect("a disconnect in time").expect("a disconnect");
        timeout(SOON, self.drive).await.expect("the drive ends").unwrap();
    }

    /// Drops the connection without DISCONNECT.
    async fn cut(self) {
        self.drive.abort();
        // The task was aborted, or had ended by itself.
        self.drive.await.ok();
    }
}

// --- subscriber ----------------------------------------------------------------------------------

/// Another client of the broker, on MQTT 5.
pub struct Subscriber {
    client: AsyncClient,
    seen: mpsc::Receiver<Publish>,
    task: tokio::task::JoinHandle<()>,
}

impl Subscriber {
    pub async fn new(port: u16, filters: &[&str]) -> Self {
        Self::at(QoS::AtLeastOnce, port, filters).await
    }

    #[allow(clippy::disallowed_methods)]
    async fn at(qos: QoS, port: u16, filters: &[&str]) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let id = format!("observer-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut options = MqttOptions::new(id, "127.0.0.1", port);
        let mut properties = ConnectProperties::new();
        properties.max_packet_size = Some(32 << 20);
        options.set_connect_properties(properties);
        let (client, mut events) = AsyncClient::new(options, 100);
        let (publishes, seen) = mpsc::channel(100_000);
        let filters: Vec<_> =
            filters.iter().map(|path| Filter { preserve_retain: true, ..Filter::new(*path, qos) }).collect();
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let mut ready = Some(ready);
        if filters.is_empty() {
            ready.take().unwrap().send(()).unwrap();
        } else {
            client.subscribe_many(filters).await.unwrap();
        }
        let task = tokio::spawn(async move {
            loop {
                match events.poll().await {
                    Ok(ClientEvent::Incoming(Packet::SubAck(_))) => {
                        if let Some(ready) = ready.take() {
                            ready.send(()).ok();
                        }
                    }
                    Ok(ClientEvent::Incoming(Packet::Publish(publish))) => {
                        if publishes.send(publish).await.is_err() {
                            return;
                        }
                    }
                    Ok(_) => {}
                    Err(_) => break,
                }
            }
            // rumqttc returns the end of the connection before messages that it has already read.
            for event in std::mem::take(&mut events.state.events) {
                if let ClientEvent::Incoming(Packet::Publish(publish)) = event {
                    publishes.send(publish).await.ok();
                }
            }
        });
        timeout(SOON, is_ready).await.expect("a subscription in time").expect("a subscription");
        Self { client, seen, task }
    }

    pub async fn next(&mut self) -> Publish {
        timeout(SOON, self.seen.recv()).await.expect("a message in time").expect("a connection")
    }

    /// Returns the next message with this topic; others before it are skipped.
    async fn next_on(&mut self, topic: &str) -> Publish {
        let mut others = Vec::new();
        loop {
            match timeout(SOON, self.seen.recv()).await {
                Ok(Some(publish)) if publish.topic == topic => return publish,
                Ok(Some(publish)) => others.push(publish.topic),
                _ => panic!("nothing on {topic}; there was {others:?}"),
            }
        }
    }

    async fn wait_for(&mut self, topic: &str, body: &str) {
        let mut last = None;
        loop {
            match timeout(SOON, self.seen.recv()).await {
                Ok(Some(publish)) if publish.topic == topic && publish.payload == body => return,
                Ok(Some(publish)) => last = Some(publish),
                _ => panic!("no `{body}` on {topic}; the last was {last:?}"),
            }
        }
    }

    pub async fn publish(&self, topic: &str, body: impl Into<Bytes>, retain: bool, properties: PublishProperties) {
        self.client.publish_with_properties(topic, QoS::AtLeastOnce, retain, body, properties).await.unwrap();
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn versions() -> [Version; 2] {
    [Version::V5, Version::V311]
}

// --- publishing ----------------------------------------------------------------------------------

#[tokio::test]
async fn an_acknowledged_message_has_arrived_in_both_versions() {
    let Some(broker) = Broker::open().await else { return };
    for version in versions() {
        let mut differ = Subscriber::new(broker.port, &["dtorrent/home/#"]).await;
        let sink = MqttSink::new(Settings { version, ..broker.settings() }).unwrap();
        let mut open = OpenLink::connect(&sink).await;
        for seq in 1..=50 {
            open.send(event(seq)).await.unwrap();
        }
        for seq in 1..=50 {
            let publish = differ.next_on(&format!("dtorrent/home/torrent/{HASH}/event/finished")).await;
            assert_eq!(publish.payload, format!(r#"{{"seq":{seq}}}"#));
            assert!(!publish.retain, "an event is never retained");
        }
        open.close().await;
    }
}

#[tokio::test]
async fn an_event_carries_the_attributes_of_a_cloud_event_on_mqtt_5() {
    let Some(broker) = Broker::open().await else { return };
    let mut differ = Subscriber::new(broker.port, &["dtorrent/home/#"]).await;
    let sink = MqttSink::new(broker.settings()).unwrap();
    let mut open = OpenLink::connect(&sink).await;
    open.send(event(4182)).await.unwrap();
    let id = EventId::Updated { server: home(), epoch: Epoch(1), rev: Rev(9) };
    let updated = Delivery::Updated {
        hash: hash(),
        event: Arc::new(Event::new(id, Kind::Updated, Timestamp::from_millis(0))),
        body: Bytes::from_static(b"{}"),
    };
    open.send(updated).await.unwrap();

    let publish = differ.next().await;
    assert_eq!(publish.qos, QoS::AtLeastOnce);
    let properties = publish.properties.unwrap();
    assert_eq!(properties.content_type.as_deref(), Some("application/json"));
    assert_eq!(properties.payload_format_indicator, Some(1));
    let attributes: BTreeMap<_, _> = properties.user_properties.into_iter().collect();
    let expected = [
        ("specversion", "1.0"),
        ("id", "home-7f3a9c21-000000004182"),
        ("source", "dtorrent/main/home"),
        ("type", "dtorrent.torrent.finished"),
        ("subject", HASH),
        ("time", "2026-11-22T06:25:01.114Z"),
    ];
    assert_eq!(attributes, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());

    let publish = differ.next_on(&format!("dtorrent/home/torrent/{HASH}/event/updated")).await;
    assert_eq!(publish.qos, QoS::AtMostOnce);
    let id = publish.properties.unwrap().user_properties.into_iter().find(|(name, _)| name == "id");
    assert_eq!(id.unwrap().1, "home-00000001-u000000000009");
    open.close().await;
}

#[tokio::test]
async fn a_late_subscriber_gets_the_retained_states_until_they_are_cleared() {
    let Some(broker) = Broker::open().await else { return };
    for version in versions() {
        let sink = MqttSink::new(Settings { version, ..broker.settings() }).unwrap();
        let mut open = OpenLink::connect(&sink).await;
        let retained = [
            state("{}"),
            Delivery::ServerStatus { server: home(), is_online: true },
            Delivery::Stats { server: home(), body: Bytes::from_static(b"{}") },
            Delivery::Info { body: Bytes::from_static(b"{}") },
        ];
        let passing = [
            event(1),
            Delivery::Files { server: home(), hash: hash(), body: Bytes::from_static(b"{}") },
            Delivery::Health { body: Bytes::from_static(b"{}") },
            Delivery::Result { server: Some(home()), body: Bytes::from_static(b"{}"), reply: None },
        ];
        let mut names: BTreeSet<String> =
            retained.iter().map(|delivery| sink.retained_topic(delivery).unwrap()).collect();
        for delivery in retained.into_iter().chain(passing) {
            open.send(delivery).await.unwrap();
        }
        let mut late = Subscriber::new(broker.port, &["dtorrent/#"]).await;
        let own = "dtorrent/bridge/main/status";
        assert_eq!(sink.own_retained_topics(), [own, "dtorrent/bridge/main/info"]);
        let mut greeted = BTreeSet::new();
        for _ in 0..=names.len() {
            let publish = late.next().await;
            assert!(publish.retain);
            greeted.insert(String::from_utf8(publish.topic.to_vec()).unwrap());
        }
        names.insert(own.into());
        assert_eq!(greeted, names);
        for topic in names {
            open.send(Delivery::Clear { topic }).await.unwrap();
        }
        // The bridge publishes its status again after it was cleared; everything else is gone.
        late.wait_for(own, "online").await;
        let mut later = Subscriber::new(broker.port, &["dtorrent/#"]).await;
        assert_eq!(later.next().await.topic, own);
        open.send(event(2)).await.unwrap();
        assert_eq!(later.next().await.payload, r#"{"seq":2}"#, "nothing else was retained");
        open.close().await;
    }
}

#[tokio::test]
async fn with_retain_none_the_broker_retains_no_state() {
    let Some(broker) = Broker::open().await else { return };
    let mut differ = Subscriber::new(broker.port, &["dtorrent/home/#"]).await;
    let sink = MqttSink::new(Settings { retain: Retain::None, ..broker.settings() }).unwrap();
    assert_eq!(sink.retained_topic(&state("{}")), None);
    let mut open = OpenLink::connect(&sink).await;
    open.send(state("{}")).await.unwrap();
    assert!(!differ.next().await.retain);
    open.close().await;
}

#[tokio::test]
async fn a_result_goes_to_its_topic_and_to_the_response_topic() {
    let Some(broker) = Broker::open().await else { return };
    let mut differ = Subscriber::new(broker.port, &["dtorrent/home/#", "answers/#"]).await;
    for version in versions() {
        let sink = MqttSink::new(Settings { version, ..broker.settings() }).unwrap();
        let mut open = OpenLink::connect(&sink).await;
        let reply = Some(ReplyTo { topic: "answers/7".into(), correlation: Some(vec![0, 255, 7]) });
        let body = Bytes::from_static(br#"{"status":"ok"}"#);
        open.send(Delivery::Result { server: Some(home()), body: body.clone(), reply }).await.unwrap();
        let (first, second) = (differ.next().await, differ.next().await);
        assert_eq!((&first.topic[..], &second.topic[..]), (&b"dtorrent/home/result"[..], &b"answers/7"[..]));
        assert_eq!((&first.payload, &second.payload), (&body, &body));
        if version == Version::V5 {
            assert_eq!(second.properties.unwrap().correlation_data.unwrap(), &[0, 255, 7][..]);
        }
        // With an invalid reply topic only the copy is dropped, not the result.
        for topic in ["answers/#", "dtorrent/home/command/delete", ""] {
            let reply = Some(ReplyTo { topic: topic.into(), correlation: None });
            open.send(Delivery::Result { server: Some(home()), body: body.clone(), reply }).await.unwrap();
            assert_eq!(differ.next().await.topic, "dtorrent/home/result", "and nothing on {topic}");
        }
        open.close().await;
    }
}

#[tokio::test]
async fn the_window_leaves_room_for_status_messages_within_the_receive_maximum() {
    let Some(broker) = Broker::with("max_inflight_messages 7").await else { return };
    for (version, depth) in [(Version::V5, 5), (Version::V311, 98)] {
        let sink = MqttSink::new(Settings { version, ..broker.settings() }).unwrap();
        let mut open = OpenLink::connect(&sink).await;
        assert_eq!(open.link.limits().window, depth, "{version:?}");
        // A full window at once; the last depth exceeds every receive maximum.
        let sent: Vec<_> = (0..depth as u64).map(|seq| open.link.send(event(seq))).collect();
        for sent in sent {
            timeout(SOON, sent).await.unwrap().unwrap();
        }
        open.close().await;
    }
}

#[tokio::test]
async fn a_message_that_is_too_large_is_rejected_and_the_others_arrive() {
    let Some(announced) = Broker::with("max_packet_size 20000").await else { return };
    let Some(silent) = Broker::with("message_size_limit 20000").await else { return };
    let large = || state(vec![b'x'; 30_000]);
    // With an announced limit the message is not sent.
    let sink = MqttSink::new(announced.settings()).unwrap();
    let mut open = OpenLink::connect(&sink).await;
    let sent: Vec<_> = [event(1), large(), event(2)].map(|delivery| open.link.send(delivery)).into();
    let verdicts: Vec<_> = futures_util::future::join_all(sent).await;
    assert!(matches!(verdicts[..], [Ok(()), Err(DeliverError::Rejected { .. }), Ok(())]), "{verdicts:?}");
    open.close().await;
    // Without an announced limit the broker ends the connection with a code, and the error names the message.
    let sink = MqttSink::new(silent.settings()).unwrap();
    let mut open = OpenLink::connect(&sink).await;
    let sent: Vec<_> = [event(1), large(), event(2)].map(|delivery| open.link.send(delivery)).into();
    let verdicts: Vec<_> = futures_util::future::join_all(sent).await;
    assert!(matches!(verdicts[1], Err(DeliverError::Rejected { .. })), "{verdicts:?}");
    assert!(!matches!(verdicts[2], Err(DeliverError::Rejected { .. })), "{verdicts:?}");
    open.cut().await;
    // Above the bridge's own limit, in both versions.
    let Some(open) = Broker::open().await else { return };
    for version in versions() {
        let sink = MqttSink::new(Settings { version, ..open.settings() }).unwrap();
        let mut open = OpenLink::connect(&sink).await;
        let verdict = open.send(state(vec![b'x'; 17 << 20])).await;
        assert!(matches!(verdict, Err(DeliverError::Rejected { .. })), "{verdict:?}");
        open.send(state(vec![b'x'; 15 << 20])).await.unwrap();
        open.close().await;
    }
}

// --- status --------------------------------------------------------------------------------------

#[tokio::test]
async fn a_broken_connection_and_a_clean_disconnect_both_leave_offline() {
    let Some(broker) = Broker::open().await else { return };
    let topic = "dtorrent/bridge/main/status";
    for version in versions() {
        let mut differ = Subscriber::new(broker.port, &["dtorrent/bridge/#"]).await;
        let sink = MqttSink::new(Settings { version, ..broker.settings() }).unwrap();
        let open = OpenLink::connect(&sink).await;
        differ.wait_for(topic, "online").await;
        open.cut().await;
        differ.wait_for(topic, "offline").await;
        let open = OpenLink::connect(&sink).await;
        differ.wait_for(topic, "online").await;
        open.close().await;
        differ.wait_for(topic, "offline").await;
        let mut late = Subscriber::new(broker.port, &["dtorrent/bridge/#"]).await;
        let retained = late.next().await;
        assert!(retained.retain && retained.payload == "offline");
    }
}

#[tokio::test]
async fn online_is_published_again_after_a_late_will() {
    let Some(broker) = Broker::open().await else { return };
    let topic = "dtorrent/bridge/main/status";
    for version in versions() {
        let mut differ = Subscriber::new(broker.port, &["dtorrent/bridge/#"]).await;
        let sink = MqttSink::new(Settings { version, ..broker.settings() }).unwrap();
        let open = OpenLink::connect(&sink).await;
        // A broker that notices late that an earlier connection is gone publishes its will late.
        differ.publish(topic, "offline", true, PublishProperties::default()).await;
        differ.wait_for(topic, "offline").await;
        differ.wait_for(topic, "online").await;
        // A second connection with the same client id ends the first, whose will is published while the second is up.
        let second = OpenLink::connect(&sink).await;
        timeout(SOON, open.drive).await.expect("the first ends").unwrap();
        differ.publish("dtorrent/bridge/main/mark", "", false, PublishProperties::default()).await;
        let mut last = None;
        loop {
            let publish = differ.next().await;
            if publish.topic == topic {
                last = Some(publish.payload);
            } else if last.as_deref() == Some(b"online") {
                break;
            } else {
                differ.publish("dtorrent/bridge/main/mark", "", false, PublishProperties::default()).await;
            }
        }
        second.close().await;
    }
}

#[tokio::test]
async fn a_broker_without_retained_messages_or_qos_1_gets_what_it_supports() {
    for lack in ["retain_available false", "max_qos 0"] {
        let Some(broker) = Broker::with(lack).await else { return };
        let mut differ = Subscriber::new(broker.port, &["dtorrent/#"]).await;
        let sink = MqttSink::new(Settings { version: Version::V5, ..broker.settings() }).unwrap();
        let mut open = OpenLink::connect(&sink).await;
        open.send(event(1)).await.unwrap();
        open.send(state("{}")).await.unwrap();
        open.send(Delivery::Clear { topic: "dtorrent/home/stats".into() }).await.unwrap();
        differ.wait_for(&format!("dtorrent/home/torrent/{HASH}/state"), "{}").await;
        open.cut().await;
        differ.wait_for("dtorrent/bridge/main/status", "offline").await;
        OpenLink::connect(&sink).await.close().await;
    }
}

// --- loss ----------------------------------------------------------------------------------------

/// Sends like a dispatcher: in order, at most `depth` in flight, from the first unacknowledged after a failure.
struct Flow {
    next: u64,
    in_flight: FuturesOrdered<BoxFuture<'static, Result<(), DeliverError>>>,
    acknowledged: u64,
}

#[tokio::test]
async fn repeated_kills_of_the_broker_lose_none_of_5000_events() {
    const COUNT: u64 = 5_000;
    let Some(mut broker) = Broker::with("max_queued_messages 0").await else { return };
    for version in versions() {
        let sink = MqttSink::new(Settings { version, ..broker.settings() }).unwrap();
        let mut arrived = BTreeSet::new();
        let mut order_of_first = Vec::new();
        let mut kills = VecDeque::from([700, 2_100, 3_900]);
        let mut flow = Flow { next: 1, in_flight: FuturesOrdered::new(), acknowledged: 0 };
        while flow.acknowledged < COUNT {
            // With QoS 0 no message waits in the broker for the observer's acknowledgement, to be lost in the kill.
            let mut differ = Subscriber::at(QoS::AtMostOnce, broker.port, &["dtorrent/home/#"]).await;
            let Connected { mut link, drive } = sink.connect().await.unwrap();
            let mut drive = drive;
            flow.next = flow.acknowledged + 1;
            let broken = loop {
                while flow.next <= COUNT && flow.in_flight.len() < link.limits().window {
                    flow.in_flight.push_back(link.send(event(flow.next)));
                    flow.next += 1;
                }
                tokio::select! {
                    error = &mut drive => break Some(error),
                    Some(verdict) = flow.in_flight.next() => match verdict {
                        Ok(()) => flow.acknowledged += 1,
                        Err(error) => break Some(error),
                    },
                    else => break None,
                }
                if kills.front().is_some_and(|kill| flow.acknowledged >= *kill) {
                    kills.pop_front();
                    broker.process().kill().unwrap();
                }
                if flow.acknowledged == COUNT {
                    break None;
                }
            };
            if let Some(error) = broken {
                assert!(matches!(error, DeliverError::Unavailable { .. }), "{error:?}");
                // Everything in flight fails with the link, and nothing hangs.
                while let Some(verdict) = timeout(SOON, flow.in_flight.next()).await.expect("a verdict for each") {
                    match verdict {
                        Ok(()) => flow.acknowledged += 1,
                        Err(error) => {
                            assert!(matches!(error, DeliverError::Unavailable { .. }), "{error:?}");
                            flow.in_flight = FuturesOrdered::new();
                        }
                    }
                }
                // Messages that the killed broker had passed on are in the observer's channel, which is closed by now.
                while let Ok(Some(publish)) = timeout(SOON, differ.seen.recv()).await {
                    note(&publish, &mut arrived, &mut order_of_first);
                }
                broker.mosquitto.restart().await.unwrap();
            } else {
                while !arrived.contains(&COUNT) {
                    note(&differ.next().await, &mut arrived, &mut order_of_first);
                }
            }
        }
        assert!(kills.is_empty());
        // mosquitto forwards a message before it acknowledges it.
        let missing: Vec<_> = (1..=COUNT).filter(|seq| !arrived.contains(seq)).collect();
        assert!(missing.is_empty(), "{version:?}: missing {missing:?}");
        assert!(order_of_first.is_sorted(), "{version:?}: first deliveries are in order");
    }
}

fn note(publish: &Publish, arrived: &mut BTreeSet<u64>, order_of_first: &mut Vec<u64>) {
    let body: serde_json::Value = serde_json::from_slice(&publish.payload).unwrap();
    let seq = body["seq"].as_u64().unwrap();
    if arrived.insert(seq) {
        order_of_first.push(seq);
    }
}

#[tokio::test]
async fn a_silent_broker_ends_the_link_and_fails_everything_in_flight() {
    let Some(mut broker) = Broker::open().await else { return };
    for version in versions() {
        let sink = MqttSink::new(Settings { version, ..broker.settings() }).unwrap();
        let Connected { mut link, drive } = sink.connect().await.unwrap();
        broker.process().pause().unwrap();
        let sent = link.send(event(1));
        // The paused clock advances when every task is idle; the keep-alive takes a minute of it.
        tokio::time::pause();
        let (verdict, reason) = tokio::join!(sent, drive);
        tokio::time::resume();
        broker.process().unpause().unwrap();
        assert!(matches!(verdict, Err(DeliverError::Unavailable { .. })), "{verdict:?}");
        assert!(reason.to_string().contains("does not answer"), "{reason}");
        let late = link.send(event(2)).await;
        assert!(matches!(late, Err(DeliverError::Unavailable { .. })), "{late:?}");
        assert!(link.close().await.is_err(), "there is no broker to disconnect from");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("mqtt://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let error = MqttSink::new(settings(&url)).unwrap().connect().await.err().unwrap();
    assert!(error.to_string().contains("no connection within 10s"), "{error}");
}

// --- access rules and versions -------------------------------------------------------------------

#[tokio::test]
async fn a_message_on_a_forbidden_topic_is_rejected_on_mqtt_5_and_the_others_arrive() {
    let acl = "topic readwrite dtorrent/bridge/#\ntopic readwrite dtorrent/home/status\ntopic read #\n".to_owned();
    let Some(broker) = Broker::start(Options { acl: Some(acl), ..Options::default() }).await else { return };
    let sink = MqttSink::new(Settings { version: Version::V5, ..broker.settings() }).unwrap();
    let mut open = OpenLink::connect(&sink).await;
    for _ in 0..30 {
        let denied = open.link.send(event(1));
        let allowed = open.link.send(Delivery::ServerStatus { server: home(), is_online: true });
        let verdict = timeout(SOON, denied).await.unwrap();
        assert!(
            matches!(&verdict, Err(DeliverError::Rejected { reason }) if reason.contains("not allow")),
            "{verdict:?}"
        );
        timeout(SOON, allowed).await.unwrap().unwrap();
    }
    open.close().await;
}

#[tokio::test]
async fn a_wrong_password_is_reported_as_such() {
    let users = vec![("bridge".to_owned(), "right".to_owned())];
    let Some(broker) = Broker::start(Options { users, ..Options::default() }).await else { return };
    for version in [Version::V5, Version::V311, Version::Auto] {
        let with = |password: &str| Settings {
            version,
            username: Some("bridge".into()),
            password: Some(password.into()),
            ..broker.settings()
        };
        let error = MqttSink::new(with("wrong")).unwrap().connect().await.err().expect("a refusal").to_string();
        assert!(error.contains("`password`") && !error.contains("wrong"), "{error}");
        OpenLink::connect(&MqttSink::new(with("right")).unwrap()).await.close().await;
    }
}

#[tokio::test]
async fn a_refused_connection_is_unavailable() {
    let sink = MqttSink::new(settings(&format!("mqtt://127.0.0.1:{}", free_port().unwrap()))).unwrap();
    let error = sink.connect().await.err().unwrap();
    assert!(matches!(&error, DeliverError::Unavailable { reason, .. } if reason.contains("refused")), "{error:?}");
}

/// The answer of an old broker to a CONNECT of MQTT 5.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    Says,
    HangsUp,
}

/// A proxy in front of a mosquitto that refuses MQTT 5 and passes 3.1.1. Counts the refusals.
#[allow(clippy::disallowed_methods)]
async fn turn_5_away(broker_port: u16, refusal: Refusal) -> (u16, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let turned_away = Arc::new(AtomicUsize::new(0));
    let count = turned_away.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                // Type, a length of one or two bytes, then the name "MQTT" with its length, then the protocol level.
                let mut connect = vec![0; 4096];
                let read = client.read(&mut connect).await.unwrap();
                let name = connect.windows(6).position(|bytes| bytes == b"\0\x04MQTT").unwrap();
                if connect[name + 6] == 5 {
                    count.fetch_add(1, Ordering::Relaxed);
                    if let Refusal::Says = refusal {
                        client.write_all(&[0x20, 0x02, 0x00, 0x01]).await.unwrap();
                    }
                    return;
                }
                let mut broker = tokio::net::TcpStream::connect(("127.0.0.1", broker_port)).await.unwrap();
                broker.write_all(&connect[..read]).await.unwrap();
                tokio::io::copy_bidirectional(&mut client, &mut broker).await.ok();
            });
        }
    });
    (port, turned_away)
}

#[tokio::test]
async fn auto_falls_back_to_3_1_1_when_the_broker_does_not_know_5() {
    let Some(broker) = Broker::open().await else { return };
    for refusal in [Refusal::Says, Refusal::HangsUp] {
        let (port, turned_away) = turn_5_away(broker.port, refusal).await;
        let sink = MqttSink::new(settings(&format!("mqtt://127.0.0.1:{port}"))).unwrap();
        for _ in 0..2 {
            let mut open = OpenLink::connect(&sink).await;
            open.send(event(1)).await.unwrap();
            assert_eq!(open.link.limits().window, 98, "3.1.1 has no receive maximum");
            open.close().await;
        }
        let asked = turned_away.load(Ordering::Relaxed);
        assert!(matches!((refusal, asked), (Refusal::Says, 1..=2) | (Refusal::HangsUp, 2)), "{refusal:?} {asked}");
        let strict = Settings { version: Version::V5, ..settings(&format!("mqtt://127.0.0.1:{port}")) };
        assert!(MqttSink::new(strict).unwrap().connect().await.is_err());
    }
}

// --- transports ----------------------------------------------------------------------------------

fn trusting(ca_pem: Vec<u8>) -> Trust {
    Trust { ca_pem: Some(ca_pem), ..Trust::default() }
}

#[tokio::test]
async fn tls_with_a_client_certificate_connects_and_its_faults_are_reported() {
    if !are_installed(&[("openssl", "openssl")]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let Certificates { ca, server, server_key, client, client_key } = Certificates::make(folder.path());
    let tls = Tls { ca: ca.clone(), certificate: server, key: server_key.clone(), client_certificates: true };
    let Some(broker) = Broker::start(Options { tls: Some(tls), ..Options::default() }).await else { return };
    let read = |path: &Path| std::fs::read(path).unwrap();
    let cert = |key: &Path| ClientCert { cert_pem: read(&client), key_pem: read(key).into() };
    for version in versions() {
        for host in ["127.0.0.1", "localhost"] {
            let good = Settings {
                version,
                trust: trusting(read(&ca)),
                client_cert: Some(cert(&client_key)),
                ..settings(&format!("mqtts://{host}:{}", broker.port))
            };
            let mut open = OpenLink::connect(&MqttSink::new(good).unwrap()).await;
            open.send(event(1)).await.unwrap();
            open.close().await;
        }
        let url = format!("mqtts://127.0.0.1:{}", broker.port);
        let unknown_authority = Settings { version, trust: trusting(read(&client)), ..settings(&url) };
        let error = MqttSink::new(unknown_authority).unwrap().connect().await.err().unwrap().to_string();
        assert!(error.contains("`ca_file`"), "{error}");
        let anonymous = Settings { version, trust: trusting(read(&ca)), ..settings(&url) };
        let error = MqttSink::new(anonymous).unwrap().connect().await.err().unwrap().to_string();
        assert!(error.contains("`cert_file`"), "{error}");
    }
    for (key, expected) in [(&server_key, "do not fit together"), (&client, "`key_file`")] {
        let wrong = Settings {
            trust: trusting(read(&ca)),
            client_cert: Some(cert(key)),
            ..settings(&format!("mqtts://127.0.0.1:{}", broker.port))
        };
        let error = MqttSink::new(wrong).err().unwrap().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn messages_are_the_same_over_websockets_with_and_without_tls() {
    // mosquitto 2.0.11 stops when it has no listener but WebSockets.
    if !are_installed(&[("openssl", "openssl")]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let Certificates { ca, server, server_key, .. } = Certificates::make(folder.path());
    let (ws, wss) = (free_port().unwrap(), free_port().unwrap());
    let websockets = |port| format!("listener {port} 127.0.0.1\nprotocol websockets");
    let tls = format!("cafile {}\ncertfile {}\nkeyfile {}", ca.display(), server.display(), server_key.display());
    let lines = vec![websockets(ws), websockets(wss), tls];
    let Some(mut broker) = Broker::start(Options { lines, ..Options::default() }).await else { return };
    broker.process().wait_until_ready(async || [ws, wss].into_iter().all(listens)).await.unwrap();
    for version in versions() {
        let url = format!("ws://127.0.0.1:{ws}/mqtt");
        let mut open = OpenLink::connect(&MqttSink::new(Settings { version, ..settings(&url) }).unwrap()).await;
        open.send(event(1)).await.unwrap();
        open.send(state(vec![b'x'; 200_000])).await.unwrap();
        open.close().await;
        let url = format!("wss://localhost:{wss}");
        let trust = trusting(std::fs::read(&ca).unwrap());
        let mut open = OpenLink::connect(&MqttSink::new(Settings { version, trust, ..settings(&url) }).unwrap()).await;
        open.send(event(1)).await.unwrap();
        open.close().await;
    }
}

// --- commands ------------------------------------------------------------------------------------

pub async fn next(commands: &mut MqttCommands) -> Incoming {
    match timeout(SOON, commands.next()).await.expect("a command in time") {
        Ok(incoming) => incoming,
        Err(error) => panic!("{error}"),
    }
}

/// Polls the source until the broker's log contains a text for the `count`-th time.
async fn until_said(broker: &Broker, commands: &mut MqttCommands, text: &str, count: usize) {
    let begin = tokio::time::Instant::now();
    while broker.count_in_log(text) < count {
        assert!(begin.elapsed() < SOON, "`{text}` was logged {} times of {count}", broker.count_in_log(text));
        match timeout(Duration::from_millis(5), commands.next()).await {
            Err(_) => {}
            Ok(Ok(incoming)) => panic!("unexpected {:?}", incoming.address),
            Ok(Err(error)) => panic!("{error}"),
        }
    }
}

async fn until_subscribed(broker: &Broker, commands: &mut MqttCommands, instance: &str, count: usize) {
    until_said(broker, commands, &format!("Sending SUBACK to dtorrent-{instance}-bus-commands"), count).await;
}

async fn until_acknowledged(broker: &Broker, commands: &mut MqttCommands, instance: &str, count: usize) {
    until_said(broker, commands, &format!("Received PUBACK from dtorrent-{instance}-bus-commands"), count).await;
}

/// Asserts that no command arrives before a marker that is sent now.
async fn nothing_else_comes(sender: &Subscriber, commands: &mut MqttCommands) {
    sender.publish("dtorrent/home/command/mark", "", false, Default::default()).await;
    let incoming = next(commands).await;
    assert_eq!(words(&incoming), "home mark");
    (incoming.ack)();
}

fn words(incoming: &Incoming) -> String {
    let mut words = String::new();
    for word in [&incoming.address.server, &incoming.address.hash].into_iter().flatten() {
        write!(words, "{word} ").unwrap();
    }
    words + &incoming.address.verb
}

#[tokio::test]
async fn a_command_arrives_with_its_address_reply_topic_and_expiry() {
    let Some(broker) = Broker::open().await else { return };
    let sender = Subscriber::new(broker.port, &[]).await;
    let mut commands = MqttSink::new(broker.settings()).unwrap().commands();
    until_subscribed(&broker, &mut commands, "main", 1).await;
    let properties = |topic: &str| PublishProperties {
        message_expiry_interval: Some(300),
        response_topic: Some(topic.to_owned()),
        correlation_data: Some(Bytes::from_static(b"\x00\xff")),
        ..Default::default()
    };
    let topic = format!("dtorrent/home/torrent/{HASH}/command/pause");
    sender.publish(&topic, "{}", false, properties("answers/1")).await;
    let incoming = next(&mut commands).await;
    assert_eq!(words(&incoming), format!("home {HASH} pause"));
    assert_eq!(incoming.body, "{}");
    assert_eq!(incoming.reply, Some(ReplyTo { topic: "answers/1".into(), correlation: Some(vec![0, 255]) }));
    assert!(!incoming.is_retained);
    assert!(
        incoming.expires_in.is_some_and(|left| left <= Duration::from_secs(300) && left > Duration::from_secs(280))
    );
    (incoming.ack)();
    // A response topic that is a command topic of the bridge is ignored.
    sender.publish("dtorrent/home/command/add", "x", false, properties("dtorrent/home/command/delete")).await;
    let incoming = next(&mut commands).await;
    assert_eq!((words(&incoming).as_str(), incoming.reply), ("home add", None));
    (incoming.ack)();
    sender.publish("dtorrent/bridge/main/command/resync", "", false, Default::default()).await;
    // Commands to another bridge or another server do not arrive.
    sender.publish("dtorrent/bridge/other/command/resync", "", false, Default::default()).await;
    sender.publish("dtorrent/attic/command/add", "", false, Default::default()).await;
    let incoming = next(&mut commands).await;
    assert_eq!((words(&incoming).as_str(), incoming.expires_in, &incoming.reply), ("resync", None, &None));
    (incoming.ack)();
    nothing_else_comes(&sender, &mut commands).await;
}

#[tokio::test]
async fn an_unacknowledged_command_is_redelivered_and_an_acknowledged_one_is_not() {
    let Some(broker) = Broker::open().await else { return };
    let sender = Subscriber::new(broker.port, &[]).await;
    for (version, instance) in versions().into_iter().zip(["new", "old"]) {
        let settings = || Settings { version, instance: instance.into(), ..broker.settings() };
        let mut commands = MqttSink::new(settings()).unwrap().commands();
        until_subscribed(&broker, &mut commands, instance, 1).await;
        for verb in ["pause", "resume", "stop"] {
            sender.publish(&format!("dtorrent/home/command/{verb}"), "{}", false, Default::default()).await;
        }
        let pause = next(&mut commands).await;
        let resume = next(&mut commands).await;
        let stop = next(&mut commands).await;
        assert_eq!([words(&pause), words(&resume), words(&stop)], ["home pause", "home resume", "home stop"]);
        (pause.ack)();
        (stop.ack)();
        until_acknowledged(&broker, &mut commands, instance, 2).await;
        drop(commands);
        // An acknowledgement after the end of its connection has no effect.
        (resume.ack)();
        // Commands sent while the source is disconnected are queued, too.
        sender.publish("dtorrent/home/command/announce", "{}", false, Default::default()).await;
        let mut commands = MqttSink::new(settings()).unwrap().commands();
        let resume = next(&mut commands).await;
        let announce = next(&mut commands).await;
        assert_eq!([words(&resume), words(&announce)], ["home resume", "home announce"]);
        (resume.ack)();
        (announce.ack)();
        until_acknowledged(&broker, &mut commands, instance, 4).await;
        drop(commands);
        let mut commands = MqttSink::new(settings()).unwrap().commands();
        nothing_else_comes(&sender, &mut commands).await;
        // Otherwise this session would queue the commands of the next round as well.
        until_acknowledged(&broker, &mut commands, instance, 5).await;
    }
}

#[tokio::test]
async fn a_retained_command_is_marked_as_retained_live_and_stored() {
    let Some(broker) = Broker::open().await else { return };
    let sender = Subscriber::new(broker.port, &[]).await;
    sender.publish("dtorrent/home/command/stored", "{}", true, Default::default()).await;
    let mut commands = MqttSink::new(broker.settings()).unwrap().commands();
    let incoming = next(&mut commands).await;
    assert!(incoming.is_retained && words(&incoming) == "home stored");
    (incoming.ack)();
    sender.publish("dtorrent/home/command/live", "{}", true, Default::default()).await;
    let incoming = next(&mut commands).await;
    assert!(incoming.is_retained && words(&incoming) == "home live");
    (incoming.ack)();
    until_acknowledged(&broker, &mut commands, "main", 2).await;
    drop(commands);
    // The session already has the subscription, so the broker does not send the retained messages again.
    let mut commands = MqttSink::new(broker.settings()).unwrap().commands();
    nothing_else_comes(&sender, &mut commands).await;
    // MQTT 3.1.1 marks stored messages only.
    let settings = Settings { version: Version::V311, instance: "old".into(), ..broker.settings() };
    let mut commands = MqttSink::new(settings).unwrap().commands();
    let incoming = next(&mut commands).await;
    assert!(incoming.is_retained);
}

#[tokio::test]
async fn an_oversized_command_is_not_redelivered_forever() {
    let Some(broker) = Broker::open().await else { return };
    let sender = Subscriber::new(broker.port, &[]).await;
    for (version, instance) in versions().into_iter().zip(["new", "old"]) {
        let settings = Settings { version, instance: instance.into(), ..broker.settings() };
        let mut commands = MqttSink::new(settings).unwrap().commands();
        until_subscribed(&broker, &mut commands, instance, 1).await;
        let body = Bytes::from(vec![b'x'; 11 << 20]);
        sender.publish("dtorrent/home/command/add", body.clone(), false, Default::default()).await;
        let incoming = next(&mut commands).await;
        assert_eq!(incoming.body.len(), body.len(), "a torrent of some MiB is a body like any other");
        (incoming.ack)();
        sender.publish("dtorrent/home/command/add", vec![b'x'; 20 << 20], false, Default::default()).await;
        sender.publish("dtorrent/home/command/pause", "{}", false, Default::default()).await;
        if version == Version::V311 {
            // MQTT 3.1.1 cannot announce a limit: the connection ends, and the next one accepts the command to refuse it.
            assert!(timeout(SOON, commands.next()).await.unwrap().is_err());
            let incoming = next(&mut commands).await;
            assert_eq!(incoming.body.len(), 20 << 20);
            (incoming.ack)();
        }
        let incoming = next(&mut commands).await;
        assert_eq!(words(&incoming), "home pause");
        (incoming.ack)();
        nothing_else_comes(&sender, &mut commands).await;
    }
}

#[tokio::test]
async fn a_caller_that_stops_waiting_loses_no_command() {
    let Some(broker) = Broker::open().await else { return };
    let sender = Subscriber::new(broker.port, &[]).await;
    let mut commands = MqttSink::new(broker.settings()).unwrap().commands();
    until_subscribed(&broker, &mut commands, "main", 1).await;
    let mut seen = Vec::new();
    for number in 0..200 {
        sender.publish(&format!("dtorrent/home/command/v{number}"), "{}", false, Default::default()).await;
    }
    let mut rounds = 0_u32;
    while seen.len() < 200 {
        rounds += 1;
        assert!(rounds < 1_000_000, "got {seen:?}");
        tokio::select! {
            biased;
            incoming = commands.next() => {
                let incoming = incoming.unwrap_or_else(|error| panic!("{error}"));
                seen.push(incoming.address.verb.clone());
                (incoming.ack)();
            }
            () = tokio::task::yield_now() => {}
        }
    }
    let expected: Vec<_> = (0..200).map(|number| format!("v{number}")).collect();
    assert_eq!(seen, expected);
}
