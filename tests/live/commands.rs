//! Commands over MQTT: `ok` means that rTorrent shows the effect, and each command has one result.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use dtorrent::model::MetainfoBuilder;
use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{Address, Listen, Options, Rtorrent};
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use serde_json::{Value, json};

use crate::harness::recorder::{Command, Message};
use crate::harness::scgi::ScgiProxy;
use crate::harness::{Setup, World, can_run};

/// Starts everything with complete, seeding torrents.
async fn seeding(count: u64) -> (World, Vec<InfoHash>) {
    let seed = |number| Content::file(&format!("seed-{number}.iso"), 200_000, number);
    let contents: Vec<Content> = (1..=count).map(seed).collect();
    let world = World::seeding(Setup::default(), &contents).await;
    (world, contents.iter().map(|content| content.hash).collect())
}

fn rows(result: &Value) -> BTreeSet<String> {
    let rows = result["results"].as_array().expect("results are a list");
    rows.iter().map(|row| row["hash"].as_str().unwrap().to_owned()).collect()
}

fn texts(hashes: &[InfoHash]) -> BTreeSet<String> {
    hashes.iter().map(InfoHash::to_string).collect()
}

#[tokio::test]
async fn each_verb_is_ok_only_when_rtorrent_shows_it() {
    if !can_run() {
        return;
    }
    let (world, hashes) = seeding(1).await;
    let hash = hashes[0];
    for (number, (verb, body, shown, event)) in [
        ("pause", json!({}), &[("d.is_active", "0"), ("d.state", "1")][..], Some("paused")),
        ("resume", json!({}), &[("d.is_active", "1")], Some("resumed")),
        ("stop", json!({}), &[("d.state", "0"), ("d.is_active", "0")], Some("stopped")),
        ("start", json!({}), &[("d.state", "1"), ("d.is_active", "1")], Some("started")),
        ("label", json!({"label": "linux & <co>, \"x\""}), &[], Some("label_changed")),
        ("label", json!({"label": "🦀 ünï"}), &[], Some("label_changed")),
        ("label", json!({"label": "$execute={touch,/tmp/never}"}), &[], Some("label_changed")),
        ("label", json!({"label": "linux"}), &[("d.custom1", "linux")], Some("label_changed")),
        ("priority", json!({"priority": 3}), &[("d.priority", "3")], Some("priority_changed")),
        ("recheck", json!({}), &[], None),
    ]
    .into_iter()
    .enumerate()
    {
        let mark = world.recorder.mark();
        let id = format!("verb-{number}");
        let mut body = body;
        body["id"] = json!(id);
        let result = world.recorder.command(&format!("home/torrent/{hash}/command/{verb}"), body).await;
        for (column, value) in shown {
            assert_eq!(world.home.get(hash, column).await.unwrap(), *value, "{column} when {verb} was {result}");
        }
        assert_eq!(result["status"], "ok", "{verb}: {result}");
        assert_eq!(result["schema"], "dtorrent.result/1");
        assert_eq!((&result["verb"], &result["server"]), (&json!(verb), &json!("home")));
        assert_eq!(result["results"], json!([{"hash": hash, "status": "ok"}]), "{verb}");
        if let Some(kind) = event {
            let event = world.recorder.event_after(mark, "home", kind, hash).await;
            assert_eq!((&event["cause"], &event["command_id"]), (&json!("command"), &json!(id)), "{event}");
        }
    }
    // `ok` means that the check has begun; its end may take a while.
    for (column, value) in [("d.hashing", "0"), ("d.complete", "1"), ("d.is_active", "1")] {
        world.home.wait_for(hash, column, value).await.unwrap();
    }
    let finished = world.recorder.events("home").iter().any(|event| event["event_type"] == "finished");
    assert!(!finished, "a re-check of a complete torrent is no `finished`");

    let result = world.recorder.command(&format!("home/torrent/{hash}/command/announce"), Value::Null).await;
    assert_eq!((&result["status"], &result["error"]["code"]), (&json!("error"), &json!("precondition")), "no tracker");

    let result = world.recorder.command(&format!("home/torrent/{hash}/command/delete"), json!({"id": "away"})).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert!(world.home.hashes().await.unwrap().is_empty());
    let removed = world.recorder.event("home", "removed", hash).await;
    assert_eq!((&removed["cause"], &removed["command_id"]), (&json!("command"), &json!("away")));
    assert!(world.home.downloads.join("seed-1.iso").is_file(), "the data stays");
    world.recorder.assert_gap_free("home");
}

