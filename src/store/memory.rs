//! The store in memory: for tests, and for library users who want no folder.
//!
//! It answers as [`SqliteStore`](super::SqliteStore) does, only that the state ends with it. The
//! bounds are the same, so it may be `Full` too. What is in it at one moment can be taken as an
//! [`Image`] and opened again, as a file is after a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    ANSWERS_BYTES_MAX, ASKERS_MAX, COMMAND_MEMORY, COMMANDS_MAX, DeadLetter, Options, entry, gap_letter,
    newly_given_up, too_many_dead_letters,
};
use crate::model::{
    ChangeSet, CommandId, Committed, Epoch, JournalEntry, Kind, Rev, Seq, ServerName, ServerState, SinkName, Snapshot,
    SnapshotTorrent, Timestamp,
};
use crate::port::{
    Clock, CommandLog, Journal, JournalPosition, Loaded, LoggedCommand, LoggedResult, RESULTS_BYTES, Recorded, ReplyTo,
    ResultBacklog, RetainedScan, SinkNotes, SinkProgress, SinkStore, StoreError, SystemClock, UnsentResult, Usage,
};

/// Revisions begin at a multiple of this in each life of a store.
const REV_BLOCK: u64 = 10_000;

pub struct MemoryStore {
    options: Options,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

/// Everything that a store holds at one moment.
#[derive(Clone)]
pub struct Image(State);

#[derive(Clone)]
struct State {
    epoch: Epoch,
    was_new: bool,
    servers: BTreeMap<ServerName, Server>,
    /// Of the entries, in the order of the commits.
    positions: BTreeMap<JournalPosition, (ServerName, Seq)>,
    progress: BTreeMap<(ServerName, SinkName), SinkProgress>,
    dead_letters: Vec<(SinkName, DeadLetter)>,
    /// Sinks that stand: the box is full, and this entry of theirs finds no place in it.
    standing: BTreeMap<SinkName, (ServerName, Seq)>,
    retained: BTreeMap<SinkName, BTreeSet<String>>,
    memories: BTreeMap<SinkName, String>,
    sink_notes: BTreeMap<SinkName, SinkNotes>,
    /// Servers that a sink knows from a state that is lost; true when that was told.
    resets: BTreeMap<ServerName, bool>,
    commands: Vec<Command>,
    results: BTreeMap<i64, (SinkName, UnsentResult)>,
    last_result: i64,
}

#[derive(Clone, Default)]
struct Server {
    snapshot: Snapshot,
    state: ServerState,
    journal: BTreeMap<Seq, JournalEntry>,
    journal_bytes: u64,
    last_seq: Seq,
    last_rev: Rev,
}

#[derive(Clone)]
struct Command {
    logged: LoggedCommand,
    result: Option<Bytes>,
    /// Who sent it again while it was being carried out.
    askers: Vec<(SinkName, Option<ReplyTo>)>,
}

impl Command {
    fn ask_too(&mut self, sink: SinkName, reply: Option<ReplyTo>) -> Recorded {
        let LoggedCommand { origin, reply: first, .. } = &self.logged;
        let asker = (sink, reply);
        if (origin, first) == (&asker.0, &asker.1) || self.askers.contains(&asker) {
            return Recorded::Running;
        }
        if asker.1.is_some() && self.askers.len() as u64 >= ASKERS_MAX {
            return Recorded::WaitersFull;
        }
        self.askers.push(asker);
        Recorded::Running
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new(Options::default(), Arc::new(SystemClock))
    }
}

impl MemoryStore {
    pub fn new(options: Options, clock: Arc<dyn Clock>) -> Self {
        Self::with_epoch(Epoch(rand::random()), options, clock)
    }

    /// A new store of an epoch that the caller answers for: no other store may have had it.
    pub fn with_epoch(epoch: Epoch, options: Options, clock: Arc<dyn Clock>) -> Self {
        let state = State {
            epoch,
            was_new: true,
            servers: BTreeMap::new(),
            positions: BTreeMap::new(),
            progress: BTreeMap::new(),
            dead_letters: Vec::new(),
            standing: BTreeMap::new(),
            retained: BTreeMap::new(),
            memories: BTreeMap::new(),
            sink_notes: BTreeMap::new(),
            resets: BTreeMap::new(),
            commands: Vec::new(),
            results: BTreeMap::new(),
            last_result: 0,
        };
        Self { options, clock, state: Mutex::new(state) }
    }

