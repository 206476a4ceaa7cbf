//! The bridge: every component is built first, then spawned as tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use tokio::net::TcpListener;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info_span};

use super::adapters::{build_broker, build_endpoint, build_limited_client, webhook_sinks};
use super::api::Api;
use super::dead_letters::Replayer;
use super::hooks::{self, HookedClient};
use super::report::BridgeReporter;
use crate::commands::{
    Admission, BridgeWorker, Caller, CommandMemory, CommandReceiver, Common, Queue, Sources,
    answer_for_removed_servers, take_up_unfinished,
};
use crate::config::{Broker, BrokerKind, Config};
use crate::http;
use crate::live_state::LiveState;
use crate::log_throttle::retry_while_full;
use crate::model::{Kind, MemoryShares, ServerName, SinkName, Timestamp, TrackerNames, Verb};
use crate::outbox::retention::Retain;
use crate::outbox::{Dispatcher, DispatcherParts, DispatcherSettings, Reporter, init_sink_progress};
use crate::port::{Clock, Sink, Store};
use crate::servers::{ServerParts, load};
use crate::sinks::broker::BrokerSink;
use crate::sinks::webhook::{Endpoint, WebhookSink};
use crate::store::{Recovery, SqliteStore};
use crate::supervise::Group;
use crate::telemetry::metrics::Metrics;
use crate::watch::{FilePublisher, HookInstaller, Watcher};

/// A bridge. Tasks share it and take from it what they need at each start.
pub(super) struct Bridge {
    store: Arc<SqliteStore>,
    common: Common,
    servers: BTreeMap<ServerName, ServerParts>,
    sinks: BTreeMap<SinkName, SinkParts>,
    endpoints: Endpoints,
    shares: MemoryShares,
    reporter: Arc<dyn Reporter>,
    /// Executes commands to the bridge itself.
    worker: BridgeWorker,
    start: Instant,
    was_clean_shutdown: bool,
    /// Time at which the last run ended, within [`super::ALIVE_INTERVAL`]; `None` on a first run.
    last_alive: Option<Timestamp>,
}

struct SinkParts {
    sink: Arc<dyn Sink>,
    servers: Vec<ServerName>,
    events: BTreeSet<Kind>,
    retain: Retain,
    /// Adapter and config of a broker, from which commands may arrive; `None` for a webhook.
    broker: Option<(Arc<dyn BrokerSink>, Broker)>,
}

impl Bridge {
    /// Loads the state and builds an adapter for each server and sink of the config. Nothing is connected yet.
    pub(super) async fn build(
        config: &Config,
        store: Arc<SqliteStore>,
        recovery: &Recovery,
        clock: Arc<dyn Clock>,
    ) -> anyhow::Result<Self> {
        // First of all: the cursors of sinks that left the config would hold the journal.
        let sinks = servers_by_sink(config);
        retry_while_full("the sinks", || store.declare_sinks(&sinks)).await.context("declare the sinks")?;
        let dyn_store: Arc<dyn Store> = store.clone();
        let shares = config.memory_shares();
        let live = load_live_state(config, &*dyn_store, sinks.keys().cloned(), shares).await?;
        let is_first_run = recovery.is_new && !recovery.lost;
        // Before the first event of this run: a new sink begins with the present, and a known one must never count as new.
        for (sink, servers) in &sinks {
            let store_cursor = || init_sink_progress(&*dyn_store, &live, sink, servers, is_first_run);
            retry_while_full("a start", store_cursor)
                .await
                .with_context(|| format!("store the first cursor of {sink}"))?;
        }
        let common = Common { store: dyn_store, live, clock };
        let memory = Arc::new(CommandMemory::new(shares));
        // Before any command is read: the log says at how many crashes each of them ran.
        let counted = retry_while_full("a start", || common.store.end_earlier_run(recovery.was_clean)).await;
        counted.context("write the command log")?;
        let names = TrackerNames::new(store.key());
        let servers = build_servers(config, recovery, &names, &common, &memory).await?;
        let worker = build_worker(config, &common, &memory).await?;
        let (sinks, endpoints) = build_sinks(config, &common)?;
        let start = Instant::now();
        let reporter = Arc::new(BridgeReporter {
            live: Arc::clone(&common.live),
            sinks: sinks.iter().map(|(name, parts)| (name.clone(), Arc::clone(&parts.sink))).collect(),
            clock: Arc::clone(&common.clock),
            instance: config.instance.clone(),
            commands: config
                .brokers
                .iter()
                .map(|(name, broker)| (name.clone(), broker.commands.iter().collect()))
                .collect(),
            memory_max: config.memory_max,
            memory,
            start,
        });
        let (was_clean_shutdown, last_alive) = (recovery.was_clean, recovery.last_alive);
        Ok(Self {
            store,
            common,
            servers,
            sinks,
            endpoints,
            shares,
            reporter,
            worker,
            start,
            was_clean_shutdown,
            last_alive,
        })
    }

