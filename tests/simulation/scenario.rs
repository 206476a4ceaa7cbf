//! One run: a few simulated minutes with faults, then none until everything has converged, then the checks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dtorrent::model::{InfoHash, Kind, ServerName};
use dtorrent::outbox::retention::Retain;
use dtorrent::port::CommandAddress;
use dtorrent::store::Options;
use dtorrent::testing::simulator::{Behavior, RunMode, SimulatedTorrent, Simulator};
use tokio::time::Instant;

use super::bridge::{Bridge, SinkPlan};
use super::broker::Broker;
use super::disk::{Disk, DiskSpace, short};
use super::env::{SimulationEnv, lock};
use super::{checks, convergence};

/// Number of different torrents of a server. Small, so that a removed torrent is added again.
const TORRENTS: u8 = 5;
/// Maximum time in which a restarted client loads its session.
const LOADING_MAX: Duration = Duration::from_secs(20);
/// Maximum time from the last fault until everything pending has arrived.
const CONVERGENCE_TIMEOUT: Duration = Duration::from_secs(240);

/// A command that was sent.
pub struct Sent {
    pub id: String,
    pub verb: &'static str,
    pub server: Option<ServerName>,
    pub hash: Option<InfoHash>,
    pub copies: usize,
}

/// The state of one run.
pub struct Run {
    pub env: Arc<SimulationEnv>,
    pub clients: BTreeMap<ServerName, Simulator>,
    pub sinks: Vec<SinkPlan>,
    pub disk: Arc<Disk>,
    pub bridge: Option<Bridge>,
    pub sent: Vec<Sent>,
    /// Number of restarts of the bridge.
    pub restarts: usize,
    /// Retained messages at the first sink from a bridge whose state directory was lost.
    pub orphans: Orphans,
    /// Whether a fault has happened. Afterwards redeliveries are allowed.
    pub had_faults: bool,
    /// How often each client has hung; answers to requests of then are lost.
    pub hangs: BTreeMap<ServerName, usize>,
    interval: Duration,
    full_interval: Duration,
    down_until: Option<Instant>,
    left: Option<dtorrent::store::Image>,
    loading: BTreeMap<ServerName, Instant>,
    silently_short_at: BTreeMap<ServerName, Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orphans {
    None,
    Retained,
    /// The broker lost them, perhaps before the scan found them.
    Forgotten,
}

pub fn hash(number: u8) -> InfoHash {
    InfoHash::V1([number; 20])
}

impl Run {
    pub async fn new(seed: u64, is_traced: bool) -> Self {
        let env = SimulationEnv::new(seed, is_traced);
        let rng = &env.rng;
        let names = ["home", "attic"].map(|name| ServerName::parse(name).unwrap());
        let count = if rng.percent(60) { 1 } else { 2 };
        let clients: BTreeMap<_, _> =
            names[..count].iter().map(|name| (name.clone(), Simulator::new(name.clone(), env.clone()))).collect();
        let servers: Vec<ServerName> = clients.keys().cloned().collect();
        let retains = [Retain::All, Retain::Auto, Retain::None];
        let some = |kinds: &[Kind]| kinds.iter().copied().collect::<BTreeSet<_>>();
        let slow_events = match rng.below(3) {
            0 => some(Kind::ALL),
            1 => some(&[Kind::Added, Kind::Removed, Kind::Finished, Kind::Updated]),
            _ => some(&[Kind::Removed, Kind::Paused, Kind::Resumed, Kind::Finished, Kind::LabelChanged]),
        };
        let plan = |name: &str, depth, events, retain: Retain, servers: &[ServerName]| SinkPlan {
            broker: Broker::new(name, env.clone(), depth, retain != Retain::None),
            servers: servers.to_vec(),
            events,
            retain,
            takes_commands: name == "fast",
        };
        let fast_depth = usize::try_from(2 + rng.below(14)).unwrap();
        let slow_depth = usize::try_from(1 + rng.below(3)).unwrap();
        let fast_retain = if rng.percent(70) { Retain::All } else { Retain::Auto };
        let slow_retain = rng.pick(&retains).unwrap();
        let sinks = vec![
            plan("fast", fast_depth, some(Kind::ALL), fast_retain, &servers),
            plan("slow", slow_depth, slow_events, slow_retain, &servers[servers.len() - 1..]),
        ];
        sinks[1].broker.change(|state| state.latency_millis = 20 + rng.below(400));
        let journal_bytes_max = if rng.percent(25) { 40_000 } else { 256 << 20 };
        let options = Options { journal_bytes_max, ..Options::default() };
        let interval = Duration::from_millis(1000 + rng.below(1500));
        let full_interval = rng.pick(&[interval, Duration::from_secs(5), Duration::from_secs(30)]).unwrap();
        let disk = Disk::new(env.clone(), options);
        let orphans = if seed.is_multiple_of(5) { Orphans::Retained } else { Orphans::None };
        if orphans == Orphans::Retained {
            let broker = &sinks[0].broker;
            // The torrent 1 may be added later in the run, the torrent 200 never is.
            let of_lost = servers.iter().flat_map(|server| [1, 200].map(|number| (server, hash(number))));
            let names: Vec<String> = of_lost.filter_map(|(server, hash)| broker.state_topic(server, hash)).collect();
            broker.change(|state| state.retained.extend(names.into_iter().map(|name| (name, "{}".into()))));
        }
        let run = Self {
            env,
            clients,
            sinks,
            disk,
            bridge: None,
            sent: Vec::new(),
            restarts: 0,
            orphans,
            had_faults: false,
            hangs: BTreeMap::new(),
            interval,
            full_interval,
            down_until: None,
            left: None,
            loading: BTreeMap::new(),
            silently_short_at: BTreeMap::new(),
        };
        for server in &servers {
            let keeps_run_id = run.env.rng.percent(25);
            run.clients[server].change(|world| {
                world.keeps_run_id = keeps_run_id;
                world.latency = run.env.rng.millis(150);
            });
            for _ in 0..run.env.rng.below(4) {
                run.add(server);
            }
        }
        run
    }

