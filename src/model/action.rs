//! Actions: what a client is asked for, and what a later poll has to show for it.
//!
//! A client's own answer proves nothing: rTorrent answers 0 to everything. So each action knows its effect, and
//! which events that effect explains.
//!
//! Pure.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Content, CustomValues, InfoHash, Kind, Observed, Status, TrackerChanges, client_texts, with_line_feeds};

/// One change that a client is asked for.
///
/// Values are checked before: a label has no control characters, a directory is absolute and below the allowed roots.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// Pauses a torrent that runs.
    Pause(InfoHash),
    /// Resumes a paused torrent.
    Resume(InfoHash),
    /// Starts a torrent, stopped or paused.
    Start(InfoHash),
    /// Stops a torrent.
    Stop(InfoHash),
    /// Removes a torrent from the client; its files stay.
    Delete(InfoHash),
    /// Begins a hash check of the data.
    Recheck(InfoHash),
    /// Announces to the trackers, as soon as they allow it.
    Announce(InfoHash),
    /// Sets the label; an empty one removes it.
    Label(InfoHash, String),
    /// Sets the priority: 0 off, 1 low, 2 normal, 3 high.
    Priority(InfoHash, u8),
    /// Stops and closes a torrent, so that its files may be touched. The client remembers whether it ran.
    Hold(InfoHash),
    /// Lets a torrent go on as before a hold.
    Release(InfoHash),
    /// Sets the directory of the data. The torrent goes on as before, or as before a hold.
    Move(Move),
    /// Assigns a torrent to a group that shares a limit; an empty name is the global one.
    Throttle(InfoHash, String),
    /// Sets the priority of files, by their place in the torrent: 0 off, 1 normal, 2 high.
    FilePriority(InfoHash, Vec<u32>, u8),
    /// Adds and removes trackers, and switches them on and off.
    Trackers(InfoHash, TrackerChanges),
    /// Sets custom values; others stay.
    Custom(InfoHash, CustomValues),
    /// Loads a torrent.
    Add(Add),
}

impl Action {
    /// Returns the torrent that the action changes.
    pub fn hash(&self) -> InfoHash {
        match self {
            Self::Pause(hash) | Self::Resume(hash) | Self::Start(hash) | Self::Stop(hash) | Self::Delete(hash) => *hash,
            Self::Recheck(hash) | Self::Announce(hash) | Self::Hold(hash) | Self::Release(hash) => *hash,
            Self::Label(hash, _) | Self::Throttle(hash, _) => *hash,
            Self::Priority(hash, _) | Self::FilePriority(hash, ..) => *hash,
            Self::Trackers(hash, _) | Self::Custom(hash, _) => *hash,
            Self::Move(moved) => moved.hash,
            Self::Add(add) => add.hash,
        }
    }

    /// Returns the action without the torrent that is to be loaded: its effect is known without it, and it may be large.
    pub(crate) fn without_source(self) -> Self {
        match self {
            Self::Add(add) => Self::Add(Add { source: AddSource::Torrent(Bytes::new()), ..add }),
            other => other,
        }
    }

    /// Whether one short exchange is enough, which other actions may share.
    pub fn is_short(&self) -> bool {
        match self {
            Self::Pause(_) | Self::Resume(_) | Self::Start(_) | Self::Stop(_) | Self::Delete(_) => true,
            Self::Label(..) | Self::Priority(..) => true,
            Self::Recheck(_) | Self::Announce(_) | Self::Hold(_) | Self::Release(_) | Self::Move(_) => false,
            Self::Throttle(..) | Self::FilePriority(..) | Self::Add(_) => false,
            Self::Trackers(..) | Self::Custom(..) => false,
        }
    }

    /// Whether a listing shows the whole effect. Of other actions only the client's own answer tells, so one whose
    /// answer was lost has to be repeated.
    pub fn is_listed(&self) -> bool {
        match self {
            Self::Pause(_) | Self::Resume(_) | Self::Start(_) | Self::Stop(_) | Self::Delete(_) => true,
            Self::Label(..) | Self::Priority(..) => true,
            Self::Add(add) => add.custom.is_empty(),
            // A move restores the status in a second step.
            Self::Recheck(_) | Self::Announce(_) | Self::Hold(_) | Self::Release(_) | Self::Move(_) => false,
            Self::Throttle(..) | Self::FilePriority(..) | Self::Trackers(..) | Self::Custom(..) => false,
        }
    }

