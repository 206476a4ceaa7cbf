//! Reports of the bridge about itself: the bodies of `info` and `health`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::{CommandId, ServerName, SinkName, Timestamp};

/// The body of `{p}/bridge/{inst}/info`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Info {
    /// Version of the bridge.
    pub version: &'static str,
    /// Name of the instance, as configured.
    pub instance: String,
    /// Servers that the bridge monitors.
    pub servers: Vec<ServerName>,
    /// Those of them that this broker receives.
    pub published: Vec<ServerName>,
    /// Commands that this broker may send, and its other rights; with none it has no command topics.
    pub commands: Vec<&'static str>,
    /// Brokers, and webhooks once per server.
    #[schemars(with = "Vec<SinkLabel>")]
    pub sinks: Vec<SinkName>,
    /// Names and versions of the JSON shapes that it sends.
    pub schemas: Vec<&'static str>,
    /// Limits on input.
    pub limits: ReportLimits,
}

/// Name of a broker, or of a webhook and one of its servers: `ntfy.home`.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "describes a `SinkName` in the schema")]
struct SinkLabel(#[schemars(regex(pattern = r"^[a-z0-9][a-z0-9_-]{0,62}(\.[a-z0-9][a-z0-9_-]{0,62})?$"))] String);

/// Limits above which input is refused.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct ReportLimits {
    /// Limit on the body of a command, in bytes.
    pub command_bytes: usize,
}

/// The body of `{p}/bridge/{inst}/health`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Health {
    /// Time of this report.
    pub time: Timestamp,
    /// Time since the bridge was started.
    pub uptime_seconds: u64,
    /// Resident memory of the process; `null` where it cannot be read.
    pub memory_bytes: Option<u64>,
    /// Memory that queues and buffers may take, as configured.
    pub memory_max_bytes: usize,
    /// Part of it that commands take, those that wait and those that run; estimated from above.
    pub commands_bytes: usize,
    /// Health of each server.
    pub servers: BTreeMap<ServerName, ServerHealth>,
    /// Health of each sink.
    #[schemars(with = "BTreeMap<SinkLabel, SinkHealth>")]
    pub sinks: BTreeMap<SinkName, SinkHealth>,
}

/// Health of the polling of one server.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct ServerHealth {
    /// The server answers polls.
    pub online: bool,
    /// Error of the last poll; `null` if it succeeded.
    pub problem: Option<String>,
    /// Time since the last successful poll; `null` before the first.
    pub poll_age_seconds: Option<f64>,
    /// Duration of the last poll.
    pub poll_seconds: f64,
    /// Polls since the bridge was started.
    pub polls: u64,
    /// Polls that failed.
    pub polls_failed: u64,
    /// Polls that read every torrent.
    pub polls_full: u64,
    /// Time between two polls at present.
    pub interval_seconds: f64,
    /// Maximum time between two full polls at present.
    pub sweep_seconds: f64,
    /// Torrents in the snapshot.
    pub torrents: usize,
    /// Content that is being hash-checked for an `add` with `data_file`.
    pub checking: Vec<Check>,
    /// State of the hooks; absent unless they are configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "HooksHealth")]
    pub hooks: Option<HooksHealth>,
}

/// Progress of the hash check of content that a command brings along.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Check {
    /// Id of the command.
    pub command_id: CommandId,
    /// Bytes read so far.
    pub read_bytes: u64,
    /// Bytes to read in all.
    pub total_bytes: u64,
}

/// State of the hooks in a client.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct HooksHealth {
    /// Client events with a hook, by the client's names.
    pub events: Vec<&'static str>,
    /// Client events left without a hook, because other handlers there make changing them unsafe.
    pub left_alone: Vec<&'static str>,
    /// Error of the last attempt to read or set them; `null` if it succeeded.
    pub problem: Option<String>,
    /// Notifications received since the bridge was started.
    pub wakes: u64,
}

/// Health of the delivery to one sink.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct SinkHealth {
    /// Connected; for a webhook, its last delivery succeeded.
    pub connected: bool,
    /// Reason why delivery fails or is blocked, or why commands cannot be received; `null` if all is well.
    pub problem: Option<String>,
    /// Every command topic is subscribed to; absent where no commands are taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub receives_commands: Option<bool>,
    /// Journal entries that it has not acknowledged.
    pub lag_entries: u64,
    /// Time for which it has been behind; 0 if it is not.
    pub lag_seconds: f64,
    /// Torrents whose latest state it has not received.
    pub dirty: u64,
    /// Messages acknowledged since the bridge was started.
    pub delivered: u64,
    /// Events rejected since the bridge was started, which went to the dead-letter queue.
    pub rejected: u64,
    /// Properties of its delivery that its users should know, one sentence each.
    pub notes: Vec<String>,
}
