//! The files of a torrent on this machine: located, deleted, moved.
//!
//! A torrent's paths come from whoever made it and its folder from whoever added it, so:
//! - the folder of each file is resolved through all links first, and has to lie below a root; the file
//!   itself is never followed: a link is removed, not what it points to;
//! - a root itself, a folder where a file should be, and what another disk is mounted on are left alone;
//! - folders are only ever removed when they are empty;
//! - a file that another torrent has, too, is left alone (the caller asks [`FilePlan::shared_with`]).
//!
//! Everything here blocks.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use super::errors::precondition;
use super::roots::{self, Roots};
use crate::model::{CommandError, DeletedFiles, ErrorCode, File, RemainingFile};

/// Most paths that a result lists.
const LISTED_MAX: usize = 1000;

/// The files of one torrent that exist.
#[derive(Debug)]
pub(super) struct FilePlan {
    /// With their links resolved, each with its size.
    files: Vec<(PathBuf, u64)>,
    /// The folders that belong to the torrent alone.
    folders: BTreeSet<PathBuf>,
    /// The torrent's folder, with its links resolved.
    base: PathBuf,
}

impl FilePlan {
    /// Finds the files of a torrent whose data is in `directory`; files that do not exist are left out.
    ///
    /// # Errors
    /// A path that is not below the roots, is no plain file, or may not be the exact name of a file.
    pub fn new(roots: &Roots, directory: &str, files: &[File], is_folder: bool) -> Result<Self, CommandError> {
        let directory = Path::new(directory);
        if !roots::is_plain(directory) {
            return Err(precondition("the client does not say in which absolute folder it is"));
        }
        let mut plan = Self { files: Vec::new(), folders: BTreeSet::new(), base: PathBuf::new() };
        // A torrent has few folders and many files, and each resolution costs a system call per level.
        let mut folders: HashMap<PathBuf, Option<PathBuf>> = HashMap::new();
        let mut resolve =
            |folder: &Path| folders.entry(folder.to_owned()).or_insert_with(|| folder.canonicalize().ok()).clone();
        plan.base = resolve(directory).unwrap_or_else(|| directory.to_owned());
        for file in files {
            let relative = Path::new(&file.path);
            // U+FFFD stands for bytes that a client could not write as text, so the true name is unknown.
            let is_inside = relative.components().all(|part| matches!(part, Component::Normal(_)));
            let name = relative.file_name().filter(|_| is_inside && !file.path.contains(['\0', '\u{fffd}']));
            let Some(name) = name else {
                return Err(precondition(format!("{:?} is no path to be sure of", file.path)));
            };
            let written = directory.join(relative);
            let Some(folder) = written.parent().and_then(&mut resolve) else {
                check_is_exact(&file.path)?;
                continue;
            };
            let path = folder.join(name);
            if !roots.has_below(&path) {
                return Err(roots.outside("its content"));
            }
            let refuse = |problem: &str| Err(precondition(format!("{} {problem}", path.display())));
            match path.symlink_metadata() {
                Ok(found) if found.is_dir() => return refuse("is a folder"),
                // A pipe or a device is no content of a torrent, and reading one may never end.
                Ok(found) if !(found.is_file() || found.is_symlink()) => return refuse("is no plain file"),
                Ok(found) if is_mounted(&folder, &found) => return refuse("is mounted there"),
                // A link occupies nothing of its own, and what it points to stays.
                Ok(found) => {
                    let bytes = if found.is_symlink() { 0 } else { found.len() };
                    plan.files.push((path, bytes));
                }
                Err(error) if error.kind() == ErrorKind::NotFound => check_is_exact(&file.path)?,
                Err(error) => return Err(precondition(format!("{}: {error}", path.display()))),
            }
            if is_folder {
                let own = folder.ancestors().take_while(|folder| folder.starts_with(&plan.base));
                plan.folders.extend(own.filter(|folder| roots.has_below(folder)).map(Path::to_owned));
            }
        }
        Ok(plan)
    }

