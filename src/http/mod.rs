//! What the bridge shows over HTTP: whether it lives, whether it is ready, its metrics, a status page, the API
//! and its events; and, on a port of its own, the bell for clients.
//!
//! Whoever reaches the port may read, but not a web page that a browser here was lured to; to change something
//! takes a token. `guard` decides both. Health and metrics are answered under any name, for whatever
//! watches over containers.

mod api;
mod door;
mod guard;
mod hook_listener;
mod page;
mod query;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use self::api::{Answered, Api, Notice, Order};
use self::door::{Door, Pass, Visit};
pub use self::guard::Guard;
pub use self::hook_listener::receive_hook_signals;
pub use self::query::{EventsWish, ListWish};
use crate::model::{Filter, ServerName};

/// All requests of a connection together; every answer but events and results is made in much less.
const VISIT: Visit = Visit { visitors: 64, time: Duration::from_secs(30), bytes: 1 << 20 };
/// So many may listen to events or wait for results; the other places are left for health and pages.
const LONG_VISITS_MAX: usize = 40;
/// So many torrents of each server are on the page.
const PAGE_TORRENTS: u64 = 50;

/// Nothing but what we send ourselves is loaded or run, and nobody shows the page inside of his own.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// Whom the pages ask.
#[async_trait]
pub trait Observed: Send + Sync {
    /// Whether every server was polled and every sink is connected, and which is not.
    fn readiness(&self) -> (bool, Value);
    /// The metrics in the Prometheus text format.
    async fn metrics(&self) -> String;
}

/// What is served, and to whom.
pub struct Served {
    pub observed: Arc<dyn Observed>,
    pub api: Arc<dyn Api>,
    pub guard: Guard,
}

struct Site {
    observed: Arc<dyn Observed>,
    api: Arc<dyn Api>,
    guard: Guard,
    long_visits: Arc<Semaphore>,
    stop: CancellationToken,
}

/// Takes the port, so that a second bridge on it is noticed at the start.
pub async fn bind(listen: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(listen).await
}

/// Serves until `stop`; connections then have a moment to end.
pub async fn serve(listener: TcpListener, served: Served, stop: CancellationToken) -> std::io::Result<()> {
    let Served { observed, api, guard } = served;
    let long_visits = Arc::new(Semaphore::new(LONG_VISITS_MAX));
    let site = Arc::new(Site { observed, api, guard, long_visits, stop: stop.clone() });
    let guarded = Router::new()
        .route("/", get(status_page))
        .route("/page.js", get(|| async { asset("text/javascript; charset=utf-8", page::SCRIPT) }))
        .route("/page.css", get(|| async { asset("text/css; charset=utf-8", page::STYLE) }))
        .route("/api/v1/servers", get(api::servers))
        .route("/api/v1/sinks", get(api::sinks))
        .route("/api/v1/servers/{server}/torrents", get(api::torrents))
        .route("/api/v1/servers/{server}/torrents/{hash}", get(api::torrent))
        .route("/api/v1/servers/{server}/commands/{verb}", post(api::command_server))
        .route("/api/v1/servers/{server}/torrents/{hash}/commands/{verb}", post(api::command_torrent))
        .route("/api/v1/webhooks/{webhook}/replay", post(api::replay))
        .route("/api/v1/events", get(api::events))
        .fallback(api::nothing_here)
        .layer(middleware::from_fn_with_state(Arc::clone(&site), guarded));
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .merge(guarded)
        .with_state(site)
        .into_make_service_with_connect_info::<Pass>();
    let ended = stop.clone();
    let server =
        axum::serve(Door::new(listener, VISIT), router).with_graceful_shutdown(async move { stop.cancelled().await });
    tokio::select! {
        result = server => result,
        () = async { ended.cancelled().await; tokio::time::sleep(Duration::from_millis(500)).await } => Ok(()),
    }
}

/// Lets nobody in under a name that is not ours, and says to browsers what they may do with an answer.
async fn guarded(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    let mut response = match site.guard.check_host(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => api::refused(refusal),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
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

async fn ready(State(site): State<Arc<Site>>) -> Response {
    let (is_ready, body) = site.observed.readiness();
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, axum::Json(body)).into_response()
}

async fn metrics(State(site): State<Arc<Site>>) -> Response {
    let headers = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (headers, site.observed.metrics().await).into_response()
}

async fn status_page(State(site): State<Arc<Site>>) -> Response {
    let wish =
        ListWish { filter: Filter::default(), fields: None, page: 0, page_size: PAGE_TORRENTS, busiest_first: true };
    let with_torrents = |server: Value| {
        let name = server["name"].as_str().and_then(|name| ServerName::parse(name).ok());
        let (torrents, total) = name.and_then(|name| site.api.torrents(&name, &wish)).unwrap_or_default();
        page::Server { server, torrents, total }
    };
    let servers: Vec<page::Server> = site.api.servers().into_iter().map(with_torrents).collect();
    Html(page::page(env!("CARGO_PKG_VERSION"), &servers, &site.api.sinks())).into_response()
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
