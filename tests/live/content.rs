//! Torrents and their files: deletion with data, addition of existing data, large .torrent files.

use std::path::Path;

use dtorrent::model::MetainfoBuilder;
use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent;
use serde_json::{Value, json};

use crate::harness::recorder::{Message, error_code};
use crate::harness::{Setup, World, base64, can_run};

fn may_delete() -> Setup {
    Setup { sink: "commands = [\"*\"]".to_owned(), ..Setup::default() }
}

fn delete(hash: InfoHash) -> String {
    format!("home/torrent/{hash}/command/delete")
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

#[tokio::test]
async fn deleting_a_torrent_with_data_removes_its_files_and_lists_them() {
    if !can_run() {
        return;
    }
    let single = Content::file("single \"x\", $y; #.iso", 50_000, 1);
    let folder = Content::folder("folder", &[("a", 40_000), ("sub/b", 40_000)], 2);
    let world = World::seeding(may_delete(), [&single, &folder]).await;
    let downloads = &world.home.downloads;
    std::fs::write(downloads.join("folder/mine"), b"not of the torrent").unwrap();

    let result = world.recorder.command(&delete(folder.hash), json!({"data": true, "dry_run": true})).await;
    let would = &result["results"][0]["deleted"];
    assert_eq!(
        (&result["status"], &would["count"], &would["bytes"]),
        (&json!("ok"), &json!(2), &json!(80_000)),
        "{result}"
    );
    assert_eq!(world.home.hashes().await.unwrap().len(), 2, "nothing was done");

    let result = world.recorder.command(&delete(folder.hash), json!({"data": true, "id": "all of it"})).await;
    assert_eq!(result["status"], "ok", "{result}");
    let deleted = &result["results"][0]["deleted"];
    let path = |name: &str| downloads.join(name).display().to_string();
    assert_eq!(deleted["files"], json!([path("folder/a"), path("folder/sub/b")]), "{result}");
    assert_eq!(deleted["left"][0]["path"], json!(path("folder")), "{result}");
    assert!(!is_there(&downloads.join("folder/a")) && !is_there(&downloads.join("folder/sub")));
    assert!(is_there(&downloads.join("folder/mine")), "a file of no torrent is not deleted");
    assert_eq!(world.home.hashes().await.unwrap(), [single.hash]);
    let removed = world.recorder.event("home", "removed", folder.hash).await;
    assert_eq!(removed["command_id"], "all of it", "{removed}");

    let result = world.recorder.command(&delete(single.hash), json!({"data": true})).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert!(!is_there(&downloads.join(&single.name)));
    assert!(downloads.is_dir() && world.home.hashes().await.unwrap().is_empty());
    world.recorder.assert_gap_free("home");
}

#[tokio::test]
async fn files_outside_the_roots_or_shared_with_another_torrent_are_not_deleted() {
    if !can_run() {
        return;
    }
    let shared = Content::file("shared.iso", 50_000, 1);
    let cross = Content::folder("cross", &[("a", 40_000), ("b", 10_000)], 5);
    let outside = Content::file("outside.iso", 50_000, 3);
    let linked = Content::folder("linked", &[("sub/a", 40_000)], 4);
    let mut world = World::new(may_delete()).await;
    let downloads = world.home.downloads.clone();
    let elsewhere = world.folder.join("elsewhere");
    for content in [&shared, &cross] {
        content.write_to(&downloads).unwrap();
        world.home.load(&content.torrent, true).await.unwrap();
    }
    // The same file in another torrent: other pieces, so another hash.
    let twin = MetainfoBuilder::single("shared.iso", 16_384).content(&shared.files[0].1).build();
    let twin = world.home.load(&twin, false).await.unwrap();
    let part = MetainfoBuilder::single("a", 16_384).content(&cross.files[0].1).build();
    let part = world.home.load_into(&part, false, Some(&downloads.join("cross"))).await.unwrap();
    outside.write_to(&elsewhere).unwrap();
    world.home.load_into(&outside.torrent, true, Some(&elsewhere)).await.unwrap();
    // A folder of the torrent that is a link out of the roots.
    linked.write_to(&elsewhere).unwrap();
    std::fs::create_dir(downloads.join("linked")).unwrap();
    std::os::unix::fs::symlink(elsewhere.join("linked/sub"), downloads.join("linked/sub")).unwrap();
    world.home.load(&linked.torrent, true).await.unwrap();
    world.start_bridge().await;
    let before = world.home.hashes().await.unwrap();
    for (hash, expected) in [
        (shared.hash, "precondition"),
        (twin, "precondition"),
        (cross.hash, "precondition"),
        (part, "precondition"),
        (outside.hash, "forbidden"),
        (linked.hash, "forbidden"),
    ] {
        let result = world.recorder.command(&delete(hash), json!({"data": true})).await;
        assert_eq!(error_code(&result), expected, "{result}");
        assert_eq!(world.home.hashes().await.unwrap(), before, "{result}");
    }
    for path in [
        downloads.join("shared.iso"),
        downloads.join("cross/a"),
        elsewhere.join("outside.iso"),
        elsewhere.join("linked/sub/a"),
    ] {
        assert!(is_there(&path), "{}", path.display());
    }
    // Not through the base path either, which `d.directory.set` can change.
    let directory = downloads.join("new");
    let moved = format!("home/torrent/{}/command/move", cross.hash);
    assert_eq!(world.recorder.command(&delete(part), Value::Null).await["status"], "ok");
    assert_eq!(world.recorder.command(&moved, json!({"directory": directory})).await["status"], "ok");
    let result = world.recorder.command(&delete(cross.hash), json!({"data": true})).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_eq!(result["results"][0]["deleted"]["bytes"], 0, "{result}");
    assert!(is_there(&downloads.join("cross/a")), "the old place is not its place any more");
}

#[tokio::test]
async fn a_delete_interrupted_by_a_kill_is_finished_by_the_next_run() {
    if !can_run() {
        return;
    }
    let contents: Vec<_> = (1..=30).map(|n| Content::file(&format!("many-{n}"), 20_000, n)).collect();
    let mut world = World::seeding(may_delete(), &contents).await;
    let hashes: Vec<InfoHash> = contents.iter().map(|content| content.hash).collect();
    let body = json!({"id": "half", "hashes": hashes, "data": true});
    world.recorder.send(crate::harness::recorder::Command::new("dtorrent/home/command/delete", body.to_string())).await;
    let downloads = world.home.downloads.clone();
    world
        .home
        .wait_until("the first file to go", async || Ok(contents.iter().any(|c| !is_there(&downloads.join(&c.name)))))
        .await
        .unwrap();
    world.bridge().process().kill().unwrap();
    world.bridge().restart();
    let result = world.recorder.result("half").await;
    assert_eq!((&result["status"], result["results"].as_array().unwrap().len()), (&json!("ok"), 30), "{result}");
    assert!(world.home.hashes().await.unwrap().is_empty());
    assert!(contents.iter().all(|content| !is_there(&downloads.join(&content.name))));
    world.recorder.assert_gap_free("home");
}

#[tokio::test]
async fn existing_data_is_checked_and_found_complete() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let downloads = world.home.downloads.clone();
    let single = Content::file("here.iso", 300_000, 1);
    let folder = Content::folder("here", &[("a", 100_000), ("empty", 0), ("sub/b", 100_001)], 2);
    let resting = Content::file("resting.iso", 100_000, 3);
    let other = downloads.join("other");
    for (content, place, start) in [(&single, &downloads, true), (&folder, &other, true), (&resting, &downloads, false)]
    {
        content.write_to(place).unwrap();
        let body = json!({"torrent": base64(&content.torrent), "data_file": place.join(&content.name), "start": start});
        let result = world.recorder.command("home/command/add", body).await;
        assert_eq!(result["status"], "ok", "{result}");
        assert_eq!(world.home.get(content.hash, "d.complete").await.unwrap(), "1", "{}", content.name);
        let added = world.recorder.event("home", "added", content.hash).await;
        assert_eq!(added["cause"], "command", "{added}");
        // A stopped torrent is checked as well.
        assert!(!start || added["torrent"]["finished"] == true, "{added}");
        let active = if start { "1" } else { "0" };
        world.home.wait_for(content.hash, "d.is_active", active).await.unwrap();
    }
    let events = world.recorder.assert_gap_free("home");
    assert!(events.iter().all(|event| event["event_type"] != "finished"), "it was added complete");
}

