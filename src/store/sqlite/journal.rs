//! Snapshots and the journal in SQL.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Row};

use super::super::rules::{Holding, Numbered, Trim, make_room};
use super::columns::{damaged, from_sql, hash_from_sql, server_from_sql, sinks_to_sql, to_sql, unreadable};
use super::db::{Db, Mode, Numbers};
use super::failure::Failure;
use super::{SqliteStore, sink_store};
use crate::model::{
    ChangeSet, Committed, Epoch, EventId, InfoHash, JournalEntry, Kind, Rev, Seq, ServerName, ServerState, SinkName,
    Snapshot, SnapshotTorrent, Timestamp,
};
use crate::port::{Journal, JournalPosition, JournalUsage, Loaded, StoreError};

/// Revisions are reserved on disk in blocks of this many.
const REV_BLOCK: u64 = 10_000;
/// Limit on the entries trimmed at once, so that no commit waits long for trimming.
const TRIM_BATCH: u64 = 512;

/// Values of `journal_reset` in a server's row.
const RESET_PENDING: i64 = 1;
const RESET_EMITTED: i64 = 2;

#[async_trait]
impl Journal for SqliteStore {
    async fn load(&self, server: &ServerName) -> Result<Loaded, StoreError> {
        let server = server.clone();
        self.writer.ask(Mode::Read, move |db| load(db, &server)).await
    }

    async fn commit(&self, change_set: ChangeSet) -> Result<Committed, StoreError> {
        // Updates are conflated: after a power cut the next poll finds the same difference, so no fsync is spent on them.
        let (server, revs) = (change_set.server.clone(), change_set.changes.len() as u64);
        let mode = Mode::Commit { server, revs, is_synced: !change_set.events.is_empty() };
        self.writer.ask(mode, move |db| commit(db, &change_set)).await
    }

    async fn read_after(&self, server: &ServerName, after: Seq, limit: u16) -> Result<Vec<JournalEntry>, StoreError> {
        let server = server.clone();
        self.writer.ask(Mode::Read, move |db| read_after(db, &server, after, limit)).await
    }

    async fn position(&self, server: &ServerName, seq: Seq) -> Result<Option<JournalPosition>, StoreError> {
        let server = server.clone();
        self.writer.ask(Mode::Read, move |db| position(db, &server, seq)).await
    }

    async fn read_all_after(
        &self,
        after: Option<JournalPosition>,
        limit: u16,
    ) -> Result<Vec<(JournalPosition, JournalEntry)>, StoreError> {
        self.writer.ask(Mode::Read, move |db| read_all_after(db, after, limit)).await
    }

    async fn usage(&self) -> Result<JournalUsage, StoreError> {
        self.writer.ask(Mode::Read, |db| usage(db)).await
    }
}

pub(super) fn numbers(connection: &Connection) -> Result<HashMap<ServerName, Numbers>, Failure> {
    let mut statement = connection.prepare("SELECT name, id, rev_reserved FROM servers")?;
    let rows = statement.query_map([], |row| {
        let rev_reserved = from_sql(row.get(2)?);
        // Which of the reserved ones were used is not known, so none of them is used again.
        let numbers = Numbers { id: row.get(1)?, rev_used: rev_reserved, rev_reserved };
        Ok((server_from_sql(row.get_ref(0)?.as_str()?)?, numbers))
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Reserves revisions for a server, which is created if it is new. To be called outside a transaction.
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
        Ok(db.query_row(sql, (server.as_str(), to_sql(reserved)), |row| row.get(0))?)
    })?;
    // After the commit, because a rollback would not undo this.
    db.servers.insert(server.clone(), Numbers { id, rev_used: used, rev_reserved: reserved });
    Ok(())
}

/// Returns the position of the newest entry, 0 if there is none.
pub(super) fn last_position(connection: &Connection) -> Result<i64, Failure> {
    Ok(connection.query_row("SELECT coalesce(max(rowid), 0) FROM journal", [], |row| row.get(0))?)
}

