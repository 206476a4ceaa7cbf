//! A broker, as far as its connections have it in common: settings, topics, what is known of it, and attempts to connect.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rustls::ClientConfig;
use tracing::info;

use crate::model::Retain;
use crate::sinks::broker::claims::Claims;
use crate::sinks::broker::other_service::OtherService;
use crate::tls::{self, TlsError};

use super::namesake::NamesakeSuspicion;
use super::publisher::REQUESTS_MAX;
use super::settings::{Settings, Transport, Version};
use super::topics::Topics;
use super::wire::{self, CLOSED, Client, ConnectOptions, ConnectionError, ErrorKind, EventLoop, Protocol};
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
    /// The servers of other instances there.
    pub claims: Claims,
    /// Whether another bridge uses our `instance` there.
    pub namesake: NamesakeSuspicion,
    /// Home Assistant's presence, if there is one.
    pub presence: Arc<Presence>,
    /// Number of connections in a row that ended before the broker answered the question for its name.
    pub unanswered_name_requests: AtomicU32,
    /// The same, of the question for other instances.
    pub unanswered_claim_requests: AtomicU32,
}

impl Broker {
    /// Prepares TLS where the URL needs it.
    pub fn new(settings: Settings) -> Result<Self, TlsError> {
        let tls = match settings.url.transport.is_encrypted() {
            true => Some(tls::client_config(settings.ca_pem.as_deref(), settings.client_cert.as_ref())?),
            false => None,
        };
        let topics = Topics::new(settings.prefix.clone(), &*settings.instance, settings.retain != Retain::None);
        let claims = Claims::new(settings.name.clone(), &*settings.instance, &settings.servers);
        Ok(Self {
            settings,
            claims,
            topics,
            tls,
            refuses_5: AtomicBool::default(),
            namesake: NamesakeSuspicion::default(),
            presence: Arc::default(),
            unanswered_name_requests: AtomicU32::default(),
            unanswered_claim_requests: AtomicU32::default(),
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

    /// Opens a connection without a last will, and under a random client id: with the bridge's own the broker would
    /// disconnect a bridge that runs (MQTT 5 §3.1.4).
    pub fn open_probe(&self, protocol: Protocol) -> (Client, EventLoop) {
        let client_id = format!("dtorrent-{}-probe-{:08x}", self.settings.instance, rand::random::<u32>());
        self.open(&ConnectOptions::new(protocol, client_id, REQUESTS_MAX))
    }

    /// Makes one attempt, with `auto` in the newest version that the broker speaks.
    pub async fn attempt<T, F>(&self, connect: impl Fn(Protocol) -> F) -> Result<T, ConnectionError>
    where
        F: Future<Output = Result<T, ConnectionError>>,
    {
        let attempt = async {
            let is_auto = self.settings.version == Version::Auto;
            let only_311 = self.settings.version == Version::V311 || is_auto && self.refuses_5.load(Ordering::Relaxed);
            if only_311 {
                return within_timeout(connect(Protocol::V311)).await;
            }
            // A broker that does not know MQTT 5 says so, or only closes the connection, although MQTT 3.1.1 §3.1.2.2 asks for an
            // answer.
            let refusal = match within_timeout(connect(Protocol::V5)).await {
                Err(error) if is_auto && matches!(error.kind, ErrorKind::VersionRefused | ErrorKind::Closed) => error,
                result => return result,
            };
            let connected = within_timeout(connect(Protocol::V311)).await?;
            // Only an explicit refusal is remembered: a broker that closed the connection may merely have been about to stop,
            // so it is asked for MQTT 5 again the next time.
            let was_known = refusal.kind == ErrorKind::VersionRefused && self.refuses_5.swap(true, Ordering::Relaxed);
            if !was_known {
                info!(sink = %self.settings.name, reason = refusal.reason, "no MQTT 5 with this broker: using 3.1.1");
            }
            Ok(connected)
        };
        let error = match attempt.await {
            Ok(connected) => return Ok(connected),
            Err(error) => error,
        };
        let reason = self.other_service(error.kind).await.unwrap_or(error.reason);
        Err(ConnectionError { reason: format!("{}: {reason}", self.settings.url), ..error })
    }

    /// Returns what answers at the port in place of a broker, after an attempt that ended in this way, and what to correct.
    async fn other_service(&self, error: ErrorKind) -> Option<String> {
        let is_unexplained = matches!(error, ErrorKind::Closed | ErrorKind::Unreadable | ErrorKind::Silent);
        if error == ErrorKind::Closed && self.settings.url.transport == Transport::Tls {
            let advice =
                "check that host and port in `url` are those of a broker with TLS, or write mqtt:// without it";
            return Some(format!("{CLOSED}: {advice}"));
        }
        // Otherwise the errors of TLS and WebSocket say what is wrong.
        if !is_unexplained || self.settings.url.transport != Transport::Tcp {
            return None;
        }
        let found = OtherService::at(&self.settings.url.endpoint).await?;
        let remedy = match found {
            OtherService::Http => "correct the port in `url`, or write ws:// for MQTT over WebSocket",
            OtherService::Nats => "write kind = \"nats\" and nats://, or correct the port in `url`",
            OtherService::Tls => "write mqtts:// in `url`",
            OtherService::Ssh | OtherService::Mail => "correct the port in `url`",
            OtherService::Closes => {
                let advice =
                    "check that host and port in `url` are those of a broker, and write mqtts:// if the port needs TLS";
                return Some(format!("{CLOSED}: {advice} (rTorrent's SCGI port closes connections in the same way)"));
            }
        };
        Some(format!("{}: {remedy}", found.description()?))
    }
}

async fn within_timeout<T>(attempt: impl Future<Output = Result<T, ConnectionError>>) -> Result<T, ConnectionError> {
    let timed_out = |_| ConnectionError::new(ErrorKind::Silent, format!("no connection within {CONNECT_TIMEOUT:?}"));
    tokio::time::timeout(CONNECT_TIMEOUT, attempt).await.map_err(timed_out)?
}
