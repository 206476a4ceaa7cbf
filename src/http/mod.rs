//! The HTTP server: health, readiness, metrics, the status page, the API and its event stream.
//!
//! Anybody who reaches the port may read, except a web page of another site; a change needs the token, and so do the words
//! of others about a problem. `access` decides both. Health, readiness and metrics are served under any host name, because what monitors containers uses addresses
//! and names that no config lists.

mod access;
mod api;
mod bodies;
mod connections;
mod page;
mod query;
mod token_guard;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use self::access::{AccessRules, Viewer};
use self::access::{Refusal, given_token, is_web_token};
pub use self::api::{Api, CommandReply, ComponentReadiness, Readiness, ServerView, SinkView, StreamItem};
use self::bodies::BodyMemory;
use self::connections::{ConnectionLimit, Limits, Permit};
pub use self::query::{EventsQuery, TorrentsQuery};
use self::token_guard::TokenGuard;
use crate::model::{Filter, MemoryBudget};

/// Every answer but event streams and results of commands takes much less than this.
const LIMITS: Limits = Limits { connections: 64, time: Duration::from_secs(30), bytes: 1 << 20 };
/// Maximum number of event streams and commands at once. The other connections are left for health and pages.
const LONG_REQUESTS_MAX: usize = MemoryBudget::LISTENERS_MAX;
/// Torrents of each server on the page.
const PAGE_TORRENTS: u64 = 50;
/// Maximum time for open connections to end after a stop.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

/// Only what this server sends itself is loaded or run, and no other page may frame ours.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                                       base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// State shared by all requests.
struct HttpState {
    api: Arc<dyn Api>,
    access: AccessRules,
    guesses: TokenGuard,
    long_requests: Arc<Semaphore>,
    bodies: BodyMemory,
    stop: CancellationToken,
}

impl HttpState {
    /// Returns who sends a request. A wrong token is refused, after a delay.
    async fn viewer(&self, permit: &Permit, headers: &HeaderMap) -> Result<Viewer, Refusal> {
        let Some(given) = given_token(headers).filter(|_| self.access.token.is_some()) else {
            return Ok(Viewer::Anybody);
        };
        // That of a proxy is no guess at ours.
        let is_of_proxy = is_web_token(given);
        if !is_of_proxy {
            self.guesses.check(permit.peer()).map_err(Refusal::TooManyGuesses)?;
        }
        if self.access.is_token(given) {
            return Ok(Viewer::TokenHolder);
        }
        if is_of_proxy {
            return Ok(Viewer::Anybody);
        }
        tokio::time::sleep_until(self.guesses.wrong(permit.peer())).await;
        Err(Refusal::WrongToken)
    }

    /// Checks that a request may change something.
    async fn check_change(&self, permit: &Permit, headers: &HeaderMap) -> Result<(), Refusal> {
        self.access.check_origin(headers)?;
        if self.access.token.is_none() {
            return Err(Refusal::NoToken);
        }
        match self.viewer(permit, headers).await? {
            Viewer::TokenHolder => Ok(()),
            Viewer::Anybody => Err(Refusal::MissingToken),
        }
    }
}

/// Serves until `stop`, on a port that is bound already, so that a port in use fails the start; open connections then have half a second to end.
/// `body_bytes`: memory that the bodies of all requests together may take.
///
/// # Errors
/// The listener fails.
pub async fn serve(
    listener: TcpListener,
    api: Arc<dyn Api>,
    access: AccessRules,
    body_bytes: usize,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let long_requests = Arc::new(Semaphore::new(LONG_REQUESTS_MAX));
    let (guesses, bodies) = (TokenGuard::default(), BodyMemory::new(body_bytes));
    let state = Arc::new(HttpState { api, access, guesses, long_requests, bodies, stop: stop.clone() });
    let router = router(state).into_make_service_with_connect_info::<Permit>();
    let stopped = stop.clone();
    // Graceful, but with a bound: a peer may keep its connection open for as long as it likes.
    let server = axum::serve(ConnectionLimit::new(listener, LIMITS), router)
        .with_graceful_shutdown(async move { stop.cancelled().await });
    tokio::select! {
        result = server => result,
        () = async { stopped.cancelled().await; tokio::time::sleep(STOP_TIMEOUT).await } => Ok(()),
    }
}

fn router(state: Arc<HttpState>) -> Router {
    let guarded = Router::new()
        .route("/", get(status_page))
        .route("/page.js", get(|| async { asset("text/javascript; charset=utf-8", page::SCRIPT) }))
        .route("/page.css", get(|| async { asset("text/css; charset=utf-8", page::STYLE) }))
        .route("/api/v1/servers", get(api::servers))
        .route("/api/v1/sinks", get(api::sinks))
        .route("/api/v1/servers/{server}/torrents", get(api::torrents))
        .route("/api/v1/servers/{server}/torrents/{hash}", get(api::torrent))
        .route("/api/v1/servers/{server}/commands/{verb}", post(api::command))
        .route("/api/v1/servers/{server}/torrents/{hash}/commands/{verb}", post(api::command))
        .route("/api/v1/dead-letters/{sink}/replay", post(api::replay))
        .route("/api/v1/events", get(api::events))
        .fallback(api::not_found)
        // Before the merge: health, readiness and metrics are served under any host name.
        .layer(middleware::from_fn_with_state(Arc::clone(&state), guard));
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(api::ready))
        .route("/metrics", get(api::metrics))
        .merge(guarded)
        // Outermost, so that it sees the errors of the router, too.
        .layer(middleware::from_fn(api::with_json_errors))
        .with_state(state)
}

/// Refuses a request under a host name that is not ours, and limits what browsers may do with an answer.
async fn guard(State(state): State<Arc<HttpState>>, request: Request, next: Next) -> Response {
    let mut response = match state.access.check_host(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => api::refused(refusal),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn status_page(
    State(state): State<Arc<HttpState>>,
    ConnectInfo(permit): ConnectInfo<Permit>,
    headers: HeaderMap,
) -> Result<Response, Response> {
    let viewer = state.viewer(&permit, &headers).await.map_err(api::refused)?;
    let query = TorrentsQuery { filter: Filter::default(), page: 0, page_size: PAGE_TORRENTS, busiest_first: true };
    let with_torrents = |server: ServerView| {
        let (torrents, total) = state.api.torrents(&server.name, &query).unwrap_or_default();
        page::Server { server, torrents, total }
    };
    let servers: Vec<page::Server> = state.api.servers(viewer).into_iter().map(with_torrents).collect();
    Ok(Html(page::page(env!("CARGO_PKG_VERSION"), &servers, &state.api.sinks(viewer))).into_response())
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
