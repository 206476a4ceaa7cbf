//! The composition root: a checked config in, a running bridge out.
//!
//! The only room that knows both the engine and the adapters. The bridge starts in the order store, sinks, servers,
//! commands and stops in the reverse order, so that every event has a running sink.

mod adapters;
mod api;
mod bridge;
pub mod dead_letters;
mod hooks;
mod listen;
mod one_shot;
mod report;

pub use adapters::build_client as client;
pub use one_shot::{probe, purge};

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::OptionFuture;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::bridge::Bridge;
use crate::config::Config;
use crate::log_throttle::retry_while_full;
use crate::port::{Clock, StoreError, SystemClock};
use crate::store::{Options, Recovery, SqliteStore};
use crate::supervise::{Group, spawn_detached};
use crate::telemetry::metrics::{Metrics, register_counters};

/// Interval at which the time is stored. After a crash it tells when the last run ended, and so how long commands may
/// have waited at a broker.
const ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum time for servers and commands to stop. Together with [`DELIVERY_STOP_TIMEOUT`], HTTP and the store, a stop
/// takes at most the ten seconds of contract §10.
const INTAKE_STOP_TIMEOUT: Duration = Duration::from_millis(2500);
/// Maximum time for sinks to deliver what is pending, say `offline` and disconnect.
const DELIVERY_STOP_TIMEOUT: Duration = Duration::from_millis(6500);

/// Runs the bridge until `stop`, then drains it.
///
/// # Errors
/// The start is impossible, or the store can no longer be used. An unreachable client or broker is no error: the bridge
/// stays up and retries.
pub async fn run(config: Config, metrics: Metrics, stop: CancellationToken) -> anyhow::Result<()> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    // Ports before the store: a second bridge on this machine fails before it touches the state.
    let http_listener = match config.http.listen {
        Some(address) => Some(listen::bind("http.listen", address, &config.data_dir).await?),
        None => None,
    };
    let opened = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        opened = retry_while_full("the state", async || try_to_open_store(&config, Arc::clone(&clock))) => opened,
    };
    let (store, recovery) = opened.with_context(|| format!("open the state in {}", config.data_dir.display()))?;
    let store = Arc::new(store);
    let hooked = hooks::prepare(&config).context("set up hooks")?;
    let bridge = Arc::new(Bridge::build(&config, Arc::clone(&store), &recovery, clock).await?);
    info!(
        version = env!("CARGO_PKG_VERSION"),
        instance = config.instance,
        servers = config.servers.len(),
        brokers = config.brokers.len(),
        webhooks = config.webhooks.len(),
        "started"
    );

    register_counters(config.servers.keys());
    spawn_upkeep(Arc::clone(&store), metrics.clone());
    let (mut delivery, mut intake) = (Group::new(), Group::new());
    // Sinks before servers, so that no event is produced without a task that delivers it.
    bridge.spawn_sinks(&mut delivery);
    bridge.spawn_servers(&mut intake);
    bridge.spawn_commands(&mut intake);
    bridge.spawn_hooks(&mut intake, hooked);
    let pages =
        http_listener.map(|listener| bridge.serve_http(&mut intake, listener, &config, metrics.clone(), stop.clone()));
    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        // A branch without a server is disabled, because its pattern does not match `None`.
        Some(result) = OptionFuture::from(pages) => result.context("serve HTTP"),
        error = intake.failed() => Err(anyhow::Error::new(error).context("use the state")),
        error = delivery.failed() => Err(anyhow::Error::new(error).context("use the state")),
    };

    info!("stopping");
    // First the producers of events and results, so that the sinks can still deliver the last of them.
    let intake = intake.stop(INTAKE_STOP_TIMEOUT).await;
    let delivery = delivery.stop(DELIVERY_STOP_TIMEOUT).await;
    // After a failed HTTP server the store is closed as well, so that the next start finds the mark of a clean shutdown.
    let closed = close_store(&store).await;
    ended?;
    intake.and(delivery).and(closed).context("use the state")
}

fn spawn_upkeep(store: Arc<SqliteStore>, metrics: Metrics) {
    spawn_detached("alive", async move {
        loop {
            store.note_alive();
            tokio::time::sleep(ALIVE_INTERVAL).await;
        }
    });
    spawn_detached("metrics", async move { metrics.upkeep().await });
}

fn open_store(config: &Config, clock: Arc<dyn Clock>) -> anyhow::Result<(SqliteStore, Recovery)> {
    try_to_open_store(config, clock).with_context(|| format!("open the state in {}", config.data_dir.display()))
}

fn try_to_open_store(config: &Config, clock: Arc<dyn Clock>) -> Result<(SqliteStore, Recovery), StoreError> {
    let options = Options { pages: config.memory_shares().pages, ..Options::default() };
    let (store, recovery) = SqliteStore::open(&config.data_dir, options, clock)?;
    if let Some(found) = &recovery.found {
        let moved_to = recovery.moved_to.as_ref().map(|path| path.display().to_string());
        warn!(found, moved_to, "the state was unusable and has been moved aside");
    }
    if recovery.lost && recovery.is_new {
        warn!("the state is lost: a new epoch begins, and all torrents are announced again");
    }
    Ok((store, recovery))
}

async fn close_store(store: &SqliteStore) -> Result<(), StoreError> {
    match store.close().await {
        // Everything committed stays. Only the clean mark is missing, so the next start asserts every state again.
        Err(StoreError::Full { reason }) => {
            warn!(reason, "disk full: the state is left without the mark of a clean shutdown");
            Ok(())
        }
        closed => closed,
    }
}
