//! What a connection demands of a broker, and how demands are dropped that a broker does not meet.
//!
//! Dropped is what the broker refuses in words, and what costs no promise: the version, where it says nothing to MQTT 5 or
//! closes the connection over it, and several filters in one SUBSCRIBE. A last will, a retained message, QoS 1 and the session
//! of the commands are never dropped because a connection was closed. An outage looks the same, and without them events,
//! commands or a status would be lost long after it.
//!
//! Invariants:
//! - what is remembered has worked;
//! - everything is demanded again now and then.
//!
//! Pure: connecting and the time belong to [`super::broker`].

use std::time::Duration;

/// Everything is demanded again after this time …
const REMEMBERED: Duration = Duration::from_secs(60 * 60);
/// … or this number of connections, whichever comes first.
const REMEMBERED_CONNECTIONS: u32 = 8;
/// Number of attempts in a row without an answer to MQTT 5, after which 3.1.1 is tried: a broker may be busy once.
const SILENCES: u32 = 2;
/// Number of connections in a row that were closed after CONNACK, after which filters are subscribed to one by one. Two go to
/// the optional subscriptions, which are then no longer made.
const CLOSES_IN_USE: u32 = 3;
/// Number of filters in one SUBSCRIBE: some brokers, AWS IoT for one, close the connection over a ninth.
const FILTERS_MAX: usize = 8;

/// A protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// MQTT 3.1.1.
    V311,
    /// MQTT 5.
    V5,
}

/// What a connection demands of the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demands {
    /// Version of MQTT.
    pub protocol: Protocol,
    /// The last will has QoS 1 in place of 0.
    pub will_acknowledges: bool,
    /// The last will is retained.
    pub will_retains: bool,
    /// Maximum number of filters in one SUBSCRIBE.
    pub filters_max: usize,
}

impl Demands {
    /// Returns everything that a bridge makes use of.
    pub fn all(protocol: Protocol) -> Self {
        Self { protocol, will_acknowledges: true, will_retains: true, filters_max: FILTERS_MAX }
    }

    /// Returns what is lost without the demands that were dropped from these, for people.
    fn missing(&self, left: &Self) -> Vec<&'static str> {
        let losses = [
            (self.protocol != left.protocol, "does not speak MQTT 5: 3.1.1 is used"),
            (
                self.will_retains && !left.will_retains,
                "takes no retained last will: later subscribers do not see that the connection broke",
            ),
            (
                self.will_acknowledges && !left.will_acknowledges,
                "takes no last will with QoS 1: subscribers may miss that the connection broke",
            ),
        ];
        losses.into_iter().filter(|(is_lost, _)| *is_lost).map(|(_, loss)| loss).collect()
    }
}

/// The end of a try, by what may have been too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The broker refused the version, or answered in another one.
    Version,
    /// The broker gave no answer.
    Silent,
    /// The broker refused the QoS of the last will.
    WillQos,
    /// The broker refused to retain the last will.
    WillRetain,
    /// The connection was closed in place of CONNACK.
    ClosedInHandshake,
    /// The connection was closed after CONNACK.
    ClosedInUse,
    /// Nothing that fewer demands would change.
    Explained,
}

/// How long a connection is needed, by which a version is tried that may be the wrong one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// To publish or to take commands, until it breaks.
    Lasting,
    /// To check or to read something.
    Short,
}

/// What is known of the demands that a broker meets.
#[derive(Debug)]
pub struct Ladder {
    wanted: Demands,
    may_change_version: bool,
    /// What worked last.
    known: Demands,
    /// Its version was dropped for a reason that may have been another.
    is_version_guessed: bool,
    /// When the first demand was dropped, and the number of attempts since then.
    dropped_at: Duration,
    attempts: u32,
    /// Attempts in a row that MQTT 5 was not answered in.
    silences: u32,
    /// Connections in a row that were closed after CONNACK.
    closes_in_use: u32,
}

/// One attempt to connect, of a few tries.
#[derive(Clone, Debug)]
pub struct Descent {
    duty: Duty,
    may_change_version: bool,
    began: Demands,
    demands: Demands,
    /// As in [`Ladder`].
    is_version_guessed: bool,
}

impl Ladder {
    /// Demands everything; another version than that of `wanted` only if it may change.
    pub fn new(wanted: Demands, may_change_version: bool) -> Self {
        Self {
            wanted,
            may_change_version,
            known: wanted,
            is_version_guessed: false,
            dropped_at: Duration::ZERO,
            attempts: 0,
            silences: 0,
            closes_in_use: 0,
        }
    }

