//! The watcher: looks at one server again and again, and has what it found written down and told.
//!
//! There are two speeds. At each beat it asks for what changed, which costs the client next to
//! nothing; now and then, and whenever that leaves a doubt, for all ([`pace`], [`Differ::needs_all`]).
//!
//! One look at a time. A look is: list → diff against what was told → commit → board. It is never
//! broken off half-way, so `told` and journal agree. What a look cannot commit (no room) stays
//! untold, and the next look finds it again.

mod hooks;
mod pace;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::pace::{Pace, Reason};
use crate::commands::PendingEffects;
use crate::diff::{Differ, Limits, Moment};
use crate::live_state::{LiveState, Named, ServerHandle};
use crate::log_throttle::LogThrottle;
use crate::model::{
    Cause, ChangeSet, Changes, Covers, Files, InfoHash, Kind, Listing, NewEvent, Parts, Seq, ServerName, Stats,
    Torrent, error_chain,
};
use crate::port::{ClientError, Clock, Delivery, Scope, Store, StoreError, TorrentClient};

pub use self::hooks::HookKeeper;

/// Between two looks, however slow the client is and however much somebody waits for an effect.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// So many looks at a server that is new are made at once; if the first picture is not whole then, there is
/// no hurry any more.
const FIRST_POLLS: u64 = 5;
/// So many events are written down together.
const FACTS_AT_ONCE: usize = 500;
/// Of more torrents that somebody named all are looked at.
const NAMED_MAX: usize = 1024;
/// The stats message is made anew at most this often.
const STATS_EACH: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub struct Watcher {
    pub server: ServerName,
    pub interval: Duration,
    /// A full picture at least this often.
    pub sweep: Duration,
    pub client: Arc<dyn TorrentClient>,
    pub store: Arc<dyn Store>,
    pub live: Arc<LiveState>,
    pub clock: Arc<dyn Clock>,
    pub pending_effects: Arc<PendingEffects>,
    pub files: Arc<FilesWanted>,
    /// This epoch began by a loss: that is the first thing to tell.
    pub is_history_lost: bool,
}

/// What a running watcher keeps between looks.
struct State {
    differ: Differ,
    start: Instant,
    failures: LogThrottle,
    full: LogThrottle,
    stats_made: Option<Instant>,
    /// What the stats are made of has changed since.
    are_stats_old: bool,
    pace: Pace,
    /// To be looked at, until a look has succeeded.
    named: BTreeSet<InfoHash>,
    /// More were named than can be looked at one by one.
    are_many_named: bool,
    /// The run of the client that answered the last look, if it did.
    run: Option<Option<String>>,
}

