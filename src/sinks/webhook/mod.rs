//! Webhooks: events posted to a URL of the user's, one at a time for each server.
//!
//! Each server's events for an endpoint are a sink of their own ([`WebhookSink`]), so an event that an endpoint
//! rejects holds back the events of its own server only. What these sinks share is the [`Endpoint`].
//!
//! There is no connection to keep. A sink counts as connected until a request fails, and again when that request has
//! been accepted: [`Sink::connect`] repeats the request that failed. The dispatcher decides when; the wait comes
//! from here ([`retry`]), and an event whose time is over is rejected, and so becomes a dead letter.

mod body;
mod chat_message;
mod filter;
mod link;
pub mod response;
pub mod retry;
pub mod settings;
pub mod sign;
mod template;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use secrecy::ExposeSecret as _;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};

use self::body::Body;
use self::response::{AttemptOutcome, classify};
use crate::model::{Event, JournalEntry, Mask, OutsideText, SinkName, error_chain};
use crate::port::{Clock, Connected, DeliverError, Delivery, Sink};
use crate::tls;

pub use self::settings::{Address, EventFilter, Format, Login, Secrets, Settings};

/// Maximum number of bytes that are read of a response's body: enough for the reason of a refusal.
const BODY_START_BYTES_MAX: usize = 4 << 10;
/// Maximum time for reading them, once the status is known.
const BODY_START_TIMEOUT: Duration = Duration::from_secs(2);

/// A webhook could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The login is no HTTP header.
    #[error("the name or the password cannot be sent: it has a control character")]
    Login,
}

/// The receiver of one webhook, shared by the sinks of all servers.
pub struct Endpoint {
    settings: Settings,
    http: reqwest::Client,
    authorization: Option<HeaderValue>,
    clock: Arc<dyn Clock>,
    /// What its answers may repeat of a request.
    mask: Mask,
    /// The reason of a 410: nothing is posted any more until the next start.
    gone: OnceLock<OutsideText>,
    /// One lock per sink: a sink and a replay of its dead letters post one request at a time between them.
    request_locks: Mutex<BTreeMap<SinkName, Arc<AsyncMutex<()>>>>,
}

/// An event that has not been accepted yet.
#[derive(Clone, Debug)]
struct PendingEvent {
    event: Arc<Event>,
    json: Bytes,
}

impl PendingEvent {
    fn new(event: &Arc<Event>, json: &Bytes) -> Self {
        Self { event: Arc::clone(event), json: json.clone() }
    }
}

impl Endpoint {
    /// Prepares the endpoint. Nothing is connected to yet.
    ///
    /// # Errors
    /// The certificates or the login cannot be used.
    pub fn new(settings: Settings, clock: Arc<dyn Clock>) -> Result<Self, SetupError> {
        let http = tls::http_client(settings.address.is_encrypted(), &settings.trust, |client| {
            client.timeout(settings.timeout).user_agent(concat!("dtorrent/", env!("CARGO_PKG_VERSION")))
        })?;
        let authorization = settings.login.as_ref().map(authorization).transpose()?;
        let mask = settings.mask();
        Ok(Self { settings, http, authorization, clock, mask, gone: OnceLock::new(), request_locks: Mutex::default() })
    }

    /// Checks that the endpoint answers HTTP; no event is sent.
    pub async fn probe(&self) -> Result<(), DeliverError> {
        let mut root = self.settings.address.url().clone();
        root.set_path("/");
        root.set_query(None);
        let answered = self.http.head(root).send().await;
        answered.map(drop).map_err(|error| DeliverError::unavailable(self.describe(error)))
    }

    /// Makes one attempt to post an event of this sink, whatever became of earlier ones. Used to replay dead letters.
    ///
    /// # Errors
    /// The errors of the attempt; an event that cannot be decoded is rejected.
    pub async fn deliver(&self, sink: &SinkName, entry: &JournalEntry) -> Result<(), DeliverError> {
        let event = entry.event().map_err(|error| DeliverError::Rejected { reason: error.to_string().into() })?;
        match self.attempt(sink, &PendingEvent::new(event, &entry.body)).await {
            AttemptOutcome::Accepted => Ok(()),
            AttemptOutcome::Retry { reason, retry_after } => {
                Err(DeliverError::Unavailable { reason, retry_after, gave_reason: true })
            }
            AttemptOutcome::BodyRefused { reason }
            | AttemptOutcome::Undeliverable { reason }
            | AttemptOutcome::Gone { reason } => Err(DeliverError::Rejected { reason }),
        }
    }

