//! The dispatcher: everything that one sink is owed, sent until it is taken.
//!
//! ```text
//! connect ──► say what is kept (status, info, stats) ──► results, journal, side messages, states ─┐
//!    ▲                                                                                            │
//!    └──────────── any failure: everything unacknowledged is owed again, backoff ◄────────────────┘
//! ```
//!
//! One connection lives inside one future ([`Dispatcher::serve`]), polled beside the link's own
//! `drive`. When the link dies that future reads what has already become of its deliveries, and is
//! dropped. That is safe: what it leaves behind is only what [`Dispatcher::go_back`] forgets, cursors
//! move on acknowledgement alone, and a name is in the registry before anything is sent under it.
//!
//! A disk without room stops nothing here: what cannot be noted now is noted later.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Fuse, FusedFuture};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::backoff::Backoff;
use super::beside::Beside;
use super::caution::{Caution, Item, Piece};
use super::dirty::{DirtySet, Known};
use super::lane::Lane;
use super::pick::{ReadAhead, ResultsAhead, known_from};
use super::registry::Registry;
use super::retention::{self, Kept, Retain};
use super::unburied::Unburied;
use crate::live_state::{ChangeBuffer, Drained, LiveState};
use crate::log_throttle::LogThrottle;
use crate::model::{InfoHash, JournalEntry, Kind, Rev, Seq, ServerName, SinkName, Snapshot, shorter, shortest};
use crate::port::{
    Clock, Connected, DeliverError, Delivery, Link, RetainedScan, Sink, SinkProgress, Store, StoreError, UnsentResult,
};

/// Cursors are noted at this distance, or after so many events: after a crash so much may come twice.
const SETTLE_EACH: Duration = Duration::from_secs(1);
const SETTLE_AFTER: u32 = 100;
const HEALTH_EACH: Duration = Duration::from_secs(30);
/// Which states are kept is chosen anew at this distance.
const CHOOSE_EACH: Duration = Duration::from_secs(60);
/// How long a stopping bridge goes on delivering.
const FLUSH_MAX: Duration = Duration::from_secs(5);
/// How long a connection that is over may take to say what became of its deliveries.
const LAST_WORDS_MAX: Duration = Duration::from_millis(250);
/// A connection that stood so long was a good one: the next attempt comes soon.
const GOOD_AFTER: Duration = Duration::from_secs(1);
/// Side messages that wait for a slow link; the oldest go first.
const ASIDE_MAX: usize = 1024;

pub struct DispatcherSettings {
    pub name: SinkName,
    pub servers: Vec<ServerName>,
    pub events: BTreeSet<Kind>,
    pub retain: Retain,
    /// The last life of the bridge ended in order: what it noted as told is what this sink was sent.
    /// After a power cut a sink may know more than the store.
    pub ended_in_order: bool,
}

/// Tells what is to be said of the bridge itself.
pub trait Reporter: Send + Sync {
    fn info(&self) -> Bytes;
    fn health(&self) -> Bytes;
}

/// What a dispatcher works with.
pub struct DispatcherParts {
    pub settings: DispatcherSettings,
    pub sink: Arc<dyn Sink>,
    pub store: Arc<dyn Store>,
    pub live: Arc<LiveState>,
    pub buffer: Arc<ChangeBuffer>,
    pub clock: Arc<dyn Clock>,
    pub reporter: Arc<dyn Reporter>,
}

