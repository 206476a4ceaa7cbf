//! The writer: one thread that owns the connection and carries out what is asked, in groups.
//!
//! What waits at the same time shares one transaction, and one fsync if any of it asks for one.
//! Each request is still whole or not at all: it has a savepoint of its own, and if the shared
//! transaction fails, each is tried again alone, so that one cannot fail another.
//!
//! Reads of a group come first and see what was committed before, so nobody reads what is not
//! yet on the disk. The thread ends when its store closes or is dropped, or if it panics; every
//! request after that is answered with an error.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::thread::JoinHandle;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, oneshot};

use super::folder::{CommitMark, Folder};
use super::{COMMANDS_MAX, Options, commands, journal, schema};
use crate::model::{Epoch, Seq, ServerName, SinkName, Timestamp};
use crate::port::{Clock, StoreError};

/// Requests that wait; more callers wait before that.
const REQUESTS_MAX: usize = 64;

const TIDY_EVERY_MILLIS: u64 = 60_000;
/// After so many new commands old ones go, more than so many.
const COMMANDS_EACH: u32 = 1_000;

/// What the thread owns.
pub(super) struct Db {
    pub connection: Connection,
    pub epoch: Epoch,
    pub options: Options,
    pub clock: Arc<dyn Clock>,
    /// Nothing had been committed when the store was opened.
    pub was_new: bool,
    pub servers: HashMap<ServerName, journal::Numbers>,
    /// Sinks that stand: the box is full, and this entry of theirs finds no place in it.
    pub standing: BTreeMap<SinkName, (ServerName, Seq)>,
    /// When everything was looked through last for what may go.
    pub tidied_at: Option<Timestamp>,
    /// Commands since those that are too many were let go.
    pub logged: u32,
    folder: Folder,
    is_synced: bool,
    /// Synced ones, and where their count is noted.
    commits: u64,
    commit_mark: CommitMark,
}

/// Why a request failed, before it is known what that means to the caller.
#[derive(Debug)]
pub(super) enum Failure {
    Sql(rusqlite::Error),
    Store(StoreError),
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Failure {
    pub fn corrupt(reason: impl std::fmt::Display) -> Self {
        Self::Store(StoreError::Corrupt { reason: reason.to_string() })
    }

    pub fn into_read_error(self) -> StoreError {
        match self {
            Self::Store(error) => error,
            Self::Sql(error) => match error.sqlite_error_code() {
                Some(code) if schema::is_damage(code) => StoreError::Corrupt { reason: error.to_string() },
                _ => StoreError::Io(error.into()),
            },
        }
    }

    /// A write that failed for want of room or of a working disk may succeed later.
    pub fn into_write_error(self) -> StoreError {
        match self {
            Self::Sql(error)
                if matches!(
                    error.sqlite_error_code(),
                    Some(
                        ErrorCode::DiskFull
                            | ErrorCode::ReadOnly
                            | ErrorCode::SystemIoFailure
                            | ErrorCode::CannotOpen
                            | ErrorCode::DatabaseBusy
                    )
                ) =>
            {
                StoreError::Full { reason: error.to_string() }
            }
            other => other.into_read_error(),
        }
    }
}

/// How a request is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Read,
    /// Written, and on the disk with the next synced one.
    Lazy,
    Synced,
    /// Ends the thread.
    Close,
}

pub(super) struct Request {
    mode: Mode,
    /// The server that this is about, and how many revisions it takes.
    revs: Option<(ServerName, u64)>,
    job: Box<dyn Job>,
}

/// Work and the one who waits for it. `run` may be called again if what it wrote was rolled back.
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
        drop(reply.send(outcome.map(|()| value.expect("a job that ran well has a value")))); // whoever asked may be gone
    }
}

/// The way to the thread.
pub(super) struct Writer {
    requests: Option<mpsc::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub fn start(db: Db) -> std::io::Result<Self> {
        let (requests, waiting) = mpsc::channel(REQUESTS_MAX);
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || serve(db, waiting))?;
        Ok(Self { requests: Some(requests), thread: Some(thread) })
    }

    /// Has `work` done and waits for the answer, which for a write comes after its commit.
    pub async fn ask<T, F>(&self, mode: Mode, revs: Option<(ServerName, u64)>, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut Db) -> Result<T, Failure> + Send + 'static,
    {
        let gone = || StoreError::Io("the store is closed".into());
        let (reply, answer) = oneshot::channel();
        let request = Request { mode, revs, job: Box::new(Call { work, value: None, reply }) };
        let requests = self.requests.as_ref().expect("taken only on drop");
        requests.send(request).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Drop for Writer {
    /// Waits for what was asked already, so that the folder is free when this returns.
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's thread had panicked");
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
        for mut read in reads {
            let outcome = read.job.run(&mut db).map_err(Failure::into_read_error);
            read.job.answer(outcome);
        }
        if !writes.is_empty() {
            db.write(writes);
            db.tidy();
        }
        if let Some(mut close) = closes.into_iter().next() {
            let outcome = close.job.run(&mut db).map_err(Failure::into_write_error);
            drop(db); // whoever waits may open the folder again at once
            close.job.answer(outcome);
            return;
        }
    }
}

