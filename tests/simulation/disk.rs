//! A simulated disk: the in-memory store with the faults of a real one, and a chronicle of everything written.
//!
//! Writes that are documented as synced survive everything. Of the writes since then a power cut leaves a prefix, which
//! may be empty. The disk can be full, for the journal or for everything.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use dtorrent::model::{ChangeSet, CommandId, Committed, Epoch, InfoHash, JournalEntry, Rev, Seq, ServerName, SinkName};
use dtorrent::port::{
    Clock, CommandLog, Journal, JournalPosition, JournalUsage, Loaded, LoggedCommand, LoggedResult, Recorded,
    ResultBacklog, RetainedScan, SinkProgress, SinkState, SinkStore, StoreError, UnsentResult,
};
use dtorrent::store::{Image, MemoryStore, Options};

use super::env::{SimulationEnv, lock};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskSpace {
    Enough,
    /// Commits are refused.
    NoneForJournal,
    /// Every write is refused.
    None,
}

/// The state of one torrent at one revision.
pub struct CommittedState {
    pub rev: Rev,
    pub last_seq: Seq,
    pub body: Bytes,
}

/// Everything that was written, even if it was lost later. Sinks are compared with it.
#[derive(Default)]
pub struct Chronicle {
    pub entries: BTreeMap<ServerName, BTreeMap<Seq, JournalEntry>>,
    pub states: HashMap<(ServerName, InfoHash), Vec<CommittedState>>,
    /// First cursor of each sink.
    pub began: BTreeMap<(SinkName, ServerName), Seq>,
    /// Number of entries lost in power cuts; the store had not acknowledged any of them to the bridge.
    pub lost: usize,
}

/// The state that survives crashes. One store at a time is open on it.
pub struct Disk {
    env: Arc<SimulationEnv>,
    options: Options,
    pub space: Mutex<DiskSpace>,
    pub chronicle: Mutex<Chronicle>,
    pub dead_letters: Mutex<Vec<(SinkName, ServerName, Seq)>>,
}

pub struct DiskStore {
    disk: Arc<Disk>,
    inner: MemoryStore,
    /// The content after a power cut, if that is not everything.
    floor: Mutex<Option<Image>>,
}

impl Disk {
    pub fn new(env: Arc<SimulationEnv>, options: Options) -> Arc<Self> {
        Arc::new(Self {
            env,
            options,
            space: Mutex::new(DiskSpace::Enough),
            chronicle: Mutex::default(),
            dead_letters: Mutex::default(),
        })
    }

    /// Opens the disk, empty or with the content that an earlier run left.
    pub async fn open(self: &Arc<Self>, left: Option<Image>, servers: &[ServerName]) -> Arc<DiskStore> {
        let clock: Arc<dyn Clock> = self.env.clone();
        let inner = match left {
            Some(image) => MemoryStore::open(image, self.options.clone(), clock),
            None => MemoryStore::with_epoch(Epoch(0x7f3a_9c21), self.options.clone(), clock),
        };
        for server in servers {
            let loaded = inner.load(server).await.expect("a store in memory can be read");
            let mut chronicle = lock(&self.chronicle);
            let Chronicle { entries, lost, .. } = &mut *chronicle;
            *lost += entries.entry(server.clone()).or_default().split_off(&Seq(loaded.last_seq.0 + 1)).len();
        }
        Arc::new(DiskStore { disk: Arc::clone(self), inner, floor: Mutex::new(None) })
    }
}

impl DiskStore {
    /// Returns the content after a crash of the bridge, or after a power cut.
    pub fn left(&self, is_power_cut: bool) -> Image {
        let floor = lock(&self.floor).take().filter(|_| is_power_cut);
        floor.unwrap_or_else(|| self.inner.image())
    }

    pub fn inner(&self) -> &MemoryStore {
        &self.inner
    }

