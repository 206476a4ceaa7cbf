//! The library face: any number of servers, watched and commanded from within your own program.
//!
//! It is the bridge without its brokers: the same watchers, the same worker and queue for each server, the
//! same journal. So an event here is an event there, `finished` comes once, a restarting client causes no
//! storm, and a command has succeeded when its effect was *seen*.
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
//! # What is kept
//!
//! In memory, unless [`Builder::data_dir`] names a folder. With one, what was told survives a restart: what
//! happened meanwhile then comes with [`Cause::Recovered`](crate::model::Cause::Recovered) and not as a first
//! snapshot, numbers go on, and a command that was interrupted is carried on with.
//!
//! # What it needs
//!
//! A tokio runtime with its time and I/O drivers, from [`Builder::build`] on. Dropping the manager stops it;
//! [`Manager::shutdown`] also waits for that.

mod builder;
mod error;
mod events;
mod new_torrent;
mod watcher;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::commands::Caller;
use crate::live_state::LiveState;
use crate::model::{Event, EventId, InfoHash, Kind, Seq, ServerName, Torrent};
use crate::outbox::{Begin, Heard, Reader, ReaderParts};
use crate::port::{Store, StoreError, TorrentClient};
use crate::supervise::Group;

pub use self::builder::{Builder, Server};
pub use self::error::{BuildError, ManagerError};
pub use self::events::{Events, Since};
pub use self::new_torrent::NewTorrent;
pub use self::watcher::{ServerStatus, TorrentDetails, Watcher};
pub use crate::outbox::Missed;

/// Watches servers, tells what happens, and acts on them. See the module.
pub struct Manager {
    shared: Arc<Shared>,
    /// Says how it ended, when it has.
    ended: watch::Receiver<Option<Result<(), Arc<StoreError>>>>,
    _stop: DropGuard,
}

/// A listener's name, to take it away by.
#[derive(Clone, Debug)]
pub struct ListenerId(CancellationToken);

/// What the manager and its watchers share. It runs nothing itself.
struct Shared {
    live: Arc<LiveState>,
    store: Arc<dyn Store>,
    caller: Arc<Caller>,
    clients: BTreeMap<ServerName, Arc<dyn TorrentClient>>,
    /// The newest entry of each server when this life began.
    begun: BTreeMap<ServerName, Seq>,
    /// How long a command may wait for its client.
    patience: std::time::Duration,
    listeners: Mutex<Option<Group>>,
    /// Nobody looks and nobody acts any more.
    stop: CancellationToken,
    /// Nothing more is told.
    is_all_told: CancellationToken,
}

impl Manager {
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Every event since this manager was built, and from then on.
    ///
    /// A stream that is read late hears first what was; [`Since::Now`] begins with the present.
    pub fn events(&self) -> Events {
        self.events_since(Since::Built)
    }

    /// Events from a place of your choice on: see [`Since`].
    pub fn events_since(&self, since: Since) -> Events {
        let kinds = Kind::ALL.iter().copied().collect();
        Events::new(self.shared.reader(&since, kinds, self.shared.is_all_told.clone()))
    }

    /// Events of these kinds in the bytes of the wire, for those who pass them on.
    pub fn reader(&self, since: &Since, kinds: BTreeSet<Kind>) -> Reader {
        self.shared.reader(since, kinds, self.shared.is_all_told.clone())
    }

    /// Calls `listener` for each event of this kind, since the manager was built, in order for each server.
    ///
    /// Each listener has a task of its own: one that is slow or panics holds up no other, and nothing else. It
    /// runs on the runtime, so it must not block; for work that waits, read [`Manager::events`] instead. It
    /// misses what is trimmed from the journal before its turn, which the log says.
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

    /// Takes a listener away; a call of it that is under way ends as it will.
    pub fn off(&self, listener: ListenerId) {
        listener.0.cancel();
    }

    /// The names of the servers, in order.
    pub fn servers(&self) -> impl Iterator<Item = &ServerName> {
        self.shared.clients.keys()
    }

    /// One of the servers, to act on; `None` if there is none of that name.
    pub fn watcher(&self, server: &str) -> Option<Watcher> {
        let server = self.shared.clients.keys().find(|name| name.as_str() == server)?;
        Some(Watcher { server: server.clone(), shared: Arc::clone(&self.shared) })
    }

