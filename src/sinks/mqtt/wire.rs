//! MQTT 5 and MQTT 3.1.1 in one shape: rumqttc has separate types for them, the rest of this folder has not.
//!
//! One [`Client`] and one [`EventLoop`] are one TCP connection. After the first error neither is
//! used again: rumqttc would connect anew by itself, and drop what was under way without a word.
//!
//! Handing over to a [`Client`] never waits. [`EventLoop::next`] is cancel-safe.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rumqttc::v5::mqttbytes::v5 as packet5;
use rumqttc::v5::{self, mqttbytes::QoS as Qos5};
use rumqttc::{self as v4, QoS as Qos4, TlsConfiguration};
use rustls::ClientConfig;
use secrecy::ExposeSecret;

use crate::port::DeliverError;

use super::message::{Message, OFFLINE};
use super::settings::{Settings, Transport};
use super::topics::{Qos, Route};

/// The largest packet that is sent, and the largest that is taken.
pub const PACKET_BYTES_MAX: u32 = 16 * 1024 * 1024;
/// What MQTT itself can say as the size of a packet.
pub const PROTOCOL_BYTES_MAX: u32 = 268_435_455;
/// After this long without a word both sides ask whether the other is there.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// A poll that lasts this much longer than the keep-alive is stuck in a write that nobody reads.
const STALLED_AFTER: Duration = Duration::from_secs(15);
/// How many publishes rumqttc may have under way. Far above what we let be, so that packet ids go round
/// slowly and one that is acknowledged late does not meet its successor.
const PACKET_IDS: u16 = 1_000;
/// How long a broker is given to get over a quota.
const QUOTA_RETRY: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    V311,
    V5,
}

/// How one connection is to be.
pub struct Opening {
    pub protocol: Protocol,
    pub client_id: String,
    /// The broker keeps subscriptions and what comes for them while we are away, this long.
    pub session: Option<Duration>,
    /// Where `offline` is said in our place, and how, when the connection breaks.
    pub will: Option<Route>,
    pub packet_bytes_max: u32,
    /// How many requests may wait to be written.
    pub channel: usize,
    /// How many unacknowledged messages the broker may send; MQTT 3.1.1 cannot say so.
    pub receive_max: Option<u16>,
}

/// What the broker granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    pub is_session_present: bool,
    pub receive_max: u16,
    pub packet_bytes_max: u32,
    pub can_retain: bool,
    pub can_acknowledge: bool,
    /// It has a word for "not now", after which it may take the next message.
    pub can_put_off: bool,
}

/// Why a connection could not be made, or is over.
#[derive(Debug)]
pub struct Ended {
    pub kind: End,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The broker said that it does not speak this version.
    VersionRefused,
    /// The broker acknowledges no messages, and so refuses a last will that is to be acknowledged.
    NoAcknowledging,
    /// The broker keeps no retained messages, and so refuses a last will that is to be kept.
    NoRetaining,
    /// The other side closed the connection without a word.
    Closed,
    /// The broker took offence at the size of something we sent.
    SentTooLarge,
    /// Something came that is larger than we take.
    ReceivedTooLarge,
    /// A quota of the broker is used up.
    Quota,
    /// The broker put a message off (a PUBACK with a reason that says "not now"), and may have taken a later one.
    Deferred,
    Other,
}

impl Ended {
    pub fn new(kind: End, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into() }
    }

    /// A broker that hangs up after it has let us in does not do so over the version.
    pub fn once_connected(self) -> Self {
        let kind = if self.kind == End::Closed { End::Other } else { self.kind };
        Self { kind, ..self }
    }
}

impl From<Ended> for DeliverError {
    fn from(ended: Ended) -> Self {
        let Ended { kind, reason } = ended;
        match kind {
            End::Deferred => Self::Deferred { reason, retry_after: Some(QUOTA_RETRY) },
            End::Quota => Self::Unavailable { reason, retry_after: Some(QUOTA_RETRY), gave_reason: true },
            _ => Self::unavailable(reason),
        }
    }
}

