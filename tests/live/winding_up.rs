//! Commands that have begun to move or delete torrents when the bridge is killed: the next run goes on, also behind a result.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{Address, Argument, Listen, Options};
use serde_json::{Value, json};

use crate::harness::disk::FailingDisk;
use crate::harness::faulty::{Fault, FaultyServer};
use crate::harness::recorder::{Command, error_code, events_in};
use crate::harness::{Setup, World, can_run};

/// Longer than a time to live of a second and the time for its result.
const PATIENCE: Duration = Duration::from_secs(60);

fn content() -> Content {
    Content::folder("folder", &[("a", 2_000_000), ("sub/b", 2_000_000)], 1)
}

/// Starts everything, with a web server in front of rTorrent that loses answers.
async fn behind_faults(content: &Content) -> (World, FaultyServer) {
    behind_delays(content, "1s", Duration::from_millis(1500)).await
}

/// The same, with a time in which rTorrent has to answer, and the delay of what is delayed.
async fn behind_delays(content: &Content, timeout: &str, delay: Duration) -> (World, FaultyServer) {
    let rtorrent = Options { listen: Listen::Tcp, ..Options::default() };
    let (server, sink) = (format!("timeout = \"{timeout}\""), "commands = [\"*\"]".to_owned());
    let mut world = World::new(Setup { rtorrent, server, sink, ..Setup::default() }).await;
    content.write_to(&world.home.downloads).unwrap();
    world.home.load(&content.torrent, true).await.unwrap();
    world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
    let Address::Tcp(address) = world.home.rpc.address else { unreachable!("it listens on a port") };
    let server = FaultyServer::to(address, delay * 2 / 3, 1).await;
    world.start_bridge_for(&[("home", &server.url())]).await;
    (world, server)
}

async fn send(world: &World, hash: InfoHash, verb: &str, mut body: Value) {
    body["id"] = json!("begun");
    if body["ttl"].is_null() {
        body["ttl"] = json!("1s");
    }
    world.recorder.send(Command::new(&format!("dtorrent/home/torrent/{hash}/command/{verb}"), body.to_string())).await;
}

/// Waits until rTorrent loses the answer to a request that contains `text`, and lets it hang from then on.
async fn hang(world: &mut World, server: &FaultyServer, fault: Fault) {
    server.wait_for(fault, 1).await;
    world.home.process().pause().unwrap();
}

/// Asserts that all of the content is in a directory, and nothing of it in another one, and that the torrent runs there.
async fn assert_moved(world: &World, content: &Content, from: &Path, to: &Path) {
    for (file, bytes) in &content.files {
        assert_eq!(std::fs::read(to.join(file)).unwrap(), *bytes, "{file}");
        assert!(!from.join(file).try_exists().unwrap(), "{file}");
    }
    world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
    assert_eq!(world.home.get(content.hash, "d.complete").await.unwrap(), "1");
    assert!(Path::new(&world.home.get(content.hash, "d.directory").await.unwrap()).starts_with(to));
    assert_eq!(held(world, content.hash).await, "");
}

/// Returns how a held torrent was before; empty if it is not held.
async fn held(world: &World, hash: InfoHash) -> String {
    let arguments = [Argument::Text(&hash.to_rpc()), Argument::Text("dtorrent_held")];
    world.home.rpc.call("d.custom", &arguments).await.unwrap().remove(0)
}

