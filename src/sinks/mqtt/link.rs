//! One connection that publishes: what is sent on it, and what makes it run.
//!
//! What must hold:
//! - messages go out in the order of `send`, and each is settled by its own acknowledgement: rumqttc
//!   tells packet ids in the order in which it was handed messages, so a queue of tickets beside its
//!   channel says whose each id is (I3, I5);
//! - the first error ends the link: everything unsettled fails, and nothing is sent again here;
//! - where the broker could put one event off and take the next (MQTT 5 has reason codes for that), the link asks for
//!   strict ordering (I5). A mosquitto says "not now" only if a plugin has it do so, so it is exempt once it has been
//!   recognized; the first message that is put off ends the link as [`DeliverError::Deferred`];
//! - while the link is up, the last word on the bridge's status topic is `online`. A will of an earlier
//!   connection may come late, so the link listens to that topic and contradicts;
//! - the lock is held for a few instructions and never while anything is awaited.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::{Instant, Interval, interval};
use tracing::{debug, warn};

use crate::model::SinkName;
use crate::port::{DeliverError, Delivery, EventOrdering, Link, LinkLimits};

use super::homeassistant::Presence;
use super::message::{self, Message, ONLINE};
use super::topics::{Qos, Topics, check_topic};
use super::wire::{Answer, Client, End, Ended, Event, EventLoop, Granted};

/// How many deliveries may be under way where the broker does not ask for less.
const DEPTH_MAX: u16 = 100;
/// Of what the broker lets be under way, this is for our own status.
const RESERVE: u16 = 2;
/// A delivery is at most two messages; the rest is our own.
pub(super) const CHANNEL: usize = 2 * DEPTH_MAX as usize + 16;
/// What stands around the body of a result in its packet: the topic, above all.
const AROUND_BYTES_MAX: usize = 512;
/// At most this often a late `offline` is contradicted.
const CONTRADICT_EVERY: Duration = Duration::from_secs(5);
/// So long after it was written a message has to be acknowledged.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(120);
/// How often that is looked at.
const LOOK_EACH: Duration = Duration::from_secs(10);
/// Where some brokers say what they are, and how one begins that takes what comes in order or hangs up.
const BROKER_NAME: &str = "$SYS/broker/version";
const IN_ORDER: &[u8] = b"mosquitto ";
/// Some brokers may hang up over that question; after so many times it is not asked any more.
const ASKED_MAX: u32 = 2;
/// How long a goodbye may take.
const GOODBYE_WITHIN: Duration = Duration::from_secs(3);

type Verdict = Result<(), DeliverError>;

/// What link and driver share.
#[derive(Clone)]
struct Line {
    client: Client,
    granted: Granted,
    queue: Arc<Mutex<Queue>>,
}

#[derive(Default)]
struct Queue {
    /// Handed over and not yet written, in order.
    waiting: VecDeque<Ticket>,
    /// What the link asks for; `Strict` until the broker is known to be a mosquitto.
    ordering: EventOrdering,
    /// Why nothing more can be sent.
    over: Option<DeliverError>,
    is_leaving: bool,
    /// Told when our DISCONNECT was written.
    left: Option<oneshot::Sender<()>>,
}

/// Who waits for a message to be settled.
struct Ticket {
    packet_bytes: usize,
    /// When it was written, or handed over if it is not yet.
    since: Instant,
    settle: oneshot::Sender<Verdict>,
}

impl Ticket {
    fn settle(self, verdict: Verdict) {
        // An error means that nobody waits any more, which is their choice.
        self.settle.send(verdict).ok();
    }
}

