//! Tests against the real programs, on loopback.

mod rtorrent_client;
