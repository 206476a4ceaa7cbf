//! The id of a command, and why one fails.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::outside_text::outside_text;

/// Target of the log lines that say who did what: commands with their results, refused rights, wrong tokens. They are
/// logged whatever the log level is.
pub const AUDIT: &str = "audit";

/// The sender's name for a command: 1 to 128 bytes, no control characters.
#[derive(Clone, Debug, derive_more::Display, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CommandId(String);

/// A text that is no [`CommandId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id has 1 to 128 bytes and no control characters")]
pub struct InvalidCommandId;

impl CommandId {
    /// Checks an id.
    ///
    /// # Errors
    /// If it is empty, longer than 128 bytes, or has a control character.
    pub fn parse(text: &str) -> Result<Self, InvalidCommandId> {
        let is_right = (1..=128).contains(&text.len()) && !text.chars().any(char::is_control);
        is_right.then(|| Self(text.to_owned())).ok_or(InvalidCommandId)
    }

    /// Returns the id as its sender wrote it.
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

/// The kind of an error; docs/reference.md has what each means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// No server of that name may be commanded from here.
    UnknownServer,
    /// The client has no such torrent.
    UnknownHash,
    /// The body or the topic is wrong; sending it again is wrong again.
    BadRequest,
    /// A right is missing, or a path is outside the roots.
    Forbidden,
    /// The torrent or its files are not in a state in which this can be done.
    Precondition,
    /// The client did not answer within the time to live.
    ClientOffline,
    /// The client refused or answered with an error.
    ClientFault,
    /// The client was asked, and no poll showed the effect in time.
    Unconfirmed,
    /// The message was retained by the broker.
    Retained,
    /// The command or its result is larger than is allowed.
    TooLarge,
    /// No such verb, or the client has no such function.
    Unsupported,
}

impl ErrorCode {
    /// Returns the HTTP status for this error. NATS services use the same numbers (ADR-32).
    pub fn http_status(self) -> u16 {
        match self {
            Self::BadRequest | Self::Retained => 400,
            Self::Forbidden => 403,
            Self::UnknownServer | Self::UnknownHash => 404,
            Self::Precondition => 409,
            Self::TooLarge => 413,
            Self::Unsupported => 501,
            Self::ClientFault => 502,
            Self::ClientOffline => 503,
            Self::Unconfirmed => 504,
        }
    }
}

/// The code as it is written in results.
impl fmt::Display for ErrorCode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(out)
    }
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
    /// Makes an error that is retryable if its code says so.
    ///
    /// The message may have words of a client or a server that was asked, and goes to every receiver of results; hence it is
    /// an [`outside_text`].
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        // The rest is wrong for good, or says by itself (`retryable`) that it is not.
        let retryable = matches!(code, ErrorCode::ClientOffline | ErrorCode::Unconfirmed);
        Self { code, message: outside_text(&message.into()), retryable }
    }

    /// Says that the same command may well succeed later.
    pub fn retryable(self) -> Self {
        Self { retryable: true, ..self }
    }
}
