//! From rTorrent's columns to a torrent as the world sees it.
//!
//! [`COLUMNS`] is what we read of each torrent; every column says into which field of [`Raw`] it goes,
//! so that the same table serves a listing, a listing in several parts, and one torrent alone. What a
//! server does not have is left out, and its field stays at its default.
//!
//! Choices that are not obvious:
//! - `active` is `d.is_active`; `downloaded` is `d.completed_bytes`, whole checked pieces only. Both that
//!   and `progress` fall to 0 while rTorrent hashes: the engine holds the last numbers meanwhile.
//! - `left` is 0 when all *selected* files are here; rTorrent's own figure counts the others too.
//! - `added_at` is the custom value `addtime`, which ruTorrent, Flood and our own `add` set. rTorrent
//!   keeps no such time: its load date is that of the last restart. Unknown is better than that.
//! - The label is custom1, percent-decoded as ruTorrent and Flood encode it.

use std::borrow::Cow;
use std::sync::Arc;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::Value as Json;

use super::calls::Cell;
use super::settings::ExtraColumn;
use crate::model::{
    Extra, Facts, InfoHash, Observed, ServerName, Status, Timestamp, Torrent, Words, eta_seconds, progress, ratio,
};

/// Says nothing of the torrent: some tracker answered, or there is none to ask.
const NOT_AN_ERROR: &str = "Tracker: [Tried all trackers.]";

/// What rTorrent says of one torrent, in its own terms. Sizes are bytes, times seconds, 0 for never.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Raw {
    pub name: String,
    /// It wants to run.
    pub state: bool,
    /// It does run.
    pub is_active: bool,
    /// Its files are open.
    pub is_open: bool,
    pub is_hash_checking: bool,
    /// 0 no, 1 initial, 2 on completion, 3 re-check; also while it waits for that.
    pub hashing: u64,
    pub hashing_failed: bool,
    pub complete: bool,
    pub is_partially_done: bool,
    pub completed_bytes: u64,
    pub size_bytes: u64,
    pub left_bytes: u64,
    pub up_total: u64,
    pub down_total: u64,
    pub up_rate: u64,
    pub down_rate: u64,
    pub peers_connected: u64,
    pub peers_complete: u64,
    pub message: String,
    pub custom1: String,
    pub addtime: u64,
    pub priority: u64,
    pub directory: String,
    pub is_private: bool,
    pub is_meta: bool,
    pub tied_to_file: String,
    pub loaded_file: String,
    pub started: u64,
    pub finished: u64,
    pub local_id: String,
    pub size_files: u64,
    pub tracker_size: u64,
    /// In the order of the settings; `None` for what this server does not have.
    pub extra: Vec<Option<Json>>,
    /// Into how many parts of a listing it was found.
    pub parts: usize,
}

/// What stays as it is from one load of a torrent to the next, for all that anybody ever saw.
///
/// It is read with the load, and again with every whole listing.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Lasting {
    name: String,
    size_bytes: u64,
    is_private: bool,
    is_meta: bool,
    tied_to_file: String,
    loaded_file: String,
    size_files: u64,
}

/// The columns of [`Lasting`].
const LASTING: &[&str] =
    &["d.name", "d.size_bytes", "d.is_private", "d.is_meta", "d.tied_to_file", "d.loaded_file", "d.size_files"];

/// Columns that change only when a torrent starts, stops or is complete.
const TIMES: &[&str] = &["d.timestamp.started", "d.timestamp.finished"];

impl Raw {
    pub(super) fn lasting(&self) -> Lasting {
        Lasting {
            name: self.name.clone(),
            size_bytes: self.size_bytes,
            is_private: self.is_private,
            is_meta: self.is_meta,
            tied_to_file: self.tied_to_file.clone(),
            loaded_file: self.loaded_file.clone(),
            size_files: self.size_files,
        }
    }

    pub(super) fn set_lasting(&mut self, lasting: &Lasting) {
        let Lasting { name, size_bytes, is_private, is_meta, tied_to_file, loaded_file, size_files } = lasting;
        self.name.clone_from(name);
        self.size_bytes = *size_bytes;
        self.is_private = *is_private;
        self.is_meta = *is_meta;
        self.tied_to_file.clone_from(tied_to_file);
        self.loaded_file.clone_from(loaded_file);
        self.size_files = *size_files;
    }

    /// Its numbers flow, so that each look shows others.
    pub(super) fn is_moving(&self) -> bool {
        self.up_rate > 0 || self.down_rate > 0 || self.is_hash_checking
    }
}

