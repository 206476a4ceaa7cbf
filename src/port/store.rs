//! The seams to durable state: [`Journal`], [`SinkStore`] and [`CommandLog`].
//!
//! One SQLite file implements all three, and so does the memory store. What a trait promises is
//! stated on the trait and checked by its conformance suite, which runs on both.
//!
//! "Synced" means on stable storage when the call returns `Ok`. A write that is not synced is
//! visible at once and survives a crash of the process; a power cut may take it. Writes become
//! durable in the order in which they were made, so a synced write covers all earlier ones.
//!
//! No method is cancel-safe unless its documentation says so: a dropped call may or may not have
//! taken effect. Reads have no effect and may be dropped.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use bytes::Bytes;

use super::ReplyTo;
use crate::model::{
    ChangeSet, CommandId, Committed, Epoch, InfoHash, JournalEntry, OutcomeStatus, Rev, Seq, ServerName, ServerState,
    SinkName, Snapshot, Timestamp, Verb,
};

/// The snapshot of every server and the journal of its events, committed together (I1, I3).
///
/// Entries of a server are numbered without gaps from 1 per epoch. The body of an entry is rendered
/// once, in the commit, and is the same bytes ever after (I6). No [`Seq`] and no [`Rev`] is assigned
/// twice in an epoch, whatever is killed.
///
/// An entry that a sink still needs, by the cursors of [`SinkStore::save_progress`], is kept (I4);
/// older ones may go. The one exception is a sink whose delivery is blocked because its dead-letter
/// queue is full: once the journal is at its limit, entries are given up for that sink alone, and a
/// dead letter names the range.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Reads what was last committed for a server; an unknown server is empty, at [`Seq`] 0.
    async fn load(&self, server: &ServerName) -> Result<Loaded, StoreError>;

    /// Commits a change set: the new snapshot rows and the events that lead to them, all or nothing.
    ///
    /// Synced if the change set has events. Returns the journal entries written and the new rows.
    ///
    /// # Errors
    /// [`StoreError::Full`] if the journal's budget or the disk is full; nothing was written. A
    /// change set without events takes no room in the journal.
    async fn commit(&self, change_set: ChangeSet) -> Result<Committed, StoreError>;

    /// Reads the entries of one server that follow `after`, oldest first.
    ///
    /// At most `limit`; a page ends early once it holds [`PageBytes::entries`](crate::model::PageBytes::entries), and is empty only at the end.
    async fn read_after(&self, server: &ServerName, after: Seq, limit: u16) -> Result<Vec<JournalEntry>, StoreError>;

    /// Returns the position of an entry among those of all servers; `None` if it is not in the journal.
    async fn position(&self, server: &ServerName, seq: Seq) -> Result<Option<JournalPosition>, StoreError>;

    /// Reads entries of all servers in the order of their commits; a page ends as that of [`Self::read_after`].
    ///
    /// Begins behind `after`; without it, with the oldest entry in the journal.
    async fn read_all_after(
        &self,
        after: Option<JournalPosition>,
        limit: u16,
    ) -> Result<Vec<(JournalPosition, JournalEntry)>, StoreError>;

    /// Returns the size of the journal, all servers together.
    async fn usage(&self) -> Result<JournalUsage, StoreError>;
}

/// The delivery state of every sink: cursors, dead letters, the registry of retained topics, projection state.
///
/// A sink's cursor holds back the entries behind it, so a sink saves one for a server, if only the one
/// it starts from, before it relies on the entries that follow.
#[async_trait]
pub trait SinkStore: Send + Sync {
    /// Reads everything that is stored of a sink; an unknown sink has the default state.
    async fn load_sink(&self, sink: &SinkName) -> Result<SinkState, StoreError>;

    /// Saves the progress of a sink with some servers. Not synced: after a power cut an earlier one may be read,
    /// and entries are delivered again.
    async fn save_progress(&self, sink: &SinkName, progress: Progress) -> Result<(), StoreError>;

    /// Puts an entry that the sink refused for good into its dead-letter queue, with the reason. Synced.
    ///
    /// An entry that is there already stays as it is, with its first reason.
    ///
    /// # Errors
    /// [`StoreError::Full`] also if the dead-letter queue is full. From then on the sink's delivery counts as
    /// blocked, until a dead letter is taken or the cursor passes the entry.
    async fn add_dead_letter(&self, sink: &SinkName, entry: &JournalEntry, reason: &str) -> Result<(), StoreError>;

    /// Adds topics to the registry of retained topics. Synced, so that nothing is retained that is not registered.
    async fn register_topics(&self, sink: &SinkName, topics: Vec<String>) -> Result<(), StoreError>;

    /// Removes topics whose clearing was acknowledged. Not synced: one that comes back is cleared once more.
    async fn unregister_topics(&self, sink: &SinkName, topics: Vec<String>) -> Result<(), StoreError>;

    /// Sets whether the sink still needs a retained scan. Synced.
    async fn set_retained_scan(&self, sink: &SinkName, scan: Option<RetainedScan>) -> Result<(), StoreError>;

