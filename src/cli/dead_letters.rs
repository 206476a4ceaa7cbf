//! `dtorrent dead-letters`: lists, replays and drops the events that brokers and endpoints refused.

use std::collections::BTreeSet;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::terminal::{print_bytes, print_json};
use super::{CommandResult, Exit, Options, failed, print_message, start_runtime, usage};
use crate::app::dead_letters::{self, ReplayStatus, Replayed, SinkDeadLetter};
use crate::config::Config;
use crate::model::{SinkName, known_names, outside_text, printable};

#[derive(Debug, Subcommand)]
pub(super) enum Arguments {
    /// List dead letters, oldest first; the bridge may run
    List(ListArguments),
    /// Send dead letters again, with their ids and bodies. Those of a broker need the bridge stopped; those of a webhook
    /// are sent by a running bridge (needs http.token)
    Replay(Selection),
    /// Delete dead letters for good; the bridge may run
    Drop(Selection),
}

#[derive(Debug, Args)]
pub(super) struct ListArguments {
    /// List only those of this broker or webhook
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Print one JSON object a line, with the whole event
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Selection {
    /// The broker or webhook, by its name in the config
    #[arg(value_name = "NAME")]
    name: String,
    /// The events, by their ids
    #[arg(value_name = "ID", required_unless_present = "all")]
    ids: Vec<String>,
    /// Select all dead letters of NAME
    #[arg(long, conflicts_with = "ids")]
    all: bool,
}

pub(super) fn run(options: Options, arguments: Arguments) -> CommandResult {
    let config = options.load_or_report()?;
    match arguments {
        Arguments::List(ListArguments { name, json }) => list(&config, name.as_deref(), json),
        Arguments::Replay(selection) => replay(&config, &selection),
        Arguments::Drop(selection) => delete(&config, &selection),
    }
}

fn list(config: &Config, name: Option<&str>, is_json: bool) -> CommandResult {
    let dead_letters = match name {
        Some(name) => of_sink(config, name)?,
        None => dead_letters::list(&config.data_dir).map_err(failed)?,
    };
    for one in &dead_letters {
        // A closed stdout ends the listing quietly.
        if is_json { print_json(&as_json(one)) } else { print_bytes(as_line(one).as_bytes()) }?;
    }
    if dead_letters.is_empty() && !is_json {
        print_message("no dead letters");
    }
    Ok(())
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
    let (time, name, id) = (&dead_letter.time, receiver.name(), &dead_letter.id);
    // Once more: it may have been stored by another version, or before a secret was in the config.
    let reason = outside_text(&dead_letter.reason);
    // Torrent names and the reasons of endpoints are untrusted (I14).
    printable(format!("{time}  {name}  {id}  {what}: {reason}").as_bytes()) + "\n"
}

fn as_json(SinkDeadLetter { receiver, dead_letter, .. }: &SinkDeadLetter) -> Value {
    let event: Value = serde_json::from_slice(&dead_letter.body).unwrap_or_default();
    json!({
        "sink": receiver.name(),
        "server": dead_letter.server,
        "id": dead_letter.id,
        "time": dead_letter.time,
        "reason": outside_text(&dead_letter.reason),
        "events": dead_letter.events(),
        "bytes": dead_letter.body.len(),
        "event": event,
    })
}

/// Returns all dead letters of one broker or webhook. One that has left the config may still have some.
fn of_sink(config: &Config, name: &str) -> Result<Vec<SinkDeadLetter>, Exit> {
    let mut dead_letters = dead_letters::list(&config.data_dir).map_err(failed)?;
    let mut known: BTreeSet<SinkName> = dead_letters.iter().map(|one| one.receiver.name().clone()).collect();
    known.extend(config.brokers.keys().chain(config.webhooks.keys()).cloned());
    if !known.iter().any(|known| known.as_str() == name) {
        let known = known_names(name, known.iter().map(SinkName::as_str));
        return Err(usage(&format!("unknown broker or webhook `{name}`; {known}")));
    }
    dead_letters.retain(|one| one.receiver.name().as_str() == name);
    Ok(dead_letters)
}

/// Returns the dead letters that the command line names.
fn selected(config: &Config, Selection { name, ids, all: _ }: &Selection) -> Result<Vec<SinkDeadLetter>, Exit> {
    let dead_letters = of_sink(config, name)?;
    let dead_letters = dead_letters::select(dead_letters, ids).with_context(|| name.clone()).map_err(failed)?;
    if dead_letters.is_empty() {
        print_message(&format!("no dead letters of {name}"));
    }
    Ok(dead_letters)
}

fn replay(config: &Config, selection: &Selection) -> CommandResult {
    let dead_letters = selected(config, selection)?;
    let replayed = start_runtime()?.block_on(dead_letters::replay(config, dead_letters)).map_err(failed)?;
    let mut result = Ok(());
    for Replayed { id, status, reason } in replayed {
        match status {
            ReplayStatus::Delivered => {
                print_message(&format!("{id}: delivered"));
                continue;
            }
            ReplayStatus::Rejected => result = Err(Exit::Failed),
            ReplayStatus::Unreachable => result = Err(Exit::Unreachable),
        }
        print_message(&format!("{id}: {}", reason.unwrap_or_default()));
    }
    result
}

fn delete(config: &Config, selection: &Selection) -> CommandResult {
    let dead_letters = selected(config, selection)?;
    if !dead_letters.is_empty() {
        let dropped = dead_letters::delete(&config.data_dir, &dead_letters).map_err(failed)?;
        print_message(&format!("{dropped} dropped"));
    }
    Ok(())
}
