//! Torrent files and magnet links: parsing, validation, and building.
//!
//! Both are untrusted input. A [`Metainfo`] has an info-hash computed from the exact bytes it was
//! read from, and file paths that stay below the directory they are put into. Bytes behind the
//! torrent are ignored, as clients do, and so are unknown keys.
//!
//! Whether a client can load a torrent (one of version 2, say) is not decided here.

use std::collections::{BTreeMap, BTreeSet};

use sha1::Sha1;
use sha2::{Digest, Sha256};
use url::Url;

use super::InfoHash;
use super::bencode::Encode::{self, List, Number, Text};
use super::bencode::{NotBencoded, Value};

/// The content of a .torrent file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metainfo {
    /// SHA-1 of the `info` bytes, if it has pieces of version 1 (BEP 3).
    pub v1: Option<InfoHash>,
    /// SHA-256 of the same bytes, if it is of version 2 (BEP 52); a hybrid has both.
    pub v2: Option<InfoHash>,
    /// Name. Bytes that are not UTF-8 are replaced; control characters stay.
    pub name: String,
    /// Private (BEP 27).
    pub private: bool,
    /// Host name of the first tracker.
    pub tracker: Option<String>,
    /// Bytes of content, padding not counted.
    pub length: u64,
    /// Bytes per piece.
    pub piece_length: u32,
    /// SHA-1 of each piece, 20 bytes apiece; empty without version 1.
    pub pieces: Vec<u8>,
    /// Files in the order of the content. A single-file torrent has one, under the torrent's name.
    pub files: Vec<TorrentFile>,
    /// The files are in a directory of the torrent's name.
    pub is_folder: bool,
    /// For version 2: hashes of a file's pieces, 32 bytes apiece, by the file's root. A file of one piece has none,
    /// because its root is the hash.
    pub layers: BTreeMap<[u8; 32], Vec<u8>>,
}

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

/// A .torrent file is malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidMetainfo {
    /// The bytes are not bencoded.
    #[error("invalid torrent file: {0}")]
    NotBencoded(#[from] NotBencoded),
    /// A key is missing, or its value is wrong.
    #[error("invalid torrent file: `{key}` {what}")]
    Key { key: &'static str, what: &'static str },
}

fn wrong(key: &'static str, what: &'static str) -> InvalidMetainfo {
    InvalidMetainfo::Key { key, what }
}

/// Returns the value of a key; an error if `dictionary` is no dictionary or has the key twice.
fn lookup<'a>(dictionary: Value<'a>, key: &'static str) -> Result<Option<Value<'a>>, InvalidMetainfo> {
    let pairs = dictionary.dictionary().ok_or(wrong(key, "is not in a dictionary"))?;
    let mut found = pairs.filter(|(name, _)| *name == key.as_bytes()).map(|(_, value)| value);
    let value = found.next();
    if found.next().is_some() {
        return Err(wrong(key, "is a duplicate key"));
    }
    Ok(value)
}

fn size(dictionary: Value<'_>, key: &'static str) -> Result<u64, InvalidMetainfo> {
    let number = lookup(dictionary, key)?.ok_or(wrong(key, "is missing"))?.number();
    number.and_then(|number| u64::try_from(number).ok()).ok_or(wrong(key, "is not a size"))
}

/// Checks one component of a path.
fn component(bytes: &[u8], key: &'static str) -> Result<Vec<u8>, InvalidMetainfo> {
    if matches!(bytes, b"" | b"." | b"..") || bytes.iter().any(|byte| matches!(byte, b'/' | 0)) {
        return Err(wrong(key, "is not a valid file name"));
    }
    Ok(bytes.to_owned())
}

impl Metainfo {
    /// Reads a .torrent file.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidMetainfo> {
        let root = Value::parse(bytes)?;
        let info = lookup(root, "info")?.ok_or(wrong("info", "is missing"))?;
        let raw_name = lookup(info, "name")?.and_then(Value::text).ok_or(wrong("name", "is missing"))?;
        let raw_name = component(raw_name, "name")?;
        let piece_length = u32::try_from(size(info, "piece length")?).ok().filter(|length| *length > 0);
        let piece_length = piece_length.ok_or(wrong("piece length", "is out of range"))?;
        let pieces = lookup(info, "pieces")?.map(|value| value.text().ok_or(wrong("pieces", "is not a byte string")));
        let pieces = pieces.transpose()?;
        let is_v2 = lookup(info, "meta version")?.and_then(Value::number) == Some(2);

