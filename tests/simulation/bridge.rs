//! The whole engine, composed as `app` composes it, on a simulated disk, simulated clients and brokers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dtorrent::commands::{
    Admission, BridgeWorker, CommandReceiver, Common, PendingEffects, Queue, Sources, Worker, WorkerParts,
    take_up_unfinished,
};
use dtorrent::live_state::LiveState;
use dtorrent::log_throttle::retry_while_full;
use dtorrent::model::{Kind, PollSettings, Seq, ServerName, ServerState, TrackerNames, UrlRules};
use dtorrent::outbox::retention::Retain;
use dtorrent::outbox::{Dispatcher, DispatcherParts, DispatcherSettings, Reporter, init_sink_progress};
use dtorrent::port::{Clock, Store, StoreError, TorrentClient};
use dtorrent::servers::load;
use dtorrent::testing::simulator::Simulator;
use dtorrent::watch::{FilePublisher, Watcher};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::broker::{Broker, SimulatedCommandSource, SimulatedSink};
use super::disk::DiskStore;
use super::env::SimulationEnv;

/// The configuration of one sink.
#[derive(Clone)]
pub struct SinkPlan {
    pub broker: Arc<Broker>,
    pub servers: Vec<ServerName>,
    pub events: BTreeSet<Kind>,
    pub retain: Retain,
    pub takes_commands: bool,
}

/// One running bridge.
pub struct Bridge {
    pub live: Arc<LiveState>,
    pub store: Arc<DiskStore>,
    left: JoinSet<Result<(), StoreError>>,
    right: JoinSet<Result<(), StoreError>>,
    stop_left: CancellationToken,
    stop_right: CancellationToken,
}

struct NothingToReport;

impl Reporter for NothingToReport {
    fn info(&self, _: &dtorrent::model::SinkName, _: &[ServerName]) -> Bytes {
        Bytes::from_static(b"{}")
    }
    fn health(&self) -> Bytes {
        Bytes::from_static(b"{}")
    }
}

impl Bridge {
    pub async fn start(
        env: &Arc<SimulationEnv>,
        store: Arc<DiskStore>,
        clients: &BTreeMap<ServerName, Simulator>,
        sinks: &[SinkPlan],
        interval: Duration,
        full_interval: Duration,
    ) -> Self {
        let clock: Arc<dyn Clock> = env.clone();
        let dyn_store: Arc<dyn Store> = store.clone();
        let mut servers = BTreeMap::new();
        let mut is_first_run = true;
        for server in clients.keys() {
            let committed = load(&*store, server).await.unwrap();
            is_first_run &= committed.last_seq == Seq(0) && committed.state == ServerState::default();
            servers.insert(server.clone(), committed);
        }
        let live = Arc::new(LiveState::new(servers, sinks.iter().map(|plan| plan.broker.name.clone())));
        let (mut left, mut right) = (JoinSet::new(), JoinSet::new());
        let (stop_left, stop_right) = (CancellationToken::new(), CancellationToken::new());

        for plan in sinks {
            let settings = DispatcherSettings {
                name: plan.broker.name.clone(),
                servers: plan.servers.clone(),
                events: plan.events.clone(),
                retain: plan.retain,
                was_clean_shutdown: false,
            };
            let sink = Arc::new(SimulatedSink(plan.broker.clone()));
            let buffer = live.buffer(&plan.broker.name).unwrap().clone();
            let note = || init_sink_progress(&*dyn_store, &live, &plan.broker.name, &plan.servers, is_first_run);
            retry_while_full("a start", note).await.unwrap();
            let parts = DispatcherParts {
                settings,
                sink,
                store: dyn_store.clone(),
                live: live.clone(),
                buffer,
                clock: clock.clone(),
                reporter: Arc::new(NothingToReport),
            };
            let (env, stop) = (env.clone(), stop_right.clone());
            right.spawn(async move {
                let jitter = move || env.rng.fraction();
                Dispatcher::new(parts).await?.with_jitter(jitter).run(stop).await
            });
        }

        let common = Common { store: dyn_store.clone(), live: live.clone(), clock: clock.clone() };
        let mut queues = BTreeMap::new();
        for (server, client) in clients {
            let queue = Arc::new(Queue::default());
            take_up_unfinished(&common, Some(server), &queue).await.unwrap();
            queues.insert(server.clone(), queue.clone());
            let client: Arc<dyn TorrentClient> = Arc::new(client.clone());
            let pending_effects = Arc::new(PendingEffects::default());
            let files = Arc::new(FilePublisher::new(true));
            let watcher = Watcher {
                server: server.clone(),
                poll: PollSettings::new(interval, full_interval),
                client: client.clone(),
                common: common.clone(),
                pending_effects: pending_effects.clone(),
                files: files.clone(),
                is_state_lost: false,
            };
            left.spawn(watcher.run(stop_left.clone()));
            let parts = Arc::new(WorkerParts {
                server: server.clone(),
                client: client.clone(),
                common: common.clone(),
                pending_effects,
                sources: Sources::new(Vec::new(), UrlRules::default()),
                tracker_names: TrackerNames::new([0; 32]),
            });
            left.spawn(Worker { parts, queue }.run(stop_left.clone()));
            let (server, live, stop) = (server.clone(), live.clone(), stop_left.clone());
            left.spawn(async move {
                files.run(server, client, live, stop).await;
                Ok(())
            });
        }

        let of_bridge = Arc::new(Queue::default());
        take_up_unfinished(&common, None, &of_bridge).await.unwrap();
        let worker = BridgeWorker { queue: of_bridge, common: common.clone(), set_log_level: Arc::new(|_, _| Ok(())) };
        let of_bridge = worker.queue.clone();
        left.spawn(worker.run(stop_left.clone()));
        for plan in sinks.iter().filter(|plan| plan.takes_commands) {
            let admission = Admission {
                origin: plan.broker.name.clone(),
                allows: Box::new(|_| true),
                reply_prefixes: Vec::new(),
                queues: queues.clone(),
                bridge: of_bridge.clone(),
                common: common.clone(),
            };
            left.spawn(
                CommandReceiver {
                    source: Box::new(SimulatedCommandSource(plan.broker.clone())),
                    admission,
                    batch_bytes_max: usize::MAX,
                    unattended_since: None,
                }
                .run(stop_left.clone()),
            );
        }
        Self { live, store, left, right, stop_left, stop_right }
    }

    /// Waits until a task ends by itself, which is a fault, and returns how it ended.
    pub async fn ended(&mut self) -> String {
        let ended = tokio::select! {
            biased;
            Some(ended) = self.left.join_next() => ended,
            Some(ended) = self.right.join_next() => ended,
        };
        format!("a task of the bridge ended by itself: {ended:?}")
    }

    /// Aborts every task at its current await point.
    pub async fn kill(mut self) -> Arc<DiskStore> {
        self.left.shutdown().await;
        self.right.shutdown().await;
        self.store
    }

    /// Stops as on a signal: watchers and commands first, then sinks, each with its own deadline.
    pub async fn stop(mut self) -> Arc<DiskStore> {
        for (stop, tasks, seconds) in [(&self.stop_left, &mut self.left, 3), (&self.stop_right, &mut self.right, 7)] {
            stop.cancel();
            let ended = async { while tasks.join_next().await.is_some() {} };
            let _in_time = tokio::time::timeout(Duration::from_secs(seconds), ended).await.is_ok();
        }
        self.kill().await
    }
}
