//! The queue of one server: its commands without a result, and which of them may run.
//!
//! Commands for one torrent run in the order in which they came, others in parallel. A command whose torrents are
//! not known before it runs (a filter) runs alone.
//!
//! Each origin (a broker, HTTP) has a quota of its own, so that a flood from one leaves the others their places.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::request::{Request, Target};
use super::sender::CommandSender;
use crate::model::{CommandId, InfoHash, Operation, SinkName, Timestamp};
use crate::port::LoggedCommand;

/// Most commands of one origin in a queue; more are refused.
const COMMANDS_MAX: usize = 1000;
/// Most bytes of bodies of one origin in a queue; more are refused.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Most commands of one origin for the same torrent, and for torrents that are not known yet.
const SAME_MAX: usize = 100;
/// Most commands of one origin for no torrent that is there: adding, listing, reading.
const OTHERS_MAX: usize = 500;
/// Most `add` commands of one origin that fetch, check or load at once: a slow link may take half a minute. One that only
/// waits for the client to show it does not count.
const ADDS_MAX: usize = 8;

/// The commands of one server, or of the bridge, that have no result yet. The command log has the same on disk.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    /// Wakes the worker: a command came, or one that others wait for knows its torrents now.
    pub arrived: Notify,
}

#[derive(Default)]
struct State {
    entries: VecDeque<Entry>,
    quotas: BTreeMap<SinkName, Quota>,
}

/// The places that one origin has taken in the queue.
#[derive(Default)]
struct Quota {
    commands: usize,
    bytes: usize,
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
    fn has_room(&self, class: QuotaClass, bytes: usize) -> bool {
        self.commands < COMMANDS_MAX
            && self.by_class.get(&class).is_none_or(|count| *count < class.max())
            && self.bytes + bytes <= BODY_BYTES_MAX
    }

    fn take(&mut self, class: QuotaClass, bytes: usize) {
        self.commands += 1;
        self.bytes += bytes;
        *self.by_class.entry(class).or_default() += 1;
    }

    fn give_back(&mut self, class: QuotaClass, bytes: usize) {
        self.commands = self.commands.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
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
    /// The command as it is logged.
    pub command: LoggedCommand,
    /// Its parsed body.
    pub request: Request,
    /// Who sent it, as far as this run knows.
    pub sender: CommandSender,
}

struct Entry {
    queued: QueuedCommand,
    is_running: bool,
    /// Nothing is left to do but to wait for the client.
    is_waiting: bool,
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
    adds: usize,
}

impl Queue {
    /// Makes a queue of the commands that an earlier run accepted and did not answer.
    pub fn new(unfinished: impl IntoIterator<Item = QueuedCommand>) -> Self {
        let mut state = State::default();
        for queued in unfinished {
            // The quota is not asked: these were accepted, and have to be executed (I12) even if the limits were larger then.
            let QueuedCommand { command, request, .. } = &queued;
            state.quota(&command.origin).take(QuotaClass::of(request), command.body.len());
            state.entries.push_back(Entry::waiting(queued));
        }
        Self { state: Mutex::new(state), arrived: Notify::new() }
    }

    /// Takes a place for one more command of `origin`; `false` if there is none.
    ///
    /// The place is kept until the command is [done](Self::done), or [given back](Self::give_back) before it was pushed.
    pub fn reserve(&self, origin: &SinkName, request: &Request, body_bytes: usize) -> bool {
        let mut state = self.state();
        let (quota, class) = (state.quota(origin), QuotaClass::of(request));
        let has_room = quota.has_room(class, body_bytes);
        if has_room {
            quota.take(class, body_bytes);
        }
        has_room
    }

    /// Gives a reserved place back.
    pub fn give_back(&self, origin: &SinkName, request: &Request, body_bytes: usize) {
        self.state().quota(origin).give_back(QuotaClass::of(request), body_bytes);
    }

    /// Appends a command that has a place.
    pub fn push(&self, queued: QueuedCommand) {
        self.state().entries.push_back(Entry::waiting(queued));
        self.arrived.notify_one();
    }

