//! Trust in the answers of one server.

use std::time::Duration;

/// How far the answers of one server can be trusted.
///
/// ```text
///        answer, same run          n-th failure
/// Lost ───────────────────► Steady ────────────► Lost
///  │                         ▲  │
///  │                  settled│  │ answer of another run
///  └──────────► Settling ────┘◄─┘
///   answer of another run
/// ```
///
/// A client that has just started answers before it has loaded its session: rTorrent 0.9.8 blocks until then,
/// 0.15.7 and later report no torrents first. While it settles, a missing torrent may still be loaded. A
/// failure does not end that, it restarts the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Never answered, or failed too often.
    Lost { failures: u32 },
    /// May still be loading its session, until `until` and until two polls agree in the number of torrents.
    Settling { until: Duration, torrents: usize, failures: u32 },
    /// Answers are complete.
    Steady { failures: u32 },
}

/// The outcome of a poll, as far as trust is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    Failed,
    Answered {
        /// Time for which the client may have been loading its session; `None` if it may not. Another run of the
        /// client, for example, may.
        loading_for: Option<Duration>,
        torrents: usize,
        /// Every torrent of the snapshot is listed.
        nothing_missing: bool,
    },
}

/// Limits of the transitions of [`Trust`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrustLimits {
    /// Failures in a row after which the server is offline.
    pub failures_max: u32,
    /// Minimum time for which a restarted client with missing torrents settles.
    pub settle: Duration,
}

impl Trust {
    /// The trust in a server that was not polled yet.
    pub const START: Self = Self::Lost { failures: 0 };

    /// Returns the trust after `poll`. `at` is monotonic time from any fixed point.
    pub fn after(self, poll: Poll, at: Duration, limits: &TrustLimits) -> Self {
        match (self, poll) {
            (Self::Lost { failures }, Poll::Failed) => Self::Lost { failures: failures.saturating_add(1) },
            (Self::Settling { torrents, failures, .. }, Poll::Failed) => {
                // 0.9.8 blocks while it loads: the time in which nothing was answered does not count.
                Self::Settling { until: at + limits.settle, torrents, failures: failures.saturating_add(1) }
            }
            (Self::Steady { failures }, Poll::Failed) if failures + 1 >= limits.failures_max => {
                Self::Lost { failures: failures + 1 }
            }
            (Self::Steady { failures }, Poll::Failed) => Self::Steady { failures: failures + 1 },
            // Whoever lists every torrent of the snapshot has loaded its session.
            (_, Poll::Answered { nothing_missing: true, .. }) => Self::Steady { failures: 0 },
            (_, Poll::Answered { loading_for: Some(already), torrents, .. }) => {
                Self::Settling { until: at + limits.settle.saturating_sub(already), torrents, failures: 0 }
            }
            (Self::Settling { until, torrents: before, .. }, Poll::Answered { torrents, .. }) => {
                // Both: a slow disk outlives the time, and a pause in loading shows the same number twice.
                if before == torrents && at >= until {
                    Self::Steady { failures: 0 }
                } else {
                    Self::Settling { until, torrents, failures: 0 }
                }
            }
            (Self::Lost { .. } | Self::Steady { .. }, Poll::Answered { .. }) => Self::Steady { failures: 0 },
        }
    }

    /// Returns whether an answer may prove that a torrent is gone.
    pub fn believes_absence(self) -> bool {
        matches!(self, Self::Steady { .. })
    }

    /// Returns whether the failures are enough to call the server offline.
    pub fn is_offline(self, limits: &TrustLimits) -> bool {
        matches!(self, Self::Lost { failures } | Self::Settling { failures, .. } if failures >= limits.failures_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: TrustLimits = TrustLimits { failures_max: 3, settle: Duration::from_secs(30) };

    fn answered(may_be_loading: bool, torrents: usize, nothing_missing: bool) -> Poll {
        Poll::Answered { loading_for: may_be_loading.then_some(Duration::ZERO), torrents, nothing_missing }
    }

    fn run(polls: &[(u64, Poll)]) -> Trust {
        polls
            .iter()
            .fold(Trust::START, |trust, (second, poll)| trust.after(*poll, Duration::from_secs(*second), &LIMITS))
    }

    #[test]
    fn one_failed_poll_does_not_lose_a_steady_server_and_the_third_does() {
        let steady = (0, answered(false, 3, false));
        assert_eq!(run(&[steady, (1, Poll::Failed)]), Trust::Steady { failures: 1 });
        assert_eq!(run(&[steady, (1, Poll::Failed), (2, answered(false, 3, false))]), Trust::Steady { failures: 0 });
        let lost = run(&[steady, (1, Poll::Failed), (2, Poll::Failed), (3, Poll::Failed)]);
        assert!(lost.is_offline(&LIMITS), "{lost:?}");
    }

    #[test]
    fn a_server_that_never_answered_is_offline_after_three_tries() {
        assert!(!run(&[(0, Poll::Failed), (1, Poll::Failed)]).is_offline(&LIMITS));
        assert!(run(&[(0, Poll::Failed), (1, Poll::Failed), (2, Poll::Failed)]).is_offline(&LIMITS));
    }

    #[test]
    fn a_restarted_server_settles_until_it_is_whole_or_has_had_its_time() {
        let restarted = (0, answered(true, 0, false));
        assert!(!run(&[restarted]).believes_absence());
        assert!(!run(&[restarted, (1, answered(false, 0, false))]).believes_absence());
        assert!(run(&[restarted, (1, answered(false, 3, true))]).believes_absence(), "whole again");
        assert!(!run(&[restarted, (31, answered(false, 2, false))]).believes_absence(), "still growing");
        assert!(run(&[restarted, (31, answered(false, 2, false)), (32, answered(false, 2, false))]).believes_absence());
    }

    #[test]
    fn a_restarted_bridge_waits_on_where_its_former_run_was() {
        let already = |seconds| Poll::Answered {
            loading_for: Some(Duration::from_secs(seconds)),
            torrents: 2,
            nothing_missing: false,
        };
        assert!(!run(&[(0, already(20)), (9, answered(false, 2, false))]).believes_absence());
        assert!(run(&[(0, already(20)), (10, answered(false, 2, false))]).believes_absence());
        assert!(!run(&[(0, already(500))]).believes_absence(), "one poll is never enough");
        assert!(run(&[(0, already(500)), (1, answered(false, 2, false))]).believes_absence());
    }

    #[test]
    fn a_failure_while_the_session_loads_proves_nothing() {
        let failed = [(0, answered(true, 0, false)), (20, Poll::Failed), (35, answered(false, 0, false))];
        assert!(!run(&failed).believes_absence(), "its time began anew");
        let and_on = [failed[0], failed[1], failed[2], (51, answered(false, 0, false))];
        assert!(run(&and_on).believes_absence());
        assert!(run(&[failed[0], (1, Poll::Failed), (2, Poll::Failed), (3, Poll::Failed)]).is_offline(&LIMITS));
    }

    #[test]
    fn the_same_run_is_trusted_at_once_when_it_answers_again() {
        let back = run(&[(0, Poll::Failed), (1, Poll::Failed), (2, Poll::Failed), (3, answered(false, 2, false))]);
        assert!(back.believes_absence());
    }
}
