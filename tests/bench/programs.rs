//! The bridge as a separate process, and the resource use of processes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use dtorrent_peers::process::{Process, free_port};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Timeout of every wait, far longer than any takes.
pub const TIMEOUT: Duration = Duration::from_secs(180);

/// The real binary, built with the profile of the bench, with a generated config.
pub struct Bridge {
    process: Process,
    page: u16,
    pub started: Instant,
}

/// Content of the config file.
#[derive(Clone)]
pub struct Config {
    pub folder: PathBuf,
    pub servers: Vec<(String, String)>,
    pub broker: String,
    /// Further lines for each server, and for the broker.
    pub server_lines: String,
    pub broker_lines: String,
    /// Token with which the API accepts commands.
    pub token: Option<&'static str>,
    pub log_level: &'static str,
}

impl Config {
    /// Starts a bridge that polls `servers` each second, with its state in `folder`.
    pub fn new(folder: &Path, servers: Vec<(String, String)>, broker: String) -> Self {
        let (server_lines, broker_lines) = (String::new(), String::new());
        Self { folder: folder.to_owned(), servers, broker, server_lines, broker_lines, token: None, log_level: "warn" }
    }

    fn write(&self, page: u16) -> anyhow::Result<PathBuf> {
        std::fs::create_dir_all(&self.folder)?;
        let mut text = format!(
            "data_dir = \"{}\"\n[log]\nlevel = \"{}\"\n[http]\nlisten = \"127.0.0.1:{page}\"\n",
            self.folder.join("data").display(),
            self.log_level
        );
        if let Some(token) = self.token {
            text += &format!("token = \"{token}\"\n");
        }
        for (name, url) in &self.servers {
            text += &format!("[servers.{name}]\nurl = \"{url}\"\ninterval = \"1s\"\n{}\n", self.server_lines);
        }
        text += &format!("[brokers.b]\nkind = \"mqtt\"\nurl = \"{}\"\n{}\n", self.broker, self.broker_lines);
        let file = self.folder.join("dtorrent.toml");
        std::fs::write(&file, text)?;
        Ok(file)
    }

    /// Returns whether this version accepts the config.
    pub fn is_taken(&self) -> anyhow::Result<bool> {
        let file = self.write(free_port()?)?;
        let output = std::process::Command::new(program()).arg("check").arg("--config").arg(file).output()?;
        Ok(output.status.success())
    }
}

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_dtorrent"))
}

impl Bridge {
    pub fn start(config: &Config) -> anyhow::Result<Self> {
        let page = free_port()?;
        let file = config.write(page)?;
        let started = Instant::now();
        let arguments = ["run", "--config", &file.to_string_lossy()];
        let process = Process::start_with(program(), &arguments, &[("NO_COLOR", "1")], &config.folder.join("log"))?;
        Ok(Self { process, page, started })
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns the address of its API.
    pub fn page(&self) -> u16 {
        self.page
    }

    /// Returns the sum of a metric over all series that contain these labels.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> anyhow::Result<f64> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.page)).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
        let mut page = String::new();
        stream.read_to_string(&mut page).await?;
        let of_name = page.lines().filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' '])) && labels.iter().all(|label| line.contains(label))
        });
        Ok(of_name.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// Waits until a condition on its metrics holds.
    pub async fn until(
        &mut self,
        what: &str,
        mut is_so: impl AsyncFnMut(&Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let last = match is_so(self).await {
                Ok(true) => return Ok(()),
                Ok(false) => "not so yet".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            if self.process.exit_status()?.is_some() {
                bail!("the bridge has ended; log:\n{}", self.process.output());
            }
            ensure!(
                Instant::now() < deadline,
                "timed out waiting for {what} ({last}); log:\n{}",
                self.process.output()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until it has published this many torrents, and has polled each server a few times since.
    pub async fn at_rest(&mut self, servers: usize, torrents: usize) -> anyhow::Result<()> {
        self.until("all to be published", async |bridge| {
            let is_told = bridge.metric("dtorrent_torrents", &[]).await? as usize >= torrents;
            Ok(is_told
                && bridge.metric("dtorrent_sink_connected", &[]).await? > 0.0
                && bridge.metric("dtorrent_sink_lag_entries", &[]).await? == 0.0
                && bridge.metric("dtorrent_sink_dirty", &[]).await? == 0.0)
        })
        .await?;
        let seen = self.metric("dtorrent_polls_total", &["ok"]).await?;
        self.until("more polls", async |bridge| {
            Ok(bridge.metric("dtorrent_polls_total", &["ok"]).await? >= seen + 3.0 * servers as f64)
        })
        .await
    }

    pub async fn stop(mut self) -> anyhow::Result<()> {
        let status = self.process.terminate().await?;
        ensure!(status.success(), "the bridge ended with {status}; log:\n{}", self.process.output());
        Ok(())
    }
}

/// Returns the processor time of a process so far: all threads, user and system.
pub fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in brackets, may contain blanks. After it, utime and stime are the 12th and 13th field.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |place: usize| fields.get(place).and_then(|text| text.parse::<u32>().ok());
    let (user, system) = ticks(11).zip(ticks(12)).context("read /proc/…/stat")?;
    // Linux reports them in hundredths of a second (USER_HZ).
    Ok(Duration::from_millis(10) * (user + system))
}

/// Returns the resident memory of a process in bytes.
pub struct Resident {
    pub now: u64,
    pub at_most: u64,
    /// File-backed pages, nearly all of them of the program itself: shared, and reclaimed under memory pressure.
    pub of_files: u64,
}

pub fn memory(pid: u32) -> anyhow::Result<Resident> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        kib.map(|kib| kib * 1024).with_context(|| format!("no {name} in /proc/…/status"))
    };
    Ok(Resident { now: bytes("VmRSS:")?, at_most: bytes("VmHWM:")?, of_files: bytes("RssFile:")? })
}
