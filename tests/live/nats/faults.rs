//! Everything killed, cut, full, wrong or hung between the bridge and NATS.

use std::net::SocketAddr;

use dtorrent_peers::content::Content;
use serde_json::{Value, json};

use super::{all_is_stored, bus, bus_at, label, load_one, version};
use crate::faults::{label_all, load_many};
use crate::harness::nats::{self, Ear, NatsServer, api, stored, until, value};
use crate::harness::proxy::{Proxy, Way};
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
        let ledger = world.ledger();
        for round in 1..5_u64 {
            // So much is told of the round before that this one is not confused with it.
            let written = TORRENTS * round;
            ledger.until("the round before is written down", |ledger| ledger.last_seq("home") >= written).await;
            let begun = ledger.cursor("bus", "home");
            label_all(&world.home, &format!("round-{round}")).await;
            ledger.until("some of it is delivered", |ledger| ledger.cursor("bus", "home") > begun).await;
            server.kill();
            server.restart().await;
        }
        ledger.until("all is written down", |ledger| ledger.last_seq("home") >= 5 * TORRENTS).await;
        let last = ledger.last_seq("home");
        ledger.until("all is delivered", |ledger| ledger.cursor("bus", "home") >= last).await;
        let ear = Ear::listen(&server).await;
        let events = all_is_stored(&world, &ear).await;
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
        let ear = Ear::listen(&server).await;
        all_is_stored(&world, &ear).await;
        let last = world.ledger().last_seq("home");
        world.ledger().until("all is noted", |ledger| ledger.cursor("bus", "home") == last).await;
        proxy.answers(Way::Hold);
        let seq = label(&world, hash, "a").await;
        let is_there = async || stored(&ear.client).await.iter().any(|(_, _, event)| event["seq"] == seq).then_some(());
        until("the event is stored", is_there).await;
        assert!(world.ledger().cursor("bus", "home") < seq, "not acknowledged");
        world.bridge().process().kill().unwrap();
        proxy.cut();
        proxy.answers(Way::Pass);
        world.bridge().restart();
        world.ledger().until("it is delivered", |ledger| ledger.cursor("bus", "home") >= seq).await;
        label(&world, hash, "b").await;
        all_is_stored(&world, &ear).await;
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
        let ear = Ear::listen(&server).await;
        let mut strikes = 0;
        for round in 0.. {
            assert!(round < 30, "the cursor is always faster");
            let seq = label(&world, hash, &format!("r{round}")).await;
            // The state goes when the event is acknowledged.
            let key = format!("home.{hash}");
            let is_shown =
                async || value(&ear.client, &key).await.filter(|state| state["label"] == format!("r{round}")).map(drop);
            until("the state of it is kept", is_shown).await;
            world.bridge().process().kill().unwrap();
            strikes += u32::from(world.ledger().cursor("bus", "home") < seq);
            world.bridge().restart();
            world.ledger().until("it is noted", |ledger| ledger.cursor("bus", "home") >= seq).await;
            if strikes == 2 {
                break;
            }
        }
        all_is_stored(&world, &ear).await;
    }
}

#[tokio::test]
async fn a_stream_deleted_by_hand_is_made_anew_and_nothing_after_it_is_lost() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let mut world = World::new(bus(&server, "")).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        let ear = Ear::listen(&server).await;
        all_is_stored(&world, &ear).await;
        for stream in ["DTORRENT_EVENTS", "KV_dtorrent_state"] {
            assert_eq!(api(&ear.client, &format!("STREAM.DELETE.{stream}"), Value::Null).await["success"], true);
        }
        let seq = label(&world, hash, "a").await;
        // What else is said meanwhile, and answered, must not hide that nobody answers for the event.
        let is_there = async || {
            ear.request("dtorrent.home.command.list", "").await;
            let all = stored(&ear.client).await;
            all.iter().any(|(_, _, event)| event["seq"] == seq).then_some(())
        };
        until("the event is in the new stream", is_there).await;
        let key = format!("home.{hash}");
        let state = async || value(&ear.client, &key).await.filter(|state| state["label"] == "a");
        until("the state is in the new bucket", state).await;
    }
}

