//! A simulated broker: it retains and forgets messages, rejects some, is slow, and loses acknowledgements.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use dtorrent::model::{InfoHash, Kind, Seq, ServerName, SinkName};
use dtorrent::port::{
    CommandAddress, CommandSource, Connected, DeliverError, Delivery, EventOrdering, Incoming, Link, LinkLimits, Sink,
};
use dtorrent::sinks::mqtt::Prefix;
use dtorrent::sinks::mqtt::topics::Topics;
use futures_util::future::BoxFuture;
use tokio::sync::{Notify, oneshot};

use super::disk::short;
use super::env::{SimulationEnv, lock};

/// A broker and everything that arrived there.
pub struct Broker {
    pub name: SinkName,
    env: Arc<SimulationEnv>,
    topics: Topics,
    depth: usize,
    state: Mutex<BrokerState>,
    changed: Notify,
    has_commands: Notify,
}

#[derive(Default)]
pub struct BrokerState {
    pub is_down: bool,
    pub latency_millis: u64,
    /// Percentage of deliveries that arrive without an acknowledgement, which ends the connection.
    pub lost_acks_percent: u32,
    /// Percentage of events that are rejected.
    pub rejected_percent: u32,
    /// Number of the open connection; 0 if there is none.
    connection: u64,
    connections: u64,
    pub arrived: Vec<Arrived>,
    pub retained: BTreeMap<String, Bytes>,
    /// Latest state of each torrent at a subscriber.
    pub subscriber_states: BTreeMap<(ServerName, InfoHash), Bytes>,
    pub rejected: BTreeSet<(ServerName, Seq)>,
    commands: VecDeque<QueuedCommand>,
    commands_ever: u64,
}

pub struct Arrived {
    pub delivery: Delivery,
}

struct QueuedCommand {
    number: u64,
    address: CommandAddress,
    body: Bytes,
    is_delivered: bool,
}

impl Broker {
    pub fn new(name: &str, env: Arc<SimulationEnv>, depth: usize, retains_state: bool) -> Arc<Self> {
        Arc::new(Self {
            name: SinkName::parse(name).unwrap(),
            env,
            topics: Topics::new(Prefix::of_topics("dtorrent").unwrap(), "main", retains_state),
            depth,
            state: Mutex::default(),
            changed: Notify::new(),
            has_commands: Notify::new(),
        })
    }

    /// Reads or changes the broker's state, and wakes its connections.
    pub fn change<T>(&self, change: impl FnOnce(&mut BrokerState) -> T) -> T {
        let result = change(&mut lock(&self.state));
        self.changed.notify_waiters();
        result
    }

    pub fn cut(&self) {
        self.change(|state| state.connection = 0);
    }

    /// Publishes a command.
    pub fn publish(&self, address: CommandAddress, body: Bytes) {
        self.change(|state| {
            state.commands_ever += 1;
            let number = state.commands_ever;
            state.commands.push_back(QueuedCommand { number, address, body, is_delivered: false });
        });
        self.has_commands.notify_one();
    }

    /// Returns whether a command has not been delivered to the bridge yet.
    pub fn has_waiting_commands(&self) -> bool {
        lock(&self.state).commands.iter().any(|waiting| !waiting.is_delivered)
    }

    /// Delivers commands again that the bridge has not acknowledged.
    pub fn redeliver_commands(&self) {
        self.change(|state| state.commands.iter_mut().for_each(|waiting| waiting.is_delivered = false));
        self.has_commands.notify_one();
    }

    /// Returns the retained topic of a torrent's state.
    pub fn state_topic(&self, server: &ServerName, hash: InfoHash) -> Option<String> {
        self.topics.retained_topic(&Delivery::State { server: server.clone(), hash, body: Bytes::new(), retain: true })
    }

