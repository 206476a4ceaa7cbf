//! Snapshots and the journal in memory.

use std::collections::BTreeMap;
use std::convert::Infallible;

use async_trait::async_trait;

use super::super::rules::{Holding, Numbered, Trim, make_room};
use super::{DeadLetter, MemoryStore, Server, State, fits_page};
use crate::model::{
    ChangeSet, Committed, InfoHash, JournalEntry, Kind, Rev, Seq, ServerName, SinkName, SnapshotTorrent, Timestamp,
};
use crate::port::{Journal, JournalPosition, JournalUsage, Loaded, StoreError};

#[async_trait]
impl Journal for MemoryStore {
    async fn load(&self, server: &ServerName) -> Result<Loaded, StoreError> {
        let state = self.state();
        let Server { snapshot, state: server_state, last_seq, .. } =
            state.servers.get(server).cloned().unwrap_or_default();
        let needs_reset = state.resets.get(server) == Some(&false);
        Ok(Loaded { epoch: state.epoch, snapshot, state: server_state, last_seq, needs_reset })
    }

    async fn commit(&self, change_set: ChangeSet) -> Result<Committed, StoreError> {
        let state = &mut *self.state();
        let now = self.clock.now();
        let server = state.servers.get(&change_set.server);
        let last = server.map_or((Seq(0), Rev(0)), |server| (server.last_seq, server.last_rev));
        let current_rev =
            |hash: InfoHash| Ok::<_, Infallible>(server.and_then(|server| Some(server.snapshot.get(&hash)?.rev)));
        // Nothing is changed before there is room (I1).
        let Ok(numbered) = Numbered::new(&change_set, state.epoch, last, current_rev);
        let bytes = numbered.bytes();
        if bytes > 0 {
            make_room(&mut Trimming { state, now }, &change_set.server, bytes, self.options.journal_bytes_max)?;
        }
        let committed = state.write(change_set, numbered);
        state.trim_idle(self.options.journal_bytes_target(), |entry| {
            u128::from(now.millis_since(entry.time)) > self.options.journal_age_max.as_millis()
        });
        Ok(committed)
    }

    async fn read_after(&self, server: &ServerName, after: Seq, limit: u16) -> Result<Vec<JournalEntry>, StoreError> {
        let state = self.state();
        let Some(server) = state.servers.get(server) else { return Ok(Vec::new()) };
        let later = server.journal.range(Seq(after.0.saturating_add(1))..);
        let fits = fits_page(self.options.pages.entries, |entry: &JournalEntry| entry.body.len());
        Ok(later.take(usize::from(limit)).map(|(_, entry)| entry.clone()).take_while(fits).collect())
    }

    async fn position(&self, server: &ServerName, seq: Seq) -> Result<Option<JournalPosition>, StoreError> {
        let state = self.state();
        let mut positions = state.positions.iter();
        Ok(positions.find(|(_, (of, number))| of == server && *number == seq).map(|(position, _)| *position))
    }

    async fn read_all_after(
        &self,
        after: Option<JournalPosition>,
        limit: u16,
    ) -> Result<Vec<(JournalPosition, JournalEntry)>, StoreError> {
        let state = self.state();
        let later = state.positions.range(JournalPosition(after.map_or(0, |position| position.0) + 1)..);
        let entries = later.map(|(position, (server, seq))| (*position, state.servers[server].journal[seq].clone()));
        let fits =
            fits_page(self.options.pages.entries, |(_, entry): &(JournalPosition, JournalEntry)| entry.body.len());
        Ok(entries.take(usize::from(limit)).take_while(fits).collect())
    }

    async fn usage(&self) -> Result<JournalUsage, StoreError> {
        Ok(self.state().usage())
    }
}

impl State {
    fn usage(&self) -> JournalUsage {
        self.servers.values().fold(JournalUsage::default(), |usage, server| JournalUsage {
            entries: usage.entries + server.journal.len() as u64,
            bytes: usage.bytes + server.journal_bytes,
        })
    }

