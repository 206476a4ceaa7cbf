//! Limits on machine-independent costs: allocations, and bytes of an answer.
//!
//! `make bench` measures times.

#![allow(clippy::unwrap_used)] // a test that panics has failed, which is what it is for

#[allow(dead_code, reason = "shared with the benches")]
#[path = "bench/listing.rs"]
mod listing;
#[allow(dead_code, reason = "shared with the benches")]
#[path = "bench/peer.rs"]
mod peer;
#[allow(dead_code, reason = "shared with the benches")]
#[path = "bench/sample.rs"]
mod sample;

use std::sync::Arc;
use std::time::Duration;

use allocation_counter::{AllocationInfo, measure};
use dtorrent::clients::rtorrent::calls::{Answers, Cell, Fault};
use dtorrent::clients::rtorrent::settings::{Endpoint, Settings};
use dtorrent::clients::rtorrent::{RtorrentClient, jsonrpc, xmlrpc};
use dtorrent::diff::{Differ, Limits, PollTime};
use dtorrent::model::{
    Committed, Completion, DiffState, Facts, InfoHash, Listing, Observed, Parts, Rev, RunState, Seq, ServerName,
    ServerState, Snapshot, SnapshotTorrent, Timestamp, Torrent,
};
use dtorrent::port::{Scope, TorrentClient as _};

use crate::listing::COLUMNS;
use crate::peer::{Peer, Received};

const ROWS: usize = 1_000;

/// Counts the rows and stores nothing.
#[derive(Default)]
struct Count {
    rows: usize,
    broken: usize,
}

