//! The pages and the API: content, commands, and access rules.

use std::time::Duration;

use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::process::free_port;
use dtorrent_peers::rtorrent::{self, Rtorrent};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::harness::bridge::Bridge;
use crate::harness::http::{Answer, Event, Listener, get, get_until, request};
use crate::harness::{Setup, World, can_run};

const TOKEN: &str = "open sesame";
const NAME: &str = "<img src=x onerror=alert(1)>\"'&.iso";

struct Site {
    world: World,
    port: u16,
    hash: InfoHash,
}

impl Site {
    /// Starts a bridge with one complete torrent of a hostile name.
    async fn new(http: &str, rtorrents: &[(&str, &str)]) -> Self {
        let port = free_port().unwrap();
        let http = format!("listen = \"127.0.0.1:{port}\"\n{http}");
        let world = World::new(Setup { http, ..Setup::default() }).await;
        let content = Content::file(NAME, 50_000, 1);
        content.write_to(&world.home.downloads).unwrap();
        let hash = world.home.load(&content.torrent, true).await.unwrap();
        world.home.wait_for(hash, "d.complete", "1").await.unwrap();
        let mut site = Self { world, port, hash };
        site.start_without_broker(rtorrents).await;
        site
    }

    async fn start_without_broker(&mut self, rtorrents: &[(&str, &str)]) {
        let url = self.world.home.url();
        let mut servers = vec![("home", url.as_str())];
        servers.extend(rtorrents);
        let config = self.world.write_config(&servers);
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, text.split("[brokers").next().unwrap()).unwrap();
        self.world.bridge = Some(Bridge::start(&config));
        get_until(self.port, "/readyz", |ready| ready["ready"] == true).await;
    }

    async fn post(&self, path: &str, headers: &[(&str, &str)], body: Value) -> Answer {
        let authorization = format!("Bearer {TOKEN}");
        let mut all = vec![("Authorization", authorization.as_str())];
        all.extend(headers);
        let path = format!("/api/v1/servers/{path}");
        request(self.port, "POST", &path, &all, body.to_string().as_bytes()).await
    }
}

fn with_token() -> String {
    format!("token = \"{TOKEN}\"\n")
}

