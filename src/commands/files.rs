//! The files of a torrent on this machine: located, compared with what the client says, deleted.
//!
//! A torrent's paths come from whoever made it and its folder from whoever added it, so:
//! - the folder of each file is resolved through all links first, and has to lie below a root; the file
//!   itself is never followed: a link is removed, not what it points to;
//! - a root itself, a folder where a file should be, and what another disk is mounted on are left alone;
//! - folders are only ever removed when they are empty;
//! - a file that another torrent has, too, is left alone (the caller asks [`FilePlan::shared_with`]).
//!
//! The bridge may see another disk than the client does, so a file of which the client has something is looked for
//! under its name, and a whole one by its size. Everything here blocks.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use super::disk_rights::check_may_remove;
use super::errors::precondition;
use super::roots::{self, Roots};
use crate::model::{
    CommandError, Content, ContentFile, DeletedFiles, File, RemainingFile, client_texts, is_ambiguous, stands_for,
    with_line_feeds,
};

/// Most paths that a result lists.
const LISTED_MAX: usize = 1000;

/// The files of one torrent on this machine.
#[derive(Debug)]
pub(super) struct FilePlan {
    /// Files that exist, with their links resolved, each with its size.
    pub files: Vec<(PathBuf, u64)>,
    /// Files of which the client has something and that are not here, relative to the torrent's directory.
    pub missing: Vec<PathBuf>,
    /// The folders that belong to the torrent alone.
    folders: BTreeSet<PathBuf>,
    /// The torrent's directory as the client has it.
    pub directory: PathBuf,
    /// The same with its links resolved.
    pub base: PathBuf,
}

/// The finding for one file.
enum Found {
    File(PathBuf, u64),
    Nothing,
}

impl FilePlan {
    /// Finds the files of a torrent.
    ///
    /// # Errors
    /// A path that is not below the roots, is no plain file, cannot be looked at, or is not what the client has.
    pub fn new(roots: &Roots, content: &Content) -> Result<Self, CommandError> {
        let directory = content.directory.clone();
        if !roots::is_plain(&directory) {
            return Err(precondition("the client does not say in which absolute folder it is"));
        }
        // A torrent has few folders and many files, and each resolution costs a system call per level.
        let mut folders: HashMap<PathBuf, Option<PathBuf>> = HashMap::new();
        let base = resolve(&directory, &mut folders)?.unwrap_or_else(|| directory.clone());
        let mut plan = Self { files: Vec::new(), missing: Vec::new(), folders: BTreeSet::new(), directory, base };
        for file in &content.files {
            let written = plan.directory.join(inside(&file.path)?);
            let parent = written.parent().expect("a path below a directory has a parent");
            let folder = resolve(parent, &mut folders)?;
            let found = folder.as_ref().map_or(Ok(Found::Nothing), |folder| find(roots, folder, file))?;
            match found {
                Found::File(path, bytes) => plan.files.push((path, bytes)),
                // Newer versions do not write padding to disk.
                Found::Nothing if file.is_begun && !is_padding(&file.path) => plan.missing.push(file.path.clone()),
                Found::Nothing => {}
            }
            if let Some(folder) = folder.filter(|_| content.folder_name.is_some()) {
                let own = folder.ancestors().take_while(|folder| folder.starts_with(&plan.base));
                plan.folders.extend(own.filter(|folder| roots.has_below(folder)).map(Path::to_owned));
            }
        }
        Ok(plan)
    }

    /// Checks that every file of which the client has something is here.
    pub fn check_complete(&self) -> Result<(), CommandError> {
        let Some(path) = self.missing.first() else { return Ok(()) };
        let message = format!(
            "{} is not there, though the client has data of it: the bridge has to see the content under the same path \
             as the client (another container or mount?)",
            self.directory.join(path).display()
        );
        Err(precondition(message))
    }

    /// Checks that this process may remove every file from its folder.
    pub fn check_removable(&self) -> Result<(), CommandError> {
        let mut folders = HashMap::new();
        self.files.iter().try_for_each(|(path, _)| check_may_remove(path, &mut folders))
    }

    /// Whether a torrent with data in this directory, as its client writes it, could have one of the files.
    pub fn may_share(&self, directory: &str) -> bool {
        let directory = Directory::new(directory);
        self.files.iter().any(|(path, _)| directory.rest_of(path).is_some())
    }

