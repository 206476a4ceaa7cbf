//! The publishes of a delivery: its own, and for a result the copy to the command's sender.
//!
//! Pure: no I/O.

use bytes::Bytes;

use crate::port::{Delivery, ReplyTo};
use crate::sinks::broker::{cloud_event, status_body};

use super::topics::{Qos, Route, Topics};

/// One publish. MQTT 3.1.1 has no properties; there everything but route and body is left out.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Where the message goes, and how.
    pub route: Route,
    /// The payload.
    pub body: Bytes,
    /// The media type of the body.
    pub content_type: Option<&'static str>,
    /// Whether the body is UTF-8 (the payload format indicator).
    pub is_text: bool,
    /// Correlation data of a reply, as the command had it; at most 65,535 bytes.
    pub correlation: Option<Bytes>,
    /// Names and values, in this order.
    pub user_properties: Vec<(String, String)>,
}

impl Message {
    /// Returns a message without properties.
    pub fn bytes(route: Route, body: Bytes) -> Self {
        Self { route, body, content_type: None, is_text: false, correlation: None, user_properties: Vec::new() }
    }

    fn json(route: Route, body: Bytes) -> Self {
        Self { content_type: Some("application/json"), is_text: true, ..Self::bytes(route, body) }
    }

    /// Returns the bridge's own status, in the topic that its last will goes to as well.
    pub fn bridge_status(topics: &Topics, is_online: bool) -> Self {
        let route = Route { topic: topics.addresses.bridge_status(), qos: Qos::AtLeastOnce, is_retained: true };
        Self { is_text: true, ..Self::bytes(route, status_body(is_online)) }
    }

    /// Returns the empty message that clears a retained topic (MQTT 5 §3.3.1.3).
    pub fn cleared(topic: String) -> Self {
        Self::bytes(Route { topic, qos: Qos::AtLeastOnce, is_retained: true }, Bytes::new())
    }
}

/// Returns the message of a delivery, and of a result the copy to the address that the command's sender chose.
pub fn messages(topics: &Topics, instance: &str, delivery: Delivery) -> (Message, Option<Message>) {
    let route = topics.route(&delivery);
    let attributes = cloud_event::attributes(instance, &delivery);
    let message = match delivery {
        Delivery::ServerStatus { is_online, .. } => {
            Message { is_text: true, ..Message::bytes(route, status_body(is_online)) }
        }
        // An empty retained message is how a topic is cleared (MQTT 5 §3.3.1.3).
        Delivery::Clear { .. } => Message::bytes(route, Bytes::new()),
        Delivery::Result { body, reply, .. } => {
            let copy = reply.map(|ReplyTo { topic, correlation }| Message {
                correlation: correlation.map(Bytes::from),
                ..Message::json(Route { topic, qos: Qos::AtLeastOnce, is_retained: false }, body.clone())
            });
            return (Message::json(route, body), copy);
        }
        Delivery::Event(entry) => Message::json(route, entry.body),
        Delivery::Updated { body, .. }
        | Delivery::State { body, .. }
        | Delivery::Files { body, .. }
        | Delivery::Stats { body, .. }
        | Delivery::Info { body }
        | Delivery::Health { body }
        | Delivery::Projected { body, .. } => Message::json(route, body),
    };
    let user_properties = attributes.into_iter().flatten().map(|(name, value)| (name.to_owned(), value)).collect();
    (Message { user_properties, ..message }, None)
}
