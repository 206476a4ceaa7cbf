//! The comparison of one torrent in a poll with its snapshot.

use crate::model::{Completion, DiffState, Facts, Kind, Observed, RunState, SnapshotTorrent, Status, Torrent};

/// The outcome of comparing one torrent.
#[derive(Debug, PartialEq)]
pub enum Comparison {
    /// Equal in every number, and time alone changes nothing.
    Unchanged,
    /// Equal, or below the threshold of an event.
    Same,
    /// Erased and loaded again since: `removed`, then `added`.
    Replaced(Torrent, DiffState),
    /// Changed, with these events; `updated` alone if there are none.
    Changed(Vec<Kind>, Torrent, DiffState),
}

/// Input of a comparison besides the poll and the snapshot.
#[derive(Clone, Copy, Debug, Default)]
pub struct PollContext {
    /// Bytes moved since the last poll.
    pub has_moved: bool,
    /// Bytes are being received.
    pub is_receiving: bool,
    /// Nothing was received for long enough to call a downloading torrent stalled.
    pub is_dry: bool,
    /// The generation of the client, see [`crate::model::ServerState`].
    pub generation: u64,
    /// The client was loading its session until now, so every load may be new.
    pub was_loading: bool,
}

/// Returns the published state and the diff state of a torrent that is new.
pub fn first_seen(seen: &Observed, context: PollContext) -> (Torrent, DiffState) {
    let mut torrent = seen.torrent.clone();
    torrent.playing |= context.has_moved;
    // For how long nothing was received is known only from now on.
    torrent.stalled = false;
    let nothing = DiffState { received_bytes: seen.facts.received_bytes, ..DiffState::default() };
    let diff_state = next_diff_state(&nothing, &seen.facts, &torrent, context.generation);
    (torrent, diff_state)
}

/// Compares a poll with the snapshot. `is_due` decides whether a change without events is published.
pub fn compare(
    snapshot: &SnapshotTorrent,
    seen: &Observed,
    context: PollContext,
    is_due: impl Fn(&Torrent, &Torrent) -> bool,
) -> Comparison {
    if is_unchanged(snapshot, seen, context) {
        return Comparison::Unchanged;
    }
    let before = &snapshot.diff_state;
    let is_resolved = !before.has_metadata && seen.facts.has_metadata;
    let is_other_load = matches!((&before.load, &seen.facts.load), (Some(old), Some(new)) if old != new);
    // After a restart every torrent was loaded again, which proves nothing about one of them.
    let is_same_run = before.generation == context.generation && !context.was_loading;
    // With its metadata a magnet link gets another load, too: rTorrent inserts it once more under the same hash.
    if is_other_load && is_same_run && !is_resolved {
        let (torrent, diff_state) = first_seen(seen, context);
        return Comparison::Replaced(torrent, diff_state);
    }
    let torrent = published_state(&snapshot.torrent, seen, context);
    let diff_state = next_diff_state(before, &seen.facts, &torrent, context.generation);
    let kinds = events_between(&snapshot.torrent, before, &torrent, &seen.facts, is_resolved);
    // The diff state is committed with the next change that is published; until then the next poll finds the
    // same again. A new load alone changes nothing that could be published.
    if !kinds.is_empty() || is_due(&snapshot.torrent, &torrent) || needs_writing(before, &diff_state) {
        Comparison::Changed(kinds, torrent, diff_state)
    } else {
        Comparison::Same
    }
}

/// Returns whether nothing changed, without building the published state: the case of almost every torrent in
/// almost every poll.
fn is_unchanged(snapshot: &SnapshotTorrent, seen: &Observed, context: PollContext) -> bool {
    let (torrent, facts, diff_state) = (&seen.torrent, &seen.facts, &snapshot.diff_state);
    // A moving torrent is compared in full: time alone may end a stall or make a change worth an event.
    let is_at_rest = !matches!(torrent.status, Status::Checking | Status::Downloading) && !context.has_moved;
    is_at_rest
        && facts.has_metadata == diff_state.has_metadata
        && facts.load == diff_state.load
        && completion(facts) == diff_state.completion
        && run_at_rest(torrent.status) == Some(diff_state.run_state)
        && *torrent == *snapshot.torrent
}

/// Returns whether the snapshot is what would be published if nothing moves any more.
pub fn is_fully_published(snapshot: &Torrent, seen: &Observed, context: PollContext) -> bool {
    published_state(snapshot, seen, PollContext { has_moved: false, ..context }) == *snapshot
}

/// Returns whether the diff state has to be committed. The load of a torrent decides about
/// [`Comparison::Replaced`], so a changed one must not be lost.
fn needs_writing(before: &DiffState, after: &DiffState) -> bool {
    let DiffState { load, generation: _, has_metadata, received_bytes: _, completion, run_state } = before;
    *load != after.load
        || *has_metadata != after.has_metadata
        || *completion != after.completion
        || *run_state != after.run_state
}