    /// Returns the first file that may be one of `files`, which another torrent has in `directory`.
    pub fn shared_with(&self, directory: &str, files: &[File]) -> Option<&Path> {
        // Sets, because comparing one by one takes too long: both torrents may have tens of thousands of files.
        let exact: HashSet<&Path> = self.files.iter().map(|(path, _)| path.as_path()).collect();
        let other = Directory::new(directory);
        let below = self.files.iter().filter_map(|(path, _)| Some((path, other.rest_of(path)?)));
        let texts = |(path, rest): (_, &Path)| client_texts(rest.as_os_str().as_bytes()).map(|text| (text, path));
        let written: HashMap<String, &PathBuf> = below.flat_map(texts).collect();
        let mut folders = HashMap::new();
        files.iter().find_map(|file| {
            if let Some(path) = written.get(&with_line_feeds(file.path.trim_start_matches('/'))) {
                return Some(path.as_path());
            }
            let path = Path::new(directory).join(file.path.trim_start_matches('/'));
            let folder = resolve(path.parent()?, &mut folders).ok()??;
            exact.get(folder.join(path.file_name()?).as_path()).copied()
        })
    }

    /// Returns what [`Self::remove`] would do.
    pub fn preview(&self) -> DeletedFiles {
        let mut deleted = DeletedFiles::default();
        self.files.iter().for_each(|(path, bytes)| add_file(&mut deleted, path, *bytes));
        deleted
    }

    /// Deletes the files, and the folders that are empty then.
    ///
    /// # Errors
    /// The first file that cannot be removed ends it; those before it are gone.
    pub fn remove(&self) -> Result<DeletedFiles, CommandError> {
        let mut deleted = DeletedFiles::default();
        for (path, bytes) in &self.files {
            // Resolved once more: the plan is older than the request to the client that holds the torrent, and a folder
            // may have become a link since.
            let is_where_it_was =
                path.parent().is_some_and(|folder| folder.canonicalize().is_ok_and(|now| now == folder));
            let removed = if is_where_it_was { fs::remove_file(path) } else { Err(ErrorKind::NotFound.into()) };
            if let Err(error) = removed {
                let (path, count) = (path.display(), deleted.count);
                let message =
                    format!("{path}: {error}; {count} of its files were deleted before, and the torrent was kept");
                return Err(precondition(message));
            }
            add_file(&mut deleted, path, *bytes);
        }
        deleted.left = self.remove_folders();
        Ok(deleted)
    }

    /// Removes the torrent's own folders that are empty; returns those that are not.
    pub fn remove_folders(&self) -> Vec<RemainingFile> {
        let mut left = Vec::new();
        // The deepest first, as a set of paths has parents before their children.
        for folder in self.folders.iter().rev() {
            let (Some(parent), Ok(found)) = (folder.parent(), folder.symlink_metadata()) else { continue };
            // An empty mount point belongs to whoever mounts there.
            if !found.is_dir() || is_mounted(parent, &found) {
                continue;
            }
            match fs::remove_dir(folder) {
                Err(error) if error.kind() != ErrorKind::NotFound && left.len() < LISTED_MAX => {
                    left.push(RemainingFile { path: folder.display().to_string(), reason: error.to_string() });
                }
                _ => {}
            }
        }
        left
    }
}

/// A directory as a client writes it.
struct Directory {
    /// As much of it as has one meaning, with its links resolved; `None` if that is not there.
    exact: Option<PathBuf>,
    /// The rest, which may stand for several paths.
    vague: String,
}

impl Directory {
    fn new(text: &str) -> Self {
        // A text is replaced as a whole, so before the first sign of it only ASCII is left, which stays.
        let start = Path::new(text).ancestors().find(|start| !is_ambiguous(&start.to_string_lossy()));
        let start = start.unwrap_or(Path::new("/"));
        let vague = Path::new(text).strip_prefix(start).unwrap_or(Path::new("")).to_string_lossy().into_owned();
        Self { exact: start.canonicalize().ok(), vague }
    }

    /// Returns the part of a path that is below a directory for which the text may stand.
    fn rest_of<'a>(&self, path: &'a Path) -> Option<&'a Path> {
        let below = path.strip_prefix(self.exact.as_ref()?).ok()?;
        if self.vague.is_empty() {
            return Some(below);
        }
        let is_meant = |start: &&Path| stands_for(&self.vague, start.as_os_str().as_bytes());
        below.strip_prefix(below.ancestors().skip(1).find(is_meant)?).ok()
    }
}

