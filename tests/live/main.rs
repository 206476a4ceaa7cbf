//! Against real programs, started in temporary folders on free ports. A missing one skips aloud;
//! `DTORRENT_LIVE=required` makes that an error.
#![allow(clippy::unwrap_used, reason = "a helper of a test that fails is a test that fails")]

mod mqtt_link;
mod rtorrent_client;