    fn write(&mut self, change_set: ChangeSet, numbered: Numbered) -> Committed {
        let ChangeSet { server: name, time, events, changes, state } = change_set;
        let bytes = numbered.bytes();
        let Numbered { entries, revs, newest, last_seq, last_rev } = numbered;
        if events.iter().any(|new_event| new_event.kind == Kind::JournalReset) {
            self.resets.insert(name.clone(), true);
        }
        for entry in &entries {
            self.last_position.0 += 1;
            self.positions.insert(self.last_position, (name.clone(), entry.seq));
        }
        let server = self.servers.entry(name).or_default();
        (server.last_rev, server.last_seq) = (last_rev, last_seq);
        server.journal_bytes += bytes;
        server.journal.extend(entries.iter().map(|entry| (entry.seq, entry.clone())));
        server.state = state.unwrap_or_else(|| server.state.clone());
        let mut snapshot = BTreeMap::new();
        for (hash, change) in changes {
            let before = server.snapshot.remove(&hash).map(|before| before.last_seq);
            let row = change.map(|(torrent, diff_state)| {
                let last_seq = newest.get(&hash).copied().or(before).unwrap_or_default();
                SnapshotTorrent { torrent, rev: revs[&hash], last_seq, changed_at: time, diff_state }
            });
            server.snapshot.extend(row.clone().map(|row| (hash, row)));
            snapshot.insert(hash, row);
        }
        // An event of a torrent whose row stays: only that the entry has to arrive first is new.
        for (hash, seq) in newest {
            if let Some(row) = server.snapshot.get_mut(&hash)
                && !snapshot.contains_key(&hash)
            {
                row.last_seq = seq;
                snapshot.insert(hash, Some(row.clone()));
            }
        }
        Committed { last_seq, entries, snapshot }
    }

    /// Trims entries that every sink has: down to `target` bytes, and those that are too old.
    fn trim_idle(&mut self, target: u64, is_too_old: impl Fn(&JournalEntry) -> bool) {
        while self.usage().bytes > target && self.trim_one(Holding::All, |_| true).is_some() {}
        while self.trim_one(Holding::All, &is_too_old).is_some() {}
    }

    /// Removes the oldest entry that no sink holds back, if `may_go` allows it, and returns which one that was.
    fn trim_one(&mut self, holding: Holding, may_go: impl Fn(&JournalEntry) -> bool) -> Option<(ServerName, Seq)> {
        let Self { servers, positions, sinks, blocked, .. } = self;
        let holds = |sink: &SinkName| holding == Holding::All || !blocked.contains(sink);
        let oldest = servers.iter().filter_map(|(name, server)| {
            let (seq, entry) = server.journal.first_key_value()?;
            let mut cursors = sinks.iter().filter(|(sink, _)| holds(sink)).filter_map(|(_, s)| s.progress.get(name));
            (!cursors.any(|progress| progress.cursor < *seq)).then_some((entry.time, name))
        });
        let name = oldest.min_by_key(|(time, _)| *time)?.1.clone();
        let server = servers.get_mut(&name)?;
        let trimmed = server.journal.first_entry().filter(|first| may_go(first.get()))?.remove();
        server.journal_bytes -= trimmed.body.len() as u64;
        positions.retain(|_, (of, seq)| *of != name || *seq != trimmed.seq);
        Some((name, trimmed.seq))
    }
}

/// The journal while it makes room.
struct Trimming<'a> {
    state: &'a mut State,
    now: Timestamp,
}

impl Trim for Trimming<'_> {
    type Error = StoreError;

    fn bytes(&self) -> Result<u64, StoreError> {
        Ok(self.state.usage().bytes)
    }

    fn trim(&mut self, _excess: u64, holding: Holding) -> Result<Option<(ServerName, Seq)>, StoreError> {
        Ok(self.state.trim_one(holding, |_| true))
    }

    fn is_held_for_blocked_sinks_alone(&self, server: &ServerName) -> Result<bool, StoreError> {
        let State { sinks, blocked, .. } = &self.state;
        let mut readers = sinks.iter().filter(|(_, sink)| sink.progress.contains_key(server)).peekable();
        Ok(!blocked.is_empty() && (readers.peek().is_none() || readers.any(|(name, _)| !blocked.contains(name))))
    }

    fn give_up(&mut self, server: &ServerName, last: Seq) -> Result<(), StoreError> {
        let State { epoch, sinks, blocked, dead_letters, .. } = &mut *self.state;
        for sink in blocked.names() {
            let Some(progress) = sinks.get_mut(&sink).and_then(|sink| sink.progress.get_mut(server)) else { continue };
            let queue = dead_letters.iter().filter(|(of, _)| *of == sink).map(|(_, dead_letter)| dead_letter);
            let gaps = queue.filter(|dead_letter| dead_letter.server == *server && dead_letter.gap().is_some());
            let newest = gaps.max_by_key(|gap| gap.seq);
            let gap = DeadLetter::new_gap((server, *epoch), (progress.cursor, newest), last, self.now);
            let Some(gap) = gap else { continue };
            progress.cursor = progress.cursor.max(last);
            match dead_letters.iter_mut().find(|(of, known)| *of == sink && known.id == gap.id) {
                Some((_, known)) => *known = gap,
                None => dead_letters.push((sink, gap)),
            }
        }
        Ok(())
    }
}
