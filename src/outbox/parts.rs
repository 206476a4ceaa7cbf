//! The parts that the outboxes and the dispatcher of one sink share, and the first progress of a sink.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use super::retention::Retain;
use crate::live_state::{ChangeBuffer, LiveState};
use crate::model::{Kind, ServerName, SinkName};
use crate::port::{Clock, DeliverError, Progress, RetainedScan, Sink, SinkState, Store, StoreError};

/// The deliveries of one sink, as configured.
pub struct DispatcherSettings {
    /// Name of the sink, under which the store has its progress.
    pub name: SinkName,
    /// Servers whose events, states and statistics the sink receives.
    pub servers: Vec<ServerName>,
    /// Kinds of events that the sink receives.
    pub events: BTreeSet<Kind>,
    /// Policy by which states are retained.
    pub retain: Retain,
    /// The last run ended in a clean shutdown, so the saved progress is what the sink was sent. After a crash the sink may
    /// know more.
    pub was_clean_shutdown: bool,
}

/// A renderer of the messages about the bridge itself.
pub trait Reporter: Send + Sync {
    /// Returns version, servers, rights and limits as JSON, for a sink that receives these servers.
    fn info(&self, sink: &SinkName, published: &[ServerName]) -> Bytes;
    /// Returns the health of servers and sinks as JSON.
    fn health(&self) -> Bytes;
}

/// The parts of one dispatcher.
pub struct DispatcherParts {
    /// Configuration of the sink.
    pub settings: DispatcherSettings,
    /// Adapter that connects and renders.
    pub sink: Arc<dyn Sink>,
    /// Store of journal, progress and results.
    pub store: Arc<dyn Store>,
    /// Snapshots of all servers.
    pub live: Arc<LiveState>,
    /// The change buffer of this sink.
    pub buffer: Arc<ChangeBuffer>,
    /// Wall clock, for the age of a change.
    pub clock: Arc<dyn Clock>,
    /// Renderer of info and health.
    pub reporter: Arc<dyn Reporter>,
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
        // Before the progress: after a crash in between, a sink with progress would no longer count as new.
        store.set_retained_scan(sink, Some(RetainedScan { is_first_run })).await?;
    }
    let is_new = |server: &&ServerName| !saved.contains_key(*server);
    let begun: Progress = servers.iter().filter(is_new).map(|server| (server.clone(), live.present(server))).collect();
    if !begun.is_empty() {
        store.save_progress(sink, begun).await?;
    }
    Ok(())
}
