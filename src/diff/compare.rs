//! One torrent, as told and as seen: what has happened to it.

use crate::model::{Completion, DiffState, Facts, Kind, Observed, Run, SnapshotTorrent, Status, Torrent};

/// What a look at one torrent means.
#[derive(Debug, PartialEq)]
pub enum Finding {
    /// As told, to the last number, and time alone changes nothing.
    Snapshot,
    /// As told before, or not worth telling yet.
    Same,
    /// It was erased and loaded again since: `removed`, then `added`.
    Replaced(Torrent, DiffState),
    /// It is to be told anew, by these events; by `updated` alone if there are none.
    Changed(Vec<Kind>, Torrent, DiffState),
}

/// What the watcher adds to a look from its own memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context {
    /// Bytes moved since the last look.
    pub has_moved: bool,
    /// Bytes of it are coming in.
    pub is_receiving: bool,
    /// Nothing has come for long enough to call a downloading torrent stalled.
    pub is_dry: bool,
    /// How often the client has restarted, see [`crate::model::ServerState`].
    pub generation: u64,
    /// It has been loading its session until now: every load may be new.
    pub was_loading: bool,
}

/// The picture and the memory of a torrent that is seen for the first time.
pub fn first_sight(seen: &Observed, context: Context) -> (Torrent, DiffState) {
    let mut torrent = seen.torrent.clone();
    torrent.playing |= context.has_moved;
    torrent.stalled = false;
    let nothing = DiffState { received_bytes: seen.facts.received_bytes, ..DiffState::default() };
    let memory = remember(&nothing, &seen.facts, &torrent, context.generation);
    (torrent, memory)
}

/// Compares a look with what was told; `is_due` says whether small changes are to be told, too.
pub fn compare(
    snapshot: &SnapshotTorrent,
    seen: &Observed,
    context: Context,
    is_due: impl Fn(&Torrent, &Torrent) -> bool,
) -> Finding {
    if is_as_told(snapshot, seen, context) {
        return Finding::Snapshot;
    }
    let before = &snapshot.memory;
    let is_resolved = !before.has_metadata && seen.facts.has_metadata;
    let is_other_load = matches!((&before.load, &seen.facts.load), (Some(old), Some(new)) if old != new);
    // After a restart every torrent has been loaded anew, and that says nothing.
    let is_same_run = before.generation == context.generation && !context.was_loading;
    if is_other_load && is_same_run && !is_resolved {
        let (torrent, memory) = first_sight(seen, context);
        return Finding::Replaced(torrent, memory);
    }
    let torrent = picture(&snapshot.torrent, seen, context);
    let memory = remember(before, &seen.facts, &torrent, context.generation);
    let kinds = happened(&snapshot.torrent, before, &torrent, &seen.facts, is_resolved);
    // The memory is written with the next thing that is told; until then the look after this one
    // finds the same again. A new load alone changes nothing that could be told.
    if !kinds.is_empty() || is_due(&snapshot.torrent, &torrent) || needs_writing(before, &memory) {
        Finding::Changed(kinds, torrent, memory)
    } else {
        Finding::Same
    }
}

/// What holds for almost every torrent at almost every look, found without making a picture of it.
fn is_as_told(snapshot: &SnapshotTorrent, seen: &Observed, context: Context) -> bool {
    let (torrent, facts, memory) = (&seen.torrent, &seen.facts, &snapshot.memory);
    let is_at_rest = !matches!(torrent.status, Status::Checking | Status::Downloading) && !context.has_moved;
    is_at_rest
        && facts.has_metadata == memory.has_metadata
        && facts.load == memory.load
        && completion(facts) == memory.completion
        && run_at_rest(torrent.status) == Some(memory.run)
        && *torrent == *snapshot.torrent
}

/// Whether the world was told all that a look shows, if nothing moves any more.
pub fn is_told_whole(snapshot: &Torrent, seen: &Observed, context: Context) -> bool {
    picture(snapshot, seen, Context { has_moved: false, ..context }) == *snapshot
}

/// The load of a torrent decides about "replaced", so a changed one must not be forgotten.
fn needs_writing(before: &DiffState, after: &DiffState) -> bool {
    let DiffState { load, generation: _, has_metadata, received_bytes: _, completion, run } = before;
    *load != after.load || *has_metadata != after.has_metadata || *completion != after.completion || *run != after.run
}

