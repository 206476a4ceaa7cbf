//! What this process may do to files, asked before it is done. Everything here blocks.

use std::collections::HashMap;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::errors::precondition;
use crate::model::CommandError;

/// Only the owner of a file may remove it from a folder with this bit.
const STICKY: u32 = 0o1000;

/// Checks that a file may be removed from its folder. `folders` remembers what was found of the folders.
pub(super) fn check_may_remove(path: &Path, folders: &mut HashMap<PathBuf, Metadata>) -> Result<(), CommandError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    if !folders.contains_key(folder) {
        check_may_change(folder)?;
        let found = folder.metadata().map_err(|error| refused(folder, &error.to_string()))?;
        folders.insert(folder.to_owned(), found);
    }
    let found = path.symlink_metadata().map_err(|error| refused(path, &error.to_string()))?;
    let (user, folder) = (geteuid().as_raw(), &folders[folder]);
    if folder.mode() & STICKY != 0 && ![0, folder.uid(), found.uid()].contains(&user) {
        return Err(refused(path, "it is somebody else's, in a folder where only the owner of a file may remove it"));
    }
    // Not a lack of rights, which would be EACCES and no obstacle: the file itself is marked immutable.
    if !found.is_symlink() && accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS) == Err(Errno::PERM) {
        return Err(refused(path, "it is marked immutable"));
    }
    Ok(())
}

/// Checks that files may be put into a folder, and removed from it.
pub(super) fn check_may_change(folder: &Path) -> Result<(), CommandError> {
    let rights = Access::WRITE_OK | Access::EXEC_OK;
    accessat(CWD, folder, rights, AtFlags::EACCESS).map_err(|error| {
        refused(folder, &format!("the bridge may not change this folder ({})", io::Error::from(error)))
    })
}

/// Checks that a file may be read.
pub(super) fn check_may_read(path: &Path) -> Result<(), CommandError> {
    accessat(CWD, path, Access::READ_OK, AtFlags::EACCESS)
        .map_err(|error| refused(path, &format!("the bridge may not read it ({})", io::Error::from(error))))
}

fn refused(path: &Path, reason: &str) -> CommandError {
    precondition(format!("{}: {reason}", path.display()))
}
