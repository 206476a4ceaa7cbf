//! The delivery state of sinks in SQL.

use std::collections::BTreeMap;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Row};

use super::super::dead_letters::{DeadLetter, DeadLetterUsage, GAP};
use super::SqliteStore;
use super::columns::{from_sql, server_from_sql, to_sql};
use super::db::{Db, Mode};
use super::failure::Failure;
use crate::model::{JournalEntry, Rev, Seq, ServerName, SinkName, Timestamp};
use crate::port::{Progress, RetainedScan, SinkProgress, SinkState, SinkStore, StoreError};

#[async_trait]
impl SinkStore for SqliteStore {
    async fn load_sink(&self, sink: &SinkName) -> Result<SinkState, StoreError> {
        let sink = sink.clone();
        self.writer.ask(Mode::Read, move |db| load(db, &sink)).await
    }

    async fn save_progress(&self, sink: &SinkName, progress: Progress) -> Result<(), StoreError> {
        let sink = sink.clone();
        // Lazily: an older cursor only means that entries come again, with the same ids (I6).
        self.writer.ask(Mode::Lazy, move |db| save_progress(db, &sink, &progress)).await
    }

    async fn add_dead_letter(&self, sink: &SinkName, entry: &JournalEntry, reason: &str) -> Result<(), StoreError> {
        let (sink, entry, reason) = (sink.clone(), entry.clone(), reason.to_owned());
        self.writer.ask(Mode::Synced, move |db| add_dead_letter(db, &sink, &entry, &reason)).await
    }

    async fn register_topics(&self, sink: &SinkName, topics: Vec<String>) -> Result<(), StoreError> {
        let sink = sink.clone();
        self.writer.ask(Mode::Synced, move |db| register_topics(db, &sink, &topics)).await
    }

    async fn unregister_topics(&self, sink: &SinkName, topics: Vec<String>) -> Result<(), StoreError> {
        let sink = sink.clone();
        self.writer
            .ask(Mode::Lazy, move |db| {
                let sql = "DELETE FROM retained_topics WHERE sink = ?1 AND topic = ?2";
                topics.iter().try_for_each(|topic| db.execute(sql, (sink.as_str(), topic)).map(drop))
            })
            .await
    }

    async fn set_retained_scan(&self, sink: &SinkName, scan: Option<RetainedScan>) -> Result<(), StoreError> {
        let sink = sink.clone();
        let scan = scan.map_or(0, |scan| 1 + i64::from(scan.is_first_run));
        let sql = "INSERT INTO sinks (sink, retained_scan) VALUES (?1, ?2) \
                   ON CONFLICT (sink) DO UPDATE SET retained_scan = ?2";
        self.writer.ask(Mode::Synced, move |db| db.execute(sql, (sink.as_str(), scan)).map(drop)).await
    }

    async fn adopt_retained(
        &self,
        sink: &SinkName,
        topics: Vec<String>,
        servers: Vec<ServerName>,
    ) -> Result<Vec<ServerName>, StoreError> {
        let sink = sink.clone();
        self.writer.ask(Mode::Synced, move |db| adopt_retained(db, &sink, &topics, &servers)).await
    }

    async fn set_strict_ordering(&self, sink: &SinkName) -> Result<(), StoreError> {
        let sink = sink.clone();
        let sql = "INSERT INTO sinks (sink, has_strict_ordering) VALUES (?1, 1) \
                   ON CONFLICT (sink) DO UPDATE SET has_strict_ordering = 1";
        self.writer.ask(Mode::Synced, move |db| db.execute(sql, [sink.as_str()]).map(drop)).await
    }

    async fn save_projection_state(&self, sink: &SinkName, state: String) -> Result<(), StoreError> {
        let sink = sink.clone();
        let sql = "INSERT OR REPLACE INTO projections (sink, state) VALUES (?1, ?2)";
        self.writer.ask(Mode::Synced, move |db| db.execute(sql, (sink.as_str(), &state)).map(drop)).await
    }
}

fn load(db: &Db, sink: &SinkName) -> Result<SinkState, Failure> {
    let sink = [sink.as_str()];
    let sql = "SELECT retained_scan, has_strict_ordering FROM sinks WHERE sink = ?1";
    let flags = db.query_row(sql, sink, |row| Ok((row.get::<_, i64>(0)?, row.get(1)?))).optional()?;
    let (scan, has_strict_ordering) = flags.unwrap_or_default();
    let read_progress = |row: &Row<'_>| {
        let progress = SinkProgress { cursor: Seq(from_sql(row.get(1)?)), sent_rev: Rev(from_sql(row.get(2)?)) };
        Ok((server_from_sql(row.get_ref(0)?.as_str()?)?, progress))
    };
    let sql = "SELECT state FROM projections WHERE sink = ?1";
    Ok(SinkState {
        progress: db.query("SELECT server, cursor, sent_rev FROM progress WHERE sink = ?1", sink, read_progress)?,
        retained_topics: db.query("SELECT topic FROM retained_topics WHERE sink = ?1", sink, |row| row.get(0))?,
        retained_scan: (scan > 0).then_some(RetainedScan { is_first_run: scan > 1 }),
        has_strict_ordering,
        projection_state: db.query_row(sql, sink, |row| row.get(0)).optional()?,
    })
}