    /// Whether a poll that began after the client was asked shows the effect; `seen` is what it says of the torrent.
    pub fn is_shown_by(&self, seen: Option<&Observed>) -> bool {
        let Some(Observed { torrent, .. }) = seen else { return matches!(self, Self::Delete(_)) };
        match self {
            Self::Delete(_) => false,
            Self::Pause(_) => torrent.status == Status::Paused,
            // A started torrent may be checked or queued before it transfers anything.
            Self::Resume(_) | Self::Start(_) => !matches!(torrent.status, Status::Paused | Status::Stopped),
            Self::Stop(_) | Self::Hold(_) => torrent.status == Status::Stopped,
            Self::Label(_, label) => torrent.label.as_deref() == Some(label),
            Self::Priority(_, priority) => torrent.priority == Some(*priority),
            Self::Move(Move { directory, was_paused, .. }) => {
                let is_as_before = !was_paused || matches!(torrent.status, Status::Paused | Status::Checking);
                is_as_before && torrent.directory.as_deref().is_some_and(|now| is_at_or_below(now, directory))
            }
            // No listing shows these. The client was read again when it was asked, and one more poll names their events.
            Self::Release(_)
            | Self::Recheck(_)
            | Self::Announce(_)
            | Self::Throttle(..)
            | Self::FilePriority(..)
            | Self::Trackers(..)
            | Self::Custom(..) => true,
            // The client has read the custom values itself.
            Self::Add(Add { label, priority, start, checked, directory, hash: _, source: _, custom: _ }) => {
                let is_there =
                    |wanted: &String| torrent.directory.as_ref().is_some_and(|now| is_at_or_below(now, wanted));
                directory.as_ref().is_none_or(is_there)
                    && (label.is_none() || torrent.label.as_deref() == label.as_deref())
                    && (priority.is_none() || torrent.priority == *priority)
                    && (!start || torrent.status != Status::Stopped)
                    && (checked.is_none() || torrent.finished)
            }
        }
    }

    /// Whether the client may check the data behind it, and go on when the check is over.
    pub fn may_check(&self) -> bool {
        match self {
            Self::Resume(_) | Self::Start(_) | Self::Recheck(_) | Self::Release(_) | Self::Move(_) | Self::Add(_) => {
                true
            }
            Self::Pause(_) | Self::Stop(_) | Self::Delete(_) | Self::Announce(_) | Self::Hold(_) => false,
            Self::Label(..) | Self::Priority(..) | Self::Throttle(..) | Self::FilePriority(..) => false,
            Self::Trackers(..) | Self::Custom(..) => false,
        }
    }

    /// Whether an event of this kind is an effect of the action, and so has the command as its cause.
    pub fn explains(&self, kind: Kind) -> bool {
        use Kind::{
            Added, Checked, Checking, ErrorCleared, Finished, LabelChanged, Moved, Paused, PriorityChanged, Removed,
            Resumed, Started, Stopped, Unfinished, Unstalled,
        };
        let kinds: &[Kind] = match self {
            // Only a downloading torrent counts as stalled.
            Self::Pause(_) => &[Paused, Unstalled],
            // rTorrent checks the data first where it has to, and clears the error of a failed check.
            Self::Resume(_) | Self::Start(_) => &[Started, Resumed, Checking, Checked, ErrorCleared],
            Self::Release(_) => &[Started, Paused, Resumed, Checking, Checked],
            Self::Stop(_) | Self::Hold(_) => &[Stopped, Unstalled],
            Self::Delete(_) => &[Removed, Stopped],
            Self::Add(_) => &[Added, Moved, LabelChanged, PriorityChanged, Checking, Checked, Started],
            Self::Label(..) => &[LabelChanged],
            Self::Priority(..) => &[PriorityChanged],
            // A re-check un-pauses a torrent for as long as it lasts.
            Self::Recheck(_) => &[Checking, Checked, Resumed, Paused],
            Self::Announce(_) | Self::Trackers(..) | Self::Custom(..) => &[],
            // The torrent is closed while its directory is set, and may be checked when it is opened again, or be found to
            // have less there.
            Self::Move(_) => &[Moved, Stopped, Started, Paused, Resumed, Checking, Checked, Unstalled, Unfinished],
            // rTorrent takes another group only while the torrent is paused.
            Self::Throttle(..) => &[Paused, Resumed],
            // What is left to download, and with it completion, is that of the selected files.
            Self::FilePriority(..) => &[Finished, Unfinished],
        };
        kinds.contains(&kind)
    }
}

