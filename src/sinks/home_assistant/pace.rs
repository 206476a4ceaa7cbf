//! The pace at which Home Assistant is informed of changes, counted in entities that change.
//!
//! Each change costs it time and room in its database: 0.3 ms and 180 bytes. Numbers that drift are sent below five changes
//! a second on average, whatever moves; what a person waits for (a torrent paused, a count that went up) is sent at once,
//! within a limit for bursts.
//!
//! Pure.

use std::time::Duration;

/// Changes a second on average.
const AVERAGE: f64 = 4.0;
/// Maximum number of changes that can be saved up.
const SAVED_MAX: f64 = 40.0;
/// Maximum number of urgent changes that are sent in advance of the average.
const ADVANCE_MAX: f64 = 200.0;
/// Changes in any second.
const BURST: f64 = 40.0;

/// A token bucket: fills with time, and is emptied by what is sent.
#[derive(Debug)]
struct Bucket {
    level: f64,
    per_second: f64,
    max: f64,
    at: Duration,
}

impl Bucket {
    fn new(per_second: f64, max: f64) -> Self {
        Self { level: max, per_second, max, at: Duration::ZERO }
    }

    fn fill(&mut self, at: Duration) {
        let passed = at.saturating_sub(self.at).as_secs_f64();
        self.level = self.max.min(self.level + passed * self.per_second);
        self.at = self.at.max(at);
    }
}

/// The changes that may still be sent.
#[derive(Debug)]
pub struct Pace {
    average: Bucket,
    burst: Bucket,
}

impl Default for Pace {
    fn default() -> Self {
        Self { average: Bucket::new(AVERAGE, SAVED_MAX), burst: Bucket::new(BURST, BURST) }
    }
}

/// How soon a change is to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// A number moved on: in its own time.
    Drift,
    /// Something happened, or is shown for the first time: at once.
    Immediate,
}

impl Pace {
    /// Whether so many changes may be sent now; if so they count as sent.
    pub fn allows(&mut self, changes: usize, urgency: Urgency, at: Duration) -> bool {
        let changes = changes as f64;
        self.average.fill(at);
        self.burst.fill(at);
        let least = if urgency == Urgency::Drift { 0.0 } else { -ADVANCE_MAX };
        // One message may cost more than all that can be saved up; without these limits it would wait for ever.
        let is_allowed = changes == 0.0
            || self.burst.level >= changes.min(BURST) && self.average.level - changes.min(SAVED_MAX) >= least;
        if is_allowed {
            self.average.level -= changes;
            self.burst.level -= changes;
        }
        is_allowed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How many changes get through if `offered` a tenth of a second are tried for so long.
    fn allowed(offered: usize, urgency: Urgency, seconds: u64) -> usize {
        let mut pace = Pace::default();
        let times = (0..seconds * 10).map(|tenth| Duration::from_millis(tenth * 100));
        times.map(|at| (0..offered).filter(|_| pace.allows(1, urgency, at)).count()).sum()
    }

    #[test]
    fn drift_stays_below_five_changes_a_second_whatever_moves() {
        for offered in [1, 20, 1000] {
            let allowed = allowed(offered, Urgency::Drift, 600);
            assert!((2_000..3_000).contains(&allowed), "{allowed} in ten minutes");
        }
    }

    #[test]
    fn what_is_urgent_comes_at_once_and_not_without_a_limit() {
        let mut pace = Pace::default();
        assert!((0..40).all(|_| pace.allows(1, Urgency::Immediate, Duration::ZERO)));
        assert!(!pace.allows(1, Urgency::Immediate, Duration::ZERO));
        assert!((0..40).all(|_| pace.allows(1, Urgency::Immediate, Duration::from_secs(1))));
        assert!(
            !pace.allows(1, Urgency::Drift, Duration::from_secs(3)),
            "drift waits until the advance is made up for"
        );
        assert!(pace.allows(1, Urgency::Drift, Duration::from_secs(30)));
        assert!(allowed(1000, Urgency::Immediate, 600) < 3_000);
    }

    proptest! {
        #[test]
        fn no_second_has_more_than_two_bursts(offers in proptest::collection::vec((0u64..50, 1usize..100), 1..300)) {
            let mut pace = Pace::default();
            let (mut at, mut sent) = (0, Vec::new());
            for (pause, changes) in offers {
                at += pause;
                if pace.allows(changes, Urgency::Immediate, Duration::from_millis(at)) {
                    sent.push((at, changes));
                }
            }
            for (from, _) in &sent {
                let within: usize = sent.iter().filter(|(at, _)| (*from..from + 1000).contains(at)).map(|(_, c)| c).sum();
                prop_assert!(within <= 2 * 40 + 100, "{within}");
            }
        }
    }
}
