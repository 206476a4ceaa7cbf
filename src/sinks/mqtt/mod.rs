//! MQTT: events out, commands in, over MQTT 5 or 3.1.1.
//!
//! Two connections to one broker. The first publishes ([`MqttSink`]); it begins anew each time and
//! carries the last will. The second takes commands ([`MqttCommands`]); the broker keeps its session,
//! so that a command that comes while the bridge is away is there when it is back.
//!
//! rumqttc is used for one connection at a time. Its own reconnecting drops what was under way, so
//! after the first error client and event loop are thrown away, and whoever holds the unacknowledged
//! messages sends them again.

mod commands;
pub mod homeassistant;
mod link;
mod message;
pub mod settings;
pub mod topics;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rustls::ClientConfig;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::model::{Retain, ServerName};
use crate::port::{Connected, DeliverError, Delivery, Projection, Sink};
use crate::sinks::tls;

pub use crate::sinks::tls::{ClientCert, TlsError};
pub use commands::MqttCommands;
pub use homeassistant::{HomeAssistant, Limits};
pub use settings::{BrokerUrl, Prefix, Settings, Version};

use homeassistant::names::{Device, Names};
use homeassistant::{HomeAssistantProjection, Presence};
use link::{Birth, Driver, Manners, Voice};
use message::Message;
use topics::{Qos, Route, Topics};
use wire::{Answer, Client, End, Ended, Event, EventLoop, Opening, Protocol};

/// Within this a connection stands and has said `online`, or the attempt has failed.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// A connection that is closed sooner, though the broker let us in at once, is one of a row.
const SHORT: Duration = Duration::from_secs(60);
/// So many of them in a row look like two bridges that take one client id from each other.
const ROW: u32 = 4;

/// What is kept comes at once, before the answer to a later subscription. Brokers that fetch it meanwhile
/// are given so long from one message to the next.
const KEPT_PAUSE: Duration = Duration::from_millis(100);
/// So many kept names are taken in; a server has fewer torrents.
const KEPT_MAX: usize = 200_000;
/// How often a bridge that waits for its namesake looks whether he is gone.
const NAMESAKE_RETRY: Duration = Duration::from_secs(10);
/// Each how many of these the line is taken all the same.
const NAMESAKE_TRY_EACH: u32 = 30;

/// What both connections to a broker have in common.
struct Broker {
    settings: Settings,
    topics: Topics,
    tls: Option<Arc<ClientConfig>>,
    /// The broker said that it does not speak MQTT 5.
    refuses_5: AtomicBool,
    /// Another bridge of our name is online there, so both our connections stay away.
    has_namesake: AtomicBool,
    /// Of Home Assistant, if there is one.
    presence: Arc<Presence>,
    /// What the broker does with what comes behind a message that it puts off.
    manners: Arc<Manners>,
}

impl Broker {
    fn new(settings: Settings) -> Result<Self, TlsError> {
        let tls = match settings.url.transport.is_encrypted() {
            true => Some(tls::client_config(settings.ca_pem.as_deref(), settings.client_cert.as_ref())?),
            false => None,
        };
        let topics = Topics::new(settings.prefix.clone(), &*settings.instance, settings.retain != Retain::None);
        Ok(Self {
            settings,
            topics,
            tls,
            refuses_5: AtomicBool::new(false),
            has_namesake: AtomicBool::new(false),
            presence: Arc::default(),
            manners: Arc::default(),
        })
    }

    fn home_assistant_names(&self) -> Option<Names> {
        let Settings { prefix, instance, home_assistant, .. } = &self.settings;
        let discovery_prefix = home_assistant.as_ref()?.discovery_prefix.clone();
        Some(Names { prefix: prefix.clone(), instance: instance.clone(), discovery_prefix })
    }

    /// Two bridges with one client id take the line from each other, and older brokers do not say so.
    fn suspect_a_namesake(&self, row: &AtomicU32, lived: Duration, end: &DeliverError) {
        let DeliverError::Unavailable { reason, .. } = end else { return };
        let is_of_the_row = lived < SHORT && (reason == wire::CLOSED || reason == wire::TAKEN_OVER);
        if !is_of_the_row {
            row.store(0, Ordering::Relaxed);
        } else if row.fetch_add(1, Ordering::Relaxed) + 1 == ROW {
            warn!(
                sink = %self.settings.name, instance = %self.settings.instance,
                "the broker lets us in and hangs up again and again: does another bridge use the same `instance`?"
            );
        }
    }

    fn open(&self, opening: &Opening) -> (Client, EventLoop) {
        wire::open(&self.settings, self.tls.as_ref(), opening)
    }

