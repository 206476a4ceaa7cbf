//! The execution of one command, from the queue to the body of its result.
//!
//! ```text
//! wait for the client ─► query: a fresh poll, or the client's details ─► result
//!   ▲                └─► change: note the start ─► register the effect ─► ask ─► wake the watcher ─► shown? ─► result
//!   └── unreachable, and nothing was asked yet
//! ```
//!
//! The parts: queries in `queries`, changes of torrents in `actions`, those that touch files in `file_operations`.
//!
//! Whatever the client and the disk do, a command has its result [`END_TIMEOUT`] after its time to live, and its place in
//! the queue is free. Only one that was moving or deleting torrents by then goes on behind its result, until each is as
//! asked for or as before: meanwhile no other command may touch them. Such a result says what is under way, and a crash does
//! not end it: the next run goes on.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};
use tracing::error;

use super::client_turns::ClientTurns;
use super::common::Common;
use super::errors::{bad_request, command_error, program_fault, unconfirmed};
use super::file_progress::FileProgress;
use super::pending_effects::PendingEffects;
use super::queue::{Queue, QueuedCommand};
use super::request::{HASHES_MAX, Request, Target};
use super::results::ResultBody;
use super::sources::Sources;
use crate::live_state::{LiveServer, ServerHandle};
use crate::log_throttle::retry_while_full;
use crate::model::{Capability, CommandError, ErrorCode, InfoHash, Limits, Operation, ServerName, TrackerNames, Verb};
use crate::port::{ClientError, LoggedCommand, ServerControl, StoreError, TorrentClient};

/// Maximum time from asking a client until a poll shows the effect.
pub(super) const EFFECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Time after the time to live at which a command ends: [`EFFECT_TIMEOUT`] for what was begun in time, and the
/// exchange that was running.
const END_TIMEOUT: Duration = Duration::from_secs(20);
/// Part of it that is left for the result itself, and as much for one that was waited for until then.
const END_MARGIN: Duration = Duration::from_secs(1);
/// Times that a client is asked to be read, or to set what it can be asked for twice, if it does not answer.
const ATTEMPTS_MAX: u32 = 5;

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
    /// The names that stand for announce URLs.
    pub tracker_names: TrackerNames,
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
    /// How often the client died of it.
    pub deaths: AtomicU32,
    /// How far it has come with files.
    file_progress: Mutex<FileProgress>,
    pub queued: &'a QueuedCommand,
}

/// Why an attempt ended without a result.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The client is unreachable, and was not asked for anything.
    #[error("the client is unreachable")]
    Unreachable,
    /// The client gave no answer to a request that may be repeated.
    #[error("the client did not answer")]
    Unanswered(#[source] ClientError),
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
            error if error.leaves_outcome_open() => Self::Unanswered(error),
            error => Self::Command(command_error(&error)),
        }
    }
}

pub(super) type Attempt<T> = Result<T, Failure>;

impl<'a> Execution<'a> {
    pub fn new(parts: &'a WorkerParts, queue: &'a Queue, turns: &'a ClientTurns, queued: &'a QueuedCommand) -> Self {
        let QueuedCommand { command, request, .. } = queued;
        let progress = FileProgress { begun: command.begun.clone(), ..FileProgress::default() };
        let (deaths, file_progress) = (AtomicU32::new(0), Mutex::new(progress));
        Self { parts, queue, turns, command, request, deaths, file_progress, queued }
    }
}

