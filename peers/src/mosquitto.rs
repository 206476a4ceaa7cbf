//! A mosquitto on a loopback port.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use tokio::net::TcpStream;

use crate::process::{Process, find, free_port};

/// Configuration of a broker. The default one admits everybody and persists nothing.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether sessions and retained messages survive a clean stop. A killed broker loses them.
    pub persistence: bool,
    /// Certificates; without them the broker speaks plain TCP.
    pub tls: Option<Tls>,
    /// Whether the listener speaks MQTT over WebSocket instead of plain MQTT.
    pub websockets: bool,
    /// User names and passwords. Anonymous clients are admitted if this is empty.
    pub users: Vec<(String, String)>,
    /// The content of the ACL file.
    pub acl: Option<String>,
    /// Further lines of mosquitto.conf.
    pub lines: Vec<String>,
}

/// TLS of the listener, from PEM files.
#[derive(Clone, Debug)]
pub struct Tls {
    /// The authority that signed client certificates.
    pub ca: PathBuf,
    /// The broker's certificate.
    pub certificate: PathBuf,
    /// The private key of `certificate`.
    pub key: PathBuf,
    /// Whether clients must present a certificate signed by `ca`.
    pub client_certificates: bool,
}

/// A running broker. Dropping it kills it; its files stay.
pub struct Mosquitto {
    /// The port it listens on, on 127.0.0.1. The same after a restart.
    pub port: u16,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    process: Process,
}

impl Mosquitto {
    /// Starts a broker that keeps its files in `folder`, and waits until it accepts connections.
    pub async fn start(folder: &Path, options: &Options) -> anyhow::Result<Self> {
        let program = find("mosquitto", "mosquitto")?;
        let port = free_port()?;
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        let config = folder.join("mosquitto.conf");
        std::fs::write(&config, configuration(folder, port, options)?).context("write mosquitto.conf")?;
        let log = folder.join("mosquitto.log");
        let process = launch(&program, &config, &log, port).await?;
        Ok(Self { port, program, config, log, process })
    }

    /// Returns `mqtt://127.0.0.1:PORT`, whichever protocol the listener speaks.
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// Returns the log so far: every packet received and sent.
    pub fn output(&self) -> String {
        self.process.output()
    }

    /// Returns the process, to signal or kill it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Starts the broker again on the same port with the same files. Kills it first if it runs.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process = launch(&self.program, &self.config, &self.log, self.port).await?;
        Ok(())
    }
}

async fn launch(program: &Path, config: &Path, log: &Path, port: u16) -> anyhow::Result<Process> {
    let mut process = Process::start(program, &["-v", "-c", &config.to_string_lossy()], log)?;
    process.wait_until_ready(async || TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await?;
    Ok(process)
}

fn configuration(folder: &Path, port: u16, options: &Options) -> anyhow::Result<String> {
    let Options { persistence, tls, websockets, users, acl, lines } = options;
    // When root starts it without this line it changes its user, which loses the parent-death signal and the right to
    // `folder`. For any other user the line has no effect.
    let mut text = format!("user root\nallow_anonymous {}\nlistener {port} 127.0.0.1\n", users.is_empty());
    let mut line = |line: String| writeln!(text, "{line}").context("write to a string");
    if *websockets {
        line("protocol websockets".to_owned())?;
    }
    if let Some(Tls { ca, certificate, key, client_certificates }) = tls {
        line(format!("cafile {}", ca.display()))?;
        line(format!("certfile {}", certificate.display()))?;
        line(format!("keyfile {}", key.display()))?;
        line(format!("require_certificate {client_certificates}"))?;
    }
    if *persistence {
        line(format!("persistence true\npersistence_location {}/", folder.display()))?;
    }
    if !users.is_empty() {
        let file = folder.join("passwords");
        std::fs::write(&file, "").context("write the password file")?;
        let program = find("mosquitto_passwd", "mosquitto")?;
        for (user, password) in users {
            let status = Command::new(&program).arg("-b").arg(&file).args([user, password]).status();
            ensure!(status.context("run mosquitto_passwd")?.success(), "mosquitto_passwd failed");
        }
        line(format!("password_file {}", file.display()))?;
    }
    if let Some(acl) = acl {
        let file = folder.join("acl");
        std::fs::write(&file, acl).context("write the ACL file")?;
        line(format!("acl_file {}", file.display()))?;
    }
    for more in lines {
        line(more.clone())?;
    }
    Ok(text)
}
