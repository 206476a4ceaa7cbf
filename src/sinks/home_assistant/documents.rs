//! What entities show: one JSON document for each group of them, made of what was told.
//!
//! What must hold: every key is there in every document, `null` if unknown; numbers are rounded, so
//! that what hardly changes does not change; a list keeps below what Home Assistant's recorder takes.
//!
//! Pure.

use serde_json::{Value, json};

use super::slots::{by_importance, is_moving};
use super::{Limits, Totals};
use crate::model::{InfoHash, Status, Timestamp, Torrent, ratio};
use crate::port::ServerView;

/// Below this many bytes a second it counts as idle.
const IDLE_BELOW: u64 = 1_000;
/// Home Assistant does not record attributes above 16 KiB, nor take a state above 255 letters.
pub const LIST_BYTES_MAX: usize = 15_000;
const NAME_MAX: usize = 250;
const MESSAGE_MAX: usize = 200;
/// Clients round limits: rTorrent has whole KiB.
const LIMIT_STEP: u64 = 1024;
/// Torrents with errors that are named.
const ERRORS_SHOWN: usize = 5;

/// Rounds to three digits.
pub fn three_digits(number: u64) -> u64 {
    let mut unit = 1;
    while number / unit >= 1000 {
        unit *= 10;
    }
    (number.saturating_add(unit / 2) / unit).saturating_mul(unit)
}

fn shortened(text: &str, letters: usize) -> String {
    if text.chars().count() <= letters {
        return text.to_owned();
    }
    text.chars().take(letters - 1).chain(['…']).collect()
}

fn rate(of_server: Option<u64>, of_torrents: impl Iterator<Item = u64>) -> u64 {
    of_server.unwrap_or_else(|| of_torrents.sum())
}

pub fn rates(view: &ServerView<'_>) -> Value {
    let torrents = || view.snapshot.values().map(|snapshot| &snapshot.torrent);
    let down = rate(view.stats.download_rate, torrents().map(|torrent| torrent.download_rate.unwrap_or(0)));
    let up = rate(view.stats.upload_rate, torrents().map(|torrent| torrent.upload_rate.unwrap_or(0)));
    let status = match (down >= IDLE_BELOW, up >= IDLE_BELOW) {
        (false, false) => "idle",
        (true, false) => "downloading",
        (false, true) => "seeding",
        (true, true) => "both",
    };
    json!({"status": status, "download_rate": three_digits(down), "upload_rate": three_digits(up)})
}

/// A megabyte is enough to see.
fn megabytes(bytes: u64) -> u64 {
    bytes / 1_000_000 * 1_000_000
}

pub fn totals(view: &ServerView<'_>, all_time: &Totals) -> Value {
    let (down, up) = (view.stats.downloaded, view.stats.uploaded);
    json!({
        "session_downloaded": down.map(megabytes),
        "session_uploaded": up.map(megabytes),
        "session_ratio": down.zip(up).and_then(|(down, up)| ratio(up, down)),
        "all_time_downloaded": megabytes(all_time.downloaded),
        "all_time_uploaded": megabytes(all_time.uploaded),
        "all_time_ratio": ratio(all_time.uploaded, all_time.downloaded),
        "free_space": view.stats.free_disk.map(|bytes| bytes / 100_000_000 * 100_000_000),
    })
}

pub fn counts(view: &ServerView<'_>) -> Value {
    let count =
        |is_one: &dyn Fn(&Torrent) -> bool| view.snapshot.values().filter(|snapshot| is_one(&snapshot.torrent)).count();
    let with = |status: Status| count(&|torrent| torrent.status == status);
    let (all, active) = (view.snapshot.len(), count(&is_moving));
    let (stopped, paused) = (with(Status::Stopped), with(Status::Paused));
    let completed = count(&|torrent| torrent.finished);
    let errored = count(&|torrent| torrent.error);
    let named = view.snapshot.values().filter(|snapshot| snapshot.torrent.error).take(ERRORS_SHOWN).map(|snapshot| {
        let torrent = &snapshot.torrent;
        let message = torrent.message.as_deref().unwrap_or_default();
        json!({"name": shortened(&torrent.name, NAME_MAX), "message": shortened(message, MESSAGE_MAX)})
    });
    let problem = match (view.problem, errored) {
        (Some(problem), _) => Some(shortened(problem, MESSAGE_MAX)),
        (None, 0) => None,
        (None, 1) => Some("1 torrent has an error".to_owned()),
        (None, many) => Some(format!("{many} torrents have errors")),
    };
    json!({
        "all": all,
        "active": active,
        "inactive": all - active,
        "downloading": with(Status::Downloading),
        "seeding": with(Status::Seeding),
        "uploading": count(&|torrent| torrent.upload_rate.unwrap_or(0) > 0),
        "completed": completed,
        "incomplete": all - completed,
        "started": all - stopped - paused,
        "stopped": stopped,
        "paused": paused,
        "queued": with(Status::Queued),
        "checking": with(Status::Checking),
        "metadata": with(Status::Metadata),
        "errored": errored,
        "stalled": count(&|torrent| torrent.stalled),
        "has_problem": problem.is_some(),
        "problem": problem,
        "errored_torrents": named.collect::<Vec<_>>(),
    })
}

