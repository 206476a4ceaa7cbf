//! `add` by URL: redirects, encodings, pages that are no torrents, and addresses that links must not reach.

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dtorrent_peers::content::Content;
use dtorrent_peers::process::free_port;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use url::Url;

use crate::harness::bridge::Bridge;
use crate::harness::certificates::Certificates;
use crate::harness::nginx::Nginx;
use crate::harness::recorder::error_code;
use crate::harness::{Setup, World, can_run};

const PASSKEY: &str = "0123456789secret";
const MAGNET: &str = "magnet:?xt=urn:btih:c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff&dn=a b&tr.1=http://127.0.0.1:9/a";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Returns an answer with these lines of header.
fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!("HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    [head.as_bytes(), body].concat()
}

fn redirect(to: &str) -> Vec<u8> {
    answer(&format!("302 Found\r\nLocation: {to}"), b"")
}

struct Web {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

/// A web server that answers a path with what `answers` returns for it.
#[allow(clippy::disallowed_methods)] // a test's own task, gone with its runtime
async fn serve(answers: impl Fn(&str) -> Vec<u8> + Send + 'static) -> Web {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, requests) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let path = request.split(['?', ' ']).nth(1).unwrap_or_default();
            let answer = answers(path);
            drop(stream.write_all(&answer).await);
            if path == "/kept" {
                // Held open, and closed at the next request.
                tokio::spawn(async move { drop(stream.read_u8().await) });
            }
        }
    });
    Web { address, requests }
}

async fn add(world: &World, url: &str) -> Value {
    world.recorder.command("home/command/add", json!({"url": url, "start": false})).await
}

#[tokio::test]
async fn a_link_leads_to_a_torrent_by_redirects_encodings_and_magnet_links() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let contents: Vec<_> = (1..=4).map(|n| Content::file(&format!("linked-{n}"), 40_000, n)).collect();
    let torrents: Vec<_> = contents.iter().map(|content| content.torrent.clone()).collect();
    let web = serve(move |path| match path {
        "/hop" => redirect("/plain"),
        "/kept" => b"HTTP/1.1 302 Found\r\nLocation: /plain\r\nContent-Length: 0\r\n\r\n".to_vec(),
        "/twice" => answer("200 OK\r\nContent-Encoding: gzip", &gzip(&gzip(&torrents[1]))),
        "/no-encoding" => answer("200 OK\r\nContent-Encoding: Identity", &torrents[2]),
        "/odd-encoding" => answer("200 OK\r\nContent-Encoding: UTF-8", &torrents[3]),
        "/plain" => answer("200 OK", &torrents[0]),
        "/encoded" => answer("200 OK\r\nContent-Encoding: gzip", &gzip(&torrents[1])),
        "/file.torrent.gz" => answer("200 OK\r\nContent-Type: application/gzip", &gzip(&torrents[2])),
        "/no-type" => answer("200 OK\r\nContent-Type: text/html", &torrents[3]),
        "/magnet" => redirect(MAGNET),
        "/text" => answer("200 OK", format!("{}\r\n", MAGNET.replace("c0ff", "aaaa")).as_bytes()),
        _ => answer("404 Not Found", b""),
    })
    .await;
    let base = format!("http://{}", web.address);
    let magnet = "c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff";
    let hash = |n: usize| contents[n].hash.to_string();
    for (path, hash) in [
        ("/hop", hash(0)),
        ("/kept", hash(0)),
        ("/twice", hash(1)),
        ("/no-encoding", hash(2)),
        ("/odd-encoding", hash(3)),
        ("/encoded", hash(1)),
        ("/file.torrent.gz", hash(2)),
        ("/no-type", hash(3)),
        ("/magnet", magnet.to_owned()),
        ("/text", magnet.replace("c0ff", "aaaa")),
    ] {
        let result = add(&world, &format!("{base}{path}?passkey={PASSKEY}")).await;
        assert_eq!(
            (&result["status"], &result["results"][0]["hash"]),
            (&json!("ok"), &json!(hash)),
            "{path}: {result}"
        );
        assert!(world.home.hashes().await.unwrap().contains(&hash.parse().unwrap()), "{path}");
    }
}

