//! The event, in the form that every sink gets.

use std::str::FromStr;
use std::sync::Arc;

use schemars::{JsonSchema, Schema};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;

use super::json_text::json_text;
use super::{Changes, CommandId, Epoch, InfoHash, Rev, Seq, ServerName, Timestamp, Torrent};

/// Name and version of the JSON shape of an [`Event`].
pub const EVENT_SCHEMA: &str = "dtorrent.event/1";

/// An alias, because serde would take a `&'static str` that is written out for a borrow from the input.
type SchemaName = &'static str;

/// Accepts any name of a schema: an event of an incompatible one cannot be decoded anyway.
fn event_schema<'de, D: Deserializer<'de>>(text: D) -> Result<SchemaName, D::Error> {
    IgnoredAny::deserialize(text).map(|_any| EVENT_SCHEMA)
}

/// The kind of thing that an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Entity {
    /// One torrent.
    Torrent,
    /// One server.
    Server,
}

impl Entity {
    /// Returns the name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Torrent => "torrent",
            Self::Server => "server",
        }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal of $entity:ident),* $(,)?) => {
        /// The kind of an event. Events of one torrent in one change set come in the order of the variants.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum Kind { $($(#[$doc])* $name),* }

        impl Kind {
            /// All kinds, in their order.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Returns the name in JSON, topics and filters.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            /// Returns the kind of thing that events of this kind are about.
            pub fn entity(self) -> Entity {
                match self { $(Self::$name => Entity::$entity),* }
            }
        }
    };
}

kinds! {
    /// The stored state was lost: a new epoch begins, and numbers start from 1.
    JournalReset = "journal_reset" of Server,
    /// The server answers, for the first time or again.
    ServerOnline = "server_online" of Server,
    /// The client was restarted.
    ServerRestarted = "server_restarted" of Server,
    /// Gone from two complete listings in a row; carries the torrent as it last was.
    Removed = "removed" of Torrent,
    /// New to the snapshot; with cause `snapshot` it was there when the server was first seen.
    Added = "added" of Torrent,
    /// A magnet link has received its metadata.
    Metadata = "metadata" of Torrent,
    /// The name changed.
    Renamed = "renamed" of Torrent,
    /// The directory of the content changed.
    Moved = "moved" of Torrent,
    /// The label changed.
    LabelChanged = "label_changed" of Torrent,
    /// The priority changed.
    PriorityChanged = "priority_changed" of Torrent,
    /// A hash check began.
    Checking = "checking" of Torrent,
    /// A hash check ended.
    Checked = "checked" of Torrent,
    /// Started after it was stopped.
    Started = "started" of Torrent,
    /// Resumed after it was paused.
    Resumed = "resumed" of Torrent,
    /// Incomplete after it was complete.
    Unfinished = "unfinished" of Torrent,
    /// A download is complete and checked; not sent for a re-check or for a torrent added complete.
    Finished = "finished" of Torrent,
    /// Downloading, and no data has come for the configured time.
    Stalled = "stalled" of Torrent,
    /// Data comes again.
    Unstalled = "unstalled" of Torrent,
    /// Paused.
    Paused = "paused" of Torrent,
    /// Stopped.
    Stopped = "stopped" of Torrent,
    /// The client reports an error.
    Error = "error" of Torrent,
    /// The error is gone.
    ErrorCleared = "error_cleared" of Torrent,
    /// Every torrent of the first listing has been sent as `added`.
    SnapshotDone = "snapshot_done" of Server,
    /// The server has not answered several polls in a row.
    ServerOffline = "server_offline" of Server,
    /// Any other change. Conflated, without a `seq`, and not journaled.
    Updated = "updated" of Torrent,
}

impl Kind {
    /// Reads the name of a kind.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == text)
    }
}

/// The reason why an event is emitted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Cause {
    /// Observed between two polls.
    Observed,
    /// Effect of a command that came through this bridge.
    Command,
    /// Happened while the bridge was down, and found by comparison with the stored snapshot.
    Recovered,
    /// Part of the first listing of a server.
    Snapshot,
}

/// The id of an event, never used for two.
#[derive(Clone, Debug, derive_more::Display, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventId {
    /// Id of a journal entry: `home-7f3a9c21-000000004182`.
    #[display("{server}-{epoch}-{:012}", seq.0)]
    Journal { server: ServerName, epoch: Epoch, seq: Seq },
    /// Id of an `updated`, numbered by revision: `home-7f3a9c21-u000000009001`.
    #[display("{server}-{epoch}-u{:012}", rev.0)]
    Updated { server: ServerName, epoch: Epoch, rev: Rev },
}

json_text!(EventId, EventId::from_str, {
    "description": "Id of an event: the same on every redelivery and on every sink, never used for two events.",
    "type": "string",
    "pattern": "^[a-z0-9][a-z0-9_-]{0,62}-[0-9a-f]{8}-(u[0-9]{12,20}|[0-9]{12,20})$",
});

/// The text of an event id is malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid event id `{}`; expected one like `home-7f3a9c21-000000004182`", .0.escape_default())]
pub struct InvalidEventId(String);

impl FromStr for EventId {
    type Err = InvalidEventId;

    /// Reads the exact form that [`Display`](std::fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            // From the right: a server's name may have hyphens itself.
            let (rest, number) = text.rsplit_once('-')?;
            let (server, epoch) = rest.rsplit_once('-')?;
            let server = ServerName::parse(server).ok()?;
            let epoch = Epoch(u32::from_str_radix(epoch, 16).ok()?);
            let id = match number.strip_prefix('u') {
                Some(rev) => Self::Updated { server, epoch, rev: Rev(rev.parse().ok()?) },
                None => Self::Journal { server, epoch, seq: Seq(number.parse().ok()?) },
            };
            // `+5` or fewer zeros would be another text for the same id, and consumers compare texts.
            (id.to_string() == text).then_some(id)
        };
        parse().ok_or_else(|| InvalidEventId(text.chars().take(120).collect()))
    }
}

/// An event, in its JSON shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = of_its_entity)]
#[non_exhaustive]
pub struct Event {
    #[schemars(extend("const" = EVENT_SCHEMA))]
    #[serde(deserialize_with = "event_schema")]
    /// Name and version of this JSON shape.
    pub schema: SchemaName,
    /// Kind of thing it is about.
    pub entity: Entity,
    /// Kind of the event.
    pub event_type: Kind,
    /// Id, also the CloudEvents `id`, the `Nats-Msg-Id` and the `webhook-id`.
    pub id: EventId,
    /// Gap-free per server and epoch (the part of the id before its last `-`); `null` for `updated`.
    pub seq: Option<Seq>,
    /// Time of the poll that showed it.
    pub time: Timestamp,
    /// Server it is about or from.
    pub server: ServerName,
    /// Info-hash of the torrent; absent for events of a server.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "InfoHash")]
    pub hash: Option<InfoHash>,
    /// Reason why it is emitted now.
    pub cause: Cause,
    /// The command that caused it, if the cause is `command`.
    pub command_id: Option<CommandId>,
    /// Fields of the torrent that changed with this event.
    pub changes: Changes,
    /// The torrent after the event; for `removed` as it last was.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Torrent")]
    pub torrent: Option<Arc<Torrent>>,
}

/// Adds the rules that types cannot express: which events have a torrent, and which a number.
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
    /// An observed event without a torrent, as a starting point: server and number are those of the id.
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

    /// Renders the JSON that every sink gets.
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
