//! `dtorrent purge`: takes back everything that brokers keep in this instance's name.

use anyhow::Context as _;

use super::{Exit, Options, tell};
use crate::app;

pub fn run(options: Options) -> Exit {
    let loaded = match options.load_or_tell() {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime");
    let purged = runtime.and_then(|runtime| runtime.block_on(app::purge(&loaded.config)));
    let brokers = match purged {
        Ok(brokers) => brokers,
        Err(error) => {
            tell(&format!("dtorrent purge: {error:#}"));
            return Exit::Failed;
        }
    };
    let mut exit = Exit::Done;
    for (broker, result) in brokers {
        match result {
            Ok(count) => tell(&format!("broker {broker}: {count} names cleared")),
            Err(error) => {
                tell(&format!("broker {broker}: {error:#}"));
                exit = Exit::Unreachable;
            }
        }
    }
    exit
}
