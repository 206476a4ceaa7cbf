//! The states of one sink's torrents: the latest counts.
//!
//! ```text
//! change buffer ─► dirty ─── held while events of the torrent are undelivered ───► updated, clearing, state
//! projection ────────────────────────────────────────────────────────────────────► its messages
//! retained topics that nothing is sent to any more ──────────────────────────────► clearing
//! ```
//!
//! A state is read from the snapshot when it is sent, so that it is never older than what was sent before it. On each
//! new link everything that is retained is published again: a broker may have lost it, or have an older copy.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use tracing::warn;

use super::dirty::{DirtySet, Known};
use super::parts::DispatcherParts;
use super::projection::ProjectionDriver;
use super::retained_topics::RetainedTopics;
use super::retention::{AUTO_MAX, Retained};
use super::updates::{changes_for, known_after, updated};
use super::{DeliveryId, Outbox, Outcome, Outgoing};
use crate::live_state::{BufferedStates, LiveServer};
use crate::model::{EventId, InfoHash, JournalEntry, Kind, Rev, Seq, ServerName, Snapshot, SnapshotTorrent};
use crate::port::{Delivery, Progress, SinkProgress, SinkState, StoreError};

/// See the module.
pub(super) struct StateOutbox {
    parts: Arc<DispatcherParts>,
    servers: BTreeMap<ServerName, ServerStates>,
    /// The registry of retained topics, for all outboxes.
    pub topics: RetainedTopics,
    projection: Option<ProjectionDriver>,
    /// Bytes of bodies with which a batch ends.
    bytes_max: usize,
}

/// The states of one server.
struct ServerStates {
    dirty: DirtySet,
    retained: Retained,
    /// Torrents of which the sink may know more than the store does.
    doubted: HashSet<InfoHash>,
    /// Every state up to here is acknowledged.
    sent_rev: Rev,
    /// The last entry up to which the sink has all; see [`StateOutbox::set_cursors`].
    cursor: Seq,
    /// The newest entry when orphans were planned. One may be of a torrent whose `removed` is among the entries up to here.
    orphans_after: Seq,
}

impl StateOutbox {
    /// Continues from the saved state of the sink; `progress` has one entry for each of its servers.
    pub fn new(parts: &Arc<DispatcherParts>, progress: &Progress, saved: SinkState) -> Self {
        let SinkState { retained_topics, retained_scan, projection_state, .. } = saved;
        let projection = parts.sink.projection().map(|projection| ProjectionDriver::new(projection, projection_state));
        let servers = progress.iter().map(|(server, progress)| (server.clone(), ServerStates::new(progress)));
        let mut outbox = Self {
            parts: Arc::clone(parts),
            servers: servers.collect(),
            topics: RetainedTopics::new(parts, retained_topics, retained_scan),
            projection,
            bytes_max: usize::MAX,
        };
        outbox.mark_unsent();
        outbox
    }

    /// Marks, after a start, the torrents that changed after the last save; after an unclean shutdown all of them.
    fn mark_unsent(&mut self) {
        for (server, states) in &mut self.servers {
            self.parts.live.read(server, |live| {
                // Changes without an event are committed lazily: a power cut may have taken some whose states were sent.
                if !self.parts.settings.was_clean_shutdown {
                    states.doubted = live.snapshot.keys().copied().collect();
                    states.reassert(&live.snapshot);
                }
                for (hash, torrent) in live.snapshot.iter().filter(|(_, torrent)| torrent.rev > states.sent_rev) {
                    states.dirty.mark(*hash, Known::Forgotten, torrent.last_seq);
                }
            });
        }
    }

