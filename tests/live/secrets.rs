//! Secrets: what others repeat of them is masked, and announce URLs are shown without their passkeys.

use std::time::Duration;

use dtorrent_peers::InfoHash;
use dtorrent_peers::process::free_port;
use dtorrent_peers::rtorrent::Argument;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::http::{get, request};
use crate::harness::receiver::{Answer, Receiver};
use crate::harness::recorder::{Command, Message, error_code};
use crate::harness::{Setup, World, base64, can_run};

const TOKEN: &str = "a token of more than sixteen characters";
const AUTHORIZATION: (&str, &str) = ("Authorization", "Bearer a token of more than sixteen characters");
const PASSKEY: &str = "0123456789abcdef-passkey";

/// Returns everything that shows a problem: the log, the page and the API with and without the token, and what was
/// published.
async fn shown(world: &mut World, port: u16) -> Vec<(&'static str, String)> {
    let mut shown = vec![("log", world.bridge().log())];
    for path in ["/", "/readyz", "/api/v1/servers", "/api/v1/sinks", "/metrics", "/api/v1/servers/home/torrents"] {
        shown.push((path, get(port, path).await.body));
        shown.push((path, request(port, "GET", path, &[AUTHORIZATION], b"").await.body));
    }
    // The commands of the test itself have what they name.
    let published = world.recorder.all().into_iter().filter(|message| !message.topic.contains("/command/"));
    let published: Vec<String> = published.map(|message| message.text()).collect();
    shown.push(("published", published.join("\n")));
    shown
}

fn assert_hidden(shown: &[(&'static str, String)], secrets: &[&str]) {
    for (place, text) in shown {
        for secret in secrets {
            let line = text.lines().find(|line| line.contains(secret));
            assert!(line.is_none(), "{place} shows {secret}: {}", line.unwrap_or_default());
        }
    }
}

#[tokio::test]
async fn what_a_webhook_receiver_repeats_of_the_request_is_masked_everywhere() {
    if !can_run() {
        return;
    }
    let receiver = Receiver::start().await;
    receiver.answer(|request| if request.path.starts_with("/gone") { Answer::Echo(410) } else { Answer::Echo(500) });
    let (http, port) = (receiver.port, free_port().unwrap());
    let sink = format!(
        "[webhooks.echo]\nurl = \"http://127.0.0.1:{http}/echo/path%20sesame?key=query-sesame\"\n\
         username = \"me\"\npassword = \"password sesame\"\n\
         secret = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"\n\
         [webhooks.echo.headers]\nX-Api-Key = \"header-sesame\"\n\
         [webhooks.gone]\nurl = \"http://127.0.0.1:{http}/gone/path-sesame\"\ntoken = \"token-sesame\"\n"
    );
    let http = format!("listen = \"127.0.0.1:{port}\"\ntoken = \"{TOKEN}\"");
    let mut world = World::running(Setup { sink, http, ..Setup::default() }).await;
    let basic = base64(b"me:password sesame");
    let secrets = ["sesame", basic.as_str(), "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"];
    // Health is published every 30 seconds.
    let has_both = |all: &[Message]| {
        let health = all.iter().filter(|message| message.topic.ends_with("/health"));
        health.map(Message::json).find(|health| {
            let sinks = &health["sinks"];
            sinks["echo.home"]["problem"].is_string() && !sinks["gone.home"]["notes"][0].is_null()
        })
    };
    let health = world.recorder.wait_within(Duration::from_secs(60), "both problems in the health", has_both).await;
    let problem = health["sinks"]["echo.home"]["problem"].as_str().unwrap();
    assert!(problem.starts_with("the endpoint answers 500: no route ***"), "{problem}");

    let shown = shown(&mut world, port).await;
    assert_hidden(&shown, &secrets);
    // Those without the token do not see what others said at all.
    for (place, text) in &shown {
        let with_token = shown.iter().filter(|(other, _)| other == place).nth(1).is_some_and(|(_, with)| with == text);
        let is_quoted = text.contains("no route");
        match *place {
            "/" | "/readyz" | "/api/v1/sinks" => assert_eq!(is_quoted, with_token, "{place}: {text}"),
            "log" | "published" => assert!(is_quoted, "{place}: {text}"),
            _ => assert!(!is_quoted, "{place}: {text}"),
        }
    }
    for arguments in [&["dead-letters", "list"][..], &["dead-letters", "list", "--json"]] {
        let (code, out, err) = world.ask(arguments, &[]).await;
        assert!(code == 0 && out.contains("no route"), "{code} {out} {err}");
        assert_hidden(&[("dead-letters", out), ("dead-letters", err)], &secrets);
    }
    let (_, out, err) = world.ask(&["dead-letters", "replay", "gone", "--all"], &[]).await;
    assert_hidden(&[("replay", out), ("replay", err)], &secrets);
}

/// Answers each connection with what `answer` makes of the first bytes that it sends.
#[allow(clippy::disallowed_methods)] // a test's own tasks, gone with its runtime
async fn serve(greeting: &'static [u8], answer: fn(&[u8]) -> Vec<u8>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let talk = async move |mut stream: TcpStream| {
        let mut asked = vec![0; 8192];
        stream.write_all(greeting).await?;
        let length = stream.read(&mut asked).await?;
        stream.write_all(&answer(&asked[..length])).await?;
        stream.shutdown().await?;
        // Until the other side has read it and closes.
        stream.read(&mut asked).await.map(drop)
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ended = talk(stream).await;
        }
    });
    port
}

