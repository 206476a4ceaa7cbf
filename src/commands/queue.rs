//! The queue of one server: its commands without a result, and which of them may run.
//!
//! Commands for one torrent run in the order in which they came, others in parallel. A command whose torrents are
//! not known before it runs (a filter) runs alone.
//!
//! Each origin (a broker, HTTP) has a quota of its own, so that a flood from one leaves the others their places, and a share
//! of the [memory](CommandMemory) for what waits and for what runs.
//!
//! What an earlier run left in the command log comes first, as there is room for it; a queue takes nothing new before all of
//! it is read.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::memory::{CommandMemory, SMALL_COMMAND_BYTES, running_bytes, waiting_bytes};
use super::request::{Request, Target};
use super::sender::CommandSender;
use super::tree_memory::TreeMemory;
use crate::model::{CommandId, InfoHash, Operation, SinkName, Timestamp};
use crate::port::LoggedCommand;

/// Most commands of one origin in a queue; more are refused.
const COMMANDS_MAX: usize = 1000;
/// Most commands of one origin for the same torrent, and for torrents that are not known yet.
const SAME_MAX: usize = 100;
/// Most commands of one origin for no torrent that is there: adding, listing, reading.
const OTHERS_MAX: usize = 500;
/// Torrents of a command that is small.
const FEW_MAX: usize = 8;
/// Most `add` commands of one origin that fetch, check or load at once: a slow link may take half a minute. One that only
/// waits for the client to show it does not count.
const ADDS_MAX: usize = 8;

/// The commands of one server, or of the bridge, that have no result yet. The command log has the same on disk.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    memory: Arc<CommandMemory>,
    /// Wakes the worker: a command came, or one that others wait for knows its torrents now.
    pub arrived: Notify,
}

#[derive(Default)]
struct State {
    entries: VecDeque<Entry>,
    quotas: BTreeMap<SinkName, Quota>,
    /// All commands up to this number of the command log were read; `None`: there are no others that this queue lacks.
    unread_after: Option<i64>,
}

/// The places that one origin has taken in the queue.
#[derive(Default)]
struct Quota {
    commands: usize,
    by_class: HashMap<QuotaClass, usize>,
}

/// A kind of commands that a flood is likely to consist of; each has a limit of its own.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum QuotaClass {
    OneTorrent(InfoHash),
    SeveralTorrents,
    UnknownTorrents,
    NoTorrent,
}

impl QuotaClass {
    fn of(request: &Request) -> Self {
        match torrents_of(request) {
            Torrents::Unknown => Self::UnknownTorrents,
            Torrents::These([hash]) => Self::OneTorrent(*hash),
            Torrents::These([]) => Self::NoTorrent,
            Torrents::These(_) => Self::SeveralTorrents,
        }
    }

    fn max(self) -> usize {
        match self {
            Self::OneTorrent(_) | Self::UnknownTorrents => SAME_MAX,
            Self::SeveralTorrents | Self::NoTorrent => OTHERS_MAX,
        }
    }
}

impl Quota {
    fn has_room(&self, class: QuotaClass) -> bool {
        self.commands < COMMANDS_MAX && self.by_class.get(&class).is_none_or(|count| *count < class.max())
    }

    fn take(&mut self, class: QuotaClass) {
        self.commands += 1;
        *self.by_class.entry(class).or_default() += 1;
    }

    fn give_back(&mut self, class: QuotaClass) {
        self.commands = self.commands.saturating_sub(1);
        if let Some(count) = self.by_class.get_mut(&class) {
            *count = count.saturating_sub(1);
            // Removed, or there would be a row for every torrent that was ever commanded (I9).
            if *count == 0 {
                self.by_class.remove(&class);
            }
        }
    }
}

/// A command that was accepted, parsed.
#[derive(Clone, Debug)]
pub struct QueuedCommand {
    /// The command as it is logged, without its body.
    pub command: LoggedCommand,
    /// Its parsed body.
    pub request: Arc<Request>,
    /// Who sent it, as far as this run knows.
    pub sender: CommandSender,
    /// Memory that it takes while it waits.
    waiting_bytes: usize,
}

