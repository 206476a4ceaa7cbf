//! Full listings: every torrent, in as few exchanges as its size allows.
//!
//! One exchange reads all columns of every torrent (or all but those that stay the same as long as a torrent
//! is loaded, if every load is known) together with rTorrent's own counters, so that they belong together.
//! rTorrent aborts when an answer exceeds 100 MiB; long before that, the columns are dealt out to several
//! exchanges, whose rows are joined by hash.
//!
//! A listing is complete if every row could be read and there are as many as rTorrent says it has. Anything
//! else that goes wrong is an error, never a short listing.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::Access;
use super::super::calls::{Answers, Call, Cell, Fault};
use super::super::map::{Field, TorrentRow};
use super::super::probe::Probe;
use super::super::transport::WireFormat;
use super::counters::Counters;
use super::{Columns, ROW_BYTES_AT_FIRST, RawListing, exchange, format, part_bytes_max, with_columns};
use crate::model::{Covers, InfoHash};
use crate::port::ClientError;

/// Time allowed for each torrent beyond the timeout; many times what was measured.
const TIME_PER_TORRENT: Duration = Duration::from_millis(1);
/// Maximum of that, whatever number of torrents a server claims to have.
const TIME_FOR_TORRENTS_MAX: Duration = Duration::from_secs(120);

/// Reads all torrents, as JSON if the server has it.
pub(super) async fn read(access: &Access<'_>, probe: &Probe, columns: Columns) -> Result<RawListing, ClientError> {
    let refused = || ClientError::Protocol { reason: "the listing was refused".to_owned() };
    match read_as(access, probe, format(access, probe), columns).await? {
        Some(raw) => Ok(raw),
        // A name that is not UTF-8 makes rTorrent refuse the whole answer as JSON.
        None => read_as(access, probe, WireFormat::Xml, columns).await?.ok_or_else(refused),
    }
}

/// Reads all torrents in one format; `None` if it is refused, which only JSON can be.
async fn read_as(
    access: &Access<'_>,
    probe: &Probe,
    format: WireFormat,
    columns: Columns,
) -> Result<Option<RawListing>, ClientError> {
    let settings = &access.client.settings;
    let short_until = access.client.state().listing.long_texts.short_until(probe.pid);
    let mut fields = probe.fields(&settings.extra, short_until);
    if columns == Columns::Changing {
        fields.retain(|field| !field.is_fixed() && !field.follows_from_state());
    }
    let (count, row_bytes) = {
        let state = &access.client.state().listing;
        let row_bytes = state.row_bytes.filter(|(of, _)| *of == format).map_or(ROW_BYTES_AT_FIRST, |(_, bytes)| bytes);
        (state.count.unwrap_or(probe.count), row_bytes)
    };
    // rTorrent takes about 45 µs for each torrent, and its machine may do other work, too.
    let limit = settings.timeout + time_for(count);
    let parts = deal_out(&fields, count, row_bytes, part_bytes_max(access));
    let parts_count = parts.len();

    let mut rows = BTreeMap::new();
    let mut first_counters = None;
    let mut complete = true;
    let mut bytes = 0;
    for (place, part) in parts.into_iter().enumerate() {
        let calls = Counters::calls_with(with_columns(Call::global("d.multicall2").text("main"), &part));
        let reader = PartReader::new(part, place, settings.extra.len(), rows);
        let Some((reader, answer_bytes)) = exchange(access, probe, format, &calls, limit, reader).await? else {
            return Ok(None);
        };
        if let Some(fault) = reader.fault {
            access.client.state().probe = None;
            return Err(access.client.fault(&fault));
        }
        let counters = reader.counters;
        let size = counters.count().ok_or_else(|| ClientError::Protocol {
            reason: format!("{}: the size of the view is missing", settings.endpoint),
        })?;
        bytes += answer_bytes;
        // The size is of the same exchange, so fewer rows are a short answer and not a removal (I2).
        complete &= reader.broken == 0 && reader.row_count == size;
        rows = reader.rows;
        let first = first_counters.get_or_insert(counters);
        // Rows of two processes would be joined, and their loads disagree.
        if first.pid != counters.pid {
            access.client.state().probe = None;
            return Err(ClientError::Protocol { reason: "rTorrent was restarted while it was read".to_owned() });
        }
        access.client.state().listing.count = Some(size);
    }
    // Torrents that were added or removed between two parts are half known.
    let before = rows.len();
    rows.retain(|_, row| row.parts == parts_count);
    complete &= rows.len() == before;
    // Only whole rows are measured: the estimate is for these, and a reduced listing is smaller.
    if let Some(row_bytes) = bytes.checked_div(rows.len()).filter(|_| columns == Columns::All) {
        access.client.state().listing.row_bytes = Some((format, row_bytes.max(1)));
    }
    let counters = first_counters.unwrap_or_default();
    Ok(Some(RawListing { rows, counters, complete, covers: Covers::All, columns }))
}

