//! The bell: where clients ask for an address that is never there, and thereby tell that something happened.
//!
//! Everybody gets the same answer at once, whether it was understood or not. Whoever reaches the port may
//! stay so long and say so much; that, the number of visitors, and what a ring can lead to are bounded.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, Uri, header};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::door::{Door, Visit};
use crate::model::{HookSecret, HookSignal};

/// A ring is one small request, from a client that is near.
const VISIT: Visit = Visit { visitors: 64, time: Duration::from_secs(2), bytes: 8 << 10 };

/// Answers until `stop`, and passes on what was rung by those who know the secret.
pub async fn receive_hook_signals(
    listener: TcpListener,
    secret: HookSecret,
    notified: impl Fn(HookSignal) + Send + Sync + 'static,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let notified = Arc::new(notified);
    let router = Router::new().fallback(move |uri: Uri| {
        if let Some(ring) = HookSignal::parse(uri.path(), &secret) {
            notified(ring);
        }
        // A client would take anything else for a torrent, and keep a connection for the next time.
        std::future::ready((StatusCode::NOT_FOUND, [(header::CONNECTION, "close")]))
    });
    let server = axum::serve(Door::new(listener, VISIT), router);
    tokio::select! {
        result = server.into_future() => result,
        () = stop.cancelled() => Ok(()),
    }
}
