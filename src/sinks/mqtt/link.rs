//! The link to an MQTT broker: publishes deliveries and waits for their acknowledgements.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;

use crate::port::{DeliverError, Delivery, Link, LinkLimits};
use crate::sinks::in_flight::{Acknowledgement, DeliverResult, reply_refusal};

use super::broker::Broker;
use super::message::{Message, messages};
use super::publisher::{Publisher, WINDOW_MAX};
use super::wire::ConnAck;

/// Part of the broker's Receive Maximum that is reserved for the bridge's own status.
const STATUS_RESERVE: u16 = 2;
/// Size of a result's packet besides its body: the topic, above all.
const RESULT_OVERHEAD_BYTES: usize = 512;
/// Maximum time for `offline` and DISCONNECT before the connection is dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// The link of one connection, which [`super::driver::Driver`] moves on.
pub(super) struct MqttLink {
    /// Settings and topics.
    pub broker: Arc<Broker>,
    /// Shared with the driver.
    pub publisher: Publisher,
    /// The bridge does not run: nothing is published about its status.
    pub is_detached: bool,
}

impl MqttLink {
    fn publish_reply(&self, reply: Message) -> Result<Acknowledgement, DeliverError> {
        // Checked once more: it was when the command came, but has been in the command log since.
        let checked = self.broker.topics.addresses.check_reply(&reply.route.topic);
        checked
            .map_err(|error| DeliverError::Rejected { reason: format!("invalid response topic: {error}").into() })?;
        self.publisher.publish(reply)
    }
}

#[async_trait]
impl Link for MqttLink {
    fn limits(&self) -> LinkLimits {
        let ConnAck { receive_max, packet_bytes_max, .. } = self.publisher.connack;
        LinkLimits {
            window: usize::from(WINDOW_MAX.min(receive_max).saturating_sub(STATUS_RESERVE).max(1)),
            result_bytes_max: Some((packet_bytes_max as usize).saturating_sub(RESULT_OVERHEAD_BYTES)),
            ordering: self.publisher.state().ordering,
        }
    }

    fn send(&mut self, delivery: Delivery) -> BoxFuture<'static, DeliverResult> {
        // Without the retain flag an empty message clears nothing, and later subscribers of a broker that retains nothing
        // see nothing anyway.
        if matches!(delivery, Delivery::Clear { .. }) && !self.publisher.connack.can_retain {
            return Box::pin(async { Ok(()) });
        }
        let (message, reply) = messages(&self.broker.topics, &self.broker.settings.instance, delivery);
        // Both are queued before the first is waited for: the order is that of the calls (I5).
        let sent = self.publisher.publish(message);
        let replied = reply.map(|reply| self.publish_reply(reply));
        let sink = self.broker.settings.name.clone();
        Box::pin(async move {
            sent?.wait().await?;
            if let Some(replied) = replied {
                reply_refusal(&sink, replied).await?;
            }
            Ok(())
        })
    }

    async fn close(self: Box<Self>) -> DeliverResult {
        let is_disconnected = self.publisher.begin_close();
        let closing = async {
            if !self.is_detached {
                let offline = Message::bridge_status(&self.broker.topics, false);
                self.publisher.publish(offline)?.wait().await?;
            }
            if self.publisher.client.disconnect().is_err() || is_disconnected.await.is_err() {
                return Err(DeliverError::unavailable("the connection ended before DISCONNECT was written"));
            }
            Ok(())
        };
        // Without an acknowledged `offline` no DISCONNECT is sent: then the broker publishes the last will (MQTT 5 §3.1.2.5).
        let timed_out = |_| DeliverError::unavailable("the broker did not take `offline` in time");
        tokio::time::timeout(CLOSE_TIMEOUT, closing).await.map_err(timed_out)?
    }
}
