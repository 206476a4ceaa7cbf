//! One connection to one of the servers of a NATS system, made with async-nats.
//!
//! The crate reconnects by itself and resends in an order of its own. That is off here: once a connection was
//! established, the crate gets no login any more and so gives up, and the dispatcher sends everything unacknowledged
//! again on the next connection.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{Client, ClientError, ConnectErrorKind, ConnectOptions, Event, Request, ServerAddr, ServerError};
use bytes::Bytes;
use futures_util::future::{OptionFuture, join_all};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::sync::mpsc;

use super::message::Message;
use super::reply::{Denied, parse_violation};
use super::settings::{Login, ServerUrl, Settings};
use super::subjects::BUCKET_STREAM;
use crate::connect::better_address;
use crate::model::error_chain;
use crate::port::DeliverError;
use crate::sinks::broker::other_service::OtherService;
use crate::sinks::broker::url::Endpoint;
use crate::tls;

/// Maximum time for connecting to one server, after which the next one is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval of the pings on an idle connection; async-nats gives it up after the third one without a pong.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum time for a reply of JetStream's API.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum number of states that are read at a time: one after the other, ten thousand would take minutes on a slow link.
const READS_MAX: usize = 64;
/// Capacity of the channel for connection events; as large as the crate's own, which drops what exceeds it.
const EVENTS_MAX: usize = 128;
/// Delay where an operator has to act first.
const REFUSED_RETRY: Duration = Duration::from_secs(10);

/// A connection could not be made, or is over.
#[derive(Clone, Debug)]
pub struct ConnectionError {
    /// Text for people.
    pub reason: String,
    /// No attempt makes sense before this.
    pub retry_after: Option<Duration>,
}

impl ConnectionError {
    /// Returns an end that the next attempt may overcome.
    pub fn other(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retry_after: None }
    }

    /// Returns the end of a connection to a server that is about to stop, while others serve.
    pub fn lame_duck() -> Self {
        Self::other("the server was about to stop (lame duck mode)")
    }

    /// Returns an end that lasts until the login or the server's configuration is changed.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retry_after: Some(REFUSED_RETRY) }
    }
}

impl From<ConnectionError> for DeliverError {
    fn from(ConnectionError { reason, retry_after }: ConnectionError) -> Self {
        // A NATS server says what it does not take and never hangs up over a message, as brokers of MQTT 3.1.1 do. So every
        // end counts as explained, and none puts a message into quarantine.
        Self::Unavailable { reason: reason.into(), retry_after, gave_reason: true }
    }
}

/// A connection to a NATS server.
pub struct Connection {
    /// async-nats's client, for publishes and subscriptions.
    pub client: Client,
    events: mpsc::Receiver<Event>,
    /// The last error that the server sent: mostly the reason why it closes the connection next.
    last_error: Option<String>,
}

/// An event on a connection that its owner has to act upon.
#[derive(Debug)]
pub enum ConnectionEvent {
    /// The login lacks a permission; `text` is the server's.
    PermissionDenied {
        /// The operation and its subject.
        denied: Denied,
        /// The error as the server sent it.
        text: String,
    },
    /// The server is about to stop (lame duck mode).
    LameDuck,
    /// Messages of a subscription were dropped, because they were not read in time.
    SlowConsumer,
    /// Anything else.
    Other,
}