/// Returns what follows `start` in a request, up to `end`.
fn between<'a>(text: &'a str, start: &str, end: char) -> &'a str {
    text.split_once(start).and_then(|(_, rest)| rest.split(end).next()).unwrap_or_default()
}

#[tokio::test]
async fn what_a_broker_or_a_front_of_a_client_repeats_of_a_login_is_masked() {
    if !can_run() {
        return;
    }
    // MQTT 5 §3.2 and §3.14: CONNACK, then DISCONNECT, not authorized, with a reason string.
    let mqtt = serve(b"", |asked| {
        let text = String::from_utf8_lossy(asked);
        let password = text.find("broker sesame").map_or("", |at| &text[at..at + 13]);
        let reason = format!("no user with the password {password}");
        let length = u8::try_from(reason.len()).unwrap();
        [&[0x20, 3, 0, 0, 0, 0xe0, 5 + length, 0x87, 3 + length, 0x1f, 0, length], reason.as_bytes()].concat()
    })
    .await;
    let nats = serve(
        b"INFO {\"server_id\":\"x\",\"version\":\"2.10.0\",\"max_payload\":1048576,\"headers\":true}\r\n",
        |asked| {
            let text = String::from_utf8_lossy(asked);
            format!("-ERR 'Authorization Violation of {}'\r\n", between(&text, "\"auth_token\":\"", '"')).into_bytes()
        },
    )
    .await;
    // Not an error page, of which nothing is quoted, but a fault as rTorrent itself would answer.
    let front = serve(b"", |asked| {
        let text = String::from_utf8_lossy(asked);
        let at = text.to_lowercase().find("authorization: ").unwrap_or_default();
        let given = between(&text[at..], ": ", '\r');
        let body = format!(
            "<?xml version=\"1.0\"?><methodResponse><fault><value><struct><member><name>faultCode</name><value><int>-1\
             </int></value></member><member><name>faultString</name><value><string>{}not allowed with {given}</string>\
             </value></member></struct></value></fault></methodResponse>",
            ".".repeat(100)
        );
        let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: {}", body.len());
        format!("{head}\r\n\r\n{body}").into_bytes()
    })
    .await;
    // A program that names a secret on stderr and in an answer that is none.
    let program = "echo cannot log in with front sesame >&2; read line; echo {front sesame; exec cat > /dev/null";
    let port = free_port().unwrap();
    let setup = Setup {
        sink: format!(
            "[brokers.m]\nkind = \"mqtt\"\nversion = \"5\"\nurl = \"mqtt://127.0.0.1:{mqtt}\"\nusername = \"me\"\n\
             password = \"broker sesame\"\n\
             [brokers.n]\nkind = \"nats\"\nurl = \"nats://127.0.0.1:{nats}\"\ntoken = \"nats-sesame\"\n\
             [servers.program]\nclient = \"exec\"\ncommand = [\"/bin/sh\", \"-c\", '''{program}''']\n\
             [servers.front]\nclient = \"rtorrent\"\nurl = \"http://127.0.0.1:{front}/RPC2\"\nusername = \"me\"\n\
             password = \"front sesame\"\n"
        ),
        http: format!("listen = \"127.0.0.1:{port}\"\ntoken = \"{TOKEN}\""),
        ..Setup::default()
    };
    let mut world = World::running(setup).await;
    world.bridge().wait_for_log("client program").await;
    for sign in ["sink=m", "sink=n", "server=front", "server=program"] {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let ready = request(port, "GET", "/readyz", &[AUTHORIZATION], b"").await.json();
            let component = sign.split_once('=').unwrap().1;
            let mut components = [&ready["sinks"][component], &ready["servers"][component]].into_iter();
            let problem = components.find_map(|one| one["problem"].as_str()).unwrap_or_default().to_owned();
            if !problem.is_empty() && !problem.ends_with("yet") {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "{sign}: {ready}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        world.bridge().wait_for_log(sign).await;
    }
    let basic = base64(b"me:front sesame");
    let shown = shown(&mut world, port).await;
    assert_hidden(&shown, &["sesame", &basic]);
    assert!(shown[0].1.contains("***"), "something was masked: {}", shown[0].1);
}

/// A torrent with two trackers of one host, whose URLs have a passkey, and one without a secret.
fn tracked(name: &str) -> (InfoHash, Vec<u8>, [String; 3]) {
    let urls = [
        format!("http://127.0.0.1:9/{PASSKEY}/announce"),
        format!("http://127.0.0.1:9/announce?passkey={PASSKEY}2"),
        "udp://127.0.0.2:9".to_owned(),
    ];
    let builder = urls
        .iter()
        .fold(dtorrent::model::MetainfoBuilder::single(name, 16384), |builder, url| builder.tracker(url.clone()));
    let torrent = builder.content(b"content").build();
    (InfoHash::of_torrent(&torrent).unwrap(), torrent, urls)
}

/// Returns the announce URLs that `get` shows, in the order of the torrent.
fn urls_of(result: &Value) -> Vec<String> {
    let trackers = result["results"][0]["torrent"]["trackers"].as_array().unwrap_or_else(|| panic!("{result}"));
    let urls = trackers.iter().map(|tracker| tracker["url"].as_str().unwrap().to_owned());
    urls.filter(|url| url != "dht://").collect()
}

#[tokio::test]
async fn announce_urls_are_shown_as_host_and_fingerprint_and_may_be_named_so() {
    if !can_run() {
        return;
    }
    let port = free_port().unwrap();
    let setup = Setup {
        sink: "commands = [\"*\"]".to_owned(),
        http: format!("listen = \"127.0.0.1:{port}\"\ntoken = \"{TOKEN}\""),
        ..Setup::default()
    };
    let mut world = World::new(setup).await;
    let (hash, torrent, urls) = tracked("tracked");
    world.home.load(&torrent, false).await.unwrap();
    world.start_bridge().await;
    let (get_topic, topic) =
        (format!("home/torrent/{hash}/command/get"), format!("home/torrent/{hash}/command/trackers"));
    let listed = world.recorder.command(&get_topic, json!({"trackers": true})).await;
    let names = urls_of(&listed);
    let is_name = |name: &&String| {
        let fingerprint = name.strip_prefix("127.0.0.1#").or_else(|| name.strip_prefix("127.0.0.2#"));
        fingerprint.is_some_and(|text| text.len() == 6 && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    assert!(names.len() == 3 && names.iter().all(|name| is_name(&name)) && names[0] != names[1], "{names:?}");
    let path = format!("/api/v1/servers/home/torrents/{hash}/commands/get");
    let over_http = request(port, "POST", &path, &[AUTHORIZATION], b"{\"trackers\": true}").await.json();
    assert_eq!(urls_of(&over_http), names, "the same from everywhere");

    for (body, expected) in [
        (json!({"disable": [names[1]]}), "ok"),
        (json!({"enable": [names[1]], "disable": [names[0]]}), "ok"),
        (json!({"enable": [urls[0]]}), "ok"),
        (json!({"disable": ["127.0.0.1#000000"]}), "precondition"),
        (json!({"add": [names[0]]}), "bad_request"),
        (json!({"disable": ["http://127.0.0.1:9/announce?passkey=another"]}), "precondition"),
        (json!({"remove": [names[0]]}), "unsupported"),
    ] {
        let result = world.recorder.command(&topic, body.clone()).await;
        let shown = if result["status"] == "ok" { &result["status"] } else { error_code(&result) };
        assert_eq!(*shown, expected, "{body}: {result}");
        assert!(!result.to_string().contains(PASSKEY) && !result.to_string().contains("another"), "{result}");
    }
    let rpc_hash = hash.to_rpc();
    let columns = [&rpc_hash[..], "", "t.is_enabled="].map(Argument::Text);
    assert_eq!(world.home.rpc.call("t.multicall", &columns).await.unwrap()[..2], ["1", "1"]);
    // A restart does not change the names. The command waits at the broker until the bridge is back.
    world.bridge().restart();
    let again = world.recorder.command(&get_topic, json!({"trackers": true})).await;
    assert_eq!(urls_of(&again), names);
    assert_hidden(&shown(&mut world, port).await, &[PASSKEY]);
}

#[tokio::test]
async fn whole_announce_urls_are_for_sinks_and_tokens_with_the_right_to_them() {
    if !can_run() {
        return;
    }
    let port = free_port().unwrap();
    let setup = Setup {
        sink: "commands = [\"get\", \"secrets\"]".to_owned(),
        http: format!("listen = \"127.0.0.1:{port}\"\ntoken = \"{TOKEN}\"\ncommands = [\"*\"]"),
        ..Setup::default()
    };
    let mut world = World::new(setup.clone()).await;
    let (hash, torrent, urls) = tracked("whole");
    world.home.load(&torrent, false).await.unwrap();
    world.start_bridge().await;
    let topic = format!("home/torrent/{hash}/command/get");
    let listed = world.recorder.command(&topic, json!({"id": "whole", "trackers": true})).await;
    assert_eq!(urls_of(&listed), urls);
    let path = format!("/api/v1/servers/home/torrents/{hash}/commands/get");
    let over_http = async |body: &str| request(port, "POST", &path, &[AUTHORIZATION], body.as_bytes()).await;
    let masked = over_http("{\"trackers\": true}").await;
    assert!(!masked.body.contains(PASSKEY) && masked.status == 200, "{}", masked.body);
    // The result of another sink's command is not to be had by its id.
    let repeated = over_http("{\"id\": \"whole\", \"trackers\": true}").await;
    assert!(!repeated.body.contains(PASSKEY), "{}", repeated.body);
    assert_eq!(repeated.json()["error"]["code"], "bad_request", "{}", repeated.body);
    // Who reads the client itself sees them whole.
    let (code, out, _) = world.ask(&["trackers", &hash.to_string()], &[]).await;
    assert!(code == 0 && out.contains(PASSKEY), "{out}");
}

#[tokio::test]
async fn a_sender_with_the_right_sees_whole_announce_urls_also_after_a_crash_of_the_bridge() {
    if !can_run() {
        return;
    }
    let sink = "commands = [\"get\", \"secrets\"]".to_owned();
    let mut world = World::new(Setup { sink, server: "timeout = \"1s\"".to_owned(), ..Setup::default() }).await;
    let (hash, torrent, urls) = tracked("whole");
    world.home.load(&torrent, false).await.unwrap();
    world.start_bridge().await;
    world.home.process().pause().unwrap();
    let body = json!({"id": "crash", "trackers": true});
    let topic = format!("dtorrent/home/torrent/{hash}/command/get");
    world.recorder.send(Command::new(&topic, body.to_string())).await;
    world.database().until("the command is in the log", |database| database.unfinished_commands() == 1).await;
    world.bridge().restart();
    world.home.process().unpause().unwrap();
    let result = world.recorder.result("crash").await;
    assert_eq!(urls_of(&result), urls, "{result}");
}

/// A tracker that refuses, and repeats in its reason what it was asked.
async fn refusing_tracker() -> u16 {
    serve(b"", |asked| {
        let text = String::from_utf8_lossy(asked);
        let path = between(&text, "GET ", '?');
        let reason = format!("unregistered: http://tracker.example{path} and https%3A%2F%2Ftracker.example{path}");
        let body = format!("d14:failure reason{}:{reason}e", reason.len());
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    })
    .await
}

#[tokio::test]
async fn urls_in_messages_columns_and_errors_are_shown_without_what_may_be_a_passkey() {
    if !can_run() {
        return;
    }
    let (port, tracker) = (free_port().unwrap(), refusing_tracker().await);
    let setup = Setup {
        server: "[servers.home.extra]\nsource = \"d.custom=source\"\n".to_owned(),
        http: format!("listen = \"127.0.0.1:{port}\"\ntoken = \"{TOKEN}\""),
        ..Setup::default()
    };
    let mut world = World::new(setup).await;
    let url = format!("http://127.0.0.1:{tracker}/{PASSKEY}/announce");
    let builder = dtorrent::model::MetainfoBuilder::single("refused", 16384).tracker(url);
    let torrent = builder.content(b"content").build();
    let hash = world.home.load(&torrent, true).await.unwrap();
    let link = format!("https://tracker.example/download.php?id=7&passkey={PASSKEY}");
    world.home.act(hash, "d.custom.set", &[Argument::Text("source"), Argument::Text(&link)]).await.unwrap();
    world.start_bridge().await;
    let state = format!("dtorrent/home/torrent/{hash}/state");
    let shows = |all: &[Message]| {
        let states = all.iter().filter(|message| message.topic == state).map(Message::json);
        states.into_iter().find(|torrent| {
            torrent["message"].as_str().is_some_and(|text| text.contains("unregistered"))
                && torrent["extra"]["source"].is_string()
        })
    };
    let torrent = world.recorder.wait_within(Duration::from_secs(60), "the tracker's reason", shows).await;
    assert_eq!(torrent["extra"]["source"], "https://tracker.example/…");
    let message = torrent["message"].as_str().unwrap();
    assert!(message.contains("http://tracker.example/…"), "{message}");

    let magnet = format!("magnet:?xt=urn:btih:{}&tr=http%3A%2F%2Ftracker.example%2F{PASSKEY}", "zz".repeat(20));
    for body in [
        json!({"url": format!("http://127.0.0.1:{tracker}/{PASSKEY}/get.torrent?passkey={PASSKEY}")}),
        json!({"url": format!("http://127.0.0.1:1/{PASSKEY}")}),
        json!({"magnet": magnet}),
        json!({"file": format!("http://127.0.0.1:1/{PASSKEY}")}),
    ] {
        let result = world.recorder.command("home/command/add", body.clone()).await;
        assert_eq!(result["status"], "error", "{body}: {result}");
        assert!(!result.to_string().contains(PASSKEY), "{body}: {result}");
    }
    let shown = shown(&mut world, port).await;
    assert_hidden(&shown, &[PASSKEY]);
}
