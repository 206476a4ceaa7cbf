//! The tracker of each torrent, read once for each load and whenever the number of trackers changes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::calls::{Answers, Call, Cell, Value};
use super::super::guard::{Guard, quoted};
use super::super::probe::Probe;
use super::super::transport::WireFormat;
use super::super::{Access, ClientState, map, xmlrpc};
use super::RawListing;
use crate::model::{Covers, InfoHash};
use crate::port::ClientError;

/// Torrents whose trackers are read one by one in a listing; each costs a walk over rTorrent's list.
const SINGLY_MAX: usize = 64;
/// The same of an rTorrent without guards, whose URLs may have megabytes.
const UNGUARDED_MAX: usize = 4;
/// Torrents up to which the trackers of all are read in one listing.
const AT_ONCE_MAX: usize = 20_000;
/// Bytes that are reckoned for a tracker of an answer, of which most are the URL ([`Guard`]: 255 at most) and XML: 150,000
/// trackers of the largest answer.
const TRACKER_BYTES: usize = 447;
/// Time for which listings do without trackers after reading them failed.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(60);
/// Time allowed for the listing of all trackers, beyond the timeout: 20,000 torrents at a millisecond each.
const AT_ONCE_TIME: Duration = Duration::from_secs(20);

/// The host of the tracker of each torrent; `None` for a torrent without one.
pub(super) type Hosts = HashMap<InfoHash, Option<Arc<str>>>;
type Found = HashMap<InfoHash, Option<String>>;

/// Tracker hosts that are known.
#[derive(Default)]
pub(super) struct TrackerCache {
    known: HashMap<InfoHash, KnownTracker>,
    /// Reading trackers failed: not again before this.
    paused_until: Option<Instant>,
}

impl TrackerCache {
    /// Makes the next listing of this torrent read its trackers.
    pub(super) fn forget(&mut self, hash: InfoHash) {
        self.known.remove(&hash);
    }
}

#[derive(Clone, PartialEq)]
struct KnownTracker {
    load: String,
    /// Number of trackers at that time.
    count: u64,
    host: Option<Arc<str>>,
}

/// Returns the tracker host of each listed torrent, reading those that are not known.
pub(super) async fn hosts(access: &Access<'_>, probe: &Probe, raw: &RawListing) -> Result<Hosts, ClientError> {
    let mut hosts = Hosts::with_capacity(raw.rows.len());
    let (mut unknown, trackers_max) = (Vec::new(), trackers_max(access));
    let is_paused = {
        let cache = &mut access.client.state().listing.trackers;
        if raw.covers == Covers::All {
            // Only a full listing proves that a torrent is gone.
            cache.known.retain(|hash, _| raw.rows.contains_key(hash));
        }
        for (hash, row) in &raw.rows {
            match cache.known.get(hash) {
                // A tracker that was replaced by another leaves the count unchanged, and shows after the next load.
                Some(known) if known.load == row.local_id && known.count == row.tracker_size => {
                    hosts.insert(*hash, known.host.clone());
                }
                // A torrent with so many is shown without a tracker, rather than that it costs the listing.
                _ if row.tracker_size > trackers_max => drop(hosts.insert(*hash, None)),
                _ => unknown.push(*hash),
            }
        }
        cache.paused_until.is_some_and(|after| Instant::now() < after)
    };
    let result = match unknown.len() {
        0 => return Ok(hosts),
        _ if is_paused => return Ok(hosts),
        many if many > SINGLY_MAX && fit_at_once(raw, trackers_max) && probe.has_guards() => {
            hosts_at_once(access).await
        }
        // The others follow with the next listings.
        _ => {
            let count_max = if probe.has_guards() { SINGLY_MAX } else { UNGUARDED_MAX };
            hosts_singly(access, probe, within_one_exchange(raw, &unknown, count_max, trackers_max)).await
        }
    };
    let ClientState { listing, interner, .. } = &mut *access.client.state();
    let cache = &mut listing.trackers;
    match result {
        Ok(found) => {
            for hash in unknown {
                let (Some(row), Some(host)) = (raw.rows.get(&hash), found.get(&hash)) else { continue };
                let host = host.as_deref().map(|host| interner.intern(host));
                hosts.insert(hash, host.clone());
                let known = KnownTracker { load: row.local_id.clone(), count: row.tracker_size, host };
                cache.known.insert(hash, known);
            }
            Ok(hosts)
        }
        Err(error) => {
            // Listings without trackers get through meanwhile.
            cache.paused_until = Some(Instant::now() + PAUSE_AFTER_FAILURE);
            Err(error)
        }
    }
}

