//! What is kept in mind of one server between two looks, and the tick that a look makes.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::compare::{Context, Finding, compare, first_sight, is_told_whole};
use super::trust::{Poll, Trust, TrustLimits};
use super::worth;
use crate::model::{
    Cause, ChangeSet, Changes, Committed, Covers, DiffState, InfoHash, Kind, Listing, NewEvent, Observed, ServerName,
    ServerState, Snapshot, SnapshotTorrent, Status, Timestamp, Torrent,
};

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub trust: TrustLimits,
    /// A downloading torrent that got nothing for so long is stalled.
    pub dry: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { trust: TrustLimits { failures_max: 3, settle: Duration::from_secs(30) }, dry: Duration::from_secs(60) }
    }
}

/// A point in time by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub time: Timestamp,
    /// Monotonic, from any fixed point.
    pub at: Duration,
}

/// Watches one server, by the answers of its client alone.
pub struct Differ {
    server: ServerName,
    limits: Limits,
    trust: Trust,
    recent: HashMap<InfoHash, Recent>,
    /// What the last look showed of torrents about which there is more to tell without anything new:
    /// numbers held back for a moment, a movement that has ended, a download that may be stalling.
    unsettled: BTreeMap<InfoHash, Observed>,
    /// Absent from the last complete listing, with the cause that its removal will have.
    missing: BTreeMap<InfoHash, Cause>,
    /// What is found by the first look happened while nobody watched.
    has_looked: bool,
    /// The client was away, or may have been, since it last had something to know its run by.
    was_away: bool,
    /// The last look had something to know the run by; `was_away` ends when that is written down.
    is_back: bool,
    /// The last tick that had something to tell is not on disk yet.
    is_untold: bool,
    /// A listing of changes came when it could not be believed.
    was_not_believed: bool,
}

/// Of each torrent, only in memory.
#[derive(Clone, Copy, Debug)]
struct Recent {
    moved_bytes: u64,
    received_bytes: u64,
    received_at: Duration,
    was_downloading: bool,
    told_at: Duration,
}

impl Differ {
    pub fn new(server: ServerName, limits: Limits) -> Self {
        Self {
            server,
            limits,
            trust: Trust::START,
            recent: HashMap::new(),
            unsettled: BTreeMap::new(),
            missing: BTreeMap::new(),
            has_looked: false,
            was_away: true,
            is_back: false,
            is_untold: false,
            was_not_believed: false,
        }
    }

    /// Whether only a full listing will do: while the server is not known and steady, to confirm
    /// that a torrent is gone, and to find again what could not be written down.
    pub fn needs_all(&self, state: &ServerState) -> bool {
        let is_steady = self.trust == Trust::Steady { failures: 0 } && self.has_looked && !self.was_away;
        !is_steady || !state.is_known || self.is_untold || self.was_not_believed || !self.missing.is_empty()
    }

    /// The poll failed. Only the server may be told of as offline.
    pub fn failed(&mut self, state: &ServerState, now: Moment) -> ChangeSet {
        self.trust = self.trust.after(Poll::Failed, now.at, &self.limits.trust);
        self.was_away = true;
        self.is_back = false;
        let mut change_set = self.empty_tick(now);
        if self.trust.is_offline(&self.limits.trust) && state.is_online {
            change_set.events.push(server_fact(Kind::ServerOffline, Cause::Observed));
            change_set.state = Some(ServerState { is_online: false, ..state.clone() });
        }
        change_set
    }

    /// The client answered.
    ///
    /// The tick holds the whole difference between `told` and what is seen. It is to be committed
    /// before the next look; if that cannot be, `told` stays and the next look finds the same again.
    pub fn polled(&mut self, snapshot: &Snapshot, state: &ServerState, listing: &Listing, now: Moment) -> ChangeSet {
        let change_set = match listing.covers {
            Covers::All => self.looked_at_all(snapshot, state, listing, now),
            Covers::Changed => self.looked_at_some(snapshot, state, listing, now),
        };
        self.is_untold = !change_set.is_empty();
        change_set
    }

