//! The quick look: what can have changed since the last one, at next to no cost.
//!
//! What a look costs rTorrent is rows times columns, and each row that a predicate is tried on costs
//! about as much as a value. So nothing is tried on all torrents that need not be:
//!
//! - The sizes of the views that rTorrent keeps by itself betray a torrent that came or went (`main`), was
//!   started or stopped (`started`), runs or does not (`active`), was completed (`complete`). A size that
//!   moved otherwise than the rows explain, another process id, a torrent or a load of one that is
//!   not known: then all are read, in the same look.
//! - What moves bytes is in `active`, and is asked for at each look while any bytes move at all, by
//!   rTorrent's own counters; else [`ROWS_EACH_LOOK`] of them at a time on average, for no counter is known to
//!   count everything. What is hash-checked is in `hashing`.
//! - What has left these is read once more by its name, so that its last numbers are known.
//! - One torrent that stops while another starts leaves every size as it was. That is found by the time
//!   of the last change of state, which is tried on all torrents, as many at a time on average: the fewer
//!   torrents, the more often.
//!
//! Label, priority, directory, message and the numbers of idle torrents betray themselves by nothing:
//! they wait for the full listing, unless they are named. Views go stale, so the full listing, too,
//! decides what is true.
//!
//! A server without `d.multicall.filtered` is asked for all rows of `active` instead, and finds the last
//! case by the full listing alone.
//!
//! A torrent is named by a call with its hash as the target, never in a predicate: at 5,000 torrents
//! that is a third of the cost. Its hash is an [`InfoHash`], and predicates hold nothing but constants and numbers.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::calls::{Answers, Call, Cell, Fault, Unreadable};
use super::listing::{Numbers, PART_BYTES_MAX, ROW_BYTES_AT_FIRST, Reading, Seen, VIEWS, decode, with_columns};
use super::map::{Field, Lasting, Raw};
use super::probe::Probe;
use super::transport::Dialect;
use super::{Turn, jsonrpc, xmlrpc};
use crate::model::{Covers, InfoHash};
use crate::port::ClientError;

/// More than these are not read by name; all are, instead.
const NAMED_MAX: usize = 32;
/// Of what has come to rest so many are read by name at each look, and the others by the next ones.
const STILL_MAX: usize = 8;
/// A view that moved so often without a torrent that explains it is not rTorrent's own any more: people
/// write rules that fill it anew every few seconds.
const VIEW_ODDITIES_MAX: u32 = 3;
/// A predicate that concerns all may be tried at each look up to so many torrents.
const ROWS_AT_ONCE: u64 = 1000;
/// Of more, on so many at each look, on average.
const ROWS_EACH_LOOK: u64 = 500;
/// rTorrent's clock has whole seconds, and what happens within a call may bear the one before.
const TIME_MARGIN_SECONDS: i64 = 2;
/// Every so many full listings one is whole.
const LEAN_MAX: u32 = 9;
/// With up to so many torrents all are: there is nothing to be saved.
const WHOLE_UP_TO: u64 = 500;

#[derive(Default)]
pub(super) struct Memory {
    known: HashMap<InfoHash, Known>,
    /// As the last look ended; `None` if it did not end well.
    last: Option<Numbers>,
    /// Moved or were hash-checked in the last look.
    moving: BTreeSet<InfoHash>,
    /// Bytes moved between the last two looks.
    has_moved: bool,
    /// By rTorrent's clock: up to then every change of state is known.
    states_known_at: Option<i64>,
    looks_since_states: u64,
    looks_since_moving: u64,
    lean: u32,
    views: Views,
}

/// How far the sizes of the views can be gone by, in one run of rTorrent.
#[derive(Default)]
struct Views {
    pid: Option<i64>,
    /// By how much each was larger than what the torrents themselves say, when all were read last.
    offsets: Option<[i64; VIEWS.len()]>,
    oddities: [u32; VIEWS.len()],
}