pub struct Dispatcher {
    pub(super) parts: DispatcherParts,
    pub(super) lanes: BTreeMap<ServerName, ServerLane>,
    pub(super) registry: Registry,
    /// It may keep what is not in the registry. Owed in the store until nothing found is left to deal with.
    search: Option<RetainedScan>,
    /// Made in this life; `search` is to be crossed out.
    has_searched: bool,
    /// That it could not be made was said.
    search_failed: LogThrottle,
    /// Found there, and left alone until their servers' torrents are known.
    pub(super) found: BTreeMap<ServerName, Vec<String>>,
    pub(super) aside: VecDeque<Delivery>,
    pub(super) beside: Option<Beside>,
    /// All results up to this number were read on this connection.
    pub(super) results_read_to: i64,
    /// What comes behind them.
    pub(super) results_ahead: Option<ResultsAhead>,
    /// Read, and not noted as taken.
    pub(super) results_under_way: HashMap<i64, PartsLeft>,
    /// Of results that were read, in order; with the number of each part in its result.
    pub(super) result_parts: VecDeque<(usize, Bytes, UnsentResult)>,
    /// Shorter results in place of those that the sink would not take.
    pub(super) substitutes: Vec<UnsentResult>,
    /// The last of those for each result: on another connection the whole is not tried once more.
    pub(super) shortened: HashMap<i64, Bytes>,
    pub(super) unburied: Unburied,
    burial: LogThrottle,
    /// Taken by the sink, which could not be written down yet.
    unnoted_results: BTreeSet<i64>,
    /// In the registry, and not written down yet.
    unnoted_names: Vec<String>,
    /// The sink has put an event off: from then on at most one of a server is in flight.
    pub(super) is_deferring: bool,
    is_deferring_noted: bool,
    /// Because of that, or because the link asks for it.
    pub(super) is_strict: bool,
    pub(super) caution: Caution,
    /// Something waits for the far side's answer.
    is_busy: bool,
    pub(super) owes_info: bool,
    pub(super) owes_health: bool,
    /// The cursors have moved since they were noted, or it is not known whether they are.
    pub(super) is_unsettled: bool,
    /// Events settled since then.
    settled: u32,
    /// Where a wait gets its random part from, in 0..1.
    jitter: Box<dyn FnMut() -> f64 + Send + Sync>,
}

/// How much of a result is still to be taken.
#[derive(Default)]
pub(super) struct PartsLeft {
    pub count: usize,
    /// A part was rejected, and a short result goes in place of the whole.
    pub is_replaced: bool,
}

/// What one server owes to the sink.
pub(super) struct ServerLane {
    pub lane: Lane,
    pub dirty: DirtySet,
    pub kept: Kept,
    /// Torrents of which the sink may know more than the store does.
    doubted: HashSet<InfoHash>,
    sent_rev: Rev,
    /// What was said on this connection.
    pub said_online: Option<bool>,
    pub said_stats: Bytes,
    /// Somebody wants the events from here on once more.
    pub rewind: Option<Seq>,
    /// What comes behind the entries that wait.
    pub ahead: Option<ReadAhead>,
}

/// What a delivery was, for when it has arrived.
pub(super) enum Sent {
    Entry(Box<JournalEntry>),
    State { server: ServerName, hash: InfoHash },
    Cleared { name: String },
    Result { result: Box<UnsentResult>, piece: Piece },
    Shown { topic: String },
    Other,
}

impl Sent {
    /// By what it is known again on another connection.
    pub fn item(&self) -> Option<Item> {
        match self {
            Self::Entry(entry) => Some(Item::Entry(entry.server.clone(), entry.seq)),
            Self::State { server, hash } => Some(Item::State(server.clone(), *hash)),
            Self::Cleared { name } => Some(Item::Clearing(name.clone())),
            Self::Result { result, piece } => Some(Item::Result(result.number, *piece)),
            Self::Shown { topic } => Some(Item::Shown(topic.clone())),
            Self::Other => None,
        }
    }
}

type Arrival = (Sent, Result<(), DeliverError>);
/// The results that are noted as taken.
type Noted = Result<Vec<i64>, StoreError>;
pub(super) type UnderWay = FuturesUnordered<BoxFuture<'static, Arrival>>;

/// Why serving a link ended.
enum End {
    /// The bridge stops; everything that could be delivered is.
    Stopped,
    Failed(DeliverError),
}

/// Notes where a sink begins with servers that are new to it: with the present. What a sink that is new itself keeps of
/// ours is to be looked for; `is_first_life`: there was no store, so that would be of a state that is lost.
///
/// To be called before the first event of this life, so that neither a crash nor a slow start makes
/// an old sink a new one.
pub async fn note_start(
    store: &dyn Store,
    live: &LiveState,
    sink: &SinkName,
    servers: &[ServerName],
    is_first_life: bool,
) -> Result<(), StoreError> {
    let noted = store.progress(sink).await?;
    if noted.is_empty() {
        // First: without it, a sink that has its place would not be new any more after a crash.
        store.require_retained_scan(sink, is_first_life).await?;
    }
    let is_new = |server: &&ServerName| !noted.contains_key(*server);
    let begun: BTreeMap<ServerName, SinkProgress> =
        servers.iter().filter(is_new).map(|server| (server.clone(), present(live, server))).collect();
    if !begun.is_empty() {
        store.save_progress(sink, begun).await?;
    }
    Ok(())
}

fn present(live: &LiveState, server: &ServerName) -> SinkProgress {
    let read = live.read(server, |content| SinkProgress {
        cursor: content.last_seq,
        sent_rev: content.snapshot.values().map(|snapshot| snapshot.rev).max().unwrap_or_default(),
    });
    read.unwrap_or_default()
}