    fn check_space(&self, is_journal: bool) -> Result<(), StoreError> {
        match *lock(&self.disk.space) {
            DiskSpace::None => Err(StoreError::Full { reason: "the disk is full".to_owned() }),
            DiskSpace::NoneForJournal if is_journal => {
                Err(StoreError::Full { reason: "the journal is full".to_owned() })
            }
            DiskSpace::NoneForJournal | DiskSpace::Enough => Ok(()),
        }
    }

    /// Marks a write that is not synced: a power cut can lose it and any unsynced write before it.
    fn risk(&self) {
        let mut floor = lock(&self.floor);
        if floor.is_none() || self.disk.env.rng.percent(25) {
            *floor = Some(self.inner.image());
        }
    }

    fn synced(&self) {
        *lock(&self.floor) = None;
    }

    async fn before_write(&self) -> Result<(), StoreError> {
        self.disk.env.step().await;
        self.check_space(false)
    }

    async fn after_synced_write(&self) {
        self.synced();
        self.disk.env.step().await;
    }

    /// Adds what was committed to the chronicle.
    async fn record(&self, server: &ServerName, committed: &Committed) {
        let last = lock(&self.disk.chronicle).entries.get(server).and_then(|entries| entries.keys().last().copied());
        let (mut new, mut last) = (Vec::new(), last.unwrap_or_default());
        while last < committed.last_seq {
            let page = self.inner.read_after(server, last, u16::MAX).await.expect("memory can be read");
            let Some(entry) = page.last() else { break };
            last = entry.seq;
            new.extend(page);
        }
        let mut chronicle = lock(&self.disk.chronicle);
        for entry in new {
            self.disk
                .env
                .note(|| format!("journal {}: {} {:?} {}", entry.seq.0, entry.server, entry.kind, short(entry.hash)));
            chronicle.entries.entry(server.clone()).or_default().insert(entry.seq, entry);
        }
        for (hash, snapshot) in &committed.snapshot {
            let Some(snapshot) = snapshot else { continue };
            let body = Bytes::from(serde_json::to_vec(&*snapshot.torrent).expect("a torrent is plain JSON"));
            let state = CommittedState { rev: snapshot.rev, last_seq: snapshot.last_seq, body };
            chronicle.states.entry((server.clone(), *hash)).or_default().push(state);
        }
    }
}

pub fn short(hash: Option<InfoHash>) -> String {
    hash.map(|hash| hash.to_string()[..2].to_owned()).unwrap_or_default()
}

#[async_trait]
impl Journal for DiskStore {
    async fn load(&self, server: &ServerName) -> Result<Loaded, StoreError> {
        self.inner.load(server).await
    }

    async fn commit(&self, change_set: ChangeSet) -> Result<Committed, StoreError> {
        self.disk.env.step().await;
        self.check_space(true)?;
        let server = change_set.server.clone();
        let is_synced = !change_set.events.is_empty();
        if !is_synced {
            self.risk();
        }
        let committed = self.inner.commit(change_set).await?;
        self.record(&server, &committed).await;
        if is_synced {
            self.synced();
        }
        self.disk.env.step().await;
        Ok(committed)
    }

