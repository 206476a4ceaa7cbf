//! The parts of torrents: the torrent itself, its files, trackers and peers, as far as they are requested.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::actions::{self, forgotten};
use super::calls::{Call, Fault, Value};
use super::{RtorrentClient, map};
use crate::model::{Details, File, InfoHash, Parts, Peer, TextLimit, Timestamp, Tracker, progress};
use crate::port::{ClientError, Scope, TorrentClient as _};

/// Maximum number of torrents whose parts are read in one exchange: a torrent of 10 MiB has as much in paths, and
/// rTorrent aborts at 100 MiB.
const BATCH: usize = 4;

/// Reads torrents, with as few calls as the parts allow.
pub(super) async fn read(
    client: &RtorrentClient,
    hashes: &[InfoHash],
    parts: Parts,
) -> Result<Vec<Option<Details>>, ClientError> {
    match hashes {
        // One call for each column costs less than a listing with as many columns of every torrent.
        [hash] if parts.torrent => Ok(vec![read_one(client, *hash, parts).await?]),
        _ if parts.torrent => {
            let mut listed = client.list(Scope::Detached).await?.torrents;
            let others = Parts { torrent: false, ..parts };
            let has_more = others != Parts::default();
            let mut read = if has_more { read_parts(client, hashes, others).await? } else { BTreeMap::new() };
            let details = |hash: &InfoHash| {
                let observed = listed.remove(hash)?;
                // A torrent that is listed and has no parts was removed between the exchanges.
                let parts = if has_more { read.remove(hash)? } else { Details::default() };
                Some(Details { observed: Some(observed), ..parts })
            };
            Ok(hashes.iter().map(details).collect())
        }
        _ => {
            let mut read = read_parts(client, hashes, parts).await?;
            Ok(hashes.iter().map(|hash| read.remove(hash)).collect())
        }
    }
}

/// Reads one torrent and its parts in one exchange, with all of its columns by its hash.
async fn read_one(client: &RtorrentClient, hash: InfoHash, parts: Parts) -> Result<Option<Details>, ClientError> {
    // The host of a tracker is part of the torrent itself, so the trackers are always read.
    let with_trackers = Parts { trackers: true, ..parts };
    let access = client.access().await;
    let mut calls = part_calls(hash, with_trackers);
    calls.push(actions::held_state(hash));
    let Some((mut row, mut values)) = access.read_row(hash, calls).await? else { return Ok(None) };
    let held = values.pop().and_then(|value| actions::run_state(value.str()?));
    forgotten::mark(&access, [&mut row]).await?;
    drop(access);
    let mut details = details(with_trackers, values);
    let trackers = details.trackers.take().unwrap_or_default();
    let host = map::tracker_host(trackers.iter().map(|tracker| (tracker.enabled, tracker.url.as_str())));
    let settings = &client.settings;
    let interner = &mut client.state().interner;
    let observed =
        map::observed(&settings.server, hash, row, host.map(Arc::from), settings.extra.keys().cloned(), interner);
    Ok(Some(Details { observed: Some(observed), held, trackers: parts.trackers.then_some(trackers), ..details }))
}

/// Reads the parts of torrents other than the torrent itself, in batches. A torrent that rTorrent does not have is
/// left out.
async fn read_parts(
    client: &RtorrentClient,
    hashes: &[InfoHash],
    parts: Parts,
) -> Result<BTreeMap<InfoHash, Details>, ClientError> {
    let mut read = BTreeMap::new();
    // rTorrent knows torrents by their version 1 hash alone.
    let known: Vec<InfoHash> = hashes.iter().filter(|hash| matches!(hash, InfoHash::V1(_))).copied().collect();
    for batch in known.chunks(BATCH) {
        let calls: Vec<Call> = batch.iter().flat_map(|hash| part_calls(*hash, parts)).collect();
        let per_torrent = calls.len() / batch.len();
        let mut answers = client.access().await.call(&calls).await?.into_iter();
        for hash in batch {
            // Taken as a whole first: collecting the values ends at the first fault.
            let of_torrent: Vec<Result<Value, Fault>> = answers.by_ref().take(per_torrent).collect();
            match of_torrent.into_iter().collect::<Result<Vec<Value>, Fault>>() {
                Ok(values) => drop(read.insert(*hash, details(parts, values))),
                Err(fault) if fault.is_unknown_hash() => {}
                Err(fault) => return Err(client.fault(&fault)),
            }
        }
    }
    Ok(read)
}

/// Returns the calls for the parts of a torrent, in the order in which [`details`] takes the answers.
///
/// The first is made in any case: it shows whether the torrent is there.
fn part_calls(hash: InfoHash, parts: Parts) -> Vec<Call> {
    let lists = [
        (parts.files, "f.multicall", FILE_COLUMNS),
        (parts.trackers, "t.multicall", TRACKER_COLUMNS),
        (parts.peers, "p.multicall", PEER_COLUMNS),
    ];
    let list = |(_, method, columns): (bool, _, &[&str])| {
        // The text before the columns is required: a pattern of paths for files, nothing for the others.
        columns.iter().fold(Call::on(hash, method).text(""), |call, column| call.text(*column))
    };
    let is_folder = Call::column(hash, "d.is_multi_file", None);
    std::iter::once(is_folder).chain(lists.into_iter().filter(|(is_wanted, ..)| *is_wanted).map(list)).collect()
}

/// Returns the parts that the answers to [`part_calls`] hold. Rows that cannot be read are left out.
fn details(parts: Parts, values: Vec<Value>) -> Details {
    fn rows<T>(value: &Value, row: fn(&Value) -> Option<T>) -> Vec<T> {
        value.array().iter().filter_map(row).collect()
    }
    let mut values = values.into_iter();
    let is_folder = values.next().and_then(|value| value.int()).map(|number| number != 0);
    let mut next = |is_wanted: bool| is_wanted.then(|| values.next().unwrap_or(Value::Null));
    let (files, trackers, peers) = (next(parts.files), next(parts.trackers), next(parts.peers));
    Details {
        observed: None,
        held: None,
        is_folder,
        files: files.map(|value| rows(&value, |row| file(row).map(File::within_limits))),
        trackers: trackers.map(|value| rows(&value, tracker)),
        peers: peers.map(|value| rows(&value, peer)),
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

pub(super) const FILE_COLUMNS: &[&str] =
    &["f.path=", "f.size_bytes=", "f.completed_chunks=", "f.size_chunks=", "f.priority="];

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
        url: TextLimit::Url.cut(&url.to_text()?).into_owned(),
        // As libtorrent numbers them.
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
        // 0 for a tracker that was never asked.
        last_announce_at: last.int().filter(|seconds| *seconds > 0).map(Timestamp::from_seconds),
    })
}

/// Returns the file of a row of [`FILE_COLUMNS`].
pub(super) fn file(row: &Value) -> Option<File> {
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
        address: TextLimit::Word.cut(&address.to_text()?).into_owned(),
        port: port.int().and_then(|port| u16::try_from(port).ok()),
        client: client.to_text().map(|client| TextLimit::Word.cut(&client).into_owned()),
        progress: percent.int().map(|percent| percent.clamp(0, 100) as f64),
        encrypted: is_encrypted.int().map(|number| number != 0),
        incoming: is_incoming.int().map(|number| number != 0),
        downloaded: unsigned(downloaded),
    })
}
