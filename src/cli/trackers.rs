//! `dtorrent trackers`: shows or changes the trackers of a torrent.

use clap::Args;
use serde_json::json;

use super::act::{self, Selection, VerbCall};
use super::show;
use super::terminal::server::ServerChoice;
use super::terminal::{print_json, print_text, width};
use super::{CommandResult, Options};
use crate::model::{Parts, Verb};

#[derive(Clone, Debug, Args)]
pub(super) struct Arguments {
    /// The server, if there are several, and the torrent: the beginning of its hash, or its name
    #[arg(value_name = "[SERVER] SELECTOR", required = true)]
    selectors: Vec<String>,
    /// Add this tracker; may be repeated
    #[arg(long, value_name = "URL")]
    add: Vec<String>,
    /// Remove this tracker, where the client can; may be repeated
    #[arg(long, value_name = "URL")]
    remove: Vec<String>,
    /// Enable this tracker; may be repeated
    #[arg(long, value_name = "URL")]
    enable: Vec<String>,
    /// Disable this tracker; may be repeated
    #[arg(long, value_name = "URL")]
    disable: Vec<String>,
    #[command(flatten)]
    choice: ServerChoice,
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the trackers, or the result of a change, as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: Options, arguments: Arguments) -> CommandResult {
    let Arguments { selectors, add, remove, enable, disable, choice, dry_run, json } = arguments;
    if [&add, &remove, &enable, &disable].into_iter().all(Vec::is_empty) {
        return list(options, selectors, &choice, json);
    }
    let changes = json!({"add": add, "remove": remove, "enable": enable, "disable": disable});
    let call = VerbCall::new(Verb::Trackers, changes, "changed");
    act::run(options, selectors, &Selection::of_one(choice, dry_run, json), &call)
}

fn list(options: Options, selectors: Vec<String>, choice: &ServerChoice, is_json: bool) -> CommandResult {
    let details = show::read_one(options, selectors, choice, Parts { trackers: true, ..Parts::default() })?;
    let trackers = details.trackers.unwrap_or_default();
    if is_json { print_json(&trackers) } else { print_text(&show::trackers_table(&trackers, width())) }
}
