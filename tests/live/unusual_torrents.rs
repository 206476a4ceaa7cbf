//! Names that break naive parsers, and one torrent on two servers.

use dtorrent::model::MetainfoBuilder;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{Options, Rtorrent};
use serde_json::{Value, json};

use crate::harness::{Setup, World, can_run};

#[tokio::test]
async fn an_undecodable_name_is_shown_as_far_as_possible_and_affects_no_other_torrent() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let plain = world.home.load(&Content::file("plain", 20_000, 1).torrent, false).await.unwrap();
    let names: [(&[u8], Option<&str>); 8] = [
        ("Ünï ☃".as_bytes(), Some("Ünï ☃")),
        ("a <b> & \"c\" 'd' ]]> &amp; &#65;".as_bytes(), Some("a <b> & \"c\" 'd' ]]> &amp; &#65;")),
        ("crab 🦀 emoji".as_bytes(), None),
        (b"caf\xe9 latin", None),
        (b"control \x01\x1b[31m", None),
        (b"line\r\nbreak", None),
        (b"surrogate \xed\xa0\x80", None),
        ("$execute={touch,/tmp/never} # + / >".replace('/', "|").leak().as_bytes(), None),
    ];
    let mut hashes = Vec::new();
    for (name, shown) in names {
        let torrent = MetainfoBuilder::single(name, 16384).content(b"content").build();
        hashes.push((world.home.load(&torrent, false).await.unwrap(), shown));
    }
    world.start_bridge().await;
    for (hash, shown) in &hashes {
        let event = world.recorder.event("home", "added", *hash).await;
        let name = event["torrent"]["name"].as_str().unwrap();
        assert!(!name.is_empty(), "{event}");
        if let Some(shown) = shown {
            assert_eq!(name, *shown);
        }
        // Commands for it work.
        let topic = format!("home/torrent/{hash}/command/label");
        let result = world.recorder.command(&topic, json!({"label": "odd"})).await;
        assert_eq!(result["status"], "ok", "{name:?}: {result}");
    }
    let event = world.recorder.event("home", "added", plain).await;
    assert_eq!(event["torrent"]["name"], "plain");
    let events = world.recorder.assert_gap_free("home");
    let added = events.iter().filter(|event| event["event_type"] == "added");
    assert_eq!(added.count(), hashes.len() + 1, "each once");
}

#[tokio::test]
async fn one_torrent_on_two_servers_has_independent_events() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let attic = Rtorrent::start(&world.folder.join("attic"), &Options::default()).await.unwrap();
    let content = Content::file("on both", 50_000, 1);
    world.home.load(&content.torrent, false).await.unwrap();
    attic.load(&content.torrent, false).await.unwrap();
    let (home_url, attic_url) = (world.home.url(), attic.url());
    world.start_bridge_for(&[("home", &home_url), ("attic", &attic_url)]).await;

    let result =
        world.recorder.command(&format!("attic/torrent/{}/command/label", content.hash), json!({"label": "up"})).await;
    assert_eq!((&result["status"], &result["server"]), (&json!("ok"), &json!("attic")), "{result}");
    world.recorder.event("attic", "label_changed", content.hash).await;
    world.home.act(content.hash, "d.erase", &[]).await.unwrap();
    world.recorder.event("home", "removed", content.hash).await;

    let kinds = |server: &str| {
        let events = world.recorder.assert_gap_free(server);
        let of_torrent = events.iter().filter(|event| event["hash"].is_string());
        of_torrent.map(|event| event["event_type"].clone()).collect::<Vec<Value>>()
    };
    assert_eq!(kinds("home"), ["added", "removed"]);
    assert_eq!(kinds("attic"), ["added", "label_changed"]);
    assert_eq!(world.home.hashes().await.unwrap(), []);
    assert_eq!(attic.get(content.hash, "d.custom1").await.unwrap(), "up");
}
