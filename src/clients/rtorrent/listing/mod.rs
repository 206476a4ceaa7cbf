//! Listings: all torrents, or those that may have changed.
//!
//! A full poll reads every torrent ([`full`]), a poll of changes what can have changed ([`changed`]); where
//! the latter leaves a doubt, everything is read in the same call. Two values are read apart, because they
//! cost more than a column: the trackers of a torrent ([`trackers`]), and the free disk space, each 30 s, of
//! one torrent with open files below the default directory.

mod change_tracker;
mod changed;
mod counters;
mod full;
mod long_texts;
mod trackers;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use self::change_tracker::ChangeTracker;
use self::counters::Counters;
use self::long_texts::LongTexts;
pub(super) use self::long_texts::read as read_long_texts;
use self::trackers::{Hosts, TrackerCache};
use super::calls::{Answers, Call, Unreadable};
use super::map::{self, Field, TorrentRow};
use super::probe::Probe;
use super::transport::WireFormat;
use super::{Access, jsonrpc, xmlrpc};
use crate::model::{Covers, InfoHash, Listing, ServerStats};
use crate::port::{ClientError, Scope};

/// Size of a row with all columns in XML, until a listing has shown it.
const ROW_BYTES_AT_FIRST: usize = 1600;
/// Size from which an answer is decoded on a blocking thread.
const BLOCKING_BYTES: usize = 1 << 20;
const FREE_DISK_INTERVAL: Duration = Duration::from_secs(30);

/// State between listings.
#[derive(Default)]
pub(super) struct ListingState {
    /// Bytes of a row with all columns, as last seen, and the format.
    row_bytes: Option<(WireFormat, usize)>,
    count: Option<u64>,
    /// The run of rTorrent that cannot write its torrents as JSON.
    json_refused_by: Option<Option<i64>>,
    changes: ChangeTracker,
    trackers: TrackerCache,
    long_texts: LongTexts,
    free_disk: Option<FreeDisk>,
}

impl ListingState {
    /// Makes the next listing of a torrent read its trackers.
    pub(super) fn forget_tracker(&mut self, hash: InfoHash) {
        self.trackers.forget(hash);
    }
}

#[derive(Clone, Copy)]
struct FreeDisk {
    asked_at: Instant,
    /// The torrent whose directory was measured.
    of: InfoHash,
    free: Option<u64>,
}

/// A listing in rTorrent's own terms.
struct RawListing {
    rows: BTreeMap<InfoHash, TorrentRow>,
    counters: Counters,
    complete: bool,
    covers: Covers,
    columns: Columns,
}

/// The columns that were read of all torrents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Columns {
    All,
    /// Without those that are known and stay the same as long as a torrent is loaded.
    Changing,
}

pub(super) async fn list(access: &Access<'_>, scope: Scope<'_>) -> Result<Listing, ClientError> {
    let probe = access.probe().await?;
    let mut raw = match scope {
        Scope::Changed { named } => match changed::read(access, &probe, named).await? {
            Some(raw) => raw,
            // More has happened than a listing of changes can show.
            None => full::read(access, &probe, Columns::All).await?,
        },
        Scope::Full | Scope::Detached => read_all(access, &probe).await?,
    };
    if raw.counters.pid != probe.pid {
        // Another process answers, perhaps another version.
        access.client.state().probe = None;
    }
    long_texts::fill(access, &mut raw).await?;
    if raw.covers == Covers::All && !matches!(scope, Scope::Detached) {
        // Before the exchanges below, which can fail: then the listing is lost to the engine, which asks for all
        // torrents again.
        access.client.state().listing.changes.record_full(&raw);
    }
    let hosts = trackers::hosts(access, &probe, &raw).await?;
    let free_disk = free_disk(access, &probe, &raw).await?;
    Ok(listing(access, &probe, raw, &hosts, free_disk))
}

/// Reads all torrents, without the columns that are known where that is possible.
async fn read_all(access: &Access<'_>, probe: &Probe) -> Result<RawListing, ClientError> {
    if access.client.state().listing.changes.may_skip_fixed_columns(probe) {
        let mut raw = full::read(access, probe, Columns::Changing).await?;
        if access.client.state().listing.changes.fill_in(&mut raw) {
            return Ok(raw);
        }
    }
    full::read(access, probe, Columns::All).await
}

