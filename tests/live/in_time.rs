//! Every command ends by its time to live and the time for verification, whatever the client and the disk do.

use std::path::Path;
use std::time::Duration;

use dtorrent::model::MetainfoBuilder;
use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{Address, Listen, Options};
use serde_json::{Value, json};

use crate::harness::disk::FailingDisk;
use crate::harness::recorder::{Command, error_code};
use crate::harness::scgi::ScgiProxy;
use crate::harness::{Setup, World, base64, can_run};

/// Time after its time to live at which a command has ended.
const END: Duration = Duration::from_secs(20);
/// Time to live of commands that cannot be done.
const TTL: Duration = Duration::from_secs(2);

fn topic(hash: InfoHash, verb: &str) -> String {
    format!("home/torrent/{hash}/command/{verb}")
}

fn setup() -> Setup {
    let lines = vec!["throttle.up = slow,100".to_owned()];
    Setup {
        rtorrent: Options { lines, ..Options::default() },
        server: "timeout = \"1s\"".to_owned(),
        sink: "commands = [\"*\"]".to_owned(),
        ..Setup::default()
    }
}

async fn send(world: &World, topic: &str, id: &str, mut body: Value) {
    body["id"] = json!(id);
    body["ttl"] = json!(format!("{}s", TTL.as_secs()));
    world.recorder.send(Command::new(&format!("dtorrent/{topic}"), body.to_string())).await;
}

/// Waits for the result of a command that cannot be done, and checks that it came in time.
async fn result_in_time(world: &World, id: &str) -> Value {
    // Longer than it may take: when it came is compared below.
    let result = world.recorder.result_within(TTL + 2 * END, id).await;
    assert!(Duration::from_millis(result["took_ms"].as_u64().unwrap()) < TTL + END, "{result}");
    result
}

#[tokio::test]
async fn every_command_to_a_client_that_hangs_has_its_one_result_in_time() {
    if !can_run() {
        return;
    }
    let verbs = [
        ("pause", json!({})),
        ("stop", json!({})),
        ("label", json!({"label": "new"})),
        ("priority", json!({"priority": 3})),
        ("throttle", json!({"throttle": "slow"})),
        ("recheck", json!({})),
        ("announce", json!({})),
        ("file_priority", json!({"files": [0], "priority": 2})),
        ("trackers", json!({"add": ["http://127.0.0.1:9/a"]})),
        ("delete", json!({})),
        ("delete", json!({"data": true})),
        ("move", json!({"directory": "elsewhere"})),
        ("move", json!({"directory": "elsewhere", "data": true})),
        ("get", json!({"files": true})),
    ];
    let contents: Vec<Content> =
        (0..verbs.len()).map(|number| Content::file(&format!("hangs-{number}"), 50_000, number as u64)).collect();
    let mut world = World::seeding(setup(), &contents).await;
    world.home.process().pause().unwrap();
    let mut ids = Vec::new();
    for (number, ((verb, mut body), content)) in verbs.into_iter().zip(&contents).enumerate() {
        if body["directory"].is_string() {
            body["directory"] = json!(world.home.downloads.join("elsewhere"));
        }
        let id = format!("{verb} {number}");
        send(&world, &topic(content.hash, verb), &id, body).await;
        ids.push(id);
    }
    let torrent = base64(&Content::file("added", 50_000, 99).torrent);
    for (verb, body) in
        [("add", json!({"torrent": torrent})), ("limits", json!({"download_limit": 102_400})), ("list", json!({}))]
    {
        send(&world, &format!("home/command/{verb}"), verb, body).await;
        ids.push(verb.to_owned());
    }
    for id in &ids {
        let result = result_in_time(&world, id).await;
        let code = error_code(&result).as_str().unwrap_or_default();
        // An `add` asks first where its files would be, and then nothing was loaded.
        let is_add_in_time = id == "add" && code == "precondition";
        assert!(is_add_in_time || ["unconfirmed", "client_offline"].contains(&code), "{id}: {result}");
    }
    for content in &contents {
        let bytes = std::fs::read(world.home.downloads.join(&content.name));
        assert_eq!(bytes.unwrap(), content.files[0].1, "no file was touched");
    }
    world.home.process().unpause().unwrap();
    // What it was asked for last it may do now; everybody has an answer, and nobody waits for a place.
    let result = world.recorder.command("home/command/list", json!({})).await;
    assert_eq!(result["status"], "ok", "{result}");
    for content in &contents {
        let is_held = world.recorder.command(&topic(content.hash, "label"), json!({"label": "after"})).await;
        assert!(is_held["status"] == "ok" || *error_code(&is_held) == "unknown_hash", "{is_held}");
    }
    for id in &ids {
        assert_eq!(world.recorder.results(id).len(), 1, "{id}");
    }
}