/// Returns how many trackers are read in one exchange.
fn trackers_max(access: &Access<'_>) -> u64 {
    (access.client.transport.answer_bytes_max / TRACKER_BYTES) as u64
}

/// Returns whether the trackers of all torrents fit into one answer.
fn fit_at_once(raw: &RawListing, trackers_max: u64) -> bool {
    let trackers = raw.rows.values().fold(0_u64, |sum, row| sum.saturating_add(row.tracker_size));
    raw.rows.len() <= AT_ONCE_MAX && trackers <= trackers_max
}

/// Returns the first torrents, whose trackers fit into one answer.
fn within_one_exchange<'h>(
    raw: &RawListing,
    hashes: &'h [InfoHash],
    count_max: usize,
    trackers_max: u64,
) -> &'h [InfoHash] {
    let sizes = hashes.iter().map(|hash| raw.rows.get(hash).map_or(0, |row| row.tracker_size));
    let sums = sizes.scan(0_u64, |sum, size| {
        *sum = sum.saturating_add(size);
        Some(*sum)
    });
    &hashes[..sums.take(count_max).take_while(|sum| *sum <= trackers_max).count()]
}

/// Returns the column of the URL, which is left out if it is long: a tracker without a host then. Without guards it is not.
fn url_column(probe: &Probe) -> String {
    if probe.has_guards() { Guard::of_tracker_url().command() } else { "t.url=".to_owned() }
}

async fn hosts_singly(access: &Access<'_>, probe: &Probe, hashes: &[InfoHash]) -> Result<Found, ClientError> {
    let calls: Vec<_> = hashes
        .iter()
        .map(|hash| Call::on(*hash, "t.multicall").text("").text("t.is_enabled=").text(url_column(probe)))
        .collect();
    let results = access.call(&calls).await?;
    let host = |value: &Value| {
        let trackers = value.array().iter().filter_map(|row| match row.array() {
            [is_enabled, url] => Some((is_enabled.int()? != 0, url.str()?)),
            _ => None,
        });
        map::tracker_host(trackers)
    };
    // A torrent that was removed meanwhile is left out.
    Ok(hashes.iter().zip(&results).filter_map(|(hash, result)| Some((*hash, host(result.as_ref().ok()?)))).collect())
}

/// Separator of the trackers of a torrent in one text: for each `1` or `0`, its address, and this.
const TRACKER_END: &str = "|||";

async fn hosts_at_once(access: &Access<'_>) -> Result<Found, ClientError> {
    struct HostReader(Found);
    impl Answers for HostReader {
        fn row(&mut self, _: usize, cells: &[Cell<'_>]) {
            let [Cell::Text(hash), trackers] = cells else { return };
            let (Ok(hash), Some(text)) = (InfoHash::from_hex(hash), trackers.text()) else { return };
            let trackers = text.split(TRACKER_END).filter_map(|one| {
                let url = one.get(1..)?;
                Some((one.starts_with('1'), url))
            });
            self.0.insert(hash, map::tracker_host(trackers));
        }
    }
    // One text for each torrent, because a column cannot be a list. A column is code: nothing but constants here.
    let of_each = quoted(&Guard::of_tracker_url().command());
    let column =
        format!("cat={}", quoted(&format!("$t.multicall=d.hash=,t.is_enabled=,{of_each},cat={{{TRACKER_END}}}")));
    let body = xmlrpc::write(&[Call::global("d.multicall2").text("main").text("d.hash=").text(column)]);
    let limit = access.client.settings.timeout + AT_ONCE_TIME;
    let answer = access.exchange(WireFormat::Xml, &body, limit).await?;
    let mut reader = HostReader(Found::new());
    xmlrpc::scan(&answer, &mut reader).map_err(|reason| access.client.unreadable(reason))?;
    Ok(reader.0)
}
