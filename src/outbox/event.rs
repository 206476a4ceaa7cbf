//! The events of one sink: the journal of each server, from the sink's cursor on.
//!
//! ```text
//! commit ──► change buffer ─┐                       acknowledged ──► cursor moves
//!                           ├─► pending ─► in flight
//! store ──── read ahead ────┘                       rejected ─► dead-letter queue ─► cursor moves
//!                                                        └── queue full: delivery is blocked
//! ```
//!
//! Entries come from the change buffer while the sink is up to date, so that what was just written is not read back; from
//! the store after a start, an outage, or an overflow of the buffer.
//!
//! With strict ordering at most one event of each server is in flight. A link may ask for that; a sink that ever deferred
//! an event is treated so for good, which is on disk before anything else is sent.

use std::sync::Arc;

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::background::unless_full;
use super::dead_letters::PendingDeadLetters;
use super::parts::DispatcherParts;
use super::server_events::{ServerEvents, outgoing};
use super::{DeliveryId, Outbox, Outcome, Outgoing, Rejection};
use crate::log_throttle::LogThrottle;
use crate::model::{JournalEntry, Seq, ServerName};
use crate::port::{EventOrdering, StoreError};

/// The events of one sink that are pending or in flight. See the module.
pub(super) struct EventOutbox {
    parts: Arc<DispatcherParts>,
    servers: Vec<ServerEvents>,
    /// The server that is next to be asked: they take turns.
    turn: usize,
    dead_letters: PendingDeadLetters,
    block_log: LogThrottle,
    /// As the link asks for it.
    ordering: EventOrdering,
    deferral: Deferral,
}

/// Whether the sink ever deferred an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deferral {
    Never,
    /// Deferred one, which is not on disk yet.
    Unsaved,
    /// Deferred one, and that is on disk.
    Saved,
}

impl EventOutbox {
    /// Continues after `cursors`, the last entry of each server that the sink has.
    pub fn new(
        parts: &Arc<DispatcherParts>,
        cursors: impl IntoIterator<Item = (ServerName, Seq)>,
        has_deferred: bool,
    ) -> Self {
        let servers = cursors.into_iter().map(|(server, seq)| ServerEvents::new(server, seq));
        // Before anything is read from the store, so that no entry falls between the two.
        parts.buffer.buffer_entries_of(&parts.settings.servers);
        Self {
            parts: Arc::clone(parts),
            servers: servers.collect(),
            turn: 0,
            dead_letters: PendingDeadLetters::default(),
            block_log: LogThrottle::default(),
            ordering: EventOrdering::default(),
            deferral: if has_deferred { Deferral::Saved } else { Deferral::Never },
        }
    }

    /// Keeps to what the link asks for.
    pub fn set_ordering(&mut self, ordering: EventOrdering) {
        self.ordering = ordering;
    }

    /// Orders events strictly from now on, whatever links ask for: the sink deferred one.
    pub fn event_was_deferred(&mut self) {
        if self.deferral == Deferral::Never {
            self.deferral = Deferral::Unsaved;
        }
    }

    /// Returns the cursor of a server: the last entry up to which all are dealt with.
    pub fn cursor(&self, server: &ServerName) -> Seq {
        self.server(server).map(ServerEvents::position).unwrap_or_default()
    }

    /// Returns the cursor to be saved, which is further back while events are sent again.
    pub fn saved_cursor(&self, server: &ServerName) -> Seq {
        self.server(server).map(ServerEvents::saved_position).unwrap_or_default()
    }

    fn is_strict(&self) -> bool {
        self.ordering == EventOrdering::Strict || self.deferral != Deferral::Never
    }

    fn server(&self, server: &ServerName) -> Option<&ServerEvents> {
        self.servers.iter().find(|events| events.server == *server)
    }

    fn server_mut(&mut self, server: &ServerName) -> Option<&mut ServerEvents> {
        self.servers.iter_mut().find(|events| events.server == *server)
    }

    fn take_rewinds(&mut self) {
        for (server, from) in self.parts.buffer.take_rewinds() {
            if let Some(events) = self.server_mut(&server) {
                events.rewind(from);
            }
        }
    }

