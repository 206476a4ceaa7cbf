//! Hooks: rTorrent wakes the bridge. Neither is affected when the other is gone or sends too much.
//!
//! The interval is a minute, longer than a test waits, so that a change can arrive in time only through a hook.

use std::net::SocketAddr;
use std::time::Duration;

use dtorrent_peers::content::Content;
use dtorrent_peers::process::free_port;
use dtorrent_peers::rtorrent::{Argument, Options, Rtorrent};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::harness::recorder::Message;
use crate::harness::{Setup, World, can_run};

const EVENTS: [&str; 7] = ["inserted_new", "erased", "finished", "paused", "resumed", "hash_done", "closed"];
const KEY: &str = "!!dtorrent.main.home";
const FORMER_KEY: &str = "zz_dtorrent.main.home";
const SET: &str = "hooks installed";

/// A setup that is polled once a minute, with HTTP and the hook listener on known ports.
struct Ports {
    pages: SocketAddr,
    hook_notifier: SocketAddr,
}

impl Ports {
    fn free() -> Self {
        let [pages, hook_notifier] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port().unwrap())));
        Self { pages, hook_notifier }
    }

    fn setup(&self) -> Setup {
        let http = format!("listen = \"{}\"\nhooks_listen = \"{}\"", self.pages, self.hook_notifier);
        Setup { http, ..hooked("60s") }
    }

    /// Returns a value from the bridge's metrics.
    async fn metric(&self, name: &str) -> u64 {
        let page = ask(self.pages, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let line = page.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {page}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    async fn polls(&self) -> u64 {
        self.metric("dtorrent_polls_total{server=\"home\",result=\"ok\"}").await
    }

    async fn wakes(&self) -> u64 {
        self.metric("dtorrent_hook_wakes_total").await
    }
}

fn hooked(interval: &str) -> Setup {
    Setup { server: format!("interval = \"{interval}\"\nhooks = true"), ..Setup::default() }
}

/// Sends a request and returns the received part of the response.
async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A connection may be cut: the bytes before that count.
    drop(stream.read_to_end(&mut answer).await);
    String::from_utf8_lossy(&answer).into_owned()
}

async fn signal(hook_notifier: SocketAddr, path: &str) -> String {
    ask(hook_notifier, &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await
}

async fn method(rtorrent: &Rtorrent, method: &str, arguments: &[&str]) -> Vec<String> {
    let arguments: Vec<_> = arguments.iter().map(|text| Argument::Text(text)).collect();
    rtorrent.rpc.call(method, &arguments).await.unwrap()
}

/// Returns the rTorrent events on which the bridge's hook is set.
async fn hooked_events(rtorrent: &Rtorrent) -> Vec<&'static str> {
    let mut found = Vec::new();
    for event in EVENTS {
        let answer = method(rtorrent, "method.has_key", &["", &format!("event.download.{event}"), KEY]).await;
        found.extend((answer == ["1"]).then_some(event));
    }
    found
}

/// Returns the path that the bridge's hook requests, up to the hash.
async fn path(rtorrent: &Rtorrent, event: &str) -> String {
    let commands = method(rtorrent, "method.get", &["", &format!("event.download.{event}")]).await;
    let of_bridge: Vec<_> = commands.iter().filter(|command| command.contains("http://")).collect();
    assert_eq!(of_bridge.len(), 1, "{commands:?}");
    let (_, after) = of_bridge[0].split_once("http://").unwrap();
    let (url, _) = after.split_once(",$d.hash=").unwrap();
    url[url.find('/').unwrap()..].to_owned()
}

/// Pauses and resumes a torrent, and waits for both events.
async fn assert_heard(world: &World, mark: usize, content: &Content) {
    for (action, kind) in [("d.pause", "paused"), ("d.resume", "resumed")] {
        world.home.act(content.hash, action, &[]).await.unwrap();
        world.recorder.event_after(mark, "home", kind, content.hash).await;
    }
}

/// A complete, running torrent that has been published as such: if paused earlier, it would still be in its check.
async fn running_torrent(world: &World) -> Content {
    let content = Content::file("here", 50_000, 1);
    content.write_to(&world.home.downloads).unwrap();
    world.home.load(&content.torrent, true).await.unwrap();
    let topic = format!("dtorrent/home/torrent/{}/state", content.hash);
    let is_seeding =
        |all: &[Message]| all.iter().any(|m| m.topic == topic && m.json()["status"] == "seeding").then_some(());
    world.recorder.wait_for("a seeding state", is_seeding).await;
    content
}

