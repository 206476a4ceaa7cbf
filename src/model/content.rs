//! The place of a torrent's content on disk, byte for byte, and the text that a client may write for it.
//!
//! A path is bytes, and what a client reports is text. rTorrent writes XML, and where its library cannot put a text
//! there (a name with an emoji, or one that is no UTF-8) it replaces bytes:
//!
//! | xmlrpc-c | each byte outside ASCII | control characters in such a text | CR, CRLF |
//! |---|---|---|---|
//! | before rTorrent 0.15 | `?` | `?` | LF |
//! | since | `%XX` | `%XX` | LF |
//!
//! `%` and `?` themselves stay, so a text with one of them may stand for several paths, of which only one is the
//! torrent's. No file is touched by such a text alone.

use std::ffi::OsString;
use std::path::PathBuf;

use sha1::{Digest, Sha1};

use super::bencode::Value;
use super::{Details, File, InfoHash};

/// Where the content of a torrent is on the machine of its client, byte for byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Content {
    /// The directory of the files: the torrent's own folder, if it has one.
    pub directory: PathBuf,
    /// For a torrent with a folder of its own: the name that the client appends to a directory that it is given.
    pub folder_name: Option<OsString>,
    /// The files, in the order of the torrent.
    pub files: Vec<ContentFile>,
}

/// One file of the content of a torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContentFile {
    /// Relative to the directory.
    pub path: PathBuf,
    /// Bytes.
    pub length: u64,
    /// The client has at least one piece with bytes of it, so the file exists.
    pub is_begun: bool,
    /// The client has every piece of it, so the file has its full length.
    pub is_complete: bool,
}

impl ContentFile {
    /// Makes one of what a client says of a file, with its exact path.
    pub fn new(path: PathBuf, file: &File) -> Self {
        let (is_begun, is_complete) = (file.length > 0 && file.progress > 0.0, file.progress >= 100.0);
        Self { path, length: file.length, is_begun, is_complete }
    }
}

impl Content {
    /// Makes one of details whose text is exact; `None` if they lack the directory or the files.
    pub fn of_details(details: &Details) -> Option<Self> {
        let (observed, files) = (details.observed.as_ref()?, details.files.as_ref()?);
        let directory = observed.torrent.directory.as_deref()?;
        // A folder with a single file is a folder; only where the client does not say so, it is guessed.
        let is_folder = details.is_folder.unwrap_or(files.len() > 1);
        Some(Self {
            directory: PathBuf::from(directory),
            folder_name: is_folder.then(|| observed.torrent.name.as_str().into()),
            files: files.iter().map(|file| ContentFile::new(PathBuf::from(&file.path), file)).collect(),
        })
    }
}

/// Whether a text from a client may stand for another path than the one that it spells.
pub fn is_ambiguous(text: &str) -> bool {
    let has_escape = || {
        let is_escape = |three: &[u8]| three[0] == b'%' && three[1..].iter().all(u8::is_ascii_hexdigit);
        text.as_bytes().windows(3).any(is_escape)
    };
    // In a text that was replaced no byte outside ASCII is left.
    text.contains(['\u{fffd}', '\n', '\r']) || text.is_ascii() && (text.contains('?') || has_escape())
}

/// Whether a client may have written `text` for these bytes.
pub fn stands_for(text: &str, bytes: &[u8]) -> bool {
    let text = with_line_feeds(text);
    client_texts(bytes).contains(&text)
}

/// Returns every text that a client may write for these bytes, with each line break as a line feed.
pub fn client_texts(bytes: &[u8]) -> [String; 5] {
    let is_control = |byte: u8| byte < b' ' && !b"\t\n\r".contains(&byte);
    let replaced = |with_control: bool, replacement: fn(u8) -> String| {
        let is_replaced = |byte: u8| !byte.is_ascii() || with_control && is_control(byte);
        let text = |byte: &u8| if is_replaced(*byte) { replacement(*byte) } else { char::from(*byte).to_string() };
        with_line_feeds(&bytes.iter().map(text).collect::<String>())
    };
    let (mark, escape) = (|_| "?".to_owned(), |byte| format!("%{byte:02X}"));
    [
        with_line_feeds(&String::from_utf8_lossy(bytes)),
        replaced(false, mark),
        replaced(true, mark),
        replaced(false, escape),
        replaced(true, escape),
    ]
}

/// Returns a text with each line break as a line feed, as XML has it.
pub fn with_line_feeds(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

/// The names in a .torrent file of version 1, among which a client chooses by its settings.
///
/// `name` and `path` may be there in other encodings as well (`name.utf-8`, `path.utf-8`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WrittenNames {
    /// The hash of the info dictionary that holds them.
    pub hash: InfoHash,
    /// The torrent's own name; of a torrent of one file, the file's name.
    pub names: Vec<Vec<u8>>,
    /// The paths of each file, components joined by `/`; `None` for a torrent of one file.
    pub files: Option<Vec<Vec<Vec<u8>>>>,
}

