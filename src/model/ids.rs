//! Names of servers, torrents and sinks, and the numbers that order events and states.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::json_text::json_text;

/// The name of a monitored torrent client: `^[a-z0-9][a-z0-9_-]{0,62}$`, not `bridge`.
///
/// A level of MQTT topics and a token of NATS subjects, hence the narrow alphabet.
#[derive(Clone, derive_more::Debug, derive_more::Display, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[debug("{_0}")]
pub struct ServerName(Arc<str>);

/// The name of a server or sink is malformed or reserved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not a valid name: use a-z, 0-9, _ and -, at most 63, the first a letter or digit; `bridge` is reserved", .0.escape_default())]
pub struct InvalidServerName(String);

impl ServerName {
    /// Reads a name.
    ///
    /// # Errors
    /// The text is no name; the error quotes it, shortened.
    pub fn parse(text: &str) -> Result<Self, InvalidServerName> {
        let first_is_right = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let all_are_right =
            text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
        // `bridge` takes the place of a server in topics about the bridge itself.
        if first_is_right && all_are_right && text.len() <= 63 && text != "bridge" {
            Ok(Self(text.into()))
        } else {
            Err(InvalidServerName(text.chars().take(80).collect()))
        }
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a broker or webhook, in the same alphabet as a [`ServerName`].
#[derive(Clone, derive_more::Debug, derive_more::Display, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[debug("{_0}")]
pub struct SinkName(Arc<str>);

impl SinkName {
    /// Reads a name, by the rules of [`ServerName::parse`].
    pub fn parse(text: &str) -> Result<Self, InvalidServerName> {
        ServerName::parse(text).map(|name| Self(name.0))
    }

    /// The origin of commands that come over HTTP. No name in a config is equal to it.
    pub fn http() -> Self {
        Self(HTTP.into())
    }

    /// Reads a name that was stored, which may be that of [`Self::http`].
    pub fn recall(text: &str) -> Result<Self, InvalidServerName> {
        if text == HTTP { Ok(Self::http()) } else { Self::parse(text) }
    }

    /// Returns the name of the sink that delivers one server's events to the webhook of this name: `ntfy.home`.
    ///
    /// Distinct from every other sink, because a name in a config has no dot.
    pub fn line(&self, server: &ServerName) -> Self {
        Self(format!("{self}.{server}").into())
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

const HTTP: &str = "@http";

macro_rules! name {
    ($name:ident, $description:literal) => {
        json_text!($name, $name::parse, {
            "description": $description,
            "type": "string",
            "pattern": "^[a-z0-9][a-z0-9_-]{0,62}$",
            "not": {"const": "bridge"},
        });
    };
}
name!(ServerName, "Name of a monitored torrent client.");
name!(SinkName, "Name of a broker or webhook.");

/// The info-hash of a torrent, written in lower-case hex and read in any case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InfoHash {
    /// SHA-1 of the `info` bytes (BEP 3).
    V1([u8; 20]),
    /// SHA-256 of the `info` bytes (BEP 52).
    V2([u8; 32]),
}

/// The text of an info-hash is malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid info-hash `{}`; expected 40 (v1) or 64 (v2) hex digits", .0.escape_default())]
pub struct InvalidInfoHash(String);

impl InfoHash {
    /// Returns the 20 or 32 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::V1(bytes) => bytes,
            Self::V2(bytes) => bytes,
        }
    }

    /// Reads 40 or 64 hex digits from bytes, without a copy of the text.
    pub fn from_hex(text: &[u8]) -> Result<Self, InvalidInfoHash> {
        // Shortened: the text may come from anywhere, and ends up in a log.
        let invalid = || InvalidInfoHash(String::from_utf8_lossy(text).chars().take(80).collect());
        let hex = &data_encoding::HEXLOWER_PERMISSIVE;
        let mut bytes = [0; 32];
        if text.len() != 40 && text.len() != 64 {
            return Err(invalid());
        }
        let length = hex.decode_mut(text, &mut bytes[..text.len() / 2]).map_err(|_| invalid())?;
        match <[u8; 20]>::try_from(&bytes[..length]) {
            Ok(v1) => Ok(Self::V1(v1)),
            Err(_) => Ok(Self::V2(bytes)),
        }
    }
}

impl FromStr for InfoHash {
    type Err = InvalidInfoHash;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_hex(text.as_bytes())
    }
}

impl fmt::Display for InfoHash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Written in one piece, because hashes are in every topic and body.
        let bytes = self.as_bytes();
        let mut text = [0; 64];
        let text = &mut text[..2 * bytes.len()];
        data_encoding::HEXLOWER.encode_mut(bytes, text);
        out.write_str(std::str::from_utf8(text).expect("hex digits are ASCII"))
    }
}

impl fmt::Debug for InfoHash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

json_text!(InfoHash, InfoHash::from_str, {
    "description": "Info-hash of a torrent in lower-case hex: 40 digits (v1) or 64 (v2).",
    "type": "string",
    "pattern": "^([0-9a-f]{40}|[0-9a-f]{64})$",
});

/// The identity of one stored state: random, created with the store, written as eight hex digits.
///
/// Event ids carry it, so that no id of a lost state is used again.
#[derive(Clone, Copy, Debug, derive_more::Display, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[display("{_0:08x}")]
pub struct Epoch(pub u32);

/// The number of a journal entry: gap-free per server and epoch, from 1. 0 stands before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Seq(pub u64);

/// The revision of a snapshot row: grows per server and epoch, with gaps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rev(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_name_is_a_slug_and_nothing_that_a_broker_reads_differently() {
        for good in ["home", "a", "0", "seed-box_2", &"x".repeat(63)] {
            assert!(ServerName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "Home", "a.b", "a/b", "+", "#", "*", ">", "-a", "_a", "ä", "a b", "bridge", &"x".repeat(64)] {
            assert!(ServerName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_info_hash_is_read_in_any_case_and_written_in_lower() {
        let v1 = "ABCDEF0123456789abcdef0123456789ABCDEF01";
        assert_eq!(v1.parse::<InfoHash>().unwrap().to_string(), v1.to_lowercase());
        let v2 = "0123456789abcdef".repeat(4);
        assert_eq!(v2.parse::<InfoHash>().unwrap().to_string(), v2);
        for bad in ["", "abc", &v2[..41], &v1.replace('A', "g"), &format!("{v1}:f0")] {
            assert!(bad.parse::<InfoHash>().is_err(), "{bad}");
        }
    }
}
