//! The command source: commands as requests to a micro service (ADR-32), on a connection of its own.
//!
//! The service is called `dtorrent` and replies to `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`. Its endpoints share a queue
//! group, so that each request reaches one of several bridges. The reply to a command is its result, which the sink sends
//! once the effect was seen.
//!
//! A message is passed on with everything known of it and admitted elsewhere, except that a reply to somebody else's
//! request is no command.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message as Received, Subscriber};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{BoxStream, SelectAll, select_all};
use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::System;
use super::connection::{Connection, ConnectionError, ConnectionEvent};
use super::reply::is_reply;
use super::stream::nanos;
use crate::model::{ServerName, Timestamp};
use crate::port::{Clock, CommandSource, DeliverError, Incoming};
use crate::sinks::broker::address::CommandPattern;
use crate::sinks::broker::on_demand::OnDemand;

const NAME: &str = "dtorrent";
/// The queue group, shared by all bridges; ADR-32's default.
const QUEUE_GROUP: &str = "q";
/// Maximum number of requests that wait per endpoint; NATS drops what exceeds it.
const REQUESTS_MAX: usize = 256;
/// Minimum time between two warnings about dropped requests.
const DROPPED_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// The header for the sender's name, for the log; on MQTT a user property.
const USER_HEADER: &str = "user";

/// The subscription that a message came by: an endpoint, by its index, or the monitoring of the service.
#[derive(Clone, Copy)]
enum Subscription {
    Endpoint(usize),
    Monitoring,
}

/// A NATS system as a source of commands.
pub struct NatsCommands {
    system: Arc<System>,
    session: OnDemand<Session, ConnectionError>,
    started: Timestamp,
    endpoints: Vec<CommandPattern>,
    /// The last warning about dropped requests.
    dropped_logged_at: Option<Instant>,
}

struct Session {
    connection: Connection,
    messages: SelectAll<BoxStream<'static, (Subscription, Received)>>,
    /// Monitoring replies that are still to be written.
    monitoring_replies: VecDeque<(String, Value)>,
    /// Why the session ends, once what was received before has been handed over.
    ending: Option<ConnectionError>,
}

impl NatsCommands {
    pub(super) fn new(system: Arc<System>, takes_commands: bool, clock: &dyn Clock) -> Self {
        let settings = &system.settings;
        let endpoints = match takes_commands {
            true => system.subjects.addresses.command_patterns(&settings.servers),
            false => Vec::new(),
        };
        let started = clock.now();
        Self { system, session: OnDemand::default(), started, endpoints, dropped_logged_at: None }
    }

    /// Returns the next message, or `None` after something else happened. Cancel-safe: all progress is in `self`.
    async fn receive(&mut self) -> Result<Option<(Subscription, Received)>, ConnectionError> {
        let connect = || {
            let (system, endpoints) = (Arc::clone(&self.system), self.endpoints.clone());
            async move { Session::open(&system, &endpoints).await }.boxed()
        };
        let session = self.session.get(connect).await?;
        session.write_monitoring_replies().await;
        if let Some(error) = &session.ending {
            let rest = session.messages.next().now_or_never().flatten();
            return rest.map_or_else(|| Err(error.clone()), |message| Ok(Some(message)));
        }
        let event = tokio::select! {
            // An error that explains the end of the connection is read before the end of the subscriptions that it causes.
            biased;
            event = session.connection.next_event() => event,
            message = session.messages.next() => {
                return message.map(Some).ok_or_else(|| ConnectionError::other("the connection broke"));
            }
        };
        let sink = &self.system.settings.name;
        match event {
            Err(error) => session.ending = Some(error),
            Ok(ConnectionEvent::LameDuck) if self.system.has_others() => {
                session.ending = Some(ConnectionError::lame_duck());
            }
            Ok(ConnectionEvent::PermissionDenied { text, .. }) => {
                warn!(%sink, reason = text, "some requests cannot be received or replied to");
            }
            Ok(ConnectionEvent::SlowConsumer) => {
                if self.dropped_logged_at.is_none_or(|at| at.elapsed() > DROPPED_LOG_INTERVAL) {
                    self.dropped_logged_at = Some(Instant::now());
                    warn!(%sink, "requests come faster than they are taken, some are lost without an answer");
                }
            }
            Ok(ConnectionEvent::LameDuck | ConnectionEvent::Other) => {}
        }
        Ok(None)
    }

    /// Replies to a request about the service itself.
    fn reply_to_monitoring(&mut self, request: &Received) {
        let check_reply = |reply: &str| self.system.subjects.addresses.check_reply(reply);
        let Some(reply) = request.reply.as_ref().filter(|reply| check_reply(reply).is_ok()) else { return };
        let verb = request.subject.split('.').nth(1).unwrap_or_default();
        if let (Some(body), Some(session)) = (self.monitoring(verb), self.session.current()) {
            session.monitoring_replies.push_back((reply.to_string(), body));
        }
    }

