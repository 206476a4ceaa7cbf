//! Faults of rTorrent: restarts, blocked calls, cut connections, malformed answers, no free connection.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::process::TIMEOUT;
use dtorrent_peers::rtorrent::{Address, Listen, Options};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{count, load_many, wait_for_newcomer};
use crate::harness::proxy::{Mode, Proxy};
use crate::harness::recorder::Command;
use crate::harness::{Setup, World, can_run};

/// An rTorrent behind a proxy, with this many torrents.
async fn behind_a_proxy(torrents: u64, server: &str) -> (World, Proxy) {
    let rtorrent = Options { listen: Listen::Tcp, ..Options::default() };
    let mut world = World::new(Setup { rtorrent, server: server.to_owned(), ..Setup::default() }).await;
    load_many(&world.home, 0, torrents).await;
    let Address::Tcp(address) = world.home.rpc.address else { unreachable!("it listens on a port") };
    let proxy = Proxy::to(address).await;
    world.start_bridge_for(&[("home", &format!("scgi://{}", proxy.address))]).await;
    (world, proxy)
}

/// Asserts that no torrent was removed or started, and that each outage was reported once.
async fn assert_only_outages(world: &World, torrents: usize, outages: usize) {
    wait_for_newcomer(world).await;
    let events = world.recorder.assert_gap_free("home");
    let counts = ["added", "removed", "server_restarted", "server_offline"].map(|kind| count(&events, kind));
    assert_eq!(counts, [torrents + 1, 0, 0, outages], "{events:#?}");
    assert_eq!(count(&events, "server_online"), outages + 1);
}

