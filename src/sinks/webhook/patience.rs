//! How long a line tries on: the waits between its attempts, and when an event is given up. Pure.
//!
//! The time that an event has is measured from the event, not from its first attempt. So it needs no note
//! that would have to survive a restart, and an endpoint that is away for a month costs each event the
//! same time, not one event after the other.

use std::time::Duration;

/// The wait after the first failure; each further one is twice as long.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60 * 60);
/// An event that is old already (the bridge was down, say) is still tried for so long in this life.
const AGAIN_FOR: Duration = Duration::from_secs(60 * 60);

/// How long to wait after the `failures`-th failure in a row; `random` is in 0..1.
///
/// Half of the time at least, so that many do not come at once; never less than was `asked` for.
pub fn wait(failures: u32, random: f64, asked: Option<Duration>) -> Duration {
    let longest = FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST);
    let random = random.clamp(0.0, 1.0);
    let own = longest.mul_f64(0.5 + random / 2.0);
    // Those who were told the same time do not come at the same time either.
    own.max(asked.unwrap_or_default().mul_f64(1.0 + random / 20.0))
}

/// A body that is refused for what it is, is offered so long: some endpoints answer so while they are set up.
pub const REFUSED_FOR: Duration = Duration::from_secs(5);

/// Whether an event of this age is given up. `failing_for`: since the first of the failures in a row.
pub fn is_over(age: Duration, failing_for: Duration, keep_trying: Duration) -> bool {
    age >= keep_trying && failing_for >= keep_trying.min(AGAIN_FOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn waits_double_to_an_hour_and_keep_to_what_was_asked() {
        let waits: Vec<u64> = (1..=15).map(|failures| wait(failures, 1.0, None).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3600, 3600, 3600]);
        assert_eq!(wait(u32::MAX, 0.0, None), LONGEST / 2);
        assert_eq!(wait(1, 0.0, Some(MINUTE)), MINUTE);
        assert_eq!(wait(1, 1.0, Some(MINUTE)), MINUTE + Duration::from_secs(3));
        assert_eq!(wait(15, 1.0, Some(MINUTE)), LONGEST);
    }

    #[test]
    fn an_event_is_given_up_after_its_time_and_an_old_one_is_tried_for_a_while() {
        for (age, failing_for, expected) in [
            (DAY, DAY, false),
            (3 * DAY, 3 * DAY, true),
            (3 * DAY, 10 * MINUTE, false),
            (30 * DAY, Duration::ZERO, false),
            (30 * DAY, 60 * MINUTE, true),
            (2 * DAY, 30 * DAY, false),
        ] {
            assert_eq!(is_over(age, failing_for, 3 * DAY), expected, "{age:?} {failing_for:?}");
        }
        assert!(is_over(MINUTE, MINUTE, MINUTE));
    }

    /// With the longest waits there are still enough attempts for an endpoint that comes and goes.
    #[test]
    fn three_days_are_some_eighty_attempts() {
        let (mut at, mut attempts) = (Duration::ZERO, 0);
        while at < 3 * DAY {
            attempts += 1;
            at += wait(attempts, 1.0, None);
        }
        assert!((80..90).contains(&attempts), "{attempts}");
    }
}
