//! Faults between the bridge and NATS: killed, cut off, full, misconfigured or hung.

use std::net::SocketAddr;

use dtorrent_peers::content::Content;
use serde_json::{Value, json};

use super::{all_is_stored, bus, bus_at, label, load_one, version};
use crate::faults::{label_all, load_many};
use crate::harness::nats::{self, NatsServer, Subscriber, api, stored, until, value};
use crate::harness::proxy::{Mode, Proxy};
use crate::harness::{World, can_run};

#[tokio::test]
async fn a_server_killed_in_the_middle_of_five_thousand_events_has_each_once_in_order() {
    const TORRENTS: u64 = 1_000;
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        eprintln!("{}", version(&program));
        let folder = tempfile::tempdir().unwrap();
        let mut server = NatsServer::start(&program, folder.path()).await;
        let mut world = World::new(bus(&server, "")).await;
        load_many(&world.home, 1, TORRENTS).await;
        world.launch_bridge();
        let database = world.database();
        for round in 1..5_u64 {
            // The labels differ in each round, so that events of the previous one are not taken for this one's.
            let written = TORRENTS * round;
            database.until("the round before is written down", |database| database.last_seq("home") >= written).await;
            let begun = database.cursor("bus", "home");
            label_all(&world.home, &format!("round-{round}")).await;
            database.until("some of it is delivered", |database| database.cursor("bus", "home") > begun).await;
            server.kill();
            server.restart().await;
        }
        database.until("all is written down", |database| database.last_seq("home") >= 5 * TORRENTS).await;
        let last = database.last_seq("home");
        database.until("all is delivered", |database| database.cursor("bus", "home") >= last).await;
        let subscriber = Subscriber::listen(&server).await;
        let events = all_is_stored(&world, &subscriber).await;
        assert!(events.len() as u64 >= 5 * TORRENTS, "{}", events.len());
    }
}

#[tokio::test]
async fn a_bridge_killed_before_the_acknowledgement_has_its_event_stored_once() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let proxy = Proxy::to(SocketAddr::from(([127, 0, 0, 1], server.port))).await;
        let mut world = World::new(bus_at(&format!("nats://{}", proxy.address), "")).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        let subscriber = Subscriber::listen(&server).await;
        all_is_stored(&world, &subscriber).await;
        let last = world.database().last_seq("home");
        world.database().until("all is noted", |database| database.cursor("bus", "home") == last).await;
        proxy.answers(Mode::Hold);
        let seq = label(&world, hash, "a").await;
        let is_there =
            async || stored(&subscriber.client).await.iter().any(|(_, _, event)| event["seq"] == seq).then_some(());
        until("the event is stored", is_there).await;
        assert!(world.database().cursor("bus", "home") < seq, "not acknowledged");
        world.bridge().process().kill().unwrap();
        proxy.cut();
        proxy.answers(Mode::Pass);
        world.bridge().restart();
        world.database().until("it is delivered", |database| database.cursor("bus", "home") >= seq).await;
        label(&world, hash, "b").await;
        all_is_stored(&world, &subscriber).await;
    }
}

#[tokio::test]
async fn a_bridge_killed_between_acknowledgement_and_cursor_has_its_event_stored_once() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let mut world = World::new(bus(&server, "")).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        let subscriber = Subscriber::listen(&server).await;
        let mut strikes = 0;
        for round in 0.. {
            assert!(round < 30, "the cursor is always faster");
            let seq = label(&world, hash, &format!("r{round}")).await;
            // The state is sent once the event is acknowledged.
            let key = format!("home.{hash}");
            let is_shown = async || {
                value(&subscriber.client, &key).await.filter(|state| state["label"] == format!("r{round}")).map(drop)
            };
            until("its state is stored", is_shown).await;
            world.bridge().process().kill().unwrap();
            strikes += u32::from(world.database().cursor("bus", "home") < seq);
            world.bridge().restart();
            world.database().until("it is noted", |database| database.cursor("bus", "home") >= seq).await;
            if strikes == 2 {
                break;
            }
        }
        all_is_stored(&world, &subscriber).await;
    }
}

