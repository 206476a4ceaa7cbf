//! The limit on announces, which a version before 0.15.2 does not survive without.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::InfoHash;

/// Announces of one torrent within [`ANNOUNCE_PERIOD`]. Ten abort rTorrent 0.9.8, and others than ours count too.
const ANNOUNCES_MAX: usize = 3;
/// Time for which an announce counts.
const ANNOUNCE_PERIOD: Duration = Duration::from_secs(10);

/// The times at which each torrent was made to announce, within the last [`ANNOUNCE_PERIOD`].
#[derive(Default)]
pub(super) struct AnnounceLimiter(HashMap<InfoHash, VecDeque<Instant>>);

impl AnnounceLimiter {
    /// Returns whether the torrent may announce now, and counts the announce if so.
    pub(super) fn try_announce(&mut self, hash: InfoHash, now: Instant) -> bool {
        self.forget_old(now);
        let may_announce = self.0.get(&hash).is_none_or(|times| times.len() < ANNOUNCES_MAX);
        if may_announce {
            self.record(hash, now);
        }
        may_announce
    }

    /// Counts an announce that goes with another request and is not refused.
    pub(super) fn record(&mut self, hash: InfoHash, now: Instant) {
        self.0.entry(hash).or_default().push_back(now);
    }

    fn forget_old(&mut self, now: Instant) {
        // All torrents, not only this one, so that none is held for ever.
        self.0.retain(|_, times| {
            times.retain(|time| now.duration_since(*time) < ANNOUNCE_PERIOD);
            !times.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: InfoHash = InfoHash::V1([1; 20]);

    #[test]
    fn rule_4_a_fourth_announce_is_refused_until_the_first_is_ten_seconds_old() {
        let mut announces = AnnounceLimiter::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in [0, 1, 2] {
            assert!(announces.try_announce(HASH, at(second)));
        }
        assert!(!announces.try_announce(HASH, at(3)));
        assert!(announces.try_announce(InfoHash::V1([2; 20]), at(3)), "another torrent");
        assert!(!announces.try_announce(HASH, at(9)), "a refusal does not count");
        assert!(announces.try_announce(HASH, at(10)));
        assert!(!announces.try_announce(HASH, at(10)));
        assert!(announces.try_announce(HASH, at(11)));
        announces.forget_old(at(30));
        assert!(announces.0.is_empty(), "nothing is held longer than it counts");
    }
}
