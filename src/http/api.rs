//! The API: servers, torrents and events to be read, commands to be given.
//!
//! What is read needs no token, what is commanded does. Errors are `{"error": {"code", "message", "retryable"}}`,
//! and a command is answered with its result, the same as on a broker.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::Site;
use super::door::Pass;
use super::guard::Refusal;
use super::query::{self, EventsWish, ListWish};
use crate::model::{CommandError, ErrorCode, InfoHash, ServerName};

/// As much as a broker may bring.
const BODY_BYTES_MAX: usize = 10 << 20;
/// Who has the token may hold a place for so long before he has said what he wants.
const BODY_WITHIN: Duration = Duration::from_secs(120);
/// A line that says nothing, so that nobody in between takes the connection for dead.
const HEARTBEAT_EACH: Duration = Duration::from_secs(15);

/// Whom the API asks. Values are in their JSON shape.
#[async_trait]
pub trait Api: Send + Sync {
    fn servers(&self) -> Vec<Value>;
    fn sinks(&self) -> Vec<Value>;
    /// Some of the torrents of a server, and how many match; `None` if there is no such server.
    fn torrents(&self, server: &ServerName, wish: &ListWish) -> Option<(Vec<Value>, u64)>;
    fn torrent(&self, server: &ServerName, hash: InfoHash) -> Option<Value>;
    /// Has a command carried out as one that came by a broker, and waits for what becomes of it.
    async fn command(&self, order: Order) -> Answered;
    fn events(&self, wish: EventsWish) -> BoxStream<'static, Notice>;
    /// Sends dead letters of a webhook once more, those of these ids or all, and says what became of each; or why
    /// it is not done.
    async fn replay(&self, webhook: &str, ids: Vec<String>) -> Result<Vec<Value>, String>;
}

/// A command, in words that nobody has checked.
#[derive(Clone, Debug)]
pub struct Order {
    pub server: String,
    pub hash: Option<String>,
    pub verb: String,
    pub body: Bytes,
}

#[derive(Clone, Debug)]
pub enum Answered {
    /// The bytes of its result.
    Result(Bytes),
    /// It takes longer than an answer can wait. `id`: by which it can be asked for again, if its sender gave one.
    Running { id: Option<String> },
    /// The bridge ends; the command may have been taken.
    Stopping,
}

/// Something for who listens to events. Bodies are JSON in one line.
#[derive(Clone, Debug)]
pub enum Notice {
    Event {
        id: String,
        body: Bytes,
    },
    /// Its id is no place to go on from, so a listener is not to keep it as the last one.
    Updated(Bytes),
    Gap(Value),
    /// The last one, with a reason.
    End(String),
}

type Shared = State<Arc<Site>>;

pub(super) async fn servers(State(site): Shared) -> Response {
    axum::Json(json!({"servers": site.api.servers()})).into_response()
}

pub(super) async fn sinks(State(site): Shared) -> Response {
    axum::Json(json!({"sinks": site.api.sinks()})).into_response()
}

pub(super) async fn torrents(State(site): Shared, Path(server): Path<String>, request: Request) -> Response {
    let wish = match query::list(request.uri().query().unwrap_or_default()) {
        Ok(wish) => wish,
        Err(right) => return bad(ErrorCode::BadRequest, right),
    };
    let found = ServerName::parse(&server).ok().and_then(|server| site.api.torrents(&server, &wish));
    let Some((torrents, total)) = found else { return no_server() };
    let (page, page_size) = (wish.page, wish.page_size);
    let body = json!({"server": server, "total": total, "page": page, "page_size": page_size, "torrents": torrents});
    axum::Json(body).into_response()
}

pub(super) async fn torrent(State(site): Shared, Path((server, hash)): Path<(String, String)>) -> Response {
    let Ok(server) = ServerName::parse(&server) else { return no_server() };
    let hash = match hash.parse::<InfoHash>() {
        Ok(hash) => hash,
        Err(error) => return bad(ErrorCode::BadRequest, error.to_string()),
    };
    match site.api.torrent(&server, hash) {
        Some(torrent) => axum::Json(torrent).into_response(),
        None => bad(ErrorCode::UnknownHash, "no such torrent on that server"),
    }
}

pub(super) async fn command_server(
    State(site): Shared,
    ConnectInfo(pass): ConnectInfo<Pass>,
    Path((server, verb)): Path<(String, String)>,
    request: Request,
) -> Response {
    command(&site, &pass, server, None, verb, request).await
}

pub(super) async fn command_torrent(
    State(site): Shared,
    ConnectInfo(pass): ConnectInfo<Pass>,
    Path((server, hash, verb)): Path<(String, String, String)>,
    request: Request,
) -> Response {
    command(&site, &pass, server, Some(hash), verb, request).await
}