        let list = lookup(info, "files")?;
        let (files, is_folder) = match (pieces, list) {
            (Some(_), Some(list)) => (listed_files(list)?, true),
            (Some(_), None) => {
                let length = size(info, "length")?;
                (vec![TorrentFile { path: vec![raw_name.clone()], length, is_padding: false, root: None }], false)
            }
            (None, _) if is_v2 => {
                let tree = lookup(info, "file tree")?.ok_or(wrong("file tree", "is missing"))?;
                let files = tree_files(tree)?;
                let is_folder = files.len() != 1 || files[0].path != [raw_name.clone()];
                (files, is_folder)
            }
            (None, _) => return Err(wrong("pieces", "is missing")),
        };
        let sum = |padding_too: bool| {
            let counted = files.iter().filter(|file| padding_too || !file.is_padding);
            counted.map(|file| file.length).try_fold(0, u64::checked_add).ok_or(wrong("length", "is too large"))
        };
        // Pieces cover the padding (BEP 47); what a client downloads does not.
        let (length, length_with_padding) = (sum(false)?, sum(true)?);
        if length == 0 {
            return Err(wrong("length", "is 0 in total"));
        }
        if let Some(pieces) = pieces
            && Some(pieces.len() as u64) != length_with_padding.div_ceil(u64::from(piece_length)).checked_mul(20)
        {
            return Err(wrong("pieces", "does not match the length"));
        }
        Ok(Self {
            v1: pieces.map(|_| InfoHash::V1(Sha1::digest(info.span()).into())),
            v2: is_v2.then(|| InfoHash::V2(Sha256::digest(info.span()).into())),
            name: String::from_utf8_lossy(&raw_name).into_owned(),
            // BEP 27: 1 and nothing else.
            private: lookup(info, "private")?.and_then(Value::number) == Some(1),
            tracker: first_tracker(root)?,
            length,
            piece_length,
            pieces: pieces.unwrap_or_default().to_owned(),
            layers: layers(root, &files, piece_length)?,
            files,
            is_folder,
        })
    }

    /// Returns the hash by which clients know it: that of version 1 if there is one.
    pub fn client_hash(&self) -> InfoHash {
        self.v1.or(self.v2).expect("`parse` gives a torrent of one version at least")
    }
}

/// Reads the piece hashes of the files that have more than one piece, each list verified against the root of its file.
fn layers(
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

fn listed_files(list: Value<'_>) -> Result<Vec<TorrentFile>, InvalidMetainfo> {
    let mut files = Vec::new();
    let mut written_before = Vec::new();
    for file in list.list().ok_or(wrong("files", "is not a list"))? {
        // rTorrent aborts (`verify_file_list() 3`) if the path of a file begins with the whole path of the one before
        // it. Further apart, repeated paths are harmless and occur in real torrents: padding files are named by length.
        let written = written_paths(file);
        if written.iter().any(|path| written_before.iter().any(|before: &Vec<&[u8]>| path.starts_with(before))) {
            return Err(wrong("files", "has a file twice in a row, or one inside the other"));
        }
        written_before = written;
        let path = lookup(file, "path")?.and_then(Value::list).ok_or(wrong("path", "is missing"))?;
        let path: Vec<Vec<u8>> = path
            .map(|name| component(name.text().ok_or(wrong("path", "is not a byte string"))?, "path"))
            .collect::<Result<_, _>>()?;
        if path.is_empty() {
            return Err(wrong("path", "is empty"));
        }
        let attributes = lookup(file, "attr")?.and_then(Value::text).unwrap_or_default();
        let is_padding = attributes.contains(&b'p');
        files.push(TorrentFile { path, length: size(file, "length")?, is_padding, root: None });
    }
    Ok(files)
}

/// Returns every path that a client may use for a file: `path`, and the same in other encodings (`path.utf-8`).
fn written_paths(file: Value<'_>) -> Vec<Vec<&[u8]>> {
    let entries = file.dictionary().into_iter().flatten();
    let paths = entries.filter(|(key, _)| *key == b"path" || key.starts_with(b"path."));
    let paths = paths.filter_map(|(_, path)| Some(path.list()?.filter_map(Value::text).collect::<Vec<_>>()));
    paths.filter(|path| !path.is_empty()).collect()
}

/// The files of version 2: a tree of dictionaries, each file a dictionary under an empty name.
fn tree_files(tree: Value<'_>) -> Result<Vec<TorrentFile>, InvalidMetainfo> {
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
                let length = size(file, "length")?;
                let root = lookup(file, "pieces root")?.and_then(Value::text).map(<[u8; 32]>::try_from);
                let root = root.transpose().map_err(|_| wrong("pieces root", "is not a hash"))?;
                if root.is_none() && length > 0 {
                    return Err(wrong("pieces root", "is missing"));
                }
                files.push(TorrentFile { path: path.clone(), length, is_padding: false, root });
            }
            Some((name, below)) => {
                path.push(component(name, "file tree")?);
                folders.push(entries(below)?);
            }
        }
    }
    Ok(files)
}

