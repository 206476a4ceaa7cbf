//! Webhooks: the real bridge, and endpoints that fail in every way.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::bridge::Bridge;
use crate::harness::ledger::Ledger;
use crate::harness::receiver::{Answer, Receiver, Request};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Servers that are files, an endpoint, and no broker; the bridge is started by the test.
struct Stage {
    endpoint: Receiver,
    bridge: Option<Bridge>,
    folder: TempDir,
    torrents: BTreeMap<String, Vec<Value>>,
}

impl Stage {
    async fn new(servers: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("dt-hook-").tempdir().unwrap();
        let torrents = servers.iter().map(|server| ((*server).to_owned(), Vec::new())).collect();
        let stage = Self { endpoint: Receiver::start().await, bridge: None, folder, torrents };
        servers.iter().for_each(|server| stage.write(server));
        stage
    }

    /// One whose bridge runs, and knows its servers; `webhook`: more lines for the endpoint's table.
    async fn running(servers: &[&str], webhook: &str) -> Self {
        let mut stage = Self::new(servers).await;
        stage.start(webhook);
        for server in servers {
            stage.endpoint.takes(server, "snapshot_done", "").await;
        }
        stage
    }

    fn start(&mut self, webhook: &str) {
        let config = self.configure(webhook);
        self.bridge = Some(Bridge::start(&config));
    }

    fn configure(&self, webhook: &str) -> PathBuf {
        let quoted = |text: &str| Value::from(text).to_string();
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/client.py");
        let mut text = format!(
            "data_dir = {}\nhttp.listen = \"off\"\nlog.level = \"debug\"\n",
            quoted(&self.folder.path().join("data").to_string_lossy())
        );
        for server in self.torrents.keys() {
            let file = self.file(server);
            text += &format!(
                "[servers.{server}]\nclient = \"exec\"\ninterval = \"250ms\"\ncommand = [{}, {}]\n",
                quoted(program),
                quoted(&file.to_string_lossy())
            );
        }
        text += "[webhooks.hook]\n";
        if !webhook.contains("url = ") {
            text += &format!("url = {}\n", quoted(&self.endpoint.url()));
        }
        text += webhook;
        let config = self.folder.path().join("dtorrent.toml");
        fs::write(&config, text).unwrap();
        config
    }

    fn file(&self, server: &str) -> PathBuf {
        self.folder.path().join(format!("{server}.json"))
    }

    fn write(&self, server: &str) {
        let path = self.file(server);
        let draft = path.with_extension("new");
        fs::write(&draft, Value::from(self.torrents[server].clone()).to_string()).unwrap();
        fs::rename(draft, path).unwrap();
    }

    /// Adds one torrent for each name.
    fn add(&mut self, server: &str, names: &[&str]) {
        let torrents = self.torrents.get_mut(server).unwrap();
        for name in names {
            let hash = format!("{:040x}", torrents.len() + 1);
            torrents.push(json!({
                "hash": hash, "name": name, "length": 10, "active": true, "downloaded": 4, "uploaded": 2, "path": null
            }));
        }
        self.write(server);
    }

    /// Changes one field of the torrent of this name.
    fn change(&mut self, server: &str, name: &str, key: &str, value: Value) {
        let torrents = self.torrents.get_mut(server).unwrap();
        torrents.iter_mut().find(|torrent| torrent["name"] == name).unwrap()[key] = value;
        self.write(server);
    }

    fn bridge(&mut self) -> &mut Bridge {
        self.bridge.as_mut().expect("the test has started it")
    }

    fn ledger(&self) -> Ledger {
        Ledger::of(&self.folder.path().join("data"))
    }
}

/// What the contract promises of everything that came: the same id with the same body, and for each server
/// the first deliveries in the order of `seq`, without a gap.
fn assert_promised(requests: &[Request]) {
    let mut bodies: BTreeMap<&str, &[u8]> = BTreeMap::new();
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    for request in requests {
        let first = bodies.entry(request.id()).or_insert(&request.body);
        assert_eq!(first, &&request.body[..], "another body for {}", request.id());
        let event = request.event();
        assert_eq!(event["id"], request.id());
        let (server, seq) = (event["server"].as_str().unwrap().to_owned(), event["seq"].as_u64().unwrap());
        let last = last.entry(server.clone()).or_insert(seq - 1);
        assert!(seq <= *last + 1, "{server}: {seq} came after {last}");
        *last = seq.max(*last);
    }
    let all: BTreeSet<&str> = requests.iter().map(Request::id).collect();
    let is_taken =
        |request: &&Request| matches!(request.answer, Answer::Status(204) | Answer::TakenSlowly | Answer::Huge(200));
    let taken: BTreeSet<&str> = requests.iter().filter(is_taken).map(Request::id).collect();
    assert_eq!(all, taken, "everything that came was taken in the end");
}

#[tokio::test]
async fn an_endpoint_that_fails_in_every_way_gets_each_event_in_order_and_with_the_same_body() {
    let webhook = format!("secret = \"{SECRET}\"\ntimeout = \"1s\"\n");
    let mut stage = Stage::running(&["attic", "home"], &webhook).await;
    let ways = [
        Answer::Status(500),
        Answer::Reset,
        Answer::With(429, "Retry-After: 2".to_owned()),
        Answer::Hang,
        Answer::Drip,
        Answer::Garbage,
        Answer::With(302, "Location: /elsewhere".to_owned()),
        Answer::Huge(503),
        Answer::Status(408),
    ];
    stage.endpoint.answer_next(ways.clone());
    let names: Vec<String> = (0..20).map(|number| format!("t{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    stage.add("home", &names);
    stage.add("attic", &names);
    for server in ["attic", "home"] {
        stage.endpoint.takes(server, "added", "t19").await;
    }
    let requests = stage.endpoint.requests();
    for way in &ways {
        assert_eq!(requests.iter().filter(|request| request.answer == *way).count(), 1, "{way:?}");
    }
    assert!(requests.iter().all(|request| request.path == "/hook" && request.method == "POST"));
    assert_promised(&requests);
    stage.bridge().stop().await;
}
