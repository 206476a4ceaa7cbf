//! `dtorrent demo`: a broker, two rTorrents that transfer data, and the bridge between them.
//!
//! The programs are real ones, installed on the machine. They keep their files in one temporary folder, listen on
//! loopback ports, and are gone afterwards. The caller passes the bridge in as a closure: this module knows its config
//! file and its topics, as a user does, and nothing of its insides.

use std::collections::HashMap;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use dtorrent_peers::content::Content;
use dtorrent_peers::mosquitto::{self, Mosquitto};
use dtorrent_peers::process;
use dtorrent_peers::rtorrent::{self, Rtorrent};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Download limit of the leecher, low enough for the transfers to take a minute or two.
const LEECHER_KIB_PER_SECOND: u32 = 160;
/// Time from the end of a download until it starts over.
const RESTART_DELAY: Duration = Duration::from_secs(30);
/// Time until the first download, in which the bridge polls the empty leecher: later torrents are `added` as observed.
const FIRST_DOWNLOAD_DELAY: Duration = Duration::from_secs(3);
/// Maximum time for the bridge to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the demo until `stop` is cancelled.
///
/// `bridge` receives the path of its config file and a token that stops it. To be called on the main thread, because
/// the programs die with the thread that started them ([`process`]).
///
/// # Errors
/// A program is not installed or ends, or the bridge ends by itself. The temporary folder is removed all the same.
pub async fn run<B, F>(stop: CancellationToken, bridge: B) -> anyhow::Result<()>
where
    B: FnOnce(PathBuf, CancellationToken) -> F,
    F: Future<Output = anyhow::Result<()>>,
{
    let needed = [("mosquitto", "mosquitto"), ("rtorrent", "rtorrent")];
    let missing = needed.iter().filter_map(|(program, package)| process::find(program, package).err());
    let missing: Vec<_> = missing.map(|missing| missing.to_string()).collect();
    ensure!(missing.is_empty(), "{}", missing.join("\n"));
    let folder = tempfile::Builder::new().prefix("dtorrent-demo-").tempdir().context("make a temporary folder")?;
    let cleaner = FolderCleaner::start(folder.path())?;
    let programs = tokio::select! {
        programs = Programs::start(folder.path()) => programs.map(Some),
        () = stop.cancelled() => Ok(None),
    };
    let result = match programs {
        Ok(Some(programs)) => programs.run(stop, bridge).await,
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    let removed = folder.close().context("remove the temporary folder");
    drop(cleaner);
    result.and(removed).and_then(|()| print_line("Stopped; nothing is left behind."))
}

/// A shell that removes the folder if this process is killed: it waits for the end of its standard input, which closes
/// with this process.
struct FolderCleaner(Child);

impl FolderCleaner {
    fn start(folder: &Path) -> anyhow::Result<Self> {
        let mut shell = Command::new("sh");
        // The programs die at the same moment as this process and may still create a file, so `rm` runs twice.
        shell.args(["-c", "cat; rm -rf -- \"$1\" || { sleep 1; rm -rf -- \"$1\"; }", "sh"]).arg(folder);
        shell.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        // A group of its own, because Ctrl-C on a terminal signals the whole group of this process.
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        shell.spawn().map(Self).context("start sh")
    }
}

impl Drop for FolderCleaner {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        if let Err(error) = self.0.wait() {
            tracing::warn!(%error, "cannot wait for the shell that removes the temporary folder");
        }
    }
}

/// The running programs, and the torrents that they transfer.
struct Programs {
    seeder: Rtorrent,
    leecher: Rtorrent,
    contents: Vec<Content>,
    broker: Mosquitto,
    config: PathBuf,
    page: String,
}

impl Programs {
    async fn start(folder: &Path) -> anyhow::Result<Self> {
        let broker = Mosquitto::start(&folder.join("broker"), &mosquitto::Options::default()).await?;
        let seeder = Rtorrent::start(&folder.join("seeder"), &rtorrent::Options::default()).await?;
        let slow = rtorrent::Options { download_limit: LEECHER_KIB_PER_SECOND, ..rtorrent::Options::default() };
        let leecher = Rtorrent::start(&folder.join("leecher"), &slow).await?;
        let contents = vec![
            Content::file("podcast-042.ogg", 400_000, 1),
            Content::folder("field-recordings", &[("frogs.flac", 1_200_000), ("rain/roof.flac", 900_000)], 2),
            Content::file("map-of-the-moon.tif", 3_000_000, 4),
            Content::file("debian-like.iso", 9_000_000, 5),
        ];
        for content in &contents {
            content.write_to(&seeder.downloads)?;
            seeder.load(&content.torrent, true).await?;
        }
        let page = format!("127.0.0.1:{}", process::free_port()?);
        let config = folder.join("dtorrent.toml");
        let text = configuration(folder, &page, &broker, [("seeder", &seeder), ("leecher", &leecher)]);
        std::fs::write(&config, text).context("write dtorrent.toml")?;
        Ok(Self { seeder, leecher, contents, broker, config, page })
    }

