//! Moves without the files: rTorrent shows the new directory, and has exactly what is there.

use std::path::Path;
use std::time::Duration;

use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{Address, Argument, Listen, Options};
use serde_json::{Value, json};
use sha1::Digest as _;

use crate::harness::faulty::{FaultyServer, LOSSES};
use crate::harness::recorder::{error_code, events_in};
use crate::harness::{Setup, World, can_run};

fn contents() -> [Content; 2] {
    [Content::file("one.iso", 50_000, 1), Content::folder("many", &[("a", 40_000), ("sub/b", 40_000)], 2)]
}

fn topic(hash: InfoHash, verb: &str) -> String {
    format!("home/torrent/{hash}/command/{verb}")
}

async fn move_to(world: &World, hash: InfoHash, directory: &Path) -> Value {
    world.recorder.command(&topic(hash, "move"), json!({"directory": directory})).await
}

/// Asserts that rTorrent has nothing of a torrent in its new directory, and no error.
async fn assert_empty(world: &World, hash: InfoHash, directory: &Path, state: &str, active: &str) {
    let get = async |getter: &str| world.home.get(hash, getter).await.unwrap();
    assert!(Path::new(&get("d.directory").await).starts_with(directory));
    assert_eq!((&*get("d.state").await, &*get("d.is_active").await), (state, active));
    assert_eq!((&*get("d.complete").await, &*get("d.completed_bytes").await), ("0", "0"));
    assert_eq!((&*get("d.message").await, &*get("d.hashing").await), ("", "0"));
}

#[tokio::test]
async fn a_running_torrent_that_is_moved_to_an_empty_place_downloads_anew() {
    if !can_run() {
        return;
    }
    let contents = contents();
    let world = World::seeding(Setup::default(), &contents).await;
    let new = world.home.downloads.join("deep/new");
    for content in &contents {
        let mark = world.recorder.mark();
        let result = move_to(&world, content.hash, &new).await;
        assert_eq!(result["status"], "ok", "{result}");
        assert_empty(&world, content.hash, &new, "1", "1").await;
        let event = world.recorder.event_after(mark, "home", "unfinished", content.hash).await;
        assert_eq!((&event["cause"], &event["command_id"]), (&json!("command"), &result["id"]), "{event}");
        let events = events_in(&world.recorder.since(mark), "home");
        assert!(events.iter().all(|event| event["event_type"] != "error"), "{events:?}");
        for (file, bytes) in &content.files {
            assert_eq!(std::fs::read(world.home.downloads.join(file)).unwrap(), *bytes, "{file} stays");
        }
        let result = world.recorder.command(&topic(content.hash, "get"), Value::Null).await;
        let torrent = &result["results"][0]["torrent"];
        assert_eq!((&torrent["progress"], &torrent["status"]), (&json!(0.0), &json!("downloading")), "{result}");
    }
    world.recorder.assert_gap_free("home");
}

#[tokio::test]
async fn a_torrent_that_does_not_run_claims_nothing_at_an_empty_place_either() {
    if !can_run() {
        return;
    }
    for (verb, state) in [("pause", "1"), ("stop", "0")] {
        let contents = contents();
        let world = World::seeding(Setup::default(), &contents).await;
        let new = world.home.downloads.join("new");
        for content in &contents {
            assert_eq!(world.recorder.command(&topic(content.hash, verb), Value::Null).await["status"], "ok");
            let result = move_to(&world, content.hash, &new).await;
            assert_eq!(result["status"], "ok", "{verb}: {result}");
            assert_empty(&world, content.hash, &new, state, "0").await;
            let result = world.recorder.command(&topic(content.hash, "start"), Value::Null).await;
            assert_eq!(result["status"], "ok", "{verb}: {result}");
            world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
            assert_empty(&world, content.hash, &new, "1", "1").await;
        }
    }
}

#[tokio::test]
async fn a_torrent_that_is_moved_back_has_its_content_again() {
    if !can_run() {
        return;
    }
    let contents = contents();
    let world = World::seeding(Setup::default(), &contents).await;
    let new = world.home.downloads.join("new");
    for content in &contents {
        for directory in [&new, &world.home.downloads] {
            let result = move_to(&world, content.hash, directory).await;
            assert_eq!(result["status"], "ok", "{result}");
        }
        world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
        world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
    }
}

#[tokio::test]
async fn a_place_with_a_part_of_the_content_is_for_a_stopped_torrent_only() {
    if !can_run() {
        return;
    }
    let contents = contents();
    let world = World::seeding(Setup::default(), &contents).await;
    let downloads = world.home.downloads.clone();
    for content in &contents {
        // One file of two, and one whose end is missing.
        let (file, bytes) = &content.files[0];
        let new = downloads.join(format!("part of {}", content.name));
        let (path, there) = (new.join(file), &bytes[..if content.files.len() > 1 { bytes.len() } else { 20_000 }]);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, there).unwrap();
        let result = move_to(&world, content.hash, &new).await;
        assert_eq!(error_code(&result), "precondition", "{result}");
        let named = content.files.last().map(|(file, _)| new.join(file).display().to_string()).unwrap();
        assert!(result["error"]["message"].as_str().unwrap().contains(&named), "{result}");
        assert!(Path::new(&world.home.get(content.hash, "d.directory").await.unwrap()).starts_with(&downloads));
        assert_eq!(world.home.get(content.hash, "d.is_active").await.unwrap(), "1");
        assert_eq!(world.home.get(content.hash, "d.complete").await.unwrap(), "1");
        assert_eq!(world.recorder.command(&topic(content.hash, "stop"), Value::Null).await["status"], "ok");
        let result = move_to(&world, content.hash, &new).await;
        assert_eq!(result["status"], "ok", "{result}");
        let progress = world.home.get(content.hash, "d.completed_bytes").await.unwrap().parse::<usize>().unwrap();
        assert!(progress <= there.len(), "{progress}");
        assert_eq!(world.home.get(content.hash, "d.complete").await.unwrap(), "0");
        assert_eq!(world.home.get(content.hash, "d.state").await.unwrap(), "0");
        assert_eq!(std::fs::read(&path).unwrap(), there, "a check changes nothing");
    }
}

