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
//! Locks are held for the time of a read, never across an await; that of a buffer inside that of a server, never the
//! other way round.

mod change_buffer;
mod hook_notifier;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::model::{
    CommandId, Committed, Epoch, MemoryShares, Rev, Seq, ServerName, ServerState, ServerStats, SinkName, Snapshot,
};
use crate::port::{Delivery, Loaded, SinkProgress};

pub use change_buffer::{
    BufferedChange, BufferedEphemeral, BufferedStates, ChangeBuffer, CommandReception, Reassert, SinkReport,
};
pub use hook_notifier::{HookNotifier, HookReport, Named};

/// The snapshots of all servers, and the change buffers of all sinks.
pub struct LiveState {
    servers: BTreeMap<ServerName, ServerHandle>,
    buffers: BTreeMap<SinkName, Arc<ChangeBuffer>>,
    /// The buffer for callers over HTTP, who receive only results.
    http: Arc<ChangeBuffer>,
    /// The buffers of readers in this process; a dropped reader takes its buffer with it.
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

/// The published part of one server.
pub struct LiveServer {
    /// Epoch of the store.
    pub epoch: Epoch,
    /// Torrents as they were last committed.
    pub snapshot: Snapshot,
    /// State of the server as it was last committed.
    pub state: ServerState,
    /// The newest journal entry.
    pub last_seq: Seq,
    /// A sink knows an earlier epoch of this server: the watcher has to report `journal_reset`.
    pub needs_reset: bool,
    /// Statistics of the last successful poll.
    pub stats: ServerStats,
    /// The body of the statistics message, rendered every few seconds.
    pub stats_body: Bytes,
    /// State of the polls.
    pub poll: PollReport,
}

impl From<Loaded> for LiveServer {
    /// The server as the store has it, before the first poll.
    fn from(loaded: Loaded) -> Self {
        let Loaded { epoch, snapshot, state, last_seq, needs_reset } = loaded;
        let (stats, stats_body, poll) = (ServerStats::default(), Bytes::new(), PollReport::default());
        Self { epoch, snapshot, state, last_seq, needs_reset, stats, stats_body, poll }
    }
}

impl LiveServer {
    /// Returns the newest revision of its torrents; 0 without torrents.
    pub fn newest_rev(&self) -> Rev {
        self.snapshot.values().map(|torrent| torrent.rev).max().unwrap_or_default()
    }
}

/// State of the polls, for health and metrics.
#[derive(Clone, Debug, Default)]
pub struct PollReport {
    /// End of the last successful poll; `None` before the first.
    pub last_success: Option<Instant>,
    /// When the last successful poll began: its listing is not older.
    pub last_began: Option<Instant>,
    /// Duration of the last poll, successful or not.
    pub duration: Duration,
    /// Why the last poll failed; `None` if it did not.
    pub failure: Option<String>,
    /// Polls that failed, since the start of the process.
    pub failures: u64,
    /// All polls since the start of the process.
    pub polls: u64,
    /// Successful full polls among them.
    pub full: u64,
    /// Current time from one poll to the next.
    pub interval: Duration,
    /// Current maximum time between two full polls.
    pub full_interval: Duration,
}

impl PollReport {
    /// Whether the last poll succeeded.
    pub fn is_answering(&self) -> bool {
        self.last_success.is_some() && self.failure.is_none()
    }
}

impl LiveState {
    /// Makes the state of these servers, with an empty buffer for each sink.
    pub fn new(servers: BTreeMap<ServerName, LiveServer>, sinks: impl IntoIterator<Item = SinkName>) -> Self {
        Self::with_shares(servers, sinks, MemoryShares::default())
    }

    /// The same, with buffers of this share of memory.
    pub fn with_shares(
        servers: BTreeMap<ServerName, LiveServer>,
        sinks: impl IntoIterator<Item = SinkName>,
        shares: MemoryShares,
    ) -> Self {
        let servers = servers.into_iter().map(|(name, content)| (name, ServerHandle::new(content))).collect();
        let buffer = || Arc::new(ChangeBuffer::new(shares));
        let buffers = sinks.into_iter().map(|name| (name, buffer())).collect();
        Self { servers, buffers, http: Arc::default(), subscribers: Mutex::default() }
    }

    /// Returns the change buffer of a sink; `None` if there is no such sink.
    pub fn buffer(&self, sink: &SinkName) -> Option<&Arc<ChangeBuffer>> {
        self.buffers.get(sink).or_else(|| (*sink == SinkName::http()).then_some(&self.http))
    }

    /// Returns the buffers of all configured sinks.
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
        // Weak references, so that the buffer of a dropped reader disappears by itself.
        self.subscribers().retain(|subscriber| subscriber.upgrade().is_some_and(|buffer| (visit(&buffer), true).1));
    }

    /// Returns the names of all servers, sorted.
    pub fn names(&self) -> impl Iterator<Item = &ServerName> {
        self.servers.keys()
    }

    /// Returns a server; `None` if there is no such server.
    pub fn server(&self, name: &ServerName) -> Option<&ServerHandle> {
        self.servers.get(name)
    }

    /// Reads the live state of a server; `None` if there is no such server.
    pub fn read<T>(&self, name: &ServerName, read: impl FnOnce(&LiveServer) -> T) -> Option<T> {
        self.server(name).map(|server| server.read(read))
    }

    /// Returns the newest published journal entry of a server; 0 if there is none.
    pub fn last_seq(&self, name: &ServerName) -> Seq {
        self.read(name, |live| live.last_seq).unwrap_or_default()
    }

    /// Returns the progress of a sink that has everything published of a server.
    pub fn present(&self, name: &ServerName) -> SinkProgress {
        let present = |live: &LiveServer| SinkProgress { cursor: live.last_seq, sent_rev: live.newest_rev() };
        self.read(name, present).unwrap_or_default()
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
            // Under the same lock: an outbox that reads the live state finds in its buffer every change that led there.
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

    /// Returns the verifications in progress: bytes read and bytes in total.
    pub fn checks(&self) -> MutexGuard<'_, BTreeMap<CommandId, (u64, u64)>> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the live state. `read` must not call back into it: the lock is held.
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
