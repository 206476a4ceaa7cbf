//! One run: a few simulated minutes of everything going wrong, then calm, then the questions.

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
use super::disk::{Disk, Room, short};
use super::far_side::Broker;
use super::stage::{Stage, lock};
use super::{checks, settled};

/// Torrents of one server come from so many, so that the same one comes again.
const TORRENTS: u8 = 5;
/// A restarted client has loaded its session within this.
const LOADING_MAX: Duration = Duration::from_secs(20);
/// All that is owed has to arrive within this once nothing goes wrong any more.
const CALM_MAX: Duration = Duration::from_secs(240);

/// A command as its sender knows it.
pub struct Sent {
    pub id: String,
    pub verb: &'static str,
    pub server: Option<ServerName>,
    pub hash: Option<InfoHash>,
    pub copies: usize,
}

/// Everything of one run.
pub struct Run {
    pub stage: Arc<Stage>,
    pub clients: BTreeMap<ServerName, Simulator>,
    pub sinks: Vec<SinkPlan>,
    pub disk: Arc<Disk>,
    pub bridge: Option<Bridge>,
    pub sent: Vec<Sent>,
    /// How often the bridge was started again.
    pub restarts: usize,
    /// What the broker of the first sink keeps of a bridge whose folder is lost.
    pub ghosts: Ghosts,
    /// Somebody lied, crashed or cut since the run began: order and number of what comes twice are open.
    pub is_rough: bool,
    interval: Duration,
    sweep: Duration,
    down_until: Option<Instant>,
    left: Option<dtorrent::store::Image>,
    loading: BTreeMap<ServerName, Instant>,
    lied: BTreeMap<ServerName, Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ghosts {
    None,
    Kept,
    /// Perhaps before anybody found them.
    Forgotten,
}

pub fn hash(number: u8) -> InfoHash {
    InfoHash::V1([number; 20])
}

impl Run {
    pub async fn new(seed: u64, is_traced: bool) -> Self {
        let stage = Stage::new(seed, is_traced);
        let dice = &stage.dice;
        let names = ["home", "attic"].map(|name| ServerName::parse(name).unwrap());
        let count = if dice.percent(60) { 1 } else { 2 };
        let clients: BTreeMap<_, _> =
            names[..count].iter().map(|name| (name.clone(), Simulator::new(name.clone(), stage.clone()))).collect();
        let servers: Vec<ServerName> = clients.keys().cloned().collect();
        let retains = [Retain::All, Retain::Auto, Retain::None];
        let some = |kinds: &[Kind]| kinds.iter().copied().collect::<BTreeSet<_>>();
        let slow_events = match dice.below(3) {
            0 => some(Kind::ALL),
            1 => some(&[Kind::Added, Kind::Removed, Kind::Finished, Kind::Updated]),
            _ => some(&[Kind::Removed, Kind::Paused, Kind::Resumed, Kind::Finished, Kind::LabelChanged]),
        };
        let plan = |name: &str, depth, events, retain: Retain, servers: &[ServerName]| SinkPlan {
            broker: Broker::new(name, stage.clone(), depth, retain != Retain::None),
            servers: servers.to_vec(),
            events,
            retain,
            takes_commands: name == "fast",
        };
        let fast_depth = usize::try_from(2 + dice.below(14)).unwrap();
        let slow_depth = usize::try_from(1 + dice.below(3)).unwrap();
        let fast_retain = if dice.percent(70) { Retain::All } else { Retain::Auto };
        let slow_retain = dice.pick(&retains).unwrap();
        let sinks = vec![
            plan("fast", fast_depth, some(Kind::ALL), fast_retain, &servers),
            plan("slow", slow_depth, slow_events, slow_retain, &servers[servers.len() - 1..]),
        ];
        sinks[1].broker.change(|state| state.latency_millis = 20 + dice.below(400));
        let journal_bytes_max = if dice.percent(25) { 40_000 } else { 256 << 20 };
        let options = Options { journal_bytes_max, ..Options::default() };
        let interval = Duration::from_millis(1000 + dice.below(1500));
        let sweep = dice.pick(&[interval, Duration::from_secs(5), Duration::from_secs(30)]).unwrap();
        let disk = Disk::new(stage.clone(), options);
        let ghosts = if seed.is_multiple_of(5) { Ghosts::Kept } else { Ghosts::None };
        if ghosts == Ghosts::Kept {
            let broker = &sinks[0].broker;
            // One of them may come to be there again.
            let of_lost = servers.iter().flat_map(|server| [1, 200].map(|number| (server, hash(number))));
            let names: Vec<String> = of_lost.filter_map(|(server, hash)| broker.name_of_state(server, hash)).collect();
            broker.change(|state| state.kept.extend(names.into_iter().map(|name| (name, "{}".into()))));
        }
        let run = Self {
            stage,
            clients,
            sinks,
            disk,
            bridge: None,
            sent: Vec::new(),
            restarts: 0,
            ghosts,
            is_rough: false,
            interval,
            sweep,
            down_until: None,
            left: None,
            loading: BTreeMap::new(),
            lied: BTreeMap::new(),
        };
        for server in &servers {
            let keeps_run_id = run.stage.dice.percent(25);
            run.clients[server].change(|world| {
                world.keeps_run_id = keeps_run_id;
                world.latency = run.stage.dice.millis(150);
            });
            for _ in 0..run.stage.dice.below(4) {
                run.add(server);
            }
        }
        run
    }

