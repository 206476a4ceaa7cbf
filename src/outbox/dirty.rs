//! The dirty set: torrents whose latest state one sink has not received yet.
//!
//! The set holds info-hashes, not messages: however long a sink is disconnected and however often a torrent changes, one
//! state per torrent is pending. Memory is bounded by the number of torrents, and a sink that reconnects receives the
//! present, not the past.
//!
//! Invariants:
//! - a torrent enters with the state that the sink knows; later changes leave that alone (I8);
//! - a state is held back while journal entries of its torrent are undelivered: an event must not arrive after the state
//!   it led to;
//! - a change that comes while the state is in flight makes the torrent pending again.
//!
//! Pure: sending, retrying and time belong to the dispatcher.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::model::{InfoHash, Seq, Torrent};

/// The knowledge that the sink has of a torrent: what the `changes` of the next update begin from.
#[derive(Clone, Debug, PartialEq)]
pub enum Known {
    /// No such torrent: its `added` comes as an event, so no update is sent.
    Nothing,
    /// The torrent as the sink last received it.
    Torrent(Arc<Torrent>),
    /// The present: only the state is to be published again, without an `updated`.
    Present,
    /// Lost with an earlier run of the bridge.
    Forgotten,
}

#[derive(Debug)]
struct Dirty {
    known: Known,
    /// The entry that the sink knows this from.
    known_from: Seq,
    not_before: Seq,
    /// The knowledge of the sink once the state in flight arrives; `None` without one.
    in_flight: Option<Known>,
    /// The torrent changed again meanwhile.
    is_stale: bool,
}

/// The dirty torrents of one server, for one sink.
#[derive(Debug, Default)]
pub struct DirtySet {
    torrents: HashMap<InfoHash, Dirty>,
    /// Torrents whose state is not in flight, by the entry that has to be delivered before.
    pending: BTreeSet<(Seq, InfoHash)>,
}

impl DirtySet {
    /// Adds a torrent that changed. `known` is what the sink knew before, unless the torrent is dirty already; its state
    /// is held until the entry `not_before` is delivered.
    pub fn mark(&mut self, hash: InfoHash, known: Known, not_before: Seq) {
        match self.torrents.get_mut(&hash) {
            Some(dirty) => {
                // A republication needs no update; the change that comes now does, from what the sink has.
                if dirty.known == Known::Present {
                    dirty.known = known;
                }
                let is_pending = self.pending.remove(&(dirty.not_before, hash));
                dirty.not_before = dirty.not_before.max(not_before);
                dirty.is_stale = dirty.in_flight.is_some();
                if is_pending {
                    self.pending.insert((dirty.not_before, hash));
                }
            }
            None => {
                let dirty = Dirty { known, known_from: Seq(0), not_before, in_flight: None, is_stale: false };
                self.torrents.insert(hash, dirty);
                self.pending.insert((not_before, hash));
            }
        }
    }

    /// Records what the sink knows since it received the entry `seq` about the torrent. Entries may be acknowledged out of
    /// order: the latest one counts.
    pub fn learned(&mut self, hash: InfoHash, known: Known, seq: Seq) {
        if let Some(dirty) = self.torrents.get_mut(&hash).filter(|dirty| dirty.known_from < seq) {
            dirty.known = known;
            dirty.known_from = seq;
        }
    }

    /// Whether a torrent is dirty, pending or in flight.
    pub fn contains(&self, hash: &InfoHash) -> bool {
        self.torrents.contains_key(hash)
    }

    /// Returns the next torrent whose state may be sent, with the cursor of the sink at `cursor`.
    pub fn peek(&self, cursor: Seq) -> Option<InfoHash> {
        self.pending.first().filter(|(not_before, _)| *not_before <= cursor).map(|(_, hash)| *hash)
    }

    /// Takes the torrent that [`Self::peek`] shows, with what the sink knows of it.
    pub fn next(&mut self, cursor: Seq) -> Option<(InfoHash, Known)> {
        let hash = self.peek(cursor)?;
        self.pending.pop_first();
        let known = self.torrents.get(&hash).map(|dirty| dirty.known.clone())?;
        Some((hash, known))
    }

    /// Records that the state of a torrent is in flight; when it arrives, the sink knows `known`.
    pub fn sent(&mut self, hash: InfoHash, known: Known) {
        if let Some(dirty) = self.torrents.get_mut(&hash) {
            dirty.in_flight = Some(known);
            dirty.is_stale = false;
        }
    }