    /// All torrents of all servers, as they were told last.
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

    /// One torrent as its client has it now, with its files.
    ///
    /// # Errors
    /// [`ManagerError::UnknownHash`] or [`ManagerError::Ambiguous`] if it is not on exactly one server, and those of
    /// [`Watcher::get_one`].
    pub async fn get_one(&self, hash: InfoHash) -> Result<TorrentDetails, ManagerError> {
        self.of(hash).await?.get_one(hash).await
    }

    /// Holds a torrent for a while. Returns when that was seen, as all that follow.
    ///
    /// # Errors
    /// As [`Manager::get_one`], and [`ManagerError::Command`] with what became of it.
    pub async fn pause(&self, hash: InfoHash) -> Result<(), ManagerError> {
        self.of(hash).await?.pause(hash).await
    }

    /// # Errors
    /// As [`Manager::pause`].
    pub async fn resume(&self, hash: InfoHash) -> Result<(), ManagerError> {
        self.of(hash).await?.resume(hash).await
    }

    /// Removes a torrent from its client and leaves its content; [`Watcher::delete_with_data`] does not.
    ///
    /// # Errors
    /// As [`Manager::pause`].
    pub async fn delete(&self, hash: InfoHash) -> Result<(), ManagerError> {
        self.of(hash).await?.delete(hash).await
    }

    /// Adds a torrent to a server. Returns its info-hash when it was seen there.
    ///
    /// # Errors
    /// [`ManagerError::UnknownServer`], or [`ManagerError::Command`] with what became of it.
    pub async fn add(&self, server: &str, torrent: NewTorrent) -> Result<InfoHash, ManagerError> {
        let watcher = self.watcher(server).ok_or_else(|| ManagerError::UnknownServer(server.to_owned()))?;
        watcher.add(torrent).await
    }

    /// The one server that has this torrent, once every server has shown what it has.
    ///
    /// # Errors
    /// None has it, or several; or a server does not answer, so that nobody knows.
    pub async fn of(&self, hash: InfoHash) -> Result<Watcher, ManagerError> {
        let mut having = Vec::new();
        for server in self.servers() {
            let watcher = self.shared.watcher(server);
            watcher.wait_for_snapshot().await?;
            if self.shared.live.read(server, |content| content.snapshot.contains_key(&hash)) == Some(true) {
                having.push(watcher);
            }
        }
        match having.len() {
            1 => Ok(having.remove(0)),
            0 => Err(ManagerError::UnknownHash(hash)),
            _ => {
                let servers = having.into_iter().map(|watcher| watcher.server).collect();
                Err(ManagerError::Ambiguous { hash, servers })
            }
        }
    }

    /// Stops looking and acting, lets the listeners hear what was told, and ends; streams end when they were read.
    ///
    /// # Errors
    /// The state could not be kept, now or earlier: then what was told since may be told again.
    pub async fn shutdown(mut self) -> Result<(), Arc<StoreError>> {
        self.shared.stop.cancel();
        match self.ended.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            // The runtime is going down and has dropped what kept us.
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
            begin: Begin::After(after),
            stop,
        })
    }

    /// In another epoch all of this one is news.
    fn place_of(&self, id: &EventId) -> Option<(ServerName, Seq)> {
        let EventId::Journal { server, epoch, seq } = id else { return None };
        let now = self.live.read(server, |content| content.epoch)?;
        Some((server.clone(), if now == *epoch { *seq } else { Seq(0) }))
    }

    fn listeners(&self) -> MutexGuard<'_, Option<Group>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls a listener until there is nothing more to hear or it is taken away.
async fn listen(mut reader: Reader, gone: CancellationToken, listener: Arc<impl Fn(&Event)>) -> Result<(), StoreError> {
    loop {
        let heard = tokio::select! {
            biased;
            () = gone.cancelled() => return Ok(()),
            heard = reader.next() => heard?,
        };
        match heard {
            None => return Ok(()),
            Some(Heard::Missed(missed)) => tracing::warn!(%missed, "a listener was too slow"),
            Some(heard) => {
                let Some(event) = events::event(heard) else { continue };
                if std::panic::catch_unwind(AssertUnwindSafe(|| listener(&event))).is_err() {
                    tracing::error!(id = %event.id, "a listener panicked; it is called again for the next event");
                }
            }
        }
    }
}
