//! dtorrent: a bridge between torrent clients and message brokers.

pub mod demo;
pub mod model;
pub mod port;
