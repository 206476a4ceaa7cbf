//! The change buffer of one sink or reader: what was published, and is not taken by its outboxes yet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::model::{InfoHash, JournalEntry, MemoryShares, Seq, ServerName, Torrent};
use crate::port::Delivery;

/// Maximum number of ephemeral messages, such as lists of files, that wait for a slow sink; the oldest are dropped.
pub const EPHEMERAL_MAX: usize = 1024;

/// Maximum number of journal entries of one server that wait for a slow sink; beyond that, the oldest are dropped here and
/// read from the store.
const ENTRIES_MAX: usize = 512;
/// The same limit in bytes of their bodies, at most: more would hardly ever be there.
const ENTRY_BYTES_MAX: usize = 1 << 20;

/// A change of one torrent that a sink has not dealt with yet.
#[derive(Clone, Debug)]
pub struct BufferedChange {
    /// The torrent before the oldest change in the buffer; `None` if there was none.
    pub before: Option<Arc<Torrent>>,
    /// The newest journal entry about the torrent: its state is sent after that.
    pub not_before: Seq,
}

/// Whether commands can be received by way of a sink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CommandReception {
    /// None are taken from there, or its kind of sink does not say.
    #[default]
    NotTaken,
    /// The command topics are not subscribed to yet.
    NotYet,
    /// Every command topic is subscribed to.
    Complete,
    /// Some or all commands cannot be received; why.
    Failed(String),
}

impl CommandReception {
    /// Returns whether all commands can be received; `None` if none are taken.
    pub fn is_complete(&self) -> Option<bool> {
        (*self != Self::NotTaken).then_some(*self == Self::Complete)
    }

    /// Returns why commands cannot be received.
    pub fn failure(&self) -> Option<&str> {
        match self {
            Self::NotTaken | Self::Complete => None,
            Self::NotYet => Some("the command topics are not subscribed to yet"),
            Self::Failed(reason) => Some(reason),
        }
    }
}

/// State of the delivery to one sink, and of the commands from there, for health and metrics.
#[derive(Clone, Debug, Default)]
pub struct SinkReport {
    /// A link is up.
    pub is_connected: bool,
    /// Why the sink is not connected.
    pub failure: Option<String>,
    /// Why its events wait, connected or not: somebody has to make room among the dead letters.
    pub blocked_reason: Option<String>,
    /// Whether commands can be received.
    pub reception: CommandReception,
    /// Journal entries that are not acknowledged.
    pub lag_entries: u64,
    /// Start of the current lag.
    pub behind_since: Option<Instant>,
    /// Torrents whose latest state is not acknowledged.
    pub dirty: u64,
    /// Deliveries acknowledged since the start of the process.
    pub delivered: u64,
    /// Deliveries rejected since the start of the process.
    pub rejected: u64,
}

impl SinkReport {
    /// Returns what is wrong with the sink; `None` if nothing is.
    pub fn problem(&self) -> Option<String> {
        // The block first: somebody has to act, whereas a connection is tried again. Without one there are no commands either.
        let reception = || self.reception.failure().map(str::to_owned);
        self.blocked_reason.clone().or_else(|| self.failure.clone()).or_else(reception)
    }

    /// Records how far the sink is behind.
    pub fn backlog(&mut self, lag_entries: u64, dirty: u64) {
        self.lag_entries = lag_entries;
        self.dirty = dirty;
        // The start of the lag, not of the last entry: an old lag that never ends has to be seen.
        self.behind_since = (lag_entries > 0).then(|| self.behind_since.unwrap_or_else(Instant::now));
    }
}

/// Changes on their way to one sink: at most one per torrent, and a bounded number of everything else.
///
/// Each outbox of the sink takes its own part. Nothing here is the only copy: journal entries that were dropped for room
/// are read from the store, and a change that is not taken in time keeps the oldest `before`.
pub struct ChangeBuffer {
    shares: MemoryShares,
    buffered: Mutex<Buffered>,
    report: Mutex<SinkReport>,
    /// Woken when something was added.
    pub changed: Notify,
    /// Woken when the result of a command that came by this sink was written down.
    pub results: Notify,
    /// Woken when results are marked as sent, for the receiver of the sink's commands, which waits for room. It is the only
    /// one who waits, so a notification that comes too early is kept for it.
    pub results_sent: Notify,
}

#[derive(Default)]
struct Buffered {
    states: BufferedStates,
    ephemeral: BufferedEphemeral,
    /// Entries of the servers for which they are wanted; see [`ChangeBuffer::buffer_entries_of`].
    entries: BTreeMap<ServerName, BufferedEntries>,
    rewinds: BTreeMap<ServerName, Seq>,
}

/// Changed torrents, for the state outbox.
#[derive(Default)]
pub struct BufferedStates {
    /// One change for each torrent, however often it changed.
    pub changed: BTreeMap<ServerName, BTreeMap<InfoHash, BufferedChange>>,
    /// States to publish once more.
    pub reassert: Reassert,
}

/// Messages that are neither event nor state, for the ephemeral outbox.
#[derive(Default)]
pub struct BufferedEphemeral {
    /// Messages in their order, at most [`EPHEMERAL_MAX`].
    pub deliveries: VecDeque<Delivery>,
    /// Status, statistics and info to publish once more.
    pub reassert: Reassert,
}

/// The request to publish something once more although it did not change.
#[derive(Default)]
pub struct Reassert {
    /// Everything of these servers.
    pub servers: BTreeSet<ServerName>,
    /// Everything, including what is published about the bridge itself.
    pub all: bool,
}

impl Reassert {
    /// Whether everything of this server is to be published once more.
    pub fn includes(&self, server: &ServerName) -> bool {
        self.all || self.servers.contains(server)
    }
}

