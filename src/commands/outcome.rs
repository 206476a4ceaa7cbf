//! What a command came to, and how that becomes its one result and one line for whoever checks later.

use bytes::Bytes;
use serde_json::Value;
use tracing::info;

use crate::live_state::LiveState;
use crate::log_throttle::retry_while_full;
use crate::model::{
    CommandError, ErrorCode, Outcome, OutcomeStatus, Page, RESULT_SCHEMA, Row, ServerName, Verb, printable,
};
use crate::port::{Clock, LoggedCommand, LoggedResult, Store, StoreError};

/// What was done, before it is wrapped into a result.
pub(super) struct Done {
    pub status: OutcomeStatus,
    pub rows: Vec<Row>,
    pub error: Option<CommandError>,
    pub page: Option<Page>,
    pub value: Option<Value>,
}

impl Done {
    pub fn ok() -> Self {
        Self { status: OutcomeStatus::Ok, rows: Vec::new(), error: None, page: None, value: None }
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

    pub fn rows(rows: Vec<Row>) -> Self {
        let failures = rows.iter().filter(|row| row.status != OutcomeStatus::Ok).count();
        let error = rows.iter().find_map(|row| row.error.clone());
        let status = match failures {
            0 => OutcomeStatus::Ok,
            n if n == rows.len() => OutcomeStatus::Error,
            _ => OutcomeStatus::Partial,
        };
        Self { status, rows, error, ..Self::ok() }
    }
}

/// Who asked, for the log: what a sender says of itself is shown as such.
pub(super) struct Asker<'a> {
    pub user: Option<&'a str>,
}

/// Writes the result down, for the sink that the command came by, and a line for whoever checks.
pub(super) async fn finish(
    store: &dyn Store,
    live: &LiveState,
    clock: &dyn Clock,
    command: &LoggedCommand,
    asker: Asker<'_>,
    done: Done,
) -> Result<(), StoreError> {
    let now = clock.now();
    let verb = command.verb.map_or("", Verb::as_str);
    let outcome = outcome(command, verb, now.millis_since(command.received_at), now, done);
    audit(command, verb, &asker, &outcome);
    let name = command.server.as_ref().map_or("", ServerName::as_str);
    let labels = [
        ("server", name.to_owned()),
        ("verb", verb.to_owned()),
        ("status", format!("{:?}", outcome.status).to_lowercase()),
    ];
    metrics::counter!("dtorrent_commands_total", &labels).increment(1);
    let body = Bytes::from(serde_json::to_vec(&outcome).expect("an outcome is plain JSON"));
    let (server, answer) = (command.server.as_ref(), LoggedResult { status: outcome.status, body });
    retry_while_full("a result", || store.finish_command(server, &command.id, answer.clone())).await?;
    // It may have been asked for by other sinks too.
    live.wake_for_results();
    Ok(())
}

/// Answers a command that a former life of the bridge took in, for a server that there is no more.
///
/// # Errors
/// Only a store that cannot be used any more.
pub async fn give_up(
    store: &dyn Store,
    live: &LiveState,
    clock: &dyn Clock,
    command: &LoggedCommand,
) -> Result<(), StoreError> {
    let error = CommandError::new(ErrorCode::UnknownServer, "the server is not in the config any more");
    finish(store, live, clock, command, Asker { user: None }, Done::failed(error)).await
}

pub(super) fn outcome(
    command: &LoggedCommand,
    verb: &str,
    took_ms: u64,
    time: crate::model::Timestamp,
    done: Done,
) -> Outcome {
    let Done { status, rows, error, page, value } = done;
    Outcome {
        schema: RESULT_SCHEMA,
        id: command.id.clone(),
        verb: verb.to_owned(),
        server: command.server.clone(),
        status,
        time,
        took_ms,
        results: rows,
        error,
        page,
        part: None,
        value,
    }
}

/// One line for each command: who, what, what became of it.
pub(super) fn audit(command: &LoggedCommand, verb: &str, asker: &Asker<'_>, outcome: &Outcome) {
    info!(
        server = command.server.as_ref().map_or("-", ServerName::as_str),
        sink = %command.origin,
        user = asker.user.map(|user| printable(user.as_bytes())),
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