    fn monitoring(&self, verb: &str) -> Option<Value> {
        let settings = &self.system.settings;
        let servers: Vec<&str> = settings.servers.iter().map(ServerName::as_str).collect();
        let mut body = json!({
            "name": NAME,
            "id": self.system.stats.service_id,
            "version": env!("CARGO_PKG_VERSION"),
            "metadata": {
                "instance": settings.instance,
                "prefix": settings.prefix.as_str(),
                "servers": servers.join(","),
            },
        });
        let kind = verb.to_lowercase();
        body["type"] = json!(format!("io.nats.micro.v1.{kind}_response"));
        match verb {
            "PING" => {}
            "INFO" => {
                body["description"] = json!("torrents: commands, answered when their effect was seen");
                let info = |endpoint: &CommandPattern| {
                    json!({
                        "name": endpoint.name, "subject": endpoint.pattern, "queue_group": QUEUE_GROUP,
                        "metadata": {"request": "a command's body, JSON", "response": "dtorrent.result/1"},
                    })
                };
                body["endpoints"] = self.endpoints.iter().map(info).collect();
            }
            "STATS" => {
                body["started"] = json!(self.started);
                let stats = |endpoint: &CommandPattern| {
                    let stats = self.system.stats.of(&endpoint.name);
                    json!({
                        "name": endpoint.name, "subject": endpoint.pattern, "queue_group": QUEUE_GROUP,
                        "num_requests": stats.requests, "num_errors": stats.errors, "last_error": stats.last_error,
                        "processing_time": nanos(stats.processing), "average_processing_time": nanos(stats.average()),
                    })
                };
                body["endpoints"] = self.endpoints.iter().map(stats).collect();
            }
            _ => return None,
        }
        Some(body)
    }

    /// Makes a command of a message; `None` if it is none for this bridge.
    fn incoming(&self, endpoint: usize, received: Received) -> Option<Incoming> {
        let System { settings, subjects, stats, .. } = &*self.system;
        let Received { subject, reply, payload, headers, status, .. } = received;
        let mut names = headers.iter().flat_map(|headers| headers.iter()).map(|(name, _)| name.as_ref());
        if is_reply(status.is_some(), &mut names, reply.as_deref(), &payload) {
            warn!(sink = %settings.name, %subject, "reply of another service on a command subject, ignored");
            return None;
        }
        let user = headers.as_ref().and_then(|headers| headers.get(USER_HEADER)).map(|user| user.as_str().to_owned());
        // With the endpoint it came by: the sink replies on another connection, perhaps after a restart, and counts the reply.
        let request_id = self.endpoints.get(endpoint).map(|endpoint| stats.count_request(&endpoint.name));
        let address = subjects.addresses.command(&subject)?;
        let reply = subjects.addresses.reply_to(&settings.name, reply.map(|reply| reply.to_string()), request_id);
        Some(Incoming {
            address,
            body: payload,
            is_retained: false,
            may_have_waited: false,
            expires_in: None,
            reply,
            user,
            // NATS stores no request: one that is lost before it is in the command log is not replied to either.
            ack: Box::new(|| {}),
        })
    }
}

#[async_trait]
impl CommandSource for NatsCommands {
    async fn next(&mut self) -> Result<Incoming, DeliverError> {
        loop {
            match self.receive().await {
                Ok(Some((Subscription::Endpoint(endpoint), received))) => {
                    if let Some(incoming) = self.incoming(endpoint, received) {
                        return Ok(incoming);
                    }
                }
                Ok(Some((Subscription::Monitoring, request))) => self.reply_to_monitoring(&request),
                Ok(None) => {}
                Err(error) => {
                    self.session.take();
                    return Err(error.into());
                }
            }
        }
    }

    /// Disconnects, so that requesters get "no responders" at once. NATS stores no request, so none could be taken later.
    async fn pause(&mut self) {
        self.session.take();
    }
}

impl Session {
    async fn open(system: &System, endpoints: &[CommandPattern]) -> Result<Self, ConnectionError> {
        let connection = system.connect("commands", REQUESTS_MAX).await?;
        let client = &connection.client;
        let failed = |error: async_nats::SubscribeError| ConnectionError::other(format!("cannot subscribe: {error}"));
        let tagged = |subscription: Subscription, subscriber: Subscriber| {
            subscriber.map(move |received| (subscription, received)).boxed()
        };
        let (id, mut subscribers) = (&system.stats.service_id, Vec::new());
        // A queue group, so that each request reaches one of several bridges with the same servers.
        for (index, CommandPattern { pattern, .. }) in endpoints.iter().enumerate() {
            let subscriber = client.queue_subscribe(pattern.clone(), QUEUE_GROUP.to_owned()).await.map_err(failed)?;
            subscribers.push(tagged(Subscription::Endpoint(index), subscriber));
        }
        for verb in ["PING", "INFO", "STATS"] {
            for subject in [format!("$SRV.{verb}"), format!("$SRV.{verb}.{NAME}"), format!("$SRV.{verb}.{NAME}.{id}")] {
                subscribers.push(tagged(Subscription::Monitoring, client.subscribe(subject).await.map_err(failed)?));
            }
        }
        // Until the server has read the subscriptions, a requester would get "no responders" from a service that says it is up.
        client.flush().await.map_err(|error| ConnectionError::other(error.to_string()))?;
        info!(sink = %system.settings.name, endpoints = endpoints.len(), "accepting commands");
        let messages = select_all(subscribers);
        Ok(Self { connection, messages, monitoring_replies: VecDeque::new(), ending: None })
    }

    async fn write_monitoring_replies(&mut self) {
        while let Some((reply, body)) = self.monitoring_replies.pop_front() {
            if let Err(error) = self.connection.client.publish(reply, Bytes::from(body.to_string())).await {
                debug!(%error, "monitoring reply not sent");
            }
        }
    }
}
