//! How fast Home Assistant is told of changes, counted in entities that change.
//!
//! Each change costs it time and room in its database. Numbers that drift are told below five changes
//! a second on average, whatever moves; what a person waits for (a torrent paused, a count that went
//! up) comes at once, within a limit for bursts.
//!
//! Pure.

use std::time::Duration;

/// Changes a second on average.
const AVERAGE: f64 = 4.0;
/// That many may be saved up, and owed.
const SAVED_MAX: f64 = 40.0;
const OWED_MAX: f64 = 200.0;
/// Changes in any second.
const BURST: f64 = 40.0;

/// Fills with time, and is emptied by what is sent.
#[derive(Debug)]
struct Bucket {
    level: f64,
    each_second: f64,
    max: f64,
    at: Duration,
}

impl Bucket {
    fn new(each_second: f64, max: f64) -> Self {
        Self { level: max, each_second, max, at: Duration::ZERO }
    }

    fn fill(&mut self, at: Duration) {
        let passed = at.saturating_sub(self.at).as_secs_f64();
        self.level = self.max.min(self.level + passed * self.each_second);
        self.at = self.at.max(at);
    }
}

/// What may still be told.
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

/// Why something is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// A number moved on.
    Drift,
    /// Something happened, or it is told for the first time.
    Now,
}

impl Pace {
    /// Whether so many changes may be told now; if so they count as told.
    pub fn allows(&mut self, changes: usize, haste: Haste, at: Duration) -> bool {
        let changes = changes as f64;
        self.average.fill(at);
        self.burst.fill(at);
        let least = if haste == Haste::Drift { 0.0 } else { -OWED_MAX };
        // One message may cost more than all that can be saved up.
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
    fn snapshot(offered: usize, haste: Haste, seconds: u64) -> usize {
        let mut pace = Pace::default();
        let times = (0..seconds * 10).map(|tenth| Duration::from_millis(tenth * 100));
        times.map(|at| (0..offered).filter(|_| pace.allows(1, haste, at)).count()).sum()
    }

    #[test]
    fn drift_stays_below_five_changes_a_second_whatever_moves() {
        for offered in [1, 20, 1000] {
            let snapshot = snapshot(offered, Haste::Drift, 600);
            assert!((2_000..3_000).contains(&snapshot), "{snapshot} in ten minutes");
        }
    }

    #[test]
    fn what_is_urgent_comes_at_once_and_not_without_a_limit() {
        let mut pace = Pace::default();
        assert!((0..40).all(|_| pace.allows(1, Haste::Now, Duration::ZERO)));
        assert!(!pace.allows(1, Haste::Now, Duration::ZERO));
        assert!((0..40).all(|_| pace.allows(1, Haste::Now, Duration::from_secs(1))));
        assert!(!pace.allows(1, Haste::Drift, Duration::from_secs(3)), "drift waits until the debt is paid");
        assert!(pace.allows(1, Haste::Drift, Duration::from_secs(30)));
        assert!(snapshot(1000, Haste::Now, 600) < 3_000);
    }

    proptest! {
        #[test]
        fn no_second_has_more_than_two_bursts(offers in proptest::collection::vec((0u64..50, 1usize..100), 1..300)) {
            let mut pace = Pace::default();
            let (mut at, mut snapshot) = (0, Vec::new());
            for (pause, changes) in offers {
                at += pause;
                if pace.allows(changes, Haste::Now, Duration::from_millis(at)) {
                    snapshot.push((at, changes));
                }
            }
            for (from, _) in &snapshot {
                let within: usize = snapshot.iter().filter(|(at, _)| (*from..from + 1000).contains(at)).map(|(_, c)| c).sum();
                prop_assert!(within <= 2 * 40 + 100, "{within}");
            }
        }
    }
}
