//! All floods at once under a memory limit: the bridge stays alive, answers each command once, and serves the others.
//!
//! Attacked is one server and everything that is shared: commands with 10,000 unknown hashes, bodies that are huge as a tree,
//! replays, retained messages of others, torrents with names of megabytes, idle connections to the HTTP port. Measured is
//! `/healthz`, and how late the events of a second server are.
//!
//! `make soak-attack MINUTES=10`. The limit is that of the data segment (`prlimit --data`), which counts all private memory.
#![allow(clippy::unwrap_used, reason = "a panic ends the soak, as any failure does")]
#![allow(clippy::disallowed_methods, reason = "tasks of a test end with its runtime")]

#[allow(dead_code, reason = "shared with the live tests, which use all of it")]
#[path = "live/harness/mod.rs"]
mod harness;

use std::collections::BTreeMap;
use std::time::Duration;

use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{self, Argument, Rtorrent};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::harness::recorder::{Command, Message};
use crate::harness::{Setup, World, can_run, http};

const MEMORY_BYTES_MAX: u64 = 512 << 20;
const HEALTH_TIME_MAX: Duration = Duration::from_secs(1);
const EVENT_TIME_MAX: Duration = Duration::from_secs(2);
/// Idle connections that are held open: more than the port takes.
const IDLE_CONNECTIONS: usize = 70;

#[tokio::main]
async fn main() {
    if !can_run() {
        return;
    }
    let minutes: f64 = std::env::var("SOAK_MINUTES").ok().and_then(|text| text.parse().ok()).unwrap_or(1.0);
    println!("soak of attacks: {minutes} minutes under {} MiB", MEMORY_BYTES_MAX >> 20);
    let mut soak = Soak::begin().await;
    let end = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let mut round = 0;
    while Instant::now() < end {
        soak.round(round).await;
        round += 1;
    }
    let is_good = soak.end().await;
    std::process::exit(i32::from(!is_good));
}

struct Soak {
    world: World,
    calm: Rtorrent,
    port: u16,
    sent: Vec<String>,
    idle: Vec<TcpStream>,
    health: Vec<Duration>,
    events: Vec<Duration>,
}

impl Soak {
    async fn begin() -> Self {
        let port = dtorrent_peers::process::free_port().unwrap();
        let mut setup = Setup {
            http: format!("listen = \"127.0.0.1:{port}\""),
            sink: "commands = [\"*\"]".to_owned(),
            launcher: ["prlimit", &format!("--data={MEMORY_BYTES_MAX}")].map(str::to_owned).to_vec(),
            ..Setup::default()
        };
        // Commands that the broker drops get no result.
        setup.broker.lines.extend(["max_queued_messages 0".to_owned(), "max_inflight_messages 1000".to_owned()]);
        let mut world = World::new(setup).await;
        for number in 0..20 {
            let topic = format!("dtorrent/home/torrent/{number:040x}/state");
            world.recorder.send(Command { retain: true, ..Command::new(&topic, vec![b'x'; 12 << 20]) }).await;
        }
        for number in 0..4 {
            load_with_long_name(&world, number).await;
        }
        let calm = Rtorrent::start(&world.folder.join("calm"), &rtorrent::Options::default()).await.unwrap();
        let urls = [world.home.url(), calm.url()];
        world.start_bridge_for(&[("home", &urls[0]), ("calm", &urls[1])]).await;
        let (sent, idle, health, events) = Default::default();
        Self { world, calm, port, sent, idle, health, events }
    }

