//! The snapshot, the change set that advances it, and journal entries.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Cause, Changes, CommandId, Event, EventId, InfoHash, Kind, Rev, Seq, ServerName, Timestamp, Torrent};

/// The last committed state of every torrent of one server.
pub type Snapshot = BTreeMap<InfoHash, SnapshotTorrent>;

/// The last committed state of one torrent.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotTorrent {
    /// The torrent, as state messages show it.
    pub torrent: Arc<Torrent>,
    /// Revision, which grows with each change of `torrent`.
    pub rev: Rev,
    /// Newest journal entry about the torrent. A sink gets the state only once it has acknowledged that entry.
    pub last_seq: Seq,
    /// Time of the last change of `torrent`.
    pub changed_at: Timestamp,
    /// Input for the next comparison.
    pub diff_state: DiffState,
}

/// The knowledge about a torrent that the next comparison needs. Stored with the snapshot, never published.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DiffState {
    /// Identity of this load of the torrent in the client; see [`super::Facts::load`].
    pub load: Option<String>,
    /// Generation of the client in which `load` was seen; see [`ServerState::generation`].
    #[serde(default)]
    pub generation: u64,
    /// The metadata is known: not a magnet link that still asks its peers.
    pub has_metadata: bool,
    /// Bytes received when it was last found incomplete; only bytes that came later count as a download.
    pub received_bytes: u64,
    /// Whether it was complete when last at rest.
    pub completion: Completion,
    /// Whether it ran when last at rest.
    #[serde(rename = "run")]
    pub run_state: RunState,
}

/// Whether the content was complete when the torrent was last seen at rest (not being checked).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Completion {
    /// Being checked ever since it was first seen.
    #[default]
    Unknown,
    /// Some selected content was missing.
    Incomplete,
    /// All selected content was there.
    Complete,
}

/// Whether the torrent ran when it was last seen at rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Being checked ever since it was first seen.
    #[default]
    Unknown,
    /// Stopped.
    Stopped,
    /// Paused.
    Paused,
    /// Downloading, seeding, queued or fetching metadata.
    Running,
}

/// The state of a server that outlives a poll and a run of the bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerState {
    /// A first snapshot was completed.
    pub is_known: bool,
    /// The server answered, by the last `server_online` or `server_offline`.
    pub is_online: bool,
    /// Identity of the client's run that answered last.
    pub run: Option<String>,
    /// Number of client restarts noticed. `run` alone does not tell them apart: in a container the process id
    /// is the same each time.
    #[serde(default)]
    pub generation: u64,
    /// Time since which the client may still be loading its session. Stored, so that a restart of the bridge does
    /// not extend it.
    #[serde(default)]
    pub settling_since: Option<Timestamp>,
}

/// Everything that one poll of a server produced. Committed as a whole or not at all (I1).
#[derive(Clone, Debug, PartialEq)]
pub struct ChangeSet {
    /// Server that was polled.
    pub server: ServerName,
    /// Time of the poll, and of its events.
    pub time: Timestamp,
    /// Events to journal, in order.
    pub events: Vec<NewEvent>,
    /// New snapshot rows; `None` for a torrent that is gone.
    pub changes: BTreeMap<InfoHash, Option<(Arc<Torrent>, DiffState)>>,
    /// New state of the server, if it changed.
    pub state: Option<ServerState>,
}

