//! Fixtures for the tests of the outboxes: a server, a sink without a link, and a store that counts reads.
//!
//! The store is a small one of its own. That of the simulation takes its decisions from a seed, records what it has
//! taken, and belongs to a test of the public interface, so one for both would be larger than the two.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;

use super::parts::{DispatcherParts, DispatcherSettings, Reporter};
use super::retention::Retain;
use super::{DeliveryId, Outbox, Outcome, Outgoing, Rejection};
use crate::live_state::{LiveServer, LiveState};
use crate::model::{
    Cause, ChangeSet, Changes, CommandId, Committed, DiffState, Epoch, InfoHash, JournalEntry, Kind, MemoryShares,
    NewEvent, Seq, ServerName, ServerState, SinkName, Torrent,
};
use crate::port::{
    Clock as _, CommandLog, Connected, DeliverError, Delivery, Journal, JournalPosition, JournalUsage, Loaded,
    LoggedCommand, LoggedResult, Progress, Recorded, ResultBacklog, RetainedScan, Sink, SinkState, SinkStore,
    StoreError, SystemClock, UnsentResult,
};
use crate::store::{MemoryStore, Options};

pub(super) fn home() -> ServerName {
    ServerName::parse("home").unwrap()
}

pub(super) fn sink_name() -> SinkName {
    SinkName::parse("b").unwrap()
}

pub(super) fn hash(number: u8) -> InfoHash {
    InfoHash::V1([number; 20])
}

pub(super) fn topic(number: u8) -> String {
    format!("home/{}", hash(number))
}

/// Acknowledges what is in flight.
pub(super) async fn acknowledge(outbox: &mut impl Outbox, batch: Vec<Outgoing>) {
    for (id, _) in batch {
        outbox.resolve(id, Ok(())).await.unwrap();
    }
}

pub(super) fn rejected(reason: &str) -> Outcome {
    Err(Rejection { reason: reason.into(), is_poison: false })
}

pub(super) fn ids(batch: &[Outgoing]) -> Vec<DeliveryId> {
    batch.iter().map(|(id, _)| id.clone()).collect()
}

/// A sink that is never connected: outboxes ask it only what it retains and what it found.
#[derive(Default)]
pub(super) struct FakeSink {
    pub found: Mutex<BTreeMap<ServerName, Vec<String>>>,
}

#[async_trait]
impl Sink for FakeSink {
    async fn connect(&self) -> Result<Connected, DeliverError> {
        Err(DeliverError::unavailable("no link in this test"))
    }

    fn retained_topic(&self, delivery: &Delivery) -> Option<String> {
        match delivery {
            Delivery::State { server, hash, retain: true, .. } => Some(format!("{server}/{hash}")),
            _ => None,
        }
    }

    fn own_retained_topics(&self) -> Vec<String> {
        Vec::new()
    }

    async fn scan_retained(&self, _: &[ServerName]) -> Result<BTreeMap<ServerName, Vec<String>>, DeliverError> {
        Ok(self.found.lock().unwrap().clone())
    }
}

struct NothingToReport;

impl Reporter for NothingToReport {
    fn info(&self, _: &SinkName, _: &[ServerName]) -> Bytes {
        Bytes::from_static(b"info")
    }

    fn health(&self) -> Bytes {
        Bytes::from_static(b"health")
    }
}

/// The memory store with a disk that may be full, and a count of journal reads.
pub(super) struct TestStore {
    inner: MemoryStore,
    pub reads: AtomicUsize,
    pub is_full: AtomicBool,
}

impl TestStore {
    fn room(&self) -> Result<(), StoreError> {
        match self.is_full.load(Ordering::Relaxed) {
            true => Err(StoreError::Full { reason: "no room in this test".to_owned() }),
            false => Ok(()),
        }
    }
}

/// One server and one sink that is up to date with it.
pub(super) struct TestSetup {
    pub parts: Arc<DispatcherParts>,
    pub store: Arc<TestStore>,
    pub sink: Arc<FakeSink>,
    pub live: Arc<LiveState>,
}

impl TestSetup {
    pub async fn new() -> Self {
        Self::with(Options::default(), Retain::All).await
    }

