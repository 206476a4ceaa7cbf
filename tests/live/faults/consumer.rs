//! examples/consumer.py behind a bridge that is killed and a connection that is cut.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dtorrent_peers::process::TIMEOUT;
use tokio::time::Instant;

use super::{load_many, wait_for_newcomer};
use crate::harness::proxy::{Mode, PUBACK};
use crate::harness::skip::are_installed;
use crate::harness::{Setup, World, can_run};

const CONSUMER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/consumer.py");

/// Returns whether what the consumer needs is installed. Skips the test if it is not.
fn can_consume() -> bool {
    are_installed(&[("python3", "python3"), ("mosquitto_sub", "mosquitto-clients")])
}

/// mosquitto_sub piped into the example, with a session that the broker keeps; killed on drop.
struct Consumer {
    source: Child,
    consumer: Child,
    log: PathBuf,
}

impl Drop for Consumer {
    fn drop(&mut self) {
        for child in [&mut self.consumer, &mut self.source] {
            child.kill().and_then(|()| child.wait()).unwrap();
        }
    }
}

impl Consumer {
    fn start(world: &World) -> Self {
        let log = world.folder.join("consumer.log");
        let output = File::options().create(true).append(true).open(&log).unwrap();
        let mut source = mortal("mosquitto_sub");
        source.args(["-p", &world.broker.port.to_string(), "-V", "5", "-q", "1", "-i", "consumer", "-c", "-x", "3600"]);
        source.args(["-F", "%p", "-t", "dtorrent/+/event/+", "-t", "dtorrent/+/torrent/+/event/+"]);
        let mut source = source.stdout(Stdio::piped()).spawn().unwrap();
        let mut consumer = mortal("python3");
        consumer.arg(CONSUMER).arg("--state").arg(world.folder.join("consumer.json"));
        consumer.stdin(source.stdout.take().unwrap()).stdout(output.try_clone().unwrap()).stderr(output);
        Self { consumer: consumer.spawn().unwrap(), source, log }
    }

    fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    async fn prints(&mut self, text: &str) {
        let deadline = Instant::now() + TIMEOUT;
        while !self.output().contains(text) {
            self.assert_runs();
            assert!(Instant::now() < deadline, "it does not say {text}:\n{}", self.output());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn assert_runs(&mut self) {
        assert!(self.consumer.try_wait().unwrap().is_none(), "it has ended:\n{}", self.output());
    }
}

/// A program that is killed on drop.
fn mortal(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

#[tokio::test]
async fn the_example_consumer_confirms_a_gap_free_stream() {
    if !can_run() || !can_consume() {
        return;
    }
    let mut world = World::new(Setup { broker: super::patient_broker(), ..Setup::default() }).await;
    let proxy = world.proxy_broker().await;
    let mut consumer = Consumer::start(&world);
    // The bridge starts after the consumer has subscribed.
    let subscribed = Instant::now();
    while !world.broker.process().output().contains("Sending SUBACK to consumer") {
        assert!(subscribed.elapsed() < TIMEOUT, "the consumer does not subscribe:\n{}", consumer.output());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.start_bridge().await;
    consumer.prints("home 2 snapshot_done").await;
    // A kill before the acknowledgement causes repeats.
    proxy.answers(Mode::HoldPackets(PUBACK));
    let hashes = load_many(&world.home, 0, 10).await;
    consumer.prints("home 12 added").await;
    world.bridge().process().kill().unwrap();
    proxy.cut();
    proxy.answers(Mode::Pass);
    world.bridge().restart();
    consumer.prints("home 12 again").await;
    // While the consumer is disconnected, the broker queues its messages.
    drop(consumer);
    world.home.act(hashes[0], "d.erase", &[]).await.unwrap();
    world.recorder.event("home", "removed", hashes[0]).await;
    let mut consumer = Consumer::start(&world);
    consumer.prints("home 13 removed").await;
    // The state is lost.
    world.bridge().process().kill().unwrap();
    for file in ["dtorrent.sqlite3", "dtorrent.sqlite3-wal"] {
        fs::remove_file(world.data_dir().join(file)).unwrap();
    }
    world.bridge().restart();
    consumer.prints("a new epoch").await;
    consumer.prints("home 1 journal_reset").await;
    wait_for_newcomer(&world).await;
    consumer.prints("added newcomer").await;
    consumer.assert_runs();
    assert!(!consumer.output().contains("missed"), "{}", consumer.output());
}

#[test]
fn the_example_consumer_reports_a_gap_and_a_repeat() {
    if !can_consume() {
        return;
    }
    let event = |id: &str, seq: u64| {
        format!(r#"{{"id": "{id}", "seq": {seq}, "server": "my-home", "event_type": "added", "torrent": null}}"#)
    };
    let lines = |numbers: &[(&str, u64)]| {
        let line = |(epoch, seq): &(&str, u64)| event(&format!("my-home-{epoch}-{seq:012}"), *seq) + "\n";
        numbers.iter().map(line).collect::<String>()
    };
    for (numbers, is_whole) in [
        (&[("aa", 5), ("aa", 6), ("aa", 7)][..], true),
        (&[("aa", 5), ("aa", 6), ("aa", 5), ("aa", 6), ("aa", 7)], true),
        (&[("aa", 5), ("aa", 7)], false),
        (&[("aa", 5), ("bb", 1), ("aa", 5), ("bb", 2)], true),
        (&[("aa", 5), ("bb", 2)], false),
    ] {
        let mut consumer = Command::new("python3");
        consumer.arg(CONSUMER).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut consumer = consumer.spawn().unwrap();
        consumer.stdin.take().unwrap().write_all(lines(numbers).as_bytes()).unwrap();
        let output = consumer.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(i32::from(!is_whole)), "{numbers:?}: {output:?}");
        let words = String::from_utf8_lossy(if is_whole { &output.stdout } else { &output.stderr }).into_owned();
        assert!(words.contains("missed"), "{numbers:?}: {words}");
    }
}
