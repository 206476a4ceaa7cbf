//! Publication of the list of files of torrents that were added, resolved or finished.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::live_state::LiveState;
use crate::model::{Files, InfoHash, Parts, ServerName, error_chain};
use crate::port::{Delivery, TorrentClient};

/// Pause after reading, in multiples of the time that reading took: a tenth of the client's time is used, so that many
/// torrents that are added at once do not keep it busy.
const PAUSE_FACTOR: u32 = 9;

/// Torrents whose files are to be read and published. Each is in the set once, however often it is wanted.
#[derive(Default)]
pub struct FilePublisher {
    /// Whether somebody receives lists of files.
    pub is_wanted: bool,
    hashes: Mutex<BTreeSet<InfoHash>>,
    arrived: Notify,
}

impl FilePublisher {
    /// An empty set. If nothing is wanted, it stays empty.
    pub fn new(is_wanted: bool) -> Self {
        Self { is_wanted, ..Self::default() }
    }

    /// Adds a torrent.
    pub fn want(&self, hash: InfoHash) {
        if self.is_wanted {
            self.hashes().insert(hash);
            self.arrived.notify_one();
        }
    }

    /// Reads and publishes until `stop`, one torrent at a time.
    pub async fn run(
        &self,
        server: ServerName,
        client: Arc<dyn TorrentClient>,
        live: Arc<LiveState>,
        stop: CancellationToken,
    ) {
        loop {
            let hash = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                hash = self.next() => hash,
            };
            let began = Instant::now();
            let parts = Parts { files: true, ..Parts::default() };
            match client.get_one(hash, parts).await {
                Ok(details) => {
                    // Gone meanwhile: its `removed` comes by itself.
                    if let Some(files) = details.and_then(|details| details.files) {
                        let body = serde_json::to_vec(&Files { hash, files }).expect("files are plain JSON");
                        let body = Bytes::from(body);
                        live.publish_ephemeral(&Delivery::Files { server: server.clone(), hash, body });
                    }
                }
                Err(error) => debug!(%server, %hash, error = error_chain(&error), "reading files failed"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(began.elapsed() * PAUSE_FACTOR) => {}
            }
        }
    }

    /// Waits for the next torrent. Cancel-safe: a torrent leaves the set only when it is returned.
    async fn next(&self) -> InfoHash {
        loop {
            // Bound first, so that the lock is not held while this waits.
            let first = self.hashes().pop_first();
            match first {
                Some(hash) => return hash,
                None => self.arrived.notified().await,
            }
        }
    }

    fn hashes(&self) -> MutexGuard<'_, BTreeSet<InfoHash>> {
        self.hashes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