fn save_progress(db: &mut Db, sink: &SinkName, progress: &Progress) -> Result<(), Failure> {
    let sql = "INSERT OR REPLACE INTO progress (sink, server, cursor, sent_rev) VALUES (?1, ?2, ?3, ?4)";
    for (server, SinkProgress { cursor, sent_rev }) in progress {
        let values = (sink.as_str(), server.as_str(), to_sql(cursor.0), to_sql(sent_rev.0));
        db.execute(sql, values)?;
    }
    db.blocked.on_progress(sink, progress);
    Ok(())
}

fn register_topics(db: &Db, sink: &SinkName, topics: &[String]) -> Result<(), Failure> {
    let sql = "INSERT OR IGNORE INTO retained_topics (sink, topic) VALUES (?1, ?2)";
    topics.iter().try_for_each(|topic| db.execute(sql, (sink.as_str(), topic)).map(drop))
}

fn adopt_retained(
    db: &Db,
    sink: &SinkName,
    topics: &[String],
    servers: &[ServerName],
) -> Result<Vec<ServerName>, Failure> {
    register_topics(db, sink, topics)?;
    db.execute("UPDATE sinks SET retained_scan = min(retained_scan, 1) WHERE sink = ?1", [sink.as_str()])?;
    // A server for which nothing was committed yet may not have its row.
    let sql = "INSERT INTO servers (name, journal_reset) VALUES (?1, 1) \
               ON CONFLICT (name) DO UPDATE SET journal_reset = 1 WHERE journal_reset = 0";
    let mut marked = Vec::new();
    for server in servers {
        if db.execute(sql, [server.as_str()])? > 0 {
            marked.push(server.clone());
        }
    }
    Ok(marked)
}

/// Forgets the cursors of all pairs that are not among these, and the flags and unsent results of other sinks.
pub(super) fn declare(connection: &Connection, sinks: &BTreeMap<SinkName, Vec<ServerName>>) -> Result<(), Failure> {
    // Names have no blanks, so a pair is one text.
    let pairs = sinks.iter().flat_map(|(sink, servers)| servers.iter().map(move |server| format!("{sink} {server}")));
    let pairs = serde_json::to_string(&pairs.collect::<Vec<_>>()).expect("names are plain JSON");
    let sql = "DELETE FROM progress WHERE sink || ' ' || server NOT IN (SELECT value FROM json_each(?1))";
    connection.execute(sql, [pairs])?;
    let names = serde_json::to_string(&sinks.keys().collect::<Vec<_>>()).expect("names are plain JSON");
    for table in ["results", "sinks"] {
        let sql = format!("DELETE FROM {table} WHERE sink NOT IN (SELECT value FROM json_each(?1))");
        connection.execute(&sql, [&names])?;
    }
    Ok(())
}

fn add_dead_letter(db: &mut Db, sink: &SinkName, entry: &JournalEntry, reason: &str) -> Result<(), Failure> {
    let dead_letter = DeadLetter::new(entry, reason, db.clock.now());
    let sql = "SELECT count(*) FROM dead_letters WHERE sink = ?1 AND id <> ?2";
    let others = db.query_row(sql, (sink.as_str(), &dead_letter.id), |row| row.get(0))?;
    if from_sql(others) >= db.options.dead_letters_max {
        return Err(db.blocked.block(sink, entry, db.options.dead_letters_max).into());
    }
    // One that is known may come again: its cursor was not saved before a crash.
    insert(db, sink, &dead_letter, "DO NOTHING")?;
    db.blocked.unblock(sink);
    Ok(())
}

fn insert(db: &Db, sink: &SinkName, dead_letter: &DeadLetter, if_known: &str) -> Result<(), Failure> {
    let sql = format!(
        "INSERT INTO dead_letters (sink, id, server, seq, reason, time, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) \
         ON CONFLICT (sink, id) {if_known}"
    );
    let DeadLetter { id, server, seq, reason, time, body } = dead_letter;
    let (sink, server, body) = (sink.as_str(), server.as_str(), &body[..]);
    db.execute(&sql, (sink, id, server, to_sql(seq.0), reason, time.as_millis(), body)).map(drop)
}

