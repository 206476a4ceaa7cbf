//! Hooks: rTorrent wakes the bridge. Neither is affected when the other is gone or sends too much.
//!
//! The interval is a minute, longer than a test waits, so that a change can arrive in time only through a hook.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dtorrent_peers::content::Content;
use dtorrent_peers::process::free_port;
use dtorrent_peers::rtorrent::{Argument, Listen, Options, Rtorrent};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::harness::disk;
use crate::harness::recorder::Message;
use crate::harness::{Setup, World, can_run};

const EVENTS: [&str; 7] = ["inserted_new", "erased", "finished", "paused", "resumed", "hash_done", "closed"];
const KEY: &str = "!!dtorrent.main.home";
const FORMER_KEY: &str = "zz_dtorrent.main.home";
const SET: &str = "hooks installed";

/// Returns a value from the bridge's metrics.
async fn metric(http: SocketAddr, name: &str) -> u64 {
    let page = get(http, "/metrics").await;
    let line = page.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in {page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn hooked(interval: &str) -> Setup {
    Setup { server: format!("interval = \"{interval}\"\nhooks = true"), ..Setup::default() }
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

/// Returns the file that the bridge's hooks write to.
fn hook_file(world: &World) -> PathBuf {
    world.data_dir().join("hooks/main.home")
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
    let bytes = std::fs::metadata(hook_file(&world)).unwrap().len();
    assert!(bytes <= 41 * 1_010, "{bytes} bytes for 1,000 events");

    world.bridge().restart();
    // The hooks are in place, so nothing has to be installed.
    world.bridge().wait_for_log_again(1, "client reached").await;
    assert!(std::fs::metadata(hook_file(&world)).unwrap().len() < bytes, "emptied by the next run");
    let mark = world.recorder.mark();
    assert_heard(&world, mark, &content).await;
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn hooks_in_a_folder_that_is_gone_do_not_disturb_rtorrents_own() {
    if !can_run() {
        return;
    }
    let mut world = World::running(hooked("60s")).await;
    world.bridge().wait_for_log(SET).await;
    let content = running_torrent(&world).await;
    world.bridge().process().kill().unwrap();
    std::fs::remove_dir_all(world.data_dir()).unwrap();
    // rTorrent keeps this view by hooks of its own on the same event, which run behind ours.
    let is_seeding = async || {
        let listed = method(&world.home, "download_list", &["", "seeding"]).await;
        listed.contains(&content.hash.to_string().to_uppercase())
    };
    assert!(is_seeding().await);
    world.home.act(content.hash, "d.stop", &[]).await.unwrap();
    assert!(!is_seeding().await);
}

#[tokio::test]
async fn only_the_owner_can_write_signals_and_a_flood_of_them_does_not_overload_rtorrent() {
    if !can_run() {
        return;
    }
    let http = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
    let mut world = World::running(Setup { http: format!("listen = \"{http}\""), ..hooked("60s") }).await;
    world.bridge().wait_for_log(SET).await;
    let content = running_torrent(&world).await;
    assert_heard(&world, 0, &content).await;
    let file = hook_file(&world);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));

    let append = |lines: &str| {
        let mut opened = std::fs::OpenOptions::new().append(true).open(&file).unwrap();
        std::io::Write::write_all(&mut opened, lines.as_bytes()).unwrap();
    };
    let wakes = async || metric(http, "dtorrent_hook_wakes_total").await;
    let (before, hash) = (wakes().await, content.hash);
    append("nonsense\n\0\n../../x\n");
    append(&format!("{hash}\n"));
    while wakes().await == before {
        tokio::task::yield_now().await;
    }
    assert_eq!(wakes().await, before + 1, "what is no hash is ignored");

    let polls = async || metric(http, "dtorrent_polls_total{server=\"home\",result=\"ok\"}").await;
    let (polls_before, began) = (polls().await, Instant::now());
    let lines = format!("{hash}\n").repeat(100);
    for _ in 0..1_000 {
        append(&lines);
    }
    let mark = world.recorder.mark();
    assert_heard(&world, mark, &content).await;
    let done = polls().await - polls_before;
    let allowed = began.elapsed().as_millis() / 100 + 2;
    assert!(done >= 1 && u128::from(done) <= allowed, "{done} polls where {allowed} are allowed");
    assert!(std::fs::metadata(&file).unwrap().len() < 1 << 20, "the file is emptied");
}

#[tokio::test]
async fn hooks_may_write_to_a_folder_that_both_share_unless_everybody_may() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let shared = world.folder.join("shared");
    std::fs::create_dir(&shared).unwrap();
    let url = world.home.url();
    let lines = format!("hooks = true\ninterval = \"60s\"\nhooks_dir = \"{}\"", shared.display());
    world.set_server_lines(&lines);
    world.write_config(&[("home", &url)]);
    std::fs::set_permissions(&shared, Permissions::from_mode(0o777)).unwrap();
    let (code, _, printed) = world.ask(&["run"], &[]).await;
    assert!(code == 1 && printed.contains("servers.home.hooks_dir: every user may write to"), "{code} {printed}");
    std::fs::set_permissions(&shared, Permissions::from_mode(0o770)).unwrap();
    world.start_bridge().await;
    world.bridge().wait_for_log(SET).await;
    let content = running_torrent(&world).await;
    assert_heard(&world, 0, &content).await;
    assert!(shared.join("main.home").try_exists().unwrap());
}

/// Asserts that a bridge with a shared folder for signals runs without hooks, says why, and polls.
async fn assert_without_hooks(world: &mut World, shared: &Path, mode: u32, reason: &str) {
    std::fs::set_permissions(shared, Permissions::from_mode(mode)).unwrap();
    world.set_server_lines(&format!("hooks = true\ninterval = \"250ms\"\nhooks_dir = \"{}\"", shared.display()));
    world.start_bridge().await;
    world.bridge().wait_for_log("file for hook signals cannot be used: no hooks").await;
    let topic = "dtorrent/bridge/main/health";
    let problem = format!("the file for their signals cannot be used: {reason}");
    let has_problem = |message: &Message| message.topic == topic && message.text().contains(&problem);
    world.recorder.wait_for(topic, |all| all.iter().any(has_problem).then_some(())).await;
    let content = Content::file("polled", 20_000, 7);
    world.home.load(&content.torrent, false).await.unwrap();
    world.recorder.event("home", "added", content.hash).await;
    assert!(hooked_events(&world.home).await.is_empty());
}

#[tokio::test]
async fn a_server_whose_signal_file_is_something_else_runs_without_hooks() {
    if !can_run() {
        return;
    }
    for obstacle in ["link", "dangling link", "link to itself", "directory", "pipe"] {
        let mut world = World::new(Setup::default()).await;
        let (shared, precious) = (world.folder.join("shared"), world.folder.join("precious"));
        std::fs::create_dir(&shared).unwrap();
        std::fs::write(&precious, "precious").unwrap();
        let file = shared.join("main.home");
        let link = |target: &Path| std::os::unix::fs::symlink(target, &file).unwrap();
        match obstacle {
            "link" => link(&precious),
            "dangling link" => link(&world.folder.join("nothing")),
            "link to itself" => link(&file),
            "directory" => std::fs::create_dir(&file).unwrap(),
            _ => assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success()),
        }
        let before = std::fs::symlink_metadata(&file).unwrap().file_type();
        let reason = match obstacle {
            "directory" => "Is a directory",
            "pipe" => "something else than a file is there",
            _ => "Too many levels of symbolic links",
        };
        assert_without_hooks(&mut world, &shared, 0o770, reason).await;
        assert_eq!(std::fs::symlink_metadata(&file).unwrap().file_type(), before, "{obstacle}");
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious", "{obstacle}");
        assert!(!world.folder.join("nothing").try_exists().unwrap(), "{obstacle}");
    }
}