impl Views {
    fn note(&mut self, seen: &Seen) {
        if self.pid != seen.numbers.pid {
            *self = Self { pid: seen.numbers.pid, ..Self::default() };
        }
        let count = |is: fn(&Raw) -> bool| seen.raws.values().filter(|raw| is(raw)).count();
        let counts = [seen.raws.len(), count(|raw| raw.state), count(|raw| raw.is_active), count(|raw| raw.complete)];
        let mut offsets = [0; VIEWS.len()];
        for ((offset, size), count) in offsets.iter_mut().zip(seen.numbers.views).zip(counts) {
            *offset = i64::try_from(size.unwrap_or(0)).unwrap_or(0) - i64::try_from(count).unwrap_or(0);
        }
        if let Some(before) = self.offsets {
            for (oddities, (before, now)) in self.oddities.iter_mut().zip(before.iter().zip(&offsets)) {
                *oddities += u32::from(before != now);
            }
        }
        self.offsets = Some(offsets);
    }

    /// Whether the view at this place of [`VIEWS`] moves with its torrents and not otherwise.
    fn are_true(&self, place: usize) -> bool {
        place == 0 || self.oddities[place] < VIEW_ODDITIES_MAX
    }
}

/// What is known of a torrent between the looks.
struct Known {
    load: String,
    is_started: bool,
    is_active: bool,
    is_complete: bool,
    started: u64,
    finished: u64,
    lasting: Lasting,
}

impl Known {
    fn of(raw: &Raw) -> Self {
        Self {
            load: raw.local_id.clone(),
            is_started: raw.state,
            is_active: raw.is_active,
            is_complete: raw.complete,
            started: raw.started,
            finished: raw.finished,
            lasting: raw.lasting(),
        }
    }

    fn is_load_of(&self, raw: &Raw) -> bool {
        !self.load.is_empty() && self.load == raw.local_id
    }

    fn note_state(&mut self, raw: &Raw) {
        self.is_started = raw.state;
        self.is_active = raw.is_active;
        self.is_complete = raw.complete;
        (self.started, self.finished) = (raw.started, raw.finished);
    }
}

impl Memory {
    /// Whether what does not change need not be read again.
    pub(super) fn is_lean_enough(&self, probe: &Probe) -> bool {
        let is_worth_it = |last: &Numbers| last.count() > Some(WHOLE_UP_TO);
        self.lean < LEAN_MAX
            && self.last.is_some_and(|last| last.pid == probe.pid && last.pid.is_some() && is_worth_it(&last))
    }

    /// Adds what is known to a lean listing; false if a torrent is not known as it is now.
    pub(super) fn complete(&self, seen: &mut Seen) -> bool {
        if self.last.is_none_or(|last| last.pid != seen.numbers.pid) {
            return false;
        }
        seen.raws.iter_mut().all(|(hash, raw)| {
            let known = self.known.get(hash).filter(|known| known.is_load_of(raw));
            let known = known.filter(|known| known.is_complete == raw.complete && known.is_started == raw.state);
            if let Some(known) = known {
                raw.set_lasting(&known.lasting);
                (raw.started, raw.finished) = (known.started, known.finished);
            }
            known.is_some()
        })
    }

    /// Keeps in mind what a listing of all showed.
    pub(super) fn note_all(&mut self, seen: &Seen) {
        match seen.reading {
            Reading::Whole => {
                self.known = seen.raws.iter().map(|(hash, raw)| (*hash, Known::of(raw))).collect();
                self.lean = 0;
            }
            Reading::Lean => {
                self.known.retain(|hash, _| seen.raws.contains_key(hash));
                for (hash, raw) in &seen.raws {
                    if let Some(known) = self.known.get_mut(hash) {
                        known.note_state(raw);
                    }
                }
                self.lean += 1;
            }
        }
        if seen.complete {
            self.views.note(seen);
        }
        // A listing with gaps is no ground to build on.
        self.note(seen.numbers, &seen.raws);
        self.last = self.last.filter(|_| seen.complete);
        self.states_known_at = seen.numbers.time;
        self.looks_since_states = 0;
        self.looks_since_moving = 0;
    }

