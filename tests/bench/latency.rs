//! Latency from a change in rTorrent to its event at a subscriber.
//!
//! Torrents of a small rTorrent are stopped and started at random moments. The bridge polls with an interval of a second;
//! the baseline is a bare loop that lists everything as often and records when it has read the change. A second run uses
//! hooks, where this version has them; its baseline is a bare message through the broker.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dtorrent::clients::rtorrent::calls::{Answers, Cell, Fault};
use dtorrent::clients::rtorrent::xmlrpc;
use dtorrent_peers::mosquitto::{self, Mosquitto};
use rumqttc::v5::mqttbytes::QoS;
use tokio_util::task::AbortOnDropHandle;

use crate::first::Listener;
use crate::listing::COLUMNS;
use crate::programs::{Bridge, Config, TIMEOUT};
use crate::rtorrents::{RtorrentPair, listing_request, programs, raw_exchange};
use crate::table::{Line, Measured, millis};

const TORRENTS: usize = 200;
const SAMPLES: usize = 120;
const INTERVAL: Duration = Duration::from_secs(1);

/// Times at which a torrent was observed as started or stopped.
type Seen = Arc<Mutex<HashMap<(String, bool), Vec<Instant>>>>;

pub async fn run() -> anyhow::Result<Vec<Line>> {
    programs()?;
    let folder = tempfile::tempdir_in(".")?;
    let options = mosquitto::Options { lines: vec!["log_dest none".to_owned()], ..Default::default() };
    let broker = Mosquitto::start(&folder.path().join("broker"), &options).await?;
    let pair = RtorrentPair::start(folder.path(), TORRENTS, 0).await?;
    let servers = vec![("home".to_owned(), pair.home.url())];
    let config = Config::new(&folder.path().join("bridge"), servers, broker.url());
    let of_broker = broker_alone(&broker).await?;

    let polled = samples(&pair, &broker, &config, true).await?;
    let [bridge_p50, bridge_p99] = p50_p99(polled.bridge);
    let [loop_p50, loop_p99] = p50_p99(polled.bare);
    let [broker_p50, broker_p99] = p50_p99(of_broker);
    let allowed = INTERVAL + Duration::from_millis(50);
    let mut lines = vec![Line {
        what: format!("change to subscriber, {TORRENTS} torrents, 1 s"),
        figure: format!("p50 {}, p99 {}", millis(bridge_p50), millis(bridge_p99)),
        baseline: format!("a raw loop: p50 {}, p99 {}", millis(loop_p50), millis(loop_p99)),
        measured: Measured::at_most(bridge_p99.as_secs_f64() * 1e3, allowed.as_secs_f64() * 1e3, " ms"),
        reason: "a change that just missed a poll waits for the next; that, the commit and the way out take the rest",
    }];
    let hooked = Config { server_lines: "hooks = true".to_owned(), folder: folder.path().join("hooked"), ..config };
    if hooked.is_taken()? {
        let hooked = samples(&pair, &broker, &hooked, false).await?;
        let [p50, p99] = p50_p99(hooked.bridge);
        lines.push(Line {
            what: "the same with hooks".to_owned(),
            figure: format!("p50 {}, p99 {}", millis(p50), millis(p99)),
            baseline: format!("a message through the broker: p50 {}, p99 {}", millis(broker_p50), millis(broker_p99)),
            measured: Measured::at_most(p99.saturating_sub(broker_p99).as_secs_f64() * 1e3, 50.0, " ms more"),
            reason: "of two hook signals within 100 ms the second waits for the end of that time; each poll is synced before it is published",
        });
    } else {
        eprintln!("  this version refuses hooks = true, so hooks are not measured");
    }
    Ok(lines)
}

pub fn p50_p99(mut times: Vec<Duration>) -> [Duration; 2] {
    times.sort();
    [50, 99].map(|part| times[(times.len() * part / 100).min(times.len() - 1)])
}

struct Samples {
    bridge: Vec<Duration>,
    /// Times of the bare loop; empty without one.
    bare: Vec<Duration>,
}