#[tokio::test]
async fn a_deleted_stream_is_created_again_and_no_later_event_is_lost() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let mut world = World::new(bus(&server, "")).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        let subscriber = Subscriber::listen(&server).await;
        all_is_stored(&world, &subscriber).await;
        for stream in ["DTORRENT_EVENTS", "KV_dtorrent_state"] {
            assert_eq!(api(&subscriber.client, &format!("STREAM.DELETE.{stream}"), Value::Null).await["success"], true);
        }
        let seq = label(&world, hash, "a").await;
        // Other acknowledged messages must not hide that the event has no acknowledgement.
        let is_there = async || {
            subscriber.request("dtorrent.home.command.list", "").await;
            let all = stored(&subscriber.client).await;
            all.iter().any(|(_, _, event)| event["seq"] == seq).then_some(())
        };
        until("the event is in the new stream", is_there).await;
        let key = format!("home.{hash}");
        let state = async || value(&subscriber.client, &key).await.filter(|state| state["label"] == "a");
        until("the state is in the new bucket", state).await;
    }
}

#[tokio::test]
async fn a_full_stream_is_reported_and_events_wait_for_space() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let mut world = World::new(bus(&server, "")).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        let subscriber = Subscriber::listen(&server).await;
        all_is_stored(&world, &subscriber).await;
        let info = api(&subscriber.client, "STREAM.INFO.DTORRENT_EVENTS", Value::Null).await;
        let mut config = info["config"].clone();
        config["discard"] = json!("new");
        config["max_bytes"] = json!(info["state"]["bytes"].as_u64().unwrap() + 10);
        let changed = api(&subscriber.client, "STREAM.UPDATE.DTORRENT_EVENTS", config.clone()).await;
        assert!(changed["error"].is_null(), "{changed}");
        for round in 0..5 {
            label(&world, hash, &format!("r{round}")).await;
        }
        world.bridge().wait_for_log("the stream has no room (").await;
        world.bridge().wait_for_log("has limits: events wait when it is full").await;
        config["max_bytes"] = json!(-1);
        api(&subscriber.client, "STREAM.UPDATE.DTORRENT_EVENTS", config).await;
        all_is_stored(&world, &subscriber).await;
    }
}

#[tokio::test]
async fn a_foreign_stream_or_bucket_is_reported_and_left_alone() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let subscriber = Subscriber::listen(&server).await;
        let theirs = json!({"name": "DTORRENT_EVENTS", "subjects": ["dtorrent.>"], "storage": "memory", "retention": "limits",
            "discard": "old", "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0, "num_replicas": 1});
        api(&subscriber.client, "STREAM.CREATE.DTORRENT_EVENTS", theirs).await;
        let mut world = World::new(bus(&server, "")).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        for why in [
            "its storage is memory, and has to be file",
            "dtorrent.> catches dtorrent.*.torrent.*.event.updated",
            "has to be 2h at least",
            "It is not changed from here",
        ] {
            world.bridge().wait_for_log(why).await;
        }
        let config = world.folder.join("dtorrent.toml");
        let check = std::process::Command::new(env!("CARGO_BIN_EXE_dtorrent"))
            .args(["check", "--connect", "--config", config.to_str().unwrap()])
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&[check.stdout, check.stderr].concat()).into_owned();
        assert!(printed.contains("its storage is memory") && check.status.code() == Some(3), "{printed}");
        let there = api(&subscriber.client, "STREAM.INFO.DTORRENT_EVENTS", Value::Null).await;
        assert_eq!(there["config"]["storage"], "memory");
        let bucket = json!({"name": "KV_dtorrent_state", "subjects": ["$KV.dtorrent_state.>"], "storage": "file",
            "retention": "limits", "discard": "new", "max_consumers": -1, "max_msgs": -1, "max_bytes": -1,
            "max_msgs_per_subject": 7, "max_age": 3_600_000_000_000_u64, "num_replicas": 1, "allow_rollup_hdrs": true});
        let made = api(&subscriber.client, "STREAM.CREATE.KV_dtorrent_state", bucket.clone()).await;
        assert!(made["error"].is_null(), "{made}");
        api(&subscriber.client, "STREAM.DELETE.DTORRENT_EVENTS", Value::Null).await;
        world.bridge().wait_for_log("its values go after 1h").await;
        let mut repaired = bucket;
        repaired["max_age"] = json!(0);
        let changed = api(&subscriber.client, "STREAM.UPDATE.KV_dtorrent_state", repaired).await;
        assert!(changed["error"].is_null(), "{changed}");
        world.bridge().wait_for_log("keeps a history of 7, not 1").await;
        label(&world, hash, "a").await;
        all_is_stored(&world, &subscriber).await;
    }
}