/// Returns the entries of one directory of a file tree.
fn entries<'a>(folder: Value<'a>) -> Result<impl Iterator<Item = (&'a [u8], Value<'a>)>, InvalidMetainfo> {
    folder.dictionary().ok_or(wrong("file tree", "is not a dictionary"))
}

fn first_tracker(root: Value<'_>) -> Result<Option<String>, InvalidMetainfo> {
    let tiers = lookup(root, "announce-list")?.and_then(Value::list).into_iter().flatten();
    let listed = tiers.filter_map(Value::list).flatten();
    // With a list, clients ignore `announce` (BEP 12), but writers put the first tracker there, too.
    let mut all = lookup(root, "announce")?.into_iter().chain(listed).filter_map(Value::text);
    Ok(all.find_map(|url| Url::parse(std::str::from_utf8(url).ok()?).ok()?.host_str().map(str::to_owned)))
}

/// Removes the keys that clients add for themselves.
///
/// With `libtorrent_resume` in an untrusted file, rTorrent would take its claim of which pieces are there.
pub fn without_resume_data(torrent: &[u8]) -> Result<Vec<u8>, InvalidMetainfo> {
    rewritten(torrent, None)
}

/// Replaces those keys by a claim that every piece is there, which the caller has verified: rTorrent need not hash.
///
/// `files` are size in bytes and modification time in seconds of each file on disk, in order.
pub fn with_resume_data(torrent: &[u8], pieces: u64, files: &[(u64, u64)]) -> Result<Vec<u8>, InvalidMetainfo> {
    let files = files.iter().map(|(length, changed)| {
        Encode::dictionary([("completed", Number(*length)), ("mtime", Number(*changed)), ("priority", Number(1))])
    });
    let resume = Encode::dictionary([("bitfield", Number(pieces)), ("files", List(files.collect()))]);
    rewritten(torrent, Some(resume))
}

fn rewritten(torrent: &[u8], resume: Option<Encode<'_>>) -> Result<Vec<u8>, InvalidMetainfo> {
    const KEY: &[u8] = b"libtorrent_resume";
    let pairs = Value::parse(torrent)?.dictionary().ok_or(wrong("info", "is not in a dictionary"))?;
    // The values stay byte for byte: the info-hash is that of the bytes that came.
    let mut pairs: Vec<_> = pairs.map(|(key, value)| (key, Encode::Encoded(value.span()))).collect();
    pairs.retain(|(key, _)| ![KEY, b"rtorrent"].contains(key));
    pairs.extend(resume.map(|resume| (KEY, resume)));
    pairs.sort_by_key(|(key, _)| *key);
    Ok(Encode::Dictionary(pairs).to_bytes())
}

