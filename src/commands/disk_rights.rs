//! The rights of this process on files, checked before a file is changed. Everything here blocks.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use rustix::fs::Access;
use rustix::io::Errno;
use rustix::process::geteuid;

use super::beneath::{Folder, Found, Kind};
use super::errors::precondition;
use crate::model::CommandError;

/// Only the owner of a file may remove it from a folder with this bit.
const STICKY: u32 = 0o1000;

/// Checks that a file may be removed from its folder, of which [`check_may_change`] is true.
pub(super) fn check_may_remove(folder: &Folder, name: &OsStr, found: &Found) -> Result<(), CommandError> {
    let (user, itself) = (geteuid().as_raw(), folder.itself()?);
    let refused = |reason| Err(refused(&folder.path().join(name), reason));
    if itself.mode & STICKY != 0 && ![0, itself.owner, found.owner].contains(&user) {
        return refused("it is somebody else's, in a folder where only the owner of a file may remove it");
    }
    // Not a lack of rights, which would be EACCES and no obstacle: the file itself is marked immutable.
    if found.kind == Kind::File && folder.check_access(Some(name), Access::WRITE_OK) == Err(Errno::PERM) {
        return refused("it is marked immutable");
    }
    Ok(())
}

/// Checks that files may be put into a folder, and removed from it.
pub(super) fn check_may_change(folder: &Folder) -> Result<(), CommandError> {
    folder.check_access(None, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
        refused(folder.path(), &format!("the bridge may not change this folder ({})", io::Error::from(error)))
    })
}

/// Checks that a file may be read.
pub(super) fn check_may_read(folder: &Folder, name: &OsStr) -> Result<(), CommandError> {
    folder.check_access(Some(name), Access::READ_OK).map_err(|error| {
        refused(&folder.path().join(name), &format!("the bridge may not read it ({})", io::Error::from(error)))
    })
}

fn refused(path: &Path, reason: &str) -> CommandError {
    precondition(format!("{}: {reason}", path.display()))
}