    /// Whether a torrent with data in this folder could have one of the files.
    pub fn may_share(&self, directory: &Path) -> bool {
        directory.canonicalize().is_ok_and(|directory| self.files.iter().any(|(path, _)| path.starts_with(&directory)))
    }

    /// Returns the first file that is one of `files`, which another torrent has in `directory`.
    pub fn shared_with(&self, directory: &Path, files: &[File]) -> Option<&Path> {
        // A set, because comparing one by one takes too long: both torrents may have tens of thousands of files.
        let exact: HashSet<&Path> = self.files.iter().map(|(path, _)| path.as_path()).collect();
        let is_vague = |path: &Path| path.as_os_str().as_encoded_bytes().contains(&b'?');
        let ours_are_vague = exact.iter().any(|path| is_vague(path));
        let mut folders: HashMap<PathBuf, Option<PathBuf>> = HashMap::new();
        for file in files {
            let written = directory.join(&file.path);
            let (Some(folder), Some(name)) = (written.parent(), written.file_name()) else { continue };
            let folder = folders.entry(folder.to_owned()).or_insert_with(|| folder.canonicalize().ok());
            let Some(other) = folder.as_ref().map(|folder| folder.join(name)) else { continue };
            if let Some(path) = exact.get(other.as_path()) {
                return Some(path);
            }
            if (ours_are_vague || is_vague(&other))
                && let Some(path) = exact.iter().find(|path| could_be(path, &other))
            {
                return Some(path);
            }
        }
        None
    }

    /// Returns what [`Self::remove`] would do.
    pub fn preview(&self) -> DeletedFiles {
        let mut deleted = DeletedFiles::default();
        self.files.iter().for_each(|(path, bytes)| add_file(&mut deleted, path, *bytes));
        deleted
    }

    /// Deletes the files, and the folders that are empty then.
    pub fn remove(&self) -> DeletedFiles {
        let mut deleted = DeletedFiles::default();
        for (path, bytes) in &self.files {
            // Resolved once more: the plan is older than the request to the client that holds the torrent, and a folder
            // may have become a link since.
            let is_where_it_was =
                path.parent().is_some_and(|folder| folder.canonicalize().is_ok_and(|now| now == folder));
            let removed = if is_where_it_was { fs::remove_file(path) } else { Err(ErrorKind::NotFound.into()) };
            match removed {
                Ok(()) => add_file(&mut deleted, path, *bytes),
                Err(error) => add_remaining(&mut deleted, path, &error),
            }
        }
        self.remove_folders(&mut deleted);
        deleted
    }

    fn remove_folders(&self, deleted: &mut DeletedFiles) {
        // The deepest first, as a set of paths has parents before their children.
        for folder in self.folders.iter().rev() {
            let (Some(parent), Ok(found)) = (folder.parent(), folder.symlink_metadata()) else { continue };
            // An empty mount point belongs to whoever mounts there.
            if !found.is_dir() || is_mounted(parent, &found) {
                continue;
            }
            match fs::remove_dir(folder) {
                Err(error) if error.kind() != ErrorKind::NotFound => add_remaining(deleted, folder, &error),
                _ => {}
            }
        }
    }

