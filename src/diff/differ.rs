//! The differ of one server: what it remembers between polls, and the change set of each poll.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::compare::{Comparison, PollContext, compare, first_seen, is_fully_published};
use super::threshold;
use super::trust::{Poll, Trust, TrustLimits};
use crate::model::{
    Cause, ChangeSet, Changes, Committed, Covers, DiffState, InfoHash, Kind, Listing, NewEvent, Observed, ServerName,
    ServerState, Snapshot, SnapshotTorrent, Status, Timestamp, Torrent,
};

/// Limits of a [`Differ`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// When a server is offline or settling.
    pub trust: TrustLimits,
    /// Time after which a downloading torrent that receives nothing is stalled.
    pub dry: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { trust: TrustLimits { failures_max: 3, settle: Duration::from_secs(30) }, dry: Duration::from_secs(60) }
    }
}

/// The time of a poll by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct PollTime {
    /// Wall clock, for events.
    pub time: Timestamp,
    /// Monotonic, from any fixed point.
    pub at: Duration,
}

/// Turns the polls of one server into change sets.
pub struct Differ {
    server: ServerName,
    limits: Limits,
    trust: Trust,
    recent: HashMap<InfoHash, Activity>,
    /// The last listed state of torrents that may need an event without another change: numbers held back for a
    /// moment, a movement that has ended, a download that may be stalling.
    pending_changes: BTreeMap<InfoHash, Observed>,
    /// Torrents absent from the last complete listing, with the cause that their removal will have.
    missing: BTreeMap<InfoHash, Cause>,
    /// There was a full poll. What the first one finds happened before this run of the bridge.
    has_polled: bool,
    /// The client was unreachable, or may have been, since its run was last known.
    was_unreachable: bool,
    /// The run was known in the last poll; `was_unreachable` ends when that is committed.
    is_back: bool,
    /// The last change set that was not empty is not committed yet.
    is_uncommitted: bool,
    /// The last listing of changes could not be trusted.
    was_distrusted: bool,
}

/// The recent activity of one torrent. It is not persisted.
#[derive(Clone, Copy, Debug)]
struct Activity {
    moved_bytes: u64,
    received_bytes: u64,
    received_at: Duration,
    was_downloading: bool,
    published_at: Duration,
}

impl Differ {
    /// A differ that has seen no poll yet.
    pub fn new(server: ServerName, limits: Limits) -> Self {
        Self {
            server,
            limits,
            trust: Trust::START,
            recent: HashMap::new(),
            pending_changes: BTreeMap::new(),
            missing: BTreeMap::new(),
            has_polled: false,
            was_unreachable: true,
            is_back: false,
            is_uncommitted: false,
            was_distrusted: false,
        }
    }

    /// Returns whether the next poll has to be full: while the server is not known and steady, to confirm that a
    /// torrent is gone, and to find again what could not be committed.
    pub fn needs_full_poll(&self, state: &ServerState) -> bool {
        let is_steady = self.trust == Trust::Steady { failures: 0 } && self.has_polled && !self.was_unreachable;
        !is_steady || !state.is_known || self.is_uncommitted || self.was_distrusted || !self.missing.is_empty()
    }

    /// Records a failed poll. Only `server_offline` can follow.
    pub fn failed(&mut self, state: &ServerState, now: PollTime) -> ChangeSet {
        self.trust = self.trust.after(Poll::Failed, now.at, &self.limits.trust);
        self.was_unreachable = true;
        self.is_back = false;
        let mut change_set = self.empty_change_set(now);
        if self.trust.is_offline(&self.limits.trust) && state.is_online {
            change_set.events.push(server_event(Kind::ServerOffline, Cause::Observed));
            change_set.state = Some(ServerState { is_online: false, ..state.clone() });
        }
        change_set
    }