async fn command(
    site: &Site,
    pass: &Pass,
    server: String,
    hash: Option<String>,
    verb: String,
    request: Request,
) -> Response {
    let (_place, body) = match admitted(site, pass, request).await {
        Ok(admitted) => admitted,
        Err(refusal) => return refusal,
    };
    let answer = tokio::select! {
        biased;
        answer = site.api.command(Order { server, hash, verb, body }) => answer,
        () = site.stop.cancelled() => Answered::Stopping,
    };
    let (status, body) = match answer {
        Answered::Result(body) => (status_of(&body), body),
        Answered::Running { id } => {
            (StatusCode::ACCEPTED, Bytes::from(json!({"id": id, "status": "running"}).to_string()))
        }
        Answered::Stopping => return bad(ErrorCode::ClientOffline, "the bridge ends; ask again with the same id"),
    };
    (status, [(header::CONTENT_TYPE, "application/json"), (header::CONNECTION, "close")], body).into_response()
}

/// Which dead letters are to be sent once more.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ReplayWish {
    #[serde(default)]
    ids: Vec<String>,
    #[serde(default)]
    all: bool,
}

pub(super) async fn replay(
    State(site): Shared,
    ConnectInfo(pass): ConnectInfo<Pass>,
    Path(webhook): Path<String>,
    request: Request,
) -> Response {
    let (_place, body) = match admitted(&site, &pass, request).await {
        Ok(admitted) => admitted,
        Err(refusal) => return refusal,
    };
    let ids = match serde_json::from_slice(&body) {
        Ok(ReplayWish { ids, all }) if all == ids.is_empty() => ids,
        _ => {
            return bad(
                ErrorCode::BadRequest,
                "say which: {\"ids\": [\"home-7f3a9c21-000000004182\"]}, or {\"all\": true}",
            );
        }
    };
    let tried = tokio::select! {
        biased;
        tried = site.api.replay(&webhook, ids) => tried,
        () = site.stop.cancelled() => return bad(ErrorCode::ClientOffline, "the bridge ends; what was taken is on the list no more"),
    };
    match tried {
        Ok(tried) => {
            ([(header::CONNECTION, "close")], axum::Json(json!({"webhook": webhook, "tried": tried}))).into_response()
        }
        Err(reason) => bad(ErrorCode::BadRequest, reason),
    }
}

/// The body of a request that changes something, by somebody who may; with a place among the long visits.
async fn admitted(site: &Site, pass: &Pass, request: Request) -> Result<(OwnedSemaphorePermit, Bytes), Response> {
    site.guard.check_change(request.headers()).map_err(refused)?;
    let place = Arc::clone(&site.long_visits).try_acquire_owned().map_err(|_| too_many())?;
    pass.stay();
    pass.allow(BODY_BYTES_MAX);
    Ok((place, body_of(request.into_body()).await?))
}

async fn body_of(body: Body) -> Result<Bytes, Response> {
    match tokio::time::timeout(BODY_WITHIN, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(_)) => Err(bad(ErrorCode::TooLarge, format!("a body has {BODY_BYTES_MAX} bytes at most"))),
        Err(_) => Err(bad(ErrorCode::BadRequest, format!("the body did not come within {BODY_WITHIN:?}"))),
    }
}

/// What the result of a command is in the terms of HTTP.
fn status_of(result: &[u8]) -> StatusCode {
    #[derive(serde::Deserialize)]
    struct Seen {
        status: String,
        error: Option<CommandError>,
    }
    match serde_json::from_slice::<Seen>(result) {
        Ok(Seen { status, .. }) if status == "ok" || status == "partial" => StatusCode::OK,
        Ok(Seen { error: Some(error), .. }) => status_of_error(error.code),
        Ok(Seen { error: None, .. }) | Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn status_of_error(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::UnknownServer | ErrorCode::UnknownHash => StatusCode::NOT_FOUND,
        ErrorCode::BadRequest | ErrorCode::Retained => StatusCode::BAD_REQUEST,
        ErrorCode::Forbidden => StatusCode::FORBIDDEN,
        ErrorCode::Precondition => StatusCode::CONFLICT,
        ErrorCode::ClientOffline => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::ClientFault => StatusCode::BAD_GATEWAY,
        ErrorCode::Unconfirmed => StatusCode::GATEWAY_TIMEOUT,
        ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::Unsupported => StatusCode::NOT_IMPLEMENTED,
    }
}

fn bad(code: ErrorCode, message: impl Into<String>) -> Response {
    let error = CommandError::new(code, message);
    (status_of_error(code), axum::Json(json!({"error": error}))).into_response()
}

fn no_server() -> Response {
    bad(ErrorCode::UnknownServer, "no server of that name is configured")
}

fn too_many() -> Response {
    let mut response = bad(ErrorCode::ClientOffline, "too many are waiting here already");
    response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("5"));
    response
}