    /// Makes one attempt, with `auto` in the newest version that the broker speaks.
    ///
    /// A broker that does not know MQTT 5 says so, or only hangs up. That it said so is remembered; one that
    /// hung up may merely have been about to stop, so it is asked again the next time.
    async fn attempt<T, F>(&self, connect: impl Fn(Protocol) -> F) -> Result<T, Ended>
    where
        F: Future<Output = Result<T, Ended>>,
    {
        let connected = self.attempt_versions(connect).await;
        connected.map_err(|ended| Ended { reason: format!("{}: {}", self.settings.url, ended.reason), ..ended })
    }

    async fn attempt_versions<T, F>(&self, connect: impl Fn(Protocol) -> F) -> Result<T, Ended>
    where
        F: Future<Output = Result<T, Ended>>,
    {
        let is_auto = self.settings.version == Version::Auto;
        let only_311 = self.settings.version == Version::V311 || is_auto && self.refuses_5.load(Ordering::Relaxed);
        if only_311 {
            return within_deadline(connect(Protocol::V311)).await;
        }
        let refusal = match within_deadline(connect(Protocol::V5)).await {
            Err(ended) if is_auto && matches!(ended.kind, End::VersionRefused | End::Closed) => ended,
            result => return result,
        };
        let connected = within_deadline(connect(Protocol::V311)).await?;
        let was_known = refusal.kind == End::VersionRefused && self.refuses_5.swap(true, Ordering::Relaxed);
        if !was_known {
            info!(sink = %self.settings.name, reason = refusal.reason, "no MQTT 5 with this broker: using 3.1.1");
        }
        Ok(connected)
    }
}

async fn read_kept(
    client: &Client,
    events: &mut EventLoop,
    filters: Vec<String>,
) -> Result<Vec<(String, Bytes)>, Ended> {
    let given_up = |_| Ended::new(End::Other, "given up");
    client.subscribe(filters.clone().into_iter(), Qos::AtMostOnce).map_err(given_up)?;
    // The answer to this one comes behind what the first has brought.
    client.subscribe(filters.into_iter().take(1), Qos::AtMostOnce).map_err(given_up)?;
    let mut answers = 0;
    let mut kept: Vec<(String, Bytes)> = Vec::new();
    loop {
        let event = match answers {
            0 | 1 => events.next().await,
            _ => match tokio::time::timeout(KEPT_PAUSE, events.next()).await {
                Ok(event) => event,
                Err(_) => return Ok(kept),
            },
        };
        match event? {
            Event::Subscribed(_) => answers += 1,
            Event::Received(received) if received.is_retained => {
                kept.push((received.topic, received.body));
                if kept.len() >= KEPT_MAX {
                    return Ok(kept);
                }
            }
            _ => {}
        }
    }
}

/// Clears one after the other, each acknowledged before the next: slow, and never more than a broker takes.
async fn clear_kept(client: Client, mut events: EventLoop, names: Vec<String>) -> Result<(), Ended> {
    let given_up = |_| Ended::new(End::Other, "given up");
    let granted = events.connected().await?;
    for name in names.into_iter().filter(|_| granted.can_retain) {
        let mut message = Message::cleared(name);
        if !granted.can_acknowledge {
            message.route.qos = Qos::AtMostOnce;
        }
        client.publish(message).map_err(given_up)?;
        loop {
            match events.next().await? {
                Event::Acknowledged(_, Answer::Taken) | Event::Written(0) => break,
                Event::Acknowledged(_, Answer::Refused(reason) | Answer::NotNow(reason)) => {
                    return Err(Ended::new(End::Other, format!("the broker does not let us clear: {reason}")));
                }
                _ => {}
            }
        }
    }
    if client.disconnect().is_ok() {
        while !matches!(events.next().await?, Event::Left) {}
    }
    Ok(())
}

async fn within_deadline<T>(connecting: impl Future<Output = Result<T, Ended>>) -> Result<T, Ended> {
    match tokio::time::timeout(CONNECT_WITHIN, connecting).await {
        Ok(result) => result,
        Err(_) => Err(Ended::new(End::Other, format!("no connection within {CONNECT_WITHIN:?}"))),
    }
}

/// A broker as a receiver of events.
pub struct MqttSink {
    broker: Arc<Broker>,
    /// Short connections that the broker ended, since the last long one or failed attempt.
    closed_in_a_row: Arc<AtomicU32>,
    /// How often a namesake was looked for.
    namesake_seen: AtomicU32,
}

impl MqttSink {
    /// # Errors
    /// The certificates or the key cannot be used. Nothing is reached yet.
    pub fn new(settings: Settings) -> Result<Self, TlsError> {
        Ok(Self {
            broker: Arc::new(Broker::new(settings)?),
            closed_in_a_row: Arc::default(),
            namesake_seen: AtomicU32::new(0),
        })
    }

    /// The commands that come by this broker, on a connection of their own.
    pub fn commands(&self) -> MqttCommands {
        MqttCommands::of(self.broker.clone())
    }

