//! A viewer: somebody who looks on for a while, from now on or from an event that he names.
//!
//! It is no sink. Nothing is noted of it on disk, nothing waits for it, and the journal is not kept for it.
//! So what it missed may be gone when it comes back; then it is told so, and goes on with what is there.
//! Events of all servers come in the order of their commits: one of them says where a viewer stands with all.
//!
//! Nothing but a page of the journal and the names of changed torrents is held for a viewer. One that is so
//! far behind for so long that it will not catch up is cut off; it knows from where to go on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::dirty::{DirtySet, Known};
use super::pick::{changes_for, known_from, updated};
use crate::board::{Board, Desk, Tray};
use crate::model::{Entry, EventId, Kind, Seq, ServerName, Timestamp};
use crate::port::{Clock, Place, Store, StoreError};

/// Entries read from the journal at once.
const READ_MAX: u16 = 256;
/// Updates made at once.
const UPDATES_MAX: usize = 64;
/// More events than this, for longer than that, and a viewer is cut off.
const BEHIND_MAX: u64 = 1024;
const BEHIND_FOR: Duration = Duration::from_secs(5);

/// What somebody wants to see.
#[derive(Clone, Debug)]
pub struct Wish {
    pub servers: BTreeSet<ServerName>,
    pub kinds: BTreeSet<Kind>,
    /// The event that was seen last, as it was said; without one all is from now on.
    pub after: Option<String>,
}