#[tokio::test]
async fn a_move_to_a_disk_that_hangs_is_answered_in_time_and_taken_back() {
    if !can_run() {
        return;
    }
    let content = Content::folder("folder", &[("a", 2_000_000), ("b", 2_000_000)], 1);
    let world = World::seeding(setup(), [&content]).await;
    let hanging = world.home.downloads.join("hanging");
    let Some(disk) = FailingDisk::mount(&world.folder.join("image"), &hanging) else { return };
    let mark = world.recorder.mark();
    disk.freeze();
    let body = json!({"directory": hanging.join("new"), "data": true});
    send(&world, &topic(content.hash, "move"), "moved", body).await;
    // Behind it, and not to be done while its files may be moved.
    let result = result_in_time(&world, "moved").await;
    assert_eq!(*error_code(&result), "unconfirmed", "{result}");
    assert!(result.to_string().contains("being moved"), "{result}");
    disk.thaw();
    // What follows is visible: the torrent goes on where it was.
    let started = world.recorder.event_after(mark, "home", "started", content.hash).await;
    assert_eq!((&started["cause"], &started["command_id"]), (&json!("command"), &json!("moved")), "{started}");
    world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
    for (path, bytes) in &content.files {
        assert_eq!(std::fs::read(world.home.downloads.join(path)).unwrap(), *bytes, "{path}");
    }
    let directory = world.home.get(content.hash, "d.directory").await.unwrap();
    assert_eq!(Path::new(&directory), world.home.downloads.join("folder"));
    assert!(!hanging.join("new").try_exists().unwrap(), "nothing is left at the new place");
    let result = world.recorder.command(&topic(content.hash, "label"), json!({"label": "after"})).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_eq!(world.recorder.results("moved").len(), 1);
}

#[tokio::test]
async fn adds_that_never_appear_leave_their_places_to_others_and_say_what_is_known() {
    /// More than there are places.
    const LOST: usize = 20;
    if !can_run() {
        return;
    }
    // Such an rTorrent takes a torrent without a tracker, answers 0, and does not load it.
    let rtorrent = Options { lines: vec!["dht.mode.set = disable".to_owned()], ..Options::default() };
    let world = World::running(Setup { rtorrent, ..Setup::default() }).await;
    let torrent =
        |name: &str, number: usize| MetainfoBuilder::single(name.to_owned(), 16_384).content(&[number as u8; 20_000]);
    for number in 0..LOST {
        let torrent = base64(&torrent("lost", number).build());
        let command = json!({"torrent": torrent, "id": format!("lost {number}")});
        world.recorder.send(Command::new("dtorrent/home/command/add", command.to_string())).await;
    }
    let mark = world.recorder.mark();
    let good = torrent("good", LOST).tracker("http://127.0.0.1:9/a").build();
    let result = world.recorder.command("home/command/add", json!({"torrent": base64(&good), "id": "good"})).await;
    assert_eq!(result["status"], "ok", "{result}");
    let last = format!("lost {}", LOST - 1);
    assert!(world.recorder.results(&last).is_empty(), "the good one has waited for those that cannot appear");
    assert!(mark < world.recorder.mark());
    for number in 0..LOST {
        let result = world.recorder.result(&format!("lost {number}")).await;
        assert_eq!(*error_code(&result), "client_fault", "{result}");
        let said = result.to_string();
        for known in ["`load.raw`", "20", "answered 0", "`dht.mode` is `disable`", "names no tracker"] {
            assert!(said.contains(known), "{known}: {said}");
        }
    }
}

#[tokio::test]
async fn an_announce_that_no_tracker_shows_is_not_ok() {
    if !can_run() {
        return;
    }
    let rtorrent = Options { listen: Listen::Tcp, ..Options::default() };
    let mut world = World::new(Setup { rtorrent, ..Setup::default() }).await;
    let tracker = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/announce", tracker.local_addr().unwrap());
    let torrent = MetainfoBuilder::single("announced", 16_384).tracker(url).content(&[7; 40_000]).build();
    let hash = world.home.load(&torrent, true).await.unwrap();
    let answer = "d8:intervali1800e12:min intervali1800e5:peers0:e";
    let (mut stream, _) = tracker.accept().await.unwrap();
    let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
    tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 4096]).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await.unwrap();
    drop(stream);
    let counted = async || Ok(world.home.rpc.call("t.success_counter", &[text(&format!("{hash}:t0"))]).await? == ["1"]);
    world.home.wait_until("the tracker to be asked", counted).await.unwrap();
    let Address::Tcp(address) = world.home.rpc.address else { unreachable!("it listens on a port") };
    let proxy = ScgiProxy::to(address).await;
    world.start_bridge_for(&[("home", &format!("scgi://{}", proxy.address))]).await;
    // rTorrent answers 0, and asks nobody.
    proxy.replace(&[("d.tracker_announce", "d.update_priorities")]);
    let result = world.recorder.command(&topic(hash, "announce"), Value::Null).await;
    assert_eq!((&result["status"], error_code(&result)), (&json!("error"), &json!("unconfirmed")), "{result}");
    assert!(result.to_string().contains("tracker"), "{result}");
    // All of them switched off: no time has to pass for that.
    world.home.rpc.call("t.disable", &[text(&format!("{hash}:t0"))]).await.unwrap();
    let result = world.recorder.command(&topic(hash, "announce"), Value::Null).await;
    assert_eq!(*error_code(&result), "precondition", "{result}");
}

