//! The seams between the engine and what it is plugged into.
//!
//! The engine (diff, watch, deliver, commands) and the adapters (clients, sinks, store) know this
//! file and the model, never each other. Adapters say what went wrong in the terms of these error
//! types; whether to try again is the engine's decision alone, so no adapter retries.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Notify;

use crate::model::{
    Action, CommandId, Committed, Details, Entry, Epoch, EventId, File, Hook, HookKey, InfoHash, Limits, Listing,
    OutcomeStatus, Parts, Rev, Seq, ServerName, ServerState, ServerStats, SinkName, Tick, Timestamp, Told, Verb,
};

// --- torrent clients -----------------------------------------------------------------------------

/// One torrent program, as the engine sees it.
///
/// An implementation keeps at most one exchange under way, ends each within its own deadline, and
/// is shared by a watcher and a worker.
#[async_trait]
pub trait TorrentClient: Send + Sync {
    /// Reads all torrents, or those that may have changed since the last call.
    ///
    /// A client asked for changes may always answer with all, and has to when it cannot know what
    /// changed: after a failure, in another run, when torrents came or went.
    ///
    /// # Errors
    /// An answer that cannot be trusted as a whole is an error, never a short listing.
    async fn list(&self, scope: Scope<'_>) -> Result<Listing, ClientError>;

    /// Reads one torrent as it is now; `None` if the client has no such torrent.
    async fn get(&self, hash: InfoHash, parts: Parts) -> Result<Option<Details>, ClientError>;

    /// Reads the files of one torrent; `None` if the client has no such torrent.
    ///
    /// For clients to which that is less than everything about it.
    async fn files(&self, hash: InfoHash) -> Result<Option<Vec<File>>, ClientError> {
        let parts = Parts { files: true, ..Parts::default() };
        Ok(self.get(hash, parts).await?.map(|details| details.files.unwrap_or_default()))
    }

    /// Asks for `action`. Whether it took effect is for the next look to show.
    ///
    /// Safe to call for what is already so. Waits, within its deadline, for what the client must
    /// not be asked at the moment.
    ///
    /// # Errors
    /// [`ClientError::Busy`] if that takes longer: nothing was asked then.
    async fn apply(&self, action: &Action) -> Result<Applied, ClientError>;

    /// Asks for several actions, with as few exchanges as it can; for each its answer.
    ///
    /// Does not wait for what must not be asked now: that is busy.
    async fn apply_all(&self, actions: &[Action]) -> Vec<Result<Applied, ClientError>> {
        let mut answers = Vec::with_capacity(actions.len());
        for action in actions {
            answers.push(self.apply(action).await);
        }
        answers
    }

    /// Reads several torrents, with as few exchanges as it can; `None` for one that it does not have.
    async fn get_all(&self, hashes: &[InfoHash], parts: Parts) -> Result<Vec<Option<Details>>, ClientError> {
        let mut found = Vec::with_capacity(hashes.len());
        for hash in hashes {
            found.push(self.get(*hash, parts).await?);
        }
        Ok(found)
    }

    /// Sets the limits of all torrents together, and reads them back.
    async fn set_limits(&self, _limits: Limits) -> Result<(), ClientError> {
        Err(ClientError::Unsupported { what: "limit its rates".to_owned() })
    }

    /// Calls one of the methods that its config allows.
    async fn call(&self, _method: &str, _params: &[Value]) -> Result<Value, ClientError> {
        Err(ClientError::Unsupported { what: "be called in its own words".to_owned() })
    }

    /// Has the client ring a bell of ours when something happens in it, or leave off; says how it is then.
    ///
    /// What is so already is not asked for again. A client that has no such thing needs not know of it.
    async fn hooks(&self, _wish: HookWish<'_>) -> Result<Hooks, ClientError> {
        Err(ClientError::Unsupported { what: "tell of events by itself".to_owned() })
    }
}

/// What a look is to show.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Scope<'a> {
    Full,
    /// At least what moves or has changed its state, as far as the client can tell cheaply, and these.
    Changed {
        named: &'a BTreeSet<InfoHash>,
    },
}

/// How far an action got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Applied {
    /// Asked for; the effect is to be looked for in the listing.
    Asked,
    /// The client was read again and showed the effect, which a listing may never show
    /// (a re-check that is over at once, an announce).
    Seen,
}

