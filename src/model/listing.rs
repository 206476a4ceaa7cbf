//! The answers of a client: listings for the watcher, details of torrents for commands.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::{InfoHash, RunState, ServerStats, Status, TextLimit, Timestamp, Torrent, progress};

/// The torrents that a listing covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Covers {
    /// All torrents of the client.
    #[default]
    All,
    /// Torrents that may have changed since the last poll, each with all of its values. Other torrents are not
    /// covered: their absence means nothing.
    Changed,
}

/// The result of one poll.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Listing {
    /// The torrents that it covers.
    pub covers: Covers,
    /// Identity of this run of the client, for example a process id; `None` if the client has none.
    pub run: Option<String>,
    /// The answer was read to its end and agrees with the number of torrents that the client states.
    ///
    /// Only then, and if all torrents are covered, does the absence of one mean anything.
    pub complete: bool,
    /// The listed torrents.
    pub torrents: BTreeMap<InfoHash, Observed>,
    /// Statistics of the server.
    pub stats: ServerStats,
    /// Time for which the poll waited until other requests to the client were over: no cost of this one.
    pub waited: Duration,
}

impl Listing {
    /// Cuts the texts of its torrents to their limits ([`TextLimit`]), whatever client it is from.
    pub fn within_limits(mut self) -> Self {
        self.torrents.values_mut().for_each(|observed| observed.torrent.cut_texts());
        self
    }

    /// A complete listing of all torrents.
    pub fn of_all(torrents: impl IntoIterator<Item = Observed>) -> Self {
        let torrents = torrents.into_iter().map(|observed| (observed.torrent.hash, observed)).collect();
        Self { complete: true, torrents, ..Self::default() }
    }
}

impl Observed {
    /// Cuts the texts of the torrent to their limits ([`TextLimit`]).
    pub fn within_limits(mut self) -> Self {
        self.torrent.cut_texts();
        if let Some(load) = &mut self.facts.load {
            TextLimit::Word.apply(load);
        }
        self
    }
}

impl From<Torrent> for Observed {
    /// Derives the facts from the torrent, for clients that know no more.
    fn from(torrent: Torrent) -> Self {
        let facts = Facts {
            // Without an identity of loads, a torrent erased and loaded again between two polls looks unchanged.
            load: None,
            complete: torrent.finished,
            has_metadata: torrent.status != Status::Metadata,
            received_bytes: torrent.downloaded,
            moved_bytes: torrent.downloaded.saturating_add(torrent.uploaded),
        };
        Self { torrent, facts }
    }
}

impl From<Observed> for Details {
    /// The torrent itself, and no other part.
    fn from(observed: Observed) -> Self {
        Self { observed: Some(observed), ..Self::default() }
    }
}

impl From<Torrent> for Details {
    /// The torrent itself, and no other part.
    fn from(torrent: Torrent) -> Self {
        Observed::from(torrent).into()
    }
}

/// A torrent as one poll showed it, with facts that are not published.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Observed {
    /// The published part.
    pub torrent: Torrent,
    /// The unpublished part.
    pub facts: Facts,
}

/// Facts about a torrent that events depend on and that are not part of its JSON.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Facts {
    /// Identity of this load: another value means that the torrent was erased and loaded again, or that its client
    /// was restarted. `None` if the client has none.
    pub load: Option<String>,
    /// The content is complete as far as the client last knew, also while it is checked again.
    pub complete: bool,
    /// The metadata is there: a torrent, no longer a bare magnet link.
    pub has_metadata: bool,
    /// Payload bytes received in total; equal to `downloaded` where the client does not count them.
    pub received_bytes: u64,
    /// Payload bytes received and sent in total. Only compared with an earlier value.
    pub moved_bytes: u64,
}

/// The requested parts of a torrent. A part that was not requested is `None`, or there all the same.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Details {
    /// The torrent as in a listing.
    pub observed: Option<Observed>,
    /// How a torrent that is held ran before ([`super::Action::Hold`]); `None` for one that is not, or where
    /// several were read.
    pub held: Option<RunState>,
    /// The files are in a folder of their own; `None` if the client does not report it.
    pub is_folder: Option<bool>,
    /// Files, in the order of the torrent.
    pub files: Option<Vec<File>>,
    /// Trackers, in the order in which they are asked.
    pub trackers: Option<Vec<Tracker>>,
    /// Connected peers.
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
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct Tracker {
    /// Announce URL, which may hold a passkey. In results its name, unless the sender has the right `secrets`.
    pub url: String,
    /// `http`, `udp` or `dht`.
    pub kind: Option<&'static str>,
    /// Is asked.
    pub enabled: bool,
    /// Seeds that it knows.
    pub seeds: Option<u64>,
    /// Incomplete peers that it knows.
    pub leeches: Option<u64>,
    /// Successful announces since the torrent was loaded.
    pub succeeded: Option<u64>,
    /// Failed announces since the torrent was loaded.
    pub failed: Option<u64>,
    /// Time of the last announce; `None` if there was none.
    pub last_announce_at: Option<Timestamp>,
}

/// One connected peer of a torrent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct Peer {
    /// IP address.
    pub address: String,
    /// Its port.
    pub port: Option<u16>,
    /// Name and version of its client.
    pub client: Option<String>,
    /// Percent of the torrent that it has.
    pub progress: Option<f64>,
    /// The connection is encrypted.
    pub encrypted: Option<bool>,
    /// The peer opened the connection.
    pub incoming: Option<bool>,
    /// Bytes received from it.
    pub downloaded: Option<u64>,
}

impl File {
    /// A file with no bytes downloaded. The components of `path` are joined by `/`.
    pub fn new(path: impl Into<String>, length: u64) -> Self {
        let path = path.into();
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        Self { name, path, length, progress: 0.0, priority: None }
    }

    /// Cuts its path and name to [`TextLimit::Path`]. For what is published: nothing is to be done by a path that was cut.
    pub fn within_limits(mut self) -> Self {
        TextLimit::Path.apply(&mut self.path);
        TextLimit::Path.apply(&mut self.name);
        self
    }

    /// Sets the progress from the downloaded bytes.
    pub fn with_bytes(self, downloaded: u64) -> Self {
        Self { progress: progress(downloaded, self.length), ..self }
    }
}

impl Tracker {
    /// An enabled tracker of which nothing else is known.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), enabled: true, ..Self::default() }
    }
}

impl Peer {
    /// A peer of which nothing else is known.
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), ..Self::default() }
    }
}

/// The body of `{p}/{s}/torrent/{h}/files`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct Files {
    /// The torrent.
    pub hash: InfoHash,
    /// Its files, in the order of the torrent.
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