#[tokio::test]
async fn a_malformed_answer_is_an_outage_and_emits_no_torrent_event() {
    if !can_run() {
        return;
    }
    let (world, proxy) = behind_a_proxy(5, "timeout = \"2s\"").await;
    let page = "<html><body><h1>502 Bad Gateway</h1></body></html>";
    let empty = "<?xml version=\"1.0\"?><methodResponse><params><param><value><array><data></data></array></value></param></params></methodResponse>";
    let fault = "<?xml version=\"1.0\"?><methodResponse><fault><value><struct><member><name>faultCode</name><value><i4>-506</i4></value></member>\
                 <member><name>faultString</name><value><string>Method not defined</string></value></member></struct></value></fault></methodResponse>";
    let scgi = |length: usize, body: &str| {
        format!("Status: 200 OK\r\nContent-Type: text/xml\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    let answers = [
        scgi(page.len(), page),
        scgi(fault.len(), fault),
        scgi(empty.len(), empty),
        scgi(empty.len() + 7, empty),
        scgi(empty.len() - 7, empty),
        scgi(usize::MAX, empty),
        format!("HTTP/1.1 502 Bad Gateway\r\n\r\n{page}"),
        page.to_owned(),
        "\r\n\r\n".to_owned(),
    ];
    let outages = answers.len();
    for answer in answers {
        let mark = world.recorder.mark();
        proxy.answers(Mode::Say(Bytes::from(answer)));
        world.recorder.server_event_after(mark, "home", "server_offline").await;
        proxy.answers(Mode::Pass);
        world.recorder.server_event_after(mark, "home", "server_online").await;
    }
    assert_only_outages(&world, 5, outages).await;
}

#[tokio::test]
async fn a_blocked_rtorrent_gets_one_request_at_a_time_and_loses_nothing() {
    if !can_run() {
        return;
    }
    let (mut world, proxy) = behind_a_proxy(5, "timeout = \"500ms\"").await;
    let hash = world.home.hashes().await.unwrap()[0];
    let topic = format!("dtorrent/home/torrent/{hash}/command/label");
    for round in 0..2 {
        let mark = world.recorder.mark();
        world.home.process().pause().unwrap();
        world.recorder.server_event_after(mark, "home", "server_offline").await;
        // For many times the timeout of one exchange; at most one request is open at any time.
        proxy.reset_most_open();
        let (short, long) = (format!("short{round}"), format!("long{round}"));
        for (id, ttl) in [(&short, "1s"), (&long, "300s")] {
            let body = json!({"label": id, "id": id, "ttl": ttl}).to_string();
            world.recorder.send(Command::new(&topic, body)).await;
        }
        let asked = proxy.opened();
        let begun = Instant::now();
        while proxy.opened() < asked + 12 {
            assert!(begun.elapsed() < TIMEOUT, "it is not asked any more");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // A command whose ttl is shorter than the outage expires, one with a longer ttl stays pending.
        let expired = world.recorder.result(&short).await;
        assert_eq!((&expired["status"], &expired["error"]["code"]), (&json!("expired"), &json!("client_offline")));
        assert_eq!(world.recorder.results(&long).len(), 0, "its outcome is unknown during the outage");
        assert_eq!(proxy.most_open(), 1, "one poll in flight");
        world.home.process().unpause().unwrap();
        world.recorder.server_event_after(mark, "home", "server_online").await;
        let done = world.recorder.result(&long).await;
        assert_eq!(done["status"], "ok", "{done}");
        world.home.wait_for(hash, "d.custom1", &long).await.unwrap();
    }
    assert_only_outages(&world, 5, 2).await;
}

#[tokio::test]
async fn an_answer_that_stalls_midway_times_out() {
    if !can_run() {
        return;
    }
    let (world, proxy) = behind_a_proxy(5, "timeout = \"500ms\"").await;
    let mark = world.recorder.mark();
    proxy.reset_most_open();
    proxy.answers(Mode::Hold);
    world.recorder.server_event_after(mark, "home", "server_offline").await;
    proxy.answers(Mode::Pass);
    world.recorder.server_event_after(mark, "home", "server_online").await;
    assert_eq!(proxy.most_open(), 1, "one poll in flight");
    assert_only_outages(&world, 5, 1).await;
}

#[tokio::test]
async fn an_rtorrent_out_of_connections_is_offline_until_one_is_free() {
    if !can_run() {
        return;
    }
    let rtorrent = Options { listen: Listen::Tcp, ..Options::default() };
    let mut world = World::new(Setup { rtorrent, server: "timeout = \"2s\"".to_owned(), ..Setup::default() }).await;
    load_many(&world.home, 0, 5).await;
    world.start_bridge().await;
    let Address::Tcp(address) = world.home.rpc.address else { unreachable!("it listens on a port") };
    let mark = world.recorder.mark();
    let mut greedy = Vec::new();
    for _ in 0..130 {
        greedy.push(TcpStream::connect(address).await.unwrap());
    }
    world.recorder.server_event_after(mark, "home", "server_offline").await;
    drop(greedy);
    world.recorder.server_event_after(mark, "home", "server_online").await;
    assert_only_outages(&world, 5, 1).await;
}

#[tokio::test]
async fn an_rtorrent_killed_during_an_answer_and_slowly_reloading_removes_nothing() {
    if !can_run() {
        return;
    }
    let (mut world, proxy) = behind_a_proxy(40, "").await;
    let hashes = world.home.hashes().await.unwrap();
    for hash in &hashes {
        world.home.act(*hash, "d.save_full_session", &[]).await.unwrap();
    }
    let mark = world.recorder.mark();
    proxy.truncate_answers(5_000);
    world.home.process().kill().unwrap();
    // A session that is still loading, as newer versions show it: no torrent at first, then some, then all.
    let session = world.folder.join("home").join("session");
    let aside = world.folder.join("aside");
    std::fs::create_dir(&aside).unwrap();
    let files =
        |hash: InfoHash| ["", ".libtorrent_resume", ".rtorrent"].map(|end| format!("{}.torrent{end}", hash.to_rpc()));
    for hash in &hashes {
        for file in files(*hash) {
            std::fs::rename(session.join(&file), aside.join(&file)).unwrap();
        }
    }
    world.recorder.server_event_after(mark, "home", "server_offline").await;
    world.home.restart().await.unwrap();
    proxy.truncate_answers(u64::MAX);
    world.recorder.server_event_after(mark, "home", "server_online").await;
    let restarted = world.recorder.server_event_after(mark, "home", "server_restarted").await;
    for (number, hash) in hashes.iter().enumerate() {
        let torrent = std::fs::read(aside.join(&files(*hash)[0])).unwrap();
        world.home.load(&torrent, false).await.unwrap();
        if number % 10 == 0 {
            // The bridge has polled a part of the session.
            let content = Content::file(&format!("seen{number}"), 1_000, 1_000 + number as u64);
            world.home.load(&content.torrent, false).await.unwrap();
            world.recorder.event("home", "added", content.hash).await;
        }
    }
    wait_for_newcomer(&world).await;
    let events = world.recorder.assert_gap_free("home");
    let counts = ["added", "removed", "server_restarted", "server_offline"].map(|kind| count(&events, kind));
    assert_eq!(counts, [45, 0, 1, 1], "{restarted} {events:#?}");
}

#[tokio::test]
async fn three_thousand_torrents_added_and_removed_at_once_emit_each_event_once() {
    /// An rTorrent 0.9.8 that is polled takes a quarter of a minute to load these, and minutes for 10,000.
    const MANY: u64 = 3_000;
    if !can_run() {
        return;
    }
    let server = "timeout = \"60s\"".to_owned();
    let world = World::running(Setup { broker: super::patient_broker(), server, ..Setup::default() }).await;
    let all_told = async |world: &World, kind: &'static str| {
        let end = format!("/event/{kind}");
        let is_all = |all: &[crate::harness::recorder::Message]| {
            (all.iter().filter(|m| m.topic.ends_with(&end)).count() as u64 >= MANY).then_some(())
        };
        world.recorder.wait_within(4 * TIMEOUT, kind, is_all).await;
    };
    let hashes = load_many(&world.home, 0, MANY).await;
    all_told(&world, "added").await;
    for hash in &hashes {
        world.home.act(*hash, "d.erase", &[]).await.unwrap();
    }
    all_told(&world, "removed").await;
    let events = world.recorder.assert_gap_free("home");
    assert_eq!((count(&events, "added") as u64, count(&events, "removed") as u64), (MANY, MANY));
    let mut kinds: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for event in events.iter().filter(|event| event["hash"].is_string()) {
        kinds.entry(event["hash"].as_str().unwrap()).or_default().push(event["event_type"].as_str().unwrap());
    }
    assert!(hashes.iter().all(|hash| kinds[hash.to_string().as_str()] == ["added", "removed"]));
}