    /// Of the torrents that the listing does not speak of, only what is unsettled is looked at, as it
    /// was seen last.
    fn looked_at_some(
        &mut self,
        snapshot: &Snapshot,
        state: &ServerState,
        listing: &Listing,
        now: Moment,
    ) -> ChangeSet {
        let mut change_set = self.empty_tick(now);
        if self.needs_all(state) || (listing.run.is_some() && listing.run != state.run) {
            self.was_not_believed = true;
            return change_set;
        }
        let mut torrents = Vec::new();
        let mut seen_last = std::mem::take(&mut self.unsettled);
        seen_last.retain(|hash, _| !listing.torrents.contains_key(hash));
        for (hash, seen) in listing.torrents.iter().chain(&seen_last) {
            let (context, told_at) = self.remember(*hash, seen, now.at);
            let context = Context { generation: state.generation, ..context };
            let since = now.at.saturating_sub(told_at);
            let last = snapshot.get(hash);
            self.tell_of_torrent(*hash, last, seen, context, Cause::Observed, since, &mut change_set, &mut torrents);
        }
        add_in_order(&mut change_set, torrents);
        change_set
    }

    fn looked_at_all(&mut self, snapshot: &Snapshot, state: &ServerState, listing: &Listing, now: Moment) -> ChangeSet {
        self.was_not_believed = false;
        self.unsettled.clear();
        let loads = Loads::of(snapshot, state, listing);
        let is_other_run = self.is_other_run(state, listing, loads);
        let generation = state.generation + u64::from(is_other_run && state.run.is_some());
        let was_settling = !self.has_looked && state.settling_since.is_some();
        let was_loading = matches!(self.trust, Trust::Settling { .. }) || was_settling;
        let nothing_missing = loads.missing == 0;
        let loading_for = match is_other_run {
            true => Some(Duration::ZERO),
            false => self.may_be_loading_for(state, loads, now),
        };
        let poll = Poll::Answered { loading_for, torrents: listing.torrents.len(), nothing_missing };
        self.trust = self.trust.after(poll, now.at, &self.limits.trust);
        let cause = self.cause(state);
        let mut change_set = self.empty_tick(now);
        let goes_on = loading_for != Some(Duration::ZERO);
        let since = state.settling_since.filter(|_| goes_on).unwrap_or(now.time);
        self.tell_of_server(&mut change_set, state, listing, generation, since);
        let mut torrents = Vec::new();
        if nothing_missing || !listing.complete || !self.trust.believes_absence() {
            self.missing.clear();
        } else {
            self.find_removed(snapshot, listing, cause, &mut change_set, &mut torrents);
        }
        for (hash, last, seen) in side_by_side(snapshot, listing) {
            let Some(seen) = seen else { continue };
            let (context, told_at) = self.remember(hash, seen, now.at);
            let context = Context { generation, was_loading, ..context };
            let since = now.at.saturating_sub(told_at);
            self.tell_of_torrent(hash, last, seen, context, cause, since, &mut change_set, &mut torrents);
        }
        add_in_order(&mut change_set, torrents);
        self.finish_snapshot(&mut change_set, state, snapshot, listing);
        self.has_looked = true;
        // A restart that could not be written down is to be found again.
        self.is_back = self.trust.believes_absence() || !loads.has_nothing();
        self.was_away &= !(self.is_back && change_set.is_empty());
        change_set
    }

    /// The tick is on disk: what it told counts as told from now on.
    pub fn committed(&mut self, committed: &Committed, at: Duration) {
        self.was_away &= !self.is_back;
        self.is_untold = false;
        for (hash, snapshot) in &committed.snapshot {
            match (snapshot, self.recent.get_mut(hash)) {
                (None, _) => {
                    self.recent.remove(hash);
                    self.missing.remove(hash);
                    self.unsettled.remove(hash);
                }
                (Some(_), Some(recent)) => recent.told_at = at,
                (Some(_), None) => {}
            }
        }
    }

    /// Not all of the tick is on disk: the next look finds the rest again.
    pub fn held_back(&mut self) {
        self.is_untold = true;
    }