/// What a viewer is shown.
#[derive(Clone, Debug, PartialEq)]
pub enum Shown {
    Event(Entry),
    /// The conflated event. Its id is no place to go on from.
    Updated(Bytes),
    /// Events are missing here, of this server or of any.
    Gap {
        server: Option<ServerName>,
        reason: &'static str,
    },
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ViewerError {
    #[error("more than {BEHIND_MAX} events behind")]
    TooSlow,
    #[error("read the journal")]
    Store(#[from] StoreError),
}

pub struct Viewer {
    store: Arc<dyn Store>,
    board: Arc<Board>,
    clock: Arc<dyn Clock>,
    desk: Arc<Desk>,
    kinds: BTreeSet<Kind>,
    lanes: BTreeMap<ServerName, Lane>,
    /// All before it was shown.
    place: Option<Place>,
    waiting: VecDeque<Shown>,
    has_caught_up: bool,
    behind_since: Option<Instant>,
}

#[derive(Default)]
struct Lane {
    /// Every entry up to here was shown; `None`: it is not known yet how far.
    cursor: Option<Seq>,
    dirty: DirtySet,
}

/// Where a viewer begins.
enum Start {
    Now,
    /// After this event, which is kept.
    After(Place, Entry),
    /// With the oldest that is kept.
    Oldest,
}

impl Viewer {
    pub async fn new(
        store: Arc<dyn Store>,
        board: Arc<Board>,
        clock: Arc<dyn Clock>,
        wish: Wish,
    ) -> Result<Self, StoreError> {
        let Wish { servers, kinds, after } = wish;
        // From here on no change is missed.
        let desk = board.seat_guest();
        let (start, gap) = match &after {
            None => (Start::Now, None),
            Some(after) => begin_after(&*store, &board, after).await?,
        };
        let lanes = servers.into_iter().map(|server| (server, Lane::default())).collect();
        let (waiting, place) = (VecDeque::new(), None);
        let has_caught_up = matches!(start, Start::Now);
        let mut viewer =
            Self { store, board, clock, desk, kinds, lanes, place, waiting, has_caught_up, behind_since: None };
        viewer.waiting.extend(gap.map(|reason| Shown::Gap { server: None, reason }));
        match start {
            Start::Now => viewer.begin_now().await?,
            Start::After(place, entry) => viewer.begin_after(place, &entry),
            Start::Oldest => {}
        }
        Ok(viewer)
    }

    async fn begin_now(&mut self) -> Result<(), StoreError> {
        for (server, lane) in &mut self.lanes {
            let last = self.board.read(server, |content| content.last_seq).unwrap_or_default();
            lane.cursor = Some(last);
            self.place = self.place.max(self.store.place(server, last).await?);
        }
        Ok(())
    }

    /// What changed since, without an event to tell it, is told as it is now.
    fn begin_after(&mut self, place: Place, entry: &Entry) {
        self.place = Some(place);
        for (server, lane) in &mut self.lanes {
            if *server == entry.server {
                lane.cursor = Some(entry.seq);
            }
            self.board.read(server, |content| {
                for (hash, told) in content.told.iter().filter(|(_, told)| told.changed_at > entry.time) {
                    lane.dirty.mark(*hash, Known::Forgotten, told.last_seq);
                }
            });
        }
    }

    /// Waits for what is to be shown next. Cancel-safe.
    ///
    /// # Errors
    /// The end: the viewer is too slow, or the journal cannot be read.
    pub async fn next(&mut self) -> Result<Shown, ViewerError> {
        loop {
            if let Some(shown) = self.waiting.pop_front() {
                return Ok(shown);
            }
            self.check_pace()?;
            let is_more = self.read_on().await?;
            if self.waiting.is_empty() && !is_more {
                self.has_caught_up = true;
                self.pick_updates();
            }
            if self.waiting.is_empty() && !is_more {
                self.desk.laid.notified().await;
            }
        }
    }

    fn last(&self, server: &ServerName) -> Seq {
        self.board.read(server, |content| content.last_seq).unwrap_or_default()
    }

    fn behind(&self) -> u64 {
        let lanes = self.lanes.iter();
        lanes.map(|(server, lane)| self.last(server).0.saturating_sub(lane.cursor.unwrap_or_default().0)).sum()
    }

    /// Many events at once are no fault of a viewer's, nor is it that it was away.
    fn check_pace(&mut self) -> Result<(), ViewerError> {
        if !self.has_caught_up || self.behind() <= BEHIND_MAX {
            self.behind_since = None;
            return Ok(());
        }
        let since = *self.behind_since.get_or_insert_with(Instant::now);
        if since.elapsed() > BEHIND_FOR { Err(ViewerError::TooSlow) } else { Ok(()) }
    }

    /// Reads a page of the journal, if there is something new in it; says whether there may be more.
    async fn read_on(&mut self) -> Result<bool, StoreError> {
        if self.behind() == 0 {
            return Ok(false);
        }
        let lasts: Vec<Seq> = self.lanes.keys().map(|server| self.last(server)).collect();
        let mut page = self.store.read_on(self.place, READ_MAX).await?;
        if page.is_empty() && self.is_behind_with_what_it_knows(&lasts) {
            // The journal was empty in between, and counts its places anew.
            page = self.store.read_on(None, READ_MAX).await?;
        }
        let is_full = page.len() == usize::from(READ_MAX);
        let mut is_ahead_of_board = false;
        self.collect();
        for (place, entry) in page {
            // What is not on the board yet would be followed by the state from before it.
            is_ahead_of_board = self.lanes.contains_key(&entry.server) && entry.seq > self.last(&entry.server);
            if is_ahead_of_board {
                break;
            }
            self.place = Some(place);
            self.take(entry);
        }
        if !is_full && !is_ahead_of_board {
            self.give_up_what_is_gone(&lasts);
        }
        Ok(is_full && !is_ahead_of_board)
    }

    /// Some of what came after the last that was shown of a server is not to be had after its place.
    fn is_behind_with_what_it_knows(&self, lasts: &[Seq]) -> bool {
        self.lanes.values().zip(lasts).any(|(lane, last)| lane.cursor.is_some_and(|cursor| cursor < *last))
    }

    fn take(&mut self, entry: Entry) {
        let Some(lane) = self.lanes.get_mut(&entry.server) else { return };
        let Some(before) = lane.cursor.replace(entry.seq) else { return self.show(entry) };
        if entry.seq <= before {
            lane.cursor = Some(before);
            return;
        }
        if entry.seq.0 > before.0 + 1 {
            self.waiting.push_back(Shown::Gap { server: Some(entry.server.clone()), reason: GONE });
        }
        self.show(entry);
    }

    fn show(&mut self, entry: Entry) {
        if !self.kinds.contains(&entry.kind) {
            return;
        }
        if let (Some(lane), Some(hash)) = (self.lanes.get_mut(&entry.server), entry.hash)
            && lane.dirty.owes(&hash)
        {
            let told = self.board.read(&entry.server, |content| content.told.get(&hash).cloned()).flatten();
            lane.dirty.learned(hash, known_from(&entry, told), entry.seq);
        }
        self.waiting.push_back(Shown::Event(entry));
    }

    /// All that is kept was read: what had been told before and was not among it is gone.
    fn give_up_what_is_gone(&mut self, lasts: &[Seq]) {
        for ((server, lane), last) in self.lanes.iter_mut().zip(lasts) {
            if lane.cursor.is_some_and(|cursor| cursor < *last) {
                self.waiting.push_back(Shown::Gap { server: Some(server.clone()), reason: GONE });
            }
            lane.cursor = lane.cursor.max(Some(*last));
        }
    }

    fn collect(&mut self) {
        let tray = self.desk.take();
        self.take_in(tray);
    }

    fn take_in(&mut self, tray: Tray) {
        for (server, changed) in tray.changed {
            let Some(lane) = self.lanes.get_mut(&server) else { continue };
            for (hash, laid) in changed {
                let known = laid.before.map_or(Known::Nothing, Known::Picture);
                lane.dirty.mark(hash, known, laid.not_before);
            }
        }
    }

    /// What changed without an event of its own.
    fn pick_updates(&mut self) {
        self.collect();
        let servers: Vec<ServerName> = self.lanes.keys().cloned().collect();
        for server in servers {
            while self.waiting.len() < UPDATES_MAX && self.pick_update(&server) {}
        }
    }

    /// Deals with one torrent; says whether there was one.
    fn pick_update(&mut self, server: &ServerName) -> bool {
        let peek = |viewer: &Self| {
            let lane = viewer.lanes.get(server)?;
            lane.dirty.peek(lane.cursor.unwrap_or_default())
        };
        let Some(hash) = peek(self) else { return false };
        // The picture and what lies on the desk are read in one: no change is between them.
        let read =
            |content: &crate::board::Content| (self.desk.take(), content.epoch, content.told.get(&hash).cloned());
        let Some((tray, epoch, told)) = self.board.read(server, read) else { return false };
        self.take_in(tray);
        if peek(self) != Some(hash) {
            return true;
        }
        let Some(lane) = self.lanes.get_mut(server) else { return false };
        let Some((hash, known)) = lane.dirty.next(lane.cursor.unwrap_or_default()) else { return false };
        lane.dirty.sent(hash, Known::Present);
        lane.dirty.settled(hash);
        let Some(told) = told.filter(|_| self.kinds.contains(&Kind::Updated)) else { return true };
        if let Some(changes) = changes_for(&known, &told.torrent) {
            let id = EventId::Updated { server: server.clone(), epoch, rev: told.rev };
            let now: Timestamp = self.clock.now();
            let event = updated(server, id, now, changes, &told.torrent);
            self.waiting.push_back(Shown::Updated(Bytes::from(event.to_json())));
        }
        true
    }
}

const GONE: &str = "events were let go before they could be shown";

/// Where who has seen this event last begins, and what he misses.
async fn begin_after(
    store: &dyn Store,
    board: &Board,
    after: &str,
) -> Result<(Start, Option<&'static str>), StoreError> {
    let unknown = (Start::Now, Some("there is no such event, so all is from now on"));
    let Ok(EventId::Journal { server, epoch, seq }) = after.parse() else { return Ok(unknown) };
    let Some((present, last)) = board.read(&server, |content| (content.epoch, content.last_seq)) else {
        return Ok(unknown);
    };
    if epoch != present {
        return Ok((Start::Oldest, Some("the event is of an earlier epoch, whose journal is lost")));
    }
    if seq > last {
        return Ok(unknown);
    }
    let Some(place) = store.place(&server, seq).await? else {
        return Ok((Start::Oldest, Some("the event is no longer kept; this begins with the oldest that is")));
    };
    let entry = store.read(&server, Seq(seq.0.saturating_sub(1)), 1).await?.into_iter().next();
    Ok(match entry {
        Some(entry) => (Start::After(place, entry), None),
        None => (Start::Oldest, Some(GONE)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::{Content, PollReport};
    use crate::model::{
        Cause, Changes, Epoch, Fact, InfoHash, Memory, ServerState, ServerStats, Status, Tick, Torrent,
    };
    use crate::port::SystemClock;
    use crate::store::{MemoryStore, Options};

    fn name(text: &str) -> ServerName {
        ServerName::parse(text).unwrap()
    }

    fn torrent(number: u8, downloaded: u64) -> Arc<Torrent> {
        let torrent = serde_json::json!({
            "hash": InfoHash::V1([number; 20]), "name": "x", "server": "home", "active": true, "downloaded": downloaded,
            "uploaded": 0, "length": 1000, "path": null, "progress": 0.0, "ratio": null, "finished": false, "playing": true,
            "extra": {}, "status": Status::Downloading, "error": false, "message": null, "stalled": false,
        });
        Arc::new(serde_json::from_value(torrent).unwrap())
    }

    struct Stage {
        store: Arc<MemoryStore>,
        board: Arc<Board>,
        epoch: Epoch,
    }

    impl Stage {
        async fn new(options: Options) -> Self {
            let store = Arc::new(MemoryStore::new(options, Arc::new(SystemClock)));
            let epoch = store.load(&name("home")).await.unwrap().epoch;
            let content = |server: &str| {
                let content = Content {
                    epoch,
                    told: Default::default(),
                    state: ServerState::default(),
                    last_seq: Seq(0),
                    owes_reset: false,
                    stats: ServerStats::default(),
                    stats_body: Bytes::new(),
                    poll: PollReport::default(),
                };
                (name(server), content)
            };
            let board = Arc::new(Board::new(["home", "attic"].map(content).into(), []));
            Self { store, board, epoch }
        }

        /// Tells so much of one torrent, with events of this kind, or without.
        async fn tell(&self, server: &str, downloaded: u64, kinds: &[Kind]) {
            let torrent = torrent(1, downloaded);
            let fact = |kind: &Kind| Fact {
                kind: *kind,
                cause: Cause::Observed,
                command_id: None,
                changes: Changes::new(),
                torrent: Some(Arc::clone(&torrent)),
            };
            let tick = Tick {
                server: name(server),
                time: SystemClock.now(),
                facts: kinds.iter().map(fact).collect(),
                changes: [(torrent.hash, Some((Arc::clone(&torrent), Memory::default())))].into(),
                state: None,
            };
            let committed = self.store.commit(tick).await.unwrap();
            self.board.tell(&name(server), committed, None);
        }

        async fn viewer(&self, after: Option<String>) -> Viewer {
            let servers = [name("home"), name("attic")].into();
            let wish = Wish { servers, kinds: Kind::ALL.iter().copied().collect(), after };
            Viewer::new(self.store.clone(), Arc::clone(&self.board), Arc::new(SystemClock), wish).await.unwrap()
        }

        fn id(&self, server: &str, seq: u64) -> String {
            EventId::Journal { server: name(server), epoch: self.epoch, seq: Seq(seq) }.to_string()
        }
    }

    /// What is shown until nothing more is.
    async fn shown(viewer: &mut Viewer) -> Vec<String> {
        let mut all = Vec::new();
        while let Ok(Ok(shown)) = tokio::time::timeout(Duration::from_millis(200), viewer.next()).await {
            all.push(match shown {
                Shown::Event(entry) => format!("{} {}", entry.server, entry.seq.0),
                Shown::Updated(body) => {
                    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
                    let changed = &body["changes"]["downloaded"];
                    format!("{} {}>{}", body["server"].as_str().unwrap(), changed["from"], changed["to"])
                }
                Shown::Gap { server, .. } => format!("gap {}", server.map_or("-".to_owned(), |s| s.to_string())),
            });
        }
        all
    }

    #[tokio::test(start_paused = true)]
    async fn one_event_says_where_a_viewer_stands_with_all_servers() {
        let stage = Stage::new(Options::default()).await;
        let mut first = stage.viewer(None).await;
        for (server, downloaded) in [("home", 1), ("attic", 1), ("home", 2), ("attic", 2), ("home", 3)] {
            stage.tell(server, downloaded, &[Kind::Stalled]).await;
        }
        let all = ["home 1", "attic 1", "home 2", "attic 2", "home 3"];
        assert_eq!(shown(&mut first).await, all);
        for (server, seq, place) in [("home", 1, 1), ("attic", 1, 2), ("attic", 2, 4), ("home", 3, 5)] {
            let mut again = stage.viewer(Some(stage.id(server, seq))).await;
            assert_eq!(shown(&mut again).await, all[place..], "after {server} {seq}");
        }
        stage.tell("attic", 5, &[Kind::Unstalled]).await;
        assert_eq!(shown(&mut first).await, ["attic 3"]);
    }

    #[tokio::test(start_paused = true)]
    async fn updates_are_conflated_and_come_after_the_events_that_led_there() {
        let stage = Stage::new(Options::default()).await;
        stage.tell("home", 1, &[Kind::Added]).await;
        let mut viewer = stage.viewer(None).await;
        assert_eq!(shown(&mut viewer).await, [""; 0]);
        stage.tell("home", 2, &[]).await;
        stage.tell("home", 3, &[]).await;
        assert_eq!(shown(&mut viewer).await, ["home 1>3"]);
        stage.tell("home", 4, &[]).await;
        stage.tell("home", 5, &[Kind::Stalled]).await;
        assert_eq!(shown(&mut viewer).await, ["home 2"], "the event has told it all");
        stage.tell("home", 6, &[Kind::Unstalled]).await;
        stage.tell("home", 7, &[]).await;
        assert_eq!(shown(&mut viewer).await, ["home 3", "home 6>7"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_kept_any_more_is_told() {
        let stage = Stage::new(Options { journal_bytes_max: 8_000, ..Options::default() }).await;
        for downloaded in 0..40 {
            stage.tell("home", downloaded, &[Kind::Stalled]).await;
        }
        let oldest = stage.store.read(&name("home"), Seq(0), 1).await.unwrap()[0].seq.0;
        assert!(oldest > 1);
        let mut viewer = stage.viewer(Some(stage.id("home", 1))).await;
        let all = shown(&mut viewer).await;
        assert_eq!(all[..2], ["gap -".to_owned(), format!("home {oldest}")]);
        assert_eq!(all.last().unwrap(), "home 40");
        let other = EventId::Journal { server: name("home"), epoch: Epoch(stage.epoch.0 ^ 1), seq: Seq(40) };
        for after in [other.to_string(), stage.id("home", 41), stage.id("garage", 1), "x".to_owned()] {
            let mut viewer = stage.viewer(Some(after.clone())).await;
            assert_eq!(shown(&mut viewer).await[0], "gap -", "{after}");
        }
        // One that looks on, and does not ask for long enough.
        let mut viewer = stage.viewer(None).await;
        for downloaded in 0..40 {
            stage.tell("home", downloaded, &[Kind::Stalled]).await;
        }
        assert_eq!(shown(&mut viewer).await[0], "gap home");
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_is_far_behind_for_long_is_cut_off() {
        let stage = Stage::new(Options::default()).await;
        let mut viewer = stage.viewer(None).await;
        for _ in 0..4 {
            stage.tell("home", 1, &[Kind::Stalled; 1000]).await;
        }
        assert_eq!(shown(&mut viewer).await.len(), 4000, "many at once are no fault of its own");
        let mut took = 0;
        let cut = loop {
            stage.tell("home", 1, &[Kind::Stalled; 1000]).await;
            tokio::time::advance(Duration::from_secs(1)).await;
            let mut cut = None;
            for _ in 0..300 {
                match viewer.next().await {
                    Ok(_) => took += 1,
                    Err(error) => cut = Some(error),
                }
            }
            if let Some(cut) = cut {
                break cut;
            }
            assert!(took < 10_000, "it is never cut off");
        };
        assert!(matches!(cut, ViewerError::TooSlow));
    }
}
