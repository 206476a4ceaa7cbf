//! The long test: torrents come and go in a real rTorrent while the bridge and a broker are killed at random.
//!
//! The bridge publishes to two brokers. One is never killed, so that its subscriber loses nothing by itself,
//! but the bridge's connection to it is cut repeatedly; the events that arrive there are compared with what was done to
//! rTorrent. The other is killed and loses everything; at the end it has to hold the current states.
//!
//! `make soak MINUTES=10`; `SOAK_SEED` repeats the choices of an earlier run, though not its timing.
#![allow(clippy::unwrap_used, reason = "a panic ends the soak, as any failure does")]

#[allow(dead_code, reason = "shared with the live tests, which use all of it")]
#[path = "live/harness/mod.rs"]
mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::mosquitto::{self, Mosquitto};
use dtorrent_peers::rtorrent::Argument;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::harness::recorder::{Message, Recorder};
use crate::harness::{Setup, World, can_run};

/// Torrent count above which more are removed than added: a broker retains up to 500 states in any case.
const ALIVE_MAX: usize = 200;
/// Maximum time for everything to arrive after the last fault.
const CONVERGENCE_TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() {
    if !can_run() {
        return;
    }
    let minutes: f64 = std::env::var("SOAK_MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(1.0);
    let seed = std::env::var("SOAK_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random::<u32>);
    println!("soak: {minutes} minutes, SOAK_SEED={seed}");
    let mut soak = Soak::begin(seed).await;
    let end = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let mut next_report = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        soak.step().await;
        if Instant::now() >= next_report {
            println!("{}", soak.done);
            next_report += Duration::from_secs(30);
        }
    }
    let is_good = soak.end().await;
    std::process::exit(i32::from(!is_good));
}

/// Counts of what the soak did.
#[derive(Default)]
struct Done {
    added: usize,
    removed: usize,
    kills: usize,
    broker_kills: usize,
    cuts: usize,
}

impl std::fmt::Display for Done {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { added, removed, kills, broker_kills, cuts } = self;
        write!(
            out,
            "done: {added} added, {removed} removed; {kills} kills of the bridge, {broker_kills} of a broker, {cuts} cuts"
        )
    }
}

struct Soak {
    world: World,
    proxy: harness::proxy::Proxy,
    killed_broker: Mosquitto,
    /// Whether the broker that is killed from time to time is down.
    is_down: bool,
    alive: Vec<InfoHash>,
    gone: BTreeSet<InfoHash>,
    /// Torrents whose `added` has arrived. Only these are removed: one that is added and removed between two polls has no
    /// events.
    announced: BTreeSet<InfoHash>,
    read: usize,
    next: u64,
    random: u64,
    done: Done,
    _folder: tempfile::TempDir,
}

impl Soak {
    async fn begin(seed: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lines: Vec<String> = ["max_inflight_messages 5000", "max_queued_messages 100000"].map(str::to_owned).into();
        let options = mosquitto::Options { lines, ..mosquitto::Options::default() };
        let killed_broker = Mosquitto::start(folder.path(), &options).await.unwrap();
        let sink = format!("[brokers.c]\nkind = \"mqtt\"\nurl = \"{}\"", killed_broker.url());
        let mut world = World::new(Setup { broker: options, sink, ..Setup::default() }).await;
        let proxy = world.proxy_broker().await;
        world.start_bridge().await;
        Self {
            world,
            proxy,
            killed_broker,
            is_down: false,
            alive: Vec::new(),
            gone: BTreeSet::new(),
            announced: BTreeSet::new(),
            read: 0,
            next: 0,
            random: u64::from(seed) | 1 << 40,
            done: Done::default(),
            _folder: folder,
        }
    }

