//! The delivery state of sinks in memory.

use std::collections::BTreeMap;

use async_trait::async_trait;

use super::{DeadLetter, MemoryStore, State};
use crate::model::{JournalEntry, ServerName, SinkName};
use crate::port::{Progress, RetainedScan, SinkState, SinkStore, StoreError};

#[async_trait]
impl SinkStore for MemoryStore {
    async fn load_sink(&self, sink: &SinkName) -> Result<SinkState, StoreError> {
        Ok(self.state().sinks.get(sink).cloned().unwrap_or_default())
    }

    async fn save_progress(&self, sink: &SinkName, progress: Progress) -> Result<(), StoreError> {
        let mut state = self.state();
        state.blocked.on_progress(sink, &progress);
        state.sink(sink).progress.extend(progress);
        Ok(())
    }

    async fn add_dead_letter(&self, sink: &SinkName, entry: &JournalEntry, reason: &str) -> Result<(), StoreError> {
        let mut state = self.state();
        let dead_letter = DeadLetter::new(entry, reason, self.clock.now());
        let queue = state.dead_letters.iter().filter(|(of, _)| of == sink).map(|(_, dead_letter)| &dead_letter.id);
        let (same, others): (Vec<_>, Vec<_>) = queue.partition(|id| **id == dead_letter.id);
        let (is_known, count) = (!same.is_empty(), others.len() as u64);
        // Others are counted: one that is in the queue already finds room however full that is.
        if count >= self.options.dead_letters_max {
            return Err(state.blocked.block(sink, entry, self.options.dead_letters_max));
        }
        state.blocked.unblock(sink);
        if !is_known {
            state.dead_letters.push((sink.clone(), dead_letter));
        }
        Ok(())
    }

    async fn register_topics(&self, sink: &SinkName, topics: Vec<String>) -> Result<(), StoreError> {
        self.state().sink(sink).retained_topics.extend(topics);
        Ok(())
    }

    async fn unregister_topics(&self, sink: &SinkName, topics: Vec<String>) -> Result<(), StoreError> {
        self.state().sink(sink).retained_topics.retain(|topic| !topics.contains(topic));
        Ok(())
    }

    async fn set_retained_scan(&self, sink: &SinkName, scan: Option<RetainedScan>) -> Result<(), StoreError> {
        self.state().sink(sink).retained_scan = scan;
        Ok(())
    }

    async fn adopt_retained(
        &self,
        sink: &SinkName,
        topics: Vec<String>,
        servers: Vec<ServerName>,
    ) -> Result<Vec<ServerName>, StoreError> {
        let mut state = self.state();
        let of_sink = state.sink(sink);
        of_sink.retained_topics.extend(topics);
        if let Some(scan) = &mut of_sink.retained_scan {
            scan.is_first_run = false;
        }
        let marked: Vec<ServerName> = servers.into_iter().filter(|server| !state.resets.contains_key(server)).collect();
        state.resets.extend(marked.iter().map(|server| (server.clone(), false)));
        Ok(marked)
    }

    async fn set_strict_ordering(&self, sink: &SinkName) -> Result<(), StoreError> {
        self.state().sink(sink).has_strict_ordering = true;
        Ok(())
    }

    async fn save_projection_state(&self, sink: &SinkName, projection_state: String) -> Result<(), StoreError> {
        self.state().sink(sink).projection_state = Some(projection_state);
        Ok(())
    }
}

impl MemoryStore {
    /// As [`SqliteStore::declare_sinks`](crate::store::SqliteStore::declare_sinks).
    pub fn declare_sinks(&self, sinks: &BTreeMap<SinkName, Vec<ServerName>>) {
        let mut state = self.state();
        for (name, sink) in &mut state.sinks {
            let servers = sinks.get(name);
            sink.progress.retain(|server, _| servers.is_some_and(|servers| servers.contains(server)));
            if servers.is_none() {
                (sink.retained_scan, sink.has_strict_ordering) = (None, false);
            }
        }
        state.results.retain(|_, (sink, _)| sinks.contains_key(sink));
    }

    /// As [`SqliteStore::dead_letters`](crate::store::SqliteStore::dead_letters).
    pub fn dead_letters(&self, sink: &SinkName) -> Vec<DeadLetter> {
        let state = self.state();
        let queue = state.dead_letters.iter().filter(|(of, _)| of == sink);
        queue.map(|(_, dead_letter)| dead_letter.clone()).collect()
    }

    /// Removes a dead letter from its queue; returns whether it was there.
    pub fn drop_dead_letter(&self, sink: &SinkName, id: &str) -> bool {
        let mut state = self.state();
        let before = state.dead_letters.len();
        state.dead_letters.retain(|(of, dead_letter)| of != sink || dead_letter.id != id);
        state.dead_letters.len() < before
    }
}

impl State {
    fn sink(&mut self, sink: &SinkName) -> &mut SinkState {
        self.sinks.entry(sink.clone()).or_default()
    }
}
