//! The verb `trackers`, read at rTorrent.

use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{Argument, Rtorrent};
use serde_json::{Value, json};

use crate::harness::recorder::{Message, error_code};
use crate::harness::{Setup, World, can_run};

const FIRST: &str = "http://127.0.0.1:9/announce?passkey=secret";
const SECOND: &str = "http://127.0.0.2:9/announce";
const NEW: &str = "https://127.0.0.3:9/announce";
const UDP: &str = "udp://127.0.0.4:9/announce";

/// Returns the trackers of a torrent and whether they are asked, in the order of their URLs.
async fn trackers(home: &Rtorrent, hash: InfoHash) -> Vec<(String, bool)> {
    let hash = hash.to_rpc();
    let columns = [&hash[..], "", "t.url=", "t.is_enabled="].map(Argument::Text);
    let values = home.rpc.call("t.multicall", &columns).await.unwrap();
    let rows = values.chunks(2).map(|row| (row[0].clone(), row[1] == "1"));
    let mut rows: Vec<(String, bool)> = rows.filter(|(url, _)| url != "dht://").collect();
    rows.sort();
    rows
}

fn rows(expected: &[(&str, bool)]) -> Vec<(String, bool)> {
    let mut rows: Vec<(String, bool)> = expected.iter().map(|(url, is_on)| ((*url).to_owned(), *is_on)).collect();
    rows.sort();
    rows
}

fn topic(hash: InfoHash) -> String {
    format!("home/torrent/{hash}/command/trackers")
}

/// Returns a torrent with the first two trackers.
fn tracked(name: &str) -> (InfoHash, Vec<u8>) {
    let builder = dtorrent::model::MetainfoBuilder::single(name, 16384).tracker(FIRST).tracker(SECOND);
    let torrent = builder.content(b"content").build();
    (InfoHash::of_torrent(&torrent).unwrap(), torrent)
}

#[tokio::test]
async fn trackers_are_added_and_switched_on_and_off_and_stay_so() {
    if !can_run() {
        return;
    }
    let sink = "commands = [\"*\", \"secrets\"]".to_owned();
    let mut world = World::new(Setup { sink, ..Setup::default() }).await;
    let (hash, torrent) = tracked("tracked");
    world.home.load(&torrent, false).await.unwrap();
    world.start_bridge().await;
    assert_eq!(trackers(&world.home, hash).await, rows(&[(FIRST, true), (SECOND, true)]));
    for (body, expected) in [
        (json!({"add": [NEW, UDP, NEW]}), &[(FIRST, true), (SECOND, true), (NEW, true), (UDP, true)][..]),
        (json!({"disable": [FIRST, UDP]}), &[(FIRST, false), (SECOND, true), (NEW, true), (UDP, false)]),
        // What is so already is no error, with the scheme in any case.
        (
            json!({"add": ["HTTPS://127.0.0.3:9/announce"]}),
            &[(FIRST, false), (SECOND, true), (NEW, true), (UDP, false)],
        ),
        (json!({"add": [UDP], "disable": [SECOND]}), &[(FIRST, false), (SECOND, false), (NEW, true), (UDP, true)]),
        (json!({"enable": [FIRST], "disable": [NEW]}), &[(FIRST, true), (SECOND, false), (NEW, false), (UDP, true)]),
    ] {
        let result = world.recorder.command(&topic(hash), body.clone()).await;
        assert_eq!(result["status"], "ok", "{body}: {result}");
        assert_eq!(trackers(&world.home, hash).await, rows(expected), "{body}");
    }
    let listed = world.recorder.command(&format!("home/torrent/{hash}/command/get"), json!({"trackers": true})).await;
    let of_new = |tracker: &&Value| tracker["url"] == NEW;
    let shown = listed["results"][0]["torrent"]["trackers"].as_array().unwrap().iter().find(of_new).unwrap().clone();
    assert_eq!(shown["enabled"], false, "{listed}");

    world.home.restart().await.unwrap();
    let expected = rows(&[(FIRST, true), (SECOND, false), (NEW, false), (UDP, true)]);
    assert_eq!(trackers(&world.home, hash).await, expected, "saved");
}

#[tokio::test]
async fn the_tracker_of_a_torrent_follows_what_is_switched_off() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let (hash, torrent) = tracked("followed");
    world.home.load(&torrent, false).await.unwrap();
    world.start_bridge().await;
    for (body, host) in
        [(json!({"disable": [FIRST]}), "127.0.0.2"), (json!({"enable": [FIRST], "disable": [SECOND]}), "127.0.0.1")]
    {
        let mark = world.recorder.mark();
        let result = world.recorder.command(&topic(hash), body).await;
        assert_eq!(result["status"], "ok", "{result}");
        let state = format!("dtorrent/home/torrent/{hash}/state");
        let shows =
            |all: &[Message]| all[mark..].iter().any(|m| m.topic == state && m.json()["tracker"] == host).then_some(());
        world.recorder.wait_for("the host of the first that is asked", shows).await;
    }
}

