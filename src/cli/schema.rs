//! `dtorrent schema`: prints the schemas of messages and of the config.

use clap::{Subcommand, ValueEnum};

use super::CommandResult;
use super::terminal::print_json_text;
use crate::config;
use crate::model::{Event, Files, Health, Info, Outcome, Stats, Torrent, Verb};
use crate::schema;

#[derive(Debug, Subcommand)]
pub(super) enum Arguments {
    /// Print the schema of the config file
    Config,
    /// Print the schema of an event
    Event,
    /// Print the schema of the result of a command
    Result,
    /// Print the schema of a torrent: its state, and its part in each event
    Torrent,
    /// Print the schema of the files of a torrent
    Files,
    /// Print the schema of the statistics of a server
    Stats,
    /// Print the schema of the `info` of a bridge
    Info,
    /// Print the schema of the `health` of a bridge
    Health,
    /// Print the schema of the body of a command; without VERB of any command
    Command {
        /// pause, add, list, …
        #[arg(value_name = "VERB")]
        verb: Option<Named>,
    },
    /// Print an AsyncAPI 3 document: which message is on which topic and subject
    Asyncapi,
}

/// A verb, by its name in topics.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named(Verb);

impl ValueEnum for Named {
    fn value_variants<'a>() -> &'a [Self] {
        // `value_variants` returns a slice, and the names of the verbs are in their own table.
        static ALL: std::sync::LazyLock<Vec<Named>> =
            std::sync::LazyLock::new(|| Verb::ALL.iter().map(|verb| Named(*verb)).collect());
        &ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.0.as_str()))
    }
}

pub(super) fn run(arguments: &Arguments) -> CommandResult {
    let document = match arguments {
        Arguments::Config => config::schema().to_value(),
        Arguments::Event => schema::sent::<Event>().to_value(),
        Arguments::Result => schema::sent::<Outcome>().to_value(),
        Arguments::Torrent => schema::sent::<Torrent>().to_value(),
        Arguments::Files => schema::sent::<Files>().to_value(),
        Arguments::Stats => schema::sent::<Stats>().to_value(),
        Arguments::Info => schema::sent::<Info>().to_value(),
        Arguments::Health => schema::sent::<Health>().to_value(),
        Arguments::Command { verb: Some(Named(verb)) } => schema::command(*verb).to_value(),
        Arguments::Command { verb: None } => schema::any_command().to_value(),
        Arguments::Asyncapi => schema::asyncapi(),
    };
    print_json_text(&serde_json::to_string_pretty(&document).expect("it is plain JSON"))
}
