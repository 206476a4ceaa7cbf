//! The reader: a listener inside this process, such as a library user, a terminal or a page. Nothing waits for one.
//!
//! A reader is no sink: nothing about it is on disk. Journal entries of all servers come in the order of their commits, so
//! one of them is a position with all of them; an `updated` is made when it is asked for, with everything that changed
//! since the reader last received something about that torrent.
//!
//! Invariants:
//! - a reader costs a position in the journal, a page of it, and one entry per dirty torrent, however slow it is; it never
//!   holds the journal back. What was trimmed before it was read is [`Missed`], and counted;
//! - per server, entries come in the order of `seq`, and an `updated` after the entries that led to it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::dirty::{DirtySet, Known};
use super::updates::{changes_for, known_after, updated};
use crate::live_state::{BufferedStates, ChangeBuffer, LiveServer, LiveState};
use crate::model::{Event, EventId, InfoHash, JournalEntry, Kind, Seq, ServerName};
use crate::port::{JournalPosition, Store, StoreError};

/// Entries read from the journal at once.
const READ_MAX: u16 = 256;

/// Configuration of a [`Reader`], and what it reads from.
pub struct ReaderParts {
    /// Snapshots, and the place where the reader subscribes.
    pub live: Arc<LiveState>,
    /// Store of the journal.
    pub store: Arc<dyn Store>,
    /// Only events of these servers are read.
    pub servers: BTreeSet<ServerName>,
    /// Only events of these kinds are read.
    pub events: BTreeSet<Kind>,
    /// The first events to read.
    pub begin: ReadFrom,
    /// Ends the reader, after what is published by then.
    pub stop: CancellationToken,
}

/// The position at which a reader begins.
#[derive(Clone, Debug)]
pub enum ReadFrom {
    /// After these entries; with the present for a server that is not in the map.
    Cursors(BTreeMap<ServerName, Seq>),
    /// With everything of all servers that came after the event of this id, as a client sent it; also with what changed
    /// since without an event.
    AfterEvent(String),
}

/// A listener that has its own position in the journal. See the module.
pub struct Reader {
    live: Arc<LiveState>,
    store: Arc<dyn Store>,
    buffer: Arc<ChangeBuffer>,
    events: BTreeSet<Kind>,
    servers: BTreeMap<ServerName, ServerReader>,
    /// `None`: it has begun.
    begin: Option<ReadFrom>,
    /// Everything up to here was read; `None`: nothing was.
    position: Option<JournalPosition>,
    /// Read, and not handed out yet.
    ready: VecDeque<ReaderItem>,
    stop: CancellationToken,
}

#[derive(Default)]
struct ServerReader {
    /// Every entry up to here was read; `None`: it is not known yet how far.
    cursor: Option<Seq>,
    dirty: DirtySet,
}

/// One item that a reader returns.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ReaderItem {
    /// A journal entry.
    Entry(JournalEntry),
    /// The conflated event.
    Updated(Box<Event>),
    /// A gap.
    Missed(Missed),
    /// The event to begin after does not exist, so something may be missing, of any server. Contains why, and with what the
    /// reader begins instead.
    PositionUnknown(&'static str),
}

/// Events that left the journal before they were read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{events} events of {server} were not read in time and are gone")]
#[non_exhaustive]
pub struct Missed {
    /// Server of these events.
    pub server: ServerName,
    /// Their number, of all kinds but `updated`.
    pub events: u64,
}

impl ReaderItem {
    /// Returns the event as JSON, as every sink receives it; `None` for what is no event.
    pub fn body(&self) -> Option<Bytes> {
        match self {
            Self::Entry(entry) => Some(entry.body.clone()),
            Self::Updated(event) => Some(Bytes::from(event.to_json())),
            Self::Missed(_) | Self::PositionUnknown(_) => None,
        }
    }
}

impl Reader {
    /// Subscribes; the position in the journal is found with the first call of [`Self::next`].
    pub fn new(parts: ReaderParts) -> Self {
        let ReaderParts { live, store, servers, events, begin, stop } = parts;
        // Subscribed before anything is read, so that no change is missed in between.
        let buffer = live.subscribe();
        let begin_server = |server: ServerName| {
            let last_seq = live.read(&server, |content| content.last_seq)?;
            let asked = if let ReadFrom::Cursors(after) = &begin { after.get(&server) } else { None };
            let cursor = Some(asked.map_or(last_seq, |seq| last_seq.min(*seq)));
            Some((server, ServerReader { cursor, ..ServerReader::default() }))
        };
        let servers = servers.into_iter().filter_map(begin_server).collect();
        let (begin, position, ready) = (Some(begin), None, VecDeque::new());
        Self { live, store, buffer, events, servers, begin, position, ready, stop }
    }