    /// Plays the run.
    ///
    /// # Errors
    /// What was not as it should be.
    pub async fn play(&mut self) -> Result<(), String> {
        self.start().await;
        for _ in 0..25 + self.stage.dice.below(35) {
            let pause = match self.stage.dice.below(4) {
                0 => self.stage.dice.millis(200),
                _ => self.stage.dice.millis(3000),
            };
            self.pass(pause).await?;
            self.act().await?;
        }
        if self.clients.values().any(|client| client.change(|world| world.keeps_run_id && world.is_loading())) {
            self.pass(Duration::from_secs(7)).await?;
        }
        self.calm_down().await;
        let began = Instant::now();
        let mut quiet = 0;
        while quiet < 2 {
            self.pass(Duration::from_secs(1)).await?;
            let open = settled::open(self).await;
            quiet = if open.is_empty() { quiet + 1 } else { 0 };
            if began.elapsed() > CALM_MAX {
                return Err(format!("after {CALM_MAX:?} of calm it is still open that\n  {}", open.join("\n  ")));
            }
        }
        checks::all(self).await
    }

    async fn start(&mut self) {
        self.stage.live_again();
        // A bridge that has no room to note where its sinks begin waits for some before it runs.
        if *lock(&self.disk.room) == Room::None {
            *lock(&self.disk.room) = Room::NoneForTheJournal;
        }
        let servers: Vec<ServerName> = self.clients.keys().cloned().collect();
        let store = self.disk.open(self.left.take(), &servers).await;
        let bridge = Bridge::start(&self.stage, store, &self.clients, &self.sinks, self.interval, self.sweep).await;
        self.stage.note(|| "the bridge starts".to_owned());
        self.bridge = Some(bridge);
        self.down_until = None;
    }

    async fn end(&mut self, how: End) {
        let Some(bridge) = self.bridge.take() else { return };
        self.stage.note(|| format!("the bridge ends: {how:?}"));
        let store = match how {
            End::Stop => bridge.stop().await,
            End::Crash | End::PowerCut => {
                self.stage.die();
                bridge.kill().await
            }
        };
        self.left = Some(store.left(how == End::PowerCut));
        self.is_rough = true;
        self.restarts += 1;
        self.sinks.iter().for_each(|plan| plan.broker.bridge_is_gone());
        // Whatever befell the bridge may have befallen a broker, too.
        if self.stage.dice.percent(25) {
            self.act_on_sinks();
        }
        let down = if self.stage.dice.percent(50) { 500 } else { 15_000 };
        self.down_until = Some(Instant::now() + self.stage.dice.millis(down));
    }