#[tokio::test]
async fn everything_is_available_over_http_without_any_broker() {
    if !can_run() {
        return;
    }
    let mut site = Site::new(&with_token(), &[]).await;
    let (port, hash) = (site.port, site.hash);
    let servers = get(port, "/api/v1/servers").await.json();
    let home = &servers["servers"][0];
    assert_eq!((&home["name"], &home["status"], &home["torrents"]), (&json!("home"), &json!("online"), &json!(1)));
    assert_eq!(get(port, "/api/v1/sinks").await.json(), json!({"sinks": []}));

    let path = "/api/v1/servers/home/torrents";
    let listed = get(port, &format!("{path}?status=seeding&fields=hash,name&page_size=10")).await.json();
    assert_eq!(listed["torrents"], json!([{"hash": hash, "name": NAME}]));
    assert_eq!((&listed["total"], &listed["page"], &listed["page_size"]), (&json!(1), &json!(0), &json!(10)));
    assert_eq!(get(port, &format!("{path}?status=downloading")).await.json()["total"], 0);
    assert_eq!(get(port, &format!("{path}?page=7")).await.json()["torrents"], json!([]));
    assert_eq!(get(port, &format!("{path}?colour=red")).await.status, 400);
    assert_eq!(get(port, "/api/v1/servers/attic/torrents").await.status, 404);
    let torrent = get(port, &format!("{path}/{hash}")).await.json();
    assert_eq!((&torrent["status"], &torrent["server"]), (&json!("seeding"), &json!("home")));
    assert_eq!(get(port, &format!("{path}/{}", "ab".repeat(20))).await.status, 404);
    assert_eq!(get(port, &format!("{path}/x")).await.status, 400);
    assert_eq!(get(port, "/api/v2").await.status, 404);

    let page = get(port, "/").await;
    assert!(
        page.headers.contains("content-security-policy: default-src 'none'; script-src 'self'"),
        "{}",
        page.headers
    );
    assert!(page.body.contains("&lt;img src=x onerror=alert(1)&gt;&quot;&#39;&amp;.iso"), "{}", page.body);
    assert!(!page.body.contains("<img"), "{}", page.body);
    for (asset, kind) in [("/page.js", "text/javascript"), ("/page.css", "text/css")] {
        let asset = get(port, asset).await;
        assert!(asset.status == 200 && asset.headers.contains(kind), "{}", asset.headers);
    }

    let mut listener = Listener::listen(port, "", None).await;
    let body = json!({"id": "http-1", "hashes": [hash]});
    let answer = site.post("home/commands/pause", &[], body.clone()).await;
    assert_eq!((answer.status, &answer.json()["status"]), (200, &json!("ok")), "{}", answer.body);
    assert_eq!(site.world.home.get(hash, "d.is_active").await.unwrap(), "0");
    let paused = listener.event("home", "paused").await;
    assert_eq!(paused.id.as_deref(), paused.data["id"].as_str());
    assert_eq!((&paused.data["cause"], &paused.data["command_id"]), (&json!("command"), &json!("http-1")));
    let again = site.post("home/commands/pause", &[], body).await;
    assert_eq!(again.body, answer.body, "the same id is answered the same, and not done again");
    let body = json!({"id": "http-2", "hashes": [hash]});
    let (one, other) = tokio::join!(
        site.post("home/commands/announce", &[], body.clone()),
        site.post("home/commands/announce", &[], body)
    );
    assert_eq!(one.body, other.body, "a concurrent request with the same id gets the same result");
    site.world.bridge().wait_for_log("user=\"http\"").await;
    assert!(site.world.bridge().log().contains("command{id="), "a command runs in a span of its own");

    let path = format!("home/torrents/{hash}/commands/resume");
    assert_eq!(site.post(&path, &[], json!({})).await.json()["status"], "ok");
    listener.event("home", "resumed").await;
    let magnet = format!("magnet:?xt=urn:btih:{}", "ab".repeat(20));
    let headers = [("Authorization", &*format!("Bearer {TOKEN}"))];
    let add = request(port, "POST", "/api/v1/servers/home/commands/add", &headers, magnet.as_bytes()).await;
    assert_eq!(add.json()["status"], "ok", "a bare link: {}", add.body);
    listener.event("home", "added").await;
    assert!(listener.received.iter().all(|event| event.data["event_type"] != "updated" || event.id.is_none()));
    site.world.bridge().stop().await;
}

