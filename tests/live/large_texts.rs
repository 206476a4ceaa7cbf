//! Texts that others choose and nobody limits: names of torrents, messages and URLs of trackers. One torrent never costs
//! the server.

use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{Address, Argument, Listen, Options};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::harness::recorder::{Command, Message};
use crate::harness::scgi::ScgiProxy;
use crate::harness::{Setup, World, can_run};

/// Longest name that is published (docs/reference.md).
const NAME_BYTES: usize = 4 << 10;
/// Longest message that is published.
const MESSAGE_BYTES: usize = 1 << 10;

/// Returns a torrent whose folder is called `name`, announced at `url`.
fn folder(name: &str, url: &str) -> Vec<u8> {
    let file = "d6:lengthi20000e4:pathl1:aee";
    format!(
        "d8:announce{}:{url}4:infod5:filesl{file}e4:name{}:{name}12:piece lengthi16384e6:pieces40:{}ee",
        url.len(),
        name.len(),
        "x".repeat(40)
    )
    .into_bytes()
}

/// Loads a torrent that is too large for a request, from a file.
async fn load_file(world: &World, torrent: &[u8]) -> InfoHash {
    load_file_with(world, "load.normal", torrent, None).await
}

async fn load_file_with(world: &World, method: &str, torrent: &[u8], command: Option<&str>) -> InfoHash {
    let hash = InfoHash::of_torrent(torrent).unwrap();
    let path = world.folder.join(format!("{hash}.torrent"));
    std::fs::write(&path, torrent).unwrap();
    let path = path.to_string_lossy();
    let arguments: Vec<_> = ["", &path].into_iter().chain(command).map(Argument::Text).collect();
    world.home.rpc.call(method, &arguments).await.unwrap();
    hash
}

async fn list(world: &World) -> Value {
    world.recorder.command("home/command/list", json!({"fields": ["hash", "name", "directory"]})).await
}

/// rTorrent aborts when it is asked for an answer of 100 MiB: a listing of these, with their directories, is twice as
/// large.
#[tokio::test]
async fn torrents_with_names_of_megabytes_cost_neither_the_server_nor_rtorrent() {
    if !can_run() {
        return;
    }
    let sink = "commands = [\"*\"]".to_owned();
    let ordinary = Content::file("ordinary.iso", 50_000, 1);
    let mut world = World::seeding(Setup { sink, ..Setup::default() }, [&ordinary]).await;
    let mut long = Vec::new();
    for number in 0..12 {
        let name = format!("{number:02}{}", "é".repeat(9 << 19));
        long.push(load_file(&world, &folder(&name, "http://127.0.0.1:9/announce")).await);
    }
    for hash in &long {
        let added = world.recorder.event("home", "added", *hash).await;
        let name = added["torrent"]["name"].as_str().unwrap();
        assert!(name.len() <= NAME_BYTES && name.ends_with('…'), "{} bytes", name.len());
    }
    let listed = list(&world).await;
    assert_eq!((&listed["status"], &listed["total"]), (&json!("ok"), &json!(13)), "{}", listed["error"]);
    assert!(listed.to_string().len() < 13 * 3 * NAME_BYTES);

    // After a restart of the bridge all of them are unknown at once.
    world.bridge().restart();
    let topic = format!("home/torrent/{}/command/label", ordinary.hash);
    let labelled = world.recorder.command(&topic, json!({"label": "still here"})).await;
    assert_eq!(labelled["status"], "ok", "{labelled}");
    let deleted = world.recorder.command("home/command/delete", json!({"hashes": long})).await;
    assert_eq!(deleted["status"], "ok", "{deleted}");
    assert_eq!(world.home.hashes().await.unwrap(), [ordinary.hash]);
    assert!(!world.recorder.events("home").iter().any(|event| event["event_type"] == "server_offline"));
}

/// A file system takes the folder, which is called otherwise than the torrent.
#[tokio::test]
async fn active_torrents_with_names_of_megabytes_in_short_folders_cost_neither_the_server_nor_rtorrent() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let mut active = Vec::new();
    for number in 0..12 {
        let torrent = folder(&format!("{number:02}{}", "é".repeat(9 << 19)), "http://127.0.0.1:9/announce");
        let command = format!("d.directory_base.set=\"{}\"", world.home.downloads.join(number.to_string()).display());
        active.push(load_file_with(&world, "load.start", &torrent, Some(&command)).await);
    }
    for hash in &active {
        world.home.wait_for(*hash, "d.is_active", "1").await.unwrap();
    }
    world.start_bridge().await;
    for hash in &active {
        let added = world.recorder.event("home", "added", *hash).await;
        let name = added["torrent"]["name"].as_str().unwrap();
        assert!(name.len() <= NAME_BYTES && name.ends_with('…'), "{} bytes", name.len());
    }
    assert_eq!(world.home.hashes().await.unwrap().len(), 12, "rTorrent still runs");
}

