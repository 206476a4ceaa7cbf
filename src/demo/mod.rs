//! Everything on one machine for a while: a broker, two rTorrents that really move data, the bridge between.
//!
//! All of it lives in one temporary folder and on loopback ports, and is gone afterwards. The
//! programs are real ones, found on the machine; [`process`], [`mosquitto`] and [`rtorrent`] start
//! them for the live tests too. Who runs the bridge hands it in: this room knows only its
//! configuration file and its topics, as any user does.

pub mod content;
pub mod mosquitto;
pub mod process;
pub mod rtorrent;

use std::collections::HashMap;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::content::Content;
use self::mosquitto::Mosquitto;
use self::rtorrent::Rtorrent;

/// Slow enough that there is something to watch for a minute or two.
const LEECHER_KIB_PER_SECOND: u32 = 160;
/// A finished download stays this long before it begins again.
const ENCORE_AFTER: Duration = Duration::from_secs(30);
/// The leecher is empty this long, so that its torrents are seen to come.
const BRIDGE_LOOKS_FIRST: Duration = Duration::from_secs(3);
/// How long the bridge may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(10);

/// Runs the demo until `stop`, or until a part of it fails. Start it on the main thread ([`process`] says why).
///
/// `bridge` gets the path of a configuration file, and a token that tells it to stop.
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
    let broom = Broom::wait_beside(folder.path())?;
    let stage = tokio::select! {
        stage = Stage::set(folder.path()) => stage.map(Some),
        () = stop.cancelled() => Ok(None),
    };
    let result = match stage {
        Ok(Some(stage)) => stage.perform(stop, bridge).await,
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    let removed = folder.close().context("remove the temporary folder");
    drop(broom);
    result.and(removed).and_then(|()| say("Stopped; nothing is left behind."))
}

/// Removes the folder also when we are killed: a shell that waits for the end of its input, which we hold.
struct Broom(Child);

impl Broom {
    fn wait_beside(folder: &Path) -> anyhow::Result<Self> {
        let mut shell = Command::new("sh");
        // The programs in the folder die with us; what they still write then is swept in a second go.
        shell.args(["-c", "cat; rm -rf -- \"$1\" || { sleep 1; rm -rf -- \"$1\"; }", "sh"]).arg(folder);
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        shell.spawn().map(Self).context("start sh")
    }
}

impl Drop for Broom {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        if let Err(error) = self.0.wait() {
            tracing::warn!(%error, "cannot wait for the shell that removes the folder");
        }
    }
}

/// The programs and what they play with.
struct Stage {
    seeder: Rtorrent,
    leecher: Rtorrent,
    contents: Vec<Content>,
    broker: Mosquitto,
    config: PathBuf,
    page: String,
}

