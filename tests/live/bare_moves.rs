//! Moves without the files: rTorrent shows the new directory, and has exactly what is there.

use std::path::Path;
use std::time::Duration;

use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{Address, Argument, Listen, Options};
use serde_json::{Value, json};
use sha1::Digest as _;

use crate::harness::faulty::{Fault, FaultyServer, LOSSES};
use crate::harness::recorder::{Command, error_code, events_in};
use crate::harness::scgi::ScgiProxy;
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
pub async fn load_large(world: &World) -> InfoHash {
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

#[tokio::test]
async fn a_move_whose_first_answer_was_lost_is_taken_back_to_the_directory_before_it() {
    if !can_run() {
        return;
    }
    let rtorrent = Options { listen: Listen::Tcp, ..Options::default() };
    let server = "timeout = \"1s\"".to_owned();
    let mut world = World::new(Setup { rtorrent, server, ..Setup::default() }).await;
    let content = Content::file("unseen.iso", 50_000, 1);
    content.write_to(&world.home.downloads).unwrap();
    world.home.load(&content.torrent, true).await.unwrap();
    world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
    let Address::Tcp(address) = world.home.rpc.address else { unreachable!("it listens on a port") };
    let proxy = ScgiProxy::to(address).await;
    let server = FaultyServer::to(proxy.address, Duration::from_secs(1), 1).await;
    world.start_bridge_for(&[("home", &server.url())]).await;
    // rTorrent looks in another directory below it, as one that has another view of the disk.
    let odd = world.home.downloads.join("odd");
    let elsewhere = odd.join("elsewhere");
    std::fs::create_dir_all(&elsewhere).unwrap();
    content.write_to(&odd).unwrap();
    let text = |path: &Path| format!("<string>{}</string>", path.display()).leak();
    proxy.replace(&[(text(&odd), text(&elsewhere))]);
    server.fail_next("d.directory.set", Fault::CutAnswer, 1);
    let result = move_to(&world, content.hash, &odd).await;
    assert_eq!(error_code(&result), "precondition", "{result}");
    assert!(result.to_string().contains("its directory is the old one again"), "{result}");
    assert_eq!(server.count(Fault::CutAnswer), 1);
    world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
    world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
    let directory = world.home.get(content.hash, "d.directory").await.unwrap();
    assert_eq!(Path::new(&directory), world.home.downloads);
}

#[tokio::test]
async fn torrents_whose_turn_does_not_come_within_the_ttl_of_their_move_stay_as_they_are() {
    if !can_run() {
        return;
    }
    let contents: Vec<Content> = (0..10).map(|n| Content::file(&format!("{n}.iso"), 20_000, n)).collect();
    let rtorrent = Options { listen: Listen::Tcp, ..Options::default() };
    let mut world = World::new(Setup { rtorrent, ..Setup::default() }).await;
    for content in &contents {
        content.write_to(&world.home.downloads).unwrap();
        world.home.load(&content.torrent, true).await.unwrap();
        world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
    }
    let Address::Tcp(address) = world.home.rpc.address else { unreachable!("it listens on a port") };
    // The bridge waits longer than that, so each move takes its time and is answered.
    let server = FaultyServer::to(address, Duration::from_millis(200), 1).await;
    world.start_bridge_for(&[("home", &server.url())]).await;
    server.fail_next("d.directory.set", Fault::DelayAnswer, contents.len());
    let new = world.home.downloads.join("new");
    // What is at the new place of the last one would be refused, and is not looked at when its turn comes too late.
    let last = contents.last().unwrap();
    std::fs::create_dir(&new).unwrap();
    std::fs::write(new.join(&last.name), b"another size").unwrap();
    let hashes: Vec<InfoHash> = contents.iter().map(|content| content.hash).collect();
    let body = json!({"hashes": hashes, "directory": new, "ttl": "1s"});
    let result = world.recorder.command("home/command/move", body).await;
    assert_eq!(result["status"], "partial", "{result}");
    let rows = result["results"].as_array().unwrap();
    assert_eq!(rows.len(), contents.len(), "{result}");
    for row in rows {
        let hash = row["hash"].as_str().unwrap().parse().unwrap();
        if row["status"] == "ok" {
            assert_empty(&world, hash, &new, "1", "1").await;
            assert_ne!(hash, last.hash, "{row}");
            continue;
        }
        assert_eq!(
            (&row["error"]["code"], &row["error"]["retryable"]),
            (&json!("precondition"), &json!(true)),
            "{row}"
        );
        assert!(row["error"]["message"].as_str().unwrap().contains("it is as it was"), "{row}");
        let directory = world.home.get(hash, "d.directory").await.unwrap();
        assert_eq!(Path::new(&directory), world.home.downloads);
        assert_eq!(world.home.get(hash, "d.is_active").await.unwrap(), "1");
        assert_eq!(world.home.get(hash, "d.complete").await.unwrap(), "1");
    }
}

/// Writes files of the same names and sizes, with other content.
fn write_other(content: &Content, directory: &Path) {
    for (file, bytes) in &content.files {
        let path = directory.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, vec![7; bytes.len()]).unwrap();
    }
}