/// Returns the torrent as it is published if anything is.
///
/// While its content is checked, the downloaded bytes count up from zero: they show the progress of the check,
/// not what is there. Until it ends, the last known numbers are published.
fn published_state(snapshot: &Torrent, seen: &Observed, context: PollContext) -> Torrent {
    let mut torrent = seen.torrent.clone();
    torrent.playing |= context.has_moved;
    torrent.stalled =
        torrent.status == Status::Downloading && !context.is_receiving && (snapshot.stalled || context.is_dry);
    // Not after a change of length: the old numbers would exceed or understate the new content.
    if torrent.status == Status::Checking && torrent.length == snapshot.length {
        torrent.downloaded = snapshot.downloaded;
        torrent.progress = snapshot.progress;
        torrent.left = snapshot.left;
        torrent.ratio = snapshot.ratio;
        torrent.finished = snapshot.finished;
        torrent.finished_at = snapshot.finished_at;
    }
    torrent
}

fn next_diff_state(before: &DiffState, facts: &Facts, now: &Torrent, generation: u64) -> DiffState {
    let is_checking = now.status == Status::Checking;
    let received_bytes = match (before.completion, completion(facts)) {
        _ if is_checking => before.received_bytes,
        (_, Completion::Complete) => facts.received_bytes,
        // Bytes that were received and are not checked yet belong to the running download.
        (Completion::Unknown, _) => facts.received_bytes.min(now.downloaded),
        // A complete torrent that was found incomplete is downloaded again from now on. Where a client counts what
        // is there, the number falls with it.
        (Completion::Complete, _) => before.received_bytes.min(facts.received_bytes),
        (Completion::Incomplete, _) => before.received_bytes,
    };
    DiffState {
        load: facts.load.clone().or_else(|| before.load.clone()),
        generation,
        has_metadata: facts.has_metadata,
        received_bytes,
        completion: if is_checking { before.completion } else { completion(facts) },
        run_state: run_at_rest(now.status).unwrap_or(before.run_state),
    }
}

fn completion(facts: &Facts) -> Completion {
    // A magnet link without metadata has no content that could be complete.
    if facts.complete && facts.has_metadata { Completion::Complete } else { Completion::Incomplete }
}

/// Returns whether the torrent runs; `None` while it is checked, because clients show what follows the check.
fn run_at_rest(status: Status) -> Option<RunState> {
    match status {
        Status::Checking => None,
        Status::Stopped => Some(RunState::Stopped),
        Status::Paused => Some(RunState::Paused),
        Status::Downloading | Status::Seeding | Status::Metadata | Status::Queued => Some(RunState::Running),
    }
}

/// Returns the events between two states, in the order in which they are published.
fn events_between(
    snapshot: &Torrent,
    before: &DiffState,
    now: &Torrent,
    facts: &Facts,
    is_resolved: bool,
) -> Vec<Kind> {
    let mut kinds = Vec::new();
    let mut push = |kind, is_so| {
        if is_so {
            kinds.push(kind);
        }
    };
    // Resolving a magnet link changes its name and directory.
    push(Kind::Metadata, is_resolved);
    push(Kind::Renamed, snapshot.name != now.name && !is_resolved);
    push(Kind::Moved, is_other_value(&snapshot.directory, &now.directory) && !is_resolved);
    push(Kind::LabelChanged, is_other_value(&snapshot.label, &now.label));
    push(Kind::PriorityChanged, is_other_value(&snapshot.priority, &now.priority));
    push(Kind::Checking, snapshot.status != Status::Checking && now.status == Status::Checking);
    push(Kind::Checked, snapshot.status == Status::Checking && now.status != Status::Checking);
    if let Some(run) = run_at_rest(now.status) {
        // Compared with the last state at rest: a check in between is no stop, and what follows it is no start.
        let is_start = before.run_state == RunState::Stopped && run == RunState::Running;
        push(Kind::Started, is_start);
        push(Kind::Resumed, before.run_state == RunState::Paused && run == RunState::Running);
        push(
            Kind::Paused,
            matches!(before.run_state, RunState::Running | RunState::Stopped) && run == RunState::Paused,
        );
        push(
            Kind::Stopped,
            matches!(before.run_state, RunState::Running | RunState::Paused) && run == RunState::Stopped,
        );
        let is_complete = completion(facts) == Completion::Complete;
        let is_finished = match before.completion {
            // Data that a check found, and that was not received, is not a download.
            Completion::Incomplete | Completion::Unknown => {
                is_complete && facts.received_bytes != before.received_bytes
            }
            Completion::Complete => false,
        };
        push(Kind::Finished, is_finished);
        push(Kind::Unfinished, before.completion == Completion::Complete && !is_complete);
    }
    push(Kind::Stalled, !snapshot.stalled && now.stalled);
    push(Kind::Unstalled, snapshot.stalled && !now.stalled);
    push(Kind::Error, !snapshot.error && now.error);
    push(Kind::ErrorCleared, snapshot.error && !now.error);
    // In the order of the contract, which is that of the variants.
    kinds.sort_unstable();
    kinds
}

/// Returns whether a known value changed. Learning a value is no event.
fn is_other_value<T: PartialEq>(snapshot: &Option<T>, now: &Option<T>) -> bool {
    matches!((snapshot, now), (Some(snapshot), Some(now)) if snapshot != now)
}
