//! Decoding a listing and comparing it with the snapshot, without network and disk.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::ensure;
use dtorrent::clients::rtorrent::calls::{Answers, Cell, Fault};
use dtorrent::clients::rtorrent::{jsonrpc, xmlrpc};
use dtorrent::diff::{Differ, Limits, PollTime};
use dtorrent::model::{
    Committed, Completion, DiffState, Facts, Listing, Observed, Rev, RunState, Seq, ServerName, ServerState, Snapshot,
    SnapshotTorrent, Timestamp, Torrent,
};
use serde::Deserialize;

use crate::listing::{COLUMNS, dirty_xml, json, xml};
use crate::sample;
use crate::table::{Line, Measured, median, millis};

const TORRENTS: usize = 10_000;
const ROUNDS: usize = 9;

pub fn run() -> anyhow::Result<Vec<Line>> {
    let clean = xml(COLUMNS, TORRENTS);
    let dirty = dirty_xml(COLUMNS, TORRENTS);
    let dirty_text = String::from_utf8_lossy(&dirty).into_owned();
    let json = json(COLUMNS, TORRENTS);
    let clean_text = std::str::from_utf8(&clean)?;
    let mut lines = vec![
        alternate(
            &format!("decode {TORRENTS} × {}, XML", COLUMNS.len()),
            "bare quick-xml events",
            0.5,
            || typed(|rows| xmlrpc::scan(&clean, rows).is_ok()),
            || events(clean_text),
        )?,
        alternate(
            "the same, control characters, no UTF-8, references",
            "bare quick-xml events",
            0.5,
            || typed(|rows| xmlrpc::scan(&dirty, rows).is_ok()),
            || events(&dirty_text),
        )?,
        alternate(
            "the same, JSON",
            "serde_json into typed rows",
            1.2,
            || typed(|rows| jsonrpc::scan(&json, rows).is_ok()),
            || typed_by_serde(&json),
        )?,
    ];
    lines.extend(diffs(|| typed(|rows| xmlrpc::scan(&clean, rows).is_ok()))?);
    Ok(lines)
}

/// Measures both in alternation; the ratio is the median of the rounds' ratios.
fn alternate(
    what: &str,
    bare: &str,
    bar: f64,
    mut measured: impl FnMut() -> usize,
    mut baseline: impl FnMut() -> usize,
) -> anyhow::Result<Line> {
    let (mut of_measured, mut of_baseline, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (measured, baseline) = (timed(&mut measured)?, timed(&mut baseline)?);
        if round > 0 {
            of_measured.push(measured.as_secs_f64());
            of_baseline.push(baseline.as_secs_f64());
            ratios.push(measured.as_secs_f64() / baseline.as_secs_f64());
        }
    }
    Ok(Line {
        what: what.to_owned(),
        figure: millis(Duration::from_secs_f64(median(of_measured))),
        baseline: format!("{bare}: {}", millis(Duration::from_secs_f64(median(of_baseline)))),
        measured: Measured::at_most(median(ratios), bar, "×"),
        reason: "",
    })
}

fn timed(work: &mut impl FnMut() -> usize) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let rows = black_box(work());
    let took = began.elapsed();
    ensure!(rows >= TORRENTS, "only {rows} rows");
    Ok(took)
}

// --- rows as values -------------------------------------------------------------------------------

/// A row with every column in its type, as the adapter stores it.
#[derive(Deserialize)]
#[allow(dead_code, reason = "it is built, which is what is measured")]
#[rustfmt::skip]
struct Row(
    String, String, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64,
    String, String, String, i64, String, i64, i64, String, String, i64, i64, String, i64, i64, i64,
);

fn int(cell: &Cell<'_>) -> Option<i64> {
    if let Cell::Int(number) = cell { Some(*number) } else { None }
}

fn text(cell: &Cell<'_>) -> Option<String> {
    if let Cell::Text(text) = cell { Some(String::from_utf8_lossy(text).into_owned()) } else { None }
}

