//! The library API: any number of servers, monitored and commanded from your own program.
//!
//! The bridge without its brokers: the same watchers, the same worker and queue for each server, the same journal. So
//! events are the same as on a broker, `finished` comes once, a restarting client causes no storm, and a command has
//! succeeded when its effect was *seen*.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use dtorrent::manager::{Manager, Server};
//! use dtorrent::model::Kind;
//!
//! let manager = Manager::builder().server("home", Server::rtorrent("unix:///run/rtorrent/rpc.sock")).build().await?;
//! manager.on(Kind::Finished, |event| {
//!     println!("finished: {}", event.torrent.as_ref().map_or("", |torrent| &torrent.name));
//! });
//! let mut events = manager.events();
//! while let Some(event) = events.next().await {
//!     match event {
//!         Ok(event) => println!("{} {:?}", event.event_type.as_str(), event.hash),
//!         Err(missed) => eprintln!("{missed}"),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # State
//!
//! The state is in memory, unless [`Builder::data_dir`] names a directory. With one it survives a restart: what happened
//! meanwhile then comes with [`Cause::Recovered`](crate::model::Cause::Recovered) and not as a first snapshot, sequence
//! numbers go on, and an interrupted command is resumed.
//!
//! # Requirements
//!
//! A tokio runtime with its time and I/O drivers, from [`Builder::build`] on. Dropping the manager stops it;
//! [`Manager::shutdown`] also waits for that.

mod builder;
mod error;
mod events;
mod new_torrent;
mod watcher;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{error, warn};

use crate::commands::Caller;
use crate::live_state::LiveState;
use crate::model::{Event, EventId, InfoHash, Kind, Seq, ServerName, Torrent};
use crate::outbox::{ReadFrom, Reader, ReaderParts};
use crate::port::{Store, StoreError, TorrentClient};
use crate::supervise::Group;

pub use self::builder::{Builder, Server};
pub use self::error::{BuildError, ManagerError};
pub use self::events::{Events, Since};
pub use self::new_torrent::NewTorrent;
pub use self::watcher::{ServerStatus, TorrentDetails, Watcher};
pub use crate::outbox::Missed;

/// Monitors servers, emits their events, and executes commands. See the module.
pub struct Manager {
    shared: Arc<Shared>,
    /// The result of the shutdown, once it is over.
    ended: watch::Receiver<Option<Result<(), Arc<StoreError>>>>,
    _stop: DropGuard,
}

/// The id of a listener, to remove it by.
#[derive(Clone, Debug)]
pub struct ListenerId(CancellationToken);

/// The parts that a manager, its watchers and its listeners share.
struct Shared {
    live: Arc<LiveState>,
    store: Arc<dyn Store>,
    caller: Arc<Caller>,
    clients: BTreeMap<ServerName, Arc<dyn TorrentClient>>,
    /// The last journal entry of each server when the manager was built.
    begun: BTreeMap<ServerName, Seq>,
    /// Time to live of commands.
    patience: std::time::Duration,
    listeners: Mutex<Option<Group>>,
    /// No poll and no command any more.
    stop: CancellationToken,
    /// No event any more.
    events_ended: CancellationToken,
}

impl Manager {
    /// Returns a builder without servers, whose state is in memory.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Returns a stream of every event since this manager was built.
    ///
    /// A stream that is opened late begins with the past; [`Since::Now`] does not.
    pub fn events(&self) -> Events {
        self.events_since(Since::Built)
    }

    /// Returns a stream of the events since a place in their order.
    pub fn events_since(&self, since: Since) -> Events {
        Events::new(self.reader(&since, Kind::ALL.iter().copied().collect()))
    }

    /// Returns a reader of the events of these kinds, as brokers get them, to pass them on.
    pub fn reader(&self, since: &Since, kinds: BTreeSet<Kind>) -> Reader {
        self.shared.reader(since, kinds, self.shared.events_ended.clone())
    }

    /// Calls `listener` for each event of this kind since the manager was built, in order for each server.
    ///
    /// Each listener has a task of its own, so one that is slow or panics delays nothing else. It runs on the runtime, so
    /// it must not block; for work that waits, read [`Manager::events`] instead. It misses events that are trimmed from
    /// the journal before it is called, which is logged.
    pub fn on(&self, kind: Kind, listener: impl Fn(&Event) + Send + Sync + 'static) -> ListenerId {
        let gone = CancellationToken::new();
        let id = ListenerId(gone.clone());
        let (shared, listener) = (Arc::clone(&self.shared), Arc::new(listener));
        let mut listeners = self.shared.listeners();
        let Some(group) = listeners.as_mut() else { return id };
        group.spawn(format!("listener for {}", kind.as_str()), move |stop| {
            let reader = shared.reader(&Since::Built, BTreeSet::from([kind]), stop);
            listen(reader, gone.clone(), Arc::clone(&listener))
        });
        id
    }

    /// Removes a listener; a running call of it ends by itself.
    pub fn off(&self, listener: ListenerId) {
        listener.0.cancel();
    }

    /// Returns the names of the servers, in order.
    pub fn servers(&self) -> impl Iterator<Item = &ServerName> {
        self.shared.clients.keys()
    }

    /// Returns the watcher of a server; `None` if there is no server of that name.
    pub fn watcher(&self, server: &str) -> Option<Watcher> {
        let server = self.servers().find(|name| name.as_str() == server)?;
        Some(self.shared.watcher(server))
    }

