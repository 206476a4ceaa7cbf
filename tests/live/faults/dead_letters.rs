//! Dead letters of brokers: a full queue, and listing, replaying and dropping what is in it.

use std::time::Duration;

use dtorrent_peers::content::Content;
use dtorrent_peers::process::free_port;
use serde_json::{Value, json};

use super::broker::set_rules;
use super::patient_broker;
use crate::harness::http::request;
use crate::harness::recorder::Message;
use crate::harness::{Setup, World, can_run};

const STATUS: &str = "dtorrent/bridge/main/status";
const CLOSED: &str = "topic read #\ntopic readwrite dtorrent/bridge/#\ntopic readwrite dtorrent/home/+\n\
                      topic readwrite dtorrent/home/event/#\ntopic readwrite dtorrent/+/torrent/+/command/#\n";
const OPEN: &str = "topic readwrite #\n";

/// The retry interval of a blocked sink, and a margin for a busy machine.
const OFFERED_WITHIN: Duration = Duration::from_secs(60);

struct Setting {
    world: World,
    pages: u16,
}

impl Setting {
    /// A bridge whose broker rejects every event of a torrent, with this many dead letters in its queue.
    async fn with_dead_letters(count: u64) -> Self {
        let pages = free_port().unwrap();
        let broker = dtorrent_peers::mosquitto::Options { acl: Some(CLOSED.to_owned()), ..patient_broker() };
        let http = format!("listen = \"127.0.0.1:{pages}\"");
        let mut world = World::running(Setup { broker, http, ..Setup::default() }).await;
        if count > 0 {
            world.bridge().stop().await;
            world.database().add_dead_letters("b", count);
            world.bridge().restart();
            world.recorder.wait_for_last(STATUS, "online").await;
        }
        Self { world, pages }
    }

    /// The same with a full queue, and two torrents whose events are blocked.
    async fn blocked() -> (Self, [Content; 2]) {
        let mut setting = Self::with_dead_letters(10_000).await;
        let contents = [1, 2].map(|seed| Content::file(&format!("n{seed}"), 1_000, seed));
        for content in &contents {
            setting.world.home.load(&content.torrent, false).await.unwrap();
        }
        setting.world.bridge().wait_for_log("delivery blocked").await;
        (setting, contents)
    }

    async fn metric(&self, name: &str) -> String {
        let page = request(self.pages, "GET", "/metrics", &[], b"").await.body;
        let line =
            page.lines().find_map(|line| line.strip_prefix(&format!("{name}{{sink=\"b\"}} ")).map(str::to_owned));
        line.unwrap_or_else(|| panic!("no {name} of b in:\n{page}"))
    }