impl ChangeSet {
    /// Whether there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        let Self { server: _, time: _, events, changes, state } = self;
        events.is_empty() && changes.is_empty() && state.is_none()
    }

    /// Splits the change set into parts of about `events_max` events, each consistent by itself.
    ///
    /// All events and the row of a torrent are in one part; the state of the server is in the first. A change set
    /// that completes a snapshot stays whole, because its last event follows from the state of the server.
    pub fn into_parts(mut self, events_max: usize) -> Vec<Self> {
        // The state goes with the first part: a crash after that would leave a server that is known, without the event.
        if self.events.len() <= events_max || self.events.iter().any(|new_event| new_event.kind == Kind::SnapshotDone) {
            return vec![self];
        }
        let hash = |new_event: &NewEvent| new_event.torrent.as_ref().map(|torrent| torrent.hash);
        let mut parts: Vec<Self> = Vec::new();
        for new_event in std::mem::take(&mut self.events) {
            let is_full =
                |part: &Self| part.events.len() >= events_max && part.events.last().and_then(hash) != hash(&new_event);
            // Not between two events of a torrent: its row is committed with all of them (I1).
            if parts.last().is_none_or(is_full) {
                let (server, time, state) = (self.server.clone(), self.time, self.state.take());
                parts.push(Self { server, time, events: Vec::new(), changes: BTreeMap::new(), state });
            }
            let part = parts.last_mut().expect("there is one by now");
            if let Some(change) = hash(&new_event).and_then(|hash| self.changes.remove_entry(&hash)) {
                part.changes.extend([change]);
            }
            part.events.push(new_event);
        }
        // Rows without an event.
        if let Some(last) = parts.last_mut() {
            last.changes.append(&mut self.changes);
        }
        parts
    }
}

/// An event before it has its number.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    /// Kind of the event.
    pub kind: Kind,
    /// Reason why it is emitted now.
    pub cause: Cause,
    /// The command that caused it.
    pub command_id: Option<CommandId>,
    /// Changed fields of the torrent.
    pub changes: Changes,
    /// The torrent after the event; for `removed` as it last was. `None` for events of a server.
    pub torrent: Option<Arc<Torrent>>,
}

impl NewEvent {
    /// An event of a server.
    pub fn of_server(kind: Kind, cause: Cause) -> Self {
        Self { kind, cause, command_id: None, changes: Changes::new(), torrent: None }
    }

    /// An event of a torrent, with its changed fields.
    pub fn of_torrent(kind: Kind, cause: Cause, torrent: Arc<Torrent>, changes: Changes) -> Self {
        Self { kind, cause, command_id: None, changes, torrent: Some(torrent) }
    }
}

/// A journal entry: an event with its number, in the bytes that every sink gets.
///
/// An entry that this run committed holds the event itself. One that was read back from disk decodes it from the
/// stored bytes, once, when it is first needed.
#[derive(Clone, derive_more::Debug)]
pub struct JournalEntry {
    /// Server of the event.
    #[debug(skip)]
    pub server: ServerName,
    /// Number of the entry.
    #[debug(skip)]
    pub seq: Seq,
    /// Id of the event, which holds server and number as well.
    pub id: EventId,
    /// Kind of the event.
    pub kind: Kind,
    /// The torrent it is about; `None` for an event of a server.
    pub hash: Option<InfoHash>,
    /// Revision of the torrent's snapshot row after this entry; 0 for an event of a server.
    pub rev: Rev,
    /// Time of the event.
    pub time: Timestamp,
    /// The event in JSON, rendered once (I6).
    pub body: Bytes,
    #[debug(skip)]
    event: OnceLock<Arc<Event>>,
}

impl JournalEntry {
    /// Renders an event that has its number.
    ///
    /// # Panics
    /// If the event is an `updated`, which is never journaled.
    pub fn new(event: Event, rev: Rev) -> Self {
        let body = Bytes::from(event.to_json());
        let entry = Self::stored(event.id.clone(), event.event_type, event.hash, rev, event.time, body);
        // The event is kept beside its bytes: readers need not decode what was just written.
        Self { event: OnceLock::from(Arc::new(event)), ..entry }
    }

    /// An entry as it was stored, its bytes not decoded. Server and number are those of its id.
    ///
    /// # Panics
    /// If the id is that of an `updated`, which is never journaled.
    pub fn stored(id: EventId, kind: Kind, hash: Option<InfoHash>, rev: Rev, time: Timestamp, body: Bytes) -> Self {
        let EventId::Journal { server, seq, .. } = &id else { panic!("{id} is not the id of a journal entry") };
        Self { server: server.clone(), seq: *seq, id, kind, hash, rev, time, body, event: OnceLock::new() }
    }

