//! Against real programs, started in temporary folders on free ports. A missing one skips aloud;
//! `DTORRENT_LIVE=required` makes that an error.

mod mqtt_link;
//! Tests against the real programs, on loopback.

mod rtorrent_client;
