//! The composition root: a checked config in, a running bridge out.
//!
//! The only place that knows both the engine and the adapters. It starts from the right (store,
//! sinks) to the left (servers), and stops from the left to the right, so that nothing is told
//! that nobody is there to take.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::board::{Board, Content, HookReport, PollReport};
use crate::clients::exec::{self, ExecClient};
use crate::clients::rtorrent::RtorrentClient;
use crate::clients::rtorrent::settings as rtorrent;
use crate::commands::expect::Expectations;
use crate::commands::{
    BODY_BYTES_MAX, BridgeWorker, Door, Intake, Job, Queue, Request, Sources, SourcesSettings, Worker, WorkerParts,
};
use crate::config::{self, Broker, BrokerKind, Client, Config, Mqtt, MqttVersion, Nats, Rtorrent, Server};
use crate::deliver::retention::Retain;
use crate::deliver::{Dispatcher, DispatcherParts, DispatcherSettings, Reporter, note_start};
use crate::http;
use crate::model::{
    BellAddress, BellSecret, CommandId, EVENT_SCHEMA, Hook, HookKey, Kind, RESULT_SCHEMA, Ring, Seq, ServerName,
    ServerStats, SinkName, Timestamp, Verb,
};
use crate::port::{
    Clock, CommandSource, DeliverError, HookWish, Hooks, LoggedCommand, Scope, Sink, Store, StoreError, SystemClock,
    TorrentClient,
};
use crate::repeat::until_there_is_room;
use crate::sinks::mqtt::{self, MqttSink};
use crate::sinks::nats::{self, NatsSink};
use crate::store::{Options, Recovery, SqliteStore};
use crate::supervise::{Group, for_ever};
use crate::telemetry::metrics::{self, Metrics};
use crate::watch::{FilesWanted, HookKeeper, Watcher};

/// How exactly it is known, after a crash, since when nobody took commands.
const NOTE_ALIVE_EACH: Duration = Duration::from_secs(10);
/// What stops in how much time, so that all of it is over within ten seconds.
const STOP_LEFT_WITHIN: Duration = Duration::from_millis(2500);
const STOP_RIGHT_WITHIN: Duration = Duration::from_millis(6500);

/// Runs the bridge until `stop`, then flushes and says goodbye.
///
/// # Errors
/// What makes it impossible to start, or a store that cannot be used any more. An unreachable
/// client or broker is neither: the bridge stays up and tries on.
pub async fn run(config: Config, metrics: Metrics, stop: CancellationToken) -> anyhow::Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let listener = match config.http.listen {
        Some(listen) => Some(http::bind(listen).await.with_context(|| format!("listen on {listen}"))?),
        None => None,
    };
    let bell = hang_bell(&config).await?;
    let (sqlite, recovery) = open_store(&config, Arc::clone(&clock))?;
    let sqlite = Arc::new(sqlite);
    let bridge = Bridge::build(&config, Arc::clone(&sqlite), &recovery, clock).await?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        instance = config.instance,
        servers = config.servers.len(),
        brokers = config.brokers.len(),
        "dtorrent is up"
    );
    let mut right = Group::new();
    bridge.spawn_sinks(&mut right);
    let mut left = Group::new();
    bridge.spawn_servers(&mut left);
    bridge.spawn_intakes(&mut left);
    let bell = bell.map(|Bell { listener, secret, hooks }| {
        bridge.spawn_hooks(&mut left, hooks);
        let board = Arc::clone(&bridge.board);
        http::answer_bell(listener, secret, move |ring| rung(&board, &ring), stop.clone())
    });
    let alive = Arc::clone(&sqlite);
    for_ever("alive", async move {
        loop {
            alive.note_alive();
            tokio::time::sleep(NOTE_ALIVE_EACH).await;
        }
    });
    let kept_up = metrics.clone();
    for_ever("metrics", async move { kept_up.upkeep().await });
    let page = listener.map(|listener| {
        let shown: Arc<dyn http::Observed> =
            Arc::new(Shown { board: Arc::clone(&bridge.board), store: Arc::clone(&sqlite), metrics });
        http::serve(listener, shown, stop.clone())
    });
    let page = served_until(page, &stop);
    let bell = served_until(bell, &stop);
    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        result = page => result.context("serve HTTP"),
        result = bell => result.context("answer hooks"),
        error = left.failed() => Err(anyhow::Error::new(error).context("keep the state")),
        error = right.failed() => Err(anyhow::Error::new(error).context("keep the state")),
    };
    info!("stopping");
    let left = left.stop(STOP_LEFT_WITHIN).await;
    let right = right.stop(STOP_RIGHT_WITHIN).await;
    // Without room only the tidying fails: what was written down stays, the rest is found again at the next look.
    let closed = sqlite.close().await.or_else(|error| match error {
        StoreError::Full { reason } => {
            warn!(reason, "the state is left as it is: there is no room to put it in order");
            Ok(())
        }
        other => Err(other),
    });
    ended?;
    left.and(right).and(closed).context("keep the state")
}

