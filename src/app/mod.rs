//! The composition root: a checked config in, a running bridge out.
//!
//! The only place that knows both the engine and the adapters. It starts from the right (store,
//! sinks) to the left (servers), and stops from the left to the right, so that nothing is told
//! that nobody is there to take.

mod adapters;
mod api;
pub mod dead_letters;
mod report;
mod visit;

pub use adapters::build_client as client;
pub use visit::{purge, reach};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::adapters::{Reached, build_client, build_endpoint, build_line, lines, retain};
use self::api::Api;
use self::dead_letters::Replayer;
use self::report::BridgeReporter;
use crate::commands::{BridgeWorker, Caller, Door, Intake, Queue, give_up};
use crate::config::{Broker, Config, EventFilter, Rights, Rtorrent};
use crate::http;
use crate::live_state::LiveState;
use crate::log_throttle::retry_while_full;
use crate::model::{Hook, HookAddress, HookKey, HookSecret, HookSignal, Kind, ServerName, SinkName, Timestamp, Verb};
use crate::outbox::retention::Retain;
use crate::outbox::{Dispatcher, DispatcherParts, DispatcherSettings, Reporter, note_start};
use crate::port::{Clock, Sink, Store, StoreError, SystemClock};
use crate::servers::{Common, ServerParts, ServerSetup, load, open_jobs};
use crate::sinks::webhook::Endpoint;
use crate::store::{Options, Recovery, SqliteStore};
use crate::supervise::{Group, for_ever};
use crate::telemetry::metrics::Metrics;
use crate::watch::HookKeeper;

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
    let hook_notifier = hang_bell(&config).await?;
    let opening = retry_while_full("the state", async || try_to_open_store(&config, Arc::clone(&clock)));
    let opened = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        opened = opening => opened,
    };
    let (sqlite, recovery) = opened.with_context(|| format!("open the state in {}", config.data_dir.display()))?;
    let sqlite = Arc::new(sqlite);
    let bridge = Bridge::build(&config, Arc::clone(&sqlite), &recovery, clock).await?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        instance = config.instance,
        servers = config.servers.len(),
        brokers = config.brokers.len(),
        webhooks = config.webhooks.len(),
        "dtorrent is up"
    );
    let mut right = Group::new();
    bridge.spawn_sinks(&mut right);
    let mut left = Group::new();
    bridge.spawn_servers(&mut left);
    bridge.spawn_intakes(&mut left);
    let hook_notifier = hook_notifier.map(|HookNotifier { listener, secret, hooks }| {
        bridge.spawn_hooks(&mut left, hooks);
        let live = Arc::clone(&bridge.live);
        http::receive_hook_signals(listener, secret, move |ring| rung(&live, &ring), stop.clone())
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
        let replayer = Replayer {
            data_dir: config.data_dir.clone(),
            store: Arc::clone(&sqlite),
            endpoints: bridge.endpoints.clone(),
            one_at_a_time: AsyncMutex::default(),
        };
        let caller = bridge.spawn_caller(&mut left, &config.http.commands);
        let (live, clock) = (Arc::clone(&bridge.live), Arc::clone(&bridge.clock));
        let api = Api { live, store: Arc::clone(&sqlite), clock, caller, replayer, metrics, stop: stop.clone() };
        let access = http::AccessRules { token: config.http.token.clone(), hosts: config.http.hosts.clone() };
        http::serve(listener, Arc::new(api), access, stop.clone())
    });
    let page = served_until(page, &stop);
    let hook_notifier = served_until(hook_notifier, &stop);
    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        result = page => result.context("serve HTTP"),
        result = hook_notifier => result.context("answer hooks"),
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
struct HookNotifier {
    listener: TcpListener,
    secret: HookSecret,
    hooks: BTreeMap<ServerName, Hook>,
}

/// `None` if no client is to ring.
async fn hang_bell(config: &Config) -> anyhow::Result<Option<HookNotifier>> {
    let rtorrents = || config.servers.iter().filter_map(|(name, server)| Some((name, server.rtorrent()?)));
    let hooked = || rtorrents().filter(|(_, server)| server.hooks.is_wanted);
    if hooked().next().is_none() {
        return Ok(None);
    }
    let listen = config.http.hooks_listen;
    let listener = http::bind(listen).await.with_context(|| format!("listen for hooks on {listen}"))?;
    let here = listener.local_addr().context("listen for hooks")?;
    let secret = HookSecret::new(rand::random());
    let hook = |(name, server): (&ServerName, &Rtorrent)| {
        let address = match &server.hooks.address {
            Some(address) => address.clone(),
            None => HookAddress::parse(&here.to_string())?,
        };
        let key = HookKey::new(&config.instance, name)?;
        anyhow::Ok((name.clone(), Hook { key, address, secret: secret.clone(), server: name.clone() }))
    };
    let hooks = hooked().map(hook).collect::<anyhow::Result<_>>().context("set up hooks")?;
    Ok(Some(HookNotifier { listener, secret, hooks }))
}

