//! The store in memory: for tests, and for library users who want no data directory.
//!
//! Answers as [`SqliteStore`](super::SqliteStore) does, within the same limits, but the state ends with
//! it. An [`Image`] of it at one moment can be opened again, as a file is after a crash.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Options;
use super::dead_letters::{BlockedSinks, DeadLetter};
use crate::model::{Epoch, JournalEntry, Rev, Seq, ServerName, ServerState, SinkName, Snapshot};
use crate::port::{Clock, JournalPosition, SinkState, SystemClock, UnsentResult};

mod command_log;
mod journal;
mod sink_store;

/// Revisions start at a multiple of this whenever an image is opened.
const REV_BLOCK: u64 = 10_000;

/// A store in memory.
pub struct MemoryStore {
    options: Options,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

/// Returns whether an item is still on a page, which ends with the one with which it holds `bytes_max`.
fn fits_page<T>(bytes_max: usize, bytes_of: impl Fn(&T) -> usize) -> impl FnMut(&T) -> bool {
    let mut bytes = 0;
    move |item| {
        let fits = bytes < bytes_max;
        bytes += bytes_of(item);
        fits
    }
}

/// Everything that a store holds at one moment.
#[derive(Clone)]
pub struct Image(State);

#[derive(Clone)]
struct State {
    epoch: Epoch,
    servers: BTreeMap<ServerName, Server>,
    /// The entries of all servers in the order of their commits.
    positions: BTreeMap<JournalPosition, (ServerName, Seq)>,
    last_position: JournalPosition,
    /// Servers that a sink knows from a lost state; true once their `journal_reset` is emitted.
    resets: BTreeMap<ServerName, bool>,
    sinks: BTreeMap<SinkName, SinkState>,
    dead_letters: Vec<(SinkName, DeadLetter)>,
    blocked: BlockedSinks,
    commands: Vec<command_log::Command>,
    results: BTreeMap<i64, (SinkName, UnsentResult)>,
    last_result: i64,
}

#[derive(Clone, Default)]
struct Server {
    snapshot: Snapshot,
    state: ServerState,
    journal: BTreeMap<Seq, JournalEntry>,
    journal_bytes: u64,
    last_seq: Seq,
    last_rev: Rev,
}

impl State {
    fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            servers: BTreeMap::new(),
            positions: BTreeMap::new(),
            last_position: JournalPosition(0),
            resets: BTreeMap::new(),
            sinks: BTreeMap::new(),
            dead_letters: Vec::new(),
            blocked: BlockedSinks::default(),
            commands: Vec::new(),
            results: BTreeMap::new(),
            last_result: 0,
        }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(Options::default(), Arc::new(SystemClock))
    }
}

impl MemoryStore {
    /// An empty store of a random epoch.
    pub fn new(options: Options, clock: Arc<dyn Clock>) -> Self {
        Self::with_epoch(Epoch(rand::random()), options, clock)
    }

    /// An empty store of an epoch that no other store has had; the caller answers for that.
    pub fn with_epoch(epoch: Epoch, options: Options, clock: Arc<dyn Clock>) -> Self {
        Self { options, clock, state: Mutex::new(State::new(epoch)) }
    }

    /// Opens an image, which may be older than the last write of its store.
    ///
    /// As with a file, no revision is assigned again that was assigned after the image was taken, as
    /// long as those were fewer than 10,000.
    pub fn open(image: Image, options: Options, clock: Arc<dyn Clock>) -> Self {
        let Image(mut state) = image;
        // As with a file: the next rejected event finds out again.
        state.blocked = BlockedSinks::default();
        for server in state.servers.values_mut() {
            server.last_rev = Rev((server.last_rev.0 / REV_BLOCK + 1) * REV_BLOCK);
        }
        Self { options, clock, state: Mutex::new(state) }
    }

    /// Returns a copy of everything in the store.
    pub fn image(&self) -> Image {
        Image(self.state().clone())
    }

    /// Becomes like a file of this epoch that was closed and opened again.
    #[cfg(test)]
    pub(super) fn reopen(&self, epoch: Epoch) {
        let mut state = self.state();
        state.blocked = BlockedSinks::default();
        state.epoch = epoch;
    }

    /// Nothing in here panics half-way through a change, so the state a panicking holder left is whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
