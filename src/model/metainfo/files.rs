//! The names and paths in a .torrent file, all of which stay below the directory that the torrent is put into.
//!
//! Which of several names a client takes for the path depends on its settings: rTorrent takes `name.utf-8` with
//! `encoding.add = utf-8`, and checks it less than `name`. So every one is checked, whatever the client.

use std::collections::{HashMap, HashSet};

use super::fields::{InvalidMetainfo, lookup, size, wrong};
use crate::model::bencode::Value;
use crate::model::printable;

/// Longest name of a file or folder, in bytes, on the file systems of Linux (`NAME_MAX`).
pub(crate) const NAME_BYTES_MAX: usize = 255;
/// Longest path, in bytes, without the NUL behind it (`PATH_MAX`).
pub(crate) const PATH_BYTES_MAX: usize = 4095;

/// A file in a torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TorrentFile {
    /// Path components as bytes: none is empty, `.` or `..`, or contains `/` or NUL.
    pub path: Vec<Vec<u8>>,
    /// Bytes of content.
    pub length: u64,
    /// Padding between two files (BEP 47): zeros, never on disk.
    pub is_padding: bool,
    /// For version 2: root of its Merkle tree; an empty file has none.
    pub root: Option<[u8; 32]>,
}

/// Checks one name of a path, in whatever encoding: some client takes it.
fn check_name(bytes: &[u8], key: &str) -> Result<(), InvalidMetainfo> {
    if bytes.starts_with(b"/") || bytes.split(|byte| *byte == b'/').any(|part| part == b"..") {
        return Err(InvalidMetainfo::Outside { key: key.to_owned() });
    }
    if matches!(bytes, b"" | b".") || bytes.iter().any(|byte| matches!(byte, b'/' | 0)) {
        return Err(wrong(key, "is not a valid file name"));
    }
    if bytes.len() > NAME_BYTES_MAX {
        // rTorrent loads it, and then checks its data for ever.
        return Err(wrong(key, "is longer than 255 bytes, which no file system takes"));
    }
    Ok(())
}

/// Whether `key` is `base`, or the same in another encoding: `name.utf-8` for `name`.
fn is_spelling_of(key: &[u8], base: &[u8]) -> bool {
    key.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"."))
}

/// Returns the name of a torrent, after checking it in every encoding.
pub(super) fn name<'a>(info: Value<'a>) -> Result<&'a [u8], InvalidMetainfo> {
    for (key, value) in info.dictionary().into_iter().flatten().filter(|(key, _)| is_spelling_of(key, b"name")) {
        let key = printable(key);
        check_name(value.text().ok_or_else(|| wrong(&key, "is not a byte string"))?, &key)?;
    }
    lookup(info, "name")?.and_then(Value::text).ok_or_else(|| wrong("name", "is missing"))
}

/// Returns the names of a path as they are written, after checking them.
///
/// Empty names may stand before another one: rTorrent writes two slashes then, which is the same place.
fn path<'a>(value: Value<'a>, key: &str) -> Result<Vec<&'a [u8]>, InvalidMetainfo> {
    let names = value.list().ok_or_else(|| wrong(key, "is not a list"))?;
    let names = names.map(|name| name.text().ok_or_else(|| wrong(key, "has a name that is not a byte string")));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    if names.last().is_none_or(|name| name.is_empty()) {
        return Err(wrong(key, "ends without a file name"));
    }
    let not_empty = names.iter().filter(|name| !name.is_empty());
    not_empty.clone().try_for_each(|name| check_name(name, key))?;
    if not_empty.map(|name| name.len() + 1).sum::<usize>() > PATH_BYTES_MAX {
        return Err(wrong(key, "is longer than 4095 bytes, which no file system takes"));
    }
    Ok(names)
}

/// The key of a path, and its names as they are written.
type KeyedPath<'a> = (&'a [u8], Vec<&'a [u8]>);

/// Returns every path that a client may use for a file: `path`, and the same in other encodings.
fn paths(file: Value<'_>) -> Result<Vec<KeyedPath<'_>>, InvalidMetainfo> {
    let entries = file.dictionary().ok_or_else(|| wrong("files", "has an entry that is not a dictionary"))?;
    let paths = entries.filter(|(key, _)| is_spelling_of(key, b"path"));
    paths.map(|(key, value)| Ok((key, path(value, &printable(key))?))).collect()
}

/// Checks the target of a symbolic link (BEP 47), which some clients create.
fn check_link(file: Value<'_>) -> Result<(), InvalidMetainfo> {
    lookup(file, "symlink path")?.map_or(Ok(()), |value| path(value, "symlink path").map(drop))
}

/// The places that the files of a torrent take.
#[derive(Default)]
struct Places<'a> {
    /// The path of each file, and whether it is padding.
    files: HashMap<Vec<&'a [u8]>, bool>,
    folders: HashSet<Vec<&'a [u8]>>,
}

