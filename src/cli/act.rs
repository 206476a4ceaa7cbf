//! Commands for torrents: `dtorrent pause resume start stop recheck announce`, and the part shared with `delete`, `label`,
//! `move` and `priority`.

use std::collections::BTreeMap;

use clap::error::ErrorKind;
use clap::{ArgMatches, Args, FromArgMatches, Subcommand};
use serde_json::{Map, Value, json};

use super::terminal::print_json;
use super::terminal::select::{Conditions, select};
use super::terminal::server::{ServerChoice, Session, exit_for_code, report_error, with_spinner};
use super::{CommandResult, Exit, Options, print_message, refused, usage};
use crate::manager::Watcher;
use crate::model::{InfoHash, Level, Outcome, OutcomeStatus, Torrent, Verb};
use crate::port::{Clock as _, SystemClock};

/// A verb without arguments of its own. Each row of the table of verbs that has a participle is a subcommand.
#[derive(Clone, Debug)]
pub struct PlainVerb {
    verb: Verb,
    participle: &'static str,
    arguments: Arguments,
}

#[derive(Clone, Debug, Args)]
struct Arguments {
    /// The server, if there are several, and the torrents: the beginning of a hash, a name, or a pattern like '*.iso'
    #[arg(value_name = "[SERVER] SELECTOR")]
    selectors: Vec<String>,
    #[command(flatten)]
    selection: Selection,
}

/// Selection of torrents in addition to selectors, and the output of the result.
#[derive(Clone, Debug, Args)]
pub struct Selection {
    #[command(flatten)]
    choice: ServerChoice,
    #[command(flatten)]
    conditions: Conditions,
    /// Select all torrents of the server
    #[arg(long)]
    all: bool,
    /// Show what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

impl Selection {
    /// Returns the selection of what the selectors alone name.
    pub fn of_one(choice: ServerChoice, dry_run: bool, json: bool) -> Self {
        Self { choice, conditions: Conditions::default(), all: false, dry_run, json }
    }
}

/// A command, and the description of its effect for people.
pub struct VerbCall {
    verb: Verb,
    arguments: Map<String, Value>,
    /// State of a torrent afterwards: `paused`.
    participle: String,
}

impl VerbCall {
    /// Returns a call with `arguments`, a JSON object.
    pub fn new(verb: Verb, arguments: Value, participle: impl Into<String>) -> Self {
        let arguments = arguments.as_object().cloned().unwrap_or_default();
        Self { verb, arguments, participle: participle.into() }
    }
}

impl PlainVerb {
    fn all() -> impl Iterator<Item = (Verb, &'static str)> {
        Verb::ALL.iter().filter_map(|verb| Some((*verb, verb.participle()?)))
    }

    /// Executes the verb.
    pub fn run(self, options: Options) -> CommandResult {
        let Self { verb, participle, arguments: Arguments { selectors, selection } } = self;
        run(options, selectors, &selection, &VerbCall::new(verb, json!({}), participle))
    }
}

impl FromArgMatches for PlainVerb {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let found = matches.subcommand().and_then(|(name, matches)| {
            Self::all().find(|(verb, _)| verb.as_str() == name).map(|found| (found, matches))
        });
        let Some(((verb, participle), matches)) = found else {
            return Err(clap::Error::raw(ErrorKind::InvalidSubcommand, "no such verb"));
        };
        Ok(Self { verb, participle, arguments: Arguments::from_arg_matches(matches)? })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Subcommand for PlainVerb {
    fn augment_subcommands(command: clap::Command) -> clap::Command {
        Self::all().fold(command, |command, (verb, _)| {
            // After the arguments, whose own docs would be the help otherwise.
            command.subcommand(Arguments::augment_args(clap::Command::new(verb.as_str())).about(verb.summary()))
        })
    }

    fn augment_subcommands_for_update(command: clap::Command) -> clap::Command {
        Self::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        Self::all().any(|(verb, _)| verb.as_str() == name)
    }
}

/// Executes a command for the selected torrents.
pub fn run(options: Options, selectors: Vec<String>, selection: &Selection, call: &VerbCall) -> CommandResult {
    run_if(options, selectors, selection, call, async |_, _| Ok(()))
}

/// Executes a command for the selected torrents, unless `may` returns an error. With `--dry-run`, `may` is not called.
pub fn run_if(
    options: Options,
    selectors: Vec<String>,
    selection: &Selection,
    call: &VerbCall,
    may: impl AsyncFn(&Watcher, &[Torrent]) -> CommandResult,
) -> CommandResult {
    let session = Session::start(options)?;
    let (server, selectors) = session.server(&selection.choice, selectors)?;
    if selectors.is_empty() && selection.conditions.is_empty() && !selection.all {
        return Err(usage(
            "no torrents selected; give a hash prefix, a name or a pattern, or --status, --label, --all",
        ));
    }
    let filter = selection.conditions.filter(None).map_err(|error| usage(&error))?;
    session.run(async {
        let (_manager, watcher, torrents) = session.reach(&server).await?;
        let chosen = select(&torrents, &selectors, &filter, SystemClock.now()).map_err(|error| refused(&error))?;
        let chosen: Vec<Torrent> = chosen.into_iter().cloned().collect();
        if chosen.is_empty() {
            return Err(refused("no torrent matches"));
        }
        // A dry run changes nothing, so there is nothing to confirm.
        if !selection.dry_run {
            may(&watcher, &chosen).await?;
        }
        let mut arguments = call.arguments.clone();
        // A verb for one torrent has it in its address; the others accept a list.
        let hash = match (call.verb.level(), chosen.as_slice()) {
            (Level::Torrent, [one]) => Some(one.hash),
            _ => None,
        };
        if hash.is_none() {
            arguments.insert("hashes".to_owned(), chosen.iter().map(|torrent| json!(torrent.hash)).collect());
        }
        arguments.insert("dry_run".to_owned(), json!(selection.dry_run));
        let outcome = with_spinner("waiting until it is seen", watcher.command(call.verb, hash, arguments)).await;
        let outcome = outcome.map_err(|error| report_error(&error))?;
        let printed = match selection.json {
            true => print_json(&outcome),
            false => Ok(()),
        };
        let names = chosen.iter().map(|torrent| (torrent.hash, torrent.name.as_str())).collect();
        // A closed stdout must not hide a failed command, so its exit code takes precedence.
        report_outcome(&outcome, &names, &call.participle, selection.dry_run).and(printed)
    })
}

/// Prints the outcome of each torrent, and returns the exit code.
fn report_outcome(outcome: &Outcome, names: &BTreeMap<InfoHash, &str>, done: &str, is_dry: bool) -> CommandResult {
    for row in &outcome.results {
        let name = names.get(&row.hash).map_or_else(|| row.hash.to_string(), |name| (*name).to_owned());
        match &row.error {
            None if is_dry => print_message(&format!("{name}: would be {done}")),
            None => print_message(&format!("{name}: {done}")),
            Some(error) => print_message(&format!("{name}: {}", error.message)),
        }
    }
    for (code, count) in &outcome.omitted {
        print_message(&format!("{count} more: {code}"));
    }
    match &outcome.error {
        _ if outcome.status == OutcomeStatus::Ok => Ok(()),
        None => Err(Exit::Failed),
        Some(error) => {
            // Otherwise each row has its own reason.
            if outcome.results.is_empty() {
                print_message(&error.message);
            }
            Err(exit_for_code(error.code))
        }
    }
}