impl Line {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message; where it goes is known at once, what comes of it later.
    ///
    /// # Errors
    /// The broker would not take it, so it is not sent at all.
    fn hand_over(&self, mut message: Message) -> Result<oneshot::Receiver<Verdict>, DeliverError> {
        let packet_bytes = self.check(&message).map_err(|reason| DeliverError::Rejected { reason })?;
        message.route.is_retained &= self.granted.can_retain;
        if !self.granted.can_acknowledge {
            message.route.qos = Qos::AtMostOnce;
        }
        let (settle, settled) = oneshot::channel();
        let ticket = Ticket { packet_bytes, since: Instant::now(), settle };
        let mut queue = self.queue();
        match &queue.over {
            Some(over) => ticket.settle(Err(over.clone())),
            None => self.publish(&mut queue, message, ticket),
        }
        Ok(settled)
    }

    /// Ticket and message under one lock, so that the two queues agree.
    fn publish(&self, queue: &mut Queue, message: Message, ticket: Ticket) {
        queue.waiting.push_back(ticket);
        if self.client.publish(message).is_err()
            && let Some(ticket) = queue.waiting.pop_back()
        {
            // What is handed over after it must not overtake it.
            let error = DeliverError::unavailable("more is under way than was agreed");
            queue.over = Some(error.clone());
            ticket.settle(Err(error));
        }
    }

    /// Returns the size of the packet in bytes, or why it cannot be sent.
    fn check(&self, message: &Message) -> Result<usize, String> {
        check_topic(&message.route.topic).map_err(|error| format!("not a topic to publish to: {error}"))?;
        let (bytes, limit) = (self.client.packet_bytes(message), self.granted.packet_bytes_max);
        if bytes > limit as usize {
            return Err(format!("{bytes} bytes are more than the {limit} that may be sent at once"));
        }
        if message.correlation.as_ref().is_some_and(|data| data.len() > usize::from(u16::MAX)) {
            return Err("the correlation data is longer than MQTT can say".to_owned());
        }
        Ok(bytes)
    }
}

async fn outcome(settled: oneshot::Receiver<Verdict>) -> Verdict {
    settled.await.unwrap_or_else(|_| Err(DeliverError::unavailable("the connection was given up")))
}

/// What it takes to know what a delivery is on this broker.
#[derive(Clone)]
pub(super) struct Voice {
    pub sink: SinkName,
    pub instance: String,
    pub topics: Topics,
    pub birth: Option<Birth>,
    /// It says nothing of whether the bridge is there, and listens to nobody.
    pub is_aside: bool,
    pub manners: Arc<Manners>,
}

/// What is known, over all connections, of how a broker takes things.
#[derive(Debug, Default)]
pub(super) struct Manners {
    /// How often in a row it was asked what it is, and the connection ended before an answer.
    asked: AtomicU32,
}

/// Where Home Assistant says that it is there, and who wants to know.
#[derive(Clone)]
pub(super) struct Birth {
    pub topic: String,
    pub presence: Arc<Presence>,
}

pub(super) struct MqttLink {
    voice: Voice,
    line: Line,
}

impl MqttLink {
    /// Wherever a reply topic comes from, it is looked at again here, the last place that can.
    fn hand_over_copy(&self, copy: Message) -> Result<oneshot::Receiver<Verdict>, DeliverError> {
        let checked = self.voice.topics.check_reply(&copy.route.topic);
        checked.map_err(|error| DeliverError::Rejected { reason: format!("not a topic to answer on: {error}") })?;
        self.line.hand_over(copy)
    }
}

#[async_trait]
impl Link for MqttLink {
    fn limits(&self) -> LinkLimits {
        let Granted { receive_max, packet_bytes_max, .. } = self.line.granted;
        LinkLimits {
            window: usize::from(DEPTH_MAX.min(receive_max).saturating_sub(RESERVE).max(1)),
            result_bytes_max: Some((packet_bytes_max as usize).saturating_sub(AROUND_BYTES_MAX)),
            ordering: self.line.queue().ordering,
        }
    }

