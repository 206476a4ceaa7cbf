//! What the world was told, and the tick that tells it more.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Cause, Changes, CommandId, Event, EventId, InfoHash, Kind, Rev, Seq, ServerName, Timestamp, Torrent};

/// What the world was told of every torrent of one server.
pub type Snapshot = BTreeMap<InfoHash, SnapshotTorrent>;

/// What the world was told of one torrent last.
#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotTorrent {
    pub torrent: Arc<Torrent>,
    /// Counts up with each change of `torrent`.
    pub rev: Rev,
    /// The newest journal entry about it. A sink that has not got so far must not see the state yet.
    pub last_seq: Seq,
    pub changed_at: Timestamp,
    pub diff_state: DiffState,
}

/// What has to be remembered of a torrent to judge the next look at it. Kept on disk, never shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DiffState {
    /// See [`super::Facts::load`].
    pub load: Option<String>,
    /// The generation of the client in which `load` was seen; see [`ServerState`].
    #[serde(default)]
    pub generation: u64,
    pub has_metadata: bool,
    /// What had been received when it was found incomplete; a download is what came after that.
    pub received_bytes: u64,
    pub completion: Completion,
    pub run: Run,
}

/// Whether the content was here when the torrent was last seen at rest (not being checked).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Completion {
    /// It was being checked ever since it was first seen.
    #[default]
    Unknown,
    Incomplete,
    Complete,
}

/// Whether the torrent ran when it was last seen at rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Run {
    /// It was being checked ever since it was first seen.
    #[default]
    Unknown,
    Stopped,
    Paused,
    Running,
}

/// What is remembered of a server between two ticks and two lives of the bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerState {
    /// A first snapshot was told.
    pub is_known: bool,
    pub is_online: bool,
    /// The run of the client that answered last.
    pub run: Option<String>,
    /// How many restarts of the client were noticed. A run may have the name of an earlier one: in
    /// a container the process id is the same each time.
    #[serde(default)]
    pub generation: u64,
    /// Since when it may still be loading its session, which a restart of the bridge does not begin anew.
    #[serde(default)]
    pub settling_since: Option<Timestamp>,
}

/// Everything that one look at a server has to tell, in order. It is committed whole or not at all.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangeSet {
    pub server: ServerName,
    pub time: Timestamp,
    /// The life-cycle events.
    pub events: Vec<NewEvent>,
    /// What is told differently from now on; `None` for a torrent that is gone.
    pub changes: BTreeMap<InfoHash, Option<(Arc<Torrent>, DiffState)>>,
    /// The new state of the server, if it changed.
    pub state: Option<ServerState>,
}

impl ChangeSet {
    pub fn is_empty(&self) -> bool {
        let Self { server: _, time: _, events, changes, state } = self;
        events.is_empty() && changes.is_empty() && state.is_none()
    }
}

impl ChangeSet {
    /// The same in parts of about `facts_max` events, each of which is true by itself: whatever is told of a torrent
    /// is in one of them, and what is known of the server is in the first.
    ///
    /// A tick that ends a snapshot stays whole: that it has ended is known of the server, and told last.
    pub fn into_parts(mut self, facts_max: usize) -> Vec<Self> {
        if self.events.len() <= facts_max || self.events.iter().any(|new_event| new_event.kind == Kind::SnapshotDone) {
            return vec![self];
        }
        let hash = |new_event: &NewEvent| new_event.torrent.as_ref().map(|torrent| torrent.hash);
        let mut parts: Vec<Self> = Vec::new();
        for new_event in std::mem::take(&mut self.events) {
            let is_full =
                |part: &Self| part.events.len() >= facts_max && part.events.last().and_then(hash) != hash(&new_event);
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
        // What no event tells of.
        if let Some(last) = parts.last_mut() {
            last.changes.append(&mut self.changes);
        }
        parts
    }
}

/// A life-cycle event before it has its number.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEvent {
    pub kind: Kind,
    pub cause: Cause,
    pub command_id: Option<CommandId>,
    pub changes: Changes,
    /// As it is now; for `removed` as it was last. `None` for events of a server.
    pub torrent: Option<Arc<Torrent>>,
}

/// A journal entry: an event with its number, in the bytes that every sink gets.
///
/// The event itself is at hand in the run that committed the entry. Of an entry that was read back from disk it is decoded
/// from the stored bytes when somebody asks for it, once.
#[derive(Clone)]
pub struct JournalEntry {
    pub server: ServerName,
    pub seq: Seq,
    pub id: EventId,
    pub kind: Kind,
    /// The torrent it is about; `None` for an event of a server.
    pub hash: Option<InfoHash>,
    /// The revision of the torrent's snapshot after this entry.
    pub rev: Rev,
    pub time: Timestamp,
    pub body: Bytes,
    event: OnceLock<Arc<Event>>,
}

impl JournalEntry {
    /// Renders an event that was given its number.
    ///
    /// # Panics
    /// If the event is an `updated`, which is never journaled.
    pub fn new(event: Event, rev: Rev) -> Self {
        let body = Bytes::from(event.to_json());
        let event = Arc::new(event);
        let entry = Self::stored(event.id.clone(), event.event_type, event.hash, rev, event.time, body);
        entry.event.get_or_init(|| event);
        entry
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

impl fmt::Debug for JournalEntry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server: _, seq: _, id, kind, hash, rev, time, body, event: _ } = self;
        let mut entry = out.debug_struct("JournalEntry");
        entry.field("id", id).field("kind", kind).field("hash", hash).field("rev", rev);
        entry.field("time", time).field("body", body).finish_non_exhaustive()
    }
}

impl PartialEq for JournalEntry {
    /// Two entries are the same if their rows are; whether one was decoded already makes no difference.
    fn eq(&self, other: &Self) -> bool {
        let Self { server, seq, id, kind, hash, rev, time, body, event: _ } = self;
        (server, seq, id, kind, hash) == (&other.server, &other.seq, &other.id, &other.kind, &other.hash)
            && (rev, time, body) == (&other.rev, &other.time, &other.body)
    }
}

/// The outcome of one commit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Committed {
    /// The number of the newest journal entry of the server now.
    pub last_seq: Seq,
    /// The journal entries that were written, in order.
    pub entries: Vec<JournalEntry>,
    /// The new snapshot of all torrents that changed; `None` for those that are gone.
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
    fn a_large_tick_comes_in_parts_that_keep_what_belongs_together() {
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
    fn a_small_tick_and_one_that_ends_a_snapshot_stay_whole() {
        let small = change_set(vec![new_event(Kind::Paused, Some(1))], &[1]);
        assert_eq!(small.clone().into_parts(1), [small]);
        let last = change_set(vec![new_event(Kind::Paused, Some(1)), new_event(Kind::SnapshotDone, None)], &[1]);
        assert_eq!(last.clone().into_parts(1), [last]);
    }
}