#[tokio::test]
async fn a_hook_reports_a_change_long_before_the_next_poll() {
    if !can_run() {
        return;
    }
    let mut world = World::running(hooked("60s")).await;
    world.bridge().wait_for_log(SET).await;
    assert_eq!(hooked_events(&world.home).await, EVENTS);
    let seeder = Rtorrent::start(&world.folder.join("seeder"), &Options::default()).await.unwrap();
    let content = Content::file("download", 300_000, 3);
    let hash = content.hash;
    content.write_to(&seeder.downloads).unwrap();
    seeder.load(&content.torrent, true).await.unwrap();
    seeder.wait_for(hash, "d.complete", "1").await.unwrap();

    world.home.load(&content.torrent, false).await.unwrap();
    world.recorder.event("home", "added", hash).await;
    world.home.act(hash, "d.start", &[]).await.unwrap();
    world.recorder.event("home", "started", hash).await;
    world.home.add_peer(hash, seeder.port).await.unwrap();
    let finished = world.recorder.event("home", "finished", hash).await;
    assert_eq!((&finished["cause"], &finished["torrent"]["finished"]), (&"observed".into(), &true.into()));
    assert_heard(&world, 0, &content).await;
    world.home.act(hash, "d.stop", &[]).await.unwrap();
    world.recorder.event("home", "stopped", hash).await;
    world.home.act(hash, "d.erase", &[]).await.unwrap();
    world.recorder.event("home", "removed", hash).await;
    world.recorder.assert_gap_free("home");
}

#[tokio::test]
async fn hooks_are_installed_again_after_a_restart_of_rtorrent() {
    if !can_run() {
        return;
    }
    let mut world = World::running(hooked("1s")).await;
    world.bridge().wait_for_log(SET).await;
    world.home.process().kill().unwrap();
    world.home.restart().await.unwrap();
    let all = async || Ok(hooked_events(&world.home).await == EVENTS);
    world.home.wait_until("hooks in the new one", all).await.unwrap();
}

#[tokio::test]
async fn a_stopped_bridge_removes_its_hooks() {
    if !can_run() {
        return;
    }
    let mut world = World::running(hooked("60s")).await;
    world.bridge().wait_for_log(SET).await;
    let foreign = ["", "event.download.paused", "zz_other", "print=hello"];
    method(&world.home, "method.set_key", &foreign).await;
    world.bridge().stop().await;
    // (Other hooks on the same event are left alone, see rule 8.)
    assert_eq!(hooked_events(&world.home).await, ["paused"]);
    method(&world.home, "method.set_key", &foreign[..3]).await;
    world.bridge().restart();
    world.bridge().wait_for_log_again(1, SET).await;
    assert_eq!(hooked_events(&world.home).await, EVENTS);
    world.bridge().stop().await;
    assert_eq!(hooked_events(&world.home).await, [""; 0]);
}

#[tokio::test]
async fn a_hook_of_an_earlier_version_is_replaced_by_one_that_runs_first() {
    if !can_run() {
        return;
    }
    let mut world = World::new(hooked("60s")).await;
    let former =
        ["", "event.download.erased", FORMER_KEY, "load.normal=\"$cat=http://127.0.0.1:1/x/home/erased/,$d.hash=\""];
    method(&world.home, "method.set_key", &former).await;
    world.start_bridge().await;
    world.bridge().wait_for_log(SET).await;
    assert_eq!(method(&world.home, "method.has_key", &former[..3]).await, ["0"]);
    let keys = method(&world.home, "method.list_keys", &former[..2]).await;
    assert!(keys.len() > 1 && keys[0] == KEY, "rTorrent has hooks of its own on this event: {keys:?}");
}

