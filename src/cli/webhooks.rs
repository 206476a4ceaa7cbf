//! `dtorrent webhooks`: the dead letters of webhooks alone, see [`letters`].

use clap::{Args, Subcommand};

use super::letters::{self, Scope};
use super::{Exit, Options};

#[derive(Debug, Subcommand)]
pub enum Arguments {
    /// List the events that were put aside, oldest first; the bridge may run
    List(ListArguments),
    /// Send events that were put aside once more, with their ids and bodies; a bridge that runs is asked to (http.token)
    Replay(ReplayArguments),
}

#[derive(Debug, Args)]
pub struct ListArguments {
    /// One JSON object a line, with the whole event
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct ReplayArguments {
    /// The webhook, as it is called in the config
    #[arg(value_name = "NAME")]
    webhook: String,
    /// The events, by their ids
    #[arg(value_name = "ID", required_unless_present = "all")]
    ids: Vec<String>,
    /// Everything that was put aside for it
    #[arg(long, conflicts_with = "ids")]
    all: bool,
}

pub fn run(options: Options, arguments: Arguments) -> Exit {
    letters::carry_out("webhooks", options, |config| match arguments {
        Arguments::List(ListArguments { json }) => letters::list(config, Scope::Webhooks, None, json),
        Arguments::Replay(ReplayArguments { webhook, ids, all: _ }) => {
            letters::replay(config, Scope::Webhooks, &webhook, &ids)
        }
    })
}
