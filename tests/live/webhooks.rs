//! Webhooks: the real bridge, and endpoints that fail in every way.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use dtorrent_peers::process::free_port;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::bridge::Bridge;
use crate::harness::certificates::Certificates;
use crate::harness::database::StateDatabase;
use crate::harness::http::{get, get_until, request};
use crate::harness::nginx::Nginx;
use crate::harness::receiver::{Answer, Receiver, Request};
use crate::harness::skip::skip;
use crate::harness::{can_run, nats};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A setup with file-backed servers, an endpoint, and no broker. The test starts the bridge.
struct Fixture {
    endpoint: Receiver,
    bridge: Option<Bridge>,
    folder: TempDir,
    torrents: BTreeMap<String, Vec<Value>>,
    http: String,
}

impl Fixture {
    async fn new(servers: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("dt-hook-").tempdir().unwrap();
        let torrents = servers.iter().map(|server| ((*server).to_owned(), Vec::new())).collect();
        let http = "listen = \"off\"\n".to_owned();
        let fixture = Self { endpoint: Receiver::start().await, bridge: None, folder, torrents, http };
        servers.iter().for_each(|server| fixture.write(server));
        fixture
    }

    /// Starts the bridge too, and waits for the initial snapshots. `webhook`: more lines for the endpoint's table.
    async fn running(servers: &[&str], webhook: &str) -> Self {
        let mut fixture = Self::new(servers).await;
        fixture.start(webhook);
        for server in servers {
            fixture.endpoint.wait_for_event(server, "snapshot_done", "").await;
        }
        fixture
    }

    fn start(&mut self, webhook: &str) {
        let config = self.configure(webhook);
        self.bridge = Some(Bridge::start(&config));
    }

