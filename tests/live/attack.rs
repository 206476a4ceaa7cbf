//! Attacks by a client that may publish commands: each is answered, and has no other effect.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::harness::recorder::{Command, Message};
use crate::harness::{Setup, World, can_run};

/// A setup with every right, and two torrents as targets.
async fn target() -> (World, [Content; 2]) {
    let setup = Setup {
        sink: "commands = [\"*\", \"log_level\"]".to_owned(),
        server: "rpc = [\"system.pid\"]".to_owned(),
        ..Setup::default()
    };
    let mut world = World::new(setup).await;
    let contents = [Content::file("target.iso", 50_000, 1), Content::folder("target", &[("a", 40_000)], 2)];
    for content in &contents {
        content.write_to(&world.home.downloads).unwrap();
        world.home.load(&content.torrent, true).await.unwrap();
        world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
    }
    std::fs::create_dir(world.folder.join("outside")).unwrap();
    std::fs::write(world.folder.join("outside/secret"), b"secret").unwrap();
    std::os::unix::fs::symlink(world.folder.join("outside"), world.home.downloads.join("way-out")).unwrap();
    world.start_bridge().await;
    (world, contents)
}

/// Returns all paths below a folder, with the content of files. Links are not followed.
fn tree(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let kind = path.symlink_metadata().unwrap();
        let bytes = if kind.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
        found.insert(path.display().to_string(), bytes);
        if kind.is_dir() {
            found.extend(tree(&path));
        }
    }
    found
}

/// Texts with a meaning to a shell, rTorrent, JSON, XML, a file system or MQTT.
fn evil_texts(marker: &Path) -> Vec<String> {
    let marker = marker.display();
    let mut texts: Vec<String> = [
        "\"",
        "'",
        "`",
        ",",
        ";",
        "\\",
        "{",
        "}",
        "{{{{",
        "$",
        "%s%n",
        "\n",
        "\r\n",
        "\t",
        "\u{0}",
        "\u{1b}[2J",
        "\u{7f}",
        "\u{fffd}",
        "\u{202e}",
        "🦀",
        "../",
        "../../../../etc/passwd",
        "/etc",
        "/",
        ".",
        "",
        " ",
        "+",
        "#",
        "$SYS",
        "</string>",
        "<![CDATA[",
        "&x;",
        "-1",
        "NaN",
        "1e400",
        "null",
        "[]",
    ]
    .map(str::to_owned)
    .to_vec();
    texts.extend([
        format!("$execute.capture={{touch,{marker}}}"),
        format!("$execute.throw=touch,{marker}"),
        format!("\"$execute={{touch,{marker}}}\""),
        format!("x;execute.throw=touch,{marker}"),
        format!("x\";execute.throw=\"touch\",\"{marker}\";\""),
        format!("x\nexecute.throw=touch,{marker}"),
        format!("$(touch {marker})"),
        format!("`touch {marker}`"),
        format!("\u{0};touch {marker}"),
        "x".repeat(1 << 20),
        "{".repeat(100_000),
        "\u{1F980}".repeat(10_000),
    ]);
    texts
}

