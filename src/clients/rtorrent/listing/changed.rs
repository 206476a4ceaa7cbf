//! Listings of changes: what can have changed since the last poll, at next to no cost.
//!
//! A listing costs rTorrent rows times columns, and each row that a predicate is tried on costs about as much
//! as a value. So nothing is tried on all torrents that need not be:
//!
//! - The sizes of the views that rTorrent keeps by itself show that a torrent was added or removed (`main`),
//!   started or stopped (`started`), began or ceased to run (`active`), was completed (`complete`). If a size
//!   changed otherwise than the rows explain, or the process id, a torrent or the load of one is not known,
//!   all torrents are read, in the same poll.
//! - What moves bytes is in `active`. It is read at each poll while rTorrent's own counters move; else
//!   [`ROWS_PER_POLL`](super::change_tracker) rows at a time on average, because no counter is known to count everything. What is
//!   hash-checked is in `hashing`.
//! - What has left these views is read once more by its hash, so that its last numbers are known.
//! - One torrent that stops while another starts leaves every size unchanged. It is found by the time of the
//!   last change of state, a predicate tried on as many rows on average: the fewer torrents, the more often.
//!
//! Label, priority, directory, message and the numbers of idle torrents show in none of these. They wait for
//! the full listing, unless their torrents are named. Views go stale, so the full listing decides what is true.
//!
//! A server without `d.multicall.filtered` is asked for all rows of `active` instead, and finds the swapped
//! states by the full listing alone.
//!
//! A torrent is named by calls with its hash as the target, never in a predicate: at 5,000 torrents that is a
//! third of the cost. Predicates hold nothing but constants and numbers.

use std::collections::{BTreeMap, BTreeSet};

use super::super::Access;
use super::super::calls::{Answers, Call, Cell, Fault};
use super::super::map::{Field, TorrentRow};
use super::super::probe::Probe;
use super::super::transport::WireFormat;
use super::change_tracker::ReadParts;
use super::counters::Counters;
use super::{Columns, ROW_BYTES_AT_FIRST, RawListing, exchange, format, part_bytes_max, with_columns};
use crate::model::{Covers, InfoHash};
use crate::port::ClientError;

/// Torrents that are read by their hashes in one poll; of more, all are read.
const NAMED_MAX: usize = 32;
/// Torrents that came to rest and are read by their hashes in one poll; the others follow in the next ones.
const RESTED_MAX: usize = 8;
/// rTorrent's clock has whole seconds, and what happens within a call may bear the one before.
const TIME_MARGIN_SECONDS: i64 = 2;

/// The content of one request, besides the counters and what is hash-checked.
#[derive(Clone, Debug, Default, PartialEq)]
struct Query {
    /// The view of which the rows that move bytes are read.
    moving: Option<&'static str>,
    /// The time since which changes of state are read.
    states_since: Option<i64>,
    named: BTreeSet<InfoHash>,
}

impl Query {
    fn calls(&self, probe: &Probe, fields: &[Field]) -> Vec<Call> {
        // Of many torrents that wait for their check only the one that is being checked changes.
        let hashing = match probe.has_filtered {
            true => Call::global("d.multicall.filtered").text("hashing").text(CHECKED),
            false => Call::global("d.multicall2").text("hashing"),
        };
        let mut calls = Counters::calls_with(with_columns(hashing, fields));
        if let Some(view) = self.moving {
            let listing = match probe.has_filtered {
                true => Call::global("d.multicall.filtered").text(view).text(MOVING),
                false => Call::global("d.multicall2").text(view),
            };
            calls.push(with_columns(listing, fields));
        }
        if let Some(since) = self.states_since {
            let listing = Call::global("d.multicall.filtered").text("main").text(changed_since(since));
            calls.push(with_columns(listing, fields));
        }
        for hash in &self.named {
            calls.extend(fields.iter().map(|field| field.call(*hash)));
        }
        calls
    }
}

const MOVING: &str = "or=d.up.rate=,d.down.rate=";
const CHECKED: &str = "d.is_hash_checking=";

fn changed_since(time: i64) -> String {
    format!("greater=d.state_changed=,value={time}")
}

