//! The command source: commands from a broker, on a connection whose session the broker holds.
//!
//! Invariants:
//! - a command is acknowledged to the broker only when its receiver says that it is safe, and comes again until then;
//! - a message is passed on with everything known of it (retained, expiry, where to reply) and admitted elsewhere.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::model::SinkName;
use crate::port::{CommandSource, DeliverError, Incoming};
use crate::sinks::broker::on_demand::OnDemand;

use super::broker::Broker;
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
/// Capacity of the connection's request channel, for acknowledgements and subscriptions.
const REQUESTS_MAX: usize = 1_000;

/// A broker as a source of commands.
pub struct MqttCommands {
    broker: Arc<Broker>,
    session: OnDemand<Session, ConnectionError>,
    /// Whether this run has subscribed, so that a session that the broker still holds has exactly our filters.
    has_subscribed: bool,
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
        Self { broker, session: OnDemand::default(), has_subscribed: false, packet_bytes_max }
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
        self.has_subscribed = true;
        let Some(received) = session.receive().await? else { return Ok(None) };
        Ok(incoming(&self.broker, received, session))
    }

    fn disconnected(&mut self, error: ConnectionError) -> DeliverError {
        self.session.take();
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
        let Settings { name: sink, instance, .. } = &broker.settings;
        let (client, mut events) = broker.open(&ConnectOptions {
            session: Some(SESSION_EXPIRY),
            has_manual_acks: true,
            packet_bytes_max,
            receive_max: Some(RECEIVE_MAX),
            ..ConnectOptions::new(&demands, format!("dtorrent-{instance}-{sink}-commands"), REQUESTS_MAX)
        });
        let connack = events.connected().await?;
        let mut early = VecDeque::new();
        // With MQTT 3.1.1 each subscription brings the retained messages again, so there it is made only where necessary.
        // A session of an earlier run may have other filters.
        if protocol == Protocol::V5 || !connack.is_session_present || !has_subscribed {
            subscribe(broker, &client, &mut events, &mut early).await?;
        }
        info!(%sink, ?protocol, resumed = connack.is_session_present, "accepting commands");
        let catching_up_until = connack.is_session_present.then(|| Instant::now() + CATCH_UP_TIMEOUT);
        let acks = Arc::new(PendingAcks { client, queue: Mutex::default() });
        Ok(Self { acks, events, early, catching_up_until })
    }

    /// Returns the next message, or `None` after something else happened. Cancel-safe.
    async fn receive(&mut self) -> Result<Option<Received>, ConnectionError> {
        self.acks.flush();
        if let Some(received) = self.early.pop_front() {
            return Ok(Some(received));
        }
        let event = match self.catching_up_until {
            None => self.events.next().await,
            Some(until) => {
                let pause = until.min(Instant::now() + CATCH_UP_PAUSE);
                let Ok(event) = tokio::time::timeout_at(pause, self.events.next()).await else {
                    self.catching_up_until = None;
                    return Ok(None);
                };
                event
            }
        };
        match event? {
            Event::Received(received) => Ok(Some(*received)),
            _ => Ok(None),
        }
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

async fn subscribe(
    broker: &Broker,
    client: &Client,
    events: &mut EventLoop,
    early: &mut VecDeque<Received>,
) -> Result<(), ConnectionError> {
    let Settings { name, servers, home_assistant, .. } = &broker.settings;
    let mut filters = broker.topics.command_filters(servers);
    if home_assistant.is_some() {
        filters.extend(broker.topics.home_assistant_filters(servers));
    }
    // QoS 1, not 2: a command has an id, by which one that comes again is known.
    client.subscribe(filters.into_iter(), Qos::AtLeastOnce)?;
    let answers = loop {
        match events.next().await.map_err(ConnectionError::once_connected)? {
            Event::Subscribed(answers) => break answers,
            Event::Received(received) if early.len() < REQUESTS_MAX => early.push_back(*received),
            Event::Received(_) => return Err(ConnectionError::other("the broker does not answer to subscriptions")),
            _ => {}
        }
    };
    check_subscriptions(name, answers)
}

/// Warns of refused filters.
///
/// # Errors
/// All of them are refused, so no command can arrive.
fn check_subscriptions(sink: &SinkName, answers: Vec<(String, Option<String>)>) -> Result<(), ConnectionError> {
    let count = answers.len();
    let refused: Vec<_> = answers.into_iter().filter_map(|(filter, answer)| Some((filter, answer?))).collect();
    if let [(filter, refusal), ..] = &refused[..]
        && refused.len() == count
    {
        let reason = format!("the broker does not let us subscribe to commands, {filter} for one: {refusal}");
        return Err(ConnectionError::other(reason));
    }
    for (filter, refusal) in refused {
        warn!(%sink, filter, refusal, "the broker does not let us subscribe to some commands");
    }
    Ok(())
}
