//! Commands of every verb over a line that loses one exchange in twelve: each has one honest result.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dtorrent::model::MetainfoBuilder;
use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{Address, Argument, Listen, Options};
use futures_util::stream::{self, StreamExt as _};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::faulty::FaultyServer;
use crate::harness::recorder::{Command, Message, error_code};
use crate::harness::{Setup, World, base64, can_run};

const TORRENTS: usize = 170;
const COMMANDS: usize = 500;
/// Exchanges of a hundred that are lost.
const FAULTS_PERCENT: u32 = 8;
/// Limit of one exchange. Each of those that are lost takes as long, one after the other.
const TIMEOUT: Duration = Duration::from_millis(150);
/// Time to live, and the time after it for which the reference allows a command to go on.
const TTL: Duration = Duration::from_secs(20);
const END: Duration = Duration::from_secs(20);

/// A tracker that knows no peers, and counts who asks.
struct Tracker {
    url: String,
    asked: Arc<Mutex<BTreeMap<String, usize>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Tracker {
    #[allow(clippy::disallowed_methods)] // a test's own tasks, gone with its runtime
    async fn listen() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/announce", listener.local_addr().unwrap());
        let asked = Arc::<Mutex<BTreeMap<String, usize>>>::default();
        let of_task = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let asked = Arc::clone(&of_task);
                tokio::spawn(async move {
                    let mut request = vec![0; 4096];
                    let length = stream.read(&mut request).await.unwrap_or(0);
                    if let Some(hash) = announced(&request[..length]) {
                        *asked.lock().unwrap().entry(hash).or_default() += 1;
                    }
                    let body = "d8:intervali1800e5:peers0:e";
                    let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    // rTorrent may have given up.
                    stream.write_all(answer.as_bytes()).await.ok();
                });
            }
        });
        Self { url, asked, task }
    }

    fn count(&self, hash: InfoHash) -> usize {
        self.asked.lock().unwrap().get(&hash.to_string()).copied().unwrap_or(0)
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Returns the info-hash of an announce, in hex.
fn announced(request: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(request);
    let written = text.split_once("info_hash=")?.1.split(['&', ' ']).next()?.to_owned();
    let (mut bytes, mut rest) = (Vec::new(), written.as_bytes());
    while let [first, after @ ..] = rest {
        (bytes, rest) = match first {
            b'%' => {
                bytes.push(u8::from_str_radix(std::str::from_utf8(after.get(..2)?).ok()?, 16).ok()?);
                (bytes, &after[2..])
            }
            plain => {
                bytes.push(*plain);
                (bytes, after)
            }
        };
    }
    Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

struct Sent {
    verb: &'static str,
    body: Value,
    hash: Option<InfoHash>,
    /// Checks and announces of the torrent before it was sent.
    before: (usize, usize),
}

/// All that a run needs.
struct Run {
    world: World,
    server: FaultyServer,
    tracker: Tracker,
    rng: StdRng,
    seed: u64,
    made: usize,
    /// Every command, by its id.
    sent: BTreeMap<String, Sent>,
    outcomes: BTreeMap<String, usize>,
}

impl Run {
    async fn start(seed: u64) -> Self {
        let lines = vec![
            "throttle.up = slow,100".to_owned(),
            // A letter for each check that has ended.
            "method.set_key = event.download.hash_done, zz_checks, ((d.custom4.set, ((cat, ((d.custom4)), x))))"
                .to_owned(),
        ];
        let rtorrent = Options { listen: Listen::Tcp, lines, ..Options::default() };
        let server = format!("timeout = \"{}ms\"\nsweep = \"2s\"\nrpc = [\"d.custom2.set\"]", TIMEOUT.as_millis());
        let sink = "commands = [\"*\"]".to_owned();
        let mut world = World::new(Setup { rtorrent, server, sink, ..Setup::default() }).await;
        let (mut rng, tracker) = (StdRng::seed_from_u64(seed), Tracker::listen().await);
        for number in 0..9 {
            std::fs::create_dir(world.home.downloads.join(number.to_string())).unwrap();
        }
        let mut loads = Vec::new();
        for number in 0..TORRENTS {
            let content = tracked(seed, number, &tracker.url);
            if number % 3 == 0 {
                content.write_to(&world.home.downloads).unwrap();
            }
            loads.push((content.torrent, rng.random_bool(0.7)));
        }
        let load = async |(torrent, start): (Vec<u8>, bool)| world.home.load(&torrent, start).await.unwrap();
        stream::iter(loads).map(load).buffer_unordered(16).collect::<Vec<_>>().await;
        let Address::Tcp(address) = world.home.rpc.address else { unreachable!("it listens on a port") };
        let server = FaultyServer::to(address, TIMEOUT, seed).await;
        world.start_bridge_for(&[("home", &server.url())]).await;
        server.fail_at_random(FAULTS_PERCENT);
        Self { world, server, tracker, rng, seed, made: TORRENTS, sent: BTreeMap::new(), outcomes: BTreeMap::new() }
    }

    /// The torrent that no command but `rpc` is for.
    fn anchor(&self) -> InfoHash {
        tracked(self.seed, 0, &self.tracker.url).hash
    }

    /// Adds a command to a round; returns its id, topic and body.
    async fn add(&mut self, verb: &'static str, mut body: Value, hash: Option<InfoHash>) -> (String, String, String) {
        let id = format!("{verb} {}", self.sent.len());
        body["id"] = json!(id);
        body["ttl"] = json!(format!("{}s", TTL.as_secs()));
        let topic = match hash.filter(|_| verb != "add") {
            Some(hash) => format!("dtorrent/home/torrent/{hash}/command/{verb}"),
            None => format!("dtorrent/home/command/{verb}"),
        };
        let text = body.to_string();
        let before = match hash {
            Some(hash) if matches!(verb, "recheck" | "announce") => (self.checks(hash).await, self.tracker.count(hash)),
            _ => (0, 0),
        };
        self.sent.insert(id.clone(), Sent { verb, body, hash, before });
        (id, topic, text)
    }

    async fn checks(&self, hash: InfoHash) -> usize {
        self.world.home.get(hash, "d.custom4").await.unwrap().len()
    }

    /// Makes a round of commands: one for each torrent, so that its effect can be seen when all have their results.
    async fn round(&mut self) -> Vec<(String, String, String)> {
        let mut commands = Vec::new();
        let anchor = self.anchor();
        for hash in self.world.home.hashes().await.unwrap() {
            if hash != anchor {
                let (verb, body) = self.random_change();
                commands.push(self.add(verb, body, Some(hash)).await);
            }
        }
        while commands.len() < TORRENTS {
            self.made += 1;
            let content = tracked(self.seed, self.made, &self.tracker.url);
            let body = json!({
                "torrent": base64(&content.torrent), "label": "new", "priority": self.rng.random_range(0..4),
                "start": self.rng.random_bool(0.5), "custom": {"from": "the test"},
            });
            commands.push(self.add("add", body, Some(content.hash)).await);
        }
        let limit = self.rng.random_range(1..1000) * 1024;
        commands.push(self.add("limits", json!({"download_limit": limit, "upload_limit": limit}), None).await);
        commands.push(self.add("list", json!({"fields": ["hash"]}), None).await);
        let value = format!("value {}", self.sent.len());
        let body = json!({"method": "d.custom2.set", "params": [anchor.to_rpc(), value]});
        commands.push(self.add("rpc", body, None).await);
        let from =
            if self.rng.random_bool(0.5) { json!({"from_seq": self.rng.random_range(1..100)}) } else { json!({}) };
        commands.push(self.add("resync", from, None).await);
        commands
    }

    fn random_change(&mut self) -> (&'static str, Value) {
        let rng = &mut self.rng;
        let folder = self.world.home.downloads.join(rng.random_range(0..9).to_string());
        match rng.random_range(0..16) {
            0 => ("pause", json!({})),
            1 => ("resume", json!({})),
            2 => ("start", json!({})),
            3 => ("stop", json!({})),
            4 => ("recheck", json!({})),
            5 => ("announce", json!({})),
            6 => ("label", json!({"label": format!("label {}", rng.random_range(0..1000))})),
            7 => ("priority", json!({"priority": rng.random_range(0..4)})),
            8 => ("move", json!({"directory": folder})),
            9 => ("move", json!({"directory": folder, "data": true})),
            10 => ("throttle", json!({"throttle": if rng.random_bool(0.5) { "slow" } else { "" }})),
            11 => ("file_priority", json!({"files": [0], "priority": rng.random_range(0..3)})),
            12 => ("delete", json!({"data": rng.random_bool(0.5)})),
            13 => ("trackers", json!({"add": [format!("{}/{}", self.tracker.url, rng.random_range(0..1000))]})),
            14 => {
                let how = if rng.random_bool(0.5) { "disable" } else { "enable" };
                ("trackers", json!({how: [self.tracker.url]}))
            }
            _ => ("get", json!({"files": true, "trackers": true})),
        }
    }

    /// Waits for the result of a command, in time.
    async fn judge(&mut self, mark: usize, id: &str) -> Value {
        let find = |all: &[Message]| {
            let results = all[mark..].iter().filter(|message| message.topic.ends_with("/result"));
            results.map(Message::json).find(|result| result["id"] == *id)
        };
        let result = self.world.recorder.wait_within(TTL + 2 * END, id, find).await;
        assert!(Duration::from_millis(result["took_ms"].as_u64().unwrap()) < TTL + END, "{result}");
        let Sent { verb, body, .. } = &self.sent[id];
        let code = error_code(&result).as_str().unwrap_or("").to_owned();
        let status = result["status"].as_str().unwrap();
        let is_known = ["", "precondition", "unconfirmed", "client_offline"].contains(&code.as_str());
        assert!(is_known && (status == "ok") == code.is_empty(), "{body}: {result}");
        if code == "unconfirmed" {
            eprintln!("{body}: {result}");
        }
        *self.outcomes.entry(format!("{verb} {status} {code}")).or_default() += 1;
        result
    }

    /// Asserts that rTorrent itself shows what a command was `ok` for.
    async fn assert_shown(&self, sent: &Sent, there: &BTreeSet<InfoHash>) {
        let Sent { verb, body, hash, before } = sent;
        let home = &self.world.home;
        let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
        let Some(hash) = *hash else {
            match *verb {
                "limits" => {
                    for (key, getter) in [
                        ("download_limit", "throttle.global_down.max_rate"),
                        ("upload_limit", "throttle.global_up.max_rate"),
                    ] {
                        assert_eq!(
                            home.rpc.call(getter, &[Argument::Text("")]).await.unwrap(),
                            [body[key].to_string()]
                        );
                    }
                }
                "rpc" => assert_eq!(home.get(self.anchor(), "d.custom2").await.unwrap(), body["params"][1]),
                _ => {}
            }
            return;
        };
        let get = async |getter: &str| home.get(hash, getter).await.unwrap();
        assert_eq!(there.contains(&hash), *verb != "delete", "{verb} {body} of {hash}");
        match *verb {
            "pause" => assert_eq!((get("d.state").await, get("d.is_active").await), ("1".into(), "0".into()), "{hash}"),
            "resume" | "start" => home.wait_for(hash, "d.is_active", "1").await.unwrap(),
            "stop" => assert_eq!((get("d.state").await, get("d.is_active").await), ("0".into(), "0".into()), "{hash}"),
            "label" => assert_eq!(get("d.custom1").await.replace("%20", " "), text("label"), "{hash}"),
            "priority" => assert_eq!(get("d.priority").await, body["priority"].to_string(), "{hash}"),
            "move" => assert_eq!(get("d.directory").await, text("directory"), "{hash}"),
            "throttle" => assert_eq!(get("d.throttle_name").await, text("throttle"), "{hash}"),
            "recheck" => {
                let more = async || Ok(self.checks(hash).await > before.0);
                home.wait_until(&format!("{hash} to be checked"), more).await.unwrap();
            }
            "announce" => {
                let more = async || Ok(self.tracker.count(hash) > before.1);
                home.wait_until(&format!("{hash} to be announced"), more).await.unwrap();
            }
            "file_priority" => {
                let file = format!("{}:f0", hash.to_rpc());
                let now = home.rpc.call("f.priority", &[Argument::Text(&file)]).await.unwrap();
                assert_eq!(now, [body["priority"].to_string()], "{hash}");
            }
            "trackers" => {
                let hash = hash.to_rpc();
                let columns = [
                    Argument::Text(&hash),
                    Argument::Text(""),
                    Argument::Text("t.url="),
                    Argument::Text("t.is_enabled="),
                ];
                let rows = home.rpc.call("t.multicall", &columns).await.unwrap();
                for (how, is_on) in [("add", "1"), ("enable", "1"), ("disable", "0")] {
                    for url in body[how].as_array().into_iter().flatten() {
                        assert!(rows.chunks(2).any(|row| *url == *row[0] && row[1] == is_on), "{body}: {rows:?}");
                    }
                }
            }
            "add" => {
                assert_eq!(get("d.custom1").await, text("label"), "{hash}");
                assert_eq!(get("d.priority").await, body["priority"].to_string(), "{hash}");
                assert_eq!(get("d.state").await, if body["start"] == true { "1" } else { "0" }, "{hash}");
                let from = home.rpc.call("d.custom", &[Argument::Text(&hash.to_rpc()), Argument::Text("from")]).await;
                assert_eq!(from.unwrap(), ["the test"], "{hash}");
            }
            _ => {}
        }
    }

    /// Asserts that each event that a command caused names it, and no other does.
    fn assert_causes(&self, events: &[Value], unanswered: &BTreeSet<InfoHash>) {
        let mut wrong = Vec::new();
        for event in events.iter().filter(|event| event["hash"].is_string() && event["cause"] != "snapshot") {
            let (hash, kind) = (event["hash"].as_str().unwrap(), event["event_type"].as_str().unwrap());
            let is_right = match event["command_id"].as_str() {
                Some(id) => {
                    let Sent { verb, hash: of, .. } = &self.sent[id];
                    event["cause"] == "command"
                        && of.is_some_and(|of| of.to_string() == hash)
                        && effects_of(verb).contains(&kind)
                }
                None => {
                    // What was asked for without an answer may happen when its command has ended.
                    let is_late = unanswered.iter().any(|one| one.to_string() == hash);
                    event["cause"] == "observed" && (is_late || !changes(kind))
                }
            };
            if !is_right {
                wrong.push(format!("{kind} {hash} {} {}", event["cause"], event["command_id"]));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}

/// Whether an event of this kind comes from a command in this test: nobody else changes a torrent.
fn changes(kind: &str) -> bool {
    !["error", "error_cleared", "stalled", "unstalled", "metadata"].contains(&kind)
}

/// The kinds of events that a command of this verb may cause.
fn effects_of(verb: &str) -> &'static [&'static str] {
    match verb {
        "pause" => &["paused", "unstalled"],
        "resume" | "start" => &["started", "resumed", "checking", "checked", "error_cleared"],
        "stop" => &["stopped", "unstalled"],
        // One that fails lets the torrent go on.
        "delete" => &["removed", "stopped", "unstalled", "started", "paused", "resumed"],
        "add" => &["added", "moved", "label_changed", "priority_changed", "checking", "checked", "started"],
        "label" => &["label_changed"],
        "priority" => &["priority_changed"],
        "recheck" => &["checking", "checked", "resumed", "paused", "stopped", "unfinished", "error"],
        "move" => &[
            "moved",
            "stopped",
            "started",
            "paused",
            "resumed",
            "checking",
            "checked",
            "unstalled",
            "unfinished",
            "error",
        ],
        "throttle" => &["paused", "resumed"],
        "file_priority" => &["finished", "unfinished"],
        _ => &[],
    }
}

/// A torrent with this tracker.
fn tracked(seed: u64, number: usize, tracker: &str) -> Content {
    let content = Content::file(&format!("fault-{number}"), 50_000, seed.wrapping_add(number as u64));
    let (_, bytes) = &content.files[0];
    let torrent = MetainfoBuilder::single(content.name.clone(), 16_384).tracker(tracker).content(bytes).build();
    Content { hash: InfoHash::of_torrent(&torrent).unwrap(), torrent, ..content }
}

#[tokio::test]
async fn five_hundred_commands_over_a_failing_line_have_one_honest_result_each() {
    if !can_run() {
        return;
    }
    let seed = std::env::var("FAULT_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    eprintln!("FAULT_SEED={seed}");
    let mut run = Run::start(seed).await;
    let mut unanswered = BTreeSet::new();
    while run.sent.len() < COMMANDS {
        let mark = run.world.recorder.mark();
        let commands = run.round().await;
        for (_, topic, body) in &commands {
            run.world.recorder.send(Command::new(topic, body.clone())).await;
        }
        let mut results = Vec::new();
        for (id, ..) in &commands {
            results.push((id, run.judge(mark, id).await));
        }
        let there: BTreeSet<InfoHash> = run.world.home.hashes().await.unwrap().into_iter().collect();
        for (id, result) in results {
            let sent = &run.sent[id];
            let is_there = sent.hash.is_some_and(|hash| there.contains(&hash));
            // An `add` is done, or is not there.
            if result["status"] == "ok" || sent.verb == "add" && is_there {
                run.assert_shown(sent, &there).await;
            } else if error_code(&result) != "precondition" {
                unanswered.extend(sent.hash);
            }
        }
    }
    // Behind all results: a late second one is there by now.
    run.server.fail_at_random(0);
    run.world.recorder.command("home/command/list", json!({})).await;
    eprintln!("{:?}\n{:#?}", run.server.counts(), run.outcomes);
    for id in run.sent.keys() {
        let results = run.world.recorder.results(id);
        assert_eq!(results.len(), 1, "{results:?}");
    }
    run.assert_causes(&run.world.recorder.assert_gap_free("home"), &unanswered);
    let done: usize = run.outcomes.iter().filter(|(outcome, _)| outcome.contains(" ok ")).map(|(_, count)| count).sum();
    assert!(done * 10 >= run.sent.len() * 7, "{:#?}", run.outcomes);
}
