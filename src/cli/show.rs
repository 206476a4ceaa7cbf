//! `dtorrent show`: prints one torrent with its files, trackers and peers.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;
use unicode_width::UnicodeWidthStr as _;

use super::set::PRIORITIES;
use super::terminal::select::select;
use super::terminal::server::{ServerChoice, Session, report_error};
use super::terminal::table::{Cell, Column, cut, table};
use super::terminal::{human, paint, print_json, print_text, width};
use super::{CommandResult, Exit, Options, refused, usage};
use crate::manager::TorrentDetails;
use crate::model::{File, Filter, Parts, Peer, Timestamp, Torrent, Tracker, printable};
use crate::port::{Clock as _, SystemClock};

#[derive(Clone, Debug, Args)]
pub(super) struct Arguments {
    /// The server, if there are several, and the torrent: the beginning of its hash, or its name
    #[arg(value_name = "[SERVER] SELECTOR", required = true)]
    selectors: Vec<String>,
    #[command(flatten)]
    choice: ServerChoice,
    /// Show its trackers, too
    #[arg(long)]
    trackers: bool,
    /// Show its peers, too
    #[arg(long)]
    peers: bool,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

const FILES: [Column; 4] =
    [Column::right("DONE", 2), Column::right("SIZE", 1), Column::left("PRIORITY", 3), Column::left("FILE", 0)];
const TRACKERS: [Column; 4] =
    [Column::left("ENABLED", 1), Column::right("SEEDS", 2), Column::right("LEECHES", 3), Column::left("TRACKER", 0)];
const PEERS: [Column; 4] =
    [Column::right("DONE", 1), Column::right("GOT", 2), Column::left("ADDRESS", 3), Column::left("CLIENT", 0)];

pub(super) fn run(options: Options, arguments: Arguments) -> CommandResult {
    let Arguments { selectors, choice, trackers, peers, json } = arguments;
    let parts = Parts { torrent: true, files: true, trackers, peers };
    let details = read_one(options, selectors, &choice, parts)?;
    if json { print_json(&details) } else { print_text(&page(&details, width())) }
}

/// Reads these parts of the one torrent that is selected.
pub(super) fn read_one(
    options: Options,
    selectors: Vec<String>,
    choice: &ServerChoice,
    parts: Parts,
) -> Result<TorrentDetails, Exit> {
    let session = Session::start(options)?;
    let (server, selectors) = session.server(choice, selectors)?;
    if selectors.len() != 1 {
        return Err(usage("select one torrent, by a prefix of its hash or by its name"));
    }
    session.run(async {
        let (_manager, watcher, torrents) = session.reach(&server).await?;
        let found = select(&torrents, &selectors, &Filter::default(), SystemClock.now());
        let found = found.and_then(|found| match found.as_slice() {
            [one] => Ok(one.hash),
            several => Err(format!("{} torrents match; select one by its hash", several.len())),
        });
        let hash = found.map_err(|error| refused(&error))?;
        watcher.get_parts(hash, parts).await.map_err(|error| report_error(&error))
    })
}

/// Returns trackers as a table; nothing without any.
pub(super) fn trackers_table(trackers: &[Tracker], width: Option<usize>) -> String {
    let rows: Vec<Vec<Cell>> = trackers.iter().map(tracker).collect();
    if rows.is_empty() { String::new() } else { table(&TRACKERS, &rows, width) }
}

/// Returns the fields of the torrent, and its files, trackers and peers as tables.
fn page(details: &TorrentDetails, width: Option<usize>) -> String {
    let TorrentDetails { torrent, files, trackers, peers, .. } = details;
    let mut text = String::new();
    let lines = lines(torrent);
    let wide = lines.iter().map(|(what, _)| what.width()).max().unwrap_or(0);
    for (what, cell) in lines {
        let cell_text = width.map_or(cell.text.clone(), |width| cut(&cell.text, width.saturating_sub(wide + 2).max(1)));
        let what = paint::painted(paint::FAINT, &format!("{what:wide$}"));
        writeln!(text, "{what}  {}", paint::painted(cell.style, &cell_text)).expect("a String takes everything");
    }
    let rows = [
        (FILES, files.iter().flatten().map(file).collect::<Vec<_>>()),
        (TRACKERS, trackers.iter().flatten().map(tracker).collect()),
        (PEERS, peers.iter().flatten().map(peer).collect()),
    ];
    for (columns, rows) in rows.iter().filter(|(_, rows)| !rows.is_empty()) {
        text.push('\n');
        text.push_str(&table(columns, rows, width));
    }
    text
}

fn plain(text: &str) -> Cell {
    Cell::from(printable(text.as_bytes()))
}

fn number(number: Option<u64>) -> Cell {
    Cell::from(number.map(|number| number.to_string()).unwrap_or_default())
}

fn lines(torrent: &Torrent) -> Vec<(&'static str, Cell)> {
    let style = paint::status(torrent.status);
    let stalled = if torrent.stalled { ", stalled" } else { "" };
    let moment = |time: Option<Timestamp>| time.map(|time| time.to_string());
    let amount = |bytes: u64| format!("{} ({bytes} bytes)", human::bytes(bytes));
    let rates = match (human::rate(torrent.download_rate), human::rate(torrent.upload_rate)) {
        (down, up) if down.is_empty() && up.is_empty() => None,
        (down, up) => Some(format!("down {}, up {}", or_none(&down), or_none(&up))),
    };
    let peers = torrent.peers.map(|peers| match torrent.seeds {
        Some(seeds) => format!("{peers} connected ({})", human::count(seeds, "seed")),
        None => format!("{peers} connected"),
    });
    let eta = torrent.eta.map(|seconds| human::duration(Duration::from_secs(seconds)));
    let priority = torrent.priority.map(|number| PRIORITIES[usize::from(number.min(3))].to_owned());
    let all = [
        ("name", Some(plain(&torrent.name))),
        ("hash", Some(Cell::from(torrent.hash.to_string()))),
        ("server", Some(Cell::from(torrent.server.to_string()))),
        ("status", Some(Cell::painted(format!("{}{stalled}", torrent.status.as_str()), style))),
        ("error", human::error(torrent).map(|text| Cell::painted(text, paint::BAD))),
        ("message", torrent.message.as_deref().filter(|text| !torrent.error && !text.is_empty()).map(plain)),
        ("progress", Some(Cell::from(human::progress(torrent.progress, 20)))),
        ("size", Some(Cell::from(amount(torrent.length)))),
        ("downloaded", Some(Cell::from(amount(torrent.downloaded)))),
        ("uploaded", Some(Cell::from(amount(torrent.uploaded)))),
        ("ratio", torrent.ratio.map(|ratio| Cell::from(format!("{ratio:.3}")))),
        ("rates", rates.map(Cell::from)),
        ("eta", eta.map(Cell::from)),
        ("peers", peers.map(Cell::from)),
        ("label", torrent.label.as_deref().filter(|label| !label.is_empty()).map(plain)),
        ("priority", priority.map(Cell::from)),
        ("directory", torrent.directory.as_deref().map(plain)),
        ("tracker", torrent.tracker.as_deref().map(plain)),
        ("private", torrent.private.map(|private| Cell::from(if private { "yes" } else { "no" }.to_owned()))),
        ("added", moment(torrent.added_at).map(Cell::from)),
        ("started", moment(torrent.started_at).map(Cell::from)),
        ("finished", moment(torrent.finished_at).map(Cell::from)),
    ];
    let mut lines: Vec<_> = all.into_iter().filter_map(|(what, cell)| Some((what, cell?))).collect();
    for (key, value) in torrent.extra.iter().filter(|(_, value)| !value.is_null()) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        lines.push(("extra", plain(&format!("{key} = {value}"))));
    }
    lines
}