    async fn run<B, F>(self, stop: CancellationToken, bridge: B) -> anyhow::Result<()>
    where
        B: FnOnce(PathBuf, CancellationToken) -> F,
        F: Future<Output = anyhow::Result<()>>,
    {
        print_line(&self.instructions())?;
        let bridge_stop = stop.child_token();
        let mut bridge = std::pin::pin!(bridge(self.config.clone(), bridge_stop.clone()));
        let result = tokio::select! {
            ended = &mut bridge => {
                let was_asked = stop.is_cancelled();
                return ended.and_then(|()| if was_asked { Ok(()) } else { Err(anyhow!("the bridge ended by itself")) });
            }
            ended = print_events(self.broker.port) => ended,
            ended = self.keep_downloading() => ended,
            () = stop.cancelled() => Ok(()),
        };
        bridge_stop.cancel();
        let stopped = tokio::time::timeout(STOP_TIMEOUT, bridge).await.context("the bridge does not stop");
        result.and(stopped.and_then(|ended| ended))
    }

    /// Downloads one torrent after the other, and each again some time after it has finished.
    async fn keep_downloading(&self) -> anyhow::Result<()> {
        let mut finished_since: HashMap<_, Instant> = HashMap::new();
        let mut started = 0;
        let mut interval = tokio::time::interval_at(Instant::now() + FIRST_DOWNLOAD_DELAY, Duration::from_secs(1));
        loop {
            interval.tick().await;
            if let Some(content) = self.contents.get(started) {
                self.download(content).await?;
                started += 1;
            }
            let present = self.leecher.hashes().await?;
            for content in &self.contents[..started] {
                let hash = content.hash;
                if present.contains(&hash) && self.leecher.get(hash, "d.complete").await? == "0" {
                    finished_since.remove(&hash);
                    let is_active = self.leecher.get(hash, "d.is_active").await? == "1";
                    // There is neither a tracker nor DHT, so nothing else connects the two.
                    if is_active && self.leecher.get(hash, "d.peers_connected").await? == "0" {
                        self.leecher.add_peer(hash, self.seeder.port).await?;
                    }
                } else if finished_since.entry(hash).or_insert_with(Instant::now).elapsed() > RESTART_DELAY {
                    finished_since.remove(&hash);
                    if present.contains(&hash) {
                        self.leecher.act(hash, "d.erase", &[]).await?;
                    }
                    self.download(content).await?;
                }
            }
        }
    }

    /// Removes the data of a torrent, and starts its download.
    async fn download(&self, content: &Content) -> anyhow::Result<()> {
        content.remove_from(&self.leecher.downloads)?;
        self.leecher.load(&content.torrent, true).await?;
        self.leecher.add_peer(content.hash, self.seeder.port).await
    }

    fn instructions(&self) -> String {
        let Self { broker: Mosquitto { port, .. }, contents, config, page, .. } = self;
        let longest = contents.last().expect("the list above is not empty");
        let torrent = format!("dtorrent/leecher/torrent/{}", longest.hash);
        let client = "127.0.0.1";
        format!(
            "A mosquitto and two rTorrents are running; the bridge is between them.\n\
             \n\
             In a second terminal, to see every message:\n\
             \n    mosquitto_sub -h {client} -p {port} -v -t 'dtorrent/#'\n\
             \n\
             To pause and resume {name}, and to see the results of commands:\n\
             \n    mosquitto_pub -h {client} -p {port} -n -t {torrent}/command/pause\
             \n    mosquitto_pub -h {client} -p {port} -n -t {torrent}/command/resume\
             \n    mosquitto_sub -h {client} -p {port} -v -t dtorrent/leecher/result\n\
             \n\
             Status: http://{page}/readyz. Config: {config}.\n\
             Ctrl-C ends the demo and leaves nothing behind. Events:\n",
            name = longest.name,
            config = config.display(),
        )
    }
}