    /// Opens what an earlier store held, which may have been longer ago than its last write.
    ///
    /// As with a file, no revision is given again that was given after the image was taken, as long
    /// as those were fewer than a block.
    pub fn open(image: Image, options: Options, clock: Arc<dyn Clock>) -> Self {
        let Image(mut state) = image;
        state.was_new = state.servers.is_empty();
        state.standing.clear();
        for server in state.servers.values_mut() {
            server.last_rev = Rev((server.last_rev.0 / REV_BLOCK + 1) * REV_BLOCK);
        }
        Self { options, clock, state: Mutex::new(state) }
    }

    pub fn image(&self) -> Image {
        Image(self.state().clone())
    }

    /// As [`SqliteStore::declare_sinks`](super::SqliteStore::declare_sinks).
    pub fn declare_sinks(&self, sinks: &BTreeMap<SinkName, Vec<ServerName>>) {
        let mut state = self.state();
        state.progress.retain(|(server, sink), _| sinks.get(sink).is_some_and(|servers| servers.contains(server)));
        state.results.retain(|_, (sink, _)| sinks.contains_key(sink));
        state.sink_notes.retain(|sink, _| sinks.contains_key(sink));
    }

    /// Lets a dead letter go; `false` if there is no such.
    pub fn forget_dead_letter(&self, sink: &SinkName, id: &str) -> bool {
        let mut state = self.state();
        let before = state.dead_letters.len();
        state.dead_letters.retain(|(of, letter)| of != sink || letter.id != id);
        state.dead_letters.len() < before
    }

    /// As [`SqliteStore::dead_letters`](super::SqliteStore::dead_letters).
    pub fn dead_letters(&self, sink: &SinkName) -> Vec<DeadLetter> {
        let state = self.state();
        state.dead_letters.iter().filter(|(of, _)| of == sink).map(|(_, letter)| letter.clone()).collect()
    }

    /// Becomes like a file that is opened (again): same epoch, and new only if nothing is in it.
    #[cfg(test)]
    pub(super) fn reopen(&self, epoch: Epoch) {
        let mut state = self.state();
        state.standing.clear();
        state.epoch = epoch;
        state.was_new = state.servers.is_empty();
    }