#[tokio::test]
async fn a_stream_that_is_full_is_explained_and_waited_for() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let mut world = World::new(bus(&server, "")).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        let ear = Ear::listen(&server).await;
        all_is_stored(&world, &ear).await;
        let info = api(&ear.client, "STREAM.INFO.DTORRENT_EVENTS", Value::Null).await;
        let mut config = info["config"].clone();
        config["discard"] = json!("new");
        config["max_bytes"] = json!(info["state"]["bytes"].as_u64().unwrap() + 10);
        let changed = api(&ear.client, "STREAM.UPDATE.DTORRENT_EVENTS", config.clone()).await;
        assert!(changed["error"].is_null(), "{changed}");
        for round in 0..5 {
            label(&world, hash, &format!("r{round}")).await;
        }
        world.bridge().says("the stream has no room (").await;
        world.bridge().says("has limits: events wait when it is full").await;
        config["max_bytes"] = json!(-1);
        api(&ear.client, "STREAM.UPDATE.DTORRENT_EVENTS", config).await;
        all_is_stored(&world, &ear).await;
    }
}

#[tokio::test]
async fn a_stream_or_bucket_of_somebody_else_is_explained_and_left_alone() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let ear = Ear::listen(&server).await;
        let theirs = json!({"name": "DTORRENT_EVENTS", "subjects": ["dtorrent.>"], "storage": "memory", "retention": "limits",
            "discard": "old", "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0, "num_replicas": 1});
        api(&ear.client, "STREAM.CREATE.DTORRENT_EVENTS", theirs).await;
        let mut world = World::new(bus(&server, "")).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        for why in [
            "its storage is memory, and has to be file",
            "dtorrent.> catches dtorrent.*.torrent.*.event.updated",
            "has to be 2h at least",
            "It is not changed from here",
        ] {
            world.bridge().says(why).await;
        }
        let config = world.folder.join("dtorrent.toml");
        let check = std::process::Command::new(env!("CARGO_BIN_EXE_dtorrent"))
            .args(["check", "--connect", "--config", config.to_str().unwrap()])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&[check.stdout, check.stderr].concat()).into_owned();
        assert!(said.contains("its storage is memory") && check.status.code() == Some(3), "{said}");
        let there = api(&ear.client, "STREAM.INFO.DTORRENT_EVENTS", Value::Null).await;
        assert_eq!(there["config"]["storage"], "memory");
        let bucket = json!({"name": "KV_dtorrent_state", "subjects": ["$KV.dtorrent_state.>"], "storage": "file",
            "retention": "limits", "discard": "new", "max_consumers": -1, "max_msgs": -1, "max_bytes": -1,
            "max_msgs_per_subject": 7, "max_age": 3_600_000_000_000_u64, "num_replicas": 1, "allow_rollup_hdrs": true});
        let made = api(&ear.client, "STREAM.CREATE.KV_dtorrent_state", bucket.clone()).await;
        assert!(made["error"].is_null(), "{made}");
        api(&ear.client, "STREAM.DELETE.DTORRENT_EVENTS", Value::Null).await;
        world.bridge().says("its values go after 1h").await;
        let mut mended = bucket;
        mended["max_age"] = json!(0);
        let changed = api(&ear.client, "STREAM.UPDATE.KV_dtorrent_state", mended).await;
        assert!(changed["error"].is_null(), "{changed}");
        world.bridge().says("keeps a history of 7, not 1").await;
        label(&world, hash, "a").await;
        all_is_stored(&world, &ear).await;
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
        world.bridge().says("JetStream is not there: switch it on").await;
        label(&world, hash, "a").await;
        server.reconfigure("jetstream { store_dir: \"{dir}/store\" }");
        server.restart().await;
        let ear = Ear::listen(&server).await;
        all_is_stored(&world, &ear).await;
    }
}

#[tokio::test]
async fn what_may_not_be_published_is_put_aside_and_the_rest_flows() {
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
            world.heard.command(&format!("home/torrent/{hash}/command/priority"), json!({"priority": 3})).await;
        assert_eq!(result["status"], "ok");
        let last = world.ledger().last_seq("home");
        world.ledger().until("all is settled", |ledger| ledger.cursor("bus", "home") >= last).await;
        let aside = world.ledger().dead_letters("bus");
        assert_eq!(aside.len(), 1, "{aside:?}");
        assert!(aside[0].0.contains("label_changed") && aside[0].1.contains("Permissions Violation"), "{aside:?}");
        let login = async_nats::ConnectOptions::with_user_and_password("reader".into(), "r".into());
        let client = server.client_with(login).await;
        let kinds: Vec<Value> =
            stored(&client).await.into_iter().map(|(_, _, event)| event["event_type"].clone()).collect();
        assert!(kinds.contains(&json!("priority_changed")) && !kinds.contains(&json!("label_changed")), "{kinds:?}");
        // Under a login that may, it is sent once more as it was.
        world.bridge().stop().await;
        let login = [("DTORRENT_BROKERS__BUS__USERNAME", "reader"), ("DTORRENT_BROKERS__BUS__PASSWORD", "r")];
        let (code, _, said) = world.ask(&["dead-letters", "replay", "bus", "--all"], &login).await;
        assert!(code == 0 && said.contains(": delivered"), "{said}");
        let parked: Value = serde_json::from_str(&aside[0].0).unwrap();
        let last = stored(&client).await.into_iter().map(|(_, _, event)| event).next_back();
        assert_eq!(last, Some(parked));
        assert_eq!(world.ledger().dead_letters("bus"), []);
    }
}

