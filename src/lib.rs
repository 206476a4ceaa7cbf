//! dtorrent: a bridge between torrent clients and message brokers.

pub mod board;
pub mod commands;
pub mod deliver;
pub mod diff;
pub mod demo;
pub mod model;
pub mod port;
pub mod repeat;
pub mod watch;
pub mod store;
pub mod cli;
pub mod config;
pub mod model;
pub mod port;
pub mod telemetry;