    /// Ends a batch with the delivery with which it has so many bytes.
    pub fn set_bytes_max(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// Holds states until the sink has the entries that led to them.
    pub fn set_cursors(&mut self, cursor: impl Fn(&ServerName) -> Seq) {
        for (server, states) in &mut self.servers {
            states.cursor = cursor(server);
        }
    }

    /// Records that the sink has an event: what it knows of the torrent moves on.
    pub fn on_delivered(&mut self, entry: &JournalEntry) {
        // The entry's own change may still be in the buffer, and has to be dirty before it is known.
        self.absorb();
        if let Some(projection) = &mut self.projection {
            projection.on_event(entry);
        }
        let (Some(states), Some(hash)) = (self.servers.get_mut(&entry.server), entry.hash) else { return };
        // The event has the whole torrent, so what the sink knows is certain again.
        states.doubted.remove(&hash);
        if states.dirty.contains(&hash) {
            let snapshot = self.parts.live.read(&entry.server, |live| live.snapshot.get(&hash).cloned()).flatten();
            states.dirty.learned(hash, known_after(entry, snapshot), entry.seq);
        }
    }

    /// Returns the number of torrents whose latest state the sink does not have.
    pub fn dirty(&self) -> u64 {
        self.servers.values().map(|states| states.dirty.len() as u64).sum()
    }

    /// Returns up to which revision the sink has all states of each server.
    pub fn sent_revs(&mut self) -> BTreeMap<ServerName, Rev> {
        let servers: Vec<ServerName> = self.servers.keys().cloned().collect();
        for server in &servers {
            // Read together: a change that is still in the buffer is not sent, however empty the dirty set.
            let read = |live: &LiveServer| (self.parts.buffer.take_states(), live.newest_rev());
            if self.servers[server].dirty.is_empty()
                && let Some((buffered, newest)) = self.parts.live.read(server, read)
            {
                self.absorb_buffered(buffered);
                if let Some(states) = self.servers.get_mut(server).filter(|states| states.dirty.is_empty()) {
                    states.sent_rev = states.sent_rev.max(newest);
                }
            }
        }
        self.servers.iter().map(|(server, states)| (server.clone(), states.sent_rev)).collect()
    }

    /// Takes the changed torrents from the buffer.
    pub fn absorb(&mut self) {
        let buffered = self.parts.buffer.take_states();
        self.absorb_buffered(buffered);
    }

    fn absorb_buffered(&mut self, buffered: BufferedStates) {
        for (server, states) in &mut self.servers {
            if buffered.reassert.includes(server) {
                self.parts.live.read(server, |live| states.reassert(&live.snapshot));
            }
        }
        let mut has_other_torrents = false;
        for (server, changed) in buffered.changed {
            let Some(states) = self.servers.get_mut(&server) else { continue };
            if let Some(projection) = &mut self.projection {
                projection.on_change(&server);
            }
            for (hash, change) in changed {
                has_other_torrents |= change.before.is_none();
                let known = match change.before {
                    None => Known::Nothing,
                    // After an unclean shutdown `before` may not be what the sink has.
                    Some(_) if states.doubted.remove(&hash) => Known::Forgotten,
                    Some(before) => Known::Torrent(before),
                };
                states.dirty.mark(hash, known, change.not_before);
            }
            // So many went that there is room for all others.
            let count = self.parts.live.read(&server, |live| live.snapshot.len()).unwrap_or_default();
            has_other_torrents |= matches!(states.retained, Retained::These(_)) && count <= AUTO_MAX;
        }
        if has_other_torrents {
            self.choose_retained();
        }
    }

    /// Chooses which states are retained; those that came in or fell out become dirty.
    pub fn choose_retained(&mut self) {
        let (now, retain) = (self.parts.clock.now(), self.parts.settings.retain);
        for (server, states) in &mut self.servers {
            self.parts.live.read(server, |live| {
                let retained = Retained::choose(&live.snapshot, retain, now, &states.retained);
                if retained == states.retained {
                    return;
                }
                let before = std::mem::replace(&mut states.retained, retained);
                for (hash, torrent) in &live.snapshot {
                    // Sent either way: one that came in is retained with that, one that fell out is cleared.
                    if states.retained.contains(hash) != before.contains(hash) {
                        states.dirty.mark(*hash, Known::Present, torrent.last_seq);
                    }
                }
            });
        }
    }

    /// Publishes everything that is retained again on a new link, and plans to clear topics that nothing is sent to.
    pub async fn begin_link(&mut self) -> Result<(), StoreError> {
        if let Some(projection) = &mut self.projection {
            projection.begin_link();
        }
        self.choose_retained();
        for (server, states) in &mut self.servers {
            self.parts.live.read(server, |live| {
                for (hash, torrent) in live.snapshot.iter().filter(|(hash, _)| states.retained.contains(hash)) {
                    states.dirty.mark(*hash, Known::Present, torrent.last_seq);
                }
            });
        }
        let wanted = self.plan_clearing();
        self.topics.register(wanted).await
    }

    /// Plans to clear all that is not wanted any more, and returns the topics that are, those of the projection aside.
    fn plan_clearing(&mut self) -> Vec<String> {
        for (server, states) in &mut self.servers {
            states.orphans_after = self.parts.live.last_seq(server);
        }
        let wanted = [self.topics.fixed(), self.topics_of_states()].concat();
        let projected = self.projection.iter().flat_map(ProjectionDriver::retained_topics);
        self.topics.clear_all_but(wanted.iter().cloned().chain(projected));
        wanted
    }

    fn topics_of_states(&self) -> Vec<String> {
        let mut topics = Vec::new();
        for (server, states) in &self.servers {
            self.parts.live.read(server, |live| {
                let retained = live.snapshot.keys().filter(|hash| states.retained.contains(hash));
                topics.extend(retained.filter_map(|hash| self.topics.of_state(server, *hash)));
            });
        }
        topics
    }

    fn topics_of_dirty(&self) -> Vec<String> {
        let mut topics = Vec::new();
        for (server, states) in &self.servers {
            let retained = states.dirty.hashes().filter(|hash| states.retained.contains(hash));
            topics.extend(retained.filter_map(|hash| self.topics.of_state(server, *hash)));
        }
        topics
    }

    /// Saves the state of the projection; in full if `is_last`, because the link has ended.
    pub async fn save_projection(&mut self, is_last: bool) -> Result<(), StoreError> {
        match &mut self.projection {
            Some(projection) => projection.save(&self.parts, is_last).await,
            None => Ok(()),
        }
    }

    /// Waits until the projection has something to send; for ever without one. Cancel-safe.
    pub async fn projection_due(&self) {
        match &self.projection {
            Some(projection) => projection.due().await,
            None => std::future::pending().await,
        }
    }

    fn next_projected(&mut self, budget: usize, batch: &mut Batch) {
        let Some(projection) = &mut self.projection else { return };
        projection.refresh(&self.parts);
        while batch.has_room(budget, self.bytes_max)
            && let Some(delivery) = projection.next()
        {
            match &delivery {
                Delivery::Clear { topic } if self.topics.registry.clear(topic) => {
                    batch.push(clearing(topic.clone()));
                }
                Delivery::Projected { topic, .. } => {
                    if let Some(topic) = self.parts.sink.retained_topic(&delivery) {
                        self.topics.registry.retain(&topic);
                        batch.topics.push(topic);
                    }
                    batch.push((DeliveryId::Projected(topic.clone()), delivery));
                }
                _ => {}
            }
        }
    }

    /// Adds the next state of a server, with the update before it; returns whether there was one.
    fn next_state(&mut self, server: &ServerName, batch: &mut Batch) -> bool {
        let Some(hash) = self.servers.get(server).and_then(ServerStates::peek) else { return false };
        // The snapshot and the buffer are read together: no change is between them.
        let read = |live: &LiveServer| (self.parts.buffer.take_states(), live.epoch, live.snapshot.get(&hash).cloned());
        let Some((buffered, epoch, snapshot)) = self.parts.live.read(server, read) else { return false };
        self.absorb_buffered(buffered);
        let Some(states) = self.servers.get_mut(server) else { return false };
        if states.peek() != Some(hash) {
            // It has to wait for an event by now; another one may be next.
            return states.peek().is_some();
        }
        let Some((hash, known)) = states.dirty.next(states.cursor) else { return false };
        let Some(snapshot) = snapshot else {
            states.dirty.sent(hash, Known::Nothing);
            states.dirty.resolve(hash);
            self.clear_state(server, hash, batch);
            return true;
        };
        states.dirty.sent(hash, Known::Torrent(Arc::clone(&snapshot.torrent)));
        let retain = states.retained.contains(&hash);
        let id = EventId::Updated { server: server.clone(), epoch, rev: snapshot.rev };
        batch.extend(self.update(server, id, &known, &snapshot));
        let body = Bytes::from(serde_json::to_vec(&*snapshot.torrent).expect("a torrent is plain JSON"));
        let delivery = Delivery::State { server: server.clone(), hash, body, retain };
        let topic = self.parts.sink.retained_topic(&delivery);
        match &topic {
            Some(topic) => self.topics.registry.retain(topic),
            None => self.clear_state(server, hash, batch),
        }
        if self.parts.sink.wants(&delivery) {
            batch.topics.extend(topic);
            batch.push((DeliveryId::State(server.clone(), hash), delivery));
        } else if let Some(states) = self.servers.get_mut(server) {
            states.dirty.resolve(hash);
        }
        true
    }

    fn update(&self, server: &ServerName, id: EventId, known: &Known, snapshot: &SnapshotTorrent) -> Option<Outgoing> {
        let is_wanted = self.parts.settings.events.contains(&Kind::Updated);
        let changes = changes_for(known, &snapshot.torrent).filter(|_| is_wanted)?;
        let hash = snapshot.torrent.hash;
        let event = updated(id, changes, snapshot);
        let body = Bytes::from(event.to_json());
        let delivery = Delivery::Updated { hash, event: Arc::new(event), body };
        let is_wanted = self.parts.sink.wants(&delivery);
        is_wanted.then(|| (DeliveryId::Updated(server.clone(), hash), delivery))
    }

    fn clear_state(&mut self, server: &ServerName, hash: InfoHash, batch: &mut Batch) {
        let topic = self.topics.of_state(server, hash).filter(|topic| self.topics.registry.clear(topic));
        batch.extend(topic.map(clearing));
    }

    fn next_orphans(&mut self, budget: usize, batch: &mut Batch) {
        if self.topics.is_any_found_known() {
            self.plan_clearing();
        }
        // With strict ordering the window has room while events are pending, and a clearing must not overtake `removed`.
        let is_held = self.servers.values().any(|states| states.cursor < states.orphans_after);
        while !is_held
            && batch.has_room(budget, self.bytes_max)
            && let Some(topic) = self.topics.registry.next_orphan()
        {
            batch.push(clearing(topic));
        }
    }
}

/// Deliveries to be sent together.
#[derive(Default)]
struct Batch {
    deliveries: Vec<Outgoing>,
    /// Bytes of their bodies.
    bytes: usize,
    /// The retained topics among their addresses, which are registered before anything is sent.
    topics: Vec<String>,
}

impl Batch {
    fn has_room(&self, count: usize, bytes: usize) -> bool {
        self.deliveries.len() < count && self.bytes < bytes
    }