/// Gives back revisions that were reserved and not used; nothing may be committed after it.
pub(super) fn release(db: &mut Db) -> Result<(), Failure> {
    for numbers in db.servers.values() {
        let sql = "UPDATE servers SET rev_reserved = ?1 WHERE id = ?2";
        db.connection.execute(sql, (to_sql(numbers.rev_used), numbers.id))?;
    }
    Ok(())
}

fn load(db: &Db, server: &ServerName) -> Result<Loaded, Failure> {
    let sql = "SELECT id, state, last_seq, journal_reset FROM servers WHERE name = ?1";
    let read = |row: &Row<'_>| {
        Ok((row.get::<_, i64>(0)?, row.get::<_, Option<String>>(1)?, row.get(2)?, row.get::<_, i64>(3)?))
    };
    let Some((id, state, last_seq, reset)) = db.query_row(sql, [server.as_str()], read).optional()? else {
        let (snapshot, state) = (Snapshot::new(), ServerState::default());
        return Ok(Loaded { epoch: db.epoch, snapshot, state, last_seq: Seq(0), needs_reset: false });
    };
    let state = state.map(|state| serde_json::from_str(&state).map_err(Failure::corrupt)).transpose()?;
    let sql = "SELECT hash, rev, last_seq, changed_at, torrent, diff_state FROM snapshot WHERE server = ?1";
    Ok(Loaded {
        epoch: db.epoch,
        snapshot: db.query(sql, [id], snapshot_row).map_err(damaged)?,
        state: state.unwrap_or_default(),
        last_seq: Seq(from_sql(last_seq)),
        needs_reset: reset == RESET_PENDING,
    })
}

fn snapshot_row(row: &Row<'_>) -> rusqlite::Result<(InfoHash, SnapshotTorrent)> {
    let hash = hash_from_sql(row.get_ref(0)?.as_blob()?)?;
    let torrent = SnapshotTorrent {
        rev: Rev(from_sql(row.get(1)?)),
        last_seq: Seq(from_sql(row.get(2)?)),
        changed_at: Timestamp::from_millis(row.get(3)?),
        torrent: Arc::new(serde_json::from_str(row.get_ref(4)?.as_str()?).map_err(unreadable)?),
        diff_state: serde_json::from_str(row.get_ref(5)?.as_str()?).map_err(unreadable)?,
    };
    Ok((hash, torrent))
}

fn commit(db: &mut Db, change_set: &ChangeSet) -> Result<Committed, Failure> {
    let known = db.servers.get(&change_set.server);
    // The writer has reserved them before the transaction began.
    let Numbers { id, rev_used, rev_reserved } = *known.expect("revisions were reserved, so the server is known");
    let last_seq = db.query_row("SELECT last_seq FROM servers WHERE id = ?1", [id], |row| row.get(0))?;
    let last_seq = Seq(from_sql(last_seq));
    let current_rev = |hash| current_rev(db, id, hash);
    let numbered = Numbered::new(change_set, db.epoch, (last_seq, Rev(rev_used)), current_rev)?;
    assert!(numbered.last_rev.0 <= rev_reserved, "a revision that is not reserved could be assigned twice");
    // Also if the commit fails from here on: its revisions may have been written before a rollback.
    db.servers.insert(change_set.server.clone(), Numbers { id, rev_used: numbered.last_rev.0, rev_reserved });

    let bytes = numbered.bytes();
    if bytes > 0 {
        let max = db.options.journal_bytes_max;
        make_room(db, &change_set.server, bytes, max)?;
        append(db, id, &numbered.entries)?;
    }
    let snapshot = write_snapshot(&db.connection, id, change_set, &numbered)?;

    let state = change_set.state.as_ref().map(|state| serde_json::to_string(state).expect("a state is plain JSON"));
    let sql = "UPDATE servers SET last_seq = ?2, state = coalesce(?3, state), has_commits = 1, \
               journal_entries = journal_entries + ?4, journal_bytes = journal_bytes + ?5, \
               journal_reset = max(journal_reset, ?6) WHERE id = ?1";
    let Numbered { entries, last_seq, .. } = numbered;
    let is_reset = change_set.events.iter().any(|new_event| new_event.kind == Kind::JournalReset);
    let reset = if is_reset { RESET_EMITTED } else { 0 };
    db.execute(sql, (id, to_sql(last_seq.0), state, to_sql(entries.len() as u64), to_sql(bytes), reset))?;
    Ok(Committed { last_seq, entries, snapshot })
}

