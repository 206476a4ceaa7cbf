//! The link to an MQTT broker: publishes deliveries and waits for their acknowledgements.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tracing::warn;

use crate::model::SinkName;
use crate::port::{DeliverError, Delivery, Link, LinkLimits};
use crate::sinks::broker::in_flight::{Acknowledgement, DeliverResult};

use super::message::{Message, messages};
use super::publisher::Publisher;
use super::topics::Topics;
use super::wire::ConnAck;
use crate::sinks::home_assistant::Presence;

/// Maximum number of deliveries in flight, where the broker's Receive Maximum is not smaller.
const WINDOW_MAX: u16 = 100;
/// Part of the broker's Receive Maximum that is reserved for the bridge's own status.
const STATUS_RESERVE: u16 = 2;
/// Capacity of rumqttc's request channel: two messages for each delivery, and some for the bridge's own status.
pub(super) const REQUESTS_MAX: usize = 2 * WINDOW_MAX as usize + 16;
/// Size of a result's packet besides its body: the topic, above all.
const RESULT_OVERHEAD_BYTES: usize = 512;
/// Maximum time for `offline` and DISCONNECT before the connection is dropped.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// The facts about a sink that its links and drivers need.
#[derive(Clone)]
pub(super) struct PublishOptions {
    /// For the log.
    pub sink: SinkName,
    /// Part of the CloudEvents source.
    pub instance: String,
    /// The sink's topics.
    pub topics: Topics,
    /// `None` without Home Assistant.
    pub birth: Option<BirthTopic>,
    /// The bridge does not run: nothing is published about its status, and nothing subscribed to.
    pub is_detached: bool,
    /// Shared by all connections.
    pub quirks: Arc<BrokerQuirks>,
}

/// Peculiarities of a broker, remembered over all connections.
#[derive(Debug, Default)]
pub(super) struct BrokerQuirks {
    /// How many connections in a row ended before the broker answered the question for its name.
    pub unanswered_name_requests: AtomicU32,
}

/// The topic where Home Assistant announces itself, and what is notified of that.
#[derive(Clone)]
pub(super) struct BirthTopic {
    /// Home Assistant's status topic.
    pub topic: String,
    /// Notified of what is published there.
    pub presence: Arc<Presence>,
}

pub(super) struct MqttLink {
    /// Shared with the driver.
    pub options: PublishOptions,
    /// Shared with the driver.
    pub publisher: Publisher,
}

impl MqttLink {
    /// Checks the reply topic once more: it was checked when the command came, but has been in the command log since.
    fn publish_reply(&self, copy: Message) -> Result<Acknowledgement, DeliverError> {
        let checked = self.options.topics.check_reply(&copy.route.topic);
        checked.map_err(|error| DeliverError::Rejected { reason: format!("invalid response topic: {error}") })?;
        self.publisher.publish(copy)
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
        if matches!(delivery, Delivery::Clear { .. }) && !self.publisher.connack.can_retain {
            return Box::pin(async { Ok(()) });
        }
        let (message, copy) = messages(&self.options.topics, &self.options.instance, delivery);
        let sent = self.publisher.publish(message);
        let replied = copy.map(|copy| self.publish_reply(copy));
        let sink = self.options.sink.clone();
        Box::pin(async move {
            sent?.wait().await?;
            let Some(replied) = replied else { return Ok(()) };
            match async { replied?.wait().await }.await {
                // The result is on the result topic; the command's sender chose where else.
                Err(DeliverError::Rejected { reason }) => {
                    warn!(%sink, reason, "reply to a command refused");
                    Ok(())
                }
                result => result,
            }
        })
    }

    async fn close(self: Box<Self>) -> DeliverResult {
        let is_disconnected = self.publisher.begin_close();
        let closing = async {
            if !self.options.is_detached {
                let offline = Message::bridge_status(&self.options.topics, false);
                self.publisher.publish(offline)?.wait().await?;
            }
            if self.publisher.client.disconnect().is_err() || is_disconnected.await.is_err() {
                return Err(DeliverError::unavailable("the connection ended before DISCONNECT was written"));
            }
            Ok(())
        };
        // Without an acknowledged `offline` no DISCONNECT is sent: then the broker publishes the last will.
        match tokio::time::timeout(CLOSE_TIMEOUT, closing).await {
            Ok(result) => result,
            Err(_) => Err(DeliverError::unavailable("the broker did not take `offline` in time")),
        }
    }
}