/// The content of a magnet link.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Magnet {
    /// Info-hash of version 1 (`urn:btih:`).
    pub v1: Option<InfoHash>,
    /// Info-hash of version 2 (`urn:btmh:`).
    pub v2: Option<InfoHash>,
    /// Display name (`dn`).
    pub name: Option<String>,
}

/// Limit on the length of a magnet link.
pub const MAGNET_BYTES_MAX: usize = 64 * 1024;

/// A magnet link is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid magnet link: {0}")]
pub struct InvalidMagnet(&'static str);

impl Magnet {
    /// Reads `magnet:?xt=urn:btih:…`; the scheme must be in lower case, as clients require.
    pub fn parse(link: &str) -> Result<Self, InvalidMagnet> {
        if link.len() > MAGNET_BYTES_MAX {
            return Err(InvalidMagnet("it is longer than 64 KiB"));
        }
        // rTorrent knows the scheme in lower case only.
        let query = link.strip_prefix("magnet:?").ok_or(InvalidMagnet("it does not start with `magnet:?`"))?;
        if link.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(InvalidMagnet("it contains blanks or control characters"));
        }
        let mut magnet = Self { v1: None, v2: None, name: None };
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let is_topic = key == "xt" || key.starts_with("xt.");
            if is_topic && let Some(hash) = value.strip_prefix("urn:btih:") {
                magnet.v1 = magnet.v1.or(Some(btih(hash)?));
            } else if is_topic && let Some(hash) = value.strip_prefix("urn:btmh:") {
                magnet.v2 = magnet.v2.or(Some(btmh(hash)?));
            } else if key == "dn" && magnet.name.is_none() {
                magnet.name = Some(value.into_owned());
            }
        }
        if magnet.v1.is_none() && magnet.v2.is_none() {
            return Err(InvalidMagnet("it has no `xt=urn:btih:` or `xt=urn:btmh:`"));
        }
        Ok(magnet)
    }

    /// Returns the hash by which clients know it: that of version 1 if there is one.
    pub fn client_hash(&self) -> InfoHash {
        self.v1.or(self.v2).expect("`parse` gives a link with one hash at least")
    }
}

fn btih(text: &str) -> Result<InfoHash, InvalidMagnet> {
    let error = InvalidMagnet("its hash is neither 40 hex digits nor 32 letters of base32");
    match text.len() {
        40 => InfoHash::from_hex(text.as_bytes()).map_err(|_| error),
        // Base32, as older clients write it (BEP 9).
        32 => {
            let bytes = data_encoding::BASE32.decode(text.to_ascii_uppercase().as_bytes()).map_err(|_| error)?;
            Ok(InfoHash::V1(bytes.try_into().map_err(|_| error)?))
        }
        _ => Err(error),
    }
}

fn btmh(text: &str) -> Result<InfoHash, InvalidMagnet> {
    let error = InvalidMagnet("its hash of version 2 is not `1220` and 64 hex digits");
    // A multihash: 0x12 is SHA-256, 0x20 its length in bytes.
    let hex = text.strip_prefix("1220").filter(|hex| hex.len() == 64).ok_or(error)?;
    InfoHash::from_hex(hex.as_bytes()).map_err(|_| error)
}

/// A builder of .torrent files of version 1, fed with the content once, in order.
///
/// Names are bytes and are not checked, so that tests can build malformed files.
#[derive(Default)]
pub struct MetainfoBuilder {
    name: Vec<u8>,
    piece_length: u32,
    trackers: Vec<String>,
    private: bool,
    /// `None` for a single file.
    files: Option<Vec<(Vec<Vec<u8>>, u64)>>,
    length: u64,
    piece: Sha1,
    pieces: Vec<u8>,
}

impl MetainfoBuilder {
    /// A single-file torrent. `piece_length` is above 0, by custom a power of two of at least 16 KiB.
    pub fn single(name: impl Into<Vec<u8>>, piece_length: u32) -> Self {
        assert!(piece_length > 0, "a piece has a length");
        Self { name: name.into(), piece_length, ..Self::default() }
    }

