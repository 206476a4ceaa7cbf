//! The commands of one server that have no result yet, and which of them may run.
//!
//! Commands for one torrent run in the order they came, others beside each other. One whose torrents
//! are not known before it runs (a filter) goes alone.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::request::{Request, Target, What};
use crate::model::{CommandId, InfoHash};
use crate::port::LoggedCommand;

/// More than this many, or with more bytes, wait for nobody: they are refused.
pub(super) const COMMANDS_MAX: usize = 1000;
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Of these so many are for one torrent, and so many for torrents that are not known yet.
const SAME_MAX: usize = 100;

/// A link may drip for half a minute: so many are fetched at once, and leave room for other commands.
const ADDS_MAX: usize = 8;

/// Stands beside the command log, which has the same commands on disk.
#[derive(Default)]
pub struct Queue {
    open: Mutex<VecDeque<Open>>,
    pub arrived: Notify,
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
        let open = open.into_iter().map(Open::waiting).collect();
        Self { open: Mutex::new(open), arrived: Notify::new() }
    }

    /// Whether one more command is taken, with a body of so many bytes.
    ///
    /// One torrent has a part of the room, and those whose torrents are not known have one: whoever floods
    /// them leaves the others theirs.
    pub fn has_room(&self, request: &Request, body_bytes: usize) -> bool {
        let open = self.open();
        let bytes: usize = open.iter().map(|open| open.job.command.body.len()).sum();
        let of_kind = match claim_of(request) {
            Claim::All => open.iter().filter(|open| matches!(claim_of(&open.job.request), Claim::All)).count(),
            Claim::These([hash]) => {
                let is_same =
                    |open: &&Open| matches!(claim_of(&open.job.request), Claim::These([other]) if other == hash);
                open.iter().filter(is_same).count()
            }
            Claim::These(_) => 0,
        };
        open.len() < COMMANDS_MAX && of_kind < SAME_MAX && bytes + body_bytes <= BODY_BYTES_MAX
    }

    pub fn push(&self, job: Job) {
        self.open().push_back(Open::waiting(job));
        self.arrived.notify_one();
    }

    /// A worker begins: what an earlier one left half done may have reached the client.
    pub fn begin(&self) {
        for open in self.open().iter_mut().filter(|open| open.is_running) {
            open.is_running = false;
            open.narrowed = None;
            open.job.command.is_started = true;
        }
    }

    /// The first command that no earlier one, running or waiting, stands in the way of.
    pub fn next(&self) -> Option<Job> {
        let mut open = self.open();
        let mut held: HashSet<InfoHash> = HashSet::new();
        let is_add = |one: &Open| matches!(one.job.request.what, What::Add(_));
        let no_more_adds = open.iter().filter(|one| one.is_running && is_add(one)).count() >= ADDS_MAX;
        for (place, one) in open.iter_mut().enumerate() {
            if no_more_adds && is_add(one) {
                continue;
            }
            match claim(one) {
                Claim::All if place > 0 || one.is_running => return None,
                Claim::These(hashes) if one.is_running || hashes.iter().any(|hash| held.contains(hash)) => {
                    held.extend(hashes);
                    continue;
                }
                Claim::All | Claim::These(_) => {}
            }
            one.is_running = true;
            return Some(one.job.clone());
        }
        None
    }

    /// A command whose torrents were not known goes on with these, and stands in the way of no others.
    pub fn narrow(&self, id: &CommandId, hashes: &[InfoHash]) {
        for open in self.open().iter_mut().filter(|open| open.job.command.id == *id) {
            open.narrowed = Some(hashes.to_vec());
        }
        self.arrived.notify_one();
    }

    /// The command has its result.
    pub fn done(&self, id: &CommandId) {
        self.open().retain(|open| open.job.command.id != *id);
    }

    fn open(&self) -> MutexGuard<'_, VecDeque<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
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
        queue.next().map(|job| job.command.id.to_string())
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
        assert!(!queue.next().unwrap().command.is_started);
        queue.begin();
        assert!(queue.next().unwrap().command.is_started);
    }

    #[test]
    fn a_full_queue_has_no_room() {
        let queue = Queue::default();
        let has_room = |job: &Job, bytes| queue.has_room(&job.request, bytes);
        let list = command("list", Verb::List, None, "");
        let pause = |n| command("pause", Verb::Pause, Some(n), "");
        let stop = command("stop", Verb::Stop, None, r#"{"filter": {}}"#);
        assert!(has_room(&list, BODY_BYTES_MAX) && !has_room(&list, BODY_BYTES_MAX + 1));
        for n in 0..SAME_MAX {
            assert!(has_room(&pause(1), 0) && has_room(&stop, 0));
            queue.push(command(&format!("pause {n}"), Verb::Pause, Some(1), ""));
            queue.push(command(&format!("stop {n}"), Verb::Stop, None, r#"{"filter": {}}"#));
        }
        assert!(!has_room(&pause(1), 0) && !has_room(&stop, 0) && has_room(&pause(2), 0));
        for n in 2 * SAME_MAX..COMMANDS_MAX {
            assert!(has_room(&list, 0));
            queue.push(command(&n.to_string(), Verb::List, None, ""));
        }
        assert!(!has_room(&list, 0) && !has_room(&pause(2), 0));
    }
}
