//! The slots of a server: a fixed number of places, filled with the torrents that matter most.
//!
//! Invariants:
//! - a torrent stays where it is as long as it is among them, so that a dashboard does not jump;
//! - one that pauses for a moment is not replaced by another;
//! - the same snapshot gives the same choice.
//!
//! Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::{InfoHash, Snapshot, SnapshotTorrent, Status, Timestamp, Torrent};

/// Time after bytes moved for which a torrent in a place counts as active.
const ACTIVE_TIMEOUT: Duration = Duration::from_secs(60);

/// The places of one server.
#[derive(Debug, Default)]
pub struct Slots {
    places: Vec<Option<InfoHash>>,
    /// When those in places were seen active last.
    active: BTreeMap<InfoHash, Duration>,
}

/// How much a torrent matters; less is more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    /// Being downloaded, checked, or waiting for its metadata.
    Loading,
    /// Bytes move.
    Active,
    /// Not finished, or with an error.
    Open,
    Other,
}

/// Whether bytes move now, or moved since the last poll.
pub fn is_moving(torrent: &Torrent) -> bool {
    torrent.playing || torrent.download_rate.unwrap_or(0) > 0 || torrent.upload_rate.unwrap_or(0) > 0
}

fn class(torrent: &Torrent) -> Class {
    match torrent.status {
        Status::Downloading | Status::Metadata | Status::Checking => Class::Loading,
        _ if is_moving(torrent) => Class::Active,
        _ if !torrent.finished || torrent.error => Class::Open,
        _ => Class::Other,
    }
}

/// Returns all torrents, those that matter most first: by class, then the newest.
pub fn by_importance(snapshot: &Snapshot) -> Vec<InfoHash> {
    let rank = |(hash, row): (&InfoHash, &SnapshotTorrent)| (class(&row.torrent), Reverse(row.torrent.added_at), *hash);
    let mut ranked: Vec<_> = snapshot.iter().map(rank).collect();
    ranked.sort_unstable();
    ranked.into_iter().map(|(.., hash)| hash).collect()
}

type Rank = (Class, bool, Reverse<Option<Timestamp>>, InfoHash);

impl Slots {
    /// Chooses the torrents of `count` places from a snapshot.
    pub fn choose(&mut self, snapshot: &Snapshot, count: usize, at: Duration) {
        self.places.resize(count, None);
        let present: BTreeSet<InfoHash> = self.places.iter().flatten().copied().collect();
        let mut ranks: Vec<Rank> = snapshot
            .iter()
            .map(|(hash, row)| {
                let is_present = present.contains(hash);
                let mut class = class(&row.torrent);
                if is_present && class <= Class::Active {
                    self.active.insert(*hash, at);
                }
                let was_active = self.active.get(hash).is_some_and(|last| at.saturating_sub(*last) < ACTIVE_TIMEOUT);
                if is_present && was_active {
                    class = class.min(Class::Active);
                }
                // Among equals one that has a place keeps it.
                (class, !is_present, Reverse(row.torrent.added_at), *hash)
            })
            .collect();
        // A partial sort: ten thousand torrents are ranked each second for ten places.
        if ranks.len() > count && count > 0 {
            ranks.select_nth_unstable(count - 1);
        }
        ranks.truncate(count);
        ranks.sort_unstable();
        let chosen: BTreeSet<InfoHash> = ranks.iter().map(|(.., hash)| *hash).collect();
        for place in &mut self.places {
            *place = place.filter(|hash| chosen.contains(hash));
        }
        let mut coming = ranks.iter().map(|(.., hash)| *hash).filter(|hash| !present.contains(hash));
        for place in self.places.iter_mut().filter(|place| place.is_none()) {
            *place = coming.next();
        }
        self.active.retain(|hash, _| chosen.contains(hash));
    }

    /// Returns the torrent of each place, the first place first; `None` for an empty one.
    pub fn places(&self) -> &[Option<InfoHash>] {
        &self.places
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::model::{DiffState, Rev, Seq};

    fn hash(n: u8) -> InfoHash {
        InfoHash::V1([n; 20])
    }

    /// One torrent for each character: `d`ownloading, `u`ploading, `e`rror, `s`eeding quietly. The later, the newer.
    fn snapshot(kinds: &str) -> Snapshot {
        let row = |(n, kind): (usize, char)| {
            let n = u8::try_from(n).unwrap();
            let json = json!({
                "hash": hash(n), "name": "a", "server": "home", "active": true, "downloaded": 0, "uploaded": 0,
                "length": 1, "progress": 0.0, "finished": kind != 'd', "playing": kind == 'u', "extra": {},
                "status": if kind == 'd' { "downloading" } else { "seeding" }, "error": kind == 'e',
                "stalled": false, "added_at": Timestamp::from_seconds(i64::from(n)),
            });
            let torrent = Arc::new(serde_json::from_value(json).unwrap());
            let changed_at = Timestamp::from_seconds(0);
            (
                hash(n),
                SnapshotTorrent {
                    torrent,
                    rev: Rev(1),
                    last_seq: Seq(1),
                    changed_at,
                    diff_state: DiffState::default(),
                },
            )
        };
        kinds.chars().enumerate().filter(|(_, kind)| *kind != '.').map(row).collect()
    }

    fn shown(slots: &Slots) -> String {
        let digit = |place: &Option<InfoHash>| match place {
            Some(InfoHash::V1(bytes)) => char::from(b'0' + bytes[0]),
            _ => '-',
        };
        slots.places().iter().map(digit).collect()
    }

    #[test]
    fn what_matters_comes_in_and_stays_where_it_is() {
        let mut slots = Slots::default();
        let mut check = |kinds: &str, seconds: u64, expected: &str| {
            slots.choose(&snapshot(kinds), 3, Duration::from_secs(seconds));
            assert_eq!(shown(&slots), expected, "{kinds} at {seconds}");
        };
        check("", 0, "---");
        check("ss", 0, "10-");
        check("sssde", 10, "134");
        check("sssdu", 20, "134");
        check("ussdu", 30, "034"); // what moves comes before what rests
        check("ussds", 40, "034"); // 4 rests, and keeps its place for a while
        check("usuds", 200, "032");
        check("usu..", 210, "012");
    }

    #[test]
    fn the_order_of_importance_is_loading_active_open_newest() {
        let names: Vec<InfoHash> = by_importance(&snapshot("seuds"));
        assert_eq!(names, [3, 2, 1, 4, 0].map(hash));
    }
}