    /// Moves the files below `to`, with their paths in the torrent's folder. May be called again after an interruption.
    ///
    /// # Errors
    /// Nothing is lost: each file is whole at the old or at the new place.
    pub fn move_to(&self, to: &Path, is_repeated: bool) -> Result<(), CommandError> {
        // All or nothing: a file outside would stay behind while the torrent points elsewhere.
        let pairs: Vec<(&Path, PathBuf, u64)> = self
            .files
            .iter()
            .filter_map(|(path, bytes)| Some((path.as_path(), to.join(path.strip_prefix(&self.base).ok()?), *bytes)))
            .collect();
        if pairs.len() < self.files.len() {
            return Err(precondition("a link leads one of its files out of its folder"));
        }
        // Before the first file moves, so that a refusal leaves everything where it is.
        for (from, new, bytes) in &pairs {
            match new.symlink_metadata() {
                // Copied whole before an interruption: only the old one is still to be deleted.
                Ok(found) if is_repeated && found.is_file() && found.len() == *bytes => {
                    fs::remove_file(from).map_err(|error| failed(from, &error))?;
                }
                Ok(_) => {
                    let message = format!("{} is there already and is left alone", new.display());
                    return Err(precondition(message));
                }
                Err(_) => {}
            }
        }
        // Those that are not there any more were moved before an interruption.
        for (from, new, _) in pairs.iter().filter(|(from, ..)| from.symlink_metadata().is_ok()) {
            move_file(from, new).map_err(|error| failed(from, &error))?;
        }
        self.remove_folders(&mut DeletedFiles::default());
        Ok(())
    }
}

fn failed(path: &Path, error: &io::Error) -> CommandError {
    CommandError::new(ErrorCode::ClientFault, format!("{}: {error}", path.display()))
}

/// rTorrent with xmlrpc-c writes `?` for each byte that is no UTF-8: a file that does not exist by that name may
/// exist by another.
fn check_is_exact(path: &str) -> Result<(), CommandError> {
    if path.contains('?') {
        let message = format!("{path:?} is not there, and may not be its exact name: remove its files by hand");
        return Err(precondition(message));
    }
    Ok(())
}

fn could_be(path: &Path, other: &Path) -> bool {
    let (path, other) = (path.as_os_str().as_encoded_bytes(), other.as_os_str().as_encoded_bytes());
    path.len() == other.len() && path.iter().zip(other).all(|(a, b)| a == b || *a == b'?' || *b == b'?')
}

/// Whether what was found in `folder` is on another file system than that.
fn is_mounted(folder: &Path, found: &Metadata) -> bool {
    folder.metadata().map_or(true, |folder| folder.dev() != found.dev())
}

fn add_file(deleted: &mut DeletedFiles, path: &Path, bytes: u64) {
    deleted.count += 1;
    deleted.bytes += bytes;
    if deleted.files.len() < LISTED_MAX {
        deleted.files.push(path.display().to_string());
    }
}

