//! What is kept for each sink: its cursors, its dead letters, the names it keeps something under, what was found out
//! about it.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, Row};

use super::journal::{from_sql, to_sql, unreadable};
use super::thread::{Db, Failure};
use super::{BoxUsage, DeadLetter, GAP, gap_letter, newly_given_up, too_many_dead_letters};
use crate::model::{JournalEntry, Rev, Seq, ServerName, SinkName, Timestamp};
use crate::port::{RetainedScan, SinkNotes, SinkProgress};

pub(super) fn progress(db: &Db, sink: &SinkName) -> Result<BTreeMap<ServerName, SinkProgress>, Failure> {
    let sql = "SELECT server, cursor, sent_rev FROM progress WHERE sink = ?1";
    let mut statement = db.connection.prepare_cached(sql)?;
    let rows = statement.query_map([sink.as_str()], |row| {
        let server = ServerName::parse(&row.get::<_, String>(0)?).map_err(|e| unreadable(e.into()))?;
        Ok((server, SinkProgress { cursor: Seq(from_sql(row.get(1)?)), sent_rev: Rev(from_sql(row.get(2)?)) }))
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn save_progress(
    db: &mut Db,
    sink: &SinkName,
    progress: &BTreeMap<ServerName, SinkProgress>,
) -> Result<(), Failure> {
    let sql = "INSERT OR REPLACE INTO progress (sink, server, cursor, sent_rev) VALUES (?1, ?2, ?3, ?4)";
    for (server, SinkProgress { cursor, sent_rev }) in progress {
        let values = (sink.as_str(), server.as_str(), to_sql(cursor.0), to_sql(sent_rev.0));
        db.connection.prepare_cached(sql)?.execute(values)?;
    }
    let is_over = |(server, seq): &(ServerName, Seq)| progress.get(server).is_some_and(|noted| noted.cursor >= *seq);
    if db.standing.get(sink).is_some_and(is_over) {
        db.standing.remove(sink);
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
pub(super) fn add_dead_letter(db: &mut Db, sink: &SinkName, entry: &JournalEntry, reason: &str) -> Result<(), Failure> {
    let sql = "SELECT count(*) FROM dead_letters WHERE sink = ?1 AND id <> ?2";
    let id = entry.id.to_string();
    let count: i64 = db.connection.prepare_cached(sql)?.query_row((sink.as_str(), &id), |row| row.get(0))?;
    if from_sql(count) >= db.options.dead_letters_max {
        db.standing.insert(sink.clone(), (entry.server.clone(), entry.seq));
        return Err(too_many_dead_letters(db.options.dead_letters_max).into());
    }
    let (server, seq, reason, body) = (entry.server.clone(), entry.seq, reason.to_owned(), entry.body.clone());
    let letter = DeadLetter { id, server, seq, reason, time: db.clock.now(), body };
    insert(db, sink, &letter, "DO NOTHING")?;
    db.standing.remove(sink);
    Ok(())
}

fn insert(db: &Db, sink: &SinkName, letter: &DeadLetter, if_known: &str) -> Result<(), Failure> {
    let sql = format!(
        "INSERT INTO dead_letters (sink, id, server, seq, reason, time, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) \
         ON CONFLICT (sink, id) {if_known}"
    );
    let DeadLetter { id, server, seq, reason, time, body } = letter;
    let (time, body) = (time.as_millis(), &body[..]);
    db.connection.prepare_cached(&sql)?.execute((
        sink.as_str(),
        id,
        server.as_str(),
        to_sql(seq.0),
        reason,
        time,
        body,
    ))?;
    Ok(())
}

/// Notes that the entries of a server up to `last` go, which sinks that stand have not had: a letter says so, and
/// their cursors hold nothing back that is not there.
pub(super) fn give_up(db: &Db, server: &ServerName, last: Seq) -> Result<(), Failure> {
    for sink in db.standing.keys() {
        let sql = "SELECT cursor FROM progress WHERE sink = ?1 AND server = ?2";
        let mut statement = db.connection.prepare_cached(sql)?;
        let cursor = statement.query_row((sink.as_str(), server.as_str()), |row| row.get(0)).optional()?;
        let Some(cursor) = cursor.map(|cursor| Seq(from_sql(cursor))) else { continue };
        let sql = "SELECT id, server, seq, reason, time, body FROM dead_letters \
                   WHERE sink = ?1 AND id BETWEEN ?2 AND ?3 ORDER BY id DESC LIMIT 1";
        let mut statement = db.connection.prepare_cached(sql)?;
        // A colon comes next after the digits.
        let (from, to) = (format!("{server}-{}{GAP}", db.epoch), format!("{server}-{}{GAP}:", db.epoch));
        let gap = statement.query_row((sink.as_str(), from, to), dead_letter).optional()?;
        let Some((first, last)) = newly_given_up(cursor, gap.as_ref(), last) else { continue };
        let letter = gap_letter(server, db.epoch, (first, last), db.clock.now());
        if gap.is_none_or(|gap| gap.id != letter.id) {
            tracing::error!(
                %sink, %server, first = first.0,
                "the sink stands and the journal is full: from here on events are given up for it, others go on"
            );
        }
        insert(db, sink, &letter, "DO UPDATE SET seq = excluded.seq, time = excluded.time")?;
        let sql = "UPDATE progress SET cursor = ?3 WHERE sink = ?1 AND server = ?2 AND cursor < ?3";
        db.connection.prepare_cached(sql)?.execute((sink.as_str(), server.as_str(), to_sql(last.0)))?;
    }
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

/// How full each box is that is not empty, by the names of the sinks.
pub(super) fn boxes(db: &Db) -> Result<BTreeMap<String, BoxUsage>, Failure> {
    let mut boxes: BTreeMap<String, BoxUsage> = BTreeMap::new();
    let mut statement = db.connection.prepare_cached("SELECT sink, count(*) FROM dead_letters GROUP BY sink")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        boxes.insert(row.get(0)?, BoxUsage { letters: from_sql(row.get(1)?), given_up: 0 });
    }
    // Found in the index, without a look at what lies in them.
    let sql = "SELECT id, server, seq, reason, time, body, sink FROM dead_letters \
               WHERE number IN (SELECT number FROM dead_letters WHERE id LIKE '%' || ?1 || '%')";
    let mut statement = db.connection.prepare_cached(sql)?;
    let mut rows = statement.query([GAP])?;
    while let Some(row) = rows.next()? {
        let letter = dead_letter(row)?;
        if let Some(of_sink) = boxes.get_mut(&row.get::<_, String>(6)?).filter(|_| letter.gap().is_some()) {
            of_sink.given_up += letter.events();
        }
    }
    Ok(boxes)
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

/// Returns whether it was there.
pub(super) fn forget_dead_letter(connection: &Connection, sink: &str, id: &str) -> Result<bool, Failure> {
    let mut statement = connection.prepare_cached("DELETE FROM dead_letters WHERE sink = ?1 AND id = ?2")?;
    Ok(statement.execute((sink, id))? > 0)
}

pub(super) fn retained_topics(db: &Db, sink: &SinkName) -> Result<Vec<String>, Failure> {
    let mut statement = db.connection.prepare_cached("SELECT name FROM retained WHERE sink = ?1 ORDER BY name")?;
    let names = statement.query_map([sink.as_str()], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(names)
}

pub(super) fn register_topics(db: &Db, sink: &SinkName, names: &[String]) -> Result<(), Failure> {
    let mut statement = db.connection.prepare_cached("INSERT OR IGNORE INTO retained (sink, name) VALUES (?1, ?2)")?;
    for name in names {
        statement.execute((sink.as_str(), name))?;
    }
    Ok(())
}

pub(super) fn unregister_topics(db: &Db, sink: &SinkName, names: &[String]) -> Result<(), Failure> {
    let mut statement = db.connection.prepare_cached("DELETE FROM retained WHERE sink = ?1 AND name = ?2")?;
    for name in names {
        statement.execute((sink.as_str(), name))?;
    }
    Ok(())
}

pub(super) fn projection_state(db: &Db, sink: &SinkName) -> Result<Option<String>, Failure> {
    let mut statement = db.connection.prepare_cached("SELECT memory FROM memories WHERE sink = ?1")?;
    let projection_state = statement.query_map([sink.as_str()], |row| row.get(0))?.next().transpose()?;
    Ok(projection_state)
}

pub(super) fn save_projection_state(db: &Db, sink: &SinkName, projection_state: &str) -> Result<(), Failure> {
    let sql = "INSERT OR REPLACE INTO memories (sink, memory) VALUES (?1, ?2)";
    db.connection.prepare_cached(sql)?.execute((sink.as_str(), projection_state))?;
    Ok(())
}

pub(super) fn sink_notes(db: &Db, sink: &SinkName) -> Result<SinkNotes, Failure> {
    let mut statement = db.connection.prepare_cached("SELECT search, is_careful FROM sinks WHERE sink = ?1")?;
    let read = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get(1)?));
    let Some((search, is_strict_ordering)) = statement.query_row([sink.as_str()], read).optional()? else {
        return Ok(SinkNotes::default());
    };
    Ok(SinkNotes { search: (search > 0).then_some(RetainedScan { is_of_first_life: search > 1 }), is_strict_ordering })
}

pub(super) fn require_retained_scan(db: &Db, sink: &SinkName, is_first_life: bool) -> Result<(), Failure> {
    let sql = "INSERT INTO sinks (sink, search) VALUES (?1, ?2) \
               ON CONFLICT (sink) DO UPDATE SET search = max(search, ?2)";
    db.connection.prepare_cached(sql)?.execute((sink.as_str(), 1 + i64::from(is_first_life)))?;
    Ok(())
}

pub(super) fn adopt_retained(
    db: &Db,
    sink: &SinkName,
    names: &[String],
    strangers: &[ServerName],
) -> Result<Vec<ServerName>, Failure> {
    register_topics(db, sink, names)?;
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

pub(super) fn scan_completed(db: &Db, sink: &SinkName) -> Result<(), Failure> {
    db.connection.prepare_cached("UPDATE sinks SET search = 0 WHERE sink = ?1")?.execute([sink.as_str()])?;
    Ok(())
}

pub(super) fn note_strict_ordering(db: &Db, sink: &SinkName) -> Result<(), Failure> {
    let sql = "INSERT INTO sinks (sink, is_careful) VALUES (?1, 1) ON CONFLICT (sink) DO UPDATE SET is_careful = 1";
    db.connection.prepare_cached(sql)?.execute([sink.as_str()])?;
    Ok(())
}
