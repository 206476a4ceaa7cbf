//! What Home Assistant gets: devices that appear, tell what is, and are taken back.

use std::collections::BTreeMap;

use dtorrent::demo::content::Content;
use dtorrent::demo::rtorrent::{Options, Rtorrent};
use serde_json::{Value, json};

use crate::harness::recorder::{Command, Message, Recorder};
use crate::harness::{Setup, World, can_run};

#[path = "../rules/homeassistant.rs"]
mod rules;

const ENABLED: &str = "[brokers.b.home_assistant]\nenabled = true\n";

fn enabled() -> Setup {
    Setup { sink: ENABLED.to_owned(), ..Setup::default() }
}

fn discovery(id: &str) -> String {
    format!("homeassistant/device/dtorrent_main/{id}/config")
}

/// The first message under a topic that `is_right`, among what came after `mark`.
async fn message(heard: &Recorder, mark: usize, topic: &str, is_right: impl Fn(&Value) -> bool) -> Message {
    let find = |all: &[Message]| {
        let mut of_topic = all[mark..].iter().filter(|m| m.topic == topic && !m.payload.is_empty());
        of_topic.find(|m| is_right(&m.json())).cloned()
    };
    heard.wait_for(topic, find).await
}

async fn device(heard: &Recorder, mark: usize, id: &str) -> Value {
    let topic = discovery(id);
    let message = message(heard, mark, &topic, |_| true).await;
    assert!(message.retain, "{topic}");
    let faults = rules::faults(&topic, &message.payload);
    assert!(faults.is_empty(), "{faults:#?}");
    message.json()
}

/// What a client that comes now finds retained below `homeassistant/` and in our documents.
async fn kept(world: &World) -> BTreeMap<String, Value> {
    let late = Recorder::listen(world.broker.port).await;
    let marker = format!("marker/{}", rand::random::<u64>());
    late.send(Command::new(&marker, "x")).await;
    late.wait_for(&marker, |all| all.iter().any(|m| m.topic == marker).then_some(())).await;
    let ours = |m: &&Message| m.topic.starts_with("homeassistant/") || m.topic.contains("/homeassistant/");
    late.all().iter().filter(|m| m.retain).filter(ours).map(|m| (m.topic.clone(), m.json())).collect()
}

#[tokio::test]
async fn devices_appear_and_are_taken_back_when_home_assistant_is_switched_off() {
    if !can_run() {
        return;
    }
    let mut world = World::running(enabled()).await;
    let bridge = device(&world.heard, 0, "bridge").await;
    let home = device(&world.heard, 0, "home").await;
    assert_eq!(home["device"]["via_device"], bridge["device"]["identifiers"][0]);
    let rates = message(&world.heard, 0, "dtorrent/home/homeassistant/rates", |_| true).await;
    assert!(rates.retain);
    assert_eq!(rates.json()["status"], "idle");
    message(&world.heard, 0, "dtorrent/home/homeassistant/slot/10", |_| true).await;
    world.bridge().stop().await;
    let config = std::fs::read_to_string(world.folder.join("dtorrent.toml")).unwrap();
    std::fs::write(world.folder.join("dtorrent.toml"), config.replace("enabled = true", "enabled = false")).unwrap();
    world.bridge().start_again();
    world.heard.last_word(&discovery("home"), "").await;
    world.heard.last_word(&discovery("bridge"), "").await;
    world.heard.last_word("dtorrent/home/homeassistant/rates", "").await;
    world.bridge().stop().await;
    assert_eq!(kept(&world).await, BTreeMap::new());
}

#[tokio::test]
async fn the_device_of_a_server_that_left_the_config_while_the_bridge_was_down_is_taken_back() {
    if !can_run() {
        return;
    }
    let mut world = World::new(enabled()).await;
    let attic = Rtorrent::start(&world.folder.join("attic"), &Options::default()).await.unwrap();
    let (home_url, attic_url) = (world.home.url(), attic.url());
    world.start_bridge_for(&[("home", &home_url), ("attic", &attic_url)]).await;
    device(&world.heard, 0, "attic").await;
    world.bridge().process().kill().unwrap();
    world.start_bridge_for(&[("home", &home_url)]).await;
    world.heard.last_word(&discovery("attic"), "").await;
    world.heard.last_word("dtorrent/attic/homeassistant/counts", "").await;
    assert!(kept(&world).await.keys().all(|topic| !topic.contains("attic")));
}

