//! Deleting and moving torrents with their files.
//!
//! The files are located first, from what the *client* says of them, and compared with those of every other
//! torrent; nothing is begun that this process cannot see or may not do. Then the torrent is held, so that no file is
//! open, the files are deleted or moved, and the client is asked to follow. What fails on the way is taken back.
//! In this order an interrupted command finds the torrent still there and goes on with it.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::actions::{BUSY_PAUSE_MAX, BUSY_PAUSE_MIN};
use super::common::blocking;
use super::errors::{
    client_gone, command_error, out_of_time, precondition, still_busy, unanswered, unconfirmed, unknown_hash,
};
use super::execution::{Attempt, Execution, Failure};
use super::file_moves::FileMove;
use super::file_progress::{FileProgress, not_begun, untouched};
use super::files::FilePlan;
use super::pending_effects::EffectWaiter;
use super::results::ResultBody;
use crate::model::{
    Action, CommandError, Content, DeletedFiles, Details, ErrorCode, Facts, InfoHash, Listing, Move, Observed,
    Operation, OutcomeStatus, Parts, RunState, Status, Torrent, TorrentOutcome,
};
use crate::port::{ClientError, Scope};

/// Most files of other torrents that are read and compared at a time; a torrent with more is read alone.
const COMPARED_FILES_MAX: u64 = 20_000;

/// A torrent as the client has it now.
pub(super) struct CurrentTorrent {
    pub torrent: Torrent,
    facts: Facts,
    /// How it ran before it was held, by this run or an earlier one.
    held: Option<RunState>,
}

impl CurrentTorrent {
    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Whether it is paused, or was before it was held.
    pub fn was_paused(&self) -> bool {
        self.held.map_or(self.torrent.status == Status::Paused, |held| held == RunState::Paused)
    }

    /// Whether it is stopped, and was so before it was held: somebody may have started it since.
    pub fn was_stopped(&self) -> bool {
        self.torrent.status == Status::Stopped && self.held.is_none_or(|held| held == RunState::Stopped)
    }
}

/// The files of a torrent on this machine, and what the client says of them.
struct Located {
    plan: FilePlan,
    content: Content,
    /// The client was just reading the files, so that it did not know what it has.
    is_checking: bool,
    /// The command was interrupted while it changed them: some may be gone, or at their new place.
    is_repeated: bool,
}

