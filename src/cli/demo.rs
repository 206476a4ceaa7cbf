//! `dtorrent demo`: a broker, two rTorrents and a bridge on this machine, until it is stopped.

use anyhow::Context as _;

use super::run::stop_on_signal;
use super::{CommandResult, Options, failed};
use crate::telemetry::{self, metrics::Metrics};
use crate::{app, demo};

pub(super) fn run() -> CommandResult {
    start().map_err(failed)
}

fn start() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    runtime.block_on(async {
        let metrics = Metrics::start()?;
        let stop = stop_on_signal()?;
        demo::run(stop, |config, stop| async move {
            let loaded = Options::of_file(config).load()?;
            telemetry::start(loaded.config.log)?;
            app::run(loaded.config, metrics, stop).await
        })
        .await
    })
}