    fn configure(&self, webhook: &str) -> PathBuf {
        let quoted = |text: &str| Value::from(text).to_string();
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/client.py");
        let mut text = format!(
            "data_dir = {}\nlog.level = \"debug\"\n[http]\n{}",
            quoted(&self.folder.path().join("data").to_string_lossy()),
            self.http
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

    fn database(&self) -> StateDatabase {
        StateDatabase::of(&self.folder.path().join("data"))
    }

    /// Runs another command with the same config. Returns its exit code, and its stdout and stderr.
    async fn ask(&self, arguments: &[&str]) -> (i32, String, String) {
        let config = self.folder.path().join("dtorrent.toml");
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_dtorrent"));
        let output = command.args(arguments).arg("--config").arg(config).output().await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
}

/// Asserts the contract for all requests: the same body for the same id, and for each server the first deliveries in the
/// order of `seq`, without a gap.
fn assert_promised(requests: &[Request]) {
    assert_promised_but_for_order(requests);
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    for request in requests {
        let event = request.event();
        let (server, seq) = (event["server"].as_str().unwrap().to_owned(), event["seq"].as_u64().unwrap());
        let last = last.entry(server.clone()).or_insert(seq - 1);
        assert!(seq <= *last + 1, "{server}: {seq} came after {last}");
        *last = seq.max(*last);
    }
}

fn assert_promised_but_for_order(requests: &[Request]) {
    let mut bodies: BTreeMap<&str, &[u8]> = BTreeMap::new();
    for request in requests {
        let first = bodies.entry(request.id()).or_insert(&request.body);
        assert_eq!(first, &&request.body[..], "another body for {}", request.id());
        assert_eq!(request.event()["id"], request.id());
    }
    let all: BTreeSet<&str> = requests.iter().map(Request::id).collect();
    let taken: BTreeSet<&str> = requests.iter().filter(|r| r.answer.is_accepted()).map(Request::id).collect();
    assert_eq!(all, taken, "every received event was accepted in the end");
}

#[tokio::test]
async fn an_endpoint_with_every_kind_of_failure_gets_each_event_in_order_with_the_same_body() {
    if !can_run() {
        return;
    }
    let webhook = format!("secret = \"{SECRET}\"\ntimeout = \"1s\"\n");
    let mut fixture = Fixture::running(&["attic", "home"], &webhook).await;
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
    fixture.endpoint.answer_next(ways.clone());
    let names: Vec<String> = (0..20).map(|number| format!("t{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    fixture.add("home", &names);
    fixture.add("attic", &names);
    for server in ["attic", "home"] {
        fixture.endpoint.wait_for_event(server, "added", "t19").await;
    }
    let requests = fixture.endpoint.requests();
    for way in &ways {
        assert_eq!(requests.iter().filter(|request| request.answer == *way).count(), 1, "{way:?}");
    }
    assert!(requests.iter().all(|request| request.path == "/hook" && request.method == "POST"));
    assert_promised(&requests);
    fixture.bridge().stop().await;
}

#[tokio::test]
async fn a_bridge_killed_during_a_post_continues_where_it_stopped() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::running(&["attic", "home"], "timeout = \"5s\"\n").await;
    // Every third request is not answered, so that a kill finds an event in flight.
    let mut count = 0;
    fixture.endpoint.answer(move |_| {
        count += 1;
        if count % 3 == 0 { Answer::Hang } else { Answer::Status(204) }
    });
    let mut had = 0;
    for round in 0..5 {
        let names: Vec<String> = (0..4).map(|number| format!("r{round}t{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        fixture.add("home", &names);
        fixture.add("attic", &names);
        let is_hanging = |requests: &[Request]| requests[had..].iter().any(|request| request.answer == Answer::Hang);
        let requests = fixture.endpoint.until("a request hangs", is_hanging).await;
        had = requests.len();
        fixture.bridge().restart();
    }
    fixture.endpoint.answer_next([]);
    for server in ["attic", "home"] {
        fixture.endpoint.wait_for_event(server, "added", "r4t3").await;
    }
    assert_promised(&fixture.endpoint.requests());
    fixture.bridge().stop().await;
}

#[tokio::test]
async fn an_event_that_an_endpoint_fails_on_delays_only_its_own_server() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::running(&["attic", "home"], "").await;
    fixture.endpoint.answer(|request| {
        let is_stone = request.event()["torrent"]["name"] == "stone";
        if is_stone { Answer::Status(500) } else { Answer::Status(204) }
    });
    fixture.add("home", &["stone", "behind it"]);
    fixture
        .endpoint
        .until("it stumbles", |requests| requests.last().is_some_and(|r| r.answer == Answer::Status(500)))
        .await;
    fixture.add("attic", &["another"]);
    fixture.endpoint.wait_for_event("attic", "added", "another").await;
    let is_behind = |request: &Request| request.event()["torrent"]["name"] == "behind it";
    assert!(!fixture.endpoint.requests().iter().any(is_behind), "what is behind it waits");
    fixture.endpoint.answer_next([]);
    fixture.endpoint.wait_for_event("home", "added", "behind it").await;
    assert_promised(&fixture.endpoint.requests());
    fixture.bridge().stop().await;
}

#[tokio::test]
async fn events_that_an_endpoint_refuses_are_dead_letters_and_can_be_replayed() {
    if !can_run() {
        return;
    }
    let webhook = format!("secret = \"{SECRET}\"\n");
    let mut fixture = Fixture::running(&["home"], &webhook).await;
    let refused =
        |request: &Request| request.event()["torrent"]["name"].as_str().is_some_and(|name| name.starts_with("bad"));
    fixture.endpoint.answer(move |request| if refused(request) { Answer::Status(422) } else { Answer::Status(204) });
    fixture.add("home", &["bad one", "good", "bad two"]);
    fixture.database().until("both are dead-lettered", |database| database.dead_letters("hook.home").len() == 2).await;
    fixture.endpoint.wait_for_event("home", "added", "good").await;
    let asked = |request: &Request| request.answer == Answer::Status(422);
    let mut first: Vec<Request> = fixture.endpoint.requests().into_iter().filter(asked).collect();
    assert!((4..=20).contains(&first.len()), "{} attempts", first.len());
    first.dedup_by(|later, first| later.id() == first.id());
    assert_eq!(first.len(), 2, "one after the other");
    // Listing works while the bridge runs.
    let (code, listed, _) = fixture.ask(&["dead-letters", "list", "--json"]).await;
    let listed: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((code, listed.len()), (0, 2));
    assert!(listed[0]["reason"].as_str().unwrap().starts_with("the endpoint answers 422: because "), "{listed:?}");
    assert_eq!((&listed[0]["sink"], &listed[0]["id"]), (&json!("hook"), &json!(first[0].id())));
    assert_eq!(listed[0]["event"], first[0].event());
    let (_, text, _) = fixture.ask(&["dead-letters", "list"]).await;
    assert!(text.contains("added \"bad one\": the endpoint answers 422"), "{text}");
    // A replay through the running bridge needs a token.
    let (code, _, printed) = fixture.ask(&["dead-letters", "replay", "hook", "--all"]).await;
    assert_eq!(code, 1);
    assert!(printed.contains("the bridge is running") && printed.contains("http.token"), "{printed}");
    fixture.bridge().stop().await;
    for (arguments, expected) in [
        (&["dead-letters", "replay", "hook"][..], 2),
        (&["dead-letters", "replay", "other", "--all"], 2),
        (&["dead-letters", "replay", "hook", "home-00000000-000000000001"], 1),
        // The endpoint still refuses them.
        (&["dead-letters", "replay", "hook", "--all"], 1),
    ] {
        let (code, _, printed) = fixture.ask(arguments).await;
        assert_eq!(code, expected, "{arguments:?}: {printed}");
    }
    fixture.endpoint.answer_next([Answer::Status(204), Answer::Status(503)]);
    let (code, _, printed) = fixture.ask(&["dead-letters", "replay", "hook", first[1].id()]).await;
    assert_eq!((code, printed.as_str()), (0, format!("{}: delivered\n", first[1].id()).as_str()));
    let (code, _, printed) = fixture.ask(&["dead-letters", "replay", "hook", "--all"]).await;
    assert_eq!(code, 3, "{printed}");
    let (code, _, printed) = fixture.ask(&["dead-letters", "replay", "hook", "--all"]).await;
    assert_eq!(code, 0, "{printed}");
    assert!(fixture.database().dead_letters("hook.home").is_empty());
    assert_promised_but_for_order(&fixture.endpoint.requests());
    // The next run is unaffected.
    fixture.bridge().restart();
    fixture.add("home", &["later"]);
    fixture.endpoint.wait_for_event("home", "added", "later").await;
    fixture.bridge().stop().await;
}

#[tokio::test]
async fn a_running_bridge_replays_dead_letters_one_at_a_time() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new(&["home"]).await;
    let port = free_port().unwrap();
    fixture.http = format!("listen = \"127.0.0.1:{port}\"\ntoken = \"open sesame\"\n");
    fixture.start("");
    fixture.endpoint.wait_for_event("home", "snapshot_done", "").await;
    fixture.endpoint.answer(|request| match request.event()["torrent"]["name"].as_str() {
        Some(name) if name.starts_with("bad") => Answer::Status(422),
        _ => Answer::Status(204),
    });
    fixture.add("home", &["bad one", "bad two", "bad three", "good"]);
    fixture.endpoint.wait_for_event("home", "added", "good").await;
    let dead_letters = |database: &StateDatabase| database.dead_letters("hook.home").len();
    fixture.database().until("all are dead-lettered", |database| dead_letters(database) == 3).await;
    for (arguments, expected, reason) in [
        (&["dead-letters", "replay", "hook", "home-00000000-000000000001"][..], 1, "no dead letter"),
        (&["dead-letters", "replay", "other", "--all"], 2, "unknown broker or webhook `other`"),
        (&["dead-letters", "replay", "hook", "--all"], 1, "422"),
    ] {
        let (code, _, printed) = fixture.ask(arguments).await;
        assert_eq!(code, expected, "{arguments:?}: {printed}");
        assert!(printed.contains(reason), "{arguments:?}: {printed}");
    }
    let first = fixture.endpoint.requests().iter().find(|r| r.answer == Answer::Status(422)).unwrap().id().to_owned();
    fixture.endpoint.answer_next([Answer::Status(204), Answer::Status(503)]);
    let (code, _, printed) = fixture.ask(&["dead-letters", "replay", "hook", &first]).await;
    assert_eq!((code, printed), (0, format!("{first}: delivered\n")));
    let (code, _, printed) = fixture.ask(&["dead-letters", "replay", "hook", "--all"]).await;
    assert_eq!((code, printed.lines().count()), (3, 1), "an unreachable endpoint is tried once: {printed}");

    // New events arrive during the replay; requests never overlap.
    fixture.endpoint.answer(|_| Answer::Late);
    fixture.add("home", &["new one", "new two"]);
    let (code, _, printed) = fixture.ask(&["dead-letters", "replay", "hook", "--all"]).await;
    assert_eq!((code, printed.matches(": delivered").count()), (0, 2), "{printed}");
    fixture.endpoint.wait_for_event("home", "added", "new two").await;
    assert_eq!((dead_letters(&fixture.database()), fixture.endpoint.most_at_once()), (0, 1));
    assert_promised_but_for_order(&fixture.endpoint.requests());

    let post = async |token: &str, body: &str| {
        let headers = [("Authorization", &*format!("Bearer {token}"))];
        request(port, "POST", "/api/v1/dead-letters/hook/replay", &headers, body.as_bytes()).await.status
    };
    assert_eq!(post("wrong", "{\"all\": true}").await, 401);
    for (body, status) in
        [("{\"all\": true}", 200), ("{}", 400), ("{\"ids\": [\"x\"], \"all\": true}", 400), ("[]", 400)]
    {
        assert_eq!(post("open sesame", body).await, status, "{body}");
    }
    fixture.bridge().stop().await;
    assert!(!fixture.bridge().log().contains("open sesame"));
}

#[tokio::test]
async fn an_unreachable_endpoint_is_shown_on_every_page() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new(&["home"]).await;
    let port = free_port().unwrap();
    fixture.http = format!("listen = \"127.0.0.1:{port}\"\ntoken = \"open sesame\"\n");
    fixture.start("");
    fixture.endpoint.wait_for_event("home", "snapshot_done", "").await;
    fixture.endpoint.answer(|_| Answer::Status(503));
    fixture.add("home", &["one"]);
    let is_told = |sink: &Value| {
        let problem = sink["problem"].as_str().unwrap_or_default();
        // What the endpoint answers is for who has the token.
        sink["status"] == "offline" && problem.contains("not connected") && !problem.contains("503")
    };
    get_until(port, "/api/v1/sinks", |sinks| sinks["sinks"][0]["name"] == "hook.home" && is_told(&sinks["sinks"][0]))
        .await;
    let ready = get(port, "/readyz").await;
    assert!(ready.status == 503 && ready.body.contains("hook.home"), "{}", ready.body);
    let with_token = request(port, "GET", "/readyz", &[("Authorization", "Bearer open sesame")], b"").await;
    assert!(with_token.body.contains("the endpoint answers 503"), "{}", with_token.body);
    let metrics = get(port, "/metrics").await.body;
    assert!(metrics.contains("dtorrent_sink_connected{sink=\"hook.home\"} 0"), "{metrics}");
    fixture.endpoint.answer_next([]);
    fixture.endpoint.wait_for_event("home", "added", "one").await;
    get_until(port, "/readyz", |ready| ready["ready"] == true).await;
    fixture.bridge().stop().await;
}

#[tokio::test]
async fn an_expired_event_is_dead_lettered_and_delivery_continues() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::running(&["home"], "keep_trying = \"3s\"\n").await;
    fixture.endpoint.answer(|request| {
        let is_stone = request.event()["torrent"]["name"] == "stone";
        if is_stone { Answer::Status(500) } else { Answer::Status(204) }
    });
    fixture.add("home", &["stone", "behind it"]);
    fixture.endpoint.wait_for_event("home", "added", "behind it").await;
    let dead_letters = fixture.database().dead_letters("hook.home");
    let [(body, reason)] = dead_letters.as_slice() else { panic!("{dead_letters:?}") };
    assert!(body.contains("\"stone\""), "{body}");
    assert_eq!(reason, "not accepted within 3s: the endpoint answers 500: because 1");
    let tries = fixture.endpoint.requests().iter().filter(|request| request.answer == Answer::Status(500)).count();
    assert!((3..=6).contains(&tries), "{tries} attempts");
    fixture.bridge().stop().await;
}

#[tokio::test]
async fn an_endpoint_that_answers_410_is_disabled_until_the_next_start() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::running(&["attic", "home"], "").await;
    fixture.endpoint.answer(|_| Answer::Status(410));
    fixture.add("home", &["one"]);
    fixture.bridge().wait_for_log("switched off until the next start").await;
    let asked = fixture.endpoint.requests().len();
    fixture.add("home", &["two"]);
    fixture.add("attic", &["three"]);
    let is_full = |database: &StateDatabase| {
        database.dead_letters("hook.home").len() == 2 && database.dead_letters("hook.attic").len() == 1
    };
    fixture.database().until("all is dead-lettered", is_full).await;
    assert_eq!(fixture.endpoint.requests().len(), asked, "no further request is sent");
    fixture.bridge().stop().await;
    fixture.endpoint.answer_next([]);
    fixture.bridge().restart();
    fixture.add("home", &["four"]);
    fixture.endpoint.wait_for_event("home", "added", "four").await;
    fixture.bridge().stop().await;
    let (code, _, printed) = fixture.ask(&["dead-letters", "replay", "hook", "--all"]).await;
    assert_eq!((code, printed.matches(": delivered").count()), (0, 3), "{printed}");
}

#[tokio::test]
async fn an_endless_response_body_does_not_delay_an_accepted_event() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::running(&["home"], "").await;
    fixture.endpoint.answer_next([Answer::TakenSlowly, Answer::Huge(200), Answer::TakenSlowly]);
    fixture.add("home", &["one", "two", "three", "four"]);
    fixture.endpoint.wait_for_event("home", "added", "four").await;
    let requests = fixture.endpoint.requests();
    let ids: BTreeSet<&str> = requests.iter().map(Request::id).collect();
    assert_eq!(ids.len(), requests.len(), "each came once");
    assert_promised(&requests);
    fixture.bridge().stop().await;
}

