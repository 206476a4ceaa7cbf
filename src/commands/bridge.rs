//! Commands to the bridge itself: few, short, one after the other.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::common::Common;
use super::errors::bad_request;
use super::queue::{Queue, QueuedCommand};
use super::results::{ResultBody, finish};
use crate::model::{Operation, SinkName};
use crate::port::StoreError;

/// Sets the log level; an error says what would be right.
pub type SetLogLevel = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Executes the commands to the bridge itself.
#[derive(Clone)]
pub struct BridgeWorker {
    /// The commands that wait.
    pub queue: Arc<Queue>,
    /// Store, live state and clock.
    pub common: Common,
    /// Carries out `log_level`.
    pub set_log_level: SetLogLevel,
}

impl BridgeWorker {
    /// Executes commands until `stop`.
    ///
    /// # Errors
    /// Only a store that cannot be used any more.
    pub async fn run(self, stop: CancellationToken) -> Result<(), StoreError> {
        self.queue.restart();
        loop {
            while let Some(queued) = self.queue.next(self.common.clock.now()) {
                let QueuedCommand { command, request, .. } = &queued;
                // The queue hands out what has expired, too, so that it is answered in time.
                let body = if self.common.clock.now() >= command.expires_at {
                    ResultBody::expired()
                } else {
                    self.execute(&request.operation, request.dry_run, &command.origin)
                };
                finish(&self.common, &queued, body).await?;
                self.queue.done(&command.id);
            }
            // A command that arrived meanwhile left a permit, so none is missed between the loop above and this wait.
            if stop.run_until_cancelled(self.queue.arrived.notified()).await.is_none() {
                return Ok(());
            }
        }
    }

    fn execute(&self, operation: &Operation, dry_run: bool, origin: &SinkName) -> ResultBody {
        let bad = |message: &str| ResultBody::failed(bad_request(message));
        match operation {
            Operation::Resync { from_seq: Some(_) } => bad("events are numbered by server: ask that server for them"),
            Operation::Resync { from_seq: None } => {
                if let (false, Some(buffer)) = (dry_run, self.common.live.buffer(origin)) {
                    buffer.reassert(None);
                }
                ResultBody::ok()
            }
            Operation::SetLogLevel(_) if dry_run => ResultBody::ok(),
            Operation::SetLogLevel(level) => match (self.set_log_level)(level) {
                Ok(()) => ResultBody::ok(),
                Err(right) => bad(&right),
            },
            _ => bad("this is a command to a server"),
        }
    }
}
