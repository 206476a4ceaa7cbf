//! Commands to the bridge itself: few, short, one after the other.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::queue::{Queue, QueuedCommand};
use super::results::{ResultBody, finish};
use crate::live_state::LiveState;
use crate::model::{CommandError, ErrorCode, Operation, SinkName};
use crate::port::{Clock, Store, StoreError};

/// Sets the log level; an error says what would be right.
pub type SetLogLevel = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Executes the commands to the bridge itself.
#[derive(Clone)]
pub struct BridgeWorker {
    /// The commands that wait.
    pub queue: Arc<Queue>,
    /// Where their results go.
    pub store: Arc<dyn Store>,
    /// The sinks to be sent the present state again.
    pub live: Arc<LiveState>,
    /// Wall time, for expiry.
    pub clock: Arc<dyn Clock>,
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
            while let Some(QueuedCommand { command, request, user }) = self.queue.next(self.clock.now()) {
                let body = if self.clock.now() >= command.expires_at {
                    ResultBody::expired()
                } else {
                    self.execute(&request.operation, request.dry_run, &command.origin)
                };
                finish(&*self.store, &self.live, &*self.clock, &command, user.as_deref(), body).await?;
                self.queue.done(&command.id);
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = self.queue.arrived.notified() => {}
            }
        }
    }

    fn execute(&self, operation: &Operation, dry_run: bool, origin: &SinkName) -> ResultBody {
        let bad = |message: &str| ResultBody::failed(CommandError::new(ErrorCode::BadRequest, message));
        match operation {
            Operation::Resync { from_seq: Some(_) } => bad("events are numbered by server: ask that server for them"),
            Operation::Resync { from_seq: None } => {
                if let (false, Some(buffer)) = (dry_run, self.live.buffer(origin)) {
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