/// Returns the time allowed for a listing of this many torrents, beyond the timeout of a small one.
fn time_for(count: u64) -> Duration {
    TIME_PER_TORRENT.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX)).min(TIME_FOR_TORRENTS_MAX)
}

/// Deals the columns out to as many exchanges as keep each answer below `bytes_max`.
fn deal_out(fields: &[Field], count: u64, row_bytes: usize, bytes_max: usize) -> Vec<Vec<Field>> {
    let estimate = usize::try_from(count).unwrap_or(usize::MAX).saturating_mul(row_bytes);
    let parts = estimate.div_ceil(bytes_max).clamp(1, fields.len().max(1));
    // One by one, so that the columns with long texts, which are neighbours, do not meet in one part.
    let mut dealt = vec![Vec::new(); parts];
    for (place, field) in fields.iter().enumerate() {
        dealt[place % parts].push(field.clone());
    }
    dealt
}

/// Reads one part of a listing into the rows.
struct PartReader {
    fields: Vec<Field>,
    /// 0 for the first part, which decides which torrents there are.
    place: usize,
    extra: usize,
    rows: BTreeMap<InfoHash, TorrentRow>,
    row_count: u64,
    broken: u64,
    counters: Counters,
    fault: Option<Fault>,
}

impl PartReader {
    fn new(fields: Vec<Field>, place: usize, extra: usize, rows: BTreeMap<InfoHash, TorrentRow>) -> Self {
        Self { fields, place, extra, rows, row_count: 0, broken: 0, counters: Counters::default(), fault: None }
    }

    fn put(&mut self, cells: &[Cell<'_>]) -> Option<()> {
        let (Cell::Text(hash), cells) = cells.split_first()? else { return None };
        let hash = InfoHash::from_hex(hash).ok()?;
        let mut row = match self.rows.remove(&hash) {
            Some(row) if row.parts == self.place => row,
            None if self.place == 0 => TorrentRow { extra: vec![None; self.extra], ..TorrentRow::default() },
            // Twice in one part, which no rTorrent does. The first stays: another load of a torrent would
            // say that it was removed and added.
            Some(row) => {
                self.rows.insert(hash, row);
                return None;
            }
            // It was added between two parts.
            None => return None,
        };
        if cells.len() != self.fields.len() {
            return None;
        }
        for (field, cell) in self.fields.iter().zip(cells) {
            field.set(&mut row, cell)?;
        }
        row.parts += 1;
        self.rows.insert(hash, row);
        Some(())
    }
}

impl Answers for PartReader {
    fn scalar(&mut self, call: usize, cell: Cell<'_>) {
        self.counters.set(call, &cell);
    }

