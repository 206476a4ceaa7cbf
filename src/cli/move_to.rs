//! `dtorrent move`: torrents to another folder.

use clap::Args;
use serde_json::json;

use super::act::{self, Doing, Which, with_value};
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
    which: Which,
}

pub fn run(options: Options, arguments: Arguments) -> CommandResult {
    let Arguments { arguments, data, which } = arguments;
    let (selectors, folder) = with_value(arguments, "the folder")?;
    let done = format!("in {folder}");
    act::run(options, selectors, &which, &Doing::new(Verb::Move, json!({"directory": folder, "data": data}), done))
}