#[tokio::test]
async fn other_files_of_the_same_sizes_at_the_new_place_are_found_out_and_the_move_is_taken_back() {
    if !can_run() {
        return;
    }
    let contents = contents();
    for (verb, state, active) in [("start", "1", "1"), ("pause", "1", "0"), ("stop", "0", "0")] {
        let world = World::seeding(Setup::default(), &contents).await;
        for content in &contents {
            assert_eq!(world.recorder.command(&topic(content.hash, verb), Value::Null).await["status"], "ok");
            let (new, mark) = (world.home.downloads.join("new"), world.recorder.mark());
            write_other(content, &new);
            let result = move_to(&world, content.hash, &new).await;
            assert_eq!(error_code(&result), "precondition", "{verb}: {result}");
            assert!(result.to_string().contains("bytes of its content"), "{verb}: {result}");
            world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
            world.home.wait_for(content.hash, "d.state", state).await.unwrap();
            world.home.wait_for(content.hash, "d.is_active", active).await.unwrap();
            let directory = world.home.get(content.hash, "d.directory").await.unwrap();
            assert!(!Path::new(&directory).starts_with(&new), "{verb}: {directory}");
            assert_eq!(world.home.get(content.hash, "d.message").await.unwrap(), "");
            // Nothing comes after this that was seen before it.
            world.recorder.command("home/command/list", Value::Null).await;
            let events = events_in(&world.recorder.since(mark), "home");
            assert!(events.iter().all(|event| event["command_id"] == result["id"]), "{verb}: {events:#?}");
        }
    }
}

#[tokio::test]
async fn a_torrent_that_has_nothing_and_runs_is_not_moved_to_files_that_it_would_overwrite() {
    if !can_run() {
        return;
    }
    let contents = contents();
    let mut world = World::new(Setup::default()).await;
    let new = world.home.downloads.join("new");
    for content in &contents {
        world.home.load(&content.torrent, true).await.unwrap();
        world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
        write_other(content, &new);
    }
    world.start_bridge().await;
    for content in &contents {
        let result = move_to(&world, content.hash, &new).await;
        assert_eq!(error_code(&result), "precondition", "{result}");
        // Who stops it sees what is there before it starts.
        assert_eq!(world.recorder.command(&topic(content.hash, "stop"), Value::Null).await["status"], "ok");
        let result = move_to(&world, content.hash, &new).await;
        assert_eq!(result["status"], "ok", "{result}");
        assert_eq!(world.home.get(content.hash, "d.completed_bytes").await.unwrap(), "0");
        for (file, bytes) in &content.files {
            assert_eq!(std::fs::read(new.join(file)).unwrap(), vec![7; bytes.len()], "{file}");
        }
    }
}

