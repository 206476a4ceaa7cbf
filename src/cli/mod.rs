//! The command line: arguments in, exit code out.
//!
//! One file per subcommand. Messages for people go to stderr, data to stdout (see [`terminal`]).

mod act;
mod add;
mod check;
mod client;
mod dead_letters;
mod delete;
mod demo;
mod health;
mod limits;
mod list;
mod make_torrent;
mod manual;
mod purge;
mod run;
mod schema;
mod set;
mod show;
mod terminal;
mod trackers;
mod watch;

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use tokio::runtime::Runtime;

use crate::config::{self, Config, ConfigErrors, Flag, Sources};
use crate::model::{install_mask, masked_line, printable};

/// The arguments of the program.
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
    /// Run the bridge (the default)
    Run,
    /// Run a demonstration on this machine: a broker, two rTorrents that exchange data, and a bridge
    Demo,
    /// Validate the config, and show all of its errors or what will run
    Check(check::Arguments),
    /// Watch events as they happen; no broker is needed
    Watch(watch::Arguments),
    /// List torrents
    List(list::Arguments),
    /// Show everything about one torrent
    Show(show::Arguments),
    /// Add torrents from magnet links, URLs or files
    Add(add::Arguments),
    #[command(flatten)]
    Plain(act::PlainVerb),
    /// Remove torrents, and with --data their files
    Delete(delete::Arguments),
    /// Set the label of torrents
    Label(set::LabelArguments),
    /// Set the priority of torrents
    Priority(set::PriorityArguments),
    /// Move torrents to another folder
    Move(set::MoveArguments),
    /// Show, add, enable or disable the trackers of a torrent
    Trackers(trackers::Arguments),
    /// Show or set the rate limits of a server
    Limits(limits::Arguments),
    /// Create a .torrent file from a file or folder
    MakeTorrent(make_torrent::Arguments),
    /// Clear every retained message that this instance published; the bridge must be stopped
    Purge,
    /// List, replay or drop the events that brokers and webhooks refused
    #[command(subcommand)]
    DeadLetters(dead_letters::Arguments),
    /// Test a client of your own (`client = "exec"`)
    #[command(subcommand)]
    Client(client::Arguments),
    /// Check whether the running bridge is alive: exit code 0 or 1
    Health,
    /// Print the JSON Schema of a message or of the config, or an AsyncAPI document
    #[command(subcommand)]
    Schema(schema::Arguments),
    /// Print shell completions
    Completions(manual::CompletionsArguments),
    /// Print the manual, or write its pages to a folder
    Man(manual::ManArguments),
}

/// Where the config is, and the options of it that the command line overrides.
#[derive(Clone, Debug, Default, Args)]
pub struct Options {
    /// Read this file [default: $DTORRENT_CONFIG, ./dtorrent.toml, the user's, /etc/dtorrent/dtorrent.toml]
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Store the durable state here; overrides the config
    #[arg(long, global = true, value_name = "FOLDER")]
    data_dir: Option<String>,
    /// Serve HTTP on ADDRESS:PORT, or `off`; overrides the config
    #[arg(long, global = true, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Set the log level: error, warn, info, debug, trace or off; overrides the config
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Set the log format: pretty or json; overrides the config
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl Options {
    /// Loads the config, and has its secrets masked from now on.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(self) -> Result<Config, ConfigErrors> {
        let Self { config, data_dir, listen, log_level, log_format } = self;
        // As texts: the config parses them, and reports errors with the name of the flag.
        let flags = [
            ("--data-dir", "data_dir", data_dir),
            ("--listen", "http.listen", listen),
            ("--log-level", "log.level", log_level),
            ("--log-format", "log.format", log_format),
        ];
        let flags = flags.into_iter().filter_map(|(name, key, text)| Some(Flag::flag(name, key, text?))).collect();
        let config = config::load(&Sources::of_process(config, flags))?;
        // Before anything is logged or sent.
        install_mask(config.mask.clone());
        Ok(config)
    }

    /// Loads the config, and prints everything that is wrong with it.
    fn load_or_report(self) -> Result<Config, Exit> {
        self.load().map_err(|errors| {
            let count = errors.0.len();
            let summary = if count == 1 { "1 error".to_owned() } else { format!("{count} errors") };
            usage(&format!("{errors}\n{summary} in the config"))
        })
    }
}

/// The exit code of the program (contract §10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1: failed.
    Failed,
    /// 2: the command line or the config is wrong.
    Usage,
    /// 3: a server, a broker or an endpoint is unreachable.
    Unreachable,
}

