//! The bridge's state on disk, read while it runs.
//!
//! Tests read it to inject a fault at an exact point: between commit and publish, or between acknowledgement and cursor.
//! The contract itself is asserted from outside only.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dtorrent_peers::process::TIMEOUT;
use rusqlite::{Connection, OpenFlags};
use tokio::time::Instant;

pub struct StateDatabase {
    file: PathBuf,
}

impl StateDatabase {
    pub fn of(data_dir: &Path) -> Self {
        Self { file: data_dir.join("dtorrent.sqlite3") }
    }

    /// Returns the number of a server's last journal entry; 0 if there is none.
    pub fn last_seq(&self, server: &str) -> u64 {
        self.number("SELECT last_seq FROM servers WHERE name = ?1", &[server])
    }

    /// Returns the cursor of a sink as it was last persisted.
    pub fn cursor(&self, sink: &str, server: &str) -> u64 {
        self.number("SELECT cursor FROM progress WHERE sink = ?1 AND server = ?2", &[sink, server])
    }

    /// Returns the number of commands without a result, or with torrents that they have begun to change.
    pub fn unfinished_commands(&self) -> u64 {
        self.number("SELECT count(*) FROM commands WHERE result IS NULL OR begun IS NOT NULL", &[])
    }

    /// Returns the number of commands with torrents that they have begun to change.
    pub fn begun_commands(&self) -> u64 {
        self.number("SELECT count(*) FROM commands WHERE begun IS NOT NULL", &[])
    }

    /// Returns the number of commands that are recorded as running, and ran at so many crashes before.
    pub fn running_commands(&self, crashes: u32) -> u64 {
        let sql = "SELECT count(*) FROM commands WHERE result IS NULL AND is_running AND crashes = CAST(?1 AS INTEGER)";
        self.number(sql, &[&crashes.to_string()])
    }

    /// Returns whether the store records that a sink has received every state.
    pub fn has_sent_every_state(&self, sink: &str) -> bool {
        let newest = self.number("SELECT max(rev) FROM snapshot", &[]);
        newest > 0 && newest == self.number("SELECT max(sent_rev) FROM progress WHERE sink = ?1", &[sink])
    }

    /// Returns the number of torrents whose stored snapshot contains a text.
    pub fn snapshots_with(&self, text: &str) -> u64 {
        self.number("SELECT count(*) FROM snapshot WHERE instr(torrent, ?1) > 0", &[text])
    }

    /// Returns the number of results that a sink has not acknowledged.
    pub fn result_backlog(&self, sink: &str) -> u64 {
        self.number("SELECT count(*) FROM results WHERE sink = ?1", &[sink])
    }

    /// Returns the dead letters of a sink, oldest first: body and reason.
    pub fn dead_letters(&self, sink: &str) -> Vec<(String, String)> {
        let Some(connection) = self.open() else { return Vec::new() };
        let sql = "SELECT CAST(body AS TEXT), reason FROM dead_letters WHERE sink = ?1 ORDER BY number";
        let mut statement = connection.prepare(sql).unwrap();
        let rows = statement.query_map([sink], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }

    /// Adds dead letters to the queue of a sink. The bridge must not run.
    pub fn add_dead_letters(&self, sink: &str, count: u64) {
        let mut connection = Connection::open(&self.file).unwrap();
        let transaction = connection.transaction().unwrap();
        for number in 1..=count {
            let sql = "INSERT INTO dead_letters (sink, id, server, seq, reason, time, body) VALUES (?1, ?2, 'home', 1, 'old', 0, x'7b7d')";
            transaction.execute(sql, (sink, format!("home-00000000-{number:012}"))).unwrap();
        }
        transaction.commit().unwrap();
    }

    pub fn set_dead_letter_bodies(&self, sink: &str, body: &str) {
        let sql = "UPDATE dead_letters SET body = CAST(?2 AS BLOB) WHERE sink = ?1";
        Connection::open(&self.file).unwrap().execute(sql, (sink, body)).unwrap();
    }

    /// Makes all commands older. The bridge must not run.
    pub fn age_commands(&self, by: Duration) {
        let by = i64::try_from(by.as_millis()).unwrap();
        let sql = "UPDATE commands SET received_at = received_at - ?1, expires_at = expires_at - ?1";
        Connection::open(&self.file).unwrap().execute(sql, [by]).unwrap();
    }

    /// Waits until a condition on the state holds.
    pub async fn until(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "timed out waiting until {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Returns the number that a query yields; 0 if there is no row, or no file yet.
    fn number(&self, sql: &str, arguments: &[&str]) -> u64 {
        let read =
            |connection: Connection| connection.query_row(sql, rusqlite::params_from_iter(arguments), |row| row.get(0));
        let number: Option<i64> = self.open().and_then(|connection| read(connection).ok());
        number.map_or(0, |number| u64::try_from(number).unwrap())
    }

    fn open(&self) -> Option<Connection> {
        Connection::open_with_flags(&self.file, OpenFlags::SQLITE_OPEN_READ_ONLY).ok()
    }
}
