//! The torrent, and the arithmetic of its derived fields.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Change, Changes, InfoHash, Interner, ServerName, TextLimit, Timestamp, known_names, reported_text};

/// Values of the configured extra columns, strings or integers, by their configured names.
pub type Extra = BTreeMap<Arc<str>, Value>;

/// The activity of a torrent. Independent of errors, which have a field of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Status {
    /// Being hash-checked, or waiting for that.
    Checking,
    /// Downloading.
    Downloading,
    /// Complete, or all selected files are.
    Seeding,
    /// Paused; a restart of the client may resume it.
    Paused,
    /// Stopped until it is started.
    Stopped,
    /// Started, and waiting for the client's queue.
    Queued,
    /// A magnet link that fetches its metadata.
    Metadata,
}

impl Status {
    /// All statuses, in their order.
    pub const ALL: [Self; 7] =
        [Self::Checking, Self::Downloading, Self::Seeding, Self::Paused, Self::Stopped, Self::Queued, Self::Metadata];

    /// Returns the name in JSON.
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

/// A torrent, in the JSON shape that is the same everywhere.
///
/// `None` means unknown to this client and becomes `null`. Sizes are in bytes, rates in bytes per second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Torrent {
    /// Info-hash, by which the client knows it.
    pub hash: InfoHash,
    /// Name.
    pub name: String,
    /// Server that has it.
    pub server: ServerName,
    /// Open and ready to transfer.
    pub active: bool,
    /// Bytes of the content that are downloaded and checked.
    pub downloaded: u64,
    /// Bytes uploaded, all time.
    pub uploaded: u64,
    /// Size of the content in bytes.
    pub length: u64,
    /// Name of the .torrent file, if the client knows one.
    pub path: Option<String>,
    /// Downloaded part in percent, rounded down to 0.1: 100 means complete.
    #[schemars(range(min = 0, max = 100))]
    pub progress: f64,
    /// Uploaded ÷ downloaded, 3 decimals; `null` at 0 downloaded.
    pub ratio: Option<f64>,
    /// Complete and checked.
    pub finished: bool,
    /// Bytes were transferred since the last poll, or a rate is above 0.
    pub playing: bool,
    /// Values of the columns in the config's `extra`, by their names.
    pub extra: Extra,
    /// Activity.
    pub status: Status,
    /// The client reports an error, whatever the status.
    pub error: bool,
    /// Last message of the client or a tracker; empty if there is none.
    pub message: Option<Arc<str>>,
    /// Downloading, and no data has come for the configured time.
    pub stalled: bool,
    /// Download rate in bytes per second.
    pub download_rate: Option<u64>,
    /// Upload rate in bytes per second.
    pub upload_rate: Option<u64>,
    /// Bytes left to download.
    pub left: Option<u64>,
    /// Seconds until the download is complete; `null` if the rate is 0.
    pub eta: Option<u64>,
    /// Connected peers, seeds among them.
    pub peers: Option<u64>,
    /// Connected peers that have the complete content.
    pub seeds: Option<u64>,
    /// Label, as ruTorrent and Flood show it.
    pub label: Option<Arc<str>>,
    /// Directory of the content, on the client's machine.
    pub directory: Option<Arc<str>>,
    /// Private (BEP 27): peers come from its trackers alone.
    pub private: Option<bool>,
    /// Priority: 0 off, 1 low, 2 normal, 3 high.
    #[schemars(range(max = 3))]
    pub priority: Option<u8>,
    /// Host name of the first tracker.
    pub tracker: Option<Arc<str>>,
    /// Time at which it was added to the client.
    pub added_at: Option<Timestamp>,
    /// Time at which it was last started.
    pub started_at: Option<Timestamp>,
    /// Time at which the download was complete.
    pub finished_at: Option<Timestamp>,
    /// Number of files.
    pub size_files: Option<u64>,
}

/// Compares field by field. Destructures by name, so that a new field cannot be forgotten.
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

/// Configured extra columns of one torrent; a client that reports more has the others left out.
const EXTRA_MAX: usize = 64;

impl Torrent {
    /// Checks that each of these names is a field of a torrent in JSON.
    ///
    /// # Errors
    /// The text names the first that is not, and those that are.
    pub(crate) fn check_fields(fields: &[String]) -> Result<(), String> {
        let server = ServerName::parse("a").expect("`a` is a name");
        let torrent = serde_json::to_value(Self::new(server, InfoHash::V1([0; 20]), "")).expect("it is plain JSON");
        let known = || torrent.as_object().into_iter().flat_map(|object| object.keys()).map(String::as_str);
        let Some(unknown) = fields.iter().find(|field| !known().any(|known| known == *field)) else { return Ok(()) };
        Err(format!("fields: a torrent has no `{}`; {}", unknown.escape_default(), known_names(unknown, known())))
    }

