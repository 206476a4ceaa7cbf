//! Real programs that `dtorrent demo`, the live tests and the benchmarks run dtorrent against.
//!
//! [`mosquitto`] and [`rtorrent`] start one program each, in a folder of the caller's, on a free loopback port, and
//! return when it is ready; [`process`] guarantees that none of them outlives its owner. [`content`] makes up torrents
//! and their data.
//!
//! The crate does not depend on dtorrent: what dtorrent is built from must not be what it is judged by. Bencoding,
//! info-hashes and the XML-RPC of rTorrent are therefore implemented here a second time, as far as they are needed.

pub mod content;
pub mod mosquitto;
pub mod process;
pub mod rtorrent;
mod torrent;

pub use self::torrent::InfoHash;
