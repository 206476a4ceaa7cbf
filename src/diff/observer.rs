//! What is kept in mind of one server between two looks, and the tick that a look makes.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::compare::{Context, Finding, compare, first_sight, is_told_whole};
use super::trust::{Poll, Trust, TrustLimits};
use super::worth;
use crate::model::{
    Cause, Changes, Committed, Covers, Fact, InfoHash, Kind, Listing, Memory, Observed, ServerName, ServerState,
    Status, Tick, Timestamp, Told, ToldTorrent, Torrent,
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
pub struct Observer {
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

impl Observer {
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
    pub fn failed(&mut self, state: &ServerState, now: Moment) -> Tick {
        self.trust = self.trust.after(Poll::Failed, now.at, &self.limits.trust);
        self.was_away = true;
        self.is_back = false;
        let mut tick = self.empty_tick(now);
        if self.trust.is_offline(&self.limits.trust) && state.is_online {
            tick.facts.push(server_fact(Kind::ServerOffline, Cause::Observed));
            tick.state = Some(ServerState { is_online: false, ..state.clone() });
        }
        tick
    }

    /// The client answered.
    ///
    /// The tick holds the whole difference between `told` and what is seen. It is to be committed
    /// before the next look; if that cannot be, `told` stays and the next look finds the same again.
    pub fn looked(&mut self, told: &Told, state: &ServerState, listing: &Listing, now: Moment) -> Tick {
        let tick = match listing.covers {
            Covers::All => self.looked_at_all(told, state, listing, now),
            Covers::Changed => self.looked_at_some(told, state, listing, now),
        };
        self.is_untold = !tick.is_empty();
        tick
    }

    /// Of the torrents that the listing does not speak of, only what is unsettled is looked at, as it
    /// was seen last.
    fn looked_at_some(&mut self, told: &Told, state: &ServerState, listing: &Listing, now: Moment) -> Tick {
        let mut tick = self.empty_tick(now);
        if self.needs_all(state) || (listing.run.is_some() && listing.run != state.run) {
            self.was_not_believed = true;
            return tick;
        }
        let mut torrents = Vec::new();
        let mut seen_last = std::mem::take(&mut self.unsettled);
        seen_last.retain(|hash, _| !listing.torrents.contains_key(hash));
        for (hash, seen) in listing.torrents.iter().chain(&seen_last) {
            let (context, told_at) = self.remember(*hash, seen, now.at);
            let context = Context { generation: state.generation, ..context };
            let since = now.at.saturating_sub(told_at);
            let last = told.get(hash);
            self.tell_of_torrent(*hash, last, seen, context, Cause::Observed, since, &mut tick, &mut torrents);
        }
        add_in_order(&mut tick, torrents);
        tick
    }

    fn looked_at_all(&mut self, told: &Told, state: &ServerState, listing: &Listing, now: Moment) -> Tick {
        self.was_not_believed = false;
        self.unsettled.clear();
        let loads = Loads::of(told, state, listing);
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
        let mut tick = self.empty_tick(now);
        let goes_on = loading_for != Some(Duration::ZERO);
        let since = state.settling_since.filter(|_| goes_on).unwrap_or(now.time);
        self.tell_of_server(&mut tick, state, listing, generation, since);
        let mut torrents = Vec::new();
        if nothing_missing || !listing.complete || !self.trust.believes_absence() {
            self.missing.clear();
        } else {
            self.find_removed(told, listing, cause, &mut tick, &mut torrents);
        }
        for (hash, last, seen) in side_by_side(told, listing) {
            let Some(seen) = seen else { continue };
            let (context, told_at) = self.remember(hash, seen, now.at);
            let context = Context { generation, was_loading, ..context };
            let since = now.at.saturating_sub(told_at);
            self.tell_of_torrent(hash, last, seen, context, cause, since, &mut tick, &mut torrents);
        }
        add_in_order(&mut tick, torrents);
        self.finish_snapshot(&mut tick, state, told, listing);
        self.has_looked = true;
        // A restart that could not be written down is to be found again.
        self.is_back = self.trust.believes_absence() || !loads.has_nothing();
        self.was_away &= !(self.is_back && tick.is_empty());
        tick
    }

    /// The tick is on disk: what it told counts as told from now on.
    pub fn committed(&mut self, committed: &Committed, at: Duration) {
        self.was_away &= !self.is_back;
        self.is_untold = false;
        for (hash, told) in &committed.told {
            match (told, self.recent.get_mut(hash)) {
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

    fn empty_tick(&self, now: Moment) -> Tick {
        Tick { server: self.server.clone(), time: now.time, facts: Vec::new(), changes: BTreeMap::new(), state: None }
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
        tick: &mut Tick,
        state: &ServerState,
        listing: &Listing,
        generation: u64,
        settling_since: Timestamp,
    ) {
        let cause = if self.has_looked || !state.is_known { Cause::Observed } else { Cause::Recovered };
        if !state.is_online {
            tick.facts.push(server_fact(Kind::ServerOnline, Cause::Observed));
        }
        if generation != state.generation {
            tick.facts.push(server_fact(Kind::ServerRestarted, cause));
        }
        let run = listing.run.clone().or_else(|| state.run.clone());
        let settling_since = (!self.trust.believes_absence()).then_some(settling_since);
        let now = ServerState { is_known: state.is_known, is_online: true, run, generation, settling_since };
        tick.state = (now != *state).then_some(now);
    }

    /// Believes an absence when it is the second in a row of complete listings of a steady server.
    fn find_removed(
        &mut self,
        told: &Told,
        listing: &Listing,
        cause: Cause,
        tick: &mut Tick,
        torrents: &mut Vec<(InfoHash, Fact)>,
    ) {
        let before = std::mem::take(&mut self.missing);
        for (hash, last) in told.iter().filter(|(hash, _)| !listing.torrents.contains_key(hash)) {
            let first_cause = before.get(hash).copied();
            self.missing.insert(*hash, first_cause.unwrap_or(cause));
            if let Some(cause) = first_cause {
                torrents.push((*hash, removed(last, cause)));
                tick.changes.insert(*hash, None);
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
        told: Option<&ToldTorrent>,
        seen: &Observed,
        context: Context,
        cause: Cause,
        since: Duration,
        tick: &mut Tick,
        torrents: &mut Vec<(InfoHash, Fact)>,
    ) {
        let Some(last) = told else {
            let (torrent, memory) = first_sight(seen, context);
            self.note_unsettled(hash, &torrent, seen, context);
            torrents.push((hash, added(Arc::new(torrent), memory, cause, hash, tick)));
            return;
        };
        match compare(last, seen, context, |told, seen| worth::is_worth_telling(told, seen, since)) {
            Finding::Told => {}
            Finding::Same => self.note_unsettled(hash, &last.torrent, seen, context),
            Finding::Replaced(torrent, memory) => {
                self.note_unsettled(hash, &torrent, seen, context);
                torrents.push((hash, removed(last, cause)));
                torrents.push((hash, added(Arc::new(torrent), memory, cause, hash, tick)));
            }
            Finding::Changed(kinds, torrent, memory) => {
                self.note_unsettled(hash, &torrent, seen, context);
                let changes = last.torrent.changes_to(&torrent);
                let torrent = Arc::new(torrent);
                torrents.extend(kinds.into_iter().map(|kind| {
                    let changes = changes.clone();
                    (hash, Fact { kind, cause, command_id: None, changes, torrent: Some(Arc::clone(&torrent)) })
                }));
                tick.changes.insert(hash, Some((torrent, memory)));
            }
        }
    }

    /// Keeps in mind what a look showed, if time alone will make more of it to tell.
    fn note_unsettled(&mut self, hash: InfoHash, told: &Torrent, seen: &Observed, context: Context) {
        let may_stall = seen.torrent.status == Status::Downloading && !told.stalled;
        if may_stall || !is_told_whole(told, seen, context) {
            self.unsettled.insert(hash, seen.clone());
        }
    }

    /// The first snapshot is over when a look shows nothing that was not told: a client that still
    /// loads its session goes on being announced as part of it.
    fn finish_snapshot(&self, tick: &mut Tick, state: &ServerState, told: &Told, listing: &Listing) {
        let is_whole = listing.complete && listing.torrents.keys().all(|hash| told.contains_key(hash));
        let has_looked_before = self.has_looked;
        if !state.is_known && has_looked_before && is_whole {
            tick.facts.push(server_fact(Kind::SnapshotDone, Cause::Snapshot));
            let now = tick.state.take().unwrap_or_else(|| state.clone());
            tick.state = Some(ServerState { is_known: true, ..now });
        }
    }
}

/// What was told beside what is seen, by hash; never both absent.
fn side_by_side<'a>(
    told: &'a Told,
    listing: &'a Listing,
) -> impl Iterator<Item = (InfoHash, Option<&'a ToldTorrent>, Option<&'a Observed>)> {
    let (mut told, mut seen) = (told.iter().peekable(), listing.torrents.iter().peekable());
    std::iter::from_fn(move || {
        let order = match (told.peek(), seen.peek()) {
            (Some((told, _)), Some((seen, _))) => told.cmp(seen),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return None,
        };
        let told = if order.is_le() { told.next() } else { None };
        let seen = if order.is_ge() { seen.next() } else { None };
        let hash = told.map(|(hash, _)| hash).or(seen.map(|(hash, _)| hash))?;
        Some((*hash, told.map(|(_, told)| told), seen.map(|(_, seen)| seen)))
    })
}

/// How a listing stands to what was told.
#[derive(Clone, Copy)]
struct Loads {
    told: usize,
    /// Of those, not listed.
    missing: usize,
    /// Told in this generation of the client, and loaded anew since.
    changed: usize,
    /// One of this generation is the load that was told; no more are compared then.
    has_one_as_told: bool,
}

impl Loads {
    fn of(told: &Told, state: &ServerState, listing: &Listing) -> Self {
        let mut loads = Self { told: told.len(), missing: 0, changed: 0, has_one_as_told: false };
        for (_, told, seen) in side_by_side(told, listing) {
            let Some(told) = told else { continue };
            loads.missing += usize::from(seen.is_none());
            if loads.has_one_as_told || told.memory.generation != state.generation {
                continue;
            }
            if let (Some(before), Some(seen)) = (&told.memory.load, seen.and_then(|seen| seen.facts.load.as_ref())) {
                loads.has_one_as_told = before == seen;
                loads.changed += usize::from(before != seen);
            }
        }
        loads
    }

    /// Something was told, and nothing of it is there.
    fn has_nothing(self) -> bool {
        self.told > 0 && self.missing == self.told
    }
}

/// Events of one tick are in the order of hash and kind.
fn add_in_order(tick: &mut Tick, mut torrents: Vec<(InfoHash, Fact)>) {
    torrents.sort_by_key(|(hash, fact)| (*hash, fact.kind));
    tick.facts.extend(torrents.into_iter().map(|(_, fact)| fact));
}

fn server_fact(kind: Kind, cause: Cause) -> Fact {
    Fact { kind, cause, command_id: None, changes: Changes::new(), torrent: None }
}

fn removed(last: &ToldTorrent, cause: Cause) -> Fact {
    let torrent = Some(Arc::clone(&last.torrent));
    Fact { kind: Kind::Removed, cause, command_id: None, changes: Changes::new(), torrent }
}

fn added(torrent: Arc<Torrent>, memory: Memory, cause: Cause, hash: InfoHash, tick: &mut Tick) -> Fact {
    tick.changes.insert(hash, Some((Arc::clone(&torrent), memory)));
    Fact { kind: Kind::Added, cause, command_id: None, changes: Changes::new(), torrent: Some(torrent) }
}