    /// Cuts its texts to their limits, and hides what may be a passkey in those that may have a URL: the message and extra
    /// values. An extra value that is neither text, number nor boolean becomes `null`.
    pub fn cut_texts(&mut self) {
        if let Some(message) = &mut self.message
            && let Cow::Owned(shown) = reported_text(message)
        {
            *message = shown.into();
        }
        TextLimit::Name.apply(&mut self.name);
        if let Some(path) = &mut self.path {
            TextLimit::Path.apply(path);
        }
        let shared = [
            (TextLimit::Message, &mut self.message),
            (TextLimit::Label, &mut self.label),
            (TextLimit::Path, &mut self.directory),
            (TextLimit::Word, &mut self.tracker),
        ];
        for (limit, text) in shared {
            let is_long = |text: &&mut Arc<str>| text.len() > limit.bytes_max();
            if let Some(text) = text.as_mut().filter(is_long) {
                *text = limit.cut(text).into();
            }
        }
        while self.extra.len() > EXTRA_MAX {
            self.extra.pop_last();
        }
        self.extra.retain(|name, _| name.len() <= TextLimit::Word.bytes_max());
        for value in self.extra.values_mut() {
            match value {
                Value::String(text) => {
                    if let Cow::Owned(shown) = reported_text(text) {
                        *text = shown;
                    }
                    TextLimit::Extra.apply(text);
                }
                Value::Array(_) | Value::Object(_) => *value = Value::Null,
                Value::Null | Value::Bool(_) | Value::Number(_) => {}
            }
        }
    }

    /// A stopped torrent without content, of which nothing else is known.
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

    /// Sets sizes in bytes, and the fields derived from them: progress, ratio, bytes left, finished.
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

    /// Sets the status; a torrent that is not stopped is active.
    pub fn with_status(self, status: Status) -> Self {
        Self { status, active: !matches!(status, Status::Stopped), ..self }
    }

    /// Replaces texts that many torrents share by interned copies.
    pub fn intern(&mut self, interner: &mut Interner) {
        for text in [&mut self.message, &mut self.label, &mut self.directory, &mut self.tracker].into_iter().flatten() {
            *text = interner.intern(text);
        }
    }

    /// Returns the fields that differ in `later`, by their JSON names.
    pub fn changes_to(&self, later: &Self) -> Changes {
        changed_fields!(self, later;
            name, active, downloaded, uploaded, length, path, progress, ratio, finished, playing,
            extra, status, error, message, stalled, download_rate, upload_rate, left, eta, peers,
            seeds, label, directory, private, priority, tracker, added_at, started_at, finished_at,
            size_files; same: hash, server)
    }
}

/// Returns the downloaded part of a torrent in percent.
///
/// Rounded *down* to 0.1, so that 100 means complete and 99.97 does not. A torrent without
/// content (a magnet link before its metadata) is at 0.
pub fn progress(done_bytes: u64, size_bytes: u64) -> f64 {
    if size_bytes == 0 {
        return 0.0;
    }
    // In integers, because a float of 99.97 is rounded up when it is written.
    let tenths = u128::from(done_bytes.min(size_bytes)) * 1000 / u128::from(size_bytes);
    f64::from(u16::try_from(tenths).unwrap_or(1000)) / 10.0
}

/// Returns uploaded ÷ downloaded, rounded to 3 decimals; `None` while nothing is downloaded.
pub fn ratio(uploaded_bytes: u64, downloaded_bytes: u64) -> Option<f64> {
    if downloaded_bytes == 0 {
        return None;
    }
    // Of 128 bits: 18 petabytes times 1000 exceed 64.
    let thousandths =
        (u128::from(uploaded_bytes) * 1000 + u128::from(downloaded_bytes) / 2) / u128::from(downloaded_bytes);
    Some(thousandths as f64 / 1000.0)
}

/// Returns the seconds that `left_bytes` take at a rate in bytes per second, rounded up; `None` if either is 0.
pub fn eta_seconds(left_bytes: u64, rate: u64) -> Option<u64> {
    // Rounded up, so that a download in progress never shows 0.
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
    fn eta_is_rounded_up_and_unknown_at_rate_0() {
        for (left, rate, expected) in [(0, 5, None), (5, 0, None), (1, 5, Some(1)), (11, 5, Some(3))] {
            assert_eq!(eta_seconds(left, rate), expected, "{left} at {rate}");
        }
    }
}
