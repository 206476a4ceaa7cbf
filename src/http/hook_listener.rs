//! The port that receives hook signals: a client requests an address that never exists, and thereby says that something
//! happened.
//!
//! Every request gets the same answer at once, whether it was understood or not. The number, the duration and the bytes of
//! connections are bounded, and a signal only wakes a watcher, so a flood of them costs at most polls at a bounded rate.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, Uri, header};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::connections::{ConnectionLimit, Limits};
use crate::model::{HookSecret, HookSignal};

/// A signal is one small request from a client that is near.
const LIMITS: Limits = Limits { connections: 64, time: Duration::from_secs(2), bytes: 8 << 10 };

/// Answers requests until `stop`, and passes on each signal that bears the secret.
///
/// # Errors
/// The listener fails.
pub async fn receive_hook_signals(
    listener: TcpListener,
    secret: HookSecret,
    notified: impl Fn(HookSignal) + Send + Sync + 'static,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let notified = Arc::new(notified);
    let router = Router::new().fallback(move |uri: Uri| {
        if let Some(signal) = HookSignal::parse(uri.path(), &secret) {
            notified(signal);
        }
        // rTorrent would load any 200 as a torrent, and keep the connection for its next request.
        std::future::ready((StatusCode::NOT_FOUND, [(header::CONNECTION, "close")]))
    });
    let server = axum::serve(ConnectionLimit::new(listener, LIMITS), router);
    // No graceful end: a lost signal costs nothing but the time until the next poll.
    stop.run_until_cancelled(server.into_future()).await.unwrap_or(Ok(()))
}
