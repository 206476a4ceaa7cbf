//! The result of a command, in its JSON shape.

use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{CommandError, CommandId, ErrorCode, File, InfoHash, Peer, ServerName, Timestamp, Torrent, Tracker};

/// How a command ended, or its part for one torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OutcomeStatus {
    /// Done, and the effect was seen.
    Ok,
    /// Done for some of the torrents; the rows say for which.
    Partial,
    /// Not done, or not seen to be done.
    Error,
    /// Its time to live was over before it could be done.
    Expired,
    /// Not accepted: a right is missing, the message was retained, or too many commands wait.
    Refused,
}

impl OutcomeStatus {
    /// Every status.
    pub const ALL: [Self; 5] = [Self::Ok, Self::Partial, Self::Error, Self::Expired, Self::Refused];
}

/// The status as it is written in results.
impl fmt::Display for OutcomeStatus {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(out)
    }
}

/// The result for one torrent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct TorrentOutcome {
    pub hash: InfoHash,
    pub status: OutcomeStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "CommandError")]
    pub error: Option<CommandError>,
    /// For `get` and `list`: the torrent, with `files`, `trackers` and `peers` where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "selected_torrent")]
    pub torrent: Option<Value>,
    /// For `delete` with `data`: the files that were deleted and those that remain.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DeletedFiles")]
    pub deleted: Option<DeletedFiles>,
}

/// A torrent of which `fields` may have selected some keys, and to which `get` may have added details: `peers` is
/// their number, or a list of them.
fn selected_torrent(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = Torrent::json_schema(generator);
    // `fields` may have selected any of the keys.
    schema.remove("required");
    let more = [
        ("files", generator.subschema_for::<Vec<File>>()),
        ("trackers", generator.subschema_for::<Vec<Tracker>>()),
        (
            "peers",
            json_schema!({"anyOf": [generator.subschema_for::<Option<u64>>(), generator.subschema_for::<Vec<Peer>>()]}),
        ),
    ];
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.extend(more.map(|(key, schema)| (key.to_owned(), schema.to_value())));
    }
    schema
}

/// The files of a torrent that was deleted with its data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct DeletedFiles {
    /// Paths, the first thousand.
    pub files: Vec<String>,
    /// Number of files deleted, listed or not.
    pub count: u64,
    /// Their size.
    pub bytes: u64,
    /// The files and folders that remain, and why; a thousand at most.
    pub left: Vec<RemainingFile>,
}

/// A file or folder of a deleted torrent that remains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RemainingFile {
    pub path: String,
    /// Why it remains.
    pub reason: String,
}

impl TorrentOutcome {
    /// Makes the row of a torrent for which all was done.
    pub fn ok(hash: InfoHash) -> Self {
        Self { hash, status: OutcomeStatus::Ok, error: None, torrent: None, deleted: None }
    }

    /// Makes the row of a torrent for which it was not.
    pub fn failed(hash: InfoHash, error: CommandError) -> Self {
        Self { status: OutcomeStatus::Error, error: Some(error), ..Self::ok(hash) }
    }
}

/// The result of a command, in its JSON shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Result")]
#[non_exhaustive]
pub struct Outcome {
    #[schemars(extend("const" = RESULT_SCHEMA))]
    #[serde(deserialize_with = "result_schema")]
    pub schema: SchemaName,
    pub id: CommandId,
    /// As the sender wrote it, also where there is no such verb.
    pub verb: String,
    /// `null` on the bridge's own result topic.
    pub server: Option<ServerName>,
    pub status: OutcomeStatus,
    pub time: Timestamp,
    /// From its arrival to this result, in milliseconds.
    pub took_ms: u64,
    /// One for each torrent, but those in `omitted`.
    pub results: Vec<TorrentOutcome>,
    /// Failed torrents without a row, by their error code: of each code the first hundred have one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub omitted: BTreeMap<ErrorCode, u64>,
    pub error: Option<CommandError>,
    /// For `list`: the page, and how many torrents there are.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub page: Option<Page>,
    /// For a result that is sent in parts.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// For `rpc`: the answer of the client. For `resync`: the range of events that are sent again.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Value")]
    pub value: Option<Value>,
}

impl Outcome {
    /// Makes a result without rows, for whoever tests what handles results.
    pub fn new(id: CommandId, verb: impl Into<String>, status: OutcomeStatus, time: Timestamp) -> Self {
        Self {
            schema: RESULT_SCHEMA,
            id,
            verb: verb.into(),
            server: None,
            status,
            time,
            took_ms: 0,
            results: Vec::new(),
            omitted: BTreeMap::new(),
            error: None,
            page: None,
            part: None,
            value: None,
        }
    }
}

/// The place of a part among the parts of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Part {
    /// From 1.
    pub part: u64,
    /// The number of the last part.
    pub parts: u64,
}

/// The place of a page in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Page {
    /// Number of torrents that the filter matches.
    pub total: u64,
    /// From 0.
    pub page: u64,
    /// Rows on a page: as requested, or less where that would have been too large.
    pub page_size: u64,
    /// The page after this one, with the same `page_size`; `null` after the last.
    pub next_page: Option<u64>,
}

/// The `schema` of every result.
pub const RESULT_SCHEMA: &str = "dtorrent.result/1";

/// Named, because serde takes a `&'static str` in a field for a borrow of the text.
type SchemaName = &'static str;

/// Reads a value that is there: `null` is the answer of a method that returns nothing, and not the lack of an answer.
fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(value).map(Some)
}

/// Accepts any text: a result of another shape does not deserialize anyway.
fn result_schema<'de, D: Deserializer<'de>>(text: D) -> Result<SchemaName, D::Error> {
    IgnoredAny::deserialize(text).map(|_any| RESULT_SCHEMA)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_null_is_the_same_after_it_was_stored() {
        let id = CommandId::parse("1").unwrap();
        for value in [None, Some(Value::Null), Some(Value::from(7))] {
            let outcome = Outcome::new(id.clone(), "rpc", OutcomeStatus::Ok, Timestamp::from_millis(1));
            let outcome = Outcome { value, ..outcome };
            let stored = serde_json::to_vec(&outcome).unwrap();
            assert_eq!(serde_json::from_slice::<Outcome>(&stored).unwrap(), outcome);
        }
    }
}