    fn note(&mut self, numbers: Numbers, raws: &BTreeMap<InfoHash, Raw>) {
        self.has_moved = self.last.is_none_or(|last| moved(&last) != moved(&numbers));
        self.moving = raws.iter().filter(|(_, raw)| raw.is_moving()).map(|(hash, _)| *hash).collect();
        self.last = Some(numbers);
    }
}

/// All bytes that ever moved.
fn moved(numbers: &Numbers) -> [Option<u64>; 2] {
    let [_, _, _, _, down, up] = numbers.throttle;
    [down, up]
}

/// What is asked for in one exchange, besides the numbers and what is hash-checked.
#[derive(Clone, Debug, Default, PartialEq)]
struct Ask {
    /// What moves bytes, of this view.
    moving: Option<&'static str>,
    /// What has changed its state since then.
    states_since: Option<i64>,
    named: BTreeSet<InfoHash>,
}

impl Ask {
    fn calls(&self, probe: &Probe, fields: &[Field]) -> Vec<Call> {
        // Of many that wait for their check only the one that is being checked changes.
        let hashing = match probe.has_filtered {
            true => Call::global("d.multicall.filtered").text("hashing").text(CHECKED),
            false => Call::global("d.multicall2").text("hashing"),
        };
        let mut calls = Numbers::calls_with(with_columns(hashing, fields));
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
            calls.extend(fields.iter().map(|field| Call::column(*hash, field.method(), field.key())));
        }
        calls
    }
}

const MOVING: &str = "or=d.up.rate=,d.down.rate=";
const CHECKED: &str = "d.is_hash_checking=";

fn changed_since(time: i64) -> String {
    format!("greater=d.state_changed=,value={time}")
}

/// Looks at what can have changed; `None` if only a listing of all shows what happened.
pub(super) async fn look(
    turn: &Turn<'_>,
    probe: &Probe,
    named: &BTreeSet<InfoHash>,
) -> Result<Option<Seen>, ClientError> {
    let Some((before, mut ask, still)) = first_ask(turn, probe, named) else { return Ok(None) };
    // Unless this look ends well, the next one is of all.
    turn.client.memory().quick.last = None;
    let mut fields = probe.fields(&turn.client.settings.extra);
    fields.retain(|field| !field.is_lasting());
    if !moving_fit(turn, probe, ask.moving, &before).await? {
        return Ok(None);
    }
    let Some(mut answer) = exchange(turn, probe, &ask, &fields).await? else { return Ok(None) };
    let (mut asked_moving, asked_states) = (ask.moving.is_some(), ask.states_since.is_some());
    let states_known_at = answer.numbers.time;
    let mut rest: BTreeSet<InfoHash> = still.iter().filter(|hash| !answer.raws.contains_key(hash)).copied().collect();
    let later = rest.iter().nth(STILL_MAX).copied().map(|from| rest.split_off(&from)).unwrap_or_default();
    let view = turn.client.memory().quick.view_of_moving(probe);
    let has_begun = !asked_moving && moved(&before) != moved(&answer.numbers);
    let again = Ask { moving: view.filter(|_| has_begun), states_since: None, named: rest };
    if again != Ask::default() {
        if !moving_fit(turn, probe, again.moving, &answer.numbers).await? {
            return Ok(None);
        }
        ask = again;
        asked_moving |= ask.moving.is_some();
        let Some(more) = exchange(turn, probe, &ask, &fields).await? else { return Ok(None) };
        answer.raws.extend(more.raws);
        answer.numbers = more.numbers;
    }
    let memory = &mut turn.client.memory().quick;
    if !memory.explain(&before, &mut answer) {
        return Ok(None);
    }
    memory.note(answer.numbers, &answer.raws);
    memory.moving.extend(later);
    memory.has_moved = moved(&before) != moved(&answer.numbers);
    memory.looks_since_states += 1;
    memory.looks_since_moving = if asked_moving { 0 } else { memory.looks_since_moving + 1 };
    if asked_states {
        memory.states_known_at = states_known_at;
        memory.looks_since_states = 0;
    }
    let Answer { raws, numbers, .. } = answer;
    Ok(Some(Seen { raws, numbers, complete: false, covers: Covers::Changed, reading: Reading::Lean }))
}

