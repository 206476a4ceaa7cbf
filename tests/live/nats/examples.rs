//! The examples of docs/nats.md, on a stream with events of the bridge.

use std::process::Command;

use dtorrent_peers::process::find;
use serde_json::Value;

use super::{all_is_stored, bus, label, load_one};
use crate::harness::nats::{self, NatsServer, Subscriber};
use crate::harness::skip::skip;
use crate::harness::{World, can_run};

#[path = "../../../examples/nats_consumer.rs"]
mod nats_consumer;

#[tokio::test]
async fn the_example_consumers_read_the_whole_stream() {
    if !can_run() {
        return;
    }
    for program in nats::programs() {
        let folder = tempfile::tempdir().unwrap();
        let server = NatsServer::start(&program, folder.path()).await;
        let mut world = World::new(bus(&server, "")).await;
        let hash = load_one(&world).await;
        world.start_bridge().await;
        label(&world, hash, "a").await;
        let subscriber = Subscriber::listen(&server).await;
        let expected = all_is_stored(&world, &subscriber).await;

        let mut seen: Vec<Value> = Vec::new();
        nats_consumer::consume(&server.url(), |event| {
            seen.push(event.clone());
            seen.len() == expected.len()
        })
        .await
        .unwrap();
        assert_eq!(seen, expected);

        let Some(client) = nats::newest("python-") else {
            return skip("the Python package nats-py is missing: scripts/install-peers.sh");
        };
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/nats_consumer.py");
        let output = Command::new(find("python3", "python3").unwrap())
            .env("PYTHONPATH", client)
            .args([script, &server.url(), &expected.len().to_string()])
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines: Vec<&str> = printed.lines().collect();
        assert_eq!(lines.len(), expected.len(), "{printed}");
        assert_eq!(lines.last().copied(), Some(&*format!("home {} label_changed one", expected.len())), "{printed}");
    }
}

#[test]
fn the_example_consumer_reports_a_gap_and_a_repetition() {
    let event = |seq: u64| serde_json::json!({"id": format!("home-1-{seq:012}"), "seq": seq});
    let mut last_seqs = nats_consumer::LastSeqs::default();
    assert!(last_seqs.record(&event(4)).unwrap() && last_seqs.record(&event(5)).unwrap());
    assert!(!last_seqs.record(&event(4)).unwrap());
    assert!(last_seqs.record(&event(7)).unwrap_err().to_string().contains("6 of home-1 is missing"));
}