/// Passes on what somebody rang; nothing else is believed of it.
fn rung(live: &LiveState, ring: &HookSignal) {
    if let Some(server) = live.server(&ring.server) {
        server.hook_notifier.notify(ring.hash);
    }
}

fn open_store(config: &Config, clock: Arc<dyn Clock>) -> anyhow::Result<(SqliteStore, Recovery)> {
    try_to_open_store(config, clock).with_context(|| format!("open the state in {}", config.data_dir.display()))
}

fn try_to_open_store(config: &Config, clock: Arc<dyn Clock>) -> Result<(SqliteStore, Recovery), StoreError> {
    let (store, recovery) = SqliteStore::open(&config.data_dir, Options::default(), clock)?;
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
    live: Arc<LiveState>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    servers: BTreeMap<ServerName, ServerParts>,
    sinks: BTreeMap<SinkName, SinkParts>,
    /// Of the webhooks, by their names in the config.
    endpoints: BTreeMap<SinkName, Arc<Endpoint>>,
    reporter: Arc<dyn Reporter>,
    worker: BridgeWorker,
    ended_in_order: bool,
    last_alive: Option<Timestamp>,
}

struct SinkParts {
    sink: Arc<dyn Sink>,
    servers: Vec<ServerName>,
    events: BTreeSet<Kind>,
    retain: Retain,
    /// Where commands may come from, too.
    broker: Option<(Reached, Broker)>,
}

fn kinds(filter: &EventFilter) -> BTreeSet<Kind> {
    Kind::ALL.iter().copied().filter(|kind| filter.allows(*kind)).collect()
}

/// Every sink with the servers that it gets.
fn sinks_of(config: &Config) -> BTreeMap<SinkName, Vec<ServerName>> {
    let brokers = config.brokers.iter().map(|(name, broker)| (name.clone(), broker.servers.clone()));
    let webhooks = config.webhooks.iter().flat_map(|(name, webhook)| lines(name, webhook));
    brokers.chain(webhooks.map(|(line, server)| (line, vec![server.clone()]))).collect()
}

impl Bridge {
    async fn build(
        config: &Config,
        sqlite: Arc<SqliteStore>,
        recovery: &Recovery,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        let sinks = sinks_of(config);
        retry_while_full("the sinks", || sqlite.declare_sinks(&sinks)).await.context("note the sinks")?;
        let store: Arc<dyn Store> = sqlite;
        let mut contents = BTreeMap::new();
        for name in config.servers.keys() {
            let content = load(&*store, name).await.with_context(|| format!("load the state of {name}"))?;
            contents.insert(name.clone(), content);
        }
        let live = Arc::new(LiveState::new(contents, sinks.keys().cloned()));
        let is_first_life = recovery.is_new && !recovery.lost;
        for (sink, servers) in &sinks {
            let note = || note_start(&*store, &live, sink, servers, is_first_life);
            let noted = retry_while_full("a start", note).await;
            noted.with_context(|| format!("note where {sink} begins"))?;
        }
        let mut open = open_jobs(&*store).await.context("read the command log")?;
        let common = Common { store: Arc::clone(&store), live: Arc::clone(&live), clock: Arc::clone(&clock) };
        let mut servers = BTreeMap::new();
        for (name, server) in &config.servers {
            let set_up = || format!("set up server {name}");
            let setup = ServerSetup {
                client: build_client(name, server).with_context(set_up)?,
                interval: server.interval,
                sweep: server.sweep,
                roots: server.roots.clone(),
                tells_files: true,
                is_history_lost: recovery.lost,
            };
            let open = open.remove(&Some(name.clone())).unwrap_or_default();
            servers.insert(name.clone(), ServerParts::new(name.clone(), setup, open, &common).with_context(set_up)?);
        }
        let of_bridge = open.remove(&None).unwrap_or_default();
        for job in open.into_values().flatten() {
            give_up(&*store, &live, &*clock, &job.command).await.context("answer commands of a server that is gone")?;
        }
        let mut sinks = BTreeMap::new();
        for (name, broker) in &config.brokers {
            let last_seq = |server: &ServerName| live.read(server, |content| content.last_seq).unwrap_or_default();
            let before = broker.servers.iter().map(|server| (server.clone(), last_seq(server))).collect();
            let sink = Reached::new(name, &config.instance, broker, before);
            let reached = sink.with_context(|| format!("set up broker {name}"))?;
            let parts = SinkParts {
                sink: reached.sink(),
                servers: broker.servers.clone(),
                events: kinds(&broker.events),
                retain: retain(broker),
                broker: Some((reached, broker.clone())),
            };
            sinks.insert(name.clone(), parts);
        }
        let mut endpoints = BTreeMap::new();
        for (name, webhook) in &config.webhooks {
            let endpoint = build_endpoint(webhook, &clock).with_context(|| format!("set up webhook {name}"))?;
            endpoints.insert(name.clone(), Arc::clone(&endpoint));
            for (line, server) in lines(name, webhook) {
                let parts = SinkParts {
                    sink: build_line(line.clone(), &endpoint),
                    servers: vec![server.clone()],
                    events: kinds(&webhook.events),
                    retain: Retain::None,
                    broker: None,
                };
                sinks.insert(line, parts);
            }
        }
        let (ended_in_order, last_alive) = (recovery.was_clean, recovery.last_alive);
        let worker = BridgeWorker {
            queue: Arc::new(Queue::new(of_bridge)),
            store: Arc::clone(&store),
            live: Arc::clone(&live),
            clock: Arc::clone(&clock),
            set_log_level: Arc::new(crate::telemetry::set_level),
        };
        let reporter = Arc::new(BridgeReporter {
            live: Arc::clone(&live),
            sinks: sinks.iter().map(|(name, parts)| (name.clone(), Arc::clone(&parts.sink))).collect(),
            clock: Arc::clone(&clock),
            instance: config.instance.clone(),
            start: Instant::now(),
        });
        Ok(Self { live, store, clock, servers, sinks, endpoints, reporter, worker, ended_in_order, last_alive })
    }

