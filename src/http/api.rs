//! The API: servers, sinks, torrents and events to read, commands to send.
//!
//! Reading needs no token, except for the words of others about a problem; changing does. An error is `{"error": {"code", "message", "retryable"}}`. A command goes
//! through the same admission as on a broker and is answered with the same result.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::HttpState;
use super::access::{Refusal, Viewer};
use super::bodies::{BODY_TIMEOUT, BodyError};
use super::connections::Permit;
use super::query::{self, EventsQuery, TorrentsQuery};
use crate::model::{
    CommandError, ErrorCode, InfoHash, InvalidInfoHash, OutcomeStatus, Seq, ServerName, SinkName, Stats, Torrent,
    known_names,
};
use crate::port::{BODY_BYTES_MAX, CommandAddress};

/// Interval of empty comments in the event stream, below the idle timeout of common proxies (nginx: 60 s).
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);

/// The bridge, as the HTTP server sees it.
///
/// A reason of a problem may have the words of a broker, an endpoint or a client. It is for who has the token; anybody else
/// gets to know that there is a problem.
#[async_trait]
pub trait Api: Send + Sync {
    /// Returns whether every server is polled, and every sink is connected and its commands can be received.
    fn readiness(&self, viewer: Viewer) -> Readiness;
    /// Returns all metrics in the Prometheus text format.
    async fn metrics(&self) -> String;
    /// Returns every server of the config.
    fn servers(&self, viewer: Viewer) -> Vec<ServerView>;
    /// Returns every sink of the config.
    fn sinks(&self, viewer: Viewer) -> Vec<SinkView>;
    /// Returns one page of the matching torrents, and how many match; `None` for an unknown server.
    fn torrents(&self, server: &ServerName, query: &TorrentsQuery) -> Option<(Vec<Arc<Torrent>>, u64)>;
    /// Returns one torrent; `None` if the server is unknown or has no such torrent.
    fn torrent(&self, server: &ServerName, hash: InfoHash) -> Option<Arc<Torrent>>;
    /// Executes a command and waits for its result. Nothing in `address` and `body` is checked yet.
    async fn command(&self, address: CommandAddress, body: Bytes) -> CommandReply;
    /// Returns the events from the place that the query names, then those to come.
    fn events(&self, query: EventsQuery) -> BoxStream<'static, StreamItem>;
    /// Replays dead letters of a webhook, all of them if `ids` is empty, and returns the outcome of each as JSON.
    ///
    /// # Errors
    /// Why nothing was sent, as text for the user.
    async fn replay(&self, webhook: &str, ids: Vec<String>) -> Result<Vec<Value>, String>;
}

/// The body of `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// No server and no sink has a problem.
    pub ready: bool,
    /// Every server of the config.
    pub servers: BTreeMap<ServerName, ComponentReadiness>,
    /// Every sink of the config.
    pub sinks: BTreeMap<SinkName, ComponentReadiness>,
}

/// Whether one server or sink is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ComponentReadiness {
    ready: bool,
    problem: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

impl ComponentReadiness {
    /// A component is ready if it has no problem.
    pub fn new(problem: Option<String>) -> Self {
        Self { ready: problem.is_none(), problem, notes: Vec::new() }
    }

    /// Adds what users should know, without a problem.
    #[must_use]
    pub fn with_notes(self, notes: Vec<String>) -> Self {
        Self { notes, ..self }
    }

    /// Returns whether the component has no problem.
    pub fn is_ready(&self) -> bool {
        self.ready
    }
}

/// A server, as the API and the page show it.
#[derive(Clone, Debug, Serialize)]
pub struct ServerView {
    /// The name in the config.
    pub name: ServerName,
    /// `online` or `offline`.
    pub status: &'static str,
    /// Why the last poll failed; without the words of others for who has no token.
    pub problem: Option<String>,
    /// Seconds since the last poll that was answered; `None` before the first.
    pub poll_age_seconds: Option<f64>,
    /// The number of its torrents.
    pub torrents: usize,
    /// The newest entry of its journal.
    pub last_seq: Seq,
    /// Its statistics; `None` before the first poll of this run.
    pub stats: Option<Stats>,
}