#[tokio::test]
async fn signatures_pass_an_independent_check() {
    let Some(library) = nats::newest("standardwebhooks-") else {
        return skip("the Python package standardwebhooks is missing: scripts/install-peers.sh");
    };
    let other = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    let mut fixture = Fixture::running(&["home"], &format!("secret = \"{SECRET} {other}\"\n")).await;
    fixture.endpoint.answer_next([Answer::Status(500)]);
    fixture.add("home", &["Ünï ☃ \"quoted\" \\"]);
    fixture.endpoint.wait_for_event("home", "added", "Ünï ☃ \"quoted\" \\").await;
    fixture.bridge().stop().await;
    let requests = fixture.endpoint.requests();
    assert!(requests.iter().any(|request| request.answer == Answer::Status(500)), "a repetition is among them");
    let posts: Vec<Value> = requests
        .iter()
        .map(|request| json!({"headers": request.headers, "body": String::from_utf8(request.body.clone()).unwrap()}))
        .collect();
    let file = fixture.folder.path().join("posts.json");
    fs::write(&file, Value::from(posts).to_string()).unwrap();
    let script = "import json, sys\n\
        from standardwebhooks import Webhook, WebhookVerificationError\n\
        posts = json.load(open(sys.argv[1]))\n\
        for post in posts:\n\
        \x20   for secret in sys.argv[2:]:\n\
        \x20       assert Webhook(secret).verify(post['body'].encode(), post['headers'])['type']\n\
        \x20       try:\n\
        \x20           Webhook(secret).verify(post['body'].encode() + b' ', post['headers'])\n\
        \x20       except WebhookVerificationError:\n\
        \x20           continue\n\
        \x20       raise AssertionError('anything passes')\n\
        print(len(posts))\n";
    let output = tokio::process::Command::new("python3")
        .args(["-c", script, &file.to_string_lossy(), SECRET, other])
        .env("PYTHONPATH", library)
        .output()
        .await
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(printed.trim(), requests.len().to_string(), "{output:?}");
}

