//! Stops and crashes of the bridge, of rTorrent and of the broker.

use std::time::Duration;

use dtorrent_peers::content::Content;
use serde_json::json;
use tokio::time::Instant;

use crate::harness::recorder::{Command, Recorder};
use crate::harness::{Setup, World, can_run};

const STATUS: &str = "dtorrent/bridge/main/status";

#[tokio::test]
async fn offline_is_published_by_a_stopped_bridge_and_by_the_will_of_a_killed_one() {
    if !can_run() {
        return;
    }
    let mut world = World::running(Setup::default()).await;
    world.recorder.wait_for_last(STATUS, "online").await;
    world.bridge().stop().await;
    world.recorder.wait_for_last(STATUS, "offline").await;
    world.bridge().restart();
    world.recorder.wait_for_last(STATUS, "online").await;
    world.bridge().process().kill().unwrap();
    world.recorder.wait_for_last(STATUS, "offline").await;
    world.bridge().restart();
    world.recorder.wait_for_last(STATUS, "online").await;
    for message in world.recorder.all().iter().filter(|message| message.topic == STATUS) {
        assert!(message.retain, "{message:?}");
    }
}

#[tokio::test]
async fn a_killed_rtorrent_goes_offline_and_comes_back_without_false_events() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    for number in 1..=20 {
        let hash = world.home.load(&Content::file(&format!("n{number}"), 20_000, number).torrent, false).await.unwrap();
        world.home.act(hash, "d.save_full_session", &[]).await.unwrap();
    }
    world.start_bridge().await;
    let mark = world.recorder.mark();
    world.home.process().kill().unwrap();
    world.recorder.server_event_after(mark, "home", "server_offline").await;
    world.recorder.wait_for_last("dtorrent/home/status", "offline").await;
    world.home.restart().await.unwrap();
    world.recorder.server_event_after(mark, "home", "server_online").await;
    world.recorder.server_event_after(mark, "home", "server_restarted").await;
    world.recorder.wait_for_last("dtorrent/home/status", "online").await;
    // A new event has arrived, so all events before it have, too.
    let newcomer = world.home.load(&Content::file("newcomer", 20_000, 99).torrent, false).await.unwrap();
    world.recorder.event_after(mark, "home", "added", newcomer).await;
    let events = world.recorder.assert_gap_free("home");
    let count = |kind: &str| events.iter().filter(|event| event["event_type"] == kind).count();
    assert_eq!((count("removed"), count("added"), count("server_offline")), (0, 21, 1), "{events:?}");
}

#[tokio::test]
async fn a_frozen_rtorrent_removes_nothing() {
    if !can_run() {
        return;
    }
    let setup = Setup { server: "timeout = \"1s\"".to_owned(), ..Setup::default() };
    let mut world = World::new(setup).await;
    world.home.load(&Content::file("x", 20_000, 1).torrent, false).await.unwrap();
    world.start_bridge().await;
    let mark = world.recorder.mark();
    world.home.process().pause().unwrap();
    world.recorder.server_event_after(mark, "home", "server_offline").await;
    world.home.process().unpause().unwrap();
    world.recorder.server_event_after(mark, "home", "server_online").await;
    let events = world.recorder.assert_gap_free("home");
    assert!(events.iter().all(|event| event["event_type"] != "removed" && event["event_type"] != "server_restarted"));
}

#[tokio::test]
async fn events_during_a_broker_outage_arrive_after_it() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let hash = world.home.load(&Content::file("x", 20_000, 1).torrent, false).await.unwrap();
    world.start_bridge().await;
    // The broker loses its retained messages, and the recorder starts empty, as a new consumer.
    world.broker.process().kill().unwrap();
    let newcomer = world.home.load(&Content::file("y", 20_000, 2).torrent, false).await.unwrap();
    world.home.act(hash, "d.erase", &[]).await.unwrap();
    world.broker.restart().await.unwrap();
    world.recorder.event("home", "added", newcomer).await;
    world.recorder.event("home", "removed", hash).await;
    world.recorder.wait_for_last(STATUS, "online").await;
    let late = Recorder::listen(world.broker.port).await;
    let topic = format!("dtorrent/home/torrent/{newcomer}/state");
    late.wait_for(&topic, |all| all.iter().any(|m| m.topic == topic && m.retain).then_some(())).await;
    late.wait_for_last("dtorrent/home/status", "online").await;
}

