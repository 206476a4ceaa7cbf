//! Webhooks: events posted to an address of the user's, one at a time for each server.
//!
//! Each server's line to an endpoint is a sink of its own ([`WebhookSink`]), so one event that an endpoint
//! stumbles over holds back its own line and no other. What they have in common is the [`Endpoint`].
//!
//! There is no connection to keep. A line counts as connected until a request fails, and then again when
//! that request has been taken: [`Sink::connect`] sends what failed once more. When that happens is the
//! dispatcher's to decide; from here it hears how long to wait ([`patience`]), and when an event has had
//! its time it is rejected, and put aside.

pub mod answer;
mod body;
mod link;
pub mod patience;
pub mod settings;
pub mod sign;
mod template;
mod words;

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

use self::answer::{Verdict, judge};
use self::body::Body;
use crate::model::{EventId, SinkName, Timestamp};
use crate::port::{Clock, Connected, DeliverError, Delivery, Sink};
use crate::sinks::tls;

pub use self::settings::{Address, EventFilter, Format, Login, Secrets, Settings};

/// So much of an answer is read, and so long is waited for it when the status is there.
const WORDS_BYTES_MAX: usize = 4 << 10;
const WORDS_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    #[error("the name or the password cannot be sent: it has a control character")]
    Login,
    #[error("HTTP cannot be set up")]
    Http(#[source] reqwest::Error),
}

/// Where the events of one webhook go, for all its lines.
pub struct Endpoint {
    settings: Settings,
    http: reqwest::Client,
    authorization: Option<HeaderValue>,
    clock: Arc<dyn Clock>,
    /// What it said when it said that nobody is there any more; until the next start.
    gone: OnceLock<String>,
    /// Who is next on each line: one request at a time is under way there, whoever wants it.
    turns: Mutex<BTreeMap<SinkName, Arc<AsyncMutex<()>>>>,
}

/// An event on its way.
#[derive(Clone, Debug)]
struct Post {
    /// The event's; the same whenever it is sent.
    id: String,
    time: Timestamp,
    event: Bytes,
}

impl Post {
    fn of(id: &EventId, time: Timestamp, event: Bytes) -> Self {
        Self { id: id.to_string(), time, event }
    }
}

impl Endpoint {
    /// # Errors
    /// The certificates or the login cannot be used. Nothing is reached yet.
    pub fn new(settings: Settings, clock: Arc<dyn Clock>) -> Result<Self, SetupError> {
        let tls = match settings.address.is_encrypted() || settings.ca_pem.is_some() {
            true => tls::client_config(settings.ca_pem.as_deref(), None)?,
            // Whoever posts in clear needs no authority on the machine.
            false => tls::trusting_nobody()?,
        };
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(Arc::unwrap_or_clone(tls))
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .timeout(settings.timeout)
            .user_agent(concat!("dtorrent/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(SetupError::Http)?;
        let authorization = settings.login.as_ref().map(authorization).transpose()?;
        Ok(Self { settings, http, authorization, clock, gone: OnceLock::new(), turns: Mutex::default() })
    }

    /// Looks whether somebody answers there; no event is sent.
    pub async fn probe(&self) -> Result<(), DeliverError> {
        let mut root = self.settings.address.url().clone();
        root.set_path("/");
        root.set_query(None);
        match self.http.head(root).send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(DeliverError::unavailable(self.in_words(error))),
        }
    }

    /// One attempt to hand an event over that was put aside on this line, whatever became of it before.
    pub async fn outbox(&self, line: &SinkName, id: &str, event: Bytes) -> Result<(), DeliverError> {
        match self.attempt(line, id, &event).await {
            Verdict::Taken => Ok(()),
            Verdict::NotNow { reason, wait } => {
                Err(DeliverError::Unavailable { reason, retry_after: wait, gave_reason: true })
            }
            Verdict::NotThis { reason } | Verdict::Never { reason } | Verdict::Gone { reason } => {
                Err(DeliverError::Rejected { reason })
            }
        }
    }

    fn turn(&self, line: &SinkName) -> Arc<AsyncMutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(turns.entry(line.clone()).or_default())
    }

    async fn attempt(&self, line: &SinkName, id: &str, event: &[u8]) -> Verdict {
        let turn = self.turn(line);
        let _turn = turn.lock().await;
        let Body { content_type, bytes } = match self.settings.format.render(event) {
            Ok(body) => body,
            Err(reason) => return Verdict::Never { reason },
        };
        // Receivers refuse what was signed too long ago, so it is the time of this attempt.
        let time = self.clock.now().as_millis().div_euclid(1000);
        let mut request = self
            .http
            .post(self.settings.address.url().clone())
            .headers(self.settings.headers.clone())
            .header(CONTENT_TYPE, content_type)
            .header("webhook-id", id)
            .header("webhook-timestamp", time);
        if let Some(secrets) = &self.settings.secrets {
            request = request.header("webhook-signature", secrets.sign(id, time, &bytes));
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        let response = match request.body(bytes).send().await {
            Ok(response) => response,
            Err(error) => return Verdict::NotNow { reason: self.in_words(error), wait: None },
        };
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER).map(|value| value.as_bytes().to_owned());
        // Also of an answer that is good: a connection is used again only when it was read to its end.
        let words = first_words(response).await;
        judge(status, retry_after.as_deref(), &words, self.clock.now())
    }

