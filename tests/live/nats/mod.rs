//! NATS: the contract on Debian's nats-server and on a current one.

mod bridge;
mod cluster;
mod examples;
mod faults;
mod logins;
mod memory;
mod outages;
mod requests;
mod roles;

use std::path::Path;

use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use serde_json::Value;

use crate::harness::nats::{NatsServer, Subscriber, assert_once_in_order, stored, until};
use crate::harness::{Setup, World};

/// Returns a setup with a NATS broker besides the MQTT one, with further lines.
fn bus(server: &NatsServer, lines: &str) -> Setup {
    bus_at(&server.url(), lines)
}

fn bus_at(url: &str, lines: &str) -> Setup {
    let sink = format!("[brokers.bus]\nkind = \"nats\"\nurl = \"{url}\"\n{lines}\n");
    Setup { sink, ..Setup::default() }
}

/// Returns the version of a server, `2.9.10`, for messages of a test.
fn version(program: &Path) -> String {
    let output = std::process::Command::new(program).arg("--version").output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Changes the label of a torrent and waits for the event on MQTT; returns its number.
async fn label(world: &World, hash: InfoHash, label: &str) -> u64 {
    let result = world
        .recorder
        .command(&format!("home/torrent/{hash}/command/label"), serde_json::json!({"label": label}))
        .await;
    assert_eq!(result["status"], "ok", "{result}");
    let is_it = |event: &Value| event["event_type"] == "label_changed" && event["torrent"]["label"] == label;
    world
        .recorder
        .wait_for("the label", |all| {
            let events = crate::harness::recorder::events_in(all, "home");
            events.iter().find(|event| is_it(event)).and_then(|event| event["seq"].as_u64())
        })
        .await
}

/// Waits until the stream holds every event that MQTT received, once and in order.
async fn all_is_stored(world: &World, subscriber: &Subscriber) -> Vec<Value> {
    let last = world.database().last_seq("home");
    let is_there = async || {
        let stored = stored(&subscriber.client).await;
        stored.iter().any(|(_, _, event)| event["seq"] == last && event["server"] == "home").then_some(stored)
    };
    let stored = until("the stream holds the last event", is_there).await;
    assert_once_in_order(&stored, "home")
}

async fn load_one(world: &World) -> InfoHash {
    world.home.load(&Content::file("one", 1_000, 1).torrent, false).await.unwrap()
}