fn text(text: &str) -> dtorrent_peers::rtorrent::Argument<'_> {
    dtorrent_peers::rtorrent::Argument::Text(text)
}

#[tokio::test]
async fn a_torrent_that_was_moved_to_a_new_directory_can_run_there() {
    if !can_run() {
        return;
    }
    for start in [true, false] {
        let content = Content::file("moves.iso", 50_000, 1);
        let mut world = World::new(Setup::default()).await;
        world.home.load(&content.torrent, start).await.unwrap();
        world.start_bridge().await;
        for place in ["new", "deep/er", "deep/er/still"] {
            let directory = world.home.downloads.join(place);
            let result = world.recorder.command(&topic(content.hash, "move"), json!({"directory": directory})).await;
            assert_eq!(result["status"], "ok", "{place}: {result}");
            assert!(directory.is_dir(), "{place}");
            let result = world.recorder.command(&topic(content.hash, "start"), Value::Null).await;
            assert_eq!(result["status"], "ok", "{place}: {result}");
            world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_move_to_where_no_directory_can_be_is_refused_and_changes_nothing() {
    if !can_run() {
        return;
    }
    let content = Content::file("stays.iso", 50_000, 1);
    let world = World::seeding(Setup::default(), [&content]).await;
    std::fs::write(world.home.downloads.join("file"), b"x").unwrap();
    for place in ["file", "file/below", "stays.iso/below"] {
        let body = json!({"directory": world.home.downloads.join(place)});
        let result = world.recorder.command(&topic(content.hash, "move"), body).await;
        assert_eq!(*error_code(&result), "precondition", "{place}: {result}");
        assert_eq!(world.home.get(content.hash, "d.is_active").await.unwrap(), "1", "{place}");
        let directory = world.home.get(content.hash, "d.directory").await.unwrap();
        assert_eq!(Path::new(&directory), world.home.downloads, "{place}");
    }
}

#[tokio::test]
async fn a_move_of_a_running_torrent_to_where_its_content_is_not_is_refused() {
    if !can_run() {
        return;
    }
    let content = Content::file("unread.iso", 50_000, 1);
    let world = World::seeding(Setup::default(), [&content]).await;
    // The bridge sees a file there, and rTorrent finds a folder in its place.
    let odd = world.home.downloads.join("odd");
    std::fs::create_dir_all(odd.join("unread.iso")).unwrap();
    let mark = world.recorder.mark();
    let result = world.recorder.command(&topic(content.hash, "move"), json!({"directory": odd})).await;
    assert_eq!(*error_code(&result), "precondition", "{result}");
    world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
    let directory = world.home.get(content.hash, "d.directory").await.unwrap();
    assert_eq!(Path::new(&directory), world.home.downloads);
    assert_eq!(world.home.get(content.hash, "d.complete").await.unwrap(), "1");
    let events = crate::harness::recorder::events_in(&world.recorder.since(mark), "home");
    assert!(events.iter().all(|event| event["event_type"] != "error"), "{events:?}");
}

#[tokio::test]
async fn a_move_to_where_rtorrent_does_not_see_the_content_is_taken_back_and_checked() {
    if !can_run() {
        return;
    }
    let content = Content::file("unseen.iso", 50_000, 1);
    for data in [false, true] {
        let rtorrent = Options { listen: Listen::Tcp, ..Options::default() };
        let mut world = World::new(Setup { rtorrent, ..Setup::default() }).await;
        content.write_to(&world.home.downloads).unwrap();
        world.home.load(&content.torrent, true).await.unwrap();
        world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
        let Address::Tcp(address) = world.home.rpc.address else { unreachable!("it listens on a port") };
        let proxy = ScgiProxy::to(address).await;
        world.start_bridge_for(&[("home", &format!("scgi://{}", proxy.address))]).await;
        // rTorrent looks in another directory below it, as one that has another view of the disk.
        let odd = world.home.downloads.join("odd");
        let elsewhere = odd.join("elsewhere");
        std::fs::create_dir_all(&elsewhere).unwrap();
        if !data {
            content.write_to(&odd).unwrap();
        }
        let text = |path: &Path| format!("<string>{}</string>", path.display()).leak();
        proxy.replace(&[(text(&odd), text(&elsewhere))]);
        let body = json!({"directory": odd, "data": data});
        let result = world.recorder.command(&topic(content.hash, "move"), body).await;
        assert_eq!(*error_code(&result), "precondition", "{result}");
        let reason = if data { "unfinished chunks" } else { "0 of 50000 bytes of its content" };
        assert!(result.to_string().contains(reason), "{result}");
        world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
        world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
        let directory = world.home.get(content.hash, "d.directory").await.unwrap();
        assert_eq!(Path::new(&directory), world.home.downloads);
        assert_eq!(std::fs::read(world.home.downloads.join("unseen.iso")).unwrap(), content.files[0].1);
    }
}
