//! Custom values of added torrents, read at rTorrent.

use dtorrent::model::MetainfoBuilder;
use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{Argument, Options, Rtorrent};
use serde_json::{Value, json};

use crate::harness::recorder::error_code;
use crate::harness::{Setup, World, base64, can_run};

/// Every sign that code of rTorrent could consist of, but for the three that a magnet link cannot have.
const SIGNS: &str = " !#%&'()*+,-./09:;<=>?@AZ[]^_`az{|}~ Ünï ☃ ";

async fn assert_custom(home: &Rtorrent, hash: InfoHash, values: &Value) {
    let hash = hash.to_rpc();
    for (key, value) in values.as_object().unwrap() {
        let read = [&hash[..], key].map(Argument::Text);
        let stored = home.rpc.call("d.custom", &read).await.unwrap();
        assert_eq!(stored, [value.as_str().unwrap()], "{key}");
    }
}

fn torrent(name: &str) -> (InfoHash, String) {
    let bytes = MetainfoBuilder::single(name, 16384).content(b"content").build();
    (InfoHash::of_torrent(&bytes).unwrap(), base64(&bytes))
}

#[tokio::test]
async fn custom_values_of_a_torrent_file_are_kept_as_they_came_and_run_nothing() {
    if !can_run() {
        return;
    }
    let mut world = World::running(Setup::default()).await;
    let proof = world.folder.join("executed");
    let code = format!("$execute.nothrow=touch,{}", proof.display());
    let values = json!({
        "source": "sonarr", "x.my-key_1": SIGNS, "code": code, "quoted": format!("\"{code}\""), "slash": "a\\", "empty": "",
        "long": "v".repeat(1024),
    });
    let (hash, base64) = torrent("kept");
    let body = json!({"torrent": base64, "start": false, "label": "l", "custom": values});
    let result = world.recorder.command("home/command/add", body.clone()).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_custom(&world.home, hash, &values).await;
    assert!(!world.home.get(hash, "d.custom1").await.unwrap().is_empty(), "the label is there, too");

    // Again is no change; other values are one, to a torrent that is somebody's.
    let result = world.recorder.command("home/command/add", body.clone()).await;
    assert_eq!(result["status"], "ok", "{result}");
    let mut other = body;
    other["custom"]["source"] = json!("radarr");
    let result = world.recorder.command("home/command/add", other).await;
    assert_eq!(error_code(&result), "precondition", "{result}");
    assert_custom(&world.home, hash, &values).await;

    // Saved at once: a crash of rTorrent loses nothing.
    world.home.restart().await.unwrap();
    assert_custom(&world.home, hash, &values).await;
    assert!(!proof.try_exists().unwrap());
}

#[tokio::test]
async fn custom_values_of_a_magnet_link_survive_its_resolution_and_run_nothing() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let seeder = Rtorrent::start(&world.folder.join("seeder"), &Options::default()).await.unwrap();
    let content = Content::file("resolved", 200_000, 1);
    content.write_to(&seeder.downloads).unwrap();
    seeder.load(&content.torrent, true).await.unwrap();
    seeder.wait_for(content.hash, "d.complete", "1").await.unwrap();

    let values = json!({"source": "sonarr", "signs": SIGNS, "json": "{'a': [1, 2]}", "empty": ""});
    let magnet = format!("magnet:?xt=urn:btih:{}&tr=http%3A%2F%2F127.0.0.1%3A9%2Fannounce", content.hash);
    let body = json!({"magnet": magnet, "label": "100%, a", "priority": 3, "custom": values});
    let result = world.recorder.command("home/command/add", body).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_custom(&world.home, content.hash, &values).await;
    world.home.add_peer(content.hash, seeder.port).await.unwrap();
    world.home.wait_for(content.hash, "d.is_meta", "0").await.unwrap();
    // Another load, which knows no peer yet.
    world.home.add_peer(content.hash, seeder.port).await.unwrap();
    world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
    assert_custom(&world.home, content.hash, &values).await;
    assert_eq!(world.home.get(content.hash, "d.custom1").await.unwrap(), "100%25%2C%20a");
    assert_eq!(world.home.get(content.hash, "d.priority").await.unwrap(), "3");
}

#[tokio::test]
async fn custom_values_that_cannot_be_kept_are_refused_and_nothing_is_loaded() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let (_, base64) = torrent("refused");
    let magnet = format!("magnet:?xt=urn:btih:{}", "ab".repeat(20));
    let many: serde_json::Map<String, Value> = (0..33).map(|number| (format!("k{number}"), json!("v"))).collect();
    for (source, value, custom, code) in [
        ("torrent", &base64, json!({"addtime": "1"}), "bad_request"),
        ("torrent", &base64, json!({"dtorrent_held": "running"}), "bad_request"),
        ("torrent", &base64, json!({"a b": "1"}), "bad_request"),
        ("torrent", &base64, json!({"": "1"}), "bad_request"),
        ("torrent", &base64, json!({"$execute={id}": "1"}), "bad_request"),
        ("torrent", &base64, json!({"k": "a\nb"}), "bad_request"),
        ("torrent", &base64, json!({"k": 1}), "bad_request"),
        ("torrent", &base64, json!({"k": "v".repeat(1025)}), "bad_request"),
        ("torrent", &base64, json!(["k"]), "bad_request"),
        ("torrent", &base64, Value::Object(many), "bad_request"),
        ("torrent", &base64, json!({"k": "🦀"}), "unsupported"),
        ("magnet", &magnet, json!({"k": "$execute={id}"}), "unsupported"),
        ("magnet", &magnet, json!({"k": "a\" b"}), "unsupported"),
        ("magnet", &magnet, json!({"k": "a\\"}), "unsupported"),
    ] {
        for dry_run in [true, false] {
            let body = json!({source: value, "custom": custom, "dry_run": dry_run});
            let result = world.recorder.command("home/command/add", body).await;
            assert_eq!(error_code(&result), code, "{custom}, {dry_run}: {result}");
            assert!(world.home.hashes().await.unwrap().is_empty(), "{custom}");
        }
    }
}
