//! The seam to where commands come from.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::DeliverError;

/// Where commands come from.
#[async_trait]
pub trait CommandSource: Send {
    /// Waits for the next command, connecting first if there is no connection (one attempt).
    ///
    /// Cancel-safe: a message is handed over whole or comes again.
    ///
    /// # Errors
    /// The connection could not be made or is over; the next call makes a new one.
    async fn next(&mut self) -> Result<Incoming, DeliverError>;

    /// No more is wanted until `next` is called again: the far side is to keep what comes meanwhile, and to be
    /// told at once what was acknowledged. A source that nothing can wait in has nothing to do.
    async fn pause(&mut self) {}
}

/// A message that wants to be a command. Nothing in it is checked yet.
pub struct Incoming {
    pub address: CommandAddress,
    pub body: Bytes,
    /// The broker kept it for whoever comes: it is never carried out.
    pub is_retained: bool,
    /// It may have waited at the broker while nobody took it. How long, the broker does not tell.
    pub may_have_waited: bool,
    /// How much longer its sender wants it done; `None` for no word about that.
    pub expires_in: Option<Duration>,
    pub reply: Option<ReplyTo>,
    /// Who the sender says it is; not proven, for the log alone.
    pub user: Option<String>,
    /// Tells the source that the command is safe in the log; until then it comes again.
    pub ack: Box<dyn FnOnce() + Send>,
}

/// The words of a topic, not checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandAddress {
    /// `None`: the bridge itself.
    pub server: Option<String>,
    pub hash: Option<String>,
    pub verb: String,
}

/// Where the sender of a command wants its answer, besides the result topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyTo {
    pub topic: String,
    pub correlation: Option<Vec<u8>>,
}
