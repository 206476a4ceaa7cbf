//! The verbs: every kind of command, one row each.
//!
//! A row says where a verb is accepted, what a client has to be capable of, which arguments it takes and what they
//! come to, and which right it needs besides its own. The parser, the JSON Schemas, the AsyncAPI document, the rights
//! in the config and the plain subcommands of the command line are made from the rows.
//!
//! A verb that asks a client for something new, say `superseed`, touches six places:
//!
//! 1. this file: the variant of [`Verb`] and its row;
//! 2. `model/arguments.rs`: the type of its arguments, if it has any;
//! 3. `model/action.rs`: the [`Action`], and what a later poll has to show for it;
//! 4. `clients/rtorrent/actions/`, the calls that carry it out, and `clients/rtorrent/mod.rs`, the verbs that the adapter
//!    states;
//! 5. `clients/exec/mod.rs` and `testing/simulator/mod.rs`, which have it or not;
//! 6. `docs/reference.md`, which a test compares with the rows (the golden files are renewed with `BLESS=1`).
//!
//! The compiler names 3 to 5, because their `match` has no wildcard. Nothing else changes: admission, queue,
//! execution, results, HTTP and both brokers know no verb by name, except those that do more than ask for actions.
//!
//! Pure.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::arguments::{self, NoArguments};
use super::{Action, CommandError, ErrorCode, InfoHash, Operation};
use Capability::{Actions, Reading, ServerControl};
use Level::{Bridge, Server, ServerFiltered, ServerOrBridge, Torrent, Torrents};

/// The kind of a command, as topics name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Verb {
    Pause,
    Resume,
    Start,
    Stop,
    Delete,
    Add,
    Recheck,
    Announce,
    Label,
    Priority,
    Get,
    List,
    Move,
    Throttle,
    FilePriority,
    Trackers,
    Limits,
    Resync,
    Rpc,
    LogLevel,
}

/// The topics that a verb is accepted on, and how its body chooses torrents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Level {
    /// One torrent, on its own topic only.
    Torrent,
    /// One torrent on its own topic, or many on a server's topic with `hashes` or `filter`.
    Torrents,
    /// A server; no torrent is chosen.
    Server,
    /// A server; `filter` may choose among its torrents.
    ServerFiltered,
    /// A server, or the bridge itself.
    ServerOrBridge,
    /// The bridge itself.
    Bridge,
}

/// The capability that a verb needs of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Capability {
    /// Nothing but reading torrents, which every client is.
    Reading,
    /// The actions of this verb, which a client states by the verb.
    Actions,
    /// Control over the program as a whole.
    ServerControl,
}

struct Row {
    verb: Verb,
    /// The last level of a command topic, and the right to use the verb.
    name: &'static str,
    level: Level,
    /// A sentence in the imperative, without a full stop.
    summary: &'static str,
    needs: Capability,
    arguments: &'static dyn Arguments,
    /// The state of a torrent afterwards. The command line has a subcommand for each row with a participle.
    participle: Option<&'static str>,
    /// A right that some bodies need besides the verb's own.
    extra_right: Option<ExtraRight>,
}

struct ExtraRight {
    name: &'static str,
    is_needed: fn(&Operation) -> bool,
}

/// How the arguments of a verb are described, and which operation they come to.
trait Arguments: Sync {
    fn schema(&self, generator: &mut SchemaGenerator) -> Schema;
    fn parse(&self, object: Map<String, Value>) -> Result<Operation, CommandError>;
}

/// Arguments of type `A`, and the function that makes an operation of them.
struct Takes<A>(fn(A) -> Result<Operation, CommandError>);

impl<A: DeserializeOwned + JsonSchema> Arguments for Takes<A> {
    fn schema(&self, generator: &mut SchemaGenerator) -> Schema {
        A::json_schema(generator)
    }

