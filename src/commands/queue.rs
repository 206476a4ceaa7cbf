//! The commands of one server that have no result yet, and which of them may run.
//!
//! Commands for one torrent run in the order they came, others beside each other. One whose torrents
//! are not known before it runs (a filter) goes alone.
//!
//! Each origin (a broker, HTTP) has a room of its own, so that whoever fills one leaves the others theirs.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::request::{Request, Target, What};
use crate::model::{CommandId, InfoHash, SinkName, Timestamp};
use crate::port::LoggedCommand;

/// More than this many of one origin, or with more bytes, wait for nobody: they are refused.
const COMMANDS_MAX: usize = 1000;
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Of these so many are for one torrent, and so many for torrents that are not known yet.
const SAME_MAX: usize = 100;

/// A link may drip for half a minute: so many of one origin are fetched at once, and leave room for other commands.
const ADDS_MAX: usize = 8;
/// So many of one origin are for no torrent that is there: what is added, listed, read.
const OTHERS_MAX: usize = 500;

/// Stands beside the command log, which has the same commands on disk.
#[derive(Default)]
pub struct Queue {
    content: Mutex<Content>,
    pub arrived: Notify,
}

#[derive(Default)]
struct Content {
    open: VecDeque<Open>,
    rooms: BTreeMap<SinkName, Room>,
}

/// What of one origin is open, or about to be.
#[derive(Default)]
struct Room {
    commands: usize,
    bytes: usize,
    of: HashMap<Share, usize>,
}

/// What one flood fills, so that there is room for other commands.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Share {
    Torrent(InfoHash),
    Several,
    Unknown,
    None,
}

impl Share {
    fn of(request: &Request) -> Self {
        match claim_of(request) {
            Claim::All => Self::Unknown,
            Claim::These([hash]) => Self::Torrent(*hash),
            Claim::These([]) => Self::None,
            Claim::These(_) => Self::Several,
        }
    }

    fn max(self) -> usize {
        match self {
            Self::Torrent(_) | Self::Unknown => SAME_MAX,
            Self::Several | Self::None => OTHERS_MAX,
        }
    }
}

impl Room {
    fn take(&mut self, share: Share, bytes: usize) {
        self.commands += 1;
        self.bytes += bytes;
        *self.of.entry(share).or_default() += 1;
    }

    fn give_back(&mut self, share: Share, bytes: usize) {
        self.commands = self.commands.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
        if let Some(count) = self.of.get_mut(&share) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.of.remove(&share);
            }
        }
    }
}

/// One origin's commands, as far as [`Queue::next`] has gone through them.
struct Line {
    origin: SinkName,
    has_begun: bool,
    /// A filter of it is on: nothing of it passes that.
    is_closed: bool,
    adds: usize,
}

impl Line {
    fn of<'l>(lines: &'l mut Vec<Self>, origin: &SinkName) -> &'l mut Self {
        let place = lines.iter().position(|line| line.origin == *origin).unwrap_or(lines.len());
        if place == lines.len() {
            lines.push(Self { origin: origin.clone(), has_begun: false, is_closed: false, adds: 0 });
        }
        &mut lines[place]
    }
}

/// A command, and what it says.
#[derive(Clone, Debug)]
pub struct Job {
    pub command: LoggedCommand,
    pub request: Request,
    /// Who its sender says it is, for the log; forgotten when the bridge ends.
    pub user: Option<String>,
}

struct Open {
    job: Job,
    is_running: bool,
    /// What a filter came to, once it is known.
    narrowed: Option<Vec<InfoHash>>,
}

/// Which torrents a command holds while it runs.
enum Claim<'a> {
    These(&'a [InfoHash]),
    All,
}

impl Queue {
    /// `open` are the commands that a former life of the bridge did not answer.
    pub fn new(open: impl IntoIterator<Item = Job>) -> Self {
        let mut content = Content::default();
        for job in open {
            content.room(&job.command.origin).take(Share::of(&job.request), job.command.body.len());
            content.open.push_back(Open::waiting(job));
        }
        Self { content: Mutex::new(content), arrived: Notify::new() }
    }

    /// Whether one more command of `origin` is taken, with a body of so many bytes. If so there is a place for it until
    /// it is [done](Self::done), or [given up](Self::give_back) before it was pushed.
    pub fn reserve(&self, origin: &SinkName, request: &Request, body_bytes: usize) -> bool {
        let mut content = self.content();
        let (room, share) = (content.room(origin), Share::of(request));
        let is_room = room.commands < COMMANDS_MAX
            && room.of.get(&share).is_none_or(|count| *count < share.max())
            && room.bytes + body_bytes <= BODY_BYTES_MAX;
        if is_room {
            room.take(share, body_bytes);
        }
        is_room
    }