    /// Returns the event.
    ///
    /// # Errors
    /// The stored bytes are not an event of this version.
    pub fn event(&self) -> Result<&Arc<Event>, serde_json::Error> {
        if let Some(event) = self.event.get() {
            return Ok(event);
        }
        let event = serde_json::from_slice(&self.body)?;
        Ok(self.event.get_or_init(|| Arc::new(event)))
    }
}

impl PartialEq for JournalEntry {
    /// Compares the rows; whether the event has been decoded makes no difference.
    fn eq(&self, other: &Self) -> bool {
        // The id determines server and number; the body has kind, hash and time (I6).
        (&self.id, self.rev, &self.body) == (&other.id, other.rev, &other.body)
    }
}

/// The outcome of a commit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Committed {
    /// Number of the server's newest journal entry.
    pub last_seq: Seq,
    /// Journal entries that were written, in order.
    pub entries: Vec<JournalEntry>,
    /// New rows of the torrents that changed; `None` for one that is gone.
    pub snapshot: BTreeMap<InfoHash, Option<SnapshotTorrent>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn torrent(n: u8) -> Arc<Torrent> {
        let json = serde_json::json!({
            "hash": InfoHash::V1([n; 20]), "name": "a", "server": "home", "active": true, "downloaded": 0, "uploaded": 0,
            "length": 1, "progress": 0.0, "finished": false, "playing": false, "extra": {},
            "status": "downloading", "error": false, "stalled": false
        });
        Arc::new(serde_json::from_value(json).unwrap())
    }

    fn new_event(kind: Kind, torrent: Option<u8>) -> NewEvent {
        let torrent = torrent.map(self::torrent);
        NewEvent { kind, cause: Cause::Observed, command_id: None, changes: Changes::new(), torrent }
    }

    fn change_set(events: Vec<NewEvent>, changed: &[u8]) -> ChangeSet {
        let change = |n: &u8| (InfoHash::V1([*n; 20]), Some((torrent(*n), DiffState::default())));
        ChangeSet {
            server: ServerName::parse("home").unwrap(),
            time: Timestamp::from_millis(0),
            events,
            changes: changed.iter().map(change).collect(),
            state: Some(ServerState::default()),
        }
    }

    #[test]
    fn a_large_change_set_is_split_into_consistent_parts() {
        let events = vec![
            new_event(Kind::ServerOnline, None),
            new_event(Kind::Removed, Some(1)),
            new_event(Kind::Added, Some(1)),
            new_event(Kind::Paused, Some(2)),
            new_event(Kind::Stopped, Some(3)),
        ];
        let parts = change_set(events.clone(), &[1, 2, 3, 4]).into_parts(2);
        let shown: Vec<(usize, Vec<u8>, bool)> = parts
            .iter()
            .map(|part| {
                let changed = part.changes.keys().map(|hash| hash.as_bytes()[0]).collect();
                (part.events.len(), changed, part.state.is_some())
            })
            .collect();
        assert_eq!(shown, [(3, vec![1], true), (2, vec![2, 3, 4], false)]);
        let together: Vec<NewEvent> = parts.into_iter().flat_map(|part| part.events).collect();
        assert_eq!(together, events, "in the same order");
    }

    #[test]
    fn a_small_change_set_and_one_that_completes_a_snapshot_stay_whole() {
        let small = change_set(vec![new_event(Kind::Paused, Some(1))], &[1]);
        assert_eq!(small.clone().into_parts(1), [small]);
        let last = change_set(vec![new_event(Kind::Paused, Some(1)), new_event(Kind::SnapshotDone, None)], &[1]);
        assert_eq!(last.clone().into_parts(1), [last]);
    }
}