    fn parse(&self, object: Map<String, Value>) -> Result<Operation, CommandError> {
        let arguments = serde_path_to_error::deserialize(Value::Object(object)).map_err(|error| {
            let (path, inner) = (error.path().to_string(), error.inner().to_string());
            // serde names the Rust type, which says nothing to the sender of a command.
            let inner = ["u8", "u32", "u64"].iter().fold(inner, |text, kind| {
                text.replace(&format!("expected {kind}"), "expected a whole number from 0 on")
            });
            let names_key = path == "." || inner.contains(&format!("`{path}`"));
            CommandError::new(ErrorCode::BadRequest, if names_key { inner } else { format!("{path}: {inner}") })
        })?;
        (self.0)(arguments)
    }
}

const fn row(
    verb: Verb,
    name: &'static str,
    level: Level,
    needs: Capability,
    summary: &'static str,
    arguments: &'static dyn Arguments,
) -> Row {
    Row { verb, name, level, needs, summary, arguments, participle: None, extra_right: None }
}

/// A verb for torrents that has no arguments.
const fn plain(
    verb: Verb,
    name: &'static str,
    summary: &'static str,
    participle: &'static str,
    arguments: &'static Takes<NoArguments>,
) -> Row {
    Row { participle: Some(participle), ..row(verb, name, Torrents, Actions, summary, arguments) }
}

/// The right to read announce URLs whole, passkeys included; without it a command that shows them shows their names.
pub const SECRETS: &str = "secrets";

/// The rights that `*` does not stand for: one ends what an operator sees, the other shows what should be seen by few.
const NAMED_ONLY: [&str; 2] = ["log_level", SECRETS];

const DELETE_DATA: ExtraRight =
    ExtraRight { name: "delete_data", is_needed: |operation| matches!(operation, Operation::DeleteWithData) };

/// In the order of the variants, so that a verb finds its row by its number.
#[rustfmt::skip] // a table: one row, one line
const ROWS: &[Row] = &[
    plain(Verb::Pause, "pause", "Pause torrents", "paused", &Takes(|_| act(Action::Pause))),
    plain(Verb::Resume, "resume", "Resume paused torrents", "resumed", &Takes(|_| act(Action::Resume))),
    plain(Verb::Start, "start", "Start torrents", "started", &Takes(|_| act(Action::Start))),
    plain(Verb::Stop, "stop", "Stop torrents", "stopped", &Takes(|_| act(Action::Stop))),
    Row { extra_right: Some(DELETE_DATA), ..row(Verb::Delete, "delete", Torrents, Actions, "Remove torrents, with or without their files", &Takes(arguments::delete)) },
    row(Verb::Add, "add", Server, Actions, "Add torrents from magnet links, URLs or files", &Takes(arguments::add)),
    plain(Verb::Recheck, "recheck", "Verify (hash-check) the data of torrents", "being checked", &Takes(|_| act(Action::Recheck))),
    plain(Verb::Announce, "announce", "Announce torrents to their trackers now", "announced", &Takes(|_| act(Action::Announce))),
    row(Verb::Label, "label", Torrents, Actions, "Set the label of torrents", &Takes(arguments::label)),
    row(Verb::Priority, "priority", Torrents, Actions, "Set the priority of torrents", &Takes(arguments::priority)),
    row(Verb::Get, "get", Torrents, Reading, "Read torrents as the client has them now", &Takes(arguments::get)),
    row(Verb::List, "list", ServerFiltered, Reading, "List torrents", &Takes(arguments::list)),
    row(Verb::Move, "move", Torrents, Actions, "Move torrents to another directory", &Takes(arguments::move_to)),
    row(Verb::Throttle, "throttle", Torrents, Actions, "Assign torrents to a throttle group", &Takes(arguments::throttle)),
    row(Verb::FilePriority, "file_priority", Torrent, Actions, "Set the priority of files", &Takes(arguments::file_priority)),
    row(Verb::Trackers, "trackers", Torrent, Actions, "Change the trackers of a torrent", &Takes(arguments::trackers)),
    row(Verb::Limits, "limits", Server, ServerControl, "Set the rate limits of a server", &Takes(arguments::limits)),
    row(Verb::Resync, "resync", ServerOrBridge, Reading, "Send events or the present state again", &Takes(arguments::resync)),
    row(Verb::Rpc, "rpc", Server, ServerControl, "Call a method of the client", &Takes(arguments::rpc)),
    row(Verb::LogLevel, "log_level", Bridge, Reading, "Set the log level of the bridge", &Takes(arguments::log_level)),
];

