//! The dirty set: which torrents one sink has an old picture of.
//!
//! A sink that keeps up has an empty set. One that is slow or away collects *names*, not messages:
//! however long it is away and however often a torrent changes, it owes one update per torrent. So
//! memory is bounded by the number of torrents, and what a returning sink hears is the present.
//!
//! What must hold:
//! - a torrent enters with the picture the sink has, and later changes leave that alone (I8);
//! - it is not offered while the sink has journal entries of it to come, or an event would arrive
//!   after the state it led to;
//! - a change that comes while the state is under way makes it owed again.
//!
//! Pure: sending, retrying and the clock are the dispatcher's.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::model::{InfoHash, Seq, Torrent};

/// What the sink knows of a torrent.
#[derive(Clone, Debug, PartialEq)]
pub enum Known {
    /// There is none for it.
    Nothing,
    Picture(Arc<Torrent>),
    /// What is told: the state alone is to be said again.
    Present,
    /// What it knew is forgotten: the bridge was started anew.
    Forgotten,
}

#[derive(Debug)]
struct Owed {
    known: Known,
    /// The entry that taught this.
    learned_from: Seq,
    not_before: Seq,
    /// The picture that is under way to the sink, if one is.
    under_way: Option<Known>,
    /// It changed again meanwhile.
    is_stale: bool,
}

/// The torrents of one server that are owed to one sink.
#[derive(Debug, Default)]
pub struct DirtySet {
    owed: HashMap<InfoHash, Owed>,
    /// Those not under way, by when they may go.
    ready: BTreeSet<(Seq, InfoHash)>,
}

impl DirtySet {
    /// The torrent changed; `known` is what the sink had before, if it is not owed already.
    pub fn mark(&mut self, hash: InfoHash, known: Known, not_before: Seq) {
        match self.owed.get_mut(&hash) {
            Some(owed) => {
                if owed.known == Known::Present {
                    owed.known = known;
                }
                let is_ready = self.ready.remove(&(owed.not_before, hash));
                owed.not_before = owed.not_before.max(not_before);
                owed.is_stale = owed.under_way.is_some();
                if is_ready {
                    self.ready.insert((owed.not_before, hash));
                }
            }
            None => {
                let learned_from = Seq(0);
                self.owed.insert(hash, Owed { known, learned_from, not_before, under_way: None, is_stale: false });
                self.ready.insert((not_before, hash));
            }
        }
    }

    /// The sink has the journal entry `seq` about the torrent, and knows that picture now. It may be
    /// heard of a later entry first: that one counts.
    pub fn learned(&mut self, hash: InfoHash, known: Known, seq: Seq) {
        if let Some(owed) = self.owed.get_mut(&hash).filter(|owed| owed.learned_from < seq) {
            owed.known = known;
            owed.learned_from = seq;
        }
    }

    /// Whether the sink waits for a state of it.
    pub fn owes(&self, hash: &InfoHash) -> bool {
        self.owed.contains_key(hash)
    }

    /// The next torrent whose state may go.
    pub fn peek(&self, cursor: Seq) -> Option<InfoHash> {
        self.ready.first().filter(|(not_before, _)| *not_before <= cursor).map(|(_, hash)| *hash)
    }

    /// Takes the next torrent whose state may go, with what the sink knows of it.
    pub fn next(&mut self, cursor: Seq) -> Option<(InfoHash, Known)> {
        let hash = self.peek(cursor)?;
        self.ready.pop_first();
        let known = self.owed.get(&hash).map(|owed| owed.known.clone())?;
        Some((hash, known))
    }

    /// The state offered last is under way; the sink will know this picture.
    pub fn sent(&mut self, hash: InfoHash, picture: Known) {
        if let Some(owed) = self.owed.get_mut(&hash) {
            owed.under_way = Some(picture);
            owed.is_stale = false;
        }
    }

    /// It arrived, or the sink will never take it.
    pub fn settled(&mut self, hash: InfoHash) {
        let Some(owed) = self.owed.get_mut(&hash) else { return };
        let Some(picture) = owed.under_way.take() else { return };
        if owed.is_stale {
            owed.known = picture;
            self.ready.insert((owed.not_before, hash));
        } else {
            self.owed.remove(&hash);
        }
    }

    /// The connection is over: what was under way is owed as before.
    pub fn go_back(&mut self) {
        for (hash, owed) in &mut self.owed {
            owed.under_way = None;
            owed.is_stale = false;
            self.ready.insert((owed.not_before, *hash));
        }
    }

    /// All that are owed, in no order.
    pub fn hashes(&self) -> impl Iterator<Item = &InfoHash> {
        self.owed.keys()
    }

    pub fn is_empty(&self) -> bool {
        self.owed.is_empty()
    }

    pub fn len(&self) -> usize {
        self.owed.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u8) -> InfoHash {
        InfoHash::V1([n; 20])
    }

    #[test]
    fn a_torrent_is_owed_once_however_often_it_changes() {
        let mut dirty = DirtySet::default();
        dirty.mark(hash(1), Known::Forgotten, Seq(0));
        dirty.mark(hash(1), Known::Nothing, Seq(0));
        assert_eq!(dirty.next(Seq(0)), Some((hash(1), Known::Forgotten)), "the first picture stands");
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
    fn a_state_that_is_only_said_again_becomes_an_update_when_it_changes() {
        let mut dirty = DirtySet::default();
        dirty.mark(hash(1), Known::Present, Seq(0));
        dirty.mark(hash(1), Known::Forgotten, Seq(0));
        dirty.mark(hash(1), Known::Present, Seq(0));
        assert_eq!(dirty.next(Seq(0)), Some((hash(1), Known::Forgotten)));
    }

    #[test]
    fn the_newest_entry_counts_whichever_is_heard_of_first() {
        let mut dirty = DirtySet::default();
        dirty.mark(hash(1), Known::Nothing, Seq(0));
        dirty.learned(hash(1), Known::Forgotten, Seq(2));
        dirty.learned(hash(1), Known::Nothing, Seq(1));
        assert_eq!(dirty.next(Seq(2)), Some((hash(1), Known::Forgotten)));
    }

    #[test]
    fn a_change_while_the_state_is_under_way_is_owed_again() {
        let mut dirty = DirtySet::default();
        dirty.mark(hash(1), Known::Nothing, Seq(0));
        dirty.next(Seq(0)).unwrap();
        dirty.sent(hash(1), Known::Forgotten);
        dirty.mark(hash(1), Known::Nothing, Seq(1));
        dirty.settled(hash(1));
        assert_eq!(dirty.next(Seq(1)), Some((hash(1), Known::Forgotten)), "it knows what arrived");
        dirty.sent(hash(1), Known::Nothing);
        dirty.settled(hash(1));
        assert!(dirty.is_empty());
    }

    #[test]
    fn what_was_under_way_when_the_connection_ended_is_owed_as_before() {
        let mut dirty = DirtySet::default();
        dirty.mark(hash(1), Known::Nothing, Seq(0));
        dirty.next(Seq(0)).unwrap();
        dirty.sent(hash(1), Known::Forgotten);
        dirty.go_back();
        assert_eq!(dirty.next(Seq(0)), Some((hash(1), Known::Nothing)));
    }
}
