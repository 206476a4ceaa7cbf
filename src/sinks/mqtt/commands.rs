//! Commands from a broker, on a connection whose session the broker keeps.
//!
//! What must hold: a command is acknowledged to the broker only when the caller says that it is safe,
//! and comes again until then; what comes is passed on with all that is known of it (kept, expiring,
//! where to answer) and judged by nobody here.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::model::SinkName;
use crate::port::{CommandAddress, CommandSource, DeliverError, Incoming, ReplyTo};

use super::homeassistant;
use super::settings::Settings;
use super::topics::Qos;
use super::wire::{self, Client, End, Ended, Event, EventLoop, Opening, Protocol, Receipt, Received};
use super::{Broker, TlsError};

/// How long a broker keeps commands for a bridge that is away. They have a time to live of their own.
const SESSION_KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// How many unacknowledged commands the broker may send: while some are written down, the next ones come.
const RECEIVE_MAX: u16 = 512;
/// What waited at the broker comes without a pause longer than this, and all of it within that.
const CAUGHT_UP_AFTER: Duration = Duration::from_millis(300);
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(10);
/// How long a goodbye may take.
const LEAVE_WITHIN: Duration = Duration::from_secs(3);
/// Acknowledgements and subscriptions that wait to be written.
const CHANNEL: usize = 1_000;

/// A broker as a source of commands.
pub struct MqttCommands {
    broker: Arc<Broker>,
    state: State,
    /// This run has subscribed, so a session that is still there holds exactly our filters.
    has_subscribed: bool,
    /// Larger for one connection after something came that was larger than we take.
    packet_bytes_max: u32,
}

enum State {
    Away,
    /// Kept here, so that a caller who stops waiting does not stop the attempt.
    Connecting(BoxFuture<'static, Result<Session, Ended>>),
    Connected(Session),
}

struct Session {
    receipts: Arc<Receipts>,
    events: EventLoop,
    /// What came before the subscriptions were answered.
    early: VecDeque<Received>,
    /// Until then the broker may hand out what waited for us. It does not say where that ends: a pause does.
    catching_up_until: Option<Instant>,
}

/// Acknowledgements on their way. One that was lost would leave its command at the broker, to come again with the
/// next connection; so what finds no room waits, and there is never more of it than the broker has sent.
struct Receipts {
    client: Client,
    owed: Mutex<VecDeque<Receipt>>,
}

impl Receipts {
    fn add(&self, receipt: Receipt) {
        self.owed().push_back(receipt);
        self.hand_over();
    }

    /// As many as there is room for now. The connection may be over: then the commands come again.
    fn hand_over(&self) {
        let mut owed = self.owed();
        while owed.front().is_some_and(|receipt| self.client.acknowledge(*receipt).is_ok()) {
            owed.pop_front();
        }
    }

    fn owed(&self) -> MutexGuard<'_, VecDeque<Receipt>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MqttCommands {
    /// # Errors
    /// The certificates or the key cannot be used. Nothing is reached yet.
    pub fn new(settings: Settings) -> Result<Self, TlsError> {
        Ok(Self::of(Arc::new(Broker::new(settings)?)))
    }

    pub(super) fn of(broker: Arc<Broker>) -> Self {
        Self { broker, state: State::Away, has_subscribed: false, packet_bytes_max: wire::PACKET_BYTES_MAX }
    }

