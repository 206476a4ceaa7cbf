//! Results: the one answer of each command, and its line in the log.

use bytes::Bytes;
use serde_json::Value;
use tracing::info;

use crate::live_state::LiveState;
use crate::log_throttle::retry_while_full;
use crate::model::{
    CommandError, ErrorCode, Outcome, OutcomeStatus, Page, RESULT_SCHEMA, ServerName, TorrentOutcome, Verb, printable,
};
use crate::port::{Clock, LoggedCommand, LoggedResult, Store, StoreError};

/// What a command came to, without what every result says.
pub(super) struct ResultBody {
    pub status: OutcomeStatus,
    pub torrents: Vec<TorrentOutcome>,
    pub error: Option<CommandError>,
    pub page: Option<Page>,
    pub value: Option<Value>,
}

impl ResultBody {
    pub fn ok() -> Self {
        Self { status: OutcomeStatus::Ok, torrents: Vec::new(), error: None, page: None, value: None }
    }

    pub fn with_value(value: Value) -> Self {
        Self { value: Some(value), ..Self::ok() }
    }

    pub fn failed(error: CommandError) -> Self {
        Self { status: OutcomeStatus::Error, error: Some(error), ..Self::ok() }
    }

    pub fn expired() -> Self {
        let message = "its time to live was over before it could be done";
        let error = CommandError::new(ErrorCode::ClientOffline, message);
        Self { status: OutcomeStatus::Expired, ..Self::failed(error) }
    }

    /// Sums up the torrents: the error is that of the first one that failed.
    pub fn of_torrents(torrents: Vec<TorrentOutcome>) -> Self {
        let failures = torrents.iter().filter(|torrent| torrent.status != OutcomeStatus::Ok).count();
        let error = torrents.iter().find_map(|torrent| torrent.error.clone());
        let status = match failures {
            0 => OutcomeStatus::Ok,
            n if n == torrents.len() => OutcomeStatus::Error,
            _ => OutcomeStatus::Partial,
        };
        Self { status, torrents, error, ..Self::ok() }
    }

    /// Makes the result of `command`. `verb` is the text of its topic, also where there is no such verb.
    pub fn into_outcome(self, command: &LoggedCommand, verb: &str, clock: &dyn Clock) -> Outcome {
        let Self { status, torrents, error, page, value } = self;
        let time = clock.now();
        Outcome {
            schema: RESULT_SCHEMA,
            id: command.id.clone(),
            verb: verb.to_owned(),
            server: command.server.clone(),
            status,
            time,
            took_ms: time.millis_since(command.received_at),
            results: torrents,
            error,
            page,
            part: None,
            value,
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
    store: &dyn Store,
    live: &LiveState,
    clock: &dyn Clock,
    command: &LoggedCommand,
    user: Option<&str>,
    body: ResultBody,
) -> Result<(), StoreError> {
    let verb = command.verb.map_or("", Verb::as_str);
    let outcome = body.into_outcome(command, verb, clock);
    log(command, verb, user, &outcome);
    let labels = [
        ("server", command.server.as_ref().map_or("", ServerName::as_str).to_owned()),
        ("verb", verb.to_owned()),
        ("status", format!("{:?}", outcome.status).to_lowercase()),
    ];
    metrics::counter!("dtorrent_commands_total", &labels).increment(1);
    let (server, result) = (command.server.as_ref(), logged(&outcome));
    retry_while_full("a result", || store.finish_command(server, &command.id, result.clone())).await?;
    // The command may have been repeated by way of other sinks, which wait for the same result.
    live.wake_for_results();
    Ok(())
}

/// Answers a command of an earlier run for a server that was removed from the config.
///
/// # Errors
/// Only a store that cannot be used any more.
pub async fn answer_for_removed_server(
    store: &dyn Store,
    live: &LiveState,
    clock: &dyn Clock,
    command: &LoggedCommand,
) -> Result<(), StoreError> {
    let error = CommandError::new(ErrorCode::UnknownServer, "the server is not in the config any more");
    finish(store, live, clock, command, None, ResultBody::failed(error)).await
}

/// Logs who commanded what, and how it ended. `user` is who the sender says it is; that is not proven.
pub(super) fn log(command: &LoggedCommand, verb: &str, user: Option<&str>, outcome: &Outcome) {
    info!(
        server = command.server.as_ref().map_or("-", ServerName::as_str),
        sink = %command.origin,
        user = user.map(|user| printable(user.as_bytes())),
        id = %command.id,
        verb,
        hash = command.hash.map(|hash| hash.to_string()),
        status = ?outcome.status,
        took_ms = outcome.took_ms,
        torrents = outcome.results.len(),
        code = outcome.error.as_ref().map(|error| format!("{:?}", error.code)),
        error = outcome.error.as_ref().map(|error| error.message.as_str()),
        "command done"
    );
}