#[tokio::test]
async fn requests_without_permission_change_nothing() {
    if !can_run() {
        return;
    }
    let mut site = Site::new(&format!("{}hosts = [\"torrents.example.org\"]\n", with_token()), &[]).await;
    let (port, hash) = (site.port, site.hash);
    let path = format!("/api/v1/servers/home/torrents/{hash}/commands/stop");
    let right = format!("Bearer {TOKEN}");
    let here = format!("127.0.0.1:{port}");
    for (headers, expected) in [
        (vec![], 401),
        (vec![("Authorization", "Bearer wrong")], 401),
        (vec![("Authorization", "Bearer ")], 401),
        (vec![("Authorization", TOKEN)], 401),
        (vec![("Authorization", &*right), ("Host", "evil.example")], 403),
        (vec![("Authorization", &*right), ("Host", "127.0.0.1.evil.example")], 403),
        (vec![("Authorization", &*right), ("Origin", "http://evil.example")], 403),
        (vec![("Authorization", &*right), ("Origin", "null")], 403),
        (vec![("Authorization", &*right), ("Sec-Fetch-Site", "cross-site")], 403),
    ] {
        let answer = request(port, "POST", &path, &headers, b"{}").await;
        assert_eq!(answer.status, expected, "{headers:?}: {}", answer.body);
        assert_eq!(answer.json()["error"]["code"], "forbidden");
    }
    for reading in ["/", "/page.js", "/api/v1/servers", "/api/v1/events", "/api/v1/servers/home/torrents"] {
        assert_eq!(request(port, "GET", reading, &[("Host", "evil.example")], b"").await.status, 403, "{reading}");
    }
    assert_eq!(request(port, "GET", "/", &[("Host", "torrents.example.org")], b"").await.status, 200);
    assert_eq!(request(port, "GET", "/metrics", &[("Host", "dtorrent.internal")], b"").await.status, 200);
    assert_eq!(request(port, "GET", &path, &[], b"").await.status, 405);

    for (verb, body, status, code) in [
        ("explode", json!({}), 501, "unsupported"),
        ("stop", json!({"hashes": ["ab".repeat(20)]}), 404, "unknown_hash"),
        ("stop", json!({"hash": 1}), 400, "bad_request"),
        ("stop", json!({"hashes": [hash], "reply_to": "x/y"}), 403, "forbidden"),
        ("delete", json!({"hashes": [hash], "data": true}), 403, "forbidden"),
        ("rpc", json!({"method": "system.pid"}), 403, "forbidden"),
        ("resync", json!({}), 403, "forbidden"),
    ] {
        let answer = site.post(&format!("home/commands/{verb}"), &[], body).await;
        assert_eq!(answer.status, status, "{verb}: {}", answer.body);
        let result = answer.json();
        let error = if result["error"].is_null() { &result["results"][0]["error"] } else { &result["error"] };
        assert_eq!(error["code"], code, "{verb}: {}", answer.body);
    }
    assert_eq!(site.post("attic/commands/stop", &[], json!({})).await.status, 404);
    let large = vec![b'x'; (10 << 20) + 1];
    let answer = request(port, "POST", &path, &[("Authorization", &*right)], &large).await;
    assert_eq!(answer.status, 413);
    assert_eq!(site.world.home.get(hash, "d.is_active").await.unwrap(), "1", "no request stopped it");
    let origin = format!("http://{here}");
    let path = format!("home/torrents/{hash}/commands/stop");
    assert_eq!(site.post(&path, &[("Origin", &*origin)], json!({})).await.status, 200);
    let log = site.world.bridge().log();
    assert!(!log.contains(TOKEN), "the token is in no log");
}