#[tokio::test]
async fn a_move_whose_check_has_no_answer_ends_as_it_should() {
    if !can_run() {
        return;
    }
    let rtorrent = Options { listen: Listen::Tcp, ..Options::default() };
    let server = "timeout = \"1s\"".to_owned();
    let mut world = World::new(Setup { rtorrent, server, ..Setup::default() }).await;
    // One for each fault: rTorrent must not announce too often.
    let contents: Vec<Content> =
        (0..LOSSES.len()).map(|n| Content::file(&format!("{n}.iso"), 50_000, n as u64)).collect();
    for content in &contents {
        content.write_to(&world.home.downloads).unwrap();
        world.home.load(&content.torrent, true).await.unwrap();
        world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
    }
    let Address::Tcp(address) = world.home.rpc.address else { unreachable!("it listens on a port") };
    let server = FaultyServer::to(address, Duration::from_secs(1), 1).await;
    world.start_bridge_for(&[("home", &server.url())]).await;
    let new = world.home.downloads.join("new");
    for (content, fault) in contents.iter().zip(LOSSES) {
        server.fail_next("d.check_hash", fault, 1);
        let result = move_to(&world, content.hash, &new).await;
        assert_eq!(result["status"], "ok", "{fault:?}: {result}");
        assert_eq!(server.count(fault), 1, "{fault:?}");
        assert_empty(&world, content.hash, &new, "1", "1").await;
    }
}

/// A torrent whose check takes seconds: its pieces are the zeros of a sparse file.
async fn load_large(world: &World) -> InfoHash {
    const PIECE: usize = 64 << 10;
    const PIECES: usize = 65_536;
    let piece: [u8; 20] = sha1::Sha1::digest([0; PIECE]).into();
    let (bytes, hashes) = (PIECE * PIECES, 20 * PIECES);
    let mut torrent =
        format!("d4:infod6:lengthi{bytes}e4:name5:large12:piece lengthi{PIECE}e6:pieces{hashes}:").into_bytes();
    torrent.extend(piece.repeat(PIECES));
    torrent.extend_from_slice(b"ee");
    std::fs::File::create(world.home.downloads.join("large")).unwrap().set_len(bytes as u64).unwrap();
    let limit = [Argument::Text(""), Argument::Text("8M")];
    world.home.rpc.call("network.xmlrpc.size_limit.set", &limit).await.unwrap();
    let hash = world.home.load(&torrent, true).await.unwrap();
    world.home.wait_for(hash, "d.complete", "1").await.unwrap();
    world.home.wait_for(hash, "d.is_active", "1").await.unwrap();
    hash
}

#[tokio::test]
async fn a_torrent_that_is_being_checked_is_compared_when_the_check_is_over() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup { server: "timeout = \"1500ms\"".to_owned(), ..Setup::default() }).await;
    let hash = load_large(&world).await;
    // One that runs finds out at its start that nothing is there.
    for method in ["d.stop", "d.close"] {
        world.home.act(hash, method, &[]).await.unwrap();
    }
    world.start_bridge().await;
    world.home.act(hash, "d.check_hash", &[]).await.unwrap();
    let new = world.home.downloads.join("new");
    let result = move_to(&world, hash, &new).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_empty(&world, hash, &new, "0", "0").await;
}

#[tokio::test]
async fn a_move_that_waits_for_the_check_of_another_torrent_leaves_its_own_running() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup { server: "timeout = \"1500ms\"".to_owned(), ..Setup::default() }).await;
    let content = Content::file("one.iso", 50_000, 1);
    content.write_to(&world.home.downloads).unwrap();
    world.home.load(&content.torrent, true).await.unwrap();
    world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
    let large = load_large(&world).await;
    world.start_bridge().await;
    world.home.act(large, "d.check_hash", &[]).await.unwrap();
    let new = world.home.downloads.join("new");
    let body = json!({"directory": new, "ttl": "1s"});
    let result = world.recorder.command(&topic(content.hash, "move"), body).await;
    assert_eq!(error_code(&result), "precondition", "{result}");
    assert_eq!(result["error"]["retryable"], true, "{result}");
    world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
    let directory = world.home.get(content.hash, "d.directory").await.unwrap();
    assert_eq!(Path::new(&directory), world.home.downloads);
    // Its turn comes when the check is over.
    let result = move_to(&world, content.hash, &new).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_empty(&world, content.hash, &new, "1", "1").await;
}
