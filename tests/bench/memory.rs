//! Memory of a bridge that has published everything and keeps polling.

use dtorrent_peers::mosquitto::{self, Mosquitto};

use crate::peer::Peer;
use crate::programs::{Bridge, Config, memory};
use crate::table::{Line, Measured, short};

const MEGABYTE: f64 = 1e6;

pub async fn run() -> anyhow::Result<Vec<Line>> {
    let folder = tempfile::tempdir_in(".")?;
    let lines = ["log_dest none", "max_queued_messages 1000000"].map(str::to_owned).to_vec();
    let broker =
        Mosquitto::start(&folder.path().join("broker"), &mosquitto::Options { lines, ..Default::default() }).await?;
    let mut lines = Vec::new();
    let mut empty = 0.0;
    for (count, bar) in [(0, None), (1_000, Some(15.0)), (10_000, Some(60.0)), (100_000, Some(400.0))] {
        let home = folder.path().join(format!("bridge-{count}"));
        let peer = Peer::start(&folder.path().join(format!("{count}.sock")), count)?;
        let config = Config::new(&home, vec![(format!("s{count}"), peer.url())], broker.url());
        let mut bridge = Bridge::start(&config)?;
        bridge.at_rest(1, count).await?;
        let resident = memory(bridge.pid())?;
        let [now, at_most, of_files] =
            [resident.now, resident.at_most, resident.of_files].map(|bytes| bytes as f64 / MEGABYTE);
        let largest = peer.received(|received| received.listings.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0));
        bridge.stop().await?;
        let Some(bar) = bar else {
            empty = now;
            continue;
        };
        lines.push(Line {
            what: format!("memory (RSS), {count} torrents"),
            figure: format!(
                "{} MB, {} of it the program's file; at most {} MB",
                short(now),
                short(of_files),
                short(at_most)
            ),
            baseline: format!(
                "an empty bridge: {} MB; largest answer {} MB",
                short(empty),
                short(largest as f64 / MEGABYTE)
            ),
            measured: Measured::at_most(now, bar, " MB"),
            reason: "the pages of the program's own file alone are most of the bar, and everything is held twice while it is compared",
        });
    }
    Ok(lines)
}
