//! The worker: executes the commands of one server.
//!
//! Commands for one torrent run in the order in which they came, others in parallel. Each waits until its client
//! answers or its time to live is over, registers the effect it expects, asks, and waits until a poll shows it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info_span};

use super::client_turns::ClientTurns;
use super::execution::{Execution, WorkerParts};
use super::queue::Queue;
use super::results::take_up;
use super::unfinished::read_on;
use crate::model::Verb;
use crate::port::StoreError;

/// Interval of a search for commands whose time to live is over while others hold them up.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(1);

/// Executes the commands of one server; see the module.
#[derive(Clone)]
pub struct Worker {
    /// The parts that its executions share.
    pub parts: Arc<WorkerParts>,
    /// The commands that wait.
    pub queue: Arc<Queue>,
}

impl Worker {
    /// Executes commands until `stop`; those that run are dropped then, and go on after the next start.
    ///
    /// # Errors
    /// Only a store that cannot be used any more.
    pub async fn run(self, stop: CancellationToken) -> Result<(), StoreError> {
        let Self { parts, queue } = &self;
        take_up(&parts.common, queue).await?;
        let turns = &ClientTurns::default();
        let mut serving = std::pin::pin!(turns.serve(&*parts.client));
        let mut running = FuturesUnordered::new();
        loop {
            read_on(&parts.common, Some(&parts.server), queue).await?;
            // A command that waits costs nothing, and the client is asked in turns: whatever may run does.
            while let Some(queued) = queue.next(parts.common.clock.now()) {
                let command = &queued.command;
                let (id, verb) = (command.id.as_str(), command.verb.map(Verb::as_str));
                let span = info_span!("command", id, server = %parts.server, verb);
                let execution = async move {
                    Execution::new(parts, queue, turns, &queued).run().await?;
                    Ok(queued.command.id)
                };
                running.push(execution.instrument(span));
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                // Polled here, so that what the client is asked for ends with this worker.
                never = &mut serving => match never {},
                Some(result) = running.next(), if !running.is_empty() => queue.done(&result?),
                () = queue.arrived.notified() => {}
                () = tokio::time::sleep(EXPIRY_INTERVAL) => {}
            }
        }
    }
}
