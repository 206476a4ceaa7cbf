//! The names of things: servers, torrents, sinks, and the numbers that order what is told.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name of a watched torrent client: `^[a-z0-9][a-z0-9_-]{0,62}$`, not `bridge`.
///
/// It is a level of a topic and a token of a subject, so nothing else is let in.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerName(Arc<str>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no server name: use a-z, 0-9, _ and -, at most 63, the first a letter or digit; `bridge` is reserved", .0.escape_default())]
pub struct InvalidServerName(String);

impl ServerName {
    pub fn parse(text: &str) -> Result<Self, InvalidServerName> {
        let first_is_right = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let all_are_right =
            text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
        if first_is_right && all_are_right && text.len() <= 63 && text != "bridge" {
            Ok(Self(text.into()))
        } else {
            Err(InvalidServerName(text.chars().take(80).collect()))
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a broker or webhook: the same letters as a server's name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SinkName(Arc<str>);

impl SinkName {
    /// # Errors
    /// The same as for a server; the text of the error speaks of a name, and fits here too.
    pub fn parse(text: &str) -> Result<Self, InvalidServerName> {
        ServerName::parse(text).map(|name| Self(name.0))
    }

    /// Those who ask over HTTP. No name in a config is like it.
    pub fn http() -> Self {
        Self(HTTP.into())
    }

    /// A name that was written down, which may be that of [`Self::http`].
    pub fn recall(text: &str) -> Result<Self, InvalidServerName> {
        if text == HTTP { Ok(Self::http()) } else { Self::parse(text) }
    }

    /// The sink that hands one server's events to the webhook of this name: `ntfy.home`.
    ///
    /// No other sink is called so, because a name of the config has no dot.
    pub fn line(&self, server: &ServerName) -> Self {
        Self(format!("{self}.{server}").into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

const HTTP: &str = "@http";

macro_rules! text_id {
    ($name:ident, $parse:expr, $what:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(self.as_str())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(self.as_str())
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                $parse(&text).map_err(D::Error::custom)
            }
        }
        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "description": $what,
                    "type": "string",
                    "pattern": "^[a-z0-9][a-z0-9_-]{0,62}$",
                    "not": {"const": "bridge"},
                })
            }
        }
    };
}
text_id!(ServerName, ServerName::parse, "The name of a watched torrent client.");
text_id!(SinkName, SinkName::parse, "The name of a broker or webhook.");

/// The info-hash of a torrent: 20 bytes (v1) or 32 (v2).
///
/// Written in lower-case hex, read in any case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InfoHash {
    V1([u8; 20]),
    V2([u8; 32]),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no info-hash: 40 (v1) or 64 (v2) hex digits are", .0.escape_default())]
pub struct InvalidInfoHash(String);

impl InfoHash {
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::V1(bytes) => bytes,
            Self::V2(bytes) => bytes,
        }
    }

    /// Reads 40 or 64 hex digits as they stand in an answer, without a copy of the text.
    pub fn from_hex(text: &[u8]) -> Result<Self, InvalidInfoHash> {
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
        // In one piece: it stands in every topic, id and body.
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

impl Serialize for InfoHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for InfoHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for InfoHash {
    fn schema_name() -> Cow<'static, str> {
        "InfoHash".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "The info-hash of a torrent in lower-case hex: 40 digits (v1) or 64 (v2).",
            "type": "string",
            "pattern": "^([0-9a-f]{40}|[0-9a-f]{64})$",
        })
    }
}

/// The life of one state folder: random, made with the store, eight hex digits.
///
/// Event ids carry it, so that an id of a lost store can never come again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

impl fmt::Display for Epoch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:08x}", self.0)
    }
}

/// The number of a journal entry: gap-free per server and epoch, from 1. 0 is "before the first".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Seq(pub u64);

/// The number of a change to what was told of a torrent: counts up per server and epoch, with gaps.
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
