//! Commands and their results.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{File, InfoHash, Peer, ServerName, Timestamp, Torrent, Tracker};

/// The sender's name for a command: 1–128 bytes, no control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CommandId(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id has 1 to 128 bytes and no control characters")]
pub struct InvalidCommandId;

impl CommandId {
    pub fn parse(text: &str) -> Result<Self, InvalidCommandId> {
        let is_right = (1..=128).contains(&text.len()) && !text.chars().any(char::is_control);
        is_right.then(|| Self(text.to_owned())).ok_or(InvalidCommandId)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl JsonSchema for CommandId {
    fn schema_name() -> Cow<'static, str> {
        "CommandId".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "The sender's name for a command: 1 to 128 bytes, no control characters.",
            "type": "string",
            "minLength": 1,
            "maxLength": 128,
            "pattern": r"^[^\u0000-\u001f\u007f-\u009f]*$",
        })
    }
}

impl fmt::Display for CommandId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

macro_rules! verbs {
    ($($name:ident = $text:literal),* $(,)?) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum Verb { $($name),* }

        impl Verb {
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

verbs! {
    Pause = "pause", Resume = "resume", Start = "start", Stop = "stop", Delete = "delete", Add = "add",
    Recheck = "recheck", Announce = "announce", Label = "label", Priority = "priority",
    Get = "get", List = "list", Move = "move", Throttle = "throttle", FilePriority = "file_priority",
    Limits = "limits", Resync = "resync", Rpc = "rpc", LogLevel = "log_level",
}

impl Verb {
    /// It is said of torrents: on a torrent's topic, or on a server's with `hashes` or `filter`.
    pub fn is_for_torrents(self) -> bool {
        let others = [Self::Add, Self::List, Self::Limits, Self::Resync, Self::Rpc, Self::LogLevel];
        !others.contains(&self)
    }

    /// It is said on a server's topic.
    pub fn is_for_servers(self) -> bool {
        !matches!(self, Self::FilePriority | Self::LogLevel)
    }

    /// It is said to the bridge itself.
    pub fn is_for_bridge(self) -> bool {
        matches!(self, Self::Resync | Self::LogLevel)
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|verb| verb.as_str() == text)
    }
}

/// One thing to do to a client. Values are checked: a label has no control characters,
/// a directory is absolute and below the allowed roots.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Action {
    Pause(InfoHash),
    Resume(InfoHash),
    Start(InfoHash),
    Stop(InfoHash),
    Delete(InfoHash),
    Recheck(InfoHash),
    Announce(InfoHash),
    Label(InfoHash, String),
    /// 0 off, 1 low, 2 normal, 3 high.
    Priority(InfoHash, u8),
    /// Stopped and closed, so that its files may be touched; it remembers whether it ran.
    Hold(InfoHash),
    /// Its content is looked for in this folder from now on. It goes on as before, also as before a hold.
    Move(InfoHash, String),
    /// A group of torrents that share a limit; empty for the global one.
    Throttle(InfoHash, String),
    /// Files by their place in the torrent; 0 off, 1 normal, 2 high.
    FilePriority(InfoHash, Vec<u32>, u8),
    Add(Add),
}

impl Action {
    /// Asked for and answered in one short exchange, which others may share.
    pub fn is_short(&self) -> bool {
        match self {
            Self::Pause(_) | Self::Resume(_) | Self::Start(_) | Self::Stop(_) | Self::Delete(_) => true,
            Self::Label(..) | Self::Priority(..) => true,
            Self::Recheck(_) | Self::Announce(_) | Self::Hold(_) | Self::Move(..) => false,
            Self::Throttle(..) | Self::FilePriority(..) | Self::Add(_) => false,
        }
    }
}

/// Limits for all torrents of a server together, bytes per second; 0 for none, `None` to leave one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub download: Option<u64>,
    pub upload: Option<u64>,
}

