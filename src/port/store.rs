//! The seams to the durable state: [`Journal`], [`SinkStore`] and [`CommandLog`].
//!
//! One SQLite file implements all three, and so does the memory store; one conformance suite runs on both.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;

use super::ReplyTo;
use crate::model::{
    ChangeSet, CommandId, Committed, Epoch, InfoHash, JournalEntry, OutcomeStatus, Rev, Seq, ServerName, ServerState,
    SinkName, Snapshot, Timestamp, Verb,
};

/// So many bytes of results are enough at once.
pub const RESULTS_BYTES: usize = 4 << 20;

/// The snapshot of every server and the journal of its events, committed together (I1, I3).
#[async_trait]
pub trait Journal: Send + Sync {
    /// Not there yet: a server begins empty, at seq 0.
    async fn load(&self, server: &ServerName) -> Result<Loaded, StoreError>;

    /// Commits one tick: what it tells, and that it was told.
    ///
    /// When this returns `Ok`, the journal entries of the tick are on stable storage; a tick without
    /// any is written but not synced. Not cancel-safe: a dropped call may or may not have committed.
    ///
    /// # Errors
    /// [`StoreError::Full`] if the journal or the disk has no room; nothing was written then.
    async fn commit(&self, change_set: ChangeSet) -> Result<Committed, StoreError>;

    /// Journal entries after `after`, oldest first, at most `limit`.
    async fn read(&self, server: &ServerName, after: Seq, limit: u16) -> Result<Vec<JournalEntry>, StoreError>;

    /// Where an entry stands among those of all servers; `None` if it is not kept.
    async fn position(&self, server: &ServerName, seq: Seq) -> Result<Option<JournalPosition>, StoreError>;

    /// Entries of all servers in the order of their commits, after this place, at most `limit`; without a
    /// place from the oldest on that is kept.
    async fn read_all_after(
        &self,
        after: Option<JournalPosition>,
        limit: u16,
    ) -> Result<Vec<(JournalPosition, JournalEntry)>, StoreError>;

    /// What an operator wants to know of the journal.
    async fn usage(&self) -> Result<Usage, StoreError>;
}

/// What one sink has been sent and still has to be sent: cursors, dead letters, the registry of retained topics.
#[async_trait]
pub trait SinkStore: Send + Sync {
    /// How far a sink has got with each server.
    async fn progress(&self, sink: &SinkName) -> Result<BTreeMap<ServerName, SinkProgress>, StoreError>;

    /// Notes how far a sink has got. Not synced: after a power cut it may be an earlier note.
    async fn save_progress(
        &self,
        sink: &SinkName,
        progress: BTreeMap<ServerName, SinkProgress>,
    ) -> Result<(), StoreError>;

    /// Puts an entry aside that a sink will never take, with the reason; synced.
    ///
    /// # Errors
    /// [`StoreError::Full`] also if too many of the sink's entries lie there already.
    async fn add_dead_letter(&self, sink: &SinkName, entry: &JournalEntry, reason: &str) -> Result<(), StoreError>;

    /// The names that a sink's far side keeps something under, or may do so.
    async fn retained_topics(&self, sink: &SinkName) -> Result<Vec<String>, StoreError>;
    /// Writes names down, synced, before anything is first sent under them.
    async fn register_topics(&self, sink: &SinkName, names: Vec<String>) -> Result<(), StoreError>;
    /// Crosses names out whose clearing was acknowledged.
    async fn unregister_topics(&self, sink: &SinkName, names: Vec<String>) -> Result<(), StoreError>;

    /// What was found out about a sink.
    async fn sink_notes(&self, sink: &SinkName) -> Result<SinkNotes, StoreError>;
    /// Notes, synced, that what the sink keeps of ours is to be looked for. `is_first_life`: the store was
    /// made in this life, so what is found is of a state that is lost. What was noted before stays.
    async fn require_retained_scan(&self, sink: &SinkName, is_first_life: bool) -> Result<(), StoreError>;
    /// Registers what was found there, synced, and that `strangers`, known there from a state that is lost, owe a
    /// `journal_reset`, as long as none was told in this epoch. Returns those of them that owe it only now. What a later
    /// search finds is of this store.
    async fn adopt_retained(
        &self,
        sink: &SinkName,
        names: Vec<String>,
        strangers: Vec<ServerName>,
    ) -> Result<Vec<ServerName>, StoreError>;
    /// The search is over and nothing depends on it any more. Not synced: it may be made again.
    async fn scan_completed(&self, sink: &SinkName) -> Result<(), StoreError>;
    /// Notes, synced, that the sink has put one event off and may have taken the next.
    async fn note_strict_ordering(&self, sink: &SinkName) -> Result<(), StoreError>;

    /// Returns what a sink's projection wanted to be saved.
    async fn projection_state(&self, sink: &SinkName) -> Result<Option<String>, StoreError>;
    /// Keeps it, synced.
    async fn save_projection_state(&self, sink: &SinkName, projection_state: String) -> Result<(), StoreError>;
}

