//! The seam to torrent clients.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use crate::model::{Action, Details, File, Hook, HookKey, InfoHash, Limits, Listing, Parts};

/// One torrent program, as the engine sees it.
///
/// An implementation keeps at most one exchange under way, ends each within its own deadline, and
/// is shared by a watcher and a worker.
#[async_trait]
pub trait TorrentClient: Send + Sync {
    /// Reads all torrents, or those that may have changed since the last call.
    ///
    /// A client asked for changes may always answer with all, and has to when it cannot know what
    /// changed: after a failure, in another run, when torrents came or went.
    ///
    /// # Errors
    /// An answer that cannot be trusted as a whole is an error, never a short listing.
    async fn list(&self, scope: Scope<'_>) -> Result<Listing, ClientError>;

    /// Reads one torrent as it is now; `None` if the client has no such torrent.
    async fn get(&self, hash: InfoHash, parts: Parts) -> Result<Option<Details>, ClientError>;

    /// Reads the files of one torrent; `None` if the client has no such torrent.
    ///
    /// For clients to which that is less than everything about it.
    async fn files(&self, hash: InfoHash) -> Result<Option<Vec<File>>, ClientError> {
        let parts = Parts { files: true, ..Parts::default() };
        Ok(self.get(hash, parts).await?.map(|details| details.files.unwrap_or_default()))
    }

    /// Asks for `action`. Whether it took effect is for the next look to show.
    ///
    /// Safe to call for what is already so. Waits, within its deadline, for what the client must
    /// not be asked at the moment.
    ///
    /// # Errors
    /// [`ClientError::Busy`] if that takes longer: nothing was asked then.
    async fn apply(&self, action: &Action) -> Result<Applied, ClientError>;

    /// Asks for several actions, with as few exchanges as it can; for each its answer.
    ///
    /// Does not wait for what must not be asked now: that is busy.
    async fn apply_all(&self, actions: &[Action]) -> Vec<Result<Applied, ClientError>> {
        let mut answers = Vec::with_capacity(actions.len());
        for action in actions {
            answers.push(self.apply(action).await);
        }
        answers
    }

    /// Reads several torrents, with as few exchanges as it can; `None` for one that it does not have.
    async fn get_all(&self, hashes: &[InfoHash], parts: Parts) -> Result<Vec<Option<Details>>, ClientError> {
        let mut found = Vec::with_capacity(hashes.len());
        for hash in hashes {
            found.push(self.get(*hash, parts).await?);
        }
        Ok(found)
    }

    /// Sets the limits of all torrents together, and reads them back.
    async fn set_limits(&self, _limits: Limits) -> Result<(), ClientError> {
        Err(ClientError::Unsupported { what: "limit its rates".to_owned() })
    }

    /// Calls one of the methods that its config allows.
    async fn call(&self, _method: &str, _params: &[Value]) -> Result<Value, ClientError> {
        Err(ClientError::Unsupported { what: "be called in its own words".to_owned() })
    }

    /// Has the client ring a bell of ours when something happens in it, or leave off; says how it is then.
    ///
    /// What is so already is not asked for again. A client that has no such thing needs not know of it.
    async fn hooks(&self, _wish: HookRequest<'_>) -> Result<Hooks, ClientError> {
        Err(ClientError::Unsupported { what: "tell of events by itself".to_owned() })
    }
}

/// What a look is to show.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Scope<'a> {
    Full,
    /// At least what moves or has changed its state, as far as the client can tell cheaply, and these.
    Changed {
        named: &'a BTreeSet<InfoHash>,
    },
}

/// How far an action got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Applied {
    /// Asked for; the effect is to be looked for in the listing.
    Asked,
    /// The client was read again and showed the effect, which a listing may never show
    /// (a re-check that is over at once, an announce).
    Seen,
}

/// What is to become of our hooks in a client.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum HookRequest<'a> {
    /// Only say how it is.
    Look(&'a HookKey),
    /// Ring there from now on, and nowhere else by this key.
    Set(&'a Hook),
    /// Ring no more.
    Take(&'a HookKey),
}

/// How a client is hooked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hooks {
    /// The events that ring, in the client's words.
    pub ringing: Vec<&'static str>,
    /// The events that must not be touched: what else hangs there makes it dangerous.
    pub left_alone: Vec<&'static str>,
    /// How many were changed just now.
    pub changed: usize,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody answers at the address.
    #[error("cannot reach {address}")]
    Unreachable { address: String, source: Box<dyn std::error::Error + Send + Sync> },
    /// What was asked for may still have been done.
    #[error("no complete answer within {limit:?}")]
    Timeout { limit: Duration },
    #[error("access denied: {reason}")]
    Unauthorized { reason: String },
    /// The answer is not what a client of this kind says; nothing of it is believed.
    #[error("answer not understood: {reason}")]
    Protocol { reason: String },
    /// The client refused, in its own words.
    #[error("the client refused: {message}")]
    Fault { message: String },
    /// The client has no such torrent.
    #[error("the client has no torrent {0}")]
    UnknownHash(InfoHash),
    /// It cannot be done in the torrent's present state; says what would have to be different.
    #[error("{reason}")]
    Precondition { reason: String },
    /// It must not be asked now, and may be later; nothing was asked.
    #[error("{reason}")]
    Busy { reason: String },
    #[error("this client cannot {what}")]
    Unsupported { what: String },
}