#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Add {
    pub hash: InfoHash,
    pub source: AddSource,
    pub start: bool,
    pub label: Option<String>,
    pub directory: Option<String>,
    pub priority: Option<u8>,
    /// All of its content is there and was checked: the client has to find it complete.
    pub is_checked: bool,
}

impl Add {
    /// One that starts, where and how the client likes it.
    pub fn new(hash: InfoHash, source: AddSource) -> Self {
        Self { hash, source, start: true, label: None, directory: None, priority: None, is_checked: false }
    }
}

#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub enum AddSource {
    /// A magnet link, `magnet:?…`, in its own words.
    Magnet(String),
    /// The bytes of a .torrent file.
    Torrent(Bytes),
}

impl fmt::Debug for AddSource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magnet(link) => write!(out, "Magnet({link:?})"),
            Self::Torrent(bytes) => write!(out, "Torrent({} bytes)", bytes.len()),
        }
    }
}

/// Which details of a torrent are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    pub files: bool,
    pub trackers: bool,
    pub peers: bool,
}

/// What became of a command, or of its part for one torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum OutcomeStatus {
    /// Done, and the effect was seen.
    Ok,
    /// Some torrents yes, some no; the rows say which.
    Partial,
    Error,
    /// Its time to live was over before it could be done.
    Expired,
    /// Not done, on principle: the rights, or a retained message.
    Refused,
}

/// What kind of error it is; docs/reference.md has what each means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    UnknownServer,
    UnknownHash,
    BadRequest,
    Forbidden,
    Precondition,
    ClientOffline,
    ClientFault,
    Unconfirmed,
    Retained,
    TooLarge,
    Unsupported,
}

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct CommandError {
    pub code: ErrorCode,
    pub message: String,
    /// The same command may well succeed later.
    pub retryable: bool,
}

impl CommandError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let retryable = matches!(code, ErrorCode::ClientOffline | ErrorCode::Unconfirmed);
        Self { code, message: message.into(), retryable }
    }
}

/// The result for one torrent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Row {
    pub hash: InfoHash,
    pub status: OutcomeStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "CommandError")]
    pub error: Option<CommandError>,
    /// For `get` and `list`: the torrent, with `files`, `trackers` and `peers` where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "shown_torrent")]
    pub torrent: Option<Value>,
    /// For `delete` with `data`: what became of its files.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Deleted")]
    pub deleted: Option<Deleted>,
}

/// A torrent of which `fields` may have chosen some, and `get` may have read more: `peers` is how many there are,
/// or who they are.
fn shown_torrent(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = Torrent::json_schema(generator);
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

/// What became of the files of a torrent that was deleted with its content.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
pub struct Deleted {
    /// Paths, the first thousand.
    pub files: Vec<String>,
    /// How many there were.
    pub count: u64,
    pub bytes: u64,
    /// What stays, and why; a thousand at most.
    pub left: Vec<Left>,
}

/// What stays of a deleted torrent's content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Left {
    pub path: String,
    /// Why it stays.
    pub reason: String,
}

impl Row {
    pub fn ok(hash: InfoHash) -> Self {
        Self { hash, status: OutcomeStatus::Ok, error: None, torrent: None, deleted: None }
    }

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
    /// As it was written, also where there is no such verb.
    pub verb: String,
    /// `null` on the bridge's own result topic.
    pub server: Option<ServerName>,
    pub status: OutcomeStatus,
    pub time: Timestamp,
    /// From its arrival to this result, in milliseconds.
    pub took_ms: u64,
    /// A row for each torrent.
    pub results: Vec<Row>,
    pub error: Option<CommandError>,
    /// For `list`: which part of how many.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub page: Option<Page>,
    /// Of one that is sent in parts.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// For `rpc`: what the client answered. For `resync`: which events are sent again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Value")]
    pub value: Option<Value>,
}

impl Outcome {
    /// A result without rows; for those who try out what they do with results.
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
            error: None,
            page: None,
            part: None,
            value: None,
        }
    }
}

