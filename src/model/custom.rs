//! Custom values: texts that a client keeps with a torrent, under keys that the sender of a command chooses.
//!
//! Pure.

use std::collections::BTreeMap;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::json;

/// Most keys of one torrent.
const KEYS_MAX: usize = 32;
/// Longest key, in bytes.
const KEY_BYTES_MAX: usize = 64;
/// Longest value, in bytes.
const VALUE_BYTES_MAX: usize = 1024;
/// Beginnings of keys that the bridge keeps its own notes under.
const OWN_PREFIX: &str = "dtorrent";
/// Keys that ruTorrent and Flood keep their own notes under, and read with a meaning.
const TAKEN_KEYS: &[&str] =
    &["addtime", "seedingtime", "sch_ignore", "x-filename", "chk-state", "chk-time", "chk-stime"];

/// Custom values whose keys were checked: letters, digits and `._-`, none of them anybody's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CustomValues(BTreeMap<String, String>);

/// A custom value may not be set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidCustomValues(String);

impl CustomValues {
    /// Checks keys and values.
    ///
    /// # Errors
    /// There are too many, a key is not of the signs that it may have or belongs to a program, or a value is too long
    /// or has control characters.
    pub fn parse(values: BTreeMap<String, String>) -> Result<Self, InvalidCustomValues> {
        if values.len() > KEYS_MAX {
            return Err(InvalidCustomValues(format!("{} keys, at most {KEYS_MAX} are right", values.len())));
        }
        for (key, value) in &values {
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            if !(1..=KEY_BYTES_MAX).contains(&key.len()) || !key.bytes().all(is_name) {
                let right = format!("1 to {KEY_BYTES_MAX} letters, digits and `._-` are right");
                return Err(InvalidCustomValues(format!("{key:?} is not a valid key; {right}")));
            }
            if key.starts_with(OWN_PREFIX) || TAKEN_KEYS.contains(&key.as_str()) {
                let reason = "the bridge, ruTorrent or Flood uses it; choose another";
                return Err(InvalidCustomValues(format!("the key `{key}` is taken: {reason}")));
            }
            if value.len() > VALUE_BYTES_MAX || value.chars().any(char::is_control) {
                let right = format!("at most {VALUE_BYTES_MAX} bytes and no control characters");
                return Err(InvalidCustomValues(format!("the value of `{key}` is not right: {right}")));
            }
        }
        Ok(Self(values))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns keys and values, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// Describes what [`CustomValues::parse`] takes.
pub(super) fn schema(_generator: &mut SchemaGenerator) -> Schema {
    let taken = TAKEN_KEYS.join("|").replace('.', r"\.");
    json_schema!({
        "type": ["object", "null"],
        "maxProperties": KEYS_MAX,
        "propertyNames": {
            "pattern": format!("^[A-Za-z0-9._-]{{1,{KEY_BYTES_MAX}}}$"),
            "not": {"pattern": format!("^({taken})$|^{OWN_PREFIX}")},
        },
        "additionalProperties":
            json!({"type": "string", "maxLength": VALUE_BYTES_MAX, "pattern": super::text::NO_CONTROL_PATTERN}),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(key: &str, value: &str) -> Result<CustomValues, String> {
        CustomValues::parse([(key.to_owned(), value.to_owned())].into()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_is_a_name_that_nobody_else_uses() {
        for key in ["a", "x-my.key_1", "Addtime", "7", &"k".repeat(64)] {
            assert!(parse(key, "$v; \"x\" 🦀").is_ok(), "{key}");
        }
        for key in ["", "a b", "a,b", "$x", "ü", "a=b", "a\n", &"k".repeat(65)] {
            assert!(parse(key, "v").unwrap_err().contains("is not a valid key"), "{key}");
        }
        for key in ["addtime", "seedingtime", "chk-state", "dtorrent_held", "dtorrent"] {
            assert!(parse(key, "v").unwrap_err().contains("is taken"), "{key}");
        }
    }

    #[test]
    fn values_are_bounded_in_number_size_and_signs() {
        assert!(parse("k", "").is_ok() && parse("k", &"v".repeat(1024)).is_ok());
        for value in ["a\nb", "\u{85}", &"v".repeat(1025)] {
            assert!(parse("k", value).unwrap_err().contains("the value of `k`"), "{value}");
        }
        let many = |count: usize| (0..count).map(|number| (format!("k{number}"), String::new())).collect();
        assert!(CustomValues::parse(many(32)).is_ok() && CustomValues::parse(many(33)).is_err());
    }
}