/// A column, and what to do with its value; `None` if the value is of the wrong kind.
#[derive(Clone, Copy)]
pub(super) struct Column {
    pub method: &'static str,
    pub key: Option<&'static str>,
    set: fn(&mut Raw, &Cell<'_>) -> Option<()>,
}

macro_rules! columns {
    ($($method:literal $(($key:literal))? => $field:ident: $kind:ident),* $(,)?) => {
        &[$(Column {
            method: $method,
            key: columns!(@key $($key)?),
            set: |raw, cell| { raw.$field = $kind(cell)?; Some(()) },
        }),*]
    };
    (@key) => { None };
    (@key $key:literal) => { Some($key) };
}

/// Everything but the hash, which comes first in each part of a listing.
pub(super) const COLUMNS: &[Column] = columns! {
    "d.name" => name: text,
    "d.state" => state: flag,
    "d.is_active" => is_active: flag,
    "d.is_open" => is_open: flag,
    "d.is_hash_checking" => is_hash_checking: flag,
    "d.hashing" => hashing: number,
    "d.hashing_failed" => hashing_failed: flag,
    "d.complete" => complete: flag,
    "d.is_partially_done" => is_partially_done: flag,
    "d.completed_bytes" => completed_bytes: number,
    "d.size_bytes" => size_bytes: number,
    "d.left_bytes" => left_bytes: number,
    "d.up.total" => up_total: number,
    "d.down.total" => down_total: number,
    "d.up.rate" => up_rate: number,
    "d.down.rate" => down_rate: number,
    "d.peers_connected" => peers_connected: number,
    "d.peers_complete" => peers_complete: number,
    "d.message" => message: text,
    "d.custom1" => custom1: text,
    "d.custom"("addtime") => addtime: free_number,
    "d.priority" => priority: number,
    "d.directory" => directory: text,
    "d.is_private" => is_private: flag,
    "d.is_meta" => is_meta: flag,
    "d.tied_to_file" => tied_to_file: text,
    "d.loaded_file" => loaded_file: text,
    "d.timestamp.started" => started: number,
    "d.timestamp.finished" => finished: number,
    "d.local_id" => local_id: text,
    "d.size_files" => size_files: number,
    "d.tracker_size" => tracker_size: number,
};

fn flag(cell: &Cell<'_>) -> Option<bool> {
    cell.int().map(|number| number != 0)
}

/// Negative is what very old servers say where they overflow: not known, so 0.
fn number(cell: &Cell<'_>) -> Option<u64> {
    cell.int().map(|number| u64::try_from(number).unwrap_or(0))
}

/// Anybody may write there: whatever is no number is none.
fn free_number(cell: &Cell<'_>) -> Option<u64> {
    Some(number(cell).unwrap_or(0))
}

fn text(cell: &Cell<'_>) -> Option<String> {
    cell.text()
}

/// A column of ours or of the user's.
#[derive(Clone)]
pub(super) enum Field {
    Own(Column),
    /// With its place in [`Raw::extra`].
    Extra(usize, ExtraColumn),
}

impl Field {
    pub(super) fn method(&self) -> &'static str {
        match self {
            Self::Own(column) => column.method,
            Self::Extra(_, column) => column.method(),
        }
    }

    pub(super) fn key(&self) -> Option<&str> {
        match self {
            Self::Own(column) => column.key,
            Self::Extra(_, column) => column.key(),
        }
    }

    /// Read with the load of a torrent, see [`Lasting`].
    pub(super) fn is_lasting(&self) -> bool {
        matches!(self, Self::Own(column) if LASTING.contains(&column.method))
    }

    /// Worth nothing in a listing of torrents whose state is known to be the same: the times are, and
    /// whether one is being hashed is said by `d.hashing`, too.
    pub(super) fn follows_from_state(&self) -> bool {
        matches!(self, Self::Own(column) if TIMES.contains(&column.method) || column.method == "d.is_hash_checking")
    }

    /// As it stands in a listing's request.
    pub(super) fn command(&self) -> String {
        format!("{}={}", self.method(), self.key().unwrap_or(""))
    }

    /// Puts a value where it belongs; `None` if it is of the wrong kind.
    pub(super) fn set(&self, raw: &mut Raw, cell: &Cell<'_>) -> Option<()> {
        match self {
            Self::Own(column) => (column.set)(raw, cell),
            Self::Extra(place, _) => {
                *raw.extra.get_mut(*place)? = match cell {
                    Cell::Int(number) => Some(Json::from(*number)),
                    Cell::Text(_) => cell.text().map(Json::from),
                    Cell::Null => None,
                };
                Some(())
            }
        }
    }
}

