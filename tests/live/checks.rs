//! Torrents whose hash check failed to open a file: rTorrent leaves them in its queue of checks for ever.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use dtorrent::model::MetainfoBuilder;
use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{Address, Listen, Options};
use serde_json::{Value, json};

use crate::harness::recorder::{Command, error_code};
use crate::harness::scgi::ScgiProxy;
use crate::harness::{Setup, World, can_run};

/// Time after its time to live at which a command has ended.
const END: Duration = Duration::from_secs(20);

/// Loads torrents whose content is a folder where a file should be, and lets their check fail.
async fn stuck(world: &World, count: u64, start: bool) -> Vec<Content> {
    let mut contents = Vec::new();
    for number in 0..count {
        let content = Content::file(&format!("stuck-{start}-{number}"), 50_000, number);
        std::fs::create_dir(world.home.downloads.join(&content.name)).unwrap();
        world.home.load(&content.torrent, start).await.unwrap();
        if !start {
            world.home.act(content.hash, "d.check_hash", &[]).await.unwrap();
        }
        world.home.wait_for(content.hash, "d.hashing_failed", "1").await.unwrap();
        assert_ne!(world.home.get(content.hash, "d.hashing").await.unwrap(), "0");
        contents.push(content);
    }
    contents
}

fn topic(hash: InfoHash, verb: &str) -> String {
    format!("home/torrent/{hash}/command/{verb}")
}

#[tokio::test]
async fn a_torrent_whose_check_cannot_open_its_files_takes_commands() {
    if !can_run() {
        return;
    }
    for start in [true, false] {
        let mut world = World::new(Setup::default()).await;
        let contents = stuck(&world, 4, start).await;
        let [stopped, deleted, started, checked] = &contents[..] else { unreachable!() };
        world.start_bridge().await;
        let ok = async |hash: InfoHash, verb: &str| {
            let result = world.recorder.command(&topic(hash, verb), json!({"ttl": "30s"})).await;
            assert_eq!(result["status"], "ok", "{verb}: {result}");
            assert!(result["took_ms"].as_u64().unwrap() < 10_000, "{verb}: {result}");
        };
        ok(stopped.hash, "stop").await;
        assert_eq!(world.home.get(stopped.hash, "d.hashing").await.unwrap(), "0");
        ok(deleted.hash, "delete").await;
        assert!(!world.home.hashes().await.unwrap().contains(&deleted.hash));
        // With its files as they should be, it is checked again and goes on.
        for (content, verb) in [(started, "start"), (checked, "recheck")] {
            std::fs::remove_dir(world.home.downloads.join(&content.name)).unwrap();
            content.write_to(&world.home.downloads).unwrap();
            ok(content.hash, verb).await;
            world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
            let state = if verb == "start" || start { "1" } else { "0" };
            world.home.wait_for(content.hash, "d.state", state).await.unwrap();
        }
    }
}

/// Returns a torrent with the same file twice, whose content is there.
fn twice(world: &World, name: &str) -> Vec<u8> {
    let content = world.home.downloads.join(name);
    std::fs::create_dir(&content).unwrap();
    ["a", "b"].iter().for_each(|file| std::fs::write(content.join(file), [1; 20_000]).unwrap());
    let folder = MetainfoBuilder::folder(name, 16_384);
    ["a", "b", "a"].iter().fold(folder, |torrent, path| torrent.file([*path]).content(&[1; 20_000])).build()
}

/// Two files with one path: rTorrent does not even note that the check has failed, until it comes to check another torrent.
#[tokio::test]
async fn a_torrent_that_rtorrent_forgets_in_its_queue_of_checks_takes_commands() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let other = Content::file("other", 20_000, 1);
    world.home.load(&other.torrent, false).await.unwrap();
    world.start_bridge().await;
    for alone in [true, false] {
        for verb in ["stop", "recheck", "delete"] {
            let mark = world.recorder.mark();
            let hash = world.home.load(&twice(&world, &format!("twice-{verb}-{alone}")), true).await.unwrap();
            world.recorder.event_after(mark, "home", "added", hash).await;
            world.home.wait_for(hash, "d.hashing", "3").await.unwrap();
            assert_eq!(world.home.get(hash, "d.hashing_failed").await.unwrap(), "0");
            // Of one torrent the row is read, of several the list.
            let hashes = if alone { vec![hash] } else { vec![hash, other.hash] };
            let body = json!({"hashes": hashes, "ttl": "4s"});
            let result = world.recorder.command(&format!("home/command/{verb}"), body).await;
            let of_it = result["results"].as_array().unwrap().iter().find(|row| row["hash"] == json!(hash)).unwrap();
            assert_eq!(of_it["status"], "ok", "{verb}, {alone}: {result}");
            if verb == "stop" {
                assert_eq!(world.home.get(hash, "d.hashing").await.unwrap(), "0", "{result}");
            }
            if verb == "delete" && !alone {
                world.home.load(&other.torrent, false).await.unwrap();
            }
            if verb != "delete" {
                for command in ["d.stop", "d.close", "d.erase"] {
                    world.home.act(hash, command, &[]).await.unwrap();
                }
            }
            world.recorder.event_after(mark, "home", "removed", hash).await;
        }
    }
}

