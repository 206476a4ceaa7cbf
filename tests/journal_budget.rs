//! A poll that finds more than one commit holds, while the store is nearly full.

#![allow(clippy::unwrap_used)] // a test that panics has failed, which is what it is for

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dtorrent::commands::Common;
use dtorrent::live_state::LiveState;
use dtorrent::model::{JournalEntry, Kind, PollSettings, Rev, Seq, ServerName, SinkName};
use dtorrent::port::{SinkProgress, Store, SystemClock};
use dtorrent::servers::load;
use dtorrent::store::{MemoryStore, Options};
use dtorrent::testing::simulator::Simulator;
use dtorrent::watch::Watcher;
use tokio_util::sync::CancellationToken;

const TORRENTS: u32 = 1_200;

/// The journal's budget holds one part and not two: each poll commits some events, and the next one finds the rest.
#[tokio::test(start_paused = true)]
async fn an_initial_snapshot_in_parts_is_published_whole_and_once_within_any_limit() {
    let server = ServerName::parse("home").unwrap();
    let sink = SinkName::parse("sink").unwrap();
    let options = Options { journal_bytes_max: 700_000, ..Options::default() };
    let store = MemoryStore::new(options, Arc::new(SystemClock));
    store.declare_sinks(&BTreeMap::from([(sink.clone(), vec![server.clone()])]));
    let save_progress = async |store: &dyn Store, cursor| {
        store.save_progress(&sink, [(server.clone(), SinkProgress { cursor, sent_rev: Rev(0) })].into()).await.unwrap();
    };
    save_progress(&store, Seq(0)).await;
    let store: Arc<dyn Store> = Arc::new(store);
    let committed = load(&*store, &server).await.unwrap();
    let live = Arc::new(LiveState::new(BTreeMap::from([(server.clone(), committed)]), [sink.clone()]));
    let watcher = Watcher {
        server: server.clone(),
        poll: PollSettings::DEFAULT,
        client: Arc::new(Simulator::populated(server.clone(), Arc::new(SystemClock), TORRENTS)),
        common: Common { store: Arc::clone(&store), live: Arc::clone(&live), clock: Arc::new(SystemClock) },
        pending_effects: Arc::default(),
        files: Arc::default(),
        is_state_lost: false,
    };
    let stop = CancellationToken::new();
    #[allow(clippy::disallowed_methods, reason = "it is waited for below")]
    let watching = tokio::spawn(watcher.run(stop.clone()));

    let mut entries: Vec<JournalEntry> = Vec::new();
    let mut held_back = 0;
    let is_complete = |entries: &[JournalEntry]| entries.iter().any(|entry| entry.kind == Kind::SnapshotDone);
    let all = async {
        while !is_complete(&entries) {
            // Long enough for a poll, which commits nothing while the store is full.
            tokio::time::sleep(Duration::from_secs(5)).await;
            for _ in 0..8 {
                let cursor = entries.last().map_or(Seq(0), |entry| entry.seq);
                entries.extend(store.read_after(&server, cursor, 250).await.unwrap());
            }
            let snapshot = live.read(&server, |content| content.snapshot.len()).unwrap();
            held_back += u32::from(snapshot < TORRENTS as usize);
            save_progress(&*store, entries.last().map_or(Seq(0), |entry| entry.seq)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(600), all).await.unwrap();
    stop.cancel();
    watching.await.unwrap().unwrap();

    assert!(held_back > 0, "the budget held every event at once");
    assert!(entries.iter().map(|entry| entry.seq.0).eq(1..=entries.len() as u64), "the sequence numbers have no gap");
    let added: Vec<_> =
        entries.iter().filter(|entry| entry.kind == Kind::Added).filter_map(|entry| entry.hash).collect();
    assert_eq!(added.len(), TORRENTS as usize, "each is committed once");
    assert_eq!(added.iter().collect::<BTreeSet<_>>().len(), added.len(), "each is committed once");
    assert_eq!(entries.iter().filter(|entry| entry.kind == Kind::ServerOnline).count(), 1);
    let is_of_the_initial_snapshot =
        |entry: &&JournalEntry| String::from_utf8_lossy(&entry.body).contains("\"cause\":\"snapshot\"");
    assert_eq!(
        entries.iter().filter(is_of_the_initial_snapshot).count(),
        TORRENTS as usize + 1,
        "every event has the cause snapshot"
    );
}
