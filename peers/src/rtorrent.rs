//! An rTorrent on a loopback port or a Unix socket, and a client for just enough of its RPC to control it.

use std::fmt::Write as _;
use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use memchr::memmem;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::InfoHash;
use crate::process::{Process, TIMEOUT, find, free_port};

/// Where rTorrent listens for RPC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listen {
    /// On a Unix socket in its folder.
    #[default]
    Unix,
    /// On a TCP port of 127.0.0.1.
    Tcp,
}

/// Configuration of an rTorrent.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where it listens for RPC.
    pub listen: Listen,
    /// Global limit in KiB per second; 0 is unlimited.
    pub download_limit: u32,
    /// Global limit in KiB per second; 0 is unlimited.
    pub upload_limit: u32,
    /// Further lines of rtorrent.rc.
    pub lines: Vec<String>,
    /// The command that runs it with other rights; it has to replace itself by rTorrent. Empty for none.
    pub launcher: Vec<String>,
}

/// The address of an RPC listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// The path of a Unix socket.
    Unix(PathBuf),
    /// A loopback address.
    Tcp(SocketAddr),
}

/// A running rTorrent. Dropping it kills it; its files stay.
pub struct Rtorrent {
    /// The client of its RPC.
    pub rpc: Rpc,
    /// The default directory of new downloads.
    pub downloads: PathBuf,
    /// The port for peers, on 127.0.0.1.
    pub port: u16,
    /// The launcher, if there is one, and the program.
    command: Vec<String>,
    rc: PathBuf,
    log: PathBuf,
    process: Process,
}

