//! Files that are already where a torrent is to be added: clients take them for its content, and overwrite what differs.
//!
//! Files may be the torrent's own: whole, or as an interrupted download leaves them (pieces that are right, and zeros).
//! Any others are refused before the torrent is loaded. A torrent may have its names in several encodings, among which
//! the client chooses, so each of them is checked.
//!
//! Only files that this process sees can be checked, and of a magnet link no names are known.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::beneath::{Folder, Found, Kind, PlaceError, Walk};
use super::common::blocking;
use super::data_check::{self, OnDisk};
use super::errors::{bad_request, precondition};
use super::roots::Roots;
use crate::model::{CommandError, Metainfo, WrittenNames};

/// Most encodings of a name that are looked at.
const ENCODINGS_MAX: usize = 8;

/// Files on disk that a torrent would be written over.
pub(super) struct InTheWay {
    metainfo: Metainfo,
    /// The files below a folder, once for each encoding in which there is something.
    layouts: Vec<(Arc<Folder>, Vec<OnDisk>)>,
}

impl InTheWay {
    /// Looks at the places where the files of a torrent will be; `None` if nothing is there.
    ///
    /// # Errors
    /// Something is there that cannot be content of the torrent.
    pub async fn find(roots: &Roots, torrent: &[u8], directory: &str) -> Result<Option<Self>, CommandError> {
        let invalid = || bad_request("invalid torrent file");
        let metainfo = Metainfo::parse(torrent).map_err(|_| invalid())?;
        let names = WrittenNames::parse(torrent).ok_or_else(invalid)?;
        let (roots, directory) = (roots.clone(), PathBuf::from(directory));
        let find = move || {
            let Some(base) = roots.open_trusted(&directory)?.map(Arc::new) else { return Ok(None) };
            let mut layouts = Vec::new();
            for paths in paths(&metainfo, &names)? {
                if let Some(files) = files_at(&metainfo, &base, paths)? {
                    layouts.push((Arc::clone(&base), files));
                }
            }
            Ok((!layouts.is_empty()).then_some(Self { metainfo, layouts }))
        };
        blocking(find).await?
    }

    /// Checks that it is the torrent's own.
    pub async fn check(self, mut progress: impl FnMut(u64, u64)) -> Result<(), CommandError> {
        for (base, files) in self.layouts {
            data_check::check_incomplete(&self.metainfo, base, files, &mut progress).await?;
        }
        Ok(())
    }
}

/// Returns the paths of the files below the directory, in each encoding.
fn paths(metainfo: &Metainfo, names: &WrittenNames) -> Result<Vec<Vec<PathBuf>>, CommandError> {
    let encodings = names.files.iter().flatten().map(Vec::len).max().unwrap_or(0).max(1);
    if encodings > ENCODINGS_MAX || names.names.len() > ENCODINGS_MAX {
        return Err(bad_request(format!("the torrent has its names in more than {ENCODINGS_MAX} encodings")));
    }
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    let path_in = |number: usize, encoding: usize| -> PathBuf {
        let written = names.files.as_ref().and_then(|files| files.get(number)).and_then(|paths| {
            let bytes = paths.get(encoding).or(paths.last())?;
            Some(path(bytes).components().filter(|part| *part != Component::RootDir).collect())
        });
        written.unwrap_or_else(|| metainfo.files[number].path.iter().map(|name| path(name)).collect())
    };
    let mut all = Vec::new();
    for name in &names.names {
        if !metainfo.is_folder {
            all.push(vec![path(name)]);
            continue;
        }
        for encoding in 0..encodings {
            let files = 0..metainfo.files.len();
            all.push(files.map(|number| path(name).join(path_in(number, encoding))).collect());
        }
    }
    Ok(all)
}

/// Looks at the files at these paths; `None` if none of them has a byte.
fn files_at(metainfo: &Metainfo, base: &Folder, paths: Vec<PathBuf>) -> Result<Option<Vec<OnDisk>>, CommandError> {
    let mut walk = Walk::new(base);
    let (mut files, mut has_bytes) = (Vec::with_capacity(paths.len()), false);
    for (path, file) in paths.into_iter().zip(&metainfo.files) {
        let found = walk.found(&path)?;
        if let Some(found) = &found {
            check_kind(&base.path().join(&path), found, file.length)?;
            has_bytes |= found.bytes > 0;
        }
        files.push(OnDisk::new(path, found, file));
    }
    Ok(has_bytes.then_some(files))
}

fn check_kind(path: &Path, found: &Found, length: u64) -> Result<(), CommandError> {
    let shown = path.display();
    let is_larger = found.bytes > length;
    match found.kind {
        Kind::Link => Err(PlaceError::Link(path.to_owned()).into()),
        Kind::Folder => Err(precondition(format!("{shown} is a folder, where the torrent has a file"))),
        // rTorrent hangs when it opens a pipe.
        Kind::Special => Err(precondition(format!("{shown} is not a regular file, where the torrent has a file"))),
        Kind::File if is_larger => Err(precondition(format!(
            "{shown} is there already, with {} bytes, and the torrent has {length} of it: the client would cut it; \
             move it away first",
            found.bytes
        ))),
        Kind::File => Ok(()),
    }
}
