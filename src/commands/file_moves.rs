//! Moving the files of a torrent, in a way that can be taken back. Everything here blocks.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tracing::debug;

use super::disk_rights::{check_may_change, check_may_read, check_may_remove};
use super::errors::precondition;
use super::files::FilePlan;
use crate::model::{CommandError, ErrorCode};

/// The move of the files of one torrent to another directory.
#[derive(Debug)]
pub(super) struct FileMove {
    plan: FilePlan,
    pairs: Vec<Pair>,
    /// Folders of the new place that do not exist yet, parents before their children.
    new_folders: BTreeSet<PathBuf>,
}

#[derive(Debug)]
struct Pair {
    from: PathBuf,
    to: PathBuf,
    bytes: u64,
    /// Copied whole before an interruption: only the old one is still to be deleted.
    is_copied: bool,
}

impl FileMove {
    /// Plans to move the files below `to`, with their paths in the torrent's directory, and checks that it can be done.
    ///
    /// Nothing is changed. `is_repeated` is for a command that was interrupted: some files may be at the new place.
    pub fn new(plan: FilePlan, to: &Path, is_repeated: bool) -> Result<Self, CommandError> {
        if is_repeated {
            check_moved(&plan, to)?;
        } else {
            plan.check_complete()?;
        }
        let mut moving = Self { pairs: Vec::with_capacity(plan.files.len()), new_folders: BTreeSet::new(), plan };
        // The same folder by way of a link: only the client is asked.
        if to.canonicalize().is_ok_and(|to| to == moving.plan.base) {
            return Ok(moving);
        }
        for (from, bytes) in &moving.plan.files {
            // All or nothing: a file outside would stay behind while the torrent points elsewhere.
            let rest = from.strip_prefix(&moving.plan.base);
            let rest = rest.map_err(|_| precondition(format!("a link leads {} out of its folder", from.display())))?;
            let to = to.join(rest);
            let is_copied = match to.symlink_metadata() {
                Ok(found) if is_repeated && found.is_file() && found.len() == *bytes => true,
                Ok(_) => return Err(precondition(format!("{} is there already and is left alone", to.display()))),
                Err(_) => false,
            };
            moving.pairs.push(Pair { from: from.clone(), to, bytes: *bytes, is_copied });
        }
        moving.check_rights()?;
        Ok(moving)
    }

    fn check_rights(&mut self) -> Result<(), CommandError> {
        let (mut sources, mut targets): (HashMap<PathBuf, Metadata>, HashMap<PathBuf, Metadata>) = Default::default();
        for Pair { from, to, .. } in &self.pairs {
            check_may_remove(from, &mut sources)?;
            let folder = to.parent().unwrap_or(Path::new("/"));
            if !targets.contains_key(folder) {
                let (start, found) = existing(folder)?;
                check_may_change(start)?;
                let new = folder.ancestors().take_while(|folder| *folder != start);
                self.new_folders.extend(new.map(Path::to_owned));
                targets.insert(folder.to_owned(), found);
            }
            let source = from.parent().and_then(|folder| sources.get(folder));
            if source.is_some_and(|source| source.dev() != targets[folder].dev()) {
                check_may_read(from)?;
            }
        }
        Ok(())
    }

    /// Moves the files.
    ///
    /// # Errors
    /// The first that cannot be moved; those before it are back at their old place.
    pub fn run(&self) -> Result<(), CommandError> {
        // Those that are not there any more were moved before an interruption.
        for (place, pair) in self.pairs.iter().enumerate().filter(|(_, pair)| pair.from.symlink_metadata().is_ok()) {
            let moved = if pair.is_copied { fs::remove_file(&pair.from) } else { move_file(&pair.from, &pair.to) };
            if let Err(error) = moved {
                let failed = failed(&pair.from, &error);
                return Err(self.undo_first(place).err().unwrap_or(failed));
            }
        }
        self.plan.remove_folders();
        Ok(())
    }

    /// Moves the files back to where they were.
    ///
    /// # Errors
    /// The first that cannot be moved back. Each file is whole at one of the two places.
    pub fn undo(&self) -> Result<(), CommandError> {
        self.undo_first(self.pairs.len())
    }

    fn undo_first(&self, count: usize) -> Result<(), CommandError> {
        for Pair { from, to, .. } in self.pairs[..count].iter().rev() {
            move_file(to, from).map_err(|error| {
                let (to, from) = (to.display(), from.display());
                let message = format!("{to}: {error}; it belongs back to {from}, as the move could not be completed");
                CommandError::new(ErrorCode::ClientFault, message)
            })?;
        }
        // Others may have put something there meanwhile, and then it stays.
        let left = self.new_folders.iter().rev().filter(|folder| fs::remove_dir(folder).is_err()).count();
        if left > 0 {
            debug!(left, "folders made for a move are not empty or never were made");
        }
        Ok(())
    }

    /// Checks that every file is at its new place.
    pub fn check_done(&self) -> Result<(), CommandError> {
        let is_there =
            |pair: &&Pair| pair.to.symlink_metadata().is_ok_and(|found| !found.is_file() || found.len() >= pair.bytes);
        match self.pairs.iter().find(|pair| !is_there(pair)) {
            None => Ok(()),
            Some(Pair { to, .. }) => Err(precondition(format!("{} is not there after the move", to.display()))),
        }
    }
}

/// Checks that the files of an interrupted move that are not at their old place are at the new one.
fn check_moved(plan: &FilePlan, to: &Path) -> Result<(), CommandError> {
    let is_lost = |path: &&PathBuf| to.join(path).symlink_metadata().is_err();
    let Some(path) = plan.missing.iter().find(is_lost) else { return Ok(()) };
    let (old, new) = (plan.directory.join(path), to.join(path));
    Err(precondition(format!("neither {} nor {} is there", old.display(), new.display())))
}

