//! The documents that entities show: one JSON object for each group of them, made of the published state of a server.
//!
//! Invariants:
//! - every key is there in every document, `null` if unknown: a template that misses one logs a warning for each message;
//! - numbers are rounded, so that what hardly changes does not change;
//! - a list stays below the size that Home Assistant's recorder takes.
//!
//! Pure.

use serde_json::{Value, json};

use super::slots::{by_importance, is_moving};
use super::{Limits, Totals};
use crate::model::{InfoHash, Status, Timestamp, Torrent, ratio, truncated};
use crate::port::ServerView;

/// Rate below which a direction counts as idle, in bytes a second.
const IDLE_BELOW: u64 = 1_000;
/// Maximum size of the list: Home Assistant does not record attributes above 16 KiB.
const LIST_BYTES_MAX: usize = 15_000;
/// Maximum length of a name: Home Assistant takes no state above 255 characters.
const NAME_CHARS_MAX: usize = 250;
/// Maximum length of a message.
const MESSAGE_CHARS_MAX: usize = 200;
/// Precision in which limits are compared: clients round them, rTorrent to whole KiB.
const LIMIT_STEP: u64 = 1024;
/// Maximum number of torrents with errors that are named.
const ERRORS_MAX: usize = 5;

/// Rounds to three digits.
fn three_digits(number: u64) -> u64 {
    let mut unit = 1;
    while number / unit >= 1000 {
        unit *= 10;
    }
    (number.saturating_add(unit / 2) / unit).saturating_mul(unit)
}

fn eta(torrent: &Torrent) -> Option<u64> {
    torrent.eta.map(|eta| eta.div_ceil(10) * 10)
}

/// Returns the rates of both directions, and in words which of them is used.
pub fn rates(view: &ServerView<'_>) -> Value {
    // Some clients state no rates of the whole.
    let sum = |of: fn(&Torrent) -> Option<u64>| view.snapshot.values().filter_map(|row| of(&row.torrent)).sum();
    let down = view.stats.download_rate.unwrap_or_else(|| sum(|torrent| torrent.download_rate));
    let up = view.stats.upload_rate.unwrap_or_else(|| sum(|torrent| torrent.upload_rate));
    let status = match (down >= IDLE_BELOW, up >= IDLE_BELOW) {
        (false, false) => "idle",
        (true, false) => "downloading",
        (false, true) => "seeding",
        (true, true) => "both",
    };
    json!({"status": status, "download_rate": three_digits(down), "upload_rate": three_digits(up)})
}

/// Rounds down to whole megabytes: more digits would be a change with each poll.
fn megabytes(bytes: u64) -> u64 {
    bytes / 1_000_000 * 1_000_000
}

/// Returns the bytes transferred, in this session of the client and in all, and the free space.
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

