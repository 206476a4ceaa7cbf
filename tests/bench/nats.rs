//! Rate at which a backlog reaches JetStream, and completeness when the server is killed.
//!
//! As in `drain`, the dispatcher sends a journal from disk to a real nats-server, through the program's adapter; the
//! baseline is a bare publisher of the same library that sends the same bodies from memory, with as many in flight. Then
//! a new sink has all of a longer journal pending, and the server is killed (SIGKILL) six times meanwhile; afterwards the
//! stream is read from its first message to its last.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use async_nats::jetstream::{self, consumer::DeliverPolicy, consumer::pull::OrderedConfig};
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use dtorrent::model::{Kind, Rev, Seq, ServerName, SinkName};
use dtorrent::port::{Delivery, Journal as _, Sink as _, SinkProgress, SinkStore as _, SystemClock};
use dtorrent::sinks::nats::subjects::Subjects;
use dtorrent::sinks::nats::{Login, NatsSink, Prefix, ServerUrl, Settings};
use dtorrent::store::{Options, SqliteStore};
use dtorrent_peers::mosquitto::{self, Mosquitto};
use dtorrent_peers::process::{Process, TIMEOUT, find, free_port};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpStream;

use crate::drain::{change_set, drained};
use crate::latency::p50_p99;
use crate::programs::{Bridge, Config};
use crate::rtorrents::RtorrentPair;
use crate::table::{Line, Measured, median, millis};

const ENTRIES: usize = 200_000;
const TORRENTS: usize = 200;
/// Number of entries of the rate measurement.
const TIMED: usize = 20_000;
const ROUNDS: usize = 5;
const KILLS: u64 = 6;
/// Maximum number of messages in flight.
const DEPTH: usize = 256;
/// Number of torrents that are paused by request.
const PAUSED: usize = 100;
const STREAM: &str = "DTORRENT_EVENTS";

pub async fn run() -> anyhow::Result<Vec<Line>> {
    let folder = tempfile::tempdir_in(".")?; // not on a tmpfs, as in `drain`
    let mut server = Server::start(folder.path()).await?;
    let bench = Bench::begin(folder.path()).await?;
    let (mut bridge, mut bare, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        // The ids are the same each time, so each round needs a new stream.
        jetstream::new(server.client().await?).delete_stream(STREAM).await.ok();
        let name = sink(round)?;
        let adapter = Arc::new(bench.adapter(&name, &server)?);
        drop(adapter.connect().await?); // makes the stream, which is not what is timed
        let of_bridge = drained(&bench.store, &bench.server, &name, adapter, TIMED, async |_| Ok(())).await?;
        let of_bare = bench.bare(server.url(), round).await?;
        if round > 0 {
            // The first round warms up.
            bridge.push(of_bridge);
            bare.push(of_bare);
            ratios.push(of_bridge / of_bare);
        }
    }
    let [bridge, bare, ratio] = [bridge, bare, ratios].map(median);
    let timed = Line {
        what: format!("events to JetStream, {}, {DEPTH} in flight", server.version()?),
        figure: format!("{bridge:.0}/s"),
        baseline: format!("a bare publisher, the same bodies: {bare:.0}/s"),
        measured: Measured::at_least(ratio, 0.5, "×"),
        reason: "",
    };
    let killed = bench.killed(&mut server).await?;
    bench.store.close().await?;
    let paused = pauses(folder.path(), &server).await?;
    Ok(vec![timed, killed, paused])
}

/// Measures the time from a request to its reply, which follows the observed effect.
async fn pauses(folder: &Path, server: &Server) -> anyhow::Result<Line> {
    let pair = RtorrentPair::start(folder, PAUSED, 0).await?;
    let broker = Mosquitto::start(&folder.join("mosquitto"), &mosquitto::Options::default()).await?;
    let servers = vec![("home".to_owned(), pair.home.url())];
    let server_lines = format!("[brokers.bus]\nkind = \"nats\"\nurl = \"{}\"", server.url());
    let config = Config { server_lines, ..Config::new(&folder.join("bridge"), servers, broker.url()) };
    let mut bridge = Bridge::start(&config)?;
    bridge.at_rest(1, PAUSED).await?;
    let client = server.client().await?;
    let (mut took, mut bare) = (Vec::new(), Vec::new());
    for hash in pair.home.hashes().await? {
        let began = Instant::now();
        client.request("$JS.API.INFO", Bytes::new()).await?;
        bare.push(began.elapsed());
        let began = Instant::now();
        let request = async_nats::Request::new().timeout(Some(TIMEOUT));
        let reply = client.send_request(format!("dtorrent.home.torrent.{hash}.command.pause"), request).await?;
        took.push(began.elapsed());
        let result: serde_json::Value = serde_json::from_slice(&reply.payload)?;
        ensure!(result["status"] == "ok", "{result}");
    }
    bridge.stop().await?;
    let [p50, p99] = p50_p99(took);
    let [bare_p50, bare_p99] = p50_p99(bare);
    Ok(Line {
        what: format!("{PAUSED} × pause, request to reply"),
        figure: format!("p50 {}, p99 {}", millis(p50), millis(p99)),
        baseline: format!("a request to the server itself: p50 {}, p99 {}", millis(bare_p50), millis(bare_p99)),
        measured: Measured::snapshot(p99.as_secs_f64() * 1e3, " ms"),
        reason: "",
    })
}

