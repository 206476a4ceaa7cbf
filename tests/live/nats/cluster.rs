//! Three servers with three copies of everything.

use std::path::Path;

use dtorrent_peers::process::free_port;
use serde_json::{Value, json};

use super::{all_is_stored, bus_at, label, load_one, version};
use crate::faults::{label_all, load_many};
use crate::harness::nats::{self, NatsServer, Subscriber, api, until};
use crate::harness::{World, can_run};

struct Cluster {
    servers: Vec<NatsServer>,
}

impl Cluster {
    async fn start(program: &Path, folder: &Path) -> Self {
        let ports: Vec<(u16, u16)> = (0..3).map(|_| (free_port().unwrap(), free_port().unwrap())).collect();
        let routes: Vec<String> = ports.iter().map(|(_, route)| format!("nats://127.0.0.1:{route}")).collect();
        let mut servers = Vec::new();
        for (number, (port, route)) in ports.iter().enumerate() {
            let lines = format!(
                "jetstream {{{{ store_dir: \"{{dir}}/store\" }}}}\nlame_duck_duration: \"30s\"\nlame_duck_grace_period: \"1s\"\n\
                 cluster {{{{ name: test, listen: \"127.0.0.1:{route}\", routes: [{}] }}}}",
                routes.join(", ")
            );
            servers.push(NatsServer::prepare(program, &folder.join(number.to_string()), *port, &lines));
        }
        for server in &mut servers {
            server.ready().await;
        }
        let client = servers[0].client().await;
        until("JetStream has a leader", async || {
            let request = async_nats::Request::new().timeout(Some(std::time::Duration::from_secs(2)));
            let answer = client.send_request("$JS.API.INFO", request).await.ok()?;
            let answer: Value = serde_json::from_slice(&answer.payload).ok()?;
            answer["error"].is_null().then_some(())
        })
        .await;
        Self { servers }
    }

    fn urls(&self) -> String {
        let urls: Vec<String> = self.servers.iter().map(|server| format!("\"{}\"", server.url())).collect();
        format!("[{}]", urls.join(", "))
    }

    /// Returns the leader of the stream.
    async fn leader(&self, client: &async_nats::Client) -> usize {
        until("the stream has a leader", async || {
            let info = api(client, "STREAM.INFO.DTORRENT_EVENTS", Value::Null).await;
            let leader = info["cluster"]["leader"].as_str()?.to_owned();
            self.servers.iter().position(|server| leader == format!("n{}", server.port))
        })
        .await
    }
}

#[tokio::test]
async fn with_three_replicas_order_survives_leader_changes_and_a_kill_of_the_leader() {
    const TORRENTS: u64 = 200;
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        eprintln!("{}", version(&program));
        let folder = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::start(&program, folder.path()).await;
        let mut setup = bus_at("x", "replicas = 3");
        setup.sink = setup.sink.replace("\"x\"", &cluster.urls());
        let mut world = World::new(setup).await;
        load_many(&world.home, 1, TORRENTS).await;
        world.launch_bridge();
        let database = world.database();
        database.until("something is delivered", |database| database.cursor("bus", "home") > 0).await;
        for round in 1..5_u64 {
            database
                .until("the round before is written down", |database| database.last_seq("home") >= TORRENTS * round)
                .await;
            let begun = database.cursor("bus", "home");
            label_all(&world.home, &format!("round-{round}")).await;
            database.until("some of it is delivered", |database| database.cursor("bus", "home") > begun).await;
            let subscriber = Subscriber::listen(&cluster.servers[0]).await;
            if round == 3 {
                let leader = cluster.leader(&subscriber.client).await;
                drop(subscriber);
                cluster.servers[leader].kill();
                cluster.servers[leader].restart().await;
            } else {
                api(&subscriber.client, "STREAM.LEADER.STEPDOWN.DTORRENT_EVENTS", Value::Null).await;
            }
        }
        let subscriber = Subscriber::listen(&cluster.servers[0]).await;
        let info = api(&subscriber.client, "STREAM.INFO.DTORRENT_EVENTS", Value::Null).await;
        assert_eq!(info["config"]["num_replicas"], json!(3), "{info}");
        database.until("all is written down", |database| database.last_seq("home") >= 5 * TORRENTS).await;
        let last = database.last_seq("home");
        database.until("all is delivered", |database| database.cursor("bus", "home") >= last).await;
        all_is_stored(&world, &subscriber).await;
    }
}

#[tokio::test]
async fn a_server_in_lame_duck_mode_is_replaced_by_another_of_the_cluster() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::start(&program, folder.path()).await;
        // The config has one server, which announces the others.
        let mut world = World::new(bus_at(&cluster.servers[0].url(), "replicas = 3")).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        let subscriber = Subscriber::listen(&cluster.servers[1]).await;
        all_is_stored(&world, &subscriber).await;
        cluster.servers[0].process().signal("USR2").unwrap();
        world.bridge().wait_for_log("has_others=true").await;
        label(&world, hash, "a").await;
        all_is_stored(&world, &subscriber).await;
    }
}