#[tokio::test]
async fn every_error_is_json_with_code_message_and_retryable() {
    if !can_run() {
        return;
    }
    let site = Site::new(&with_token(), &[]).await;
    let (port, right) = (site.port, format!("Bearer {TOKEN}"));
    let token = ("Authorization", right.as_str());
    let pause = "/api/v1/servers/home/commands/pause";
    for (method, path, headers, body, status, code, part) in [
        ("POST", "/", vec![], "", 405, "unsupported", "POST is not possible at this address"),
        ("POST", "/healthz", vec![], "", 405, "unsupported", "is not possible"),
        ("DELETE", "/metrics", vec![], "", 405, "unsupported", "DELETE is not possible"),
        ("GET", pause, vec![], "", 405, "unsupported", "is not possible"),
        ("OPTIONS", pause, vec![], "", 405, "unsupported", "is not possible"),
        ("PUT", "/api/v1/servers", vec![token], "{}", 405, "unsupported", "is not possible"),
        ("GET", "/api/v2", vec![], "", 404, "unsupported", "no such address"),
        ("POST", "/api/v1/servers/home/command/pause", vec![token], "{}", 404, "unsupported", "no such address"),
        ("GET", "/api/v1/servers/hone/torrents", vec![], "", 404, "unknown_server", "did you mean `home`? known: home"),
        ("GET", "/api/v1/servers/a%ff/torrents", vec![], "", 400, "bad_request", "not valid"),
        ("GET", "/api/v1/servers/home/torrents?pge=1", vec![], "", 400, "bad_request", "did you mean `page`?"),
        ("GET", "/api/v1/servers/home/torrents?fields=hahs", vec![], "", 400, "bad_request", "did you mean `hash`?"),
        ("GET", "/api/v1/servers/home/torrents?status=pausd", vec![], "", 400, "bad_request", "paused"),
        ("GET", "/api/v1/events?server=hone", vec![], "", 404, "unknown_server", "did you mean `home`?"),
        ("GET", "/api/v1/events?event=finised", vec![], "", 400, "bad_request", "did you mean `finished`?"),
        ("POST", "/api/v1/dead-letters/x/replay", vec![token], r#"{"all": true}"#, 400, "bad_request", "known: none"),
        ("POST", "/api/v1/dead-letters/x/replay", vec![token], "all=true", 400, "bad_request", "expected {"),
    ] {
        let answer = request(port, method, path, &headers, body.as_bytes()).await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
        assert!(answer.headers.contains("content-type: application/json"), "{method} {path}: {}", answer.headers);
        let error = &answer.json()["error"];
        assert_eq!((&error["code"], &error["retryable"]), (&json!(code), &json!(false)), "{method} {path}: {error}");
        assert!(error["message"].as_str().unwrap().contains(part), "{method} {path}: {error}");
        assert_eq!(answer.headers.contains("allow: "), status == 405, "{method} {path}: {}", answer.headers);
    }
    // The results of commands have the same error, whatever the content type says.
    let large = "x".repeat((10 << 20) + 1);
    for (kind, path, body, status, code) in [
        ("application/x-www-form-urlencoded", pause, "hashes=x", 400, "bad_request"),
        ("multipart/form-data; boundary=b", pause, "--b\r\n\r\nx\r\n--b--\r\n", 400, "bad_request"),
        ("text/xml", "/api/v1/servers/home/commands/add", "<x/>", 400, "bad_request"),
        ("application/json", "/api/v1/servers/hone/commands/pause", "{}", 404, "unknown_server"),
        ("application/json", "/api/v1/servers/home/commands/puase", "{}", 501, "unsupported"),
        ("application/json", pause, &large, 413, "too_large"),
    ] {
        let answer = request(port, "POST", path, &[token, ("Content-Type", kind)], body.as_bytes()).await;
        assert_eq!(answer.status, status, "{kind} {path}: {}", answer.body);
        assert!(answer.headers.contains("content-type: application/json"), "{kind}: {}", answer.headers);
        let error = &answer.json()["error"];
        assert_eq!((&error["code"], error["message"].is_string()), (&json!(code), true), "{kind} {path}: {error}");
    }
    for (path, status) in [("/healthz", 200), ("/api/v1/servers", 200), ("/api/v2", 404), (pause, 405)] {
        let answer = request(port, "HEAD", path, &[], b"").await;
        assert_eq!((answer.status, answer.body.as_str()), (status, ""), "{path}: {}", answer.headers);
    }
}

#[tokio::test]
async fn without_a_configured_token_every_change_is_refused() {
    if !can_run() {
        return;
    }
    let site = Site::new("", &[]).await;
    let answer = site.post("home/commands/stop", &[], json!({"hashes": [site.hash]})).await;
    assert_eq!(answer.status, 403);
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("http.token"), "{}", answer.body);
    assert_eq!(site.world.home.get(site.hash, "d.is_active").await.unwrap(), "1");
}

#[tokio::test]
async fn an_event_stream_resumes_at_its_last_event_after_the_bridge_was_killed() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let attic = Rtorrent::start(&folder.path().join("attic"), &rtorrent::Options::default()).await.unwrap();
    let url = attic.url();
    let mut site = Site::new(&with_token(), &[("attic", &url)]).await;
    let (port, hash) = (site.port, site.hash);
    let mut first = Listener::listen(port, "", None).await;
    let command = async |verb: &str| {
        let answer = site.post(&format!("home/commands/{verb}"), &[], json!({"hashes": [hash]})).await;
        assert_eq!(answer.json()["status"], "ok", "{}", answer.body);
    };
    command("pause").await;
    let last = first.event("home", "paused").await;
    command("resume").await;
    let content = Content::file("attic.iso", 50_000, 2);
    content.write_to(&attic.downloads).unwrap();
    attic.load(&content.torrent, true).await.unwrap();
    let added = first.event("attic", "added").await;

    site.world.bridge().restart();
    get_until(port, "/readyz", |ready| ready["ready"] == true).await;
    assert!(first.next().await.is_none_or(|event| !event.data.is_null()), "the old one is over, or had more");
    let answer = site.post("home/commands/stop", &[], json!({"hashes": [hash]})).await;
    assert_eq!(answer.json()["status"], "ok", "{}", answer.body);

    // Resuming after an event of one server yields all later events of both.
    let mut second = Listener::listen(port, "", last.id.as_deref()).await;
    second.event("home", "stopped").await;
    let received = |server: &str| -> Vec<u64> {
        let events = second.received.iter().filter(|event| event.data["server"] == server);
        events.filter_map(|event| event.data["seq"].as_u64()).collect()
    };
    let after = last.data["seq"].as_u64().unwrap();
    let home = received("home");
    assert_eq!(home, (after + 1..=after + home.len() as u64).collect::<Vec<_>>(), "no gap");
    assert!(received("attic").contains(&added.data["seq"].as_u64().unwrap()), "of the other server too");
    assert!(
        second.received.iter().all(|event| event.kind.is_none()),
        "an event is reported as missing: {:?}",
        second.received
    );

    let epoch = last.id.as_deref().unwrap().split('-').nth(1).unwrap();
    for unknown in [
        "x",
        "home-00000000-000000000001",
        &format!("home-{epoch}-000000999999"),
        &format!("garage-{epoch}-000000000001"),
    ] {
        let mut third = Listener::listen(port, "", Some(unknown)).await;
        let gap = third.next().await.unwrap();
        assert_eq!(gap.kind.as_deref(), Some("gap"), "{unknown}: {gap:?}");
    }
    let mut chosen = Listener::listen(port, "?server=attic&event=added", last.id.as_deref()).await;
    assert_eq!(chosen.next().await.unwrap().id, added.id);
}

