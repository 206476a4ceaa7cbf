//! Moving the files of a torrent, in a way that can be taken back. Everything here blocks.
//!
//! 1. Each file gets its new name: by a rename, which takes no time, or on another file system by a copy. This can be given
//!    up between two files and within a copy: renames are reversed, copies removed, and every file is where it was.
//! 2. When all are there, the originals of the copies are removed, which takes no time either.
//!
//! A move therefore needs the room for a whole copy, and no file ever has to be copied back because the time was over.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tracing::{debug, warn};

use super::beneath::{Folder, Found, Identity, Kind, Place, PlaceError, Walk, lock};
use super::disk_rights::{check_may_change, check_may_read, check_may_remove};
use super::errors::{out_of_time, precondition};
use super::files::{FilePlan, PlannedFile};
use super::roots::Roots;
use crate::model::{CommandError, ErrorCode};

/// A file that is being copied is called so, with a random number between the two.
const PART_PREFIX: &str = ".dtorrent-";
const PART_SUFFIX: &str = ".part";
/// Bytes copied between two looks at the time.
const COPY_STEP_BYTES: u64 = 4 << 20;

/// The move of the files of one torrent to another directory.
#[derive(Debug)]
pub(super) struct FileMove {
    plan: FilePlan,
    pairs: Vec<Pair>,
    target: Target,
    /// Folders of the new place that do not exist yet, below the start of the target, parents before their children.
    new_folders: BTreeSet<PathBuf>,
}

/// The new place of the files.
#[derive(Debug)]
struct Target {
    /// As much of it as exists.
    start: Folder,
    /// The rest of the path.
    rest: PathBuf,
}

#[derive(Debug)]
struct Pair {
    file: PlannedFile,
    /// Copied whole before an interruption: only the old one is still to be deleted.
    is_copied: bool,
}

impl FileMove {
    /// Plans to move the files below `to`, with their paths in the torrent's directory, and checks that it can be done.
    ///
    /// Nothing is changed. `is_repeated` is for a command that was interrupted: some files may be at the new place.
    pub fn new(plan: FilePlan, roots: &Roots, to: &Path, is_repeated: bool) -> Result<Self, CommandError> {
        let (start, rest) = roots.open_start("directory", to)?;
        let target = Target { start, rest };
        if is_repeated {
            target.check_moved(&plan)?;
        } else {
            plan.check_complete()?;
        }
        let pairs = Vec::with_capacity(plan.files.len());
        let mut moving = Self { pairs, new_folders: BTreeSet::new(), target, plan };
        let Some(base) = &moving.plan.base else { return Ok(moving) };
        // The same folder: only the client is asked.
        if moving.target.rest.as_os_str().is_empty()
            && moving.target.start.itself()?.identity == base.itself()?.identity
        {
            return Ok(moving);
        }
        for file in &moving.plan.files {
            let is_copied = match moving.target.found(&file.path)? {
                Some((_, found)) if is_repeated && found.kind == Kind::File && found.bytes == file.bytes => true,
                Some((path, _)) => {
                    return Err(precondition(format!("{} is there already and is left alone", path.display())));
                }
                None => false,
            };
            moving.pairs.push(Pair { file: file.clone(), is_copied });
        }
        moving.new_folders = moving.check_rights(base)?;
        Ok(moving)
    }

    /// Checks what this process may do at both ends; returns the folders that are to be made.
    fn check_rights(&self, base: &Folder) -> Result<BTreeSet<PathBuf>, CommandError> {
        let (mut new_folders, mut devices, mut walk) = (BTreeSet::new(), HashMap::new(), Walk::new(base));
        let mut checked: Option<&Path> = None;
        for Pair { file, .. } in &self.pairs {
            let (folder, name) = walk.folder_of(&file.path)?;
            let parent = file.path.parent().unwrap_or(Path::new(""));
            if checked.replace(parent) != Some(parent) {
                check_may_change(folder)?;
            }
            let Some(found) = folder.found(name)? else { continue };
            check_may_remove(folder, name, &found)?;
            if !devices.contains_key(parent) {
                let (deepest, missing) = self.target.start.start_of(&self.target.rest.join(parent))?;
                check_may_change(&deepest)?;
                let place = self.target.rest.join(parent);
                let count = missing.components().count();
                new_folders.extend(place.ancestors().take(count).map(Path::to_owned));
                devices.insert(parent, deepest.itself()?.identity.device);
            }
            if devices.get(parent) != Some(&found.identity.device) {
                check_may_read(folder, name)?;
            }
        }
        Ok(new_folders)
    }