fn sink(round: usize) -> anyhow::Result<SinkName> {
    Ok(SinkName::parse(&format!("sink-{round}"))?)
}

struct Bench {
    server: ServerName,
    store: Arc<SqliteStore>,
    /// Event ids, in order.
    ids: Vec<String>,
    /// Subjects and bodies of the timed entries.
    messages: Vec<(String, Bytes)>,
}

impl Bench {
    async fn begin(folder: &Path) -> anyhow::Result<Self> {
        let server = ServerName::parse("home")?;
        let options = Options { journal_bytes_max: 2 << 30, ..Options::default() };
        let (store, _) = SqliteStore::open(&folder.join("data"), options, Arc::new(SystemClock))?;
        // The last sink is for the kills.
        let sinks: Vec<SinkName> = (0..=ROUNDS + 1).map(sink).collect::<Result<_, _>>()?;
        store.declare_sinks(&sinks.iter().map(|sink| (sink.clone(), vec![server.clone()])).collect()).await?;
        for (round, sink) in sinks.iter().enumerate() {
            let pending = if round <= ROUNDS { TIMED } else { ENTRIES };
            let progress = SinkProgress { cursor: Seq((ENTRIES - pending) as u64), sent_rev: Rev(0) };
            store.save_progress(sink, [(server.clone(), progress)].into()).await?;
        }
        let kinds = [Kind::Paused, Kind::Resumed, Kind::Stalled, Kind::Unstalled];
        for kind in kinds.into_iter().cycle().take(ENTRIES / TORRENTS) {
            store.commit(change_set(&server, kind, TORRENTS)).await?;
        }
        let subjects = Subjects::new(Prefix::default(), "main", true);
        let (mut ids, mut messages) = (Vec::new(), Vec::new());
        for after in (0..ENTRIES as u64).step_by(100) {
            for entry in store.read_after(&server, Seq(after), 100).await? {
                ids.push(entry.id.to_string());
                if ids.len() > ENTRIES - TIMED {
                    let body = entry.body.clone();
                    messages.push((subjects.of(&Delivery::Event(entry)), body));
                }
            }
        }
        ensure!(ids.len() == ENTRIES, "the journal holds {} entries", ids.len());
        Ok(Self { server, store: Arc::new(store), ids, messages })
    }

    fn adapter(&self, name: &SinkName, server: &Server) -> anyhow::Result<NatsSink> {
        let settings = Settings {
            name: name.clone(),
            instance: "main".to_owned(),
            urls: vec![ServerUrl::parse(&server.url())?],
            login: Login::default(),
            trust: dtorrent::tls::Trust::default(),
            client_cert: None,
            prefix: Prefix::default(),
            servers: vec![self.server.clone()],
            jetstream: true,
            replicas: 1,
        };
        Ok(NatsSink::new(settings, BTreeMap::new())?)
    }

    /// Returns the events per second of a bare publisher, connection included, as for the bridge.
    async fn bare(&self, url: String, round: usize) -> anyhow::Result<f64> {
        let messages = self.messages.clone();
        let ids: Vec<String> = (0..messages.len()).map(|number| format!("bare-{round}-{number}")).collect();
        #[allow(clippy::disallowed_methods, reason = "a task of the bench, not of the bridge")]
        tokio::spawn(async move {
            let (count, started) = (messages.len(), Instant::now());
            let jetstream = jetstream::new(async_nats::connect(url).await?);
            let (mut under_way, mut stored) = (FuturesUnordered::new(), 0);
            let mut messages = messages.into_iter().zip(ids);
            while stored < count {
                while under_way.len() < DEPTH
                    && let Some(((subject, body), id)) = messages.next()
                {
                    let headers = HeaderMap::from_iter([("Nats-Msg-Id".parse()?, id.parse()?)]);
                    let acknowledged = jetstream.publish_with_headers(subject, headers, body).await?;
                    under_way.push(acknowledged.into_future());
                }
                let acknowledged = under_way.next().await.context("nothing is in flight")??;
                ensure!(!acknowledged.duplicate, "it was there before");
                stored += 1;
            }
            Ok(count as f64 / started.elapsed().as_secs_f64())
        })
        .await?
    }

