//! The command `add` with each source.

use std::net::SocketAddr;

use dtorrent::model::MetainfoBuilder;
use dtorrent_peers::content::Content;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::recorder::{Command, Message};
use crate::harness::{Setup, World, base64, can_run};

/// A web server with one file; every other path is 404.
#[allow(clippy::disallowed_methods)] // a test's own task, gone with its runtime
async fn serve(path: &'static str, body: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap_or(0);
            let is_it = request[..length].starts_with(format!("GET {path} ").as_bytes());
            let (status, body) = if is_it { ("200 OK", &body[..]) } else { ("404 Not Found", &b"<html>"[..]) };
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            drop(stream.write_all(&[head.as_bytes(), body].concat()).await);
        }
    });
    address
}

#[tokio::test]
async fn a_torrent_is_added_from_each_source() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let contents: Vec<_> = (1..=6).map(|n| Content::file(&format!("added-{n}"), 50_000, n)).collect();
    let [by_magnet, by_url, by_base64, by_file, raw, bare_magnet] = &contents[..] else { unreachable!() };
    let web = serve("/good.torrent", by_url.torrent.clone()).await;
    let file = world.home.downloads.join("watched.torrent");
    std::fs::write(&file, &by_file.torrent).unwrap();
    let magnet = |content: &Content| format!("magnet:?xt=urn:btih:{}&dn=x", content.hash);

    for (content, body) in [
        (by_magnet, json!({"magnet": magnet(by_magnet), "id": "magnet"})),
        (by_url, json!({"url": format!("http://{web}/good.torrent"), "start": false, "id": "url"})),
        (by_base64, json!({"torrent": base64(&by_base64.torrent), "start": false, "label": "new", "id": "base64"})),
        (by_file, json!({"file": file.to_string_lossy(), "start": false, "priority": 1, "id": "file"})),
    ] {
        let id = body["id"].clone();
        let result = world.recorder.command("home/command/add", body).await;
        assert!(world.home.hashes().await.unwrap().contains(&content.hash), "{id}: {result}");
        assert_eq!(result["status"], "ok", "{id}: {result}");
        assert_eq!(result["results"][0]["hash"], json!(content.hash), "{id}");
        let event = world.recorder.event("home", "added", content.hash).await;
        assert_eq!((&event["cause"], &event["command_id"]), (&json!("command"), &id), "{event}");
    }
    assert_eq!(world.home.get(by_base64.hash, "d.custom1").await.unwrap(), "new");
    assert_eq!(world.home.get(by_file.hash, "d.priority").await.unwrap(), "1");
    assert!(file.is_file(), "the .torrent file is the user's");

    for (content, body) in [(raw, raw.torrent.clone()), (bare_magnet, magnet(bare_magnet).into_bytes())] {
        let mark = world.recorder.mark();
        world.recorder.send(Command::new("dtorrent/home/command/add", body)).await;
        let is_result = |m: &&Message| m.topic == "dtorrent/home/result";
        let find = |all: &[Message]| all[mark..].iter().find(is_result).map(Message::json);
        let result = world.recorder.wait_for("the result of a bare body", find).await;
        assert!(world.home.hashes().await.unwrap().contains(&content.hash), "{result}");
        assert_eq!((&result["status"], &result["verb"]), (&json!("ok"), &json!("add")), "{result}");
        world.recorder.event("home", "added", content.hash).await;
    }
    world.recorder.assert_gap_free("home");
}

#[tokio::test]
async fn a_torrent_that_would_abort_rtorrent_is_not_sent_to_it() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    for paths in [[&["a"][..], &["a"]], [&["a"], &["a", "b"]]] {
        let folder = MetainfoBuilder::folder("twice", 16 << 10);
        let torrent = paths.iter().fold(folder, |torrent, path| torrent.file(path.iter().copied()).content(b"12345"));
        let result = world.recorder.command("home/command/add", json!({"torrent": base64(&torrent.build())})).await;
        assert_eq!(result["error"]["code"], "bad_request", "{result}");
    }
    assert!(world.home.hashes().await.unwrap().is_empty(), "rTorrent still runs and has none of them");
}

#[tokio::test]
async fn adding_something_that_is_not_a_torrent_is_an_error() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let web = serve("/page", b"<html>not a torrent</html>".to_vec()).await;
    for (what, body) in [
        ("garbage", json!({"torrent": base64(b"d4:infoi1ee")})),
        ("a page", json!({"url": format!("http://{web}/page")})),
        ("a page that is not there", json!({"url": format!("http://{web}/missing")})),
        ("a closed port", json!({"url": "http://127.0.0.1:1/x.torrent"})),
        ("a file as URL", json!({"url": "file:///etc/passwd"})),
        ("a magnet without a hash", json!({"magnet": "magnet:?dn=x"})),
        ("no base64", json!({"torrent": "***"})),
        ("two sources", json!({"magnet": "magnet:?x", "url": "http://127.0.0.1:1/"})),
        ("a directory outside", json!({"torrent": base64(&Content::file("a", 1000, 1).torrent), "directory": "/etc"})),
    ] {
        let result = world.recorder.command("home/command/add", body).await;
        assert!(matches!(result["status"].as_str(), Some("error" | "refused")), "{what}: {result}");
        let code = &result["error"]["code"];
        let row_code = &result["results"][0]["error"]["code"];
        assert!(code.is_string() || row_code.is_string(), "{what}: {result}");
        assert!(world.home.hashes().await.unwrap().is_empty(), "{what}");
    }
    let events = world.recorder.assert_gap_free("home");
    assert!(events.iter().all(|event| event["event_type"] != "added"));
}
