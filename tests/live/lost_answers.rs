//! Answers of rTorrent that are late, cut or replaced by a web server's: the command goes on until its effect is seen.

use std::time::Duration;

use base64::Engine as _;
use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{Address, Argument, Listen, Options};
use serde_json::{Value, json};

use crate::harness::faulty::{Fault, FaultyServer, LOSSES};
use crate::harness::recorder::{Command, Message, error_code, events_in};
use crate::harness::{Setup, World, can_run};

/// Limit of one exchange in these tests.
const TIMEOUT: Duration = Duration::from_millis(400);
/// Time from one full poll to the next in the test of these.
const SWEEP: Duration = Duration::from_secs(1);

/// An rTorrent behind a server that loses answers, with these torrents, started or not; they have no content.
async fn behind_faults(contents: &[(&Content, bool)], seed: u64) -> (World, FaultyServer) {
    let lines = vec!["throttle.up = slow,100".to_owned()];
    let rtorrent = Options { listen: Listen::Tcp, lines, ..Options::default() };
    let server = format!("timeout = \"{}ms\"\nsweep = \"2s\"\nrpc = [\"d.custom2.set\"]", TIMEOUT.as_millis());
    let sink = "commands = [\"*\"]".to_owned();
    let mut world = World::new(Setup { rtorrent, server, sink, ..Setup::default() }).await;
    for (content, start) in contents {
        world.home.load(&content.torrent, *start).await.unwrap();
        if *start {
            world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
        }
    }
    let Address::Tcp(address) = world.home.rpc.address else { unreachable!("it listens on a port") };
    let server = FaultyServer::to(address, TIMEOUT, seed).await;
    server.set_victim(world.home.process().pid());
    world.start_bridge_for(&[("home", &server.url())]).await;
    (world, server)
}

fn of_torrent(hash: InfoHash, verb: &str) -> String {
    format!("home/torrent/{hash}/command/{verb}")
}

fn torrent_of(content: &Content) -> String {
    base64::engine::general_purpose::STANDARD.encode(&content.torrent)
}

#[tokio::test]
async fn a_change_whose_answer_was_lost_is_ok_when_rtorrent_shows_it() {
    if !can_run() {
        return;
    }
    // The verb, its body, a method that it calls, and what rTorrent shows afterwards.
    let cases = [
        ("label", json!({"label": "linux"}), "d.custom1.set", "d.custom1", "linux"),
        ("priority", json!({"priority": 3}), "d.priority.set", "d.priority", "3"),
        ("stop", json!({}), "d.stop", "d.state", "0"),
        ("pause", json!({}), "d.pause", "d.is_active", "0"),
        ("throttle", json!({"throttle": "slow"}), "d.throttle_name.set", "d.throttle_name", "slow"),
        ("recheck", json!({}), "d.check_hash", "d.hashing", "0"),
        ("delete", json!({}), "d.erase", "d.state", ""),
    ];
    let contents: Vec<Content> = (0..cases.len() * LOSSES.len())
        .map(|number| Content::file(&format!("lost-{number}"), 50_000, number as u64))
        .collect();
    let started: Vec<(&Content, bool)> = contents.iter().map(|content| (content, true)).collect();
    let (world, server) = behind_faults(&started, 0).await;
    let mut torrents = contents.iter();
    for (verb, body, method, getter, value) in &cases {
        for fault in LOSSES {
            let hash = torrents.next().unwrap().hash;
            let before = server.count(fault);
            server.fail_next(method, fault, 1);
            let result = world.recorder.command(&of_torrent(hash, verb), body.clone()).await;
            assert_eq!(server.count(fault), before + 1, "{verb} {fault:?}");
            assert_eq!(result["status"], "ok", "{verb} {fault:?}: {result}");
            if value.is_empty() {
                assert!(!world.home.hashes().await.unwrap().contains(&hash), "{fault:?}");
            } else {
                world.home.wait_for(hash, getter, value).await.unwrap();
            }
            let kind = match *verb {
                "label" => "label_changed",
                "priority" => "priority_changed",
                "stop" => "stopped",
                "pause" => "paused",
                "delete" => "removed",
                _ => continue,
            };
            let event = world.recorder.event("home", kind, hash).await;
            assert_eq!(event["cause"], "command", "{verb} {fault:?}: {event}");
            assert_eq!(event["command_id"], result["id"], "{verb} {fault:?}: {event}");
        }
    }
    world.recorder.assert_gap_free("home");
}