    /// Connects and leaves again, under another client id and without a word to anybody, so that a
    /// bridge that runs is not disturbed.
    pub async fn probe(&self) -> Result<(), DeliverError> {
        self.look(Vec::new()).await.map(|_| ())
    }

    /// Clears what is kept under these names and all else that can be found of ours, and says how much that was.
    ///
    /// For a bridge that does not run: it would say again what is cleared here.
    pub async fn purge(&self, names: Vec<String>) -> Result<usize, DeliverError> {
        let mut names: BTreeSet<String> = names.into_iter().collect();
        let discovery = self.broker.home_assistant_names().map(|names| names.all_discovery());
        let servers = &self.broker.settings.servers;
        let kept = servers.iter().flat_map(|server| self.broker.topics.kept_of(server)).chain(discovery);
        let own = self.broker.topics.own();
        let found = self.look(kept.chain(own).collect()).await?;
        let is_ours = |topic: &String| {
            let names = self.broker.home_assistant_names();
            self.broker.topics.own().contains(topic)
                || self.broker.topics.server_of_kept(topic).is_some()
                || names.is_some_and(|names| names.device_of(topic).is_some())
        };
        names.extend(found.into_iter().map(|(topic, _)| topic).filter(is_ours));
        // Home Assistant is told of devices before their states go.
        let (discovery, others): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name.ends_with("/config"));
        let names: Vec<String> = discovery.into_iter().chain(others).collect();
        let clear = |protocol| {
            let (client, events) = self.open_aside(protocol);
            clear_kept(client, events, names.clone())
        };
        self.broker.attempt(clear).await.map_err(DeliverError::from)?;
        Ok(names.len())
    }

    /// A connection for a bridge that does not run and has something to hand over all the same: without a will, and
    /// without a word about whether the bridge is there.
    pub async fn connect_aside(&self) -> Result<Connected, DeliverError> {
        let greet = |protocol| {
            let (client, events) = self.open_aside(protocol);
            Driver::connect(Voice { is_aside: true, ..self.voice() }, client, events)
        };
        let driver = self.broker.attempt(greet).await.map_err(DeliverError::from)?;
        Ok(Connected { link: Box::new(driver.link()), drive: Box::pin(driver.run()) })
    }

    /// A connection under a name of its own, which disturbs nobody.
    fn open_aside(&self, protocol: Protocol) -> (Client, EventLoop) {
        self.broker.open(&Opening {
            protocol,
            client_id: format!("dtorrent-{}-probe-{:08x}", self.broker.settings.instance, rand::random::<u32>()),
            session: None,
            will: None,
            packet_bytes_max: wire::PACKET_BYTES_MAX,
            channel: link::CHANNEL,
            receive_max: None,
        })
    }

    /// An `online` that we left there ourselves, and nobody corrected, looks like another bridge: so now and then
    /// the line is taken all the same. Hung up once more, it waits again.
    async fn leave_the_line_to_a_namesake(&self) -> Result<(), DeliverError> {
        if !self.has_namesake().await? {
            self.closed_in_a_row.store(0, Ordering::Relaxed);
            return Ok(());
        }
        if (self.namesake_seen.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(NAMESAKE_TRY_EACH) {
            self.broker.has_namesake.store(false, Ordering::Relaxed);
            self.closed_in_a_row.store(ROW - 1, Ordering::Relaxed);
            return Ok(());
        }
        let instance = &self.broker.settings.instance;
        let reason = format!("another bridge is online as instance `{instance}`: give one of them another");
        Err(DeliverError::Unavailable { reason, retry_after: Some(NAMESAKE_RETRY), gave_reason: true })
    }

    /// While we are not connected somebody is `online` in our name: then the line is left to him. Only
    /// asked when the line was taken from us again and again.
    async fn has_namesake(&self) -> Result<bool, DeliverError> {
        let status = self.look(vec![self.broker.topics.bridge_status()]).await?;
        let has_namesake = status.iter().any(|(_, body)| body == "online");
        if has_namesake && !self.broker.has_namesake.swap(has_namesake, Ordering::Relaxed) {
            let Settings { name, instance, .. } = &self.broker.settings;
            warn!(sink = %name, instance, "another bridge is online in this name: waiting until it is gone");
        }
        self.broker.has_namesake.store(has_namesake, Ordering::Relaxed);
        Ok(has_namesake)
    }

    /// Connects under a name of its own, reads what is kept under these topics, and leaves.
    async fn look(&self, filters: Vec<String>) -> Result<Vec<(String, Bytes)>, DeliverError> {
        let greet = |protocol| {
            let (client, mut events) = self.open_aside(protocol);
            let filters = filters.clone();
            async move {
                events.connected().await?;
                let kept = match filters.is_empty() {
                    true => Vec::new(),
                    false => read_kept(&client, &mut events, filters).await?,
                };
                if client.disconnect().is_ok() {
                    while !matches!(events.next().await?, Event::Left) {}
                }
                Ok(kept)
            }
        };
        self.broker.attempt(greet).await.map_err(DeliverError::from)
    }

    /// What a broker lacks for our last will it says one by one, and before it has said what it grants. The will does
    /// without that and no more: one that is not kept would leave our `online` standing where it is.
    async fn handshake(&self, protocol: Protocol) -> Result<Driver, Ended> {
        let mut will = Message::bridge_status(&self.broker.topics, false).route;
        loop {
            match self.say_hello(protocol, will.clone()).await {
                Err(Ended { kind: End::NoAcknowledging, .. }) if will.qos != Qos::AtMostOnce => {
                    will.qos = Qos::AtMostOnce;
                }
                Err(Ended { kind: End::NoRetaining, .. }) if will.is_retained => will.is_retained = false,
                result => return result,
            }
        }
    }

    async fn say_hello(&self, protocol: Protocol, will: Route) -> Result<Driver, Ended> {
        let Settings { name, instance, .. } = &self.broker.settings;
        let (client, events) = self.broker.open(&Opening {
            protocol,
            client_id: format!("dtorrent-{instance}-{name}"),
            session: None,
            will: Some(will),
            packet_bytes_max: wire::PACKET_BYTES_MAX,
            channel: link::CHANNEL,
            receive_max: None,
        });
        let driver = Driver::connect(self.voice(), client, events).await?;
        info!(sink = %name, broker = %self.broker.settings.url, ?protocol, "connected");
        Ok(driver)
    }

    fn voice(&self) -> Voice {
        let Broker { settings, topics, presence, manners, .. } = &*self.broker;
        let birth = self.broker.home_assistant_names();
        Voice {
            sink: settings.name.clone(),
            instance: settings.instance.clone(),
            topics: topics.clone(),
            birth: birth.map(|names| Birth { topic: names.birth(), presence: Arc::clone(presence) }),
            is_aside: false,
            manners: Arc::clone(manners),
        }
    }
}

