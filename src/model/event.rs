//! The event: what happened, as every sink gets it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::{CommandId, Epoch, InfoHash, Rev, Seq, ServerName, Timestamp, Torrent};

pub const EVENT_SCHEMA: &str = "dtorrent.event/1";

/// Not written out where it is used: serde would take it for something borrowed from the text.
type SchemaName = &'static str;

/// Whatever the text says: what has another shape cannot be read anyway.
fn event_schema<'de, D: Deserializer<'de>>(text: D) -> Result<SchemaName, D::Error> {
    IgnoredAny::deserialize(text).map(|_any| EVENT_SCHEMA)
}

/// One field before and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    pub from: Value,
    pub to: Value,
}

/// Every changed field, by its JSON name.
pub type Changes = BTreeMap<String, Change>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Entity {
    Torrent,
    Server,
}

impl Entity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Torrent => "torrent",
            Self::Server => "server",
        }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal of $entity:ident),* $(,)?) => {
        /// What happened. The order is the order of events of one torrent in one tick.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum Kind { $($(#[$doc])* $name),* }

        impl Kind {
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            pub fn entity(self) -> Entity {
                match self { $(Self::$name => Entity::$entity),* }
            }
        }
    };
}

kinds! {
    JournalReset = "journal_reset" of Server,
    ServerOnline = "server_online" of Server,
    ServerRestarted = "server_restarted" of Server,
    Removed = "removed" of Torrent,
    Added = "added" of Torrent,
    /// A magnet link learned what it is.
    Metadata = "metadata" of Torrent,
    Renamed = "renamed" of Torrent,
    Moved = "moved" of Torrent,
    LabelChanged = "label_changed" of Torrent,
    PriorityChanged = "priority_changed" of Torrent,
    Checking = "checking" of Torrent,
    Checked = "checked" of Torrent,
    Started = "started" of Torrent,
    Resumed = "resumed" of Torrent,
    Unfinished = "unfinished" of Torrent,
    Finished = "finished" of Torrent,
    Stalled = "stalled" of Torrent,
    Unstalled = "unstalled" of Torrent,
    Paused = "paused" of Torrent,
    Stopped = "stopped" of Torrent,
    Error = "error" of Torrent,
    ErrorCleared = "error_cleared" of Torrent,
    SnapshotDone = "snapshot_done" of Server,
    ServerOffline = "server_offline" of Server,
    /// The only one that is conflated, has no `seq` and is in no journal.
    Updated = "updated" of Torrent,
}

impl Kind {
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == text)
    }
}

/// Why an event is told now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Cause {
    Observed,
    /// The effect of a command that came through this bridge.
    Command,
    /// It happened while the bridge was down.
    Recovered,
    /// First sight of a server.
    Snapshot,
}

/// The name of an event, never used for two.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventId {
    /// `home-7f3a9c21-000000004182`
    Journal { server: ServerName, epoch: Epoch, seq: Seq },
    /// `home-7f3a9c21-u000000009001`
    Updated { server: ServerName, epoch: Epoch, rev: Rev },
}

impl fmt::Display for EventId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Journal { server, epoch, seq } => write!(out, "{server}-{epoch}-{:012}", seq.0),
            Self::Updated { server, epoch, rev } => write!(out, "{server}-{epoch}-u{:012}", rev.0),
        }
    }
}

impl JsonSchema for EventId {
    fn schema_name() -> Cow<'static, str> {
        "EventId".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "The name of an event: the same on every repetition and on every sink, never used for two.",
            "type": "string",
            "pattern": "^[a-z0-9][a-z0-9_-]{0,62}-[0-9a-f]{8}-(u[0-9]{12,20}|[0-9]{12,20})$",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no event id: like `home-7f3a9c21-000000004182` is right", .0.escape_default())]
pub struct InvalidEventId(String);

impl FromStr for EventId {
    type Err = InvalidEventId;