/// Returns the text of the bridge's config file.
fn configuration(folder: &Path, page: &str, broker: &Mosquitto, servers: [(&str, &Rtorrent); 2]) -> String {
    let quoted = |text: &str| Value::from(text).to_string(); // a JSON string is a TOML string
    let path = |path: &Path| quoted(&path.to_string_lossy());
    let mut text = format!(
        "data_dir = {}\n\n[log]\nlevel = \"warn\"\n\n[http]\nlisten = {}\n",
        path(&folder.join("data")),
        quoted(page)
    );
    for (name, server) in servers {
        text += &format!(
            "\n[servers.{name}]\nclient = \"rtorrent\"\nurl = {}\ninterval = \"1s\"\nroots = [{}]\n",
            quoted(&server.url()),
            path(&server.downloads)
        );
    }
    text + &format!("\n[brokers.demo]\nkind = \"mqtt\"\nurl = {}\n", quoted(&broker.url()))
}

/// Prints the events that arrive at the broker, one a line.
async fn print_events(port: u16) -> anyhow::Result<()> {
    let mut options = MqttOptions::new("dtorrent-demo", "127.0.0.1", port);
    // The default of rumqttc is 10 KiB, and a larger message ends the connection.
    options.set_max_packet_size(1 << 20, 1 << 20);
    let (client, mut connection) = AsyncClient::new(options, 10);
    for topic in ["dtorrent/bridge/+/status", "dtorrent/+/event/+", "dtorrent/+/torrent/+/event/+"] {
        client.subscribe(topic, QoS::AtLeastOnce).await.context("subscribe")?;
    }
    loop {
        let Event::Incoming(Packet::Publish(message)) = connection.poll().await.context("receive from the broker")?
        else {
            continue;
        };
        if let Some(line) = line(&message.topic, &message.payload) {
            print_line(&line)?;
        }
    }
}

/// Returns one line about a message; `None` for `updated`, which would drown the rest.
fn line(topic: &str, payload: &[u8]) -> Option<String> {
    if topic.starts_with("dtorrent/bridge/") {
        return Some(format!("         bridge is {}", String::from_utf8_lossy(payload)));
    }
    let event: Value = serde_json::from_slice(payload).ok()?;
    let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let (time, server, kind) = (text("time"), text("server"), text("event_type"));
    // The time of day in RFC 3339.
    let time = time.get(11..19).unwrap_or_default();
    let Some(name) = event["torrent"]["name"].as_str() else {
        return Some(format!("{time} {server} {kind}"));
    };
    let suffix = match (kind.as_str(), text("cause").as_str()) {
        ("updated", _) => return None,
        (_, "command") => " (by a command)",
        (_, "snapshot") => " (already there)",
        _ => "",
    };
    Some(format!("{time} {server} {kind} {name}{suffix}"))
}

fn print_line(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).context("write to the terminal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_demo_downloads_and_leaves_nothing_behind() {
        let stop = CancellationToken::new();
        let mut folder = PathBuf::new();
        run(stop.clone(), async |config: PathBuf, bridge_stop: CancellationToken| {
            let text = std::fs::read_to_string(&config)?;
            folder = config.parent().unwrap().to_owned();
            let table: toml::Table = text.parse()?;
            assert_eq!(table["servers"].as_table().unwrap().len(), 2, "{text}");
            // The smallest file is complete after some seconds.
            let podcast = folder.join("leecher/downloads/podcast-042.ogg");
            let all_is_here =
                || std::fs::read(&podcast).is_ok_and(|bytes| bytes == Content::file("podcast", 400_000, 1).files[0].1);
            let deadline = Instant::now() + process::TIMEOUT;
            while !all_is_here() {
                assert!(Instant::now() < deadline, "nothing is downloaded");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            stop.cancel();
            bridge_stop.cancelled().await;
            Ok(())
        })
        .await
        .unwrap();
        assert!(!folder.is_dir());
    }

    #[test]
    fn an_event_is_a_short_line() {
        let event = |kind: &str, cause: &str| {
            serde_json::json!({"event_type": kind, "cause": cause, "time": "2026-11-22T06:25:01.114Z",
                "server": "leecher", "torrent": {"name": "debian-like.iso"}})
        };
        for (kind, cause, expected) in [
            ("finished", "observed", Some("06:25:01 leecher finished debian-like.iso")),
            ("paused", "command", Some("06:25:01 leecher paused debian-like.iso (by a command)")),
            ("updated", "observed", None),
        ] {
            let text = event(kind, cause).to_string();
            assert_eq!(line("dtorrent/leecher/torrent/x/event/y", text.as_bytes()).as_deref(), expected);
        }
    }
}