fn current_rev(db: &Db, server: i64, hash: InfoHash) -> Result<Option<Rev>, Failure> {
    let sql = "SELECT rev FROM snapshot WHERE server = ?1 AND hash = ?2";
    let rev = db.query_row(sql, (server, hash.as_bytes()), |row| row.get(0)).optional()?;
    Ok(rev.map(|rev| Rev(from_sql(rev))))
}

fn append(db: &mut Db, server: i64, entries: &[JournalEntry]) -> Result<(), Failure> {
    let sql = "INSERT INTO journal (rowid, server, seq, kind, hash, rev, time, body) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let mut statement = db.connection.prepare_cached(sql)?;
    for JournalEntry { seq, kind, hash, rev, time, body, .. } in entries {
        // Not left to SQLite, which numbers a row from the newest that is still there: the newest may be trimmed while a
        // sink holds back older ones of another server, and a reader behind it would miss the next entries.
        db.last_position += 1;
        let (seq, rev, time, body) = (to_sql(seq.0), to_sql(rev.0), time.as_millis(), &body[..]);
        let hash = hash.as_ref().map(InfoHash::as_bytes);
        statement.execute((db.last_position, server, seq, kind.as_str(), hash, rev, time, body))?;
    }
    Ok(())
}

/// Writes the new snapshot rows, and returns every row that is different.
fn write_snapshot(
    connection: &Connection,
    server: i64,
    change_set: &ChangeSet,
    Numbered { revs, newest, .. }: &Numbered,
) -> Result<BTreeMap<InfoHash, Option<SnapshotTorrent>>, Failure> {
    let mut snapshot = BTreeMap::new();
    let sql = "INSERT INTO snapshot (server, hash, rev, last_seq, changed_at, torrent, diff_state) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (server, hash) DO UPDATE SET \
               rev = ?3, last_seq = coalesce(?8, last_seq), changed_at = ?5, torrent = ?6, diff_state = ?7 \
               RETURNING last_seq";
    let mut upsert = connection.prepare_cached(sql)?;
    let mut delete = connection.prepare_cached("DELETE FROM snapshot WHERE server = ?1 AND hash = ?2")?;
    for (hash, change) in &change_set.changes {
        let Some((torrent, diff_state)) = change else {
            delete.execute((server, hash.as_bytes()))?;
            snapshot.insert(*hash, None);
            continue;
        };
        let (rev, newest) = (revs[hash], newest.get(hash).map(|seq| to_sql(seq.0)));
        let torrent_json = serde_json::to_string(torrent).expect("a torrent is plain JSON");
        let diff_json = serde_json::to_string(diff_state).expect("a diff state is plain JSON");
        let changed_at = change_set.time;
        let values = (
            server,
            hash.as_bytes(),
            to_sql(rev.0),
            newest.unwrap_or(0),
            changed_at.as_millis(),
            torrent_json,
            diff_json,
            newest,
        );
        let last_seq = Seq(from_sql(upsert.query_row(values, |row| row.get(0))?));
        let (torrent, diff_state) = (torrent.clone(), diff_state.clone());
        snapshot.insert(*hash, Some(SnapshotTorrent { torrent, rev, last_seq, changed_at, diff_state }));
    }
    // An event of a torrent whose row stays: only that the entry has to arrive first is new.
    let sql = "UPDATE snapshot SET last_seq = ?3 WHERE server = ?1 AND hash = ?2 \
               RETURNING hash, rev, last_seq, changed_at, torrent, diff_state";
    let mut update = connection.prepare_cached(sql)?;
    for (hash, seq) in newest.iter().filter(|(hash, _)| !change_set.changes.contains_key(hash)) {
        let row = update.query_row((server, hash.as_bytes(), to_sql(seq.0)), snapshot_row).optional();
        snapshot.extend(row.map_err(damaged)?.map(|(hash, torrent)| (hash, Some(torrent))));
    }
    Ok(snapshot)
}

