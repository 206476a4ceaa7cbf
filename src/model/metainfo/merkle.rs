//! The Merkle trees of version 2 (BEP 52).

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use super::fields::{InvalidMetainfo, lookup, wrong};
use super::files::TorrentFile;
use crate::model::bencode::Value;

/// Reads the piece hashes of the files that have more than one piece, each list verified against the root of its file.
pub(super) fn layers(
    torrent: Value<'_>,
    files: &[TorrentFile],
    piece_length: u32,
) -> Result<BTreeMap<[u8; 32], Vec<u8>>, InvalidMetainfo> {
    let large = files.iter().filter(|file| file.length > u64::from(piece_length));
    let roots: BTreeSet<[u8; 32]> = large.filter_map(|file| file.root).collect();
    let mut layers = BTreeMap::new();
    if roots.is_empty() {
        return Ok(layers);
    }
    if !piece_length.is_power_of_two() || piece_length < MERKLE_BLOCK_BYTES {
        return Err(wrong("piece length", "is not a power of two of at least 16 KiB"));
    }
    let listed = lookup(torrent, "piece layers")?.and_then(Value::dictionary);
    for (root, hashes) in listed.into_iter().flatten() {
        let hashes = hashes.text().ok_or(wrong("piece layers", "is not a byte string"))?;
        // Layers of other files are ignored: they cannot be verified.
        let Some(root) = <[u8; 32]>::try_from(root).ok().filter(|root| roots.contains(root)) else { continue };
        let (hashes_each, rest) = hashes.as_chunks::<32>();
        // A missing piece counts as a subtree of zeros, not as one zero hash (BEP 52).
        let padding = merkle_root(&[], (piece_length / MERKLE_BLOCK_BYTES) as usize, [0; 32]);
        if !rest.is_empty() || merkle_root(hashes_each, hashes_each.len().next_power_of_two(), padding) != root {
            return Err(wrong("piece layers", "does not match the root of its file"));
        }
        layers.insert(root, hashes.to_owned());
    }
    if layers.len() < roots.len() {
        return Err(wrong("piece layers", "lacks a file"));
    }
    Ok(layers)
}

/// Bytes per leaf of a Merkle tree of version 2 (BEP 52).
pub const MERKLE_BLOCK_BYTES: u32 = 16 << 10;

/// Returns the root of a Merkle tree whose leaves are `hashes`, padded with `padding` to `width`, a power of two.
pub fn merkle_root(hashes: &[[u8; 32]], width: usize, padding: [u8; 32]) -> [u8; 32] {
    let mut level = hashes.to_vec();
    let (mut width, mut padding) = (width, padding);
    while width > 1 {
        let pair =
            |left: &[u8; 32], right: &[u8; 32]| Sha256::new().chain_update(left).chain_update(right).finalize().into();
        level = level.chunks(2).map(|two| pair(&two[0], two.get(1).unwrap_or(&padding))).collect();
        padding = pair(&padding, &padding);
        width /= 2;
    }
    level.first().copied().unwrap_or(padding)
}
