//! `dtorrent completions` and `dtorrent man`: shell completions and manual pages, made from the arguments.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::terminal::print_bytes;
use super::{Cli, CommandResult, failed};

#[derive(Debug, Args)]
pub(super) struct CompletionsArguments {
    /// Print completions for this shell
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArguments {
    /// Write a page for each subcommand to this folder, instead of the main page to stdout
    #[arg(value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

pub(super) fn completions(arguments: &CompletionsArguments) -> CommandResult {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "dtorrent", &mut script);
    print_bytes(&script)
}

pub(super) fn man(arguments: &ManArguments) -> CommandResult {
    match &arguments.folder {
        None => print_bytes(&page(built()).map_err(failed)?),
        Some(folder) => write_pages(folder).map_err(failed),
    }
}

/// Returns the command line with the full names of its subcommands, `dtorrent-client-check`.
fn built() -> clap::Command {
    let mut command = Cli::command();
    command.build();
    command
}

fn page(command: clap::Command) -> anyhow::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).context("render the page")?;
    Ok(page)
}

/// Writes `dtorrent.1`, `dtorrent-check.1`, `dtorrent-client-check.1`, …
fn write_pages(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let mut pending = vec![built()];
    while let Some(command) = pending.pop() {
        pending.extend(command.get_subcommands().cloned());
        let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
        let path = folder.join(format!("{name}.1"));
        fs::write(&path, page(command)?).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