    /// Waits for the next item; `None` after the stop, when everything is read. Cancel-safe.
    ///
    /// # Errors
    /// A store that cannot be used any more.
    pub async fn next(&mut self) -> Result<Option<ReaderItem>, StoreError> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(Some(item));
            }
            // Before the read: after a stop everything that is published by then is still returned.
            let is_over = self.stop.is_cancelled();
            self.begin().await?;
            let is_more = self.read_all_after().await?;
            if self.ready.is_empty() && !is_more {
                let update = self.next_update();
                self.ready.extend(update);
            }
            if is_more || !self.ready.is_empty() {
                continue;
            }
            if is_over {
                return Ok(None);
            }
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = self.buffer.changed.notified() => {}
            }
        }
    }

    /// Returns the number of published events that were not read yet.
    pub fn behind(&self) -> u64 {
        self.servers
            .iter()
            .map(|(server, reader)| self.live.last_seq(server).0.saturating_sub(reader.cursor.unwrap_or_default().0))
            .sum()
    }

    /// Finds the position in the journal, if there is none yet.
    async fn begin(&mut self) -> Result<(), StoreError> {
        match &self.begin {
            None => return Ok(()),
            Some(ReadFrom::Cursors(_)) => self.position = self.position_of_cursors().await?,
            Some(ReadFrom::AfterEvent(id)) => match find(&*self.store, &self.live, id).await? {
                Found::Event(position, entry) => self.begin_after(position, &entry),
                Found::Oldest(reason) => {
                    self.servers.values_mut().for_each(|reader| reader.cursor = None);
                    self.ready.push_back(ReaderItem::PositionUnknown(reason));
                }
                Found::Nothing(reason) => {
                    self.position = self.position_of_cursors().await?;
                    self.ready.push_back(ReaderItem::PositionUnknown(reason));
                }
            },
        }
        self.begin = None;
        Ok(())
    }

    /// Returns the position after which everything is to be read; `None`: from the oldest entry on.
    async fn position_of_cursors(&self) -> Result<Option<JournalPosition>, StoreError> {
        let (mut first, mut last) = (None::<JournalPosition>, None);
        for (server, reader) in &self.servers {
            let cursor = reader.cursor.unwrap_or_default();
            // Also an entry that is committed and not published: later ones of other servers may be published already.
            match self.store.position(server, Seq(cursor.0 + 1)).await? {
                Some(next) => first = Some(first.map_or(next, |first| first.min(next))),
                None if cursor < self.live.last_seq(server) => return Ok(None),
                None => last = last.max(self.store.position(server, cursor).await?),
            }
        }
        Ok(first.map_or(last, |first| Some(JournalPosition(first.0 - 1))))
    }

    /// Begins after an entry. What changed since without an event is reported as it is now.
    fn begin_after(&mut self, position: JournalPosition, entry: &JournalEntry) {
        self.position = Some(position);
        for (server, reader) in &mut self.servers {
            reader.cursor = (*server == entry.server).then_some(entry.seq);
            self.live.read(server, |content| {
                for (hash, snapshot) in content.snapshot.iter().filter(|(_, snapshot)| snapshot.changed_at > entry.time)
                {
                    reader.dirty.mark(*hash, Known::Forgotten, snapshot.last_seq);
                }
            });
        }
    }

    /// Reads a page of the journal, if there is something new in it; returns whether there may be more.
    async fn read_all_after(&mut self) -> Result<bool, StoreError> {
        if self.behind() == 0 {
            return Ok(false);
        }
        let lasts: Vec<Seq> = self.servers.keys().map(|server| self.live.last_seq(server)).collect();
        let mut page = self.store.read_all_after(self.position, READ_MAX).await?;
        if page.is_empty() && self.is_behind_known_cursors(&lasts) {
            // The journal was empty at a restart of the store, which then numbers positions from the start.
            page = self.store.read_all_after(None, READ_MAX).await?;
        }
        let is_end = page.is_empty();
        let mut is_unpublished = false;
        let buffered = self.buffer.take_states();
        self.take_in(buffered);
        for (position, entry) in page {
            // An entry that is not published yet would be followed by the state from before it.
            is_unpublished = self.servers.contains_key(&entry.server) && entry.seq > self.live.last_seq(&entry.server);
            if is_unpublished {
                break;
            }
            self.position = Some(position);
            self.take(entry);
        }
        if is_end {
            self.skip_trimmed(&lasts);
        }
        Ok(!is_end && !is_unpublished)
    }

    /// Whether entries of a server are missing after the position.
    fn is_behind_known_cursors(&self, lasts: &[Seq]) -> bool {
        self.servers.values().zip(lasts).any(|(reader, last)| reader.cursor.is_some_and(|cursor| cursor < *last))
    }

    fn take(&mut self, entry: JournalEntry) {
        let Some(reader) = self.servers.get_mut(&entry.server) else { return };
        // The position is before the cursor that is furthest behind, so entries before the other cursors come along.
        if reader.cursor.is_some_and(|cursor| entry.seq <= cursor) {
            return;
        }
        let before = reader.cursor.replace(entry.seq);
        let events = before.map_or(0, |before| entry.seq.0 - before.0 - 1);
        if events > 0 {
            self.ready.push_back(ReaderItem::Missed(Missed { server: entry.server.clone(), events }));
        }
        if !self.events.contains(&entry.kind) {
            return;
        }
        if let Some(hash) = entry.hash.filter(|hash| reader.dirty.contains(hash)) {
            let snapshot = self.live.read(&entry.server, |content| content.snapshot.get(&hash).cloned()).flatten();
            reader.dirty.learned(hash, known_after(&entry, snapshot), entry.seq);
        }
        self.ready.push_back(ReaderItem::Entry(entry));
    }

    /// Counts as missed what was published and is no longer in the journal, which was read to its end.
    fn skip_trimmed(&mut self, lasts: &[Seq]) {
        for ((server, reader), last) in self.servers.iter_mut().zip(lasts) {
            let events = reader.cursor.map_or(0, |cursor| last.0.saturating_sub(cursor.0));
            if events > 0 {
                self.ready.push_back(ReaderItem::Missed(Missed { server: server.clone(), events }));
            }
            reader.cursor = reader.cursor.max(Some(*last));
        }
    }

    fn take_in(&mut self, buffered: BufferedStates) {
        for (server, changed) in buffered.changed {
            let Some(reader) = self.servers.get_mut(&server) else { continue };
            for (hash, changed) in changed {
                reader.dirty.mark(hash, changed.before.map_or(Known::Nothing, Known::Torrent), changed.not_before);
            }
        }
    }

    /// Returns the next update. Made only now, so that it has the present state.
    fn next_update(&mut self) -> Option<ReaderItem> {
        let buffered = self.buffer.take_states();
        self.take_in(buffered);
        let servers: Vec<ServerName> = self.servers.keys().cloned().collect();
        for server in servers {
            while let Some(hash) = self.servers.get(&server)?.peek() {
                // The snapshot and the buffer are read together: no change is between them.
                let read = |content: &LiveServer| {
                    (self.buffer.take_states(), content.epoch, content.snapshot.get(&hash).cloned())
                };
                let (buffered, epoch, snapshot) = self.live.read(&server, read)?;
                self.take_in(buffered);
                let reader = self.servers.get_mut(&server)?;
                if reader.peek() != Some(hash) {
                    continue;
                }
                let (hash, known) = reader.dirty.next(reader.cursor.unwrap_or_default())?;
                // Resolved at once: a reader acknowledges nothing.
                reader.dirty.sent(hash, Known::Present);
                reader.dirty.resolve(hash);
                let Some(snapshot) = snapshot.filter(|_| self.events.contains(&Kind::Updated)) else { continue };
                if let Some(changes) = changes_for(&known, &snapshot.torrent) {
                    let id = EventId::Updated { server: server.clone(), epoch, rev: snapshot.rev };
                    let event = updated(id, changes, &snapshot);
                    return Some(ReaderItem::Updated(Box::new(event)));
                }
            }
        }
        None
    }
}

