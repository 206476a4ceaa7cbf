//! Commands from Home Assistant that are none of ours: a switch has one topic for on and off, and a
//! command has one for each verb.
//!
//! What must hold: what comes out is an ordinary command, which goes the way of all commands and is
//! judged there; whatever comes in, exactly one comes out.
//!
//! Pure.

use bytes::Bytes;
use serde_json::{Value, json};

use super::HomeAssistant;
use crate::port::CommandAddress;

/// Makes a message to one of our switches the command that it means. `what` is the last level of its topic.
///
/// What means nothing becomes a command that there is none of, and so is answered with an error.
pub fn command(settings: &HomeAssistant, server: &str, what: &str, body: &[u8]) -> (CommandAddress, Bytes) {
    let to = |hash: Option<&str>, verb: &str, body: Value| {
        let address =
            CommandAddress { server: Some(server.to_owned()), hash: hash.map(str::to_owned), verb: verb.to_owned() };
        (address, Bytes::from(body.to_string()))
    };
    let all = json!({"filter": {}});
    match (what, body) {
        ("all", b"ON") => to(None, "start", all),
        ("all", b"OFF") => to(None, "stop", all),
        ("alternative", b"ON" | b"OFF") => {
            let Some(alternative) = &settings.alternative else { return to(None, "homeassistant", json!({})) };
            let limits = if body == b"ON" { alternative } else { &settings.normal };
            to(None, "limits", json!({"download_limit": limits.download, "upload_limit": limits.upload}))
        }
        ("torrent", body) => {
            let said: Value = serde_json::from_slice(body).unwrap_or_default();
            match (said["state"].as_str(), said["hash"].as_str()) {
                (Some("ON"), Some(hash)) => to(Some(hash), "resume", json!({})),
                (Some("OFF"), Some(hash)) => to(Some(hash), "pause", json!({})),
                _ => to(None, "homeassistant", json!({})),
            }
        }
        _ => to(None, "homeassistant", json!({})),
    }
}