#[tokio::test]
async fn hundreds_that_may_not_be_published_are_each_put_aside() {
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
        let ledger = world.ledger();
        label_all(&world.home, "a").await;
        ledger.until("each is put aside", |ledger| ledger.dead_letters("bus").len() as u64 >= TORRENTS).await;
        let aside = ledger.dead_letters("bus");
        assert_eq!(aside.len() as u64, TORRENTS);
        assert!(aside.iter().all(|(body, _)| body.contains("label_changed")));
    }
}

#[tokio::test]
async fn a_line_that_is_dead_without_a_word_is_given_up_and_nothing_is_lost() {
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
        let ear = Ear::listen(&server).await;
        all_is_stored(&world, &ear).await;
        proxy.requests(Way::Hold);
        proxy.answers(Way::Hold);
        label(&world, hash, "a").await;
        world.bridge().says("no answer within 5s").await;
        proxy.cut();
        proxy.requests(Way::Pass);
        proxy.answers(Way::Pass);
        all_is_stored(&world, &ear).await;
    }
}

#[tokio::test]
async fn a_key_whose_torrent_went_while_the_bridge_was_down_is_deleted() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let ear = Ear::listen(&server).await;
        let mut world = World::new(bus(&server, "")).await;
        let (stays, goes) = (load_one(&world).await, Content::file("two", 1_000, 2));
        world.home.load(&goes.torrent, false).await.unwrap();
        world.start_bridge().await;
        let keys = [stays, goes.hash].map(|hash| format!("home.{hash}"));
        for key in &keys {
            until("the state is kept", async || value(&ear.client, key).await).await;
        }
        world.bridge().process().kill().unwrap();
        world.home.act(goes.hash, "d.erase", &[]).await.unwrap();
        world.bridge().restart();
        until("the key is gone", async || value(&ear.client, &keys[1]).await.is_none().then_some(())).await;
        // The same if the state was lost: the bucket itself is asked.
        world.bridge().process().kill().unwrap();
        world.home.act(stays, "d.erase", &[]).await.unwrap();
        std::fs::remove_dir_all(world.data_dir()).unwrap();
        world.bridge().restart();
        until("the key is gone", async || value(&ear.client, &keys[0]).await.is_none().then_some(())).await;
    }
}

#[tokio::test]
async fn a_data_folder_that_is_older_than_the_stream_is_found_out_and_nothing_is_sent() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let ear = Ear::listen(&server).await;
        let mut world = World::new(bus(&server, "")).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        all_is_stored(&world, &ear).await;
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
        all_is_stored(&world, &ear).await;
        let before = stored(&ear.client).await;
        world.bridge().stop().await;
        copy(&backup, &data);
        world.bridge().restart();
        world.home.act(hash, "d.custom1.set", &[dtorrent_peers::rtorrent::Argument::Text("second")]).await.unwrap();
        world.bridge().says("the data folder is older than the stream").await;
        // It is not tried again as if nothing had been.
        world.bridge().says_again(1, "the data folder is older than the stream").await;
        assert_eq!(stored(&ear.client).await, before);
        assert!(world.ledger().dead_letters("bus").is_empty());
    }
}

#[tokio::test]
async fn a_server_that_is_about_to_stop_is_left_and_found_again() {
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
        // It is connected to this one too: nobody new is let in after that.
        all_is_stored(&world, &Ear::listen(&server).await).await;
        server.process().signal("USR2").unwrap();
        world.bridge().says("lame duck mode").await;
        let seq = label(&world, hash, "a").await;
        server.restart().await;
        let ear = Ear::listen(&server).await;
        all_is_stored(&world, &ear).await;
        world.ledger().until("it is noted", |ledger| ledger.cursor("bus", "home") >= seq).await;
    }
}
