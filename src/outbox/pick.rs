//! What is sent next: the window of a link, filled with what is owed, most urgent first.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::ReusableBoxFuture;

use super::caution::Piece;
use super::dirty::Known;
use super::dispatch::{Dispatcher, PartsLeft, Sent, ServerLane, UnderWay};
use super::retention::Kept;
use crate::model::{
    Cause, Changes, EVENT_SCHEMA, Entity, Event, EventId, InfoHash, JournalEntry, Kind, Seq, ServerName, SinkName,
    SnapshotTorrent, Torrent, in_parts,
};
use crate::port::{DeliverError, Delivery, EventOrdering, Link, RESULTS_BYTES, Store, StoreError, UnsentResult};

/// Entries read from the journal at once.
const READ_MAX: u16 = 256;
/// Results read from the command log at once.
const RESULTS_MAX: u16 = 256;
/// Of one part of a result.
const RESULT_ROWS_MAX: usize = 1000;

/// Entries on their way from the disk, so that they are there when they are wanted.
pub(super) struct ReadAhead {
    after: Seq,
    entries: ReusableBoxFuture<'static, Result<Vec<JournalEntry>, StoreError>>,
}

impl ReadAhead {
    fn start(store: &Arc<dyn Store>, server: &ServerName, after: Seq) -> Self {
        let (store, server) = (Arc::clone(store), server.clone());
        let mut entries = ReusableBoxFuture::new(async move { store.read(&server, after, READ_MAX).await });
        // Polled once, it is asked for, and comes while something else is done.
        if let Some(read) = (&mut entries).now_or_never() {
            entries.set(std::future::ready(read));
        }
        Self { after, entries }
    }
}

/// Results on their way from the command log.
pub(super) type ResultsAhead = ReusableBoxFuture<'static, Result<Vec<UnsentResult>, StoreError>>;

fn read_results(store: &Arc<dyn Store>, sink: &SinkName, after: i64) -> ResultsAhead {
    let (store, sink) = (Arc::clone(store), sink.clone());
    let mut results = ReusableBoxFuture::new(async move { store.unsent_results(&sink, after, RESULTS_MAX).await });
    // As with entries.
    if let Some(read) = (&mut results).now_or_never() {
        results.set(std::future::ready(read));
    }
    results
}

pub(super) type Batch = Vec<(Delivery, Sent)>;

impl Dispatcher {
    /// Everything that is kept is said again: a broker that came back may have forgotten it, or an
    /// older copy of it may have come back with the broker.
    pub(super) async fn begin_link(&mut self) -> Result<(), StoreError> {
        self.owes_info = true;
        for owed in self.lanes.values_mut() {
            owed.said_online = None;
            owed.said_stats = Bytes::new();
        }
        if let Some(beside) = &mut self.beside {
            beside.begin();
        }
        self.choose_kept();
        for (server, owed) in &mut self.lanes {
            self.parts.live.read(server, |content| {
                for (hash, snapshot) in content.snapshot.iter().filter(|(hash, _)| owed.kept.contains(hash)) {
                    owed.dirty.mark(*hash, Known::Present, snapshot.last_seq);
                }
            });
        }
        let states = self.names_of_states();
        self.plan_clearing(&states);
        self.register(states).await
    }

    /// What nobody wants any more is to be cleared. What was found is, when it is known what there is.
    fn plan_clearing(&mut self, states: &[String]) {
        let live = &self.parts.live;
        self.found.retain(|server, _| live.read(server, |content| content.state.is_known) == Some(false));
        let found = self.found.values().flatten();
        let mut wanted: HashSet<String> =
            self.parts.sink.own_retained_topics().into_iter().chain(found.chain(states).cloned()).collect();
        wanted.extend(self.beside.iter().flat_map(super::beside::Beside::names));
        for server in self.lanes.keys() {
            let status = Delivery::ServerStatus { server: server.clone(), is_online: false };
            let stats = Delivery::Stats { server: server.clone(), body: Bytes::new() };
            wanted.extend([status, stats].iter().filter_map(|delivery| self.parts.sink.retained_topic(delivery)));
        }
        self.registry.keep_only(&wanted);
    }

    /// A server whose kept names were found has shown what it has.
    fn is_any_found_known(&self) -> bool {
        let is_known = |server| self.parts.live.read(server, |content| content.state.is_known) == Some(true);
        self.found.keys().any(is_known)
    }