#[tokio::test]
async fn a_move_that_was_answered_before_a_kill_goes_on_in_the_next_run() {
    if !can_run() {
        return;
    }
    let content = content();
    let (mut world, server) = behind_faults(&content).await;
    let (old, new) = (world.home.downloads.clone(), world.home.downloads.join("new"));
    server.fail_next("d.directory.set", Fault::SwallowRequest, 1);
    send(&world, content.hash, "move", json!({"directory": new, "data": true})).await;
    hang(&mut world, &server, Fault::SwallowRequest).await;
    let result = world.recorder.result_within(PATIENCE, "begun").await;
    assert_eq!(error_code(&result), "unconfirmed", "{result}");
    assert!(new.join("folder/a").is_file(), "the files are moved, and rTorrent does not know");
    let mark = world.recorder.mark();
    world.bridge().restart();
    world.home.process().unpause().unwrap();
    let moved = world.recorder.event_after(mark, "home", "moved", content.hash).await;
    assert_eq!(moved["torrent"]["directory"], json!(new.join("folder")), "{moved}");
    assert_moved(&world, &content, &old, &new).await;
    world.database().until("the command has ended", |database| database.begun_commands() == 0).await;
    assert!(world.recorder.results("begun").iter().all(|again| *again == result));
    assert!(world.bridge().log().contains("command goes on behind its result"));
}

#[tokio::test]
async fn a_delete_that_was_answered_before_a_kill_goes_on_in_the_next_run() {
    if !can_run() {
        return;
    }
    let content = content();
    let (mut world, server) = behind_faults(&content).await;
    server.fail_next("d.erase", Fault::SwallowRequest, 1);
    send(&world, content.hash, "delete", json!({"data": true})).await;
    hang(&mut world, &server, Fault::SwallowRequest).await;
    let result = world.recorder.result_within(PATIENCE, "begun").await;
    assert_eq!(error_code(&result), "unconfirmed", "{result}");
    assert!(!world.home.downloads.join("folder").try_exists().unwrap(), "the files are gone, and the torrent is not");
    let mark = world.recorder.mark();
    world.bridge().restart();
    world.home.process().unpause().unwrap();
    world.recorder.event_after(mark, "home", "removed", content.hash).await;
    assert!(world.home.hashes().await.unwrap().is_empty());
    world.database().until("the command has ended", |database| database.begun_commands() == 0).await;
    assert!(world.recorder.results("begun").iter().all(|again| *again == result));
}

#[tokio::test]
async fn a_delete_that_had_only_held_the_torrent_deletes_nothing_in_the_next_run() {
    if !can_run() {
        return;
    }
    let content = content();
    let (mut world, server) = behind_faults(&content).await;
    server.fail_next("d.close", Fault::SwallowAnswer, 1);
    send(&world, content.hash, "delete", json!({"data": true})).await;
    hang(&mut world, &server, Fault::SwallowAnswer).await;
    let result = world.recorder.result_within(PATIENCE, "begun").await;
    assert!(result.to_string().contains("the files are untouched, and the torrent goes on as before"), "{result}");
    world.bridge().restart();
    world.home.process().unpause().unwrap();
    world.database().until("the command has ended", |database| database.begun_commands() == 0).await;
    let downloads = world.home.downloads.clone();
    assert_moved(&world, &content, &downloads.join("elsewhere"), &downloads).await;
}

/// Moves content whose disk freezes, or the disk that it is moved to, and kills the bridge meanwhile; returns the old and the
/// new place.
async fn moved_and_killed(content: &Content, freezes_old: bool) -> Option<(World, FailingDisk, PathBuf, PathBuf)> {
    let mut world = World::new(Setup::default()).await;
    let disk_folder = world.home.downloads.join("disk");
    let disk = FailingDisk::mount(&world.folder.join("image"), &disk_folder)?;
    let (old, new) = match freezes_old {
        true => (disk_folder.join("old"), world.home.downloads.join("new")),
        false => (world.home.downloads.clone(), disk_folder.join("new")),
    };
    content.write_to(&old).unwrap();
    world.home.load_into(&content.torrent, true, Some(&old)).await.unwrap();
    world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
    world.start_bridge().await;
    disk.freeze();
    send(&world, content.hash, "move", json!({"directory": new, "data": true})).await;
    world.database().until("the move has begun", |database| database.begun_commands() == 1).await;
    world.home.wait_for(content.hash, "d.is_open", "0").await.unwrap();
    if freezes_old {
        let is_copied = |_: &_| new.join("folder/sub/b").is_file();
        world.database().until("the content is copied", is_copied).await;
    }
    // The kernel ends a process that waits for a disk when the disk goes on.
    let pid = world.bridge().process().pid().to_string();
    assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    disk.thaw();
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.bridge().restart();
    let result = world.recorder.result_within(PATIENCE, "begun").await;
    assert_eq!(error_code(&result), "unconfirmed", "{result}");
    assert!(result.to_string().contains("is completed now, and what it had not touched goes on as before"), "{result}");
    world.database().until("the command has ended", |database| database.begun_commands() == 0).await;
    Some((world, disk, old, new))
}

