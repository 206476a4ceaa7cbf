//! The watcher of one server: poll, compare, commit, publish.
//!
//! There are two kinds of polls. At each interval the watcher asks for what changed, which costs the client
//! next to nothing; from time to time, and whenever that leaves a doubt, it reads everything ([`pace`],
//! [`Differ::needs_full_poll`]).
//!
//! One poll at a time: list → diff against the snapshot → commit → live state. A poll is never interrupted
//! half-way, so snapshot and journal agree. What cannot be committed because the store is full is not in the
//! snapshot either, and the next poll finds it again.

mod files;
mod hooks;
mod pace;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, debug_span, error, info, warn};

use self::pace::{Pace, PollReason};
use crate::commands::{Common, PendingEffects};
use crate::diff::{Differ, Limits, PollTime};
use crate::live_state::{Named, ServerHandle};
use crate::log_throttle::LogThrottle;
use crate::model::{
    Cause, ChangeSet, Covers, InfoHash, JournalEntry, Kind, Listing, NewEvent, PollSettings, Seq, ServerName, Stats,
    error_chain,
};
use crate::port::{ClientError, Scope, StoreError, TorrentClient};

pub use self::files::FilePublisher;
pub use self::hooks::HookInstaller;

/// Minimum pause between two polls, however slow the client is and however many commands wait for an effect.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Polls of a new server that are not limited in pace. If the first snapshot is not complete then, it is a
/// large one, and takes its time.
const FIRST_POLLS: u64 = 5;
/// Events of one commit. A large change set is committed in parts, so that the first are delivered while the
/// last are written.
const COMMIT_EVENTS_MAX: usize = 500;
/// Torrents that one poll reads by name; of more, all torrents are read.
const NAMED_MAX: usize = 1024;
/// Minimum time between two statistics messages.
const STATS_INTERVAL: Duration = Duration::from_secs(5);

/// The watcher of one server.
#[derive(Clone)]
pub struct Watcher {
    /// The server to watch.
    pub server: ServerName,
    /// Pace of the polls.
    pub poll: PollSettings,
    /// The client of the server.
    pub client: Arc<dyn TorrentClient>,
    /// The store that events and snapshot are committed to, the live state, and the time of events.
    pub common: Common,
    /// Effects that running commands expect.
    pub pending_effects: Arc<PendingEffects>,
    /// Publisher of the lists of files.
    pub files: Arc<FilePublisher>,
    /// The epoch began because the state was lost, which is the first event to publish.
    pub is_state_lost: bool,
}

impl Watcher {
    /// Polls until `stop`. A poll that has begun is finished first.
    ///
    /// # Errors
    /// Only a store that cannot be used any more.
    pub async fn run(self, stop: CancellationToken) -> Result<(), StoreError> {
        let Some(live) = self.common.live.server(&self.server) else { return Ok(()) };
        let mut polling = PollLoop::new(&self, live);
        let mut pause = Duration::ZERO;
        loop {
            let is_woken = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = live.wake.notified() => true,
                () = tokio::time::sleep(pause) => false,
            };
            // Outside the select: a poll that has begun is committed, so snapshot and journal agree.
            pause = polling.poll(is_woken).instrument(debug_span!("poll", server = %self.server)).await?;
        }
    }

    /// Publishes the lists of files of the torrents that [`Self::run`] finds to have new ones, until `stop`.
    ///
    /// # Errors
    /// None: a list that cannot be read is left out.
    pub async fn publish_files(self, stop: CancellationToken) -> Result<(), StoreError> {
        let Self { server, client, common, files, .. } = self;
        files.run(server, client, common.live, stop).await;
        Ok(())
    }
}

/// The memory of a running watcher from poll to poll.
struct PollLoop<'a> {
    watcher: &'a Watcher,
    live: &'a ServerHandle,
    start: Instant,
    differ: Differ,
    pace: Pace,
    poll_failures: LogThrottle,
    full_store: LogThrottle,
    stats_published_at: Option<Instant>,
    /// Something that statistics are computed from has changed since.
    are_stats_stale: bool,
    /// Torrents that the next successful poll has to show.
    named: BTreeSet<InfoHash>,
    /// More torrents were named than are worth reading one by one.
    are_many_named: bool,
    /// A poll has succeeded.
    is_reached: bool,
    /// The run of the client in the last poll; the outer `None` if that failed.
    run: Option<Option<String>>,
}

impl<'a> PollLoop<'a> {
    fn new(watcher: &'a Watcher, live: &'a ServerHandle) -> Self {
        Self {
            watcher,
            live,
            start: Instant::now(),
            differ: Differ::new(watcher.server.clone(), Limits::default()),
            pace: Pace::new(watcher.poll),
            poll_failures: LogThrottle::default(),
            full_store: LogThrottle::default(),
            stats_published_at: None,
            are_stats_stale: true,
            named: BTreeSet::new(),
            are_many_named: false,
            is_reached: false,
            run: None,
        }
    }

