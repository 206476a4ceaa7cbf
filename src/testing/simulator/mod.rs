//! A simulated torrent client: a script changes its torrents, and it answers like a real one.
//!
//! For tests and benchmarks, and for users who want to try automations without a torrent. The faults of
//! real clients happen on demand ([`Behavior`]): it restarts and loads its session bit by bit, hangs, answers
//! invalidly, and leaves rows out, with and without reporting it.
//!
//! Asked for changes it answers as rTorrent does: with what moves, and what was started, stopped, completed or
//! checked since the last answer. Another number of torrents, a load that was not listed yet, or another run
//! make it list everything. A change of label, priority, directory, message or idle numbers is not noticed.
//!
//! A listing shows the state at the end of the exchange, not at its begin. The true history is recorded too
//! ([`Presence`]), for tests to compare with the events.

mod torrent;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use self::torrent::Mark;
pub use self::torrent::{RunMode, SimulatedTorrent};
use crate::model::{
    Action, Covers, Details, File, InfoHash, Listing, Parts, ServerName, ServerStats, Status, Timestamp, Torrent,
};
use crate::port::{Applied, Capabilities, ClientError, Clock, Scope, TorrentClient};

/// A simulated client. Clones share their state.
#[derive(Clone)]
pub struct Simulator {
    server: ServerName,
    state: Arc<Mutex<SimulatorState>>,
}

/// How the client answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behavior {
    /// Without faults.
    #[default]
    Well,
    /// Refuses connections.
    Unreachable,
    /// Every exchange ends at its deadline; actions are carried out all the same.
    Hanging,
    /// Answers are invalid; actions are not carried out.
    Malformed,
    /// Listings lack every other torrent and are marked as incomplete.
    Short,
    /// The next listing lacks every other torrent and is marked as complete; then the client is well again.
    SilentlyShortOnce,
}

/// The content of the last answer.
struct Shown {
    run: u64,
    marks: BTreeMap<InfoHash, Mark>,
}

/// The presence of a torrent in the client, as it truly was.
#[derive(Clone, Debug, PartialEq)]
pub struct Presence {
    /// The torrent.
    pub hash: InfoHash,
    /// Time at which it was loaded.
    pub from: Timestamp,
    /// Time at which it was removed; `None` while it is there.
    pub until: Option<Timestamp>,
    /// The content was complete when it was loaded.
    pub was_complete: bool,
    /// Time at which its last byte was received.
    pub finished_at: Option<Timestamp>,
}

/// The state of the client, and the changes that a script can make.
pub struct SimulatorState {
    clock: Arc<dyn Clock>,
    /// How the client answers.
    pub behavior: Behavior,
    /// Duration of an exchange.
    pub latency: Duration,
    /// Time after which a hanging exchange ends.
    pub deadline: Duration,
    torrents: BTreeMap<InfoHash, SimulatedTorrent>,
    /// Number of torrents that a restarted client has loaded; `None` for all.
    loaded: Option<usize>,
    run: u64,
    /// A restarted client keeps its run id, as a process in a container may.
    pub keeps_run_id: bool,
    loads: u64,
    presences: Vec<Presence>,
    /// `None` if the last answer was incomplete, or there was none.
    shown: Option<Shown>,
    /// Every requested action with its time, in order.
    asked: Vec<(Timestamp, Action)>,
}

impl SimulatorState {
    /// Returns the torrents, also those that are not loaded yet.
    pub fn torrents(&self) -> &BTreeMap<InfoHash, SimulatedTorrent> {
        &self.torrents
    }

    /// Returns a torrent for changes that have no method here.
    pub fn torrent_mut(&mut self, hash: &InfoHash) -> Option<&mut SimulatedTorrent> {
        self.torrents.get_mut(hash)
    }

    /// Returns the true history, in the order of loading.
    pub fn presences(&self) -> &[Presence] {
        &self.presences
    }

    /// Returns every requested action with its time.
    pub fn asked(&self) -> &[(Timestamp, Action)] {
        &self.asked
    }