    /// Lets time go by.
    async fn pass(&mut self, time: Duration) -> Result<(), String> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            if self.down_until.is_some_and(|down_until| Instant::now() >= down_until) {
                self.start().await;
            }
            let wait = self.down_until.unwrap_or(until).min(until);
            let stage = self.stage.clone();
            let ended = async {
                match &mut self.bridge {
                    Some(bridge) => bridge.ended().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stage.crashed.notified() => {
                    let how = if stage.dice.percent(50) { End::PowerCut } else { End::Crash };
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
        let server = servers[usize::try_from(self.stage.dice.below(servers.len() as u64)).unwrap()].clone();
        match self.stage.dice.below(100) {
            0..=46 => self.act_on_torrents(&server),
            47..=49 => self.be_struck_while_telling(&server).await?,
            50..=63 => self.act_on_client(&server),
            64..=75 => self.act_on_sinks(),
            76..=80 => self.act_on_disk(),
            81..=91 => self.send_command(&server),
            _ => self.act_on_bridge().await,
        }
        Ok(())
    }

    /// The bridge dies while it tells of a torrent that is gone when it is back, and the brokers are
    /// back even later: whatever it has not noted by then, nobody will know.
    async fn be_struck_while_telling(&mut self, server: &ServerName) -> Result<(), String> {
        if self.bridge.is_none() {
            return Ok(());
        }
        let lives = self.restarts;
        let before = self.clients[server].change(|world| world.torrents().clone());
        self.add(server);
        self.crash_soon(40);
        self.pass(Duration::from_secs(2)).await?;
        if self.restarts == lives {
            return Ok(());
        }
        self.clients[server].change(|world| {
            let new: Vec<InfoHash> =
                world.torrents().keys().filter(|hash| !before.contains_key(hash)).copied().collect();
            new.iter().for_each(|hash| drop(world.remove(hash)));
        });
        self.sinks.iter().for_each(|plan| plan.broker.change(|state| state.is_down = true));
        self.stage.note(|| "struck".to_owned());
        self.pass(Duration::from_secs(4 + self.stage.dice.below(8))).await?;
        self.sinks.iter().for_each(|plan| plan.broker.change(|state| state.is_down = false));
        Ok(())
    }

    /// The bridge dies between two of its next steps.
    fn crash_soon(&self, steps: u64) {
        self.stage.crash_in(1 + self.stage.dice.below(steps));
    }

    fn add(&self, server: &ServerName) {
        let dice = &self.stage.dice;
        let number = u8::try_from(1 + dice.below(u64::from(TORRENTS))).unwrap();
        let length = 1000 * (1 + dice.below(9));
        let mut torrent = SimulatedTorrent::new(format!("torrent {number}"), length);
        if dice.percent(30) {
            (torrent.done, torrent.received) = (length, 0);
        }
        if dice.percent(20) {
            torrent.run_mode = RunMode::Paused;
        }
        let is_checked = dice.percent(15);
        self.clients[server].change(|world| {
            if world.is_loading() {
                return;
            }
            self.stage.note(|| format!("{server}: add {number:02x}"));
            world.add(hash(number), torrent);
            if is_checked {
                world.begin_check(&hash(number));
            }
        });
    }

    fn act_on_torrents(&self, server: &ServerName) {
        let dice = &self.stage.dice;
        let what = dice.below(24);
        if what < 4 {
            self.add(server);
            // What is new is told and kept in many steps.
            if dice.percent(10) {
                self.crash_soon(40);
            }
            return;
        }
        if what == 4 && dice.percent(30) {
            self.crash_soon(40);
        }
        self.clients[server].change(|world| {
            let hashes: Vec<InfoHash> = world.torrents().keys().copied().collect();
            let Some(hash) = dice.pick(&hashes) else { return };
            let note = |what: &str| self.stage.note(|| format!("{server}: {what} {}", short(Some(hash))));
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
                    world.receive(&hash, length / (2 + dice.below(8)), 1000 * dice.below(50));
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
                        17 => torrent.label = format!("label {}", dice.below(3)),
                        18 => torrent.run_mode = RunMode::Running,
                        19 => torrent.run_mode = RunMode::Paused,
                        20 => torrent.run_mode = RunMode::Stopped,
                        21 => torrent.error = dice.percent(60).then(|| "no space".to_owned()),
                        22 => torrent.priority = u8::try_from(dice.below(4)).unwrap(),
                        23 => torrent.uploaded += dice.below(500_000),
                        _ => torrent.directory = format!("/downloads/{}", dice.below(3)),
                    }
                    note("change");
                }
            }
        });
    }