    /// After a start: what was told after the last note may never have arrived.
    pub(super) fn mark_unsent(&mut self) {
        for (server, owed) in &mut self.lanes {
            let sent_rev = owed.sent_rev();
            self.parts.live.read(server, |content| {
                for (hash, snapshot) in content.snapshot.iter().filter(|(_, snapshot)| snapshot.rev > sent_rev) {
                    owed.dirty.mark(*hash, Known::Forgotten, snapshot.last_seq);
                }
            });
        }
    }

    /// Chooses which states are kept; those that came in or fell out are owed.
    pub(super) fn choose_kept(&mut self) {
        let now = self.parts.clock.now();
        for (server, owed) in &mut self.lanes {
            self.parts.live.read(server, |content| {
                let kept = Kept::choose(&content.snapshot, self.parts.settings.retain, now, &owed.kept);
                if kept == owed.kept {
                    return;
                }
                let before = std::mem::replace(&mut owed.kept, kept);
                for (hash, snapshot) in &content.snapshot {
                    if owed.kept.contains(hash) != before.contains(hash) {
                        owed.dirty.mark(*hash, Known::Present, snapshot.last_seq);
                    }
                }
            });
        }
    }

    fn names_of_states(&self) -> Vec<String> {
        let mut names = Vec::new();
        for (server, owed) in &self.lanes {
            self.parts.live.read(server, |content| {
                let kept = content.snapshot.keys().filter(|hash| owed.kept.contains(hash));
                names.extend(kept.filter_map(|hash| self.name_of_state(server, *hash)));
            });
        }
        names
    }

    fn names_of_owed_states(&self) -> Vec<String> {
        let name = |(server, owed): (&ServerName, &ServerLane)| -> Vec<String> {
            let kept = owed.dirty.hashes().filter(|hash| owed.kept.contains(hash));
            kept.filter_map(|hash| self.name_of_state(server, *hash)).collect()
        };
        self.lanes.iter().flat_map(name).collect()
    }

    fn name_of_state(&self, server: &ServerName, hash: InfoHash) -> Option<String> {
        self.parts.sink.retained_topic(&Delivery::State {
            server: server.clone(),
            hash,
            body: Bytes::new(),
            keep: true,
        })
    }

    /// Whether nothing is left that a stopping bridge should wait for.
    pub(super) fn owes_nothing(&self) -> bool {
        self.aside.is_empty()
            && self.substitutes.is_empty()
            && !self.registry.has_leftovers()
            && self.lanes.iter().all(|(server, owed)| {
                let written = self.parts.live.read(server, |content| content.last_seq).unwrap_or_default();
                owed.lane.is_drained(written) && owed.dirty.is_empty()
            })
    }

    /// How much may be under way.
    pub(super) fn window(&self, link: &dyn Link) -> usize {
        if self.caution.is_one_at_a_time() { 1 } else { link.limits().window }
    }

    /// Sends as much as the link may have under way.
    pub(super) async fn fill(
        &mut self,
        link: &mut dyn Link,
        under_way: &mut UnderWay,
        may_have_results: &mut bool,
    ) -> Result<(), StoreError> {
        self.is_strict = self.is_deferring || link.limits().ordering == EventOrdering::Strict;
        loop {
            let free = self.window(link).saturating_sub(under_way.len());
            let mut batch = Batch::new();
            self.pick_status(free, &mut batch);
            self.pick_results(free, link.limits().result_bytes_max, may_have_results, &mut batch).await?;
            self.pick_substitutes(free, &mut batch);
            // States and side messages are not shut out by a long journal, nor by each other.
            self.pick_entries(free - free / 4, &mut batch).await?;
            self.pick_aside(free - free / 8, &mut batch);
            self.pick_beside(free, &mut batch);
            self.pick_states(free, &mut batch);
            self.pick_entries(free, &mut batch).await?;
            self.pick_leftovers(free, &mut batch);
            if batch.is_empty() {
                return Ok(());
            }
            let mut names: Vec<String> =
                batch.iter().filter_map(|(delivery, _)| self.parts.sink.retained_topic(delivery)).collect();
            if names.iter().any(|name| !self.registry.knows(name)) {
                // Each note waits for the disk: those of the states that come after these go with it.
                names.extend(self.names_of_owed_states());
            }
            self.register(names).await?;
            self.note_memory(false).await?;
            for (delivery, sent) in batch {
                if !self.parts.sink.wants(&delivery) {
                    self.leave_out(sent);
                    continue;
                }
                let arrival = match self.condemned(&sent) {
                    Some(reason) => Box::pin(async { Err(DeliverError::Rejected { reason }) }),
                    None => link.send(delivery),
                };
                under_way.push(Box::pin(async move { (sent, arrival.await) }));
            }
        }
    }

