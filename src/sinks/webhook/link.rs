//! A line that works: what is handed to it is posted, one after the other.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use super::{Line, Post};
use crate::port::{Connected, DeliverError, Delivery, EventOrdering, Link, LinkLimits};

/// More than one delivery at a time would not keep its place if the first one fails.
const WINDOW: usize = 1;
/// An update and what follows it are handed over together.
const QUEUE_MAX: usize = 16;

struct Job {
    /// `None`: nothing is posted, but it counts only when everything before it was taken.
    post: Option<Post>,
    done: oneshot::Sender<Result<(), DeliverError>>,
}

struct WebhookLink {
    jobs: mpsc::Sender<Job>,
}

pub(super) fn begin(line: Arc<Line>) -> Connected {
    let (jobs, queue) = mpsc::channel(QUEUE_MAX);
    Connected { link: Box::new(WebhookLink { jobs }), drive: Box::pin(drive(line, queue)) }
}

/// Posts until one fails: what comes after it is not sent on this link.
async fn drive(line: Arc<Line>, mut queue: mpsc::Receiver<Job>) -> DeliverError {
    while let Some(Job { post, done }) = queue.recv().await {
        let result = match post {
            Some(post) => line.send(post).await,
            None => Ok(()),
        };
        let failure = result.as_ref().err().filter(|error| !error.is_rejected()).cloned();
        if done.send(result).is_err() {
            debug!(sink = %line.name, "nobody waits for what became of an event");
        }
        if let Some(failure) = failure {
            queue.close();
            while let Ok(Job { done, .. }) = queue.try_recv() {
                // Nothing is lost on somebody who has left: it is sent again anyway.
                drop(done.send(Err(failure.clone())));
            }
            return failure;
        }
    }
    over()
}

fn over() -> DeliverError {
    DeliverError::unavailable("the line is closed")
}

#[async_trait]
impl Link for WebhookLink {
    fn limits(&self) -> LinkLimits {
        LinkLimits { window: WINDOW, result_bytes_max: None, ordering: EventOrdering::Pipelined }
    }

    fn send(&mut self, delivery: Delivery) -> BoxFuture<'static, Result<(), DeliverError>> {
        let post = match delivery {
            Delivery::Event(entry) => Some(Post::of(&entry.id, entry.time, entry.body)),
            Delivery::Updated { id, time, body, .. } => Some(Post::of(&id, time, body)),
            // A webhook has no states; where updates are told, this says that the one before it has arrived.
            _ => None,
        };
        let (done, arrival) = oneshot::channel();
        match self.jobs.try_send(Job { post, done }) {
            Ok(()) => arrival.map(|arrived| arrived.unwrap_or_else(|_| Err(over()))).boxed(),
            Err(_) => async { Err(over()) }.boxed(),
        }
    }

    async fn close(self: Box<Self>) -> Result<(), DeliverError> {
        Ok(())
    }
}
