//! One server of a manager: its state, and commands to it.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::{ManagerError, NewTorrent, Shared};
use crate::live_state::ServerHandle;
use crate::model::{
    CommandError, DeletedFiles, Details, ErrorCode, File, InfoHash, Limits, Outcome, OutcomeStatus, Parts, Peer,
    ServerName, Stats, Torrent, Tracker, TrackerChanges, Verb,
};
use crate::port::CommandAddress;

/// Maximum time of waiting for the first full poll of a server.
const FIRST_POLL_TIMEOUT: Duration = Duration::from_secs(30);

/// One server of a [`Manager`](super::Manager).
///
/// Cheap to clone. It keeps nothing running: when the manager has stopped, it returns [`ManagerError::Stopped`].
///
/// A command waits for its turn (commands for one torrent run in order), for an unreachable client (as long as
/// [`Builder::patience`](super::Builder::patience) says), and until its effect is *seen*. Dropping the future does not
/// cancel the command.
#[derive(Clone)]
pub struct Watcher {
    pub(super) server: ServerName,
    pub(super) shared: Arc<Shared>,
}

/// A torrent with the details that a listing does not have.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TorrentDetails {
    /// The torrent, as a listing has it.
    #[serde(flatten)]
    pub torrent: Torrent,
    /// Its files; `None` if they were not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<File>>,
    /// Its trackers; `None` if they were not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trackers: Option<Vec<Tracker>>,
    /// Its peers; `None` if they were not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peers: Option<Vec<Peer>>,
}

/// The state of a server.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ServerStatus {
    /// As in the last event about it: one failed poll does not make it offline.
    pub is_online: bool,
    /// Why the last poll failed; `None` if it did not.
    pub problem: Option<String>,
    /// Totals, as on the stats topic.
    pub stats: Stats,
}

impl Watcher {
    /// Returns the name of the server.
    pub fn server(&self) -> &ServerName {
        &self.server
    }

    /// Returns the state of the server, without asking it.
    pub fn status(&self) -> ServerStatus {
        self.live().read(|server| ServerStatus {
            is_online: server.state.is_online,
            problem: server.poll.failure.clone(),
            stats: Stats::of(server.stats.clone(), server.snapshot.values().map(|one| &*one.torrent)),
        })
    }

    /// Returns all torrents of the snapshot: what events said, and numbers of a few seconds ago. Waits for the first full
    /// poll of the server.
    ///
    /// # Errors
    /// [`ManagerError::Offline`] if it has not answered yet.
    pub async fn get_all(&self) -> Result<Vec<Torrent>, ManagerError> {
        self.wait_for_snapshot().await?;
        Ok(self.live().read(|server| server.snapshot.values().map(|one| (*one.torrent).clone()).collect()))
    }

    /// Reads one torrent from the client, with its files.
    ///
    /// # Errors
    /// [`ManagerError::UnknownHash`], or [`ManagerError::Client`] if the client gave no answer.
    pub async fn get_one(&self, hash: InfoHash) -> Result<TorrentDetails, ManagerError> {
        self.get_parts(hash, Parts { files: true, ..Parts::default() }).await
    }

    /// Reads one torrent from the client, with further parts as requested.
    ///
    /// # Errors
    /// As [`Watcher::get_one`].
    pub async fn get_parts(&self, hash: InfoHash, parts: Parts) -> Result<TorrentDetails, ManagerError> {
        if self.shared.stop.is_cancelled() {
            return Err(ManagerError::Stopped);
        }
        let client = &self.shared.clients[&self.server];
        let details = client.get_one(hash, Parts { torrent: true, ..parts }).await?;
        let Some(Details { observed: Some(observed), files, trackers, peers, .. }) = details else {
            return Err(ManagerError::UnknownHash(hash));
        };
        let mut torrent = observed.torrent;
        // A client does not say for how long nothing has moved; the snapshot compares polls.
        torrent.stalled = self.live().read(|server| server.snapshot.get(&hash).is_some_and(|one| one.torrent.stalled));
        Ok(TorrentDetails { torrent, files, trackers, peers })
    }

    /// Pauses a torrent.
    ///
    /// # Errors
    /// [`ManagerError::Command`] with the reason, as for all that follow.
    pub async fn pause(&self, hash: InfoHash) -> Result<(), ManagerError> {
        self.act(Verb::Pause, Some(hash), json!({})).await.map(drop)
    }