    pub async fn with(options: Options, retain: Retain) -> Self {
        Self::with_memory(options, retain, MemoryShares::default()).await
    }

    /// With these shares of memory, of which the store has the pages.
    pub async fn with_shares(shares: MemoryShares) -> Self {
        let options = Options { pages: shares.pages, ..Options::default() };
        Self::with_memory(options, Retain::All, shares).await
    }

    async fn with_memory(options: Options, retain: Retain, shares: MemoryShares) -> Self {
        let inner = MemoryStore::with_epoch(Epoch(1), options, Arc::new(SystemClock));
        let store = Arc::new(TestStore { inner, reads: AtomicUsize::new(0), is_full: AtomicBool::new(false) });
        let loaded = store.load(&home()).await.unwrap();
        let state = ServerState { is_known: true, is_online: true, ..ServerState::default() };
        let content = LiveServer { state, ..LiveServer::from(loaded) };
        let live = Arc::new(LiveState::with_shares([(home(), content)].into(), [sink_name()], shares));
        let sink = Arc::new(FakeSink::default());
        let parts = Arc::new(DispatcherParts {
            settings: DispatcherSettings {
                name: sink_name(),
                servers: vec![home()],
                events: Kind::ALL.iter().copied().collect(),
                retain,
                was_clean_shutdown: true,
            },
            sink: sink.clone(),
            store: store.clone(),
            live: live.clone(),
            buffer: live.buffer(&sink_name()).unwrap().clone(),
            clock: Arc::new(SystemClock),
            reporter: Arc::new(NothingToReport),
        });
        Self { parts, store, sink, live }
    }

    /// Publishes a torrent with so many bytes downloaded, with an event of each kind; `None`: it is removed.
    pub async fn publish(&self, number: u8, downloaded: Option<u64>, kinds: &[Kind]) {
        let torrent = Arc::new(Torrent::new(home(), hash(number), "x").with_bytes(1000, downloaded.unwrap_or(0), 0));
        let new_event = |kind: &Kind| NewEvent {
            kind: *kind,
            cause: Cause::Observed,
            command_id: None,
            changes: Changes::new(),
            torrent: Some(Arc::clone(&torrent)),
        };
        let change_set = ChangeSet {
            server: home(),
            time: SystemClock.now(),
            events: kinds.iter().map(new_event).collect(),
            changes: [(hash(number), downloaded.map(|_| (Arc::clone(&torrent), DiffState::default())))].into(),
            state: None,
        };
        let committed = self.store.commit(change_set).await.unwrap();
        self.live.publish(&home(), committed, None);
    }

    /// Publishes so many events without a change.
    pub async fn publish_events(&self, count: usize) {
        for _ in 0..count {
            self.publish(1, Some(1), &[Kind::Stalled]).await;
        }
    }
}

#[async_trait]
impl Journal for TestStore {
    async fn load(&self, server: &ServerName) -> Result<Loaded, StoreError> {
        self.inner.load(server).await
    }

    async fn commit(&self, change_set: ChangeSet) -> Result<Committed, StoreError> {
        self.inner.commit(change_set).await
    }

    async fn read_after(&self, server: &ServerName, after: Seq, limit: u16) -> Result<Vec<JournalEntry>, StoreError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.inner.read_after(server, after, limit).await
    }

    async fn position(&self, server: &ServerName, seq: Seq) -> Result<Option<JournalPosition>, StoreError> {
        self.inner.position(server, seq).await
    }

    async fn read_all_after(
        &self,
        after: Option<JournalPosition>,
        limit: u16,
    ) -> Result<Vec<(JournalPosition, JournalEntry)>, StoreError> {
        self.inner.read_all_after(after, limit).await
    }

    async fn usage(&self) -> Result<JournalUsage, StoreError> {
        self.inner.usage().await
    }
}

#[async_trait]
impl SinkStore for TestStore {
    async fn load_sink(&self, sink: &SinkName) -> Result<SinkState, StoreError> {
        self.inner.load_sink(sink).await
    }

