//! One connection to one of the servers of a NATS system, as async-nats makes it.
//!
//! The crate reconnects by itself and sends again in its own order. That is off here: once a line
//! stood, the crate is given no login any more, so it gives up, and whoever holds what was not
//! acknowledged sends it again on the next line.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{
    Client, ClientError, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Request, ServerAddr, ServerError,
};
use bytes::Bytes;
use rustls::ClientConfig;
use tokio::sync::mpsc;

use super::answer::{Denied, read_denial};
use super::message::Message;
use super::settings::{Login, ServerUrl, Settings};
use crate::model::error_chain;
use crate::port::DeliverError;

/// Within this a server lets us in, or the next one is tried.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A line on which nothing comes is tested so often, and given up after the third time.
const PING_EACH: Duration = Duration::from_secs(10);
/// An answer of JetStream's API comes within this.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Words of the connection that wait to be read; the crate drops what is more.
const EVENTS: usize = 128;

/// Why a line could not be had or is over.
#[derive(Clone, Debug)]
pub struct Ended {
    pub reason: String,
    /// It makes no sense to try before this.
    pub retry_after: Option<Duration>,
}

/// A person has to do something first, so there is no hurry.
const REFUSED_RETRY: Duration = Duration::from_secs(10);

impl Ended {
    /// For no reason that lies in what was sent.
    pub fn other(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retry_after: None }
    }

    /// Something is set up in a way that has to be mended.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retry_after: Some(REFUSED_RETRY) }
    }
}

impl From<Ended> for DeliverError {
    /// A NATS server says what it does not take and never hangs up over a message, as brokers of MQTT 3.1.1 do. So every
    /// end counts as explained, and none puts a message into quarantine.
    fn from(Ended { reason, retry_after }: Ended) -> Self {
        Self::Unavailable { reason, retry_after, gave_reason: true }
    }
}

/// A connection, and what it says of itself.
pub struct Line {
    pub client: Client,
    events: mpsc::Receiver<Event>,
    /// The last complaint of the server: mostly the reason why it hangs up next.
    complaint: Option<String>,
}

/// What a line says that somebody has to act upon.
#[derive(Debug)]
pub enum Word {
    Denied(Complaint),
    /// The server is about to stop; another one should be found.
    LameDuck,
    /// More came than was taken, and some of it is lost.
    TooSlow,
    Other,
}

/// A denial in the server's words.
#[derive(Debug)]
pub struct Complaint(String);

impl Complaint {
    pub fn denied(&self) -> Option<Denied<'_>> {
        read_denial(&self.0)
    }
}

impl std::fmt::Display for Complaint {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

impl Line {
    /// Makes one attempt at each of the servers, in this order.
    ///
    /// `capacity`: so many messages of a subscription wait to be taken.
    pub async fn connect(
        settings: &Settings,
        tls: Option<&Arc<ClientConfig>>,
        urls: &[ServerUrl],
        purpose: &str,
        capacity: usize,
    ) -> Result<Self, Ended> {
        let servers: Vec<ServerAddr> = urls.iter().filter_map(|url| url.to_string().parse().ok()).collect();
        let (tell, events) = mpsc::channel(EVENTS);
        let has_stood = Arc::new(AtomicBool::new(false));
        let mut options = login(settings.login.clone(), Arc::clone(&has_stood))
            .name(format!("dtorrent {} {purpose}", settings.instance))
            .max_reconnects(servers.len())
            .ignore_discovered_servers()
            .retain_servers_order()
            .connection_timeout(CONNECT_WITHIN)
            .ping_interval(PING_EACH)
            .request_timeout(Some(ANSWER_WITHIN))
            .subscription_capacity(capacity)
            .event_callback(move |event| {
                let tell = tell.clone();
                // Nobody listens any more: the line was given up.
                async move { tell.send(event).await.unwrap_or_default() }
            });
        if let Some(tls) = tls {
            // Who says whom to trust wants no line that anybody may read, whatever the URL.
            let is_wanted = settings.ca_pem.is_some() || settings.client_cert.is_some();
            options = options.tls_client_config(ClientConfig::clone(tls)).require_tls(is_wanted);
        }
        let connected = async_nats::connect_with_options(&servers[..], options).await;
        has_stood.store(true, Ordering::Relaxed);
        let client = connected.map_err(|error| cannot_connect(urls, &error))?;
        Ok(Self { client, events, complaint: None })
    }

