//! The memory that requests may take.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::Client;
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::json;

use super::bus;
use crate::harness::nats::{self, NatsServer, body, until};
use crate::harness::{World, can_run};
use crate::memory::{IDLE_BYTES, with_memory};

/// Number of requests, together more than twelve times the memory.
const REQUESTS: usize = 100;
const REQUEST_BYTES: usize = 4_000_000;

async fn service_is_up(client: &Client) {
    until("the service answers", async || {
        client.request("$SRV.PING.dtorrent", Bytes::new()).await.is_ok().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_flood_of_large_requests_stays_within_the_memory_and_each_is_answered_once() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        // The server waits for the bridge as long as it takes, so that none is lost on the way.
        let lines = "max_payload: 4MB\nmax_pending: 1GB\nwrite_deadline: \"60s\"";
        let server = NatsServer::start_with(&program, folder.path(), lines).await;
        let client = server.client().await;
        let mut world = World::new(with_memory(32, bus(&server, "jetstream = false"))).await;
        world.start_bridge().await;
        service_is_up(&client).await;
        let inbox = client.new_inbox();
        let mut replies = client.subscribe(format!("{inbox}.*")).await.unwrap();
        let torrent = "A".repeat(REQUEST_BYTES);
        for number in 0..REQUESTS {
            let request = format!("{{\"id\": \"q{number}\", \"torrent\": \"{torrent}\"}}");
            let reply = format!("{inbox}.{number}");
            client.publish_with_reply("dtorrent.home.command.add", reply, Bytes::from(request)).await.unwrap();
        }
        client.flush().await.unwrap();
        let mut answers = BTreeMap::new();
        while answers.len() < REQUESTS {
            let reply = tokio::time::timeout(Duration::from_secs(120), replies.next()).await;
            let reply = reply.unwrap_or_else(|_| panic!("{} of {REQUESTS} answers", answers.len())).unwrap();
            let (number, answer) = (reply.subject.rsplit('.').next().unwrap().to_owned(), body(&reply));
            assert_eq!(answer["id"], format!("q{number}"), "{answer}");
            assert!(answers.insert(number, answer).is_none(), "answered twice: {}", reply.subject);
        }
        let refused = answers.values().filter(|answer| answer["error"]["code"] == "client_offline").count();
        println!("{refused} refused, {} MiB", world.bridge().peak_bytes() >> 20);
        assert!(refused > 0 && refused < REQUESTS, "{refused} refused");
        for answer in answers.values().filter(|answer| answer["error"]["code"] == "client_offline") {
            assert_eq!(
                (&answer["status"], &answer["error"]["retryable"]),
                (&json!("refused"), &json!(true)),
                "{answer}"
            );
        }
        let peak = world.bridge().peak_bytes();
        assert!(peak < IDLE_BYTES + (32 << 20), "{} MiB", peak >> 20);
        // What was refused may be sent again under its id.
        let number = answers.iter().find(|(_, answer)| answer["error"]["code"] == "client_offline").unwrap().0;
        let again =
            async_nats::Request::new().payload(format!("{{\"id\": \"q{number}\", \"magnet\": \"magnet:\"}}").into());
        let again = body(&client.send_request("dtorrent.home.command.add", again).await.unwrap());
        assert_eq!(
            (&again["id"], &again["error"]["code"]),
            (&json!(format!("q{number}")), &json!("bad_request")),
            "{again}"
        );
        assert!(futures_util::FutureExt::now_or_never(replies.next()).is_none(), "one was answered twice");
    }
}