#[tokio::test]
async fn a_verb_that_rtorrent_acknowledges_without_executing_is_an_error() {
    if !can_run() {
        return;
    }
    let mut world =
        World::new(Setup { rtorrent: Options { listen: Listen::Tcp, ..Options::default() }, ..Setup::default() }).await;
    // Each verb gets a torrent of its own, in the state that the verb changes. The effects are awaited concurrently.
    let cases = [
        ("pause", json!({}), "d.is_active", "1"),
        ("resume", json!({}), "d.is_active", "0"),
        ("stop", json!({}), "d.state", "1"),
        ("start", json!({}), "d.state", "0"),
        ("label", json!({"label": "linux"}), "d.custom1", ""),
        ("priority", json!({"priority": 3}), "d.priority", "2"),
        ("delete", json!({}), "d.state", "1"),
    ];
    let mut hashes = Vec::new();
    for (number, (verb, ..)) in (0..).zip(&cases) {
        let content = Content::file(verb, 50_000, number);
        content.write_to(&world.home.downloads).unwrap();
        let hash = world.home.load(&content.torrent, *verb != "start").await.unwrap();
        if *verb != "start" {
            world.home.wait_for(hash, "d.complete", "1").await.unwrap();
            world.home.wait_for(hash, "d.is_active", "1").await.unwrap();
        }
        if *verb == "resume" {
            world.home.act(hash, "d.pause", &[]).await.unwrap();
        }
        hashes.push(hash);
    }
    let Address::Tcp(address) = world.home.rpc.address else { unreachable!("it listens on a port") };
    let proxy = ScgiProxy::to(address).await;
    world.start_bridge_for(&[("home", &format!("scgi://{}", proxy.address))]).await;
    // Methods with the same parameters and no visible effect. A load answers 0 for any input.
    proxy.replace(&[
        (">d.pause<", ">d.state<"),
        (">d.resume<", ">d.state<"),
        (">d.start<", ">d.state<"),
        (">d.stop<", ">d.state<"),
        (">d.close<", ">d.state<"),
        (">d.erase<", ">d.state<"),
        (">d.custom1.set<", ">d.custom5.set<"),
        (">d.priority.set<", ">d.peers_max.set<"),
        ("<base64>", "<base64>AAAA"),
    ]);
    let added = Content::file("added", 50_000, 99);
    let torrent = base64::engine::general_purpose::STANDARD.encode(&added.torrent);
    let send = async |attempt: &str| {
        for ((verb, body, ..), hash) in cases.iter().zip(&hashes) {
            let mut body = body.clone();
            body["id"] = json!(format!("{verb} {attempt}"));
            let topic = format!("dtorrent/home/torrent/{hash}/command/{verb}");
            world.recorder.send(Command::new(&topic, body.to_string())).await;
        }
        let body = json!({"torrent": torrent, "start": false, "id": format!("add {attempt}")});
        world.recorder.send(Command::new("dtorrent/home/command/add", body.to_string())).await;
    };
    let verbs = || cases.iter().map(|(verb, ..)| *verb).chain(["add"]);
    send("no effect").await;
    for verb in verbs() {
        let result = world.recorder.result(&format!("{verb} no effect")).await;
        let error = if result["error"].is_null() { &result["results"][0]["error"] } else { &result["error"] };
        // rTorrent refuses a torrent without a reason: the load succeeds, and no torrent appears.
        let code = if verb == "add" { "client_fault" } else { "unconfirmed" };
        assert_eq!((&result["status"], &error["code"]), (&json!("error"), &json!(code)), "{verb}: {result}");
    }
    for ((verb, _, getter, unchanged), hash) in cases.iter().zip(&hashes) {
        assert_eq!(world.home.get(*hash, getter).await.unwrap(), *unchanged, "{getter} after {verb}");
    }
    assert_eq!(world.home.hashes().await.unwrap().len(), cases.len());
    // The same commands are `ok` when rTorrent receives them unchanged.
    proxy.replace(&[]);
    send("again").await;
    for verb in verbs() {
        let result = world.recorder.result(&format!("{verb} again")).await;
        assert_eq!(result["status"], "ok", "{verb}: {result}");
    }
    world.recorder.assert_gap_free("home");
}