fn status(raw: &Raw) -> Status {
    if raw.is_hash_checking || raw.hashing != 0 {
        Status::Checking
    } else if raw.is_meta && raw.is_active {
        Status::Metadata
    } else if raw.is_active && has_all_selected(raw) {
        Status::Seeding
    } else if raw.is_active {
        Status::Downloading
    } else if raw.is_open && raw.state {
        Status::Paused
    } else if raw.state {
        Status::Queued
    } else {
        Status::Stopped
    }
}

fn has_all_selected(raw: &Raw) -> bool {
    raw.complete || raw.is_partially_done
}

/// A torrent out of its columns. `extra` are the user's names, in the order of [`Raw::extra`].
pub(super) fn observed(
    server: &ServerName,
    hash: InfoHash,
    raw: Raw,
    tracker: Option<Arc<str>>,
    extra: impl Iterator<Item = Arc<str>>,
    words: &mut Words,
) -> Observed {
    let status = status(&raw);
    let left = if has_all_selected(&raw) { 0 } else { raw.left_bytes };
    let facts = Facts {
        load: (!raw.local_id.is_empty()).then_some(raw.local_id),
        complete: raw.complete,
        has_metadata: !raw.is_meta,
        received_bytes: raw.down_total,
        moved_bytes: raw.up_total.saturating_add(raw.down_total),
    };
    let extra: Extra = extra.zip(raw.extra).map(|(name, value)| (name, value.unwrap_or(Json::Null))).collect();
    let torrent = Torrent {
        hash,
        name: raw.name,
        server: server.clone(),
        active: raw.is_active,
        downloaded: raw.completed_bytes,
        uploaded: raw.up_total,
        length: raw.size_bytes,
        path: [raw.tied_to_file, raw.loaded_file]
            .into_iter()
            .find(|path| !path.is_empty() && !path.starts_with("magnet:")),
        progress: if raw.is_meta { 0.0 } else { progress(raw.completed_bytes, raw.size_bytes) },
        ratio: ratio(raw.up_total, raw.completed_bytes),
        finished: raw.complete && raw.hashing == 0,
        playing: raw.up_rate > 0 || raw.down_rate > 0,
        extra,
        status,
        error: raw.hashing_failed || !(raw.message.is_empty() || raw.message == NOT_AN_ERROR),
        message: Some(words.share(&raw.message)),
        stalled: false,
        download_rate: Some(raw.down_rate),
        upload_rate: Some(raw.up_rate),
        left: Some(left),
        eta: (status == Status::Downloading).then(|| eta_seconds(left, raw.down_rate)).flatten(),
        peers: Some(raw.peers_connected),
        seeds: Some(raw.peers_complete),
        label: Some(words.share(&decode_label(&raw.custom1))),
        directory: Some(words.share(&raw.directory)),
        private: Some(raw.is_private),
        priority: u8::try_from(raw.priority).ok().filter(|priority| *priority <= 3),
        tracker,
        added_at: time(raw.addtime),
        started_at: time(raw.started),
        finished_at: time(raw.finished),
        size_files: Some(raw.size_files),
    };
    Observed { torrent, facts }
}

fn time(seconds: u64) -> Option<Timestamp> {
    (seconds != 0).then(|| Timestamp::from_seconds(i64::try_from(seconds).unwrap_or(i64::MAX)))
}

fn decode_label(written: &str) -> Cow<'_, str> {
    percent_decode_str(written).decode_utf8().unwrap_or(Cow::Borrowed(written))
}

/// What `encodeURIComponent` leaves as it is.
const LABEL_ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A label as it is written into custom1: as it is, or percent-encoded where it would not come back.
///
/// xmlrpc-c answers with `?` for every letter beyond ASCII once there is one beyond the basic plane.
pub(super) fn encode_label(label: &str) -> String {
    let comes_back = decode_label(label) == label && label.chars().all(|c| !c.is_control() && c < '\u{fffd}');
    if comes_back { label.to_owned() } else { encode_fully(label) }
}

/// Letters, digits and `-_.~%` only, so that it may stand in a command.
pub(super) fn encode_fully(text: &str) -> String {
    utf8_percent_encode(text, LABEL_ENCODED).to_string()
}

