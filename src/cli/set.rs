//! `dtorrent label`, `dtorrent move` and `dtorrent priority`: commands whose last argument is the value to set.

use clap::Args;
use serde_json::json;

use super::act::{self, Selection, VerbCall};
use super::{CommandResult, Exit, Options, usage};
use crate::model::{Verb, known_names};

/// Names of the priorities, by their numbers.
pub(super) const PRIORITIES: [&str; 4] = ["off", "low", "normal", "high"];

#[derive(Clone, Debug, Args)]
#[command(override_usage = "dtorrent label [OPTIONS] [SERVER] [SELECTOR]... LABEL")]
pub(super) struct LabelArguments {
    /// The torrents, as in `pause`, and last the label; an empty one removes it
    #[arg(value_name = "[SERVER] [SELECTOR]... LABEL", required = true)]
    arguments: Vec<String>,
    #[command(flatten)]
    selection: Selection,
}

#[derive(Clone, Debug, Args)]
#[command(override_usage = "dtorrent move [OPTIONS] [SERVER] [SELECTOR]... FOLDER")]
pub(super) struct MoveArguments {
    /// The torrents, as in `pause`, and last the folder, below the server's `roots`
    #[arg(value_name = "[SERVER] [SELECTOR]... FOLDER", required = true)]
    arguments: Vec<String>,
    /// Move their files there, too
    #[arg(long)]
    data: bool,
    #[command(flatten)]
    selection: Selection,
}

#[derive(Clone, Debug, Args)]
#[command(override_usage = "dtorrent priority [OPTIONS] [SERVER] [SELECTOR]... PRIORITY")]
pub(super) struct PriorityArguments {
    /// The torrents, as in `pause`, and last off, low, normal or high
    #[arg(value_name = "[SERVER] [SELECTOR]... PRIORITY", required = true)]
    arguments: Vec<String>,
    #[command(flatten)]
    selection: Selection,
}

pub(super) fn label(options: Options, arguments: LabelArguments) -> CommandResult {
    let LabelArguments { arguments, selection } = arguments;
    let (selectors, label) = split_value(arguments, "the label")?;
    let call = VerbCall::new(Verb::Label, json!({"label": label}), format!("labelled `{label}`"));
    act::run(options, selectors, &selection, &call)
}

pub(super) fn directory(options: Options, arguments: MoveArguments) -> CommandResult {
    let MoveArguments { arguments, data, selection } = arguments;
    let (selectors, folder) = split_value(arguments, "the folder")?;
    let call = VerbCall::new(Verb::Move, json!({"directory": folder, "data": data}), format!("in {folder}"));
    act::run(options, selectors, &selection, &call)
}

pub(super) fn priority(options: Options, arguments: PriorityArguments) -> CommandResult {
    let PriorityArguments { arguments, selection } = arguments;
    let (selectors, priority) = split_value(arguments, "the priority")?;
    let number = PRIORITIES.iter().position(|name| *name == priority).or_else(|| priority.parse().ok());
    let Some(number) = number.filter(|number| *number < PRIORITIES.len()) else {
        return Err(usage(&format!("unknown priority `{priority}`; {}", known_names(&priority, PRIORITIES))));
    };
    let participle = format!("of {} priority", PRIORITIES[number]);
    act::run(options, selectors, &selection, &VerbCall::new(Verb::Priority, json!({"priority": number}), participle))
}

/// Splits off the last argument, the value to set; the others select torrents.
fn split_value(mut arguments: Vec<String>, what: &str) -> Result<(Vec<String>, String), Exit> {
    let value = arguments.pop().ok_or_else(|| usage(&format!("{what} is missing; it comes last")))?;
    Ok((arguments, value))
}
