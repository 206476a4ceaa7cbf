//! dtorrent: a bridge between torrent clients and message brokers.

pub mod config;
pub mod model;
pub mod port;