    /// Returns the torrents of all servers, from their snapshots.
    ///
    /// # Errors
    /// The first of [`Watcher::get_all`].
    pub async fn get_all(&self) -> Result<Vec<Torrent>, ManagerError> {
        let mut all = Vec::new();
        for server in self.servers() {
            all.extend(self.shared.watcher(server).get_all().await?);
        }
        Ok(all)
    }

    /// Reads one torrent from its client, with its files.
    ///
    /// # Errors
    /// [`ManagerError::UnknownHash`] or [`ManagerError::Ambiguous`] if it is not on exactly one server, and those of
    /// [`Watcher::get_one`].
    pub async fn get_one(&self, hash: InfoHash) -> Result<TorrentDetails, ManagerError> {
        self.of(hash).await?.get_one(hash).await
    }

    /// Pauses a torrent. Returns when the effect was seen, as all that follow.
    ///
    /// # Errors
    /// As [`Manager::get_one`], and [`ManagerError::Command`] with what became of it.
    pub async fn pause(&self, hash: InfoHash) -> Result<(), ManagerError> {
        self.of(hash).await?.pause(hash).await
    }

    /// Resumes a paused torrent.
    ///
    /// # Errors
    /// As [`Manager::pause`].
    pub async fn resume(&self, hash: InfoHash) -> Result<(), ManagerError> {
        self.of(hash).await?.resume(hash).await
    }

    /// Removes a torrent from its client; its files stay. [`Watcher::delete_with_data`] deletes them, too.
    ///
    /// # Errors
    /// As [`Manager::pause`].
    pub async fn delete(&self, hash: InfoHash) -> Result<(), ManagerError> {
        self.of(hash).await?.delete(hash).await
    }

    /// Adds a torrent to a server. Returns its info-hash once it was seen there.
    ///
    /// # Errors
    /// [`ManagerError::UnknownServer`], or [`ManagerError::Command`] with what became of it.
    pub async fn add(&self, server: &str, torrent: NewTorrent) -> Result<InfoHash, ManagerError> {
        let watcher = self.watcher(server).ok_or_else(|| ManagerError::UnknownServer(server.to_owned()))?;
        watcher.add(torrent).await
    }

    /// Returns the watcher of the only server that has this torrent, after a full poll of every server.
    ///
    /// # Errors
    /// None has it, or several have; or a server does not answer, so that it is unknown.
    pub async fn of(&self, hash: InfoHash) -> Result<Watcher, ManagerError> {
        let mut having = Vec::new();
        for server in self.servers() {
            let watcher = self.shared.watcher(server);
            // Of every server, also when one that has it is found: two may have it, and the wrong one must not be chosen.
            watcher.wait_for_snapshot().await?;
            if self.shared.live.read(server, |content| content.snapshot.contains_key(&hash)) == Some(true) {
                having.push(watcher);
            }
        }
        match (having.pop(), having.is_empty()) {
            (None, _) => Err(ManagerError::UnknownHash(hash)),
            (Some(only), true) => Ok(only),
            (Some(last), false) => {
                let servers = having.into_iter().chain([last]).map(|watcher| watcher.server).collect();
                Err(ManagerError::Ambiguous { hash, servers })
            }
        }
    }

    /// Stops polls and commands, lets the listeners get the last events, and ends. Streams end when they were read.
    ///
    /// # Errors
    /// The state could not be written, now or earlier: then events since may come again.
    pub async fn shutdown(mut self) -> Result<(), Arc<StoreError>> {
        self.shared.stop.cancel();
        match self.ended.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            // The runtime is shutting down, and has dropped the task that owns the manager.
            Err(_) => Ok(()),
        }
    }
}

impl Shared {
    fn watcher(self: &Arc<Self>, server: &ServerName) -> Watcher {
        Watcher { server: server.clone(), shared: Arc::clone(self) }
    }

    fn reader(&self, since: &Since, events: BTreeSet<Kind>, stop: CancellationToken) -> Reader {
        let after = match since {
            Since::Built => self.begun.clone(),
            Since::Now => BTreeMap::new(),
            Since::After(ids) => ids.iter().filter_map(|id| self.place_of(id)).collect(),
        };
        Reader::new(ReaderParts {
            live: Arc::clone(&self.live),
            store: Arc::clone(&self.store),
            servers: self.clients.keys().cloned().collect(),
            events,
            begin: ReadFrom::Cursors(after),
            stop,
        })
    }

    /// Returns the place of an event; of another epoch, the beginning of this one.
    fn place_of(&self, id: &EventId) -> Option<(ServerName, Seq)> {
        let EventId::Journal { server, epoch, seq } = id else { return None };
        let now = self.live.read(server, |content| content.epoch)?;
        Some((server.clone(), if now == *epoch { *seq } else { Seq(0) }))
    }

    fn listeners(&self) -> MutexGuard<'_, Option<Group>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls a listener for each event, until the last one or until the listener is removed.
async fn listen(mut reader: Reader, gone: CancellationToken, listener: Arc<impl Fn(&Event)>) -> Result<(), StoreError> {
    while let Some(next) = gone.run_until_cancelled(reader.next()).await {
        let Some(item) = next? else { break };
        let event = match events::event(item) {
            Some(Ok(event)) => event,
            Some(Err(missed)) => {
                warn!(%missed, "a listener was too slow");
                continue;
            }
            None => continue,
        };
        // Caught here and not by the supervisor, which would begin with the first event once more.
        if catch_unwind(AssertUnwindSafe(|| listener(&event))).is_err() {
            error!(id = %event.id, "a listener panicked; it is called again for the next event");
        }
    }
    Ok(())
}