#[tokio::test]
async fn without_jetstream_at_the_start_events_wait_until_it_is_there() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let mut server = NatsServer::start_with(&program, folder.path(), "").await;
        let mut world = World::new(bus(&server, "")).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        world.bridge().wait_for_log("JetStream is not there: switch it on").await;
        label(&world, hash, "a").await;
        server.reconfigure("jetstream { store_dir: \"{dir}/store\" }");
        server.restart().await;
        let subscriber = Subscriber::listen(&server).await;
        all_is_stored(&world, &subscriber).await;
    }
}

#[tokio::test]
async fn an_event_that_may_not_be_published_is_dead_lettered_and_the_others_arrive() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let lines = r#"jetstream { store_dir: "{dir}/store" }
            authorization { users = [
                { user: bridge, password: b, permissions: {
                    publish: { deny: ["dtorrent.*.torrent.*.event.label_changed", "dtorrent.*.stats"] } } }
                { user: reader, password: r }
            ] }"#;
        let server = NatsServer::start_with(&program, folder.path(), lines).await;
        let mut world = World::new(bus(&server, "username = \"bridge\"\npassword = \"b\"")).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        label(&world, hash, "a").await;
        let result =
            world.recorder.command(&format!("home/torrent/{hash}/command/priority"), json!({"priority": 3})).await;
        assert_eq!(result["status"], "ok");
        let last = world.database().last_seq("home");
        world.database().until("all is acknowledged", |database| database.cursor("bus", "home") >= last).await;
        let dead_letters = world.database().dead_letters("bus");
        assert_eq!(dead_letters.len(), 1, "{dead_letters:?}");
        assert!(
            dead_letters[0].0.contains("label_changed") && dead_letters[0].1.contains("Permissions Violation"),
            "{dead_letters:?}"
        );
        let login = async_nats::ConnectOptions::with_user_and_password("reader".into(), "r".into());
        let client = server.client_with(login).await;
        let kinds: Vec<Value> =
            stored(&client).await.into_iter().map(|(_, _, event)| event["event_type"].clone()).collect();
        assert!(kinds.contains(&json!("priority_changed")) && !kinds.contains(&json!("label_changed")), "{kinds:?}");
        // With permission it is replayed unchanged.
        world.bridge().stop().await;
        let login = [("DTORRENT_BROKERS__BUS__USERNAME", "reader"), ("DTORRENT_BROKERS__BUS__PASSWORD", "r")];
        let (code, _, printed) = world.ask(&["dead-letters", "replay", "bus", "--all"], &login).await;
        assert!(code == 0 && printed.contains(": delivered"), "{printed}");
        let dead_letter: Value = serde_json::from_str(&dead_letters[0].0).unwrap();
        let last = stored(&client).await.into_iter().map(|(_, _, event)| event).next_back();
        assert_eq!(last, Some(dead_letter));
        assert_eq!(world.database().dead_letters("bus"), []);
    }
}

#[tokio::test]
async fn hundreds_of_unpublishable_events_are_each_dead_lettered() {
    const TORRENTS: u64 = 400;
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let lines = r#"jetstream { store_dir: "{dir}/store" }
            authorization { users = [ { user: bridge, password: b, permissions: {
                publish: { deny: ["dtorrent.*.torrent.*.event.label_changed"] } } } ] }"#;
        let server = NatsServer::start_with(&program, folder.path(), lines).await;
        let mut world = World::new(bus(&server, "username = \"bridge\"\npassword = \"b\"")).await;
        load_many(&world.home, 1, TORRENTS).await;
        world.start_bridge().await;
        let database = world.database();
        label_all(&world.home, "a").await;
        database.until("each is dead-lettered", |database| database.dead_letters("bus").len() as u64 >= TORRENTS).await;
        let dead_letters = database.dead_letters("bus");
        assert_eq!(dead_letters.len() as u64, TORRENTS);
        assert!(dead_letters.iter().all(|(body, _)| body.contains("label_changed")));
    }
}

