//! The live state: the last committed snapshot of each server, for the whole process to read.
//!
//! ```text
//! watcher ── commit ──► store
//!    └────── publish ─► LiveState ─► ChangeBuffer of each sink ─► outboxes
//! ```
//!
//! Invariants:
//! - only the watcher of a server writes its part, after the commit: nothing is here that is not in the store;
//! - a change is in the buffers as soon as it can be read here, as both are written under one lock;
//! - a change that is not taken in time is not lost: the buffer then holds the oldest state, and this the newest.
//!
//! Locks are held for the time of a look-up, never across an await; that of a buffer inside that of a server, never the
//! other way round.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::model::{
    CommandId, Committed, Epoch, InfoHash, JournalEntry, Seq, ServerName, ServerState, ServerStats, SinkName, Snapshot,
    Torrent,
};
use crate::port::{Delivery, Hooks};

/// Maximum number of ephemeral messages, such as lists of files, that wait for a slow sink; the oldest are dropped.
pub const EPHEMERAL_MAX: usize = 1024;

/// Maximum number of journal entries of one server that wait for a slow sink; beyond that, the oldest are dropped here and
/// read from the store.
const ENTRIES_MAX: usize = 512;
/// The same limit in bytes of their bodies.
const ENTRY_BYTES_MAX: usize = 1 << 20;

/// Maximum number of torrents that hooks can name between two polls; beyond that, a full poll is cheaper.
const NAMED_MAX: usize = 256;

/// The snapshots of all servers, and the change buffers of all sinks.
pub struct LiveState {
    servers: BTreeMap<ServerName, ServerHandle>,
    buffers: BTreeMap<SinkName, Arc<ChangeBuffer>>,
    /// Of callers over HTTP, who receive only results.
    http: Arc<ChangeBuffer>,
    /// Of readers in this process; one is gone when its reader has dropped it.
    subscribers: Mutex<Vec<Weak<ChangeBuffer>>>,
}

/// One server: its live state, and what wakes its tasks.
pub struct ServerHandle {
    content: RwLock<LiveServer>,
    /// Wakes all who wait for the content to change. A `watch` channel would wake them in random order, and then the
    /// same seed would not be the same run of the simulation.
    changed: Notify,
    /// Wakes the watcher for a poll; carries no data.
    pub wake: Notify,
    /// Notified by hooks in the client.
    pub hook_notifier: HookNotifier,
    /// Verifications in progress, by command: bytes read and bytes in total.
    checks: Mutex<BTreeMap<CommandId, (u64, u64)>>,
}

/// A verification of content in progress; ends when it is dropped.
pub struct Checking<'a> {
    server: &'a ServerHandle,
    command: CommandId,
}

impl Checking<'_> {
    /// Reports how far the verification has come.
    pub fn progress(&self, read_bytes: u64, total_bytes: u64) {
        self.server.checks().insert(self.command.clone(), (read_bytes, total_bytes));
    }
}

impl Drop for Checking<'_> {
    fn drop(&mut self) {
        self.server.checks().remove(&self.command);
    }
}

/// What is published of one server.
pub struct LiveServer {
    pub epoch: Epoch,
    pub snapshot: Snapshot,
    pub state: ServerState,
    /// The newest journal entry.
    pub last_seq: Seq,
    /// A sink knows an earlier epoch of this server: the watcher has to report `journal_reset`.
    pub needs_reset: bool,
    pub stats: ServerStats,
    /// The body of the statistics message, rendered every few seconds.
    pub stats_body: Bytes,
    pub poll: PollReport,
}

/// How polling goes, for health and metrics.
#[derive(Clone, Debug, Default)]
pub struct PollReport {
    pub last_success: Option<Instant>,
    /// When the last successful poll began: its listing is not older.
    pub last_began: Option<Instant>,
    pub duration: Duration,
    /// Why the last poll failed; `None` if it did not.
    pub failure: Option<String>,
    pub failures: u64,
    pub polls: u64,
    /// Of these, full polls.
    pub full: u64,
    /// Current time from one poll to the next.
    pub interval: Duration,
    /// Current maximum time between two full polls.
    pub sweep: Duration,
}

impl PollReport {
    /// Whether the last poll succeeded.
    pub fn is_answering(&self) -> bool {
        self.last_success.is_some() && self.failure.is_none()
    }
}