#[tokio::test]
async fn a_link_that_leads_to_no_torrent_is_named_without_its_passkey() {
    if !can_run() {
        return;
    }
    let mut world = World::running(Setup::default()).await;
    let web = serve(|path| match path {
        "/busy" => answer("503 Service Unavailable\r\nRetry-After: 120", b""),
        "/broken" => answer("500 Internal Server Error\r\nRetry-After: 1", b""),
        "/often" => answer("429 Too Many Requests", b""),
        "/login" => answer("200 OK\r\nContent-Type: text/html", b"<!DOCTYPE html><title>Log in</title>"),
        "/page" => answer("200 OK\r\nContent-Type: text/html", b"Please log in"),
        "/mark" => answer("200 OK", "\u{feff}<html>".as_bytes()),
        "/json" => answer("200 OK\r\nContent-Type: application/json", format!("{{\"bad\": \"{PASSKEY}\"}}").as_bytes()),
        "/empty" => answer("200 OK", b""),
        "/no-content" => b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n".to_vec(),
        "/unchanged" => answer("304 Not Modified", b""),
        "/chunks" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nd4:\r\n".to_vec(),
        "/denied" => answer("403 Forbidden", b"<html>"),
        "/cookie" => answer("302 Found\r\nSet-Cookie: a=b\r\nLocation: /cookie?again", b""),
        "/circle" => redirect("/circle"),
        "/nowhere" => answer("302 Found", b""),
        "/ftp" => redirect("ftp://127.0.0.1/x"),
        "/brotli" => answer("200 OK\r\nContent-Encoding: br", b"xxxx"),
        "/bomb" => answer("200 OK\r\nContent-Encoding: gzip", &gzip(&vec![b'd'; 64 << 20])),
        "/cut" => answer("200 OK\r\nContent-Encoding: gzip", &gzip(&[7; 10_000])[..20]),
        _ => answer("404 Not Found", b""),
    })
    .await;
    for (path, code, is_retryable, named) in [
        ("/busy", "bad_request", true, "503"),
        ("/broken", "bad_request", true, "500"),
        ("/often", "bad_request", true, "429"),
        ("/missing", "bad_request", false, "404"),
        ("/denied", "bad_request", false, "log"),
        ("/login", "bad_request", false, "web page"),
        ("/page", "bad_request", false, "web page"),
        ("/mark", "bad_request", false, "login"),
        ("/json", "bad_request", false, "application/json"),
        ("/empty", "bad_request", false, "nothing else"),
        ("/no-content", "bad_request", false, "204"),
        ("/unchanged", "bad_request", false, "304"),
        ("/chunks", "bad_request", true, "before its answer was complete"),
        ("/cookie", "bad_request", false, "cookie"),
        ("/circle", "bad_request", false, "redirects"),
        ("/nowhere", "bad_request", false, "302"),
        ("/ftp", "bad_request", false, "ftp"),
        ("/brotli", "bad_request", false, "`br`"),
        ("/bomb", "too_large", false, "bytes"),
        ("/cut", "bad_request", false, "gzip"),
    ] {
        let result = add(&world, &format!("http://{}{path}?passkey={PASSKEY}", web.address)).await;
        let (error, message) = (&result["error"], result["error"]["message"].as_str().unwrap_or_default());
        assert_eq!(
            (error_code(&result), &error["retryable"]),
            (&json!(code), &json!(is_retryable)),
            "{path}: {result}"
        );
        assert!(message.contains(named), "{path}: {result}");
        assert!(code == "too_large" || message.contains("127.0.0.1"), "{path}: {result}");
        assert!(!result.to_string().contains(PASSKEY), "{path}: {result}");
    }
    let closed = add(&world, &format!("http://127.0.0.1:1/x?passkey={PASSKEY}")).await;
    assert!(
        closed["error"]["message"].as_str().unwrap().contains("127.0.0.1") && !closed.to_string().contains(PASSKEY)
    );
    assert_eq!(world.home.hashes().await.unwrap(), []);
    assert_eq!(world.bridge().count_in_log(PASSKEY), 0);
}

