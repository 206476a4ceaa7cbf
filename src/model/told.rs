//! What the world was told, and the tick that tells it more.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Cause, Changes, CommandId, EventId, InfoHash, Kind, Rev, Seq, ServerName, Timestamp, Torrent};

/// What the world was told of every torrent of one server.
pub type Told = BTreeMap<InfoHash, ToldTorrent>;

/// What the world was told of one torrent last.
#[derive(Clone, Debug, PartialEq)]
pub struct ToldTorrent {
    pub torrent: Arc<Torrent>,
    /// Counts up with each change of `torrent`.
    pub rev: Rev,
    /// The newest journal entry about it. A sink that has not got so far must not see the state yet.
    pub last_seq: Seq,
    pub changed_at: Timestamp,
    pub memory: Memory,
}

/// What has to be remembered of a torrent to judge the next look at it. Kept on disk, never shown.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
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
pub struct Tick {
    pub server: ServerName,
    pub time: Timestamp,
    /// The life-cycle events.
    pub facts: Vec<Fact>,
    /// What is told differently from now on; `None` for a torrent that is gone.
    pub changes: BTreeMap<InfoHash, Option<(Arc<Torrent>, Memory)>>,
    /// The new state of the server, if it changed.
    pub state: Option<ServerState>,
}

impl Tick {
    pub fn is_empty(&self) -> bool {
        let Self { server: _, time: _, facts, changes, state } = self;
        facts.is_empty() && changes.is_empty() && state.is_none()
    }
}

/// A life-cycle event before it has its number.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    pub kind: Kind,
    pub cause: Cause,
    pub command_id: Option<CommandId>,
    pub changes: Changes,
    /// As it is now; for `removed` as it was last. `None` for events of a server.
    pub torrent: Option<Arc<Torrent>>,
}

/// A journal entry: an event with its number, in the bytes that every sink gets.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub server: ServerName,
    pub seq: Seq,
    pub id: EventId,
    pub kind: Kind,
    pub hash: Option<InfoHash>,
    /// What the torrent's picture was at after this entry.
    pub rev: Rev,
    pub time: Timestamp,
    pub body: Bytes,
}

/// What a commit made of a tick.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Committed {
    /// The number of the newest journal entry of the server now.
    pub last_seq: Seq,
    /// The new `told` of all that changed; `None` for what is gone.
    pub told: BTreeMap<InfoHash, Option<ToldTorrent>>,
}