/// What is to become of our hooks in a client.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum HookWish<'a> {
    /// Only say how it is.
    Look(&'a HookKey),
    /// Ring there from now on, and nowhere else by this key.
    Set(&'a Hook),
    /// Ring no more.
    Take(&'a HookKey),
}

/// How a client is hooked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hooks {
    /// The events that ring, in the client's words.
    pub ringing: Vec<&'static str>,
    /// The events that must not be touched: what else hangs there makes it dangerous.
    pub left_alone: Vec<&'static str>,
    /// How many were changed just now.
    pub changed: usize,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody answers at the address.
    #[error("cannot reach {address}")]
    Unreachable { address: String, source: Box<dyn std::error::Error + Send + Sync> },
    /// What was asked for may still have been done.
    #[error("no complete answer within {limit:?}")]
    Timeout { limit: Duration },
    #[error("access denied: {reason}")]
    Unauthorized { reason: String },
    /// The answer is not what a client of this kind says; nothing of it is believed.
    #[error("answer not understood: {reason}")]
    Protocol { reason: String },
    /// The client refused, in its own words.
    #[error("the client refused: {message}")]
    Fault { message: String },
    /// The client has no such torrent.
    #[error("the client has no torrent {0}")]
    UnknownHash(InfoHash),
    /// It cannot be done in the torrent's present state; says what would have to be different.
    #[error("{reason}")]
    Precondition { reason: String },
    /// It must not be asked now, and may be later; nothing was asked.
    #[error("{reason}")]
    Busy { reason: String },
    #[error("this client cannot {what}")]
    Unsupported { what: String },
}

// --- sinks ---------------------------------------------------------------------------------------

/// A receiver of events: a broker or a webhook.
#[async_trait]
pub trait Sink: Send + Sync {
    /// One attempt to connect. Trying again is the dispatcher's business, never the library's.
    async fn connect(&self) -> Result<Connected, DeliverError>;

    /// The name under which the far side keeps this delivery until it is cleared; `None` if it keeps nothing.
    ///
    /// The dispatcher writes it down before the delivery is first sent.
    fn kept_as(&self, delivery: &Delivery) -> Option<String>;

    /// Names that the sink keeps something under by itself: its status, say.
    fn own_names(&self) -> Vec<String>;

    /// Under which names the far side keeps something of these servers already.
    ///
    /// Asked of a sink that is new to the store, until it could be answered: the state may have been lost, or
    /// the sink may have had another name. A sink that cannot tell, or keeps nothing, has found nothing.
    async fn find_kept(&self, _servers: &[ServerName]) -> Result<BTreeMap<ServerName, Vec<String>>, DeliverError> {
        Ok(BTreeMap::new())
    }

    /// Whether a delivery is for this sink; what is not counts as dealt with, and is not sent.
    fn wants(&self, _delivery: &Delivery) -> bool {
        true
    }

    /// What the sink shows of the servers beside events and states; made anew for each life of a dispatcher.
    fn companion(&self) -> Option<Box<dyn Companion>> {
        None
    }

    /// Whether it has put one event off and may have taken the next. From then on, and in all later lives, those of
    /// a server go one at a time.
    fn is_careful(&self) -> bool {
        false
    }

    /// An earlier life has found that out.
    fn be_careful(&self) {}

    /// What its users should know of how it delivers, one sentence each; shown with its health.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Makes further messages for a sink out of what was told, each in its own time.
///
/// It does nothing by itself: it is shown servers and events, and asked what is due. Times are since
/// the beginning of its life. What it must not forget it hands out as a text, which is on stable
/// storage before anything is sent that [`Companion::next`] returned after it.
pub trait Companion: Send + Sync {
    /// Takes back what [`Companion::memory`] gave in an earlier life.
    fn remember(&mut self, memory: &str);

    /// A text to be kept, if it is due; `is_last`: the connection ends, and later may be never.
    fn memory(&mut self, at: Duration, is_last: bool) -> Option<String>;

    /// The names under which it keeps something, or soon will.
    fn names(&self) -> Vec<String>;

    /// There is a new connection: all is to be said again.
    fn begin(&mut self, at: Duration);

    /// The sink took this event.
    fn heard(&mut self, entry: &Entry, at: Duration);

    /// Something about this server was told.
    fn touch(&mut self, server: &ServerName);

    /// Whether it is time to look at this server.
    fn wants(&self, server: &ServerName, at: Duration) -> bool;

    fn look(&mut self, server: &ServerName, view: View<'_>, at: Duration);

    /// The next message that is due: a [`Delivery::Shown`] or a [`Delivery::Clear`].
    fn next(&mut self, at: Duration) -> Option<Delivery>;

    /// The sink took what it was shown under this topic.
    fn taken(&mut self, topic: &str);

    /// When something is due without news, at the latest.
    fn wake_at(&self, at: Duration) -> Duration;

    /// Woken when the far side has news for it.
    fn news(&self) -> Arc<Notify>;
}

/// What is known of one server.
pub struct View<'a> {
    pub told: &'a Told,
    pub state: &'a ServerState,
    pub stats: &'a ServerStats,
    /// How long the last look took, and how long ago the last good one was.
    pub poll: Duration,
    pub poll_age: Option<Duration>,
    /// Why the last look failed; `None` if it did not.
    pub problem: Option<&'a str>,
}

/// One connection: what sends on it, and what makes it run.
pub struct Connected {
    pub link: Box<dyn Link>,
    /// Runs the connection and ends, with the reason, when it is over. Nothing moves unless it is polled.
    pub drive: BoxFuture<'static, DeliverError>,
}

/// One connection to a sink. The first failure ends it, and all that was under way fails with it.
#[async_trait]
pub trait Link: Send {
    /// How many deliveries may be under way at once.
    fn depth(&self) -> usize;

    /// How large the body of a result may be that it takes in one piece; `None`: it takes results whole.
    fn result_bytes_max(&self) -> Option<usize> {
        None
    }

    /// Sends in call order. The future ends when the far side has taken responsibility, or the link is over.
    ///
    /// Never waits itself: the caller keeps to `depth`.
    fn send(&mut self, delivery: Delivery) -> BoxFuture<'static, Result<(), DeliverError>>;

    /// Says goodbye in the sink's own way; `drive` has to be polled meanwhile.
    async fn close(self: Box<Self>) -> Result<(), DeliverError>;
}

/// Something for a sink. Bodies are the bytes on the wire.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Delivery {
    /// A journal entry.
    Event(Entry),
    /// The conflated event.
    Updated {
        server: ServerName,
        hash: InfoHash,
        id: EventId,
        time: Timestamp,
        body: Bytes,
    },
    /// The torrent as told. `keep`: whoever comes later shall see it too.
    State {
        server: ServerName,
        hash: InfoHash,
        body: Bytes,
        keep: bool,
    },
    Files {
        server: ServerName,
        hash: InfoHash,
        body: Bytes,
    },
    ServerStatus {
        server: ServerName,
        is_online: bool,
    },
    Stats {
        server: ServerName,
        body: Bytes,
    },
    /// Version, servers, limits.
    Info {
        body: Bytes,
    },
    Health {
        body: Bytes,
    },
    /// The result of a command; `server` is `None` for one to the bridge itself.
    Result {
        server: Option<ServerName>,
        body: Bytes,
        reply: Option<ReplyTo>,
    },
    /// A message of the sink's [`Companion`]. `keep`: whoever comes later shall see it too.
    Shown {
        topic: String,
        body: Bytes,
        keep: bool,
    },
    /// Take back what is kept under this name.
    Clear {
        name: String,
    },
}

#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeliverError {
    /// The far side is not there or the connection broke: everything unacknowledged is to be sent again.
    #[error("{reason}")]
    Unavailable { reason: String, retry_after: Option<Duration> },
    /// The far side will never take this one.
    #[error("rejected: {reason}")]
    Rejected { reason: String },
}