/// Resolves a folder; `None` if it does not exist.
///
/// # Errors
/// This process may not look into a folder above it, so that nothing is known.
fn resolve(folder: &Path, known: &mut HashMap<PathBuf, Option<PathBuf>>) -> Result<Option<PathBuf>, CommandError> {
    if let Some(resolved) = known.get(folder) {
        return Ok(resolved.clone());
    }
    let resolved = match folder.canonicalize() {
        Ok(resolved) => Some(resolved),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
        Err(error) => return Err(unseen(folder, &error)),
    };
    known.insert(folder.to_owned(), resolved.clone());
    Ok(resolved)
}

fn unseen(path: &Path, error: &io::Error) -> CommandError {
    precondition(format!("{}: {error}; the bridge has to see the content of a torrent to change it", path.display()))
}

/// Returns a path of the client if it leads to a file inside a directory.
fn inside(path: &Path) -> Result<&Path, CommandError> {
    let is_inside = path.file_name().is_some()
        && path.components().all(|part| matches!(part, Component::Normal(_)))
        && !path.as_os_str().as_bytes().contains(&0);
    if is_inside { Ok(path) } else { Err(precondition(format!("{path:?} is no path to be sure of"))) }
}

/// Looks at one file in its folder, whose links are resolved.
fn find(roots: &Roots, folder: &Path, file: &ContentFile) -> Result<Found, CommandError> {
    let path = folder.join(file.path.file_name().unwrap_or_default());
    if !roots.has_below(&path) {
        return Err(roots.outside("its content"));
    }
    let refuse = |problem: &str| Err(precondition(format!("{} {problem}", path.display())));
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => refuse("is a folder"),
        // A pipe or a device is no content of a torrent, and reading one may never end.
        Ok(found) if !(found.is_file() || found.is_symlink()) => refuse("is no plain file"),
        Ok(found) if is_mounted(folder, &found) => refuse("is mounted there"),
        // A link occupies nothing of its own, and what it points to stays.
        Ok(found) if found.is_symlink() => Ok(Found::File(path, 0)),
        Ok(found) if file.is_complete && found.len() != file.length => refuse(&format!(
            "has {} bytes and not {}, as the file that the client has there: it is another one (another mount?)",
            found.len(),
            file.length
        )),
        Ok(found) => Ok(Found::File(path, found.len())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Found::Nothing),
        Err(error) => Err(unseen(&path, &error)),
    }
}