    fn send(&mut self, delivery: Delivery) -> BoxFuture<'static, Verdict> {
        if matches!(delivery, Delivery::Clear { .. }) && !self.line.granted.can_retain {
            return Box::pin(async { Ok(()) });
        }
        let (message, copy) = message::messages(&self.voice.topics, &self.voice.instance, delivery);
        let sent = self.line.hand_over(message);
        let copied = copy.map(|copy| self.hand_over_copy(copy));
        let sink = self.voice.sink.clone();
        Box::pin(async move {
            outcome(sent?).await?;
            match copied {
                None => Ok(()),
                Some(copied) => match async { outcome(copied?).await }.await {
                    // The answer stands on the result topic; whoever asked for a copy chose where to.
                    Err(DeliverError::Rejected { reason }) => {
                        warn!(%sink, reason, "the copy of a result was not taken");
                        Ok(())
                    }
                    verdict => verdict,
                },
            }
        })
    }

    async fn close(self: Box<Self>) -> Verdict {
        let (left, has_left) = oneshot::channel();
        {
            let mut queue = self.line.queue();
            queue.is_leaving = true;
            queue.left = Some(left);
        }
        let goodbye = async {
            if !self.voice.is_aside {
                let offline = Message::bridge_status(&self.voice.topics, false);
                outcome(self.line.hand_over(offline)?).await?;
            }
            if self.line.client.disconnect().is_err() || has_left.await.is_err() {
                return Err(DeliverError::unavailable("the connection ended before the goodbye"));
            }
            Ok(())
        };
        // Without an acknowledged `offline` there is no DISCONNECT either: then the will says it.
        match tokio::time::timeout(GOODBYE_WITHIN, goodbye).await {
            Ok(verdict) => verdict,
            Err(_) => Err(DeliverError::unavailable("the broker did not take our goodbye in time")),
        }
    }
}

/// Moves the connection on and settles what was sent.
pub(super) struct Driver {
    voice: Voice,
    line: Line,
    events: EventLoop,
    /// Written and not yet acknowledged, by packet id.
    under_way: HashMap<u16, Ticket>,
    status_topic: String,
    contradicted_at: Option<Instant>,
    /// Something else than `online` was said of us and is to be contradicted then.
    contradict_at: Option<Instant>,
    contradictions: u32,
    is_listening: bool,
    patience: Interval,
}

impl Driver {
    /// Connects; unless it is aside, says `online` and listens to what others say of us.
    pub(super) async fn connect(voice: Voice, client: Client, mut events: EventLoop) -> Result<Self, Ended> {
        let granted = events.connected().await?;
        let ordering = match granted.can_put_off && granted.can_acknowledge {
            true => EventOrdering::Strict,
            false => EventOrdering::Pipelined,
        };
        let queue = Queue { ordering, ..Queue::default() };
        let mut driver = Self {
            status_topic: voice.topics.bridge_status(),
            line: Line { client, granted, queue: Arc::new(Mutex::new(queue)) },
            under_way: HashMap::new(),
            contradicted_at: None,
            contradict_at: None,
            contradictions: 0,
            is_listening: false,
            patience: interval(LOOK_EACH),
            voice,
            events,
        };
        if !driver.voice.is_aside {
            driver.complain();
            driver.say_online().await?;
            driver.listen().await?;
        }
        driver.ask_name();
        Ok(driver)
    }

    pub(super) fn link(&self) -> MqttLink {
        MqttLink { voice: self.voice.clone(), line: self.line.clone() }
    }

    fn complain(&self) {
        let sink = &self.voice.sink;
        if !self.line.granted.can_retain {
            warn!(%sink, "the broker keeps no retained messages: who comes later sees no state and no status");
        }
        if !self.line.granted.can_acknowledge {
            warn!(%sink, "the broker acknowledges nothing (QoS 0 only): what is written counts as delivered");
        }
    }

