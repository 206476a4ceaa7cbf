//! The driver of a connection that publishes: writes messages and resolves them with what the server replies.
//!
//! Invariants:
//! - messages go out in the order of `send`, and each is resolved by a reply of its own: JetStream's acknowledgement, or
//!   for a message that is not stored the return of an echo that was sent behind it (I3, I5);
//! - the first failure ends the link: everything unresolved fails, and nothing is sent again here;
//! - an event that was never sent before and is acknowledged as a repetition ends the sink: another event has its id,
//!   because the data directory is older than the stream (I6).

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, Message as Received, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tracing::{error, info, warn};

use super::System;
use super::connection::{Connection, ConnectionError, ConnectionEvent};
use super::link::{NatsLink, PUBLISHES_MAX, Publish};
use super::message::{AckKind, Message};
use super::reply::{Denied, PublishReply, parse_publish_reply};
use crate::port::{DeliverError, EventOrdering};
use crate::sinks::in_flight::Resolver;

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
    ack: AckKind,
    is_stored_event: bool,
    /// Sent for the first time ever.
    is_first: bool,
    since: Instant,
}

/// Drives the connection and resolves what was sent.
pub(super) struct Driver {
    system: Arc<System>,
    connection: Connection,
    publishes: mpsc::Receiver<Publish>,
    /// Replies come to subjects below this.
    inbox: String,
    replies: Subscriber,
    /// Number of the last message that was published.
    number: u64,
    /// Written and not resolved yet, by number.
    in_flight: BTreeMap<u64, InFlight>,
    /// An echo is in flight.
    is_echo_sent: bool,
    /// The login may not publish echoes, so a flush is used in place of one.
    is_echo_denied: bool,
    /// Why the connection ends, and when at the latest.
    ending: Option<(ConnectionError, Instant)>,
}

impl Driver {
    /// Begins to publish on a connection: `online` first.
    pub(super) async fn begin(
        system: Arc<System>,
        connection: Connection,
        ordering: EventOrdering,
    ) -> Result<(NatsLink, Self), ConnectionError> {
        let client = &connection.client;
        let inbox = client.new_inbox();
        let subscribed = client.subscribe(format!("{inbox}.*")).await;
        let replies = subscribed.map_err(|error| ConnectionError::other(error.to_string()))?;
        let (sender, publishes) = mpsc::channel(PUBLISHES_MAX);
        let payload_bytes_max = client.server_info().max_payload;
        let link = NatsLink { system: Arc::clone(&system), ordering, publishes: sender, payload_bytes_max };
        let mut driver = Self {
            system,
            connection,
            publishes,
            inbox,
            replies,
            number: 0,
            in_flight: BTreeMap::new(),
            is_echo_sent: false,
            is_echo_denied: false,
            ending: None,
        };
        driver.publish_online(&link).await?;
        Ok((link, driver))
    }

