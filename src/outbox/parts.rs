//! What the outboxes and the dispatcher of one sink work with, and where a sink begins.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::retention::Retain;
use crate::live_state::{ChangeBuffer, LiveState};
use crate::model::{Kind, Seq, ServerName, SinkName};
use crate::port::{Clock, DeliverError, RetainedScan, Sink, SinkProgress, SinkState, Store, StoreError};

/// What a sink receives, and in which way.
pub struct DispatcherSettings {
    pub name: SinkName,
    pub servers: Vec<ServerName>,
    /// Kinds of events that the sink receives.
    pub events: BTreeSet<Kind>,
    pub retain: Retain,
    /// The last run ended in a clean shutdown, so what was saved is what this sink was sent. After a crash it may know more.
    pub was_clean_shutdown: bool,
}

/// Renders what is published of the bridge itself.
pub trait Reporter: Send + Sync {
    /// Returns version, servers and limits as JSON.
    fn info(&self) -> Bytes;
    /// Returns how servers and sinks are doing, as JSON.
    fn health(&self) -> Bytes;
}

/// What a dispatcher works with.
pub struct DispatcherParts {
    pub settings: DispatcherSettings,
    pub sink: Arc<dyn Sink>,
    pub store: Arc<dyn Store>,
    pub live: Arc<LiveState>,
    /// The change buffer of this sink.
    pub buffer: Arc<ChangeBuffer>,
    pub clock: Arc<dyn Clock>,
    pub reporter: Arc<dyn Reporter>,
}

impl DispatcherParts {
    /// Returns the newest journal entry of a server that is published.
    pub(super) fn published(&self, server: &ServerName) -> Seq {
        self.live.read(server, |live| live.last_seq).unwrap_or_default()
    }

    pub(super) fn present(&self, server: &ServerName) -> SinkProgress {
        present(&self.live, server)
    }
}

/// The reason why work on a link ended: the sink can be tried again, the store cannot.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Sink(#[from] DeliverError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Saves where a sink begins with servers that are new to it: with the present. A sink that is new itself is scanned for
/// what it retains of ours; `is_first_run`: there was no store, so that would be of a state that is lost.
///
/// To be called before the first event of this run, so that neither a crash nor a slow start makes an old sink a new one.
pub async fn init_sink_progress(
    store: &dyn Store,
    live: &LiveState,
    sink: &SinkName,
    servers: &[ServerName],
    is_first_run: bool,
) -> Result<(), StoreError> {
    let SinkState { progress: saved, retained_scan, .. } = store.load_sink(sink).await?;
    if saved.is_empty() && retained_scan.is_none() {
        // First: a sink with progress is not new any more after a crash.
        store.set_retained_scan(sink, Some(RetainedScan { is_first_run })).await?;
    }
    let is_new = |server: &&ServerName| !saved.contains_key(*server);
    let begun: BTreeMap<ServerName, SinkProgress> =
        servers.iter().filter(is_new).map(|server| (server.clone(), present(live, server))).collect();
    if !begun.is_empty() {
        store.save_progress(sink, begun).await?;
    }
    Ok(())
}

fn present(live: &LiveState, server: &ServerName) -> SinkProgress {
    let read = live.read(server, |live| SinkProgress {
        cursor: live.last_seq,
        sent_rev: live.snapshot.values().map(|torrent| torrent.rev).max().unwrap_or_default(),
    });
    read.unwrap_or_default()
}