    /// A torrent of a directory; [`Self::file`] begins each file in it.
    pub fn folder(name: impl Into<Vec<u8>>, piece_length: u32) -> Self {
        Self { files: Some(Vec::new()), ..Self::single(name, piece_length) }
    }

    /// Sets the private flag.
    pub fn private(mut self) -> Self {
        self.private = true;
        self
    }

    /// Adds a tracker, in a tier of its own.
    pub fn tracker(mut self, url: impl Into<String>) -> Self {
        self.trackers.push(url.into());
        self
    }

    /// Begins the next file of a directory.
    pub fn file<T: Into<Vec<u8>>>(mut self, path: impl IntoIterator<Item = T>) -> Self {
        let files = self.files.as_mut().expect("only a directory has several files");
        files.push((path.into_iter().map(Into::into).collect(), 0));
        self
    }

    /// Appends content to the file that was begun last.
    pub fn content(mut self, mut bytes: &[u8]) -> Self {
        if let Some(files) = &mut self.files {
            files.last_mut().expect("a file was begun").1 += bytes.len() as u64;
        }
        while !bytes.is_empty() {
            // Hashed as it comes, across files: no more than a hash state is held of the content.
            let in_piece = self.length % u64::from(self.piece_length);
            let room = usize::try_from(u64::from(self.piece_length) - in_piece).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.piece.update(now);
            self.length += now.len() as u64;
            if self.length.is_multiple_of(u64::from(self.piece_length)) {
                self.pieces.extend_from_slice(&self.piece.finalize_reset());
            }
            bytes = later;
        }
        self
    }

    /// Returns the bytes of the .torrent file.
    pub fn build(mut self) -> Vec<u8> {
        if !self.length.is_multiple_of(u64::from(self.piece_length)) {
            self.pieces.extend_from_slice(&self.piece.finalize_reset());
        }
        let mut torrent = Vec::new();
        if let Some(first) = self.trackers.first() {
            torrent.push(("announce", Text(first.as_bytes())));
        }
        if self.trackers.len() > 1 {
            let tiers = self.trackers.iter().map(|tracker| List(vec![Text(tracker.as_bytes())]));
            torrent.push(("announce-list", List(tiers.collect())));
        }
        torrent.push(("info", self.info()));
        Encode::dictionary(torrent).to_bytes()
    }

    fn info(&self) -> Encode<'_> {
        let content = match &self.files {
            Some(files) => {
                let files = files.iter().map(|(path, length)| {
                    let path = List(path.iter().map(|name| Text(name)).collect());
                    Encode::dictionary([("length", Number(*length)), ("path", path)])
                });
                ("files", List(files.collect()))
            }
            None => ("length", Number(self.length)),
        };
        let (name, pieces) = (Text(&self.name), Text(&self.pieces));
        let piece_length = Number(self.piece_length.into());
        let private = self.private.then_some(("private", Number(1)));
        let pairs = [content, ("name", name), ("piece length", piece_length), ("pieces", pieces)];
        Encode::dictionary(pairs.into_iter().chain(private))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A torrent whose hash was computed by another program (`sha1sum` over the `info` bytes).
    const KNOWN: &[u8] = b"d8:announce29:http://tracker.example:80/ann4:infod6:lengthi5e4:name5:hello12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaaee";

    #[test]
    fn files_that_would_abort_rtorrent_are_refused() {
        let built = |paths: &[&[&str]]| {
            let folder = MetainfoBuilder::folder("f", 16 << 10);
            let content =
                |torrent: MetainfoBuilder, path: &&[&str]| torrent.file(path.iter().copied()).content(b"12345");
            paths.iter().fold(folder, content).build()
        };
        for bad in [&[&["a"][..], &["a"]][..], &[&["a"], &["a", "b"]], &[&["z"], &["a", "b"], &["a", "b"]]] {
            let error = Metainfo::parse(&built(bad)).unwrap_err();
            assert!(error.to_string().contains("twice in a row"), "{bad:?}: {error}");
        }
        for good in [&[&["a"][..], &["ab"]][..], &[&["a", "b"], &["a", "c"]], &[&["a"], &["b"], &["a"]]] {
            assert!(Metainfo::parse(&built(good)).is_ok(), "{good:?}");
        }
        let other_encoding = b"d4:infod5:filesld6:lengthi1e4:pathl1:aeed6:lengthi1e4:pathl1:be10:path.utf-8l1:aeee\
            4:name1:f12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaaee";
        assert!(Metainfo::parse(other_encoding).unwrap_err().to_string().contains("twice in a row"));
    }