/// Whether a path from a client is `directory` or below it: a torrent of several files has a folder of its own there.
///
/// The client may write the directory in another way than it was asked to.
pub(crate) fn is_at_or_below(path: &str, directory: &str) -> bool {
    let path = with_line_feeds(path);
    client_texts(directory.trim_end_matches('/').as_bytes()).iter().any(|directory| {
        let rest = path.strip_prefix(directory.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// Highest rate limit that rTorrent takes: a gigabyte per second.
pub(super) const LIMIT_MAX: u64 = 1 << 30;

/// Rate limits for all torrents of a server together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("anyOf" = [{"required": ["download_limit"]}, {"required": ["upload_limit"]}]))]
pub struct Limits {
    /// Bytes per second for all torrents together, 0 for none. Without it the limit stays as it is.
    #[serde(rename = "download_limit")]
    #[schemars(range(max = LIMIT_MAX))]
    pub download: Option<u64>,
    /// Bytes per second for all torrents together, 0 for none. Without it the limit stays as it is.
    #[serde(rename = "upload_limit")]
    #[schemars(range(max = LIMIT_MAX))]
    pub upload: Option<u64>,
}

/// A new directory of the data of a torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Move {
    /// The torrent.
    pub hash: InfoHash,
    /// Its directory.
    pub directory: String,
    /// Whether the client has to find out anew what it has: in the directory is not what it had before.
    pub recheck: bool,
    /// Bytes of content that it has to find there, because files of its names are there; with fewer the move has failed.
    pub must_find: Option<u64>,
    /// Whether the torrent was paused, and is to be so again: it runs for a moment.
    pub was_paused: bool,
}

impl Move {
    /// Returns a move to where the content is.
    pub fn new(hash: InfoHash, directory: impl Into<String>) -> Self {
        Self { hash, directory: directory.into(), recheck: false, must_find: None, was_paused: false }
    }
}

/// A torrent to load.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Add {
    /// The hash by which the client will list it.
    pub hash: InfoHash,
    /// The torrent itself.
    pub source: AddSource,
    /// Whether it starts at once.
    pub start: bool,
    /// The label to set; `None` for no label.
    pub label: Option<String>,
    /// The directory of its data; `None` for the client's own choice.
    pub directory: Option<String>,
    /// 0 off, 1 low, 2 normal, 3 high; `None` for the client's own choice.
    pub priority: Option<u8>,
    /// Texts to keep with it.
    pub custom: CustomValues,
    /// Where all of its data is, if it was verified: the client has to find it there, and complete.
    pub checked: Option<Content>,
}

impl Add {
    /// Makes one that starts, where and how the client chooses.
    pub fn new(hash: InfoHash, source: AddSource) -> Self {
        Self {
            hash,
            source,
            start: true,
            label: None,
            directory: None,
            priority: None,
            custom: CustomValues::default(),
            checked: None,
        }
    }
}

/// The torrent to load.
#[derive(Clone, derive_more::Debug, PartialEq)]
#[non_exhaustive]
pub enum AddSource {
    /// A magnet link, `magnet:?…`, in the form that [`Magnet::to_link`](super::Magnet::to_link) gives it.
    Magnet(String),
    /// The bytes of a .torrent file.
    #[debug("Torrent({} bytes)", _0.len())]
    Torrent(Bytes),
}

impl AddSource {
    /// Returns the size of the torrent file or of the link.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Magnet(link) => link.len(),
            Self::Torrent(bytes) => bytes.len(),
        }
    }
}

/// The parts of a torrent that are read. Without any, only whether the client has the torrent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Parts {
    /// The torrent itself, as in a listing. It takes rTorrent more than thirty calls, and a list of files two.
    #[serde(skip)]
    pub torrent: bool,
    /// Read the files, too.
    pub files: bool,
    /// Read the trackers, too.
    pub trackers: bool,
    /// Read the peers, too.
    pub peers: bool,
}
