//! The events of an MQTT connection, and what is written on it, in one shape for both versions.

use std::time::Duration;

use bytes::Bytes;

use super::super::message::Message;
use super::super::topics::Qos;

/// Maximum size of a packet in either direction, in bytes; a broker may state less.
pub const PACKET_BYTES_MAX: u32 = 16 * 1024 * 1024;

/// The limits and abilities that a broker states in its CONNACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnAck {
    /// Whether the broker held the session.
    pub is_session_present: bool,
    /// Receive Maximum: publishes that may be unacknowledged.
    pub receive_max: u16,
    /// Maximum Packet Size, at most [`PACKET_BYTES_MAX`].
    pub packet_bytes_max: u32,
    /// Whether retained messages are available.
    pub can_retain: bool,
    /// Whether QoS 1 is available.
    pub can_acknowledge: bool,
    /// Whether PUBACK has a reason code for "not now", after which the broker may take the next message (MQTT 5).
    pub can_defer: bool,
    /// Server Keep Alive, in place of ours.
    pub keep_alive: Option<Duration>,
}

/// The broker's answer to a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PubAck {
    /// The broker took responsibility.
    Accepted,
    /// The broker will never take this one; the reason.
    Refused(&'static str),
    /// The broker did not take it now; the reason.
    Deferred(&'static str),
}

/// An event on a connection.
#[derive(Debug)]
pub enum Event {
    /// The oldest publish that was queued and not written yet was written, with this packet id; 0 for QoS 0.
    Written(u16),
    /// The publish with this packet id was answered.
    Acknowledged(u16, PubAck),
    /// The filters of one subscription, each with its answer: `None`, or the reason of a refusal.
    Subscribed(Vec<(String, Option<String>)>),
    /// A message came.
    Received(Box<Received>),
    /// Our DISCONNECT was written.
    Disconnected,
}

/// A message from the broker. Properties are empty with MQTT 3.1.1.
#[derive(Debug, Default)]
pub struct Received {
    /// The topic, not checked further.
    pub topic: String,
    /// The payload.
    pub body: Bytes,
    /// Whether the message was retained before we subscribed.
    pub is_retained: bool,
    /// Message Expiry Interval that is left.
    pub expires_in: Option<Duration>,
    /// Where the sender wants a reply, not checked.
    pub response_topic: Option<String>,
    /// Correlation data for the reply.
    pub correlation: Option<Bytes>,
    /// The user property `user`.
    pub user: Option<String>,
    /// For [`super::Client::acknowledge`].
    pub ack_token: AckToken,
}

/// The acknowledgement that a message needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AckToken {
    /// QoS 0.
    #[default]
    None,
    /// QoS 1: PUBACK with this packet id.
    Puback(u16),
    /// QoS 2, which we never ask for, from a session of another program: PUBREC with this packet id.
    Pubrec(u16),
}

/// A packet from the broker.
#[derive(Debug)]
pub(super) enum Incoming {
    /// The connection was accepted.
    ConnAck(ConnAck),
    /// A publish was answered.
    PubAck(u16, PubAck),
    /// The answers to the filters of the subscription with this packet id.
    SubAck(u16, Vec<Option<String>>),
    /// A message came.
    Publish(Received),
    /// The second step of QoS 2.
    PubRel(u16),
    /// The answer to a ping.
    PingResponse,
    /// Nothing that matters here.
    Ignored,
}

/// A packet to the broker, with its packet id where it has one; 0 for a publish with QoS 0.
#[derive(Debug)]
pub(super) enum Outgoing {
    Publish(u16, Message),
    Subscribe(u16, Vec<String>, Qos),
    Acknowledge(AckToken),
    PubComp(u16),
    Ping,
    Disconnect,
}
