//! The sending half of a connection: messages on their way to the event loop, and who waits for them.
//!
//! The event loop reports packet ids in the order in which it was handed messages, so a second queue, in step with its channel, says
//! which message each id belongs to (I5). The lock is held for a few instructions and never across an await.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::port::{DeliverError, EventOrdering};
use crate::sinks::in_flight::{Acknowledgement, Resolver, in_flight};

use super::message::Message;
use super::topics::{Qos, SYNTAX};
use super::wire::{Client, ConnAck};

/// Maximum number of deliveries in flight, where the broker's Receive Maximum is not smaller.
pub(super) const WINDOW_MAX: u16 = 100;
/// Capacity of the request channel: two messages for each delivery, and some for the bridge's own status.
pub(super) const REQUESTS_MAX: usize = 2 * WINDOW_MAX as usize + 16;

/// The sending half, shared by link and driver.
#[derive(Clone)]
pub(super) struct Publisher {
    /// Also used for subscriptions and DISCONNECT.
    pub client: Client,
    /// The limits and abilities that the broker stated.
    pub connack: ConnAck,
    state: Arc<Mutex<PublisherState>>,
}

pub(super) struct PublisherState {
    /// Queued and not written yet, in order.
    pub queued: VecDeque<InFlight>,
    /// The ordering that the link asks for.
    pub ordering: EventOrdering,
    /// Why nothing more can be sent.
    ended: Option<DeliverError>,
    /// The link was closed, so the bridge is about to be `offline`.
    pub is_closing: bool,
    /// Notified when our DISCONNECT was written.
    disconnected: Option<oneshot::Sender<()>>,
}

/// A message that is queued or written, and not resolved yet.
pub(super) struct InFlight {
    /// Size of the packet, for the case that the broker rejects it.
    pub packet_bytes: usize,
    /// When it was written, or queued if it is not written yet.
    pub since: Instant,
    /// Gets the outcome.
    pub resolver: Resolver,
}

impl Publisher {
    /// Creates the publisher of a new connection.
    pub fn new(client: Client, connack: ConnAck, ordering: EventOrdering) -> Self {
        let state =
            PublisherState { queued: VecDeque::new(), ordering, ended: None, is_closing: false, disconnected: None };
        Self { client, connack, state: Arc::new(Mutex::new(state)) }
    }

    /// Locks the state; not to be held across an await.
    pub fn state(&self) -> MutexGuard<'_, PublisherState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message. Its place in the order is fixed when this returns.
    ///
    /// # Errors
    /// The broker would not take it, so it is not sent at all.
    pub fn publish(&self, mut message: Message) -> Result<Acknowledgement, DeliverError> {
        let packet_bytes = self.check(&message).map_err(|reason| DeliverError::Rejected { reason: reason.into() })?;
        // A broker without the ability ends the connection over the flag (MQTT 5 §3.2.2.3.5), and over the QoS (§3.2.2.3.4).
        message.route.is_retained &= self.connack.can_retain;
        if !self.connack.can_acknowledge {
            message.route.qos = Qos::AtMostOnce;
        }
        let (resolver, acknowledgement) = in_flight();
        // The event loop reports packet ids only, in the order in which it got the messages: one lock for its channel and our queue,
        // so that no other message comes between the two.
        let mut state = self.state();
        if state.ended.is_none() && self.client.publish(message).is_err() {
            // A later message must not overtake this one.
            state.ended = Some(DeliverError::unavailable("more messages in flight than the link allows"));
        }
        match &state.ended {
            Some(error) => resolver.resolve(Err(error.clone())),
            None => state.queued.push_back(InFlight { packet_bytes, since: Instant::now(), resolver }),
        }
        Ok(acknowledgement)
    }

    /// Returns the size of the packet in bytes, or why it cannot be sent.
    fn check(&self, message: &Message) -> Result<usize, String> {
        SYNTAX.check(&message.route.topic).map_err(|error| format!("invalid topic: {error}"))?;
        let (bytes, limit) = (self.client.packet_bytes(message), self.connack.packet_bytes_max);
        if bytes > limit as usize {
            return Err(format!("{bytes} bytes are more than the {limit} that may be sent at once"));
        }
        if message.correlation.as_ref().is_some_and(|data| data.len() > usize::from(u16::MAX)) {
            return Err("the correlation data is longer than MQTT allows".to_owned());
        }
        Ok(bytes)
    }

    /// Announces the end of the link; the receiver is notified when our DISCONNECT was written.
    pub fn begin_close(&self) -> oneshot::Receiver<()> {
        let (disconnected, is_disconnected) = oneshot::channel();
        let mut state = self.state();
        state.is_closing = true;
        state.disconnected = Some(disconnected);
        is_disconnected
    }
}

impl PublisherState {
    /// Notifies a link that waits for the DISCONNECT.
    pub fn disconnected(&mut self) {
        if let Some(disconnected) = self.disconnected.take() {
            // An error means that the link stopped waiting.
            disconnected.send(()).ok();
        }
    }

    /// Ends the publisher, and returns what was queued.
    pub fn end(&mut self, error: &DeliverError) -> VecDeque<InFlight> {
        self.ended.get_or_insert_with(|| error.clone());
        self.disconnected = None;
        std::mem::take(&mut self.queued)
    }
}
