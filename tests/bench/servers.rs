//! Many servers in one bridge: cost of each, and isolation from one that hangs.

use std::path::Path;
use std::time::{Duration, Instant};

use dtorrent_peers::mosquitto::{self, Mosquitto};

use crate::peer::Peer;
use crate::programs::{Bridge, Config, cpu};
use crate::table::{Line, Measured, millis, short};

const TORRENTS: usize = 1_000;
const WATCHED: Duration = Duration::from_secs(15);

pub async fn run() -> anyhow::Result<Vec<Line>> {
    let folder = tempfile::tempdir_in(".")?;
    let lines = ["log_dest none", "max_queued_messages 1000000"].map(str::to_owned).to_vec();
    let broker =
        Mosquitto::start(&folder.path().join("broker"), &mosquitto::Options { lines, ..Default::default() }).await?;
    let one = watch(folder.path(), &broker, 1, false).await?;
    let mut lines = Vec::new();
    for (count, is_one_hanging) in [(10, false), (10, true), (50, false)] {
        let many = watch(folder.path(), &broker, count, is_one_hanging).await?;
        let answering = if is_one_hanging { count - 1 } else { count };
        let each = many.cpu / answering as f64;
        if !is_one_hanging {
            lines.push(Line {
                what: format!("bridge CPU for each of {count} servers × {TORRENTS}"),
                figure: format!("{} % of a core", short(each * 100.0)),
                baseline: format!("for a single one: {} %", short(one.cpu * 100.0)),
                measured: Measured::at_most(each / one.cpu, 1.1, "×"),
                reason: "",
            });
        }
        let which = if is_one_hanging { "one of them hanging" } else { "all well" };
        lines.push(Line {
            what: format!("longest pause between two polls, {count} servers, {which}"),
            figure: millis(many.longest_pause),
            baseline: format!("for a single one: {}", millis(one.longest_pause)),
            measured: Measured::at_most(many.longest_pause.as_secs_f64() / one.longest_pause.as_secs_f64(), 1.5, "×"),
            reason: "the machine has no time left: polls, the peers and the broker share its cores",
        });
    }
    Ok(lines)
}

struct Watched {
    /// Seconds of processor time per second.
    cpu: f64,
    /// Time between two polls of an answering server, measured at the peer.
    longest_pause: Duration,
}

async fn watch(folder: &Path, broker: &Mosquitto, count: usize, is_one_hanging: bool) -> anyhow::Result<Watched> {
    let name = format!("{count}-{is_one_hanging}");
    let home = folder.join(&name);
    std::fs::create_dir_all(&home)?;
    let peers: Vec<Peer> = (0..count)
        .map(|number| Peer::start(&home.join(format!("{number}.sock")), TORRENTS))
        .collect::<Result<_, _>>()?;
    let servers = peers.iter().enumerate().map(|(number, peer)| (format!("s{number}"), peer.url())).collect();
    let config = Config::new(&home, servers, broker.url());
    // The initial snapshot is complete before the measurement.
    let mut first = Bridge::start(&config)?;
    first.at_rest(count, count * TORRENTS).await?;
    first.stop().await?;
    let mut bridge = Bridge::start(&config)?;
    bridge.at_rest(count, count * TORRENTS).await?;
    if is_one_hanging {
        peers[0].hang();
    }
    for peer in &peers {
        peer.received(|received| received.listings.clear());
    }
    let (before, began) = (cpu(bridge.pid())?, Instant::now());
    tokio::time::sleep(WATCHED).await;
    let share = (cpu(bridge.pid())? - before).as_secs_f64() / began.elapsed().as_secs_f64();
    let pause = |peer: &Peer| {
        peer.received(|received| {
            received.listings.windows(2).map(|pair| pair[1].0 - pair[0].0).max().unwrap_or(WATCHED)
        })
    };
    let longest_pause = peers.iter().skip(usize::from(is_one_hanging)).map(pause).max().unwrap_or_default();
    bridge.stop().await?;
    Ok(Watched { cpu: share, longest_pause })
}