    /// Reads what [`Display`](fmt::Display) writes, and nothing else.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            // A server's name may have hyphens itself.
            let (rest, number) = text.rsplit_once('-')?;
            let (server, epoch) = rest.rsplit_once('-')?;
            let server = ServerName::parse(server).ok()?;
            let epoch = Epoch(u32::from_str_radix(epoch, 16).ok()?);
            let id = match number.strip_prefix('u') {
                Some(rev) => Self::Updated { server, epoch, rev: Rev(rev.parse().ok()?) },
                None => Self::Journal { server, epoch, seq: Seq(number.parse().ok()?) },
            };
            (id.to_string() == text).then_some(id)
        };
        parse().ok_or_else(|| InvalidEventId(text.chars().take(120).collect()))
    }
}

impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for EventId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An event in its JSON shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = of_its_entity)]
#[non_exhaustive]
pub struct Event {
    #[schemars(extend("const" = EVENT_SCHEMA))]
    #[serde(deserialize_with = "event_schema")]
    pub schema: SchemaName,
    pub entity: Entity,
    pub event_type: Kind,
    pub id: EventId,
    /// Gap-free per server and epoch (the part of the id before its last `-`); `null` for `updated`.
    pub seq: Option<Seq>,
    /// When it was seen.
    pub time: Timestamp,
    pub server: ServerName,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "InfoHash")]
    pub hash: Option<InfoHash>,
    pub cause: Cause,
    /// The command that caused it, if the cause is one.
    pub command_id: Option<CommandId>,
    /// What the observation that showed this event found changed in the torrent.
    pub changes: Changes,
    /// The torrent after the event; for `removed` as it was last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Torrent")]
    pub torrent: Option<Arc<Torrent>>,
}

/// What a type cannot say: which events have a torrent, and which a number.
fn of_its_entity(schema: &mut Schema) {
    let kinds = |entity| -> Vec<&str> {
        Kind::ALL.iter().filter(|kind| kind.entity() == entity).map(|kind| kind.as_str()).collect()
    };
    let conditions = json!([
        {
            "if": {"properties": {"entity": {"const": "torrent"}}},
            "then": {"required": ["hash", "torrent"], "properties": {"event_type": {"enum": kinds(Entity::Torrent)}}},
            "else": {"properties": {"event_type": {"enum": kinds(Entity::Server)}, "hash": false, "torrent": false}},
        },
        {
            "if": {"properties": {"event_type": {"const": Kind::Updated.as_str()}}},
            "then": {"properties": {"seq": {"type": "null"}}},
            "else": {"properties": {"seq": {"type": "integer", "minimum": 1}}},
        },
    ]);
    schema.insert("allOf".to_owned(), conditions);
}

impl Event {
    /// An event of this name and kind, observed, without a torrent; for those who try out what they do with events.
    pub fn new(id: EventId, event_type: Kind, time: Timestamp) -> Self {
        let (server, seq) = match &id {
            EventId::Journal { server, seq, .. } => (server.clone(), Some(*seq)),
            EventId::Updated { server, .. } => (server.clone(), None),
        };
        Self {
            schema: EVENT_SCHEMA,
            entity: event_type.entity(),
            event_type,
            id,
            seq,
            time,
            server,
            hash: None,
            cause: Cause::Observed,
            command_id: None,
            changes: Changes::new(),
            torrent: None,
        }
    }

    /// The bytes that go on every wire.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an event is plain JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_server_epoch_and_a_number_of_twelve_digits() {
        let server = ServerName::parse("home").unwrap();
        let epoch = Epoch(0x7f3a_9c21);
        let journal = EventId::Journal { server: server.clone(), epoch, seq: Seq(4182) };
        assert_eq!(journal.to_string(), "home-7f3a9c21-000000004182");
        let updated = EventId::Updated { server, epoch, rev: Rev(9001) };
        assert_eq!(updated.to_string(), "home-7f3a9c21-u000000009001");
    }

    #[test]
    fn ids_are_read_as_they_are_written() {
        for text in ["home-7f3a9c21-000000004182", "a-b-00000001-u000000000000", "home-7f3a9c21-18446744073709551615"] {
            assert_eq!(text.parse::<EventId>().unwrap().to_string(), text);
        }
        for bad in ["", "home", "home-7f3a9c21-4182", "Home-7f3a9c21-000000004182", "home-7F3A9C21-000000004182"] {
            assert!(bad.parse::<EventId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_text_of_a_kind_is_its_json() {
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
            assert_eq!(Kind::parse(kind.as_str()), Some(*kind));
        }
    }
}
