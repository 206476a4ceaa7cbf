//! The directories that commands may name paths below.
//!
//! Links are resolved before anything is compared, as far as a path exists on this machine. A path outside is refused
//! with the same message whether it exists or not.

use std::path::{Component, Path, PathBuf};

use crate::model::{CommandError, ErrorCode};

/// The `roots` of one server.
#[derive(Clone, Debug, Default)]
pub struct Roots(Vec<PathBuf>);

impl Roots {
    /// Returns the roots of a server; without any, no path is allowed.
    pub fn new(roots: Vec<PathBuf>) -> Self {
        Self(roots)
    }

    /// Whether a path is strictly below a root. Links are resolved in the roots, and have to be in `resolved`.
    pub(super) fn has_below(&self, resolved: &Path) -> bool {
        self.0.iter().any(|root| {
            let root = root.canonicalize().unwrap_or_else(|_| root.clone());
            resolved.starts_with(&root) && resolved != root
        })
    }

    /// Checks a directory on the client's machine: absolute, without `..`, below a root or a root itself.
    ///
    /// As far as it exists on this machine, too, its links are resolved before it is compared.
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

    /// Resolves a path on this machine that is strictly below a root.
    pub(super) fn find(&self, key: &str, path: &str) -> Result<PathBuf, CommandError> {
        // The same error whether the path exists or not: it must not reveal what exists outside.
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

/// Whether a path is absolute, and has no `.` or `..` that leads elsewhere.
pub(super) fn is_plain(path: &Path) -> bool {
    path.is_absolute() && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

/// Resolves the links in as much of a path as exists, and appends the rest; `None` if a link leads nowhere.
pub(super) fn resolved_start(path: &Path) -> Option<PathBuf> {
    for start in path.ancestors() {
        if let Ok(resolved) = start.canonicalize() {
            let rest = path.strip_prefix(start).expect("an ancestor is a prefix");
            // Joining an empty rest would append a slash, and a file is not found by that.
            return Some(if rest.as_os_str().is_empty() { resolved } else { resolved.join(rest) });
        }
        // A link without a target: whoever creates the target decides where the path leads.
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
    fn a_path_outside_the_roots_is_refused_alike_whether_it_exists_or_not() {
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