#[tokio::test]
async fn many_torrents_are_selected_by_hashes_or_by_a_filter() {
    if !can_run() {
        return;
    }
    let (world, hashes) = seeding(3).await;
    let two = &hashes[..2];
    let body = json!({"hashes": two, "id": "two"});
    let result = world.recorder.command("home/command/pause", body).await;
    assert_eq!((&result["status"], rows(&result)), (&json!("ok"), texts(two)), "{result}");
    for (hash, active) in hashes.iter().zip(["0", "0", "1"]) {
        assert_eq!(world.home.get(*hash, "d.is_active").await.unwrap(), active);
    }
    for hash in two {
        let event = world.recorder.event("home", "paused", *hash).await;
        assert_eq!(event["command_id"], "two");
    }

    let body = json!({"filter": {"status": "paused", "name": "SEED-*.iso"}});
    let result = world.recorder.command("home/command/resume", body).await;
    assert_eq!((&result["status"], rows(&result)), (&json!("ok"), texts(two)), "{result}");
    assert_eq!(world.home.get(hashes[0], "d.is_active").await.unwrap(), "1");

    let unknown = "ab".repeat(20);
    let body = json!({"hashes": [hashes[2], unknown], "label": "x"});
    let result = world.recorder.command("home/command/label", body).await;
    assert_eq!(result["status"], "partial", "{result}");
    let bad = result["results"].as_array().unwrap().iter().find(|row| row["hash"] == unknown.as_str()).unwrap();
    assert_eq!((&bad["status"], &bad["error"]["code"]), (&json!("error"), &json!("unknown_hash")), "{bad}");
    assert_eq!(world.home.get(hashes[2], "d.custom1").await.unwrap(), "x");
}

#[tokio::test]
async fn get_and_list_answer_with_torrents() {
    if !can_run() {
        return;
    }
    let (world, hashes) = seeding(3).await;
    let topic = format!("home/torrent/{}/command/get", hashes[0]);
    let result = world.recorder.command(&topic, json!({"files": true, "trackers": true, "peers": true})).await;
    assert_eq!(result["status"], "ok", "{result}");
    let text = result.to_string();
    let file = json!({"name": "seed-1.iso", "path": "seed-1.iso", "length": 200_000, "progress": 100.0, "priority": 1});
    assert!(text.contains(&file["name"].to_string()), "{text}");
    let row = &result["results"][0];
    let files = if row["files"].is_array() { &row["files"] } else { &row["torrent"]["files"] };
    assert_eq!(*files, json!([file]), "{text}");
    assert_eq!(row["torrent"]["hash"], json!(hashes[0]), "{text}");

    let result = world.recorder.command("home/command/list", json!({"page_size": 2, "page": 0})).await;
    assert_eq!((result["status"].as_str(), rows(&result).len()), (Some("ok"), 2), "{result}");
    assert_eq!(result["total"], 3, "{result}");
    let result = world.recorder.command("home/command/list", json!({"page_size": 2, "page": 1})).await;
    assert_eq!(rows(&result).len(), 1, "{result}");
    let result = world.recorder.command("home/command/list", json!({"filter": {"name": "seed-2*"}})).await;
    assert_eq!(rows(&result), texts(&hashes[1..2]), "{result}");
    let result = world.recorder.command("home/command/list", json!({"filter": {"status": "stopped"}})).await;
    assert_eq!((result["status"].as_str(), rows(&result).len()), (Some("ok"), 0), "{result}");
}

