//! One server of a manager, to ask and to act on.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::{ManagerError, NewTorrent, Shared};
use crate::live_state::ServerHandle;
use crate::model::{
    CommandError, DeletedFiles, Details, ErrorCode, File, InfoHash, Limits, Outcome, OutcomeStatus, Parts, Peer,
    ServerName, Stats, Torrent, Tracker, Verb,
};
use crate::port::CommandAddress;

/// Maximum time of waiting for the first full poll of a server.
const FIRST_POLL_TIMEOUT: Duration = Duration::from_secs(30);

/// One server of a [`Manager`](super::Manager).
///
/// Cheap to clone. It keeps nothing running: when the manager stops, it answers [`ManagerError::Stopped`].
///
/// A command waits for its turn (commands for one torrent run in order), for a client that is away (as long as
/// [`Builder::patience`](super::Builder::patience) says), and until its effect is *seen*. Who does not wait for the
/// answer does not take the command back.
#[derive(Clone)]
pub struct Watcher {
    pub(super) server: ServerName,
    pub(super) shared: Arc<Shared>,
}

/// A torrent with what a listing does not hold.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TorrentDetails {
    #[serde(flatten)]
    pub torrent: Torrent,
    /// What was not asked for is `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<File>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trackers: Option<Vec<Tracker>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peers: Option<Vec<Peer>>,
}

/// How it is with a server.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ServerStatus {
    /// As it was told: one failed look does not make it offline.
    pub is_online: bool,
    /// Why the last look failed; `None` if it did not.
    pub problem: Option<String>,
    pub stats: Stats,
}

impl Watcher {
    pub fn server(&self) -> &ServerName {
        &self.server
    }

    pub fn status(&self) -> ServerStatus {
        self.live().read(|server| ServerStatus {
            is_online: server.state.is_online,
            problem: server.poll.failure.clone(),
            stats: Stats::of(server.stats.clone(), server.snapshot.values().map(|one| &*one.torrent)),
        })
    }

    /// All torrents, as they were told last: what events said, and numbers of a few seconds ago. Waits for the
    /// first look at the server.
    ///
    /// # Errors
    /// [`ManagerError::Offline`] if it has never answered.
    pub async fn get_all(&self) -> Result<Vec<Torrent>, ManagerError> {
        self.wait_for_snapshot().await?;
        Ok(self.live().read(|server| server.snapshot.values().map(|one| (*one.torrent).clone()).collect()))
    }

    /// One torrent as the client has it now, with its files.
    ///
    /// # Errors
    /// [`ManagerError::UnknownHash`], or [`ManagerError::Client`] if the client gave no answer.
    pub async fn get_one(&self, hash: InfoHash) -> Result<TorrentDetails, ManagerError> {
        self.get_parts(hash, Parts { files: true, ..Parts::default() }).await
    }

    /// One torrent as the client has it now, with the parts that are asked for.
    ///
    /// # Errors
    /// As [`Watcher::get_one`].
    pub async fn get_parts(&self, hash: InfoHash, parts: Parts) -> Result<TorrentDetails, ManagerError> {
        if self.shared.stop.is_cancelled() {
            return Err(ManagerError::Stopped);
        }
        let client = &self.shared.clients[&self.server];
        let details = client.get_one(hash, parts).await?.ok_or(ManagerError::UnknownHash(hash))?;
        let Details { observed, files, trackers, peers, .. } = details;
        let mut torrent = observed.torrent;
        // Only the snapshot knows for how long nothing has moved.
        torrent.stalled = self.live().read(|server| server.snapshot.get(&hash).is_some_and(|one| one.torrent.stalled));
        Ok(TorrentDetails { torrent, files, trackers, peers })
    }

    /// # Errors
    /// [`ManagerError::Command`] with what became of it, as for all that follow.
    pub async fn pause(&self, hash: InfoHash) -> Result<(), ManagerError> {
        self.act(Verb::Pause, hash, json!({})).await.map(drop)
    }

    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn resume(&self, hash: InfoHash) -> Result<(), ManagerError> {
        self.act(Verb::Resume, hash, json!({})).await.map(drop)
    }

    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn start(&self, hash: InfoHash) -> Result<(), ManagerError> {
        self.act(Verb::Start, hash, json!({})).await.map(drop)
    }

    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn stop(&self, hash: InfoHash) -> Result<(), ManagerError> {
        self.act(Verb::Stop, hash, json!({})).await.map(drop)
    }

