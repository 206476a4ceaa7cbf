//! The files of a torrent on this machine: located, compared with what the client says, deleted.
//!
//! A torrent's paths come from whoever made it and its folder from whoever added it, so:
//! - its folder is reached from a root without following a link, and held (see [`beneath`](super::beneath)); a file that
//!   is a link, or below one, is refused;
//! - a root itself, a folder where a file should be, and what another disk is mounted on are left alone;
//! - folders are only ever removed when they are empty;
//! - a file that another torrent has, too, is left alone (the caller asks [`FilePlan::shared_with`]).
//!
//! The bridge may see another disk than the client does, so a file of which the client has something is looked for
//! under its name, and a whole one by its size. Everything here blocks.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use super::beneath::{Folder, Found, Identity, Kind, Place, PlaceError, Walk};
use super::disk_rights::{check_may_change, check_may_remove};
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
    /// Files that exist.
    pub files: Vec<PlannedFile>,
    /// Files of which the client has something and that are not here, relative to the torrent's directory.
    pub missing: Vec<PathBuf>,
    /// The folders that belong to the torrent alone, relative to its directory.
    folders: BTreeSet<PathBuf>,
    /// The torrent's directory as the client has it.
    pub directory: PathBuf,
    /// The torrent's directory; `None` if it does not exist.
    pub base: Option<Folder>,
    /// The folder that holds the torrent's directory, if that belongs to the torrent alone.
    home: Option<Folder>,
}

/// A file that exists.
#[derive(Clone, Debug)]
pub(super) struct PlannedFile {
    /// Relative to the torrent's directory.
    pub path: PathBuf,
    /// Which file it is.
    pub identity: Identity,
    /// Its size.
    pub bytes: u64,
}

