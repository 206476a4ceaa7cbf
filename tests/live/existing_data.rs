//! `add` with content that rTorrent, set up as it is, would not find complete: nothing of it stays behind.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use base64::Engine as _;
use dtorrent::model::MetainfoBuilder;
use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{self, Listen};
use serde_json::{Value, json};

use crate::harness::recorder::error_code;
use crate::harness::{Setup, World, can_run, disk};

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

async fn add(world: &World, torrent: &[u8], data_file: &Path, start: bool) -> Value {
    let body = json!({"torrent": base64(torrent), "data_file": data_file, "start": start});
    world.recorder.command("home/command/add", body).await
}

/// Returns every path below a folder.
fn paths_in(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path.display().to_string());
        }
    }
    found
}

/// A torrent with padding between its two files, as `padded` of the fixtures, whose content is known.
fn padded() -> (Vec<u8>, [(&'static str, Vec<u8>); 2]) {
    let files = [("a", vec![1; 20_000]), ("b", vec![2; 10_000])];
    let builder = MetainfoBuilder::folder("padded", 16_384)
        .file(["a"])
        .content(&files[0].1)
        .file([".pad", "12768"])
        .content(&vec![0; 12_768])
        .file(["b"])
        .content(&files[1].1);
    let torrent = builder.build();
    // The builder knows no attributes.
    let (at, path) = (b"d6:lengthi12768e", b"d4:attr1:p6:lengthi12768e");
    let start = torrent.windows(at.len()).position(|bytes| bytes == at).unwrap();
    ([&torrent[..start], path, &torrent[start + at.len()..]].concat(), files)
}

#[tokio::test]
async fn padding_that_is_not_on_disk_is_made_for_rtorrent() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let folder = world.home.downloads.join("padded");
    std::fs::create_dir(&folder).unwrap();
    let (torrent, files) = padded();
    for (name, bytes) in &files {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    let before = paths_in(&world.home.downloads);
    let body = json!({"torrent": base64(&torrent), "data_file": folder, "dry_run": true});
    let result = world.recorder.command("home/command/add", body).await;
    assert_eq!((&result["status"], paths_in(&world.home.downloads)), (&json!("ok"), before), "{result}");
    let result = add(&world, &torrent, &folder, true).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_eq!(std::fs::read(folder.join(".pad/12768")).unwrap(), vec![0; 12_768]);
    let hash = InfoHash::of_torrent(&torrent).unwrap();
    assert_eq!(world.home.get(hash, "d.complete").await.unwrap(), "1");
    world.home.wait_for(hash, "d.is_active", "1").await.unwrap();
}

#[tokio::test]
async fn padding_that_is_something_else_or_cannot_be_made_is_refused() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let folder = world.home.downloads.join("padded");
    std::fs::create_dir(&folder).unwrap();
    let (torrent, files) = padded();
    for (name, bytes) in &files {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    std::fs::write(folder.join(".pad"), "a file where the folder should be").unwrap();
    let result = add(&world, &torrent, &folder, true).await;
    assert_eq!(error_code(&result), "precondition", "{result}");
    std::fs::remove_file(folder.join(".pad")).unwrap();
    std::fs::create_dir(folder.join(".pad")).unwrap();
    std::fs::write(folder.join(".pad/12768"), vec![7; 12_768]).unwrap();
    let result = add(&world, &torrent, &folder, true).await;
    assert_eq!(error_code(&result), "precondition", "{result}");
    assert!(world.home.hashes().await.unwrap().is_empty());
}

/// A torrent whose folder is called `plain`, and `other` in UTF-8.
fn with_two_names() -> (Vec<u8>, Vec<u8>) {
    let content = vec![3; 50_000];
    let torrent = MetainfoBuilder::folder("plain", 16_384).file(["a"]).content(&content).build();
    let (at, names) = (b"4:name5:plain", b"4:name5:plain10:name.utf-85:other");
    let start = torrent.windows(at.len()).position(|bytes| bytes == at).unwrap();
    ([&torrent[..start], names, &torrent[start + at.len()..]].concat(), content)
}

#[tokio::test]
async fn of_two_names_the_one_that_rtorrent_takes_has_to_be_that_of_the_data() {
    if !can_run() {
        return;
    }
    let utf8 = rtorrent::Options { lines: vec!["encoding.add = utf-8".to_owned()], ..rtorrent::Options::default() };
    for (rtorrent, right, wrong) in [(utf8, "other", "plain"), (rtorrent::Options::default(), "plain", "other")] {
        let world = World::running(Setup { rtorrent, ..Setup::default() }).await;
        let (torrent, content) = with_two_names();
        let hash = InfoHash::of_torrent(&torrent).unwrap();
        let downloads = world.home.downloads.clone();
        for name in [right, wrong] {
            std::fs::create_dir(downloads.join(name)).unwrap();
            std::fs::write(downloads.join(name).join("a"), &content).unwrap();
        }
        std::fs::remove_dir_all(downloads.join(right)).unwrap();
        let before = paths_in(&downloads);
        for start in [true, false] {
            let result = add(&world, &torrent, &downloads.join(wrong), start).await;
            assert_eq!(error_code(&result), "precondition", "{result}");
            let message = result["error"]["message"].as_str().unwrap();
            assert!(message.contains(&downloads.join(right).display().to_string()), "{message}");
            assert!(world.home.hashes().await.unwrap().is_empty(), "it is taken back");
            assert_eq!(paths_in(&downloads), before, "nothing was created");
        }
        std::fs::rename(downloads.join(wrong), downloads.join(right)).unwrap();
        let result = add(&world, &torrent, &downloads.join(right), true).await;
        assert_eq!(result["status"], "ok", "{result}");
        assert_eq!(world.home.get(hash, "d.complete").await.unwrap(), "1");
    }
}

#[tokio::test]
async fn data_that_rtorrent_may_not_read_is_taken_back_in_time() {
    if !can_run() {
        return;
    }
    let launcher = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "--"].map(str::to_owned).to_vec();
    let rtorrent = rtorrent::Options { listen: Listen::Tcp, launcher, ..rtorrent::Options::default() };
    let world = World::running(Setup { rtorrent, ..Setup::default() }).await;
    let downloads = world.home.downloads.clone();
    let folder = Content::folder("folder", &[("a", 40_000), ("b", 40_000)], 1);
    let file = Content::folder("file", &[("a", 40_000), ("b", 40_000)], 2);
    let single = Content::file("single.iso", 40_000, 3);
    for content in [&folder, &file, &single] {
        content.write_to(&downloads).unwrap();
    }
    disk::give(&downloads, 1234);
    disk::close(&downloads.join("folder"));
    for closed in ["file/b", "single.iso"] {
        disk::close(&downloads.join(closed));
        std::fs::set_permissions(downloads.join(closed), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    for content in [&folder, &file, &single] {
        for start in [true, false] {
            let result = add(&world, &content.torrent, &downloads.join(&content.name), start).await;
            assert_eq!(error_code(&result), "precondition", "{}: {result}", content.name);
            let message = result["error"]["message"].as_str().unwrap();
            assert!(message.contains(&downloads.join(&content.name).display().to_string()), "{message}");
            assert!(result["took_ms"].as_u64().unwrap() < 20_000, "{result}");
            assert!(world.home.hashes().await.unwrap().is_empty(), "{}: it is taken back", content.name);
        }
    }
    // What was refused holds up nothing.
    let fine = Content::file("fine.iso", 40_000, 4);
    fine.write_to(&downloads).unwrap();
    let result = add(&world, &fine.torrent, &downloads.join("fine.iso"), true).await;
    assert_eq!(result["status"], "ok", "{result}");
}

#[tokio::test]
async fn commands_for_content_that_rtorrent_may_not_read_any_more_have_their_results_in_time() {
    if !can_run() {
        return;
    }
    let launcher = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "--"].map(str::to_owned).to_vec();
    let rtorrent = rtorrent::Options { listen: Listen::Tcp, launcher, ..rtorrent::Options::default() };
    let contents = [
        Content::folder("folder", &[("a", 40_000), ("b", 40_000)], 1),
        Content::folder("file", &[("a", 40_000), ("b", 40_000)], 2),
        Content::file("single.iso", 40_000, 3),
    ];
    let sink = "commands = [\"*\"]".to_owned();
    let world = World::seeding(Setup { rtorrent, sink, ..Setup::default() }, &contents).await;
    let downloads = world.home.downloads.clone();
    let topic = |content: &Content, verb: &str| format!("home/torrent/{}/command/{verb}", content.hash);
    disk::give(&downloads, 1234);
    for content in &contents {
        let result = world.recorder.command(&topic(content, "stop"), Value::Null).await;
        assert_eq!(result["status"], "ok", "{result}");
    }
    disk::close(&downloads.join("folder"));
    for closed in ["file/b", "single.iso"] {
        disk::close(&downloads.join(closed));
        std::fs::set_permissions(downloads.join(closed), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let (there, elsewhere) = (downloads.join("there"), downloads.join("elsewhere"));
    for content in &contents {
        for (verb, body) in [
            ("recheck", json!({})),
            ("start", json!({})),
            ("pause", json!({})),
            ("announce", json!({})),
            ("stop", json!({})),
            ("recheck", json!({})),
            ("label", json!({"label": "new"})),
            ("move", json!({"directory": there})),
            ("move", json!({"directory": downloads})),
            ("move", json!({"directory": elsewhere, "data": true})),
            ("get", json!({"files": true})),
            ("delete", json!({"data": true})),
        ] {
            let mut body = body.clone();
            body["ttl"] = json!("3s");
            let result = world.recorder.command(&topic(content, verb), body).await;
            assert!(result["took_ms"].as_u64().unwrap() < 23_000, "{} {verb}: {result}", content.name);
            let answers = matches!(verb, "label" | "get");
            assert!(!answers || result["status"] == "ok", "{} {verb}: {result}", content.name);
        }
    }
    let fine = Content::file("fine.iso", 40_000, 4);
    fine.write_to(&downloads).unwrap();
    let result = add(&world, &fine.torrent, &downloads.join("fine.iso"), true).await;
    assert_eq!(result["status"], "ok", "nothing is held up: {result}");
}