#[async_trait]
impl Sink for MqttSink {
    async fn connect(&self) -> Result<Connected, DeliverError> {
        if self.closed_in_a_row.load(Ordering::Relaxed) >= ROW {
            self.leave_the_line_to_a_namesake().await?;
        }
        let connected = self.broker.attempt(|protocol| self.handshake(protocol)).await;
        if connected.is_err() {
            self.closed_in_a_row.store(0, Ordering::Relaxed);
        }
        let driver = connected.map_err(DeliverError::from)?;
        let link = Box::new(driver.link());
        let (broker, row, since) = (self.broker.clone(), Arc::clone(&self.closed_in_a_row), Instant::now());
        let drive = async move {
            let end = driver.run().await;
            broker.suspect_a_namesake(&row, since.elapsed(), &end);
            end
        };
        Ok(Connected { link, drive: Box::pin(drive) })
    }

    fn retained_topic(&self, delivery: &Delivery) -> Option<String> {
        self.broker.topics.retained_topic(delivery)
    }

    fn own_retained_topics(&self) -> Vec<String> {
        self.broker.topics.own()
    }

    fn projection(&self) -> Option<Box<dyn Projection>> {
        let (settings, names) = (&self.broker.settings, self.broker.home_assistant_names()?);
        let wanted = settings.home_assistant.clone()?;
        let presence = Arc::clone(&self.broker.presence);
        Some(Box::new(HomeAssistantProjection::new(wanted, names, &settings.servers, presence)))
    }

    async fn scan_retained(&self, servers: &[ServerName]) -> Result<BTreeMap<ServerName, Vec<String>>, DeliverError> {
        let topics = &self.broker.topics;
        let mut found: BTreeMap<ServerName, Vec<String>> = BTreeMap::new();
        let names = self.broker.home_assistant_names();
        let discovery = names.as_ref().map(Names::all_discovery);
        let filters = servers.iter().flat_map(|server| topics.kept_of(server)).chain(discovery).collect();
        for (topic, _) in self.look(filters).await? {
            // Those of the servers that are there are said anew.
            if let Some(Device::Server(server) | Device::Torrent(server, _)) =
                names.as_ref().and_then(|names| names.device_of(&topic)).filter(|device| match device {
                    Device::Bridge => false,
                    Device::Server(server) => !servers.contains(server),
                    Device::Torrent(..) => true,
                })
            {
                found.entry(server).or_default().push(topic);
                continue;
            }
            if let Some(server) = topics.server_of_kept(&topic).filter(|server| servers.contains(server)) {
                found.entry(server).or_default().push(topic);
            }
        }
        Ok(found)
    }
}