impl DeliverError {
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into(), retry_after: None }
    }
}

// --- commands ------------------------------------------------------------------------------------

/// Where commands come from.
#[async_trait]
pub trait CommandSource: Send {
    /// Waits for the next command, connecting first if there is no connection (one attempt).
    ///
    /// Cancel-safe: a message is handed over whole or comes again.
    ///
    /// # Errors
    /// The connection could not be made or is over; the next call makes a new one.
    async fn next(&mut self) -> Result<Incoming, DeliverError>;

    /// No more is wanted until `next` is called again: the far side is to keep what comes meanwhile, and to be
    /// told at once what was acknowledged. A source that nothing can wait in has nothing to do.
    async fn pause(&mut self) {}
}

/// A message that wants to be a command. Nothing in it is checked yet.
pub struct Incoming {
    pub address: CommandAddress,
    pub body: Bytes,
    /// The broker kept it for whoever comes: it is never carried out.
    pub is_retained: bool,
    /// It may have waited at the broker while nobody took it. How long, the broker does not tell.
    pub may_have_waited: bool,
    /// How much longer its sender wants it done; `None` for no word about that.
    pub expires_in: Option<Duration>,
    pub reply: Option<ReplyTo>,
    /// Who the sender says it is; not proven, for the log alone.
    pub user: Option<String>,
    /// Tells the source that the command is safe in the log; until then it comes again.
    pub ack: Box<dyn FnOnce() + Send>,
}

