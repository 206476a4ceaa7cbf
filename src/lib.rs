//! dtorrent: a bridge between torrent clients and message brokers.

pub mod app;
pub mod board;
pub mod cli;
pub mod clients;
pub mod commands;
pub mod config;
pub mod deliver;
pub mod demo;
pub mod diff;
pub mod http;
pub mod model;
pub mod port;
pub mod repeat;
pub mod sinks;
pub mod store;
pub mod supervise;
pub mod telemetry;
pub mod watch;
