//! NATS: events out, commands in, with JetStream behind it or without.
//!
//! Two connections to one system. The first publishes ([`NatsSink`]): events into a stream, states into
//! a bucket, the rest to whoever listens. The second takes commands ([`NatsCommands`]), as a micro
//! service.
//!
//! async-nats is used for one connection at a time. Its own reconnecting would send what was lost
//! behind what came after it, so after the first error the client is thrown away, and whoever holds
//! the unacknowledged messages sends them again, in order; the stream knows repetitions by their ids.

pub mod answer;
mod dial;
mod link;
mod message;
mod service;
pub mod settings;
mod stream;
pub mod subjects;
mod tally;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use rand::seq::SliceRandom as _;
use rustls::ClientConfig;
use tracing::{info, warn};

use crate::model::{Seq, ServerName};
use crate::port::{Clock, Connected, DeliverError, Delivery, Sink};
use crate::sinks::tls;

pub use crate::sinks::tls::{ClientCert, TlsError};
pub use service::NatsCommands;
pub use settings::{Login, Prefix, ServerUrl, Settings};

use dial::{Ended, Line};
use link::{Driver, History, Voice};
use stream::Found;
use subjects::Subjects;
use tally::Tally;

const NOT_STORED: &str = "jetstream = false: nothing is stored here, so who does not listen misses events and states";

/// What both connections to a system have in common.
struct System {
    settings: Settings,
    subjects: Subjects,
    tls: Option<Arc<ClientConfig>>,
    /// Servers that the last one we reached named beside itself.
    siblings: Mutex<Vec<ServerUrl>>,
    tally: Arc<Tally>,
}

impl System {
    fn new(settings: Settings) -> Result<Self, TlsError> {
        let made = tls::client_config(settings.ca_pem.as_deref(), settings.client_cert.as_ref());
        // A server may ask for TLS also where the URL does not, so without it we only come if we have to.
        let is_needed = settings.urls.iter().any(|url| url.needs_tls)
            || settings.ca_pem.is_some()
            || settings.client_cert.is_some();
        let tls = if is_needed { Some(made?) } else { made.ok() };
        let subjects = Subjects::new(settings.prefix.clone(), &*settings.instance, settings.jetstream);
        let tally = Arc::new(Tally::new(format!("{:016x}", rand::random::<u64>())));
        Ok(Self { settings, subjects, tls, siblings: Mutex::default(), tally })
    }

    /// Those of the config first, in any order: their names are the ones that certificates are made for.
    fn urls(&self) -> Vec<ServerUrl> {
        let siblings = self.siblings.lock().unwrap_or_else(PoisonError::into_inner);
        let mut urls = self.settings.urls.clone();
        urls.shuffle(&mut rand::rng());
        urls.extend(siblings.iter().filter(|url| !self.settings.urls.contains(url)).cloned());
        urls
    }

    fn has_others(&self) -> bool {
        self.urls().len() > 1
    }

    async fn dial(&self, purpose: &str, capacity: usize) -> Result<Line, Ended> {
        let line = Line::connect(&self.settings, self.tls.as_ref(), &self.urls(), purpose, capacity).await?;
        if let Some(first) = self.settings.urls.first() {
            let named = line.client.server_info().connect_urls;
            let siblings = named.iter().filter_map(|address| first.sibling(address).ok()).collect();
            *self.siblings.lock().unwrap_or_else(PoisonError::into_inner) = siblings;
        }
        Ok(line)
    }
}

/// A NATS system as a receiver of events.
pub struct NatsSink {
    system: Arc<System>,
    history: Arc<History>,
    /// What its users should know of how it delivers.
    notes: Mutex<Vec<String>>,
}

impl NatsSink {
    /// `before`: the newest journal entry of each server when this run of the bridge began.
    ///
    /// # Errors
    /// The certificates or the key cannot be used. Nothing is reached yet.
    pub fn new(settings: Settings, before: BTreeMap<ServerName, Seq>) -> Result<Self, TlsError> {
        let system = Arc::new(System::new(settings)?);
        let sink = Self { system, history: Arc::new(History::new(before)), notes: Mutex::default() };
        sink.note(&Found::default());
        Ok(sink)
    }

    /// The commands that come by this system, on a connection of their own.
    pub fn commands(&self, clock: &dyn Clock) -> NatsCommands {
        NatsCommands::of(Arc::clone(&self.system), clock)
    }

    /// Connects, looks at stream and bucket if they are there, and leaves again without a word to anybody.
    pub async fn probe(&self) -> Result<(), DeliverError> {
        let System { settings, subjects, .. } = &*self.system;
        let mut line = self.system.dial("probe", link::ANSWERS).await?;
        if settings.jetstream {
            stream::look(&mut line, settings, subjects).await?;
        }
        Ok(())
    }

    /// Clears what the bucket has under these names and of our servers, and says how many keys that were.
    ///
    /// For a bridge that does not run: it would say again what is cleared here.
    pub async fn purge(&self, names: Vec<String>) -> Result<usize, DeliverError> {
        let settings = &self.system.settings;
        if !settings.jetstream {
            return Ok(0);
        }
        let mut line = self.system.dial("purge", link::ANSWERS).await?;
        if !stream::has_bucket(&mut line).await? {
            return Ok(0);
        }
        let mut keys: BTreeSet<String> = names.into_iter().collect();
        for server in &settings.servers {
            keys.extend(stream::keys(&mut line, server).await?);
        }
        for key in &keys {
            stream::clear(&mut line, key).await?;
        }
        Ok(keys.len())
    }

    fn note(&self, found: &Found) {
        let mut notes = found.remarks.clone();
        notes.extend((!self.system.settings.jetstream).then(|| NOT_STORED.to_owned()));
        let mut noted = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if *noted != notes {
            notes.iter().for_each(|note| warn!(sink = %self.system.settings.name, note, "mind how it is set up"));
            *noted = notes;
        }
    }

    async fn begin(&self) -> Result<Connected, Ended> {
        if let Some(reason) = self.history.over.get() {
            return Err(Ended::refused(reason.clone()));
        }
        let System { settings, subjects, .. } = &*self.system;
        let mut line = self.system.dial("events", link::ANSWERS).await?;
        let found = match settings.jetstream {
            true => stream::ensure(&mut line, settings, subjects).await?,
            false => Found::default(),
        };
        self.note(&found);
        let server = line.client.server_info();
        let voice = Voice {
            sink: settings.name.clone(),
            instance: settings.instance.clone(),
            subjects: subjects.clone(),
            is_stored: settings.jetstream,
            may_refuse_one: found.may_refuse_one,
            has_others: self.system.has_others(),
            history: Arc::clone(&self.history),
            tally: Arc::clone(&self.system.tally),
        };
        let (link, driver) = Driver::begin(voice, line).await?;
        info!(
            sink = %settings.name, server = server.server_name, version = server.version,
            jetstream = settings.jetstream, "connected"
        );
        Ok(Connected { link: Box::new(link), drive: Box::pin(driver.run()) })
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

    fn own_retained_topics(&self) -> Vec<String> {
        Vec::new()
    }

    async fn scan_retained(&self, servers: &[ServerName]) -> Result<BTreeMap<ServerName, Vec<String>>, DeliverError> {
        let mut found = BTreeMap::new();
        if self.system.settings.jetstream {
            let mut line = self.system.dial("search", link::ANSWERS).await?;
            for server in servers {
                let keys = stream::keys(&mut line, server).await?;
                if !keys.is_empty() {
                    found.insert(server.clone(), keys);
                }
            }
        }
        Ok(found)
    }

    fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