    /// Records a successful poll.
    ///
    /// The change set holds the whole difference between `snapshot` and `listing`. It is to be committed before
    /// the next poll; if that fails, the snapshot stays and the next poll finds the same again.
    pub fn polled(&mut self, snapshot: &Snapshot, state: &ServerState, listing: &Listing, now: PollTime) -> ChangeSet {
        let change_set = match listing.covers {
            Covers::All => self.polled_all(snapshot, state, listing, now),
            Covers::Changed => self.polled_changes(snapshot, state, listing, now),
        };
        self.is_uncommitted = !change_set.is_empty();
        change_set
    }

    /// Of the torrents that are not listed, those with pending changes are compared as they were last listed.
    fn polled_changes(
        &mut self,
        snapshot: &Snapshot,
        state: &ServerState,
        listing: &Listing,
        now: PollTime,
    ) -> ChangeSet {
        let mut change_set = self.empty_change_set(now);
        if self.needs_full_poll(state) || (listing.run.is_some() && listing.run != state.run) {
            self.was_distrusted = true;
            return change_set;
        }
        let mut torrents = Vec::new();
        let mut last_seen = std::mem::take(&mut self.pending_changes);
        last_seen.retain(|hash, _| !listing.torrents.contains_key(hash));
        for (hash, seen) in listing.torrents.iter().chain(&last_seen) {
            let (context, published_at) = self.record_activity(*hash, seen, now.at);
            let context = PollContext { generation: state.generation, ..context };
            let since = now.at.saturating_sub(published_at);
            let last = snapshot.get(hash);
            self.diff_torrent(*hash, last, seen, context, Cause::Observed, since, &mut change_set, &mut torrents);
        }
        add_in_order(&mut change_set, torrents);
        change_set
    }

    fn polled_all(&mut self, snapshot: &Snapshot, state: &ServerState, listing: &Listing, now: PollTime) -> ChangeSet {
        self.was_distrusted = false;
        self.pending_changes.clear();
        let loads = LoadSummary::of(snapshot, state, listing);
        let is_other_run = self.is_other_run(state, listing, loads);
        let generation = state.generation + u64::from(is_other_run && state.run.is_some());
        let was_settling = !self.has_polled && state.settling_since.is_some();
        let was_loading = matches!(self.trust, Trust::Settling { .. }) || was_settling;
        let nothing_missing = loads.missing == 0;
        let loading_for = match is_other_run {
            true => Some(Duration::ZERO),
            false => self.may_be_loading_for(state, loads, now),
        };
        let poll = Poll::Answered { loading_for, torrents: listing.torrents.len(), nothing_missing };
        self.trust = self.trust.after(poll, now.at, &self.limits.trust);
        let cause = self.cause(state);
        let mut change_set = self.empty_change_set(now);
        let goes_on = loading_for != Some(Duration::ZERO);
        let since = state.settling_since.filter(|_| goes_on).unwrap_or(now.time);
        self.diff_server(&mut change_set, state, listing, generation, since);
        let mut torrents = Vec::new();
        if nothing_missing || !listing.complete || !self.trust.believes_absence() {
            self.missing.clear();
        } else {
            self.find_removed(snapshot, listing, cause, &mut change_set, &mut torrents);
        }
        for (hash, last, seen) in side_by_side(snapshot, listing) {
            let Some(seen) = seen else { continue };
            let (context, published_at) = self.record_activity(hash, seen, now.at);
            let context = PollContext { generation, was_loading, ..context };
            let since = now.at.saturating_sub(published_at);
            self.diff_torrent(hash, last, seen, context, cause, since, &mut change_set, &mut torrents);
        }
        add_in_order(&mut change_set, torrents);
        self.finish_initial_snapshot(&mut change_set, state, snapshot, listing);
        self.has_polled = true;
        // A restart that could not be committed has to be found again.
        self.is_back = self.trust.believes_absence() || !loads.has_nothing();
        self.was_unreachable &= !(self.is_back && change_set.is_empty());
        change_set
    }

