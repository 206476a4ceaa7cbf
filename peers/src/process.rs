//! Child processes that never outlive their owner.
//!
//! A dropped [`Process`] is killed and reaped. In case the owner itself is killed, each program is started with a
//! parent-death signal (through `setpriv`, as this crate has no unsafe code). The kernel binds that signal to the
//! *thread* that started the program, so programs are to be started on a thread that lives as long as they should: the
//! main thread, a test's thread, a runtime worker; never in `spawn_blocking`. A program that changes its user loses the
//! signal: configure it not to.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::time::Instant;

/// Maximum time for a program to start or to end, and for a condition that a test waits for.
///
/// All of them need a second or two. The rest is for machines that run several test suites at once.
pub const TIMEOUT: Duration = Duration::from_secs(60);
const CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// The error of [`find`]: a program is not installed.
#[derive(Debug, thiserror::Error)]
#[error("`{program}` is not installed; on Debian and Ubuntu: apt install {package}")]
pub struct Missing {
    /// The name of the executable.
    pub program: &'static str,
    /// The Debian package that contains it.
    pub package: &'static str,
}

/// Returns the path of a program in `$PATH`, or in the directories where Debian installs daemons.
///
/// # Errors
/// The program is in none of them. `package` is for the message only.
pub fn find(program: &'static str, package: &'static str) -> Result<PathBuf, Missing> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|file| file.is_file()).ok_or(Missing { program, package })
}

/// Returns a loopback port that is free, and outside the range that the kernel assigns to outgoing connections.
///
/// Consecutive calls return different ports. Processes start at different ports, so that tests that run in parallel
/// rarely meet; a port is not reserved.
pub fn free_port() -> anyhow::Result<u16> {
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000; // below 32,768, where Linux begins to assign ports by itself
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

/// A running program. Dropping it kills it.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    exit_status: Option<ExitStatus>,
}

impl Process {
    /// Starts a program. Its standard output and error are appended to `log`.
    pub fn start(program: &Path, arguments: &[&str], log: &Path) -> anyhow::Result<Self> {
        Self::start_with(program, arguments, &[], log)
    }

    /// Starts a program with additional environment variables.
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
        // Settings of the bridge, secrets among them, are for the bridge.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("DTORRENT_")) {
            command.env_remove(name);
        }
        command.args(arguments).envs(environment.iter().copied()).stdin(Stdio::null());
        command.stdout(output.try_clone().context("share the log")?).stderr(output);
        command.process_group(0); // Ctrl-C at the terminal is for the owner, which ends its programs in order
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        Ok(Self { name, child, log: log.to_owned(), exit_status: None })
    }

    /// Returns the process id, which stays valid until the program was reaped.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns how the program ended, or `None` while it runs.
    pub fn exit_status(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        if self.exit_status.is_none() {
            self.exit_status = self.child.try_wait().with_context(|| format!("check on {}", self.name))?;
        }
        Ok(self.exit_status)
    }

    /// Returns everything the program has printed so far.
    pub fn output(&self) -> String {
        match std::fs::read(&self.log) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => format!("(cannot read its output from {}: {error})", self.log.display()),
        }
    }

    /// Sends a signal, named as in `kill -s`: `TERM`, `INT`, `STOP`, `CONT`.
    ///
    /// # Errors
    /// The program has ended.
    pub fn signal(&mut self, name: &str) -> anyhow::Result<()> {
        ensure!(self.exit_status()?.is_none(), "{} has ended", self.name);
        // The child is not reaped yet, so its pid cannot belong to another process.
        let mut kill = Command::new("sh");
        kill.args(["-c", "kill -s \"$1\" \"$2\"", "sh", name, &self.pid().to_string()]);
        let status = kill.status().context("run sh")?;
        ensure!(status.success(), "kill -s {name} of {} failed", self.name);
        Ok(())
    }

    /// Stops the program's execution (SIGSTOP), as if its machine froze. Its sockets stay open.
    pub fn pause(&mut self) -> anyhow::Result<()> {
        self.signal("STOP")
    }

    /// Continues a paused program (SIGCONT).
    pub fn unpause(&mut self) -> anyhow::Result<()> {
        self.signal("CONT")
    }

    /// Kills the program (SIGKILL) and reaps it. Does nothing if it has ended.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if self.exit_status()?.is_none() {
            self.child.kill().with_context(|| format!("kill {}", self.name))?;
            self.exit_status = Some(self.child.wait().with_context(|| format!("wait for {}", self.name))?);
        }
        Ok(())
    }

    /// Asks the program to end (SIGTERM) and waits for it.
    ///
    /// # Errors
    /// It has not ended within [`TIMEOUT`], and was killed.
    pub async fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        if self.exit_status()?.is_none() {
            self.signal("TERM")?;
        }
        match self.wait(TIMEOUT).await {
            Ok(status) => Ok(status),
            Err(error) => {
                self.kill()?;
                Err(error)
            }
        }
    }

    /// Waits until the program has ended.
    pub async fn wait(&mut self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.exit_status()? {
                return Ok(status);
            }
            ensure!(Instant::now() < deadline, "{} does not end; its output:\n{}", self.name, self.output());
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
    }

    /// Waits until `is_ready` returns true.
    ///
    /// # Errors
    /// The program ended before, or is not ready within [`TIMEOUT`]. The message contains its output.
    pub async fn wait_until_ready(&mut self, mut is_ready: impl AsyncFnMut() -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        while !is_ready().await {
            if let Some(status) = self.exit_status()? {
                bail!("{} ended at once ({status}); its output:\n{}", self.name, self.output());
            }
            ensure!(Instant::now() < deadline, "{} does not get ready; its output:\n{}", self.name, self.output());
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!(program = self.name, error = format!("{error:#}"), "cannot kill the program");
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
    async fn a_dropped_program_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let sleep = find("sleep", "coreutils").unwrap();
        let mut process = Process::start(&sleep, &["1000"], &folder.path().join("log")).unwrap();
        assert!(process.exit_status().unwrap().is_none());
        let pid = process.pid();
        drop(process);
        assert!(!Path::new("/proc").join(pid.to_string()).is_dir());
    }

    #[tokio::test]
    async fn a_program_that_ends_before_it_is_ready_is_an_error_with_its_output() {
        let folder = tempfile::tempdir().unwrap();
        let sh = find("sh", "dash").unwrap();
        let mut process = Process::start(&sh, &["-c", "echo no config; exit 3"], &folder.path().join("log")).unwrap();
        let error = process.wait_until_ready(async || false).await.unwrap_err().to_string();
        assert!(error.contains("no config") && error.contains('3'), "{error}");
    }
}
