//! The environment of a live test: real programs around the real binary, in a temporary folder, on free ports.

pub mod bridge;
pub mod certificates;
pub mod database;
pub mod disk;
pub mod faulty;
pub mod http;
pub mod nats;
pub mod nginx;
pub mod picky;
pub mod proxy;
pub mod receiver;
pub mod recorder;
pub mod scgi;
pub mod schemas;
pub mod skip;

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use base64::Engine as _;
use dtorrent_peers::content::Content;
use dtorrent_peers::mosquitto::{self, Mosquitto};
use dtorrent_peers::rtorrent::{self, Rtorrent};
use serde_json::Value;
use tempfile::TempDir;

use self::bridge::Bridge;
use self::database::StateDatabase;
use self::proxy::Proxy;
use self::recorder::Recorder;
use self::skip::are_installed;

/// Returns whether the programs that most live tests need are installed. Skips the test if one is not.
#[track_caller]
pub fn can_run() -> bool {
    are_installed(&[
        ("rtorrent", "rtorrent"),
        ("mosquitto", "mosquitto"),
        ("nginx", "nginx-light"),
        ("openssl", "openssl"),
    ])
}

/// Returns bytes as a JSON body has them.
pub fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Changes to the default environment: one broker, one server `home`, polled four times a second.
#[derive(Clone, Default)]
pub struct Setup {
    pub broker: mosquitto::Options,
    pub rtorrent: rtorrent::Options,
    /// Further lines of `[servers.…]`; `interval = "250ms"` unless they set it.
    pub server: String,
    /// Lines of `[http]`; without them HTTP is off.
    pub http: String,
    /// Further lines of `[brokers.b]` and of tables after it; `url` is the broker's unless they begin with one.
    pub sink: String,
    /// The command that runs the bridge with other rights or another view of the disk; empty for none.
    pub launcher: Vec<String>,
}

/// A broker, an rTorrent and a consumer. The test starts the bridge.
pub struct World {
    pub recorder: Recorder,
    pub bridge: Option<Bridge>,
    pub home: Rtorrent,
    pub broker: Mosquitto,
    pub folder: PathBuf,
    setup: Setup,
    _folder: TempDir,
}

impl World {
    pub async fn new(setup: Setup) -> Self {
        let temporary = tempfile::Builder::new().prefix("dt-live-").tempdir().unwrap();
        let folder = temporary.path().to_owned();
        // For programs that a launcher runs as another user.
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        let broker = Mosquitto::start(&folder.join("broker"), &setup.broker).await.unwrap();
        let home = Rtorrent::start(&folder.join("home"), &setup.rtorrent).await.unwrap();
        let recorder = Recorder::listen(broker.port).await;
        Self { recorder, bridge: None, home, broker, folder, setup, _folder: temporary }
    }

    /// Starts everything, the bridge included, and waits for the initial snapshot.
    pub async fn running(setup: Setup) -> Self {
        let mut world = Self::new(setup).await;
        world.start_bridge().await;
        world
    }

    /// Starts everything with complete, seeding torrents, and waits for the initial snapshot.
    pub async fn seeding(setup: Setup, contents: impl IntoIterator<Item = &Content> + Clone) -> Self {
        let mut world = Self::new(setup).await;
        for content in contents.clone() {
            content.write_to(&world.home.downloads).unwrap();
            world.home.load(&content.torrent, true).await.unwrap();
        }
        for content in contents {
            world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
            world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
        }
        world.start_bridge().await;
        world
    }

    /// Starts the bridge for `home`, and waits for the initial snapshot.
    pub async fn start_bridge(&mut self) {
        let url = self.home.url();
        self.start_bridge_for(&[("home", &url)]).await;
    }

    pub async fn start_bridge_for(&mut self, servers: &[(&str, &str)]) {
        let config = self.write_config(servers);
        self.bridge = Some(Bridge::start_by(&self.setup.launcher, &config));
        for (server, _) in servers {
            self.recorder.server_event_after(0, server, "snapshot_done").await;
        }
    }