    /// Spawns a dispatcher for each sink.
    pub(super) fn spawn_sinks(self: &Arc<Self>, group: &mut Group) {
        for name in self.sinks.keys() {
            let (bridge, sink) = (Arc::clone(self), name.clone());
            group.spawn(format!("sink {name}"), move |stop| {
                // Built at each start: after a panic the dispatcher continues from what the store holds.
                let parts = bridge.dispatcher_parts(&sink);
                let deliver = async move { Dispatcher::new(parts).await?.run(stop).await };
                deliver.instrument(info_span!("deliver", %sink))
            });
        }
    }

    /// Spawns the watcher, the worker and what else each server has.
    pub(super) fn spawn_servers(&self, group: &mut Group) {
        self.servers.values().for_each(|parts| parts.spawn(group));
    }

    /// Spawns the worker of the bridge itself, and a receiver for each broker that accepts commands.
    pub(super) fn spawn_commands(self: &Arc<Self>, group: &mut Group) {
        let worker = self.worker.clone();
        group.spawn("worker of the bridge".to_owned(), move |stop| worker.clone().run(stop));
        for name in self.sinks.keys().filter(|name| self.receiver(name).is_some()) {
            let (bridge, origin) = (Arc::clone(self), name.clone());
            group.spawn(format!("commands {name}"), move |stop| {
                bridge.receiver(&origin).expect("it was there before").run(stop)
            });
        }
    }

    /// Spawns the installer of hooks and the reader of their signals for each hooked client.
    pub(super) fn spawn_hooks(&self, group: &mut Group, hooked: BTreeMap<ServerName, HookedClient>) {
        for (server, HookedClient { hook, file }) in hooked {
            let Some(parts) = self.servers.get(&server) else { continue };
            let (client, live) = (Arc::clone(&parts.worker.client), Arc::clone(&self.common.live));
            if !hooks::create_file(&file, &server, &live) {
                continue;
            }
            let signals = (server.clone(), Arc::clone(&live));
            group.spawn(format!("hook signals {server}"), move |stop| {
                let ((server, live), file) = (signals.clone(), file.clone());
                hooks::receive(file, server, live, stop).map(Ok)
            });
            let installer = HookInstaller { server: server.clone(), client, live, hook };
            group.spawn(format!("hooks {server}"), move |stop| installer.clone().run(stop).map(Ok));
        }
    }

