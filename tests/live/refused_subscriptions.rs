//! Brokers that do not allow the subscription by which a bridge learns what other instances publish: events and commands go
//! on without it.

use dtorrent_peers::content::Content;
use dtorrent_peers::mosquitto;
use serde_json::json;

use crate::harness::proxy::Mode;
use crate::harness::{Setup, World, can_run};

/// The filter of the subscription.
const INFO: &str = "dtorrent/bridge/+/info";

/// Asserts that events arrive and commands are carried out.
async fn assert_works(world: &World) {
    let content = Content::file("one.iso", 20_000, 1);
    world.home.load(&content.torrent, false).await.unwrap();
    world.recorder.event("home", "added", content.hash).await;
    let topic = format!("home/torrent/{}/command/label", content.hash);
    let result = world.recorder.command(&topic, json!({"label": "new"})).await;
    assert_eq!(result["status"], "ok", "{result}");
    world.recorder.event("home", "label_changed", content.hash).await;
    world.recorder.assert_gap_free("home");
}

#[tokio::test]
async fn a_broker_that_hangs_up_over_the_subscription_to_other_instances_gets_events_and_commands() {
    if !can_run() {
        return;
    }
    for version in ["5", "3.1.1"] {
        let sink = format!("version = \"{version}\"");
        let mut world = World::new(Setup { sink, ..Setup::default() }).await;
        let proxy = world.proxy_broker().await;
        proxy.requests(Mode::CloseOver(INFO));
        world.start_bridge().await;
        assert_works(&world).await;
        let before = proxy.opened();
        world.bridge().stop().await;
        assert_eq!(proxy.opened(), before, "the connections of {version} stay");
    }
}

#[tokio::test]
async fn a_broker_whose_rights_deny_the_subscription_to_other_instances_gets_events_and_commands() {
    if !can_run() {
        return;
    }
    let acl = Some(format!("topic deny {INFO}\ntopic readwrite #\n"));
    for version in ["5", "3.1.1"] {
        let broker = mosquitto::Options { acl: acl.clone(), ..mosquitto::Options::default() };
        let sink = format!("version = \"{version}\"");
        let mut world = World::new(Setup { broker, sink, ..Setup::default() }).await;
        world.start_bridge().await;
        assert_works(&world).await;
        assert!(world.broker.output().contains(INFO), "it was asked for");
    }
}
