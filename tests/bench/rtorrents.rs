//! Two real rTorrents on loopback: one has thousands of torrents, the other seeds some of them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use dtorrent::model::MetainfoBuilder;
use dtorrent_peers::InfoHash;
use dtorrent_peers::process::find;
use dtorrent_peers::rtorrent::{Address, Argument, Options, Rpc, Rtorrent};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::programs::TIMEOUT;

const PIECE_BYTES: u32 = 32 * 1024;
/// Size of each moving torrent, enough that none finishes during a measurement.
const MOVING_BYTES: u64 = 24 << 20;
/// Rate limit of each moving torrent.
const MOVING_KIB_PER_SECOND: u32 = 20;

/// An rTorrent with many seeding torrents without peers, and some that really download.
pub struct RtorrentPair {
    pub home: Rtorrent,
    moving: Vec<InfoHash>,
    _feeder: Option<Rtorrent>,
}

impl RtorrentPair {
    pub async fn start(folder: &Path, resting: usize, moving: usize) -> anyhow::Result<Self> {
        // More open files than the demo needs; each torrent has one.
        let lines = [
            "network.max_open_files.set = 4000",
            "network.xmlrpc.size_limit.set = 16M",
            "pieces.hash.on_completion.set = no",
        ];
        let lines: Vec<String> = lines.map(str::to_owned).to_vec();
        let slow = Options {
            download_limit: MOVING_KIB_PER_SECOND * u32::try_from(moving)?,
            lines: lines.clone(),
            ..Options::default()
        };
        let home = Rtorrent::start(&folder.join("home"), &slow).await?;
        load_resting(&home, resting).await?;
        let mut pair = Self { home, moving: Vec::new(), _feeder: None };
        if moving > 0 {
            let feeder = Rtorrent::start(&folder.join("feeder"), &Options { lines, ..Options::default() }).await?;
            pair.moving = feed(&feeder, &pair.home, moving).await?;
            pair._feeder = Some(feeder);
        }
        Ok(pair)
    }

    pub fn pid(&mut self) -> u32 {
        self.home.process().pid()
    }

    /// Returns the number of torrents that are receiving.
    pub async fn receiving(&self) -> anyhow::Result<usize> {
        let arguments = ["", "main", "d.down.rate="].map(Argument::Text);
        let rates = self.home.rpc.call("d.multicall2", &arguments).await?;
        Ok(rates.iter().filter(|rate| *rate != "0").count())
    }

    /// Stops all transfers.
    pub async fn rest(&self) -> anyhow::Result<()> {
        for hash in &self.moving {
            self.home.act(*hash, "d.stop", &[]).await?;
            self.home.act(*hash, "d.close", &[]).await?;
        }
        // A rate is an average over about half a minute, also for a stopped torrent.
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let receiving = self.receiving().await?;
            if receiving == 0 {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{receiving} torrents have a rate long after they were stopped");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

/// Creates the content of all torrents: one file with many hard links.
async fn load_resting(home: &Rtorrent, count: usize) -> anyhow::Result<()> {
    let content = vec![b'x'; 1_000];
    let file = home.downloads.join("content");
    std::fs::write(&file, &content)?;
    for number in 0..count {
        let name = format!("Some.Show.S{:02}E{:02}.1080p.WEB.{number}.mkv", number % 20, number % 24);
        // A file system limits the number of links to a file.
        if number % 20_000 == 0 {
            std::fs::write(&file, &content)?;
        }
        std::fs::hard_link(&file, home.downloads.join(&name))?;
        let torrent = MetainfoBuilder::single(name.as_str(), PIECE_BYTES).content(&content).build();
        let label = format!("d.custom1.set={}", ["linux", "tv", "music", ""][number % 4]);
        home.rpc
            .call("load.raw_start", &[Argument::Text(""), Argument::Bytes(&torrent), Argument::Text(&label)])
            .await?;
    }
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let arguments = ["", "main", "d.complete="].map(Argument::Text);
        let complete = home.rpc.call("d.multicall2", &arguments).await?;
        let complete = complete.iter().filter(|complete| *complete == "1").count();
        if complete == count {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "only {complete} of {count} torrents are loaded");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Starts the download of this many torrents, and waits until all are receiving.
async fn feed(feeder: &Rtorrent, home: &Rtorrent, count: usize) -> anyhow::Result<Vec<InfoHash>> {
    let content = vec![0; usize::try_from(MOVING_BYTES)?];
    let mut hashes = Vec::new();
    for number in 0..count {
        let name = format!("moving-{number}.iso");
        let torrent = MetainfoBuilder::single(name.as_str(), PIECE_BYTES).content(&content).build();
        // A sparse file of zeros takes no space on disk.
        std::fs::File::create(feeder.downloads.join(&name))?.set_len(MOVING_BYTES)?;
        for rtorrent in [feeder, home] {
            rtorrent.rpc.call("load.raw_start", &[Argument::Text(""), Argument::Bytes(&torrent)]).await?;
        }
        hashes.push(InfoHash::of_torrent(&torrent)?);
    }
    let deadline = Instant::now() + TIMEOUT;
    for hash in &hashes {
        feeder.wait_for(*hash, "d.complete", "1").await?;
        home.wait_for(*hash, "d.is_active", "1").await?;
        home.add_peer(*hash, feeder.port).await?;
    }
    loop {
        let arguments = ["", "main", "d.down.total="].map(Argument::Text);
        let totals = home.rpc.call("d.multicall2", &arguments).await?;
        let received = totals.iter().filter(|total| *total != "0").count();
        if received >= count {
            return Ok(hashes);
        }
        ensure!(Instant::now() < deadline, "only {received} of {count} torrents receive anything");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// A listing as one call in a `system.multicall`, as in the adapter.
pub fn listing_request(columns: &[&str]) -> Vec<u8> {
    let mut body = "<?xml version=\"1.0\"?><methodCall><methodName>system.multicall</methodName><params><param><value>\
                    <array><data><value><struct><member><name>methodName</name><value><string>d.multicall2</string>\
                    </value></member><member><name>params</name><value><array><data>"
        .to_owned();
    for argument in ["", "main"].iter().chain(columns) {
        let argument = argument.replace('&', "&amp;").replace('<', "&lt;");
        body += &format!("<value><string>{argument}</string></value>");
    }
    body += "</data></array></value></member></struct></value></data></array></value></param></params></methodCall>";
    let header = format!("CONTENT_LENGTH\0{}\0SCGI\x001\0", body.len());
    format!("{}:{header},{body}", header.len()).into_bytes()
}

/// Sends a request and returns the body of the answer.
pub async fn raw_exchange(rpc: &Rpc, request: &[u8]) -> anyhow::Result<Vec<u8>> {
    let Address::Unix(socket) = &rpc.address else { anyhow::bail!("not over a unix socket") };
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let header_bytes = memchr::memmem::find(&answer, b"\r\n\r\n").context("an answer without a header")?;
    ensure!(memchr::memmem::find(&answer, b"</methodResponse>").is_some(), "the answer is not whole");
    ensure!(memchr::memmem::find(&answer, b"faultCode").is_none(), "{}", String::from_utf8_lossy(&answer));
    answer.drain(..header_bytes + 4);
    Ok(answer)
}

/// Returns the names of missing programs, if any.
pub fn programs() -> anyhow::Result<()> {
    find("rtorrent", "rtorrent").context("this needs real programs")?;
    find("mosquitto", "mosquitto").context("this needs real programs")?;
    Ok(())
}
