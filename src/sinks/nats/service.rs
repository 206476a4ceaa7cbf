//! The command source: commands as requests to a micro service (ADR-32), on a connection of its own.
//!
//! The service is called `dtorrent` and replies to `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`. Its endpoints share a queue
//! group, so that each request reaches one of several bridges. The reply to a command is its result, which the sink sends
//! once the effect was seen.
//!
//! A message is passed on with everything known of it and admitted elsewhere, except that a reply to somebody else's
//! request is no command. Requests are taken in as they come, because NATS does not wait ([`intake`](super::intake)).
//!
//! A server says nothing of a subscription that it grants, and refuses one by an error on the connection. What is refused is
//! subscribed to again and again, on the same connection: others may be granted.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{Client, Message as Received, Subject, Subscriber};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use super::System;
use super::connection::{Connection, ConnectionError, ConnectionEvent};
use super::eager_subscription::EagerSubscription;
use super::intake::Intake;
use super::reply::{Denied, is_reply};
use super::stream::nanos;
use crate::model::{ServerName, TextLimit, Timestamp};
use crate::port::{Clock, CommandSource, DeliverError, Incoming, RefusedFilter, SubscriptionObserver};
use crate::sinks::broker::address::CommandPattern;
use crate::sinks::broker::on_demand::OnDemand;

const NAME: &str = "dtorrent";
/// The queue group, shared by all bridges; ADR-32's default.
const QUEUE_GROUP: &str = "q";
/// Capacity of each subscription, which is emptied at each message.
const REQUESTS_MAX: usize = 16;
/// Minimum time between two warnings about dropped requests.
const DROPPED_LOG_INTERVAL: Duration = Duration::from_secs(10);
/// The header for the sender's name, for the log; on MQTT a user property.
const USER_HEADER: &str = "user";

/// Time after which a refusal is here, unless the server is far away: it is taken for granted until then.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(500);
/// Interval at which refused subjects are subscribed to again.
const SUBSCRIBE_INTERVAL: Duration = Duration::from_secs(15);

/// A NATS system as a source of commands.
pub struct NatsCommands {
    service: Arc<Service>,
    session: OnDemand<Session, ConnectionError>,
    /// Called when other subjects are refused than at the last call on this connection.
    observer: Option<(SubscriptionObserver, Option<Vec<RefusedFilter>>)>,
}

/// The service, whatever connection it has now.
struct Service {
    system: Arc<System>,
    started: Timestamp,
    endpoints: Vec<CommandPattern>,
    intake: Intake,
    /// The last warning about dropped requests.
    dropped_logged_at: Mutex<Option<Instant>>,
}

struct Session {
    connection: Connection,
    /// One for each of the service's endpoints.
    requests: Vec<Arc<EagerSubscription<Subscriber>>>,
    _monitoring: Vec<Arc<EagerSubscription<Subscriber>>>,
    refused: Vec<RefusedFilter>,
    next_step: NextStep,
}

/// Next step for subscriptions that may be refused.
#[derive(Clone, Copy)]
enum NextStep {
    /// Report what is refused, which is known by then.
    Report(Instant),
    /// Subscribe again to what is refused.
    Subscribe(Instant),
    Nothing,
}

impl NextStep {
    async fn due(self) {
        match self {
            Self::Report(at) | Self::Subscribe(at) => sleep_until(at).await,
            Self::Nothing => std::future::pending().await,
        }
    }
}

impl NatsCommands {
    pub(super) fn new(system: Arc<System>, takes_commands: bool, incoming_bytes_max: usize, clock: &dyn Clock) -> Self {
        let settings = &system.settings;
        let endpoints = match takes_commands {
            true => system.subjects.addresses.command_patterns(&settings.servers),
            false => Vec::new(),
        };
        let (started, intake) = (clock.now(), Intake::new(incoming_bytes_max));
        let service = Service { system, started, endpoints, intake, dropped_logged_at: Mutex::default() };
        Self { service: Arc::new(service), session: OnDemand::default(), observer: None }
    }

