//! Results: the one answer of each command, and its line in the log.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use serde_json::Value;
use tracing::{info, warn};

use super::common::Common;
use super::queue::{Queue, QueuedCommand};
use super::sender::CommandSender;
use crate::log_throttle::retry_while_full;
use crate::model::{
    AUDIT, CommandError, ErrorCode, Outcome, OutcomeStatus, Page, ServerName, Timestamp, TorrentOutcome, Verb,
    printable,
};
use crate::port::{LoggedCommand, LoggedResult, StoreError};

/// Rows of failed torrents with the same error code. One row of ten thousand says as much as the others.
const FAILED_ROWS_MAX: usize = 100;

/// The part of a result that its command decides; id, verb, server and time are added by [`Self::into_outcome`].
pub(super) struct ResultBody {
    /// How the command ended.
    pub status: OutcomeStatus,
    /// A row for each torrent, but those in `omitted`; empty for a command that is for none.
    pub torrents: Vec<TorrentOutcome>,
    /// Failed torrents without a row, by their error.
    pub omitted: BTreeMap<ErrorCode, u64>,
    /// Why it was not done, or not for all torrents.
    pub error: Option<CommandError>,
    /// For `list`: which part of the matching torrents this is.
    pub page: Option<Page>,
    /// For `rpc` and `resync`: an answer of another shape.
    pub value: Option<Value>,
}

impl ResultBody {
    /// Returns the result of a command that was done and has nothing to report.
    pub fn ok() -> Self {
        let (status, torrents, omitted) = (OutcomeStatus::Ok, Vec::new(), BTreeMap::new());
        Self { status, torrents, omitted, error: None, page: None, value: None }
    }

    /// Returns the result of a command that was not done for any torrent.
    pub fn failed(error: CommandError) -> Self {
        Self { status: OutcomeStatus::Error, error: Some(error), ..Self::ok() }
    }

    /// Returns the result of a command whose time to live was over before it began.
    pub fn expired() -> Self {
        let message = "its time to live was over before it could be done";
        let error = CommandError::new(ErrorCode::ClientOffline, message);
        Self { status: OutcomeStatus::Expired, ..Self::failed(error) }
    }

    /// Sums up the torrents: the error is that of the first one that failed. Of those that failed with the same code only the
    /// first [`FAILED_ROWS_MAX`] keep their row.
    pub fn of_torrents(mut torrents: Vec<TorrentOutcome>) -> Self {
        // Without torrents (a filter that matches none) there is nothing that failed: `ok`.
        let failures = torrents.iter().filter(|torrent| torrent.status != OutcomeStatus::Ok).count();
        let error = torrents.iter().find_map(|torrent| torrent.error.clone());
        let status = match failures {
            0 => OutcomeStatus::Ok,
            n if n == torrents.len() => OutcomeStatus::Error,
            _ => OutcomeStatus::Partial,
        };
        let (mut failed, mut omitted) = (HashMap::new(), BTreeMap::new());
        torrents.retain(|torrent| {
            let Some(error) = &torrent.error else { return true };
            let rows: &mut usize = failed.entry(error.code).or_default();
            *rows += 1;
            if *rows > FAILED_ROWS_MAX {
                *omitted.entry(error.code).or_default() += 1;
            }
            *rows <= FAILED_ROWS_MAX
        });
        Self { status, torrents, omitted, error, ..Self::ok() }
    }

    /// Makes the result of `command`. `verb` is the text of its topic, also where there is no such verb; `time` is now.
    pub fn into_outcome(self, command: &LoggedCommand, verb: &str, time: Timestamp) -> Outcome {
        let Self { status, torrents: results, omitted, error, page, value } = self;
        Outcome {
            server: command.server.clone(),
            took_ms: time.millis_since(command.received_at),
            results,
            omitted,
            error,
            page,
            value,
            ..Outcome::new(command.id.clone(), verb, status, time)
        }
    }
}

/// Renders a result for the command log.
pub(super) fn logged(outcome: &Outcome) -> LoggedResult {
    let body = Bytes::from(serde_json::to_vec(outcome).expect("an outcome is plain JSON"));
    LoggedResult { status: outcome.status, body }
}

/// Writes the result of a command to the command log, for the sink that it came from, and a line to the log.
pub(super) async fn finish(
    common: &Common,
    command: &LoggedCommand,
    sender: &CommandSender,
    body: ResultBody,
) -> Result<(), StoreError> {
    let verb = command.verb.map_or("", Verb::as_str);
    let outcome = body.into_outcome(command, verb, common.clock.now());
    report(common, command, verb, sender.user.as_deref(), &outcome);
    let (server, result) = (command.server.as_ref(), logged(&outcome));
    retry_while_full("a result", || common.store.finish_command(server, &command.id, result.clone())).await?;
    // After the write, as on a broker: after a crash, who asks again under the same id gets the same answer (I12).
    if let Some(waiter) = &sender.waiter {
        waiter.answer(outcome, result.body);
    }
    // The command may have been repeated by way of other sinks, which wait for the same result.
    common.live.wake_for_results();
    Ok(())
}

