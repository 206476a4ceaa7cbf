//! The command log in SQL.

use std::collections::BTreeSet;

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::{OptionalExtension, Row, params};

use super::super::{COMMAND_MEMORY, RESULTS_BYTES_MAX, WAITERS_MAX};
use super::SqliteStore;
use super::columns::{from_sql, hash_from_sql, server_from_sql, to_sql, unreadable};
use super::db::{Db, Mode};
use super::failure::Failure;
use crate::model::{CommandId, InfoHash, OutcomeStatus, ServerName, SinkName, Timestamp, Verb};
use crate::port::{
    CommandDigest, CommandLog, LoggedCommand, LoggedResult, Recorded, ReplyTo, ResultBacklog, StoreError, UnsentResult,
};

/// Limit on the commands forgotten at once.
const TRIM_MAX: u32 = 2_000;
/// Memory of a command besides its body, so that a page of many small ones ends, too.
const COMMAND_BYTES: usize = 512;

#[async_trait]
impl CommandLog for SqliteStore {
    async fn record_commands(
        &self,
        commands: Vec<(LoggedCommand, Option<LoggedResult>)>,
    ) -> Result<Vec<Recorded>, StoreError> {
        self.writer
            .ask(Mode::Synced, move |db| {
                commands.iter().map(|(command, result)| record(db, command, result.as_ref())).collect()
            })
            .await
    }

    async fn start_command(&self, server: Option<&ServerName>, id: &CommandId) -> Result<(), StoreError> {
        let (server, id) = (server.cloned(), id.clone());
        self.writer
            .ask(Mode::Synced, move |db| {
                let sql = "UPDATE commands SET is_started = 1 WHERE server = ?1 AND id = ?2";
                match db.execute(sql, (key(server.as_ref()), id.as_str()))? {
                    0 => Err(unknown(&id)),
                    _ => Ok(()),
                }
            })
            .await
    }

    async fn set_begun(
        &self,
        server: Option<&ServerName>,
        id: &CommandId,
        begun: Vec<InfoHash>,
    ) -> Result<(), StoreError> {
        let (server, id) = (server.cloned(), id.clone());
        self.writer
            .ask(Mode::Synced, move |db| {
                // The arguments of a command that has its result and has ended are of no use.
                let sql = "UPDATE commands SET begun = ?3, \
                           body = CASE WHEN ?3 IS NULL AND result IS NOT NULL THEN x'' ELSE body END \
                           WHERE server = ?1 AND id = ?2";
                match db.execute(sql, (key(server.as_ref()), id.as_str(), hashes_to_sql(&begun)))? {
                    0 => Err(unknown(&id)),
                    _ => Ok(()),
                }
            })
            .await
    }

    async fn finish_command(
        &self,
        server: Option<&ServerName>,
        id: &CommandId,
        result: LoggedResult,
    ) -> Result<(), StoreError> {
        let (server, id) = (server.cloned(), id.clone());
        self.writer.ask(Mode::Synced, move |db| finish(db, server.as_ref(), &id, &result)).await
    }

    async fn result_of(&self, server: Option<&ServerName>, id: &CommandId) -> Result<Option<Bytes>, StoreError> {
        let (server, id) = (server.cloned(), id.clone());
        let sql = "SELECT result FROM commands WHERE server = ?1 AND id = ?2";
        let read = |row: &Row<'_>| row.get::<_, Option<Vec<u8>>>(0);
        self.writer
            .ask(Mode::Read, move |db| {
                let found = db.query_row(sql, (key(server.as_ref()), id.as_str()), read).optional()?;
                Ok(found.flatten().map(Bytes::from))
            })
            .await
    }

    async fn set_running(&self, server: Option<&ServerName>, id: &CommandId, runs: bool) -> Result<(), StoreError> {
        let (server, id) = (server.cloned(), id.clone());
        self.writer
            .ask(Mode::Lazy, move |db| {
                let sql = "UPDATE commands SET is_running = ?3 WHERE server = ?1 AND id = ?2";
                db.execute(sql, (key(server.as_ref()), id.as_str(), runs)).map(drop)
            })
            .await
    }

    async fn end_earlier_run(&self, was_clean_shutdown: bool) -> Result<(), StoreError> {
        let sql = "UPDATE commands SET is_running = 0, crashes = crashes + ?1 \
                   WHERE (result IS NULL OR begun IS NOT NULL) AND is_running";
        self.writer.ask(Mode::Lazy, move |db| db.execute(sql, [!was_clean_shutdown]).map(drop)).await
    }