    fn extend(&mut self, deliveries: impl IntoIterator<Item = Outgoing>) {
        deliveries.into_iter().for_each(|delivery| self.push(delivery));
    }

    fn push(&mut self, delivery: Outgoing) {
        self.bytes += delivery.1.body_bytes();
        self.deliveries.push(delivery);
    }
}

fn clearing(topic: String) -> Outgoing {
    (DeliveryId::Clearing(topic.clone()), Delivery::Clear { topic })
}

impl Outbox for StateOutbox {
    /// A state is up to three messages: the update, the clearing of a copy that is no longer retained, the state.
    async fn next(&mut self, budget: usize) -> Result<Vec<Outgoing>, StoreError> {
        self.absorb();
        let mut batch = Batch::default();
        self.next_projected(budget, &mut batch);
        let servers: Vec<ServerName> = self.servers.keys().cloned().collect();
        for server in &servers {
            while batch.has_room(budget, self.bytes_max) && self.next_state(server, &mut batch) {}
        }
        self.next_orphans(budget, &mut batch);
        let Batch { deliveries, bytes: _, mut topics } = batch;
        if topics.iter().any(|topic| !self.topics.registry.contains(topic)) {
            // Each registration waits for the disk: those of the states that come next go with it.
            topics.extend(self.topics_of_dirty());
        }
        self.topics.register(topics).await?;
        self.save_projection(false).await?;
        Ok(deliveries)
    }