fn add_remaining(deleted: &mut DeletedFiles, path: &Path, error: &io::Error) {
    if deleted.left.len() < LISTED_MAX {
        deleted.left.push(RemainingFile { path: path.display().to_string(), reason: error.to_string() });
    }
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
    copy(from, &part, &found)?;
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

    fn file(path: &str) -> File {
        let name = path.rsplit('/').next().unwrap().to_owned();
        File { name, path: path.to_owned(), length: 1, progress: 100.0, priority: Some(1) }
    }

    fn text(path: &Path) -> &str {
        path.to_str().unwrap()
    }

    fn folder_with(files: &[&str]) -> (tempfile::TempDir, PathBuf, Roots) {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path().canonicalize().unwrap();
        for path in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"x").unwrap();
        }
        (temporary, root.clone(), Roots::new(vec![root]))
    }

    #[test]
    fn files_are_deleted_and_then_the_folders_that_are_empty() {
        let (_folder, root, roots) = folder_with(&["t/a", "t/sub/b", "t/sub2/c", "t/sub2/mine"]);
        let files = [file("a"), file("sub/b"), file("sub2/c"), file("never-was-there")];
        let deleted = FilePlan::new(&roots, text(&root.join("t")), &files, true).unwrap().remove();
        assert_eq!((deleted.count, deleted.bytes), (3, 3));
        assert_eq!(deleted.left.len(), 2, "sub2 and t are not empty: {:?}", deleted.left);
        assert!(!root.join("t/sub").try_exists().unwrap() && root.join("t/sub2/mine").is_file());
    }

    #[test]
    fn a_root_and_the_folder_of_a_single_file_stay() {
        let (_folder, root, roots) = folder_with(&["a", "sub/b"]);
        FilePlan::new(&roots, text(&root), &[file("a"), file("sub/b")], true).unwrap().remove();
        assert!(root.is_dir() && !root.join("sub").try_exists().unwrap());
        let (_folder, root, roots) = folder_with(&["films/a"]);
        FilePlan::new(&roots, text(&root.join("films")), &[file("a")], false).unwrap().remove();
        assert!(root.join("films").is_dir());
    }

    #[test]
    fn nothing_outside_the_roots_is_touched_and_no_link_is_followed() {
        let (_outer, outside, _) = folder_with(&["secret", "sub/x"]);
        let (_folder, root, roots) = folder_with(&["t/a"]);
        std::os::unix::fs::symlink(&outside, root.join("t/link")).unwrap();
        std::os::unix::fs::symlink(outside.join("secret"), root.join("t/leaf")).unwrap();
        let t = root.join("t");
        for bad in ["link/secret", "../t/a", "/etc/passwd", "", ".", "a\0b", "caf\u{fffd}", "link/sub/x"] {
            assert!(FilePlan::new(&roots, text(&t), &[file("a"), file(bad)], true).is_err(), "{bad:?}");
        }
        for bad in ["", "t", "/etc", text(&outside), &format!("{}/../x", root.display())] {
            assert!(FilePlan::new(&roots, bad, &[file("passwd"), file("secret")], true).is_err(), "{bad:?}");
        }
        assert!(FilePlan::new(&roots, text(&root), &[file("t")], false).is_err(), "a folder is no file");
        let deleted = FilePlan::new(&roots, text(&t), &[file("leaf")], true).unwrap().remove();
        assert_eq!((deleted.count, outside.join("secret").is_file()), (1, true), "the link went, not its target");
    }

    #[test]
    fn a_name_that_may_be_another_one_is_refused() {
        let (_folder, root, roots) = folder_with(&["what?"]);
        assert!(FilePlan::new(&roots, text(&root), &[file("caf?")], false).is_err());
        assert!(FilePlan::new(&roots, text(&root), &[file("what?")], false).is_ok());
    }

    #[test]
    fn a_file_of_another_torrent_is_recognized_by_any_path_to_it() {
        let (_folder, root, roots) = folder_with(&["t/sub/a"]);
        std::os::unix::fs::symlink(root.join("t"), root.join("other")).unwrap();
        let plan = FilePlan::new(&roots, text(&root.join("t")), &[file("sub/a")], true).unwrap();
        for (directory, path) in [("t", "sub/a"), ("other/sub", "a"), ("", "t/sub/a"), ("t", "sub/?")] {
            let directory = root.join(directory);
            assert!(plan.may_share(&directory));
            assert!(plan.shared_with(&directory, &[file("zzz"), file(path)]).is_some(), "{path}");
        }
        assert!(plan.shared_with(&root.join("t"), &[file("sub/b"), file("a")]).is_none());
        assert!(!plan.may_share(Path::new("/etc")));
    }

    #[test]
    fn a_move_goes_on_after_an_interruption_and_overwrites_nothing() {
        let (_folder, root, roots) = folder_with(&["t/a", "t/sub/b", "new/t/a"]);
        let (old, new) = (root.join("t"), root.join("new/t"));
        let files = [file("a"), file("sub/b")];
        let plan = FilePlan::new(&roots, text(&old), &files, true).unwrap();
        assert!(plan.move_to(&new, false).is_err());
        assert!(old.join("sub/b").is_file(), "nothing was begun");
        plan.move_to(&new, true).unwrap();
        assert!(new.join("a").is_file() && new.join("sub/b").is_file() && !old.try_exists().unwrap());
        // Once more, when all is done.
        FilePlan::new(&roots, text(&old), &files, true).unwrap().move_to(&new, true).unwrap();
    }
}
