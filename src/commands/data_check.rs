//! Verification of data that is said to be there already, piece by piece.
//!
//! The first piece that differs ends it, with its file and number. The data is read in steps, so that a check can be
//! cancelled between two of them. Data that may be incomplete is what an interrupted download leaves: pieces that are
//! right, zeros, and files that are short or missing.

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
    progress: impl FnMut(u64, u64),
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
        // Padding that is on disk has to be what the torrent says, as any file.
        let is_missing_padding = file.is_padding && found.is_none();
        let found = if is_missing_padding {
            checked.padding.add(&path, file.length);
            checked.stamps.push((file.length, PADDING_SECONDS));
            None
        } else {
            let found = check_size(&base.path().join(&path), found, file)?;
            checked.stamps.push((found.bytes, found.modified_seconds));
            Some(found)
        };
        checked.paths.push(path.clone());
        files.push(OnDisk::new(path, found, file));
    }
    read_all(metainfo, Reader::new(metainfo, Arc::clone(&base), files, false), progress).await?;
    Ok(checked)
}

/// Compares files below `base` with the torrent as far as they are there, in the order of the torrent.
pub(super) async fn check_incomplete(
    metainfo: &Metainfo,
    base: Arc<Folder>,
    files: Vec<OnDisk>,
    progress: impl FnMut(u64, u64),
) -> Result<(), CommandError> {
    read_all(metainfo, Reader::new(metainfo, base, files, true), progress).await
}

async fn read_all(
    metainfo: &Metainfo,
    mut reader: Reader,
    mut progress: impl FnMut(u64, u64),
) -> Result<(), CommandError> {
    let total = reader.files.iter().map(|file| file.bytes).sum();
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
    Ok(())
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
        Some(_) => Err(precondition(format!("data_file: {} is not a file of {} bytes", path.display(), file.length))),
        None => Err(precondition(format!("data_file: {} is not there", path.display()))),
    }
}

fn refused(error: PlaceError) -> CommandError {
    let code = if matches!(error, PlaceError::Link(_)) { ErrorCode::Forbidden } else { ErrorCode::Precondition };
    CommandError::new(code, format!("data_file: {error}"))
}

/// A file of a torrent, as it was found.
pub(super) struct OnDisk {
    /// Relative to the base.
    path: PathBuf,
    /// Which file it is; `None` if there is none.
    identity: Option<Identity>,
    /// Bytes that are there. The rest counts as zeros.
    bytes: u64,
    /// Bytes that the torrent has of it.
    length: u64,
    /// The root of its hash tree, in version 2.
    root: Option<[u8; 32]>,
}

impl OnDisk {
    /// Returns what was found of a file: at most as long as the torrent says.
    pub fn new(path: PathBuf, found: Option<Found>, file: &TorrentFile) -> Self {
        let bytes = found.map_or(0, |found| found.bytes.min(file.length));
        Self { path, identity: found.map(|found| found.identity), bytes, length: file.length, root: file.root }
    }
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
    /// A piece of zeros is no fault.
    may_be_incomplete: bool,
    /// The current piece has other bytes than zeros.
    has_data: bool,
}

