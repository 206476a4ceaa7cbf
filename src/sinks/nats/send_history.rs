//! The send history of a sink: what its connections have to know of each other.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::model::{Seq, ServerName};

/// Which events were sent before, and what came of it that outlasts a connection.
#[derive(Debug)]
pub struct SendHistory {
    /// The newest entry of each server that was sent in this run, or journaled before it.
    newest: Mutex<BTreeMap<ServerName, Seq>>,
    /// Why nothing may be sent any more: an id of ours names another event in the stream (I6).
    id_conflict: OnceLock<String>,
    /// The login may not publish to every subject.
    was_denied: AtomicBool,
}

impl SendHistory {
    /// `before`: the newest journal entry of each server when this run began.
    pub fn new(before: BTreeMap<ServerName, Seq>) -> Self {
        Self { newest: Mutex::new(before), id_conflict: OnceLock::new(), was_denied: AtomicBool::new(false) }
    }

    /// Notes that an entry is sent, and returns whether that is the first time ever.
    pub fn is_first(&self, server: &ServerName, seq: Seq) -> bool {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = newest.entry(server.clone()).or_default();
        // A replay of dead letters sends an old entry behind newer ones, so the newest number only grows.
        let is_first = *newest < seq;
        *newest = seq.max(*newest);
        is_first
    }

    /// Returns why the sink has ended, if it has.
    pub fn id_conflict(&self) -> Option<&String> {
        self.id_conflict.get()
    }

    /// Ends the sink for this run; whether it was not ended yet.
    pub fn set_id_conflict(&self, reason: String) -> bool {
        self.id_conflict.set(reason).is_ok()
    }

    /// Whether a publish was denied in this run.
    pub fn was_denied(&self) -> bool {
        self.was_denied.load(Ordering::Relaxed)
    }

    /// Notes that a publish was denied.
    pub fn set_denied(&self) {
        self.was_denied.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_first_only_once_and_never_if_it_is_older_than_this_run() {
        let home = ServerName::parse("home").unwrap();
        let attic = ServerName::parse("attic").unwrap();
        let history = SendHistory::new(BTreeMap::from([(home.clone(), Seq(5))]));
        assert!(!history.is_first(&home, Seq(5)));
        assert!(history.is_first(&home, Seq(6)));
        assert!(!history.is_first(&home, Seq(6)));
        assert!(history.is_first(&attic, Seq(1)));
    }
}
