//! The dispatcher: everything that one sink is owed, sent until it is taken.
//!
//! ```text
//! connect ──► say what is kept (status, info, stats) ──► results, journal, states, side messages ─┐
//!    ▲                                                                                            │
//!    └──────────── any failure: everything unacknowledged is owed again, backoff ◄────────────────┘
//! ```
//!
//! One connection lives inside one future ([`Dispatcher::serve`]), polled beside the link's own
//! `drive`. When the link dies that future is dropped wherever it stands. That is safe: what it
//! leaves behind is only what [`Dispatcher::go_back`] forgets, cursors move on acknowledgement alone,
//! and a name is in the registry before anything is sent under it.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::backoff::Backoff;
use super::dirty::{DirtySet, Known};
use super::lane::Lane;
use super::retention::{Kept, Retain};
use crate::board::{Board, Desk};
use crate::model::{
    Cause, Changes, EVENT_SCHEMA, Entity, Entry, Event, EventId, InfoHash, Kind, Rev, Seq, ServerName, SinkName,
    Torrent,
};
use crate::port::{Clock, Connected, DeliverError, Delivery, Link, Progress, Sink, Store, StoreError};
use crate::repeat::{Repeat, until_there_is_room};

/// Entries read from the journal at once.
const READ_MAX: u16 = 256;
/// Results read from the command log at once.
const RESULTS_MAX: u16 = 64;
/// Cursors are noted at this distance: after a crash so much may come twice.
const SETTLE_EACH: Duration = Duration::from_secs(1);
const HEALTH_EACH: Duration = Duration::from_secs(30);
/// Which states are kept is chosen anew at this distance.
const CHOOSE_EACH: Duration = Duration::from_secs(60);
/// How long a stopping bridge goes on delivering.
const FLUSH_MAX: Duration = Duration::from_secs(5);

pub struct DispatcherSettings {
    pub name: SinkName,
    pub servers: Vec<ServerName>,
    pub events: BTreeSet<Kind>,
    pub retain: Retain,
}

/// Tells what is to be said of the bridge itself.
pub trait Reporter: Send + Sync {
    fn info(&self) -> Bytes;
    fn health(&self) -> Bytes;
}

pub struct Dispatcher {
    settings: DispatcherSettings,
    sink: Arc<dyn Sink>,
    store: Arc<dyn Store>,
    board: Arc<Board>,
    desk: Arc<Desk>,
    clock: Arc<dyn Clock>,
    reporter: Arc<dyn Reporter>,
    lanes: BTreeMap<ServerName, ServerLane>,
    registry: BTreeSet<String>,
    aside: VecDeque<Delivery>,
    /// Names of what is kept and nobody wants any more, unless it is wanted again before its turn.
    leftovers: BTreeSet<String>,
    /// Names whose clearing is under way, unless something is kept there again.
    clearing: HashSet<String>,
    results_under_way: HashSet<i64>,
    has_said_info: bool,
    /// The cursors have moved since they were noted.
    is_unsettled: bool,
    /// Where a wait gets its random part from, in 0..1.
    jitter: Box<dyn FnMut() -> f64 + Send>,
}

/// What one server owes to the sink.
struct ServerLane {
    lane: Lane,
    dirty: DirtySet,
    kept: Kept,
    sent_rev: Rev,
    /// What was said on this connection.
    said_online: Option<bool>,
    said_stats: Bytes,
}

/// What a delivery was, for when it has arrived.
enum Sent {
    Entry(Box<Entry>),
    State { server: ServerName, hash: InfoHash },
    Cleared { name: String },
    Result { number: i64 },
    Other,
}

type Arrival = (Sent, Result<(), DeliverError>);
type UnderWay = FuturesUnordered<BoxFuture<'static, Arrival>>;

/// Why serving a link ended.
enum End {
    /// The bridge stops; everything that could be delivered is.
    Stopped,
    Failed(DeliverError),
}

