//! Events for Home Assistant's event entities: their bodies, and how long they wait.
//!
//! An event entity receives an event only while Home Assistant is online, so events wait here while it is offline, up to a
//! number and an age; then the oldest are dropped. The first snapshot of a server is no news and never an event here.
//!
//! Pure but for the log.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tracing::warn;

use super::EVENT_KINDS;
use crate::model::{Cause, JournalEntry};

const WAITING_MAX: usize = 1_000;
const AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Returns the body for an event entity; `None` for an entry that is no event there.
pub fn body(entry: &JournalEntry) -> Option<Bytes> {
    if !EVENT_KINDS.contains(&entry.kind) {
        return None;
    }
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

/// Events of all servers that were not sent yet, or not acknowledged.
#[derive(Debug, Default)]
pub struct Waiting {
    events: VecDeque<(Duration, String, Bytes)>,
    in_flight: VecDeque<(Duration, String, Bytes)>,
    /// Dropped since the last one was sent.
    lost: usize,
}

impl Waiting {
    pub fn push(&mut self, topic: String, body: Bytes, at: Duration) {
        if self.events.len() >= WAITING_MAX {
            self.events.pop_front();
            if self.lost == 0 {
                warn!(
                    kept = WAITING_MAX,
                    "Home Assistant has been offline for long, dropping the oldest events for it"
                );
            }
            self.lost += 1;
        }
        self.events.push_back((at, topic, body));
    }

    pub fn next(&mut self, at: Duration) -> Option<(String, Bytes)> {
        while self.events.front().is_some_and(|(since, ..)| at.saturating_sub(*since) > AGE_MAX) {
            self.events.pop_front();
        }
        let event = self.events.pop_front()?;
        self.lost = 0;
        self.in_flight.push_back(event.clone());
        Some((event.1, event.2))
    }

    /// Removes the oldest event in flight: the broker acknowledged it.
    pub fn acknowledged(&mut self) {
        self.in_flight.pop_front();
    }

    /// Makes pending again what is in flight.
    pub fn reset_in_flight(&mut self) {
        while let Some(event) = self.in_flight.pop_back() {
            self.events.push_front(event);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(waiting: &mut Waiting, at: u64) -> Vec<String> {
        std::iter::from_fn(|| waiting.next(Duration::from_secs(at))).map(|(topic, _)| topic).collect()
    }

    #[test]
    fn events_wait_in_order_and_those_not_acknowledged_come_again() {
        let mut waiting = Waiting::default();
        for n in 0..3 {
            waiting.push(n.to_string(), Bytes::new(), Duration::ZERO);
        }
        assert_eq!(sent(&mut waiting, 1), ["0", "1", "2"]);
        waiting.acknowledged();
        waiting.reset_in_flight();
        assert_eq!(sent(&mut waiting, 1), ["1", "2"]);
    }

    #[test]
    fn no_more_than_so_many_wait_and_none_longer_than_a_day() {
        let mut waiting = Waiting::default();
        for n in 0..WAITING_MAX + 5 {
            waiting.push(n.to_string(), Bytes::new(), Duration::from_secs(n as u64));
        }
        let all = sent(&mut waiting, 2_000);
        assert_eq!((all.len(), all[0].as_str()), (WAITING_MAX, "5"));
        waiting.push("old".to_owned(), Bytes::new(), Duration::ZERO);
        assert!(sent(&mut waiting, 24 * 60 * 60 + 1).is_empty());
    }
}
