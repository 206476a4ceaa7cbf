//! Commands to the bridge itself: few, short, one after the other.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::common::Common;
use super::errors::bad_request;
use super::queue::{Queue, QueuedCommand};
use super::results::{ResultBody, finish, take_up};
use super::unfinished::read_on;
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
        take_up(&self.common, &self.queue).await?;
        loop {
            read_on(&self.common, None, &self.queue).await?;
            while let Some(queued) = self.queue.next(self.common.clock.now()) {
                let QueuedCommand { command, request, .. } = &queued;
                // The queue hands out what has expired, too, so that it is answered in time.
                let body = if self.common.clock.now() >= command.expires_at {
                    ResultBody::expired()
                } else {
                    self.execute(&request.operation, request.dry_run, &command.origin)
                };
                finish(&self.common, command, &queued.sender, body).await?;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use super::*;
    use crate::commands::request::Request;
    use crate::commands::results::logged;
    use crate::commands::sender::{CommandSender, Waiter};
    use crate::live_state::LiveState;
    use crate::model::{CommandId, OutcomeStatus, Timestamp, Verb};
    use crate::port::{Clock, CommandLog as _, LoggedCommand};
    use crate::store::{MemoryStore, Options};

    struct NoTime;

    impl Clock for NoTime {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(0)
        }
    }

    #[tokio::test]
    async fn a_worker_that_follows_a_failed_one_answers_by_the_log_and_executes_nothing_twice() {
        let store = Arc::new(MemoryStore::new(Options::default(), Arc::new(NoTime)));
        let live = Arc::new(LiveState::new(BTreeMap::new(), []));
        let common = Common { store: store.clone(), live, clock: Arc::new(NoTime) };
        let queue = Arc::new(Queue::default());
        let mut callers = Vec::new();
        for id in ["answered", "unanswered"] {
            let body = format!("{{\"level\": \"{id}\"}}").into_bytes();
            let command = LoggedCommand {
                id: CommandId::parse(id).unwrap(),
                server: None,
                origin: SinkName::parse("http").unwrap(),
                hash: None,
                verb: Some(Verb::LogLevel),
                body: body.clone().into(),
                received_at: Timestamp::from_millis(0),
                expires_at: Timestamp::from_millis(1000),
                reply: None,
                is_started: false,
                crashes: 0,
                digest: None,
            };
            let request = Request::parse(Verb::LogLevel, None, &body).unwrap();
            let (waiter, caller) = Waiter::new();
            store.record_commands(vec![(command.clone(), None)]).await.unwrap();
            assert!(queue.reserve(&command.origin, &request, body.len()));
            let sender = CommandSender { waiter: Some(waiter), ..CommandSender::default() };
            queue.push(QueuedCommand::new(command, request, sender));
            callers.push(caller);
        }
        // The first worker writes the result of one command, and fails before it can say so.
        let (first, _second) = (queue.next(NoTime.now()).unwrap(), queue.next(NoTime.now()).unwrap());
        let outcome = ResultBody::failed(bad_request("first")).into_outcome(&first.command, "log_level", NoTime.now());
        store.finish_command(None, &first.command.id, logged(&outcome)).await.unwrap();
        let executed = Arc::new(Mutex::new(Vec::new()));
        let set_log_level: SetLogLevel = Arc::new({
            let executed = Arc::clone(&executed);
            move |level| {
                executed.lock().unwrap().push(level.to_owned());
                Ok(())
            }
        });
        let worker = BridgeWorker { queue, common, set_log_level };
        let mut run = std::pin::pin!(worker.run(CancellationToken::new()));
        assert!(futures_util::poll!(&mut run).is_pending());
        assert_eq!(*executed.lock().unwrap(), ["unanswered"]);
        for (caller, expected) in callers.iter_mut().zip([OutcomeStatus::Error, OutcomeStatus::Ok]) {
            let answered = caller.try_recv().unwrap();
            assert_eq!(answered.outcome.status, expected);
            let logged = store.result_of(None, &answered.outcome.id).await.unwrap();
            assert_eq!(logged, Some(answered.body), "as in the log");
        }
    }
}