    fn arrive(&self, connection: u64, delivery: Delivery) -> Result<(), DeliverError> {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        if state.rejected_percent > 0 && self.env.rng.percent(state.rejected_percent) {
            if let Delivery::Event(entry) = &delivery {
                state.rejected.insert((entry.server.clone(), entry.seq));
            }
            if matches!(delivery, Delivery::Event(_)) {
                self.env.note(|| format!("{} rejects {}", self.name, describe(&delivery)));
                return Err(DeliverError::Rejected { reason: "rejected by the simulation".into() });
            }
        }
        self.env.note(|| format!("{} gets {} on {connection}", self.name, describe(&delivery)));
        let route = self.topics.route(&delivery);
        match &delivery {
            Delivery::Clear { topic } => drop(state.retained.remove(topic)),
            Delivery::State { server, hash, body, .. } => {
                state.subscriber_states.insert((server.clone(), *hash), body.clone());
                if route.is_retained {
                    state.retained.insert(route.topic, body.clone());
                }
            }
            Delivery::Event(entry) if entry.kind == Kind::Removed => {
                let hash = entry.hash.expect("a removed torrent has a hash");
                state.subscriber_states.remove(&(entry.server.clone(), hash));
            }
            _ if route.is_retained => drop(state.retained.insert(route.topic, Bytes::new())),
            _ => {}
        }
        state.arrived.push(Arrived { delivery });
        Ok(())
    }
}

/// Returns a line for the trace.
fn describe(delivery: &Delivery) -> String {
    match delivery {
        Delivery::Event(entry) => {
            format!("event {} {:?} {} {}", entry.seq.0, entry.kind, entry.server, short(entry.hash))
        }
        Delivery::Updated { hash, event, .. } => format!("updated {} {}", short(Some(*hash)), event.id),
        Delivery::State { server, hash, retain, .. } => {
            format!("state {server} {} retain={retain}", short(Some(*hash)))
        }
        Delivery::Result { body, .. } => format!("result {}", String::from_utf8_lossy(body)),
        Delivery::Clear { topic } => format!("clear {topic}"),
        other => format!("{other:?}").chars().take(60).collect(),
    }
}

/// The bridge's sink for a simulated broker.
pub struct SimulatedSink(pub Arc<Broker>);

#[async_trait]
impl Sink for SimulatedSink {
    async fn connect(&self) -> Result<Connected, DeliverError> {
        let Self(broker) = self;
        broker.env.step().await;
        let latency = lock(&broker.state).latency_millis;
        tokio::time::sleep(broker.env.rng.millis(latency)).await;
        let number = broker.change(|state| {
            if state.is_down {
                return None;
            }
            state.connections += 1;
            state.connection = state.connections;
            Some(state.connection)
        });
        let number = number.ok_or_else(|| DeliverError::unavailable("connection refused"))?;
        broker.env.note(|| format!("{} is connected, {number}", broker.name));
        let wire = Arc::new(Wire {
            broker: Arc::clone(broker),
            number,
            queue: Mutex::default(),
            filled: Notify::new(),
            is_broken: AtomicBool::new(false),
        });
        let link = Box::new(Connection { wire: Arc::clone(&wire) });
        Ok(Connected { link, drive: Box::pin(async move { wire.deliver_queued().await }) })
    }

    fn retained_topic(&self, delivery: &Delivery) -> Option<String> {
        self.0.topics.retained_topic(delivery)
    }

    async fn scan_retained(&self, servers: &[ServerName]) -> Result<BTreeMap<ServerName, Vec<String>>, DeliverError> {
        let Self(broker) = self;
        broker.env.step().await;
        let state = lock(&broker.state);
        if state.is_down {
            return Err(DeliverError::unavailable("connection refused"));
        }
        let mut found: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for name in state.retained.keys() {
            if let Some(server) = broker.topics.server_of_retained(name).filter(|server| servers.contains(server)) {
                found.entry(server).or_default().push(name.clone());
            }
        }
        broker.env.note(|| format!("{} retains {found:?}", broker.name));
        Ok(found)
    }

    fn own_retained_topics(&self) -> Vec<String> {
        // The simulated sink publishes no status of its own.
        self.0.topics.own_retained().into_iter().filter(|name| !name.ends_with("/status")).collect()
    }
}

type Acknowledge = oneshot::Sender<Result<(), DeliverError>>;

/// One connection, with the deliveries in flight.
struct Wire {
    broker: Arc<Broker>,
    number: u64,
    queue: Mutex<VecDeque<(Delivery, Acknowledge)>>,
    filled: Notify,
    /// Whether it has ended. Nothing arrives afterwards: a message cannot overtake those that were lost before it.
    is_broken: AtomicBool,
}