#[tokio::test]
async fn a_silently_dropped_connection_is_detected_and_loses_nothing() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let proxy = Proxy::to(SocketAddr::from(([127, 0, 0, 1], server.port))).await;
        let mut world = World::new(bus_at(&format!("nats://{}", proxy.address), "")).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        let subscriber = Subscriber::listen(&server).await;
        all_is_stored(&world, &subscriber).await;
        proxy.requests(Mode::Hold);
        proxy.answers(Mode::Hold);
        label(&world, hash, "a").await;
        world.bridge().wait_for_log("no answer within 5s").await;
        proxy.cut();
        proxy.requests(Mode::Pass);
        proxy.answers(Mode::Pass);
        all_is_stored(&world, &subscriber).await;
    }
}

#[tokio::test]
async fn the_key_of_a_torrent_removed_while_the_bridge_was_down_is_deleted() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let subscriber = Subscriber::listen(&server).await;
        let mut world = World::new(bus(&server, "")).await;
        let (remaining, erased) = (load_one(&world).await, Content::file("two", 1_000, 2));
        world.home.load(&erased.torrent, false).await.unwrap();
        world.start_bridge().await;
        let keys = [remaining, erased.hash].map(|hash| format!("home.{hash}"));
        for key in &keys {
            until("the state is stored", async || value(&subscriber.client, key).await).await;
        }
        world.bridge().process().kill().unwrap();
        world.home.act(erased.hash, "d.erase", &[]).await.unwrap();
        world.bridge().restart();
        until("the key is gone", async || value(&subscriber.client, &keys[1]).await.is_none().then_some(())).await;
        // With a lost store, too: the bucket is scanned.
        world.bridge().process().kill().unwrap();
        world.home.act(remaining, "d.erase", &[]).await.unwrap();
        std::fs::remove_dir_all(world.data_dir()).unwrap();
        world.bridge().restart();
        until("the key is gone", async || value(&subscriber.client, &keys[0]).await.is_none().then_some(())).await;
    }
}

#[tokio::test]
async fn a_data_directory_older_than_the_stream_is_detected_and_nothing_is_sent() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let subscriber = Subscriber::listen(&server).await;
        let mut world = World::new(bus(&server, "")).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        all_is_stored(&world, &subscriber).await;
        world.bridge().stop().await;
        let (data, backup) = (world.data_dir(), world.folder.join("backup"));
        let copy = |from: &std::path::Path, to: &std::path::Path| {
            std::fs::remove_dir_all(to).ok();
            std::fs::create_dir_all(to).unwrap();
            for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
                std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        };
        copy(&data, &backup);
        world.bridge().restart();
        label(&world, hash, "first").await;
        all_is_stored(&world, &subscriber).await;
        let before = stored(&subscriber.client).await;
        world.bridge().stop().await;
        copy(&backup, &data);
        world.bridge().restart();
        world.home.act(hash, "d.custom1.set", &[dtorrent_peers::rtorrent::Argument::Text("second")]).await.unwrap();
        world.bridge().wait_for_log("the data directory is older than the stream").await;
        // The event is not sent again.
        world.bridge().wait_for_log_again(1, "the data directory is older than the stream").await;
        assert_eq!(stored(&subscriber.client).await, before);
        assert!(world.database().dead_letters("bus").is_empty());
    }
}

#[tokio::test]
async fn a_server_in_lame_duck_mode_is_disconnected_and_reconnected_to() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let lines =
            "jetstream {{ store_dir: \"{dir}/store\" }}\nlame_duck_duration: \"30s\"\nlame_duck_grace_period: \"1s\"";
        let mut server = NatsServer::start_with(&program, folder.path(), lines).await;
        let mut world = World::new(bus(&server, "")).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        // In lame-duck mode this server refuses new connections, too.
        all_is_stored(&world, &Subscriber::listen(&server).await).await;
        server.process().signal("USR2").unwrap();
        world.bridge().wait_for_log("lame duck mode").await;
        let seq = label(&world, hash, "a").await;
        server.restart().await;
        let subscriber = Subscriber::listen(&server).await;
        all_is_stored(&world, &subscriber).await;
        world.database().until("it is noted", |database| database.cursor("bus", "home") >= seq).await;
    }
}