    /// Nothing in here panics half-way through a change, so what a panicking holder left is whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for server in self.servers.values() {
            usage.journal_entries += server.journal.len() as u64;
            usage.journal_bytes += server.journal_bytes;
        }
        usage
    }

    /// Lets the oldest entry go that every sink has, but for those that stand if they do not count, if `may_go` says
    /// so of it. Returns which that was.
    fn trim_one(&mut self, counts_standing: bool, may_go: impl Fn(&JournalEntry) -> bool) -> Option<(ServerName, Seq)> {
        let Self { servers, positions, progress, standing, .. } = self;
        let counts = |sink: &SinkName| counts_standing || !standing.contains_key(sink);
        let oldest = servers.iter().filter_map(|(name, server)| {
            let (seq, entry) = server.journal.first_key_value()?;
            let holds = |((of, sink), progress): (&(ServerName, SinkName), &SinkProgress)| {
                of == name && counts(sink) && progress.cursor < *seq
            };
            (!progress.iter().any(holds)).then_some((entry.time, name))
        });
        let name = oldest.min_by_key(|(time, _)| *time)?.1.clone();
        let server = servers.get_mut(&name).expect("it was just there");
        let gone = server.journal.first_entry().filter(|first| may_go(first.get()))?.remove();
        server.journal_bytes -= gone.body.len() as u64;
        positions.retain(|_, (of, seq)| *of != name || *seq != gone.seq);
        Some((name, gone.seq))
    }

    /// Whether somebody hears of the server who does not stand; viewers do, where there is no sink at all.
    fn has_others(&self, server: &ServerName) -> bool {
        let sinks: Vec<&SinkName> = self.progress.keys().filter(|(of, _)| of == server).map(|(_, sink)| sink).collect();
        let do_all_stand = sinks.iter().all(|sink| self.standing.contains_key(*sink));
        !self.standing.is_empty() && (sinks.is_empty() || !do_all_stand)
    }

    /// Notes that the entries of a server up to `last` are gone, which sinks that stand have not had.
    fn give_up(&mut self, server: &ServerName, last: Seq, now: Timestamp) {
        for sink in self.standing.keys() {
            let Some(progress) = self.progress.get_mut(&(server.clone(), sink.clone())) else { continue };
            let gaps = self.dead_letters.iter().filter(|(of, letter)| of == sink && letter.server == *server);
            let gap = gaps.map(|(_, letter)| letter).filter(|letter| letter.gap().is_some()).max_by_key(|gap| gap.seq);
            let Some(range) = newly_given_up(progress.cursor, gap, last) else { continue };
            let letter = gap_letter(server, self.epoch, range, now);
            progress.cursor = progress.cursor.max(last);
            match self.dead_letters.iter_mut().find(|(of, known)| of == sink && known.id == letter.id) {
                Some((_, known)) => *known = letter,
                None => self.dead_letters.push((sink.clone(), letter)),
            }
        }
    }

    fn command(&mut self, server: Option<&ServerName>, id: &CommandId) -> Option<&mut Command> {
        self.commands.iter_mut().find(|c| c.logged.server.as_ref() == server && c.logged.id == *id)
    }

    fn queue_result(&mut self, sink: SinkName, server: Option<ServerName>, body: Bytes, reply: Option<ReplyTo>) {
        self.last_result += 1;
        let number = self.last_result;
        self.results.insert(number, (sink, UnsentResult { number, server, body, reply }));
    }

    fn log(&mut self, command: LoggedCommand, answer: Option<LoggedResult>) -> Result<Recorded, StoreError> {
        match self.command(command.server.as_ref(), &command.id).map(|known| known.result.clone()) {
            Some(Some(result)) => {
                self.queue_result(command.origin, command.server, result, command.reply);
                Ok(Recorded::Answered)
            }
            Some(None) => {
                let command_of = self.command(command.server.as_ref(), &command.id);
                Ok(command_of.expect("it was there just now").ask_too(command.origin, command.reply))
            }
            None => {
                let (server, id) = (command.server.clone(), command.id.clone());
                self.commands.push(Command { logged: command, result: None, askers: Vec::new() });
                if let Some(answer) = answer {
                    self.finish(server.as_ref(), &id, answer)?;
                }
                Ok(Recorded::New)
            }
        }
    }

    fn finish(&mut self, server: Option<&ServerName>, id: &CommandId, answer: LoggedResult) -> Result<(), StoreError> {
        let command = self.command(server, id).ok_or_else(|| unknown(id))?;
        if command.result.is_none() {
            command.result = Some(answer.body.clone());
            command.logged.body = Bytes::new();
            let LoggedCommand { origin, server, reply, .. } = command.logged.clone();
            let askers = std::mem::take(&mut command.askers);
            for (sink, reply) in std::iter::once((origin, reply)).chain(askers) {
                self.queue_result(sink, server.clone(), answer.body.clone(), reply);
            }
        }
        Ok(())
    }

    fn forget_commands(&mut self, now: Timestamp) {
        let is_old = |command: &Command| {
            command.result.is_some()
                && u128::from(now.millis_since(command.logged.received_at)) >= COMMAND_MEMORY.as_millis()
        };
        self.commands.retain(|command| !is_old(command));
        let finished = self.commands.iter().filter(|command| command.result.is_some()).count();
        let mut excess = finished.saturating_sub(COMMANDS_MAX as usize);
        self.commands.retain(|command| {
            let goes = excess > 0 && command.result.is_some();
            excess -= usize::from(goes);
            !goes
        });
        let mut bytes: u64 = self.commands.iter().filter_map(|command| command.result.as_ref()).map(length).sum();
        self.commands.retain(|command| {
            let length = command.result.as_ref().map_or(0, length);
            let goes = bytes > ANSWERS_BYTES_MAX && command.result.is_some();
            bytes -= if goes { length } else { 0 };
            !goes
        });
    }
}

fn length(bytes: &Bytes) -> u64 {
    bytes.len() as u64
}

fn unknown(id: &CommandId) -> StoreError {
    StoreError::Io(format!("command {id} is not in the log").into())
}