    /// Begins an attempt with what worked before. `now` is the time since any fixed moment.
    pub fn begin(&mut self, duty: Duty, now: Duration) -> Descent {
        if self.known != self.wanted {
            self.attempts += 1;
            let is_old = now.saturating_sub(self.dropped_at) >= REMEMBERED;
            if is_old || self.attempts > REMEMBERED_CONNECTIONS {
                *self = Self::new(self.wanted, self.may_change_version);
            }
        }
        let mut demands = self.known;
        if self.is_version_guessed {
            // The broker may just have been about to stop, and asking again costs a moment.
            demands.protocol = self.wanted.protocol;
        }
        if self.silences >= SILENCES {
            demands.protocol = Protocol::V311;
        }
        if self.closes_in_use >= CLOSES_IN_USE {
            demands.filters_max = 1;
        }
        let may_change_version = self.may_change_version;
        Descent { duty, may_change_version, began: self.known, demands, is_version_guessed: false }
    }

    /// Remembers what worked, and returns what is newly missing.
    pub fn worked(&mut self, descent: &Descent, now: Duration) -> Vec<&'static str> {
        let Descent { began, demands, is_version_guessed, .. } = *descent;
        if demands != began {
            (self.dropped_at, self.attempts) = (now, 0);
        }
        let before = self.missing();
        (self.known.protocol, self.is_version_guessed) = (demands.protocol, is_version_guessed);
        // What another attempt has learned meanwhile stays.
        self.known.will_acknowledges &= demands.will_acknowledges;
        self.known.will_retains &= demands.will_retains;
        self.known.filters_max = self.known.filters_max.min(demands.filters_max);
        (self.silences, self.closes_in_use) = (0, 0);
        self.missing().into_iter().filter(|loss| !before.contains(loss)).collect()
    }

    /// Notes how the last try of an attempt failed.
    pub fn failed(&mut self, descent: &Descent, failure: Failure) {
        let is_silent = failure == Failure::Silent && self.may_change_version;
        // Silent in both versions: it is not the version.
        self.silences = if is_silent && descent.demands.protocol == Protocol::V5 { self.silences + 1 } else { 0 };
        self.closes_in_use = if failure == Failure::ClosedInUse { self.closes_in_use + 1 } else { 0 };
    }

    /// Returns what the broker does not meet, for people.
    pub fn missing(&self) -> Vec<&'static str> {
        self.wanted.missing(&self.known)
    }
}

impl Descent {
    /// Returns the demands of the next try.
    pub fn demands(&self) -> Demands {
        self.demands
    }

    /// Notes that the try failed; whether there is to be another one at once.
    pub fn failed(&mut self, failure: Failure) -> bool {
        match failure {
            Failure::Version => self.drop_version(false),
            Failure::ClosedInHandshake => self.drop_version(true),
            Failure::Silent => self.duty == Duty::Short && self.drop_version(true),
            Failure::WillQos => std::mem::take(&mut self.demands.will_acknowledges),
            Failure::WillRetain => std::mem::take(&mut self.demands.will_retains),
            Failure::ClosedInUse | Failure::Explained => false,
        }
    }

