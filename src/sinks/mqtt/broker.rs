//! A broker, as far as its connections have it in common: settings, topics, what is known of it, and attempts to connect.

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use tokio::time::Instant;
use tracing::warn;

use crate::model::Retain;
use crate::sinks::broker::claims::Claims;
use crate::sinks::broker::other_service::OtherService;
use crate::tls::{self, TlsError};

use super::client_id::Role;
use super::demands::{Demands, Descent, Duty, Ladder, Protocol};
use super::message::Message;
use super::namesake::NamesakeSuspicion;
use super::publisher::REQUESTS_MAX;
use super::settings::{Settings, Transport, Version};
use super::topics::{Qos, Route, Topics};
use super::wire::{self, CLOSED, Client, ConnectOptions, ConnectionError, ErrorKind, EventLoop};
use crate::sinks::home_assistant::Presence;
use crate::sinks::home_assistant::names::Names;

/// Maximum time for one try, until `online` is published or the subscriptions are answered.
const TRY_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) struct Broker {
    /// The broker's settings.
    pub settings: Settings,
    /// Topics below the prefix of the settings.
    pub topics: Topics,
    tls: Option<Arc<ClientConfig>>,
    /// What is known of the demands that the broker meets.
    ladder: Mutex<Ladder>,
    began: Instant,
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
            true => Some(tls::client_config(&settings.trust, settings.client_cert.as_ref())?),
            false => None,
        };
        let topics = Topics::new(settings.prefix.clone(), &*settings.instance, settings.retain != Retain::None);
        let claims = Claims::new(settings.name.clone(), &*settings.instance, &settings.servers);
        let wanted = if settings.version == Version::V311 { Protocol::V311 } else { Protocol::V5 };
        let ladder = Ladder::new(Demands::all(wanted), settings.version == Version::Auto);
        Ok(Self {
            settings,
            claims,
            topics,
            tls,
            ladder: Mutex::new(ladder),
            began: Instant::now(),
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

    /// Opens a connection without a last will, and under another client id: with the bridge's own the broker would
    /// disconnect a bridge that runs (MQTT 5 §3.1.4).
    pub fn open_probe(&self, demands: &Demands) -> (Client, EventLoop) {
        self.open(&self.probe_options(demands))
    }

    /// Returns the options of such a connection.
    pub fn probe_options(&self, demands: &Demands) -> ConnectOptions {
        ConnectOptions::new(demands, self.settings.client_id(Role::Probe), REQUESTS_MAX)
    }

    /// Returns the last will with these demands.
    pub fn will(&self, demands: &Demands) -> Route {
        let qos = if demands.will_acknowledges { Qos::AtLeastOnce } else { Qos::AtMostOnce };
        Route { qos, is_retained: demands.will_retains, ..Message::bridge_status(&self.topics, false).route }
    }

    /// Makes one attempt, with fewer demands where the broker does not meet them.
    pub async fn attempt<T, F>(&self, duty: Duty, connect: impl Fn(Demands) -> F) -> Result<T, ConnectionError>
    where
        F: Future<Output = Result<T, ConnectionError>>,
    {
        let mut descent = self.ladder().begin(duty, self.began.elapsed());
        let mut first: Option<ConnectionError> = None;
        let error = loop {
            let error = match within_timeout(connect(descent.demands())).await {
                Ok(connected) => {
                    self.note_worked(&descent, first.as_ref());
                    return Ok(connected);
                }
                Err(error) => error,
            };
            let goes_on = descent.failed(error.failure());
            if !goes_on {
                self.ladder().failed(&descent, error.failure());
            }
            // The first close says as much as those after it, and belongs to the demands of the config.
            match &first {
                Some(close) if close.is_close() && error.is_close() => {}
                _ => first = Some(error),
            }
            if !goes_on && let Some(error) = first {
                break error;
            }
        };
        let reason = self.other_service(error.kind).await.unwrap_or(error.reason);
        Err(ConnectionError { reason: format!("{}: {reason}", self.settings.url), ..error })
    }

    fn note_worked(&self, descent: &Descent, error: Option<&ConnectionError>) {
        let reason = error.map(|error| error.reason.as_str());
        for missing in self.ladder().worked(descent, self.began.elapsed()) {
            warn!(sink = %self.settings.name, reason, "the broker {missing}");
        }
    }

    /// Returns what the broker does not meet, for people.
    pub fn notes(&self) -> Vec<String> {
        let missing = self.ladder().missing();
        missing.into_iter().map(|missing| format!("the broker {missing}")).chain(self.claims.notes()).collect()
    }

    fn ladder(&self) -> MutexGuard<'_, Ladder> {
        self.ladder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what answers at the port in place of a broker, after an attempt that ended in this way, and what to correct.
    async fn other_service(&self, error: ErrorKind) -> Option<String> {
        let is_close = matches!(error, ErrorKind::Closed | ErrorKind::ClosedBefore);
        let is_unexplained = is_close || matches!(error, ErrorKind::Unreadable | ErrorKind::Silent);
        if is_close && self.settings.url.transport == Transport::Tls {
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
    let timed_out = |_| ConnectionError::other(format!("the broker does not answer within {TRY_TIMEOUT:?}"));
    tokio::time::timeout(TRY_TIMEOUT, attempt).await.map_err(timed_out)?
}
