//! `dtorrent completions` and `dtorrent man`: what shells and `man` want to know of this command line.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::terminal::put;
use super::{Cli, Exit, tell};

#[derive(Debug, Args)]
pub struct CompletionsArguments {
    shell: Shell,
}

#[derive(Debug, Args)]
pub struct ManArguments {
    /// Write a page for each subcommand into this folder, in place of the first page to stdout
    #[arg(value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

pub fn completions(arguments: &CompletionsArguments) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "dtorrent", &mut script);
    put(&script).map_or_else(|exit| exit, |()| Exit::Done)
}

pub fn man(arguments: &ManArguments) -> Exit {
    let result = match &arguments.folder {
        None => page(whole()).map(|page| put(&page)),
        Some(folder) => pages(folder).map(Ok),
    };
    match result {
        Ok(said) => said.map_or_else(|exit| exit, |()| Exit::Done),
        Err(error) => {
            tell(&format!("dtorrent man: {error:#}"));
            Exit::Failed
        }
    }
}

/// With the names that subcommands have by those above them.
fn whole() -> clap::Command {
    let mut command = Cli::command();
    command.build();
    command
}

fn page(command: clap::Command) -> anyhow::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).context("make the page")?;
    Ok(page)
}

/// `dtorrent.1`, `dtorrent-check.1`, `dtorrent-client-check.1`, …
fn pages(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let mut left = vec![whole()];
    while let Some(command) = left.pop() {
        left.extend(command.get_subcommands().cloned());
        let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
        let path = folder.join(format!("{name}.1"));
        fs::write(&path, page(command)?).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