    async fn say_online(&mut self) -> Result<(), Ended> {
        let online = Message::bridge_status(&self.voice.topics, true);
        let mut settled = self.line.hand_over(online).map_err(|error| Ended::new(End::Other, error.to_string()))?;
        loop {
            match settled.try_recv() {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => {
                    warn!(sink = %self.voice.sink, %error, "nobody is told that the bridge is online");
                    return Ok(());
                }
                Err(oneshot::error::TryRecvError::Empty) => self.step().await?,
                Err(oneshot::error::TryRecvError::Closed) => return Err(Ended::new(End::Other, "given up")),
            }
        }
    }

    async fn listen(&mut self) -> Result<(), Ended> {
        let birth = self.voice.birth.as_ref().map(|birth| birth.topic.clone());
        let topics: Vec<String> = std::iter::once(self.status_topic.clone()).chain(birth).collect();
        self.line
            .client
            .subscribe(topics.into_iter(), Qos::AtLeastOnce)
            .map_err(|_| Ended::new(End::Other, "given up"))?;
        while !self.is_listening {
            self.step().await?;
        }
        Ok(())
    }

    /// Asks what the broker is, where that matters. Nothing waits for the answer; until it comes, ordering is strict.
    fn ask_name(&self) {
        let asked = &self.voice.manners.asked;
        if self.line.queue().ordering == EventOrdering::Strict && asked.load(Ordering::Relaxed) < ASKED_MAX {
            asked.fetch_add(1, Ordering::Relaxed);
            // If it is lost, so is the connection.
            self.line.client.subscribe(std::iter::once(BROKER_NAME.to_owned()), Qos::AtMostOnce).ok();
        }
    }

    /// Runs until the connection is over, and says why.
    pub(super) async fn run(mut self) -> DeliverError {
        loop {
            if let Err(ended) = self.step().await {
                return self.end(ended);
            }
        }
    }

    async fn step(&mut self) -> Result<(), Ended> {
        let contradict_at = self.contradict_at;
        let due = async move {
            match contradict_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            event = self.events.next() => Some(event.map_err(Ended::once_connected)?),
            () = due => None,
            _ = self.patience.tick() => return self.check_patience(),
        };
        match event {
            Some(event) => self.on(event),
            None => {
                self.contradict();
                Ok(())
            }
        }
    }

    fn on(&mut self, event: Event) -> Result<(), Ended> {
        match event {
            Event::Written(id) => self.written(id),
            Event::Acknowledged(id, answer) => self.acknowledged(id, answer),
            Event::Subscribed(_) if self.is_listening => {
                self.voice.manners.asked.store(0, Ordering::Relaxed);
                Ok(())
            }
            Event::Subscribed(answers) => {
                self.is_listening = true;
                let topics = [Some(&self.status_topic), self.voice.birth.as_ref().map(|birth| &birth.topic)];
                for (topic, refusal) in topics.into_iter().flatten().zip(answers) {
                    if let Some(refusal) = refusal {
                        warn!(sink = %self.voice.sink, topic, refusal, "cannot listen to a status that matters");
                    }
                }
                Ok(())
            }
            Event::Received(received) => {
                if let Some(birth) = self.voice.birth.as_ref().filter(|birth| birth.topic == received.topic) {
                    birth.presence.heard(&received.body, received.is_retained);
                }
                if received.topic == BROKER_NAME && received.body.starts_with(IN_ORDER) {
                    self.line.queue().ordering = EventOrdering::Pipelined;
                }
                if received.topic == self.status_topic && &received.body[..] != ONLINE {
                    let earliest = self.contradicted_at.map_or_else(Instant::now, |at| at + CONTRADICT_EVERY);
                    self.contradict_at.get_or_insert(earliest);
                }
                Ok(())
            }
            Event::Left => {
                if let Some(left) = self.line.queue().left.take() {
                    left.send(()).ok();
                }
                Err(Ended::new(End::Other, "closed"))
            }
            Event::Connected(_) | Event::Other => Ok(()),
        }
    }

