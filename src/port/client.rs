//! The seam to torrent clients.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use crate::model::{Action, Content, Details, Hook, HookKey, InfoHash, Limits, Listing, Parts, Verb};

/// The adapter of one torrent program.
///
/// An implementation has at most one exchange in progress, ends each within a deadline of its own, and is
/// shared by the watcher and the worker of its server. It classifies failures and never retries: whether
/// and when to try again is the engine's decision.
#[async_trait]
pub trait TorrentClient: Send + Sync {
    /// Reads all torrents, or at least those that may have changed since the last call.
    ///
    /// A client asked for changes may always answer with everything. It has to when it cannot know what
    /// changed: after a failure, in another run, when torrents came or went.
    ///
    /// # Errors
    /// An answer that cannot be trusted as a whole is an error, never a short listing.
    async fn list(&self, scope: Scope<'_>) -> Result<Listing, ClientError>;

    /// Reads torrents as they are now, in the order of `hashes`; `None` stands for one that the client
    /// does not have. A part that was not requested may be left out.
    ///
    /// # Errors
    /// The first failure that concerns more than one torrent ends the call.
    async fn get(&self, hashes: &[InfoHash], parts: Parts) -> Result<Vec<Option<Details>>, ClientError>;

    /// Returns where the content of a torrent is, byte for byte; `None` if the client does not have the torrent.
    ///
    /// Files are deleted and moved by it, so a path that may not be exact must not be returned. This default is for
    /// clients whose text is exact.
    ///
    /// # Errors
    /// [`ClientError::Precondition`] if the exact paths are not known, with the reason.
    async fn content(&self, hash: InfoHash) -> Result<Option<Content>, ClientError> {
        let parts = Parts { torrent: true, files: true, ..Parts::default() };
        let Some(details) = self.get(&[hash], parts).await?.pop().flatten() else { return Ok(None) };
        let unknown =
            || ClientError::Precondition { reason: "the client does not say where its content is".to_owned() };
        Content::of_details(&details).map(Some).ok_or_else(unknown)
    }

    /// Returns the absolute path of the directory to which a torrent is added without one; `None` if it is not known.
    ///
    /// Files in that directory are checked before a torrent is added. The default is for clients that do not say.
    ///
    /// # Errors
    /// As [`TorrentClient::get`].
    async fn default_directory(&self) -> Result<Option<String>, ClientError> {
        Ok(None)
    }

    /// Checks what can be said of an action before it is requested, for a dry run; `apply` refuses the same.
    ///
    /// # Errors
    /// Why the client would not carry it out.
    async fn check(&self, _action: &Action) -> Result<(), ClientError> {
        Ok(())
    }

    /// Requests `actions`, with as few exchanges as the client allows, and returns one result for each,
    /// in their order. Only a later poll shows whether an action took effect.
    ///
    /// Requesting what is already so is no error. An action that the client must not be asked for at the
    /// moment is [`ClientError::Busy`]: nothing was sent for it, and the engine asks again later.
    async fn apply(&self, actions: &[Action]) -> Vec<Result<Applied, ClientError>>;

    /// Returns what this client can do. The answer may not change while the client exists.
    fn capabilities(&self) -> Capabilities<'_>;
}

impl dyn TorrentClient + '_ {
    /// Reads one torrent as it is now; `None` if the client does not have it.
    ///
    /// # Errors
    /// As [`TorrentClient::get`].
    pub async fn get_one(&self, hash: InfoHash, parts: Parts) -> Result<Option<Details>, ClientError> {
        Ok(self.get(&[hash], parts).await?.pop().flatten())
    }

    /// Requests one action.
    ///
    /// # Errors
    /// As [`TorrentClient::apply`]; an adapter that returns no result at all is a protocol error.
    pub async fn apply_one(&self, action: &Action) -> Result<Applied, ClientError> {
        // An external adapter may answer with fewer results than actions; that is no success.
        let missing = || Err(ClientError::Protocol { reason: "the adapter returned no result".to_owned() });
        self.apply(std::slice::from_ref(action)).await.pop().unwrap_or_else(missing)
    }
}

/// The functions of a client besides listing and reading torrents.
#[derive(Clone, Copy, Default)]
#[non_exhaustive]
pub struct Capabilities<'a> {
    /// The verbs whose actions [`TorrentClient::apply`] carries out.
    pub verbs: &'a [Verb],
    /// Control over the program as a whole.
    pub server: Option<&'a dyn ServerControl>,
    /// Notification of the bridge by the program itself.
    pub hooks: Option<&'a dyn EventHooks>,
}

impl<'a> Capabilities<'a> {
    /// The verbs of a client that acts on torrents as a whole: no move of content, throttle group or single file.
    pub const WHOLE_TORRENTS: &'static [Verb] = &[
        Verb::Pause,
        Verb::Resume,
        Verb::Start,
        Verb::Stop,
        Verb::Delete,
        Verb::Add,
        Verb::Recheck,
        Verb::Announce,
        Verb::Label,
        Verb::Priority,
    ];

    /// Capabilities of a client that acts on torrents only.
    pub fn of_verbs(verbs: &'a [Verb]) -> Self {
        Self { verbs, ..Self::default() }
    }
}

