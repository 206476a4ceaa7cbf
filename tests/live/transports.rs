//! Other transports: rTorrent behind a web server, TLS, MQTT 3.1.1, WebSocket.

use std::net::SocketAddr;

use dtorrent_peers::content::Content;
use dtorrent_peers::mosquitto::{Mosquitto, Options, Tls};
use dtorrent_peers::rtorrent::{self, Address, Listen};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::harness::certificates::Certificates;
use crate::harness::nginx::{self, Nginx};
use crate::harness::recorder::Recorder;
use crate::harness::{Setup, World, can_run};

/// Exercises every kind of message over a transport.
async fn works(world: &World, received: &Recorder) {
    let content = Content::file("travels ☃", 50_000, 1);
    world.home.load(&content.torrent, false).await.unwrap();
    received.event("home", "added", content.hash).await;
    let topic = format!("home/torrent/{}/command/label", content.hash);
    let result = received.command(&topic, json!({"label": "arrived"})).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_eq!(world.home.get(content.hash, "d.custom1").await.unwrap(), "arrived");
    let topic = format!("dtorrent/home/torrent/{}/state", content.hash);
    received
        .wait_for("the new state", |all| {
            all.iter().any(|m| m.topic == topic && m.json()["label"] == "arrived").then_some(())
        })
        .await;
    received.assert_gap_free("home");
}

#[tokio::test]
async fn rtorrent_is_reached_through_nginx_with_a_password() {
    if !can_run() {
        return;
    }
    let server = format!("username = \"{}\"\npassword = \"{}\"", nginx::USER, nginx::PASSWORD);
    let setup = Setup { server, ..Setup::default() };
    let mut world = World::new(setup).await;
    let nginx = Nginx::start(&world.folder.join("nginx"), &world.home.rpc.address, None).await;
    world.start_bridge_for(&[("home", &format!("http://127.0.0.1:{}/RPC2", nginx.port))]).await;
    works(&world, &world.recorder).await;
}

#[tokio::test]
async fn rtorrent_is_reached_through_nginx_over_tls() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(folder.path());
    let (user, password, ca) = (nginx::USER, nginx::PASSWORD, certificates.ca.display());
    let server = format!("username = \"{user}\"\npassword = \"{password}\"\nca_file = \"{ca}\"");
    let mut world = World::new(Setup { server, ..Setup::default() }).await;
    let nginx = Nginx::start(&world.folder.join("nginx"), &world.home.rpc.address, Some(&certificates)).await;
    world.start_bridge_for(&[("home", &format!("https://localhost:{}/RPC2", nginx.port))]).await;
    works(&world, &world.recorder).await;
}

#[tokio::test]
async fn rtorrent_is_reached_over_a_port() {
    if !can_run() {
        return;
    }
    let rtorrent = dtorrent_peers::rtorrent::Options {
        listen: dtorrent_peers::rtorrent::Listen::Tcp,
        ..dtorrent_peers::rtorrent::Options::default()
    };
    let world = World::running(Setup { rtorrent, ..Setup::default() }).await;
    works(&world, &world.recorder).await;
}

/// Starts a broker with one listener for the bridge, and a second, plain one for the test.
async fn over(folder: tempfile::TempDir, options: Options, scheme: &str, sink: &str) {
    let plain = dtorrent_peers::process::free_port().unwrap();
    let options = Options { lines: vec![format!("listener {plain} 127.0.0.1")], ..options };
    let broker = Mosquitto::start(&folder.path().join("second"), &options).await.unwrap();
    let sink =
        format!("url = \"{scheme}://localhost:{}{}\"\n{sink}", broker.port, if scheme == "ws" { "/mqtt" } else { "" });
    let mut world = World::new(Setup { sink, ..Setup::default() }).await;
    world.recorder = Recorder::listen(plain).await;
    world.start_bridge().await;
    works(&world, &world.recorder).await;
}

#[tokio::test]
async fn the_broker_is_reached_over_tls_with_a_client_certificate() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let Certificates { ca, server, server_key, client, client_key } = Certificates::make(folder.path());
    let sink = format!(
        "ca_file = \"{}\"\ncert_file = \"{}\"\nkey_file = \"{}\"",
        ca.display(),
        client.display(),
        client_key.display()
    );
    let tls = Tls { ca, certificate: server, key: server_key, client_certificates: true };
    over(folder, Options { tls: Some(tls), ..Options::default() }, "mqtts", &sink).await;
}

