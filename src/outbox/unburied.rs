//! Rejected entries that find no place among the dead letters: the sink stands until each has one, or is taken.
//!
//! While there are any, no entry behind them is sent: it would be the next to find no place. Two things may end it,
//! and nobody has to say which: somebody makes room, or the far side is mended. So a burial is tried again and again,
//! and at longer distances the entries are offered to the far side once more, one after the other.
//!
//! Sending, burying and the clock are the dispatcher's.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::JournalEntry;

/// From a rejection to the next offer.
const OFFER_EACH: Duration = Duration::from_secs(15);

#[derive(Debug, Default)]
pub struct Unburied {
    /// With the reasons, in the order of their rejections.
    waiting: VecDeque<(Box<JournalEntry>, String)>,
    offer_at: Option<Instant>,
    /// The first of them is under way.
    is_offered: bool,
}

impl Unburied {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The far side will not take it, or not yet.
    pub fn rejected(&mut self, entry: Box<JournalEntry>, reason: String, now: Instant) {
        match self.waiting.front_mut().filter(|(first, _)| first.id == entry.id) {
            Some((_, why)) => {
                *why = reason;
                self.is_offered = false;
            }
            None => self.waiting.push_back((entry, reason)),
        }
        self.offer_at = Some(now + OFFER_EACH);
    }

    /// The far side has taken it: the next one may be tried at once.
    pub fn taken(&mut self, entry: &JournalEntry) {
        if self.waiting.front().is_some_and(|(first, _)| first.id == entry.id) {
            self.waiting.pop_front();
            self.is_offered = false;
            self.offer_at = None;
        }
    }

    /// The one to be buried now, with the reason.
    pub fn first(&self) -> Option<(&JournalEntry, &str)> {
        let (entry, reason) = self.waiting.front().filter(|_| !self.is_offered)?;
        Some((entry, reason))
    }

    /// It was.
    pub fn buried(&mut self) -> Option<Box<JournalEntry>> {
        self.waiting.pop_front().map(|(entry, _)| entry)
    }

    /// The one to be sent once more, if it is time.
    pub fn offer(&mut self, now: Instant) -> Option<JournalEntry> {
        let is_due = !self.is_offered && self.offer_at.is_none_or(|at| at <= now);
        let (entry, _) = self.waiting.front().filter(|_| is_due)?;
        self.is_offered = true;
        Some(JournalEntry::clone(entry))
    }

    /// The connection is over: they are sent again with all else.
    pub fn go_back(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::{Epoch, EventId, Kind, Rev, Seq, ServerName, Timestamp};

    fn entry(seq: u64) -> Box<JournalEntry> {
        let server = ServerName::parse("home").unwrap();
        let id = EventId::Journal { server: server.clone(), epoch: Epoch(1), seq: Seq(seq) };
        let time = Timestamp::from_millis(0);
        let body = Bytes::new();
        Box::new(JournalEntry::stored(server, Seq(seq), id, Kind::Added, None, Rev(0), time, body))
    }

    fn two(now: Instant) -> Unburied {
        let mut unburied = Unburied::default();
        unburied.rejected(entry(3), "no".to_owned(), now);
        unburied.rejected(entry(5), "no".to_owned(), now);
        unburied
    }

    #[tokio::test(start_paused = true)]
    async fn they_are_offered_one_by_one_and_the_next_as_soon_as_one_is_taken() {
        let now = Instant::now();
        let mut unburied = two(now);
        assert_eq!(unburied.offer(now), None, "it has only just been rejected");
        let later = now + OFFER_EACH;
        assert_eq!(unburied.offer(later), Some(*entry(3)));
        assert_eq!((unburied.offer(later), unburied.first()), (None, None), "one at a time, and not buried meanwhile");
        unburied.taken(&entry(3));
        assert_eq!(unburied.offer(later), Some(*entry(5)));
        unburied.rejected(entry(5), "still no".to_owned(), later);
        assert_eq!((unburied.offer(later), unburied.first()), (None, Some((&*entry(5), "still no"))));
        assert_eq!(unburied.offer(later + OFFER_EACH), Some(*entry(5)));
        unburied.taken(&entry(5));
        assert!(unburied.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_taken_or_buried_is_the_first_and_no_other() {
        let now = Instant::now();
        let mut unburied = two(now);
        unburied.taken(&entry(5));
        assert_eq!(unburied.buried(), Some(entry(3)));
        assert_eq!(unburied.first(), Some((&*entry(5), "no")));
        unburied.go_back();
        assert!(unburied.is_empty());
    }
}
