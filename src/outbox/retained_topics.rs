//! The retained topics of one sink: the registry with its copy on disk, and the scan for those of an earlier state.
//!
//! Topics of all outboxes are here: a broker keeps what was retained under each of them, whoever sent it. A topic is
//! written down before anything is first sent to it, and struck out when its clearing was acknowledged.
//!
//! ```text
//! retained scan ──► found ──── until the server's torrents are known ───► orphans ──► clearing
//! registered ──────────────── not wanted on a new link ────────────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use tracing::warn;

use super::background::unless_full;
use super::parts::{DispatcherParts, Failure};
use super::registry::Registry;
use crate::model::{InfoHash, ServerName};
use crate::port::{Delivery, RetainedScan, StoreError};

/// See the module.
pub(super) struct RetainedTopics {
    parts: Arc<DispatcherParts>,
    /// The registry as it is in memory; at most `unsaved` ahead of the store.
    pub registry: Registry,
    /// In the registry, and not written to the store yet.
    unsaved: Vec<String>,
    /// The sink may retain what is not in the registry. Stays in the store until nothing found is left to reconcile.
    scan: Option<RetainedScan>,
    /// The scan was made in this run.
    has_scanned: bool,
    /// Found by it, and left alone until the torrents of their servers are known.
    found: BTreeMap<ServerName, Vec<String>>,
}

impl RetainedTopics {
    /// Continues with what the store has of the sink.
    pub fn new(parts: &Arc<DispatcherParts>, topics: BTreeSet<String>, scan: Option<RetainedScan>) -> Self {
        let (parts, registry) = (Arc::clone(parts), Registry::new(topics));
        Self { parts, registry, unsaved: Vec::new(), scan, has_scanned: false, found: BTreeMap::new() }
    }

    /// Returns the topic under which the state of a torrent is retained; `None` if the sink retains none.
    pub fn of_state(&self, server: &ServerName, hash: InfoHash) -> Option<String> {
        let (server, body) = (server.clone(), Bytes::new());
        self.parts.sink.retained_topic(&Delivery::State { server, hash, body, retain: true })
    }

    /// Returns the topics of the bridge and of its servers.
    pub fn fixed(&self) -> Vec<String> {
        let mut topics = self.parts.sink.own_retained_topics();
        for server in &self.parts.settings.servers {
            let status = Delivery::ServerStatus { server: server.clone(), is_online: false };
            let stats = Delivery::Stats { server: server.clone(), body: Bytes::new() };
            topics.extend([status, stats].iter().filter_map(|delivery| self.parts.sink.retained_topic(delivery)));
        }
        topics
    }

    /// Registers topics, on disk before this returns; on a full disk they are used all the same, and saved later.
    pub async fn register(&mut self, topics: impl IntoIterator<Item = String>) -> Result<(), StoreError> {
        let unknown = self.registry.unknown(topics);
        if unknown.is_empty() {
            return Ok(());
        }
        self.registry.add(unknown.clone());
        self.unsaved.extend(unknown);
        self.save().await
    }

    /// Writes to the store what was registered and what was cleared.
    pub async fn save(&mut self) -> Result<(), StoreError> {
        let (store, sink) = (&self.parts.store, &self.parts.settings.name);
        if !self.unsaved.is_empty() && unless_full(store.register_topics(sink, self.unsaved.clone()).await)?.is_some() {
            self.unsaved.clear();
        }
        let cleared = self.registry.to_unregister();
        if !cleared.is_empty() && unless_full(store.unregister_topics(sink, cleared).await)?.is_some() {
            self.registry.unregistered();
        }
        Ok(())
    }

    /// Looks for what the sink retains from earlier, if that is to be done and was not done in this run.
    ///
    /// # Errors
    /// The scan failed, or what was found cannot be saved (`StoreError::Full`): it is made again with the next link.
    pub async fn scan(&mut self) -> Result<(), Failure> {
        let Some(scan) = self.scan.filter(|_| !self.has_scanned) else { return Ok(()) };
        let found = self.parts.sink.scan_retained(&self.parts.settings.servers).await?;
        Ok(self.adopt(scan, found).await?)
    }

