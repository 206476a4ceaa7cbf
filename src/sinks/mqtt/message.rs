//! What a delivery is on the wire: a publish, for some also a second one to whoever asked.
//!
//! Pure: no I/O.

use bytes::Bytes;

use crate::model::{Entity, EventId, InfoHash, Kind, ServerName, Timestamp};
use crate::port::{Delivery, ReplyTo};

use super::topics::{Qos, Route, Topics};

pub const ONLINE: &[u8] = b"online";
pub const OFFLINE: &[u8] = b"offline";

/// One publish. What MQTT 3.1.1 has no field for is left out there.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub route: Route,
    pub body: Bytes,
    pub content_type: Option<&'static str>,
    /// The body is UTF-8.
    pub is_text: bool,
    pub correlation: Option<Bytes>,
    pub user_properties: Vec<(String, String)>,
}

impl Message {
    fn bytes(route: Route, body: Bytes) -> Self {
        Self { route, body, content_type: None, is_text: false, correlation: None, user_properties: Vec::new() }
    }

    fn json(route: Route, body: Bytes) -> Self {
        Self { content_type: Some("application/json"), is_text: true, ..Self::bytes(route, body) }
    }

    /// Whether the bridge is there, for the topic that its last will goes to as well.
    pub fn bridge_status(topics: &Topics, is_online: bool) -> Self {
        let route = Route { topic: topics.bridge_status(), qos: Qos::AtLeastOnce, is_retained: true };
        Self { is_text: true, ..Self::bytes(route, status(is_online)) }
    }
}

impl Message {
    /// Takes back what is kept there.
    pub fn cleared(topic: String) -> Self {
        Self::bytes(Route { topic, qos: Qos::AtLeastOnce, is_retained: true }, Bytes::new())
    }
}

fn status(is_online: bool) -> Bytes {
    Bytes::from_static(if is_online { ONLINE } else { OFFLINE })
}

/// The messages of a delivery: the one itself, and the copy to the sender of a command.
pub fn messages(topics: &Topics, instance: &str, delivery: Delivery) -> (Message, Option<Message>) {
    let route = topics.route(&delivery);
    match delivery {
        Delivery::Event(entry) => {
            let about = attributes(instance, &entry.server, &entry.id, entry.kind, entry.hash, entry.time);
            (Message { user_properties: about, ..Message::json(route, entry.body) }, None)
        }
        Delivery::Updated { server, hash, id, time, body } => {
            let about = attributes(instance, &server, &id, Kind::Updated, Some(hash), time);
            (Message { user_properties: about, ..Message::json(route, body) }, None)
        }
        Delivery::State { body, .. }
        | Delivery::Files { body, .. }
        | Delivery::Stats { body, .. }
        | Delivery::Info { body }
        | Delivery::Health { body }
        | Delivery::Shown { body, .. } => (Message::json(route, body), None),
        Delivery::ServerStatus { is_online, .. } => {
            (Message { is_text: true, ..Message::bytes(route, status(is_online)) }, None)
        }
        Delivery::Result { body, reply, .. } => {
            let copy = reply.map(|ReplyTo { topic, correlation }| Message {
                correlation: correlation.map(Bytes::from),
                ..Message::json(Route { topic, qos: Qos::AtLeastOnce, is_retained: false }, body.clone())
            });
            (Message::json(route, body), copy)
        }
        Delivery::Clear { .. } => (Message::bytes(route, Bytes::new()), None),
    }
}

/// The attributes of a CloudEvent in the binary mode of its MQTT binding.
fn attributes(
    instance: &str,
    server: &ServerName,
    id: &EventId,
    kind: Kind,
    hash: Option<InfoHash>,
    time: Timestamp,
) -> Vec<(String, String)> {
    let entity = match kind.entity() {
        Entity::Torrent => "torrent",
        Entity::Server => "server",
    };
    let attributes = [
        ("specversion", "1.0".to_owned()),
        ("id", id.to_string()),
        ("source", format!("dtorrent/{instance}/{server}")),
        ("type", format!("dtorrent.{entity}.{}", kind.as_str())),
        ("subject", hash.map_or_else(|| server.to_string(), |hash| hash.to_string())),
        ("time", time.to_string()),
    ];
    attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
