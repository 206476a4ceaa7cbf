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
use super::common::Common;
use super::errors::{bad_request, command_error};
use super::pending_effects::PendingEffects;
use super::queue::Queue;
use super::request::{HASHES_MAX, Request, Target};
use super::results::ResultBody;
use super::sources::Sources;
use crate::live_state::{LiveServer, ServerHandle};
use crate::log_throttle::retry_while_full;
use crate::model::{Action, Capability, CommandError, ErrorCode, InfoHash, Limits, Operation, ServerName};
use crate::port::{ClientError, LoggedCommand, ServerControl, StoreError, TorrentClient};

/// The parts that all executions of one server share.
pub struct WorkerParts {
    /// The server whose commands are executed.
    pub server: ServerName,
    /// The client that is asked.
    pub client: Arc<dyn TorrentClient>,
    /// Store, live state and clock.
    pub common: Common,
    /// The effects that polls have to show.
    pub pending_effects: Arc<PendingEffects>,
    /// The resolver of torrents to add.
    pub sources: Sources,
}

/// A command that runs.
pub(super) struct Execution<'a> {
    /// The parts of its server.
    pub parts: &'a WorkerParts,
    /// The queue that it came from, which learns the torrents of a filter.
    pub queue: &'a Queue,
    /// The order in which commands may ask the client.
    pub turns: &'a ClientTurns,
    /// The command as it is logged.
    pub command: &'a LoggedCommand,
    /// Its parsed body.
    pub request: &'a Request,
}

/// Why an attempt ended without a result.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The client is unreachable, and was not asked for anything.
    #[error("the client is unreachable")]
    Unreachable,
    /// The command has failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The store cannot be used any more.
    #[error(transparent)]
    Store(#[from] StoreError),
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
                // The live state says that the client answers until the next poll fails: without this wait the
                // command would ask in a busy loop.
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
            Operation::SetLogLevel(_) => Err(bad_request("log_level is a command to the bridge itself").into()),
            Operation::Act(action) => {
                let hashes = self.torrents()?;
                self.act(hashes.into_iter().map(|hash| action.torrent(hash)).collect()).await
            }
            Operation::Add(add) => self.add(add).await,
            Operation::DeleteWithData => self.act_on_files(None).await,
            Operation::Move { directory, data } => {
                // Also without `data`: the client would write there (I14).
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
        let answer = self.server_control()?.call(method, params).await;
        // Here it is the config that lacks a right; elsewhere it is the client that refuses our password.
        if let Err(ClientError::Unauthorized { reason }) = answer {
            return Err(CommandError::new(ErrorCode::Forbidden, reason).into());
        }
        let value = Some(answer?);
        self.wake();
        Ok(ResultBody { value, ..ResultBody::ok() })
    }

    /// Checks that the client has the capability that the verb needs.
    pub fn check_capability(&self) -> Result<(), ClientError> {
        match self.request.verb.capability() {
            Capability::Actions if !self.parts.client.capabilities().verbs.contains(&self.request.verb) => {
                Err(self.unsupported())
            }
            Capability::ServerControl => self.server_control().map(drop),
            Capability::Actions | Capability::Reading => Ok(()),
        }
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

    /// Writes down that the client is about to be asked, so that after a crash the effect is checked first.
    pub async fn note_start(&self) -> Result<(), StoreError> {
        let (server, id) = (self.command.server.as_ref(), &self.command.id);
        retry_while_full("a command", || self.parts.common.store.start_command(server, id)).await
    }

    /// Returns the live state of the server, with what wakes its watcher.
    pub fn server(&self) -> &ServerHandle {
        self.parts.common.live.server(&self.parts.server).expect("a worker is made for a server of the live state")
    }

    /// Reads the snapshot of the last poll.
    pub fn read<T>(&self, read: impl FnOnce(&LiveServer) -> T) -> T {
        self.server().read(read)
    }

    /// Makes the watcher poll now.
    pub fn wake(&self) {
        self.server().wake.notify_one();
    }

    /// Whether the time to live is over.
    pub fn is_over(&self) -> bool {
        self.parts.common.clock.now() >= self.command.expires_at
    }

    /// Returns what `wait` comes to; `None` once the time to live is over.
    async fn within_ttl<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        let mut wait = pin!(wait);
        while !self.is_over() {
            let left = self.command.expires_at.millis_since(self.parts.common.clock.now());
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
        // Whether the time to live is over is for the caller to see, which checks it before each attempt.
        self.within_ttl(self.server().wait_for(|server| (server.poll.polls > polls).then_some(()))).await;
    }

    /// Waits for a poll that begins from now on, so that the answer is not older than the question.
    pub async fn poll_again(&self) -> Attempt<()> {
        let asked = Instant::now();
        self.wake();
        let polled = self.server().wait_for(|server| {
            let is_answering = server.poll.is_answering();
            // A poll that was running already may have read a torrent before the sender's last change.
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
                let now = self.parts.common.clock.now();
                let hashes: Vec<InfoHash> = self.read(|server| {
                    let matching = server.snapshot.iter().filter(|(_, one)| filter.matches(&one.torrent, now));
                    matching.map(|(hash, _)| *hash).collect()
                });
                // The limit of a list of hashes holds here, too, or a filter would be the way around it (I9).
                if hashes.len() > HASHES_MAX {
                    let message = format!("the filter matches {} torrents; at most {HASHES_MAX} at once", hashes.len());
                    return Err(CommandError::new(ErrorCode::TooLarge, message).into());
                }
                // Commands for other torrents wait for a filter only as long as it is unknown what it matches.
                self.queue.set_matched(&self.command.id, &hashes);
                Ok(hashes)
            }
        }
    }
}
