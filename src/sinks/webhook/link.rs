//! The link of a webhook: posts what it is given, one delivery after the other.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::{EventSender, PendingEvent};
use crate::port::{Connected, DeliverError, Delivery, EventOrdering, Link, LinkLimits};
use crate::sinks::in_flight::{DeliverResult, Resolver, in_flight};

/// One delivery in flight: a second one would overtake the first if that failed.
const WINDOW: usize = 1;
/// Capacity of the queue: the dispatcher sends an `updated` and the state behind it in one batch.
const QUEUE_MAX: usize = 16;

/// A delivery on its way to the driver.
struct Queued {
    /// `None`: nothing is posted; acknowledged when everything before it was accepted.
    event: Option<PendingEvent>,
    resolver: Resolver,
}

struct WebhookLink {
    queue: mpsc::Sender<Queued>,
}

pub(super) fn connected(sender: Arc<EventSender>) -> Connected {
    let (queue, queued) = mpsc::channel(QUEUE_MAX);
    Connected { link: Box::new(WebhookLink { queue }), drive: Box::pin(drive(sender, queued)) }
}

/// Posts until one fails; what follows it is not sent on this link.
async fn drive(sender: Arc<EventSender>, mut queue: mpsc::Receiver<Queued>) -> DeliverError {
    while let Some(Queued { event, resolver }) = queue.recv().await {
        let result = match event {
            Some(event) => sender.send(event).await,
            None => Ok(()),
        };
        let failure = result.as_ref().err().filter(|error| !error.is_rejected()).cloned();
        resolver.resolve(result);
        if let Some(failure) = failure {
            // Posting what is behind it would put it before this one (I5).
            queue.close();
            while let Ok(Queued { resolver, .. }) = queue.try_recv() {
                resolver.resolve(Err(failure.clone()));
            }
            return failure;
        }
    }
    DeliverError::unavailable("the link is closed")
}

#[async_trait]
impl Link for WebhookLink {
    fn limits(&self) -> LinkLimits {
        LinkLimits { window: WINDOW, result_bytes_max: None, ordering: EventOrdering::Pipelined }
    }

    fn send(&mut self, delivery: Delivery) -> BoxFuture<'static, DeliverResult> {
        let event = match delivery {
            Delivery::Event(entry) => entry.event().map(|event| PendingEvent::new(event, &entry.body)).map(Some),
            Delivery::Updated { event, body, .. } => Ok(Some(PendingEvent::new(&event, &body))),
            // A webhook has no states; where updates are sent, this one is acknowledged after the update before it.
            _ => Ok(None),
        };
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                let reason = format!("the event cannot be read back: {error}");
                return async { Err(DeliverError::Rejected { reason: reason.into() }) }.boxed();
            }
        };
        let (resolver, acknowledgement) = in_flight();
        // After the end of the driver this drops the resolver, which fails the delivery.
        self.queue.try_send(Queued { event, resolver }).ok();
        acknowledgement.wait().boxed()
    }
}