    /// Something was missing from the last look: one more tells whether it is gone.
    pub fn is_in_doubt(&self) -> bool {
        !self.missing.is_empty()
    }

    fn empty_tick(&self, now: Moment) -> ChangeSet {
        ChangeSet {
            server: self.server.clone(),
            time: now.time,
            events: Vec::new(),
            changes: BTreeMap::new(),
            state: None,
        }
    }

    fn cause(&self, state: &ServerState) -> Cause {
        match (state.is_known, self.has_looked) {
            (false, _) => Cause::Snapshot,
            (true, false) => Cause::Recovered,
            (true, true) => Cause::Observed,
        }
    }

    /// Whether this is not the run of the client that was told of.
    ///
    /// Another name of the run says so. The same name does not say the contrary: in a container it
    /// stays. Then a client all of whose torrents were loaded anew was restarted; one torrent alone
    /// may have been loaded again by somebody, if the client was there all the time.
    fn is_other_run(&self, state: &ServerState, listing: &Listing, loads: Loads) -> bool {
        if listing.run.is_some() && listing.run != state.run {
            return true;
        }
        !loads.has_one_as_told && loads.changed > if self.was_away { 0 } else { 1 }
    }

    /// Whether a client of which no other run was seen may load its session all the same: it did so
    /// in front of the bridge's former life, or it was away and has nothing of what was told (a
    /// restarted one may bear the name of its former run, and has nothing to know it by yet).
    fn may_be_loading_for(&self, state: &ServerState, loads: Loads, now: Moment) -> Option<Duration> {
        let is_settling = matches!(self.trust, Trust::Settling { .. });
        if self.was_away && !is_settling && loads.has_nothing() {
            return Some(Duration::ZERO);
        }
        let since = state.settling_since.filter(|_| !self.has_looked)?;
        Some(Duration::from_millis(now.time.millis_since(since)))
    }

    fn tell_of_server(
        &self,
        change_set: &mut ChangeSet,
        state: &ServerState,
        listing: &Listing,
        generation: u64,
        settling_since: Timestamp,
    ) {
        let cause = if self.has_looked || !state.is_known { Cause::Observed } else { Cause::Recovered };
        if !state.is_online {
            change_set.events.push(server_fact(Kind::ServerOnline, Cause::Observed));
        }
        if generation != state.generation {
            change_set.events.push(server_fact(Kind::ServerRestarted, cause));
        }
        let run = listing.run.clone().or_else(|| state.run.clone());
        let settling_since = (!self.trust.believes_absence()).then_some(settling_since);
        let now = ServerState { is_known: state.is_known, is_online: true, run, generation, settling_since };
        change_set.state = (now != *state).then_some(now);
    }

    /// Believes an absence when it is the second in a row of complete listings of a steady server.
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

    /// Notes what moved, and says what that means for this look, and when the torrent was told last.
    fn remember(&mut self, hash: InfoHash, seen: &Observed, at: Duration) -> (Context, Duration) {
        let facts = &seen.facts;
        let fresh = Recent {
            moved_bytes: facts.moved_bytes,
            received_bytes: facts.received_bytes,
            received_at: at,
            was_downloading: false,
            told_at: Duration::ZERO,
        };
        let recent = self.recent.entry(hash).or_insert(fresh);
        let has_moved = facts.moved_bytes > recent.moved_bytes;
        let is_receiving = facts.received_bytes != recent.received_bytes || seen.torrent.download_rate.unwrap_or(0) > 0;
        recent.moved_bytes = facts.moved_bytes;
        recent.received_bytes = facts.received_bytes;
        // Nobody saw whether bytes came while the client was away, or before it downloaded.
        if is_receiving || !recent.was_downloading || self.was_away {
            recent.received_at = at;
        }
        recent.was_downloading = seen.torrent.status == Status::Downloading;
        let is_dry = at.saturating_sub(recent.received_at) >= self.limits.dry;
        (Context { has_moved, is_receiving, is_dry, ..Context::default() }, recent.told_at)
    }