/// Whether a path is by its name padding between two files (BEP 47): a client that knows it never writes it to disk.
fn is_padding(path: &Path) -> bool {
    let is_folder = path.starts_with(".pad");
    is_folder || path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"_____padding_file_"))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> File {
        let name = path.rsplit('/').next().unwrap().to_owned();
        File { name, path: path.to_owned(), length: 1, progress: 100.0, priority: Some(1) }
    }

    fn plan_of(roots: &Roots, directory: &str, files: &[File], is_folder: bool) -> Result<FilePlan, CommandError> {
        let files = files.iter().map(|file| ContentFile::new(PathBuf::from(&file.path), file)).collect();
        let folder_name = is_folder.then(|| "t".into());
        FilePlan::new(roots, &Content { directory: PathBuf::from(directory), folder_name, files })
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
        let files = [file("a"), file("sub/b"), file("sub2/c"), File { progress: 0.0, ..file("never-was-there") }];
        let deleted = plan_of(&roots, text(&root.join("t")), &files, true).unwrap().remove().unwrap();
        assert_eq!((deleted.count, deleted.bytes), (3, 3));
        assert_eq!(deleted.left.len(), 2, "sub2 and t are not empty: {:?}", deleted.left);
        assert!(!root.join("t/sub").try_exists().unwrap() && root.join("t/sub2/mine").is_file());
    }

    #[test]
    fn a_root_and_the_folder_of_a_single_file_stay() {
        let (_folder, root, roots) = folder_with(&["a", "sub/b"]);
        plan_of(&roots, text(&root), &[file("a"), file("sub/b")], true).unwrap().remove().unwrap();
        assert!(root.is_dir() && !root.join("sub").try_exists().unwrap());
        let (_folder, root, roots) = folder_with(&["films/a"]);
        plan_of(&roots, text(&root.join("films")), &[file("a")], false).unwrap().remove().unwrap();
        assert!(root.join("films").is_dir());
    }

    #[test]
    fn nothing_outside_the_roots_is_touched_and_no_link_is_followed() {
        let (_outer, outside, _) = folder_with(&["secret", "sub/x"]);
        let (_folder, root, roots) = folder_with(&["t/a"]);
        std::os::unix::fs::symlink(&outside, root.join("t/link")).unwrap();
        std::os::unix::fs::symlink(outside.join("secret"), root.join("t/leaf")).unwrap();
        let t = root.join("t");
        for bad in ["link/secret", "../t/a", "/etc/passwd", "", ".", "a\0b", "link/sub/x"] {
            assert!(plan_of(&roots, text(&t), &[file("a"), file(bad)], true).is_err(), "{bad:?}");
        }
        for bad in ["", "t", "/etc", text(&outside), &format!("{}/../x", root.display())] {
            assert!(plan_of(&roots, bad, &[file("passwd"), file("secret")], true).is_err(), "{bad:?}");
        }
        assert!(plan_of(&roots, text(&root), &[file("t")], false).is_err(), "a folder is no file");
        let deleted = plan_of(&roots, text(&t), &[file("leaf")], true).unwrap().remove().unwrap();
        assert_eq!((deleted.count, outside.join("secret").is_file()), (1, true), "the link went, not its target");
    }

    #[test]
    fn a_file_that_the_client_has_and_this_machine_has_not_is_missing() {
        let (_folder, root, roots) = folder_with(&["t/a"]);
        let not_begun = File { progress: 0.0, ..file("later") };
        let padding = [file(".pad/1"), file("x/_____padding_file_0_x")];
        let files = [&[file("a"), file("sub/b"), not_begun], &padding[..]].concat();
        let found = plan_of(&roots, text(&root.join("t")), &files, true).unwrap();
        assert_eq!((found.files.len(), &found.missing[..]), (1, &[PathBuf::from("sub/b")][..]));
        let error = found.check_complete().unwrap_err();
        assert!(error.message.contains("t/sub/b is not there"), "{}", error.message);
        let larger = File { length: 2, ..file("a") };
        assert!(plan_of(&roots, text(&root.join("t")), std::slice::from_ref(&larger), true).is_err(), "another file");
        let begun = File { progress: 50.0, ..larger };
        assert!(plan_of(&roots, text(&root.join("t")), &[begun], true).is_ok(), "it grows");
    }

    #[test]
    fn a_file_of_another_torrent_is_recognized_by_a_text_that_may_stand_for_it() {
        let (_folder, root, roots) = folder_with(&["🎉/caf🎬/a"]);
        std::os::unix::fs::symlink(&root, root.join("link")).unwrap();
        let content = Content {
            directory: root.join("🎉"),
            folder_name: Some("🎉".into()),
            files: vec![ContentFile::new("caf🎬/a".into(), &file("a"))],
        };
        let plan = FilePlan::new(&roots, &content).unwrap();
        let below = |end: &str| root.join(end).display().to_string();
        for (directory, path) in [
            ("????", "caf????/a"),
            ("link/????", "caf????/a"),
            ("????/caf????", "a"),
            ("%F0%9F%8E%89", "caf%F0%9F%8E%AC/a"),
            ("", "????/caf????/a"),
            ("🎉", "caf🎬/a"),
        ] {
            assert!(plan.may_share(&below(directory)), "{directory}");
            assert!(plan.shared_with(&below(directory), &[file(path)]).is_some(), "{directory} {path}");
        }
        assert!(!plan.may_share(&below("???")) && !plan.may_share(&below("no/????")));
        assert!(plan.shared_with(&below("????"), &[file("caf???/a")]).is_none());
    }

    #[test]
    fn a_file_of_another_torrent_is_recognized_by_any_path_to_it() {
        let (_folder, root, roots) = folder_with(&["t/sub/a"]);
        std::os::unix::fs::symlink(root.join("t"), root.join("other")).unwrap();
        let plan = plan_of(&roots, text(&root.join("t")), &[file("sub/a")], true).unwrap();
        for (directory, path) in [("t", "sub/a"), ("other/sub", "a"), ("", "t/sub/a")] {
            let directory = root.join(directory);
            assert!(plan.may_share(text(&directory)));
            assert!(plan.shared_with(text(&directory), &[file("zzz"), file(path)]).is_some(), "{path}");
        }
        assert!(plan.shared_with(text(&root.join("t")), &[file("sub/b"), file("a")]).is_none());
        assert!(!plan.may_share("/etc"));
    }
}
