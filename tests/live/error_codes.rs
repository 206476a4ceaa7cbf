//! Each error code, provoked on a real rTorrent.

use base64::Engine as _;
use dtorrent::model::MetainfoBuilder;
use dtorrent_peers::content::Content;
use dtorrent_peers::process::free_port;
use dtorrent_peers::rtorrent::{Address, Listen, Options};
use serde_json::{Value, json};

use crate::harness::http::request;
use crate::harness::recorder::{Command, Message, error_code};
use crate::harness::scgi::ScgiProxy;
use crate::harness::{Setup, World, can_run};

#[tokio::test]
async fn each_error_code_says_what_happened() {
    if !can_run() {
        return;
    }
    let port = free_port().unwrap();
    let http = format!("listen = \"127.0.0.1:{port}\"\ntoken = \"a-token-of-the-tests\"");
    let rtorrent = Options { listen: Listen::Tcp, ..Options::default() };
    let mut world = World::new(Setup { rtorrent, http, ..Setup::default() }).await;
    let content = Content::file("coded", 50_000, 1);
    world.home.load(&content.torrent, false).await.unwrap();
    let Address::Tcp(address) = world.home.rpc.address else { unreachable!("it listens on a port") };
    let proxy = ScgiProxy::to(address).await;
    world.start_bridge_for(&[("home", &format!("scgi://{}", proxy.address))]).await;
    let one = format!("home/torrent/{}/command", content.hash);
    let large = "x".repeat(11 << 20);
    for (code, topic, body) in [
        ("unknown_hash", format!("home/torrent/{}/command/stop", "ab".repeat(20)), json!({})),
        ("bad_request", format!("{one}/label"), json!({"label": 5})),
        ("forbidden", "home/command/add".to_owned(), json!({"file": "/etc/passwd"})),
        ("precondition", format!("{one}/pause"), json!({})),
        ("precondition", format!("{one}/stop"), json!({"if_status": "seeding"})),
        ("too_large", format!("{one}/label"), json!({"label": large})),
        ("unsupported", format!("{one}/explode"), json!({})),
    ] {
        assert_code(&world, code, &topic, body).await;
    }
    // A retained message.
    let retained = Command { retain: true, ..Command::new("dtorrent/home/command/list", "{\"id\": \"kept\"}") };
    world.recorder.send(retained).await;
    let result = world.recorder.result("kept").await;
    assert_eq!((&result["status"], error_code(&result)), (&json!("refused"), &json!("retained")), "{result}");
    // A server of another bridge: over HTTP this bridge alone is meant.
    let headers = [("Authorization", "Bearer a-token-of-the-tests"), ("Content-Type", "application/json")];
    let answer = request(port, "POST", "/api/v1/servers/nowhere/commands/list", &headers, b"{}").await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (404, &json!("unknown_server")), "{}", answer.body);
    // rTorrent says 0 to everything, and does something else.
    proxy.replace(&[(">d.custom1.set<", ">d.custom5.set<")]);
    assert_code(&world, "unconfirmed", &format!("{one}/label"), json!({"label": "x"})).await;
    // rTorrent refuses.
    proxy.replace(&[(">d.custom1.set<", ">d.custom1.seat<")]);
    assert_code(&world, "client_fault", &format!("{one}/label"), json!({"label": "x"})).await;
    // A load without a result, and without a reason.
    proxy.replace(&[("<base64>", "<base64>AAAA")]);
    let torrent = MetainfoBuilder::single("refused", 16_384).content(&[7; 40_000]).build();
    let torrent = base64::engine::general_purpose::STANDARD.encode(torrent);
    assert_code(&world, "client_fault", "home/command/add", json!({"torrent": torrent})).await;
    // rTorrent is gone: before anything was asked, so nothing was done.
    let mark = world.recorder.mark();
    world.home.process().kill().unwrap();
    world.recorder.server_event_after(mark, "home", "server_offline").await;
    assert_code(&world, "client_offline", &format!("{one}/label"), json!({"label": "x", "ttl": "1s"})).await;
}

async fn assert_code(world: &World, code: &str, topic: &str, body: Value) {
    let mark = world.recorder.mark();
    world.recorder.send(Command::new(&format!("dtorrent/{topic}"), body.to_string())).await;
    let is_result = |message: &&Message| message.topic == "dtorrent/home/result";
    let find = |all: &[Message]| all[mark..].iter().find(is_result).map(Message::json);
    let result = world.recorder.wait_for(&format!("{code} of {topic}"), find).await;
    assert_eq!(*error_code(&result), code, "{topic}: {result}");
}