    /// Resumes a paused torrent.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn resume(&self, hash: InfoHash) -> Result<(), ManagerError> {
        self.act(Verb::Resume, Some(hash), json!({})).await.map(drop)
    }

    /// Starts a torrent.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn start(&self, hash: InfoHash) -> Result<(), ManagerError> {
        self.act(Verb::Start, Some(hash), json!({})).await.map(drop)
    }

    /// Stops a torrent.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn stop(&self, hash: InfoHash) -> Result<(), ManagerError> {
        self.act(Verb::Stop, Some(hash), json!({})).await.map(drop)
    }

    /// Removes a torrent from the client; its files stay.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn delete(&self, hash: InfoHash) -> Result<(), ManagerError> {
        self.act(Verb::Delete, Some(hash), json!({})).await.map(drop)
    }

    /// Removes a torrent and its files, as far as they are below [`Server::roots`](super::Server::roots) and no other
    /// torrent has them. Returns which files were deleted and which remain.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn delete_with_data(&self, hash: InfoHash) -> Result<DeletedFiles, ManagerError> {
        let outcome = self.act(Verb::Delete, Some(hash), json!({"data": true})).await?;
        Ok(outcome.results.into_iter().find_map(|row| row.deleted).unwrap_or_default())
    }

    /// Adds a torrent. Returns its info-hash once it was seen there.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn add(&self, torrent: NewTorrent) -> Result<InfoHash, ManagerError> {
        let outcome = self.act(Verb::Add, None, torrent.into_body()).await?;
        let hash = outcome.results.first().map(|row| row.hash);
        hash.ok_or_else(|| CommandError::new(ErrorCode::ClientFault, "the result names no torrent").into())
    }

    /// Verifies (hash-checks) the data. Returns once the check has begun, or is over already.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn recheck(&self, hash: InfoHash) -> Result<(), ManagerError> {
        self.act(Verb::Recheck, Some(hash), json!({})).await.map(drop)
    }

    /// Announces to the trackers now.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn announce(&self, hash: InfoHash) -> Result<(), ManagerError> {
        self.act(Verb::Announce, Some(hash), json!({})).await.map(drop)
    }

    /// Sets the label; an empty one removes it.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn label(&self, hash: InfoHash, label: &str) -> Result<(), ManagerError> {
        self.act(Verb::Label, Some(hash), json!({"label": label})).await.map(drop)
    }

    /// Sets the priority: 0 off, 1 low, 2 normal, 3 high.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn priority(&self, hash: InfoHash, priority: u8) -> Result<(), ManagerError> {
        self.act(Verb::Priority, Some(hash), json!({"priority": priority})).await.map(drop)
    }

    /// Sets the directory of the data; with `data` the files are moved there first.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn move_to(&self, hash: InfoHash, directory: &str, data: bool) -> Result<(), ManagerError> {
        self.act(Verb::Move, Some(hash), json!({"directory": directory, "data": data})).await.map(drop)
    }

    /// Assigns a torrent to a group that shares a limit; an empty name is the global one.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn throttle(&self, hash: InfoHash, group: &str) -> Result<(), ManagerError> {
        self.act(Verb::Throttle, Some(hash), json!({"throttle": group})).await.map(drop)
    }

    /// Sets the priority of files, by their place in the torrent, from 0: 0 off, 1 normal, 2 high.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn file_priority(&self, hash: InfoHash, files: &[u32], priority: u8) -> Result<(), ManagerError> {
        self.act(Verb::FilePriority, Some(hash), json!({"files": files, "priority": priority})).await.map(drop)
    }

    /// Changes the trackers of a torrent. rTorrent cannot remove one, only disable it.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn trackers(&self, hash: InfoHash, changes: &TrackerChanges) -> Result<(), ManagerError> {
        self.act(Verb::Trackers, Some(hash), json!(changes)).await.map(drop)
    }

    /// Sets the rate limits of all torrents together.
    ///
    /// # Errors
    /// As [`Watcher::pause`].
    pub async fn limits(&self, limits: Limits) -> Result<(), ManagerError> {
        self.act(Verb::Limits, None, json!(limits)).await.map(drop)
    }

    /// Executes any command with the arguments that it has on a broker: for one torrent or, with `hashes` or a `filter`
    /// among them, for many. Returns the whole result, also of a command that failed.
    ///
    /// # Errors
    /// [`ManagerError::Stopped`] if there is no result.
    pub async fn command(
        &self,
        verb: Verb,
        hash: Option<InfoHash>,
        mut arguments: Map<String, Value>,
    ) -> Result<Outcome, ManagerError> {
        // In the body, as on a broker, so that the log has it: after a restart the same time applies.
        let ttl = format!("{}ms", self.shared.patience.as_millis());
        arguments.entry("ttl").or_insert(json!(ttl));
        let address = CommandAddress {
            server: Some(self.server.to_string()),
            hash: hash.map(|hash| hash.to_string()),
            verb: verb.as_str().to_owned(),
        };
        let body = Value::Object(arguments).to_string().into();
        let result = self.shared.caller.call(address, body, None, &self.shared.stop).await;
        Ok(result.ok_or(ManagerError::Stopped)?.outcome)
    }

    /// Returns the progress of data that is being verified (see [`NewTorrent::data_file`]): bytes read, and all bytes.
    pub fn checks(&self) -> Vec<(u64, u64)> {
        self.live().checks().values().copied().collect()
    }

    /// Polls now.
    pub fn wake(&self) {
        self.live().wake.notify_one();
    }

    /// Executes a command for one torrent, or for the server, and fails unless it was done as a whole.
    async fn act(&self, verb: Verb, hash: Option<InfoHash>, arguments: Value) -> Result<Outcome, ManagerError> {
        let arguments = match arguments {
            Value::Object(arguments) => arguments,
            _ => Map::new(),
        };
        let outcome = self.command(verb, hash, arguments).await?;
        match (outcome.status, outcome.error) {
            (OutcomeStatus::Ok, error) => Ok(Outcome { error, ..outcome }),
            (_, Some(error)) => Err(error.into()),
            (_, None) => Err(CommandError::new(ErrorCode::ClientFault, "it failed without a reason").into()),
        }
    }

    /// Waits for the first full poll of the server, in this run or an earlier one.
    pub(super) async fn wait_for_snapshot(&self) -> Result<(), ManagerError> {
        let offline = |reason| Err(ManagerError::Offline { server: self.server.clone(), reason });
        // An earlier run's snapshot counts, as after a restart; a failure ends the wait, as it may last.
        let first_poll = self.live().wait_for(|server| match &server.poll.failure {
            _ if server.state.is_known => Some(Ok(())),
            failure => failure.clone().map(offline),
        });
        let polled = self.shared.stop.run_until_cancelled(timeout(FIRST_POLL_TIMEOUT, first_poll)).await;
        polled
            .ok_or(ManagerError::Stopped)?
            .unwrap_or_else(|_| offline("it has not shown all of its torrents yet".to_owned()))
    }

    fn live(&self) -> &ServerHandle {
        self.shared.live.server(&self.server).expect("a watcher is made for a server that there is")
    }
}
