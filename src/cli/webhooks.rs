//! `dtorrent webhooks`: the events that endpoints would not take.

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::terminal::{put, put_json};
use super::{Exit, Options, tell};
use crate::app::{self, Letter, Tried};
use crate::config::Config;
use crate::model::{SinkName, printable};
use crate::port::DeliverError;

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
    let loaded = match options.load_or_tell() {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let done = match arguments {
        Arguments::List(ListArguments { json }) => list(&loaded.config, json),
        Arguments::Replay(ReplayArguments { webhook, ids, all: _ }) => replay(&loaded.config, &webhook, &ids),
    };
    done.unwrap_or_else(|error| {
        tell(&format!("dtorrent webhooks: {error:#}"));
        Exit::Failed
    })
}

fn list(config: &Config, is_json: bool) -> anyhow::Result<Exit> {
    let letters = app::dead_letters(config)?;
    for letter in &letters {
        let said = if is_json { put_json(&as_json(letter).to_string()) } else { put(as_line(letter).as_bytes()) };
        if let Err(exit) = said {
            return Ok(exit);
        }
    }
    if letters.is_empty() && !is_json {
        tell("nothing was put aside");
    }
    Ok(Exit::Done)
}

fn as_line(Letter { webhook, letter, .. }: &Letter) -> String {
    let event: Value = serde_json::from_slice(&letter.body).unwrap_or_default();
    let kind = event["event_type"].as_str().unwrap_or("?");
    let name = event["torrent"]["name"].as_str().map(|name| format!(" {name:?}")).unwrap_or_default();
    let line = format!("{}  {webhook}  {}  {kind}{name}: {}", letter.time, letter.id, letter.reason);
    printable(line.as_bytes()) + "\n"
}

fn as_json(Letter { webhook, letter, .. }: &Letter) -> Value {
    let event: Value = serde_json::from_slice(&letter.body).unwrap_or_default();
    json!({
        "webhook": webhook,
        "server": letter.server,
        "id": letter.id,
        "time": letter.time,
        "reason": letter.reason,
        "event": event,
    })
}

fn replay(config: &Config, webhook: &str, ids: &[String]) -> anyhow::Result<Exit> {
    let webhook = SinkName::parse(webhook).map_err(|error| anyhow::anyhow!("{error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let tried = runtime.block_on(app::replay(config, &webhook, ids))?;
    let mut exit = Exit::Done;
    for Tried { id, result } in &tried {
        match result {
            Ok(()) => tell(&format!("{id}: taken")),
            Err(error) => {
                tell(&format!("{id}: {error}"));
                let is_away = matches!(error, DeliverError::Unavailable { .. });
                exit = if is_away { Exit::Unreachable } else { Exit::Failed };
            }
        }
    }
    if tried.is_empty() {
        tell(&format!("nothing was put aside for {webhook}"));
    }
    Ok(exit)
}
