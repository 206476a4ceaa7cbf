//! The long test: torrents come and go in a real rTorrent while the bridge and a broker are killed at random.
//!
//! The bridge publishes to two brokers. One is never killed, so that its subscriber loses nothing by itself,
//! but the bridge's connection to it is cut repeatedly; what arrives there is compared with what was done to
//! rTorrent. The other is killed and loses everything; at the end it has to show the present state.
//!
//! `make soak MINUTES=10`; `SOAK_SEED` repeats the choices of an earlier run, though not its timing.
#![allow(clippy::unwrap_used, reason = "who watches a soak sees a panic as its end")]

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
const SETTLE: Duration = Duration::from_secs(60);

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
    let mut next_word = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        soak.step().await;
        if Instant::now() >= next_word {
            println!("{}", soak.done);
            next_word += Duration::from_secs(30);
        }
    }
    let is_good = soak.end().await;
    std::process::exit(i32::from(!is_good));
}

/// What was done.
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
    forgetful: Mosquitto,
    /// The broker that is killed from time to time; `None` while it is down.
    is_away: bool,
    alive: Vec<InfoHash>,
    gone: BTreeSet<InfoHash>,
    /// Who was told to be there: only those are removed, for what comes and goes between two polls is never told.
    snapshot: BTreeSet<InfoHash>,
    read: usize,
    next: u64,
    dice: u64,
    done: Done,
    _folder: tempfile::TempDir,
}

impl Soak {
    async fn begin(seed: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lines: Vec<String> = ["max_inflight_messages 5000", "max_queued_messages 100000"].map(str::to_owned).into();
        let options = mosquitto::Options { lines, ..mosquitto::Options::default() };
        let forgetful = Mosquitto::start(folder.path(), &options).await.unwrap();
        let sink = format!("[brokers.c]\nkind = \"mqtt\"\nurl = \"{}\"", forgetful.url());
        let mut world = World::new(Setup { broker: options, sink, ..Setup::default() }).await;
        let proxy = world.proxy_broker().await;
        world.start_bridge().await;
        Self {
            world,
            proxy,
            forgetful,
            is_away: false,
            alive: Vec::new(),
            gone: BTreeSet::new(),
            snapshot: BTreeSet::new(),
            read: 0,
            next: 0,
            dice: u64::from(seed) | 1 << 40,
            done: Done::default(),
            _folder: folder,
        }
    }

    /// A number below `sides` (xorshift).
    fn roll(&mut self, sides: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice % sides
    }

    async fn step(&mut self) {
        self.listen();
        match self.roll(20) {
            0..=7 if self.alive.len() < ALIVE_MAX => self.add().await,
            0..=13 => self.remove().await,
            14 => self.label().await,
            15 | 16 => {
                self.done.kills += 1;
                self.world.bridge().restart(); // kills it first
            }
            17 if !self.is_away => {
                self.done.broker_kills += 1;
                self.forgetful.process().kill().unwrap();
                self.is_away = true;
            }
            18 if self.is_away => {
                self.forgetful.restart().await.unwrap();
                self.is_away = false;
            }
            _ => {
                self.done.cuts += 1;
                self.proxy.cut();
            }
        }
        sleep(Duration::from_millis(self.roll(400))).await;
    }

    async fn add(&mut self) {
        for _ in 0..=self.roll(12) {
            let content = Content::file(&format!("n{}", self.next), 1_000, self.next);
            self.next += 1;
            self.world.home.load(&content.torrent, false).await.unwrap();
            self.alive.push(content.hash);
            self.done.added += 1;
        }
    }

    async fn remove(&mut self) {
        for _ in 0..=self.roll(12) {
            let candidates: Vec<usize> =
                (0..self.alive.len()).filter(|index| self.snapshot.contains(&self.alive[*index])).collect();
            if candidates.is_empty() {
                return;
            }
            let pick = candidates[self.roll(candidates.len() as u64) as usize];
            let hash = self.alive.swap_remove(pick);
            self.world.home.act(hash, "d.erase", &[]).await.unwrap();
            self.gone.insert(hash);
            self.done.removed += 1;
        }
    }