fn bodies(marker: &Path, outside: &Path) -> Vec<(&'static str, Vec<u8>)> {
    let mut bodies: Vec<(&'static str, Vec<u8>)> = Vec::new();
    for text in evil_texts(marker) {
        for (verb, body) in [
            ("label", json!({"label": text})),
            ("throttle", json!({"throttle": text})),
            ("move", json!({"directory": text})),
            ("add", json!({"magnet": format!("magnet:?xt=urn:btih:{}&dn={text}", "ab".repeat(19) + "zz")})),
            ("add", json!({"torrent": text, "label": text})),
            ("add", json!({"file": text})),
            ("add", json!({"url": text})),
            ("list", json!({"filter": {"name": text}})),
            ("list", json!({"filter": {"label": text}, "fields": [text]})),
            ("pause", json!({"if_status": text})),
            ("pause", json!({"reply_to": text})),
            ("rpc", json!({"method": text, "params": [text]})),
            ("log_level", json!({"level": text})),
        ] {
            bodies.push((verb, body.to_string().into_bytes()));
        }
        bodies.push(("pause", text.clone().into_bytes()));
        bodies.push(("add", text.into_bytes()));
    }
    let deep = |open: &str, close: &str| (open.repeat(100_000) + &close.repeat(100_000)).into_bytes();
    let base64 = base64::engine::general_purpose::STANDARD.encode(vec![b'd'; 6 << 20]);
    let keys: String = (0..200_000).map(|n| format!("8:k{n:07}i1e")).collect();
    for body in [
        deep("[", "]"),
        deep("{\"a\":", "}"),
        deep("l", "e"),
        deep("d1:a", "e"),
        format!("{{\"torrent\": \"{base64}\"}}").into_bytes(),
        format!("d4:infod{keys}ee").into_bytes(),
        b"d99999999999999999999:".to_vec(),
        b"d4:info18446744073709551615:".to_vec(),
        b"d4:infod6:lengthi-9223372036854775808e4:name1:x12:piece lengthi1e6:pieces0:ee".to_vec(),
        b"d4:infod6:lengthi9223372036854775807e4:name1:x12:piece lengthi16384e6:pieces0:ee".to_vec(),
        b"d4:infod4:name2:..6:lengthi1e12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaaee".to_vec(),
        vec![0xff; 100_000],
        vec![0; 100_000],
        b"{\"priority\": 99999999999999999999999, \"page\": 1e999}".to_vec(),
        b"{\"label\": \"a\", \"label\": \"b\", \"id\": \"x\", \"id\": 7}".to_vec(),
        b"{\"hashes\": {}, \"filter\": []}".to_vec(),
        b"{\"hashes\": [null, 1, {}]}".to_vec(),
        b"{\"files\": [-1], \"priority\": []}".to_vec(),
        b"{\"download_limit\": -9223372036854775809}".to_vec(),
        b"{\"ttl\": \"99999999999999999999y\"}".to_vec(),
        b"{\"from_seq\": 18446744073709551616}".to_vec(),
    ] {
        for verb in ["add", "pause", "label", "list", "file_priority", "limits", "resync"] {
            bodies.push((verb, body.clone()));
        }
    }
    for url in [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "gopher://x/",
        "http://169.254.169.254/latest/meta-data",
        "data:,x",
        "magnet:?",
    ] {
        bodies.push(("add", json!({"url": url}).to_string().into_bytes()));
        bodies.push(("add", url.as_bytes().to_vec()));
    }
    for file in ["secret", "../outside/secret", "x\u{0}y"] {
        for key in ["file", "data_file", "directory"] {
            bodies.push(("add", json!({key: outside.join(file), "torrent": "ZGU="}).to_string().into_bytes()));
        }
    }
    bodies.push(("move", json!({"directory": outside, "data": true}).to_string().into_bytes()));
    bodies
}

fn is_result(message: &Message) -> bool {
    message.topic == "dtorrent/home/result" || message.topic == "dtorrent/bridge/main/result"
}

async fn answered(world: &World, mark: usize, count: usize) {
    let what = format!("{count} results");
    let enough =
        |all: &[Message]| (all[mark..].iter().filter(|message| is_result(message)).count() >= count).then_some(());
    world.recorder.wait_within(Duration::from_secs(120), &what, enough).await;
}

/// Asserts that nothing was executed, no file outside was touched, and both torrents are unchanged.
async fn assert_unharmed(world: &World, contents: &[Content], before: &BTreeMap<String, Vec<u8>>, marker: &Path) {
    assert!(marker.symlink_metadata().is_err(), "a command ran");
    assert_eq!(tree(&world.folder.join("outside")), *before, "something outside was touched");
    let hashes: BTreeSet<InfoHash> = world.home.hashes().await.unwrap().into_iter().collect();
    for content in contents {
        assert!(hashes.contains(&content.hash));
        for (path, bytes) in &content.files {
            assert_eq!(std::fs::read(world.home.downloads.join(path)).unwrap(), *bytes, "{path}");
        }
    }
}

#[tokio::test]
async fn a_hostile_command_body_is_answered_and_has_no_other_effect() {
    if !can_run() {
        return;
    }
    let (mut world, contents) = target().await;
    let (marker, outside) = (world.folder.join("owned"), world.folder.join("outside"));
    let before = tree(&outside);
    let bodies = bodies(&marker, &outside);
    let mark = world.recorder.mark();
    let mut sent = 0;
    for (number, (verb, body)) in bodies.iter().enumerate() {
        // On the topics of a torrent, a server and the bridge in turn.
        let topic = match number % 5 {
            0 => format!("dtorrent/home/command/{verb}"),
            1 if *verb != "add" => format!("dtorrent/bridge/main/command/{verb}"),
            _ if *verb == "add" || *verb == "list" => format!("dtorrent/home/command/{verb}"),
            _ => format!("dtorrent/home/torrent/{}/command/{verb}", contents[number % 2].hash),
        };
        world.recorder.send(Command::new(&topic, body.clone())).await;
        sent += 1;
        // One result each. In batches, so that the recorder can name a missing one.
        if sent % 100 == 0 {
            answered(&world, mark, sent).await;
        }
    }
    answered(&world, mark, sent).await;
    let result = world.recorder.command("home/command/list", Value::Null).await;
    assert_eq!((&result["status"], &result["total"]), (&json!("ok"), &json!(2)), "{result}");
    let results = world.recorder.since(mark).iter().filter(|message| is_result(message)).count();
    assert_eq!(results, sent + 1, "each has one answer");
    assert_unharmed(&world, &contents, &before, &marker).await;
    assert!(world.bridge().process().exit_status().unwrap().is_none(), "the bridge still runs");
    world.recorder.assert_gap_free("home");
}

#[tokio::test]
async fn no_topic_makes_the_bridge_answer_where_it_must_not() {
    if !can_run() {
        return;
    }
    let (world, contents) = target().await;
    let mark = world.recorder.mark();
    let long = "x".repeat(60_000);
    let hash = contents[0].hash;
    for topic in [
        format!("dtorrent/home/command/{long}"),
        format!("dtorrent/home/torrent/{long}/command/pause"),
        format!("dtorrent/home/torrent/{hash}/command/\u{fffd}"),
        format!("dtorrent/home/torrent/{}/command/pause", "../".repeat(3).replace('/', "%2f")),
        "dtorrent/home/command/execute.throw".to_owned(),
        "dtorrent/home/command/pause;stop".to_owned(),
    ] {
        let at = world.recorder.mark();
        world.recorder.send(Command::new(&topic, "")).await;
        answered(&world, at, 1).await;
    }
    for response in [
        format!("dtorrent/home/torrent/{hash}/command/stop"),
        format!("dtorrent/home/torrent/{hash}/event/removed"),
        "dtorrent/home/status".to_owned(),
        "$SYS/broker/x".to_owned(),
    ] {
        let topic = format!("dtorrent/home/torrent/{hash}/command/get");
        let mut command = Command::new(&topic, "{}");
        command.properties =
            PublishProperties { response_topic: Some(response.clone()), ..PublishProperties::default() };
        let at = world.recorder.mark();
        world.recorder.send(command).await;
        answered(&world, at, 1).await;
        let body = json!({"reply_to": response}).to_string();
        world.recorder.send(Command::new(&topic, body)).await;
        answered(&world, at, 2).await;
    }
    world.recorder.command("home/command/list", Value::Null).await;
    let is_ours = |message: &&Message| message.json()["schema"] == "dtorrent.result/1";
    for message in world.recorder.since(mark).iter().filter(is_ours) {
        assert_eq!(message.topic, "dtorrent/home/result");
    }
    assert_eq!(world.home.get(hash, "d.is_active").await.unwrap(), "1", "no answer stopped it");
}

#[tokio::test]
#[allow(clippy::disallowed_methods)] // a test's own task, gone with its runtime
async fn a_redirect_to_an_internal_address_is_not_followed() {
    if !can_run() {
        return;
    }
    let (world, _) = target().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut count = 0;
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap_or(0);
            let path = String::from_utf8_lossy(&request[..length]).split(' ').nth(1).unwrap_or_default().to_owned();
            count += 1;
            let to = match path.as_str() {
                "/metadata" => "http://169.254.169.254/latest/meta-data/".to_owned(),
                "/mapped" => "http://[::ffff:169.254.169.254]/".to_owned(),
                "/file" => "file:///etc/passwd".to_owned(),
                _ => format!("/loop-{count}"),
            };
            let answer =
                format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            drop(stream.write_all(answer.as_bytes()).await);
        }
    });
    for (path, code) in
        [("metadata", "forbidden"), ("mapped", "forbidden"), ("file", "bad_request"), ("loop", "bad_request")]
    {
        let result =
            world.recorder.command("home/command/add", json!({"url": format!("http://{address}/{path}")})).await;
        assert_eq!(result["status"], "error", "{path}: {result}");
        assert_eq!(result["error"]["code"], code, "{path}: {result}");
    }
    assert_eq!(world.home.hashes().await.unwrap().len(), 2);
}