/// Waits for what is served; for `stop` if nothing is.
async fn served_until(
    serving: Option<impl Future<Output = std::io::Result<()>>>,
    stop: &CancellationToken,
) -> std::io::Result<()> {
    match serving {
        Some(serving) => serving.await,
        None => {
            stop.cancelled().await;
            Ok(())
        }
    }
}

/// Where clients ring, and what each of them is to be told.
struct Bell {
    listener: TcpListener,
    secret: BellSecret,
    hooks: BTreeMap<ServerName, Hook>,
}

/// `None` if no client is to ring.
async fn hang_bell(config: &Config) -> anyhow::Result<Option<Bell>> {
    let rtorrents = || config.servers.iter().filter_map(|(name, server)| Some((name, server.rtorrent()?)));
    let hooked = || rtorrents().filter(|(_, server)| server.hooks.is_wanted);
    if hooked().next().is_none() {
        return Ok(None);
    }
    let listen = config.http.hooks_listen;
    let listener = http::bind(listen).await.with_context(|| format!("listen for hooks on {listen}"))?;
    let here = listener.local_addr().context("listen for hooks")?;
    let secret = BellSecret::new(rand::random());
    let hook = |(name, server): (&ServerName, &Rtorrent)| {
        let address = match &server.hooks.address {
            Some(address) => address.clone(),
            None => BellAddress::parse(&here.to_string())?,
        };
        let key = HookKey::new(&config.instance, name)?;
        anyhow::Ok((name.clone(), Hook { key, address, secret: secret.clone(), server: name.clone() }))
    };
    let hooks = hooked().map(hook).collect::<anyhow::Result<_>>().context("set up hooks")?;
    Ok(Some(Bell { listener, secret, hooks }))
}

/// Passes on what somebody rang; nothing else is believed of it.
fn rung(board: &Board, ring: &Ring) {
    if let Some(server) = board.server(&ring.server) {
        server.bell.ring(ring.hash);
    }
}

fn open_store(config: &Config, clock: Arc<dyn Clock>) -> anyhow::Result<(SqliteStore, Recovery)> {
    let (store, recovery) = SqliteStore::open(&config.data_dir, Options::default(), clock)
        .with_context(|| format!("open the state in {}", config.data_dir.display()))?;
    if let Some(found) = &recovery.found {
        let moved_to = recovery.moved_to.as_ref().map(|path| path.display().to_string());
        warn!(found, moved_to, "the state could not be used as it was");
    }
    if recovery.lost && recovery.is_new {
        warn!("what was told before is lost: all torrents are announced again, in a new epoch");
    }
    Ok((store, recovery))
}

/// Everything that runs, built and not yet running.
struct Bridge {
    board: Arc<Board>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    servers: BTreeMap<ServerName, ServerParts>,
    sinks: BTreeMap<SinkName, SinkParts>,
    reporter: Arc<dyn Reporter>,
    worker: BridgeWorker,
    ended_in_order: bool,
    is_first_life: bool,
    last_alive: Option<Timestamp>,
}

struct ServerParts {
    interval: Duration,
    sweep: Duration,
    worker: Arc<WorkerParts>,
    queue: Arc<Queue>,
    files: Arc<FilesWanted>,
    is_history_lost: bool,
}

