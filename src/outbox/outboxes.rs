//! The four outboxes of one sink: their shares of the window, and the way of an outcome.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::background::BackgroundWrite;
use super::ephemeral::EphemeralOutbox;
use super::event::EventOutbox;
use super::parts::DispatcherParts;
use super::result::ResultOutbox;
use super::state::StateOutbox;
use super::{DeliveryId, Outbox, Outcome, Outgoing};
use crate::model::{ServerName, SinkName};
use crate::port::{LinkLimits, Progress, SinkProgress, Store, StoreError};

/// After so many acknowledged events cursors are saved at once: after a crash so many may be sent twice.
const SAVE_AFTER_COUNT: u32 = 100;

/// A kind of delivery, most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ephemeral,
    Result,
    Event,
    State,
}

impl Kind {
    /// Each kind with the eighths of the window that it gets before another one gets more than its share.
    const SHARES: [(Self, usize); 4] = [(Self::Ephemeral, 1), (Self::Result, 1), (Self::Event, 4), (Self::State, 2)];

    fn of(id: &DeliveryId) -> Self {
        match id {
            DeliveryId::Ephemeral => Self::Ephemeral,
            DeliveryId::Result(..) => Self::Result,
            DeliveryId::Event(..) => Self::Event,
            DeliveryId::State(..) | DeliveryId::Updated(..) | DeliveryId::Clearing(_) | DeliveryId::Projected(_) => {
                Self::State
            }
        }
    }
}

/// Deliveries that were sent and are not resolved.
#[derive(Clone, Copy, Default)]
struct InFlight {
    count: usize,
    bytes: usize,
}

/// See the module.
pub(super) struct Outboxes {
    /// Journal entries.
    pub events: EventOutbox,
    /// States of torrents, retained topics, the projection.
    pub states: StateOutbox,
    /// Results of commands.
    pub results: ResultOutbox,
    /// Everything else.
    pub ephemeral: EphemeralOutbox,
    /// Deliveries in flight, by [`Kind`].
    in_flight: [InFlight; 4],
    /// Most bytes of ephemeral messages in flight, and of states. Events and results know themselves what is theirs.
    lossy_bytes_max: usize,
    progress: ProgressWriter,
}

impl Outboxes {
    /// Reads how far the sink has got; see [`super::init_sink_progress`].
    pub async fn new(parts: &Arc<DispatcherParts>) -> Result<Self, StoreError> {
        let (name, store) = (&parts.settings.name, &parts.store);
        let saved = store.load_sink(name).await?;
        let progress =
            |server: &ServerName| saved.progress.get(server).copied().unwrap_or_else(|| parts.live.present(server));
        let progress: BTreeMap<_, _> =
            parts.settings.servers.iter().map(|server| (server.clone(), progress(server))).collect();
        let cursors = progress.iter().map(|(server, progress)| (server.clone(), progress.cursor));
        let mut outboxes = Self {
            events: EventOutbox::new(parts, cursors, saved.has_strict_ordering),
            results: ResultOutbox::new(parts),
            ephemeral: EphemeralOutbox::new(parts),
            in_flight: Default::default(),
            lossy_bytes_max: parts.buffer.lossy_bytes_max(),
            progress: ProgressWriter::new(name, store, saved.progress.clone()),
            states: StateOutbox::new(parts, &progress, saved),
        };
        // Before the first connection: the receiver publishes to these by itself, as a last will, at any time.
        outboxes.states.topics.register(parts.sink.own_retained_topics()).await?;
        Ok(outboxes)
    }

