//! Sample torrents of realistic size.

use std::sync::Arc;

use dtorrent::model::{Extra, InfoHash, ServerName, Status, Timestamp, Torrent, progress};

pub fn torrent(server: &ServerName, number: usize) -> Arc<Torrent> {
    let mut hash = [0; 20];
    hash[..8].copy_from_slice(&(number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    Arc::new({
        let mut torrent =
            Torrent::new(server.clone(), InfoHash::V1(hash), format!("debian-{number}-amd64-netinst.iso"));
        torrent.active = true;
        torrent.downloaded = 400_000_000;
        torrent.uploaded = 0;
        torrent.length = 659_554_304;
        torrent.path = None;
        torrent.progress = progress(400_000_000, 659_554_304);
        torrent.ratio = Some(0.0);
        torrent.finished = false;
        torrent.playing = true;
        torrent.extra = Extra::new();
        torrent.status = Status::Downloading;
        torrent.error = false;
        torrent.message = None;
        torrent.stalled = false;
        torrent.download_rate = Some(1_048_576);
        torrent.upload_rate = Some(0);
        torrent.left = Some(259_554_304);
        torrent.eta = Some(248);
        torrent.peers = Some(31);
        torrent.seeds = Some(12);
        torrent.label = Some("linux".into());
        torrent.directory = Some("/downloads".into());
        torrent.private = Some(false);
        torrent.priority = Some(2);
        torrent.tracker = Some("tracker.example.org".into());
        torrent.added_at = Some(Timestamp::from_seconds(1_795_000_000));
        torrent.started_at = Some(Timestamp::from_seconds(1_795_000_000));
        torrent.finished_at = None;
        torrent.size_files = Some(1);
        torrent
    })
}

/// A torrent of a large library: of a hundred, one downloads, and the others are complete and idle.
pub fn of_a_library(server: &ServerName, number: usize) -> Arc<Torrent> {
    let torrent = torrent(server, number);
    if number.is_multiple_of(100) {
        return torrent;
    }
    Arc::new({
        let mut it = (*torrent).clone();
        it.downloaded = torrent.length;
        it.progress = 100.0;
        it.finished = true;
        it.playing = false;
        it.status = Status::Seeding;
        it.download_rate = Some(0);
        it.left = Some(0);
        it.eta = None;
        it
    })
}
