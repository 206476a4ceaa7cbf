//! How fast a backlog reaches a broker, next to a bare publisher of the same library.
//!
//! The store holds a journal. In each round a new sink has all of it pending: the dispatcher reads it from disk and
//! sends it to a real mosquitto with QoS 1, through the program's adapter. Then the bare publisher sends the same bodies
//! from memory to the same topics of the same broker, with as many in flight, and counts PUBACKs. Both measurements begin
//! before the connection and end with the last acknowledgement; they alternate, so that other load affects both.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use bytes::Bytes;
use dtorrent::live_state::LiveState;
use dtorrent::model::{
    Cause, ChangeSet, Changes, DiffState, InfoHash, Kind, NewEvent, Rev, Seq, ServerName, SinkName, Timestamp, Torrent,
};
use dtorrent::outbox::retention::Retain;
use dtorrent::outbox::{Dispatcher, DispatcherParts, DispatcherSettings, Reporter};
use dtorrent::port::{Delivery, Journal as _, Sink, SinkProgress, SinkStore as _, Store, SystemClock};
use dtorrent::servers::load;
use dtorrent::sinks::mqtt::topics::Topics;
use dtorrent::sinks::mqtt::{BrokerUrl, MqttSink, Prefix, Settings, Version};
use dtorrent::store::{Options, SqliteStore};
use dtorrent_peers::mosquitto::{self, Mosquitto};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::{AsyncClient, Event, Incoming, MqttOptions};
use tokio_util::sync::CancellationToken;

use crate::sample;
use crate::table::{Line, Measured, median};

const ENTRIES: usize = 10_000;
const TORRENTS: usize = 20;
const ROUNDS: usize = 7;
/// Maximum number of messages in flight; the bridge reserves two of the broker's receive maximum for its own status.
const DEPTH_MAX: u16 = 100;
const RESERVE: u16 = 2;

pub async fn run() -> anyhow::Result<Vec<Line>> {
    let folder = tempfile::tempdir_in(".")?; // not on a tmpfs: the journal is read from where it would lie
    let bench = Bench::begin(folder.path()).await?;
    let mut lines = Vec::new();
    let wider = format!("max_inflight_messages {DEPTH_MAX}");
    for (number, line) in [None, Some(wider)].into_iter().enumerate() {
        let shown = line.clone().unwrap_or_else(|| "mosquitto as it comes".to_owned());
        // A broker that logs each message would be the bottleneck.
        let options = line.into_iter().chain(["log_dest none".to_owned()]).collect();
        let options = mosquitto::Options { lines: options, ..mosquitto::Options::default() };
        let broker = Mosquitto::start(&folder.path().join(format!("mosquitto-{number}")), &options).await?;
        let (mut bridge, mut bare, mut ratios, mut window) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for round in 0..=ROUNDS {
            let of_bridge = bench.bridge(&sink(number, round)?, &broker).await?;
            let (of_bare, granted) = bench.bare(&broker).await?;
            window = granted;
            if round > 0 {
                // The first round warms up.
                bridge.push(of_bridge);
                bare.push(of_bare);
                ratios.push(of_bridge / of_bare);
            }
        }
        let [bridge, bare, ratio] = [bridge, bare, ratios].map(median);
        lines.push(Line {
            what: format!("events to a broker, {shown}, {window} in flight"),
            figure: format!("{bridge:.0}/s"),
            baseline: format!("a bare publisher, {} bytes each: {bare:.0}/s", bench.mean_bytes()),
            measured: Measured::at_least(ratio, 0.5, "×"),
            reason: "",
        });
    }
    bench.store.close().await?;
    Ok(lines)
}

fn sink(broker: usize, round: usize) -> anyhow::Result<SinkName> {
    Ok(SinkName::parse(&format!("sink-{broker}-{round}"))?)
}

struct Bench {
    server: ServerName,
    store: Arc<SqliteStore>,
    /// Topics and bodies that the bridge will have sent.
    messages: Vec<(String, Bytes)>,
}

impl Bench {
    async fn begin(folder: &std::path::Path) -> anyhow::Result<Self> {
        let server = ServerName::parse("home")?;
        let (store, _) = SqliteStore::open(&folder.join("data"), Options::default(), Arc::new(SystemClock))?;
        let sinks: Vec<SinkName> =
            (0..2).flat_map(|broker| (0..=ROUNDS).map(move |round| sink(broker, round))).collect::<Result<_, _>>()?;
        store.declare_sinks(&sinks.iter().map(|sink| (sink.clone(), vec![server.clone()])).collect()).await?;
        for sink in &sinks {
            // All entries written below are pending for the sink.
            store
                .save_progress(sink, [(server.clone(), SinkProgress { cursor: Seq(0), sent_rev: Rev(0) })].into())
                .await?;
        }
        let kinds = [Kind::Paused, Kind::Resumed, Kind::Stalled, Kind::Unstalled];
        for kind in kinds.into_iter().cycle().take(ENTRIES / TORRENTS) {
            store.commit(change_set(&server, kind, TORRENTS)).await?;
        }
        let topics = Topics::new(Prefix::default(), "main", true);
        let mut messages = Vec::new();
        for after in (0..ENTRIES as u64).step_by(100) {
            for entry in store.read_after(&server, Seq(after), 100).await? {
                let body = entry.body.clone();
                messages.push((topics.route(&Delivery::Event(entry)).topic, body));
            }
        }
        ensure!(messages.len() == ENTRIES, "the journal holds {} entries", messages.len());
        Ok(Self { server, store: Arc::new(store), messages })
    }

    fn mean_bytes(&self) -> usize {
        self.messages.iter().map(|(_, body)| body.len()).sum::<usize>() / self.messages.len()
    }