/// What the broker answered to a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Taken,
    Refused(&'static str),
    NotNow(&'static str),
}

/// What happened on a connection.
#[derive(Debug)]
pub enum Event {
    Connected(Granted),
    /// The next publish handed over was written; its packet id, 0 for QoS 0.
    Written(u16),
    Acknowledged(u16, Answer),
    /// The answer to each filter of a subscription: `None`, or why not.
    Subscribed(Vec<Option<String>>),
    Received(Box<Received>),
    /// Our DISCONNECT was written.
    Left,
    Other,
}

/// A message from the broker.
#[derive(Debug)]
pub struct Received {
    pub topic: String,
    pub body: Bytes,
    pub is_retained: bool,
    pub expires_in: Option<Duration>,
    pub response_topic: Option<String>,
    pub correlation: Option<Bytes>,
    /// The user property `user`.
    pub user: Option<String>,
    pub receipt: Receipt,
}

/// What an acknowledgement needs: the packet id, 0 for what wants none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt(u16);

#[cfg(test)]
impl Receipt {
    pub const NONE: Self = Self(0);
}

/// The channel to the event loop is full, or the event loop is gone.
#[derive(Debug)]
pub struct NotHandedOver;

#[derive(Clone)]
pub enum Client {
    V311(v4::AsyncClient),
    V5(v5::AsyncClient),
}

pub enum EventLoop {
    V311(Box<v4::EventLoop>),
    V5(Box<v5::EventLoop>),
}

/// Prepares a connection; the first [`EventLoop::next`] makes it.
pub fn open(settings: &Settings, tls: Option<&Arc<ClientConfig>>, opening: &Opening) -> (Client, EventLoop) {
    match opening.protocol {
        Protocol::V311 => {
            let (client, mut events) = v4::AsyncClient::new(options_311(settings, tls, opening), opening.channel);
            let mut network = events.network_options();
            network.set_tcp_nodelay(true);
            // The deadline of the whole attempt is the caller's; this one also bounds each write.
            network.set_connection_timeout(STALLED_AFTER.as_secs());
            events.set_network_options(network);
            (Client::V311(client), EventLoop::V311(Box::new(events)))
        }
        Protocol::V5 => {
            let (client, events) = v5::AsyncClient::new(options_5(settings, tls, opening), opening.channel);
            (Client::V5(client), EventLoop::V5(Box::new(events)))
        }
    }
}

/// rumqttc wants the whole URL as "address" for WebSockets, and the bare host otherwise.
fn address(settings: &Settings) -> String {
    match settings.url.transport {
        Transport::Tcp | Transport::Tls => settings.url.endpoint.host.clone(),
        Transport::WebSocket | Transport::SecureWebSocket => settings.url.to_string(),
    }
}

fn transport(settings: &Settings, tls: Option<&Arc<ClientConfig>>) -> v4::Transport {
    let secured = || TlsConfiguration::Rustls(tls.expect("made for every encrypted transport").clone());
    match settings.url.transport {
        Transport::Tcp => v4::Transport::tcp(),
        Transport::Tls => v4::Transport::tls_with_config(secured()),
        Transport::WebSocket => v4::Transport::ws(),
        Transport::SecureWebSocket => v4::Transport::wss_with_config(secured()),
    }
}

/// A password without a user name is sent with an empty one, which MQTT 3.1.1 demands.
fn credentials(settings: &Settings) -> Option<(String, String)> {
    let password = settings.password.as_ref().map(|password| password.expose_secret().to_owned());
    match (&settings.username, password) {
        (None, None) => None,
        (username, password) => Some((username.clone().unwrap_or_default(), password.unwrap_or_default())),
    }
}

fn options_311(settings: &Settings, tls: Option<&Arc<ClientConfig>>, opening: &Opening) -> v4::MqttOptions {
    let mut options = v4::MqttOptions::new(&opening.client_id, address(settings), settings.url.endpoint.port);
    options.set_transport(transport(settings, tls)).set_keep_alive(KEEP_ALIVE).set_inflight(PACKET_IDS);
    options.set_clean_session(opening.session.is_none()).set_manual_acks(opening.session.is_some());
    options.set_max_packet_size(opening.packet_bytes_max as usize, PACKET_BYTES_MAX as usize);
    if let Some((username, password)) = credentials(settings) {
        options.set_credentials(username, password);
    }
    if let Some(Route { topic, qos, is_retained }) = &opening.will {
        options.set_last_will(v4::LastWill::new(topic, OFFLINE, qos_311(*qos), *is_retained));
    }
    options
}

fn options_5(settings: &Settings, tls: Option<&Arc<ClientConfig>>, opening: &Opening) -> v5::MqttOptions {
    let mut options = v5::MqttOptions::new(&opening.client_id, address(settings), settings.url.endpoint.port);
    options.set_transport(transport(settings, tls)).set_keep_alive(KEEP_ALIVE);
    options.set_connection_timeout(STALLED_AFTER.as_secs()).set_outgoing_inflight_upper_limit(PACKET_IDS);
    let mut network = options.network_options();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    options.set_clean_start(opening.session.is_none()).set_manual_acks(opening.session.is_some());
    options.set_max_packet_size(Some(opening.packet_bytes_max)).set_receive_maximum(opening.receive_max);
    if let Some(kept) = opening.session {
        options.set_session_expiry_interval(Some(u32::try_from(kept.as_secs()).unwrap_or(u32::MAX)));
    }
    if let Some((username, password)) = credentials(settings) {
        options.set_credentials(username, password);
    }
    if let Some(Route { topic, qos, is_retained }) = &opening.will {
        options.set_last_will(packet5::LastWill::new(topic, OFFLINE, qos_5(*qos), *is_retained, None));
    }
    options
}

impl Client {
    /// How large the message will be as a packet, rounded up by a few bytes.
    pub fn packet_bytes(&self, message: &Message) -> usize {
        const HEADER: usize = 9; // type, length, packet id, length of the topic
        match self {
            Self::V311(_) => HEADER + message.route.topic.len() + message.body.len(),
            Self::V5(_) => HEADER + message.route.topic.len() + message.body.len() + properties_bytes(message),
        }
    }

    pub fn publish(&self, mut message: Message) -> Result<(), NotHandedOver> {
        match self {
            Self::V311(client) => {
                let Message { route: Route { topic, qos, is_retained }, body, .. } = message;
                client.try_publish(topic, qos_311(qos), is_retained, body).map_err(|_| NotHandedOver)
            }
            Self::V5(client) => {
                let properties = properties(&mut message);
                let Message { route: Route { topic, qos, is_retained }, body, .. } = message;
                client
                    .try_publish_with_properties(topic, qos_5(qos), is_retained, body, properties)
                    .map_err(|_| NotHandedOver)
            }
        }
    }

    /// Subscribes with QoS 1. On MQTT 5 a kept message comes once per new subscription, marked, and a live
    /// one keeps the mark it was published with.
    pub fn subscribe(&self, filters: impl Iterator<Item = String>, qos: Qos) -> Result<(), NotHandedOver> {
        match self {
            Self::V311(client) => {
                let filters = filters.map(|path| v4::SubscribeFilter::new(path, qos_311(qos)));
                client.try_subscribe_many(filters).map_err(|_| NotHandedOver)
            }
            Self::V5(client) => {
                let filters = filters.map(|path| packet5::Filter {
                    preserve_retain: true,
                    retain_forward_rule: packet5::RetainForwardRule::OnNewSubscribe,
                    ..packet5::Filter::new(path, qos_5(qos))
                });
                client.try_subscribe_many(filters).map_err(|_| NotHandedOver)
            }
        }
    }

    pub fn acknowledge(&self, Receipt(pkid): Receipt) -> Result<(), NotHandedOver> {
        match self {
            _ if pkid == 0 => Ok(()),
            Self::V311(client) => {
                let publish = v4::Publish { pkid, ..v4::Publish::new("", Qos4::AtLeastOnce, []) };
                client.try_ack(&publish).map_err(|_| NotHandedOver)
            }
            Self::V5(client) => {
                let publish = packet5::Publish { pkid, qos: Qos5::AtLeastOnce, ..Default::default() };
                client.try_ack(&publish).map_err(|_| NotHandedOver)
            }
        }
    }

    pub fn disconnect(&self) -> Result<(), NotHandedOver> {
        match self {
            Self::V311(client) => client.try_disconnect().map_err(|_| NotHandedOver),
            Self::V5(client) => client.try_disconnect().map_err(|_| NotHandedOver),
        }
    }
}

fn qos_311(qos: Qos) -> Qos4 {
    match qos {
        Qos::AtMostOnce => Qos4::AtMostOnce,
        Qos::AtLeastOnce => Qos4::AtLeastOnce,
    }
}

fn qos_5(qos: Qos) -> Qos5 {
    match qos {
        Qos::AtMostOnce => Qos5::AtMostOnce,
        Qos::AtLeastOnce => Qos5::AtLeastOnce,
    }
}

/// Takes out what becomes properties.
fn properties(message: &mut Message) -> packet5::PublishProperties {
    packet5::PublishProperties {
        payload_format_indicator: message.is_text.then_some(1),
        content_type: message.content_type.map(str::to_owned),
        correlation_data: message.correlation.take(),
        user_properties: std::mem::take(&mut message.user_properties),
        ..Default::default()
    }
}

/// How large the properties are, rounded up by a few bytes.
fn properties_bytes(message: &Message) -> usize {
    const LENGTH_AND_FORMAT: usize = 6;
    let text = |text: &str| 3 + text.len();
    LENGTH_AND_FORMAT
        + message.content_type.map_or(0, text)
        + message.correlation.as_ref().map_or(0, |data| 3 + data.len())
        + message.user_properties.iter().map(|(name, value)| text(name) + 2 + value.len()).sum::<usize>()
}

impl EventLoop {
    /// Makes the connection if there is none, then moves it on until something has happened.
    ///
    /// Cancel-safe once connected. Not to be called again after an error.
    pub async fn next(&mut self) -> Result<Event, Ended> {
        let patience = self.keep_alive() + STALLED_AFTER;
        match tokio::time::timeout(patience, self.poll()).await {
            Ok(event) => event,
            Err(_) => Err(Ended::new(End::Other, "the broker has stopped reading")),
        }
    }

    /// Makes the connection and says what the broker granted.
    pub async fn connected(&mut self) -> Result<Granted, Ended> {
        loop {
            if let Event::Connected(granted) = self.next().await? {
                return Ok(granted);
            }
        }
    }

    fn keep_alive(&self) -> Duration {
        match self {
            Self::V311(_) => KEEP_ALIVE,
            Self::V5(events) => events.options.keep_alive(),
        }
    }

    async fn poll(&mut self) -> Result<Event, Ended> {
        match self {
            Self::V311(events) => Ok(event_311(events.poll().await.map_err(ended_311)?)),
            Self::V5(events) => {
                let event = event_5(events.poll().await.map_err(ended_5)?);
                check_state_5(events, &event)?;
                Ok(event)
            }
        }
    }
}

/// Two things rumqttc gets wrong with MQTT 5.
fn check_state_5(events: &mut v5::EventLoop, event: &Event) -> Result<(), Ended> {
    match event {
        // A server keep-alive of 0 ("none") would make it ping without a pause.
        Event::Connected(_) if events.options.keep_alive().is_zero() => {
            events.options.set_keep_alive(KEEP_ALIVE);
        }
        // A publish that waits for this packet id is forgotten when the id's first use was refused.
        Event::Acknowledged(id, answer)
            if *answer != Answer::Taken
                && events.state.collision.as_ref().is_some_and(|waiting| waiting.pkid == *id) =>
        {
            return Err(Ended::new(End::Other, "the broker acknowledges out of order"));
        }
        _ => {}
    }
    Ok(())
}

fn event_311(event: v4::Event) -> Event {
    match event {
        v4::Event::Incoming(v4::Packet::ConnAck(connack)) => Event::Connected(Granted {
            is_session_present: connack.session_present,
            receive_max: u16::MAX,
            packet_bytes_max: PACKET_BYTES_MAX,
            can_retain: true,
            can_acknowledge: true,
            can_put_off: false,
        }),
        v4::Event::Incoming(v4::Packet::PubAck(ack)) => Event::Acknowledged(ack.pkid, Answer::Taken),
        v4::Event::Incoming(v4::Packet::SubAck(ack)) => Event::Subscribed(
            ack.return_codes
                .iter()
                .map(|code| match code {
                    v4::SubscribeReasonCode::Success(_) => None,
                    v4::SubscribeReasonCode::Failure => Some("refused".to_owned()),
                })
                .collect(),
        ),
        v4::Event::Incoming(v4::Packet::Publish(publish)) => Event::Received(Box::new(Received {
            receipt: Receipt(publish.pkid),
            topic: publish.topic,
            body: publish.payload,
            is_retained: publish.retain,
            expires_in: None,
            response_topic: None,
            correlation: None,
            user: None,
        })),
        v4::Event::Outgoing(outgoing) => outgoing_event(&outgoing),
        v4::Event::Incoming(_) => Event::Other,
    }
}

fn event_5(event: v5::Event) -> Event {
    match event {
        v5::Event::Incoming(v5::Incoming::ConnAck(connack)) => {
            let properties = connack.properties.as_ref();
            Event::Connected(Granted {
                is_session_present: connack.session_present,
                receive_max: properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX),
                packet_bytes_max: properties
                    .and_then(|p| p.max_packet_size)
                    .map_or(PACKET_BYTES_MAX, |bytes| bytes.min(PACKET_BYTES_MAX)),
                can_retain: properties.and_then(|p| p.retain_available) != Some(0),
                can_acknowledge: properties.and_then(|p| p.max_qos) != Some(0),
                can_put_off: true,
            })
        }
        v5::Event::Incoming(v5::Incoming::PubAck(ack)) => Event::Acknowledged(ack.pkid, answer(ack.reason)),
        v5::Event::Incoming(v5::Incoming::SubAck(ack)) => Event::Subscribed(
            ack.return_codes
                .iter()
                .map(|code| match code {
                    packet5::SubscribeReasonCode::Success(_) => None,
                    refusal => Some(format!("refused ({refusal:?})")),
                })
                .collect(),
        ),
        v5::Event::Incoming(v5::Incoming::Publish(publish)) => received_5(publish),
        v5::Event::Outgoing(outgoing) => outgoing_event(&outgoing),
        v5::Event::Incoming(_) => Event::Other,
    }
}