    fn row(&mut self, call: usize, cells: &[Cell<'_>]) {
        if call != Counters::ROWS {
            return;
        }
        match self.put(cells) {
            Some(()) => self.row_count += 1,
            None => self.broken += 1,
        }
    }

    fn broken_row(&mut self, call: usize) {
        self.broken += u64::from(call == Counters::ROWS);
    }

    fn fault(&mut self, call: usize, fault: Fault) {
        // Without the listing or its size nothing can be trusted; other counters may be missing.
        if matches!(call, Counters::ROWS | Counters::COUNT) {
            self.fault.get_or_insert(fault);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::super::super::map::COLUMNS;
    use super::super::super::{jsonrpc, xmlrpc};
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
            let parts = deal_out(&fields(), count, row_bytes, 32 << 20);
            assert_eq!(parts.len(), expected, "{count} of {row_bytes}");
            let with_little = deal_out(&fields(), count, row_bytes, 8 << 20).len();
            assert!((expected..=4 * expected).contains(&with_little), "{count} of {row_bytes}: {with_little}");
            assert_eq!(with_little > 1, count > 5_000, "{count} of {row_bytes}");
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
        first.row(Counters::ROWS, &[text(A), text("one")]);
        first.row(Counters::ROWS, &[text(B), text("two")]);
        let mut second = PartReader::new(named(&["d.size_bytes"]), 1, 0, first.rows);
        second.row(Counters::ROWS, &[text(B), Cell::Int(2)]);
        assert_eq!((second.row_count, second.broken), (1, 0));
        let rows: Vec<_> =
            second.rows.values().map(|row| (row.fixed.name.as_str(), row.fixed.size_bytes, row.parts)).collect();
        assert_eq!(rows, [("one", 0, 1), ("two", 2, 2)], "a torrent that is not in every part shows in its count");
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
            reader.row(Counters::ROWS, &good);
            reader.row(Counters::ROWS, bad);
            assert_eq!((reader.row_count, reader.broken, reader.rows.len()), (1, 1, 1), "{bad:?}");
        }
    }

    #[test]
    fn a_torrent_that_is_listed_twice_is_not_believed() {
        let mut reader = PartReader::new(named(&["d.name"]), 0, 0, BTreeMap::new());
        reader.row(Counters::ROWS, &[text(A), text("one")]);
        reader.row(Counters::ROWS, &[text(A), text("two")]);
        reader.row(Counters::ROWS, &[text(A), text("three")]);
        assert_eq!((reader.row_count, reader.broken), (1, 2));
        assert!(reader.rows.values().map(|row| &row.fixed.name).eq(["one"]), "what was read first stays");
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
        let read = |format, answer: &[u8]| {
            let answer = answer.to_vec();
            let mut reader = PartReader::new(fields(), 0, 0, BTreeMap::new());
            let result = match format {
                WireFormat::Xml => xmlrpc::scan(&answer, &mut reader),
                WireFormat::Json => jsonrpc::scan(&answer, &mut reader),
            };
            result.unwrap();
            assert_eq!((reader.row_count, reader.broken, reader.counters.count()), (3, 0, Some(3)));
            reader
        };
        let old = read(WireFormat::Xml, include_bytes!("../../../../tests/fixtures/rtorrent/0.9.8/listing.xml"));
        let tiny = read(WireFormat::Xml, include_bytes!("../../../../tests/fixtures/rtorrent/0.16.20/listing.xml"));
        let json = read(WireFormat::Json, include_bytes!("../../../../tests/fixtures/rtorrent/0.16.20/listing.json"));
        let columns = |reader: &PartReader| -> Vec<_> {
            let of = |(hash, row): (&InfoHash, &TorrentRow)| {
                (
                    *hash,
                    row.fixed.name.clone(),
                    row.custom1.clone(),
                    row.fixed.size_bytes,
                    row.state,
                    row.addtime,
                    row.priority,
                )
            };
            reader.rows.iter().map(of).collect()
        };
        assert_eq!(columns(&tiny), columns(&json));
        assert_eq!(columns(&old), columns(&tiny));
        let seen: Vec<_> = old.rows.values().map(|row| (row.fixed.name.as_str(), row.custom1.as_str())).collect();
        assert!(seen.contains(&("<b> & \"q\" \u{1}", "a, b")), "{seen:?}");
        assert!(seen.contains(&("Ünï ☃", "")), "{seen:?}");
    }
}