/// A broker of either kind.
#[derive(Clone)]
enum Reached {
    Mqtt(Arc<MqttSink>),
    Nats(Arc<NatsSink>),
}

impl Reached {
    /// `before`: the newest journal entry of each server when this run began.
    fn new(
        name: &SinkName,
        instance: &str,
        broker: &Broker,
        before: BTreeMap<ServerName, Seq>,
    ) -> anyhow::Result<Self> {
        Ok(match &broker.kind {
            BrokerKind::Mqtt(mqtt) => {
                Self::Mqtt(Arc::new(MqttSink::new(mqtt_settings(name, instance, broker, mqtt)?)?))
            }
            BrokerKind::Nats(nats) => {
                Self::Nats(Arc::new(NatsSink::new(nats_settings(name, instance, broker, nats)?, before)?))
            }
        })
    }

    fn sink(&self) -> Arc<dyn Sink> {
        match self {
            Self::Mqtt(sink) => sink.clone(),
            Self::Nats(sink) => sink.clone(),
        }
    }

    /// `None`: nothing is to be taken from there.
    fn commands(&self, broker: &Broker, clock: &Arc<dyn Clock>) -> Option<Box<dyn CommandSource>> {
        match self {
            Self::Mqtt(_) if broker.commands.is_empty() => None,
            Self::Mqtt(sink) => Some(Box::new(sink.commands())),
            // Also one that is read-only shows that it is there.
            Self::Nats(sink) => Some(Box::new(sink.commands(&**clock))),
        }
    }

    async fn probe(&self) -> Result<(), DeliverError> {
        match self {
            Self::Mqtt(sink) => sink.probe().await,
            Self::Nats(sink) => sink.probe().await,
        }
    }

    async fn purge(&self, names: Vec<String>) -> Result<usize, DeliverError> {
        match self {
            Self::Mqtt(sink) => sink.purge(names).await,
            Self::Nats(sink) => sink.purge(names).await,
        }
    }
}

struct SinkParts {
    sink: Reached,
    broker: Broker,
    /// The store had not heard of it before.
    is_new: bool,
}

impl Bridge {
    async fn build(
        config: &Config,
        sqlite: Arc<SqliteStore>,
        recovery: &Recovery,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        let sinks = config.brokers.iter().map(|(name, broker)| (name.clone(), broker.servers.clone())).collect();
        sqlite.declare_sinks(&sinks).await.context("note the sinks")?;
        let store: Arc<dyn Store> = sqlite;
        let mut contents = BTreeMap::new();
        for name in config.servers.keys() {
            let content = load(&*store, name).await.with_context(|| format!("load the state of {name}"))?;
            contents.insert(name.clone(), content);
        }
        let board = Arc::new(Board::new(contents, sinks.keys().cloned()));
        let mut new_sinks = BTreeSet::new();
        for (sink, servers) in &sinks {
            let note = || note_start(&*store, &board, sink, servers);
            let is_new = until_there_is_room("a start", note).await;
            if is_new.with_context(|| format!("note where {sink} begins"))? {
                new_sinks.insert(sink.clone());
            }
        }
        let mut open = open_jobs(&*store).await.context("read the command log")?;
        let mut servers = BTreeMap::new();
        for (name, server) in &config.servers {
            let (of_server, rest) = open.into_iter().partition(|job| job.command.server.as_ref() == Some(name));
            open = rest;
            let parts = build_server(name, server, of_server, &store, &board, &clock, recovery.lost)
                .with_context(|| format!("set up server {name}"))?;
            servers.insert(name.clone(), parts);
        }
        let mut sinks = BTreeMap::new();
        for (name, broker) in &config.brokers {
            let last_seq = |server: &ServerName| board.read(server, |content| content.last_seq).unwrap_or_default();
            let before = broker.servers.iter().map(|server| (server.clone(), last_seq(server))).collect();
            let sink = Reached::new(name, &config.instance, broker, before);
            let sink = sink.with_context(|| format!("set up broker {name}"))?;
            let is_new = new_sinks.contains(name);
            sinks.insert(name.clone(), SinkParts { sink, broker: broker.clone(), is_new });
        }
        let (ended_in_order, last_alive) = (recovery.was_clean, recovery.last_alive);
        let worker = BridgeWorker {
            queue: Arc::new(Queue::new(open.into_iter().filter(|job| job.command.server.is_none()))),
            store: Arc::clone(&store),
            board: Arc::clone(&board),
            clock: Arc::clone(&clock),
            set_log_level: Arc::new(crate::telemetry::set_level),
        };
        let reporter = Arc::new(Reports {
            board: Arc::clone(&board),
            sinks: sinks.iter().map(|(name, parts)| (name.clone(), parts.sink.sink())).collect(),
            clock: Arc::clone(&clock),
            instance: config.instance.clone(),
            start: Instant::now(),
        });
        let is_first_life = recovery.is_new && !recovery.lost;
        Ok(Self { board, store, clock, servers, sinks, reporter, worker, ended_in_order, is_first_life, last_alive })
    }