fn received_5(publish: packet5::Publish) -> Event {
    let properties = publish.properties.unwrap_or_default();
    Event::Received(Box::new(Received {
        // What is not UTF-8 breaks the protocol; it becomes a topic that is none of ours.
        topic: String::from_utf8(publish.topic.to_vec()).unwrap_or_default(),
        body: publish.payload,
        is_retained: publish.retain,
        expires_in: properties.message_expiry_interval.map(|seconds| Duration::from_secs(seconds.into())),
        response_topic: properties.response_topic,
        correlation: properties.correlation_data,
        user: properties.user_properties.into_iter().find(|(name, _)| name == "user").map(|(_, user)| user),
        receipt: Receipt(publish.pkid),
    }))
}

fn outgoing_event(outgoing: &v4::Outgoing) -> Event {
    match outgoing {
        v4::Outgoing::Publish(id) => Event::Written(*id),
        v4::Outgoing::Disconnect => Event::Left,
        _ => Event::Other,
    }
}

fn answer(reason: packet5::PubAckReason) -> Answer {
    use packet5::PubAckReason as Reason;
    match reason {
        Reason::Success | Reason::NoMatchingSubscribers => Answer::Taken,
        Reason::NotAuthorized => Answer::Refused("the broker does not allow this user to publish to the topic"),
        Reason::TopicNameInvalid => Answer::Refused("the broker does not accept the topic"),
        Reason::PayloadFormatInvalid => Answer::Refused("the broker finds the payload to be no UTF-8"),
        Reason::QuotaExceeded => Answer::NotNow("a quota of the broker is used up"),
        Reason::UnspecifiedError | Reason::ImplementationSpecificError | Reason::PacketIdentifierInUse => {
            Answer::NotNow("the broker could not take a message, and gives no reason")
        }
    }
}