/// The words of a topic, not checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandAddress {
    /// `None`: the bridge itself.
    pub server: Option<String>,
    pub hash: Option<String>,
    pub verb: String,
}

/// Where the sender of a command wants its answer, besides the result topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyTo {
    pub topic: String,
    pub correlation: Option<Vec<u8>>,
}

// --- the store -----------------------------------------------------------------------------------

/// The durable state: told, journal, cursors, the registry of what sinks keep, the command log.
/// So many bytes of results are enough at once.
pub const RESULTS_BYTES: usize = 4 << 20;

#[async_trait]
pub trait Store: Send + Sync {
    /// Not there yet: a server begins empty, at seq 0.
    async fn load(&self, server: &ServerName) -> Result<Loaded, StoreError>;

    /// Commits one tick: what it tells, and that it was told.
    ///
    /// When this returns `Ok`, the journal entries of the tick are on stable storage; a tick without
    /// any is written but not synced. Not cancel-safe: a dropped call may or may not have committed.
    ///
    /// # Errors
    /// [`StoreError::Full`] if the journal or the disk has no room; nothing was written then.
    async fn commit(&self, tick: Tick) -> Result<Committed, StoreError>;

    /// Journal entries after `after`, oldest first, at most `limit`.
    async fn read(&self, server: &ServerName, after: Seq, limit: u16) -> Result<Vec<Entry>, StoreError>;

    /// Where an entry stands among those of all servers; `None` if it is not kept.
    async fn place(&self, server: &ServerName, seq: Seq) -> Result<Option<Place>, StoreError>;

    /// Entries of all servers in the order of their commits, after this place, at most `limit`; without a
    /// place from the oldest on that is kept.
    async fn read_on(&self, after: Option<Place>, limit: u16) -> Result<Vec<(Place, Entry)>, StoreError>;

    /// How far a sink has got with each server.
    async fn progress(&self, sink: &SinkName) -> Result<BTreeMap<ServerName, Progress>, StoreError>;

    /// Notes how far a sink has got. Not synced: after a power cut it may be an earlier note.
    async fn settle(&self, sink: &SinkName, progress: BTreeMap<ServerName, Progress>) -> Result<(), StoreError>;

    /// Puts an entry aside that a sink will never take, with the reason; synced.
    ///
    /// # Errors
    /// [`StoreError::Full`] also if too many of the sink's entries lie there already.
    async fn bury(&self, sink: &SinkName, entry: &Entry, reason: &str) -> Result<(), StoreError>;

    /// The names that a sink's far side keeps something under, or may do so.
    async fn registry(&self, sink: &SinkName) -> Result<Vec<String>, StoreError>;
    /// Writes names down, synced, before anything is first sent under them.
    async fn register(&self, sink: &SinkName, names: Vec<String>) -> Result<(), StoreError>;
    /// Crosses names out whose clearing was acknowledged.
    async fn unregister(&self, sink: &SinkName, names: Vec<String>) -> Result<(), StoreError>;