    fn spawn_sinks(&self, group: &mut Group) {
        let ended_in_order = self.ended_in_order;
        for (name, SinkParts { sink, servers, events, retain, broker: _ }) in &self.sinks {
            let retain = *retain;
            let Some(buffer) = self.live.buffer(name).cloned() else { continue };
            let (sink, servers, events, name) = (Arc::clone(sink), servers.clone(), events.clone(), name.clone());
            let (store, live) = (Arc::clone(&self.store), Arc::clone(&self.live));
            let (clock, reporter) = (Arc::clone(&self.clock), Arc::clone(&self.reporter));
            group.spawn(format!("sink {name}"), move |stop| {
                let settings = DispatcherSettings {
                    name: name.clone(),
                    servers: servers.clone(),
                    events: events.clone(),
                    retain,
                    ended_in_order,
                };
                let parts = DispatcherParts {
                    settings,
                    sink: Arc::clone(&sink),
                    store: Arc::clone(&store),
                    live: Arc::clone(&live),
                    buffer: Arc::clone(&buffer),
                    clock: Arc::clone(&clock),
                    reporter: Arc::clone(&reporter),
                };
                async move { Dispatcher::new(parts).await?.run(stop).await }
            });
        }
    }

    fn spawn_servers(&self, group: &mut Group) {
        self.servers.values().for_each(|parts| parts.spawn(group));
    }

    fn spawn_hooks(&self, group: &mut Group, hooks: BTreeMap<ServerName, Hook>) {
        for (name, hook) in hooks {
            let Some(parts) = self.servers.get(&name) else { continue };
            let client = Arc::clone(&parts.worker.client);
            let keeper = HookKeeper { server: name.clone(), client, live: Arc::clone(&self.live), hook };
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
    fn spawn_caller(&self, group: &mut Group, rights: &Rights) -> Arc<Caller> {
        let (store, live, clock) = (Arc::clone(&self.store), Arc::clone(&self.live), Arc::clone(&self.clock));
        let rights = rights.clone();
        let door = Door {
            origin: SinkName::http(),
            allows: Box::new(move |verb| verb != Verb::Resync.as_str() && rights.allows(verb)),
            reply_prefixes: Vec::new(),
            queues: self.servers.iter().map(|(name, parts)| (name.clone(), Arc::clone(&parts.queue))).collect(),
            bridge: Arc::clone(&self.worker.queue),
            store: Arc::clone(&store),
            live: Arc::clone(&live),
            clock: Arc::clone(&clock),
        };
        let caller = Arc::new(Caller::new(door));
        let called = Arc::clone(&caller);
        group.spawn("commands @http".to_owned(), move |stop| Arc::clone(&called).run(stop));
        caller
    }

    fn spawn_intakes(&self, group: &mut Group) {
        let worker = self.worker.clone();
        group.spawn("worker of the bridge".to_owned(), move |stop| worker.clone().run(stop));
        let away_since = self.last_alive;
        let brokers = self.sinks.iter().filter_map(|(name, parts)| Some((name, parts.broker.as_ref()?)));
        for (name, (sink, broker)) in brokers {
            if sink.commands(broker, &self.clock).is_none() {
                continue;
            }
            let queues: BTreeMap<ServerName, Arc<Queue>> = broker
                .servers
                .iter()
                .filter_map(|server| Some((server.clone(), Arc::clone(&self.servers.get(server)?.queue))))
                .collect();
            let (sink, broker, name) = (sink.clone(), broker.clone(), name.clone());
            let (store, live, clock) = (Arc::clone(&self.store), Arc::clone(&self.live), Arc::clone(&self.clock));
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
                    live: Arc::clone(&live),
                    clock: Arc::clone(&clock),
                };
                let source = sink.commands(&broker, &clock).expect("looked at above");
                Intake { source, door, away_since }.run(stop)
            });
        }
    }
}