fn ended_311(error: v4::ConnectionError) -> Ended {
    use v4::ConnectReturnCode as Code;
    use v4::{ConnectionError as Error, StateError, mqttbytes};
    match error {
        Error::ConnectionRefused(code) => match code {
            Code::RefusedProtocolVersion => Ended::new(End::VersionRefused, "the broker does not speak MQTT 3.1.1"),
            Code::BadClientId => Ended::new(End::Other, BAD_CLIENT_ID),
            Code::BadUserNamePassword => Ended::new(End::Other, BAD_PASSWORD),
            Code::NotAuthorized => Ended::new(End::Other, NOT_AUTHORIZED),
            code => Ended::new(End::Other, format!("the broker refused the connection: {code:?}")),
        },
        Error::MqttState(StateError::ConnectionAborted) => Ended::new(End::Closed, CLOSED),
        Error::MqttState(StateError::AwaitPingResp) => Ended::new(End::Other, SILENT),
        Error::MqttState(StateError::Io(io) | StateError::Deserialization(mqttbytes::Error::Io(io)))
        | Error::Io(io) => io_ended(&io),
        Error::MqttState(StateError::Deserialization(mqttbytes::Error::PayloadSizeLimitExceeded(bytes))) => {
            Ended::new(End::ReceivedTooLarge, format!("the broker sent a packet of {bytes} bytes"))
        }
        Error::NetworkTimeout | Error::FlushTimeout => Ended::new(End::Other, SILENT),
        Error::Tls(error) => tls_ended(&error),
        error => Ended::new(End::Other, error.to_string()),
    }
}

