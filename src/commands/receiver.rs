//! The receiver: takes the messages of one command source to admission.
//!
//! It connects again when the source fails, and stops taking commands while their results are not taken.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::admission::{Admission, BATCH_MAX, ROOM_INTERVAL};
use crate::log_throttle::LogThrottle;
use crate::model::Timestamp;
use crate::outbox::backoff::Backoff;
use crate::port::{CommandSource, Incoming, ResultBacklog, StoreError};

/// A connection that lasted so long was a good one: the next attempt comes soon.
const GOOD_CONNECTION_MIN: Duration = Duration::from_secs(1);
/// No attempt to connect takes so long: what fails after that was connected before.
const ATTEMPT_MAX: Duration = Duration::from_secs(15);
/// A batch with so many bytes is complete.
const BATCH_BYTES_MAX: usize = 16 << 20;

/// With so many results of a sink unsent, or so many bytes, no more of its commands are taken until half of them are
/// gone. Commands that are queued by then are executed and have their results, too.
const RESULTS_MAX: ResultBacklog = ResultBacklog { count: 1_000, bytes: 64 << 20 };
/// Messages taken between two looks at that backlog.
const RESULTS_CHECK_MESSAGES: usize = 250;
/// Interval of looking at the backlog while its sink takes results, but slower than commands come.
const RESULTS_CHECK_INTERVAL: Duration = Duration::from_millis(20);
/// Time that is waited like that before the source is paused.
const RESULTS_PATIENCE: Duration = Duration::from_secs(10);

/// Takes the messages of one source to admission.
pub struct CommandReceiver {
    /// Where the messages come from.
    pub source: Box<dyn CommandSource>,
    /// What decides about them.
    pub admission: Admission,
    /// Since when nobody has taken commands, as far as is known; `None` if never before.
    pub unattended_since: Option<Timestamp>,
}

