//! The reader: hears what is told, as long as it likes, and nobody waits for it.
//!
//! It is for whoever listens in this process or over a connection of his own: a library user, a terminal, a page.
//! It is no sink: nothing is noted of it on disk. Journal entries of all servers come in the order of their commits,
//! so one of them says where a reader stands with all; an `updated` is made when it is asked for, and tells all that
//! changed since the reader heard of that torrent last.
//!
//! What must hold:
//! - a reader costs a place in the journal, a page of it, and one entry a torrent that it has an old picture of,
//!   however slow it is; it never holds the journal back. What was trimmed before it was read is [`Missed`], and
//!   counted;
//! - per server, entries come in the order of `seq`, and an `updated` after the entries that led there.

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

/// What a reader works with.
pub struct ReaderParts {
    pub live: Arc<LiveState>,
    pub store: Arc<dyn Store>,
    /// Only events of these are heard.
    pub servers: BTreeSet<ServerName>,
    /// Only these are heard.
    pub events: BTreeSet<Kind>,
    pub begin: Begin,
    /// What is told by then is still heard.
    pub stop: CancellationToken,
}

/// Where a reader begins.
#[derive(Clone, Debug)]
pub enum Begin {
    /// After these entries; with the present, where nothing is said of a server.
    After(BTreeMap<ServerName, Seq>),
    /// With all that came, of all servers, after the event of this id, as somebody said it. What changed since
    /// without an event is told, too.
    AfterEvent(String),
}

/// See the module.
pub struct Reader {
    live: Arc<LiveState>,
    store: Arc<dyn Store>,
    buffer: Arc<ChangeBuffer>,
    events: BTreeSet<Kind>,
    lanes: BTreeMap<ServerName, ReaderLane>,
    /// `None`: it has begun.
    begin: Option<Begin>,
    /// All before it was read; `None`: nothing was.
    position: Option<JournalPosition>,
    /// Read, and not handed out yet.
    ready: VecDeque<Heard>,
    stop: CancellationToken,
}

#[derive(Default)]
struct ReaderLane {
    /// Every entry up to here was read; `None`: it is not known yet how far.
    cursor: Option<Seq>,
    dirty: DirtySet,
}

/// What a reader hears.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Heard {
    Entry(JournalEntry),
    /// The conflated event.
    Updated(Box<Event>),
    Missed(Missed),
    /// The event to begin after is not there, so something may be missing, of any server. Says why, and with what
    /// it begins instead.
    Elsewhere(&'static str),
}

/// Events were told faster than they were read, and are not kept any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{events} events of {server} were not read in time and are gone")]
#[non_exhaustive]
pub struct Missed {
    pub server: ServerName,
    /// How many, of all kinds but `updated`.
    pub events: u64,
}

impl Heard {
    /// The bytes that go on every wire; `None` for what is no event.
    pub fn body(&self) -> Option<Bytes> {
        match self {
            Self::Entry(entry) => Some(entry.body.clone()),
            Self::Updated(event) => Some(Bytes::from(event.to_json())),
            Self::Missed(_) | Self::Elsewhere(_) => None,
        }
    }
}

impl Reader {
    pub fn new(parts: ReaderParts) -> Self {
        let ReaderParts { live, store, servers, events, begin, stop } = parts;
        // From here on no change is missed.
        let buffer = live.subscribe();
        let lane = |server: ServerName| {
            let last_seq = live.read(&server, |content| content.last_seq)?;
            let asked = if let Begin::After(after) = &begin { after.get(&server) } else { None };
            let cursor = Some(asked.map_or(last_seq, |seq| last_seq.min(*seq)));
            Some((server, ReaderLane { cursor, ..ReaderLane::default() }))
        };
        let lanes = servers.into_iter().filter_map(lane).collect();
        let (begin, position, ready) = (Some(begin), None, VecDeque::new());
        Self { live, store, buffer, events, lanes, begin, position, ready, stop }
    }

