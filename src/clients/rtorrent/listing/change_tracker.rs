//! The state that listings of changes build on: what is known of each torrent, and of rTorrent's views.
//!
//! Pure: it sees listings and says what has to be read next.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::super::map::{FixedColumns, TorrentRow};
use super::super::probe::Probe;
use super::counters::{Counters, VIEWS};
use super::{Columns, RawListing};
use crate::model::InfoHash;

/// Changes of a view's size that no torrent explains, after which it is not relied on: users write rules that
/// refill one of rTorrent's own views every few seconds.
const VIEW_UNEXPLAINED_MAX: u32 = 3;
/// Torrents up to which a predicate is tried on all of them at each poll.
const ROWS_EVERY_POLL: u64 = 1000;
/// Rows on which a predicate is tried at each poll on average, if there are more.
pub(super) const ROWS_PER_POLL: u64 = 500;
/// Full listings in a row that leave out the fixed columns; then one reads everything.
const REDUCED_MAX: u32 = 9;
/// Torrents up to which every full listing reads everything: there is nothing to save.
const REDUCED_FROM: u64 = 500;

/// The last listing, as far as listings of changes are compared with it.
#[derive(Default)]
pub(super) struct ChangeTracker {
    known: HashMap<InfoHash, KnownTorrent>,
    /// The counters at the end of the last poll; `None` if it failed.
    pub(super) last: Option<Counters>,
    /// Torrents that moved bytes or were hash-checked in the last poll.
    pub(super) moving: BTreeSet<InfoHash>,
    /// Bytes moved between the last two polls.
    has_moved: bool,
    /// Time by rTorrent's clock up to which every change of state is known.
    states_known_at: Option<i64>,
    polls_since_states: u64,
    polls_since_moving: u64,
    /// Full listings without the fixed columns since the last whole one.
    reduced: u32,
    views: ViewSizes,
}

/// How far the sizes of the views can be relied on, in one run of rTorrent.
#[derive(Default)]
struct ViewSizes {
    pid: Option<i64>,
    /// Size of each view minus the torrents that belong into it, when all were read last.
    offsets: Option<[i64; VIEWS.len()]>,
    unexplained: [u32; VIEWS.len()],
}

impl ViewSizes {
    fn record(&mut self, raw: &RawListing) {
        if self.pid != raw.counters.pid {
            // The next run may have another config, with other rules for its views.
            *self = Self { pid: raw.counters.pid, ..Self::default() };
        }
        let count = |is: fn(&TorrentRow) -> bool| raw.rows.values().filter(|row| is(row)).count();
        let counts = [raw.rows.len(), count(|row| row.state), count(|row| row.is_active), count(|row| row.complete)];
        let mut offsets = [0; VIEWS.len()];
        for ((offset, size), count) in offsets.iter_mut().zip(raw.counters.views).zip(counts) {
            *offset = i64::try_from(size.unwrap_or(0)).unwrap_or(0) - i64::try_from(count).unwrap_or(0);
        }
        if let Some(before) = self.offsets {
            for (unexplained, (before, now)) in self.unexplained.iter_mut().zip(before.iter().zip(&offsets)) {
                *unexplained += u32::from(before != now);
            }
        }
        self.offsets = Some(offsets);
    }

    /// Returns whether the view at this place of [`VIEWS`] changes with its torrents and not otherwise.
    fn can_be_trusted(&self, place: usize) -> bool {
        // `main` holds every torrent by definition, and no rule of a user fills it.
        place == 0 || self.unexplained[place] < VIEW_UNEXPLAINED_MAX
    }
}

/// A torrent as the last listing that held it showed it.
struct KnownTorrent {
    load: String,
    is_started: bool,
    is_active: bool,
    is_complete: bool,
    started: u64,
    finished: u64,
    fixed: FixedColumns,
}

impl KnownTorrent {
    fn of(row: &TorrentRow) -> Self {
        Self {
            load: row.local_id.clone(),
            is_started: row.state,
            is_active: row.is_active,
            is_complete: row.complete,
            started: row.started,
            finished: row.finished,
            fixed: row.fixed.clone(),
        }
    }

    fn is_load_of(&self, row: &TorrentRow) -> bool {
        !self.load.is_empty() && self.load == row.local_id
    }

    fn record_state(&mut self, row: &TorrentRow) {
        self.is_started = row.state;
        self.is_active = row.is_active;
        self.is_complete = row.complete;
        (self.started, self.finished) = (row.started, row.finished);
    }
}

impl ChangeTracker {
    /// Returns whether a full listing may leave out the columns that are fixed for each load.
    pub(super) fn may_skip_fixed_columns(&self, probe: &Probe) -> bool {
        let is_worth_it = |last: &Counters| last.count() > Some(REDUCED_FROM);
        self.reduced < REDUCED_MAX
            && self.last.is_some_and(|last| last.pid == probe.pid && last.pid.is_some() && is_worth_it(&last))
    }

