//! Signals, and jumps of the system clock.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dtorrent_peers::process::{Process, TIMEOUT, find};
use serde_json::Value;
use tokio::time::Instant;

use super::{count, load_many, patient_broker, wait_for_newcomer};
use crate::harness::recorder::Message;
use crate::harness::skip::skip;
use crate::harness::{Setup, World, can_run};

/// Maximum time for a stop: ten seconds by contract §10, the rest for a busy machine.
const STOP: Duration = Duration::from_secs(15);

#[tokio::test]
async fn a_stop_in_the_middle_of_a_burst_flushes_and_publishes_offline() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup { broker: patient_broker(), ..Setup::default() }).await;
    world.start_bridge().await;
    load_many(&world.home, 0, 300).await;
    let is_event = |m: &Message| m.topic.ends_with("/event/added");
    world.recorder.wait_for("the first of them", |all| all.iter().any(is_event).then_some(())).await;
    let asked_at = Instant::now();
    world.bridge().stop().await;
    assert!(asked_at.elapsed() < STOP, "it took {:?}", asked_at.elapsed());
    world.recorder.wait_for_last("dtorrent/bridge/main/status", "offline").await;
    // Every journaled event is acknowledged, and the cursor stored.
    let written = world.database().last_seq("home");
    assert_eq!(world.database().cursor("b", "home"), written, "it was not flushed");
    assert_eq!(world.recorder.assert_gap_free("home").len() as u64, written);
    world.bridge().restart();
    wait_for_newcomer(&world).await;
    let events = world.recorder.assert_gap_free("home");
    assert_eq!(count(&events, "added"), 301);
    assert_eq!(world.recorder.events("home").len(), events.len(), "after a clean stop nothing comes twice");
}

#[tokio::test]
async fn the_bridge_stops_on_a_signal_as_process_1_of_a_container() {
    if !can_run() {
        return;
    }
    let unshare = find("unshare", "util-linux").unwrap();
    let may = Command::new(&unshare).args(["--pid", "--fork", "true"]).status();
    if !may.is_ok_and(|status| status.success()) {
        return skip("no right to create a process namespace");
    }
    let world = World::new(Setup::default()).await;
    let config = world.write_config(&[("home", &world.home.url())]);
    let program = env!("CARGO_BIN_EXE_dtorrent");
    let arguments = ["--pid", "--fork", "--kill-child", program, "run", "--config", &config.to_string_lossy()];
    let mut outer = Process::start(&unshare, &arguments, &world.folder.join("bridge.log")).unwrap();
    world.recorder.server_event_after(0, "home", "snapshot_done").await;
    let outer_pid = outer.pid();
    let children = fs::read_to_string(format!("/proc/{outer_pid}/task/{outer_pid}/children")).unwrap();
    let inner = children.trim();
    let inside = fs::read_to_string(format!("/proc/{inner}/status")).unwrap();
    let namespaced = inside.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap();
    assert_eq!(namespaced.split_whitespace().last(), Some("1"), "it is not the first process");
    let asked_at = Instant::now();
    assert!(Command::new("sh").args(["-c", "kill -s TERM \"$1\"", "sh", inner]).status().unwrap().success());
    let status = outer.wait(TIMEOUT).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", outer.output());
    assert!(asked_at.elapsed() < STOP, "it took {:?}", asked_at.elapsed());
    world.recorder.wait_for_last("dtorrent/bridge/main/status", "offline").await;
}

/// Returns the path of libfaketime. Skips the test if it is not installed.
fn faketime() -> Option<String> {
    let machine = std::env::consts::ARCH;
    let path = format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketimeMT.so.1");
    if Path::new(&path).is_file() {
        return Some(path);
    }
    skip("libfaketime is not installed; on Debian and Ubuntu: apt install faketime");
    None
}

#[tokio::test]
async fn a_clock_jump_of_an_hour_changes_neither_order_nor_poll_interval() {
    if !can_run() {
        return;
    }
    let Some(library) = faketime() else { return };
    let world = World::new(Setup::default()).await;
    let config = world.write_config(&[("home", &world.home.url())]);
    let clock = world.folder.join("clock");
    let set = |offset: &str| fs::write(&clock, offset).unwrap();
    set("+0");
    let clock_text = clock.to_string_lossy().into_owned();
    let environment = [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", &clock_text),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ];
    let program = Path::new(env!("CARGO_BIN_EXE_dtorrent"));
    let arguments = ["run", "--config", &config.to_string_lossy()];
    let mut bridge = Process::start_with(program, &arguments, &environment, &world.folder.join("bridge.log")).unwrap();
    world.recorder.server_event_after(0, "home", "snapshot_done").await;
    for (round, offset) in (0..).zip(["+3600", "-3600", "+0", "-3600", "+3600"]) {
        set(offset);
        let jumped_at = Instant::now();
        let hashes = load_many(&world.home, round * 10, 10).await;
        for hash in &hashes {
            world.recorder.event("home", "added", *hash).await;
        }
        assert!(jumped_at.elapsed() < TIMEOUT, "at {offset} it took {:?}", jumped_at.elapsed());
        let label = serde_json::json!({"label": offset});
        let topic = format!("home/torrent/{}/command/label", hashes[0]);
        let result = world.recorder.command(&topic, label).await;
        assert_eq!(result["status"], "ok", "at {offset}: {result}");
    }
    wait_for_newcomer(&world).await;
    let events = world.recorder.assert_gap_free("home");
    let times: Vec<&Value> = events.iter().map(|event| &event["time"]).collect();
    assert!(!times.is_sorted_by_key(|time| time.as_str()), "the clock did not jump: {times:?}");
    assert_eq!((count(&events, "added"), count(&events, "removed"), count(&events, "server_offline")), (51, 0, 0));
    assert_eq!(bridge.terminate().await.unwrap().code(), Some(0), "{}", bridge.output());
}
