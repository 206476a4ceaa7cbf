//! What a connection demands of a broker, and how demands are dropped that a broker does not meet.
//!
//! MQTT 3.1.1 has no reason codes, and many services take less than the protocol allows: they close the connection over a
//! last will, a retained message or a long SUBSCRIBE. So an attempt that ends without a reason is repeated with one demand
//! fewer, until one succeeds. What succeeded is remembered for the next connections.
//!
//! Invariants:
//! - demands are dropped one at a time, the one that costs least first, and only those that the kind of connection makes;
//! - a connection that is merely broken drops none: the attempt has to fail several times in the same way;
//! - only what has worked is remembered, and everything is demanded again now and then.
//!
//! Pure: connecting and the time belong to [`super::broker`].

use std::time::Duration;

/// Everything is demanded again after this time …
const REMEMBERED: Duration = Duration::from_secs(60 * 60);
/// … or this number of connections, whichever comes first.
const REMEMBERED_CONNECTIONS: u32 = 8;
/// Number of failures in a row before a demand of CONNECT is dropped.
const HANDSHAKE_FAILURES: u32 = 2;
/// The same for what follows CONNACK; two attempts go to the optional subscriptions, which are then no longer made.
const USE_FAILURES: u32 = 3;
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
    /// The last will; `None` for none.
    pub will: Option<WillDemands>,
    /// Whether messages are retained.
    pub retains: bool,
    /// Whether messages are published with QoS 1.
    pub acknowledges: bool,
    /// Whether the broker keeps the session of the commands.
    pub keeps_session: bool,
    /// Maximum number of filters in one SUBSCRIBE.
    pub filters_max: usize,
}

/// What a last will demands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WillDemands {
    /// QoS 1 in place of 0.
    pub acknowledges: bool,
    /// Whether it is retained.
    pub retains: bool,
}

impl Demands {
    /// Returns everything that a bridge makes use of.
    pub fn all(protocol: Protocol) -> Self {
        let will = Some(WillDemands { acknowledges: true, retains: true });
        Self { protocol, will, retains: true, acknowledges: true, keeps_session: true, filters_max: FILTERS_MAX }
    }

    /// Returns what is lost without the demands that were dropped from these, for people.
    fn missing(&self, left: &Self) -> Vec<&'static str> {
        let had = self.will.unwrap_or_default();
        // One that is gone altogether says it all.
        let has = left.will.unwrap_or(had);
        let losses = [
            (self.protocol != left.protocol, "does not speak MQTT 5: 3.1.1 is used"),
            (
                self.will.is_some() && left.will.is_none(),
                "takes no last will: the status stays `online` when the connection breaks",
            ),
            (
                had.retains && !has.retains,
                "takes no retained last will: later subscribers do not see that the connection broke",
            ),
            (
                had.acknowledges && !has.acknowledges,
                "takes no last will with QoS 1: subscribers may miss that the connection broke",
            ),
            (self.retains && !left.retains, "takes no retained messages: later subscribers see no state and no status"),
            (
                self.acknowledges && !left.acknowledges,
                "takes QoS 0 only: messages count as delivered once they are written",
            ),
            (self.keeps_session && !left.keeps_session, "keeps no session: commands sent while disconnected are lost"),
        ];
        losses.into_iter().filter(|(is_lost, _)| *is_lost).map(|(_, loss)| loss).collect()
    }
}

/// A kind of connection, by what it demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Publishes, with a last will.
    Publisher,
    /// Takes commands, with a session.
    Commands,
    /// Reads or clears what is retained.
    Scan,
}

/// The end of an attempt, by what may have been too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The broker refused the version, or gave no answer that this version has.
    Version,
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

/// What is known of the demands that a broker meets.
#[derive(Debug)]
pub struct Ladder {
    wanted: Demands,
    may_change_version: bool,
    /// What worked last.
    known: Demands,
    /// Its version was dropped for a connection that was closed, which may have had another reason.
    is_version_guessed: bool,
    /// When the first demand was dropped, and the number of attempts since then.
    dropped_at: Duration,
    attempts: u32,
}