    async fn dead_letters(&self) -> Vec<Value> {
        let (code, listed, printed) = self.world.ask(&["dead-letters", "list", "b", "--json"], &[]).await;
        assert_eq!(code, 0, "{printed}");
        listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[tokio::test]
async fn a_full_dead_letter_queue_blocks_delivery_until_there_is_room() {
    if !can_run() {
        return;
    }
    let (mut setting, contents) = Setting::blocked().await;
    assert_eq!(setting.metric("dtorrent_sink_blocked").await, "1");
    assert_eq!(setting.metric("dtorrent_dead_letters").await, "10000");
    let ready = request(setting.pages, "GET", "/readyz", &[], b"").await;
    let problem = ready.json()["sinks"]["b"]["problem"].as_str().unwrap_or_default().to_owned();
    assert_eq!(ready.status, 503);
    assert!(problem.contains("10000") && problem.contains("`dtorrent dead-letters`"), "{problem}");
    // A drop frees places in the queue while the bridge runs.
    let listed = setting.dead_letters().await;
    let known: Vec<&str> = listed[..2].iter().map(|letter| letter["id"].as_str().unwrap()).collect();
    let connections = setting.world.bridge().count_in_log("connected sink=b");
    let (code, _, printed) = setting.world.ask(&["dead-letters", "drop", "b", known[0], known[1]], &[]).await;
    assert_eq!((code, printed.as_str()), (0, "2 dropped\n"));
    setting.world.bridge().wait_for_log("delivery no longer blocked").await;
    let hashes = contents.map(|content| content.hash.to_string());
    let are_dead_letters =
        |letters: &[(String, String)]| hashes.iter().all(|h| letters.iter().any(|(body, _)| body.contains(h)));
    setting
        .world
        .database()
        .until("both are dead letters", |database| are_dead_letters(&database.dead_letters("b")))
        .await;
    assert_eq!(setting.metric("dtorrent_sink_blocked").await, "0");
    assert_eq!(request(setting.pages, "GET", "/readyz", &[], b"").await.status, 200);
    assert_eq!(
        setting.world.bridge().count_in_log("connected sink=b"),
        connections,
        "all of it on the same connection"
    );
    let (code, _, printed) = setting.world.ask(&["dead-letters", "drop", "b", "--all"], &[]).await;
    assert_eq!((code, printed.as_str()), (0, "10000 dropped\n"));
    assert_eq!(setting.metric("dtorrent_dead_letters").await, "0");
    setting.world.bridge().stop().await;
}

#[tokio::test]
async fn a_blocked_broker_that_accepts_again_gets_the_refused_events_on_the_same_connection() {
    if !can_run() {
        return;
    }
    let (mut setting, contents) = Setting::blocked().await;
    let connections = setting.world.bridge().count_in_log("connected sink=b");
    set_rules(&mut setting.world, OPEN).await;
    for content in &contents {
        let topic = format!("dtorrent/home/torrent/{}/event/added", content.hash);
        let is_told = |all: &[Message]| all.iter().any(|message| message.topic == topic).then_some(());
        setting.world.recorder.wait_within(OFFERED_WITHIN, &topic, is_told).await;
    }
    setting.world.bridge().wait_for_log("delivery no longer blocked").await;
    let later = Content::file("later", 1_000, 9);
    setting.world.home.load(&later.torrent, false).await.unwrap();
    setting.world.recorder.event("home", "added", later.hash).await;
    assert_eq!(setting.world.bridge().count_in_log("connected sink=b"), connections);
    assert_eq!(setting.metric("dtorrent_sink_blocked").await, "0");
    setting.world.recorder.assert_gap_free("home");
}

#[tokio::test]
async fn dead_letters_of_a_broker_are_listed_replayed_and_dropped() {
    if !can_run() {
        return;
    }
    let mut setting = Setting::with_dead_letters(0).await;
    let contents = [1, 2, 3].map(|seed| Content::file(&format!("n{seed}"), 1_000, seed));
    for content in &contents {
        setting.world.home.load(&content.torrent, false).await.unwrap();
    }
    setting.world.database().until("all are dead letters", |database| database.dead_letters("b").len() == 3).await;
    let letters = setting.dead_letters().await;
    let id = |number: usize| letters[number]["id"].as_str().unwrap();
    for letter in &letters {
        assert_eq!((&letter["sink"], &letter["server"], &letter["events"]), (&json!("b"), &json!("home"), &json!(1)));
        assert_eq!(letter["event"]["id"], letter["id"]);
        assert!(letter["bytes"].as_u64() > Some(500) && letter["time"].is_string(), "{letter}");
        assert!(letter["reason"].as_str().unwrap().contains("does not allow"), "{letter}");
    }
    let (_, text, _) = setting.world.ask(&["dead-letters", "list"], &[]).await;
    assert!(text.contains(&format!("b  {}  {} bytes  added", id(0), letters[0]["bytes"])), "{text}");
    let (code, _, printed) = setting.world.ask(&["dead-letters", "replay", "b", "--all"], &[]).await;
    assert!(code == 1 && printed.contains("stop it first"), "{printed}");
    setting.world.bridge().stop().await;
    let mark = setting.world.recorder.mark();
    for (arguments, expected, word) in [
        (&["dead-letters", "replay", "b"][..], 2, "required"),
        (&["dead-letters", "replay", "other", "--all"], 2, "unknown broker or webhook `other`"),
        (&["dead-letters", "drop", "b", "home-00000000-000000000001"], 1, "no dead letter"),
        (&["dead-letters", "drop", "b", id(2)], 0, "1 dropped"),
        // The broker still rejects them.
        (&["dead-letters", "replay", "b", "--all"], 1, "does not allow"),
    ] {
        let (code, _, printed) = setting.world.ask(arguments, &[]).await;
        assert!(code == expected && printed.contains(word), "{arguments:?}: {code} {printed}");
    }
    set_rules(&mut setting.world, OPEN).await;
    let (code, _, printed) = setting.world.ask(&["dead-letters", "replay", "b", "--all"], &[]).await;
    assert_eq!((code, printed), (0, format!("{}: delivered\n{}: delivered\n", id(0), id(1))));
    let is_told = |all: &[Message], number: usize| all[mark..].iter().any(|m| m.json() == letters[number]["event"]);
    setting.world.recorder.wait_for("both", |all| (is_told(all, 0) && is_told(all, 1)).then_some(())).await;
    let seen = setting.world.recorder.since(mark);
    assert!(!seen.iter().any(|message| message.topic == STATUS), "a replay does not say that the bridge is online");
    assert_eq!(setting.dead_letters().await, Vec::<Value>::new());
    // While the broker is down, the rest stays in the queue.
    setting.world.database().add_dead_letters("b", 2);
    setting.world.broker.process().kill().unwrap();
    let body =
        json!({"id": "home-00000000-000000000001", "event_type": "server_online", "time": "2026-11-22T06:25:01.114Z"});
    setting.world.database().set_dead_letter_bodies("b", &body.to_string());
    let (code, _, printed) = setting.world.ask(&["dead-letters", "replay", "b", "--all"], &[]).await;
    assert_eq!(code, 3, "{printed}");
    assert_eq!((printed.lines().count(), setting.dead_letters().await.len()), (1, 2), "{printed}");
}