#[tokio::test]
async fn over_tls_an_endpoint_is_trusted_only_through_its_configured_authority() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new(&["home"]).await;
    let certificates = Certificates::make(&fixture.folder.path().join("certificates"));
    let nginx = Nginx::in_front_of(&fixture.folder.path().join("nginx"), fixture.endpoint.port, &certificates).await;
    let webhook = format!(
        "url = \"https://localhost:{}/hook\"\nca_file = {:?}\nusername = \"u\"\npassword = \"p\"\n\
         headers = {{ X-Api-Key = \"sesame\" }}\n",
        nginx.port,
        certificates.ca.to_string_lossy()
    );
    let unknown_authority = webhook.replace(
        certificates.ca.to_str().unwrap(),
        Certificates::make(&fixture.folder.path().join("others")).ca.to_str().unwrap(),
    );
    fixture.configure(&unknown_authority);
    let (code, _, printed) = fixture.ask(&["check", "--connect"]).await;
    assert_eq!(code, 3, "{printed}");
    assert!(printed.contains("webhook hook: ") && printed.contains("certificate"), "{printed}");
    assert!(fixture.endpoint.requests().is_empty());
    fixture.start(&unknown_authority);
    fixture.bridge().wait_for_log("connection failed, retrying").await;
    fixture.bridge().stop().await;
    assert!(fixture.endpoint.requests().is_empty());
    fixture.configure(&webhook);
    let (code, _, printed) = fixture.ask(&["check", "--connect"]).await;
    assert_eq!(code, 0, "{printed}");
    assert!(fixture.endpoint.requests().iter().all(|request| request.method == "HEAD"), "no event was posted");
    fixture.endpoint.answer_next([]);
    fixture.bridge().restart();
    fixture.add("home", &["one"]);
    let is_it =
        |requests: &[Request]| requests.iter().any(|r| r.method == "POST" && r.event()["torrent"]["name"] == "one");
    let requests = fixture.endpoint.until("it came over TLS", is_it).await;
    let last = requests.last().unwrap();
    assert_eq!((last.headers["authorization"].as_str(), last.headers["x-api-key"].as_str()), ("Basic dTpw", "sesame"));
    fixture.bridge().stop().await;
    assert!(!fixture.bridge().log().contains("sesame") && !fixture.bridge().log().contains("/hook"), "I14");
}

