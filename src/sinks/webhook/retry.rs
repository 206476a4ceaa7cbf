//! The retry schedule of a webhook: the delays between attempts, and when an event is given up. Pure.
//!
//! The time that an event has is measured from the event, not from its first attempt. So no note has to survive
//! a restart, and an endpoint that is down for a month costs each event the same time, not one event after the other.

use std::time::Duration;

/// Delay after the first failure; each further one is twice as long.
const DELAY_MIN: Duration = Duration::from_secs(1);
/// Maximum delay that the schedule itself demands.
const DELAY_MAX: Duration = Duration::from_secs(60 * 60);
/// An event that is older than its time already (the bridge was down) is still tried for this long.
const STALE_EVENT_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// How long a refused body is offered again: some endpoints answer 4xx while they are set up.
pub const REFUSED_BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns the delay after the `failures`-th failure in a row; `random` is in 0..1.
///
/// At least half of the full delay, so that many sinks of one endpoint do not retry at once; never less than the
/// endpoint's own `retry_after`.
pub fn delay(failures: u32, random: f64, retry_after: Option<Duration>) -> Duration {
    let full = DELAY_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(DELAY_MAX);
    let random = random.clamp(0.0, 1.0);
    let own = full.mul_f64(0.5 + random / 2.0);
    // Sinks that were given the same `Retry-After` are spread as well.
    own.max(retry_after.unwrap_or_default().mul_f64(1.0 + random / 20.0))
}

/// Whether an event of this age is given up; `failing_for`: time since the first of the failures in a row.
pub fn is_expired(age: Duration, failing_for: Duration, keep_trying: Duration) -> bool {
    age >= keep_trying && failing_for >= keep_trying.min(STALE_EVENT_TIMEOUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn delays_double_up_to_an_hour_and_respect_retry_after() {
        let delays: Vec<u64> = (1..=15).map(|failures| delay(failures, 1.0, None).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3600, 3600, 3600]);
        assert_eq!(delay(u32::MAX, 0.0, None), DELAY_MAX / 2);
        assert_eq!(delay(1, 0.0, Some(MINUTE)), MINUTE);
        assert_eq!(delay(1, 1.0, Some(MINUTE)), MINUTE + Duration::from_secs(3));
        assert_eq!(delay(15, 1.0, Some(MINUTE)), DELAY_MAX);
    }

    #[test]
    fn an_event_expires_after_its_time_and_a_stale_one_is_still_tried_for_a_while() {
        for (age, failing_for, expected) in [
            (DAY, DAY, false),
            (3 * DAY, 3 * DAY, true),
            (3 * DAY, 10 * MINUTE, false),
            (30 * DAY, Duration::ZERO, false),
            (30 * DAY, 60 * MINUTE, true),
            (2 * DAY, 30 * DAY, false),
        ] {
            assert_eq!(is_expired(age, failing_for, 3 * DAY), expected, "{age:?} {failing_for:?}");
        }
        assert!(is_expired(MINUTE, MINUTE, MINUTE));
    }

    /// Even the longest delays leave enough attempts for an endpoint that comes and goes.
    #[test]
    fn three_days_are_some_eighty_attempts() {
        let (mut at, mut attempts) = (Duration::ZERO, 0);
        while at < 3 * DAY {
            attempts += 1;
            at += delay(attempts, 1.0, None);
        }
        assert!((80..90).contains(&attempts), "{attempts}");
    }
}