#[async_trait]
impl Journal for MemoryStore {
    async fn load(&self, server: &ServerName) -> Result<Loaded, StoreError> {
        let state = self.state();
        let known = state.servers.get(server);
        let Server { snapshot, state: of_server, last_seq, .. } = known.cloned().unwrap_or_default();
        Ok(Loaded {
            epoch: state.epoch,
            snapshot,
            state: of_server,
            last_seq,
            is_new: known.is_none() && state.was_new,
            needs_reset: state.resets.get(server) == Some(&false),
        })
    }

    async fn commit(&self, change_set: ChangeSet) -> Result<Committed, StoreError> {
        let mut state = self.state();
        let (epoch, max) = (state.epoch, self.options.journal_bytes_max);

        let known = state.servers.get(&change_set.server);
        let mut rev = known.map_or(Rev(0), |server| server.last_rev);
        let mut seq = known.map_or(Seq(0), |server| server.last_seq);
        let mut revs = BTreeMap::new();
        for hash in change_set.changes.keys() {
            rev.0 += 1;
            revs.insert(*hash, rev);
        }
        let told_rev = |hash| known.and_then(|server| server.snapshot.get(&hash)).map(|snapshot| snapshot.rev);
        let mut newest = BTreeMap::new();
        let mut entries = Vec::new();
        for new_event in &change_set.events {
            seq.0 += 1;
            let hash = new_event.torrent.as_ref().map(|torrent| torrent.hash);
            newest.extend(hash.map(|hash| (hash, seq)));
            let rev = hash.and_then(|hash| revs.get(&hash).copied().or_else(|| told_rev(hash)));
            entries.push(entry(&change_set, new_event, epoch, seq, rev.unwrap_or_default()));
        }

        let bytes: u64 = entries.iter().map(|entry| entry.body.len() as u64).sum();
        while bytes > 0 && state.usage().journal_bytes > 0 && state.usage().journal_bytes + bytes > max {
            if state.trim_one(true, |_| true).is_some() {
                continue;
            }
            let gone = if state.has_others(&change_set.server) { state.trim_one(false, |_| true) } else { None };
            if let Some((of, last)) = gone {
                state.give_up(&of, last, self.clock.now());
            } else {
                let reason = format!("{} bytes wait for sinks, {max} are allowed", state.usage().journal_bytes);
                return Err(StoreError::Full { reason });
            }
        }

        if change_set.events.iter().any(|new_event| new_event.kind == Kind::JournalReset) {
            state.resets.insert(change_set.server.clone(), true);
        }
        for entry in &entries {
            let position = state.positions.last_key_value().map_or(1, |(position, _)| position.0 + 1);
            state.positions.insert(JournalPosition(position), (change_set.server.clone(), entry.seq));
        }
        let server = state.servers.entry(change_set.server.clone()).or_default();
        (server.last_rev, server.last_seq) = (rev, seq);
        server.journal_bytes += bytes;
        server.journal.extend(entries.iter().map(|entry| (entry.seq, entry.clone())));
        server.state = change_set.state.unwrap_or_else(|| server.state.clone());
        let mut snapshot = BTreeMap::new();
        for (hash, change) in change_set.changes {
            let before = server.snapshot.remove(&hash);
            let now = change.map(|(torrent, memory)| {
                let last_seq =
                    newest.get(&hash).copied().or(before.map(|snapshot| snapshot.last_seq)).unwrap_or_default();
                SnapshotTorrent { torrent, rev: revs[&hash], last_seq, changed_at: change_set.time, memory }
            });
            server.snapshot.extend(now.clone().map(|snapshot| (hash, snapshot)));
            snapshot.insert(hash, now);
        }
        for (hash, seq) in newest {
            if let Some(known) = server.snapshot.get_mut(&hash)
                && !snapshot.contains_key(&hash)
            {
                known.last_seq = seq;
                snapshot.insert(hash, Some(known.clone()));
            }
        }

        while state.usage().journal_bytes > max / 2 && state.trim_one(true, |_| true).is_some() {}
        let now = self.clock.now();
        let age_max = self.options.journal_age_max.as_millis();
        while state.trim_one(true, |entry| u128::from(now.millis_since(entry.time)) > age_max).is_some() {}
        Ok(Committed { last_seq: seq, entries, snapshot })
    }

