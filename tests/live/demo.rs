//! `dtorrent demo`, run as a user runs it.

use std::path::Path;

use dtorrent_peers::process::{Process, TIMEOUT};
use tokio::time::{Duration, Instant};

use crate::harness::can_run;

/// A setting of the bridge, which is in the environment of the demo.
const SECRET: &str = "sesame-sesame-sesame";

/// Starts the demo with `folder` for temporary files, and waits until it prints a finished download.
async fn running(folder: &Path, log: &Path) -> Process {
    let program = Path::new(env!("CARGO_BIN_EXE_dtorrent"));
    let folder = folder.to_string_lossy();
    let environment = [("TMPDIR", &*folder), ("DTORRENT_HTTP__TOKEN", SECRET)];
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
    of_programs_in(folder, "cmdline")
}

/// Returns what the system tells of those programs in this file.
fn of_programs_in(folder: &Path, file: &str) -> Vec<String> {
    let folder = folder.to_string_lossy();
    let read = |process: &Path, file: &str| {
        std::fs::read(process.join(file)).map(|text| String::from_utf8_lossy(&text).replace('\0', " "))
    };
    let processes = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let found = processes.filter(|process| read(process, "cmdline").is_ok_and(|line| line.contains(&*folder)));
    found.filter_map(|process| read(&process, file).ok()).collect()
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
    let environments = of_programs_in(folder.path(), "environ");
    assert!(!environments.iter().any(|variables| variables.contains(SECRET)), "{environments:?}");
    demo.kill().unwrap();
    emptied(folder.path()).await;
    let deadline = Instant::now() + TIMEOUT;
    while !programs_in(folder.path()).is_empty() {
        assert!(Instant::now() < deadline, "still there: {:?}", programs_in(folder.path()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