#[tokio::test]
async fn an_added_torrent_whose_answer_was_lost_gets_all_that_belongs_to_it() {
    if !can_run() {
        return;
    }
    let (world, server) = behind_faults(&[], 0).await;
    let directory = world.home.downloads.join("sub");
    std::fs::create_dir(&directory).unwrap();
    let mut number = 0;
    for method in ["load.raw", "d.custom1.set", "d.is_active"] {
        for fault in LOSSES {
            number += 1;
            let content = Content::file(&format!("added-{number}"), 50_000, number);
            let before = server.count(fault);
            // Not the first reading of the torrent, which finds out whether it is there already.
            server.fail_next(method, fault, 1);
            let start = number % 2 == 0;
            let body = json!({
                "torrent": torrent_of(&content), "label": "new", "priority": 3, "start": start,
                "directory": directory.to_string_lossy(), "id": format!("{method} {fault:?}"),
            });
            let result = world.recorder.command("home/command/add", body).await;
            assert_eq!(server.count(fault), before + 1, "{method} {fault:?}");
            assert_eq!(result["status"], "ok", "{method} {fault:?}: {result}");
            let expected = [("d.custom1", "new"), ("d.priority", "3"), ("d.state", if start { "1" } else { "0" })];
            for (getter, value) in expected {
                assert_eq!(world.home.get(content.hash, getter).await.unwrap(), value, "{method} {fault:?} {getter}");
            }
            let now = world.home.get(content.hash, "d.directory").await.unwrap();
            assert_eq!(now, directory.to_string_lossy(), "{method} {fault:?}");
            let event = world.recorder.event("home", "added", content.hash).await;
            assert_eq!((&event["cause"], &event["command_id"]), (&json!("command"), &result["id"]), "{event}");
        }
    }
    let of_others = |event: &&Value| event["hash"].is_string() && event["cause"] != "command";
    let events = world.recorder.assert_gap_free("home");
    assert_eq!(events.iter().find(of_others), None);
}

#[tokio::test]
async fn a_lost_answer_changes_nothing_for_reading_and_for_limits() {
    if !can_run() {
        return;
    }
    let content = Content::file("read", 50_000, 1);
    let (world, server) = behind_faults(&[(&content, false)], 0).await;
    for fault in LOSSES {
        server.fail_next("f.multicall", fault, 1);
        let result = world.recorder.command(&of_torrent(content.hash, "get"), json!({"files": true})).await;
        assert_eq!(result["results"][0]["torrent"]["files"][0]["name"], "read", "{fault:?}: {result}");
        server.fail_next("throttle.global_down", fault, 1);
        let result = world.recorder.command("home/command/limits", json!({"download_limit": 102_400})).await;
        assert_eq!(result["status"], "ok", "{fault:?}: {result}");
    }
}

#[tokio::test]
async fn a_torrent_of_somebody_else_is_left_alone_also_when_reading_it_failed() {
    if !can_run() {
        return;
    }
    let content = Content::file("theirs", 50_000, 1);
    let (world, server) = behind_faults(&[(&content, false)], 0).await;
    for fault in LOSSES {
        server.fail_next("d.custom1", fault, 1);
        let body = json!({"torrent": torrent_of(&content), "label": "mine"});
        let result = world.recorder.command("home/command/add", body).await;
        assert_eq!(*error_code(&result), "precondition", "{fault:?}: {result}");
        assert_eq!(world.home.get(content.hash, "d.custom1").await.unwrap(), "", "{fault:?}");
    }
}