    fn written(&mut self, id: u16) -> Result<(), Ended> {
        let Some(mut ticket) = self.line.queue().waiting.pop_front() else {
            return Err(Ended::new(End::Other, "more was written than was handed over"));
        };
        ticket.since = Instant::now();
        match id {
            0 => ticket.settle(Ok(())),
            id => drop(self.under_way.insert(id, ticket)),
        }
        Ok(())
    }

    fn acknowledged(&mut self, id: u16, answer: Answer) -> Result<(), Ended> {
        let Some(ticket) = self.under_way.remove(&id) else {
            return Err(Ended::new(End::Other, "the broker acknowledged what was not sent"));
        };
        match answer {
            Answer::Taken => ticket.settle(Ok(())),
            Answer::Refused(reason) => ticket.settle(Err(DeliverError::Rejected { reason: reason.to_owned() })),
            // To go on would deliver what follows before this one.
            Answer::NotNow(reason) => {
                self.under_way.insert(id, ticket);
                return Err(Ended::new(End::Deferred, reason));
            }
        }
        Ok(())
    }

    /// One that is never acknowledged, by a broker that answers otherwise, would be waited for for ever.
    fn check_patience(&self) -> Result<(), Ended> {
        if self.under_way.values().any(|ticket| ticket.since.elapsed() > ACKNOWLEDGED_WITHIN) {
            return Err(Ended::new(End::Other, "the broker does not acknowledge what was published"));
        }
        Ok(())
    }

    fn contradict(&mut self) {
        self.contradict_at = None;
        if self.line.queue().is_leaving {
            return;
        }
        self.contradicted_at = Some(Instant::now());
        self.contradictions += 1;
        match self.contradictions {
            1 => debug!(sink = %self.voice.sink, "a late last will said `offline`: saying `online` again"),
            2 => warn!(
                sink = %self.voice.sink, instance = %self.voice.instance,
                "somebody keeps saying that this bridge is offline: does another use the same `instance`?"
            ),
            _ => {}
        }
        // Not waited for: if it is lost, so is the connection.
        drop(self.line.hand_over(Message::bridge_status(&self.voice.topics, true)));
    }

    fn end(&mut self, ended: Ended) -> DeliverError {
        if ended.kind == End::SentTooLarge {
            self.reject_largest();
        }
        let error = DeliverError::from(ended);
        self.fail_all(&error);
        error
    }

    /// A broker that hangs up over the size of a packet does not say which one it was. Sent again, it would
    /// be the end of the next connection too.
    fn reject_largest(&mut self) {
        let largest = self.under_way.iter().max_by_key(|(_, ticket)| ticket.packet_bytes).map(|(id, _)| *id);
        if let Some(ticket) = largest.and_then(|id| self.under_way.remove(&id)) {
            let reason = format!("{} bytes are more than the broker takes", ticket.packet_bytes);
            ticket.settle(Err(DeliverError::Rejected { reason }));
        }
    }

