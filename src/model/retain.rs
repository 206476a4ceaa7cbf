//! Which torrents' states a broker retains.

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
