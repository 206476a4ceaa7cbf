//! Deleting and moving torrents with their files.
//!
//! The files are located first, from what the *client* says of them, and compared with those of every other
//! torrent. Then the torrent is held, so that no file is open, the files are deleted or moved, and the client is asked to
//! follow.
//! In this order an interrupted command finds the torrent still there and goes on with it.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::info;

use super::actions::{BUSY_PAUSE_MAX, BUSY_PAUSE_MIN, EFFECT_TIMEOUT};
use super::errors::{client_gone, command_error, precondition, still_busy, unconfirmed, unknown_hash};
use super::execution::{Attempt, Execution, Failure};
use super::files::FilePlan;
use super::pending_effects::EffectWaiter;
use super::results::ResultBody;
use crate::model::{
    Action, CommandError, DeletedFiles, Details, ErrorCode, InfoHash, Listing, Operation, Parts, Torrent,
    TorrentOutcome,
};
use crate::port::{ClientError, Scope};

/// Most files of other torrents that are read and compared at a time; a torrent with more is read alone.
const COMPARED_FILES_MAX: u64 = 20_000;

/// The files of a torrent, and the place at which the client expects them.
struct Located {
    plan: FilePlan,
    /// The name of the folder that is the torrent's own, if it has one.
    own_folder: Option<String>,
    /// The directory that brings the client back to this place.
    home: String,
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
        let mut rows = Vec::with_capacity(hashes.len());
        for hash in hashes {
            let row = match directory {
                Some(directory) => self.move_with_files(hash, directory, &listing).await,
                None => self.delete_with_files(hash, &listing).await,
            };
            rows.push(match row {
                Ok(row) => row,
                Err(Failure::Command(error)) => TorrentOutcome::failed(hash, error),
                Err(Failure::Unreachable) if rows.is_empty() => return Err(Failure::Unreachable),
                Err(Failure::Unreachable) => TorrentOutcome::failed(hash, client_gone()),
                Err(failure @ Failure::Store(_)) => return Err(failure),
            });
        }
        Ok(ResultBody::of_torrents(rows))
    }

    /// Deletes the files first and then the torrent: interrupted in between, it is still there to go on with.
    async fn delete_with_files(&self, hash: InfoHash, listing: &Listing) -> Attempt<TorrentOutcome> {
        self.check(hash)?;
        let deleted = |deleted| TorrentOutcome { deleted: Some(deleted), ..TorrentOutcome::ok(hash) };
        let Located { plan, .. } = match self.locate(hash, listing).await {
            // Interrupted when all was done but the result.
            Err(Failure::Command(error)) if self.command.is_started && error.code == ErrorCode::UnknownHash => {
                return Ok(deleted(DeletedFiles::default()));
            }
            located => located?,
        };
        if self.request.dry_run {
            return Ok(deleted(plan.preview()));
        }
        let action = Action::Delete(hash);
        // Before the client is asked: a poll may show the effect before its answer is here.
        let effect = self.expect(&action);
        self.insist(&Action::Hold(hash)).await?;
        let files = blocking(move || plan.remove()).await?;
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

    /// Holds the torrent, moves its files, sets its directory: in this order no file is open while it moves.
    async fn move_with_files(&self, hash: InfoHash, directory: &str, listing: &Listing) -> Attempt<TorrentOutcome> {
        self.check(hash)?;
        let Located { plan, own_folder, home } = self.locate(hash, listing).await?;
        let to = own_folder.map_or_else(|| PathBuf::from(directory), |name| Path::new(directory).join(name));
        if self.request.dry_run {
            return Ok(TorrentOutcome::ok(hash));
        }
        let action = Action::Move(hash, directory.to_owned());
        let effect = self.expect(&action);
        self.insist(&Action::Hold(hash)).await?;
        // Only then may a file at the new place be our own copy; otherwise it is somebody else's.
        let is_repeated = self.command.is_started;
        if let Err(error) = blocking(move || plan.move_to(&to, is_repeated)).await? {
            // Back to where most files still are. Each is whole at one of the two places.
            self.insist(&Action::Move(hash, home)).await?;
            return Err(error.into());
        }
        self.insist(&action).await?;
        self.confirm(effect).await?;
        Ok(TorrentOutcome::ok(hash))
    }

    /// Waits until a poll shows what the client was asked for last.
    async fn confirm(&self, mut effect: EffectWaiter<'_>) -> Attempt<()> {
        effect.asked();
        self.wake();
        let shown = timeout_at(Instant::now() + EFFECT_TIMEOUT, effect.shown()).await;
        shown.map_err(|_| unconfirmed().into())
    }

    /// Asks for one action again until the client takes it or the time to live is over.
    async fn insist(&self, action: &Action) -> Attempt<()> {
        let (mut was_logged, mut pause) = (false, BUSY_PAUSE_MIN);
        loop {
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
                Err(error) => return Err(command_error(&error).into()),
            }
            sleep(pause).await;
            pause = (2 * pause).min(BUSY_PAUSE_MAX);
        }
    }

    /// Locates the files of a torrent, as the client has them now, none of which is another torrent's, too.
    async fn locate(&self, hash: InfoHash, listing: &Listing) -> Attempt<Located> {
        let parts = Parts { torrent: true, files: true, ..Parts::default() };
        let details = self.details(&[hash], parts).await?.into_iter().next().flatten();
        let Some(Details { observed: Some(observed), is_folder, files, .. }) = details else {
            return Err(unknown_hash(hash).into());
        };
        let directory =
            observed.torrent.directory.ok_or_else(|| precondition("the client does not say where it is"))?;
        let files = files.ok_or_else(|| precondition("the client does not say which files it has"))?;
        if !observed.facts.has_metadata {
            return Err(
                precondition("a magnet link has no content before it is resolved; delete it without data").into()
            );
        }
        // A folder with a single file is a folder; only where the client does not say so, it is guessed.
        let is_folder = is_folder.unwrap_or(files.len() > 1);
        let path = Path::new(&*directory);
        let own_folder = path.file_name().filter(|_| is_folder).map(|name| name.to_string_lossy().into_owned());
        let parent = path.parent().filter(|_| is_folder).map(|parent| parent.to_string_lossy().into_owned());
        let home = parent.unwrap_or_else(|| directory.to_string());
        let roots = self.parts.sources.roots.clone();
        let plan = blocking(move || FilePlan::new(&roots, &directory, &files, is_folder)).await??;
        let plan = self.check_shared(hash, listing, plan).await?;
        // A client appends the torrent's name to the directory that it is given.
        if matches!(self.request.operation, Operation::Move { .. })
            && own_folder.as_ref().is_some_and(|name| *name != observed.torrent.name)
        {
            let message = "its folder is not called like it, so the client would look for it elsewhere";
            return Err(precondition(message).into());
        }
        Ok(Located { plan, own_folder, home })
    }

    /// Compares the plan with the files of every torrent that could share one.
    async fn check_shared(&self, hash: InfoHash, listing: &Listing, plan: FilePlan) -> Attempt<FilePlan> {
        let mut others: BTreeMap<InfoHash, (PathBuf, u64)> = BTreeMap::new();
        for (other, observed) in listing.torrents.iter().filter(|(other, _)| **other != hash) {
            let Torrent { directory: Some(directory), size_files, .. } = &observed.torrent else { continue };
            others.insert(*other, (PathBuf::from(&**directory), size_files.unwrap_or(1)));
        }
        // Folders are compared first, which needs no request: few torrents are left whose files have to be read.
        let (plan, others) = blocking(move || {
            let mut may_share: BTreeMap<PathBuf, bool> = BTreeMap::new();
            others.retain(|_, (directory, _)| {
                *may_share.entry(directory.clone()).or_insert_with(|| plan.may_share(directory))
            });
            (plan, others)
        })
        .await?;
        let mut waiting: VecDeque<(InfoHash, PathBuf, u64)> =
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

/// Runs file operations on a thread for blocking work, so that no task of the runtime waits for a disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, CommandError> {
    let failed = |_| CommandError::new(ErrorCode::ClientFault, "a fault in this program; its log says which");
    spawn_blocking(work).await.map_err(failed)
}
