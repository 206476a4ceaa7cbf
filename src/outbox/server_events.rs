//! The journal of one server on its way to one sink: what is new, and a replay of what was sent before.
//!
//! ```text
//! journal:  … 4 5 6 7 8 9 │ 10 11 │ 12 13 …
//!              replay ▲   │       └─ new: first
//!      goes on only while │ nothing is new
//!                  cursor ┘
//! ```
//!
//! A replay never delays what is new. It sends only entries behind the cursor, so that no entry is in flight twice. After a
//! crash of the process the sink begins where its replay was.

use std::sync::Arc;

use super::background::{Request, start};
use super::cursor::SinkCursor;
use super::parts::DispatcherParts;
use super::{DeliveryId, Outgoing};
use crate::model::{JournalEntry, Seq, ServerName};
use crate::port::{Delivery, Store, StoreError};

/// Entries read from the journal at once.
const READ_MAX: u16 = 256;

/// The entries of one server that are pending or in flight. See the module.
pub(super) struct ServerEvents {
    /// The server.
    pub server: ServerName,
    cursor: SinkCursor,
    replay: Option<Replay>,
    /// From here on events are to be sent again, once the present replay has ended.
    rewind: Option<Seq>,
    read_ahead: Option<ReadAhead>,
}

/// Entries that are sent again.
struct Replay {
    cursor: SinkCursor,
    /// The last of them.
    end: Seq,
}

/// Entries on their way from the store, so that they are there when they are needed.
struct ReadAhead {
    after: Seq,
    entries: Request<Vec<JournalEntry>>,
}

/// What became of one step of a replay.
enum Step {
    /// An entry is to be looked at.
    Entry(JournalEntry),
    /// A page was read.
    Read,
    /// Nothing can be sent again now.
    Idle,
}

impl ReadAhead {
    fn start(store: &Arc<dyn Store>, server: &ServerName, after: Seq) -> Self {
        let (store, server) = (Arc::clone(store), server.clone());
        Self { after, entries: start(async move { store.read_after(&server, after, READ_MAX).await }) }
    }
}

impl ServerEvents {
    /// Continues after `cursor`.
    pub fn new(server: ServerName, cursor: Seq) -> Self {
        Self { server, cursor: SinkCursor::new(cursor), replay: None, rewind: None, read_ahead: None }
    }

    /// Returns the last entry up to which all are dealt with for the first time.
    pub fn position(&self) -> Seq {
        self.cursor.position()
    }

    /// Returns the entry after which a later run has to begin: before what is still to be sent again.
    pub fn saved_position(&self) -> Seq {
        let rewind = self.rewind.map(before);
        let replay = self.replay.as_ref().map(|replay| replay.cursor.position());
        [rewind, replay].into_iter().flatten().fold(self.position(), Seq::min)
    }

    /// Sends entries again, from this one on.
    pub fn rewind(&mut self, from: Seq) {
        self.rewind = Some(self.rewind.map_or(from, |noted| noted.min(from)));
    }

    /// Returns an entry that is in flight and not dealt with.
    pub fn in_flight(&self, seq: Seq) -> Option<&JournalEntry> {
        let replayed = self.replay.as_ref().and_then(|replay| replay.cursor.in_flight(seq));
        replayed.or_else(|| self.cursor.in_flight(seq))
    }

    /// Marks an entry in flight as dealt with and returns it; `None` if it is not in flight.
    pub fn acknowledge(&mut self, seq: Seq) -> Option<JournalEntry> {
        let replayed = self.replay.as_mut().and_then(|replay| replay.cursor.acknowledge(seq));
        replayed.or_else(|| self.cursor.acknowledge(seq))
    }

    /// Forgets everything that is not dealt with: it is read and sent again.
    pub fn reset_in_flight(&mut self) {
        self.cursor.reset_in_flight();
        if let Some(replay) = &mut self.replay {
            replay.cursor.reset_in_flight();
        }
    }

