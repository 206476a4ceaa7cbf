//! An rTorrent of our own, and just enough of its RPC to drive it from the outside.
//!
//! Not the adapter: what the bridge is made of must not be what it is judged by.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::process::{Process, find, free_port};
use crate::model::{InfoHash, Metainfo};

/// Where it listens for RPC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listen {
    #[default]
    Unix,
    Tcp,
}

#[derive(Clone, Debug, Default)]
pub struct Options {
    pub listen: Listen,
    /// KiB per second, 0 for no limit.
    pub download_limit: u32,
    pub upload_limit: u32,
    /// More lines for its rc file.
    pub lines: Vec<String>,
}

/// The address of its RPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

pub struct Rtorrent {
    pub rpc: Rpc,
    /// New downloads go here.
    pub downloads: PathBuf,
    /// For peers.
    pub port: u16,
    program: PathBuf,
    rc: PathBuf,
    log: PathBuf,
    process: Process,
}

impl Rtorrent {
    /// Starts one that keeps its files in `folder`, and waits until it answers.
    pub async fn start(folder: &Path, options: &Options) -> anyhow::Result<Self> {
        let program = find("rtorrent", "rtorrent")?;
        let Options { listen, download_limit, upload_limit, lines } = options;
        let (session, downloads) = (folder.join("session"), folder.join("downloads"));
        for folder in [&session, &downloads] {
            std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        let port = free_port()?;
        let (address, scgi) = match listen {
            Listen::Unix => {
                let socket = folder.join("rpc.sock");
                let line = format!("network.scgi.open_local = \"{}\"", socket.display());
                (Address::Unix(socket), line)
            }
            Listen::Tcp => {
                let address = SocketAddr::from(([127, 0, 0, 1], free_port()?));
                (Address::Tcp(address), format!("network.scgi.open_port = \"{address}\""))
            }
        };
        // The DHT is off but not disabled: disabled, this version refuses torrents without a tracker.
        let mut text = format!(
            "system.daemon.set = true\n\
             directory.default.set = \"{}\"\n\
             session.path.set = \"{}\"\n\
             network.bind_address.set = 127.0.0.1\n\
             network.port_range.set = {port}-{port}\n\
             network.port_random.set = no\n\
             network.max_open_files.set = 64\n\
             network.http.max_open.set = 8\n\
             dht.mode.set = off\n\
             dht.port.set = {port}\n\
             protocol.pex.set = no\n\
             trackers.use_udp.set = no\n\
             throttle.global_down.max_rate.set_kb = {download_limit}\n\
             throttle.global_up.max_rate.set_kb = {upload_limit}\n",
            downloads.display(),
            session.display(),
        );
        for line in lines.iter().chain([&scgi]) {
            writeln!(text, "{line}").context("write to a string")?;
        }
        let rc = folder.join("rtorrent.rc");
        std::fs::write(&rc, text).context("write rtorrent.rc")?;
        let log = folder.join("rtorrent.log");
        let rpc = Rpc { address };
        let process = launch(&program, &rc, &log, &rpc).await?;
        Ok(Self { rpc, downloads, port, program, rc, log, process })
    }

    /// The address as the bridge's configuration wants it.
    pub fn url(&self) -> String {
        match &self.rpc.address {
            Address::Unix(socket) => format!("unix://{}", socket.display()),
            Address::Tcp(address) => format!("scgi://{address}"),
        }
    }

    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Starts it again at the same address with the same session, after it was killed or has ended.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process = launch(&self.program, &self.rc, &self.log, &self.rpc).await?;
        Ok(())
    }

    /// Loads a .torrent file and waits until it is listed.
    pub async fn load(&self, torrent: &[u8], start: bool) -> anyhow::Result<InfoHash> {
        self.load_into(torrent, start, None).await
    }

    /// The same, with its content in `directory`.
    pub async fn load_into(&self, torrent: &[u8], start: bool, directory: Option<&Path>) -> anyhow::Result<InfoHash> {
        let hash = Metainfo::parse(torrent)?.client_hash();
        let into = directory.map(|directory| format!("d.directory.set=\"{}\"", directory.display()));
        let mut arguments = vec![Argument::Text(""), Argument::Bytes(torrent)];
        arguments.extend(into.as_deref().map(Argument::Text));
        self.rpc.call(if start { "load.raw_start" } else { "load.raw" }, &arguments).await?;
        self.until(&format!("{hash} to be loaded"), async || Ok(self.hashes().await?.contains(&hash))).await?;
        Ok(hash)
    }

    /// All torrents that it has.
    pub async fn hashes(&self) -> anyhow::Result<Vec<InfoHash>> {
        let hashes = self.rpc.call("download_list", &[Argument::Text("")]).await?;
        hashes.iter().map(|hash| Ok(hash.parse()?)).collect()
    }

    /// Asks one value of one torrent: `d.name`, `d.complete` …
    pub async fn get(&self, hash: InfoHash, what: &str) -> anyhow::Result<String> {
        let mut values = self.rpc.call(what, &[Argument::Text(&rpc_hash(hash))]).await?;
        values.pop().with_context(|| format!("{what} answers nothing"))
    }