    /// Takes responsibility for what was found, unless another instance may have retained it. A server that the sink knows
    /// from a lost state has to report that with `journal_reset`.
    async fn adopt(
        &mut self,
        scan: RetainedScan,
        mut found: BTreeMap<ServerName, Vec<String>>,
    ) -> Result<(), StoreError> {
        found.values_mut().for_each(|topics| topics.retain(|topic| !self.parts.sink.is_shared(topic)));
        found.retain(|_, topics| !topics.is_empty());
        let DispatcherParts { settings, store, live, .. } = &*self.parts;
        let sink = &settings.name;
        // A topic that is registered is of this state, so only another one proves that a state was lost.
        let is_unknown = |topic: &String| !self.registry.contains(topic);
        let is_of_lost_state = |(server, topics): &(&ServerName, &Vec<String>)| {
            scan.is_first_run && settings.servers.contains(server) && topics.iter().any(is_unknown)
        };
        let lost = found.iter().filter(is_of_lost_state).map(|(server, _)| server.clone()).collect();
        let topics: Vec<String> = found.values().flatten().cloned().collect();
        for server in store.adopt_retained(sink, topics.clone(), lost).await? {
            warn!(%sink, %server, "the sink knows this server from a state that is lost");
            if let Some(live) = live.server(&server) {
                live.write(|live| live.needs_reset = true);
                live.wake.notify_one();
            }
        }
        self.registry.add(topics);
        self.found = found;
        self.has_scanned = true;
        self.scan = Some(RetainedScan { is_first_run: false });
        Ok(())
    }

    /// Ends the scan once everything found belongs to servers whose torrents are known. Not earlier: after a crash
    /// nothing would say any more which topics are to be left alone.
    ///
    /// Where another instance shares a server, requires one with the next link: what is left there when it does not any more is
    /// ours to clear.
    pub async fn save_scan(&mut self) -> Result<(), StoreError> {
        if self.parts.sink.has_shared_servers() {
            return self.require_scan().await;
        }
        if self.scan.is_some() && self.has_scanned && self.found.is_empty() {
            let saved = self.parts.store.set_retained_scan(&self.parts.settings.name, None).await;
            if unless_full(saved)?.is_some() {
                self.scan = None;
            }
        }
        Ok(())
    }

    async fn require_scan(&mut self) -> Result<(), StoreError> {
        self.has_scanned = false;
        if self.scan.is_none() {
            let scan = Some(RetainedScan { is_first_run: false });
            let saved = self.parts.store.set_retained_scan(&self.parts.settings.name, scan).await;
            if unless_full(saved)?.is_some() {
                self.scan = scan;
            }
        }
        Ok(())
    }

    /// Whether a server whose retained topics the scan found has shown what torrents it has.
    pub fn is_any_found_known(&self) -> bool {
        self.found.keys().any(|server| self.is_known(server) == Some(true))
    }

    /// Plans to clear all topics but these, those that the scan found of servers whose torrents are not known yet, and those
    /// where another instance may have retained something.
    pub fn clear_all_but(&mut self, wanted: impl IntoIterator<Item = String>) {
        let found = std::mem::take(&mut self.found);
        self.found = found.into_iter().filter(|(server, _)| self.is_known(server) == Some(false)).collect();
        let shared = self.registry.topics().filter(|topic| self.parts.sink.is_shared(topic));
        let kept = wanted.into_iter().chain(self.found.values().flatten().cloned()).chain(shared.cloned()).collect();
        self.registry.retain_only(&kept);
    }

    fn is_known(&self, server: &ServerName) -> Option<bool> {
        self.parts.live.read(server, |live| live.state.is_known)
    }
}
