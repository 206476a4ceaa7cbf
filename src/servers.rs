//! The tasks of each server: its watcher, its worker, and the publisher of its files.
//!
//! The bridge and the library share them. Sinks and command sources are theirs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::commands::{
    CommandSender, Common, PendingEffects, Queue, QueuedCommand, Request, Sources, Worker, WorkerParts,
};
use crate::live_state::LiveServer;
use crate::model::{Interner, PollSettings, ServerName, UrlRules};
use crate::port::{LoggedCommand, Store, StoreError, TorrentClient};
use crate::supervise::Group;
use crate::watch::{FilePublisher, Watcher};

/// The settings of one server.
pub struct ServerSetup {
    /// The client to poll.
    pub client: Arc<dyn TorrentClient>,
    /// Pace of the polls.
    pub poll: PollSettings,
    /// The only folders that commands may name.
    pub roots: Vec<PathBuf>,
    /// Where links to .torrent files may lead.
    pub urls: UrlRules,
    /// The lists of files are published.
    pub publishes_files: bool,
    /// This epoch began by a loss.
    pub is_state_lost: bool,
}

/// One server, built and not yet running.
pub struct ServerParts {
    /// Commands that wait for the worker.
    pub queue: Arc<Queue>,
    /// The parts of the worker.
    pub worker: Arc<WorkerParts>,
    files: Arc<FilePublisher>,
    publishes_files: bool,
    watcher: Watcher,
}

impl ServerParts {
    /// Builds the parts of a server; `unfinished` are the commands that an earlier run did not answer.
    pub fn new(server: ServerName, setup: ServerSetup, unfinished: Vec<QueuedCommand>, common: &Common) -> Self {
        let ServerSetup { client, poll, roots, urls, publishes_files, is_state_lost } = setup;
        let Common { store, live, clock } = common.clone();
        let pending_effects = Arc::new(PendingEffects::default());
        let files = Arc::new(FilePublisher::new(publishes_files));
        let worker = WorkerParts {
            server: server.clone(),
            client: Arc::clone(&client),
            common: common.clone(),
            pending_effects: Arc::clone(&pending_effects),
            sources: Sources::new(roots, urls),
        };
        let watcher = Watcher {
            server,
            poll,
            client,
            store,
            live,
            clock,
            pending_effects,
            files: Arc::clone(&files),
            is_state_lost,
        };
        Self { queue: Arc::new(Queue::new(unfinished)), worker: Arc::new(worker), files, publishes_files, watcher }
    }

    /// Spawns the tasks of the server.
    pub fn spawn(&self, group: &mut Group) {
        let Self { queue, worker, files, publishes_files, watcher } = self;
        let (name, live, client) = (watcher.server.clone(), Arc::clone(&watcher.live), Arc::clone(&watcher.client));
        let watcher = watcher.clone();
        group.spawn(format!("watcher {name}"), move |stop| watcher.clone().run(stop));
        let worker = Worker { parts: Arc::clone(worker), queue: Arc::clone(queue) };
        group.spawn(format!("worker {name}"), move |stop| worker.clone().run(stop));
        if !publishes_files {
            return;
        }
        let files = Arc::clone(files);
        group.spawn(format!("files {name}"), move |stop| {
            // For each run of its own: the task is restarted after a panic.
            let (files, client) = (Arc::clone(&files), Arc::clone(&client));
            let (live, server) = (Arc::clone(&live), name.clone());
            async move {
                files.run(server, client, live, stop).await;
                Ok(())
            }
        });
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