    /// Executes the run.
    ///
    /// # Errors
    /// The violated invariant, or the conditions that are still unmet at the end.
    pub async fn play(&mut self) -> Result<(), String> {
        self.start().await;
        for _ in 0..25 + self.env.rng.below(35) {
            let pause = match self.env.rng.below(4) {
                0 => self.env.rng.millis(200),
                _ => self.env.rng.millis(3000),
            };
            self.pass(pause).await?;
            self.act().await?;
        }
        if self.clients.values().any(|client| client.change(|world| world.keeps_run_id && world.is_loading())) {
            self.pass(Duration::from_secs(7)).await?;
        }
        self.end_faults().await;
        let began = Instant::now();
        let mut converged_checks = 0;
        while converged_checks < 2 {
            self.pass(Duration::from_secs(1)).await?;
            let open = convergence::unmet(self).await;
            converged_checks = if open.is_empty() { converged_checks + 1 } else { 0 };
            if began.elapsed() > CONVERGENCE_TIMEOUT {
                return Err(format!(
                    "{CONVERGENCE_TIMEOUT:?} after the last fault these conditions are unmet\n  {}",
                    open.join("\n  ")
                ));
            }
        }
        checks::all(self).await
    }

    async fn start(&mut self) {
        self.env.mark_running();
        // On a full disk the bridge would wait at its start, because it cannot store the first cursors of its sinks.
        if *lock(&self.disk.space) == DiskSpace::None {
            *lock(&self.disk.space) = DiskSpace::NoneForJournal;
        }
        let servers: Vec<ServerName> = self.clients.keys().cloned().collect();
        let store = self.disk.open(self.left.take(), &servers).await;
        let bridge =
            Bridge::start(&self.env, store, &self.clients, &self.sinks, self.interval, self.full_interval).await;
        self.env.note(|| "the bridge starts".to_owned());
        self.bridge = Some(bridge);
        self.down_until = None;
    }

    async fn end(&mut self, how: End) {
        let Some(bridge) = self.bridge.take() else { return };
        self.env.note(|| format!("the bridge ends: {how:?}"));
        let store = match how {
            End::Stop => bridge.stop().await,
            End::Crash | End::PowerCut => {
                self.env.mark_crashed();
                bridge.kill().await
            }
        };
        self.left = Some(store.left(how == End::PowerCut));
        self.had_faults = true;
        self.restarts += 1;
        self.sinks.iter().for_each(|plan| plan.broker.redeliver_commands());
        // The cause of the crash may have affected a broker, too.
        if self.env.rng.percent(25) {
            self.act_on_sinks();
        }
        let down = if self.env.rng.percent(50) { 500 } else { 15_000 };
        self.down_until = Some(Instant::now() + self.env.rng.millis(down));
    }

