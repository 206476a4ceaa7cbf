//! A message in flight: the link's end that waits for the broker's answer, and the driver's end that knows it.

use tokio::sync::oneshot;
use tracing::warn;

use crate::model::{OutsideText, SinkName};
use crate::port::DeliverError;

/// The answer to one message: the broker took responsibility, or why not.
pub type DeliverResult = Result<(), DeliverError>;

/// The driver's end. Dropped unresolved, it fails the message: a future that waits for an answer always ends.
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
        // An error means that the dispatcher has stopped waiting, and sends the message again.
        self.0.send(result).ok();
    }
}

impl Acknowledgement {
    /// Waits for the answer; a resolver that was dropped is a connection that was given up.
    pub async fn wait(self) -> DeliverResult {
        self.0.await.unwrap_or_else(|_| Err(given_up()))
    }

    /// Whether the bridge's status `online` was answered, without waiting; a refusal is logged, and is an answer too.
    pub fn is_online_answered(&mut self, sink: &SinkName) -> Result<bool, DeliverError> {
        match self.0.try_recv() {
            Ok(Err(error)) if error.is_rejected() => {
                // Access rules that forget the status topic must not stop the events.
                warn!(%sink, %error, "status `online` refused");
                Ok(true)
            }
            Ok(result) => result.map(|()| true),
            Err(oneshot::error::TryRecvError::Empty) => Ok(false),
            Err(oneshot::error::TryRecvError::Closed) => Err(given_up()),
        }
    }
}

/// Waits for the reply to a command's sender, and returns the reason if that is refused.
///
/// A refusal is not the delivery's: the result is on the result address already, and the command's sender chose where else.
pub async fn reply_refusal(
    sink: &SinkName,
    sent: Result<Acknowledgement, DeliverError>,
) -> Result<Option<OutsideText>, DeliverError> {
    match async { sent?.wait().await }.await {
        Ok(()) => Ok(None),
        Err(DeliverError::Rejected { reason }) => {
            warn!(%sink, reason = &*reason, "reply to a command refused");
            Ok(Some(reason))
        }
        Err(error) => Err(error),
    }
}

/// Returns the failure of messages whose connection was dropped while they were in flight.
pub fn given_up() -> DeliverError {
    DeliverError::unavailable("the connection was given up")
}
