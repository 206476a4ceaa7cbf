//! The mapping of rTorrent's columns to a torrent of the model.
//!
//! [`COLUMNS`] lists the columns that are read of each torrent, each with the field of [`TorrentRow`] that it
//! sets, so that one table serves a listing, a listing in several parts, and a single torrent. A column that
//! a server does not have is left out, and its field stays at its default.
//!
//! Choices that are not obvious:
//! - `active` is `d.is_active`; `downloaded` is `d.completed_bytes`, whole checked pieces only. Both that
//!   and `progress` fall to 0 while rTorrent hashes: the engine keeps the last numbers meanwhile.
//! - `left` is 0 when all *selected* files are complete; rTorrent's own figure counts the others too.
//! - `added_at` is the custom value `addtime`, which ruTorrent, Flood and our own `add` set. rTorrent
//!   keeps no such time: its load date is that of the last restart. Unknown is better than that.
//! - The label is custom1, percent-encoded as ruTorrent and Flood do. Read leniently: what is no encoded text is shown
//!   as it stands.

use std::borrow::Cow;
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::Value as Json;

use super::calls::{Call, Cell};
use super::guard::{Guard, LONG};
use super::settings::ExtraColumn;
use crate::model::{
    Extra, Facts, InfoHash, Interner, Observed, ServerName, Status, TextLimit, Timestamp, Torrent, eta_seconds,
    progress, ratio,
};

/// A message that is no error: some tracker answered, or there is none to ask.
const NOT_AN_ERROR: &str = "Tracker: [Tried all trackers.]";

/// One torrent in rTorrent's terms, each field named after its column. Sizes are bytes, rates bytes per second,
/// times seconds since 1970 or 0 for never.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct TorrentRow {
    /// Columns that stay the same as long as the torrent is loaded.
    pub fixed: FixedColumns,
    /// Wants to run.
    pub state: bool,
    /// Runs.
    pub is_active: bool,
    /// Has its files open.
    pub is_open: bool,
    /// Its data is being read, after the wait that `hashing` includes.
    pub is_hash_checking: bool,
    /// 0 no check, 1 initial, 2 on completion, 3 re-check; also while the torrent waits for its check.
    pub hashing: u64,
    /// The last check ended with an error, for example a missing file.
    pub hashing_failed: bool,
    /// Every piece is there.
    pub complete: bool,
    /// Every piece of the selected files is there.
    pub is_partially_done: bool,
    /// Whole, checked pieces only.
    pub completed_bytes: u64,
    /// Bytes that are missing, of unselected files too.
    pub left_bytes: u64,
    /// Payload sent, over all loads.
    pub up_total: u64,
    /// Payload received, since this load.
    pub down_total: u64,
    /// Current rate.
    pub up_rate: u64,
    /// Current rate.
    pub down_rate: u64,
    /// Connections, to seeds too.
    pub peers_connected: u64,
    /// Connected seeds.
    pub peers_complete: u64,
    /// The last message of a tracker or of rTorrent itself, an error or not.
    pub message: String,
    /// The label, percent-encoded by some clients.
    pub custom1: String,
    /// Custom value that other clients and our own `add` set; 0 for what nobody set.
    pub addtime: u64,
    /// 0 off, 1 low, 2 normal, 3 high.
    pub priority: u64,
    /// Directory of the content; empty for a torrent that was never open.
    pub directory: String,
    /// Time of the last start.
    pub started: u64,
    /// Time at which its last piece arrived.
    pub finished: u64,
    /// The peer id of this load, another one each time.
    pub local_id: String,
    /// Number of trackers, DHT included.
    pub tracker_size: u64,
    /// In the order of the settings; `None` for what this server does not have.
    pub extra: Vec<Option<Json>>,
    /// Number of parts of a listing that hold the torrent.
    pub parts: usize,
}

/// Columns that stay the same as long as a torrent is loaded, as far as was ever observed.
///
/// Read once for each load, and again with every full listing that leaves nothing out.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct FixedColumns {
    /// Name of the file or folder, as the torrent states it.
    pub name: String,
    /// Size of all files.
    pub size_bytes: u64,
    /// Whether peers come from its trackers alone.
    pub is_private: bool,
    /// Whether it is a magnet link without metadata.
    pub is_meta: bool,
    /// The watched file that it was loaded from, or a magnet link; empty if there is none.
    pub tied_to_file: String,
    /// The copy of the .torrent file in rTorrent's session.
    pub loaded_file: String,
    /// Number of files.
    pub size_files: u64,
}