    async fn read(&self, server: &ServerName, after: Seq, limit: u16) -> Result<Vec<JournalEntry>, StoreError> {
        let state = self.state();
        let Some(server) = state.servers.get(server) else {
            return Ok(Vec::new());
        };
        let later = server.journal.range(Seq(after.0.saturating_add(1))..);
        Ok(later.take(usize::from(limit)).map(|(_, entry)| entry.clone()).collect())
    }

    async fn position(&self, server: &ServerName, seq: Seq) -> Result<Option<JournalPosition>, StoreError> {
        let state = self.state();
        let is_kept = state.servers.get(server).is_some_and(|server| server.journal.contains_key(&seq));
        let is_it = |(_, (of, number)): &(&JournalPosition, &(ServerName, Seq))| of == server && *number == seq;
        Ok(state.positions.iter().find(is_it).map(|(position, _)| *position).filter(|_| is_kept))
    }

    async fn read_all_after(
        &self,
        after: Option<JournalPosition>,
        limit: u16,
    ) -> Result<Vec<(JournalPosition, JournalEntry)>, StoreError> {
        let state = self.state();
        let later = state.positions.range(JournalPosition(after.map_or(0, |position| position.0) + 1)..);
        let kept = later.filter_map(|(position, (server, seq))| {
            Some((*position, state.servers.get(server)?.journal.get(seq)?.clone()))
        });
        Ok(kept.take(usize::from(limit)).collect())
    }

    async fn usage(&self) -> Result<Usage, StoreError> {
        Ok(self.state().usage())
    }
}

#[async_trait]
impl SinkStore for MemoryStore {
    async fn progress(&self, sink: &SinkName) -> Result<BTreeMap<ServerName, SinkProgress>, StoreError> {
        let state = self.state();
        let mine = state.progress.iter().filter(|((_, of), _)| of == sink);
        Ok(mine.map(|((server, _), progress)| (server.clone(), *progress)).collect())
    }

    async fn save_progress(
        &self,
        sink: &SinkName,
        progress: BTreeMap<ServerName, SinkProgress>,
    ) -> Result<(), StoreError> {
        let mut state = self.state();
        let is_over =
            |(server, seq): &(ServerName, Seq)| progress.get(server).is_some_and(|noted| noted.cursor >= *seq);
        if state.standing.get(sink).is_some_and(is_over) {
            state.standing.remove(sink);
        }
        state.progress.extend(progress.into_iter().map(|(server, progress)| ((server, sink.clone()), progress)));
        Ok(())
    }

    async fn add_dead_letter(&self, sink: &SinkName, entry: &JournalEntry, reason: &str) -> Result<(), StoreError> {
        let mut state = self.state();
        let JournalEntry { server, seq, id, body, .. } = entry;
        let id = id.to_string();
        let others = state.dead_letters.iter().filter(|(of, letter)| of == sink && letter.id != id);
        let max = self.options.dead_letters_max;
        if others.count() as u64 >= max {
            state.standing.insert(sink.clone(), (server.clone(), *seq));
            return Err(too_many_dead_letters(max));
        }
        state.standing.remove(sink);
        if !state.dead_letters.iter().any(|(of, letter)| of == sink && letter.id == id) {
            let (server, seq, reason, body) = (server.clone(), *seq, reason.to_owned(), body.clone());
            let letter = DeadLetter { id, server, seq, reason, time: self.clock.now(), body };
            state.dead_letters.push((sink.clone(), letter));
        }
        Ok(())
    }

    async fn retained_topics(&self, sink: &SinkName) -> Result<Vec<String>, StoreError> {
        Ok(self.state().retained.get(sink).into_iter().flatten().cloned().collect())
    }

    async fn register_topics(&self, sink: &SinkName, names: Vec<String>) -> Result<(), StoreError> {
        self.state().retained.entry(sink.clone()).or_default().extend(names);
        Ok(())
    }

    async fn unregister_topics(&self, sink: &SinkName, names: Vec<String>) -> Result<(), StoreError> {
        let mut state = self.state();
        let kept = state.retained.entry(sink.clone()).or_default();
        names.iter().for_each(|name| drop(kept.take(name)));
        Ok(())
    }

    async fn sink_notes(&self, sink: &SinkName) -> Result<SinkNotes, StoreError> {
        Ok(self.state().sink_notes.get(sink).copied().unwrap_or_default())
    }

