//! What every store has to do, run on each of them; and what only a file can get wrong.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::*;
use crate::model::*;
use crate::port::*;

/// A clock that stands still until it is moved.
#[derive(Debug)]
struct HandClock(AtomicI64);

impl HandClock {
    fn new() -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(1_795_328_701_114)))
    }
}

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }
}

fn server(name: &str) -> ServerName {
    ServerName::parse(name).unwrap()
}

fn sink(name: &str) -> SinkName {
    SinkName::parse(name).unwrap()
}

fn hash(number: u8) -> InfoHash {
    InfoHash::V1([number; 20])
}

fn torrent(server: &ServerName, number: u8, downloaded: u64) -> Arc<Torrent> {
    Arc::new(Torrent {
        hash: hash(number),
        name: format!("torrent {number} ☃"),
        server: server.clone(),
        active: true,
        downloaded,
        uploaded: 7,
        length: 1_000,
        path: None,
        progress: progress(downloaded, 1_000),
        ratio: ratio(7, downloaded),
        finished: downloaded >= 1_000,
        playing: false,
        extra: [("tag".to_owned(), "x".into())].into(),
        status: Status::Downloading,
        error: false,
        message: Some(String::new()),
        stalled: false,
        download_rate: Some(5),
        upload_rate: None,
        left: None,
        eta: None,
        peers: None,
        seeds: None,
        label: None,
        directory: Some("/downloads".to_owned()),
        private: Some(true),
        priority: Some(2),
        tracker: None,
        added_at: Some(Timestamp::from_seconds(1_700_000_000)),
        started_at: None,
        finished_at: None,
        size_files: Some(1),
    })
}

fn fact(kind: Kind, torrent: Option<Arc<Torrent>>) -> Fact {
    Fact { kind, cause: Cause::Observed, command_id: None, changes: Changes::new(), torrent }
}

fn tick(server: &ServerName, millis: i64) -> Tick {
    let time = Timestamp::from_millis(millis);
    Tick { server: server.clone(), time, facts: Vec::new(), changes: BTreeMap::new(), state: None }
}

/// A tick that tells torrent `number` as added.
fn added(server: &ServerName, number: u8) -> Tick {
    let torrent = torrent(server, number, 0);
    let changes = [(torrent.hash, Some((torrent.clone(), Memory::default())))].into();
    Tick { facts: vec![fact(Kind::Added, Some(torrent))], changes, ..tick(server, 1_000) }
}

fn open(folder: &Path) -> (SqliteStore, Recovery) {
    SqliteStore::open(folder, Options::default(), HandClock::new()).unwrap()
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let home = server("home");
    let (store, recovery) = open(folder.path());
    assert!(recovery.is_new && !recovery.lost);
    let committed = store.commit(added(&home, 1)).await.unwrap();
    assert_eq!(committed.last_seq, Seq(1));
    let entries = store.read(&home, Seq(0), 10).await.unwrap();
    let progress = [(home.clone(), Progress { cursor: Seq(1), sent_rev: Rev(1) })].into();
    store.settle(&sink("mqtt"), progress).await.unwrap();
    let before = store.load(&home).await.unwrap();
    store.close().await.unwrap();
    assert!(matches!(store.load(&home).await, Err(StoreError::Io(_))));

    let (store, recovery) = open(folder.path());
    assert_eq!(recovery, Recovery { was_clean: true, ..Recovery::default() });
    let after = store.load(&home).await.unwrap();
    assert_eq!((after.told, after.last_seq, after.epoch), (before.told, before.last_seq, before.epoch));
    assert_eq!(store.read(&home, Seq(0), 10).await.unwrap(), entries);
    assert_eq!(store.progress(&sink("mqtt")).await.unwrap()[&home].cursor, Seq(1));
}
