//! The tasks of each server: its watcher, its worker, and the publisher of its files.
//!
//! The bridge and the library share them. Sinks and command sources are theirs.

use std::sync::Arc;

use crate::commands::{CommandMemory, Queue, Sources, Worker, WorkerParts, take_up_unfinished};
use crate::live_state::LiveServer;
use crate::model::{Interner, ServerName, TrackerNames};
use crate::port::{Store, StoreError};
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
    /// Builds the parts of a watched server, whose queue begins with the commands that an earlier run did not answer.
    ///
    /// # Errors
    /// The command log cannot be read.
    pub async fn build(
        watcher: Watcher,
        sources: Sources,
        tracker_names: TrackerNames,
        memory: &Arc<CommandMemory>,
    ) -> Result<Self, StoreError> {
        let queue = Arc::new(Queue::new(Arc::clone(memory)));
        take_up_unfinished(&watcher.common, Some(&watcher.server), &queue).await?;
        let worker = WorkerParts {
            server: watcher.server.clone(),
            client: Arc::clone(&watcher.client),
            common: watcher.common.clone(),
            pending_effects: Arc::clone(&watcher.pending_effects),
            sources,
            tracker_names,
        };
        Ok(Self { queue, worker: Arc::new(worker), watcher })
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