/// It would write to them while it is checked what they are.
#[tokio::test]
async fn an_incomplete_torrent_that_runs_is_not_moved_to_other_files_of_the_same_sizes() {
    if !can_run() {
        return;
    }
    let contents = contents();
    let mut world = World::new(Setup::default()).await;
    let new = world.home.downloads.join("new");
    for content in &contents {
        content.write_to(&world.home.downloads).unwrap();
        // The end of its last file was not downloaded yet.
        let (file, bytes) = content.files.last().unwrap();
        let (begun, end) = bytes.split_at(bytes.len() - 10_000);
        std::fs::write(world.home.downloads.join(file), [begun, &vec![0; end.len()]].concat()).unwrap();
        world.home.load(&content.torrent, true).await.unwrap();
        world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
        write_other(content, &new);
    }
    world.start_bridge().await;
    for content in &contents {
        let before = world.home.get(content.hash, "d.completed_bytes").await.unwrap();
        assert!((1..content.length()).contains(&before.parse().unwrap()), "{before}");
        let mark = world.recorder.mark();
        let result = move_to(&world, content.hash, &new).await;
        assert_eq!(error_code(&result), "precondition", "{result}");
        let message = result["error"]["message"].as_str().unwrap();
        assert!(message.contains("a torrent that runs and is not complete") && !message.contains("  "), "{message}");
        let events = events_in(&world.recorder.since(mark), "home");
        let touched = events.iter().find(|event| event["hash"] == json!(content.hash));
        assert_eq!(touched, None, "it was not even stopped");
        assert_eq!(world.home.get(content.hash, "d.is_active").await.unwrap(), "1");
        assert_eq!(world.home.get(content.hash, "d.completed_bytes").await.unwrap(), before);
        let directory = world.home.get(content.hash, "d.directory").await.unwrap();
        assert!(!Path::new(&directory).starts_with(&new), "{directory}");
        for (file, bytes) in &content.files {
            assert_eq!(std::fs::read(new.join(file)).unwrap(), vec![7; bytes.len()], "{file}");
        }
    }
}

/// Starts everything with a complete torrent that runs or is stopped, and a web server in front of rTorrent that loses
/// answers.
async fn behind_faults(content: &Content, start: bool) -> (World, FaultyServer) {
    let rtorrent = Options { listen: Listen::Tcp, ..Options::default() };
    let mut world = World::new(Setup { rtorrent, server: "timeout = \"1s\"".to_owned(), ..Setup::default() }).await;
    content.write_to(&world.home.downloads).unwrap();
    world.home.load(&content.torrent, start).await.unwrap();
    if !start {
        world.home.act(content.hash, "d.check_hash", &[]).await.unwrap();
    }
    world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
    world.home.wait_for(content.hash, "d.hashing", "0").await.unwrap();
    let Address::Tcp(address) = world.home.rpc.address else { unreachable!("it listens on a port") };
    let server = FaultyServer::to(address, Duration::from_secs(1), 1).await;
    world.start_bridge_for(&[("home", &server.url())]).await;
    (world, server)
}

#[tokio::test]
async fn what_is_at_the_new_place_is_checked_by_the_run_after_a_kill_that_came_before_or_behind_the_check() {
    if !can_run() {
        return;
    }
    let cases = [
        (Fault::SwallowRequest, true, "1"),
        (Fault::SwallowRequest, false, "0"),
        // By then the client has forgotten what it had.
        (Fault::SwallowAnswer, true, "1"),
    ];
    for (fault, start, state) in cases {
        for content in &contents() {
            let (mut world, server) = behind_faults(content, start).await;
            let (old, new) = (world.home.downloads.clone(), world.home.downloads.join("new"));
            write_other(content, &new);
            server.fail_next("d.check_hash", fault, 1);
            let body = json!({"id": "begun", "directory": new});
            let topic = format!("dtorrent/{}", topic(content.hash, "move"));
            world.recorder.send(Command::new(&topic, body.to_string())).await;
            server.wait_for(fault, 1).await;
            world.bridge().process().kill().unwrap();
            let directory = world.home.get(content.hash, "d.directory").await.unwrap();
            assert!(Path::new(&directory).starts_with(&new), "{directory}");
            let complete = if fault == Fault::SwallowRequest { "1" } else { "0" };
            world.home.wait_for(content.hash, "d.complete", complete).await.unwrap();
            world.home.wait_for(content.hash, "d.hashing", "0").await.unwrap();
            world.bridge().restart();
            let result = world.recorder.result("begun").await;
            assert_eq!(error_code(&result), "precondition", "{result}");
            assert!(
                result.to_string().contains("bytes of its content; its directory is the old one again"),
                "{result}"
            );
            world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
            world.home.wait_for(content.hash, "d.state", state).await.unwrap();
            world.home.wait_for(content.hash, "d.is_active", state).await.unwrap();
            let directory = world.home.get(content.hash, "d.directory").await.unwrap();
            assert!(Path::new(&directory).starts_with(&old) && !Path::new(&directory).starts_with(&new), "{directory}");
            for (file, bytes) in &content.files {
                assert_eq!(std::fs::read(new.join(file)).unwrap(), vec![7; bytes.len()], "{file}");
            }
        }
    }
}

