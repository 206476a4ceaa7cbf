//! Which change is worth telling now.
//!
//! A moving torrent differs at every look. What people wait for (status, label, error, …) is told at
//! once; numbers that flow are told every two seconds at most, and only when they differ visibly. When a
//! torrent comes to rest, its last numbers are always told: then what the world knows is exact.

use std::time::Duration;

use crate::model::Torrent;

/// Flowing numbers of one torrent are told at most this often.
const PAUSE: Duration = Duration::from_secs(2);

/// Whether `seen` is to be told to those who know `told`, `since` ago.
pub fn is_worth_telling(snapshot: &Torrent, seen: &Torrent, since: Duration) -> bool {
    if snapshot == seen {
        return false;
    }
    if differs_in_substance(snapshot, seen) {
        return true;
    }
    if since < PAUSE {
        return false;
    }
    let is_at_rest = seen.download_rate.unwrap_or(0) == 0 && seen.upload_rate.unwrap_or(0) == 0;
    is_at_rest
        || snapshot.playing != seen.playing
        || snapshot.peers != seen.peers
        || snapshot.seeds != seen.seeds
        || snapshot.progress != seen.progress
        || differs_visibly(snapshot.download_rate, seen.download_rate)
        || differs_visibly(snapshot.upload_rate, seen.upload_rate)
        || moved_visibly(snapshot.uploaded, seen.uploaded, seen.length)
}

/// Everything but the numbers that flow while bytes move.
fn differs_in_substance(snapshot: &Torrent, seen: &Torrent) -> bool {
    let flowing_as_told = Torrent {
        downloaded: snapshot.downloaded,
        uploaded: snapshot.uploaded,
        progress: snapshot.progress,
        ratio: snapshot.ratio,
        playing: snapshot.playing,
        download_rate: snapshot.download_rate,
        upload_rate: snapshot.upload_rate,
        left: snapshot.left,
        eta: snapshot.eta,
        peers: snapshot.peers,
        seeds: snapshot.seeds,
        ..seen.clone()
    };
    *snapshot != flowing_as_told
}

/// A tenth, and at least 1 KiB/s.
fn differs_visibly(snapshot: Option<u64>, seen: Option<u64>) -> bool {
    match (snapshot, seen) {
        (Some(snapshot), Some(seen)) => snapshot.abs_diff(seen) >= (snapshot.max(seen) / 10).max(1024),
        (snapshot, seen) => snapshot != seen,
    }
}

/// A hundredth of the torrent, and at least 64 KiB.
fn moved_visibly(snapshot: u64, seen: u64, length: u64) -> bool {
    snapshot.abs_diff(seen) >= (length / 100).max(64 * 1024)
}