#[tokio::test]
async fn a_bridge_killed_again_and_again_loses_no_event() {
    if !can_run() {
        return;
    }
    let mut world = World::running(Setup::default()).await;
    let mut hashes = Vec::new();
    for number in 1..=60 {
        let content = Content::file(&format!("n{number}"), 20_000, number);
        hashes.push(world.home.load(&content.torrent, false).await.unwrap());
        if number % 12 == 0 {
            // During the publication of the last torrents.
            world.recorder.event("home", "added", hashes[hashes.len() - 12]).await;
            world.bridge().process().kill().unwrap();
            world.bridge().restart();
        }
    }
    for hash in hashes {
        world.recorder.event("home", "added", hash).await;
    }
    let events = world.recorder.assert_gap_free("home");
    assert_eq!(events.iter().filter(|event| event["event_type"] == "added").count(), 60);
    // No will of a killed bridge is the latest status.
    let late = Recorder::listen(world.broker.port).await;
    late.wait_for_last(STATUS, "online").await;
}

#[tokio::test]
async fn a_command_waits_for_an_unreachable_rtorrent_until_it_expires() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let hash = world.home.load(&Content::file("x", 20_000, 1).torrent, false).await.unwrap();
    world.home.act(hash, "d.save_full_session", &[]).await.unwrap();
    world.start_bridge().await;
    world.home.process().kill().unwrap();
    world.recorder.server_event_after(0, "home", "server_offline").await;

    let topic = format!("home/torrent/{hash}/command/label");
    let expired = world.recorder.command(&topic, json!({"label": "too late", "ttl": "1s"})).await;
    assert_eq!(expired["status"], "expired", "{expired}");

    let full = format!("dtorrent/{topic}");
    world.recorder.send(Command::new(&full, r#"{"label": "in time", "id": "patient"}"#)).await;
    world.home.restart().await.unwrap();
    let done = world.recorder.result("patient").await;
    assert_eq!(done["status"], "ok", "{done}");
    assert_eq!(world.home.get(hash, "d.custom1").await.unwrap().replace("%20", " "), "in time");
    world.recorder.assert_gap_free("home");
}

#[tokio::test]
async fn the_bridge_stops_in_time_although_no_peer_answers() {
    if !can_run() {
        return;
    }
    let mut world = World::running(Setup::default()).await;
    world.home.process().pause().unwrap();
    world.broker.process().pause().unwrap();
    let asked_at = Instant::now();
    world.bridge().stop().await;
    // Ten seconds by contract §10; the rest for a busy machine.
    assert!(asked_at.elapsed() < Duration::from_secs(15), "it took {:?}", asked_at.elapsed());
}

#[tokio::test]
async fn an_unreachable_broker_does_not_delay_another() {
    if !can_run() {
        return;
    }
    let sink = "[brokers.away]\nkind = \"mqtt\"\nurl = \"mqtt://127.0.0.1:1\"".to_owned();
    let world = World::running(Setup { sink, ..Setup::default() }).await;
    let hash = world.home.load(&Content::file("x", 20_000, 1).torrent, false).await.unwrap();
    world.recorder.event("home", "added", hash).await;
    let result = world.recorder.command(&format!("home/torrent/{hash}/command/label"), json!({"label": "x"})).await;
    assert_eq!(result["status"], "ok", "{result}");
    world.recorder.assert_gap_free("home");
}