/// What to begin with: the numbers of the last look, the question, and what was moving then.
fn first_ask(turn: &Turn<'_>, probe: &Probe, named: &BTreeSet<InfoHash>) -> Option<(Numbers, Ask, BTreeSet<InfoHash>)> {
    let memory = turn.client.memory();
    let quick = &memory.quick;
    let before = quick.last.filter(|last| last.pid == probe.pid)?;
    let [count, _, active, _] = before.views;
    let (count, active) = (count?, active?);
    let fits = |rows| fits(rows, memory.listing.row_bytes);
    let is_due =
        |looks: u64, rows: u64| rows > 0 && (rows <= ROWS_AT_ONCE || looks + 1 >= rows.div_ceil(ROWS_EACH_LOOK));
    let are_states_due = is_due(quick.looks_since_states, count);
    let states_since = quick.states_known_at.filter(|_| are_states_due && fits(count) && probe.has_filtered);
    let are_moving_due = quick.has_moved || !quick.moving.is_empty() || is_due(quick.looks_since_moving, active);
    let ask = Ask {
        moving: quick.view_of_moving(probe).filter(|_| are_moving_due),
        states_since: states_since.map(|time| time - TIME_MARGIN_SECONDS),
        named: named.iter().filter(|hash| matches!(hash, InfoHash::V1(_))).copied().collect(),
    };
    (ask.named.len() <= NAMED_MAX).then(|| (before, ask, quick.moving.clone()))
}

/// Whether the rows of so many torrents may come in one answer.
fn fits(rows: u64, row_bytes: Option<(Dialect, usize)>) -> bool {
    let row_bytes = row_bytes.map_or(ROW_BYTES_AT_FIRST, |(_, bytes)| bytes);
    usize::try_from(rows).unwrap_or(usize::MAX).saturating_mul(row_bytes) <= PART_BYTES_MAX
}

/// Whether what moves may be read in one answer. Where more run than that, those that move are counted first.
async fn moving_fit(
    turn: &Turn<'_>,
    probe: &Probe,
    view: Option<&'static str>,
    numbers: &Numbers,
) -> Result<bool, ClientError> {
    let Some(view) = view else { return Ok(true) };
    let row_bytes = turn.client.memory().listing.row_bytes;
    let [_, _, active, _] = numbers.views;
    if active.is_some_and(|active| fits(active, row_bytes)) {
        return Ok(true);
    }
    if !probe.has_filtered {
        return Ok(false);
    }
    let answers = turn.ask(&[hashes_of_moving(view)]).await?;
    match answers.into_iter().next() {
        Some(Ok(hashes)) => Ok(fits(hashes.array().len() as u64, row_bytes)),
        Some(Err(fault)) => Err(turn.client.fault(&fault)),
        None => Ok(false),
    }
}

fn hashes_of_moving(view: &'static str) -> Call {
    Call::global("d.multicall.filtered").text(view).text(MOVING).text("d.hash=")
}

