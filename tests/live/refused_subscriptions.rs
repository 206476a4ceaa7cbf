//! Brokers that do not allow the subscription by which a bridge learns what other instances publish: events and commands go
//! on without it.

use std::path::Path;

use dtorrent_peers::content::Content;
use dtorrent_peers::mosquitto;
use serde_json::json;

use crate::harness::proxy::Mode;
use crate::harness::skip::skip;
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
async fn a_broker_whose_rights_deny_the_messages_of_other_instances_gets_events_and_commands() {
    if !can_run() {
        return;
    }
    // With such a file mosquitto grants the subscription, and sends nothing.
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

/// Returns the lines of mosquitto.conf by which its plugin refuses the subscription, with a file in `folder`; `None` if it is
/// not installed.
fn refusing_lines(folder: &Path) -> Option<Vec<String>> {
    let libraries = std::fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let mut plugins = libraries.map(|folder| folder.join("mosquitto_dynamic_security.so"));
    let Some(plugin) = plugins.find(|plugin| plugin.is_file()) else {
        skip("mosquitto_dynamic_security.so is missing: apt install mosquitto");
        return None;
    };
    let file = folder.join("rights.json");
    let rights = json!({
        "defaultACLAccess": {
            "publishClientSend": true, "publishClientReceive": true, "subscribe": true, "unsubscribe": true,
        },
        "groups": [{"groupname": "all", "roles": [{"rolename": "all"}]}],
        "roles": [{"rolename": "all", "acls": [{"acltype": "subscribePattern", "topic": INFO, "allow": false}]}],
        "anonymousGroup": "all",
    });
    std::fs::write(&file, rights.to_string()).unwrap();
    Some(vec![format!("plugin {}", plugin.display()), format!("plugin_opt_config_file {}", file.display())])
}

#[tokio::test]
async fn a_broker_that_refuses_the_subscription_to_other_instances_gets_events_and_commands() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let Some(lines) = refusing_lines(folder.path()) else { return };
    for version in ["5", "3.1.1"] {
        let broker = mosquitto::Options { lines: lines.clone(), ..mosquitto::Options::default() };
        let sink = format!("version = \"{version}\"");
        let mut world = World::new(Setup { broker, sink, ..Setup::default() }).await;
        let proxy = world.proxy_broker().await;
        world.start_bridge().await;
        assert_works(&world).await;
        // It answers, so every connection asks.
        let asked = || world.broker.output().matches(&format!("{INFO} (QoS 0)")).count();
        for _ in 0..2 {
            let before = asked();
            proxy.cut();
            world.home.wait_until("the next connection to ask", async || Ok(asked() > before)).await.unwrap();
        }
        assert!(!world.bridge().log().contains("subscription to a status topic refused"), "nobody has to do anything");
    }
}
