//! MQTT: events out, commands in, over MQTT 5 or 3.1.1.
//!
//! Two connections to one broker. The first publishes ([`MqttSink`]); it has a clean session each time and carries the last
//! will. The second takes commands ([`MqttCommands`]); the broker holds its session, so that a command that comes while
//! the bridge is disconnected arrives later.
//!
//! A connection does not reconnect: after the first error client and event loop are dropped, and the dispatcher sends
//! everything unacknowledged again on the next one.

mod broker;
mod client_id;
mod commands;
mod demands;
mod driver;
mod link;
mod message;
mod namesake;
mod publisher;
mod retained;
pub mod settings;
mod status_guard;
pub mod topics;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::model::ServerName;
use crate::port::{Clock, CommandSource, Connected, DeliverError, Delivery, Projection, Sink};
use crate::sinks::broker::claims::INFO_BYTES_MAX;
use crate::sinks::broker::{BrokerSink, Purged};

pub use crate::sinks::home_assistant::{HomeAssistant, Limits};
pub use crate::tls::{ClientCert, TlsError};
pub use commands::MqttCommands;
pub use settings::{BrokerUrl, Prefix, Settings, Version};

use crate::sinks::home_assistant::HomeAssistantProjection;
use crate::sinks::home_assistant::names::{Device, Names};
use broker::Broker;
use client_id::Role;
use demands::{Demands, Duty};
use driver::{Driver, OPTIONAL_REQUESTS_MAX};
use namesake::NAMESAKE_RETRY;
use publisher::REQUESTS_MAX;
use retained::STATUS_BYTES_MAX;
use wire::{ConnectOptions, ConnectionError};

/// A broker as a receiver of events.
pub struct MqttSink {
    broker: Arc<Broker>,
}

impl MqttSink {
    /// Prepares the sink. Nothing is connected to yet.
    ///
    /// # Errors
    /// The certificates or the key cannot be used.
    pub fn new(settings: Settings) -> Result<Self, TlsError> {
        Ok(Self { broker: Arc::new(Broker::new(settings)?) })
    }

    /// Returns the source of the commands that come by this broker, on a connection of its own.
    pub fn commands(&self) -> MqttCommands {
        MqttCommands::new(Arc::clone(&self.broker))
    }

    /// Returns filters that match everything retained for these servers, and every discovery message of ours.
    fn retained_filters(&self, servers: &[ServerName]) -> Vec<String> {
        let discovery = self.broker.home_assistant_names().map(|names| names.all_discovery());
        servers.iter().flat_map(|server| self.broker.topics.retained_filters(server)).chain(discovery).collect()
    }

    async fn read_retained(&self, filters: Vec<String>) -> Result<Vec<(String, Bytes)>, DeliverError> {
        self.read_retained_up_to(filters, STATUS_BYTES_MAX).await
    }

    async fn read_retained_up_to(
        &self,
        filters: Vec<String>,
        body_bytes_max: usize,
    ) -> Result<Vec<(String, Bytes)>, DeliverError> {
        let read = |demands| {
            let (client, events) = self.broker.open_probe(&demands);
            retained::read(client, events, filters.clone(), body_bytes_max)
        };
        Ok(self.broker.attempt(Duty::Short, read).await?)
    }

    /// Reads which servers other instances publish, unless the broker hung up over that several times in a row.
    async fn read_claims(&self) -> Result<(), DeliverError> {
        let Broker { topics, claims, unanswered_claim_requests: unanswered, .. } = &*self.broker;
        if unanswered.load(Ordering::Relaxed) >= OPTIONAL_REQUESTS_MAX {
            return Ok(());
        }
        let read = self.read_retained_up_to(vec![topics.info_filter()], INFO_BYTES_MAX).await;
        // A broker that cannot be reached did not hang up over the question.
        if read.is_err() && self.read_retained(Vec::new()).await.is_ok() {
            unanswered.fetch_add(1, Ordering::Relaxed);
        }
        let infos = read?;
        unanswered.store(0, Ordering::Relaxed);
        for (topic, body) in infos {
            if let Some(instance) = topics.instance_of_info(&topic) {
                claims.on_info(instance, &body);
            }
        }
        Ok(())
    }

