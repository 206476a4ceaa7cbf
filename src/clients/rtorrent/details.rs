//! Details of torrents: the row, and its files, trackers and peers where they are wanted.

use std::sync::Arc;

use super::calls::{Call, Fault, Value};
use super::{Access, RtorrentClient, map};
use crate::model::{Details, File, InfoHash, Parts, Peer, Timestamp, Tracker, progress};
use crate::port::{ClientError, Scope, TorrentClient as _};

/// Torrents whose parts are read in one exchange.
const BATCH: usize = 50;

/// Reads one torrent, with all of its columns by its hash. For one torrent this is cheaper than a listing.
pub(super) async fn read_one(
    access: &Access<'_>,
    hash: InfoHash,
    parts: Parts,
) -> Result<Option<Details>, ClientError> {
    // The trackers are always read: the host of one of them is part of the torrent itself.
    let with_trackers = Parts { trackers: true, ..parts };
    let mut calls = vec![Call::column(hash, "d.is_multi_file", None)];
    calls.extend(part_calls(hash, with_trackers));
    let Some((row, rest)) = access.read_row(hash, calls).await? else { return Ok(None) };
    let mut rest = rest.into_iter();
    let is_folder = rest.next().as_ref().and_then(Value::int).map(|number| number != 0);
    let PartValues { files, trackers, peers } = PartValues::take(with_trackers, &mut rest);
    let trackers = trackers.unwrap_or_default();
    let host = map::tracker_host(trackers.iter().map(|tracker| (tracker.enabled, tracker.url.as_str())));
    let settings = &access.client.settings;
    let interner = &mut access.client.state().interner;
    let observed =
        map::observed(&settings.server, hash, row, host.map(Arc::from), settings.extra.keys().cloned(), interner);
    Ok(Some(Details { observed, is_folder, files, trackers: parts.trackers.then_some(trackers), peers }))
}

/// Reads several torrents: their rows from one listing, their parts in batches.
pub(super) async fn read_many(
    client: &RtorrentClient,
    hashes: &[InfoHash],
    parts: Parts,
) -> Result<Vec<Option<Details>>, ClientError> {
    let mut listing = client.list(Scope::Full).await?;
    let without_parts = |observed| Details { observed, is_folder: None, files: None, trackers: None, peers: None };
    let mut found: Vec<Option<Details>> =
        hashes.iter().map(|hash| listing.torrents.remove(hash).map(without_parts)).collect();
    let present: Vec<usize> = (0..hashes.len()).filter(|place| found[*place].is_some()).collect();
    if parts == Parts::default() {
        return Ok(found);
    }
    for batch in present.chunks(BATCH) {
        let calls: Vec<Call> = batch.iter().flat_map(|place| part_calls(hashes[*place], parts)).collect();
        let per_torrent = calls.len() / batch.len();
        let answers = client.access().await.call(&calls).await?;
        for (place, of_torrent) in batch.iter().zip(answers.chunks(per_torrent)) {
            let values: Result<Vec<Value>, Fault> = of_torrent.iter().cloned().collect();
            match values {
                Ok(values) => {
                    let Some(details) = &mut found[*place] else { continue };
                    let PartValues { files, trackers, peers } = PartValues::take(parts, &mut values.into_iter());
                    (details.files, details.trackers, details.peers) = (files, trackers, peers);
                }
                // It was removed after the listing.
                Err(fault) if fault.is_unknown_hash() => found[*place] = None,
                Err(fault) => return Err(client.fault(&fault)),
            }
        }
    }
    Ok(found)
}

