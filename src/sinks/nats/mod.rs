//! NATS: events out, commands in, with JetStream behind it or without.
//!
//! Two connections to one system. The first publishes ([`NatsSink`]): events into a stream, states into a bucket,
//! everything else to whoever subscribes. The second takes commands ([`NatsCommands`]), as a micro service.
//!
//! async-nats is used for one connection at a time. Its own reconnecting would send lost messages behind later ones, so
//! after the first error the client is dropped, and the dispatcher sends everything unacknowledged again, in order; the
//! stream recognizes repetitions by their ids.

mod connection;
mod driver;
mod eager_subscription;
mod intake;
mod link;
mod message;
pub mod reply;
mod send_history;
mod service;
mod service_stats;
pub mod settings;
mod stream;
pub mod subjects;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rand::seq::SliceRandom as _;
use rustls::ClientConfig;
use tracing::{info, warn};

use crate::model::{Seq, ServerName};
use crate::port::{Clock, CommandSource, Connected, DeliverError, Delivery, Sink};
use crate::sinks::broker::claims::Claims;
use crate::sinks::broker::{BrokerSink, Purged};
use crate::tls;

pub use crate::tls::{ClientCert, TlsError};
pub use service::NatsCommands;
pub use settings::{Login, Prefix, ServerUrl, Settings};

use connection::{Connection, ConnectionError};
use driver::{Driver, REPLIES_MAX};
use send_history::SendHistory;
use service_stats::ServiceStats;
use stream::StreamSetup;
use subjects::Subjects;

/// The note of a sink without JetStream.
const NOT_STORED: &str = "jetstream = false: nothing is stored here, so who does not listen misses events and states";

/// Maximum number of states of each server whose writer a probe reads.
const PROBED_KEYS_MAX: usize = 100;

/// A NATS system, as far as both connections have it in common.
struct System {
    settings: Settings,
    subjects: Subjects,
    tls: Option<Arc<ClientConfig>>,
    /// Further servers that the last one named when we connected.
    siblings: Mutex<Vec<ServerUrl>>,
    /// Counters of the service: requests arrive on one connection, and are replied to on the other.
    stats: ServiceStats,
    history: SendHistory,
    /// The servers of other instances, as the states in the bucket show them.
    claims: Claims,
    /// Keys in the bucket that other instances stored.
    foreign: Mutex<BTreeSet<String>>,
}

impl System {
    fn new(settings: Settings, before: BTreeMap<ServerName, Seq>) -> Result<Self, TlsError> {
        let made = tls::client_config(&settings.trust, settings.client_cert.as_ref());
        // A server may require TLS where the URL does not, so a machine without CA certificates is an error only if TLS
        // is certain to be used.
        let is_needed =
            settings.urls.iter().any(|url| url.needs_tls) || settings.trust.is_set() || settings.client_cert.is_some();
        let tls = if is_needed { Some(made?) } else { made.ok() };
        let subjects = Subjects::new(settings.prefix.clone(), &*settings.instance, settings.jetstream);
        let stats = ServiceStats::new(format!("{:016x}", rand::random::<u64>()));
        let claims = Claims::new(settings.name.clone(), &*settings.instance, &settings.servers);
        let (siblings, foreign, history) = (Mutex::default(), Mutex::default(), SendHistory::new(before));
        Ok(Self { settings, subjects, tls, siblings, stats, history, claims, foreign })
    }

    /// Returns the servers to try: those of the config in random order, then the others of the cluster.
    fn urls(&self) -> Vec<ServerUrl> {
        // Those of the config first, because certificates are made for their names; the others name themselves by address.
        let siblings = self.siblings.lock().unwrap_or_else(PoisonError::into_inner);
        let mut urls = self.settings.urls.clone();
        urls.shuffle(&mut rand::rng());
        urls.extend(siblings.iter().filter(|url| !self.settings.urls.contains(url)).cloned());
        urls
    }

    /// Reads who stored these states, and returns the keys that are not those of another instance.
    ///
    /// # Errors
    /// The login may not read them, for example. Nothing is known then, so nothing may be taken for ours.
    async fn without_foreign(
        &self,
        connection: &mut Connection,
        keys: BTreeSet<String>,
    ) -> Result<BTreeSet<String>, ConnectionError> {
        let mut own = BTreeSet::new();
        let mut foreign: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (key, writer) in stream::writers(connection, keys).await? {
            let other = writer.filter(|instance| *instance != self.settings.instance);
            let keys = other.map_or(&mut own, |instance| foreign.entry(instance).or_default());
            keys.insert(key);
        }
        let server = |key: &String| ServerName::parse(key.split_once('.')?.0).ok();
        let claimed =
            foreign.iter().map(|(instance, keys)| (instance.clone(), keys.iter().filter_map(server).collect()));
        self.claims.record_all(claimed.collect());
        *self.foreign.lock().unwrap_or_else(PoisonError::into_inner) = foreign.into_values().flatten().collect();
        Ok(own)
    }

    fn has_others(&self) -> bool {
        self.urls().len() > 1
    }

    async fn connect(&self, purpose: &str, capacity: usize) -> Result<Connection, ConnectionError> {
        let connection = Connection::open(&self.settings, self.tls.as_ref(), &self.urls(), purpose, capacity).await?;
        if let Some(first) = self.settings.urls.first() {
            let named = connection.client.server_info().connect_urls;
            let siblings = named.iter().filter_map(|address| first.sibling(address).ok()).collect();
            *self.siblings.lock().unwrap_or_else(PoisonError::into_inner) = siblings;
        }
        Ok(connection)
    }
}

