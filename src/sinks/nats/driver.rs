//! The driver of a connection that publishes: writes messages and resolves them with what the server replies.
//!
//! Invariants:
//! - messages go out in the order of `send`, and each is resolved by a reply of its own: JetStream's acknowledgement, or
//!   for a message that nobody stores the return of an echo that was sent behind it (I3, I5);
//! - the first failure ends the link: everything unresolved fails, and nothing is sent again here;
//! - an event that was never sent before and is acknowledged as a repetition ends the sink: another event has its id,
//!   because the data directory is older than the stream (I6).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use async_nats::{HeaderMap, Message as Received, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tracing::{error, info, warn};

use super::connection::{Connection, ConnectionError, ConnectionEvent};
use super::link::{NatsLink, PUBLISHES_MAX, Publish, PublishOptions, unavailable};
use super::message::{AckKind, Message};
use super::reply::{Denied, PublishReply, parse_publish_reply};
use crate::port::DeliverError;
use crate::sinks::broker::in_flight::Resolver;

/// Capacity of the subscription for replies.
pub(super) const REPLIES_MAX: usize = 2 * PUBLISHES_MAX;
/// Maximum number of messages in flight once a publish was denied: a denial comes as a connection event, of which
/// async-nats buffers 128 and drops the rest.
const DENIED_WINDOW: usize = 100;
/// Maximum time for the oldest reply that is due, and for a write; then the connection counts as dead.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long outstanding replies are waited for after the connection has to end.
const LAST_REPLIES_TIMEOUT: Duration = Duration::from_secs(1);
/// Delay after a stream had no room or no leader.
const DEFERRED_RETRY: Duration = Duration::from_secs(1);

/// A message that was written and is not resolved yet.
struct InFlight {
    subject: String,
    resolver: Resolver,
    is_stored_event: bool,
    /// Sent for the first time ever.
    is_first: bool,
    since: Instant,
}

/// Drives the connection and resolves what was sent.
pub(super) struct Driver {
    options: PublishOptions,
    connection: Connection,
    publishes: mpsc::Receiver<Publish>,
    /// Replies come to subjects below this.
    inbox: String,
    replies: Subscriber,
    /// Number of the last message that was published.
    number: u64,
    /// Waiting for JetStream, by number.
    awaiting_ack: BTreeMap<u64, InFlight>,
    /// Waiting for an echo from behind them, by number.
    awaiting_echo: VecDeque<(u64, InFlight)>,
    /// An echo is in flight.
    is_echo_sent: bool,
    /// The login may not publish echoes, so a flush stands for one.
    is_echo_denied: bool,
    /// Why the connection ends, and when at the latest.
    ending: Option<(ConnectionError, Instant)>,
}

impl Driver {
    /// Takes over a connection: `online` is published on it first.
    pub(super) async fn begin(
        options: PublishOptions,
        connection: Connection,
    ) -> Result<(NatsLink, Self), ConnectionError> {
        let client = connection.client.clone();
        let inbox = client.new_inbox();
        let subscribed = client.subscribe(format!("{inbox}.*")).await;
        let replies = subscribed.map_err(|error| ConnectionError::other(error.to_string()))?;
        let (sender, publishes) = mpsc::channel(PUBLISHES_MAX);
        let payload_bytes_max = client.server_info().max_payload;
        let link = NatsLink { options: options.clone(), publishes: sender, payload_bytes_max };
        let mut driver = Self {
            options,
            connection,
            publishes,
            inbox,
            replies,
            number: 0,
            awaiting_ack: BTreeMap::new(),
            awaiting_echo: VecDeque::new(),
            is_echo_sent: false,
            is_echo_denied: false,
            ending: None,
        };
        driver.publish_online(&link).await?;
        Ok((link, driver))
    }

    async fn publish_online(&mut self, link: &NatsLink) -> Result<(), ConnectionError> {
        let failed = |error: DeliverError| ConnectionError::other(error.to_string());
        let online = Message::bridge_status(&self.options.subjects, true);
        let mut acknowledgement = link.publish(online).map_err(failed)?;
        loop {
            match acknowledgement.try_wait() {
                Some(Ok(())) => return Ok(()),
                Some(Err(error)) if error.is_rejected() => {
                    warn!(sink = %self.options.sink, %error, "status `online` refused");
                    return Ok(());
                }
                Some(Err(error)) => return Err(failed(error)),
                None => self.step().await?,
            }
        }
    }

    /// Runs until the connection is over, and returns the reason.
    pub(super) async fn run(mut self) -> DeliverError {
        loop {
            if let Err(error) = self.step().await {
                let error = DeliverError::from(error);
                self.fail_all(&error);
                return error;
            }
        }
    }

