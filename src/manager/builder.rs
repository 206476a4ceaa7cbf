//! The builder of a manager.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use secrecy::SecretString;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::{BuildError, Manager, Shared};
use crate::clients::exec::{self, ExecClient};
use crate::clients::rtorrent::RtorrentClient;
use crate::clients::rtorrent::settings::{Endpoint, Settings};
use crate::clients::settings::DEFAULT_TIMEOUT;
use crate::commands::{Admission, Caller, CommandMemory, Common, Queue, Sources, answer_for_removed_servers};
use crate::live_state::LiveState;
use crate::model::{PollSettings, ServerName, SinkName, TrackerNames, UrlRules};
use crate::port::{Clock, Store, StoreError, SystemClock, TorrentClient};
use crate::servers::{ServerParts, load};
use crate::store::{MemoryStore, Options};
use crate::supervise::{Group, spawn_detached};
use crate::watch::Watcher;

/// The origin of the manager's commands in the command log.
const ORIGIN: &str = "library";
/// Budget of a journal in memory; half of it is kept for late readers.
const MEMORY_JOURNAL_BYTES: u64 = 64 << 20;
/// Maximum time for the tasks of each side to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The settings of a manager. See [`Manager::builder`].
#[must_use = "nothing is monitored before `build`"]
pub struct Builder {
    servers: Vec<(String, Server)>,
    state: State,
    patience: Duration,
    journal_bytes: Option<u64>,
}

impl Default for Builder {
    fn default() -> Self {
        let patience = Duration::from_secs(60);
        Self { servers: Vec::new(), state: State::Memory, patience, journal_bytes: None }
    }
}

/// Where snapshots, journal and command log are kept.
enum State {
    Memory,
    #[cfg(feature = "sqlite")]
    Folder(PathBuf),
}

/// A server to monitor: its address, and how often it is polled.
///
/// Made from any [`TorrentClient`], or for one of the built-in kinds.
#[must_use = "give it to a builder"]
pub struct Server {
    client: Client,
    poll: PollSettings,
    timeout: Duration,
    roots: Vec<PathBuf>,
    urls: UrlRules,
}

enum Client {
    Ready(Arc<dyn TorrentClient>),
    Rtorrent { url: String, login: Option<(String, SecretString)> },
    Exec { command: Vec<String> },
}

impl<C: TorrentClient + 'static> From<Arc<C>> for Server {
    fn from(client: Arc<C>) -> Self {
        Self::of(Client::Ready(client))
    }
}

impl From<Arc<dyn TorrentClient>> for Server {
    fn from(client: Arc<dyn TorrentClient>) -> Self {
        Self::of(Client::Ready(client))
    }
}

impl Server {
    /// Returns a server with a client of your own.
    pub fn new(client: impl TorrentClient + 'static) -> Self {
        Self::of(Client::Ready(Arc::new(client)))
    }

    /// Returns a server that is an rTorrent, at `unix:///path/to/rpc.sock`, `scgi://host:5000` or `http(s)://host/RPC2`.
    ///
    /// For further settings (a CA, further columns) make an [`RtorrentClient`] and pass it to [`Server::new`].
    pub fn rtorrent(url: impl Into<String>) -> Self {
        Self::of(Client::Rtorrent { url: url.into(), login: None })
    }

    /// Returns a server behind a program in any language; see [`crate::clients::exec`].
    pub fn exec<T: Into<String>>(command: impl IntoIterator<Item = T>) -> Self {
        Self::of(Client::Exec { command: command.into_iter().map(Into::into).collect() })
    }

    fn of(client: Client) -> Self {
        Self {
            client,
            poll: PollSettings::DEFAULT,
            timeout: DEFAULT_TIMEOUT,
            roots: Vec::new(),
            urls: UrlRules::default(),
        }
    }

    /// Sets user and password for an rTorrent behind http(s); other clients have none.
    pub fn login(mut self, username: impl Into<String>, password: impl Into<SecretString>) -> Self {
        if let Client::Rtorrent { login, .. } = &mut self.client {
            *login = Some((username.into(), password.into()));
        }
        self
    }

    /// Sets the interval of polls: a second by default; shorter than 100 ms has no effect.
    pub fn interval(self, interval: Duration) -> Self {
        Self { poll: PollSettings { interval, ..self.poll }, ..self }
    }

    /// Sets the maximum time between two full polls: half a minute by default.
    pub fn sweep(self, sweep: Duration) -> Self {
        Self { poll: PollSettings { full_interval: sweep, ..self.poll }, ..self }
    }