/// Reads what can have changed; `None` if only a full listing shows what happened.
pub(super) async fn read(
    access: &Access<'_>,
    probe: &Probe,
    named: &BTreeSet<InfoHash>,
) -> Result<Option<RawListing>, ClientError> {
    let Some(Start { before, query, moving_before }) = start(access, probe, named) else { return Ok(None) };
    // Unless this poll ends well, the next one reads everything.
    access.client.state().listing.changes.last = None;
    let short_until = access.client.state().listing.long_texts.short_until(probe.pid);
    let mut fields = probe.fields(&access.client.settings.extra, short_until);
    fields.retain(|field| !field.is_fixed());
    if !does_moving_fit(access, probe, query.moving, &before).await? {
        return Ok(None);
    }
    let Some(mut answer) = ask(access, probe, &query, &fields).await? else { return Ok(None) };
    let mut has_moving = query.moving.is_some();
    let states_at = query.states_since.map(|_| answer.counters.time);

    // What moved before and is not among the rows has come to rest: its last numbers are read by its hash.
    let mut rested: BTreeSet<InfoHash> =
        moving_before.into_iter().filter(|hash| !answer.rows.contains_key(hash)).collect();
    let later = rested.iter().nth(RESTED_MAX).copied().map(|from| rested.split_off(&from)).unwrap_or_default();
    // The counters moved although nothing that moves was read: something began since, and shows in this very poll.
    let has_begun = !has_moving && before.moved_bytes() != answer.counters.moved_bytes();
    let view = access.client.state().listing.changes.view_of_moving(probe).filter(|_| has_begun);
    let follow_up = Query { moving: view, states_since: None, named: rested };
    if follow_up != Query::default() {
        if !does_moving_fit(access, probe, follow_up.moving, &answer.counters).await? {
            return Ok(None);
        }
        has_moving |= follow_up.moving.is_some();
        let Some(more) = ask(access, probe, &follow_up, &fields).await? else { return Ok(None) };
        answer.broken += more.broken;
        answer.rows.extend(more.rows);
        answer.counters = more.counters;
    }
    let ChangeReader { mut rows, counters, broken, .. } = answer;
    let changes = &mut access.client.state().listing.changes;
    // A row that cannot be read would leave a change of a view unexplained.
    if broken > 0 || !changes.explain(&before, &counters, &mut rows) {
        return Ok(None);
    }
    changes.record_changes(counters, &rows, later, ReadParts { before, has_moving, states_at });
    Ok(Some(RawListing { rows, counters, complete: false, covers: Covers::Changed, columns: Columns::Changing }))
}

/// Where a listing of changes begins.
struct Start {
    /// The counters of the last poll.
    before: Counters,
    query: Query,
    moving_before: BTreeSet<InfoHash>,
}

/// `None` if there is no poll to build on, or too many torrents are named.
fn start(access: &Access<'_>, probe: &Probe, named: &BTreeSet<InfoHash>) -> Option<Start> {
    let state = access.client.state();
    let (changes, row_bytes) = (&state.listing.changes, state.listing.row_bytes);
    let before = changes.last.filter(|last| last.pid == probe.pid)?;
    let [count, _, active, _] = before.views;
    let (count, active) = (count?, active?);
    let states_since = changes.states_due(count).filter(|_| fits(access, count, row_bytes) && probe.has_filtered);
    let query = Query {
        moving: changes.view_of_moving(probe).filter(|_| changes.is_moving_due(active)),
        // Read again rather than missed: a torrent that shows twice is the same in both.
        states_since: states_since.map(|time| time - TIME_MARGIN_SECONDS),
        named: named.iter().filter(|hash| matches!(hash, InfoHash::V1(_))).copied().collect(),
    };
    (query.named.len() <= NAMED_MAX).then(|| Start { before, query, moving_before: changes.moving.clone() })
}

/// Returns whether the rows of so many torrents fit into one answer.
fn fits(access: &Access<'_>, rows: u64, row_bytes: Option<(WireFormat, usize)>) -> bool {
    let row_bytes = row_bytes.map_or(ROW_BYTES_AT_FIRST, |(_, bytes)| bytes);
    usize::try_from(rows).unwrap_or(usize::MAX).saturating_mul(row_bytes) <= part_bytes_max(access)
}

/// Returns whether what moves bytes fits into one answer. Where more torrents run than that, those that move
/// are counted first.
async fn does_moving_fit(
    access: &Access<'_>,
    probe: &Probe,
    view: Option<&'static str>,
    counters: &Counters,
) -> Result<bool, ClientError> {
    let Some(view) = view else { return Ok(true) };
    let row_bytes = access.client.state().listing.row_bytes;
    let [_, _, active, _] = counters.views;
    if active.is_some_and(|active| fits(access, active, row_bytes)) {
        return Ok(true);
    }
    if !probe.has_filtered {
        return Ok(false);
    }
    // Hashes alone are short, so counting is safe whatever their number.
    let answers = access.call(&[hashes_of_moving(view)]).await?;
    match answers.into_iter().next() {
        Some(Ok(hashes)) => Ok(fits(access, hashes.array().len() as u64, row_bytes)),
        Some(Err(fault)) => Err(access.client.fault(&fault)),
        None => Ok(false),
    }
}