    /// Records that a change set, or a part of it, was committed.
    pub fn committed(&mut self, committed: &Committed, at: Duration) {
        self.was_unreachable &= !self.is_back;
        self.is_uncommitted = false;
        for (hash, snapshot) in &committed.snapshot {
            match (snapshot, self.recent.get_mut(hash)) {
                (None, _) => {
                    self.recent.remove(hash);
                    self.missing.remove(hash);
                    self.pending_changes.remove(hash);
                }
                (Some(_), Some(recent)) => recent.published_at = at,
                (Some(_), None) => {}
            }
        }
    }

    /// Records that not all of the change set was committed: the next poll finds the rest again.
    pub fn held_back(&mut self) {
        self.is_uncommitted = true;
    }

    /// Returns whether a torrent was missing from the last poll: the next one decides whether it is gone.
    pub fn is_in_doubt(&self) -> bool {
        !self.missing.is_empty()
    }

    fn empty_change_set(&self, now: PollTime) -> ChangeSet {
        ChangeSet {
            server: self.server.clone(),
            time: now.time,
            events: Vec::new(),
            changes: BTreeMap::new(),
            state: None,
        }
    }

    fn cause(&self, state: &ServerState) -> Cause {
        match (state.is_known, self.has_polled) {
            (false, _) => Cause::Snapshot,
            (true, false) => Cause::Recovered,
            (true, true) => Cause::Observed,
        }
    }

    /// Returns whether this is another run of the client than the one of the snapshot.
    ///
    /// Another run id proves it. The same id does not prove the contrary, because a process in a container may
    /// keep its id. Then a client that has loaded all of its torrents anew was restarted; a single torrent may
    /// have been loaded again by a user, if the client was reachable all the time.
    fn is_other_run(&self, state: &ServerState, listing: &Listing, loads: LoadSummary) -> bool {
        if listing.run.is_some() && listing.run != state.run {
            return true;
        }
        !loads.has_unchanged && loads.changed > if self.was_unreachable { 0 } else { 1 }
    }

    /// Returns for how long the client may have been loading its session, although no other run was seen: it did
    /// so before the bridge was restarted, or it was unreachable and has no torrent of the snapshot (a restarted
    /// client may have the run id of its former run, and no torrents to tell the two apart yet).
    fn may_be_loading_for(&self, state: &ServerState, loads: LoadSummary, now: PollTime) -> Option<Duration> {
        let is_settling = matches!(self.trust, Trust::Settling { .. });
        if self.was_unreachable && !is_settling && loads.has_nothing() {
            return Some(Duration::ZERO);
        }
        let since = state.settling_since.filter(|_| !self.has_polled)?;
        Some(Duration::from_millis(now.time.millis_since(since)))
    }

    fn diff_server(
        &self,
        change_set: &mut ChangeSet,
        state: &ServerState,
        listing: &Listing,
        generation: u64,
        settling_since: Timestamp,
    ) {
        let cause = if self.has_polled || !state.is_known { Cause::Observed } else { Cause::Recovered };
        if !state.is_online {
            change_set.events.push(server_event(Kind::ServerOnline, Cause::Observed));
        }
        if generation != state.generation {
            change_set.events.push(server_event(Kind::ServerRestarted, cause));
        }
        let run = listing.run.clone().or_else(|| state.run.clone());
        let settling_since = (!self.trust.believes_absence()).then_some(settling_since);
        let now = ServerState { is_known: state.is_known, is_online: true, run, generation, settling_since };
        change_set.state = (now != *state).then_some(now);
    }

    /// Removes torrents that are absent from the second complete listing in a row of a steady server.
    fn find_removed(
        &mut self,
        snapshot: &Snapshot,
        listing: &Listing,
        cause: Cause,
        change_set: &mut ChangeSet,
        torrents: &mut Vec<(InfoHash, NewEvent)>,
    ) {
        let before = std::mem::take(&mut self.missing);
        for (hash, last) in snapshot.iter().filter(|(hash, _)| !listing.torrents.contains_key(hash)) {
            let first_cause = before.get(hash).copied();
            self.missing.insert(*hash, first_cause.unwrap_or(cause));
            if let Some(cause) = first_cause {
                torrents.push((*hash, removed(last, cause)));
                change_set.changes.insert(*hash, None);
            }
        }
    }

