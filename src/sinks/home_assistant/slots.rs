//! Which torrents are shown: a fixed number of places, filled with those that matter most.
//!
//! What must hold: a torrent stays where it is as long as it is among them, so that a dashboard does
//! not jump; one that pauses for a moment is not thrown out by another; the same picture gives the
//! same choice.
//!
//! Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::{InfoHash, Snapshot, Status, Timestamp, Torrent};

/// So long after bytes moved a torrent counts as active.
const ACTIVE_FOR: Duration = Duration::from_secs(60);

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
    /// It is being loaded.
    Loading,
    /// Bytes move.
    Active,
    /// It is not finished, or has an error.
    Open,
    Other,
}

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

/// Those that matter most, in that order: by class, then the newest.
pub fn by_importance(snapshot: &Snapshot) -> Vec<InfoHash> {
    let mut ranked: Vec<_> = snapshot
        .iter()
        .map(|(hash, snapshot)| (class(&snapshot.torrent), Reverse(snapshot.torrent.added_at), *hash))
        .collect();
    ranked.sort_unstable();
    ranked.into_iter().map(|(.., hash)| hash).collect()
}

type Rank = (Class, bool, Reverse<Option<Timestamp>>, InfoHash);

impl Slots {
    /// Chooses anew.
    pub fn choose(&mut self, snapshot: &Snapshot, count: usize, at: Duration) {
        self.places.resize(count, None);
        let present: BTreeSet<InfoHash> = self.places.iter().flatten().copied().collect();
        let mut ranks: Vec<Rank> = snapshot
            .iter()
            .map(|(hash, snapshot)| {
                let is_present = present.contains(hash);
                let mut class = class(&snapshot.torrent);
                if is_present && class <= Class::Active {
                    self.active.insert(*hash, at);
                }
                let was_active = self.active.get(hash).is_some_and(|last| at.saturating_sub(*last) < ACTIVE_FOR);
                if is_present && was_active {
                    class = class.min(Class::Active);
                }
                (class, !is_present, Reverse(snapshot.torrent.added_at), *hash)
            })
            .collect();
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

    /// From the first place on.
    pub fn places(&self) -> &[Option<InfoHash>] {
        &self.places
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::model::{DiffState, Rev, Seq, SnapshotTorrent};

    fn hash(n: u8) -> InfoHash {
        InfoHash::V1([n; 20])
    }

    /// Torrents as letters: `d`ownloading, `u`ploading, `e`rror, `s`eeding quietly. The later, the newer.
    fn snapshot(letters: &str) -> Snapshot {
        let snapshot = |(n, letter): (usize, char)| {
            let n = u8::try_from(n).unwrap();
            let json = json!({
                "hash": hash(n), "name": "a", "server": "home", "active": true, "downloaded": 0, "uploaded": 0,
                "length": 1, "progress": 0.0, "finished": letter != 'd', "playing": letter == 'u', "extra": {},
                "status": if letter == 'd' { "downloading" } else { "seeding" }, "error": letter == 'e',
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
        letters.chars().enumerate().filter(|(_, letter)| *letter != '.').map(snapshot).collect()
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
        let mut check = |letters: &str, seconds: u64, expected: &str| {
            slots.choose(&snapshot(letters), 3, Duration::from_secs(seconds));
            assert_eq!(shown(&slots), expected, "{letters} at {seconds}");
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
