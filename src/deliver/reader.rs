//! The reader: hears what is told, as long as it likes, and nobody waits for it.
//!
//! It is for whoever listens in this process or over a connection of his own: a library user, a terminal,
//! a page. Journal entries come from the store, in order, from where the reader stands; an `updated` is made
//! when it is asked for, and tells all that changed since the reader heard of that torrent last.
//!
//! What must hold:
//! - a reader costs a place in the journal and one entry a torrent that it has an old picture of, however slow
//!   it is; it never holds the journal back. What was trimmed before it was read is [`Missed`], and counted;
//! - per server, entries come in the order of `seq`, and an `updated` after the entries that led there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::dirty::{DirtySet, Known};
use super::pick::{changes_for, known_from, updated};
use crate::board::{Board, Desk, Tray};
use crate::model::{Entry, Event, EventId, Kind, Seq, ServerName};
use crate::port::{Clock, Store, StoreError};

/// Entries read from the journal at once.
const READ_MAX: u16 = 64;

/// What a reader works with.
pub struct ReaderParts {
    pub board: Arc<Board>,
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    /// Only events of these are heard.
    pub servers: Vec<ServerName>,
    /// Only these are heard.
    pub events: BTreeSet<Kind>,
    /// After which entries to begin; with the present, where nothing is said of a server.
    pub after: BTreeMap<ServerName, Seq>,
    /// What is told by then is still heard.
    pub stop: CancellationToken,
}

/// See the module.
pub struct Reader {
    board: Arc<Board>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    desk: Arc<Desk>,
    events: BTreeSet<Kind>,
    lanes: BTreeMap<ServerName, ReaderLane>,
    /// Read, and not handed out yet.
    ready: VecDeque<Heard>,
    stop: CancellationToken,
}

struct ReaderLane {
    cursor: Seq,
    dirty: DirtySet,
}

/// What a reader hears.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    Entry(Entry),
    /// The conflated event.
    Updated(Box<Event>),
    Missed(Missed),
}

/// Events were told faster than they were read, and are not kept any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{events} events of {server} were not read in time and are gone")]
#[non_exhaustive]
pub struct Missed {
    pub server: ServerName,
    /// How many, of all kinds but `updated`.
    pub events: u64,
}

impl Heard {
    /// The bytes that go on every wire; `None` for what is no event.
    pub fn body(&self) -> Option<Bytes> {
        match self {
            Self::Entry(entry) => Some(entry.body.clone()),
            Self::Updated(event) => Some(Bytes::from(event.to_json())),
            Self::Missed(_) => None,
        }
    }
}

impl Reader {
    pub fn new(parts: ReaderParts) -> Self {
        let ReaderParts { board, store, clock, servers, events, after, stop } = parts;
        let desk = board.seat_guest();
        let lane = |server: ServerName| {
            let last_seq = board.read(&server, |content| content.last_seq)?;
            let cursor = after.get(&server).map_or(last_seq, |seq| last_seq.min(*seq));
            Some((server, ReaderLane { cursor, dirty: DirtySet::default() }))
        };
        let lanes = servers.into_iter().filter_map(lane).collect();
        Self { board, store, clock, desk, events, lanes, ready: VecDeque::new(), stop }
    }

    /// Waits for the next. `None` after the stop, when all is heard. Cancel-safe.
    ///
    /// # Errors
    /// A store that cannot be used any more.
    pub async fn next(&mut self) -> Result<Option<Heard>, StoreError> {
        loop {
            if let Some(heard) = self.ready.pop_front() {
                return Ok(Some(heard));
            }
            let is_over = self.stop.is_cancelled();
            let tray = self.desk.take();
            self.take_in(tray);
            self.read_entries().await?;
            if self.ready.is_empty() {
                let update = self.next_update();
                self.ready.extend(update);
            }
            if !self.ready.is_empty() {
                continue;
            }
            if is_over {
                return Ok(None);
            }
            tokio::select! {
                () = self.stop.cancelled() => {}
                () = self.desk.laid.notified() => {}
            }
        }
    }

    fn take_in(&mut self, tray: Tray) {
        for (server, changed) in tray.changed {
            let Some(lane) = self.lanes.get_mut(&server) else { continue };
            for (hash, laid) in changed {
                lane.dirty.mark(hash, laid.before.map_or(Known::Nothing, Known::Picture), laid.not_before);
            }
        }
    }

    async fn read_entries(&mut self) -> Result<(), StoreError> {
        for (server, lane) in &mut self.lanes {
            let written = self.board.read(server, |content| content.last_seq).unwrap_or_default();
            if lane.cursor >= written {
                continue;
            }
            let mut entries = self.store.read(server, lane.cursor, READ_MAX).await?;
            // What is not on the board yet would be followed by the state from before it.
            entries.retain(|entry| entry.seq <= written);
            let begin = entries.first().map_or(Seq(written.0 + 1), |entry| entry.seq);
            let events = begin.0 - lane.cursor.0 - 1;
            if events > 0 {
                self.ready.push_back(Heard::Missed(Missed { server: server.clone(), events }));
                lane.cursor = Seq(begin.0 - 1);
            }
            for entry in entries {
                lane.cursor = entry.seq;
                if !self.events.contains(&entry.kind) {
                    continue;
                }
                if let Some(hash) = entry.hash.filter(|hash| lane.dirty.owes(hash)) {
                    let told = self.board.read(server, |content| content.told.get(&hash).cloned()).flatten();
                    lane.dirty.learned(hash, known_from(&entry, told), entry.seq);
                }
                self.ready.push_back(Heard::Entry(entry));
            }
        }
        Ok(())
    }

    /// The next torrent that there is something new to say of. Made only now: it tells the present.
    fn next_update(&mut self) -> Option<Heard> {
        let servers: Vec<ServerName> = self.lanes.keys().cloned().collect();
        for server in servers {
            loop {
                let lane = self.lanes.get(&server)?;
                let Some(hash) = lane.dirty.peek(lane.cursor) else { break };
                // The picture and what lies on the desk are read in one: no change is between them.
                let (tray, epoch, told) = self
                    .board
                    .read(&server, |content| (self.desk.take(), content.epoch, content.told.get(&hash).cloned()))?;
                self.take_in(tray);
                let lane = self.lanes.get_mut(&server)?;
                if lane.dirty.peek(lane.cursor) != Some(hash) {
                    continue;
                }
                let (hash, known) = lane.dirty.next(lane.cursor)?;
                lane.dirty.sent(hash, Known::Nothing);
                lane.dirty.settled(hash);
                let Some(told) = told else { continue };
                let Some(changes) = changes_for(&known, &told.torrent) else { continue };
                if self.events.contains(&Kind::Updated) {
                    let id = EventId::Updated { server: server.clone(), epoch, rev: told.rev };
                    return Some(Heard::Updated(Box::new(updated(
                        &server,
                        id,
                        self.clock.now(),
                        changes,
                        &told.torrent,
                    ))));
                }
            }
        }
        None
    }
}
