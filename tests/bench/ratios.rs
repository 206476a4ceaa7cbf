//! The cost of the bridge, each figure next to that of a bare program in the same run.
//!
//! `make bench` runs all and prints one table; `make bench ONLY=decode` runs one, or several:
//! `ONLY="decode diff"`. docs/benchmarks.md describes how each is measured, and why a line misses its bar. Rates depend
//! on the machine; the ratios are what counts.

mod decode;
mod drain;
mod first;
mod flood;
mod latency;
mod listing;
mod memory;
mod moving;
mod nats;
mod peer;
mod programs;
mod roundtrip;
mod rtorrents;
mod sample;
mod servers;
mod store;
mod table;

use std::time::Instant;

use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;

use self::table::Line;

type Bench = fn() -> LocalBoxFuture<'static, anyhow::Result<Vec<Line>>>;

/// The benches by name, each with whether a run without `ONLY` includes it.
const BENCHES: &[(&str, bool, Bench)] = &[
    ("decode", true, || async { decode::run() }.boxed_local()),
    ("rtorrent", true, || moving::run().boxed_local()),
    ("latency", true, || latency::run().boxed_local()),
    ("memory", true, || memory::run().boxed_local()),
    ("drain", true, || drain::run().boxed_local()),
    ("nats", true, || nats::run().boxed_local()),
    ("servers", true, || servers::run().boxed_local()),
    ("roundtrip", true, || roundtrip::run().boxed_local()),
    ("store", true, || store::run().boxed_local()),
    ("flood", false, || flood::run().boxed_local()),
    // A part of `rtorrent`, for work on it.
    ("first", false, || first::run().boxed_local()),
    // Loads torrents for minutes, so it runs on request only.
    ("large", false, || first::large().boxed_local()),
];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    if let Some(unknown) = asked.iter().find(|name| BENCHES.iter().all(|(known, ..)| known != name)) {
        let names: Vec<&str> = BENCHES.iter().map(|(name, ..)| *name).collect();
        anyhow::bail!("no bench is called {unknown}; there are: {}", names.join(" "));
    }
    let (mut lines, mut failed) = (Vec::new(), Vec::new());
    for (name, is_usual, run) in BENCHES {
        let is_asked = if asked.is_empty() { *is_usual } else { asked.iter().any(|asked| asked == name) };
        if !is_asked {
            continue;
        }
        let began = Instant::now();
        eprintln!("{name} …");
        // A bench that fails does not affect the others.
        match run().await {
            Ok(of_bench) => lines.extend(of_bench),
            Err(error) => {
                eprintln!("  {error:#}");
                failed.push(*name);
            }
        }
        eprintln!("{name}: {:.0} s", began.elapsed().as_secs_f64());
    }
    table::print(&lines);
    anyhow::ensure!(failed.is_empty(), "not measured: {}", failed.join(" "));
    Ok(())
}
