//! Outages of the server, the account or the connection: every event is stored in the end.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use async_nats::{ConnectOptions, HeaderMap, Message};
use bytes::Bytes;
use dtorrent_peers::rtorrent::Argument;
use serde_json::{Value, json};

use super::{all_is_stored, bus, bus_at, label, load_one};
use crate::faults::{label_all, load_many};
use crate::harness::nats::{self, NatsServer, Subscriber, api, body, stored, until, value};
use crate::harness::proxy::{Mode, Proxy};
use crate::harness::{World, can_run};

async fn proxy_to(server: &NatsServer) -> Proxy {
    Proxy::to(SocketAddr::from(([127, 0, 0, 1], server.port))).await
}

fn numbers(events: &[(String, String, Value)]) -> Vec<u64> {
    let of_home = events.iter().filter(|(_, _, event)| event["server"] == "home");
    of_home.map(|(_, _, event)| event["seq"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn a_server_that_comes_back_empty_gets_the_events_since_then_and_every_state() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let mut server = NatsServer::start(&program, folder.path()).await;
        let mut world = World::new(bus(&server, "")).await;
        let hashes = load_many(&world.home, 1, 30).await;
        world.start_bridge().await;
        all_is_stored(&world, &Subscriber::listen(&server).await).await;
        server.kill();
        std::fs::remove_dir_all(folder.path().join("store")).unwrap();
        let first = label(&world, hashes[0], "while it is away").await;
        server.restart().await;
        label_all(&world.home, "when-it-is-back").await;
        let database = world.database();
        database.until("all is written down", |database| database.last_seq("home") >= first + 30).await;
        let last = database.last_seq("home");
        database.until("all is delivered", |database| database.cursor("bus", "home") >= last).await;
        let subscriber = Subscriber::listen(&server).await;
        let seen = numbers(&stored(&subscriber.client).await);
        assert!(seen[0] <= first, "{} was never stored: {seen:?}", first);
        assert_eq!(seen, (seen[0]..=last).collect::<Vec<_>>());
        for hash in hashes {
            let key = format!("home.{hash}");
            let is_there =
                async || value(&subscriber.client, &key).await.filter(|state| state["label"] == "when-it-is-back");
            until("each state is stored again", is_there).await;
        }
    }
}

#[tokio::test]
async fn an_event_whose_acknowledgement_is_lost_is_sent_again_and_stored_once() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let proxy = proxy_to(&server).await;
        let mut world = World::new(bus_at(&format!("nats://{}", proxy.address), "")).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        let subscriber = Subscriber::listen(&server).await;
        all_is_stored(&world, &subscriber).await;
        proxy.answers(Mode::Hold);
        let seq = label(&world, hash, "a").await;
        until("the event is stored", async || numbers(&stored(&subscriber.client).await).contains(&seq).then_some(()))
            .await;
        world.bridge().wait_for_log("no answer within 5s").await;
        assert!(world.database().cursor("bus", "home") < seq, "it is not acknowledged");
        proxy.cut();
        proxy.answers(Mode::Pass);
        world.database().until("it is acknowledged", |database| database.cursor("bus", "home") >= seq).await;
        label(&world, hash, "b").await;
        all_is_stored(&world, &subscriber).await;
    }
}

/// The minimum that JetStream allows.
const SHORT_WINDOW: Duration = Duration::from_millis(100);

