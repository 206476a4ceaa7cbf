//! The memory of commands: what those of each origin take in all queues together, while they wait and while they run.
//!
//! Estimated from above, because commands are of very different sizes: one names a torrent, another ten thousand.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::request::{HASHES_MAX, Request, Target};
use super::tree_memory::TreeMemory;
use crate::model::{InfoHash, MemoryShares, Operation, SinkName, TorrentSource};

/// Memory of a command that waits, besides its arguments: its entries in queue and log.
const COMMAND_BYTES: usize = 2 << 10;
/// Bytes of a hash in a body: 40 digits, two quotes and a comma.
const WRITTEN_HASH_BYTES: usize = 43;
/// Memory for each torrent of a command that runs: its action, how far that is, its effect, its row and the row's JSON.
const RUNNING_TORRENT_BYTES: usize = 2 << 10;
/// Memory of a small command, which waits for no other: there are at most as many as a queue takes.
pub(super) const SMALL_COMMAND_BYTES: usize = COMMAND_BYTES + 3 * RUNNING_TORRENT_BYTES;
/// Memory for each torrent of an answer that contains torrents, as a tree and as JSON.
const SHOWN_TORRENT_BYTES: usize = 8 << 10;
/// The same with files, trackers or peers.
const DETAILED_TORRENT_BYTES: usize = 64 << 10;
/// Copies of a torrent file while it is added: as it came, without resume data, and encoded for the client.
const TORRENT_COPIES: usize = 6;
/// Memory for a torrent file that is not read yet, of 10 MiB at most.
const FETCHED_TORRENT_BYTES: usize = 21 << 19;

/// Returns the memory that a command takes while it waits; its body is in the command log by then.
pub(super) fn waiting_bytes(request: &Request, body_bytes: usize) -> usize {
    let hashes = match &request.target {
        Target::Torrents(hashes) => hashes.len(),
        Target::Matching(_) | Target::Server => 0,
    };
    let others = body_bytes.saturating_sub(hashes * WRITTEN_HASH_BYTES);
    COMMAND_BYTES + hashes * size_of::<InfoHash>() + others
}

/// Returns the memory that a command takes while it runs, besides that.
pub(super) fn running_bytes(request: &Request) -> usize {
    let torrents = match &request.target {
        Target::Torrents(hashes) => hashes.len(),
        Target::Matching(_) => HASHES_MAX,
        Target::Server => 0,
    };
    let of_operation = match &request.operation {
        Operation::List { page_size, .. } => {
            usize::try_from(*page_size).unwrap_or(HASHES_MAX).min(HASHES_MAX) * SHOWN_TORRENT_BYTES
        }
        Operation::Get(parts) if parts.files || parts.trackers || parts.peers => torrents * DETAILED_TORRENT_BYTES,
        Operation::Get(_) => torrents * SHOWN_TORRENT_BYTES,
        Operation::Add(add) => match &add.source {
            TorrentSource::Torrent(torrent) => torrent.len() * TORRENT_COPIES,
            TorrentSource::Magnet(_) => 0,
            TorrentSource::Url(_) | TorrentSource::File(_) => FETCHED_TORRENT_BYTES,
        },
        _ => torrents * RUNNING_TORRENT_BYTES,
    };
    COMMAND_BYTES + of_operation
}

/// The memory that commands have taken, by origin. All queues of a process share it.
#[derive(Default)]
pub struct CommandMemory {
    shares: MemoryShares,
    taken: Mutex<BTreeMap<SinkName, Taken>>,
    trees: TreeMemory,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Taken {
    waiting: usize,
    running: usize,
}

impl CommandMemory {
    /// Makes one of which no command has anything yet.
    pub fn new(shares: MemoryShares) -> Self {
        Self { shares, taken: Mutex::default(), trees: TreeMemory::new(shares.trees) }
    }

    /// Returns the memory for bodies as trees.
    pub(super) fn trees(&self) -> &TreeMemory {
        &self.trees
    }

    /// Returns the memory that all commands take.
    pub fn bytes(&self) -> usize {
        self.taken().values().map(|taken| taken.waiting + taken.running).sum()
    }

    /// Takes memory for a command that is to wait; `false` if others of its origin have it.
    pub(super) fn take_waiting(&self, origin: &SinkName, bytes: usize) -> bool {
        let mut all = self.taken();
        let taken = all.entry(origin.clone()).or_default();
        let has_room = taken.waiting == 0 || taken.waiting + bytes <= self.shares.waiting_commands;
        taken.waiting += if has_room { bytes } else { 0 };
        has_room
    }

    /// Takes memory for a command that is to run; `false` if others of its origin have it. `is_only`: no other large one
    /// runs in the same queue, where one always may, so that one server does not hold up another (I13).
    pub(super) fn take_running(&self, origin: &SinkName, bytes: usize, is_only: bool) -> bool {
        let mut all = self.taken();
        let taken = all.entry(origin.clone()).or_default();
        let has_room = is_only || self.has_room_to_run(*taken, bytes);
        taken.running += if has_room { bytes } else { 0 };
        has_room
    }

    /// Whether a command may run besides others of its origin.
    pub(super) fn has_running_room(&self, origin: &SinkName, bytes: usize) -> bool {
        self.has_room_to_run(self.taken().get(origin).copied().unwrap_or_default(), bytes)
    }

    fn has_room_to_run(&self, taken: Taken, bytes: usize) -> bool {
        bytes <= SMALL_COMMAND_BYTES || taken.running + bytes <= self.shares.running_commands
    }

    pub(super) fn give_back_waiting(&self, origin: &SinkName, bytes: usize) {
        if let Some(taken) = self.taken().get_mut(origin) {
            taken.waiting = taken.waiting.saturating_sub(bytes);
        }
    }

    pub(super) fn give_back_running(&self, origin: &SinkName, bytes: usize) {
        if let Some(taken) = self.taken().get_mut(origin) {
            taken.running = taken.running.saturating_sub(bytes);
        }
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<SinkName, Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
