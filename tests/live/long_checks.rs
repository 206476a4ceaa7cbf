//! Checks that are longer than their commands: what comes of them has the command as its cause, too.

use std::time::Duration;

use dtorrent_peers::InfoHash;
use serde_json::{Value, json};

use crate::bare_moves::load_large;
use crate::harness::recorder::{Command, Message, events_in};
use crate::harness::{Setup, World, can_run};

/// Longer than rTorrent reads a sparse file of 4 GiB.
const PATIENCE: Duration = Duration::from_secs(120);

/// Has a torrent checked, and returns its events until `last`, each with its cause and command.
async fn events_of_check(world: &World, hash: InfoHash, last: &str) -> Vec<(String, Value, Value)> {
    let mark = world.recorder.mark();
    let result = world.recorder.command(&format!("home/torrent/{hash}/command/recheck"), json!({"id": "check"})).await;
    assert_eq!(result["status"], "ok", "{result}");
    let is = |event: &Value, kind: &str| event["event_type"] == kind && event["hash"] == hash.to_string();
    let events = |messages: &[Message]| events_in(&messages[mark..], "home");
    let so_far = events(&world.recorder.all());
    assert!(!so_far.iter().any(|event| is(event, "checked")), "the check is over before its command");
    let ended =
        |messages: &[Message]| Some(events(messages)).filter(|events| events.iter().any(|event| is(event, last)));
    let events = world.recorder.wait_within(PATIENCE, last, ended).await;
    let of_torrent = events.iter().filter(|event| event["hash"] == hash.to_string());
    of_torrent
        .map(|event| {
            (event["event_type"].as_str().unwrap().to_owned(), event["cause"].clone(), event["command_id"].clone())
        })
        .collect()
}

fn assert_of_command(events: &[(String, Value, Value)]) {
    for event in events {
        assert_eq!((&event.1, &event.2), (&json!("command"), &json!("check")), "{events:?}");
    }
}

#[tokio::test]
async fn a_paused_torrent_is_paused_again_by_the_command_that_had_it_checked() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let hash = load_large(&world).await;
    world.start_bridge().await;
    let paused = async |cause: &str, mark: usize| {
        let event = world.recorder.event_after(mark, "home", "paused", hash).await;
        assert_eq!(event["cause"], cause, "{event}");
    };
    let mark = world.recorder.mark();
    world.home.act(hash, "d.pause", &[]).await.unwrap();
    paused("observed", mark).await;
    // rTorrent lets it run when the check is over, and the next poll has it paused.
    let events = events_of_check(&world, hash, "paused").await;
    assert_of_command(&events);
    // What happens from then on is not the command's.
    for method in ["d.resume", "d.pause"] {
        let mark = world.recorder.mark();
        world.home.act(hash, method, &[]).await.unwrap();
        let kind = if method == "d.pause" { "paused" } else { "resumed" };
        let event = world.recorder.event_after(mark, "home", kind, hash).await;
        assert_eq!((&event["cause"], &event["command_id"]), (&json!("observed"), &Value::Null), "{event}");
    }
}

#[tokio::test]
async fn what_a_long_check_does_not_find_is_missed_because_of_its_command() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let hash = load_large(&world).await;
    world.start_bridge().await;
    let file = std::fs::OpenOptions::new().write(true).open(world.home.downloads.join("large")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", file.metadata().unwrap().len() - 1).unwrap();
    let events = events_of_check(&world, hash, "error").await;
    assert_of_command(&events);
    let kinds: Vec<&str> = events.iter().map(|(kind, ..)| kind.as_str()).collect();
    assert_eq!(kinds, ["checking", "checked", "unfinished", "stopped", "error"]);
}

#[tokio::test]
async fn a_paused_torrent_that_is_moved_while_it_is_checked_is_paused_at_its_new_place() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let hash = load_large(&world).await;
    world.start_bridge().await;
    world.home.act(hash, "d.pause", &[]).await.unwrap();
    world.recorder.event("home", "paused", hash).await;
    let new = world.home.downloads.join("new");
    let command = async |verb: &str, body: Value| {
        let id = format!("a {verb}");
        let mut body = body;
        body["id"] = json!(id);
        let topic = format!("dtorrent/home/torrent/{hash}/command/{verb}");
        world.recorder.send(Command::new(&topic, body.to_string())).await;
        id
    };
    let checked = command("recheck", json!({})).await;
    assert_eq!(world.recorder.result(&checked).await["status"], "ok");
    let moved = command("move", json!({"directory": new, "data": true, "ttl": "100s"})).await;
    let result = world.recorder.result_within(PATIENCE, &moved).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert!(new.join("large").is_file());
    world.home.wait_for(hash, "d.is_active", "0").await.unwrap();
    // No poll has it run or stopped from then on.
    for _ in 0..3 {
        world.recorder.command("home/command/list", json!({})).await;
        assert_eq!(world.home.get(hash, "d.state").await.unwrap(), "1");
        assert_eq!(world.home.get(hash, "d.is_active").await.unwrap(), "0");
    }
}
