//! The command line: what was asked for, and the code that it ends with.
//!
//! One file per subcommand. Messages for people go to stderr, data to stdout.

mod act;
mod add;
mod check;
mod client;
mod dead_letters;
mod delete;
mod demo;
mod health;
mod label;
mod limits;
mod list;
mod make_torrent;
mod manual;
mod move_to;
mod priority;
mod purge;
mod run;
mod schema;
mod show;
mod terminal;
mod watch;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, ConfigErrors, Flag, Loaded, Sources};
use crate::model::{Verb, printable};

#[derive(Debug, Parser)]
#[command(name = "dtorrent", version, about, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the bridge (also without a word)
    Run,
    /// Show everything on this machine: a broker, two rTorrents that move data, the bridge between
    Demo,
    /// Read the config, tell everything that is wrong with it, or what it comes to
    Check(check::Arguments),
    /// Show what happens, as it happens; no broker is needed
    Watch(watch::Arguments),
    /// List torrents
    List(list::Arguments),
    /// Show all about one torrent
    Show(show::Arguments),
    /// Add torrents from magnet links, links or files
    Add(add::Arguments),
    /// Hold torrents for a while
    Pause(act::Arguments),
    /// Let paused torrents go on
    Resume(act::Arguments),
    /// Start torrents
    Start(act::Arguments),
    /// Stop torrents
    Stop(act::Arguments),
    /// Remove torrents, and with --data their files
    Delete(delete::Arguments),
    /// Have the content compared with the torrent
    Recheck(act::Arguments),
    /// Tell the trackers now
    Announce(act::Arguments),
    /// Give torrents a label
    Label(label::Arguments),
    /// Say which torrents come first
    Priority(priority::Arguments),
    /// Move torrents to another folder
    Move(move_to::Arguments),
    /// Show or set the limits of a server
    Limits(limits::Arguments),
    /// Make a .torrent file of a file or a folder
    MakeTorrent(make_torrent::Arguments),
    /// Take back every retained topic and discovery message of this instance; the bridge must be stopped
    Purge,
    /// List, replay or drop the events that brokers and webhooks refused
    #[command(subcommand)]
    DeadLetters(dead_letters::Arguments),
    /// For a client of your own (`client = "exec"`)
    #[command(subcommand)]
    Client(client::Arguments),
    /// Ask the running bridge whether it is alive: exit code 0 or 1
    Health,
    /// Print the shape of what is sent and taken: a JSON Schema, or an AsyncAPI document
    #[command(subcommand)]
    Schema(schema::Arguments),
    /// Print the completions of this command line for a shell
    Completions(manual::CompletionsArguments),
    /// Print the manual, or write its pages into a folder
    Man(manual::ManArguments),
}

/// How the config is found, and what the command line says in its place.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Read this file [default: $DTORRENT_CONFIG, ./dtorrent.toml, the user's, /etc/dtorrent/dtorrent.toml]
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keep the durable state here, whatever the config says
    #[arg(long, global = true, value_name = "FOLDER")]
    data_dir: Option<String>,
    /// Serve HTTP here, whatever the config says: ADDRESS:PORT or `off`
    #[arg(long, global = true, value_name = "ADDRESS")]
    listen: Option<String>,
    /// error, warn, info, debug, trace or off, whatever the config says
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    /// pretty or json, whatever the config says
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl Options {
    /// This file and nothing else from the command line.
    fn of_file(config: PathBuf) -> Self {
        Self { config: Some(config), data_dir: None, listen: None, log_level: None, log_format: None }
    }

    pub fn load(self) -> Result<Loaded, ConfigErrors> {
        let Self { config, data_dir, listen, log_level, log_format } = self;
        let flags = [
            ("--data-dir", "data_dir", data_dir),
            ("--listen", "http.listen", listen),
            ("--log-level", "log.level", log_level),
            ("--log-format", "log.format", log_format),
        ];
        let flags = flags.into_iter().filter_map(|(name, key, text)| Some(Flag::flag(name, key, text?))).collect();
        config::load(&Sources::of_process(config, flags))
    }

    /// The config, or the exit code after all that is wrong with it was told.
    fn load_or_tell(self) -> Result<Loaded, Exit> {
        self.load().map_err(|errors| {
            let count = errors.0.len();
            let faults = if count == 1 { "1 fault".to_owned() } else { format!("{count} faults") };
            tell(&format!("{errors}\n{faults} in the config"));
            Exit::Usage
        })
    }
}

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done,
    Failed,
    /// The command line or the config is wrong.
    Usage,
    /// Somebody who has to be reached is not.
    Unreachable,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Unreachable => 3,
        })
    }
}

impl Cli {
    pub fn run(self) -> Exit {
        let Self { options, command } = self;
        match command {
            Some(Command::Check(arguments)) => check::run(options, &arguments),
            Some(Command::Watch(arguments)) => watch::run(options, &arguments),
            Some(Command::List(arguments)) => list::run(options, &arguments),
            Some(Command::Show(arguments)) => show::run(options, arguments),
            Some(Command::Add(arguments)) => add::run(options, arguments),
            Some(Command::Pause(arguments)) => act::plain(options, arguments, Verb::Pause),
            Some(Command::Resume(arguments)) => act::plain(options, arguments, Verb::Resume),
            Some(Command::Start(arguments)) => act::plain(options, arguments, Verb::Start),
            Some(Command::Stop(arguments)) => act::plain(options, arguments, Verb::Stop),
            Some(Command::Delete(arguments)) => delete::run(options, arguments),
            Some(Command::Recheck(arguments)) => act::plain(options, arguments, Verb::Recheck),
            Some(Command::Announce(arguments)) => act::plain(options, arguments, Verb::Announce),
            Some(Command::Label(arguments)) => label::run(options, arguments),
            Some(Command::Priority(arguments)) => priority::run(options, arguments),
            Some(Command::Move(arguments)) => move_to::run(options, arguments),
            Some(Command::Limits(arguments)) => limits::run(options, arguments),
            Some(Command::MakeTorrent(arguments)) => make_torrent::run(&arguments),
            Some(Command::Purge) => purge::run(options),
            Some(Command::DeadLetters(arguments)) => dead_letters::run(options, arguments),
            Some(Command::Client(arguments)) => client::run(arguments),
            Some(Command::Health) => health::run(options),
            Some(Command::Schema(arguments)) => schema::run(&arguments),
            Some(Command::Completions(arguments)) => manual::completions(&arguments),
            Some(Command::Man(arguments)) => manual::man(&arguments),
            Some(Command::Demo) => demo::run(),
            Some(Command::Run) | None => run::run(options),
        }
    }
}

/// Says something to a person. If stderr is gone there is nobody to say it to.
///
/// Names of torrents and words of servers are in it, so nothing in it does anything to a terminal.
fn tell(text: &str) {
    for line in text.lines() {
        let _nobody_listens = writeln!(std::io::stderr(), "{}", printable(line.as_bytes())).is_err();
    }
}
