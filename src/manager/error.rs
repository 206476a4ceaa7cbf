//! What can go wrong, by what the caller can do about it.

use crate::model::{CommandError, InfoHash, InvalidServerName, ServerName};
use crate::port::{ClientError, StoreError};

/// A manager could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    #[error(transparent)]
    Name(#[from] InvalidServerName),
    /// There is nothing to watch.
    #[error("no server was given")]
    NoServer,
    #[error("server {0} was given twice")]
    Twice(ServerName),
    /// What was said of a server is wrong; nobody was asked yet.
    #[error("set up server {server}")]
    Server { server: ServerName, source: Box<dyn std::error::Error + Send + Sync> },
    /// The state cannot be opened: another process uses the folder, for one.
    #[error("open the state")]
    Store(#[from] StoreError),
}

/// Something asked of a manager was not done, or cannot be known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManagerError {
    #[error("there is no server `{}`", .0.escape_default())]
    UnknownServer(String),
    #[error("no server has torrent {0}")]
    UnknownHash(InfoHash),
    /// Name the server that is meant, with [`Manager::watcher`](super::Manager::watcher).
    #[error("torrent {hash} is on several servers: {}", names(servers))]
    Ambiguous { hash: InfoHash, servers: Vec<ServerName> },
    /// The server has not shown yet what it has. The manager tries on.
    #[error("server {server} does not answer: {reason}")]
    Offline { server: ServerName, reason: String },
    /// A command was refused or has failed; its code says how, and whether to try again.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A question was not answered.
    #[error("ask the client")]
    Client(#[from] ClientError),
    /// The manager was shut down or dropped, or its state is lost. A command may still have been carried out.
    #[error("the manager has stopped")]
    Stopped,
}

fn names(servers: &[ServerName]) -> String {
    servers.iter().map(ServerName::as_str).collect::<Vec<_>>().join(", ")
}
