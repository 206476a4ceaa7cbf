//! The driver of a connection that publishes: moves it on, and resolves what was sent with what the broker answers.
//!
//! Invariants:
//! - each message is resolved by its own acknowledgement, with QoS 0 once it is written (I3);
//! - the first error ends the link: everything unresolved fails, and nothing is sent again here;
//! - where the broker could put one event off and take the next (MQTT 5 has reason codes for that), the link asks for
//!   strict ordering (I5). A mosquitto puts messages off only if a plugin has it do so, so it is exempt once it has been
//!   recognized; the first message that is put off ends the link as [`DeliverError::Deferred`];
//! - while the link is up, the last message on the bridge's status topic is `online` ([`StatusGuard`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, Interval, interval};
use tracing::{debug, warn};

use crate::port::{DeliverError, EventOrdering};
use crate::sinks::broker::ONLINE;
use crate::sinks::in_flight::given_up;

use super::broker::Broker;
use super::link::MqttLink;
use super::message::Message;
use super::publisher::{InFlight, Publisher};
use super::status_guard::StatusGuard;
use super::topics::Qos;
use super::wire::{Client, ConnAck, ConnectionError, ErrorKind, Event, EventLoop, PubAck, Received};

/// Maximum time between writing a message and its acknowledgement: some brokers drop messages without any answer.
const ACK_TIMEOUT: Duration = Duration::from_secs(120);
/// Interval of the checks for it.
const ACK_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// The topic where some brokers publish their name and version.
const BROKER_NAME_TOPIC: &str = "$SYS/broker/version";
/// The beginning of the name of brokers that take messages in order or close the connection.
const IN_ORDER_BROKER: &[u8] = b"mosquitto ";
/// Number of connections in a row that may end over an optional subscription before it is no longer made: some brokers close
/// the connection over one that is not allowed.
pub(super) const OPTIONAL_REQUESTS_MAX: u32 = 2;

/// Drives the connection and resolves what was sent.
pub(super) struct Driver {
    broker: Arc<Broker>,
    publisher: Publisher,
    events: EventLoop,
    /// Written and not acknowledged, by packet id.
    in_flight: HashMap<u16, InFlight>,
    status_topic: String,
    /// Home Assistant's status topic; `None` without Home Assistant.
    birth_topic: Option<String>,
    /// The bridge does not run: nothing is published about its status, and nothing subscribed to.
    is_detached: bool,
    status_guard: StatusGuard,
    /// The subscription to status topics was answered.
    is_subscribed: bool,
    ack_check: Interval,
}

impl Driver {
    /// Connects and, unless detached, publishes `online` and subscribes to the status topics.
    pub(super) async fn connect(
        broker: Arc<Broker>,
        (client, mut events): (Client, EventLoop),
        is_detached: bool,
    ) -> Result<Self, ConnectionError> {
        let connack = events.connected().await?;
        let mut driver = Self::new(broker, client, events, connack, is_detached);
        if !is_detached {
            driver.warn_of_missing_abilities();
            driver.publish_online().await?;
            driver.request_claims()?;
            // Only now: before it the retained status is `offline`, which the guard would take for a late last will.
            driver.subscribe().await?;
        }
        driver.request_broker_name();
        Ok(driver)
    }

    fn new(broker: Arc<Broker>, client: Client, events: EventLoop, connack: ConnAck, is_detached: bool) -> Self {
        let ordering = match connack.can_defer && connack.can_acknowledge {
            true => EventOrdering::Strict,
            false => EventOrdering::Pipelined,
        };
        Self {
            publisher: Publisher::new(client, connack, ordering),
            events,
            in_flight: HashMap::new(),
            status_topic: broker.topics.addresses.bridge_status(),
            birth_topic: broker.home_assistant_names().map(|names| names.birth()),
            is_detached,
            status_guard: StatusGuard::default(),
            is_subscribed: false,
            ack_check: interval(ACK_CHECK_INTERVAL),
            broker,
        }
    }