#[tokio::test]
async fn a_change_that_is_never_answered_nor_shown_is_unconfirmed() {
    if !can_run() {
        return;
    }
    let content = Content::file("stubborn", 50_000, 1);
    let (world, server) = behind_faults(&[(&content, false)], 0).await;
    server.fail_next("d.custom1.set", Fault::SwallowRequest, usize::MAX);
    let result = world.recorder.command(&of_torrent(content.hash, "label"), json!({"label": "x", "ttl": "1s"})).await;
    assert_eq!((&result["status"], error_code(&result)), (&json!("error"), &json!("unconfirmed")), "{result}");
    assert!(result["took_ms"].as_u64().unwrap() < 21_000, "{result}");
}

#[tokio::test]
async fn a_method_whose_answer_was_lost_is_unconfirmed_and_not_called_again() {
    if !can_run() {
        return;
    }
    let content = Content::file("called", 50_000, 1);
    let (world, server) = behind_faults(&[(&content, false)], 0).await;
    for fault in [Fault::SwallowRequest, Fault::CutRequest, Fault::GatewayTimeoutBefore] {
        server.fail_next("d.custom2.set", fault, 1);
        let body = json!({"method": "d.custom2.set", "params": [content.hash.to_rpc(), "x"]});
        let result = world.recorder.command("home/command/rpc", body).await;
        assert_eq!((error_code(&result), server.count(fault)), (&json!("unconfirmed"), 1), "{fault:?}: {result}");
        // Behind it, so a second call would have been made by now.
        let result = world.recorder.command(&of_torrent(content.hash, "label"), json!({"label": "x"})).await;
        assert_eq!(result["status"], "ok", "{fault:?}: {result}");
        assert_eq!(world.home.get(content.hash, "d.custom2").await.unwrap(), "", "{fault:?}");
    }
}

#[tokio::test]
async fn a_torrent_that_runs_goes_on_after_a_move_whose_answers_are_lost() {
    if !can_run() {
        return;
    }
    let cases = [
        (false, "d.start", Fault::CutAnswer),
        (false, "d.start", Fault::SwallowAnswer),
        (false, "d.start", Fault::GatewayTimeoutAfter),
        (false, "d.directory.set", Fault::CutAnswer),
        (true, "d.start", Fault::CutAnswer),
        (true, "d.directory.set", Fault::SwallowAnswer),
    ];
    let contents: Vec<Content> =
        (0..cases.len() as u64).map(|number| Content::file(&format!("moved-{number}"), 50_000, number)).collect();
    let loaded: Vec<(&Content, bool)> = contents.iter().map(|content| (content, true)).collect();
    let (world, server) = behind_faults(&loaded, 0).await;
    for (number, (content, (data, method, fault))) in contents.iter().zip(cases).enumerate() {
        server.fail_next(method, fault, 1);
        let body = json!({"directory": world.home.downloads.join(number.to_string()), "data": data});
        let result = world.recorder.command(&of_torrent(content.hash, "move"), body).await;
        assert_eq!(result["status"], "ok", "{data} {method} {fault:?}: {result}");
        server.fail_next(method, fault, 0);
    }
    assert_eq!(server.counts().values().sum::<usize>(), cases.len(), "a fault did not happen");
    // Longer than a pause is put off that would be one announce too many.
    tokio::time::sleep(Duration::from_secs(12)).await;
    for (content, case) in contents.iter().zip(cases) {
        assert_eq!(world.home.get(content.hash, "d.is_active").await.unwrap(), "1", "{case:?}");
        let held = [Argument::Text(&content.hash.to_rpc()), Argument::Text("dtorrent_held")];
        assert_eq!(world.home.rpc.call("d.custom", &held).await.unwrap(), [""], "{case:?}");
    }
}

