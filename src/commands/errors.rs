//! The errors of commands that more than one part makes.

use crate::model::{CommandError, ErrorCode, InfoHash};
use crate::port::ClientError;

/// Returns the error of a body that says something it must not.
pub(super) fn bad_request(message: impl Into<String>) -> CommandError {
    CommandError::new(ErrorCode::BadRequest, message)
}

/// Returns the error of a torrent, or of files, in whose state the command cannot be executed.
pub(super) fn precondition(message: impl Into<String>) -> CommandError {
    CommandError::new(ErrorCode::Precondition, message)
}

/// Returns the error of a command whose time to live was over before it was done; `state` says how things are.
pub(super) fn out_of_time(state: &str) -> CommandError {
    precondition(format!("its time to live was over before it was done, give it a longer `ttl`: {state}")).retryable()
}

pub(super) fn unknown_hash(hash: InfoHash) -> CommandError {
    command_error(&ClientError::UnknownHash(hash))
}

pub(super) fn client_gone() -> CommandError {
    CommandError::new(ErrorCode::ClientOffline, "the client went away")
}

pub(super) fn still_busy(reason: &str) -> CommandError {
    precondition(reason).retryable()
}

pub(super) fn unconfirmed() -> CommandError {
    CommandError::new(ErrorCode::Unconfirmed, "the client was asked, but its effect did not show in time")
}

/// Returns the error of a change whose answer was lost, and which no poll has shown since.
pub(super) fn unanswered(lost: &ClientError) -> CommandError {
    CommandError::new(
        ErrorCode::Unconfirmed,
        format!("the client was asked, and neither answered nor showed it: {lost}"),
    )
}

/// Returns the error of a command that ended in a panic: of the bridge, or of a client that a library's user implements.
pub(super) fn program_fault() -> CommandError {
    let message = "a fault in this program ended the command, its log says which; how far the command had come is not \
                   known, and it is not repeated";
    CommandError::new(ErrorCode::ClientFault, message)
}

/// Returns what a failure of the client means for the command.
pub(super) fn command_error(error: &ClientError) -> CommandError {
    let code = match error {
        ClientError::Unreachable { .. } => ErrorCode::ClientOffline,
        // The client may have carried out what it did not answer.
        ClientError::Timeout { .. } | ClientError::Broken { .. } => ErrorCode::Unconfirmed,
        ClientError::Unauthorized { .. } | ClientError::Protocol { .. } | ClientError::Fault { .. } => {
            ErrorCode::ClientFault
        }
        ClientError::UnknownHash(_) => ErrorCode::UnknownHash,
        ClientError::Precondition { .. } | ClientError::Busy { .. } => ErrorCode::Precondition,
        ClientError::Unsupported { .. } => ErrorCode::Unsupported,
    };
    CommandError::new(code, error.to_string())
}