impl Dispatcher {
    /// Reads how far the sink has got. A server that is new to it begins with the present.
    #[allow(clippy::too_many_arguments)] // composition happens once, in app
    pub async fn new(
        settings: DispatcherSettings,
        sink: Arc<dyn Sink>,
        store: Arc<dyn Store>,
        board: Arc<Board>,
        desk: Arc<Desk>,
        clock: Arc<dyn Clock>,
        reporter: Arc<dyn Reporter>,
    ) -> Result<Self, StoreError> {
        let begun = Self::begin(&settings, &*store, &board).await?;
        let lanes = begun.into_iter().map(|(server, progress)| (server, ServerLane::new(progress))).collect();
        let registry = store.registry(&settings.name).await?.into_iter().collect();
        let mut dispatcher = Self {
            settings,
            sink,
            store,
            board,
            desk,
            clock,
            reporter,
            lanes,
            registry,
            aside: VecDeque::new(),
            leftovers: BTreeSet::new(),
            clearing: HashSet::new(),
            results_under_way: HashSet::new(),
            has_said_info: false,
            is_unsettled: false,
            jitter: Box::new(rand::random),
        };
        dispatcher.mark_unsent();
        Ok(dispatcher)
    }

    /// Notes where a sink begins with each server that is new to it: with the present.
    ///
    /// To be called before the watchers run: what they commit after it is owed to the sink, and that
    /// it is cannot be lost, for the commit syncs what was noted before it.
    pub async fn begin(
        settings: &DispatcherSettings,
        store: &dyn Store,
        board: &Board,
    ) -> Result<BTreeMap<ServerName, Progress>, StoreError> {
        let mut progress = store.progress(&settings.name).await?;
        progress.retain(|server, _| settings.servers.contains(server));
        let noted = progress.len();
        for server in &settings.servers {
            let present = board.read(server, |content| Progress {
                cursor: content.last_seq,
                sent_rev: content.told.values().map(|told| told.rev).max().unwrap_or_default(),
            });
            progress.entry(server.clone()).or_insert_with(|| present.unwrap_or_default());
        }
        if progress.len() > noted {
            until_there_is_room("a cursor", || store.settle(&settings.name, progress.clone())).await?;
        }
        Ok(progress)
    }

    /// For a run that can be repeated: waits take their random part, in 0..1, from here.
    pub fn with_jitter(self, jitter: impl FnMut() -> f64 + Send + 'static) -> Self {
        Self { jitter: Box::new(jitter), ..self }
    }