#[tokio::test]
async fn after_an_outage_longer_than_the_duplicate_window_an_event_may_be_stored_twice_under_its_id() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let mut server = NatsServer::start(&program, folder.path()).await;
        let proxy = proxy_to(&server).await;
        let mut world = World::new(bus_at(&format!("nats://{}", proxy.address), "")).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        let subscriber = Subscriber::listen(&server).await;
        all_is_stored(&world, &subscriber).await;
        proxy.answers(Mode::Hold);
        let seq = label(&world, hash, "a").await;
        until("the event is stored", async || numbers(&stored(&subscriber.client).await).contains(&seq).then_some(()))
            .await;
        drop(subscriber);
        proxy.refuse();
        proxy.answers(Mode::Pass);
        let since = Instant::now();
        // In place of two hours: with a shorter window, the server drops older ids when it starts.
        let client = server.client().await;
        let mut config = api(&client, "STREAM.INFO.DTORRENT_EVENTS", Value::Null).await["config"].clone();
        let window = config["duplicate_window"].clone();
        config["duplicate_window"] = json!(SHORT_WINDOW.as_nanos() as u64);
        let changed = api(&client, "STREAM.UPDATE.DTORRENT_EVENTS", config.clone()).await;
        assert!(changed["error"].is_null(), "{changed}");
        drop(client);
        until("the window is over", async || (since.elapsed() > 10 * SHORT_WINDOW).then_some(())).await;
        server.restart().await;
        let client = server.client().await;
        let ask = async |id: &str| {
            let headers = HeaderMap::from_iter([("Nats-Msg-Id".parse().unwrap(), id.parse().unwrap())]);
            let request = async_nats::Request::new().headers(headers).payload(Bytes::from_static(b"{}"));
            body(&client.send_request("dtorrent.other.event.snapshot_done", request).await.unwrap())
        };
        until("the server accepts events", async || ask("x").await["seq"].as_u64()).await;
        config["duplicate_window"] = window;
        let changed = api(&client, "STREAM.UPDATE.DTORRENT_EVENTS", config).await;
        assert!(changed["error"].is_null(), "{changed}");
        proxy.admit();
        world.database().until("it is acknowledged", |database| database.cursor("bus", "home") >= seq).await;
        label(&world, hash, "b").await;
        let last = world.database().last_seq("home");
        world.database().until("all is delivered", |database| database.cursor("bus", "home") >= last).await;

        let mut seen = stored(&client).await;
        seen.retain(|(_, _, event)| event["server"] == "home");
        let twice: Vec<_> = seen.iter().filter(|(_, _, event)| event["seq"] == seq).collect();
        assert_eq!(twice.len(), 2, "the window was over");
        assert_eq!(twice[0], twice[1], "the same id, and the same event");
        // A consumer that drops repeated ids has each event once, in order.
        let mut ids = BTreeSet::new();
        seen.retain(|(_, id, _)| ids.insert(id.clone()));
        assert_eq!(numbers(&seen), (1..=last).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn an_event_too_large_for_the_server_is_dead_lettered_and_the_others_arrive() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let lines = "jetstream {{ store_dir: \"{dir}/store\" }}\nmax_payload: 2500";
        let server = NatsServer::start_with(&program, folder.path(), lines).await;
        let mut world = World::new(bus(&server, "")).await;
        let hashes = load_many(&world.home, 1, 2).await;
        world.start_bridge().await;
        // Such a label is in its event twice.
        let long = "long ".repeat(200);
        world.home.act(hashes[0], "d.custom1.set", &[Argument::Text(&long)]).await.unwrap();
        let database = world.database();
        database.until("it is dead-lettered", |database| !database.dead_letters("bus").is_empty()).await;
        let seq = label(&world, hashes[1], "a").await;
        database.until("the other one is delivered", |database| database.cursor("bus", "home") >= seq).await;
        let dead_letters = database.dead_letters("bus");
        assert_eq!(dead_letters.len(), 1, "{dead_letters:?}");
        assert!(
            dead_letters[0].0.contains("label_changed") && dead_letters[0].1.contains("more than the 2500"),
            "{}",
            dead_letters[0].1
        );
        let of_dead_letter: Value = serde_json::from_str(&dead_letters[0].0).unwrap();
        let subscriber = Subscriber::listen(&server).await;
        let seen = numbers(&stored(&subscriber.client).await);
        let expected: Vec<u64> = (1..=seq).filter(|number| of_dead_letter["seq"] != *number).collect();
        assert_eq!(seen, expected);
    }
}

#[tokio::test]
async fn events_wait_while_the_account_has_no_jetstream() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let lines = |of_account: &str| {
            format!(
                "jetstream {{{{ store_dir: \"{{dir}}/store\" }}}}\n\
                 accounts {{{{ HOME {{{{ {of_account} users = [ {{{{ user: home, password: h }}}} ] }}}} }}}}"
            )
        };
        let mut server = NatsServer::start_with(&program, folder.path(), &lines("")).await;
        let mut world = World::new(bus(&server, "username = \"home\"\npassword = \"h\"")).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        world.bridge().wait_for_log("for this account too, or write jetstream = false").await;
        label(&world, hash, "a").await;
        assert_eq!(world.database().cursor("bus", "home"), 0);
        server.reconfigure(&lines("jetstream: enabled,"));
        server.restart().await;
        let login = ConnectOptions::with_user_and_password("home".into(), "h".into());
        let subscriber = Subscriber::listen_as(server.client_with(login).await).await;
        all_is_stored(&world, &subscriber).await;
    }
}

#[tokio::test]
async fn of_a_full_window_only_the_denied_events_are_dead_lettered() {
    const TORRENTS: u64 = 300;
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let lines = r#"jetstream { store_dir: "{dir}/store" }
            authorization { users = [
                { user: bridge, password: b, permissions: {
                    publish: { deny: ["dtorrent.*.torrent.*.event.label_changed"] } } }
                { user: reader, password: r }
            ] }"#;
        let server = NatsServer::start_with(&program, folder.path(), lines).await;
        let mut world = World::new(bus(&server, "username = \"bridge\"\npassword = \"b\"")).await;
        load_many(&world.home, 1, TORRENTS).await;
        world.start_bridge().await;
        let database = world.database();
        let before = database.last_seq("home");
        database.until("all is delivered", |database| database.cursor("bus", "home") >= before).await;
        // One poll finds both, so that denied and accepted events are mixed.
        let both = ["", "main", "d.custom1.set=a", "d.priority.set=3"].map(Argument::Text);
        world.home.rpc.call("d.multicall2", &both).await.unwrap();
        database
            .until("all is written down", |database| {
                database.last_seq("home") >= before + 2 * TORRENTS
                    && database.cursor("bus", "home") == database.last_seq("home")
            })
            .await;
        let dead_letters: Vec<Value> =
            database.dead_letters("bus").iter().map(|(body, _)| serde_json::from_str(body).unwrap()).collect();
        assert_eq!(dead_letters.len() as u64, TORRENTS);
        assert!(dead_letters.iter().all(|event| event["event_type"] == "label_changed"));
        let dead_letters: BTreeSet<u64> = dead_letters.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
        let login = ConnectOptions::with_user_and_password("reader".into(), "r".into());
        let seen = numbers(&stored(&server.client_with(login).await).await);
        let expected: Vec<u64> =
            (1..=database.last_seq("home")).filter(|number| !dead_letters.contains(number)).collect();
        assert_eq!(seen, expected);
    }
}

