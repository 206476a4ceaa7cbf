//! Connections that break at any time: nothing is lost, and a partial answer is a failed poll.

use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{Address, Listen, Options};
use serde_json::json;

use crate::harness::proxy::Proxy;
use crate::harness::{Setup, World, can_run};

#[tokio::test]
async fn a_broker_connection_that_is_cut_repeatedly_loses_nothing() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let proxy = Proxy::to_broker(world.broker.port).await;
    world.use_broker_at(&format!("mqtt://{}", proxy.address));
    world.start_bridge().await;
    let mut hashes = Vec::new();
    for number in 1..=90 {
        let content = Content::file(&format!("n{number}"), 20_000, number);
        hashes.push(world.home.load(&content.torrent, false).await.unwrap());
        if number % 15 == 0 {
            world.recorder.event("home", "added", hashes[hashes.len() - 15]).await;
            proxy.cut();
        }
    }
    for hash in &hashes {
        world.recorder.event("home", "added", *hash).await;
    }
    world.recorder.wait_for_last("dtorrent/bridge/main/status", "online").await;
    // Commands arrive again as well.
    let result =
        world.recorder.command(&format!("home/torrent/{}/command/label", hashes[0]), json!({"label": "x"})).await;
    assert_eq!(result["status"], "ok", "{result}");
    let events = world.recorder.assert_gap_free("home");
    assert_eq!(events.iter().filter(|event| event["event_type"] == "added").count(), hashes.len());
}

#[tokio::test]
async fn an_answer_of_rtorrent_that_is_cut_anywhere_removes_nothing() {
    if !can_run() {
        return;
    }
    let rtorrent = Options { listen: Listen::Tcp, ..Options::default() };
    let mut world = World::new(Setup { rtorrent, ..Setup::default() }).await;
    for number in 1..=30 {
        world.home.load(&Content::file(&format!("n{number}"), 20_000, number).torrent, false).await.unwrap();
    }
    let Address::Tcp(address) = world.home.rpc.address else { unreachable!("it listens on a port") };
    let proxy = Proxy::to(address).await;
    world.start_bridge_for(&[("home", &format!("scgi://{}", proxy.address))]).await;
    // In the header, in the first rows, in the middle, near the end.
    for bytes in [0, 20, 90, 3_000, 12_000, 25_000] {
        let mark = world.recorder.mark();
        proxy.truncate_answers(bytes);
        world.recorder.server_event_after(mark, "home", "server_offline").await;
        proxy.truncate_answers(u64::MAX);
        world.recorder.server_event_after(mark, "home", "server_online").await;
    }
    let newcomer = world.home.load(&Content::file("newcomer", 20_000, 99).torrent, false).await.unwrap();
    world.recorder.event("home", "added", newcomer).await;
    let events = world.recorder.assert_gap_free("home");
    let count = |kind: &str| events.iter().filter(|event| event["event_type"] == kind).count();
    assert_eq!((count("added"), count("removed"), count("server_restarted")), (31, 0, 0), "{events:#?}");
}