    /// Advances the time, and restarts the bridge when it is due.
    async fn pass(&mut self, time: Duration) -> Result<(), String> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            if self.down_until.is_some_and(|down_until| Instant::now() >= down_until) {
                self.start().await;
            }
            let wait = self.down_until.unwrap_or(until).min(until);
            let env = self.env.clone();
            let ended = async {
                match &mut self.bridge {
                    Some(bridge) => bridge.ended().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = env.crashed.notified() => {
                    let how = if env.rng.percent(50) { End::PowerCut } else { End::Crash };
                    self.end(how).await;
                }
                why = ended => return Err(why),
                () = tokio::time::sleep_until(wait) => {}
            }
            self.load_in_time();
        }
        Ok(())
    }

    fn load_in_time(&mut self) {
        for (server, began) in &self.loading {
            if began.elapsed() >= LOADING_MAX {
                self.clients[server].change(|world| world.load_session(None));
            }
        }
        self.loading.retain(|_, began| began.elapsed() < LOADING_MAX);
    }

    async fn act(&mut self) -> Result<(), String> {
        let servers: Vec<ServerName> = self.clients.keys().cloned().collect();
        let server = servers[usize::try_from(self.env.rng.below(servers.len() as u64)).unwrap()].clone();
        match self.env.rng.below(100) {
            0..=46 => self.act_on_torrents(&server),
            47..=49 => self.crash_while_publishing_a_transient_torrent(&server).await?,
            50..=63 => self.act_on_client(&server),
            64..=75 => self.act_on_sinks(),
            76..=80 => self.act_on_disk(),
            81..=91 => self.send_command(&server),
            _ => self.act_on_bridge().await,
        }
        Ok(())
    }

    /// Crashes the bridge while it publishes a new torrent, which is removed before the bridge runs again. The brokers
    /// return even later, so that only what the bridge has stored lets it clear the torrent's state.
    async fn crash_while_publishing_a_transient_torrent(&mut self, server: &ServerName) -> Result<(), String> {
        if self.bridge.is_none() {
            return Ok(());
        }
        let restarts_before = self.restarts;
        let before = self.clients[server].change(|world| world.torrents().clone());
        self.add(server);
        self.crash_soon(40);
        self.pass(Duration::from_secs(2)).await?;
        if self.restarts == restarts_before {
            return Ok(());
        }
        self.clients[server].change(|world| {
            let new: Vec<InfoHash> =
                world.torrents().keys().filter(|hash| !before.contains_key(hash)).copied().collect();
            new.iter().for_each(|hash| drop(world.remove(hash)));
        });
        self.sinks.iter().for_each(|plan| plan.broker.change(|state| state.is_down = true));
        self.env.note(|| "crashed while publishing a transient torrent".to_owned());
        self.pass(Duration::from_secs(4 + self.env.rng.below(8))).await?;
        self.sinks.iter().for_each(|plan| plan.broker.change(|state| state.is_down = false));
        Ok(())
    }

    /// Crashes the bridge at one of its next steps.
    fn crash_soon(&self, steps: u64) {
        self.env.crash_in(1 + self.env.rng.below(steps));
    }

    fn add(&self, server: &ServerName) {
        let rng = &self.env.rng;
        let number = u8::try_from(1 + rng.below(u64::from(TORRENTS))).unwrap();
        let length = 1000 * (1 + rng.below(9));
        let mut torrent = SimulatedTorrent::new(format!("torrent {number}"), length);
        if rng.percent(30) {
            (torrent.done, torrent.received) = (length, 0);
        }
        if rng.percent(20) {
            torrent.run_mode = RunMode::Paused;
        }
        let is_checked = rng.percent(15);
        self.clients[server].change(|world| {
            if world.is_loading() {
                return;
            }
            self.env.note(|| format!("{server}: add {number:02x}"));
            world.add(hash(number), torrent);
            if is_checked {
                world.begin_check(&hash(number));
            }
        });
    }

