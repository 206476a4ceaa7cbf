//! The parts that the tasks of one process share.

use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::errors::program_fault;
use crate::live_state::LiveState;
use crate::model::CommandError;
use crate::port::{Clock, Store};

/// Store, live state and clock: what is durable, what is visible, and what time it is.
#[derive(Clone)]
pub struct Common {
    /// The state of all servers and sinks, and the command log.
    pub store: Arc<dyn Store>,
    /// The snapshots of the last polls, with what wakes servers and sinks.
    pub live: Arc<LiveState>,
    /// Wall time, of events and for the expiry of commands.
    pub clock: Arc<dyn Clock>,
}

/// Runs file operations on a thread for blocking work, so that no task of the runtime waits for a disk.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, CommandError> {
    spawn_blocking(work).await.map_err(|_| program_fault())
}
