//! A torrent as bridges see them, for what is measured with real sizes.

use std::sync::Arc;

use dtorrent::model::{Extra, InfoHash, ServerName, Status, Timestamp, Torrent, progress};

pub fn torrent(server: &ServerName, number: usize) -> Arc<Torrent> {
    let mut hash = [0; 20];
    hash[..8].copy_from_slice(&(number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    Arc::new(Torrent {
        hash: InfoHash::V1(hash),
        name: format!("debian-{number}-amd64-netinst.iso"),
        server: server.clone(),
        active: true,
        downloaded: 400_000_000,
        uploaded: 0,
        length: 659_554_304,
        path: None,
        progress: progress(400_000_000, 659_554_304),
        ratio: Some(0.0),
        finished: false,
        playing: true,
        extra: Extra::new(),
        status: Status::Downloading,
        error: false,
        message: None,
        stalled: false,
        download_rate: Some(1_048_576),
        upload_rate: Some(0),
        left: Some(259_554_304),
        eta: Some(248),
        peers: Some(31),
        seeds: Some(12),
        label: Some("linux".into()),
        directory: Some("/downloads".into()),
        private: Some(false),
        priority: Some(2),
        tracker: Some("tracker.example.org".into()),
        added_at: Some(Timestamp::from_seconds(1_795_000_000)),
        started_at: Some(Timestamp::from_seconds(1_795_000_000)),
        finished_at: None,
        size_files: Some(1),
    })
}

/// One of a library: of a hundred torrents one downloads, and the others have all and rest.
pub fn of_a_library(server: &ServerName, number: usize) -> Arc<Torrent> {
    let torrent = torrent(server, number);
    if number.is_multiple_of(100) {
        return torrent;
    }
    Arc::new(Torrent {
        downloaded: torrent.length,
        progress: 100.0,
        finished: true,
        playing: false,
        status: Status::Seeding,
        download_rate: Some(0),
        left: Some(0),
        eta: None,
        ..(*torrent).clone()
    })
}