    /// Sets the URL of the broker for the next start of the bridge.
    pub fn use_broker_at(&mut self, url: &str) {
        self.setup.sink = format!("url = \"{url}\"\n{}", self.setup.sink);
    }

    /// Sets the lines of `[brokers.b]`, and of tables after it, for the next start of the bridge.
    pub fn set_sink_lines(&mut self, lines: &str) {
        lines.clone_into(&mut self.setup.sink);
    }

    /// Runs `dtorrent check --connect` for `home`; returns its exit code, stdout and stderr.
    pub async fn check_connect(&self) -> (i32, String, String) {
        self.write_config(&[("home", &self.home.url())]);
        self.ask(&["check", "--connect"], &[]).await
    }

    /// Sets further lines of `[servers.…]` for the next start of the bridge.
    pub fn set_server_lines(&mut self, lines: &str) {
        lines.clone_into(&mut self.setup.server);
    }

    /// Starts the bridge for `home` without waiting: client and broker may be unreachable.
    pub fn launch_bridge(&mut self) {
        let url = self.home.url();
        let config = self.write_config(&[("home", &url)]);
        self.bridge = Some(Bridge::start_by(&self.setup.launcher, &config));
    }

    /// Starts the bridge again, by other first words of its command.
    pub fn relaunch_with(&mut self, launcher: &[&str]) {
        self.setup.launcher = launcher.iter().map(|word| (*word).to_owned()).collect();
        self.launch_bridge();
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Returns a reader of the bridge's state on disk.
    pub fn database(&self) -> StateDatabase {
        StateDatabase::of(&self.data_dir())
    }

    /// Puts a proxy between the broker and the bridge, from its next start on. The recorder connects directly.
    pub async fn proxy_broker(&mut self) -> Proxy {
        let proxy = Proxy::to_broker(self.broker.port).await;
        self.use_broker_at(&format!("mqtt://{}", proxy.address));
        proxy
    }

    pub fn write_config(&self, servers: &[(&str, &str)]) -> PathBuf {
        let quoted = |text: &str| Value::from(text).to_string();
        let Setup { server: server_lines, sink, http, .. } = &self.setup;
        let mut text = format!(
            "data_dir = {}\n[log]\nlevel = \"debug\"\n[http]\n{}\n",
            quoted(&self.data_dir().to_string_lossy()),
            if http.is_empty() { "listen = \"off\"" } else { http }
        );
        for (name, url) in servers {
            text += &format!(
                "[servers.{name}]\nclient = \"rtorrent\"\nurl = {}\nroots = [{}]\n",
                quoted(url),
                quoted(&self.home.downloads.to_string_lossy())
            );
            if !server_lines.contains("interval") {
                text += "interval = \"250ms\"\n";
            }
            text += &format!("{server_lines}\n");
        }
        text += "[brokers.b]\nkind = \"mqtt\"\n";
        if !sink.starts_with("url") {
            text += &format!("url = {}\n", quoted(&self.broker.url()));
        }
        text += &format!("{sink}\n");
        let config = self.folder.join("dtorrent.toml");
        std::fs::write(&config, text).unwrap();
        config
    }

    /// Runs another command with the same config; returns its exit code, stdout and stderr.
    pub async fn ask(&self, arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String, String) {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_dtorrent"));
        command.args(arguments).arg("--config").arg(self.folder.join("dtorrent.toml"));
        let output = command.envs(environment.iter().copied()).output().await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    pub fn bridge(&mut self) -> &mut Bridge {
        self.bridge.as_mut().expect("the test has started it")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.broker.output();
            let is_telling = |line: &&str| !["PUBLISH", "PUBACK", "PING"].iter().any(|packet| line.contains(packet));
            let lines: Vec<_> = log.lines().filter(is_telling).collect();
            eprintln!("--- log of the broker:\n{}\n---", lines[lines.len().saturating_sub(20)..].join("\n"));
        }
    }
}
