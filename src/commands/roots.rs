//! The folders that a command may name, and what is below them.
//!
//! Links are followed before anything is compared, as far as a path is on this machine. What is
//! outside is refused in the same words whether it is there or not.

use std::path::{Component, Path, PathBuf};

use crate::model::{CommandError, ErrorCode};

/// The `roots` of one server.
#[derive(Clone, Debug, Default)]
pub struct Roots(Vec<PathBuf>);

impl Roots {
    pub fn new(roots: Vec<PathBuf>) -> Self {
        Self(roots)
    }

    /// Strictly below one of them, both with their links followed. `resolved` is such a path.
    pub(super) fn has_below(&self, resolved: &Path) -> bool {
        self.0.iter().any(|root| {
            let root = root.canonicalize().unwrap_or_else(|_| root.clone());
            resolved.starts_with(&root) && resolved != root
        })
    }

    /// A directory on the client's machine: absolute, without `..`, below a root or one itself.
    ///
    /// As far as that folder is on this machine too, links in it are followed before it is compared.
    pub(super) fn check_directory(&self, directory: &str) -> Result<(), CommandError> {
        let path = Path::new(directory);
        if !is_plain(path) || directory.chars().any(char::is_control) {
            let message = "directory: an absolute path without `..` and control characters is right";
            return Err(CommandError::new(ErrorCode::BadRequest, message));
        }
        let resolved = resolved_start(path).ok_or_else(|| self.outside("directory"))?;
        let is_below = |path: &Path| self.0.iter().any(|root| path.starts_with(root));
        let is_below_resolved =
            self.0.iter().any(|root| resolved.starts_with(resolved_start(root).as_deref().unwrap_or(root)));
        if is_below(path) && is_below_resolved { Ok(()) } else { Err(self.outside("directory")) }
    }

    /// Something on this machine, its links followed, strictly below a root.
    pub(super) fn find(&self, key: &str, path: &str) -> Result<PathBuf, CommandError> {
        // The answer for a path outside is the same whether there is such a file or not.
        let resolved = Path::new(path).canonicalize().map_err(|_| self.outside(key))?;
        if self.has_below(&resolved) { Ok(resolved) } else { Err(self.outside(key)) }
    }

    pub(super) fn outside(&self, key: &str) -> CommandError {
        let roots: Vec<String> = self.0.iter().map(|root| root.display().to_string()).collect();
        let message = if roots.is_empty() {
            format!("{key}: this server has no `roots` in the config, so no path may be named")
        } else {
            format!("{key}: not found below the allowed folders ({})", roots.join(", "))
        };
        CommandError::new(ErrorCode::Forbidden, message)
    }
}

/// Absolute, and without `.` and `..` that lead elsewhere.
pub(super) fn is_plain(path: &Path) -> bool {
    path.is_absolute() && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

/// As much of a path as is there, its links followed, with the rest of it behind; `None` if a link leads nowhere.
pub(super) fn resolved_start(path: &Path) -> Option<PathBuf> {
    for start in path.ancestors() {
        if let Ok(resolved) = start.canonicalize() {
            let rest = path.strip_prefix(start).expect("an ancestor is a prefix");
            // Nothing to append must not become a slash at the end: a file would not be found by it.
            return Some(if rest.as_os_str().is_empty() { resolved } else { resolved.join(rest) });
        }
        // There is something, so its end is elsewhere, and whoever makes that decides where.
        if start.symlink_metadata().is_ok_and(|found| found.is_symlink()) {
            return None;
        }
    }
    Some(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_below_a_root_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::os::unix::fs::symlink("/etc", root.join("link")).unwrap();
        std::os::unix::fs::symlink(folder.path().with_extension("not-there"), root.join("dangling")).unwrap();
        let roots = Roots::new(vec![root.clone()]);
        let below = root.join("films/new").display().to_string();
        assert_eq!(roots.check_directory(&below), Ok(()));
        for bad in [
            "films",
            "/etc",
            &format!("{}/../x", root.display()),
            &format!("{}x", root.display()),
            &root.join("link").display().to_string(),
            &root.join("link/not/there/yet").display().to_string(),
            &root.join("dangling").display().to_string(),
            &root.join("dangling/new").display().to_string(),
            &format!("{}/a\nb", root.display()),
        ] {
            assert!(roots.check_directory(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_outside_is_not_found_whether_it_is_there_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("link")).unwrap();
        std::fs::write(root.join("a.torrent"), b"x").unwrap();
        let roots = Roots::new(vec![root.clone()]);
        let path = |name: &str| root.join(name).display().to_string();
        assert_eq!(roots.find("file", &path("a.torrent")), Ok(root.join("a.torrent")));
        let bad = [path("link"), "/etc/passwd".to_owned(), "/no/such".to_owned(), path("../x"), path("")];
        let refusals: Vec<_> = bad.iter().map(|bad| roots.find("file", bad).unwrap_err()).collect();
        assert!(refusals.iter().all(|refusal| *refusal == refusals[0]), "{refusals:?}");
    }
}
