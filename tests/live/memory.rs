//! The memory that commands may take, and what becomes of one that may have taken the bridge with it.

use std::collections::BTreeMap;
use std::time::Duration;

use dtorrent_peers::process::TIMEOUT;
use serde_json::{Value, json};
use sha1::Digest as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::harness::database::StateDatabase;
use crate::harness::nats::until;
use crate::harness::receiver::{Answer, Receiver};
use crate::harness::recorder::{Command, Message};
use crate::harness::{Setup, World, base64, can_run, http};

const HASH: &str = "3f786850e387550fdab836ed7e6dc881de23001b";
/// Peak memory of a bridge without work, in a debug build.
pub const IDLE_BYTES: u64 = 64 << 20;

pub fn with_memory(bytes_mib: u64, setup: Setup) -> Setup {
    let launcher = ["env".to_owned(), format!("DTORRENT_MEMORY_MAX={bytes_mib}MiB")];
    Setup { launcher: launcher.to_vec(), ..setup }
}

fn unknown_hashes(number: usize) -> Vec<String> {
    (0..10_000).map(|hash| format!("{:040x}", number * 10_000 + hash + (1 << 60))).collect()
}

fn parts(all: &[Message], id: &str) -> Vec<Value> {
    let results = all.iter().filter(|message| message.topic == "dtorrent/home/result").map(Message::json);
    results.filter(|result| result["id"] == id).collect()
}

#[tokio::test]
async fn a_flood_of_commands_for_unknown_torrents_stays_within_the_memory_and_each_is_answered_once() {
    if !can_run() {
        return;
    }
    const COMMANDS: usize = 80;
    let port = dtorrent_peers::process::free_port().unwrap();
    let mut setup = Setup { http: format!("listen = \"127.0.0.1:{port}\""), ..Setup::default() };
    setup.broker.lines.extend(["max_queued_messages 0".to_owned(), "max_inflight_messages 1000".to_owned()]);
    let mut world = World::running(with_memory(64, setup)).await;
    for number in 0..COMMANDS {
        let body = json!({"id": format!("many-{number}"), "ttl": "20s", "hashes": unknown_hashes(number)});
        world.recorder.send(Command::new("dtorrent/home/command/pause", body.to_string())).await;
    }
    assert_eq!(http::get(port, "/healthz").await.status, 200);
    let answers = |all: &[Message]| {
        let answer = |number| parts(all, &format!("many-{number}")).into_iter().next();
        let answers: Vec<Value> = (0..COMMANDS).filter_map(answer).collect();
        (answers.len() == COMMANDS).then_some(answers)
    };
    let answers = world.recorder.wait_within(Duration::from_secs(120), "a result for each", answers).await;
    let mut by_status: BTreeMap<String, usize> = BTreeMap::new();
    for answer in &answers {
        *by_status.entry(answer["status"].as_str().unwrap().to_owned()).or_default() += 1;
        assert_eq!(parts(&world.recorder.all(), answer["id"].as_str().unwrap()).len(), 1, "{}", answer["id"]);
    }
    println!("{by_status:?}");
    let done = answers.iter().find(|answer| answer["error"]["code"] == "unknown_hash").expect("some were executed");
    assert_eq!((&done["status"], done["results"].as_array().unwrap().len()), (&json!("error"), 100));
    assert_eq!(done["omitted"], json!({"unknown_hash": 9_900}));
    let refused = answers.iter().find(|answer| answer["status"] == "refused").expect("more than there is memory for");
    assert_eq!((&refused["error"]["code"], &refused["error"]["retryable"]), (&json!("client_offline"), &json!(true)));
    let peak = world.bridge().peak_bytes();
    assert!(peak < IDLE_BYTES + (64 << 20), "{} MiB", peak >> 20);
}