    fn act_on_client(&mut self, server: &ServerName) {
        let dice = &self.stage.dice;
        let client = &self.clients[server];
        // A restart that takes no time and shows in nothing cannot be known as one.
        let is_away = client.change(|world| world.keeps_run_id && world.is_loading())
            && self.loading.get(server).is_some_and(|began| began.elapsed() < Duration::from_secs(6));
        if is_away {
            return;
        }
        let moods = [
            Behavior::Unreachable,
            Behavior::Hanging,
            Behavior::Malformed,
            Behavior::Short,
            Behavior::SilentlyShortOnce,
        ];
        match dice.below(10) {
            0 | 1 => {
                client.change(|world| {
                    world.restart();
                    if world.keeps_run_id {
                        world.behavior = Behavior::Unreachable;
                    }
                });
                self.loading.insert(server.clone(), Instant::now());
                self.stage.note(|| format!("{server}: restarts"));
            }
            2 | 3 => client.change(|world| {
                if world.is_loading() {
                    let loaded = usize::try_from(1 + dice.below(4)).unwrap();
                    world.load_session(Some(loaded));
                    self.stage.note(|| format!("{server}: has loaded {loaded}"));
                }
            }),
            4..=7 => client.change(|world| {
                world.latency = dice.millis(300);
                world.deadline = Duration::from_secs(1 + dice.below(5));
                let mut mood = dice.pick(&moods).unwrap();
                // One lie at a time: what two complete listings in a row lack counts as gone. And none
                // from a client that restarts under its old name: its rows are all it is known by.
                if mood == Behavior::SilentlyShortOnce {
                    if world.keeps_run_id
                        || self.lied.get(server).is_some_and(|at| at.elapsed() < Duration::from_secs(60))
                    {
                        mood = Behavior::Well;
                    } else {
                        self.lied.insert(server.clone(), Instant::now());
                    }
                }
                world.behavior = mood;
                self.stage.note(|| format!("{server}: is {mood:?}"));
            }),
            _ => client.change(|world| {
                world.behavior = Behavior::Well;
                self.stage.note(|| format!("{server}: is well"));
            }),
        }
    }

    fn act_on_sinks(&mut self) {
        let dice = &self.stage.dice;
        let plan = &self.sinks[usize::try_from(dice.below(2)).unwrap()];
        let what = dice.below(9);
        self.stage.note(|| format!("{}: {what}", plan.broker.name));
        self.is_rough = true;
        match what {
            0 | 1 => plan.broker.cut(),
            2 => plan.broker.change(|state| state.is_down = true),
            3 | 4 => plan.broker.change(|state| state.is_down = false),
            5 => plan.broker.change(|state| state.latency_millis = dice.below(1500)),
            6 => plan.broker.change(|state| state.lost_acks_percent = 5 + u32::try_from(dice.below(20)).unwrap()),
            7 => plan.broker.change(|state| state.rejected_percent = 10),
            _ => {
                plan.broker.cut();
                // It was restarted and kept nothing.
                plan.broker.change(|state| state.kept.clear());
                if self.ghosts == Ghosts::Kept && plan.takes_commands {
                    self.ghosts = Ghosts::Forgotten;
                }
            }
        }
    }

    fn act_on_disk(&mut self) {
        let room = match self.stage.dice.below(5) {
            0 | 1 => Room::NoneForTheJournal,
            2 => Room::None,
            _ => Room::Enough,
        };
        self.stage.note(|| format!("the disk has room: {room:?}"));
        *lock(&self.disk.room) = room;
    }

    async fn act_on_bridge(&mut self) {
        match self.stage.dice.below(6) {
            0 => self.end(End::Stop).await,
            1 => self.end(End::Crash).await,
            2 => self.end(End::PowerCut).await,
            _ => self.crash_soon(60),
        }
    }

    fn send_command(&mut self, server: &ServerName) {
        let dice = &self.stage.dice;
        let number = self.sent.len();
        let id = format!("command {number}");
        let target = hash(u8::try_from(1 + dice.below(u64::from(TORRENTS))).unwrap());
        let quoted = format!("\"id\": \"{id}\"");
        let (verb, on_hash, body) = match dice.below(12) {
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
        let is_to_bridge = verb == "resync" && dice.percent(50);
        let address = CommandAddress {
            server: (!is_to_bridge).then(|| server.to_string()),
            hash: on_hash.then(|| target.to_string()),
            verb: verb.to_owned(),
        };
        let copies = if dice.percent(25) { 2 } else { 1 };
        self.stage.note(|| format!("{server}: {copies} x {id} {verb} {}", short(Some(target))));
        for _ in 0..copies {
            self.sinks[0].broker.publish(address.clone(), Bytes::from(body.clone()));
        }
        let server = (!is_to_bridge).then(|| server.clone());
        self.sent.push(Sent { id, verb, server, hash: on_hash.then_some(target), copies });
    }

    /// From now on nothing goes wrong and nothing moves.
    async fn calm_down(&mut self) {
        self.stage.note(|| "calm".to_owned());
        if self.bridge.is_none() {
            self.start().await;
        }
        // A crash that was still to come, comes now.
        if self.stage.dice.percent(30) {
            self.end(if self.stage.dice.percent(50) { End::PowerCut } else { End::Crash }).await;
            self.start().await;
        }
        self.stage.live_again();
        *lock(&self.disk.room) = Room::Enough;
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
    /// The machine goes, and with it what was not synced.
    PowerCut,
}
