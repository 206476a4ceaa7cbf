//! Operations: what commands do, with arguments that were checked.
//!
//! Pure.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use super::{Action, CustomValues, InfoHash, Limits, Parts, Seq};

/// The effect of a command, with checked arguments.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Operation {
    /// Asks for one action for each torrent.
    Act(ActionFor),
    /// Deletes torrents with their files.
    DeleteWithData,
    /// Sets the directory of torrents; with `data` their files are moved first.
    Move {
        /// Not compared with the roots yet.
        directory: String,
        /// Whether the files are moved, too.
        data: bool,
    },
    /// Adds a torrent.
    Add(AddRequest),
    /// Sets the rate limits of a server.
    SetLimits(Limits),
    /// Sends the events from `from_seq` on again; `None` sends the present state again.
    Resync {
        /// The first event to send.
        from_seq: Option<Seq>,
    },
    /// Calls a method of the client; its config says which ones are allowed.
    Rpc {
        /// The method, in the client's own terms.
        method: String,
        /// Strings and integers.
        params: Vec<Value>,
    },
    /// Sets the log level of the bridge.
    SetLogLevel(String),
    /// Reads torrents with details.
    Get(Parts),
    /// Lists the torrents of the snapshot.
    List {
        /// Keys of a torrent to show; `None` for all.
        fields: Option<Vec<String>>,
        /// From 0.
        page: u64,
        /// 1 to 1000.
        page_size: u64,
    },
}

impl Operation {
    pub(super) fn act(action: impl Fn(InfoHash) -> Action + Send + Sync + 'static) -> Self {
        Self::Act(ActionFor(Arc::new(action)))
    }
}

/// An action that is still without its torrent.
#[derive(Clone, derive_more::Debug)]
#[debug("{:?}", self.torrent(InfoHash::V1([0; 20])))]
pub struct ActionFor(Arc<dyn Fn(InfoHash) -> Action + Send + Sync>);

impl ActionFor {
    /// Returns the action for this torrent.
    pub fn torrent(&self, hash: InfoHash) -> Action {
        (self.0)(hash)
    }
}

/// A torrent to add, before its source is read.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct AddRequest {
    /// Where the torrent is.
    pub source: TorrentSource,
    /// Whether it starts at once.
    pub start: bool,
    /// At most 255 bytes, no control characters.
    pub label: Option<String>,
    /// Not compared with the roots yet.
    pub directory: Option<String>,
    /// 0 off, 1 low, 2 normal, 3 high.
    pub priority: Option<u8>,
    /// Texts to keep with it.
    pub custom: CustomValues,
    /// Path on this machine where its data already is; not compared with the roots yet.
    pub data_file: Option<String>,
}

impl AddRequest {
    /// Makes a request that says nothing but where the torrent is.
    pub fn new(source: TorrentSource) -> Self {
        Self {
            source,
            start: true,
            label: None,
            directory: None,
            priority: None,
            custom: CustomValues::default(),
            data_file: None,
        }
    }
}

/// Where the torrent to add is.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum TorrentSource {
    /// A magnet link.
    Magnet(String),
    /// An http(s) URL.
    Url(String),
    /// The bytes of a .torrent file.
    Torrent(Bytes),
    /// Path on this machine; not compared with the roots yet.
    File(String),
}

impl TorrentSource {
    /// Returns the source that a text is by itself: a magnet link or an http(s) URL.
    pub fn from_link(link: &str) -> Option<Self> {
        if is_magnet(link) {
            return Some(Self::Magnet(link.to_owned()));
        }
        is_url(link).then(|| Self::Url(link.to_owned()))
    }
}

pub(super) fn is_magnet(link: &str) -> bool {
    link.trim_start().get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("magnet:?"))
}

fn is_url(link: &str) -> bool {
    let link = link.trim_start();
    ["http://", "https://"]
        .iter()
        .any(|scheme| link.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)))
}
