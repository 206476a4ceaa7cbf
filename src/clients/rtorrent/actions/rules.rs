//! The methods that an action calls, by the state of the torrent. Pure.

use super::super::calls::Call;
use super::super::map::TorrentRow;
use super::super::probe::Probe;
use super::{label_calls, priority_calls};
use crate::model::{Action, InfoHash};
use crate::port::ClientError;

/// Methods to call, in order; none if the torrent is already as requested. The error says why not.
type Decision = Result<&'static [&'static str], &'static str>;

/// The rule of one action.
#[derive(Debug)]
pub(super) struct Rule {
    /// The action as a participle, for messages.
    done: &'static str,
    during_check: DuringCheck,
    decide: fn(&TorrentRow) -> Decision,
}

/// Whether an action may be requested while the torrent is hash-checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DuringCheck {
    Allowed,
    /// Not where it can hang rTorrent.
    RefusedOnLegacy,
    /// Refused by every version: it would not last, or not be safe.
    Refused,
}

impl Rule {
    /// Returns the methods to call for a torrent in this state.
    ///
    /// # Errors
    /// [`ClientError::Precondition`] if the state does not allow the action, [`ClientError::Busy`] while
    /// the torrent is checked.
    pub(super) fn methods(&self, row: &TorrentRow, probe: &Probe) -> Result<&'static [&'static str], ClientError> {
        let methods = (self.decide)(row).map_err(|reason| ClientError::Precondition { reason: reason.to_owned() })?;
        let is_refused = match self.during_check {
            DuringCheck::Allowed => false,
            DuringCheck::RefusedOnLegacy => probe.is_legacy,
            DuringCheck::Refused => true,
        };
        // Where nothing is to be called nothing can hang.
        if methods.is_empty() || !row.is_checking() || !is_refused {
            return Ok(methods);
        }
        let danger = if probe.is_legacy {
            format!(" (rTorrent {} can hang indefinitely)", probe.version)
        } else {
            String::new()
        };
        let done = self.done;
        Err(ClientError::Busy {
            reason: format!(
                "it is being checked and cannot be {done} meanwhile{danger}; try again when the check is over"
            ),
        })
    }
}

