//! Access to a server for one command: the config, the client, a manager in memory.

use std::ffi::OsStr;
use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::runtime::Runtime;

use crate::app;
use crate::cli::{Exit, Options, failed, print_message, usage};
use crate::config::{Config, Log};
use crate::manager::{Manager, ManagerError, Server, Watcher};
use crate::model::{ErrorCode, ServerName, Torrent, error_chain, known_names};
use crate::port::ClientError;
use crate::telemetry::{self, Audit};

/// Maximum poll interval: a person waits for the effect.
const INTERVAL_MAX: Duration = Duration::from_millis(250);
/// Delay before work in progress is shown.
const SPINNER_DELAY: Duration = Duration::from_millis(400);

/// The option `--server`.
#[derive(Clone, Debug, Args)]
pub struct ServerChoice {
    /// Select the server; its name may also come before all other arguments. Optional if there is only one
    #[arg(long, short, value_name = "NAME")]
    pub server: Option<String>,
}

/// A loaded config and a runtime.
pub struct Session {
    /// The loaded config.
    pub config: Config,
    runtime: Runtime,
}

impl Session {
    /// Loads the config and starts the log, with errors only unless the command line sets a level.
    pub fn start(options: Options) -> Result<Self, Exit> {
        let wants_log = options.log_level.is_some();
        let config = options.load_or_report()?;
        let level = if wants_log { config.log.level } else { Some(tracing::Level::ERROR) };
        telemetry::start(Log { level, ..config.log }, Audit::ByLevel).map_err(failed)?;
        // A worker thread for the tasks of the manager, because a confirmation on stdin blocks the calling thread.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|error| failed(anyhow::Error::new(error).context("start the runtime")))?;
        Ok(Self { config, runtime })
    }

    /// Runs a future to its end.
    pub fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Returns the servers with these names; all of them, if `names` is empty.
    pub fn servers(&self, names: &[String]) -> Result<Vec<ServerName>, Exit> {
        if names.is_empty() {
            return Ok(self.config.servers.keys().cloned().collect());
        }
        let find = |name: &String| self.named(name).ok_or_else(|| self.unknown(name));
        names.iter().map(find).collect()
    }

    /// Returns the server to use, and the arguments without its name, which may come first.
    pub fn server<T: AsRef<OsStr>>(
        &self,
        choice: &ServerChoice,
        mut rest: Vec<T>,
    ) -> Result<(ServerName, Vec<T>), Exit> {
        if let Some(name) = &choice.server {
            return self.named(name).map(|server| (server, rest)).ok_or_else(|| self.unknown(name));
        }
        if let Some(server) = rest.first().and_then(|first| self.named(first.as_ref().to_str()?)) {
            rest.remove(0);
            return Ok((server, rest));
        }
        let mut servers = self.config.servers.keys();
        match (servers.next(), servers.next()) {
            (Some(only), None) => Ok((only.clone(), rest)),
            _ => Err(usage(&format!("several servers; put one first or set --server: {}", self.names()))),
        }
    }

    fn named(&self, name: &str) -> Option<ServerName> {
        self.config.servers.keys().find(|server| server.as_str() == name).cloned()
    }

    fn names(&self) -> String {
        self.config.servers.keys().map(ServerName::as_str).collect::<Vec<_>>().join(", ")
    }

    fn unknown(&self, name: &str) -> Exit {
        let known = known_names(name, self.config.servers.keys().map(ServerName::as_str));
        usage(&format!("unknown server `{name}`; {known}"))
    }

    /// Starts to monitor these servers, in memory.
    pub async fn watch(&self, servers: &[ServerName]) -> Result<Manager, Exit> {
        let mut builder = Manager::builder();
        for (name, server) in self.config.servers.iter().filter(|(name, _)| servers.contains(name)) {
            let client =
                app::client(&server.client).with_context(|| format!("set up server {name}")).map_err(failed)?;
            let watched = Server::from(Arc::clone(&client)).interval(server.poll.interval.min(INTERVAL_MAX));
            let watched = watched.sweep(server.poll.full_interval).roots(server.roots.clone());
            builder = builder.server(name.as_str(), watched.add_urls(self.config.add_urls.clone()));
        }
        builder.build().await.map_err(|error| failed(error.into()))
    }

    /// Connects to one server. Returns the manager with it, and its torrents.
    pub async fn reach(&self, server: &ServerName) -> Result<(Manager, Watcher, Vec<Torrent>), Exit> {
        let manager = self.watch(std::slice::from_ref(server)).await?;
        let watcher = manager.watcher(server.as_str()).expect("the manager was built with this server");
        let torrents = with_spinner(&format!("reading {server}"), watcher.get_all())
            .await
            .map_err(|error| report_error(&error))?;
        Ok((manager, watcher, torrents))
    }
}

/// Prints an error with its causes, and returns its exit code.
pub fn report_error(error: &ManagerError) -> Exit {
    print_message(&error_chain(error));
    match error {
        ManagerError::Offline { .. } => Exit::Unreachable,
        ManagerError::Client(error) => exit_for_client_error(error),
        ManagerError::Command(error) => exit_for_code(error.code),
        _ => Exit::Failed,
    }
}

/// Returns the exit code for an error of a client.
pub fn exit_for_client_error(error: &ClientError) -> Exit {
    match error {
        ClientError::Unreachable { .. } | ClientError::Timeout { .. } => Exit::Unreachable,
        _ => Exit::Failed,
    }
}

/// Returns the exit code for the error of a command's result.
pub fn exit_for_code(code: ErrorCode) -> Exit {
    match code {
        ErrorCode::ClientOffline => Exit::Unreachable,
        ErrorCode::BadRequest => Exit::Usage,
        _ => Exit::Failed,
    }
}

/// Shows a spinner on a terminal while work takes longer than [`SPINNER_DELAY`].
pub async fn with_spinner<T>(what: &str, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    // A spinner that appears for an instant only flickers.
    if let Ok(done) = tokio::time::timeout(SPINNER_DELAY, &mut work).await {
        return done;
    }
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    let done = work.await;
    spinner.finish_and_clear();
    done
}

/// Returns a progress bar for bytes; hidden if stderr is not a terminal.
pub fn bytes_bar(what: &str, total: u64) -> ProgressBar {
    let template = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(total).with_style(style).with_message(what.to_owned())
}

/// Returns whether a person can be asked.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}