/// Returns whether the connection between two local ports is established, as seen from the first.
fn is_established(port: u16, other: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let (here, there) = (format!("0100007F:{port:04X}"), format!("0100007F:{other:04X}"));
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        matches!(fields[..], [_, from, to, "01", ..] if from == here && to == there)
    })
}

#[tokio::test]
async fn an_event_stream_whose_client_does_not_read_is_closed_and_can_be_resumed() {
    if !can_run() {
        return;
    }
    let mut site = Site::new(&with_token(), &[]).await;
    let port = site.port;
    for number in 0..200 {
        let content = Content::file(&format!("{number}-{}", "x".repeat(200)), 1_000, number);
        site.world.home.load(&content.torrent, false).await.unwrap();
    }
    get_until(port, "/api/v1/servers", |servers| servers["servers"][0]["torrents"] == 201).await;
    let mut quick = Listener::listen(port, "", None).await;
    let (mut idle, idle_port) = Listener::listen_with_small_buffer(port).await;
    assert!(is_established(port, idle_port));
    // The system buffers some megabytes for the client; once they are full, it is disconnected after ten seconds.
    let deadline = Instant::now() + Duration::from_secs(180);
    let mut rounds = 0;
    while is_established(port, idle_port) {
        assert!(Instant::now() < deadline, "an idle client is still connected after {rounds} rounds");
        rounds += 1;
        let label = format!("{rounds}-{}", "y".repeat(200));
        let answer = site.post("home/commands/label", &[], json!({"filter": {}, "label": label})).await;
        assert_eq!(answer.json()["status"], "ok", "{}", answer.body);
        // Other clients receive every event meanwhile.
        let is_of_round = |event: &Event| event.data["torrent"]["label"] == label.as_str() && event.id.is_some();
        for _ in 0..201 {
            quick.until(is_of_round).await;
        }
    }
    let peak = site.world.bridge().peak_bytes();
    assert!(peak < 400 << 20, "{peak} bytes of memory");

    // The buffered part arrives, perhaps cut off; then the connection ends.
    let mut received = Vec::new();
    while let Some(event) = idle.next().await {
        received.extend(event.data["seq"].as_u64().map(|seq| (seq, event.id.clone())));
    }
    let (last, id) = received.pop().expect("some came before the line was full");
    let all: Vec<u64> = quick.received.iter().filter_map(|event| event.data["seq"].as_u64()).collect();
    assert!(all.last().is_some_and(|newest| *newest > last), "he missed some");
    let mut again = Listener::listen(port, "", id.as_deref()).await;
    let next = again.until(|event| event.data["seq"].is_u64()).await;
    assert_eq!(next.data["seq"], last + 1, "{next:?}");
    assert!(again.received.iter().all(|event| event.kind.is_none()), "nothing is missing: {:?}", again.received);
    site.world.bridge().stop().await;
}