fn act(action: fn(InfoHash) -> Action) -> Result<Operation, CommandError> {
    Ok(Operation::act(action))
}

impl Verb {
    /// Every verb, in the order of the rows.
    pub const ALL: &'static [Self] = &{
        let mut all = [Self::Pause; ROWS.len()];
        let mut at = 0;
        while at < ROWS.len() {
            all[at] = ROWS[at].verb;
            at += 1;
        }
        all
    };

    fn row(self) -> &'static Row {
        // A test compares the order of the rows with that of the variants.
        &ROWS[self as usize]
    }

    /// Returns the name on topics, which is the name of the right to use the verb, too.
    pub fn as_str(self) -> &'static str {
        self.row().name
    }

    /// Returns the verb of this name; names are compared with their case.
    pub fn parse(text: &str) -> Option<Self> {
        ROWS.iter().find(|row| row.name == text).map(|row| row.verb)
    }

    /// Returns the topics that the verb is accepted on.
    pub fn level(self) -> Level {
        self.row().level
    }

    /// Returns what a client has to be capable of.
    pub fn capability(self) -> Capability {
        self.row().needs
    }

    /// Returns a sentence in the imperative, without a full stop: `Pause torrents`.
    pub fn summary(self) -> &'static str {
        self.row().summary
    }

    /// Returns what a torrent is afterwards (`paused`), for a verb that takes torrents and nothing else.
    pub fn participle(self) -> Option<&'static str> {
        self.row().participle
    }

    /// Whether each command is for one or more torrents.
    pub fn is_for_torrents(self) -> bool {
        matches!(self.level(), Torrent | Torrents)
    }

    /// Whether commands are accepted on a server's topic.
    pub fn is_for_servers(self) -> bool {
        matches!(self.level(), Torrents | Server | ServerFiltered | ServerOrBridge)
    }

    /// Whether commands are accepted on the topic of the bridge.
    pub fn is_for_bridge(self) -> bool {
        matches!(self.level(), ServerOrBridge | Bridge)
    }

    /// Returns the schema of the arguments that only this verb has.
    pub fn arguments_schema(self, generator: &mut SchemaGenerator) -> Schema {
        self.row().arguments.schema(generator)
    }

    /// Reads the arguments that only this verb has; `object` has no others.
    ///
    /// # Errors
    /// Names the first wrong argument, and what would be right.
    pub fn parse_arguments(self, object: Map<String, Value>) -> Result<Operation, CommandError> {
        self.row().arguments.parse(object)
    }

    /// Returns the right that this operation needs besides the verb's own.
    pub fn extra_right(self, operation: &Operation) -> Option<&'static str> {
        self.row().extra_right.as_ref().filter(|right| (right.is_needed)(operation)).map(|right| right.name)
    }

    /// Every right that a config may give: the names of the verbs, and those that go beyond a verb.
    pub fn rights() -> impl Iterator<Item = &'static str> {
        let extra = ROWS.iter().filter_map(|row| Some(row.extra_right.as_ref()?.name));
        ROWS.iter().map(|row| row.name).chain(extra).chain([SECRETS])
    }

    /// The rights that `*` in a config stands for; the others have to be named.
    pub fn rights_of_all() -> impl Iterator<Item = &'static str> {
        Self::rights().filter(|right| !NAMED_ONLY.contains(right))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verb_finds_its_own_row() {
        for (number, row) in ROWS.iter().enumerate() {
            assert_eq!((row.verb as usize, Verb::parse(row.name)), (number, Some(row.verb)));
            assert_eq!(serde_json::to_value(row.verb).unwrap(), row.name);
        }
    }
}