/// A sink, as the API and the page show it.
#[derive(Clone, Debug, Serialize)]
pub struct SinkView {
    /// The name in the config; of a webhook, with the server after a dot.
    pub name: SinkName,
    /// `online` or `offline`.
    pub status: &'static str,
    /// Why the sink is disconnected, its delivery blocked, or no command can be received; without the words of others for who
    /// has no token.
    pub problem: Option<String>,
    /// Journal entries that it has not acknowledged.
    pub lag_entries: u64,
    /// Seconds since it fell behind; 0 if it has not.
    pub lag_seconds: f64,
    /// Torrents whose latest state it has not received.
    pub dirty: u64,
    /// Messages acknowledged in this run.
    pub delivered: u64,
    /// Messages refused for good in this run.
    pub rejected: u64,
}

/// The answer to a command.
#[derive(Clone, Debug)]
pub enum CommandReply {
    /// Its result.
    Result {
        /// How it ended.
        status: OutcomeStatus,
        /// The code of its error, if it has one.
        error: Option<ErrorCode>,
        /// The whole result, as brokers get it.
        body: Bytes,
    },
    /// The command runs longer than an HTTP request waits. `id` is the one by which its sender can ask again.
    Running { id: Option<String> },
    /// The bridge stops; the command may have been accepted.
    Stopping,
}

/// An item of the event stream. Bodies are JSON without line breaks.
#[derive(Clone, Debug)]
pub enum StreamItem {
    /// A journal entry.
    Event {
        /// The id from which a listener can resume.
        id: String,
        /// The event.
        body: Bytes,
    },
    /// An `updated` event. Its id is no place in the journal, so a listener must not resume from it.
    Updated(Bytes),
    /// Events that the journal no longer holds.
    Gap {
        /// `None` if it may be any server.
        server: Option<ServerName>,
        /// Why they are missing.
        reason: String,
    },
    /// The last item of a stream that ends before its listener wants it to, and why.
    End(String),
}

type SharedState = State<Arc<HttpState>>;
/// The answer to a request; an `Err` refuses it.
type Answer = Result<Response, Response>;

pub(super) async fn ready(
    State(state): SharedState,
    ConnectInfo(permit): ConnectInfo<Permit>,
    uri: Uri,
    headers: HeaderMap,
) -> Answer {
    // Under a foreign host name a web page may send the request, which gets no chance to guess the token.
    let viewer = match state.access.check_host(&uri, &headers) {
        Ok(()) => state.viewer(&permit, &headers).await.map_err(refused)?,
        Err(_) => Viewer::Anybody,
    };
    let readiness = state.api.readiness(viewer);
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, axum::Json(readiness)).into_response())
}

pub(super) async fn metrics(State(state): SharedState) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (headers, state.api.metrics().await).into_response()
}

pub(super) async fn servers(
    State(state): SharedState,
    ConnectInfo(permit): ConnectInfo<Permit>,
    headers: HeaderMap,
) -> Answer {
    let viewer = state.viewer(&permit, &headers).await.map_err(refused)?;
    Ok(axum::Json(json!({"servers": state.api.servers(viewer)})).into_response())
}

pub(super) async fn sinks(
    State(state): SharedState,
    ConnectInfo(permit): ConnectInfo<Permit>,
    headers: HeaderMap,
) -> Answer {
    let viewer = state.viewer(&permit, &headers).await.map_err(refused)?;
    Ok(axum::Json(json!({"sinks": state.api.sinks(viewer)})).into_response())
}

pub(super) async fn torrents(State(state): SharedState, Path(server): Path<String>, request: Request) -> Answer {
    let (query, fields) = query::torrents(request.uri().query().unwrap_or_default()).map_err(bad_request)?;
    let found = ServerName::parse(&server).ok().and_then(|server| state.api.torrents(&server, &query));
    let (torrents, total) = found.ok_or_else(|| no_server(&state, &server))?;
    let torrents: Vec<Value> = torrents.iter().map(|torrent| projected(torrent, fields.as_deref())).collect();
    let TorrentsQuery { page, page_size, .. } = query;
    let body = json!({"server": server, "total": total, "page": page, "page_size": page_size, "torrents": torrents});
    Ok(axum::Json(body).into_response())
}

