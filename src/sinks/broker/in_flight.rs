//! A message in flight: the link's end that waits for the broker's answer, and the driver's end that knows it.

use tokio::sync::oneshot;

use crate::port::DeliverError;

/// The answer to one message: the broker took responsibility, or why not.
pub type DeliverResult = Result<(), DeliverError>;

/// The driver's end.
#[derive(Debug)]
pub struct Resolver(oneshot::Sender<DeliverResult>);

/// The link's end.
#[derive(Debug)]
pub struct Acknowledgement(oneshot::Receiver<DeliverResult>);

/// Returns both ends for a message that is about to be sent.
pub fn in_flight() -> (Resolver, Acknowledgement) {
    let (resolver, acknowledgement) = oneshot::channel();
    (Resolver(resolver), Acknowledgement(acknowledgement))
}

impl Resolver {
    /// Passes the answer on.
    pub fn resolve(self, result: DeliverResult) {
        // An error means that nobody waits any more, which is the dispatcher's choice.
        self.0.send(result).ok();
    }
}

impl Acknowledgement {
    /// Waits for the answer; a resolver that was dropped is a connection that was given up.
    pub async fn wait(self) -> DeliverResult {
        self.0.await.unwrap_or_else(|_| Err(given_up()))
    }

    /// Returns the answer if it is known already.
    pub fn try_wait(&mut self) -> Option<DeliverResult> {
        match self.0.try_recv() {
            Ok(result) => Some(result),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(given_up())),
        }
    }
}

/// Returns the failure of messages whose connection was dropped while they were in flight.
pub fn given_up() -> DeliverError {
    DeliverError::unavailable("the connection was given up")
}
