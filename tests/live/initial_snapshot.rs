//! Events of the initial snapshot and after restarts of the bridge.

use std::collections::BTreeSet;
use std::time::Duration;

use dtorrent_peers::content::Content;
use rumqttc::v5::mqttbytes::QoS;
use tokio::time::Instant;

use crate::harness::recorder::{Message, Recorder};
use crate::harness::{Setup, World, can_run};

fn contents(count: u64) -> Vec<Content> {
    (1..=count).map(|number| Content::file(&format!("file-{number}"), 50_000, number)).collect()
}

#[tokio::test]
async fn torrents_of_the_initial_snapshot_are_added_once_and_their_states_are_retained() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let contents = contents(3);
    for content in &contents {
        world.home.load(&content.torrent, false).await.unwrap();
    }
    world.start_bridge().await;

    let events = world.recorder.assert_gap_free("home");
    let added: Vec<_> = events.iter().filter(|event| event["event_type"] == "added").collect();
    let hashes: BTreeSet<_> = added.iter().map(|event| event["hash"].as_str().unwrap().to_owned()).collect();
    assert_eq!(hashes, contents.iter().map(|content| content.hash.to_string()).collect());
    assert_eq!(added.len(), 3, "each once");
    assert!(added.iter().all(|event| event["cause"] == "snapshot"), "{added:?}");
    assert_eq!(events.last().unwrap()["event_type"], "snapshot_done");

    // A late subscriber receives the states and the status, and no event.
    world
        .recorder
        .wait_for("three states", |all| (all.iter().filter(|m| m.topic.ends_with("/state")).count() >= 3).then_some(()))
        .await;
    let late = Recorder::listen(world.broker.port).await;
    for content in &contents {
        let topic = format!("dtorrent/home/torrent/{}/state", content.hash);
        let state =
            late.wait_for(&topic, |all| all.iter().find(|m| m.topic == topic && m.retain).cloned()).await.json();
        assert_eq!((&state["name"], &state["status"]), (&content.name.as_str().into(), &"stopped".into()), "{state}");
        assert_eq!(state["length"], 50_000);
        assert!(state.get("files").is_none(), "a state has no files");
    }
    late.wait_for_last("dtorrent/home/status", "online").await;
    late.wait_for_last("dtorrent/bridge/main/status", "online").await;
    assert!(late.all().iter().all(|message| !message.topic.contains("/event/")), "an event was retained");
}

#[tokio::test]
async fn files_of_the_initial_snapshot_are_not_published() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let contents = contents(3);
    for content in &contents {
        world.home.load(&content.torrent, false).await.unwrap();
    }
    world.start_bridge().await;
    // Of several torrents those with the lowest hash are published first, so whatever is due before comes before.
    let newcomers: Vec<_> =
        (10..13).map(|number| Content::file(&format!("newcomer-{number}"), 50_000, number)).collect();
    for content in &newcomers {
        world.home.load(&content.torrent, false).await.unwrap();
    }
    let files = |content: &Content| format!("dtorrent/home/torrent/{}/files", content.hash);
    for content in &newcomers {
        let topic = files(content);
        let is_there = |all: &[Message]| all.iter().any(|message| message.topic == topic).then_some(());
        world.recorder.wait_for("the files of a newcomer", is_there).await;
    }
    let published = world.recorder.all();
    for content in &contents {
        assert!(
            !published.iter().any(|message| message.topic == files(content)),
            "{} is of the snapshot",
            content.name
        );
    }
}

#[tokio::test]
async fn a_loaded_torrent_is_added_at_the_next_poll() {
    if !can_run() {
        return;
    }
    let setup = Setup { server: "interval = \"1s\"".to_owned(), ..Setup::default() };
    let world = World::running(setup).await;
    let content = Content::file("newcomer", 50_000, 1);
    let loaded_at = Instant::now();
    world.home.load(&content.torrent, false).await.unwrap();
    let event = world.recorder.event("home", "added", content.hash).await;
    // The interval of one second, and half a second for poll, commit and broker; another second for a busy machine.
    let all = world.recorder.all();
    let message = all.iter().find(|message| message.topic.ends_with("/event/added")).unwrap();
    let took = message.at.duration_since(loaded_at);
    assert!(took < Duration::from_millis(1500 + 1000), "it took {took:?}");
    assert_eq!(event["cause"], "observed");
    assert_eq!(event["torrent"]["finished"], false);

    world.home.act(content.hash, "d.erase", &[]).await.unwrap();
    world.recorder.event("home", "removed", content.hash).await;
    // The state of a removed torrent is cleared after `removed`.
    let topic = format!("dtorrent/home/torrent/{}/state", content.hash);
    world.recorder.wait_for_last(&topic, "").await;
    world.recorder.assert_gap_free("home");
}

#[tokio::test]
async fn a_restart_repeats_no_event_and_emits_the_changes_made_during_it() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let contents = contents(3);
    let [remaining, erased, new] = &contents[..] else { unreachable!() };
    world.home.load(&remaining.torrent, false).await.unwrap();
    world.home.load(&erased.torrent, false).await.unwrap();
    world.start_bridge().await;
    world.bridge().stop().await;
    let mark = world.recorder.mark();
    world.home.act(erased.hash, "d.erase", &[]).await.unwrap();
    world.home.load(&new.torrent, false).await.unwrap();
    world.bridge().restart();

    let added = world.recorder.event_after(mark, "home", "added", new.hash).await;
    assert_eq!(added["cause"], "recovered");
    let removed = world.recorder.event_after(mark, "home", "removed", erased.hash).await;
    assert_eq!(removed["cause"], "recovered");
    let topic = format!("dtorrent/home/torrent/{}/state", erased.hash);
    world.recorder.wait_for_last(&topic, "").await;
    let events = world.recorder.assert_gap_free("home");
    let of_stays = events.iter().filter(|event| event["hash"] == remaining.hash.to_string().as_str());
    assert_eq!(of_stays.count(), 1, "what stayed is not announced again");
    let snapshots = events.iter().filter(|event| event["event_type"] == "snapshot_done");
    assert_eq!(snapshots.count(), 1, "there is one first sight");
}

#[tokio::test]
async fn an_event_carries_its_cloudevents_attributes() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let content = Content::file("with properties", 50_000, 1);
    world.home.load(&content.torrent, false).await.unwrap();
    let event = world.recorder.event("home", "added", content.hash).await;
    let message = world.recorder.all().into_iter().find(|m| m.topic.ends_with("/event/added")).unwrap();
    let attribute = |name: &str| {
        let found = message.properties.user_properties.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    assert_eq!(attribute("specversion"), "1.0");
    assert_eq!(attribute("id"), event["id"].as_str().unwrap());
    assert_eq!(attribute("time"), event["time"].as_str().unwrap());
    for name in ["type", "source", "subject"] {
        assert!(!attribute(name).is_empty(), "{name} is missing");
    }
    assert!(message.properties.content_type.as_deref().is_some_and(|kind| kind.starts_with("application/json")));
    assert_eq!((message.retain, message.qos), (false, QoS::AtLeastOnce));
}