    /// Never with the address, which may be a secret.
    fn in_words(&self, error: reqwest::Error) -> String {
        if error.is_timeout() && !error.is_connect() {
            return format!("no answer from {} within {:?}", self.settings.address.host(), self.settings.timeout);
        }
        let error = error.without_url();
        let causes = std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
        let text = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
        format!("{}: {text}", self.settings.address.host())
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

/// The beginning of an answer; a slow or endless one is left.
async fn first_words(mut response: reqwest::Response) -> Vec<u8> {
    let mut words = Vec::new();
    let read = async {
        while words.len() < WORDS_BYTES_MAX
            && let Ok(Some(more)) = response.chunk().await
        {
            words.extend_from_slice(&more);
        }
    };
    if timeout(WORDS_WITHIN, read).await.is_err() {
        debug!("the rest of an answer came too slowly");
    }
    words.truncate(WORDS_BYTES_MAX);
    words
}

/// One server's line to an endpoint.
pub struct WebhookSink {
    line: Arc<Line>,
}

struct Line {
    name: SinkName,
    endpoint: Arc<Endpoint>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// In a row, and since when.
    failures: u32,
    failing_since: Option<Instant>,
    /// Since when bodies are refused for what they are. Outlasts those that were put aside for it, so that a template
    /// that is wrong does not cost each event its time.
    refused_since: Option<Instant>,
    /// What failed last: the next connection begins with it.
    owed: Option<Post>,
    /// What became of that, for when it is asked for.
    settled: Option<(String, Result<(), DeliverError>)>,
}

impl WebhookSink {
    /// `name`: the line's.
    pub fn new(name: SinkName, endpoint: Arc<Endpoint>) -> Self {
        Self { line: Arc::new(Line { name, endpoint, state: Mutex::default() }) }
    }
}

impl Line {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands an event over, unless that was done already.
    async fn send(&self, post: Post) -> Result<(), DeliverError> {
        let settled = self.state().settled.take_if(|(id, _)| *id == post.id);
        match settled {
            Some((_, result)) => result,
            None => self.attempt(post).await,
        }
    }

    async fn attempt(&self, post: Post) -> Result<(), DeliverError> {
        let verdict = match self.endpoint.gone.get() {
            Some(reason) => Verdict::Never { reason: format!("switched off: {reason}") },
            None => self.endpoint.attempt(&self.name, &post.id, &post.event).await,
        };
        self.conclude(post, verdict)
    }

    fn conclude(&self, post: Post, verdict: Verdict) -> Result<(), DeliverError> {
        let Settings { keep_trying, .. } = &self.endpoint.settings;
        let mut state = self.state();
        state.owed = None;
        let is_about_the_body = matches!(verdict, Verdict::NotThis { .. });
        let (reason, wait) = match verdict {
            Verdict::NotNow { reason, wait } => (reason, wait),
            Verdict::NotThis { reason } => (reason, None),
            Verdict::Taken => {
                *state = State::default();
                return Ok(());
            }
            Verdict::Never { reason } => {
                *state = State::default();
                return Err(DeliverError::Rejected { reason });
            }
            Verdict::Gone { reason } => {
                *state = State::default();
                drop(state);
                self.switch_off(&reason);
                return Err(DeliverError::Rejected { reason });
            }
        };
        state.failures = state.failures.saturating_add(1);
        let failing_for = state.failing_since.get_or_insert_with(Instant::now).elapsed();
        if !is_about_the_body {
            state.refused_since = None;
        } else if state.refused_since.get_or_insert_with(Instant::now).elapsed() >= patience::REFUSED_FOR {
            *state = State { refused_since: state.refused_since, ..State::default() };
            return Err(DeliverError::Rejected { reason });
        }
        let age = Duration::from_millis(self.endpoint.clock.now().millis_since(post.time));
        if patience::is_over(age, failing_for, *keep_trying) {
            let tried_for = humantime::format_duration(*keep_trying);
            return Err(DeliverError::Rejected { reason: format!("in vain for {tried_for}, at last: {reason}") });
        }
        state.owed = Some(post);
        let retry_after = Some(patience::wait(state.failures, rand::random(), wait));
        Err(DeliverError::Unavailable { reason, retry_after, gave_reason: true })
    }

    fn switch_off(&self, reason: &str) {
        if self.endpoint.gone.set(reason.to_owned()).is_ok() {
            let webhook = &self.endpoint.settings.name;
            warn!(%webhook, reason, "switched off until the next start: its events are put aside");
        }
    }

    /// Sends once more what failed last. Cancel-safe: it is owed until it is concluded.
    async fn again(&self) -> Result<(), DeliverError> {
        let owed = {
            let mut state = self.state();
            state.settled = None;
            state.owed.clone()
        };
        let Some(post) = owed else { return Ok(()) };
        let id = post.id.clone();
        match self.attempt(post).await {
            Err(failure) if !failure.is_rejected() => Err(failure),
            settled => {
                self.state().settled = Some((id, settled));
                Ok(())
            }
        }
    }
}

#[async_trait]
impl Sink for WebhookSink {
    async fn connect(&self) -> Result<Connected, DeliverError> {
        self.line.again().await?;
        Ok(link::begin(Arc::clone(&self.line)))
    }

    /// An endpoint keeps nothing that could be taken back.
    fn retained_topic(&self, _: &Delivery) -> Option<String> {
        None
    }

    fn own_retained_topics(&self) -> Vec<String> {
        Vec::new()
    }

    fn wants(&self, delivery: &Delivery) -> bool {
        self.line.endpoint.settings.filter.wants(delivery)
    }

    fn notes(&self) -> Vec<String> {
        let gone = self.line.endpoint.gone.get();
        let note = |reason: &String| format!("switched off until the next start, its events are put aside: {reason}");
        gone.map(note).into_iter().collect()
    }
}
