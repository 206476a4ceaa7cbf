//! The link to a NATS system: hands deliveries to the driver and waits for their acknowledgements.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::warn;

use super::connection::ConnectionError;
use super::message::{Message, Messages, Reply, messages};
use super::send_history::SendHistory;
use super::service_stats::{RequestOutcome, ServiceStats};
use super::subjects::Subjects;
use crate::model::SinkName;
use crate::port::{DeliverError, Delivery, EventOrdering, Link, LinkLimits};
use crate::sinks::broker::in_flight::{Acknowledgement, DeliverResult, Resolver, in_flight};

/// Maximum number of deliveries in flight.
const WINDOW: usize = 256;
/// Capacity of the channel to the driver: two messages for each delivery, and some for the bridge's own status.
pub(super) const PUBLISHES_MAX: usize = 2 * WINDOW + 16;
/// Maximum time for the last message before the connection is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// The facts about a sink that its links and drivers need.
#[derive(Clone)]
pub(super) struct PublishOptions {
    /// For the log.
    pub sink: SinkName,
    /// Part of the CloudEvents source.
    pub instance: String,
    /// The sink's subjects.
    pub subjects: Subjects,
    /// Whether JetStream is used.
    pub is_stored: bool,
    /// What the link asks for, as the stream is set up.
    pub ordering: EventOrdering,
    /// Whether the system has further servers to connect to.
    pub has_others: bool,
    /// Shared by all connections.
    pub history: Arc<SendHistory>,
    /// Counters of the service, for replies.
    pub stats: Arc<ServiceStats>,
}

/// A message for the driver to publish.
pub(super) struct Publish {
    /// The message.
    pub message: Message,
    /// Gets the answer.
    pub resolver: Resolver,
}

pub(super) struct NatsLink {
    /// Shared with the driver.
    pub options: PublishOptions,
    /// To the driver.
    pub publishes: mpsc::Sender<Publish>,
    /// The server's `max_payload`.
    pub payload_bytes_max: usize,
}

impl NatsLink {
    fn check_size(&self, message: &Message) -> DeliverResult {
        let bytes = message.payload_bytes();
        if bytes > self.payload_bytes_max {
            let reason = format!("{bytes} bytes are more than the {} that the server takes", self.payload_bytes_max);
            return Err(DeliverError::Rejected { reason });
        }
        Ok(())
    }

    pub(super) fn publish(&self, message: Message) -> Result<Acknowledgement, DeliverError> {
        let (resolver, acknowledgement) = in_flight();
        self.publishes.try_send(Publish { message, resolver }).map_err(|_| unavailable("the connection is over"))?;
        Ok(acknowledgement)
    }

    /// Checks the reply subject once more: it was checked when the command came, but has been in the command log since.
    fn publish_reply(&self, reply: Message) -> Result<Acknowledgement, DeliverError> {
        let checked = self.options.subjects.check_reply(&reply.subject);
        checked.map_err(|error| DeliverError::Rejected { reason: format!("invalid reply subject: {error}") })?;
        self.publish(reply)
    }
}

/// Returns the failure of a connection that is over; never counted against a message ([`ConnectionError`]).
pub(super) fn unavailable(reason: impl Into<String>) -> DeliverError {
    ConnectionError::other(reason).into()
}

#[async_trait]
impl Link for NatsLink {
    fn limits(&self) -> LinkLimits {
        LinkLimits { window: WINDOW, result_bytes_max: None, ordering: self.options.ordering }
    }

    fn send(&mut self, delivery: Delivery) -> BoxFuture<'static, DeliverResult> {
        let PublishOptions { sink, instance, subjects, is_stored, stats, .. } = &self.options;
        if matches!(delivery, Delivery::Clear { .. }) && !is_stored {
            // The bucket of an earlier configuration cannot be reached without JetStream.
            return Box::pin(async { Ok(()) });
        }
        let Messages { own, reply } = messages(subjects, instance, *is_stored, delivery);
        // All or none: a result that is too large is replaced, and must be replied to once. The reply has more headers
        // than the result itself, so it may be too large alone.
        let mut all = own.iter().chain(reply.as_ref().map(|reply| &reply.message));
        if let Err(error) = all.try_for_each(|message| self.check_size(message)) {
            return Box::pin(async { Err(error) });
        }
        let sent: Vec<_> = own.into_iter().map(|message| self.publish(message)).collect();
        let replied = reply.map(|Reply { message, outcome }| (self.publish_reply(message), outcome));
        let (sink, stats) = (sink.clone(), Arc::clone(stats));
        Box::pin(async move {
            let mut result = Ok(());
            for acknowledgement in sent {
                let one = acknowledgement?.wait().await;
                // The end of the connection counts more than the refusal of one message.
                if result.is_ok() || one.as_ref().is_err_and(|error| !error.is_rejected()) {
                    result = one;
                }
            }
            result?;
            let Some((replied, outcome)) = replied else { return Ok(()) };
            match async { replied?.wait().await }.await {
                Ok(()) => stats.count_reply(outcome),
                // The result is on the result subject; the command's sender chose where else.
                Err(DeliverError::Rejected { reason }) => {
                    warn!(%sink, reason, "reply to a command refused");
                    stats.count_reply(RequestOutcome { error: Some(reason), ..outcome });
                }
                Err(error) => return Err(error),
            }
            Ok(())
        })
    }

    async fn close(self: Box<Self>) -> DeliverResult {
        let offline = Message::bridge_status(&self.options.subjects, false);
        match timeout(CLOSE_TIMEOUT, async { self.publish(offline)?.wait().await }).await {
            Ok(result) => result,
            Err(_) => Err(unavailable("the server did not take `offline` in time")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;

    use super::*;
    use crate::port::ReplyTo;
    use crate::sinks::nats::settings::Prefix;

    #[tokio::test]
    async fn a_result_whose_reply_alone_is_too_large_is_rejected_and_none_of_it_is_sent() {
        let body = Bytes::from(r#"{"status":"error","error":{"code":"bad_request","message":"no","retryable":false}}"#);
        let result = || Delivery::Result {
            server: None,
            body: body.clone(),
            reply: Some(ReplyTo { topic: "_INBOX.1".into(), correlation: None }),
        };
        let (publishes, mut sent) = mpsc::channel(PUBLISHES_MAX);
        let options = PublishOptions {
            sink: SinkName::parse("bus").unwrap(),
            instance: "main".to_owned(),
            subjects: Subjects::new(Prefix::default(), "main", true),
            is_stored: true,
            ordering: EventOrdering::Pipelined,
            has_others: false,
            history: Arc::new(SendHistory::new(BTreeMap::new())),
            stats: Arc::new(ServiceStats::new(String::new())),
        };
        let Messages { own, reply } = messages(&options.subjects, "main", true, result());
        let (of_own, of_reply) = (own[0].payload_bytes(), reply.unwrap().message.payload_bytes());
        assert!(of_own < of_reply);
        let mut link = NatsLink { options, publishes, payload_bytes_max: of_reply - 1 };
        assert!(matches!(link.send(result()).await, Err(DeliverError::Rejected { .. })));
        assert!(sent.try_recv().is_err());
        link.payload_bytes_max = of_reply;
        drop(link.send(result()));
        assert!(sent.try_recv().is_ok() && sent.try_recv().is_ok());
    }
}