    /// Saves rejected events, each before the cursor passes it; blocks delivery while there is no room.
    async fn save_dead_letters(&mut self) -> Result<(), StoreError> {
        while let Some((entry, reason)) = self.dead_letters.first() {
            match self.parts.store.add_dead_letter(&self.parts.settings.name, entry, reason).await {
                Ok(()) => {
                    if let Some(entry) = self.dead_letters.saved()
                        && let Some(events) = self.server_mut(&entry.server)
                    {
                        events.acknowledge(entry.seq);
                    }
                    self.unblock();
                }
                Err(StoreError::Full { reason }) => {
                    self.block(format!("a rejected event cannot be saved as a dead letter, all others wait: {reason}"));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn block(&mut self, reason: String) {
        if let Some(times) = self.block_log.failed() {
            error!(sink = %self.parts.settings.name, times, reason, "delivery blocked");
        }
        self.parts.buffer.report(|report| report.blocked_reason = Some(reason));
    }

    /// Reports that delivery goes on, unless another rejected event is without a place.
    fn unblock(&mut self) {
        if self.dead_letters.is_empty() && self.block_log.recovered().is_some() {
            info!(sink = %self.parts.settings.name, "delivery no longer blocked");
            self.parts.buffer.report(|report| report.blocked_reason = None);
        }
    }
}

impl Outbox for EventOutbox {
    /// The servers take turns.
    async fn next(&mut self, budget: usize) -> Result<Vec<Outgoing>, StoreError> {
        self.take_rewinds();
        if !self.dead_letters.is_empty() {
            // Any other event could be the next that is rejected and finds no place.
            let offered = self.dead_letters.offer(Instant::now()).filter(|_| budget > 0);
            return Ok(offered.map(outgoing).into_iter().collect());
        }
        let is_strict = self.is_strict();
        let (mut batch, mut idle) = (Vec::new(), 0);
        while batch.len() < budget && idle < self.servers.len() {
            self.turn %= self.servers.len();
            match self.servers[self.turn].next(&self.parts, is_strict).await? {
                Some(next) => {
                    batch.push(next);
                    idle = 0;
                }
                None => idle += 1,
            }
            self.turn += 1;
        }
        Ok(batch)
    }

    async fn resolve(&mut self, id: DeliveryId, outcome: Outcome) -> Result<Option<JournalEntry>, StoreError> {
        let DeliveryId::Event(server, seq) = id else { return Ok(None) };
        let Some(events) = self.server_mut(&server) else { return Ok(None) };
        match outcome {
            Ok(()) => {
                let delivered = events.acknowledge(seq);
                if let Some(entry) = &delivered {
                    self.dead_letters.acknowledged(entry);
                }
                // An event that was offered once more and acknowledged ends the block like a saved one.
                self.unblock();
                Ok(delivered)
            }
            Err(Rejection { reason, .. }) => {
                let Some(entry) = events.in_flight(seq).cloned() else { return Ok(None) };
                let sink = &self.parts.settings.name;
                warn!(%sink, id = %entry.id, reason = &*reason, "event rejected, moving it to the dead-letter queue");
                self.dead_letters.rejected(entry, reason.to_string(), Instant::now());
                self.save_dead_letters().await?;
                Ok(None)
            }
        }
    }

    async fn save(&mut self) -> Result<(), StoreError> {
        if self.deferral == Deferral::Unsaved {
            let saved = self.parts.store.set_strict_ordering(&self.parts.settings.name).await;
            if unless_full(saved)?.is_some() {
                self.deferral = Deferral::Saved;
            }
        }
        self.save_dead_letters().await
    }

    fn reset_in_flight(&mut self) {
        for events in &mut self.servers {
            events.reset_in_flight();
        }
        self.dead_letters.reset_in_flight();
    }

    /// Returns the number of entries that are not dealt with.
    fn backlog(&self) -> u64 {
        let behind = |events: &ServerEvents| {
            let published = self.parts.live.last_seq(&events.server);
            published.0.saturating_sub(events.position().0)
        };
        self.servers.iter().map(behind).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use super::super::retention::Retain;
    use super::super::testing::{TestSetup, acknowledge, home, ids, rejected, sink_name};
    use super::*;
    use crate::model::{MemoryShares, PageBytes};
    use crate::port::{Delivery, SinkStore as _};
    use crate::store::Options;

    fn outbox(setup: &TestSetup, cursor: u64, has_deferred: bool) -> EventOutbox {
        EventOutbox::new(&setup.parts, [(home(), Seq(cursor))], has_deferred)
    }

    fn event_bytes(delivery: &Delivery) -> usize {
        match delivery {
            Delivery::Event(entry) => entry.body.len(),
            _ => 0,
        }
    }

    fn seqs(batch: &[Outgoing]) -> Vec<u64> {
        let seq = |(_, delivery): &Outgoing| match delivery {
            Delivery::Event(entry) => entry.seq.0,
            _ => 0,
        };
        batch.iter().map(seq).collect()
    }

    #[tokio::test]
    async fn an_up_to_date_sink_reads_nothing_back_from_the_store() {
        let setup = TestSetup::new().await;
        let mut outbox = outbox(&setup, 0, false);
        for seq in 1..=50 {
            setup.publish_events(1).await;
            let batch = outbox.next(8).await.unwrap();
            assert_eq!(seqs(&batch), [seq]);
            acknowledge(&mut outbox, batch).await;
        }
        setup.publish_events(20).await;
        let batch = outbox.next(100).await.unwrap();
        assert_eq!(batch.len(), 20);
        acknowledge(&mut outbox, batch).await;
        assert_eq!((outbox.backlog(), setup.store.reads.load(Ordering::Relaxed)), (0, 0));
    }

    #[tokio::test]
    async fn after_an_outage_the_store_is_read_until_the_buffer_has_the_rest() {
        let setup = TestSetup::new().await;
        setup.publish_events(300).await;
        let mut outbox = outbox(&setup, 0, false);
        setup.publish_events(10).await;
        let mut sent = Vec::new();
        loop {
            let batch = outbox.next(64).await.unwrap();
            if batch.is_empty() {
                break;
            }
            sent.extend(seqs(&batch));
            acknowledge(&mut outbox, batch).await;
        }
        assert_eq!(sent, (1..=310).collect::<Vec<u64>>());
        assert_eq!(outbox.cursor(&home()), Seq(310));
        let reads = setup.store.reads.load(Ordering::Relaxed);
        setup.publish_events(1).await;
        assert_eq!(seqs(&outbox.next(1).await.unwrap()), [311]);
        assert_eq!(setup.store.reads.load(Ordering::Relaxed), reads);
    }

    #[tokio::test]
    async fn what_is_in_flight_stays_within_its_share_and_one_event_is_sent_whatever_its_size() {
        for (events, pages, at_once) in [(8_000, 4_000, 5..20), (100, 50, 1..2)] {
            let pages = PageBytes { entries: pages, ..PageBytes::default() };
            let setup = TestSetup::with_shares(MemoryShares { events, pages, ..MemoryShares::default() }).await;
            let mut outbox = outbox(&setup, 0, false);
            setup.publish_events(100).await;
            setup.parts.buffer.rewind(&home(), Seq(1));
            let mut sent = Vec::new();
            loop {
                let batch = outbox.next(64).await.unwrap();
                let bytes: usize = batch.iter().map(|(_, delivery)| event_bytes(delivery)).sum();
                assert!(batch.len() <= 1 || bytes <= events, "{bytes} of {events}");
                assert!(batch.len() < at_once.end, "{}", batch.len());
                assert!(outbox.next(64).await.unwrap().is_empty(), "nothing more before an acknowledgement");
                if batch.is_empty() {
                    break;
                }
                sent.extend(seqs(&batch));
                acknowledge(&mut outbox, batch).await;
            }
            assert_eq!(sent, [(1..=100).collect::<Vec<u64>>(), (1..=100).collect()].concat());
            setup.publish_events(at_once.end).await;
            assert!(outbox.next(64).await.unwrap().len() >= at_once.start);
        }
    }

    #[tokio::test]
    async fn everything_unacknowledged_is_sent_again_in_order_on_the_next_link() {
        let setup = TestSetup::new().await;
        let mut outbox = outbox(&setup, 0, false);
        setup.publish_events(4).await;
        let mut batch = outbox.next(4).await.unwrap();
        acknowledge(&mut outbox, vec![batch.remove(0)]).await;
        acknowledge(&mut outbox, vec![batch.remove(1)]).await;
        assert_eq!(outbox.cursor(&home()), Seq(1), "3 waits for 2");
        outbox.reset_in_flight();
        assert_eq!(seqs(&outbox.next(9).await.unwrap()), [2, 3, 4]);
    }

    #[tokio::test]
    async fn with_strict_ordering_the_next_event_waits_for_the_acknowledgement_of_the_one_before() {
        for (of_link, has_deferred) in [(EventOrdering::Strict, false), (EventOrdering::Pipelined, true)] {
            let setup = TestSetup::new().await;
            let mut outbox = outbox(&setup, 0, has_deferred);
            outbox.set_ordering(of_link);
            setup.publish_events(3).await;
            let first = outbox.next(9).await.unwrap();
            assert_eq!(seqs(&first), [1]);
            assert!(outbox.next(9).await.unwrap().is_empty());
            acknowledge(&mut outbox, first).await;
            let second = outbox.next(9).await.unwrap();
            assert_eq!(seqs(&second), [2]);
            outbox.reset_in_flight();
            assert_eq!(seqs(&outbox.next(9).await.unwrap()), [2]);
        }
    }

    #[tokio::test]
    async fn an_event_that_was_put_off_makes_ordering_strict_for_good_and_on_disk() {
        let setup = TestSetup::new().await;
        let mut outbox = outbox(&setup, 0, false);
        outbox.set_ordering(EventOrdering::Pipelined);
        setup.publish_events(3).await;
        assert_eq!(outbox.next(9).await.unwrap().len(), 3);
        outbox.event_was_deferred();
        outbox.reset_in_flight();
        setup.store.is_full.store(true, Ordering::Relaxed);
        outbox.save().await.unwrap();
        assert_eq!(seqs(&outbox.next(9).await.unwrap()), [1], "although the disk is full");
        setup.store.is_full.store(false, Ordering::Relaxed);
        outbox.save().await.unwrap();
        assert!(setup.store.load_sink(&sink_name()).await.unwrap().has_strict_ordering);
    }

    #[tokio::test]
    async fn a_rejected_event_is_a_dead_letter_before_the_cursor_passes_it() {
        let setup = TestSetup::new().await;
        let mut outbox = outbox(&setup, 0, false);
        setup.publish_events(2).await;
        let batch = outbox.next(2).await.unwrap();
        setup.store.is_full.store(true, Ordering::Relaxed);
        let [first, second] = [0, 1].map(|at| ids(&batch)[at].clone());
        assert_eq!(outbox.resolve(first, rejected("never")).await.unwrap(), None, "the sink does not have it");
        assert_eq!(outbox.resolve(second, Ok(())).await.unwrap().unwrap().seq, Seq(2));
        assert_eq!(outbox.cursor(&home()), Seq(0));
        let blocked = || setup.parts.buffer.last_report().blocked_reason.is_some();
        assert!(blocked());
        setup.publish_events(1).await;
        assert!(outbox.next(9).await.unwrap().is_empty(), "delivery is blocked");
        setup.store.is_full.store(false, Ordering::Relaxed);
        outbox.save().await.unwrap();
        assert!(!blocked());
        assert_eq!(outbox.cursor(&home()), Seq(2));
        assert_eq!(seqs(&outbox.next(9).await.unwrap()), [3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_blocked_sink_that_takes_the_event_after_all_goes_on() {
        let options = Options { dead_letters_max: 0, ..Options::default() };
        let setup = TestSetup::with(options, Retain::All).await;
        let mut outbox = outbox(&setup, 0, false);
        setup.publish_events(2).await;
        let batch = outbox.next(1).await.unwrap();
        outbox.resolve(ids(&batch)[0].clone(), rejected("not yet")).await.unwrap();
        assert!(outbox.next(9).await.unwrap().is_empty());
        tokio::time::advance(Duration::from_secs(15)).await;
        let again = outbox.next(9).await.unwrap();
        assert_eq!(seqs(&again), [1]);
        acknowledge(&mut outbox, again).await;
        assert_eq!(setup.parts.buffer.last_report().blocked_reason, None);
        assert_eq!(seqs(&outbox.next(9).await.unwrap()), [2]);
    }

    #[tokio::test]
    async fn a_replay_sends_what_is_in_flight_again_once_it_is_acknowledged() {
        let setup = TestSetup::new().await;
        let mut outbox = outbox(&setup, 0, false);
        setup.publish_events(3).await;
        let batch = outbox.next(3).await.unwrap();
        setup.parts.buffer.rewind(&home(), Seq(2));
        assert!(outbox.next(9).await.unwrap().is_empty());
        acknowledge(&mut outbox, batch).await;
        assert_eq!(seqs(&outbox.next(9).await.unwrap()), [2, 3]);
        assert_eq!((outbox.cursor(&home()), outbox.saved_cursor(&home())), (Seq(3), Seq(1)));
        outbox.reset_in_flight();
        let again = outbox.next(9).await.unwrap();
        assert_eq!(seqs(&again), [2, 3], "also over a new link");
        acknowledge(&mut outbox, again).await;
        assert!(outbox.next(9).await.unwrap().is_empty());
        assert_eq!(outbox.saved_cursor(&home()), Seq(3));
    }

    #[tokio::test]
    async fn a_replay_of_a_long_journal_delays_nothing_that_is_new() {
        for has_deferred in [false, true] {
            let setup = TestSetup::new().await;
            let mut outbox = outbox(&setup, 1_000, has_deferred);
            setup.publish_events(1_000).await;
            setup.parts.buffer.rewind(&home(), Seq(1));
            let (mut sent, mut published) = (Vec::new(), 1_000);
            loop {
                let batch = outbox.next(8).await.unwrap();
                if batch.is_empty() {
                    break;
                }
                sent.extend(seqs(&batch));
                acknowledge(&mut outbox, batch).await;
                if published < 1_020 {
                    published += 1;
                    setup.publish_events(1).await;
                    let next = outbox.next(1).await.unwrap();
                    assert_eq!(seqs(&next), [published], "at once");
                    sent.extend(seqs(&next));
                    acknowledge(&mut outbox, next).await;
                }
            }
            let replayed: Vec<u64> = sent.iter().copied().filter(|seq| *seq <= 1_000).collect();
            assert_eq!(replayed, (1..=1_000).collect::<Vec<u64>>());
            assert_eq!(sent.len(), 1_020);
        }
    }

    #[tokio::test]
    async fn replays_that_are_asked_for_during_one_become_one() {
        let setup = TestSetup::new().await;
        let mut outbox = outbox(&setup, 0, false);
        setup.publish_events(3).await;
        let batch = outbox.next(3).await.unwrap();
        acknowledge(&mut outbox, batch).await;
        let mut sent = Vec::new();
        setup.parts.buffer.rewind(&home(), Seq(1));
        for step in 0..9 {
            let batch = outbox.next(1).await.unwrap();
            sent.extend(seqs(&batch));
            acknowledge(&mut outbox, batch).await;
            if step < 2 {
                setup.parts.buffer.rewind(&home(), Seq(1));
            }
            if step == 0 {
                setup.publish_events(1).await;
            }
        }
        assert_eq!(sent, [1, 4, 2, 3, 1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn a_rejected_event_of_a_replay_is_a_dead_letter_and_the_replay_goes_on() {
        let setup = TestSetup::new().await;
        let mut outbox = outbox(&setup, 0, false);
        setup.publish_events(3).await;
        let batch = outbox.next(3).await.unwrap();
        acknowledge(&mut outbox, batch).await;
        setup.parts.buffer.rewind(&home(), Seq(1));
        let replayed = outbox.next(3).await.unwrap();
        outbox.resolve(ids(&replayed)[1].clone(), rejected("never")).await.unwrap();
        assert_eq!((outbox.cursor(&home()), outbox.saved_cursor(&home())), (Seq(3), Seq(0)));
        acknowledge(&mut outbox, replayed.into_iter().step_by(2).collect()).await;
        assert!(outbox.next(9).await.unwrap().is_empty());
        assert_eq!(outbox.saved_cursor(&home()), Seq(3));
    }
}