impl Answers for Count {
    fn scalar(&mut self, _: usize, _: Cell<'_>) {}
    fn row(&mut self, _: usize, cells: &[Cell<'_>]) {
        self.rows += usize::from(cells.len() == COLUMNS.len());
    }
    fn broken_row(&mut self, _: usize) {
        self.broken += 1;
    }
    fn fault(&mut self, _: usize, _: Fault) {}
}

/// Returns the allocations for reading a listing of a thousand torrents.
fn allocations(scan: impl FnOnce(&mut Count) -> bool) -> AllocationInfo {
    let mut count = Count::default();
    let mut is_read = false;
    let info = measure(|| is_read = scan(&mut count));
    assert!(is_read);
    assert_eq!((count.rows, count.broken), (ROWS, 0));
    info
}

#[test]
fn reading_a_listing_allocates_no_tree_and_no_text_for_numbers() {
    let clean = listing::xml(COLUMNS, ROWS);
    let info = allocations(|count| xmlrpc::scan(&clean, count).is_ok());
    assert!(info.count_total <= 4, "one row's cells, whatever the number of rows: {info:?}");

    let dirty = listing::dirty_xml(COLUMNS, ROWS);
    let info = allocations(|count| xmlrpc::scan(&dirty, count).is_ok());
    let with_references = ROWS as u64 / 10;
    assert!(info.count_total <= with_references + 4, "and a text where a reference is resolved: {info:?}");
    assert!(info.bytes_max < 16_000, "one row is in memory at a time: {info:?}");

    let json = listing::json(COLUMNS, ROWS);
    let info = allocations(|count| jsonrpc::scan(&json, count).is_ok());
    assert!(info.count_total <= 8, "JSON is read without intermediate values: {info:?}");
}

#[test]
fn a_poll_without_changes_retains_nothing_and_allocates_little() {
    let server = ServerName::parse("home").unwrap();
    let torrents: Vec<_> = (0..ROWS).map(|number| sample::of_a_library(&server, number)).collect();
    let facts = |torrent: &Torrent| {
        let mut facts = Facts::default();
        facts.load = Some(torrent.hash.to_string());
        facts.complete = torrent.finished;
        facts.has_metadata = true;
        facts.received_bytes = 400_000_000;
        facts.moved_bytes = 400_000_000;
        facts
    };
    let seen = |torrent: &Arc<Torrent>| {
        let mut observed = Observed::from((**torrent).clone());
        observed.facts = facts(torrent);
        observed
    };
    let snapshot = |torrent: &Arc<Torrent>| SnapshotTorrent {
        torrent: Arc::clone(torrent),
        rev: Rev(1),
        last_seq: Seq(1),
        changed_at: Timestamp::from_seconds(1_795_000_000),
        diff_state: DiffState {
            load: Some(torrent.hash.to_string()),
            generation: 0,
            has_metadata: true,
            received_bytes: 400_000_000,
            completion: if torrent.finished { Completion::Complete } else { Completion::Incomplete },
            run_state: RunState::Running,
        },
    };
    let snapshot: Snapshot = torrents.iter().map(|torrent| (torrent.hash, snapshot(torrent))).collect();
    let run = Some("1".to_owned());
    let state = ServerState { is_known: true, is_online: true, run: run.clone(), generation: 0, settling_since: None };
    let mut listing = Listing::of_all(torrents.iter().map(seen));
    listing.run = run;
    let mut differ = Differ::new(server, Limits::default());
    let moment = |second: u32| PollTime {
        time: Timestamp::from_seconds(1_795_000_000 + i64::from(second)),
        at: Duration::from_secs(u64::from(second)),
    };
    differ.polled(&snapshot, &state, &listing, moment(10));
    differ.committed(&Committed::default(), Duration::from_secs(10));
    let mut change_set = None;
    let info = measure(|| change_set = Some(differ.polled(&snapshot, &state, &listing, moment(20))));
    assert!(change_set.unwrap().is_empty());
    assert!(info.count_total <= POLL_ALLOCATIONS_PER_DOWNLOAD * (ROWS as u64 / 100) + 20, "{info:?}");
    assert!(info.count_current <= 1, "nothing of it stays: {info:?}");
}

/// For a downloading torrent the state is built, compared and stored for the next poll; for an idle one, none is built.
const POLL_ALLOCATIONS_PER_DOWNLOAD: u64 = 40;

#[tokio::test]
async fn rule_2_a_hundred_thousand_torrents_come_in_answers_far_from_what_aborts_rtorrent() {
    const TORRENTS: usize = 100_000;
    let folder = tempfile::tempdir().unwrap();
    let peer = Peer::start(&folder.path().join("rpc.sock"), TORRENTS).unwrap();
    let client = RtorrentClient::new(Settings {
        timeout: Duration::from_secs(60),
        ..Settings::new(ServerName::parse("home").unwrap(), Endpoint::parse(&peer.url()).unwrap())
    })
    .unwrap();
    let listing = client.list(Scope::Full).await.unwrap();
    assert!(listing.complete);
    assert_eq!(listing.torrents.len(), TORRENTS);
    let sizes: Vec<usize> = peer.received(|received| received.listings.iter().map(|(_, bytes)| *bytes).collect());
    let (whole, largest) = (sizes.iter().sum::<usize>(), sizes.iter().max().copied().unwrap_or_default());
    assert!(whole > 100 << 20, "in one answer it would have aborted: {sizes:?}");
    assert!(largest < 48 << 20, "half of what is allowed: {sizes:?}");
}

#[tokio::test]
async fn files_are_read_by_two_calls_for_each_torrent_without_a_listing() {
    let folder = tempfile::tempdir().unwrap();
    let peer = Peer::start(&folder.path().join("rpc.sock"), 120).unwrap();
    let server = ServerName::parse("home").unwrap();
    let client = RtorrentClient::new(Settings::new(server, Endpoint::parse(&peer.url()).unwrap())).unwrap();
    let files = Parts { files: true, ..Parts::default() };
    //                           torrents, requests, calls
    for (count, requests, calls) in [(1, 1, 2), (2, 1, 4), (120, 30, 240)] {
        let hashes: Vec<InfoHash> = (0..count).map(|number| listing::hash(number).parse().unwrap()).collect();
        peer.received(|received| *received = Received::default());
        let read = client.get(&hashes, files).await.unwrap();
        assert!(read.iter().flatten().all(|details| details.observed.is_none() && details.is_folder == Some(false)));
        assert_eq!(read.iter().flatten().flat_map(|details| details.files.iter().flatten()).count(), count);
        peer.received(|received| {
            assert_eq!((received.requests, received.calls), (requests, calls), "{count} torrents");
            assert!(received.listings.is_empty(), "{count} torrents");
        });
    }
}
