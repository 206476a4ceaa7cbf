//! The command source: commands from a broker, on a connection whose session the broker holds.
//!
//! Invariants:
//! - a command is acknowledged to the broker only when its receiver says that it is safe, and comes again until then;
//! - a message is passed on with everything known of it (retained, expiry, where to reply) and admitted elsewhere;
//! - topics that the broker refuses are subscribed to again and again, on the same connection: others may be granted.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::port::{CommandSource, DeliverError, Incoming, RefusedFilter, SubscriptionObserver};
use crate::sinks::broker::on_demand::OnDemand;

use super::broker::Broker;
use super::client_id::Role;
use super::demands::{Demands, Duty, Protocol};
use super::settings::Settings;
use super::topics::Qos;
use super::wire::{self, AckToken, Client, ConnectOptions, ConnectionError, ErrorKind, Event, EventLoop, Received};
use crate::sinks::home_assistant::commands as home_assistant_commands;

/// How long a broker holds commands for a bridge that is disconnected. Each has a time to live of its own.
const SESSION_EXPIRY: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Number of unacknowledged commands that the broker may send: more arrive while some are written to the log.
const RECEIVE_MAX: u16 = 512;
/// Queued commands of a resumed session arrive with pauses shorter than this …
const CATCH_UP_PAUSE: Duration = Duration::from_millis(300);
/// … and all within this. The broker does not say where they end.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum time for acknowledgements and DISCONNECT before the connection is dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// Interval at which refused topics are subscribed to again: an operator who has granted them does not want to wait longer.
const SUBSCRIBE_INTERVAL: Duration = Duration::from_secs(15);
/// Capacity of the connection's request channel, for acknowledgements and subscriptions.
const REQUESTS_MAX: usize = 1_000;

/// A broker as a source of commands.
pub struct MqttCommands {
    broker: Arc<Broker>,
    session: OnDemand<Session, ConnectionError>,
    /// Whether this run has subscribed to everything, so that a session that the broker still holds has exactly our filters.
    has_subscribed: bool,
    /// Called when other topics are refused than at the last call on this connection.
    observer: Option<(SubscriptionObserver, Option<Vec<RefusedFilter>>)>,
    /// Raised for one connection after a command arrived that was larger than we accept.
    packet_bytes_max: u32,
}

struct Session {
    acks: Arc<PendingAcks>,
    events: EventLoop,
    /// Messages that arrived before the subscriptions were answered.
    early: VecDeque<Received>,
    /// Until then, messages may have been queued by the broker while we were disconnected.
    catching_up_until: Option<Instant>,
    /// Filters that the broker refused.
    refused: Vec<RefusedFilter>,
    /// When they are subscribed to again; `None` while an answer is awaited, or without any.
    subscribe_at: Option<Instant>,
}

/// Acknowledgements that are to be written; never more than the broker has sent messages.
struct PendingAcks {
    client: Client,
    queue: Mutex<VecDeque<AckToken>>,
}

impl PendingAcks {
    fn add(&self, ack_token: AckToken) {
        self.queue().push_back(ack_token);
        self.flush();
    }

