//! The receiver: takes the messages of one command source to admission.
//!
//! The receiver connects again when the source fails, and stops taking commands while their results are not taken.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::admission::{Admission, BATCH_MAX, ROOM_INTERVAL, Received};
use super::reception::ReceptionReporter;
use crate::model::Timestamp;
use crate::outbox::backoff::Backoff;
use crate::port::{CommandSource, DeliverError, Incoming, ResultBacklog, StoreError};

/// A connection that lasted so long was a good one: the next attempt comes soon.
const GOOD_CONNECTION_MIN: Duration = Duration::from_secs(1);
/// No attempt to connect takes so long: what fails after that was connected before.
const ATTEMPT_MAX: Duration = Duration::from_secs(15);
/// A batch of so many bytes is complete, whatever the memory.
const BATCH_BYTES_MAX: usize = 16 << 20;

/// With so many results of a sink unsent, or so many bytes, no more of its commands are taken until half of them are
/// gone. Commands that are queued by then are executed and have their results, too.
const RESULTS_MAX: ResultBacklog = ResultBacklog { count: 1_000, bytes: 64 << 20 };
/// Messages taken between two reads of that backlog.
const RESULTS_CHECK_MESSAGES: usize = 250;
/// Time that its sink has to take half of the results before the source is paused.
const RESULTS_PATIENCE: Duration = Duration::from_secs(10);

/// Takes the messages of one source to admission.
pub struct CommandReceiver {
    /// Where the messages come from.
    pub source: Box<dyn CommandSource>,
    /// The checks that they have to pass.
    pub admission: Admission,
    /// Memory for messages that are not admitted yet: a batch takes no more once it has so many bytes.
    pub batch_bytes_max: usize,
    /// Earliest time since which no command was taken from the source; `None` if it is not known to have been unattended.
    pub unattended_since: Option<Timestamp>,
}

