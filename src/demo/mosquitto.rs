//! A mosquitto of our own on a loopback port.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use tokio::net::TcpStream;

use super::process::{Process, find, free_port};

/// How it is set up; the default is an open broker that remembers nothing.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Keeps sessions and retained messages over a clean stop.
    pub persistence: bool,
    pub tls: Option<Tls>,
    /// Speaks WebSocket instead of MQTT over plain TCP.
    pub websockets: bool,
    /// User and password; without one everybody is let in.
    pub users: Vec<(String, String)>,
    /// The text of an ACL file.
    pub acl: Option<String>,
    /// More lines for its configuration.
    pub lines: Vec<String>,
}

/// PEM files.
#[derive(Clone, Debug)]
pub struct Tls {
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Whoever comes has to show a certificate of the CA.
    pub client_certificates: bool,
}

pub struct Mosquitto {
    pub port: u16,
    program: PathBuf,
    config: PathBuf,
    log: PathBuf,
    process: Process,
}

impl Mosquitto {
    /// Starts one that keeps its files in `folder`, and waits until it listens.
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

    /// `mqtt://127.0.0.1:…`
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Starts it again on the same port, after it was killed or has ended.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process = launch(&self.program, &self.config, &self.log, self.port).await?;
        Ok(())
    }
}

async fn launch(program: &Path, config: &Path, log: &Path, port: u16) -> anyhow::Result<Process> {
    let mut process = Process::start(program, &["-v", "-c", &config.to_string_lossy()], log)?;
    process.ready(async || TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await?;
    Ok(process)
}

fn configuration(folder: &Path, port: u16, options: &Options) -> anyhow::Result<String> {
    let Options { persistence, tls, websockets, users, acl, lines } = options;
    // Started by root it would become another user and lose its parent-death signal and the right to our
    // folder; started by anybody else it ignores this.
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