impl Watcher {
    /// Looks until `stop`; a look under way is finished first.
    ///
    /// # Errors
    /// Only a store that cannot be used any more.
    pub async fn run(self, stop: CancellationToken) -> Result<(), StoreError> {
        let Some(live) = self.live.server(&self.server) else { return Ok(()) };
        let mut state = State {
            differ: Differ::new(self.server.clone(), Limits::default()),
            start: Instant::now(),
            failures: LogThrottle::default(),
            full: LogThrottle::default(),
            stats_made: None,
            are_stats_old: true,
            pace: Pace::new(self.interval, self.sweep),
            named: BTreeSet::new(),
            are_many_named: false,
            run: None,
        };
        let mut is_poked = false;
        loop {
            let (took, pause) = self.look(&mut state, live).await?;
            // Who was woken for a torrent that is missing is not to sleep before it is known to be gone.
            let is_urgent = self.pending_effects.is_waiting() || (is_poked && state.differ.is_in_doubt());
            let pause = if is_urgent { took } else { pause }.max(SHORTEST_PAUSE);
            live.write(|content| content.poll.interval = took + pause);
            is_poked = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = live.wake.notified() => true,
                () = tokio::time::sleep(pause) => false,
            };
        }
    }

    /// One look, told and written down. Returns how long the client took, and how long to leave it alone.
    async fn look(&self, state: &mut State, live: &ServerHandle) -> Result<(Duration, Duration), StoreError> {
        let look = self.pending_effects.begin_poll();
        match live.hook_notifier.take_named() {
            Named::These(mut hashes) => state.named.append(&mut hashes),
            Named::Many => state.are_many_named = true,
        }
        self.pending_effects.awaited(&mut state.named);
        if state.named.len() > NAMED_MAX {
            state.named.clear();
            state.are_many_named = true;
        }
        let (needs_all, is_first) = live.read(|content| {
            let is_first = !content.state.is_known && content.poll.polls < FIRST_POLLS;
            (state.differ.needs_all(&content.state), is_first)
        });
        let needs_all = needs_all || state.are_many_named;
        let is_sweep = state.pace.is_sweep_due(state.start.elapsed());
        let scope = if needs_all || is_sweep { Scope::Full } else { Scope::Changed { named: &state.named } };
        let began = Instant::now();
        let answer = self.client.list(scope).await;
        let took = began.elapsed();
        let reason = match &answer {
            Err(_) => Reason::Free,
            Ok(_) if is_first => Reason::Free,
            Ok(_) if is_sweep => Reason::Sweep,
            Ok(_) => Reason::ChangeSet,
        };
        let is_full = answer.as_ref().is_ok_and(|listing| listing.covers == Covers::All);
        let pause = state.pace.polled(reason, is_full, took, state.start.elapsed());
        let now = Moment { time: self.clock.now(), at: state.start.elapsed() };
        let mut change_set = live.read(|content| match &answer {
            Ok(listing) => state.differ.polled(&content.snapshot, &content.state, listing, now),
            Err(_) => state.differ.failed(&content.state, now),
        });
        let needs_reset =
            live.read(|content| content.needs_reset || self.is_history_lost && content.last_seq == Seq(0));
        if answer.is_ok() && needs_reset {
            change_set.events.insert(0, journal_reset());
        }
        self.pending_effects.attribute(&mut change_set);
        state.are_stats_old |= !change_set.is_empty();
        self.publish(state, live, change_set, now.at).await?;
        // "It answers" may be read only when what it answered stands on the board.
        self.report_poll(state, live, &answer, began, took);
        note_run(state, live, &answer);
        if let Ok(listing) = &answer {
            self.make_stats(state, live, listing);
            state.named.clear();
            state.are_many_named = false;
            live.read(|content| self.pending_effects.judge(look, listing, &content.snapshot));
        }
        Ok((took, pause))
    }

    /// Has a tick told; a large one in parts, so that the first is on its way while the last is written down.
    async fn publish(
        &self,
        state: &mut State,
        live: &ServerHandle,
        change_set: ChangeSet,
        at: Duration,
    ) -> Result<(), StoreError> {
        if change_set.is_empty() {
            return Ok(());
        }
        for part in change_set.into_parts(FACTS_AT_ONCE) {
            if !self.tell_part(state, live, part, at).await? {
                state.differ.held_back();
                break;
            }
        }
        Ok(())
    }

    /// Commits and puts it on the board. Without room nothing is told, and the next look finds it again.
    async fn tell_part(
        &self,
        state: &mut State,
        live: &ServerHandle,
        change_set: ChangeSet,
        at: Duration,
    ) -> Result<bool, StoreError> {
        let server_state = change_set.state.clone();
        let said: Vec<(Kind, Option<Arc<Torrent>>)> =
            change_set.events.iter().map(|new_event| (new_event.kind, new_event.torrent.clone())).collect();
        match self.store.commit(change_set).await {
            Ok(committed) => {
                if let Some(times) = state.full.recovered() {
                    info!(server = %self.server, times, "there is room again, what happened meanwhile is told now");
                }
                state.differ.committed(&committed, at);
                if said.iter().any(|(kind, _)| *kind == Kind::JournalReset) {
                    live.write(|content| content.needs_reset = false);
                }
                self.live.publish(&self.server, committed, server_state);
                for (kind, torrent) in said {
                    debug!(server = %self.server, kind = kind.as_str(), "told");
                    let labels = [("server", self.server.to_string()), ("kind", kind.as_str().to_owned())];
                    metrics::counter!("dtorrent_events_total", &labels).increment(1);
                    let Some(torrent) = torrent else { continue };
                    if matches!(kind, Kind::Added | Kind::Metadata | Kind::Finished) {
                        self.files.want(torrent.hash);
                    }
                }
                Ok(true)
            }
            Err(StoreError::Full { reason }) => {
                metrics::counter!("dtorrent_commits_full_total", "server" => self.server.to_string()).increment(1);
                if let Some(times) = state.full.failed() {
                    error!(server = %self.server, times, reason, "events cannot be written down; they are held back");
                }
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn report_poll(
        &self,
        state: &mut State,
        live: &ServerHandle,
        answer: &Result<Listing, ClientError>,
        began: Instant,
        took: Duration,
    ) {
        let failure = answer.as_ref().err().map(|error| error_chain(error));
        match &failure {
            None => {
                if let Some(times) = state.failures.recovered() {
                    info!(server = %self.server, times, "the client answers again");
                }
            }
            Some(failure) => {
                if let Some(times) = state.failures.failed() {
                    warn!(server = %self.server, times, failure, "the client does not answer, trying on");
                }
            }
        }
        let result = if failure.is_none() { "ok" } else { "failed" };
        let labels = [("server", self.server.to_string()), ("result", result.to_owned())];
        metrics::counter!("dtorrent_polls_total", &labels).increment(1);
        metrics::histogram!("dtorrent_poll_duration_seconds", "server" => self.server.to_string()).record(took);
        live.write(|content| {
            content.poll.polls += 1;
            content.poll.duration = took;
            if failure.is_none() {
                content.poll.last_success = Some(Instant::now());
                content.poll.last_began = Some(began);
            } else {
                content.poll.failures += 1;
            }
            content.poll.failure = failure;
            content.poll.sweep = state.pace.sweep();
            if let Ok(listing) = answer {
                content.poll.full += u64::from(listing.covers == Covers::All);
                if content.stats != listing.stats {
                    content.stats = listing.stats.clone();
                    state.are_stats_old = true;
                }
            }
        });
    }

    fn make_stats(&self, state: &mut State, live: &ServerHandle, listing: &Listing) {
        if !state.are_stats_old || state.stats_made.is_some_and(|made| made.elapsed() < STATS_EACH) {
            return;
        }
        state.stats_made = Some(Instant::now());
        state.are_stats_old = false;
        let body = live.read(|content| {
            let stats = Stats::of(listing.stats.clone(), content.snapshot.values().map(|snapshot| &*snapshot.torrent));
            for (status, count) in &stats.by_status {
                let labels = [("server", self.server.to_string()), ("status", status.as_str().to_owned())];
                metrics::gauge!("dtorrent_torrents", &labels).set(*count as f64);
            }
            Bytes::from(serde_json::to_vec(&stats).expect("stats are plain JSON"))
        });
        if live.read(|content| content.stats_body != body) {
            live.write(|content| content.stats_body = body);
            self.live.wake_sinks();
        }
    }
}

/// Tells who hangs hooks that the client is not the one that answered the look before.
fn note_run(state: &mut State, live: &ServerHandle, answer: &Result<Listing, ClientError>) {
    let run = answer.as_ref().ok().map(|listing| listing.run.clone());
    if run.is_some() && run != state.run {
        live.hook_notifier.client_is_new.notify_one();
    }
    state.run = run;
}

fn journal_reset() -> NewEvent {
    NewEvent {
        kind: Kind::JournalReset,
        cause: Cause::Observed,
        command_id: None,
        changes: Changes::new(),
        torrent: None,
    }
}

/// Torrents whose list of files is to be read and passed on; each at most once.
#[derive(Default)]
pub struct FilesWanted {
    is_anybody_there: bool,
    hashes: std::sync::Mutex<BTreeSet<InfoHash>>,
    wanted: tokio::sync::Notify,
}

impl FilesWanted {
    /// `is_anybody_there`: if not, nothing is to be read.
    pub fn new(is_anybody_there: bool) -> Self {
        Self { is_anybody_there, ..Self::default() }
    }

    pub fn want(&self, hash: InfoHash) {
        if self.is_anybody_there {
            self.hashes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(hash);
            self.wanted.notify_one();
        }
    }

    fn next(&self) -> Option<InfoHash> {
        self.hashes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop_first()
    }

    /// Reads and passes on until `stop`, one torrent at a time and at most a tenth of the time, so
    /// that a large first snapshot does not keep the client busy.
    pub async fn run(
        &self,
        server: ServerName,
        client: Arc<dyn TorrentClient>,
        live: Arc<LiveState>,
        stop: CancellationToken,
    ) {
        while !stop.is_cancelled() {
            let Some(hash) = self.next() else {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.wanted.notified() => continue,
                }
            };
            let began = Instant::now();
            let parts = Parts { files: true, ..Parts::default() };
            let files = client.get_one(hash, parts).await.map(|details| details.and_then(|details| details.files));
            match files {
                Ok(Some(files)) => {
                    let body = serde_json::to_vec(&Files { hash, files }).expect("files are plain JSON");
                    live.publish_ephemeral(&Delivery::Files { server: server.clone(), hash, body: Bytes::from(body) });
                }
                Ok(None) => {}
                Err(error) => debug!(%server, %hash, error = error_chain(&error), "files could not be read"),
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(began.elapsed() * 9) => {}
            }
        }
    }
}
