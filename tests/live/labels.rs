//! Labels as other clients of the same rTorrent read them.

use dtorrent::model::MetainfoBuilder;
use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use percent_encoding::percent_decode_str;
use serde_json::json;

use crate::harness::{Setup, World, base64, can_run};

/// Labels that a reader gets wrong, or fails on, when they are stored as they are.
const LABELS: &[&str] = &[
    "100%",
    "50% off",
    "50%41",
    "50%20x",
    "%25",
    "%",
    "%2",
    "%%41",
    "%zz",
    "%ff",
    "%C3%BC",
    "a, b",
    "a+b & c=d",
    "a;b",
    "\"a\" 'b' \\ {c}",
    "e\u{301} \u{200d} \u{a0}x",
    "Ünï ☃",
    "crab 🦀",
    " both ends ",
    "$execute.throw=id",
    "plain",
    "",
];

/// Reads a label as `decodeURIComponent` of ruTorrent and Flood does, which throws where a `%` begins no byte, and where
/// the bytes are no text. Flood splits at commas before.
fn decoded_by_others(stored: &str) -> Option<String> {
    let begins_byte = |rest: &str| rest.get(..2).is_some_and(|two| two.bytes().all(|digit| digit.is_ascii_hexdigit()));
    let is_whole = stored.split('%').skip(1).all(begins_byte) && !stored.contains(',');
    is_whole.then(|| percent_decode_str(stored).decode_utf8().ok().map(String::from)).flatten()
}

async fn assert_readable(world: &World, hash: InfoHash, label: &str, how: &str) {
    let stored = world.home.get(hash, "d.custom1").await.unwrap();
    assert_eq!(decoded_by_others(&stored).as_deref(), Some(label), "{how}: stored as {stored:?}");
    let listed = world.recorder.command("home/command/list", json!({"fields": ["hash", "label"]})).await;
    let of_torrent = |row: &&serde_json::Value| row["hash"] == json!(hash);
    let row = listed["results"].as_array().unwrap().iter().find(of_torrent).unwrap();
    assert_eq!(row["torrent"]["label"], label, "{how}: shown by us");
}

#[tokio::test]
async fn rutorrent_and_flood_can_read_every_label_that_we_store() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let content = Content::file("labelled", 20_000, 1);
    world.home.load(&content.torrent, false).await.unwrap();
    world.recorder.event("home", "added", content.hash).await;
    for (number, label) in LABELS.iter().enumerate() {
        let topic = format!("home/torrent/{}/command/label", content.hash);
        let result = world.recorder.command(&topic, json!({"label": label})).await;
        assert_eq!(result["status"], "ok", "{label:?}: {result}");
        assert_readable(&world, content.hash, label, "label").await;

        let torrent = MetainfoBuilder::single(format!("added {number}"), 16384).content(b"content").build();
        let hash = InfoHash::of_torrent(&torrent).unwrap();
        let body = json!({"torrent": base64(&torrent), "start": false, "label": label});
        let result = world.recorder.command("home/command/add", body).await;
        assert_eq!(result["status"], "ok", "{label:?}: {result}");
        assert_readable(&world, hash, label, "add").await;

        let hash = InfoHash::from([u8::try_from(number).unwrap(); 20]);
        let body = json!({"magnet": format!("magnet:?xt=urn:btih:{hash}"), "start": false, "label": label});
        let result = world.recorder.command("home/command/add", body).await;
        assert_eq!(result["status"], "ok", "{label:?}: {result}");
        assert_readable(&world, hash, label, "a magnet link").await;
    }
}

#[tokio::test]
async fn a_label_that_somebody_else_stored_is_read_leniently() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let content = Content::file("foreign", 20_000, 1);
    let hash = world.home.load(&content.torrent, false).await.unwrap();
    world.start_bridge().await;
    for (stored, shown) in [
        ("100%", "100%"),
        ("50%25", "50%"),
        ("%2525", "%25"),
        ("%zz", "%zz"),
        ("50%20x", "50 x"),
        ("a%20b", "a b"),
        ("%ff", "%ff"),
        ("one,two%2C2", "one,two,2"),
    ] {
        let mark = world.recorder.mark();
        world.home.act(hash, "d.custom1.set", &[dtorrent_peers::rtorrent::Argument::Text(stored)]).await.unwrap();
        let event = world.recorder.event_after(mark, "home", "label_changed", hash).await;
        assert_eq!(event["torrent"]["label"], shown, "{stored}");
        // The same label again is no change, and is stored so that others can read it.
        let topic = format!("home/torrent/{hash}/command/label");
        let result = world.recorder.command(&topic, json!({"label": shown})).await;
        assert_eq!(result["status"], "ok", "{stored}: {result}");
        assert_readable(&world, hash, shown, stored).await;
    }
}