/// Returns a torrent as JSON, with the named fields only.
fn projected(torrent: &Torrent, fields: Option<&[String]>) -> Value {
    let mut torrent = serde_json::to_value(torrent).expect("a torrent is plain JSON");
    if let (Some(fields), Some(object)) = (fields, torrent.as_object_mut()) {
        object.retain(|key, _| fields.contains(key));
    }
    torrent
}

pub(super) async fn torrent(State(state): SharedState, Path((server, hash)): Path<(String, String)>) -> Answer {
    let server = ServerName::parse(&server).map_err(|_| no_server(&state, &server))?;
    let hash: InfoHash = hash.parse().map_err(|error: InvalidInfoHash| bad_request(error.to_string()))?;
    let found = state.api.torrent(&server, hash);
    let torrent = found.ok_or_else(|| bad(ErrorCode::UnknownHash, "no such torrent on that server"))?;
    Ok(axum::Json(torrent).into_response())
}

/// The levels of a path that names a command, with or without a torrent.
#[derive(Deserialize)]
pub(super) struct CommandPath {
    server: String,
    hash: Option<String>,
    verb: String,
}

pub(super) async fn command(
    State(state): SharedState,
    ConnectInfo(permit): ConnectInfo<Permit>,
    Path(CommandPath { server, hash, verb }): Path<CommandPath>,
    request: Request,
) -> Answer {
    let (_slot, body) = authorised(&state, &permit, request).await?;
    let address = CommandAddress { server: Some(server), hash, verb };
    let reply = state.stop.run_until_cancelled(state.api.command(address, body)).await;
    let (status, body) = match reply.unwrap_or(CommandReply::Stopping) {
        CommandReply::Result { status, error, body } => (http_status(status, error), body),
        CommandReply::Running { id } => {
            (StatusCode::ACCEPTED, Bytes::from(json!({"id": id, "status": "running"}).to_string()))
        }
        CommandReply::Stopping => {
            return Err(bad(ErrorCode::ClientOffline, "the bridge is stopping; retry with the same id"));
        }
    };
    // A raised permit holds for the whole connection, so the connection ends with this answer.
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CONNECTION, "close")];
    Ok((status, headers, body).into_response())
}

/// The body of a replay: ids, or `all`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplayRequest {
    #[serde(default)]
    ids: Vec<String>,
    #[serde(default)]
    all: bool,
}

pub(super) async fn replay(
    State(state): SharedState,
    ConnectInfo(permit): ConnectInfo<Permit>,
    Path(webhook): Path<String>,
    request: Request,
) -> Answer {
    let (_slot, body) = authorised(&state, &permit, request).await?;
    let ids = match serde_json::from_slice(&body) {
        Ok(ReplayRequest { ids, all }) if all == ids.is_empty() => ids,
        _ => {
            let message = "expected {\"ids\": [\"home-7f3a9c21-000000004182\"]} or {\"all\": true}";
            return Err(bad_request(message));
        }
    };
    let replayed = state.stop.run_until_cancelled(state.api.replay(&webhook, ids)).await.ok_or_else(|| {
        bad(ErrorCode::ClientOffline, "the bridge is stopping; delivered events are no longer dead letters")
    })?;
    let body = json!({"sink": webhook, "replayed": replayed.map_err(bad_request)?});
    Ok(([(header::CONNECTION, "close")], axum::Json(body)).into_response())
}

/// Returns the body of a request that may change something, and its slot among the long requests.
///
/// The body is read only after the token was right, so that only who has it can occupy memory with one.
async fn authorised(
    state: &HttpState,
    permit: &Permit,
    request: Request,
) -> Result<(OwnedSemaphorePermit, Bytes), Response> {
    state.check_change(permit, request.headers()).await.map_err(refused)?;
    // Refused instead of queued: the waiting ones would take the connections that are left for health and pages.
    let slot = Arc::clone(&state.long_requests).try_acquire_owned().map_err(|_| too_many())?;
    // A command may wait for its client until its time to live is over.
    permit.lift_time_limit();
    permit.allow(BODY_BYTES_MAX);
    Ok((slot, state.bodies.read(request.into_body()).await.map_err(unreadable)?))
}