    fn act_on_torrents(&self, server: &ServerName) {
        let rng = &self.env.rng;
        let what = rng.below(24);
        if what < 4 {
            self.add(server);
            // Publishing and storing a new torrent takes many steps.
            if rng.percent(10) {
                self.crash_soon(40);
            }
            return;
        }
        if what == 4 && rng.percent(30) {
            self.crash_soon(40);
        }
        self.clients[server].change(|world| {
            let hashes: Vec<InfoHash> = world.torrents().keys().copied().collect();
            let Some(hash) = rng.pick(&hashes) else { return };
            let note = |what: &str| self.env.note(|| format!("{server}: {what} {}", short(Some(hash))));
            let is_whole = !world.is_loading();
            let length = world.torrents()[&hash].length;
            let has_metadata = world.torrents()[&hash].has_metadata;
            match what {
                4 | 5 if is_whole => {
                    note("remove");
                    world.remove(&hash);
                }
                6 | 7 if is_whole => {
                    note("reload");
                    world.reload(&hash);
                }
                8..=10 if has_metadata => {
                    note("receive");
                    world.receive(&hash, length / (2 + rng.below(8)), 1000 * rng.below(50));
                }
                11 | 12 if has_metadata => {
                    note("receive all of");
                    world.receive(&hash, length, 0);
                }
                13 => {
                    note("begin to check");
                    world.begin_check(&hash);
                }
                14 | 15 => {
                    note("end the check of");
                    world.end_check(&hash);
                }
                16 if !has_metadata => {
                    note("resolve");
                    world.resolve(&hash, "resolved", 5000);
                }
                _ => {
                    let Some(torrent) = world.torrent_mut(&hash) else { return };
                    match what {
                        17 => torrent.label = format!("label {}", rng.below(3)),
                        18 => torrent.run_mode = RunMode::Running,
                        19 => torrent.run_mode = RunMode::Paused,
                        20 => torrent.run_mode = RunMode::Stopped,
                        21 => torrent.error = rng.percent(60).then(|| "no space".to_owned()),
                        22 => torrent.priority = u8::try_from(rng.below(4)).unwrap(),
                        23 => torrent.uploaded += rng.below(500_000),
                        _ => torrent.directory = format!("/downloads/{}", rng.below(3)),
                    }
                    note("change");
                }
            }
        });
    }

    fn act_on_client(&mut self, server: &ServerName) {
        let rng = &self.env.rng;
        let client = &self.clients[server];
        // A restart within one poll under the same run id cannot be detected, so the client stays unreachable for a while.
        let is_restarting = client.change(|world| world.keeps_run_id && world.is_loading())
            && self.loading.get(server).is_some_and(|began| began.elapsed() < Duration::from_secs(6));
        if is_restarting {
            return;
        }
        let behaviors = [
            Behavior::Unreachable,
            Behavior::Hanging,
            Behavior::Malformed,
            Behavior::Short,
            Behavior::SilentlyShortOnce,
        ];
        match rng.below(10) {
            0 | 1 => {
                client.change(|world| {
                    world.restart();
                    if world.keeps_run_id {
                        world.behavior = Behavior::Unreachable;
                    }
                });
                self.loading.insert(server.clone(), Instant::now());
                self.env.note(|| format!("{server}: restarts"));
            }
            2 | 3 => client.change(|world| {
                if world.is_loading() {
                    let loaded = usize::try_from(1 + rng.below(4)).unwrap();
                    world.load_session(Some(loaded));
                    self.env.note(|| format!("{server}: has loaded {loaded}"));
                }
            }),
            4..=7 => client.change(|world| {
                world.latency = rng.millis(300);
                world.deadline = Duration::from_secs(1 + rng.below(5));
                let mut behavior = rng.pick(&behaviors).unwrap();
                // One silent omission at a time: a torrent that two complete listings in a row lack counts as removed.
                // And none from a client that keeps its run id: a restart is detected by its rows alone.
                if behavior == Behavior::SilentlyShortOnce {
                    if world.keeps_run_id
                        || self.silently_short_at.get(server).is_some_and(|at| at.elapsed() < Duration::from_secs(60))
                    {
                        behavior = Behavior::Well;
                    } else {
                        self.silently_short_at.insert(server.clone(), Instant::now());
                    }
                }
                if behavior == Behavior::Hanging {
                    *self.hangs.entry(server.clone()).or_default() += 1;
                }
                world.behavior = behavior;
                self.env.note(|| format!("{server}: is {behavior:?}"));
            }),
            _ => client.change(|world| {
                world.behavior = Behavior::Well;
                self.env.note(|| format!("{server}: answers again"));
            }),
        }
    }

