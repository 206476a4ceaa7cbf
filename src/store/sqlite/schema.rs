//! The file's format: its marks, its tables, and how a file is opened, checked, migrated and created.
//!
//! A step of `STEPS` is never changed once released: a new format is one more step, and
//! `user_version` counts the steps that a file has been through.

use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, Row, TransactionBehavior};

use super::super::Recovery;
use super::BUSY_TIMEOUT;
use super::columns::from_sql;
use super::failure::Failure;
use super::folder::Folder;
use crate::model::{Epoch, Timestamp};
use crate::port::StoreError;

/// "dTor", which `file` and `PRAGMA application_id` show of these files.
const APPLICATION_ID: i64 = 0x6454_6f72;

/// Numbers are not used twice: entries and revisions are numbered by `servers`, and the rest
/// by AUTOINCREMENT, without which SQLite uses the highest number again after its row is gone.
const STEPS: &[&str] = &[
    include_str!("steps/1_tables.sql"),
    include_str!("steps/2_commit_count.sql"),
    include_str!("steps/3_projection_state.sql"),
    include_str!("steps/4_command_waiters.sql"),
    include_str!("steps/5_sink_flags.sql"),
    include_str!("steps/6_names.sql"),
    include_str!("steps/7_command_digest.sql"),
    include_str!("steps/8_command_crashes.sql"),
    include_str!("steps/9_begun.sql"),
];

/// Opens the directory's database, or creates one where there is none that can be used.
pub(super) fn open(folder: &Folder, now: Timestamp) -> Result<(Connection, Meta, Recovery), StoreError> {
    let io = |error: std::io::Error| StoreError::Io(error.into());
    let was_used = folder.was_used().map_err(io)?;
    // Taken at once: a crash while the file is opened must look like one.
    let was_clean = folder.take_clean_mark().map_err(io)?;
    let last_alive = was_used.then(|| folder.last_alive()).transpose().map_err(io)?;
    let mut recovery = Recovery { was_clean, last_alive, ..Recovery::default() };

    let [size, log_size] = folder.sizes().map_err(io)?;
    let has_log = log_size.is_some_and(|bytes| bytes > 0);
    let found = match size {
        None | Some(0) if !was_used && !has_log => Found::Nothing,
        None => Found::Lost { reason: "the file is gone".to_owned(), is_file: has_log },
        Some(0) => Found::Lost { reason: "the file is empty".to_owned(), is_file: true },
        Some(_) => check(folder, was_used, was_clean)?,
    };
    let mut connection = match found {
        Found::Usable(connection) => connection,
        Found::Nothing => create(folder)?,
        Found::Lost { reason, is_file } => {
            recovery.lost = true;
            recovery.found = Some(reason);
            if is_file {
                recovery.moved_to = Some(folder.move_aside(now).map_err(io)?);
            }
            create(folder)?
        }
    };
    migrate(&mut connection, recovery.lost).map_err(Failure::into_write_error)?;
    // After the file is there: the mark without a file means that a state was lost.
    if !was_used {
        folder.mark_used().map_err(io)?;
    }
    let meta = meta(&connection).map_err(Failure::into_read_error)?;
    recovery.is_new = !has_commits(&connection).map_err(Failure::into_read_error)?;
    recovery.lost |= meta.was_lost;
    Ok((connection, meta, recovery))
}

enum Found {
    Nothing,
    Usable(Connection),
    /// There is no file, or none that can be used.
    Lost {
        reason: String,
        is_file: bool,
    },
}

/// Opens a file that is there and checks it. Only damage is `Lost`; a failure that may pass is an error.
fn check(folder: &Folder, was_used: bool, was_clean: bool) -> Result<Found, StoreError> {
    let database = &folder.database();
    let lost = |reason: String| Ok(Found::Lost { reason, is_file: true });
    let judged = connect(database).and_then(|connection| {
        let mut verdict = judge(&connection, was_used, was_clean).map_err(Failure::into_read_error)?;
        if was_used && matches!(verdict, Verdict::Good) {
            let Meta { epoch, commits, .. } = meta(&connection).map_err(Failure::into_read_error)?;
            let noted = folder.commits_noted(epoch).map_err(|error| StoreError::Io(error.into()))?;
            if commits < noted {
                verdict = Verdict::Bad(format!("the newest changes are gone: {commits} commits of {noted} are there"));
            }
        }
        Ok((connection, verdict))
    });
    match judged {
        Ok((connection, Verdict::Good)) => Ok(Found::Usable(connection)),
        Ok((_, Verdict::Bad(reason))) => lost(reason),
        Ok((_, Verdict::Newer(version))) => Err(StoreError::Corrupt {
            reason: format!(
                "{} was written by a newer dtorrent (format {version}, this one knows {}): use the newer version, or another data_dir",
                database.display(),
                STEPS.len()
            ),
        }),
        Err(StoreError::Corrupt { reason }) => lost(reason),
        Err(error) => Err(error),
    }
}

