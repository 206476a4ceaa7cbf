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
        // The client may have restarted meanwhile, which one answer may not show.
        self.was_unreachable = true;
        self.is_back = false;
        let mut change_set = self.empty_change_set(now);
        // Once: the state that is committed with the event says offline from then on.
        if self.trust.is_offline(&self.limits.trust) && state.is_online {
            change_set.events.push(NewEvent::of_server(Kind::ServerOffline, Cause::Observed));
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
        // Until `committed` says otherwise: a full store commits nothing, and only a full poll finds all of it again.
        self.is_uncommitted = !change_set.is_empty();
        change_set
    }

    fn polled_changes(
        &mut self,
        snapshot: &Snapshot,
        state: &ServerState,
        listing: &Listing,
        now: PollTime,
    ) -> ChangeSet {
        if self.needs_full_poll(state) || (listing.run.is_some() && listing.run != state.run) {
            // Nothing of it is used: in another run of the client even the torrents that are listed may be others.
            self.was_distrusted = true;
            return self.empty_change_set(now);
        }
        let mut poll = self.begin(now, Cause::Observed, state.generation, false);
        // Time alone may lead to an event of a torrent that is not listed: it is compared as it was last listed.
        let mut last_seen = std::mem::take(&mut self.pending_changes);
        last_seen.retain(|hash, _| !listing.torrents.contains_key(hash));
        for (hash, seen) in listing.torrents.iter().chain(&last_seen) {
            self.diff_torrent(&mut poll, *hash, snapshot.get(hash), seen);
        }
        poll.finish()
    }

    fn polled_all(&mut self, snapshot: &Snapshot, state: &ServerState, listing: &Listing, now: PollTime) -> ChangeSet {
        self.was_distrusted = false;
        // A full listing has all of them as they are now.
        self.pending_changes.clear();
        let loads = LoadSummary::of(snapshot, state, listing);
        let is_other_run = self.is_other_run(state, listing, loads);
        let generation = state.generation + u64::from(is_other_run && state.run.is_some());
        let was_settling = !self.has_polled && state.settling_since.is_some();
        // Before `trust` moves on: in the poll that ends the settling every load may still be new.
        let was_loading = matches!(self.trust, Trust::Settling { .. }) || was_settling;
        let nothing_missing = loads.missing == 0;
        let loading_for = match is_other_run {
            true => Some(Duration::ZERO),
            false => self.may_be_loading_for(state, loads, now),
        };
        let answer = Poll::Answered { loading_for, torrents: listing.torrents.len(), nothing_missing };
        self.trust = self.trust.after(answer, now.at, &self.limits.trust);
        let mut poll = self.begin(now, self.cause(state), generation, was_loading);
        let goes_on = loading_for != Some(Duration::ZERO);
        let since = state.settling_since.filter(|_| goes_on).unwrap_or(now.time);
        self.diff_server(&mut poll, state, listing, since);
        // Cleared, not kept: the two listings that lack a torrent have to follow each other (I2).
        if nothing_missing || !listing.complete || !self.trust.believes_absence() {
            self.missing.clear();
        } else {
            self.find_removed(&mut poll, snapshot, listing);
        }
        for (hash, last, seen) in side_by_side(snapshot, listing) {
            let Some(seen) = seen else { continue };
            self.diff_torrent(&mut poll, hash, last, seen);
        }
        let mut change_set = poll.finish();
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
                // Only now: a change set that was held back was not published.
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

    fn begin(&self, now: PollTime, cause: Cause, generation: u64, was_loading: bool) -> PollDiff {
        let context = PollContext { generation, was_loading, ..PollContext::default() };
        PollDiff { at: now.at, cause, context, change_set: self.empty_change_set(now) }
    }

    fn cause(&self, state: &ServerState) -> Cause {
        match (state.is_known, self.has_polled) {
            // Also in later polls, until `snapshot_done`: the client may still be loading.
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
        // rTorrent 0.15.7 and later answer with no torrents until their session is loaded.
        if self.was_unreachable && !is_settling && loads.has_nothing() {
            return Some(Duration::ZERO);
        }
        let since = state.settling_since.filter(|_| !self.has_polled)?;
        Some(Duration::from_millis(now.time.millis_since(since)))
    }

    fn diff_server(&self, poll: &mut PollDiff, state: &ServerState, listing: &Listing, settling_since: Timestamp) {
        let cause = if self.has_polled || !state.is_known { Cause::Observed } else { Cause::Recovered };
        let PollDiff { change_set, context: PollContext { generation, .. }, .. } = poll;
        if !state.is_online {
            change_set.events.push(NewEvent::of_server(Kind::ServerOnline, Cause::Observed));
        }
        if *generation != state.generation {
            change_set.events.push(NewEvent::of_server(Kind::ServerRestarted, cause));
        }
        // A listing without a run proves no restart, so the last known one stays.
        let run = listing.run.clone().or_else(|| state.run.clone());
        let settling_since = (!self.trust.believes_absence()).then_some(settling_since);
        let (is_known, is_online, generation) = (state.is_known, true, *generation);
        let now = ServerState { is_known, is_online, run, generation, settling_since };
        change_set.state = (now != *state).then_some(now);
    }

    /// Removes torrents that are absent from the second complete listing in a row of a steady server.
    fn find_removed(&mut self, poll: &mut PollDiff, snapshot: &Snapshot, listing: &Listing) {
        let before = std::mem::take(&mut self.missing);
        for (hash, last) in snapshot.iter().filter(|(hash, _)| !listing.torrents.contains_key(hash)) {
            let first_cause = before.get(hash).copied();
            self.missing.insert(*hash, first_cause.unwrap_or(poll.cause));
            if let Some(cause) = first_cause {
                // The cause of the first listing that lacked it: then it went, and the second one only confirms that.
                let removed = NewEvent::of_torrent(Kind::Removed, cause, Arc::clone(&last.torrent), Changes::new());
                poll.change_set.events.push(removed);
                poll.change_set.changes.insert(*hash, None);
            }
        }
    }

    /// Records what moved, and returns what that means for this poll, and when the torrent was last published.
    fn record_activity(&mut self, poll: &PollDiff, hash: InfoHash, seen: &Observed) -> (PollContext, Duration) {
        let (facts, at) = (&seen.facts, poll.at);
        let fresh = Activity {
            moved_bytes: facts.moved_bytes,
            received_bytes: facts.received_bytes,
            received_at: at,
            was_downloading: false,
            published_at: Duration::ZERO,
        };
        let recent = self.recent.entry(hash).or_insert(fresh);
        // Only upwards: the counters of a torrent that was loaded again start anywhere.
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
        (PollContext { has_moved, is_receiving, is_dry, ..poll.context }, recent.published_at)
    }

    fn diff_torrent(&mut self, poll: &mut PollDiff, hash: InfoHash, last: Option<&SnapshotTorrent>, seen: &Observed) {
        let (context, published_at) = self.record_activity(poll, hash, seen);
        let Some(last) = last else {
            let (torrent, diff_state) = first_seen(seen, context);
            self.record_pending(hash, &torrent, seen, context);
            return poll.add(hash, torrent, diff_state);
        };
        let since = poll.at.saturating_sub(published_at);
        match compare(last, seen, context, |snapshot, seen| threshold::is_worth_an_event(snapshot, seen, since)) {
            Comparison::Unchanged => {}
            Comparison::Same => self.record_pending(hash, &last.torrent, seen, context),
            Comparison::Replaced(torrent, diff_state) => {
                self.record_pending(hash, &torrent, seen, context);
                let removed =
                    NewEvent::of_torrent(Kind::Removed, poll.cause, Arc::clone(&last.torrent), Changes::new());
                poll.change_set.events.push(removed);
                poll.add(hash, torrent, diff_state);
            }
            Comparison::Changed(kinds, torrent, diff_state) => {
                self.record_pending(hash, &torrent, seen, context);
                let changes = last.torrent.changes_to(&torrent);
                let torrent = Arc::new(torrent);
                let of_kind = |kind| NewEvent::of_torrent(kind, poll.cause, Arc::clone(&torrent), changes.clone());
                poll.change_set.events.extend(kinds.into_iter().map(of_kind));
                poll.change_set.changes.insert(hash, Some((torrent, diff_state)));
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
        if !state.is_known && self.has_polled && is_whole {
            change_set.events.push(NewEvent::of_server(Kind::SnapshotDone, Cause::Snapshot));
            let now = change_set.state.take().unwrap_or_else(|| state.clone());
            change_set.state = Some(ServerState { is_known: true, ..now });
        }
    }
}

/// The comparison of one poll, while its change set is put together.
struct PollDiff {
    at: Duration,
    cause: Cause,
    /// The part of the context that is the same for all torrents.
    context: PollContext,
    change_set: ChangeSet,
}

impl PollDiff {
    fn add(&mut self, hash: InfoHash, torrent: Torrent, diff_state: DiffState) {
        let torrent = Arc::new(torrent);
        let added = NewEvent::of_torrent(Kind::Added, self.cause, Arc::clone(&torrent), Changes::new());
        self.change_set.events.push(added);
        self.change_set.changes.insert(hash, Some((torrent, diff_state)));
    }

    fn finish(mut self) -> ChangeSet {
        // Those of the server, which have no torrent, stay first; the rest by hash and kind, so that the same input
        // yields the same change set.
        let key = |event: &NewEvent| event.torrent.as_ref().map(|torrent| (torrent.hash, event.kind));
        self.change_set.events.sort_by_key(key);
        self.change_set
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
