//! Errors of a manager, by what the caller can do about them.

use crate::model::{CommandError, InfoHash, InvalidServerName, ServerName};
use crate::port::{ClientError, StoreError};

/// A manager could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A name has other characters than a-z, 0-9, `_` and `-`.
    #[error(transparent)]
    Name(#[from] InvalidServerName),
    /// The builder has no server.
    #[error("no server was given")]
    NoServer,
    /// Two servers have the same name.
    #[error("server {0} was given twice")]
    Twice(ServerName),
    /// The settings of a server are wrong; its client was not asked yet.
    #[error("set up server {server}")]
    Server { server: ServerName, source: Box<dyn std::error::Error + Send + Sync> },
    /// The state cannot be opened: another process uses the directory, for one.
    #[error("open the state")]
    Store(#[from] StoreError),
}

/// A request to a manager failed, or its outcome is unknown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManagerError {
    /// No server has this name.
    #[error("there is no server `{}`", .0.escape_default())]
    UnknownServer(String),
    /// No server has this torrent.
    #[error("no server has torrent {0}")]
    UnknownHash(InfoHash),
    /// Several servers have this torrent. Name the one that is meant, with [`Manager::watcher`](super::Manager::watcher).
    #[error("torrent {hash} is on several servers: {}", names(servers))]
    Ambiguous { hash: InfoHash, servers: Vec<ServerName> },
    /// The server has not answered a full poll yet. The manager retries.
    #[error("server {server} does not answer: {reason}")]
    Offline { server: ServerName, reason: String },
    /// A command was refused or has failed; the error says why, and whether to retry.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The client did not answer a read.
    #[error("ask the client")]
    Client(#[from] ClientError),
    /// The manager was shut down or dropped, or its state is lost. A command may still have been executed.
    #[error("the manager has stopped")]
    Stopped,
}

fn names(servers: &[ServerName]) -> String {
    servers.iter().map(ServerName::as_str).collect::<Vec<_>>().join(", ")
}
