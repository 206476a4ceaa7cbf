//! Commands as NATS requests: each has one reply, after its effect was observed.

use async_nats::Message;
use bytes::Bytes;
use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::Argument;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::{bus, load_one};
use crate::harness::bridge::Bridge;
use crate::harness::nats::{self, NatsServer, Subscriber, body, until};
use crate::harness::{Setup, World, can_run};
use crate::memory::with_memory;

fn header<'m>(message: &'m Message, name: &str) -> Option<&'m str> {
    message.headers.as_ref()?.get(name).map(async_nats::HeaderValue::as_str)
}

/// Waits until the service answers.
async fn service_is_up(subscriber: &Subscriber) {
    until("the service answers", async || {
        subscriber.client.request("$SRV.PING.dtorrent", Bytes::new()).await.is_ok().then_some(())
    })
    .await;
}

/// Repeats a request until it is answered; some may be lost.
async fn lists_again(subscriber: &Subscriber) {
    until("requests are answered again", async || {
        let request = async_nats::Request::new()
            .payload(Bytes::from(r#"{"page_size": 1}"#))
            .timeout(Some(std::time::Duration::from_secs(2)));
        let reply = subscriber.client.send_request("dtorrent.home.command.list", request).await.ok()?;
        (body(&reply)["status"] == "ok").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_request_is_answered_once_after_its_effect_was_observed() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let subscriber = Subscriber::listen(&server).await;
        let mut world = World::new(bus(&server, "commands = [\"*\", \"-announce\"]")).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        service_is_up(&subscriber).await;

        let subject = format!("dtorrent.home.torrent.{hash}.command.label");
        let reply = subscriber.request(&subject, r#"{"label": "linux", "id": "one"}"#).await;
        assert_eq!(world.home.get(hash, "d.custom1").await.unwrap(), "linux", "ok means seen");
        assert_eq!(body(&reply)["status"], "ok", "{reply:?}");
        assert_eq!((header(&reply, "Nats-Service-Error"), header(&reply, "Nats-Service-Error-Code")), (None, None));
        let result = subscriber.on("dtorrent.home.result").await;
        assert_eq!(body(&result), body(&reply));
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("user", "anna\u{1b}[2J");
        let request = async_nats::Request::new().headers(headers).payload(Bytes::from(r#"{"label": "linux"}"#));
        let named = subscriber.client.send_request(subject.clone(), request).await.unwrap();
        assert_eq!(body(&named)["status"], "ok", "{named:?}");
        world.bridge().wait_for_log("user=\"anna\u{fffd}[2J\"").await;
        // The same id is not executed again, and answered as before.
        world.home.act(hash, "d.custom1.set", &[dtorrent_peers::rtorrent::Argument::Text("other")]).await.unwrap();
        let again = subscriber.request(&subject, r#"{"label": "linux", "id": "one"}"#).await;
        assert_eq!(body(&again), body(&reply));
        assert_eq!(world.home.get(hash, "d.custom1").await.unwrap(), "other");
        // Another command under this id is not, and its sender is told.
        let taken = subscriber.request(&subject, r#"{"label": "windows", "id": "one"}"#).await;
        assert_eq!((header(&taken, "Nats-Service-Error-Code"), &body(&taken)["id"]), (Some("400"), &json!("one")));
        assert_eq!(world.home.get(hash, "d.custom1").await.unwrap(), "other");

        let unknown = "ab".repeat(20);
        for (subject, request, code, number) in [
            ("dtorrent.home.command.pause".to_owned(), "{", "bad_request", "400"),
            ("dtorrent.home.command.explode".to_owned(), "", "unsupported", "501"),
            (format!("dtorrent.home.torrent.{hash}.command.announce"), "", "forbidden", "403"),
            (format!("dtorrent.home.torrent.{unknown}.command.pause"), "", "unknown_hash", "404"),
            ("dtorrent.home.torrent.nohash.command.pause".to_owned(), "", "bad_request", "400"),
            ("dtorrent.bridge.main.command.explode".to_owned(), "", "unsupported", "501"),
        ] {
            let inbox = subscriber.client.new_inbox();
            let mut replies = subscriber.client.subscribe(inbox.clone()).await.unwrap();
            subscriber.client.publish_with_reply(subject.clone(), inbox, Bytes::from(request)).await.unwrap();
            let reply = replies.next().await.unwrap();
            let result = body(&reply);
            let of_row = &result["results"][0]["error"]["code"];
            assert!(result["error"]["code"] == code || of_row == code, "{subject} {result}");
            assert_eq!(header(&reply, "Nats-Service-Error-Code"), Some(number), "{subject}");
            assert!(header(&reply, "Nats-Service-Error").is_some_and(|text| !text.is_empty()), "{subject}");
            // A second reply to this request would arrive before the reply to a later one.
            subscriber.request("dtorrent.home.command.explode", "").await;
            let second = futures_util::FutureExt::now_or_never(replies.next()).flatten();
            assert!(second.is_none(), "{subject} is answered twice");
        }

        // A reply subject that is a command or a JetStream API subject gets no reply.
        for evil in
            [format!("dtorrent.home.torrent.{hash}.command.delete"), "$JS.API.STREAM.DELETE.DTORRENT_EVENTS".into()]
        {
            subscriber.client.publish_with_reply("dtorrent.home.command.explode", evil, Bytes::new()).await.unwrap();
        }
        subscriber.request("dtorrent.home.command.explode", "").await;
        assert_eq!(world.home.hashes().await.unwrap(), [hash]);
        let info = nats::api(&subscriber.client, "STREAM.INFO.DTORRENT_EVENTS", Value::Null).await;
        assert!(info["error"].is_null(), "{info}");
    }
}

#[tokio::test]
async fn the_service_is_discoverable_and_a_read_only_one_accepts_no_command() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let subscriber = Subscriber::listen(&server).await;
        let mut world = World::new(bus(&server, "")).await;
        world.start_bridge().await;
        service_is_up(&subscriber).await;
        let ping = body(&subscriber.request("$SRV.PING", "").await);
        assert_eq!((&ping["name"], &ping["type"]), (&json!("dtorrent"), &json!("io.nats.micro.v1.ping_response")));
        assert_eq!(ping["metadata"]["instance"], "main");
        let id = ping["id"].as_str().unwrap();
        let info = body(&subscriber.request(&format!("$SRV.INFO.dtorrent.{id}"), "").await);
        let subjects: Vec<&str> = info["endpoints"]
            .as_array()
            .unwrap()
            .iter()
            .map(|endpoint| endpoint["subject"].as_str().unwrap())
            .collect();
        let expected =
            ["dtorrent.bridge.main.command.*", "dtorrent.home.command.*", "dtorrent.home.torrent.*.command.*"];
        assert_eq!(subjects, expected, "{info}");
        let operation = &dtorrent::schema::asyncapi()["operations"]["receiveServerCommandOnNats"];
        let queue = &operation["bindings"]["nats"]["queue"];
        assert!(queue.is_string(), "{operation}");
        assert!(
            info["endpoints"].as_array().unwrap().iter().all(|endpoint| endpoint["queue_group"] == *queue),
            "{info}"
        );
        subscriber.request("dtorrent.home.command.list", "").await;
        let stats = body(&subscriber.request("$SRV.STATS.dtorrent", "").await);
        let requests: Vec<&Value> =
            stats["endpoints"].as_array().unwrap().iter().map(|endpoint| &endpoint["num_requests"]).collect();
        assert_eq!(requests, [0, 1, 0], "{stats}");
        // Failed requests are counted as soon as they are answered.
        subscriber.request("dtorrent.home.command.explode", "").await;
        let stats = until("the error is counted", async || {
            let stats = body(&subscriber.request("$SRV.STATS.dtorrent", "").await);
            (stats["endpoints"][1]["num_errors"] == 1).then_some(stats)
        })
        .await;
        let [bridge, home, torrent] = [0, 1, 2].map(|number| stats["endpoints"][number].clone());
        assert_eq!((&bridge["num_errors"], &torrent["num_errors"]), (&json!(0), &json!(0)), "{stats}");
        assert_eq!((&bridge["last_error"], &home["num_requests"]), (&json!(""), &json!(2)), "{stats}");
        assert!(home["last_error"].as_str().unwrap().starts_with("501:no such command"), "{stats}");
        let (all, average) = (&home["processing_time"], &home["average_processing_time"]);
        assert_eq!(all.as_u64().unwrap() / 2, average.as_u64().unwrap(), "{stats}");
        world.bridge().stop().await;
        until("the service is gone", async || {
            let ping = async_nats::Request::new().timeout(Some(std::time::Duration::from_secs(1)));
            let gone = subscriber.client.send_request("$SRV.PING.dtorrent", ping).await.err()?;
            (gone.kind() == async_nats::RequestErrorKind::NoResponders).then_some(())
        })
        .await;

        let mut world = World::new(bus(&server, "commands = []")).await;
        world.start_bridge().await;
        service_is_up(&subscriber).await;
        drop(subscriber); // it would count as a subscriber that could answer
        let client = server.client().await;
        let refused = client.request("dtorrent.home.command.list", Bytes::new()).await.unwrap_err();
        assert_eq!(refused.kind(), async_nats::RequestErrorKind::NoResponders);
    }
}

#[tokio::test]
async fn an_oversized_page_ends_earlier_and_another_oversized_answer_is_shortened() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let lines = "jetstream {{ store_dir: \"{dir}/store\" }}\nmax_payload: 4096";
        let server = NatsServer::start_with(&program, folder.path(), lines).await;
        let subscriber = Subscriber::listen(&server).await;
        let lines = "rpc = [\"d.custom\"]".to_owned();
        let mut world = World::new(Setup { server: lines, ..bus(&server, "commands = [\"*\"]") }).await;
        let mut hashes = Vec::new();
        for number in 1..=8 {
            let content = Content::file(&format!("n{number}"), 1_000, number);
            hashes.push(world.home.load(&content.torrent, false).await.unwrap());
        }
        world.start_bridge().await;
        service_is_up(&subscriber).await;
        // The page is shorter than requested and says so; paging on by its values yields all rows.
        for (page, page_size) in [(0, 200), (0, 5), (1, 4)] {
            let mut request = json!({"page": page, "page_size": page_size});
            let mut listed = Vec::new();
            loop {
                let reply = subscriber.request("dtorrent.home.command.list", request.to_string()).await;
                let page = body(&reply);
                assert_eq!((&page["status"], &page["error"], &page["total"]), (&json!("ok"), &json!(null), &json!(8)));
                assert_eq!(header(&reply, "Nats-Service-Error"), None);
                assert!(page["page_size"].as_u64() < Some(8), "{page}");
                listed.extend(page["results"].as_array().unwrap().iter().map(|row| row["hash"].to_string()));
                if page["next_page"].is_null() {
                    break;
                }
                request = json!({"page": page["next_page"], "page_size": page["page_size"]});
            }
            let mut all: Vec<String> = hashes.iter().map(|hash| json!(hash).to_string()).collect();
            all.sort();
            assert_eq!(listed, all[page * page_size..], "from page {page} of {page_size}");
        }
        // A result without pages is shortened, with a note.
        let all = json!({"hashes": hashes}).to_string();
        let reply = subscriber.request("dtorrent.home.command.get", all).await;
        assert_eq!(body(&reply)["error"]["code"], "too_large", "{reply:?}");
        assert_eq!(header(&reply, "Nats-Service-Error-Code"), Some("413"));
        // So is the value of a method.
        let long = "x".repeat(10_000);
        let arguments = [Argument::Text("long"), Argument::Text(&long)];
        world.home.act(hashes[0], "d.custom.set", &arguments).await.unwrap();
        let call = json!({"method": "d.custom", "params": [hashes[0].to_string().to_uppercase(), "long"]}).to_string();
        let reply = subscriber.request("dtorrent.home.command.rpc", call).await;
        assert_eq!((&body(&reply)["status"], &body(&reply)["error"]["code"]), (&json!("error"), &json!("too_large")));
    }
}

/// A request repeated during its execution is answered each time, also across a crash.
#[tokio::test]
async fn a_request_repeated_during_its_execution_is_answered_each_time() {
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
        service_is_up(&subscriber).await;
        world.home.process().pause().unwrap(); // nothing can be done meanwhile
        let subject = format!("dtorrent.home.torrent.{hash}.command.label");
        let request = Bytes::from(r#"{"id": "one", "label": "a", "ttl": "300s"}"#);
        let inbox = subscriber.client.new_inbox();
        let mut replies = subscriber.client.subscribe(format!("{inbox}.*")).await.unwrap();
        let ask = async |bridge: &mut Bridge, asker: u64, times: usize| {
            let reply = format!("{inbox}.{asker}");
            subscriber.client.publish_with_reply(subject.clone(), reply, request.clone()).await.unwrap();
            bridge.wait_for_log_again(times, "command repeated, it is being executed").await;
        };
        subscriber.client.publish_with_reply(subject.clone(), format!("{inbox}.0"), request.clone()).await.unwrap();
        let bridge = world.bridge.as_mut().unwrap();
        ask(bridge, 1, 0).await;
        ask(bridge, 2, 1).await;
        ask(bridge, 2, 2).await; // to the same address, but another request
        bridge.process().kill().unwrap();
        bridge.restart();
        service_is_up(&subscriber).await;
        ask(bridge, 3, 3).await;
        // Also through the MQTT broker, without a reply topic; sent twice, it has one result there.
        let topic = format!("dtorrent/home/torrent/{hash}/command/label");
        for times in [4, 5] {
            let again = crate::harness::recorder::Command::new(&topic, request.to_vec());
            world.recorder.send(again).await;
            world.bridge().wait_for_log_again(times, "command repeated, it is being executed").await;
        }
        world.home.process().unpause().unwrap();
        let mut answered = Vec::new();
        for _ in 0..5 {
            let patience = dtorrent_peers::process::TIMEOUT;
            let reply = tokio::time::timeout(patience, replies.next()).await.expect("a reply").unwrap();
            assert_eq!((&body(&reply)["id"], &body(&reply)["status"]), (&json!("one"), &json!("ok")), "{reply:?}");
            answered.push(reply.subject.rsplit('.').next().unwrap().to_owned());
        }
        answered.sort();
        assert_eq!(answered, ["0", "1", "2", "2", "3"]);
        world.recorder.result("one").await;
        // A surplus reply would arrive before the reply to a later request.
        subscriber.request("dtorrent.home.command.explode", "").await;
        world.recorder.command("home/command/list", Value::Null).await;
        assert!(futures_util::FutureExt::now_or_never(replies.next()).is_none(), "one was answered twice");
        assert_eq!(world.recorder.results("one").len(), 1);
        let labels =
            world.recorder.events("home").iter().filter(|event| event["event_type"] == "label_changed").count();
        assert_eq!(labels, 1, "it was carried out once");
    }
}

#[tokio::test]
async fn requests_beyond_the_limit_lose_only_their_answers() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let subscriber = Subscriber::listen(&server).await;
        let mut world = World::new(with_memory(32, bus(&server, ""))).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        service_is_up(&subscriber).await;
        let inbox = subscriber.client.new_inbox();
        let mut replies = subscriber.client.subscribe(format!("{inbox}.*")).await.unwrap();
        world.bridge().process().pause().unwrap();
        // More than the bridge has memory for, and less than a server buffers.
        for number in 0..2_000 {
            let reply = format!("{inbox}.{number}");
            subscriber.client.publish_with_reply("dtorrent.home.command.explode", reply, Bytes::new()).await.unwrap();
        }
        subscriber.client.flush().await.unwrap();
        world.bridge().process().unpause().unwrap();
        world.bridge().wait_for_log("requests come faster than they are taken").await;
        lists_again(&subscriber).await;
        let mut answered = std::collections::BTreeSet::new();
        while let Some(Some(reply)) = futures_util::FutureExt::now_or_never(replies.next()) {
            assert!(answered.insert(reply.subject.to_string()), "answered twice: {}", reply.subject);
        }
        assert!(!answered.is_empty() && answered.len() < 2_000, "{}", answered.len());
        super::label(&world, hash, "a").await;
        super::all_is_stored(&world, &subscriber).await;
    }
}

#[tokio::test]
async fn of_two_bridges_each_request_is_answered_by_one() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let subscriber = Subscriber::listen(&server).await;
        let mut world = World::new(bus(&server, "")).await;
        let hash: InfoHash = load_one(&world).await;
        world.start_bridge().await;
        let second = world.folder.join("second");
        std::fs::create_dir_all(&second).unwrap();
        let config = second.join("dtorrent.toml");
        let text = format!(
            "instance = \"other\"\ndata_dir = {:?}\n[http]\nlisten = \"off\"\n[servers.home]\nurl = {:?}\ninterval = \"250ms\"\n\
             [brokers.bus]\nkind = \"nats\"\nurl = \"{}\"\n",
            second.join("data").to_str().unwrap(),
            world.home.url(),
            server.url()
        );
        std::fs::write(&config, text).unwrap();
        let mut other = Bridge::start(&config);
        until("both bridges are there", async || {
            let inbox = subscriber.client.new_inbox();
            let mut answers = subscriber.client.subscribe(inbox.clone()).await.unwrap();
            subscriber.client.publish_with_reply("$SRV.PING.dtorrent", inbox, Bytes::new()).await.unwrap();
            let both = async { (answers.next().await, answers.next().await) };
            tokio::time::timeout(std::time::Duration::from_secs(1), both).await.ok().map(drop)
        })
        .await;
        let inbox = subscriber.client.new_inbox();
        let mut replies = subscriber.client.subscribe(inbox.clone()).await.unwrap();
        for number in 0..40 {
            let subject = format!("dtorrent.home.torrent.{hash}.command.get");
            let request = json!({"id": format!("q{number}")}).to_string();
            subscriber.client.publish_with_reply(subject, inbox.clone(), Bytes::from(request)).await.unwrap();
        }
        let mut ids = std::collections::BTreeSet::new();
        for _ in 0..40 {
            let reply = body(&replies.next().await.unwrap());
            assert_eq!(reply["status"], "ok", "{reply}");
            assert!(ids.insert(reply["id"].to_string()), "answered twice: {reply}");
        }
        let stats = {
            let inbox = subscriber.client.new_inbox();
            let mut answers = subscriber.client.subscribe(inbox.clone()).await.unwrap();
            subscriber.client.publish_with_reply("$SRV.STATS.dtorrent", inbox, Bytes::new()).await.unwrap();
            [body(&answers.next().await.unwrap()), body(&answers.next().await.unwrap())]
        };
        let taken = stats.map(|stats| stats["endpoints"][2]["num_requests"].as_u64().unwrap());
        assert!(taken.iter().all(|count| *count > 0) && taken.iter().sum::<u64>() == 40, "{taken:?}");
        other.stop().await;
    }
}

#[tokio::test]
async fn a_bridge_disconnected_as_slow_consumer_reconnects_and_answers_again() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let lines = "jetstream {{ store_dir: \"{dir}/store\" }}\nmax_pending: 2MB\nwrite_deadline: \"1s\"";
        let mut server = NatsServer::start_with(&program, folder.path(), lines).await;
        let subscriber = Subscriber::listen(&server).await;
        let mut world = World::new(bus(&server, "")).await;
        load_one(&world).await;
        world.start_bridge().await;
        service_is_up(&subscriber).await;
        world.bridge().process().pause().unwrap();
        // Until the server disconnects the paused bridge as a slow consumer.
        until("the server cuts the slow one", async || {
            for _ in 0..20 {
                subscriber
                    .client
                    .publish("dtorrent.home.command.explode", Bytes::from(vec![b' '; 500_000]))
                    .await
                    .unwrap();
            }
            subscriber.client.flush().await.unwrap();
            server.process().output().contains("Slow Consumer").then_some(())
        })
        .await;
        world.bridge().process().unpause().unwrap();
        lists_again(&subscriber).await;
    }
}