    /// Loads a torrent, unless it is there already.
    pub fn add(&mut self, hash: InfoHash, torrent: SimulatedTorrent) {
        if self.torrents.contains_key(&hash) {
            return;
        }
        let now = self.clock.now();
        self.loads += 1;
        let was_complete = torrent.is_complete();
        self.presences.push(Presence { hash, from: now, until: None, was_complete, finished_at: None });
        self.torrents.insert(hash, SimulatedTorrent { load: self.loads, added_at: now, ..torrent });
    }

    /// Removes a torrent and returns it.
    pub fn remove(&mut self, hash: &InfoHash) -> Option<SimulatedTorrent> {
        let torrent = self.torrents.remove(hash)?;
        let now = self.clock.now();
        if let Some(presence) = self.presence_mut(hash) {
            presence.until = Some(now);
        }
        Some(torrent)
    }

    /// Erases a torrent and loads it again with its content.
    pub fn reload(&mut self, hash: &InfoHash) {
        if let Some(torrent) = self.remove(hash) {
            self.add(*hash, SimulatedTorrent { received: 0, uploaded: 0, checked: None, ..torrent });
        }
    }

    /// Receives bytes of a torrent at this rate, if it is downloading.
    pub fn receive(&mut self, hash: &InfoHash, bytes: u64, rate: u64) {
        let now = self.clock.now();
        let Some(torrent) = self.torrents.get_mut(hash).filter(|torrent| torrent.status() == Status::Downloading)
        else {
            return;
        };
        let bytes = bytes.min(torrent.length - torrent.done);
        torrent.done += bytes;
        torrent.received += bytes;
        torrent.download_rate = rate;
        if torrent.is_complete() {
            torrent.download_rate = 0;
            torrent.finished_at = Some(now);
            if let Some(presence) = self.presence_mut(hash) {
                presence.finished_at = Some(now);
            }
        }
    }

    /// Begins a check of the content.
    pub fn begin_check(&mut self, hash: &InfoHash) {
        if let Some(torrent) = self.torrents.get_mut(hash).filter(|torrent| torrent.has_metadata) {
            torrent.checked = Some(0);
            (torrent.download_rate, torrent.upload_rate) = (0, 0);
        }
    }

    /// Ends the running check, which finds no error.
    pub fn end_check(&mut self, hash: &InfoHash) {
        if let Some(torrent) = self.torrents.get_mut(hash) {
            torrent.checked = None;
        }
    }

    /// Resolves a magnet link, which loads it again.
    pub fn resolve(&mut self, hash: &InfoHash, name: &str, length: u64) {
        self.loads += 1;
        // As rTorrent does: the placeholder is erased, and the torrent loaded under the same hash.
        let load = self.loads;
        if let Some(torrent) = self.torrents.get_mut(hash).filter(|torrent| !torrent.has_metadata) {
            *torrent = SimulatedTorrent { name: name.to_owned(), length, has_metadata: true, load, ..torrent.clone() };
        }
    }

    /// Sets every rate to 0.
    pub fn rest(&mut self) {
        for torrent in self.torrents.values_mut() {
            (torrent.download_rate, torrent.upload_rate) = (0, 0);
        }
    }

    /// Restarts the client, which has loaded nothing of its session yet.
    pub fn restart(&mut self) {
        self.run += 1;
        // As rTorrent from 0.15 on: it answers before it has loaded its session.
        self.loaded = Some(0);
        for torrent in self.torrents.values_mut() {
            self.loads += 1;
            torrent.load = self.loads;
            (torrent.download_rate, torrent.upload_rate) = (0, 0);
        }
    }

    /// Loads this number of torrents of the session; `None` for all.
    pub fn load_session(&mut self, loaded: Option<usize>) {
        self.loaded = loaded.filter(|loaded| *loaded < self.torrents.len());
    }

    /// Returns whether the session is not completely loaded.
    pub fn is_loading(&self) -> bool {
        self.loaded.is_some()
    }

    fn presence_mut(&mut self, hash: &InfoHash) -> Option<&mut Presence> {
        self.presences.iter_mut().rev().find(|presence| presence.hash == *hash)
    }

