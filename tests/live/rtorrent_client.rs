//! The rTorrent client against a real rTorrent.
//!
//! Without the program the tests are skipped aloud; `DTORRENT_LIVE=required` makes that an error.
//! `DTORRENT_RTORRENT` names another build to try.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dtorrent::clients::rtorrent::RtorrentClient;
use dtorrent::clients::rtorrent::settings::{Endpoint, ExtraColumn, Settings};
use dtorrent::model::{Action, Add, AddSource, InfoHash, Listing, Parts, ServerName, Status, Torrent};
use dtorrent::port::{Applied, ClientError, TorrentClient as _};
use sha1::{Digest as _, Sha1};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

// --- a server ------------------------------------------------------------------------------------

struct Rtorrent {
    process: Child,
    folder: TempDir,
    endpoint: Endpoint,
}

impl Drop for Rtorrent {
    fn drop(&mut self) {
        let _gone = self.process.kill().is_ok();
        let _reaped = self.process.wait().is_ok();
    }
}

fn program() -> Option<PathBuf> {
    let named = std::env::var_os("DTORRENT_RTORRENT").map_or_else(|| PathBuf::from("rtorrent"), PathBuf::from);
    if Command::new(&named).arg("-h").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok() {
        return Some(named);
    }
    let is_required = std::env::var("DTORRENT_LIVE").is_ok_and(|value| value == "required");
    assert!(!is_required, "{} cannot be started", named.display());
    eprintln!("SKIPPED: {} cannot be started", named.display());
    None
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts an rTorrent and waits until it answers.
fn start_on(listen: &str, endpoint: impl Fn(&Path) -> Endpoint) -> Option<Rtorrent> {
    let program = program()?;
    let folder = tempfile::Builder::new().prefix("rt").tempdir().unwrap();
    let path = folder.path();
    for name in ["session", "downloads"] {
        std::fs::create_dir(path.join(name)).unwrap();
    }
    let port = free_port();
    let config = format!(
        "directory.default.set = {0}/downloads\nsession.path.set = {0}/session\n{1}\n\
         network.port_range.set = {port}-{port}\ndht.mode.set = disable\ntrackers.use_udp.set = no\n\
         network.http.dns_cache_timeout.set = 0\nsystem.daemon.set = true\n",
        path.display(),
        listen.replace("FOLDER", path.to_str().unwrap()),
    );
    // The modern names of what is set above; the old program knows only the old ones.
    let config = if program.ends_with("rtorrent") && std::env::var_os("DTORRENT_RTORRENT").is_some() {
        config
            .replace("network.port_range.set", "network.listen.port.range.set")
            .replace("network.http.dns_cache_timeout.set = 0\n", "")
    } else {
        config
    };
    std::fs::write(path.join("rc"), config).unwrap();
    let process = Command::new(program)
        .args(["-n", "-o", &format!("import={}/rc", path.display())])
        .current_dir(path)
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(path.join("out")).unwrap())
        .stderr(std::fs::File::create(path.join("err")).unwrap())
        .spawn()
        .unwrap();
    let endpoint = endpoint(path);
    let server = Rtorrent { process, folder, endpoint };
    let deadline = Instant::now() + PATIENCE;
    while !server.is_listening() {
        assert!(Instant::now() < deadline, "rTorrent does not listen: {}", server.said());
        std::thread::yield_now();
    }
    Some(server)
}

fn start() -> Option<Rtorrent> {
    start_on("network.scgi.open_local = FOLDER/rpc.sock", |path| Endpoint::Unix(path.join("rpc.sock")))
}

impl Rtorrent {
    fn is_listening(&self) -> bool {
        match &self.endpoint {
            Endpoint::Unix(path) => UnixStream::connect(path).is_ok(),
            Endpoint::Scgi { host, port } => std::net::TcpStream::connect((host.as_str(), *port)).is_ok(),
            Endpoint::Http(_) => true,
        }
    }

