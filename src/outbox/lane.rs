//! The lane: one server's journal on its way to one sink.
//!
//! Entries leave in the order of their numbers. The cursor stands at the last entry up to which all
//! are settled (acknowledged, buried or left out by the sink's filter); an acknowledgement that comes
//! early waits for those before it. When a connection ends, the lane goes back to the cursor (I4, I5).
//!
//! Pure: reading entries, sending and keeping the cursor are the dispatcher's.

use std::collections::VecDeque;

use crate::model::{JournalEntry, Seq};

#[derive(Debug)]
pub struct Lane {
    cursor: Seq,
    /// The last entry that was handed to the lane.
    read_to: Seq,
    waiting: VecDeque<JournalEntry>,
    /// Sent, oldest first; true when settled.
    under_way: VecDeque<(Seq, bool)>,
}

impl Lane {
    pub fn new(cursor: Seq) -> Self {
        Self { cursor, read_to: cursor, waiting: VecDeque::new(), under_way: VecDeque::new() }
    }

    /// All entries up to here are settled.
    pub fn cursor(&self) -> Seq {
        self.cursor
    }

    /// From where the lane wants to read on, if there is more up to `written` and it has nothing waiting.
    pub fn wants_after(&self, written: Seq) -> Option<Seq> {
        (self.waiting.is_empty() && self.read_to < written).then_some(self.read_to)
    }

    /// From where there is more to read up to `written`, whether something waits or not.
    pub fn goes_on_after(&self, written: Seq) -> Option<Seq> {
        (self.read_to < written).then_some(self.read_to)
    }

    /// Takes in what was read after [`Self::wants_after`].
    pub fn fill(&mut self, entries: Vec<JournalEntry>) {
        debug_assert!(entries.iter().all(|entry| entry.seq > self.read_to));
        if let Some(last) = entries.last() {
            self.read_to = last.seq;
        }
        self.waiting.extend(entries);
    }

    /// There is nothing up to `written` any more: entries that were wanted once more are gone meanwhile.
    pub fn skip_to(&mut self, written: Seq) {
        self.read_to = self.read_to.max(written);
        if self.under_way.is_empty() && self.waiting.is_empty() {
            self.cursor = self.cursor.max(written);
        }
    }

    /// The next entry to send; it counts as under way from now on.
    pub fn depart(&mut self) -> Option<JournalEntry> {
        let entry = self.waiting.pop_front()?;
        self.under_way.push_back((entry.seq, false));
        Some(entry)
    }

    /// Whether an entry was sent that is not settled.
    pub fn has_in_flight(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// The entry is dealt with. Returns whether the cursor moved.
    pub fn settle(&mut self, seq: Seq) -> bool {
        if let Some(sent) = self.under_way.iter_mut().find(|(sent, _)| *sent == seq) {
            sent.1 = true;
        }
        let before = self.cursor;
        while let Some((seq, true)) = self.under_way.front() {
            self.cursor = *seq;
            self.under_way.pop_front();
        }
        self.cursor != before
    }

    /// Goes back to before `from`, once nothing is under way: an acknowledgement from before would count for the
    /// second time that an entry is sent. Returns whether it has.
    pub fn rewind(&mut self, from: Seq) -> bool {
        if !self.under_way.is_empty() {
            return false;
        }
        self.cursor = self.cursor.min(Seq(from.0.saturating_sub(1)));
        self.go_back();
        true
    }

    /// The connection is over: what is not settled is to be sent again.
    pub fn go_back(&mut self) {
        self.waiting.clear();
        self.under_way.clear();
        self.read_to = self.cursor;
    }

    /// Everything up to `written` is settled.
    pub fn is_drained(&self, written: Seq) -> bool {
        self.cursor >= written
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
        let id = EventId::Journal { server: server.clone(), epoch: Epoch(1), seq: Seq(seq) };
        let time = Timestamp::from_millis(0);
        JournalEntry::stored(server, Seq(seq), id, Kind::Added, None, Rev(0), time, Bytes::new())
    }

    #[test]
    fn a_lane_that_goes_back_to_entries_that_are_gone_goes_on_behind_them() {
        let mut lane = Lane::new(Seq(9));
        assert!(lane.rewind(Seq(3)));
        assert_eq!(lane.wants_after(Seq(9)), Some(Seq(2)));
        lane.skip_to(Seq(9));
        assert!(lane.is_drained(Seq(9)) && lane.wants_after(Seq(9)).is_none());
        lane.fill(vec![entry(10)]);
        assert_eq!(lane.depart().map(|entry| entry.seq), Some(Seq(10)));
        // What is under way is not passed over.
        lane.skip_to(Seq(12));
        assert_eq!(lane.cursor(), Seq(9));
        lane.settle(Seq(10));
        assert_eq!(lane.cursor(), Seq(10));
    }

    proptest! {
        /// Whatever order acknowledgements come in and wherever connections end: first deliveries are in
        /// order, nothing is skipped, and the cursor never passes an unsettled entry (I4, I5).
        #[test]
        fn first_deliveries_are_in_order_and_nothing_is_skipped(steps in prop::collection::vec((0_u8..4, 0_usize..8), 1..300)) {
            let written = Seq(40);
            let mut lane = Lane::new(Seq(0));
            let mut first_deliveries = Vec::new();
            let mut settled = std::collections::BTreeSet::new();
            let mut on_link: Vec<Seq> = Vec::new();
            for (step, pick) in steps {
                match step {
                    0 => if let Some(after) = lane.wants_after(written) {
                        lane.fill((after.0 + 1..=written.0.min(after.0 + 5)).map(entry).collect());
                    },
                    1 => if let Some(sent) = lane.depart() {
                        if first_deliveries.last().is_none_or(|last| *last < sent.seq) {
                            first_deliveries.push(sent.seq);
                        }
                        on_link.push(sent.seq);
                    },
                    2 => if !on_link.is_empty() {
                        let seq = on_link.remove(pick % on_link.len());
                        settled.insert(seq);
                        lane.settle(seq);
                    },
                    _ => { lane.go_back(); on_link.clear(); }
                }
                prop_assert!((1..=lane.cursor().0).all(|seq| settled.contains(&Seq(seq))));
            }
            let expected: Vec<Seq> = (1..=first_deliveries.len() as u64).map(Seq).collect();
            prop_assert_eq!(first_deliveries, expected);
        }
    }
}
