//! The events of an MQTT connection, in one shape for both versions.

use std::time::Duration;

use bytes::Bytes;
use rumqttc::v5::{self, mqttbytes::v5 as packet5};
use rumqttc::{self as v4};

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
    /// CONNACK came.
    Connected(ConnAck),
    /// The oldest publish that was queued and not written yet was written, with this packet id; 0 for QoS 0.
    Written(u16),
    /// The publish with this packet id was answered.
    Acknowledged(u16, PubAck),
    /// The answer to each filter of a subscription: `None`, or the reason of a refusal.
    Subscribed(Vec<Option<String>>),
    /// A message came.
    Received(Box<Received>),
    /// Our DISCONNECT was written.
    Disconnected,
    /// Anything else: pings, other packets, other outgoing ones.
    Other,
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

/// The packet id that an acknowledgement needs; 0 for a message with QoS 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AckToken(pub(super) u16);

pub(super) fn from_311(event: v4::Event) -> Event {
    match event {
        // MQTT 3.1.1 has no way to state limits or abilities: what a broker lacks shows when it closes the connection.
        v4::Event::Incoming(v4::Packet::ConnAck(connack)) => Event::Connected(ConnAck {
            is_session_present: connack.session_present,
            receive_max: u16::MAX,
            packet_bytes_max: PACKET_BYTES_MAX,
            can_retain: true,
            can_acknowledge: true,
            can_defer: false,
        }),
        v4::Event::Incoming(v4::Packet::PubAck(ack)) => Event::Acknowledged(ack.pkid, PubAck::Accepted),
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
            ack_token: AckToken(publish.pkid),
            topic: publish.topic,
            body: publish.payload,
            is_retained: publish.retain,
            ..Received::default()
        })),
        v4::Event::Outgoing(outgoing) => outgoing_event(&outgoing),
        v4::Event::Incoming(_) => Event::Other,
    }
}

pub(super) fn from_5(event: v5::Event) -> Event {
    match event {
        v5::Event::Incoming(v5::Incoming::ConnAck(connack)) => {
            let properties = connack.properties.as_ref();
            Event::Connected(ConnAck {
                is_session_present: connack.session_present,
                receive_max: properties.and_then(|p| p.receive_max).unwrap_or(u16::MAX),
                packet_bytes_max: properties
                    .and_then(|p| p.max_packet_size)
                    .map_or(PACKET_BYTES_MAX, |bytes| bytes.min(PACKET_BYTES_MAX)),
                can_retain: properties.and_then(|p| p.retain_available) != Some(0),
                can_acknowledge: properties.and_then(|p| p.max_qos) != Some(0),
                can_defer: true,
            })
        }
        v5::Event::Incoming(v5::Incoming::PubAck(ack)) => Event::Acknowledged(ack.pkid, puback(ack.reason)),
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
        // A topic that is not UTF-8 violates the protocol (MQTT 5 §1.5.4); an empty one is none of ours.
        topic: String::from_utf8(publish.topic.to_vec()).unwrap_or_default(),
        body: publish.payload,
        is_retained: publish.retain,
        expires_in: properties.message_expiry_interval.map(|seconds| Duration::from_secs(seconds.into())),
        response_topic: properties.response_topic,
        correlation: properties.correlation_data,
        user: properties.user_properties.into_iter().find(|(name, _)| name == "user").map(|(_, user)| user),
        ack_token: AckToken(publish.pkid),
    }))
}

fn outgoing_event(outgoing: &v4::Outgoing) -> Event {
    match outgoing {
        v4::Outgoing::Publish(id) => Event::Written(*id),
        v4::Outgoing::Disconnect => Event::Disconnected,
        _ => Event::Other,
    }
}

fn puback(reason: packet5::PubAckReason) -> PubAck {
    use packet5::PubAckReason as Reason;
    match reason {
        // Without subscribers a publish is a success too: 0x10 is below 0x80 (MQTT 5 §2.4).
        Reason::Success | Reason::NoMatchingSubscribers => PubAck::Accepted,
        Reason::NotAuthorized => PubAck::Refused("the broker does not allow this user to publish to the topic"),
        Reason::TopicNameInvalid => PubAck::Refused("the broker does not accept the topic"),
        Reason::PayloadFormatInvalid => PubAck::Refused("the broker finds the payload to be no UTF-8"),
        Reason::QuotaExceeded => PubAck::Deferred("a quota of the broker is used up"),
        // No word on whether it is this message's fault, so none is dead-lettered for it.
        Reason::UnspecifiedError | Reason::ImplementationSpecificError | Reason::PacketIdentifierInUse => {
            PubAck::Deferred("the broker could not take a message, and gives no reason")
        }
    }
}
