//! The audit trail: who sent which command from where, refused rights and wrong tokens, whatever the log level is.

use std::time::Duration;

use dtorrent_peers::content::Content;
use dtorrent_peers::process::free_port;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::time::{Instant, timeout};

use crate::harness::http::{Answer, get, request};
use crate::harness::recorder::error_code;
use crate::harness::{Setup, World, can_run};

const TOKEN: &str = "a token of more than sixteen characters";

async fn world(sink: &str, http: &str) -> (World, Content) {
    let content = Content::file("audited", 20_000, 1);
    let setup = Setup { sink: sink.to_owned(), http: http.to_owned(), ..Setup::default() };
    (World::seeding(setup, [&content]).await, content)
}

/// Sends a command that is carried out and one that is refused, and waits for their lines in the log.
async fn assert_audited(world: &mut World, content: &Content, round: &str) {
    let (done, refused) = (format!("done-{round}"), format!("refused-{round}"));
    let topic = format!("home/torrent/{}/command", content.hash);
    let result = world.recorder.command(&format!("{topic}/recheck"), json!({"id": done})).await;
    assert_eq!(result["status"], "ok", "{result}");
    let result = world.recorder.command(&format!("{topic}/delete"), json!({"id": refused, "data": true})).await;
    assert_eq!(error_code(&result), "forbidden", "{result}");
    for id in [done, refused] {
        world.bridge().wait_for_log(&format!("id={id} ")).await;
        let log = world.bridge().log();
        let line = log.lines().find(|line| line.contains(&format!("id={id} "))).unwrap();
        assert!(line.contains("sink=b") && line.contains("verb=") && line.contains("status="), "{line}");
    }
}

#[tokio::test]
async fn the_log_level_needs_a_right_that_has_to_be_named() {
    if !can_run() {
        return;
    }
    for (sink, expected) in [
        ("", "refused"),
        ("commands = [\"*\"]", "refused"),
        ("commands = [\"*\", \"-log_level\"]", "refused"),
        ("commands = [\"*\", \"log_level\"]", "ok"),
    ] {
        let (world, _) = world(sink, "").await;
        let result = world.recorder.command("bridge/main/command/log_level", json!({"level": "trace"})).await;
        assert_eq!(result["status"], expected, "{sink}: {result}");
    }
}

#[tokio::test]
async fn commands_and_refusals_are_logged_at_every_level() {
    if !can_run() {
        return;
    }
    let (mut world, content) = world("commands = [\"*\", \"-delete_data\", \"log_level\"]", "").await;
    for level in ["off", "error"] {
        let result = world.recorder.command("bridge/main/command/log_level", json!({"level": level})).await;
        assert_eq!(result["status"], "ok", "{result}");
        assert_audited(&mut world, &content, level).await;
    }
}

#[tokio::test]
async fn a_config_with_the_log_off_still_has_the_audit_trail() {
    if !can_run() {
        return;
    }
    let (mut world, content) = world("", "").await;
    let config = world.folder.join("dtorrent.toml");
    let text = std::fs::read_to_string(&config).unwrap().replace("level = \"debug\"", "level = \"off\"");
    std::fs::write(&config, text).unwrap();
    let before = world.bridge().log().len();
    world.bridge().restart();
    // The commands wait at the broker until the bridge is back.
    assert_audited(&mut world, &content, "off").await;
    let log = world.bridge().log();
    // A restart begins the log anew, or goes on behind what was there.
    let log = log.get(before..).unwrap_or(&log);
    assert!(log.lines().all(|line| line.contains("audit")), "nothing else: {log}");
}

/// Sends a request with a token from an address of this machine.
async fn ask_from(peer: [u8; 4], port: u16, token: &str) -> u16 {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((peer, 0).into()).unwrap();
    let mut stream = socket.connect(([127, 0, 0, 1], port).into()).await.unwrap();
    let request = format!(
        "POST /api/v1/servers/home/commands/list HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\
         Authorization: Bearer {token}\r\n\r\n{{}}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer).await);
    String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default()
}

/// Returns the value of the counter of wrong tokens.
async fn counted(port: u16) -> u64 {
    let metrics = get(port, "/metrics").await.body;
    let line = metrics.lines().find(|line| line.starts_with("dtorrent_http_wrong_tokens_total "));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("no counter in {metrics}"))
}