    /// Does something to one torrent: `d.stop`, `d.erase` …
    pub async fn act(&self, hash: InfoHash, what: &str, arguments: &[Argument<'_>]) -> anyhow::Result<()> {
        let hash = rpc_hash(hash);
        let all: Vec<_> = [Argument::Text(&hash)].into_iter().chain(arguments.iter().copied()).collect();
        self.rpc.call(what, &all).await?;
        Ok(())
    }

    /// Tells it where a peer is.
    pub async fn add_peer(&self, hash: InfoHash, port: u16) -> anyhow::Result<()> {
        self.act(hash, "add_peer", &[Argument::Text(&format!("127.0.0.1:{port}"))]).await
    }

    /// Waits until a value of a torrent is this one.
    pub async fn shows(&self, hash: InfoHash, what: &str, value: &str) -> anyhow::Result<()> {
        let wanted = format!("{what} of {hash} to be {value}");
        self.until(&wanted, async || Ok(self.get(hash, what).await? == value)).await
    }

    /// Waits until `condition` holds; an error of it means not yet.
    pub async fn until(
        &self,
        wanted: &str,
        mut condition: impl AsyncFnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + super::process::PATIENCE;
        loop {
            let last = match condition().await {
                Ok(true) => return Ok(()),
                Ok(false) => "not so yet".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            ensure!(tokio::time::Instant::now() < deadline, "waited for {wanted} in vain: {last}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn launch(program: &Path, rc: &Path, log: &Path, rpc: &Rpc) -> anyhow::Result<Process> {
    let import = format!("import={}", rc.display());
    let mut process = Process::start_with(program, &["-n", "-o", &import], &[("TERM", "dumb")], log)?;
    process.ready(async || rpc.call("system.pid", &[]).await.is_ok()).await?;
    Ok(process)
}

/// A hash as rTorrent writes it.
pub fn rpc_hash(hash: InfoHash) -> String {
    hash.to_string().to_uppercase()
}

/// An argument of a call.
#[derive(Clone, Copy, Debug)]
pub enum Argument<'a> {
    /// Plain text without characters that XML or rTorrent cannot take.
    Text(&'a str),
    Bytes(&'a [u8]),
}

/// XML-RPC over SCGI, one connection a call.
#[derive(Clone, Debug)]
pub struct Rpc {
    pub address: Address,
}

impl Rpc {
    /// Calls a method; all plain values of the answer, in the order in which they stand.
    pub async fn call(&self, method: &str, arguments: &[Argument<'_>]) -> anyhow::Result<Vec<String>> {
        let mut body = format!("<?xml version=\"1.0\"?><methodCall><methodName>{method}</methodName><params>");
        for argument in arguments {
            let value = match argument {
                Argument::Text(text) => {
                    format!("<string>{}</string>", text.replace('&', "&amp;").replace('<', "&lt;"))
                }
                Argument::Bytes(bytes) => {
                    format!("<base64>{}</base64>", base64::engine::general_purpose::STANDARD.encode(bytes))
                }
            };
            write!(body, "<param><value>{value}</value></param>").context("write to a string")?;
        }
        body.push_str("</params></methodCall>");
        let headers = format!("CONTENT_LENGTH\0{}\0SCGI\x001\0", body.len());
        let request = format!("{}:{headers},{body}", headers.len());
        let exchange = async {
            match &self.address {
                Address::Unix(socket) => exchange(UnixStream::connect(socket).await?, request.as_bytes()).await,
                Address::Tcp(address) => exchange(TcpStream::connect(address).await?, request.as_bytes()).await,
            }
        };
        let answer = tokio::time::timeout(Duration::from_secs(10), exchange).await;
        let answer = answer.context("rTorrent does not answer")?.context("ask rTorrent")?;
        ensure!(memmem::find(&answer, b"</methodResponse>").is_some(), "{method}: the answer is not whole");
        let values = values(&answer);
        if memmem::find(&answer, b"<fault>").is_some() {
            bail!("{method}: {}", values.join(" "));
        }
        Ok(values)
    }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

/// The texts of all plain values.
fn values(answer: &[u8]) -> Vec<String> {
    let mut values = Vec::new();
    let mut rest = answer;
    while let Some(start) = memmem::find(rest, b"<value><") {
        rest = &rest[start + b"<value><".len()..];
        let Some(end) = rest.iter().position(|byte| *byte == b'>') else { break };
        let (tag, after) = (&rest[..end], &rest[end + 1..]);
        match tag {
            b"string/" => values.push(String::new()),
            b"string" | b"i4" | b"i8" | b"int" | b"boolean" => {
                let close = memmem::find(after, b"</").unwrap_or(after.len());
                let text = String::from_utf8_lossy(&after[..close]);
                values.push(text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"));
            }
            _ => {} // an array or a struct: its values follow
        }
        rest = after;
    }
    values
}