impl QueuedCommand {
    /// Makes one of a command that is in the command log, which keeps the body.
    pub fn new(command: LoggedCommand, request: Request, sender: CommandSender) -> Self {
        let waiting_bytes = waiting_bytes(&request, command.body.len());
        Self {
            command: LoggedCommand { body: Bytes::new(), ..command },
            request: Arc::new(request),
            sender,
            waiting_bytes,
        }
    }
}

struct Entry {
    queued: QueuedCommand,
    is_running: bool,
    /// Nothing is left to do but to wait for the client.
    is_waiting: bool,
    /// Memory that it takes because it runs.
    running_bytes: usize,
    /// The torrents that a filter matched, once it was evaluated.
    matched: Option<Vec<InfoHash>>,
}

/// The torrents that no other command may touch while one runs.
enum Torrents<'a> {
    These(&'a [InfoHash]),
    /// A filter was not evaluated yet.
    Unknown,
}

/// The commands of one origin, as far as [`Queue::next`] has gone through them.
#[derive(Default)]
struct Passed {
    has_command: bool,
    /// A filter among them waits or runs: nothing of the origin overtakes it.
    is_closed: bool,
    /// A large one among them waits for memory: no other large one overtakes it, or it might wait for ever.
    lacks_memory: bool,
    adds: usize,
}

/// The torrents of commands that later ones wait for.
#[derive(Default)]
struct HeldTorrents<'a> {
    /// Torrents of small commands.
    few: HashSet<InfoHash>,
    /// Torrents of large ones, as they are: to hash them all each time would take longer than to run the command.
    many: Vec<&'a [InfoHash]>,
}

impl<'a> HeldTorrents<'a> {
    fn add(&mut self, hashes: &'a [InfoHash]) {
        if hashes.len() <= FEW_MAX {
            self.few.extend(hashes);
        } else {
            self.many.push(hashes);
        }
    }

    fn has_any_of(&self, hashes: &[InfoHash]) -> bool {
        if hashes.iter().any(|hash| self.few.contains(hash)) {
            return true;
        }
        let mut many = self.many.iter().copied().flatten();
        if hashes.len() <= FEW_MAX {
            return many.any(|held| hashes.contains(held));
        }
        let hashes: HashSet<&InfoHash> = if self.many.is_empty() { HashSet::new() } else { hashes.iter().collect() };
        many.any(|held| hashes.contains(held))
    }
}

impl Queue {
    /// Makes an empty queue that shares `memory` with others.
    pub fn new(memory: Arc<CommandMemory>) -> Self {
        Self { memory, ..Self::default() }
    }

    /// Returns the memory for bodies as trees.
    pub(super) fn trees(&self) -> &TreeMemory {
        self.memory.trees()
    }

    /// Takes a place for one more command of `origin`; `false` if there is none.
    ///
    /// The place is kept until the command is [done](Self::done), or [given back](Self::give_back) before it was pushed.
    pub fn reserve(&self, origin: &SinkName, request: &Request, body_bytes: usize) -> bool {
        let mut state = self.state();
        state.unread_after.is_none() && self.take_place(&mut state, origin, request, waiting_bytes(request, body_bytes))
    }

    /// Gives a reserved place back.
    pub fn give_back(&self, origin: &SinkName, request: &Request, body_bytes: usize) {
        self.state().quota(origin).give_back(QuotaClass::of(request));
        self.memory.give_back_waiting(origin, waiting_bytes(request, body_bytes));
    }

    /// Appends a command that has a place.
    pub fn push(&self, queued: QueuedCommand) {
        self.state().entries.push_back(Entry::waiting(queued));
        self.arrived.notify_one();
    }

    /// Takes nothing new from now on, until everything in the command log [is read](Self::all_read).
    pub(super) fn begin_reading(&self) {
        self.state().unread_after = Some(0);
    }

    /// Returns after which number of the command log to read on; `None` if there is nothing left.
    pub(super) fn unread_after(&self) -> Option<i64> {
        self.state().unread_after
    }