#[tokio::test]
async fn what_kills_rtorrent_is_asked_twice_and_not_in_a_loop() {
    if !can_run() {
        return;
    }
    let contents = [Content::file("deadly", 50_000, 1), Content::file("harmless", 50_000, 2)];
    let (mut world, server) = behind_faults(&[(&contents[0], false), (&contents[1], false)], 0).await;
    for content in &contents {
        world.home.act(content.hash, "d.save_full_session", &[]).await.unwrap();
    }
    let hash = contents[0].hash;
    let mut deaths = 0;
    for (verb, body, method) in [
        ("label", json!({"label": "x"}), "d.custom1.set"),
        ("recheck", json!({}), "d.check_hash"),
        ("get", json!({"files": true}), "f.multicall"),
    ] {
        server.fail_next(method, Fault::Kill, usize::MAX);
        let topic = format!("dtorrent/{}", of_torrent(hash, verb));
        let mut body = body.clone();
        body["id"] = json!(verb);
        world.recorder.send(Command::new(&topic, body.to_string())).await;
        for _ in 0..2 {
            deaths += 1;
            server.wait_for(Fault::Kill, deaths).await;
            world.home.restart().await.unwrap();
            server.set_victim(world.home.process().pid());
        }
        let result = world.recorder.result(verb).await;
        assert_eq!((&result["status"], error_code(&result)), (&json!("error"), &json!("client_fault")), "{result}");
        assert!(result.to_string().contains("ended 2 times"), "{result}");
        server.fail_next(method, Fault::Kill, 0);
        // Others go on.
        let result = world.recorder.command(&of_torrent(contents[1].hash, "priority"), json!({"priority": 1})).await;
        assert_eq!(result["status"], "ok", "{result}");
        assert_eq!(server.count(Fault::Kill), deaths, "{verb}");
    }
}

#[tokio::test]
async fn the_next_full_poll_comes_in_time_after_exchanges_without_an_answer() {
    if !can_run() {
        return;
    }
    let contents: Vec<Content> =
        (0..2).map(|number| Content::file(&format!("polled-{number}"), 50_000, number)).collect();
    let rtorrent = Options { listen: Listen::Tcp, ..Options::default() };
    let server = format!("timeout = \"3s\"\nsweep = \"{}s\"", SWEEP.as_secs());
    let mut world = World::new(Setup { rtorrent, server, ..Setup::default() }).await;
    for content in &contents {
        world.home.load(&content.torrent, false).await.unwrap();
    }
    let Address::Tcp(address) = world.home.rpc.address else { unreachable!("it listens on a port") };
    let server = FaultyServer::to(address, Duration::from_secs(3), 0).await;
    world.start_bridge_for(&[("home", &server.url())]).await;
    // A label is read by full polls alone, but for that of a torrent with a command.
    for (number, (method, fault)) in [
        ("d.custom1.set", Fault::SwallowAnswer),
        ("d.custom1.set", Fault::SwallowRequest),
        ("d.custom1=", Fault::DelayAnswer),
    ]
    .into_iter()
    .enumerate()
    {
        server.fail_next(method, fault, 2);
        for times in 1..=2 {
            let body = json!({"label": format!("{number} {times}")}).to_string();
            world
                .recorder
                .send(Command::new(&format!("dtorrent/{}", of_torrent(contents[0].hash, "label")), body))
                .await;
            server.wait_for(fault, times).await;
        }
        let mark = world.recorder.mark();
        world
            .home
            .act(contents[1].hash, "d.custom1.set", &[Argument::Text(&format!("by hand {number}"))])
            .await
            .unwrap();
        // Polls behind those exchanges wait until their time is over. If that counted for what a poll takes of rTorrent,
        // the next full one would be put off by twenty times as long.
        let is_shown = |all: &[Message]| {
            events_in(&all[mark..], "home").into_iter().find(|event| {
                event["event_type"] == "label_changed" && event["hash"] == json!(contents[1].hash.to_string())
            })
        };
        world.recorder.wait_within(20 * SWEEP, "a full poll", is_shown).await;
    }
}