/// Records a gap for each blocked sink that has not had the entries of a server up to `last`, and moves its cursor.
pub(super) fn give_up(db: &Db, server: &ServerName, last: Seq) -> Result<(), Failure> {
    for sink in db.blocked.names() {
        let sql = "SELECT cursor FROM progress WHERE sink = ?1 AND server = ?2";
        let cursor = db.query_row(sql, (sink.as_str(), server.as_str()), |row| row.get(0)).optional()?;
        let Some(cursor) = cursor.map(|cursor| Seq(from_sql(cursor))) else { continue };
        let newest = newest_gap(db, &sink, server)?;
        let gap = DeadLetter::new_gap((server, db.epoch), (cursor, newest.as_ref()), last, db.clock.now());
        let Some(gap) = gap else { continue };
        if newest.is_none_or(|newest| newest.id != gap.id) {
            let first = gap.gap().map(|(first, _)| first.0);
            tracing::error!(%sink, %server, first, "delivery is blocked and the journal is full, giving up events");
        }
        // However full the queue is: no event ends without an acknowledgement or a dead letter (I4).
        insert(db, &sink, &gap, "DO UPDATE SET seq = excluded.seq, time = excluded.time")?;
        let sql = "UPDATE progress SET cursor = ?3 WHERE sink = ?1 AND server = ?2 AND cursor < ?3";
        db.execute(sql, (sink.as_str(), server.as_str(), to_sql(last.0)))?;
    }
    Ok(())
}

fn newest_gap(db: &Db, sink: &SinkName, server: &ServerName) -> Result<Option<DeadLetter>, Failure> {
    let sql = "SELECT id, server, seq, reason, time, body FROM dead_letters \
               WHERE sink = ?1 AND id BETWEEN ?2 AND ?3 ORDER BY id DESC LIMIT 1";
    let from = DeadLetter::gap_prefix(server, db.epoch);
    // The numbers have twelve digits, so ids sort like them.
    let to = format!("{from}:"); // a colon comes next after the digits
    Ok(db.query_row(sql, (sink.as_str(), from, to), dead_letter).optional()?)
}

pub(super) fn dead_letters(db: &Db, sink: &SinkName) -> Result<Vec<DeadLetter>, Failure> {
    let sql = "SELECT id, server, seq, reason, time, body FROM dead_letters WHERE sink = ?1 ORDER BY number";
    Ok(db.query(sql, [sink.as_str()], dead_letter)?)
}

pub(super) fn all_dead_letters(connection: &Connection) -> Result<Vec<(String, DeadLetter)>, Failure> {
    let sql = "SELECT id, server, seq, reason, time, body, sink FROM dead_letters ORDER BY number";
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([], |row| Ok((row.get(6)?, dead_letter(row)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The size of each queue that is not empty, by the names of the sinks.
pub(super) fn dead_letter_usage(db: &Db) -> Result<BTreeMap<String, DeadLetterUsage>, Failure> {
    let read_count =
        |row: &Row<'_>| Ok((row.get(0)?, DeadLetterUsage { dead_letters: from_sql(row.get(1)?), given_up: 0 }));
    let sql = "SELECT sink, count(*) FROM dead_letters GROUP BY sink";
    let mut usage: BTreeMap<String, DeadLetterUsage> = db.query(sql, [], read_count)?;
    // The inner query is answered from the index of ids, without reading bodies.
    let sql = "SELECT id, server, seq, reason, time, body, sink FROM dead_letters \
               WHERE number IN (SELECT number FROM dead_letters WHERE id LIKE '%' || ?1 || '%')";
    let gaps: Vec<(String, DeadLetter)> = db.query(sql, [GAP], |row| Ok((row.get(6)?, dead_letter(row)?)))?;
    for (sink, gap) in gaps {
        if let Some(of_sink) = usage.get_mut(&sink).filter(|_| gap.gap().is_some()) {
            of_sink.given_up += gap.events();
        }
    }
    Ok(usage)
}

fn dead_letter(row: &Row<'_>) -> rusqlite::Result<DeadLetter> {
    Ok(DeadLetter {
        id: row.get(0)?,
        server: server_from_sql(row.get_ref(1)?.as_str()?)?,
        seq: Seq(from_sql(row.get(2)?)),
        reason: row.get(3)?,
        time: Timestamp::from_millis(row.get(4)?),
        body: row.get::<_, Vec<u8>>(5)?.into(),
    })
}

/// Removes a dead letter; returns whether it was there.
pub(super) fn drop_dead_letter(connection: &Connection, sink: &str, id: &str) -> Result<bool, Failure> {
    let mut statement = connection.prepare_cached("DELETE FROM dead_letters WHERE sink = ?1 AND id = ?2")?;
    Ok(statement.execute((sink, id))? > 0)
}