#[tokio::test]
async fn hooks_left_by_a_killed_bridge_are_harmless_and_replaced_by_the_next_one() {
    if !can_run() {
        return;
    }
    let mut world = World::running(hooked("60s")).await;
    world.bridge().wait_for_log(SET).await;
    let content = running_torrent(&world).await;
    let first_path = path(&world.home, "paused").await;
    world.bridge().process().kill().unwrap();

    let pid = world.home.process().pid();
    let open_files = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let (files_before, kib_before) = (open_files(), resident_kib(pid));
    for _ in 0..500 {
        for action in ["d.pause", "d.resume"] {
            world.home.act(content.hash, action, &[]).await.unwrap();
        }
    }
    let is_over = async || Ok(open_files() <= files_before + 2);
    world.home.wait_until("no file open for the asking", is_over).await.unwrap();
    let kib = resident_kib(pid);
    assert!(kib < kib_before + (16 << 10), "1,000 events made {kib_before} KiB to {kib} KiB");

    world.bridge().restart();
    world.bridge().wait_for_log_again(1, SET).await;
    assert_ne!(path(&world.home, "paused").await, first_path, "another secret");
    let mark = world.recorder.mark();
    assert_heard(&world, mark, &content).await;
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn a_hook_without_the_secret_is_ignored_and_a_flood_of_hooks_does_not_overload_rtorrent() {
    if !can_run() {
        return;
    }
    let ports = Ports::free();
    let mut world = World::running(ports.setup()).await;
    world.bridge().wait_for_log(SET).await;
    let content = running_torrent(&world).await;
    assert_heard(&world, 0, &content).await;
    let right = format!("{}{}", path(&world.home, "paused").await, content.hash);
    let secret = right.split('/').nth(1).unwrap().to_owned();

    // Idle: all changes have been polled.
    let mut wakes = ports.wakes().await;
    assert!(wakes > 0);
    let wrong = [
        right.replacen(&secret, &"0".repeat(32), 1),
        right.replacen(&secret, "", 1),
        right.replacen("/home/", "/other/", 1),
        right.replacen("/home/", "/ho%6de/", 1),
        right[..right.len() - 1].to_owned(),
        "/".to_owned(),
    ];
    let expected = signal(ports.hook_notifier, &right).await;
    assert!(expected.starts_with("HTTP/1.1 404 "), "{expected}");
    wakes += 1;
    for path in &wrong {
        let answer = signal(ports.hook_notifier, path).await;
        assert_eq!(answer.lines().next(), expected.lines().next(), "{path}");
    }
    assert!(ask(ports.hook_notifier, "\x16\x03\x01 nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    assert_eq!(ports.wakes().await, wakes, "no signal was accepted");

    let (polls, began) = (ports.polls().await, Instant::now());
    for _ in 0..100 {
        let signals = (0..100).map(|_| signal(ports.hook_notifier, &right));
        futures_util::future::join_all(signals).await;
    }
    assert_eq!(ports.wakes().await, wakes + 10_000, "all were answered");
    let polls = ports.polls().await - polls;
    let allowed = began.elapsed().as_millis() / 100 + 2;
    assert!(polls >= 1 && u128::from(polls) <= allowed, "{polls} polls where {allowed} are allowed");
    // Events are still published.
    let mark = world.recorder.mark();
    assert_heard(&world, mark, &content).await;
}

#[tokio::test]
async fn idle_connections_to_the_hook_endpoint_are_closed() {
    if !can_run() {
        return;
    }
    let ports = Ports::free();
    let mut world = World::running(ports.setup()).await;
    world.bridge().wait_for_log(SET).await;
    let content = running_torrent(&world).await;
    let mut silent = Vec::new();
    let mut dripping = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(ports.hook_notifier).await.unwrap());
        dripping.push(TcpStream::connect(ports.hook_notifier).await.unwrap());
    }
    let drip = async {
        while !dripping.is_empty() {
            let mut open = Vec::new();
            for mut stream in dripping.drain(..) {
                if stream.write_all(b"G").await.is_ok() {
                    open.push(stream);
                }
            }
            dripping = open;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::join!(drip, assert_heard(&world, 0, &content));
    for mut stream in silent {
        let mut rest = Vec::new();
        drop(stream.read_to_end(&mut rest).await);
        assert!(rest.is_empty());
    }
    let endless = format!("GET /{} HTTP/1.1\r\n", "x".repeat(1 << 20));
    let mut talker = TcpStream::connect(ports.hook_notifier).await.unwrap();
    let printed = talker.write_all(endless.as_bytes()).await;
    let mut answer = Vec::new();
    drop(talker.read_to_end(&mut answer).await);
    assert!(printed.is_err() || !answer.starts_with(b"HTTP/1.1 404"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn an_rtorrent_event_with_a_foreign_hook_is_left_alone() {
    if !can_run() {
        return;
    }
    let mut world = World::new(hooked("60s")).await;
    let foreign = ["", "event.download.finished", "notify", "execute.nothrow=true"];
    method(&world.home, "method.set_key", &foreign).await;
    world.start_bridge().await;
    world.bridge().wait_for_log(SET).await;
    let of_bridge: Vec<_> = EVENTS.into_iter().filter(|event| *event != "finished").collect();
    assert_eq!(hooked_events(&world.home).await, of_bridge);
    let config = world.folder.join("dtorrent.toml");
    let check = std::process::Command::new(env!("CARGO_BIN_EXE_dtorrent"))
        .args(["check", "--connect", "--config", &config.to_string_lossy()])
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&check.stderr).into_owned();
    let expected = format!("hooks are set for {}; skipped finished: hooks of others", of_bridge.join(" "));
    assert!(check.status.success() && printed.contains(&expected), "{printed}");
    world.bridge().stop().await;
    assert_eq!(hooked_events(&world.home).await, [""; 0]);
    let left = method(&world.home, "method.has_key", &foreign[..3]).await;
    assert_eq!(left, ["1"]);
}