/// Which part of a result this is, and of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Part {
    /// From 1.
    pub part: u64,
    /// The last one has this number.
    pub parts: u64,
}

/// Which part of a list this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Page {
    /// How many torrents the filter matches.
    pub total: u64,
    /// From 0.
    pub page: u64,
    /// Rows on a page: as it was asked for, or less where that would have been too large.
    pub page_size: u64,
    /// With the same `page_size`, what comes after this page; `null`: nothing.
    pub next_page: Option<u64>,
}

pub const RESULT_SCHEMA: &str = "dtorrent.result/1";

/// Not written out where it is used: serde would take it for something borrowed from the text.
type SchemaName = &'static str;

/// Whatever the text says: what has another shape cannot be read anyway.
fn result_schema<'de, D: Deserializer<'de>>(text: D) -> Result<SchemaName, D::Error> {
    IgnoredAny::deserialize(text).map(|_any| RESULT_SCHEMA)
}

/// What is sent in place of a result that the receiver would not take; `None` if there is nothing shorter to say.
///
/// Of a page of a list the first half, as a page of its own. Of anything else, and of a single torrent, the same
/// without its rows: what was asked for with `get` and `list` has not arrived then, so that is an error; what
/// another command did stays as it was. A `body` that is no result gives a plain error.
pub fn shorter(body: &[u8], reason: &str) -> Option<Vec<u8>> {
    let mut outcome = shortenable(body)?;
    if !halve_page(&mut outcome) {
        drop_rows(&mut outcome, reason);
    }
    Some(Value::Object(outcome).to_string().into_bytes())
}

/// As [`shorter`], and at once without any rows: for whoever cannot be asked often what he takes.
pub fn shortest(body: &[u8], reason: &str) -> Option<Vec<u8>> {
    let mut outcome = shortenable(body)?;
    drop_rows(&mut outcome, reason);
    Some(Value::Object(outcome).to_string().into_bytes())
}

fn shortenable(body: &[u8]) -> Option<serde_json::Map<String, Value>> {
    let outcome: serde_json::Map<String, Value> = serde_json::from_slice(body).unwrap_or_default();
    let has_rows = outcome.get("results").and_then(Value::as_array).is_some_and(|rows| !rows.is_empty());
    let is_shortest =
        !has_rows && outcome.get("error").is_some_and(|error| error["code"] == json!(ErrorCode::TooLarge));
    (!is_shortest).then_some(outcome)
}

/// Cuts a page of a list down to a size by which the place where it begins can still be counted in pages, so that
/// whoever goes on with the next of that size misses nothing. `false` if it is none, or has a single torrent.
fn halve_page(outcome: &mut serde_json::Map<String, Value>) -> bool {
    let number = |key: &str| outcome.get(key).and_then(Value::as_u64);
    let (Some(page), Some(page_size)) = (number("page"), number("page_size")) else { return false };
    let Some(rows) = outcome.get_mut("results").and_then(Value::as_array_mut).filter(|rows| rows.len() > 1) else {
        return false;
    };
    let begin = page.saturating_mul(page_size);
    let fits = |size: &u64| begin.is_multiple_of(*size);
    let size = (1..=rows.len() as u64 / 2).rev().find(fits).unwrap_or(1);
    rows.truncate(usize::try_from(size).unwrap_or(1));
    let page = begin / size;
    for (key, number) in [("page", page), ("page_size", size), ("next_page", page + 1)] {
        outcome.insert(key.to_owned(), json!(number));
    }
    true
}

fn drop_rows(outcome: &mut serde_json::Map<String, Value>, reason: &str) {
    let is_question = matches!(outcome.get("verb").and_then(Value::as_str), None | Some("get" | "list"));
    if is_question {
        outcome.insert("status".to_owned(), json!(OutcomeStatus::Error));
    }
    let message = format!("the whole result was not taken: {reason}; ask for less at once");
    outcome.insert("results".to_owned(), json!([]));
    outcome.insert("error".to_owned(), json!(CommandError::new(ErrorCode::TooLarge, message)));
}

