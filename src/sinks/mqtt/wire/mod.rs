//! MQTT 5 and MQTT 3.1.1 in one shape: rumqttc has separate types for them, the rest of this folder has not.
//!
//! One [`Client`] and one [`EventLoop`] are one TCP connection. After the first error neither is used again: rumqttc would
//! reconnect by itself and silently drop what was in flight.
//!
//! The methods of [`Client`] never wait. [`EventLoop::next`] is cancel-safe.

mod error;
mod event;

use std::sync::Arc;
use std::time::Duration;

use rumqttc::v5::mqttbytes::v5 as packet5;
use rumqttc::v5::{self, mqttbytes::QoS as Qos5};
use rumqttc::{self as v4, QoS as Qos4, TlsConfiguration};
use rustls::ClientConfig;
use secrecy::ExposeSecret;

use crate::sinks::broker::OFFLINE;

use super::message::Message;
use super::settings::{Settings, Transport};
use super::topics::{Qos, Route};

pub use error::{CLOSED, ConnectionError, ErrorKind, TAKEN_OVER};
pub use event::{AckToken, ConnAck, Event, PACKET_BYTES_MAX, PubAck, Received};

/// Maximum size of a packet that MQTT can express (MQTT 5 §1.5.5).
pub const PROTOCOL_BYTES_MAX: u32 = 268_435_455;
/// Keep-alive: maximum silence before a PINGREQ.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// A poll that lasts this much longer than the keep-alive is stuck in a write that the broker does not read.
const STALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Maximum number of publishes that rumqttc has in flight. Far above our own window: rumqttc reuses packet ids in turn, and
/// one that is acknowledged late must not meet its successor.
const PACKET_IDS_MAX: u16 = 1_000;

/// A protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// MQTT 3.1.1.
    V311,
    /// MQTT 5.
    V5,
}

/// The options of one connection.
pub struct ConnectOptions {
    /// The version to speak.
    pub protocol: Protocol,
    /// Unique per connection: a broker disconnects an earlier one with the same id.
    pub client_id: String,
    /// How long the broker holds subscriptions and their messages while we are disconnected; `None` for a clean session.
    pub session: Option<Duration>,
    /// The route of the last will, whose body is `offline`.
    pub will: Option<Route>,
    /// Maximum size of packets that are accepted.
    pub packet_bytes_max: u32,
    /// Number of requests that may wait to be written.
    pub channel: usize,
    /// Number of unacknowledged messages that the broker may send; not expressible in MQTT 3.1.1.
    pub receive_max: Option<u16>,
}

impl ConnectOptions {
    /// Returns the options of a connection with a clean session and without a last will; `channel` as in the field.
    pub fn new(protocol: Protocol, client_id: String, channel: usize) -> Self {
        let packet_bytes_max = PACKET_BYTES_MAX;
        Self { protocol, client_id, session: None, will: None, packet_bytes_max, channel, receive_max: None }
    }
}

/// Returns the error of a request that the event loop does not take: its queue is full, or it is gone.
fn given_up<E>(_: E) -> ConnectionError {
    // The text of rumqttc's own error is "Failed to send mqtt requests to eventloop", whatever the reason.
    ConnectionError::other("the connection was given up")
}

/// The sending side of a connection.
#[derive(Clone)]
pub enum Client {
    /// For MQTT 3.1.1.
    V311(v4::AsyncClient),
    /// For MQTT 5.
    V5(v5::AsyncClient),
}

/// The side of a connection that moves it on.
pub enum EventLoop {
    /// For MQTT 3.1.1.
    V311(Box<v4::EventLoop>),
    /// For MQTT 5.
    V5(Box<v5::EventLoop>),
}

/// Prepares a connection; the first [`EventLoop::next`] makes it.
pub fn open(settings: &Settings, tls: Option<&Arc<ClientConfig>>, connect: &ConnectOptions) -> (Client, EventLoop) {
    match connect.protocol {
        Protocol::V311 => {
            let (client, mut events) = v4::AsyncClient::new(options_311(settings, tls, connect), connect.channel);
            let mut network = events.network_options();
            network.set_tcp_nodelay(true);
            // The deadline of the whole attempt is the caller's; this one also bounds each write.
            network.set_connection_timeout(STALL_TIMEOUT.as_secs());
            events.set_network_options(network);
            (Client::V311(client), EventLoop::V311(Box::new(events)))
        }
        Protocol::V5 => {
            let (client, events) = v5::AsyncClient::new(options_5(settings, tls, connect), connect.channel);
            (Client::V5(client), EventLoop::V5(Box::new(events)))
        }
    }
}

