//! Against real programs, started in temporary folders on free ports. A missing one skips aloud;
//! `DTORRENT_LIVE=required` makes that an error.

mod mqtt_link;
mod rtorrent_client;