#[tokio::test]
async fn a_list_is_not_older_than_its_request() {
    if !can_run() {
        return;
    }
    let setup = Setup { server: "interval = \"10s\"".to_owned(), ..Setup::default() };
    let mut world = World::running(setup).await;
    let hash = world.home.load(&Content::file("new", 1_000, 1).torrent, false).await.unwrap();
    let result = world.recorder.command("home/command/list", json!({})).await;
    assert_eq!((result["status"].as_str(), rows(&result)), (Some("ok"), texts(&[hash])), "{result}");
    let result = world.recorder.command("home/command/list", json!({"fields": ["name", "size"]})).await;
    assert_eq!(result["error"]["code"], "bad_request", "{result}");
    assert!(result["error"]["message"].as_str().unwrap().contains("no `size`"), "{result}");
    world.home.process().kill().unwrap();
    let result = world.recorder.command("home/command/list", json!({"ttl": "2s"})).await;
    assert_eq!(result["status"], "expired", "{result}");
}

#[tokio::test]
async fn a_result_is_also_sent_to_the_response_topic_with_its_correlation_data() {
    if !can_run() {
        return;
    }
    let (world, hashes) = seeding(1).await;
    let topic = format!("dtorrent/home/torrent/{}/command/pause", hashes[0]);
    let mut command = Command::new(&topic, r#"{"id": "asked"}"#);
    command.properties = PublishProperties {
        response_topic: Some("my/answers".to_owned()),
        correlation_data: Some(b"\x00\xff42".to_vec().into()),
        ..PublishProperties::default()
    };
    world.recorder.send(command).await;
    let find = |all: &[Message]| all.iter().find(|m| m.topic == "my/answers").cloned();
    let answer = world.recorder.wait_for("an answer on my/answers", find).await;
    assert_eq!(answer.properties.correlation_data.as_deref(), Some(&b"\x00\xff42"[..]));
    assert_eq!((&answer.json()["id"], &answer.json()["status"]), (&json!("asked"), &json!("ok")));
    assert_eq!(world.recorder.result("asked").await, answer.json(), "the same on the result topic");
}

#[tokio::test]
async fn each_malformed_command_gets_exactly_one_result_with_a_code() {
    if !can_run() {
        return;
    }
    let (world, hashes) = seeding(1).await;
    let one = format!("dtorrent/home/torrent/{}/command", hashes[0]);
    let unknown = "ab".repeat(20);
    let outside = json!({"file": "/etc/passwd"}).to_string();
    let around = json!({"file": format!("{}/../../x.torrent", world.home.downloads.display())}).to_string();
    let large = format!("{{\"id\": \"large\", \"label\": \"{}\"}}", "x".repeat(11 << 20));
    for (what, topic, body, codes) in [
        ("no JSON", format!("{one}/pause"), "{\"id\": ", &["bad_request"][..]),
        ("a list", format!("{one}/pause"), "[1]", &["bad_request"]),
        ("an unknown key", format!("{one}/pause"), "{\"speed\": 1}", &["bad_request"]),
        ("an unknown verb", format!("{one}/explode"), "", &["unsupported", "bad_request"]),
        ("an unknown hash", format!("dtorrent/home/torrent/{unknown}/command/pause"), "", &["unknown_hash"]),
        ("no hash", "dtorrent/home/torrent/xyz/command/pause".to_owned(), "", &["bad_request", "unknown_hash"]),
        ("a label that is a number", format!("{one}/label"), "{\"label\": 5}", &["bad_request"]),
        ("no label", format!("{one}/label"), "{}", &["bad_request"]),
        ("a priority of 9", format!("{one}/priority"), "{\"priority\": 9}", &["bad_request"]),
        ("no torrent selected", "dtorrent/home/command/pause".to_owned(), "", &["bad_request"]),
        (
            "an unknown status",
            "dtorrent/home/command/pause".to_owned(),
            "{\"filter\": {\"status\": \"x\"}}",
            &["bad_request"],
        ),
        ("nothing to add", "dtorrent/home/command/add".to_owned(), "{}", &["bad_request"]),
        ("a file outside", "dtorrent/home/command/add".to_owned(), &outside, &["forbidden"]),
        ("a file around the corner", "dtorrent/home/command/add".to_owned(), &around, &["forbidden"]),
        (
            "no right to it",
            "dtorrent/home/command/rpc".to_owned(),
            "{\"method\": \"system.pid\"}",
            &["forbidden", "unsupported"],
        ),
        ("11 MiB", format!("{one}/label"), &large, &["too_large"]),
    ] {
        let mark = world.recorder.mark();
        world.recorder.send(Command::new(&topic, body)).await;
        let is_result = |m: &&Message| m.topic == "dtorrent/home/result";
        let result = world
            .recorder
            .wait_for(&format!("a result of {what}"), |all| all[mark..].iter().find(is_result).cloned())
            .await
            .json();
        let row_code = &result["results"][0]["error"]["code"];
        let code = if result["error"].is_null() { row_code } else { &result["error"]["code"] };
        assert!(codes.iter().any(|wanted| *code == *wanted), "{what}: {result}");
        assert!(matches!(result["status"].as_str(), Some("error" | "refused")), "{what}: {result}");
        // A valid command afterwards: its result is the only other one.
        let topic = format!("home/torrent/{}/command/get", hashes[0]);
        world.recorder.command(&topic, Value::Null).await;
        let results = world.recorder.since(mark).into_iter().filter(|m| m.topic == "dtorrent/home/result").count();
        assert_eq!(results, 2, "{what}");
    }
    // An unknown server gets no result.
    world.recorder.assert_gap_free("home");
}

/// Waits until a command id has `count` results.
async fn answers(world: &World, id: &str, count: usize) {
    let is_answer = |m: &&Message| m.topic.ends_with("/result") && m.json()["id"] == id;
    let what = format!("{count} answers to {id}");
    world.recorder.wait_for(&what, |all| (all.iter().filter(is_answer).count() >= count).then_some(())).await;
}

#[tokio::test]
async fn the_same_id_is_executed_once_and_answered_the_same_again() {
    if !can_run() {
        return;
    }
    let (mut world, hashes) = seeding(1).await;
    let hash = hashes[0];
    let pause = format!("dtorrent/home/torrent/{hash}/command/pause");
    let resume = format!("home/torrent/{hash}/command/resume");
    world.recorder.send(Command::new(&pause, r#"{"id": "once"}"#)).await;
    let first = world.recorder.result("once").await;
    assert_eq!(first["status"], "ok", "{first}");
    assert_eq!(world.recorder.command(&resume, Value::Null).await["status"], "ok");

    world.recorder.send(Command::new(&pause, r#"{"id": "once"}"#)).await;
    answers(&world, "once", 2).await;
    assert_eq!(world.recorder.results("once"), [first.clone(), first.clone()]);
    assert_eq!(world.home.get(hash, "d.is_active").await.unwrap(), "1", "it was not paused again");

    // The next run does not execute it either.
    world.bridge().stop().await;
    world.bridge().restart();
    world.recorder.send(Command::new(&pause, r#"{"id": "once"}"#)).await;
    answers(&world, "once", 3).await;
    assert_eq!(world.recorder.results("once"), [first.clone(), first.clone(), first]);
    assert_eq!(world.home.get(hash, "d.is_active").await.unwrap(), "1");
    let events = world.recorder.assert_gap_free("home");
    assert_eq!(events.iter().filter(|event| event["event_type"] == "paused").count(), 1);
}

#[tokio::test]
async fn a_retained_command_is_refused_live_and_stored() {
    if !can_run() {
        return;
    }
    let (mut world, hashes) = seeding(1).await;
    let topic = format!("dtorrent/home/torrent/{}/command/pause", hashes[0]);
    let retained = |body: &str| Command { retain: true, ..Command::new(&topic, body) };
    world.recorder.send(retained(r#"{"id": "live"}"#)).await;
    let result = world.recorder.result("live").await;
    assert_eq!((&result["status"], &result["error"]["code"]), (&json!("refused"), &json!("retained")), "{result}");

    // A command that the broker has stored when the bridge starts.
    world.bridge().stop().await;
    world.recorder.send(retained(r#"{"id": "stored"}"#)).await;
    world.bridge().restart();
    let result = world.recorder.result("stored").await;
    assert_eq!((&result["status"], &result["error"]["code"]), (&json!("refused"), &json!("retained")), "{result}");
    assert_eq!(world.home.get(hashes[0], "d.is_active").await.unwrap(), "1");
}

#[tokio::test]
async fn a_command_sent_while_the_bridge_is_down_is_executed_after_its_restart() {
    if !can_run() {
        return;
    }
    let (mut world, hashes) = seeding(1).await;
    let topic = format!("dtorrent/home/torrent/{}/command/stop", hashes[0]);
    world.bridge().process().kill().unwrap();
    world.recorder.send(Command::new(&topic, r#"{"id": "waiting"}"#)).await;
    world.bridge().restart();
    let result = world.recorder.result("waiting").await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_eq!(world.home.get(hashes[0], "d.state").await.unwrap(), "0");
    let event = world.recorder.event("home", "stopped", hashes[0]).await;
    assert_eq!(event["command_id"], "waiting", "{event}");
    world.recorder.assert_gap_free("home");
}

#[tokio::test]
async fn commands_pending_for_a_server_that_left_the_config_are_answered() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let mut attic = Rtorrent::start(&world.folder.join("attic"), &Options::default()).await.unwrap();
    let (home_url, attic_url) = (world.home.url(), attic.url());
    world.start_bridge_for(&[("home", &home_url), ("attic", &attic_url)]).await;
    attic.process().kill().unwrap();
    world.recorder.server_event_after(0, "attic", "server_offline").await;
    let body = json!({"id": "late", "hashes": ["ab".repeat(20)]}).to_string();
    world.recorder.send(Command::new("dtorrent/attic/command/pause", body)).await;
    let database = world.database();
    database.until("the command is written down", |database| database.unfinished_commands() == 1).await;
    world.bridge().process().kill().unwrap();
    world.start_bridge_for(&[("home", &home_url)]).await;
    let result = world.recorder.result("late").await;
    assert_eq!((&result["server"], &result["error"]["code"]), (&json!("attic"), &json!("unknown_server")), "{result}");
    assert_eq!(database.unfinished_commands(), 0);
}

#[tokio::test]
async fn a_pattern_of_many_braces_is_refused_and_the_bridge_keeps_running() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let pattern = "{".repeat(200_000) + &"}".repeat(200_000);
    let result = world.recorder.command("home/command/list", json!({"filter": {"name": pattern}})).await;
    assert_eq!(result["error"]["code"], "bad_request", "{result}");
    let result = world.recorder.command("home/command/list", json!({})).await;
    assert_eq!(result["status"], "ok", "{result}");
}

#[tokio::test]
async fn a_command_that_expired_at_the_broker_is_not_executed() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let hash = world.home.load(&Content::file("x", 20_000, 1).torrent, false).await.unwrap();
    world.start_bridge().await;
    world.bridge().stop().await;
    let topic = format!("dtorrent/home/torrent/{hash}/command/label");
    for (id, ttl) in [("late", "1h"), ("patient", "23h")] {
        let body = json!({"id": id, "label": id, "ttl": ttl}).to_string();
        world.recorder.send(Command::new(&topic, body)).await;
    }
    // According to the state directory the last run ended two hours ago.
    let lock = std::fs::File::options().write(true).open(world.data_dir().join("dtorrent.lock")).unwrap();
    let stopped = lock.metadata().unwrap().modified().unwrap();
    lock.set_modified(stopped - Duration::from_secs(2 * 60 * 60)).unwrap();
    world.bridge().restart();
    assert_eq!(world.recorder.result("late").await["status"], "expired");
    assert_eq!(world.recorder.result("patient").await["status"], "ok");
    assert_eq!(world.home.get(hash, "d.custom1").await.unwrap(), "patient");
}

#[tokio::test]
async fn an_announce_is_ok_when_the_tracker_was_contacted() {
    if !can_run() {
        return;
    }
    let tracker = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/announce", tracker.local_addr().unwrap());
    let torrent = MetainfoBuilder::single("announced", 16_384).tracker(url).content(&[7; 40_000]).build();
    let mut world = World::new(Setup::default()).await;
    let hash = world.home.load(&torrent, true).await.unwrap();
    world.home.wait_for(hash, "d.is_active", "1").await.unwrap();
    let asked = async || drop(tokio::time::timeout(Duration::from_secs(20), tracker.accept()).await.unwrap().unwrap());
    asked().await; // when it was started
    world.start_bridge().await;
    let result = world.recorder.command(&format!("home/torrent/{hash}/command/announce"), Value::Null).await;
    assert_eq!(result["status"], "ok", "{result}");
    asked().await;
}

#[tokio::test]
async fn an_expired_query_is_not_executed() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let result = world.recorder.command("home/command/list", json!({"ttl": "0s"})).await;
    assert_eq!(result["status"], "expired", "{result}");
}

#[tokio::test]
async fn a_result_that_the_broker_refuses_is_sent_without_its_rows() {
    if !can_run() {
        return;
    }
    let mut setup = Setup::default();
    setup.broker.lines.push("max_packet_size 4000".to_owned());
    let mut world = World::new(setup).await;
    let names: Vec<String> = (0..60).map(|number| format!("a file with a long name, number {number}")).collect();
    let files: Vec<(&str, usize)> = names.iter().map(|name| (name.as_str(), 100)).collect();
    let content = Content::folder("many files", &files, 1);
    content.write_to(&world.home.downloads).unwrap();
    let hash = world.home.load(&content.torrent, true).await.unwrap();
    world.start_bridge().await;
    let result =
        world.recorder.command("home/command/get", json!({"id": "large", "hashes": [hash], "files": true})).await;
    assert_eq!((&result["status"], &result["results"]), (&json!("error"), &json!([])), "{result}");
    assert_eq!(result["error"]["code"], "too_large", "{result}");
    assert_eq!(world.recorder.results("large").len(), 1);
    let hashes: Vec<String> = (0..60).map(|n| format!("{n:040x}")).collect();
    let first = world.recorder.command("home/command/get", json!({"id": "long", "hashes": hashes})).await;
    let count = first["parts"].as_u64().unwrap();
    assert!((2..10).contains(&count), "no smaller than it has to be: {count}");
    let is_whole =
        |received: &[Message]| received.iter().any(|m| m.json()["id"] == "long" && m.json()["part"] == count);
    world.recorder.wait_for("the last part", |received| is_whole(received).then_some(())).await;
    let parts = world.recorder.results("long");
    assert_eq!(parts.iter().map(|part| rows(part).len()).sum::<usize>(), 60);
}

#[tokio::test]
async fn a_command_to_ten_thousand_torrents_has_a_row_for_each_that_is_done_and_counts_the_failures() {
    if !can_run() {
        return;
    }
    let (world, hashes) = seeding(2).await;
    let unknown = (0..9_998_u32).map(|number| {
        let mut bytes = [7; 20];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        InfoHash::from(bytes)
    });
    // Those that are there come last, behind more failures than have rows.
    let all: Vec<InfoHash> = unknown.chain(hashes.iter().copied()).collect();
    let topic = "dtorrent/home/command/label";
    let body = json!({"id": "many", "hashes": all, "label": "many"}).to_string();
    let mut command = Command::new(topic, body);
    command.properties.response_topic = Some("asker/answers".to_owned());
    command.properties.correlation_data = Some("1".into());
    world.recorder.send(command).await;
    for topic in ["dtorrent/home/result", "asker/answers"] {
        let find = |received: &[Message]| received.iter().find(|message| message.topic == topic).map(Message::json);
        let result = world.recorder.wait_within(Duration::from_secs(180), topic, find).await;
        assert_eq!((&result["id"], &result["status"]), (&json!("many"), &json!("partial")), "{}", result["error"]);
        let results = result["results"].as_array().unwrap();
        let (done, failed): (Vec<_>, Vec<_>) = results.iter().partition(|row| row["status"] == "ok");
        let done: BTreeSet<String> = done.iter().map(|row| row["hash"].as_str().unwrap().to_owned()).collect();
        assert_eq!(done, texts(&hashes));
        assert!(failed.iter().all(|row| row["error"]["code"] == "unknown_hash"));
        assert_eq!((failed.len(), &result["omitted"]), (100, &json!({"unknown_hash": 9_898})));
    }
    assert_eq!(world.home.get(hashes[0], "d.custom1").await.unwrap(), "many");
}