    /// Fills the columns that a reduced listing left out; false if a torrent is not known as it is now.
    pub(super) fn fill_in(&self, raw: &mut RawListing) -> bool {
        if self.last.is_none_or(|last| last.pid != raw.counters.pid) {
            return false;
        }
        raw.rows.iter_mut().all(|(hash, row)| {
            let known = self.known.get(hash).filter(|known| known.is_load_of(row));
            // The times follow from the state, so in another state they are not known.
            let known = known.filter(|known| known.is_complete == row.complete && known.is_started == row.state);
            if let Some(known) = known {
                row.fixed.clone_from(&known.fixed);
                (row.started, row.finished) = (known.started, known.finished);
            }
            known.is_some()
        })
    }

    /// Records a full listing.
    pub(super) fn record_full(&mut self, raw: &RawListing) {
        match raw.columns {
            Columns::All => {
                self.known = raw.rows.iter().map(|(hash, row)| (*hash, KnownTorrent::of(row))).collect();
                self.reduced = 0;
            }
            Columns::Changing => {
                self.known.retain(|hash, _| raw.rows.contains_key(hash));
                for (hash, row) in &raw.rows {
                    if let Some(known) = self.known.get_mut(hash) {
                        known.record_state(row);
                    }
                }
                self.reduced += 1;
            }
        }
        if raw.complete {
            // A listing with gaps would make views look as if a rule had changed them.
            self.views.record(raw);
        }
        // The next listing of changes cannot build on one with gaps.
        self.has_moved = self.last.is_none_or(|last| last.moved_bytes() != raw.counters.moved_bytes());
        self.moving = moving(&raw.rows).collect();
        self.last = raw.complete.then_some(raw.counters);
        self.states_known_at = raw.counters.time;
        self.polls_since_states = 0;
        self.polls_since_moving = 0;
    }

    /// Records a listing of changes that is explained.
    ///
    /// `unread` are torrents that have come to rest and whose last numbers are still to be read.
    pub(super) fn record_changes(
        &mut self,
        counters: Counters,
        rows: &BTreeMap<InfoHash, TorrentRow>,
        unread: BTreeSet<InfoHash>,
        read: ReadParts,
    ) {
        self.has_moved = read.before.moved_bytes() != counters.moved_bytes();
        // What is still to be read counts as moving, so that the next poll names it.
        self.moving = moving(rows).chain(unread).collect();
        self.last = Some(counters);
        self.polls_since_states += 1;
        self.polls_since_moving = if read.has_moving { 0 } else { self.polls_since_moving + 1 };
        if let Some(known_at) = read.states_at {
            self.states_known_at = known_at;
            self.polls_since_states = 0;
        }
    }

    /// Returns whether what moves bytes is to be read in this poll.
    pub(super) fn is_moving_due(&self, active: u64) -> bool {
        self.has_moved || !self.moving.is_empty() || is_due(self.polls_since_moving, active)
    }

    /// Returns the time since which changes of state are to be read in this poll; `None` if none are.
    pub(super) fn states_due(&self, count: u64) -> Option<i64> {
        self.states_known_at.filter(|_| is_due(self.polls_since_states, count))
    }

    /// Returns the view that holds what moves bytes.
    pub(super) fn view_of_moving(&self, probe: &Probe) -> Option<&'static str> {
        match (self.views.can_be_trusted(2), probe.has_filtered) {
            (true, _) => Some("active"),
            (false, true) => Some("main"),
            (false, false) => None,
        }
    }

    /// Fills the fixed columns of `rows`, and returns whether they explain every change of the counters. If not,
    /// something happened that they do not show.
    pub(super) fn explain(
        &mut self,
        before: &Counters,
        now: &Counters,
        rows: &mut BTreeMap<InfoHash, TorrentRow>,
    ) -> bool {
        if before.pid != now.pid {
            return false;
        }
        let mut deltas = [0_i64; VIEWS.len()];
        for (hash, row) in rows {
            // Another load was added meanwhile, and its fixed columns are not among the rows.
            let Some(known) = self.known.get_mut(hash).filter(|known| known.is_load_of(row)) else { return false };
            let change = |was: bool, is: bool| i64::from(is) - i64::from(was);
            deltas[1] += change(known.is_started, row.state);
            deltas[2] += change(known.is_active, row.is_active);
            deltas[3] += change(known.is_complete, row.complete);
            known.record_state(row);
            row.fixed.clone_from(&known.fixed);
        }
        let sizes = before.views.iter().zip(&now.views).zip(deltas).enumerate();
        sizes.into_iter().all(|(place, ((was, is), delta))| match (was, is) {
            _ if !self.views.can_be_trusted(place) => true,
            (Some(was), Some(is)) => was.checked_add_signed(delta) == Some(*is),
            (was, is) => was == is,
        })
    }
}

fn moving(rows: &BTreeMap<InfoHash, TorrentRow>) -> impl Iterator<Item = InfoHash> {
    rows.iter().filter(|(_, row)| row.is_moving()).map(|(hash, _)| *hash)
}