fn unreadable(error: BodyError) -> Response {
    match error {
        BodyError::TooLarge => bad(ErrorCode::TooLarge, format!("the body is larger than {BODY_BYTES_MAX} bytes")),
        BodyError::TooSlow => bad_request(format!("the body did not arrive within {BODY_TIMEOUT:?}")),
        BodyError::NoRoom => too_many(),
    }
}

/// Returns the HTTP status for the result of a command.
fn http_status(status: OutcomeStatus, error: Option<ErrorCode>) -> StatusCode {
    match (status, error) {
        (OutcomeStatus::Ok | OutcomeStatus::Partial, _) => StatusCode::OK,
        (_, Some(code)) => status_of_error(code),
        (_, None) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn status_of_error(code: ErrorCode) -> StatusCode {
    StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn bad(code: ErrorCode, message: impl Into<String>) -> Response {
    let error = CommandError::new(code, message);
    (status_of_error(code), axum::Json(json!({"error": error}))).into_response()
}

fn bad_request(message: impl Into<String>) -> Response {
    bad(ErrorCode::BadRequest, message)
}

fn no_server(state: &HttpState, name: &str) -> Response {
    let servers = state.api.servers(Viewer::Anybody);
    let known = known_names(name, servers.iter().map(|server| server.name.as_str()));
    bad(ErrorCode::UnknownServer, format!("no such server is configured; {known}"))
}

/// The answer where all places of long requests are taken. It ends the connection, which would take one of the others.
fn too_many() -> Response {
    let headers = [(header::RETRY_AFTER, "5"), (header::CONNECTION, "close")];
    (headers, bad(ErrorCode::ClientOffline, "too many long requests")).into_response()
}

pub(super) fn refused(refusal: Refusal) -> Response {
    let body = axum::Json(json!({"error": CommandError::new(ErrorCode::Forbidden, refusal.to_string())}));
    match refusal {
        Refusal::MissingToken | Refusal::WrongToken => {
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], body).into_response()
        }
        Refusal::TooManyGuesses(wait) => {
            let seconds = wait.as_secs() + 1;
            (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, seconds.to_string())], body).into_response()
        }
        Refusal::Host | Refusal::Origin | Refusal::NoToken => (StatusCode::FORBIDDEN, body).into_response(),
    }
}

pub(super) async fn not_found() -> Response {
    let error = CommandError::new(ErrorCode::Unsupported, "no such address; docs/http.md has all of them");
    (StatusCode::NOT_FOUND, axum::Json(json!({"error": error}))).into_response()
}

/// Gives the errors of the router (a method or a path that it does not accept) the shape of the others.
pub(super) async fn with_json_errors(request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let response = next.run(request).await;
    let (status, headers) = (response.status(), response.headers());
    let is_json = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if is_json || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let error = match status {
        StatusCode::METHOD_NOT_ALLOWED => {
            let message = format!("{method} is not possible at this address; the header `Allow` has what is");
            CommandError::new(ErrorCode::Unsupported, message)
        }
        _ => CommandError::new(ErrorCode::BadRequest, "the address is not valid: is it percent-encoded UTF-8?"),
    };
    let mut headers = response.headers().clone();
    // Those of the body that is replaced.
    headers.remove(header::CONTENT_TYPE);
    headers.remove(header::CONTENT_LENGTH);
    (status, headers, axum::Json(json!({"error": error}))).into_response()
}