    /// Whether every file is at its old place alone.
    pub fn is_untouched(&self) -> bool {
        self.plan.check_complete().is_ok() && self.pairs.iter().all(|pair| !pair.is_copied)
    }

    /// Moves the files, as long as `has_time`.
    ///
    /// # Errors
    /// The first that cannot be moved, or the end of the time; every file is back at its old place.
    pub fn run(&self, has_time: &dyn Fn() -> bool) -> Result<(), CommandError> {
        let Some(base) = &self.plan.base else { return Ok(()) };
        let mut walk = Walk::new(base);
        for (number, pair) in self.pairs.iter().enumerate() {
            if let Err(error) = self.place(&mut walk, pair, has_time) {
                let failed = if has_time() {
                    precondition(format!("{error}; every file is where it was"))
                } else {
                    let (count, to) = (self.pairs.len(), self.target.path_of(Path::new("")));
                    out_of_time(&format!(
                        "{number} of {count} files were at {}; every file is where it was",
                        to.display()
                    ))
                };
                return Err(self.undo_first(number).err().unwrap_or(failed));
            }
        }
        // From here on it is completed, however late it is: that takes no time.
        for Pair { file, .. } in &self.pairs {
            if let Err(error) = remove_original(&mut walk, file) {
                let failed = precondition(format!("{error}; every file is where it was"));
                return Err(self.undo().err().unwrap_or(failed));
            }
        }
        self.plan.remove_folders();
        Ok(())
    }

    /// Gives a file its new name. On another file system it has both names afterwards.
    fn place(&self, walk: &mut Walk<'_>, pair: &Pair, has_time: &dyn Fn() -> bool) -> Result<(), PlaceError> {
        let Pair { file, is_copied } = pair;
        let (folder, name) = walk.folder_of(&file.path)?;
        if *is_copied {
            return Ok(());
        }
        let found = Found { identity: file.identity, ..expect_found(folder, name)? };
        check_time(has_time, folder, name)?;
        let to = self.target.make(&file.path)?;
        // The disk may have kept this waiting.
        check_time(has_time, folder, name)?;
        if folder.rename(name, found.identity, &to)? { Ok(()) } else { copy_file(folder, name, &found, &to, has_time) }
    }

    /// Moves the files back to where they were.
    ///
    /// # Errors
    /// The first that cannot be moved back. Each file is whole at one of the two places.
    pub fn undo(&self) -> Result<(), CommandError> {
        self.undo_first(self.pairs.len())
    }

    fn undo_first(&self, count: usize) -> Result<(), CommandError> {
        let Some(base) = &self.plan.base else { return Ok(()) };
        for Pair { file, .. } in self.pairs[..count].iter().rev() {
            self.move_back(base, file).map_err(|error| {
                let home = base.path().join(&file.path);
                let home = home.display();
                let message = format!("{error}; it belongs back to {home}, as the move could not be completed");
                CommandError::new(ErrorCode::ClientFault, message)
            })?;
        }
        // Others may have put something there meanwhile, and then it stays.
        let left = self.new_folders.iter().rev().filter(|folder| self.target.remove_folder(folder).is_err()).count();
        if left > 0 {
            debug!(left, "folders made for a move are not empty or never were made");
        }
        Ok(())
    }

    fn move_back(&self, base: &Folder, file: &PlannedFile) -> Result<(), PlaceError> {
        let Place { folder, name } = self.target.open(&file.path)?;
        let found = expect_found(&folder, &name)?;
        let original = Walk::new(base).found(&file.path).unwrap_or(None);
        if original.is_some_and(|original| original.identity == file.identity) {
            return folder.remove_file(&name, found.identity);
        }
        let home = self.plan.remake(&file.path)?;
        if folder.rename(&name, found.identity, &home)? {
            return Ok(());
        }
        copy_file(&folder, &name, &found, &home, &|| true)?;
        folder.remove_file(&name, found.identity)
    }

    /// Checks that every file is at its new place.
    pub fn check_done(&self) -> Result<(), CommandError> {
        for Pair { file, .. } in &self.pairs {
            let found = self.target.found(&file.path)?;
            if !found.is_some_and(|(_, found)| found.kind == Kind::File && found.bytes >= file.bytes) {
                let path = self.target.path_of(&file.path);
                return Err(precondition(format!("{} is not there after the move", path.display())));
            }
        }
        Ok(())
    }
}