#[tokio::test]
async fn a_move_that_was_killed_while_files_were_at_both_places_is_completed_also_after_its_time_to_live() {
    if !can_run() {
        return;
    }
    let content = content();
    let Some((world, _disk, old, new)) = moved_and_killed(&content, true).await else { return };
    assert_moved(&world, &content, &old, &new).await;
}

#[tokio::test]
async fn a_move_that_was_killed_before_the_first_file_was_copied_is_not_begun_again_after_its_time_to_live() {
    if !can_run() {
        return;
    }
    let content = content();
    let Some((world, _disk, old, new)) = moved_and_killed(&content, false).await else { return };
    assert_moved(&world, &content, &new, &old).await;
}

#[tokio::test]
async fn a_file_of_somebody_else_is_not_taken_for_a_copy_after_a_kill_that_came_before_the_first_copy() {
    if !can_run() {
        return;
    }
    let contents = [content(), Content::folder("other", &[("a", 50_000)], 2)];
    let mut world =
        World::seeding(Setup { server: "timeout = \"1s\"".to_owned(), ..Setup::default() }, &contents).await;
    let (old, disk_folder) = (world.home.downloads.clone(), world.home.downloads.join("disk"));
    let Some(disk) = FailingDisk::mount(&world.folder.join("image"), &disk_folder) else { return };
    let new = disk_folder.join("new");
    // Of the right size, and not its content.
    std::fs::create_dir_all(new.join("other")).unwrap();
    std::fs::write(new.join("other/a"), [7; 50_000]).unwrap();
    disk.freeze();
    let hashes = [contents[0].hash, contents[1].hash];
    let body = json!({"id": "begun", "hashes": hashes, "directory": new, "data": true, "ttl": "60s"});
    world.recorder.send(Command::new("dtorrent/home/command/move", body.to_string())).await;
    world.database().until("the move has begun", |database| database.begun_commands() == 1).await;
    let pid = world.bridge().process().pid().to_string();
    assert!(std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success());
    disk.thaw();
    world.bridge().restart();
    let result = world.recorder.result_within(PATIENCE, "begun").await;
    assert_eq!(result["status"], "partial", "{result}");
    assert!(result.to_string().contains("is there already and is left alone"), "{result}");
    assert_moved(&world, &contents[0], &old, &new).await;
    assert_eq!(std::fs::read(old.join("other/a")).unwrap(), contents[1].files[0].1);
    assert_eq!(std::fs::read(new.join("other/a")).unwrap(), [7; 50_000]);
    world.home.wait_for(contents[1].hash, "d.is_active", "1").await.unwrap();
}

/// Begins a command, and kills the bridge when the torrent is held and nothing else is done.
async fn held_and_killed(verb: &str, body: Value) -> (World, FaultyServer, Content) {
    let content = content();
    let (mut world, server) = behind_faults(&content).await;
    killed_before(&mut world, &server, &content, ("d.close", Fault::SwallowAnswer), verb, body).await;
    world.home.wait_for(content.hash, "d.is_open", "0").await.unwrap();
    (world, server, content)
}

