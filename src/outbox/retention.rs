//! The choice of states that a broker retains for later subscribers. Pure.

use std::collections::HashSet;

pub use crate::model::Retain;
use crate::model::{InfoHash, Snapshot, SnapshotTorrent, Status, Timestamp};

/// Maximum number of torrents whose states are retained with [`Retain::Auto`]. A mosquitto with its defaults drops retained
/// messages beyond about 1,000 for a slow subscriber; two topics per torrent and some room for others make 500.
pub const AUTO_MAX: usize = 500;

const DAY_MILLIS: u64 = 24 * 60 * 60 * 1000;

/// The states of one server that are retained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retained {
    /// The states of all torrents.
    All,
    /// No state.
    None,
    /// The states of these torrents.
    These(HashSet<InfoHash>),
}

impl Retained {
    /// Whether the state of this torrent is retained.
    pub fn contains(&self, hash: &InfoHash) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::These(these) => these.contains(hash),
        }
    }

    /// Returns the choice by policy. Of more than [`AUTO_MAX`] that matter those stay that were retained `before`,
    /// then those come that changed last: a topic that comes and goes serves no subscriber.
    pub fn choose(snapshot: &Snapshot, retain: Retain, now: Timestamp, before: &Self) -> Self {
        match retain {
            Retain::All => Self::All,
            Retain::None => Self::None,
            Retain::Auto if snapshot.len() <= AUTO_MAX => Self::All,
            Retain::Auto if before.is_full_of_what_matters(snapshot, now) => before.clone(),
            Retain::Auto => {
                let mut chosen: Vec<_> = snapshot.iter().filter(|(_, snapshot)| matters(snapshot, now)).collect();
                chosen.sort_by_key(|(hash, snapshot)| {
                    let was_retained = matches!(before, Self::These(these) if these.contains(hash));
                    (!was_retained, std::cmp::Reverse(snapshot.changed_at), **hash)
                });
                Self::These(chosen.into_iter().take(AUTO_MAX).map(|(hash, _)| *hash).collect())
            }
        }
    }

    /// Whether no other state can come in, whatever else there is.
    fn is_full_of_what_matters(&self, snapshot: &Snapshot, now: Timestamp) -> bool {
        let Self::These(these) = self else { return false };
        these.len() == AUTO_MAX
            && these.iter().all(|hash| snapshot.get(hash).is_some_and(|snapshot| matters(snapshot, now)))
    }
}

fn matters(snapshot: &SnapshotTorrent, now: Timestamp) -> bool {
    let torrent = &snapshot.torrent;
    let is_working = matches!(torrent.status, Status::Downloading | Status::Metadata | Status::Checking);
    let is_moving = torrent.playing || torrent.download_rate.unwrap_or(0) > 0 || torrent.upload_rate.unwrap_or(0) > 0;
    is_working || is_moving || !torrent.finished || torrent.error || now.millis_since(snapshot.changed_at) < DAY_MILLIS
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{DiffState, Rev, Seq, Torrent};

    /// Torrents that all matter, each changed a second after the one before.
    fn snapshot(count: u16) -> Snapshot {
        let torrent = |n: u16| {
            let mut hash = [0; 20];
            hash[..2].copy_from_slice(&n.to_be_bytes());
            let json = serde_json::json!({
                "hash": InfoHash::V1(hash), "name": "a", "server": "home", "active": true, "downloaded": 0, "uploaded": 0,
                "length": 1, "progress": 0.0, "finished": false, "playing": false, "extra": {},
                "status": "downloading", "error": false, "stalled": false
            });
            let torrent: Torrent = serde_json::from_value(json).unwrap();
            let changed_at = Timestamp::from_seconds(i64::from(n));
            let diff_state = DiffState::default();
            (
                torrent.hash,
                SnapshotTorrent { torrent: Arc::new(torrent), rev: Rev(1), last_seq: Seq(1), changed_at, diff_state },
            )
        };
        (0..count).map(torrent).collect()
    }

    #[test]
    fn up_to_500_all_are_retained_and_above_500_of_those_that_matter() {
        let now = Timestamp::from_seconds(1_000_000);
        let choose = |count, retain| Retained::choose(&snapshot(count), retain, now, &Retained::None);
        assert_eq!(choose(500, Retain::Auto), Retained::All);
        assert_eq!(choose(501, Retain::All), Retained::All);
        assert_eq!(choose(1, Retain::None), Retained::None);
        let Retained::These(these) = choose(501, Retain::Auto) else { panic!() };
        assert_eq!(these.len(), AUTO_MAX);
        assert!(!these.contains(snapshot(1).keys().next().unwrap()), "the one that changed first is left out");
        let mut seeds = snapshot(600);
        for snapshot in seeds.values_mut() {
            let torrent = Torrent { status: Status::Seeding, finished: true, ..(*snapshot.torrent).clone() };
            snapshot.torrent = Arc::new(torrent);
        }
        assert_eq!(Retained::choose(&seeds, Retain::Auto, now, &Retained::None), Retained::These(HashSet::new()));
    }

    #[test]
    fn a_retained_state_is_not_ousted_by_one_that_changed_a_moment_later() {
        let now = Timestamp::from_seconds(1_000_000);
        let mut snapshot = snapshot(600);
        let before = Retained::choose(&snapshot, Retain::Auto, now, &Retained::None);
        for snapshot in snapshot.values_mut() {
            snapshot.changed_at = Timestamp::from_seconds(10_000 - snapshot.changed_at.as_millis() / 1000);
        }
        assert_eq!(Retained::choose(&snapshot, Retain::Auto, now, &before), before);
        let gone = *snapshot.keys().next_back().unwrap();
        snapshot.remove(&gone);
        let Retained::These(after) = Retained::choose(&snapshot, Retain::Auto, now, &before) else { panic!() };
        assert_eq!((after.len(), after.contains(&gone)), (AUTO_MAX, false), "another takes the place of one that went");
    }
}