/// The extent of a listing of changes.
pub(super) struct ReadParts {
    /// The counters of the poll before.
    pub before: Counters,
    /// Everything that moves bytes.
    pub has_moving: bool,
    /// Every change of state up to this time of rTorrent's; `None` if none were read.
    pub states_at: Option<Option<i64>>,
}

/// Returns whether a predicate over so many rows is to be tried, after so many polls without it.
fn is_due(polls: u64, rows: u64) -> bool {
    rows > 0 && (rows <= ROWS_EVERY_POLL || polls + 1 >= rows.div_ceil(ROWS_PER_POLL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Covers;

    const A: InfoHash = InfoHash::V1([0xaa; 20]);

    #[test]
    fn a_view_that_is_filled_by_a_rule_of_a_user_is_not_relied_on() {
        let seen = |size: u64, pid| {
            let row = TorrentRow { state: true, is_active: true, ..TorrentRow::default() };
            let views = [Some(1), Some(1), Some(size), Some(0)];
            let counters = Counters { pid: Some(pid), views, ..Counters::default() };
            let rows = BTreeMap::from([(A, row)]);
            RawListing { rows, counters, complete: true, covers: Covers::All, columns: Columns::All }
        };
        let mut views = ViewSizes::default();
        for _ in 0..5 {
            views.record(&seen(0, 7));
        }
        assert!(views.can_be_trusted(2), "wrong, and always by as much");
        for size in [1, 0, 1] {
            assert!(views.can_be_trusted(2));
            views.record(&seen(size, 7));
        }
        assert!(!views.can_be_trusted(2) && views.can_be_trusted(1) && views.can_be_trusted(0));
        views.record(&seen(1, 8));
        assert!(views.can_be_trusted(2), "another rTorrent");
    }

    /// A torrent in short: `r` wants to run, `a` does, `c` is complete.
    fn row(words: &str, load: &str) -> TorrentRow {
        let has = |letter| words.contains(letter);
        TorrentRow {
            fixed: FixedColumns { name: "name".to_owned(), ..FixedColumns::default() },
            state: has('r'),
            is_active: has('a'),
            complete: has('c'),
            local_id: load.to_owned(),
            ..TorrentRow::default()
        }
    }

    fn counters(views: [u64; 4]) -> Counters {
        Counters { pid: Some(7), views: views.map(Some), ..Counters::default() }
    }

    #[test]
    fn sizes_that_the_rows_do_not_explain_betray_what_was_not_seen() {
        //   known, seen (None: no row), sizes before, sizes now (all, started, active, complete)
        for (known, seen, before, now, expected) in [
            ("ra", None, [9, 5, 4, 3], [9, 5, 4, 3], true),
            ("ra", Some("ra"), [9, 5, 4, 3], [9, 5, 4, 3], true),
            ("ra", Some("rac"), [9, 5, 4, 3], [9, 5, 4, 4], true),
            ("ra", Some(""), [9, 5, 4, 3], [9, 4, 3, 3], true),
            ("", Some("ra"), [9, 5, 4, 3], [9, 6, 5, 3], true),
            ("ra", Some(""), [9, 5, 4, 3], [9, 5, 4, 3], false),
            ("ra", None, [9, 5, 4, 3], [10, 5, 4, 3], false),
            ("ra", None, [9, 5, 4, 3], [8, 4, 3, 3], false),
            ("ra", None, [9, 5, 4, 3], [9, 6, 4, 3], false),
            ("ra", None, [9, 5, 4, 3], [9, 5, 3, 3], false),
            ("ra", Some("ra"), [9, 5, 4, 3], [9, 5, 4, 4], false),
        ] {
            let mut tracker = ChangeTracker {
                known: HashMap::from([(A, KnownTorrent::of(&row(known, "1")))]),
                ..ChangeTracker::default()
            };
            let row_of = |seen| (A, TorrentRow { fixed: FixedColumns::default(), ..row(seen, "1") });
            let mut rows: BTreeMap<_, _> = seen.map(row_of).into_iter().collect();
            let is_explained = tracker.explain(&counters(before), &counters(now), &mut rows);
            assert_eq!(is_explained, expected, "{known} {seen:?} {before:?} {now:?}");
            assert!(!expected || rows.values().all(|row| row.fixed.name == "name"), "what is known is added");
        }
    }

    #[test]
    fn another_load_or_another_process_is_never_explained() {
        let tracker = || ChangeTracker {
            known: HashMap::from([(A, KnownTorrent::of(&row("ra", "1")))]),
            ..ChangeTracker::default()
        };
        let explains = |mut tracker: ChangeTracker, before: &Counters, load: &str| {
            tracker.explain(before, &counters([1, 1, 1, 0]), &mut BTreeMap::from([(A, row("ra", load))]))
        };
        let before = counters([1, 1, 1, 0]);
        assert!(explains(tracker(), &before, "1"));
        assert!(!explains(tracker(), &before, "2"));
        assert!(!explains(tracker(), &before, ""));
        assert!(!explains(tracker(), &Counters { pid: Some(8), ..before }, "1"));
        assert!(!explains(ChangeTracker::default(), &before, "1"));
    }
}
