//! Bodies as people and programs write them, on each of the ways in.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use dtorrent_peers::content::Content;
use dtorrent_peers::process::free_port;
use serde_json::{Value, json};

use crate::harness::http::{get_until, request};
use crate::harness::nats::{self, NatsServer, Subscriber, body};
use crate::harness::recorder::{Command, error_code};
use crate::harness::{Setup, World, can_run};

/// Sends bytes as a body below `dtorrent/`, and returns the result with this id.
async fn send(world: &World, topic: &str, body: impl Into<Vec<u8>>, id: &str) -> Value {
    world.recorder.send(Command::new(&format!("dtorrent/{topic}"), body)).await;
    world.recorder.result(id).await
}

#[tokio::test]
async fn an_id_that_is_a_number_is_taken_as_its_text_and_every_answer_carries_the_id() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let content = Content::file("numbered", 20_000, 1);
    world.home.load(&content.torrent, false).await.unwrap();
    world.recorder.event("home", "added", content.hash).await;
    let label = format!("home/torrent/{}/command/label", content.hash);
    for (number, id) in
        [("1795984023", "1795984023"), ("-7", "-7"), ("1.5", "1.5"), ("18446744073709551615", "18446744073709551615")]
    {
        let result = send(&world, &label, format!(r#"{{"id": {number}, "label": "n"}}"#), id).await;
        assert_eq!(result["status"], "ok", "{number}: {result}");
    }
    for (what, body, id) in [
        ("an argument of the wrong type", r#"{"id": 101, "label": 5}"#, "101"),
        ("a wrong ttl", r#"{"id": 102, "ttl": 5, "label": "x"}"#, "102"),
        ("a wrong reply_to", r#"{"reply_to": {}, "id": "103", "label": "x"}"#, "103"),
        ("a key twice", r#"{"id": "104", "label": "x", "label": 5}"#, "104"),
        ("cut off", r#"{"id": 105, "label": "x"#, "105"),
        ("no JSON behind it", r#"{"label": "x", "id": 106, oops}"#, "106"),
        ("no JSON before it", r#"{label: "x", "id": 107}"#, "107"),
        ("in a list", r#"[{"id": "109", "label": "x"}]"#, "109"),
        ("a text in a text", r#""{\"id\": \"110\", \"label\": \"x\"}""#, "110"),
        ("a byte that is no UTF-8", "{\"id\": \"111\", \"label\": \"\u{ff}", "111"),
        ("single quotes", "{'id': '112', 'label': 'x'}", "112"),
    ] {
        let result = send(&world, &label, body, id).await;
        assert_eq!(error_code(&result), "bad_request", "{what}: {result}");
    }
    // Levels that no recursion should follow.
    let deep = format!(r#"{{"x": {}, "id": 113}}"#, "[".repeat(500) + &"]".repeat(500));
    assert_eq!(error_code(&send(&world, &label, deep, "113").await), "bad_request");
    let latin = [&b"{\"label\": \"caf\xe9\", \"id\": \"114\"}"[..]].concat();
    assert_eq!(error_code(&send(&world, &label, latin, "114").await), "bad_request");
    assert_eq!(world.home.get(content.hash, "d.custom1").await.unwrap(), "n");
}

/// The ways in which other programs write base64.
fn spellings(bytes: &[u8]) -> Vec<(&'static str, String)> {
    let plain = STANDARD.encode(bytes);
    let lines: Vec<&str> = plain.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect();
    vec![
        ("lines", lines.join("\n") + "\n"),
        ("lines of CRLF", lines.join("\r\n")),
        ("no padding", plain.trim_end_matches('=').to_owned()),
        ("URL-safe", URL_SAFE_NO_PAD.encode(bytes)),
        ("URL-safe with padding", plain.replace('+', "-").replace('/', "_")),
        ("a data URL", format!("data:application/x-bittorrent;base64,{plain}")),
        ("a data URL of another spelling", format!("DATA:;Base64,{}", plain.replace('=', "%3D").replace('+', "%2B"))),
        ("blanks around it", format!("  {plain}\t")),
    ]
}

#[tokio::test]
async fn base64_is_taken_in_each_of_its_spellings() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    for length in [5, 6, 7] {
        for (number, what) in spellings(b"x").iter().map(|(what, _)| *what).enumerate() {
            // Bytes of 0xff and 0xfb make the letters that the alphabets differ in.
            let content = Content::file(&format!("{}-{number}", "n".repeat(length)), 40_000, length as u64);
            let (_, text) = spellings(&content.torrent).swap_remove(number);
            let result = world.recorder.command("home/command/add", json!({"torrent": text, "start": false})).await;
            assert_eq!(result["status"], "ok", "{what}: {result}");
            assert!(world.home.hashes().await.unwrap().contains(&content.hash), "{what}");
        }
    }
    for (what, text) in [
        ("a letter of no alphabet", "ZGU*"),
        ("both alphabets", "-_+/"),
        ("padding in the middle", "ZG=U"),
        ("half a byte", "ZGUxZ"),
        ("bits that are not zero", "ZH"),
    ] {
        let result = world.recorder.command("home/command/add", json!({"torrent": text})).await;
        assert_eq!(error_code(&result), "bad_request", "{what}: {result}");
    }
}

#[tokio::test]
async fn one_hash_is_taken_however_it_is_named_on_each_way_in() {
    if !can_run() {
        return;
    }
    let port = free_port().unwrap();
    let http = format!("listen = \"127.0.0.1:{port}\"\ntoken_file = \"token\"");
    let mut world = World::new(Setup { http, ..Setup::default() }).await;
    // As an editor of another system saves it: a byte order mark, and a line break of two bytes.
    let token = world.folder.join("token");
    std::fs::write(&token, "\u{feff}open sesame\r\n").unwrap();
    let config = world.write_config(&[("home", &world.home.url())]);
    let text = std::fs::read_to_string(&config).unwrap();
    let content = Content::file("named", 20_000, 1);
    world.home.load(&content.torrent, false).await.unwrap();
    std::fs::write(&config, text.replace("\"token\"", &format!("{:?}", token.to_str().unwrap()))).unwrap();
    world.bridge = Some(crate::harness::bridge::Bridge::start(&config));
    get_until(port, "/readyz", |ready| ready["ready"] == true).await;
    world.recorder.event("home", "added", content.hash).await;
    let hash = content.hash.to_string();
    let upper = hash.to_uppercase();
    let topic = format!("home/torrent/{hash}/command/label");
    for (topic, chosen) in [
        ("home/command/label", json!({"hash": hash})),
        ("home/command/label", json!({"hash": upper})),
        ("home/command/label", json!({"hashes": hash})),
        ("home/command/label", json!({"hash": [hash]})),
        ("home/command/label", json!({"hashes": [hash], "hash": null})),
        (topic.as_str(), json!({"hash": upper})),
        (topic.as_str(), json!({"hashes": [hash]})),
    ] {
        let label = format!("{:x}", rand::random::<u64>());
        let mut body = chosen.clone();
        body["label"] = json!(label);
        let result = world.recorder.command(topic, body.clone()).await;
        assert_eq!(result["status"], "ok", "{topic} {chosen}: {result}");
        assert_eq!(world.home.get(content.hash, "d.custom1").await.unwrap(), label, "{topic} {chosen}");
        if topic == "home/command/label" {
            body["label"] = json!("http");
            let headers = [("Authorization", "Bearer open sesame"), ("Content-Type", "application/json")];
            let path = "/api/v1/servers/home/commands/label";
            let answer = request(port, "POST", path, &headers, body.to_string().as_bytes()).await;
            assert_eq!(answer.json()["status"], "ok", "{chosen}: {}", answer.json());
        }
    }
    let other = "a".repeat(40);
    for (topic, chosen) in [
        ("home/command/label", json!({"hash": hash, "hashes": [hash]})),
        ("home/command/label", json!({"hash": hash, "filter": {}})),
        ("home/command/label", json!({"hash": ""})),
        ("home/command/label", json!({"hashes": format!("{hash},{other}")})),
        (topic.as_str(), json!({"hash": other})),
        (topic.as_str(), json!({"hashes": [hash, other]})),
        (topic.as_str(), json!({"filter": {}})),
    ] {
        let mut body = chosen.clone();
        body["label"] = json!("never");
        let result = world.recorder.command(topic, body).await;
        assert_eq!(error_code(&result), "bad_request", "{topic} {chosen}: {result}");
    }
    assert_ne!(world.home.get(content.hash, "d.custom1").await.unwrap(), "never");
}

/// The ways in share the reader of bodies; this shows that none changes a body before.
#[tokio::test]
async fn numeric_ids_spellings_of_base64_and_a_hash_are_taken_over_nats_and_http_alike() {
    if !can_run() {
        return;
    }
    let (port, folder) = (free_port().unwrap(), tempfile::tempdir().unwrap());
    let server = NatsServer::start(&nats::programs()[0], folder.path()).await;
    let http = format!("listen = \"127.0.0.1:{port}\"\ntoken = \"open sesame\"");
    let sink = format!("[brokers.bus]\nkind = \"nats\"\nurl = \"{}\"\n", server.url());
    let mut world = World::new(Setup { http, sink, ..Setup::default() }).await;
    let subscriber = Subscriber::listen(&server).await;
    world.start_bridge().await;
    get_until(port, "/readyz", |ready| ready["ready"] == true).await;
    world.bridge().wait_for_log("accepting commands sink=bus").await;
    let over_nats = async |verb: &str, text: &str| {
        body(&subscriber.request(&format!("dtorrent.home.command.{verb}"), text.to_owned()).await)
    };
    let over_http = async |verb: &str, text: &str| {
        let headers = [("Authorization", "Bearer open sesame")];
        let path = format!("/api/v1/servers/home/commands/{verb}");
        request(port, "POST", &path, &headers, text.as_bytes()).await.json()
    };
    for number in 0..spellings(b"x").len() {
        let contents = ["nats", "http"].map(|way| Content::file(&format!("{way}-{number}"), 40_000, number as u64));
        for (content, is_http) in contents.iter().zip([false, true]) {
            let (what, text) = spellings(&content.torrent).swap_remove(number);
            let add = json!({"torrent": text, "start": false}).to_string();
            let result = if is_http { over_http("add", &add).await } else { over_nats("add", &add).await };
            assert_eq!(result["status"], "ok", "{what}, over HTTP: {is_http}: {result}");
            let id = 1_795_984_000 + 2 * number as u64 + u64::from(is_http);
            let label = format!(r#"{{"id": {id}, "hash": "{}", "label": "l{id}"}}"#, content.hash);
            let result = if is_http { over_http("label", &label).await } else { over_nats("label", &label).await };
            assert_eq!((&result["status"], &result["id"]), (&json!("ok"), &json!(id.to_string())), "{result}");
            assert_eq!(world.home.get(content.hash, "d.custom1").await.unwrap(), format!("l{id}"));
            let wrong = r#"{"id": 7.5, "ttl": 300, "hash": "x"}"#;
            let result = if is_http { over_http("pause", wrong).await } else { over_nats("pause", wrong).await };
            assert_eq!((error_code(&result), &result["id"]), (&json!("bad_request"), &json!("7.5")), "{result}");
        }
    }
}
