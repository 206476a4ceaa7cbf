//! NATS servers, and a subscriber that records everything.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, HeaderMap, Message};
use bytes::Bytes;
use dtorrent_peers::process::{Process, TIMEOUT, find, free_port};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::schemas;
use super::skip::skip;

/// Returns the folder in which `scripts/install-peers.sh` installs packages from PyPI.
pub fn peers() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"));
    cache.join("dtorrent-peers")
}

/// Returns the newest version of a package from PyPI, by the beginning of its name.
pub fn newest(prefix: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(peers()).ok()?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))).max()
}

/// Returns the installed servers: Debian's, which is an old one, and a current one. Skips the test for one that is
/// missing.
pub fn programs() -> Vec<PathBuf> {
    let debian = find("nats-server", "nats-server").map_err(|missing| missing.to_string());
    let current = newest("nats-server-").ok_or("a current nats-server is missing: scripts/install-peers.sh".to_owned());
    let found = [debian, current].into_iter().map(|program| program.inspect_err(|reason| skip(reason)));
    found.flatten().collect()
}

/// A running server. Dropping it kills it.
pub struct NatsServer {
    pub port: u16,
    pub folder: PathBuf,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    process: Process,
}

impl NatsServer {
    /// Starts a server with JetStream and without logins.
    pub async fn start(program: &Path, folder: &Path) -> Self {
        Self::start_with(program, folder, "jetstream {{ store_dir: \"{dir}/store\" }}").await
    }

    /// Starts a server with further lines in its config; `{dir}` is replaced by its folder.
    pub async fn start_with(program: &Path, folder: &Path, lines: &str) -> Self {
        Self::start_at(program, folder, free_port().unwrap(), lines).await
    }

    pub async fn start_at(program: &Path, folder: &Path, port: u16, lines: &str) -> Self {
        let mut server = Self::prepare(program, folder, port, lines);
        server.ready().await;
        server
    }

