//! The real binary with a config of the test.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dtorrent_peers::process::{Process, TIMEOUT};
use tokio::time::Instant;

pub struct Bridge {
    config: PathBuf,
    launcher: Vec<String>,
    log: PathBuf,
    process: Process,
}

impl Bridge {
    pub fn start(config: &Path) -> Self {
        Self::start_by(&[], config)
    }

    /// Starts the bridge as the last words of a command: `setpriv …` for the rights of another user.
    ///
    /// The command has to replace itself by the bridge, which is signalled by its process id.
    pub fn start_by(launcher: &[String], config: &Path) -> Self {
        let log = config.with_file_name("bridge.log");
        let process = launch(launcher, config, &log);
        Self { config: config.to_owned(), launcher: launcher.to_owned(), log, process }
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Returns the peak resident memory.
    pub fn peak_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Waits until the log contains `text`.
    pub async fn wait_for_log(&mut self, text: &str) {
        self.wait_for_log_again(0, text).await;
    }

    /// Waits until the log contains `text` more than `times` times.
    pub async fn wait_for_log_again(&mut self, times: usize, text: &str) {
        let deadline = Instant::now() + TIMEOUT;
        while self.count_in_log(text) <= times {
            assert!(Instant::now() < deadline, "not in the log of the bridge: {text}");
            assert!(self.process.exit_status().unwrap().is_none(), "the bridge has ended, and not in its log: {text}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns how often the log contains `text`.
    pub fn count_in_log(&self, text: &str) -> usize {
        self.log().matches(text).count()
    }

    /// Sends SIGTERM, waits, and asserts exit code 0.
    pub async fn stop(&mut self) {
        let status = self.process.terminate().await.unwrap();
        assert_eq!(status.code(), Some(0), "log of the bridge after SIGTERM:\n{}", self.process.output());
    }

    /// Starts the bridge again; kills it first if it runs.
    pub fn restart(&mut self) {
        self.process.kill().unwrap();
        self.process = launch(&self.launcher, &self.config, &self.log);
    }

    pub fn log(&self) -> String {
        self.process.output()
    }
}

fn launch(launcher: &[String], config: &Path, log: &Path) -> Process {
    let config = config.to_string_lossy();
    let words = launcher.iter().map(String::as_str);
    let words: Vec<&str> = words.chain([env!("CARGO_BIN_EXE_dtorrent"), "run", "--config", &config]).collect();
    let environment = [("NO_COLOR", "1"), ("RUST_BACKTRACE", "1")];
    Process::start_with(Path::new(words[0]), &words[1..], &environment, log).unwrap()
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("--- log of the bridge:\n{}\n---", lines[lines.len().saturating_sub(80)..].join("\n"));
        }
    }
}
