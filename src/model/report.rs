//! What the bridge says of itself: the bodies of its `info` and `health`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::{CommandId, ServerName, SinkName, Timestamp};

/// The body of `{p}/bridge/{inst}/info`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Info {
    /// Of the bridge.
    pub version: &'static str,
    pub instance: String,
    pub servers: Vec<ServerName>,
    #[schemars(with = "Vec<Line>")]
    pub sinks: Vec<SinkName>,
    /// The versions of the bodies that it sends.
    pub schemas: Vec<&'static str>,
    pub limits: ReportLimits,
}

/// A broker by its name, or a webhook's line to one server: `ntfy.home`.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "it is only described: the type of it is `SinkName`")]
struct Line(#[schemars(regex(pattern = r"^[a-z0-9][a-z0-9_-]{0,62}(\.[a-z0-9][a-z0-9_-]{0,62})?$"))] String);

/// What is refused because it is too large.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct ReportLimits {
    /// Bytes of a command's body.
    pub command_bytes: usize,
}

/// The body of `{p}/bridge/{inst}/health`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Health {
    pub time: Timestamp,
    pub uptime_seconds: u64,
    /// What the process holds of the machine's memory; `null` where that cannot be read.
    pub memory_bytes: Option<u64>,
    pub servers: BTreeMap<ServerName, ServerHealth>,
    #[schemars(with = "BTreeMap<Line, SinkHealth>")]
    pub sinks: BTreeMap<SinkName, SinkHealth>,
}

/// How looking at one server goes.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct ServerHealth {
    pub online: bool,
    /// Why the last look failed; `null` if it did not.
    pub problem: Option<String>,
    /// Since the last answer; `null` before the first.
    pub poll_age_seconds: Option<f64>,
    /// How long the last look took.
    pub poll_seconds: f64,
    /// Looks so far.
    pub polls: u64,
    pub polls_failed: u64,
    /// Those that read all torrents.
    pub polls_full: u64,
    /// From one look to the next, as it is now.
    pub interval_seconds: f64,
    /// From one full picture to the next at most, as it is now.
    pub sweep_seconds: f64,
    pub torrents: usize,
    /// Content that is being read and compared for `add` with `data_file`.
    pub checking: Vec<Check>,
    /// Only where hooks are wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "HooksHealth")]
    pub hooks: Option<HooksHealth>,
}

/// How far the check of content is that a command brings along.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Check {
    pub command_id: CommandId,
    pub read_bytes: u64,
    pub total_bytes: u64,
}

/// What a client rings for by itself.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct HooksHealth {
    /// Events that ring, in the client's words.
    pub events: Vec<&'static str>,
    /// Events that must not be touched, because of what else hangs there.
    pub left_alone: Vec<&'static str>,
    /// Why they could not be seen to last time; `null` if they could.
    pub problem: Option<String>,
    /// How often somebody rang.
    pub wakes: u64,
}

/// How handing over to one broker, or by one line of a webhook, goes.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct SinkHealth {
    pub connected: bool,
    /// Why it is not; `null` if it is.
    pub problem: Option<String>,
    /// Journal entries that it has still to get.
    pub lag_entries: u64,
    /// How long it has been behind; 0 if it is not.
    pub lag_seconds: f64,
    /// Torrents of which it has an old picture.
    pub dirty: u64,
    pub delivered: u64,
    /// What it would not take, and was put aside.
    pub rejected: u64,
    /// What its users should know of how it delivers.
    pub notes: Vec<String>,
}