    /// Waits for the next word of the connection; an error is its last one. Cancel-safe.
    pub async fn word(&mut self) -> Result<Word, Ended> {
        let over = |complaint: &Option<String>| {
            let reason = complaint.clone().unwrap_or_else(|| "the connection broke".to_owned());
            Ended::other(reason)
        };
        match self.events.recv().await {
            None | Some(Event::Disconnected | Event::Closed) => Err(over(&self.complaint)),
            Some(Event::ServerError(ServerError::Other(text))) if read_denial(&text).is_some() => {
                Ok(Word::Denied(Complaint(text)))
            }
            Some(Event::ServerError(error)) => {
                self.complaint = Some(explained(&error));
                Ok(Word::Other)
            }
            Some(Event::LameDuckMode) => Ok(Word::LameDuck),
            Some(Event::SlowConsumer(_)) => Ok(Word::TooSlow),
            Some(Event::ClientError(ClientError::MaxReconnects)) => Err(over(&self.complaint)),
            Some(Event::Connected | Event::Draining | Event::ClientError(_)) => Ok(Word::Other),
        }
    }

    /// Asks JetStream's API.
    pub async fn ask(&mut self, subject: &str, body: String) -> Result<Bytes, Ended> {
        let right = "publish to $JS.API.STREAM.INFO.* and $JS.API.STREAM.CREATE.*, subscribe to _INBOX.>";
        self.request(subject, Request::new().payload(body.into()), right).await
    }

    /// Publishes to JetStream and waits for what it answers.
    pub async fn store(&mut self, message: Message) -> Result<Bytes, Ended> {
        let mut headers = HeaderMap::new();
        message.headers.iter().for_each(|(name, value)| headers.insert(*name, value.as_str()));
        let right = "publish to $KV.dtorrent_state.>, subscribe to _INBOX.>";
        self.request(&message.subject, Request::new().headers(headers).payload(message.body), right).await
    }

    async fn request(&mut self, subject: &str, request: Request, right: &str) -> Result<Bytes, Ended> {
        let client = self.client.clone();
        let mut asking = std::pin::pin!(client.send_request(subject.to_owned(), request));
        loop {
            tokio::select! {
                biased;
                answer = &mut asking => return match answer {
                    Ok(message) => Ok(message.payload),
                    Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => Err(Ended::refused(
                        "JetStream is not there: switch it on, for this account too, or write jetstream = false",
                    )),
                    Err(error) => Err(Ended::other(format!("JetStream does not answer: {error}"))),
                },
                word = self.word() => match word? {
                    Word::Denied(complaint) => {
                        return Err(Ended::refused(format!("{complaint}: the login needs the right to {right}")));
                    }
                    Word::LameDuck | Word::TooSlow | Word::Other => {}
                },
            }
        }
    }
}

/// The login is given while the first connection is made, and never again.
fn login(login: Login, has_stood: Arc<AtomicBool>) -> ConnectOptions {
    ConnectOptions::with_auth_callback(move |nonce| {
        let answer = match has_stood.load(Ordering::Relaxed) {
            true => Err(async_nats::AuthError::new("a line is one connection")),
            false => login.answer(&nonce).map_err(async_nats::AuthError::new),
        };
        async move { answer }
    })
}

fn explained(error: &ServerError) -> String {
    match error {
        ServerError::AuthorizationViolation => {
            "the server refuses the login: look at username and password, token, nkey_file or creds_file".to_owned()
        }
        ServerError::Other(text) => format!("the server says: {text}"),
        other => other.to_string(),
    }
}

fn cannot_connect(urls: &[ServerUrl], error: &async_nats::ConnectError) -> Ended {
    let named: Vec<String> = urls.iter().map(ToString::to_string).collect();
    let named = named.join(", ");
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation => {
            Ended::refused(format!("{named}: {}", explained(&ServerError::AuthorizationViolation)))
        }
        ConnectErrorKind::TimedOut => Ended::other(format!("{named}: no connection within {CONNECT_WITHIN:?}")),
        _ => Ended::other(format!("{named}: {}", error_chain(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_breaks_says_nothing_of_what_was_on_it() {
        let error = Ended::other("the connection broke").into();
        assert!(matches!(error, DeliverError::Unavailable { gave_reason: true, .. }), "{error:?}");
    }
}