impl Target {
    fn path_of(&self, file: &Path) -> PathBuf {
        self.start.path().join(&self.rest).join(file)
    }

    /// Opens the folder of a file.
    fn open(&self, file: &Path) -> Result<Place, PlaceError> {
        let (folder, name) = self.split(file);
        Ok(Place { folder: self.start.below(&folder)?, name })
    }

    /// The same after making the folders that are missing.
    fn make(&self, file: &Path) -> Result<Place, PlaceError> {
        let (folder, name) = self.split(file);
        Ok(Place { folder: self.start.make_below(&folder)?, name })
    }

    fn split(&self, file: &Path) -> (PathBuf, OsString) {
        (self.rest.join(file.parent().unwrap_or(Path::new(""))), file.file_name().unwrap_or_default().to_owned())
    }

    /// Looks for a file.
    fn found(&self, file: &Path) -> Result<Option<(PathBuf, Found)>, PlaceError> {
        match self.open(file) {
            Ok(place) => Ok(place.found()?.map(|found| (place.path(), found))),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn remove_folder(&self, folder: &Path) -> Result<(), PlaceError> {
        let parent = self.start.below(folder.parent().unwrap_or(Path::new("")))?;
        parent.remove_folder(folder.file_name().unwrap_or_default())
    }

    /// Checks that the files of an interrupted move that are not at their old place are here.
    fn check_moved(&self, plan: &FilePlan) -> Result<(), CommandError> {
        for path in &plan.missing {
            if self.found(path)?.is_none() {
                let (old, new) = (plan.directory.join(path), self.path_of(path));
                return Err(precondition(format!("neither {} nor {} is there", old.display(), new.display())));
            }
        }
        Ok(())
    }
}

fn expect_found(folder: &Folder, name: &OsStr) -> Result<Found, PlaceError> {
    let missing = || PlaceError::Io { path: folder.path().join(name), reason: io::ErrorKind::NotFound.into() };
    folder.found(name)?.ok_or_else(missing)
}

/// Removes a file that has another name by now, if it still has its old one.
fn remove_original(walk: &mut Walk<'_>, file: &PlannedFile) -> Result<(), PlaceError> {
    let (folder, name) = walk.folder_of(&file.path)?;
    match folder.found(name)? {
        Some(found) if found.identity == file.identity => folder.remove_file(name, file.identity),
        _ => Ok(()),
    }
}

fn check_time(has_time: &dyn Fn() -> bool, folder: &Folder, name: &OsStr) -> Result<(), PlaceError> {
    let late = || PlaceError::Io { path: folder.path().join(name), reason: io::ErrorKind::TimedOut.into() };
    if has_time() { Ok(()) } else { Err(late()) }
}

/// Copies a file to where there is nothing, and writes the copy to stable storage.
fn copy_file(
    folder: &Folder,
    name: &OsStr,
    found: &Found,
    to: &Place,
    has_time: &dyn Fn() -> bool,
) -> Result<(), PlaceError> {
    remove_parts(&to.folder);
    let part = Part::create(&to.folder)?;
    let filled = part.fill(folder, name, found, has_time);
    let copied = filled.and_then(|()| to.folder.rename(&part.name, part.identity, to));
    if !matches!(copied, Ok(true)) {
        to.folder.remove_file(&part.name, part.identity)?;
        let other_disk = || PlaceError::Io { path: to.path(), reason: io::ErrorKind::CrossesDevices.into() };
        return Err(copied.err().unwrap_or_else(other_disk));
    }
    // The new name has to survive a power cut before the old one goes.
    to.folder.sync().inspect_err(|_| {
        if let Err(error) = to.folder.remove_file(&to.name, part.identity) {
            warn!(%error, "a copy stays");
        }
    })
}

/// A file that is being copied, under another name until it is whole: a file of the right name and size counts as copied
/// after an interruption.
struct Part {
    name: OsString,
    identity: Identity,
    /// Locked as long as this exists: a part without a lock was left by a process that was killed.
    file: File,
}

impl Part {
    /// Creates one under a name that nobody can know before.
    fn create(folder: &Folder) -> Result<Self, PlaceError> {
        loop {
            let name = OsString::from(format!("{PART_PREFIX}{:032x}{PART_SUFFIX}", rand::random::<u128>()));
            let (file, identity) = folder.create_file(&name, 0o600)?;
            // Another move may have taken it for one that was left, before it had its lock.
            if lock(&file) && folder.found(&name)?.is_some_and(|found| found.identity == identity) {
                return Ok(Self { name, identity, file });
            }
        }
    }

    fn fill(
        &self,
        folder: &Folder,
        name: &OsStr,
        found: &Found,
        has_time: &dyn Fn() -> bool,
    ) -> Result<(), PlaceError> {
        let failed = |reason| PlaceError::Io { path: folder.path().join(name), reason };
        let (mut source, now) = folder.open_file(name, Some(found.identity))?;
        while io::copy(&mut (&mut source).take(COPY_STEP_BYTES), &mut &self.file).map_err(failed)? > 0 {
            check_time(has_time, folder, name)?;
        }
        // Without the bits that would give a program other rights: the copy is this user's.
        self.file.set_permissions(Permissions::from_mode(now.mode & 0o777)).map_err(failed)?;
        // rTorrent takes a file with an unchanged time as verified, and does not read it again.
        let modified = source.metadata().and_then(|source| source.modified());
        modified.and_then(|time| self.file.set_modified(time)).and_then(|()| self.file.sync_all()).map_err(failed)
    }
}

/// Removes the parts in a folder that nobody is writing: left when a process was killed.
fn remove_parts(folder: &Folder) {
    let stays = |error| warn!(folder = %folder.path().display(), %error, "an unfinished copy stays");
    let remove = |name: &OsStr| {
        let (file, found) = folder.open_file(name, None)?;
        if lock(&file) { folder.remove_file(name, found.identity) } else { Ok(()) }
    };
    match folder.names() {
        Ok(names) => {
            names.iter().filter(|name| is_part(name)).for_each(|name| remove(name).unwrap_or_else(stays));
        }
        Err(error) => stays(error),
    }
}

fn is_part(name: &OsStr) -> bool {
    let middle = name.to_str().and_then(|name| name.strip_prefix(PART_PREFIX)?.strip_suffix(PART_SUFFIX));
    middle.is_some_and(|middle| middle.len() == 32 && middle.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::model::{Content, ContentFile};

    struct TestFolder {
        _folder: tempfile::TempDir,
        root: PathBuf,
        roots: Roots,
    }

    fn folder_with(files: &[&str]) -> TestFolder {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().canonicalize().unwrap();
        for path in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"x").unwrap();
        }
        TestFolder { _folder: temporary, roots: Roots::new(vec![root.clone()]), root }
    }

    impl TestFolder {
        /// Plans to move the torrent `t` of the files `a` and `sub/b`.
        fn plan(&self, to: &str, is_repeated: bool) -> Result<FileMove, CommandError> {
            FileMove::new(self.files(), &self.roots, &self.root.join(to), is_repeated)
        }

        fn files(&self) -> FilePlan {
            let file = |path: &str| ContentFile { path: path.into(), length: 1, is_begun: true, is_complete: true };
            let content = Content {
                directory: self.root.join("t"),
                folder_name: Some("t".into()),
                files: vec![file("a"), file("sub/b")],
            };
            FilePlan::new(&self.roots, &content).unwrap()
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
        folder.plan("new/t", true).unwrap().run(&|| true).unwrap();
        assert!(folder.has("new/t/a") && folder.has("new/t/sub/b") && !folder.has("t"));
        // Once more, when all is done.
        let done = folder.plan("new/t", true).unwrap();
        done.run(&|| true).unwrap();
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
        assert!(moving.run(&|| true).unwrap_err().message.contains("new/deep/t/sub"));
        assert!(folder.has("t/a") && folder.has("t/sub/b") && !folder.has("new/deep/t/a"));
        assert!(folder.has("new/deep/t/sub"), "what others put there stays");
    }

    #[test]
    fn a_move_whose_time_ends_is_taken_back_whenever_that_is() {
        // Another file system.
        let other = tempfile::tempdir_in("/dev/shm").unwrap();
        for (to, checks) in [("new/t".into(), 0..4), (other.path().canonicalize().unwrap().join("new/t"), 0..6)] {
            for left in checks {
                let folder = folder_with(&["t/a", "t/sub/b"]);
                let roots = Roots::new(vec![folder.root.clone(), other.path().to_owned()]);
                let moving = FileMove::new(folder.files(), &roots, &folder.root.join(&to), false).unwrap();
                let looks = std::cell::Cell::new(0);
                let moved = moving.run(&|| looks.replace(looks.get() + 1) < left);
                let error = moved.unwrap_err();
                assert!(error.retryable && error.message.contains("every file is where it was"), "{error:?}");
                assert!(folder.has("t/a") && folder.has("t/sub/b"), "{left}");
                assert!(!folder.has("new") && !other.path().join("new").try_exists().unwrap(), "{left}");
            }
        }
    }

    #[test]
    fn a_copy_is_whole_before_the_first_original_goes() {
        let other = tempfile::tempdir_in("/dev/shm").unwrap();
        let folder = folder_with(&["t/a", "t/sub/b"]);
        let there = other.path().canonicalize().unwrap();
        let roots = Roots::new(vec![folder.root.clone(), there.clone()]);
        let moving = FileMove::new(folder.files(), &roots, &there.join("t"), false).unwrap();
        moving.run(&|| folder.has("t/a")).unwrap();
        moving.check_done().unwrap();
        assert!(!folder.has("t") && there.join("t/sub/b").is_file());
        moving.undo().unwrap();
        assert!(folder.has("t/a") && folder.has("t/sub/b") && !there.join("t").try_exists().unwrap());
    }

    #[test]
    fn a_move_is_taken_back_with_the_folders_that_it_made() {
        let folder = folder_with(&["t/a", "t/sub/b"]);
        let moving = folder.plan("new/deep/t", false).unwrap();
        moving.run(&|| true).unwrap();
        assert!(!folder.has("t"));
        moving.undo().unwrap();
        assert!(folder.has("t/a") && folder.has("t/sub/b") && !folder.has("new"));
    }

    #[test]
    fn a_place_that_is_the_same_folder_needs_no_move() {
        let folder = folder_with(&["t/a", "t/sub/b"]);
        let moving = folder.plan("t", false).unwrap();
        moving.run(&|| true).unwrap();
        moving.check_done().unwrap();
        assert!(folder.has("t/a") && folder.has("t/sub/b"));
        assert!(folder.plan("t/a/below", false).unwrap_err().message.contains("Not a directory"));
    }

    #[test]
    fn no_file_is_moved_through_a_link() {
        let outside = folder_with(&["empty/x"]);
        let folder = folder_with(&["t/a", "t/sub/b", "there/y"]);
        symlink(&outside.root, folder.root.join("way-out")).unwrap();
        fs::create_dir(folder.root.join("new")).unwrap();
        symlink(&outside.root, folder.root.join("new/t")).unwrap();
        symlink(folder.root.join("there"), folder.root.join("inside")).unwrap();
        for to in ["way-out/t", "way-out/empty/deep/t", "new/t", "inside/t"] {
            assert!(folder.plan(to, false).unwrap_err().message.contains("is a symbolic link"), "{to}");
        }
        // After the plan: the new place, a folder in it, and the folder of a file.
        for swapped in ["later", "there/sub", "t/sub"] {
            let moving = folder.plan(if swapped == "later" { "later/t" } else { "there" }, false).unwrap();
            let path = folder.root.join(swapped);
            let aside = folder.root.join("aside");
            let was_there = fs::rename(&path, &aside).is_ok();
            symlink(outside.root.join("empty"), &path).unwrap();
            assert!(moving.run(&|| true).is_err(), "{swapped}");
            fs::remove_file(&path).unwrap();
            if was_there {
                fs::rename(&aside, &path).unwrap();
            }
            assert!(folder.has("t/a") && folder.has("t/sub/b"), "{swapped}");
        }
        assert_eq!(fs::read_dir(outside.root.join("empty")).unwrap().count(), 1);
    }

    #[test]
    fn a_copy_that_was_left_is_removed_and_nothing_else() {
        let folder = folder_with(&["secret", "new/.dtorrent-0123.part", "new/mine.part"]);
        let part = |digit: &str| format!("{PART_PREFIX}{}{PART_SUFFIX}", digit.repeat(32));
        let new = folder.root.join("new");
        fs::write(new.join(part("a")), b"left").unwrap();
        symlink(folder.root.join("secret"), new.join(part("b"))).unwrap();
        fs::create_dir(new.join(part("c"))).unwrap();
        let held = Folder::open(&new).unwrap();
        let running = Part::create(&held).unwrap();
        remove_parts(&held);
        assert!(!new.join(part("a")).try_exists().unwrap(), "nobody is writing it");
        assert!(new.join(part("b")).is_symlink() && new.join(part("c")).is_dir() && folder.has("secret"));
        assert!(folder.has("new/.dtorrent-0123.part") && folder.has("new/mine.part"));
        assert!(new.join(&running.name).is_file(), "it is being written");
        drop(running.file);
        remove_parts(&held);
        assert!(!new.join(&running.name).try_exists().unwrap());
    }
}
