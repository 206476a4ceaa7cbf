//! What a client answers: listings for the watcher, details for who asks about one torrent.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::{InfoHash, ServerStats, Status, Timestamp, Torrent, progress};

/// Which torrents a listing speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Covers {
    /// All that the client has.
    #[default]
    All,
    /// Those that may have changed since the look before, each of them whole. Of the others it says
    /// nothing, least of all that they are gone.
    Changed,
}

/// One look at a server.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Listing {
    pub covers: Covers,
    /// What tells one run of the client from the next (a process id, say); `None` if it has no such thing.
    pub run: Option<String>,
    /// The answer was read to its end and agrees with what the client says of its own size.
    ///
    /// Only then, and if it covers all, does absence of a torrent mean anything.
    pub complete: bool,
    pub torrents: BTreeMap<InfoHash, Observed>,
    pub stats: ServerStats,
}

impl Listing {
    /// All that the client has, read to the end.
    pub fn of_all(torrents: impl IntoIterator<Item = Observed>) -> Self {
        let torrents = torrents.into_iter().map(|observed| (observed.torrent.hash, observed)).collect();
        Self { covers: Covers::All, run: None, complete: true, torrents, stats: ServerStats::default() }
    }
}

impl From<Torrent> for Observed {
    /// With the facts as the torrent itself tells them, for clients that know no more.
    fn from(torrent: Torrent) -> Self {
        let facts = Facts {
            load: None,
            complete: torrent.finished,
            has_metadata: torrent.status != Status::Metadata,
            received_bytes: torrent.downloaded,
            moved_bytes: torrent.downloaded.saturating_add(torrent.uploaded),
        };
        Self { torrent, facts }
    }
}

impl From<Torrent> for Details {
    /// Without any of the parts.
    fn from(torrent: Torrent) -> Self {
        Self { observed: torrent.into(), is_folder: None, files: None, trackers: None, peers: None }
    }
}

/// A torrent as one look showed it, with the facts behind it that the world does not see.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Observed {
    pub torrent: Torrent,
    pub facts: Facts,
}

/// What an adapter knows of a torrent beyond its JSON shape.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Facts {
    /// Another value means that the torrent was erased and loaded again, or its client restarted.
    pub load: Option<String>,
    /// All content is here by the client's last word, also while that is being checked again.
    pub complete: bool,
    /// Known to be a torrent, no longer a bare magnet link.
    pub has_metadata: bool,
    /// Payload bytes received, all time; what is `downloaded` where the client does not count.
    pub received_bytes: u64,
    /// Payload bytes moved both ways; only ever compared with an earlier value.
    pub moved_bytes: u64,
}

/// More about one torrent than a listing holds. A part that was not asked for is `None`.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Details {
    pub observed: Observed,
    /// Its files are in a folder of its own; `None` if the client does not say.
    pub is_folder: Option<bool>,
    pub files: Option<Vec<File>>,
    pub trackers: Option<Vec<Tracker>>,
    pub peers: Option<Vec<Peer>>,
}

/// One file of a torrent.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct File {
    /// The last component of `path`.
    pub name: String,
    /// Relative to the torrent's directory, components joined by `/`.
    pub path: String,
    /// Bytes.
    pub length: u64,
    /// Percent, rounded down to 0.1.
    #[schemars(range(min = 0, max = 100))]
    pub progress: f64,
    /// 0 off, 1 normal, 2 high.
    #[schemars(range(max = 2))]
    pub priority: Option<u8>,
}

/// One tracker of a torrent.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct Tracker {
    pub url: String,
    pub kind: Option<&'static str>,
    pub enabled: bool,
    pub seeds: Option<u64>,
    pub leeches: Option<u64>,
    pub succeeded: Option<u64>,
    pub failed: Option<u64>,
    pub last_announce_at: Option<Timestamp>,
}

/// One connected peer of a torrent.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct Peer {
    pub address: String,
    pub port: Option<u16>,
    pub client: Option<String>,
    /// Percent of the torrent that it has.
    pub progress: Option<f64>,
    pub encrypted: Option<bool>,
    pub incoming: Option<bool>,
    /// Bytes that we got from it.
    pub downloaded: Option<u64>,
}

impl File {
    /// One of which nothing is here; its path components are joined by `/`.
    pub fn new(path: impl Into<String>, length: u64) -> Self {
        let path = path.into();
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        Self { name, path, length, progress: 0.0, priority: None }
    }

    /// With so many bytes of it here.
    pub fn with_bytes(self, downloaded: u64) -> Self {
        Self { progress: progress(downloaded, self.length), ..self }
    }
}

impl Tracker {
    /// One that is asked, and of which nothing is known.
    pub fn new(url: impl Into<String>) -> Self {
        let (url, enabled) = (url.into(), true);
        Self {
            url,
            kind: None,
            enabled,
            seeds: None,
            leeches: None,
            succeeded: None,
            failed: None,
            last_announce_at: None,
        }
    }
}

impl Peer {
    /// One of which nothing else is known.
    pub fn new(address: impl Into<String>) -> Self {
        let address = address.into();
        Self { address, port: None, client: None, progress: None, encrypted: None, incoming: None, downloaded: None }
    }
}

/// The body of `{p}/{s}/torrent/{h}/files`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct Files {
    pub hash: InfoHash,
    pub files: Vec<File>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_by_the_end_of_its_path() {
        let file = File::new("a/b/c.iso", 1000).with_bytes(999);
        assert_eq!((file.name.as_str(), file.path.as_str(), file.progress), ("c.iso", "a/b/c.iso", 99.9));
        assert_eq!(File::new("c.iso", 0).name, "c.iso");
    }
}
