//! `dtorrent priority`: which torrents come first.

use clap::Args;
use serde_json::json;

use super::act::{self, Doing, Which, with_value};
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
    which: Which,
}

pub fn run(options: Options, arguments: Arguments) -> CommandResult {
    let Arguments { arguments, which } = arguments;
    let (selectors, priority) = with_value(arguments, "the priority")?;
    let number = NAMES.iter().position(|name| *name == priority).or_else(|| priority.parse().ok());
    let Some(number) = number.filter(|number| *number < NAMES.len()) else {
        return Err(usage(&format!("unknown priority `{priority}`; expected {}", NAMES.join(", "))));
    };
    let done = format!("of {} priority", NAMES[number]);
    act::run(options, selectors, &which, &Doing::new(Verb::Priority, json!({"priority": number}), done))
}
