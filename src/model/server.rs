//! Statistics of a server as a whole.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{Status, Timestamp, Torrent};

/// The client's own statistics, from a listing. Rates and limits are in bytes per second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct ServerStats {
    /// Program and version of the client: `rTorrent 0.9.8`.
    pub client: Option<String>,
    /// Download rate of all torrents together.
    pub download_rate: Option<u64>,
    /// Upload rate of all torrents together.
    pub upload_rate: Option<u64>,
    /// Limit on the download rate; 0 means no limit.
    pub download_limit: Option<u64>,
    /// Limit on the upload rate; 0 means no limit.
    pub upload_limit: Option<u64>,
    /// Bytes downloaded in this run of the client.
    pub downloaded: Option<u64>,
    /// Bytes uploaded in this run of the client.
    pub uploaded: Option<u64>,
    /// Free bytes on the disk where the client puts new downloads.
    pub free_disk: Option<u64>,
}

/// The body of `{p}/{s}/stats`: the client's own statistics, and counts of its torrents.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Stats {
    /// The client's own statistics.
    #[serde(flatten)]
    pub server: ServerStats,
    /// Number of torrents.
    pub torrents: u64,
    /// Number of torrents with each status; every status is listed.
    #[schemars(schema_with = "by_status")]
    pub by_status: BTreeMap<Status, u64>,
    /// Number of torrents in error.
    pub errors: u64,
    /// Number of stalled torrents.
    pub stalled: u64,
    /// The download that finished last, of the torrents that still exist.
    pub last_finished: Option<LastFinished>,
}

fn by_status(generator: &mut SchemaGenerator) -> Schema {
    let count = generator.subschema_for::<u64>().to_value();
    let counts: BTreeMap<&str, _> = Status::ALL.into_iter().map(|status| (status.as_str(), &count)).collect();
    let every_status = Status::ALL.map(Status::as_str);
    json_schema!({"type": "object", "properties": counts, "required": every_status})
}

/// The download that finished last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct LastFinished {
    /// Info-hash of the torrent.
    pub hash: super::InfoHash,
    /// Name of the torrent.
    pub name: String,
    /// Time at which it finished.
    pub time: Timestamp,
}

impl Stats {
    /// Counts torrents.
    pub fn of<'a>(server: ServerStats, torrents: impl Iterator<Item = &'a Torrent>) -> Self {
        // With zeros, so that a status that no torrent has any more is reported as such.
        let by_status = Status::ALL.into_iter().map(|status| (status, 0)).collect();
        let mut stats = Self { server, by_status, ..Self::default() };
        let mut last_finished: Option<(Timestamp, &Torrent)> = None;
        for torrent in torrents {
            stats.torrents += 1;
            *stats.by_status.entry(torrent.status).or_default() += 1;
            stats.errors += u64::from(torrent.error);
            stats.stalled += u64::from(torrent.stalled);
            if let Some(time) = torrent.finished_at
                // Of two at the same time the first by hash, so that equal input gives equal bytes.
                && last_finished.is_none_or(|(latest, _)| time > latest)
            {
                last_finished = Some((time, torrent));
            }
        }
        stats.last_finished =
            last_finished.map(|(time, torrent)| LastFinished { hash: torrent.hash, name: torrent.name.clone(), time });
        stats
    }
}