#[tokio::test]
async fn trackers_that_cannot_be_changed_are_refused_and_nothing_is_half_done() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let (hash, torrent) = tracked("refused");
    world.home.load(&torrent, false).await.unwrap();
    let magnet: InfoHash = "ab".repeat(20).parse().unwrap();
    let link = format!("magnet:?xt=urn:btih:{magnet}&tr=http%3A%2F%2F127.0.0.1%3A9%2Fannounce");
    world.home.rpc.call("load.normal", &[Argument::Text(""), Argument::Text(&link)]).await.unwrap();
    world.home.wait_for(magnet, "d.is_meta", "1").await.unwrap();
    world.start_bridge().await;
    let absent: InfoHash = "cd".repeat(20).parse().unwrap();
    for (torrent, body, code) in [
        (hash, json!({"add": [NEW], "remove": [FIRST]}), "unsupported"),
        (hash, json!({"add": [NEW], "disable": ["http://127.0.0.1:9/announce?passkey=secret2"]}), "precondition"),
        (hash, json!({"enable": [UDP]}), "precondition"),
        (hash, json!({}), "bad_request"),
        (hash, json!({"add": []}), "bad_request"),
        (hash, json!({"add": NEW}), "bad_request"),
        (hash, json!({"add": ["file:///etc/secret"]}), "bad_request"),
        (hash, json!({"add": ["$execute={touch,secret}"]}), "bad_request"),
        (hash, json!({"add": ["dht://"]}), "bad_request"),
        (hash, json!({"add": ["http:///127.0.0.1/secret"]}), "bad_request"),
        (hash, json!({"add": ["http://127.0.0.1/\n"]}), "bad_request"),
        (hash, json!({"add": [NEW], "disable": [NEW]}), "bad_request"),
        (hash, json!({"add": vec![NEW; 51]}), "bad_request"),
        (magnet, json!({"add": [NEW]}), "precondition"),
        (absent, json!({"add": [NEW]}), "unknown_hash"),
    ] {
        let result = world.recorder.command(&topic(torrent), body.clone()).await;
        assert_eq!(error_code(&result), code, "{body}: {result}");
        assert!(!result.to_string().contains("secret"), "{result}");
        assert_eq!(trackers(&world.home, hash).await, rows(&[(FIRST, true), (SECOND, true)]), "{body}");
    }
    let dry = world.recorder.command(&topic(hash), json!({"remove": [FIRST], "dry_run": true})).await;
    assert_eq!(error_code(&dry), "unsupported", "{dry}");
    // On the server's topic nothing says which torrent.
    let result = world.recorder.command("home/command/trackers", json!({"add": [NEW]})).await;
    assert_eq!(error_code(&result), "bad_request", "{result}");
    assert!(!world.bridge().log().contains("secret"), "no passkey in the log");
}

/// Ten requests to one tracker within ten seconds abort rTorrent 0.9.8.
#[tokio::test]
async fn a_running_torrent_survives_quick_changes_of_its_trackers() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let content = Content::file("quick", 50_000, 1);
    world.home.load(&content.torrent, true).await.unwrap();
    world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
    world.start_bridge().await;
    for list in ["add", "disable", "enable", "disable", "enable"] {
        let result = world.recorder.command(&topic(content.hash), json!({list: [SECOND]})).await;
        assert_eq!(result["status"], "ok", "{list}: {result}");
    }
    assert_eq!(trackers(&world.home, content.hash).await, rows(&[(SECOND, true)]));
    assert_eq!(world.home.get(content.hash, "d.is_active").await.unwrap(), "1");
}

#[tokio::test]
async fn trackers_are_shown_and_changed_from_the_command_line() {
    if !can_run() {
        return;
    }
    let world = World::new(Setup::default()).await;
    let (hash, torrent) = tracked("tracked");
    world.home.load(&torrent, false).await.unwrap();
    world.write_config(&[("home", &world.home.url())]);
    let ask = async |arguments: &[&str]| world.ask(&[&["trackers", "tracked"], arguments].concat(), &[]).await;
    let (code, shown, _) = ask(&[]).await;
    assert!(code == 0 && shown.starts_with("ENABLED") && shown.contains(SECOND), "{shown}");
    for (arguments, expected) in [
        (&["--add", NEW, "--add", UDP][..], &[(FIRST, true), (SECOND, true), (NEW, true), (UDP, true)][..]),
        (&["--disable", FIRST, "--dry-run"], &[(FIRST, true), (SECOND, true), (NEW, true), (UDP, true)]),
        (&["--disable", FIRST, "--disable", UDP], &[(FIRST, false), (SECOND, true), (NEW, true), (UDP, false)]),
        (&["--enable", UDP], &[(FIRST, false), (SECOND, true), (NEW, true), (UDP, true)]),
    ] {
        let (code, _, printed) = ask(arguments).await;
        assert_eq!(code, 0, "{arguments:?}: {printed}");
        assert_eq!(trackers(&world.home, hash).await, rows(expected), "{arguments:?}");
    }
    let (_, json, _) = ask(&["--json"]).await;
    let listed: Vec<Value> = serde_json::from_str(&json).unwrap();
    let first = listed.iter().find(|tracker| tracker["url"] == FIRST).unwrap();
    assert_eq!(first["enabled"], false, "{json}");
    for (arguments, code, expected) in [
        (&["--add", "ftp://x/announce"][..], 2, "add[0]: use an http, https or udp URL"),
        (&["--enable", NEW, "--disable", NEW], 2, "a tracker is in"),
        (&["--remove", NEW], 1, ""),
    ] {
        let (is, _, printed) = ask(arguments).await;
        assert!(is == code && printed.contains(expected), "{arguments:?}: {is} {printed}");
    }
    let (code, _, printed) = world.ask(&["trackers", "other"], &[]).await;
    assert_eq!((code, printed.as_str()), (1, "no torrent matches `other`\n"));
}