pub(super) fn refused(refusal: Refusal) -> Response {
    let body = axum::Json(json!({"error": CommandError::new(ErrorCode::Forbidden, refusal.message())}));
    match refusal {
        Refusal::WrongToken => (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], body).into_response(),
        Refusal::Host | Refusal::Origin | Refusal::NoToken => (StatusCode::FORBIDDEN, body).into_response(),
    }
}

pub(super) async fn nothing_here() -> Response {
    let error = CommandError::new(ErrorCode::BadRequest, "there is nothing here");
    (StatusCode::NOT_FOUND, axum::Json(json!({"error": error}))).into_response()
}

pub(super) async fn events(State(site): Shared, ConnectInfo(pass): ConnectInfo<Pass>, request: Request) -> Response {
    let mut wish = match query::events(request.uri().query().unwrap_or_default()) {
        Ok(wish) => wish,
        Err(right) => return bad(ErrorCode::BadRequest, right),
    };
    let last = request.headers().get(HeaderName::from_static("last-event-id"));
    if let Some(last) = last.filter(|last| !last.is_empty()) {
        wish.after = Some(String::from_utf8_lossy(last.as_bytes()).into_owned());
    }
    let Ok(place) = Arc::clone(&site.long_visits).try_acquire_owned() else { return too_many() };
    pass.stay();
    let listener = Listener { notices: site.api.events(wish), stop: site.stop.clone(), is_over: false, _place: place };
    let greeting = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"retry: 2000\n: dtorrent\n\n"))]);
    let body = Body::from_stream(greeting.chain(stream::unfold(listener, Listener::next)));
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CONNECTION, "close")];
    (headers, [(HeaderName::from_static("x-accel-buffering"), "no")], body).into_response()
}

struct Listener {
    notices: BoxStream<'static, Notice>,
    stop: CancellationToken,
    is_over: bool,
    _place: OwnedSemaphorePermit,
}

impl Listener {
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        if self.is_over {
            return None;
        }
        let lines = tokio::select! {
            biased;
            () = self.stop.cancelled() => return None,
            notice = self.notices.next() => {
                let notice = notice?;
                self.is_over = matches!(notice, Notice::End(_));
                lines(&notice)
            }
            () = tokio::time::sleep(HEARTBEAT_EACH) => Bytes::from_static(b":\n\n"),
        };
        Some((Ok(lines), self))
    }
}

/// As an event stream has it. A body is JSON, so no line ends within it.
fn lines(notice: &Notice) -> Bytes {
    let mut lines = Vec::new();
    let mut add = |parts: &[&[u8]]| lines.extend(parts.concat());
    match notice {
        Notice::Event { id, body } => add(&[b"id: ", id.as_bytes(), b"\ndata: ", body, b"\n\n"]),
        Notice::Updated(body) => add(&[b"data: ", body, b"\n\n"]),
        Notice::Gap(body) => add(&[b"event: gap\ndata: ", body.to_string().as_bytes(), b"\n\n"]),
        Notice::End(reason) => {
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
    fn a_notice_is_one_event_of_a_stream() {
        for (notice, expected) in [
            (Notice::Event { id: "home-1".to_owned(), body: Bytes::from_static(b"{}") }, "id: home-1\ndata: {}\n\n"),
            (Notice::Updated(Bytes::from_static(b"{}")), "data: {}\n\n"),
            (Notice::Gap(json!({"server": null})), "event: gap\ndata: {\"server\":null}\n\n"),
            (Notice::End("a\nb".to_owned()), "event: end\ndata: {\"reason\":\"a\\nb\"}\n\n"),
        ] {
            assert_eq!(lines(&notice), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_has_an_end_in_bytes_and_in_time() {
        assert_eq!(body_of(Body::from("{}")).await.unwrap(), "{}");
        let large = body_of(Body::from(vec![b'x'; BODY_BYTES_MAX + 1])).await.unwrap_err();
        assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
        let begun = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"{"))]).chain(stream::pending());
        let endless = body_of(Body::from_stream(begun)).await.unwrap_err();
        assert_eq!(endless.status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn a_result_has_the_status_that_a_client_of_http_expects() {
        let error = |status: &str, code: ErrorCode| {
            let body = json!({"status": status, "error": CommandError::new(code, "x"), "results": []});
            status_of(body.to_string().as_bytes()).as_u16()
        };
        assert_eq!(status_of(br#"{"status": "ok", "error": null}"#), 200);
        assert_eq!(error("partial", ErrorCode::UnknownHash), 200);
        assert_eq!(error("error", ErrorCode::UnknownHash), 404);
        assert_eq!(error("refused", ErrorCode::Forbidden), 403);
        assert_eq!(error("expired", ErrorCode::ClientOffline), 503);
        assert_eq!(status_of(b"?"), 500);
    }
}