    async fn resolve(&mut self, id: DeliveryId, outcome: Outcome) -> Result<Option<JournalEntry>, StoreError> {
        let sink = &self.parts.settings.name;
        let rejection = outcome.err().map(|rejection| rejection.reason);
        match id {
            DeliveryId::State(server, hash) => {
                if let Some(reason) = rejection {
                    warn!(%sink, %server, %hash, reason = &*reason, "state rejected");
                }
                if let Some(states) = self.servers.get_mut(&server) {
                    states.dirty.resolve(hash);
                }
            }
            DeliveryId::Clearing(topic) => match rejection {
                None => {
                    self.topics.registry.cleared(topic);
                    self.topics.save().await?;
                }
                Some(reason) => {
                    warn!(%sink, topic, reason = &*reason, "clearing a retained message was rejected, retrying on the next link");
                    self.topics.registry.not_cleared(&topic);
                }
            },
            DeliveryId::Projected(topic) => {
                if let Some(reason) = rejection {
                    warn!(%sink, topic, reason = &*reason, "message rejected");
                }
                if let Some(projection) = &mut self.projection {
                    projection.acknowledged(&topic);
                }
            }
            DeliveryId::Updated(server, hash) => {
                if let Some(reason) = rejection {
                    warn!(%sink, %server, %hash, reason = &*reason, "update rejected");
                }
            }
            DeliveryId::Event(..) | DeliveryId::Result(..) | DeliveryId::Ephemeral => {}
        }
        Ok(None)
    }

