//! The config as the rest of the program sees it: each value parsed into the type that uses it,
//! secrets read, defaults filled in.
//!
//! Every [`Config`] is valid. Adapters run on their own settings types, which are part of it, so that nothing is parsed
//! or converted later.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use secrecy::SecretString;

use super::choose::Rights;
use super::log::Log;
use crate::clients::exec::settings as exec;
use crate::clients::rtorrent::settings as rtorrent;
use crate::model::{Holders, Kind, Mask, MemoryBudget, MemoryShares, PollSettings, ServerName, SinkName, UrlRules};
use crate::sinks::mqtt::settings as mqtt;
use crate::sinks::nats::settings as nats;
use crate::sinks::webhook::settings as webhook;

/// A valid config.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file that was read; `None` if everything came from the environment and flags.
    pub file: Option<PathBuf>,
    /// Name of this bridge, a level of its own topics.
    pub instance: String,
    /// Directory of the durable state.
    pub data_dir: PathBuf,
    /// Memory that queues and buffers share.
    pub memory_max: MemoryBudget,
    /// Where links to .torrent files may lead.
    pub add_urls: UrlRules,
    /// The log.
    pub log: Log,
    /// Page and API.
    pub http: Http,
    /// Torrent clients to monitor; at least one.
    pub servers: BTreeMap<ServerName, Server>,
    /// Message brokers to publish to.
    pub brokers: BTreeMap<SinkName, Broker>,
    /// URLs to post events to.
    pub webhooks: BTreeMap<SinkName, Webhook>,
    /// Warnings of secrets that other users may read, or that are too short.
    pub weak_secrets: Vec<String>,
    /// All secrets, as others may repeat them.
    pub mask: Mask,
}

impl Config {
    /// Divides the memory among all who need some of it.
    pub fn memory_shares(&self) -> MemoryShares {
        self.memory_max.shares(self.memory_holders())
    }

    /// Returns among whom the memory is divided.
    pub(super) fn memory_holders(&self) -> Holders {
        let of_webhooks: usize = self.webhooks.values().map(|webhook| webhook.servers.len()).sum();
        let of_brokers: usize = self.brokers.values().map(|broker| broker.servers().len()).sum();
        Holders {
            // Commands come from brokers and over HTTP.
            origins: self.brokers.len() + 1,
            // A webhook is one sink for each of its servers.
            sinks: self.brokers.len() + of_webhooks,
            cursors: of_brokers + of_webhooks,
            servers: self.servers.len(),
            listeners: self.http.listen.map_or(0, |_| MemoryBudget::LISTENERS_MAX),
        }
    }
}

/// HTTP: addresses to listen on, and access rules.
#[derive(Clone, Debug)]
pub struct Http {
    /// Address of page and API; `None`: off.
    pub listen: Option<SocketAddr>,
    /// Token for requests that change something; without one they are all refused.
    pub token: Option<SecretString>,
    /// Commands that the token allows.
    pub commands: Rights,
    /// Host names with dots by which browsers may ask for the page, in lower case.
    pub hosts: Vec<String>,
}

impl Http {
    /// Returns the address at which this machine reaches the bridge; `None` if HTTP is off.
    pub fn address(&self) -> Option<SocketAddr> {
        let listen = self.listen?;
        let ip = match listen.ip() {
            // A listener on every address is reached on loopback.
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        Some(SocketAddr::new(ip, listen.port()))
    }
}

/// A torrent client that is monitored.
#[derive(Clone, Debug)]
pub struct Server {
    /// The adapter and its settings.
    pub client: Client,
    /// Pace of the polls.
    pub poll: PollSettings,
    /// Directories that commands may name; absolute, without `..`.
    pub roots: Vec<PathBuf>,
    /// Hooks in the client; `None`: no hooks are installed.
    pub hooks: Option<Hooks>,
}

/// The adapter for a torrent program, with its settings.
#[derive(Clone, Debug)]
pub enum Client {
    /// An rTorrent.
    Rtorrent(Box<rtorrent::Settings>),
    /// A program of the user's.
    Exec(exec::Settings),
}

/// Hooks of a client that notify the bridge.
#[derive(Clone, Debug)]
pub struct Hooks {
    /// Folder for the file that the client writes to, which it sees under the same path; `None`: one in `data_dir`.
    pub dir: Option<PathBuf>,
}

/// A message broker.
#[derive(Clone, Debug)]
pub struct Broker {
    /// The adapter and its settings.
    pub kind: BrokerKind,
    /// Kinds of events that it receives.
    pub events: BTreeSet<Kind>,
    /// Commands that are accepted from it.
    pub commands: Rights,
    /// Topics below one of which the `reply_to` in a command's body has to be.
    pub reply_prefixes: Vec<String>,
}

/// The adapter for a broker, with its settings.
#[derive(Clone, Debug)]
pub enum BrokerKind {
    /// An MQTT broker.
    Mqtt(Box<mqtt::Settings>),
    /// A NATS system.
    Nats(Box<nats::Settings>),
}

impl Broker {
    /// Returns the servers whose events it receives and whose commands are accepted from it, in order; at least one.
    pub fn servers(&self) -> &[ServerName] {
        match &self.kind {
            BrokerKind::Mqtt(mqtt) => &mqtt.servers,
            BrokerKind::Nats(nats) => &nats.servers,
        }
    }
}

/// A URL that events are posted to.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// Servers whose events it receives, in order; at least one.
    pub servers: Vec<ServerName>,
    /// Kinds of events that it receives.
    pub events: BTreeSet<Kind>,
    /// Settings of the adapter.
    pub settings: webhook::Settings,
}
