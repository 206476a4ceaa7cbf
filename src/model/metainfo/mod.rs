//! Torrent files: parsing, validation, and building.
//!
//! Torrent files are untrusted input. A [`Metainfo`] has an info-hash computed from the exact bytes it was read from, under which
//! every client knows the torrent, and file paths that stay below the directory they are put into. Bytes behind the torrent
//! are ignored, as clients do, and so are unknown keys.
//!
//! Whether a client can load a torrent (one of version 2, say) is not decided here, except where rTorrent would refuse it
//! without a word.

mod builder;
mod fields;
mod files;
mod merkle;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use sha1::Sha1;
use sha2::{Digest, Sha256};
use url::Url;

pub use self::builder::MetainfoBuilder;
pub use self::fields::InvalidMetainfo;
use self::fields::{lookup, size, wrong};
pub use self::files::TorrentFile;
pub(crate) use self::files::{NAME_BYTES_MAX, PATH_BYTES_MAX};
pub use self::merkle::{MERKLE_BLOCK_BYTES, merkle_root};
use super::InfoHash;
use super::bencode::Encode::{self, List, Number};
use super::bencode::Value;

/// Bytes per piece that rTorrent takes; it loads no torrent with others, and does not say so.
const PIECE_LENGTHS: RangeInclusive<u32> = 1025..=(512 << 20);
/// Bytes of the hash of a piece of version 1.
const PIECE_HASH_BYTES: usize = 20;

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

impl Metainfo {
    /// Reads a .torrent file.
    ///
    /// # Errors
    /// The first thing that is wrong with it, and where.
    pub fn parse(bytes: &[u8]) -> Result<Self, InvalidMetainfo> {
        let root = Value::parse(bytes)?;
        let info = lookup(root, "info")?.ok_or_else(|| wrong("info", "is missing"))?;
        let name = files::name(info)?;
        let Content { files, is_folder, is_v2 } = content(info, name)?;
        // rTorrent encodes `info` anew before it hashes it, and takes no dictionary whose keys are not in order.
        info.check_canonical().map_err(InvalidMetainfo::NotCanonical)?;
        check_trackers(root)?;
        let piece_length = u32::try_from(size(info, "piece length")?).ok();
        let piece_length = piece_length
            .filter(|length| PIECE_LENGTHS.contains(length))
            .ok_or_else(|| wrong("piece length", "is out of range: more than 1 KiB and 512 MiB at most is right"))?;
        let sum = |padding_too: bool| {
            let counted = files.iter().filter(|file| padding_too || !file.is_padding);
            let sum = counted.map(|file| file.length).try_fold(0, u64::checked_add);
            sum.ok_or_else(|| wrong("length", "is too large"))
        };
        // Pieces cover the padding (BEP 47); what a client downloads does not.
        let (length, length_with_padding) = (sum(false)?, sum(true)?);
        if length == 0 {
            return Err(wrong("length", "is 0 in total"));
        }
        let pieces = pieces(info, length_with_padding.div_ceil(u64::from(piece_length)))?;
        Ok(Self {
            v1: pieces.map(|_| InfoHash::V1(Sha1::digest(info.span()).into())),
            v2: is_v2.then(|| InfoHash::V2(Sha256::digest(info.span()).into())),
            name: String::from_utf8_lossy(name).into_owned(),
            // BEP 27: 1 and nothing else.
            private: lookup(info, "private")?.and_then(Value::number) == Some(1),
            tracker: first_tracker(root)?,
            length,
            piece_length,
            pieces: pieces.unwrap_or_default().to_owned(),
            layers: merkle::layers(root, &files, piece_length)?,
            files,
            is_folder,
        })
    }

    /// Returns the hash by which clients know it: that of version 1 if there is one.
    pub fn client_hash(&self) -> InfoHash {
        self.v1.or(self.v2).expect("`parse` gives a torrent of one version at least")
    }
}

/// The files of a torrent, and which version describes them.
struct Content {
    files: Vec<TorrentFile>,
    is_folder: bool,
    is_v2: bool,
}

