//! Tests of the contract with the real binary and real peers.
//!
//! Everything runs on loopback ports in temporary folders. A test waits for conditions with a deadline, and prints what
//! it received last. A test whose programs are missing is skipped with a message; with `DTORRENT_LIVE=required` it fails.
#![allow(clippy::unwrap_used, reason = "a helper of a test that fails is a test that fails")]

mod adding;
mod api;
mod attack;
mod audit;
mod bad_network;
mod bare_moves;
mod certificates;
mod checks;
mod command_ids;
mod commands;
mod content;
mod crowded;
mod custom_values;
mod demo;
mod downloads;
mod error_codes;
mod exec;
mod existing_data;
mod faults;
mod harness;
mod homeassistant;
mod hooks;
mod hostile_disk;
mod in_the_way;
mod in_time;
mod initial_snapshot;
mod labels;
mod large_texts;
mod library;
mod links;
mod long_checks;
mod lost_answers;
mod magnets;
mod memory;
mod mqtt_link;
mod nats;
mod neighbours;
mod odd_adds;
mod odd_bodies;
mod odd_torrents;
mod operations;
mod outages;
mod picky_brokers;
mod random_faults;
mod real_names;
mod refused_subscriptions;
mod retained;
mod rights;
mod rpc_methods;
mod rtorrent_client;
mod secrets;
mod terminal;
mod trackers;
mod transports;
mod two_addresses;
mod unseen_content;
mod unusual_torrents;
mod verbs;
mod webhooks;
mod winding_up;
mod wrong_ports;