    /// Notes that a worker starts, and returns the commands that an earlier one left half done: they may have reached the
    /// client.
    pub fn restart(&self) -> Vec<QueuedCommand> {
        let mut left = Vec::new();
        for entry in self.state().entries.iter_mut().filter(|entry| entry.is_running) {
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
        let mut held: HashSet<InfoHash> = HashSet::new();
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
                    Torrents::These(hashes) => held.extend(hashes),
                    Torrents::Unknown => (of_origin.is_closed, is_closed) = (true, true),
                }
                return false;
            }
            match entry.torrents() {
                _ if entry.queued.command.expires_at <= now => true,
                _ if of_origin.is_closed || is_add && of_origin.adds > ADDS_MAX => false,
                Torrents::These([]) => true,
                // Held as well while it waits, so that a later command for the torrent does not overtake it.
                Torrents::These(hashes) if is_closed || hashes.iter().any(|hash| held.contains(hash)) => {
                    held.extend(hashes);
                    false
                }
                Torrents::These(_) => true,
                Torrents::Unknown => {
                    // Closed for all only once it is the first of its origin: until then it waits for commands of its own
                    // sender, and those of others would wait for a queue that is not theirs.
                    of_origin.is_closed = true;
                    is_closed |= is_first;
                    is_first && !is_any_running
                }
            }
        })?;
        let entry = &mut state.entries[place];
        entry.is_running = true;
        Some(entry.queued.clone())
    }

    /// Notes which torrents a filter matched; commands for other torrents need not wait for it any more.
    pub fn set_matched(&self, id: &CommandId, hashes: &[InfoHash]) {
        for entry in self.state().entries.iter_mut().filter(|entry| entry.queued.command.id == *id) {
            entry.matched = Some(hashes.to_vec());
        }
        self.arrived.notify_one();
    }

    /// Notes that a command that runs only waits for the client from now on, so that another may have its place.
    pub fn set_waiting(&self, id: &CommandId) {
        for entry in self.state().entries.iter_mut().filter(|entry| entry.queued.command.id == *id) {
            entry.is_waiting = true;
        }
        self.arrived.notify_one();
    }

    /// Removes a command that has its result.
    pub fn done(&self, id: &CommandId) {
        let mut state = self.state();
        let Some(place) = state.entries.iter().position(|entry| entry.queued.command.id == *id) else { return };
        if let Some(Entry { queued: QueuedCommand { command, request, .. }, .. }) = state.entries.remove(place) {
            state.quota(&command.origin).give_back(QuotaClass::of(&request), command.body.len());
        }
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
        Self { queued, is_running: false, is_waiting: false, matched: None }
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
    use bytes::Bytes;

    use super::*;
    use crate::model::{ServerName, SinkName, Timestamp, Verb};

    fn command(id: &str, verb: Verb, hash: Option<u8>, body: &str) -> QueuedCommand {
        let hash = hash.map(|n| InfoHash::V1([n; 20]));
        let request = Request::parse(verb, hash, body.as_bytes()).unwrap();
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
            is_started: false,
        };
        QueuedCommand { command, request, sender: CommandSender::default() }
    }

    fn next(queue: &Queue) -> Option<String> {
        queue.next(Timestamp::from_millis(0)).map(|queued| queued.command.id.to_string())
    }

    #[test]
    fn commands_for_one_torrent_run_in_order_and_others_in_parallel() {
        let queue = Queue::new([
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
            Queue::new([command("pause 1", Verb::Pause, Some(1), ""), command("resume 1", Verb::Resume, Some(1), "")]);
        assert_eq!(next(&queue).as_deref(), Some("pause 1"));
        assert_eq!(next(&queue), None);
        let expired = queue.next(Timestamp::from_millis(1)).unwrap();
        assert_eq!(expired.command.id.to_string(), "resume 1");
    }

    #[test]
    fn a_filter_runs_alone_and_nothing_overtakes_it() {
        let queue = Queue::new([
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
        let queue = Queue::new([
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
        let queue = Queue::new([
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
        let queue = Queue::new((0..20).map(add).chain([command("pause", Verb::Pause, Some(1), "")]));
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
        let queue = Queue::new([command("delete", Verb::Delete, Some(1), "")]);
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
        assert!(has_room(&list, BODY_BYTES_MAX) && !has_room(&list, BODY_BYTES_MAX + 1));
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
}