    /// Sets the timeout of a request to a built-in client: ten seconds by default.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Sets the only directories that files may be read from, moved to and deleted in. Without any, no command may name
    /// a path.
    pub fn roots(self, roots: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self { roots: roots.into_iter().map(Into::into).collect(), ..self }
    }

    /// Sets where links to .torrent files may lead. Without rules, everywhere but to the metadata services of clouds.
    pub fn add_urls(self, urls: UrlRules) -> Self {
        Self { urls, ..self }
    }
}

impl Builder {
    /// Adds a server. Its name has the characters a-z, 0-9, `_` and `-`.
    pub fn server(mut self, name: impl Into<String>, server: impl Into<Server>) -> Self {
        self.servers.push((name.into(), server.into()));
        self
    }

    /// Keeps the state in this directory, which is created if it is missing and belongs to one process.
    #[cfg(feature = "sqlite")]
    pub fn data_dir(self, folder: impl Into<PathBuf>) -> Self {
        Self { state: State::Folder(folder.into()), ..self }
    }

    /// Sets the time to live of commands, for which they wait for an unreachable client: a minute by default.
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Sets the budget of the journal, in bytes; an event has about a thousand. By default 64 MiB in memory and 256 MiB on
    /// disk. Half of it is kept for late readers.
    pub fn journal_bytes(self, journal_bytes: u64) -> Self {
        Self { journal_bytes: Some(journal_bytes), ..self }
    }

    /// Builds the manager and starts its tasks. An unreachable client is no error: the manager retries, and emits
    /// `server_online` when it answers.
    ///
    /// # Errors
    /// The settings of a server are wrong, or the state cannot be opened.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn build(self) -> Result<Manager, BuildError> {
        let Self { servers, state, patience, journal_bytes } = self;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        // Before any client or link needs one, and only here: a library user may have chosen another.
        ensure_tls_provider();
        let servers = named(servers)?;
        let origin = SinkName::parse(ORIGIN)?;
        let Opened { store, close, is_state_lost } = match state {
            State::Memory => in_memory(journal_bytes, &clock),
            #[cfg(feature = "sqlite")]
            State::Folder(folder) => in_folder(folder, journal_bytes, &origin, &clock).await?,
        };
        let mut contents = BTreeMap::new();
        for name in servers.keys() {
            contents.insert(name.clone(), load(&*store, name).await?);
        }
        let begun = contents.iter().map(|(name, content)| (name.clone(), content.last_seq)).collect();
        let live = Arc::new(LiveState::new(contents, [origin.clone()]));
        let common = Common { store, live, clock };
        let memory = Arc::new(CommandMemory::default());
        let known = servers.keys().cloned().collect();
        // A caller in this process sees announce URLs whole, so no name has to stay the same.
        let names = TrackerNames::new(rand::random());
        let (mut left, mut queues, mut clients) = (Group::new(), BTreeMap::new(), BTreeMap::new());
        for (name, Server { client, poll, timeout, roots, urls }) in servers {
            let client = connect(client, &name, timeout)
                .map_err(|source| BuildError::Server { server: name.clone(), source })?;
            clients.insert(name.clone(), Arc::clone(&client));
            let watcher = Watcher {
                server: name.clone(),
                poll: PollSettings::new(poll.interval, poll.full_interval),
                client,
                common: common.clone(),
                pending_effects: Arc::default(),
                files: Arc::default(),
                is_state_lost,
            };
            let parts = ServerParts::build(watcher, Sources::new(roots, urls), names.clone(), &memory).await?;
            parts.spawn(&mut left);
            queues.insert(name.clone(), Arc::clone(&parts.queue));
        }
        answer_for_removed_servers(&common, &known).await?;
        let admission = Admission {
            origin,
            // `Since` replays events, and there is no bridge to be commanded.
            allows: Box::new(|verb| verb != "resync"),
            reply_prefixes: Vec::new(),
            queues,
            bridge: Arc::new(Queue::new(memory)),
            common: common.clone(),
        };
        let caller = Arc::new(Caller::new(admission));
        let called = Arc::clone(&caller);
        left.spawn("commands".to_owned(), move |stop| Arc::clone(&called).run(stop));
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            live: common.live,
            store: common.store,
            caller,
            clients,
            begun,
            patience,
            listeners: Mutex::new(Some(Group::new())),
            stop: stop.clone(),
            events_ended: CancellationToken::new(),
        });
        let (sender, ended) = watch::channel(None);
        let kept = Arc::clone(&shared);
        spawn_detached("manager", async move {
            let result = keep(left, &kept, close).await.map_err(Arc::new);
            let _nobody_waits = sender.send(Some(result)).is_err();
        });
        Ok(Manager { shared, ended, _stop: stop.drop_guard() })
    }
}

