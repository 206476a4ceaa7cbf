//! Adapters that speak to torrent programs.
//!
//! Each implements [`crate::port::TorrentClient`] and knows nothing of the engine. None of them
//! tries anything again: whether and when is the engine's decision.

pub mod exec;
pub mod rtorrent;
pub mod settings;
