//! Conditions on torrents, by which a command or a config chooses some.

use globset::{Glob, GlobMatcher};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Status, Timestamp, Torrent, parse_bytes};

/// Longest glob that is accepted. Each opening brace of a glob is a level of recursion, and its automaton takes about
/// a kilobyte per letter: without a limit one pattern overflows the stack or exhausts the memory.
const NAME_PATTERN_BYTES_MAX: usize = 1000;

/// Conditions on torrents, all of which must hold. Without any, every torrent matches.
///
/// A value that a torrent does not have (a ratio before the first byte, an unknown age) meets no condition.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    status: Option<Vec<Status>>,
    label: Option<String>,
    name: Option<GlobMatcher>,
    tracker: Option<GlobMatcher>,
    private: Option<bool>,
    ratio: Range<f64>,
    size_bytes: Range<u64>,
    age_millis: Range<u64>,
}

/// A range with both ends included; `None` for no end.
#[derive(Clone, Copy, Debug, Default)]
struct Range<T> {
    min: Option<T>,
    max: Option<T>,
}

impl<T: PartialOrd + Copy> Range<T> {
    fn holds(&self, value: Option<T>) -> bool {
        match (self.min, self.max, value) {
            (None, None, _) => true,
            (min, max, Some(value)) => min.is_none_or(|min| value >= min) && max.is_none_or(|max| value <= max),
            // A condition says something about a value, so an unknown one does not meet it.
            (_, _, None) => false,
        }
    }
}

/// A filter that cannot be parsed, with what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filter: {0}")]
pub struct InvalidFilter(String);

/// One value, or a list of them.
#[derive(JsonSchema)]
#[schemars(untagged)]
pub enum OneOrMore<T> {
    /// A single value.
    One(T),
    /// Any of these values.
    More(Vec<T>),
}

/// Conditions on torrents, all of which must hold.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Filter")]
pub struct FilterArguments {
    #[schemars(with = "Option<OneOrMore<Status>>")]
    status: Option<Value>,
    label: Option<String>,
    /// A glob; case is ignored.
    #[schemars(length(max = NAME_PATTERN_BYTES_MAX))]
    name: Option<String>,
    /// A glob for the host of the first tracker; case is ignored.
    #[schemars(length(max = NAME_PATTERN_BYTES_MAX))]
    tracker: Option<String>,
    private: Option<bool>,
    /// From `min` to `max`: `{"min": 2}`.
    #[serde(default)]
    #[schemars(schema_with = "ratio_range")]
    ratio: RangeArguments,
    /// Bytes, or a string with a unit: `{"max": "700MiB"}`.
    #[serde(default)]
    #[schemars(schema_with = "size_range")]
    size: RangeArguments,
    /// Durations: `{"min": "30days"}`.
    #[serde(default)]
    #[schemars(schema_with = "age_range")]
    age: RangeArguments,
}

fn range(end: &Value) -> Schema {
    json_schema!({"type": "object", "properties": {"min": end, "max": end}, "additionalProperties": false})
}

fn ratio_range(_generator: &mut SchemaGenerator) -> Schema {
    range(&json!({"type": ["number", "null"]}))
}

fn size_range(_generator: &mut SchemaGenerator) -> Schema {
    range(
        &json!({"type": ["integer", "string", "null"], "minimum": 0, "pattern": r"^[0-9]+\s*([kKMGT]?B|[KMGT]iB)?\s*$"}),
    )
}