/// The methods of [`FixedColumns`].
const FIXED: &[&str] =
    &["d.name", "d.size_bytes", "d.is_private", "d.is_meta", "d.tied_to_file", "d.loaded_file", "d.size_files"];

/// Columns that change only when a torrent starts, stops or is complete.
const TIMES: &[&str] = &["d.timestamp.started", "d.timestamp.finished"];

impl TorrentRow {
    /// A row without values, for so many columns of the user.
    pub(super) fn new(extra: usize) -> Self {
        Self { extra: vec![None; extra], ..Self::default() }
    }

    /// Returns whether it is hash-checked, or waits for that.
    ///
    /// A check that cannot open a file ends with `hashing_failed`, and leaves `hashing` as it was. rTorrent does not
    /// take such a torrent up again (`receive_hashing_changed` skips it), so nothing will change it but a command. Those
    /// that it forgets without `hashing_failed` are known by others alone (`actions::forgotten`).
    pub(super) fn is_checking(&self) -> bool {
        self.is_hash_checking || self.hashing != 0 && !self.hashing_failed
    }

    /// Returns whether its check failed in a way that left it in the queue of checks for ever.
    pub(super) fn is_stuck(&self) -> bool {
        self.hashing != 0 && !self.is_checking()
    }

    /// Returns whether its numbers change from poll to poll.
    pub(super) fn is_moving(&self) -> bool {
        self.up_rate > 0 || self.down_rate > 0 || self.is_hash_checking
    }
}

/// A column of every torrent.
#[derive(Clone, Copy)]
pub(super) struct Column {
    /// The getter.
    pub method: &'static str,
    /// Key of `d.custom`.
    pub key: Option<&'static str>,
    /// The setter of its field, which returns `None` if the value is of the wrong kind.
    set: fn(&mut TorrentRow, &Cell<'_>) -> Option<()>,
}

macro_rules! columns {
    ($($method:literal $(($key:literal))? => $($field:ident).+: $kind:ident),* $(,)?) => {
        &[$(Column {
            method: $method,
            key: columns!(@key $($key)?),
            set: |row, cell| { row.$($field).+ = $kind(cell)?; Some(()) },
        }),*]
    };
    (@key) => { None };
    (@key $key:literal) => { Some($key) };
}

/// Every column but the hash, which comes first in each part of a listing.
pub(super) const COLUMNS: &[Column] = columns! {
    "d.name" => fixed.name: name,
    "d.state" => state: flag,
    "d.is_active" => is_active: flag,
    "d.is_open" => is_open: flag,
    "d.is_hash_checking" => is_hash_checking: flag,
    "d.hashing" => hashing: number,
    "d.hashing_failed" => hashing_failed: flag,
    "d.complete" => complete: flag,
    "d.is_partially_done" => is_partially_done: flag,
    "d.completed_bytes" => completed_bytes: number,
    "d.size_bytes" => fixed.size_bytes: number,
    "d.left_bytes" => left_bytes: number,
    "d.up.total" => up_total: number,
    "d.down.total" => down_total: number,
    "d.up.rate" => up_rate: number,
    "d.down.rate" => down_rate: number,
    "d.peers_connected" => peers_connected: number,
    "d.peers_complete" => peers_complete: number,
    "d.message" => message: message,
    "d.custom1" => custom1: encoded_label,
    "d.custom"("addtime") => addtime: free_number,
    "d.priority" => priority: number,
    "d.directory" => directory: path,
    "d.is_private" => fixed.is_private: flag,
    "d.is_meta" => fixed.is_meta: flag,
    "d.tied_to_file" => fixed.tied_to_file: path,
    "d.loaded_file" => fixed.loaded_file: path,
    "d.timestamp.started" => started: number,
    "d.timestamp.finished" => finished: number,
    "d.local_id" => local_id: word,
    "d.size_files" => fixed.size_files: number,
    "d.tracker_size" => tracker_size: number,
};

fn flag(cell: &Cell<'_>) -> Option<bool> {
    cell.int().map(|number| number != 0)
}

/// Reads a number; negative ones, which very old servers return on overflow, become 0.
fn number(cell: &Cell<'_>) -> Option<u64> {
    cell.int().map(|number| u64::try_from(number).unwrap_or(0))
}

/// Reads a custom value, which anybody may write: text that is no number becomes 0.
fn free_number(cell: &Cell<'_>) -> Option<u64> {
    // An error here would lose the row and with it the completeness of every listing.
    Some(number(cell).unwrap_or(0))
}

fn name(cell: &Cell<'_>) -> Option<String> {
    cell.text_within(TextLimit::Name)
}

fn message(cell: &Cell<'_>) -> Option<String> {
    cell.text_within(TextLimit::Message)
}

/// Reads a label in its encoded form, of which three bytes stand for one at most. It is cut when it is decoded.
fn encoded_label(cell: &Cell<'_>) -> Option<String> {
    let Cell::Text(text) = cell else { return None };
    let encoded_max = 3 * TextLimit::Label.bytes_max() + 3;
    Some(String::from_utf8_lossy(&text[..text.len().min(encoded_max)]).into_owned())
}

fn path(cell: &Cell<'_>) -> Option<String> {
    cell.text_within(TextLimit::Path)
}

fn word(cell: &Cell<'_>) -> Option<String> {
    cell.text_within(TextLimit::Word)
}

/// A column of the program or of the user.
#[derive(Clone)]
pub(super) enum Field {
    Own(Column),
    /// A column whose text rTorrent leaves out if it is long.
    Guarded(Column, Guard),
    /// A column of the user, with its place in [`TorrentRow::extra`].
    Extra(usize, ExtraColumn, Option<Guard>),
}

impl Field {
    pub(super) fn method(&self) -> &'static str {
        match self {
            Self::Own(column) | Self::Guarded(column, _) => column.method,
            Self::Extra(_, column, _) => column.method(),
        }
    }