    #[test]
    fn the_info_hash_is_that_of_the_very_bytes() {
        let metainfo = Metainfo::parse(KNOWN).unwrap();
        assert_eq!(metainfo.client_hash().to_string(), "961d86b2d565bb5cfd7d6481f22e4d3ff541c806");
        assert_eq!(metainfo.tracker.as_deref(), Some("tracker.example"));
        assert_eq!((metainfo.name.as_str(), metainfo.length, metainfo.private), ("hello", 5, false));

        // Keys out of order are hashed as they stand.
        let unsorted =
            b"d4:infod4:name1:x6:pieces20:aaaaaaaaaaaaaaaaaaaa12:piece lengthi16384e6:lengthi5e7:unknownleee";
        let info = &unsorted[7..unsorted.len() - 1];
        let expected = InfoHash::V1(Sha1::digest(info).into());
        assert_eq!(Metainfo::parse(unsorted).unwrap().v1, Some(expected));
    }

    #[test]
    fn a_torrent_of_version_two_alone_has_the_longer_hash() {
        let root = "x".repeat(32);
        let tree = format!("d3:dird5:a.txtd0:d6:lengthi7e11:pieces root32:{root}eeee");
        let info = format!("d9:file tree{tree}12:meta versioni2e4:name3:top12:piece lengthi16384ee");
        let metainfo = Metainfo::parse(format!("d4:info{info}e").as_bytes()).unwrap();
        assert_eq!(metainfo.v1, None);
        assert_eq!(metainfo.client_hash(), InfoHash::V2(Sha256::digest(info.as_bytes()).into()));
        assert_eq!(metainfo.files[0].path, [b"dir".to_vec(), b"a.txt".to_vec()]);
        assert_eq!((metainfo.length, metainfo.is_folder), (7, true));
    }

    #[test]
    fn a_path_that_leaves_its_folder_is_no_torrent() {
        for name in ["..", ".", "", "/etc", "a/b", "a\0b"] {
            let single = MetainfoBuilder::single(name, 16384).content(b"x").build();
            assert!(Metainfo::parse(&single).is_err(), "name {name:?}");
            let folder = MetainfoBuilder::folder("ok", 16384).file(["sub", name]).content(b"x").build();
            assert!(Metainfo::parse(&folder).is_err(), "path {name:?}");
        }
        let nothing: [&str; 0] = [];
        assert!(Metainfo::parse(&MetainfoBuilder::folder("ok", 1).file(nothing).content(b"x").build()).is_err());
    }

    #[test]
    fn what_does_not_add_up_is_no_torrent() {
        for (what, bytes) in [
            ("empty", "".to_owned()),
            ("html", "<html>".to_owned()),
            ("a list", "le".to_owned()),
            ("no info", "de".to_owned()),
            ("info is a number", "d4:infoi1ee".to_owned()),
            ("no content", "d4:infod6:lengthi0e4:name1:x12:piece lengthi1e6:pieces0:ee".to_owned()),
            ("negative length", "d4:infod6:lengthi-1e4:name1:x12:piece lengthi1e6:pieces0:ee".to_owned()),
            ("too few pieces", "d4:infod6:lengthi9e4:name1:x12:piece lengthi1e6:pieces0:ee".to_owned()),
            ("no piece length", "d4:infod6:lengthi9e4:name1:x12:piece lengthi0e6:pieces0:ee".to_owned()),
            ("info twice", format!("d4:infode{}", std::str::from_utf8(&KNOWN[1..]).unwrap())),
        ] {
            assert!(Metainfo::parse(bytes.as_bytes()).is_err(), "{what}");
        }
    }