    fn visible(&self) -> impl Iterator<Item = (&InfoHash, &SimulatedTorrent)> {
        self.torrents.iter().take(self.loaded.unwrap_or(usize::MAX))
    }

    fn is_visible(&self, hash: &InfoHash) -> bool {
        self.visible().any(|(visible, _)| visible == hash)
    }

    fn list(&mut self, server: &ServerName, scope: Scope<'_>) -> Listing {
        let changed = match scope {
            Scope::Full | Scope::Detached => None,
            Scope::Changed { named } => self.changed(named),
        };
        let has_gaps = matches!(self.behavior, Behavior::Short | Behavior::SilentlyShortOnce);
        let listing = match changed.filter(|_| !has_gaps) {
            Some(torrents) => Listing { covers: Covers::Changed, complete: false, ..self.listing(server, torrents) },
            None => {
                let shown = self.visible().enumerate().filter(|(place, _)| !has_gaps || place % 2 == 0);
                let torrents = shown.map(|(_, (hash, _))| *hash).collect();
                Listing { complete: self.behavior != Behavior::Short, ..self.listing(server, torrents) }
            }
        };
        if !matches!(scope, Scope::Detached) {
            let marks = self.visible().map(|(hash, torrent)| (*hash, torrent.mark())).collect();
            // The next listing of changes cannot build on one with gaps.
            self.shown = (!has_gaps).then_some(Shown { run: self.run, marks });
        }
        if self.behavior == Behavior::SilentlyShortOnce {
            self.behavior = Behavior::Well;
        }
        listing
    }

    /// Returns the torrents whose change is noticed; `None` if everything has to be listed.
    fn changed(&self, named: &BTreeSet<InfoHash>) -> Option<BTreeSet<InfoHash>> {
        let shown = self.shown.as_ref()?;
        // A run that keeps its id is recognised by the loads of its torrents.
        if (shown.run != self.run && !self.keeps_run_id) || self.visible().count() != shown.marks.len() {
            return None;
        }
        let mut changed = BTreeSet::new();
        for (hash, torrent) in self.visible() {
            let mark = torrent.mark();
            let before = shown.marks.get(hash);
            if before == Some(&mark) && !mark.is_moving && !named.contains(hash) {
                continue;
            }
            // Another load cannot be shown as a change: everything is listed.
            before.filter(|before| before.load == mark.load)?;
            changed.insert(*hash);
        }
        named.iter().all(|hash| self.is_visible(hash)).then_some(changed)
    }

    fn listing(&self, server: &ServerName, hashes: BTreeSet<InfoHash>) -> Listing {
        let torrents = hashes.into_iter().map(|hash| (hash, self.torrents[&hash].observed(server, hash))).collect();
        let sum = |rate: fn(&SimulatedTorrent) -> u64| Some(self.torrents.values().map(rate).sum());
        let stats = ServerStats {
            client: Some("Simulator".to_owned()),
            download_rate: sum(|torrent| torrent.download_rate),
            upload_rate: sum(|torrent| torrent.upload_rate),
            ..ServerStats::default()
        };
        let run = if self.keeps_run_id { 1 } else { self.run };
        Listing {
            covers: Covers::All,
            run: Some(run.to_string()),
            complete: true,
            torrents,
            stats,
            ..Listing::default()
        }
    }

    fn details(&self, server: &ServerName, hash: InfoHash, parts: Parts) -> Option<Details> {
        let (_, torrent) = self.visible().find(|(visible, _)| **visible == hash)?;
        let observed = torrent.observed(server, hash);
        let Torrent { name, length, progress, .. } = &observed.torrent;
        let file =
            File { name: name.clone(), path: name.clone(), length: *length, progress: *progress, priority: Some(1) };
        Some(Details {
            held: None,
            is_folder: None,
            files: parts.files.then(|| vec![file]),
            trackers: parts.trackers.then(Vec::new),
            peers: parts.peers.then(Vec::new),
            observed: parts.torrent.then_some(observed),
        })
    }