    /// Starts a server without waiting for it.
    pub fn prepare(program: &Path, folder: &Path, port: u16, lines: &str) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let lines = lines.replace("{{", "{").replace("}}", "}").replace("{dir}", folder.to_str().unwrap());
        let config = folder.join("nats.conf");
        let text = format!("listen: 127.0.0.1:{port}\nserver_name: \"n{port}\"\n{lines}\n");
        std::fs::write(&config, text).unwrap();
        let log = folder.join("nats.log");
        let process = Process::start(program, &["-c", config.to_str().unwrap()], &log).unwrap();
        Self { port, folder: folder.to_owned(), program: program.to_owned(), config, log, process }
    }

    pub async fn ready(&mut self) {
        let port = self.port;
        self.process.wait_until_ready(async || TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await.unwrap();
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    pub fn kill(&mut self) {
        self.process.kill().unwrap();
    }

    pub async fn restart(&mut self) {
        self.kill();
        let config = self.config.to_str().unwrap();
        self.process = Process::start(&self.program, &["-c", config], &self.log).unwrap();
        self.ready().await;
    }

    /// Replaces the lines of the config for the next start.
    pub fn reconfigure(&self, lines: &str) {
        let lines = lines.replace("{{", "{").replace("}}", "}").replace("{dir}", self.folder.to_str().unwrap());
        let text = format!("listen: 127.0.0.1:{}\nserver_name: \"n{}\"\n{lines}\n", self.port, self.port);
        std::fs::write(&self.config, text).unwrap();
    }

    pub async fn client(&self) -> Client {
        self.client_with(ConnectOptions::new()).await
    }

    pub async fn client_with(&self, options: ConnectOptions) -> Client {
        let options = options.retry_on_initial_connect();
        let client = async_nats::connect_with_options(self.url(), options).await.unwrap();
        let deadline = Instant::now() + TIMEOUT;
        while client.flush().await.is_err() || client.try_server_info().is_none() {
            assert!(Instant::now() < deadline, "the server refuses the client");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        client
    }
}

/// JetStream's error code during the election of a leader.
const UNAVAILABLE: u32 = 10008;

/// Sends a request to JetStream's API, again while none answers, as in a cluster without a leader. The answer may be an error.
pub async fn api(client: &Client, subject: &str, body: Value) -> Value {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    until(&format!("$JS.API.{subject} is answered"), async || {
        let request = async_nats::Request::new().payload(Bytes::from(body.clone())).timeout(Some(TIMEOUT / 4));
        let answer = client.send_request(format!("$JS.API.{subject}"), request).await.ok()?;
        let answer: Value = serde_json::from_slice(&answer.payload).ok()?;
        (answer["error"]["err_code"] != UNAVAILABLE).then_some(answer)
    })
    .await
}

/// Returns the last value of a key of the bucket; `None` if there is none or it was deleted.
pub async fn value(client: &Client, key: &str) -> Option<Value> {
    let body = json!({"last_by_subj": format!("$KV.dtorrent_state.{key}")});
    let answer = api(client, "STREAM.MSG.GET.KV_dtorrent_state", body).await;
    let message = decoded(&answer)?;
    if message.headers.as_ref().is_some_and(|headers| headers.get("KV-Operation").is_some()) {
        return None;
    }
    let topic = format!("dtorrent/{}/state", key.replace('.', "/torrent/"));
    schemas::assert_fit([(topic.as_str(), &message.payload[..])].into_iter());
    Some(serde_json::from_slice(&message.payload).unwrap())
}

/// Returns the messages of the stream in order: subject, id, body.
pub async fn stored(client: &Client) -> Vec<(String, String, Value)> {
    let info = api(client, "STREAM.INFO.DTORRENT_EVENTS", Value::Null).await;
    let (Some(first), Some(last)) = (info["state"]["first_seq"].as_u64(), info["state"]["last_seq"].as_u64()) else {
        return Vec::new();
    };
    let mut all = Vec::new();
    for seq in first.max(1)..=last {
        let answer = api(client, "STREAM.MSG.GET.DTORRENT_EVENTS", json!({"seq": seq})).await;
        let message = decoded(&answer).unwrap_or_else(|| panic!("{seq} of {}: {answer}", info["state"]));
        let id = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id")).unwrap().to_string();
        all.push((message.subject.to_string(), id, serde_json::from_slice(&message.payload).unwrap_or_default()));
    }
    all
}

struct Decoded {
    subject: String,
    headers: Option<HeaderMap>,
    payload: Vec<u8>,
}

fn decoded(answer: &Value) -> Option<Decoded> {
    use base64::Engine as _;
    let message = answer.get("message")?;
    let bytes = |key: &str| {
        let text = message[key].as_str()?;
        base64::engine::general_purpose::STANDARD.decode(text).ok()
    };
    let headers = bytes("hdrs").map(|bytes| {
        let mut headers = HeaderMap::new();
        for line in String::from_utf8(bytes).unwrap().lines().skip(1) {
            if let Some((name, value)) = line.split_once(": ") {
                headers.insert(name, value);
            }
        }
        headers
    });
    Some(Decoded {
        subject: message["subject"].as_str()?.to_owned(),
        headers,
        payload: bytes("data").unwrap_or_default(),
    })
}

/// Asserts as a consumer would that the stream holds every event of a server: numbers from 1 without a gap, each once.
pub fn assert_once_in_order(stored: &[(String, String, Value)], server: &str) -> Vec<Value> {
    let of_server: Vec<_> = stored.iter().filter(|(_, _, event)| event["server"] == server).collect();
    for (number, (subject, id, event)) in of_server.iter().enumerate() {
        assert_eq!(event["seq"], number as u64 + 1, "a gap, a repetition or a change of order at {subject} {id}");
        assert_eq!(event["id"], id.as_str());
    }
    of_server.into_iter().map(|(_, _, event)| event.clone()).collect()
}

/// A subscriber that records every message below `dtorrent.`.
pub struct Subscriber {
    received: Arc<Mutex<Vec<Message>>>,
    pub client: Client,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Subscriber {
    /// Checks every received message against the schemas.
    fn drop(&mut self) {
        self.task.abort();
        let all: Vec<_> = self.all().into_iter().map(|m| (m.subject.replace('.', "/"), m.payload)).collect();
        schemas::assert_fit(all.iter().map(|(topic, body)| (topic.as_str(), &body[..])));
    }
}

impl Subscriber {
    pub async fn listen(server: &NatsServer) -> Self {
        Self::listen_as(server.client().await).await
    }

    #[allow(clippy::disallowed_methods)] // a test's own task
    pub async fn listen_as(client: Client) -> Self {
        let mut subscriber = client.subscribe("dtorrent.>").await.unwrap();
        // After a round trip the subscription is active.
        client.flush().await.unwrap();
        client.publish("dtorrent.test", Bytes::new()).await.unwrap();
        tokio::time::timeout(TIMEOUT, subscriber.next()).await.unwrap().unwrap();
        let received = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&received);
        let task = tokio::spawn(async move {
            while let Some(message) = subscriber.next().await {
                all.lock().unwrap().push(message);
            }
        });
        Self { received, client, task }
    }

    pub fn all(&self) -> Vec<Message> {
        self.received.lock().unwrap().clone()
    }

    /// Waits until `find` returns a value for the received messages.
    pub async fn wait_for<T>(&self, what: &str, mut find: impl FnMut(&[Message]) -> Option<T>) -> T {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(found) = find(&self.received.lock().unwrap()) {
                return found;
            }
            if Instant::now() > deadline {
                let all = self.all();
                let last: Vec<String> = all
                    .iter()
                    .skip(all.len().saturating_sub(25))
                    .map(|m| {
                        format!("  {} {}", m.subject, String::from_utf8_lossy(&m.payload[..m.payload.len().min(200)]))
                    })
                    .collect();
                panic!("timed out waiting for {what}; last messages:\n{}", last.join("\n"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits for the first message on a subject.
    pub async fn on(&self, subject: &str) -> Message {
        self.wait_for(subject, |all| all.iter().find(|m| m.subject.as_str() == subject).cloned()).await
    }

    /// Sends a request and returns the reply.
    pub async fn request(&self, subject: &str, body: impl Into<Bytes>) -> Message {
        let request = async_nats::Request::new().payload(body.into()).timeout(Some(TIMEOUT));
        self.client.send_request(subject.to_owned(), request).await.unwrap()
    }
}

pub fn body(message: &Message) -> Value {
    serde_json::from_slice(&message.payload).unwrap_or_default()
}

/// Repeats a check until it returns a value.
pub async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + 2 * TIMEOUT;
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(Instant::now() < deadline, "timed out waiting until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