    /// Returns the next request, or `None` after something else happened. Cancel-safe: all progress is in `self`.
    async fn receive(&mut self) -> Result<Option<Incoming>, ConnectionError> {
        let service = Arc::clone(&self.service);
        let Service { system, intake, .. } = &*service;
        // One that came before the last connection ended.
        if let Some(request) = intake.pop() {
            return Ok(Some(request));
        }
        let connect = || Session::open(Arc::clone(&service)).boxed();
        let session = self.session.get(connect).await?;
        let event = tokio::select! {
            biased;
            event = session.connection.next_event() => event?,
            () = session.next_step.due() => {
                session.take_step(&service).await?;
                self.report_refused();
                return Ok(None);
            }
            request = intake.next() => return Ok(Some(request)),
        };
        match event {
            ConnectionEvent::LameDuck if system.has_others() => return Err(ConnectionError::lame_duck()),
            ConnectionEvent::PermissionDenied { denied: Denied::Subscribe(subject), .. }
                if service.endpoints.iter().any(|endpoint| endpoint.pattern == subject) =>
            {
                session.note_refused(subject);
            }
            ConnectionEvent::PermissionDenied { text, .. } => {
                warn!(sink = %system.settings.name, reason = text, "some requests cannot be received or replied to");
            }
            ConnectionEvent::SlowConsumer => service.warn_of_dropped(),
            ConnectionEvent::LameDuck | ConnectionEvent::Other => {}
        }
        Ok(None)
    }

    fn report_refused(&mut self) {
        if let Some(session) = self.session.current()
            && matches!(session.next_step, NextStep::Subscribe(_) | NextStep::Nothing)
            && let Some((observer, last)) = &mut self.observer
            && last.as_ref() != Some(&session.refused)
        {
            observer(&session.refused);
            *last = Some(session.refused.clone());
        }
    }

    fn disconnect(&mut self) {
        self.session.take();
        if let Some((_, last)) = &mut self.observer {
            *last = None;
        }
    }
}

#[async_trait]
impl CommandSource for NatsCommands {
    fn observe_subscriptions(&mut self, observer: SubscriptionObserver) -> bool {
        // Without endpoints there is nothing to be subscribed to.
        let has_endpoints = !self.service.endpoints.is_empty();
        self.observer = has_endpoints.then_some((observer, None));
        has_endpoints
    }

    async fn next(&mut self) -> Result<Incoming, DeliverError> {
        loop {
            match self.receive().await {
                Ok(Some(request)) => return Ok(request),
                Ok(None) => {}
                Err(error) => {
                    self.disconnect();
                    return Err(error.into());
                }
            }
        }
    }

    /// Disconnects, so that requesters get "no responders" at once. What came before waits here.
    async fn pause(&mut self) {
        self.disconnect();
        self.service.intake.mark_waited();
    }
}

impl Service {
    /// Queues a request, if it is one for this bridge.
    fn take_in(&self, endpoint: &CommandPattern, received: Received) {
        let System { settings, subjects, stats, .. } = &*self.system;
        let Received { subject, reply, payload, headers, status, .. } = received;
        let Some(address) = subjects.addresses.command(&subject) else { return };
        let user = headers.as_ref().and_then(|headers| headers.get(USER_HEADER));
        let user = user.map(|user| TextLimit::Word.cut(user.as_str()).into_owned());
        let text_bytes = subject.len() + reply.as_ref().map_or(0, |reply| reply.len());
        let Some(memory) = self.intake.take_memory(payload.len(), text_bytes) else { return self.warn_of_dropped() };
        let (body, ack) = memory.copy(&payload);
        let mut names = headers.iter().flat_map(|headers| headers.iter()).map(|(name, _)| name.as_ref());
        if is_reply(status.is_some(), &mut names, reply.as_deref(), &body) {
            warn!(sink = %settings.name, %subject, "reply of another service on a command subject, ignored");
            return;
        }
        // With the endpoint it came by: the sink replies on another connection, perhaps after a restart, and counts the reply.
        let request_id = Some(stats.count_request(&endpoint.name));
        let reply = subjects.addresses.reply_to(&settings.name, reply.map(|reply| reply.to_string()), request_id);
        self.intake.push(Incoming {
            address,
            body,
            body_bytes: payload.len(),
            is_retained: false,
            may_have_waited: false,
            expires_in: None,
            reply,
            user,
            // NATS stores no request: one that is lost before it is in the command log is not replied to either.
            ack,
        });
    }

    fn warn_of_dropped(&self) {
        let mut logged_at = self.dropped_logged_at.lock().unwrap_or_else(PoisonError::into_inner);
        if logged_at.is_none_or(|at| at.elapsed() > DROPPED_LOG_INTERVAL) {
            *logged_at = Some(Instant::now());
            let sink = &self.system.settings.name;
            warn!(%sink, "requests come faster than they are taken, some are lost without an answer");
        }
    }