impl CommandReceiver {
    /// Takes commands until `stop`.
    ///
    /// # Errors
    /// Only a store that cannot be used any more.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), StoreError> {
        let mut backoff = Backoff::default();
        let mut log_throttle = LogThrottle::default();
        let mut unchecked_messages = RESULTS_CHECK_MESSAGES;
        // Whether a message came since the last failure.
        let mut was_connected = false;
        let mut failed = None;
        loop {
            if unchecked_messages >= RESULTS_CHECK_MESSAGES {
                self.wait_for_results(&stop).await?;
                unchecked_messages = 0;
            }
            let since = Instant::now();
            let incoming = match failed.take() {
                Some(error) => Err(error),
                None => tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(()),
                    incoming = self.source.next() => incoming,
                },
            };
            match incoming {
                Ok(incoming) => {
                    was_connected = true;
                    backoff.reset();
                    log_throttle.recovered();
                    let mut bytes = incoming.body.len();
                    let mut batch = vec![self.with_wait(incoming)];
                    // Messages that are there already share one write, and one fsync, with it.
                    while batch.len() < BATCH_MAX
                        && bytes < BATCH_BYTES_MAX
                        && failed.is_none()
                        && let Some(next) = self.source.next().now_or_never()
                    {
                        match next {
                            Ok(incoming) => {
                                bytes += incoming.body.len();
                                batch.push(self.with_wait(incoming));
                            }
                            Err(error) => failed = Some(error),
                        }
                    }
                    unchecked_messages += batch.len();
                    self.admission.admit(batch, |_| {}, &stop).await?;
                }
                Err(error) => {
                    if since.elapsed() > GOOD_CONNECTION_MIN {
                        backoff.reset();
                    }
                    let now = self.admission.clock.now();
                    if std::mem::take(&mut was_connected) || since.elapsed() > ATTEMPT_MAX {
                        // Connected until now, or nearly so.
                        self.unattended_since = Some(now);
                    } else {
                        self.unattended_since.get_or_insert(now);
                    }
                    let retry_in = backoff.next(rand::random());
                    if let Some(times) = log_throttle.failed() {
                        warn!(sink = %self.admission.origin, times, %error, ?retry_in, "command source failed, retrying");
                    }
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        () = tokio::time::sleep(retry_in) => {}
                    }
                }
            }
        }
    }

    /// Returns at once if the sink takes its results; otherwise when there is room again, or on `stop`.
    async fn wait_for_results(&mut self, stop: &CancellationToken) -> Result<(), StoreError> {
        let ResultBacklog { count, bytes } = RESULTS_MAX;
        if !self.admission.has_results_waiting(RESULTS_MAX).await? {
            return Ok(());
        }
        let (sink, since) = (self.admission.origin.clone(), Instant::now());
        let mut is_paused = false;
        while self.admission.has_results_waiting(ResultBacklog { count: count / 2, bytes: bytes / 2 }).await? {
            if !is_paused && since.elapsed() > RESULTS_PATIENCE {
                is_paused = true;
                self.source.pause().await;
                warn!(%sink, results_max = count, bytes_max = bytes, "results are not taken, command source paused");
                self.unattended_since.get_or_insert_with(|| self.admission.clock.now());
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(if is_paused { ROOM_INTERVAL } else { RESULTS_CHECK_INTERVAL }) => {}
            }
        }
        if is_paused {
            info!(%sink, "results are taken again, command source resumed");
        }
        Ok(())
    }

    /// Adds since when a message may have waited at the broker.
    fn with_wait(&mut self, incoming: Incoming) -> (Incoming, Option<Timestamp>) {
        if !incoming.may_have_waited {
            self.unattended_since = None;
        }
        (incoming, self.unattended_since)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::commands::Queue;
    use crate::live_state::LiveState;
    use crate::model::{CommandId, ServerName, SinkName};
    use crate::port::{Clock, CommandAddress, CommandLog as _, DeliverError};
    use crate::store::{MemoryStore, Options};

    struct HandClock(AtomicI64);

    impl Clock for HandClock {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(self.0.load(Ordering::SeqCst))
        }
    }

    /// What a source does next; each failure takes a minute of the clock.
    enum Step {
        Message { id: &'static str, may_have_waited: bool },
        Failure,
    }

    struct Script {
        steps: VecDeque<Step>,
        clock: Arc<HandClock>,
    }

    #[async_trait]
    impl CommandSource for Script {
        async fn next(&mut self) -> Result<Incoming, DeliverError> {
            match self.steps.pop_front() {
                None => std::future::pending().await,
                Some(Step::Failure) => {
                    self.clock.0.fetch_add(60_000, Ordering::SeqCst);
                    Err(DeliverError::unavailable("gone"))
                }
                Some(Step::Message { id, may_have_waited }) => Ok(Incoming {
                    address: CommandAddress {
                        server: Some("home".to_owned()),
                        hash: Some("ab".repeat(20)),
                        verb: "pause".to_owned(),
                    },
                    body: format!("{{\"id\": \"{id}\"}}").into(),
                    is_retained: false,
                    may_have_waited,
                    expires_in: None,
                    reply: None,
                    user: None,
                    ack: Box::new(|| {}),
                }),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_that_waited_out_a_broken_connection_expires_by_that_time() {
        let message = |id, may_have_waited| Step::Message { id, may_have_waited };
        for (minutes, is_done) in [(3, true), (10, false)] {
            let clock = Arc::new(HandClock(AtomicI64::new(1_000_000)));
            let mut steps = VecDeque::from([message("live", false)]);
            steps.extend((0..minutes).map(|_| Step::Failure));
            steps.push_back(message("waited", true));
            let (origin, home) = (SinkName::parse("b").unwrap(), ServerName::parse("home").unwrap());
            let store = Arc::new(MemoryStore::new(Options::default(), clock.clone()));
            let queue = Arc::new(Queue::default());
            let admission = Admission {
                origin: origin.clone(),
                allows: Box::new(|_| true),
                reply_prefixes: Vec::new(),
                queues: [(home, Arc::clone(&queue))].into(),
                bridge: Arc::default(),
                store: store.clone(),
                live: Arc::new(LiveState::new(BTreeMap::new(), [origin.clone()])),
                clock: clock.clone(),
            };
            let receiver = CommandReceiver {
                source: Box::new(Script { steps, clock: clock.clone() }),
                admission,
                unattended_since: None,
            };
            let an_hour = Duration::from_secs(3600);
            tokio::time::timeout(an_hour, receiver.run(CancellationToken::new())).await.unwrap_err();
            let results = store.unsent_results(&origin, 0, 10).await.unwrap();
            let expired = results.iter().filter(|result| {
                let text = String::from_utf8_lossy(&result.body);
                text.contains("\"waited\"") && text.contains("\"expired\"")
            });
            assert_eq!(expired.count(), usize::from(!is_done), "after {minutes} minutes");
            assert_eq!(queue.next(Timestamp::from_millis(0)).unwrap().command.id.as_str(), "live");
            queue.done(&CommandId::parse("live").unwrap());
            assert_eq!(queue.next(Timestamp::from_millis(0)).is_some(), is_done, "after {minutes} minutes");
        }
    }
}
