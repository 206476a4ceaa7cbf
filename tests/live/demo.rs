//! `dtorrent demo`, run as a user runs it.

use std::path::Path;

use dtorrent_peers::process::{Process, TIMEOUT};
use tokio::time::{Duration, Instant};

use crate::harness::can_run;

/// Starts the demo with `folder` for temporary files, and waits until it prints a finished download.
async fn running(folder: &Path, log: &Path) -> Process {
    let program = Path::new(env!("CARGO_BIN_EXE_dtorrent"));
    let environment = [("TMPDIR", &*folder.to_string_lossy())];
    let mut demo = Process::start_with(program, &["demo"], &environment, log).unwrap();
    demo.wait_until_ready(async || std::fs::read_to_string(log).unwrap_or_default().contains("leecher finished"))
        .await
        .unwrap();
    demo
}

/// Waits until `folder` is empty.
async fn emptied(folder: &Path) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let left: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left behind: {left:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Returns the command lines of running programs that contain `folder`.
fn programs_in(folder: &Path) -> Vec<String> {
    let folder = folder.to_string_lossy();
    let all =
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok());
    all.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).filter(|line| line.contains(&*folder)).collect()
}

#[tokio::test]
async fn the_demo_shows_events_and_leaves_nothing_behind_after_ctrl_c() {
    if !can_run() {
        return;
    }
    let (folder, logs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut demo = running(folder.path(), &logs.path().join("log")).await;
    let printed = demo.output();
    assert!(printed.contains("mosquitto_sub -h 127.0.0.1 -p") && printed.contains("/command/pause"), "{printed}");
    assert!(printed.contains("bridge is online") && printed.contains("leecher added podcast-042.ogg"), "{printed}");
    demo.signal("INT").unwrap();
    let status = demo.wait(TIMEOUT).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", demo.output());
    emptied(folder.path()).await;
    assert_eq!(programs_in(folder.path()), [""; 0]);
}

#[tokio::test]
async fn a_killed_demo_leaves_nothing_behind() {
    if !can_run() {
        return;
    }
    let (folder, logs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut demo = running(folder.path(), &logs.path().join("log")).await;
    assert!(programs_in(folder.path()).len() >= 3, "a broker and two rTorrents run");
    demo.kill().unwrap();
    emptied(folder.path()).await;
    let deadline = Instant::now() + TIMEOUT;
    while !programs_in(folder.path()).is_empty() {
        assert!(Instant::now() < deadline, "still there: {:?}", programs_in(folder.path()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
