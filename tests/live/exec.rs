//! A client that is a user's program, monitored by the real bridge.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use dtorrent_peers::mosquitto;
use dtorrent_peers::process::TIMEOUT;
use serde_json::{Value, json};

use crate::faults::patient_broker;
use crate::harness::recorder::{Command, Message};
use crate::harness::{Setup, World, can_run};

const HASH: &str = "3f786850e387550fdab836ed7e6dc881de23001b";

/// A bridge that also monitors `attic`: the example client, and the file that holds its torrents.
async fn with_attic() -> (World, PathBuf) {
    with_attic_at(mosquitto::Options::default()).await
}

async fn with_attic_at(broker: mosquitto::Options) -> (World, PathBuf) {
    let folder = tempfile::tempdir().unwrap().keep();
    let path = folder.join("torrents.json");
    write(&path, &json!([torrent(HASH)]));
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/client.py");
    let sink = format!(
        "commands = [\"*\"]\n[servers.attic]\nclient = \"exec\"\ncommand = [{program:?}, {:?}]\ninterval = \"250ms\"\n",
        path.to_string_lossy()
    );
    let world = World::running(Setup { sink, broker, ..Setup::default() }).await;
    world.recorder.server_event_after(0, "attic", "snapshot_done").await;
    (world, path)
}

fn torrent(hash: &str) -> Value {
    json!({"hash": hash, "name": "n", "length": 10, "active": true, "downloaded": 4, "uploaded": 2, "path": null})
}

/// Replaces the file atomically, because the program may read it at any time.
fn write(path: &PathBuf, torrents: &Value) {
    let draft = path.with_extension("new");
    fs::write(&draft, torrents.to_string()).unwrap();
    fs::rename(draft, path).unwrap();
}

