//! A broker, as far as both connections to it have it in common: settings, topics, and attempts to connect.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::ClientConfig;
use tracing::info;

use crate::model::Retain;
use crate::sinks::tls::{self, TlsError};

use super::link::{self, BrokerQuirks};
use super::settings::{Settings, Version};
use super::topics::Topics;
use super::wire::{self, Client, ConnectOptions, ConnectionError, ErrorKind, EventLoop, Protocol};
use crate::sinks::home_assistant::Presence;
use crate::sinks::home_assistant::names::Names;

/// Maximum time for one attempt, until `online` is published or the subscriptions are answered.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct Broker {
    /// The broker's settings.
    pub settings: Settings,
    /// Topics below the prefix of the settings.
    pub topics: Topics,
    tls: Option<Arc<ClientConfig>>,
    /// The broker said that it does not speak MQTT 5.
    refuses_5: AtomicBool,
    /// Another bridge with our `instance` is online there, so neither connection is made.
    pub has_namesake: AtomicBool,
    /// Home Assistant's presence, if there is one.
    pub presence: Arc<Presence>,
    /// Shared by all connections.
    pub quirks: Arc<BrokerQuirks>,
}

impl Broker {
    /// Prepares TLS where the URL needs it.
    pub fn new(settings: Settings) -> Result<Self, TlsError> {
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
            quirks: Arc::default(),
        })
    }

    /// Returns the names in Home Assistant, if that is configured.
    pub fn home_assistant_names(&self) -> Option<Names> {
        let Settings { prefix, instance, home_assistant, .. } = &self.settings;
        let discovery_prefix = home_assistant.as_ref()?.discovery_prefix.clone();
        Some(Names { prefix: prefix.clone(), instance: instance.clone(), discovery_prefix })
    }

    /// Prepares a connection.
    pub fn open(&self, options: &ConnectOptions) -> (Client, EventLoop) {
        wire::open(&self.settings, self.tls.as_ref(), options)
    }

    /// Opens a connection under a random client id, which disconnects nobody, and without a last will.
    pub fn open_probe(&self, protocol: Protocol) -> (Client, EventLoop) {
        self.open(&ConnectOptions {
            protocol,
            client_id: format!("dtorrent-{}-probe-{:08x}", self.settings.instance, rand::random::<u32>()),
            session: None,
            will: None,
            packet_bytes_max: wire::PACKET_BYTES_MAX,
            channel: link::REQUESTS_MAX,
            receive_max: None,
        })
    }

    /// Makes one attempt, with `auto` in the newest version that the broker speaks.
    ///
    /// A broker that does not know MQTT 5 says so, or only closes the connection. An explicit refusal is remembered; a
    /// broker that closed the connection may merely have been about to stop, so it is asked again the next time.
    pub async fn attempt<T, F>(&self, connect: impl Fn(Protocol) -> F) -> Result<T, ConnectionError>
    where
        F: Future<Output = Result<T, ConnectionError>>,
    {
        let connected = self.attempt_versions(connect).await;
        connected
            .map_err(|error| ConnectionError { reason: format!("{}: {}", self.settings.url, error.reason), ..error })
    }

    async fn attempt_versions<T, F>(&self, connect: impl Fn(Protocol) -> F) -> Result<T, ConnectionError>
    where
        F: Future<Output = Result<T, ConnectionError>>,
    {
        let is_auto = self.settings.version == Version::Auto;
        let only_311 = self.settings.version == Version::V311 || is_auto && self.refuses_5.load(Ordering::Relaxed);
        if only_311 {
            return within_timeout(connect(Protocol::V311)).await;
        }
        let refusal = match within_timeout(connect(Protocol::V5)).await {
            Err(error) if is_auto && matches!(error.kind, ErrorKind::VersionRefused | ErrorKind::Closed) => error,
            result => return result,
        };
        let connected = within_timeout(connect(Protocol::V311)).await?;
        let was_known = refusal.kind == ErrorKind::VersionRefused && self.refuses_5.swap(true, Ordering::Relaxed);
        if !was_known {
            info!(sink = %self.settings.name, reason = refusal.reason, "no MQTT 5 with this broker: using 3.1.1");
        }
        Ok(connected)
    }
}

async fn within_timeout<T>(attempt: impl Future<Output = Result<T, ConnectionError>>) -> Result<T, ConnectionError> {
    match tokio::time::timeout(CONNECT_TIMEOUT, attempt).await {
        Ok(result) => result,
        Err(_) => Err(ConnectionError::other(format!("no connection within {CONNECT_TIMEOUT:?}"))),
    }
}
