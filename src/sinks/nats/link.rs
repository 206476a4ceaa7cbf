//! The link to a NATS system: hands deliveries to the driver and waits for their acknowledgements.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::System;
use super::connection::ConnectionError;
use super::message::{Message, Messages, Reply, messages};
use super::service_stats::RequestOutcome;
use crate::port::{DeliverError, Delivery, EventOrdering, Link, LinkLimits};
use crate::sinks::in_flight::{Acknowledgement, DeliverResult, Resolver, in_flight, reply_refusal};

/// Maximum number of deliveries in flight.
const WINDOW: usize = 256;
/// Capacity of the channel to the driver: two messages for each delivery, and some for the bridge's own status.
pub(super) const PUBLISHES_MAX: usize = 2 * WINDOW + 16;
/// Maximum time for the last message before the connection is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// A message for the driver to publish.
pub(super) struct Publish {
    /// Subject, headers and body, not larger than the server takes.
    pub message: Message,
    /// Gets the answer.
    pub resolver: Resolver,
}

/// The link of one connection, which [`super::driver::Driver`] moves on.
pub(super) struct NatsLink {
    /// Settings and subjects.
    pub system: Arc<System>,
    /// The ordering that the set-up of the stream needs.
    pub ordering: EventOrdering,
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
            return Err(DeliverError::Rejected { reason: reason.into() });
        }
        Ok(())
    }

    pub(super) fn publish(&self, message: Message) -> Result<Acknowledgement, DeliverError> {
        let (resolver, acknowledgement) = in_flight();
        self.publishes.try_send(Publish { message, resolver }).map_err(|_| unavailable("the connection is over"))?;
        Ok(acknowledgement)
    }

    fn publish_reply(&self, reply: Message) -> Result<Acknowledgement, DeliverError> {
        // Checked once more: it was when the command came, but has been in the command log since.
        let checked = self.system.subjects.addresses.check_reply(&reply.subject);
        checked.map_err(|error| DeliverError::Rejected { reason: format!("invalid reply subject: {error}").into() })?;
        self.publish(reply)
    }
}

/// Returns the failure of a connection that is over; never counted against a message ([`ConnectionError`]).
fn unavailable(reason: impl Into<String>) -> DeliverError {
    ConnectionError::other(reason).into()
}

#[async_trait]
impl Link for NatsLink {
    fn limits(&self) -> LinkLimits {
        // No split results: one request gets one reply, so a result that is too large is shortened.
        LinkLimits { window: WINDOW, result_bytes_max: None, ordering: self.ordering }
    }

    fn send(&mut self, delivery: Delivery) -> BoxFuture<'static, DeliverResult> {
        let System { settings, subjects, .. } = &*self.system;
        if matches!(delivery, Delivery::Clear { .. }) && !settings.jetstream {
            // The bucket of an earlier configuration cannot be reached without JetStream.
            return Box::pin(async { Ok(()) });
        }
        let Messages { own, reply } = messages(subjects, &settings.instance, settings.jetstream, delivery);
        // All or none: a result that is too large is replaced, and must be replied to once. The reply has more headers
        // than the result itself, so it may be too large alone.
        let mut all = own.iter().chain(reply.as_ref().map(|reply| &reply.message));
        if let Err(error) = all.try_for_each(|message| self.check_size(message)) {
            return Box::pin(async { Err(error) });
        }
        let sent: Vec<_> = own.into_iter().map(|message| self.publish(message)).collect();
        let replied = reply.map(|Reply { message, outcome }| (self.publish_reply(message), outcome));
        let system = Arc::clone(&self.system);
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
            if let Some((replied, outcome)) = replied {
                let refusal = reply_refusal(&system.settings.name, replied).await?.map(|reason| reason.to_string());
                system.stats.count_reply(RequestOutcome { error: refusal.or(outcome.error), ..outcome });
            }
            Ok(())
        })
    }

    async fn close(self: Box<Self>) -> DeliverResult {
        let offline = Message::bridge_status(&self.system.subjects, false);
        let closing = timeout(CLOSE_TIMEOUT, async { self.publish(offline)?.wait().await });
        closing.await.map_err(|_| unavailable("the server did not take `offline` in time"))?
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;

    use super::*;
    use crate::model::SinkName;
    use crate::port::ReplyTo;
    use crate::sinks::nats::{Login, Prefix, ServerUrl, Settings};

    fn test_settings() -> Settings {
        Settings {
            name: SinkName::parse("bus").unwrap(),
            instance: "main".to_owned(),
            urls: vec![ServerUrl::parse("nats://127.0.0.1:1").unwrap()],
            login: Login::None,
            trust: crate::tls::Trust::default(),
            client_cert: None,
            prefix: Prefix::default(),
            servers: Vec::new(),
            jetstream: true,
            replicas: 1,
        }
    }

    #[tokio::test]
    async fn a_result_whose_reply_alone_is_too_large_is_rejected_and_none_of_it_is_sent() {
        let body = Bytes::from(r#"{"status":"error","error":{"code":"bad_request","message":"no","retryable":false}}"#);
        let result = || Delivery::Result {
            server: None,
            body: body.clone(),
            reply: Some(ReplyTo { topic: "_INBOX.1".into(), correlation: None }),
        };
        let (publishes, mut sent) = mpsc::channel(PUBLISHES_MAX);
        let system = System::new(test_settings(), BTreeMap::new()).unwrap();
        let Messages { own, reply } = messages(&system.subjects, "main", true, result());
        let (of_own, of_reply) = (own[0].payload_bytes(), reply.unwrap().message.payload_bytes());
        assert!(of_own < of_reply);
        let (system, ordering) = (Arc::new(system), EventOrdering::Pipelined);
        let mut link = NatsLink { system, ordering, publishes, payload_bytes_max: of_reply - 1 };
        assert!(matches!(link.send(result()).await, Err(DeliverError::Rejected { .. })));
        assert!(sent.try_recv().is_err());
        link.payload_bytes_max = of_reply;
        drop(link.send(result()));
        assert!(sent.try_recv().is_ok() && sent.try_recv().is_ok());
    }
}