/// The commands that were accepted and their results (I12).
#[async_trait]
pub trait CommandLog: Send + Sync {
    /// Writes commands down, synced and in their order; those that are refused at the door with their answers, at once.
    /// An id of the last 24 hours is not written again; whoever sends it gets the same result.
    ///
    /// # Errors
    /// None of them was written.
    async fn record_commands(
        &self,
        commands: Vec<(LoggedCommand, Option<LoggedResult>)>,
    ) -> Result<Vec<Recorded>, StoreError>;
    /// The same for one.
    async fn record_command(
        &self,
        command: LoggedCommand,
        answer: Option<LoggedResult>,
    ) -> Result<Recorded, StoreError> {
        let admissions = self.record_commands(vec![(command, answer)]).await?;
        Ok(admissions.into_iter().next().expect("one for each command"))
    }
    /// Notes, synced, that its actions are about to be asked for.
    async fn start_command(&self, server: Option<&ServerName>, id: &CommandId) -> Result<(), StoreError>;
    /// Writes its result down, synced.
    async fn finish_command(
        &self,
        server: Option<&ServerName>,
        id: &CommandId,
        answer: LoggedResult,
    ) -> Result<(), StoreError>;
    /// Commands without a result, oldest first.
    async fn unfinished_commands(&self) -> Result<Vec<LoggedCommand>, StoreError>;
    /// Results that a sink has not taken yet, oldest first, those with a higher number than `after`, at most `limit`;
    /// with [`RESULTS_BYTES`] no more are read.
    async fn unsent_results(&self, sink: &SinkName, after: i64, limit: u16) -> Result<Vec<UnsentResult>, StoreError>;
    /// How much that is.
    async fn result_backlog(&self, sink: &SinkName) -> Result<ResultBacklog, StoreError>;
    /// A sink has taken these.
    async fn mark_results_sent(&self, numbers: Vec<i64>) -> Result<(), StoreError>;
}

/// The durable state of one bridge: all three of its concerns in one place.
pub trait Store: Journal + SinkStore + CommandLog {}

impl<T: Journal + SinkStore + CommandLog> Store for T {}

#[derive(Clone, Debug)]
pub struct Loaded {
    pub epoch: Epoch,
    pub snapshot: Snapshot,
    pub state: ServerState,
    /// The newest journal entry.
    pub last_seq: Seq,
    /// The store is new or had to be made anew: what was told before is lost.
    pub is_new: bool,
    /// A sink knows the server from a state that is lost, and `journal_reset` was not told yet.
    pub needs_reset: bool,
}

/// What was found out about a sink, and holds in later lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkNotes {
    pub search: Option<RetainedScan>,
    /// It has put one event off and may have taken the next.
    pub is_strict_ordering: bool,
}

/// What a sink keeps of ours is to be looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetainedScan {
    /// The store was made in the life that noted it.
    pub is_of_first_life: bool,
}

/// Results that a sink has not taken yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResultBacklog {
    pub count: u64,
    pub bytes: u64,
}

/// Where an entry stands in the order of all commits, among the entries that are kept with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JournalPosition(pub i64);

/// How far one sink has got with one server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkProgress {
    /// Every entry up to here is acknowledged, buried or filtered out.
    pub cursor: Seq,
    /// Every state up to here is acknowledged.
    pub sent_rev: Rev,
}

/// A command as it is written down: enough to carry it out after a crash.
#[derive(Clone, Debug, PartialEq)]
pub struct LoggedCommand {
    pub id: CommandId,
    pub server: Option<ServerName>,
    /// The sink that it came by.
    pub origin: SinkName,
    pub hash: Option<InfoHash>,
    /// `None`: it was refused at the door; only its result is to be kept.
    pub verb: Option<Verb>,
    pub body: Bytes,
    pub received_at: Timestamp,
    pub expires_at: Timestamp,
    pub reply: Option<ReplyTo>,
    /// Its actions may have been asked for before a crash.
    pub is_started: bool,
}

/// The result of a command, in the bytes that are sent.
#[derive(Clone, Debug, PartialEq)]
pub struct LoggedResult {
    pub status: OutcomeStatus,
    pub body: Bytes,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Recorded {
    New,
    /// Being carried out: its result is still to come, to this reply address as well.
    Running,
    /// Being carried out, and too many wait for its result already: this one was not noted.
    WaitersFull,
    /// Done before: the result that was given then is sent again, to this reply address.
    Answered,
}

#[derive(Clone, Debug, PartialEq)]
pub struct UnsentResult {
    pub number: i64,
    pub server: Option<ServerName>,
    pub body: Bytes,
    pub reply: Option<ReplyTo>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub journal_entries: u64,
    pub journal_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No room. Nothing was written, and the same call may succeed later.
    #[error("no room for the journal: {reason}")]
    Full { reason: String },
    #[error("the state is damaged: {reason}")]
    Corrupt { reason: String },
    #[error("cannot use the state")]
    Io(#[source] Box<dyn std::error::Error + Send + Sync>),
}