#[tokio::test]
async fn an_exec_client_is_monitored_and_accepts_commands() {
    if !can_run() {
        return;
    }
    let (mut world, path) = with_attic().await;
    let hash = HASH.parse().unwrap();
    let added = world.recorder.event("attic", "added", hash).await;
    assert_eq!((&added["torrent"]["progress"], &added["cause"]), (&json!(40.0), &json!("snapshot")));
    let result = world.recorder.command(&format!("attic/torrent/{HASH}/command/pause"), json!({})).await;
    assert_eq!(result["status"], "ok", "{result}");
    let paused = world.recorder.event("attic", "paused", hash).await;
    assert_eq!(paused["cause"], "command");
    let result =
        world.recorder.command(&format!("attic/torrent/{HASH}/command/priority"), json!({"priority": 1})).await;
    assert_eq!(result["results"][0]["error"]["code"], "unsupported", "{result}");
    let magnet = "magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567";
    let result = world.recorder.command("attic/command/add", json!({"magnet": magnet})).await;
    assert_eq!(result["status"], "ok", "{result}");
    // The protocol has no place for these, which a dry run knows as well.
    for dry_run in [true, false] {
        let magnet = "magnet:?xt=urn:btih:1123456789abcdef0123456789abcdef01234567";
        let body = json!({"magnet": magnet, "custom": {"k": "v"}, "dry_run": dry_run});
        let result = world.recorder.command("attic/command/add", body).await;
        assert_eq!(result["results"][0]["error"]["code"], "unsupported", "{result}");
    }
    // So it has for deleting content, limits and methods.
    for (topic, body) in [
        (format!("attic/torrent/{HASH}/command/delete"), json!({"data": true})),
        ("attic/command/limits".to_owned(), json!({"download_limit": 1})),
        ("attic/command/rpc".to_owned(), json!({"method": "system.pid"})),
    ] {
        for dry_run in [true, false] {
            let mut body = body.clone();
            body["dry_run"] = dry_run.into();
            let result = world.recorder.command(&topic, body).await;
            let error = result["results"].get(0).unwrap_or(&result);
            assert_eq!(error["error"]["code"], "unsupported", "{result}");
        }
    }
    // Changed outside the bridge, and finished.
    let mut torrents: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    torrents[0]["downloaded"] = json!(10);
    write(&path, &torrents);
    world.recorder.event("attic", "finished", hash).await;
    let result = world.recorder.command(&format!("attic/torrent/{HASH}/command/delete"), json!({})).await;
    assert_eq!(result["status"], "ok", "{result}");
    world.recorder.event("attic", "removed", hash).await;
    world.recorder.assert_gap_free("attic");
    world.bridge().stop().await;
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

#[tokio::test]
async fn ten_thousand_torrents_added_and_removed_in_one_poll_emit_each_event_once() {
    const MANY: usize = 10_000;
    if !can_run() {
        return;
    }
    let (world, path) = with_attic_at(patient_broker()).await;
    let all_told = async |kind: &'static str, count: usize| {
        let end = format!("/event/{kind}");
        let count_of = |all: &[Message]| all.iter().filter(|message| message.topic.ends_with(&end)).count();
        world.recorder.wait_within(4 * TIMEOUT, kind, |all| (count_of(all) >= count).then_some(())).await;
    };
    let hashes: Vec<String> = (0..MANY).map(|number| format!("{number:040x}")).collect();
    write(&path, &hashes.iter().map(|hash| torrent(hash)).collect());
    all_told("added", 1 + MANY).await;
    write(&path, &json!([]));
    all_told("removed", 1 + MANY).await;
    let events = world.recorder.assert_gap_free("attic");
    let mut kinds: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for event in events.iter().filter(|event| event["hash"].is_string()) {
        kinds.entry(event["hash"].as_str().unwrap()).or_default().push(event["event_type"].as_str().unwrap());
    }
    assert_eq!(kinds.len(), 1 + MANY);
    assert!(hashes.iter().all(|hash| kinds[hash.as_str()] == ["added", "removed"]));
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

#[tokio::test]
async fn a_failing_program_goes_offline_and_comes_back_without_false_events() {
    if !can_run() {
        return;
    }
    let (mut world, path) = with_attic().await;
    let hash = HASH.parse().unwrap();
    world.recorder.event("attic", "added", hash).await;
    // The example client exits on an invalid file.
    let torrents = fs::read(&path).unwrap();
    fs::write(&path, "{").unwrap();
    world.recorder.server_event_after(0, "attic", "server_offline").await;
    world.recorder.wait_for_last("dtorrent/attic/status", "offline").await;
    // The other server is unaffected.
    let body = json!({"id": "while it is away", "ttl": "300s"}).to_string();
    world.recorder.send(Command::new(&format!("dtorrent/attic/torrent/{HASH}/command/pause"), body)).await;
    world.recorder.command("home/command/list", json!({})).await;
    fs::write(&path, &torrents).unwrap();
    world.recorder.wait_for_last("dtorrent/attic/status", "online").await;
    let result = world.recorder.result("while it is away").await;
    assert_eq!(result["status"], "ok", "{result}");
    let events = world.recorder.assert_gap_free("attic");
    for (kind, count) in [("added", 1), ("removed", 0), ("server_offline", 1)] {
        assert_eq!(events.iter().filter(|event| event["event_type"] == kind).count(), count, "{kind}");
    }
    world.bridge().wait_for_log("JSONDecodeError").await;
    world.bridge().stop().await;
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

#[tokio::test]
async fn a_program_gets_the_named_variables_and_no_secret_of_the_bridge() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let printed = folder.path().join("environment");
    write(&folder.path().join("torrents.json"), &json!([torrent(HASH)]));
    let client = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/client.py");
    let script = format!(
        "env > {0}/environment.new; mv {0}/environment.new {0}/environment; exec {client} {0}/torrents.json",
        folder.path().display()
    );
    let sink = format!(
        "[servers.attic]\nclient = \"exec\"\ncommand = [\"sh\", \"-c\", {script:?}]\ninterval = \"250ms\"\n\
         environment = [\"API_KEY\", \"MISSING\"]\n"
    );
    let variables = ["DTORRENT_HTTP__TOKEN=sesame-sesame-sesame", "MQTT_PASSWORD=sesame", "API_KEY=for-the-program"];
    let launcher = std::iter::once("env").chain(variables).map(str::to_owned).collect();
    let world = World::running(Setup { sink, launcher, ..Setup::default() }).await;
    world.recorder.server_event_after(0, "attic", "snapshot_done").await;
    let environment = fs::read_to_string(printed).unwrap();
    assert!(!environment.contains("sesame") && !environment.contains("DTORRENT_"), "{environment}");
    assert!(environment.contains("API_KEY=for-the-program\n") && environment.contains("PATH="), "{environment}");
}