    /// Records that a state arrived, or that the sink will never take it.
    pub fn resolve(&mut self, hash: InfoHash) {
        let Some(dirty) = self.torrents.get_mut(&hash) else { return };
        let Some(known) = dirty.in_flight.take() else { return };
        if dirty.is_stale {
            dirty.known = known;
            self.pending.insert((dirty.not_before, hash));
        } else {
            self.torrents.remove(&hash);
        }
    }

    /// Makes pending again what is in flight.
    pub fn reset_in_flight(&mut self) {
        for (hash, dirty) in &mut self.torrents {
            // `known` stays: a state that may not have arrived is nothing that the next update can begin from.
            dirty.in_flight = None;
            dirty.is_stale = false;
            self.pending.insert((dirty.not_before, *hash));
        }
    }

    /// Returns all dirty torrents, in no order.
    pub fn hashes(&self) -> impl Iterator<Item = &InfoHash> {
        self.torrents.keys()
    }

    /// Whether the sink has the latest state of every torrent.
    pub fn is_empty(&self) -> bool {
        self.torrents.is_empty()
    }

    /// Returns the number of dirty torrents, pending or in flight.
    pub fn len(&self) -> usize {
        self.torrents.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u8) -> InfoHash {
        InfoHash::V1([n; 20])
    }

    #[test]
    fn a_torrent_is_pending_once_however_often_it_changes() {
        let mut dirty = DirtySet::default();
        dirty.mark(hash(1), Known::Forgotten, Seq(0));
        dirty.mark(hash(1), Known::Nothing, Seq(0));
        assert_eq!(dirty.next(Seq(0)), Some((hash(1), Known::Forgotten)), "the first state counts");
        assert_eq!(dirty.next(Seq(0)), None);
    }

    #[test]
    fn a_state_waits_for_the_events_that_led_to_it() {
        let mut dirty = DirtySet::default();
        dirty.mark(hash(1), Known::Nothing, Seq(5));
        dirty.mark(hash(2), Known::Nothing, Seq(3));
        assert_eq!(dirty.next(Seq(2)), None);
        assert_eq!(dirty.next(Seq(4)).unwrap().0, hash(2));
        assert_eq!(dirty.next(Seq(4)), None);
        assert_eq!(dirty.next(Seq(5)).unwrap().0, hash(1));
    }

    #[test]
    fn a_state_that_is_only_published_again_becomes_an_update_when_it_changes() {
        let mut dirty = DirtySet::default();
        dirty.mark(hash(1), Known::Present, Seq(0));
        dirty.mark(hash(1), Known::Forgotten, Seq(0));
        dirty.mark(hash(1), Known::Present, Seq(0));
        assert_eq!(dirty.next(Seq(0)), Some((hash(1), Known::Forgotten)));
    }

    #[test]
    fn the_newest_entry_counts_whichever_is_acknowledged_first() {
        let mut dirty = DirtySet::default();
        dirty.mark(hash(1), Known::Nothing, Seq(0));
        dirty.learned(hash(1), Known::Forgotten, Seq(2));
        dirty.learned(hash(1), Known::Nothing, Seq(1));
        assert_eq!(dirty.next(Seq(2)), Some((hash(1), Known::Forgotten)));
    }

    #[test]
    fn a_torrent_that_changes_while_its_state_is_in_flight_is_pending_again() {
        let mut dirty = DirtySet::default();
        dirty.mark(hash(1), Known::Nothing, Seq(0));
        dirty.next(Seq(0)).unwrap();
        dirty.sent(hash(1), Known::Forgotten);
        dirty.mark(hash(1), Known::Nothing, Seq(1));
        dirty.resolve(hash(1));
        assert_eq!(dirty.next(Seq(1)), Some((hash(1), Known::Forgotten)), "it knows what arrived");
        dirty.sent(hash(1), Known::Nothing);
        dirty.resolve(hash(1));
        assert!(dirty.is_empty());
    }

    #[test]
    fn a_state_in_flight_when_the_link_ends_is_pending_as_before() {
        let mut dirty = DirtySet::default();
        dirty.mark(hash(1), Known::Nothing, Seq(0));
        dirty.next(Seq(0)).unwrap();
        dirty.sent(hash(1), Known::Forgotten);
        dirty.reset_in_flight();
        assert_eq!(dirty.next(Seq(0)), Some((hash(1), Known::Nothing)));
    }
}
