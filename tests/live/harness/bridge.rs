//! The real binary, with a configuration of the test's.

use std::path::{Path, PathBuf};

use dtorrent::demo::process::Process;

pub struct Bridge {
    config: PathBuf,
    log: PathBuf,
    process: Process,
}

impl Bridge {
    pub fn start(config: &Path) -> Self {
        let log = config.with_file_name("bridge.log");
        let process = launch(config, &log);
        Self { config: config.to_owned(), log, process }
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// SIGTERM; it has to end well.
    pub async fn stop(&mut self) {
        let status = self.process.terminate().await.unwrap();
        assert_eq!(status.code(), Some(0), "after SIGTERM the bridge says:\n{}", self.process.output());
    }

    /// Starts it again after [`Self::stop`] or a kill.
    pub fn start_again(&mut self) {
        self.process.kill().unwrap();
        self.process = launch(&self.config, &self.log);
    }

    pub fn log(&self) -> String {
        self.process.output()
    }
}

fn launch(config: &Path, log: &Path) -> Process {
    let program = Path::new(env!("CARGO_BIN_EXE_dtorrent"));
    let environment = [("NO_COLOR", "1"), ("RUST_BACKTRACE", "1")];
    Process::start_with(program, &["run", "--config", &config.to_string_lossy()], &environment, log).unwrap()
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("--- the bridge said:\n{}\n---", lines[lines.len().saturating_sub(80)..].join("\n"));
        }
    }
}
