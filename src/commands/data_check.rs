//! Verification of data that is said to be there already, piece by piece.
//!
//! The first piece that differs ends it, with its file and number. The data is read in steps, so that a check can be
//! cancelled between two of them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tracing::info;

use super::beneath::{Folder, Found, Identity, Kind, Place, PlaceError, Walk};
use super::errors::precondition;
use super::padding::{PADDING_SECONDS, Padding};
use crate::model::{CommandError, ErrorCode, MERKLE_BLOCK_BYTES, Metainfo, TorrentFile, WrittenNames, merkle_root};

/// Bytes read in one step, which occupies a thread for blocking work.
const STEP_BYTES: u64 = 16 << 20;
/// Interval of log messages about a check that runs.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Data that was compared with its torrent.
pub(super) struct Checked {
    /// The paths of the files, relative to the place.
    pub paths: Vec<PathBuf>,
    /// The size of each file and its time of modification, in seconds, for the resume data.
    pub stamps: Vec<(u64, u64)>,
    /// Padding that is not on disk.
    pub padding: Padding,
}

/// Compares what is at `place` (the file, or the torrent's folder) with the torrent. `progress` is called with the
/// bytes read so far, and all bytes.
pub(super) async fn check(
    metainfo: &Metainfo,
    names: &WrittenNames,
    place: Place,
    mut progress: impl FnMut(u64, u64),
) -> Result<Checked, CommandError> {
    let base = if metainfo.is_folder { place.folder.folder(&place.name).map_err(refused)? } else { place.folder };
    let base = Arc::new(base);
    let mut files = Vec::with_capacity(metainfo.files.len());
    let mut checked = Checked { paths: Vec::new(), stamps: Vec::new(), padding: Padding::below(Arc::clone(&base)) };
    let mut walk = Walk::new(&base);
    for (number, file) in metainfo.files.iter().enumerate() {
        let path = if metainfo.is_folder {
            path_of(metainfo, names, number, &mut walk).map_err(refused)?
        } else {
            PathBuf::from(&place.name)
        };
        let found = walk.found(&path).map_err(refused)?;
        let mut file = file.clone();
        // Padding that is on disk has to be what the torrent says, as any file.
        file.is_padding &= found.is_none();
        let mut identity = None;
        checked.stamps.push(if file.is_padding {
            checked.padding.add(&path, file.length);
            (file.length, PADDING_SECONDS)
        } else {
            let found = check_size(&base.path().join(&path), found, &file)?;
            identity = Some(found.identity);
            (found.bytes, found.modified_seconds)
        });
        checked.paths.push(path.clone());
        files.push(OnDisk { path, identity, file });
    }
    let total = metainfo.length;
    let mut reader = Reader::new(metainfo, Arc::clone(&base), files);
    let mut logged = Instant::now();
    while !reader.is_done() {
        // The reader travels to the thread and back: a future that is dropped ends the check with its current step.
        let read = spawn_blocking(move || reader.step().map(|()| reader));
        reader = read.await.map_err(|_| precondition("the check could not be done"))??;
        progress(reader.read_bytes, total);
        if logged.elapsed() >= LOG_INTERVAL {
            logged = Instant::now();
            info!(name = metainfo.name, read_bytes = reader.read_bytes, total_bytes = total, "checking data");
        }
    }
    Ok(checked)
}

/// Returns the path of a file below the torrent's folder: of those that the torrent has for it in several encodings,
/// the first at which there is something.
fn path_of(
    metainfo: &Metainfo,
    names: &WrittenNames,
    number: usize,
    walk: &mut Walk<'_>,
) -> Result<PathBuf, PlaceError> {
    let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
    let paths = names.files.as_ref().and_then(|files| files.get(number)).into_iter().flatten();
    for bytes in paths {
        let path: PathBuf = path(bytes).components().filter(|part| *part != Component::RootDir).collect();
        if walk.found(&path)?.is_some() {
            return Ok(path);
        }
    }
    Ok(metainfo.files[number].path.iter().map(|name| path(name)).collect())
}

