//! The durable state: snapshots, the journal, the delivery state of sinks, the command log.
//!
//! Two implementations of [`Store`](crate::port::Store): [`SqliteStore`], one file in the data
//! directory, and [`MemoryStore`], for tests and for library users without a directory. Each has one file
//! per trait. The rules that both follow are in `rules` and `dead_letters`; the conformance suites
//! run on both, and random operations must give the same answers on both.

use std::path::PathBuf;
use std::time::Duration;

use crate::model::{PageBytes, Timestamp};

mod dead_letters;
mod memory;
mod rules;
#[cfg(feature = "sqlite")]
mod sqlite;

#[cfg(test)]
#[cfg(feature = "sqlite")]
mod conformance;

pub use dead_letters::{DeadLetter, DeadLetterUsage};
pub use memory::{Image, MemoryStore};
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteStore;

/// How long the id of a command is remembered, from its arrival (I12).
const COMMAND_MEMORY: Duration = Duration::from_secs(24 * 60 * 60);
/// Limit on the bytes of all remembered results; the oldest finished commands are forgotten.
const RESULTS_BYTES_MAX: u64 = 64 << 20;
/// Limit on remembered finished commands; the oldest are forgotten.
const COMMANDS_MAX: u64 = 100_000;
/// Limit on further senders that wait for the result of one command.
const WAITERS_MAX: u64 = 100;

/// Limits of a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of journal entries. Above half of it, entries that every sink has are trimmed; above the whole, commits
    /// fail with [`StoreError::Full`](crate::port::StoreError::Full).
    pub journal_bytes_max: u64,
    /// Age above which entries that every sink has are trimmed.
    pub journal_age_max: Duration,
    /// Dead letters per sink; at the limit delivery to the sink is blocked.
    pub dead_letters_max: u64,
    /// Sizes of pages.
    pub pages: PageBytes,
}

impl Default for Options {
    fn default() -> Self {
        let journal_age_max = Duration::from_secs(30 * 24 * 60 * 60);
        Self { journal_bytes_max: 256 << 20, journal_age_max, dead_letters_max: 10_000, pages: PageBytes::default() }
    }
}

impl Options {
    /// Bytes that the journal is trimmed to as soon as every sink has the entries.
    fn journal_bytes_target(&self) -> u64 {
        self.journal_bytes_max / 2
    }
}

/// The findings of opening a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// No change set has been committed: a first start, or a loss.
    pub is_new: bool,
    /// This epoch began because an earlier state was gone or could not be used; now or in an earlier run.
    pub lost: bool,
    /// The last run closed the store.
    pub was_clean: bool,
    /// Time at which the directory was last known to be in use; `None` for a new one.
    pub last_alive: Option<Timestamp>,
    /// The fault of the file that was found, for people.
    pub found: Option<String>,
    /// Path to which that file was moved.
    pub moved_to: Option<PathBuf>,
}
