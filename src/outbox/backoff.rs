//! The wait before the next attempt: exponential, with jitter. Pure.

use std::time::Duration;

/// Longest wait after the first failure.
const FIRST: Duration = Duration::from_millis(500);
/// Longest wait of all: an operator who has repaired something does not want to wait longer.
const LONGEST: Duration = Duration::from_secs(15);

/// The failures in a row. The bound doubles from half a second to 15 s; each wait is a random part of it ("full jitter"), at
/// least a tenth.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Returns the wait after one more failure; `random` is in 0..1.
    pub fn next(&mut self, random: f64) -> Duration {
        // The exponent is bounded, because a long outage would overflow the shift.
        let longest = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        longest.mul_f64(random.clamp(0.1, 1.0))
    }

    /// Begins again with the shortest wait.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound_and_start_again() {
        let mut backoff = Backoff::default();
        let waits: Vec<u64> = (0..8).map(|_| backoff.next(1.0).as_millis().try_into().unwrap()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 15000, 15000, 15000]);
        backoff.reset();
        assert_eq!(backoff.next(0.0), Duration::from_millis(50));
    }
}
