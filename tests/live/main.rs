//! The real binary among real programs: what the contract promises, seen from outside.
//!
//! Everything runs on loopback ports in temporary folders. A test waits for conditions, with a
//! deadline, and says what it heard last.
#![allow(clippy::unwrap_used)] // all of it is tests

mod adding;
mod commands;
mod downloads;
mod first_sight;
mod harness;
mod oddities;
mod outages;
mod transports;
//! Against real programs, started in temporary folders on free ports. A missing one skips aloud;
//! `DTORRENT_LIVE=required` makes that an error.

mod mqtt_link;
//! Tests against the real programs, on loopback.

mod rtorrent_client;
