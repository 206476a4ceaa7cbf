//! Reading all torrents.
//!
//! One exchange asks for everything about every torrent (or for everything but what a load of a torrent
//! never changes, if all loads are known), and for rTorrent's own figures, so that
//! they belong together. rTorrent aborts when an answer exceeds 100 MiB; long before that, the columns
//! are dealt out to several exchanges, whose rows are put together by hash.
//!
//! A listing is complete if every row could be read and there are as many as rTorrent says it has.
//! Whatever else goes wrong is an error, never a short listing.
//!
//! Two things are asked for apart, because they cost more than a field: the trackers of a torrent,
//! once for each time it is loaded and whenever their number changes; and the free disk space, each
//! 30 s of one torrent with open files below the default directory.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::calls::{Answers, Call, Cell, Fault, Unreadable};
use super::map::{self, Field, Raw};
use super::probe::Probe;
use super::quick;
use super::transport::Dialect;
use super::{Turn, jsonrpc, rows, xmlrpc};
use crate::model::{Covers, InfoHash, Listing, ServerStats};
use crate::port::{ClientError, Scope};

/// What one answer may have by estimate; half of what is read at most.
pub(super) const PART_BYTES_MAX: usize = 32 << 20;
/// All columns of a torrent in XML, until a listing has shown how many they are.
pub(super) const ROW_BYTES_AT_FIRST: usize = 1600;
/// A listing of many takes its time: about this for a torrent, many times what was measured.
const TIME_PER_TORRENT: Duration = Duration::from_millis(1);
/// And never more than this beyond the timeout, whatever number a server claims to have.
const TIME_FOR_TORRENTS_MAX: Duration = Duration::from_secs(120);
/// From here on an answer is taken apart beside the other tasks.
const BLOCKING_BYTES: usize = 1 << 20;
/// So many torrents are asked for their trackers one by one (each costs a walk over the list).
const TRACKERS_SINGLY: usize = 64;
/// Up to here the trackers of all can be asked for in one listing.
const TRACKERS_AT_ONCE: usize = 20_000;
const TRACKERS_PAUSE: Duration = Duration::from_secs(60);
const FREE_DISK_INTERVAL: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(super) struct Memory {
    /// Bytes of a row with all columns, as last seen in each dialect.
    pub(super) row_bytes: Option<(Dialect, usize)>,
    count: Option<u64>,
    /// The run of rTorrent that cannot say its torrents in JSON.
    pub(super) json_refused_by: Option<Option<i64>>,
    trackers: HashMap<InfoHash, KnownTracker>,
    /// Asking for trackers went wrong: not again before this.
    trackers_after: Option<Instant>,
    free_disk: Option<FreeDisk>,
}

#[derive(Clone, Copy)]
struct FreeDisk {
    asked_at: Instant,
    /// Where this torrent is.
    of: InfoHash,
    free: Option<u64>,
}

#[derive(Clone, PartialEq)]
struct KnownTracker {
    load: String,
    /// How many trackers there were.
    count: u64,
    host: Option<Arc<str>>,
}

pub(super) async fn list(turn: &Turn<'_>, scope: Scope<'_>) -> Result<Listing, ClientError> {
    let probe = turn.probe().await?;
    let seen = match scope {
        Scope::Changed { named } => match quick::look(turn, &probe, named).await? {
            Some(seen) => seen,
            // More has happened than it can show.
            None => read_all(turn, &probe, Reading::Whole).await?,
        },
        Scope::Full if turn.client.memory().quick.is_lean_enough(&probe) => {
            let mut seen = read_all(turn, &probe, Reading::Lean).await?;
            if turn.client.memory().quick.complete(&mut seen) {
                seen
            } else {
                read_all(turn, &probe, Reading::Whole).await?
            }
        }
        Scope::Full => read_all(turn, &probe, Reading::Whole).await?,
    };
    if seen.numbers.pid != probe.pid {
        // Another process answers: perhaps another version too.
        turn.client.memory().probe = None;
    }
    if seen.covers == Covers::All {
        turn.client.memory().quick.note_all(&seen);
    }
    let hosts = trackers(turn, &seen).await?;
    let free_disk = free_disk(turn, &probe, &seen).await?;
    Ok(listing(turn, &probe, seen, &hosts, free_disk))
}

