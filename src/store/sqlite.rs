//! The store in one SQLite file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::folder::{AliveMark, Folder};
use super::thread::{Db, Failure, Mode, Writer};
use super::{BoxUsage, DeadLetter, Options, Recovery, commands, journal, schema, sinks};
use crate::model::{ChangeSet, CommandId, Committed, JournalEntry, Seq, ServerName, SinkName};
use crate::port::{
    Clock, CommandLog, Journal, JournalPosition, Loaded, LoggedCommand, LoggedResult, Recorded, ResultBacklog,
    SinkNotes, SinkProgress, SinkStore, StoreError, UnsentResult, Usage,
};

/// The store of a data folder, which it holds locked.
///
/// Dropping it without [`close`](Self::close) is as safe as a crash: the next open checks the file.
/// Its calls are not cancel-safe: what a dropped call asked for may or may not be done.
pub struct SqliteStore {
    pub(super) writer: Writer,
    alive: AliveMark,
    clock: Arc<dyn Clock>,
}

impl SqliteStore {
    /// Locks the folder (made if it is missing), and opens, checks or makes the database in it.
    ///
    /// A damaged file is moved aside, not deleted, and a fresh one made; `Recovery` says so.
    /// Blocks: after an unclean stop the whole file is read once.
    ///
    /// # Errors
    /// Another process uses the folder; the file was written by a newer version; or the folder
    /// cannot be used. [`StoreError::Full`] if that is for want of room.
    pub fn open(data_dir: &Path, options: Options, clock: Arc<dyn Clock>) -> Result<(Self, Recovery), StoreError> {
        Self::try_open(data_dir, options, clock).map_err(full_if_no_room)
    }

    fn try_open(data_dir: &Path, options: Options, clock: Arc<dyn Clock>) -> Result<(Self, Recovery), StoreError> {
        let folder = Folder::lock(data_dir)?;
        let (connection, meta, recovery) = schema::open(&folder, clock.now())?;
        let alive = folder.alive_mark().map_err(|error| StoreError::Io(error.into()))?;
        let db = Db::new(connection, meta, options, Arc::clone(&clock), folder)?;
        let writer = Writer::start(db).map_err(|error| StoreError::Io(error.into()))?;
        let store = Self { writer, alive, clock };
        store.note_alive();
        Ok((store, recovery))
    }

    /// Says which sinks there are and what servers each gets: what is held for others is given up.
    ///
    /// Cursors of other pairs and unsent results of other sinks go; their dead letters stay, and so
    /// do the names they keep something under, until those are cleared.
    pub async fn declare_sinks(&self, sinks: &BTreeMap<SinkName, Vec<ServerName>>) -> Result<(), StoreError> {
        let sinks = sinks.clone();
        self.write(Mode::Synced, move |db| sinks::declare(db, &sinks)).await
    }

    /// What a sink would not take, oldest first, with the reasons.
    pub async fn dead_letters(&self, sink: &SinkName) -> Result<Vec<DeadLetter>, StoreError> {
        let sink = sink.clone();
        self.read(move |db| sinks::dead_letters(db, &sink)).await
    }

    /// The dead letters of all sinks, by their names, oldest first; also of sinks that are no more.
    ///
    /// Only reads, and so takes no lock: a bridge that runs in this folder does not notice. Blocks.
    ///
    /// # Errors
    /// There is a file, and it cannot be read.
    pub fn look_at_dead_letters(data_dir: &Path) -> Result<Vec<(String, DeadLetter)>, StoreError> {
        let file = Folder::database_in(data_dir);
        if !file.try_exists().map_err(|error| StoreError::Io(error.into()))? {
            return Ok(Vec::new());
        }
        let look = || sinks::all_dead_letters(&beside(&file, OpenFlags::SQLITE_OPEN_READ_ONLY)?);
        look().map_err(Failure::into_read_error)
    }