    /// Takes responsibility for what a retained scan found, in one transaction. Synced.
    ///
    /// Registers `topics`, marks each of `servers` as in need of a `journal_reset` unless one was emitted in
    /// this epoch, and makes a pending scan one of this state ([`RetainedScan::is_first_run`] becomes false).
    /// Returns the servers that were marked by this call.
    async fn adopt_retained(
        &self,
        sink: &SinkName,
        topics: Vec<String>,
        servers: Vec<ServerName>,
    ) -> Result<Vec<ServerName>, StoreError>;

    /// Records, for good, that the sink needs strict ordering. Synced.
    async fn set_strict_ordering(&self, sink: &SinkName) -> Result<(), StoreError>;

    /// Saves the state of the sink's projection, in place of an earlier one. Synced.
    async fn save_projection_state(&self, sink: &SinkName, state: String) -> Result<(), StoreError>;
}

/// The commands that were accepted and their results (I12).
///
/// A command is identified by its server (`None`: the bridge itself) and its id. A finished one is
/// remembered for 24 hours from its arrival, within bounds on count and bytes; an unfinished one
/// until it has its result and has ended with the torrents that it began to change.
#[async_trait]
pub trait CommandLog: Send + Sync {
    /// Records commands in their order, in one transaction; those refused at admission with their result. Synced.
    ///
    /// An id that is remembered is not recorded again; its sender gets the same result. Returns one
    /// answer for each command, in the same order.
    ///
    /// # Errors
    /// None of the commands was recorded.
    async fn record_commands(
        &self,
        commands: Vec<(LoggedCommand, Option<LoggedResult>)>,
    ) -> Result<Vec<Recorded>, StoreError>;

    /// Records that a command's actions are about to be applied. Synced.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the command is not in the log.
    async fn start_command(&self, server: Option<&ServerName>, id: &CommandId) -> Result<(), StoreError>;

    /// Records the torrents that a command has begun to change and not ended with, in place of those recorded last. Synced.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the command is not in the log.
    async fn set_begun(
        &self,
        server: Option<&ServerName>,
        id: &CommandId,
        begun: Vec<InfoHash>,
    ) -> Result<(), StoreError>;

    /// Records a command's result and queues it for each sender. Synced. The first result counts; another changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the command is not in the log.
    async fn finish_command(
        &self,
        server: Option<&ServerName>,
        id: &CommandId,
        result: LoggedResult,
    ) -> Result<(), StoreError>;

    /// Reads the result of a command; `None` if it has none yet, or is not in the log.
    async fn result_of(&self, server: Option<&ServerName>, id: &CommandId) -> Result<Option<Bytes>, StoreError>;

    /// Records whether a command runs now, if it is in the log. Not synced, and survives a crash of the process.
    async fn set_running(&self, server: Option<&ServerName>, id: &CommandId, runs: bool) -> Result<(), StoreError>;

    /// Ends the account of an earlier run: unless its end was a clean shutdown, each command that ran then has one more of
    /// [`LoggedCommand::crashes`]. From now on none runs.
    async fn end_earlier_run(&self, was_clean_shutdown: bool) -> Result<(), StoreError>;

    /// Returns the servers of unfinished commands, `None` for the bridge itself.
    async fn servers_with_unfinished_commands(&self) -> Result<BTreeSet<Option<ServerName>>, StoreError>;

    /// Reads unfinished commands of one server, oldest first, those numbered above `after`, each with its number.
    ///
    /// A page ends once its bodies hold [`PageBytes::commands`](crate::model::PageBytes::commands); it is empty only at the end.
    async fn unfinished_commands(
        &self,
        server: Option<&ServerName>,
        after: i64,
    ) -> Result<Vec<(i64, LoggedCommand)>, StoreError>;

    /// Reads the results that a sink has not acknowledged, oldest first, those numbered above `after`.
    ///
    /// At most `limit`; a page ends early once it holds [`Self::results_page_bytes`].
    async fn unsent_results(&self, sink: &SinkName, after: i64, limit: u16) -> Result<Vec<UnsentResult>, StoreError>;

    /// Returns the bytes of results with which a page of them ends.
    fn results_page_bytes(&self) -> usize;

    /// Returns how many results a sink has not acknowledged.
    async fn result_backlog(&self, sink: &SinkName) -> Result<ResultBacklog, StoreError>;

    /// Removes results that were acknowledged, by their numbers. Not synced: one that comes back is sent again.
    async fn mark_results_sent(&self, numbers: Vec<i64>) -> Result<(), StoreError>;
}

/// The durable state of one bridge: all three of its concerns in one place.
pub trait Store: Journal + SinkStore + CommandLog {}

impl<T: Journal + SinkStore + CommandLog> Store for T {}

/// The committed state of one server.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Epoch of the store.
    pub epoch: Epoch,
    /// Snapshot rows of all torrents.
    pub snapshot: Snapshot,
    /// State of the server itself.
    pub state: ServerState,
    /// Number of the newest journal entry, also if that has been trimmed.
    pub last_seq: Seq,
    /// A sink retains messages of this server from a lost state, and no `journal_reset` was emitted in this epoch.
    pub needs_reset: bool,
}