fn or_none(rate: &str) -> &str {
    if rate.is_empty() { "nothing" } else { rate }
}

fn file(file: &File) -> Vec<Cell> {
    let File { path, length, progress, priority, .. } = file;
    let priority = priority.map(|number| ["off", "normal", "high"][usize::from(number.min(2))]).unwrap_or_default();
    vec![
        Cell::from(format!("{progress:.1}%")),
        Cell::from(human::bytes(*length)),
        Cell::from(if priority == "normal" { String::new() } else { priority.to_owned() }),
        plain(path),
    ]
}

fn tracker(tracker: &Tracker) -> Vec<Cell> {
    let Tracker { url, enabled, seeds, leeches, .. } = tracker;
    vec![Cell::from(if *enabled { "yes" } else { "no" }.to_owned()), number(*seeds), number(*leeches), plain(url)]
}

fn peer(peer: &Peer) -> Vec<Cell> {
    let Peer { address, port, client, progress, downloaded, .. } = peer;
    let address = port.map_or_else(|| address.clone(), |port| format!("{address}:{port}"));
    vec![
        Cell::from(progress.map(|progress| format!("{progress:.1}%")).unwrap_or_default()),
        Cell::from(downloaded.map(human::bytes).unwrap_or_default()),
        plain(&address),
        plain(client.as_deref().unwrap_or("unknown")),
    ]
}
