//! Moving torrents without their files: only the client changes.
//!
//! The content may be at the new place already, or has to be downloaded there once more. A client believes that it has what
//! it had, so what is there is compared first: where that is something else, the client has to find out anew.

use std::collections::HashMap;
use std::path::Path;

use super::common::blocking;
use super::errors::precondition;
use super::execution::{Attempt, Execution, Failure};
use super::file_operations::place_in;
use super::files::FilePlan;
use super::results::ResultBody;
use super::roots::Roots;
use crate::model::{
    Action, CommandError, Content, ContentFile, ErrorCode, InfoHash, Move, Observed, Status, TorrentOutcome,
};

impl Execution<'_> {
    /// Sets the directory of torrents whose files are there already, or have to be downloaded there.
    pub(super) async fn move_without_files(&self, directory: &str) -> Attempt<ResultBody> {
        let (mut actions, mut rows) = (Vec::new(), Vec::new());
        for hash in self.torrents()? {
            match self.check_new_place(hash, directory).await {
                Ok(action) => actions.push(Action::Move(action)),
                Err(Failure::Command(error)) => rows.push(TorrentOutcome::failed(hash, error)),
                Err(failure) => return Err(failure),
            }
        }
        let is_known = |action: &Action| self.read(|server| server.snapshot.contains_key(&action.hash()));
        if !self.request.dry_run && actions.iter().any(is_known) {
            let (roots, directory) = (self.parts.sources.roots.clone(), directory.to_owned());
            blocking(move || roots.make_directory(&directory)).await??;
        }
        if !actions.is_empty() || rows.is_empty() {
            rows.extend(self.act(actions).await?.torrents);
        }
        rows.sort_by_key(|row| row.hash);
        Ok(ResultBody::of_torrents(rows))
    }

    /// Compares what a torrent has with what is in a directory to which it is moved without its files: where they differ,
    /// the client has to find out anew what it has. It would go on claiming what is not there, or not see what is.
    async fn check_new_place(&self, hash: InfoHash, directory: &str) -> Attempt<Move> {
        let action = Move::new(hash, directory);
        let (mut content, Observed { torrent, .. }) = match self.content(hash).await {
            Ok(content) => content,
            // A magnet link, or its names are not known exactly, so nobody can look for them.
            Err(Failure::Command(error)) if error.code == ErrorCode::Precondition => return Ok(action),
            Err(failure) => return Err(failure),
        };
        let action = Move { was_paused: torrent.status == Status::Paused, ..action };
        let place = place_in(directory, &content);
        // An interrupted command has set the directory, and perhaps nothing else.
        if content.directory == place && !self.command.is_started {
            return Ok(action);
        }
        content.directory = place;
        let roots = self.parts.sources.roots.clone();
        let may_overwrite = torrent.status != Status::Stopped;
        let check = move || {
            // Without its root this machine sees nothing of the directory; then the client alone can say.
            if !roots.is_seen(&content.directory) {
                return Ok(false);
            }
            let place = FilesThere::find(&roots, content)?;
            match place.difference() {
                Some(_) if place.is_empty() || !may_overwrite => Ok(true),
                Some(difference) => Err(precondition(format!(
                    "{difference}; a torrent that runs needs there either all that it has or none of its files, because the \
                     client would overwrite what differs: stop it first"
                ))),
                None => Ok(torrent.downloaded == 0 && !place.is_empty()),
            }
        };
        Ok(Move { recheck: blocking(check).await??, ..action })
    }
}

/// The files of a torrent that are in a directory to which it is moved.
struct FilesThere {
    plan: FilePlan,
    files: Vec<ContentFile>,
}

impl FilesThere {
    /// Finds the files, whatever their sizes.
    ///
    /// # Errors
    /// Something is in the way: a link, a folder, or what is no regular file.
    fn find(roots: &Roots, Content { directory, folder_name, files }: Content) -> Result<Self, CommandError> {
        let any_size = files.iter().map(|file| ContentFile { is_complete: false, ..file.clone() }).collect();
        let plan = FilePlan::new(roots, &Content { directory, folder_name, files: any_size })?;
        Ok(Self { plan, files })
    }

    fn is_empty(&self) -> bool {
        self.plan.files.is_empty()
    }

    /// Returns the first file that is not as the client has it; `None` if all are.
    fn difference(&self) -> Option<String> {
        let path = |path: &Path| self.plan.directory.join(path).display().to_string();
        if let Some(missing) = self.plan.missing.first() {
            return Some(format!("{} is not there, though the client has data of it", path(missing)));
        }
        let lengths: HashMap<&Path, u64> =
            self.files.iter().filter(|file| file.is_complete).map(|file| (&*file.path, file.length)).collect();
        self.plan.files.iter().find_map(|file| {
            let length = lengths.get(&*file.path).filter(|length| **length != file.bytes)?;
            Some(format!("{} has {} bytes, and not {length}", path(&file.path), file.bytes))
        })
    }
}