    /// The sink does not hear of it; of a torrent it is owed nothing more by that.
    fn leave_out(&mut self, sent: Sent) {
        match sent {
            Sent::Entry(entry) => self.settle_entry(&entry),
            Sent::State { server, hash } => {
                if let Some(owed) = self.lanes.get_mut(&server) {
                    owed.dirty.settled(hash);
                    self.is_unsettled = true;
                }
            }
            // These come only to sinks that keep something or take commands.
            Sent::Cleared { .. } | Sent::Result { .. } | Sent::Shown { .. } | Sent::Other => {}
        }
    }

    /// Why this is not sent any more; else it is noted as sent.
    fn condemned(&mut self, sent: &Sent) -> Option<String> {
        if !self.caution.is_one_at_a_time() {
            return None;
        }
        let item = sent.item()?;
        let deaths = self.caution.condemns(&item);
        if deaths.is_none() {
            self.caution.sent(item);
        }
        deaths.map(|deaths| format!("{deaths} connections in a row ended, without a word, when it was sent alone"))
    }

    fn pick_status(&mut self, free: usize, batch: &mut Batch) {
        if free > batch.len() && std::mem::take(&mut self.owes_info) {
            batch.push((Delivery::Info { body: self.parts.reporter.info() }, Sent::Other));
        }
        for (server, owed) in &mut self.lanes {
            let read = |content: &crate::live_state::LiveServer| (content.state.is_online, content.stats_body.clone());
            let Some((is_online, stats)) = self.parts.live.read(server, read) else { continue };
            if batch.len() < free && owed.said_online != Some(is_online) {
                owed.said_online = Some(is_online);
                batch.push((Delivery::ServerStatus { server: server.clone(), is_online }, Sent::Other));
            }
            if batch.len() < free && !stats.is_empty() && owed.said_stats != stats {
                owed.said_stats = stats.clone();
                batch.push((Delivery::Stats { server: server.clone(), body: stats }, Sent::Other));
            }
        }
        if free > batch.len() && std::mem::take(&mut self.owes_health) {
            batch.push((Delivery::Health { body: self.parts.reporter.health() }, Sent::Other));
        }
    }

    /// Results that are written down and not under way; long ones in parts, for sinks that want them so.
    async fn pick_results(
        &mut self,
        free: usize,
        bytes_max: Option<usize>,
        may_have_more: &mut bool,
        batch: &mut Batch,
    ) -> Result<(), StoreError> {
        if batch.len() < free && self.result_parts.is_empty() && std::mem::take(may_have_more) {
            let (store, sink) = (&self.parts.store, &self.parts.settings.name);
            let ahead = self.results_ahead.take();
            // What was written down after it was read has knocked in vain: it is looked for once more.
            *may_have_more = ahead.is_some();
            let ahead = ahead.unwrap_or_else(|| read_results(store, sink, self.results_read_to));
            let results = ahead.await?;
            self.results_read_to = results.last().map_or(self.results_read_to, |result| result.number);
            let bytes: usize = results.iter().map(|result| result.body.len()).sum();
            if results.len() >= usize::from(RESULTS_MAX) || bytes >= RESULTS_BYTES {
                // Asked for now, the next ones come while these are sent.
                self.results_ahead = Some(read_results(store, sink, self.results_read_to));
                *may_have_more = true;
            }
            for result in results {
                if self.results_under_way.contains_key(&result.number) {
                    continue;
                }
                if let Some(body) = self.shortened.get(&result.number).cloned() {
                    self.results_under_way.insert(result.number, PartsLeft { count: 1, is_replaced: true });
                    self.substitutes.push(UnsentResult { body, ..result });
                    continue;
                }
                let whole = || vec![result.body.clone()];
                let parts = bytes_max.map_or_else(whole, |max| in_parts(&result.body, RESULT_ROWS_MAX, max));
                let left = PartsLeft { count: parts.len(), is_replaced: false };
                self.results_under_way.insert(result.number, left);
                let parts = parts.into_iter().enumerate();
                self.result_parts.extend(parts.map(|(number, part)| (number, part, result.clone())));
            }
        }
        while batch.len() < free
            && let Some((number, body, result)) = self.result_parts.pop_front()
        {
            let (server, reply) = (result.server.clone(), result.reply.clone());
            let sent = Sent::Result { result: Box::new(result), piece: Piece::Part(number) };
            batch.push((Delivery::Result { server, body, reply }, sent));
        }
        Ok(())
    }