    fn request_lock(&self, sink: &SinkName) -> Arc<AsyncMutex<()>> {
        let mut locks = self.request_locks.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(locks.entry(sink.clone()).or_default())
    }

    async fn attempt(&self, sink: &SinkName, PendingEvent { event, json }: &PendingEvent) -> AttemptOutcome {
        // A replay of dead letters posts from another task than the sink, and must not overtake it.
        let lock = self.request_lock(sink);
        let _request = lock.lock().await;
        let Body { content_type, bytes } = match self.settings.format.render(event, json) {
            Ok(body) => body,
            Err(reason) => return AttemptOutcome::Undeliverable { reason: reason.into() },
        };
        let id = event.id.to_string();
        // Standard Webhooks has receivers refuse old signatures, so this is the time of the attempt, not of the event.
        let time = self.clock.now().as_millis().div_euclid(1000);
        let mut request = self
            .http
            .post(self.settings.address.url().clone())
            .headers(self.settings.headers.clone())
            .header(CONTENT_TYPE, content_type)
            .header("webhook-id", &id)
            .header("webhook-timestamp", time);
        if let Some(secrets) = &self.settings.secrets {
            request = request.header("webhook-signature", secrets.sign(&id, time, &bytes));
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let response = match request.body(bytes).send().await {
            Ok(response) => response,
            Err(error) => return AttemptOutcome::Retry { reason: self.describe(error).into(), retry_after: None },
        };
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER).map(|value| value.as_bytes().to_owned());
        // Of every response: hyper reuses a connection only when its last response was read to the end.
        let body_start = body_start(response).await;
        let body_start = String::from_utf8_lossy(&body_start);
        classify(status, retry_after.as_deref(), self.mask.masked(&body_start).as_bytes(), self.clock.now())
    }

    /// Returns the error with its causes, without the URL.
    fn describe(&self, error: reqwest::Error) -> String {
        if error.is_timeout() && !error.is_connect() {
            return format!("no answer from {} within {:?}", self.settings.address.host(), self.settings.timeout);
        }
        // The path of the URL may be a secret (I14).
        let error = error.without_url();
        let reason = tls::problem_of(&error, "http://").unwrap_or_else(|| error_chain(&error));
        format!("{}: {reason}", self.settings.address.host())
    }
}

fn authorization(login: &Login) -> Result<HeaderValue, SetupError> {
    use base64::Engine as _;
    let text = match login {
        Login::User { name, password } => {
            let pair = format!("{name}:{}", password.expose_secret());
            format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(pair))
        }
        Login::Token(token) => format!("Bearer {}", token.expose_secret()),
    };
    let mut value = HeaderValue::try_from(text).map_err(|_| SetupError::Login)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Returns the beginning of a response's body; a slow or endless rest is not read.
async fn body_start(mut response: reqwest::Response) -> Vec<u8> {
    let mut start = Vec::new();
    let read = async {
        while start.len() < BODY_START_BYTES_MAX
            && let Ok(Some(more)) = response.chunk().await
        {
            start.extend_from_slice(&more);
        }
    };
    if timeout(BODY_START_TIMEOUT, read).await.is_err() {
        debug!("response body not read to its end in time");
    }
    start.truncate(BODY_START_BYTES_MAX);
    start
}

/// The sink for one server's events at an endpoint.
pub struct WebhookSink {
    sender: Arc<EventSender>,
}

/// Posts one server's events to an endpoint and remembers what failed, across links.
struct EventSender {
    name: SinkName,
    endpoint: Arc<Endpoint>,
    state: Mutex<RetryState>,
}

#[derive(Default)]
struct RetryState {
    /// Failures in a row.
    failures: u32,
    /// The first of them.
    failing_since: Option<Instant>,
    /// The first of the refusals of bodies in a row.
    refused_since: Option<Instant>,
    /// The event that failed last: the next connection begins with it.
    pending: Option<PendingEvent>,
    /// The outcome of that event, until the link asks for it.
    concluded: Option<(Arc<Event>, Result<(), DeliverError>)>,
}

impl WebhookSink {
    /// Creates the sink; `name` is `WEBHOOK.SERVER`.
    pub fn new(name: SinkName, endpoint: Arc<Endpoint>) -> Self {
        Self { sender: Arc::new(EventSender { name, endpoint, state: Mutex::default() }) }
    }
}