impl Memory {
    /// Where to look for what moves.
    fn view_of_moving(&self, probe: &Probe) -> Option<&'static str> {
        match (self.views.are_true(2), probe.has_filtered) {
            (true, _) => Some("active"),
            (false, true) => Some("main"),
            (false, false) => None,
        }
    }

    /// Adds what is known to the rows; false if they are not all that happened.
    fn explain(&mut self, before: &Numbers, answer: &mut Answer) -> bool {
        if answer.broken > 0 || before.pid != answer.numbers.pid {
            return false;
        }
        let mut deltas = [0_i64; VIEWS.len()];
        for (hash, raw) in &mut answer.raws {
            let Some(known) = self.known.get_mut(hash).filter(|known| known.is_load_of(raw)) else { return false };
            let change = |was: bool, is: bool| i64::from(is) - i64::from(was);
            deltas[1] += change(known.is_started, raw.state);
            deltas[2] += change(known.is_active, raw.is_active);
            deltas[3] += change(known.is_complete, raw.complete);
            known.note_state(raw);
            raw.set_lasting(&known.lasting);
        }
        let sizes = before.views.iter().zip(&answer.numbers.views).zip(deltas).enumerate();
        sizes.into_iter().all(|(place, ((was, is), delta))| match (was, is) {
            _ if !self.views.are_true(place) => true,
            (Some(was), Some(is)) => was.checked_add_signed(delta) == Some(*is),
            (was, is) => was == is,
        })
    }
}

/// One exchange; `None` if something that was named is gone, or JSON is refused.
async fn exchange(turn: &Turn<'_>, probe: &Probe, ask: &Ask, fields: &[Field]) -> Result<Option<Answer>, ClientError> {
    let is_json = probe.has_json && turn.client.memory().listing.json_refused_by != Some(probe.pid);
    let dialect = if is_json { Dialect::Json } else { Dialect::Xml };
    let calls = ask.calls(probe, fields);
    let body = match dialect {
        Dialect::Xml => xmlrpc::write(&calls),
        Dialect::Json => jsonrpc::write(&calls).expect("a quick look's request has no bytes to send"),
    };
    let names = calls.len() - ask.named.len() * fields.len();
    let answer = turn.exchange(dialect, &body, turn.client.settings.timeout).await?;
    let reader = Answer::new(fields, names, &ask.named, turn.client.settings.extra.len());
    let (result, reader) = decode(dialect, answer, reader).await?;
    match result {
        Ok(()) => {}
        Err(Unreadable::Refused(_)) if is_json => {
            turn.client.memory().listing.json_refused_by = Some(probe.pid);
            return Ok(None);
        }
        Err(reason) => return Err(turn.client.unreadable(reason)),
    }
    if let Some(fault) = reader.fault {
        turn.client.memory().probe = None;
        return Err(turn.client.fault(&fault));
    }
    Ok(reader.is_nothing_gone.then(|| reader.with_named()))
}

/// What one exchange shows.
struct Answer {
    fields: Vec<Field>,
    extra: usize,
    numbers: Numbers,
    raws: BTreeMap<InfoHash, Raw>,
    /// The place of the first call that has a torrent as its target.
    names: usize,
    named: Vec<(InfoHash, Raw)>,
    broken: u64,
    is_nothing_gone: bool,
    fault: Option<Fault>,
}

impl Answer {
    fn new(fields: &[Field], names: usize, named: &BTreeSet<InfoHash>, extra: usize) -> Self {
        let empty = || Raw { extra: vec![None; extra], ..Raw::default() };
        Self {
            fields: fields.to_vec(),
            extra,
            numbers: Numbers::default(),
            raws: BTreeMap::new(),
            names,
            named: named.iter().map(|hash| (*hash, empty())).collect(),
            broken: 0,
            is_nothing_gone: true,
            fault: None,
        }
    }

    fn with_named(mut self) -> Self {
        self.raws.extend(std::mem::take(&mut self.named));
        self
    }

    fn read(&self, cells: &[Cell<'_>]) -> Option<(InfoHash, Raw)> {
        let (Cell::Text(hash), cells) = cells.split_first()? else { return None };
        let hash = InfoHash::from_hex(hash).ok()?;
        let mut raw = Raw { extra: vec![None; self.extra], ..Raw::default() };
        (cells.len() == self.fields.len()).then_some(())?;
        self.fields.iter().zip(cells).try_for_each(|(field, cell)| field.set(&mut raw, cell))?;
        Some((hash, raw))
    }
}

impl Answers for Answer {
    fn scalar(&mut self, call: usize, cell: Cell<'_>) {
        let Some(place) = call.checked_sub(self.names) else { return self.numbers.set(call, &cell) };
        let row = self.named.get_mut(place / self.fields.len());
        let is_set = row.is_some_and(|(_, raw)| self.fields[place % self.fields.len()].set(raw, &cell).is_some());
        self.broken += u64::from(!is_set);
    }

