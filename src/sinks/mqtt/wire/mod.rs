//! MQTT 5 and MQTT 3.1.1 in one shape: packets are rumqttc's, which has separate types for the versions; the connection is ours.
//!
//! One [`Client`] and one [`EventLoop`] are one connection. After the first error neither is used again.
//!
//! The methods of [`Client`] never wait. [`EventLoop::next`] is cancel-safe.

mod error;
mod event;
mod event_loop;
mod stream;
mod v311;
mod v5;

use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::sync::mpsc;

use super::demands::{Demands, Protocol};
use super::message::Message;
use super::settings::Settings;
use super::topics::{Qos, Route};

pub use error::{CLOSED, ConnectionError, ErrorKind, TAKEN_OVER};
pub use event::{AckToken, ConnAck, Event, PACKET_BYTES_MAX, PubAck, Received};
pub use event_loop::{EventLoop, open};

/// Maximum size of a packet that MQTT can express (MQTT 5 §1.5.5).
pub const PROTOCOL_BYTES_MAX: u32 = 268_435_455;
/// Keep-alive: maximum silence before a PINGREQ.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);

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
    /// Whether messages are acknowledged by [`Client::acknowledge`], and not as they come.
    pub has_manual_acks: bool,
    /// Maximum number of filters in one SUBSCRIBE.
    pub filters_max: usize,
}

impl ConnectOptions {
    /// Returns the options of a connection with a clean session and without a last will; `channel` as in the field.
    pub fn new(demands: &Demands, client_id: String, channel: usize) -> Self {
        let Demands { protocol, filters_max, .. } = *demands;
        Self {
            protocol,
            client_id,
            session: None,
            will: None,
            packet_bytes_max: PACKET_BYTES_MAX,
            channel,
            receive_max: None,
            has_manual_acks: false,
            filters_max,
        }
    }
}

/// The sending side of a connection.
#[derive(Clone)]
pub struct Client {
    protocol: Protocol,
    requests: mpsc::Sender<Request>,
}

/// Something to be written, in the order of the calls.
#[derive(Debug)]
enum Request {
    Publish(Message),
    Subscribe(Vec<String>, Qos),
    Acknowledge(AckToken),
    Disconnect,
}

impl Client {
    /// Returns the size of the message as a packet, rounded up by a few bytes.
    pub fn packet_bytes(&self, message: &Message) -> usize {
        const HEADER: usize = 9; // type, length, packet id, length of the topic
        match self.protocol {
            Protocol::V311 => HEADER + message.route.topic.len() + message.body.len(),
            Protocol::V5 => HEADER + message.route.topic.len() + message.body.len() + properties_bytes(message),
        }
    }

    /// Queues a publish.
    pub fn publish(&self, message: Message) -> Result<(), ConnectionError> {
        self.request(Request::Publish(message))
    }

    /// Subscribes. With MQTT 5 a retained message comes once per new subscription, and a message keeps the retain flag it
    /// was published with.
    pub fn subscribe(&self, filters: impl Iterator<Item = String>, qos: Qos) -> Result<(), ConnectionError> {
        self.request(Request::Subscribe(filters.collect(), qos))
    }

    /// Queues the acknowledgement of a received message.
    pub fn acknowledge(&self, ack_token: AckToken) -> Result<(), ConnectionError> {
        match ack_token {
            AckToken::None => Ok(()),
            ack_token => self.request(Request::Acknowledge(ack_token)),
        }
    }

    /// Queues DISCONNECT, behind everything else.
    pub fn disconnect(&self) -> Result<(), ConnectionError> {
        self.request(Request::Disconnect)
    }

    fn request(&self, request: Request) -> Result<(), ConnectionError> {
        // The queue is full, or the event loop is gone.
        self.requests.try_send(request).map_err(|_| ConnectionError::other("the connection was given up"))
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

/// Returns the size of the properties, rounded up by a few bytes.
fn properties_bytes(message: &Message) -> usize {
    const LENGTH_AND_FORMAT: usize = 6;
    let text = |text: &str| 3 + text.len();
    LENGTH_AND_FORMAT
        + message.content_type.map_or(0, text)
        + message.correlation.as_ref().map_or(0, |data| 3 + data.len())
        + message.attributes.iter().map(|(name, value)| text(name) + 2 + value.len()).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn the_estimated_packet_size_is_at_most_a_few_bytes_above_the_real_one() {
        let client = Client { protocol: Protocol::V5, requests: mpsc::channel(1).0 };
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
            let theirs = v5::publish(1, message).size();
            assert!((theirs..=theirs + 16).contains(&ours), "{ours} for {theirs}");
        }
    }
}
