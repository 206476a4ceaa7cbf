//! `dtorrent label`: torrents by a word of one's own.

use clap::Args;
use serde_json::json;

use super::act::{self, Selection, VerbCall, with_value};
use super::{CommandResult, Options};
use crate::model::Verb;

#[derive(Clone, Debug, Args)]
#[command(override_usage = "dtorrent label [OPTIONS] [SERVER] [SELECTOR]... LABEL")]
pub struct Arguments {
    /// Which torrents, as in `pause`, and last the label; an empty one takes it away
    #[arg(value_name = "[SERVER] [SELECTOR]... LABEL", required = true)]
    arguments: Vec<String>,
    #[command(flatten)]
    selection: Selection,
}

pub fn run(options: Options, arguments: Arguments) -> CommandResult {
    let Arguments { arguments, selection } = arguments;
    let (selectors, label) = with_value(arguments, "the label")?;
    let participle = format!("labelled `{label}`");
    act::run(options, selectors, &selection, &VerbCall::new(Verb::Label, json!({"label": label}), participle))
}