/// Notifications from hooks in the client of one server.
///
/// A notification is not believed, it only causes a poll; the hashes say which torrents to poll first.
#[derive(Default)]
pub struct HookNotifier {
    /// Wakes the watcher; notifications in the meantime count as one.
    pub notified: Notify,
    /// Wakes the task that installs hooks: the client is reachable again, or is another process.
    pub client_is_new: Notify,
    named: Mutex<Named>,
    report: Mutex<HookReport>,
}

/// Torrents that hooks named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    These(BTreeSet<InfoHash>),
    /// More than are worth polling one by one.
    Many,
}

impl Default for Named {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

/// State of the hooks in a client, for health and metrics.
#[derive(Clone, Debug, Default)]
pub struct HookReport {
    /// `None` until it is known; always, if no hooks are wanted.
    pub hooks: Option<Hooks>,
    /// Why they could not be installed or checked last time.
    pub problem: Option<String>,
    pub wakes: u64,
}

impl HookNotifier {
    /// Records a notification about a torrent and wakes the watcher.
    pub fn notify(&self, hash: InfoHash) {
        self.report(|report| report.wakes += 1);
        {
            let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
            if let Named::These(hashes) = &mut *named {
                hashes.insert(hash);
                if hashes.len() > NAMED_MAX {
                    *named = Named::Many;
                }
            }
        }
        self.notified.notify_one();
    }

