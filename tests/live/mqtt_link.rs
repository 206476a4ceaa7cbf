//! The MQTT sink and command source against a real mosquitto.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dtorrent::model::{Entry, Epoch, EventId, InfoHash, Kind, Rev, Seq, ServerName, SinkName, Timestamp};
use dtorrent::port::{CommandSource as _, Connected, DeliverError, Delivery, Incoming, Link, ReplyTo, Sink as _};
use dtorrent::sinks::mqtt::{BrokerUrl, ClientCert, MqttCommands, MqttSink, Prefix, Settings, Version};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, StreamExt as _};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnectProperties, Filter, Packet, Publish, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(15);
const HASH: &str = "3f786850e387550fdab836ed7e6dc881de23001b";

// --- a broker ------------------------------------------------------------------------------------

/// A mosquitto of one test; killed when dropped.
struct Mosquitto {
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Mosquitto {
    /// Starts one whose listener and rules are `config`; `{port}` and `{dir}` stand for its own.
    fn start(config: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        Self::start_in(folder, free_port(), config, |_| {})
    }

    fn start_in(folder: tempfile::TempDir, port: u16, config: &str, prepare: impl FnOnce(&Path)) -> Option<Self> {
        prepare(folder.path());
        let dir = folder.path().to_str().unwrap();
        // Started by root it would become another user, who cannot read the temporary folder.
        let config = format!("user root\n{config}").replace("{port}", &port.to_string()).replace("{dir}", dir);
        let file = folder.path().join("mosquitto.conf");
        std::fs::write(&file, config).unwrap();
        let child = run_mosquitto(&file)?;
        let broker = Self { child, folder, port };
        broker.wait_until_it_listens();
        Some(broker)
    }

    fn open() -> Option<Self> {
        Self::start("listener {port} 127.0.0.1\nallow_anonymous true\n")
    }

    fn wait_until_it_listens(&self) {
        let begin = std::time::Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(begin.elapsed() < SOON, "mosquitto does not listen on {}", self.port);
            std::thread::yield_now();
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.child = run_mosquitto(&self.path("mosquitto.conf")).unwrap();
        self.wait_until_it_listens();
    }

    fn settings(&self) -> Settings {
        settings(&format!("mqtt://127.0.0.1:{}", self.port))
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn run_mosquitto(config: &Path) -> Option<Child> {
    let path = format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default());
    let log = std::fs::OpenOptions::new().create(true).append(true).open(config.with_extension("log")).unwrap();
    let mut command = Command::new("mosquitto");
    command.env("PATH", &path).arg("-v").arg("-c").arg(config).stdout(Stdio::null()).stderr(log).stdin(Stdio::null());
    match command.spawn() {
        Ok(child) => Some(child),
        Err(error) => {
            assert!(std::env::var("DTORRENT_LIVE").as_deref() != Ok("required"), "mosquitto is needed: {error}");
            eprintln!("SKIPPED: mosquitto cannot be started ({error}); install the package `mosquitto`");
            None
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn settings(url: &str) -> Settings {
    Settings {
        name: SinkName::parse("bus").unwrap(),
        instance: "main".into(),
        url: BrokerUrl::parse(url).unwrap(),
        username: None,
        password: None,
        ca_pem: None,
        client_cert: None,
        version: Version::Auto,
        prefix: Prefix::default(),
        servers: vec![home()],
        retain: true,
    }
}

// --- what is sent --------------------------------------------------------------------------------

fn home() -> ServerName {
    ServerName::parse("home").unwrap()
}

fn hash() -> InfoHash {
    HASH.parse().unwrap()
}

fn event(seq: u64) -> Delivery {
    let id = EventId::Journal { server: home(), epoch: Epoch(0x7f3a_9c21), seq: Seq(seq) };
    Delivery::Event(Entry {
        server: home(),
        seq: Seq(seq),
        id,
        kind: Kind::Finished,
        hash: Some(hash()),
        rev: Rev(seq),
        time: Timestamp::from_millis(1_795_328_701_114),
        body: Bytes::from(format!(r#"{{"seq":{seq}}}"#)),
    })
}

fn state(body: impl Into<Bytes>) -> Delivery {
    Delivery::State { server: home(), hash: hash(), body: body.into(), keep: true }
}

/// A link with its drive in a task, so that a test can await what it sends.
struct Live {
    link: Box<dyn Link>,
    drive: tokio::task::JoinHandle<DeliverError>,
}

impl Live {
    async fn connect(sink: &MqttSink) -> Self {
        Self::of(timeout(SOON, sink.connect()).await.expect("an answer in time").expect("a connection"))
    }

    #[allow(clippy::disallowed_methods)]
    fn of(Connected { link, drive }: Connected) -> Self {
        Self { link, drive: tokio::spawn(drive) }
    }

    async fn send(&mut self, delivery: Delivery) -> Result<(), DeliverError> {
        timeout(SOON, self.link.send(delivery)).await.expect("a verdict in time")
    }

    async fn close(self) {
        timeout(SOON, self.link.close()).await.expect("a goodbye in time").expect("a goodbye");
        timeout(SOON, self.drive).await.expect("the drive ends").unwrap();
    }

    /// The connection breaks without a goodbye.
    async fn cut(self) {
        self.drive.abort();
        self.drive.await.unwrap_err();
    }
}

// --- who looks on --------------------------------------------------------------------------------

/// Another client of the broker, on MQTT 5.
struct Observer {
    client: AsyncClient,
    seen: mpsc::Receiver<Publish>,
    task: tokio::task::JoinHandle<()>,
}

impl Observer {
    async fn new(port: u16, filters: &[&str]) -> Self {
        Self::with(port, filters, |_| {}).await
    }

    #[allow(clippy::disallowed_methods)]
    async fn with(port: u16, filters: &[&str], change: impl FnOnce(&mut MqttOptions)) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let id = format!("observer-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut options = MqttOptions::new(id, "127.0.0.1", port);
        let mut properties = ConnectProperties::new();
        properties.max_packet_size = Some(32 << 20);
        options.set_connect_properties(properties);
        change(&mut options);
        let (client, mut events) = AsyncClient::new(options, 100);
        let (tell, seen) = mpsc::channel(100_000);
        let filters: Vec<_> = filters
            .iter()
            .map(|path| Filter { preserve_retain: true, ..Filter::new(*path, QoS::AtLeastOnce) })
            .collect();
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
                    Ok(Event::Incoming(Packet::SubAck(_))) => {
                        if let Some(ready) = ready.take() {
                            ready.send(()).ok();
                        }
                    }
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        if tell.send(publish).await.is_err() {
                            return;
                        }
                    }
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
        });
        timeout(SOON, is_ready).await.expect("a subscription in time").expect("a subscription");
        Self { client, seen, task }
    }

    async fn next(&mut self) -> Publish {
        timeout(SOON, self.seen.recv()).await.expect("a message in time").expect("a connection")
    }

    /// The next message with this topic; what comes before it is passed over.
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

    async fn publish(&self, topic: &str, body: impl Into<Bytes>, retain: bool, properties: PublishProperties) {
        self.client.publish_with_properties(topic, QoS::AtLeastOnce, retain, body, properties).await.unwrap();
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn versions() -> [Version; 2] {
    [Version::V5, Version::V311]
}

macro_rules! broker_or_skip {
    ($broker:expr) => {
        match $broker {
            Some(broker) => broker,
            None => return,
        }
    };
}

// --- publishing ----------------------------------------------------------------------------------

#[tokio::test]
async fn what_is_acknowledged_has_arrived_in_both_versions() {
    let broker = broker_or_skip!(Mosquitto::open());
    for version in versions() {
        let mut observer = Observer::new(broker.port, &["dtorrent/home/#"]).await;
        let sink = MqttSink::new(Settings { version, ..broker.settings() }).unwrap();
        let mut live = Live::connect(&sink).await;
        for seq in 1..=50 {
            live.send(event(seq)).await.unwrap();
        }
        for seq in 1..=50 {
            let publish = observer.next_on(&format!("dtorrent/home/torrent/{HASH}/event/finished")).await;
            assert_eq!(publish.payload, format!(r#"{{"seq":{seq}}}"#));
            assert!(!publish.retain, "an event is never kept");
        }
        live.close().await;
    }
}