    /// Appends a command from the command log; `false` if there is no room for it now.
    pub(super) fn take_up(&self, number: i64, queued: QueuedCommand) -> bool {
        let mut state = self.state();
        let has_room = self.take_place(&mut state, &queued.command.origin, &queued.request, queued.waiting_bytes);
        if has_room {
            state.unread_after = Some(number);
            state.entries.push_back(Entry::waiting(queued));
            self.arrived.notify_one();
        }
        has_room
    }

    /// Notes that a command in the command log is not for this queue.
    pub(super) fn passed_over(&self, number: i64) {
        self.state().unread_after = Some(number);
    }

    /// Takes new commands from now on.
    pub(super) fn all_read(&self) {
        self.state().unread_after = None;
    }

    fn take_place(&self, state: &mut State, origin: &SinkName, request: &Request, bytes: usize) -> bool {
        let (quota, class) = (state.quota(origin), QuotaClass::of(request));
        let has_place = quota.has_room(class) && self.memory.take_waiting(origin, bytes);
        if has_place {
            quota.take(class);
        }
        has_place
    }

    /// Notes that a worker starts, and returns the commands that an earlier one left half done: they may have reached the
    /// client.
    pub fn restart(&self) -> Vec<QueuedCommand> {
        let mut left = Vec::new();
        for entry in self.state().entries.iter_mut().filter(|entry| entry.is_running) {
            self.memory.give_back_running(&entry.queued.command.origin, std::mem::take(&mut entry.running_bytes));
            (entry.is_running, entry.is_waiting) = (false, false);
            // Evaluated once more: the torrents may be others by now.
            entry.matched = None;
            entry.queued.command.is_started = true;
            left.push(entry.queued.clone());
        }
        left
    }

    /// Returns the first command that no earlier one, running or waiting, holds up, and notes that it runs.
    ///
    /// A filter waits for all earlier commands of its origin, and those after it wait for it; other origins pass,
    /// until the filter is the first of its own. From then on it waits for what runs, and only commands for no
    /// torrent pass.
    ///
    /// A command whose time is over runs at once: its result does not wait for others, and nothing is done for it.
    pub fn next(&self, now: Timestamp) -> Option<QueuedCommand> {
        let mut state = self.state();
        let is_any_running =
            state.entries.iter().any(|entry| entry.is_running && !matches!(entry.torrents(), Torrents::These([])));
        // One large command always may run, beyond its share if need be, whatever small ones run at the same time.
        let large = state.entries.iter().filter(|entry| entry.running_bytes > SMALL_COMMAND_BYTES);
        let origins_of_large: HashSet<&SinkName> = large.map(|entry| &entry.queued.command.origin).collect();
        let mut held = HeldTorrents::default();
        let mut passed: HashMap<&SinkName, Passed> = HashMap::new();
        let mut is_closed = false;
        let place = state.entries.iter().position(|entry| {
            let of_origin = passed.entry(&entry.queued.command.origin).or_default();
            let is_first = !std::mem::replace(&mut of_origin.has_command, true);
            let is_add = matches!(entry.queued.request.operation, Operation::Add(_));
            // Entries keep their order, so those that run were counted before those that wait.
            of_origin.adds += usize::from(is_add && !entry.is_waiting);
            if entry.is_running {
                match entry.torrents() {
                    Torrents::These(hashes) => held.add(hashes),
                    Torrents::Unknown => (of_origin.is_closed, is_closed) = (true, true),
                }
                return false;
            }
            let QueuedCommand { command, request, .. } = &entry.queued;
            let is_only = !origins_of_large.contains(&command.origin);
            let bytes = running_bytes(request);
            let has_room = (bytes <= SMALL_COMMAND_BYTES || !of_origin.lacks_memory)
                && (is_only || self.memory.has_running_room(&command.origin, bytes));
            of_origin.lacks_memory |= !has_room;
            let takes_memory = || self.memory.take_running(&command.origin, bytes, is_only);
            match entry.torrents() {
                // It takes no memory to speak of, and its share is given back with it all the same. One that has begun goes on.
                _ if command.expires_at <= now && command.begun.is_empty() => {
                    self.memory.take_running(&command.origin, bytes, true)
                }
                _ if of_origin.is_closed || is_add && of_origin.adds > ADDS_MAX => false,
                Torrents::These([]) => has_room && takes_memory(),
                Torrents::These(hashes) => {
                    // Memory first: that costs least, and thousands of torrents are compared only where it could run.
                    let may_run = !is_closed && has_room && !held.has_any_of(hashes) && takes_memory();
                    if !may_run {
                        // Held as well while it waits, so that a later command for the torrent does not overtake it.
                        held.add(hashes);
                    }
                    may_run
                }
                Torrents::Unknown => {
                    // Closed for all only once it is the first of its origin: until then it waits for commands of its own
                    // sender, and those of others would wait for a queue that is not theirs.
                    of_origin.is_closed = true;
                    is_closed |= is_first;
                    is_first && !is_any_running && has_room && takes_memory()
                }
            }
        })?;
        let entry = &mut state.entries[place];
        entry.is_running = true;
        entry.running_bytes = running_bytes(&entry.queued.request);
        Some(entry.queued.clone())
    }

