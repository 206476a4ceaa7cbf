//! The real binary among real programs: what the contract promises, seen from outside.
//!
//! Everything runs on loopback ports in temporary folders. A test waits for conditions, with a
//! deadline, and says what it received last. Where a program is missing a test is skipped aloud;
//! `DTORRENT_LIVE=required` makes that an error.
#![allow(clippy::unwrap_used, reason = "a helper of a test that fails is a test that fails")]

mod adding;
mod api;
mod attack;
mod bad_network;
mod commands;
mod content;
mod demo;
mod downloads;
mod exec;
mod faults;
mod first_sight;
mod harness;
mod homeassistant;
mod hooks;
mod library;
mod mqtt_link;
mod nats;
mod oddities;
mod outages;
mod retained;
mod rights;
mod rtorrent_client;
mod terminal;
mod transports;
mod verbs;
mod webhooks;
