//! The sender of a command, as far as the running process knows it.

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::model::Outcome;

/// Who sent a command, and where it waits. Not in the command log, so it is unknown after a restart.
#[derive(Clone, Debug, Default)]
pub struct CommandSender {
    /// Who the sender says it is; not proven, for the log only.
    pub user: Option<String>,
    /// Where it waits for the result, if it is in this process.
    pub(super) waiter: Option<Waiter>,
}

/// The result of a command, for a caller in this process.
#[derive(Clone, Debug)]
pub struct CallResult {
    /// The result.
    pub outcome: Outcome,
    /// Its JSON, in the bytes that are in the command log and that brokers get.
    pub body: Bytes,
}

/// A place for one result.
#[derive(Clone, Debug)]
pub(super) struct Waiter(mpsc::Sender<CallResult>);

impl Waiter {
    /// Returns a place and what yields its result.
    pub fn new() -> (Self, mpsc::Receiver<CallResult>) {
        let (sender, receiver) = mpsc::channel(1);
        (Self(sender), receiver)
    }

    /// Returns a result that is in the command log.
    pub fn answer(&self, outcome: Outcome, body: Bytes) {
        // Fails if the caller has gone and wants no result; or if a worker had failed right after it answered, and the
        // next one answers with the same.
        let _is_unwanted = self.0.try_send(CallResult { outcome, body }).is_err();
    }
}