impl Reader {
    fn new(metainfo: &Metainfo, base: Arc<Folder>, files: Vec<OnDisk>, may_be_incomplete: bool) -> Self {
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
            may_be_incomplete,
            has_data: false,
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
            let OnDisk { length, bytes, .. } = self.files[self.at];
            if self.in_file == length {
                self.end_file()?;
                continue;
            }
            if self.may_be_incomplete && self.skip_missing() {
                continue;
            }
            let wanted = (length - self.in_file).min(buffer.len() as u64);
            let there = bytes.saturating_sub(self.in_file).min(wanted);
            let [wanted, there] =
                [wanted, there].map(|count| usize::try_from(count).expect("no more than the buffer has"));
            let chunk = &mut buffer[..wanted];
            self.read(&mut chunk[..there])?;
            // BEP 47: padding is zeros that need not exist as a file.
            chunk[there..].fill(0);
            self.read_bytes += there as u64;
            self.in_file += wanted as u64;
            // Of a hybrid torrent the pieces of version 1 are checked, which cover all of the data.
            if !self.pieces.is_empty() {
                self.add_v1(chunk)?;
                continue;
            }
            self.has_data |= has_data(chunk);
            self.blocks.push(Sha256::digest(chunk).into());
            if self.blocks.len() as u64 * u64::from(MERKLE_BLOCK_BYTES) == self.piece_length {
                self.end_piece_v2()?;
            }
        }
        Ok(())
    }

    /// Goes on behind the current piece if nothing of it is there: hashing zeros takes as long as hashing data.
    fn skip_missing(&mut self) -> bool {
        if self.in_piece > 0 || !self.blocks.is_empty() {
            return false;
        }
        let (mut at, mut in_file, mut left) = (self.at, self.in_file, self.piece_length);
        while left > 0
            && let Some(file) = self.files.get(at)
        {
            if file.bytes > in_file {
                return false;
            }
            let skipped = left.min(file.length - in_file);
            (left, in_file) = (left - skipped, in_file + skipped);
            if in_file < file.length {
                continue;
            }
            // A piece of version 2 ends with its file.
            if self.pieces.is_empty() {
                break;
            }
            (at, in_file) = (at + 1, 0);
        }
        self.number += 1;
        if at != self.at {
            self.open = None;
        }
        (self.at, self.in_file) = (at, in_file);
        true
    }

    fn read(&mut self, chunk: &mut [u8]) -> Result<(), CommandError> {
        if chunk.is_empty() {
            return Ok(());
        }
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
            self.has_data |= has_data(now);
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
        let root = self.files[self.at].root;
        let is_right = root.is_some_and(|root| {
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
        let has_data = std::mem::take(&mut self.has_data);
        self.number += 1;
        if is_right || self.may_be_incomplete && !has_data {
            return Ok(());
        }
        let path = self.base.path().join(&self.files[self.at].path);
        let path = path.display();
        Err(precondition(if self.may_be_incomplete {
            format!(
                "{path}, or a file before it, is there already and is not what the torrent says: piece {piece} differs, \
                 and the client would overwrite it; move it away first"
            )
        } else {
            format!("data_file: {path} is not what the torrent says: piece {piece} differs")
        }))
    }
}

fn has_data(bytes: &[u8]) -> bool {
    bytes.iter().any(|byte| *byte != 0)
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
        assert!(check_now(&torrent, &root.join("t"), &root).unwrap_err().contains("not a file of 70000 bytes"));
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

    /// Reads what there is of the files `0`, `1`, … of the folder `t`.
    fn check_incomplete_now(torrent: &[u8], root: &Path) -> Result<u64, String> {
        let metainfo = Metainfo::parse(torrent).unwrap();
        let base = Arc::new(Folder::open(&root.join("t")).unwrap());
        let mut walk = Walk::new(&base);
        let file = |file: &TorrentFile| {
            let path: PathBuf = file.path.iter().map(|name| PathBuf::from(OsStr::from_bytes(name))).collect();
            let found = walk.found(&path).unwrap();
            OnDisk::new(path, found, file)
        };
        let files = metainfo.files.iter().map(file).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut read = 0;
        let checked = check_incomplete(&metainfo, Arc::clone(&base), files, |bytes, _| read = bytes);
        runtime.block_on(checked).map_err(|error| error.message)?;
        Ok(read)
    }

    #[test]
    fn what_an_interrupted_download_leaves_is_recognized_and_nothing_else() {
        let contents = [vec![1_u8; 50_000], vec![2; 30_000], vec![3; 70_000]];
        let mut builder = MetainfoBuilder::folder("t", 16_384);
        for (n, content) in contents.iter().enumerate() {
            builder = builder.file([n.to_string()]).content(content);
        }
        let listed: Vec<(String, &[u8])> = contents.iter().enumerate().map(|(n, c)| (n.to_string(), &c[..])).collect();
        let listed: Vec<(&str, &[u8])> = listed.iter().map(|(name, content)| (name.as_str(), *content)).collect();
        let [v1, v2] = [builder.build(), version_two(&listed, 16_384)];
        let zeros_from = |n: usize, from: usize| {
            let mut content = contents[n].clone();
            content[from..].fill(0);
            content
        };
        // The files on disk, and whether version 1 and version 2 take them. Of version 1 pieces run across files.
        type Case = (&'static str, [Option<Vec<u8>>; 3], bool, bool);
        let cases: [Case; 12] = [
            ("nothing", [None, None, None], true, true),
            ("all", [Some(contents[0].clone()), Some(contents[1].clone()), Some(contents[2].clone())], true, true),
            ("zeros", [Some(vec![0; 50_000]), Some(vec![0; 10]), Some(vec![])], true, true),
            ("three pieces", [Some(zeros_from(0, 3 * 16_384)), None, None], true, true),
            ("three pieces, cut", [Some(contents[0][..3 * 16_384].to_vec()), None, None], true, true),
            (
                "a piece in the middle",
                [None, None, Some([vec![0; 16_384], contents[2][16_384..32_768].to_vec()].concat())],
                false,
                true,
            ),
            ("one byte in zeros", [Some([vec![0; 20_000], vec![9]].concat()), None, None], false, false),
            (
                "a changed byte",
                [Some(contents[0].clone()), Some(contents[1].clone()), Some([&[4], &contents[2][1..]].concat())],
                false,
                false,
            ),
            ("a byte in the second file alone", [None, Some(vec![2]), None], false, false),
            ("half a piece", [Some(contents[0][..20_000].to_vec()), None, None], false, false),
            ("a whole file between two that are missing", [None, Some(contents[1].clone()), None], false, true),
            ("a byte at the end", [None, None, Some([vec![0; 69_999], vec![3]].concat())], false, false),
        ];
        for (what, files, is_v1, is_v2) in cases {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path().canonicalize().unwrap();
            std::fs::create_dir(root.join("t")).unwrap();
            for (n, content) in files.iter().enumerate() {
                if let Some(content) = content {
                    std::fs::write(root.join("t").join(n.to_string()), content).unwrap();
                }
            }
            let there: usize = files.iter().flatten().map(Vec::len).sum();
            for (torrent, is_own) in [(&v1, is_v1), (&v2, is_v2)] {
                match check_incomplete_now(torrent, &root) {
                    Ok(read) => assert!(is_own && read == there as u64, "{what}: {read} of {there} bytes"),
                    Err(error) => assert!(!is_own && error.contains("overwrite"), "{what}: {error}"),
                }
            }
        }
    }
}
