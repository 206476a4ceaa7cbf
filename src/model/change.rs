//! The difference between two states of a torrent.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The value of one field before and after a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// Value before.
    pub from: Value,
    /// Value after.
    pub to: Value,
}

/// Changed fields, by their JSON names.
pub type Changes = BTreeMap<String, Change>;
