//! The dispatcher: one sink's connection, its window and its backoff.
//!
//! ```text
//! connect ──► begin link ──► fill the window, resolve what is answered, save ─┐
//!    ▲                                                                        │
//!    └──── backoff ◄── everything unacknowledged is pending again ◄── failure ┘
//! ```
//!
//! One connection is one future ([`Dispatcher::serve`]), polled together with the link's own `drive`. When the link ends
//! that future reads what has already become of its deliveries, and is dropped. Dropping it anywhere is safe: cursors move on
//! acknowledgement alone, a topic is registered before anything is sent to it, and what is in flight is pending again.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::backoff::Backoff;
use super::outboxes::Outboxes;
use super::parts::{DispatcherParts, Failure};
use super::quarantine::Quarantine;
use super::{DeliveryId, Outcome, Rejection};
use crate::log_throttle::LogThrottle;
use crate::port::{Connected, DeliverError, Link, StoreError};

/// Time between two writes of the cursors: after a crash so much may be sent twice.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two health messages.
const HEALTH_INTERVAL: Duration = Duration::from_secs(30);
/// Time between two choices of which states are retained.
const RETENTION_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum time for which a stopping process goes on delivering.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time for the outcomes of deliveries to be read after their link has ended.
const LAST_ANSWERS_TIMEOUT: Duration = Duration::from_millis(250);
/// Duration of a connection after which the backoff starts again.
const GOOD_AFTER: Duration = Duration::from_secs(1);

/// A delivery, the bytes of its body, and what became of it.
type Answer = (DeliveryId, usize, Result<(), DeliverError>);
type InFlight = FuturesUnordered<BoxFuture<'static, Answer>>;

/// Delivers to one sink. See the module.
pub struct Dispatcher {
    parts: Arc<DispatcherParts>,
    outboxes: Outboxes,
    quarantine: Quarantine,
    backoff: Backoff,
    connection_log: LogThrottle,
    scan_log: LogThrottle,
    /// Random part of a wait, in 0..1.
    jitter: Box<dyn FnMut() -> f64 + Send + Sync>,
}

impl Dispatcher {
    /// Reads how far the sink has got; see [`super::init_sink_progress`].
    ///
    /// # Errors
    /// The store cannot be used.
    pub async fn new(parts: DispatcherParts) -> Result<Self, StoreError> {
        let parts = Arc::new(parts);
        // An earlier dispatcher of this sink may have ended blocked.
        parts.buffer.report(|report| report.blocked_reason = None);
        Ok(Self {
            outboxes: Outboxes::new(&parts).await?,
            parts,
            quarantine: Quarantine::default(),
            backoff: Backoff::default(),
            connection_log: LogThrottle::default(),
            scan_log: LogThrottle::default(),
            jitter: Box::new(rand::random),
        })
    }

    /// Takes the random part of waits, in 0..1, from here: for runs that can be repeated.
    pub fn with_jitter(self, jitter: impl FnMut() -> f64 + Send + Sync + 'static) -> Self {
        Self { jitter: Box::new(jitter), ..self }
    }