#[tokio::test]
async fn a_check_that_rtorrent_has_forgotten_proves_nothing_about_the_files_at_the_new_place() {
    if !can_run() {
        return;
    }
    let rtorrent = Options { listen: Listen::Tcp, ..Options::default() };
    let mut world = World::new(Setup { rtorrent, ..Setup::default() }).await;
    let content = Content::file("one.iso", 50_000, 1);
    content.write_to(&world.home.downloads).unwrap();
    world.home.load(&content.torrent, true).await.unwrap();
    world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
    let new = world.home.downloads.join("new");
    write_other(&content, &new);
    let Address::Tcp(address) = world.home.rpc.address else { unreachable!("it listens on a port") };
    let proxy = ScgiProxy::to(address).await;
    world.start_bridge_for(&[("home", &format!("scgi://{}", proxy.address))]).await;
    // In the queue of checks whenever it is read alone, and never checked: `d.size_files` says 1.
    proxy.replace(&[("d.check_hash<", "d.update_priorities<"), ("d.hashing<", "d.size_files<")]);
    let body = json!({"directory": new, "ttl": "2s"});
    let result = world.recorder.command(&topic(content.hash, "move"), body).await;
    assert_eq!(error_code(&result), "precondition", "{result}");
    assert_eq!(result["error"]["retryable"], true, "{result}");
    let directory = world.home.get(content.hash, "d.directory").await.unwrap();
    assert_eq!(Path::new(&directory), world.home.downloads);
    proxy.replace(&[]);
    world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
    assert_eq!(world.home.get(content.hash, "d.complete").await.unwrap(), "1");
}

#[tokio::test]
async fn content_that_somebody_has_moved_is_checked_at_its_new_place_and_complete() {
    if !can_run() {
        return;
    }
    let contents = contents();
    let world = World::seeding(Setup::default(), &contents).await;
    let new = world.home.downloads.join("new");
    for content in &contents {
        content.write_to(&new).unwrap();
        let result = move_to(&world, content.hash, &new).await;
        assert_eq!(result["status"], "ok", "{result}");
        assert_eq!(world.home.get(content.hash, "d.complete").await.unwrap(), "1");
        world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
        assert!(Path::new(&world.home.get(content.hash, "d.directory").await.unwrap()).starts_with(&new));
    }
}

#[tokio::test]
async fn a_long_check_of_other_files_of_the_same_sizes_ends_before_the_result_says_what_is_there() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup { server: "timeout = \"1500ms\"".to_owned(), ..Setup::default() }).await;
    let hash = load_large(&world).await;
    world.start_bridge().await;
    let new = world.home.downloads.join("new");
    std::fs::create_dir(&new).unwrap();
    let length = std::fs::metadata(world.home.downloads.join("large")).unwrap().len();
    let other = std::fs::File::create(new.join("large")).unwrap();
    // Its last piece is another one, all others are right.
    std::os::unix::fs::FileExt::write_all_at(&other, b"x", length - 1).unwrap();
    let result = move_to(&world, hash, &new).await;
    assert_eq!(error_code(&result), "precondition", "{result}");
    assert!(result.to_string().contains(&format!("of {length} bytes of its content")), "{result}");
    assert_eq!(world.home.get(hash, "d.complete").await.unwrap(), "0");
    assert_eq!(world.home.get(hash, "d.hashing").await.unwrap(), "0");
    assert!(Path::new(&world.home.get(hash, "d.directory").await.unwrap()).starts_with(&new));
}

