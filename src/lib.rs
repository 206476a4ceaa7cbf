//! dtorrent: a bridge between torrent clients and message brokers.


pub mod board;
pub mod cli;
pub mod commands;
pub mod config;
pub mod deliver;
pub mod demo;
pub mod diff;
pub mod http;
pub mod clients;
pub mod model;
pub mod port;
pub mod repeat;
pub mod store;
pub mod supervise;
pub mod telemetry;
pub mod watch;
pub mod sinks;
