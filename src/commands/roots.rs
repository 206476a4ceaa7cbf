//! The directories that commands may name paths below.
//!
//! A root may be a symbolic link in the config: its links are resolved once, at the start. Below a root no link is followed
//! (see [`beneath`](super::beneath)). A root may be missing at the start, or become the mount point of a disk later: it
//! is opened for each command.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::beneath::{Folder, Place, PlaceError};
use super::errors::precondition;
use crate::model::{CommandError, ErrorCode, NAME_BYTES_MAX, PATH_BYTES_MAX};

/// The `roots` of one server.
#[derive(Clone, Debug, Default)]
pub struct Roots(Arc<[Root]>);

#[derive(Debug)]
struct Root {
    /// As in the config.
    written: PathBuf,
    /// Without links.
    real: PathBuf,
}

impl Roots {
    /// Returns the roots of a server; without any, no path is allowed.
    pub fn new(roots: Vec<PathBuf>) -> Self {
        let root = |written: PathBuf| Root { real: resolved_start(&written), written };
        Self(roots.into_iter().map(root).collect())
    }

    /// Whether a path without links is a root itself.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.0.iter().any(|root| root.real == path)
    }

    /// Checks a directory on the client's machine: absolute, without `..`, below a root or a root itself, and without a link
    /// below the root, as far as it exists on this machine.
    pub(super) fn check_directory(&self, directory: &str) -> Result<(), CommandError> {
        let path = Path::new(directory);
        if !is_plain(path) || directory.chars().any(char::is_control) {
            let message = "directory: an absolute path without `..` and control characters is right";
            return Err(CommandError::new(ErrorCode::BadRequest, message));
        }
        if directory.len() > PATH_BYTES_MAX || path.iter().any(|name| name.len() > NAME_BYTES_MAX) {
            let message =
                "directory: a name in it is longer than 255 bytes, or all of it than 4095, which no file system takes";
            return Err(CommandError::new(ErrorCode::BadRequest, message));
        }
        let (root, rest) = self.split(path).ok_or_else(|| self.outside("directory"))?;
        match Folder::open(root).and_then(|root| root.start_of(&rest)) {
            Err(error @ PlaceError::Link(_)) => Err(error.into()),
            // What is not there, or is not a folder, is for the client to say.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Whether this machine has the root of a directory.
    pub(super) fn is_seen(&self, directory: &Path) -> bool {
        self.split(directory).is_some_and(|(root, _)| Folder::open(root).is_ok())
    }

    /// Makes a directory, if this machine has its root: the client may not be able to, and then a torrent that is moved
    /// there does not start any more. Where the root is not here, the client alone knows its directories.
    pub(super) fn make_directory(&self, directory: &str) -> Result<(), CommandError> {
        let (root, rest) = self.split(Path::new(directory)).ok_or_else(|| self.outside("directory"))?;
        let Ok(root) = Folder::open(root) else { return Ok(()) };
        match root.make_below(&rest) {
            Ok(_) => Ok(()),
            Err(error @ PlaceError::Link(_)) => Err(error.into()),
            Err(error) => Err(precondition(format!("directory: {error}"))),
        }
    }

    /// Opens the folder of a path on this machine that is strictly below a root.
    pub(super) fn find(&self, key: &str, path: &str) -> Result<Place, CommandError> {
        let place = self.open(Path::new(path)).map_err(|error| match error {
            Some(error @ PlaceError::Link(_)) => error.into(),
            // The same error whether the path exists or not: it must not reveal what exists outside.
            _ => self.outside(key),
        })?;
        match place.found() {
            Ok(Some(_)) => Ok(place),
            _ => Err(self.outside(key)),
        }
    }

    fn open(&self, path: &Path) -> Result<Place, Option<PlaceError>> {
        let (root, rest) = self.split(path).filter(|_| is_plain(path)).ok_or(None)?;
        let name = rest.file_name().ok_or(None)?.to_owned();
        let folder = Folder::open(root)?.below(rest.parent().unwrap_or(Path::new("")))?;
        Ok(Place { folder, name })
    }

    /// Opens as much as there is of a directory that the client has named; returns the rest, too.
    ///
    /// The client may know it by another path than the config does: links above a root are followed.
    pub(super) fn open_start(&self, key: &str, directory: &Path) -> Result<(Folder, PathBuf), CommandError> {
        let (root, rest) = self.split_client(directory).ok_or_else(|| self.outside(key))?;
        Ok(Folder::open(&root)?.start_of(&rest)?)
    }

    /// Opens the directory to which a torrent will be added; `None` if this process does not see it.
    ///
    /// The client's own default directory need not be below a root: the links in it are its owner's.
    pub(super) fn open_trusted(&self, directory: &Path) -> Result<Option<Folder>, CommandError> {
        let opened = match self.split_client(directory) {
            Some((root, rest)) => Folder::open(&root).and_then(|root| root.below(&rest)),
            None => match directory.canonicalize() {
                Ok(resolved) => Folder::open(&resolved),
                Err(_) => return Ok(None),
            },
        };
        match opened {
            Ok(folder) => Ok(Some(folder)),
            Err(error @ PlaceError::Link(_)) => Err(error.into()),
            Err(_) => Ok(None),
        }
    }

    /// Returns the root that a path is below, without links, and the rest of the path. Of nested roots, the deepest.
    fn split(&self, path: &Path) -> Option<(&Path, PathBuf)> {
        let texts = self.0.iter().flat_map(|root| [(&root.written, &root.real), (&root.real, &root.real)]);
        let above = texts.filter_map(|(text, real)| Some((real.as_path(), path.strip_prefix(text).ok()?.to_owned())));
        above.min_by_key(|(_, rest)| rest.components().count())
    }

    /// The same for a path that leads to a root by links above it.
    fn split_client(&self, path: &Path) -> Option<(PathBuf, PathBuf)> {
        if let Some((root, rest)) = self.split(path) {
            return Some((root.to_owned(), rest));
        }
        // The shortest first: from there on no link is followed.
        let starts: Vec<&Path> = path.ancestors().collect();
        starts.into_iter().rev().find_map(|start| {
            let (root, inner) =
                self.split(&start.canonicalize().ok()?).map(|(root, inner)| (root.to_owned(), inner))?;
            Some((root, inner.join(path.strip_prefix(start).ok()?)))
        })
    }

    pub(super) fn outside(&self, key: &str) -> CommandError {
        let roots: Vec<String> = self.0.iter().map(|root| root.written.display().to_string()).collect();
        let message = if roots.is_empty() {
            format!("{key}: this server has no `roots` in the config, so no path may be named")
        } else {
            format!("{key}: not found below the allowed folders ({})", roots.join(", "))
        };
        CommandError::new(ErrorCode::Forbidden, message)
    }
}

/// Whether a path is absolute, and has no `.` or `..` that leads elsewhere.
pub(super) fn is_plain(path: &Path) -> bool {
    path.is_absolute() && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

/// Resolves the links in as much of a path as exists, and appends the rest.
fn resolved_start(path: &Path) -> PathBuf {
    let resolved = path.ancestors().find_map(|start| {
        let rest = path.strip_prefix(start).unwrap_or(Path::new(""));
        start.canonicalize().ok().map(|start| start.components().chain(rest.components()).collect())
    });
    resolved.unwrap_or_else(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_below_a_root_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::os::unix::fs::symlink("/etc", root.join("link")).unwrap();
        std::os::unix::fs::symlink(&root, root.join("circle")).unwrap();
        std::os::unix::fs::symlink(folder.path().with_extension("not-there"), root.join("dangling")).unwrap();
        let roots = Roots::new(vec![root.clone()]);
        let below = root.join("films/new").display().to_string();
        assert_eq!(roots.check_directory(&below), Ok(()));
        for bad in [
            "films",
            "/etc",
            "/proc/self/cwd",
            &format!("/proc/self/root{}", root.display()),
            &format!("{}/../x", root.display()),
            &format!("{}x", root.display()),
            &root.join("link").display().to_string(),
            &root.join("link/not/there/yet").display().to_string(),
            &root.join("circle/films").display().to_string(),
            &root.join("dangling").display().to_string(),
            &root.join("dangling/new").display().to_string(),
            &format!("{}/a\nb", root.display()),
            &root.join("n".repeat(256)).display().to_string(),
            &root.join("n/".repeat(2100)).display().to_string(),
        ] {
            assert!(roots.check_directory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_path_outside_the_roots_is_refused_alike_whether_it_exists_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::os::unix::fs::symlink("/etc", root.join("link")).unwrap();
        std::fs::write(root.join("a.torrent"), b"x").unwrap();
        let roots = Roots::new(vec![root.clone()]);
        let path = |name: &str| root.join(name).display().to_string();
        assert_eq!(roots.find("file", &path("a.torrent")).unwrap().path(), root.join("a.torrent"));
        let bad = ["/etc/passwd".to_owned(), "/no/such".to_owned(), path("../x"), path("none"), path("")];
        let refusals: Vec<_> = bad.iter().map(|bad| roots.find("file", bad).unwrap_err()).collect();
        assert!(refusals.iter().all(|refusal| *refusal == refusals[0]), "{refusals:?}");
        let linked = ["link/passwd", "link/none"].map(|bad| roots.find("file", &path(bad)).unwrap_err());
        assert!(linked[0] == linked[1] && linked[0].message.contains("link is a symbolic link"), "{linked:?}");
    }

    #[test]
    fn a_root_may_be_a_link_inside_another_root_or_not_there_yet() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        std::fs::create_dir_all(real.join("disk/films")).unwrap();
        std::os::unix::fs::symlink(real.join("disk"), real.join("downloads")).unwrap();
        std::os::unix::fs::symlink(real.join("disk"), real.join("alias")).unwrap();
        let roots = ["downloads", "disk/films", "later/mounted"].map(|root| real.join(root));
        let roots = Roots::new(roots.to_vec());
        for path in ["downloads/films", "disk/films", "alias/films"] {
            let (found, rest) = roots.open_start("x", &real.join(path)).unwrap();
            assert_eq!((found.path(), rest), (&*real.join("disk/films"), PathBuf::new()), "{path}");
            assert!(roots.has(found.path()));
        }
        assert!(roots.open_start("x", &real.join("later/mounted/t")).is_err());
        std::fs::create_dir_all(real.join("later/mounted")).unwrap();
        assert_eq!(roots.open_start("x", &real.join("later/mounted/t")).unwrap().1, Path::new("t"));
        // Not the link of the config any more: it was resolved at the start.
        std::fs::remove_file(real.join("downloads")).unwrap();
        std::os::unix::fs::symlink("/etc", real.join("downloads")).unwrap();
        assert_eq!(roots.open_start("x", &real.join("downloads")).unwrap().0.path(), real.join("disk"));
    }
}