#[tokio::test]
async fn a_link_reaches_no_metadata_service_and_only_what_the_config_allows() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let web = serve(|path| {
        let targets = [
            "http://169.254.169.254/latest",
            "http://2852039166/",
            "http://0xA9FEA9FE/",
            "http://0251.0376.0251.0376/",
            "http://[::ffff:169.254.169.254]/",
            "http://[::ffff:a9fe:a9fe]/",
            "http://[fe80::1]/",
            "http://0/",
            "http://[fd00:ec2::254]/",
            "http://169.254.169.254.:80/",
            "http://[64:ff9b::a9fe:a9fe]/",
            "http://[::ffff:0:a9fe:a9fe]/",
            "http://168.63.129.16/",
            "http://192.0.0.192/opc",
            "http://[fd20:ce::254]/",
            "http://[ff02::1]/",
            "http://user:password@169.254.169.254/",
            "http://169.254.169.254\\@127.0.0.1/",
        ];
        let number = path.trim_start_matches('/').parse::<usize>().unwrap_or(0);
        redirect(targets[number % targets.len()])
    })
    .await;
    for number in 0..18 {
        let result = add(&world, &format!("http://{}/{number}", web.address)).await;
        assert_eq!(error_code(&result), "forbidden", "{number}: {result}");
    }
    for url in ["http://2852039166/", "http://0xA9FEA9FE/", "http://[::ffff:a9fe:a9fe]/"] {
        assert_eq!(error_code(&add(&world, url).await), "forbidden", "{url}");
    }
    drop(world);

    let content = Content::file("allowed", 20_000, 1);
    let torrent = content.torrent.clone();
    let web = serve(move |path| match path {
        "/to-name" => redirect("http://localhost:1/x"),
        _ => answer("200 OK", &torrent),
    })
    .await;
    let port = web.address.port();
    for (rules, host, is_allowed) in [
        ("deny = [\"127.0.0.0/8\", \"::1\"]", "127.0.0.1", false),
        ("deny = [\"127.0.0.0/8\", \"::1\"]", "localhost", false),
        ("deny = [\"127.0.0.0/8\", \"::1\"]", "2130706433", false),
        ("deny = [\"localhost\"]", "LOCALHOST.", false),
        ("allow = [\"192.0.2.1\"]", "127.0.0.1", false),
        ("allow = [\"localhost\"]", "localhost", true),
        ("allow = [\"127.0.0.0/8\"]", "localhost", true),
    ] {
        let mut world = World::new(Setup::default()).await;
        let config = world.write_config(&[("home", &world.home.url())]);
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, format!("add_urls = {{ {rules} }}\n{text}")).unwrap();
        world.bridge = Some(Bridge::start(&config));
        world.recorder.server_event_after(0, "home", "snapshot_done").await;
        let before = web.requests.load(Ordering::Relaxed);
        let result = add(&world, &format!("http://{host}:{port}/x")).await;
        if is_allowed {
            assert_eq!(result["status"], "ok", "{rules} {host}: {result}");
            continue;
        }
        assert_eq!(error_code(&result), "forbidden", "{rules} {host}: {result}");
        assert_eq!(web.requests.load(Ordering::Relaxed), before, "{rules} {host}: nothing was asked");
        // The command line is no way around it.
        let (code, _, _) = world.ask(&["add", &format!("http://{host}:{port}/x")], &[]).await;
        assert_eq!((code, world.home.hashes().await.unwrap()), (1, Vec::new()), "{rules} {host}");
    }
}

#[tokio::test]
async fn a_link_that_fails_on_the_way_names_the_host_and_the_mend() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(folder.path());
    let mut world = World::running(Setup::default()).await;
    let web = serve(|path| match path {
        "/cut" => b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nd4:".to_vec(),
        "/nothing" => Vec::new(),
        "/odd" => b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
        _ => answer("200 OK", b""),
    })
    .await;
    let tls = Nginx::in_front_of(&folder.path().join("nginx"), web.address.port(), &certificates).await;
    let (plain, secure) = (web.address.port(), tls.port);
    for (link, is_retryable, named) in [
        (format!("https://127.0.0.1:{secure}/x"), false, "authority"),
        (format!("https://127.0.0.1:{plain}/x"), false, "http://"),
        (format!("http://127.0.0.1:{}/x", free_port().unwrap()), true, "nothing listens"),
        (format!("http://127.0.0.1:{plain}/cut"), true, "before its answer was complete"),
        (format!("http://127.0.0.1:{plain}/nothing"), true, "no complete answer"),
        (format!("http://127.0.0.1:{plain}/odd"), true, "right port"),
        ("http://nowhere.invalid/x".to_owned(), true, "cannot be resolved"),
    ] {
        let result = add(&world, &format!("{link}?passkey={PASSKEY}")).await;
        let (error, message) = (&result["error"], result["error"]["message"].as_str().unwrap_or_default());
        assert_eq!(
            (error_code(&result), &error["retryable"]),
            (&json!("bad_request"), &json!(is_retryable)),
            "{link}: {result}"
        );
        let host = Url::parse(&link).unwrap().host_str().unwrap().to_owned();
        assert!(message.contains(named) && message.contains(&format!("url: {host}: ")), "{link}: {result}");
        for word in ["error sending", "client error", "os error", "UnknownIssuer", PASSKEY] {
            assert!(!message.contains(word), "{link}: {result}");
        }
    }
    assert_eq!(world.bridge().count_in_log(PASSKEY), 0);
}

#[tokio::test]
async fn a_redirect_from_https_to_http_is_followed() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let certificates = Certificates::make(folder.path());
    let launcher = vec!["env".to_owned(), format!("SSL_CERT_FILE={}", certificates.ca.display())];
    let world = World::running(Setup { launcher, ..Setup::default() }).await;
    let content = Content::file("downgraded", 40_000, 1);
    let torrent = content.torrent.clone();
    let plain = serve(move |_| answer("200 OK", &torrent)).await;
    let port = plain.address.port();
    let first = serve(move |_| redirect(&format!("http://127.0.0.1:{port}/x"))).await;
    let tls = Nginx::in_front_of(&folder.path().join("nginx"), first.address.port(), &certificates).await;
    let result = add(&world, &format!("https://localhost:{}/x", tls.port)).await;
    assert_eq!((&result["status"], &result["results"][0]["hash"]), (&json!("ok"), &json!(content.hash)), "{result}");
}