    fn spawn_sinks(&self, group: &mut Group) {
        let (ended_in_order, is_first_life) = (self.ended_in_order, self.is_first_life);
        for (name, SinkParts { sink, broker, is_new }) in &self.sinks {
            let is_new = *is_new;
            let Some(desk) = self.board.desk(name).cloned() else { continue };
            let (sink, broker, name) = (sink.sink(), broker.clone(), name.clone());
            let (store, board) = (Arc::clone(&self.store), Arc::clone(&self.board));
            let (clock, reporter) = (Arc::clone(&self.clock), Arc::clone(&self.reporter));
            group.spawn(format!("sink {name}"), move |stop| {
                let settings = DispatcherSettings {
                    name: name.clone(),
                    servers: broker.servers.clone(),
                    events: Kind::ALL.iter().copied().filter(|kind| broker.events.allows(*kind)).collect(),
                    retain: retain(&broker),
                    ended_in_order,
                    is_new,
                    is_first_life,
                };
                let parts = DispatcherParts {
                    settings,
                    sink: sink.clone(),
                    store: Arc::clone(&store),
                    board: Arc::clone(&board),
                    desk: Arc::clone(&desk),
                    clock: Arc::clone(&clock),
                    reporter: Arc::clone(&reporter),
                };
                async move { Dispatcher::new(parts).await?.run(stop).await }
            });
        }
    }

    fn spawn_servers(&self, group: &mut Group) {
        for (name, parts) in &self.servers {
            let ServerParts { interval, sweep, worker, queue, files, is_history_lost } = parts;
            let watcher = Watcher {
                server: name.clone(),
                interval: *interval,
                sweep: *sweep,
                client: Arc::clone(&worker.client),
                store: Arc::clone(&self.store),
                board: Arc::clone(&self.board),
                clock: Arc::clone(&self.clock),
                expectations: Arc::clone(&worker.expectations),
                files: Arc::clone(files),
                is_history_lost: *is_history_lost,
            };
            group.spawn(format!("watcher {name}"), move |stop| watcher.clone().run(stop));
            let (worker, queue) = (Arc::clone(worker), Arc::clone(queue));
            let client = Arc::clone(&worker.client);
            group.spawn(format!("worker {name}"), move |stop| {
                Worker { parts: Arc::clone(&worker), queue: Arc::clone(&queue) }.run(stop)
            });
            let (files, board, server) = (Arc::clone(files), Arc::clone(&self.board), name.clone());
            group.spawn(format!("files {name}"), move |stop| {
                let (files, client) = (Arc::clone(&files), Arc::clone(&client));
                let (board, server) = (Arc::clone(&board), server.clone());
                async move {
                    files.run(server, client, board, stop).await;
                    Ok(())
                }
            });
        }
    }

    fn spawn_hooks(&self, group: &mut Group, hooks: BTreeMap<ServerName, Hook>) {
        for (name, hook) in hooks {
            let Some(parts) = self.servers.get(&name) else { continue };
            let client = Arc::clone(&parts.worker.client);
            let keeper = HookKeeper { server: name.clone(), client, board: Arc::clone(&self.board), hook };
            group.spawn(format!("hooks {name}"), move |stop| {
                let keeper = keeper.clone();
                async move {
                    keeper.run(stop).await;
                    Ok(())
                }
            });
        }
    }

