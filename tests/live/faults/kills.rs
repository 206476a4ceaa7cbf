//! `kill -9` of the bridge, at each step in the delivery of an event.

use std::collections::{BTreeMap, BTreeSet};

use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use serde_json::Value;

use super::{count, kinds_of, load_many, patient_broker, wait_for_newcomer};
use crate::harness::proxy::{Mode, PUBACK, PUBLISH};
use crate::harness::recorder::{Message, events_in};
use crate::harness::{Setup, World, can_run};

/// Returns the number of deliveries of each event.
fn deliveries(world: &World) -> BTreeMap<String, usize> {
    let mut deliveries = BTreeMap::new();
    for event in world.recorder.events("home") {
        *deliveries.entry(event["id"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    deliveries
}

#[tokio::test]
async fn killed_before_the_commit_it_emits_the_event_after_the_restart() {
    if !can_run() {
        return;
    }
    let mut world = World::running(Setup::default()).await;
    let written = world.database().last_seq("home");
    // The paused bridge cannot have seen this change.
    world.bridge().process().pause().unwrap();
    let hash = world.home.load(&Content::file("x", 1_000, 1).torrent, false).await.unwrap();
    world.bridge().process().kill().unwrap();
    assert_eq!(world.database().last_seq("home"), written);
    world.bridge().restart();
    let added = world.recorder.event("home", "added", hash).await;
    assert_eq!(added["cause"], "recovered", "{added}");
    assert_eq!(kinds_of(&world.recorder.assert_gap_free("home"), hash), ["added"]);
}

#[tokio::test]
async fn killed_between_commit_and_publish_it_sends_the_journaled_event() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let proxy = world.proxy_broker().await;
    world.start_bridge().await;
    proxy.requests(Mode::HoldPackets(PUBLISH));
    let written = world.database().last_seq("home");
    let hash = world.home.load(&Content::file("x", 1_000, 1).torrent, false).await.unwrap();
    world.database().until("the event is written down", |database| database.last_seq("home") == written + 1).await;
    world.bridge().process().kill().unwrap();
    proxy.cut();
    proxy.requests(Mode::Pass);
    assert!(world.recorder.events("home").iter().all(|event| event["event_type"] != "added"), "it got through");
    world.bridge().restart();
    let added = world.recorder.event("home", "added", hash).await;
    assert_eq!((&added["seq"], &added["cause"]), (&Value::from(written + 1), &Value::from("observed")), "{added}");
    assert_eq!(kinds_of(&world.recorder.assert_gap_free("home"), hash), ["added"]);
}

#[tokio::test]
async fn killed_between_publish_and_acknowledgement_it_sends_the_same_event_again() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let proxy = world.proxy_broker().await;
    world.start_bridge().await;
    proxy.answers(Mode::HoldPackets(PUBACK));
    let hash = world.home.load(&Content::file("x", 1_000, 1).torrent, false).await.unwrap();
    let first = world.recorder.event("home", "added", hash).await;
    let seq = first["seq"].as_u64().unwrap();
    let mark = world.recorder.mark();
    world.bridge().process().kill().unwrap();
    proxy.cut();
    proxy.answers(Mode::Pass);
    assert!(world.database().cursor("b", "home") < seq, "it is not acknowledged");
    world.bridge().restart();
    let again = world.recorder.event_after(mark, "home", "added", hash).await;
    assert_eq!(first, again, "the same id and the same body");
    world.recorder.assert_gap_free("home");
}

#[tokio::test]
async fn killed_between_acknowledgement_and_cursor_it_repeats_and_skips_nothing() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup { broker: patient_broker(), ..Setup::default() }).await;
    let proxy = world.proxy_broker().await;
    world.start_bridge().await;
    // The cursor is stored each second, so repeated kills right after an arrival precede it.
    let (mut unnoted, mut round) = (0, 0);
    while unnoted < 3 {
        let hashes = load_many(&world.home, round * 10, 10).await;
        let last = world.recorder.event("home", "added", *hashes.iter().max().unwrap()).await;
        world.bridge().process().kill().unwrap();
        unnoted += usize::from(world.database().cursor("b", "home") < last["seq"].as_u64().unwrap());
        world.bridge().restart();
        round += 1;
        assert!(round < 30, "the cursor was noted before each of the kills");
    }
    wait_for_newcomer(&world).await;
    let events = world.recorder.assert_gap_free("home");
    assert_eq!((count(&events, "added") as u64, count(&events, "removed")), (10 * round + 1, 0));
    assert!(deliveries(&world).values().any(|times| *times > 1), "something has to come twice");
    drop(proxy);
}

