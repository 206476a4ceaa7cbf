//! The seam to the receivers of events: brokers and webhooks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::model::{
    Event, InfoHash, JournalEntry, OutsideText, ServerName, ServerState, ServerStats, Snapshot, Timestamp,
};

/// A receiver of events: a broker or a webhook.
#[async_trait]
pub trait Sink: Send + Sync {
    /// Makes one attempt to connect. Retrying is up to the dispatcher, never to a client library.
    async fn connect(&self) -> Result<Connected, DeliverError>;

    /// Returns the topic where the receiver retains this delivery until it is cleared; `None` if nothing is retained.
    ///
    /// Registered in the store before the delivery is first sent.
    fn retained_topic(&self, _delivery: &Delivery) -> Option<String> {
        None
    }

    /// Returns the topics where the sink retains something by itself: its status, for instance.
    fn own_retained_topics(&self) -> Vec<String> {
        Vec::new()
    }

    /// Scans for what the receiver retains of these servers already; by server, the topics.
    ///
    /// Made for a sink that is new to the store, until it succeeds: the state may have been lost, or the sink may have had
    /// another name. A sink that cannot scan, or retains nothing, has found nothing.
    async fn scan_retained(&self, _servers: &[ServerName]) -> Result<BTreeMap<ServerName, Vec<String>>, DeliverError> {
        Ok(BTreeMap::new())
    }

    /// Whether another instance of the bridge publishes a server of ours at the receiver, too, or did so in this run.
    fn has_shared_servers(&self) -> bool {
        false
    }

    /// Whether another instance may have retained what is under this topic: it is neither adopted nor cleared as an orphan.
    fn is_shared(&self, _topic: &str) -> bool {
        false
    }

    /// Whether a delivery is for this sink; one that is not is passed over, and counts as delivered.
    fn wants(&self, _delivery: &Delivery) -> bool {
        true
    }

    /// Returns a new projection of the servers for this sink; one for each run of its dispatcher.
    fn projection(&self) -> Option<Box<dyn Projection>> {
        None
    }

    /// Returns what users should know of how the sink delivers, one sentence each; shown with its health to anybody, so
    /// without the words of the receiver.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Messages for one kind of consumer, derived from snapshots and events: Home Assistant's, for instance.
///
/// Does nothing by itself: the state outbox shows it servers and events, and asks what is due. Times are since it was
/// made. What must not be forgotten is handed out as a text, which is on stable storage before anything is sent that
/// [`Projection::next`] returned after it.
pub trait Projection: Send + Sync {
    /// Continues with what [`Projection::state_to_save`] returned in an earlier run.
    fn restore(&mut self, saved: &str);

    /// Returns a text to be saved, if that is due; `is_last`: the link has ended, and later may be never.
    fn state_to_save(&mut self, at: Duration, is_last: bool) -> Option<String>;

    /// Returns the topics where it retains something, or soon will.
    fn retained_topics(&self) -> Vec<String>;

    /// Begins a new link: everything is to be published again.
    fn begin(&mut self, at: Duration);

    /// Takes in an event that the sink acknowledged.
    fn on_event(&mut self, entry: &JournalEntry, at: Duration);

    /// Takes in that something about this server was published.
    fn on_change(&mut self, server: &ServerName);

    /// Whether it is due to be shown this server.
    fn needs_view(&self, server: &ServerName, at: Duration) -> bool;

    /// Takes in the present state of a server.
    fn update(&mut self, server: &ServerName, view: ServerView<'_>, at: Duration);

    /// Returns the next message that is due: a [`Delivery::Projected`] or a [`Delivery::Clear`].
    fn next(&mut self, at: Duration) -> Option<Delivery>;

    /// Records that the sink acknowledged or refused a message to this topic.
    fn acknowledged(&mut self, topic: &str);

    /// Returns when something is due at the latest.
    fn wake_at(&self, at: Duration) -> Duration;

    /// Returns what wakes the outbox when the receiver has sent something that concerns the projection.
    fn wake(&self) -> Arc<Notify>;
}

/// One server as a projection sees it.
pub struct ServerView<'a> {
    /// Torrents as they were last committed.
    pub snapshot: &'a Snapshot,
    /// State of the server as it was last committed.
    pub state: &'a ServerState,
    /// Statistics of the last successful poll.
    pub stats: &'a ServerStats,
    /// How long the last poll took.
    pub poll: Duration,
    /// Age of the last successful poll; `None` before the first.
    pub poll_age: Option<Duration>,
    /// Why the last poll failed; `None` if it did not.
    pub problem: Option<&'a str>,
    /// The present.
    pub now: Timestamp,
}

/// One connection: what sends on it, and what runs it.
pub struct Connected {
    /// The sending end.
    pub link: Box<dyn Link>,
    /// Runs the connection and ends, with the reason, when it is over. Nothing moves unless it is polled.
    pub drive: BoxFuture<'static, DeliverError>,
}

/// One connection to a sink. The first failure ends it, and everything in flight fails with it.
#[async_trait]
pub trait Link: Send {
    /// Returns the limits that the caller has to keep. They may change while the link is up, as more becomes known of the
    /// receiver.
    fn limits(&self) -> LinkLimits;