/// Returns the sequence numbers of the received events, each once, in the order of first arrival.
fn received(all: &[Message]) -> Vec<u64> {
    let mut seen = BTreeSet::new();
    let events = all.iter().filter(|message| message.subject.contains(".event."));
    let numbers = events.filter_map(|message| body(message)["seq"].as_u64());
    numbers.filter(|number| seen.insert(*number)).collect()
}

#[tokio::test]
async fn without_jetstream_a_connected_subscriber_gets_every_event_of_a_killed_bridge() {
    const TORRENTS: u64 = 100;
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let subscriber = Subscriber::listen(&server).await;
        let mut world = World::new(bus(&server, "jetstream = false")).await;
        load_many(&world.home, 1, TORRENTS).await;
        world.launch_bridge();
        let database = world.database();
        for round in 1..6_u64 {
            database
                .until("the round before is written down", |database| database.last_seq("home") >= TORRENTS * round)
                .await;
            label_all(&world.home, &format!("round-{round}")).await;
            let begun = database.last_seq("home");
            database.until("some of it is written down", |database| database.last_seq("home") > begun).await;
            world.bridge().process().kill().unwrap();
            world.bridge().restart();
        }
        database.until("all is written down", |database| database.last_seq("home") >= 6 * TORRENTS).await;
        let last = database.last_seq("home");
        database.until("all is delivered", |database| database.cursor("bus", "home") >= last).await;
        subscriber.wait_for("the last event", |all| received(all).contains(&last).then_some(())).await;
        assert_eq!(
            received(&subscriber.all()),
            (1..=last).collect::<Vec<_>>(),
            "some may come twice, none is left out"
        );
    }
}

/// Without storage a killed server loses messages that it had not forwarded, and subscribers have to reconnect. The
/// contract: the bridge reconnects, and publishes all later events.
#[tokio::test]
async fn without_jetstream_delivery_resumes_after_the_server_was_killed() {
    const TORRENTS: u64 = 50;
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let mut server = NatsServer::start(&program, folder.path()).await;
        let mut world = World::new(bus(&server, "jetstream = false")).await;
        let hashes = load_many(&world.home, 1, TORRENTS).await;
        world.launch_bridge();
        let database = world.database();
        for round in 1..4_u64 {
            database
                .until("the round before is written down", |database| database.last_seq("home") >= TORRENTS * round)
                .await;
            label_all(&world.home, &format!("round-{round}")).await;
            server.restart().await;
        }
        database
            .until("all is written down and delivered", |database| {
                let last = database.last_seq("home");
                last >= 4 * TORRENTS && database.cursor("bus", "home") == last
            })
            .await;
        assert!(database.dead_letters("bus").is_empty());
        let subscriber = Subscriber::listen(&server).await;
        let from = database.last_seq("home");
        let mut last = from;
        for (number, hash) in hashes[..5].iter().enumerate() {
            last = label(&world, *hash, &format!("after-{number}")).await;
        }
        subscriber.wait_for("the last event", |all| received(all).contains(&last).then_some(())).await;
        assert_eq!(received(&subscriber.all()), (from + 1..=last).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_dozen_connections_that_end_with_the_same_event_dead_letter_nothing() {
    if !can_run() {
        return;
    }
    // The keep-alive takes a minute, so the server is stopped.
    let Some(program) = nats::programs().pop() else { return };
    let folder = tempfile::tempdir().unwrap();
    let server = NatsServer::start(&program, folder.path()).await;
    let proxy = proxy_to(&server).await;
    let mut world = World::new(bus_at(&format!("nats://{}", proxy.address), "")).await;
    let hash = load_one(&world).await;
    world.start_bridge().await;
    let subscriber = Subscriber::listen(&server).await;
    all_is_stored(&world, &subscriber).await;
    let last = world.database().last_seq("home");
    world.database().until("all is noted", |database| database.cursor("bus", "home") == last).await;
    // The fake server accepts each connection and answers it, until the client publishes an event.
    proxy.requests(Mode::HoldPublishes(".event."));
    for round in 0..3 {
        label(&world, hash, &format!("r{round}")).await;
    }
    for links in 0..12 {
        world.bridge().wait_for_log_again(links, "no answer within 5s").await;
    }
    assert_eq!(world.database().cursor("bus", "home"), last, "one got through");
    proxy.cut();
    proxy.requests(Mode::Pass);
    all_is_stored(&world, &subscriber).await;
    assert_eq!(world.database().dead_letters("bus"), []);
}