    /// Moves on by one step. Cancel-safe: all that lasts is in `self`.
    async fn step(&mut self) -> Result<Option<Received>, Ended> {
        match &mut self.state {
            State::Away if self.broker.has_namesake.load(Ordering::Relaxed) => {
                Err(Ended::new(End::Other, "another bridge of this instance is online there"))
            }
            State::Away => {
                let (broker, has_subscribed) = (self.broker.clone(), self.has_subscribed);
                let packet_bytes_max = std::mem::replace(&mut self.packet_bytes_max, wire::PACKET_BYTES_MAX);
                self.state = State::Connecting(Box::pin(async move {
                    broker.attempt(|protocol| handshake(&broker, protocol, has_subscribed, packet_bytes_max)).await
                }));
                Ok(None)
            }
            State::Connecting(connecting) => {
                let session = connecting.await?;
                self.has_subscribed = true;
                self.state = State::Connected(session);
                Ok(None)
            }
            State::Connected(session) => {
                session.receipts.hand_over();
                if let Some(received) = session.early.pop_front() {
                    return Ok(Some(received));
                }
                let event = match session.catching_up_until {
                    None => session.events.next().await,
                    Some(until) => {
                        let pause = until.min(Instant::now() + CAUGHT_UP_AFTER);
                        let Ok(event) = tokio::time::timeout_at(pause, session.events.next()).await else {
                            session.catching_up_until = None;
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
        }
    }

    fn ended(&mut self, ended: Ended) -> DeliverError {
        self.state = State::Away;
        if ended.kind == End::ReceivedTooLarge {
            // It would come again for ever. Taken whole once, it is refused with an answer by those who judge.
            warn!(sink = %self.broker.settings.name, reason = ended.reason, "a command is too large: taking it once to refuse it");
            self.packet_bytes_max = wire::PROTOCOL_BYTES_MAX;
        }
        ended.into()
    }

    /// Makes a message a command; `None` if it is none of ours.
    fn incoming(&self, received: Received, session: &Session) -> Option<Incoming> {
        let Session { receipts, catching_up_until, .. } = session;
        let may_have_waited = catching_up_until.is_some();
        let Received { topic, body, is_retained, expires_in, response_topic, correlation, user, receipt } = received;
        let translated = self.broker.settings.home_assistant.as_ref().and_then(|settings| {
            let (server, what) = self.broker.topics.home_assistant_command(&topic)?;
            Some(homeassistant::commands::command(settings, server, what, &body))
        });
        let command = translated.or_else(|| Some((self.broker.topics.command(&topic)?, body)));
        let Some((address, body)) = command.filter(|(address, _)| self.is_for_us(address)) else {
            // A subscription of an earlier configuration, which the broker still keeps.
            debug!(sink = %self.broker.settings.name, "a message that is no command for this bridge");
            receipts.add(receipt);
            return None;
        };
        let reply = response_topic.and_then(|topic| match self.broker.topics.check_reply(&topic) {
            Ok(()) => Some(ReplyTo { topic, correlation: correlation.map(|data| data.to_vec()) }),
            Err(error) => {
                info!(sink = %self.broker.settings.name, %error, "not answering on the response topic of a command");
                None
            }
        });
        let receipts = Arc::clone(receipts);
        let ack = Box::new(move || receipts.add(receipt));
        Some(Incoming { address, body, is_retained, may_have_waited, expires_in, reply, user, ack })
    }

    fn is_for_us(&self, address: &CommandAddress) -> bool {
        let servers = &self.broker.settings.servers;
        address.server.as_deref().is_none_or(|name| servers.iter().any(|server| server.as_str() == name))
    }
}

#[async_trait]
impl CommandSource for MqttCommands {
    async fn next(&mut self) -> Result<Incoming, DeliverError> {
        loop {
            let received = match self.step().await {
                Ok(received) => received,
                Err(ended) => return Err(self.ended(ended)),
            };
            if let (Some(received), State::Connected(session)) = (received, &self.state)
                && let Some(incoming) = self.incoming(received, session)
            {
                return Ok(incoming);
            }
        }
    }

    /// Leaves: the broker keeps what comes for the session.
    async fn pause(&mut self) {
        if let State::Connected(session) = std::mem::replace(&mut self.state, State::Away)
            && !matches!(tokio::time::timeout(LEAVE_WITHIN, session.leave()).await, Ok(Ok(())))
        {
            debug!(sink = %self.broker.settings.name, "left without a goodbye: some commands may come again");
        }
    }
}

impl Session {
    /// Says goodbye behind all acknowledgements. What comes meanwhile is not acknowledged, and so comes again.
    async fn leave(mut self) -> Result<(), Ended> {
        loop {
            self.receipts.hand_over();
            if self.receipts.owed().is_empty() && self.receipts.client.disconnect().is_ok() {
                break;
            }
            self.events.next().await?;
        }
        while !matches!(self.events.next().await?, Event::Left) {}
        Ok(())
    }
}

/// Connects and makes sure of the subscriptions. What comes meanwhile is kept in order.
async fn handshake(
    broker: &Broker,
    protocol: Protocol,
    has_subscribed: bool,
    packet_bytes_max: u32,
) -> Result<Session, Ended> {
    let sink = &broker.settings.name;
    let (client, mut events) = broker.open(&Opening {
        protocol,
        client_id: format!("dtorrent-{}-{}-commands", broker.settings.instance, broker.settings.name),
        session: Some(SESSION_KEPT),
        will: None,
        packet_bytes_max,
        channel: CHANNEL,
        receive_max: Some(RECEIVE_MAX),
    });
    let granted = events.connected().await?;
    let mut early = VecDeque::new();
    // MQTT 3.1.1 sends what is kept again with each subscription, so there only when it is needed. A session
    // of an earlier run may hold other filters.
    if protocol == Protocol::V5 || !granted.is_session_present || !has_subscribed {
        let mut filters = broker.topics.subscriptions(&broker.settings.servers);
        if broker.settings.home_assistant.is_some() {
            filters.extend(broker.topics.home_assistant_subscriptions(&broker.settings.servers));
        }
        client.subscribe(filters.iter().cloned(), Qos::AtLeastOnce).map_err(|_| Ended::new(End::Other, "given up"))?;
        let answers = loop {
            match events.next().await.map_err(Ended::once_connected)? {
                Event::Subscribed(answers) => break answers,
                Event::Received(received) if early.len() < CHANNEL => early.push_back(*received),
                Event::Received(_) => {
                    return Err(Ended::new(End::Other, "the broker does not answer to subscriptions"));
                }
                _ => {}
            }
        };
        check_subscriptions(sink, &filters, answers)?;
    }
    info!(%sink, ?protocol, resumed = granted.is_session_present, "taking commands");
    let catching_up_until = granted.is_session_present.then(|| Instant::now() + CAUGHT_UP_WITHIN);
    let receipts = Arc::new(Receipts { client, owed: Mutex::default() });
    Ok(Session { receipts, events, early, catching_up_until })
}

/// Some filters may be forbidden; without any there is nothing to wait for.
fn check_subscriptions(sink: &SinkName, filters: &[String], answers: Vec<Option<String>>) -> Result<(), Ended> {
    let refused: Vec<_> = filters.iter().zip(answers).filter_map(|(filter, answer)| Some((filter, answer?))).collect();
    if let [(filter, refusal), ..] = &refused[..]
        && refused.len() == filters.len()
    {
        let reason = format!("the broker does not let us subscribe to commands, {filter} for one: {refusal}");
        return Err(Ended::new(End::Other, reason));
    }
    for (filter, refusal) in refused {
        warn!(%sink, filter, refusal, "the broker does not let us subscribe to some commands");
    }
    Ok(())
}
