//! Told and journal in SQL: the commit of a tick, and what of the journal may go.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row};

use super::sinks;
use super::thread::{Db, Failure};
use crate::model::{
    ChangeSet, Committed, Epoch, EventId, InfoHash, JournalEntry, Kind, Rev, Seq, ServerName, SinkName, Snapshot,
    SnapshotTorrent, Timestamp,
};
use crate::port::{JournalPosition, Loaded, StoreError, Usage};

/// Revisions are reserved on disk in blocks of this many.
const REV_BLOCK: u64 = 10_000;
/// At most this many entries go at once, so that no commit waits long for trimming.
const TRIM_BATCH: u64 = 512;

/// What stands in `reset` of a server's row.
const RESET_OWED: i64 = 1;
const RESET_TOLD: i64 = 2;

/// What is known of a server without asking the disk.
pub(super) struct Numbers {
    id: i64,
    rev_used: u64,
    /// Durable: no other run has used or will use what lies between.
    rev_reserved: u64,
}

pub(super) fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn from_sql(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

pub(super) fn hash_from_sql(bytes: &[u8]) -> rusqlite::Result<InfoHash> {
    if let Ok(v1) = <[u8; 20]>::try_from(bytes) {
        return Ok(InfoHash::V1(v1));
    }
    let v2 = <[u8; 32]>::try_from(bytes);
    v2.map(InfoHash::V2).map_err(|_| unreadable("an info-hash has 20 or 32 bytes".into()))
}

pub(super) fn unreadable(error: Box<dyn std::error::Error + Send + Sync>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, error)
}