#[tokio::test]
async fn a_server_whose_signal_folder_the_bridge_may_not_write_to_runs_without_hooks() {
    if !can_run() {
        return;
    }
    let launcher = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "--"].map(str::to_owned).to_vec();
    let rtorrent = Options { listen: Listen::Tcp, ..Options::default() };
    for is_there in [true, false] {
        let mut world =
            World::new(Setup { launcher: launcher.clone(), rtorrent: rtorrent.clone(), ..Setup::default() }).await;
        disk::give(&world.folder, 1234);
        // Root's, and everybody may look into it.
        let shared = world.folder.join("shared");
        std::fs::create_dir(&shared).unwrap();
        let file = shared.join("main.home");
        if is_there {
            std::fs::write(&file, "of root").unwrap();
        }
        assert_without_hooks(&mut world, &shared, 0o755, "Permission denied").await;
        assert_eq!(file.try_exists().unwrap(), is_there);
        assert!(!is_there || std::fs::read_to_string(&file).unwrap() == "of root");
    }
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

/// Returns the TCP ports on which a process listens.
fn listening_ports(pid: u32) -> Vec<u16> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = links.filter_map(|link| std::fs::read_link(link.unwrap().path()).ok());
    let sockets: Vec<String> = targets.map(|target| target.to_string_lossy().into_owned()).collect();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let rows = table.lines().skip(1).map(|row| row.split_whitespace().collect::<Vec<_>>());
    // Columns 1, 3 and 9 are the local address, the state (0A: listening) and the inode.
    let listening = rows.filter(|row| row[3] == "0A" && sockets.contains(&format!("socket:[{}]", row[9])));
    listening.map(|row| u16::from_str_radix(row[1].rsplit_once(':').unwrap().1, 16).unwrap()).collect()
}