/// Which columns are read of all torrents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    Whole,
    /// Without those that are known of every load.
    Lean,
}

async fn read_all(turn: &Turn<'_>, probe: &Probe, reading: Reading) -> Result<Seen, ClientError> {
    let is_json = probe.has_json && turn.client.memory().listing.json_refused_by != Some(probe.pid);
    let mut seen = None;
    if is_json {
        seen = read(turn, probe, Dialect::Json, reading).await?;
        if seen.is_none() {
            turn.client.memory().listing.json_refused_by = Some(probe.pid);
        }
    }
    match seen {
        Some(seen) => Ok(seen),
        None => read(turn, probe, Dialect::Xml, reading)
            .await?
            .ok_or_else(|| ClientError::Protocol { reason: "the listing was refused".to_owned() }),
    }
}

fn listing(turn: &Turn<'_>, probe: &Probe, seen: Seen, hosts: &Hosts, free_disk: Option<u64>) -> Listing {
    let Seen { raws, numbers, complete, covers, .. } = seen;
    let settings = &turn.client.settings;
    let words = &mut turn.client.memory().words;
    let observe = |(hash, raw): (InfoHash, Raw)| {
        let host = hosts.get(&hash).cloned().flatten();
        (hash, map::observed(&settings.server, hash, raw, host, settings.extra.keys().cloned(), words))
    };
    let torrents = raws.into_iter().map(observe).collect();
    if covers == Covers::All {
        words.forget_unused();
    }
    let [download_rate, upload_rate, download_limit, upload_limit, downloaded, uploaded] = numbers.throttle;
    Listing {
        covers,
        run: numbers.pid.map(|pid| pid.to_string()),
        complete,
        torrents,
        stats: ServerStats {
            client: Some(format!("rTorrent {}", probe.version)),
            download_rate,
            upload_rate,
            download_limit,
            upload_limit,
            downloaded,
            uploaded,
            free_disk,
        },
    }
}

// --- the exchanges of a listing ------------------------------------------------------------------

pub(super) const THROTTLE: [&str; 6] = [
    "throttle.global_down.rate",
    "throttle.global_up.rate",
    "throttle.global_down.max_rate",
    "throttle.global_up.max_rate",
    "throttle.global_down.total",
    "throttle.global_up.total",
];

/// How many torrents are in the views that rTorrent keeps by itself, `main` first. Each torrent that
/// comes, goes, starts, stops or completes moves one of them.
pub(super) const VIEWS: [&str; 4] = ["main", "started", "active", "complete"];

/// What a listing showed, in rTorrent's terms.
pub(super) struct Seen {
    pub raws: BTreeMap<InfoHash, Raw>,
    pub numbers: Numbers,
    pub complete: bool,
    pub covers: Covers,
    pub reading: Reading,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Numbers {
    pub pid: Option<i64>,
    /// By rTorrent's own clock, in seconds.
    pub time: Option<i64>,
    pub views: [Option<u64>; VIEWS.len()],
    pub throttle: [Option<u64>; THROTTLE.len()],
}

impl Numbers {
    /// The place of the listing among the calls.
    pub(super) const ROWS: usize = 1;
    const COUNT: usize = 2;
    const THROTTLE: usize = 3;
    const TIME: usize = Self::THROTTLE + THROTTLE.len();
    pub(super) const CALLS: usize = Self::TIME + VIEWS.len();

    /// What is asked for them, around a listing.
    pub(super) fn calls_with(listing: Call) -> Vec<Call> {
        let size = |view| Call::global("view.size").text(view);
        let mut calls = vec![Call::global("system.pid"), listing, size(VIEWS[0])];
        calls.extend(THROTTLE.map(Call::global));
        calls.push(Call::global("system.time_seconds"));
        calls.extend(VIEWS[1..].iter().map(|view| size(view)));
        calls
    }

