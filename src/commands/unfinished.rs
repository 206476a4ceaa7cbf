//! Commands that an earlier run accepted and did not answer: read from the command log as their queue has room for them.
//!
//! A command that ran at several crashes of the bridge may be what caused them. It is given up before it is even parsed.

use std::collections::BTreeSet;
use std::sync::Arc;

use tracing::warn;

use super::common::Common;
use super::errors::bad_request;
use super::queue::{Queue, QueuedCommand};
use super::request::Request;
use super::results::{ResultBody, finish};
use super::sender::CommandSender;
use crate::log_throttle::retry_while_full;
use crate::model::{CommandError, ErrorCode, ServerName};
use crate::port::{LoggedCommand, StoreError};

/// Crashes of the bridge while a command ran, after which it is given up.
pub(super) const CRASHES_MAX: u32 = 3;

/// Begins to take up the unfinished commands of a server into its queue; `None` is the bridge itself. To be called
/// before new commands come, which are behind them.
///
/// # Errors
/// Only a store that cannot be used any more.
pub async fn take_up_unfinished(
    common: &Common,
    server: Option<&ServerName>,
    queue: &Arc<Queue>,
) -> Result<(), StoreError> {
    queue.begin_reading();
    read_on(common, server, queue).await
}

/// Reads from the command log what a queue has room for. Until everything is read the queue takes no new command.
///
/// # Errors
/// Only a store that cannot be used any more.
pub(super) async fn read_on(common: &Common, server: Option<&ServerName>, queue: &Queue) -> Result<(), StoreError> {
    while let Some(after) = queue.unread_after() {
        let page = common.store.unfinished_commands(server, after).await?;
        if page.is_empty() {
            queue.all_read();
        }
        for (number, command) in page {
            if command.crashes >= CRASHES_MAX {
                give_up(common, command).await?;
                queue.passed_over(number);
            } else if let Some(request) = parsed(&command, queue) {
                if !queue.take_up(number, QueuedCommand::new(command, request, CommandSender::default())) {
                    return Ok(());
                }
            } else {
                let error =
                    bad_request("this version of the bridge does not read the command, which another one accepted");
                end(common, command, error).await?;
                queue.passed_over(number);
            }
        }
    }
    Ok(())
}

/// Answers commands of an earlier run for servers that were removed from the config.
///
/// # Errors
/// Only a store that cannot be used any more.
pub async fn answer_for_removed_servers(common: &Common, known: &BTreeSet<ServerName>) -> Result<(), StoreError> {
    for server in common.store.servers_with_unfinished_commands().await?.into_iter().flatten() {
        if known.contains(&server) {
            continue;
        }
        let mut after = 0;
        loop {
            let page = common.store.unfinished_commands(Some(&server), after).await?;
            let Some((last, _)) = page.last() else { break };
            after = *last;
            for (_, command) in page {
                let error = CommandError::new(ErrorCode::UnknownServer, "the server is not in the config any more");
                end(common, command, error).await?;
            }
        }
    }
    Ok(())
}

async fn give_up(common: &Common, command: LoggedCommand) -> Result<(), StoreError> {
    let message =
        format!("the bridge crashed {} times while it ran this command, so it is not tried again", command.crashes);
    let error = CommandError { retryable: false, ..CommandError::new(ErrorCode::Unconfirmed, message) };
    end(common, command, error).await
}

/// Ends a command that is not executed again, also with the torrents that it had begun to change.
async fn end(common: &Common, command: LoggedCommand, error: CommandError) -> Result<(), StoreError> {
    let LoggedCommand { id, crashes, server, begun, .. } = &command;
    let name = server.as_ref().map_or("-", ServerName::as_str);
    warn!(server = name, %id, crashes, error = error.message, "command given up");
    for hash in begun {
        warn!(
            server = name, %id, %hash,
            "torrent was being moved or deleted: it may be stopped, and its files may be at both places or gone"
        );
    }
    if !command.is_answered {
        finish(common, &command, &CommandSender::default(), ResultBody::failed(error)).await?;
    }
    retry_while_full("a command", || common.store.set_begun(server.as_ref(), id, Vec::new())).await
}

/// Returns `None` if this version does not read what another one has logged.
fn parsed(command: &LoggedCommand, queue: &Queue) -> Option<Request> {
    Request::parse(command.verb?, command.hash, &command.body, queue.trees()).ok()
}