    fn perform(&mut self, action: &Action) -> Result<Applied, ClientError> {
        // Also what is refused below: tests count requests, not effects.
        self.asked.push((self.clock.now(), action.clone()));
        let hash = action.hash();
        match action {
            Action::Move(_)
            | Action::Throttle(..)
            | Action::FilePriority(..)
            | Action::Trackers(..)
            | Action::Custom(..) => {
                return Err(ClientError::Unsupported { what: "do that".to_owned() });
            }
            Action::Add(add) if !add.custom.is_empty() => {
                return Err(ClientError::Unsupported { what: "keep custom values".to_owned() });
            }
            Action::Add(add) => {
                let torrent = SimulatedTorrent {
                    has_metadata: false,
                    run_mode: if add.start { RunMode::Running } else { RunMode::Stopped },
                    label: add.label.clone().unwrap_or_default(),
                    priority: add.priority.unwrap_or(2),
                    ..SimulatedTorrent::new(format!("{hash}.meta"), 0)
                };
                self.add(hash, torrent);
            }
            _ if !self.is_visible(&hash) => return Err(ClientError::UnknownHash(hash)),
            Action::Delete(_) => drop(self.remove(&hash)),
            Action::Recheck(_) => self.begin_check(&hash),
            Action::Announce(_) => return Ok(Applied::Seen),
            action => {
                let torrent = self.torrents.get_mut(&hash).expect("what is visible is there");
                match action {
                    Action::Pause(_) => torrent.run_mode = RunMode::Paused,
                    Action::Resume(_) | Action::Start(_) => torrent.run_mode = RunMode::Running,
                    Action::Stop(_) | Action::Hold(_) => torrent.run_mode = RunMode::Stopped,
                    Action::Label(_, label) => torrent.label.clone_from(label),
                    Action::Priority(_, priority) => torrent.priority = *priority,
                    _ => {}
                }
                if torrent.run_mode != RunMode::Running {
                    (torrent.download_rate, torrent.upload_rate) = (0, 0);
                }
            }
        }
        Ok(Applied::Asked)
    }
}

impl Simulator {
    /// A client without torrents, whose exchanges take no time.
    pub fn new(server: ServerName, clock: Arc<dyn Clock>) -> Self {
        let state = SimulatorState {
            clock,
            behavior: Behavior::Well,
            latency: Duration::ZERO,
            deadline: Duration::from_secs(10),
            torrents: BTreeMap::new(),
            loaded: None,
            run: 1,
            keeps_run_id: false,
            loads: 0,
            presences: Vec::new(),
            shown: None,
            asked: Vec::new(),
        };
        Self { server, state: Arc::new(Mutex::new(state)) }
    }