impl Rtorrent {
    /// Starts an rTorrent that keeps its session, downloads and log in `folder`, and waits until it answers.
    pub async fn start(folder: &Path, options: &Options) -> anyhow::Result<Self> {
        let program = find("rtorrent", "rtorrent")?;
        let Options { listen, download_limit, upload_limit, lines, launcher } = options;
        let program = program.to_string_lossy().into_owned();
        let command: Vec<String> = launcher.iter().cloned().chain([program]).collect();
        let (session, downloads) = (folder.join("session"), folder.join("downloads"));
        for folder in [&session, &downloads] {
            std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        if !launcher.is_empty() {
            // The launcher may take the rights of the user who has made them.
            for folder in [folder, &session, &downloads] {
                std::fs::set_permissions(folder, Permissions::from_mode(0o777)).context("open a folder to others")?;
            }
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
        // `dht.mode` is `off`, not `disable`: with the latter rTorrent 0.9.8 refuses torrents without a tracker.
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
        let process = launch(&command, &rc, &log, &rpc).await?;
        Ok(Self { rpc, downloads, port, command, rc, log, process })
    }

    /// Returns the RPC address as a `url` of dtorrent's config.
    pub fn url(&self) -> String {
        match &self.rpc.address {
            Address::Unix(socket) => format!("unix://{}", socket.display()),
            Address::Tcp(address) => format!("scgi://{address}"),
        }
    }

    /// Returns the process, to signal or kill it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Starts rTorrent again at the same address with the same session. Kills it first if it runs.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process = launch(&self.command, &self.rc, &self.log, &self.rpc).await?;
        Ok(())
    }

    /// Loads a .torrent file and waits until rTorrent lists it.
    pub async fn load(&self, torrent: &[u8], start: bool) -> anyhow::Result<InfoHash> {
        self.load_into(torrent, start, None).await
    }

    /// Loads a .torrent file whose data is, or is to be, in `directory`.
    pub async fn load_into(&self, torrent: &[u8], start: bool, directory: Option<&Path>) -> anyhow::Result<InfoHash> {
        let hash = InfoHash::of_torrent(torrent)?;
        let into = directory.map(|directory| format!("d.directory.set=\"{}\"", directory.display()));
        let mut arguments = vec![Argument::Text(""), Argument::Bytes(torrent)];
        arguments.extend(into.as_deref().map(Argument::Text));
        self.rpc.call(if start { "load.raw_start" } else { "load.raw" }, &arguments).await?;
        self.wait_until(&format!("{hash} to be loaded"), async || Ok(self.hashes().await?.contains(&hash))).await?;
        Ok(hash)
    }

    /// Returns the hashes of all torrents.
    pub async fn hashes(&self) -> anyhow::Result<Vec<InfoHash>> {
        let hashes = self.rpc.call("download_list", &[Argument::Text("")]).await?;
        hashes.iter().map(|hash| hash.parse()).collect()
    }

    /// Returns the answer of a getter of one torrent, such as `d.name` or `d.complete`.
    pub async fn get(&self, hash: InfoHash, getter: &str) -> anyhow::Result<String> {
        let mut values = self.rpc.call(getter, &[Argument::Text(&hash.to_rpc())]).await?;
        values.pop().with_context(|| format!("{getter} returned no value"))
    }

    /// Calls a command on one torrent, such as `d.stop` or `d.erase`.
    pub async fn act(&self, hash: InfoHash, command: &str, arguments: &[Argument<'_>]) -> anyhow::Result<()> {
        let hash = hash.to_rpc();
        let all: Vec<_> = [Argument::Text(&hash)].into_iter().chain(arguments.iter().copied()).collect();
        self.rpc.call(command, &all).await?;
        Ok(())
    }

    /// Makes rTorrent connect to a peer on this machine.
    pub async fn add_peer(&self, hash: InfoHash, port: u16) -> anyhow::Result<()> {
        self.act(hash, "add_peer", &[Argument::Text(&format!("127.0.0.1:{port}"))]).await
    }

    /// Waits until a getter of one torrent returns `value`.
    pub async fn wait_for(&self, hash: InfoHash, getter: &str, value: &str) -> anyhow::Result<()> {
        let wanted = format!("{getter} of {hash} to be {value}");
        self.wait_until(&wanted, async || Ok(self.get(hash, getter).await? == value)).await
    }

    /// Waits until `condition` returns true. An error counts as false.
    ///
    /// # Errors
    /// The condition does not hold within [`TIMEOUT`]; the message names `wanted` and the last error.
    pub async fn wait_until(
        &self,
        wanted: &str,
        mut condition: impl AsyncFnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let deadline = tokio::time::Instant::now() + TIMEOUT;
        loop {
            let last = match condition().await {
                Ok(true) => return Ok(()),
                Ok(false) => "it does not hold".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            ensure!(tokio::time::Instant::now() < deadline, "timed out waiting for {wanted}: {last}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn launch(command: &[String], rc: &Path, log: &Path, rpc: &Rpc) -> anyhow::Result<Process> {
    let import = format!("import={}", rc.display());
    let words: Vec<&str> = command.iter().map(String::as_str).chain(["-n", "-o", &import]).collect();
    let mut process = Process::start_with(Path::new(words[0]), &words[1..], &[("TERM", "dumb")], log)?;
    process.wait_until_ready(async || rpc.call("system.pid", &[]).await.is_ok()).await?;
    Ok(process)
}

/// An argument of an RPC call.
#[derive(Clone, Copy, Debug)]
pub enum Argument<'a> {
    /// A string, without control characters: XML cannot represent them.
    Text(&'a str),
    /// Binary data, sent as base64.
    Bytes(&'a [u8]),
}

/// A client for XML-RPC over SCGI. Each call has a connection of its own.
#[derive(Clone, Debug)]
pub struct Rpc {
    /// Where rTorrent listens.
    pub address: Address,
}

impl Rpc {
    /// Calls a method and returns the scalar values of the answer in document order, arrays and structs flattened.
    ///
    /// # Errors
    /// The answer is a fault, is incomplete, or does not come within ten seconds.
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
        let answer = answer.context("rTorrent does not answer")?.context("exchange with rTorrent")?;
        ensure!(memmem::find(&answer, b"</methodResponse>").is_some(), "{method}: the answer is incomplete");
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

/// Returns the texts of all scalar values.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::Content;
    use crate::mosquitto::Mosquitto;

    #[tokio::test]
    async fn data_moves_between_two_rtorrents() {
        let folder = tempfile::tempdir().unwrap();
        let options = Options::default();
        let seeder = Rtorrent::start(&folder.path().join("s"), &options).await.unwrap();
        let tcp = Options { listen: Listen::Tcp, ..options };
        let leecher = Rtorrent::start(&folder.path().join("l"), &tcp).await.unwrap();
        let content = Content::file("a <b> & c.bin", 300_000, 7);
        content.write_to(&seeder.downloads).unwrap();
        let hash = seeder.load(&content.torrent, true).await.unwrap();
        seeder.wait_for(hash, "d.complete", "1").await.unwrap();
        seeder.wait_for(hash, "d.name", "a <b> & c.bin").await.unwrap();
        leecher.load(&content.torrent, true).await.unwrap();
        leecher.add_peer(hash, seeder.port).await.unwrap();
        leecher.wait_for(hash, "d.complete", "1").await.unwrap();
    }

    #[tokio::test]
    async fn a_killed_program_restarts_at_the_same_address_with_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let mut broker = Mosquitto::start(&folder.path().join("m"), &Default::default()).await.unwrap();
        broker.process().kill().unwrap();
        broker.restart().await.unwrap();
        let mut client = Rtorrent::start(&folder.path().join("r"), &Default::default()).await.unwrap();
        let content = Content::folder("x", &[("a", 1000), ("b/c", 40_000)], 1);
        let hash = client.load(&content.torrent, false).await.unwrap();
        assert_eq!(hash, content.hash);
        client.act(hash, "d.save_full_session", &[]).await.unwrap();
        client.process().kill().unwrap();
        client.restart().await.unwrap();
        assert_eq!(client.hashes().await.unwrap(), [hash]);
    }
}