/// Returns the address as rumqttc wants it, and the transport.
fn address(settings: &Settings, tls: Option<&Arc<ClientConfig>>) -> (String, v4::Transport) {
    let secured = || TlsConfiguration::Rustls(tls.expect("made for every encrypted transport").clone());
    // For a WebSocket rumqttc takes the whole URL as "address", and the bare host otherwise.
    let (host, url) = (|| settings.url.endpoint.host.clone(), || settings.url.to_string());
    match settings.url.transport {
        Transport::Tcp => (host(), v4::Transport::tcp()),
        Transport::Tls => (host(), v4::Transport::tls_with_config(secured())),
        Transport::WebSocket => (url(), v4::Transport::ws()),
        Transport::SecureWebSocket => (url(), v4::Transport::wss_with_config(secured())),
    }
}

/// A password without a user name is sent with an empty one, as MQTT 3.1.1 demands (§3.1.2.9).
fn credentials(settings: &Settings) -> Option<(String, String)> {
    let password = settings.password.as_ref().map(|password| password.expose_secret().to_owned());
    match (&settings.username, password) {
        (None, None) => None,
        (username, password) => Some((username.clone().unwrap_or_default(), password.unwrap_or_default())),
    }
}

fn options_311(settings: &Settings, tls: Option<&Arc<ClientConfig>>, connect: &ConnectOptions) -> v4::MqttOptions {
    let (address, transport) = address(settings, tls);
    let mut options = v4::MqttOptions::new(&connect.client_id, address, settings.url.endpoint.port);
    options.set_transport(transport).set_keep_alive(KEEP_ALIVE).set_inflight(PACKET_IDS_MAX);
    options.set_clean_session(connect.session.is_none()).set_manual_acks(connect.session.is_some());
    options.set_max_packet_size(connect.packet_bytes_max as usize, PACKET_BYTES_MAX as usize);
    if let Some((username, password)) = credentials(settings) {
        options.set_credentials(username, password);
    }
    if let Some(Route { topic, qos, is_retained }) = &connect.will {
        options.set_last_will(v4::LastWill::new(topic, OFFLINE, qos_311(*qos), *is_retained));
    }
    options
}

fn options_5(settings: &Settings, tls: Option<&Arc<ClientConfig>>, connect: &ConnectOptions) -> v5::MqttOptions {
    let (address, transport) = address(settings, tls);
    let mut options = v5::MqttOptions::new(&connect.client_id, address, settings.url.endpoint.port);
    options.set_transport(transport).set_keep_alive(KEEP_ALIVE);
    options.set_connection_timeout(STALL_TIMEOUT.as_secs()).set_outgoing_inflight_upper_limit(PACKET_IDS_MAX);
    let mut network = options.network_options();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    options.set_clean_start(connect.session.is_none()).set_manual_acks(connect.session.is_some());
    options.set_max_packet_size(Some(connect.packet_bytes_max)).set_receive_maximum(connect.receive_max);
    if let Some(kept) = connect.session {
        options.set_session_expiry_interval(Some(u32::try_from(kept.as_secs()).unwrap_or(u32::MAX)));
    }
    if let Some((username, password)) = credentials(settings) {
        options.set_credentials(username, password);
    }
    if let Some(Route { topic, qos, is_retained }) = &connect.will {
        options.set_last_will(packet5::LastWill::new(topic, OFFLINE, qos_5(*qos), *is_retained, None));
    }
    options
}

impl Client {
    /// Returns the size of the message as a packet, rounded up by a few bytes.
    pub fn packet_bytes(&self, message: &Message) -> usize {
        const HEADER: usize = 9; // type, length, packet id, length of the topic
        match self {
            Self::V311(_) => HEADER + message.route.topic.len() + message.body.len(),
            Self::V5(_) => HEADER + message.route.topic.len() + message.body.len() + properties_bytes(message),
        }
    }

    /// Queues a publish.
    pub fn publish(&self, mut message: Message) -> Result<(), ConnectionError> {
        match self {
            Self::V311(client) => {
                let Message { route: Route { topic, qos, is_retained }, body, .. } = message;
                client.try_publish(topic, qos_311(qos), is_retained, body).map_err(given_up)
            }
            Self::V5(client) => {
                let properties = properties(&mut message);
                let Message { route: Route { topic, qos, is_retained }, body, .. } = message;
                client.try_publish_with_properties(topic, qos_5(qos), is_retained, body, properties).map_err(given_up)
            }
        }
    }

    /// Subscribes. With MQTT 5 a retained message comes once per new subscription, and a message keeps the retain flag it
    /// was published with.
    pub fn subscribe(&self, filters: impl Iterator<Item = String>, qos: Qos) -> Result<(), ConnectionError> {
        match self {
            Self::V311(client) => {
                let filters = filters.map(|path| v4::SubscribeFilter::new(path, qos_311(qos)));
                client.try_subscribe_many(filters).map_err(given_up)
            }
            Self::V5(client) => {
                let filters = filters.map(|path| packet5::Filter {
                    preserve_retain: true,
                    retain_forward_rule: packet5::RetainForwardRule::OnNewSubscribe,
                    ..packet5::Filter::new(path, qos_5(qos))
                });
                client.try_subscribe_many(filters).map_err(given_up)
            }
        }
    }

