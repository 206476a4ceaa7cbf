//! Retained messages: limited in number, and cleared with their torrents.

use std::collections::BTreeSet;

use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{Options, Rtorrent};
use serde_json::json;

use crate::harness::recorder::{Message, Recorder};
use crate::harness::{Setup, World, can_run};

#[tokio::test]
async fn above_the_limit_only_500_states_are_retained() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    const COUNT: u64 = 520;
    for number in 1..=COUNT {
        world.home.load(&Content::file(&format!("n{number}"), 100, number).torrent, false).await.unwrap();
    }
    world.start_bridge().await;
    let added =
        world.recorder.assert_gap_free("home").into_iter().filter(|event| event["event_type"] == "added").count();
    assert_eq!(added as u64, COUNT);
    // The event of a command arrives after everything that was in flight.
    let last = Content::file("n1", 100, 1).hash;
    world.recorder.command(&format!("home/torrent/{last}/command/label"), json!({"label": "last"})).await;
    world.recorder.event("home", "label_changed", last).await;
    // A state above the limit is published once, without the retain flag.
    let states = |all: &[Message]| {
        let topics: BTreeSet<&str> = all.iter().map(|m| m.topic.as_str()).filter(|t| t.ends_with("/state")).collect();
        (topics.len() as u64 == COUNT).then_some(())
    };
    world.recorder.wait_for("all states", states).await;
    let late = Recorder::listen(world.broker.port).await;
    late.wait_for_last("dtorrent/home/status", "online").await;
    let retained = late.all().iter().filter(|m| m.retain && m.topic.ends_with("/state")).count();
    assert!((1..=500).contains(&retained), "{retained} states are retained");
    // Once the torrents are within the limit, the missing states are retained at once.
    for number in 1..=COUNT - 490 {
        world.home.act(Content::file(&format!("n{number}"), 100, number).hash, "d.erase", &[]).await.unwrap();
    }
    let kept_now = |all: &[Message]| {
        let mut retained = BTreeSet::new();
        for message in all.iter().filter(|message| message.topic.ends_with("/state")) {
            match message.payload.is_empty() {
                true => retained.remove(&message.topic),
                false => retained.insert(message.topic.clone()),
            };
        }
        (retained.len() == 490).then_some(())
    };
    late.wait_for("all that is left", kept_now).await;
}

#[tokio::test]
async fn retained_states_of_a_server_that_left_the_config_are_cleared() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let attic = Rtorrent::start(&world.folder.join("attic"), &Options::default()).await.unwrap();
    let hash = attic.load(&Content::file("forgotten", 20_000, 1).torrent, false).await.unwrap();
    let (home_url, attic_url) = (world.home.url(), attic.url());
    world.start_bridge_for(&[("home", &home_url), ("attic", &attic_url)]).await;
    let state = format!("dtorrent/attic/torrent/{hash}/state");
    world.recorder.wait_for(&state, |all| all.iter().any(|m| m.topic == state).then_some(())).await;
    world.bridge().stop().await;
    world.start_bridge_for(&[("home", &home_url)]).await;
    for topic in [&state, "dtorrent/attic/status", "dtorrent/attic/stats"] {
        world.recorder.wait_for_last(topic, "").await;
    }
}

#[tokio::test]
async fn info_and_stats_are_retained_and_list_servers_and_sinks() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    world.home.load(&Content::file("one", 20_000, 1).torrent, false).await.unwrap();
    world.start_bridge().await;
    let topic = "dtorrent/home/stats";
    let has_one =
        |message: &crate::harness::recorder::Message| message.topic == topic && message.json()["torrents"] == 1;
    let stats = world.recorder.wait_for("stats of one torrent", |all| all.iter().find(|m| has_one(m)).cloned()).await;
    assert!(stats.retain);
    let stats = stats.json();
    assert_eq!((&stats["by_status"]["stopped"], &stats["by_status"]["seeding"]), (&json!(1), &json!(0)), "{stats}");
    assert!(stats["free_disk"].is_u64() || stats["free_disk"].is_null(), "{stats}");
    let topic = "dtorrent/bridge/main/info";
    let info = world.recorder.wait_for(topic, |all| all.iter().find(|m| m.topic == topic).cloned()).await;
    assert!(info.retain);
    assert_eq!(info.json()["version"], env!("CARGO_PKG_VERSION"));
}