    /// Takes the answer to one of them, by its place.
    pub(super) fn set(&mut self, place: usize, cell: &Cell<'_>) {
        let number = cell.int();
        let unsigned = number.and_then(|number| u64::try_from(number).ok());
        match place {
            0 => self.pid = number,
            Self::COUNT => self.views[0] = unsigned,
            Self::THROTTLE..Self::TIME => self.throttle[place - Self::THROTTLE] = unsigned,
            Self::TIME => self.time = number,
            place if (Self::TIME..Self::CALLS).contains(&place) => self.views[place - Self::TIME] = unsigned,
            _ => {}
        }
    }

    /// How many torrents there are.
    pub(super) fn count(&self) -> Option<u64> {
        self.views[0]
    }
}

/// `None` if this dialect is refused, which only JSON can be.
async fn read(turn: &Turn<'_>, probe: &Probe, dialect: Dialect, reading: Reading) -> Result<Option<Seen>, ClientError> {
    let settings = &turn.client.settings;
    let mut fields = probe.fields(&settings.extra);
    if reading == Reading::Lean {
        fields.retain(|field| !field.is_lasting() && !field.follows_from_state());
    }
    let (count, row_bytes) = {
        let memory = &turn.client.memory().listing;
        let row_bytes =
            memory.row_bytes.filter(|(of, _)| *of == dialect).map_or(ROW_BYTES_AT_FIRST, |(_, bytes)| bytes);
        (memory.count.unwrap_or(probe.count), row_bytes)
    };
    let limit = settings.timeout + time_for(count);
    let parts = deal_out(&fields, count, row_bytes);
    let parts_count = parts.len();

    let mut raws = BTreeMap::new();
    let mut first_numbers = None;
    let mut complete = true;
    let mut bytes = 0;
    for (place, part) in parts.into_iter().enumerate() {
        let calls = calls(&part);
        let body = match dialect {
            Dialect::Xml => xmlrpc::write(&calls),
            Dialect::Json => jsonrpc::write(&calls).expect("a listing's request has no bytes to send"),
        };
        let answer = turn.exchange(dialect, &body, limit).await?;
        bytes += answer.len();
        let reader = PartReader::new(part, place, settings.extra.len(), raws);
        let (result, reader) = decode(dialect, answer, reader).await?;
        match result {
            Ok(()) => {}
            Err(Unreadable::Refused(_)) if dialect == Dialect::Json => return Ok(None),
            Err(reason) => return Err(turn.client.unreadable(reason)),
        }
        if let Some(fault) = reader.fault {
            turn.client.memory().probe = None;
            return Err(turn.client.fault(&fault));
        }
        let numbers = reader.numbers;
        let size = numbers.count().ok_or_else(|| ClientError::Protocol {
            reason: format!("{}: the size of the view is missing", settings.endpoint),
        })?;
        complete &= reader.broken == 0 && reader.rows == size;
        raws = reader.raws;
        let first = first_numbers.get_or_insert(numbers);
        if first.pid != numbers.pid {
            turn.client.memory().probe = None;
            return Err(ClientError::Protocol { reason: "rTorrent was restarted while it was read".to_owned() });
        }
        turn.client.memory().listing.count = Some(size);
    }
    // Torrents that came or went between two parts are half known.
    let before = raws.len();
    raws.retain(|_, raw| raw.parts == parts_count);
    complete &= raws.len() == before;
    if let Some(row_bytes) = bytes.checked_div(raws.len()).filter(|_| reading == Reading::Whole) {
        turn.client.memory().listing.row_bytes = Some((dialect, row_bytes.max(1)));
    }
    let numbers = first_numbers.unwrap_or_default();
    Ok(Some(Seen { raws, numbers, complete, covers: Covers::All, reading }))
}

/// What a listing of so many torrents may take beyond the timeout of a small one.
fn time_for(count: u64) -> Duration {
    TIME_PER_TORRENT.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX)).min(TIME_FOR_TORRENTS_MAX)
}

