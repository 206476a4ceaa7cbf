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
pub fn is_worth_telling(told: &Torrent, seen: &Torrent, since: Duration) -> bool {
    if told == seen {
        return false;
    }
    if differs_in_substance(told, seen) {
        return true;
    }
    if since < PAUSE {
        return false;
    }
    let is_at_rest = seen.download_rate.unwrap_or(0) == 0 && seen.upload_rate.unwrap_or(0) == 0;
    is_at_rest
        || told.playing != seen.playing
        || told.peers != seen.peers
        || told.seeds != seen.seeds
        || told.progress != seen.progress
        || differs_visibly(told.download_rate, seen.download_rate)
        || differs_visibly(told.upload_rate, seen.upload_rate)
        || moved_visibly(told.uploaded, seen.uploaded, seen.length)
}

/// Everything but the numbers that flow while bytes move.
fn differs_in_substance(told: &Torrent, seen: &Torrent) -> bool {
    let flowing_as_told = Torrent {
        downloaded: told.downloaded,
        uploaded: told.uploaded,
        progress: told.progress,
        ratio: told.ratio,
        playing: told.playing,
        download_rate: told.download_rate,
        upload_rate: told.upload_rate,
        left: told.left,
        eta: told.eta,
        peers: told.peers,
        seeds: told.seeds,
        ..seen.clone()
    };
    *told != flowing_as_told
}

/// A tenth, and at least 1 KiB/s.
fn differs_visibly(told: Option<u64>, seen: Option<u64>) -> bool {
    match (told, seen) {
        (Some(told), Some(seen)) => told.abs_diff(seen) >= (told.max(seen) / 10).max(1024),
        (told, seen) => told != seen,
    }
}

/// A hundredth of the torrent, and at least 64 KiB.
fn moved_visibly(told: u64, seen: u64, length: u64) -> bool {
    told.abs_diff(seen) >= (length / 100).max(64 * 1024)
}
