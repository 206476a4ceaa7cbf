//! `dtorrent letters`: the events that brokers and endpoints would not take.

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::terminal::{put, put_json};
use super::{Exit, Options, tell};
use crate::app::{self, Letter, Tried};
use crate::config::Config;
use crate::model::{SinkName, printable};

#[derive(Debug, Subcommand)]
pub enum Arguments {
    /// List the events that were put aside, oldest first; the bridge may run
    List(ListArguments),
    /// Send events that were put aside once more, with their ids and bodies; a bridge that runs is asked to send those of
    /// webhooks (http.token), and must be stopped for those of brokers
    Replay(Choice),
    /// Drop events that were put aside, for good; the bridge may run
    Drop(Choice),
}

#[derive(Debug, Args)]
pub struct ListArguments {
    /// Of this broker or webhook only, as it is called in the config
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// One JSON object a line, with the whole event
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Choice {
    /// The broker or webhook, as it is called in the config
    #[arg(value_name = "NAME")]
    name: String,
    /// The events, by their ids
    #[arg(value_name = "ID", required_unless_present = "all")]
    ids: Vec<String>,
    /// Everything that was put aside for it
    #[arg(long, conflicts_with = "ids")]
    all: bool,
}

/// Whose letters a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    All,
    Webhooks,
}

impl Scope {
    fn holds(self, letter: &Letter) -> bool {
        self == Self::All || letter.is_webhook
    }

    /// How a sink is called in JSON.
    fn key(self) -> &'static str {
        match self {
            Self::All => "sink",
            Self::Webhooks => "webhook",
        }
    }
}

pub fn run(options: Options, arguments: Arguments) -> Exit {
    carry_out("letters", options, |config| match arguments {
        Arguments::List(ListArguments { name, json }) => list(config, Scope::All, name.as_deref(), json),
        Arguments::Replay(Choice { name, ids, all: _ }) => replay(config, Scope::All, &name, &ids),
        Arguments::Drop(Choice { name, ids, all: _ }) => drop_for_good(config, &name, &ids),
    })
}

pub fn carry_out(command: &str, options: Options, work: impl FnOnce(&Config) -> anyhow::Result<Exit>) -> Exit {
    let loaded = match options.load_or_tell() {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    work(&loaded.config).unwrap_or_else(|error| {
        tell(&format!("dtorrent {command}: {}", printable(format!("{error:#}").as_bytes())));
        Exit::Failed
    })
}

pub fn list(config: &Config, scope: Scope, name: Option<&str>, is_json: bool) -> anyhow::Result<Exit> {
    let mut letters = app::dead_letters(&config.data_dir)?;
    letters.retain(|letter| scope.holds(letter) && name.is_none_or(|name| letter.name.as_str() == name));
    for letter in &letters {
        let said =
            if is_json { put_json(&as_json(scope, letter).to_string()) } else { put(as_line(letter).as_bytes()) };
        if let Err(exit) = said {
            return Ok(exit);
        }
    }
    if letters.is_empty() && !is_json {
        tell("nothing was put aside");
    }
    Ok(Exit::Done)
}

fn as_line(Letter { name, letter, .. }: &Letter) -> String {
    let what = match letter.gap() {
        Some((first, last)) => format!("{} events, {} to {}", letter.events(), first.0, last.0),
        None => {
            let event: Value = serde_json::from_slice(&letter.body).unwrap_or_default();
            let kind = event["event_type"].as_str().unwrap_or("?");
            let torrent = event["torrent"]["name"].as_str().map(|name| format!(" {name:?}")).unwrap_or_default();
            format!("{} bytes  {kind}{torrent}", letter.body.len())
        }
    };
    let line = format!("{}  {name}  {}  {what}: {}", letter.time, letter.id, letter.reason);
    printable(line.as_bytes()) + "\n"
}

fn as_json(scope: Scope, Letter { name, letter, .. }: &Letter) -> Value {
    let event: Value = serde_json::from_slice(&letter.body).unwrap_or_default();
    json!({
        scope.key(): name,
        "server": letter.server,
        "id": letter.id,
        "time": letter.time,
        "reason": letter.reason,
        "events": letter.events(),
        "bytes": letter.body.len(),
        "event": event,
    })
}

/// Those of a sink that were named, or all of them.
fn chosen(config: &Config, scope: Scope, name: &str, ids: &[String]) -> anyhow::Result<Vec<Letter>> {
    let name = SinkName::parse(name).map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut letters = app::dead_letters(&config.data_dir)?;
    letters.retain(|letter| scope.holds(letter) && letter.name == name);
    let is_known = match scope {
        Scope::All => config.brokers.contains_key(&name) || config.webhooks.contains_key(&name),
        Scope::Webhooks => config.webhooks.contains_key(&name),
    };
    if letters.is_empty() && !is_known {
        let kinds = if scope == Scope::All { "broker or webhook" } else { "webhook" };
        bail!("the config has no {kinds} {name}");
    }
    let letters = Letter::chosen(letters, ids).with_context(|| name.to_string())?;
    if letters.is_empty() {
        tell(&format!("nothing was put aside for {name}"));
    }
    Ok(letters)
}

pub fn replay(config: &Config, scope: Scope, name: &str, ids: &[String]) -> anyhow::Result<Exit> {
    let letters = chosen(config, scope, name, ids)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let tried = runtime.block_on(app::replay(config, letters))?;
    let mut exit = Exit::Done;
    for Tried { id, result } in &tried {
        match result {
            Ok(()) => tell(&format!("{id}: taken")),
            Err(error) => {
                tell(&printable(format!("{id}: {error}").as_bytes()));
                let is_away = !error.is_rejected();
                exit = if is_away { Exit::Unreachable } else { Exit::Failed };
            }
        }
    }
    Ok(exit)
}

fn drop_for_good(config: &Config, name: &str, ids: &[String]) -> anyhow::Result<Exit> {
    let letters = chosen(config, Scope::All, name, ids)?;
    if !letters.is_empty() {
        tell(&format!("{} dropped", app::drop_letters(config, &letters)?));
    }
    Ok(Exit::Done)
}