    async fn step(&mut self) -> Result<(), ConnectionError> {
        let reply_due = self.reply_due();
        if let Some((error, until)) = &self.ending
            && (reply_due.is_none() || Instant::now() >= *until)
        {
            return Err(error.clone());
        }
        let deadline = reply_due.unwrap_or_else(Instant::now);
        let may_publish = self.may_publish();
        tokio::select! {
            biased;
            event = self.connection.next_event() => self.on_event(event?),
            reply = self.replies.next() => match reply {
                Some(reply) => self.on_reply(&reply).await,
                None => Err(ConnectionError::other("the connection broke")),
            },
            () = tokio::time::sleep_until(deadline), if reply_due.is_some() => match &self.ending {
                Some(_) => Ok(()),
                // The server reports a deleted stream only where nobody else subscribes to the subject.
                None => Err(ConnectionError::other(format!(
                    "no answer within {REPLY_TIMEOUT:?}: the server is gone, or the stream"
                ))),
            },
            Some(publish) = self.publishes.recv(), if may_publish => self.publish_all(publish).await,
        }
    }

    /// Returns when a reply has to have come, if one is due. The oldest message counts: a reply to a later one says
    /// nothing of the stream or subject of this one.
    fn reply_due(&self) -> Option<Instant> {
        let oldest = [self.awaiting_ack.values().next(), self.awaiting_echo.front().map(|(_, message)| message)];
        let since = oldest.into_iter().flatten().map(|message| message.since).min()?;
        Some(self.ending.as_ref().map_or(since + REPLY_TIMEOUT, |(_, until)| *until))
    }

    fn may_publish(&self) -> bool {
        let has_room = || self.awaiting_ack.len() + self.awaiting_echo.len() < DENIED_WINDOW;
        self.ending.is_none() && (!self.options.history.was_denied() || has_room())
    }

    fn on_event(&mut self, event: ConnectionEvent) -> Result<(), ConnectionError> {
        match event {
            ConnectionEvent::PermissionDenied { denied, text } => return self.on_denied(denied, text),
            ConnectionEvent::LameDuck if self.options.has_others => {
                info!(sink = %self.options.sink, "server is about to stop (lame duck mode), changing to another one");
                self.end_soon(ConnectionError::other("the server was about to stop (lame duck mode)"));
            }
            ConnectionEvent::LameDuck => {
                info!(sink = %self.options.sink, "server is about to stop (lame duck mode), no other is known");
            }
            ConnectionEvent::SlowConsumer => {
                return Err(ConnectionError::other("answers came faster than they were read"));
            }
            ConnectionEvent::Other => {}
        }
        Ok(())
    }

    /// A denial names the subject but not the message: the oldest one on that subject is meant, since the server
    /// handles a connection's messages in order.
    fn on_denied(&mut self, denied: Denied, reason: String) -> Result<(), ConnectionError> {
        match denied {
            Denied::Publish(subject) if subject.starts_with(&self.inbox) => {
                warn!(
                    sink = %self.options.sink, reason,
                    "echoes to our own inbox are denied: what is not stored counts as delivered once it is written"
                );
                self.is_echo_denied = true;
                self.is_echo_sent = false;
                self.echoed_up_to(u64::MAX);
                Ok(())
            }
            Denied::Publish(subject) => {
                self.options.history.set_denied();
                if let Some(message) = self.take_oldest(&subject) {
                    message.resolver.resolve(Err(DeliverError::Rejected { reason }));
                }
                Ok(())
            }
            Denied::Subscribe(_) => {
                Err(ConnectionError::refused(format!("{reason}: the login needs the right to subscribe to _INBOX.>")))
            }
        }
    }

    fn take_oldest(&mut self, subject: &str) -> Option<InFlight> {
        let number =
            self.awaiting_ack.iter().find(|(_, message)| message.subject == subject).map(|(number, _)| *number);
        if let Some(number) = number {
            return self.awaiting_ack.remove(&number);
        }
        let at = self.awaiting_echo.iter().position(|(_, message)| message.subject == subject)?;
        self.awaiting_echo.remove(at).map(|(_, message)| message)
    }

    async fn on_reply(&mut self, reply: &Received) -> Result<(), ConnectionError> {
        let Some(token) = reply.subject.rsplit('.').next() else { return Ok(()) };
        if let Some(number) = token.strip_prefix('e') {
            self.echoed_up_to(number.parse().unwrap_or_default());
            self.is_echo_sent = false;
            return self.echo_if_due().await;
        }
        let message = token.parse().ok().and_then(|number: u64| self.awaiting_ack.remove(&number));
        let Some(InFlight { subject, resolver, is_stored_event, is_first, .. }) = message else { return Ok(()) };
        let has_no_responder = reply.status == Some(StatusCode::NO_RESPONDERS);
        match parse_publish_reply(has_no_responder, &reply.payload) {
            PublishReply::Stored { is_duplicate: true } if is_first && is_stored_event => {
                let reason = self.report_id_conflict(&subject);
                resolver.resolve(Err(unavailable(reason.clone())));
                return Err(ConnectionError::refused(reason));
            }
            PublishReply::Stored { .. } => resolver.resolve(Ok(())),
            PublishReply::Refused(reason) => resolver.resolve(Err(DeliverError::Rejected { reason })),
            PublishReply::Deferred(reason) => {
                let reason = format!("{subject} is not taken: {reason}");
                let end = ConnectionError { reason: reason.clone(), retry_after: Some(DEFERRED_RETRY) };
                resolver.resolve(Err(match is_stored_event {
                    true => DeliverError::Deferred { reason, retry_after: Some(DEFERRED_RETRY) },
                    false => end.clone().into(),
                }));
                self.end_soon(end);
            }
        }
        Ok(())
    }

