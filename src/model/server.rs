//! What is known of a server as a whole.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{Status, Timestamp, Torrent};

/// What the client says of itself in a listing. Rates and limits in bytes per second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct ServerStats {
    /// The client's kind and version, `rTorrent 0.9.8`.
    pub client: Option<String>,
    /// Of all torrents together.
    pub download_rate: Option<u64>,
    /// Of all torrents together.
    pub upload_rate: Option<u64>,
    /// 0 is "no limit".
    pub download_limit: Option<u64>,
    /// 0 is "no limit".
    pub upload_limit: Option<u64>,
    /// Bytes in this run of the client.
    pub downloaded: Option<u64>,
    /// Bytes in this run of the client.
    pub uploaded: Option<u64>,
    /// Free bytes where the client puts new downloads.
    pub free_disk: Option<u64>,
}

/// The body of `{p}/{s}/stats`: [`ServerStats`] with what the torrents add up to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Stats {
    #[serde(flatten)]
    pub server: ServerStats,
    /// How many it has.
    pub torrents: u64,
    /// How many torrents have each status; every status is there.
    #[schemars(schema_with = "by_status")]
    pub by_status: BTreeMap<Status, u64>,
    /// How many torrents are in error.
    pub errors: u64,
    /// How many torrents are stalled.
    pub stalled: u64,
    /// Of the torrents that are still there.
    pub last_finished: Option<LastFinished>,
}

fn by_status(generator: &mut SchemaGenerator) -> Schema {
    let count = generator.subschema_for::<u64>().to_value();
    let counts: BTreeMap<&str, _> = Status::ALL.into_iter().map(|status| (status.as_str(), &count)).collect();
    let every_status = Status::ALL.map(Status::as_str);
    json_schema!({"type": "object", "properties": counts, "required": every_status})
}

/// Which download was complete last, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct LastFinished {
    pub hash: super::InfoHash,
    pub name: String,
    pub time: Timestamp,
}

impl Stats {
    pub fn of<'a>(server: ServerStats, torrents: impl Iterator<Item = &'a Torrent>) -> Self {
        let by_status = Status::ALL.into_iter().map(|status| (status, 0)).collect();
        let mut stats = Self { server, by_status, ..Self::default() };
        let mut last_finished: Option<(Timestamp, &Torrent)> = None;
        for torrent in torrents {
            stats.torrents += 1;
            *stats.by_status.entry(torrent.status).or_default() += 1;
            stats.errors += u64::from(torrent.error);
            stats.stalled += u64::from(torrent.stalled);
            if let Some(time) = torrent.finished_at
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