/// Control over a torrent program as a whole, for clients that have it.
#[async_trait]
pub trait ServerControl: Send + Sync {
    /// Checks limits as [`set_limits`](Self::set_limits) does before it asks the client.
    ///
    /// # Errors
    /// [`ClientError::Precondition`] for a limit that the client cannot keep.
    fn check_limits(&self, limits: Limits) -> Result<(), ClientError>;

    /// Sets the rate limits of all torrents together, and reads them back.
    ///
    /// # Errors
    /// Those of [`check_limits`](Self::check_limits); a limit that reads back differently is a fault.
    async fn set_limits(&self, limits: Limits) -> Result<(), ClientError>;

    /// Checks a call as [`call`](Self::call) does before it asks the client.
    ///
    /// # Errors
    /// [`ClientError::Unauthorized`] for a method that the config does not list, [`ClientError::Precondition`] for parameters
    /// that would do harm.
    fn check_call(&self, method: &str, params: &[Value]) -> Result<(), ClientError>;

    /// Calls one of the program's own methods.
    ///
    /// # Errors
    /// Those of [`check_call`](Self::check_call), and what the client says.
    async fn call(&self, method: &str, params: &[Value]) -> Result<Value, ClientError>;
}

/// Hooks in a torrent program that notify the bridge, for clients that have them.
#[async_trait]
pub trait EventHooks: Send + Sync {
    /// Installs, removes or inspects the hooks, and returns how they are afterwards.
    ///
    /// Hooks that are already as requested are not sent again.
    async fn hooks(&self, request: HookRequest<'_>) -> Result<Hooks, ClientError>;
}

/// Which torrents a listing has to show.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Scope<'a> {
    /// Every torrent of the client.
    Full,
    /// Every torrent as well, but not for the poll loop: no later listing of changes is compared with this one, because
    /// the poll loop has not seen what it showed.
    Detached,
    /// Torrents that move bytes or have changed their state, as far as the client can tell cheaply.
    Changed {
        /// Torrents that the listing has to show in any case.
        named: &'a BTreeSet<InfoHash>,
    },
}

/// How far an action got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Applied {
    /// The client was asked; the next polls show whether it took effect.
    Asked,
    /// The client was read again and showed the effect. For effects that a poll may miss
    /// (a re-check that is over at once, an announce).
    Seen,
}

/// A request about the bridge's hooks in a client.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum HookRequest<'a> {
    /// Report the hooks under this key and change nothing.
    Inspect(&'a HookKey),
    /// Notify this address, and no other under the same key.
    Install(&'a Hook),
    /// Remove the hooks under this key.
    Remove(&'a HookKey),
}

/// The bridge's hooks in a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hooks {
    /// Events with a hook of the bridge, by the client's names.
    pub installed: Vec<&'static str>,
    /// Events that are not touched, because somebody else's hook there makes a change dangerous.
    pub skipped: Vec<&'static str>,
    /// Number of events that this request changed.
    pub changed: usize,
}

/// A failure of a torrent client, by what the engine can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nothing answers at the address, so nothing was asked.
    #[error("cannot reach {address}")]
    Unreachable {
        /// The configured address or program, without credentials.
        address: String,
        /// The failed attempt to connect.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer did not end in time. The request may have been carried out all the same.
    #[error("no complete answer within {limit:?}")]
    Timeout {
        /// Time allowed for the whole exchange.
        limit: Duration,
    },
    /// The request was sent, and the connection broke, or something in between answered instead of the client. The
    /// request may have been carried out all the same.
    #[error("the answer was lost: {reason}")]
    Broken {
        /// The point at which it was lost, and what to check if that happens again.
        reason: String,
    },
    /// The credentials are wrong, or the config does not allow the request.
    #[error("access denied: {reason}")]
    Unauthorized {
        /// The refusal, and what to check.
        reason: String,
    },
    /// The answer is not one that a client of this kind gives; nothing of it is used.
    #[error("answer not understood: {reason}")]
    Protocol {
        /// The fault of the answer.
        reason: String,
    },
    /// The client refused.
    #[error("the client refused: {message}")]
    Fault {
        /// The client's own message, made printable.
        message: String,
    },
    /// The client has no such torrent.
    #[error("the client has no torrent {0}")]
    UnknownHash(InfoHash),
    /// The request does not fit the torrent's present state.
    #[error("{reason}")]
    Precondition {
        /// The condition that is not met.
        reason: String,
    },
    /// The client must not be asked for this now, and may be later; nothing was asked.
    #[error("{reason}")]
    Busy {
        /// The activity that has to end first.
        reason: String,
    },
    /// This kind of client has no such function.
    #[error("this client cannot {what}")]
    Unsupported {
        /// The missing function, as a verb phrase.
        what: String,
    },
}

impl ClientError {
    /// Whether the client may have carried out the request, though there is no answer that says so.
    pub fn leaves_outcome_open(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Broken { .. })
    }
}