/// A result in parts, in their order, each with at most so many rows, and no more bytes if its rows allow that.
///
/// Each part is a result of its own, with the same id and the status of the whole; it has its share of the rows, and says
/// which part of how many it is. One that is small enough, or no result, stays as it is; so does a page of a
/// list, which has a way of its own to be shorter.
pub fn in_parts(body: &Bytes, rows_max: usize, bytes_max: usize) -> Vec<Bytes> {
    // A row has a hash, so in fewer bytes there are fewer rows.
    if body.len() <= bytes_max && body.len() / ROW_BYTES_MIN <= rows_max {
        return vec![body.clone()];
    }
    divided(body, rows_max, bytes_max).filter(|parts| parts.len() > 1).unwrap_or_else(|| vec![body.clone()])
}

const ROW_BYTES_MIN: usize = 40;
/// `"part":1000,"parts":1000` and what is between the keys.
const PART_BYTES_MAX: usize = 64;

fn divided(body: &[u8], rows_max: usize, bytes_max: usize) -> Option<Vec<Bytes>> {
    let mut keys: BTreeMap<&str, &RawValue> = serde_json::from_slice(body).ok()?;
    if keys.contains_key("page_size") {
        return None;
    }
    let rows: Vec<&RawValue> = serde_json::from_str(keys.remove("results")?.get()).ok()?;
    let mut head = String::new();
    for (key, value) in &keys {
        head += &format!("{}:{},", Value::from(*key), value.get());
    }
    let room = bytes_max.saturating_sub(head.len() + PART_BYTES_MAX);
    let mut shares: Vec<Vec<&str>> = vec![Vec::new()];
    let mut bytes = 0;
    for row in rows {
        let share = shares.last_mut().expect("there is one from the beginning");
        if !share.is_empty() && (share.len() >= rows_max || bytes + row.get().len() + 1 > room) {
            shares.push(Vec::new());
            bytes = 0;
        }
        bytes += row.get().len() + 1;
        shares.last_mut().expect("there is one from the beginning").push(row.get());
    }
    let parts = shares.len();
    let part = |(index, share): (usize, Vec<&str>)| {
        Bytes::from(format!("{{{head}\"part\":{},\"parts\":{parts},\"results\":[{}]}}", index + 1, share.join(",")))
    };
    Some(shares.into_iter().enumerate().map(part).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(rows: usize) -> Outcome {
        Outcome {
            schema: RESULT_SCHEMA,
            id: CommandId::parse("7 \"x\"").unwrap(),
            verb: "pause".to_owned(),
            server: None,
            status: OutcomeStatus::Partial,
            time: Timestamp::from_millis(0),
            took_ms: 5,
            results: (0..rows).map(|n| Row::ok(InfoHash::V1([n as u8; 20]))).collect(),
            error: None,
            page: None,
            part: None,
            value: None,
        }
    }

    #[test]
    fn a_small_result_stays_as_it_is() {
        for body in [serde_json::to_vec(&whole(10)).unwrap(), b"no result".to_vec(), vec![b'x'; 100_000]] {
            let body = Bytes::from(body);
            assert_eq!(in_parts(&body, 10, 1000), [body]);
        }
    }

    proptest! {
        #[test]
        fn the_parts_of_a_result_are_the_whole(rows in 0..200_usize, rows_max in 1..50_usize, bytes_max in 300..5000_usize) {
            let body = Bytes::from(serde_json::to_vec(&whole(rows)).unwrap());
            let parts = in_parts(&body, rows_max, bytes_max);
            let mut expected: Value = serde_json::from_slice(&body).unwrap();
            let mut put_together = Vec::new();
            for (index, part) in parts.iter().enumerate() {
                prop_assert!(part.len() <= bytes_max);
                let mut part: Value = serde_json::from_slice(part).unwrap();
                let object = part.as_object_mut().unwrap();
                if parts.len() > 1 {
                    prop_assert_eq!(object.remove("part"), Some(json!(index + 1)));
                    prop_assert_eq!(object.remove("parts"), Some(json!(parts.len())));
                }
                let Some(Value::Array(rows)) = object.insert("results".to_owned(), json!([])) else { panic!() };
                prop_assert!(rows.len() <= rows_max);
                put_together.extend(rows);
                expected["results"] = json!([]);
                prop_assert_eq!(&part, &expected);
            }
            prop_assert_eq!(put_together.len(), rows);
        }
    }

    #[test]
    fn a_result_without_its_rows_says_so_and_still_says_what_was_done() {
        let outcome = |verb: &str| Outcome {
            schema: RESULT_SCHEMA,
            id: CommandId::parse("7").unwrap(),
            verb: verb.to_owned(),
            server: None,
            status: OutcomeStatus::Ok,
            time: Timestamp::from_millis(0),
            took_ms: 5,
            results: vec![Row::ok(InfoHash::V1([1; 20]))],
            error: None,
            page: None,
            part: None,
            value: None,
        };
        for (verb, status) in [("list", "error"), ("get", "error"), ("pause", "ok")] {
            let body = serde_json::to_vec(&outcome(verb)).unwrap();
            let snapshot = shorter(&body, "too much").unwrap();
            assert_eq!(shorter(&snapshot, "still too much"), None);
            assert_eq!(shortest(&body, "too much").as_ref(), Some(&snapshot));
            assert_eq!(shortest(&snapshot, "still too much"), None);
            let snapshot: Value = serde_json::from_slice(&snapshot).unwrap();
            assert_eq!(
                (&snapshot["id"], &snapshot["status"], &snapshot["results"]),
                (&json!("7"), &json!(status), &json!([]))
            );
            assert_eq!(snapshot["error"]["code"], "too_large", "{snapshot}");
        }
    }

    /// Asks for pages as a client does, of a far side that takes so many rows at most.
    fn pages_of(total: u64, page_size: u64, rows_max: usize) -> Vec<u64> {
        let (mut listed, mut page, mut page_size) = (Vec::new(), 0, page_size);
        loop {
            let begin = page * page_size;
            let rows: Vec<u64> = (begin..total.min(begin + page_size)).collect();
            let next_page = (begin + page_size < total).then_some(page + 1);
            let snapshot = json!({"verb": "list", "status": "ok", "error": null, "results": rows, "total": total,
                "page": page, "page_size": page_size, "next_page": next_page});
            let mut body = snapshot.to_string().into_bytes();
            let snapshot = loop {
                let snapshot: Value = serde_json::from_slice(&body).unwrap();
                if snapshot["results"].as_array().unwrap().len() <= rows_max {
                    break snapshot;
                }
                body = shorter(&body, "too much").unwrap();
            };
            assert_eq!((&snapshot["status"], &snapshot["error"]), (&json!("ok"), &Value::Null));
            listed.extend(snapshot["results"].as_array().unwrap().iter().map(|row| row.as_u64().unwrap()));
            match snapshot["next_page"].as_u64() {
                Some(next) => (page, page_size) = (next, snapshot["page_size"].as_u64().unwrap()),
                None => return listed,
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn whoever_follows_the_pages_gets_each_torrent_once_however_short_they_are(
            total in 0u64..400, page_size in 1u64..200, rows_max in 1usize..50
        ) {
            assert_eq!(pages_of(total, page_size, rows_max), (0..total).collect::<Vec<_>>());
        }

        #[test]
        fn what_is_no_result_is_shortened_to_an_error_once(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..50)) {
            let snapshot = shorter(&body, "too much").unwrap();
            assert_eq!(shorter(&snapshot, "too much"), None);
        }
    }
}