    fn key(&self) -> Option<&str> {
        match self {
            Self::Own(column) | Self::Guarded(column, _) => column.key,
            Self::Extra(_, column, _) => column.key(),
        }
    }

    /// Returns whether the column belongs to [`FixedColumns`].
    pub(super) fn is_fixed(&self) -> bool {
        matches!(self, Self::Own(column) | Self::Guarded(column, _) if FIXED.contains(&column.method))
    }

    /// Returns whether the column follows from what is known, for a torrent in the same state: the times stay
    /// the same, and `d.hashing` shows whether it is hash-checked.
    pub(super) fn follows_from_state(&self) -> bool {
        matches!(self, Self::Own(column) if TIMES.contains(&column.method) || column.method == "d.is_hash_checking")
    }

    /// Returns the call that reads the column of one torrent.
    pub(super) fn call(&self, hash: InfoHash) -> Call {
        match self {
            Self::Guarded(_, guard) | Self::Extra(_, _, Some(guard)) => guard.call(hash),
            Self::Own(_) | Self::Extra(_, _, None) => Call::column(hash, self.method(), self.key()),
        }
    }

    /// Returns the column as an argument of a listing.
    pub(super) fn command(&self) -> String {
        match self {
            Self::Guarded(_, guard) | Self::Extra(_, _, Some(guard)) => guard.command(),
            Self::Own(_) | Self::Extra(_, _, None) => format!("{}={}", self.method(), self.key().unwrap_or("")),
        }
    }

    /// Sets the field of the column; `None` if the value is of the wrong kind.
    pub(super) fn set(&self, row: &mut TorrentRow, cell: &Cell<'_>) -> Option<()> {
        match self {
            Self::Own(column) | Self::Guarded(column, _) => (column.set)(row, cell),
            Self::Extra(place, ..) => {
                *row.extra.get_mut(*place)? = match cell {
                    Cell::Int(number) => Some(Json::from(*number)),
                    // The column stands for what others choose, and its beginning is of no use.
                    Cell::Text(text) if **text == *LONG.as_bytes() => Some(Json::from("…")),
                    Cell::Text(_) => cell.text_within(TextLimit::Extra).map(Json::from),
                    Cell::Null => None,
                };
                Some(())
            }
        }
    }
}

fn status(row: &TorrentRow) -> Status {
    // First of all: `d.check_hash` closes a torrent, which the other columns show as queued or stopped.
    if row.is_checking() {
        Status::Checking
    } else if row.fixed.is_meta && row.is_active {
        // Only while it runs: a stopped magnet link fetches no metadata.
        Status::Metadata
    } else if row.is_active && has_all_selected(row) {
        Status::Seeding
    } else if row.is_active {
        Status::Downloading
    } else if row.is_open && row.state {
        Status::Paused
    } else if row.state {
        Status::Queued
    } else {
        Status::Stopped
    }
}