/// Returns what was found of a file, after checking that it is one of the right size.
fn check_size(path: &Path, found: Option<Found>, file: &TorrentFile) -> Result<Found, CommandError> {
    match found {
        Some(found) if found.kind == Kind::Link => Err(refused(PlaceError::Link(path.to_owned()))),
        Some(found) if found.kind == Kind::File && found.bytes == file.length => Ok(found),
        Some(_) => Err(precondition(format!("data_file: {} is no file of {} bytes", path.display(), file.length))),
        None => Err(precondition(format!("data_file: {} is not there", path.display()))),
    }
}

fn refused(error: PlaceError) -> CommandError {
    let code = if matches!(error, PlaceError::Link(_)) { ErrorCode::Forbidden } else { ErrorCode::Precondition };
    CommandError::new(code, format!("data_file: {error}"))
}

/// A file of a torrent, as it was found.
struct OnDisk {
    /// Relative to the base.
    path: PathBuf,
    /// Which file it is, unless it is padding that does not exist.
    identity: Option<Identity>,
    file: TorrentFile,
}

/// Reads the files one after the other, and hashes them as the version of the torrent demands.
struct Reader {
    base: Arc<Folder>,
    files: Vec<OnDisk>,
    /// Place of the current file.
    at: usize,
    open: Option<File>,
    /// Bytes read of the current file.
    in_file: u64,
    /// Bytes read of all files.
    read_bytes: u64,
    piece_length: u64,
    /// The hashes of version 1; empty if the torrent is of version 2 only.
    pieces: Vec<u8>,
    piece: Sha1,
    /// Bytes hashed of the current piece of version 1.
    in_piece: u64,
    /// Number of the current piece: in the torrent for version 1, in the file for version 2.
    number: usize,
    /// Version 2: the hashes of the pieces of each file with more than one, by the root of the file.
    layers: std::collections::BTreeMap<[u8; 32], Vec<u8>>,
    /// Version 2: the hashes of the blocks of the current piece.
    blocks: Vec<[u8; 32]>,
}

impl Reader {
    fn new(metainfo: &Metainfo, base: Arc<Folder>, files: Vec<OnDisk>) -> Self {
        Self {
            base,
            files,
            at: 0,
            open: None,
            in_file: 0,
            read_bytes: 0,
            piece_length: metainfo.piece_length.into(),
            pieces: metainfo.pieces.clone(),
            piece: Sha1::new(),
            in_piece: 0,
            number: 0,
            layers: metainfo.layers.clone(),
            blocks: Vec::new(),
        }
    }

    fn is_done(&self) -> bool {
        self.at == self.files.len()
    }

    /// Reads and verifies the next [`STEP_BYTES`].
    fn step(&mut self) -> Result<(), CommandError> {
        let until = self.read_bytes + STEP_BYTES;
        let mut buffer = vec![0; MERKLE_BLOCK_BYTES as usize];
        while !self.is_done() && self.read_bytes < until {
            let TorrentFile { length, is_padding, .. } = self.files[self.at].file;
            if self.in_file == length {
                self.end_file()?;
                continue;
            }
            let wanted = (length - self.in_file).min(buffer.len() as u64);
            let wanted = usize::try_from(wanted).expect("no more than the buffer has");
            let chunk = &mut buffer[..wanted];
            // BEP 47: padding is zeros that need not exist as a file.
            if is_padding {
                chunk.fill(0);
            } else {
                self.read(chunk)?;
                self.read_bytes += wanted as u64;
            }
            self.in_file += wanted as u64;
            // Of a hybrid torrent the pieces of version 1 are checked, which cover all of the data.
            if !self.pieces.is_empty() {
                self.add_v1(chunk)?;
                continue;
            }
            self.blocks.push(Sha256::digest(chunk).into());
            if self.blocks.len() as u64 * u64::from(MERKLE_BLOCK_BYTES) == self.piece_length {
                self.end_piece_v2()?;
            }
        }
        Ok(())
    }

