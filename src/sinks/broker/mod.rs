//! The parts that message brokers have in common: addresses of levels, CloudEvents attributes, connections that
//! are made on demand, and what their settings share.
//!
//! MQTT's topics and NATS's subjects are the same levels below a prefix; both carry events as CloudEvents, commands as
//! messages to an address, and presence as `online` or `offline`. What differs stays in the adapters: QoS and retained
//! messages in [`super::mqtt`], streams and acknowledgement subjects in [`super::nats`].

pub mod address;
pub mod claims;
pub mod cloud_event;
pub mod on_demand;
pub mod other_service;
pub mod prefix;
pub mod url;

use std::collections::BTreeSet;

use async_trait::async_trait;
use bytes::Bytes;

use crate::port::{Clock, CommandSource, Connected, DeliverError, Sink};

/// The body of a status message while the bridge runs, or the server is online.
pub const ONLINE: &[u8] = b"online";
/// The body of a status message otherwise, also of the last will.
pub const OFFLINE: &[u8] = b"offline";

/// Returns the body of a status message.
pub fn status_body(is_online: bool) -> Bytes {
    Bytes::from_static(if is_online { ONLINE } else { OFFLINE })
}

/// The result of a purge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    /// Number of topics or keys that were cleared.
    pub cleared: usize,
    /// Those that were not, because another instance may have retained what is there.
    pub kept: BTreeSet<String>,
}

/// A sink that is a broker: what the bridge does with it besides delivering.
#[async_trait]
pub trait BrokerSink: Sink {
    /// Returns the source of the commands that come by this broker, on a connection of its own; `None` if it needs none.
    ///
    /// `takes_commands`: whether any command is allowed. `incoming_bytes_max`: memory for messages that are not admitted yet.
    fn source(
        &self,
        takes_commands: bool,
        incoming_bytes_max: usize,
        clock: &dyn Clock,
    ) -> Option<Box<dyn CommandSource>>;

    /// Connects and disconnects, without publishing, so that a running bridge is not disturbed.
    async fn probe(&self) -> Result<(), DeliverError>;

    /// Clears these topics or keys and everything else of ours that a scan finds, but nothing of another instance.
    ///
    /// For a bridge that does not run: it would publish again what is cleared here.
    async fn purge(&self, names: Vec<String>) -> Result<Purged, DeliverError>;

    /// Connects for a bridge that does not run and has something to send all the same.
    async fn connect_detached(&self) -> Result<Connected, DeliverError> {
        self.connect().await
    }
}