impl CommandReceiver {
    /// Takes commands until `stop`.
    ///
    /// # Errors
    /// Only a store that cannot be used any more.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), StoreError> {
        let mut backoff = Backoff::default();
        let reception = self.reception_reporter();
        // Checked before the first message, too: the results of an earlier run may not be taken yet.
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
                None => match stop.run_until_cancelled(self.source.next()).await {
                    Some(incoming) => incoming,
                    None => return Ok(()),
                },
            };
            match incoming {
                Ok(incoming) => {
                    was_connected = true;
                    backoff.reset();
                    reception.received();
                    let (batch, error) = self.batch(incoming);
                    // After the batch, whose messages came before it.
                    failed = error;
                    unchecked_messages += batch.len();
                    // Repeated or not, a result goes to the broker by way of the log.
                    self.admission.admit(batch, |_, _| {}, &stop).await?;
                }
                Err(error) => {
                    // A source without commands yields nothing for hours; what ends then was a good connection.
                    if since.elapsed() > GOOD_CONNECTION_MIN {
                        backoff.reset();
                    }
                    let now = self.admission.common.clock.now();
                    if std::mem::take(&mut was_connected) || since.elapsed() > ATTEMPT_MAX {
                        // Connected until now, or nearly so.
                        self.unattended_since = Some(now);
                    } else {
                        self.unattended_since.get_or_insert(now);
                    }
                    let retry_in = backoff.next(rand::random());
                    if let Some(times) = reception.failed(&error) {
                        warn!(sink = %self.admission.origin, times, %error, ?retry_in, "command source failed, retrying");
                    }
                    if stop.run_until_cancelled(tokio::time::sleep(retry_in)).await.is_none() {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn reception_reporter(&mut self) -> ReceptionReporter {
        let Admission { origin, common, .. } = &self.admission;
        let buffer = common.live.buffer(origin).expect("the live state has a buffer for each sink");
        ReceptionReporter::of(&mut *self.source, origin.clone(), Arc::clone(buffer))
    }

    /// Returns a message with those that are there already, which share one write, and one fsync; and how the source failed
    /// behind them.
    fn batch(&mut self, first: Incoming) -> (Vec<Received>, Option<DeliverError>) {
        let mut bytes = first.body.len();
        let mut batch = vec![self.with_wait(first)];
        while batch.len() < BATCH_MAX
            && bytes < BATCH_BYTES_MAX.min(self.batch_bytes_max)
            // Cancel-safe, so a message that is not there yet is not lost with the future.
            && let Some(next) = self.source.next().now_or_never()
        {
            match next {
                Ok(incoming) => {
                    bytes += incoming.body.len();
                    batch.push(self.with_wait(incoming));
                }
                Err(error) => return (batch, Some(error)),
            }
        }
        (batch, None)
    }

    /// Returns at once if the sink takes its results; otherwise when there is room again, or on `stop`.
    async fn wait_for_results(&mut self, stop: &CancellationToken) -> Result<(), StoreError> {
        let ResultBacklog { count, bytes } = RESULTS_MAX;
        if !self.admission.has_results_waiting(RESULTS_MAX).await? {
            return Ok(());
        }
        // Until half of them are gone: with one limit alone the source would be paused and resumed at each result.
        let (live, sink, since) =
            (Arc::clone(&self.admission.common.live), self.admission.origin.clone(), Instant::now());
        let buffer = live.buffer(&sink).expect("the live state has a buffer for each sink");
        let mut is_paused = false;
        while self.admission.has_results_waiting(ResultBacklog { count: count / 2, bytes: bytes / 2 }).await? {
            if !is_paused && since.elapsed() > RESULTS_PATIENCE {
                is_paused = true;
                // The broker queues what comes meanwhile. Not sooner: to leave it at each flood would stop everything that
                // comes from there.
                self.source.pause().await;
                warn!(%sink, results_max = count, bytes_max = bytes, "results are not taken, command source paused");
                self.unattended_since.get_or_insert_with(|| self.admission.common.clock.now());
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = buffer.results_sent.notified() => {}
                // Results also leave the log by their age, without a notification.
                () = tokio::time::sleep(ROOM_INTERVAL) => {}
            }
        }
        if is_paused {
            info!(%sink, "results are taken again, command source resumed");
        }
        Ok(())
    }

    /// Adds since when a message may have waited at the broker.
    fn with_wait(&mut self, incoming: Incoming) -> Received {
        // The queue of a broker is in order: behind a message that did not wait, none waited for the earlier absence.
        if !incoming.may_have_waited {
            self.unattended_since = None;
        }
        Received { incoming, unattended_since: self.unattended_since, waiter: None }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};
    use std::sync::atomic::{AtomicI64, Ordering};

    use async_trait::async_trait;
    use bytes::Bytes;

    use super::*;
    use crate::commands::{Common, Queue};
    use crate::live_state::LiveState;
    use crate::model::{CommandId, OutcomeStatus, ServerName, SinkName};
    use crate::port::{BODY_BYTES_MAX, Clock, CommandAddress, CommandLog as _, LoggedCommand, LoggedResult};
    use crate::store::{MemoryStore, Options};

    struct HandClock(AtomicI64);

    impl Clock for HandClock {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(self.0.load(Ordering::SeqCst))
        }
    }

    /// The next step of a source; each failure takes a minute of the clock.
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
                Some(Step::Message { id, may_have_waited }) => {
                    let body = format!("{{\"id\": \"{id}\"}}");
                    Ok(Incoming { may_have_waited, ..incoming(body.clone(), body.len()) })
                }
            }
        }
    }

    fn incoming(body: impl Into<Bytes>, body_bytes: usize) -> Incoming {
        Incoming {
            address: CommandAddress {
                server: Some("home".to_owned()),
                hash: Some("ab".repeat(20)),
                verb: "pause".to_owned(),
            },
            body: body.into(),
            body_bytes,
            is_retained: false,
            may_have_waited: false,
            expires_in: None,
            reply: None,
            user: None,
            ack: Box::new(|| {}),
        }
    }

    /// A receiver for the sink `b`, and what it works with.
    struct Setup {
        receiver: CommandReceiver,
        clock: Arc<HandClock>,
        store: Arc<MemoryStore>,
        queue: Arc<Queue>,
    }

    fn origin() -> SinkName {
        SinkName::parse("b").unwrap()
    }

    fn setup(steps: impl IntoIterator<Item = Step>) -> Setup {
        let clock = Arc::new(HandClock(AtomicI64::new(1_000_000)));
        let store = Arc::new(MemoryStore::new(Options::default(), clock.clone()));
        let queue = Arc::new(Queue::default());
        let admission = Admission {
            origin: origin(),
            allows: Box::new(|_| true),
            reply_prefixes: Vec::new(),
            queues: [(ServerName::parse("home").unwrap(), Arc::clone(&queue))].into(),
            bridge: Arc::default(),
            common: Common {
                store: store.clone(),
                live: Arc::new(LiveState::new(BTreeMap::new(), [origin()])),
                clock: clock.clone(),
            },
        };
        let source = Box::new(Script { steps: steps.into_iter().collect(), clock: clock.clone() });
        let receiver = CommandReceiver { source, admission, batch_bytes_max: usize::MAX, unattended_since: None };
        Setup { receiver, clock, store, queue }
    }

    #[tokio::test(start_paused = true)]
    async fn commands_are_taken_at_once_when_half_of_the_results_are_sent() {
        let Setup { receiver, clock, store, queue } = setup([Step::Message { id: "new", may_have_waited: false }]);
        for n in 0..RESULTS_MAX.count {
            let command = LoggedCommand {
                id: CommandId::parse(&n.to_string()).unwrap(),
                server: None,
                origin: origin(),
                hash: None,
                verb: None,
                body: Vec::new().into(),
                digest: None,
                received_at: clock.now(),
                expires_at: clock.now(),
                reply: None,
                sees_secrets: false,
                is_started: false,
                begun: Vec::new(),
                is_answered: false,
                crashes: 0,
            };
            let result = LoggedResult { status: OutcomeStatus::Ok, body: b"{}"[..].into() };
            store.record_commands(vec![(command, Some(result))]).await.unwrap();
        }
        let live = Arc::clone(&receiver.admission.common.live);
        let stop = CancellationToken::new();
        let mut run = std::pin::pin!(receiver.run(stop.clone()));
        assert!(tokio::time::timeout(Duration::from_millis(10), &mut run).await.is_err());
        let is_taken = || queue.next(clock.now()).is_some();
        assert!(!is_taken(), "the results have to go first");
        let half = usize::try_from(RESULTS_MAX.count / 2).unwrap();
        let results = store.unsent_results(&origin(), 0, u16::MAX).await.unwrap();
        store.mark_results_sent(results[..=half].iter().map(|result| result.number).collect()).await.unwrap();
        live.buffer(&origin()).unwrap().results_sent.notify_one();
        assert!(tokio::time::timeout(Duration::from_millis(10), &mut run).await.is_err());
        assert!(is_taken(), "woken, not after the next interval");
        stop.cancel();
        run.await.unwrap();
    }

    #[tokio::test]
    async fn a_command_whose_body_was_cut_is_refused_under_its_id_which_stays_free() {
        let Setup { receiver, clock, store, queue } = setup([]);
        let received = |incoming| Received { incoming, unattended_since: None, waiter: None };
        let cut = incoming(&br#"{"id": "cut", "hashes": ["ab"#[..], BODY_BYTES_MAX);
        let large = incoming(&br#"{"id": "large", "hashes": ["ab"#[..], BODY_BYTES_MAX + 1);
        let whole = incoming(&br#"{"id": "cut"}"#[..], 13);
        let batch = [cut, large, whole].map(received).into();
        receiver.admission.admit(batch, |_, _| {}, &CancellationToken::new()).await.unwrap();
        let results = store.unsent_results(&origin(), 0, 10).await.unwrap();
        let results = results.iter().map(|result| serde_json::from_slice::<serde_json::Value>(&result.body).unwrap());
        let codes: Vec<_> = results.map(|result| (result["id"].clone(), result["error"]["code"].clone())).collect();
        assert_eq!(codes, [("cut".into(), "client_offline".into()), ("large".into(), "too_large".into())]);
        assert_eq!(queue.next(clock.now()).unwrap().command.id.as_str(), "cut");
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_that_waited_out_a_broken_connection_expires_by_that_time() {
        let message = |id, may_have_waited| Step::Message { id, may_have_waited };
        for (minutes, is_done) in [(3, true), (10, false)] {
            let failures = (0..minutes).map(|_| Step::Failure);
            let steps = [message("live", false)].into_iter().chain(failures).chain([message("waited", true)]);
            let Setup { receiver, store, queue, .. } = setup(steps);
            let an_hour = Duration::from_secs(3600);
            tokio::time::timeout(an_hour, receiver.run(CancellationToken::new())).await.unwrap_err();
            let results = store.unsent_results(&origin(), 0, 10).await.unwrap();
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
