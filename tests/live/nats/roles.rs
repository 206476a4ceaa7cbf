//! The permissions of deploy/nats: the bridge has all that it needs, other users no more than intended.

use async_nats::{Client, ConnectOptions};
use bytes::Bytes;
use dtorrent_peers::process::free_port;
use futures_util::StreamExt as _;
use serde_json::Value;

use super::{bus, label, load_one};
use crate::harness::http::{get_until, request};
use crate::harness::nats::{self, NatsServer, api, body, stored, until, value};
use crate::harness::{Setup, World, can_run};

async fn login(server: &NatsServer, user: &str) -> Client {
    server.client_with(ConnectOptions::with_user_and_password(user.into(), user.into())).await
}

#[tokio::test]
async fn the_permissions_of_the_stack_allow_the_bridge_everything_and_others_no_more_than_needed() {
    if !can_run() {
        return;
    }
    let conf = include_str!("../../../deploy/nats/nats.conf");
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let mut lines = String::new();
        for line in
            conf.lines().filter(|line| !["listen:", "server_name:", "http:"].iter().any(|own| line.starts_with(own)))
        {
            lines += &format!("{line}\n");
        }
        for (from, to) in [
            ("/data", "{dir}/store"),
            ("$NATS_BRIDGE_PASSWORD", "bridge"),
            ("$NATS_READER_PASSWORD", "reader"),
            ("$NATS_COMMANDER_PASSWORD", "commander"),
        ] {
            assert!(lines.contains(from), "{from}");
            lines = lines.replace(from, to);
        }
        let server = NatsServer::start_with(&program, folder.path(), &lines).await;
        let mut world = World::new(bus(&server, "username = \"bridge\"\npassword = \"bridge\"")).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        let seq = label(&world, hash, "a").await;
        world.database().until("it is delivered", |database| database.cursor("bus", "home") >= seq).await;
        assert!(world.database().dead_letters("bus").is_empty());
        assert_eq!(world.bridge().count_in_log("Permissions Violation"), 0, "the bridge lacks a right");

        let reader = login(&server, "reader").await;
        assert!(stored(&reader).await.iter().any(|(_, _, event)| event["seq"] == seq));
        assert!(value(&reader, &format!("home.{hash}")).await.is_some());
        let subject = format!("dtorrent.home.torrent.{hash}.command.get");
        let commander = login(&server, "commander").await;
        let reply =
            until("the commander is answered", async || commander.request(subject.clone(), Bytes::new()).await.ok())
                .await;
        assert_eq!(body(&reply)["status"], "ok");

        // The reader chooses the reply subject, but a reply is never a command.
        let pause = format!("dtorrent.home.torrent.{hash}.command.pause");
        let nothing = r#"{"last_by_subj": "$KV.dtorrent_state.nothing"}"#.to_owned();
        let a_state = format!(r#"{{"last_by_subj": "$KV.dtorrent_state.home.{hash}"}}"#);
        let before = world.database().last_seq("home");
        for (round, (question, asked)) in [
            ("$JS.API.DIRECT.GET.KV_dtorrent_state", nothing),
            ("$JS.API.DIRECT.GET.KV_dtorrent_state", a_state),
            ("$JS.API.STREAM.INFO.DTORRENT_EVENTS", String::new()),
        ]
        .into_iter()
        .enumerate()
        {
            reader.publish_with_reply(question, pause.clone(), Bytes::from(asked)).await.unwrap();
            reader.flush().await.unwrap();
            world.bridge().wait_for_log_again(round, "reply of another service on a command subject").await;
        }
        // A later request is answered, so these were ignored.
        commander.request(subject.clone(), Bytes::new()).await.unwrap();
        assert_eq!(world.database().last_seq("home"), before, "a torrent was paused");

        // Forbidden: commands from the reader, forged states and events, deletion of the stream.
        let before = stored(&reader).await.len();
        let mut received = reader.subscribe("dtorrent.>").await.unwrap();
        reader.flush().await.unwrap();
        for (client, evil) in [
            (&reader, subject.as_str()),
            (&reader, "dtorrent.home.event.server_offline"),
            (&commander, "dtorrent.home.event.server_offline"),
            (&commander, "$KV.dtorrent_state.home.x"),
            (&reader, "$JS.API.STREAM.DELETE.DTORRENT_EVENTS"),
            (&commander, "$JS.API.STREAM.PURGE.DTORRENT_EVENTS"),
        ] {
            client.publish(evil.to_owned(), Bytes::new()).await.unwrap();
            client.flush().await.unwrap();
        }
        commander.request(subject.clone(), Bytes::new()).await.unwrap();
        reader.request("$SRV.PING.dtorrent", Bytes::new()).await.unwrap();
        assert_eq!(stored(&reader).await.len(), before);
        assert!(value(&reader, "home.x").await.is_none());
        let info = api(&reader, "STREAM.INFO.DTORRENT_EVENTS", Value::Null).await;
        assert!(info["error"].is_null(), "{info}");
        while let Some(Some(message)) = futures_util::FutureExt::now_or_never(received.next()) {
            assert_ne!(message.subject.as_str(), "dtorrent.home.event.server_offline");
        }
    }
}

