//! The rules of a commit that hold in every store: which numbers it assigns, and which entries make room for it. Pure.

use std::collections::BTreeMap;

use crate::model::{ChangeSet, Epoch, Event, EventId, InfoHash, JournalEntry, NewEvent, Rev, Seq, ServerName};
use crate::port::StoreError;

/// The numbers that a change set is given, and the journal entries made with them.
pub(super) struct Numbered {
    /// One entry per event, in order.
    pub entries: Vec<JournalEntry>,
    /// The new revision of each changed torrent.
    pub revs: BTreeMap<InfoHash, Rev>,
    /// The newest of these entries about each torrent.
    pub newest: BTreeMap<InfoHash, Seq>,
    /// The last number assigned, or the one from before if there are no events.
    pub last_seq: Seq,
    /// The last revision assigned, or the one from before if there are no changes.
    pub last_rev: Rev,
}

impl Numbered {
    /// Numbers a change set behind `last_seq` and `last_rev`.
    ///
    /// `current_rev` returns the revision of a torrent that has an event and stays as it is.
    pub fn new<E>(
        change_set: &ChangeSet,
        epoch: Epoch,
        (last_seq, last_rev): (Seq, Rev),
        current_rev: impl Fn(InfoHash) -> Result<Option<Rev>, E>,
    ) -> Result<Self, E> {
        let (entries, revs, newest) = (Vec::with_capacity(change_set.events.len()), BTreeMap::new(), BTreeMap::new());
        let mut numbered = Self { entries, revs, newest, last_seq, last_rev };
        // Before the events: an entry carries the revision of the row that it leads to.
        for hash in change_set.changes.keys() {
            numbered.last_rev.0 += 1;
            numbered.revs.insert(*hash, numbered.last_rev);
        }
        for new_event in &change_set.events {
            let NewEvent { kind, cause, command_id, changes, torrent } = new_event.clone();
            let hash = torrent.as_ref().map(|torrent| torrent.hash);
            numbered.last_seq.0 += 1;
            let rev = match hash {
                None => Rev(0),
                Some(hash) => {
                    numbered.newest.insert(hash, numbered.last_seq);
                    match numbered.revs.get(&hash) {
                        Some(rev) => *rev,
                        None => current_rev(hash)?.unwrap_or_default(),
                    }
                }
            };
            let id = EventId::Journal { server: change_set.server.clone(), epoch, seq: numbered.last_seq };
            let event = Event { hash, cause, command_id, changes, torrent, ..Event::new(id, kind, change_set.time) };
            numbered.entries.push(JournalEntry::new(event, rev));
        }
        Ok(numbered)
    }

    /// Bytes that the entries take in the journal.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.body.len() as u64).sum()
    }
}

/// The sinks whose cursors hold back entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holding {
    /// Every sink.
    All,
    /// Every sink but those whose delivery is blocked.
    Unblocked,
}

/// A journal that entries are trimmed from.
pub(super) trait Trim {
    /// The error of the store behind it.
    type Error: From<StoreError>;

    /// Returns the bytes of all entries.
    fn bytes(&self) -> Result<u64, Self::Error>;

    /// Removes some of the oldest entries that no sink holds back: about `excess` bytes, all of one server.
    ///
    /// Returns that server and the last entry that went; `None` if none could go.
    fn trim(&mut self, excess: u64, holding: Holding) -> Result<Option<(ServerName, Seq)>, Self::Error>;

    /// Whether a sink is blocked and somebody else reads this server: another sink, or viewers if it has no sink at all.
    fn is_held_for_blocked_sinks_alone(&self, server: &ServerName) -> Result<bool, Self::Error>;

    /// Records, for each blocked sink that has not had them, that the entries of a server up to `last` went.
    ///
    /// A gap goes into the sink's dead-letter queue, however full, and its cursor moves, so that it does not
    /// hold back entries that are gone.
    fn give_up(&mut self, server: &ServerName, last: Seq) -> Result<(), Self::Error>;
}

/// Makes room for `bytes` of `server` in a journal that may hold `max`.
///
/// Entries that every sink has go first. A blocked sink holds back what others have had only as long as there
/// is room for it, or nothing else reads the server (I13). An empty journal takes a change set that is
/// larger than the budget: otherwise nothing ever would.
///
/// # Errors
/// [`StoreError::Full`] if sinks that are not blocked need what the journal holds.
pub(super) fn make_room<J: Trim>(journal: &mut J, server: &ServerName, bytes: u64, max: u64) -> Result<(), J::Error> {
    loop {
        let used = journal.bytes()?;
        // `used == 0`: a change set larger than the whole budget would otherwise never be committed.
        if used == 0 || used + bytes <= max {
            return Ok(());
        }
        let excess = used + bytes - max;
        if journal.trim(excess, Holding::All)?.is_some() {
            continue;
        }
        let trimmed = match journal.is_held_for_blocked_sinks_alone(server)? {
            true => journal.trim(excess, Holding::Unblocked)?,
            false => None,
        };
        let Some((trimmed_server, last)) = trimmed else {
            let reason = format!("sinks still need {used} bytes of the journal, and its limit is {max}");
            return Err(StoreError::Full { reason }.into());
        };
        journal.give_up(&trimmed_server, last)?;
    }
}
