//! The store in one SQLite file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use self::db::{Db, Mode};
use self::failure::Failure;
use self::folder::{AliveMark, Folder};
use self::writer::Writer;
use super::{DeadLetter, DeadLetterUsage, Options, Recovery};
use crate::model::{ServerName, SinkName};
use crate::port::{Clock, StoreError};

mod columns;
mod command_log;
mod db;
mod failure;
mod folder;
mod journal;
mod schema;
mod sink_store;
mod writer;

#[cfg(test)]
mod tests;

/// How long a connection waits for another process that writes to the same file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The store of a data directory, which it holds locked.
///
/// Dropping it without [`close`](Self::close) is as safe as a crash: the next open checks the file.
/// Its calls are not cancel-safe: a write whose call is dropped may or may not be done.
pub struct SqliteStore {
    writer: Writer,
    alive: AliveMark,
    clock: Arc<dyn Clock>,
    key: [u8; 32],
    results_page_bytes: usize,
}

impl SqliteStore {
    /// Locks the directory (created if it is missing), and opens, checks or creates the database in it.
    ///
    /// A damaged file is moved aside, not deleted, and a fresh one created; `Recovery` says so.
    /// Blocks: after an unclean stop the whole file is read once.
    ///
    /// # Errors
    /// Another process uses the directory, the file was written by a newer version, or the directory
    /// cannot be used. [`StoreError::Full`] if that is because the disk is full.
    pub fn open(data_dir: &Path, options: Options, clock: Arc<dyn Clock>) -> Result<(Self, Recovery), StoreError> {
        Self::try_open(data_dir, options, clock).map_err(full_if_disk_is_full)
    }

    fn try_open(data_dir: &Path, options: Options, clock: Arc<dyn Clock>) -> Result<(Self, Recovery), StoreError> {
        let folder = Folder::lock(data_dir)?;
        let (connection, meta, recovery) = schema::open(&folder, clock.now())?;
        // Before the folder moves to the thread, which owns the lock from then on.
        let alive = folder.alive_mark().map_err(|error| StoreError::Io(error.into()))?;
        let key = folder.key().map_err(|error| StoreError::Io(error.into()))?;
        let results_page_bytes = options.pages.results;
        let db = Db::new(connection, meta, options, Arc::clone(&clock), folder)?;
        let writer = Writer::start(db).map_err(|error| StoreError::Io(error.into()))?;
        let store = Self { writer, alive, clock, key, results_page_bytes };
        store.note_alive();
        Ok((store, recovery))
    }

    /// Declares which sinks exist and which servers each of them gets; nothing is held back for others.
    ///
    /// Cursors of other pairs and unsent results of other sinks are removed. Their dead letters stay, and
    /// so do their registries of retained topics, until those are cleared.
    pub async fn declare_sinks(&self, sinks: &BTreeMap<SinkName, Vec<ServerName>>) -> Result<(), StoreError> {
        let sinks = sinks.clone();
        self.writer.ask(Mode::Synced, move |db| sink_store::declare(&db.connection, &sinks)).await
    }

    /// Returns the dead letters of a sink, oldest first.
    pub async fn dead_letters(&self, sink: &SinkName) -> Result<Vec<DeadLetter>, StoreError> {
        let sink = sink.clone();
        self.writer.ask(Mode::Read, move |db| sink_store::dead_letters(db, &sink)).await
    }

    /// Returns the secret key of the directory: for hashes that nobody else is to compute.
    pub fn key(&self) -> [u8; 32] {
        self.key
    }

    /// Returns whether a process, a bridge or a command of one, has this directory open. Blocks.
    pub fn is_in_use(data_dir: &Path) -> bool {
        Folder::is_locked(data_dir)
    }

    /// Returns the dead letters of all sinks with the sinks' names, oldest first; also of sinks that no longer exist.
    ///
    /// Only reads, and takes no lock, so a bridge that runs in this directory does not notice. Blocks.
    ///
    /// # Errors
    /// There is a file, and it cannot be read.
    pub fn read_dead_letters(data_dir: &Path) -> Result<Vec<(String, DeadLetter)>, StoreError> {
        let file = Folder::database_in(data_dir);
        if !file.try_exists().map_err(|error| StoreError::Io(error.into()))? {
            return Ok(Vec::new());
        }
        let read = || sink_store::all_dead_letters(&second_connection(&file, OpenFlags::SQLITE_OPEN_READ_ONLY)?);
        read().map_err(Failure::into_read_error)
    }

    /// Removes dead letters, by sink and id, and returns how many of them were there.
    ///
    /// Takes no lock: a bridge that runs in this directory waits for one short write, and finds the queue
    /// shorter. Blocks.
    ///
    /// # Errors
    /// There is no such file, or it cannot be written; then nothing was removed.
    pub fn drop_dead_letters(data_dir: &Path, dead_letters: &[(String, String)]) -> Result<usize, StoreError> {
        let drop_all = || -> Result<usize, Failure> {
            let mut connection = second_connection(&Folder::database_in(data_dir), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            // The change log of the last bridge stays as it is, for the next one to judge.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut count = 0;
            for (sink, id) in dead_letters {
                count += usize::from(sink_store::drop_dead_letter(&transaction, sink, id)?);
            }
            transaction.commit()?;
            Ok(count)
        };
        drop_all().map_err(Failure::into_write_error)
    }

    /// Returns the size of each dead-letter queue that is not empty, by the names of the sinks.
    pub async fn dead_letter_usage(&self) -> Result<BTreeMap<String, DeadLetterUsage>, StoreError> {
        self.writer.ask(Mode::Read, |db| sink_store::dead_letter_usage(db)).await
    }

    /// Removes a dead letter, which was delivered after all.
    pub async fn drop_dead_letter(&self, sink: &SinkName, id: &str) -> Result<(), StoreError> {
        let (sink, id) = (sink.to_string(), id.to_owned());
        self.writer
            .ask(Mode::Synced, move |db| sink_store::drop_dead_letter(&db.connection, &sink, &id).map(drop))
            .await
    }

    /// Records that the directory is in use now, so that the next run knows for how long it was not.
    pub fn note_alive(&self) {
        if let Err(error) = self.alive.note(self.clock.now()) {
            tracing::debug!(%error, "time of last use not recorded");
        }
    }

    /// Closes the store, so that the next open need not check it. Every later call fails.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.note_alive();
        self.writer.ask(Mode::Close, Db::close).await
    }
}

/// A connection next to that of a bridge that may run.
fn second_connection(file: &Path, flags: OpenFlags) -> Result<Connection, Failure> {
    let connection = Connection::open_with_flags(file, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

fn full_if_disk_is_full(error: StoreError) -> StoreError {
    let StoreError::Io(cause) = &error else { return error };
    let sql = cause.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error);
    let file = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    // SQLite maps the index of its change log into memory, and has an error code of its own for that file.
    let is_full = |error: &rusqlite::ffi::Error| {
        error.code == ErrorCode::DiskFull || error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE
    };
    match sql.is_some_and(is_full) || file == Some(std::io::ErrorKind::StorageFull) {
        true => StoreError::Full { reason: cause.to_string() },
        false => error,
    }
}
