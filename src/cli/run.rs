//! `dtorrent run`: runs the bridge until a signal.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{CommandResult, Options, failed, print_message};
use crate::config::{self, Config};
use crate::telemetry::{self, Audit, metrics::Metrics};
use crate::{app, supervise};

/// Signals this close together count as one: a terminal or a service manager that signals the process and its group
/// sends two.
const SIGNAL_DEBOUNCE: Duration = Duration::from_millis(500);

pub(super) fn run(options: Options) -> CommandResult {
    start(options.load_or_report()?).map_err(failed)
}

fn start(config: Config) -> anyhow::Result<()> {
    telemetry::start(config.log, Audit::Always)?;
    for warning in config::warnings(&config) {
        tracing::warn!("{warning}");
    }
    run_until_signal(async |metrics, stop| app::run(config, metrics, stop).await)
}

/// Starts runtime and metrics, and runs `work` with a token that a signal cancels.
pub(super) fn run_until_signal(
    work: impl AsyncFnOnce(Metrics, CancellationToken) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    runtime.block_on(async { work(Metrics::start()?, stop_on_signal()?).await })
}

/// Returns a token that SIGTERM or SIGINT cancels. A second signal ends the process at once, which is as safe as a
/// crash.
///
/// # Errors
/// The signals cannot be listened for.
pub(super) fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    supervise::spawn_detached("signals", async move {
        let mut first: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            cancelled.cancel();
            match first {
                None => first = Some(Instant::now()),
                // Without draining: unacknowledged events are sent again by the next run (I4).
                Some(first) if first.elapsed() > SIGNAL_DEBOUNCE => {
                    print_message("dtorrent: second signal, exiting at once");
                    std::process::exit(1);
                }
                Some(_) => {}
            }
        }
    });
    Ok(stop)
}
