//! The cost of monitoring: additional processor time of rTorrent, and processor time of the bridge.
//!
//! Three phases alternate: idle; a bare client lists everything each second; the bridge monitors, after its initial
//! snapshot. The processor time of the idle phase is subtracted from the other two.

use std::time::{Duration, Instant};

use anyhow::ensure;
use dtorrent_peers::mosquitto::{self, Mosquitto};

use crate::first;
use crate::listing::COLUMNS;
use crate::programs::{Bridge, Config, cpu};
use crate::rtorrents::{RtorrentPair, listing_request, programs, raw_exchange};
use crate::table::{Line, Measured, short};

const TORRENTS: usize = 5_000;
const MOVING: usize = 50;
const ROUNDS: usize = 2;
const IDLE: Duration = Duration::from_secs(12);
const BARE: Duration = Duration::from_secs(12);
/// Length of a phase, enough for one full poll.
const WATCHED: Duration = Duration::from_secs(30);

/// Measures everything that uses these five thousand torrents.
pub async fn run() -> anyhow::Result<Vec<Line>> {
    programs()?;
    let folder = tempfile::tempdir_in(".")?;
    let lines = ["log_dest none", "max_queued_messages 1000000"].map(str::to_owned).to_vec();
    let broker =
        Mosquitto::start(&folder.path().join("broker"), &mosquitto::Options { lines, ..Default::default() }).await?;
    let mut pair = RtorrentPair::start(folder.path(), TORRENTS - MOVING, MOVING).await?;
    let config = |name: &str| {
        let servers = vec![("home".to_owned(), pair.home.url())];
        Config::new(&folder.path().join(name), servers, broker.url())
    };
    let of_bridge = config("bridge");
    let firsts = [config("first-0"), config("first-1"), config("first-2")];
    let first = first::initial_snapshot(&pair, &broker, &firsts, TORRENTS).await?;
    tell_once(&of_bridge).await?;

    let moving = phases(&mut pair, &of_bridge).await?;
    let receiving = pair.receiving().await?;
    ensure!(receiving >= MOVING * 8 / 10, "only {receiving} of {MOVING} torrents move");
    pair.rest().await?;
    let resting = phases(&mut pair, &of_bridge).await?;
    Ok(vec![
        moving.line(format!("rTorrent CPU above idle, {TORRENTS}, {receiving} moving, 1 s"), 0.10),
        resting.line(format!("rTorrent CPU above idle, {TORRENTS}, none moving, 1 s"), 0.04),
        first,
        Line {
            what: format!("bridge CPU, {TORRENTS}, {receiving} moving, 1 s"),
            figure: percent(moving.of_bridge),
            baseline: format!("none moving: {}", percent(resting.of_bridge)),
            measured: Measured::at_most(moving.of_bridge * 100.0, 2.0, " %"),
            reason: "what moves is compared, written down and sent at each poll",
        },
    ])
}

/// Starts a bridge and waits until its initial snapshot is complete.
async fn tell_once(config: &Config) -> anyhow::Result<()> {
    let mut bridge = Bridge::start(config)?;
    bridge.at_rest(1, TORRENTS).await?;
    bridge.stop().await
}

/// Processor time per second: of rTorrent while idle, listed and monitored; of the bridge.
#[derive(Clone, Copy, Debug, Default)]
struct Shares {
    idle: f64,
    bare: f64,
    watched: f64,
    of_bridge: f64,
}

impl Shares {
    fn line(&self, what: String, bar: f64) -> Line {
        let [bare, watched] = [self.bare - self.idle, self.watched - self.idle];
        Line {
            what,
            figure: percent(watched),
            baseline: format!("a full listing each second: {} (idle {})", percent(bare), percent(self.idle)),
            measured: Measured::at_most(watched.max(0.0) / bare, bar, "×"),
            reason: "mostly one full poll in 30 s, and the reads of moving torrents",
        }
    }
}

fn percent(share: f64) -> String {
    format!("{} %", short(share * 100.0))
}

async fn phases(pair: &mut RtorrentPair, config: &Config) -> anyhow::Result<Shares> {
    let pid = pair.pid();
    let request = listing_request(COLUMNS);
    let mut sum = Shares::default();
    for _ in 0..ROUNDS {
        sum.idle += share(pid, pass(IDLE)).await?;
        sum.bare += share(pid, list_each_second(pair, &request)).await?;
        let mut bridge = Bridge::start(config)?;
        bridge.at_rest(1, TORRENTS).await?;
        let before = cpu(bridge.pid())?;
        sum.watched += share(pid, pass(WATCHED)).await?;
        sum.of_bridge += (cpu(bridge.pid())? - before).as_secs_f64() / WATCHED.as_secs_f64();
        bridge.stop().await?;
    }
    let rounds = ROUNDS as f64;
    Ok(Shares {
        idle: sum.idle / rounds,
        bare: sum.bare / rounds,
        watched: sum.watched / rounds,
        of_bridge: sum.of_bridge / rounds,
    })
}

async fn pass(time: Duration) -> anyhow::Result<()> {
    tokio::time::sleep(time).await;
    Ok(())
}

async fn list_each_second(pair: &RtorrentPair, request: &[u8]) -> anyhow::Result<()> {
    let mut interval = tokio::time::interval(Duration::from_secs(1));
    for _ in 0..BARE.as_secs() {
        interval.tick().await;
        raw_exchange(&pair.home.rpc, request).await?;
    }
    interval.tick().await; // the last second counts too
    Ok(())
}

/// Returns the share of one processor that a process uses meanwhile.
async fn share(pid: u32, meanwhile: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<f64> {
    let (before, began) = (cpu(pid)?, Instant::now());
    meanwhile.await?;
    Ok((cpu(pid)? - before).as_secs_f64() / began.elapsed().as_secs_f64())
}