    /// Queues the acknowledgement of a received message; a message with QoS 0 needs none.
    pub fn acknowledge(&self, AckToken(pkid): AckToken) -> Result<(), ConnectionError> {
        match self {
            _ if pkid == 0 => Ok(()),
            Self::V311(client) => {
                let publish = v4::Publish { pkid, ..v4::Publish::new("", Qos4::AtLeastOnce, []) };
                client.try_ack(&publish).map_err(given_up)
            }
            Self::V5(client) => {
                let publish = packet5::Publish { pkid, qos: Qos5::AtLeastOnce, ..Default::default() };
                client.try_ack(&publish).map_err(given_up)
            }
        }
    }

    /// Queues DISCONNECT, behind everything else.
    pub fn disconnect(&self) -> Result<(), ConnectionError> {
        match self {
            Self::V311(client) => client.try_disconnect().map_err(given_up),
            Self::V5(client) => client.try_disconnect().map_err(given_up),
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

/// Takes the properties out of a message.
fn properties(message: &mut Message) -> packet5::PublishProperties {
    let attributes = std::mem::take(&mut message.attributes);
    packet5::PublishProperties {
        payload_format_indicator: (!message.body.is_empty()).then_some(1),
        content_type: message.content_type.map(str::to_owned),
        correlation_data: message.correlation.take(),
        user_properties: attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        ..Default::default()
    }
}

/// Returns the size of the properties, rounded up by a few bytes.
fn properties_bytes(message: &Message) -> usize {
    const LENGTH_AND_FORMAT: usize = 6;
    let text = |text: &str| 3 + text.len();
    LENGTH_AND_FORMAT
        + message.content_type.map_or(0, text)
        + message.correlation.as_ref().map_or(0, |data| 3 + data.len())
        + message.attributes.iter().map(|(name, value)| text(name) + 2 + value.len()).sum::<usize>()
}

impl EventLoop {
    /// Connects first if necessary, then moves the connection on until the next event.
    ///
    /// Cancel-safe once connected. Must not be called again after an error.
    pub async fn next(&mut self) -> Result<Event, ConnectionError> {
        let limit = self.keep_alive() + STALL_TIMEOUT;
        let polled = async {
            match self {
                Self::V311(events) => Ok(event::from_311(events.poll().await.map_err(error::from_311)?)),
                Self::V5(events) => {
                    let event = event::from_5(events.poll().await.map_err(error::from_5)?);
                    check_state_5(events, &event)?;
                    Ok(event)
                }
            }
        };
        let stalled = |_| ConnectionError::other("the broker has stopped reading");
        tokio::time::timeout(limit, polled).await.map_err(stalled)?
    }

    /// Connects and returns what the broker granted.
    pub async fn connected(&mut self) -> Result<ConnAck, ConnectionError> {
        loop {
            if let Event::Connected(granted) = self.next().await? {
                return Ok(granted);
            }
        }
    }

    /// Waits until our DISCONNECT was written.
    pub async fn disconnected(&mut self) -> Result<(), ConnectionError> {
        while !matches!(self.next().await?, Event::Disconnected) {}
        Ok(())
    }

    fn keep_alive(&self) -> Duration {
        match self {
            Self::V311(_) => KEEP_ALIVE,
            Self::V5(events) => events.options.keep_alive(),
        }
    }
}

/// Works around two faults of rumqttc with MQTT 5.
fn check_state_5(events: &mut v5::EventLoop, event: &Event) -> Result<(), ConnectionError> {
    match event {
        // With a Server Keep Alive of 0 ("off", MQTT 5 §3.2.2.3.14) it would ping without a pause.
        Event::Connected(_) if events.options.keep_alive().is_zero() => {
            events.options.set_keep_alive(KEEP_ALIVE);
        }
        // It forgets a publish that waits for this packet id when the id's first use was refused.
        Event::Acknowledged(id, puback)
            if *puback != PubAck::Accepted
                && events.state.collision.as_ref().is_some_and(|waiting| waiting.pkid == *id) =>
        {
            return Err(ConnectionError::other("the broker acknowledges out of order"));
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn the_estimated_packet_size_is_at_most_a_few_bytes_above_the_real_one() {
        let (client, _events) = v5::AsyncClient::new(v5::MqttOptions::new("x", "127.0.0.1", 1), 1);
        let client = Client::V5(client);
        let topic = "dtorrent/home/torrent/3f78/event/added".to_owned();
        let route = Route { topic, qos: Qos::AtLeastOnce, is_retained: false };
        let bare = Message::text(route, Bytes::from(vec![b'x'; 1_000]));
        let named = |name| (name, "v".repeat(200));
        let full = Message {
            content_type: Some("application/json"),
            correlation: Some(Bytes::from_static(b"0123")),
            attributes: ["id", "source", "type"].map(named).to_vec(),
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