    /// Delivers until `stop`, then flushes for a few seconds and says goodbye.
    ///
    /// # Errors
    /// Only a store that cannot be used any more; a sink's failures are waited out.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), StoreError> {
        let mut backoff = Backoff::default();
        let mut repeat = Repeat::default();
        let name = self.settings.name.clone();
        while !stop.is_cancelled() {
            let attempt = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                attempt = self.sink.connect() => attempt,
            };
            let failure = match attempt {
                Ok(connected) => {
                    let failures = repeat.ended().unwrap_or(0);
                    info!(sink = %name, failures, "connected");
                    let since = Instant::now();
                    self.desk.report(|report| {
                        report.is_connected = true;
                        report.failure = None;
                    });
                    let end = self.live(connected, &stop).await?;
                    self.go_back();
                    self.note_progress().await?;
                    if since.elapsed() > Duration::from_secs(10) {
                        backoff.reset();
                    }
                    match end {
                        End::Stopped => break,
                        End::Failed(failure) => failure,
                    }
                }
                Err(failure) => failure,
            };
            if let Some(times) = repeat.failed() {
                warn!(sink = %name, times, error = %failure, "not connected, trying on");
            }
            self.desk.report(|report| {
                report.is_connected = false;
                report.failure = Some(failure.to_string());
            });
            let asked = match failure {
                DeliverError::Unavailable { retry_after, .. } => retry_after.unwrap_or_default(),
                DeliverError::Rejected { .. } => Duration::ZERO,
            };
            let wait = backoff.next((self.jitter)()).max(asked);
            self.wait(wait, &stop).await;
        }
        self.desk.report(|report| report.is_connected = false);
        self.note_progress().await
    }

    /// Waits, and takes in meanwhile what is laid on the desk.
    async fn wait(&mut self, wait: Duration, stop: &CancellationToken) {
        let until = Instant::now() + wait;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(until) => return,
                () = self.desk.laid.notified() => {}
            }
            self.collect();
            self.aside.clear();
            self.report_backlog();
        }
    }

    async fn live(&mut self, connected: Connected, stop: &CancellationToken) -> Result<End, StoreError> {
        let Connected { link, mut drive } = connected;
        tokio::select! {
            biased;
            failure = &mut drive => Ok(End::Failed(failure)),
            end = self.serve(link, stop) => end,
        }
    }

    /// Serves one link. Dropped when the link dies; see the module's words on that.
    async fn serve(&mut self, mut link: Box<dyn Link>, stop: &CancellationToken) -> Result<End, StoreError> {
        self.begin_link().await?;
        let mut under_way = UnderWay::new();
        let mut settle_beat = beat(SETTLE_EACH);
        let mut health_beat = beat(HEALTH_EACH);
        let mut choose_beat = beat(CHOOSE_EACH);
        let mut flush_until: Option<Instant> = None;
        let mut may_have_results = true;
        loop {
            self.collect();
            self.fill(link.as_mut(), &mut under_way, &mut may_have_results).await?;
            self.report_backlog();
            if let Some(until) = flush_until
                && (Instant::now() >= until || (under_way.is_empty() && self.owes_nothing()))
            {
                return Ok(match link.close().await {
                    Ok(()) => End::Stopped,
                    Err(failure) => End::Failed(failure),
                });
            }
            // What is rare comes first, so that a fast sink cannot keep it waiting.
            tokio::select! {
                biased;
                _ = settle_beat.tick() => self.note_progress().await?,
                _ = health_beat.tick() => self.aside.push_back(Delivery::Health { body: self.reporter.health() }),
                _ = choose_beat.tick() => self.choose_kept(),
                () = stop.cancelled(), if flush_until.is_none() => flush_until = Some(Instant::now() + FLUSH_MAX),
                () = tokio::time::sleep_until(flush_until.unwrap_or_else(Instant::now)), if flush_until.is_some() => {}
                () = self.desk.laid.notified() => {}
                () = self.desk.answered.notified() => may_have_results = true,
                Some((sent, result)) = under_way.next(), if !under_way.is_empty() => {
                    if let Err(failure) = self.arrived(sent, result).await? {
                        return Ok(End::Failed(failure));
                    }
                }
            }
        }
    }

    /// Everything that is kept is said again: a broker that came back may have forgotten it, or an
    /// older copy of it may have come back with the broker.
    async fn begin_link(&mut self) -> Result<(), StoreError> {
        self.collect();
        self.aside.clear();
        self.has_said_info = false;
        let now = self.clock.now();
        for (server, owed) in &mut self.lanes {
            owed.said_online = None;
            owed.said_stats = Bytes::new();
            self.board.read(server, |content| {
                owed.kept = Kept::choose(&content.told, self.settings.retain, now);
                for (hash, told) in content.told.iter().filter(|(hash, _)| owed.kept.contains(hash)) {
                    let known = Known::Picture(Arc::clone(&told.torrent));
                    if !owed.dirty.owes(hash) {
                        owed.dirty.mark(*hash, known, told.last_seq);
                    }
                }
            });
        }
        self.find_leftovers();
        let names = self.names_of_kept();
        self.register(names).await
    }

    /// What the registry has and nobody wants any more is to be taken back.
    fn find_leftovers(&mut self) {
        let mut wanted: HashSet<String> = self.names_of_kept().into_iter().collect();
        wanted.extend(self.lanes.keys().flat_map(|server| {
            let status = Delivery::ServerStatus { server: server.clone(), is_online: false };
            let stats = Delivery::Stats { server: server.clone(), body: Bytes::new() };
            [self.sink.kept_as(&status), self.sink.kept_as(&stats)].into_iter().flatten()
        }));
        let leftovers = self.registry.iter().filter(|name| !wanted.contains(*name) && !self.sink.is_own(name));
        self.leftovers = leftovers.cloned().collect();
    }

    fn names_of_kept(&self) -> Vec<String> {
        let mut names = Vec::new();
        for (server, owed) in &self.lanes {
            self.board.read(server, |content| {
                let kept = content.told.keys().filter(|hash| owed.kept.contains(hash));
                names.extend(kept.filter_map(|hash| self.name_of_state(server, *hash)));
            });
        }
        names
    }

    fn name_of_state(&self, server: &ServerName, hash: InfoHash) -> Option<String> {
        self.sink.kept_as(&Delivery::State { server: server.clone(), hash, body: Bytes::new(), keep: true })
    }

    /// Chooses anew which states are kept; those that came in or fell out are owed.
    fn choose_kept(&mut self) {
        let now = self.clock.now();
        for (server, owed) in &mut self.lanes {
            self.board.read(server, |content| {
                let kept = Kept::choose(&content.told, self.settings.retain, now);
                if kept == owed.kept {
                    return;
                }
                let before = std::mem::replace(&mut owed.kept, kept);
                for (hash, told) in &content.told {
                    if owed.kept.contains(hash) != before.contains(hash) && !owed.dirty.owes(hash) {
                        owed.dirty.mark(*hash, Known::Picture(Arc::clone(&told.torrent)), told.last_seq);
                    }
                }
            });
        }
    }

    /// After a start: what was told after the last note may never have arrived.
    fn mark_unsent(&mut self) {
        for (server, owed) in &mut self.lanes {
            self.board.read(server, |content| {
                for (hash, told) in content.told.iter().filter(|(_, told)| told.rev > owed.sent_rev) {
                    owed.dirty.mark(*hash, Known::Forgotten, told.last_seq);
                }
            });
        }
    }

    /// Takes in what lies on the desk.
    fn collect(&mut self) {
        let tray = self.desk.take();
        self.aside.extend(tray.aside);
        let mut has_other_torrents = false;
        for (server, changed) in tray.changed {
            let Some(owed) = self.lanes.get_mut(&server) else { continue };
            for (hash, laid) in changed {
                has_other_torrents |= laid.before.is_none();
                let known = laid.before.map_or(Known::Nothing, Known::Picture);
                owed.dirty.mark(hash, known, laid.not_before);
            }
        }
        if has_other_torrents {
            self.choose_kept();
        }
    }

    /// Fills the window of the link with what is owed, most urgent first.
    async fn fill(
        &mut self,
        link: &mut dyn Link,
        under_way: &mut UnderWay,
        may_have_results: &mut bool,
    ) -> Result<(), StoreError> {
        loop {
            let free = link.depth().saturating_sub(under_way.len());
            let mut batch = Vec::new();
            self.pick_status(free, &mut batch);
            if batch.len() < free && std::mem::take(may_have_results) {
                self.pick_results(free, &mut batch).await?;
            }
            self.pick_entries(free, &mut batch).await?;
            self.pick_states(free, &mut batch);
            while batch.len() < free
                && let Some(delivery) = self.aside.pop_front()
            {
                batch.push((delivery, Sent::Other));
            }
            while batch.len() < free
                && let Some(name) = self.leftovers.pop_first()
            {
                batch.push(self.clear(name));
            }
            if batch.is_empty() {
                return Ok(());
            }
            let names = batch.iter().filter_map(|(delivery, _)| self.sink.kept_as(delivery)).collect();
            self.register(names).await?;
            for (delivery, sent) in batch {
                let arrival = link.send(delivery);
                under_way.push(Box::pin(async move { (sent, arrival.await) }));
            }
        }
    }

    fn pick_status(&mut self, free: usize, batch: &mut Vec<(Delivery, Sent)>) {
        if free > 0 && !std::mem::replace(&mut self.has_said_info, true) {
            batch.push((Delivery::Info { body: self.reporter.info() }, Sent::Other));
        }
        for (server, owed) in &mut self.lanes {
            let Some((is_online, stats)) =
                self.board.read(server, |content| (content.state.is_online, content.stats_body.clone()))
            else {
                continue;
            };
            if batch.len() < free && owed.said_online != Some(is_online) {
                owed.said_online = Some(is_online);
                batch.push((Delivery::ServerStatus { server: server.clone(), is_online }, Sent::Other));
            }
            if batch.len() < free && !stats.is_empty() && owed.said_stats != stats {
                owed.said_stats = stats.clone();
                batch.push((Delivery::Stats { server: server.clone(), body: stats }, Sent::Other));
            }
        }
    }

    /// Results that are written down and not under way.
    async fn pick_results(&mut self, free: usize, batch: &mut Vec<(Delivery, Sent)>) -> Result<(), StoreError> {
        for result in self.store.unsent_results(&self.settings.name, RESULTS_MAX).await? {
            if batch.len() < free && self.results_under_way.insert(result.number) {
                let sent = Sent::Result { number: result.number };
                batch.push((Delivery::Result { server: result.server, body: result.body, reply: result.reply }, sent));
            }
        }
        Ok(())
    }

    /// Journal entries, the servers taking turns.
    async fn pick_entries(&mut self, free: usize, batch: &mut Vec<(Delivery, Sent)>) -> Result<(), StoreError> {
        let mut has_more = true;
        while has_more && batch.len() < free {
            has_more = false;
            for (server, owed) in &mut self.lanes {
                if batch.len() >= free {
                    break;
                }
                let written = self.board.read(server, |content| content.last_seq).unwrap_or_default();
                if let Some(after) = owed.lane.wants_after(written) {
                    let mut entries = self.store.read(server, after, READ_MAX).await?;
                    // What is not on the board yet would be followed by the state from before it.
                    entries.retain(|entry| entry.seq <= written);
                    owed.lane.fill(entries);
                }
                let Some(entry) = owed.lane.depart() else { continue };
                has_more = true;
                if self.settings.events.contains(&entry.kind) {
                    batch.push((Delivery::Event(entry.clone()), Sent::Entry(Box::new(entry))));
                } else {
                    // The sink does not hear of it, so what it knows of the torrent stays.
                    owed.lane.settle(entry.seq);
                    self.is_unsettled = true;
                }
            }
        }
        Ok(())
    }

    fn pick_states(&mut self, free: usize, batch: &mut Vec<(Delivery, Sent)>) {
        // The board may have moved on while entries were read.
        self.collect();
        let now = self.clock.now();
        let wants_updates = self.settings.events.contains(&Kind::Updated);
        let servers: Vec<ServerName> = self.lanes.keys().cloned().collect();
        for server in servers {
            // A state is up to three messages: the update, the clearing of a kept copy, the state.
            while batch.len() < free {
                let Some(owed) = self.lanes.get_mut(&server) else { break };
                let Some((hash, known)) = owed.dirty.next(owed.lane.cursor()) else { break };
                let now_told = self.board.read(&server, |content| (content.epoch, content.told.get(&hash).cloned()));
                let Some((epoch, told)) = now_told else { break };
                // Told this instant and not on the desk yet: its entries go first.
                if let Some(told) = told.as_ref().filter(|told| told.last_seq > owed.lane.cursor()) {
                    owed.dirty.hold(hash, told.last_seq);
                    continue;
                }
                let keep = owed.kept.contains(&hash);
                let picture = told.as_ref().map_or(Known::Nothing, |told| Known::Picture(Arc::clone(&told.torrent)));
                owed.dirty.sent(hash, picture);
                let name = self.name_of_state(&server, hash).filter(|name| self.registry.contains(name));
                if let Some(told) = &told {
                    if wants_updates && let Some(changes) = changes_for(&known, &told.torrent) {
                        let id = EventId::Updated { server: server.clone(), epoch, rev: told.rev };
                        let body = updated(&server, hash, &id, now, changes, &told.torrent);
                        let delivery = Delivery::Updated { server: server.clone(), hash, id, time: now, body };
                        batch.push((delivery, Sent::Other));
                    }
                    match name {
                        Some(name) if keep => {
                            self.clearing.remove(&name);
                            self.leftovers.remove(&name);
                        }
                        Some(name) => batch.push(self.clear(name)),
                        None => {}
                    }
                    let body = Bytes::from(serde_json::to_vec(&*told.torrent).expect("a torrent is plain JSON"));
                    let delivery = Delivery::State { server: server.clone(), hash, body, keep };
                    batch.push((delivery, Sent::State { server: server.clone(), hash }));
                } else {
                    batch.extend(name.map(|name| self.clear(name)));
                    if let Some(owed) = self.lanes.get_mut(&server) {
                        owed.dirty.settled(hash);
                    }
                }
            }
        }
    }

    fn clear(&mut self, name: String) -> (Delivery, Sent) {
        self.clearing.insert(name.clone());
        (Delivery::Clear { name: name.clone() }, Sent::Cleared { name })
    }

    /// Writes names down that are not in the registry yet.
    async fn register(&mut self, names: Vec<String>) -> Result<(), StoreError> {
        let new: Vec<String> = names.into_iter().filter(|name| !self.registry.contains(name)).collect();
        if new.is_empty() {
            return Ok(());
        }
        let register = || self.store.register(&self.settings.name, new.clone());
        until_there_is_room("the list of what is kept", register).await?;
        self.registry.extend(new);
        Ok(())
    }

    /// Deals with the end of one delivery; the inner error ends the link.
    async fn arrived(
        &mut self,
        sent: Sent,
        result: Result<(), DeliverError>,
    ) -> Result<Result<(), DeliverError>, StoreError> {
        let rejected = match result {
            Ok(()) => None,
            Err(DeliverError::Rejected { reason }) => Some(reason),
            Err(failure) => return Ok(Err(failure)),
        };
        let sink = &self.settings.name;
        self.desk.report(|report| match &rejected {
            None => report.delivered += 1,
            Some(_) => report.rejected += 1,
        });
        match sent {
            Sent::Entry(entry) => {
                if let Some(reason) = &rejected {
                    warn!(%sink, id = %entry.id, reason, "an event was rejected and put aside");
                    until_there_is_room("a dead letter", || self.store.bury(sink, &entry, reason)).await?;
                }
                if let Some(owed) = self.lanes.get_mut(&entry.server) {
                    owed.lane.settle(entry.seq);
                    if rejected.is_none() {
                        learn_from(owed, &self.board, &entry);
                    }
                    self.is_unsettled = true;
                }
            }
            Sent::State { server, hash } => {
                if let Some(reason) = &rejected {
                    warn!(%sink, %server, %hash, reason, "a state was rejected");
                }
                if let Some(owed) = self.lanes.get_mut(&server) {
                    owed.dirty.settled(hash);
                    self.is_unsettled = true;
                }
            }
            Sent::Cleared { name } => {
                if let Some(reason) = &rejected {
                    warn!(%sink, reason, "a kept message could not be cleared");
                }
                if self.clearing.remove(&name) {
                    let cross_out = || self.store.unregister(sink, vec![name.clone()]);
                    until_there_is_room("the list of what is kept", cross_out).await?;
                    // Not before: the link may die meanwhile, and the name is to be cleared again then.
                    self.registry.remove(&name);
                }
            }
            Sent::Result { number } => {
                if let Some(reason) = &rejected {
                    warn!(%sink, reason, "a result was rejected and is lost");
                }
                until_there_is_room("a result", || self.store.result_sent(number)).await?;
                self.results_under_way.remove(&number);
                self.desk.answered.notify_one();
            }
            Sent::Other => {
                if let Some(reason) = &rejected {
                    warn!(%sink, reason, "a message was rejected");
                }
            }
        }
        Ok(Ok(()))
    }

    /// The link is over: what is not settled is owed again.
    fn go_back(&mut self) {
        for owed in self.lanes.values_mut() {
            owed.lane.go_back();
            owed.dirty.go_back();
        }
        self.aside.clear();
        self.clearing.clear();
        self.results_under_way.clear();
    }

    async fn note_progress(&mut self) -> Result<(), StoreError> {
        if !std::mem::take(&mut self.is_unsettled) {
            return Ok(());
        }
        // What lies on the desk is not sent either.
        self.collect();
        let mut progress = BTreeMap::new();
        for (server, owed) in &mut self.lanes {
            if owed.dirty.is_empty() {
                let newest = self.board.read(server, |content| content.told.values().map(|told| told.rev).max());
                owed.sent_rev = newest.flatten().unwrap_or(owed.sent_rev).max(owed.sent_rev);
            }
            progress.insert(server.clone(), Progress { cursor: owed.lane.cursor(), sent_rev: owed.sent_rev });
        }
        match self.store.settle(&self.settings.name, progress).await {
            Err(StoreError::Full { reason }) => {
                debug!(sink = %self.settings.name, reason, "cannot note the cursor now");
                self.is_unsettled = true;
                Ok(())
            }
            other => other,
        }
    }

    fn owes_nothing(&self) -> bool {
        self.aside.is_empty()
            && self.leftovers.is_empty()
            && self.lanes.iter().all(|(server, owed)| {
                let written = self.board.read(server, |content| content.last_seq).unwrap_or_default();
                owed.lane.is_drained(written) && owed.dirty.is_empty()
            })
    }

    fn report_backlog(&self) {
        let mut lag_entries = 0;
        for (server, owed) in &self.lanes {
            let written = self.board.read(server, |content| content.last_seq).unwrap_or_default();
            lag_entries += written.0.saturating_sub(owed.lane.cursor().0);
        }
        let dirty = self.lanes.values().map(|owed| owed.dirty.len() as u64).sum();
        self.desk.report(|report| report.backlog(lag_entries, dirty));
    }
}

