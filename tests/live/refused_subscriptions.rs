//! Brokers that do not allow a subscription. Without the one by which a bridge learns what other instances publish, events and
//! commands go on; without those to commands a bridge is not ready, and says so until they are granted.

use std::path::Path;

use dtorrent_peers::content::Content;
use dtorrent_peers::mosquitto;
use dtorrent_peers::process::free_port;
use serde_json::{Value, json};

use crate::harness::http::{get, get_until, request};
use crate::harness::proxy::Mode;
use crate::harness::recorder::{Command, Message};
use crate::harness::skip::skip;
use crate::harness::{Setup, World, can_run};

/// The filter of the subscription.
const INFO: &str = "dtorrent/bridge/+/info";

/// One of the filters of commands.
const COMMANDS: &str = "dtorrent/home/command/+";
/// Everything but commands that a bridge, and the recorder, subscribe to.
const OTHERS: [&str; 4] = ["#", INFO, "dtorrent/bridge/main/status", "$SYS/broker/version"];

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

/// Returns the lines of mosquitto.conf by which its plugin gives everybody these rights to subscribe, with a file in `folder`;
/// `None` if it is not installed.
fn rights_lines(folder: &Path, by_default: bool, rights: &Value) -> Option<Vec<String>> {
    let libraries = std::fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let mut plugins = libraries.map(|folder| folder.join("mosquitto_dynamic_security.so"));
    let Some(plugin) = plugins.find(|plugin| plugin.is_file()) else {
        skip("mosquitto_dynamic_security.so is missing: apt install mosquitto");
        return None;
    };
    let file = folder.join("rights.json");
    let rights = json!({
        "defaultACLAccess": {
            "publishClientSend": true, "publishClientReceive": true, "subscribe": by_default, "unsubscribe": true,
        },
        "groups": [{"groupname": "all", "roles": [{"rolename": "all"}]}],
        "roles": [{"rolename": "all", "acls": rights}],
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
    let rights = json!([{"acltype": "subscribePattern", "topic": INFO, "allow": false}]);
    let Some(lines) = rights_lines(folder.path(), true, &rights) else { return };
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

const AUTHORIZATION: (&str, &str) = ("Authorization", "Bearer open sesame");

/// Where the rights are changed.
const RIGHTS: &str = "$CONTROL/dynamic-security/v1";

/// Returns the lines by which mosquitto refuses all subscriptions to commands, until the rights are changed.
fn lines_without_commands(folder: &Path) -> Option<Vec<String>> {
    let allow = |filter: &str| json!({"acltype": "subscribeLiteral", "topic": filter, "allow": true});
    let change = json!({"acltype": "publishClientSend", "topic": RIGHTS, "allow": true});
    let rights = OTHERS.into_iter().map(allow).chain([change]).collect();
    rights_lines(folder, false, &rights)
}

/// A world whose bridge serves HTTP, with a token.
async fn world_with_http(broker: mosquitto::Options, sink: &str) -> (World, u16) {
    let port = free_port().unwrap();
    let http = format!("listen = \"127.0.0.1:{port}\"\ntoken = \"open sesame\"");
    (World::new(Setup { broker, sink: sink.to_owned(), http, ..Setup::default() }).await, port)
}

/// Waits until the readiness of the broker has this in its reason, and asserts that it is for who has the token.
async fn until_deaf(world: &World, port: u16, reason: &str) {
    world
        .home
        .wait_until(reason, async || {
            let answer = request(port, "GET", "/readyz", &[AUTHORIZATION], b"").await;
            let sink = &answer.json()["sinks"]["b"];
            let is_told = sink["problem"].as_str().is_some_and(|problem| problem.contains(reason));
            Ok(answer.status == 503 && sink["ready"] == false && is_told)
        })
        .await
        .unwrap();
    let untold = get(port, "/readyz").await;
    assert!(untold.body.contains("commands cannot be received"), "{}", untold.body);
    assert!(untold.status == 503 && !untold.body.contains(COMMANDS), "{}", untold.body);
    assert_metric(port, 0).await;
}

async fn assert_metric(port: u16, value: u8) {
    let metrics = get(port, "/metrics").await.body;
    assert!(metrics.contains(&format!("dtorrent_sink_receives_commands{{sink=\"b\"}} {value}\n")), "{metrics}");
}

/// Waits for a health message whose part about the broker is right.
async fn until_health(world: &World, what: &str, is_right: impl Fn(&Value) -> bool) {
    let is_right = |sink: &Value| sink["connected"] == true && is_right(sink);
    world
        .recorder
        .wait_for(what, |all| {
            let health = all.iter().filter(|message| message.topic == "dtorrent/bridge/main/health");
            health.last().filter(|health| is_right(&health.json()["sinks"]["b"])).map(drop)
        })
        .await;
}

/// Waits until nothing is missing any more, and asserts that the connection for events was not given up for that.
async fn assert_recovers(world: &mut World, port: u16) {
    get_until(port, "/readyz", |ready| ready["ready"] == true).await;
    assert_metric(port, 1).await;
    assert_works(world).await;
    world.bridge().wait_for_log("commands are received again").await;
    assert_eq!(world.bridge().count_in_log(" connected sink=b"), 1);
}

async fn a_refusal_of_commands_is_seen_until_it_ends(lines: Vec<String>, version: &str, reason: &str) {
    let broker = mosquitto::Options { lines, ..mosquitto::Options::default() };
    let (mut world, port) = world_with_http(broker, &format!("version = \"{version}\"")).await;
    world.start_bridge().await;
    let reason = format!("{COMMANDS}: {reason}");
    until_deaf(&world, port, &reason).await;
    until_health(&world, "health with the reason", |sink| {
        sink["receives_commands"] == false && sink["problem"].as_str().is_some_and(|problem| problem.contains(&reason))
    })
    .await;
    let asked = || world.broker.output().matches(&format!("{COMMANDS} (QoS 1)")).count();
    world.home.wait_until("the next attempt", async || Ok(asked() > 1)).await.unwrap();
    for text in ["commands cannot be received, trying again", &reason] {
        assert_eq!(world.bridge().count_in_log(text), 1, "{text}");
    }
    let body = json!({"commands": [
        {"command": "setDefaultACLAccess", "acls": [{"acltype": "subscribe", "allow": true}]},
    ]});
    world.recorder.send(Command::new(RIGHTS, body.to_string())).await;
    assert_recovers(&mut world, port).await;
    until_health(&world, "health without a problem", |sink| {
        sink["receives_commands"] == true && sink["problem"].is_null()
    })
    .await;
}

#[tokio::test]
async fn a_bridge_whose_subscription_to_commands_is_refused_is_not_ready_until_it_is_granted() {
    if !can_run() {
        return;
    }
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [Some(new), Some(old)] = folders.each_ref().map(|folder| lines_without_commands(folder.path())) else { return };
    tokio::join!(
        a_refusal_of_commands_is_seen_until_it_ends(new, "5", "refused (NotAuthorized)"),
        a_refusal_of_commands_is_seen_until_it_ends(old, "3.1.1", "refused (0x80)"),
    );
}

#[tokio::test]
async fn a_bridge_is_not_ready_while_a_broker_hangs_up_over_the_subscription_to_commands() {
    if !can_run() {
        return;
    }
    let (mut world, port) = world_with_http(mosquitto::Options::default(), "").await;
    let proxy = world.proxy_broker().await;
    proxy.requests(Mode::CloseOver(COMMANDS));
    world.start_bridge().await;
    until_deaf(&world, port, "while we subscribed to commands").await;
    proxy.requests(Mode::Pass);
    assert_recovers(&mut world, port).await;
}

#[tokio::test]
async fn a_bridge_that_takes_no_commands_from_a_broker_is_ready_without_the_right_to_subscribe_to_them() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let Some(lines) = lines_without_commands(folder.path()) else { return };
    let broker = mosquitto::Options { lines, ..mosquitto::Options::default() };
    let (mut world, port) = world_with_http(broker, "commands = []").await;
    world.start_bridge().await;
    get_until(port, "/readyz", |ready| ready["ready"] == true).await;
    assert!(!get(port, "/metrics").await.body.contains("dtorrent_sink_receives_commands{"));
    until_health(&world, "health without a problem", |sink| {
        sink["problem"].is_null() && sink["receives_commands"].is_null()
    })
    .await;
    assert!(!world.broker.output().contains(COMMANDS), "nothing was subscribed to");
    let find =
        |all: &[Message]| all.iter().find(|message| message.topic == "dtorrent/bridge/main/info").map(Message::json);
    let info = world.recorder.wait_for("the info", find).await;
    assert_eq!(info["commands"], json!([]), "{info}");
}

#[tokio::test]
async fn each_connection_has_the_client_id_that_the_config_gives_it() {
    if !can_run() {
        return;
    }
    for (client_id, ids) in [
        ("me.{role}", ["me.events", "me.commands", "me.probe"]),
        ("{instance}", ["main", "main-commands", "main-probe"]),
    ] {
        let sink = format!("client_id = \"{client_id}\"");
        let mut world = World::new(Setup { sink, ..Setup::default() }).await;
        world.start_bridge().await;
        assert_works(&world).await;
        let connected: Vec<String> = world.broker.output().lines().map(str::to_owned).collect();
        for id in ids {
            assert!(connected.iter().any(|line| line.contains(&format!(" as {id} ("))), "{id}: {connected:#?}");
        }
        assert!(!connected.iter().any(|line| line.contains(" as dtorrent-")), "{connected:#?}");
    }
}