impl Db {
    pub fn new(
        connection: Connection,
        meta: schema::Meta,
        options: Options,
        clock: Arc<dyn Clock>,
        folder: Folder,
    ) -> Result<Self, StoreError> {
        let servers = journal::numbers(&connection).map_err(Failure::into_read_error)?;
        let is_synced = true; // as `schema::open` left it
        let schema::Meta { epoch, commits, is_new: was_new, .. } = meta;
        let commit_mark = folder.commit_mark(epoch).map_err(|error| StoreError::Io(error.into()))?;
        Ok(Self {
            connection,
            epoch,
            options,
            clock,
            was_new,
            servers,
            standing: BTreeMap::new(),
            tidied_at: None,
            logged: COMMANDS_EACH,
            folder,
            is_synced,
            commits,
            commit_mark,
        })
    }

    fn write(&mut self, mut group: Vec<Request>) {
        if group.len() > 1
            && let Ok(outcomes) = self.write_together(&mut group)
        {
            for (request, outcome) in group.into_iter().zip(outcomes) {
                request.job.answer(outcome);
            }
            return;
        }
        for mut request in group {
            let outcome = self.write_alone(&mut request).map_err(Failure::into_write_error);
            request.job.answer(outcome);
        }
    }

    fn write_alone(&mut self, request: &mut Request) -> Result<(), Failure> {
        self.reserve(request)?;
        self.transaction(request.mode == Mode::Synced, |db| request.job.run(db))
    }

    /// # Errors
    /// Nothing of the group was written; what one of it alone was refused for is its own outcome.
    fn write_together(&mut self, group: &mut [Request]) -> Result<Vec<Result<(), StoreError>>, Failure> {
        for request in &*group {
            self.reserve(request)?;
        }
        let is_synced = group.iter().any(|request| request.mode == Mode::Synced);
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

    /// Runs `work` in a transaction that is synced or not, and ends that in any case.
    pub fn transaction<T>(
        &mut self,
        is_synced: bool,
        work: impl FnOnce(&mut Self) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        if self.is_synced != is_synced {
            self.connection.pragma_update(None, "synchronous", if is_synced { "FULL" } else { "NORMAL" })?;
            self.is_synced = is_synced;
        }
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        let done = work(self).and_then(|value| {
            if is_synced {
                let mut statement =
                    self.connection.prepare_cached("UPDATE meta SET value = ?1 WHERE key = 'commits'")?;
                statement.execute([journal::to_sql(self.commits + 1)])?;
            }
            self.connection.execute_batch("COMMIT")?;
            Ok(value)
        });
        if done.is_err() && !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK")?;
        }
        if done.is_ok() && is_synced {
            self.commits += 1;
            if let Err(error) = self.commit_mark.note(self.commits) {
                tracing::debug!(%error, "the number of commits could not be noted");
            }
        }
        done
    }

    /// Sees to it that the server is known and has as many revisions in reserve as the request takes.
    fn reserve(&mut self, request: &Request) -> Result<(), Failure> {
        match &request.revs {
            Some((server, count)) => journal::reserve(self, server, *count),
            None => Ok(()),
        }
    }

    /// Lets go what may go: a batch of the journal or of commands now, and once a minute everything that is too old.
    fn tidy(&mut self) {
        let now = self.clock.now();
        let is_due = self.tidied_at.is_none_or(|at| now.millis_since(at) >= TIDY_EVERY_MILLIS || now < at);
        if is_due {
            self.tidied_at = Some(now);
        }
        let is_crowded = match journal::usage(&self.connection) {
            Ok(usage) => usage.journal_bytes > self.options.journal_bytes_max / 2,
            Err(_) => false,
        };
        let has_many_commands = self.logged >= COMMANDS_EACH;
        if !is_due && !is_crowded && !has_many_commands {
            return;
        }
        let tidied = self.transaction(false, |db| {
            if is_due || is_crowded {
                journal::trim_batch(db, is_due)?;
            }
            if has_many_commands {
                db.logged = 0;
                commands::trim_excess(db, COMMANDS_MAX)?;
            }
            if is_due { commands::trim(db) } else { Ok(()) }
        });
        if let Err(error) = tidied {
            // Nothing is lost by it, and the next write tries again.
            tracing::debug!(error = %error.into_write_error(), "old entries could not be let go");
        }
    }

    /// Empties the change log into the file, gives reserved revisions back, leaves the clean mark.
    pub fn close(&mut self) -> Result<(), Failure> {
        self.transaction(true, journal::release)?;
        let is_blocked: bool = self
            .connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0).map(|n| n > 0))?;
        if is_blocked {
            tracing::debug!("another program reads the state; its change log stays for the next start");
        }
        self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false).map(drop)?;
        self.folder.mark_clean().map_err(|error| StoreError::Io(error.into()))?;
        Ok(())
    }
}