impl ServerLane {
    fn new(progress: Progress) -> Self {
        Self {
            lane: Lane::new(progress.cursor),
            dirty: DirtySet::default(),
            kept: Kept::None,
            sent_rev: progress.sent_rev,
            said_online: None,
            said_stats: Bytes::new(),
        }
    }
}

/// The sink has the entry: what it knows of the torrent moves on.
fn learn_from(owed: &mut ServerLane, board: &Board, entry: &Entry) {
    let Some(hash) = entry.hash else { return };
    if !owed.dirty.owes(&hash) {
        return;
    }
    let told = board.read(&entry.server, |content| content.told.get(&hash).cloned()).flatten();
    let known = match told {
        _ if entry.kind == Kind::Removed => Known::Nothing,
        Some(told) if told.rev == entry.rev => Known::Picture(told.torrent),
        _ => picture_in(entry).map_or(Known::Forgotten, Known::Picture),
    };
    owed.dirty.learned(hash, known, entry.seq);
}

/// The torrent as the entry shows it, from its bytes.
fn picture_in(entry: &Entry) -> Option<Arc<Torrent>> {
    #[derive(serde::Deserialize)]
    struct Body {
        torrent: Torrent,
    }
    serde_json::from_slice::<Body>(&entry.body).ok().map(|body| Arc::new(body.torrent))
}

/// What `updated` has to say to a sink that knows this much; `None` if nothing.
fn changes_for(known: &Known, told: &Torrent) -> Option<Changes> {
    match known {
        Known::Nothing => None,
        Known::Forgotten => Some(Changes::new()),
        Known::Picture(picture) => Some(picture.changes_to(told)).filter(|changes| !changes.is_empty()),
    }
}

fn updated(
    server: &ServerName,
    hash: InfoHash,
    id: &EventId,
    time: crate::model::Timestamp,
    changes: Changes,
    torrent: &Arc<Torrent>,
) -> Bytes {
    let event = Event {
        schema: EVENT_SCHEMA,
        entity: Entity::Torrent,
        event_type: Kind::Updated,
        id: id.clone(),
        seq: None::<Seq>,
        time,
        server: server.clone(),
        hash: Some(hash),
        cause: Cause::Observed,
        command_id: None,
        changes,
        torrent: Some(Arc::clone(torrent)),
    };
    Bytes::from(event.to_json())
}

fn beat(each: Duration) -> tokio::time::Interval {
    let mut beat = interval(each);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat
}