    fn drop_version(&mut self, is_guess: bool) -> bool {
        let can_drop = self.may_change_version && self.demands.protocol == Protocol::V5;
        if can_drop {
            self.demands.protocol = Protocol::V311;
            self.is_version_guessed = is_guess;
        }
        can_drop
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn ladder() -> Ladder {
        Ladder::new(Demands::all(Protocol::V5), true)
    }

    /// Makes one attempt at a broker that says how it fails on these demands; returns what worked and the number of tries.
    fn connect(
        ladder: &mut Ladder,
        duty: Duty,
        now: Duration,
        broker: impl Fn(Demands) -> Option<Failure>,
    ) -> (Option<Demands>, u32) {
        let mut descent = ladder.begin(duty, now);
        for tries in 1..=5 {
            match broker(descent.demands()) {
                None => {
                    ladder.worked(&descent, now);
                    return (Some(descent.demands()), tries);
                }
                Some(failure) if descent.failed(failure) => {}
                Some(failure) => {
                    ladder.failed(&descent, failure);
                    return (None, tries);
                }
            }
        }
        panic!("the descent has no end");
    }

    fn only_311(failure: Failure) -> impl Fn(Demands) -> Option<Failure> {
        move |demands| (demands.protocol == Protocol::V5).then_some(failure)
    }

    #[test]
    fn a_version_that_is_refused_is_remembered_and_one_that_is_guessed_is_not() {
        for (failure, second_tries) in [(Failure::Version, 1), (Failure::ClosedInHandshake, 2)] {
            let mut ladder = ladder();
            for tries in [2, second_tries] {
                let connected = connect(&mut ladder, Duty::Lasting, NOW, only_311(failure));
                assert_eq!(connected, (Some(Demands::all(Protocol::V311)), tries), "{failure:?}");
            }
        }
    }

    #[test]
    fn silence_is_the_version_only_if_it_lasts_and_the_other_version_is_answered() {
        let mut ladder = ladder();
        let silent = only_311(Failure::Silent);
        let mut attempt = |duty, broker: &dyn Fn(Demands) -> Option<Failure>| connect(&mut ladder, duty, NOW, broker);
        let v311 = Some(Demands::all(Protocol::V311));
        assert_eq!(attempt(Duty::Lasting, &silent), (None, 1));
        assert_eq!(attempt(Duty::Lasting, &|_| None), (Some(Demands::all(Protocol::V5)), 1), "it was busy");
        assert_eq!(attempt(Duty::Short, &silent), (v311, 2), "to read something");
        assert_eq!(attempt(Duty::Lasting, &silent), (None, 1));
        assert_eq!(attempt(Duty::Lasting, &silent), (None, 1));
        assert_eq!(attempt(Duty::Lasting, &|_| Some(Failure::Silent)), (None, 1), "silent in 3.1.1, too");
        assert_eq!(attempt(Duty::Lasting, &silent), (None, 1));
        assert_eq!(attempt(Duty::Lasting, &silent), (None, 1));
        assert_eq!(attempt(Duty::Lasting, &silent), (v311, 1));
        assert_eq!(attempt(Duty::Lasting, &silent), (v311, 1), "it is remembered");
    }

    #[test]
    fn version_5_is_tried_again_after_an_hour_or_some_connections() {
        let broker = only_311(Failure::Version);
        let mut ladder = ladder();
        let mut tries = |now| connect(&mut ladder, Duty::Lasting, now, &broker).1;
        assert_eq!((tries(NOW), tries(NOW), tries(REMEMBERED)), (2, 1, 2));
        let again: Vec<u32> = (0..=REMEMBERED_CONNECTIONS).map(|_| tries(REMEMBERED)).collect();
        assert_eq!(again[..again.len() - 1], vec![1; again.len() - 1]);
        assert_eq!(again.last(), Some(&2));
    }

    #[test]
    fn filters_are_sent_one_by_one_after_closes_in_a_row() {
        let mut ladder = ladder();
        let takes_one = |demands: Demands| (demands.filters_max > 1).then_some(Failure::ClosedInUse);
        for _ in 0..CLOSES_IN_USE {
            assert_eq!(connect(&mut ladder, Duty::Lasting, NOW, takes_one), (None, 1));
        }
        for _ in 0..2 {
            let (demands, tries) = connect(&mut ladder, Duty::Lasting, NOW, takes_one);
            assert_eq!((demands.unwrap().filters_max, tries), (1, 1));
        }
        assert_eq!(ladder.missing(), Vec::<&str>::new());
    }

    #[test]
    fn what_is_missing_is_said_once_and_kept_in_mind() {
        let mut ladder = ladder();
        let mut descent = ladder.begin(Duty::Lasting, NOW);
        assert!(descent.failed(Failure::WillRetain) && !descent.failed(Failure::WillRetain));
        assert_eq!(ladder.worked(&descent, NOW).len(), 1);
        assert_eq!(ladder.worked(&descent, NOW), Vec::<&str>::new());
        assert!(ladder.missing()[0].contains("retained last will"), "{:?}", ladder.missing());
    }

    #[test]
    fn a_guessed_version_is_missing_as_long_as_it_is_all_that_works() {
        let mut ladder = ladder();
        connect(&mut ladder, Duty::Lasting, NOW, only_311(Failure::ClosedInHandshake));
        assert!(ladder.missing()[0].contains("MQTT 5"));
        connect(&mut ladder, Duty::Lasting, NOW, |_| None);
        assert_eq!(ladder.missing(), Vec::<&str>::new());
    }

    fn failures() -> impl Strategy<Value = Vec<Failure>> {
        use Failure::{ClosedInHandshake, ClosedInUse, Explained, Silent, Version, WillQos, WillRetain};
        let any = proptest::sample::select(vec![
            Version,
            Silent,
            WillQos,
            WillRetain,
            ClosedInHandshake,
            ClosedInUse,
            Explained,
        ]);
        proptest::collection::vec(any, 0..60)
    }

    proptest! {
        /// Whatever fails, in whatever order: the last will is lowered only by a refusal of it, and a version that is not to
        /// change does not.
        #[test]
        fn no_outage_lowers_what_a_promise_needs(failures in failures(), is_auto: bool) {
            let mut ladder = Ladder::new(Demands::all(Protocol::V5), is_auto);
            let mut descent = ladder.begin(Duty::Lasting, NOW);
            let mut tries = 1;
            for failure in &failures {
                if descent.failed(*failure) {
                    tries += 1;
                    continue;
                }
                prop_assert!(tries <= 4, "{tries} tries");
                ladder.failed(&descent, *failure);
                descent = ladder.begin(Duty::Lasting, NOW);
                tries = 1;
            }
            let left = descent.demands();
            prop_assert!(is_auto || left.protocol == Protocol::V5);
            prop_assert!(left.will_acknowledges || failures.contains(&Failure::WillQos));
            prop_assert!(left.will_retains || failures.contains(&Failure::WillRetain));
            ladder.worked(&descent, NOW);
            prop_assert_eq!(ladder.begin(Duty::Lasting, REMEMBERED).demands(), Demands::all(Protocol::V5));
        }
    }
}