    /// What was found out about a sink.
    async fn notes(&self, sink: &SinkName) -> Result<SinkNotes, StoreError>;
    /// Notes, synced, that what the sink keeps of ours is to be looked for. `is_first_life`: the store was
    /// made in this life, so what is found is of a state that is lost. What was noted before stays.
    async fn owe_search(&self, sink: &SinkName, is_first_life: bool) -> Result<(), StoreError>;
    /// Registers what was found there, synced, and that `strangers`, known there from a state that is lost, owe a
    /// `journal_reset`, as long as none was told in this epoch. Returns those of them that owe it only now. What a later
    /// search finds is of this store.
    async fn take_over(
        &self,
        sink: &SinkName,
        names: Vec<String>,
        strangers: Vec<ServerName>,
    ) -> Result<Vec<ServerName>, StoreError>;
    /// The search is over and nothing depends on it any more. Not synced: it may be made again.
    async fn searched(&self, sink: &SinkName) -> Result<(), StoreError>;
    /// Notes, synced, that the sink has put one event off and may have taken the next.
    async fn note_careful(&self, sink: &SinkName) -> Result<(), StoreError>;

    /// What a sink's [`Companion`] wanted to be kept.
    async fn memory(&self, sink: &SinkName) -> Result<Option<String>, StoreError>;
    /// Keeps it, synced.
    async fn memorize(&self, sink: &SinkName, memory: String) -> Result<(), StoreError>;

    /// Writes commands down, synced and in their order; those that are refused at the door with their answers, at once.
    /// An id of the last 24 hours is not written again; whoever sends it gets the same result.
    ///
    /// # Errors
    /// None of them was written.
    async fn log_commands(&self, commands: Vec<(LoggedCommand, Option<Answer>)>) -> Result<Vec<Admission>, StoreError>;
    /// The same for one.
    async fn log_command(&self, command: LoggedCommand, answer: Option<Answer>) -> Result<Admission, StoreError> {
        let admissions = self.log_commands(vec![(command, answer)]).await?;
        Ok(admissions.into_iter().next().expect("one for each command"))
    }
    /// Notes, synced, that its actions are about to be asked for.
    async fn start_command(&self, server: Option<&ServerName>, id: &CommandId) -> Result<(), StoreError>;
    /// Writes its result down, synced.
    async fn finish_command(
        &self,
        server: Option<&ServerName>,
        id: &CommandId,
        answer: Answer,
    ) -> Result<(), StoreError>;
    /// Commands without a result, oldest first.
    async fn open_commands(&self) -> Result<Vec<LoggedCommand>, StoreError>;
    /// Results that a sink has not taken yet, oldest first, those with a higher number than `after`, at most `limit`;
    /// with [`RESULTS_BYTES`] no more are read.
    async fn unsent_results(&self, sink: &SinkName, after: i64, limit: u16) -> Result<Vec<UnsentResult>, StoreError>;
    /// How much that is.
    async fn results_waiting(&self, sink: &SinkName) -> Result<ResultsWaiting, StoreError>;
    /// A sink has taken these.
    async fn results_sent(&self, numbers: Vec<i64>) -> Result<(), StoreError>;

    /// What an operator wants to know of the journal.
    async fn usage(&self) -> Result<Usage, StoreError>;
}

#[derive(Clone, Debug)]
pub struct Loaded {
    pub epoch: Epoch,
    pub told: Told,
    pub state: ServerState,
    /// The newest journal entry.
    pub last_seq: Seq,
    /// The store is new or had to be made anew: what was told before is lost.
    pub is_new: bool,
    /// A sink knows the server from a state that is lost, and `journal_reset` was not told yet.
    pub owes_reset: bool,
}

/// What was found out about a sink, and holds in later lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkNotes {
    pub search: Option<Search>,
    /// It has put one event off and may have taken the next.
    pub is_careful: bool,
}

/// What a sink keeps of ours is to be looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Search {
    /// The store was made in the life that noted it.
    pub is_of_first_life: bool,
}

/// Results that a sink has not taken yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResultsWaiting {
    pub count: u64,
    pub bytes: u64,
}

/// Where an entry stands in the order of all commits, among the entries that are kept with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(pub i64);

/// How far one sink has got with one server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
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
pub struct Answer {
    pub status: OutcomeStatus,
    pub body: Bytes,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Admission {
    New,
    /// Being carried out: its result is still to come, to this reply address as well.
    Running,
    /// Being carried out, and too many wait for its result already: this one was not noted.
    Crowded,
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

// --- time ----------------------------------------------------------------------------------------

/// Wall time. Durations are measured with tokio's monotonic clock, which tests can pause.
pub trait Clock: Send + Sync {
    fn now(&self) -> Timestamp;
}

/// The clock of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(jiff::Timestamp::now().as_millisecond())
    }
}
