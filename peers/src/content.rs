//! Torrents with made-up data.

use std::path::Path;

use anyhow::Context;

use crate::torrent::{self, InfoHash};

/// A torrent and its data.
#[derive(Clone, Debug)]
pub struct Content {
    /// The name of the file or folder, as the torrent states it.
    pub name: String,
    /// The info-hash of the torrent.
    pub hash: InfoHash,
    /// The bytes of the .torrent file, which names no tracker.
    pub torrent: Vec<u8>,
    /// Paths relative to the download folder, and the data of each file.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Content {
    /// Makes up a torrent of one file. The same `seed` gives the same bytes and so the same hash.
    pub fn file(name: &str, length: usize, seed: u64) -> Self {
        let bytes = noise(length, seed);
        let torrent = torrent::build(name, &[(None, &bytes)]);
        Self::new(name, torrent, vec![(name.to_owned(), bytes)])
    }

    /// Makes up a torrent of a folder. `files` are paths inside the folder and their lengths in bytes.
    pub fn folder(name: &str, files: &[(&str, usize)], seed: u64) -> Self {
        let contents: Vec<Vec<u8>> = files.iter().zip(seed..).map(|((_, length), seed)| noise(*length, seed)).collect();
        let paths = files.iter().map(|(path, _)| *path);
        let listed: Vec<_> = paths.clone().map(Some).zip(contents.iter().map(Vec::as_slice)).collect();
        let torrent = torrent::build(name, &listed);
        Self::new(name, torrent, paths.map(|path| format!("{name}/{path}")).zip(contents).collect())
    }

    fn new(name: &str, torrent: Vec<u8>, files: Vec<(String, Vec<u8>)>) -> Self {
        let hash = InfoHash::of_torrent(&torrent).expect("`torrent::build` writes an info dictionary");
        Self { name: name.to_owned(), hash, torrent, files }
    }

    /// Returns the total size of the data in bytes.
    pub fn length(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// Writes the data below `folder`, replacing files that exist.
    pub fn write_to(&self, folder: &Path) -> anyhow::Result<()> {
        for (path, bytes) in &self.files {
            let path = folder.join(path);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
            }
            std::fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }

    /// Removes the data below `folder`. Files that are missing are no error; folders stay.
    pub fn remove_from(&self, folder: &Path) -> anyhow::Result<()> {
        for (path, _) in &self.files {
            match std::fs::remove_file(folder.join(path)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {path}"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Returns pseudo-random bytes (xorshift): incompressible, and different in every piece.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