fn ended_5(error: v5::ConnectionError) -> Ended {
    use packet5::{ConnectReturnCode as Code, DisconnectReasonCode as Reason};
    use v5::mqttbytes::Error as Bytes5;
    use v5::{ConnectionError as Error, StateError};
    match error {
        Error::ConnectionRefused(code) => match code {
            Code::RefusedProtocolVersion | Code::UnsupportedProtocolVersion => {
                Ended::new(End::VersionRefused, "the broker does not speak MQTT 5")
            }
            Code::BadClientId | Code::ClientIdentifierNotValid => Ended::new(End::Other, BAD_CLIENT_ID),
            Code::BadUserNamePassword => Ended::new(End::Other, BAD_PASSWORD),
            Code::NotAuthorized => Ended::new(End::Other, NOT_AUTHORIZED),
            Code::QoSNotSupported => Ended::new(End::NoAcknowledging, format!("{WILL_REFUSED}: {code:?}")),
            Code::RetainNotSupported => Ended::new(End::NoRetaining, format!("{WILL_REFUSED}: {code:?}")),
            Code::QuotaExceeded | Code::ConnectionRateExceeded | Code::ServerBusy => {
                Ended::new(End::Quota, format!("the broker has no room for us now: {code:?}"))
            }
            code => Ended::new(End::Other, format!("the broker refused the connection: {code:?}")),
        },
        Error::MqttState(StateError::ServerDisconnect { reason_code, reason_string }) => {
            let said = reason_string.map(|text| format!(" ({text})")).unwrap_or_default();
            match reason_code {
                Reason::SessionTakenOver => Ended::new(End::Other, TAKEN_OVER),
                Reason::PacketTooLarge => Ended::new(End::SentTooLarge, SENT_TOO_LARGE),
                Reason::QuotaExceeded | Reason::MessageRateTooHigh => {
                    Ended::new(End::Quota, format!("the broker hung up: {reason_code:?}{said}"))
                }
                _ => Ended::new(End::Other, format!("the broker hung up: {reason_code:?}{said}")),
            }
        }
        Error::MqttState(StateError::ConnectionAborted) => Ended::new(End::Closed, CLOSED),
        Error::MqttState(StateError::AwaitPingResp) => Ended::new(End::Other, SILENT),
        Error::MqttState(StateError::Io(io) | StateError::Deserialization(Bytes5::Io(io))) | Error::Io(io) => {
            io_ended(&io)
        }
        // mosquitto answers so to a message above its `message_size_limit`; rumqttc does not know the code.
        Error::MqttState(StateError::Deserialization(Bytes5::InvalidConnectReturnCode(0x95))) => {
            Ended::new(End::SentTooLarge, SENT_TOO_LARGE)
        }
        Error::MqttState(StateError::Deserialization(Bytes5::PayloadSizeLimitExceeded { pkt_size, .. })) => {
            Ended::new(End::ReceivedTooLarge, format!("the broker sent a packet of {pkt_size} bytes"))
        }
        Error::Timeout(_) => Ended::new(End::Other, SILENT),
        Error::Tls(error) => tls_ended(&error),
        error => Ended::new(End::Other, error.to_string()),
    }
}