    pub(super) fn link(&self) -> MqttLink {
        let (broker, publisher) = (Arc::clone(&self.broker), self.publisher.clone());
        MqttLink { broker, publisher, is_detached: self.is_detached }
    }

    fn warn_of_missing_abilities(&self) {
        let sink = &self.broker.settings.name;
        if !self.publisher.connack.can_retain {
            warn!(%sink, "the broker retains no messages: later subscribers see no state and no status");
        }
        if !self.publisher.connack.can_acknowledge {
            warn!(%sink, "the broker has QoS 0 only: messages count as delivered once they are written");
        }
    }

    async fn publish_online(&mut self) -> Result<(), ConnectionError> {
        let failed = |error: DeliverError| ConnectionError::other(error.to_string());
        let online = Message::bridge_status(&self.broker.topics, true);
        let mut online = self.publisher.publish(online).map_err(failed)?;
        while !online.is_online_answered(&self.broker.settings.name).map_err(failed)? {
            self.step().await?;
        }
        Ok(())
    }

    /// Asks which servers other instances publish. Brokers send what is retained before they answer the subscription behind
    /// this one, so it is known when the link begins.
    fn request_claims(&mut self) -> Result<(), ConnectionError> {
        let unanswered = &self.broker.unanswered_claim_requests;
        if unanswered.load(Ordering::Relaxed) < OPTIONAL_REQUESTS_MAX {
            unanswered.fetch_add(1, Ordering::Relaxed);
            let filter = self.broker.topics.info_filter();
            self.publisher.client.subscribe(std::iter::once(filter), Qos::AtMostOnce)?;
        }
        Ok(())
    }

    async fn subscribe(&mut self) -> Result<(), ConnectionError> {
        let topics: Vec<String> = self.status_topics().cloned().collect();
        self.publisher.client.subscribe(topics.into_iter(), Qos::AtLeastOnce)?;
        while !self.is_subscribed {
            self.step().await?;
        }
        Ok(())
    }