    fn pick_substitutes(&mut self, free: usize, batch: &mut Batch) {
        while batch.len() < free
            && let Some(result) = self.substitutes.pop()
        {
            let (server, body, reply) = (result.server.clone(), result.body.clone(), result.reply.clone());
            let piece = Piece::Substitute(body.len());
            let sent = Sent::Result { result: Box::new(result), piece };
            batch.push((Delivery::Result { server, body, reply }, sent));
        }
    }

    /// Journal entries, the servers taking turns.
    async fn pick_entries(&mut self, free: usize, batch: &mut Batch) -> Result<(), StoreError> {
        if batch.len() < free
            && let Some(entry) = self.unburied.offer(Instant::now())
        {
            batch.push((Delivery::Event(entry.clone()), Sent::Entry(Box::new(entry))));
        }
        let servers: Vec<ServerName> = self.lanes.keys().cloned().collect();
        let mut has_more = self.unburied.is_empty();
        while has_more && batch.len() < free {
            has_more = false;
            for server in &servers {
                let Some(owed) = self.lanes.get_mut(server) else { continue };
                if batch.len() >= free {
                    break;
                }
                if let Some(from) = owed.rewind {
                    if !owed.lane.rewind(from) {
                        continue;
                    }
                    owed.rewind = None;
                    self.is_unsettled = true;
                }
                let written = self.parts.live.read(server, |content| content.last_seq).unwrap_or_default();
                if let Some(after) = owed.lane.wants_after(written) {
                    let ahead = owed.ahead.take().filter(|ahead| ahead.after == after);
                    let ahead = ahead.unwrap_or_else(|| ReadAhead::start(&self.parts.store, server, after));
                    let mut entries = ahead.entries.await?;
                    if entries.is_empty() {
                        owed.lane.skip_to(written);
                        self.is_unsettled = true;
                    }
                    // What is not on the board yet would be followed by the state from before it.
                    entries.retain(|entry| entry.seq <= written);
                    owed.lane.fill(entries);
                    let next = owed.lane.goes_on_after(written);
                    owed.ahead = next.map(|after| ReadAhead::start(&self.parts.store, server, after));
                }
                if self.is_strict && owed.lane.has_in_flight() {
                    continue;
                }
                let Some(entry) = owed.lane.depart() else { continue };
                has_more = true;
                if self.parts.settings.events.contains(&entry.kind) {
                    batch.push((Delivery::Event(entry.clone()), Sent::Entry(Box::new(entry))));
                } else {
                    // The sink does not hear of it, so what it knows of the torrent stays.
                    self.settle_entry(&entry);
                }
            }
        }
        Ok(())
    }

    fn pick_aside(&mut self, free: usize, batch: &mut Batch) {
        while batch.len() < free
            && let Some(delivery) = self.aside.pop_front()
        {
            batch.push((delivery, Sent::Other));
        }
    }