/// The host of the first tracker that is asked, out of `<is_enabled><url>` for each.
pub(super) fn tracker_host<'a>(trackers: impl Iterator<Item = (bool, &'a str)> + Clone) -> Option<String> {
    let host = |url: &str| {
        let rest = url.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https" | "udp"))?.1;
        let authority = rest.split(['/', '?', '#']).next()?;
        let host_and_port = authority.rsplit('@').next()?;
        let host = match host_and_port.strip_prefix('[') {
            Some(v6) => v6.split(']').next()?,
            None => host_and_port.split(':').next()?,
        };
        let is_clean = !host.is_empty() && !host.chars().any(|c| c.is_control() || c.is_whitespace());
        is_clean.then(|| host.to_ascii_lowercase())
    };
    let enabled = trackers.clone().filter(|(is_enabled, _)| *is_enabled);
    enabled.chain(trackers).find_map(|(_, url)| host(url))
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    fn seen(raw: Raw) -> Torrent {
        let server = ServerName::parse("home").unwrap();
        observed(&server, InfoHash::V1([1; 20]), raw, None, std::iter::empty(), &mut Words::default()).torrent
    }

    #[test]
    fn status_follows_the_columns_and_the_first_match_wins() {
        // state, active, open, hash_checking, hashing, complete, partial, meta
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
        ] {
            let has = |letter| columns.contains(letter);
            let raw = Raw {
                state: has('s'),
                is_active: has('a'),
                is_open: has('o'),
                is_hash_checking: has('h'),
                hashing: u64::from(has('n')) * 3,
                complete: has('c'),
                is_partially_done: has('p'),
                is_meta: has('m'),
                ..Raw::default()
            };
            assert_eq!(status(&raw), expected, "{columns}");
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
            let torrent = seen(Raw { message: message.to_owned(), hashing_failed, ..Raw::default() });
            assert_eq!((torrent.error, torrent.message.as_deref()), (expected, Some(message)));
        }
    }

    #[test]
    fn a_complete_torrent_is_finished_only_while_it_is_not_hashed() {
        for (complete, hashing, expected) in [(true, 0, true), (true, 3, false), (true, 2, false), (false, 0, false)] {
            assert_eq!(seen(Raw { complete, hashing, ..Raw::default() }).finished, expected);
        }
    }

    #[test]
    fn what_nobody_chose_is_not_left_to_get() {
        let raw = Raw {
            size_bytes: 100,
            completed_bytes: 40,
            left_bytes: 60,
            down_rate: 7,
            is_active: true,
            ..Raw::default()
        };
        assert_eq!((seen(raw.clone()).left, seen(raw.clone()).eta), (Some(60), Some(9)));
        let selected = Raw { is_partially_done: true, ..raw };
        assert_eq!((seen(selected.clone()).left, seen(selected).eta), (Some(0), None));
    }

    #[test]
    fn a_time_of_zero_is_unknown_and_the_load_date_is_not_taken_for_it() {
        let torrent = seen(Raw { started: 0, finished: 5, addtime: 0, ..Raw::default() });
        assert_eq!((torrent.started_at, torrent.finished_at), (None, Some(Timestamp::from_seconds(5))));
        assert_eq!(torrent.added_at, None);
    }

    #[test]
    fn a_label_comes_back_as_it_was_set() {
        for (label, written) in [
            ("linux", "linux"),
            ("my label, two", "my label, two"),
            ("Ünï", "Ünï"),
            ("50%", "50%"),
            ("50%41", "50%2541"),
            ("$execute.throw=id", "$execute.throw=id"),
            ("🦀", "%F0%9F%A6%80"),
            ("Ü🦀", "%C3%9C%F0%9F%A6%80"),
            ("", ""),
        ] {
            assert_eq!(encode_label(label), written);
            assert_eq!(decode_label(written), label);
        }
        assert_eq!(decode_label("%ff"), "%ff", "not text: as it stands");
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
            let raw = Raw { tied_to_file: tied.into(), loaded_file: loaded.into(), ..Raw::default() };
            assert_eq!(seen(raw).path.as_deref(), expected);
        }
    }

    #[test]
    fn extra_columns_carry_the_users_names_and_null_where_there_is_nothing() {
        let server = ServerName::parse("home").unwrap();
        let mut raw = Raw { extra: vec![None; 3], ..Raw::default() };
        for (place, cell) in [(0, Cell::Int(-7)), (1, Cell::Text(Cow::Borrowed(b"caf\xe9")))] {
            let field = Field::Extra(place, ExtraColumn::parse("d.ratio=").unwrap());
            field.set(&mut raw, &cell).unwrap();
        }
        let names = ["a", "b", "c"].map(Arc::from).into_iter();
        let extra = observed(&server, InfoHash::V1([1; 20]), raw, None, names, &mut Words::default()).torrent.extra;
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
            let is_taken = Field::Own(*column).set(&mut Raw::default(), &cell).is_some();
            assert_eq!(is_taken, is_right, "{method} {cell:?}");
        }
    }
}