impl FilePlan {
    /// Finds the files of a torrent.
    ///
    /// # Errors
    /// A path that is not below the roots or is a link, is not a regular file, cannot be looked at, or is not what the client
    /// has.
    pub fn new(roots: &Roots, content: &Content) -> Result<Self, CommandError> {
        let directory = content.directory.clone();
        if !roots::is_plain(&directory) {
            return Err(precondition("the client does not say in which absolute folder it is"));
        }
        let mut plan = Self {
            files: Vec::new(),
            missing: Vec::new(),
            folders: BTreeSet::new(),
            home: None,
            base: open_directory(roots, &directory)?,
            directory,
        };
        if let Some(base) = plan.base.as_ref().filter(|base| content.folder_name.is_some() && !roots.has(base.path())) {
            plan.home = Some(parent_of(base)?);
        }
        let mut walk = plan.base.as_ref().map(Walk::new);
        for file in &content.files {
            let path = inside(&file.path)?;
            let folder = match &mut walk {
                Some(walk) => walk.found_folder_of(path).map_err(unseen)?,
                None => None,
            };
            let found = folder.map_or(Ok(None), |(folder, name)| find(folder, name, file))?;
            match found {
                Some(Found { identity, bytes, .. }) => {
                    plan.files.push(PlannedFile { path: path.to_owned(), identity, bytes });
                }
                None if is_expected(file) => plan.missing.push(path.to_owned()),
                None => {}
            }
            if let Some(base) = plan.base.as_ref().filter(|_| content.folder_name.is_some()) {
                let own = path.ancestors().skip(1).filter(|folder| !roots.has(&base.path().join(folder)));
                plan.folders.extend(own.map(Path::to_owned));
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
        let Some(base) = &self.base else { return Ok(()) };
        let (mut walk, mut checked) = (Walk::new(base), None);
        for file in &self.files {
            let (folder, name) = walk.folder_of(&file.path)?;
            if checked.as_deref() != file.path.parent() {
                check_may_change(folder)?;
                checked = file.path.parent().map(Path::to_owned);
            }
            if let Some(found) = folder.found(name)? {
                check_may_remove(folder, name, &found)?;
            }
        }
        Ok(())
    }

    /// Returns the path of a file, without links.
    fn path_of(&self, file: &PlannedFile) -> PathBuf {
        self.base.as_ref().map_or(&*self.directory, Folder::path).join(&file.path)
    }

    /// Whether a torrent with data in this directory, as its client writes it, could have one of the files.
    pub fn may_share(&self, directory: &str) -> bool {
        let directory = Directory::new(directory);
        self.files.iter().any(|file| directory.rest_of(&self.path_of(file)).is_some())
    }

    /// Returns the first file that may be one of `files`, which another torrent has in `directory`.
    pub fn shared_with(&self, directory: &str, files: &[File]) -> Option<PathBuf> {
        // Sets, because comparing one by one takes too long: both torrents may have tens of thousands of files.
        let exact: HashSet<PathBuf> = self.files.iter().map(|file| self.path_of(file)).collect();
        let other = Directory::new(directory);
        let below = exact.iter().filter_map(|path| Some((path, other.rest_of(path)?)));
        let texts = |(path, rest): (_, &Path)| client_texts(rest.as_os_str().as_bytes()).map(|text| (text, path));
        let written: HashMap<String, &PathBuf> = below.flat_map(texts).collect();
        let mut folders = HashMap::new();
        files.iter().find_map(|file| {
            if let Some(path) = written.get(&with_line_feeds(file.path.trim_start_matches('/'))) {
                return Some((*path).clone());
            }
            let path = Path::new(directory).join(file.path.trim_start_matches('/'));
            // Here links are followed: the other torrent's file is looked for, and not touched.
            let folder =
                folders.entry(path.parent()?.to_owned()).or_insert_with_key(|folder| folder.canonicalize().ok());
            exact.get(&folder.as_ref()?.join(path.file_name()?)).cloned()
        })
    }

    /// Returns what [`Self::remove`] would do.
    pub fn preview(&self) -> DeletedFiles {
        let mut deleted = DeletedFiles::default();
        self.files.iter().for_each(|file| add_file(&mut deleted, &self.path_of(file), file.bytes));
        deleted
    }

    /// Deletes the files, and the folders that are empty then.
    ///
    /// # Errors
    /// The first file that cannot be removed ends it; those before it are gone.
    pub fn remove(&self) -> Result<DeletedFiles, CommandError> {
        let mut deleted = DeletedFiles::default();
        let Some(base) = &self.base else { return Ok(deleted) };
        let mut walk = Walk::new(base);
        for file in &self.files {
            let removed = walk.folder_of(&file.path).and_then(|(folder, name)| folder.remove_file(name, file.identity));
            if let Err(error) = removed {
                let count = deleted.count;
                let message = format!("{error}; {count} of its files were deleted before, and the torrent was kept");
                return Err(precondition(message));
            }
            add_file(&mut deleted, &self.path_of(file), file.bytes);
        }
        deleted.left = self.remove_folders();
        Ok(deleted)
    }

    /// Returns where a file was, and makes the folders again that were removed since.
    pub fn remake(&self, file: &Path) -> Result<Place, PlaceError> {
        let missing = || PlaceError::Io { path: self.directory.clone(), reason: ErrorKind::NotFound.into() };
        let base = self.base.as_ref().ok_or_else(missing)?;
        let (parent, name) = (file.parent().unwrap_or(Path::new("")), file.file_name().unwrap_or_default().to_owned());
        let folder = match (&self.home, base.path().file_name()) {
            (Some(home), Some(own)) => home.make_below(&Path::new(own).join(parent))?,
            _ => base.make_below(parent)?,
        };
        Ok(Place { folder, name })
    }

    /// Removes the torrent's own folders that are empty; returns those that are not.
    pub fn remove_folders(&self) -> Vec<RemainingFile> {
        let mut left = Vec::new();
        // The deepest first, as a set of paths has parents before their children.
        for path in self.folders.iter().rev() {
            match self.remove_own_folder(path) {
                Err(PlaceError::Io { path, reason }) if reason.kind() != ErrorKind::NotFound => {
                    left.push(RemainingFile { path: path.display().to_string(), reason: reason.to_string() });
                }
                // Somebody else's by now.
                Ok(()) | Err(_) => {}
            }
        }
        left.truncate(LISTED_MAX);
        left
    }

    fn remove_own_folder(&self, path: &Path) -> Result<(), PlaceError> {
        let Some(base) = &self.base else { return Ok(()) };
        if let Some(name) = path.file_name() {
            return remove_empty(&base.below(path.parent().unwrap_or(Path::new("")))?, name);
        }
        match (&self.home, base.path().file_name()) {
            (Some(home), Some(name)) => remove_empty(home, name),
            // A root stays.
            _ => Ok(()),
        }
    }
}

/// Removes a folder if it is empty and no mount point: that belongs to whoever mounts there.
fn remove_empty(parent: &Folder, name: &OsStr) -> Result<(), PlaceError> {
    match parent.found(name)? {
        Some(found) if found.kind == Kind::Folder && found.identity.device == parent.itself()?.identity.device => {
            parent.remove_folder(name)
        }
        _ => Ok(()),
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

/// Opens a directory of the client; `None` if it does not exist.
///
/// # Errors
/// The directory is outside the roots, or this process may not look into a folder above it, so that nothing is known.
fn open_directory(roots: &Roots, directory: &Path) -> Result<Option<Folder>, CommandError> {
    let (folder, rest) = roots.open_start("its content", directory)?;
    Ok(rest.as_os_str().is_empty().then_some(folder))
}

/// Opens the folder that holds another one.
fn parent_of(folder: &Folder) -> Result<Folder, CommandError> {
    let (path, itself) = (folder.path(), folder.itself()?);
    let parent = Folder::open(path.parent().unwrap_or(path))?;
    let found = path.file_name().map_or(Ok(None), |name| parent.found(name))?;
    let is_same = found.is_some_and(|found| found.identity == itself.identity);
    if is_same { Ok(parent) } else { Err(PlaceError::Replaced(path.to_owned()).into()) }
}

fn unseen(error: PlaceError) -> CommandError {
    match error {
        PlaceError::Io { .. } => {
            precondition(format!("{error}; the bridge has to see the content of a torrent to change it"))
        }
        error => error.into(),
    }
}

/// Whether the client has something of a file that should be on disk.
fn is_expected(file: &ContentFile) -> bool {
    // Newer versions do not write padding to disk.
    file.is_begun && !is_padding(&file.path)
}

/// Returns a path of the client if it leads to a file inside a directory.
fn inside(path: &Path) -> Result<&Path, CommandError> {
    let is_inside = path.file_name().is_some()
        && path.components().all(|part| matches!(part, Component::Normal(_)))
        && !path.as_os_str().as_bytes().contains(&0);
    if is_inside { Ok(path) } else { Err(precondition(format!("{path:?} is not a path that can be trusted"))) }
}

/// Looks at one file in its folder.
fn find(folder: &Folder, name: &OsStr, file: &ContentFile) -> Result<Option<Found>, CommandError> {
    let Some(found) = folder.found(name).map_err(unseen)? else { return Ok(None) };
    let path = folder.path().join(name);
    let refuse = |problem: &str| Err(precondition(format!("{} {problem}", path.display())));
    match found.kind {
        Kind::Link => Err(PlaceError::Link(path).into()),
        Kind::Folder => refuse("is a folder"),
        // A pipe or a device is no content of a torrent, and reading one may never end.
        Kind::Special => refuse("is not a regular file"),
        Kind::File if found.identity.device != folder.itself()?.identity.device => refuse("is mounted there"),
        Kind::File if file.is_complete && found.bytes != file.length => refuse(&format!(
            "has {} bytes and not {}, as the file that the client has there: it is another one (another mount?)",
            found.bytes, file.length
        )),
        Kind::File => Ok(Some(found)),
    }
}

/// Whether a path is by its name padding between two files (BEP 47): a client that knows it never writes it to disk.
fn is_padding(path: &Path) -> bool {
    let is_folder = path.starts_with(".pad");
    is_folder || path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"_____padding_file_"))
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
    use std::fs;

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
        for bad in ["leaf", "link/secret"] {
            let error = plan_of(&roots, text(&t), &[file(bad)], true).unwrap_err();
            assert!(error.message.contains("is a symbolic link"), "{bad}: {}", error.message);
        }
        std::os::unix::fs::symlink(&t, root.join("other")).unwrap();
        assert!(plan_of(&roots, text(&root.join("other")), &[file("a")], true).is_err(), "nor one inside the root");
    }

    #[test]
    fn what_is_put_in_the_place_of_a_file_after_it_was_checked_stays() {
        let (_outer, outside, _) = folder_with(&["a", "sub/b"]);
        let (_folder, root, roots) = folder_with(&["t/a", "t/sub/b"]);
        // A folder that becomes a link.
        let before = plan_of(&roots, text(&root.join("t")), &[file("a"), file("sub/b")], true).unwrap();
        fs::rename(root.join("t/sub"), root.join("kept")).unwrap();
        std::os::unix::fs::symlink(outside.join("sub"), root.join("t/sub")).unwrap();
        assert!(before.remove().unwrap_err().message.contains("t/sub is a symbolic link"));
        assert!(outside.join("sub/b").is_file());
        // The torrent's own folder becomes one: what was checked is held.
        let (_folder, root, roots) = folder_with(&["t/a", "t/sub/b"]);
        let before = plan_of(&roots, text(&root.join("t")), &[file("a"), file("sub/b")], true).unwrap();
        fs::rename(root.join("t"), root.join("kept")).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("t")).unwrap();
        before.remove().unwrap();
        assert!(outside.join("a").is_file() && outside.join("sub/b").is_file());
        assert!(!root.join("kept/a").try_exists().unwrap() && root.join("t").is_symlink());
        // Another file.
        let (_folder, root, roots) = folder_with(&["t/a", "t/new"]);
        let before = plan_of(&roots, text(&root.join("t")), &[file("a")], true).unwrap();
        fs::rename(root.join("t/new"), root.join("t/a")).unwrap();
        assert!(before.remove().unwrap_err().message.contains("replaced"));
        assert!(root.join("t/a").is_file());
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