    /// Hands over as many as the channel has room for. After the end of the connection none is, and the commands come again.
    fn flush(&self) {
        // A lost one would leave its command at the broker until the next connection, so those that find the request channel
        // full wait here.
        let mut queue = self.queue();
        while queue.front().is_some_and(|ack_token| self.client.acknowledge(*ack_token).is_ok()) {
            queue.pop_front();
        }
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<AckToken>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MqttCommands {
    pub(super) fn new(broker: Arc<Broker>) -> Self {
        let packet_bytes_max = wire::PACKET_BYTES_MAX;
        Self { broker, session: OnDemand::default(), has_subscribed: false, observer: None, packet_bytes_max }
    }

    /// Returns the next command, or `None` after something else happened. Cancel-safe: all progress is in `self`.
    async fn receive(&mut self) -> Result<Option<Incoming>, ConnectionError> {
        let connect = || {
            let (broker, has_subscribed) = (Arc::clone(&self.broker), self.has_subscribed);
            let packet_bytes_max = std::mem::replace(&mut self.packet_bytes_max, wire::PACKET_BYTES_MAX);
            async move {
                if broker.namesake.is_online.load(Ordering::Relaxed) {
                    return Err(ConnectionError::other("another bridge of this instance is online there"));
                }
                let open = |demands| Session::open(&broker, demands, has_subscribed, packet_bytes_max);
                broker.attempt(Duty::Lasting, open).await
            }
            .boxed()
        };
        let session = self.session.get(connect).await?;
        self.has_subscribed = session.refused.is_empty();
        if let Some((observer, last)) = &mut self.observer
            && last.as_ref() != Some(&session.refused)
        {
            observer(&session.refused);
            *last = Some(session.refused.clone());
        }
        let Some(received) = session.receive().await? else { return Ok(None) };
        Ok(incoming(&self.broker, received, session))
    }

    fn disconnected(&mut self, error: ConnectionError) -> DeliverError {
        self.session.take();
        if let Some((_, last)) = &mut self.observer {
            *last = None;
        }
        if error.kind == ErrorKind::ReceivedTooLarge {
            // The broker would send it again for ever. Accepted once, it is acknowledged and refused with a result.
            warn!(sink = %self.broker.settings.name, reason = error.reason, "command too large, accepting it once to refuse it");
            self.packet_bytes_max = wire::PROTOCOL_BYTES_MAX;
        }
        error.into()
    }
}

#[async_trait]
impl CommandSource for MqttCommands {
    fn observe_subscriptions(&mut self, observer: SubscriptionObserver) -> bool {
        self.observer = Some((observer, None));
        true
    }

    async fn next(&mut self) -> Result<Incoming, DeliverError> {
        loop {
            match self.receive().await {
                Ok(Some(incoming)) => return Ok(incoming),
                Ok(None) => {}
                Err(error) => return Err(self.disconnected(error)),
            }
        }
    }

    /// Disconnects; the broker queues what comes for the session.
    async fn pause(&mut self) {
        if let Some(session) = self.session.take()
            && !matches!(tokio::time::timeout(CLOSE_TIMEOUT, session.close()).await, Ok(Ok(())))
        {
            debug!(sink = %self.broker.settings.name, "disconnected uncleanly: some commands may come again");
        }
    }
}

/// Makes a command of a message; `None` if it is none for this bridge.
fn incoming(broker: &Broker, received: Received, session: &Session) -> Option<Incoming> {
    let Broker { settings, topics, .. } = broker;
    let Received { topic, body, is_retained, expires_in, response_topic, correlation, user, ack_token } = received;
    let translated = settings.home_assistant.as_ref().and_then(|home_assistant| {
        let (server, control) = topics.home_assistant_command(&topic)?;
        Some(home_assistant_commands::command(home_assistant, server, control, &body))
    });
    let command = translated.or_else(|| Some((topics.addresses.command(&topic)?, body)));
    let is_served = |name: &String| settings.servers.iter().any(|server| server.as_str() == name);
    let Some((address, body)) = command.filter(|(address, _)| address.server.as_ref().is_none_or(is_served)) else {
        // The session still has a subscription of an earlier configuration. Not acknowledged, the message would come again on
        // every connection, and use up the Receive Maximum.
        debug!(sink = %settings.name, "message is not a command for this bridge");
        session.acks.add(ack_token);
        return None;
    };
    let correlation = correlation.map(|data| data.to_vec());
    let reply = topics.addresses.reply_to(&settings.name, response_topic, correlation);
    let (acks, may_have_waited) = (Arc::clone(&session.acks), session.catching_up_until.is_some());
    let ack = Box::new(move || acks.add(ack_token));
    let body_bytes = body.len();
    Some(Incoming { address, body, body_bytes, is_retained, may_have_waited, expires_in, reply, user, ack })
}

impl Session {
    /// Connects and ensures the subscriptions. Messages that arrive meanwhile are held in order.
    async fn open(
        broker: &Broker,
        demands: Demands,
        has_subscribed: bool,
        packet_bytes_max: u32,
    ) -> Result<Self, ConnectionError> {
        let protocol = demands.protocol;
        let Settings { name: sink, .. } = &broker.settings;
        let (client, mut events) = broker.open(&ConnectOptions {
            session: Some(SESSION_EXPIRY),
            has_manual_acks: true,
            packet_bytes_max,
            receive_max: Some(RECEIVE_MAX),
            ..ConnectOptions::new(&demands, broker.settings.client_id(Role::Commands), REQUESTS_MAX)
        });
        let connack = events.connected().await?;
        let (mut early, mut refused) = (VecDeque::new(), Vec::new());
        // With MQTT 3.1.1 each subscription brings the retained messages again, so there it is made only where necessary.
        // A session of an earlier run may have other filters.
        if protocol == Protocol::V5 || !connack.is_session_present || !has_subscribed {
            refused = subscribe(broker, &client, &mut events, &mut early).await?;
        }
        // The observer says what is refused.
        if refused.is_empty() {
            info!(%sink, ?protocol, resumed = connack.is_session_present, "accepting commands");
        }
        let subscribe_at = next_attempt(&refused);
        let catching_up_until = connack.is_session_present.then(|| Instant::now() + CATCH_UP_TIMEOUT);
        let acks = Arc::new(PendingAcks { client, queue: Mutex::default() });
        Ok(Self { acks, events, early, catching_up_until, refused, subscribe_at })
    }

    /// Returns the next message, or `None` after something else happened. Cancel-safe.
    async fn receive(&mut self) -> Result<Option<Received>, ConnectionError> {
        self.acks.flush();
        if let Some(received) = self.early.pop_front() {
            return Ok(Some(received));
        }
        let caught_up_at = self.catching_up_until.map(|until| until.min(Instant::now() + CATCH_UP_PAUSE));
        let event = tokio::select! {
            biased;
            event = self.events.next() => event?,
            () = at(caught_up_at) => {
                self.catching_up_until = None;
                return Ok(None);
            }
            () = at(self.subscribe_at) => {
                self.subscribe_again()?;
                return Ok(None);
            }
        };
        match event {
            Event::Received(received) => return Ok(Some(*received)),
            Event::Subscribed(answers) => {
                self.refused = refused(answers);
                self.subscribe_at = next_attempt(&self.refused);
            }
            _ => {}
        }
        Ok(None)
    }

    fn subscribe_again(&mut self) -> Result<(), ConnectionError> {
        self.subscribe_at = None;
        let filters = self.refused.iter().map(|refused| refused.filter.clone());
        self.acks.client.subscribe(filters, Qos::AtLeastOnce)
    }

    /// Disconnects behind all acknowledgements. Messages that arrive meanwhile are not acknowledged, and so come again.
    async fn close(mut self) -> Result<(), ConnectionError> {
        loop {
            self.acks.flush();
            if self.acks.queue().is_empty() && self.acks.client.disconnect().is_ok() {
                return self.events.disconnected().await;
            }
            self.events.next().await?;
        }
    }
}

/// Subscribes to the command topics, and returns those that the broker refuses.
async fn subscribe(
    broker: &Broker,
    client: &Client,
    events: &mut EventLoop,
    early: &mut VecDeque<Received>,
) -> Result<Vec<RefusedFilter>, ConnectionError> {
    let Settings { servers, home_assistant, .. } = &broker.settings;
    let mut filters = broker.topics.command_filters(servers);
    if home_assistant.is_some() {
        filters.extend(broker.topics.home_assistant_filters(servers));
    }
    let first = filters[0].clone();
    // Some brokers close the connection over a topic that is not allowed, and do not say which.
    let while_subscribing = |error: ConnectionError| {
        let error = error.once_connected();
        let reason = format!("{}, while we subscribed to commands ({first} for one)", error.reason);
        ConnectionError { reason, ..error }
    };
    // QoS 1, not 2: a command has an id, by which one that comes again is known.
    client.subscribe(filters.into_iter(), Qos::AtLeastOnce)?;
    loop {
        match events.next().await.map_err(while_subscribing)? {
            Event::Subscribed(answers) => return Ok(refused(answers)),
            Event::Received(received) if early.len() < REQUESTS_MAX => early.push_back(*received),
            Event::Received(_) => return Err(ConnectionError::other("the broker does not answer to subscriptions")),
            _ => {}
        }
    }
}

fn refused(answers: Vec<(String, Option<String>)>) -> Vec<RefusedFilter> {
    answers.into_iter().filter_map(|(filter, answer)| Some(RefusedFilter { filter, reason: answer? })).collect()
}

/// Returns when refused topics are subscribed to again.
fn next_attempt(refused: &[RefusedFilter]) -> Option<Instant> {
    (!refused.is_empty()).then(|| Instant::now() + SUBSCRIBE_INTERVAL)
}

/// Waits until then; forever without a time. Cancel-safe.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