fn read_after(db: &Db, server: &ServerName, after: Seq, limit: u16) -> Result<Vec<JournalEntry>, Failure> {
    let Some(Numbers { id, .. }) = db.servers.get(server) else { return Ok(Vec::new()) };
    let sql = "SELECT seq, kind, hash, rev, time, body FROM journal WHERE server = ?1 AND seq > ?2 \
               ORDER BY seq LIMIT ?3";
    let read = |row: &Row<'_>| entry_from_row(row, server, db.epoch);
    let page =
        db.query_page(sql, (id, to_sql(after.0), limit), read, db.options.pages.entries, |entry| entry.body.len());
    page.map_err(damaged)
}

fn position(db: &Db, server: &ServerName, seq: Seq) -> Result<Option<JournalPosition>, Failure> {
    let Some(Numbers { id, .. }) = db.servers.get(server) else { return Ok(None) };
    let sql = "SELECT rowid FROM journal WHERE server = ?1 AND seq = ?2";
    Ok(db.query_row(sql, (id, to_sql(seq.0)), |row| row.get(0).map(JournalPosition)).optional()?)
}

fn read_all_after(
    db: &Db,
    after: Option<JournalPosition>,
    limit: u16,
) -> Result<Vec<(JournalPosition, JournalEntry)>, Failure> {
    let sql = "SELECT j.seq, j.kind, j.hash, j.rev, j.time, j.body, j.rowid, s.name FROM journal j \
               JOIN servers s ON s.id = j.server WHERE j.rowid > ?1 ORDER BY j.rowid LIMIT ?2";
    let read = |row: &Row<'_>| {
        let server = server_from_sql(row.get_ref(7)?.as_str()?)?;
        Ok((JournalPosition(row.get(6)?), entry_from_row(row, &server, db.epoch)?))
    };
    let after = after.map_or(0, |position| position.0);
    db.query_page(sql, (after, limit), read, db.options.pages.entries, |(_, entry)| entry.body.len()).map_err(damaged)
}

fn entry_from_row(row: &Row<'_>, server: &ServerName, epoch: Epoch) -> rusqlite::Result<JournalEntry> {
    let id = EventId::Journal { server: server.clone(), epoch, seq: Seq(from_sql(row.get(0)?)) };
    let kind = row.get_ref(1)?.as_str()?;
    let kind = Kind::parse(kind).ok_or_else(|| unreadable(format!("unknown kind of event `{kind}`")))?;
    let hash = row.get_ref(2)?.as_blob_or_null()?.map(hash_from_sql).transpose()?;
    let (rev, time) = (Rev(from_sql(row.get(3)?)), Timestamp::from_millis(row.get(4)?));
    Ok(JournalEntry::stored(id, kind, hash, rev, time, row.get::<_, Vec<u8>>(5)?.into()))
}

pub(super) fn usage(db: &Db) -> Result<JournalUsage, Failure> {
    let sql = "SELECT coalesce(sum(journal_entries), 0), coalesce(sum(journal_bytes), 0) FROM servers";
    let read = |row: &Row<'_>| Ok(JournalUsage { entries: from_sql(row.get(0)?), bytes: from_sql(row.get(1)?) });
    Ok(db.query_row(sql, [], read)?)
}

impl Trim for Db {
    type Error = Failure;

    fn bytes(&self) -> Result<u64, Failure> {
        Ok(usage(self)?.bytes)
    }