fn hashes_of_moving(view: &'static str) -> Call {
    Call::global("d.multicall.filtered").text(view).text(MOVING).text("d.hash=")
}

/// One exchange; `None` if a named torrent is gone, or JSON is refused.
async fn ask(
    access: &Access<'_>,
    probe: &Probe,
    query: &Query,
    fields: &[Field],
) -> Result<Option<ChangeReader>, ClientError> {
    let settings = &access.client.settings;
    let calls = query.calls(probe, fields);
    let names = calls.len() - query.named.len() * fields.len();
    let reader = ChangeReader::new(fields, names, &query.named, settings.extra.len());
    let format = format(access, probe);
    let Some((reader, _)) = exchange(access, probe, format, &calls, settings.timeout, reader).await? else {
        return Ok(None);
    };
    if let Some(fault) = reader.fault {
        // A column or a predicate is refused that this server had: it may have become another one.
        access.client.state().probe = None;
        return Err(access.client.fault(&fault));
    }
    Ok(reader.is_nothing_gone.then(|| reader.with_named()))
}

/// Reads one answer.
struct ChangeReader {
    fields: Vec<Field>,
    extra: usize,
    counters: Counters,
    rows: BTreeMap<InfoHash, TorrentRow>,
    /// The place of the first call that has a torrent as its target.
    names: usize,
    named: Vec<(InfoHash, TorrentRow)>,
    broken: u64,
    is_nothing_gone: bool,
    fault: Option<Fault>,
}

impl ChangeReader {
    fn new(fields: &[Field], names: usize, named: &BTreeSet<InfoHash>, extra: usize) -> Self {
        let empty = || TorrentRow::new(extra);
        Self {
            fields: fields.to_vec(),
            extra,
            counters: Counters::default(),
            rows: BTreeMap::new(),
            names,
            named: named.iter().map(|hash| (*hash, empty())).collect(),
            broken: 0,
            is_nothing_gone: true,
            fault: None,
        }
    }

    fn with_named(mut self) -> Self {
        self.rows.extend(std::mem::take(&mut self.named));
        self
    }

    fn read(&self, cells: &[Cell<'_>]) -> Option<(InfoHash, TorrentRow)> {
        let (Cell::Text(hash), cells) = cells.split_first()? else { return None };
        let hash = InfoHash::from_hex(hash).ok()?;
        let mut row = TorrentRow::new(self.extra);
        (cells.len() == self.fields.len()).then_some(())?;
        self.fields.iter().zip(cells).try_for_each(|(field, cell)| field.set(&mut row, cell))?;
        Some((hash, row))
    }
}

impl Answers for ChangeReader {
    fn scalar(&mut self, call: usize, cell: Cell<'_>) {
        let Some(place) = call.checked_sub(self.names) else { return self.counters.set(call, &cell) };
        let row = self.named.get_mut(place / self.fields.len());
        let is_set = row.is_some_and(|(_, row)| self.fields[place % self.fields.len()].set(row, &cell).is_some());
        self.broken += u64::from(!is_set);
    }