impl ServerReader {
    /// Returns the next torrent whose update may be sent.
    fn peek(&self) -> Option<InfoHash> {
        self.dirty.peek(self.cursor.unwrap_or_default())
    }
}

/// The event to begin after, as it was found.
enum Found {
    Event(JournalPosition, JournalEntry),
    /// No longer in the journal: reading begins with the oldest entry.
    Oldest(&'static str),
    /// Never existed, as far as is known: reading begins with the present.
    Nothing(&'static str),
}

async fn find(store: &dyn Store, live: &LiveState, id: &str) -> Result<Found, StoreError> {
    let unknown = Found::Nothing("unknown event id; the stream starts with new events");
    let Ok(EventId::Journal { server, epoch, seq }) = id.parse() else { return Ok(unknown) };
    let Some((present, last)) = live.read(&server, |content| (content.epoch, content.last_seq)) else {
        return Ok(unknown);
    };
    if epoch != present {
        return Ok(Found::Oldest("the event is of an earlier epoch, whose journal is lost"));
    }
    if seq > last {
        return Ok(unknown);
    }
    let position = store.position(&server, seq).await?;
    let entry = store.read_after(&server, Seq(seq.0.saturating_sub(1)), 1).await?.into_iter().next();
    Ok(match (position, entry) {
        (Some(position), Some(entry)) if entry.seq == seq => Found::Event(position, entry),
        _ => Found::Oldest("the event is no longer stored; the stream starts with the oldest stored event"),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{Cause, Change, ChangeSet, Changes, Committed, DiffState, Epoch, NewEvent, Torrent};
    use crate::port::{Clock as _, Journal as _, SystemClock};
    use crate::store::{MemoryStore, Options};

    fn name(text: &str) -> ServerName {
        ServerName::parse(text).unwrap()
    }

    fn torrent(number: u8, downloaded: u64) -> Arc<Torrent> {
        let torrent = Torrent::new(name("home"), InfoHash::V1([number; 20]), "x");
        Arc::new(torrent.with_bytes(1000, downloaded, 0))
    }

    struct TestSetup {
        store: Arc<MemoryStore>,
        live: Arc<LiveState>,
        epoch: Epoch,
    }

    impl TestSetup {
        async fn new(options: Options) -> Self {
            let store = Arc::new(MemoryStore::new(options, Arc::new(SystemClock)));
            let loaded = store.load(&name("home")).await.unwrap();
            let epoch = loaded.epoch;
            let servers = ["home", "attic"].map(|server| (name(server), LiveServer::from(loaded.clone())));
            let live = Arc::new(LiveState::new(servers.into(), []));
            Self { store, live, epoch }
        }

        /// Publishes a torrent with so many bytes, with events of these kinds.
        async fn publish(&self, server: &str, downloaded: u64, kinds: &[Kind]) {
            let committed = self.commit(server, downloaded, kinds).await;
            self.live.publish(&name(server), committed, None);
        }

        /// Commits that, and does not publish it yet.
        async fn commit(&self, server: &str, downloaded: u64, kinds: &[Kind]) -> Committed {
            let torrent = torrent(1, downloaded);
            let new_event = |kind: &Kind| NewEvent {
                kind: *kind,
                cause: Cause::Observed,
                command_id: None,
                changes: Changes::new(),
                torrent: Some(Arc::clone(&torrent)),
            };
            let change_set = ChangeSet {
                server: name(server),
                time: SystemClock.now(),
                events: kinds.iter().map(new_event).collect(),
                changes: [(torrent.hash, Some((Arc::clone(&torrent), DiffState::default())))].into(),
                state: None,
            };
            self.store.commit(change_set).await.unwrap()
        }

        fn reader(&self, begin: ReadFrom) -> Reader {
            Reader::new(ReaderParts {
                live: Arc::clone(&self.live),
                store: self.store.clone(),
                servers: [name("home"), name("attic")].into(),
                events: Kind::ALL.iter().copied().collect(),
                begin,
                stop: CancellationToken::new(),
            })
        }

        fn starting_now(&self) -> Reader {
            self.reader(ReadFrom::Cursors(BTreeMap::new()))
        }

        fn after(&self, id: impl Into<String>) -> Reader {
            self.reader(ReadFrom::AfterEvent(id.into()))
        }

        fn id(&self, server: &str, seq: u64) -> String {
            EventId::Journal { server: name(server), epoch: self.epoch, seq: Seq(seq) }.to_string()
        }
    }

    /// Returns what is read until nothing more comes.
    async fn items(reader: &mut Reader) -> Vec<String> {
        let mut all = Vec::new();
        while let Ok(Ok(Some(item))) = tokio::time::timeout(Duration::from_millis(200), reader.next()).await {
            all.push(match item {
                ReaderItem::Entry(entry) => format!("{} {}", entry.server, entry.seq.0),
                ReaderItem::Updated(event) => {
                    let Change { from, to } = &event.changes["downloaded"];
                    format!("{} {from}>{to}", event.server)
                }
                ReaderItem::Missed(Missed { server, events }) => format!("{server} misses {events}"),
                ReaderItem::PositionUnknown(_) => "position unknown".to_owned(),
            });
        }
        all
    }

    #[tokio::test(start_paused = true)]
    async fn one_event_says_where_a_reader_stands_with_all_servers() {
        let setup = TestSetup::new(Options::default()).await;
        let mut first = setup.starting_now();
        for (server, downloaded) in [("home", 1), ("attic", 1), ("home", 2), ("attic", 2), ("home", 3)] {
            setup.publish(server, downloaded, &[Kind::Stalled]).await;
        }
        let all = ["home 1", "attic 1", "home 2", "attic 2", "home 3"];
        assert_eq!(items(&mut first).await, all);
        for (server, seq, position) in [("home", 1, 1), ("attic", 1, 2), ("attic", 2, 4), ("home", 3, 5)] {
            let mut again = setup.after(setup.id(server, seq));
            assert_eq!(items(&mut again).await, all[position..], "after {server} {seq}");
        }
        setup.publish("attic", 5, &[Kind::Unstalled]).await;
        assert_eq!(items(&mut first).await, ["attic 3"]);
    }

    #[tokio::test(start_paused = true)]
    async fn updates_are_conflated_and_come_after_the_events_that_led_there() {
        let setup = TestSetup::new(Options::default()).await;
        setup.publish("home", 1, &[Kind::Added]).await;
        let mut reader = setup.starting_now();
        assert_eq!(items(&mut reader).await, [""; 0]);
        setup.publish("home", 2, &[]).await;
        setup.publish("home", 3, &[]).await;
        assert_eq!(items(&mut reader).await, ["home 1>3"]);
        setup.publish("home", 4, &[]).await;
        setup.publish("home", 5, &[Kind::Stalled]).await;
        assert_eq!(items(&mut reader).await, ["home 2"], "the event has reported it all");
        setup.publish("home", 6, &[Kind::Unstalled]).await;
        setup.publish("home", 7, &[]).await;
        assert_eq!(items(&mut reader).await, ["home 3", "home 6>7"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_left_the_journal_is_reported_as_missed() {
        let setup = TestSetup::new(Options { journal_bytes_max: 8_000, ..Options::default() }).await;
        for downloaded in 0..40 {
            setup.publish("home", downloaded, &[Kind::Stalled]).await;
        }
        let oldest = setup.store.read_after(&name("home"), Seq(0), 1).await.unwrap()[0].seq.0;
        assert!(oldest > 1);
        let mut reader = setup.after(setup.id("home", 1));
        let all = items(&mut reader).await;
        assert_eq!(all[..2], ["position unknown".to_owned(), format!("home {oldest}")]);
        assert_eq!(all.last().unwrap(), "home 40");
        let other = EventId::Journal { server: name("home"), epoch: Epoch(setup.epoch.0 ^ 1), seq: Seq(40) };
        for after in [other.to_string(), setup.id("home", 41), setup.id("garage", 1), "x".to_owned()] {
            let mut reader = setup.after(after.clone());
            assert_eq!(items(&mut reader).await[0], "position unknown", "{after}");
        }
        // A reader that does not read for too long.
        let mut reader = setup.starting_now();
        for downloaded in 0..40 {
            setup.publish("home", downloaded, &[Kind::Stalled]).await;
        }
        let all = items(&mut reader).await;
        assert!(all[0].starts_with("home misses ") && all.last().unwrap() == "home 80", "{all:?}");
    }

    /// An event may be published before another that was committed earlier: the watchers of two servers do not wait for
    /// each other.
    #[tokio::test(start_paused = true)]
    async fn an_entry_committed_and_not_published_when_a_reader_begins_is_read() {
        let setup = TestSetup::new(Options::default()).await;
        setup.publish("home", 1, &[Kind::Added]).await;
        let late = setup.commit("home", 2, &[Kind::Stalled]).await;
        setup.publish("attic", 1, &[Kind::Added]).await;
        let mut reader = setup.starting_now();
        assert_eq!(items(&mut reader).await, [""; 0]);
        setup.live.publish(&name("home"), late, None);
        setup.publish("attic", 2, &[Kind::Stalled]).await;
        assert_eq!(items(&mut reader).await, ["home 2", "attic 2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_begins_at_its_own_cursor_of_each_server_and_ends_when_all_is_read() {
        let setup = TestSetup::new(Options::default()).await;
        for downloaded in 1..=3 {
            setup.publish("home", downloaded, &[Kind::Stalled]).await;
            setup.publish("attic", downloaded, &[Kind::Stalled]).await;
        }
        let mut reader = setup.reader(ReadFrom::Cursors([(name("home"), Seq(3)), (name("attic"), Seq(1))].into()));
        reader.stop.cancel();
        assert_eq!(items(&mut reader).await, ["attic 2", "attic 3"]);
        assert_eq!(reader.next().await.unwrap(), None);
    }
}