/// Returns the numbers of torrents in each state, and the problem of the server or its torrents.
pub fn counts(view: &ServerView<'_>) -> Value {
    let torrents = || view.snapshot.values().map(|row| &*row.torrent);
    let count = |is_one: &dyn Fn(&Torrent) -> bool| torrents().filter(|torrent| is_one(torrent)).count();
    let with = |status: Status| count(&|torrent| torrent.status == status);
    let (all, active) = (view.snapshot.len(), count(&is_moving));
    let (stopped, paused) = (with(Status::Stopped), with(Status::Paused));
    let completed = count(&|torrent| torrent.finished);
    let errored = count(&|torrent| torrent.error);
    let named = torrents().filter(|torrent| torrent.error).take(ERRORS_MAX).map(|torrent| {
        let message = torrent.message.as_deref().unwrap_or_default();
        json!({"name": truncated(&torrent.name, NAME_CHARS_MAX), "message": truncated(message, MESSAGE_CHARS_MAX)})
    });
    let problem = match (view.problem, errored) {
        (Some(problem), _) => Some(truncated(problem, MESSAGE_CHARS_MAX)),
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

/// Returns the client's limits, and whether they are those of the alternative speed.
pub fn limits(view: &ServerView<'_>, alternative: Option<&Limits>) -> Value {
    let (down, up) = (view.stats.download_limit, view.stats.upload_limit);
    // 0 is no limit at all, however close a small one is to it.
    let is_set = |shown: Option<u64>, wanted: u64| {
        shown.is_some_and(|shown| shown.abs_diff(wanted) < LIMIT_STEP && (shown == 0) == (wanted == 0))
    };
    let is_alternative = alternative.is_some_and(|limits| is_set(down, limits.download) && is_set(up, limits.upload));
    json!({"download_limit": down, "upload_limit": up, "is_alternative": is_alternative})
}

/// Returns how long the last poll took and how old it is, and the client's name and version.
pub fn poll(view: &ServerView<'_>) -> Value {
    json!({
        "seconds": (view.poll.as_secs_f64() * 1000.0).round() / 1000.0,
        "age_seconds": view.poll_age.map(|age| age.as_secs() / 10 * 10),
        "client": view.stats.client,
    })
}

/// Returns the document of a torrent, or of an empty slot.
pub fn torrent(torrent: Option<&Torrent>) -> Value {
    json!({
        "name": torrent.map(|torrent| truncated(&torrent.name, NAME_CHARS_MAX)),
        "hash": torrent.map(|torrent| torrent.hash),
        "status": torrent.map(|torrent| torrent.status.as_str()),
        "running": torrent.map(|torrent| !matches!(torrent.status, Status::Paused | Status::Stopped)),
        "error": torrent.map(|torrent| torrent.error),
        "stalled": torrent.map(|torrent| torrent.stalled),
        "message": torrent.and_then(|torrent| Some(truncated(torrent.message.as_deref()?, MESSAGE_CHARS_MAX))),
        "label": torrent.and_then(|torrent| torrent.label.clone()),
        "progress": torrent.map(|torrent| torrent.progress),
        "download_rate": torrent.map(|torrent| three_digits(torrent.download_rate.unwrap_or(0))),
        "upload_rate": torrent.map(|torrent| three_digits(torrent.upload_rate.unwrap_or(0))),
        "eta": torrent.and_then(eta),
        "ratio": torrent.and_then(|torrent| torrent.ratio),
        "size": torrent.map(|torrent| torrent.length),
        "added_at": torrent.and_then(|torrent| torrent.added_at),
    })
}

/// Returns the document of a torrent that is no longer there, whose device is to be removed.
pub fn gone(name: &str, hash: InfoHash) -> Value {
    let mut document = torrent(None);
    for (key, value) in
        [("name", json!(name)), ("hash", json!(hash)), ("status", json!("gone")), ("error", json!(false))]
    {
        document[key] = value;
    }
    document
}

/// Keys whose values change by themselves, and are sent in their own time. A change of any other is something that happened.
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

/// Returns the list of torrents, those that matter most first, as many as have room.
pub fn list(view: &ServerView<'_>) -> Value {
    let mut torrents = Vec::new();
    // Room for what is around the rows.
    let mut bytes = 200;
    for hash in by_importance(view.snapshot) {
        let Some(torrent) = view.snapshot.get(&hash).map(|row| &row.torrent) else { continue };
        let row = json!({
            "name": truncated(&torrent.name, NAME_CHARS_MAX), "hash": hash, "status": torrent.status.as_str(),
            "progress": torrent.progress, "eta": eta(torrent),
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

/// Returns the document of the torrent that finished last, which stays when the torrent is removed.
pub fn last_finished(torrent: &Torrent, time: Timestamp) -> Value {
    json!({
        "name": truncated(&torrent.name, NAME_CHARS_MAX), "time": time, "hash": torrent.hash, "label": torrent.label,
        "directory": torrent.directory, "size": torrent.length, "ratio": torrent.ratio,
    })
}

/// Returns the same document before any torrent has finished.
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
}