    async fn servers_with_unfinished_commands(&self) -> Result<BTreeSet<Option<ServerName>>, StoreError> {
        let sql = "SELECT DISTINCT server FROM commands WHERE result IS NULL OR begun IS NOT NULL";
        let read = |row: &Row<'_>| key_from_sql(row.get_ref(0)?.as_str()?);
        self.writer.ask(Mode::Read, move |db| Ok(db.query(sql, [], read)?)).await
    }

    async fn unfinished_commands(
        &self,
        server: Option<&ServerName>,
        after: i64,
    ) -> Result<Vec<(i64, LoggedCommand)>, StoreError> {
        let server = server.cloned();
        self.writer.ask(Mode::Read, move |db| unfinished(db, server.as_ref(), after)).await
    }

    async fn unsent_results(&self, sink: &SinkName, after: i64, limit: u16) -> Result<Vec<UnsentResult>, StoreError> {
        let sink = sink.clone();
        self.writer.ask(Mode::Read, move |db| unsent(db, &sink, after, limit)).await
    }

    fn results_page_bytes(&self) -> usize {
        self.results_page_bytes
    }

    async fn result_backlog(&self, sink: &SinkName) -> Result<ResultBacklog, StoreError> {
        let sink = sink.clone();
        let sql = "SELECT count(*), coalesce(sum(length(body)), 0) FROM results WHERE sink = ?1";
        let read = |row: &Row<'_>| Ok(ResultBacklog { count: from_sql(row.get(0)?), bytes: from_sql(row.get(1)?) });
        self.writer.ask(Mode::Read, move |db| Ok(db.query_row(sql, [sink.as_str()], read)?)).await
    }

    async fn mark_results_sent(&self, numbers: Vec<i64>) -> Result<(), StoreError> {
        self.writer
            .ask(Mode::Lazy, move |db| {
                numbers
                    .iter()
                    .try_for_each(|number| db.execute("DELETE FROM results WHERE number = ?1", [number]).map(drop))
            })
            .await
    }
}

/// The server column, where the bridge itself is ''.
fn key(server: Option<&ServerName>) -> &str {
    server.map_or("", ServerName::as_str)
}

fn key_from_sql(name: &str) -> rusqlite::Result<Option<ServerName>> {
    (!name.is_empty()).then(|| server_from_sql(name)).transpose()
}

fn reply_to_sql(reply: Option<&ReplyTo>) -> Option<String> {
    reply.map(|reply| serde_json::to_string(reply).expect("a reply address is plain JSON"))
}

fn reply_from_sql(text: Option<&str>) -> rusqlite::Result<Option<ReplyTo>> {
    text.map(|text| serde_json::from_str(text).map_err(unreadable)).transpose()
}

fn hashes_to_sql(hashes: &[InfoHash]) -> Option<String> {
    let hashes: Vec<String> = hashes.iter().map(InfoHash::to_string).collect();
    (!hashes.is_empty()).then(|| hashes.join(" "))
}

fn hashes_from_sql(text: Option<&str>) -> rusqlite::Result<Vec<InfoHash>> {
    text.unwrap_or_default().split_whitespace().map(|hash| hash.parse().map_err(unreadable)).collect()
}

fn status_to_sql(status: OutcomeStatus) -> String {
    let value = serde_json::to_value(status).expect("a status is plain JSON");
    value.as_str().expect("a status is a JSON string").to_owned()
}

/// The time of arrival up to which finished commands are forgotten now.
fn forgotten_until(db: &Db) -> i64 {
    db.clock.now().as_millis().saturating_sub(COMMAND_MEMORY.as_millis() as i64)
}