fn age_range(_generator: &mut SchemaGenerator) -> Schema {
    range(&json!({"type": ["string", "null"], "pattern": r"^\s*(0|([0-9.]+\s*[a-zA-Zµ]+\s*)+)$"}))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RangeArguments {
    min: Option<Value>,
    max: Option<Value>,
}

impl RangeArguments {
    fn parse<T>(self, key: &str, parse: impl Fn(&Value) -> Option<T>, right: &str) -> Result<Range<T>, InvalidFilter> {
        let one = |value: Option<Value>| match value {
            None => Ok(None),
            Some(value) => parse(&value).map(Some).ok_or_else(|| InvalidFilter(format!("{key}: {right} is right"))),
        };
        Ok(Range { min: one(self.min)?, max: one(self.max)? })
    }
}

impl Filter {
    /// Parses `{"status": "seeding", "label": "linux", "name": "*.iso"}`. Further keys are `tracker` (a glob, as `name`;
    /// case is ignored), `private`, and with `min` and `max` `ratio`, `size` and `age`.
    ///
    /// # Errors
    /// An unknown key, an unknown status, or a glob that is invalid or too long.
    pub fn from_json(value: Value) -> Result<Self, InvalidFilter> {
        // serde would also take an array, field by field.
        if !value.is_object() {
            return Err(InvalidFilter("an object like {\"label\": \"linux\"} is right".to_owned()));
        }
        let FilterArguments { status, label, name, tracker, private, ratio, size, age } =
            serde_json::from_value(value).map_err(|error| InvalidFilter(error.to_string()))?;
        let statuses = status.map(|status| match status {
            Value::Array(statuses) => Value::Array(statuses),
            status => Value::Array(vec![status]),
        });
        let status = statuses.map(serde_json::from_value).transpose();
        Ok(Self {
            status: status.map_err(|error| InvalidFilter(format!("status: {error}")))?,
            label,
            name: name.map(|pattern| glob("name", &pattern)).transpose()?,
            tracker: tracker.map(|pattern| glob("tracker", &pattern)).transpose()?,
            private,
            ratio: ratio.parse("ratio", Value::as_f64, "a number like 1.5")?,
            size_bytes: size.parse("size", bytes, "a number of bytes, or a string such as \"700MiB\"")?,
            age_millis: age.parse("age", millis, "a duration like \"7days\" or \"12h\"")?,
        })
    }

    /// Whether a torrent meets every condition; its age is measured from `now`.
    pub fn matches(&self, torrent: &Torrent, now: Timestamp) -> bool {
        let Self { status, label, name, tracker, private, ratio, size_bytes, age_millis } = self;
        status.as_ref().is_none_or(|statuses| statuses.contains(&torrent.status))
            && label.as_ref().is_none_or(|label| torrent.label.as_deref() == Some(label))
            && name.as_ref().is_none_or(|name| name.is_match(&torrent.name))
            && tracker.as_ref().is_none_or(|glob| torrent.tracker.as_deref().is_some_and(|host| glob.is_match(host)))
            && private.is_none_or(|private| torrent.private == Some(private))
            && ratio.holds(torrent.ratio)
            && size_bytes.holds(Some(torrent.length))
            && age_millis.holds(torrent.added_at.map(|added_at| now.millis_since(added_at)))
    }
}

fn glob(key: &str, pattern: &str) -> Result<GlobMatcher, InvalidFilter> {
    if pattern.len() > NAME_PATTERN_BYTES_MAX {
        return Err(InvalidFilter(format!("{key}: a pattern has at most {NAME_PATTERN_BYTES_MAX} bytes")));
    }
    let glob = globset::GlobBuilder::new(pattern).case_insensitive(true).build();
    glob.as_ref().map(Glob::compile_matcher).map_err(|error| InvalidFilter(format!("{key}: {error}")))
}

fn bytes(value: &Value) -> Option<u64> {
    value.as_str().map_or_else(|| value.as_u64(), parse_bytes)
}

fn millis(value: &Value) -> Option<u64> {
    let duration = humantime::parse_duration(value.as_str()?).ok()?;
    u64::try_from(duration.as_millis()).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::{Extra, InfoHash, ServerName};

    const DAY: i64 = 24 * 60 * 60 * 1000;

    fn torrent() -> Torrent {
        let text = json!({
            "hash": InfoHash::V1([1; 20]), "name": "Some.ISO", "server": ServerName::parse("home").unwrap(),
            "active": true, "downloaded": 0, "uploaded": 0, "length": 1 << 30, "path": null, "progress": 0.0,
            "ratio": 1.5, "finished": false, "playing": false, "extra": Extra::new(), "status": "seeding",
            "error": false, "message": null, "stalled": false, "download_rate": null, "upload_rate": null,
            "left": null, "eta": null, "peers": null, "seeds": null, "label": "linux", "directory": null,
            "private": true, "priority": null, "tracker": "tracker.example.org",
            "added_at": Timestamp::from_millis(0), "started_at": null, "finished_at": null, "size_files": null,
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn every_condition_has_to_hold() {
        for (filter, expected) in [
            (json!({}), true),
            (json!({"status": "seeding"}), true),
            (json!({"status": ["paused", "seeding"]}), true),
            (json!({"status": "paused"}), false),
            (json!({"label": "linux", "name": "*.iso"}), true),
            (json!({"label": "Linux"}), false),
            (json!({"tracker": "*.example.org"}), true),
            (json!({"tracker": "example.org"}), false),
            (json!({"private": false}), false),
            (json!({"ratio": {"min": 1.5}}), true),
            (json!({"ratio": {"min": 1, "max": 1.4}}), false),
            (json!({"size": {"min": "1GiB", "max": 1_073_741_824}}), true),
            (json!({"size": {"max": "1GB"}}), false),
            (json!({"age": {"min": "9days", "max": "11days"}}), true),
            (json!({"age": {"min": "11days"}}), false),
        ] {
            let is_matched =
                Filter::from_json(filter.clone()).unwrap().matches(&torrent(), Timestamp::from_millis(10 * DAY));
            assert_eq!(is_matched, expected, "{filter}");
        }
        let unknown = Torrent { ratio: None, tracker: None, added_at: None, private: None, ..torrent() };
        for filter in [
            json!({"ratio": {"max": 9}}),
            json!({"tracker": "*"}),
            json!({"age": {"max": "9years"}}),
            json!({"private": false}),
        ] {
            assert!(
                !Filter::from_json(filter.clone()).unwrap().matches(&unknown, Timestamp::from_millis(1)),
                "{filter}"
            );
        }
    }

    #[test]
    fn invalid_filters_are_refused_with_what_is_wrong() {
        for (filter, expected) in [
            (json!({"colour": "red"}), "unknown field"),
            (json!({"status": "asleep"}), "unknown variant `asleep`"),
            (json!({"size": {"min": "big"}}), "size: "),
            (json!({"size": {"min": -1}}), "size: "),
            (json!({"size": {"min": "99999999999TiB"}}), "size: "),
            (json!({"age": {"max": 5}}), "age: "),
            (json!({"ratio": {"least": 5}}), "unknown field"),
            (json!({"name": "[a"}), "name: "),
        ] {
            let error = Filter::from_json(filter.clone()).unwrap_err().to_string();
            assert!(error.contains(expected), "{filter}: {error}");
        }
    }

    #[test]
    fn no_glob_exhausts_the_stack_or_the_memory() {
        let deep = |depth: usize| json!({"name": "{".repeat(depth) + &"}".repeat(depth)});
        let error = Filter::from_json(deep(1_000_000)).unwrap_err();
        assert_eq!(error.to_string(), "filter: name: a pattern has at most 1000 bytes");
        for allowed in [deep(500), json!({"name": "[!a]".repeat(250)}), json!({"name": "*a".repeat(500)})] {
            Filter::from_json(allowed).unwrap();
        }
    }
}
