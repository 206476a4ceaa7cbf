//! Dead letters, and the rules of their queues that hold in every store. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::model::{Epoch, JournalEntry, Seq, ServerName, SinkName, Timestamp};
use crate::port::{Progress, StoreError};

/// The part of a gap's id between epoch and number, which no event id has.
pub(super) const GAP: &str = "-gap-";

/// An event that a sink refused for good, or a gap: a range of events that were given up for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Id of the event, as it stands in the body; a gap has an id of its own.
    pub id: String,
    /// Server of the event or of all events in the gap.
    pub server: ServerName,
    /// Number of the event; of the last one in the gap.
    pub seq: Seq,
    /// The receiver's reason, for people.
    pub reason: String,
    /// Time at which it entered the queue; a gap's when it last grew.
    pub time: Timestamp,
    /// Bytes of the event as it was sent; empty for a gap, whose events are no longer stored.
    pub body: Bytes,
}

impl DeadLetter {
    /// A dead letter for an entry.
    pub(super) fn new(entry: &JournalEntry, reason: &str, time: Timestamp) -> Self {
        let JournalEntry { server, seq, id, body, .. } = entry;
        let (server, body) = (server.clone(), body.clone());
        Self { id: id.to_string(), server, seq: *seq, reason: reason.to_owned(), time, body }
    }

    /// The gap that accounts for the events of `server` up to `last`, which are given up for a blocked sink.
    ///
    /// Begins behind everything the sink has had, by its `cursor` and its newest gap so far. Where it continues
    /// that gap it has the same id and replaces it. `None` if the sink has had all of them.
    pub(super) fn new_gap(
        (server, epoch): (&ServerName, Epoch),
        (cursor, newest): (Seq, Option<&Self>),
        last: Seq,
        time: Timestamp,
    ) -> Option<Self> {
        let newest = newest.and_then(Self::gap);
        let had = newest.map_or(cursor, |(_, to)| cursor.max(to));
        // One gap that grows, rather than one for each trimming: the queue is full.
        let first = match newest {
            Some((first, to)) if to == had => first,
            _ => Seq(had.0 + 1),
        };
        (had < last).then(|| Self {
            id: format!("{}{:012}", Self::gap_prefix(server, epoch), first.0),
            server: server.clone(),
            seq: last,
            reason: "given up: the journal was full, and so was the dead-letter queue of this sink".to_owned(),
            time,
            body: Bytes::new(),
        })
    }

    /// The beginning of the ids of all gaps of a server in an epoch.
    pub(super) fn gap_prefix(server: &ServerName, epoch: Epoch) -> String {
        format!("{server}-{epoch}{GAP}")
    }

    /// Returns the first and the last number of a gap; `None` for an event.
    pub fn gap(&self) -> Option<(Seq, Seq)> {
        let (_, first) = self.id.rsplit_once(GAP)?;
        Some((Seq(first.parse().ok()?), self.seq))
    }

    /// Returns the number of events it stands for.
    pub fn events(&self) -> u64 {
        self.gap().map_or(1, |(first, last)| (last.0 + 1).saturating_sub(first.0))
    }
}

/// The size of a sink's dead-letter queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeadLetterUsage {
    /// Dead letters, gaps among them.
    pub dead_letters: u64,
    /// Events that the gaps stand for.
    pub given_up: u64,
}

/// The sinks whose delivery is blocked by a full dead-letter queue, each with the entry that found no room.
#[derive(Clone, Debug, Default)]
pub(super) struct BlockedSinks(BTreeMap<SinkName, (ServerName, Seq)>);

impl BlockedSinks {
    /// Blocks a sink, and returns the error that says so.
    pub fn block(&mut self, sink: &SinkName, entry: &JournalEntry, dead_letters_max: u64) -> StoreError {
        self.0.insert(sink.clone(), (entry.server.clone(), entry.seq));
        let reason = format!(
            "the dead-letter queue of {sink} has {dead_letters_max} entries: list, replay or drop them with \
             `dtorrent dead-letters`"
        );
        StoreError::Full { reason }
    }

    /// Unblocks a sink whose entry was taken into the queue.
    pub fn unblock(&mut self, sink: &SinkName) {
        self.0.remove(sink);
    }

    /// Unblocks a sink whose cursor passes the entry that found no room.
    pub fn on_progress(&mut self, sink: &SinkName, progress: &Progress) {
        let has_passed = |(server, seq): &(ServerName, Seq)| progress.get(server).is_some_and(|to| to.cursor >= *seq);
        if self.0.get(sink).is_some_and(has_passed) {
            self.0.remove(sink);
        }
    }

    /// Whether no sink is blocked.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this sink is blocked.
    pub fn contains(&self, sink: &SinkName) -> bool {
        self.0.contains_key(sink)
    }

    /// Returns the blocked sinks, sorted.
    pub fn names(&self) -> Vec<SinkName> {
        self.0.keys().cloned().collect()
    }
}