    /// Records what moved, and returns what that means for this poll, and when the torrent was last published.
    fn record_activity(&mut self, hash: InfoHash, seen: &Observed, at: Duration) -> (PollContext, Duration) {
        let facts = &seen.facts;
        let fresh = Activity {
            moved_bytes: facts.moved_bytes,
            received_bytes: facts.received_bytes,
            received_at: at,
            was_downloading: false,
            published_at: Duration::ZERO,
        };
        let recent = self.recent.entry(hash).or_insert(fresh);
        let has_moved = facts.moved_bytes > recent.moved_bytes;
        let is_receiving = facts.received_bytes != recent.received_bytes || seen.torrent.download_rate.unwrap_or(0) > 0;
        recent.moved_bytes = facts.moved_bytes;
        recent.received_bytes = facts.received_bytes;
        // While the client was unreachable, or before the torrent downloaded, receiving could not be observed.
        if is_receiving || !recent.was_downloading || self.was_unreachable {
            recent.received_at = at;
        }
        recent.was_downloading = seen.torrent.status == Status::Downloading;
        let is_dry = at.saturating_sub(recent.received_at) >= self.limits.dry;
        (PollContext { has_moved, is_receiving, is_dry, ..PollContext::default() }, recent.published_at)
    }

    #[allow(clippy::too_many_arguments)] // one place, called once: a struct would only rename the list
    fn diff_torrent(
        &mut self,
        hash: InfoHash,
        snapshot: Option<&SnapshotTorrent>,
        seen: &Observed,
        context: PollContext,
        cause: Cause,
        since: Duration,
        change_set: &mut ChangeSet,
        torrents: &mut Vec<(InfoHash, NewEvent)>,
    ) {
        let Some(last) = snapshot else {
            let (torrent, memory) = first_seen(seen, context);
            self.record_pending(hash, &torrent, seen, context);
            torrents.push((hash, added(Arc::new(torrent), memory, cause, hash, change_set)));
            return;
        };
        match compare(last, seen, context, |snapshot, seen| threshold::is_worth_an_event(snapshot, seen, since)) {
            Comparison::Unchanged => {}
            Comparison::Same => self.record_pending(hash, &last.torrent, seen, context),
            Comparison::Replaced(torrent, memory) => {
                self.record_pending(hash, &torrent, seen, context);
                torrents.push((hash, removed(last, cause)));
                torrents.push((hash, added(Arc::new(torrent), memory, cause, hash, change_set)));
            }
            Comparison::Changed(kinds, torrent, memory) => {
                self.record_pending(hash, &torrent, seen, context);
                let changes = last.torrent.changes_to(&torrent);
                let torrent = Arc::new(torrent);
                torrents.extend(kinds.into_iter().map(|kind| {
                    let changes = changes.clone();
                    (hash, NewEvent { kind, cause, command_id: None, changes, torrent: Some(Arc::clone(&torrent)) })
                }));
                change_set.changes.insert(hash, Some((torrent, memory)));
            }
        }
    }

    /// Stores the listed state, if time alone may lead to another event.
    fn record_pending(&mut self, hash: InfoHash, snapshot: &Torrent, seen: &Observed, context: PollContext) {
        let may_stall = seen.torrent.status == Status::Downloading && !snapshot.stalled;
        if may_stall || !is_fully_published(snapshot, seen, context) {
            self.pending_changes.insert(hash, seen.clone());
        }
    }

    /// Ends the initial snapshot when a poll shows no torrent that is not in it. Torrents that a client still loads
    /// belong to the initial snapshot.
    fn finish_initial_snapshot(
        &self,
        change_set: &mut ChangeSet,
        state: &ServerState,
        snapshot: &Snapshot,
        listing: &Listing,
    ) {
        let is_whole = listing.complete && listing.torrents.keys().all(|hash| snapshot.contains_key(hash));
        let has_polled_before = self.has_polled;
        if !state.is_known && has_polled_before && is_whole {
            change_set.events.push(server_event(Kind::SnapshotDone, Cause::Snapshot));
            let now = change_set.state.take().unwrap_or_else(|| state.clone());
            change_set.state = Some(ServerState { is_known: true, ..now });
        }
    }
}