    /// Waits for the next. `None` after the stop, when all is heard. Cancel-safe.
    ///
    /// # Errors
    /// A store that cannot be used any more.
    pub async fn next(&mut self) -> Result<Option<Heard>, StoreError> {
        loop {
            if let Some(heard) = self.ready.pop_front() {
                return Ok(Some(heard));
            }
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

    /// How many events were told that it has not come to yet.
    pub fn behind(&self) -> u64 {
        let lanes = self.lanes.iter();
        lanes.map(|(server, lane)| self.last(server).0.saturating_sub(lane.cursor.unwrap_or_default().0)).sum()
    }

    fn last(&self, server: &ServerName) -> Seq {
        self.live.read(server, |content| content.last_seq).unwrap_or_default()
    }

    /// Finds its place in the journal, if it has none yet.
    async fn begin(&mut self) -> Result<(), StoreError> {
        match &self.begin {
            None => return Ok(()),
            Some(Begin::After(_)) => self.position = self.place_of_lanes().await?,
            Some(Begin::AfterEvent(id)) => match find(&*self.store, &self.live, id).await? {
                Found::Event(position, entry) => self.begin_after(position, &entry),
                Found::Oldest(reason) => {
                    self.lanes.values_mut().for_each(|lane| lane.cursor = None);
                    self.ready.push_back(Heard::Elsewhere(reason));
                }
                Found::Nothing(reason) => {
                    self.position = self.place_of_lanes().await?;
                    self.ready.push_back(Heard::Elsewhere(reason));
                }
            },
        }
        self.begin = None;
        Ok(())
    }

    /// The place before which nothing stands that is to be read; `None`: before the oldest that is kept.
    async fn place_of_lanes(&self) -> Result<Option<JournalPosition>, StoreError> {
        let (mut first, mut last) = (None::<JournalPosition>, None);
        for (server, lane) in &self.lanes {
            let cursor = lane.cursor.unwrap_or_default();
            // Also one that is written down and not told yet: others that came after it may be told already.
            match self.store.position(server, Seq(cursor.0 + 1)).await? {
                Some(next) => first = Some(first.map_or(next, |first| first.min(next))),
                None if cursor < self.last(server) => return Ok(None),
                None => last = last.max(self.store.position(server, cursor).await?),
            }
        }
        Ok(first.map_or(last, |first| Some(JournalPosition(first.0 - 1))))
    }

    /// What changed since, without an event to tell it, is told as it is now.
    fn begin_after(&mut self, position: JournalPosition, entry: &JournalEntry) {
        self.position = Some(position);
        for (server, lane) in &mut self.lanes {
            lane.cursor = (*server == entry.server).then_some(entry.seq);
            self.live.read(server, |content| {
                for (hash, snapshot) in content.snapshot.iter().filter(|(_, snapshot)| snapshot.changed_at > entry.time)
                {
                    lane.dirty.mark(*hash, Known::Forgotten, snapshot.last_seq);
                }
            });
        }
    }

    /// Reads a page of the journal, if there is something new in it; says whether there may be more.
    async fn read_all_after(&mut self) -> Result<bool, StoreError> {
        if self.behind() == 0 {
            return Ok(false);
        }
        let lasts: Vec<Seq> = self.lanes.keys().map(|server| self.last(server)).collect();
        let mut page = self.store.read_all_after(self.position, READ_MAX).await?;
        if page.is_empty() && self.is_behind_with_what_it_knows(&lasts) {
            // The journal was empty in between, and counts its places anew.
            page = self.store.read_all_after(None, READ_MAX).await?;
        }
        let is_full = page.len() == usize::from(READ_MAX);
        let mut is_ahead_of_board = false;
        let buffered = self.buffer.take_states();
        self.take_in(buffered);
        for (position, entry) in page {
            // What is not on the board yet would be followed by the state from before it.
            is_ahead_of_board = self.lanes.contains_key(&entry.server) && entry.seq > self.last(&entry.server);
            if is_ahead_of_board {
                break;
            }
            self.position = Some(position);
            self.take(entry);
        }
        if !is_full && !is_ahead_of_board {
            self.give_up_what_is_gone(&lasts);
        }
        Ok(is_full && !is_ahead_of_board)
    }

    /// Some of what came after the last that was read of a server is not to be had after its place.
    fn is_behind_with_what_it_knows(&self, lasts: &[Seq]) -> bool {
        self.lanes.values().zip(lasts).any(|(lane, last)| lane.cursor.is_some_and(|cursor| cursor < *last))
    }

    fn take(&mut self, entry: JournalEntry) {
        let Some(lane) = self.lanes.get_mut(&entry.server) else { return };
        if lane.cursor.is_some_and(|cursor| entry.seq <= cursor) {
            return;
        }
        let before = lane.cursor.replace(entry.seq);
        let events = before.map_or(0, |before| entry.seq.0 - before.0 - 1);
        if events > 0 {
            self.ready.push_back(Heard::Missed(Missed { server: entry.server.clone(), events }));
        }
        if !self.events.contains(&entry.kind) {
            return;
        }
        if let Some(hash) = entry.hash.filter(|hash| lane.dirty.contains(hash)) {
            let snapshot = self.live.read(&entry.server, |content| content.snapshot.get(&hash).cloned()).flatten();
            lane.dirty.learned(hash, known_after(&entry, snapshot), entry.seq);
        }
        self.ready.push_back(Heard::Entry(entry));
    }

    /// All that is kept was read: what had been told before and was not among it is gone.
    fn give_up_what_is_gone(&mut self, lasts: &[Seq]) {
        for ((server, lane), last) in self.lanes.iter_mut().zip(lasts) {
            let events = lane.cursor.map_or(0, |cursor| last.0.saturating_sub(cursor.0));
            if events > 0 {
                self.ready.push_back(Heard::Missed(Missed { server: server.clone(), events }));
            }
            lane.cursor = lane.cursor.max(Some(*last));
        }
    }

    fn take_in(&mut self, buffered: BufferedStates) {
        for (server, changed) in buffered.changed {
            let Some(lane) = self.lanes.get_mut(&server) else { continue };
            for (hash, changed) in changed {
                lane.dirty.mark(hash, changed.before.map_or(Known::Nothing, Known::Torrent), changed.not_before);
            }
        }
    }

    /// The next torrent that there is something new to say of. Made only now: it tells the present.
    fn next_update(&mut self) -> Option<Heard> {
        let buffered = self.buffer.take_states();
        self.take_in(buffered);
        let servers: Vec<ServerName> = self.lanes.keys().cloned().collect();
        for server in servers {
            while let Some(hash) = self.lanes.get(&server)?.peek() {
                // The picture and what lies on the desk are read in one: no change is between them.
                let read = |content: &LiveServer| {
                    (self.buffer.take_states(), content.epoch, content.snapshot.get(&hash).cloned())
                };
                let (buffered, epoch, snapshot) = self.live.read(&server, read)?;
                self.take_in(buffered);
                let lane = self.lanes.get_mut(&server)?;
                if lane.peek() != Some(hash) {
                    continue;
                }
                let (hash, known) = lane.dirty.next(lane.cursor.unwrap_or_default())?;
                lane.dirty.sent(hash, Known::Present);
                lane.dirty.resolve(hash);
                let Some(snapshot) = snapshot.filter(|_| self.events.contains(&Kind::Updated)) else { continue };
                if let Some(changes) = changes_for(&known, &snapshot.torrent) {
                    let id = EventId::Updated { server: server.clone(), epoch, rev: snapshot.rev };
                    let event = updated(&server, id, changes, &snapshot);
                    return Some(Heard::Updated(Box::new(event)));
                }
            }
        }
        None
    }
}

impl ReaderLane {
    /// The next torrent that may be told.
    fn peek(&self) -> Option<InfoHash> {
        self.dirty.peek(self.cursor.unwrap_or_default())
    }
}

/// What became of the event that somebody names.
enum Found {
    Event(JournalPosition, JournalEntry),
    /// It was there. The oldest that is kept comes next.
    Oldest(&'static str),
    /// As far as is known, it never was. There is only the present.
    Nothing(&'static str),
}

async fn find(store: &dyn Store, live: &LiveState, id: &str) -> Result<Found, StoreError> {
    let unknown = Found::Nothing("there is no such event, so all is from now on");
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
        _ => Found::Oldest("the event is no longer kept; this begins with the oldest that is"),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::live_state::PollReport;
    use crate::model::{
        Cause, Change, ChangeSet, Changes, Committed, DiffState, Epoch, NewEvent, ServerState, ServerStats, Torrent,
    };
    use crate::port::{Clock as _, Journal as _, SystemClock};
    use crate::store::{MemoryStore, Options};

    fn name(text: &str) -> ServerName {
        ServerName::parse(text).unwrap()
    }

    fn torrent(number: u8, downloaded: u64) -> Arc<Torrent> {
        let torrent = Torrent::new(name("home"), InfoHash::V1([number; 20]), "x");
        Arc::new(torrent.with_bytes(1000, downloaded, 0))
    }

    struct Stage {
        store: Arc<MemoryStore>,
        live: Arc<LiveState>,
        epoch: Epoch,
    }

    impl Stage {
        async fn new(options: Options) -> Self {
            let store = Arc::new(MemoryStore::new(options, Arc::new(SystemClock)));
            let epoch = store.load(&name("home")).await.unwrap().epoch;
            let content = |server: &str| {
                let content = LiveServer {
                    epoch,
                    snapshot: Default::default(),
                    state: ServerState::default(),
                    last_seq: Seq(0),
                    needs_reset: false,
                    stats: ServerStats::default(),
                    stats_body: Bytes::new(),
                    poll: PollReport::default(),
                };
                (name(server), content)
            };
            let live = Arc::new(LiveState::new(["home", "attic"].map(content).into(), []));
            Self { store, live, epoch }
        }

        /// Tells so much of one torrent, with events of this kind, or without.
        async fn tell(&self, server: &str, downloaded: u64, kinds: &[Kind]) {
            let committed = self.commit(server, downloaded, kinds).await;
            self.live.publish(&name(server), committed, None);
        }

        /// Writes it down, and does not tell it yet.
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

        fn reader(&self, begin: Begin) -> Reader {
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
            self.reader(Begin::After(BTreeMap::new()))
        }

        fn after(&self, id: impl Into<String>) -> Reader {
            self.reader(Begin::AfterEvent(id.into()))
        }

        fn id(&self, server: &str, seq: u64) -> String {
            EventId::Journal { server: name(server), epoch: self.epoch, seq: Seq(seq) }.to_string()
        }
    }

    /// What is heard until nothing more is.
    async fn heard(reader: &mut Reader) -> Vec<String> {
        let mut all = Vec::new();
        while let Ok(Ok(Some(heard))) = tokio::time::timeout(Duration::from_millis(200), reader.next()).await {
            all.push(match heard {
                Heard::Entry(entry) => format!("{} {}", entry.server, entry.seq.0),
                Heard::Updated(event) => {
                    let Change { from, to } = &event.changes["downloaded"];
                    format!("{} {from}>{to}", event.server)
                }
                Heard::Missed(Missed { server, events }) => format!("{server} misses {events}"),
                Heard::Elsewhere(_) => "elsewhere".to_owned(),
            });
        }
        all
    }

    #[tokio::test(start_paused = true)]
    async fn one_event_says_where_a_reader_stands_with_all_servers() {
        let stage = Stage::new(Options::default()).await;
        let mut first = stage.starting_now();
        for (server, downloaded) in [("home", 1), ("attic", 1), ("home", 2), ("attic", 2), ("home", 3)] {
            stage.tell(server, downloaded, &[Kind::Stalled]).await;
        }
        let all = ["home 1", "attic 1", "home 2", "attic 2", "home 3"];
        assert_eq!(heard(&mut first).await, all);
        for (server, seq, position) in [("home", 1, 1), ("attic", 1, 2), ("attic", 2, 4), ("home", 3, 5)] {
            let mut again = stage.after(stage.id(server, seq));
            assert_eq!(heard(&mut again).await, all[position..], "after {server} {seq}");
        }
        stage.tell("attic", 5, &[Kind::Unstalled]).await;
        assert_eq!(heard(&mut first).await, ["attic 3"]);
    }

    #[tokio::test(start_paused = true)]
    async fn updates_are_conflated_and_come_after_the_events_that_led_there() {
        let stage = Stage::new(Options::default()).await;
        stage.tell("home", 1, &[Kind::Added]).await;
        let mut reader = stage.starting_now();
        assert_eq!(heard(&mut reader).await, [""; 0]);
        stage.tell("home", 2, &[]).await;
        stage.tell("home", 3, &[]).await;
        assert_eq!(heard(&mut reader).await, ["home 1>3"]);
        stage.tell("home", 4, &[]).await;
        stage.tell("home", 5, &[Kind::Stalled]).await;
        assert_eq!(heard(&mut reader).await, ["home 2"], "the event has told it all");
        stage.tell("home", 6, &[Kind::Unstalled]).await;
        stage.tell("home", 7, &[]).await;
        assert_eq!(heard(&mut reader).await, ["home 3", "home 6>7"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_kept_any_more_is_told() {
        let stage = Stage::new(Options { journal_bytes_max: 8_000, ..Options::default() }).await;
        for downloaded in 0..40 {
            stage.tell("home", downloaded, &[Kind::Stalled]).await;
        }
        let oldest = stage.store.read_after(&name("home"), Seq(0), 1).await.unwrap()[0].seq.0;
        assert!(oldest > 1);
        let mut reader = stage.after(stage.id("home", 1));
        let all = heard(&mut reader).await;
        assert_eq!(all[..2], ["elsewhere".to_owned(), format!("home {oldest}")]);
        assert_eq!(all.last().unwrap(), "home 40");
        let other = EventId::Journal { server: name("home"), epoch: Epoch(stage.epoch.0 ^ 1), seq: Seq(40) };
        for after in [other.to_string(), stage.id("home", 41), stage.id("garage", 1), "x".to_owned()] {
            let mut reader = stage.after(after.clone());
            assert_eq!(heard(&mut reader).await[0], "elsewhere", "{after}");
        }
        // One that looks on, and does not ask for long enough.
        let mut reader = stage.starting_now();
        for downloaded in 0..40 {
            stage.tell("home", downloaded, &[Kind::Stalled]).await;
        }
        let all = heard(&mut reader).await;
        assert!(all[0].starts_with("home misses ") && all.last().unwrap() == "home 80", "{all:?}");
    }

    /// An event may be told before another that was written down earlier: the watchers of two servers do not wait
    /// for each other.
    #[tokio::test(start_paused = true)]
    async fn what_is_written_down_and_not_told_yet_when_a_reader_begins_is_heard() {
        let stage = Stage::new(Options::default()).await;
        stage.tell("home", 1, &[Kind::Added]).await;
        let late = stage.commit("home", 2, &[Kind::Stalled]).await;
        stage.tell("attic", 1, &[Kind::Added]).await;
        let mut reader = stage.starting_now();
        assert_eq!(heard(&mut reader).await, [""; 0]);
        stage.live.publish(&name("home"), late, None);
        stage.tell("attic", 2, &[Kind::Stalled]).await;
        assert_eq!(heard(&mut reader).await, ["home 2", "attic 2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_begins_at_a_place_of_its_own_with_each_server_and_ends_when_all_is_heard() {
        let stage = Stage::new(Options::default()).await;
        for downloaded in 1..=3 {
            stage.tell("home", downloaded, &[Kind::Stalled]).await;
            stage.tell("attic", downloaded, &[Kind::Stalled]).await;
        }
        let mut reader = stage.reader(Begin::After([(name("home"), Seq(3)), (name("attic"), Seq(1))].into()));
        reader.stop.cancel();
        assert_eq!(heard(&mut reader).await, ["attic 2", "attic 3"]);
        assert_eq!(reader.next().await.unwrap(), None);
    }
}