    /// Replies to a request about the service itself.
    fn reply_to_monitoring(&self, client: &Client, request: Received) {
        let is_right = |reply: &Subject| self.system.subjects.addresses.check_reply(reply).is_ok();
        let verb = request.subject.split('.').nth(1).unwrap_or_default();
        if let (Some(reply), Some(body)) = (request.reply.filter(is_right), self.monitoring(verb)) {
            // At once or not at all, which is while the server reads nothing.
            if !matches!(client.publish(reply, Bytes::from(body.to_string())).now_or_never(), Some(Ok(()))) {
                debug!("monitoring reply not sent");
            }
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
}

impl Session {
    async fn open(service: Arc<Service>) -> Result<Self, ConnectionError> {
        let Service { system, endpoints, .. } = &*service;
        let connection = system.connect("commands", REQUESTS_MAX).await?;
        let client = &connection.client;
        let (id, mut requests, mut monitoring) = (&system.stats.service_id, Vec::new(), Vec::new());
        for endpoint in endpoints {
            requests.push(subscribe(&service, client, endpoint).await?);
        }
        for verb in ["PING", "INFO", "STATS"] {
            for subject in [format!("$SRV.{verb}"), format!("$SRV.{verb}.{NAME}"), format!("$SRV.{verb}.{NAME}.{id}")] {
                let subscriber = client.subscribe(subject).await.map_err(cannot_subscribe)?;
                let (service, client) = (Arc::clone(&service), client.clone());
                let reply = move |request| service.reply_to_monitoring(&client, request);
                monitoring.push(EagerSubscription::begin(subscriber, reply));
            }
        }
        // Until the server has read the subscriptions, a requester would get "no responders" from a service that says it is up.
        flush(client).await?;
        info!(sink = %system.settings.name, endpoints = endpoints.len(), "accepting commands");
        let next_step = NextStep::Report(Instant::now() + REFUSAL_TIMEOUT);
        Ok(Self { connection, requests, _monitoring: monitoring, refused: Vec::new(), next_step })
    }

    fn note_refused(&mut self, filter: String) {
        let reason = "the login has no right to subscribe to it".to_owned();
        self.refused.retain(|refused| refused.filter != filter);
        self.refused.push(RefusedFilter { filter, reason });
        self.refused.sort_by(|one, other| one.filter.cmp(&other.filter));
        // A right may also be taken away, from a subscription that was granted.
        if !matches!(self.next_step, NextStep::Report(_)) {
            self.next_step = NextStep::Report(Instant::now() + REFUSAL_TIMEOUT);
        }
    }

    /// Cancel-safe: what was not done to its end is done again.
    async fn take_step(&mut self, service: &Arc<Service>) -> Result<(), ConnectionError> {
        if let NextStep::Subscribe(_) = self.next_step {
            for (endpoint, requests) in service.endpoints.iter().zip(&mut self.requests) {
                if self.refused.iter().any(|refused| refused.filter == endpoint.pattern) {
                    *requests = subscribe(service, &self.connection.client, endpoint).await?;
                }
            }
            flush(&self.connection.client).await?;
            self.refused.clear();
            self.next_step = NextStep::Report(Instant::now() + REFUSAL_TIMEOUT);
        } else if self.refused.is_empty() {
            self.next_step = NextStep::Nothing;
        } else {
            self.next_step = NextStep::Subscribe(Instant::now() + SUBSCRIBE_INTERVAL);
        }
        Ok(())
    }
}

/// Begins to take in the requests of an endpoint.
async fn subscribe(
    service: &Arc<Service>,
    client: &Client,
    endpoint: &CommandPattern,
) -> Result<Arc<EagerSubscription<Subscriber>>, ConnectionError> {
    // A queue group, so that each request reaches one of several bridges with the same servers.
    let subscriber = client.queue_subscribe(endpoint.pattern.clone(), QUEUE_GROUP.to_owned()).await;
    let (service, endpoint) = (Arc::clone(service), endpoint.clone());
    let take_in = move |request| service.take_in(&endpoint, request);
    Ok(EagerSubscription::begin(subscriber.map_err(cannot_subscribe)?, take_in))
}

fn cannot_subscribe(error: async_nats::SubscribeError) -> ConnectionError {
    ConnectionError::other(format!("cannot subscribe: {error}"))
}

/// Waits until the server has read what was sent.
async fn flush(client: &Client) -> Result<(), ConnectionError> {
    client.flush().await.map_err(|error| ConnectionError::other(error.to_string()))
}