    /// Takes the torrents named since the last call. For the watcher only.
    pub fn take_named(&self) -> Named {
        std::mem::take(&mut *self.named.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn report(&self, write: impl FnOnce(&mut HookReport)) {
        write(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn last_report(&self) -> HookReport {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl LiveState {
    pub fn new(servers: BTreeMap<ServerName, LiveServer>, sinks: impl IntoIterator<Item = SinkName>) -> Self {
        let servers = servers.into_iter().map(|(name, content)| (name, ServerHandle::new(content))).collect();
        let buffers = sinks.into_iter().map(|name| (name, Arc::default())).collect();
        Self { servers, buffers, http: Arc::default(), subscribers: Mutex::default() }
    }

    /// Returns the change buffer of a sink; `None` if there is no such sink.
    pub fn buffer(&self, sink: &SinkName) -> Option<&Arc<ChangeBuffer>> {
        self.buffers.get(sink).or_else(|| (*sink == SinkName::http()).then_some(&self.http))
    }

    pub fn buffers(&self) -> impl Iterator<Item = (&SinkName, &Arc<ChangeBuffer>)> {
        self.buffers.iter()
    }

    /// Returns a new buffer for a reader; changes are added to it as long as it is held.
    pub fn subscribe(&self) -> Arc<ChangeBuffer> {
        let buffer = Arc::new(ChangeBuffer::default());
        self.subscribers().push(Arc::downgrade(&buffer));
        buffer
    }

    fn subscribers(&self) -> MutexGuard<'_, Vec<Weak<ChangeBuffer>>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn for_each_buffer(&self, mut visit: impl FnMut(&ChangeBuffer)) {
        self.buffers.values().for_each(|buffer| visit(buffer));
        self.subscribers().retain(|subscriber| subscriber.upgrade().is_some_and(|buffer| (visit(&buffer), true).1));
    }

    pub fn names(&self) -> impl Iterator<Item = &ServerName> {
        self.servers.keys()
    }

    pub fn server(&self, name: &ServerName) -> Option<&ServerHandle> {
        self.servers.get(name)
    }

    /// Reads the live state of a server; `None` if there is no such server.
    pub fn read<T>(&self, name: &ServerName, read: impl FnOnce(&LiveServer) -> T) -> Option<T> {
        self.server(name).map(|server| server.read(read))
    }

    /// Makes a commit visible, and adds it to the change buffer of every sink.
    pub fn publish(&self, name: &ServerName, committed: Committed, state: Option<ServerState>) {
        let Some(server) = self.server(name) else { return };
        server.write(|content| {
            let mut changed = Vec::with_capacity(committed.snapshot.len());
            content.last_seq = committed.last_seq;
            if let Some(state) = state {
                content.state = state;
            }
            for (hash, snapshot) in committed.snapshot {
                let (before, not_before) = match snapshot {
                    Some(snapshot) => {
                        let not_before = snapshot.last_seq;
                        (content.snapshot.insert(hash, snapshot), not_before)
                    }
                    None => (content.snapshot.remove(&hash), committed.last_seq),
                };
                changed.push((hash, before.map(|before| before.torrent), not_before));
            }
            // Under the same lock: who reads the live state finds in the buffer what led there.
            self.for_each_buffer(|buffer| buffer.record(name, &changed, &committed.entries));
        });
    }

    /// Wakes all sinks that commands come by: a result was written to the command log.
    pub fn wake_for_results(&self) {
        self.buffers.values().chain([&self.http]).for_each(|buffer| buffer.results.notify_one());
    }

    /// Wakes every sink: something that is read from the live state itself has changed.
    pub fn wake_sinks(&self) {
        self.for_each_buffer(|buffer| buffer.changed.notify_one());
    }

    /// Passes a message that is neither event nor state to every sink; one that is disconnected misses it. Readers have no
    /// use for these.
    pub fn publish_ephemeral(&self, delivery: &Delivery) {
        self.buffers.values().for_each(|buffer| buffer.record_ephemeral(delivery.clone()));
    }
}

impl ServerHandle {
    fn new(content: LiveServer) -> Self {
        Self {
            content: RwLock::new(content),
            changed: Notify::new(),
            wake: Notify::new(),
            hook_notifier: HookNotifier::default(),
            checks: Mutex::default(),
        }
    }

    /// Begins a verification; its progress is visible until the returned value is dropped.
    pub fn begin_check(&self, command: &CommandId) -> Checking<'_> {
        Checking { server: self, command: command.clone() }
    }

    pub fn checks(&self) -> MutexGuard<'_, BTreeMap<CommandId, (u64, u64)>> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn read<T>(&self, read: impl FnOnce(&LiveServer) -> T) -> T {
        read(&self.content.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the live state. For the watcher only, and for a sink that finds a `journal_reset` to be due.
    pub fn write(&self, write: impl FnOnce(&mut LiveServer)) {
        write(&mut self.content.write().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_waiters();
    }

    /// Waits until `read` returns something; it is called now and after each change. Cancel-safe.
    pub async fn wait_for<T>(&self, read: impl Fn(&LiveServer) -> Option<T>) -> T {
        loop {
            // Made before the read: from then on no change is missed.
            let changed = self.changed.notified();
            if let Some(found) = self.read(&read) {
                return found;
            }
            changed.await;
        }
    }
}

/// A change of one torrent that a sink has not dealt with yet.
#[derive(Clone, Debug)]
pub struct BufferedChange {
    /// The torrent before the oldest change in the buffer; `None` if there was none.
    pub before: Option<Arc<Torrent>>,
    /// The newest journal entry about the torrent: its state is sent after that.
    pub not_before: Seq,
}

/// State of the delivery to one sink, for health and metrics.
#[derive(Clone, Debug, Default)]
pub struct SinkReport {
    pub is_connected: bool,
    /// Why the sink is not connected.
    pub failure: Option<String>,
    /// Why its events wait, connected or not: somebody has to make room among the dead letters.
    pub blocked_reason: Option<String>,
    /// Journal entries that are not acknowledged.
    pub lag_entries: u64,
    /// Start of the current lag.
    pub behind_since: Option<Instant>,
    /// Torrents whose latest state is not acknowledged.
    pub dirty: u64,
    pub delivered: u64,
    pub rejected: u64,
}

impl SinkReport {
    /// Returns what is wrong with the delivery; `None` if nothing is.
    pub fn problem(&self) -> Option<String> {
        self.blocked_reason.clone().or_else(|| self.failure.clone())
    }

    /// Records how far the sink is behind.
    pub fn backlog(&mut self, lag_entries: u64, dirty: u64) {
        self.lag_entries = lag_entries;
        self.dirty = dirty;
        self.behind_since = (lag_entries > 0).then(|| self.behind_since.unwrap_or_else(Instant::now));
    }
}

/// Changes on their way to one sink: at most one per torrent, and a bounded number of everything else.
///
/// Each outbox of the sink takes its own part. Nothing here is the only copy: journal entries that were dropped for room
/// are read from the store, and a change that is not taken in time keeps the oldest `before`.
#[derive(Default)]
pub struct ChangeBuffer {
    buffered: Mutex<Buffered>,
    report: Mutex<SinkReport>,
    /// Woken when something was added.
    pub changed: Notify,
    /// Woken when the result of a command that came by this sink was written down.
    pub results: Notify,
}

#[derive(Default)]
struct Buffered {
    states: BufferedStates,
    ephemeral: BufferedEphemeral,
    /// Of the servers whose entries are wanted; see [`ChangeBuffer::buffer_entries_of`].
    entries: BTreeMap<ServerName, BufferedEntries>,
    rewinds: BTreeMap<ServerName, Seq>,
}

/// Changed torrents, for the state outbox.
#[derive(Default)]
pub struct BufferedStates {
    pub changed: BTreeMap<ServerName, BTreeMap<InfoHash, BufferedChange>>,
    pub reassert: Reassert,
}

/// Messages that are neither event nor state, for the ephemeral outbox.
#[derive(Default)]
pub struct BufferedEphemeral {
    pub deliveries: VecDeque<Delivery>,
    pub reassert: Reassert,
}

/// What is to be published once more although it did not change.
#[derive(Default)]
pub struct Reassert {
    pub servers: BTreeSet<ServerName>,
    /// Everything, including what is published about the bridge itself.
    pub all: bool,
}

impl Reassert {
    pub fn includes(&self, server: &ServerName) -> bool {
        self.all || self.servers.contains(server)
    }
}

/// The newest journal entries of one server, without a gap.
#[derive(Default)]
struct BufferedEntries {
    entries: VecDeque<JournalEntry>,
    bytes: usize,
}

impl BufferedEntries {
    fn push(&mut self, entry: &JournalEntry) {
        // A watcher that was stopped between commit and publication leaves a gap; who comes to it reads the store.
        if self.entries.back().is_some_and(|last| last.seq.0 + 1 != entry.seq.0) {
            *self = Self::default();
        }
        self.bytes += entry.body.len();
        self.entries.push_back(entry.clone());
        while self.entries.len() > ENTRIES_MAX || self.bytes > ENTRY_BYTES_MAX {
            self.pop();
        }
    }

    fn pop(&mut self) -> Option<JournalEntry> {
        let entry = self.entries.pop_front()?;
        self.bytes -= entry.body.len();
        Some(entry)
    }

    fn take_after(&mut self, after: Seq) -> Vec<JournalEntry> {
        while self.entries.front().is_some_and(|entry| entry.seq <= after) {
            self.pop();
        }
        match self.entries.front() {
            Some(first) if first.seq.0 == after.0 + 1 => {
                self.bytes = 0;
                std::mem::take(&mut self.entries).into()
            }
            _ => Vec::new(),
        }
    }
}

impl ChangeBuffer {
    fn buffered(&self) -> MutexGuard<'_, Buffered> {
        self.buffered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, add: impl FnOnce(&mut Buffered)) {
        add(&mut self.buffered());
        self.changed.notify_one();
    }

    fn record(&self, server: &ServerName, changed: &[(InfoHash, Option<Arc<Torrent>>, Seq)], entries: &[JournalEntry]) {
        self.add(|buffered| {
            let of_server = buffered.states.changed.entry(server.clone()).or_default();
            for (hash, before, not_before) in changed {
                of_server
                    .entry(*hash)
                    .and_modify(|changed| changed.not_before = *not_before)
                    .or_insert_with(|| BufferedChange { before: before.clone(), not_before: *not_before });
            }
            if let Some(buffer) = buffered.entries.get_mut(server) {
                entries.iter().for_each(|entry| buffer.push(entry));
            }
        });
    }

    fn record_ephemeral(&self, delivery: Delivery) {
        self.add(|Buffered { ephemeral: BufferedEphemeral { deliveries, .. }, .. }| {
            if deliveries.len() >= EPHEMERAL_MAX {
                deliveries.pop_front();
            }
            deliveries.push_back(delivery);
        });
    }

    /// Sends the events of a server again, from this one on.
    pub fn rewind(&self, server: &ServerName, from: Seq) {
        self.add(|buffered| {
            let noted = buffered.rewinds.entry(server.clone()).or_insert(from);
            *noted = from.min(*noted);
        });
    }

    /// Publishes the state of one server once more, or of everything.
    pub fn reassert(&self, server: Option<&ServerName>) {
        self.add(|Buffered { states, ephemeral, .. }| {
            for reassert in [&mut states.reassert, &mut ephemeral.reassert] {
                match server {
                    Some(server) => drop(reassert.servers.insert(server.clone())),
                    None => reassert.all = true,
                }
            }
        });
    }

    /// Updates the report. For the sink's dispatcher only.
    pub fn report(&self, write: impl FnOnce(&mut SinkReport)) {
        write(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn last_report(&self) -> SinkReport {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Buffers the journal entries of these servers from now on; without this call none are.
    pub fn buffer_entries_of(&self, servers: &[ServerName]) {
        self.buffered().entries = servers.iter().map(|server| (server.clone(), BufferedEntries::default())).collect();
    }

    /// Takes the entries that follow `after`; none if the next one is not in the buffer.
    pub fn take_entries(&self, server: &ServerName, after: Seq) -> Vec<JournalEntry> {
        self.buffered().entries.get_mut(server).map(|entries| entries.take_after(after)).unwrap_or_default()
    }

    /// Takes what was asked for with [`Self::rewind`].
    pub fn take_rewinds(&self) -> BTreeMap<ServerName, Seq> {
        std::mem::take(&mut self.buffered().rewinds)
    }

    /// Takes the changed torrents.
    pub fn take_states(&self) -> BufferedStates {
        std::mem::take(&mut self.buffered().states)
    }

    /// Takes the ephemeral messages.
    pub fn take_ephemeral(&self) -> BufferedEphemeral {
        std::mem::take(&mut self.buffered().ephemeral)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Epoch, EventId, Kind, Rev, Timestamp};

    fn home() -> ServerName {
        ServerName::parse("home").unwrap()
    }

    fn entries(seqs: std::ops::RangeInclusive<u64>, bytes: usize) -> Vec<JournalEntry> {
        let entry = |seq| {
            let id = EventId::Journal { server: home(), epoch: Epoch(1), seq: Seq(seq) };
            let (time, body) = (Timestamp::from_millis(0), Bytes::from(vec![0; bytes]));
            JournalEntry::stored(id, Kind::Added, None, Rev(0), time, body)
        };
        seqs.map(entry).collect()
    }

    fn taken(buffer: &ChangeBuffer, after: u64) -> Vec<u64> {
        buffer.take_entries(&home(), Seq(after)).iter().map(|entry| entry.seq.0).collect()
    }

    #[test]
    fn entries_are_handed_out_only_without_a_gap() {
        let buffer = ChangeBuffer::default();
        buffer.record(&home(), &[], &entries(1..=2, 1));
        assert_eq!(taken(&buffer, 0), [0; 0], "nobody asked for them");
        buffer.buffer_entries_of(&[home()]);
        buffer.record(&home(), &[], &entries(3..=6, 1));
        assert_eq!(taken(&buffer, 1), [0; 0], "2 is missing");
        assert_eq!(taken(&buffer, 3), [4, 5, 6]);
        assert_eq!(taken(&buffer, 6), [0; 0]);
        buffer.record(&home(), &[], &entries(7..=8, 1));
        buffer.record(&home(), &[], &entries(10..=11, 1));
        assert_eq!(taken(&buffer, 6), [0; 0], "9 is missing");
        assert_eq!(taken(&buffer, 9), [10, 11]);
    }

    #[test]
    fn the_newest_entries_stay_when_there_are_too_many_or_too_large_ones() {
        let buffer = ChangeBuffer::default();
        buffer.buffer_entries_of(&[home()]);
        let last = 2 * ENTRIES_MAX as u64;
        buffer.record(&home(), &[], &entries(1..=last, 1));
        let first_kept = last - ENTRIES_MAX as u64 + 1;
        assert_eq!(taken(&buffer, first_kept - 2), [0; 0]);
        assert_eq!(taken(&buffer, first_kept - 1).len(), ENTRIES_MAX);
        buffer.record(&home(), &[], &entries(1..=3, ENTRY_BYTES_MAX / 2));
        assert_eq!(taken(&buffer, 1), [2, 3]);
    }
}
