//! The conformance suites: one per trait of the store, run on every implementation.
//!
//! A new implementation joins by an entry in [`on_each`], and in [`equivalence`], which compares
//! implementations under random operations.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::model::*;
use crate::port::*;

mod command_log;
mod equivalence;
mod journal;
mod sink_store;

pub(super) const START: i64 = 1_795_328_701_114; // 2026-11-22T06:25:01.114Z

/// A clock that stops until it is moved.
#[derive(Debug)]
pub(super) struct HandClock(AtomicI64);

impl HandClock {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(START)))
    }

    pub fn forward(&self, time: Duration) {
        self.0.fetch_add(time.as_millis() as i64, Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }
}

pub(super) fn server(name: &str) -> ServerName {
    ServerName::parse(name).unwrap()
}

pub(super) fn sink(name: &str) -> SinkName {
    SinkName::parse(name).unwrap()
}

pub(super) fn hash(number: u8) -> InfoHash {
    InfoHash::V1([number; 20])
}

pub(super) fn torrent(server: &ServerName, number: u8, downloaded: u64) -> Arc<Torrent> {
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
        extra: [("tag".into(), "x".into())].into(),
        status: Status::Downloading,
        error: false,
        message: Some("".into()),
        stalled: false,
        download_rate: Some(5),
        upload_rate: None,
        left: None,
        eta: None,
        peers: None,
        seeds: None,
        label: None,
        directory: Some("/downloads".into()),
        private: Some(true),
        priority: Some(2),
        tracker: None,
        added_at: Some(Timestamp::from_seconds(1_700_000_000)),
        started_at: None,
        finished_at: None,
        size_files: Some(1),
    })
}

pub(super) fn new_event(kind: Kind, torrent: Option<Arc<Torrent>>) -> NewEvent {
    NewEvent { kind, cause: Cause::Observed, command_id: None, changes: Changes::new(), torrent }
}

pub(super) fn change_set(server: &ServerName, millis: i64) -> ChangeSet {
    let time = Timestamp::from_millis(START + millis);
    ChangeSet { server: server.clone(), time, events: Vec::new(), changes: BTreeMap::new(), state: None }
}

/// A change set with an `added` of torrent `number`.
pub(super) fn added(server: &ServerName, number: u8) -> ChangeSet {
    let torrent = torrent(server, number, 0);
    let changes = [(torrent.hash, Some((torrent.clone(), DiffState::default())))].into();
    ChangeSet { events: vec![new_event(Kind::Added, Some(torrent))], changes, ..change_set(server, 1_000) }
}

/// A change set with a new row of torrent `number`, without an event.
pub(super) fn updated(server: &ServerName, number: u8, downloaded: u64) -> ChangeSet {
    let change = Some((torrent(server, number, downloaded), DiffState::default()));
    ChangeSet { changes: [(hash(number), change)].into(), ..change_set(server, 2_000) }
}

pub(super) fn at(cursor: u64, sent_rev: u64) -> SinkProgress {
    SinkProgress { cursor: Seq(cursor), sent_rev: Rev(sent_rev) }
}

pub(super) async fn seqs(store: &dyn Store, server: &ServerName) -> Vec<u64> {
    let mut seqs = Vec::new();
    loop {
        let page = store.read_after(server, Seq(seqs.last().copied().unwrap_or_default()), u16::MAX).await.unwrap();
        if page.is_empty() {
            return seqs;
        }
        seqs.extend(page.iter().map(|entry| entry.seq.0));
    }
}

pub(super) fn command(id: &str, origin: &str, received_at: Timestamp) -> LoggedCommand {
    LoggedCommand {
        id: CommandId::parse(id).unwrap(),
        server: Some(server("home")),
        origin: sink(origin),
        hash: Some(hash(1)),
        verb: Some(Verb::Pause),
        body: Bytes::from_static(b"\x00not text\xff"),
        digest: Some(CommandDigest([7; 32])),
        received_at,
        expires_at: received_at.plus_millis(300_000),
        reply: Some(ReplyTo { topic: "a/b".to_owned(), correlation: Some(vec![0, 255]) }),
        sees_secrets: true,
        is_started: false,
        begun: Vec::new(),
        is_answered: false,
        crashes: 0,
    }
}

/// Reads all commands without a result, in the order of their numbers.
pub(super) async fn unfinished(store: &dyn Store) -> Vec<LoggedCommand> {
    let mut all = Vec::new();
    for server in store.servers_with_unfinished_commands().await.unwrap() {
        let mut after = 0;
        loop {
            let page = store.unfinished_commands(server.as_ref(), after).await.unwrap();
            let Some((last, _)) = page.last() else { break };
            after = *last;
            all.extend(page);
        }
    }
    all.sort_by_key(|(number, _)| *number);
    all.into_iter().map(|(_, command)| command).collect()
}

/// Records one command.
pub(super) async fn record(store: &dyn Store, command: LoggedCommand, result: Option<LoggedResult>) -> Recorded {
    store.record_commands(vec![(command, result)]).await.unwrap().pop().unwrap()
}

/// Runs `test` on each implementation, with its clock.
async fn on_each(options: Options, test: impl AsyncFn(&dyn Store, &HandClock)) {
    let clock = HandClock::new();
    test(&MemoryStore::new(options.clone(), clock.clone()), &clock).await;
    let folder = tempfile::tempdir().unwrap();
    let clock = HandClock::new();
    let (store, _) = SqliteStore::open(folder.path(), options, clock.clone()).unwrap();
    test(&store, &clock).await;
}