/// A NATS system as a receiver of events.
pub struct NatsSink {
    system: Arc<System>,
    /// Shown with the sink's health.
    notes: Mutex<Vec<String>>,
}

impl NatsSink {
    /// Prepares the sink. `before`: the newest journal entry of each server when this run of the bridge began. Nothing is
    /// connected to yet.
    ///
    /// # Errors
    /// The certificates or the key cannot be used.
    pub fn new(settings: Settings, before: BTreeMap<ServerName, Seq>) -> Result<Self, TlsError> {
        let sink = Self { system: Arc::new(System::new(settings, before)?), notes: Mutex::default() };
        sink.note(&StreamSetup::default());
        Ok(sink)
    }

    fn note(&self, setup: &StreamSetup) {
        let mut notes = setup.notes.clone();
        notes.extend((!self.system.settings.jetstream).then(|| NOT_STORED.to_owned()));
        let mut noted = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if *noted != notes {
            let sink = &self.system.settings.name;
            notes.iter().for_each(|note| warn!(%sink, note, "check how the system is set up"));
            *noted = notes;
        }
    }

    async fn begin(&self) -> Result<Connected, ConnectionError> {
        let System { settings, subjects, history, .. } = &*self.system;
        if let Some(reason) = history.id_conflict() {
            return Err(ConnectionError::refused(reason));
        }
        let mut connection = self.system.connect("events", REPLIES_MAX).await?;
        let setup = match settings.jetstream {
            true => stream::ensure(&mut connection, settings, subjects).await?,
            false => StreamSetup::default(),
        };
        self.note(&setup);
        let server = connection.client.server_info();
        let (link, driver) = Driver::begin(Arc::clone(&self.system), connection, setup.ordering).await?;
        info!(
            sink = %settings.name, server = server.server_name, version = server.version,
            jetstream = settings.jetstream, "connected"
        );
        Ok(Connected { link: Box::new(link), drive: Box::pin(driver.run()) })
    }
}

#[async_trait]
impl BrokerSink for NatsSink {
    /// A read-only bridge answers `$SRV.PING` too, because NATS has no last will (docs/nats.md, Presence).
    fn source(
        &self,
        takes_commands: bool,
        incoming_bytes_max: usize,
        clock: &dyn Clock,
    ) -> Option<Box<dyn CommandSource>> {
        Some(Box::new(NatsCommands::new(Arc::clone(&self.system), takes_commands, incoming_bytes_max, clock)))
    }

    /// Checks stream and bucket, where they exist.
    async fn probe(&self) -> Result<(), DeliverError> {
        let System { settings, subjects, .. } = &*self.system;
        let mut connection = self.system.connect("probe", REPLIES_MAX).await?;
        if settings.jetstream {
            stream::check(&mut connection, settings, subjects).await?;
            let mut some = BTreeSet::new();
            for server in &settings.servers {
                some.extend(stream::keys(&mut connection, server).await?.into_iter().take(PROBED_KEYS_MAX));
            }
            // A login that may not read this can do all that a bridge needs.
            self.system.without_foreign(&mut connection, some).await.ok();
        }
        Ok(())
    }

    async fn purge(&self, names: Vec<String>) -> Result<Purged, DeliverError> {
        let settings = &self.system.settings;
        if !settings.jetstream {
            return Ok(Purged::default());
        }
        let mut connection = self.system.connect("purge", REPLIES_MAX).await?;
        if !stream::has_bucket(&mut connection).await? {
            return Ok(Purged::default());
        }
        let mut all: BTreeSet<String> = names.into_iter().collect();
        for server in &settings.servers {
            all.extend(stream::keys(&mut connection, server).await?);
        }
        let own = self.system.without_foreign(&mut connection, all.clone()).await?;
        for key in &own {
            stream::purge(&mut connection, key).await?;
        }
        Ok(Purged { cleared: own.len(), kept: all.difference(&own).cloned().collect() })
    }
}

#[async_trait]
impl Sink for NatsSink {
    async fn connect(&self) -> Result<Connected, DeliverError> {
        self.begin().await.map_err(DeliverError::from)
    }

    fn retained_topic(&self, delivery: &Delivery) -> Option<String> {
        self.system.subjects.retained_topic(delivery)
    }

    async fn scan_retained(&self, servers: &[ServerName]) -> Result<BTreeMap<ServerName, Vec<String>>, DeliverError> {
        let mut found: BTreeMap<ServerName, Vec<String>> = BTreeMap::new();
        // Without JetStream nothing is stored, and the bucket of an earlier configuration cannot be reached.
        if self.system.settings.jetstream {
            let mut connection = self.system.connect("scan", REPLIES_MAX).await?;
            let mut all = BTreeMap::new();
            for server in servers {
                let keys = stream::keys(&mut connection, server).await?;
                all.extend(keys.into_iter().map(|key| (key, server)));
            }
            for key in self.system.without_foreign(&mut connection, all.keys().cloned().collect()).await? {
                if let Some(server) = all.get(&key) {
                    found.entry((*server).clone()).or_default().push(key);
                }
            }
        }
        Ok(found)
    }

    fn has_shared_servers(&self) -> bool {
        self.system.claims.was_shared()
    }

    fn is_shared(&self, key: &str) -> bool {
        self.system.foreign.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        notes.extend(self.system.claims.notes());
        notes
    }
}
