//! How often to look, so that the client does not feel it.
//!
//! A look costs the client as long as it takes to answer, for it does nothing else meanwhile. Two
//! shares of its time are ours, a twentieth each: one for the full pictures that come by the clock,
//! which come less often if they take long; one for all other looks, which may be overdrawn for a
//! moment (a torrent was added, all are read again) and is then paid back by longer pauses. How long a
//! look takes is the middle one of the last three: an answer that waited once, while the client was
//! loading ten thousand torrents or its disk hung, says nothing of what a look costs.
//!
//! Where a full picture costs nothing to speak of, it is taken more often than it has to be: a server
//! with some hundred torrents is read whole at each beat.
//!
//! Pure: the clock is the watcher's.

use std::time::Duration;

/// One part in so many of the client's time, for each of the two.
const SHARE: u32 = 20;
/// A full picture that takes so long may be taken at once again; one of ten times that, a tenth as much of the
/// time. So a hundred torrents are read at each beat, a thousand each few seconds, and beyond some
/// thousands the configured sweep is what counts.
const NOTHING: Duration = Duration::from_micros(200);
/// So much of the client's time may be overdrawn before looks become rarer.
const OVERDRAFT: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug)]
pub struct Pace {
    interval: Duration,
    sweep: Duration,
    /// Taken from the client beyond its share, as of `at`.
    debt: Duration,
    at: Duration,
    swept_at: Option<Duration>,
    full: Recent,
    quick: Recent,
}

/// How long the last three looks of a kind took; nothing where there were fewer.
#[derive(Clone, Copy, Debug, Default)]
struct Recent([Duration; 3]);

impl Recent {
    fn note(&mut self, took: Duration) {
        let [_, second, third] = self.0;
        self.0 = [second, third, took];
    }

    fn usual(self) -> Duration {
        let mut sorted = self.0;
        sorted.sort_unstable();
        sorted[1]
    }
}

/// Why a look was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A full picture was due.
    Sweep,
    /// It was time, something was poked, or only all could show what happened.
    ChangeSet,
    /// The first snapshot is being taken, or there was no answer: neither waits.
    Free,
}

impl Pace {
    pub fn new(interval: Duration, sweep: Duration) -> Self {
        let debt = Duration::ZERO;
        Self { interval, sweep, debt, at: debt, swept_at: None, full: Recent::default(), quick: Recent::default() }
    }

    /// From one full picture to the next: as configured, or longer if one takes long, or sooner if it
    /// takes no time.
    pub fn sweep(&self) -> Duration {
        let took = self.full.usual();
        self.sweep.min(took.mul_f64(took.div_duration_f64(NOTHING))).max(took * SHARE).max(self.interval)
    }

    /// Whether a look at `at` has to be full, so that one at the next beat is not too late.
    pub fn is_sweep_due(&self, at: Duration) -> bool {
        self.swept_at.is_none_or(|swept| at.saturating_sub(swept) + self.interval / 2 >= self.sweep())
    }

