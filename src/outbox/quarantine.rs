//! Quarantine: which message ends the connection again and again.
//!
//! MQTT 3.1.1 cannot refuse a message: brokers end the connection instead, over one that is too large, say, or a topic
//! that is not allowed (§3.3.5 leaves them no other way). Sent again in the same company, a poison message would end every
//! connection, and nothing behind it would ever arrive.
//!
//! ```text
//! normal ──SUSPECT_AFTER short connections──► one at a time ──the same message, alone, MAX_ATTEMPTS times──► poison
//!   ▲                                           │
//!   └──────── RELEASE_AFTER acknowledged ───────┘
//! ```
//!
//! A poison message counts as rejected when its turn comes. Its acknowledgement, a connection that ends over another
//! message or with nothing in flight: each of them starts the count again. Acknowledgements of other messages do not, as
//! much is sent again on every connection before the poison message has its turn.
//!
//! Pure: sending, and what becomes of it, belong to the dispatcher.

use std::time::Duration;

use super::DeliveryId;

/// A connection that ended sooner, with something in flight, counts.
const SHORT: Duration = Duration::from_secs(60);
/// After so many short connections in a row messages are sent one at a time.
const SUSPECT_AFTER: u32 = 4;
/// A message that so many connections in a row ended over, sent alone, is poison.
const MAX_ATTEMPTS: u32 = 5;
/// After so many acknowledgements one at a time the cause is gone.
const RELEASE_AFTER: u32 = 200;

/// The ends of the last connections, and the message that may be their cause.
#[derive(Debug, Default)]
pub struct Quarantine {
    /// Short connections in a row.
    short_connections: u32,
    /// Acknowledged one at a time since.
    acknowledged: u32,
    /// The message that is in flight alone.
    alone: Option<DeliveryId>,
    /// The message that the last connections ended over, and their number.
    suspect: Option<(DeliveryId, u32)>,
}

impl Quarantine {
    /// Whether only one message may be in flight.
    pub fn is_one_at_a_time(&self) -> bool {
        self.short_connections >= SUSPECT_AFTER
    }

    /// Records that a message is sent now.
    pub fn sent(&mut self, id: &DeliveryId) {
        // Those of no identity are not known again on the next connection; an update goes with its state.
        if self.is_one_at_a_time() && !matches!(id, DeliveryId::Ephemeral | DeliveryId::Updated(..)) {
            self.alone = Some(id.clone());
        }
    }

    /// Records that the receiver acknowledged or rejected a message.
    pub fn answered(&mut self, id: &DeliveryId) {
        self.suspect.take_if(|(suspect, _)| suspect == id);
        if self.alone.take_if(|alone| alone == id).is_some() {
            self.acknowledged += 1;
            if self.acknowledged >= RELEASE_AFTER {
                *self = Self::default();
            }
        }
    }

    /// Records that a connection ended without a reason from the receiver.
    pub fn ended(&mut self, lived: Duration, has_in_flight: bool) {
        // One that ended idle, or after a long time, did not end over a message.
        if lived >= SHORT || !has_in_flight {
            *self = Self::default();
            return;
        }
        self.short_connections += 1;
        self.acknowledged = 0;
        if let Some(id) = self.alone.take() {
            let attempts =
                self.suspect.take().filter(|(suspect, _)| *suspect == id).map_or(0, |(_, attempts)| attempts);
            self.suspect = Some((id, attempts + 1));
        }
    }

    /// Whether the last connection ended over a message that was in flight alone.
    pub fn has_suspect(&self) -> bool {
        self.suspect.is_some()
    }

    /// Returns how many connections in a row ended over this message, if that is enough to give it up.
    pub fn is_poison(&self, id: &DeliveryId) -> Option<u32> {
        let (suspect, attempts) = self.suspect.as_ref()?;
        (suspect == id && *attempts >= MAX_ATTEMPTS).then_some(*attempts)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Piece;
    use super::*;
    use crate::model::{Seq, ServerName};

    const SOON: Duration = Duration::from_secs(1);

    fn id(seq: u64) -> DeliveryId {
        DeliveryId::Event(ServerName::parse("home").unwrap(), Seq(seq))
    }

    fn one_at_a_time() -> Quarantine {
        let mut quarantine = Quarantine::default();
        for _ in 0..SUSPECT_AFTER {
            quarantine.sent(&id(1));
            quarantine.ended(SOON, true);
        }
        assert!(quarantine.is_one_at_a_time());
        quarantine
    }

    #[test]
    fn a_message_that_ends_every_connection_alone_is_poison_and_no_other_is() {
        let mut quarantine = one_at_a_time();
        for attempts in 1..=MAX_ATTEMPTS {
            assert_eq!(quarantine.is_poison(&id(7)), None, "after {attempts}");
            quarantine.sent(&id(7));
            quarantine.ended(SOON, true);
        }
        assert_eq!(quarantine.is_poison(&id(7)), Some(MAX_ATTEMPTS));
        assert_eq!(quarantine.is_poison(&id(8)), None);
    }

    #[test]
    fn an_acknowledgement_and_another_suspect_in_between_start_the_count_again() {
        for answered_between in [true, false] {
            let mut quarantine = one_at_a_time();
            for _ in 0..10 {
                for _ in 1..MAX_ATTEMPTS {
                    quarantine.sent(&id(7));
                    quarantine.ended(SOON, true);
                }
                quarantine.sent(&if answered_between { id(7) } else { id(8) });
                if answered_between {
                    quarantine.answered(&id(7));
                }
                quarantine.ended(SOON, true);
                assert_eq!(quarantine.is_poison(&id(7)), None);
            }
        }
    }

    #[test]
    fn messages_acknowledged_on_each_connection_before_the_culprit_do_not_save_it() {
        let result = |piece| DeliveryId::Result(7, piece);
        for (before, culprit) in
            [(id(1), id(7)), (result(Piece::Part(0)), result(Piece::Part(1))), (id(1), result(Piece::Substitute(9)))]
        {
            let mut quarantine = one_at_a_time();
            for _ in 0..MAX_ATTEMPTS {
                quarantine.sent(&before);
                quarantine.answered(&before);
                quarantine.sent(&culprit);
                quarantine.ended(SOON, true);
            }
            assert_eq!(quarantine.is_poison(&culprit), Some(MAX_ATTEMPTS));
            assert_eq!(quarantine.is_poison(&before), None);
            // Rejected on behalf of the receiver, it is dealt with.
            quarantine.answered(&culprit);
            assert!(!quarantine.has_suspect());
        }
    }

    #[test]
    fn a_long_connection_and_one_that_ends_idle_are_no_reason_for_quarantine() {
        for (lived, is_busy) in [(SHORT, true), (SOON, false)] {
            let mut quarantine = Quarantine::default();
            for _ in 0..100 {
                quarantine.sent(&id(1));
                quarantine.ended(lived, is_busy);
            }
            assert!(!quarantine.is_one_at_a_time());
            let mut quarantine = one_at_a_time();
            quarantine.ended(lived, is_busy);
            assert!(!quarantine.is_one_at_a_time());
        }
    }

    #[test]
    fn after_enough_acknowledgements_the_quarantine_ends() {
        let mut quarantine = one_at_a_time();
        for seq in 0..u64::from(RELEASE_AFTER) {
            assert!(quarantine.is_one_at_a_time());
            quarantine.sent(&id(seq));
            quarantine.answered(&id(seq));
        }
        assert!(!quarantine.is_one_at_a_time());
    }
}