    #[allow(clippy::too_many_arguments)] // one place, called once: a struct would only rename the list
    fn tell_of_torrent(
        &mut self,
        hash: InfoHash,
        snapshot: Option<&SnapshotTorrent>,
        seen: &Observed,
        context: Context,
        cause: Cause,
        since: Duration,
        change_set: &mut ChangeSet,
        torrents: &mut Vec<(InfoHash, NewEvent)>,
    ) {
        let Some(last) = snapshot else {
            let (torrent, memory) = first_sight(seen, context);
            self.note_unsettled(hash, &torrent, seen, context);
            torrents.push((hash, added(Arc::new(torrent), memory, cause, hash, change_set)));
            return;
        };
        match compare(last, seen, context, |snapshot, seen| worth::is_worth_telling(snapshot, seen, since)) {
            Finding::Snapshot => {}
            Finding::Same => self.note_unsettled(hash, &last.torrent, seen, context),
            Finding::Replaced(torrent, memory) => {
                self.note_unsettled(hash, &torrent, seen, context);
                torrents.push((hash, removed(last, cause)));
                torrents.push((hash, added(Arc::new(torrent), memory, cause, hash, change_set)));
            }
            Finding::Changed(kinds, torrent, memory) => {
                self.note_unsettled(hash, &torrent, seen, context);
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

    /// Keeps in mind what a look showed, if time alone will make more of it to tell.
    fn note_unsettled(&mut self, hash: InfoHash, snapshot: &Torrent, seen: &Observed, context: Context) {
        let may_stall = seen.torrent.status == Status::Downloading && !snapshot.stalled;
        if may_stall || !is_told_whole(snapshot, seen, context) {
            self.unsettled.insert(hash, seen.clone());
        }
    }

    /// The first snapshot is over when a look shows nothing that was not told: a client that still
    /// loads its session goes on being announced as part of it.
    fn finish_snapshot(&self, change_set: &mut ChangeSet, state: &ServerState, snapshot: &Snapshot, listing: &Listing) {
        let is_whole = listing.complete && listing.torrents.keys().all(|hash| snapshot.contains_key(hash));
        let has_looked_before = self.has_looked;
        if !state.is_known && has_looked_before && is_whole {
            change_set.events.push(server_fact(Kind::SnapshotDone, Cause::Snapshot));
            let now = change_set.state.take().unwrap_or_else(|| state.clone());
            change_set.state = Some(ServerState { is_known: true, ..now });
        }
    }
}

/// What was told beside what is seen, by hash; never both absent.
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

/// How a listing stands to what was told.
#[derive(Clone, Copy)]
struct Loads {
    snapshot: usize,
    /// Of those, not listed.
    missing: usize,
    /// Told in this generation of the client, and loaded anew since.
    changed: usize,
    /// One of this generation is the load that was told; no more are compared then.
    has_one_as_told: bool,
}

impl Loads {
    fn of(snapshot: &Snapshot, state: &ServerState, listing: &Listing) -> Self {
        let mut loads = Self { snapshot: snapshot.len(), missing: 0, changed: 0, has_one_as_told: false };
        for (_, snapshot, seen) in side_by_side(snapshot, listing) {
            let Some(snapshot) = snapshot else { continue };
            loads.missing += usize::from(seen.is_none());
            if loads.has_one_as_told || snapshot.memory.generation != state.generation {
                continue;
            }
            if let (Some(before), Some(seen)) = (&snapshot.memory.load, seen.and_then(|seen| seen.facts.load.as_ref()))
            {
                loads.has_one_as_told = before == seen;
                loads.changed += usize::from(before != seen);
            }
        }
        loads
    }

    /// Something was told, and nothing of it is there.
    fn has_nothing(self) -> bool {
        self.snapshot > 0 && self.missing == self.snapshot
    }
}

/// Events of one tick are in the order of hash and kind.
fn add_in_order(change_set: &mut ChangeSet, mut torrents: Vec<(InfoHash, NewEvent)>) {
    torrents.sort_by_key(|(hash, new_event)| (*hash, new_event.kind));
    change_set.events.extend(torrents.into_iter().map(|(_, new_event)| new_event));
}

fn server_fact(kind: Kind, cause: Cause) -> NewEvent {
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
