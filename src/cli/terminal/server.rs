//! Reaching a server for one command: the config, the client, a manager in memory.

use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::runtime::Runtime;

use crate::app;
use crate::cli::{Exit, Options, tell};
use crate::config::{Config, Log};
use crate::manager::{Manager, ManagerError, Server, Watcher};
use crate::model::{ErrorCode, ServerName, Torrent, error_chain};
use crate::port::ClientError;
use crate::telemetry;

/// Somebody waits for the effect.
const INTERVAL: Duration = Duration::from_millis(250);
/// What takes longer than this says that it is at work.
const QUIET: Duration = Duration::from_millis(400);

#[derive(Clone, Debug, Args)]
pub struct ServerChoice {
    /// The server that is meant; it can also stand before all else. Not needed if there is only one
    #[arg(long, short, value_name = "NAME")]
    pub server: Option<String>,
}

/// A config and what it takes to ask its servers.
pub struct Session {
    pub config: Config,
    runtime: Runtime,
}

impl Session {
    /// Reads the config. What is logged is only what went wrong, unless the command line wants more.
    pub fn start(options: Options) -> Result<Self, Exit> {
        let wants_log = options.log_level.is_some();
        let config = options.load_or_tell()?.config;
        let level = if wants_log { config.log.level } else { Some(tracing::Level::ERROR) };
        let failed = |error: anyhow::Error| {
            tell(&format!("dtorrent: {error:#}"));
            Exit::Failed
        };
        telemetry::start(Log { level, ..config.log }).map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|error| failed(anyhow::Error::new(error).context("start the runtime")))?;
        Ok(Self { config, runtime })
    }

    pub fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// The servers of these names; all, without any.
    pub fn servers(&self, names: &[String]) -> Result<Vec<ServerName>, Exit> {
        if names.is_empty() {
            return Ok(self.config.servers.keys().cloned().collect());
        }
        let find = |name: &String| self.named(name).ok_or_else(|| self.unknown(name));
        names.iter().map(find).collect()
    }

    /// The one server that is meant, and the other arguments: its name may stand before them.
    pub fn server(&self, choice: &ServerChoice, mut rest: Vec<String>) -> Result<(ServerName, Vec<String>), Exit> {
        if let Some(name) = &choice.server {
            return self.named(name).map(|server| (server, rest)).ok_or_else(|| self.unknown(name));
        }
        if let Some(server) = rest.first().and_then(|first| self.named(first)) {
            rest.remove(0);
            return Ok((server, rest));
        }
        match self.config.servers.keys().collect::<Vec<_>>().as_slice() {
            [only] => Ok(((*only).clone(), rest)),
            several => {
                let names: Vec<&str> = several.iter().map(|name| name.as_str()).collect();
                tell(&format!("which server is meant? One of {} first, or with --server", names.join(", ")));
                Err(Exit::Usage)
            }
        }
    }

    fn named(&self, name: &str) -> Option<ServerName> {
        self.config.servers.keys().find(|server| server.as_str() == name).cloned()
    }

    fn unknown(&self, name: &str) -> Exit {
        let names: Vec<&str> = self.config.servers.keys().map(ServerName::as_str).collect();
        tell(&format!("no server is called `{name}`; there are: {}", names.join(", ")));
        Exit::Usage
    }

    /// Begins to watch these servers, in memory.
    pub async fn watch(&self, servers: &[ServerName]) -> Result<Manager, Exit> {
        let mut builder = Manager::builder();
        for (name, server) in self.config.servers.iter().filter(|(name, _)| servers.contains(name)) {
            let client =
                app::client(&server.client).map_err(|error| fail(&format!("set up server {name}: {error:#}")))?;
            let watched = Server::from(Arc::clone(&client)).interval(server.interval.min(INTERVAL));
            builder = builder.server(name.as_str(), watched.sweep(server.sweep).roots(server.roots.clone()));
        }
        builder.build().await.map_err(|error| fail(&format!("{:#}", anyhow::Error::new(error))))
    }

    /// A manager of one server that has shown what it has, and that.
    pub async fn reach(&self, server: &ServerName) -> Result<(Manager, Watcher, Vec<Torrent>), Exit> {
        let manager = self.watch(std::slice::from_ref(server)).await?;
        let watcher = manager.watcher(server.as_str()).expect("it was just given");
        let torrents =
            at_work(&format!("reading {server}"), watcher.get_all()).await.map_err(|error| tell_of(&error))?;
        Ok((manager, watcher, torrents))
    }
}

fn fail(text: &str) -> Exit {
    tell(text);
    Exit::Failed
}

/// Says what went wrong, and what that makes of the program.
pub fn tell_of(error: &ManagerError) -> Exit {
    tell(&error_chain(error));
    match error {
        ManagerError::Offline { .. } => Exit::Unreachable,
        ManagerError::Client(error) => exit_of_client(error),
        ManagerError::Command(error) => exit_of_code(error.code),
        _ => Exit::Failed,
    }
}

pub fn exit_of_client(error: &ClientError) -> Exit {
    match error {
        ClientError::Unreachable { .. } | ClientError::Timeout { .. } => Exit::Unreachable,
        _ => Exit::Failed,
    }
}

pub fn exit_of_code(code: ErrorCode) -> Exit {
    match code {
        ErrorCode::ClientOffline => Exit::Unreachable,
        ErrorCode::BadRequest => Exit::Usage,
        _ => Exit::Failed,
    }
}

/// Shows on a terminal that something takes its time.
pub async fn at_work<T>(what: &str, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    if let Ok(done) = tokio::time::timeout(QUIET, &mut work).await {
        return done;
    }
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    let done = work.await;
    spinner.finish_and_clear();
    done
}

/// A bar for bytes; hidden where stderr is no terminal.
pub fn bytes_bar(what: &str, total: u64) -> ProgressBar {
    let template = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style).with_message(what.to_owned())
}

/// Somebody is there to answer.
pub fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}
