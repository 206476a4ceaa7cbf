//! Padding between the files of a torrent (BEP 47), made for clients that do not know it.
//!
//! Other clients do not write padding to disk, because it is nothing but zeros. rTorrent 0.9 takes it for a file like
//! any other, and without it content that is whole would not be complete. Everything here blocks.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use tracing::debug;

use super::beneath::{Folder, Identity, PlaceError};
use super::errors::precondition;
use crate::model::CommandError;

/// Time of modification of made padding, in seconds: known before it is made, as the resume data says it.
pub(super) const PADDING_SECONDS: u64 = 1_000_000_000;

/// Files of padding that are not on disk.
#[derive(Debug, Default)]
pub(super) struct Padding {
    /// The folder that the paths are below; `None` without files.
    base: Option<Arc<Folder>>,
    files: Vec<(PathBuf, u64)>,
}

/// Files and folders that were made, in the order of their making.
#[derive(Debug, Default)]
pub(super) struct MadePadding {
    base: Option<Arc<Folder>>,
    made: Vec<Made>,
}

#[derive(Debug)]
struct Made {
    path: PathBuf,
    /// Of a file.
    identity: Option<Identity>,
}

impl Padding {
    /// Returns an empty list of files below a folder.
    pub fn below(base: Arc<Folder>) -> Self {
        Self { base: Some(base), files: Vec::new() }
    }

    /// Adds a file that is to be made; the same one may be in a torrent several times.
    pub fn add(&mut self, path: &Path, bytes: u64) {
        if self.files.iter().all(|(known, _)| known != path) {
            self.files.push((path.to_owned(), bytes));
        }
    }

    /// Makes the files, which take no room on disk.
    ///
    /// # Errors
    /// One cannot be made; those before it are removed again.
    pub fn make(&self) -> Result<MadePadding, CommandError> {
        let mut made = MadePadding { base: self.base.clone(), made: Vec::new() };
        let Some(base) = &self.base else { return Ok(made) };
        for (path, bytes) in &self.files {
            if let Err(error) = made.file(base, path, *bytes) {
                made.remove();
                return Err(precondition(format!(
                    "data_file: the torrent has padding that rTorrent needs and that cannot be made: {error}"
                )));
            }
        }
        Ok(made)
    }
}

impl MadePadding {
    fn file(&mut self, base: &Folder, path: &Path, bytes: u64) -> Result<(), PlaceError> {
        let parent = path.parent().unwrap_or(Path::new(""));
        let (_, missing) = base.start_of(parent)?;
        let mut new: Vec<&Path> = parent.ancestors().take(missing.components().count()).collect();
        new.reverse();
        self.made.extend(new.into_iter().map(|path| Made { path: path.to_owned(), identity: None }));
        let folder = base.make_below(parent)?;
        let (file, identity) = folder.create_file(path.file_name().unwrap_or_default(), 0o666)?;
        self.made.push(Made { path: path.to_owned(), identity: Some(identity) });
        let sized = file.set_len(bytes);
        let timed = sized.and_then(|()| file.set_modified(UNIX_EPOCH + Duration::from_secs(PADDING_SECONDS)));
        timed.map_err(|reason: io::Error| PlaceError::Io { path: base.path().join(path), reason })
    }

    /// Removes the files again, and the folders that were made for them.
    pub fn remove(&self) {
        let Some(base) = &self.base else { return };
        for Made { path, identity } in self.made.iter().rev() {
            let name = path.file_name().unwrap_or_default();
            let removed = base.below(path.parent().unwrap_or(Path::new(""))).and_then(|folder| match identity {
                Some(identity) => folder.remove_file(name, *identity),
                None => folder.remove_folder(name),
            });
            if let Err(error) = removed {
                debug!(%error, "padding stays");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn padding_is_made_as_zeros_and_removed_again_with_its_folders() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let base = Arc::new(Folder::open(&folder.path().canonicalize().unwrap()).unwrap());
        let mut padding = Padding::below(base);
        for (name, bytes) in [("t/.pad/7", 7), ("t/.pad/7", 7), ("t/.pad/9", 9)] {
            padding.add(Path::new(name), bytes);
        }
        let made = padding.make().unwrap();
        assert_eq!(fs::read(path("t/.pad/9")).unwrap(), [0; 9]);
        let time = path("t/.pad/7").metadata().unwrap().modified().unwrap();
        assert_eq!(time.duration_since(UNIX_EPOCH).unwrap().as_secs(), PADDING_SECONDS);
        made.remove();
        assert!(!path("t").try_exists().unwrap());
        // What is in the way stays, and nothing else is left.
        fs::create_dir_all(path("t/.pad/9")).unwrap();
        assert!(padding.make().unwrap_err().message.contains("t/.pad/9"));
        assert!(path("t/.pad/9").is_dir() && !path("t/.pad/7").try_exists().unwrap());
    }
}
