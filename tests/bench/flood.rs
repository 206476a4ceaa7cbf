//! Latency of commands while another client sends ten thousand a second.
//!
//! The real program between a real rTorrent and two real mosquittos. Through one of them a client sends commands for a
//! minute (`FLOOD_SECONDS`) at a fixed rate (`FLOOD_RATE`). Meanwhile other clients label a torrent each, one command
//! after the other: through the same broker, through the other broker, over HTTP. Each command of the flood has to get
//! exactly one result.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dtorrent_peers::InfoHash;
use dtorrent_peers::mosquitto::{self, Mosquitto};
use memchr::memmem;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::{AsyncClient, Event, Incoming, MqttOptions};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::programs::{Bridge, Config, cpu, memory};
use crate::rtorrents::{RtorrentPair, programs};
use crate::table::{Line, Measured, millis, short};

const TOKEN: &str = "flood";
/// Number of torrents of the flood: a few, whose own queues fill up, or many, which fill the queue of the server.
const FLOODED: [usize; 2] = [4, 2_000];
const VERBS: [&str; 8] = ["pause", "resume", "stop", "start", "announce", "recheck", "label", "explode"];
/// Limit on the latency of other clients, in seconds.
const BAR: f64 = 2.0;

fn from_environment(name: &str, usual: usize) -> anyhow::Result<usize> {
    std::env::var(name).map_or(Ok(usual), |text| text.parse().with_context(|| format!("{name}={text}")))
}

pub async fn run() -> anyhow::Result<Vec<Line>> {
    programs()?;
    let rate = from_environment("FLOOD_RATE", 10_000)?;
    let time = Duration::from_secs(from_environment("FLOOD_SECONDS", 60)? as u64);
    let mut lines = Vec::new();
    for flooded in FLOODED {
        lines.extend(round(flooded, rate, time).await?);
    }
    Ok(lines)
}