impl EventSender {
    fn state(&self) -> MutexGuard<'_, RetryState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Posts an event, unless [`Self::retry_pending`] has done so already.
    async fn send(&self, event: PendingEvent) -> Result<(), DeliverError> {
        // The connection was made with this very event; posting it again would deliver it twice.
        let concluded = self.state().concluded.take_if(|(concluded, _)| concluded.id == event.event.id);
        match concluded {
            Some((_, result)) => result,
            None => self.attempt(event).await,
        }
    }

    async fn attempt(&self, event: PendingEvent) -> Result<(), DeliverError> {
        let outcome = match self.endpoint.gone.get() {
            Some(reason) => AttemptOutcome::Undeliverable { reason: format!("switched off: {reason}").into() },
            None => self.endpoint.attempt(&self.name, &event).await,
        };
        self.conclude(event, outcome)
    }

    fn conclude(&self, event: PendingEvent, outcome: AttemptOutcome) -> Result<(), DeliverError> {
        let Settings { keep_trying, .. } = &self.endpoint.settings;
        if let AttemptOutcome::Gone { reason } = &outcome {
            self.switch_off(reason);
        }
        let mut state = self.state();
        state.pending = None;
        let is_about_the_body = matches!(outcome, AttemptOutcome::BodyRefused { .. });
        let (reason, retry_after) = match outcome {
            AttemptOutcome::Retry { reason, retry_after } => (reason, retry_after),
            AttemptOutcome::BodyRefused { reason } => (reason, None),
            AttemptOutcome::Accepted => {
                *state = RetryState::default();
                return Ok(());
            }
            AttemptOutcome::Undeliverable { reason } | AttemptOutcome::Gone { reason } => {
                *state = RetryState::default();
                return Err(DeliverError::Rejected { reason });
            }
        };
        state.failures = state.failures.saturating_add(1);
        let failing_for = state.failing_since.get_or_insert_with(Instant::now).elapsed();
        if !is_about_the_body {
            state.refused_since = None;
        } else if state.refused_since.get_or_insert_with(Instant::now).elapsed() >= retry::REFUSED_BODY_TIMEOUT {
            // `refused_since` outlasts the event: a template that is wrong does not cost each event its full time.
            *state = RetryState { refused_since: state.refused_since, ..RetryState::default() };
            return Err(DeliverError::Rejected { reason });
        }
        let age = Duration::from_millis(self.endpoint.clock.now().millis_since(event.event.time));
        if retry::is_expired(age, failing_for, *keep_trying) {
            let reason = format!("not accepted within {}: {reason}", humantime::format_duration(*keep_trying));
            return Err(DeliverError::Rejected { reason: reason.into() });
        }
        state.pending = Some(event);
        let retry_after = Some(retry::delay(state.failures, rand::random(), retry_after));
        Err(DeliverError::Unavailable { reason, retry_after, gave_reason: true })
    }

    fn switch_off(&self, reason: &OutsideText) {
        if self.endpoint.gone.set(reason.clone()).is_ok() {
            let webhook = &self.endpoint.settings.name;
            warn!(%webhook, reason = &**reason, "endpoint is gone, switched off until the next start");
        }
    }

    /// Posts the event again that failed last. Cancel-safe: the event stays pending until it is concluded.
    async fn retry_pending(&self) -> Result<(), DeliverError> {
        let pending = {
            let mut state = self.state();
            // The link that would have asked for it is gone; its event comes again from the journal.
            state.concluded = None;
            state.pending.clone()
        };
        let Some(pending) = pending else { return Ok(()) };
        let event = Arc::clone(&pending.event);
        match self.attempt(pending).await {
            Err(failure) if !failure.is_rejected() => Err(failure),
            result => {
                self.state().concluded = Some((event, result));
                Ok(())
            }
        }
    }
}

#[async_trait]
impl Sink for WebhookSink {
    async fn connect(&self) -> Result<Connected, DeliverError> {
        self.sender.retry_pending().await?;
        Ok(link::connected(Arc::clone(&self.sender)))
    }

    fn wants(&self, delivery: &Delivery) -> bool {
        self.sender.endpoint.settings.filter.wants(delivery)
    }

    fn notes(&self) -> Vec<String> {
        // Anybody may read it, so without the words of the endpoint; log and dead letters have them.
        let note = "the endpoint is gone (410): switched off until the next start, its events become dead letters";
        self.sender.endpoint.gone.get().map(|_| note.to_owned()).into_iter().collect()
    }
}