    async fn label(&mut self) {
        let label = format!("d.custom1.set=l{}", self.roll(1_000));
        let arguments = ["", "main", &label].map(Argument::Text);
        self.world.home.rpc.call("d.multicall2", &arguments).await.unwrap();
    }

    /// Notes who was told to be there since the last time.
    fn listen(&mut self) {
        let news = self.world.recorder.since(self.read);
        self.read += news.len();
        for message in news.iter().filter(|message| message.topic.ends_with("/event/added")) {
            self.snapshot.insert(message.json()["hash"].as_str().unwrap().parse().unwrap());
        }
    }

    /// Lets everything come to rest and prints the account; `true` if nothing is wrong.
    async fn end(mut self) -> bool {
        if self.is_away {
            self.forgetful.restart().await.unwrap();
        }
        let wanted: BTreeSet<String> = self.alive.iter().map(InfoHash::to_string).collect();
        let gone: BTreeSet<String> = self.gone.iter().map(InfoHash::to_string).collect();
        let deadline = Instant::now() + SETTLE;
        let account = loop {
            let account = Account::of(&self.world.recorder.all(), &wanted, &gone);
            if account.lost == 0 || Instant::now() > deadline {
                break account;
            }
            sleep(Duration::from_millis(500)).await;
        };
        let shown = loop {
            let late = Recorder::listen(self.forgetful.port).await;
            late.wait_for_last("dtorrent/bridge/main/status", "online").await;
            sleep(Duration::from_millis(500)).await;
            let states = late.all().into_iter().filter(|m| m.topic.ends_with("/state") && !m.payload.is_empty());
            let shown: BTreeSet<String> = states.filter_map(|m| m.topic.split('/').nth(3).map(str::to_owned)).collect();
            if shown == wanted || Instant::now() > deadline {
                break shown;
            }
        };
        let Account { events, lost, disordered, repeats, invented } = account;
        let wrong_states = shown.symmetric_difference(&wanted).count();
        println!("{}", self.done);
        println!(
            "received: {events} events, lost {lost}, disordered {disordered}, invented {invented}, {repeats} repeats; \
             {} states at the broker that forgot everything, {wrong_states} wrong",
            shown.len()
        );
        let is_good = lost + disordered + invented + wrong_states == 0;
        if !is_good {
            println!("--- the bridge said:\n{}", self.world.bridge().log());
        }
        is_good
    }
}

/// What arrived, against what was done.
struct Account {
    events: usize,
    lost: usize,
    disordered: usize,
    repeats: usize,
    /// Told more than once, or of what never was.
    invented: usize,
}

impl Account {
    fn of(received: &[Message], alive: &BTreeSet<String>, gone: &BTreeSet<String>) -> Self {
        let mut bodies: BTreeMap<String, Value> = BTreeMap::new();
        let mut snapshot: BTreeMap<(String, String), usize> = BTreeMap::new();
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
                *snapshot.entry((kind, hash.to_owned())).or_default() += 1;
            }
            bodies.insert(id, event);
        }
        let times = |kind: &str, hash: &String| snapshot.get(&(kind.to_owned(), hash.clone())).copied().unwrap_or(0);
        let mut lost = alive.union(gone).filter(|hash| times("added", hash) == 0).count();
        lost += gone.iter().filter(|hash| times("removed", hash) == 0).count();
        let mut invented = alive.union(gone).filter(|hash| times("added", hash) > 1).count();
        invented += gone.iter().filter(|hash| times("removed", hash) > 1).count();
        invented += alive.iter().filter(|hash| times("removed", hash) > 0).count();
        Self { events: bodies.len(), lost, disordered, repeats, invented }
    }
}
