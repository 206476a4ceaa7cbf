//! What is kept for each sink: its cursors, its dead letters, the names it keeps something under, what was found out
//! about it.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row};

use super::journal::{from_sql, to_sql, unreadable};
use super::thread::{Db, Failure};
use super::{DEAD_LETTERS_MAX, DeadLetter, too_many_dead_letters};
use crate::model::{Entry, Rev, Seq, ServerName, SinkName, Timestamp};
use crate::port::{Progress, Search, SinkNotes};

pub(super) fn progress(db: &Db, sink: &SinkName) -> Result<BTreeMap<ServerName, Progress>, Failure> {
    let sql = "SELECT server, cursor, sent_rev FROM progress WHERE sink = ?1";
    let mut statement = db.connection.prepare_cached(sql)?;
    let rows = statement.query_map([sink.as_str()], |row| {
        let server = ServerName::parse(&row.get::<_, String>(0)?).map_err(|e| unreadable(e.into()))?;
        Ok((server, Progress { cursor: Seq(from_sql(row.get(1)?)), sent_rev: Rev(from_sql(row.get(2)?)) }))
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn settle(db: &Db, sink: &SinkName, progress: &BTreeMap<ServerName, Progress>) -> Result<(), Failure> {
    let sql = "INSERT OR REPLACE INTO progress (sink, server, cursor, sent_rev) VALUES (?1, ?2, ?3, ?4)";
    let mut statement = db.connection.prepare_cached(sql)?;
    for (server, Progress { cursor, sent_rev }) in progress {
        statement.execute((sink.as_str(), server.as_str(), to_sql(cursor.0), to_sql(sent_rev.0)))?;
    }
    Ok(())
}

/// Forgets the cursors of all pairs that are not among these, what was found out about other sinks, and the
/// results waiting for those.
pub(super) fn declare(db: &Db, sinks: &BTreeMap<SinkName, Vec<ServerName>>) -> Result<(), Failure> {
    // Names have no blanks, so a pair is one text.
    let pairs = sinks.iter().flat_map(|(sink, servers)| servers.iter().map(move |server| format!("{sink} {server}")));
    let pairs = serde_json::to_string(&pairs.collect::<Vec<_>>()).expect("names are plain JSON");
    let sql = "DELETE FROM progress WHERE sink || ' ' || server NOT IN (SELECT value FROM json_each(?1))";
    db.connection.execute(sql, [pairs])?;
    let names = serde_json::to_string(&sinks.keys().collect::<Vec<_>>()).expect("names are plain JSON");
    for table in ["results", "sinks"] {
        let sql = format!("DELETE FROM {table} WHERE sink NOT IN (SELECT value FROM json_each(?1))");
        db.connection.execute(&sql, [&names])?;
    }
    Ok(())
}

/// An entry that was buried before (its cursor was not noted yet) keeps its first grave.
pub(super) fn bury(db: &Db, sink: &SinkName, entry: &Entry, reason: &str) -> Result<(), Failure> {
    let sql = "SELECT count(*) FROM dead_letters WHERE sink = ?1 AND id <> ?2";
    let id = entry.id.to_string();
    let count: i64 = db.connection.prepare_cached(sql)?.query_row((sink.as_str(), &id), |row| row.get(0))?;
    if from_sql(count) >= DEAD_LETTERS_MAX {
        return Err(too_many_dead_letters().into());
    }
    let sql = "INSERT INTO dead_letters (sink, id, server, seq, reason, time, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) \
               ON CONFLICT (sink, id) DO NOTHING";
    let body: &[u8] = &entry.body;
    let now = db.clock.now().as_millis();
    db.connection.prepare_cached(sql)?.execute((
        sink.as_str(),
        id,
        entry.server.as_str(),
        to_sql(entry.seq.0),
        reason,
        now,
        body,
    ))?;
    Ok(())
}

pub(super) fn dead_letters(db: &Db, sink: &SinkName) -> Result<Vec<DeadLetter>, Failure> {
    let sql = "SELECT id, server, seq, reason, time, body FROM dead_letters WHERE sink = ?1 ORDER BY number";
    let mut statement = db.connection.prepare_cached(sql)?;
    let rows = statement.query_map([sink.as_str()], dead_letter)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn all_dead_letters(connection: &Connection) -> Result<Vec<(String, DeadLetter)>, Failure> {
    let sql = "SELECT id, server, seq, reason, time, body, sink FROM dead_letters ORDER BY number";
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([], |row| Ok((row.get(6)?, dead_letter(row)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn dead_letter(row: &Row<'_>) -> rusqlite::Result<DeadLetter> {
    Ok(DeadLetter {
        id: row.get(0)?,
        server: ServerName::parse(row.get_ref(1)?.as_str()?).map_err(|e| unreadable(e.into()))?,
        seq: Seq(from_sql(row.get(2)?)),
        reason: row.get(3)?,
        time: Timestamp::from_millis(row.get(4)?),
        body: row.get::<_, Vec<u8>>(5)?.into(),
    })
}

pub(super) fn forget_dead_letter(db: &Db, sink: &SinkName, id: &str) -> Result<(), Failure> {
    let mut statement = db.connection.prepare_cached("DELETE FROM dead_letters WHERE sink = ?1 AND id = ?2")?;
    statement.execute((sink.as_str(), id))?;
    Ok(())
}

pub(super) fn registry(db: &Db, sink: &SinkName) -> Result<Vec<String>, Failure> {
    let mut statement = db.connection.prepare_cached("SELECT name FROM retained WHERE sink = ?1 ORDER BY name")?;
    let names = statement.query_map([sink.as_str()], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(names)
}

pub(super) fn register(db: &Db, sink: &SinkName, names: &[String]) -> Result<(), Failure> {
    let mut statement = db.connection.prepare_cached("INSERT OR IGNORE INTO retained (sink, name) VALUES (?1, ?2)")?;
    for name in names {
        statement.execute((sink.as_str(), name))?;
    }
    Ok(())
}

pub(super) fn unregister(db: &Db, sink: &SinkName, names: &[String]) -> Result<(), Failure> {
    let mut statement = db.connection.prepare_cached("DELETE FROM retained WHERE sink = ?1 AND name = ?2")?;
    for name in names {
        statement.execute((sink.as_str(), name))?;
    }
    Ok(())
}

pub(super) fn memory(db: &Db, sink: &SinkName) -> Result<Option<String>, Failure> {
    let mut statement = db.connection.prepare_cached("SELECT memory FROM memories WHERE sink = ?1")?;
    let memory = statement.query_map([sink.as_str()], |row| row.get(0))?.next().transpose()?;
    Ok(memory)
}

pub(super) fn memorize(db: &Db, sink: &SinkName, memory: &str) -> Result<(), Failure> {
    let sql = "INSERT OR REPLACE INTO memories (sink, memory) VALUES (?1, ?2)";
    db.connection.prepare_cached(sql)?.execute((sink.as_str(), memory))?;
    Ok(())
}

pub(super) fn notes(db: &Db, sink: &SinkName) -> Result<SinkNotes, Failure> {
    let mut statement = db.connection.prepare_cached("SELECT search, is_careful FROM sinks WHERE sink = ?1")?;
    let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get(1)?));
    let Some((search, is_careful)) = statement.query_row([sink.as_str()], read).optional()? else {
        return Ok(SinkNotes::default());
    };
    Ok(SinkNotes { search: (search > 0).then_some(Search { is_of_first_life: search > 1 }), is_careful })
}

pub(super) fn owe_search(db: &Db, sink: &SinkName, is_first_life: bool) -> Result<(), Failure> {
    let sql = "INSERT INTO sinks (sink, search) VALUES (?1, ?2) \
               ON CONFLICT (sink) DO UPDATE SET search = max(search, ?2)";
    db.connection.prepare_cached(sql)?.execute((sink.as_str(), 1 + i64::from(is_first_life)))?;
    Ok(())
}

pub(super) fn take_over(
    db: &Db,
    sink: &SinkName,
    names: &[String],
    strangers: &[ServerName],
) -> Result<Vec<ServerName>, Failure> {
    register(db, sink, names)?;
    let sql = "UPDATE sinks SET search = min(search, 1) WHERE sink = ?1";
    db.connection.prepare_cached(sql)?.execute([sink.as_str()])?;
    // A server that nothing was told of yet may not have its row.
    let sql = "INSERT INTO servers (name, reset) VALUES (?1, 1) \
               ON CONFLICT (name) DO UPDATE SET reset = 1 WHERE reset = 0";
    let mut statement = db.connection.prepare_cached(sql)?;
    let mut owe_it_now = Vec::new();
    for server in strangers {
        if statement.execute([server.as_str()])? > 0 {
            owe_it_now.push(server.clone());
        }
    }
    Ok(owe_it_now)
}

pub(super) fn searched(db: &Db, sink: &SinkName) -> Result<(), Failure> {
    db.connection.prepare_cached("UPDATE sinks SET search = 0 WHERE sink = ?1")?.execute([sink.as_str()])?;
    Ok(())
}

pub(super) fn note_careful(db: &Db, sink: &SinkName) -> Result<(), Failure> {
    let sql = "INSERT INTO sinks (sink, is_careful) VALUES (?1, 1) ON CONFLICT (sink) DO UPDATE SET is_careful = 1";
    db.connection.prepare_cached(sql)?.execute([sink.as_str()])?;
    Ok(())
}