    /// Notes which torrents a filter matched; commands for other torrents need not wait for it any more.
    pub fn set_matched(&self, id: &CommandId, hashes: &[InfoHash]) {
        for entry in self.state().entries.iter_mut().filter(|entry| entry.queued.command.id == *id) {
            entry.matched = Some(hashes.to_vec());
        }
        self.arrived.notify_one();
    }

    /// Notes which torrents a command has begun to change, for the worker that follows one that fails.
    pub fn set_begun(&self, id: &CommandId, begun: &[InfoHash]) {
        for entry in self.state().entries.iter_mut().filter(|entry| entry.queued.command.id == *id) {
            entry.queued.command.begun = begun.to_vec();
        }
    }

    /// Notes that a command that runs only waits for the client from now on, so that another may have its place.
    pub fn set_waiting(&self, id: &CommandId) {
        for entry in self.state().entries.iter_mut().filter(|entry| entry.queued.command.id == *id) {
            entry.is_waiting = true;
            if matches!(entry.queued.request.operation, Operation::Add(_)) {
                // The client has the torrent.
                let bytes = std::mem::take(&mut entry.running_bytes);
                self.memory.give_back_running(&entry.queued.command.origin, bytes);
            }
        }
        self.arrived.notify_one();
    }

    /// Notes that a command has its result: it is removed, unless it has begun to change torrents.
    pub fn answered(&self, id: &CommandId) {
        let mut state = self.state();
        let begun = |entry: &&mut Entry| entry.queued.command.id == *id && !entry.queued.command.begun.is_empty();
        if let Some(entry) = state.entries.iter_mut().find(begun) {
            entry.queued.command.is_answered = true;
            return;
        }
        drop(state);
        self.done(id);
    }

    /// Removes a command that has ended.
    pub fn done(&self, id: &CommandId) {
        let mut state = self.state();
        let Some(place) = state.entries.iter().position(|entry| entry.queued.command.id == *id) else { return };
        let Some(Entry { queued, running_bytes, .. }) = state.entries.remove(place) else { return };
        let QueuedCommand { command, request, waiting_bytes, .. } = queued;
        state.quota(&command.origin).give_back(QuotaClass::of(&request));
        self.memory.give_back_waiting(&command.origin, waiting_bytes);
        self.memory.give_back_running(&command.origin, running_bytes);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn quota(&mut self, origin: &SinkName) -> &mut Quota {
        self.quotas.entry(origin.clone()).or_default()
    }
}

impl Entry {
    fn waiting(queued: QueuedCommand) -> Self {
        Self { queued, is_running: false, is_waiting: false, running_bytes: 0, matched: None }
    }

    fn torrents(&self) -> Torrents<'_> {
        match &self.matched {
            Some(hashes) => Torrents::These(hashes),
            None => torrents_of(&self.queued.request),
        }
    }
}