    /// Sends a share of each flood, and measures what others get meanwhile.
    async fn round(&mut self, round: u64) {
        self.hold_connections().await;
        let unknown: Vec<String> =
            (0..10_000).map(|number| format!("{:040x}", round * 10_000 + number + (1 << 60))).collect();
        self.send("home/command/pause", round, &json!({"hashes": unknown}).to_string()).await;
        for number in 0..10 {
            self.send("home/command/resync", round * 100 + number, r#"{"from_seq": 1}"#).await;
        }
        let tree = format!(r#"{{"x": [{}0]}}"#, r#"{"":0},"#.repeat(200_000));
        self.send("home/command/list", round, &tree).await;
        let content = Content::file(&format!("calm-{round}"), 1_000, round);
        let mark = self.world.recorder.mark();
        self.calm.load(&content.torrent, false).await.unwrap();
        let loaded = Instant::now();
        self.measure_health().await;
        let event = self.world.recorder.event_after(mark, "calm", "added", content.hash).await;
        let topic = format!("dtorrent/calm/torrent/{}/event/added", content.hash);
        let arrived =
            self.world.recorder.since(mark).iter().find(|message| message.topic == topic).map(|message| message.at);
        assert_eq!(event["cause"], "observed");
        self.events.push(arrived.unwrap().saturating_duration_since(loaded));
        self.measure_health().await;
        sleep(Duration::from_secs(1)).await;
    }

    async fn send(&mut self, topic: &str, number: u64, body: &str) {
        let id = format!("{topic}-{number}").replace('/', "-");
        let body = format!(r#"{{"id":"{id}",{}"#, body.strip_prefix('{').unwrap());
        self.world.recorder.send(Command::new(&format!("dtorrent/{topic}"), body)).await;
        self.sent.push(id);
    }

    async fn hold_connections(&mut self) {
        self.idle.clear();
        for _ in 0..IDLE_CONNECTIONS {
            self.idle.push(TcpStream::connect(("127.0.0.1", self.port)).await.unwrap());
        }
    }

    async fn measure_health(&mut self) {
        let asked = Instant::now();
        assert_eq!(http::get(self.port, "/healthz").await.status, 200);
        self.health.push(asked.elapsed());
    }

    /// Waits for the answers, prints the figures, and returns whether all are within their limits.
    async fn end(mut self) -> bool {
        let sent = self.sent.len();
        let answers = |all: &[Message]| {
            let mut answers: BTreeMap<String, usize> = BTreeMap::new();
            // A result in several parts is one answer.
            for message in all.iter().filter(|message| message.topic == "dtorrent/home/result") {
                let result = message.json();
                if result["part"].is_null() || result["part"] == 1 {
                    *answers.entry(result["id"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
                }
            }
            answers
        };
        let enough = |all: &[Message]| (answers(all).len() >= sent).then(|| answers(all));
        let answers = self.world.recorder.wait_within(Duration::from_secs(300), "a result for each", enough).await;
        let once = self.sent.iter().filter(|id| answers.get(*id) == Some(&1)).count();
        let is_alive = self.world.bridge().process().exit_status().unwrap().is_none();
        let peak = self.world.bridge().peak_bytes();
        println!("{sent} commands, {once} answered once; alive: {is_alive}; at most {} MiB resident", peak >> 20);
        let health = figures("/healthz", &mut self.health);
        let events = figures("events of the other server", &mut self.events);
        is_alive && once == sent && health < HEALTH_TIME_MAX && events < EVENT_TIME_MAX
    }
}

/// Prints how long something took, and returns the longest.
fn figures(what: &str, times: &mut [Duration]) -> Duration {
    times.sort();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{what}: {} times, median {median:?}, longest {longest:?}", times.len());
    longest
}

async fn load_with_long_name(world: &World, number: usize) {
    let name = format!("{number}{}", "n".repeat(9 << 20));
    let info =
        format!("d6:lengthi20000e4:name{}:{name}12:piece lengthi16384e6:pieces40:{}e", name.len(), "x".repeat(40));
    let torrent = format!("d8:announce18:http://127.0.0.1:94:info{info}e").into_bytes();
    let path = world.folder.join(format!("{}.torrent", InfoHash::of_torrent(&torrent).unwrap()));
    std::fs::write(&path, torrent).unwrap();
    let path = path.to_string_lossy();
    world.home.rpc.call("load.normal", &[Argument::Text(""), Argument::Text(&path)]).await.unwrap();
}