pub const CLOSED: &str = "the broker closed the connection";
const SILENT: &str = "the broker does not answer";
const WILL_REFUSED: &str = "the broker refuses our last will";
const SENT_TOO_LARGE: &str = "the broker finds a message too large";
const BAD_PASSWORD: &str = "the broker refuses the user name or password: check `username` and `password`";
const NOT_AUTHORIZED: &str = "the broker does not let us in: check `username`, `password` and its access rules";
const BAD_CLIENT_ID: &str = "the broker refuses our client id: try a shorter `instance`";
pub const TAKEN_OVER: &str = "another connection uses our client id: give each bridge its own `instance`";

fn io_ended(error: &std::io::Error) -> Ended {
    use std::io::ErrorKind;
    // With TLS 1.3 a server says only after the handshake that it wants another certificate.
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return rustls_ended(error);
    }
    match error.kind() {
        ErrorKind::UnexpectedEof
        | ErrorKind::ConnectionReset
        | ErrorKind::BrokenPipe
        | ErrorKind::ConnectionAborted => Ended::new(End::Closed, CLOSED),
        // A CONNACK of 3.1.1 read as one of 5 is too short; what is left of it is complained about at the end.
        ErrorKind::Other if error.to_string().contains("bytes remaining on stream") => Ended::new(End::Closed, CLOSED),
        _ => Ended::new(End::Other, error.to_string()),
    }
}

