//! The torrent as the world sees it, and the arithmetic of its derived fields.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Change, Changes, InfoHash, ServerName, Timestamp, Words};

/// The configured extra columns of a torrent: text or whole numbers, by the user's own names.
pub type Extra = BTreeMap<Arc<str>, Value>;

/// What a torrent is doing. Errors are apart from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Status {
    /// Its content is being read and compared, or waits for that.
    Checking,
    Downloading,
    /// Nothing more to get: complete, or all selected files are here.
    Seeding,
    /// Held for a while; a restart of the client may let it go on.
    Paused,
    /// Not to run until it is started.
    Stopped,
    /// Wants to run, the client does not let it yet.
    Queued,
    /// A magnet link that asks its peers what it is.
    Metadata,
}

impl Status {
    pub const ALL: [Self; 7] =
        [Self::Checking, Self::Downloading, Self::Seeding, Self::Paused, Self::Stopped, Self::Queued, Self::Metadata];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Checking => "checking",
            Self::Downloading => "downloading",
            Self::Seeding => "seeding",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Queued => "queued",
            Self::Metadata => "metadata",
        }
    }
}

/// A torrent, in the JSON shape that is the same on every road.
///
/// `None` is "unknown to this client" and becomes `null`. Sizes are bytes, rates bytes per second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Torrent {
    pub hash: InfoHash,
    pub name: String,
    pub server: ServerName,
    /// Open and ready to transfer.
    pub active: bool,
    /// Bytes of the content that are here and checked.
    pub downloaded: u64,
    /// Bytes, all time.
    pub uploaded: u64,
    /// Bytes of the content.
    pub length: u64,
    /// The .torrent file it came from, where the client knows one.
    pub path: Option<String>,
    /// Percent, rounded down to 0.1: 100 means complete.
    #[schemars(range(min = 0, max = 100))]
    pub progress: f64,
    /// Uploaded ÷ downloaded, 3 decimals; `null` at 0 downloaded.
    pub ratio: Option<f64>,
    /// Complete and checked.
    pub finished: bool,
    /// Bytes moved since the last observation, or a rate is above 0.
    pub playing: bool,
    /// The columns of the config's `extra`, by their names.
    pub extra: Extra,
    pub status: Status,
    /// The client has a problem with it; apart from the status.
    pub error: bool,
    /// What the client says of it last, empty if nothing.
    pub message: Option<Arc<str>>,
    /// Downloading, and for a while nothing has come.
    pub stalled: bool,
    /// Bytes per second.
    pub download_rate: Option<u64>,
    /// Bytes per second.
    pub upload_rate: Option<u64>,
    /// Bytes still to get.
    pub left: Option<u64>,
    /// Seconds until nothing is left; `null` if nothing moves.
    pub eta: Option<u64>,
    /// Connected peers, seeds among them.
    pub peers: Option<u64>,
    /// Connected peers that have everything.
    pub seeds: Option<u64>,
    /// What ruTorrent and Flood call so.
    pub label: Option<Arc<str>>,
    /// Where its content is, on the client's machine.
    pub directory: Option<Arc<str>>,
    pub private: Option<bool>,
    /// 0 off, 1 low, 2 normal, 3 high.
    #[schemars(range(max = 3))]
    pub priority: Option<u8>,
    /// Host of the first tracker.
    pub tracker: Option<Arc<str>>,
    pub added_at: Option<Timestamp>,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    /// How many files it has.
    pub size_files: Option<u64>,
}

/// Compares field by field; takes the structs apart by name, so that a new field cannot be forgotten.
macro_rules! changed_fields {
    ($from:expr, $to:expr; $($field:ident),* ; same: $($same:ident),*) => {{
        let Torrent { $($field: _,)* $($same: _,)* } = $from;
        let mut changes = Changes::new();
        $(if $from.$field != $to.$field {
            changes.insert(stringify!($field).to_owned(), Change {
                from: json(&$from.$field),
                to: json(&$to.$field),
            });
        })*
        changes
    }};
}

fn json<T: Serialize>(field: &T) -> Value {
    serde_json::to_value(field).expect("a field of a torrent is plain JSON")
}

