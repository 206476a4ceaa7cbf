//! What is done to torrents: `dtorrent pause resume start stop recheck announce`, and the way that all others take.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::{Map, Value, json};

use super::terminal::print_json;
use super::terminal::select::{Conditions, select};
use super::terminal::server::{ServerChoice, Session, exit_for_code, report_error, with_spinner};
use super::{CommandResult, Exit, Options, print_message, usage};
use crate::model::{InfoHash, Outcome, OutcomeStatus, Torrent, Verb};
use crate::port::{Clock as _, SystemClock};

#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// The server, if there are several, and which torrents: the beginning of a hash, a name, or a pattern like '*.iso'
    #[arg(value_name = "[SERVER] SELECTOR")]
    pub selectors: Vec<String>,
    #[command(flatten)]
    pub which: Which,
}

/// Which torrents, beside selectors, and how it is told.
#[derive(Clone, Debug, Args)]
pub struct Which {
    #[command(flatten)]
    pub choice: ServerChoice,
    #[command(flatten)]
    pub conditions: Conditions,
    /// All torrents of the server
    #[arg(long)]
    pub all: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// What is to be done, in the words of the wire and in those of people.
pub struct Doing {
    pub verb: Verb,
    pub arguments: Map<String, Value>,
    pub done: String,
}

impl Doing {
    pub fn new(verb: Verb, arguments: Value, done: impl Into<String>) -> Self {
        let arguments = arguments.as_object().cloned().unwrap_or_default();
        Self { verb, arguments, done: done.into() }
    }
}

/// One of those that need no word more.
pub fn plain(options: Options, arguments: Arguments, verb: Verb) -> CommandResult {
    let done = match verb {
        Verb::Pause => "paused",
        Verb::Resume => "resumed",
        Verb::Start => "started",
        Verb::Stop => "stopped",
        Verb::Recheck => "being checked",
        Verb::Announce => "announced",
        other => other.as_str(),
    };
    let Arguments { selectors, which } = arguments;
    run(options, selectors, &which, &Doing::new(verb, json!({}), done))
}

pub fn run(options: Options, selectors: Vec<String>, which: &Which, doing: &Doing) -> CommandResult {
    run_if(options, selectors, which, doing, async |_, _| Ok(()))
}

/// Does it, if `may` has nothing against it.
pub fn run_if(
    options: Options,
    selectors: Vec<String>,
    which: &Which,
    doing: &Doing,
    may: impl AsyncFn(&crate::manager::Watcher, &[Torrent]) -> CommandResult,
) -> CommandResult {
    let session = Session::start(options)?;
    let (server, selectors) = session.server(&which.choice, selectors)?;
    if selectors.is_empty() && which.conditions.is_empty() && !which.all {
        return Err(usage(
            "no torrents selected; give a hash prefix, a name or a pattern, or --status, --label, --all",
        ));
    }
    let filter = which.conditions.filter(None).map_err(|error| usage(&error))?;
    session.run(async {
        let (_manager, watcher, torrents) = session.reach(&server).await?;
        let chosen = select(&torrents, &selectors, &filter, SystemClock.now()).map_err(|error| {
            print_message(&error);
            Exit::Failed
        })?;
        let chosen: Vec<Torrent> = chosen.into_iter().cloned().collect();
        if chosen.is_empty() {
            print_message("no torrent matches");
            return Err(Exit::Failed);
        }
        if !which.dry_run {
            may(&watcher, &chosen).await?;
        }
        let mut arguments = doing.arguments.clone();
        let hash = match (doing.verb, chosen.as_slice()) {
            (Verb::FilePriority, [one]) => Some(one.hash),
            _ => None,
        };
        if hash.is_none() {
            arguments.insert("hashes".to_owned(), chosen.iter().map(|torrent| json!(torrent.hash)).collect());
        }
        arguments.insert("dry_run".to_owned(), json!(which.dry_run));
        let outcome = with_spinner("waiting until it is seen", watcher.command(doing.verb, hash, arguments)).await;
        let outcome = outcome.map_err(|error| report_error(&error))?;
        let said = match which.json {
            true => print_json(&outcome),
            false => Ok(()),
        };
        let names = chosen.iter().map(|torrent| (torrent.hash, torrent.name.as_str())).collect();
        // Who does not read to the end hears all the same whether it was done.
        report_outcome(&outcome, &names, &doing.done, which.dry_run).and(said)
    })
}

/// Says what became of each torrent.
fn report_outcome(outcome: &Outcome, names: &BTreeMap<InfoHash, &str>, done: &str, is_dry: bool) -> CommandResult {
    for row in &outcome.results {
        let name = names.get(&row.hash).map_or_else(|| row.hash.to_string(), |name| (*name).to_owned());
        match &row.error {
            None if is_dry => print_message(&format!("{name}: would be {done}")),
            None => print_message(&format!("{name}: {done}")),
            Some(error) => print_message(&format!("{name}: {}", error.message)),
        }
    }
    match &outcome.error {
        _ if outcome.status == OutcomeStatus::Ok => Ok(()),
        None => Err(Exit::Failed),
        Some(error) => {
            if outcome.results.is_empty() {
                print_message(&error.message);
            }
            Err(exit_for_code(error.code))
        }
    }
}

/// The last of the arguments is what torrents get; the others say which.
pub fn with_value(mut arguments: Vec<String>, what: &str) -> Result<(Vec<String>, String), Exit> {
    match arguments.pop() {
        Some(value) => Ok((arguments, value)),
        None => Err(usage(&format!("{what} is missing; it comes last"))),
    }
}
