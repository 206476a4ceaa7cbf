//! Two instances of the bridge on one broker, each with a server `home`: neither clears what the other retains.

use std::collections::BTreeSet;
use std::path::PathBuf;

use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::process::free_port;
use dtorrent_peers::rtorrent::{Options, Rtorrent};
use serde_json::Value;

use crate::harness::bridge::Bridge;
use crate::harness::nats::{self, NatsServer, until, value};
use crate::harness::recorder::{Command, Message, Recorder};
use crate::harness::{Setup, World, can_run, http};

const CLASH: &str = "another instance publishes a server of this name";

/// A second rTorrent, and the second instance that watches it.
struct Second {
    rtorrent: Rtorrent,
    config: PathBuf,
    http: u16,
    broker: String,
}

impl Second {
    /// Starts the rTorrent with one torrent; `broker`: the lines of the broker's table.
    async fn new(world: &World, broker: &str) -> (Self, InfoHash) {
        let folder = world.folder.join("second");
        std::fs::create_dir(&folder).unwrap();
        let rtorrent = Rtorrent::start(&folder.join("rtorrent"), &Options::default()).await.unwrap();
        let hash = rtorrent.load(&Content::file("of-second", 20_000, 11).torrent, false).await.unwrap();
        let (config, http) = (folder.join("dtorrent.toml"), free_port().unwrap());
        (Self { rtorrent, config, http, broker: broker.to_owned() }, hash)
    }

    /// Starts the instance, which calls the rTorrent `server`.
    fn start(&self, server: &str) -> Bridge {
        let text = format!(
            "instance = \"second\"\ndata_dir = {:?}\n[log]\nlevel = \"debug\"\n[http]\nlisten = \"127.0.0.1:{}\"\n\
             [servers.{server}]\nurl = {:?}\ninterval = \"250ms\"\n[brokers.b]\n{}\n",
            self.config.with_file_name("data"),
            self.http,
            self.rtorrent.url(),
            self.broker
        );
        std::fs::write(&self.config, text).unwrap();
        Bridge::start(&self.config)
    }

    /// Runs another command with the config of the instance; returns what it prints.
    async fn ask(&self, arguments: &[&str]) -> String {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_dtorrent"));
        let done = command.args(arguments).arg("--config").arg(&self.config).output().await.unwrap();
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        String::from_utf8(done.stderr).unwrap()
    }
}

/// Returns everything that a new subscriber gets as retained.
async fn retained(port: u16) -> BTreeSet<String> {
    let late = Recorder::listen(port).await;
    late.send(Command::new("marker", "x")).await;
    late.wait_for_last("marker", "x").await;
    late.all().into_iter().filter(|message| message.retain).map(|message| message.topic).collect()
}

fn state(hash: InfoHash) -> String {
    format!("dtorrent/home/torrent/{hash}/state")
}

fn mqtt(world: &World) -> String {
    format!("kind = \"mqtt\"\nurl = \"{}\"", world.broker.url())
}

/// A running bridge with two torrents whose states are retained.
async fn first() -> (World, [InfoHash; 2]) {
    let mut world = World::new(Setup::default()).await;
    let mut hashes = Vec::new();
    for number in [1, 2] {
        let content = Content::file(&format!("of-main-{number}"), 20_000, number);
        hashes.push(world.home.load(&content.torrent, false).await.unwrap());
    }
    world.start_bridge().await;
    for hash in &hashes {
        is_retained(&world, *hash).await;
    }
    (world, hashes.try_into().unwrap())
}

/// Waits until a state was published.
async fn is_retained(world: &World, hash: InfoHash) {
    let topic = state(hash);
    let is_it = |message: &Message| message.topic == topic && !message.payload.is_empty();
    world.recorder.wait_for(&topic, |all| all.iter().any(is_it).then_some(())).await;
}

/// Waits until the second instance has published all that it wants, and cleared what it would.
async fn is_settled(world: &World, second: &Second) {
    let hash = second.rtorrent.load(&Content::file("later", 20_000, 12).torrent, false).await.unwrap();
    is_retained(world, hash).await;
    second.rtorrent.act(hash, "d.erase", &[]).await.unwrap();
    world.recorder.wait_for_last(&state(hash), "").await;
}

fn names_clash(health: &Value, other: &str) -> bool {
    health["sinks"]["b"]["notes"].to_string().contains(&format!("instance `{other}` publishes a server `home`, too"))
}

#[tokio::test]
async fn an_instance_with_a_server_of_the_same_name_clears_nothing_and_the_clash_is_named() {
    if !can_run() {
        return;
    }
    let (mut world, [one, two]) = first().await;
    let (second, third) = Second::new(&world, &mqtt(&world)).await;
    let mut bridge = second.start("home");
    is_retained(&world, third).await;
    is_settled(&world, &second).await;
    let left = retained(world.broker.port).await;
    for hash in [one, two, third] {
        assert!(left.contains(&state(hash)), "{hash}: {left:?}");
    }
    bridge.wait_for_log(CLASH).await;
    world.bridge().wait_for_log(CLASH).await;
    let ready = http::get_until(second.http, "/readyz", |ready| names_clash(ready, "main")).await;
    assert_eq!(ready["ready"], true, "{ready}");
    for (instance, other) in [("second", "main"), ("main", "second")] {
        let topic = format!("dtorrent/bridge/{instance}/health");
        let is_named = |m: &Message| m.topic == topic && names_clash(&m.json(), other);
        world.recorder.wait_for(&topic, |all| all.iter().any(is_named).then_some(())).await;
    }
    let checked = second.ask(&["check", "--connect"]).await;
    assert!(checked.contains("instance `main` publishes a server `home`, too"), "{checked}");
    // Both stop and start again, with what they have on disk.
    bridge.restart();
    is_settled(&world, &second).await;
    world.bridge().stop().await;
    bridge.stop().await;
    let left = retained(world.broker.port).await;
    assert!([one, two, third].into_iter().all(|hash| left.contains(&state(hash))), "{left:?}");
}

