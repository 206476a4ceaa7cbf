//! What a command goes on with behind its result: torrents that it has begun to change, and that are neither as asked for nor
//! as before, as far as is known.
//!
//! Such torrents are written down before the client and the files are touched, so a crash does not end this: the next run
//! goes on. Until it has ended, no other command may touch them.

use tracing::{info, warn};

use super::common::blocking;
use super::errors::out_of_time;
use super::execution::Execution;
use super::files::FilePlan;
use super::queue::QueuedCommand;
use super::request::{Request, Target};
use super::results::{ResultBody, finish};
use crate::log_throttle::retry_while_full;
use crate::model::{CommandError, ErrorCode, InfoHash, Operation, OutcomeStatus};
use crate::port::{LoggedCommand, StoreError};

/// Time for what goes on behind a result, beyond which nothing more is deleted.
const WIND_UP_TIMEOUT_MS: u64 = 24 * 3_600_000;
/// The state of the torrents of such a command, for its result and the log.
const TOO_OLD: &str = "what it had begun to delete is not completed, because nobody waits for that after a day: a torrent \
                       whose files are partly gone stays stopped, and others go on as before";

impl Execution<'_> {
    /// Gives the command its result, and then ends with the torrents that it has begun to change.
    pub(super) async fn finish(&self, body: ResultBody) -> Result<(), StoreError> {
        let is_done = self.progress().begun.is_empty();
        let body = if !is_done && body.status == OutcomeStatus::Expired { self.interrupted() } else { body };
        if !is_done {
            self.answer(body).await?;
            return self.wind_up().await;
        }
        if self.may_begin() {
            self.note_begun(Vec::new()).await?;
        }
        self.answer(body).await
    }

    /// Gives the command its result.
    pub(super) async fn answer(&self, body: ResultBody) -> Result<(), StoreError> {
        finish(&self.parts.common, self.command, &self.queued.sender, body).await
    }

    /// Goes on, behind the result, with torrents that the command has begun to change and that are neither as asked for nor
    /// as before, as far as is known.
    ///
    /// Each step may be repeated, so the command is executed once more for these, with time enough. What fails then is let go
    /// on, and the log says why; so is what it had not touched yet. Nothing is deleted for a command of long ago.
    pub(super) async fn wind_up(&self) -> Result<(), StoreError> {
        let begun = self.progress().begun.clone();
        let Self { parts, queue, turns, command, request, queued, .. } = self;
        if !begun.is_empty() {
            let (server, id) = (&parts.server, &command.id);
            warn!(%server, %id, torrents = ?begun, "command goes on behind its result");
            queue.set_matched(id, &begun);
            let expires_at = parts.common.clock.now().plus_millis(WIND_UP_TIMEOUT_MS);
            let logged = (*command).clone();
            let command =
                LoggedCommand { expires_at, is_started: true, is_answered: true, begun: begun.clone(), ..logged };
            let request = Request { target: Target::Torrents(begun.clone()), if_status: None, ..(*request).clone() };
            let queued = QueuedCommand::new(command, request, queued.sender.clone());
            let again = Execution::new(parts, queue, turns, &queued);
            let body = match self.is_old() {
                true => ResultBody::failed(out_of_time(TOO_OLD)),
                false => Box::pin(again.execute_or_panic()).await?,
            };
            again.note_end(&body);
            let is_done =
                |hash: &InfoHash| body.torrents.iter().any(|row| row.hash == *hash && row.status == OutcomeStatus::Ok);
            for hash in begun.iter().filter(|hash| !is_done(hash)) {
                if self.is_old() && !again.is_whole(*hash).await {
                    warn!(%server, %id, %hash, "torrent stays stopped: some of its files are deleted");
                    continue;
                }
                again.release(*hash).await;
            }
        }
        self.note_begun(Vec::new()).await
    }

    /// Logs how a command has ended that goes on behind its result.
    pub(super) fn note_end(&self, ResultBody { status, error, .. }: &ResultBody) {
        let (server, id, error) = (&self.parts.server, &self.command.id, error.as_ref().map(|error| &error.message));
        if *status == OutcomeStatus::Ok {
            info!(%server, %id, %status, "command ended after its result");
        } else {
            warn!(%server, %id, %status, error, "command ended after its result");
        }
    }

    /// The result of a command that a crash has interrupted, and whose time is over since.
    pub(super) fn interrupted(&self) -> ResultBody {
        let goes_on = match () {
            () if self.command.begun.is_empty() => "it is not known what was done",
            () if self.is_old() => TOO_OLD,
            () => {
                "what it had begun to move or to delete is completed now, and what it had not touched goes on as before"
            }
        };
        let message = format!(
            "the bridge was interrupted while the client was asked, and its time to live is over since; {goes_on}"
        );
        ResultBody::failed(CommandError::new(ErrorCode::Unconfirmed, message))
    }

    /// Whether what it has begun to delete is too long ago to be completed. A move loses nothing, however late it is.
    fn is_old(&self) -> bool {
        matches!(self.request.operation, Operation::DeleteWithData)
            && self.parts.common.clock.now() > self.command.expires_at.plus_millis(WIND_UP_TIMEOUT_MS)
    }

    /// Whether all files of a torrent are where the client has them, as far as can be seen.
    async fn is_whole(&self, hash: InfoHash) -> bool {
        self.wait_for_client().await;
        let Ok(current) = self.current(hash).await else { return false };
        let Ok(content) = self.content(&current).await else { return false };
        let roots = self.parts.sources.roots.clone();
        let found = blocking(move || FilePlan::new(&roots, &content)?.check_complete()).await;
        matches!(found, Ok(Ok(())))
    }

    /// Writes down which torrents it has begun to change.
    pub(super) async fn note_begun(&self, begun: Vec<InfoHash>) -> Result<(), StoreError> {
        let (server, id) = (self.command.server.as_ref(), &self.command.id);
        self.queue.set_begun(id, &begun);
        retry_while_full("a command", || self.parts.common.store.set_begun(server, id, begun.clone())).await
    }
}