fn listing(access: &Access<'_>, probe: &Probe, raw: RawListing, hosts: &Hosts, free_disk: Option<u64>) -> Listing {
    let RawListing { rows, counters, complete, covers, .. } = raw;
    let settings = &access.client.settings;
    let interner = &mut access.client.state().interner;
    let observe = |(hash, row): (InfoHash, TorrentRow)| {
        let host = hosts.get(&hash).cloned().flatten();
        (hash, map::observed(&settings.server, hash, row, host, settings.extra.keys().cloned(), interner))
    };
    let torrents = rows.into_iter().map(observe).collect();
    if covers == Covers::All {
        // Only a full listing shows which labels, directories and messages no torrent has any more.
        interner.drop_unused();
    }
    let [download_rate, upload_rate, download_limit, upload_limit, downloaded, uploaded] = counters.throttle;
    Listing {
        covers,
        run: counters.pid.map(|pid| pid.to_string()),
        complete,
        torrents,
        stats: ServerStats {
            client: Some(format!("rTorrent {}", probe.version)),
            download_rate,
            upload_rate,
            download_limit,
            upload_limit,
            downloaded,
            uploaded,
            free_disk,
        },
        waited: Duration::ZERO,
    }
}

/// Returns the estimated size at which an answer is split: half of what is read at most.
fn part_bytes_max(access: &Access<'_>) -> usize {
    access.client.transport.answer_bytes_max / 2
}

/// The hash of each torrent, and these columns.
fn with_columns(call: Call, fields: &[Field]) -> Call {
    fields.iter().fold(call.text("d.hash="), |call, field| call.text(field.command()))
}

/// The format of the next listing: JSON where the server has it and did not refuse it.
fn format(access: &Access<'_>, probe: &Probe) -> WireFormat {
    // Remembered for one run: the offending torrent may be gone after a restart, and trying costs one exchange.
    let is_refused = access.client.state().listing.json_refused_by == Some(probe.pid);
    if probe.has_json && !is_refused { WireFormat::Json } else { WireFormat::Xml }
}

/// Makes calls that hold nothing but text and numbers, and reads the answer into `reader`.
///
/// Returns the reader and the size of the answer; `None` if the server refuses to answer as JSON, which it
/// then does until it restarts.
async fn exchange<R: Answers + Send + 'static>(
    access: &Access<'_>,
    probe: &Probe,
    format: WireFormat,
    calls: &[Call],
    limit: Duration,
    reader: R,
) -> Result<Option<(R, usize)>, ClientError> {
    let body = match format {
        WireFormat::Xml => xmlrpc::write(calls),
        WireFormat::Json => jsonrpc::write(calls).expect("a listing's request has no bytes to send"),
    };
    let answer = access.exchange(format, &body, limit).await?;
    let answer_bytes = answer.len();
    match decode(format, answer, reader).await? {
        (Ok(()), reader) => Ok(Some((reader, answer_bytes))),
        // -32700: one text somewhere is not UTF-8. XML of the same server has it as raw bytes.
        (Err(Unreadable::Refused(_)), _) if format == WireFormat::Json => {
            access.client.state().listing.json_refused_by = Some(probe.pid);
            Ok(None)
        }
        (Err(reason), _) => Err(access.client.unreadable(reason)),
    }
}

async fn decode<R: Answers + Send + 'static>(
    format: WireFormat,
    answer: Vec<u8>,
    mut reader: R,
) -> Result<(Result<(), Unreadable>, R), ClientError> {
    // Decoding megabytes takes longer than a task may keep a thread of the runtime.
    let is_long = answer.len() >= BLOCKING_BYTES;
    let work = move || {
        let result = match format {
            WireFormat::Xml => xmlrpc::scan(&answer, &mut reader),
            WireFormat::Json => jsonrpc::scan(&answer, &mut reader),
        };
        (result, reader)
    };
    if !is_long {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ClientError::Protocol { reason: format!("the listing was not read to its end: {error}") })
}

/// Reads the free disk space, at most once each [`FREE_DISK_INTERVAL`].
async fn free_disk(access: &Access<'_>, probe: &Probe, raw: &RawListing) -> Result<Option<u64>, ClientError> {
    let known = access.client.state().listing.free_disk;
    if let Some(known) = known.filter(|known| known.asked_at.elapsed() < FREE_DISK_INTERVAL) {
        return Ok(known.free);
    }
    let is_below_default = |row: &TorrentRow| {
        let default = Path::new(&probe.default_directory);
        !default.is_absolute() || Path::new(&row.directory).starts_with(default)
    };
    // A torrent that was never open may have no directory yet.
    let fits = |row: &TorrentRow| row.is_open && !row.fixed.is_meta && is_below_default(row);
    let found = raw.rows.iter().find(|(_, row)| fits(row)).map(|(hash, _)| *hash);
    // A listing of changes may hold none that fits; then the torrent of the last time will do.
    let last = known.filter(|_| raw.covers == Covers::Changed).map(|known| known.of);
    // Without a torrent that has files there is no call that answers for a directory.
    let Some(of) = found.or(last) else { return Ok(known.and_then(|known| known.free)) };
    let results = access.call(&[Call::on(of, "d.free_diskspace")]).await?;
    let free = results.first().and_then(|result| result.as_ref().ok()?.int()).and_then(|free| u64::try_from(free).ok());
    access.client.state().listing.free_disk = Some(FreeDisk { asked_at: Instant::now(), of, free });
    Ok(free)
}