/// Deals the columns out to as many exchanges as keep each answer small.
fn deal_out(fields: &[Field], count: u64, row_bytes: usize) -> Vec<Vec<Field>> {
    let estimate = usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(row_bytes);
    let parts = estimate.div_ceil(PART_BYTES_MAX).clamp(1, fields.len().max(1));
    // Turn by turn, so that the columns with long texts do not meet in one part.
    let mut dealt = vec![Vec::new(); parts];
    for (place, field) in fields.iter().enumerate() {
        dealt[place % parts].push(field.clone());
    }
    dealt
}

fn calls(part: &[Field]) -> Vec<Call> {
    Numbers::calls_with(with_columns(Call::global("d.multicall2").text("main"), part))
}

/// The hash of each torrent, and these columns.
pub(super) fn with_columns(call: Call, fields: &[Field]) -> Call {
    fields.iter().fold(call.text("d.hash="), |call, field| call.text(field.command()))
}

pub(super) async fn decode<R: Answers + Send + 'static>(
    dialect: Dialect,
    answer: Vec<u8>,
    mut reader: R,
) -> Result<(Result<(), Unreadable>, R), ClientError> {
    let is_long = answer.len() >= BLOCKING_BYTES;
    let work = move || {
        let result = match dialect {
            Dialect::Xml => xmlrpc::scan(&answer, &mut reader),
            Dialect::Json => jsonrpc::scan(&answer, &mut reader),
        };
        (result, reader)
    };
    if !is_long {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ClientError::Protocol { reason: format!("the listing was not read to its end: {error}") })
}

/// Puts the rows of one part of a listing where they belong.
struct PartReader {
    fields: Vec<Field>,
    /// 0 for the first part, which says which torrents there are.
    place: usize,
    extra: usize,
    raws: BTreeMap<InfoHash, Raw>,
    rows: u64,
    broken: u64,
    numbers: Numbers,
    fault: Option<Fault>,
}

impl PartReader {
    fn new(fields: Vec<Field>, place: usize, extra: usize, raws: BTreeMap<InfoHash, Raw>) -> Self {
        Self { fields, place, extra, raws, rows: 0, broken: 0, numbers: Numbers::default(), fault: None }
    }

    fn put(&mut self, cells: &[Cell<'_>]) -> Option<()> {
        let (Cell::Text(hash), cells) = cells.split_first()? else { return None };
        let hash = InfoHash::from_hex(hash).ok()?;
        let mut raw = match self.raws.remove(&hash) {
            Some(raw) if raw.parts == self.place => raw,
            None if self.place == 0 => Raw { extra: vec![None; self.extra], ..Raw::default() },
            // Twice in one part, which no rTorrent does: what was read first stays, for another load
            // of a torrent would say that it was removed and added.
            Some(raw) => {
                self.raws.insert(hash, raw);
                return None;
            }
            // It came between two parts.
            None => return None,
        };
        if cells.len() != self.fields.len() {
            return None;
        }
        for (field, cell) in self.fields.iter().zip(cells) {
            field.set(&mut raw, cell)?;
        }
        raw.parts += 1;
        self.raws.insert(hash, raw);
        Some(())
    }
}

impl Answers for PartReader {
    fn scalar(&mut self, call: usize, cell: Cell<'_>) {
        self.numbers.set(call, &cell);
    }

