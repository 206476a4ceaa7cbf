//! Events for Home Assistant's event entities: their bodies, and how long they wait.
//!
//! An event entity receives an event only while Home Assistant is online, so events wait here while it is offline, up to a
//! number and an age; then the oldest are dropped. The first snapshot of a server is never an event here.
//!
//! Pure but for the log.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tracing::warn;

use crate::model::{Cause, JournalEntry, Kind};

/// Maximum number of events that wait.
const PENDING_MAX: usize = 1_000;
/// Maximum age of an event that is sent: automations must not act on what is long over.
const AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Kinds of events that become events of an entity, in the order of its `event_types`, which must not change.
pub const EVENT_KINDS: [Kind; 23] = [
    Kind::Added,
    Kind::Removed,
    Kind::Started,
    Kind::Stopped,
    Kind::Paused,
    Kind::Resumed,
    Kind::Finished,
    Kind::Unfinished,
    Kind::Error,
    Kind::ErrorCleared,
    Kind::Stalled,
    Kind::Unstalled,
    Kind::Checking,
    Kind::Checked,
    Kind::Metadata,
    Kind::Moved,
    Kind::Renamed,
    Kind::LabelChanged,
    Kind::PriorityChanged,
    Kind::ServerOnline,
    Kind::ServerOffline,
    Kind::ServerRestarted,
    Kind::JournalReset,
];

/// Returns the body for an event entity; `None` for an entry that is no event there.
pub fn body(entry: &JournalEntry) -> Option<Bytes> {
    if !EVENT_KINDS.contains(&entry.kind) {
        return None;
    }
    // The torrents of a server that is new here are `added` with this cause; an automation must not act on all of them.
    let event = entry.event().ok().filter(|event| event.cause != Cause::Snapshot)?;
    let torrent = event.torrent.as_deref();
    let body = json!({
        "event_type": entry.kind.as_str(),
        "id": event.id,
        "time": event.time,
        "server": entry.server,
        "cause": event.cause,
        "hash": entry.hash,
        "name": torrent.map(|torrent| &torrent.name),
        "label": torrent.and_then(|torrent| torrent.label.as_ref()),
        "directory": torrent.and_then(|torrent| torrent.directory.as_ref()),
        "size": torrent.map(|torrent| torrent.length),
        "ratio": torrent.and_then(|torrent| torrent.ratio),
        "progress": torrent.map(|torrent| torrent.progress),
        "finished": torrent.map(|torrent| torrent.finished),
        "tracker": torrent.and_then(|torrent| torrent.tracker.as_ref()),
        "message": torrent.and_then(|torrent| torrent.message.as_ref()),
    });
    Some(Bytes::from(body.to_string()))
}

/// Events of all servers that were not sent yet, or not acknowledged: with the time of arrival, topic and body.
#[derive(Debug, Default)]
pub struct PendingEvents {
    pending: VecDeque<(Duration, String, Bytes)>,
    in_flight: VecDeque<(Duration, String, Bytes)>,
    /// An event was dropped since the last one was sent, which was logged.
    has_dropped: bool,
}

impl PendingEvents {
    /// Adds an event that arrived at `at`; drops the oldest one if there is no room.
    pub fn push(&mut self, topic: String, body: Bytes, at: Duration) {
        if self.pending.len() >= PENDING_MAX {
            self.pending.pop_front();
            if !std::mem::replace(&mut self.has_dropped, true) {
                warn!(max = PENDING_MAX, "Home Assistant has been offline for long, dropping the oldest events for it");
            }
        }
        self.pending.push_back((at, topic, body));
    }

    /// Returns topic and body of the oldest event that is not out of date; it is in flight then.
    pub fn next(&mut self, at: Duration) -> Option<(String, Bytes)> {
        while self.pending.front().is_some_and(|(since, ..)| at.saturating_sub(*since) > AGE_MAX) {
            self.pending.pop_front();
        }
        let event = self.pending.pop_front()?;
        self.has_dropped = false;
        self.in_flight.push_back(event.clone());
        Some((event.1, event.2))
    }

    /// Removes the oldest event in flight: the broker acknowledged it.
    pub fn acknowledged(&mut self) {
        // Acknowledgements come in the order of sending, so the topic need not be compared.
        self.in_flight.pop_front();
    }

    /// Makes pending again what is in flight.
    pub fn reset_in_flight(&mut self) {
        while let Some(event) = self.in_flight.pop_back() {
            self.pending.push_front(event);
        }
    }

    /// Whether no event waits to be sent.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(pending: &mut PendingEvents, at: u64) -> Vec<String> {
        std::iter::from_fn(|| pending.next(Duration::from_secs(at))).map(|(topic, _)| topic).collect()
    }

    #[test]
    fn events_wait_in_order_and_those_not_acknowledged_come_again() {
        let mut pending = PendingEvents::default();
        for n in 0..3 {
            pending.push(n.to_string(), Bytes::new(), Duration::ZERO);
        }
        assert_eq!(sent(&mut pending, 1), ["0", "1", "2"]);
        pending.acknowledged();
        pending.reset_in_flight();
        assert_eq!(sent(&mut pending, 1), ["1", "2"]);
    }

    #[test]
    fn no_more_than_so_many_wait_and_none_longer_than_a_day() {
        let mut pending = PendingEvents::default();
        for n in 0..PENDING_MAX + 5 {
            pending.push(n.to_string(), Bytes::new(), Duration::from_secs(n as u64));
        }
        let all = sent(&mut pending, 2_000);
        assert_eq!((all.len(), all[0].as_str()), (PENDING_MAX, "5"));
        pending.push("old".to_owned(), Bytes::new(), Duration::ZERO);
        assert!(sent(&mut pending, 24 * 60 * 60 + 1).is_empty());
    }
}