    /// The place is not needed.
    pub fn give_back(&self, origin: &SinkName, request: &Request, body_bytes: usize) {
        self.content().room(origin).give_back(Share::of(request), body_bytes);
    }

    /// A command that has a place.
    pub fn push(&self, job: Job) {
        self.content().open.push_back(Open::waiting(job));
        self.arrived.notify_one();
    }

    /// A worker begins: what an earlier one left half done may have reached the client.
    pub fn begin(&self) {
        for open in self.content().open.iter_mut().filter(|open| open.is_running) {
            open.is_running = false;
            open.narrowed = None;
            open.job.command.is_started = true;
        }
    }

    /// The first command that no earlier one, running or waiting, stands in the way of.
    ///
    /// A filter waits for all earlier commands of its origin, and those behind it wait for it; others pass, until it is the
    /// first of its origin. Then it waits for what runs, and only what is for no torrent passes.
    ///
    /// One whose time is over runs at once: nothing is done for it any more, and its result does not wait for others.
    pub fn next(&self, now: Timestamp) -> Option<Job> {
        let mut content = self.content();
        let is_any_running = content.open.iter().any(|one| one.is_running && !matches!(claim(one), Claim::These([])));
        let mut held: HashSet<InfoHash> = HashSet::new();
        let mut lines: Vec<Line> = Vec::new();
        let mut is_closed = false;
        for one in &mut content.open {
            let line = Line::of(&mut lines, &one.job.command.origin);
            let is_first = !std::mem::replace(&mut line.has_begun, true);
            if matches!(one.job.request.what, What::Add(_)) {
                // Those that run stand before those that wait.
                line.adds += 1;
            }
            if one.is_running {
                match claim(one) {
                    Claim::These(hashes) => held.extend(hashes),
                    Claim::All => (line.is_closed, is_closed) = (true, true),
                }
                continue;
            }
            let is_over = one.job.command.expires_at <= now;
            let may_run = match claim(one) {
                _ if is_over => true,
                _ if line.is_closed || line.adds > ADDS_MAX && matches!(one.job.request.what, What::Add(_)) => false,
                Claim::These([]) => true,
                Claim::These(hashes) if is_closed || hashes.iter().any(|hash| held.contains(hash)) => {
                    held.extend(hashes);
                    false
                }
                Claim::These(_) => true,
                Claim::All => {
                    line.is_closed = true;
                    is_closed |= is_first;
                    is_first && !is_any_running
                }
            };
            if may_run {
                one.is_running = true;
                return Some(one.job.clone());
            }
        }
        None
    }

    /// A command whose torrents were not known goes on with these, and stands in the way of no others.
    pub fn narrow(&self, id: &CommandId, hashes: &[InfoHash]) {
        for open in self.content().open.iter_mut().filter(|open| open.job.command.id == *id) {
            open.narrowed = Some(hashes.to_vec());
        }
        self.arrived.notify_one();
    }

