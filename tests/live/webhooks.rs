//! Webhooks: the real bridge, and endpoints that fail in every way.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use dtorrent_peers::process::free_port;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::bridge::Bridge;
use crate::harness::certificates::Certificates;
use crate::harness::http::{get, get_until, request};
use crate::harness::ledger::Ledger;
use crate::harness::nginx::Nginx;
use crate::harness::receiver::{Answer, Receiver, Request};
use crate::harness::{can_run, nats};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Servers that are files, an endpoint, and no broker; the bridge is started by the test.
struct Stage {
    endpoint: Receiver,
    bridge: Option<Bridge>,
    folder: TempDir,
    torrents: BTreeMap<String, Vec<Value>>,
    http: String,
}

impl Stage {
    async fn new(servers: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("dt-hook-").tempdir().unwrap();
        let torrents = servers.iter().map(|server| ((*server).to_owned(), Vec::new())).collect();
        let http = "listen = \"off\"\n".to_owned();
        let stage = Self { endpoint: Receiver::start().await, bridge: None, folder, torrents, http };
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

    fn ledger(&self) -> Ledger {
        Ledger::of(&self.folder.path().join("data"))
    }

    /// Runs another command with the same config: its exit code, and what it says to stdout and stderr.
    async fn ask(&self, arguments: &[&str]) -> (i32, String, String) {
        let config = self.folder.path().join("dtorrent.toml");
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_dtorrent"));
        let output = command.args(arguments).arg("--config").arg(config).output().await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
}

/// What the contract promises of everything that came: the same id with the same body, and for each server
/// the first deliveries in the order of `seq`, without a gap.
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
    let taken: BTreeSet<&str> = requests.iter().filter(|r| r.answer.is_taken()).map(Request::id).collect();
    assert_eq!(all, taken, "everything that came was taken in the end");
}

#[tokio::test]
async fn an_endpoint_that_fails_in_every_way_gets_each_event_in_order_and_with_the_same_body() {
    if !can_run() {
        return;
    }
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

#[tokio::test]
async fn a_bridge_that_is_killed_while_it_posts_goes_on_where_it_was() {
    if !can_run() {
        return;
    }
    let mut stage = Stage::running(&["attic", "home"], "timeout = \"5s\"\n").await;
    // Every third request is not answered, so that kills find something under way.
    let mut count = 0;
    stage.endpoint.answer(move |_| {
        count += 1;
        if count % 3 == 0 { Answer::Hang } else { Answer::Status(204) }
    });
    let mut had = 0;
    for round in 0..5 {
        let names: Vec<String> = (0..4).map(|number| format!("r{round}t{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        stage.add("home", &names);
        stage.add("attic", &names);
        let is_hanging = |requests: &[Request]| requests[had..].iter().any(|request| request.answer == Answer::Hang);
        let requests = stage.endpoint.until("a request hangs", is_hanging).await;
        had = requests.len();
        stage.bridge().restart();
    }
    stage.endpoint.answer_next([]);
    for server in ["attic", "home"] {
        stage.endpoint.takes(server, "added", "r4t3").await;
    }
    assert_promised(&stage.endpoint.requests());
    stage.bridge().stop().await;
}

#[tokio::test]
async fn an_event_that_an_endpoint_stumbles_over_holds_back_its_own_server_only() {
    if !can_run() {
        return;
    }
    let mut stage = Stage::running(&["attic", "home"], "").await;
    stage.endpoint.answer(|request| {
        let is_stone = request.event()["torrent"]["name"] == "stone";
        if is_stone { Answer::Status(500) } else { Answer::Status(204) }
    });
    stage.add("home", &["stone", "behind it"]);
    stage
        .endpoint
        .until("it stumbles", |requests| requests.last().is_some_and(|r| r.answer == Answer::Status(500)))
        .await;
    stage.add("attic", &["another"]);
    stage.endpoint.takes("attic", "added", "another").await;
    let is_behind = |request: &Request| request.event()["torrent"]["name"] == "behind it";
    assert!(!stage.endpoint.requests().iter().any(is_behind), "what is behind it waits");
    stage.endpoint.answer_next([]);
    stage.endpoint.takes("home", "added", "behind it").await;
    assert_promised(&stage.endpoint.requests());
    stage.bridge().stop().await;
}

#[tokio::test]
async fn events_that_an_endpoint_refuses_are_dead_letters_and_can_be_replayed() {
    if !can_run() {
        return;
    }
    let webhook = format!("secret = \"{SECRET}\"\n");
    let mut stage = Stage::running(&["home"], &webhook).await;
    let refused =
        |request: &Request| request.event()["torrent"]["name"].as_str().is_some_and(|name| name.starts_with("bad"));
    stage.endpoint.answer(move |request| if refused(request) { Answer::Status(422) } else { Answer::Status(204) });
    stage.add("home", &["bad one", "good", "bad two"]);
    stage.ledger().until("both are put aside", |ledger| ledger.dead_letters("hook.home").len() == 2).await;
    stage.endpoint.takes("home", "added", "good").await;
    let asked = |request: &Request| request.answer == Answer::Status(422);
    let mut first: Vec<Request> = stage.endpoint.requests().into_iter().filter(asked).collect();
    assert!((4..=20).contains(&first.len()), "{} attempts", first.len());
    first.dedup_by(|later, first| later.id() == first.id());
    assert_eq!(first.len(), 2, "one after the other");
    // Looked at while the bridge runs.
    let (code, listed, _) = stage.ask(&["dead-letters", "list", "--json"]).await;
    let listed: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((code, listed.len()), (0, 2));
    assert!(listed[0]["reason"].as_str().unwrap().starts_with("the endpoint answers 422: because "), "{listed:?}");
    assert_eq!((&listed[0]["sink"], &listed[0]["id"]), (&json!("hook"), &json!(first[0].id())));
    assert_eq!(listed[0]["event"], first[0].event());
    let (_, text, _) = stage.ask(&["dead-letters", "list"]).await;
    assert!(text.contains("added \"bad one\": the endpoint answers 422"), "{text}");
    // A bridge that is to be asked has to have a token.
    let (code, _, said) = stage.ask(&["dead-letters", "replay", "hook", "--all"]).await;
    assert_eq!(code, 1);
    assert!(said.contains("the bridge is running") && said.contains("http.token"), "{said}");
    stage.bridge().stop().await;
    for (arguments, expected) in [
        (&["dead-letters", "replay", "hook"][..], 2),
        (&["dead-letters", "replay", "other", "--all"], 1),
        (&["dead-letters", "replay", "hook", "home-00000000-000000000001"], 1),
        // It still refuses them.
        (&["dead-letters", "replay", "hook", "--all"], 1),
    ] {
        let (code, _, said) = stage.ask(arguments).await;
        assert_eq!(code, expected, "{arguments:?}: {said}");
    }
    stage.endpoint.answer_next([Answer::Status(204), Answer::Status(503)]);
    let (code, _, said) = stage.ask(&["dead-letters", "replay", "hook", first[1].id()]).await;
    assert_eq!((code, said.as_str()), (0, format!("{}: delivered\n", first[1].id()).as_str()));
    let (code, _, said) = stage.ask(&["dead-letters", "replay", "hook", "--all"]).await;
    assert_eq!(code, 3, "{said}");
    let (code, _, said) = stage.ask(&["dead-letters", "replay", "hook", "--all"]).await;
    assert_eq!(code, 0, "{said}");
    assert!(stage.ledger().dead_letters("hook.home").is_empty());
    assert_promised_but_for_order(&stage.endpoint.requests());
    // Nothing of that confuses the next life.
    stage.bridge().restart();
    stage.add("home", &["later"]);
    stage.endpoint.takes("home", "added", "later").await;
    stage.bridge().stop().await;
}

#[tokio::test]
async fn a_running_bridge_replays_dead_letters_one_at_a_time() {
    if !can_run() {
        return;
    }
    let mut stage = Stage::new(&["home"]).await;
    let port = free_port().unwrap();
    stage.http = format!("listen = \"127.0.0.1:{port}\"\ntoken = \"open sesame\"\n");
    stage.start("");
    stage.endpoint.takes("home", "snapshot_done", "").await;
    stage.endpoint.answer(|request| match request.event()["torrent"]["name"].as_str() {
        Some(name) if name.starts_with("bad") => Answer::Status(422),
        _ => Answer::Status(204),
    });
    stage.add("home", &["bad one", "bad two", "bad three", "good"]);
    stage.endpoint.takes("home", "added", "good").await;
    let letters = |ledger: &Ledger| ledger.dead_letters("hook.home").len();
    stage.ledger().until("all are put aside", |ledger| letters(ledger) == 3).await;
    for (arguments, expected, reason) in [
        (&["dead-letters", "replay", "hook", "home-00000000-000000000001"][..], 1, "no dead letter"),
        (&["dead-letters", "replay", "other", "--all"], 1, "no broker or webhook other"),
        (&["dead-letters", "replay", "hook", "--all"], 1, "422"),
    ] {
        let (code, _, said) = stage.ask(arguments).await;
        assert_eq!(code, expected, "{arguments:?}: {said}");
        assert!(said.contains(reason), "{arguments:?}: {said}");
    }
    let first = stage.endpoint.requests().iter().find(|r| r.answer == Answer::Status(422)).unwrap().id().to_owned();
    stage.endpoint.answer_next([Answer::Status(204), Answer::Status(503)]);
    let (code, _, said) = stage.ask(&["dead-letters", "replay", "hook", &first]).await;
    assert_eq!((code, said), (0, format!("{first}: delivered\n")));
    let (code, _, said) = stage.ask(&["dead-letters", "replay", "hook", "--all"]).await;
    assert_eq!((code, said.lines().count()), (3, 1), "who is away is asked once: {said}");

    // While it goes, new events come: neither is under way beside the other.
    stage.endpoint.answer(|_| Answer::Late);
    stage.add("home", &["new one", "new two"]);
    let (code, _, said) = stage.ask(&["dead-letters", "replay", "hook", "--all"]).await;
    assert_eq!((code, said.matches(": delivered").count()), (0, 2), "{said}");
    stage.endpoint.takes("home", "added", "new two").await;
    assert_eq!((letters(&stage.ledger()), stage.endpoint.most_at_once()), (0, 1));
    assert_promised_but_for_order(&stage.endpoint.requests());

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
    stage.bridge().stop().await;
    assert!(!stage.bridge().log().contains("open sesame"));
}

#[tokio::test]
async fn an_unreachable_endpoint_is_shown_on_every_page() {
    if !can_run() {
        return;
    }
    let mut stage = Stage::new(&["home"]).await;
    let port = free_port().unwrap();
    stage.http = format!("listen = \"127.0.0.1:{port}\"\n");
    stage.start("");
    stage.endpoint.takes("home", "snapshot_done", "").await;
    stage.endpoint.answer(|_| Answer::Status(503));
    stage.add("home", &["one"]);
    let is_told = |sink: &Value| {
        sink["status"] == "offline" && sink["problem"].as_str().is_some_and(|problem| problem.contains("503"))
    };
    get_until(port, "/api/v1/sinks", |sinks| sinks["sinks"][0]["name"] == "hook.home" && is_told(&sinks["sinks"][0]))
        .await;
    let ready = get(port, "/readyz").await;
    assert!(ready.status == 503 && ready.body.contains("hook.home"), "{}", ready.body);
    let metrics = get(port, "/metrics").await.body;
    assert!(metrics.contains("dtorrent_sink_connected{sink=\"hook.home\"} 0"), "{metrics}");
    stage.endpoint.answer_next([]);
    stage.endpoint.takes("home", "added", "one").await;
    get_until(port, "/readyz", |ready| ready["ready"] == true).await;
    stage.bridge().stop().await;
}

#[tokio::test]
async fn an_expired_event_is_a_dead_letter_and_the_rest_goes_on() {
    if !can_run() {
        return;
    }
    let mut stage = Stage::running(&["home"], "keep_trying = \"3s\"\n").await;
    stage.endpoint.answer(|request| {
        let is_stone = request.event()["torrent"]["name"] == "stone";
        if is_stone { Answer::Status(500) } else { Answer::Status(204) }
    });
    stage.add("home", &["stone", "behind it"]);
    stage.endpoint.takes("home", "added", "behind it").await;
    let letters = stage.ledger().dead_letters("hook.home");
    let [(body, reason)] = letters.as_slice() else { panic!("{letters:?}") };
    assert!(body.contains("\"stone\""), "{body}");
    assert_eq!(reason, "in vain for 3s, at last: the endpoint answers 500: because 1");
    let tries = stage.endpoint.requests().iter().filter(|request| request.answer == Answer::Status(500)).count();
    assert!((3..=6).contains(&tries), "{tries} attempts");
    stage.bridge().stop().await;
}

#[tokio::test]
async fn an_endpoint_that_is_gone_is_switched_off_until_the_next_start() {
    if !can_run() {
        return;
    }
    let mut stage = Stage::running(&["attic", "home"], "").await;
    stage.endpoint.answer(|_| Answer::Status(410));
    stage.add("home", &["one"]);
    stage.bridge().says("switched off until the next start").await;
    let asked = stage.endpoint.requests().len();
    stage.add("home", &["two"]);
    stage.add("attic", &["three"]);
    let is_full =
        |ledger: &Ledger| ledger.dead_letters("hook.home").len() == 2 && ledger.dead_letters("hook.attic").len() == 1;
    stage.ledger().until("all is put aside", is_full).await;
    assert_eq!(stage.endpoint.requests().len(), asked, "nobody is asked any more");
    stage.bridge().stop().await;
    stage.endpoint.answer_next([]);
    stage.bridge().restart();
    stage.add("home", &["four"]);
    stage.endpoint.takes("home", "added", "four").await;
    stage.bridge().stop().await;
    let (code, _, said) = stage.ask(&["dead-letters", "replay", "hook", "--all"]).await;
    assert_eq!((code, said.matches(": delivered").count()), (0, 3), "{said}");
}

#[tokio::test]
async fn a_taken_event_is_not_held_up_by_an_answer_that_never_ends() {
    if !can_run() {
        return;
    }
    let mut stage = Stage::running(&["home"], "").await;
    stage.endpoint.answer_next([Answer::TakenSlowly, Answer::Huge(200), Answer::TakenSlowly]);
    stage.add("home", &["one", "two", "three", "four"]);
    stage.endpoint.takes("home", "added", "four").await;
    let requests = stage.endpoint.requests();
    let ids: BTreeSet<&str> = requests.iter().map(Request::id).collect();
    assert_eq!(ids.len(), requests.len(), "each came once");
    assert_promised(&requests);
    stage.bridge().stop().await;
}

#[tokio::test]
async fn what_is_signed_passes_a_check_that_is_not_ours() {
    let Some(library) = nats::newest("standardwebhooks-") else {
        let is_required = std::env::var("DTORRENT_LIVE").is_ok_and(|value| value == "required");
        assert!(!is_required || nats::is_excused(), "standardwebhooks: see scripts/install-peers.sh");
        return;
    };
    let other = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    let mut stage = Stage::running(&["home"], &format!("secret = \"{SECRET} {other}\"\n")).await;
    stage.endpoint.answer_next([Answer::Status(500)]);
    stage.add("home", &["Ünï ☃ \"quoted\" \\"]);
    stage.endpoint.takes("home", "added", "Ünï ☃ \"quoted\" \\").await;
    stage.bridge().stop().await;
    let requests = stage.endpoint.requests();
    assert!(requests.iter().any(|request| request.answer == Answer::Status(500)), "a repetition is among them");
    let posts: Vec<Value> = requests
        .iter()
        .map(|request| json!({"headers": request.headers, "body": String::from_utf8(request.body.clone()).unwrap()}))
        .collect();
    let file = stage.folder.path().join("posts.json");
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
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.trim(), requests.len().to_string(), "{output:?}");
}

#[tokio::test]
async fn over_tls_an_endpoint_is_believed_by_its_own_authority_only() {
    if !can_run() {
        return;
    }
    let mut stage = Stage::new(&["home"]).await;
    let certificates = Certificates::make(&stage.folder.path().join("certificates"));
    let nginx = Nginx::in_front_of(&stage.folder.path().join("nginx"), stage.endpoint.port, &certificates).await;
    let webhook = format!(
        "url = \"https://localhost:{}/hook\"\nca_file = {:?}\nusername = \"u\"\npassword = \"p\"\n\
         headers = {{ X-Api-Key = \"sesame\" }}\n",
        nginx.port,
        certificates.ca.to_string_lossy()
    );
    let stranger = webhook.replace(
        certificates.ca.to_str().unwrap(),
        Certificates::make(&stage.folder.path().join("others")).ca.to_str().unwrap(),
    );
    stage.configure(&stranger);
    let (code, _, said) = stage.ask(&["check", "--connect"]).await;
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("webhook hook: ") && said.contains("certificate"), "{said}");
    assert!(stage.endpoint.requests().is_empty());
    stage.start(&stranger);
    stage.bridge().says("not connected, trying on").await;
    stage.bridge().stop().await;
    assert!(stage.endpoint.requests().is_empty());
    stage.configure(&webhook);
    let (code, _, said) = stage.ask(&["check", "--connect"]).await;
    assert_eq!(code, 0, "{said}");
    assert!(stage.endpoint.requests().iter().all(|request| request.method == "HEAD"), "no event was posted");
    stage.endpoint.answer_next([]);
    stage.bridge().restart();
    stage.add("home", &["one"]);
    let is_it =
        |requests: &[Request]| requests.iter().any(|r| r.method == "POST" && r.event()["torrent"]["name"] == "one");
    let requests = stage.endpoint.until("it came over TLS", is_it).await;
    let last = requests.last().unwrap();
    assert_eq!((last.headers["authorization"].as_str(), last.headers["x-api-key"].as_str()), ("Basic dTpw", "sesame"));
    stage.bridge().stop().await;
    assert!(!stage.bridge().log().contains("sesame") && !stage.bridge().log().contains("/hook"), "I14");
}

#[tokio::test]
async fn updates_come_only_if_they_are_asked_for_and_then_the_newest() {
    if !can_run() {
        return;
    }
    let mut stage = Stage::running(&["home"], "events = [\"added\", \"snapshot_done\", \"updated\"]\n").await;
    stage.add("home", &["one"]);
    stage.endpoint.takes("home", "added", "one").await;
    stage.endpoint.answer(|_| Answer::Status(503));
    stage.change("home", "one", "downloaded", json!(5));
    stage
        .endpoint
        .until("it is away", |requests| requests.last().is_some_and(|r| r.answer == Answer::Status(503)))
        .await;
    stage.change("home", "one", "downloaded", json!(6));
    stage.change("home", "one", "uploaded", json!(7));
    stage.endpoint.answer_next([]);
    let is_newest = |request: &Request| {
        let event = request.event();
        request.answer == Answer::Status(204)
            && (&event["torrent"]["downloaded"], &event["torrent"]["uploaded"]) == (&json!(6), &json!(7))
    };
    let requests = stage.endpoint.until("the newest came", |requests| requests.iter().any(is_newest)).await;
    let newest = requests.into_iter().find(is_newest).unwrap();
    assert_eq!(newest.json()["type"], "torrent.updated");
    assert!(newest.id().starts_with("home-") && newest.event()["seq"].is_null());
    // Paused is no event that was asked for, and so only an update.
    stage.change("home", "one", "status", json!("paused"));
    let is_paused = |request: &Request| request.event()["torrent"]["status"] == "paused";
    let requests = stage.endpoint.until("the update", |requests| requests.iter().any(is_paused)).await;
    let kinds: BTreeSet<String> =
        requests.iter().map(|r| r.event()["event_type"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["added", "snapshot_done", "updated"].map(str::to_owned).into());
    stage.bridge().stop().await;
}

#[tokio::test]
async fn only_what_the_filter_lets_through_comes_in_the_body_that_was_wished_for() {
    if !can_run() {
        return;
    }
    let webhook = "format = \"dtorrent\"\nevents = [\"added\", \"paused\"]\ncauses = [\"observed\"]\ntorrents = { name = \"*.iso\" }\n";
    let mut stage = Stage::new(&["home"]).await;
    // What is there at first sight has the cause snapshot.
    stage.add("home", &["first.iso"]);
    stage.start(webhook);
    stage.ledger().until("it is known", |ledger| ledger.last_seq("home") >= 3).await;
    stage.add("home", &["one.txt", "one.iso"]);
    stage.change("home", "one.iso", "status", json!("paused"));
    stage.change("home", "one.txt", "status", json!("paused"));
    stage.change("home", "one.txt", "status", Value::Null);
    stage.add("home", &["last.iso"]);
    let is_last = |request: &Request| request.json()["torrent"]["name"] == "last.iso";
    let requests = stage.endpoint.until("the last came", |requests| requests.iter().any(is_last)).await;
    let told: Vec<Value> = requests.iter().map(Request::json).collect();
    for body in &told {
        assert_eq!(body["entity"], "torrent");
        assert!(body["torrent"]["name"].as_str().unwrap().ends_with(".iso"), "{body}");
        assert_ne!(body["torrent"]["name"], "first.iso");
        assert_eq!(body.as_object().unwrap().len(), 3);
    }
    assert!(told.iter().any(|body| body["event"] == "added" && body["torrent"]["name"] == "one.iso"), "{told:?}");
    // What was left out is dealt with, too.
    stage
        .ledger()
        .until("the cursor is at the end", |ledger| ledger.cursor("hook.home", "home") == ledger.last_seq("home"))
        .await;
    stage.bridge().stop().await;
}
