//! `dtorrent run`: the bridge.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Exit, Options, tell};
use crate::config::{self, Config};
use crate::telemetry::{self, metrics::Metrics};
use crate::{app, supervise};

/// Whoever signals a process and its group sends two that mean one.
const SAME_SIGNAL: Duration = Duration::from_millis(500);

pub fn run(options: Options) -> Exit {
    let loaded = match options.load_or_tell() {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    match start(loaded.config) {
        Ok(()) => Exit::Done,
        Err(error) => {
            tell(&format!("dtorrent: {error:#}"));
            Exit::Failed
        }
    }
}

fn start(config: Config) -> anyhow::Result<()> {
    telemetry::start(config.log)?;
    for warning in config::warnings(&config) {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    runtime.block_on(async {
        let metrics = Metrics::start()?;
        let stop = stop_by_signal()?;
        app::run(config, metrics, stop).await
    })
}

/// Is cancelled by SIGTERM or SIGINT; a second one ends the process at once, as safely as a crash.
pub fn stop_by_signal() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let stop = CancellationToken::new();
    let asked = stop.clone();
    supervise::spawn_detached("signals", async move {
        let mut first: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            asked.cancel();
            match first {
                None => first = Some(Instant::now()),
                Some(first) if first.elapsed() > SAME_SIGNAL => {
                    tell("dtorrent: asked to end a second time, so it ends at once");
                    std::process::exit(1);
                }
                Some(_) => {}
            }
        }
    });
    Ok(stop)
}
