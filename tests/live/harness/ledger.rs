//! What the bridge has written down, read over its shoulder.
//!
//! It tells a test when to strike: between the commit and the publish, between the acknowledgement and
//! the cursor. Nothing is concluded from it about what was promised.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dtorrent::demo::process::PATIENCE;
use rusqlite::{Connection, OpenFlags};
use tokio::time::Instant;

pub struct Ledger {
    file: PathBuf,
}

impl Ledger {
    pub fn of(data_dir: &Path) -> Self {
        Self { file: data_dir.join("dtorrent.sqlite3") }
    }

    /// The number of the last entry of a server, 0 if there is none.
    pub fn last_seq(&self, server: &str) -> u64 {
        self.number("SELECT last_seq FROM servers WHERE name = ?1", &[server])
    }

    /// How far a sink has got, as far as that was noted.
    pub fn cursor(&self, sink: &str, server: &str) -> u64 {
        self.number("SELECT cursor FROM progress WHERE sink = ?1 AND server = ?2", &[sink, server])
    }

    /// How many commands have no result yet.
    pub fn open_commands(&self) -> u64 {
        self.number("SELECT count(*) FROM commands WHERE result IS NULL", &[])
    }

    /// How many results a sink has not taken yet, as far as that was noted.
    pub fn results_waiting(&self, sink: &str) -> u64 {
        self.number("SELECT count(*) FROM results WHERE sink = ?1", &[sink])
    }

    /// Bodies and reasons of what a sink would not take, oldest first.
    pub fn dead_letters(&self, sink: &str) -> Vec<(String, String)> {
        let Some(connection) = self.open() else { return Vec::new() };
        let sql = "SELECT CAST(body AS TEXT), reason FROM dead_letters WHERE sink = ?1 ORDER BY number";
        let mut statement = connection.prepare(sql).unwrap();
        let rows = statement.query_map([sink], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }

    /// Waits until a number in it is right.
    pub async fn until(&self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "waited in vain until {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// 0 where there is no such row, or no such file yet.
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
