//! Names with two addresses, of which the first swallows packets, as one of a host that is down.

use std::net::SocketAddr;

use dtorrent_peers::mosquitto::{self, Mosquitto, Tls};
use dtorrent_peers::process::free_port;
use dtorrent_peers::rtorrent::{self, Address, Listen};
use futures_util::future::join_all;
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::harness::certificates::Certificates;
use crate::harness::nats::{self, NatsServer, Subscriber};
use crate::harness::nginx::{self, Nginx};
use crate::harness::receiver::Receiver;
use crate::harness::recorder::Recorder;
use crate::harness::{Setup, World, can_run};

/// The addresses of `localhost` in the bridge's view, which the resolver returns in this order.
const HOSTS: &str = "127.0.0.1 localhost\n127.0.0.2 localhost\n";

/// A port that swallows packets at the first address, and leads to a peer at the second.
struct TwoAddresses {
    port: u16,
    _swallows: (TcpListener, TcpStream),
}

impl TwoAddresses {
    #[allow(clippy::disallowed_methods)] // a test's own tasks, gone with its runtime
    async fn of(peer: u16) -> Self {
        // Linux drops the SYNs of a listener whose queue is full.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = socket.listen(0).unwrap();
        let first: SocketAddr = full.local_addr().unwrap();
        let queued = TcpStream::connect(first).await.unwrap();
        let second = TcpListener::bind(("127.0.0.2", first.port())).await.unwrap();
        tokio::spawn(async move {
            while let Ok((mut bridge, _)) = second.accept().await {
                tokio::spawn(async move {
                    let mut peer = TcpStream::connect(("127.0.0.1", peer)).await.unwrap();
                    // An end of either side is none of the test's.
                    tokio::io::copy_bidirectional(&mut bridge, &mut peer).await.ok();
                });
            }
        });
        Self { port: first.port(), _swallows: (full, queued) }
    }
}

#[tokio::test]
async fn every_peer_is_reached_by_a_name_whose_first_address_swallows_packets() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, HOSTS).unwrap();
    let view = format!("mount --bind {} /etc/hosts && exec \"$@\"", hosts.display());
    let launcher = ["unshare", "--mount", "sh", "-c", &view, "sh"].map(str::to_owned).to_vec();

    let certificates = Certificates::make(folder.path());
    let [plain, other] = [(); 2].map(|()| free_port().unwrap());
    let tls = Tls {
        ca: certificates.ca.clone(),
        certificate: certificates.server.clone(),
        key: certificates.server_key.clone(),
        client_certificates: false,
    };
    let lines = vec![format!("listener {plain} 127.0.0.1")];
    let secure = mosquitto::Options { tls: Some(tls), lines, ..mosquitto::Options::default() };
    let secure = Mosquitto::start(&folder.path().join("secure"), &secure).await.unwrap();
    // mosquitto does not start with a listener for WebSocket alone.
    let lines = vec![format!("listener {other} 127.0.0.1")];
    let sockets = mosquitto::Options { websockets: true, lines, ..mosquitto::Options::default() };
    let sockets = Mosquitto::start(&folder.path().join("sockets"), &sockets).await.unwrap();
    let Certificates { server, server_key, .. } = &certificates;
    let lines = format!(
        "jetstream {{{{ store_dir: \"{{dir}}/store\" }}}}\nallow_non_tls: true\ntls {{{{ cert_file: \"{}\", key_file: \"{}\" }}}}",
        server.display(),
        server_key.display()
    );
    let bus = NatsServer::start_with(&nats::programs()[0], &folder.path().join("nats"), &lines).await;
    let (endpoint, files) = (Receiver::start().await, Receiver::start().await);
    let rtorrent = rtorrent::Options { listen: Listen::Tcp, ..rtorrent::Options::default() };
    let mut world = World::new(Setup { launcher, rtorrent, ..Setup::default() }).await;
    let Address::Tcp(scgi) = world.home.rpc.address else { unreachable!("it listens on a port") };
    let web = Nginx::start(&world.folder.join("nginx"), &world.home.rpc.address, Some(&certificates)).await;

    let peers =
        [world.broker.port, secure.port, sockets.port, bus.port, endpoint.port, scgi.port(), web.port, files.port];
    let peers = join_all(peers.map(TwoAddresses::of)).await;
    let ports: Vec<u16> = peers.iter().map(|peer| peer.port).collect();
    let [mqtt, mqtts, ws, nats, hook, scgi, https, link] = ports[..] else { unreachable!("one for each") };
    let (ca, user, password) = (certificates.ca.display(), nginx::USER, nginx::PASSWORD);
    world.set_sink_lines(&format!(
        "url = \"mqtt://localhost:{mqtt}\"\n\
         [brokers.secure]\nkind = \"mqtt\"\nurl = \"mqtts://localhost:{mqtts}\"\nca_file = \"{ca}\"\n\
         [brokers.sockets]\nkind = \"mqtt\"\nurl = \"ws://localhost:{ws}\"\n\
         [brokers.bus]\nkind = \"nats\"\nurl = \"tls://localhost:{nats}\"\nca_file = \"{ca}\"\n\
         [webhooks.hook]\nurl = \"http://localhost:{hook}/\"\n\
         [servers.web]\nclient = \"rtorrent\"\nurl = \"https://localhost:{https}/RPC2\"\n\
         username = \"{user}\"\npassword = \"{password}\"\nca_file = \"{ca}\"\n"
    ));
    let over_tls = Recorder::listen(plain).await;
    let subscriber = Subscriber::listen(&bus).await;
    world.start_bridge_for(&[("home", &format!("scgi://localhost:{scgi}"))]).await;
    world.recorder.server_event_after(0, "web", "snapshot_done").await;
    over_tls.server_event_after(0, "home", "snapshot_done").await;
    subscriber.on("dtorrent.home.event.snapshot_done").await;
    endpoint.wait_for_event("home", "snapshot_done", "").await;
    world.bridge().wait_for_log("connected sink=sockets").await;
    // The server of the link is reached, which has nothing to give.
    let body = json!({"url": format!("http://localhost:{link}/x.torrent")});
    let result = world.recorder.command("home/command/add", body).await;
    assert!(result["error"]["message"].as_str().unwrap().contains("204"), "{result}");
}