/// The torrent as it is to be told if anything is told.
///
/// While its content is checked, what is here counts up from nothing, which says how far the check
/// is and not what is here. Until it ends, the last known numbers stand.
fn picture(snapshot: &Torrent, seen: &Observed, context: Context) -> Torrent {
    let mut torrent = seen.torrent.clone();
    torrent.playing |= context.has_moved;
    torrent.stalled =
        torrent.status == Status::Downloading && !context.is_receiving && (snapshot.stalled || context.is_dry);
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

fn remember(before: &DiffState, facts: &Facts, now: &Torrent, generation: u64) -> DiffState {
    let is_checking = now.status == Status::Checking;
    let received_bytes = match (before.completion, completion(facts)) {
        _ if is_checking => before.received_bytes,
        (_, Completion::Complete) => facts.received_bytes,
        // What has come and is not checked yet belongs to the download that is under way.
        (Completion::Unknown, _) => facts.received_bytes.min(now.downloaded),
        // Found incomplete after it was complete, it is downloaded again by what comes from now on. Of a client that
        // counts what is here, the number falls with it.
        (Completion::Complete, _) => before.received_bytes.min(facts.received_bytes),
        (Completion::Incomplete, _) => before.received_bytes,
    };
    DiffState {
        load: facts.load.clone().or_else(|| before.load.clone()),
        generation,
        has_metadata: facts.has_metadata,
        received_bytes,
        completion: if is_checking { before.completion } else { completion(facts) },
        run: run_at_rest(now.status).unwrap_or(before.run),
    }
}

fn completion(facts: &Facts) -> Completion {
    if facts.complete && facts.has_metadata { Completion::Complete } else { Completion::Incomplete }
}

/// Whether it runs; unknown while it is checked, for then a client shows what it does after the check.
fn run_at_rest(status: Status) -> Option<Run> {
    match status {
        Status::Checking => None,
        Status::Stopped => Some(Run::Stopped),
        Status::Paused => Some(Run::Paused),
        Status::Downloading | Status::Seeding | Status::Metadata | Status::Queued => Some(Run::Running),
    }
}

/// The events between two pictures, in the order in which they are told.
fn happened(snapshot: &Torrent, before: &DiffState, now: &Torrent, facts: &Facts, is_resolved: bool) -> Vec<Kind> {
    let mut kinds = Vec::new();
    let mut tell = |kind, is_so| {
        if is_so {
            kinds.push(kind);
        }
    };
    // A magnet link that learned what it is has another name and place by that alone.
    tell(Kind::Metadata, is_resolved);
    tell(Kind::Renamed, snapshot.name != now.name && !is_resolved);
    tell(Kind::Moved, is_other_value(&snapshot.directory, &now.directory) && !is_resolved);
    tell(Kind::LabelChanged, is_other_value(&snapshot.label, &now.label));
    tell(Kind::PriorityChanged, is_other_value(&snapshot.priority, &now.priority));
    tell(Kind::Checking, snapshot.status != Status::Checking && now.status == Status::Checking);
    tell(Kind::Checked, snapshot.status == Status::Checking && now.status != Status::Checking);
    if let Some(run) = run_at_rest(now.status) {
        let is_start = before.run == Run::Stopped && run == Run::Running;
        tell(Kind::Started, is_start);
        tell(Kind::Resumed, before.run == Run::Paused && run == Run::Running);
        tell(Kind::Paused, matches!(before.run, Run::Running | Run::Stopped) && run == Run::Paused);
        tell(Kind::Stopped, matches!(before.run, Run::Running | Run::Paused) && run == Run::Stopped);
        let is_complete = completion(facts) == Completion::Complete;
        let is_finished = match before.completion {
            // Data that somebody put there and a check found is no download.
            Completion::Incomplete | Completion::Unknown => {
                is_complete && facts.received_bytes != before.received_bytes
            }
            Completion::Complete => false,
        };
        tell(Kind::Finished, is_finished);
        tell(Kind::Unfinished, before.completion == Completion::Complete && !is_complete);
    }
    tell(Kind::Stalled, !snapshot.stalled && now.stalled);
    tell(Kind::Unstalled, snapshot.stalled && !now.stalled);
    tell(Kind::Error, !snapshot.error && now.error);
    tell(Kind::ErrorCleared, snapshot.error && !now.error);
    kinds.sort_unstable();
    kinds
}

/// Known before and now, and different: learning a value is no event.
fn is_other_value<T: PartialEq>(snapshot: &Option<T>, now: &Option<T>) -> bool {
    matches!((snapshot, now), (Some(snapshot), Some(now)) if snapshot != now)
}
