//! Adapters of torrent programs.
//!
//! Each implements [`TorrentClient`](crate::port::TorrentClient) and knows nothing of the engine. None of them
//! retries: whether and when is the engine's decision.

pub mod exec;
pub mod rtorrent;
pub mod settings;
