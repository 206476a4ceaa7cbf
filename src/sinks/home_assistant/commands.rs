//! Commands from Home Assistant's controls whose topic or body is not that of a command: a switch has one topic for on and
//! off, and a command has one for each verb.
//!
//! Invariant: whatever arrives, exactly one ordinary command results, which is admitted as all commands are.
//!
//! Pure.

use bytes::Bytes;
use serde_json::{Value, json};

use super::{HomeAssistant, Limits};
use crate::port::CommandAddress;

/// Translates a message to one of our switches into a command. `control` is the last level of its topic.
///
/// A message without a meaning becomes a command with an unknown verb, and so gets an error as its result.
pub fn command(settings: &HomeAssistant, server: &str, control: &str, body: &[u8]) -> (CommandAddress, Bytes) {
    // The hash is in the body: the slot may show another torrent than at the moment of the press.
    let pressed: Value = match control {
        "torrent" => serde_json::from_slice(body).unwrap_or_default(),
        _ => Value::Null,
    };
    let alternative = settings.alternative.unwrap_or_default();
    let set = |limits: &Limits| json!({"download_limit": limits.download, "upload_limit": limits.upload});
    let (hash, verb, body) = match (control, body, pressed["state"].as_str(), pressed["hash"].as_str()) {
        ("all", b"ON", ..) => (None, "start", json!({"filter": {}})),
        ("all", b"OFF", ..) => (None, "stop", json!({"filter": {}})),
        ("alternative", b"ON", ..) if settings.alternative.is_some() => (None, "limits", set(&alternative)),
        ("alternative", b"OFF", ..) if settings.alternative.is_some() => (None, "limits", set(&settings.normal)),
        ("torrent", _, Some("ON"), Some(hash)) => (Some(hash.to_owned()), "resume", json!({})),
        ("torrent", _, Some("OFF"), Some(hash)) => (Some(hash.to_owned()), "pause", json!({})),
        _ => (None, "homeassistant", json!({})),
    };
    let address = CommandAddress { server: Some(server.to_owned()), hash, verb: verb.to_owned() };
    (address, Bytes::from(body.to_string()))
}
