//! The durable state: what was told, the journal, how far each sink got, the command log.
//!
//! Two implementations of [`Store`](crate::port::Store): [`SqliteStore`], one file in the data
//! folder, and [`MemoryStore`], for tests and for library users without a folder. One suite of
//! tests runs on both, and random operations have to give the same answers on both.
//!
//! What holds on both:
//! - a tick is there whole or not at all (I1), and its entries have gap-free numbers from 1;
//! - an entry's body is rendered once, in the commit, and is the same bytes ever after (I6);
//! - no id is given twice, whatever is killed (revisions are reserved ahead, with an fsync);
//! - an entry that a sink has yet to get is not trimmed (I4); too many of those is `Full`. One sink is an
//!   exception: it stands, because it rejects and its dead-letter box is full. The journal at its bound goes on
//!   without it (I13), and what it will not get is put into its box as one letter ([`DeadLetter::gap`]).
//!
//! A sink holds back what lies after the cursor it has noted. So a sink notes one for a server,
//! if only the one it starts from, before it counts on the entries that follow.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;

use crate::model::{
    ChangeSet, EVENT_SCHEMA, Epoch, Event, EventId, JournalEntry, NewEvent, Rev, Seq, ServerName, Timestamp,
};
use crate::port::StoreError;

#[cfg(feature = "sqlite")]
mod commands;
#[cfg(feature = "sqlite")]
mod folder;
#[cfg(feature = "sqlite")]
mod journal;
mod memory;
#[cfg(feature = "sqlite")]
mod schema;
#[cfg(feature = "sqlite")]
mod sinks;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "sqlite")]
mod thread;

pub use memory::{Image, MemoryStore};
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteStore;

/// How long an id of a command is remembered, from when it came.
const COMMAND_MEMORY: Duration = Duration::from_secs(24 * 60 * 60);
/// The answers that are remembered take no more bytes than this; the oldest go.
const ANSWERS_BYTES_MAX: u64 = 64 << 20;
/// More finished commands than this are not remembered; the oldest go.
const COMMANDS_MAX: u64 = 100_000;
/// So many more than its first sender wait for the result of one command.
const ASKERS_MAX: u64 = 100;

/// How much is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bodies of journal entries. Above half of it, entries go that every sink has; above the whole, `Full`.
    pub journal_bytes_max: u64,
    /// Entries that every sink has go when they are older.
    pub journal_age_max: Duration,
    /// More than this lie aside for no sink: it stops, and a person has to look.
    pub dead_letters_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        let journal_age_max = Duration::from_secs(30 * 24 * 60 * 60);
        Self { journal_bytes_max: 256 << 20, journal_age_max, dead_letters_max: 10_000 }
    }
}

/// What opening a store found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// There is no state of an earlier run: a first start, or a loss.
    pub is_new: bool,
    /// This epoch began because an earlier state was gone or could not be used; now or in an earlier run.
    pub lost: bool,
    /// The last run closed the store.
    pub was_clean: bool,
    /// When the folder was last known to be in use; `None` for a new one.
    pub last_alive: Option<Timestamp>,
    /// What was wrong with the file that was found, for people.
    pub found: Option<String>,
    /// Where that file is now.
    pub moved_to: Option<PathBuf>,
}

/// Events that a sink will not get: one that it would not take, or a row that was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The event's, as it stands in the body; a name of its own if it is a gap.
    pub id: String,
    pub server: ServerName,
    /// Of the event; of the last one if it is a gap.
    pub seq: Seq,
    pub reason: String,
    /// When it was buried.
    pub time: Timestamp,
    /// Empty if it is a gap.
    pub body: Bytes,
}

/// What stands in the id of a gap before the number of its first event.
const GAP: &str = "-gap-";

impl DeadLetter {
    /// The first and the last number, if these are events in a row that were given up: the journal was full, and the
    /// sink stood. They are not kept any more.
    pub fn gap(&self) -> Option<(Seq, Seq)> {
        let (_, first) = self.id.rsplit_once(GAP)?;
        Some((Seq(first.parse().ok()?), self.seq))
    }

    /// How many events it is.
    pub fn events(&self) -> u64 {
        self.gap().map_or(1, |(first, last)| (last.0 + 1).saturating_sub(first.0))
    }
}

/// A letter in place of the events `first..=last`.
fn gap_letter(server: &ServerName, epoch: Epoch, (first, last): (Seq, Seq), time: Timestamp) -> DeadLetter {
    DeadLetter {
        id: format!("{server}-{epoch}{GAP}{:012}", first.0),
        server: server.clone(),
        seq: last,
        reason: "given up: the journal was full, and so were the dead letters of this sink".to_owned(),
        time,
        body: Bytes::new(),
    }
}

/// How full the dead-letter box of a sink is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BoxUsage {
    pub letters: u64,
    /// Events in gaps.
    pub given_up: u64,
}

/// What a row of the journal that goes was to a sink that stands: from the first that it has neither settled nor given up
/// before. `None` if it has had all of that.
fn newly_given_up(cursor: Seq, last_gap: Option<&DeadLetter>, last: Seq) -> Option<(Seq, Seq)> {
    let gap = last_gap.and_then(DeadLetter::gap);
    let had = gap.map_or(cursor, |(_, to)| cursor.max(to));
    let first = match gap {
        // It goes on where the last one ends: that one grows.
        Some((first, to)) if to == had => first,
        _ => Seq(had.0 + 1),
    };
    (had < last).then_some((first, last))
}

fn too_many_dead_letters(max: u64) -> StoreError {
    let reason =
        format!("{max} dead letters wait for this sink: list, replay or drop them with `dtorrent dead-letters`");
    StoreError::Full { reason }
}

/// The journal entry that tells `fact`.
fn entry(change_set: &ChangeSet, new_event: &NewEvent, epoch: Epoch, seq: Seq, rev: Rev) -> JournalEntry {
    let NewEvent { kind, cause, command_id, changes, torrent } = new_event;
    let hash = torrent.as_ref().map(|torrent| torrent.hash);
    let event = Event {
        schema: EVENT_SCHEMA,
        entity: kind.entity(),
        event_type: *kind,
        id: EventId::Journal { server: change_set.server.clone(), epoch, seq },
        seq: Some(seq),
        time: change_set.time,
        server: change_set.server.clone(),
        hash,
        cause: *cause,
        command_id: command_id.clone(),
        changes: changes.clone(),
        torrent: torrent.clone(),
    };
    JournalEntry::new(event, rev)
}

#[cfg(test)]
#[cfg(feature = "sqlite")]
mod tests;