    async fn require_retained_scan(&self, sink: &SinkName, is_first_life: bool) -> Result<(), StoreError> {
        let mut state = self.state();
        let sink_notes = state.sink_notes.entry(sink.clone()).or_default();
        let was_of_first_life = sink_notes.search.is_some_and(|search| search.is_of_first_life);
        sink_notes.search = Some(RetainedScan { is_of_first_life: is_first_life || was_of_first_life });
        Ok(())
    }

    async fn adopt_retained(
        &self,
        sink: &SinkName,
        names: Vec<String>,
        strangers: Vec<ServerName>,
    ) -> Result<Vec<ServerName>, StoreError> {
        self.register_topics(sink, names).await?;
        let mut state = self.state();
        if let Some(search) = state.sink_notes.get_mut(sink).and_then(|sink_notes| sink_notes.search.as_mut()) {
            search.is_of_first_life = false;
        }
        let owes_it_now = |server: &ServerName| !state.resets.contains_key(server);
        let owe_it_now: Vec<ServerName> = strangers.into_iter().filter(owes_it_now).collect();
        state.resets.extend(owe_it_now.iter().map(|server| (server.clone(), false)));
        Ok(owe_it_now)
    }

    async fn scan_completed(&self, sink: &SinkName) -> Result<(), StoreError> {
        self.state().sink_notes.entry(sink.clone()).or_default().search = None;
        Ok(())
    }

    async fn note_strict_ordering(&self, sink: &SinkName) -> Result<(), StoreError> {
        self.state().sink_notes.entry(sink.clone()).or_default().is_strict_ordering = true;
        Ok(())
    }

    async fn projection_state(&self, sink: &SinkName) -> Result<Option<String>, StoreError> {
        Ok(self.state().memories.get(sink).cloned())
    }

    async fn save_projection_state(&self, sink: &SinkName, memory: String) -> Result<(), StoreError> {
        self.state().memories.insert(sink.clone(), memory);
        Ok(())
    }
}

#[async_trait]
impl CommandLog for MemoryStore {
    async fn record_commands(
        &self,
        commands: Vec<(LoggedCommand, Option<LoggedResult>)>,
    ) -> Result<Vec<Recorded>, StoreError> {
        let mut state = self.state();
        state.forget_commands(self.clock.now());
        commands.into_iter().map(|(command, answer)| state.log(command, answer)).collect()
    }

    async fn start_command(&self, server: Option<&ServerName>, id: &CommandId) -> Result<(), StoreError> {
        let mut state = self.state();
        state.command(server, id).ok_or_else(|| unknown(id))?.logged.is_started = true;
        Ok(())
    }

    async fn finish_command(
        &self,
        server: Option<&ServerName>,
        id: &CommandId,
        answer: LoggedResult,
    ) -> Result<(), StoreError> {
        self.state().finish(server, id, answer)
    }

    async fn unfinished_commands(&self) -> Result<Vec<LoggedCommand>, StoreError> {
        let state = self.state();
        Ok(state.commands.iter().filter(|c| c.result.is_none()).map(|c| c.logged.clone()).collect())
    }

    async fn unsent_results(&self, sink: &SinkName, after: i64, limit: u16) -> Result<Vec<UnsentResult>, StoreError> {
        let state = self.state();
        let mine = state
            .results
            .range(after.saturating_add(1)..)
            .map(|(_, result)| result)
            .filter(|(of, _)| of == sink)
            .map(|(_, result)| result.clone());
        let mut bytes = 0;
        let is_wanted = |result: &UnsentResult| {
            let is_wanted = bytes < RESULTS_BYTES;
            bytes += result.body.len();
            is_wanted
        };
        Ok(mine.take(usize::from(limit)).take_while(is_wanted).collect())
    }

    async fn result_backlog(&self, sink: &SinkName) -> Result<ResultBacklog, StoreError> {
        let state = self.state();
        let bytes = state.results.values().filter(|(of, _)| of == sink).map(|(_, result)| length(&result.body));
        Ok(bytes.fold(ResultBacklog::default(), |ResultBacklog { count, bytes }, length| ResultBacklog {
            count: count + 1,
            bytes: bytes + length,
        }))
    }

    async fn mark_results_sent(&self, numbers: Vec<i64>) -> Result<(), StoreError> {
        self.state().results.retain(|number, _| !numbers.contains(number));
        Ok(())
    }
}
