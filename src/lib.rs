//! dtorrent: a bridge between torrent clients and message brokers.

pub mod clients;
pub mod model;
pub mod port;