    async fn save(&mut self) -> Result<(), StoreError> {
        self.topics.save().await?;
        self.topics.save_scan().await
    }

    fn reset_in_flight(&mut self) {
        self.servers.values_mut().for_each(|states| states.dirty.reset_in_flight());
        self.topics.registry.reset_in_flight();
    }

    fn backlog(&self) -> u64 {
        self.dirty() + self.topics.registry.orphans() as u64
    }
}

impl ServerStates {
    fn new(progress: &SinkProgress) -> Self {
        Self {
            dirty: DirtySet::default(),
            retained: Retained::None,
            doubted: HashSet::new(),
            sent_rev: progress.sent_rev,
            cursor: progress.cursor,
            orphans_after: Seq(0),
        }
    }

    fn reassert(&mut self, snapshot: &Snapshot) {
        for (hash, torrent) in snapshot {
            self.dirty.mark(*hash, Known::Present, torrent.last_seq);
        }
    }

    fn peek(&self) -> Option<InfoHash> {
        self.dirty.peek(self.cursor)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::super::retention::Retain;
    use super::super::testing::{TestSetup, acknowledge, hash, home, ids, sink_name, topic};
    use super::*;
    use crate::port::{RetainedScan, SinkStore as _};
    use crate::store::Options;

    async fn outbox(setup: &TestSetup) -> StateOutbox {
        let saved = setup.store.load_sink(&sink_name()).await.unwrap();
        let progress = [(home(), SinkProgress::default())].into();
        StateOutbox::new(&setup.parts, &progress, saved)
    }

    fn state(number: u8) -> DeliveryId {
        DeliveryId::State(home(), hash(number))
    }

    fn update(number: u8) -> DeliveryId {
        DeliveryId::Updated(home(), hash(number))
    }

    async fn registered(setup: &TestSetup) -> Vec<String> {
        setup.store.load_sink(&sink_name()).await.unwrap().retained_topics.into_iter().collect()
    }

    async fn entry(setup: &TestSetup, seq: u64) -> JournalEntry {
        use crate::port::Journal as _;
        setup.store.read_after(&home(), Seq(seq - 1), 1).await.unwrap().remove(0)
    }

    #[tokio::test]
    async fn a_state_is_held_while_its_torrent_has_undelivered_events_and_registered_before_it_is_sent() {
        let setup = TestSetup::new().await;
        let mut outbox = outbox(&setup).await;
        outbox.begin_link().await.unwrap();
        setup.publish(1, Some(10), &[Kind::Added]).await;
        setup.publish(2, Some(10), &[]).await;
        assert_eq!(ids(&outbox.next(9).await.unwrap()), [state(2)]);
        assert!(registered(&setup).await.contains(&topic(2)));
        outbox.set_cursors(|_| Seq(1));
        outbox.on_delivered(&entry(&setup, 1).await);
        assert_eq!(ids(&outbox.next(9).await.unwrap()), [state(1)], "the event has reported it all");
    }

    #[tokio::test]
    async fn however_often_a_torrent_changes_one_update_is_sent_from_what_the_sink_knows() {
        let setup = TestSetup::new().await;
        setup.publish(1, Some(10), &[]).await;
        let mut outbox = outbox(&setup).await;
        outbox.begin_link().await.unwrap();
        let first = outbox.next(9).await.unwrap();
        acknowledge(&mut outbox, first).await;
        for downloaded in [20, 30, 40] {
            setup.publish(1, Some(downloaded), &[]).await;
        }
        let batch = outbox.next(9).await.unwrap();
        assert_eq!(ids(&batch), [update(1), state(1)]);
        let Delivery::Updated { body, .. } = &batch[0].1 else { panic!("{batch:?}") };
        let event: serde_json::Value = serde_json::from_slice(body).unwrap();
        assert_eq!(event["changes"]["downloaded"], serde_json::json!({"from": 10, "to": 40}));
        outbox.reset_in_flight();
        assert_eq!(ids(&outbox.next(9).await.unwrap()), [update(1), state(1)], "the link ended");
    }

    #[tokio::test]
    async fn a_topic_is_unregistered_when_its_clearing_is_acknowledged_and_not_before() {
        let setup = TestSetup::new().await;
        setup.publish(1, Some(10), &[]).await;
        let mut outbox = outbox(&setup).await;
        outbox.begin_link().await.unwrap();
        let first = outbox.next(9).await.unwrap();
        acknowledge(&mut outbox, first).await;
        setup.publish(1, None, &[Kind::Removed]).await;
        assert!(outbox.next(9).await.unwrap().is_empty(), "the event comes first");
        outbox.set_cursors(|_| Seq(1));
        let clearing = outbox.next(9).await.unwrap();
        assert_eq!(ids(&clearing), [DeliveryId::Clearing(topic(1))]);
        outbox.reset_in_flight();
        assert_eq!(registered(&setup).await, [topic(1)]);
        outbox.begin_link().await.unwrap();
        let clearing = outbox.next(9).await.unwrap();
        assert_eq!(ids(&clearing), [DeliveryId::Clearing(topic(1))], "an orphan of the link before");
        acknowledge(&mut outbox, clearing).await;
        assert_eq!(registered(&setup).await, [""; 0]);
    }

    #[tokio::test]
    async fn an_orphan_is_held_until_the_sink_has_the_events_that_may_have_made_it_one() {
        let setup = TestSetup::new().await;
        setup.store.register_topics(&sink_name(), vec![topic(7)]).await.unwrap();
        setup.publish(1, Some(10), &[Kind::Added]).await;
        let mut outbox = outbox(&setup).await;
        outbox.begin_link().await.unwrap();
        assert!(outbox.next(9).await.unwrap().is_empty(), "the sink has no event yet");
        outbox.set_cursors(|_| Seq(1));
        let batch = outbox.next(9).await.unwrap();
        assert_eq!(ids(&batch), [update(1), state(1), DeliveryId::Clearing(topic(7))]);
    }

    #[tokio::test]
    async fn on_a_full_disk_a_state_is_sent_and_its_topic_registered_later() {
        let setup = TestSetup::new().await;
        let mut outbox = outbox(&setup).await;
        outbox.begin_link().await.unwrap();
        setup.store.is_full.store(true, Ordering::Relaxed);
        setup.publish(1, Some(10), &[]).await;
        assert_eq!(ids(&outbox.next(9).await.unwrap()), [state(1)]);
        assert_eq!(registered(&setup).await, [""; 0]);
        setup.store.is_full.store(false, Ordering::Relaxed);
        outbox.save().await.unwrap();
        assert_eq!(registered(&setup).await, [topic(1)]);
    }

    #[tokio::test]
    async fn what_a_scan_finds_is_cleared_once_the_torrents_of_its_server_are_known() {
        let setup = TestSetup::new().await;
        let scan = Some(RetainedScan { is_first_run: false });
        setup.store.set_retained_scan(&sink_name(), scan).await.unwrap();
        setup.live.server(&home()).unwrap().write(|live| live.state.is_known = false);
        *setup.sink.found.lock().unwrap() = [(home(), vec![topic(1), topic(7)])].into();
        let mut outbox = outbox(&setup).await;
        outbox.topics.scan().await.unwrap();
        outbox.begin_link().await.unwrap();
        assert!(outbox.next(9).await.unwrap().is_empty());
        setup.publish(1, Some(10), &[]).await;
        setup.live.server(&home()).unwrap().write(|live| live.state.is_known = true);
        let batch = outbox.next(9).await.unwrap();
        assert_eq!(ids(&batch), [state(1), DeliveryId::Clearing(topic(7))]);
        acknowledge(&mut outbox, batch).await;
        outbox.save().await.unwrap();
        assert_eq!(registered(&setup).await, [topic(1)]);
        assert_eq!(setup.store.load_sink(&sink_name()).await.unwrap().retained_scan, None);
    }

    #[tokio::test]
    async fn a_revision_counts_as_sent_when_its_state_is_acknowledged() {
        let setup = TestSetup::with(Options::default(), Retain::None).await;
        let mut outbox = outbox(&setup).await;
        outbox.begin_link().await.unwrap();
        let before = outbox.sent_revs()[&home()];
        setup.publish(1, Some(10), &[]).await;
        assert_eq!(outbox.sent_revs()[&home()], before, "it is still in the buffer");
        let batch = outbox.next(9).await.unwrap();
        assert_eq!(outbox.sent_revs()[&home()], before);
        acknowledge(&mut outbox, batch).await;
        assert!(outbox.sent_revs()[&home()] > before);
    }
}