    fn said(&self) -> String {
        ["out", "err"].map(|name| std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()).concat()
    }

    fn downloads(&self) -> PathBuf {
        self.folder.path().join("downloads")
    }

    fn settings(&self) -> Settings {
        settings(self.endpoint.clone())
    }

    fn client(&self) -> RtorrentClient {
        RtorrentClient::new(self.settings()).unwrap()
    }

    /// A call of the test's own, past the client: string arguments, the answer as it is.
    fn call(&self, method: &str, arguments: &[&str]) -> String {
        let Endpoint::Unix(path) = &self.endpoint else { panic!("only over the unix socket") };
        let arguments: String =
            arguments.iter().map(|text| format!("<param><value><string>{text}</string></value></param>")).collect();
        let body = format!(
            "<?xml version=\"1.0\"?><methodCall><methodName>{method}</methodName><params>{arguments}</params></methodCall>"
        );
        let header = format!("CONTENT_LENGTH\0{}\0SCGI\x001\0CONTENT_TYPE\0text/xml\0", body.len());
        let mut stream = UnixStream::connect(path).unwrap();
        write!(stream, "{}:{header},{body}", header.len()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

fn settings(endpoint: Endpoint) -> Settings {
    let server = ServerName::parse("home").unwrap();
    Settings {
        server,
        endpoint,
        username: None,
        password: None,
        ca_pem: None,
        timeout: Duration::from_secs(10),
        extra: BTreeMap::new(),
    }
}

/// Lists until the torrents are as wanted.
async fn list_until(client: &RtorrentClient, what: &str, is_so: impl Fn(&Listing) -> bool) -> Listing {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let listing = client.list().await.unwrap();
        if is_so(&listing) {
            return listing;
        }
        assert!(Instant::now() < deadline, "never saw: {what}; last: {:#?}", listing.torrents);
        tokio::task::yield_now().await;
    }
}

// --- torrents ------------------------------------------------------------------------------------

const PIECE: usize = 16384;

/// A .torrent file of one file with this name and content.
fn metafile(name: &[u8], content: &[u8], announce: &str) -> (InfoHash, Bytes) {
    let mut info = format!("d6:lengthi{}e4:name{}:", content.len(), name.len()).into_bytes();
    info.extend_from_slice(name);
    let pieces: Vec<u8> = content.chunks(PIECE).flat_map(|piece| Sha1::digest(piece).to_vec()).collect();
    info.extend_from_slice(format!("12:piece lengthi{PIECE}e6:pieces{}:", pieces.len()).as_bytes());
    info.extend_from_slice(&pieces);
    info.push(b'e');
    let hash = InfoHash::V1(Sha1::digest(&info).into());
    let mut file = format!("d8:announce{}:{announce}4:info", announce.len()).into_bytes();
    file.extend_from_slice(&info);
    file.push(b'e');
    (hash, file.into())
}

/// Nobody answers there.
const TRACKER: &str = "http://127.0.0.1:1/announce";

fn adding(hash: InfoHash, bytes: Bytes, start: bool) -> Add {
    Add { hash, source: AddSource::Torrent(bytes), start, label: None, directory: None, priority: None }
}

fn torrent(listing: &Listing, hash: InfoHash) -> &Torrent {
    &listing.torrents.get(&hash).unwrap_or_else(|| panic!("{hash} is not listed")).torrent
}

// --- listing -------------------------------------------------------------------------------------

#[tokio::test]
async fn an_empty_rtorrent_is_listed_over_the_unix_socket() {
    let Some(server) = start() else { return };
    let listing = server.client().list().await.unwrap();
    assert!(listing.complete && listing.torrents.is_empty());
    assert_eq!(listing.run, Some(server.process.id().to_string()));
    assert!(listing.stats.client.unwrap().starts_with("rTorrent 0."));
    assert_eq!(listing.stats.download_limit, Some(0));
    assert_eq!(listing.stats.download_rate, Some(0));
}