#[rustfmt::skip]
fn row(cells: &[Cell<'_>]) -> Option<Row> {
    let c: &[Cell<'_>; 34] = cells.try_into().ok()?;
    Some(Row(
        text(&c[0])?, text(&c[1])?, int(&c[2])?, int(&c[3])?, int(&c[4])?, int(&c[5])?, int(&c[6])?, int(&c[7])?,
        int(&c[8])?, int(&c[9])?, int(&c[10])?, int(&c[11])?, int(&c[12])?, int(&c[13])?, int(&c[14])?, int(&c[15])?,
        int(&c[16])?, int(&c[17])?, int(&c[18])?, text(&c[19])?, text(&c[20])?, text(&c[21])?, int(&c[22])?,
        text(&c[23])?, int(&c[24])?, int(&c[25])?, text(&c[26])?, text(&c[27])?, int(&c[28])?, int(&c[29])?,
        text(&c[30])?, int(&c[31])?, int(&c[32])?, int(&c[33])?,
    ))
}

#[derive(Default)]
struct Rows(Vec<Row>);

impl Answers for Rows {
    fn scalar(&mut self, _: usize, _: Cell<'_>) {}
    fn row(&mut self, _: usize, cells: &[Cell<'_>]) {
        self.0.extend(row(cells));
    }
    fn broken_row(&mut self, _: usize) {}
    fn fault(&mut self, _: usize, _: Fault) {}
}

fn typed(scan: impl FnOnce(&mut Rows) -> bool) -> usize {
    let mut rows = Rows::default();
    let is_read = scan(&mut rows);
    let count = rows.0.len();
    black_box(rows);
    if is_read { count } else { 0 }
}

fn typed_by_serde(bytes: &[u8]) -> usize {
    #[derive(Deserialize)]
    struct Response {
        result: Vec<Row>,
    }
    let responses: Vec<Response> = serde_json::from_slice(bytes).unwrap_or_default();
    black_box(&responses).iter().map(|response| response.result.len()).sum()
}

/// Skips every token and stores nothing; counts the rows as a check.
fn events(text: &str) -> usize {
    let mut reader = quick_xml::Reader::from_str(text);
    let (mut starts, mut bytes) = (0, 0);
    loop {
        match reader.read_event() {
            Ok(quick_xml::events::Event::Eof) => break,
            Ok(quick_xml::events::Event::Start(tag)) => starts += usize::from(tag.name().as_ref().len() == 5),
            Ok(quick_xml::events::Event::Text(text)) => bytes += text.len(),
            Ok(_) => {}
            Err(_) => return 0,
        }
    }
    black_box(bytes);
    starts // `array`, and `param`: one for each row and a few
}

// --- the diff -------------------------------------------------------------------------------------

fn diffs(mut decode: impl FnMut() -> usize) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for (what, changed) in [("diff of 10000, nothing changed", 0), ("the same, 1 % changed", TORRENTS / 100)] {
        let (mut diffs, mut decodes, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let decode = timed(&mut decode)?;
            let diff = diff(changed)?;
            if round > 0 {
                diffs.push(diff.as_secs_f64());
                decodes.push(decode.as_secs_f64());
                ratios.push(diff.as_secs_f64() / decode.as_secs_f64());
            }
        }
        lines.push(Line {
            what: what.to_owned(),
            figure: millis(Duration::from_secs_f64(median(diffs))),
            baseline: format!("decode of the XML: {}", millis(Duration::from_secs_f64(median(decodes)))),
            measured: Measured::at_most(median(ratios), 0.1, "×"),
            reason: "each torrent is found in three maps and compared in all its fields",
        });
    }
    Ok(lines)
}

/// Measures a differ on a listing that it has seen before, with some torrents changed.
fn diff(changed: usize) -> anyhow::Result<Duration> {
    let server = ServerName::parse("home")?;
    let observed = |torrent: &Torrent| {
        let mut observed = Observed::from(torrent.clone());
        observed.facts = {
            let mut facts = Facts::default();
            facts.load = Some(torrent.hash.to_string());
            facts.complete = torrent.finished;
            facts.has_metadata = true;
            facts.received_bytes = torrent.downloaded;
            facts.moved_bytes = torrent.downloaded;
            facts
        };
        observed
    };
    let torrents: Vec<_> = (0..TORRENTS).map(|number| sample::of_a_library(&server, number)).collect();
    let told_torrent = |torrent: &std::sync::Arc<Torrent>| SnapshotTorrent {
        torrent: torrent.clone(),
        rev: Rev(1),
        last_seq: Seq(1),
        changed_at: Timestamp::from_seconds(1_795_000_000),
        diff_state: DiffState {
            load: Some(torrent.hash.to_string()),
            generation: 0,
            has_metadata: true,
            received_bytes: torrent.downloaded,
            completion: if torrent.finished { Completion::Complete } else { Completion::Incomplete },
            run_state: RunState::Running,
        },
    };
    let snapshot: Snapshot = torrents.iter().map(|torrent| (torrent.hash, told_torrent(torrent))).collect();
    let run = Some("1".to_owned());
    let state = ServerState { is_known: true, is_online: true, run: run.clone(), generation: 0, settling_since: None };
    let mut listing = Listing::of_all(torrents.iter().map(|torrent| observed(torrent)));
    listing.run = run;
    let mut differ = Differ::new(server, Limits::default());
    let moment = |second: u32| PollTime {
        time: Timestamp::from_seconds(1_795_000_000 + i64::from(second)),
        at: Duration::from_secs(u64::from(second)),
    };
    let first = differ.polled(&snapshot, &state, &listing, moment(10));
    ensure!(first.is_empty(), "the first poll yields events: {:?}", first.events.first());
    differ.committed(&Committed::default(), Duration::from_secs(10));
    let downloading = listing.torrents.values_mut().filter(|seen| !seen.torrent.finished);
    for seen in downloading.take(changed) {
        seen.torrent.downloaded += 5_000_000;
        seen.torrent.uploaded += 20_000_000;
        seen.torrent.left = seen.torrent.left.map(|left| left - 5_000_000);
        seen.facts.received_bytes += 5_000_000;
        seen.facts.moved_bytes += 25_000_000;
    }
    let began = Instant::now();
    let change_set = black_box(differ.polled(&snapshot, &state, &listing, moment(20)));
    let took = began.elapsed();
    ensure!(change_set.changes.len() == changed, "{} changes instead of {changed}", change_set.changes.len());
    Ok(took)
}
