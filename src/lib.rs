//! dtorrent: a bridge between torrent clients and message brokers.

pub mod model;
pub mod port;
pub mod sinks;
