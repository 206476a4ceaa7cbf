//! The guarantees of docs/delivery.md, with every program killed, cut off, full or hung.
//!
//! To inject a fault at an exact point, the proxy holds a packet back, or the test reads from the database that a step
//! was done. No test sleeps for a fixed time.

mod broker;
mod consumer;
mod dead_letters;
mod kills;
mod life_cycle;
mod rtorrent;
mod signals;
mod state;

use std::collections::BTreeSet;

use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::mosquitto;
use dtorrent_peers::rtorrent::{Argument, Rtorrent};
use serde_json::Value;

use crate::harness::World;
use crate::harness::recorder::{Message, events_in};

/// Returns a broker without a limit on queued messages, so that it drops none on the way to the recorder.
pub fn patient_broker() -> mosquitto::Options {
    let lines = ["max_inflight_messages 5000", "max_queued_messages 100000"].map(str::to_owned).into();
    mosquitto::Options { lines, ..mosquitto::Options::default() }
}

/// Loads torrents `first..first + count`, without waiting for each.
pub async fn load_many(rtorrent: &Rtorrent, first: u64, count: u64) -> Vec<InfoHash> {
    let mut hashes = Vec::new();
    for number in first..first + count {
        let content = Content::file(&format!("n{number}"), 1_000, number);
        rtorrent.rpc.call("load.raw", &[Argument::Text(""), Argument::Bytes(&content.torrent)]).await.unwrap();
        hashes.push(content.hash);
    }
    rtorrent
        .wait_until("all to be loaded", async || {
            let there: BTreeSet<InfoHash> = rtorrent.hashes().await?.into_iter().collect();
            Ok(hashes.iter().all(|hash| there.contains(hash)))
        })
        .await
        .unwrap();
    hashes
}

/// Gives all torrents a label at once.
pub async fn label_all(rtorrent: &Rtorrent, label: &str) {
    let column = format!("d.custom1.set={label}");
    let arguments = ["", "main", &column].map(Argument::Text);
    rtorrent.rpc.call("d.multicall2", &arguments).await.unwrap();
}

/// Loads one more torrent and waits for its event: events before it have then arrived, too.
async fn wait_for_newcomer(world: &World) -> InfoHash {
    let content = Content::file("newcomer", 1_000, 1 << 40);
    world.home.load(&content.torrent, false).await.unwrap();
    world.recorder.event("home", "added", content.hash).await;
    let last = world.database().last_seq("home");
    let is_last = |event: &Value| event["seq"].as_u64() >= Some(last);
    let newest = |all: &[Message]| events_in(&all[all.len().saturating_sub(1000)..], "home").iter().any(is_last);
    world.recorder.wait_for("the last event", |all| newest(all).then_some(())).await;
    content.hash
}

fn count(events: &[Value], kind: &str) -> usize {
    events.iter().filter(|event| event["event_type"] == kind).count()
}

/// Returns the kinds of one torrent's events, in order.
fn kinds_of(events: &[Value], hash: InfoHash) -> Vec<String> {
    let hash = hash.to_string();
    let of_torrent = events.iter().filter(|event| event["hash"] == hash.as_str());
    of_torrent.map(|event| event["event_type"].as_str().unwrap().to_owned()).collect()
}