async fn samples(pair: &RtorrentPair, broker: &Mosquitto, config: &Config, with_loop: bool) -> anyhow::Result<Samples> {
    let mut bridge = Bridge::start(config)?;
    bridge.at_rest(1, TORRENTS).await?;
    let (received, polled) = (Seen::default(), Seen::default());
    let _subscriber = subscribe(broker, &received).await?;
    let _polling = if with_loop { Some(poll(pair, &polled).await?) } else { None };
    let hashes = pair.home.hashes().await?;
    let mut changes: Vec<(String, bool, Instant)> = Vec::new();
    for sample in 0..SAMPLES {
        // The changes of one torrent are far apart, so that each has its own event.
        let hash = hashes[sample % (hashes.len() / 2)];
        let is_start = pair.home.get(hash, "d.state").await? == "0";
        let began = Instant::now();
        pair.home.act(hash, if is_start { "d.start" } else { "d.stop" }, &[]).await?;
        changes.push((hash.to_string(), is_start, began));
        tokio::time::sleep(Duration::from_millis(150 + u64::from(rand::random::<u8>()))).await;
    }
    let of = |seen: &Seen| -> Option<Vec<Duration>> {
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let delay = |(hash, is_start, began): &(String, bool, Instant)| {
            let times = seen.get(&(hash.clone(), *is_start))?;
            times.iter().find(|time| *time > began).map(|time| *time - *began)
        };
        changes.iter().map(delay).collect()
    };
    let deadline = Instant::now() + TIMEOUT;
    let samples = loop {
        let bare = if with_loop { of(&polled) } else { Some(Vec::new()) };
        if let (Some(bridge), Some(bare)) = (of(&received), bare) {
            break Samples { bridge, bare };
        }
        ensure!(Instant::now() < deadline, "not every change arrived");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    bridge.stop().await?;
    Ok(samples)
}

fn note(seen: &Seen, hash: &str, is_started: bool) {
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    seen.entry((hash.to_owned(), is_started)).or_default().push(Instant::now());
}

/// Records the events from the broker.
async fn subscribe(broker: &Mosquitto, seen: &Seen) -> anyhow::Result<AbortOnDropHandle<()>> {
    let mut listener = Listener::start(broker, "dtorrent/home/torrent/+/event/+").await?;
    let seen = Arc::clone(seen);
    #[allow(clippy::disallowed_methods, reason = "it ends with its handle")]
    let task = tokio::spawn(async move {
        while let Ok((topic, _)) = listener.next().await {
            let levels: Vec<&str> = topic.split('/').collect();
            // `started` and `stopped`, or `resumed` and `paused`, depending on how rTorrent shows the change.
            match levels.as_slice() {
                [.., hash, _, "started" | "resumed"] => note(&seen, hash, true),
                [.., hash, _, "stopped" | "paused"] => note(&seen, hash, false),
                _ => {}
            }
        }
    });
    Ok(AbortOnDropHandle::new(task))
}

/// Lists everything each second and records changes; the first listing is complete when this returns.
async fn poll(pair: &RtorrentPair, seen: &Seen) -> anyhow::Result<AbortOnDropHandle<()>> {
    #[derive(Default)]
    struct States(HashMap<String, bool>);
    impl Answers for States {
        fn row(&mut self, _: usize, cells: &[Cell<'_>]) {
            if let [Cell::Text(hash), _, Cell::Int(state), ..] = cells {
                self.0.insert(String::from_utf8_lossy(hash).to_ascii_lowercase(), *state != 0);
            }
        }
        fn scalar(&mut self, _: usize, _: Cell<'_>) {}
        fn broken_row(&mut self, _: usize) {}
        fn fault(&mut self, _: usize, _: Fault) {}
    }
    let (rpc, seen) = (pair.home.rpc.clone(), Arc::clone(seen));
    let request = listing_request(COLUMNS);
    let mut first = States::default();
    let is_read = xmlrpc::scan(&raw_exchange(&rpc, &request).await?, &mut first).is_ok();
    ensure!(is_read, "the first listing cannot be read");
    let mut known = first.0;
    #[allow(clippy::disallowed_methods, reason = "it ends with its handle")]
    let task = tokio::spawn(async move {
        let mut interval = tokio::time::interval(INTERVAL);
        loop {
            interval.tick().await;
            let Ok(answer) = raw_exchange(&rpc, &request).await else { continue };
            let mut states = States::default();
            if xmlrpc::scan(&answer, &mut states).is_err() {
                continue;
            }
            for (hash, state) in &states.0 {
                if known.get(hash).is_some_and(|before| before != state) {
                    note(&seen, hash, *state);
                }
            }
            known = states.0;
        }
    });
    Ok(AbortOnDropHandle::new(task))
}

/// Measures a message from a publisher through the broker to a subscriber.
async fn broker_alone(broker: &Mosquitto) -> anyhow::Result<Vec<Duration>> {
    let mut listener = Listener::start(broker, "bare").await?;
    let options = rumqttc::v5::MqttOptions::new("bare", "127.0.0.1", broker.port);
    let (client, mut events) = rumqttc::v5::AsyncClient::new(options, 10);
    #[allow(clippy::disallowed_methods, reason = "it ends with its handle")]
    let _sending = AbortOnDropHandle::new(tokio::spawn(async move { while events.poll().await.is_ok() {} }));
    let mut times = Vec::new();
    for _ in 0..200 {
        let began = Instant::now();
        client.publish("bare", QoS::AtLeastOnce, false, vec![b'x'; 900]).await?;
        tokio::time::timeout(TIMEOUT, listener.next()).await.context("the broker passes nothing on")??;
        times.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(times)
}