    /// Drops these dead letters, by sink and id, and says how many of them were there.
    ///
    /// Takes no lock: it is one short write, and a bridge that runs in this folder finds the room that it makes. Blocks.
    ///
    /// # Errors
    /// There is no such file, or it cannot be written; then nothing was dropped.
    pub fn drop_dead_letters(data_dir: &Path, letters: &[(String, String)]) -> Result<usize, StoreError> {
        let drop_all = || -> Result<usize, Failure> {
            let mut connection = beside(&Folder::database_in(data_dir), OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            // What the last bridge left stays as it is, for the next one to judge.
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let mut count = 0;
            for (sink, id) in letters {
                count += usize::from(sinks::forget_dead_letter(&transaction, sink, id)?);
            }
            transaction.commit()?;
            Ok(count)
        };
        drop_all().map_err(Failure::into_write_error)
    }

    /// How full the dead-letter box of each sink is, by the names of the sinks; of those that are not empty.
    pub async fn boxes(&self) -> Result<BTreeMap<String, BoxUsage>, StoreError> {
        self.read(|db| sinks::boxes(db)).await
    }

    /// Lets a dead letter go: it was delivered after all.
    pub async fn forget_dead_letter(&self, sink: &SinkName, id: &str) -> Result<(), StoreError> {
        let (sink, id) = (sink.to_string(), id.to_owned());
        self.write(Mode::Synced, move |db| sinks::forget_dead_letter(&db.connection, &sink, &id).map(|_| ())).await
    }

    /// Notes that the folder is in use now: the next life wants to know how long nobody was there.
    pub fn note_alive(&self) {
        if let Err(error) = self.alive.note(self.clock.now()) {
            tracing::debug!(%error, "the time could not be noted");
        }
    }

    /// Ends the store in good order, so that the next open need not check it. Every later call fails.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.note_alive();
        self.write(Mode::Close, Db::close).await
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut Db) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.writer.ask(Mode::Read, None, work).await
    }

    async fn write<T: Send + 'static>(
        &self,
        mode: Mode,
        work: impl FnMut(&mut Db) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.writer.ask(mode, None, work).await
    }
}

/// A connection beside that of a bridge that may run.
fn beside(file: &Path, flags: OpenFlags) -> Result<Connection, Failure> {
    let connection = Connection::open_with_flags(file, flags)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    Ok(connection)
}

fn full_if_no_room(error: StoreError) -> StoreError {
    let StoreError::Io(cause) = &error else { return error };
    let sql = cause.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error);
    let file = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    // The file beside the change log, which is mapped, has an error of its own for that.
    let is_full = |error: &rusqlite::ffi::Error| {
        error.code == ErrorCode::DiskFull || error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE
    };
    match sql.is_some_and(is_full) || file == Some(std::io::ErrorKind::StorageFull) {
        true => StoreError::Full { reason: cause.to_string() },
        false => error,
    }
}

#[async_trait]
impl Journal for SqliteStore {
    async fn load(&self, server: &ServerName) -> Result<Loaded, StoreError> {
        let server = server.clone();
        self.read(move |db| journal::load(db, &server)).await
    }

    async fn commit(&self, change_set: ChangeSet) -> Result<Committed, StoreError> {
        let mode = if change_set.events.is_empty() { Mode::Lazy } else { Mode::Synced };
        let revs = (change_set.server.clone(), change_set.changes.len() as u64);
        self.writer.ask(mode, Some(revs), move |db| journal::commit(db, &change_set)).await
    }

    async fn read(&self, server: &ServerName, after: Seq, limit: u16) -> Result<Vec<JournalEntry>, StoreError> {
        let server = server.clone();
        self.read(move |db| journal::read(db, &server, after, limit)).await
    }

    async fn position(&self, server: &ServerName, seq: Seq) -> Result<Option<JournalPosition>, StoreError> {
        let server = server.clone();
        self.read(move |db| journal::position(db, &server, seq)).await
    }

    async fn read_all_after(
        &self,
        after: Option<JournalPosition>,
        limit: u16,
    ) -> Result<Vec<(JournalPosition, JournalEntry)>, StoreError> {
        self.read(move |db| journal::read_all_after(db, after, limit)).await
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        self.read(|db| journal::usage(&db.connection)).await
    }
}

#[async_trait]
impl SinkStore for SqliteStore {
    async fn progress(&self, sink: &SinkName) -> Result<BTreeMap<ServerName, SinkProgress>, StoreError> {
        let sink = sink.clone();
        self.read(move |db| sinks::progress(db, &sink)).await
    }

    async fn save_progress(
        &self,
        sink: &SinkName,
        progress: BTreeMap<ServerName, SinkProgress>,
    ) -> Result<(), StoreError> {
        let sink = sink.clone();
        self.write(Mode::Lazy, move |db| sinks::save_progress(db, &sink, &progress)).await
    }

    async fn add_dead_letter(&self, sink: &SinkName, entry: &JournalEntry, reason: &str) -> Result<(), StoreError> {
        let (sink, entry, reason) = (sink.clone(), entry.clone(), reason.to_owned());
        self.write(Mode::Synced, move |db| sinks::add_dead_letter(db, &sink, &entry, &reason)).await
    }