fn content(info: Value<'_>, name: &[u8]) -> Result<Content, InvalidMetainfo> {
    let is_v2 = lookup(info, "meta version")?.and_then(Value::number) == Some(2);
    // Read of a hybrid, too: a client of version 2 takes its paths from there.
    let tree = lookup(info, "file tree")?.map(files::tree_files).transpose()?;
    if lookup(info, "pieces")?.is_none() {
        if !is_v2 {
            return Err(wrong("pieces", "is missing"));
        }
        let files = tree.ok_or_else(|| wrong("file tree", "is missing"))?;
        let is_folder = files.len() != 1 || files[0].path != [name];
        return Ok(Content { files, is_folder, is_v2 });
    }
    let is_single = lookup(info, "length")?.is_some();
    let files = match lookup(info, "files")? {
        // rTorrent would take the length, other clients the list.
        Some(_) if is_single => return Err(wrong("files", "and `length` are both there, of which a torrent has one")),
        Some(list) => files::listed_files(list)?,
        None => {
            let length = size(info, "length")?;
            vec![TorrentFile { path: vec![name.to_owned()], length, is_padding: false, root: None }]
        }
    };
    Ok(Content { files, is_folder: !is_single, is_v2 })
}

/// Returns the hashes of the pieces of version 1, as many as the content has pieces.
fn pieces(info: Value<'_>, count: u64) -> Result<Option<&[u8]>, InvalidMetainfo> {
    let Some(pieces) = lookup(info, "pieces")? else { return Ok(None) };
    let pieces = pieces.text().ok_or_else(|| wrong("pieces", "is not a byte string"))?;
    if !pieces.len().is_multiple_of(PIECE_HASH_BYTES) {
        return Err(wrong("pieces", "is not a row of hashes of 20 bytes"));
    }
    let wanted = usize::try_from(count).ok().and_then(|count| count.checked_mul(PIECE_HASH_BYTES));
    // Hashes that are left over occur in real torrents; clients ignore them.
    wanted
        .and_then(|wanted| pieces.get(..wanted))
        .map(Some)
        .ok_or_else(|| wrong("pieces", "is too short for the length"))
}