    fn spawn_intakes(&self, group: &mut Group) {
        let worker = self.worker.clone();
        group.spawn("worker of the bridge".to_owned(), move |stop| worker.clone().run(stop));
        let away_since = self.last_alive;
        for (name, SinkParts { sink, broker, .. }) in &self.sinks {
            if sink.commands(broker, &self.clock).is_none() {
                continue;
            }
            let queues: BTreeMap<ServerName, Arc<Queue>> = broker
                .servers
                .iter()
                .filter_map(|server| Some((server.clone(), Arc::clone(&self.servers.get(server)?.queue))))
                .collect();
            let (sink, broker, name) = (sink.clone(), broker.clone(), name.clone());
            let (store, board, clock) = (Arc::clone(&self.store), Arc::clone(&self.board), Arc::clone(&self.clock));
            let bridge = Arc::clone(&self.worker.queue);
            group.spawn(format!("commands {name}"), move |stop| {
                let rights = broker.commands.clone();
                let door = Door {
                    origin: name.clone(),
                    allows: Box::new(move |verb| rights.allows(verb)),
                    reply_prefixes: broker.reply_prefixes.clone(),
                    queues: queues.clone(),
                    bridge: Arc::clone(&bridge),
                    store: Arc::clone(&store),
                    board: Arc::clone(&board),
                    clock: Arc::clone(&clock),
                };
                let source = sink.commands(&broker, &clock).expect("looked at above");
                Intake { source, door, away_since }.run(stop)
            });
        }
    }
}

async fn load(store: &dyn Store, server: &ServerName) -> Result<Content, StoreError> {
    let loaded = store.load(server).await?;
    Ok(Content {
        epoch: loaded.epoch,
        told: loaded.told,
        state: loaded.state,
        last_seq: loaded.last_seq,
        stats: ServerStats::default(),
        stats_body: Bytes::new(),
        poll: PollReport::default(),
    })
}

/// The commands that a former life of the bridge did not answer. Only what could be read was written down.
async fn open_jobs(store: &dyn Store) -> Result<Vec<Job>, StoreError> {
    let open = store.open_commands().await?;
    let job = |command: LoggedCommand| {
        let request = Request::parse(command.verb?, command.hash, &command.body).ok()?;
        Some(Job { command, request, user: None })
    };
    Ok(open.into_iter().filter_map(job).collect())
}

fn build_server(
    name: &ServerName,
    server: &Server,
    open: Vec<Job>,
    store: &Arc<dyn Store>,
    board: &Arc<Board>,
    clock: &Arc<dyn Clock>,
    is_history_lost: bool,
) -> anyhow::Result<ServerParts> {
    let worker = WorkerParts {
        server: name.clone(),
        client: build_client(name, server)?,
        store: Arc::clone(store),
        board: Arc::clone(board),
        clock: Arc::clone(clock),
        expectations: Arc::new(Expectations::default()),
        sources: Sources::new(SourcesSettings { roots: server.roots.clone() }).context("set up HTTP")?,
    };
    Ok(ServerParts {
        interval: server.interval,
        sweep: server.sweep,
        worker: Arc::new(worker),
        queue: Arc::new(Queue::new(open)),
        files: Arc::new(FilesWanted::default()),
        is_history_lost,
    })
}

/// The adapter for one server of the config.
fn build_client(name: &ServerName, server: &Server) -> anyhow::Result<Arc<dyn TorrentClient>> {
    let (server_name, timeout) = (name.clone(), server.timeout);
    Ok(match &server.client {
        Client::Rtorrent(rtorrent) => {
            Arc::new(RtorrentClient::new(rtorrent_settings(server_name, rtorrent, timeout)?)?)
        }
        Client::Exec { command } => {
            Arc::new(ExecClient::new(exec::Settings { server: server_name, command: command.clone(), timeout }))
        }
    })
}