    fn row(&mut self, _: usize, cells: &[Cell<'_>]) {
        match self.read(cells) {
            // It may stand in several lists, and is the same in all.
            Some((hash, raw)) => drop(self.raws.insert(hash, raw)),
            None => self.broken += 1,
        }
    }

    fn broken_row(&mut self, _: usize) {
        self.broken += 1;
    }

    fn fault(&mut self, call: usize, fault: Fault) {
        if call >= self.names {
            self.is_nothing_gone = false;
        } else if call == Numbers::ROWS || call >= Numbers::CALLS {
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
        let mut fields = Probe::of_tests(true).fields(&BTreeMap::new());
        fields.retain(|field| !field.is_lasting());
        fields
    }

    /// Each call that lists, in short: its method, view, predicate.
    fn listings(ask: &Ask, probe: &Probe) -> Vec<String> {
        let text = |param: &super::super::calls::Param| match param {
            super::super::calls::Param::Text(text) => text.clone(),
            other => panic!("{other:?}"),
        };
        let calls = ask.calls(probe, &fields());
        let listings = calls.iter().filter(|call| call.method.starts_with("d.multicall"));
        let words = |call: &Call| {
            let until = call.params.iter().position(|param| text(param) == "d.hash=").unwrap();
            let params: Vec<String> = call.params[1..until].iter().map(text).collect();
            format!("{} {}", call.method, params.join(" "))
        };
        listings.map(words).collect()
    }

    const HASHING: &str = "d.multicall.filtered hashing d.is_hash_checking=";

    #[test]
    fn nothing_is_tried_on_all_torrents_unless_it_is_due() {
        let filtered = Probe::of_tests(true);
        assert_eq!(listings(&Ask::default(), &filtered), [HASHING]);
        let ask = Ask { moving: Some("active"), ..Ask::default() };
        let moving = "d.multicall.filtered active or=d.up.rate=,d.down.rate=";
        assert_eq!(listings(&ask, &filtered), [HASHING, moving]);
        let ask = Ask { states_since: Some(1_700_000_000), ..Ask::default() };
        let states = "d.multicall.filtered main greater=d.state_changed=,value=1700000000";
        assert_eq!(listings(&ask, &filtered), [HASHING, states]);
    }

    #[test]
    fn without_predicates_all_that_runs_is_read() {
        let ask = Ask { moving: Some("active"), ..Ask::default() };
        assert_eq!(listings(&ask, &Probe::of_tests(false)), ["d.multicall2 hashing", "d.multicall2 active"]);
    }

    #[test]
    fn a_torrent_is_named_by_a_target_and_never_in_a_predicate() {
        let ask = Ask { moving: Some("active"), states_since: Some(5), named: BTreeSet::from([A]) };
        let calls = ask.calls(&Probe::of_tests(true), &fields());
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
        for lasting in ["d.name=", "d.size_bytes=", "d.loaded_file="] {
            assert!(!asked.contains(&lasting.to_owned()), "{lasting}");
        }
        for needed in ["d.local_id=", "d.custom1=", "d.message=", "d.timestamp.finished=", "d.tracker_size="] {
            assert!(asked.contains(&needed.to_owned()), "{needed}");
        }
    }

    #[test]
    fn a_view_that_somebody_fills_by_a_rule_of_his_own_is_not_gone_by() {
        let seen = |size: u64, pid| {
            let raw = Raw { state: true, is_active: true, ..Raw::default() };
            let views = [Some(1), Some(1), Some(size), Some(0)];
            let numbers = Numbers { pid: Some(pid), views, ..Numbers::default() };
            let raws = BTreeMap::from([(A, raw)]);
            Seen { raws, numbers, complete: true, covers: Covers::All, reading: Reading::Whole }
        };
        let mut views = Views::default();
        for _ in 0..5 {
            views.note(&seen(0, 7));
        }
        assert!(views.are_true(2), "wrong, and always by as much");
        for size in [1, 0, 1] {
            assert!(views.are_true(2));
            views.note(&seen(size, 7));
        }
        assert!(!views.are_true(2) && views.are_true(1) && views.are_true(0));
        views.note(&seen(1, 8));
        assert!(views.are_true(2), "another rTorrent");
    }

    /// A torrent in short: `r` wants to run, `a` does, `c` is complete.
    fn raw(words: &str, load: &str) -> Raw {
        let has = |letter| words.contains(letter);
        let name = "name".to_owned();
        Raw {
            name,
            state: has('r'),
            is_active: has('a'),
            complete: has('c'),
            local_id: load.to_owned(),
            ..Raw::default()
        }
    }

    fn numbers(views: [u64; 4]) -> Numbers {
        Numbers { pid: Some(7), views: views.map(Some), ..Numbers::default() }
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
            let mut memory = Memory { known: HashMap::from([(A, Known::of(&raw(known, "1")))]), ..Memory::default() };
            let mut answer = Answer::new(&fields(), 0, &BTreeSet::new(), 0);
            answer.numbers = numbers(now);
            answer.raws.extend(seen.map(|seen| (A, Raw { name: String::new(), ..raw(seen, "1") })));
            let is_explained = memory.explain(&numbers(before), &mut answer);
            assert_eq!(is_explained, expected, "{known} {seen:?} {before:?} {now:?}");
            assert!(!expected || answer.raws.values().all(|raw| raw.name == "name"), "what is known is added");
        }
    }

    #[test]
    fn another_load_another_process_or_an_unreadable_row_is_never_explained() {
        let memory = || Memory { known: HashMap::from([(A, Known::of(&raw("ra", "1")))]), ..Memory::default() };
        let answer = |load: &str| {
            let mut answer = Answer::new(&fields(), 0, &BTreeSet::new(), 0);
            answer.numbers = numbers([1, 1, 1, 0]);
            answer.raws.insert(A, raw("ra", load));
            answer
        };
        let before = numbers([1, 1, 1, 0]);
        assert!(memory().explain(&before, &mut answer("1")));
        assert!(!memory().explain(&before, &mut answer("2")));
        assert!(!memory().explain(&before, &mut answer("")));
        assert!(!memory().explain(&Numbers { pid: Some(8), ..before }, &mut answer("1")));
        assert!(!Memory::default().explain(&before, &mut answer("1")));
        let mut broken = answer("1");
        broken.row(1, &[Cell::Text(Cow::Borrowed(b"no hash"))]);
        assert!(!memory().explain(&before, &mut broken));
    }

    #[test]
    fn values_of_what_was_named_are_put_together_by_their_place() {
        let (fields, names) = (fields(), 20);
        let mut answer = Answer::new(&fields, names, &BTreeSet::from([A, InfoHash::V1([0xbb; 20])]), 0);
        let place = fields.iter().position(|field| field.method() == "d.custom1").unwrap();
        for (torrent, label) in [(0, "one"), (1, "two")] {
            let call = names + torrent * fields.len() + place;
            answer.scalar(call, Cell::Text(Cow::Borrowed(label.as_bytes())));
        }
        assert_eq!(answer.broken, 0);
        answer.scalar(names, Cell::Null);
        assert_eq!(answer.broken, 1);
        let answer = answer.with_named();
        assert!(answer.raws.values().map(|raw| raw.custom1.as_str()).eq(["one", "two"]));
        let mut gone = Answer::new(&fields, names, &BTreeSet::from([A]), 0);
        gone.fault(names + 3, Fault { code: -501, text: "Could not find info-hash.".to_owned() });
        assert!(!gone.is_nothing_gone && gone.fault.is_none());
    }
}