    fn row(&mut self, _: usize, cells: &[Cell<'_>]) {
        match self.read(cells) {
            // A torrent may be in several listings, and is the same in all.
            Some((hash, row)) => drop(self.rows.insert(hash, row)),
            None => self.broken += 1,
        }
    }

    fn broken_row(&mut self, _: usize) {
        self.broken += 1;
    }

    fn fault(&mut self, call: usize, fault: Fault) {
        if call >= self.names {
            // A named torrent that is gone is no failure, but only a full listing shows what became of it.
            self.is_nothing_gone = false;
        } else if call == Counters::ROWS || call >= Counters::CALLS {
            self.fault.get_or_insert(fault);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    const A: InfoHash = InfoHash::V1([0xaa; 20]);

    fn fields() -> Vec<Field> {
        let mut fields = Probe::of_tests(true).fields(&BTreeMap::new(), None);
        fields.retain(|field| !field.is_fixed());
        fields
    }

    /// Each call that lists, in short: its method, view, predicate.
    fn listings(query: &Query, probe: &Probe) -> Vec<String> {
        let text = |param: &super::super::super::calls::Param| match param {
            super::super::super::calls::Param::Text(text) => text.clone(),
            other => panic!("{other:?}"),
        };
        let calls = query.calls(probe, &fields());
        let listings = calls.iter().filter(|call| call.method.starts_with("d.multicall"));
        let in_short = |call: &Call| {
            let until = call.params.iter().position(|param| text(param) == "d.hash=").unwrap();
            let params: Vec<String> = call.params[1..until].iter().map(text).collect();
            format!("{} {}", call.method, params.join(" "))
        };
        listings.map(in_short).collect()
    }

    const HASHING: &str = "d.multicall.filtered hashing d.is_hash_checking=";

    #[test]
    fn nothing_is_tried_on_all_torrents_unless_it_is_due() {
        let filtered = Probe::of_tests(true);
        assert_eq!(listings(&Query::default(), &filtered), [HASHING]);
        let query = Query { moving: Some("active"), ..Query::default() };
        let moving = "d.multicall.filtered active or=d.up.rate=,d.down.rate=";
        assert_eq!(listings(&query, &filtered), [HASHING, moving]);
        let query = Query { states_since: Some(1_700_000_000), ..Query::default() };
        let states = "d.multicall.filtered main greater=d.state_changed=,value=1700000000";
        assert_eq!(listings(&query, &filtered), [HASHING, states]);
    }

    #[test]
    fn without_predicates_all_that_runs_is_read() {
        let query = Query { moving: Some("active"), ..Query::default() };
        assert_eq!(listings(&query, &Probe::of_tests(false)), ["d.multicall2 hashing", "d.multicall2 active"]);
    }

    #[test]
    fn a_torrent_is_named_by_a_target_and_never_in_a_predicate() {
        let query = Query { moving: Some("active"), states_since: Some(5), named: BTreeSet::from([A]) };
        let calls = query.calls(&Probe::of_tests(true), &fields());
        let hash = "AA".repeat(20);
        let mut targeted = 0;
        for call in &calls {
            for (place, param) in call.params.iter().enumerate() {
                if format!("{param:?}").contains(&hash) {
                    assert_eq!((place, format!("{param:?}")), (0, format!("Text(\"{hash}\")")));
                    targeted += 1;
                }
            }
        }
        assert_eq!(targeted, fields().len(), "each column once");
    }

    #[test]
    fn what_a_load_never_changes_is_not_asked_for_and_the_rest_is() {
        let asked: Vec<String> = fields().iter().map(Field::command).collect();
        for fixed in ["d.name=", "d.size_bytes=", "d.loaded_file="] {
            assert!(!asked.contains(&fixed.to_owned()), "{fixed}");
        }
        for needed in ["d.local_id=", "d.custom1=", "d.timestamp.finished=", "d.tracker_size="] {
            assert!(asked.contains(&needed.to_owned()), "{needed}");
        }
        assert!(fields().iter().any(|field| field.method() == "d.message"));
    }

    #[test]
    fn values_of_what_was_named_are_put_together_by_their_place() {
        let (fields, names) = (fields(), 20);
        let mut answer = ChangeReader::new(&fields, names, &BTreeSet::from([A, InfoHash::V1([0xbb; 20])]), 0);
        let place = fields.iter().position(|field| field.method() == "d.custom1").unwrap();
        for (torrent, label) in [(0, "one"), (1, "two")] {
            let call = names + torrent * fields.len() + place;
            answer.scalar(call, Cell::Text(Cow::Borrowed(label.as_bytes())));
        }
        assert_eq!(answer.broken, 0);
        answer.scalar(names, Cell::Null);
        assert_eq!(answer.broken, 1);
        let answer = answer.with_named();
        assert!(answer.rows.values().map(|row| row.custom1.as_str()).eq(["one", "two"]));
        let mut unreadable = ChangeReader::new(&fields, names, &BTreeSet::new(), 0);
        unreadable.row(1, &[Cell::Text(Cow::Borrowed(b"no hash"))]);
        assert_eq!((unreadable.broken, unreadable.rows.len()), (1, 0));
        let mut gone = ChangeReader::new(&fields, names, &BTreeSet::from([A]), 0);
        gone.fault(names + 3, Fault { code: -501, text: "Could not find info-hash.".to_owned() });
        assert!(!gone.is_nothing_gone && gone.fault.is_none());
    }
}
