//! Sample messages, and the golden files in `tests/golden/` that tests compare them with.
//!
//! `BLESS=1` writes the files; a person reads the difference.

use std::fs;
use std::sync::Arc;

use dtorrent::model::*;
use serde_json::json;

/// Compares a text with its golden file.
#[track_caller]
pub fn assert_golden(name: &str, text: &str) {
    let path = format!("tests/golden/{name}");
    let text = format!("{}\n", text.trim_end());
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, golden, "{path} differs; BLESS=1 rewrites it");
}

/// Returns the server of every sample.
pub fn home() -> ServerName {
    ServerName::parse("home").unwrap()
}

/// Returns the hash of the sample torrent.
pub fn hash() -> InfoHash {
    "3f786850e387550fdab836ed7e6dc881de23001b".parse().unwrap()
}

/// Returns the time of every sample.
pub fn time() -> Timestamp {
    Timestamp::from_millis(1_795_328_701_114)
}

/// Returns a torrent whose fields are all set, with a name that has to be escaped.
pub fn torrent() -> Torrent {
    let mut torrent = Torrent::new(home(), hash(), "Ünï ☃ 🦀 \u{1}<&>\"");
    torrent.active = true;
    torrent.downloaded = 1_500;
    torrent.uploaded = 500;
    torrent.length = 1_500;
    torrent.path = Some("/watch/x.torrent".to_owned());
    torrent.progress = progress(1_500, 1_500);
    torrent.ratio = ratio(500, 1_500);
    torrent.finished = true;
    torrent.playing = true;
    torrent.extra = Extra::from([("throttle".into(), json!("slow")), ("absent".into(), json!(null))]);
    torrent.status = Status::Seeding;
    torrent.error = false;
    torrent.message = Some("".into());
    torrent.stalled = false;
    torrent.download_rate = Some(0);
    torrent.upload_rate = Some(1_000_000_000_000);
    torrent.left = Some(0);
    torrent.eta = None;
    torrent.peers = Some(3);
    torrent.seeds = Some(0);
    torrent.label = Some("linux".into());
    torrent.directory = Some("/downloads".into());
    torrent.private = Some(false);
    torrent.priority = Some(2);
    torrent.tracker = Some("tracker.example".into());
    torrent.added_at = Some(time());
    torrent.started_at = Some(time());
    torrent.finished_at = None;
    torrent.size_files = Some(1);
    torrent
}

/// Returns an event of this kind, observed, with one change if it is a torrent's.
pub fn event(event_type: Kind, id: EventId) -> Event {
    let is_torrents = event_type.entity() == Entity::Torrent;
    let change = Change { from: json!("downloading"), to: json!("seeding") };
    let mut event = Event::new(id, event_type, time());
    event.hash = is_torrents.then(hash);
    event.changes = if is_torrents { Changes::from([("status".to_owned(), change)]) } else { Changes::new() };
    event.torrent = is_torrents.then(|| Arc::new(torrent()));
    event
}