enum Verdict {
    Good,
    Bad(String),
    Newer(i64),
}

fn judge(connection: &Connection, was_used: bool, was_clean: bool) -> Result<Verdict, Failure> {
    let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    if tables == 0 && !was_used {
        return Ok(Verdict::Good); // killed while it was being created: nothing was ever in it
    }
    if number("PRAGMA application_id")? != APPLICATION_ID {
        return Ok(Verdict::Bad("the file is a database of another program".to_owned()));
    }
    let version = number("PRAGMA user_version")?;
    if version > STEPS.len() as i64 {
        return Ok(Verdict::Newer(version));
    }
    // Reads the whole file, so only where it may be damaged.
    if !was_clean {
        let answer: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if answer != "ok" {
            return Ok(Verdict::Bad(answer));
        }
    }
    Ok(match meta(connection) {
        Ok(_) => Verdict::Good,
        Err(Failure::Sql(rusqlite::Error::QueryReturnedNoRows)) => Verdict::Bad("the file has no epoch".to_owned()),
        Err(error) => return Err(error),
    })
}

fn create(folder: &Folder) -> Result<Connection, StoreError> {
    folder.create_database().map_err(|error| StoreError::Io(error.into()))?;
    connect(&folder.database())
}

fn connect(database: &Path) -> Result<Connection, StoreError> {
    let open = || -> Result<Connection, Failure> {
        let connection = Connection::open(database)?;
        // A damaged file keeps its change log as it was found; `close` empties it.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(64);
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?; // before the first page is written
        connection.pragma_update(None, "journal_mode", "WAL")?; // a commit appends, and readers of the CLI wait for none
        connection.pragma_update(None, "synchronous", "FULL")?; // with NORMAL a power cut takes commits (I3)
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "wal_autocheckpoint", 4_000)?;
        connection.pragma_update(None, "cache_size", -1_024)?; // KiB; other pages come from the system's cache
        Ok(connection)
    };
    open().map_err(Failure::into_read_error)
}

/// Takes the file through the steps it has not seen; a file without any gets its marks too.
fn migrate(connection: &mut Connection, lost: bool) -> Result<(), Failure> {
    // All steps or none, so that a crash leaves a format that is known.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let done: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let done = usize::try_from(done).unwrap_or(0);
    for step in STEPS.iter().skip(done) {
        transaction.execute_batch(step)?;
    }
    if done == 0 {
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        let epoch = i64::from(rand::random::<u32>());
        transaction.execute("INSERT INTO meta VALUES ('epoch', ?1), ('lost', ?2)", (epoch, lost))?;
    }
    if done < STEPS.len() {
        transaction.pragma_update(None, "user_version", STEPS.len() as i64)?;
    }
    Ok(transaction.commit()?)
}

/// The identity of a file, readable in every format.
pub(super) struct Meta {
    /// Random number of the file.
    pub epoch: Epoch,
    /// Number of synced commits.
    pub commits: u64,
    /// An earlier state was lost before this one.
    was_lost: bool,
}

fn meta(connection: &Connection) -> Result<Meta, Failure> {
    let sql = "SELECT value, coalesce((SELECT value FROM meta WHERE key = 'commits'), 0), \
               (SELECT value FROM meta WHERE key = 'lost') FROM meta WHERE key = 'epoch'";
    let read =
        |row: &Row<'_>| Ok(Meta { epoch: Epoch(row.get(0)?), commits: from_sql(row.get(1)?), was_lost: row.get(2)? });
    Ok(connection.query_row(sql, [], read)?)
}

fn has_commits(connection: &Connection) -> Result<bool, Failure> {
    let sql = "SELECT EXISTS (SELECT 1 FROM servers WHERE has_commits)";
    Ok(connection.query_row(sql, [], |row| row.get(0))?)
}
