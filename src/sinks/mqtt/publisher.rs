//! The sending half of a connection: messages on their way to rumqttc, and who waits for them.
//!
//! rumqttc reports packet ids in the order in which it was handed messages, so a queue beside its channel says which
//! message each id belongs to (I5). The lock is held for a few instructions and never across an await.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::port::{DeliverError, EventOrdering};
use crate::sinks::broker::in_flight::{Acknowledgement, DeliverResult, Resolver, in_flight};

use super::message::Message;
use super::topics::{Qos, check_topic};
use super::wire::{Client, ConnAck};

/// The sending half, shared by link and driver.
#[derive(Clone)]
pub(super) struct Publisher {
    /// Also used for subscriptions and DISCONNECT.
    pub client: Client,
    /// What the broker granted.
    pub connack: ConnAck,
    state: Arc<Mutex<PublisherState>>,
}

pub(super) struct PublisherState {
    /// Queued and not written yet, in order.
    queued: VecDeque<InFlight>,
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
    resolver: Resolver,
}

impl InFlight {
    /// Tells the link what became of the message.
    pub fn resolve(self, result: DeliverResult) {
        self.resolver.resolve(result);
    }
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
        let packet_bytes = self.check(&message).map_err(|reason| DeliverError::Rejected { reason })?;
        message.route.is_retained &= self.connack.can_retain;
        if !self.connack.can_acknowledge {
            message.route.qos = Qos::AtMostOnce;
        }
        let (resolver, acknowledgement) = in_flight();
        // One lock for both queues, so that they agree.
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
        check_topic(&message.route.topic).map_err(|error| format!("invalid topic: {error}"))?;
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
    /// Takes the oldest queued message, which has just been written.
    pub fn written(&mut self) -> Option<InFlight> {
        let message = self.queued.pop_front()?;
        Some(InFlight { since: Instant::now(), ..message })
    }

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
