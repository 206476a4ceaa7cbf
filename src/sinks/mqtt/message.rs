//! The publishes of a delivery: its own, and for a result the copy to the command's sender.
//!
//! Pure: no I/O.

use bytes::Bytes;

use crate::port::{Delivery, ReplyTo};
use crate::sinks::broker::{cloud_event, status_body};

use super::topics::{Qos, Route, Topics};

/// The media type of all bodies but those of a status.
const JSON: Option<&str> = Some("application/json");

/// One publish, of text. MQTT 3.1.1 has no properties; there everything but route and body is left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Where the message goes, and how.
    pub route: Route,
    /// The payload, in UTF-8.
    pub body: Bytes,
    /// The media type of the body.
    pub content_type: Option<&'static str>,
    /// Correlation data of a reply, as the command had it; at most 65,535 bytes.
    pub correlation: Option<Bytes>,
    /// Names and values of user properties, in this order.
    pub attributes: Vec<(&'static str, String)>,
}

impl Message {
    /// Returns a message without properties.
    pub fn text(route: Route, body: Bytes) -> Self {
        Self { route, body, content_type: None, correlation: None, attributes: Vec::new() }
    }

    /// Returns the bridge's own status, in the topic that its last will goes to as well.
    pub fn bridge_status(topics: &Topics, is_online: bool) -> Self {
        let route = Route { topic: topics.addresses.bridge_status(), qos: Qos::AtLeastOnce, is_retained: true };
        Self::text(route, status_body(is_online))
    }

    /// Returns the empty message that clears a retained topic (MQTT 5 §3.3.1.3).
    pub fn cleared(topic: String) -> Self {
        Self::text(Route { topic, qos: Qos::AtLeastOnce, is_retained: true }, Bytes::new())
    }
}

/// Returns the message of a delivery, and of a result the copy to the address that the command's sender chose.
pub fn messages(topics: &Topics, instance: &str, delivery: Delivery) -> (Message, Option<Message>) {
    let route = topics.route(&delivery);
    let attributes = cloud_event::attributes(instance, &delivery);
    let (body, reply) = match delivery {
        Delivery::ServerStatus { is_online, .. } => return (Message::text(route, status_body(is_online)), None),
        Delivery::Clear { .. } => return (Message::cleared(route.topic), None),
        Delivery::Result { body, reply, .. } => (body, reply),
        Delivery::Event(entry) => (entry.body, None),
        Delivery::Updated { body, .. }
        | Delivery::State { body, .. }
        | Delivery::Files { body, .. }
        | Delivery::Stats { body, .. }
        | Delivery::Info { body }
        | Delivery::Health { body }
        | Delivery::Projected { body, .. } => (body, None),
    };
    let copy = reply.map(|ReplyTo { topic, correlation }| Message {
        content_type: JSON,
        correlation: correlation.map(Bytes::from),
        ..Message::text(Route { topic, qos: Qos::AtLeastOnce, is_retained: false }, body.clone())
    });
    (Message { content_type: JSON, attributes, ..Message::text(route, body) }, copy)
}