    fn report_id_conflict(&self, subject: &str) -> String {
        let reason = format!(
            "the stream has an event with the id of a new one ({subject}): the data directory is older than the stream, as \
             after a restored backup, or two tables of the config send to one stream. Nothing more is sent here. \
             For a new history stop the bridge, move the state file out of the data folder, and start it again"
        );
        if self.options.history.set_id_conflict(reason.clone()) {
            error!(sink = %self.options.sink, reason, "event id conflict, sink stopped");
        }
        reason
    }

    /// Sends nothing more, waits a little for the replies that are due, and ends the connection.
    fn end_soon(&mut self, error: ConnectionError) {
        self.ending.get_or_insert_with(|| (error, Instant::now() + LAST_REPLIES_TIMEOUT));
    }

    fn echoed_up_to(&mut self, number: u64) {
        while self.awaiting_echo.front().is_some_and(|(of, _)| *of <= number) {
            if let Some((_, message)) = self.awaiting_echo.pop_front() {
                message.resolver.resolve(Ok(()));
            }
        }
    }

    /// Publishes a message and all that are queued behind it, so that one echo serves many.
    async fn publish_all(&mut self, first: Publish) -> Result<(), ConnectionError> {
        let mut next = Some(first);
        while let Some(publish) = next {
            self.publish(publish).await?;
            next = if self.may_publish() { self.publishes.try_recv().ok() } else { None };
        }
        self.echo_if_due().await
    }

    async fn publish(&mut self, Publish { message, resolver }: Publish) -> Result<(), ConnectionError> {
        let Message { subject, headers, body, ack, entry } = message;
        self.number += 1;
        let number = self.number;
        let is_stored_event = entry.is_some() && ack == AckKind::JetStream;
        let is_first = entry.is_some_and(|(server, seq)| self.options.history.is_first(&server, seq));
        let in_flight =
            InFlight { subject: subject.clone(), resolver, is_stored_event, is_first, since: Instant::now() };
        let reply_to = match ack {
            AckKind::JetStream => {
                self.awaiting_ack.insert(number, in_flight);
                Some(format!("{}.{number}", self.inbox))
            }
            AckKind::Echo => {
                self.awaiting_echo.push_back((number, in_flight));
                None
            }
        };
        self.write(subject, reply_to, headers, body).await
    }

    async fn write(
        &mut self,
        subject: String,
        reply_to: Option<String>,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<(), ConnectionError> {
        let client = &self.connection.client;
        let writing = async {
            match (reply_to, headers.is_empty()) {
                (Some(reply_to), _) => client.publish_with_reply_and_headers(subject, reply_to, headers, body).await,
                (None, false) => client.publish_with_headers(subject, headers, body).await,
                (None, true) => client.publish(subject, body).await,
            }
        };
        match timeout(REPLY_TIMEOUT, writing).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(ConnectionError::other(format!("the connection broke: {error}"))),
            Err(_) => Err(ConnectionError::other("the server reads nothing any more")),
        }
    }

    /// Sends an echo behind messages that wait for one. NATS acknowledges no publish, but handles a connection's
    /// messages in order, so the server has read everything before an echo that comes back. One is in flight at most.
    async fn echo_if_due(&mut self) -> Result<(), ConnectionError> {
        if self.awaiting_echo.is_empty() || self.is_echo_sent {
            return Ok(());
        }
        if self.is_echo_denied {
            let flushed = timeout(REPLY_TIMEOUT, self.connection.client.flush()).await;
            flushed
                .map_err(|_| ConnectionError::other("the server reads nothing any more"))?
                .map_err(|error| ConnectionError::other(error.to_string()))?;
            self.echoed_up_to(u64::MAX);
            return Ok(());
        }
        self.is_echo_sent = true;
        self.write(format!("{}.e{}", self.inbox, self.number), None, HeaderMap::new(), Bytes::new()).await
    }

    fn fail_all(&mut self, error: &DeliverError) {
        self.publishes.close();
        let awaiting_ack = std::mem::take(&mut self.awaiting_ack).into_values();
        let awaiting_echo = self.awaiting_echo.drain(..).map(|(_, message)| message);
        let written = awaiting_ack.chain(awaiting_echo).map(|message| message.resolver);
        let queued = std::iter::from_fn(|| self.publishes.try_recv().ok()).map(|publish| publish.resolver);
        written.chain(queued).for_each(|resolver| resolver.resolve(Err(error.clone())));
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.fail_all(&unavailable("the connection was given up"));
    }
}
