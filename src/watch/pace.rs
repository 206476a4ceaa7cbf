//! The pace of polls: how often the client is asked, so that it does not notice.
//!
//! A poll costs the client the time that it takes to answer, because it does nothing else meanwhile. Two shares
//! of its time are used, a twentieth each: one for full polls at their interval, which come less often if they
//! take long; one for all other polls, which may be overdrawn for a moment (a torrent was added, and all are
//! read again) and is then paid back by longer pauses. The cost of a poll is the median of the last three: an
//! answer that waited once, while the client loaded ten thousand torrents or its disk hung, says nothing of
//! what a poll costs.
//!
//! Where a full poll is cheap, it is made more often than it has to be: a server with some hundred torrents is
//! read completely at each interval.
//!
//! Pure: the clock is the watcher's.

use std::time::Duration;

use crate::model::PollSettings;

/// Reciprocal of each share of the client's time.
const SHARE_DIVISOR: u32 = 20;
/// Cost of a full poll that may be repeated at once; one of ten times that takes a tenth as much of the time. So
/// a hundred torrents are read at each interval, a thousand each few seconds, and beyond some thousands the
/// configured interval of full polls decides.
const FREE_COST: Duration = Duration::from_micros(200);
/// Time of the client that may be overdrawn before polls become rarer.
const OVERDRAFT: Duration = Duration::from_secs(3);

/// The pace of one server.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    settings: PollSettings,
    /// Time taken from the client beyond its share, as of `at`.
    debt: Duration,
    at: Duration,
    full_at: Option<Duration>,
    full: Recent,
    quick: Recent,
}

/// Durations of the last three polls of a kind, zero where there were fewer.
#[derive(Clone, Copy, Debug, Default)]
struct Recent([Duration; 3]);

impl Recent {
    fn note(&mut self, took: Duration) {
        let [_, second, third] = self.0;
        self.0 = [second, third, took];
    }

    fn usual(self) -> Duration {
        let mut sorted = self.0;
        // The median: one answer that waited for the disk of the client says nothing about the cost of a poll.
        sorted.sort_unstable();
        sorted[1]
    }
}

/// The reason for a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollReason {
    /// A full poll was due.
    FullDue,
    /// The interval, a wake, or a doubt that only a full poll resolves.
    Changes,
    /// The first snapshot, which does not count against a share.
    Unlimited,
    /// A failed poll, which neither counts nor says what one that succeeds costs.
    Failed,
}

impl Pace {
    /// Returns the pace of these settings.
    pub fn new(settings: PollSettings) -> Self {
        let (debt, at) = (Duration::ZERO, Duration::ZERO);
        Self { settings, debt, at, full_at: None, full: Recent::default(), quick: Recent::default() }
    }

    /// Returns the time from one full poll to the next: as configured, longer if one takes long, shorter if it is
    /// cheap.
    pub fn full_interval(&self) -> Duration {
        let took = self.full.usual();
        self.settings
            .full_interval
            .min(took.mul_f64(took.div_duration_f64(FREE_COST)))
            .max(took * SHARE_DIVISOR)
            .max(self.settings.interval)
    }

    /// Returns whether a poll at `at` has to be full, because the next one would be too late.
    pub fn is_full_due(&self, at: Duration) -> bool {
        // Half an interval early rather than half an interval late.
        self.full_at.is_none_or(|last| at.saturating_sub(last) + self.settings.interval / 2 >= self.full_interval())
    }