/// The stored state of one sink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkState {
    /// How far the sink has got, by server; empty for a sink that is new to the store.
    pub progress: Progress,
    /// The registry of retained topics.
    pub retained_topics: BTreeSet<String>,
    /// The retained scan that is still to be made or evaluated.
    pub retained_scan: Option<RetainedScan>,
    /// The sink has been seen to defer one event after accepting a later one.
    pub has_strict_ordering: bool,
    /// State of the sink's projection, as it was saved.
    pub projection_state: Option<String>,
}

/// How far one sink has got, by server.
pub type Progress = BTreeMap<ServerName, SinkProgress>;

/// How far one sink has got with one server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkProgress {
    /// The last entry of the unbroken row that is acknowledged, dead-lettered or filtered out.
    pub cursor: Seq,
    /// The revision up to which every state is acknowledged.
    pub sent_rev: Rev,
}

/// A scan for messages that the sink retains from an earlier state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetainedScan {
    /// The store was created in the run that required the scan, so anything found stems from a lost state.
    pub is_first_run: bool,
}

/// The size of the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalUsage {
    /// Entries, all servers together.
    pub entries: u64,
    /// Bytes of their bodies; rows and indexes take more on disk.
    pub bytes: u64,
}

/// A place in the order of all commits. Grows with each entry; none is used twice while the store is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JournalPosition(pub i64);

/// A command as it is recorded: enough to execute it after a crash.
#[derive(Clone, Debug, PartialEq)]
pub struct LoggedCommand {
    /// Id that its sender gave it, or that was made for it.
    pub id: CommandId,
    /// Server to act on; `None` for the bridge itself.
    pub server: Option<ServerName>,
    /// The sink through which it came, and which gets the result.
    pub origin: SinkName,
    /// Torrent to act on, if it names one.
    pub hash: Option<InfoHash>,
    /// `None` if it was refused at admission: only its result is stored.
    pub verb: Option<Verb>,
    /// Arguments, in the bytes that came.
    pub body: Bytes,
    /// Tells another command under the same id from a repetition; `None` if it was logged by a version without digests.
    pub digest: Option<CommandDigest>,
    /// Time of arrival, from which the id is remembered for 24 hours.
    pub received_at: Timestamp,
    /// End of its time to live: it is not started later.
    pub expires_at: Timestamp,
    /// Reply address of the sender, besides the result topic.
    pub reply: Option<ReplyTo>,
    /// Its sender has the right to see passkeys.
    pub sees_secrets: bool,
    /// Its actions may have been applied before a crash.
    pub is_started: bool,
    /// Torrents that it had begun to change and not ended with.
    pub begun: Vec<InfoHash>,
    /// It has its result, and is unfinished only because of `begun`.
    pub is_answered: bool,
    /// Crashes of the bridge while the command ran.
    pub crashes: u32,
}

/// SHA-256 of what a command asks for: verb, torrent and arguments, without id, time to live and reply address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandDigest(pub [u8; 32]);

impl LoggedCommand {
    /// Whether `other`, which has the same id, is another command and no repetition.
    pub fn differs_from(&self, other: Option<CommandDigest>) -> bool {
        matches!((self.digest, other), (Some(one), Some(other)) if one != other)
    }
}

/// The result of a command.
#[derive(Clone, Debug, PartialEq)]
pub struct LoggedResult {
    /// Status, as it stands in the body.
    pub status: OutcomeStatus,
    /// JSON in the bytes that are sent.
    pub body: Bytes,
}

/// Whether a command was recorded.
#[derive(Clone, Debug, PartialEq)]
pub enum Recorded {
    /// Recorded, and to be executed by the caller unless it came with its result.
    New,
    /// The id is being executed: its result goes to this reply address as well.
    Running,
    /// The id is being executed, and too many wait for its result already: this sender gets none.
    WaitersFull,
    /// The id has its result, which is queued again for this reply address.
    Answered,
    /// The id is that of another command: nothing was recorded.
    IdTaken,
}

/// A result that a sink has not acknowledged.
#[derive(Clone, Debug, PartialEq)]
pub struct UnsentResult {
    /// Number by which it is marked as sent; grows with each result and is never used twice.
    pub number: i64,
    /// Server that the command was for; `None` for the bridge itself.
    pub server: Option<ServerName>,
    /// JSON in the bytes to send.
    pub body: Bytes,
    /// Reply address of the sender, besides the result topic.
    pub reply: Option<ReplyTo>,
}

/// The results that a sink has not acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResultBacklog {
    /// Number of results.
    pub count: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
}

/// A failure of the store, by what the caller can do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The disk or a budget is full. Nothing was written; the same call may succeed later.
    #[error("the store is full: {reason}")]
    Full { reason: String },
    /// The stored data cannot be used. Retrying does not help.
    #[error("the state is damaged: {reason}")]
    Corrupt { reason: String },
    /// The store cannot be used, or no longer; a bridge that cannot store stops (I13).
    #[error("cannot use the state")]
    Io(#[source] Box<dyn std::error::Error + Send + Sync>),
}
