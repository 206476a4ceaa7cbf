//! dtorrent: a bridge between torrent clients and message brokers.

pub mod cli;
pub mod config;
pub mod model;
pub mod port;
pub mod telemetry;