/// The newest journal entries of one server, without a gap.
struct BufferedEntries {
    entries: VecDeque<JournalEntry>,
    bytes: usize,
    bytes_max: usize,
}

impl BufferedEntries {
    fn new(bytes_max: usize) -> Self {
        Self { entries: VecDeque::new(), bytes: 0, bytes_max }
    }

    fn push(&mut self, entry: &JournalEntry) {
        // A watcher that was stopped between commit and publication leaves a gap; a sink that comes to it reads the store.
        if self.entries.back().is_some_and(|last| last.seq.0 + 1 != entry.seq.0) {
            *self = Self::new(self.bytes_max);
        }
        self.bytes += entry.body.len();
        self.entries.push_back(entry.clone());
        // The oldest go: the store has them, and a sink that is behind begins there anyway.
        while self.entries.len() > ENTRIES_MAX || self.bytes > self.bytes_max {
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
            // Kept: the sink reads what is missing from the store, and comes to these after that.
            _ => Vec::new(),
        }
    }
}

/// A buffer with the default shares of memory.
impl Default for ChangeBuffer {
    fn default() -> Self {
        Self::new(MemoryShares::default())
    }
}

impl ChangeBuffer {
    /// Makes an empty buffer.
    pub fn new(shares: MemoryShares) -> Self {
        let (buffered, report) = Default::default();
        let [changed, results, results_sent] = [(), (), ()].map(|()| Notify::new());
        Self { shares, buffered, report, changed, results, results_sent }
    }

    fn buffered(&self) -> MutexGuard<'_, Buffered> {
        self.buffered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, add: impl FnOnce(&mut Buffered)) {
        add(&mut self.buffered());
        self.changed.notify_one();
    }

    pub(super) fn record(
        &self,
        server: &ServerName,
        changed: &[(InfoHash, Option<Arc<Torrent>>, Seq)],
        entries: &[JournalEntry],
    ) {
        self.add(|buffered| {
            let of_server = buffered.states.changed.entry(server.clone()).or_default();
            for (hash, before, not_before) in changed {
                of_server
                    .entry(*hash)
                    // `before` stays: the next update begins from what the sink has (I8).
                    .and_modify(|changed| changed.not_before = *not_before)
                    .or_insert_with(|| BufferedChange { before: before.clone(), not_before: *not_before });
            }
            if let Some(buffer) = buffered.entries.get_mut(server) {
                entries.iter().for_each(|entry| buffer.push(entry));
            }
        });
    }

    pub(super) fn record_ephemeral(&self, delivery: Delivery) {
        self.add(|Buffered { ephemeral: BufferedEphemeral { deliveries, .. }, .. }| {
            deliveries.push_back(delivery);
            self.trim_ephemeral(deliveries);
        });
    }

    /// Drops the oldest of too many ephemeral messages, and of too large ones: a quarter of their share is for those in the
    /// buffer, one for those that their outbox has taken. The newest stays whatever its size.
    pub fn trim_ephemeral(&self, deliveries: &mut VecDeque<Delivery>) {
        let mut bytes: usize = deliveries.iter().map(Delivery::body_bytes).sum();
        while deliveries.len() > EPHEMERAL_MAX || deliveries.len() > 1 && bytes > self.shares.ephemeral / 4 {
            bytes -= deliveries.pop_front().as_ref().map_or(0, Delivery::body_bytes);
        }
    }

    /// Returns the most bytes that may be in flight of ephemeral messages, and as many of states.
    pub fn lossy_bytes_max(&self) -> usize {
        self.shares.ephemeral / 4
    }

    /// Sends the events of a server again, from this one on.
    pub fn rewind(&self, server: &ServerName, from: Seq) {
        self.add(|buffered| {
            let noted = buffered.rewinds.entry(server.clone()).or_insert(from);
            // A replay goes back and never skips (I5): the earliest of several requests covers all of them.
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

    /// Updates the report. For the sink's dispatcher, and for the receiver of its commands.
    pub fn report(&self, write: impl FnOnce(&mut SinkReport)) {
        write(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Returns a copy of the report.
    pub fn last_report(&self) -> SinkReport {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Buffers the journal entries of these servers from now on; without this call none are.
    pub fn buffer_entries_of(&self, servers: &[ServerName]) {
        let bytes_max = ENTRY_BYTES_MAX.min(self.shares.events);
        self.buffered().entries =
            servers.iter().map(|server| (server.clone(), BufferedEntries::new(bytes_max))).collect();
    }

    /// Returns the bytes of entries of one server that may be in flight before another one is sent: half of their share, as
    /// with that one there are more.
    pub fn in_flight_bytes_max(&self) -> usize {
        self.shares.events / 2
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
    use bytes::Bytes;

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

    #[test]
    fn the_newest_ephemeral_messages_stay_within_their_share_of_the_memory() {
        let buffer = ChangeBuffer::new(MemoryShares { ephemeral: 4_000, events: 1_000, ..MemoryShares::default() });
        let files = |bytes| Delivery::Files {
            server: home(),
            hash: InfoHash::V1([1; 20]),
            body: Bytes::from(vec![b'x'; bytes]),
        };
        for bytes in [600, 300, 400, 200] {
            buffer.record_ephemeral(files(bytes));
        }
        let sizes = || buffer.take_ephemeral().deliveries.iter().map(Delivery::body_bytes).collect::<Vec<_>>();
        assert_eq!(sizes(), [300, 400, 200]);
        buffer.record_ephemeral(files(10));
        buffer.record_ephemeral(files(5_000));
        assert_eq!(sizes(), [5_000], "one is taken whatever its size");
        buffer.buffer_entries_of(&[home()]);
        buffer.record(&home(), &[], &entries(1..=4, 300));
        assert_eq!(taken(&buffer, 1), [2, 3, 4]);
    }
}
