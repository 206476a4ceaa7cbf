//! `dtorrent purge`: clears everything that brokers retain in the name of this instance.

use super::{CommandResult, Options, failed, report_peers, start_runtime};
use crate::app;

pub(super) fn run(options: Options) -> CommandResult {
    let config = options.load_or_report()?;
    let purged = start_runtime()?.block_on(app::purge(&config)).map_err(failed)?;
    report_peers(purged.into_iter().map(|(broker, answer)| (format!("broker {broker}"), answer)))
}