impl<'a> Places<'a> {
    /// Takes the paths of one file; `false` if one of them is a file or a folder already.
    ///
    /// rTorrent loads such a torrent, cannot open its files, and leaves it in the queue of checks for ever. The same
    /// padding may be there several times: it is named by its length.
    fn take(&mut self, paths: &[KeyedPath<'a>], is_padding: bool) -> bool {
        // Empty names lead to the same place, and a path in several encodings is still one file's.
        let paths: HashSet<Vec<&[u8]>> =
            paths.iter().map(|(_, path)| path.iter().copied().filter(|name| !name.is_empty()).collect()).collect();
        let is_free = |path: &Vec<&[u8]>| {
            self.files.get(path).is_none_or(|was_padding| *was_padding && is_padding)
                && !self.folders.contains(path)
                && !folders_of(path).any(|folder| self.files.contains_key(folder))
        };
        let are_free = paths.iter().all(is_free);
        self.folders.extend(paths.iter().flat_map(|path| folders_of(path)).map(<[_]>::to_vec));
        self.files.extend(paths.into_iter().map(|path| (path, is_padding)));
        are_free
    }
}

/// Returns the path of each folder above a file.
fn folders_of<'p, 'a>(path: &'p [&'a [u8]]) -> impl Iterator<Item = &'p [&'a [u8]]> {
    (1..path.len()).map(|count| &path[..count])
}

/// Returns the files of version 1.
pub(super) fn listed_files(list: Value<'_>) -> Result<Vec<TorrentFile>, InvalidMetainfo> {
    let mut files = Vec::new();
    let (mut paths_before, mut places): (Vec<KeyedPath<'_>>, _) = (Vec::new(), Places::default());
    for file in list.list().ok_or_else(|| wrong("files", "is not a list"))? {
        let paths = paths(file)?;
        check_link(file)?;
        let attributes = lookup(file, "attr")?.and_then(Value::text).unwrap_or_default();
        let is_padding = attributes.contains(&b'p');
        // rTorrent aborts (`verify_file_list() 3`) if the path of a file begins with the whole path of the one before
        // it, padding included.
        let begins = |path: &[&[u8]]| paths_before.iter().any(|(_, before)| path.starts_with(before));
        if paths.iter().any(|(_, path)| begins(path)) || !places.take(&paths, is_padding) {
            return Err(wrong("files", "has a file twice, or one inside the other"));
        }
        let (_, names) = paths.iter().find(|(key, _)| *key == b"path").ok_or_else(|| wrong("path", "is missing"))?;
        let path = names.iter().filter(|name| !name.is_empty()).map(|name| name.to_vec()).collect();
        files.push(TorrentFile { path, length: size(file, "length")?, is_padding, root: None });
        paths_before = paths;
    }
    Ok(files)
}

/// Returns the files of version 2: a tree of dictionaries, each file a dictionary under an empty name.
pub(super) fn tree_files(tree: Value<'_>) -> Result<Vec<TorrentFile>, InvalidMetainfo> {
    let mut files = Vec::new();
    let mut path: Vec<Vec<u8>> = Vec::new();
    let mut folders = vec![entries(tree)?];
    while let Some(folder) = folders.last_mut() {
        match folder.next() {
            None => {
                folders.pop();
                path.pop();
            }
            Some((b"", file)) if !path.is_empty() => {
                check_link(file)?;
                let length = size(file, "length")?;
                let root = lookup(file, "pieces root")?.and_then(Value::text).map(<[u8; 32]>::try_from);
                let root = root.transpose().map_err(|_| wrong("pieces root", "is not a hash"))?;
                if root.is_none() && length > 0 {
                    return Err(wrong("pieces root", "is missing"));
                }
                files.push(TorrentFile { path: path.clone(), length, is_padding: false, root });
            }
            Some((name, below)) => {
                check_name(name, "file tree")?;
                path.push(name.to_vec());
                folders.push(entries(below)?);
            }
        }
    }
    Ok(files)
}

/// Returns the entries of one directory of a file tree.
fn entries<'a>(folder: Value<'a>) -> Result<impl Iterator<Item = (&'a [u8], Value<'a>)>, InvalidMetainfo> {
    folder.dictionary().ok_or_else(|| wrong("file tree", "is not a dictionary"))
}
