//! Latency of a `pause` from the command to its result, compared with the same calls to rTorrent.
//!
//! The real program between a real mosquitto and a real rTorrent with many seeding torrents. A result means that the
//! watcher has observed the effect, so a round trip includes a poll; the raw call is followed by one read of one torrent.
//! An old rTorrent must not announce a torrent more than three times in ten seconds, so each torrent is paused once.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use dtorrent_peers::InfoHash;
use dtorrent_peers::mosquitto::{self, Mosquitto};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::{AsyncClient, Event, EventLoop, Incoming, MqttOptions};
use serde_json::{Value, json};

use crate::programs::{Bridge, Config};
use crate::rtorrents::{RtorrentPair, programs};
use crate::table::{Line, Measured, median, millis};

/// Number of torrents on the server, of those paused one by one, each way, and whether mosquitto sends small packets at once,
/// which it does not as it comes.
const ROUNDS: [(usize, usize, bool); 3] = [(60, 30, false), (60, 30, true), (5_000, 100, true)];

pub async fn run() -> anyhow::Result<Vec<Line>> {
    programs()?;
    let mut lines = Vec::new();
    for (count, samples, is_eager) in ROUNDS {
        lines.extend(round(count, samples, is_eager).await?);
    }
    Ok(lines)
}

async fn round(count: usize, samples: usize, is_eager: bool) -> anyhow::Result<Vec<Line>> {
    let folder = tempfile::tempdir_in(".")?;
    let lines = vec!["log_dest none".to_owned(), format!("set_tcp_nodelay {is_eager}")];
    let options = mosquitto::Options { lines, ..mosquitto::Options::default() };
    let broker = Mosquitto::start(&folder.path().join("broker"), &options).await?;
    let pair = RtorrentPair::start(folder.path(), count, 0).await?;
    let home = &pair.home;
    let hashes = home.hashes().await?;
    let config = Config::new(&folder.path().join("bridge"), vec![("home".to_owned(), home.url())], broker.url());
    let bridge = Bridge::start(&config)?;
    let mut client = Client::connect(broker.port).await?;
    client.until_known("seeding", count).await?;

    let (mut raw, mut whole) = (Vec::new(), Vec::new());
    // Not alternating: a pause by another client makes the bridge read all torrents, and the next command would wait for it.
    for hash in &hashes[..samples] {
        let began = Instant::now();
        home.act(*hash, "d.pause", &[]).await?;
        ensure!(home.get(*hash, "d.is_active").await? == "0", "rTorrent does not show it");
        raw.push(began.elapsed());
    }
    client.until_known("paused", samples).await?;
    for hash in &hashes[samples..2 * samples] {
        let began = Instant::now();
        let result = client.ask(&format!("torrent/{hash}/command/pause"), json!({})).await?;
        whole.push(began.elapsed());
        ensure!(result["status"] == "ok", "{result}");
    }
    let broker_is = if is_eager { "" } else { ", mosquitto as it comes" };
    let mut lines = vec![line(format!("`pause` to its result, one of {count}{broker_is}"), whole, raw)];
    let rest: Vec<InfoHash> = hashes.iter().skip(2 * samples).copied().collect();
    if !rest.is_empty() {
        // Half of the torrents each way.
        let (bridged, bare) = rest.split_at(rest.len() / 2);
        let began = Instant::now();
        for hash in bare {
            home.act(*hash, "d.pause", &[]).await?;
        }
        let bare_took = began.elapsed();
        let began = Instant::now();
        let result = client.ask("command/pause", json!({"hashes": bridged, "ttl": "10m"})).await?;
        ensure!(result["status"] == "ok", "{}", result["error"]);
        lines.push(line(
            format!("one `pause` for {} of {count}", bridged.len()),
            vec![began.elapsed()],
            vec![bare_took],
        ));
    }
    bridge.stop().await?;
    Ok(lines)
}

fn line(what: String, whole: Vec<Duration>, raw: Vec<Duration>) -> Line {
    let shown = |times: &[Duration]| {
        let mut times = times.to_vec();
        times.sort();
        let at = |part: usize| millis(times[(times.len() * part / 100).min(times.len() - 1)]);
        if times.len() == 1 { at(50) } else { format!("p50 {}, p99 {}", at(50), at(99)) }
    };
    let middle = |times: &[Duration]| median(times.iter().map(Duration::as_secs_f64).collect());
    Line {
        what,
        figure: shown(&whole),
        baseline: format!("raw calls: {}", shown(&raw)),
        measured: Measured::snapshot(middle(&whole) / middle(&raw), "×"),
        reason: "",
    }
}

struct Client {
    client: AsyncClient,
    events: EventLoop,
    asked: usize,
}

impl Client {
    async fn connect(port: u16) -> anyhow::Result<Self> {
        let mut options = MqttOptions::new("bench", "127.0.0.1", port);
        options.set_max_packet_size(Some(64 << 20));
        let (client, events) = AsyncClient::new(options, 100);
        client.subscribe("dtorrent/+/result", QoS::AtLeastOnce).await?;
        let mut connected = Self { client, events, asked: 0 };
        while !matches!(connected.events.poll().await?, Event::Incoming(Incoming::SubAck(_))) {}
        Ok(connected)
    }

    async fn ask(&mut self, below: &str, body: Value) -> anyhow::Result<Value> {
        self.ask_within(Duration::from_secs(300), below, body).await
    }

    async fn ask_within(&mut self, limit: Duration, below: &str, mut body: Value) -> anyhow::Result<Value> {
        self.asked += 1;
        let id = format!("bench-{}", self.asked);
        body["id"] = json!(id);
        self.client.publish(format!("dtorrent/home/{below}"), QoS::AtLeastOnce, false, body.to_string()).await?;
        let answer = async {
            loop {
                if let Event::Incoming(Incoming::Publish(publish)) = self.events.poll().await? {
                    let result: Value = serde_json::from_slice(&publish.payload)?;
                    if result["id"] == id.as_str() {
                        return anyhow::Ok(result);
                    }
                }
            }
        };
        tokio::time::timeout(limit, answer).await.context("no result")?
    }

    async fn until_known(&mut self, status: &str, count: usize) -> anyhow::Result<()> {
        for _ in 0..300 {
            let body = json!({"page_size": 1, "filter": {"status": status}, "ttl": "1s"});
            // A command sent before the bridge has subscribed gets no result.
            let answer = self.ask_within(Duration::from_secs(1), "command/list", body).await;
            if answer.is_ok_and(|result| result["total"] == count) {
                return Ok(());
            }
        }
        bail!("the bridge does not know {count} torrents that are {status}")
    }
}