async fn round(flooded: usize, rate: usize, time: Duration) -> anyhow::Result<Vec<Line>> {
    let folder = tempfile::tempdir_in(".")?;
    // Commands that the broker drops get no result.
    let lines = ["log_dest none", "max_queued_messages 0", "max_inflight_messages 1000"].map(str::to_owned).to_vec();
    let options = mosquitto::Options { lines, ..mosquitto::Options::default() };
    let mut broker = Mosquitto::start(&folder.path().join("broker"), &options).await?;
    let other = Mosquitto::start(&folder.path().join("other"), &options).await?;
    let pair = RtorrentPair::start(folder.path(), flooded + 3, 0).await?;
    let mut hashes = pair.home.hashes().await?;
    let config = Config {
        broker_lines: format!("commands = [\"*\"]\n[brokers.c]\nkind = \"mqtt\"\nurl = \"{}\"\n", other.url()),
        token: Some(TOKEN),
        log_level: "info",
        ..Config::new(&folder.path().join("bridge"), vec![("home".to_owned(), pair.home.url())], broker.url())
    };
    let mut bridge = Bridge::start(&config)?;
    bridge.at_rest(1, flooded + 3).await?;

    let (mut received, mut received_by_other) =
        (Listener::connect(broker.port).await?, Listener::connect(other.port).await?);
    let mut own = || hashes.pop().context("a torrent for each");
    let (same, other_broker, http) = (own()?, own()?, own()?);
    let is_over = AtomicBool::new(false);
    let (cpu_before, broker_before) = (cpu(bridge.pid())?, cpu(broker.process().pid())?);
    let answers = Arc::clone(&received.answers);
    let flood = async {
        let sent = flood(broker.port, &hashes, rate, time).await;
        let (took, answered) = (time, answers.load(Ordering::SeqCst));
        is_over.store(true, Ordering::SeqCst);
        sent.map(|sent| (sent, answered, took))
    };
    let (flood, same, other_broker, http) = tokio::join!(
        flood,
        others(&is_over, async |number| received.label(same, number).await),
        others(&is_over, async |number| received_by_other.label(other_broker, number).await),
        others(&is_over, async |number| label_over_http(bridge.page(), http, number).await),
    );
    let (sent, answered, took) = flood?;
    let used = (cpu(bridge.pid())? - cpu_before, cpu(broker.process().pid())? - broker_before);
    let waited = Instant::now();
    while received.answers.load(Ordering::SeqCst) < sent {
        ensure!(
            waited.elapsed() < Duration::from_secs(600),
            "{} of {sent} were answered",
            received.answers.load(Ordering::SeqCst)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let behind = waited.elapsed();
    let peak = memory(bridge.pid())?.at_most;
    ensure!(received.twice.load(Ordering::SeqCst) == 0, "some were answered twice");
    eprintln!(
        "  {flooded} torrents: {sent} sent in {took:?}, {answered} answered by then, the rest {behind:?} later; at most \
         {} MiB; the bridge used {:?}, the broker {:?}",
        peak >> 20,
        used.0,
        used.1
    );
    bridge.stop().await?;
    let what =
        |which: &str| format!("others {which}, {:.0}/s for {flooded} torrents", sent as f64 / took.as_secs_f64());
    let baseline = format!("{} answered one by one, {} MiB", sent, peak >> 20);
    let mut shown = Vec::new();
    let reason = match flooded {
        0..100 => "",
        _ => {
            "a thousand torrents change at once: each poll reads all of them, and rTorrent is left nine tenths of its time"
        }
    };
    for (which, waits) in [("on the same broker", same?), ("on another broker", other_broker?), ("over HTTP", http?)] {
        shown.push(Line { reason, ..line(what(which), waits, baseline.clone())? });
    }
    Ok(shown)
}

/// Outcomes of the other clients' commands: latency and status of each.
type Waits = Vec<(Duration, String)>;

/// Sends commands in sequence until the end of the flood.
async fn others(
    is_over: &AtomicBool,
    mut ask: impl AsyncFnMut(usize) -> anyhow::Result<Value>,
) -> anyhow::Result<Waits> {
    let mut waits = Vec::new();
    while !is_over.load(Ordering::SeqCst) {
        let began = Instant::now();
        let result = ask(waits.len()).await?;
        waits.push((began.elapsed(), result["status"].as_str().unwrap_or("none").to_owned()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(waits)
}

fn line(what: String, mut waits: Waits, baseline: String) -> anyhow::Result<Line> {
    waits.sort();
    let mut statuses: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, status) in &waits {
        *statuses.entry(status).or_default() += 1;
    }
    ensure!(!waits.is_empty(), "no other client was served");
    let at = |part: usize| waits[(waits.len() * part / 100).min(waits.len() - 1)].0;
    Ok(Line {
        what,
        figure: format!("p50 {}, p99 {}, max {}; {statuses:?}", millis(at(50)), millis(at(99)), millis(at(100))),
        baseline,
        measured: Measured::at_most(at(99).as_secs_f64(), BAR, " s"),
        reason: "",
    })
}

/// Sends at a fixed rate. Returns the number of commands that the broker accepted.
async fn flood(port: u16, hashes: &[InfoHash], rate: usize, time: Duration) -> anyhow::Result<usize> {
    const EACH: Duration = Duration::from_millis(10);
    let mut options = MqttOptions::new("flood", "127.0.0.1", port);
    options.set_keep_alive(Duration::from_secs(600)).set_outgoing_inflight_upper_limit(u16::MAX - 1);
    let (client, mut events) = AsyncClient::new(options, rate);
    let (mut sent, mut accepted) = (0, 0);
    let began = Instant::now();
    let mut interval = tokio::time::interval(EACH);
    loop {
        tokio::select! {
            _ = interval.tick(), if began.elapsed() < time => {
                let due = (rate as f64 * began.elapsed().as_secs_f64()) as usize;
                while sent < due {
                    let (topic, body) = command(hashes, sent);
                    if client.try_publish(topic, QoS::AtLeastOnce, false, body).is_err() {
                        break;
                    }
                    sent += 1;
                }
            }
            event = events.poll() => {
                if matches!(event?, Event::Incoming(Incoming::PubAck(_))) {
                    accepted += 1;
                }
            }
        }
        if began.elapsed() >= time && accepted == sent {
            return Ok(sent);
        }
    }
}

fn command(hashes: &[InfoHash], number: usize) -> (String, String) {
    let (hash, verb) = (hashes[number % hashes.len()], VERBS[number / hashes.len() % VERBS.len()]);
    let label = if verb == "label" { r#", "label": "x""# } else { "" };
    (
        format!("dtorrent/home/torrent/{hash}/command/{verb}"),
        format!(r#"{{"id": "flood-{number}", "ttl": "20s"{label}}}"#),
    )
}

/// Counts the results of the flood, and forwards those of other clients.
struct Listener {
    client: AsyncClient,
    answers: Arc<AtomicUsize>,
    twice: Arc<AtomicUsize>,
    results: mpsc::Receiver<Value>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listener {
    #[allow(clippy::disallowed_methods)] // a bench's own task
    async fn connect(port: u16) -> anyhow::Result<Self> {
        let mut options = MqttOptions::new("listener", "127.0.0.1", port);
        options.set_max_packet_size(Some(64 << 20));
        let (client, mut events) = AsyncClient::new(options, 1_000);
        client.subscribe("dtorrent/home/result", QoS::AtLeastOnce).await?;
        while !matches!(events.poll().await?, Event::Incoming(Incoming::SubAck(_))) {}
        let (found, results) = mpsc::channel(100);
        let (answers, twice) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (counted, repeated) = (Arc::clone(&answers), Arc::clone(&twice));
        let task = tokio::spawn(async move {
            let mut seen = Vec::new();
            loop {
                let publish = match events.poll().await {
                    Ok(Event::Incoming(Incoming::Publish(publish))) => publish,
                    Ok(_) => continue,
                    Err(_) => return,
                };
                match number_of(&publish.payload) {
                    Some(number) => {
                        if seen.len() <= number {
                            seen.resize(number + 1, false);
                        }
                        if std::mem::replace(&mut seen[number], true) {
                            repeated.fetch_add(1, Ordering::SeqCst);
                        } else {
                            counted.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                    None => {
                        if found.send(serde_json::from_slice(&publish.payload).unwrap_or_default()).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Ok(Self { client, answers, twice, results, task })
    }

    async fn label(&mut self, hash: InfoHash, number: usize) -> anyhow::Result<Value> {
        let topic = format!("dtorrent/home/torrent/{hash}/command/label");
        let id = format!("other-{number}");
        let body = json!({"id": id, "label": format!("other {number}"), "ttl": "5m"});
        self.client.publish(topic, QoS::AtLeastOnce, false, body.to_string()).await?;
        let answer = async {
            loop {
                let result = self.results.recv().await.context("the receiver ended")?;
                if result["id"] == id.as_str() {
                    return anyhow::Ok(result);
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(300), answer).await.context("no result")?
    }
}

/// Returns the command of the flood that a result belongs to.
fn number_of(body: &[u8]) -> Option<usize> {
    let from = memmem::find(body, b"\"flood-")? + b"\"flood-".len();
    let length = body[from..].iter().position(|byte| *byte == b'"')?;
    std::str::from_utf8(&body[from..from + length]).ok()?.parse().ok()
}

async fn label_over_http(page: u16, hash: InfoHash, number: usize) -> anyhow::Result<Value> {
    let body = json!({"label": format!("other {number}"), "ttl": "5m"}).to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", page)).await?;
    let head = format!(
        "POST /api/v1/servers/home/torrents/{hash}/commands/label HTTP/1.1\r\nHost: 127.0.0.1:{page}\r\n\
         Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    serde_json::from_str(body).with_context(|| format!("{head}: {} bytes", short(body.len() as f64)))
}
