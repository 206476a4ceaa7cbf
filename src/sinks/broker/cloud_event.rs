//! The CloudEvents 1.0 attributes of an event, in binary content mode: the body stays the event's JSON.
//!
//! MQTT carries them as user properties under their own names (MQTT binding §3.1.3.1), NATS as headers with the prefix
//! `ce-` (NATS binding §3.1.3.1).

use crate::model::{JournalEntry, Kind};
use crate::port::Delivery;

/// Returns name and value of each attribute; none for a delivery that is not an event.
pub fn attributes(instance: &str, delivery: &Delivery) -> Vec<(&'static str, String)> {
    let (server, id, kind, hash, time) = match delivery {
        Delivery::Event(JournalEntry { server, id, kind, hash, time, .. }) => (server, id, *kind, *hash, time),
        Delivery::Updated { hash, event, .. } => (&event.server, &event.id, Kind::Updated, Some(*hash), &event.time),
        _ => return Vec::new(),
    };
    // The id is the event's, so that a consumer can drop repetitions (I6): source and id name one event (CloudEvents §3.1.1).
    vec![
        ("specversion", "1.0".to_owned()),
        ("id", id.to_string()),
        ("source", format!("dtorrent/{instance}/{server}")),
        ("type", format!("dtorrent.{}.{}", kind.entity().as_str(), kind.as_str())),
        ("subject", hash.map_or_else(|| server.to_string(), |hash| hash.to_string())),
        ("time", time.to_string()),
    ]
}