// Many may come at once, and most of a flood is refused, so a new one takes as few statements as possible.
fn record(db: &mut Db, command: &LoggedCommand, result: Option<&LoggedResult>) -> Result<Recorded, Failure> {
    let LoggedCommand {
        id,
        server,
        origin,
        hash,
        verb,
        body,
        digest,
        received_at,
        expires_at,
        reply,
        sees_secrets,
        is_started,
        begun: _,
        is_answered: _,
        crashes: _,
    } = command;
    let server = key(server.as_ref());
    let sql = "SELECT result, received_at, digest, begun IS NULL FROM commands WHERE server = ?1 AND id = ?2";
    let read = |row: &Row<'_>| {
        let digest = row.get::<_, Option<[u8; 32]>>(2)?.map(CommandDigest);
        Ok((row.get::<_, Option<Vec<u8>>>(0)?, row.get::<_, i64>(1)?, digest, row.get::<_, bool>(3)?))
    };
    let known = db.query_row(sql, (server, id.as_str()), read).optional()?;
    let reply = reply_to_sql(reply.as_ref());
    match known {
        // Older than is remembered, and not trimmed yet: the id is free again (I12).
        Some((Some(_), received_at, _, true)) if received_at <= forgotten_until(db) => {
            db.execute("DELETE FROM commands WHERE server = ?1 AND id = ?2", (server, id.as_str()))?;
        }
        Some((_, _, known, _)) if command.differs_from(known) => return Ok(Recorded::IdTaken),
        Some((Some(result), ..)) => {
            queue_result(db, origin.as_str(), server, &result, reply.as_deref())?;
            return Ok(Recorded::Answered);
        }
        Some((None, ..)) => return add_waiter(db, origin.as_str(), server, id, reply.as_deref()),
        None => {}
    }
    let sql = "INSERT INTO commands (server, id, origin, hash, verb, body, received_at, expires_at, reply, is_started, \
               status, result, digest, sees_secrets) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";
    // The arguments of a command that is not executed are of no use.
    let body: &[u8] = if result.is_some() { &[] } else { body };
    let values = params![
        server,
        id.as_str(),
        origin.as_str(),
        hash.as_ref().map(InfoHash::as_bytes),
        verb.map(Verb::as_str),
        body,
        received_at.as_millis(),
        expires_at.as_millis(),
        reply,
        is_started,
        result.map(|result| status_to_sql(result.status)),
        result.map(|result| &result.body[..]),
        digest.map(|digest| digest.0),
        sees_secrets,
    ];
    db.execute(sql, values)?;
    if let Some(result) = result {
        queue_result(db, origin.as_str(), server, &result.body, reply.as_deref())?;
    }
    // Counted, because excess commands are found with a query that costs more than this one.
    db.recorded += 1;
    Ok(Recorded::New)
}

fn queue_result(db: &Db, sink: &str, server: &str, result: &[u8], reply: Option<&str>) -> Result<(), Failure> {
    let sql = "INSERT INTO results (sink, server, body, reply) VALUES (?1, ?2, ?3, ?4)";
    db.execute(sql, (sink, server, result, reply)).map(drop)
}

/// Notes a further sender. The same address of the same sink gets one result, however often it asks.
fn add_waiter(db: &Db, sink: &str, server: &str, id: &CommandId, reply: Option<&str>) -> Result<Recorded, Failure> {
    let sql = "SELECT EXISTS (SELECT 1 FROM commands WHERE server = ?1 AND id = ?2 AND origin = ?3 AND reply IS ?4) \
               OR EXISTS (SELECT 1 FROM waiters WHERE server = ?1 AND id = ?2 AND sink = ?3 AND reply IS ?4), \
               (SELECT count(*) FROM waiters WHERE server = ?1 AND id = ?2)";
    let read = |row: &Row<'_>| Ok((row.get::<_, bool>(0)?, row.get::<_, i64>(1)?.unsigned_abs()));
    match db.query_row(sql, (server, id.as_str(), sink, reply), read)? {
        (true, _) => Ok(Recorded::Running),
        // Without a reply address there is one per sink, so that number is bounded.
        (false, waiters) if reply.is_some() && waiters >= WAITERS_MAX => Ok(Recorded::WaitersFull),
        (false, _) => {
            let sql = "INSERT INTO waiters (server, id, sink, reply) VALUES (?1, ?2, ?3, ?4)";
            db.execute(sql, (server, id.as_str(), sink, reply))?;
            Ok(Recorded::Running)
        }
    }
}

fn unknown(id: &CommandId) -> Failure {
    StoreError::Io(format!("command {id} is not in the log").into()).into()
}

fn finish(db: &Db, server: Option<&ServerName>, id: &CommandId, result: &LoggedResult) -> Result<(), Failure> {
    let LoggedResult { status, body: result } = result;
    let result: &[u8] = result;
    let server = key(server);
    let sql = "SELECT origin, reply, result IS NOT NULL FROM commands WHERE server = ?1 AND id = ?2";
    let read = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, Option<String>>(1)?, row.get(2)?));
    let known = db.query_row(sql, (server, id.as_str()), read).optional()?;
    let (origin, reply, is_finished) = known.ok_or_else(|| unknown(id))?;
    if is_finished {
        // The first result counts: it may have been sent already.
        return Ok(());
    }
    let sql = "UPDATE commands SET status = ?3, result = ?4, body = CASE WHEN begun IS NULL THEN x'' ELSE body END \
               WHERE server = ?1 AND id = ?2";
    db.execute(sql, (server, id.as_str(), status_to_sql(*status), result))?;
    queue_result(db, &origin, server, result, reply.as_deref())?;
    let sql = "INSERT INTO results (sink, server, body, reply) \
               SELECT sink, server, ?3, reply FROM waiters WHERE server = ?1 AND id = ?2 ORDER BY number";
    db.execute(sql, (server, id.as_str(), result))?;
    db.execute("DELETE FROM waiters WHERE server = ?1 AND id = ?2", (server, id.as_str())).map(drop)
}