    /// Sends in call order. The future ends when the receiver has taken responsibility, or the link is over.
    ///
    /// Never waits itself: the caller keeps to [`LinkLimits::window`].
    fn send(&mut self, delivery: Delivery) -> BoxFuture<'static, Result<(), DeliverError>>;

    /// Closes the connection in the sink's own way, if it has one; `drive` has to be polled meanwhile.
    async fn close(self: Box<Self>) -> Result<(), DeliverError> {
        Ok(())
    }
}

/// The limits of a link: messages at a time, their size and their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkLimits {
    /// Deliveries that may be in flight at once; at least 1.
    pub window: usize,
    /// Largest body of a result in one message, in bytes; `None`: results are never split.
    pub result_bytes_max: Option<usize>,
    /// How many events of one server may be in flight.
    pub ordering: EventOrdering,
}

/// How many events of one server may be in flight at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EventOrdering {
    /// As many as the window allows: the receiver takes messages in the order in which they were sent.
    #[default]
    Pipelined,
    /// One: the receiver may defer an event and take the next.
    Strict,
}

/// A message for a sink. Bodies are the bytes on the wire.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Delivery {
    /// A journal entry.
    Event(JournalEntry),
    /// An `updated` event of the torrent `hash`; `body` is its JSON.
    Updated {
        hash: InfoHash,
        event: Arc<Event>,
        body: Bytes,
    },
    /// A torrent as of the snapshot. `retain`: retained for later subscribers.
    State {
        server: ServerName,
        hash: InfoHash,
        body: Bytes,
        retain: bool,
    },
    Files {
        server: ServerName,
        hash: InfoHash,
        body: Bytes,
    },
    ServerStatus {
        server: ServerName,
        is_online: bool,
    },
    Stats {
        server: ServerName,
        body: Bytes,
    },
    /// Version, servers, limits.
    Info {
        body: Bytes,
    },
    Health {
        body: Bytes,
    },
    /// The result of a command; `server` is `None` for one to the bridge itself.
    Result {
        server: Option<ServerName>,
        body: Bytes,
        reply: Option<ReplyTo>,
    },
    /// A message of the sink's [`Projection`]. `retain`: retained for later subscribers.
    Projected {
        topic: String,
        body: Bytes,
        retain: bool,
    },
    /// Clears what the receiver retains under this topic, which is a [`Sink::retained_topic`].
    Clear {
        topic: String,
    },
}

impl Delivery {
    /// Returns the size of its body, with which it takes memory until it is acknowledged.
    pub fn body_bytes(&self) -> usize {
        match self {
            Self::Event(entry) => entry.body.len(),
            Self::Updated { body, .. }
            | Self::State { body, .. }
            | Self::Files { body, .. }
            | Self::Stats { body, .. }
            | Self::Info { body }
            | Self::Health { body }
            | Self::Result { body, .. }
            | Self::Projected { body, .. } => body.len(),
            Self::ServerStatus { .. } | Self::Clear { .. } => 0,
        }
    }
}

/// Where the sender of a command wants its result, besides the result topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyTo {
    /// A topic or subject.
    pub topic: String,
    /// Bytes that are returned with the result, as they came.
    pub correlation: Option<Vec<u8>>,
}

/// Why a delivery was not acknowledged. All but `Rejected` end the link.
///
/// A reason may have words of the receiver, which may repeat our login or the secret URL; hence its type.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeliverError {
    /// The receiver cannot be reached, or the connection broke: everything unacknowledged is sent again.
    #[error("{reason}")]
    Unavailable {
        reason: OutsideText,
        /// No attempt makes sense before this.
        retry_after: Option<Duration>,
        /// The receiver said why, so it did not hang up over a message that it refuses without a word (MQTT 3.1.1 §3.3.5).
        gave_reason: bool,
    },
    /// The receiver deferred a delivery and may have taken a later one: everything unacknowledged is sent again, and from
    /// then on events are strictly ordered ([`EventOrdering::Strict`]), also after a restart.
    #[error("{reason}")]
    Deferred { reason: OutsideText, retry_after: Option<Duration> },
    /// The receiver will never take this one.
    #[error("rejected: {reason}")]
    Rejected { reason: OutsideText },
}

impl DeliverError {
    /// Returns the failure of a connection that ended without a reason from the receiver.
    pub fn unavailable(reason: impl Into<OutsideText>) -> Self {
        // Without a reason the message in flight may be the cause, so the end counts for the quarantine.
        Self::Unavailable { reason: reason.into(), retry_after: None, gave_reason: false }
    }

    /// Returns the time before which no attempt makes sense.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } | Self::Deferred { retry_after, .. } => *retry_after,
            Self::Rejected { .. } => None,
        }
    }

    /// Whether this delivery alone was refused; everything else ends the link.
    pub fn is_rejected(&self) -> bool {
        matches!(self, Self::Rejected { .. })
    }
}