#[tokio::test]
async fn a_torrent_that_rtorrent_forgets_in_its_queue_of_checks_is_moved() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let hash = world.home.load(&twice(&world, "twice"), false).await.unwrap();
    world.start_bridge().await;
    world.home.act(hash, "d.check_hash", &[]).await.unwrap();
    world.home.wait_for(hash, "d.hashing", "3").await.unwrap();
    let new = world.home.downloads.join("new");
    let result = world.recorder.command(&topic(hash, "move"), json!({"directory": new, "ttl": "20s"})).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert!(result["took_ms"].as_u64().unwrap() < 10_000, "{result}");
    assert!(Path::new(&world.home.get(hash, "d.directory").await.unwrap()).starts_with(&new));
    assert_eq!(world.home.get(hash, "d.state").await.unwrap(), "0");
}

#[tokio::test]
async fn a_torrent_whose_check_failed_is_not_shown_as_being_checked() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let running = stuck(&world, 1, true).await.remove(0);
    let stopped = stuck(&world, 1, false).await.remove(0);
    world.start_bridge().await;
    for (content, status) in [(running, "queued"), (stopped, "stopped")] {
        let result = world.recorder.command(&topic(content.hash, "get"), Value::Null).await;
        let torrent = &result["results"][0]["torrent"];
        assert_eq!((&torrent["status"], &torrent["error"]), (&json!(status), &json!(true)), "{result}");
    }
}

#[tokio::test]
async fn a_pause_of_a_torrent_whose_check_failed_says_why_not() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let content = stuck(&world, 1, true).await.remove(0);
    world.start_bridge().await;
    let result = world.recorder.command(&topic(content.hash, "pause"), Value::Null).await;
    assert_eq!(result["error"]["code"], "precondition", "{result}");
    assert!(result.to_string().contains("its check failed"), "{result}");
}

#[tokio::test]
async fn many_torrents_that_rtorrent_cannot_read_leave_room_for_others() {
    if !can_run() {
        return;
    }
    let (world, proxy, here) = behind_proxy().await;
    // rTorrent looks elsewhere than the bridge, as in a container of its own, and finds folders in place of files.
    let there = world.folder.join("home/elsewhere");
    let text = |path: &Path| format!("<string>{}</string>", path.display()).leak();
    proxy.replace(&[(text(&here), text(&there))]);
    let odd = |number| {
        let content = Content::file(&format!("odd-{number}"), 50_000, number);
        std::fs::create_dir_all(there.join(&content.name)).unwrap();
        content
    };
    for result in add_with_data(&world, &here, odd).await {
        assert_eq!(*error_code(&result), "precondition", "{result}");
    }
    assert_eq!(world.home.hashes().await.unwrap(), [], "each was taken back");
    assert_has_room(&world).await;
}

#[tokio::test]
async fn many_torrents_that_rtorrent_reads_without_an_end_have_their_results_in_time() {
    if !can_run() {
        return;
    }
    let (world, proxy, here) = behind_proxy().await;
    // Each torrent is of one file: so `d.size_files` says 1, and `d.is_multi_file` 0.
    let (one, none) = (["d.size_files<", "d.size_files="], ["d.is_multi_file<", "d.is_multi_file="]);
    proxy.replace(&[
        ("d.hashing<", one[0]),
        ("d.hashing=", one[1]),
        ("d.is_hash_checking<", one[0]),
        ("d.is_hash_checking=", one[1]),
        ("d.complete<", none[0]),
        ("d.complete=", none[1]),
    ]);
    for result in add_with_data(&world, &here, |number| Content::file(&format!("slow-{number}"), 50_000, number)).await
    {
        assert_eq!(*error_code(&result), "unconfirmed", "{result}");
        assert!(Duration::from_millis(result["took_ms"].as_u64().unwrap()) >= TTL, "{result}");
        let message = result["error"]["message"].as_str().unwrap();
        assert!(message.contains("it is checking") && message.contains("could not be removed again"), "{message}");
    }
    proxy.replace(&[]);
    assert_has_room(&world).await;
}

const TTL: Duration = Duration::from_secs(2);

/// An rTorrent behind a proxy, and its folder of downloads.
async fn behind_proxy() -> (World, ScgiProxy, PathBuf) {
    let rtorrent = Options { listen: Listen::Tcp, ..Options::default() };
    let mut world = World::new(Setup { rtorrent, ..Setup::default() }).await;
    let Address::Tcp(address) = world.home.rpc.address else { unreachable!("it listens on a port") };
    let proxy = ScgiProxy::to(address).await;
    world.start_bridge_for(&[("home", &format!("scgi://{}", proxy.address))]).await;
    let downloads = world.home.downloads.clone();
    (world, proxy, downloads)
}

/// Adds as many torrents with their data as may be added at a time; returns the results, each of which was in time.
async fn add_with_data(world: &World, folder: &Path, content: impl Fn(u64) -> Content) -> Vec<Value> {
    let contents: Vec<Content> = (0..8).map(content).collect();
    for content in &contents {
        content.write_to(folder).unwrap();
        let file = folder.join(&content.name);
        let body = json!({"torrent": base64(&content.torrent), "data_file": file, "id": content.name, "ttl": "2s"});
        world.recorder.send(Command::new("dtorrent/home/command/add", body.to_string())).await;
    }
    let mut results = Vec::new();
    for content in &contents {
        let result = world.recorder.result(&content.name).await;
        assert_eq!(result["status"], "error", "{result}");
        assert!(Duration::from_millis(result["took_ms"].as_u64().unwrap()) < TTL + END, "{result}");
        results.push(result);
    }
    results
}

async fn assert_has_room(world: &World) {
    let torrent = MetainfoBuilder::single("next", 16_384).content(&[7; 40_000]).build();
    let result = world.recorder.command("home/command/add", json!({"torrent": base64(&torrent)})).await;
    assert_eq!(result["status"], "ok", "{result}");
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