#[tokio::test]
async fn updates_are_sent_only_if_configured_and_then_only_the_newest() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::running(&["home"], "events = [\"added\", \"snapshot_done\", \"updated\"]\n").await;
    fixture.add("home", &["one"]);
    fixture.endpoint.wait_for_event("home", "added", "one").await;
    fixture.endpoint.answer(|_| Answer::Status(503));
    fixture.change("home", "one", "downloaded", json!(5));
    fixture
        .endpoint
        .until("it is away", |requests| requests.last().is_some_and(|r| r.answer == Answer::Status(503)))
        .await;
    fixture.change("home", "one", "downloaded", json!(6));
    fixture.change("home", "one", "uploaded", json!(7));
    fixture.endpoint.answer_next([]);
    let is_newest = |request: &Request| {
        let event = request.event();
        request.answer == Answer::Status(204)
            && (&event["torrent"]["downloaded"], &event["torrent"]["uploaded"]) == (&json!(6), &json!(7))
    };
    let requests = fixture.endpoint.until("the newest came", |requests| requests.iter().any(is_newest)).await;
    let newest = requests.into_iter().find(is_newest).unwrap();
    assert_eq!(newest.json()["type"], "torrent.updated");
    assert!(newest.id().starts_with("home-") && newest.event()["seq"].is_null());
    // `paused` is not configured, so the pause is only an update.
    fixture.change("home", "one", "status", json!("paused"));
    let is_paused = |request: &Request| request.event()["torrent"]["status"] == "paused";
    let requests = fixture.endpoint.until("the update", |requests| requests.iter().any(is_paused)).await;
    let kinds: BTreeSet<String> =
        requests.iter().map(|r| r.event()["event_type"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["added", "snapshot_done", "updated"].map(str::to_owned).into());
    fixture.bridge().stop().await;
}