/// Such an rTorrent cannot leave out long texts itself.
#[tokio::test]
async fn torrents_with_names_of_megabytes_do_not_cost_an_rtorrent_that_lacks_the_methods_of_the_guard() {
    if !can_run() {
        return;
    }
    let rtorrent = Options { listen: Listen::Tcp, ..Options::default() };
    let mut world = World::new(Setup { rtorrent, ..Setup::default() }).await;
    let mut hashes = Vec::new();
    for number in 0..6 {
        let name = format!("{number:02}{}", "é".repeat(9 << 19));
        hashes.push(load_file(&world, &folder(&name, "http://127.0.0.1:9/announce")).await);
    }
    for number in 0..20 {
        let content = Content::file(&format!("short-{number}"), 20_000, number);
        hashes.push(world.home.load(&content.torrent, false).await.unwrap());
    }
    world.home.wait_until("all are loaded", async || Ok(world.home.hashes().await?.len() == 26)).await.unwrap();
    let Address::Tcp(address) = world.home.rpc.address else { unreachable!("it listens on a port") };
    let proxy = ScgiProxy::to(address).await;
    proxy.hide(&["match", "branch"]);
    world.start_bridge_for(&[("home", &format!("scgi://{}", proxy.address))]).await;
    for (number, hash) in hashes.iter().enumerate() {
        let added = world.recorder.event("home", "added", *hash).await;
        let name = added["torrent"]["name"].as_str().unwrap();
        match number {
            0..6 => assert!(name.len() <= NAME_BYTES && name.ends_with('…'), "{} bytes", name.len()),
            _ => assert_eq!(name, format!("short-{}", number - 6)),
        }
    }
    let labelled =
        world.recorder.command(&format!("home/torrent/{}/command/label", hashes[10]), json!({"label": "a"})).await;
    assert_eq!(labelled["status"], "ok", "{labelled}");
    assert_eq!(world.home.hashes().await.unwrap().len(), 26, "rTorrent still runs");
    assert!(!world.recorder.events("home").iter().any(|event| event["event_type"] == "server_offline"));
}

/// An answer of rTorrent has at most 64 MiB, and these together, name and directory, have more.
#[tokio::test]
async fn long_texts_that_are_too_large_for_one_answer_are_read_one_by_one() {
    if !can_run() {
        return;
    }
    let rtorrent = Options { listen: Listen::Tcp, ..Options::default() };
    let mut world = World::new(Setup { rtorrent, ..Setup::default() }).await;
    let hash = load_file(&world, &folder(&"é".repeat(17 << 20), "http://127.0.0.1:9/announce")).await;
    world.home.wait_until("it is loaded", async || Ok(world.home.hashes().await? == [hash])).await.unwrap();
    let Address::Tcp(address) = world.home.rpc.address else { unreachable!("it listens on a port") };
    let proxy = ScgiProxy::to(address).await;
    proxy.hide(&["match", "branch"]);
    world.start_bridge_for(&[("home", &format!("scgi://{}", proxy.address))]).await;
    let added = world.recorder.event("home", "added", hash).await;
    for text in ["name", "directory"] {
        let text = added["torrent"][text].as_str().unwrap();
        assert!(text.len() <= NAME_BYTES && text.ends_with("éé…"), "{} bytes", text.len());
    }
    assert_eq!(world.home.hashes().await.unwrap(), [hash], "rTorrent still runs");
}