#[tokio::test]
async fn killed_fifty_times_under_load_it_loses_nothing_and_keeps_the_order() {
    if !can_run() {
        return;
    }
    let mut world = World::running(Setup { broker: patient_broker(), ..Setup::default() }).await;
    let mut alive = Vec::new();
    let (mut added, mut gone) = (0, Vec::new());
    let mut mark = 0;
    for round in 0..50_u64 {
        let newest = load_many(&world.home, round * 8, 8).await;
        let (event, state) = (format!("{}/event/added", newest[7]), format!("{}/state", newest[0]));
        alive.extend(newest);
        added += 8;
        for hash in alive.drain(..alive.len() / 4).collect::<Vec<_>>() {
            world.home.act(hash, "d.erase", &[]).await.unwrap();
            gone.push(hash);
        }
        // Kills at `online`, at the event and at the state, in turn.
        let is_word = |message: &&Message| match round % 3 {
            0 => message.topic == "dtorrent/bridge/main/status" && message.payload == "online",
            1 => message.topic.ends_with(&event),
            _ => message.topic.ends_with(&state),
        };
        world.recorder.wait_for("a word", |all| all[mark..].iter().find(is_word).map(|_| ())).await;
        world.bridge().process().kill().unwrap();
        mark = world.recorder.mark();
        world.bridge().restart();
    }
    wait_for_newcomer(&world).await;
    // Every torrent with `added` gets `removed`. One that was added and removed between two polls has no events.
    let kinds = |all: &[Message]| {
        let mut kinds: BTreeMap<InfoHash, Vec<Value>> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for event in events_in(all, "home") {
            if let (Some(hash), true) = (event["hash"].as_str(), seen.insert(event["id"].to_string())) {
                kinds.entry(hash.parse().unwrap()).or_default().push(event["event_type"].clone());
            }
        }
        kinds
    };
    let all_are_gone = |kinds: BTreeMap<InfoHash, Vec<Value>>| {
        gone.iter().all(|hash| kinds.get(hash).is_none_or(|kinds| *kinds == ["added", "removed"])).then_some(kinds)
    };
    let kinds = world.recorder.wait_for("the last removed", |all| all_are_gone(kinds(all))).await;
    assert!(alive.iter().all(|hash| kinds[hash] == ["added"]), "{kinds:#?}");
    let unseen = gone.iter().filter(|hash| !kinds.contains_key(hash)).count();
    assert!(unseen < added / 2, "{unseen} of {added} were never seen: the kills come too fast to prove anything");
    let events = world.recorder.assert_gap_free("home");
    println!("50 kills: {} events, {} deliveries", events.len(), deliveries(&world).values().sum::<usize>());
}

#[tokio::test]
async fn killed_it_sends_every_state_again_retained_or_not() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup { sink: "retain = \"none\"".to_owned(), ..Setup::default() }).await;
    let hashes = load_many(&world.home, 0, 5).await;
    world.start_bridge().await;
    let topics: Vec<String> = hashes.iter().map(|hash| format!("dtorrent/home/torrent/{hash}/state")).collect();
    let are_said = |mark: usize| {
        let topics = &topics;
        move |all: &[Message]| {
            let is_said = |topic: &String| all[mark..].iter().any(|message| message.topic == *topic);
            topics.iter().all(is_said).then_some(())
        }
    };
    world.recorder.wait_for("all states", are_said(0)).await;
    // Until the store records that every state was sent; otherwise they are sent again in any case.
    let written = world.database().last_seq("home");
    world
        .database()
        .until("it is noted", |database| database.cursor("b", "home") == written && database.has_sent_every_state("b"))
        .await;
    world.bridge().process().kill().unwrap();
    let mark = world.recorder.mark();
    world.bridge().restart();
    world.recorder.wait_for("all states once more", are_said(mark)).await;
}
