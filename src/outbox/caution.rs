//! What to do when a far side hangs up again and again, and does not say over what.
//!
//! MQTT 3.1.1 has no word for "I do not take this": brokers end the connection instead, over a message that
//! is too large, say, or a topic that is not allowed (the specification leaves them no other way, §3.3.5).
//! Sent again in the same company, that message would end every connection, and nothing behind it would
//! ever arrive.
//!
//! ```text
//! free ──a row of short connections──► one at a time ──the same item, alone, again and again──► condemned
//!  ▲                                        │
//!  └────────────── much was taken ──────────┘
//! ```
//!
//! What is condemned counts as rejected when its turn comes. That it is taken after all, a connection that ends
//! over another thing or while nothing is under way: each of them begins the count anew. That other things are
//! taken does not, for much of it is said again on every connection, before the culprit's turn comes.
//!
//! Pure: what is sent, and what becomes of it, is the dispatcher's.

use std::time::Duration;

use crate::model::{InfoHash, Seq, ServerName};

/// A connection that ended sooner, with something under way, is one of a row.
const SHORT: Duration = Duration::from_secs(60);
/// So many short connections in a row, and things are sent one at a time.
const ROW: u32 = 4;
/// So many connections in a row that ended over the same item, sent alone, condemn it.
const DEATHS: u32 = 5;
/// So much was taken one at a time: whatever it was is over.
const ENOUGH: u32 = 200;

/// Something sent, as far as it can be known again on the next connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Entry(ServerName, Seq),
    State(ServerName, InfoHash),
    Clearing(String),
    Result(i64, Piece),
    Shown(String),
}

/// What of a result. One piece that is taken says nothing about another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    Part(usize),
    /// A shorter one in its place, so many bytes long: those that follow are shorter still.
    Substitute(usize),
}

#[derive(Debug, Default)]
pub struct Caution {
    /// Short connections in a row.
    row: u32,
    /// Taken one at a time since.
    taken: u32,
    /// What is under way alone.
    alone: Option<Item>,
    /// What the last connections ended over, and how many of them.
    suspect: Option<(Item, u32)>,
}

impl Caution {
    /// Whether only one thing may be under way.
    pub fn is_one_at_a_time(&self) -> bool {
        self.row >= ROW
    }

    /// Goes out now.
    pub fn sent(&mut self, item: Item) {
        if self.is_one_at_a_time() {
            self.alone = Some(item);
        }
    }

    /// The far side has said what it thinks of what was sent.
    pub fn answered(&mut self, item: &Item) {
        self.suspect.take_if(|(suspect, _)| suspect == item);
        if self.alone.take_if(|alone| alone == item).is_some() {
            self.taken += 1;
            if self.taken >= ENOUGH {
                *self = Self::default();
            }
        }
    }

    /// The connection is over, for no reason that was given.
    pub fn ended(&mut self, lived: Duration, has_something_under_way: bool) {
        if lived >= SHORT || !has_something_under_way {
            *self = Self::default();
            return;
        }
        self.row += 1;
        self.taken = 0;
        if let Some(item) = self.alone.take() {
            let deaths = self.suspect.take().filter(|(suspect, _)| *suspect == item).map_or(0, |(_, deaths)| deaths);
            self.suspect = Some((item, deaths + 1));
        }
    }

    pub fn has_suspect(&self) -> bool {
        self.suspect.is_some()
    }

    /// How many connections in a row have ended over it, if that is enough to give it up.
    pub fn condemns(&self, item: &Item) -> Option<u32> {
        let (suspect, deaths) = self.suspect.as_ref()?;
        (suspect == item && *deaths >= DEATHS).then_some(*deaths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(1);

    fn item(seq: u64) -> Item {
        Item::Entry(ServerName::parse("home").unwrap(), Seq(seq))
    }

    fn after_a_row() -> Caution {
        let mut caution = Caution::default();
        for _ in 0..ROW {
            caution.sent(item(1));
            caution.ended(SOON, true);
        }
        assert!(caution.is_one_at_a_time());
        caution
    }

    #[test]
    fn what_ends_every_connection_alone_is_condemned_and_nothing_else_is() {
        let mut caution = after_a_row();
        for deaths in 1..=DEATHS {
            assert_eq!(caution.condemns(&item(7)), None, "after {deaths}");
            caution.sent(item(7));
            caution.ended(SOON, true);
        }
        assert_eq!(caution.condemns(&item(7)), Some(DEATHS));
        assert_eq!(caution.condemns(&item(8)), None);
    }

    #[test]
    fn one_that_is_taken_after_all_and_another_in_between_begin_the_count_anew() {
        for taken_between in [true, false] {
            let mut caution = after_a_row();
            for _ in 0..10 {
                for _ in 1..DEATHS {
                    caution.sent(item(7));
                    caution.ended(SOON, true);
                }
                caution.sent(if taken_between { item(7) } else { item(8) });
                if taken_between {
                    caution.answered(&item(7));
                }
                caution.ended(SOON, true);
                assert_eq!(caution.condemns(&item(7)), None);
            }
        }
    }

    #[test]
    fn what_is_said_again_on_each_connection_before_the_culprit_does_not_save_it() {
        let result = |piece| Item::Result(7, piece);
        for (before, culprit) in [
            (item(1), item(7)),
            (result(Piece::Part(0)), result(Piece::Part(1))),
            (item(1), result(Piece::Substitute(9))),
        ] {
            let mut caution = after_a_row();
            for _ in 0..DEATHS {
                caution.sent(before.clone());
                caution.answered(&before);
                caution.sent(culprit.clone());
                caution.ended(SOON, true);
            }
            assert_eq!(caution.condemns(&culprit), Some(DEATHS));
            assert_eq!(caution.condemns(&before), None);
            // Rejected in the far side's place, it is dealt with.
            caution.answered(&culprit);
            assert!(!caution.has_suspect());
        }
    }

    #[test]
    fn a_connection_that_lives_and_one_that_ends_idle_are_no_reason_for_caution() {
        for (lived, is_busy) in [(SHORT, true), (SOON, false)] {
            let mut caution = Caution::default();
            for _ in 0..100 {
                caution.sent(item(1));
                caution.ended(lived, is_busy);
            }
            assert!(!caution.is_one_at_a_time());
            let mut caution = after_a_row();
            caution.ended(lived, is_busy);
            assert!(!caution.is_one_at_a_time());
        }
    }

    #[test]
    fn after_enough_was_taken_all_is_as_before() {
        let mut caution = after_a_row();
        for seq in 0..u64::from(ENOUGH) {
            assert!(caution.is_one_at_a_time());
            caution.sent(item(seq));
            caution.answered(&item(seq));
        }
        assert!(!caution.is_one_at_a_time());
    }
}
