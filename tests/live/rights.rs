//! Refused commands: a right is missing, or a condition is not met.

use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::Argument;
use serde_json::{Value, json};

use crate::harness::recorder::{Command, error_code};
use crate::harness::{Setup, World, can_run};

async fn with_one_torrent(sink: &str) -> (World, InfoHash) {
    let mut world = World::new(Setup { sink: sink.to_owned(), ..Setup::default() }).await;
    let content = Content::file("guarded.iso", 50_000, 1);
    content.write_to(&world.home.downloads).unwrap();
    let hash = world.home.load(&content.torrent, true).await.unwrap();
    world.home.wait_for(hash, "d.complete", "1").await.unwrap();
    world.start_bridge().await;
    (world, hash)
}

#[tokio::test]
async fn data_is_not_deleted_without_the_right_to_it() {
    if !can_run() {
        return;
    }
    let (world, hash) = with_one_torrent("").await;
    let result = world.recorder.command(&format!("home/torrent/{hash}/command/delete"), json!({"data": true})).await;
    assert!(["forbidden", "unsupported"].contains(&error_code(&result).as_str().unwrap_or_default()), "{result}");
    assert_eq!(world.home.hashes().await.unwrap(), [hash], "nothing is half done");
    assert!(world.home.downloads.join("guarded.iso").is_file());
}

#[tokio::test]
async fn a_broker_without_commands_is_read_only() {
    if !can_run() {
        return;
    }
    let (mut world, hash) = with_one_torrent("commands = []").await;
    for (number, topic) in [
        format!("home/torrent/{hash}/command/pause"),
        "home/command/list".to_owned(),
        "bridge/main/command/x".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        let body = json!({"id": format!("read-only-{number}")}).to_string();
        world.recorder.send(Command::new(&format!("dtorrent/{topic}"), body)).await;
    }
    // A later change has arrived at the consumer, and a result would have arrived before it.
    world.home.act(hash, "d.custom1.set", &[Argument::Text("after")]).await.unwrap();
    world.recorder.event("home", "label_changed", hash).await;
    assert!(world.recorder.all().iter().all(|message| !message.topic.ends_with("/result")), "a command was answered");
    assert_eq!(world.home.get(hash, "d.is_active").await.unwrap(), "1");
    assert!(!subscribes_to_commands(&mut world), "the broker shows a subscription to commands");
}

#[tokio::test]
async fn a_verb_that_a_broker_may_not_send_is_refused() {
    if !can_run() {
        return;
    }
    let (mut world, hash) = with_one_torrent("commands = [\"list\"]").await;
    let result = world.recorder.command(&format!("home/torrent/{hash}/command/pause"), Value::Null).await;
    assert_eq!((&result["status"], error_code(&result)), (&json!("refused"), &json!("forbidden")), "{result}");
    assert_eq!(world.home.get(hash, "d.is_active").await.unwrap(), "1");
    assert_eq!(world.recorder.command("home/command/list", Value::Null).await["status"], "ok");
    assert!(subscribes_to_commands(&mut world), "the broker's log shows subscriptions");
}

/// Returns whether the bridge has subscribed to a topic of commands, according to the broker's log.
fn subscribes_to_commands(world: &mut World) -> bool {
    // After a line `Received SUBSCRIBE from CLIENT` mosquitto logs each filter as `TAB FILTER (QoS N)`.
    world.broker.process().output().lines().any(|line| line.contains("/command/") && line.contains("(QoS "))
}

#[tokio::test]
async fn a_condition_that_does_not_hold_and_a_dry_run_change_nothing() {
    if !can_run() {
        return;
    }
    let (world, hash) = with_one_torrent("").await;
    let topic = format!("home/torrent/{hash}/command/pause");
    let result = world.recorder.command(&topic, json!({"if_status": "downloading"})).await;
    assert_eq!(error_code(&result), "precondition", "{result}");
    let result = world.recorder.command(&topic, json!({"dry_run": true})).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_eq!(world.home.get(hash, "d.is_active").await.unwrap(), "1");
    let result = world.recorder.command(&topic, json!({"if_status": "seeding"})).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_eq!(world.home.get(hash, "d.is_active").await.unwrap(), "0");
    world.recorder.assert_gap_free("home");
}

#[tokio::test]
async fn an_unknown_command_to_the_bridge_itself_is_answered_too() {
    if !can_run() {
        return;
    }
    let (world, _) = with_one_torrent("").await;
    let result = world.recorder.command("bridge/main/command/explode", Value::Null).await;
    assert_eq!(result["status"], "error", "{result}");
    let all = world.recorder.all();
    assert!(all.iter().any(|m| m.topic == "dtorrent/bridge/main/result" && m.json()["id"] == result["id"]));
}