    fn fail_all(&mut self, error: &DeliverError) {
        let waiting = {
            let mut queue = self.line.queue();
            queue.over.get_or_insert_with(|| error.clone());
            queue.left = None;
            std::mem::take(&mut queue.waiting)
        };
        for ticket in self.under_way.drain().map(|(_, ticket)| ticket).chain(waiting) {
            ticket.settle(Err(error.clone()));
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.fail_all(&DeliverError::unavailable("the connection was given up"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::{BrokerUrl, Prefix, Settings, Version};
    use super::super::topics::Route;
    use super::super::wire::{self, Opening, Protocol, Receipt, Received};
    use super::*;

    /// Of a connection that is never made.
    fn driver(ordering: EventOrdering) -> Driver {
        let settings = Settings {
            name: SinkName::parse("b").unwrap(),
            instance: "main".to_owned(),
            url: BrokerUrl::parse("mqtt://127.0.0.1:1").unwrap(),
            username: None,
            password: None,
            ca_pem: None,
            client_cert: None,
            version: Version::Auto,
            prefix: Prefix::default(),
            servers: Vec::new(),
            retain: crate::model::Retain::All,
            home_assistant: None,
        };
        let (client, events) = wire::open(
            &settings,
            None,
            &Opening {
                protocol: Protocol::V5,
                client_id: "x".to_owned(),
                session: None,
                will: None,
                packet_bytes_max: wire::PACKET_BYTES_MAX,
                channel: CHANNEL,
                receive_max: None,
            },
        );
        let granted = Granted {
            is_session_present: false,
            receive_max: u16::MAX,
            packet_bytes_max: wire::PACKET_BYTES_MAX,
            can_retain: true,
            can_acknowledge: true,
            can_put_off: true,
        };
        let topics = Topics::new(Prefix::default(), "main", true);
        let queue = Queue { ordering, ..Queue::default() };
        Driver {
            status_topic: topics.bridge_status(),
            line: Line { client, granted, queue: Arc::new(Mutex::new(queue)) },
            voice: Voice {
                sink: settings.name,
                instance: settings.instance,
                topics,
                birth: None,
                is_aside: false,
                manners: Arc::default(),
            },
            events,
            under_way: HashMap::new(),
            contradicted_at: None,
            contradict_at: None,
            contradictions: 0,
            is_listening: true,
            patience: interval(LOOK_EACH),
        }
    }

    fn message(name: &str) -> Message {
        let route = Route { topic: name.to_owned(), qos: Qos::AtLeastOnce, is_retained: false };
        Message {
            route,
            body: Default::default(),
            content_type: None,
            is_text: false,
            correlation: None,
            user_properties: Vec::new(),
        }
    }

    fn received(topic: &str, body: &str) -> Received {
        Received {
            topic: topic.to_owned(),
            body: body.to_owned().into(),
            is_retained: true,
            expires_in: None,
            response_topic: None,
            correlation: None,
            user: None,
            receipt: Receipt::NONE,
        }
    }

    #[tokio::test]
    async fn ordering_is_strict_until_the_broker_is_known_to_be_a_mosquitto() {
        for (topic, name, expected) in [
            (BROKER_NAME, "mosquitto version 2.0.11", EventOrdering::Pipelined),
            (BROKER_NAME, "other", EventOrdering::Strict),
            ("dtorrent/home/info", "mosquitto version 2.0.11", EventOrdering::Strict),
        ] {
            let mut driver = driver(EventOrdering::Strict);
            let link = driver.link();
            assert_eq!(link.limits().ordering, EventOrdering::Strict);
            driver.on(Event::Received(Box::new(received(topic, name)))).unwrap();
            assert_eq!(link.limits().ordering, expected, "{topic} {name}");
        }
    }

    #[tokio::test]
    async fn a_message_that_is_put_off_fails_all_in_flight_as_deferred() {
        let mut driver = driver(EventOrdering::Pipelined);
        let [first, second] = ["a", "b"].map(|topic| driver.line.hand_over(message(topic)).unwrap());
        driver.written(1).unwrap();
        driver.written(2).unwrap();
        let ended = driver.acknowledged(1, Answer::NotNow("a quota is used up")).unwrap_err();
        assert!(matches!(driver.end(ended), DeliverError::Deferred { retry_after: Some(_), .. }));
        for settled in [first, second] {
            assert!(matches!(outcome(settled).await, Err(DeliverError::Deferred { .. })));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_never_acknowledged_is_waited_for_two_minutes() {
        let mut driver = driver(EventOrdering::Pipelined);
        drop(driver.line.hand_over(message("a")).unwrap());
        driver.written(1).unwrap();
        tokio::time::advance(ACKNOWLEDGED_WITHIN).await;
        driver.check_patience().unwrap();
        // A later one does not change that.
        drop(driver.line.hand_over(message("b")).unwrap());
        driver.written(2).unwrap();
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(driver.check_patience().is_err());
        driver.acknowledged(1, Answer::Taken).unwrap();
        driver.check_patience().unwrap();
    }
}