#[tokio::test]
async fn at_the_birth_of_home_assistant_all_is_said_again_and_events_wait_while_it_is_away() {
    if !can_run() {
        return;
    }
    let world = World::running(enabled()).await;
    device(&world.heard, 0, "home").await;
    world.heard.send(Command::new("homeassistant/status", "offline")).await;
    // Commands and their answers come behind what was said before.
    let hash = world.home.load(&Content::file("one", 20_000, 1).torrent, false).await.unwrap();
    world.heard.event("home", "added", hash).await;
    let label = format!("home/torrent/{hash}/command/label");
    world.heard.command(&label, json!({"label": "x"})).await;
    world.heard.event("home", "label_changed", hash).await;
    let event = "dtorrent/home/homeassistant/event";
    let is_news = |message: &&Message| message.topic == event && message.json()["name"] == "one";
    assert_eq!(world.heard.all().iter().filter(is_news).count(), 0, "it waits");
    let mark = world.heard.mark();
    world.heard.send(Command::new("homeassistant/status", "online")).await;
    device(&world.heard, mark, "bridge").await;
    device(&world.heard, mark, "home").await;
    message(&world.heard, mark, "dtorrent/home/homeassistant/counts", |counts| counts["all"] == 1).await;
    let added = message(&world.heard, mark, event, |event| event["event_type"] == "added").await;
    assert!(!added.retain);
    assert_eq!(added.json()["name"], "one");
    message(&world.heard, mark, event, |event| event["event_type"] == "label_changed").await;
    let since = world.heard.since(mark);
    let at = |topic: &str| since.iter().position(|m| m.topic == topic).unwrap();
    assert!(at(&discovery("home")) < at(event));
}

#[tokio::test]
async fn a_slot_s_switch_pauses_its_torrent_and_the_buttons_pause_and_resume_all() {
    if !can_run() {
        return;
    }
    let mut world = World::new(enabled()).await;
    let hash = world.home.load(&Content::file("one", 20_000, 1).torrent, true).await.unwrap();
    world.start_bridge().await;
    let home = device(&world.heard, 0, "home").await;
    let slot = "dtorrent/home/homeassistant/slot/1";
    let shown = message(&world.heard, 0, slot, |slot| slot["running"] == true).await.json();
    assert_eq!((&shown["name"], &shown["hash"]), (&json!("one"), &json!(hash)));
    let topic = home["components"]["slot_1_run"]["command_topic"].as_str().unwrap().to_owned();
    for (state, running) in [("OFF", false), ("ON", true)] {
        let mark = world.heard.mark();
        // As the template of the switch writes it.
        let body = json!({"state": state, "hash": hash}).to_string();
        world.heard.send(Command::new(&topic, body.as_str())).await;
        message(&world.heard, mark, slot, |slot| slot["running"] == running).await;
        message(&world.heard, mark, "dtorrent/home/result", |result| result["status"] == "ok").await;
    }
    for (button, running) in [("pause_all", false), ("resume_all", true)] {
        let mark = world.heard.mark();
        let button = &home["components"][button];
        let (topic, press) = (button["command_topic"].as_str().unwrap(), button["payload_press"].as_str().unwrap());
        world.heard.send(Command::new(topic, press)).await;
        message(&world.heard, mark, slot, |slot| slot["running"] == running).await;
    }
    let all = home["components"]["all_switch"]["command_topic"].as_str().unwrap();
    for (state, started) in [("OFF", 0), ("ON", 1)] {
        let mark = world.heard.mark();
        world.heard.send(Command::new(all, state)).await;
        let counts = "dtorrent/home/homeassistant/counts";
        message(&world.heard, mark, counts, |counts| counts["started"] == started).await;
    }
    let mark = world.heard.mark();
    world.heard.send(Command::new(&topic, "nonsense")).await;
    message(&world.heard, mark, "dtorrent/home/result", |result| result["error"]["code"] == "unsupported").await;
}