fn tls_ended(error: &v4::TlsError) -> Ended {
    match error {
        v4::TlsError::TLS(error) => rustls_ended(error),
        v4::TlsError::Io(error) => io_ended(error),
        error => Ended::new(End::Other, format!("TLS: {error}")),
    }
}

fn rustls_ended(error: &rustls::Error) -> Ended {
    use rustls::{AlertDescription as Alert, CertificateError as Certificate, Error};
    let mend = match error {
        Error::InvalidCertificate(Certificate::UnknownIssuer) => {
            ": nobody we trust vouches for the broker; set `ca_file` to its authority's certificate"
        }
        Error::InvalidCertificate(Certificate::NotValidForName | Certificate::NotValidForNameContext { .. }) => {
            ": the certificate is for another name than the one in `url`"
        }
        Error::AlertReceived(Alert::CertificateRequired | Alert::HandshakeFailure) => {
            ": the broker wants a certificate of ours; set `cert_file` and `key_file`"
        }
        Error::AlertReceived(Alert::UnknownCA | Alert::BadCertificate | Alert::CertificateUnknown) => {
            ": the broker does not accept our certificate; check `cert_file`"
        }
        _ => "",
    };
    Ended::new(End::Other, format!("TLS: {error}{mend}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_a_packet_is_that_of_the_library_or_a_few_bytes_more() {
        let (client, _events) = v5::AsyncClient::new(v5::MqttOptions::new("x", "127.0.0.1", 1), 1);
        let client = Client::V5(client);
        let topic = "dtorrent/home/torrent/3f78/event/added".to_owned();
        let route = Route { topic, qos: Qos::AtLeastOnce, is_retained: false };
        let bare = Message {
            route,
            body: Bytes::from(vec![b'x'; 1_000]),
            content_type: None,
            is_text: false,
            correlation: None,
            user_properties: Vec::new(),
        };
        let named = |name: &str| (name.to_owned(), "v".repeat(200));
        let full = Message {
            content_type: Some("application/json"),
            is_text: true,
            correlation: Some(Bytes::from_static(b"0123")),
            user_properties: ["id", "source", "type"].map(named).to_vec(),
            ..bare.clone()
        };
        for message in [bare, full] {
            let ours = client.packet_bytes(&message);
            let (topic, body) = (message.route.topic.clone(), message.body.clone());
            let properties = Some(properties(&mut message.clone()));
            let theirs = packet5::Publish::new(topic, Qos5::AtLeastOnce, body, properties).size();
            assert!((theirs..=theirs + 16).contains(&ours), "{ours} for {theirs}");
        }
    }
}