impl Dispatcher {
    /// Reads how far the sink has got; see [`note_start`].
    pub async fn new(parts: DispatcherParts) -> Result<Self, StoreError> {
        let DispatcherParts { settings, store, live, .. } = &parts;
        let noted = store.progress(&settings.name).await?;
        let progress = |server: &ServerName| *noted.get(server).unwrap_or(&present(live, server));
        let lanes = settings.servers.iter().map(|server| (server.clone(), ServerLane::new(progress(server))));
        let lanes = lanes.collect();
        let registry = Registry::new(store.retained_topics(&settings.name).await?);
        // What an earlier one found, this one has to find itself.
        parts.buffer.report(|report| report.standstill = None);
        let beside = match parts.sink.companion() {
            Some(companion) => Some(Beside::new(companion, store.projection_state(&settings.name).await?)),
            None => None,
        };
        let notes = store.sink_notes(&settings.name).await?;
        let mut dispatcher = Self {
            search: notes.search,
            has_searched: false,
            search_failed: LogThrottle::default(),
            is_deferring: notes.is_strict_ordering,
            is_deferring_noted: notes.is_strict_ordering,
            is_strict: false,
            found: BTreeMap::new(),
            parts,
            lanes,
            registry,
            aside: VecDeque::new(),
            beside,
            results_read_to: 0,
            results_ahead: None,
            results_under_way: HashMap::new(),
            result_parts: VecDeque::new(),
            substitutes: Vec::new(),
            shortened: HashMap::new(),
            unburied: Unburied::default(),
            burial: LogThrottle::default(),
            unnoted_results: BTreeSet::new(),
            unnoted_names: Vec::new(),
            caution: Caution::default(),
            is_busy: false,
            owes_info: false,
            owes_health: false,
            is_unsettled: false,
            settled: 0,
            jitter: Box::new(rand::random),
        };
        if !dispatcher.parts.settings.ended_in_order {
            for (server, owed) in &mut dispatcher.lanes {
                dispatcher.parts.live.read(server, |content| {
                    owed.doubted = content.snapshot.keys().copied().collect();
                    owed.assert_again(&content.snapshot);
                });
            }
        }
        dispatcher.mark_unsent();
        Ok(dispatcher)
    }

    /// For a run that can be repeated: waits take their random part, in 0..1, from here.
    pub fn with_jitter(self, jitter: impl FnMut() -> f64 + Send + Sync + 'static) -> Self {
        Self { jitter: Box::new(jitter), ..self }
    }

