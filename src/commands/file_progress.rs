//! How far a command has come that moves or deletes torrents, for a result that has to come before it ends.

use super::errors::out_of_time;
use super::results::ResultBody;
use crate::model::{CommandError, ErrorCode, InfoHash, Operation, TorrentOutcome};

/// How far a command has come that moves or deletes files.
#[derive(Debug, Default)]
pub(super) struct FileProgress {
    /// The torrents, in their order; empty until they are known.
    pub hashes: Vec<InfoHash>,
    /// The outcomes of the first of them.
    pub rows: Vec<TorrentOutcome>,
    /// The files of the next one are being changed.
    pub is_changing: bool,
    /// Torrents that the command has begun to change, and that are not yet known to be as asked for or as before.
    pub begun: Vec<InfoHash>,
}

impl FileProgress {
    /// Notes that a torrent is as asked for, or as before.
    pub fn settle(&mut self, hash: InfoHash) {
        self.begun.retain(|begun| *begun != hash);
    }

    /// Notes the outcome of a torrent. Where the client did not answer, how the torrent is is not known.
    pub fn note_outcome(&mut self, row: &TorrentOutcome) {
        let is_open = |error: &CommandError| matches!(error.code, ErrorCode::Unconfirmed | ErrorCode::ClientOffline);
        if !row.error.as_ref().is_some_and(is_open) {
            self.settle(row.hash);
        }
    }

    /// Returns the result of a command whose time is over while it is busy: what is done, what is under way, and what is
    /// not begun.
    pub fn overdue(&self, operation: &Operation) -> ResultBody {
        let Self { hashes, rows, is_changing, begun: _ } = self;
        if hashes.is_empty() {
            return ResultBody::expired();
        }
        let under_way = match operation {
            _ if !is_changing => {
                "the client did not answer in time; the files are untouched, and the torrent goes on as before as soon as \
                 the client answers"
            }
            Operation::DeleteWithData => {
                "its files are being deleted, and disk or client have not answered in time; `removed` follows when it is done"
            }
            _ => {
                "its files are being moved, and disk or client have not answered in time; `moved` follows if it is done, and \
                 otherwise the files go back and the torrent goes on as before"
            }
        };
        let under_way = CommandError::new(ErrorCode::Unconfirmed, under_way);
        let current = hashes.get(rows.len()).map(|hash| TorrentOutcome::failed(*hash, under_way));
        let waiting = hashes.iter().skip(rows.len() + 1).map(|hash| TorrentOutcome::failed(*hash, not_begun()));
        ResultBody::of_torrents(rows.iter().cloned().chain(current).chain(waiting).collect())
    }
}

/// Returns the error of a torrent with which the command does not go on behind its result.
pub(super) fn untouched() -> CommandError {
    out_of_time("its files are untouched, and it goes on as before")
}

/// Returns the error of a torrent whose turn did not come in time.
pub(super) fn not_begun() -> CommandError {
    out_of_time("its turn had not come, and it is as it was")
}
