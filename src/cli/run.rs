//! `dtorrent run`: the bridge.

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Exit, Options, tell};
use crate::config::{self, Config};
use crate::telemetry::{self, metrics::Metrics};
use crate::{app, supervise};

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
    supervise::for_ever("signals", async move {
        let mut times = 0;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            times += 1;
            if times > 1 {
                std::process::exit(1);
            }
            asked.cancel();
        }
    });
    Ok(stop)
}