    fn read(&mut self, chunk: &mut [u8]) -> Result<(), CommandError> {
        let OnDisk { path, identity, .. } = &self.files[self.at];
        let file = match &mut self.open {
            Some(file) => file,
            none => {
                let folder = self.base.below(path.parent().unwrap_or(Path::new(""))).map_err(refused)?;
                let (file, _) = folder.open_file(path.file_name().unwrap_or_default(), *identity).map_err(refused)?;
                none.insert(file)
            }
        };
        let path = || self.base.path().join(path);
        file.read_exact(chunk).map_err(|error| precondition(format!("data_file: {}: {error}", path().display())))
    }

    fn end_file(&mut self) -> Result<(), CommandError> {
        if self.pieces.is_empty() && !self.blocks.is_empty() {
            self.end_piece_v2()?;
        }
        let is_last = self.at + 1 == self.files.len();
        if self.pieces.is_empty() {
            // Version 2 counts the pieces of each file; of version 1, one piece may reach into the next file.
            self.number = 0;
        } else if is_last && self.in_piece > 0 {
            self.end_piece_v1()?;
        }
        self.open = None;
        self.in_file = 0;
        self.at += 1;
        Ok(())
    }

    fn add_v1(&mut self, mut chunk: &[u8]) -> Result<(), CommandError> {
        while !chunk.is_empty() {
            let room = usize::try_from(self.piece_length - self.in_piece).unwrap_or(usize::MAX);
            let (now, later) = chunk.split_at(room.min(chunk.len()));
            self.piece.update(now);
            self.in_piece += now.len() as u64;
            if self.in_piece == self.piece_length {
                self.end_piece_v1()?;
            }
            chunk = later;
        }
        Ok(())
    }

    fn end_piece_v1(&mut self) -> Result<(), CommandError> {
        let hash: [u8; 20] = self.piece.finalize_reset().into();
        let expected = self.pieces.get(self.number * 20..self.number * 20 + 20);
        self.in_piece = 0;
        self.end_piece(expected == Some(&hash[..]))
    }

    fn end_piece_v2(&mut self) -> Result<(), CommandError> {
        let file = &self.files[self.at].file;
        let is_right = file.root.is_some_and(|root| {
            let width = (self.piece_length / u64::from(MERKLE_BLOCK_BYTES)).max(1) as usize;
            match self.layers.get(&root) {
                Some(layer) => {
                    layer.get(self.number * 32..self.number * 32 + 32)
                        == Some(&merkle_root(&self.blocks, width, [0; 32])[..])
                }
                // A file of at most one piece has no layer, only its root.
                None => merkle_root(&self.blocks, self.blocks.len().next_power_of_two(), [0; 32]) == root,
            }
        });
        self.blocks.clear();
        self.end_piece(is_right)
    }

