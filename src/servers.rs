//! The tasks of each server: its watcher, its worker, and the publisher of its files.
//!
//! The bridge and the library share them. Sinks and command sources are theirs.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::commands::{CommandSender, Queue, QueuedCommand, Request, Sources, Worker, WorkerParts};
use crate::live_state::LiveServer;
use crate::model::{Interner, ServerName, TrackerNames};
use crate::port::{LoggedCommand, Store, StoreError};
use crate::supervise::Group;
use crate::watch::Watcher;

/// One server, built and not yet running.
pub struct ServerParts {
    /// Commands that wait for the worker.
    pub queue: Arc<Queue>,
    /// The parts of the worker.
    pub worker: Arc<WorkerParts>,
    watcher: Watcher,
}

impl ServerParts {
    /// Builds the parts of a watched server; `unfinished` are the commands that an earlier run did not answer.
    pub fn new(
        watcher: Watcher,
        sources: Sources,
        tracker_names: TrackerNames,
        unfinished: Vec<QueuedCommand>,
    ) -> Self {
        let worker = WorkerParts {
            server: watcher.server.clone(),
            client: Arc::clone(&watcher.client),
            common: watcher.common.clone(),
            pending_effects: Arc::clone(&watcher.pending_effects),
            sources,
            tracker_names,
        };
        Self { queue: Arc::new(Queue::new(unfinished)), worker: Arc::new(worker), watcher }
    }

    /// Spawns the tasks of the server.
    pub fn spawn(&self, group: &mut Group) {
        let Self { queue, worker, watcher } = self;
        let (name, publisher) = (&watcher.server, watcher.clone());
        let worker = Worker { parts: Arc::clone(worker), queue: Arc::clone(queue) };
        let watcher = watcher.clone();
        group.spawn(format!("watcher {name}"), move |stop| watcher.clone().run(stop));
        group.spawn(format!("worker {name}"), move |stop| worker.clone().run(stop));
        if publisher.files.is_wanted {
            group.spawn(format!("files {name}"), move |stop| publisher.clone().publish_files(stop));
        }
    }
}

/// Loads the committed state of a server.
///
/// # Errors
/// The store cannot be read.
pub async fn load(store: &dyn Store, server: &ServerName) -> Result<LiveServer, StoreError> {
    let mut loaded = store.load(server).await?;
    let mut interner = Interner::default();
    // Thousands of torrents share a dozen labels and trackers, and each row of the store has its own copy of them.
    for snapshot in loaded.snapshot.values_mut() {
        Arc::make_mut(&mut snapshot.torrent).intern(&mut interner);
    }
    Ok(LiveServer::from(loaded))
}

/// Reads the commands that an earlier run did not answer, by server; `None` for the bridge itself.
///
/// # Errors
/// The command log cannot be read.
pub async fn unfinished_commands(
    store: &dyn Store,
) -> Result<BTreeMap<Option<ServerName>, Vec<QueuedCommand>>, StoreError> {
    let parsed = |command: LoggedCommand| {
        // Only bodies that could be parsed were logged; another version may think otherwise of one.
        let request = Request::parse(command.verb?, command.hash, &command.body).ok()?;
        Some(QueuedCommand { command, request, sender: CommandSender::default() })
    };
    let mut by_server: BTreeMap<_, Vec<QueuedCommand>> = BTreeMap::new();
    for queued in store.unfinished_commands().await?.into_iter().filter_map(parsed) {
        by_server.entry(queued.command.server.clone()).or_default().push(queued);
    }
    Ok(by_server)
}