    /// Returns what is to be sent next, as much as the limits of the link leave room for.
    ///
    /// In the first round each kind gets its share of the window, so that none starves another; in the second one the
    /// rest goes to whoever has more, most urgent first.
    pub async fn next(&mut self, limits: LinkLimits) -> Result<Vec<Outgoing>, StoreError> {
        self.events.set_ordering(limits.ordering);
        self.results.set_bytes_max(limits.result_bytes_max);
        let (mut batch, mut is_exhausted) = (Vec::new(), [false; 4]);
        for is_shared in [true, false] {
            for (kind, eighths) in Kind::SHARES {
                // At least one: the eighth of a small window is nothing.
                let share = (limits.window * eighths / 8).max(1).saturating_sub(self.in_flight[kind as usize].count);
                let free = limits.window.saturating_sub(self.in_flight());
                let budget = if is_shared { free.min(share) } else { free };
                if budget == 0 || is_exhausted[kind as usize] {
                    continue;
                }
                let more = match kind {
                    Kind::Ephemeral => {
                        self.ephemeral.set_bytes_max(self.lossy_room(kind));
                        self.ephemeral.next(budget).await?
                    }
                    Kind::Result => self.results.next(budget).await?,
                    Kind::Event => self.events.next(budget).await?,
                    Kind::State => {
                        // Just before, so that a state is held for every event of its torrent that is not acknowledged (I7).
                        self.states.set_cursors(|server| self.events.cursor(server));
                        self.states.set_bytes_max(self.lossy_room(kind));
                        self.states.next(budget).await?
                    }
                };
                is_exhausted[kind as usize] = more.len() < budget;
                let in_flight = &mut self.in_flight[kind as usize];
                in_flight.count += more.len();
                in_flight.bytes += more.iter().map(|(_, delivery)| delivery.body_bytes()).sum::<usize>();
                batch.extend(more);
            }
        }
        Ok(batch)
    }

    fn lossy_room(&self, kind: Kind) -> usize {
        self.lossy_bytes_max.saturating_sub(self.in_flight[kind as usize].bytes)
    }

    /// Passes an outcome to the outbox that returned the delivery, which had a body of so many bytes.
    pub async fn resolve(&mut self, id: DeliveryId, bytes: usize, outcome: Outcome) -> Result<(), StoreError> {
        let kind = Kind::of(&id);
        let in_flight = &mut self.in_flight[kind as usize];
        in_flight.count = in_flight.count.saturating_sub(1);
        in_flight.bytes = in_flight.bytes.saturating_sub(bytes);
        let delivered = match kind {
            Kind::Ephemeral => self.ephemeral.resolve(id, outcome).await?,
            Kind::Result => self.results.resolve(id, outcome).await?,
            Kind::State => self.states.resolve(id, outcome).await?,
            Kind::Event => {
                self.progress.acknowledged += 1;
                self.events.resolve(id, outcome).await?
            }
        };
        // Before states are asked for again: what the sink knows of the torrent has moved on.
        if let Some(entry) = delivered {
            self.states.on_delivered(&entry);
        }
        Ok(())
    }

    /// Deliveries that were sent and not resolved.
    pub fn in_flight(&self) -> usize {
        self.in_flight.iter().map(|kind| kind.count).sum()
    }

    /// Starts to save the cursors if enough events were acknowledged; sending does not wait for that.
    pub async fn save_if_due(&mut self) -> Result<(), StoreError> {
        if self.progress.acknowledged >= SAVE_AFTER_COUNT && self.progress.is_idle()? {
            let progress = self.current_progress();
            self.progress.start(progress);
        }
        Ok(())
    }

    /// Saves what is not on disk yet, as far as there is room.
    pub async fn save(&mut self) -> Result<(), StoreError> {
        self.states.save().await?;
        self.results.save().await?;
        self.events.save().await?;
        self.ephemeral.save().await?;
        // The older write first, or it would be the one that stays.
        self.progress.finish().await?;
        let progress = self.current_progress();
        self.progress.start(progress);
        self.progress.finish().await
    }

    fn current_progress(&mut self) -> Progress {
        let sent_revs = self.states.sent_revs().into_iter();
        sent_revs
            .map(|(server, sent_rev)| {
                (server.clone(), SinkProgress { cursor: self.events.saved_cursor(&server), sent_rev })
            })
            .collect()
    }

    /// The link is gone: saves what became of its deliveries, and makes everything else pending again.
    pub async fn end_link(&mut self, was_deferred: bool) -> Result<(), StoreError> {
        if was_deferred {
            self.events.event_was_deferred();
        }
        self.save().await?;
        self.states.save_projection(true).await?;
        self.in_flight = Default::default();
        self.events.reset_in_flight();
        self.states.reset_in_flight();
        self.results.reset_in_flight();
        self.ephemeral.reset_in_flight();
        Ok(())
    }