impl Torrent {
    /// A torrent that is stopped, with no content and nothing known of it.
    pub fn new(server: ServerName, hash: InfoHash, name: impl Into<String>) -> Self {
        Self {
            hash,
            name: name.into(),
            server,
            active: false,
            downloaded: 0,
            uploaded: 0,
            length: 0,
            path: None,
            progress: 0.0,
            ratio: None,
            finished: false,
            playing: false,
            extra: Extra::new(),
            status: Status::Stopped,
            error: false,
            message: None,
            stalled: false,
            download_rate: None,
            upload_rate: None,
            left: None,
            eta: None,
            peers: None,
            seeds: None,
            label: None,
            directory: None,
            private: None,
            priority: None,
            tracker: None,
            added_at: None,
            started_at: None,
            finished_at: None,
            size_files: None,
        }
    }

    /// With these sizes in bytes, and what follows from them: progress, ratio, what is left, whether it is finished.
    pub fn with_bytes(self, length: u64, downloaded: u64, uploaded: u64) -> Self {
        Self {
            length,
            downloaded,
            uploaded,
            progress: progress(downloaded, length),
            ratio: ratio(uploaded, downloaded),
            left: Some(length.saturating_sub(downloaded)),
            finished: length > 0 && downloaded >= length,
            ..self
        }
    }

    /// Doing this; whatever is not stopped is active.
    pub fn with_status(self, status: Status) -> Self {
        Self { status, active: !matches!(status, Status::Stopped), ..self }
    }

    /// Has the texts in common with other torrents that many of them have the same.
    pub fn share(&mut self, words: &mut Words) {
        for text in [&mut self.message, &mut self.label, &mut self.directory, &mut self.tracker].into_iter().flatten() {
            *text = words.share(text);
        }
    }

    /// What is different in `later`, by the names of the JSON fields.
    pub fn changes_to(&self, later: &Self) -> Changes {
        changed_fields!(self, later;
            name, active, downloaded, uploaded, length, path, progress, ratio, finished, playing,
            extra, status, error, message, stalled, download_rate, upload_rate, left, eta, peers,
            seeds, label, directory, private, priority, tracker, added_at, started_at, finished_at,
            size_files; same: hash, server)
    }
}

/// How much of a torrent is here, in percent.
///
/// Rounded *down* to 0.1, so that 100 means complete and 99.97 does not. A torrent without
/// content (a magnet link before its metadata) is at 0.
pub fn progress(done_bytes: u64, size_bytes: u64) -> f64 {
    if size_bytes == 0 {
        return 0.0;
    }
    let tenths = u128::from(done_bytes.min(size_bytes)) * 1000 / u128::from(size_bytes);
    f64::from(u16::try_from(tenths).unwrap_or(1000)) / 10.0
}

/// Uploaded ÷ downloaded, rounded to 3 decimals; `None` while nothing is downloaded.
pub fn ratio(uploaded_bytes: u64, downloaded_bytes: u64) -> Option<f64> {
    if downloaded_bytes == 0 {
        return None;
    }
    let thousandths =
        (u128::from(uploaded_bytes) * 1000 + u128::from(downloaded_bytes) / 2) / u128::from(downloaded_bytes);
    Some(thousandths as f64 / 1000.0)
}

/// Seconds until `left_bytes` are here at this rate, rounded up; `None` if nothing is left or moves.
pub fn eta_seconds(left_bytes: u64, rate: u64) -> Option<u64> {
    (left_bytes > 0 && rate > 0).then(|| left_bytes.div_ceil(rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_rounded_down_and_100_only_when_complete() {
        for (done, size, expected) in [
            (0, 0, 0.0),
            (0, 10, 0.0),
            (9_999, 10_000, 99.9),
            (u64::MAX - 1, u64::MAX, 99.9),
            (10_000, 10_000, 100.0),
            (11_000, 10_000, 100.0),
            (401, 1000, 40.1),
        ] {
            assert_eq!(progress(done, size), expected, "{done} of {size}");
        }
        assert_eq!(serde_json::to_string(&progress(401, 1000)).unwrap(), "40.1");
    }

    #[test]
    fn ratio_has_three_decimals_and_is_unknown_before_the_first_byte() {
        for (up, down, expected) in [
            (5, 0, None),
            (0, 5, Some(0.0)),
            (1, 3, Some(0.333)),
            (2, 3, Some(0.667)),
            (u64::MAX, 1, Some(u64::MAX as f64)),
        ] {
            assert_eq!(ratio(up, down), expected, "{up} / {down}");
        }
    }

    #[test]
    fn eta_is_rounded_up_and_unknown_when_nothing_moves() {
        for (left, rate, expected) in [(0, 5, None), (5, 0, None), (1, 5, Some(1)), (11, 5, Some(3))] {
            assert_eq!(eta_seconds(left, rate), expected, "{left} at {rate}");
        }
    }
}
