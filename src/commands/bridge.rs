//! Commands to the bridge itself: few, quick, one after the other.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::outcome::{Asker, Done, finish};
use super::queue::{Job, Queue};
use super::request::What;
use crate::live_state::LiveState;
use crate::model::{CommandError, ErrorCode, Verb};
use crate::port::{Clock, Store, StoreError};

/// What can be asked of the bridge itself.
pub(super) const VERBS: [Verb; 2] = [Verb::Resync, Verb::LogLevel];

/// Changes how much is logged; an error says what would be right.
pub type SetLogLevel = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

#[derive(Clone)]
pub struct BridgeWorker {
    pub queue: Arc<Queue>,
    pub store: Arc<dyn Store>,
    pub live: Arc<LiveState>,
    pub clock: Arc<dyn Clock>,
    pub set_log_level: SetLogLevel,
}

impl BridgeWorker {
    /// Carries out commands until `stop`.
    ///
    /// # Errors
    /// Only a store that cannot be used any more.
    pub async fn run(self, stop: CancellationToken) -> Result<(), StoreError> {
        self.queue.begin();
        loop {
            while let Some(job) = self.queue.next(self.clock.now()) {
                let done = self.carry_out(&job);
                let asker = Asker { user: job.user.as_deref() };
                finish(&*self.store, &self.live, &*self.clock, &job.command, asker, done).await?;
                self.queue.done(&job.command.id);
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = self.queue.arrived.notified() => {}
            }
        }
    }

    fn carry_out(&self, Job { command, request, .. }: &Job) -> Done {
        let bad = |message: &str| Done::failed(CommandError::new(ErrorCode::BadRequest, message));
        if self.clock.now() >= command.expires_at {
            return Done::expired();
        }
        match &request.what {
            What::Resync { from_seq: Some(_) } => bad("events are numbered by server: ask that server for them"),
            What::Resync { from_seq: None } => {
                if let (false, Some(buffer)) = (request.dry_run, self.live.buffer(&command.origin)) {
                    buffer.reassert(None);
                }
                Done::ok()
            }
            What::LogLevel(_) if request.dry_run => Done::ok(),
            What::LogLevel(level) => match (self.set_log_level)(level) {
                Ok(()) => Done::ok(),
                Err(right) => bad(&right),
            },
            _ => bad("this is a command to a server"),
        }
    }
}