/// Iterates over snapshot and listing in parallel, by hash; at least one of the two is present.
fn side_by_side<'a>(
    snapshot: &'a Snapshot,
    listing: &'a Listing,
) -> impl Iterator<Item = (InfoHash, Option<&'a SnapshotTorrent>, Option<&'a Observed>)> {
    let (mut snapshot, mut seen) = (snapshot.iter().peekable(), listing.torrents.iter().peekable());
    std::iter::from_fn(move || {
        let order = match (snapshot.peek(), seen.peek()) {
            (Some((snapshot, _)), Some((seen, _))) => snapshot.cmp(seen),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return None,
        };
        let snapshot = if order.is_le() { snapshot.next() } else { None };
        let seen = if order.is_ge() { seen.next() } else { None };
        let hash = snapshot.map(|(hash, _)| hash).or(seen.map(|(hash, _)| hash))?;
        Some((*hash, snapshot.map(|(_, snapshot)| snapshot), seen.map(|(_, seen)| seen)))
    })
}

/// The loads of a listing, compared with those of the snapshot.
#[derive(Clone, Copy)]
struct LoadSummary {
    /// Torrents of the snapshot.
    snapshot: usize,
    /// Torrents of the snapshot that are not listed.
    missing: usize,
    /// Torrents of this generation that were loaded anew since.
    changed: usize,
    /// One torrent of this generation has the same load; no more are compared then.
    has_unchanged: bool,
}

impl LoadSummary {
    fn of(snapshot: &Snapshot, state: &ServerState, listing: &Listing) -> Self {
        let mut loads = Self { snapshot: snapshot.len(), missing: 0, changed: 0, has_unchanged: false };
        for (_, snapshot, seen) in side_by_side(snapshot, listing) {
            let Some(snapshot) = snapshot else { continue };
            loads.missing += usize::from(seen.is_none());
            if loads.has_unchanged || snapshot.diff_state.generation != state.generation {
                continue;
            }
            if let (Some(before), Some(seen)) =
                (&snapshot.diff_state.load, seen.and_then(|seen| seen.facts.load.as_ref()))
            {
                loads.has_unchanged = before == seen;
                loads.changed += usize::from(before != seen);
            }
        }
        loads
    }

    /// Returns whether the snapshot has torrents and none of them is listed.
    fn has_nothing(self) -> bool {
        self.snapshot > 0 && self.missing == self.snapshot
    }
}

/// Adds events in the order of hash and kind, so that the same input yields the same change set.
fn add_in_order(change_set: &mut ChangeSet, mut torrents: Vec<(InfoHash, NewEvent)>) {
    torrents.sort_by_key(|(hash, new_event)| (*hash, new_event.kind));
    change_set.events.extend(torrents.into_iter().map(|(_, new_event)| new_event));
}

fn server_event(kind: Kind, cause: Cause) -> NewEvent {
    NewEvent { kind, cause, command_id: None, changes: Changes::new(), torrent: None }
}

fn removed(last: &SnapshotTorrent, cause: Cause) -> NewEvent {
    let torrent = Some(Arc::clone(&last.torrent));
    NewEvent { kind: Kind::Removed, cause, command_id: None, changes: Changes::new(), torrent }
}

fn added(
    torrent: Arc<Torrent>,
    memory: DiffState,
    cause: Cause,
    hash: InfoHash,
    change_set: &mut ChangeSet,
) -> NewEvent {
    change_set.changes.insert(hash, Some((Arc::clone(&torrent), memory)));
    NewEvent { kind: Kind::Added, cause, command_id: None, changes: Changes::new(), torrent: Some(torrent) }
}