    fn status_topics(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.status_topic).chain(&self.birth_topic)
    }

    /// Asks for the broker's name where it matters.
    fn request_broker_name(&self) {
        let unanswered = &self.broker.unanswered_name_requests;
        let is_strict = self.publisher.state().ordering == EventOrdering::Strict;
        if is_strict && unanswered.load(Ordering::Relaxed) < OPTIONAL_REQUESTS_MAX {
            unanswered.fetch_add(1, Ordering::Relaxed);
            // Nothing waits for the answer: until it comes, ordering is strict. If it is lost, so is the connection.
            self.publisher.client.subscribe(std::iter::once(BROKER_NAME_TOPIC.to_owned()), Qos::AtMostOnce).ok();
        }
    }

    /// Runs until the connection is over, and returns the reason.
    pub(super) async fn run(mut self) -> DeliverError {
        loop {
            if let Err(error) = self.step().await {
                return self.end(error);
            }
        }
    }

    async fn step(&mut self) -> Result<(), ConnectionError> {
        tokio::select! {
            event = self.events.next() => self.on_event(event.map_err(ConnectionError::once_connected)?),
            () = self.status_guard.correction_due() => {
                self.correct_status();
                Ok(())
            }
            _ = self.ack_check.tick() => self.check_ack_timeout(),
        }
    }

    fn on_event(&mut self, event: Event) -> Result<(), ConnectionError> {
        match event {
            Event::Written(id) => return self.on_written(id),
            Event::Acknowledged(id, puback) => return self.on_acknowledged(id, puback),
            Event::Subscribed(answers) => {
                for (filter, refusal) in answers {
                    self.on_subscribed(&filter, refusal);
                }
            }
            Event::Received(received) => self.on_received(&received),
            Event::Disconnected => {
                self.publisher.state().disconnected();
                return Err(ConnectionError::other("closed"));
            }
        }
        Ok(())
    }

    fn on_subscribed(&mut self, filter: &str, refusal: Option<String>) {
        let broker = &self.broker;
        if filter == BROKER_NAME_TOPIC {
            return broker.unanswered_name_requests.store(0, Ordering::Relaxed);
        }
        if filter == broker.topics.info_filter() {
            return broker.unanswered_claim_requests.store(0, Ordering::Relaxed);
        }
        self.is_subscribed = true;
        if let Some(refusal) = refusal {
            warn!(sink = %broker.settings.name, topic = filter, refusal, "subscription to a status topic refused");
        }
    }

    fn on_received(&mut self, Received { topic, body, is_retained, .. }: &Received) {
        if self.birth_topic.as_ref() == Some(topic) {
            self.broker.presence.on_status(body, *is_retained);
        }
        if let Some(instance) = self.broker.topics.instance_of_info(topic) {
            self.broker.claims.on_info(instance, body);
        }
        if topic == BROKER_NAME_TOPIC && body.starts_with(IN_ORDER_BROKER) {
            // mosquitto has no reason to put a message off by itself; a plugin that does ends the link as `Deferred`.
            self.publisher.state().ordering = EventOrdering::Pipelined;
        }
        if *topic == self.status_topic && &body[..] != ONLINE {
            self.status_guard.wrong_status_seen();
        }
    }

    fn on_written(&mut self, id: u16) -> Result<(), ConnectionError> {
        let Some(message) = self.publisher.state().queued.pop_front() else {
            return Err(ConnectionError::other("more was written than was handed over"));
        };
        match id {
            // QoS 0 has no acknowledgement: written is all that can be known.
            0 => message.resolver.resolve(Ok(())),
            // Only now does the time for the acknowledgement begin: behind a slow write a message may have been queued for long.
            id => drop(self.in_flight.insert(id, InFlight { since: Instant::now(), ..message })),
        }
        Ok(())
    }

    fn on_acknowledged(&mut self, id: u16, puback: PubAck) -> Result<(), ConnectionError> {
        let Some(message) = self.in_flight.remove(&id) else {
            return Err(ConnectionError::other("the broker acknowledged what was not sent"));
        };
        match puback {
            PubAck::Accepted => message.resolver.resolve(Ok(())),
            PubAck::Refused(reason) => message.resolver.resolve(Err(DeliverError::Rejected { reason: reason.into() })),
            // The broker may take what follows, so the link must not go on: the order would be lost (I5).
            PubAck::Deferred(reason) => {
                self.in_flight.insert(id, message);
                return Err(ConnectionError::new(ErrorKind::Deferred, reason));
            }
        }
        Ok(())
    }

    fn check_ack_timeout(&self) -> Result<(), ConnectionError> {
        if self.in_flight.values().any(|message| message.since.elapsed() > ACK_TIMEOUT) {
            return Err(ConnectionError::other("the broker does not acknowledge what was published"));
        }
        Ok(())
    }

    fn correct_status(&mut self) {
        // `offline` is our own then, on its way before DISCONNECT.
        if self.publisher.state().is_closing {
            self.status_guard.cancel();
            return;
        }
        let sink = &self.broker.settings.name;
        match self.status_guard.corrected() {
            1 => debug!(%sink, "late last will said `offline`, publishing `online` again"),
            2 => warn!(
                %sink, instance = self.broker.settings.instance,
                "status keeps being set to offline: does another bridge use the same `instance`?"
            ),
            _ => {}
        }
        // Not waited for: if it is lost, so is the connection.
        drop(self.publisher.publish(Message::bridge_status(&self.broker.topics, true)));
    }

    fn end(&mut self, error: ConnectionError) -> DeliverError {
        if error.kind == ErrorKind::SentTooLarge {
            self.reject_largest();
        }
        let error = DeliverError::from(error);
        self.fail_all(&error);
        error
    }

    fn reject_largest(&mut self) {
        // A broker that closes the connection over a packet's size does not say which one it was, and the same message would
        // end the next connection too.
        let largest = self.in_flight.iter().max_by_key(|(_, message)| message.packet_bytes).map(|(id, _)| *id);
        if let Some(message) = largest.and_then(|id| self.in_flight.remove(&id)) {
            let reason = format!("{} bytes are more than the broker takes", message.packet_bytes);
            message.resolver.resolve(Err(DeliverError::Rejected { reason: reason.into() }));
        }
    }

    fn fail_all(&mut self, error: &DeliverError) {
        let queued = self.publisher.state().end(error);
        for message in self.in_flight.drain().map(|(_, message)| message).chain(queued) {
            message.resolver.resolve(Err(error.clone()));
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.fail_all(&given_up());
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::demands::{Demands, Protocol};
    use super::super::settings::Settings;
    use super::super::topics::Route;
    use super::super::wire::PACKET_BYTES_MAX;
    use super::*;
    use crate::port::Link as _;

    /// A driver of a connection that is never made.
    fn driver(can_defer: bool) -> Driver {
        let broker = Arc::new(Broker::new(Settings::of_tests("mqtt://127.0.0.1:1")).unwrap());
        let (client, events) = broker.open_probe(&Demands::all(Protocol::V5));
        let connack = ConnAck {
            is_session_present: false,
            receive_max: u16::MAX,
            packet_bytes_max: PACKET_BYTES_MAX,
            can_retain: true,
            can_acknowledge: true,
            can_defer,
            keep_alive: None,
        };
        let mut driver = Driver::new(broker, client, events, connack, false);
        driver.is_subscribed = true;
        driver
    }

    fn message(name: &str) -> Message {
        let route = Route { topic: name.to_owned(), qos: Qos::AtLeastOnce, is_retained: false };
        Message::text(route, Bytes::new())
    }

    fn received(topic: &str, body: &str) -> Received {
        Received { topic: topic.to_owned(), body: body.to_owned().into(), is_retained: true, ..Received::default() }
    }

    #[tokio::test]
    async fn ordering_is_strict_until_the_broker_is_known_to_be_a_mosquitto() {
        for (topic, name, expected) in [
            (BROKER_NAME_TOPIC, "mosquitto version 2.0.11", EventOrdering::Pipelined),
            (BROKER_NAME_TOPIC, "other", EventOrdering::Strict),
            ("dtorrent/home/info", "mosquitto version 2.0.11", EventOrdering::Strict),
        ] {
            let mut driver = driver(true);
            let link = driver.link();
            assert_eq!(link.limits().ordering, EventOrdering::Strict);
            driver.on_event(Event::Received(Box::new(received(topic, name)))).unwrap();
            assert_eq!(link.limits().ordering, expected, "{topic} {name}");
        }
    }

    #[tokio::test]
    async fn a_message_that_is_put_off_fails_all_in_flight_as_deferred() {
        let mut driver = driver(false);
        let [first, second] = ["a", "b"].map(|topic| driver.publisher.publish(message(topic)).unwrap());
        driver.on_written(1).unwrap();
        driver.on_written(2).unwrap();
        let error = driver.on_acknowledged(1, PubAck::Deferred("a quota is used up")).unwrap_err();
        assert!(matches!(driver.end(error), DeliverError::Deferred { retry_after: Some(_), .. }));
        for acknowledgement in [first, second] {
            assert!(matches!(acknowledgement.wait().await, Err(DeliverError::Deferred { .. })));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_acknowledgement_ends_the_link_after_two_minutes() {
        let mut driver = driver(false);
        drop(driver.publisher.publish(message("a")).unwrap());
        driver.on_written(1).unwrap();
        tokio::time::advance(ACK_TIMEOUT).await;
        driver.check_ack_timeout().unwrap();
        // A later one does not change that.
        drop(driver.publisher.publish(message("b")).unwrap());
        driver.on_written(2).unwrap();
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(driver.check_ack_timeout().is_err());
        driver.on_acknowledged(1, PubAck::Accepted).unwrap();
        driver.check_ack_timeout().unwrap();
    }
}