/// The answer with these would have more than 100 MiB.
#[tokio::test]
async fn torrents_that_are_tied_to_texts_of_megabytes_cost_neither_the_server_nor_rtorrent() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let limit = [Argument::Text(""), Argument::Text("2M")];
    world.home.rpc.call("network.xmlrpc.size_limit.set", &limit).await.unwrap();
    let tied = format!("magnet:?{}", "é".repeat(950_000));
    let mut hashes = Vec::new();
    for number in 0..64 {
        let hash =
            world.home.load(&Content::file(&format!("tied-{number}"), 20_000, number).torrent, false).await.unwrap();
        world.home.act(hash, "d.tied_to_file.set", &[Argument::Text(&tied)]).await.unwrap();
        hashes.push(hash);
    }
    world.start_bridge().await;
    for hash in hashes {
        let added = world.recorder.event("home", "added", hash).await;
        assert!(added["torrent"]["name"].as_str().unwrap().starts_with("tied-"), "{added}");
    }
    assert_eq!(world.home.hashes().await.unwrap().len(), 64, "rTorrent still runs");
}

/// Answers every request of a tracker with this failure reason.
#[expect(clippy::disallowed_methods, reason = "a peer of a test ends with its runtime")]
async fn failing_tracker(reason: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let body = format!("d14:failure reason{}:{reason}e", reason.len());
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let read_bytes = stream.read(&mut request).await;
                assert!(read_bytes.is_ok());
                stream.write_all(answer.as_bytes()).await.ok();
                stream.shutdown().await.ok();
            });
        }
    });
    port
}

#[tokio::test]
async fn a_failure_reason_of_megabytes_becomes_a_short_message() {
    if !can_run() {
        return;
    }
    let port = failing_tracker(format!("Unregistered torrent {}", "☃".repeat(1 << 20))).await;
    let mut world = World::new(Setup::default()).await;
    let torrent = folder("announced", &format!("http://127.0.0.1:{port}/announce"));
    let hash = world.home.load(&torrent, true).await.unwrap();
    world.start_bridge().await;
    let topic = format!("dtorrent/home/torrent/{hash}/state");
    let find = |messages: &[Message]| {
        let states = messages.iter().filter(|message| message.topic == topic && !message.payload.is_empty());
        states
            .map(|message| message.json())
            .find(|state| state["message"].as_str().is_some_and(|message| message.contains("Unregistered torrent")))
    };
    let state = world.recorder.wait_for("the message of the tracker", find).await;
    let message = state["message"].as_str().unwrap();
    assert!(message.len() <= MESSAGE_BYTES && message.ends_with("☃…"), "{} bytes", message.len());
    assert_eq!(state["error"], true);
    let largest = world.recorder.all().iter().map(|message| message.payload.len()).max();
    assert!(largest < Some(16 << 10), "{largest:?}");
}

#[tokio::test]
async fn retained_messages_of_others_below_the_prefix_take_no_memory() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    for number in 0..30 {
        let topic = match number % 3 {
            0 => format!("dtorrent/home/torrent/{number:040x}/state"),
            1 => format!("dtorrent/home/torrent/{number:040x}/command/pause"),
            _ => format!("dtorrent/home/homeassistant/{number}"),
        };
        let command = Command { retain: true, ..Command::new(&topic, vec![b'x'; 12 << 20]) };
        world.recorder.send(command).await;
    }
    let all_are_there =
        |all: &[Message]| (all.iter().filter(|message| message.payload.len() > 1 << 20).count() == 30).then_some(());
    world.recorder.wait_for("the messages at the broker", all_are_there).await;
    world.start_bridge().await;
    let topic = format!("dtorrent/home/torrent/{:040x}/state", 27);
    world.recorder.wait_for_last(&topic, "").await;
    let peak = world.bridge().peak_bytes();
    assert!(peak < 200 << 20, "{peak} bytes of memory");
}

/// A name may be short and the URLs of its trackers long, or many.
#[tokio::test]
async fn trackers_with_urls_of_megabytes_are_cut() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let url = |number: usize| format!("http://t{number}.example/{}", "u".repeat(4 << 20));
    let mut loaded = Vec::new();
    for number in 0..30 {
        loaded.push(load_file(&world, &folder(&format!("t{number}"), &url(number))).await);
    }
    for hash in &loaded {
        world.recorder.event("home", "added", *hash).await;
    }
    let topic = format!("home/torrent/{}/command/get", loaded[0]);
    let shown = world.recorder.command(&topic, json!({"trackers": true})).await;
    assert_eq!(shown["status"], "ok", "{}", shown["error"]);
    assert!(shown.to_string().len() < 16 << 10, "{} bytes", shown.to_string().len());
    assert_eq!(world.home.hashes().await.unwrap().len(), 30, "rTorrent still runs");
}
