//! The conflated event `updated`: what changed of a torrent since a receiver knew it. Pure.

use std::sync::Arc;

use super::dirty::Known;
use crate::model::{Changes, Event, EventId, JournalEntry, Kind, SnapshotTorrent, Torrent};

/// Returns the changes to report to a receiver that knows this much; `None` if there is nothing to report.
pub(super) fn changes_for(known: &Known, torrent: &Torrent) -> Option<Changes> {
    match known {
        Known::Nothing | Known::Present => None,
        Known::Forgotten => Some(Changes::new()),
        Known::Torrent(before) => Some(before.changes_to(torrent)).filter(|changes| !changes.is_empty()),
    }
}

/// Returns the event. Its time is that of the newest change, so that one id has the same time on every sink.
pub(super) fn updated(id: EventId, changes: Changes, snapshot: &SnapshotTorrent) -> Event {
    let torrent = Some(Arc::clone(&snapshot.torrent));
    let event = Event::new(id, Kind::Updated, snapshot.changed_at);
    Event { hash: Some(snapshot.torrent.hash), changes, torrent, ..event }
}

/// Returns what a receiver of `entry` knows of its torrent; `snapshot` is the torrent as it is now.
pub(super) fn known_after(entry: &JournalEntry, snapshot: Option<SnapshotTorrent>) -> Known {
    match snapshot {
        _ if entry.kind == Kind::Removed => Known::Nothing,
        // The usual case, in which the stored bytes need not be decoded.
        Some(snapshot) if snapshot.rev == entry.rev => Known::Torrent(snapshot.torrent),
        _ => match entry.event().map(|event| event.torrent.clone()) {
            Ok(Some(torrent)) => Known::Torrent(torrent),
            // Written by another version: the whole torrent is reported with the next change.
            Ok(None) | Err(_) => Known::Forgotten,
        },
    }
}