#[tokio::test]
async fn the_broker_is_reached_over_websocket() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    over(folder, Options { websockets: true, ..Options::default() }, "ws", "").await;
}

#[tokio::test]
async fn the_bridge_works_over_mqtt_3_1_1() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup { sink: "version = \"3.1.1\"".to_owned(), ..Setup::default() }).await;
    works(&world, &world.recorder).await;
    assert!(
        world.recorder.all().iter().all(|message| {
            message.topic.ends_with("/command/label") || message.properties.user_properties.is_empty()
        })
    );
}

#[tokio::test]
async fn a_broker_with_a_password_and_access_rules_enforces_both() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "s3cret\n").unwrap();
    let broker = Options {
        users: vec![("bridge".to_owned(), "s3cret".to_owned())],
        acl: Some("topic readwrite #\nuser bridge\ntopic readwrite dtorrent/#\n".to_owned()),
        lines: vec!["allow_anonymous true".to_owned()], // for the recorder
        ..Options::default()
    };
    let sink = format!("username = \"bridge\"\npassword_file = \"{}\"", secret.display());
    let world = World::running(Setup { broker, sink, ..Setup::default() }).await;
    works(&world, &world.recorder).await;
}

/// A user and a password with every character that means something in a URL, and as they are written there.
const ODD_LOGIN: [(&str, &str); 2] =
    [("brücke @ home/%41", "br%C3%BCcke%20%40%20home%2F%2541"), ("p:@/?#%&+ 🎉", "p:%40%2F%3F%23%25&+%20🎉")];

#[tokio::test]
async fn a_login_of_odd_characters_works_in_the_url_and_in_keys() {
    if !can_run() {
        return;
    }
    let [(user, written_user), (password, written_password)] = ODD_LOGIN;
    let broker = Options {
        users: vec![(user.to_owned(), password.to_owned())],
        acl: Some(format!("topic readwrite #\nuser {user}\ntopic readwrite dtorrent/#\n")),
        lines: vec!["allow_anonymous true".to_owned()], // for the recorder
        ..Options::default()
    };
    let mut world = World::new(Setup { broker, ..Setup::default() }).await;
    let host = format!("127.0.0.1:{}", world.broker.port);
    for (url, wrong) in [
        (format!("mqtt://{written_user}:{written_password}@{host}"), format!("mqtt://{written_user}:other@{host}")),
        (
            format!("mqtt://{host}\"\nusername = \"{user}\"\npassword = \"{password}"),
            format!("mqtt://{written_user}:p%2B@{host}"),
        ),
    ] {
        world.set_sink_lines(&format!("url = \"{wrong}\""));
        let (code, out, errors) = world.check_connect().await;
        assert!(code == 3 && !format!("{out}{errors}").contains(password), "{code} {out}{errors}");
        world.set_sink_lines(&format!("url = \"{url}\""));
        let (code, out, errors) = world.check_connect().await;
        assert!(code == 0 && !format!("{out}{errors}").contains(password), "{code} {out}{errors}");
    }
    world.start_bridge().await;
    works(&world, &world.recorder).await;
}

#[tokio::test]
async fn the_query_of_a_websocket_url_reaches_the_server_in_front_of_the_broker() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let plain = dtorrent_peers::process::free_port().unwrap();
    let lines = vec![format!("listener {plain} 127.0.0.1")];
    let options = Options { websockets: true, lines, ..Options::default() };
    let broker = Mosquitto::start(&folder.path().join("second"), &options).await.unwrap();
    let web = Nginx::with_token(&folder.path().join("nginx"), broker.port, "0123456789abcdef").await;
    let mut world = World::new(Setup::default()).await;
    world.recorder = Recorder::listen(plain).await;
    let url = format!("ws://127.0.0.1:{}/mqtt", web.port);
    for wrong in [url.clone(), format!("{url}?token=other"), format!("{url}?Token=0123456789abcdef")] {
        world.set_sink_lines(&format!("url = \"{wrong}\""));
        let (code, out, errors) = world.check_connect().await;
        assert!(code == 3, "{wrong}: {out}{errors}");
    }
    world.set_sink_lines(&format!("url = \"{url}?v=1&token=0123456789abcdef\""));
    let (code, out, errors) = world.check_connect().await;
    assert!(code == 0 && !format!("{out}{errors}").contains("0123456789abcdef"), "{code} {out}{errors}");
    world.start_bridge().await;
    works(&world, &world.recorder).await;
    assert!(!world.bridge().log().contains("0123456789abcdef"));
}