#[tokio::test]
async fn what_was_accepted_before_a_crash_is_read_as_there_is_room_for_it_and_executed_in_order() {
    if !can_run() {
        return;
    }
    let setup = Setup { server: "timeout = \"1s\"".to_owned(), ..Setup::default() };
    let mut world = World::running(with_memory(1024, setup)).await;
    // Nothing is executed before the crash.
    world.home.process().signal("STOP").unwrap();
    world.recorder.server_event_after(0, "home", "server_offline").await;
    let known = json!({"id": "label-first", "label": "first", "ttl": "10m"});
    let sent: Vec<String> = (0..40).map(|number| format!("many-{number}")).collect();
    for (number, id) in sent.iter().enumerate() {
        let body = json!({"id": id, "ttl": "10m", "hashes": unknown_hashes(number)[..5_000], "dry_run": true});
        world.recorder.send(Command::new("dtorrent/home/command/pause", body.to_string())).await;
    }
    let topic = format!("dtorrent/home/torrent/{HASH}/command/label");
    for body in [known, json!({"id": "label-second", "label": "second", "ttl": "10m"})] {
        world.recorder.send(Command::new(&topic, body.to_string())).await;
    }
    let count = sent.len() as u64 + 2;
    world.database().until("all are in the log", |database| database.unfinished_commands() == count).await;
    world.bridge().process().kill().unwrap();
    world.home.process().signal("CONT").unwrap();
    // With much less memory than there was when they were accepted.
    world.relaunch_with(&["env", "DTORRENT_MEMORY_MAX=32MiB"]);
    let mut order = Vec::new();
    for id in sent.iter().map(String::as_str).chain(["label-first", "label-second"]) {
        let result = world.recorder.result(id).await;
        assert_eq!(result["error"]["code"], "unknown_hash", "{id}: {}", result["error"]);
    }
    for message in world.recorder.all() {
        if message.topic == "dtorrent/home/result" && message.json()["id"].as_str().unwrap().starts_with("label") {
            order.push(message.json()["id"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(order, ["label-first", "label-second"]);
    assert_eq!(world.database().unfinished_commands(), 0);
    let peak = world.bridge().peak_bytes();
    assert!(peak < IDLE_BYTES + (32 << 20), "{} MiB", peak >> 20);
}

/// A client that lists a torrent, and answers to no pause.
const DEAF_CLIENT: &str = r#"
import json, sys
active = True
for line in sys.stdin:
    request = json.loads(line)
    method, result = request["method"], None
    if method == "pause":
        continue
    if method == "initialize":
        result = {"protocol": 1, "name": "deaf", "methods": ["list", "pause", "resume"]}
    if method == "list":
        result = [{"hash": "HASH", "name": "n", "length": 10, "active": True, "downloaded": 4, "uploaded": 2, "path": None}]
    print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}), flush=True)
"#;

#[tokio::test]
async fn a_command_that_ran_at_three_crashes_is_given_up_and_one_that_waited_is_executed() {
    if !can_run() {
        return;
    }
    let program = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(program.path(), DEAF_CLIENT.replace("HASH", HASH)).unwrap();
    let sink = format!(
        "[servers.attic]\nclient = \"exec\"\ncommand = [\"python3\", {:?}]\ninterval = \"250ms\"\ntimeout = \"50s\"\n",
        program.path()
    );
    let mut world = World::running(Setup { sink, ..Setup::default() }).await;
    world.recorder.server_event_after(0, "attic", "snapshot_done").await;
    for (id, verb) in [("deadly", "pause"), ("waits", "resume")] {
        let topic = format!("dtorrent/attic/torrent/{HASH}/command/{verb}");
        world.recorder.send(Command::new(&topic, json!({"id": id, "ttl": "1h"}).to_string())).await;
    }
    world.database().until("both are in the log", |database| database.unfinished_commands() == 2).await;
    for crashes in 0..3 {
        world.database().until("it runs", |database| database.running_commands(crashes) == 1).await;
        assert!(world.recorder.results("deadly").is_empty(), "after {crashes} crashes");
        world.bridge().restart();
    }
    let given_up = world.recorder.result("deadly").await;
    assert_eq!((&given_up["status"], &given_up["error"]["code"]), (&json!("error"), &json!("unconfirmed")));
    assert_eq!(given_up["error"]["retryable"], false);
    assert!(given_up["error"]["message"].as_str().unwrap().contains("crashed 3 times"), "{given_up}");
    let waited = world.recorder.result("waits").await;
    assert_eq!(waited["status"], "ok", "{waited}");
    assert_eq!(world.database().unfinished_commands(), 0);
}

/// Reads up to the end of a request's head, and returns it.
async fn read_head(socket: &mut TcpStream) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let Ok(byte) = socket.read_u8().await else { break };
        head.push(char::from(byte));
    }
    head
}

/// The answer to a WebSocket handshake (RFC 6455, section 4.2.2).
fn accept_websocket(head: &str) -> String {
    let key = |line: &str| line.to_lowercase().strip_prefix("sec-websocket-key:").map(|_| line[18..].trim().to_owned());
    let key = head.lines().find_map(key).unwrap();
    let digest = sha1::Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
    let accept = base64(&digest);
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: mqtt\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}

/// A broker that begins a message with `begin` and goes on with `rest` for ever, on each connection. Reports the bytes of it
/// that a connection took.
async fn endless_broker(
    listener: TcpListener,
    is_websocket: bool,
    [begin, rest]: [Vec<u8>; 2],
    taken: mpsc::Sender<usize>,
) {
    loop {
        let mut socket = listener.accept().await.unwrap().0;
        if is_websocket {
            let head = read_head(&mut socket).await;
            socket.write_all(accept_websocket(&head).as_bytes()).await.unwrap();
        }
        // CONNECT.
        socket.read_buf(&mut Vec::<u8>::new()).await.unwrap();
        let mut bytes = 0;
        if socket.write_all(&begin).await.is_ok() {
            while socket.write_all(&rest).await.is_ok() {
                bytes += rest.len();
            }
        }
        taken.send(bytes).await.unwrap();
    }
}