    /// Spawns the caller for commands over HTTP, and serves the pages and the API.
    pub(super) fn serve_http(
        &self,
        group: &mut Group,
        listener: TcpListener,
        config: &Config,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> impl Future<Output = std::io::Result<()>> + use<> {
        let rights = config.http.commands.clone();
        // Listeners resume with `Last-Event-ID`, so `resync` has no meaning here.
        let allows = move |verb: &str| verb != Verb::Resync.as_str() && rights.allows(verb);
        let admission = self.admission(SinkName::http(), allows, Vec::new(), self.servers.keys());
        let caller = Arc::new(Caller::new(admission));
        let called = Arc::clone(&caller);
        group.spawn("commands @http".to_owned(), move |stop| Arc::clone(&called).run(stop));
        let replayer = Replayer {
            data_dir: config.data_dir.clone(),
            store: Arc::clone(&self.store),
            endpoints: self.endpoints.clone(),
            one_at_a_time: AsyncMutex::default(),
        };
        let (live, clock) = (Arc::clone(&self.common.live), Arc::clone(&self.common.clock));
        let api = Api {
            live,
            sinks: self.sinks.iter().map(|(name, parts)| (name.clone(), Arc::clone(&parts.sink))).collect(),
            store: Arc::clone(&self.store),
            clock,
            caller,
            replayer,
            metrics,
            start: self.start,
            stop: stop.clone(),
        };
        let access = http::AccessRules { token: config.http.token.clone(), hosts: config.http.hosts.clone() };
        http::serve(listener, Arc::new(api), access, self.shares.incoming, stop)
    }

    fn dispatcher_parts(&self, name: &SinkName) -> DispatcherParts {
        let SinkParts { sink, servers, events, retain, broker: _ } = &self.sinks[name];
        let Common { store, live, clock } = self.common.clone();
        DispatcherParts {
            settings: DispatcherSettings {
                name: name.clone(),
                servers: servers.clone(),
                events: events.clone(),
                retain: *retain,
                was_clean_shutdown: self.was_clean_shutdown,
            },
            sink: Arc::clone(sink),
            store,
            buffer: Arc::clone(live.buffer(name).expect("the live state has a buffer for each sink")),
            live,
            clock,
            reporter: Arc::clone(&self.reporter),
        }
    }

    /// Returns `None` for a sink from which no commands come.
    fn receiver(&self, name: &SinkName) -> Option<CommandReceiver> {
        let (adapter, broker) = self.sinks[name].broker.as_ref()?;
        let batch_bytes_max = self.shares.incoming;
        let source = adapter.source(!broker.commands.is_empty(), batch_bytes_max, &*self.common.clock)?;
        let rights = broker.commands.clone();
        let allows = move |verb: &str| rights.allows(verb);
        let admission = self.admission(name.clone(), allows, broker.reply_prefixes.clone(), broker.servers());
        Some(CommandReceiver { source, admission, batch_bytes_max, unattended_since: self.last_alive })
    }

    fn admission<'a>(
        &self,
        origin: SinkName,
        allows: impl Fn(&str) -> bool + Send + Sync + 'static,
        reply_prefixes: Vec<String>,
        servers: impl IntoIterator<Item = &'a ServerName>,
    ) -> Admission {
        let queue = |name: &ServerName| Some((name.clone(), Arc::clone(&self.servers.get(name)?.queue)));
        Admission {
            origin,
            allows: Box::new(allows),
            reply_prefixes,
            queues: servers.into_iter().filter_map(queue).collect(),
            bridge: Arc::clone(&self.worker.queue),
            common: self.common.clone(),
        }
    }
}

/// Returns every sink with the servers whose events it gets. A webhook is one sink for each of its servers.
fn servers_by_sink(config: &Config) -> BTreeMap<SinkName, Vec<ServerName>> {
    let brokers = config.brokers.iter().map(|(name, broker)| (name.clone(), broker.servers().to_vec()));
    let webhooks = config.webhooks.iter().flat_map(|(name, webhook)| webhook_sinks(name, webhook));
    brokers.chain(webhooks.map(|(sink, server)| (sink, vec![server.clone()]))).collect()
}

async fn load_live_state(
    config: &Config,
    store: &dyn Store,
    sinks: impl Iterator<Item = SinkName>,
    shares: MemoryShares,
) -> anyhow::Result<Arc<LiveState>> {
    let mut servers = BTreeMap::new();
    for name in config.servers.keys() {
        let server = load(store, name).await.with_context(|| format!("load the state of {name}"))?;
        servers.insert(name.clone(), server);
    }
    Ok(Arc::new(LiveState::with_shares(servers, sinks, shares)))
}

