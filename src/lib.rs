//! dtorrent: a bridge between torrent clients and message brokers.

pub mod board;
pub mod diff;
pub mod model;
pub mod port;
