//! The writer: one thread that owns the connection and executes requests in groups.
//!
//! Requests that wait at the same time share one transaction, and one fsync if any of them asks for
//! one. Each request is still whole or not at all: it has a savepoint of its own, and if the shared
//! transaction fails, each is tried again alone, so that one cannot fail another.
//!
//! Reads of a group come first and see what was committed before, so nothing is read that is not
//! yet on disk. The thread ends when its store closes or is dropped, or if it panics; every
//! request after that fails.

use std::sync::Arc;
use std::thread::JoinHandle;

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use tokio::sync::{mpsc, oneshot};

use super::super::dead_letters::BlockedSinks;
use super::super::{COMMANDS_MAX, Options};
use super::columns::to_sql;
use super::db::{Db, Mode};
use super::failure::Failure;
use super::folder::Folder;
use super::{command_log, journal, schema};
use crate::port::{Clock, StoreError};

/// Limit on queued requests, and on the requests of one group; further callers wait for a place in the queue.
const REQUESTS_MAX: usize = 64;
/// Interval at which everything that is too old is removed.
const TRIM_INTERVAL_MILLIS: u64 = 60_000;
/// Number of new commands after which those above [`COMMANDS_MAX`] are removed.
const COMMANDS_PER_TRIM: u32 = 1_000;

pub(super) struct Request {
    mode: Mode,
    job: Box<dyn Job>,
}

/// Work and its caller. `run` may be called again if its writes were rolled back.
trait Job: Send {
    fn run(&mut self, db: &mut Db) -> Result<(), Failure>;
    fn answer(self: Box<Self>, outcome: Result<(), StoreError>);
}

struct Call<T, F> {
    work: F,
    value: Option<T>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T: Send, F: FnMut(&mut Db) -> Result<T, Failure> + Send> Job for Call<T, F> {
    fn run(&mut self, db: &mut Db) -> Result<(), Failure> {
        self.value = Some((self.work)(db)?);
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: Result<(), StoreError>) {
        let Self { work: _, value, reply } = *self;
        drop(reply.send(outcome.map(|()| value.expect("a job that ran well has a value")))); // the caller may be gone
    }
}

/// The handle of the thread.
pub(super) struct Writer {
    requests: Option<mpsc::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread.
    pub fn start(db: Db) -> std::io::Result<Self> {
        let (requests, waiting) = mpsc::channel(REQUESTS_MAX);
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || serve(db, waiting))?;
        Ok(Self { requests: Some(requests), thread: Some(thread) })
    }

    /// Has `work` done and waits for its outcome, which for a write comes after its commit.
    pub async fn ask<T, F>(&self, mode: Mode, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut Db) -> Result<T, Failure> + Send + 'static,
    {
        let gone = || StoreError::Io("the store is closed".into());
        let (reply, answer) = oneshot::channel();
        let request = Request { mode, job: Box::new(Call { work, value: None, reply }) };
        let requests = self.requests.as_ref().expect("taken only on drop");
        requests.send(request).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Drop for Writer {
    /// Waits for queued requests, so that the directory is free when this returns.
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("store thread panicked");
        }
    }
}

fn serve(mut db: Db, mut waiting: mpsc::Receiver<Request>) {
    while let Some(first) = waiting.blocking_recv() {
        let mut group = vec![first];
        while group.len() < REQUESTS_MAX
            && let Ok(next) = waiting.try_recv()
        {
            group.push(next);
        }
        let (reads, rest): (Vec<_>, Vec<_>) = group.into_iter().partition(|request| request.mode == Mode::Read);
        let (writes, closes): (Vec<_>, Vec<_>) = rest.into_iter().partition(|request| request.mode != Mode::Close);
        // Before the writes of the same group: what they see is committed.
        for mut read in reads {
            let outcome = read.job.run(&mut db).map_err(Failure::into_read_error);
            read.job.answer(outcome);
        }
        if !writes.is_empty() {
            db.write(writes);
            // After the answers, so that no caller waits for it.
            db.trim();
        }
        if let Some(mut close) = closes.into_iter().next() {
            let outcome = close.job.run(&mut db).map_err(Failure::into_write_error);
            drop(db); // the caller may open the folder again at once
            close.job.answer(outcome);
            return;
        }
    }
}

impl Db {
    /// Wraps a connection that `schema::open` has checked and migrated.
    pub fn new(
        connection: Connection,
        meta: schema::Meta,
        options: Options,
        clock: Arc<dyn Clock>,
        folder: Folder,
    ) -> Result<Self, StoreError> {
        let servers = journal::numbers(&connection).map_err(Failure::into_read_error)?;
        let last_position = journal::last_position(&connection).map_err(Failure::into_read_error)?;
        let is_synced = true; // as `schema::open` left it
        let schema::Meta { epoch, commits, .. } = meta;
        let commit_mark = folder.commit_mark(epoch).map_err(|error| StoreError::Io(error.into()))?;
        Ok(Self {
            connection,
            epoch,
            options,
            clock,
            servers,
            last_position,
            blocked: BlockedSinks::default(),
            trimmed_at: None,
            recorded: COMMANDS_PER_TRIM, // an earlier run may have stopped before it trimmed
            folder,
            is_synced,
            commits,
            commit_mark,
        })
    }

