//! One peer that takes more than its part: of the HTTP port's connections, of a sink's deliveries.

use std::net::SocketAddr;
use std::time::Duration;

use dtorrent_peers::content::Content;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::task::JoinSet;

use crate::harness::recorder::Message;
use crate::harness::{Setup, World, can_run};

/// What a connection sends before it waits: nothing, part of a request, or all of one for events.
const BEGINNINGS: [&str; 3] = [
    "",
    "POST /api/v1/servers/home/commands/pause HTTP/1.1\r\nHost: localhost\r\nContent-Le",
    "GET /api/v1/events?server=home HTTP/1.1\r\nHost: localhost\r\n\r\n",
];

/// Holds one connection from an address for ever, and another whenever it is closed.
async fn hold(from: [u8; 4], port: u16, beginning: &'static str) {
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((from, 0))).unwrap();
        if let Ok(mut stream) = socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await
            && stream.write_all(beginning.as_bytes()).await.is_ok()
        {
            while stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
        }
        // Those that are turned away come again, but leave this machine a processor.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn health_is_answered_however_many_connections_others_hold() {
    if !can_run() {
        return;
    }
    let port = dtorrent_peers::process::free_port().unwrap();
    let http = format!("listen = \"127.0.0.1:{port}\"");
    let world = World::running(Setup { http, ..Setup::default() }).await;
    for beginning in BEGINNINGS {
        let mut held = JoinSet::new();
        for number in 0..200 {
            // From one other peer, and from the one that the health check is.
            let from = if number < 120 { [127, 0, 0, 2] } else { [127, 0, 0, 1] };
            held.spawn(hold(from, port, beginning));
        }
        for _ in 0..8 {
            let (code, printed, errors) = world.ask(&["health"], &[]).await;
            assert_eq!(code, 0, "while others began with {beginning:?}: {printed}{errors}");
        }
        held.shutdown().await;
    }
}

#[tokio::test]
async fn a_flood_of_resyncs_delays_no_event_of_a_torrent() {
    if !can_run() {
        return;
    }
    let contents: Vec<_> = (1..=60).map(|n| Content::file(&format!("many-{n}"), 20_000, n)).collect();
    let mut setup = Setup::default();
    setup.broker.lines.push("max_queued_messages 0".to_owned());
    let world = World::seeding(setup, &contents).await;
    let hashes: Vec<String> = contents.iter().map(|content| content.hash.to_string()).collect();
    for round in 0..15 {
        let body = json!({"hashes": hashes, "label": format!("round {round}")});
        assert_eq!(world.recorder.command("home/command/label", body).await["status"], "ok");
    }
    let flood = async {
        loop {
            let result = world.recorder.command("home/command/resync", json!({"from_seq": 0})).await;
            assert_eq!(result["status"], "ok", "{result}");
        }
    };
    let events_until_new = async {
        let topic = format!("home/torrent/{}/command/label", hashes[0]);
        assert_eq!(world.recorder.command(&topic, json!({"label": "new"})).await["status"], "ok");
        let mark = world.recorder.mark();
        let event = format!("dtorrent/home/torrent/{}/event/label_changed", hashes[0]);
        // Not one of those that come again.
        let is_new = |message: &Message| message.topic == event && message.json()["torrent"]["label"] == "new";
        let find = |all: &[Message]| all.iter().position(is_new).map(|at| at.saturating_sub(mark));
        world.recorder.wait_for("the new event", find).await
    };
    let repeated = tokio::select! {
        () = flood => unreachable!("it is without an end"),
        count = events_until_new => count,
    };
    assert!(repeated < 500, "{repeated} messages came between what was done and its event");
}