fn unfinished(db: &Db, server: Option<&ServerName>, after: i64) -> Result<Vec<(i64, LoggedCommand)>, Failure> {
    let sql = "SELECT id, server, origin, hash, verb, body, received_at, expires_at, reply, is_started, digest, crashes, \
               number, begun, result IS NOT NULL, sees_secrets FROM commands \
               WHERE (result IS NULL OR begun IS NOT NULL) AND server = ?1 AND number > ?2 ORDER BY number";
    let read = |row: &Row<'_>| {
        let command = LoggedCommand {
            id: CommandId::parse(row.get_ref(0)?.as_str()?).map_err(unreadable)?,
            server: key_from_sql(row.get_ref(1)?.as_str()?)?,
            origin: SinkName::recall(row.get_ref(2)?.as_str()?).map_err(unreadable)?,
            hash: row.get_ref(3)?.as_blob_or_null()?.map(hash_from_sql).transpose()?,
            verb: row.get_ref(4)?.as_str_or_null()?.and_then(Verb::parse),
            body: row.get::<_, Vec<u8>>(5)?.into(),
            received_at: Timestamp::from_millis(row.get(6)?),
            expires_at: Timestamp::from_millis(row.get(7)?),
            reply: reply_from_sql(row.get_ref(8)?.as_str_or_null()?)?,
            is_started: row.get(9)?,
            digest: row.get::<_, Option<[u8; 32]>>(10)?.map(CommandDigest),
            crashes: row.get(11)?,
            begun: hashes_from_sql(row.get_ref(13)?.as_str_or_null()?)?,
            is_answered: row.get(14)?,
            sees_secrets: row.get(15)?,
        };
        Ok((row.get(12)?, command))
    };
    let bytes_of = |(_, command): &(i64, LoggedCommand)| command.body.len() + COMMAND_BYTES;
    Ok(db.query_page(sql, (key(server), after), read, db.options.pages.commands, bytes_of)?)
}

fn unsent(db: &Db, sink: &SinkName, after: i64, limit: u16) -> Result<Vec<UnsentResult>, Failure> {
    let sql =
        "SELECT number, server, body, reply FROM results WHERE sink = ?1 AND number > ?2 ORDER BY number LIMIT ?3";
    let read = |row: &Row<'_>| {
        Ok(UnsentResult {
            number: row.get(0)?,
            server: key_from_sql(row.get_ref(1)?.as_str()?)?,
            body: row.get::<_, Vec<u8>>(2)?.into(),
            reply: reply_from_sql(row.get_ref(3)?.as_str_or_null()?)?,
        })
    };
    Ok(db.query_page(sql, (sink.as_str(), after, limit), read, db.options.pages.results, |result| result.body.len())?)
}

/// Forgets finished commands that are too old, and the oldest of too many bytes.
pub(super) fn trim(db: &Db) -> Result<(), Failure> {
    let sql = "DELETE FROM commands WHERE number IN \
               (SELECT number FROM commands WHERE result IS NOT NULL AND begun IS NULL AND received_at <= ?1 LIMIT ?2)";
    db.connection.execute(sql, (forgotten_until(db), TRIM_MAX))?;
    let sql = "DELETE FROM commands WHERE number IN (SELECT number FROM (SELECT number, sum(length(result)) OVER \
               (ORDER BY number DESC) AS bytes FROM commands WHERE result IS NOT NULL AND begun IS NULL) WHERE bytes > ?1)";
    db.connection.execute(sql, [to_sql(RESULTS_BYTES_MAX)])?;
    Ok(())
}

/// Forgets finished commands that came before the last `max`, a batch at a time: forgetting all that a flood left
/// would delay writes for seconds.
pub(super) fn trim_excess(db: &Db, max: u64) -> Result<(), Failure> {
    let sql = "DELETE FROM commands WHERE number IN (SELECT number FROM commands WHERE result IS NOT NULL AND begun IS NULL \
               AND number <= (SELECT max(number) FROM commands) - ?1 ORDER BY number LIMIT ?2)";
    db.execute(sql, (to_sql(max), TRIM_MAX)).map(drop)
}
