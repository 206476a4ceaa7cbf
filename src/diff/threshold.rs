//! The threshold of `updated`: which changes are worth an event now.
//!
//! A moving torrent differs at every poll. What people wait for (status, label, error, …) is published at
//! once; numbers that change with every byte are published every two seconds at most, and only when they
//! differ visibly. The last numbers of a torrent that comes to rest are always published, so the published
//! state is exact then.

use std::time::Duration;

use crate::model::Torrent;

/// Minimum time between two events about the moving numbers of one torrent.
const UPDATE_INTERVAL: Duration = Duration::from_secs(2);

/// Returns whether `seen` is worth an event after `snapshot`, which was published `since` ago.
pub fn is_worth_an_event(snapshot: &Torrent, seen: &Torrent, since: Duration) -> bool {
    if snapshot == seen {
        return false;
    }
    if differs_in_substance(snapshot, seen) {
        return true;
    }
    if since < UPDATE_INTERVAL {
        return false;
    }
    // The last numbers of a torrent that comes to rest are published whatever they are, so that they are exact (I7).
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

/// Returns whether anything differs but the numbers that change while bytes move.
fn differs_in_substance(snapshot: &Torrent, seen: &Torrent) -> bool {
    // By exception, so that a new field is published at once unless it is listed here.
    let with_known_numbers = Torrent {
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
    *snapshot != with_known_numbers
}

/// Returns whether two rates differ by a tenth, and at least 1 KiB/s.
fn differs_visibly(snapshot: Option<u64>, seen: Option<u64>) -> bool {
    match (snapshot, seen) {
        (Some(snapshot), Some(seen)) => snapshot.abs_diff(seen) >= (snapshot.max(seen) / 10).max(1024),
        (snapshot, seen) => snapshot != seen,
    }
}

/// Returns whether a hundredth of the torrent was moved, and at least 64 KiB.
fn moved_visibly(snapshot: u64, seen: u64, length: u64) -> bool {
    snapshot.abs_diff(seen) >= (length / 100).max(64 * 1024)
}