/// A server says nothing of a right that it grants, and takes one away without a new connection.
#[tokio::test]
async fn a_bridge_that_may_not_receive_commands_is_not_ready_until_it_may() {
    if !can_run() {
        return;
    }
    const COMMANDS: &str = "dtorrent.home.command.*";
    let lines = |denied: &str| {
        format!(
            "jetstream {{{{ store_dir: \"{{dir}}/store\" }}}}\nauthorization {{{{ users = [ {{{{ user: bridge, password: b, \
             permissions: {{{{ subscribe: {{{{ deny: [{denied}] }}}} }}}} }}}} ] }}}}"
        )
    };
    let (all, none) = (lines(&format!("\"{COMMANDS}\"")), lines(""));
    for program in nats::programs() {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port().unwrap());
        let mut server = NatsServer::start_with(&program, folder.path(), &all).await;
        let http = format!("listen = \"127.0.0.1:{port}\"\ntoken = \"open sesame\"");
        let setup = Setup { http, ..bus(&server, "username = \"bridge\"\npassword = \"b\"") };
        let mut world = World::new(setup).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        let token = [("Authorization", "Bearer open sesame")];
        let deaf = async || {
            let answer = request(port, "GET", "/readyz", &token, b"").await;
            let bus = &answer.json()["sinks"]["bus"];
            let is_named = bus["problem"].as_str().is_some_and(|problem| problem.contains(COMMANDS));
            (answer.status == 503 && bus["ready"] == false && is_named).then_some(())
        };
        until("the bridge is not ready", deaf).await;
        // Other requests are taken meanwhile.
        let user = server.client_with(ConnectOptions::with_user_and_password("bridge".into(), "b".into())).await;
        let label = format!("dtorrent.home.torrent.{hash}.command.label");
        let reply = user.request(label, Bytes::from_static(b"{\"label\":\"x\"}")).await.unwrap();
        assert_eq!(body(&reply)["status"], "ok");
        for text in ["commands cannot be received, trying again", COMMANDS] {
            assert_eq!(world.bridge().count_in_log(text), 1, "{text}");
        }
        for is_granted in [true, false] {
            server.reconfigure(if is_granted { &none } else { &all });
            server.process().signal("HUP").unwrap();
            if is_granted {
                get_until(port, "/readyz", |ready| ready["ready"] == true).await;
                let user =
                    server.client_with(ConnectOptions::with_user_and_password("bridge".into(), "b".into())).await;
                let list = "dtorrent.home.command.list";
                let reply = user.request(list, Bytes::from_static(b"{}")).await.unwrap();
                assert_eq!(body(&reply)["status"], "ok");
            } else {
                until("the bridge is not ready again", deaf).await;
            }
        }
    }
}