    fn write(&mut self, mut group: Vec<Request>) {
        // Several servers share one fsync.
        if group.len() > 1
            && let Ok(outcomes) = self.write_together(&mut group)
        {
            for (request, outcome) in group.into_iter().zip(outcomes) {
                request.job.answer(outcome);
            }
            return;
        }
        for mut request in group {
            let reserved = self.reserve(&request.mode);
            let outcome = reserved.and_then(|()| self.transaction(request.mode.is_synced(), |db| request.job.run(db)));
            request.job.answer(outcome.map_err(Failure::into_write_error));
        }
    }

    /// Writes a group in one transaction. A request that is refused by itself has its own outcome.
    ///
    /// # Errors
    /// Nothing of the group was written.
    fn write_together(&mut self, group: &mut [Request]) -> Result<Vec<Result<(), StoreError>>, Failure> {
        for request in &*group {
            self.reserve(&request.mode)?;
        }
        let is_synced = group.iter().any(|request| request.mode.is_synced());
        self.transaction(is_synced, |db| {
            let mut outcomes = Vec::with_capacity(group.len());
            for request in group {
                db.connection.execute_batch("SAVEPOINT request")?;
                let outcome = request.job.run(db);
                if outcome.is_err() {
                    // Fails if the error has ended the whole transaction.
                    db.connection.execute_batch("ROLLBACK TO request")?;
                }
                db.connection.execute_batch("RELEASE request")?;
                outcomes.push(outcome.map_err(Failure::into_write_error));
            }
            Ok(outcomes)
        })
    }

    /// Runs `work` in a transaction, synced or not, which is committed or rolled back when this returns.
    pub fn transaction<T>(
        &mut self,
        is_synced: bool,
        work: impl FnOnce(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        // WAL: with NORMAL a commit does not wait for the disk, and the next FULL one covers it.
        if self.is_synced != is_synced {
            self.connection.pragma_update(None, "synchronous", if is_synced { "FULL" } else { "NORMAL" })?;
            self.is_synced = is_synced;
        }
        // Immediate: the command line may write, too, and a lock that is taken late cannot be waited for.
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        let done = work(self).and_then(|value| {
            if is_synced {
                self.execute("UPDATE meta SET value = ?1 WHERE key = 'commits'", [to_sql(self.commits + 1)])?;
            }
            self.connection.execute_batch("COMMIT")?;
            Ok(value)
        });
        if done.is_err() && !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK")?;
        }
        // After the commit: the mark may be behind the database, never ahead of it.
        if done.is_ok() && is_synced {
            self.commits += 1;
            if let Err(error) = self.commit_mark.note(self.commits) {
                tracing::debug!(%error, "number of commits not recorded");
            }
        }
        done
    }

    /// Ensures that the server of a commit has a row and enough reserved revisions.
    fn reserve(&mut self, mode: &Mode) -> Result<(), Failure> {
        match mode {
            Mode::Commit { server, revs, .. } => journal::reserve(self, server, *revs),
            _ => Ok(()),
        }
    }

    /// Removes a batch of excess entries or commands, and once a minute everything that is too old.
    fn trim(&mut self) {
        let now = self.clock.now();
        let is_due = self.trimmed_at.is_none_or(|at| now.millis_since(at) >= TRIM_INTERVAL_MILLIS || now < at);
        if is_due {
            self.trimmed_at = Some(now);
        }
        let is_crowded = match journal::usage(self) {
            Ok(usage) => usage.bytes > self.options.journal_bytes_max / 2,
            Err(_) => false,
        };
        let has_many_commands = self.recorded >= COMMANDS_PER_TRIM;
        if !is_due && !is_crowded && !has_many_commands {
            return;
        }
        let trimmed = self.transaction(false, |db| {
            if is_due || is_crowded {
                journal::trim_batch(db, is_due)?;
            }
            if has_many_commands {
                db.recorded = 0;
                command_log::trim_excess(db, COMMANDS_MAX)?;
            }
            if is_due { command_log::trim(db) } else { Ok(()) }
        });
        if let Err(error) = trimmed {
            // Harmless: the next write tries again.
            tracing::debug!(error = %error.into_write_error(), "old entries not removed");
        }
    }

    /// Empties the change log into the file, gives reserved revisions back, leaves the clean mark.
    pub fn close(&mut self) -> Result<(), Failure> {
        self.transaction(true, journal::release)?;
        let is_blocked: bool = self
            .connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0).map(|n| n > 0))?;
        if is_blocked {
            tracing::debug!("another program reads the state, its change log stays for the next start");
        }
        self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map(drop)?;
        self.folder.mark_clean().map_err(|error| StoreError::Io(error.into()))?;
        Ok(())
    }
}
