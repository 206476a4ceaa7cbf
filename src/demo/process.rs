//! Other people's programs, run for a while: found, started, signalled, and gone when they are dropped.
//!
//! Nothing outlives us: a dropped [`Process`] is killed and waited for, and each is started with a
//! parent-death signal (by `setpriv`, as this crate has no unsafe code), which reaches it also when
//! we are killed ourselves. That signal belongs to the *thread* that started the program, so start
//! programs on a thread that stays: the main one, a test's own, a worker of the runtime; never in
//! `spawn_blocking`. A program that changes its user loses the signal: tell it not to.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::time::Instant;

/// How long a program may take to start or to end. They need far less; a loaded machine does not.
pub const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A program is not on this machine.
#[derive(Debug, thiserror::Error)]
#[error("`{program}` is not installed; on Debian and Ubuntu: apt install {package}")]
pub struct Missing {
    pub program: &'static str,
    pub package: &'static str,
}

/// Looks a program up in `$PATH` and where Debian puts daemons.
pub fn find(program: &'static str, package: &'static str) -> Result<PathBuf, Missing> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|file| file.is_file()).ok_or(Missing { program, package })
}

/// A loopback port that nobody listens on, and that no outgoing connection will be given.
pub fn free_port() -> anyhow::Result<u16> {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000; // up to 30,000: below what systems hand out by themselves
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id().wrapping_mul(7919) % u32::from(COUNT)).unwrap_or(0);
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let offset = (u32::from(start) + u32::from(step)) % u32::from(COUNT);
        let port = FIRST + u16::try_from(offset).unwrap_or(0);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port on 127.0.0.1")
}

/// A program that runs.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts a program; what it says goes to the end of `log`.
    pub fn start(program: &Path, arguments: &[&str], log: &Path) -> anyhow::Result<Self> {
        Self::start_with(program, arguments, &[], log)
    }

    /// The same with more environment variables.
    pub fn start_with(
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
        log: &Path,
    ) -> anyhow::Result<Self> {
        let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
        let output = File::options().create(true).append(true).open(log);
        let output = output.with_context(|| format!("open {}", log.display()))?;
        let mut command = match find("setpriv", "util-linux") {
            Ok(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL", "--"]).arg(program);
                command
            }
            Err(_) => Command::new(program), // not Linux: killed on drop only
        };
        command.args(arguments).envs(environment.iter().copied()).stdin(Stdio::null());
        command.stdout(output.try_clone().context("share the log")?).stderr(output);
        command.process_group(0); // Ctrl-C at the terminal is for us: we end them, in order
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        Ok(Self { name, child, log: log.to_owned(), ended: None })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended; `None` while it runs.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().with_context(|| format!("look at {}", self.name))?;
        }
        Ok(self.ended)
    }

    /// What it has said so far.
    pub fn output(&self) -> String {
        match std::fs::read(&self.log) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => format!("(what it said cannot be read from {}: {error})", self.log.display()),
        }
    }

    /// Sends a signal by its short name: `TERM`, `INT`, `STOP`, `CONT`.
    pub fn signal(&mut self, name: &str) -> anyhow::Result<()> {
        ensure!(self.ended()?.is_none(), "{} has ended", self.name);
        // The child is not waited for yet, so its number is still its own.
        let mut kill = Command::new("sh");
        kill.args(["-c", "kill -s \"$1\" \"$2\"", "sh", name, &self.pid().to_string()]);
        let status = kill.status().context("run sh")?;
        ensure!(status.success(), "kill -s {name} of {} failed", self.name);
        Ok(())
    }

    /// Holds it still, as a frozen machine would.
    pub fn pause(&mut self) -> anyhow::Result<()> {
        self.signal("STOP")
    }

    pub fn unpause(&mut self) -> anyhow::Result<()> {
        self.signal("CONT")
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if self.ended()?.is_none() {
            self.child.kill().with_context(|| format!("kill {}", self.name))?;
            self.ended = Some(self.child.wait().with_context(|| format!("wait for {}", self.name))?);
        }
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits until it has; kills it if it does not.
    pub async fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        if self.ended()?.is_none() {
            self.signal("TERM")?;
        }
        match self.wait(PATIENCE).await {
            Ok(status) => Ok(status),
            Err(error) => {
                self.kill()?;
                Err(error)
            }
        }
    }

    /// Waits until it has ended by itself.
    pub async fn wait(&mut self, patience: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "{} does not end; it said:\n{}", self.name, self.output());
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Waits until `is_ready` says so; an error if it ends before, with what it said.
    pub async fn ready(&mut self, mut is_ready: impl AsyncFnMut() -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !is_ready().await {
            if let Some(status) = self.ended()? {
                bail!("{} ended at once ({status}); it said:\n{}", self.name, self.output());
            }
            ensure!(Instant::now() < deadline, "{} does not get ready; it said:\n{}", self.name, self.output());
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!(program = self.name, error = format!("{error:#}"), "could not end a program");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = find("no-such-program", "the-package").unwrap_err();
        assert!(error.to_string().contains("`no-such-program`") && error.to_string().ends_with("the-package"));
    }

    #[test]
    fn free_ports_are_different_ones() {
        assert_ne!(free_port().unwrap(), free_port().unwrap());
    }

    #[tokio::test]
    async fn a_dropped_program_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let sleep = find("sleep", "coreutils").unwrap();
        let mut process = Process::start(&sleep, &["1000"], &folder.path().join("log")).unwrap();
        assert!(process.ended().unwrap().is_none());
        let pid = process.pid();
        drop(process);
        assert!(!Path::new("/proc").join(pid.to_string()).is_dir());
    }

    #[tokio::test]
    async fn a_program_that_ends_too_early_is_reported_with_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let sh = find("sh", "dash").unwrap();
        let mut process = Process::start(&sh, &["-c", "echo no config; exit 3"], &folder.path().join("log")).unwrap();
        let error = process.ready(async || false).await.unwrap_err().to_string();
        assert!(error.contains("no config") && error.contains('3'), "{error}");
    }
}