    /// Returns the events per second of the bridge.
    async fn bridge(&self, name: &SinkName, broker: &Mosquitto) -> anyhow::Result<f64> {
        let sink = MqttSink::new(Settings {
            name: name.clone(),
            instance: "main".to_owned(),
            url: BrokerUrl::parse(&broker.url())?,
            username: None,
            password: None,
            trust: dtorrent::tls::Trust::default(),
            client_id: None,
            client_cert: None,
            version: Version::Auto,
            prefix: Prefix::default(),
            servers: vec![self.server.clone()],
            retain: Retain::All,
            home_assistant: None,
        })?;
        drained(&self.store, &self.server, name, Arc::new(sink), ENTRIES, async |_| Ok(())).await
    }

    /// Returns the events per second of a bare publisher, and its number of messages in flight.
    async fn bare(&self, broker: &Mosquitto) -> anyhow::Result<(f64, u16)> {
        let messages = self.messages.clone();
        let port = broker.port;
        #[allow(clippy::disallowed_methods, reason = "a task of the bench, not of the bridge")]
        tokio::spawn(async move { publish(messages, port).await }).await?
    }
}

/// Returns the events per second of the bridge with `pending` entries. Calls `on_progress` with the number delivered so
/// far.
pub async fn drained(
    store: &Arc<SqliteStore>,
    server: &ServerName,
    name: &SinkName,
    sink: Arc<dyn Sink>,
    pending: usize,
    mut on_progress: impl AsyncFnMut(u64) -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let store: Arc<dyn Store> = store.clone();
    let committed = load(&*store, server).await?;
    let last = committed.last_seq;
    let live = Arc::new(LiveState::new(BTreeMap::from([(server.clone(), committed)]), [name.clone()]));
    let buffer = live.buffer(name).cloned().expect("made for this sink");
    let settings = DispatcherSettings {
        name: name.clone(),
        servers: vec![server.clone()],
        events: Kind::ALL.iter().copied().collect::<BTreeSet<_>>(),
        retain: Retain::Auto,
        was_clean_shutdown: true,
    };
    let parts = DispatcherParts {
        settings,
        sink,
        store: Arc::clone(&store),
        live,
        buffer: Arc::clone(&buffer),
        clock: Arc::new(SystemClock),
        reporter: Arc::new(EmptyReporter),
    };
    let dispatcher = Dispatcher::new(parts).await?;
    let stop = CancellationToken::new();
    let started = Instant::now();
    let drained = async {
        loop {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let report = buffer.last_report();
            on_progress(report.delivered).await?;
            if report.delivered >= pending as u64 && report.lag_entries == 0 {
                let took = started.elapsed();
                stop.cancel();
                return anyhow::Ok(took);
            }
        }
    };
    #[allow(clippy::disallowed_methods, reason = "the program spawns it as a separate task, too")]
    let running = tokio::spawn(dispatcher.run(stop.clone()));
    let took = tokio::time::timeout(Duration::from_secs(300), drained).await??;
    running.await??;
    let noted = store.load_sink(name).await?.progress;
    let cursor = noted.get(server).map(|progress| progress.cursor);
    ensure!(cursor == Some(last), "the cursor is at {cursor:?}");
    Ok(pending as f64 / took.as_secs_f64())
}

pub async fn publish(messages: Vec<(String, Bytes)>, port: u16) -> anyhow::Result<(f64, u16)> {
    let mut options = MqttOptions::new("bare", "127.0.0.1", port);
    let mut network = options.network_options();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    let (count, started) = (messages.len(), Instant::now());
    let (client, mut events) = AsyncClient::new(options, usize::from(DEPTH_MAX));
    let mut messages = messages.into_iter();
    let (mut window, mut under_way, mut acknowledged) = (0, 0, 0);
    while acknowledged < count {
        while under_way < window
            && let Some((topic, body)) = messages.next()
        {
            client.try_publish(topic, QoS::AtLeastOnce, false, body)?;
            under_way += 1;
        }
        match events.poll().await? {
            Event::Incoming(Incoming::ConnAck(granted)) => {
                let granted = granted.properties.and_then(|properties| properties.receive_max).unwrap_or(u16::MAX);
                window = DEPTH_MAX.min(granted).saturating_sub(RESERVE);
            }
            Event::Incoming(Incoming::PubAck(_)) => {
                under_way -= 1;
                acknowledged += 1;
            }
            _ => {}
        }
    }
    Ok((count as f64 / started.elapsed().as_secs_f64(), window))
}

/// The same change of every torrent.
pub fn change_set(server: &ServerName, kind: Kind, torrents: usize) -> ChangeSet {
    let torrents: Vec<Arc<Torrent>> = (0..torrents).map(|number| sample::torrent(server, number)).collect();
    let new_event = |torrent: &Arc<Torrent>| NewEvent {
        kind,
        cause: Cause::Observed,
        command_id: None,
        changes: Changes::new(),
        torrent: Some(Arc::clone(torrent)),
    };
    let events = torrents.iter().map(new_event).collect();
    let snapshot = |torrent: Arc<Torrent>| (torrent.hash, Some((torrent, DiffState::default())));
    let changes: BTreeMap<InfoHash, _> = torrents.iter().cloned().map(snapshot).collect();
    ChangeSet { server: server.clone(), time: Timestamp::from_seconds(1_795_328_701), events, changes, state: None }
}

/// A reporter for an engine without a bridge around it.
struct EmptyReporter;

impl Reporter for EmptyReporter {
    fn info(&self, _: &dtorrent::model::SinkName, _: &[ServerName]) -> Bytes {
        Bytes::from_static(b"{}")
    }

    fn health(&self) -> Bytes {
        Bytes::from_static(b"{}")
    }
}
