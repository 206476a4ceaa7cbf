//! `dtorrent dead-letters`: the events that brokers and endpoints refused.

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::terminal::{put, put_json};
use super::{Exit, Options, tell};
use crate::app::dead_letters::{self, ReplayStatus, Replayed, SinkDeadLetter};
use crate::config::Config;
use crate::model::{SinkName, printable};

#[derive(Debug, Subcommand)]
pub enum Arguments {
    /// List dead letters, oldest first; the bridge may run
    List(ListArguments),
    /// Send dead letters again, with their ids and bodies. Those of a broker need the bridge stopped; those of a webhook
    /// are sent by a running bridge (needs http.token)
    Replay(Selection),
    /// Delete dead letters for good; the bridge may run
    Drop(Selection),
}

#[derive(Debug, Args)]
pub struct ListArguments {
    /// Only those of this broker or webhook
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Print one JSON object a line, with the whole event
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Selection {
    /// The broker or webhook, by its name in the config
    #[arg(value_name = "NAME")]
    name: String,
    /// The events, by their ids
    #[arg(value_name = "ID", required_unless_present = "all")]
    ids: Vec<String>,
    /// All dead letters of NAME
    #[arg(long, conflicts_with = "ids")]
    all: bool,
}

pub fn run(options: Options, arguments: Arguments) -> Exit {
    let loaded = match options.load_or_tell() {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let config = &loaded.config;
    let result = match arguments {
        Arguments::List(ListArguments { name, json }) => list(config, name.as_deref(), json),
        Arguments::Replay(selection) => replay(config, &selection),
        Arguments::Drop(selection) => delete(config, &selection),
    };
    result.unwrap_or_else(|error| {
        tell(&format!("dtorrent dead-letters: {error:#}"));
        Exit::Failed
    })
}

fn list(config: &Config, name: Option<&str>, is_json: bool) -> anyhow::Result<Exit> {
    let mut dead_letters = dead_letters::list(&config.data_dir)?;
    dead_letters.retain(|one| name.is_none_or(|name| one.receiver.name().as_str() == name));
    for one in &dead_letters {
        let said = if is_json { put_json(&as_json(one).to_string()) } else { put(as_line(one).as_bytes()) };
        if let Err(exit) = said {
            return Ok(exit);
        }
    }
    if dead_letters.is_empty() && !is_json {
        tell("no dead letters");
    }
    Ok(Exit::Done)
}

fn as_line(SinkDeadLetter { receiver, dead_letter, .. }: &SinkDeadLetter) -> String {
    let what = match dead_letter.gap() {
        Some((first, last)) => format!("{} events, {} to {}", dead_letter.events(), first.0, last.0),
        None => {
            let event: Value = serde_json::from_slice(&dead_letter.body).unwrap_or_default();
            let kind = event["event_type"].as_str().unwrap_or("?");
            let torrent = event["torrent"]["name"].as_str().map(|name| format!(" {name:?}")).unwrap_or_default();
            format!("{} bytes  {kind}{torrent}", dead_letter.body.len())
        }
    };
    let (time, name, id, reason) = (&dead_letter.time, receiver.name(), &dead_letter.id, &dead_letter.reason);
    printable(format!("{time}  {name}  {id}  {what}: {reason}").as_bytes()) + "\n"
}

fn as_json(SinkDeadLetter { receiver, dead_letter, .. }: &SinkDeadLetter) -> Value {
    let event: Value = serde_json::from_slice(&dead_letter.body).unwrap_or_default();
    json!({
        "sink": receiver.name(),
        "server": dead_letter.server,
        "id": dead_letter.id,
        "time": dead_letter.time,
        "reason": dead_letter.reason,
        "events": dead_letter.events(),
        "bytes": dead_letter.body.len(),
        "event": event,
    })
}

/// The dead letters of one broker or webhook that the command line names.
fn selected(config: &Config, Selection { name, ids, all: _ }: &Selection) -> anyhow::Result<Vec<SinkDeadLetter>> {
    let name = SinkName::parse(name)?;
    let mut dead_letters = dead_letters::list(&config.data_dir)?;
    dead_letters.retain(|one| *one.receiver.name() == name);
    let is_known = config.brokers.contains_key(&name) || config.webhooks.contains_key(&name);
    ensure!(is_known || !dead_letters.is_empty(), "the config has no broker or webhook {name}");
    let dead_letters = dead_letters::select(dead_letters, ids).with_context(|| name.to_string())?;
    if dead_letters.is_empty() {
        tell(&format!("no dead letters of {name}"));
    }
    Ok(dead_letters)
}

fn replay(config: &Config, selection: &Selection) -> anyhow::Result<Exit> {
    let dead_letters = selected(config, selection)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let mut exit = Exit::Done;
    for Replayed { id, status, reason } in runtime.block_on(dead_letters::replay(config, dead_letters))? {
        match status {
            ReplayStatus::Delivered => {
                tell(&format!("{id}: delivered"));
                continue;
            }
            ReplayStatus::Rejected => exit = Exit::Failed,
            ReplayStatus::Unreachable => exit = Exit::Unreachable,
        }
        tell(&format!("{id}: {}", reason.unwrap_or_default()));
    }
    Ok(exit)
}

fn delete(config: &Config, selection: &Selection) -> anyhow::Result<Exit> {
    let dead_letters = selected(config, selection)?;
    if !dead_letters.is_empty() {
        tell(&format!("{} dropped", dead_letters::delete(&config.data_dir, &dead_letters)?));
    }
    Ok(Exit::Done)
}
