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

/// More than this many wait for nobody: they are refused.
const COMMANDS_MAX: usize = 1000;
/// Nor do bodies of more than this together, which are held in memory: about a hundred large .torrent files.
const BODIES_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Stands beside the command log, which has the same commands on disk.
#[derive(Default)]
pub struct Queue {
    open: Mutex<VecDeque<Open>>,
    pub arrived: Notify,
}

struct Open {
    command: LoggedCommand,
    claim: Claim,
    is_running: bool,
}

/// Which torrents a command holds while it runs.
enum Claim {
    These(Vec<InfoHash>),
    All,
}

/// So many commands wait already that no more are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

impl Queue {
    /// `open` are the commands that a former life of the bridge did not answer.
    pub fn new(open: impl IntoIterator<Item = LoggedCommand>) -> Self {
        let open = open.into_iter().map(Open::waiting).collect();
        Self { open: Mutex::new(open), arrived: Notify::new() }
    }

    /// # Errors
    /// Too many wait already.
    pub fn push(&self, command: LoggedCommand) -> Result<(), TooMany> {
        {
            let mut open = self.open();
            let bodies_bytes: usize = open.iter().map(|open| open.command.body.len()).sum();
            if open.len() >= COMMANDS_MAX || bodies_bytes + command.body.len() > BODIES_BYTES_MAX {
                return Err(TooMany);
            }
            open.push_back(Open::waiting(command));
        }
        self.arrived.notify_one();
        Ok(())
    }

    /// A worker begins: what an earlier one left half done may have reached the client.
    pub fn begin(&self) {
        for open in self.open().iter_mut().filter(|open| open.is_running) {
            open.is_running = false;
            open.command.is_started = true;
        }
    }

    /// The first command that no earlier one, running or waiting, stands in the way of.
    pub fn next(&self) -> Option<LoggedCommand> {
        let mut open = self.open();
        let mut held: HashSet<InfoHash> = HashSet::new();
        for (place, one) in open.iter_mut().enumerate() {
            match &one.claim {
                Claim::All if place > 0 || one.is_running => return None,
                Claim::These(hashes) if one.is_running || hashes.iter().any(|hash| held.contains(hash)) => {
                    held.extend(hashes);
                }
                Claim::All | Claim::These(_) => {
                    one.is_running = true;
                    return Some(one.command.clone());
                }
            }
        }
        None
    }

    /// The command has its result.
    pub fn done(&self, id: &CommandId) {
        self.open().retain(|open| open.command.id != *id);
    }

    fn open(&self) -> MutexGuard<'_, VecDeque<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn waiting(command: LoggedCommand) -> Self {
        let claim = claim_of(&command);
        Self { command, claim, is_running: false }
    }
}

fn claim_of(command: &LoggedCommand) -> Claim {
    let nothing = Claim::These(Vec::new());
    let Some(verb) = command.verb else { return nothing };
    match Request::parse(verb, command.hash, &command.body) {
        Ok(Request { what: What::List { .. } | What::Add(_), .. }) | Err(_) => nothing,
        Ok(Request { target: Target::These(hashes), .. }) => Claim::These(hashes),
        Ok(Request { target: Target::Matching(_) | Target::Server, .. }) => Claim::All,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::{ServerName, SinkName, Timestamp, Verb};

    fn command(id: &str, verb: Verb, hash: Option<u8>, body: &str) -> LoggedCommand {
        LoggedCommand {
            id: CommandId::parse(id).unwrap(),
            server: Some(ServerName::parse("home").unwrap()),
            origin: SinkName::parse("bus").unwrap(),
            hash: hash.map(|n| InfoHash::V1([n; 20])),
            verb: Some(verb),
            body: Bytes::copy_from_slice(body.as_bytes()),
            received_at: Timestamp::from_millis(0),
            expires_at: Timestamp::from_millis(1),
            reply: None,
            is_started: false,
        }
    }

    fn next(queue: &Queue) -> Option<String> {
        queue.next().map(|command| command.id.to_string())
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
    fn what_ran_when_a_worker_failed_runs_again_and_knows_it() {
        let queue = Queue::new([command("delete", Verb::Delete, Some(1), "")]);
        assert!(!queue.next().unwrap().is_started);
        queue.begin();
        assert!(queue.next().unwrap().is_started);
    }

    #[test]
    fn a_full_queue_refuses() {
        let queue = Queue::default();
        for n in 0..COMMANDS_MAX {
            queue.push(command(&n.to_string(), Verb::List, None, "")).unwrap();
        }
        assert!(queue.push(command("one more", Verb::List, None, "")).is_err());
    }

    #[test]
    fn bodies_of_an_absent_client_do_not_fill_the_memory() {
        let queue = Queue::default();
        let large = "x".repeat(BODIES_BYTES_MAX / 12);
        let taken = (0..20).filter(|n| queue.push(command(&n.to_string(), Verb::Add, None, &large)).is_ok()).count();
        assert_eq!(taken, 12);
        assert!(queue.push(command("small", Verb::Pause, Some(1), "")).is_ok(), "there is room for a small one");
    }
}