fn rtorrent_settings(server: ServerName, of: &Rtorrent, timeout: Duration) -> anyhow::Result<rtorrent::Settings> {
    let Rtorrent { url, username, password, ca_pem, hooks: _, extra, rpc } = of;
    let column = |(key, column): (&String, &String)| Ok((key.clone(), rtorrent::ExtraColumn::parse(column)?));
    Ok(rtorrent::Settings {
        server,
        endpoint: rtorrent::Endpoint::parse(url)?,
        username: username.clone(),
        password: password.clone(),
        ca_pem: ca_pem.clone(),
        timeout,
        extra: extra.iter().map(column).collect::<anyhow::Result<_>>()?,
        rpc: rpc.iter().map(|method| Ok(rtorrent::AllowedMethod::parse(method)?)).collect::<anyhow::Result<_>>()?,
    })
}

/// The settings of one broker of the config.
fn mqtt_settings(name: &SinkName, instance: &str, broker: &Broker, mqtt: &Mqtt) -> anyhow::Result<mqtt::Settings> {
    let Mqtt { version, retain, home_assistant } = mqtt;
    Ok(mqtt::Settings {
        name: name.clone(),
        instance: instance.to_owned(),
        url: mqtt::BrokerUrl::parse(&broker.url)?,
        username: broker.username.clone(),
        password: broker.password.clone(),
        ca_pem: broker.ca_pem.clone(),
        client_cert: broker
            .client_auth
            .as_ref()
            .map(|auth| mqtt::ClientCert { cert_pem: auth.cert_pem.clone(), key_pem: auth.key_pem.clone() }),
        version: match version {
            MqttVersion::Auto => mqtt::Version::Auto,
            MqttVersion::V5 => mqtt::Version::V5,
            MqttVersion::V311 => mqtt::Version::V311,
        },
        prefix: mqtt::Prefix::parse(&broker.prefix)?,
        servers: broker.servers.clone(),
        retain: *retain != config::Retain::None,
        home_assistant: home_assistant.as_ref().map(|wanted| home_assistant_settings(wanted, broker)),
    })
}

fn home_assistant_settings(wanted: &config::HomeAssistant, broker: &Broker) -> mqtt::HomeAssistant {
    let config::HomeAssistant { discovery_prefix, slots, torrents, torrents_max, alternative, normal } = wanted;
    let limits = |(download, upload)| mqtt::Limits { download, upload };
    mqtt::HomeAssistant {
        discovery_prefix: discovery_prefix.clone(),
        slots: *slots,
        torrents: torrents.clone(),
        torrents_max: *torrents_max,
        alternative: alternative.map(limits),
        normal: limits(*normal),
        // Only what this version carries out becomes a button.
        verbs: broker.commands.iter().filter(|verb| Verb::parse(verb).is_some()).map(str::to_owned).collect(),
    }
}

fn nats_settings(name: &SinkName, instance: &str, broker: &Broker, nats: &Nats) -> anyhow::Result<nats::Settings> {
    let Nats { urls, login, jetstream, replicas } = nats;
    Ok(nats::Settings {
        name: name.clone(),
        instance: instance.to_owned(),
        urls: urls.iter().map(|url| Ok(nats::ServerUrl::parse(url)?)).collect::<anyhow::Result<_>>()?,
        login: login.clone(),
        ca_pem: broker.ca_pem.clone(),
        client_cert: broker
            .client_auth
            .as_ref()
            .map(|auth| nats::ClientCert { cert_pem: auth.cert_pem.clone(), key_pem: auth.key_pem.clone() }),
        prefix: nats::Prefix::parse(&broker.prefix)?,
        servers: broker.servers.clone(),
        jetstream: *jetstream,
        replicas: *replicas,
        takes_commands: !broker.commands.is_empty(),
    })
}

/// Which states a sink keeps. A bucket has room for any number of torrents.
fn retain(broker: &Broker) -> Retain {
    match &broker.kind {
        BrokerKind::Nats(_) => Retain::All,
        BrokerKind::Mqtt(mqtt) => match mqtt.retain {
            config::Retain::Auto => Retain::Auto,
            config::Retain::All => Retain::All,
            config::Retain::None => Retain::None,
        },
    }
}

