//! The position of one sink in the journal of one server, and what is between it and the window.
//!
//! ```text
//! journal:  … 4 5 │ 6 7 8 │ 9 10 │ 11 12 …
//!         cursor ─┘       │      └─ read_to: read from here on
//!              in flight ─┘─ pending
//! ```
//!
//! Entries leave in the order of their numbers. The cursor is the last entry up to which all are dealt with
//! (acknowledged, dead-lettered or filtered out); an acknowledgement that comes early waits for those before it. When a
//! link ends, everything after the cursor is pending again (I4, I5).
//!
//! Pure: reading, sending and saving the cursor belong to the event outbox.

use std::collections::VecDeque;

use crate::model::{JournalEntry, Seq};

/// The cursor, the entries that follow it in flight, and those that were read ahead.
#[derive(Debug)]
pub struct SinkCursor {
    acknowledged: Seq,
    /// The last entry that was filled in.
    read_to: Seq,
    pending: VecDeque<JournalEntry>,
    /// Oldest first; `None` in place of an entry that is dealt with.
    in_flight: VecDeque<(Seq, Option<JournalEntry>)>,
    /// Bytes of the bodies of these.
    in_flight_bytes: usize,
}

impl SinkCursor {
    /// Begins after this entry.
    pub fn new(acknowledged: Seq) -> Self {
        Self {
            acknowledged,
            read_to: acknowledged,
            pending: VecDeque::new(),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
        }
    }

    /// Returns the last entry up to which all are dealt with.
    pub fn position(&self) -> Seq {
        self.acknowledged
    }

    /// Returns after which entry to read, if nothing is pending and there is more up to `published`.
    pub fn needs_entries_after(&self, published: Seq) -> Option<Seq> {
        self.reads_on_after(published).filter(|_| self.pending.is_empty())
    }

    /// Returns after which entry there is more to read up to `published`, whether something is pending or not.
    pub fn reads_on_after(&self, published: Seq) -> Option<Seq> {
        (self.read_to < published).then_some(self.read_to)
    }

    /// Adds the entries that follow what was read last.
    pub fn fill(&mut self, entries: Vec<JournalEntry>) {
        debug_assert!(entries.iter().all(|entry| entry.seq > self.read_to));
        if let Some(last) = entries.last() {
            self.read_to = last.seq;
        }
        self.pending.extend(entries);
    }

    /// Gives up what was to be read up to `published`: the journal no longer has it. Nothing may be pending.
    pub fn skip_to(&mut self, published: Seq) {
        debug_assert!(self.pending.is_empty() && self.read_to <= published);
        self.read_to = published;
        // Behind what is in flight, which is not dealt with. The cursor follows with the last of those acknowledgements:
        // nothing else would move it before the next event, and the sink would be shown as lagging until then.
        self.in_flight.push_back((published, None));
        self.pass_dealt_with();
    }

    /// Returns the next entry to send; from now on it is in flight.
    pub fn send_next(&mut self) -> Option<JournalEntry> {
        let entry = self.pending.pop_front()?;
        self.in_flight_bytes += entry.body.len();
        self.in_flight.push_back((entry.seq, Some(entry.clone())));
        Some(entry)
    }

    /// Whether an entry is in flight, dealt with or not.
    pub fn has_in_flight(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Returns the bytes of the entries that are in flight and not dealt with.
    pub fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes
    }

    /// Returns an entry that is in flight and not dealt with.
    pub fn in_flight(&self, seq: Seq) -> Option<&JournalEntry> {
        let at = self.in_flight.binary_search_by_key(&seq, |(sent, _)| *sent).ok()?;
        self.in_flight[at].1.as_ref()
    }

    /// Marks an entry in flight as dealt with and returns it; `None` if it is not in flight or was dealt with before.
    pub fn acknowledge(&mut self, seq: Seq) -> Option<JournalEntry> {
        let at = self.in_flight.binary_search_by_key(&seq, |(sent, _)| *sent).ok()?;
        let entry = self.in_flight[at].1.take();
        self.in_flight_bytes -= entry.as_ref().map_or(0, |entry| entry.body.len());
        self.pass_dealt_with();
        entry
    }

    fn pass_dealt_with(&mut self) {
        // Acknowledgements may come out of order. The cursor must not pass an entry that is still open: after a crash
        // nothing before the cursor is sent again (I4).
        while let Some((seq, None)) = self.in_flight.front() {
            self.acknowledged = *seq;
            self.in_flight.pop_front();
        }
    }

    /// Returns the last entry that was sent, dealt with or not.
    pub fn sent_to(&self) -> Seq {
        self.in_flight.back().map_or(self.acknowledged, |(seq, _)| *seq)
    }

    /// Forgets everything after the cursor: it is read and sent again.
    pub fn reset_in_flight(&mut self) {
        // Entries acknowledged out of order go, too: sent once more, they arrive in order (I5).
        self.pending.clear();
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.read_to = self.acknowledged;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Epoch, EventId, Kind, Rev, ServerName, Timestamp};

