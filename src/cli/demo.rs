//! `dtorrent demo`: runs a broker, two rTorrents and a bridge on this machine until a signal.

use super::run::run_until_signal;
use super::{CommandResult, Options, failed};
use crate::telemetry::{self, Audit};
use crate::{app, demo};

pub(super) fn run() -> CommandResult {
    let start = run_until_signal(async |metrics, stop| {
        demo::run(stop, |config, stop| async move {
            let config = Options { config: Some(config), ..Options::default() }.load()?;
            telemetry::start(config.log, Audit::Always)?;
            app::run(config, metrics, stop).await
        })
        .await
    });
    start.map_err(failed)
}
