//! The parts that the tasks of one process share.

use std::sync::Arc;

use crate::live_state::LiveState;
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
