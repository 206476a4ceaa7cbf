//! Content that is made up on the spot, and the torrent of it.

use std::path::Path;

use anyhow::Context;

use crate::model::{InfoHash, Metainfo, MetainfoBuilder};

const PIECE_BYTES: u32 = 32 * 1024;

/// A torrent with its content at hand.
#[derive(Clone, Debug)]
pub struct Content {
    pub name: String,
    pub hash: InfoHash,
    /// The bytes of the .torrent file.
    pub torrent: Vec<u8>,
    /// Paths below the download folder, and what is in the files.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Content {
    /// A torrent of one file. Another `seed` gives other bytes, so another hash.
    pub fn file(name: &str, length: usize, seed: u64) -> Self {
        let bytes = noise(length, seed);
        let torrent = MetainfoBuilder::single(name, PIECE_BYTES).content(&bytes).build();
        Self::new(name, torrent, vec![(name.to_owned(), bytes)])
    }

    /// A torrent of a folder with several files.
    pub fn folder(name: &str, files: &[(&str, usize)], seed: u64) -> Self {
        let mut builder = MetainfoBuilder::folder(name, PIECE_BYTES);
        let mut contents = Vec::new();
        for ((file, length), seed) in files.iter().zip(seed..) {
            let bytes = noise(*length, seed);
            builder = builder.file(file.split('/')).content(&bytes);
            contents.push((format!("{name}/{file}"), bytes));
        }
        Self::new(name, builder.build(), contents)
    }

    fn new(name: &str, torrent: Vec<u8>, files: Vec<(String, Vec<u8>)>) -> Self {
        let hash = Metainfo::parse(&torrent).expect("made by our own builder from good names").client_hash();
        Self { name: name.to_owned(), hash, torrent, files }
    }

    pub fn length(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// Writes the files below `folder`.
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

    /// Removes the files below `folder`, those that are there.
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

/// Bytes without a pattern, the same for the same seed (xorshift).
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