pub(super) fn numbers(connection: &Connection) -> Result<HashMap<ServerName, Numbers>, Failure> {
    let mut statement = connection.prepare("SELECT name, id, rev_reserved FROM servers")?;
    let rows = statement.query_map([], |row| {
        let name = ServerName::parse(&row.get::<_, String>(0)?).map_err(|e| unreadable(e.into()))?;
        let rev_reserved = from_sql(row.get(2)?);
        // Which of the reserved ones were used is not known, so none of them is used again.
        Ok((name, Numbers { id: row.get(1)?, rev_used: rev_reserved, rev_reserved }))
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Not within a transaction: what is remembered of it must not be rolled back.
pub(super) fn reserve(db: &mut Db, server: &ServerName, count: u64) -> Result<(), Failure> {
    let used = match db.servers.get(server) {
        Some(known) if known.rev_used + count <= known.rev_reserved => return Ok(()),
        Some(known) => known.rev_used,
        None => 0,
    };
    let reserved = used + count.max(REV_BLOCK);
    let id = db.transaction(true, |db| {
        let sql = "INSERT INTO servers (name, rev_reserved) VALUES (?1, ?2) \
                   ON CONFLICT (name) DO UPDATE SET rev_reserved = ?2 RETURNING id";
        let mut statement = db.connection.prepare_cached(sql)?;
        Ok(statement.query_row((server.as_str(), to_sql(reserved)), |row| row.get(0))?)
    })?;
    db.servers.insert(server.clone(), Numbers { id, rev_used: used, rev_reserved: reserved });
    Ok(())
}

/// Gives back what was reserved and not used; nothing may be committed after it.
pub(super) fn release(db: &mut Db) -> Result<(), Failure> {
    for numbers in db.servers.values() {
        let sql = "UPDATE servers SET rev_reserved = ?1 WHERE id = ?2";
        db.connection.execute(sql, (to_sql(numbers.rev_used), numbers.id))?;
    }
    Ok(())
}

pub(super) fn load(db: &Db, server: &ServerName) -> Result<Loaded, Failure> {
    let sql = "SELECT id, state, last_seq, is_used, reset FROM servers WHERE name = ?1";
    let mut statement = db.connection.prepare_cached(sql)?;
    let row = statement
        .query_row([server.as_str()], |row| {
            let (id, state, last_seq) = (row.get::<_, i64>(0)?, row.get::<_, Option<String>>(1)?, row.get(2)?);
            Ok((id, state, last_seq, row.get(3)?, row.get::<_, i64>(4)?))
        })
        .optional()?;
    let needs_reset = row.as_ref().is_some_and(|(.., reset)| *reset == RESET_OWED);
    let Some((id, state, last_seq, true, _)) = row else {
        let (epoch, is_new) = (db.epoch, db.was_new);
        return Ok(Loaded {
            epoch,
            snapshot: Snapshot::new(),
            state: Default::default(),
            last_seq: Seq(0),
            is_new,
            needs_reset,
        });
    };
    let state = state.map(|state| serde_json::from_str(&state).map_err(Failure::corrupt)).transpose()?;
    let sql = "SELECT hash, rev, last_seq, changed_at, torrent, memory FROM told WHERE server = ?1";
    let mut statement = db.connection.prepare_cached(sql)?;
    let snapshot = statement.query_map([id], told_from_row)?.collect::<rusqlite::Result<_>>();
    Ok(Loaded {
        epoch: db.epoch,
        snapshot: snapshot.map_err(damaged)?,
        state: state.unwrap_or_default(),
        last_seq: Seq(from_sql(last_seq)),
        is_new: false,
        needs_reset,
    })
}

/// A row that was read but makes no sense is damage, not a failed read.
fn damaged(error: rusqlite::Error) -> Failure {
    match error {
        rusqlite::Error::FromSqlConversionFailure(_, _, reason) => Failure::corrupt(reason),
        other => other.into(),
    }
}

fn told_from_row(row: &Row<'_>) -> rusqlite::Result<(InfoHash, SnapshotTorrent)> {
    let hash = hash_from_sql(row.get_ref(0)?.as_blob()?)?;
    let snapshot = SnapshotTorrent {
        rev: Rev(from_sql(row.get(1)?)),
        last_seq: Seq(from_sql(row.get(2)?)),
        changed_at: Timestamp::from_millis(row.get(3)?),
        torrent: Arc::new(serde_json::from_str(row.get_ref(4)?.as_str()?).map_err(|e| unreadable(e.into()))?),
        memory: serde_json::from_str(row.get_ref(5)?.as_str()?).map_err(|e| unreadable(e.into()))?,
    };
    Ok((hash, snapshot))
}

pub(super) fn commit(db: &mut Db, change_set: &ChangeSet) -> Result<Committed, Failure> {
    let numbers = db.servers.get_mut(&change_set.server).expect("revisions were reserved, so the server is known");
    let id = numbers.id;
    let mut revs = BTreeMap::new();
    for hash in change_set.changes.keys() {
        numbers.rev_used += 1;
        revs.insert(*hash, Rev(numbers.rev_used));
    }
    assert!(numbers.rev_used <= numbers.rev_reserved, "a revision that is not reserved could be given twice");

    let mut last_seq = {
        let mut statement = db.connection.prepare_cached("SELECT last_seq FROM servers WHERE id = ?1")?;
        Seq(from_sql(statement.query_row([id], |row| row.get(0))?))
    };
    let mut entries = Vec::with_capacity(change_set.events.len());
    let mut newest: BTreeMap<InfoHash, Seq> = BTreeMap::new();
    for new_event in &change_set.events {
        last_seq.0 += 1;
        let rev = match new_event.torrent.as_ref().map(|torrent| torrent.hash) {
            Some(hash) => {
                newest.insert(hash, last_seq);
                match revs.get(&hash) {
                    Some(rev) => *rev,
                    None => told_rev(&db.connection, id, hash)?,
                }
            }
            None => Rev(0),
        };
        entries.push(super::entry(change_set, new_event, db.epoch, last_seq, rev));
    }

    let bytes: u64 = entries.iter().map(|entry| entry.body.len() as u64).sum();
    if bytes > 0 {
        make_room(db, &change_set.server, bytes)?;
        append(&db.connection, id, &entries)?;
    }
    let snapshot = tell(&db.connection, id, change_set, &revs, &newest)?;

    let state = change_set.state.as_ref().map(|state| serde_json::to_string(state).expect("a state is plain JSON"));
    let sql = "UPDATE servers SET last_seq = ?2, state = coalesce(?3, state), is_used = 1, \
               journal_entries = journal_entries + ?4, journal_bytes = journal_bytes + ?5, \
               reset = max(reset, ?6) WHERE id = ?1";
    let mut statement = db.connection.prepare_cached(sql)?;
    let is_reset = change_set.events.iter().any(|new_event| new_event.kind == Kind::JournalReset);
    let reset = if is_reset { RESET_TOLD } else { 0 };
    statement.execute((id, to_sql(last_seq.0), state, to_sql(entries.len() as u64), to_sql(bytes), reset))?;
    Ok(Committed { last_seq, entries, snapshot })
}

fn told_rev(connection: &Connection, server: i64, hash: InfoHash) -> Result<Rev, Failure> {
    let mut statement = connection.prepare_cached("SELECT rev FROM told WHERE server = ?1 AND hash = ?2")?;
    let rev = statement.query_row((server, hash.as_bytes()), |row| row.get(0)).optional()?;
    Ok(Rev(rev.map_or(0, from_sql)))
}

fn append(connection: &Connection, server: i64, entries: &[JournalEntry]) -> Result<(), Failure> {
    let sql = "INSERT INTO journal (server, seq, kind, hash, rev, time, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let mut statement = connection.prepare_cached(sql)?;
    for JournalEntry { seq, kind, hash, rev, time, body, .. } in entries {
        let hash = hash.as_ref().map(InfoHash::as_bytes);
        let body: &[u8] = body;
        statement.execute((server, to_sql(seq.0), kind.as_str(), hash, to_sql(rev.0), time.as_millis(), body))?;
    }
    Ok(())
}

/// Writes what is told from now on, and returns all of it that is different.
fn tell(
    connection: &Connection,
    server: i64,
    change_set: &ChangeSet,
    revs: &BTreeMap<InfoHash, Rev>,
    newest: &BTreeMap<InfoHash, Seq>,
) -> Result<BTreeMap<InfoHash, Option<SnapshotTorrent>>, Failure> {
    let mut snapshot = BTreeMap::new();
    let sql = "INSERT INTO told (server, hash, rev, last_seq, changed_at, torrent, memory) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (server, hash) DO UPDATE SET \
               rev = ?3, last_seq = ?4, changed_at = ?5, torrent = ?6, memory = ?7";
    let mut upsert = connection.prepare_cached(sql)?;
    let mut last_seq_of = connection.prepare_cached("SELECT last_seq FROM told WHERE server = ?1 AND hash = ?2")?;
    let mut delete = connection.prepare_cached("DELETE FROM told WHERE server = ?1 AND hash = ?2")?;
    for (hash, change) in &change_set.changes {
        let Some((torrent, memory)) = change else {
            delete.execute((server, hash.as_bytes()))?;
            snapshot.insert(*hash, None);
            continue;
        };
        let rev = revs[hash];
        let last_seq = match newest.get(hash) {
            Some(seq) => *seq,
            None => {
                let known = last_seq_of.query_row((server, hash.as_bytes()), |row| row.get(0)).optional()?;
                Seq(known.map_or(0, from_sql))
            }
        };
        let torrent_json = serde_json::to_string(torrent).expect("a torrent is plain JSON");
        let memory_json = serde_json::to_string(memory).expect("a memory is plain JSON");
        let (rev_sql, last_seq_sql) = (to_sql(rev.0), to_sql(last_seq.0));
        upsert.execute((
            server,
            hash.as_bytes(),
            rev_sql,
            last_seq_sql,
            change_set.time.as_millis(),
            torrent_json,
            memory_json,
        ))?;
        let (torrent, memory) = (torrent.clone(), memory.clone());
        snapshot.insert(*hash, Some(SnapshotTorrent { torrent, rev, last_seq, changed_at: change_set.time, memory }));
    }
    // An entry about a torrent whose picture stays: only that the entry has to arrive first is new.
    let sql = "UPDATE told SET last_seq = ?3 WHERE server = ?1 AND hash = ?2 \
               RETURNING hash, rev, last_seq, changed_at, torrent, memory";
    let mut note = connection.prepare_cached(sql)?;
    for (hash, seq) in newest.iter().filter(|(hash, _)| !change_set.changes.contains_key(hash)) {
        let row = note.query_row((server, hash.as_bytes(), to_sql(seq.0)), told_from_row).optional();
        snapshot.extend(row.map_err(damaged)?.map(|(hash, torrent)| (hash, Some(torrent))));
    }
    Ok(snapshot)
}

pub(super) fn read(db: &Db, server: &ServerName, after: Seq, limit: u16) -> Result<Vec<JournalEntry>, Failure> {
    let Some(Numbers { id, .. }) = db.servers.get(server) else {
        return Ok(Vec::new());
    };
    let sql = "SELECT seq, kind, hash, rev, time, body FROM journal WHERE server = ?1 AND seq > ?2 \
               ORDER BY seq LIMIT ?3";
    let mut statement = db.connection.prepare_cached(sql)?;
    let rows = statement.query_map((id, to_sql(after.0), limit), |row| entry_from_row(row, server, db.epoch))?;
    rows.collect::<rusqlite::Result<_>>().map_err(damaged)
}

/// Rows are numbered in the order in which they are written; that of the first is given again only when the
/// table is empty.
pub(super) fn position(db: &Db, server: &ServerName, seq: Seq) -> Result<Option<JournalPosition>, Failure> {
    let Some(Numbers { id, .. }) = db.servers.get(server) else {
        return Ok(None);
    };
    let sql = "SELECT rowid FROM journal WHERE server = ?1 AND seq = ?2";
    let mut statement = db.connection.prepare_cached(sql)?;
    Ok(statement.query_row((id, to_sql(seq.0)), |row| row.get(0).map(JournalPosition)).optional()?)
}

pub(super) fn read_all_after(
    db: &Db,
    after: Option<JournalPosition>,
    limit: u16,
) -> Result<Vec<(JournalPosition, JournalEntry)>, Failure> {
    let sql = "SELECT j.seq, j.kind, j.hash, j.rev, j.time, j.body, j.rowid, s.name FROM journal j \
               JOIN servers s ON s.id = j.server WHERE j.rowid > ?1 ORDER BY j.rowid LIMIT ?2";
    let mut statement = db.connection.prepare_cached(sql)?;
    let rows = statement.query_map((after.map_or(0, |position| position.0), limit), |row| {
        let server = ServerName::parse(row.get_ref(7)?.as_str()?).map_err(|e| unreadable(e.into()))?;
        Ok((JournalPosition(row.get(6)?), entry_from_row(row, &server, db.epoch)?))
    })?;
    rows.collect::<rusqlite::Result<_>>().map_err(damaged)
}

fn entry_from_row(row: &Row<'_>, server: &ServerName, epoch: Epoch) -> rusqlite::Result<JournalEntry> {
    let seq = Seq(from_sql(row.get(0)?));
    let kind = row.get_ref(1)?.as_str()?;
    let kind = Kind::parse(kind).ok_or_else(|| unreadable(format!("an entry of the unknown kind `{kind}`").into()))?;
    let id = EventId::Journal { server: server.clone(), epoch, seq };
    let hash = row.get_ref(2)?.as_blob_or_null()?.map(hash_from_sql).transpose()?;
    let (rev, time) = (Rev(from_sql(row.get(3)?)), Timestamp::from_millis(row.get(4)?));
    Ok(JournalEntry::stored(server.clone(), seq, id, kind, hash, rev, time, row.get::<_, Vec<u8>>(5)?.into()))
}

pub(super) fn usage(connection: &Connection) -> Result<Usage, Failure> {
    let sql = "SELECT coalesce(sum(journal_entries), 0), coalesce(sum(journal_bytes), 0) FROM servers";
    let mut statement = connection.prepare_cached(sql)?;
    Ok(statement.query_row([], |row| {
        Ok(Usage { journal_entries: from_sql(row.get(0)?), journal_bytes: from_sql(row.get(1)?) })
    })?)
}

/// Lets go what every sink has until `bytes` of `server` more fit, or says `Full`.
///
/// An empty journal takes a tick that is larger than the budget: otherwise nothing ever would. A sink that stands
/// holds back what others have had only as long as there is room for it, or nobody else is to hear of the server.
fn make_room(db: &Db, server: &ServerName, bytes: u64) -> Result<(), Failure> {
    let max = db.options.journal_bytes_max;
    loop {
        let kept = usage(&db.connection)?.journal_bytes;
        if kept == 0 || kept + bytes <= max {
            return Ok(());
        }
        let excess = kept + bytes - max;
        if trim(&db.connection, excess, None, &[])?.is_some() {
            continue;
        }
        let standing: Vec<SinkName> = db.standing.keys().cloned().collect();
        let gone = match has_others(&db.connection, server, &standing)? {
            true => trim(&db.connection, excess, None, &standing)?,
            false => None,
        };
        let Some((of, last)) = gone else {
            let reason = format!("{kept} bytes wait for sinks, {max} are allowed (journal budget)");
            return Err(StoreError::Full { reason }.into());
        };
        sinks::give_up(db, &of, last)?;
    }
}

/// Whether somebody hears of the server who does not stand; viewers do, where there is no sink at all.
fn has_others(connection: &Connection, server: &ServerName, standing: &[SinkName]) -> Result<bool, Failure> {
    let sql =
        "SELECT count(*), coalesce(sum(sink IN (SELECT value FROM json_each(?2))), 0) FROM progress WHERE server = ?1";
    let mut statement = connection.prepare_cached(sql)?;
    let counts = statement.query_row((server.as_str(), names(standing)), |row| Ok((row.get(0)?, row.get(1)?)));
    let (all, that_stand): (i64, i64) = counts?;
    Ok(!standing.is_empty() && (all == 0 || that_stand < all))
}

fn names(sinks: &[SinkName]) -> String {
    serde_json::to_string(sinks).expect("names are plain JSON")
}

/// Lets go a batch of what may go: above half the budget, and what is too old.
pub(super) fn trim_batch(db: &Db, with_old: bool) -> Result<(), Failure> {
    let excess = usage(&db.connection)?.journal_bytes.saturating_sub(db.options.journal_bytes_max / 2);
    let age = u64::try_from(db.options.journal_age_max.as_millis()).unwrap_or(u64::MAX);
    let before = db.clock.now().as_millis().saturating_sub(to_sql(age));
    if excess > 0 {
        trim(&db.connection, excess, None, &[])?;
    } else if with_old {
        trim(&db.connection, 0, Some(before), &[])?;
    }
    Ok(())
}

/// Deletes at most a batch of the oldest entries that every sink has, but for some sinks: as many as hold `excess`
/// bytes, and those from before `before`. Returns the server and the last that went.
fn trim(
    connection: &Connection,
    excess: u64,
    before: Option<i64>,
    but_for: &[SinkName],
) -> Result<Option<(ServerName, Seq)>, Failure> {
    let sql = "SELECT s.id, s.name, coalesce((SELECT min(cursor) FROM progress WHERE server = s.name AND \
               sink NOT IN (SELECT value FROM json_each(?1))), 9223372036854775807) AS floor FROM servers s \
               JOIN journal j ON j.server = s.id AND j.seq = (SELECT min(seq) FROM journal WHERE server = s.id) \
               WHERE j.seq <= floor ORDER BY j.time, s.id LIMIT 1";
    let mut statement = connection.prepare_cached(sql)?;
    let oldest = statement.query_row([names(but_for)], |row| {
        let name = ServerName::parse(row.get_ref(1)?.as_str()?).map_err(|e| unreadable(e.into()))?;
        Ok((row.get::<_, i64>(0)?, name, row.get::<_, i64>(2)?))
    });
    let Some((server, name, floor)) = oldest.optional()? else {
        return Ok(None);
    };
    let sql = "SELECT seq, time, length(body) FROM journal WHERE server = ?1 AND seq <= ?2 ORDER BY seq LIMIT ?3";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query((server, floor, to_sql(TRIM_BATCH)))?;
    let (mut last, mut count, mut bytes) = (0, 0, 0);
    while let Some(row) = rows.next()? {
        let (seq, time, length) = (row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?);
        let may_go = bytes < excess || before.is_some_and(|before| time < before);
        if !may_go {
            break;
        }
        last = seq;
        count += 1;
        bytes += from_sql(length);
    }
    drop(rows);
    if count == 0 {
        return Ok(None);
    }
    connection.execute("DELETE FROM journal WHERE server = ?1 AND seq <= ?2", (server, last))?;
    let sql = "UPDATE servers SET journal_entries = journal_entries - ?2, journal_bytes = journal_bytes - ?3 \
               WHERE id = ?1";
    connection.execute(sql, (server, to_sql(count), to_sql(bytes)))?;
    Ok(Some((name, Seq(from_sql(last)))))
}
