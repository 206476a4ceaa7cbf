//! A custom torrent client, monitored and commanded like any other; this one exists in memory only.
//!
//! ```console
//! $ cargo run --example own_client
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use dtorrent::manager::{Manager, NewTorrent};
use dtorrent::model::{
    Action, Add, Details, InfoHash, Kind, Listing, Observed, Parts, ServerName, Status, Torrent, Verb,
};
use dtorrent::port::{Applied, Capabilities, ClientError, Scope, TorrentClient};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Its torrents.
pub struct Shelf {
    server: ServerName,
    torrents: Mutex<BTreeMap<InfoHash, Torrent>>,
}

impl Shelf {
    pub fn new(server: &str) -> Result<Self, Error> {
        Ok(Self { server: ServerName::parse(server)?, torrents: Mutex::default() })
    }

    pub fn torrents(&self) -> MutexGuard<'_, BTreeMap<InfoHash, Torrent>> {
        self.torrents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, hash: InfoHash, status: Status) -> Result<Applied, ClientError> {
        let mut torrents = self.torrents();
        let torrent = torrents.get_mut(&hash).ok_or(ClientError::UnknownHash(hash))?;
        *torrent = torrent.clone().with_status(status);
        Ok(Applied::Asked)
    }

    fn perform(&self, action: &Action) -> Result<Applied, ClientError> {
        match action {
            Action::Pause(hash) => self.set(*hash, Status::Paused),
            Action::Resume(hash) | Action::Start(hash) => self.set(*hash, Status::Downloading),
            Action::Stop(hash) => self.set(*hash, Status::Stopped),
            Action::Delete(hash) => {
                self.torrents().remove(hash).map(|_| Applied::Asked).ok_or(ClientError::UnknownHash(*hash))
            }
            Action::Add(Add { hash, start, .. }) => {
                let status = if *start { Status::Downloading } else { Status::Stopped };
                let torrent = Torrent::new(self.server.clone(), *hash, "a new one").with_bytes(1000, 0, 0);
                self.torrents().insert(*hash, torrent.with_status(status));
                Ok(Applied::Asked)
            }
            other => Err(ClientError::Unsupported { what: format!("do this: {other:?}") }),
        }
    }
}

#[async_trait]
impl TorrentClient for Shelf {
    async fn list(&self, _scope: Scope<'_>) -> Result<Listing, ClientError> {
        Ok(Listing::of_all(self.torrents().values().cloned().map(Observed::from)))
    }

    async fn get(&self, hashes: &[InfoHash], _parts: Parts) -> Result<Vec<Option<Details>>, ClientError> {
        let torrents = self.torrents();
        Ok(hashes.iter().map(|hash| torrents.get(hash).cloned().map(Details::from)).collect())
    }

    async fn apply(&self, actions: &[Action]) -> Vec<Result<Applied, ClientError>> {
        actions.iter().map(|action| self.perform(action)).collect()
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities::of_verbs(&[Verb::Pause, Verb::Resume, Verb::Start, Verb::Stop, Verb::Delete, Verb::Add])
    }
}

/// Adds a torrent, completes it behind the manager's back, and waits until that was noticed.
pub async fn run() -> Result<(), Error> {
    let shelf = Arc::new(Shelf::new("attic")?);
    let manager = Manager::builder().server("attic", Arc::clone(&shelf)).build().await?;
    let mut events = manager.events();
    let link = "magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567";
    let hash = manager.add("attic", NewTorrent::magnet(link)).await?;
    manager.pause(hash).await?;
    manager.resume(hash).await?;
    if let Some(torrent) = shelf.torrents().get_mut(&hash) {
        *torrent = torrent.clone().with_bytes(1000, 1000, 0).with_status(Status::Seeding);
    }
    while let Some(event) = events.next().await {
        let event = event?;
        println!("{} {:?} {:?}", event.event_type.as_str(), event.cause, event.changes.keys());
        if event.event_type == Kind::Finished {
            break;
        }
    }
    manager.shutdown().await?;
    Ok(())
}

#[tokio::main]
#[allow(dead_code)] // when a test includes this file
async fn main() -> Result<(), Error> {
    run().await
}