/// Reaches every server and broker once. Returns, by name, what answered or why nobody did.
pub async fn reach(config: &Config) -> Vec<(String, anyhow::Result<String>)> {
    let mut found = Vec::new();
    for (name, server) in &config.servers {
        found.push((format!("server {name}"), reach_server(name, &config.instance, server).await));
    }
    for (name, broker) in &config.brokers {
        found.push((format!("broker {name}"), reach_broker(name, &config.instance, broker).await));
    }
    found
}

/// Clears all that each broker keeps in the name of this instance; says how many names that were, or why
/// it could not be done.
///
/// # Errors
/// The state cannot be opened: another process uses it, for one.
pub async fn purge(config: &Config) -> anyhow::Result<Vec<(SinkName, anyhow::Result<usize>)>> {
    let (store, _) = open_store(config, Arc::new(SystemClock))?;
    let mut purged = Vec::new();
    for (name, broker) in &config.brokers {
        purged.push((name.clone(), purge_broker(name, &config.instance, broker, &store).await));
    }
    store.close().await.context("keep the state")?;
    Ok(purged)
}

async fn purge_broker(name: &SinkName, instance: &str, broker: &Broker, store: &SqliteStore) -> anyhow::Result<usize> {
    let names = store.registry(name).await.context("read what is kept")?;
    let count = Reached::new(name, instance, broker, BTreeMap::new())?.purge(names.clone()).await?;
    store.unregister(name, names).await.context("note what is cleared")?;
    store.memorize(name, "{}".to_owned()).await.context("note what is cleared")?;
    Ok(count)
}

async fn reach_server(name: &ServerName, instance: &str, server: &Server) -> anyhow::Result<String> {
    let client = build_client(name, server)?;
    let listing = client.list(Scope::Full).await?;
    let kind = listing.stats.client.unwrap_or_else(|| "a client".to_owned());
    let found = format!("{kind} with {} torrents", listing.torrents.len());
    if !server.rtorrent().is_some_and(|server| server.hooks.is_wanted) {
        return Ok(found);
    }
    let key = HookKey::new(instance, name)?;
    Ok(match client.hooks(HookWish::Look(&key)).await {
        Ok(hooks) => format!("{found}; {}", describe_hooks(&hooks)),
        Err(error) => format!("{found}; hooks cannot be set: {error}"),
    })
}

fn describe_hooks(hooks: &Hooks) -> String {
    let Hooks { ringing, left_alone, changed: _ } = hooks;
    let set = match ringing.as_slice() {
        [] => "no hook is set now".to_owned(),
        events => format!("hooks are set for {}", events.join(" ")),
    };
    if left_alone.is_empty() {
        return set;
    }
    format!("{set}; never for {}, where others hang hooks that may run programs", left_alone.join(" "))
}

async fn reach_broker(name: &SinkName, instance: &str, broker: &Broker) -> anyhow::Result<String> {
    Reached::new(name, instance, broker, BTreeMap::new())?.probe().await?;
    Ok("lets us in".to_owned())
}

/// The bodies of the bridge's own messages.
struct Reports {
    board: Arc<Board>,
    sinks: BTreeMap<SinkName, Arc<dyn Sink>>,
    clock: Arc<dyn Clock>,
    instance: String,
    start: Instant,
}

impl Reporter for Reports {
    fn info(&self) -> Bytes {
        let servers: Vec<&ServerName> = self.board.names().collect();
        let sinks: Vec<&SinkName> = self.board.desks().map(|(name, _)| name).collect();
        let body = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "instance": self.instance,
            "servers": servers,
            "sinks": sinks,
            "schemas": [EVENT_SCHEMA, RESULT_SCHEMA],
            "limits": {"command_bytes": BODY_BYTES_MAX},
        });
        Bytes::from(body.to_string())
    }

    fn health(&self) -> Bytes {
        let servers: BTreeMap<&ServerName, Value> =
            self.board.names().map(|name| (name, server_health(&self.board, name))).collect();
        let sinks: BTreeMap<&SinkName, Value> = self
            .board
            .desks()
            .map(|(name, desk)| {
                let report = desk.last_report();
                let lag_seconds = report.behind_since.map_or(0.0, |since| since.elapsed().as_secs_f64());
                let body = json!({
                    "connected": report.is_connected,
                    "problem": report.failure,
                    "lag_entries": report.lag_entries,
                    "lag_seconds": rounded(lag_seconds),
                    "dirty": report.dirty,
                    "delivered": report.delivered,
                    "rejected": report.rejected,
                    "notes": self.sinks.get(name).map(|sink| sink.notes()).unwrap_or_default(),
                });
                (name, body)
            })
            .collect();
        let body = json!({
            "time": self.clock.now(),
            "uptime_seconds": self.start.elapsed().as_secs(),
            "memory_bytes": metrics::resident_bytes(),
            "servers": servers,
            "sinks": sinks,
        });
        Bytes::from(body.to_string())
    }
}

