//! `dtorrent schema`: the shapes of what is sent and taken, on stdout.

use clap::{Subcommand, ValueEnum};

use super::Exit;
use super::terminal::put_json;
use crate::config;
use crate::model::Verb;
use crate::schema::{self, Body};

#[derive(Debug, Subcommand)]
pub enum Arguments {
    /// The config file
    Config,
    /// An event, as each broker gets it
    Event,
    /// The result of a command
    Result,
    /// A torrent: the state on a broker, and in each event
    Torrent,
    /// The files of a torrent
    Files,
    /// The statistics of a server
    Stats,
    /// What the bridge says of itself
    Info,
    /// What the bridge says of how it is
    Health,
    /// The body of a command; of all of them without a name
    Command {
        /// pause, add, list, …
        #[arg(value_name = "VERB")]
        verb: Option<Named>,
    },
    /// Which of them is on which topic and subject: an AsyncAPI 3 document
    Asyncapi,
}

/// A verb by its name on the topics.
#[derive(Clone, Copy, Debug)]
pub struct Named(Verb);

impl ValueEnum for Named {
    fn value_variants<'a>() -> &'a [Self] {
        static ALL: std::sync::LazyLock<Vec<Named>> =
            std::sync::LazyLock::new(|| Verb::ALL.iter().map(|verb| Named(*verb)).collect());
        &ALL
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.0.as_str()))
    }
}

pub fn run(arguments: &Arguments) -> Exit {
    let document = match arguments {
        Arguments::Config => config::schema().to_value(),
        Arguments::Event => Body::Event.schema().to_value(),
        Arguments::Result => Body::Result.schema().to_value(),
        Arguments::Torrent => Body::Torrent.schema().to_value(),
        Arguments::Files => Body::Files.schema().to_value(),
        Arguments::Stats => Body::Stats.schema().to_value(),
        Arguments::Info => Body::Info.schema().to_value(),
        Arguments::Health => Body::Health.schema().to_value(),
        Arguments::Command { verb: Some(Named(verb)) } => schema::command(*verb).to_value(),
        Arguments::Command { verb: None } => schema::any_command().to_value(),
        Arguments::Asyncapi => schema::asyncapi(),
    };
    put_json(&serde_json::to_string_pretty(&document).expect("it is plain JSON"))
        .map_or_else(|exit| exit, |()| Exit::Done)
}