    /// Delivers the whole journal while the server is killed repeatedly.
    async fn killed(&self, server: &mut Server) -> anyhow::Result<Line> {
        jetstream::new(server.client().await?).delete_stream(STREAM).await?;
        let name = sink(ROUNDS + 1)?;
        let adapter = Arc::new(self.adapter(&name, server)?);
        let mut kills = 0;
        let strike = async |arrived: u64| {
            if kills < KILLS && arrived >= (kills + 1) * ENTRIES as u64 / (KILLS + 1) {
                kills += 1;
                server.kill_and_start().await?;
            }
            Ok(())
        };
        let rate = drained(&self.store, &self.server, &name, adapter, ENTRIES, strike).await?;
        ensure!(kills == KILLS, "killed only {kills} times");
        let stored = read_ids(server.client().await?).await?;
        let mut wanted: BTreeMap<&str, usize> =
            self.ids.iter().enumerate().map(|(place, id)| (id.as_str(), place)).collect();
        let (mut twice, mut out_of_order, mut newest) = (0, 0, None);
        for id in &stored {
            match wanted.remove(id.as_str()) {
                Some(place) => {
                    out_of_order += usize::from(newest > Some(place));
                    newest = newest.max(Some(place));
                }
                None => twice += 1,
            }
        }
        let lost = wanted.len();
        Ok(Line {
            what: format!("{ENTRIES} events over {KILLS} kill -9 of the server"),
            figure: format!("{rate:.0}/s, with the server's starts"),
            baseline: format!("lost {lost}, stored twice {twice}, out of order {out_of_order}"),
            measured: Measured::at_most((lost + twice + out_of_order) as f64, 0.0, " wrong"),
            reason: "",
        })
    }
}

/// Returns the ids in the stream, in its order.
async fn read_ids(client: Client) -> anyhow::Result<Vec<String>> {
    let mut stream = jetstream::new(client).get_stream(STREAM).await?;
    let count = usize::try_from(stream.info().await?.state.messages)?;
    let config = OrderedConfig { deliver_policy: DeliverPolicy::All, ..OrderedConfig::default() };
    let mut messages = stream.create_consumer(config).await?.messages().await?;
    let mut ids = Vec::with_capacity(count);
    while ids.len() < count {
        let message = tokio::time::timeout(TIMEOUT, messages.next()).await?.context("the stream ended")??;
        let id = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id")).context("an id")?;
        ids.push(id.to_string());
    }
    Ok(ids)
}

/// A nats-server with JetStream: a current one if installed, else Debian's.
struct Server {
    port: u16,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    process: Process,
}

impl Server {
    async fn start(folder: &Path) -> anyhow::Result<Self> {
        let program = match current() {
            Some(program) => program,
            None => find("nats-server", "nats-server")?,
        };
        let port = free_port()?;
        let (config, log) = (folder.join("nats.conf"), folder.join("nats.log"));
        let store = folder.join("jetstream");
        std::fs::write(&config, format!("listen: 127.0.0.1:{port}\njetstream {{ store_dir: {store:?} }}\n"))?;
        let process = launch(&program, &config, &log, port).await?;
        Ok(Self { port, program, config, log, process })
    }

    async fn kill_and_start(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process = launch(&self.program, &self.config, &self.log, self.port).await?;
        Ok(())
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    async fn client(&self) -> anyhow::Result<Client> {
        Ok(async_nats::connect(self.url()).await?)
    }

    fn version(&self) -> anyhow::Result<String> {
        let output = std::process::Command::new(&self.program).arg("--version").output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().replace(": v", " "))
    }
}

/// The folder in which `scripts/install-peers.sh` installs it.
fn current() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let entries = std::fs::read_dir(cache.join("dtorrent-peers")).ok()?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nats-server-"))).max()
}

async fn launch(program: &Path, config: &Path, log: &Path, port: u16) -> anyhow::Result<Process> {
    let mut process = Process::start(program, &["-c", &config.to_string_lossy()], log)?;
    process.wait_until_ready(async || TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await?;
    Ok(process)
}