/// Returns the deepest folder above or at `folder` that exists.
fn existing(folder: &Path) -> Result<(&Path, Metadata), CommandError> {
    let found = folder.ancestors().find_map(|start| match start.metadata() {
        Ok(found) if found.is_dir() => Some(Ok((start, found))),
        Ok(_) => Some(Err(precondition(format!("{} is no folder", start.display())))),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
        Err(error) => Some(Err(precondition(format!("{}: {error}", start.display())))),
    });
    found.unwrap_or_else(|| Err(precondition(format!("{} is not an absolute path", folder.display()))))
}

fn failed(path: &Path, error: &io::Error) -> CommandError {
    precondition(format!("{}: {error}; every file is where it was", path.display()))
}

fn move_file(from: &Path, to: &Path) -> io::Result<()> {
    let folder = to.parent().ok_or(ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    match fs::rename(from, to) {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {}
        other => return other,
    }
    let found = from.symlink_metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("a link is not moved to another disk"));
    }
    // Under another name until it is whole: a file of the right name and size counts as copied after an interruption.
    let mut name = to.file_name().ok_or(ErrorKind::InvalidInput)?.to_owned();
    name.push(".dtorrent-part");
    let part = folder.join(name);
    if let Err(error) = copy(from, &part, &found) {
        fs::remove_file(&part)?;
        return Err(error);
    }
    fs::rename(&part, to)?;
    // The new name has to survive a power cut before the old one goes.
    fs::File::open(folder)?.sync_all()?;
    fs::remove_file(from)
}

fn copy(from: &Path, to: &Path, found: &Metadata) -> io::Result<()> {
    let (mut source, mut target) = (fs::File::open(from)?, fs::File::create(to)?);
    io::copy(&mut source, &mut target)?;
    target.set_permissions(found.permissions())?;
    // rTorrent takes a file with an unchanged time as verified, and does not read it again.
    target.set_modified(found.modified()?)?;
    target.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::roots::Roots;
    use crate::model::{Content, ContentFile};

    struct Folder {
        _folder: tempfile::TempDir,
        root: PathBuf,
        roots: Roots,
    }

    fn folder_with(files: &[&str]) -> Folder {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().canonicalize().unwrap();
        for path in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"x").unwrap();
        }
        Folder { _folder: temporary, roots: Roots::new(vec![root.clone()]), root }
    }

    impl Folder {
        /// Plans to move the torrent `t` of the files `a` and `sub/b`.
        fn plan(&self, to: &str, is_repeated: bool) -> Result<FileMove, CommandError> {
            let file = |path: &str| ContentFile { path: path.into(), length: 1, is_begun: true, is_complete: true };
            let content = Content {
                directory: self.root.join("t"),
                folder_name: Some("t".into()),
                files: vec![file("a"), file("sub/b")],
            };
            FileMove::new(FilePlan::new(&self.roots, &content)?, &self.root.join(to), is_repeated)
        }

        fn has(&self, path: &str) -> bool {
            self.root.join(path).symlink_metadata().is_ok()
        }
    }

    #[test]
    fn a_move_goes_on_after_an_interruption_and_overwrites_nothing() {
        let folder = folder_with(&["t/a", "t/sub/b", "new/t/a"]);
        assert!(folder.plan("new/t", false).is_err());
        assert!(folder.has("t/a") && folder.has("t/sub/b"), "nothing was begun");
        folder.plan("new/t", true).unwrap().run().unwrap();
        assert!(folder.has("new/t/a") && folder.has("new/t/sub/b") && !folder.has("t"));
        // Once more, when all is done.
        let done = folder.plan("new/t", true).unwrap();
        done.run().unwrap();
        done.check_done().unwrap();
        assert!(folder.plan("new/t", false).is_err(), "not interrupted, so the files are lost");
        fs::remove_file(folder.root.join("new/t/a")).unwrap();
        assert!(folder.plan("new/t", true).unwrap_err().message.contains("neither"));
    }

    #[test]
    fn a_move_that_fails_half_way_leaves_every_file_where_it_was() {
        let folder = folder_with(&["t/a", "t/sub/b"]);
        let moving = folder.plan("new/deep/t", false).unwrap();
        // Between plan and move somebody puts a file where a folder is needed.
        fs::create_dir_all(folder.root.join("new/deep/t")).unwrap();
        fs::write(folder.root.join("new/deep/t/sub"), b"x").unwrap();
        assert!(moving.run().unwrap_err().message.contains("t/sub/b"));
        assert!(folder.has("t/a") && folder.has("t/sub/b") && !folder.has("new/deep/t/a"));
        assert!(folder.has("new/deep/t/sub"), "what others put there stays");
    }

    #[test]
    fn a_move_is_taken_back_with_the_folders_that_it_made() {
        let folder = folder_with(&["t/a", "t/sub/b"]);
        let moving = folder.plan("new/deep/t", false).unwrap();
        moving.run().unwrap();
        assert!(!folder.has("t"));
        moving.undo().unwrap();
        assert!(folder.has("t/a") && folder.has("t/sub/b") && !folder.has("new"));
    }

    #[test]
    fn a_place_that_is_the_same_folder_needs_no_move() {
        let folder = folder_with(&["t/a", "t/sub/b"]);
        std::os::unix::fs::symlink(&folder.root, folder.root.join("link")).unwrap();
        let moving = folder.plan("link/t", false).unwrap();
        moving.run().unwrap();
        moving.check_done().unwrap();
        assert!(folder.has("t/a") && folder.has("t/sub/b"));
        assert!(folder.plan("t/a/below", false).unwrap_err().message.contains("is no folder"));
    }
}