    /// Ends the current piece, which ends in the current file.
    fn end_piece(&mut self, is_right: bool) -> Result<(), CommandError> {
        let piece = self.number;
        if !is_right {
            let path = self.base.path().join(&self.files[self.at].path);
            let path = path.display();
            return Err(precondition(format!("data_file: {path} is not what the torrent says: piece {piece} differs")));
        }
        self.number += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::roots::Roots;
    use crate::model::MetainfoBuilder;

    fn check_now(torrent: &[u8], path: &Path, root: &Path) -> Result<u64, String> {
        let (metainfo, names) = (Metainfo::parse(torrent).unwrap(), WrittenNames::parse(torrent).unwrap());
        let place = Roots::new(vec![root.to_owned()]).find("data_file", path.to_str().unwrap()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut read = 0;
        runtime.block_on(check(&metainfo, &names, place, |bytes, _| read = bytes)).map_err(|error| error.message)?;
        Ok(read)
    }

    #[test]
    fn the_first_piece_that_differs_is_named_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let contents = [vec![1_u8; 40_000], vec![], vec![2; 5_000], vec![3; 70_000]];
        let mut builder = MetainfoBuilder::folder("t", 16_384);
        std::fs::create_dir(root.join("t")).unwrap();
        for (n, content) in contents.iter().enumerate() {
            builder = builder.file([n.to_string()]).content(content);
            std::fs::write(root.join("t").join(n.to_string()), content).unwrap();
        }
        let torrent = builder.build();
        assert_eq!(check_now(&torrent, &root.join("t"), &root), Ok(115_000));
        let mut changed = contents[3].clone();
        changed[30_000] ^= 1;
        std::fs::write(root.join("t/3"), &changed).unwrap();
        let error = check_now(&torrent, &root.join("t"), &root).unwrap_err();
        assert!(error.contains("t/3 ") && error.contains("piece 4 differs"), "{error}");
        std::fs::write(root.join("t/3"), &changed[1..]).unwrap();
        assert!(check_now(&torrent, &root.join("t"), &root).unwrap_err().contains("no file of 70000 bytes"));
        std::fs::remove_file(root.join("t/3")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.join("t/3")).unwrap();
        assert!(check_now(&torrent, &root.join("t"), &root).unwrap_err().contains("t/3 is a symbolic link"));
    }

    /// A torrent of version 2 alone, made by its rules.
    fn version_two(files: &[(&str, &[u8])], piece_length: u32) -> Vec<u8> {
        let text = |out: &mut Vec<u8>, text: &[u8]| {
            out.extend_from_slice(format!("{}:", text.len()).as_bytes());
            out.extend_from_slice(text);
        };
        let (mut tree, mut layers) = (b"d".to_vec(), b"d".to_vec());
        let per_piece = (piece_length / MERKLE_BLOCK_BYTES) as usize;
        let mut all_layers = std::collections::BTreeMap::new();
        for (name, content) in files {
            let blocks: Vec<[u8; 32]> =
                content.chunks(MERKLE_BLOCK_BYTES as usize).map(|block| Sha256::digest(block).into()).collect();
            let root = merkle_root(&blocks, blocks.len().next_power_of_two().max(1), [0; 32]);
            let root = if blocks.len() > per_piece {
                let pieces: Vec<[u8; 32]> =
                    blocks.chunks(per_piece).map(|piece| merkle_root(piece, per_piece, [0; 32])).collect();
                let padding = merkle_root(&[], per_piece, [0; 32]);
                let root = merkle_root(&pieces, pieces.len().next_power_of_two(), padding);
                all_layers.insert(root, pieces.concat());
                root
            } else {
                root
            };
            text(&mut tree, name.as_bytes());
            tree.extend_from_slice(format!("d0:d6:lengthi{}e11:pieces root", content.len()).as_bytes());
            text(&mut tree, &root);
            tree.extend_from_slice(b"ee");
        }
        tree.push(b'e');
        for (root, pieces) in all_layers {
            text(&mut layers, &root);
            text(&mut layers, &pieces);
        }
        layers.push(b'e');
        let mut out = b"d4:infod9:file tree".to_vec();
        out.extend_from_slice(&tree);
        out.extend_from_slice(
            format!("12:meta versioni2e4:name1:t12:piece lengthi{piece_length}ee12:piece layers").as_bytes(),
        );
        out.extend_from_slice(&layers);
        out.push(b'e');
        out
    }

    #[test]
    fn version_two_is_verified_by_its_hash_trees() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("t")).unwrap();
        let (small, large) = (vec![7_u8; 20_000], (0..300_000_u32).map(|n| n as u8).collect::<Vec<u8>>());
        let torrent = version_two(&[("a", &small), ("b", &large)], 65_536);
        std::fs::write(root.join("t/a"), &small).unwrap();
        std::fs::write(root.join("t/b"), &large).unwrap();
        assert_eq!(check_now(&torrent, &root.join("t"), &root), Ok(320_000));
        let mut changed = large.clone();
        changed[270_000] ^= 1;
        std::fs::write(root.join("t/b"), &changed).unwrap();
        let error = check_now(&torrent, &root.join("t"), &root).unwrap_err();
        assert!(error.contains("t/b ") && error.contains("piece 4 differs"), "{error}");
    }
}