#[tokio::test]
async fn wrong_tokens_are_logged_counted_and_slowed_down_and_right_ones_are_not() {
    if !can_run() {
        return;
    }
    let port = free_port().unwrap();
    let (mut world, _) = world("", &format!("listen = \"127.0.0.1:{port}\"\ntoken = \"{TOKEN}\"")).await;
    assert_eq!(counted(port).await, 0, "there from the start");
    // One after the other, so that each answer has had its delay.
    let began = Instant::now();
    for _ in 0..6 {
        assert_eq!(ask_from([127, 0, 0, 2], port, "wrong").await, 401);
    }
    assert!(began.elapsed() > Duration::from_secs(1), "six guesses took {:?}", began.elapsed());
    assert_eq!(counted(port).await, 6);
    world.bridge().wait_for_log("peer=127.0.0.2").await;
    let log = world.bridge().log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("peer=127.0.0.2")).collect();
    assert!(lines.len() < 6, "throttled: {lines:?}");
    assert!(lines[0].contains("wrong token") && !log.contains("Bearer"), "{lines:?}");

    // More guesses at a time than one address may have are not even compared.
    let guesses = (0..20).map(|_| ask_from([127, 0, 0, 2], port, "wrong"));
    let guesses = futures_util::future::join_all(guesses);
    let (statuses, right) = tokio::join!(guesses, async {
        // Others, and this address before it guessed, are answered meanwhile.
        let began = Instant::now();
        let status = ask_from([127, 0, 0, 3], port, TOKEN).await;
        (status, began.elapsed())
    });
    assert!(statuses.contains(&429), "{statuses:?}");
    assert_eq!(right.0, 200);
    assert!(counted(port).await < 20, "not all of them were compared");
    // The address that guessed is served as soon as its delay is over.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = ask_from([127, 0, 0, 2], port, TOKEN).await;
        if status == 200 {
            break;
        }
        assert_eq!(status, 429);
        assert!(Instant::now() < deadline, "its right token is never taken");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(!world.bridge().log().contains(TOKEN));
}

#[tokio::test]
async fn a_missing_token_and_the_login_of_a_proxy_are_no_guesses() {
    if !can_run() {
        return;
    }
    let port = free_port().unwrap();
    let (mut world, _) = world("", &format!("listen = \"127.0.0.1:{port}\"\ntoken = \"{TOKEN}\"")).await;
    let post =
        async |path: &str, headers: &[(&str, &str)]| -> Answer { request(port, "POST", path, headers, b"{}").await };
    let (command, replay) = ("/api/v1/servers/home/commands/list", "/api/v1/dead-letters/hook/replay");
    for path in [command, replay] {
        for _ in 0..10 {
            assert_eq!(post(path, &[]).await.status, 401);
            assert_eq!(post(path, &[("Authorization", "Basic dTpw")]).await.status, 401);
        }
    }
    assert_eq!(get(port, "/").await.status, 200);
    assert_eq!(request(port, "GET", "/", &[("Authorization", "Basic dTpw")], b"").await.status, 200);
    assert_eq!(counted(port).await, 0);
    // A wrong token is one wherever it is used, reading included.
    let wrong = [("Authorization", "Bearer wrong")];
    assert_eq!(post(replay, &wrong).await.status, 401);
    for path in ["/api/v1/sinks", "/readyz", "/"] {
        assert_eq!(request(port, "GET", path, &wrong, b"").await.status, 401, "{path}");
    }
    assert_eq!(counted(port).await, 4);
    let bearer = format!("Bearer {TOKEN}");
    let answer = timeout(Duration::from_secs(10), post(command, &[("Authorization", &bearer)])).await.unwrap();
    assert_eq!(answer.json()["status"], "ok", "a right one is not held up: {}", answer.body);
    world.bridge().wait_for_log("wrong token").await;
}