    /// Delivers until `stop`, then flushes for a few seconds and closes the connection.
    ///
    /// # Errors
    /// The store cannot be used any more; a sink's failures are waited out.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), StoreError> {
        while !stop.is_cancelled() {
            let connected = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                connected = self.connect() => connected,
            };
            let ended = match connected {
                Ok(connected) => self.run_link(connected, &stop).await,
                Err(failure) => Err(failure),
            };
            match ended {
                Ok(()) => break,
                Err(Failure::Store(error)) => return Err(error),
                Err(Failure::Sink(failure)) => self.wait_after(&failure, &stop).await,
            }
        }
        self.parts.buffer.report(|report| report.is_connected = false);
        self.outboxes.save().await
    }

    /// Makes one attempt. Cancel-safe: a scan that was not finished is begun again.
    async fn connect(&mut self) -> Result<Connected, Failure> {
        let scan_error = match self.outboxes.states.topics.scan().await {
            Ok(()) => None,
            Err(Failure::Sink(error)) => Some(error),
            // What is sent before the scan is saved would be found by it, and taken for somebody else's.
            Err(Failure::Store(StoreError::Full { reason })) => return Err(DeliverError::unavailable(reason).into()),
            Err(failure) => return Err(failure),
        };
        let connected = self.parts.sink.connect().await?;
        if let Some(error) = scan_error
            && let Some(times) = self.scan_log.failed()
        {
            let sink = &self.parts.settings.name;
            warn!(%sink, times, %error, "scan for retained messages failed, retrying with the next connection");
        }
        Ok(connected)
    }

    /// Runs one connection to its end, and accounts for what was in flight. `Ok`: the process stops.
    async fn run_link(&mut self, connected: Connected, stop: &CancellationToken) -> Result<(), Failure> {
        let sink = &self.parts.settings.name;
        if let Some(failures) = self.connection_log.recovered() {
            info!(%sink, failures, "connected again");
        }
        self.parts.buffer.report(|report| {
            report.is_connected = true;
            report.failure = None;
        });
        let since = Instant::now();
        let ended = self.drive(connected, stop).await;
        let (lived, is_busy) = (since.elapsed(), self.outboxes.in_flight() > 0);
        let failure = match &ended {
            Ok(()) => None,
            Err(Failure::Sink(failure)) => Some(failure),
            Err(Failure::Store(_)) => return ended,
        };
        // Before the backoff: what was acknowledged on this link is on disk even if the process ends during the wait.
        self.outboxes.end_link(matches!(failure, Some(DeliverError::Deferred { .. }))).await?;
        if let Some(failure) = failure {
            self.note_end(failure, lived, is_busy);
        }
        ended
    }

    /// Learns from the end of a connection. A receiver that gives a reason is not one that hangs up over a message.
    fn note_end(&mut self, failure: &DeliverError, lived: Duration, is_busy: bool) {
        let was_one_at_a_time = self.quarantine.is_one_at_a_time();
        let is_unexplained = matches!(failure, DeliverError::Unavailable { gave_reason: false, .. });
        self.quarantine.ended(lived, is_busy && is_unexplained);
        if self.quarantine.is_one_at_a_time() && !was_one_at_a_time {
            let sink = &self.parts.settings.name;
            warn!(%sink, "connection breaks again and again, sending one message at a time to find the cause");
        }
        // While a poison message is searched for, each connection is a step forward.
        if lived > GOOD_AFTER || self.quarantine.has_suspect() {
            self.backoff.reset();
        }
    }

    /// Reports a failed attempt or a lost connection, and waits; changes are taken in meanwhile.
    async fn wait_after(&mut self, failure: &DeliverError, stop: &CancellationToken) {
        if stop.is_cancelled() {
            return;
        }
        let wait = self.backoff.next((self.jitter)()).max(failure.retry_after().unwrap_or_default());
        let due = self.connection_log.failed();
        // Another reason is logged at once, however long the throttle is.
        let last = self.parts.buffer.last_report().failure;
        if due.is_some() || last.is_some_and(|last| last != failure.to_string()) {
            let (sink, times) = (&self.parts.settings.name, due.unwrap_or_default());
            warn!(%sink, times, error = %failure, retry_in = ?wait, "connection failed, retrying");
        }
        self.parts.buffer.report(|report| {
            report.is_connected = false;
            report.failure = Some(failure.to_string());
        });
        let until = Instant::now() + wait;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(until) => return,
                () = self.parts.buffer.changed.notified() => {}
            }
            self.outboxes.absorb_while_disconnected();
            self.report_backlog();
        }
    }

    /// Polls the link together with what is sent on it, and reads its last answers when it has ended.
    async fn drive(&mut self, connected: Connected, stop: &CancellationToken) -> Result<(), Failure> {
        let Connected { link, mut drive } = connected;
        let mut serve = std::pin::pin!(self.serve(link, stop));
        let failure = tokio::select! {
            biased;
            failure = &mut drive => failure,
            ended = &mut serve => return ended,
        };
        // Acknowledgements that arrived with the end of the link count: otherwise all that was in flight is sent again.
        match timeout(LAST_ANSWERS_TIMEOUT, serve).await {
            Ok(ended) => ended,
            Err(_) => Err(failure.into()),
        }
    }

    /// Sends on one link until it fails; `Ok` after `stop`, when everything is delivered or the time for that is over.
    async fn serve(&mut self, mut link: Box<dyn Link>, stop: &CancellationToken) -> Result<(), Failure> {
        self.outboxes.states.begin_link().await?;
        let mut in_flight = InFlight::new();
        let (mut save, mut health, mut retention) =
            (ticks(SAVE_INTERVAL), ticks(HEALTH_INTERVAL), ticks(RETENTION_INTERVAL));
        let mut flush_until: Option<Instant> = None;
        loop {
            self.fill(link.as_mut(), &mut in_flight).await?;
            self.report_backlog();
            if let Some(until) = flush_until
                && (Instant::now() >= until || self.outboxes.is_empty())
            {
                return Ok(link.close().await?);
            }
            let has_room = in_flight.len() < self.window(link.as_ref());
            // What is rare comes first, so that a fast sink cannot keep it waiting.
            tokio::select! {
                biased;
                _ = save.tick() => self.outboxes.save().await?,
                _ = health.tick() => self.outboxes.ephemeral.health_is_due(),
                _ = retention.tick() => self.outboxes.states.choose_retained(),
                () = stop.cancelled(), if flush_until.is_none() => flush_until = Some(Instant::now() + FLUSH_TIMEOUT),
                () = tokio::time::sleep_until(flush_until.unwrap_or_else(Instant::now)), if flush_until.is_some() => {}
                () = self.parts.buffer.changed.notified() => {}
                () = self.outboxes.states.projection_due(), if has_room => {}
                () = self.parts.buffer.results.notified() => self.outboxes.results.wake(),
                Some(answer) = in_flight.next(), if !in_flight.is_empty() => {
                    self.take_answers(answer, &mut in_flight).await?;
                    self.outboxes.save_if_due().await?;
                }
            }
        }
    }

    fn window(&self, link: &dyn Link) -> usize {
        if self.quarantine.is_one_at_a_time() { 1 } else { link.limits().window }
    }

    /// Sends as much as may be in flight.
    async fn fill(&mut self, link: &mut dyn Link, in_flight: &mut InFlight) -> Result<(), StoreError> {
        loop {
            // Asked for each batch: they change as more becomes known of the receiver.
            let mut limits = link.limits();
            limits.window = self.window(link);
            let batch = self.outboxes.next(limits).await?;
            if batch.is_empty() {
                return Ok(());
            }
            for (id, delivery) in batch {
                let bytes = delivery.body_bytes();
                // Not sent, so that this connection lasts; for its outbox it is rejected like any other.
                if let Some(attempts) = self.quarantine.is_poison(&id) {
                    let reason =
                        format!("{attempts} connections in a row ended, without a reason, when it was sent alone");
                    self.resolve(id, bytes, Err(Rejection { reason: reason.into(), is_poison: true })).await?;
                    continue;
                }
                self.quarantine.sent(&id);
                let answer = link.send(delivery);
                in_flight.push(Box::pin(async move { (id, bytes, answer.await) }));
            }
        }
    }

    /// Resolves an answer and all others that are there already; an error ends the link.
    async fn take_answers(&mut self, first: Answer, in_flight: &mut InFlight) -> Result<(), Failure> {
        let mut failure = None;
        let mut next = Some(first);
        while let Some((id, bytes, result)) = next {
            match result {
                Ok(()) => self.resolve(id, bytes, Ok(())).await?,
                Err(DeliverError::Rejected { reason }) => {
                    self.resolve(id, bytes, Err(Rejection { reason, is_poison: false })).await?;
                }
                // One that failed with its link must not hide another that was acknowledged. That an event was put off
                // counts more than the failures that follow from it.
                Err(error @ DeliverError::Deferred { .. }) => failure = Some(error),
                Err(error) => drop(failure.get_or_insert(error)),
            }
            next = in_flight.next().now_or_never().flatten();
        }
        failure.map_or(Ok(()), |failure| Err(failure.into()))
    }

    async fn resolve(&mut self, id: DeliveryId, bytes: usize, outcome: Outcome) -> Result<(), StoreError> {
        // A rejection counts as an answer, too: the message no longer ends connections.
        self.quarantine.answered(&id);
        self.parts.buffer.report(|report| match &outcome {
            Ok(()) => report.delivered += 1,
            Err(_) => report.rejected += 1,
        });
        self.outboxes.resolve(id, bytes, outcome).await
    }

    fn report_backlog(&self) {
        let (events, dirty) = self.outboxes.lag();
        self.parts.buffer.report(|report| report.backlog(events, dirty));
    }
}

fn ticks(each: Duration) -> tokio::time::Interval {
    let mut ticks = interval(each);
    // A write that took long must not be followed by a burst of writes.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
