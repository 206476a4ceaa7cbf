//! A broker that is only imagined: it keeps, forgets, refuses, is slow, loses acknowledgements.

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
use super::stage::{Stage, lock};

/// A broker and all that ever arrived there.
pub struct Broker {
    pub name: SinkName,
    stage: Arc<Stage>,
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
    /// Of a hundred deliveries so many arrive without an acknowledgement, which ends the connection.
    pub lost_acks_percent: u32,
    /// Of a hundred so many are refused.
    pub rejected_percent: u32,
    /// The connection that stands, if one does; counts up.
    connection: u64,
    connections: u64,
    pub arrived: Vec<Arrived>,
    pub kept: BTreeMap<String, Bytes>,
    /// What a subscriber shows as state.
    pub shown: BTreeMap<(ServerName, InfoHash), Bytes>,
    pub rejected: BTreeSet<(ServerName, Seq)>,
    commands: VecDeque<Waiting>,
    commands_ever: u64,
}

pub struct Arrived {
    pub delivery: Delivery,
}

struct Waiting {
    number: u64,
    address: CommandAddress,
    body: Bytes,
    is_given: bool,
}

impl Broker {
    pub fn new(name: &str, stage: Arc<Stage>, depth: usize, keeps_state: bool) -> Arc<Self> {
        Arc::new(Self {
            name: SinkName::parse(name).unwrap(),
            stage,
            topics: Topics::new(Prefix::of_topics("dtorrent").unwrap(), "main", keeps_state),
            depth,
            state: Mutex::default(),
            changed: Notify::new(),
            has_commands: Notify::new(),
        })
    }

    /// Looks at the broker or changes it; connections notice.
    pub fn change<T>(&self, change: impl FnOnce(&mut BrokerState) -> T) -> T {
        let result = change(&mut lock(&self.state));
        self.changed.notify_waiters();
        result
    }

    pub fn cut(&self) {
        self.change(|state| state.connection = 0);
    }

    /// Somebody publishes a command.
    pub fn publish(&self, address: CommandAddress, body: Bytes) {
        self.change(|state| {
            state.commands_ever += 1;
            let number = state.commands_ever;
            state.commands.push_back(Waiting { number, address, body, is_given: false });
        });
        self.has_commands.notify_one();
    }

    /// There are commands that the bridge has not seen yet.
    pub fn has_waiting_commands(&self) -> bool {
        lock(&self.state).commands.iter().any(|waiting| !waiting.is_given)
    }

    /// The bridge is gone: what it did not acknowledge comes again.
    pub fn bridge_is_gone(&self) {
        self.change(|state| state.commands.iter_mut().for_each(|waiting| waiting.is_given = false));
        self.has_commands.notify_one();
    }

    /// The name under which a torrent's state is kept here.
    pub fn name_of_state(&self, server: &ServerName, hash: InfoHash) -> Option<String> {
        self.topics.retained_topic(&Delivery::State { server: server.clone(), hash, body: Bytes::new(), retain: true })
    }

    fn arrive(&self, connection: u64, delivery: Delivery) -> Result<(), DeliverError> {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        if state.rejected_percent > 0 && self.stage.dice.percent(state.rejected_percent) {
            if let Delivery::Event(entry) = &delivery {
                state.rejected.insert((entry.server.clone(), entry.seq));
            }
            if matches!(delivery, Delivery::Event(_)) {
                self.stage.note(|| format!("{} rejects {}", self.name, said(&delivery)));
                return Err(DeliverError::Rejected { reason: "not this one".to_owned() });
            }
        }
        self.stage.note(|| format!("{} gets {} on {connection}", self.name, said(&delivery)));
        let route = self.topics.route(&delivery);
        match &delivery {
            Delivery::Clear { topic } => drop(state.kept.remove(topic)),
            Delivery::State { server, hash, body, .. } => {
                state.shown.insert((server.clone(), *hash), body.clone());
                if route.is_retained {
                    state.kept.insert(route.topic, body.clone());
                }
            }
            Delivery::Event(entry) if entry.kind == Kind::Removed => {
                let hash = entry.hash.expect("a removed torrent has a hash");
                state.shown.remove(&(entry.server.clone(), hash));
            }
            _ if route.is_retained => drop(state.kept.insert(route.topic, Bytes::new())),
            _ => {}
        }
        state.arrived.push(Arrived { delivery });
        Ok(())
    }
}