/// Runs `check --connect` for an rTorrent at this address, and returns what it prints.
async fn checked(world: &World, url: &str) -> String {
    world.write_config(&[("home", url)]);
    let (code, out, errors) = world.ask(&["check", "--connect"], &[]).await;
    assert_ne!(code, 0, "{url}: {out}{errors}");
    format!("{out}{errors}")
}

#[tokio::test]
async fn each_wrong_address_of_an_rtorrent_is_named_with_its_remedy() {
    if !can_run() {
        return;
    }
    let rtorrent = rtorrent::Options { listen: Listen::Tcp, ..rtorrent::Options::default() };
    let world = World::new(Setup { rtorrent, ..Setup::default() }).await;
    let Address::Tcp(address) = world.home.rpc.address.clone() else { unreachable!("it listens on a port") };
    let web = Nginx::start(&world.folder.join("nginx"), &world.home.rpc.address, None).await;
    let host = format!("127.0.0.1:{}", web.port);
    for (url, needle) in [
        ("scgi:///run/rtorrent/rpc.sock".to_owned(), "`unix:///path/to/rpc.sock`"),
        ("/run/rtorrent/rpc.sock".to_owned(), "`unix:///path/to/rpc.sock`"),
        (format!("http://{host}/RPC2"), "check username and password"),
        (format!("http://{host}/rpc"), "the usual path is `/RPC2`"),
        (format!("http://{host}/"), "the usual path is `/RPC2`"),
        (format!("https://{host}/RPC2"), &host),
        (format!("scgi://{host}"), "write `http://`"),
        (format!("http://{address}/RPC2"), "write `scgi://`"),
        ("unix:///run/no-such.sock".to_owned(), "is rTorrent running"),
        ("scgi://127.0.0.1:1".to_owned(), "is rTorrent running"),
    ] {
        let said = checked(&world, &url).await;
        assert!(said.contains(needle), "{url}: {said}");
    }
}

/// A web server that answers every request with this.
#[allow(clippy::disallowed_methods)] // a test's own task, gone with its runtime
async fn answering(head: &'static str, body: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer =
                format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
            // The whole request first: unread bytes would reset the connection.
            let mut request = vec![0; 64 << 10];
            drop(stream.read(&mut request).await);
            drop(stream.write_all(answer.as_bytes()).await);
        }
    });
    address
}

#[tokio::test]
async fn a_web_server_that_does_not_speak_for_rtorrent_is_named_with_the_remedy() {
    if !can_run() {
        return;
    }
    let world = World::new(Setup::default()).await;
    let page = "<!DOCTYPE html><html><form>user, password</form></html>";
    for (head, body, needle) in [
        ("401 Unauthorized\r\nWWW-Authenticate: Digest realm=\"x\", nonce=\"1\", qop=\"auth\"", "", "AuthType Basic"),
        ("401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"", "", "check username and password"),
        ("401 Unauthorized\r\nWWW-Authenticate: Negotiate", "", "not Basic"),
        ("200 OK\r\nContent-Type: text/html", page, "the answer is a web page"),
        ("200 OK\r\nContent-Type: application/xml", page, "the answer is a web page"),
        ("200 OK", page, "the answer is a web page"),
        ("302 Found\r\nLocation: /login", "", "write the address that it leads to"),
        ("405 Method Not Allowed", page, "the usual path is `/RPC2`"),
        ("400 Bad Request", page, "write `https://`"),
    ] {
        let address = answering(head, body).await;
        let said = checked(&world, &format!("http://{address}/RPC2")).await;
        assert!(said.contains(needle), "{head}: {said}");
    }
}