fn has_all_selected(row: &TorrentRow) -> bool {
    row.complete || row.is_partially_done
}

/// Converts a row. `extra` are the user's column names, in the order of [`TorrentRow::extra`].
pub(super) fn observed(
    server: &ServerName,
    hash: InfoHash,
    row: TorrentRow,
    tracker: Option<Arc<str>>,
    extra: impl Iterator<Item = Arc<str>>,
    interner: &mut Interner,
) -> Observed {
    let status = status(&row);
    // `d.left_bytes` counts files that are not selected, too.
    let left = if has_all_selected(&row) { 0 } else { row.left_bytes };
    let facts = Facts {
        load: (!row.local_id.is_empty()).then_some(row.local_id),
        complete: row.complete,
        has_metadata: !row.fixed.is_meta,
        received_bytes: row.down_total,
        moved_bytes: row.up_total.saturating_add(row.down_total),
    };
    let extra: Extra = extra.zip(row.extra).map(|(name, value)| (name, value.unwrap_or(Json::Null))).collect();
    let torrent = Torrent {
        hash,
        name: row.fixed.name,
        server: server.clone(),
        active: row.is_active,
        downloaded: row.completed_bytes,
        uploaded: row.up_total,
        length: row.fixed.size_bytes,
        path: [row.fixed.tied_to_file, row.fixed.loaded_file]
            .into_iter()
            // A magnet link that is not resolved was loaded from the link, which is no path.
            .find(|path| !path.is_empty() && !path.starts_with("magnet:")),
        // The size of a magnet link is that of its metadata.
        progress: if row.fixed.is_meta { 0.0 } else { progress(row.completed_bytes, row.fixed.size_bytes) },
        ratio: ratio(row.up_total, row.completed_bytes),
        finished: row.complete && row.hashing == 0,
        playing: row.up_rate > 0 || row.down_rate > 0,
        extra,
        status,
        error: row.hashing_failed || !(row.message.is_empty() || row.message == NOT_AN_ERROR),
        message: Some(interner.intern(&row.message)),
        stalled: false,
        download_rate: Some(row.down_rate),
        upload_rate: Some(row.up_rate),
        left: Some(left),
        eta: (status == Status::Downloading).then(|| eta_seconds(left, row.down_rate)).flatten(),
        peers: Some(row.peers_connected),
        seeds: Some(row.peers_complete),
        label: Some(interner.intern(&TextLimit::Label.cut(&decode_label(&row.custom1)))),
        directory: Some(interner.intern(&row.directory)),
        private: Some(row.fixed.is_private),
        // Outside its scale it is unknown rather than clamped (I2).
        priority: u8::try_from(row.priority).ok().filter(|priority| *priority <= 3),
        tracker,
        added_at: time(row.addtime),
        started_at: time(row.started),
        finished_at: time(row.finished),
        size_files: Some(row.fixed.size_files),
    };
    Observed { torrent, facts }
}

fn time(seconds: u64) -> Option<Timestamp> {
    (seconds != 0).then(|| Timestamp::from_seconds(i64::try_from(seconds).unwrap_or(i64::MAX)))
}

fn decode_label(written: &str) -> Cow<'_, str> {
    percent_decode_str(written).decode_utf8().unwrap_or(Cow::Borrowed(written))
}

/// The complement of what every reader of a label leaves unchanged.
const LABEL_ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Encodes a label for custom1, to letters, digits and `-_.~%`.
///
/// As ruTorrent and Flood do, always: `decodeURIComponent`, with which both read it, throws at a bare `%` (Flood then
/// lists nothing at all), and Flood takes a bare comma for the end of a tag. It also keeps text beyond the basic
/// multilingual plane, for which xmlrpc-c answers `?`, and is harmless in a command.
pub(super) fn encode_label(label: &str) -> String {
    utf8_percent_encode(label, LABEL_ENCODED).to_string()
}

