//! Brokers whose `url` names a port where something else listens.

use std::path::Path;

use dtorrent_peers::mosquitto::{self, Mosquitto, Tls};
use dtorrent_peers::process::free_port;
use dtorrent_peers::rtorrent::{self, Listen, Rtorrent};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::harness::bridge::Bridge;
use crate::harness::can_run;
use crate::harness::certificates::Certificates;
use crate::harness::nats::{self, NatsServer};

/// A server that greets, reads a little and hangs up; returns its port.
#[allow(clippy::disallowed_methods)] // a test's own task, gone with its runtime
async fn greets(greeting: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            drop(stream.write_all(greeting.as_bytes()).await);
            if !greeting.is_empty() {
                drop(stream.read(&mut [0; 512]).await);
            }
        }
    });
    port
}

/// Connects to a broker once, and returns what `check` says of it.
async fn check(folder: &Path, kind: &str, url: &str) -> String {
    let config = folder.join("wrong.toml");
    let text = format!("[servers.home]\nurl = \"unix:///none\"\n[brokers.b]\nkind = \"{kind}\"\nurl = \"{url}\"\n");
    std::fs::write(&config, text).unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_dtorrent"));
    let output = command.args(["check", "--connect", "--config"]).arg(&config).output().await.unwrap();
    let printed = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{printed}");
    printed.lines().find_map(|line| line.strip_prefix("broker b: ")).unwrap_or_else(|| panic!("{printed}")).to_owned()
}

#[tokio::test]
async fn a_broker_at_the_port_of_something_else_is_told_what_answers_and_what_to_correct() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let tcp = rtorrent::Options { listen: Listen::Tcp, ..rtorrent::Options::default() };
    let rtorrent = Rtorrent::start(&folder.join("rtorrent"), &tcp).await.unwrap();
    let scgi = rtorrent.url().rsplit_once(':').unwrap().1.parse::<u16>().unwrap();
    let Certificates { ca, server, server_key, .. } = Certificates::make(&folder.join("certificates"));
    let tls = Tls { ca, certificate: server, key: server_key, client_certificates: false };
    let secure = mosquitto::Options { tls: Some(tls), ..mosquitto::Options::default() };
    let secure = Mosquitto::start(&folder.join("secure"), &secure).await.unwrap();
    let plain = Mosquitto::start(&folder.join("plain"), &mosquitto::Options::default()).await.unwrap();
    let nats = NatsServer::start_with(&nats::programs()[0], &folder.join("nats"), "").await;
    let nats_port = nats.url().rsplit_once(':').unwrap().1.parse::<u16>().unwrap();
    let http = free_port().unwrap();
    let config = folder.join("dtorrent.toml");
    let text = format!(
        "data_dir = {:?}\n[http]\nlisten = \"127.0.0.1:{http}\"\n[servers.home]\nurl = \"{}\"\n",
        folder.join("data"),
        rtorrent.url()
    );
    std::fs::write(&config, text).unwrap();
    let mut bridge = Bridge::start(&config);
    bridge.wait_for_log("client reached").await;
    let (ssh, mail, closes) =
        (greets("SSH-2.0-OpenSSH_9.6\r\n").await, greets("220 x ESMTP\r\n").await, greets("").await);

    for (kind, scheme, port, expected) in [
        ("mqtt", "mqtt", http, "an HTTP server answers there: correct the port in `url`, or write ws:// for MQTT over"),
        ("mqtt", "mqtt", ssh, "an SSH server answers there: correct the port in `url`"),
        ("mqtt", "mqtt", mail, "a mail or FTP server answers there: correct the port in `url`"),
        ("mqtt", "mqtt", nats_port, "a NATS server answers there: write kind = \"nats\" and nats://"),
        (
            "mqtt",
            "mqtt",
            scgi,
            "the broker closed the connection: check that host and port in `url` are those of a broker",
        ),
        (
            "mqtt",
            "mqtt",
            closes,
            "the broker closed the connection: check that host and port in `url` are those of a broker",
        ),
        ("mqtt", "mqtt", secure.port, "write mqtts://"),
        ("mqtt", "mqtts", plain.port, "a broker with TLS, or write mqtt:// without it"),
        ("mqtt", "mqtts", http, "the port does not speak TLS: correct the port in `url`, or write mqtt://"),
        ("mqtt", "ws", http, "no MQTT over WebSocket at this address: check port and path of `url`"),
        ("mqtt", "ws", ssh, "no MQTT over WebSocket at this address: check port and path of `url`"),
        ("nats", "nats", http, "an HTTP server answers there: correct the port in `url`"),
        ("nats", "nats", ssh, "an SSH server answers there: correct the port in `url`"),
        (
            "nats",
            "nats",
            plain.port,
            "without the greeting of a NATS server: check host and port in `url` (an MQTT broker",
        ),
        ("nats", "nats", scgi, "without the greeting of a NATS server: check host and port"),
        ("nats", "nats", closes, "without the greeting of a NATS server: check host and port"),
    ] {
        let url = format!("{scheme}://127.0.0.1:{port}");
        let told = check(folder, kind, &url).await;
        assert!(told.starts_with(&url) && told.contains(expected), "{kind} {scheme}: {expected} is not in {told}");
        for word in ["serialization", "Promised", "IO error", "boundary", "invalid server operation"] {
            assert!(!told.contains(word), "{kind} {scheme}: {told}");
        }
    }
}