#[tokio::test]
async fn a_move_that_gives_way_to_a_check_of_another_torrent_leaves_its_own_where_it_was() {
    if !can_run() {
        return;
    }
    let rtorrent = Options { listen: Listen::Tcp, ..Options::default() };
    let mut world = World::new(Setup { rtorrent, ..Setup::default() }).await;
    let content = Content::file("one.iso", 50_000, 1);
    content.write_to(&world.home.downloads).unwrap();
    world.home.load(&content.torrent, true).await.unwrap();
    world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
    let large = load_large(&world).await;
    let Address::Tcp(address) = world.home.rpc.address else { unreachable!("it listens on a port") };
    let proxy = ScgiProxy::to(address).await;
    world.start_bridge_for(&[("home", &format!("scgi://{}", proxy.address))]).await;
    // As if the other check had begun when the torrent was held already.
    proxy.replace(&[("<string>d.is_hash_checking=</string>", "<string>d.hashing_failed=</string>")]);
    world.home.act(large, "d.check_hash", &[]).await.unwrap();
    let body = json!({"id": "late", "directory": world.home.downloads.join("new"), "ttl": "1s"});
    world.recorder.send(Command::new(&format!("dtorrent/{}", topic(content.hash, "move")), body.to_string())).await;
    world.home.wait_for(content.hash, "d.is_open", "0").await.unwrap();
    proxy.replace(&[]);
    let result = world.recorder.result("late").await;
    assert_eq!(error_code(&result), "precondition", "{result}");
    assert_eq!(result["error"]["retryable"], true, "{result}");
    world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
    let directory = world.home.get(content.hash, "d.directory").await.unwrap();
    assert_eq!(Path::new(&directory), world.home.downloads);
    assert_eq!(world.home.get(content.hash, "d.complete").await.unwrap(), "1");
}

#[tokio::test]
async fn a_torrent_whose_move_ends_without_an_answer_goes_on_when_the_client_answers() {
    if !can_run() {
        return;
    }
    let rtorrent = Options { listen: Listen::Tcp, ..Options::default() };
    let server = "timeout = \"1s\"".to_owned();
    let mut world = World::new(Setup { rtorrent, server, ..Setup::default() }).await;
    let content = Content::file("one.iso", 50_000, 1);
    content.write_to(&world.home.downloads).unwrap();
    world.home.load(&content.torrent, true).await.unwrap();
    world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
    let Address::Tcp(address) = world.home.rpc.address else { unreachable!("it listens on a port") };
    let server = FaultyServer::to(address, Duration::from_secs(1), 1).await;
    world.start_bridge_for(&[("home", &server.url())]).await;
    // rTorrent is held for the move, and hangs from then on.
    server.fail_next("d.directory.set", Fault::SwallowAnswer, 1);
    let body = json!({"id": "hangs", "directory": world.home.downloads.join("new"), "ttl": "1s"});
    world.recorder.send(Command::new(&format!("dtorrent/{}", topic(content.hash, "move")), body.to_string())).await;
    server.wait_for(Fault::SwallowAnswer, 1).await;
    world.home.process().pause().unwrap();
    let result = world.recorder.result_within(Duration::from_secs(60), "hangs").await;
    assert_eq!(error_code(&result), "unconfirmed", "{result}");
    world.home.process().unpause().unwrap();
    world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
    assert_empty(&world, content.hash, &world.home.downloads.join("new"), "1", "1").await;
    world.database().until("the command has ended", |database| database.begun_commands() == 0).await;
    let held = ["dtorrent_held", "dtorrent_home"];
    for key in held {
        let hash = content.hash.to_rpc();
        let value = world.home.rpc.call("d.custom", &[Argument::Text(&hash), Argument::Text(key)]).await.unwrap();
        assert_eq!(value, [""], "{key}");
    }
    let result = world.recorder.command(&topic(content.hash, "label"), json!({"label": "after"})).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_eq!(world.database().unfinished_commands(), 0);
}
