//! Policies that a config sets and the engine follows.

use std::time::Duration;

/// Pace of the polls of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PollSettings {
    /// Time between two polls.
    pub interval: Duration,
    /// Maximum time between two full polls, the key `sweep`; never shorter than `interval`.
    pub full_interval: Duration,
}

impl PollSettings {
    /// Pace where none is configured.
    pub const DEFAULT: Self = Self { interval: Duration::from_secs(1), full_interval: Duration::from_secs(30) };

    /// Returns a pace of these times; a `full_interval` below `interval` is raised to it.
    pub fn new(interval: Duration, full_interval: Duration) -> Self {
        Self { interval, full_interval: full_interval.max(interval) }
    }
}

/// Retention policy of one sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retain {
    /// The state of every torrent.
    All,
    /// No torrent's state.
    None,
    /// All of a server with few torrents; of more, those that are active, incomplete or recently changed.
    Auto,
}

impl Retain {
    /// Policies by their names in a config.
    pub const NAMES: [(&str, Self); 3] = [("auto", Self::Auto), ("all", Self::All), ("none", Self::None)];
}
