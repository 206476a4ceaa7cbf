//! The execution of one command, from the queue to the body of its result.
//!
//! ```text
//! wait for the client ─► query: a fresh poll, or the client's details ─► result
//!   ▲                └─► change: note the start ─► register the effect ─► ask ─► wake the watcher ─► shown? ─► result
//!   └── unreachable, and nothing was asked yet
//! ```
//!
//! The parts: queries in `queries`, changes of torrents in `actions`, those that touch files in `file_operations`.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};

use super::client_turns::ClientTurns;
use super::pending_effects::PendingEffects;
use super::queue::Queue;
use super::request::{HASHES_MAX, Request, Target};
use super::results::ResultBody;
use super::sources::Sources;
use crate::live_state::{LiveServer, LiveState, ServerHandle};
use crate::log_throttle::retry_while_full;
use crate::model::{Action, Capability, CommandError, ErrorCode, InfoHash, Limits, Operation, ServerName};
use crate::port::{ClientError, Clock, LoggedCommand, ServerControl, Store, StoreError, TorrentClient};

/// What the executions of one server share.
pub struct WorkerParts {
    /// The server whose commands are executed.
    pub server: ServerName,
    /// The client that is asked.
    pub client: Arc<dyn TorrentClient>,
    /// Where results go.
    pub store: Arc<dyn Store>,
    /// What polls have shown.
    pub live: Arc<LiveState>,
    /// Wall time, for expiry.
    pub clock: Arc<dyn Clock>,
    /// The effects that the watcher looks for.
    pub pending_effects: Arc<PendingEffects>,
    /// What resolves torrents to add.
    pub sources: Sources,
}

/// A command that runs.
pub(super) struct Execution<'a> {
    pub parts: &'a WorkerParts,
    pub queue: &'a Queue,
    pub turns: &'a ClientTurns,
    pub command: &'a LoggedCommand,
    pub request: &'a Request,
}

/// Why an attempt ended without a result.
pub(super) enum Failure {
    /// The client is unreachable, and was not asked for anything.
    Unreachable,
    /// The command has failed.
    Command(CommandError),
    Store(StoreError),
}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        Self::Command(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Unreachable { .. } => Self::Unreachable,
            error => Self::Command(command_error(&error)),
        }
    }
}

pub(super) type Attempt<T> = Result<T, Failure>;

