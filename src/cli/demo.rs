//! `dtorrent demo`: everything on this machine for a while.

use anyhow::Context as _;

use super::run::stop_by_signal;
use super::{Exit, Options, tell};
use crate::telemetry::{self, metrics::Metrics};
use crate::{app, demo};

pub fn run() -> Exit {
    match start() {
        Ok(()) => Exit::Done,
        Err(error) => {
            tell(&format!("dtorrent demo: {error:#}"));
            Exit::Failed
        }
    }
}

fn start() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    runtime.block_on(async {
        let metrics = Metrics::start()?;
        let stop = stop_by_signal()?;
        demo::run(stop, |config, stop| async move {
            let loaded = Options::of_file(config).load()?;
            telemetry::start(loaded.config.log)?;
            app::run(loaded.config, metrics, stop).await
        })
        .await
    })
}