/// One attempt to connect, with fewer and fewer demands.
#[derive(Clone, Debug)]
pub struct Descent {
    role: Role,
    may_change_version: bool,
    demands: Demands,
    /// With these demands, in a row.
    failures: u32,
    /// A demand besides the version was dropped.
    has_dropped: bool,
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
        }
    }

    /// Begins an attempt with what worked before. `now` is the time since any fixed moment.
    pub fn begin(&mut self, role: Role, now: Duration) -> Descent {
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
        Descent {
            role,
            may_change_version: self.may_change_version,
            demands,
            failures: 0,
            has_dropped: false,
            is_version_guessed: false,
        }
    }

    /// Remembers what worked, and returns what is newly missing.
    pub fn worked(&mut self, descent: &Descent, now: Duration) -> Vec<&'static str> {
        let Descent { demands, is_version_guessed, .. } = *descent;
        if demands != self.known {
            (self.dropped_at, self.attempts) = (now, 0);
        }
        let before = self.missing();
        (self.known, self.is_version_guessed) = (demands, is_version_guessed);
        self.missing().into_iter().filter(|loss| !before.contains(loss)).collect()
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

    /// Notes that the try failed; whether there is to be another one.
    pub fn failed(&mut self, failure: Failure) -> bool {
        match failure {
            Failure::Explained => false,
            Failure::Version => self.drop_version(false),
            Failure::WillQos => self.lower_will(|will| std::mem::take(&mut will.acknowledges)),
            Failure::WillRetain => self.lower_will(|will| std::mem::take(&mut will.retains)),
            Failure::ClosedInHandshake => {
                self.drop_version(true) || self.is_patient(HANDSHAKE_FAILURES) || self.drop_of_handshake()
            }
            Failure::ClosedInUse => self.is_patient(USE_FAILURES) || self.drop_of_use(),
        }
    }

    fn is_patient(&mut self, failures_max: u32) -> bool {
        self.failures += 1;
        !self.has_dropped && self.failures < failures_max
    }

    fn drop_version(&mut self, is_guess: bool) -> bool {
        let can_drop = self.may_change_version && self.demands.protocol == Protocol::V5;
        if can_drop {
            self.demands.protocol = Protocol::V311;
            (self.is_version_guessed, self.failures) = (is_guess, 0);
        }
        can_drop
    }

    fn lower_will(&mut self, lower: impl FnOnce(&mut WillDemands) -> bool) -> bool {
        self.demands.will.as_mut().is_some_and(lower)
    }

    fn drop_of_handshake(&mut self) -> bool {
        self.has_dropped = true;
        let Demands { will, keeps_session, .. } = &mut self.demands;
        let has_dropped = match (self.role, will) {
            (Role::Publisher, Some(will)) if will.retains => std::mem::take(&mut will.retains),
            (Role::Publisher, Some(will)) if will.acknowledges => std::mem::take(&mut will.acknowledges),
            (Role::Publisher, will) => will.take().is_some(),
            (Role::Commands, _) => std::mem::take(keeps_session),
            (Role::Scan, _) => false,
        };
        if has_dropped && std::mem::take(&mut self.is_version_guessed) {
            // The other version did not help, so it may not have been the version.
            self.demands.protocol = Protocol::V5;
        }
        has_dropped
    }

    fn drop_of_use(&mut self) -> bool {
        self.has_dropped = true;
        let Demands { retains, acknowledges, filters_max, .. } = &mut self.demands;
        if *filters_max > 1 {
            *filters_max = 1;
            return true;
        }
        self.role == Role::Publisher && (std::mem::take(retains) || std::mem::take(acknowledges))
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

    /// Connects to a broker that says how it fails on these demands; `None` if every try fails.
    fn connect(
        ladder: &mut Ladder,
        role: Role,
        now: Duration,
        broker: impl Fn(Demands) -> Option<Failure>,
    ) -> Option<(Demands, u32)> {
        let mut descent = ladder.begin(role, now);
        for tries in 1..=30 {
            match broker(descent.demands()) {
                None => {
                    ladder.worked(&descent, now);
                    return Some((descent.demands(), tries));
                }
                Some(failure) if descent.failed(failure) => {}
                Some(_) => return None,
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
                let (demands, tried) = connect(&mut ladder, Role::Scan, NOW, only_311(failure)).unwrap();
                assert_eq!((demands, tried), (Demands::all(Protocol::V311), tries), "{failure:?}");
            }
        }
    }

    #[test]
    fn version_5_is_tried_again_after_an_hour_or_some_connections() {
        let broker = only_311(Failure::Version);
        let mut ladder = ladder();
        let mut tries = |now| connect(&mut ladder, Role::Commands, now, &broker).unwrap().1;
        assert_eq!((tries(NOW), tries(NOW), tries(REMEMBERED)), (2, 1, 2));
        let again: Vec<u32> = (0..=REMEMBERED_CONNECTIONS).map(|_| tries(REMEMBERED)).collect();
        assert_eq!(again[..again.len() - 1], vec![1; again.len() - 1]);
        assert_eq!(again.last(), Some(&2));
    }

    #[test]
    fn a_strict_version_never_changes() {
        let mut ladder = Ladder::new(Demands::all(Protocol::V5), false);
        assert_eq!(connect(&mut ladder, Role::Scan, NOW, only_311(Failure::Version)), None);
        assert_eq!(connect(&mut ladder, Role::Scan, NOW, only_311(Failure::ClosedInHandshake)), None);
    }

    #[test]
    fn a_connection_that_breaks_once_drops_nothing() {
        for (failure, times) in [(Failure::ClosedInHandshake, HANDSHAKE_FAILURES), (Failure::ClosedInUse, USE_FAILURES)]
        {
            let mut descent = Ladder::new(Demands::all(Protocol::V311), true).begin(Role::Publisher, NOW);
            for _ in 1..times {
                assert!(descent.failed(failure));
                assert_eq!(descent.demands(), Demands::all(Protocol::V311));
            }
            assert!(descent.failed(failure));
            assert_ne!(descent.demands(), Demands::all(Protocol::V311));
        }
    }

    #[test]
    fn what_is_missing_is_said_once_and_kept_in_mind() {
        let mut ladder = ladder();
        let mut descent = ladder.begin(Role::Publisher, NOW);
        while descent.demands().will.is_some_and(|will| will.retains) {
            assert!(descent.failed(Failure::ClosedInHandshake));
        }
        assert_eq!(descent.demands().protocol, Protocol::V5, "the version did not help");
        assert_eq!(ladder.worked(&descent, NOW).len(), 1);
        assert_eq!(ladder.worked(&descent, NOW), Vec::<&str>::new());
        assert!(ladder.missing()[0].contains("retained last will"), "{:?}", ladder.missing());
    }

    #[test]
    fn a_guessed_version_is_missing_as_long_as_it_is_all_that_works() {
        let mut ladder = ladder();
        connect(&mut ladder, Role::Scan, NOW, only_311(Failure::ClosedInHandshake)).unwrap();
        assert!(ladder.missing()[0].contains("MQTT 5"));
        connect(&mut ladder, Role::Scan, NOW, |_| None).unwrap();
        assert_eq!(ladder.missing(), Vec::<&str>::new());
    }

    fn failures() -> impl Strategy<Value = Vec<Failure>> {
        use Failure::{ClosedInHandshake, ClosedInUse, Explained, Version, WillQos, WillRetain};
        let any = prop_oneof![
            Just(Version),
            Just(WillQos),
            Just(WillRetain),
            Just(ClosedInHandshake),
            Just(ClosedInUse),
            Just(Explained)
        ];
        proptest::collection::vec(any, 0..40)
    }

    fn roles() -> impl Strategy<Value = Role> {
        prop_oneof![Just(Role::Publisher), Just(Role::Commands), Just(Role::Scan)]
    }

    /// The number of demands.
    fn weight(demands: Demands) -> usize {
        let Demands { protocol, will, retains, acknowledges, keeps_session, filters_max } = demands;
        let will = will.map_or(0, |will| 1 + usize::from(will.retains) + usize::from(will.acknowledges));
        usize::from(protocol == Protocol::V5)
            + will
            + [retains, acknowledges, keeps_session, filters_max > 1].map(usize::from).iter().sum::<usize>()
    }

    proptest! {
        #[test]
        fn demands_are_dropped_one_at_a_time_and_the_descent_ends(failures in failures(), role in roles(), is_auto: bool) {
            let wanted = Demands::all(Protocol::V5);
            let mut ladder = Ladder::new(wanted, is_auto);
            let mut descent = ladder.begin(role, NOW);
            let mut tries = 1;
            for failure in failures {
                let before = descent.demands();
                if !descent.failed(failure) {
                    prop_assert_eq!(descent.demands(), before);
                    break;
                }
                tries += 1;
                prop_assert!(weight(before) - weight(descent.demands()) <= 1);
            }
            prop_assert!(tries <= 20, "{tries} tries");
            let left = descent.demands();
            prop_assert!(is_auto || left.protocol == Protocol::V5);
            prop_assert!(role == Role::Publisher || (left.retains && left.acknowledges));
            prop_assert!(role == Role::Commands || left.keeps_session);
            ladder.worked(&descent, NOW);
            let again = ladder.begin(role, NOW).demands();
            prop_assert_eq!(Demands { protocol: left.protocol, ..again }, left);
            prop_assert_eq!(ladder.missing(), wanted.missing(&left));
            prop_assert_eq!(ladder.begin(role, REMEMBERED).demands(), wanted);
        }
    }
}