    async fn retained_topics(&self, sink: &SinkName) -> Result<Vec<String>, StoreError> {
        let sink = sink.clone();
        self.read(move |db| sinks::retained_topics(db, &sink)).await
    }

    async fn register_topics(&self, sink: &SinkName, names: Vec<String>) -> Result<(), StoreError> {
        let sink = sink.clone();
        self.write(Mode::Synced, move |db| sinks::register_topics(db, &sink, &names)).await
    }

    async fn unregister_topics(&self, sink: &SinkName, names: Vec<String>) -> Result<(), StoreError> {
        let sink = sink.clone();
        // A name that comes back after a power cut is only cleared once more.
        self.write(Mode::Lazy, move |db| sinks::unregister_topics(db, &sink, &names)).await
    }

    async fn sink_notes(&self, sink: &SinkName) -> Result<SinkNotes, StoreError> {
        let sink = sink.clone();
        self.read(move |db| sinks::sink_notes(db, &sink)).await
    }

    async fn require_retained_scan(&self, sink: &SinkName, is_first_life: bool) -> Result<(), StoreError> {
        let sink = sink.clone();
        self.write(Mode::Synced, move |db| sinks::require_retained_scan(db, &sink, is_first_life)).await
    }

    async fn adopt_retained(
        &self,
        sink: &SinkName,
        names: Vec<String>,
        strangers: Vec<ServerName>,
    ) -> Result<Vec<ServerName>, StoreError> {
        let sink = sink.clone();
        self.write(Mode::Synced, move |db| sinks::adopt_retained(db, &sink, &names, &strangers)).await
    }

    async fn scan_completed(&self, sink: &SinkName) -> Result<(), StoreError> {
        let sink = sink.clone();
        self.write(Mode::Lazy, move |db| sinks::scan_completed(db, &sink)).await
    }

    async fn note_strict_ordering(&self, sink: &SinkName) -> Result<(), StoreError> {
        let sink = sink.clone();
        self.write(Mode::Synced, move |db| sinks::note_strict_ordering(db, &sink)).await
    }

    async fn projection_state(&self, sink: &SinkName) -> Result<Option<String>, StoreError> {
        let sink = sink.clone();
        self.read(move |db| sinks::projection_state(db, &sink)).await
    }

    async fn save_projection_state(&self, sink: &SinkName, projection_state: String) -> Result<(), StoreError> {
        let sink = sink.clone();
        self.write(Mode::Synced, move |db| sinks::save_projection_state(db, &sink, &projection_state)).await
    }
}

#[async_trait]
impl CommandLog for SqliteStore {
    async fn record_commands(
        &self,
        commands: Vec<(LoggedCommand, Option<LoggedResult>)>,
    ) -> Result<Vec<Recorded>, StoreError> {
        self.write(Mode::Synced, move |db| {
            commands.iter().map(|(command, answer)| commands::log(db, command, answer.as_ref())).collect()
        })
        .await
    }

    async fn start_command(&self, server: Option<&ServerName>, id: &CommandId) -> Result<(), StoreError> {
        let (server, id) = (server.cloned(), id.clone());
        self.write(Mode::Synced, move |db| commands::start(db, server.as_ref(), &id)).await
    }

    async fn finish_command(
        &self,
        server: Option<&ServerName>,
        id: &CommandId,
        answer: LoggedResult,
    ) -> Result<(), StoreError> {
        let (server, id) = (server.cloned(), id.clone());
        self.write(Mode::Synced, move |db| commands::finish(db, server.as_ref(), &id, &answer)).await
    }

    async fn unfinished_commands(&self) -> Result<Vec<LoggedCommand>, StoreError> {
        self.read(|db| commands::open(db)).await
    }

    async fn unsent_results(&self, sink: &SinkName, after: i64, limit: u16) -> Result<Vec<UnsentResult>, StoreError> {
        let sink = sink.clone();
        self.read(move |db| commands::unsent(db, &sink, after, limit)).await
    }

    async fn result_backlog(&self, sink: &SinkName) -> Result<ResultBacklog, StoreError> {
        let sink = sink.clone();
        self.read(move |db| commands::waiting(db, &sink)).await
    }

    async fn mark_results_sent(&self, numbers: Vec<i64>) -> Result<(), StoreError> {
        self.write(Mode::Lazy, move |db| commands::sent(db, &numbers)).await
    }
}
