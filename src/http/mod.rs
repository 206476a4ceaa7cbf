//! What the bridge shows over HTTP: whether it lives, whether it is ready, and its metrics; and, on a port
//! of its own, the bell for clients.

mod bell;
mod door;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use self::bell::answer_bell;
use self::door::{Door, Visit};

/// All requests of a connection together; every answer is made in much less.
const VISIT: Visit = Visit { visitors: 64, time: Duration::from_secs(30), bytes: 1 << 20 };

/// Whom the pages ask.
#[async_trait]
pub trait Observed: Send + Sync {
    /// Whether every server was polled and every sink is connected, and which is not.
    fn readiness(&self) -> (bool, Value);
    /// The metrics in the Prometheus text format.
    async fn metrics(&self) -> String;
}

/// Takes the port, so that a second bridge on it is noticed at the start.
pub async fn bind(listen: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(listen).await
}

/// Serves until `stop`; connections then have a moment to end.
pub async fn serve(listener: TcpListener, observed: Arc<dyn Observed>, stop: CancellationToken) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(observed);
    let ended = stop.clone();
    let server =
        axum::serve(Door::new(listener, VISIT), router).with_graceful_shutdown(async move { stop.cancelled().await });
    tokio::select! {
        result = server => result,
        () = async { ended.cancelled().await; tokio::time::sleep(Duration::from_millis(500)).await } => Ok(()),
    }
}

async fn ready(State(observed): State<Arc<dyn Observed>>) -> Response {
    let (is_ready, body) = observed.readiness();
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, axum::Json(body)).into_response()
}

async fn metrics(State(observed): State<Arc<dyn Observed>>) -> Response {
    let headers = [(axum::http::header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (headers, observed.metrics().await).into_response()
}
