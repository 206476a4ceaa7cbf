//! Commands to the bridge itself: few, short, one after the other.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::common::Common;
use super::errors::bad_request;
use super::queue::{Queue, QueuedCommand};
use super::results::{ResultBody, finish, take_up};
use super::unfinished::read_on;
use crate::model::{Operation, SinkName};
use crate::port::StoreError;

/// Sets the log level, or only checks it for a dry run; an error says what would be right.
pub type SetLogLevel = Arc<dyn Fn(&str, bool) -> Result<(), String> + Send + Sync>;

/// Interval at which the command log is read on while other queues have the memory that its commands need.
const READ_INTERVAL: Duration = Duration::from_secs(1);

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
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = self.queue.arrived.notified() => {}
                () = tokio::time::sleep(READ_INTERVAL), if self.queue.unread_after().is_some() => {}
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
            Operation::SetLogLevel(level) => match (self.set_log_level)(level, dry_run) {
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

    use bytes::Bytes;

    use super::*;
    use crate::commands::TreeMemory;
    use crate::commands::memory::CommandMemory;
    use crate::commands::request::Request;
    use crate::commands::results::logged;
    use crate::commands::sender::{CommandSender, Waiter};
    use crate::commands::unfinished::take_up_unfinished;
    use crate::live_state::LiveState;
    use crate::model::{CommandId, MemoryShares, OutcomeStatus, Timestamp, Verb};
    use crate::port::{Clock, CommandLog as _, LoggedCommand};
    use crate::store::{MemoryStore, Options};

    struct NoTime;

    impl Clock for NoTime {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(0)
        }
    }

    fn log_level(id: &str, body: &[u8]) -> LoggedCommand {
        LoggedCommand {
            id: CommandId::parse(id).unwrap(),
            server: None,
            origin: SinkName::parse("http").unwrap(),
            hash: None,
            verb: Some(Verb::LogLevel),
            body: Bytes::copy_from_slice(body),
            received_at: Timestamp::from_millis(0),
            expires_at: Timestamp::from_millis(1000),
            reply: None,
            sees_secrets: false,
            is_started: false,
            begun: Vec::new(),
            is_answered: false,
            crashes: 0,
            digest: None,
        }
    }

    fn common() -> (Arc<MemoryStore>, Common) {
        let store = Arc::new(MemoryStore::new(Options::default(), Arc::new(NoTime)));
        let live = Arc::new(LiveState::new(BTreeMap::new(), []));
        (store.clone(), Common { store, live, clock: Arc::new(NoTime) })
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_earlier_run_left_is_answered_when_other_queues_leave_room_and_what_cannot_be_read_at_once() {
        let (store, common) = common();
        let memory = Arc::new(CommandMemory::new(MemoryShares::default()));
        let (other, queue) = (Queue::new(Arc::clone(&memory)), Arc::new(Queue::new(memory)));
        let commands =
            [log_level("of another version", b"{\"volume\": 11}"), log_level("left", b"{\"level\": \"info\"}")];
        let request = Request::parse(Verb::LogLevel, None, &commands[1].body, &TreeMemory::default()).unwrap();
        for command in commands {
            store.record_commands(vec![(command, None)]).await.unwrap();
        }
        let (origin, huge) = (SinkName::parse("http").unwrap(), 1 << 30);
        assert!(other.reserve(&origin, &request, huge));
        take_up_unfinished(&common, None, &queue).await.unwrap();
        let result = async |id| store.result_of(None, &CommandId::parse(id).unwrap()).await.unwrap();
        let unread = String::from_utf8(result("of another version").await.unwrap().to_vec()).unwrap();
        assert!(unread.contains("bad_request") && unread.contains("this version"), "{unread}");
        let worker = BridgeWorker { queue: Arc::clone(&queue), common, set_log_level: Arc::new(|_, _| Ok(())) };
        let stop = CancellationToken::new();
        let observe = async {
            tokio::time::sleep(READ_INTERVAL * 3).await;
            assert!(result("left").await.is_none() && !queue.reserve(&origin, &request, 10));
            other.give_back(&origin, &request, huge);
            tokio::time::sleep(READ_INTERVAL * 3).await;
            assert!(result("left").await.is_some() && queue.reserve(&origin, &request, 10));
            stop.cancel();
        };
        let (ended, ()) = tokio::join!(worker.run(stop.clone()), observe);
        ended.unwrap();
    }

    #[tokio::test]
    async fn a_worker_that_follows_a_failed_one_answers_by_the_log_and_executes_nothing_twice() {
        let (store, common) = common();
        let queue = Arc::new(Queue::default());
        let mut callers = Vec::new();
        for id in ["answered", "unanswered"] {
            let body = format!("{{\"level\": \"{id}\"}}").into_bytes();
            let command = log_level(id, &body);
            let request = Request::parse(Verb::LogLevel, None, &body, &TreeMemory::default()).unwrap();
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
            move |level, _| {
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