pub(super) async fn events(
    State(state): SharedState,
    ConnectInfo(permit): ConnectInfo<Permit>,
    request: Request,
) -> Answer {
    let mut query = query::events(request.uri().query().unwrap_or_default()).map_err(bad_request)?;
    let known: BTreeSet<ServerName> =
        state.api.servers(Viewer::Anybody).into_iter().map(|server| server.name).collect();
    if let Some(unknown) = query.servers.iter().flatten().find(|name| !known.contains(*name)) {
        return Err(no_server(&state, unknown.as_str()));
    }
    // Browsers send the header when they reconnect, and the URL stays the same, so the header is the newer place.
    let last = request.headers().get(HeaderName::from_static("last-event-id"));
    if let Some(last) = last.filter(|last| !last.is_empty()) {
        query.after = Some(String::from_utf8_lossy(last.as_bytes()).into_owned());
    }
    let slot = Arc::clone(&state.long_requests).try_acquire_owned().map_err(|_| too_many())?;
    permit.lift_time_limit();
    let stream = EventStream { items: state.api.events(query), stop: state.stop.clone(), _slot: slot };
    let preamble = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"retry: 2000\n: dtorrent\n\n"))]);
    let body = Body::from_stream(preamble.chain(stream::unfold(stream, EventStream::next)));
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CONNECTION, "close")];
    // nginx would otherwise hold events back until its buffer is full.
    Ok((headers, [(HeaderName::from_static("x-accel-buffering"), "no")], body).into_response())
}

/// The event stream of one listener.
struct EventStream {
    items: BoxStream<'static, StreamItem>,
    stop: CancellationToken,
    _slot: OwnedSemaphorePermit,
}

impl EventStream {
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        let lines = tokio::select! {
            biased;
            () = self.stop.cancelled() => return None,
            item = self.items.next() => lines(&item?),
            () = tokio::time::sleep(HEARTBEAT_INTERVAL) => Bytes::from_static(b":\n\n"),
        };
        Some((Ok(lines), self))
    }
}

/// Returns an item in the format of server-sent events, each body on one line.
fn lines(item: &StreamItem) -> Bytes {
    let mut lines = Vec::new();
    let mut add = |parts: &[&[u8]]| lines.extend(parts.concat());
    match item {
        StreamItem::Event { id, body } => add(&[b"id: ", id.as_bytes(), b"\ndata: ", body, b"\n\n"]),
        StreamItem::Updated(body) => add(&[b"data: ", body, b"\n\n"]),
        StreamItem::Gap { server, reason } => {
            let body = json!({"server": server, "reason": reason}).to_string();
            add(&[b"event: gap\ndata: ", body.as_bytes(), b"\n\n"]);
        }
        StreamItem::End(reason) => {
            let body = json!({"reason": reason}).to_string();
            add(&[b"event: end\ndata: ", body.as_bytes(), b"\n\n"]);
        }
    }
    Bytes::from(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_item_is_one_server_sent_event() {
        let gap = StreamItem::Gap { server: None, reason: "full".to_owned() };
        for (item, expected) in [
            (
                StreamItem::Event { id: "home-1".to_owned(), body: Bytes::from_static(b"{}") },
                "id: home-1\ndata: {}\n\n",
            ),
            (StreamItem::Updated(Bytes::from_static(b"{}")), "data: {}\n\n"),
            (gap, "event: gap\ndata: {\"reason\":\"full\",\"server\":null}\n\n"),
            (StreamItem::End("a\nb".to_owned()), "event: end\ndata: {\"reason\":\"a\\nb\"}\n\n"),
        ] {
            assert_eq!(lines(&item), expected);
        }
    }

    #[test]
    fn each_result_has_its_http_status() {
        for (status, error, expected) in [
            (OutcomeStatus::Ok, None, 200),
            (OutcomeStatus::Partial, Some(ErrorCode::UnknownHash), 200),
            (OutcomeStatus::Error, Some(ErrorCode::UnknownHash), 404),
            (OutcomeStatus::Refused, Some(ErrorCode::Forbidden), 403),
            (OutcomeStatus::Expired, Some(ErrorCode::ClientOffline), 503),
            (OutcomeStatus::Error, None, 500),
        ] {
            assert_eq!(http_status(status, error).as_u16(), expected, "{status:?} {error:?}");
        }
    }
}