    /// A look ended at `at` after `took`. Returns how long to wait for the next.
    pub fn polled(&mut self, reason: Reason, is_full: bool, took: Duration, at: Duration) -> Duration {
        self.debt = self.debt.saturating_sub(at.saturating_sub(self.at) / SHARE);
        self.at = at;
        let recent = if is_full { &mut self.full } else { &mut self.quick };
        recent.note(took);
        let cost = recent.usual();
        if is_full {
            self.swept_at = Some(at);
        }
        match reason {
            Reason::Sweep | Reason::Free => {}
            // A debt is never more than what is paid back until the next full picture.
            Reason::ChangeSet => self.debt = (self.debt + cost).min(OVERDRAFT.max(cost) + self.sweep() / SHARE),
        }
        let beat = self.interval.saturating_sub(took);
        if reason == Reason::Free {
            return beat;
        }
        let until_sweep = self.swept_at.map_or(Duration::ZERO, |swept| (swept + self.sweep()).saturating_sub(at));
        beat.max(until_sweep.min(self.debt.saturating_sub(OVERDRAFT) * SHARE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Looks for so long; returns how many there were and the part of the time that they took.
    fn run(pace: &mut Pace, took: impl Fn(Reason) -> (bool, Duration), until: Duration) -> (u32, f64) {
        let (mut at, mut spent, mut looks) = (Duration::ZERO, Duration::ZERO, 0);
        while at < until {
            let reason = if pace.is_sweep_due(at) { Reason::Sweep } else { Reason::ChangeSet };
            let (is_full, took) = took(reason);
            at += took;
            spent += took;
            looks += 1;
            at += pace.polled(reason, is_full, took, at).max(ms(1));
        }
        (looks, spent.as_secs_f64() / at.as_secs_f64())
    }

    #[test]
    fn a_quick_client_is_looked_at_as_often_as_configured_and_swept_in_time() {
        let mut pace = Pace::new(ms(1000), ms(30_000));
        let sweeps = std::cell::Cell::new(0);
        let (looks, _) = run(
            &mut pace,
            |reason| {
                let is_sweep = reason == Reason::Sweep;
                sweeps.set(sweeps.get() + u32::from(is_sweep));
                (is_sweep, if is_sweep { ms(200) } else { ms(10) })
            },
            ms(600_000),
        );
        assert!((598..=602).contains(&looks), "{looks}");
        assert!((20..=21).contains(&sweeps.get()), "{}", sweeps.get());
        assert_eq!(pace.sweep(), ms(30_000));
    }

    #[test]
    fn a_client_with_few_torrents_is_read_whole_at_each_beat() {
        let mut pace = Pace::new(ms(1000), ms(30_000));
        pace.polled(Reason::Free, true, ms(2), ms(1000));
        assert!(pace.is_sweep_due(ms(2000)));
        pace.polled(Reason::Sweep, true, ms(40), ms(2000));
        pace.polled(Reason::Sweep, true, ms(40), ms(2000));
        assert!(!pace.is_sweep_due(ms(3000)));
        assert_eq!(pace.sweep(), ms(8000), "no more often than it is nothing to speak of");
    }

    #[test]
    fn a_slow_client_gives_no_more_than_a_tenth_of_its_time_whatever_is_asked() {
        for (name, quick, full, is_always_full) in [
            ("slow in all", ms(500), ms(8000), false),
            ("slow in full pictures", ms(5), ms(8000), false),
            ("nothing but full pictures", ms(700), ms(700), true),
        ] {
            let mut pace = Pace::new(ms(1000), ms(30_000));
            let took = |reason| {
                let is_full = is_always_full || reason == Reason::Sweep;
                (is_full, if is_full { full } else { quick })
            };
            let (looks, share) = run(&mut pace, took, ms(3_600_000));
            assert!(share <= 0.105, "{name}: {share}");
            assert!(looks > 100, "{name}: {looks}");
        }
    }

    #[test]
    fn however_much_was_taken_the_next_full_picture_comes_in_time() {
        let mut pace = Pace::new(ms(1000), ms(30_000));
        let mut at = Duration::ZERO;
        // Somebody waits, or the client rings: looks come without a pause for an hour.
        while at < ms(3_600_000) {
            at += ms(400);
            pace.polled(Reason::ChangeSet, true, ms(400), at);
            at += ms(400);
        }
        let pause = pace.polled(Reason::ChangeSet, false, ms(10), at);
        assert!(pause <= pace.sweep(), "{pause:?}");
        let later = pace.polled(Reason::Sweep, true, ms(400), at + pause);
        assert!(later <= pace.sweep(), "{later:?}");
    }

    #[test]
    fn an_answer_that_waited_once_makes_nothing_slower() {
        let mut pace = Pace::new(ms(1000), ms(30_000));
        for second in 1..=3 {
            pace.polled(Reason::Sweep, true, ms(20), ms(second * 1000));
            pace.polled(Reason::ChangeSet, false, ms(1), ms(second * 1000 + 500));
        }
        let sweep = pace.sweep();
        for reason in [Reason::Sweep, Reason::ChangeSet] {
            assert_eq!(pace.polled(reason, true, ms(45_000), ms(60_000)), ms(0));
            assert_eq!(pace.sweep(), sweep);
            pace.polled(reason, true, ms(20), ms(60_000));
            pace.polled(reason, true, ms(20), ms(60_000));
        }
        assert_eq!(pace.polled(Reason::ChangeSet, false, ms(45_000), ms(120_000)), ms(0));
    }

    #[test]
    fn a_few_long_looks_in_a_row_are_nobodys_concern() {
        let mut pace = Pace::new(ms(1000), ms(30_000));
        for second in 1..=5 {
            let pause = pace.polled(Reason::ChangeSet, true, ms(400), ms(second * 1000));
            assert_eq!(pause, ms(600), "after {second}");
        }
    }

    #[test]
    fn a_client_that_does_not_answer_is_tried_at_the_beat() {
        let mut pace = Pace::new(ms(1000), ms(30_000));
        for try_number in 1..=5 {
            assert_eq!(pace.polled(Reason::Free, false, ms(10_000), ms(try_number * 10_000)), Duration::ZERO);
        }
        assert!(pace.is_sweep_due(ms(50_000)), "there never was a full picture");
    }
}
