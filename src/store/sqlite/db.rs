//! The state that the writer thread owns.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, Params, Row};

use super::super::Options;
use super::super::dead_letters::BlockedSinks;
use super::failure::Failure;
use super::folder::{CommitMark, Folder};
use crate::model::{Epoch, ServerName, Timestamp};
use crate::port::Clock;

/// The state that the thread owns.
pub(super) struct Db {
    /// The only connection of this process.
    pub connection: Connection,
    /// Epoch of the file.
    pub epoch: Epoch,
    /// Limits.
    pub options: Options,
    /// Clock for ages.
    pub clock: Arc<dyn Clock>,
    /// Rows of the servers that a commit has used.
    pub servers: HashMap<ServerName, Numbers>,
    /// Position of the newest journal entry. Counted here, because SQLite numbers rows from the newest that is
    /// still there.
    pub last_position: i64,
    /// Sinks with a full dead-letter queue.
    pub blocked: BlockedSinks,
    /// Time at which everything that is too old was last removed.
    pub trimmed_at: Option<Timestamp>,
    /// Commands recorded since excess ones were removed.
    pub recorded: u32,
    /// The locked data directory.
    pub folder: Folder,
    /// The connection waits for the disk at each commit (`synchronous = FULL`).
    pub is_synced: bool,
    /// Number of synced commits, which is noted in `commit_mark` too.
    pub commits: u64,
    /// File next to the database that holds the same number.
    pub commit_mark: CommitMark,
}

impl Db {
    /// Executes a statement and returns the number of rows that it changed.
    pub fn execute(&self, sql: &str, values: impl Params) -> Result<usize, Failure> {
        Ok(self.connection.prepare_cached(sql)?.execute(values)?)
    }

    /// Returns the first row of a query; `QueryReturnedNoRows` if there is none.
    pub fn query_row<T>(
        &self,
        sql: &str,
        values: impl Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.connection.prepare_cached(sql)?.query_row(values, read)
    }

    /// Returns all rows of a query.
    pub fn query<T, C: FromIterator<T>>(
        &self,
        sql: &str,
        values: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<C> {
        self.connection.prepare_cached(sql)?.query_map(values, read)?.collect()
    }

    /// Returns the first rows of a query, up to the one with which they hold `bytes_max`.
    ///
    /// Read one by one: all of them together must not be in memory at once (I9).
    pub fn query_page<T>(
        &self,
        sql: &str,
        values: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
        bytes_max: usize,
        bytes_of: impl Fn(&T) -> usize,
    ) -> rusqlite::Result<Vec<T>> {
        let mut statement = self.connection.prepare_cached(sql)?;
        let mut rows = statement.query_map(values, read)?;
        let (mut page, mut bytes) = (Vec::new(), 0);
        while bytes < bytes_max
            && let Some(row) = rows.next().transpose()?
        {
            bytes += bytes_of(&row);
            page.push(row);
        }
        Ok(page)
    }
}

/// The part of a server's row that is at hand without asking the disk.
#[derive(Clone, Copy)]
pub(super) struct Numbers {
    /// Key of the row.
    pub id: i64,
    /// Newest revision that was assigned in this run.
    pub rev_used: u64,
    /// Durable: no other run has used or will use a revision in between.
    pub rev_reserved: u64,
}

/// How a request is executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Outside of transactions.
    Read,
    /// Written, and on disk with the next synced request.
    Lazy,
    /// Written and on disk.
    Synced,
    /// Written, synced or not, with this many revisions of the server reserved before.
    Commit { server: ServerName, revs: u64, is_synced: bool },
    /// Ends the thread.
    Close,
}

impl Mode {
    /// Whether the request is on disk when it is answered.
    pub fn is_synced(&self) -> bool {
        matches!(self, Self::Synced | Self::Commit { is_synced: true, .. })
    }
}