    /// Takes in what changes while there is no link; messages that are not kept for one are dropped.
    pub fn absorb_while_disconnected(&mut self) {
        self.states.absorb();
        self.ephemeral.reset_in_flight();
    }

    /// Whether nothing is left that a stopping process should still deliver.
    pub fn is_empty(&self) -> bool {
        let backlogs = [self.events.backlog(), self.states.backlog(), self.results.backlog(), self.ephemeral.backlog()];
        self.in_flight() == 0 && backlogs.iter().all(|backlog| *backlog == 0)
    }

    /// Returns the events and the states that the sink does not have: lag and dirty torrents.
    pub fn lag(&self) -> (u64, u64) {
        (self.events.backlog(), self.states.dirty())
    }
}

/// The progress of a sink on its way to the store.
struct ProgressWriter {
    sink: SinkName,
    store: Arc<dyn Store>,
    /// As it is on disk.
    saved: Progress,
    saving: BackgroundWrite<Progress>,
    /// Events that were acknowledged since the last write began.
    acknowledged: u32,
}

impl ProgressWriter {
    fn new(sink: &SinkName, store: &Arc<dyn Store>, saved: Progress) -> Self {
        let (sink, store) = (sink.clone(), Arc::clone(store));
        Self { sink, store, saved, saving: BackgroundWrite::default(), acknowledged: 0 }
    }

    /// Whether no write is running.
    fn is_idle(&mut self) -> Result<bool, StoreError> {
        if let Some(saved) = self.saving.try_finish()? {
            self.saved = saved;
        }
        Ok(!self.saving.is_running())
    }

    /// Starts a write, unless that is on disk already.
    fn start(&mut self, progress: Progress) {
        self.acknowledged = 0;
        if progress == self.saved {
            return;
        }
        let (store, sink, written) = (Arc::clone(&self.store), self.sink.clone(), progress.clone());
        self.saving.start(progress, async move { store.save_progress(&sink, written).await });
    }

    async fn finish(&mut self) -> Result<(), StoreError> {
        if let Some(saved) = self.saving.finish().await? {
            self.saved = saved;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::testing::{TestSetup, hash, home};
    use super::*;
    use crate::model::MemoryShares;
    use crate::port::{Delivery, EventOrdering};

    #[tokio::test]
    async fn states_and_lists_of_files_in_flight_stay_within_their_share_and_one_is_sent_whatever_its_size() {
        // A state has some 700 bytes.
        for (share, states_max, files_max) in [(16_000, 8, 3), (100, 1, 1)] {
            let setup = TestSetup::with_shares(MemoryShares { ephemeral: share, ..MemoryShares::default() }).await;
            let mut outboxes = Outboxes::new(&setup.parts).await.unwrap();
            let limits = LinkLimits { window: 64, result_bytes_max: None, ordering: EventOrdering::default() };
            outboxes.states.begin_link().await.unwrap();
            while let [first, ..] = &outboxes.next(limits).await.unwrap()[..] {
                outboxes.resolve(first.0.clone(), first.1.body_bytes(), Ok(())).await.unwrap();
            }
            for number in 1..=30 {
                setup.publish(number, Some(10), &[]).await;
            }
            let mut sent = 0;
            loop {
                for bytes in [1_500; 5] {
                    let body = Bytes::from(vec![b'x'; bytes]);
                    setup.live.publish_ephemeral(&Delivery::Files { server: home(), hash: hash(1), body });
                }
                let batch = outboxes.next(limits).await.unwrap();
                let of = |kind| batch.iter().filter(|(id, _)| Kind::of(id) == kind).count();
                let (states, files) = (of(Kind::State), of(Kind::Ephemeral));
                assert!(files <= files_max && states <= states_max, "{states} states, {files} files of {share}");
                let again = outboxes.next(limits).await.unwrap();
                assert!(again.is_empty(), "nothing more before an acknowledgement");
                if states == 0 {
                    break;
                }
                assert!(files > 0);
                sent += states;
                for (id, delivery) in batch {
                    outboxes.resolve(id, delivery.body_bytes(), Ok(())).await.unwrap();
                }
            }
            assert_eq!((sent, outboxes.in_flight[Kind::State as usize].bytes), (30, 0));
        }
    }
}