/// Stays with the tasks until the manager stops or the store is lost, and then ends them from the left to the right.
async fn keep(mut left: Group, shared: &Shared, close: Close) -> Result<(), StoreError> {
    let ended = tokio::select! {
        biased;
        () = shared.stop.cancelled() => Ok(()),
        error = left.failed() => {
            error!(error = &error as &dyn std::error::Error, "the state is lost, and nothing is watched any more");
            Err(error)
        }
    };
    // Also after a loss, so that those who wait for a result learn that none will come.
    shared.stop.cancel();
    // Watchers first: the listeners get the events of the last polls.
    let left = left.stop(STOP_TIMEOUT).await;
    shared.events_ended.cancel();
    let listeners = shared.listeners().take();
    let right = match listeners {
        Some(listeners) => listeners.stop(STOP_TIMEOUT).await,
        None => Ok(()),
    };
    let closed = match close.await {
        // With a full disk only the clean-up fails; what was committed stays.
        Err(StoreError::Full { .. }) => Ok(()),
        closed => closed,
    };
    ended.and(left).and(right).and(closed)
}

fn named(servers: Vec<(String, Server)>) -> Result<BTreeMap<ServerName, Server>, BuildError> {
    let mut named = BTreeMap::new();
    for (name, server) in servers {
        let name = ServerName::parse(&name)?;
        if named.insert(name.clone(), server).is_some() {
            return Err(BuildError::Twice(name));
        }
    }
    if named.is_empty() { Err(BuildError::NoServer) } else { Ok(named) }
}

type Close = BoxFuture<'static, Result<(), StoreError>>;

/// A store that was opened.
struct Opened {
    store: Arc<dyn Store>,
    /// Closes it.
    close: Close,
    /// Whether an earlier state was lost.
    is_state_lost: bool,
}

fn in_memory(journal_bytes: Option<u64>, clock: &Arc<dyn Clock>) -> Opened {
    let journal_bytes_max = journal_bytes.unwrap_or(MEMORY_JOURNAL_BYTES);
    let store = MemoryStore::new(Options { journal_bytes_max, ..Options::default() }, Arc::clone(clock));
    Opened { store: Arc::new(store), close: Box::pin(async { Ok(()) }), is_state_lost: false }
}

#[cfg(feature = "sqlite")]
async fn in_folder(
    folder: PathBuf,
    journal_bytes: Option<u64>,
    origin: &SinkName,
    clock: &Arc<dyn Clock>,
) -> Result<Opened, StoreError> {
    use crate::port::CommandLog as _;
    use crate::store::SqliteStore;

    let mut options = Options::default();
    options.journal_bytes_max = journal_bytes.unwrap_or(options.journal_bytes_max);
    let clock = Arc::clone(clock);
    let opened = tokio::task::spawn_blocking(move || SqliteStore::open(&folder, options, clock)).await;
    let (store, recovery) = opened.map_err(|error| StoreError::Io(error.into()))??;
    store.declare_sinks(&BTreeMap::from([(origin.clone(), Vec::new())])).await?;
    store.end_earlier_run(recovery.was_clean).await?;
    let store = Arc::new(store);
    let closed = Arc::clone(&store);
    Ok(Opened { store, close: Box::pin(async move { closed.close().await }), is_state_lost: recovery.lost })
}

fn connect(
    client: Client,
    name: &ServerName,
    timeout: Duration,
) -> Result<Arc<dyn TorrentClient>, Box<dyn std::error::Error + Send + Sync>> {
    Ok(match client {
        Client::Ready(client) => client,
        Client::Rtorrent { url, login } => {
            let (username, password) = login.unzip();
            let settings = Settings::new(name.clone(), Endpoint::parse(&url)?);
            Arc::new(RtorrentClient::new(Settings { username, password, timeout, ..settings })?)
        }
        Client::Exec { command } if command.is_empty() => return Err("a program is missing".into()),
        Client::Exec { command } => Arc::new(ExecClient::new(exec::Settings {
            server: name.clone(),
            command,
            environment: Vec::new(),
            timeout,
        })),
    })
}

/// Installs a TLS provider for the process, if it has none: links are fetched over TLS.
fn ensure_tls_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Fails only if another thread was faster, and then there is one.
        let _is_installed = rustls::crypto::ring::default_provider().install_default().is_err();
    }
}