#[tokio::test]
async fn data_that_differs_is_refused_with_file_and_piece() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let downloads = world.home.downloads.clone();
    let content = Content::folder("bad", &[("a", 100_000), ("b", 100_000)], 1);
    content.write_to(&downloads).unwrap();
    let b = downloads.join("bad/b");
    let mut bytes = content.files[1].1.clone();
    bytes[50_000] ^= 1;
    std::fs::write(&b, &bytes).unwrap();
    let add = async |data_file: &Path| {
        let body = json!({"torrent": base64(&content.torrent), "data_file": data_file});
        let result = world.recorder.command("home/command/add", body).await;
        assert!(world.home.hashes().await.unwrap().is_empty(), "nothing is loaded: {result}");
        (error_code(&result).clone(), result["error"]["message"].as_str().unwrap_or_default().to_owned())
    };
    let (code, message) = add(&downloads.join("bad")).await;
    assert_eq!(code, "precondition");
    assert!(message.contains("bad/b") && message.contains("piece 4"), "{message}");
    std::fs::write(&b, &bytes[1..]).unwrap();
    assert_eq!(add(&downloads.join("bad")).await.0, "precondition");
    std::fs::remove_file(&b).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &b).unwrap();
    assert_eq!(add(&downloads.join("bad")).await.0, "forbidden");
    assert_eq!(add(Path::new("/etc")).await.0, "forbidden");
    assert_eq!(add(&downloads.join("not-there")).await.0, "forbidden");
    assert_eq!(add(&downloads).await.0, "forbidden", "a root itself is not below one");
}