impl Execution<'_> {
    /// Executes the command, as often as its client turns out to be unreachable, until its time to live is over.
    pub async fn run(&self) -> Result<ResultBody, StoreError> {
        while self.wait_for_client().await {
            match self.attempt().await {
                Ok(body) => return Ok(body),
                Err(Failure::Command(error)) => return Ok(ResultBody::failed(error)),
                Err(Failure::Store(error)) => return Err(error),
                Err(Failure::Unreachable) => self.wait_for_poll().await,
            }
        }
        Ok(ResultBody::expired())
    }

    async fn attempt(&self) -> Attempt<ResultBody> {
        let Request { operation, dry_run, .. } = self.request;
        match operation {
            Operation::List { fields, page, page_size } => self.list(fields.as_deref(), *page, *page_size).await,
            Operation::Get(parts) => self.get(*parts).await,
            Operation::Resync { from_seq } => self.resync(*from_seq).await,
            Operation::SetLimits(_) | Operation::Rpc { .. } if *dry_run => Ok(ResultBody::ok()),
            Operation::SetLimits(limits) => self.set_limits(*limits).await,
            Operation::Rpc { method, params } => self.call(method, params).await,
            Operation::SetLogLevel(_) => {
                Err(CommandError::new(ErrorCode::BadRequest, "log_level is a command to the bridge itself").into())
            }
            Operation::Act(action) => {
                let hashes = self.torrents()?;
                self.act(hashes.into_iter().map(|hash| action.torrent(hash)).collect()).await
            }
            Operation::Add(add) => self.act(vec![Action::Add(self.resolve(add).await?)]).await,
            Operation::DeleteWithData => self.act_on_files(None).await,
            Operation::Move { directory, data } => {
                self.parts.sources.roots.check_directory(directory)?;
                if *data {
                    return self.act_on_files(Some(directory)).await;
                }
                let action = |hash| Action::Move(hash, directory.clone());
                self.act(self.torrents()?.into_iter().map(action).collect()).await
            }
        }
    }

    async fn set_limits(&self, limits: Limits) -> Attempt<ResultBody> {
        self.note_start().await?;
        let _permit = self.long_turn().await;
        self.server_control()?.set_limits(limits).await?;
        self.wake();
        Ok(ResultBody::ok())
    }

    async fn call(&self, method: &str, params: &[serde_json::Value]) -> Attempt<ResultBody> {
        // No poll shows what a method has done, so after a crash it is not called again.
        if self.command.is_started {
            let message = "the bridge was interrupted while the client was asked, and does not know its answer";
            return Err(CommandError::new(ErrorCode::Unconfirmed, message).into());
        }
        self.note_start().await?;
        let _permit = self.long_turn().await;
        let value = match self.server_control()?.call(method, params).await {
            Err(ClientError::Unauthorized { reason }) => {
                return Err(CommandError::new(ErrorCode::Forbidden, reason).into());
            }
            answer => answer?,
        };
        self.wake();
        Ok(ResultBody::with_value(value))
    }

    /// Checks that the client has the capability that the verb needs.
    pub fn check_capability(&self) -> Result<(), ClientError> {
        let (verb, capabilities) = (self.request.verb, self.parts.client.capabilities());
        let is_capable = match verb.capability() {
            Capability::Actions => capabilities.verbs.contains(&verb),
            Capability::ServerControl => capabilities.server.is_some(),
            Capability::Reading => true,
        };
        if is_capable { Ok(()) } else { Err(self.unsupported()) }
    }

    fn server_control(&self) -> Result<&dyn ServerControl, ClientError> {
        self.parts.client.capabilities().server.ok_or_else(|| self.unsupported())
    }

    fn unsupported(&self) -> ClientError {
        ClientError::Unsupported { what: format!("carry out `{}`", self.request.verb.as_str()) }
    }

    /// Waits for the right to make a request that takes longer. Whoever holds one must not wait for another.
    pub async fn long_turn(&self) -> OwnedSemaphorePermit {
        self.turns.long(&self.command.origin).await
    }

    /// Writes down that the client is about to be asked, so that after a crash the effect is looked for first.
    pub async fn note_start(&self) -> Result<(), StoreError> {
        let (server, id) = (self.command.server.as_ref(), &self.command.id);
        retry_while_full("a command", || self.parts.store.start_command(server, id)).await
    }

    pub fn server(&self) -> &ServerHandle {
        self.parts.live.server(&self.parts.server).expect("a worker is made for a server of the live state")
    }

    pub fn read<T>(&self, read: impl FnOnce(&LiveServer) -> T) -> T {
        self.server().read(read)
    }

    /// Makes the watcher poll now.
    pub fn wake(&self) {
        self.server().wake.notify_one();
    }

    pub fn is_over(&self) -> bool {
        self.parts.clock.now() >= self.command.expires_at
    }

    /// Returns what `wait` comes to; `None` once the time to live is over.
    async fn within_ttl<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        let mut wait = pin!(wait);
        while !self.is_over() {
            let left = self.command.expires_at.millis_since(self.parts.clock.now());
            // Wall time may be set meanwhile, so after this it is asked for again.
            if let Ok(found) = timeout(Duration::from_millis(left), &mut wait).await {
                return Some(found);
            }
        }
        None
    }

    /// Waits until the client answers; `false` once the time to live is over.
    async fn wait_for_client(&self) -> bool {
        // A resync reads the snapshot and the journal, for which the client is not needed.
        let needs_snapshot_only = matches!(self.request.operation, Operation::Resync { .. });
        let answers = self.server().wait_for(|server| {
            (server.poll.is_answering() || needs_snapshot_only && server.state.is_known).then_some(())
        });
        self.within_ttl(answers).await.is_some()
    }

    /// Waits for the next poll to end, however it ends: the watcher has not noticed yet what this command has.
    async fn wait_for_poll(&self) {
        let polls = self.read(|server| server.poll.polls);
        self.wake();
        // Once the time to live is over, the caller notices, too.
        self.within_ttl(self.server().wait_for(|server| (server.poll.polls > polls).then_some(()))).await;
    }

    /// Waits for a poll that begins from now on, so that the answer is not older than the question.
    pub async fn poll_again(&self) -> Attempt<()> {
        let asked = Instant::now();
        self.wake();
        let polled = self.server().wait_for(|server| {
            let is_answering = server.poll.is_answering();
            let is_fresh = server.poll.last_began.is_some_and(|began| began >= asked);
            (is_fresh || !is_answering).then_some(is_answering)
        });
        match self.within_ttl(polled).await {
            Some(true) => Ok(()),
            Some(false) | None => Err(Failure::Unreachable),
        }
    }

    /// Returns the torrents that are meant. A filter is evaluated once; its torrents stay the same from then on.
    pub fn torrents(&self) -> Attempt<Vec<InfoHash>> {
        match &self.request.target {
            Target::Torrents(hashes) => Ok(hashes.clone()),
            Target::Server => Ok(Vec::new()),
            Target::Matching(filter) => {
                let now = self.parts.clock.now();
                let hashes: Vec<InfoHash> = self.read(|server| {
                    let matching = server.snapshot.iter().filter(|(_, one)| filter.matches(&one.torrent, now));
                    matching.map(|(hash, _)| *hash).collect()
                });
                if hashes.len() > HASHES_MAX {
                    let message = format!("the filter matches {} torrents; at most {HASHES_MAX} at once", hashes.len());
                    return Err(CommandError::new(ErrorCode::TooLarge, message).into());
                }
                self.queue.set_matched(&self.command.id, &hashes);
                Ok(hashes)
            }
        }
    }
}

pub(super) fn unknown_hash(hash: InfoHash) -> CommandError {
    command_error(&ClientError::UnknownHash(hash))
}

pub(super) fn client_gone() -> CommandError {
    CommandError::new(ErrorCode::ClientOffline, "the client went away")
}

pub(super) fn still_busy(reason: &str) -> CommandError {
    CommandError::new(ErrorCode::Precondition, reason).retryable()
}

pub(super) fn unconfirmed() -> CommandError {
    CommandError::new(ErrorCode::Unconfirmed, "the client was asked, but its effect did not show in time")
}

pub(super) fn command_error(error: &ClientError) -> CommandError {
    let code = match error {
        ClientError::Unreachable { .. } => ErrorCode::ClientOffline,
        ClientError::Timeout { .. } => ErrorCode::Unconfirmed,
        ClientError::Unauthorized { .. } | ClientError::Protocol { .. } | ClientError::Fault { .. } => {
            ErrorCode::ClientFault
        }
        ClientError::UnknownHash(_) => ErrorCode::UnknownHash,
        ClientError::Precondition { .. } | ClientError::Busy { .. } => ErrorCode::Precondition,
        ClientError::Unsupported { .. } => ErrorCode::Unsupported,
    };
    CommandError::new(code, error.to_string())
}