/// Returns the host of the first enabled tracker, or else of the first one. Each item is whether the tracker is
/// enabled, and its URL.
pub(super) fn tracker_host<'a>(trackers: impl Iterator<Item = (bool, &'a str)> + Clone) -> Option<String> {
    let host = |url: &str| {
        let rest = url.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https" | "udp"))?.1;
        let authority = rest.split(['/', '?', '#']).next()?;
        let host_and_port = authority.rsplit('@').next()?;
        // IPv6 in brackets, whose colons are no port.
        let host = match host_and_port.strip_prefix('[') {
            Some(v6) => v6.split(']').next()?,
            None => host_and_port.split(':').next()?,
        };
        let is_clean = !host.is_empty() && !host.chars().any(|c| c.is_control() || c.is_whitespace());
        is_clean.then(|| host.to_ascii_lowercase())
    };
    // The torrent's own order. A disabled tracker is better than none: the host is a label for people.
    let enabled = trackers.clone().filter(|(is_enabled, _)| *is_enabled);
    enabled.chain(trackers).find_map(|(_, url)| host(url))
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    fn seen(row: TorrentRow) -> Torrent {
        let server = ServerName::parse("home").unwrap();
        observed(&server, InfoHash::V1([1; 20]), row, None, std::iter::empty(), &mut Interner::default()).torrent
    }

    #[test]
    fn status_follows_the_columns_and_the_first_match_wins() {
        // state, active, open, hash_checking, hashing, complete, partial, meta, failed
        for (columns, expected) in [
            ("s a o . . . . .", Status::Downloading),
            ("s a o . . c p .", Status::Seeding),
            ("s a o . . . p .", Status::Seeding),
            ("s a o . . . . m", Status::Metadata),
            ("s . o . . . . m", Status::Paused),
            (". . . . . . . m", Status::Stopped),
            ("s . o . . c p .", Status::Paused),
            ("s . . . . . . .", Status::Queued),
            (". . o . . c . .", Status::Stopped),
            (". . . . . . . .", Status::Stopped),
            (". a o . . . . .", Status::Downloading),
            ("s a o h n c p .", Status::Checking),
            ("s . . . n . . .", Status::Checking),
            (". . . h n . . m", Status::Checking),
            ("s . . h n . . . f", Status::Checking),
            ("s . . . n . . . f", Status::Queued),
            (". . . . n . . . f", Status::Stopped),
        ] {
            let has = |letter| columns.contains(letter);
            let row = TorrentRow {
                state: has('s'),
                is_active: has('a'),
                is_open: has('o'),
                is_hash_checking: has('h'),
                hashing: u64::from(has('n')) * 3,
                hashing_failed: has('f'),
                complete: has('c'),
                is_partially_done: has('p'),
                fixed: FixedColumns { is_meta: has('m'), ..FixedColumns::default() },
                ..TorrentRow::default()
            };
            assert_eq!(status(&row), expected, "{columns}");
        }
    }

    #[test]
    fn a_message_is_an_error_unless_it_says_that_all_trackers_were_tried() {
        for (message, hashing_failed, expected) in [
            ("", false, false),
            ("", true, true),
            ("Tracker: [Tried all trackers.]", false, false),
            ("Tracker: [Tried all trackers.]", true, true),
            ("Tracker: [Failure reason \"unregistered torrent\"]", false, true),
            ("Low diskspace.", true, true),
        ] {
            let torrent = seen(TorrentRow { message: message.to_owned(), hashing_failed, ..TorrentRow::default() });
            assert_eq!((torrent.error, torrent.message.as_deref()), (expected, Some(message)));
        }
    }

    #[test]
    fn a_complete_torrent_is_finished_only_while_it_is_not_hashed() {
        for (complete, hashing, expected) in [(true, 0, true), (true, 3, false), (true, 2, false), (false, 0, false)] {
            assert_eq!(seen(TorrentRow { complete, hashing, ..TorrentRow::default() }).finished, expected);
        }
    }

    #[test]
    fn files_that_are_not_selected_do_not_count_as_left() {
        let row = TorrentRow {
            fixed: FixedColumns { size_bytes: 100, ..FixedColumns::default() },
            completed_bytes: 40,
            left_bytes: 60,
            down_rate: 7,
            is_active: true,
            ..TorrentRow::default()
        };
        assert_eq!((seen(row.clone()).left, seen(row.clone()).eta), (Some(60), Some(9)));
        let selected = TorrentRow { is_partially_done: true, ..row };
        assert_eq!((seen(selected.clone()).left, seen(selected).eta), (Some(0), None));
    }

    #[test]
    fn a_time_of_zero_is_unknown_and_the_load_date_is_not_taken_for_it() {
        let torrent = seen(TorrentRow { started: 0, finished: 5, addtime: 0, ..TorrentRow::default() });
        assert_eq!((torrent.started_at, torrent.finished_at), (None, Some(Timestamp::from_seconds(5))));
        assert_eq!(torrent.added_at, None);
    }

    #[test]
    fn a_label_comes_back_as_it_was_set() {
        for (label, written) in [
            ("linux", "linux"),
            ("my label, two", "my%20label%2C%20two"),
            ("Ünï", "%C3%9Cn%C3%AF"),
            ("100%", "100%25"),
            ("50%41", "50%2541"),
            ("$execute.throw=id", "%24execute.throw%3Did"),
            ("🦀", "%F0%9F%A6%80"),
            ("Ü🦀", "%C3%9C%F0%9F%A6%80"),
            ("", ""),
        ] {
            assert_eq!(encode_label(label), written);
            assert_eq!(decode_label(written), label);
        }
        for (stored, shown) in [("%ff", "%ff"), ("100%", "100%"), ("a b, c", "a b, c"), ("Ünï%20%zz", "Ünï %zz")] {
            assert_eq!(decode_label(stored), shown, "as far as it is encoded text");
        }
    }

    #[test]
    fn the_tracker_is_the_host_of_the_first_that_is_asked() {
        for (trackers, expected) in [
            (&[(true, "http://Tracker.Example:80/announce?passkey=x")][..], Some("tracker.example")),
            (&[(false, "http://a/"), (true, "udp://b:6969")], Some("b")),
            (&[(false, "http://a/")], Some("a")),
            (&[(true, "dht://"), (true, "https://user:word@c/x")], Some("c")),
            (&[(true, "http://[2001:db8::1]:80/announce")], Some("2001:db8::1")),
            (&[(true, "dht://")], None),
            (&[(true, "nonsense")], None),
            (&[], None),
        ] {
            assert_eq!(tracker_host(trackers.iter().copied()).as_deref(), expected, "{trackers:?}");
        }
    }

    #[test]
    fn the_origin_of_a_torrent_is_a_file_and_no_link() {
        for (tied, loaded, expected) in [
            ("/watch/a.torrent", "/session/A.torrent", Some("/watch/a.torrent")),
            ("", "/session/A.torrent", Some("/session/A.torrent")),
            ("", "magnet:?xt=urn:btih:00", None),
            ("", "", None),
        ] {
            let (tied_to_file, loaded_file) = (tied.to_owned(), loaded.to_owned());
            let fixed = FixedColumns { tied_to_file, loaded_file, ..FixedColumns::default() };
            assert_eq!(seen(TorrentRow { fixed, ..TorrentRow::default() }).path.as_deref(), expected);
        }
    }

    #[test]
    fn extra_columns_carry_the_users_names_and_null_where_there_is_nothing() {
        let server = ServerName::parse("home").unwrap();
        let mut row = TorrentRow { extra: vec![None; 3], ..TorrentRow::default() };
        for (place, cell) in [(0, Cell::Int(-7)), (1, Cell::Text(Cow::Borrowed(b"caf\xe9")))] {
            let field = Field::Extra(place, ExtraColumn::parse("d.ratio=").unwrap(), None);
            field.set(&mut row, &cell).unwrap();
        }
        let names = ["a", "b", "c"].map(Arc::from).into_iter();
        let extra = observed(&server, InfoHash::V1([1; 20]), row, None, names, &mut Interner::default()).torrent.extra;
        assert_eq!(serde_json::to_string(&extra).unwrap(), r#"{"a":-7,"b":"caf�","c":null}"#);
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_refused() {
        for (method, cell, is_right) in [
            ("d.name", Cell::Int(1), false),
            ("d.state", Cell::Text(Cow::Borrowed(b"on")), false),
            ("d.size_bytes", Cell::Int(-5), true),
            ("d.custom", Cell::Text(Cow::Borrowed(b"soon")), true),
            ("d.hashing", Cell::Null, false),
        ] {
            let column = COLUMNS.iter().find(|column| column.method == method).unwrap();
            let is_taken = Field::Own(*column).set(&mut TorrentRow::default(), &cell).is_some();
            assert_eq!(is_taken, is_right, "{method} {cell:?}");
        }
    }
}