impl Connection {
    /// Makes one attempt at each of the servers, in this order.
    ///
    /// `purpose` is part of the connection's name, which the server lists. `capacity`: how many messages each subscription
    /// buffers.
    pub async fn open(
        settings: &Settings,
        tls: Option<&Arc<ClientConfig>>,
        urls: &[ServerUrl],
        purpose: &str,
        capacity: usize,
    ) -> Result<Self, ConnectionError> {
        let (addresses, names) = reachable(urls).await;
        let servers: Vec<ServerAddr> = addresses.iter().filter_map(|url| url.to_string().parse().ok()).collect();
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let was_connected = Arc::new(AtomicBool::new(false));
        let mut options = login(settings.login.clone(), Arc::clone(&was_connected))
            .name(format!("dtorrent {} {purpose}", settings.instance))
            // The crate counts the first attempts too, so this is one for each server.
            .max_reconnects(servers.len())
            // The order is ours, and so are the servers of the cluster: see `System::urls`.
            .ignore_discovered_servers()
            .retain_servers_order()
            .connection_timeout(CONNECT_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            .request_timeout(Some(REQUEST_TIMEOUT))
            .subscription_capacity(capacity)
            .event_callback(move |event| {
                let sender = sender.clone();
                // An error means that the connection was dropped.
                async move { sender.send(event).await.unwrap_or_default() }
            });
        if let Some(tls) = tls {
            // A CA or a certificate in the config asks for TLS, whatever the URL's scheme.
            let is_required = settings.trust.is_set() || settings.client_cert.is_some();
            let tls = match names.is_empty() {
                true => Arc::clone(tls),
                false => tls::client_config_for_addresses(&settings.trust, settings.client_cert.as_ref(), names)
                    .map_err(|error| ConnectionError::other(error_chain(&error)))?,
            };
            options = options.tls_client_config(Arc::unwrap_or_clone(tls)).require_tls(is_required);
        }
        let connected = async_nats::connect_with_options(&servers[..], options).await;
        // From now on the crate gets no login any more. It has no switch against reconnecting, and would resend on its own.
        was_connected.store(true, Ordering::Relaxed);
        match connected {
            Ok(client) => Ok(Self { client, events, last_error: None }),
            Err(error) => Err(connect_failed(urls, &error).await),
        }
    }

    /// Waits for the next event; an error is the end of the connection. Cancel-safe.
    pub async fn next_event(&mut self) -> Result<ConnectionEvent, ConnectionError> {
        let Some(event) = self.events.recv().await else { return Err(self.ended()) };
        match event {
            Event::Disconnected | Event::Closed | Event::ClientError(ClientError::MaxReconnects) => Err(self.ended()),
            Event::ServerError(error) => {
                if let ServerError::Other(text) = &error
                    && let Some(denied) = parse_violation(text)
                {
                    return Ok(ConnectionEvent::PermissionDenied { denied, text: text.clone() });
                }
                // The server sends the reason and closes the connection next; the event of the close has none.
                self.last_error = Some(explain(&error));
                Ok(ConnectionEvent::Other)
            }
            Event::LameDuckMode => Ok(ConnectionEvent::LameDuck),
            Event::SlowConsumer(_) => Ok(ConnectionEvent::SlowConsumer),
            Event::Connected | Event::Draining | Event::ClientError(_) => Ok(ConnectionEvent::Other),
        }
    }

    fn ended(&self) -> ConnectionError {
        ConnectionError::other(self.last_error.as_deref().unwrap_or("the connection broke"))
    }

    /// Sends a request to JetStream's API and returns the body of its reply.
    pub async fn request_api(&mut self, subject: &str, body: String) -> Result<Bytes, ConnectionError> {
        let permission = "publish to $JS.API.STREAM.INFO.* and $JS.API.STREAM.CREATE.*, subscribe to _INBOX.>";
        self.request(subject, Request::new().payload(body.into()), permission).await
    }

    /// Reads messages of the bucket's stream, many at a time, and returns what `parse` finds in the replies, in their order.
    pub async fn read_states<T>(
        &mut self,
        bodies: Vec<String>,
        parse: fn(&[u8]) -> T,
    ) -> Result<Vec<T>, ConnectionError> {
        let subject = format!("$JS.API.STREAM.MSG.GET.{BUCKET_STREAM}");
        let permission = format!("publish to {subject}, subscribe to _INBOX.>");
        let client = self.client.clone();
        let requests = bodies.into_iter().map(|body| {
            let (client, subject) = (client.clone(), subject.clone());
            async move {
                let reply = client.send_request(subject, Request::new().payload(body.into())).await?;
                Ok(parse(&reply.payload))
            }
        });
        let replies = stream::iter(requests).buffered(READS_MAX).try_collect();
        self.replied(replies, &permission).await
    }

    /// Publishes to JetStream and returns the body of its reply.
    pub async fn store(&mut self, message: Message) -> Result<Bytes, ConnectionError> {
        let Message { subject, headers, body, .. } = message;
        let permission = "publish to $KV.dtorrent_state.>, subscribe to _INBOX.>";
        self.request(&subject, Request::new().headers(headers).payload(body), permission).await
    }

    async fn request(&mut self, subject: &str, request: Request, permission: &str) -> Result<Bytes, ConnectionError> {
        let client = self.client.clone();
        Ok(self.replied(client.send_request(subject.to_owned(), request), permission).await?.payload)
    }

    /// Waits for what was requested, for which the login needs `permission`.
    async fn replied<T>(
        &mut self,
        reply: impl Future<Output = Result<T, async_nats::RequestError>>,
        permission: &str,
    ) -> Result<T, ConnectionError> {
        let mut reply = std::pin::pin!(reply);
        loop {
            tokio::select! {
                biased;
                reply = &mut reply => return match reply {
                    Ok(reply) => Ok(reply),
                    Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => {
                        Err(ConnectionError::refused(
                            "JetStream is not there: switch it on, for this account too, or write jetstream = false",
                        ))
                    }
                    Err(error) => Err(ConnectionError::other(format!("JetStream does not answer: {error}"))),
                },
                // A request that is not permitted gets no reply, only this error on the connection.
                event = self.next_event() => if let ConnectionEvent::PermissionDenied { text, .. } = event? {
                    return Err(ConnectionError::refused(format!("{text}: the login needs the right to {permission}")));
                },
            }
        }
    }
}

/// Returns the URLs, where a name has a dead address with one that answers, and the names of such addresses. async-nats
/// tries the addresses of a name one after the other, and takes no stream.
async fn reachable(urls: &[ServerUrl]) -> (Vec<ServerUrl>, HashMap<IpAddr, ServerName<'static>>) {
    let mut names = HashMap::new();
    let mut reachable = urls.to_vec();
    let found = join_all(urls.iter().map(|url| better_address(&url.endpoint.host, url.endpoint.port))).await;
    for (url, address) in reachable.iter_mut().zip(found) {
        if let Some(address) = address
            && let Ok(name) = ServerName::try_from(url.endpoint.host.clone())
        {
            names.insert(address, name);
            url.endpoint.host = address.to_string();
        }
    }
    (reachable, names)
}

/// Returns options that log in until a connection was established, and never again.
fn login(login: Login, was_connected: Arc<AtomicBool>) -> ConnectOptions {
    ConnectOptions::with_auth_callback(move |nonce| {
        let auth = match was_connected.load(Ordering::Relaxed) {
            true => Err(async_nats::AuthError::new("not reconnecting")),
            false => login.answer(&nonce).map_err(async_nats::AuthError::new),
        };
        async move { auth }
    })
}

/// Returns a server's error with what an operator can do about it.
fn explain(error: &ServerError) -> String {
    match error {
        ServerError::AuthorizationViolation => {
            "the server refuses the login: check username and password, token, nkey_file or creds_file".to_owned()
        }
        ServerError::Other(text) => format!("the server says: {text}"),
        other => other.to_string(),
    }
}

async fn connect_failed(urls: &[ServerUrl], error: &async_nats::ConnectError) -> ConnectionError {
    let texts: Vec<String> = urls.iter().map(ToString::to_string).collect();
    let reason = match error.kind() {
        ConnectErrorKind::AuthorizationViolation => {
            let reason = explain(&ServerError::AuthorizationViolation);
            return ConnectionError::refused(format!("{}: {reason}", texts.join(", ")));
        }
        ConnectErrorKind::TimedOut => format!("no connection within {CONNECT_TIMEOUT:?}"),
        _ => tls::problem_of(error, "nats://").unwrap_or_else(|| error_chain(error)),
    };
    // The error is that of the last server alone.
    let last = urls.last().filter(|url| !url.needs_tls).map(|url| other_service(&url.endpoint));
    let found = OptionFuture::from(last).await.flatten();
    ConnectionError::other(format!("{}: {}", texts.join(", "), found.unwrap_or(reason)))
}

/// Returns what answers at the port in place of a NATS server, and what to correct.
async fn other_service(endpoint: &Endpoint) -> Option<String> {
    let found = OtherService::at(endpoint).await?;
    let description = match found {
        // A NATS server greets at once, so it was no NATS server that closed the connection, or it has no room.
        OtherService::Closes => "the connection is closed without the greeting of a NATS server",
        OtherService::Nats => return None,
        _ => found.description()?,
    };
    let remedy = match found {
        OtherService::Tls => "write tls:// in `url`, or correct its port",
        OtherService::Closes => "check host and port in `url` (an MQTT broker needs kind = \"mqtt\")",
        _ => "correct the port in `url`",
    };
    Some(format!("{description}: {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_connection_puts_no_message_into_quarantine() {
        let error = ConnectionError::other("the connection broke").into();
        assert!(matches!(error, DeliverError::Unavailable { gave_reason: true, .. }), "{error:?}");
    }
}
