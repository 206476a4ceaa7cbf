//! The parts that message brokers have in common: addresses of levels, CloudEvents attributes, connections that
//! are made on demand, and what their settings share.
//!
//! MQTT's topics and NATS's subjects are the same levels below a prefix; both carry events as CloudEvents, commands as
//! messages to an address, and presence as `online` or `offline`. What differs stays in the adapters: QoS and retained
//! messages in [`super::mqtt`], streams and acknowledgement subjects in [`super::nats`].

pub mod address;
pub mod cloud_event;
pub mod on_demand;
pub mod prefix;
pub mod url;

use bytes::Bytes;

/// The body of a status message while the bridge runs, or the server is online.
pub const ONLINE: &[u8] = b"online";
/// The body of a status message otherwise, also of the last will.
pub const OFFLINE: &[u8] = b"offline";

/// Returns the body of a status message.
pub fn status_body(is_online: bool) -> Bytes {
    Bytes::from_static(if is_online { ONLINE } else { OFFLINE })
}