fn torrents_of(request: &Request) -> Torrents<'_> {
    match &request.target {
        _ if !request.verb.is_for_torrents() => Torrents::These(&[]),
        Target::Torrents(hashes) => Torrents::These(hashes),
        Target::Matching(_) | Target::Server => Torrents::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Holders, MemoryBudget, ServerName, SinkName, Timestamp, Verb};

    fn command(id: &str, verb: Verb, hash: Option<u8>, body: &str) -> QueuedCommand {
        let hash = hash.map(|n| InfoHash::V1([n; 20]));
        let request = Request::parse(verb, hash, body.as_bytes(), &TreeMemory::default()).unwrap();
        let command = LoggedCommand {
            id: CommandId::parse(id).unwrap(),
            server: Some(ServerName::parse("home").unwrap()),
            origin: SinkName::parse("bus").unwrap(),
            hash,
            verb: Some(verb),
            body: Bytes::copy_from_slice(body.as_bytes()),
            digest: None,
            received_at: Timestamp::from_millis(0),
            expires_at: Timestamp::from_millis(1),
            reply: None,
            sees_secrets: false,
            is_started: false,
            begun: Vec::new(),
            is_answered: false,
            crashes: 0,
        };
        QueuedCommand::new(command, request, CommandSender::default())
    }

    fn queue_of(commands: impl IntoIterator<Item = QueuedCommand>) -> Queue {
        let queue = Queue::default();
        commands.into_iter().for_each(|queued| push(&queue, queued));
        queue
    }

    fn push(queue: &Queue, queued: QueuedCommand) {
        let QueuedCommand { command, request, waiting_bytes, .. } = &queued;
        assert!(queue.take_place(&mut queue.state(), &command.origin, request, *waiting_bytes));
        queue.push(queued);
    }

    fn next(queue: &Queue) -> Option<String> {
        queue.next(Timestamp::from_millis(0)).map(|queued| queued.command.id.to_string())
    }

    #[test]
    fn commands_for_one_torrent_run_in_order_and_others_in_parallel() {
        let queue = queue_of([
            command("pause 1", Verb::Pause, Some(1), ""),
            command("resume 1", Verb::Resume, Some(1), ""),
            command("pause 2", Verb::Pause, Some(2), ""),
        ]);
        assert_eq!(next(&queue).as_deref(), Some("pause 1"));
        assert_eq!(next(&queue).as_deref(), Some("pause 2"));
        assert_eq!(next(&queue), None);
        queue.done(&CommandId::parse("pause 1").unwrap());
        assert_eq!(next(&queue).as_deref(), Some("resume 1"));
    }

    #[test]
    fn an_expired_command_does_not_wait_for_those_before_it() {
        let queue =
            queue_of([command("pause 1", Verb::Pause, Some(1), ""), command("resume 1", Verb::Resume, Some(1), "")]);
        assert_eq!(next(&queue).as_deref(), Some("pause 1"));
        assert_eq!(next(&queue), None);
        let expired = queue.next(Timestamp::from_millis(1)).unwrap();
        assert_eq!(expired.command.id.to_string(), "resume 1");
    }

    #[test]
    fn a_command_that_has_begun_waits_for_those_before_it_also_when_its_time_is_over() {
        let mut begun = command("move 1", Verb::Move, Some(1), r#"{"directory": "/srv"}"#);
        begun.command.begun = vec![InfoHash::V1([1; 20])];
        let queue = queue_of([command("pause 1", Verb::Pause, Some(1), ""), begun]);
        assert_eq!(next(&queue).as_deref(), Some("pause 1"));
        let next_in_a_second = || queue.next(Timestamp::from_millis(1_000)).map(|queued| queued.command.id.to_string());
        assert_eq!(next_in_a_second(), None, "it would change the torrent at the same time");
        queue.done(&CommandId::parse("pause 1").unwrap());
        assert_eq!(next_in_a_second().as_deref(), Some("move 1"));
    }

    #[test]
    fn a_filter_runs_alone_and_nothing_overtakes_it() {
        let queue = queue_of([
            command("pause 1", Verb::Pause, Some(1), ""),
            command("stop all", Verb::Stop, None, r#"{"filter": {}}"#),
            command("pause 2", Verb::Pause, Some(2), ""),
        ]);
        assert_eq!(next(&queue).as_deref(), Some("pause 1"));
        assert_eq!(next(&queue), None);
        queue.done(&CommandId::parse("pause 1").unwrap());
        assert_eq!(next(&queue).as_deref(), Some("stop all"));
        assert_eq!(next(&queue), None);
    }

    #[test]
    fn a_filter_holds_up_nobody_while_it_waits_for_commands_of_its_own_origin() {
        let of = |origin: &str, mut queued: QueuedCommand| {
            queued.command.origin = SinkName::parse(origin).unwrap();
            queued
        };
        let queue = queue_of([
            command("pause 1", Verb::Pause, Some(1), ""),
            command("stop all", Verb::Stop, None, r#"{"filter": {}}"#),
            command("pause 3", Verb::Pause, Some(3), ""),
            of("http", command("pause 2", Verb::Pause, Some(2), "")),
            of("http", command("resume 1", Verb::Resume, Some(1), "")),
        ]);
        assert_eq!(next(&queue).as_deref(), Some("pause 1"));
        assert_eq!(next(&queue).as_deref(), Some("pause 2"), "another origin passes");
        assert_eq!(next(&queue), None);
        queue.done(&CommandId::parse("pause 1").unwrap());
        assert_eq!(next(&queue), None, "now it waits for what runs, and others for it");
        queue.push(of("http", command("list", Verb::List, None, "")));
        assert_eq!(next(&queue).as_deref(), Some("list"));
        for id in ["pause 2", "list"] {
            queue.done(&CommandId::parse(id).unwrap());
        }
        assert_eq!(next(&queue).as_deref(), Some("stop all"));
        assert_eq!(next(&queue), None);
        queue.set_matched(&CommandId::parse("stop all").unwrap(), &[InfoHash::V1([1; 20])]);
        assert_eq!(next(&queue).as_deref(), Some("pause 3"));
        assert_eq!(next(&queue), None);
        queue.done(&CommandId::parse("stop all").unwrap());
        assert_eq!(next(&queue).as_deref(), Some("resume 1"));
    }

    #[test]
    fn a_filter_that_was_evaluated_lets_others_pass() {
        let queue = queue_of([
            command("stop", Verb::Stop, None, r#"{"filter": {}}"#),
            command("pause 2", Verb::Pause, Some(2), ""),
        ]);
        assert_eq!(next(&queue).as_deref(), Some("stop"));
        assert_eq!(next(&queue), None);
        queue.set_matched(&CommandId::parse("stop").unwrap(), &[InfoHash::V1([1; 20])]);
        assert_eq!(next(&queue).as_deref(), Some("pause 2"));
    }

    #[test]
    fn slow_links_do_not_hold_up_other_commands() {
        let add = |n: usize| command(&n.to_string(), Verb::Add, None, r#"{"url": "http://slow.example/"}"#);
        let queue = queue_of((0..20).map(add).chain([command("pause", Verb::Pause, Some(1), "")]));
        let begun: Vec<String> = std::iter::from_fn(|| next(&queue)).collect();
        assert_eq!(begun.len(), ADDS_MAX + 1);
        assert_eq!(begun.last().map(String::as_str), Some("pause"));
        assert_eq!(next(&queue), None);
        queue.set_waiting(&CommandId::parse("3").unwrap());
        assert_eq!(next(&queue), Some(ADDS_MAX.to_string()), "one that only waits leaves its place to another");
        assert_eq!(next(&queue), None);
    }

    #[test]
    fn a_command_that_ran_when_a_worker_failed_runs_again_as_started() {
        let queue = queue_of([command("delete", Verb::Delete, Some(1), "")]);
        assert!(!queue.next(Timestamp::from_millis(0)).unwrap().command.is_started);
        assert_eq!(queue.restart().len(), 1);
        assert!(queue.next(Timestamp::from_millis(0)).unwrap().command.is_started);
    }

    #[test]
    fn a_full_queue_takes_no_more() {
        let queue = Queue::default();
        let origin = SinkName::parse("bus").unwrap();
        let has_room = |queued: &QueuedCommand, bytes| {
            let has_room = queue.reserve(&origin, &queued.request, bytes);
            if has_room {
                queue.give_back(&origin, &queued.request, bytes);
            }
            has_room
        };
        let push = |queued: QueuedCommand| {
            assert!(queue.reserve(&origin, &queued.request, 0));
            queue.push(queued);
        };
        let list = command("list", Verb::List, None, "");
        let pause = |n| command("pause", Verb::Pause, Some(n), "");
        let stop = command("stop", Verb::Stop, None, r#"{"filter": {}}"#);
        for n in 0..SAME_MAX {
            push(command(&format!("pause {n}"), Verb::Pause, Some(1), ""));
            push(command(&format!("stop {n}"), Verb::Stop, None, r#"{"filter": {}}"#));
        }
        assert!(!has_room(&pause(1), 0) && !has_room(&stop, 0) && has_room(&pause(2), 0));
        for n in 0..OTHERS_MAX {
            push(command(&n.to_string(), Verb::List, None, ""));
        }
        assert!(!has_room(&list, 0) && has_room(&pause(2), 0));
        for n in 0..COMMANDS_MAX - OTHERS_MAX - 2 * SAME_MAX {
            push(command(&format!("one {n}"), Verb::Pause, Some(2 + (n % 200) as u8), ""));
        }
        assert!(!has_room(&pause(250), 0), "all of it is taken");
        queue.done(&CommandId::parse("one 0").unwrap());
        assert!(has_room(&pause(250), 0));
    }

    #[test]
    fn an_origin_that_fills_its_quota_leaves_others_theirs() {
        let queue = Queue::default();
        let [one, other] = ["one", "other"].map(|name| SinkName::parse(name).unwrap());
        let pause = command("pause", Verb::Pause, Some(1), "");
        while queue.reserve(&one, &pause.request, 0) {}
        assert!(queue.reserve(&other, &pause.request, 0));
    }

    fn of_many(id: &str, torrents: usize) -> QueuedCommand {
        let hashes: Vec<String> = (0..torrents).map(|number| format!("{:040x}", number + id.len() * 100_000)).collect();
        command(id, Verb::Pause, None, &serde_json::json!({"hashes": hashes}).to_string())
    }

    #[test]
    fn an_origin_has_a_share_of_the_memory_in_all_queues_together() {
        let memory = Arc::new(CommandMemory::new(
            MemoryBudget::new(32 << 20).unwrap().shares(Holders { origins: 2, ..Holders::default() }),
        ));
        let queues = [(), ()].map(|()| Queue::new(Arc::clone(&memory)));
        let large = of_many("large", 10_000);
        let [one, other] = ["one", "other"].map(|name| SinkName::parse(name).unwrap());
        let mut taken = 0;
        while queues[taken % 2].reserve(&one, &large.request, 430_000) {
            taken += 1;
        }
        assert!((5..20).contains(&taken), "{taken} of 330 KB in 2 MiB");
        assert!(!queues[0].reserve(&one, &large.request, 430_000));
        assert!(queues[0].reserve(&other, &large.request, 430_000));
        for place in 0..taken {
            queues[place % 2].give_back(&one, &large.request, 430_000);
        }
        let huge = of_many("huge", 1);
        assert!(queues[0].reserve(&one, &huge.request, 10 << 20), "one is taken whatever its size");
        assert!(!queues[1].reserve(&one, &huge.request, 10));
        queues[0].give_back(&one, &huge.request, 10 << 20);
        queues[0].give_back(&other, &large.request, 430_000);
        assert_eq!(memory.bytes(), 0);
    }

    #[test]
    fn as_many_large_commands_run_as_there_is_memory_for_and_one_in_each_queue_always() {
        let memory = Arc::new(CommandMemory::new(
            MemoryBudget::new(72 << 20).unwrap().shares(Holders { origins: 1, ..Holders::default() }),
        ));
        let queues = [(), ()].map(|()| Queue::new(Arc::clone(&memory)));
        for (queue, ids) in queues.iter().zip([["a", "bb", "ccc"], ["dddd", "eeeee", "ffffff"]]) {
            ids.map(|id| of_many(id, 10_000)).into_iter().for_each(|queued| push(queue, queued));
            push(queue, of_many("small----", 1));
        }
        let begun = |queue: &Queue| std::iter::from_fn(|| next(queue)).collect::<Vec<_>>();
        assert_eq!(begun(&queues[0]), ["a", "small----"], "24 MiB for 20 MiB each");
        assert_eq!(begun(&queues[1]), ["dddd", "small----"], "although the other has it all");
        for done in ["a", "small----"] {
            queues[0].done(&CommandId::parse(done).unwrap());
        }
        assert_eq!(begun(&queues[0]), ["bb"]);
        queues[0].restart();
        assert_eq!(begun(&queues[0]), ["bb"], "as before");
        for (queue, ids) in queues.iter().zip([["bb", "ccc", "-"], ["dddd", "eeeee", "ffffff"]]) {
            ids.into_iter().chain(["small----"]).for_each(|id| queue.done(&CommandId::parse(id).unwrap()));
        }
        assert_eq!(memory.bytes(), 0);
    }

    #[test]
    fn a_command_larger_than_the_share_waits_for_large_ones_that_run_and_for_no_small_or_later_one() {
        let memory = Arc::new(CommandMemory::new(
            MemoryBudget::new(64 << 20).unwrap().shares(Holders { origins: 8, ..Holders::default() }),
        ));
        let queue = Queue::new(memory);
        let begun = || std::iter::from_fn(|| next(&queue)).collect::<Vec<_>>();
        push(&queue, of_many("small", 1));
        assert_eq!(begun(), ["small"]);
        push(&queue, of_many("a", 10_000));
        assert_eq!(begun(), ["a"], "beyond the share, while a small one runs");
        for queued in [of_many("bb", 10_000), of_many("ccc", 100), of_many("other-", 1)] {
            push(&queue, queued);
        }
        assert_eq!(begun(), ["other-"], "the later large one does not overtake");
        queue.done(&CommandId::parse("a").unwrap());
        assert_eq!(begun(), ["bb"]);
        queue.done(&CommandId::parse("bb").unwrap());
        assert_eq!(begun(), ["ccc"]);
    }

    #[test]
    fn what_is_in_the_command_log_comes_before_what_is_new_as_there_is_room_for_it() {
        let memory = Arc::new(CommandMemory::new(
            MemoryBudget::new(48 << 20).unwrap().shares(Holders { origins: 8, ..Holders::default() }),
        ));
        let queue = Queue::new(memory);
        queue.begin_reading();
        let (old, new) = (|| of_many("old", 10_000), of_many("new", 1));
        assert!(queue.take_up(1, old()) && queue.take_up(2, old()) && !queue.take_up(3, old()));
        assert!(!queue.reserve(&new.command.origin, &new.request, 10), "it would overtake the third");
        assert_eq!(queue.unread_after(), Some(2));
        queue.done(&CommandId::parse("old").unwrap());
        assert!(queue.take_up(3, old()));
        queue.passed_over(4);
        assert_eq!(queue.unread_after(), Some(4));
        queue.all_read();
        assert!(queue.reserve(&new.command.origin, &new.request, 10));
    }

    #[test]
    fn small_and_large_commands_for_one_torrent_run_in_order() {
        let of = |id: &str, hashes: std::ops::Range<usize>| {
            let hashes: Vec<String> = hashes.map(|number| format!("{number:040x}")).collect();
            command(id, Verb::Pause, None, &serde_json::json!({"hashes": hashes}).to_string())
        };
        for ranges in [[0..20, 15..40, 39..40], [0..20, 19..20, 10..30], [3..4, 0..20, 3..5], [1..3, 2..4, 3..30]] {
            let [one, two, three] = ranges.clone();
            let queue = queue_of([of("one", one), of("two", two), of("three", three), of("other", 50..90)]);
            let mut order = Vec::new();
            while let Some(id) = next(&queue) {
                order.push(id);
            }
            assert_eq!(order, ["one", "other"], "{ranges:?}");
            for (done, then) in [("one", "two"), ("two", "three")] {
                queue.done(&CommandId::parse(done).unwrap());
                assert_eq!((next(&queue).as_deref(), next(&queue)), (Some(then), None), "{ranges:?}");
            }
        }
    }
}
