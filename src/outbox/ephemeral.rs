//! Messages about the bridge and its servers that are neither event nor state: info, status, statistics, health, files.
//!
//! Lossy: what is rejected is logged and forgotten, and messages for a sink that is disconnected are dropped. On each new
//! link all that is retained is published again, as a broker may have lost it or kept an older copy.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tracing::warn;

use super::parts::{DispatcherParts, DispatcherSettings};
use super::{DeliveryId, Outbox, Outcome, Outgoing, Rejection};
use crate::model::{JournalEntry, ServerName};
use crate::port::{Delivery, StoreError};

/// See the module.
pub(super) struct EphemeralOutbox {
    parts: Arc<DispatcherParts>,
    servers: BTreeMap<ServerName, Published>,
    needs_info: bool,
    needs_health: bool,
    /// Taken from the change buffer, and not sent.
    pending: VecDeque<Delivery>,
    /// Bytes of bodies with which a batch ends.
    bytes_max: usize,
}

/// The messages about a server that were published on this link.
#[derive(Default)]
struct Published {
    is_online: Option<bool>,
    stats: Bytes,
}

impl EphemeralOutbox {
    /// An outbox that publishes everything on the first link.
    pub fn new(parts: &Arc<DispatcherParts>) -> Self {
        let servers = parts.settings.servers.iter().map(|server| (server.clone(), Published::default())).collect();
        Self {
            parts: Arc::clone(parts),
            servers,
            needs_info: true,
            needs_health: false,
            pending: VecDeque::new(),
            bytes_max: usize::MAX,
        }
    }

    /// Ends a batch with the delivery with which it has so many bytes.
    pub fn set_bytes_max(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// Publishes the health of the bridge with the next batch.
    pub fn health_is_due(&mut self) {
        self.needs_health = true;
    }

    fn absorb(&mut self) {
        let buffered = self.parts.buffer.take_ephemeral();
        self.needs_info |= buffered.reassert.all;
        self.needs_health |= buffered.reassert.all;
        for (server, published) in &mut self.servers {
            if buffered.reassert.includes(server) {
                *published = Published::default();
            }
        }
        // A buffer holds the files of all servers, whichever of them the sink receives.
        let is_ours = |delivery: &Delivery| match delivery {
            Delivery::Files { server, .. } => self.servers.contains_key(server),
            _ => true,
        };
        self.pending.extend(buffered.deliveries.into_iter().filter(is_ours));
        self.parts.buffer.trim_ephemeral(&mut self.pending);
    }

    /// Takes the next message about one of the servers.
    fn next_of_servers(&mut self) -> Option<Delivery> {
        self.servers.iter_mut().find_map(|(server, published)| {
            let read = |live: &crate::live_state::LiveServer| (live.state.is_online, live.stats_body.clone());
            let (is_online, stats) = self.parts.live.read(server, read)?;
            if published.is_online != Some(is_online) {
                published.is_online = Some(is_online);
                return Some(Delivery::ServerStatus { server: server.clone(), is_online });
            }
            if !stats.is_empty() && published.stats != stats {
                published.stats = stats.clone();
                return Some(Delivery::Stats { server: server.clone(), body: stats });
            }
            None
        })
    }

    fn next_delivery(&mut self) -> Option<Delivery> {
        if std::mem::take(&mut self.needs_info) {
            let DispatcherSettings { name, servers, .. } = &self.parts.settings;
            return Some(Delivery::Info { body: self.parts.reporter.info(name, servers) });
        }
        if let Some(delivery) = self.next_of_servers() {
            return Some(delivery);
        }
        if std::mem::take(&mut self.needs_health) {
            return Some(Delivery::Health { body: self.parts.reporter.health() });
        }
        self.pending.pop_front()
    }
}

impl Outbox for EphemeralOutbox {
    async fn next(&mut self, budget: usize) -> Result<Vec<Outgoing>, StoreError> {
        self.absorb();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < budget
            && bytes < self.bytes_max
            && let Some(delivery) = self.next_delivery()
        {
            if self.parts.sink.wants(&delivery) {
                bytes += delivery.body_bytes();
                batch.push((DeliveryId::Ephemeral, delivery));
            }
        }
        Ok(batch)
    }

    async fn resolve(&mut self, _: DeliveryId, outcome: Outcome) -> Result<Option<JournalEntry>, StoreError> {
        if let Err(Rejection { reason, .. }) = outcome {
            warn!(sink = %self.parts.settings.name, reason = &*reason, "message rejected");
        }
        Ok(None)
    }

    async fn save(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn reset_in_flight(&mut self) {
        // Taken from the buffer and dropped, so that a long outage fills no queue.
        self.absorb();
        self.pending.clear();
        self.needs_info = true;
        self.servers.values_mut().for_each(|published| *published = Published::default());
    }

    fn backlog(&self) -> u64 {
        self.pending.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{TestSetup, hash, home};
    use super::*;

    async fn next(outbox: &mut EphemeralOutbox) -> Vec<&'static str> {
        let name = |delivery: &Delivery| match delivery {
            Delivery::Info { .. } => "info",
            Delivery::ServerStatus { .. } => "status",
            Delivery::Stats { .. } => "stats",
            Delivery::Health { .. } => "health",
            Delivery::Files { .. } => "files",
            _ => "other",
        };
        outbox.next(9).await.unwrap().iter().map(|(_, delivery)| name(delivery)).collect()
    }

    #[tokio::test]
    async fn each_link_begins_with_what_is_retained_and_then_hears_of_changes() {
        let setup = TestSetup::new().await;
        let mut outbox = EphemeralOutbox::new(&setup.parts);
        assert_eq!(next(&mut outbox).await, ["info", "status"]);
        assert_eq!(next(&mut outbox).await, [""; 0]);
        setup.live.server(&home()).unwrap().write(|live| live.stats_body = Bytes::from_static(b"{}"));
        outbox.health_is_due();
        assert_eq!(next(&mut outbox).await, ["stats", "health"]);
        outbox.reset_in_flight();
        assert_eq!(next(&mut outbox).await, ["info", "status", "stats"]);
        setup.parts.buffer.reassert(Some(&home()));
        assert_eq!(next(&mut outbox).await, ["status", "stats"]);
        setup.parts.buffer.reassert(None);
        assert_eq!(next(&mut outbox).await, ["info", "status", "stats", "health"]);
    }

    #[tokio::test]
    async fn messages_for_a_sink_without_a_link_are_dropped() {
        let setup = TestSetup::new().await;
        let mut outbox = EphemeralOutbox::new(&setup.parts);
        next(&mut outbox).await;
        let files = Delivery::Files { server: home(), hash: hash(1), body: Bytes::new() };
        setup.live.publish_ephemeral(&files);
        outbox.reset_in_flight();
        assert_eq!(next(&mut outbox).await, ["info", "status"]);
        setup.live.publish_ephemeral(&files);
        assert_eq!(next(&mut outbox).await, ["files"]);
    }
}