impl Execution<'_> {
    /// Moves torrents with their files to `directory`, or deletes them with their files.
    pub(super) async fn act_on_files(&self, directory: Option<&str>) -> Attempt<ResultBody> {
        let hashes = self.torrents()?;
        // From the client and not from the snapshot, which may lack a torrent that shares files and was just added.
        let listing = {
            let _permit = self.long_turn().await;
            self.parts.client.list(Scope::Detached).await?
        };
        if !self.request.dry_run {
            self.note_start().await?;
        }
        {
            let mut progress = self.progress();
            let begun = std::mem::take(&mut progress.begun);
            *progress = FileProgress { hashes: hashes.clone(), begun, ..FileProgress::default() };
        }
        for (number, hash) in hashes.into_iter().enumerate() {
            let was_begun = self.command.begun.contains(&hash);
            let row = match directory {
                _ if self.is_over() => Err(not_begun().into()),
                Some(directory) => self.move_with_files(hash, directory, &listing).await,
                None => self.delete_with_files(hash, &listing).await,
            };
            let row = match row {
                Ok(row) => row,
                Err(Failure::Command(error)) => TorrentOutcome::failed(hash, error),
                // Nothing was changed yet: only what was asked for may be repeated in part.
                Err(failure @ (Failure::Unreachable | Failure::Unanswered(_))) if number == 0 => return Err(failure),
                Err(Failure::Unreachable | Failure::Unanswered(_)) => TorrentOutcome::failed(hash, client_gone()),
                Err(failure @ Failure::Store(_)) => return Err(failure),
            };
            let mut progress = self.progress();
            // What an earlier run has begun, and this one could not end, goes on behind the result.
            if !was_begun || row.status == OutcomeStatus::Ok {
                progress.note_outcome(&row);
            }
            progress.rows.push(row);
            progress.is_changing = false;
        }
        Ok(ResultBody::of_torrents(std::mem::take(&mut self.progress().rows)))
    }

    /// Writes down that a torrent is changed from now on, so that it is not left half done by a crash.
    ///
    /// # Errors
    /// The time is over: the command may have its result, and what is not begun by then does not begin.
    pub(super) async fn begin(&self, hash: InfoHash) -> Attempt<()> {
        if self.is_over() {
            return Err(not_begun().into());
        }
        let begun = {
            let mut progress = self.progress();
            progress.settle(hash);
            progress.begun.push(hash);
            progress.begun.clone()
        };
        Ok(self.note_begun(begun).await?)
    }

    /// Notes that files are changed from now on, if there is still time.
    fn begin_change(&self) -> Result<(), CommandError> {
        if self.is_over() {
            return Err(out_of_time("the client was not ready before, and the files are untouched"));
        }
        self.progress().is_changing = true;
        Ok(())
    }

    /// Deletes the files first and then the torrent: interrupted in between, it is still there to go on with.
    async fn delete_with_files(&self, hash: InfoHash, listing: &Listing) -> Attempt<TorrentOutcome> {
        self.check(hash)?;
        let deleted = |deleted| TorrentOutcome { deleted: Some(deleted), ..TorrentOutcome::ok(hash) };
        let located = match self.locate(hash, listing).await {
            // Interrupted when all was done but the result.
            Err(Failure::Command(error)) if self.command.is_started && error.code == ErrorCode::UnknownHash => {
                return Ok(deleted(DeletedFiles::default()));
            }
            located => located?,
        };
        let is_checking = located.is_checking;
        let plan = self.plan_delete(located).await?;
        if self.request.dry_run {
            return Ok(deleted(plan.preview()));
        }
        if self.command.is_answered && plan.check_complete().is_ok() {
            return Err(untouched().into());
        }
        self.begin(hash).await?;
        let action = Action::Delete(hash);
        // Before the client is asked: a poll may show the effect before its answer is here.
        let effect = self.expect(&action);
        let removed = self.delete_held(hash, listing, plan, is_checking).await;
        let files = self.or_release(hash, removed).await?;
        if !files.files.is_empty() || !files.left.is_empty() {
            info!(
                server = %self.parts.server, id = %self.command.id, %hash, files = files.count,
                bytes = files.bytes, left = files.left.len(), "files deleted"
            );
        }
        self.insist(&action).await?;
        self.confirm(effect).await?;
        Ok(deleted(files))
    }

    async fn delete_held(
        &self,
        hash: InfoHash,
        listing: &Listing,
        mut plan: FilePlan,
        is_checking: bool,
    ) -> Attempt<DeletedFiles> {
        self.insist(&Action::Hold(hash)).await?;
        // While the client reads the files it does not know what it has.
        if is_checking {
            plan = self.plan_delete(self.locate(hash, listing).await?).await?;
        }
        self.begin_change()?;
        Ok(blocking(move || plan.remove()).await??)
    }

    async fn plan_delete(&self, Located { plan, is_repeated, .. }: Located) -> Attempt<FilePlan> {
        let check = move || {
            if !is_repeated {
                plan.check_complete()?;
            }
            plan.check_removable().map(|()| plan)
        };
        Ok(blocking(check).await??)
    }

    /// Holds the torrent, moves its files, sets its directory: in this order no file is open while it moves.
    async fn move_with_files(&self, hash: InfoHash, directory: &str, listing: &Listing) -> Attempt<TorrentOutcome> {
        self.check(hash)?;
        let current = self.current(hash).await?;
        let content = self.content(&current).await?;
        let to_directory = |directory: &str| Move { was_paused: current.was_paused(), ..Move::new(hash, directory) };
        let action = Action::Move(to_directory(directory));
        if content.directory == place_in(directory, &content) {
            // Interrupted when only this was left to do.
            if self.command.is_started && !self.request.dry_run {
                let effect = self.expect(&action);
                self.insist(&Action::Release(hash)).await?;
                self.confirm(effect).await?;
            }
            return Ok(TorrentOutcome::ok(hash));
        }
        let located = self.locate(hash, listing).await?;
        let is_checking = located.is_checking;
        let home = to_directory(&home(&located.content)?);
        let moving = self.plan_move(located, directory).await?;
        if self.request.dry_run {
            return Ok(TorrentOutcome::ok(hash));
        }
        if self.command.is_answered && moving.is_untouched() {
            return Err(untouched().into());
        }
        self.begin(hash).await?;
        let effect = self.expect(&action);
        let moved = self.move_held(hash, directory, listing, moving, is_checking).await;
        let moving = self.or_release(hash, moved).await?;
        if let Err(failure) = self.insist(&action).await {
            let failure = self.move_back(moving, home, failure).await;
            effect.asked();
            return Err(failure);
        }
        self.confirm(effect).await?;
        blocking(move || moving.check_done()).await??;
        Ok(TorrentOutcome::ok(hash))
    }

    async fn move_held(
        &self,
        hash: InfoHash,
        directory: &str,
        listing: &Listing,
        mut moving: FileMove,
        is_checking: bool,
    ) -> Attempt<FileMove> {
        self.insist(&Action::Hold(hash)).await?;
        // While the client reads the files it does not know what it has.
        if is_checking {
            moving = self.plan_move(self.locate(hash, listing).await?, directory).await?;
        }
        self.begin_change()?;
        let (clock, end) = (Arc::clone(&self.parts.common.clock), self.command.expires_at);
        let run = move || moving.run(&|| clock.now() < end).map(|()| moving);
        Ok(blocking(run).await??)
    }

    async fn plan_move(&self, located: Located, directory: &str) -> Attempt<FileMove> {
        // Only of a repeated one may a file at the new place be our own copy; otherwise it is somebody else's.
        let Located { plan, content, is_repeated, .. } = located;
        let to = place_in(directory, &content);
        let roots = self.parts.sources.roots.clone();
        Ok(blocking(move || FileMove::new(plan, &roots, &to, is_repeated)).await??)
    }

    /// Moves the files back after the client has not taken their new directory; returns the failure to report, which is
    /// `unconfirmed` while the files stay at the new place.
    async fn move_back(&self, moving: FileMove, home: Move, failure: Failure) -> Failure {
        // Where the client does not answer, it may have taken the directory all the same: the files stay at the place
        // that it was given last, and the torrent is held.
        let is_refused = matches!(&failure, Failure::Command(error) if error.code != ErrorCode::Unconfirmed);
        if !is_refused {
            return failure;
        }
        // An attempt without an answer may have let it go on: files that the client has open are not touched.
        if self.insist(&Action::Hold(home.hash)).await.is_err() {
            return unconfirmed().into();
        }
        match blocking(move || moving.undo()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) | Err(error) => return error.into(),
        }
        // A client that did not find the files at the new place has forgotten that it has them.
        let check = Action::Recheck(home.hash);
        for step in [Action::Move(home), check] {
            if let Err(worse) = self.insist(&step).await {
                return worse;
            }
        }
        failure
    }

    /// Lets a held torrent go on as before if what was to be done with its files has failed. Its sender may have the result
    /// by then: a torrent is not left stopped because its client did not answer in time.
    async fn or_release<T>(&self, hash: InfoHash, done: Attempt<T>) -> Attempt<T> {
        let Err(failure) = done else { return done };
        self.progress().is_changing = false;
        self.release(hash).await;
        Err(failure)
    }

    /// Lets a held torrent go on as before, as soon as the client answers; does nothing to one that is not held.
    pub(super) async fn release(&self, hash: InfoHash) {
        let was_paused = loop {
            match self.current(hash).await {
                Ok(current) => break current.was_paused(),
                Err(Failure::Unreachable | Failure::Unanswered(_)) => self.client_answers().await,
                // It is gone, for example.
                Err(Failure::Command(_) | Failure::Store(_)) => break false,
            }
        };
        let action = Action::Release(hash);
        // Before the client is asked: a poll may show its events before its answer is here.
        let effect = self.expect_of(&action, was_paused);
        while let Err(error) = self.insist(&action).await {
            let is_unanswered = |code| matches!(code, ErrorCode::Unconfirmed | ErrorCode::ClientOffline);
            if matches!(&error, Failure::Command(error) if !is_unanswered(error.code)) {
                warn!(server = %self.parts.server, id = %self.command.id, %hash, %error, "torrent stays stopped");
                return;
            }
            self.client_answers().await;
        }
        effect.asked();
        self.progress().settle(hash);
    }

    /// Waits until a poll shows what the client was asked for last.
    async fn confirm(&self, mut effect: EffectWaiter<'_>) -> Attempt<()> {
        effect.asked();
        self.wake();
        let shown = timeout(self.effect_timeout(), effect.shown()).await;
        shown.map_err(|_| unconfirmed().into())
    }

    /// Asks for one action again until the client takes it or the time to live is over.
    pub(super) async fn insist(&self, action: &Action) -> Attempt<()> {
        let (mut was_logged, mut pause) = (false, BUSY_PAUSE_MIN);
        loop {
            let restarts = self.restarts();
            let answer = {
                // Not held during the pause below: others of this origin have their turn meanwhile.
                let _permit = self.long_turn().await;
                self.parts.client.apply_one(action).await
            };
            match answer {
                Ok(_) => return Ok(()),
                // Asked for twice, if the first answer was lost.
                Err(ClientError::UnknownHash(_)) if matches!(action, Action::Delete(_)) => return Ok(()),
                Err(ClientError::Busy { reason }) if self.is_over() => return Err(still_busy(&reason).into()),
                Err(ClientError::Busy { reason }) => {
                    if !std::mem::replace(&mut was_logged, true) {
                        self.log_busy(1, &reason);
                    }
                }
                // Files may have been changed already, so this is not given up for the first failure.
                Err(ClientError::Unreachable { .. }) if !self.is_over() => {}
                // Each of these steps may be repeated, and only an answer shows that it was done to its end.
                Err(error) if error.leaves_outcome_open() => {
                    if !self.answers_again(&error, restarts).await? {
                        return Err(unanswered(&error).into());
                    }
                }
                Err(error) => return Err(command_error(&error).into()),
            }
            sleep(pause).await;
            pause = (2 * pause).min(BUSY_PAUSE_MAX);
        }
    }

    /// Returns a torrent as the client has it now.
    pub(super) async fn current(&self, hash: InfoHash) -> Attempt<CurrentTorrent> {
        let parts = Parts { torrent: true, ..Parts::default() };
        let details = self.details(&[hash], parts).await?.into_iter().next().flatten();
        let Some(Details { observed: Some(Observed { torrent, facts }), held, .. }) = details else {
            return Err(unknown_hash(hash).into());
        };
        Ok(CurrentTorrent { torrent, facts, held })
    }

    /// Returns where the content of a torrent is.
    pub(super) async fn content(&self, CurrentTorrent { torrent, facts, .. }: &CurrentTorrent) -> Attempt<Content> {
        if !facts.has_metadata {
            return Err(
                precondition("a magnet link has no content before it is resolved; delete it without data").into()
            );
        }
        let _permit = self.long_turn().await;
        let content = self.parts.client.content(torrent.hash).await?;
        Ok(content.ok_or_else(|| unknown_hash(torrent.hash))?)
    }

    /// Locates the files of a torrent, as the client has them now, none of which is another torrent's, too.
    async fn locate(&self, hash: InfoHash, listing: &Listing) -> Attempt<Located> {
        let current = self.current(hash).await?;
        let content = self.content(&current).await?;
        let CurrentTorrent { torrent, facts, .. } = current;
        let roots = self.parts.sources.roots.clone();
        let (plan, content) = blocking(move || FilePlan::new(&roots, &content).map(|plan| (plan, content))).await??;
        let is_repeated = self.command.begun.contains(&hash);
        if plan.files.is_empty() && facts.received_bytes > 0 && !is_repeated {
            let message = format!(
                "no file of it is in {}, though the client has received {} bytes: the bridge has to see the content \
                 under the same path as the client",
                plan.directory.display(),
                facts.received_bytes
            );
            return Err(precondition(message).into());
        }
        let plan = self.check_shared(hash, listing, plan).await?;
        // A client appends the torrent's name to the directory that it is given.
        if matches!(self.request.operation, Operation::Move { .. })
            && content.folder_name.as_deref().is_some_and(|name| content.directory.file_name() != Some(name))
        {
            let message = "its folder is not called like it, so the client would look for it elsewhere";
            return Err(precondition(message).into());
        }
        Ok(Located { plan, content, is_checking: torrent.status == Status::Checking, is_repeated })
    }

    /// Compares the plan with the files of every torrent that could share one.
    async fn check_shared(&self, hash: InfoHash, listing: &Listing, plan: FilePlan) -> Attempt<FilePlan> {
        let mut others: BTreeMap<InfoHash, (Arc<str>, u64)> = BTreeMap::new();
        for (other, observed) in listing.torrents.iter().filter(|(other, _)| **other != hash) {
            let Torrent { directory: Some(directory), size_files, .. } = &observed.torrent else { continue };
            others.insert(*other, (Arc::clone(directory), size_files.unwrap_or(1)));
        }
        // Folders are compared first, which needs no request: few torrents are left whose files have to be read.
        let (plan, others) = blocking(move || {
            let mut may_share: BTreeMap<Arc<str>, bool> = BTreeMap::new();
            others.retain(|_, (directory, _)| {
                *may_share.entry(directory.clone()).or_insert_with(|| plan.may_share(directory))
            });
            (plan, others)
        })
        .await?;
        let mut waiting: VecDeque<(InfoHash, Arc<str>, u64)> =
            others.into_iter().map(|(hash, (directory, files))| (hash, directory, files)).collect();
        while !waiting.is_empty() {
            let (mut batch, mut files) = (Vec::new(), 0);
            while let Some((_, _, count)) = waiting.front()
                && (batch.is_empty() || files + count <= COMPARED_FILES_MAX)
            {
                files += count;
                batch.extend(waiting.pop_front());
            }
            let hashes: Vec<InfoHash> = batch.iter().map(|(hash, ..)| *hash).collect();
            let parts = Parts { files: true, ..Parts::default() };
            let details = self.details(&hashes, parts).await?;
            for ((other, directory, _), details) in batch.iter().zip(details) {
                let Some(files) = details.and_then(|details| details.files) else { continue };
                if let Some(path) = plan.shared_with(directory, &files) {
                    let message = format!("{} is a file of torrent {other} too", path.display());
                    return Err(precondition(message).into());
                }
            }
        }
        Ok(plan)
    }
}

/// Returns the directory of the files of a torrent after a move.
pub(super) fn place_in(directory: &str, content: &Content) -> PathBuf {
    // Compared by components: a slash at the end changes nothing.
    content.folder_name.as_ref().map_or_else(|| PathBuf::from(directory), |name| Path::new(directory).join(name))
}

/// Returns the directory that brings the client back to where the files are now.
fn home(content: &Content) -> Result<String, CommandError> {
    let directory = content.directory.as_path();
    let home = if content.folder_name.is_some() { directory.parent() } else { Some(directory) };
    let exact = home.and_then(Path::to_str).map(str::to_owned);
    exact.ok_or_else(|| precondition("its directory is not UTF-8, so the client could not be asked to go back to it"))
}