async fn build_servers(
    config: &Config,
    recovery: &Recovery,
    names: &TrackerNames,
    common: &Common,
    memory: &Arc<CommandMemory>,
) -> anyhow::Result<BTreeMap<ServerName, ServerParts>> {
    let answer_bytes = config.memory_shares().answer;
    let mut servers = BTreeMap::new();
    for (name, server) in &config.servers {
        let watcher = Watcher {
            server: name.clone(),
            poll: server.poll,
            client: build_limited_client(&server.client, answer_bytes)
                .with_context(|| format!("set up server {name}"))?,
            common: common.clone(),
            pending_effects: Arc::default(),
            files: Arc::new(FilePublisher::new(true)),
            is_state_lost: recovery.lost,
        };
        let sources = Sources::new(server.roots.clone(), config.add_urls.clone());
        let parts =
            ServerParts::build(watcher, sources, names.clone(), memory).await.context("read the command log")?;
        servers.insert(name.clone(), parts);
    }
    Ok(servers)
}

/// Builds the worker of the bridge itself, and answers the unfinished commands of servers that left the config.
async fn build_worker(config: &Config, common: &Common, memory: &Arc<CommandMemory>) -> anyhow::Result<BridgeWorker> {
    let queue = Arc::new(Queue::new(Arc::clone(memory)));
    take_up_unfinished(common, None, &queue).await.context("read the command log")?;
    // Every command gets a result (I15), also if its server left the config.
    let answered = answer_for_removed_servers(common, &config.servers.keys().cloned().collect()).await;
    answered.context("answer commands of a removed server")?;
    Ok(BridgeWorker { queue, common: common.clone(), set_log_level: Arc::new(crate::telemetry::set_level) })
}

/// The endpoints of the webhooks, by their names in the config.
type Endpoints = BTreeMap<SinkName, Arc<Endpoint>>;

/// Builds the sinks, and the endpoints of the webhooks.
fn build_sinks(
    config: &Config,
    Common { store: _, live, clock }: &Common,
) -> anyhow::Result<(BTreeMap<SinkName, SinkParts>, Endpoints)> {
    let mut sinks = BTreeMap::new();
    for (name, broker) in &config.brokers {
        // Events up to these may have been stored by an earlier run, for which JetStream answers "duplicate". For a later
        // event that answer means that its id was given twice, and stops the sink (docs/decisions/0007).
        let last_seq = |server: &ServerName| live.read(server, |server| server.last_seq).unwrap_or_default();
        let before = broker.servers().iter().map(|server| (server.clone(), last_seq(server))).collect();
        let adapter = build_broker(broker, before).with_context(|| format!("set up broker {name}"))?;
        let retain = match &broker.kind {
            BrokerKind::Mqtt(settings) => settings.retain,
            // A NATS bucket holds any number of states.
            BrokerKind::Nats(_) => Retain::All,
        };
        let parts = SinkParts {
            sink: adapter.clone(),
            servers: broker.servers().to_vec(),
            events: broker.events.clone(),
            retain,
            broker: Some((adapter, broker.clone())),
        };
        sinks.insert(name.clone(), parts);
    }
    let mut endpoints = BTreeMap::new();
    for (name, webhook) in &config.webhooks {
        let endpoint = build_endpoint(webhook, clock).with_context(|| format!("set up webhook {name}"))?;
        for (sink, server) in webhook_sinks(name, webhook) {
            let parts = SinkParts {
                sink: Arc::new(WebhookSink::new(sink.clone(), Arc::clone(&endpoint))),
                servers: vec![server.clone()],
                events: webhook.events.clone(),
                // A webhook retains nothing.
                retain: Retain::None,
                broker: None,
            };
            sinks.insert(sink, parts);
        }
        endpoints.insert(name.clone(), endpoint);
    }
    Ok((sinks, endpoints))
}