    /// The command has its result.
    pub fn done(&self, id: &CommandId) {
        let mut content = self.content();
        let Some(place) = content.open.iter().position(|open| open.job.command.id == *id) else { return };
        if let Some(Open { job: Job { command, request, .. }, .. }) = content.open.remove(place) {
            content.room(&command.origin).give_back(Share::of(&request), command.body.len());
        }
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Content {
    fn room(&mut self, origin: &SinkName) -> &mut Room {
        if !self.rooms.contains_key(origin) {
            self.rooms.insert(origin.clone(), Room::default());
        }
        self.rooms.get_mut(origin).expect("it is there now")
    }
}

impl Open {
    fn waiting(job: Job) -> Self {
        Self { job, is_running: false, narrowed: None }
    }
}

fn claim(open: &Open) -> Claim<'_> {
    if let Some(hashes) = &open.narrowed {
        return Claim::These(hashes);
    }
    claim_of(&open.job.request)
}

fn claim_of(request: &Request) -> Claim<'_> {
    match request {
        Request { what, .. } if !what.needs_torrents() => Claim::These(&[]),
        Request { target: Target::These(hashes), .. } => Claim::These(hashes),
        Request { target: Target::Matching(_) | Target::Server, .. } => Claim::All,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::{ServerName, SinkName, Timestamp, Verb};

    fn command(id: &str, verb: Verb, hash: Option<u8>, body: &str) -> Job {
        let hash = hash.map(|n| InfoHash::V1([n; 20]));
        let request = Request::parse(verb, hash, body.as_bytes()).unwrap();
        let command = LoggedCommand {
            id: CommandId::parse(id).unwrap(),
            server: Some(ServerName::parse("home").unwrap()),
            origin: SinkName::parse("bus").unwrap(),
            hash,
            verb: Some(verb),
            body: Bytes::copy_from_slice(body.as_bytes()),
            received_at: Timestamp::from_millis(0),
            expires_at: Timestamp::from_millis(1),
            reply: None,
            is_started: false,
        };
        Job { command, request, user: None }
    }

    fn next(queue: &Queue) -> Option<String> {
        queue.next(Timestamp::from_millis(0)).map(|job| job.command.id.to_string())
    }

    #[test]
    fn commands_for_one_torrent_run_in_order_and_others_beside_them() {
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
    fn what_is_over_does_not_wait_for_those_before_it() {
        let queue =
            Queue::new([command("pause 1", Verb::Pause, Some(1), ""), command("resume 1", Verb::Resume, Some(1), "")]);
        assert_eq!(next(&queue).as_deref(), Some("pause 1"));
        assert_eq!(next(&queue), None);
        let over = queue.next(Timestamp::from_millis(1)).unwrap();
        assert_eq!(over.command.id.to_string(), "resume 1");
    }

    #[test]
    fn a_filter_goes_alone_and_nothing_overtakes_it() {
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
        let of = |origin: &str, mut job: Job| {
            job.command.origin = SinkName::parse(origin).unwrap();
            job
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
        queue.narrow(&CommandId::parse("stop all").unwrap(), &[InfoHash::V1([1; 20])]);
        assert_eq!(next(&queue).as_deref(), Some("pause 3"));
        assert_eq!(next(&queue), None);
        queue.done(&CommandId::parse("stop all").unwrap());
        assert_eq!(next(&queue).as_deref(), Some("resume 1"));
    }

    #[test]
    fn a_filter_that_is_known_lets_others_pass() {
        let queue = Queue::new([
            command("stop", Verb::Stop, None, r#"{"filter": {}}"#),
            command("pause 2", Verb::Pause, Some(2), ""),
        ]);
        assert_eq!(next(&queue).as_deref(), Some("stop"));
        assert_eq!(next(&queue), None);
        queue.narrow(&CommandId::parse("stop").unwrap(), &[InfoHash::V1([1; 20])]);
        assert_eq!(next(&queue).as_deref(), Some("pause 2"));
    }

    #[test]
    fn links_that_drip_do_not_hold_up_others() {
        let add = |n: usize| command(&n.to_string(), Verb::Add, None, r#"{"url": "http://slow.example/"}"#);
        let queue = Queue::new((0..20).map(add).chain([command("pause", Verb::Pause, Some(1), "")]));
        let begun: Vec<String> = std::iter::from_fn(|| next(&queue)).collect();
        assert_eq!(begun.len(), ADDS_MAX + 1);
        assert_eq!(begun.last().map(String::as_str), Some("pause"));
    }

    #[test]
    fn what_ran_when_a_worker_failed_runs_again_and_knows_it() {
        let queue = Queue::new([command("delete", Verb::Delete, Some(1), "")]);
        assert!(!queue.next(Timestamp::from_millis(0)).unwrap().command.is_started);
        queue.begin();
        assert!(queue.next(Timestamp::from_millis(0)).unwrap().command.is_started);
    }

    #[test]
    fn a_full_queue_has_no_room() {
        let queue = Queue::default();
        let origin = SinkName::parse("bus").unwrap();
        let has_room = |job: &Job, bytes| {
            let has_room = queue.reserve(&origin, &job.request, bytes);
            if has_room {
                queue.give_back(&origin, &job.request, bytes);
            }
            has_room
        };
        let push = |job: Job| {
            assert!(queue.reserve(&origin, &job.request, 0));
            queue.push(job);
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
    fn whoever_fills_his_room_leaves_others_theirs() {
        let queue = Queue::default();
        let [one, other] = ["one", "other"].map(|name| SinkName::parse(name).unwrap());
        let pause = command("pause", Verb::Pause, Some(1), "");
        while queue.reserve(&one, &pause.request, 0) {}
        assert!(queue.reserve(&other, &pause.request, 0));
    }
}