    async fn publish_online(&mut self, link: &NatsLink) -> Result<(), ConnectionError> {
        let failed = |error: DeliverError| ConnectionError::other(error.to_string());
        let mut online = link.publish(Message::bridge_status(&self.system.subjects, true)).map_err(failed)?;
        while !online.is_online_answered(&self.system.settings.name).map_err(failed)? {
            self.step().await?;
        }
        Ok(())
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
            // A reply is handled before the timeout that waits for it, and before anything more is published.
            biased;
            event = self.connection.next_event() => self.on_event(event?),
            reply = self.replies.next() => match reply {
                Some(reply) => self.on_reply(&reply).await,
                None => Err(ConnectionError::other("the connection broke")),
            },
            () = tokio::time::sleep_until(deadline), if reply_due.is_some() => match &self.ending {
                Some(_) => Ok(()),
                // The server reports a deleted stream only where the subject has no other subscriber.
                None => Err(ConnectionError::other(format!(
                    "no answer within {REPLY_TIMEOUT:?}: the server is gone, or the stream"
                ))),
            },
            Some(publish) = self.publishes.recv(), if may_publish => self.publish_all(publish).await,
        }
    }

    /// Returns when a reply has to have come, if one is due.
    fn reply_due(&self) -> Option<Instant> {
        // The oldest message counts: a reply to a later one says nothing of the stream or subject of this one.
        let (_, oldest) = self.in_flight.first_key_value()?;
        Some(self.ending.as_ref().map_or(oldest.since + REPLY_TIMEOUT, |(_, until)| *until))
    }

    fn may_publish(&self) -> bool {
        self.ending.is_none() && (!self.system.history.was_denied() || self.in_flight.len() < DENIED_WINDOW)
    }

    fn on_event(&mut self, event: ConnectionEvent) -> Result<(), ConnectionError> {
        match event {
            ConnectionEvent::PermissionDenied { denied, text } => return self.on_denied(denied, text),
            ConnectionEvent::LameDuck => {
                let has_others = self.system.has_others();
                info!(sink = %self.system.settings.name, has_others, "server is about to stop (lame duck mode)");
                // Without another one the connection is used as long as it lasts: a lame duck serves until it stops.
                if has_others {
                    self.end_soon(ConnectionError::lame_duck());
                }
            }
            ConnectionEvent::SlowConsumer => {
                return Err(ConnectionError::other("answers came faster than they were read"));
            }
            ConnectionEvent::Other => {}
        }
        Ok(())
    }

    fn on_denied(&mut self, denied: Denied, reason: String) -> Result<(), ConnectionError> {
        match denied {
            // The echo itself: everything before it was read by the server, as with an echo that comes back.
            Denied::Publish(subject) if subject.starts_with(&self.inbox) => {
                warn!(
                    sink = %self.system.settings.name, reason,
                    "echoes to our own inbox are denied: what is not stored counts as delivered once it is written"
                );
                self.is_echo_denied = true;
                self.is_echo_sent = false;
                self.echoed_up_to(u64::MAX);
                Ok(())
            }
            Denied::Publish(subject) => {
                self.system.history.set_denied();
                // A denial names the subject but not the message. The server handles a connection's messages in order, so
                // it is the oldest one on that subject.
                let oldest = self.in_flight.iter().find(|(_, message)| message.subject == subject);
                if let Some(message) =
                    oldest.map(|(number, _)| *number).and_then(|number| self.in_flight.remove(&number))
                {
                    message.resolver.resolve(Err(DeliverError::Rejected { reason: reason.into() }));
                }
                Ok(())
            }
            Denied::Subscribe(_) => {
                Err(ConnectionError::refused(format!("{reason}: the login needs the right to subscribe to _INBOX.>")))
            }
        }
    }

    async fn on_reply(&mut self, reply: &Received) -> Result<(), ConnectionError> {
        let Some(token) = reply.subject.rsplit('.').next() else { return Ok(()) };
        if let Some(number) = token.strip_prefix('e') {
            self.echoed_up_to(number.parse().unwrap_or_default());
            self.is_echo_sent = false;
            return self.echo_if_due().await;
        }
        let message = token.parse().ok().and_then(|number: u64| self.in_flight.remove(&number));
        let Some(InFlight { subject, resolver, is_stored_event, is_first, .. }) = message else { return Ok(()) };
        let has_no_responder = reply.status == Some(StatusCode::NO_RESPONDERS);
        match parse_publish_reply(has_no_responder, &reply.payload) {
            // I6: the id of this event names another one in the stream, and consumers that drop repetitions would never see it.
            PublishReply::Stored { is_duplicate: true } if is_first && is_stored_event => {
                let reason = self.report_id_conflict(&subject);
                let error = ConnectionError::refused(reason);
                resolver.resolve(Err(error.clone().into()));
                return Err(error);
            }
            PublishReply::Stored { .. } => resolver.resolve(Ok(())),
            PublishReply::Refused(reason) => {
                resolver.resolve(Err(DeliverError::Rejected { reason: reason.into() }));
            }
            PublishReply::Deferred(reason) => {
                let reason = format!("{subject} is not taken: {reason}");
                let end = ConnectionError { reason: reason.clone(), retry_after: Some(DEFERRED_RETRY) };
                resolver.resolve(Err(match is_stored_event {
                    true => DeliverError::Deferred { reason: reason.into(), retry_after: Some(DEFERRED_RETRY) },
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
        if self.system.history.set_id_conflict(reason.clone()) {
            error!(sink = %self.system.settings.name, reason, "event id conflict, sink stopped");
        }
        reason
    }

    /// Sends nothing more, waits a little for the replies that are due, and ends the connection.
    fn end_soon(&mut self, error: ConnectionError) {
        self.ending.get_or_insert_with(|| (error, Instant::now() + LAST_REPLIES_TIMEOUT));
    }

    fn echoed_up_to(&mut self, number: u64) {
        let is_echoed = |message: &InFlight| message.ack == AckKind::Echo;
        let echoed =
            self.in_flight.range(..=number).filter(|(_, message)| is_echoed(message)).map(|(number, _)| *number);
        for number in echoed.collect::<Vec<_>>() {
            if let Some(message) = self.in_flight.remove(&number) {
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
        let is_first = entry.is_some_and(|(server, seq)| self.system.history.is_first(&server, seq));
        let since = Instant::now();
        let in_flight = InFlight { subject: subject.clone(), resolver, ack, is_stored_event, is_first, since };
        self.in_flight.insert(number, in_flight);
        let reply_to = (ack == AckKind::JetStream).then(|| format!("{}.{number}", self.inbox));
        self.write(subject, reply_to, headers, body).await
    }

    async fn write(
        &self,
        subject: String,
        reply_to: Option<String>,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<(), ConnectionError> {
        let client = &self.connection.client;
        within_timeout(async {
            match reply_to {
                Some(reply_to) => client.publish_with_reply_and_headers(subject, reply_to, headers, body).await,
                None => client.publish_with_headers(subject, headers, body).await,
            }
        })
        .await
    }

    /// Sends an echo behind messages that wait for one, at most one at a time.
    async fn echo_if_due(&mut self) -> Result<(), ConnectionError> {
        let is_due = self.in_flight.values().any(|message| message.ack == AckKind::Echo);
        if !is_due || self.is_echo_sent {
            return Ok(());
        }
        if self.is_echo_denied {
            // Less than an echo says: a flush means that the bytes left, and a killed server loses some of those.
            within_timeout(self.connection.client.flush()).await?;
            self.echoed_up_to(u64::MAX);
            return Ok(());
        }
        self.is_echo_sent = true;
        // NATS acknowledges no publish, but handles a connection's messages in order: the server has read everything before an
        // echo that comes back.
        self.write(format!("{}.e{}", self.inbox, self.number), None, HeaderMap::new(), Bytes::new()).await
    }

    fn fail_all(&mut self, error: &DeliverError) {
        self.publishes.close();
        let written = std::mem::take(&mut self.in_flight).into_values().map(|message| message.resolver);
        let queued = std::iter::from_fn(|| self.publishes.try_recv().ok()).map(|publish| publish.resolver);
        written.chain(queued).for_each(|resolver| resolver.resolve(Err(error.clone())));
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.fail_all(&ConnectionError::other("the connection was given up").into());
    }
}

/// Hands something to async-nats, whose channel stays full while the server reads nothing.
async fn within_timeout<E: Display>(writing: impl Future<Output = Result<(), E>>) -> Result<(), ConnectionError> {
    match timeout(REPLY_TIMEOUT, writing).await {
        Ok(written) => written.map_err(|error| ConnectionError::other(format!("the connection broke: {error}"))),
        Err(_) => Err(ConnectionError::other("the server reads nothing any more")),
    }
}