/// Answers every request at a port, until the test ends, with a torrent, and counts the connections.
#[allow(clippy::disallowed_methods, reason = "the runtime of a test ends with it, and the task too")]
async fn serve(port: u16, torrent: Vec<u8>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    let (address, connections) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", torrent.len());
            drop(stream.read(&mut [0; 4096]).await);
            drop(stream.write_all(&[head.as_bytes(), &torrent].concat()).await);
        }
    });
    (address, connections)
}

#[tokio::test]
async fn whoever_takes_the_ports_of_a_killed_bridge_is_asked_nothing_and_has_nothing_loaded() {
    if !can_run() {
        return;
    }
    let http = format!("listen = \"127.0.0.1:{}\"", free_port().unwrap());
    let mut world = World::running(Setup { http, ..hooked("60s") }).await;
    world.bridge().wait_for_log(SET).await;
    let content = running_torrent(&world).await;
    let ports = listening_ports(world.bridge().process().pid());
    assert!(!ports.is_empty());
    world.bridge().process().kill().unwrap();
    let planted = Content::file("planted", 20_000, 6);
    let mut servers = Vec::new();
    for port in ports {
        servers.push(serve(port, planted.torrent.clone()).await);
    }
    for action in ["d.pause", "d.resume", "d.stop", "d.start"] {
        world.home.act(content.hash, action, &[]).await.unwrap();
    }
    // What is requested later is there: everything before has been answered.
    let last = Content::file("last", 20_000, 7);
    let (address, _) = serve(0, last.torrent.clone()).await;
    method(&world.home, "load.normal", &["", &format!("http://{address}/last.torrent")]).await;
    world.home.wait_for(last.hash, "d.state", "0").await.unwrap();
    let asked: usize = servers.iter().map(|(_, connections)| connections.load(Ordering::Relaxed)).sum();
    let listed = method(&world.home, "download_list", &[""]).await;
    assert!(!listed.contains(&planted.hash.to_string().to_uppercase()), "{asked} connections, {listed:?}");
    assert_eq!(asked, 0, "rTorrent connects to nobody");
}