impl Wire {
    /// Passes queued deliveries to the broker, in order, until the connection breaks.
    async fn deliver_queued(&self) -> DeliverError {
        loop {
            let changed = self.broker.changed.notified();
            let (is_cut, latency, lost_acks) = {
                let state = lock(&self.broker.state);
                let is_cut = state.is_down || state.connection != self.number;
                (is_cut, state.latency_millis, state.lost_acks_percent)
            };
            if is_cut {
                return self.broken("the connection broke");
            }
            if lock(&self.queue).is_empty() {
                tokio::select! {
                    biased;
                    () = changed => {}
                    () = self.filled.notified() => {}
                }
                continue;
            }
            if latency > 0 {
                tokio::select! {
                    biased;
                    () = changed => continue,
                    () = tokio::time::sleep(self.broker.env.rng.millis(latency)) => {}
                }
            }
            self.broker.env.step().await;
            let Some((delivery, acknowledge)) = lock(&self.queue).pop_front() else { continue };
            let outcome = self.broker.arrive(self.number, delivery);
            if self.broker.env.rng.percent(lost_acks) {
                return self.broken("an acknowledgement was lost");
            }
            self.broker.env.step().await;
            drop(acknowledge.send(outcome)); // the sender may have been dropped
        }
    }

    /// Ends the connection. Some deliveries in flight still arrive, without an acknowledgement.
    fn broken(&self, reason: &str) -> DeliverError {
        let mut queue = lock(&self.queue);
        let was_broken = self.is_broken.swap(true, Ordering::Relaxed);
        while !was_broken && !queue.is_empty() && self.broker.env.rng.percent(60) {
            if let Some((delivery, _)) = queue.pop_front() {
                drop(self.broker.arrive(self.number, delivery));
            }
        }
        queue.clear();
        self.broker.env.note(|| format!("{}: {reason} ({})", self.broker.name, self.number));
        DeliverError::unavailable(reason)
    }
}

struct Connection {
    wire: Arc<Wire>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !lock(&self.wire.queue).is_empty() {
            self.wire.broken("the bridge hung up");
        }
    }
}

#[async_trait]
impl Link for Connection {
    fn limits(&self) -> LinkLimits {
        LinkLimits { window: self.wire.broker.depth, result_bytes_max: None, ordering: EventOrdering::Pipelined }
    }

    fn send(&mut self, delivery: Delivery) -> BoxFuture<'static, Result<(), DeliverError>> {
        let (acknowledge, acknowledged) = oneshot::channel();
        lock(&self.wire.queue).push_back((delivery, acknowledge));
        self.wire.filled.notify_one();
        Box::pin(async move {
            acknowledged.await.unwrap_or_else(|_| Err(DeliverError::unavailable("the connection is over")))
        })
    }

    async fn close(self: Box<Self>) -> Result<(), DeliverError> {
        Ok(())
    }
}

/// The bridge's command source for a simulated broker.
pub struct SimulatedCommandSource(pub Arc<Broker>);

#[async_trait]
impl CommandSource for SimulatedCommandSource {
    async fn next(&mut self) -> Result<Incoming, DeliverError> {
        let Self(broker) = self;
        loop {
            let given = broker.change(|state| {
                let waiting = state.commands.iter_mut().find(|waiting| !waiting.is_delivered)?;
                waiting.is_delivered = true;
                Some((waiting.number, waiting.address.clone(), waiting.body.clone()))
            });
            let Some((number, address, body)) = given else {
                broker.has_commands.notified().await;
                continue;
            };
            let from = Arc::clone(broker);
            let ack = Box::new(move || {
                // After a lost acknowledgement the broker delivers the command again.
                if !from.env.is_crashed() && !from.env.rng.percent(5) {
                    from.change(|state| state.commands.retain(|waiting| waiting.number != number));
                }
            });
            return Ok(Incoming {
                address,
                body_bytes: body.len(),
                body,
                is_retained: false,
                may_have_waited: false,
                expires_in: None,
                reply: None,
                user: None,
                ack,
            });
        }
    }
}