    /// Leaves the client id to another bridge, as long as the status says that one is online while we are disconnected.
    async fn yield_to_namesake(&self) -> Result<(), DeliverError> {
        let Broker { settings: Settings { name, instance, .. }, topics, namesake, .. } = &*self.broker;
        let status = self.read_retained(vec![topics.addresses.bridge_status()]).await?;
        if !status.iter().any(|(_, body)| body == "online") {
            namesake.clear();
            return Ok(());
        }
        if !namesake.is_online.swap(true, Ordering::Relaxed) {
            warn!(sink = %name, instance, "another bridge is online in this name: waiting until it is gone");
        }
        if namesake.seen() {
            return Ok(());
        }
        let reason = format!("another bridge is online as instance `{instance}`: give one of them another");
        Err(DeliverError::Unavailable { reason: reason.into(), retry_after: Some(NAMESAKE_RETRY), gave_reason: true })
    }

    /// Connects with these demands.
    async fn handshake(&self, demands: Demands) -> Result<Driver, ConnectionError> {
        let Settings { name, url, .. } = &self.broker.settings;
        let mut options = ConnectOptions::new(&demands, self.broker.settings.client_id(Role::Events), REQUESTS_MAX);
        options.will = Some(self.broker.will(&demands));
        let driver = Driver::connect(Arc::clone(&self.broker), self.broker.open(&options), false).await?;
        info!(sink = %name, broker = %url, protocol = ?demands.protocol, "connected");
        Ok(driver)
    }

    /// Connects with a last will, and disconnects in order, so that it is not published.
    async fn try_will(&self, demands: Demands) -> Result<(), ConnectionError> {
        let mut options = self.broker.probe_options(&demands);
        options.will = Some(self.broker.will(&demands));
        let (client, events) = self.broker.open(&options);
        retained::read(client, events, Vec::new(), 0).await.map(drop)
    }
}

#[async_trait]
impl BrokerSink for MqttSink {
    fn source(
        &self,
        takes_commands: bool,
        _incoming_bytes_max: usize,
        _clock: &dyn Clock,
    ) -> Option<Box<dyn CommandSource>> {
        // Without a subscription there is no second connection to the broker.
        takes_commands.then(|| Box::new(self.commands()) as Box<dyn CommandSource>)
    }

    /// Under another client id than a running bridge.
    async fn probe(&self) -> Result<(), DeliverError> {
        self.broker.attempt(Duty::Short, |demands| self.try_will(demands)).await?;
        // Commands have to be subscribed to; those that are retained there are not carried out.
        let Broker { settings, topics, .. } = &*self.broker;
        self.read_retained(topics.command_filters(&settings.servers)).await?;
        // A login that may not read this can do all that a bridge needs.
        self.read_claims().await.ok();
        Ok(())
    }

    async fn purge(&self, topics: Vec<String>) -> Result<Purged, DeliverError> {
        if let Err(error) = self.read_claims().await {
            let sink = &self.broker.settings.name;
            warn!(%sink, %error, "the servers of other instances cannot be read: what they retain under our names is cleared, too");
        }
        let mut topics: BTreeSet<String> = topics.into_iter().collect();
        let Broker { settings, topics: ours, .. } = &*self.broker;
        let names = self.broker.home_assistant_names();
        let found =
            self.read_retained([self.retained_filters(&settings.servers), ours.own_retained()].concat()).await?;
        let is_ours = |topic: &String| {
            ours.own_retained().contains(topic)
                || ours.server_of_retained(topic).is_some()
                || names.as_ref().is_some_and(|names| names.device_of(topic).is_some())
        };
        topics.extend(found.into_iter().map(|(topic, _)| topic).filter(is_ours));
        let (kept, topics): (BTreeSet<String>, BTreeSet<String>) =
            topics.into_iter().partition(|topic| self.is_shared(topic));
        // Devices go before their states: without a state Home Assistant would show them as unavailable meanwhile.
        let (discovery, others): (Vec<_>, Vec<_>) = topics.into_iter().partition(|topic| topic.ends_with("/config"));
        let topics = [discovery, others].concat();
        let clear = |demands| {
            let (client, events) = self.broker.open_probe(&demands);
            retained::clear(client, events, topics.clone())
        };
        self.broker.attempt(Duty::Short, clear).await?;
        Ok(Purged { cleared: topics.len(), kept })
    }