    async fn read_after(&self, server: &ServerName, after: Seq, limit: u16) -> Result<Vec<JournalEntry>, StoreError> {
        self.disk.env.step().await;
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
impl SinkStore for DiskStore {
    async fn load_sink(&self, sink: &SinkName) -> Result<SinkState, StoreError> {
        self.inner.load_sink(sink).await
    }

    async fn save_progress(
        &self,
        sink: &SinkName,
        progress: BTreeMap<ServerName, SinkProgress>,
    ) -> Result<(), StoreError> {
        self.before_write().await?;
        self.risk();
        {
            let mut chronicle = lock(&self.disk.chronicle);
            for (server, progress) in &progress {
                chronicle.began.entry((sink.clone(), server.clone())).or_insert(progress.cursor);
            }
        }
        self.inner.save_progress(sink, progress).await
    }

    async fn add_dead_letter(&self, sink: &SinkName, entry: &JournalEntry, reason: &str) -> Result<(), StoreError> {
        self.before_write().await?;
        self.inner.add_dead_letter(sink, entry, reason).await?;
        lock(&self.disk.dead_letters).push((sink.clone(), entry.server.clone(), entry.seq));
        self.after_synced_write().await;
        Ok(())
    }

    async fn register_topics(&self, sink: &SinkName, topics: Vec<String>) -> Result<(), StoreError> {
        self.before_write().await?;
        self.inner.register_topics(sink, topics).await?;
        self.after_synced_write().await;
        Ok(())
    }

    async fn unregister_topics(&self, sink: &SinkName, topics: Vec<String>) -> Result<(), StoreError> {
        self.before_write().await?;
        self.risk();
        self.inner.unregister_topics(sink, topics).await
    }

    async fn set_retained_scan(&self, sink: &SinkName, scan: Option<RetainedScan>) -> Result<(), StoreError> {
        self.before_write().await?;
        self.inner.set_retained_scan(sink, scan).await?;
        self.after_synced_write().await;
        Ok(())
    }

    async fn adopt_retained(
        &self,
        sink: &SinkName,
        topics: Vec<String>,
        servers: Vec<ServerName>,
    ) -> Result<Vec<ServerName>, StoreError> {
        self.before_write().await?;
        let marked = self.inner.adopt_retained(sink, topics, servers).await?;
        self.after_synced_write().await;
        Ok(marked)
    }

    async fn set_strict_ordering(&self, sink: &SinkName) -> Result<(), StoreError> {
        self.before_write().await?;
        self.inner.set_strict_ordering(sink).await?;
        self.after_synced_write().await;
        Ok(())
    }

    async fn save_projection_state(&self, sink: &SinkName, state: String) -> Result<(), StoreError> {
        self.before_write().await?;
        self.inner.save_projection_state(sink, state).await?;
        self.after_synced_write().await;
        Ok(())
    }
}

#[async_trait]
impl CommandLog for DiskStore {
    async fn record_commands(
        &self,
        commands: Vec<(LoggedCommand, Option<LoggedResult>)>,
    ) -> Result<Vec<Recorded>, StoreError> {
        self.before_write().await?;
        let admissions = self.inner.record_commands(commands).await?;
        self.after_synced_write().await;
        Ok(admissions)
    }

    async fn start_command(&self, server: Option<&ServerName>, id: &CommandId) -> Result<(), StoreError> {
        self.before_write().await?;
        self.inner.start_command(server, id).await?;
        self.after_synced_write().await;
        Ok(())
    }

    async fn set_begun(
        &self,
        server: Option<&ServerName>,
        id: &CommandId,
        begun: Vec<InfoHash>,
    ) -> Result<(), StoreError> {
        self.before_write().await?;
        self.inner.set_begun(server, id, begun).await?;
        self.after_synced_write().await;
        Ok(())
    }

    async fn finish_command(
        &self,
        server: Option<&ServerName>,
        id: &CommandId,
        result: LoggedResult,
    ) -> Result<(), StoreError> {
        self.before_write().await?;
        self.inner.finish_command(server, id, result).await?;
        self.after_synced_write().await;
        Ok(())
    }

    async fn result_of(&self, server: Option<&ServerName>, id: &CommandId) -> Result<Option<Bytes>, StoreError> {
        self.inner.result_of(server, id).await
    }

    async fn set_running(&self, server: Option<&ServerName>, id: &CommandId, runs: bool) -> Result<(), StoreError> {
        self.before_write().await?;
        self.inner.set_running(server, id, runs).await
    }

    async fn end_earlier_run(&self, was_clean_shutdown: bool) -> Result<(), StoreError> {
        self.before_write().await?;
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
        self.before_write().await?;
        self.risk();
        self.inner.mark_results_sent(numbers).await
    }
}
