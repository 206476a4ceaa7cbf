//! The whole bridge between rTorrent and NATS.

use dtorrent_peers::content::Content;
use serde_json::{Value, json};

use super::{bus, load_one, version};
use crate::harness::nats::{self, NatsServer, Subscriber, api, assert_once_in_order, body, stored, until, value};
use crate::harness::{World, can_run};

#[tokio::test]
async fn events_are_stored_in_the_stream_states_in_the_bucket_and_other_messages_published() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        eprintln!("{}", version(&program));
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let subscriber = Subscriber::listen(&server).await;
        let mut world = World::new(bus(&server, "")).await;
        let content = Content::file("a.iso", 20_000, 1);
        let hash = world.home.load(&content.torrent, false).await.unwrap();
        world.start_bridge().await;
        subscriber.on("dtorrent.home.event.snapshot_done").await;

        let info = api(&subscriber.client, "STREAM.INFO.DTORRENT_EVENTS", Value::Null).await;
        let config = &info["config"];
        assert_eq!((&config["storage"], &config["num_replicas"]), (&json!("file"), &json!(1)), "{info}");
        assert_eq!(config["duplicate_window"], json!(7_200_000_000_000_u64), "{info}");
        assert_eq!(config["max_age"], json!(2_592_000_000_000_000_u64), "{info}");

        let added = subscriber.on(&format!("dtorrent.home.torrent.{hash}.event.added")).await;
        let headers = added.headers.clone().unwrap();
        let id = body(&added)["id"].as_str().unwrap().to_owned();
        for (name, value) in [
            ("Nats-Msg-Id", id.as_str()),
            ("ce-id", &id),
            ("ce-specversion", "1.0"),
            ("ce-type", "dtorrent.torrent.added"),
            ("ce-source", "dtorrent/main/home"),
            ("ce-subject", &hash.to_string()),
            ("content-type", "application/json"),
        ] {
            assert_eq!(headers.get(name).map(async_nats::HeaderValue::as_str), Some(value), "{name}");
        }
        for subject in ["dtorrent.home.status", "dtorrent.bridge.main.status"] {
            let is_online = |m: &&async_nats::Message| m.subject.as_str() == subject && m.payload == "online";
            subscriber.wait_for(subject, |all| all.iter().find(is_online).map(drop)).await;
        }
        assert_eq!(body(&subscriber.on("dtorrent.bridge.main.info").await)["instance"], "main");
        assert_eq!(body(&subscriber.on("dtorrent.home.stats").await)["torrents"], 1);
        let health = body(&subscriber.on("dtorrent.bridge.main.health").await);
        assert_eq!(health["sinks"]["bus"]["notes"], json!([]), "{health}");

        let key = format!("home.{hash}");
        let state = until("the state is stored", async || value(&subscriber.client, &key).await).await;
        assert_eq!(state["hash"], json!(hash));
        let on_subject = subscriber.on(&format!("dtorrent.home.torrent.{hash}.state")).await;
        assert_eq!(body(&on_subject)["name"], "a.iso");

        // `updated` is received and not stored; the value of the key follows.
        let topic = format!("home/torrent/{hash}/command/label");
        world.recorder.command(&topic, json!({"label": "linux"})).await;
        subscriber.on(&format!("dtorrent.home.torrent.{hash}.event.label_changed")).await;
        let label = async || value(&subscriber.client, &key).await.filter(|state| state["label"] == "linux");
        until("the stored state has the label", label).await;

        let topic = format!("home/torrent/{hash}/command/delete");
        world.recorder.command(&topic, Value::Null).await;
        subscriber.on(&format!("dtorrent.home.torrent.{hash}.event.removed")).await;
        until("the key is gone", async || value(&subscriber.client, &key).await.is_none().then_some(())).await;

        world.bridge().stop().await;
        let is_status = |m: &&async_nats::Message| m.subject.as_str() == "dtorrent.bridge.main.status";
        let offline = |all: &[async_nats::Message]| (all.iter().rfind(is_status)?.payload == "offline").then_some(());
        subscriber.wait_for("the bridge to say offline", offline).await;
        let events = assert_once_in_order(&stored(&subscriber.client).await, "home");
        assert_eq!(events, world.recorder.assert_gap_free("home"), "both brokers get the same events");
        assert!(!events.iter().any(|event| event["event_type"] == "updated"));
    }
}

#[tokio::test]
async fn without_jetstream_everything_is_published_nothing_is_stored_and_health_shows_it() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        // The server has JetStream, and the bridge does not use it.
        let server = NatsServer::start(&program, folder.path()).await;
        let subscriber = Subscriber::listen(&server).await;
        let mut world = World::new(bus(&server, "jetstream = false")).await;
        let hash = super::load_one(&world).await;
        world.start_bridge().await;
        subscriber.on(&format!("dtorrent.home.torrent.{hash}.event.added")).await;
        subscriber.on(&format!("dtorrent.home.torrent.{hash}.state")).await;
        let health = body(&subscriber.on("dtorrent.bridge.main.health").await);
        let notes = health["sinks"]["bus"]["notes"].to_string();
        assert!(notes.contains("nothing is stored here"), "{health}");
        let info = api(&subscriber.client, "STREAM.INFO.DTORRENT_EVENTS", Value::Null).await;
        assert_eq!(info["error"]["code"], 404, "{info}");
    }
}