    /// Delivers until `stop`, then flushes for a few seconds and says goodbye.
    ///
    /// # Errors
    /// Only a store that cannot be used any more; a sink's failures are waited out.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), StoreError> {
        let mut backoff = Backoff::default();
        let mut log_throttle = LogThrottle::default();
        // Before the first connection: a broker may have to speak in our place at any time.
        self.register(self.parts.sink.own_retained_topics()).await?;
        while !stop.is_cancelled() {
            let attempt = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                attempt = self.attempt() => attempt?,
            };
            let failure = match attempt {
                Ok(connected) => {
                    let since = Instant::now();
                    self.say_connected(log_throttle.recovered());
                    let end = self.live(connected, &stop).await?;
                    // Whether a note that was under way was taken is not known.
                    self.is_unsettled = true;
                    self.note_progress().await?;
                    self.note_memory(true).await?;
                    self.go_back();
                    let is_good = since.elapsed() > GOOD_AFTER;
                    match end {
                        End::Stopped => break,
                        End::Failed(failure) => {
                            self.note_end(&failure, since.elapsed());
                            // While a culprit is looked for, each connection is a step forward.
                            if is_good || self.caution.has_suspect() {
                                backoff.reset();
                            }
                            failure
                        }
                    }
                }
                Err(failure) => failure,
            };
            if !stop.is_cancelled() {
                let due = log_throttle.failed();
                // Another reason is news, however often there was one before.
                let is_news =
                    self.parts.buffer.last_report().failure.is_some_and(|snapshot| snapshot != failure.to_string());
                if due.is_some() || is_news {
                    let times = due.unwrap_or_default();
                    warn!(sink = %self.parts.settings.name, times, error = %failure, "not connected, trying on");
                }
            }
            self.parts.buffer.report(|report| {
                report.is_connected = false;
                report.failure = Some(failure.to_string());
            });
            let asked = match failure {
                DeliverError::Unavailable { retry_after, .. } | DeliverError::Deferred { retry_after, .. } => {
                    retry_after.unwrap_or_default()
                }
                DeliverError::Rejected { .. } => Duration::ZERO,
            };
            let wait = backoff.next((self.jitter)()).max(asked);
            self.wait(wait, &stop).await;
        }
        self.parts.buffer.report(|report| report.is_connected = false);
        self.note_progress().await
    }

    /// Cancel-safe: a search that was not finished is begun anew.
    async fn attempt(&mut self) -> Result<Result<Connected, DeliverError>, StoreError> {
        let mut failure = None;
        if let Some(search) = self.search.filter(|_| !self.has_searched) {
            match self.parts.sink.scan_retained(&self.parts.settings.servers).await {
                Ok(found) => {
                    // What is sent without a note of it would be found, and taken for somebody else's.
                    if let Err(reason) = self.adopt_retained(search, found).await? {
                        return Ok(Err(DeliverError::unavailable(reason)));
                    }
                }
                Err(error) => failure = Some(error),
            }
        }
        let connected = self.parts.sink.connect().await;
        if let (Some(error), Ok(_)) = (&failure, &connected)
            && let Some(times) = self.search_failed.failed()
        {
            let sink = &self.parts.settings.name;
            warn!(%sink, times, %error, "what the sink keeps from earlier could not be looked for, trying with the next line");
        }
        Ok(connected)
    }

    /// What is kept there in our names is ours to clear. The inner error: there is no room to write it down.
    async fn adopt_retained(
        &mut self,
        search: RetainedScan,
        found: BTreeMap<ServerName, Vec<String>>,
    ) -> Result<Result<(), String>, StoreError> {
        let sink = &self.parts.settings.name;
        let is_news = |names: &Vec<String>| names.iter().any(|name| !self.registry.knows(name));
        let is_stranger =
            |server: &&ServerName| self.parts.settings.servers.contains(server) && is_news(&found[*server]);
        let strangers = found.keys().filter(|server| search.is_of_first_life && is_stranger(server)).cloned().collect();
        let names: Vec<String> = found.values().flatten().cloned().collect();
        let owe_reset = match self.parts.store.adopt_retained(sink, names.clone(), strangers).await {
            Ok(owe_reset) => owe_reset,
            Err(StoreError::Full { reason }) => return Ok(Err(reason)),
            Err(error) => return Err(error),
        };
        for server in owe_reset {
            warn!(%sink, %server, "the sink knows this server from a state that is lost");
            if let Some(live) = self.parts.live.server(&server) {
                live.write(|content| content.needs_reset = true);
                live.wake.notify_one();
            }
        }
        self.registry.add(names);
        self.found = found;
        self.has_searched = true;
        self.search = Some(RetainedScan { is_of_first_life: false });
        Ok(Ok(()))
    }

    /// A search is over when all that was found belongs to servers that have shown what they have: until then a crash
    /// would leave nobody who knows what is to be left alone.
    async fn note_search(&mut self) -> Result<(), StoreError> {
        if self.search.is_some() && self.has_searched && self.found.is_empty() {
            let noted = self.parts.store.scan_completed(&self.parts.settings.name).await;
            if self.unless_full(noted)?.is_some() {
                self.search = None;
            }
        }
        Ok(())
    }

    /// That one event was put off is noted before anything else is sent.
    async fn note_strict_ordering(&mut self) -> Result<(), StoreError> {
        if self.is_deferring && !self.is_deferring_noted {
            let noted = self.parts.store.note_strict_ordering(&self.parts.settings.name).await;
            self.is_deferring_noted = self.unless_full(noted)?.is_some();
        }
        Ok(())
    }

    /// A far side that gives a reason to wait is not one that will not say what it does not take.
    fn note_end(&mut self, failure: &DeliverError, lived: Duration) {
        let was_one_at_a_time = self.caution.is_one_at_a_time();
        let is_wordless = matches!(failure, DeliverError::Unavailable { gave_reason: false, .. });
        self.caution.ended(lived, self.is_busy && is_wordless);
        self.is_busy = false;
        if self.caution.is_one_at_a_time() && !was_one_at_a_time {
            warn!(sink = %self.parts.settings.name, "the line breaks again and again: from now on one thing at a time");
        }
    }

    fn say_connected(&self, failures: Option<u32>) {
        if let Some(failures) = failures {
            info!(sink = %self.parts.settings.name, failures, "connected again");
        }
        self.parts.buffer.report(|report| {
            report.is_connected = true;
            report.failure = None;
        });
    }

    /// Waits, and takes in meanwhile what is laid on the desk.
    async fn wait(&mut self, wait: Duration, stop: &CancellationToken) {
        let until = Instant::now() + wait;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(until) => return,
                () = self.parts.buffer.changed.notified() => {}
            }
            self.collect();
            self.aside.clear();
            self.report_backlog();
        }
    }

    /// Runs one connection to its end.
    async fn live(&mut self, connected: Connected, stop: &CancellationToken) -> Result<End, StoreError> {
        let Connected { link, mut drive } = connected;
        let mut serve = std::pin::pin!(self.serve(link, stop));
        let failure = tokio::select! {
            biased;
            failure = &mut drive => failure,
            end = &mut serve => return end,
        };
        match timeout(LAST_WORDS_MAX, serve).await {
            Ok(end) => end,
            Err(_) => Ok(End::Failed(failure)),
        }
    }

    /// Serves one link. Dropped when the link is over; see the module's words on that.
    async fn serve(&mut self, mut link: Box<dyn Link>, stop: &CancellationToken) -> Result<End, StoreError> {
        self.begin_link().await?;
        let mut under_way = UnderWay::new();
        let mut settle_beat = beat(SETTLE_EACH);
        let mut health_beat = beat(HEALTH_EACH);
        let mut choose_beat = beat(CHOOSE_EACH);
        let mut flush_until: Option<Instant> = None;
        let mut may_have_results = true;
        // Cursors and taken results on their way to the disk: what is sent does not wait for them.
        let mut noting = Fuse::terminated();
        let mut noting_results: Fuse<BoxFuture<'static, Noted>> = Fuse::terminated();
        loop {
            self.collect();
            self.fill(link.as_mut(), &mut under_way, &mut may_have_results).await?;
            self.is_busy = !under_way.is_empty();
            self.report_backlog();
            if let Some(until) = flush_until
                && (Instant::now() >= until || (under_way.is_empty() && self.owes_nothing()))
            {
                return Ok(match link.close().await {
                    Ok(()) => End::Stopped,
                    Err(failure) => End::Failed(failure),
                });
            }
            let beside = self.beside.as_ref().filter(|_| under_way.len() < self.window(link.as_ref()));
            let due = async move {
                match beside {
                    Some(beside) => beside.due().await,
                    None => std::future::pending().await,
                }
            };
            // What is rare comes first, so that a fast sink cannot keep it waiting.
            tokio::select! {
                biased;
                _ = settle_beat.tick() => {
                    if !noting.is_terminated() {
                        // The older note first, or it would be the one that stays.
                        let noted = (&mut noting).await;
                        self.is_unsettled |= self.unless_full(noted)?.is_none();
                    }
                    self.note_progress().await?;
                }
                _ = health_beat.tick() => self.owes_health = true,
                _ = choose_beat.tick() => self.choose_kept(),
                () = stop.cancelled(), if flush_until.is_none() => flush_until = Some(Instant::now() + FLUSH_MAX),
                () = tokio::time::sleep_until(flush_until.unwrap_or_else(Instant::now)), if flush_until.is_some() => {}
                () = self.parts.buffer.changed.notified() => {}
                () = due => {}
                () = self.parts.buffer.results.notified() => may_have_results = true,
                noted = &mut noting => self.is_unsettled |= self.unless_full(noted)?.is_none(),
                noted = &mut noting_results => self.results_noted(noted)?,
                Some(arrival) = under_way.next(), if !under_way.is_empty() => {
                    if let Err(failure) = self.arrivals(arrival, &mut under_way).await? {
                        return Ok(End::Failed(failure));
                    }
                    if self.settled >= SETTLE_AFTER && noting.is_terminated() {
                        noting = self.note_cursors().fuse();
                    }
                    if noting_results.is_terminated() && !self.unnoted_results.is_empty() {
                        noting_results = self.note_results().fuse();
                    }
                }
            }
        }
    }

    /// Deals with an arrival and all others that are in already; the inner error ends the link.
    async fn arrivals(
        &mut self,
        first: Arrival,
        under_way: &mut UnderWay,
    ) -> Result<Result<(), DeliverError>, StoreError> {
        // An entry's own change may still lie there, and has to be owed before the entry is settled.
        self.collect();
        let mut outcome = Ok(());
        let mut next = Some(first);
        while let Some((sent, result)) = next {
            // One that failed with its link must not hide another that was taken or rejected.
            if let Err(failure) = self.arrived(sent, result).await? {
                outcome = Err(failure);
            }
            next = under_way.next().now_or_never().flatten();
        }
        Ok(outcome)
    }

    async fn arrived(
        &mut self,
        sent: Sent,
        result: Result<(), DeliverError>,
    ) -> Result<Result<(), DeliverError>, StoreError> {
        let rejected = match result {
            Ok(()) => None,
            Err(DeliverError::Rejected { reason }) => Some(reason),
            Err(failure) => {
                self.is_deferring |= matches!(failure, DeliverError::Deferred { .. });
                return Ok(Err(failure));
            }
        };
        let mut is_condemned = false;
        if self.caution.is_one_at_a_time()
            && let Some(item) = sent.item()
        {
            is_condemned = self.caution.condemns(&item).is_some();
            self.caution.answered(&item);
        }
        self.parts.buffer.report(|report| match &rejected {
            None => report.delivered += 1,
            Some(_) => report.rejected += 1,
        });
        let sink = self.parts.settings.name.clone();
        match sent {
            Sent::Entry(entry) => match rejected {
                None => {
                    self.learn_from(&entry);
                    if let Some(beside) = &mut self.beside {
                        beside.heard(&entry);
                    }
                    self.settle_entry(&entry);
                    self.unburied.taken(&entry);
                    self.stand(None);
                }
                Some(reason) => {
                    warn!(%sink, id = %entry.id, reason, "an event was rejected and is put aside");
                    self.unburied.rejected(entry, reason, Instant::now());
                    self.bury().await?;
                }
            },
            Sent::State { server, hash } => {
                if let Some(reason) = &rejected {
                    warn!(%sink, %server, %hash, reason, "a state was rejected");
                }
                if let Some(owed) = self.lanes.get_mut(&server) {
                    owed.dirty.settled(hash);
                    self.is_unsettled = true;
                }
            }
            Sent::Cleared { name } => match rejected {
                None => {
                    self.registry.cleared(name);
                    self.note_names().await?;
                }
                Some(reason) => {
                    warn!(%sink, reason, "a kept message could not be cleared, and is tried again with the next line");
                    self.registry.not_cleared(&name);
                }
            },
            Sent::Result { result, piece } => self.result_arrived(*result, piece, rejected, is_condemned),
            Sent::Shown { topic } => {
                if let Some(reason) = &rejected {
                    warn!(%sink, topic, reason, "a message for Home Assistant was rejected");
                }
                if let Some(beside) = &mut self.beside {
                    beside.taken(&topic);
                }
            }
            Sent::Other => {
                if let Some(reason) = &rejected {
                    warn!(%sink, reason, "a message was rejected");
                }
            }
        }
        Ok(Ok(()))
    }

    /// A rejected entry is put aside before the lane goes on; without room for that the lane waits.
    async fn bury(&mut self) -> Result<(), StoreError> {
        while let Some((entry, reason)) = self.unburied.first() {
            match self.parts.store.add_dead_letter(&self.parts.settings.name, entry, reason).await {
                Ok(()) => {
                    if let Some(entry) = self.unburied.buried() {
                        self.settle_entry(&entry);
                    }
                    self.stand(None);
                }
                Err(StoreError::Full { reason }) => {
                    self.stand(Some(format!("a rejected event cannot be put aside, so all others wait: {reason}")));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The sink's events stand, and why; or, as long as nothing else says otherwise, they go on.
    fn stand(&mut self, why: Option<String>) {
        let sink = &self.parts.settings.name;
        match &why {
            Some(why) => {
                if let Some(times) = self.burial.failed() {
                    error!(%sink, times, why, "the sink stands");
                }
            }
            None if !self.unburied.is_empty() => return,
            None => match self.burial.recovered() {
                Some(_) => info!(%sink, "the sink goes on"),
                None => return,
            },
        }
        self.parts.buffer.report(|report| report.standstill = why);
    }

    /// A result that the sink will not take, or a part of it, is replaced by a shorter one, as long as there is one.
    /// Where each attempt costs a row of connections (`is_condemned`), by the shortest.
    fn result_arrived(&mut self, result: UnsentResult, piece: Piece, rejected: Option<String>, is_condemned: bool) {
        let sink = &self.parts.settings.name;
        let number = result.number;
        let left = self.results_under_way.entry(number).or_insert(PartsLeft { count: 1, is_replaced: false });
        if let Some(reason) = rejected {
            warn!(%sink, reason, "a result was rejected");
            // Its other parts may be rejected as well: one is enough.
            let is_substitute = matches!(piece, Piece::Substitute(_));
            let is_first = is_substitute || !std::mem::replace(&mut left.is_replaced, true);
            let shorten = if is_condemned { shortest } else { shorter };
            if let Some(body) = shorten(&result.body, &reason).filter(|_| is_first) {
                left.count += 1;
                let body = Bytes::from(body);
                self.shortened.insert(number, body.clone());
                self.substitutes.push(UnsentResult { body, ..result });
            }
        }
        left.count = left.count.saturating_sub(1);
        if left.count == 0 {
            self.unnoted_results.insert(number);
        }
    }

    /// Without room a state is sent all the same, and its name is noted later.
    async fn note_names(&mut self) -> Result<(), StoreError> {
        let (sink, store) = (&self.parts.settings.name, &self.parts.store);
        if !self.unnoted_names.is_empty() {
            let written = store.register_topics(sink, self.unnoted_names.clone()).await;
            if self.unless_full(written)?.is_some() {
                self.unnoted_names.clear();
            }
        }
        let names = self.registry.to_cross_out();
        if !names.is_empty() {
            let written = store.unregister_topics(sink, names).await;
            if self.unless_full(written)?.is_some() {
                self.registry.crossed_out();
            }
        }
        Ok(())
    }

    /// Notes what was taken; until that is done, none of it is read again.
    fn note_results(&mut self) -> BoxFuture<'static, Noted> {
        let numbers: Vec<i64> = self.unnoted_results.iter().copied().collect();
        let store = Arc::clone(&self.parts.store);
        Box::pin(async move {
            if numbers.is_empty() {
                return Ok(numbers);
            }
            store.mark_results_sent(numbers.clone()).await.map(|()| numbers)
        })
    }

    fn results_noted(&mut self, noted: Noted) -> Result<(), StoreError> {
        for number in self.unless_full(noted)?.unwrap_or_default() {
            self.unnoted_results.remove(&number);
            self.results_under_way.remove(&number);
            self.shortened.remove(&number);
        }
        Ok(())
    }

    /// The lane goes on behind the entry.
    pub(super) fn settle_entry(&mut self, entry: &JournalEntry) {
        self.is_unsettled = true;
        self.settled += 1;
        if let Some(owed) = self.lanes.get_mut(&entry.server) {
            owed.lane.settle(entry.seq);
        }
    }

    /// The sink has the entry: what it knows of the torrent moves on.
    fn learn_from(&mut self, entry: &JournalEntry) {
        let Some(owed) = self.lanes.get_mut(&entry.server) else { return };
        entry.hash.map(|hash| owed.doubted.remove(&hash));
        let Some(hash) = entry.hash.filter(|hash| owed.dirty.owes(hash)) else { return };
        let snapshot = self.parts.live.read(&entry.server, |content| content.snapshot.get(&hash).cloned()).flatten();
        owed.dirty.learned(hash, known_from(entry, snapshot), entry.seq);
    }

    /// Writes names down that are not in the registry yet.
    pub(super) async fn register(&mut self, names: Vec<String>) -> Result<(), StoreError> {
        let unknown = self.registry.unknown(names);
        if unknown.is_empty() {
            return Ok(());
        }
        self.registry.add(unknown.clone());
        self.unnoted_names.extend(unknown);
        self.note_names().await
    }

    /// `None` if there is no room to write it down now.
    pub(super) fn unless_full<T>(&self, result: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        match result {
            Ok(done) => Ok(Some(done)),
            Err(StoreError::Full { reason }) => {
                debug!(sink = %self.parts.settings.name, reason, "a note has to wait for room");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The link is over: what is not settled is owed again.
    fn go_back(&mut self) {
        for owed in self.lanes.values_mut() {
            owed.lane.go_back();
            owed.dirty.go_back();
        }
        self.aside.clear();
        self.registry.go_back();
        self.substitutes.clear();
        self.result_parts.clear();
        self.results_read_to = 0;
        self.results_ahead = None;
        self.unburied.go_back();
        self.results_under_way = self.unnoted_results.iter().map(|number| (*number, PartsLeft::default())).collect();
    }

    async fn note_progress(&mut self) -> Result<(), StoreError> {
        self.note_names().await?;
        self.note_search().await?;
        self.note_strict_ordering().await?;
        let noted = self.note_results().await;
        self.results_noted(noted)?;
        self.bury().await?;
        if !self.is_unsettled {
            return Ok(());
        }
        let noted = self.note_cursors().await;
        self.is_unsettled |= self.unless_full(noted)?.is_none();
        Ok(())
    }

    /// Notes the cursors as they are now. Of two, the older is to be waited for first.
    fn note_cursors(&mut self) -> BoxFuture<'static, Result<(), StoreError>> {
        // A change that still lies on the desk is not sent, however empty the dirty set; nor is one that comes now.
        let snapshot: Vec<Rev> = self.lanes.keys().map(|server| present(&self.parts.live, server).sent_rev).collect();
        self.collect();
        let mut progress = BTreeMap::new();
        for ((server, owed), snapshot) in self.lanes.iter_mut().zip(snapshot) {
            if owed.dirty.is_empty() {
                owed.sent_rev = snapshot.max(owed.sent_rev);
            }
            progress.insert(server.clone(), SinkProgress { cursor: owed.lane.cursor(), sent_rev: owed.sent_rev });
        }
        self.is_unsettled = false;
        self.settled = 0;
        let (store, sink) = (Arc::clone(&self.parts.store), self.parts.settings.name.clone());
        Box::pin(async move { store.save_progress(&sink, progress).await })
    }

    /// Takes in what lies on the desk.
    fn collect(&mut self) {
        let drained = self.parts.buffer.drain();
        self.take_in(drained);
    }

    pub(super) fn take_in(&mut self, drained: Drained) {
        let of_ours = drained.aside.into_iter().filter(|delivery| match delivery {
            Delivery::Files { server, .. } => self.lanes.contains_key(server),
            _ => true,
        });
        self.aside.extend(of_ours);
        let excess = self.aside.len().saturating_sub(ASIDE_MAX);
        self.aside.drain(..excess);
        for (server, from) in drained.rewinds {
            if let Some(owed) = self.lanes.get_mut(&server) {
                owed.rewind = Some(owed.rewind.map_or(from, |noted| noted.min(from)));
            }
        }
        self.owes_info |= drained.all_again;
        self.owes_health |= drained.all_again;
        for (server, owed) in &mut self.lanes {
            if drained.all_again || drained.again.contains(server) {
                self.parts.live.read(server, |content| owed.assert_again(&content.snapshot));
            }
        }
        let mut has_other_torrents = false;
        for (server, changed) in drained.changed {
            let Some(owed) = self.lanes.get_mut(&server) else { continue };
            if let Some(beside) = &mut self.beside {
                beside.touch(&server);
            }
            for (hash, changed) in changed {
                has_other_torrents |= changed.before.is_none();
                let known = match changed.before {
                    None => Known::Nothing,
                    Some(_) if owed.doubted.remove(&hash) => Known::Forgotten,
                    Some(before) => Known::Picture(before),
                };
                owed.dirty.mark(hash, known, changed.not_before);
            }
            // So many went that there is room for all the others.
            let count = self.parts.live.read(&server, |content| content.snapshot.len());
            has_other_torrents |=
                matches!(owed.kept, Kept::These(_)) && count.is_some_and(|count| count <= retention::AUTO_MAX);
        }
        if has_other_torrents {
            self.choose_kept();
        }
    }

    fn report_backlog(&self) {
        let mut lag_entries = 0;
        for (server, owed) in &self.lanes {
            let written = self.parts.live.read(server, |content| content.last_seq).unwrap_or_default();
            lag_entries += written.0.saturating_sub(owed.lane.cursor().0);
        }
        let dirty = self.lanes.values().map(|owed| owed.dirty.len() as u64).sum();
        self.parts.buffer.report(|report| report.backlog(lag_entries, dirty));
    }
}

impl ServerLane {
    fn new(progress: SinkProgress) -> Self {
        Self {
            lane: Lane::new(progress.cursor),
            dirty: DirtySet::default(),
            kept: Kept::None,
            doubted: HashSet::new(),
            sent_rev: progress.sent_rev,
            said_online: None,
            said_stats: Bytes::new(),
            rewind: None,
            ahead: None,
        }
    }

    /// What was said of the server is said again, and so is every torrent.
    fn assert_again(&mut self, snapshot: &Snapshot) {
        self.said_online = None;
        self.said_stats = Bytes::new();
        for (hash, snapshot) in snapshot {
            self.dirty.mark(*hash, Known::Present, snapshot.last_seq);
        }
    }

    pub fn sent_rev(&self) -> Rev {
        self.sent_rev
    }
}

fn beat(each: Duration) -> tokio::time::Interval {
    let mut beat = interval(each);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat
}