    async fn save_progress(&self, sink: &SinkName, progress: Progress) -> Result<(), StoreError> {
        self.room()?;
        self.inner.save_progress(sink, progress).await
    }

    async fn add_dead_letter(&self, sink: &SinkName, entry: &JournalEntry, reason: &str) -> Result<(), StoreError> {
        self.room()?;
        self.inner.add_dead_letter(sink, entry, reason).await
    }

    async fn register_topics(&self, sink: &SinkName, topics: Vec<String>) -> Result<(), StoreError> {
        self.room()?;
        self.inner.register_topics(sink, topics).await
    }

    async fn unregister_topics(&self, sink: &SinkName, topics: Vec<String>) -> Result<(), StoreError> {
        self.room()?;
        self.inner.unregister_topics(sink, topics).await
    }

    async fn set_retained_scan(&self, sink: &SinkName, scan: Option<RetainedScan>) -> Result<(), StoreError> {
        self.inner.set_retained_scan(sink, scan).await
    }

    async fn adopt_retained(
        &self,
        sink: &SinkName,
        topics: Vec<String>,
        servers: Vec<ServerName>,
    ) -> Result<Vec<ServerName>, StoreError> {
        self.room()?;
        self.inner.adopt_retained(sink, topics, servers).await
    }

    async fn set_strict_ordering(&self, sink: &SinkName) -> Result<(), StoreError> {
        self.room()?;
        self.inner.set_strict_ordering(sink).await
    }

    async fn save_projection_state(&self, sink: &SinkName, state: String) -> Result<(), StoreError> {
        self.inner.save_projection_state(sink, state).await
    }
}

#[async_trait]
impl CommandLog for TestStore {
    async fn record_commands(
        &self,
        commands: Vec<(LoggedCommand, Option<LoggedResult>)>,
    ) -> Result<Vec<Recorded>, StoreError> {
        self.inner.record_commands(commands).await
    }

    async fn start_command(&self, server: Option<&ServerName>, id: &CommandId) -> Result<(), StoreError> {
        self.inner.start_command(server, id).await
    }

    async fn set_begun(
        &self,
        server: Option<&ServerName>,
        id: &CommandId,
        begun: Vec<InfoHash>,
    ) -> Result<(), StoreError> {
        self.inner.set_begun(server, id, begun).await
    }

    async fn finish_command(
        &self,
        server: Option<&ServerName>,
        id: &CommandId,
        result: LoggedResult,
    ) -> Result<(), StoreError> {
        self.inner.finish_command(server, id, result).await
    }

    async fn result_of(&self, server: Option<&ServerName>, id: &CommandId) -> Result<Option<Bytes>, StoreError> {
        self.inner.result_of(server, id).await
    }

    async fn set_running(&self, server: Option<&ServerName>, id: &CommandId, runs: bool) -> Result<(), StoreError> {
        self.inner.set_running(server, id, runs).await
    }

    async fn end_earlier_run(&self, was_clean_shutdown: bool) -> Result<(), StoreError> {
        self.inner.end_earlier_run(was_clean_shutdown).await
    }

    async fn servers_with_unfinished_commands(&self) -> Result<BTreeSet<Option<ServerName>>, StoreError> {
        self.inner.servers_with_unfinished_commands().await
    }

    async fn unfinished_commands(
        &self,
        server: Option<&ServerName>,
        after: i64,
    ) -> Result<Vec<(i64, LoggedCommand)>, StoreError> {
        self.inner.unfinished_commands(server, after).await
    }

    async fn unsent_results(&self, sink: &SinkName, after: i64, limit: u16) -> Result<Vec<UnsentResult>, StoreError> {
        self.inner.unsent_results(sink, after, limit).await
    }

    fn results_page_bytes(&self) -> usize {
        self.inner.results_page_bytes()
    }

    async fn result_backlog(&self, sink: &SinkName) -> Result<ResultBacklog, StoreError> {
        self.inner.result_backlog(sink).await
    }

    async fn mark_results_sent(&self, numbers: Vec<i64>) -> Result<(), StoreError> {
        self.room()?;
        self.inner.mark_results_sent(numbers).await
    }
}