#[tokio::test]
async fn a_torrent_file_cannot_claim_that_its_data_is_complete() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let content = Content::file("liar.iso", 100_000, 1);
    let liar = dtorrent::model::with_resume_data(&content.torrent, 4, &[(100_000, 0)]).unwrap();
    let body = json!({"torrent": base64(&liar), "start": false});
    assert_eq!(world.recorder.command("home/command/add", body).await["status"], "ok");
    assert_eq!(world.home.get(content.hash, "d.complete").await.unwrap(), "0");
    assert_eq!(world.home.get(content.hash, "d.completed_bytes").await.unwrap(), "0");
}

#[tokio::test]
async fn a_large_torrent_is_downloaded_by_rtorrent_from_the_bridge() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let torrent = large_torrent();
    let hash = InfoHash::of_torrent(&torrent).unwrap();
    let body = json!({"torrent": base64(&torrent), "start": false, "label": "large"});
    let result = world.recorder.command("home/command/add", body).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_eq!(world.home.get(hash, "d.size_files").await.unwrap(), "45000");
    assert_eq!(world.home.get(hash, "d.custom1").await.unwrap(), "large");
    assert_eq!(world.home.get(hash, "d.tied_to_file").await.unwrap(), "", "no .torrent file is tied to it");
    let added = |all: &[Message]| all.iter().any(|m| m.topic.ends_with(&format!("{hash}/event/added"))).then_some(());
    world.recorder.wait_for("added", added).await;
}

/// A torrent file that is too large for a request to rTorrent 0.9.
fn large_torrent() -> Vec<u8> {
    let builder = (0..45_000).fold(MetainfoBuilder::folder("large", 16_384), |builder, n| {
        builder.file([format!("folder-{:03}", n / 100), format!("a file with a rather long name {n:06}")]).content(b"x")
    });
    let torrent = builder.build();
    assert!(torrent.len() > 2 << 20, "{}", torrent.len());
    torrent
}

/// An rTorrent that cannot fetch from the bridge, as in a network of its own: its requests go to a proxy that is not
/// there.
fn unreaching(lines: &[String]) -> Setup {
    let proxy = "network.http.proxy_address.set = 127.0.0.1:1".to_owned();
    let lines = [proxy].into_iter().chain(lines.iter().cloned()).collect();
    Setup { rtorrent: rtorrent::Options { lines, ..rtorrent::Options::default() }, ..Setup::default() }
}

