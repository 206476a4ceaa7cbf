//! The composition root: a checked config in, a running bridge out.
//!
//! The only place that knows both the engine and the adapters. It starts from the right (store,
//! sinks) to the left (servers), and stops from the left to the right, so that nothing is told
//! that nobody is there to take.

mod adapters;
mod api;
mod report;
mod visit;

pub use visit::{purge, reach};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::adapters::{Reached, build_client, retain};
use self::api::Api;
use self::report::{Reports, Shown};
use crate::board::{Board, Content, PollReport};
use crate::commands::expect::Expectations;
use crate::commands::{BridgeWorker, Door, Intake, Job, Queue, Request, Sources, SourcesSettings, Worker, WorkerParts};
use crate::config::{Broker, Config, Rights, Rtorrent, Server};
use crate::deliver::{Dispatcher, DispatcherParts, DispatcherSettings, Reporter, note_start};
use crate::http;
use crate::model::{
    BellAddress, BellSecret, Hook, HookKey, Kind, Ring, ServerName, ServerStats, SinkName, Timestamp, Verb,
};
use crate::port::{Clock, LoggedCommand, Store, StoreError, SystemClock};
use crate::repeat::until_there_is_room;
use crate::store::{Options, Recovery, SqliteStore};
use crate::supervise::{Group, for_ever};
use crate::telemetry::metrics::Metrics;
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
        let api = bridge.spawn_api(&mut left, &config.http.commands);
        let observed = Arc::new(Shown { board: Arc::clone(&bridge.board), store: Arc::clone(&sqlite), metrics });
        let guard = http::Guard { token: config.http.token.clone(), hosts: config.http.hosts.clone() };
        http::serve(listener, http::Served { observed, api, guard }, stop.clone())
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

    /// Commands that come over HTTP. Whoever listens to events there has no use for having them sent again.
    fn spawn_api(&self, group: &mut Group, rights: &Rights) -> Arc<Api> {
        let (store, board, clock) = (Arc::clone(&self.store), Arc::clone(&self.board), Arc::clone(&self.clock));
        let api = Arc::new(Api::new(board, store, clock));
        let answering = Arc::clone(&api);
        group.spawn("answers @http".to_owned(), move |stop| Arc::clone(&answering).answer(stop));
        let queues: BTreeMap<ServerName, Arc<Queue>> =
            self.servers.iter().map(|(name, parts)| (name.clone(), Arc::clone(&parts.queue))).collect();
        let (store, board, clock) = (Arc::clone(&self.store), Arc::clone(&self.board), Arc::clone(&self.clock));
        let (rights, bridge, source) = (rights.clone(), Arc::clone(&self.worker.queue), Arc::clone(&api));
        group.spawn("commands @http".to_owned(), move |stop| {
            let rights = rights.clone();
            let door = Door {
                origin: SinkName::http(),
                allows: Box::new(move |verb| verb != Verb::Resync.as_str() && rights.allows(verb)),
                reply_prefixes: Vec::new(),
                queues: queues.clone(),
                bridge: Arc::clone(&bridge),
                store: Arc::clone(&store),
                board: Arc::clone(&board),
                clock: Arc::clone(&clock),
            };
            Intake { source: source.commands(), door, away_since: None }.run(stop)
        });
        api
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