/// The outcome of a subcommand. An `Err` has been reported already; what is left of it is the exit code, which is
/// [`Exit::Done`] if the reader of stdout has closed it.
type CommandResult = Result<(), Exit>;

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

/// Reads the command line of this process and runs its subcommand.
pub fn run() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => cli.run().into(),
        Err(error) if error.kind() == ErrorKind::InvalidUtf8 => not_utf8().into(),
        Err(error) => error.exit(),
    }
}

/// Prints which argument is not UTF-8. Paths that go to a client are strings in JSON.
fn not_utf8() -> Exit {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let values = arguments.windows(2).filter(|pair| pair[1].to_str().is_none());
    let named = values.map(|pair| match pair[1].to_string_lossy().split_once('=') {
        Some((option, value)) if option.starts_with("--") => (Some(option.to_owned()), value.to_owned()),
        Some(_) | None => (option_of(&pair[0]), pair[1].to_string_lossy().into_owned()),
    });
    // The value of an option first: a source of `add`, which needs no name, may be anything.
    let (option, value) = named.max_by_key(|(option, _)| option.is_some()).unwrap_or_default();
    let option = option.map_or_else(String::new, |option| format!("{option}: "));
    let remedy = "rename the file or folder, or name it by a symbolic link";
    usage(&format!("{option}`{value}` is not UTF-8, so it cannot be sent to a client: {remedy}"))
}

/// Returns an argument that is an option, after which its value comes.
fn option_of(argument: &OsStr) -> Option<String> {
    argument.to_str().filter(|text| text.starts_with("--") && text.len() > 2).map(str::to_owned)
}

impl Cli {
    /// Runs the subcommand.
    pub fn run(self) -> Exit {
        self.dispatch().map_or_else(|exit| exit, |()| Exit::Done)
    }

    fn dispatch(self) -> CommandResult {
        let Self { options, command } = self;
        match command.unwrap_or(Command::Run) {
            Command::Run => run::run(options),
            Command::Demo => demo::run(),
            Command::Check(arguments) => check::run(options, &arguments),
            Command::Watch(arguments) => watch::run(options, &arguments),
            Command::List(arguments) => list::run(options, &arguments),
            Command::Show(arguments) => show::run(options, arguments),
            Command::Add(arguments) => add::run(options, arguments),
            Command::Plain(plain) => plain.run(options),
            Command::Delete(arguments) => delete::run(options, arguments),
            Command::Label(arguments) => set::label(options, arguments),
            Command::Priority(arguments) => set::priority(options, arguments),
            Command::Move(arguments) => set::directory(options, arguments),
            Command::Trackers(arguments) => trackers::run(options, arguments),
            Command::Limits(arguments) => limits::run(options, arguments),
            Command::MakeTorrent(arguments) => make_torrent::run(&arguments),
            Command::Purge => purge::run(options),
            Command::DeadLetters(arguments) => dead_letters::run(options, arguments),
            Command::Client(arguments) => client::run(arguments),
            Command::Health => health::run(options),
            Command::Schema(arguments) => schema::run(&arguments),
            Command::Completions(arguments) => manual::completions(&arguments),
            Command::Man(arguments) => manual::man(&arguments),
        }
    }
}

/// Prints a message to stderr.
///
/// Names from torrents and the words of servers may be in it, so control characters and secrets are replaced (I14).
fn print_message(text: &str) {
    for line in text.lines() {
        // There is no other place to report a closed stderr.
        let _is_closed = writeln!(std::io::stderr(), "{}", printable(masked_line(line).as_bytes())).is_err();
    }
}

/// Prints what is wrong with the command line or the config.
fn usage(text: &str) -> Exit {
    print_message(text);
    Exit::Usage
}

/// Prints why a command was refused.
fn refused(text: &str) -> Exit {
    print_message(text);
    Exit::Failed
}

/// Prints the answer of each server, broker or webhook, or why there is none.
fn report_peers(answers: impl IntoIterator<Item = (String, anyhow::Result<String>)>) -> CommandResult {
    let mut result = Ok(());
    for (peer, answer) in answers {
        let text = answer.unwrap_or_else(|error| {
            result = Err(Exit::Unreachable);
            format!("{error:#}")
        });
        print_message(&format!("{peer}: {text}"));
    }
    result
}

/// Prints an error with its causes.
fn failed(error: anyhow::Error) -> Exit {
    print_message(&format!("dtorrent: {error:#}"));
    Exit::Failed
}

/// Starts the runtime of a command that does one thing after the other.
fn start_runtime() -> Result<Runtime, Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("start the runtime").map_err(failed)
}