    /// Polls once, commits and publishes what that showed, and returns the pause before the next poll.
    async fn poll(&mut self, is_woken: bool) -> Result<Duration, StoreError> {
        // Before the client is asked: only a poll that began after a command was applied can show its effect (I15).
        let number = self.watcher.pending_effects.begin_poll();
        self.collect_named();
        let is_first = self.live.read(|server| !server.state.is_known && server.poll.polls < FIRST_POLLS);
        let is_full_due = self.pace.is_full_due(self.start.elapsed());

        let began = Instant::now();
        let answer = self.watcher.client.list(self.scope(is_full_due)).await.map(Listing::within_limits);
        let waited = answer.as_ref().map_or(Duration::ZERO, |listing| listing.waited);
        // A poll behind an exchange that timed out costs the client no more than another.
        let took = began.elapsed().saturating_sub(waited);

        let reason = match &answer {
            Err(_) => PollReason::Failed,
            Ok(_) if is_first => PollReason::Unlimited,
            Ok(_) if is_full_due => PollReason::FullDue,
            Ok(_) => PollReason::Changes,
        };
        let is_full = answer.as_ref().is_ok_and(|listing| listing.covers == Covers::All);
        let pause = self.pace.polled(reason, is_full, took, self.start.elapsed());

        let now = PollTime { time: self.watcher.common.clock.now(), at: self.start.elapsed() };
        let change_set = self.diff(&answer, now);
        self.are_stats_stale |= !change_set.is_empty();
        self.commit(change_set, now.at).await?;
        // After the commit: a reader that sees the client answering finds the answer in the snapshot.
        self.report(&answer, began, took);
        if let Ok(listing) = &answer {
            self.publish_stats(listing);
            // After a failed poll they stay named: the next one has to show them.
            self.named.clear();
            self.are_many_named = false;
            self.live.read(|server| self.watcher.pending_effects.judge(number, listing, &server.snapshot));
        }

        // Neither a command that waits for its effect nor a wake for a torrent that may be gone has to wait for
        // the interval.
        let is_urgent = self.watcher.pending_effects.is_waiting() || (is_woken && self.differ.is_in_doubt());
        let pause = if is_urgent { pause.min(took) } else { pause }.max(PAUSE_MIN);
        self.live.write(|server| server.poll.interval = took + pause);
        Ok(pause)
    }

    /// Adds the torrents that hooks and commands have named since the last poll.
    fn collect_named(&mut self) {
        match self.live.hook_notifier.take_named() {
            Named::These(mut hashes) => self.named.append(&mut hashes),
            Named::Many => self.are_many_named = true,
        }
        self.watcher.pending_effects.awaited(&mut self.named);
        if self.named.len() > NAMED_MAX {
            self.named.clear();
            self.are_many_named = true;
        }
    }