/// How an action that shares an exchange with others finds its calls.
pub(super) enum Plan {
    /// The same calls whatever the state.
    Calls(Vec<Call>),
    /// Calls by the state.
    ByState(&'static Rule),
}

/// Returns the plan of an action; `None` for one that needs several exchanges of its own.
pub(super) fn plan(action: &Action) -> Option<(InfoHash, Plan)> {
    match action {
        Action::Pause(hash) => Some((*hash, Plan::ByState(&PAUSE))),
        Action::Resume(hash) | Action::Start(hash) => Some((*hash, Plan::ByState(&START))),
        Action::Stop(hash) => Some((*hash, Plan::ByState(&STOP))),
        Action::Delete(hash) => Some((*hash, Plan::ByState(&DELETE))),
        Action::Label(hash, label) => Some((*hash, Plan::Calls(label_calls(*hash, label)))),
        Action::Priority(hash, priority) => Some((*hash, Plan::Calls(priority_calls(*hash, *priority)))),
        _ => None,
    }
}

const PAUSE: Rule = Rule { done: "paused", during_check: DuringCheck::Refused, decide: pause };
const START: Rule = Rule { done: "started", during_check: DuringCheck::Refused, decide: start };
const STOP: Rule = Rule { done: "stopped", during_check: DuringCheck::RefusedOnLegacy, decide: stop };
const DELETE: Rule = Rule { done: "deleted", during_check: DuringCheck::RefusedOnLegacy, decide: delete };
pub(super) const HOLD: Rule = Rule { done: "held", during_check: DuringCheck::Refused, decide: hold };
/// A throttle group can be set only while the torrent is not active.
pub(super) const THROTTLE: Rule =
    Rule { done: "throttled", during_check: DuringCheck::Refused, decide: pause_if_active };
pub(super) const RECHECK: Rule = Rule { done: "checked again", during_check: DuringCheck::Refused, decide: recheck };
pub(super) const ANNOUNCE: Rule = Rule { done: "announced", during_check: DuringCheck::Allowed, decide: announce };

fn pause(row: &TorrentRow) -> Decision {
    match row {
        // A checked torrent goes on by itself when the check is over, and has to be paused then.
        row if row.is_active || row.state && row.is_checking() => Ok(&["d.pause"]),
        TorrentRow { state: true, is_open: true, .. } => Ok(&[]),
        row if row.is_stuck() => Err("its check failed, so it does not run; only what runs can be paused"),
        TorrentRow { state: true, .. } => Err("it waits for its turn; only what runs can be paused, stop it instead"),
        TorrentRow { .. } => Err("it is stopped; only what runs can be paused"),
    }
}

fn start(row: &TorrentRow) -> Decision {
    Ok(match row {
        TorrentRow { is_active: true, .. } => &[],
        // It goes on by itself when the check is over.
        row if row.state && row.is_checking() => &[],
        // `d.start` does nothing for what is in the queue of checks; a close takes it out.
        row if row.is_stuck() => &["d.stop", "d.close", "d.start"],
        // `d.start` does nothing for a torrent whose state is "started", even where it does not run.
        TorrentRow { state: true, hashing_failed: true, .. } => &["d.stop", "d.start"],
        // Also one that is closed, which `d.start` ignores.
        TorrentRow { state: true, .. } => &["d.resume"],
        TorrentRow { .. } => &["d.start"],
    })
}

fn stop(row: &TorrentRow) -> Decision {
    let is_stopped = !(row.state || row.is_active || row.is_open || row.is_stuck());
    // `d.stop` leaves the files open, and a closed torrent releases them.
    Ok(if is_stopped { &[] } else { &["d.stop", "d.close"] })
}

// In any state: what is stopped already is left alone by the first two.
fn delete(_: &TorrentRow) -> Decision {
    Ok(&["d.stop", "d.close", "d.erase"])
}

fn hold(row: &TorrentRow) -> Decision {
    if row.fixed.is_meta {
        return Err("a magnet link has no content before it is resolved");
    }
    stop(row)
}

fn pause_if_active(row: &TorrentRow) -> Decision {
    Ok(if row.is_active { &["d.pause"] } else { &[] })
}

fn recheck(row: &TorrentRow) -> Decision {
    match row {
        row if row.is_checking() => Ok(&[]),
        // `d.check_hash` does nothing for what is in the queue of checks. What wants to run goes on after the check.
        row if row.is_stuck() && row.state => Ok(&["d.stop", "d.close", "d.check_hash", "d.start"]),
        row if row.is_stuck() => Ok(&["d.close", "d.check_hash"]),
        row if row.fixed.is_meta => Err("a magnet link has nothing to check before it is resolved"),
        TorrentRow { .. } => Ok(&["d.check_hash"]),
    }
}

fn announce(row: &TorrentRow) -> Decision {
    if row.is_active {
        Ok(&["d.tracker_announce"])
    } else {
        Err("it is not running, so no tracker is contacted; start it first")
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::map::FixedColumns;
    use super::*;

    #[test]
    fn each_action_calls_what_the_state_of_the_torrent_needs() {
        let stopped = TorrentRow::default();
        let open = TorrentRow { is_open: true, ..TorrentRow::default() };
        let queued = TorrentRow { state: true, ..TorrentRow::default() };
        let paused = TorrentRow { state: true, is_open: true, ..TorrentRow::default() };
        let running = TorrentRow { is_active: true, ..paused.clone() };
        let checking = TorrentRow { hashing: 3, ..paused.clone() };
        let failed = TorrentRow { hashing_failed: true, ..queued.clone() };
        let stuck = TorrentRow { hashing: 1, ..failed.clone() };
        let stuck_stopped = TorrentRow { state: false, hashing: 3, ..stuck.clone() };
        let fixed = FixedColumns { is_meta: true, ..FixedColumns::default() };
        let magnet = TorrentRow { fixed, ..running.clone() };
        type Action = fn(&TorrentRow) -> Decision;
        let table: &[(&str, Action, &TorrentRow, Option<&str>)] = &[
            ("pause running", pause, &running, Some("d.pause")),
            ("pause paused", pause, &paused, Some("")),
            ("pause stopped", pause, &stopped, None),
            ("pause queued", pause, &queued, None),
            ("pause checking", pause, &checking, Some("d.pause")),
            ("start running", start, &running, Some("")),
            ("start paused", start, &paused, Some("d.resume")),
            ("start queued", start, &queued, Some("d.resume")),
            ("start stopped", start, &stopped, Some("d.start")),
            ("start checking", start, &checking, Some("")),
            ("start failed", start, &failed, Some("d.stop d.start")),
            ("start stuck", start, &stuck, Some("d.stop d.close d.start")),
            ("start stuck and stopped", start, &stuck_stopped, Some("d.stop d.close d.start")),
            ("pause stuck", pause, &stuck, None),
            ("stop stuck", stop, &stuck, Some("d.stop d.close")),
            ("stop stuck and stopped", stop, &stuck_stopped, Some("d.stop d.close")),
            ("delete stuck", delete, &stuck, Some("d.stop d.close d.erase")),
            ("recheck stuck", recheck, &stuck, Some("d.stop d.close d.check_hash d.start")),
            ("recheck stuck and stopped", recheck, &stuck_stopped, Some("d.close d.check_hash")),
            ("stop running", stop, &running, Some("d.stop d.close")),
            ("stop open", stop, &open, Some("d.stop d.close")),
            ("stop stopped", stop, &stopped, Some("")),
            ("delete stopped", delete, &stopped, Some("d.stop d.close d.erase")),
            ("hold running", hold, &running, Some("d.stop d.close")),
            ("hold stopped", hold, &stopped, Some("")),
            ("hold magnet", hold, &magnet, None),
            ("recheck stopped", recheck, &stopped, Some("d.check_hash")),
            ("recheck checking", recheck, &checking, Some("")),
            ("recheck magnet", recheck, &magnet, None),
            ("announce running", announce, &running, Some("d.tracker_announce")),
            ("announce stopped", announce, &stopped, None),
        ];
        for (what, action, row, expected) in table {
            let decided = action(row).ok().map(|methods| methods.join(" "));
            assert_eq!(decided.as_deref(), *expected, "{what}");
        }
    }

    #[test]
    fn rule_3_what_is_checked_is_refused_as_busy_where_a_version_could_hang() {
        let checking = TorrentRow { state: true, is_open: true, hashing: 3, ..TorrentRow::default() };
        // A file that failed to open while another check had begun: both columns have to agree that it is over.
        let failing = TorrentRow { is_hash_checking: true, hashing_failed: true, ..checking.clone() };
        let stuck = TorrentRow { is_hash_checking: false, ..failing.clone() };
        let legacy = Probe::of_tests(false);
        let mut modern = Probe::of_tests(false);
        modern.is_legacy = false;
        //   rule, refused by a legacy version, refused by a modern one
        for (rule, on_legacy, on_modern) in
            [(&PAUSE, true, true), (&STOP, true, false), (&DELETE, true, false), (&HOLD, true, true)]
        {
            for (probe, is_refused) in [(&legacy, on_legacy), (&modern, on_modern)] {
                for row in [&checking, &failing] {
                    match rule.methods(row, probe) {
                        Err(ClientError::Busy { reason }) => {
                            assert!(is_refused, "{rule:?}");
                            assert_eq!(reason.contains("hang indefinitely"), probe.is_legacy, "{reason}");
                        }
                        other => assert!(!is_refused && other.is_ok(), "{rule:?}"),
                    }
                }
                assert!(!matches!(rule.methods(&stuck, probe), Err(ClientError::Busy { .. })), "{rule:?}");
            }
        }
    }
}