#[tokio::test]
async fn a_large_torrent_is_loaded_from_disk_where_rtorrent_cannot_fetch_it() {
    if !can_run() {
        return;
    }
    let world = World::running(unreaching(&[])).await;
    let torrent = large_torrent();
    let hash = InfoHash::of_torrent(&torrent).unwrap();
    let body = json!({"torrent": base64(&torrent), "start": false, "label": "large"});
    let result = world.recorder.command("home/command/add", body).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_eq!(world.home.get(hash, "d.size_files").await.unwrap(), "45000");
    assert_eq!(world.home.get(hash, "d.custom1").await.unwrap(), "large");
    assert_eq!(world.home.get(hash, "d.tied_to_file").await.unwrap(), "", "no .torrent file is tied to it");
    assert_eq!(std::fs::read_dir(&world.home.downloads).unwrap().count(), 0, "the file that was handed over is gone");
}

/// An rTorrent in a network namespace of its own, which is reached by its socket alone.
fn isolated(lines: &[String]) -> Setup {
    // `listen` and `connect` on its own loopback device work, and lead to nobody else.
    let command = "ip link set lo up && exec \"$@\"";
    let launcher = ["unshare", "--net", "sh", "-c", command, "sh"].map(str::to_owned).to_vec();
    Setup { rtorrent: rtorrent::Options { lines: lines.to_vec(), launcher, ..Default::default() }, ..Setup::default() }
}

#[tokio::test]
async fn an_rtorrent_in_a_network_of_its_own_gets_large_torrents() {
    if !can_run() {
        return;
    }
    let mut world = World::running(isolated(&[])).await;
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    let rtorrent = world.home.process().pid().to_string();
    assert_ne!(namespace(&rtorrent), namespace("self"), "it has a network of its own");
    // Larger than xmlrpc-c takes by default, and within what rTorrent takes in a call; and larger than that.
    let medium = (0..20_000).fold(MetainfoBuilder::folder("medium", 16_384), |builder, n| {
        builder.file([format!("a file with a rather long name {n:06}")]).content(b"x")
    });
    for (name, torrent) in [("medium", medium.build()), ("large", large_torrent())] {
        assert!(torrent.len() > 512 << 10, "{name}");
        let hash = InfoHash::of_torrent(&torrent).unwrap();
        let body = json!({"torrent": base64(&torrent), "start": false, "label": name});
        let result = world.recorder.command("home/command/add", body).await;
        assert_eq!(result["status"], "ok", "{result}");
        assert_eq!(world.home.get(hash, "d.custom1").await.unwrap(), name);
        assert_eq!(world.home.get(hash, "d.tied_to_file").await.unwrap(), "", "no .torrent file is tied to it");
    }
    assert_eq!(std::fs::read_dir(&world.home.downloads).unwrap().count(), 0, "the file that was handed over is gone");
}

#[tokio::test]
async fn an_rtorrent_in_a_network_and_on_a_disk_of_its_own_gets_what_a_call_can_hold() {
    if !can_run() {
        return;
    }
    let world = World::running(isolated(&["directory.default.set = /proc/nowhere".to_owned()])).await;
    let result = world.recorder.command("home/command/add", json!({"torrent": base64(&large_torrent())})).await;
    assert_eq!(result["results"][0]["error"]["code"], "unsupported", "{result}");
    let said = result["results"][0]["error"]["message"].as_str().unwrap();
    assert!(said.contains("did not fetch it from 127.0.0.1") && said.contains("/proc/nowhere"), "{said}");
    assert!(world.home.hashes().await.unwrap().is_empty());
    let small = Content::file("small", 50_000, 1);
    let result = world.recorder.command("home/command/add", json!({"torrent": base64(&small.torrent)})).await;
    assert_eq!(result["status"], "ok", "{result}");
}

#[tokio::test]
async fn a_large_torrent_that_cannot_be_handed_over_is_refused_with_the_reason() {
    if !can_run() {
        return;
    }
    let world = World::running(unreaching(&["directory.default.set = /proc/nowhere".to_owned()])).await;
    let result = world.recorder.command("home/command/add", json!({"torrent": base64(&large_torrent())})).await;
    assert_eq!(result["results"][0]["error"]["code"], "unsupported", "{result}");
    let said = result["results"][0]["error"]["message"].as_str().unwrap();
    assert!(said.contains("network of its own") && said.contains("/proc/nowhere"), "{said}");
    assert!(world.home.hashes().await.unwrap().is_empty());
}