    fn pick_states(&mut self, free: usize, batch: &mut Batch) {
        let servers: Vec<ServerName> = self.lanes.keys().cloned().collect();
        for server in servers {
            // A state is up to three messages: the update, the clearing of a kept copy, the state.
            while batch.len() < free {
                let Some(owed) = self.lanes.get(&server) else { break };
                let Some(hash) = owed.dirty.peek(owed.lane.cursor()) else { break };
                // The picture and what lies on the desk are read in one: no change is between them.
                let buffer = &self.parts.buffer;
                let read = self
                    .parts
                    .live
                    .read(&server, |content| (buffer.drain(), content.epoch, content.snapshot.get(&hash).cloned()));
                let Some((drained, epoch, snapshot)) = read else { break };
                self.take_in(drained);
                let Some(owed) = self.lanes.get_mut(&server) else { break };
                if owed.dirty.peek(owed.lane.cursor()) != Some(hash) {
                    continue;
                }
                let Some((hash, known)) = owed.dirty.next(owed.lane.cursor()) else { break };
                let keep = owed.kept.contains(&hash);
                match snapshot {
                    Some(snapshot) => {
                        owed.dirty.sent(hash, Known::Picture(Arc::clone(&snapshot.torrent)));
                        let id = EventId::Updated { server: server.clone(), epoch, rev: snapshot.rev };
                        self.pick_update(&server, hash, id, &known, &snapshot, batch);
                        match self.name_of_state(&server, hash) {
                            Some(name) if keep => self.registry.keep(&name),
                            _ => self.clear_state(&server, hash, batch),
                        }
                        let body =
                            Bytes::from(serde_json::to_vec(&*snapshot.torrent).expect("a torrent is plain JSON"));
                        let delivery = Delivery::State { server: server.clone(), hash, body, keep };
                        batch.push((delivery, Sent::State { server: server.clone(), hash }));
                    }
                    None => {
                        owed.dirty.sent(hash, Known::Nothing);
                        owed.dirty.settled(hash);
                        self.clear_state(&server, hash, batch);
                    }
                }
            }
        }
    }

    fn pick_update(
        &self,
        server: &ServerName,
        hash: InfoHash,
        id: EventId,
        known: &Known,
        snapshot: &SnapshotTorrent,
        batch: &mut Batch,
    ) {
        if !self.parts.settings.events.contains(&Kind::Updated) {
            return;
        }
        let Some(changes) = changes_for(known, &snapshot.torrent) else { return };
        let event = updated(server, id.clone(), changes, snapshot);
        let (time, body) = (event.time, Bytes::from(event.to_json()));
        batch.push((Delivery::Updated { server: server.clone(), hash, id, time, body }, Sent::Other));
    }

    fn clear_state(&mut self, server: &ServerName, hash: InfoHash, batch: &mut Batch) {
        if let Some(name) = self.name_of_state(server, hash).filter(|name| self.registry.knows(name)) {
            self.registry.clear(&name);
            batch.push((Delivery::Clear { name: name.clone() }, Sent::Cleared { name }));
        }
    }

    fn pick_leftovers(&mut self, free: usize, batch: &mut Batch) {
        if self.is_any_found_known() {
            self.plan_clearing(&self.names_of_states());
        }
        while batch.len() < free
            && let Some(name) = self.registry.next_leftover()
        {
            batch.push((Delivery::Clear { name: name.clone() }, Sent::Cleared { name }));
        }
    }
}

/// What `updated` has to say to a sink that knows this much; `None` if nothing.
pub(super) fn changes_for(known: &Known, snapshot: &Torrent) -> Option<Changes> {
    match known {
        Known::Nothing | Known::Present => None,
        Known::Forgotten => Some(Changes::new()),
        Known::Picture(picture) => Some(picture.changes_to(snapshot)).filter(|changes| !changes.is_empty()),
    }
}

/// The conflated event. Its time is that of the newest change, so that one id has one time on every road.
pub(super) fn updated(server: &ServerName, id: EventId, changes: Changes, snapshot: &SnapshotTorrent) -> Event {
    Event {
        schema: EVENT_SCHEMA,
        entity: Entity::Torrent,
        event_type: Kind::Updated,
        id,
        seq: None,
        time: snapshot.changed_at,
        server: server.clone(),
        hash: Some(snapshot.torrent.hash),
        cause: Cause::Observed,
        command_id: None,
        changes,
        torrent: Some(Arc::clone(&snapshot.torrent)),
    }
}

/// What whoever hears this entry knows of its torrent then; `told` is what the board says of that now.
pub(super) fn known_from(entry: &JournalEntry, snapshot: Option<SnapshotTorrent>) -> Known {
    match snapshot {
        _ if entry.kind == Kind::Removed => Known::Nothing,
        Some(snapshot) if snapshot.rev == entry.rev => Known::Picture(snapshot.torrent),
        _ => picture_in(entry).map_or(Known::Forgotten, Known::Picture),
    }
}

/// The torrent as the entry shows it, from its bytes.
fn picture_in(entry: &JournalEntry) -> Option<Arc<Torrent>> {
    #[derive(serde::Deserialize)]
    struct Body {
        torrent: Torrent,
    }
    serde_json::from_slice::<Body>(&entry.body).ok().map(|body| Arc::new(body.torrent))
}