    fn scope(&self, is_full_due: bool) -> Scope<'_> {
        let needs_full = self.live.read(|server| self.differ.needs_full_poll(&server.state));
        if needs_full || self.are_many_named || is_full_due {
            Scope::Full
        } else {
            Scope::Changed { named: &self.named }
        }
    }

    /// Compares the answer with the snapshot.
    fn diff(&mut self, answer: &Result<Listing, ClientError>, now: PollTime) -> ChangeSet {
        let is_state_lost = self.watcher.is_state_lost;
        let (mut change_set, needs_reset) = self.live.read(|server| {
            let change_set = match answer {
                Ok(listing) => self.differ.polled(&server.snapshot, &server.state, listing, now),
                Err(_) => self.differ.failed(&server.state, now),
            };
            (change_set, server.needs_reset || is_state_lost && server.last_seq == Seq(0))
        });
        if answer.is_ok() && needs_reset {
            // First in the journal: all numbers that follow belong to the new epoch.
            change_set.events.insert(0, NewEvent::of_server(Kind::JournalReset, Cause::Observed));
        }
        self.watcher.pending_effects.attribute(&mut change_set);
        change_set
    }

    /// Commits a change set in parts, and publishes each.
    async fn commit(&mut self, change_set: ChangeSet, at: Duration) -> Result<(), StoreError> {
        if change_set.is_empty() {
            return Ok(());
        }
        let span = debug_span!("commit", server = %self.watcher.server, events = change_set.events.len());
        async {
            // A crash between two parts is like one between two polls: the next poll finds the rest.
            for part in change_set.into_parts(COMMIT_EVENTS_MAX) {
                if !self.commit_part(part, at).await? {
                    self.differ.held_back();
                    break;
                }
            }
            Ok(())
        }
        .instrument(span)
        .await
    }

    /// Returns false if the store is full: nothing was committed, and the next poll finds the same again.
    async fn commit_part(&mut self, change_set: ChangeSet, at: Duration) -> Result<bool, StoreError> {
        let Watcher { server, common: Common { store, live, .. }, .. } = self.watcher;
        let state = change_set.state.clone();
        // A magnet link has files only once it has its metadata. Those of a first listing are not read: thousands would keep
        // the client busy for minutes.
        let has_files = |event: &&NewEvent| {
            matches!(event.kind, Kind::Added | Kind::Metadata | Kind::Finished) && event.cause != Cause::Snapshot
        };
        let with_files: Vec<InfoHash> =
            change_set.events.iter().filter(has_files).filter_map(|event| Some(event.torrent.as_ref()?.hash)).collect();
        let committed = match store.commit(change_set).await {
            Ok(committed) => committed,
            Err(StoreError::Full { reason }) => {
                metrics::counter!("dtorrent_commits_full_total", "server" => server.to_string()).increment(1);
                if let Some(times) = self.full_store.failed() {
                    error!(%server, times, reason, "store full, events held back");
                }
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        if let Some(times) = self.full_store.recovered() {
            info!(%server, times, "store has room again, events held back are committed");
        }
        self.differ.committed(&committed, at);
        for JournalEntry { kind, .. } in &committed.entries {
            match kind {
                Kind::ServerOffline => warn!(%server, "server offline"),
                Kind::ServerRestarted => info!(%server, "client restarted"),
                Kind::JournalReset => self.live.write(|server| server.needs_reset = false),
                _ => debug!(%server, kind = kind.as_str(), "event"),
            }
            let labels = [("server", server.to_string()), ("kind", kind.as_str().to_owned())];
            metrics::counter!("dtorrent_events_total", &labels).increment(1);
        }
        with_files.into_iter().for_each(|hash| self.watcher.files.want(hash));
        // After the commit (I3): what is in the live state is sent.
        live.publish(server, committed, state);
        Ok(true)
    }

    /// Logs the first answer of the client, the first of a series of failures, and its end.
    fn log_poll(&mut self, listing: Option<&Listing>, failure: Option<&str>) {
        let server = &self.watcher.server;
        if let Some(failure) = failure {
            if let Some(times) = self.poll_failures.failed() {
                warn!(%server, times, failure, "poll failed, retrying");
            }
            return;
        }
        let client = listing.and_then(|listing| listing.stats.client.as_deref());
        let failures = self.poll_failures.recovered();
        if !std::mem::replace(&mut self.is_reached, true) {
            info!(%server, client, failures, "client reached");
        } else if let Some(failures) = failures {
            info!(%server, client, failures, "client answers again");
        }
    }

    /// Reports the poll to the log, the metrics and the live state, and a new run of the client to the hooks.
    fn report(&mut self, answer: &Result<Listing, ClientError>, began: Instant, took: Duration) {
        let server = &self.watcher.server;
        let failure = answer.as_ref().err().map(|error| error_chain(error));
        self.log_poll(answer.as_ref().ok(), failure.as_deref());
        let result = if failure.is_none() { "ok" } else { "failed" };
        let labels = [("server", server.to_string()), ("result", result.to_owned())];
        metrics::counter!("dtorrent_polls_total", &labels).increment(1);
        metrics::histogram!("dtorrent_poll_duration_seconds", "server" => server.to_string()).record(took);
        self.live.write(|server| {
            server.poll.polls += 1;
            server.poll.duration = took;
            if failure.is_none() {
                server.poll.last_success = Some(Instant::now());
                server.poll.last_began = Some(began);
            } else {
                server.poll.failures += 1;
            }
            server.poll.failure = failure;
            server.poll.full_interval = self.pace.full_interval();
            if let Ok(listing) = answer {
                server.poll.full += u64::from(listing.covers == Covers::All);
                if server.stats != listing.stats {
                    server.stats = listing.stats.clone();
                    self.are_stats_stale = true;
                }
            }
        });
        let run = answer.as_ref().ok().map(|listing| listing.run.clone());
        // After a failure, too: the client may have restarted under the same process id, without our hooks.
        if run.is_some() && run != self.run {
            self.live.hook_notifier.client_is_new.notify_one();
        }
        self.run = run;
    }

    /// Publishes the statistics if they have changed, at most once each [`STATS_INTERVAL`].
    fn publish_stats(&mut self, listing: &Listing) {
        let is_recent = self.stats_published_at.is_some_and(|at| at.elapsed() < STATS_INTERVAL);
        if !self.are_stats_stale || is_recent {
            return;
        }
        self.stats_published_at = Some(Instant::now());
        self.are_stats_stale = false;
        let body = self.live.read(|server| {
            let stats = Stats::of(listing.stats.clone(), server.snapshot.values().map(|snapshot| &*snapshot.torrent));
            for (status, count) in &stats.by_status {
                let labels = [("server", self.watcher.server.to_string()), ("status", status.as_str().to_owned())];
                metrics::gauge!("dtorrent_torrents", &labels).set(*count as f64);
            }
            Bytes::from(serde_json::to_vec(&stats).expect("stats are plain JSON"))
        });
        // An equal body wakes no sink.
        if self.live.read(|server| server.stats_body != body) {
            self.live.write(|server| server.stats_body = body);
            self.watcher.common.live.wake_sinks();
        }
    }
}