#[tokio::test]
async fn purge_leaves_what_an_instance_that_is_stopped_retains_until_that_is_purged() {
    if !can_run() {
        return;
    }
    let (mut world, [one, two]) = first().await;
    world.bridge().stop().await;
    let before = retained(world.broker.port).await;
    let (second, third) = Second::new(&world, &mqtt(&world)).await;
    let mut bridge = second.start("home");
    is_retained(&world, third).await;
    is_settled(&world, &second).await;
    bridge.stop().await;
    let purged = second.ask(&["purge"]).await;
    assert!(purged.contains("2 topics cleared, ") && purged.contains("instance `main` publishes"), "{purged}");
    let left = retained(world.broker.port).await;
    assert!(left.is_superset(&before), "{before:?} {left:?}");
    assert!([one, two].into_iter().all(|hash| left.contains(&state(hash))), "{left:?}");
    assert!(!left.iter().any(|topic| topic.starts_with("dtorrent/bridge/second/")), "{left:?}");
    // Nobody shares the server any more, so this clears what the other has left as well.
    let (code, _, purged) = world.ask(&["purge"], &[]).await;
    assert!(code == 0 && !purged.contains("kept"), "{purged}");
    assert_eq!(retained(world.broker.port).await, BTreeSet::new());
}

#[tokio::test]
async fn what_an_instance_leaves_under_a_name_that_it_gave_up_is_cleared_by_the_other() {
    if !can_run() {
        return;
    }
    let (mut world, [one, two]) = first().await;
    let (second, third) = Second::new(&world, &mqtt(&world)).await;
    let mut bridge = second.start("home");
    world.bridge().wait_for_log(CLASH).await;
    is_retained(&world, third).await;
    is_settled(&world, &second).await;
    bridge.stop().await;
    bridge = second.start("attic");
    let topic = format!("dtorrent/attic/torrent/{third}/state");
    world.recorder.wait_for(&topic, |all| all.iter().any(|message| message.topic == topic).then_some(())).await;
    world.bridge().wait_for_log("the other instance does not publish this server any more").await;
    assert!(retained(world.broker.port).await.contains(&state(one)));
    let mark = world.recorder.mark();
    world.bridge().stop().await;
    world.bridge().restart();
    let cleared = state(third);
    let is_cleared = |m: &Message| m.topic == cleared && m.payload.is_empty();
    world.recorder.wait_for(&cleared, |all| all[mark..].iter().any(is_cleared).then_some(())).await;
    let left = retained(world.broker.port).await;
    assert!([one, two].into_iter().all(|hash| left.contains(&state(hash))), "{left:?}");
    assert!(left.contains(&topic) && left.contains("dtorrent/home/stats"), "{left:?}");
    bridge.stop().await;
}

#[tokio::test]
async fn states_that_another_instance_stored_in_the_bucket_stay_there() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let client = server.client().await;
        let sink = format!("[brokers.bus]\nkind = \"nats\"\nurl = \"{}\"\n", server.url());
        let mut world = World::new(Setup { sink, ..Setup::default() }).await;
        let one = world.home.load(&Content::file("of-main", 20_000, 1).torrent, false).await.unwrap();
        world.start_bridge().await;
        let is_stored = async |hash: InfoHash| value(&client, &format!("home.{hash}")).await;
        until("the first state", async || is_stored(one).await).await;
        // While the first instance runs, and when it has been stopped.
        for is_first in [true, false] {
            if !is_first {
                world.bridge().stop().await;
            }
            let broker = format!("kind = \"nats\"\nurl = \"{}\"", server.url());
            let (second, third) = Second::new(&world, &broker).await;
            let mut bridge = second.start("home");
            bridge.wait_for_log(CLASH).await;
            until("the second state", async || is_stored(third).await).await;
            let later = second.rtorrent.load(&Content::file("later", 20_000, 12).torrent, false).await.unwrap();
            until("the third state", async || is_stored(later).await).await;
            second.rtorrent.act(later, "d.erase", &[]).await.unwrap();
            until("it is cleared", async || is_stored(later).await.is_none().then_some(())).await;
            assert!(is_stored(one).await.is_some(), "{}", bridge.log());
            let checked = second.ask(&["check", "--connect"]).await;
            assert!(checked.contains("instance `main` publishes a server `home`, too"), "{checked}");
            bridge.stop().await;
            let purged = second.ask(&["purge"]).await;
            assert!(purged.contains("kept; instance `main` publishes"), "{purged}");
            assert!(is_stored(one).await.is_some() && is_stored(third).await.is_none());
            std::fs::remove_dir_all(world.folder.join("second")).unwrap();
        }
    }
}
