//! Conversions between columns and domain types.

use rusqlite::types::Type;

use super::failure::Failure;
use crate::model::{InfoHash, ServerName, SinkName};

/// SQLite's integers are signed: a number above their range is stored as the largest.
pub(super) fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn from_sql(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

pub(super) fn hash_from_sql(bytes: &[u8]) -> rusqlite::Result<InfoHash> {
    // The length tells the versions apart, so the column needs no tag.
    if let Ok(v1) = <[u8; 20]>::try_from(bytes) {
        return Ok(InfoHash::V1(v1));
    }
    let v2 = <[u8; 32]>::try_from(bytes);
    v2.map(InfoHash::V2).map_err(|_| unreadable("an info-hash has 20 or 32 bytes"))
}

pub(super) fn server_from_sql(name: &str) -> rusqlite::Result<ServerName> {
    ServerName::parse(name).map_err(unreadable)
}

/// A list of sinks for `json_each`.
pub(super) fn sinks_to_sql(sinks: &[SinkName]) -> String {
    serde_json::to_string(sinks).expect("names are plain JSON")
}

pub(super) fn unreadable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, error.into())
}

/// A row that was read but makes no sense is damage, not a failed read.
pub(super) fn damaged(error: rusqlite::Error) -> Failure {
    match error {
        rusqlite::Error::FromSqlConversionFailure(_, _, reason) => Failure::corrupt(reason),
        other => other.into(),
    }
}