impl WrittenNames {
    /// Reads the names; `None` if the file is malformed. Names that lead elsewhere are left out.
    pub fn parse(torrent: &[u8]) -> Option<Self> {
        let info = value_of(Value::parse(torrent).ok()?, b"info")?;
        let names = in_all_encodings(info, "name", Value::text).filter(|name| is_component(name));
        let paths = |file| in_all_encodings(file, "path", joined_path).collect();
        Some(Self {
            hash: InfoHash::V1(Sha1::digest(info.span()).into()),
            names: names.map(<[u8]>::to_vec).collect(),
            files: value_of(info, b"files").map(|files| Some(files.list()?.map(paths).collect())).unwrap_or_default(),
        })
    }
}

/// Returns the text at a key of a bencoded dictionary.
pub fn text_at<'a>(bencoded: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    value_of(Value::parse(bencoded).ok()?, key)?.text()
}

fn value_of<'a>(dictionary: Value<'a>, key: &[u8]) -> Option<Value<'a>> {
    dictionary.dictionary()?.find(|(name, _)| *name == key).map(|(_, value)| value)
}

fn in_all_encodings<'a, T: 'a>(
    dictionary: Value<'a>,
    key: &'static str,
    read: impl Fn(Value<'a>) -> Option<T> + 'a,
) -> impl Iterator<Item = T> + 'a {
    let is_one =
        move |name: &[u8]| name.strip_prefix(key.as_bytes()).is_some_and(|rest| rest.is_empty() || rest[0] == b'.');
    let entries = dictionary.dictionary().into_iter().flatten();
    entries.filter(move |(name, _)| is_one(name)).filter_map(move |(_, value)| read(value))
}

fn joined_path(path: Value<'_>) -> Option<Vec<u8>> {
    let components: Vec<&[u8]> = path.list()?.map(Value::text).collect::<Option<_>>()?;
    // Empty names before another one are written as slashes, which lead to the same place.
    let is_path = components.last().is_some_and(|name| !name.is_empty())
        && components.iter().all(|name| name.is_empty() || is_component(name));
    is_path.then(|| components.join(&b'/'))
}

fn is_component(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::MetainfoBuilder;

    #[test]
    fn a_text_stands_for_the_bytes_that_rtorrent_wrote_it_for() {
        // Tried on rTorrent 0.9.8, except for `%XX`, which later versions write.
        for (bytes, text) in [
            (&b"plain"[..], "plain"),
            ("Ünï".as_bytes(), "Ünï"),
            ("Holiday 🎉 2020".as_bytes(), "Holiday ???? 2020"),
            (b"caf\xe9", "caf?"),
            (b"caf\xe9", "caf%E9"),
            (b"caf\xe9", "caf\u{fffd}"),
            (b"50%\xe9", "50%%E9"),
            (b"ct\x01\xff\r", "ct??\n"),
            (b"c\x01d", "c\x01d"),
            (b"x\r\ny", "x\ny"),
        ] {
            assert!(stands_for(text, bytes), "{text}");
        }
        for (bytes, text) in [(&b"caf\xe9"[..], "cafe"), (b"ab", "a?"), (b"a", "a?"), (b"a%41", "aA"), (b"aA", "a%41")]
        {
            assert!(!stands_for(text, bytes), "{text}");
        }
    }

    #[test]
    fn a_text_is_ambiguous_where_bytes_may_have_been_replaced() {
        for text in ["caf?", "caf%E9", "50%41", "x\ny", "caf\u{fffd}"] {
            assert!(is_ambiguous(text), "{text}");
        }
        for text in ["", "plain", "100%", "50% off", "Ünï?", "Ünï%41"] {
            assert!(!is_ambiguous(text), "{text}");
        }
    }

    #[test]
    fn names_are_read_in_every_encoding_and_without_those_that_lead_elsewhere() {
        let torrent = MetainfoBuilder::folder("🎉", 16_384).file(["a", "b"]).content(b"x").build();
        let names = WrittenNames::parse(&torrent).unwrap();
        assert_eq!(names.names, ["🎉".as_bytes()]);
        assert_eq!(names.files, Some(vec![vec![b"a/b".to_vec()]]));
        assert_eq!(WrittenNames::parse(b"d4:infod4:name1:n"), None);
        let torrent = b"d4:infod5:filesld4:pathl2:..1:ae10:path.utf-8l1:b1:ceee4:name1:n10:name.utf-82:..ee";
        let names = WrittenNames::parse(torrent).unwrap();
        assert_eq!((names.names, names.files), (vec![b"n".to_vec()], Some(vec![vec![b"b/c".to_vec()]])));
        let single = MetainfoBuilder::single("one", 16_384).content(b"x").build();
        assert_eq!(WrittenNames::parse(&single).unwrap().files, None);
    }

    proptest! {
        /// An unambiguous text stands for no other path than the one that it spells.
        #[test]
        fn a_text_that_is_not_ambiguous_has_one_meaning(
            bytes in proptest::collection::vec(prop_oneof![Just(b'?'), Just(b'%'), Just(b'E'), Just(b'9'), any::<u8>()], 0..12)
        ) {
            for text in client_texts(&bytes) {
                prop_assert!(is_ambiguous(&text) || text.as_bytes() == bytes, "{text:?} for {bytes:?}");
            }
        }

        #[test]
        fn reading_names_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let names = WrittenNames::parse(&bytes);
            prop_assert!(names.is_none_or(|names| names.names.iter().all(|name| is_component(name))));
        }
    }
}