/// A client with its own connection that sends as fast as the broker accepts.
struct Flood {
    sent: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Flood {
    /// Sends until this many commands are sent, or this time has passed.
    #[allow(clippy::disallowed_methods)] // a test's own tasks
    fn begin(port: u16, torrents: Vec<InfoHash>, count: usize, time: Duration) -> Self {
        const VERBS: [&str; 8] = ["pause", "resume", "stop", "start", "announce", "recheck", "label", "explode"];
        let mut options = MqttOptions::new("flood", "127.0.0.1", port);
        options.set_keep_alive(Duration::from_secs(600)).set_outgoing_inflight_upper_limit(1000);
        let (client, mut connection) = AsyncClient::new(options, 1000);
        let (sent, accepted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (sending, accepting) = (Arc::clone(&sent), Arc::clone(&accepted));
        let sender = tokio::spawn(async move {
            let began = Instant::now();
            for number in 0..count {
                if began.elapsed() > time {
                    return;
                }
                let (hash, verb) = (torrents[number % torrents.len()], VERBS[(number / torrents.len()) % VERBS.len()]);
                let topic = format!("dtorrent/home/torrent/{hash}/command/{verb}");
                let id = format!("flood-{number}");
                let mut body = json!({"id": id, "ttl": "20s"});
                if verb == "label" {
                    body["label"] = json!("x");
                }
                client.publish(topic, QoS::AtLeastOnce, false, body.to_string()).await.unwrap();
                sending.fetch_add(1, Ordering::SeqCst);
            }
        });
        let poller = tokio::spawn(async move {
            while let Ok(event) = connection.poll().await {
                if matches!(event, Event::Incoming(Packet::PubAck(_))) {
                    accepting.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Self { sent, accepted, tasks: vec![sender, poller] }
    }

    /// Returns the number of commands that the broker accepted.
    fn over(&self) -> Option<usize> {
        let sent = self.sent.load(Ordering::SeqCst);
        (self.tasks[0].is_finished() && self.accepted.load(Ordering::SeqCst) == sent).then_some(sent)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// Labels a torrent, and waits for its result. Each received message is read once, because there are very many.
async fn command_in_flood(world: &World, topic: &str, label: &str) -> Value {
    let mut at = world.recorder.mark();
    let id = format!("id of {label}");
    world.recorder.send(Command::new(topic, json!({"id": id, "label": label, "ttl": "5m"}).to_string())).await;
    let find = |all: &[Message]| {
        let from = std::mem::replace(&mut at, all.len());
        let mut results = all[from..].iter().filter(|message| is_result(message));
        results.find(|message| message.text().contains(&id)).map(Message::json)
    };
    world.recorder.wait_within(Duration::from_secs(300), &id, find).await
}

/// Runs for `ATTACK_SECONDS`, and prints its figures to stderr.
#[tokio::test]
async fn a_flood_of_commands_is_answered_one_by_one_and_others_are_served() {
    if !can_run() {
        return;
    }
    let seconds = std::env::var("ATTACK_SECONDS").ok().and_then(|text| text.parse().ok());
    let (count, time) = seconds.map_or((3_000, Duration::from_secs(60)), |s| (usize::MAX, Duration::from_secs(s)));
    let mut setup = Setup { sink: "commands = [\"*\"]".to_owned(), ..Setup::default() };
    // Commands that the broker drops get no result.
    setup.broker.lines.extend(["max_queued_messages 0".to_owned(), "max_inflight_messages 1000".to_owned()]);
    let mut world = World::new(setup).await;
    let contents: Vec<_> = (1..=5).map(|n| Content::file(&format!("flooded-{n}"), 20_000, n)).collect();
    for content in &contents {
        content.write_to(&world.home.downloads).unwrap();
        world.home.load(&content.torrent, true).await.unwrap();
        world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
    }
    world.start_bridge().await;
    let mark = world.recorder.mark();
    let began = Instant::now();
    let flooded = contents[..4].iter().map(|content| content.hash).collect();
    let flood = Flood::begin(world.broker.port, flooded, count, time);
    let mut waits = Vec::new();
    let sent = loop {
        let asked = Instant::now();
        let topic = format!("home/torrent/{}/command/label", contents[4].hash);
        let label = format!("other {}", waits.len());
        let result = command_in_flood(&world, &format!("dtorrent/{topic}"), &label).await;
        assert_eq!(result["status"], "ok", "one that is not flooded is served: {result}");
        waits.push(asked.elapsed());
        if let Some(sent) = flood.over() {
            break sent;
        }
    };
    let sending = began.elapsed();
    let (mut at, mut results) = (mark, 0);
    let enough = |all: &[Message]| {
        results += all[at..].iter().filter(|message| is_result(message)).count();
        at = all.len();
        (results >= sent + waits.len()).then_some(())
    };
    world.recorder.wait_within(Duration::from_secs(600), "a result for each", enough).await;
    let answered = began.elapsed();
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    let mut statuses: BTreeMap<String, usize> = BTreeMap::new();
    for result in world.recorder.since(mark).iter().filter(|message| is_result(message)).map(Message::json) {
        *answers.entry(result["id"].as_str().unwrap().to_owned()).or_default() += 1;
        *statuses.entry(format!("{} {}", result["status"], result["error"]["code"])).or_default() += 1;
    }
    assert_eq!(answers.len(), sent + waits.len());
    assert!(answers.values().all(|count| *count == 1), "one answer each");
    waits.sort();
    let peak = world.bridge().peak_bytes();
    assert!(peak < 400 << 20, "{peak} bytes of memory");
    eprintln!(
        "{sent} commands in {sending:?} ({:.0}/s), all answered after {answered:?} ({:.0}/s); {} others: p50 {:?}, \
         p99 {:?}, max {:?}; at most {} MiB; {statuses:?}",
        sent as f64 / sending.as_secs_f64(),
        sent as f64 / answered.as_secs_f64(),
        waits.len(),
        waits[waits.len() / 2],
        waits[waits.len() * 99 / 100],
        waits[waits.len() - 1],
        peak >> 20
    );
    assert_eq!(world.home.hashes().await.unwrap().len(), 5, "rTorrent still runs");
    world.recorder.assert_gap_free("home");
}