/// Checks the trackers as far as rTorrent refuses a torrent for them.
fn check_trackers(root: Value<'_>) -> Result<(), InvalidMetainfo> {
    let tiers: Vec<Value<'_>> = lookup(root, "announce-list")?.and_then(Value::list).into_iter().flatten().collect();
    if tiers.iter().any(|tier| tier.list().is_some()) {
        let is_tier = |tier: &Value<'_>| tier.list().is_some_and(|mut urls| urls.all(|url| url.text().is_some()));
        return match tiers.iter().all(is_tier) {
            true => Ok(()),
            false => Err(wrong("announce-list", "has tiers that are not lists of texts")),
        };
    }
    match lookup(root, "announce")? {
        Some(announce) if announce.text().is_none() => Err(wrong("announce", "is not a string")),
        _ => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A torrent whose hash was computed by another program (`sha1sum` over the `info` bytes).
    const KNOWN: &[u8] = b"d8:announce29:http://tracker.example:80/ann4:infod6:lengthi5e4:name5:hello12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaaee";

    #[test]
    fn files_that_would_abort_rtorrent_or_never_open_are_refused() {
        let built = |paths: &[&[&str]]| {
            let folder = MetainfoBuilder::folder("f", 16 << 10);
            let content =
                |torrent: MetainfoBuilder, path: &&[&str]| torrent.file(path.iter().copied()).content(b"12345");
            paths.iter().fold(folder, content).build()
        };
        for bad in [
            &[&["a"][..], &["a"]][..],
            &[&["a"], &["a", "b"]],
            &[&["z"], &["a", "b"], &["a", "b"]],
            // Further apart: rTorrent loads it, and never opens it.
            &[&["a"], &["b"], &["a"]],
            &[&["a"], &["b"], &["", "a"]],
            &[&["a"], &["b"], &["a", "c"]],
            &[&["a", "c"], &["b"], &["a"]],
        ] {
            let error = Metainfo::parse(&built(bad)).unwrap_err();
            assert!(error.to_string().contains("has a file twice"), "{bad:?}: {error}");
        }
        for good in [&[&["a"][..], &["ab"]][..], &[&["a", "b"], &["a", "c"]], &[&["a"], &["b"], &["A"]]] {
            assert!(Metainfo::parse(&built(good)).is_ok(), "{good:?}");
        }
        let padding = |path: &str| {
            let of_two = format!(
                "d4:attr1:p6:lengthi1e4:pathl1:peed6:lengthi1e4:pathl1:aeed4:attr1:p6:lengthi1e4:pathl1:{path}ee"
            );
            format!("d4:infod5:filesl{of_two}e4:name1:f12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaaee")
        };
        assert!(Metainfo::parse(padding("p").as_bytes()).is_ok(), "padding is named by its length");
        assert!(Metainfo::parse(padding("a").as_bytes()).is_err(), "no padding in the place of a file");
        let long: Vec<String> = (0..20).map(|number| format!("{number:0250}")).collect();
        let long: Vec<&str> = long.iter().map(String::as_str).collect();
        let error = Metainfo::parse(&built(&[&long])).unwrap_err();
        assert!(error.to_string().contains("4095"), "{error}");
        let other_encoding = b"d4:infod5:filesld6:lengthi1e4:pathl1:aeed6:lengthi1e4:pathl1:be10:path.utf-8l1:aeee\
            4:name1:f12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaaee";
        assert!(Metainfo::parse(other_encoding).unwrap_err().to_string().contains("has a file twice"));
    }

    #[test]
    fn the_info_hash_is_that_of_the_very_bytes() {
        let metainfo = Metainfo::parse(KNOWN).unwrap();
        assert_eq!(metainfo.client_hash().to_string(), "961d86b2d565bb5cfd7d6481f22e4d3ff541c806");
        assert_eq!(metainfo.tracker.as_deref(), Some("tracker.example"));
        assert_eq!((metainfo.name.as_str(), metainfo.length, metainfo.private), ("hello", 5, false));
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
    fn a_path_that_leaves_its_folder_is_outside_and_any_other_odd_one_is_wrong() {
        let outside = |key: &str| InvalidMetainfo::Outside { key: key.to_owned() };
        for (name, is_outside) in [
            ("..", true),
            ("/etc", true),
            ("a/../../b", true),
            ("..\0", false),
            (".", false),
            ("", false),
            ("a/b", false),
        ] {
            let single = MetainfoBuilder::single(name, 16384).content(b"x").build();
            let error = Metainfo::parse(&single).unwrap_err();
            assert_eq!(error == outside("name"), is_outside, "name {name:?}: {error}");
            let folder = MetainfoBuilder::folder("ok", 16384).file(["sub", name]).content(b"x").build();
            let error = Metainfo::parse(&folder).unwrap_err();
            assert_eq!(error == outside("path"), is_outside, "path {name:?}: {error}");
        }
        let nothing: [&str; 0] = [];
        assert!(Metainfo::parse(&MetainfoBuilder::folder("ok", 16384).file(nothing).content(b"x").build()).is_err());
    }

    #[test]
    fn empty_names_and_surplus_pieces_are_left_out() {
        let path = MetainfoBuilder::folder("ok", 16384).file(["", "sub", "", "a"]).content(b"x").build();
        assert_eq!(Metainfo::parse(&path).unwrap().files[0].path, [b"sub".to_vec(), b"a".to_vec()]);
        let pieces = "a".repeat(20) + &"b".repeat(20);
        let surplus = format!("d4:infod6:lengthi5e4:name1:x12:piece lengthi16384e6:pieces40:{pieces}ee");
        assert_eq!(Metainfo::parse(surplus.as_bytes()).unwrap().pieces, [b'a'; 20]);
    }

    #[test]
    fn what_does_not_add_up_is_no_torrent() {
        for (what, bytes) in [
            ("empty", "".to_owned()),
            ("html", "<html>".to_owned()),
            ("a list", "le".to_owned()),
            ("no info", "de".to_owned()),
            ("info is a number", "d4:infoi1ee".to_owned()),
            ("no content", "d4:infod6:lengthi0e4:name1:x12:piece lengthi16384e6:pieces0:ee".to_owned()),
            ("negative length", "d4:infod6:lengthi-1e4:name1:x12:piece lengthi16384e6:pieces0:ee".to_owned()),
            ("too few pieces", "d4:infod6:lengthi9e4:name1:x12:piece lengthi16384e6:pieces0:ee".to_owned()),
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

    proptest! {
        #[test]
        fn arbitrary_bytes_are_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            drop(Metainfo::parse(&bytes));
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
            piece_length in 1025u32..3000,
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