    fn trim(&mut self, excess: u64, holding: Holding) -> Result<Option<(ServerName, Seq)>, Failure> {
        let exempt = match holding {
            Holding::All => Vec::new(),
            Holding::Unblocked => self.blocked.names(),
        };
        trim(self, excess, None, &exempt)
    }

    fn is_held_for_blocked_sinks_alone(&self, server: &ServerName) -> Result<bool, Failure> {
        let sql = "SELECT count(*), coalesce(sum(sink IN (SELECT value FROM json_each(?2))), 0) FROM progress \
                   WHERE server = ?1";
        let values = (server.as_str(), sinks_to_sql(&self.blocked.names()));
        let (all, blocked): (i64, i64) = self.query_row(sql, values, |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(!self.blocked.is_empty() && (all == 0 || blocked < all))
    }

    fn give_up(&mut self, server: &ServerName, last: Seq) -> Result<(), Failure> {
        sink_store::give_up(self, server, last)
    }
}

/// Trims a batch of entries that every sink has: above the target, and with `with_old` those that are too old.
pub(super) fn trim_batch(db: &Db, with_old: bool) -> Result<(), Failure> {
    let excess = usage(db)?.bytes.saturating_sub(db.options.journal_bytes_target());
    let age = u64::try_from(db.options.journal_age_max.as_millis()).unwrap_or(u64::MAX);
    let before = db.clock.now().as_millis().saturating_sub(to_sql(age));
    if excess > 0 {
        trim(db, excess, None, &[])?;
    } else if with_old {
        trim(db, 0, Some(before), &[])?;
    }
    Ok(())
}

/// Deletes at most a batch of the oldest entries that no sink holds back, sinks in `exempt` aside: as many as
/// hold `excess` bytes, and those from before `before`. Returns the server and the last that went.
fn trim(db: &Db, excess: u64, before: Option<i64>, exempt: &[SinkName]) -> Result<Option<(ServerName, Seq)>, Failure> {
    // The oldest entry of each server that no cursor is before; of these the oldest of all. A server without a sink has no
    // cursor, and so no floor.
    let sql = "SELECT s.id, s.name, coalesce((SELECT min(cursor) FROM progress WHERE server = s.name AND \
               sink NOT IN (SELECT value FROM json_each(?1))), 9223372036854775807) AS floor FROM servers s \
               JOIN journal j ON j.server = s.id AND j.seq = (SELECT min(seq) FROM journal WHERE server = s.id) \
               WHERE j.seq <= floor ORDER BY j.time, s.id LIMIT 1";
    let oldest = db.query_row(sql, [sinks_to_sql(exempt)], |row| {
        Ok((row.get::<_, i64>(0)?, server_from_sql(row.get_ref(1)?.as_str()?)?, row.get::<_, i64>(2)?))
    });
    let Some((server, name, floor)) = oldest.optional()? else { return Ok(None) };
    let sql = "SELECT seq, time, length(body) FROM journal WHERE server = ?1 AND seq <= ?2 ORDER BY seq LIMIT ?3";
    let mut statement = db.connection.prepare_cached(sql)?;
    let mut rows = statement.query((server, floor, to_sql(TRIM_BATCH)))?;
    let (mut last, mut count, mut bytes) = (0, 0, 0);
    while let Some(row) = rows.next()? {
        let (seq, time, length) = (row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?);
        if bytes >= excess && before.is_none_or(|before| time >= before) {
            break;
        }
        last = seq;
        count += 1;
        bytes += from_sql(length);
    }
    if count == 0 {
        return Ok(None);
    }
    // The sums are kept in the row of the server, because counting bodies would read the whole journal.
    db.execute("DELETE FROM journal WHERE server = ?1 AND seq <= ?2", (server, last))?;
    let sql = "UPDATE servers SET journal_entries = journal_entries - ?2, journal_bytes = journal_bytes - ?3 \
               WHERE id = ?1";
    db.execute(sql, (server, to_sql(count), to_sql(bytes)))?;
    Ok(Some((name, Seq(from_sql(last)))))
}