#[tokio::test]
async fn each_broker_has_its_filter_and_its_own_cursor() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let mut server = NatsServer::start(&program, folder.path()).await;
        let setup = bus(&server, "servers = [\"home\"]\nevents = [\"label_changed\", \"removed\"]");
        let mut world = World::new(setup).await;
        let hash = super::load_one(&world).await;
        let (home, attic) = (world.home.url(), world.home.url());
        world.start_bridge_for(&[("home", &home), ("attic", &attic)]).await;
        super::label(&world, hash, "a").await;
        server.kill();
        super::label(&world, hash, "b").await; // MQTT does not wait for NATS
        let last = world.database().last_seq("home");
        assert!(world.database().cursor("bus", "home") < last);
        server.restart().await;
        world.database().until("NATS has caught up", |database| database.cursor("bus", "home") >= last).await;
        let subscriber = Subscriber::listen(&server).await;
        let events = stored(&subscriber.client).await;
        let seen: Vec<(&str, &str)> = events
            .iter()
            .map(|(_, _, event)| (event["server"].as_str().unwrap(), event["torrent"]["label"].as_str().unwrap()))
            .collect();
        assert_eq!(seen, [("home", "a"), ("home", "b")]);
        assert!(events.iter().all(|(_, _, event)| event["event_type"] == "label_changed"));
        world.recorder.assert_gap_free("home");
    }
}

/// The filters of the contract work on the stream, also those that are wider than its subjects.
#[tokio::test]
async fn a_consumer_filters_by_the_subjects_of_the_contract() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let mut world = World::new(bus(&server, "")).await;
        super::load_one(&world).await;
        world.start_bridge().await;
        let subscriber = Subscriber::listen(&server).await;
        super::all_is_stored(&world, &subscriber).await;
        for filter in ["dtorrent.*.event.>", "dtorrent.*.torrent.*.event.>", "dtorrent.home.torrent.*.event.added"] {
            let config = json!({"stream_name": "DTORRENT_EVENTS", "config": {"durable_name": "c", "ack_policy": "explicit",
                "deliver_policy": "all", "filter_subject": filter}});
            let made = api(&subscriber.client, "CONSUMER.DURABLE.CREATE.DTORRENT_EVENTS.c", config).await;
            assert!(made["error"].is_null() && made["num_pending"].as_u64() > Some(0), "{filter}: {made}");
            api(&subscriber.client, "CONSUMER.DELETE.DTORRENT_EVENTS.c", Value::Null).await;
        }
    }
}

/// The MQTT port of a NATS server is a broker of MQTT 3.1.1, and its topics equal the subjects.
#[tokio::test]
async fn through_the_mqtt_port_of_a_nats_server_topics_equal_the_subjects() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let port = dtorrent_peers::process::free_port().unwrap();
        let lines =
            format!("jetstream {{{{ store_dir: \"{{dir}}/store\" }}}}\nmqtt {{{{ listen: \"127.0.0.1:{port}\" }}}}");
        let server = NatsServer::start_with(&program, folder.path(), &lines).await;
        let subscriber = Subscriber::listen(&server).await;
        let sink = format!("[brokers.bus]\nkind = \"mqtt\"\nurl = \"mqtt://127.0.0.1:{port}\"\n");
        let mut world = World::new(crate::harness::Setup { sink, ..Default::default() }).await;
        let hash = super::load_one(&world).await;
        world.start_bridge().await;
        let added = body(&subscriber.on(&format!("dtorrent.home.torrent.{hash}.event.added")).await);
        assert_eq!(added["hash"], json!(hash));
        subscriber.on("dtorrent.home.status").await;
        subscriber.on(&format!("dtorrent.home.torrent.{hash}.state")).await;
        world.bridge().wait_for_log_again(1, "accepting commands").await;
        let command = json!({"id": "x", "label": "by-nats"}).to_string();
        subscriber.client.publish(format!("dtorrent.home.torrent.{hash}.command.label"), command.into()).await.unwrap();
        let result = subscriber
            .wait_for("the result", |all| all.iter().find(|m| m.subject.as_str() == "dtorrent.home.result").map(body))
            .await;
        assert_eq!((&result["id"], &result["status"]), (&json!("x"), &json!("ok")), "{result}");
    }
}

#[tokio::test]
async fn purge_deletes_every_key_and_leaves_the_events() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let subscriber = Subscriber::listen(&server).await;
        let mut world = World::new(bus(&server, "")).await;
        let hash = load_one(&world).await;
        let key = format!("home.{hash}");
        world.start_bridge().await;
        // With the registry of retained topics, and with a lost store, in which case the bucket is scanned.
        for is_lost in [false, true] {
            until("the state is stored", async || value(&subscriber.client, &key).await).await;
            world.bridge().stop().await;
            let events = stored(&subscriber.client).await.len();
            if is_lost {
                std::fs::remove_dir_all(world.data_dir()).unwrap();
            }
            let mut purge = tokio::process::Command::new(env!("CARGO_BIN_EXE_dtorrent"));
            let purge = purge.arg("purge").arg("--config").arg(world.folder.join("dtorrent.toml"));
            let done = purge.output().await.unwrap();
            assert_eq!(done.status.code(), Some(0), "{done:?}");
            assert!(String::from_utf8_lossy(&done.stderr).contains("broker bus: 1 topics cleared"), "{done:?}");
            assert_eq!(value(&subscriber.client, &key).await, None);
            assert_eq!(stored(&subscriber.client).await.len(), events);
            if !is_lost {
                world.bridge().restart();
            }
        }
    }
}
