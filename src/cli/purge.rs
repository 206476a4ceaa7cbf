//! `dtorrent purge`: clears everything that brokers retain in the name of this instance.

use super::{CommandResult, Exit, Options, failed, print_message, start_runtime};
use crate::app;

pub(super) fn run(options: Options) -> CommandResult {
    let config = options.load_or_report()?.config;
    let mut result = Ok(());
    for (broker, cleared) in start_runtime()?.block_on(app::purge(&config)).map_err(failed)? {
        match cleared {
            Ok(count) => print_message(&format!("broker {broker}: {count} topics cleared")),
            Err(error) => {
                print_message(&format!("broker {broker}: {error:#}"));
                result = Err(Exit::Unreachable);
            }
        }
    }
    result
}
