//! `dtorrent priority`: the priority of torrents.

use clap::Args;
use serde_json::json;

use super::act::{self, Selection, VerbCall, with_value};
use super::{CommandResult, Options, usage};
use crate::model::Verb;

const NAMES: [&str; 4] = ["off", "low", "normal", "high"];

#[derive(Clone, Debug, Args)]
#[command(override_usage = "dtorrent priority [OPTIONS] [SERVER] [SELECTOR]... PRIORITY")]
pub struct Arguments {
    /// Which torrents, as in `pause`, and last off, low, normal or high
    #[arg(value_name = "[SERVER] [SELECTOR]... PRIORITY", required = true)]
    arguments: Vec<String>,
    #[command(flatten)]
    selection: Selection,
}

pub fn run(options: Options, arguments: Arguments) -> CommandResult {
    let Arguments { arguments, selection } = arguments;
    let (selectors, priority) = with_value(arguments, "the priority")?;
    let number = NAMES.iter().position(|name| *name == priority).or_else(|| priority.parse().ok());
    let Some(number) = number.filter(|number| *number < NAMES.len()) else {
        return Err(usage(&format!("unknown priority `{priority}`; expected {}", NAMES.join(", "))));
    };
    let participle = format!("of {} priority", NAMES[number]);
    act::run(options, selectors, &selection, &VerbCall::new(Verb::Priority, json!({"priority": number}), participle))
}