#[tokio::test]
#[allow(clippy::disallowed_methods, reason = "a task of a test ends with its runtime")]
async fn a_message_of_a_broker_without_end_ends_its_connection_and_takes_no_memory() {
    if !can_run() {
        return;
    }
    // CONNACK of MQTT 3.1.1, and PUBLISH with the largest length that the protocol can express.
    let packet = vec![0x20, 2, 0, 0, 0x30, 0xff, 0xff, 0xff, 0x7f];
    // A binary frame of 2^40 bytes.
    let frame = vec![0x82, 0x7f, 0, 0, 1, 0, 0, 0, 0, 0];
    // A message in frames of 64 KiB, none of which is the last.
    let part = [&[0, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0][..], &[0; 64 << 10]].concat();
    let zeros = || vec![0; 64 << 10];
    let endless = [("mqtt", [packet, zeros()]), ("ws", [frame, zeros()]), ("ws", [vec![2, 0], part])];
    for (scheme, endless) in endless {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut world = World::new(Setup { sink: "version = \"3.1.1\"".to_owned(), ..Setup::default() }).await;
        world.use_broker_at(&format!("{scheme}://{}", listener.local_addr().unwrap()));
        let (sender, mut taken) = mpsc::channel(8);
        let broker = tokio::spawn(endless_broker(listener, scheme == "ws", endless, sender));
        world.launch_bridge();
        for _ in 0..2 {
            let bytes = tokio::time::timeout(TIMEOUT, taken.recv()).await.expect("the connection ends").unwrap();
            // What the kernel holds between the two comes on top of what is read.
            assert!(bytes < 40 << 20, "{scheme}: {bytes} bytes");
        }
        let peak = world.bridge().peak_bytes();
        assert!(peak < IDLE_BYTES + (48 << 20), "{scheme}: {} MiB", peak >> 20);
        broker.abort();
    }
}

/// A client with torrents of long texts, all of which start or stop at each of eight polls, once a file is there.
const WORDY_CLIENT: &str = r#"
import json, os, sys
polls = 0
for line in sys.stdin:
    request = json.loads(line)
    result = None
    if request["method"] == "initialize":
        result = {"protocol": 1, "name": "wordy", "methods": ["list"]}
    if request["method"] == "list":
        polls += os.path.exists(sys.argv[1])
        if polls == 10:
            open(sys.argv[1] + ".done", "w")
        text = '"' * 4000
        result = [{"hash": "%040x" % number, "name": text, "label": text[:1000], "path": "/" + text, "length": 10,
                   "active": min(polls, 8) % 2 == 0, "downloaded": 4, "uploaded": 2} for number in range(1, 201)]
    print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}), flush=True)
"#;

#[tokio::test]
async fn receivers_that_are_away_and_slow_readers_hold_small_pages_of_a_journal_of_large_events() {
    if !can_run() {
        return;
    }
    /// Each of some 20 KiB, so that 256 of them are 5 MiB.
    const EVENTS: u64 = 200 * 6;
    const HOOKS: usize = 4;
    let port = dtorrent_peers::process::free_port().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (program, begin) = (folder.path().join("client.py"), folder.path().join("begin"));
    std::fs::write(&program, WORDY_CLIENT).unwrap();
    let endpoint = Receiver::start().await;
    endpoint.answer(|_| Answer::Status(503));
    let mut sink = format!(
        "[servers.attic]\nclient = \"exec\"\ncommand = [\"python3\", {program:?}, {begin:?}]\ninterval = \"250ms\"\n",
    );
    for hook in 0..HOOKS {
        sink += &format!("[webhooks.hook{hook}]\nurl = \"{}\"\nservers = [\"attic\"]\n", endpoint.url());
        sink += "events = [\"paused\", \"resumed\"]\n";
    }
    let http = format!("listen = \"127.0.0.1:{port}\"");
    let mut world = World::running(with_memory(32, Setup { http, sink, ..Setup::default() })).await;
    world.recorder.server_event_after(0, "attic", "snapshot_done").await;
    let mut readers = Vec::new();
    for _ in 0..20 {
        readers.push(http::Listener::listen_with_small_buffer(port).await);
    }
    let before = world.bridge().peak_bytes();
    std::fs::write(&begin, "").unwrap();
    until("all torrents have started and stopped", async || folder.path().join("begin.done").is_file().then_some(()))
        .await;
    let last = world.database().last_seq("attic");
    assert!(last > EVENTS, "{last} events");
    let away = world.bridge().peak_bytes();
    endpoint.answer(|_| Answer::Status(204));
    let is_delivered = |database: &StateDatabase| {
        (0..HOOKS).all(|hook| database.cursor(&format!("hook{hook}.attic"), "attic") >= last)
    };
    world.database().until("everything is delivered", is_delivered).await;
    let peak = world.bridge().peak_bytes();
    println!("{} MiB before, {} MiB while they were away, {} MiB in the end", before >> 20, away >> 20, peak >> 20);
    // Before, there were the torrents and an answer of the client already, which may take 8 MiB more than its share.
    assert!(peak < before + (48 << 20), "{} MiB", peak >> 20);
}