/// For the trace.
fn said(delivery: &Delivery) -> String {
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

/// The broker as the bridge reaches it.
pub struct Reached(pub Arc<Broker>);

#[async_trait]
impl Sink for Reached {
    async fn connect(&self) -> Result<Connected, DeliverError> {
        let Self(broker) = self;
        broker.stage.step().await;
        let latency = lock(&broker.state).latency_millis;
        tokio::time::sleep(broker.stage.dice.millis(latency)).await;
        let number = broker.change(|state| {
            if state.is_down {
                return None;
            }
            state.connections += 1;
            state.connection = state.connections;
            Some(state.connection)
        });
        let number = number.ok_or_else(|| DeliverError::unavailable("nobody listens"))?;
        broker.stage.note(|| format!("{} is connected, {number}", broker.name));
        let wire = Arc::new(Wire {
            broker: Arc::clone(broker),
            number,
            queue: Mutex::default(),
            filled: Notify::new(),
            is_broken: AtomicBool::new(false),
        });
        let link = Box::new(Connection { wire: Arc::clone(&wire) });
        Ok(Connected { link, drive: Box::pin(async move { wire.carry().await }) })
    }

    fn retained_topic(&self, delivery: &Delivery) -> Option<String> {
        self.0.topics.retained_topic(delivery)
    }

    async fn scan_retained(&self, servers: &[ServerName]) -> Result<BTreeMap<ServerName, Vec<String>>, DeliverError> {
        let Self(broker) = self;
        broker.stage.step().await;
        let state = lock(&broker.state);
        if state.is_down {
            return Err(DeliverError::unavailable("nobody listens"));
        }
        let mut found: BTreeMap<_, Vec<String>> = BTreeMap::new();
        for name in state.kept.keys() {
            if let Some(server) = broker.topics.server_of_retained(name).filter(|server| servers.contains(server)) {
                found.entry(server).or_default().push(name.clone());
            }
        }
        broker.stage.note(|| format!("{} keeps {found:?}", broker.name));
        Ok(found)
    }

    fn own_retained_topics(&self) -> Vec<String> {
        // This one says no status by itself.
        self.0.topics.own_retained().into_iter().filter(|name| !name.ends_with("/status")).collect()
    }
}

type Acknowledge = oneshot::Sender<Result<(), DeliverError>>;

/// One connection, with what is on its way.
struct Wire {
    broker: Arc<Broker>,
    number: u64,
    queue: Mutex<VecDeque<(Delivery, Acknowledge)>>,
    filled: Notify,
    /// From then on nothing arrives: a message cannot overtake those that were lost before it.
    is_broken: AtomicBool,
}

impl Wire {
    /// Carries over what is sent, in order, until the connection breaks.
    async fn carry(&self) -> DeliverError {
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
                    () = tokio::time::sleep(self.broker.stage.dice.millis(latency)) => {}
                }
            }
            self.broker.stage.step().await;
            let Some((delivery, acknowledge)) = lock(&self.queue).pop_front() else { continue };
            let taken = self.broker.arrive(self.number, delivery);
            if self.broker.stage.dice.percent(lost_acks) {
                return self.broken("an acknowledgement was lost");
            }
            self.broker.stage.step().await;
            drop(acknowledge.send(taken)); // whoever sent it may be gone
        }
    }

    /// Some of what was on its way still arrives, and nobody hears of it.
    fn broken(&self, reason: &str) -> DeliverError {
        let mut queue = lock(&self.queue);
        let was_broken = self.is_broken.swap(true, Ordering::Relaxed);
        while !was_broken && !queue.is_empty() && self.broker.stage.dice.percent(60) {
            if let Some((delivery, _)) = queue.pop_front() {
                drop(self.broker.arrive(self.number, delivery));
            }
        }
        queue.clear();
        self.broker.stage.note(|| format!("{}: {reason} ({})", self.broker.name, self.number));
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

/// The commands that come by a broker.
pub struct Commands(pub Arc<Broker>);

#[async_trait]
impl CommandSource for Commands {
    async fn next(&mut self) -> Result<Incoming, DeliverError> {
        let Self(broker) = self;
        loop {
            let given = broker.change(|state| {
                let waiting = state.commands.iter_mut().find(|waiting| !waiting.is_given)?;
                waiting.is_given = true;
                Some((waiting.number, waiting.address.clone(), waiting.body.clone()))
            });
            let Some((number, address, body)) = given else {
                broker.has_commands.notified().await;
                continue;
            };
            let from = Arc::clone(broker);
            let ack = Box::new(move || {
                // An acknowledgement that is lost has the command come again.
                if !from.stage.is_dead() && !from.stage.dice.percent(5) {
                    from.change(|state| state.commands.retain(|waiting| waiting.number != number));
                }
            });
            return Ok(Incoming {
                address,
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