    #[test]
    fn a_name_that_is_not_utf8_is_shown_as_well_as_can_be() {
        let bytes = MetainfoBuilder::single(&b"caf\xe9 \xf0\x9f\xa6\x80"[..], 16384).content(b"x").private().build();
        let metainfo = Metainfo::parse(&bytes).unwrap();
        assert_eq!(metainfo.name, "caf\u{fffd} 🦀");
        assert!(metainfo.private);
    }

    #[test]
    fn a_magnet_link_is_read_in_all_its_spellings() {
        let hex = "ABCDEF0123456789abcdef0123456789ABCDEF01";
        let lower = hex.to_lowercase();
        let base32 = data_encoding::BASE32.encode(hex.parse::<InfoHash>().unwrap().as_bytes());
        let v2 = "0123456789abcdef".repeat(4);
        for (link, hash, name) in [
            (format!("magnet:?xt=urn:btih:{hex}"), &lower, None),
            (format!("magnet:?xt=urn:btih:{base32}&dn=a+b%20c&tr=http%3A%2F%2Fx"), &lower, Some("a b c")),
            (format!("magnet:?dn=x&xt=urn:btih:{}", base32.to_lowercase()), &lower, Some("x")),
            (format!("magnet:?xt=urn:btmh:1220{v2}"), &v2, None),
            (format!("magnet:?xt.1=urn:btmh:1220{v2}&xt.2=urn%3Abtih%3A{hex}"), &lower, None),
        ] {
            let magnet = Magnet::parse(&link).unwrap();
            assert_eq!((&magnet.client_hash().to_string(), magnet.name.as_deref()), (hash, name), "{link}");
        }
    }

    #[test]
    fn what_is_not_a_magnet_link_is_refused() {
        let hash = "a".repeat(40);
        for link in [
            "".to_owned(),
            format!("http://x/?xt=urn:btih:{hash}"),
            format!("MAGNET:?xt=urn:btih:{hash}"),
            "magnet:?dn=x".to_owned(),
            "magnet:?xt=urn:btih:".to_owned(),
            "magnet:?xt=urn:btih:zz".to_owned(),
            format!("magnet:?xt=urn:btih:{}", "1".repeat(32)),
            format!("magnet:?xt=urn:btmh:1220{hash}"),
            format!("magnet:?xt=urn:btih:{hash}\n"),
            format!("magnet:?xt=urn:btih:{hash}&dn={}", "x".repeat(MAGNET_BYTES_MAX)),
        ] {
            assert!(Magnet::parse(&link).is_err(), "{}", &link[..link.len().min(80)]);
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), text in ".{0,200}") {
            drop(Metainfo::parse(&bytes));
            drop(Magnet::parse(&text));
            drop(Magnet::parse(&format!("magnet:?{text}")));
        }

        #[test]
        fn a_torrent_with_one_byte_changed_is_never_a_panic(at in 0..KNOWN.len(), byte in any::<u8>()) {
            let mut bytes = KNOWN.to_vec();
            bytes[at] = byte;
            drop(Metainfo::parse(&bytes));
        }

        #[test]
        fn what_was_built_reads_back(
            name in "[a-zA-Z0-9 äß🦀]{1,20}",
            contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..5000), 1..5),
            piece_length in 1u32..3000,
        ) {
            let mut builder = MetainfoBuilder::folder(name.clone(), piece_length).tracker("udp://one.example:6969/announce");
            for (number, content) in contents.iter().enumerate() {
                builder = builder.file(["sub".to_owned(), format!("file {number}")]).content(content);
            }
            let metainfo = Metainfo::parse(&builder.build()).unwrap();
            let all = contents.concat();
            let pieces: Vec<u8> = all.chunks(piece_length as usize).flat_map(Sha1::digest).collect();
            prop_assert_eq!(metainfo.pieces, pieces);
            prop_assert_eq!((metainfo.name, metainfo.length), (name, all.len() as u64));
            prop_assert_eq!(metainfo.files.len(), contents.len());
            prop_assert_eq!(metainfo.tracker.as_deref(), Some("one.example"));
        }
    }
}
