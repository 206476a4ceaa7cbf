//! Padding between the files of a torrent (BEP 47), made for clients that do not know it.
//!
//! Other clients do not write padding to disk, because it is nothing but zeros. rTorrent 0.9 takes it for a file like
//! any other, and without it content that is whole would not be complete. Everything here blocks.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use tracing::debug;

use super::errors::precondition;
use crate::model::CommandError;

/// Time of modification of made padding, in seconds: known before it is made, as the resume data says it.
pub(super) const PADDING_SECONDS: u64 = 1_000_000_000;

/// Files of padding that are not on disk.
#[derive(Debug, Default)]
pub(super) struct Padding(Vec<(PathBuf, u64)>);

/// Files and folders that were made, in the order of their making.
#[derive(Debug, Default)]
pub(super) struct MadePadding(Vec<PathBuf>);

impl Padding {
    /// Adds a file that is to be made; the same one may be in a torrent several times.
    pub fn add(&mut self, path: &Path, bytes: u64) {
        if self.0.iter().all(|(known, _)| known != path) {
            self.0.push((path.to_owned(), bytes));
        }
    }

    /// Makes the files, which take no room on disk.
    ///
    /// # Errors
    /// One cannot be made; those before it are removed again.
    pub fn make(&self) -> Result<MadePadding, CommandError> {
        let mut made = MadePadding::default();
        for (path, bytes) in &self.0 {
            if let Err(error) = made.file(path, *bytes) {
                made.remove();
                let path = path.display();
                return Err(precondition(format!(
                    "data_file: the torrent has padding at {path}, which rTorrent needs and which cannot be made: {error}"
                )));
            }
        }
        Ok(made)
    }
}

impl MadePadding {
    fn file(&mut self, path: &Path, bytes: u64) -> io::Result<()> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        let missing: Vec<&Path> = parent.ancestors().take_while(|folder| folder.symlink_metadata().is_err()).collect();
        for folder in missing.into_iter().rev() {
            fs::create_dir(folder)?;
            self.0.push(folder.to_owned());
        }
        let file = File::create_new(path)?;
        self.0.push(path.to_owned());
        file.set_len(bytes)?;
        file.set_modified(UNIX_EPOCH + Duration::from_secs(PADDING_SECONDS))
    }

    /// Removes the files again, and the folders that were made for them.
    pub fn remove(&self) {
        for path in self.0.iter().rev() {
            let removed = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
            if let Err(error) = removed {
                debug!(path = %path.display(), %error, "padding stays");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_made_as_zeros_and_removed_again_with_its_folders() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut padding = Padding::default();
        for (name, bytes) in [("t/.pad/7", 7), ("t/.pad/7", 7), ("t/.pad/9", 9)] {
            padding.add(&path(name), bytes);
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
