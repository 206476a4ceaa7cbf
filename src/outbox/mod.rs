//! The outboxes of each sink and their dispatcher: pending messages, delivered at the pace of the sink.
//!
//! ```text
//!  live state, journal,         Outboxes                          Dispatcher
//!  command log
//!     ┌──────────────► EventOutbox ──────────┐        ┌───────────┐   ┌────────────┐
//!     ├──────────────► StateOutbox ──────────┤ shares │           │   │            │ send   Link
//!     ├──────────────► ResultOutbox ─────────┼──────► │  window   │ ► │ quarantine │ ─────► ═════► receiver
//!     └──────────────► EphemeralOutbox ──────┘        │           │   │            │
//!                          ▲                          └───────────┘   └────────────┘
//!                          └── resolve: acknowledged or rejected ◄──────────┘ outcome
//! ```
//!
//! A [`Dispatcher`] owns one sink: its connection, the window, the backoff. What there is to send comes from four
//! outboxes, each of which keeps to itself what it has sent and what became of it:
//!
//! | outbox | source | rule |
//! | --- | --- | --- |
//! | [`event`] | journal | at least once, in order per server |
//! | [`state`] | snapshot | latest wins; with the registry of retained topics and the projections |
//! | [`result`] | command log | at least once; split or shortened for the receiver |
//! | [`ephemeral`] | live state | lossy; repeated on each new link |
//!
//! Invariants:
//! - a cursor moves on acknowledgement alone, or when a rejected event is a dead letter on disk (I3, I4);
//! - first deliveries are in journal order; whatever ends a link, everything unacknowledged is sent again (I5);
//! - the state of a torrent is held while events of the torrent are undelivered, and read when it is sent (I7);
//! - a retained topic is in the registry on disk before anything is first sent to it;
//! - after an unclean shutdown every state is asserted again: the sink may know more than the store;
//! - one delivery that failed with its link hides no other that was acknowledged before the link ended;
//! - a full disk stops nothing here: what cannot be saved now is saved later, and may be sent twice after a crash.
//!
//! A [`Reader`] serves listeners inside this process; nothing waits for one.

mod background;
pub mod backoff;
pub mod cursor;
mod dead_letters;
pub mod dirty;
mod dispatcher;
mod ephemeral;
mod event;
mod outboxes;
mod parts;
mod projection;
pub mod quarantine;
mod reader;
pub mod registry;
mod result;
mod retained_topics;
pub mod retention;
mod server_events;
mod state;
#[cfg(test)]
mod testing;
mod updates;

use crate::model::{InfoHash, JournalEntry, OutsideText, Seq, ServerName};
use crate::port::{Delivery, StoreError};

pub use dispatcher::Dispatcher;
pub use parts::{DispatcherParts, DispatcherSettings, Reporter, init_sink_progress};
pub use reader::{Missed, ReadFrom, Reader, ReaderItem, ReaderParts};

/// The messages of one kind that one sink still has to be sent.
trait Outbox {
    /// Returns at most about `budget` deliveries, most urgent first; from now on they are in flight. A message that
    /// belongs to another one, as an update to its state, is returned with it.
    ///
    /// # Errors
    /// The store cannot be used any more; a full disk is none.
    async fn next(&mut self, budget: usize) -> Result<Vec<Outgoing>, StoreError>;

    /// Records what became of a delivery that was in flight; returns the journal entry that the sink has by that.
    async fn resolve(&mut self, id: DeliveryId, outcome: Outcome) -> Result<Option<JournalEntry>, StoreError>;

    /// Writes to the store what could not be written before, or was not worth a write of its own.
    async fn save(&mut self) -> Result<(), StoreError>;

    /// The link is gone: everything in flight is pending again.
    fn reset_in_flight(&mut self);

    /// Returns how much is pending or in flight that a stopping process should still deliver.
    fn backlog(&self) -> u64;
}

/// A delivery on its way to the link.
type Outgoing = (DeliveryId, Delivery);

/// The identity of a delivery; the same when it is sent again on another link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryId {
    /// A journal entry.
    Event(ServerName, Seq),
    /// The state of a torrent.
    State(ServerName, InfoHash),
    /// The conflated event that accompanies a state; nothing depends on its outcome.
    Updated(ServerName, InfoHash),
    /// The clearing of a retained topic.
    Clearing(String),
    /// A message of a projection, by its topic.
    Projected(String),
    /// A part of a result, by the number of the result in the command log.
    Result(i64, Piece),
    /// Any other message; nothing depends on its outcome.
    Ephemeral,
}

/// Which part of a result. One that is acknowledged says nothing about another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A part of the result as it was written, from 0.
    Part(usize),
    /// A shorter result in place of the whole, of so many bytes: those that follow are shorter still.
    Substitute(usize),
}

/// The outcome of a delivery: the receiver took responsibility, or refused it for good.
type Outcome = Result<(), Rejection>;

/// The refusal of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rejection {
    /// The reason of the receiver, for people.
    reason: OutsideText,
    /// Not sent at all, because it had ended several connections ([`quarantine`]).
    is_poison: bool,
}