/// The calls for the wanted parts of a torrent, in the order of [`PartValues::take`].
fn part_calls(hash: InfoHash, parts: Parts) -> Vec<Call> {
    let wanted = [
        (parts.files, "f.multicall", FILE_COLUMNS),
        (parts.trackers, "t.multicall", TRACKER_COLUMNS),
        (parts.peers, "p.multicall", PEER_COLUMNS),
    ];
    let call = |method, columns: &[&str]| {
        columns.iter().fold(Call::on(hash, method).text(""), |call, column| call.text(*column))
    };
    wanted.iter().filter(|(is_wanted, ..)| *is_wanted).map(|(_, method, columns)| call(method, columns)).collect()
}

/// The parts of one torrent.
struct PartValues {
    files: Option<Vec<File>>,
    trackers: Option<Vec<Tracker>>,
    peers: Option<Vec<Peer>>,
}

impl PartValues {
    /// Takes the answers to [`part_calls`]. Rows that cannot be read are left out.
    fn take(parts: Parts, values: &mut impl Iterator<Item = Value>) -> Self {
        let mut next = |is_wanted: bool| is_wanted.then(|| values.next().unwrap_or(Value::Null));
        let (files, trackers, peers) = (next(parts.files), next(parts.trackers), next(parts.peers));
        Self {
            files: files.map(|files| files.array().iter().filter_map(file).collect()),
            trackers: trackers.map(|trackers| trackers.array().iter().filter_map(tracker).collect()),
            peers: peers.map(|peers| peers.array().iter().filter_map(peer).collect()),
        }
    }
}

const TRACKER_COLUMNS: &[&str] = &[
    "t.url=",
    "t.type=",
    "t.is_enabled=",
    "t.scrape_complete=",
    "t.scrape_incomplete=",
    "t.success_counter=",
    "t.failed_counter=",
    "t.activity_time_last=",
];

const FILE_COLUMNS: &[&str] = &["f.path=", "f.size_bytes=", "f.completed_chunks=", "f.size_chunks=", "f.priority="];

const PEER_COLUMNS: &[&str] = &[
    "p.address=",
    "p.port=",
    "p.client_version=",
    "p.completed_percent=",
    "p.is_encrypted=",
    "p.is_incoming=",
    "p.down_total=",
];

fn unsigned(value: &Value) -> Option<u64> {
    u64::try_from(value.int()?).ok()
}

fn tracker(row: &Value) -> Option<Tracker> {
    let [url, kind, is_enabled, seeds, leeches, succeeded, failed, last] = row.array() else { return None };
    Some(Tracker {
        url: url.to_text()?,
        kind: match kind.int()? {
            1 => Some("http"),
            2 => Some("udp"),
            3 => Some("dht"),
            _ => None,
        },
        enabled: is_enabled.int()? != 0,
        seeds: unsigned(seeds),
        leeches: unsigned(leeches),
        succeeded: unsigned(succeeded),
        failed: unsigned(failed),
        last_announce_at: last.int().filter(|seconds| *seconds > 0).map(Timestamp::from_seconds),
    })
}

fn file(row: &Value) -> Option<File> {
    let [path, length, completed, chunks, priority] = row.array() else { return None };
    let (path, length) = (path.to_text()?, unsigned(length)?);
    Some(File {
        name: path.rsplit('/').next().unwrap_or_default().to_owned(),
        // A file of no bytes has no pieces, and is complete.
        progress: if length == 0 { 100.0 } else { progress(unsigned(completed)?, unsigned(chunks)?) },
        length,
        priority: priority.int().and_then(|priority| u8::try_from(priority).ok()),
        path,
    })
}

fn peer(row: &Value) -> Option<Peer> {
    let [address, port, client, percent, is_encrypted, is_incoming, downloaded] = row.array() else { return None };
    Some(Peer {
        address: address.to_text()?,
        port: port.int().and_then(|port| u16::try_from(port).ok()),
        client: client.to_text(),
        progress: percent.int().map(|percent| percent.clamp(0, 100) as f64),
        encrypted: is_encrypted.int().map(|number| number != 0),
        incoming: is_incoming.int().map(|number| number != 0),
        downloaded: unsigned(downloaded),
    })
}