    /// Returns the next entry that may be sent and is for the sink, new ones first; all others are passed over.
    pub async fn next(&mut self, parts: &DispatcherParts, is_strict: bool) -> Result<Option<Outgoing>, StoreError> {
        let mut pages = 0;
        loop {
            if is_strict && self.has_in_flight() || self.in_flight_bytes() > parts.buffer.in_flight_bytes_max() {
                return Ok(None);
            }
            self.refill(parts).await?;
            let entry = match self.cursor.send_next() {
                Some(entry) => entry,
                None => match self.replay_step(parts).await? {
                    Step::Entry(entry) => entry,
                    Step::Read if pages == 0 => {
                        pages = 1;
                        continue;
                    }
                    Step::Read => {
                        // A sink that wants few of them must not have other servers wait for a whole journal.
                        parts.buffer.changed.notify_one();
                        return Ok(None);
                    }
                    Step::Idle => return Ok(None),
                },
            };
            let (seq, is_selected) = (entry.seq, parts.settings.events.contains(&entry.kind));
            let (id, delivery) = outgoing(entry);
            if is_selected && parts.sink.wants(&delivery) {
                return Ok(Some((id, delivery)));
            }
            // The sink does not receive the entry, so what it knows of the torrent stays.
            self.acknowledge(seq);
        }
    }

    fn has_in_flight(&self) -> bool {
        self.cursor.has_in_flight() || self.replay.as_ref().is_some_and(|replay| replay.cursor.has_in_flight())
    }

    fn in_flight_bytes(&self) -> usize {
        let replayed = self.replay.as_ref().map_or(0, |replay| replay.cursor.in_flight_bytes());
        self.cursor.in_flight_bytes() + replayed
    }

    async fn refill(&mut self, parts: &DispatcherParts) -> Result<(), StoreError> {
        let published = parts.live.last_seq(&self.server);
        let Some(after) = self.cursor.needs_entries_after(published) else { return Ok(()) };
        let mut entries = parts.buffer.take_entries(&self.server, after);
        if entries.is_empty() {
            let ahead = self.read_ahead.take().filter(|ahead| ahead.after == after);
            let ahead = ahead.unwrap_or_else(|| ReadAhead::start(&parts.store, &self.server, after));
            entries = ahead.entries.await?;
            if entries.is_empty() {
                // Given up for this sink while its delivery was blocked: a dead letter names the range.
                self.cursor.skip_to(published);
            }
            // An entry that is committed and not published yet would be followed by the state from before it.
            entries.retain(|entry| entry.seq <= published);
        }
        self.cursor.fill(entries);
        let next = self.cursor.reads_on_after(published);
        self.read_ahead = next.map(|after| ReadAhead::start(&parts.store, &self.server, after));
        Ok(())
    }

    /// Takes a replay one step further, or begins one.
    async fn replay_step(&mut self, parts: &DispatcherParts) -> Result<Step, StoreError> {
        loop {
            if self.replay.is_none()
                && let Some(from) = self.rewind.take()
            {
                // A replay goes back and never skips (I5): what is in flight is sent again, too, once it is acknowledged.
                self.replay = Some(Replay { cursor: SinkCursor::new(before(from)), end: self.cursor.sent_to() });
            }
            let Some(Replay { cursor, end }) = &mut self.replay else { return Ok(Step::Idle) };
            let until = self.cursor.position().min(*end);
            if let Some(after) = cursor.needs_entries_after(until) {
                let mut entries = parts.store.read_after(&self.server, after, READ_MAX).await?;
                entries.retain(|entry| entry.seq <= until);
                if entries.is_empty() {
                    cursor.skip_to(until);
                }
                cursor.fill(entries);
                return Ok(Step::Read);
            }
            if let Some(entry) = cursor.send_next() {
                return Ok(Step::Entry(entry));
            }
            if cursor.position() < *end {
                return Ok(Step::Idle);
            }
            self.replay = None;
        }
    }
}

/// Makes the delivery of an entry.
pub(super) fn outgoing(entry: JournalEntry) -> Outgoing {
    (DeliveryId::Event(entry.server.clone(), entry.seq), Delivery::Event(entry))
}

fn before(seq: Seq) -> Seq {
    Seq(seq.0.saturating_sub(1))
}