fn server_health(board: &Board, name: &ServerName) -> Value {
    let read = board.read(name, |content| {
        let poll = &content.poll;
        json!({
            "online": content.state.is_online,
            "problem": poll.failure,
            "poll_age_seconds": poll.last_success.map(|at| rounded(at.elapsed().as_secs_f64())),
            "poll_seconds": rounded(poll.duration.as_secs_f64()),
            "polls": poll.polls,
            "polls_failed": poll.failures,
            "polls_full": poll.full,
            "interval_seconds": rounded(poll.interval.as_secs_f64()),
            "sweep_seconds": rounded(poll.sweep.as_secs_f64()),
            "torrents": content.told.len(),
        })
    });
    let mut health = read.unwrap_or(Value::Null);
    if let (Some(server), Some(health)) = (board.server(name), health.as_object_mut()) {
        let check = |(id, (read, total)): (&CommandId, &(u64, u64))| json!({"command_id": id, "read_bytes": read, "total_bytes": total});
        health.insert("checking".to_owned(), server.checks().iter().map(check).collect());
    }
    let report = board.server(name).map(|server| server.bell.last_report()).unwrap_or_default();
    if let (Some(health), Some(hooks)) = (health.as_object_mut(), hooks_health(&report)) {
        health.insert("hooks".to_owned(), hooks);
    }
    health
}

/// `None` where no hooks are wanted, or it is too early to say.
fn hooks_health(report: &HookReport) -> Option<Value> {
    let HookReport { hooks, problem, pokes } = report;
    if hooks.is_none() && problem.is_none() {
        return None;
    }
    let Hooks { ringing, left_alone, changed: _ } = hooks.clone().unwrap_or_default();
    Some(json!({"events": ringing, "left_alone": left_alone, "problem": problem, "pokes": pokes}))
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// What the HTTP pages ask for.
struct Shown {
    board: Arc<Board>,
    store: Arc<SqliteStore>,
    metrics: Metrics,
}

#[async_trait]
impl http::Observed for Shown {
    fn readiness(&self) -> (bool, Value) {
        let mut is_ready = true;
        let mut servers = BTreeMap::new();
        for name in self.board.names() {
            let problem = self.board.read(name, |content| match &content.poll {
                poll if poll.is_answering() => None,
                poll => Some(poll.failure.clone().unwrap_or_else(|| "not polled yet".to_owned())),
            });
            let problem = problem.flatten();
            is_ready &= problem.is_none();
            servers.insert(name.as_str(), json!({"ready": problem.is_none(), "problem": problem}));
        }
        let mut sinks = BTreeMap::new();
        for (name, desk) in self.board.desks() {
            let report = desk.last_report();
            is_ready &= report.is_connected;
            let problem =
                (!report.is_connected).then(|| report.failure.unwrap_or_else(|| "not connected yet".to_owned()));
            sinks.insert(name.as_str(), json!({"ready": report.is_connected, "problem": problem}));
        }
        (is_ready, json!({"ready": is_ready, "servers": servers, "sinks": sinks}))
    }

    async fn metrics(&self) -> String {
        for (name, desk) in self.board.desks() {
            metrics::note_sink(name, &desk.last_report());
        }
        for name in self.board.names() {
            self.board.read(name, |content| metrics::note_poll(name, &content.poll));
            if let Some(server) = self.board.server(name) {
                metrics::note_hooks(name, &server.bell.last_report());
            }
        }
        if let Ok(usage) = self.store.usage().await {
            metrics::note_usage(usage);
        }
        self.metrics.render()
    }
}