#[tokio::test]
async fn only_events_that_pass_the_filter_arrive_in_the_configured_format() {
    if !can_run() {
        return;
    }
    let webhook = "format = \"dtorrent\"\nevents = [\"added\", \"paused\"]\ncauses = [\"observed\"]\ntorrents = { name = \"*.iso\" }\n";
    let mut fixture = Fixture::new(&["home"]).await;
    // Torrents of the initial snapshot have the cause `snapshot`.
    fixture.add("home", &["first.iso"]);
    fixture.start(webhook);
    fixture.database().until("it is known", |database| database.last_seq("home") >= 3).await;
    fixture.add("home", &["one.txt", "one.iso"]);
    fixture.change("home", "one.iso", "status", json!("paused"));
    fixture.change("home", "one.txt", "status", json!("paused"));
    fixture.change("home", "one.txt", "status", Value::Null);
    fixture.add("home", &["last.iso"]);
    let is_last = |request: &Request| request.json()["torrent"]["name"] == "last.iso";
    let requests = fixture.endpoint.until("the last came", |requests| requests.iter().any(is_last)).await;
    let bodies: Vec<Value> = requests.iter().map(Request::json).collect();
    for body in &bodies {
        assert_eq!(body["entity"], "torrent");
        assert!(body["torrent"]["name"].as_str().unwrap().ends_with(".iso"), "{body}");
        assert_ne!(body["torrent"]["name"], "first.iso");
        assert_eq!(body.as_object().unwrap().len(), 3);
    }
    assert!(bodies.iter().any(|body| body["event"] == "added" && body["torrent"]["name"] == "one.iso"), "{bodies:?}");
    // Filtered events move the cursor, too.
    fixture
        .database()
        .until("the cursor is at the end", |database| database.cursor("hook.home", "home") == database.last_seq("home"))
        .await;
    fixture.bridge().stop().await;
}