impl Execution<'_> {
    /// Executes the command, and gives it its result in time.
    ///
    /// # Errors
    /// Only a store that cannot be used any more.
    pub async fn run(&self) -> Result<(), StoreError> {
        if self.command.is_answered {
            return self.wind_up().await;
        }
        if self.is_over() && self.command.is_started {
            return self.finish(self.interrupted()).await;
        }
        if self.is_over() {
            return self.finish(ResultBody::expired()).await;
        }
        let mut work = Box::pin(self.execute_or_panic());
        if let Some(body) = self.within(END_TIMEOUT - END_MARGIN, &mut work).await {
            return self.finish(body?).await;
        }
        if self.is_with_files() {
            self.answer(self.overdue()).await?;
            self.note_end(&work.await?);
            return self.wind_up().await;
        }
        // It may hold a turn at the client.
        drop(work);
        self.finish(self.overdue()).await
    }

    /// Returns how far it has come with files.
    pub fn progress(&self) -> MutexGuard<'_, FileProgress> {
        self.file_progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the sender has the right to see passkeys.
    pub fn sees_secrets(&self) -> bool {
        self.command.sees_secrets
    }

    fn is_with_files(&self) -> bool {
        matches!(self.request.operation, Operation::DeleteWithData | Operation::Move { data: true, .. })
    }

    /// Whether it writes down which torrents it has begun to change.
    pub fn may_begin(&self) -> bool {
        matches!(self.request.operation, Operation::DeleteWithData | Operation::Move { .. }) && !self.request.dry_run
    }

    /// Executes the command; a panic ends it alone. The worker would otherwise execute it again after each restart.
    pub async fn execute_or_panic(&self) -> Result<ResultBody, StoreError> {
        let executed = AssertUnwindSafe(self.execute()).catch_unwind().await;
        executed.unwrap_or_else(|_| {
            // The panic hook has printed the message.
            error!(server = %self.parts.server, id = %self.command.id, "command panicked");
            Ok(ResultBody::failed(program_fault()))
        })
    }

    /// Executes the command, as often as its client turns out to be unreachable, until its time to live is over.
    async fn execute(&self) -> Result<ResultBody, StoreError> {
        let mut attempts = 0;
        while self.wait_for_client().await {
            self.note_running(true).await?;
            let restarts = self.restarts();
            match self.attempt().await {
                Ok(body) => return Ok(body),
                Err(Failure::Command(error)) => return Ok(ResultBody::failed(error)),
                Err(Failure::Store(error)) => return Err(error),
                // The live state says that the client answers until the next poll fails: without this wait the
                // command would ask in a busy loop.
                Err(Failure::Unreachable) => {
                    // Who waits for hours has no part in a crash.
                    self.note_running(false).await?;
                    self.wait_for_poll().await;
                }
                Err(Failure::Unanswered(error)) => {
                    attempts += 1;
                    if attempts == ATTEMPTS_MAX {
                        return Ok(ResultBody::failed(CommandError::new(ErrorCode::ClientOffline, error.to_string())));
                    }
                    if let Err(error) = self.answers_again(&error, restarts).await {
                        return Ok(ResultBody::failed(error));
                    }
                }
            }
        }
        Ok(ResultBody::expired())
    }

    /// The result of a command that did not end by itself.
    fn overdue(&self) -> ResultBody {
        if self.is_with_files() {
            return self.progress().overdue(&self.request.operation);
        }
        match self.request.verb.capability() {
            Capability::Reading => ResultBody::expired(),
            Capability::Actions | Capability::ServerControl => ResultBody::failed(unconfirmed()),
        }
    }

    async fn attempt(&self) -> Attempt<ResultBody> {
        let Request { operation, dry_run, .. } = self.request;
        match operation {
            Operation::List { fields, page, page_size } => self.list(fields.as_deref(), *page, *page_size).await,
            Operation::Get(parts) => self.get(*parts).await,
            Operation::Resync { from_seq } => self.resync(*from_seq).await,
            Operation::SetLimits(limits) if *dry_run => {
                self.server_control()?.check_limits(*limits)?;
                Ok(ResultBody::ok())
            }
            Operation::Rpc { method, params } if *dry_run => {
                self.server_control()?.check_call(method, params).map_err(right_of_config)?;
                Ok(ResultBody::ok())
            }
            Operation::SetLimits(limits) => self.set_limits(*limits).await,
            Operation::Rpc { method, params } => self.call(method, params).await,
            Operation::SetLogLevel(_) => Err(bad_request("log_level is a command to the bridge itself").into()),
            Operation::Act(action) => {
                let mut actions = Vec::new();
                for hash in self.torrents()? {
                    actions.push(self.with_announce_urls(action.torrent(hash)).await?);
                }
                self.act(actions).await
            }
            Operation::Add(add) => self.add(add).await,
            Operation::DeleteWithData => self.act_on_files(None).await,
            Operation::Move { directory, data } => {
                // Also without `data`: the client would write there (I14).
                self.parts.sources.roots.check_directory(directory)?;
                if *data {
                    return self.act_on_files(Some(directory)).await;
                }
                self.move_without_files(directory).await
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
        // No poll shows what a method has done, so it is not called again here either.
        if let Err(error) = &answer
            && error.leaves_outcome_open()
        {
            return Err(command_error(error).into());
        }
        let value = Some(self.shown_answer(answer.map_err(right_of_config)?));
        self.wake();
        Ok(ResultBody { value, ..ResultBody::ok() })
    }

    /// Checks that the client has the capability that the verb needs.
    pub fn check_capability(&self) -> Result<(), ClientError> {
        // A client whose content can be moved also lets go of it, which deleting needs.
        let needed = if self.is_with_files() { Verb::Move } else { self.request.verb };
        match self.request.verb.capability() {
            Capability::Actions if !self.parts.client.capabilities().verbs.contains(&needed) => Err(self.unsupported()),
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

    /// Writes down whether it runs: one that does at several crashes of the bridge is given up.
    async fn note_running(&self, runs: bool) -> Result<(), StoreError> {
        let (server, id) = (self.command.server.as_ref(), &self.command.id);
        match self.parts.common.store.set_running(server, id, runs).await {
            // It is only a count, and not worth a wait.
            Err(StoreError::Full { .. }) => Ok(()),
            noted => noted,
        }
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
    pub async fn within_ttl<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        self.within(Duration::ZERO, wait).await
    }

    /// The same, with the time for seeing what was begun within the time to live.
    pub async fn within_verification<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        self.within(EFFECT_TIMEOUT, wait).await
    }

    /// Returns what `wait` comes to; `None` once the time to live has been over for so long.
    async fn within<T>(&self, grace: Duration, wait: impl Future<Output = T>) -> Option<T> {
        let grace = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        let (mut wait, end) = (pin!(wait), self.command.expires_at.plus_millis(grace));
        while self.parts.common.clock.now() < end {
            let left = end.millis_since(self.parts.common.clock.now());
            // Wall time may be set meanwhile, so after this it is asked for again.
            if let Ok(found) = timeout(Duration::from_millis(left), &mut wait).await {
                return Some(found);
            }
        }
        None
    }

    /// Returns for how long an effect may be waited for from now on.
    pub fn effect_timeout(&self) -> Duration {
        let now = self.parts.common.clock.now();
        // The later of the two is zero where the other is not.
        let left = self.command.expires_at.millis_since(now);
        let over = now.millis_since(self.command.expires_at);
        let end = Duration::from_millis(left) + END_TIMEOUT - 2 * END_MARGIN;
        EFFECT_TIMEOUT.min(end.saturating_sub(Duration::from_millis(over)))
    }

    /// Waits until the client answers; `false` once the time to live is over.
    pub(super) async fn wait_for_client(&self) -> bool {
        // A resync reads the snapshot and the journal, for which the client is not needed.
        let needs_snapshot_only = matches!(self.request.operation, Operation::Resync { .. });
        let answers = self.server().wait_for(|server| {
            (server.poll.is_answering() || needs_snapshot_only && server.state.is_known).then_some(())
        });
        self.within_ttl(answers).await.is_some()
    }

    /// Waits for the next poll to end, however it ends: the watcher has not noticed yet what this command has.
    pub(super) async fn wait_for_poll(&self) {
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

/// The error of a call that the config does not allow; elsewhere it is the client that refuses our password.
fn right_of_config(error: ClientError) -> Failure {
    match error {
        ClientError::Unauthorized { reason } => CommandError::new(ErrorCode::Forbidden, reason).into(),
        error => error.into(),
    }
}