    fn entry(seq: u64) -> JournalEntry {
        let server = ServerName::parse("home").unwrap();
        let id = EventId::Journal { server, epoch: Epoch(1), seq: Seq(seq) };
        let time = Timestamp::from_millis(0);
        JournalEntry::stored(id, Kind::Added, None, Rev(0), time, Bytes::new())
    }

    #[test]
    fn a_cursor_before_entries_that_are_gone_continues_after_them() {
        let mut cursor = SinkCursor::new(Seq(2));
        assert_eq!(cursor.needs_entries_after(Seq(9)), Some(Seq(2)));
        cursor.skip_to(Seq(9));
        assert_eq!((cursor.position(), cursor.needs_entries_after(Seq(9))), (Seq(9), None));
        cursor.fill(vec![entry(10)]);
        assert_eq!(cursor.send_next().map(|entry| entry.seq), Some(Seq(10)));
        assert_eq!((cursor.position(), cursor.sent_to()), (Seq(9), Seq(10)));
        // What is in flight is not passed over.
        cursor.skip_to(Seq(12));
        assert_eq!(cursor.position(), Seq(9));
        assert_eq!(cursor.acknowledge(Seq(10)), Some(entry(10)));
        assert_eq!((cursor.position(), cursor.has_in_flight()), (Seq(12), false));
    }

    #[test]
    fn entries_that_are_gone_are_passed_when_all_before_them_are_acknowledged() {
        let mut cursor = SinkCursor::new(Seq(0));
        cursor.fill(vec![entry(1), entry(2)]);
        cursor.send_next();
        cursor.send_next();
        cursor.skip_to(Seq(5));
        cursor.fill(vec![entry(6)]);
        cursor.send_next();
        cursor.acknowledge(Seq(2));
        cursor.acknowledge(Seq(6));
        assert_eq!(cursor.position(), Seq(0), "1 is still in flight");
        cursor.acknowledge(Seq(1));
        assert_eq!(cursor.position(), Seq(6));
        // On a new link they are looked for again: only what is acknowledged is passed for good.
        cursor.fill(vec![entry(7)]);
        cursor.send_next();
        cursor.skip_to(Seq(9));
        cursor.reset_in_flight();
        assert_eq!((cursor.position(), cursor.needs_entries_after(Seq(9))), (Seq(6), Some(Seq(6))));
    }

    #[test]
    fn an_entry_is_dealt_with_once() {
        let mut cursor = SinkCursor::new(Seq(0));
        cursor.fill(vec![entry(1), entry(2)]);
        assert_eq!(cursor.acknowledge(Seq(1)), None, "it was not sent");
        cursor.send_next();
        cursor.send_next();
        assert_eq!(cursor.in_flight(Seq(2)), Some(&entry(2)));
        assert_eq!(cursor.acknowledge(Seq(2)), Some(entry(2)));
        assert_eq!((cursor.acknowledge(Seq(2)), cursor.in_flight(Seq(2))), (None, None));
        assert_eq!(cursor.position(), Seq(0), "1 is still in flight");
    }

    proptest! {
        /// Whatever order acknowledgements come in and wherever links end: first deliveries are in order, nothing is
        /// skipped, and the cursor never passes an entry that is not dealt with (I4, I5).
        #[test]
        fn first_deliveries_are_in_order_and_nothing_is_skipped(steps in prop::collection::vec((0_u8..4, 0_usize..8), 1..300)) {
            let published = Seq(40);
            let mut cursor = SinkCursor::new(Seq(0));
            let mut first_deliveries = Vec::new();
            let mut acknowledged = std::collections::BTreeSet::new();
            let mut on_link: Vec<Seq> = Vec::new();
            for (step, pick) in steps {
                match step {
                    0 => if let Some(after) = cursor.needs_entries_after(published) {
                        cursor.fill((after.0 + 1..=published.0.min(after.0 + 5)).map(entry).collect());
                    },
                    1 => if let Some(sent) = cursor.send_next() {
                        if first_deliveries.last().is_none_or(|last| *last < sent.seq) {
                            first_deliveries.push(sent.seq);
                        }
                        on_link.push(sent.seq);
                    },
                    2 => if !on_link.is_empty() {
                        let seq = on_link.remove(pick % on_link.len());
                        acknowledged.insert(seq);
                        cursor.acknowledge(seq);
                    },
                    _ => { cursor.reset_in_flight(); on_link.clear(); }
                }
                prop_assert!((1..=cursor.position().0).all(|seq| acknowledged.contains(&Seq(seq))));
            }
            let expected: Vec<Seq> = (1..=first_deliveries.len() as u64).map(Seq).collect();
            prop_assert_eq!(first_deliveries, expected);
        }
    }
}