    fn act_on_sinks(&mut self) {
        let rng = &self.env.rng;
        let plan = &self.sinks[usize::try_from(rng.below(2)).unwrap()];
        let what = rng.below(9);
        self.env.note(|| format!("{}: {what}", plan.broker.name));
        self.had_faults = true;
        match what {
            0 | 1 => plan.broker.cut(),
            2 => plan.broker.change(|state| state.is_down = true),
            3 | 4 => plan.broker.change(|state| state.is_down = false),
            5 => plan.broker.change(|state| state.latency_millis = rng.below(1500)),
            6 => plan.broker.change(|state| state.lost_acks_percent = 5 + u32::try_from(rng.below(20)).unwrap()),
            7 => plan.broker.change(|state| state.rejected_percent = 10),
            _ => {
                plan.broker.cut();
                // A restarted broker without persistence.
                plan.broker.change(|state| state.retained.clear());
                if self.orphans == Orphans::Retained && plan.takes_commands {
                    self.orphans = Orphans::Forgotten;
                }
            }
        }
    }

    fn act_on_disk(&mut self) {
        let space = match self.env.rng.below(5) {
            0 | 1 => DiskSpace::NoneForJournal,
            2 => DiskSpace::None,
            _ => DiskSpace::Enough,
        };
        self.env.note(|| format!("the disk has space: {space:?}"));
        *lock(&self.disk.space) = space;
    }

    async fn act_on_bridge(&mut self) {
        match self.env.rng.below(6) {
            0 => self.end(End::Stop).await,
            1 => self.end(End::Crash).await,
            2 => self.end(End::PowerCut).await,
            _ => self.crash_soon(60),
        }
    }

    fn send_command(&mut self, server: &ServerName) {
        let rng = &self.env.rng;
        let number = self.sent.len();
        let id = format!("command {number}");
        let target = hash(u8::try_from(1 + rng.below(u64::from(TORRENTS))).unwrap());
        let quoted = format!("\"id\": \"{id}\"");
        let (verb, on_hash, body) = match rng.below(12) {
            0 | 1 => ("pause", true, format!("{{{quoted}}}")),
            2 | 3 => ("resume", true, format!("{{{quoted}}}")),
            4 => ("delete", true, format!("{{{quoted}}}")),
            5 | 6 => ("label", true, format!("{{{quoted}, \"label\": \"{id}\"}}")),
            7 => ("stop", false, format!("{{{quoted}, \"filter\": {{\"status\": \"seeding\"}}}}")),
            8 => ("add", false, format!("{{{quoted}, \"magnet\": \"magnet:?xt=urn:btih:{target}\"}}")),
            9 => ("pause", true, format!("{{{quoted}, \"nonsense\": 1}}")),
            10 => ("pause", true, format!("{{{quoted}, \"ttl\": \"5s\"}}")),
            _ => ("resync", false, format!("{{{quoted}}}")),
        };
        let is_to_bridge = verb == "resync" && rng.percent(50);
        let address = CommandAddress {
            server: (!is_to_bridge).then(|| server.to_string()),
            hash: on_hash.then(|| target.to_string()),
            verb: verb.to_owned(),
        };
        let copies = if rng.percent(25) { 2 } else { 1 };
        self.env.note(|| format!("{server}: {copies} x {id} {verb} {}", short(Some(target))));
        for _ in 0..copies {
            self.sinks[0].broker.publish(address.clone(), Bytes::from(body.clone()));
        }
        let server = (!is_to_bridge).then(|| server.clone());
        self.sent.push(Sent { id, verb, server, hash: on_hash.then_some(target), copies });
    }

    /// Ends all faults and all changes.
    async fn end_faults(&mut self) {
        self.env.note(|| "no more faults".to_owned());
        if self.bridge.is_none() {
            self.start().await;
        }
        // A last crash, so that convergence from a crash is tested too.
        if self.env.rng.percent(30) {
            self.end(if self.env.rng.percent(50) { End::PowerCut } else { End::Crash }).await;
            self.start().await;
        }
        self.env.mark_running();
        *lock(&self.disk.space) = DiskSpace::Enough;
        for client in self.clients.values() {
            client.change(|world| {
                world.behavior = Behavior::Well;
                world.latency = Duration::from_millis(20);
                world.load_session(None);
                world.rest();
                let hashes: Vec<InfoHash> = world.torrents().keys().copied().collect();
                hashes.iter().for_each(|hash| world.end_check(hash));
            });
        }
        for plan in &self.sinks {
            plan.broker.change(|state| {
                state.is_down = false;
                state.latency_millis = 5;
                state.lost_acks_percent = 0;
                state.rejected_percent = 0;
            });
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Stop,
    Crash,
    /// The machine loses power, and with it the writes that were not synced.
    PowerCut,
}
