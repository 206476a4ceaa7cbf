//! `dtorrent move`: torrents to another folder.

use clap::Args;
use serde_json::json;

use super::act::{self, Selection, VerbCall, with_value};
use super::{CommandResult, Options};
use crate::model::Verb;

#[derive(Clone, Debug, Args)]
#[command(override_usage = "dtorrent move [OPTIONS] [SERVER] [SELECTOR]... FOLDER")]
pub struct Arguments {
    /// Which torrents, as in `pause`, and last the folder, below the server's `roots`
    #[arg(value_name = "[SERVER] [SELECTOR]... FOLDER", required = true)]
    arguments: Vec<String>,
    /// Move their files there, too
    #[arg(long)]
    data: bool,
    #[command(flatten)]
    selection: Selection,
}

pub fn run(options: Options, arguments: Arguments) -> CommandResult {
    let Arguments { arguments, data, selection } = arguments;
    let (selectors, folder) = with_value(arguments, "the folder")?;
    let participle = format!("in {folder}");
    act::run(
        options,
        selectors,
        &selection,
        &VerbCall::new(Verb::Move, json!({"directory": folder, "data": data}), participle),
    )
}
