//! The whole bridge between rTorrent and NATS.

use dtorrent::demo::content::Content;
use serde_json::{Value, json};

use super::{bus, version};
use crate::harness::nats::{self, Ear, NatsServer, api, assert_once_in_order, body, stored, until, value};
use crate::harness::{World, can_run};

#[tokio::test]
async fn events_are_stored_states_are_kept_and_the_rest_is_heard() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        eprintln!("{}", version(&program));
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let ear = Ear::listen(&server).await;
        let mut world = World::new(bus(&server, "")).await;
        let content = Content::file("a.iso", 20_000, 1);
        let hash = world.home.load(&content.torrent, false).await.unwrap();
        world.start_bridge().await;
        ear.on("dtorrent.home.event.snapshot_done").await;

        let info = api(&ear.client, "STREAM.INFO.DTORRENT_EVENTS", Value::Null).await;
        let config = &info["config"];
        assert_eq!((&config["storage"], &config["num_replicas"]), (&json!("file"), &json!(1)), "{info}");
        assert_eq!(config["duplicate_window"], json!(7_200_000_000_000_u64), "{info}");
        assert_eq!(config["max_age"], json!(2_592_000_000_000_000_u64), "{info}");

        let added = ear.on(&format!("dtorrent.home.torrent.{hash}.event.added")).await;
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
            assert_eq!(ear.on(subject).await.payload, "online", "{subject}");
        }
        assert_eq!(body(&ear.on("dtorrent.bridge.main.info").await)["instance"], "main");
        assert_eq!(body(&ear.on("dtorrent.home.stats").await)["torrents"], 1);
        let health = body(&ear.on("dtorrent.bridge.main.health").await);
        assert_eq!(health["sinks"]["bus"]["notes"], json!([]), "{health}");

        let key = format!("home.{hash}");
        let state = until("the state is kept", async || value(&ear.client, &key).await).await;
        assert_eq!(state["hash"], json!(hash));
        let on_subject = ear.on(&format!("dtorrent.home.torrent.{hash}.state")).await;
        assert_eq!(body(&on_subject)["name"], "a.iso");

        // `updated` is heard and not stored; the value of the key follows.
        let topic = format!("home/torrent/{hash}/command/label");
        world.heard.command(&topic, json!({"label": "linux"})).await;
        ear.on(&format!("dtorrent.home.torrent.{hash}.event.label_changed")).await;
        let label = async || value(&ear.client, &key).await.filter(|state| state["label"] == "linux");
        until("the kept state has the label", label).await;

        let topic = format!("home/torrent/{hash}/command/delete");
        world.heard.command(&topic, Value::Null).await;
        ear.on(&format!("dtorrent.home.torrent.{hash}.event.removed")).await;
        until("the key is gone", async || value(&ear.client, &key).await.is_none().then_some(())).await;

        world.bridge().stop().await;
        let is_status = |m: &&async_nats::Message| m.subject.as_str() == "dtorrent.bridge.main.status";
        let offline = |all: &[async_nats::Message]| (all.iter().rfind(is_status)?.payload == "offline").then_some(());
        ear.wait_for("the bridge to say offline", offline).await;
        let events = assert_once_in_order(&stored(&ear.client).await, "home");
        assert_eq!(events, world.heard.assert_gap_free("home"), "both brokers hear the same");
        assert!(!events.iter().any(|event| event["event_type"] == "updated"));
    }
}
