//! Rejected events that are not in the dead-letter queue yet.
//!
//! An event gets there at once unless the queue or the disk is full. Then delivery is blocked: no other event is sent, as
//! it would be the next to find no place. Two things may end that, neither of which is announced: room is made in the
//! queue, or the receiver is repaired. So saving is tried again and again, and at longer intervals the events are offered to the
//! receiver once more, one after the other.
//!
//! Sending, saving and the clock belong to the event outbox.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::JournalEntry;

/// Time between a rejection and the next offer of the same event.
const OFFER_INTERVAL: Duration = Duration::from_secs(15);

/// Rejected events, in the order of their rejections.
#[derive(Debug, Default)]
pub struct PendingDeadLetters {
    /// With the reasons.
    pending: VecDeque<(JournalEntry, String)>,
    offer_at: Option<Instant>,
    /// The first of them is in flight once more.
    is_offered: bool,
}

impl PendingDeadLetters {
    /// Whether every rejected event is in the dead-letter queue.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Adds an event, or a newer reason if it was offered once more.
    pub fn rejected(&mut self, entry: JournalEntry, reason: String, now: Instant) {
        match self.pending.front_mut().filter(|(first, _)| first.id == entry.id) {
            Some((_, why)) => {
                *why = reason;
                self.is_offered = false;
            }
            None => self.pending.push_back((entry, reason)),
        }
        self.offer_at = Some(now + OFFER_INTERVAL);
    }

    /// Removes the event that was offered and is acknowledged: the next one may be offered at once.
    pub fn acknowledged(&mut self, entry: &JournalEntry) {
        if self.pending.front().is_some_and(|(first, _)| first.id == entry.id) {
            self.pending.pop_front();
            self.is_offered = false;
            self.offer_at = None;
        }
    }

    /// Returns the event to be saved now, with the reason; none while it is offered.
    pub fn first(&self) -> Option<(&JournalEntry, &str)> {
        let (entry, reason) = self.pending.front().filter(|_| !self.is_offered)?;
        Some((entry, reason))
    }

    /// Removes the first event, which was saved.
    pub fn saved(&mut self) -> Option<JournalEntry> {
        self.pending.pop_front().map(|(entry, _)| entry)
    }

    /// Returns the event to be sent once more, if it is time.
    pub fn offer(&mut self, now: Instant) -> Option<JournalEntry> {
        let is_due = !self.is_offered && self.offer_at.is_none_or(|at| at <= now);
        let (entry, _) = self.pending.front().filter(|_| is_due)?;
        self.is_offered = true;
        Some(entry.clone())
    }

    /// Forgets all of them: they are sent again with everything else.
    pub fn reset_in_flight(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::{Epoch, EventId, Kind, Rev, Seq, ServerName, Timestamp};

    fn entry(seq: u64) -> JournalEntry {
        let server = ServerName::parse("home").unwrap();
        let id = EventId::Journal { server, epoch: Epoch(1), seq: Seq(seq) };
        let time = Timestamp::from_millis(0);
        JournalEntry::stored(id, Kind::Added, None, Rev(0), time, Bytes::new())
    }

    fn two(now: Instant) -> PendingDeadLetters {
        let mut pending = PendingDeadLetters::default();
        pending.rejected(entry(3), "no".to_owned(), now);
        pending.rejected(entry(5), "no".to_owned(), now);
        pending
    }

    #[tokio::test(start_paused = true)]
    async fn they_are_offered_one_by_one_and_the_next_as_soon_as_one_is_acknowledged() {
        let now = Instant::now();
        let mut pending = two(now);
        assert_eq!(pending.offer(now), None, "it has only just been rejected");
        let later = now + OFFER_INTERVAL;
        assert_eq!(pending.offer(later), Some(entry(3)));
        assert_eq!((pending.offer(later), pending.first()), (None, None), "one at a time, and not saved meanwhile");
        pending.acknowledged(&entry(3));
        assert_eq!(pending.offer(later), Some(entry(5)));
        pending.rejected(entry(5), "still no".to_owned(), later);
        assert_eq!((pending.offer(later), pending.first()), (None, Some((&entry(5), "still no"))));
        assert_eq!(pending.offer(later + OFFER_INTERVAL), Some(entry(5)));
        pending.acknowledged(&entry(5));
        assert!(pending.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_that_is_acknowledged_or_saved_is_the_first_and_no_other() {
        let now = Instant::now();
        let mut pending = two(now);
        pending.acknowledged(&entry(5));
        assert_eq!(pending.saved(), Some(entry(3)));
        assert_eq!(pending.first(), Some((&entry(5), "no")));
        pending.reset_in_flight();
        assert!(pending.is_empty());
    }
}