    /// Removes the torrent from the client; its content stays.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn delete(&self, hash: InfoHash) -> Result<(), ManagerError> {
        self.act(Verb::Delete, hash, json!({})).await.map(drop)
    }

    /// Removes the torrent and its files, as far as they are below [`Server::roots`](super::Server::roots), its own,
    /// and no other torrent's. Returns what became of them.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn delete_with_data(&self, hash: InfoHash) -> Result<DeletedFiles, ManagerError> {
        let outcome = self.act(Verb::Delete, hash, json!({"data": true})).await?;
        Ok(outcome.results.into_iter().find_map(|row| row.deleted).unwrap_or_default())
    }

    /// Adds a torrent. Returns its info-hash when it was seen there.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn add(&self, torrent: NewTorrent) -> Result<InfoHash, ManagerError> {
        let outcome = done(self.command(Verb::Add, None, torrent.into_body()).await?)?;
        let hash = outcome.results.first().map(|row| row.hash);
        hash.ok_or_else(|| CommandError::new(ErrorCode::ClientFault, "the result names no torrent").into())
    }

    /// Has the content compared with the torrent. Returns when that has begun, or is over already.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn recheck(&self, hash: InfoHash) -> Result<(), ManagerError> {
        self.act(Verb::Recheck, hash, json!({})).await.map(drop)
    }

    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn announce(&self, hash: InfoHash) -> Result<(), ManagerError> {
        self.act(Verb::Announce, hash, json!({})).await.map(drop)
    }

    /// An empty label takes it away.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn label(&self, hash: InfoHash, label: &str) -> Result<(), ManagerError> {
        self.act(Verb::Label, hash, json!({"label": label})).await.map(drop)
    }

    /// 0 off, 1 low, 2 normal, 3 high.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn priority(&self, hash: InfoHash, priority: u8) -> Result<(), ManagerError> {
        self.act(Verb::Priority, hash, json!({"priority": priority})).await.map(drop)
    }

    /// Has the content looked for in another folder, and moved there first if `data` says so.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn move_to(&self, hash: InfoHash, directory: &str, data: bool) -> Result<(), ManagerError> {
        self.act(Verb::Move, hash, json!({"directory": directory, "data": data})).await.map(drop)
    }

    /// Puts it into a group that shares a limit; an empty name stands for the global one.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn throttle(&self, hash: InfoHash, group: &str) -> Result<(), ManagerError> {
        self.act(Verb::Throttle, hash, json!({"throttle": group})).await.map(drop)
    }

    /// Files by their place in the torrent, from 0: 0 off, 1 normal, 2 high.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn file_priority(&self, hash: InfoHash, files: &[u32], priority: u8) -> Result<(), ManagerError> {
        self.act(Verb::FilePriority, hash, json!({"files": files, "priority": priority})).await.map(drop)
    }

    /// Limits for all torrents together.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn limits(&self, limits: Limits) -> Result<(), ManagerError> {
        let Limits { download, upload } = limits;
        let body = object(json!({"download_limit": download, "upload_limit": upload}));
        done(self.command(Verb::Limits, None, body).await?).map(drop)
    }

    /// Any command in the words of the wire, to one torrent or, with `hashes` or a `filter` in its arguments, to many;
    /// with its whole result, also where that says that it failed.
    ///
    /// # Errors
    /// [`ManagerError::Stopped`] if there is no result.
    pub async fn command(
        &self,
        verb: Verb,
        hash: Option<InfoHash>,
        mut arguments: Map<String, Value>,
    ) -> Result<Outcome, ManagerError> {
        let ttl = format!("{}ms", self.shared.patience.as_millis());
        arguments.entry("ttl").or_insert(json!(ttl));
        let address = CommandAddress {
            server: Some(self.server.to_string()),
            hash: hash.map(|hash| hash.to_string()),
            verb: verb.as_str().to_owned(),
        };
        let body = Value::Object(arguments).to_string().into();
        let result = self.shared.caller.call(address, body, None, &self.shared.stop).await;
        let result = result.ok_or(ManagerError::Stopped)?;
        Ok(serde_json::from_slice(&result).expect("it is written as it is read"))
    }

    /// How far the content is that commands are checking (see [`NewTorrent::data_file`]): bytes read, and all.
    pub fn checks(&self) -> Vec<(u64, u64)> {
        self.live().checks().values().copied().collect()
    }

    /// Looks now, not at the next beat.
    pub fn wake(&self) {
        self.live().wake.notify_one();
    }

    async fn act(&self, verb: Verb, hash: InfoHash, arguments: Value) -> Result<Outcome, ManagerError> {
        done(self.command(verb, Some(hash), object(arguments)).await?)
    }

    /// Waits for the first full poll of the server, in this run or an earlier one.
    pub(super) async fn wait_for_snapshot(&self) -> Result<(), ManagerError> {
        let offline = |reason| Err(ManagerError::Offline { server: self.server.clone(), reason });
        let first_poll = self.live().wait_for(|server| match &server.poll.failure {
            _ if server.state.is_known => Some(Ok(())),
            failure => failure.clone().map(offline),
        });
        tokio::select! {
            biased;
            polled = timeout(FIRST_POLL_TIMEOUT, first_poll) => {
                polled.unwrap_or_else(|_| offline("it has not shown all of its torrents yet".to_owned()))
            }
            () = self.shared.stop.cancelled() => Err(ManagerError::Stopped),
        }
    }

    fn live(&self) -> &ServerHandle {
        self.shared.live.server(&self.server).expect("a watcher is made for a server that there is")
    }
}

fn object(arguments: Value) -> Map<String, Value> {
    match arguments {
        Value::Object(arguments) => arguments,
        _ => Map::new(),
    }
}

/// What was done; an error if that is not all that was asked for.
fn done(outcome: Outcome) -> Result<Outcome, ManagerError> {
    match (outcome.status, &outcome.error) {
        (OutcomeStatus::Ok, _) => Ok(outcome),
        (_, Some(error)) => Err(error.clone().into()),
        (_, None) => Err(CommandError::new(ErrorCode::ClientFault, "it failed without a reason").into()),
    }
}