    /// A client with this number of torrents, a tenth of them downloading, for benchmarks.
    pub fn populated(server: ServerName, clock: Arc<dyn Clock>, count: u32) -> Self {
        let simulator = Self::new(server, clock);
        simulator.change(|state| {
            for number in 0..count {
                let mut bytes = [0; 20];
                // Spread over the range of hashes, so that the order by hash is not the order of loading.
                bytes[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b9).to_be_bytes());
                bytes[16..].copy_from_slice(&number.to_be_bytes());
                let length = 1 << 30;
                let done = if number.is_multiple_of(10) { length / 2 } else { length };
                state.add(
                    InfoHash::V1(bytes),
                    SimulatedTorrent {
                        done,
                        received: done,
                        ..SimulatedTorrent::new(format!("torrent {number}"), length)
                    },
                );
            }
        });
        simulator
    }

    /// Reads or changes the state.
    pub fn change<T>(&self, change: impl FnOnce(&mut SimulatorState) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn request(&self, action: &Action) -> Result<Applied, ClientError> {
        match self.exchange().await {
            Ok(()) => self.change(|state| state.perform(action)),
            Err(timeout @ ClientError::Timeout { .. }) => {
                // The result is lost with the answer; tests find the action in `asked`.
                drop(self.change(|state| state.perform(action)));
                Err(timeout)
            }
            Err(error) => Err(error),
        }
    }

    /// Waits for the duration of an exchange, and fails as the behavior demands.
    async fn exchange(&self) -> Result<(), ClientError> {
        let (behavior, latency, deadline) = self.change(|state| (state.behavior, state.latency, state.deadline));
        let wait = if behavior == Behavior::Hanging { deadline } else { latency };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        match behavior {
            Behavior::Well | Behavior::Short | Behavior::SilentlyShortOnce => Ok(()),
            Behavior::Unreachable => {
                let source = Box::new(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
                Err(ClientError::Unreachable { address: "the simulator".to_owned(), source })
            }
            Behavior::Hanging => Err(ClientError::Timeout { limit: deadline }),
            Behavior::Malformed => Err(ClientError::Protocol { reason: "the simulator is garbled".to_owned() }),
        }
    }
}

#[async_trait]
impl TorrentClient for Simulator {
    async fn list(&self, scope: Scope<'_>) -> Result<Listing, ClientError> {
        if let Err(error) = self.exchange().await {
            self.change(|state| state.shown = None);
            return Err(error);
        }
        Ok(self.change(|state| state.list(&self.server, scope)))
    }

    async fn get(&self, hashes: &[InfoHash], parts: Parts) -> Result<Vec<Option<Details>>, ClientError> {
        self.exchange().await?;
        Ok(self.change(|state| hashes.iter().map(|hash| state.details(&self.server, *hash, parts)).collect()))
    }

    async fn apply(&self, actions: &[Action]) -> Vec<Result<Applied, ClientError>> {
        let mut results = Vec::with_capacity(actions.len());
        for action in actions {
            results.push(self.request(action).await);
        }
        results
    }

    fn capabilities(&self) -> Capabilities<'_> {
        Capabilities::of_verbs(Capabilities::WHOLE_TORRENTS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::SystemClock;

    fn hash(number: u8) -> InfoHash {
        InfoHash::V1([number; 20])
    }

    fn simulator() -> Simulator {
        let simulator = Simulator::new(ServerName::parse("home").unwrap(), Arc::new(SystemClock));
        simulator.change(|state| {
            for number in 1..=3 {
                state.add(hash(number), SimulatedTorrent::new("x", 100));
            }
        });
        simulator
    }

    #[tokio::test]
    async fn a_restarted_client_is_another_run_that_shows_what_it_has_loaded() {
        let simulator = simulator();
        let before = simulator.list(Scope::Full).await.unwrap();
        simulator.change(SimulatorState::restart);
        let after = simulator.list(Scope::Full).await.unwrap();
        assert_ne!(before.run, after.run);
        assert_eq!((before.torrents.len(), after.torrents.len(), after.complete), (3, 0, true));
        simulator.change(|state| state.load_session(None));
        let loaded = simulator.list(Scope::Full).await.unwrap();
        assert_ne!(loaded.torrents[&hash(1)].facts.load, before.torrents[&hash(1)].facts.load);
    }

    #[tokio::test]
    async fn a_short_listing_is_marked_and_a_silently_short_one_comes_once() {
        let simulator = simulator();
        simulator.change(|state| state.behavior = Behavior::Short);
        let short = simulator.list(Scope::Full).await.unwrap();
        assert_eq!((short.torrents.len(), short.complete), (2, false));
        simulator.change(|state| state.behavior = Behavior::SilentlyShortOnce);
        let silent = simulator.list(Scope::Full).await.unwrap();
        assert_eq!((silent.torrents.len(), silent.complete), (2, true));
        assert_eq!(simulator.list(Scope::Full).await.unwrap().torrents.len(), 3);
    }

    #[tokio::test]
    async fn a_hanging_client_carries_out_actions_without_an_answer() {
        let simulator = simulator();
        simulator.change(|state| (state.behavior, state.deadline) = (Behavior::Hanging, Duration::ZERO));
        let results = simulator.apply(&[Action::Delete(hash(1))]).await;
        assert!(matches!(results[..], [Err(ClientError::Timeout { .. })]));
        simulator.change(|state| assert!(state.presences()[0].until.is_some()));
    }
}