    /// Returns a random number below `bound` (xorshift).
    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }

    async fn step(&mut self) {
        self.listen();
        match self.below(20) {
            0..=7 if self.alive.len() < ALIVE_MAX => self.add().await,
            0..=13 => self.remove().await,
            14 => self.label().await,
            15 | 16 => {
                self.done.kills += 1;
                self.world.bridge().restart(); // kills it first
            }
            17 if !self.is_down => {
                self.done.broker_kills += 1;
                self.killed_broker.process().kill().unwrap();
                self.is_down = true;
            }
            18 if self.is_down => {
                self.killed_broker.restart().await.unwrap();
                self.is_down = false;
            }
            _ => {
                self.done.cuts += 1;
                self.proxy.cut();
            }
        }
        sleep(Duration::from_millis(self.below(400))).await;
    }

    async fn add(&mut self) {
        for _ in 0..=self.below(12) {
            let content = Content::file(&format!("n{}", self.next), 1_000, self.next);
            self.next += 1;
            self.world.home.load(&content.torrent, false).await.unwrap();
            self.alive.push(content.hash);
            self.done.added += 1;
        }
    }

    async fn remove(&mut self) {
        for _ in 0..=self.below(12) {
            let candidates: Vec<usize> =
                (0..self.alive.len()).filter(|index| self.announced.contains(&self.alive[*index])).collect();
            if candidates.is_empty() {
                return;
            }
            let pick = candidates[self.below(candidates.len() as u64) as usize];
            let hash = self.alive.swap_remove(pick);
            self.world.home.act(hash, "d.erase", &[]).await.unwrap();
            self.gone.insert(hash);
            self.done.removed += 1;
        }
    }

    async fn label(&mut self) {
        let label = format!("d.custom1.set=l{}", self.below(1_000));
        let arguments = ["", "main", &label].map(Argument::Text);
        self.world.home.rpc.call("d.multicall2", &arguments).await.unwrap();
    }

    /// Records the `added` events received since the last call.
    fn listen(&mut self) {
        let received = self.world.recorder.since(self.read);
        self.read += received.len();
        for message in received.iter().filter(|message| message.topic.ends_with("/event/added")) {
            self.announced.insert(message.json()["hash"].as_str().unwrap().parse().unwrap());
        }
    }

    /// Waits until everything has arrived, prints the result, and returns whether it is correct.
    async fn end(mut self) -> bool {
        if self.is_down {
            self.killed_broker.restart().await.unwrap();
        }
        let wanted: BTreeSet<String> = self.alive.iter().map(InfoHash::to_string).collect();
        let gone: BTreeSet<String> = self.gone.iter().map(InfoHash::to_string).collect();
        let deadline = Instant::now() + CONVERGENCE_TIMEOUT;
        let comparison = loop {
            let comparison = Comparison::of(&self.world.recorder.all(), &wanted, &gone);
            if comparison.lost == 0 || Instant::now() > deadline {
                break comparison;
            }
            sleep(Duration::from_millis(500)).await;
        };
        let shown = loop {
            let late = Recorder::listen(self.killed_broker.port).await;
            late.wait_for_last("dtorrent/bridge/main/status", "online").await;
            sleep(Duration::from_millis(500)).await;
            let states = late.all().into_iter().filter(|m| m.topic.ends_with("/state") && !m.payload.is_empty());
            let shown: BTreeSet<String> = states.filter_map(|m| m.topic.split('/').nth(3).map(str::to_owned)).collect();
            if shown == wanted || Instant::now() > deadline {
                break shown;
            }
        };
        let Comparison { events, lost, disordered, repeats, invented } = comparison;
        let wrong_states = shown.symmetric_difference(&wanted).count();
        println!("{}", self.done);
        println!(
            "received: {events} events, lost {lost}, disordered {disordered}, invented {invented}, {repeats} repeats; \
             {} states at the killed broker, {wrong_states} wrong",
            shown.len()
        );
        let is_good = lost + disordered + invented + wrong_states == 0;
        if !is_good {
            println!("--- log of the bridge:\n{}", self.world.bridge().log());
        }
        is_good
    }
}

/// Comparison of the received events with what was done.
struct Comparison {
    events: usize,
    lost: usize,
    disordered: usize,
    repeats: usize,
    /// Events that arrived under two numbers, or without a cause.
    invented: usize,
}

impl Comparison {
    fn of(received: &[Message], alive: &BTreeSet<String>, gone: &BTreeSet<String>) -> Self {
        let mut bodies: BTreeMap<String, Value> = BTreeMap::new();
        let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
        let (mut last_seq, mut disordered, mut repeats) = (0, 0, 0);
        for event in harness::recorder::events_in(received, "home") {
            let id = event["id"].as_str().unwrap().to_owned();
            if let Some(known) = bodies.get(&id) {
                repeats += 1;
                disordered += usize::from(*known != event);
                continue;
            }
            let seq = event["seq"].as_u64().unwrap();
            disordered += usize::from(seq != last_seq + 1);
            last_seq = seq;
            if let Some(hash) = event["hash"].as_str() {
                let kind = event["event_type"].as_str().unwrap().to_owned();
                *counts.entry((kind, hash.to_owned())).or_default() += 1;
            }
            bodies.insert(id, event);
        }
        let times = |kind: &str, hash: &String| counts.get(&(kind.to_owned(), hash.clone())).copied().unwrap_or(0);
        let mut lost = alive.union(gone).filter(|hash| times("added", hash) == 0).count();
        lost += gone.iter().filter(|hash| times("removed", hash) == 0).count();
        let mut invented = alive.union(gone).filter(|hash| times("added", hash) > 1).count();
        invented += gone.iter().filter(|hash| times("removed", hash) > 1).count();
        invented += alive.iter().filter(|hash| times("removed", hash) > 0).count();
        Self { events: bodies.len(), lost, disordered, repeats, invented }
    }
}
