//! The seam to where commands come from.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::{DeliverError, ReplyTo};

/// Largest body of a command that is read, which is also the largest .torrent file that is fetched, in bytes.
pub const BODY_BYTES_MAX: usize = 10 << 20;

/// A source of commands: a broker, for one.
#[async_trait]
pub trait CommandSource: Send {
    /// Has the source call `observer` whenever it has subscribed to the command topics, and when another part of them is
    /// refused than before. Returns whether it does so.
    fn observe_subscriptions(&mut self, _observer: SubscriptionObserver) -> bool {
        false
    }

    /// Waits for the next message, connecting first if there is no connection (one attempt).
    ///
    /// Cancel-safe: a message is handed over whole or comes again.
    ///
    /// # Errors
    /// The connection could not be made or has ended; the next call makes a new one.
    async fn next(&mut self) -> Result<Incoming, DeliverError>;

    /// Stops taking messages until `next` is called again.
    ///
    /// Acknowledgements that are pending are sent at once, and the broker has to queue what comes meanwhile. A source in
    /// which nothing can wait need not implement this.
    async fn pause(&mut self) {}
}

/// Called with the topic filters that a broker refused; with none when all are subscribed to.
pub type SubscriptionObserver = Box<dyn Fn(&[RefusedFilter]) + Send + Sync>;

/// A topic filter of commands that a broker does not let us subscribe to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedFilter {
    /// The filter.
    pub filter: String,
    /// The broker's reason.
    pub reason: String,
}

/// A message on a command topic, not checked yet.
pub struct Incoming {
    /// The levels of its topic.
    pub address: CommandAddress,
    /// Its payload; only the beginning, where there was no memory for all of it.
    pub body: Bytes,
    /// Length of the payload as it came.
    pub body_bytes: usize,
    /// Whether the broker had retained it: such a command is never executed.
    pub is_retained: bool,
    /// Whether it may have waited at the broker while no bridge took commands; for how long, the broker does not say.
    pub may_have_waited: bool,
    /// Time until the message expires at the broker; `None` if it does not.
    pub expires_in: Option<Duration>,
    /// Where the sender wants the result, as the protocol has it.
    pub reply: Option<ReplyTo>,
    /// Who the sender says it is; not proven, for the log only.
    pub user: Option<String>,
    /// Acknowledges the message, once the command is in the log; until then it is delivered again.
    pub ack: Box<dyn FnOnce() + Send>,
}

/// The levels of a command topic, not checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandAddress {
    /// `None` for the bridge itself.
    pub server: Option<String>,
    /// `None` for a command to a server or to the bridge.
    pub hash: Option<String>,
    /// The last level.
    pub verb: String,
}