/// Takes up a queue when a worker starts. What an earlier one left without a result runs again; what it gave a result,
/// and ended before it could say so, is answered by that result and not executed once more (I12).
///
/// # Errors
/// Only a store that cannot be used any more.
pub(super) async fn take_up(common: &Common, queue: &Queue) -> Result<(), StoreError> {
    for QueuedCommand { command, sender, .. } in queue.restart() {
        let Some(body) = common.store.result_of(command.server.as_ref(), &command.id).await? else { continue };
        if let (Some(waiter), Ok(outcome)) = (&sender.waiter, serde_json::from_slice(&body)) {
            waiter.answer(outcome, body);
        }
        queue.answered(&command.id);
        common.live.wake_for_results();
    }
    Ok(())
}

/// Logs who commanded what, and how it ended, and counts it. `user` is who the sender says it is; that is not proven.
/// `verb` is the text of the address, also where there is no such verb.
pub(super) fn report(common: &Common, command: &LoggedCommand, verb: &str, user: Option<&str>, outcome: &Outcome) {
    count(common, command, outcome.status);
    // The level of a message is a constant.
    macro_rules! log {
        ($($field:tt)*) => {
            match outcome.status {
                OutcomeStatus::Ok => info!(target: AUDIT, $($field)*),
                _ => warn!(target: AUDIT, $($field)*),
            }
        };
    }
    log!(
        server = command.server.as_ref().map_or("-", ServerName::as_str),
        sink = %command.origin,
        user = user.map(|user| printable(user.as_bytes())),
        id = %command.id,
        verb,
        hash = command.hash.map(|hash| hash.to_string()),
        status = %outcome.status,
        took_ms = outcome.took_ms,
        torrents = outcome.results.len() as u64 + outcome.omitted.values().sum::<u64>(),
        code = outcome.error.as_ref().map(|error| error.code.to_string()),
        error = outcome.error.as_ref().map(|error| error.message.as_str()),
        "command done"
    );
}

/// Counts a command. What a sender makes up, a server or a verb that does not exist, is never a label.
fn count(common: &Common, command: &LoggedCommand, status: OutcomeStatus) {
    let server = command.server.as_ref().filter(|server| common.live.server(server).is_some());
    let labels = [
        ("server", server.map_or("", ServerName::as_str).to_owned()),
        ("verb", command.verb.map_or("", Verb::as_str).to_owned()),
        ("status", status.to_string()),
    ];
    metrics::counter!("dtorrent_commands_total", &labels).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::InfoHash;

    #[test]
    fn failures_are_summed_up_beyond_a_number_of_rows_and_successes_never() {
        let hash = |number: u64| {
            let mut bytes = [0; 20];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            InfoHash::V1(bytes)
        };
        let row = |number: u64| match number % 10 {
            0 => TorrentOutcome::ok(hash(number)),
            1 => TorrentOutcome::failed(hash(number), CommandError::new(ErrorCode::Precondition, "it is checked")),
            _ => TorrentOutcome::failed(hash(number), CommandError::new(ErrorCode::UnknownHash, "no such torrent")),
        };
        let body = ResultBody::of_torrents((0..10_000).map(row).collect());
        assert_eq!(body.status, OutcomeStatus::Partial);
        assert_eq!(body.error.unwrap().code, ErrorCode::Precondition, "that of the first one that failed");
        let of = |code: Option<ErrorCode>| {
            body.torrents.iter().filter(|row| row.error.as_ref().map(|error| error.code) == code).count()
        };
        assert_eq!([of(None), of(Some(ErrorCode::Precondition)), of(Some(ErrorCode::UnknownHash))], [1000, 100, 100]);
        assert_eq!(body.omitted, BTreeMap::from([(ErrorCode::Precondition, 900), (ErrorCode::UnknownHash, 7_900)]));
        let all_failed = ResultBody::of_torrents((0..10_000).map(|number| row(2 + 10 * number)).collect());
        assert_eq!((all_failed.status, all_failed.torrents.len()), (OutcomeStatus::Error, 100));
        assert!(ResultBody::of_torrents((0..100).map(|number| row(2 + 10 * number)).collect()).omitted.is_empty());
    }
}
