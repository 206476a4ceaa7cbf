//! Torrents that rTorrent has forgotten in its queue of checks.
//!
//! A check that cannot open a file ends with `hashing_failed`, mostly. Where two files of a torrent have one path it does
//! not on 0.9.8, and the columns stay those of a torrent that waits for its turn, for ever. But rTorrent checks one
//! torrent at a time and begins with the next at once, so none waits while none is checked.

use std::time::Duration;

use super::super::Access;
use super::super::calls::{Call, Value};
use super::super::map::TorrentRow;
use crate::port::ClientError;

/// Time within which rTorrent begins a check: one turn of its loop, unless it is busy.
const BEGIN_TIMEOUT: Duration = Duration::from_millis(200);

/// Marks the rows of torrents that seem to wait for a check as failed, if rTorrent has forgotten them.
pub(in crate::clients::rtorrent) async fn mark<'r>(
    access: &Access<'_>,
    rows: impl IntoIterator<Item = &'r mut TorrentRow>,
) -> Result<(), ClientError> {
    let waiting = rows.into_iter().filter(|row| row.is_checking() && !row.is_hash_checking);
    let waiting: Vec<&mut TorrentRow> = waiting.collect();
    if waiting.is_empty() || is_any_checked(access).await? {
        return Ok(());
    }
    tokio::time::sleep(BEGIN_TIMEOUT).await;
    if !is_any_checked(access).await? {
        waiting.into_iter().for_each(|row| row.hashing_failed = true);
    }
    Ok(())
}

/// Returns whether rTorrent checks a torrent now.
pub(super) async fn is_any_checked(access: &Access<'_>) -> Result<bool, ClientError> {
    let call = Call::global("d.multicall2").text("main").text("d.is_hash_checking=");
    let answers = access.call(&[call]).await?;
    match answers.first() {
        // Unreadable counts as being checked: the safe side.
        Some(Ok(rows)) => Ok(rows.array().iter().any(|row| row.array().first().and_then(Value::int) != Some(0))),
        Some(Err(fault)) => Err(access.client.fault(fault)),
        None => Ok(true),
    }
}
