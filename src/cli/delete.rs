//! `dtorrent delete`: removes torrents, and with `--data` their files.

use std::io::Write as _;

use clap::Args;
use serde_json::json;

use super::act::{self, Selection, VerbCall};
use super::terminal::human;
use super::terminal::server::{is_interactive, report_error};
use super::{CommandResult, Exit, Options, print_message, refused, usage};
use crate::manager::Watcher;
use crate::model::{Torrent, Verb};

/// Maximum number of torrents that the question names.
const NAMED_MAX: usize = 10;

#[derive(Clone, Debug, Args)]
pub(super) struct Arguments {
    /// The server, if there are several, and the torrents, as in `pause`
    #[arg(value_name = "[SERVER] SELECTOR")]
    selectors: Vec<String>,
    /// Delete their files, too: those below the server's `roots` that belong to no other torrent
    #[arg(long)]
    data: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    selection: Selection,
}

pub(super) fn run(options: Options, arguments: Arguments) -> CommandResult {
    let Arguments { selectors, data, yes, selection } = arguments;
    // Before the connection, so that a script without --yes fails at once.
    if data && !yes && !selection.dry_run && !is_interactive() {
        return Err(usage("not a terminal; pass --yes to delete files"));
    }
    let participle = if data { "deleted with its files" } else { "deleted" };
    let call = VerbCall::new(Verb::Delete, json!({"data": data}), participle);
    let may = async |watcher: &Watcher, torrents: &[Torrent]| {
        if !data || yes || confirm(watcher, torrents).await? {
            return Ok(());
        }
        Err(refused("nothing was deleted"))
    };
    act::run_if(options, selectors, &selection, &call, may)
}

/// Prints what would be deleted, and asks for confirmation.
async fn confirm(watcher: &Watcher, torrents: &[Torrent]) -> Result<bool, Exit> {
    let hashes: Vec<_> = torrents.iter().map(|torrent| torrent.hash).collect();
    // The dry run makes every check of the deletion, so the question names exactly the files that would be deleted.
    let arguments = json!({"hashes": hashes, "data": true, "dry_run": true});
    let preview = watcher.command(Verb::Delete, None, arguments.as_object().cloned().unwrap_or_default()).await;
    let preview = preview.map_err(|error| report_error(&error))?;
    let deleted = || preview.results.iter().filter_map(|row| row.deleted.as_ref());
    let (files, bytes) = (deleted().map(|one| one.count).sum::<u64>(), deleted().map(|one| one.bytes).sum());
    for torrent in torrents.iter().take(NAMED_MAX) {
        print_message(&format!("  {}", torrent.name));
    }
    if torrents.len() > NAMED_MAX {
        print_message(&format!("  and {} more", torrents.len() - NAMED_MAX));
    }
    let question = format!(
        "Delete {} and {} ({}) permanently? [y/N] ",
        if torrents.len() == 1 { "this torrent".to_owned() } else { format!("these {} torrents", torrents.len()) },
        human::count(files, "file"),
        human::bytes(bytes)
    );
    let mut stderr = std::io::stderr();
    let asked = stderr.write_all(question.as_bytes()).and_then(|()| stderr.flush());
    let mut answer = String::new();
    let answered = asked.and_then(|()| std::io::stdin().read_line(&mut answer));
    Ok(answered.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes"))
}