impl Stage {
    async fn set(folder: &Path) -> anyhow::Result<Self> {
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

    async fn perform<B, F>(self, stop: CancellationToken, bridge: B) -> anyhow::Result<()>
    where
        B: FnOnce(PathBuf, CancellationToken) -> F,
        F: Future<Output = anyhow::Result<()>>,
    {
        say(&self.invitation())?;
        let bridge_stop = stop.child_token();
        let mut bridge = std::pin::pin!(bridge(self.config.clone(), bridge_stop.clone()));
        let result = tokio::select! {
            ended = &mut bridge => {
                let was_asked = stop.is_cancelled();
                return ended.and_then(|()| if was_asked { Ok(()) } else { Err(anyhow!("the bridge ended by itself")) });
            }
            ended = narrate(self.broker.port) => ended,
            ended = self.play() => ended,
            () = stop.cancelled() => Ok(()),
        };
        bridge_stop.cancel();
        let goodbye = tokio::time::timeout(GOODBYE, bridge).await.context("the bridge does not stop");
        result.and(goodbye.and_then(|ended| ended))
    }

    /// Keeps the leecher busy: one torrent after the other at first, then again what has been finished for a while.
    async fn play(&self) -> anyhow::Result<()> {
        let mut finished_since: HashMap<_, Instant> = HashMap::new();
        let mut on_stage = 0;
        let mut beat = tokio::time::interval_at(Instant::now() + BRIDGE_LOOKS_FIRST, Duration::from_secs(1));
        loop {
            beat.tick().await;
            if let Some(content) = self.contents.get(on_stage) {
                self.begin(content).await?;
                on_stage += 1;
            }
            let present = self.leecher.hashes().await?;
            for content in &self.contents[..on_stage] {
                let hash = content.hash;
                if present.contains(&hash) && self.leecher.get(hash, "d.complete").await? == "0" {
                    finished_since.remove(&hash);
                    let is_active = self.leecher.get(hash, "d.is_active").await? == "1";
                    if is_active && self.leecher.get(hash, "d.peers_connected").await? == "0" {
                        self.leecher.add_peer(hash, self.seeder.port).await?;
                    }
                } else if finished_since.entry(hash).or_insert_with(Instant::now).elapsed() > ENCORE_AFTER {
                    finished_since.remove(&hash);
                    if present.contains(&hash) {
                        self.leecher.act(hash, "d.erase", &[]).await?;
                    }
                    self.begin(content).await?;
                }
            }
        }
    }

    /// Downloads something from the beginning.
    async fn begin(&self, content: &Content) -> anyhow::Result<()> {
        content.remove_from(&self.leecher.downloads)?;
        self.leecher.load(&content.torrent, true).await?;
        self.leecher.add_peer(content.hash, self.seeder.port).await
    }

    fn invitation(&self) -> String {
        let Self { broker: Mosquitto { port, .. }, contents, config, page, .. } = self;
        let longest = contents.last().expect("the list above is not empty");
        let torrent = format!("dtorrent/leecher/torrent/{}", longest.hash);
        let client = "127.0.0.1";
        format!(
            "A mosquitto and two rTorrents are running; the bridge is between them.\n\
             \n\
             In a second terminal, to see everything that is said:\n\
             \n    mosquitto_sub -h {client} -p {port} -v -t 'dtorrent/#'\n\
             \n\
             To pause {name}, to let it go on, and to see what became of the command:\n\
             \n    mosquitto_pub -h {client} -p {port} -n -t {torrent}/command/pause\
             \n    mosquitto_pub -h {client} -p {port} -n -t {torrent}/command/resume\
             \n    mosquitto_sub -h {client} -p {port} -v -t dtorrent/leecher/result\n\
             \n\
             Whether all is well is told at http://{page}/readyz; the configuration in {config}.\n\
             Ctrl-C ends the demo and leaves nothing behind. What happens now:\n",
            name = longest.name,
            config = config.display(),
        )
    }
}

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

/// Prints events as they come over the broker, one a line.
async fn narrate(port: u16) -> anyhow::Result<()> {
    let mut options = MqttOptions::new("dtorrent-demo-narrator", "127.0.0.1", port);
    options.set_max_packet_size(1 << 20, 1 << 20);
    let (client, mut connection) = AsyncClient::new(options, 10);
    for topic in ["dtorrent/bridge/+/status", "dtorrent/+/event/+", "dtorrent/+/torrent/+/event/+"] {
        client.subscribe(topic, QoS::AtLeastOnce).await.context("subscribe")?;
    }
    loop {
        let Event::Incoming(Packet::Publish(message)) = connection.poll().await.context("listen at the broker")? else {
            continue;
        };
        if let Some(line) = line(&message.topic, &message.payload) {
            say(&line)?;
        }
    }
}

/// One line about a message; `None` for what would be too much.
fn line(topic: &str, payload: &[u8]) -> Option<String> {
    if topic.starts_with("dtorrent/bridge/") {
        return Some(format!("         bridge is {}", String::from_utf8_lossy(payload)));
    }
    let event: Value = serde_json::from_slice(payload).ok()?;
    let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let (time, server, kind) = (text("time"), text("server"), text("event_type"));
    let time = time.get(11..19).unwrap_or_default();
    let Some(name) = event["torrent"]["name"].as_str() else {
        return Some(format!("{time} {server} {kind}"));
    };
    let how = match (kind.as_str(), text("cause").as_str()) {
        ("updated", _) => return None,
        (_, "command") => " (by a command)",
        (_, "snapshot") => " (was there)",
        _ => "",
    };
    Some(format!("{time} {server} {kind} {name}{how}"))
}

fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).context("write to the terminal")
}

#[cfg(test)]
mod tests {
    use super::rtorrent::Listen;
    use super::*;

    #[tokio::test]
    async fn data_moves_between_two_rtorrents() {
        let folder = tempfile::tempdir().unwrap();
        let options = rtorrent::Options::default();
        let seeder = Rtorrent::start(&folder.path().join("s"), &options).await.unwrap();
        let tcp = rtorrent::Options { listen: Listen::Tcp, ..options };
        let leecher = Rtorrent::start(&folder.path().join("l"), &tcp).await.unwrap();
        let content = Content::file("a <b> & c.bin", 300_000, 7);
        content.write_to(&seeder.downloads).unwrap();
        let hash = seeder.load(&content.torrent, true).await.unwrap();
        seeder.shows(hash, "d.complete", "1").await.unwrap();
        seeder.shows(hash, "d.name", "a <b> & c.bin").await.unwrap();
        leecher.load(&content.torrent, true).await.unwrap();
        leecher.add_peer(hash, seeder.port).await.unwrap();
        leecher.shows(hash, "d.complete", "1").await.unwrap();
    }

    #[tokio::test]
    async fn a_killed_program_comes_back_at_the_same_place() {
        let folder = tempfile::tempdir().unwrap();
        let mut broker = Mosquitto::start(&folder.path().join("m"), &Default::default()).await.unwrap();
        broker.process().kill().unwrap();
        broker.start_again().await.unwrap();
        let mut client = Rtorrent::start(&folder.path().join("r"), &Default::default()).await.unwrap();
        let hash = client.load(&Content::file("x", 1000, 1).torrent, false).await.unwrap();
        client.act(hash, "d.save_full_session", &[]).await.unwrap();
        client.process().kill().unwrap();
        client.start_again().await.unwrap();
        assert_eq!(client.hashes().await.unwrap(), [hash]);
    }

    #[tokio::test]
    async fn the_demo_downloads_and_leaves_nothing_behind() {
        let stop = CancellationToken::new();
        let mut folder = PathBuf::new();
        run(stop.clone(), async |config: PathBuf, bridge_stop: CancellationToken| {
            let text = std::fs::read_to_string(&config)?;
            folder = config.parent().unwrap().to_owned();
            let table: toml::Table = text.parse()?;
            assert_eq!(table["servers"].as_table().unwrap().len(), 2, "{text}");
            // The smallest file is whole after some seconds.
            let podcast = folder.join("leecher/downloads/podcast-042.ogg");
            let all_is_here =
                || std::fs::read(&podcast).is_ok_and(|bytes| bytes == Content::file("podcast", 400_000, 1).files[0].1);
            let deadline = Instant::now() + process::PATIENCE;
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