    /// Records a poll that took `took` and ended at `at`, and returns the pause before the next one.
    pub fn polled(&mut self, reason: PollReason, is_full: bool, took: Duration, at: Duration) -> Duration {
        self.debt = self.debt.saturating_sub(at.saturating_sub(self.at) / SHARE_DIVISOR);
        self.at = at;
        let pause = self.settings.interval.saturating_sub(took);
        if reason == PollReason::Failed {
            return pause;
        }
        let recent = if is_full { &mut self.full } else { &mut self.quick };
        recent.note(took);
        let cost = recent.usual();
        if is_full {
            self.full_at = Some(at);
        }
        match reason {
            // Full polls have a share of their own, which `full_interval` keeps.
            PollReason::FullDue | PollReason::Unlimited | PollReason::Failed => {}
            // A debt is never more than what is paid back until the next full poll.
            PollReason::Changes => {
                self.debt = (self.debt + cost).min(OVERDRAFT.max(cost) + self.full_interval() / SHARE_DIVISOR)
            }
        }
        if reason == PollReason::Unlimited {
            return pause;
        }
        let until_full = self.full_at.map_or(Duration::ZERO, |last| (last + self.full_interval()).saturating_sub(at));
        pause.max(until_full.min(self.debt.saturating_sub(OVERDRAFT) * SHARE_DIVISOR))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Polls until `until`, and returns the number of polls and the share of the time that they took.
    fn run(pace: &mut Pace, took: impl Fn(PollReason) -> (bool, Duration), until: Duration) -> (u32, f64) {
        let (mut at, mut spent, mut polls) = (Duration::ZERO, Duration::ZERO, 0);
        while at < until {
            let reason = if pace.is_full_due(at) { PollReason::FullDue } else { PollReason::Changes };
            let (is_full, took) = took(reason);
            at += took;
            spent += took;
            polls += 1;
            at += pace.polled(reason, is_full, took, at).max(ms(1));
        }
        (polls, spent.as_secs_f64() / at.as_secs_f64())
    }

    #[test]
    fn a_quick_client_is_polled_as_often_as_configured_and_fully_in_time() {
        let mut pace = Pace::new(PollSettings::new(ms(1000), ms(30_000)));
        let full_polls = std::cell::Cell::new(0);
        let (polls, _) = run(
            &mut pace,
            |reason| {
                let is_full = reason == PollReason::FullDue;
                full_polls.set(full_polls.get() + u32::from(is_full));
                (is_full, if is_full { ms(200) } else { ms(10) })
            },
            ms(600_000),
        );
        assert!((598..=602).contains(&polls), "{polls}");
        assert!((20..=21).contains(&full_polls.get()), "{}", full_polls.get());
        assert_eq!(pace.full_interval(), ms(30_000));
    }

    #[test]
    fn a_client_with_few_torrents_is_polled_fully_at_each_interval() {
        let mut pace = Pace::new(PollSettings::new(ms(1000), ms(30_000)));
        pace.polled(PollReason::Unlimited, true, ms(2), ms(1000));
        assert!(pace.is_full_due(ms(2000)));
        pace.polled(PollReason::FullDue, true, ms(40), ms(2000));
        pace.polled(PollReason::FullDue, true, ms(40), ms(2000));
        assert!(!pace.is_full_due(ms(3000)));
        assert_eq!(pace.full_interval(), ms(8000), "no more often than it is cheap");
    }

    #[test]
    fn polls_take_no_more_than_a_tenth_of_a_slow_clients_time() {
        for (name, quick, full, is_always_full) in [
            ("slow in all polls", ms(500), ms(8000), false),
            ("slow in full polls", ms(5), ms(8000), false),
            ("nothing but full polls", ms(700), ms(700), true),
        ] {
            let mut pace = Pace::new(PollSettings::new(ms(1000), ms(30_000)));
            let took = |reason| {
                let is_full = is_always_full || reason == PollReason::FullDue;
                (is_full, if is_full { full } else { quick })
            };
            let (polls, share) = run(&mut pace, took, ms(3_600_000));
            assert!(share <= 0.105, "{name}: {share}");
            assert!(polls > 100, "{name}: {polls}");
        }
    }

    #[test]
    fn the_next_full_poll_is_in_time_however_much_was_overdrawn() {
        let mut pace = Pace::new(PollSettings::new(ms(1000), ms(30_000)));
        let mut at = Duration::ZERO;
        // A command waits, or hooks notify: polls come without a pause for an hour.
        while at < ms(3_600_000) {
            at += ms(400);
            pace.polled(PollReason::Changes, true, ms(400), at);
            at += ms(400);
        }
        let pause = pace.polled(PollReason::Changes, false, ms(10), at);
        assert!(pause <= pace.full_interval(), "{pause:?}");
        let later = pace.polled(PollReason::FullDue, true, ms(400), at + pause);
        assert!(later <= pace.full_interval(), "{later:?}");
    }

    #[test]
    fn a_single_slow_answer_does_not_change_the_pace() {
        let mut pace = Pace::new(PollSettings::new(ms(1000), ms(30_000)));
        for second in 1..=3 {
            pace.polled(PollReason::FullDue, true, ms(20), ms(second * 1000));
            pace.polled(PollReason::Changes, false, ms(1), ms(second * 1000 + 500));
        }
        let full_interval = pace.full_interval();
        for reason in [PollReason::FullDue, PollReason::Changes] {
            assert_eq!(pace.polled(reason, true, ms(45_000), ms(60_000)), ms(0));
            assert_eq!(pace.full_interval(), full_interval);
            pace.polled(reason, true, ms(20), ms(60_000));
            pace.polled(reason, true, ms(20), ms(60_000));
        }
        assert_eq!(pace.polled(PollReason::Changes, false, ms(45_000), ms(120_000)), ms(0));
    }

    #[test]
    fn a_few_slow_polls_in_a_row_do_not_change_the_pace() {
        let mut pace = Pace::new(PollSettings::new(ms(1000), ms(30_000)));
        for second in 1..=5 {
            let pause = pace.polled(PollReason::Changes, true, ms(400), ms(second * 1000));
            assert_eq!(pause, ms(600), "after {second}");
        }
    }

    #[test]
    fn a_client_that_does_not_answer_is_polled_at_the_interval() {
        let mut pace = Pace::new(PollSettings::new(ms(1000), ms(30_000)));
        for try_number in 1..=5 {
            assert_eq!(pace.polled(PollReason::Failed, false, ms(10_000), ms(try_number * 10_000)), Duration::ZERO);
        }
        assert!(pace.is_full_due(ms(50_000)), "there never was a full poll");
    }

    #[test]
    fn failed_polls_do_not_change_the_pace_of_those_that_succeed() {
        let mut pace = Pace::new(PollSettings::new(ms(250), ms(2000)));
        pace.polled(PollReason::FullDue, true, ms(20), ms(250));
        let before = pace.full_interval();
        for failure in 1..=3 {
            pace.polled(PollReason::Failed, false, ms(10_000), ms(failure * 10_000));
        }
        assert_eq!(pace.polled(PollReason::Changes, false, ms(1), ms(31_000)), ms(249));
        assert_eq!(pace.full_interval(), before);
    }
}