pub fn limits(view: &ServerView<'_>, alternative: Option<&Limits>) -> Value {
    let (down, up) = (view.stats.download_limit, view.stats.upload_limit);
    let is_set = |shown: Option<u64>, wanted: u64| {
        shown.is_some_and(|shown| shown.abs_diff(wanted) < LIMIT_STEP && (shown == 0) == (wanted == 0))
    };
    let is_alternative = alternative.is_some_and(|limits| is_set(down, limits.download) && is_set(up, limits.upload));
    json!({"download_limit": down, "upload_limit": up, "is_alternative": is_alternative})
}

pub fn poll(view: &ServerView<'_>) -> Value {
    json!({
        "seconds": (view.poll.as_secs_f64() * 1000.0).round() / 1000.0,
        "age_seconds": view.poll_age.map(|age| age.as_secs() / 10 * 10),
        "client": view.stats.client,
    })
}

/// A torrent in a place, or an empty place.
pub fn torrent(torrent: Option<&Torrent>) -> Value {
    json!({
        "name": torrent.map(|torrent| shortened(&torrent.name, NAME_MAX)),
        "hash": torrent.map(|torrent| torrent.hash),
        "status": torrent.map(|torrent| torrent.status.as_str()),
        "running": torrent.map(|torrent| !matches!(torrent.status, Status::Paused | Status::Stopped)),
        "error": torrent.map(|torrent| torrent.error),
        "stalled": torrent.map(|torrent| torrent.stalled),
        "message": torrent.and_then(|torrent| Some(shortened(torrent.message.as_deref()?, MESSAGE_MAX))),
        "label": torrent.and_then(|torrent| torrent.label.clone()),
        "progress": torrent.map(|torrent| torrent.progress),
        "download_rate": torrent.map(|torrent| three_digits(torrent.download_rate.unwrap_or(0))),
        "upload_rate": torrent.map(|torrent| three_digits(torrent.upload_rate.unwrap_or(0))),
        "eta": torrent.and_then(|torrent| torrent.eta).map(|eta| eta.div_ceil(10) * 10),
        "ratio": torrent.and_then(|torrent| torrent.ratio),
        "size": torrent.map(|torrent| torrent.length),
        "added_at": torrent.and_then(|torrent| torrent.added_at),
    })
}

/// A torrent that is no longer there, whose device waits to be taken back.
pub fn gone(name: &str, hash: InfoHash) -> Value {
    let mut document = torrent(None);
    document["name"] = json!(name);
    document["hash"] = json!(hash);
    document["status"] = json!("gone");
    document["error"] = json!(false);
    document
}

/// What changes by itself and is told in its own time. A change of anything else is something that happened.
pub const DRIFTING: [&str; 12] = [
    "download_rate",
    "upload_rate",
    "progress",
    "eta",
    "ratio",
    "active",
    "inactive",
    "uploading",
    "stalled",
    "message",
    "size",
    "errored_torrents",
];

/// As many torrents as have room, those that matter most first.
pub fn list(view: &ServerView<'_>) -> Value {
    let mut torrents = Vec::new();
    let mut bytes = 200;
    for hash in by_importance(view.snapshot) {
        let Some(snapshot) = view.snapshot.get(&hash) else { continue };
        let torrent = &snapshot.torrent;
        let row = json!({
            "name": shortened(&torrent.name, NAME_MAX), "hash": hash, "status": torrent.status.as_str(),
            "progress": torrent.progress, "eta": torrent.eta.map(|eta| eta.div_ceil(10) * 10),
            "ratio": torrent.ratio, "size": torrent.length, "label": torrent.label, "error": torrent.error,
            "download_rate": torrent.download_rate.map(three_digits),
            "upload_rate": torrent.upload_rate.map(three_digits), "added_at": torrent.added_at,
        });
        bytes += row.to_string().len() + 1;
        if bytes > LIST_BYTES_MAX {
            break;
        }
        torrents.push(row);
    }
    json!({"shown": torrents.len(), "total": view.snapshot.len(), "torrents": torrents})
}

/// What finished last, kept also when the torrent goes.
pub fn last_finished(torrent: &Torrent, time: Timestamp) -> Value {
    json!({
        "name": shortened(&torrent.name, NAME_MAX), "time": time, "hash": torrent.hash, "label": torrent.label,
        "directory": torrent.directory, "size": torrent.length, "ratio": torrent.ratio,
    })
}

pub fn nothing_finished() -> Value {
    json!({
        "name": null, "time": null, "hash": null, "label": null, "directory": null, "size": null, "ratio": null,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_are_kept() {
        for (number, rounded) in
            [(0, 0), (999, 999), (1_004, 1_000), (1_005, 1_010), (123_456, 123_000), (999_999, 1_000_000)]
        {
            assert_eq!(three_digits(number), rounded, "{number}");
        }
        three_digits(u64::MAX);
    }

    #[test]
    fn a_long_name_is_cut_between_letters() {
        let long = "ü".repeat(300);
        let cut = shortened(&long, NAME_MAX);
        assert_eq!(cut.chars().count(), NAME_MAX);
        assert!(cut.ends_with('…'));
        assert_eq!(shortened("short", NAME_MAX), "short");
    }
}