    /// Without a last will, and without publishing a status.
    async fn connect_detached(&self) -> Result<Connected, DeliverError> {
        let connect =
            |demands: Demands| Driver::connect(Arc::clone(&self.broker), self.broker.open_probe(&demands), true);
        let driver = self.broker.attempt(Duty::Short, connect).await?;
        Ok(Connected { link: Box::new(driver.link()), drive: Box::pin(driver.run()) })
    }
}

#[async_trait]
impl Sink for MqttSink {
    async fn connect(&self) -> Result<Connected, DeliverError> {
        let namesake = &self.broker.namesake;
        if namesake.is_raised() {
            self.yield_to_namesake().await?;
        }
        let connected = self.broker.attempt(Duty::Lasting, |demands| self.handshake(demands)).await;
        if connected.is_err() {
            // The broker is down or refuses us, which another bridge cannot be the reason of.
            namesake.clear();
        }
        let driver = connected?;
        let (link, broker, since) = (Box::new(driver.link()), Arc::clone(&self.broker), Instant::now());
        let drive = async move {
            let error = driver.run().await;
            if broker.namesake.connection_ended(since.elapsed(), &error) {
                let Settings { name, instance, .. } = &broker.settings;
                warn!(
                    sink = %name, instance,
                    "the broker keeps closing new connections: does another bridge use the same `instance`?"
                );
            }
            error
        };
        Ok(Connected { link, drive: Box::pin(drive) })
    }

    fn retained_topic(&self, delivery: &Delivery) -> Option<String> {
        self.broker.topics.retained_topic(delivery)
    }

    fn own_retained_topics(&self) -> Vec<String> {
        self.broker.topics.own_retained()
    }

    fn has_shared_servers(&self) -> bool {
        self.broker.claims.was_shared()
    }

    fn is_shared(&self, topic: &str) -> bool {
        let Broker { topics, claims, .. } = &*self.broker;
        topics.server_of_retained(topic).is_some_and(|server| claims.has(&server))
    }

    fn notes(&self) -> Vec<String> {
        self.broker.notes()
    }

    fn projection(&self) -> Option<Box<dyn Projection>> {
        let (settings, names) = (&self.broker.settings, self.broker.home_assistant_names()?);
        let wanted = settings.home_assistant.clone()?;
        let presence = Arc::clone(&self.broker.presence);
        Some(Box::new(HomeAssistantProjection::new(wanted, names, &settings.servers, presence)))
    }

    async fn scan_retained(&self, servers: &[ServerName]) -> Result<BTreeMap<ServerName, Vec<String>>, DeliverError> {
        self.read_claims().await?;
        let mut found: BTreeMap<ServerName, Vec<String>> = BTreeMap::new();
        let names = self.broker.home_assistant_names();
        for (topic, _) in self.read_retained(self.retained_filters(servers)).await? {
            let server = match names.as_ref().and_then(|names: &Names| names.device_of(&topic)) {
                // The discovery of the servers that are configured is published again anyway.
                Some(Device::Server(server)) if servers.contains(&server) => None,
                Some(Device::Server(server) | Device::Torrent(server, _)) => Some(server),
                Some(Device::Bridge) => None,
                None => self.broker.topics.server_of_retained(&topic).filter(|server| servers.contains(server)),
            };
            if let Some(server) = server {
                found.entry(server).or_default().push(topic);
            }
        }
        Ok(found)
    }
}