    fn row(&mut self, call: usize, cells: &[Cell<'_>]) {
        if call != Numbers::ROWS {
            return;
        }
        match self.put(cells) {
            Some(()) => self.rows += 1,
            None => self.broken += 1,
        }
    }

    fn broken_row(&mut self, call: usize) {
        self.broken += u64::from(call == Numbers::ROWS);
    }

    fn fault(&mut self, call: usize, fault: Fault) {
        // Without the listing or its size there is nothing to go by; the rest may be missing.
        if matches!(call, Numbers::ROWS | Numbers::COUNT) {
            self.fault.get_or_insert(fault);
        }
    }
}

// --- what is asked for apart ---------------------------------------------------------------------

/// The host of the tracker of each torrent that was seen.
async fn trackers(turn: &Turn<'_>, seen: &Seen) -> Result<Hosts, ClientError> {
    let mut hosts = Hosts::with_capacity(seen.raws.len());
    let mut unknown = Vec::new();
    let is_paused = {
        let memory = &mut turn.client.memory().listing;
        if seen.covers == Covers::All {
            memory.trackers.retain(|hash, _| seen.raws.contains_key(hash));
        }
        for (hash, raw) in &seen.raws {
            match memory.trackers.get(hash) {
                Some(known) if known.load == raw.local_id && known.count == raw.tracker_size => {
                    hosts.insert(*hash, known.host.clone());
                }
                _ => unknown.push(*hash),
            }
        }
        memory.trackers_after.is_some_and(|after| Instant::now() < after)
    };
    let result = match unknown.len() {
        0 => return Ok(hosts),
        _ if is_paused => return Ok(hosts),
        few if few <= TRACKERS_SINGLY => hosts_singly(turn, &unknown).await,
        _ if seen.raws.len() <= TRACKERS_AT_ONCE => hosts_at_once(turn).await,
        // The others in the next listings.
        _ => hosts_singly(turn, &unknown[..TRACKERS_SINGLY]).await,
    };
    let super::Memory { listing: memory, words, .. } = &mut *turn.client.memory();
    match result {
        Ok(found) => {
            for hash in unknown {
                let (Some(raw), Some(host)) = (seen.raws.get(&hash), found.get(&hash)) else { continue };
                let host = host.as_deref().map(|host| words.share(host));
                hosts.insert(hash, host.clone());
                let known = KnownTracker { load: raw.local_id.clone(), count: raw.tracker_size, host };
                memory.trackers.insert(hash, known);
            }
            Ok(hosts)
        }
        Err(error) => {
            // So that listings without trackers get through meanwhile.
            memory.trackers_after = Some(Instant::now() + TRACKERS_PAUSE);
            Err(error)
        }
    }
}

type Hosts = HashMap<InfoHash, Option<Arc<str>>>;
type Found = HashMap<InfoHash, Option<String>>;

async fn hosts_singly(turn: &Turn<'_>, hashes: &[InfoHash]) -> Result<Found, ClientError> {
    let calls: Vec<_> = hashes
        .iter()
        .map(|hash| Call::on(*hash, "t.multicall").text("").text("t.is_enabled=").text("t.url="))
        .collect();
    let results = turn.ask(&calls).await?;
    let host = |value| {
        let trackers = rows(value).filter_map(|row| match row.array() {
            [is_enabled, url] => Some((is_enabled.int()? != 0, url.str()?)),
            _ => None,
        });
        map::tracker_host(trackers)
    };
    // One that has gone meanwhile is no concern of ours.
    Ok(hashes.iter().zip(&results).filter_map(|(hash, result)| Some((*hash, host(result.as_ref().ok()?)))).collect())
}

/// The trackers of a torrent in one text: for each `1` or `0`, its address, and this.
const TRACKER_END: &str = "|||";

async fn hosts_at_once(turn: &Turn<'_>) -> Result<Found, ClientError> {
    struct HostReader(Found);
    impl Answers for HostReader {
        fn row(&mut self, _: usize, cells: &[Cell<'_>]) {
            let [Cell::Text(hash), trackers] = cells else { return };
            let (Ok(hash), Some(text)) = (InfoHash::from_hex(hash), trackers.text()) else { return };
            let trackers = text.split(TRACKER_END).filter_map(|one| {
                let url = one.get(1..)?;
                Some((one.starts_with('1'), url))
            });
            self.0.insert(hash, map::tracker_host(trackers));
        }
        fn scalar(&mut self, _: usize, _: Cell<'_>) {}
        fn broken_row(&mut self, _: usize) {}
        fn fault(&mut self, _: usize, _: Fault) {}
    }
    let column = "cat=\"$t.multicall=d.hash=,t.is_enabled=,t.url=,cat={|||}\"";
    let body = xmlrpc::write(&[Call::global("d.multicall2").text("main").text("d.hash=").text(column)]);
    let limit = turn.client.settings.timeout + TIME_PER_TORRENT * 20_000;
    let answer = turn.exchange(Dialect::Xml, &body, limit).await?;
    let mut reader = HostReader(Found::new());
    xmlrpc::scan(&answer, &mut reader).map_err(|reason| turn.client.unreadable(reason))?;
    Ok(reader.0)
}

async fn free_disk(turn: &Turn<'_>, probe: &Probe, seen: &Seen) -> Result<Option<u64>, ClientError> {
    let known = turn.client.memory().listing.free_disk;
    if let Some(known) = known.filter(|known| known.asked_at.elapsed() < FREE_DISK_INTERVAL) {
        return Ok(known.free);
    }
    // A torrent that was never open has no folder to look at.
    let below = |raw: &Raw| {
        let default = Path::new(&probe.default_directory);
        !default.is_absolute() || Path::new(&raw.directory).starts_with(default)
    };
    let fits = |raw: &Raw| raw.is_open && !raw.is_meta && below(raw);
    let found = seen.raws.iter().find(|(_, raw)| fits(raw)).map(|(hash, _)| *hash);
    // Among few there may be none; then the one of the last time will do.
    let last = known.filter(|_| seen.covers == Covers::Changed).map(|known| known.of);
    let Some(of) = found.or(last) else { return Ok(known.and_then(|known| known.free)) };
    let results = turn.ask(&[Call::on(of, "d.free_diskspace")]).await?;
    let free = results.first().and_then(|result| result.as_ref().ok()?.int()).and_then(|free| u64::try_from(free).ok());
    turn.client.memory().listing.free_disk = Some(FreeDisk { asked_at: Instant::now(), of, free });
    Ok(free)
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::super::map::COLUMNS;
    use super::*;

    #[test]
    fn a_server_that_claims_to_have_countless_torrents_gets_no_endless_deadline() {
        assert_eq!(time_for(0), Duration::ZERO);
        assert_eq!(time_for(20_000), Duration::from_secs(20));
        assert_eq!(time_for(u64::MAX), TIME_FOR_TORRENTS_MAX);
    }

    fn fields() -> Vec<Field> {
        COLUMNS.iter().copied().map(Field::Own).collect()
    }

    fn text(text: &'static str) -> Cell<'static> {
        Cell::Text(Cow::Borrowed(text.as_bytes()))
    }

    #[test]
    fn rule_2_no_answer_can_get_near_the_size_that_aborts_rtorrent() {
        for (count, row_bytes, expected) in
            [(0, 1600, 1), (5_000, 1600, 1), (20_000, 1600, 1), (50_000, 1600, 3), (69_000, 1600, 4), (u64::MAX, 1, 32)]
        {
            let parts = deal_out(&fields(), count, row_bytes);
            assert_eq!(parts.len(), expected, "{count} of {row_bytes}");
            let mut dealt: Vec<String> = parts.iter().flatten().map(Field::command).collect();
            let mut all: Vec<String> = fields().iter().map(Field::command).collect();
            dealt.sort();
            all.sort();
            assert_eq!(dealt, all, "each column once");
        }
    }

    const A: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    const B: &str = "BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB";

    fn named(names: &[&str]) -> Vec<Field> {
        fields().into_iter().filter(|field| names.contains(&field.method())).collect()
    }

    #[test]
    fn the_parts_of_a_listing_are_put_together_by_hash() {
        let mut first = PartReader::new(named(&["d.name"]), 0, 0, BTreeMap::new());
        first.row(Numbers::ROWS, &[text(A), text("one")]);
        first.row(Numbers::ROWS, &[text(B), text("two")]);
        let mut second = PartReader::new(named(&["d.size_bytes"]), 1, 0, first.raws);
        second.row(Numbers::ROWS, &[text(B), Cell::Int(2)]);
        assert_eq!((second.rows, second.broken), (1, 0));
        let raws: Vec<_> = second.raws.values().map(|raw| (raw.name.as_str(), raw.size_bytes, raw.parts)).collect();
        assert_eq!(raws, [("one", 0, 1), ("two", 2, 2)], "what is not in every part can be told by its count");
    }

    #[test]
    fn a_row_that_makes_no_sense_is_counted_and_left_out() {
        let good = [text(A), text("one"), Cell::Int(5)];
        for bad in [
            &[text("no hash"), text("one"), Cell::Int(5)][..],
            &[Cell::Int(1), text("one"), Cell::Int(5)],
            &[text(B), text("one")],
            &[text(B), text("one"), Cell::Int(5), Cell::Int(5)],
            &[text(B), Cell::Int(5), text("one")],
            &[],
        ] {
            let mut reader = PartReader::new(named(&["d.name", "d.size_bytes"]), 0, 0, BTreeMap::new());
            reader.row(Numbers::ROWS, &good);
            reader.row(Numbers::ROWS, bad);
            assert_eq!((reader.rows, reader.broken, reader.raws.len()), (1, 1, 1), "{bad:?}");
        }
    }

    #[test]
    fn a_torrent_that_is_listed_twice_is_not_believed() {
        let mut reader = PartReader::new(named(&["d.name"]), 0, 0, BTreeMap::new());
        reader.row(Numbers::ROWS, &[text(A), text("one")]);
        reader.row(Numbers::ROWS, &[text(A), text("two")]);
        reader.row(Numbers::ROWS, &[text(A), text("three")]);
        assert_eq!((reader.rows, reader.broken), (1, 2));
        assert!(reader.raws.values().map(|raw| &raw.name).eq(["one"]), "what was read first stays");
    }

    #[test]
    fn without_its_size_a_listing_is_a_fault_and_without_a_rate_it_is_not() {
        let fault = Fault { code: -507, text: "not allowed".to_owned() };
        for (call, is_fatal) in [(0, false), (1, true), (2, true), (3, false)] {
            let mut reader = PartReader::new(Vec::new(), 0, 0, BTreeMap::new());
            reader.fault(call, fault.clone());
            assert_eq!(reader.fault.is_some(), is_fatal, "call {call}");
        }
    }

    /// Answers as they came from the programs; each folder says how they were recorded.
    #[test]
    fn recorded_listings_are_read_alike_whatever_the_back_end() {
        let read = |dialect, answer: &[u8]| {
            let answer = answer.to_vec();
            let mut reader = PartReader::new(fields(), 0, 0, BTreeMap::new());
            let result = match dialect {
                Dialect::Xml => xmlrpc::scan(&answer, &mut reader),
                Dialect::Json => jsonrpc::scan(&answer, &mut reader),
            };
            result.unwrap();
            assert_eq!((reader.rows, reader.broken, reader.numbers.count()), (3, 0, Some(3)));
            reader
        };
        let old = read(Dialect::Xml, include_bytes!("../../../tests/fixtures/rtorrent/0.9.8/listing.xml"));
        let tiny = read(Dialect::Xml, include_bytes!("../../../tests/fixtures/rtorrent/0.16.20/listing.xml"));
        let json = read(Dialect::Json, include_bytes!("../../../tests/fixtures/rtorrent/0.16.20/listing.json"));
        let kept = |reader: &PartReader| -> Vec<_> {
            let of = |(hash, raw): (&InfoHash, &Raw)| {
                (*hash, raw.name.clone(), raw.custom1.clone(), raw.size_bytes, raw.state, raw.addtime, raw.priority)
            };
            reader.raws.iter().map(of).collect()
        };
        assert_eq!(kept(&tiny), kept(&json));
        assert_eq!(kept(&old), kept(&tiny));
        let seen: Vec<_> = old.raws.values().map(|raw| (raw.name.as_str(), raw.custom1.as_str())).collect();
        assert!(seen.contains(&("<b> & \"q\" \u{1}", "a, b")), "{seen:?}");
        assert!(seen.contains(&("Ünï ☃", "")), "{seen:?}");
    }
}
