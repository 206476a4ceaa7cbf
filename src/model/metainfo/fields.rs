//! The keys of a .torrent file, and what is wrong with them.

use crate::model::bencode::{NotBencoded, Value};

/// A .torrent file is malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidMetainfo {
    /// The bytes are not bencoded.
    #[error("invalid torrent file: {0}")]
    NotBencoded(#[from] NotBencoded),
    /// The bytes of `info` are not its only encoding: a client that encodes it anew knows the torrent by another hash.
    #[error("invalid torrent file: `info` has {}, at byte {} of it", .0.what, .0.at)]
    NotCanonical(NotBencoded),
    /// A key is missing, or its value is wrong.
    #[error("invalid torrent file: `{key}` {what}")]
    Key { key: String, what: &'static str },
    /// A path leads out of the directory that the torrent is put into.
    #[error("refused torrent file: `{key}` leads out of the torrent's folder")]
    Outside { key: String },
}

pub(super) fn wrong(key: impl Into<String>, what: &'static str) -> InvalidMetainfo {
    InvalidMetainfo::Key { key: key.into(), what }
}

/// Returns the value of a key; an error if `dictionary` is no dictionary or has the key twice.
pub(super) fn lookup<'a>(dictionary: Value<'a>, key: &str) -> Result<Option<Value<'a>>, InvalidMetainfo> {
    let pairs = dictionary.dictionary().ok_or_else(|| wrong(key, "is not in a dictionary"))?;
    let mut found = pairs.filter(|(name, _)| *name == key.as_bytes()).map(|(_, value)| value);
    let value = found.next();
    if found.next().is_some() {
        return Err(wrong(key, "is a duplicate key"));
    }
    Ok(value)
}

pub(super) fn size(dictionary: Value<'_>, key: &str) -> Result<u64, InvalidMetainfo> {
    let number = lookup(dictionary, key)?.ok_or_else(|| wrong(key, "is missing"))?.number();
    number.and_then(|number| u64::try_from(number).ok()).ok_or_else(|| wrong(key, "is not a size"))
}