/// Begins a command, and kills the bridge while it waits for a request that contains a text.
async fn killed_before(
    world: &mut World,
    server: &FaultyServer,
    content: &Content,
    (text, fault): (&'static str, Fault),
    verb: &str,
    body: Value,
) {
    server.fail_next(text, fault, 1);
    send(world, content.hash, verb, body).await;
    server.wait_for(fault, 1).await;
    world.bridge().process().kill().unwrap();
    assert_eq!(world.database().begun_commands(), 1);
}

#[tokio::test]
async fn a_paused_torrent_whose_move_was_killed_is_paused_again_when_the_next_run_says_that_it_is_done() {
    if !can_run() {
        return;
    }
    let content = content();
    let moves = [
        // It is held, nothing else is done, and a bare move has to be undone and done as well.
        ("d.close", Fault::SwallowAnswer, true),
        ("d.close", Fault::SwallowAnswer, false),
        // The client has the new directory, and does not run there yet.
        ("d.start", Fault::SwallowRequest, true),
        ("d.start", Fault::SwallowRequest, false),
    ];
    for (text, fault, data) in moves {
        let (mut world, server) = behind_faults(&content).await;
        world.home.act(content.hash, "d.pause", &[]).await.unwrap();
        let paused = world.recorder.event("home", "paused", content.hash).await;
        let new = world.home.downloads.join("new");
        let body = json!({"directory": new, "data": data, "ttl": "60s"});
        killed_before(&mut world, &server, &content, (text, fault), "move", body).await;
        // So that it cannot be paused at once: too many announces would end rTorrent.
        server.fail_next("d.pause", Fault::SwallowAnswer, 1);
        let mark = world.recorder.mark();
        world.bridge().restart();
        let result = world.recorder.result_within(PATIENCE, "begun").await;
        assert_eq!(result["status"], "ok", "{text} {data}: {result}");
        let [state, is_active] = ["d.state", "d.is_active"];
        assert_eq!(world.home.get(content.hash, state).await.unwrap(), "1", "{text} {data}");
        assert_eq!(world.home.get(content.hash, is_active).await.unwrap(), "0", "{text} {data}");
        let later = events_in(&world.recorder.since(mark), "home").into_iter();
        let mut later = later.filter(|event| event["seq"].as_u64() > paused["seq"].as_u64());
        assert_eq!(later.find(|event| event["cause"] == "observed"), None);
    }
}

/// Its data are where they were, rTorrent finds out again that it has them, and all that is seen of this is the command's.
#[tokio::test]
async fn a_move_that_the_client_does_not_take_is_taken_back_and_names_its_command() {
    if !can_run() {
        return;
    }
    let content = content();
    // Whoever sets `once` has the torrent stopped the next time that it goes on.
    let hooks = ["zz_once, \"branch=d.custom=once,d.stop=\"", "zzz_forget, \"d.custom.set=once,\""];
    let lines = hooks.map(|hook| format!("method.set_key = event.download.resumed, {hook}")).to_vec();
    for verb in ["resume", "pause"] {
        let rtorrent = Options { lines: lines.clone(), ..Options::default() };
        let world = World::seeding(Setup { rtorrent, ..Setup::default() }, std::slice::from_ref(&content)).await;
        let topic = format!("home/torrent/{}/command/{verb}", content.hash);
        assert_eq!(world.recorder.command(&topic, json!({})).await["status"], "ok");
        let arguments = [Argument::Text("once"), Argument::Text("1")];
        world.home.act(content.hash, "d.custom.set", &arguments).await.unwrap();
        let (old, new, mark) = (world.home.downloads.clone(), world.home.downloads.join("new"), world.recorder.mark());
        send(&world, content.hash, "move", json!({"directory": new, "data": true, "ttl": "60s"})).await;
        let result = world.recorder.result_within(PATIENCE, "begun").await;
        assert_eq!(error_code(&result), "precondition", "{verb}: {result}");
        assert!(result.to_string().contains("its directory is the old one again"), "{verb}: {result}");
        for (file, bytes) in &content.files {
            assert_eq!(std::fs::read(old.join(file)).unwrap(), *bytes, "{file}");
        }
        let is_active = if verb == "pause" { "0" } else { "1" };
        world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
        world.home.wait_for(content.hash, "d.is_active", is_active).await.unwrap();
        // Nothing comes after this that was seen before it.
        world.recorder.command("home/command/list", json!({})).await;
        let events = events_in(&world.recorder.since(mark), "home");
        for event in events {
            let kind = event["event_type"].as_str().unwrap();
            let is_of_command = event["cause"] == "command" && event["command_id"] == "begun";
            assert!(is_of_command || ["error", "error_cleared"].contains(&kind), "{verb}: {event}");
        }
    }
}

#[tokio::test]
async fn what_a_client_answers_behind_a_result_that_says_untouched_begins_nothing() {
    if !can_run() {
        return;
    }
    let content = content();
    let (mut world, server) = behind_delays(&content, "60s", Duration::from_secs(30)).await;
    // Where the files are is known only when the result is out.
    server.fail_next("f.multicall", Fault::DelayAnswer, 1);
    send(&world, content.hash, "delete", json!({"data": true})).await;
    let result = world.recorder.result_within(PATIENCE, "begun").await;
    assert!(result.to_string().contains("the files are untouched, and the torrent goes on as before"), "{result}");
    server.fail_next("d.close", Fault::SwallowAnswer, 1);
    world.bridge().wait_for_log("command ended after its result").await;
    // A kill would leave it held otherwise, and the next run knows nothing of the data any more.
    assert_eq!(server.count(Fault::SwallowAnswer), 0, "it is held behind the result");
    let downloads = world.home.downloads.clone();
    assert_moved(&world, &content, &downloads.join("elsewhere"), &downloads).await;
}

#[tokio::test]
async fn a_torrent_whose_command_fails_in_the_next_run_is_not_left_held() {
    if !can_run() {
        return;
    }
    let (mut world, server, content) = held_and_killed("delete", json!({"data": true, "ttl": "60s"})).await;
    let downloads = world.home.downloads.clone();
    // Its content is outside the roots now.
    world.home.downloads = downloads.join("elsewhere");
    std::fs::create_dir(&world.home.downloads).unwrap();
    world.start_bridge_for(&[("home", &server.url())]).await;
    let result = world.recorder.result("begun").await;
    assert_eq!(error_code(&result), "forbidden", "{result}");
    let started = world.recorder.event("home", "started", content.hash).await;
    assert_eq!((&started["cause"], &started["command_id"]), (&json!("command"), &json!("begun")), "{started}");
    world.database().until("the command has ended", |database| database.begun_commands() == 0).await;
    assert_moved(&world, &content, &downloads.join("elsewhere"), &downloads).await;
}

#[tokio::test]
async fn a_command_for_torrents_that_run_goes_on_with_one_that_it_has_held_itself() {
    if !can_run() {
        return;
    }
    let body = json!({"data": true, "ttl": "60s", "if_status": ["seeding"]});
    let (mut world, _server, content) = held_and_killed("delete", body).await;
    world.bridge().restart();
    let result = world.recorder.result("begun").await;
    assert_eq!(result["status"], "ok", "{result}");
    assert!(world.home.hashes().await.unwrap().is_empty());
    assert!(!world.home.downloads.join(content.name).try_exists().unwrap());
}

#[tokio::test]
async fn what_a_server_that_is_gone_from_the_config_had_begun_is_named_and_forgotten() {
    if !can_run() {
        return;
    }
    let (mut world, server, content) = held_and_killed("delete", json!({"data": true, "ttl": "60s"})).await;
    world.start_bridge_for(&[("other", &server.url())]).await;
    let result = world.recorder.result("begun").await;
    assert_eq!(error_code(&result), "unknown_server", "{result}");
    world.database().until("the command has ended", |database| database.begun_commands() == 0).await;
    let log = world.bridge().log();
    let line = log.lines().find(|line| line.contains("torrent was being moved or deleted")).expect("it is named");
    assert!(line.contains(&content.hash.to_string()), "{line}");
    assert!(world.home.downloads.join(content.name).is_dir());
}

#[tokio::test]
async fn what_was_begun_to_be_deleted_longer_than_a_day_ago_is_not_completed() {
    if !can_run() {
        return;
    }
    let (mut world, _server, content) = held_and_killed("delete", json!({"data": true, "ttl": "60s"})).await;
    let downloads = world.home.downloads.clone();
    // As if a part of it had been deleted by then.
    std::fs::remove_file(downloads.join("folder/a")).unwrap();
    world.database().age_commands(Duration::from_secs(25 * 3600));
    world.bridge().restart();
    let result = world.recorder.result("begun").await;
    assert_eq!(error_code(&result), "unconfirmed", "{result}");
    assert!(result.to_string().contains("what it had begun to delete is not completed"), "{result}");
    world.database().until("the command has ended", |database| database.begun_commands() == 0).await;
    assert_eq!(world.home.get(content.hash, "d.state").await.unwrap(), "0", "it would be downloaded again");
    assert!(downloads.join("folder/sub/b").is_file());
    assert!(world.bridge().log().contains("torrent stays stopped: some of its files are deleted"));
}

#[tokio::test]
async fn an_old_delete_that_had_only_held_the_torrent_lets_it_go_on() {
    if !can_run() {
        return;
    }
    let (mut world, _server, content) = held_and_killed("delete", json!({"data": true, "ttl": "60s"})).await;
    world.database().age_commands(Duration::from_secs(25 * 3600));
    world.bridge().restart();
    world.recorder.result("begun").await;
    world.database().until("the command has ended", |database| database.begun_commands() == 0).await;
    let downloads = world.home.downloads.clone();
    assert_moved(&world, &content, &downloads.join("elsewhere"), &downloads).await;
}

#[tokio::test]
async fn a_move_whose_last_answers_are_lost_has_its_files_where_the_client_looks_for_them() {
    if !can_run() {
        return;
    }
    for lost in [1, 2, 3] {
        let content = content();
        let (world, server) = behind_faults(&content).await;
        let (old, new) = (world.home.downloads.clone(), world.home.downloads.join("new"));
        server.fail_next("d.start", Fault::SwallowAnswer, lost);
        send(&world, content.hash, "move", json!({"directory": new, "data": true})).await;
        world.recorder.result_within(PATIENCE, "begun").await;
        world.database().until("the command has ended", |database| database.begun_commands() == 0).await;
        let directory = world.home.get(content.hash, "d.directory").await.unwrap();
        let (here, elsewhere) = if Path::new(&directory).starts_with(&new) { (&new, &old) } else { (&old, &new) };
        assert_moved(&world, &content, elsewhere, here).await;
    }
}

#[tokio::test]
async fn a_client_that_is_away_until_the_end_is_no_expiry_of_what_was_begun() {
    if !can_run() {
        return;
    }
    let (mut world, _server, content) = held_and_killed("delete", json!({"data": true, "ttl": "10s"})).await;
    std::fs::remove_file(world.home.downloads.join("folder/a")).unwrap();
    world.home.process().pause().unwrap();
    world.bridge().restart();
    let result = world.recorder.result_within(PATIENCE, "begun").await;
    assert_eq!(error_code(&result), "unconfirmed", "{result}");
    assert!(result.to_string().contains("is completed now"), "{result}");
    world.home.process().unpause().unwrap();
    world.database().until("the command has ended", |database| database.begun_commands() == 0).await;
    assert!(world.home.hashes().await.unwrap().is_empty());
    assert!(!world.home.downloads.join(content.name).try_exists().unwrap());
}
