//! The rTorrent client against a real rTorrent.
//!
//! Without the program the tests are skipped with a message; with `DTORRENT_LIVE=required` they fail.
//! `DTORRENT_RTORRENT` names another build to try.

#![allow(clippy::unwrap_used, reason = "what helps a test fails as loudly as the test")]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dtorrent::clients::rtorrent::RtorrentClient;
use dtorrent::clients::rtorrent::settings::{Endpoint, ExtraColumn, Settings};
use dtorrent::model::{Action, Add, AddSource, Covers, Details, InfoHash, Listing, Parts, ServerName, Status, Torrent};
use dtorrent::port::{Applied, ClientError, Scope, TorrentClient};
use dtorrent_peers::process::{Process, TIMEOUT, find, free_port};
use dtorrent_peers::rtorrent::Address;
use sha1::{Digest as _, Sha1};
use tempfile::TempDir;

use crate::harness::certificates::Certificates;
use crate::harness::nginx::{self, Nginx};
use crate::harness::skip::{are_installed, skip};

/// Interval between two checks of a condition.
const BEAT: Duration = Duration::from_millis(10);

/// Requests one action, and repeats it while the client answers that it is busy, as the engine does.
async fn apply(client: &dyn TorrentClient, action: &Action) -> Result<Applied, ClientError> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match client.apply_one(action).await {
            Err(ClientError::Busy { .. }) if Instant::now() < deadline => tokio::time::sleep(BEAT).await,
            result => return result,
        }
    }
}

/// The torrent itself, without files, trackers and peers.
const TORRENT: Parts = Parts { torrent: true, files: false, trackers: false, peers: false };

async fn get(client: &dyn TorrentClient, hash: InfoHash, parts: Parts) -> Result<Option<Details>, ClientError> {
    client.get_one(hash, parts).await
}

// --- a server ------------------------------------------------------------------------------------

struct Rtorrent {
    process: Process,
    program: PathBuf,
    folder: TempDir,
    endpoint: Endpoint,
}

fn program() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("DTORRENT_RTORRENT") {
        return Some(named.into());
    }
    find("rtorrent", "rtorrent").inspect_err(|missing| skip(&missing.to_string())).ok()
}

/// Starts an rTorrent and waits until it answers.
async fn start_on(listen: &str, endpoint: impl Fn(&Path) -> Endpoint) -> Option<Rtorrent> {
    let program = program()?;
    let folder = tempfile::Builder::new().prefix("rt").tempdir().unwrap();
    let path = folder.path();
    for name in ["session", "downloads"] {
        std::fs::create_dir(path.join(name)).unwrap();
    }
    let port = free_port().unwrap();
    let config = format!(
        "directory.default.set = {0}/downloads\nsession.path.set = {0}/session\n{1}\n\
         network.port_range.set = {port}-{port}\ndht.mode.set = disable\ntrackers.use_udp.set = no\n\
         network.http.dns_cache_timeout.set = 0\nsystem.daemon.set = true\n",
        path.display(),
        listen.replace("FOLDER", path.to_str().unwrap()),
    );
    // The current names of the settings above; old versions know only the old ones.
    let config = if program.ends_with("rtorrent") && std::env::var_os("DTORRENT_RTORRENT").is_some() {
        config
            .replace("network.port_range.set", "network.listen.port.range.set")
            .replace("network.http.dns_cache_timeout.set = 0\n", "")
    } else {
        config
    };
    std::fs::write(path.join("rc"), config).unwrap();
    let endpoint = endpoint(path);
    let process = launch(&program, path, &endpoint).await;
    Some(Rtorrent { process, program, folder, endpoint })
}

/// Starts the program on the files in `folder`, and waits until it listens.
async fn launch(program: &Path, folder: &Path, endpoint: &Endpoint) -> Process {
    let import = format!("import={}/rc", folder.display());
    let arguments = ["-n", "-o", &import];
    let mut process = Process::start_with(program, &arguments, &[("TERM", "dumb")], &folder.join("log")).unwrap();
    let is_listening = async || match endpoint {
        Endpoint::Unix(path) => UnixStream::connect(path).is_ok(),
        Endpoint::Scgi { host, port } => std::net::TcpStream::connect((host.as_str(), *port)).is_ok(),
        _ => true,
    };
    process.wait_until_ready(is_listening).await.unwrap();
    process
}

async fn start() -> Option<Rtorrent> {
    start_on("network.scgi.open_local = FOLDER/rpc.sock", |path| Endpoint::Unix(path.join("rpc.sock"))).await
}

impl Rtorrent {
    fn downloads(&self) -> PathBuf {
        self.folder.path().join("downloads")
    }

    fn settings(&self) -> Settings {
        settings(self.endpoint.clone())
    }

    fn client(&self) -> RtorrentClient {
        RtorrentClient::new(self.settings()).unwrap()
    }

    /// Calls a method directly, with text arguments. Returns the raw answer.
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
        trust: dtorrent::tls::Trust::default(),
        timeout: Duration::from_secs(10),
        extra: BTreeMap::new(),
        rpc: Vec::new(),
    }
}

/// Lists until the torrents satisfy a condition.
async fn list_until(client: &RtorrentClient, what: &str, is_so: impl Fn(&Listing) -> bool) -> Listing {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let listing = client.list(Scope::Full).await.unwrap();
        if is_so(&listing) {
            return listing;
        }
        assert!(Instant::now() < deadline, "never saw: {what}; last: {:#?}", listing.torrents);
        tokio::time::sleep(BEAT).await;
    }
}

// --- torrents ------------------------------------------------------------------------------------

const PIECE: usize = 16384;

/// Returns a .torrent file of one file with this name and content.
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

/// A tracker URL without a server.
const TRACKER: &str = "http://127.0.0.1:1/announce";

fn adding(hash: InfoHash, bytes: Bytes, start: bool) -> Add {
    let mut add = Add::new(hash, AddSource::Torrent(bytes));
    add.start = start;
    add
}

fn torrent(listing: &Listing, hash: InfoHash) -> &Torrent {
    &listing.torrents.get(&hash).unwrap_or_else(|| panic!("{hash} is not listed")).torrent
}

// --- listing -------------------------------------------------------------------------------------

#[tokio::test]
async fn an_empty_rtorrent_is_listed_over_the_unix_socket() {
    let Some(server) = start().await else { return };
    let listing = server.client().list(Scope::Full).await.unwrap();
    assert!(listing.complete && listing.torrents.is_empty());
    assert_eq!(listing.run, Some(server.process.pid().to_string()));
    assert!(listing.stats.client.unwrap().starts_with("rTorrent 0."));
    assert_eq!(listing.stats.download_limit, Some(0));
    assert_eq!(listing.stats.download_rate, Some(0));
}

#[tokio::test]
async fn a_listing_is_the_same_over_tcp_and_through_nginx() {
    let Some(mut server) = start_on_port().await else { return };
    let direct = server.client();
    let (hash, file) = metafile(b"over the wire", &[7; 40_000], TRACKER);
    apply(&direct, &Action::Add(adding(hash, file, false))).await.unwrap();
    let over_tcp = list_until(&direct, "the torrent", |listing| !listing.torrents.is_empty()).await;
    assert!(over_tcp.complete);

    let Some(nginx) = start_nginx(&server, None).await else { return };
    let through_nginx = |path, user: &str| {
        let endpoint = Endpoint::parse(&format!("http://127.0.0.1:{}{path}", nginx.port)).unwrap();
        RtorrentClient::new(with_login(endpoint, user)).unwrap()
    };
    let over_http = through_nginx("/RPC2", nginx::USER).list(Scope::Full).await.unwrap();
    assert_eq!(over_http.torrents, over_tcp.torrents);
    assert_eq!((over_http.complete, over_http.run), (true, over_tcp.run));

    let wrong_user = through_nginx("/RPC2", "unknown").list(Scope::Full).await.unwrap_err();
    assert!(matches!(&wrong_user, ClientError::Unauthorized { .. }), "{wrong_user}");
    let printed = through_nginx("/nothing", nginx::USER).list(Scope::Full).await.unwrap_err().to_string();
    assert!(printed.contains("/RPC2") && !printed.contains(nginx::PASSWORD), "{printed}");
    server.process.kill().unwrap();
    let printed = through_nginx("/RPC2", nginx::USER).list(Scope::Full).await.unwrap_err().to_string();
    assert!(printed.contains("is it running"), "{printed}");
}

async fn start_on_port() -> Option<Rtorrent> {
    let port = free_port().unwrap();
    let listen = format!("network.scgi.open_port = 127.0.0.1:{port}");
    start_on(&listen, |_| Endpoint::Scgi { host: "127.0.0.1".to_owned(), port }).await
}

/// Starts an nginx with a password in front of a server that listens on a port.
async fn start_nginx(server: &Rtorrent, certificates: Option<&Certificates>) -> Option<Nginx> {
    if !are_installed(&[("nginx", "nginx-light"), ("openssl", "openssl")]) {
        return None;
    }
    let Endpoint::Scgi { port, .. } = server.endpoint else { panic!("only for a port") };
    let folder = server.folder.path().join("nginx");
    Some(Nginx::start(&folder, &Address::Tcp(([127, 0, 0, 1], port).into()), certificates).await)
}

fn with_login(endpoint: Endpoint, user: &str) -> Settings {
    let password = Some(nginx::PASSWORD.to_owned().into());
    Settings { username: Some(user.to_owned()), password, ..settings(endpoint) }
}

#[tokio::test]
async fn https_is_trusted_only_through_the_configured_authority() {
    let Some(server) = start_on_port().await else { return };
    if !are_installed(&[("openssl", "openssl")]) {
        return;
    }
    let certificates = Certificates::make(&server.folder.path().join("certificates"));
    let Some(nginx) = start_nginx(&server, Some(&certificates)).await else { return };
    let ca_pem = std::fs::read(&certificates.ca).unwrap();
    let settings = |ca_pem: Option<Vec<u8>>| {
        let trust = dtorrent::tls::Trust { ca_pem, ..dtorrent::tls::Trust::default() };
        let endpoint = Endpoint::parse(&format!("https://127.0.0.1:{}/RPC2", nginx.port)).unwrap();
        Settings { trust, ..with_login(endpoint, nginx::USER) }
    };
    assert!(RtorrentClient::new(settings(Some(ca_pem))).unwrap().list(Scope::Full).await.unwrap().complete);
    let error = RtorrentClient::new(settings(None)).unwrap().list(Scope::Full).await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
    assert!(RtorrentClient::new(settings(Some(b"no certificate".to_vec()))).is_err());
}

#[tokio::test]
async fn names_that_are_not_valid_xml_do_not_break_the_listing() {
    let Some(server) = start().await else { return };
    let client = server.client();
    let names: &[&[u8]] = &[
        b"plain",
        "Ünï ☃".as_bytes(),
        "crab 🦀 name".as_bytes(),
        b"caf\xe9",
        b"esc\x1b[31m\x01",
        b"ctrl\x01 and \xff",
        b"<b>&amp; \"q\" 'a' &nope; ]]> &",
        b"carriage\rreturn\r\nfeed",
        b" blanks ",
    ];
    let mut hashes = Vec::new();
    for (place, name) in names.iter().enumerate() {
        let (hash, file) = metafile(name, &[place as u8; 100], TRACKER);
        apply(&client, &Action::Add(adding(hash, file, false))).await.unwrap();
        hashes.push(hash);
    }
    let listing = list_until(&client, "all names", |listing| listing.torrents.len() == names.len()).await;
    assert!(listing.complete);
    let name = |place: usize| torrent(&listing, hashes[place]).name.as_str();
    assert_eq!(name(0), "plain");
    assert_eq!(name(1), "Ünï ☃");
    assert!(name(2).starts_with("crab ") && name(2).ends_with(" name"));
    assert!(name(3).starts_with("caf"));
    assert_eq!(name(4), "esc\u{1b}[31m\u{1}");
    assert_eq!(name(6), "<b>&amp; \"q\" 'a' &nope; ]]> &");
    assert!(name(7).starts_with("carriage") && name(7).ends_with("feed"));
    assert_eq!(name(8), " blanks ");
    for hash in hashes {
        let details = get(&client, hash, Parts { files: true, ..TORRENT }).await.unwrap().unwrap();
        assert_eq!(details.observed.as_ref(), Some(&listing.torrents[&hash]));
        assert_eq!(details.files.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn extra_columns_are_read_and_unknown_ones_are_null() {
    let Some(server) = start().await else { return };
    let mut settings = server.settings();
    for (name, column) in [
        ("throttle", "d.throttle_name="),
        ("ratio", "d.ratio="),
        ("tag", "d.custom=my-tag"),
        ("fork", "d.down.sequential="),
    ] {
        settings.extra.insert(name.into(), ExtraColumn::parse(column).unwrap());
    }
    let client = RtorrentClient::new(settings).unwrap();
    let (hash, file) = metafile(b"extra", &[1; 10], TRACKER);
    apply(&client, &Action::Add(adding(hash, file, false))).await.unwrap();
    server.call("d.custom.set", &[&hash.to_string(), "my-tag", "blue &amp; red"]);
    let listing = client.list(Scope::Full).await.unwrap();
    let extra = serde_json::to_string(&torrent(&listing, hash).extra).unwrap();
    assert_eq!(extra, r#"{"fork":null,"ratio":0,"tag":"blue & red","throttle":""}"#);
    let details = get(&client, hash, TORRENT).await.unwrap().unwrap();
    assert_eq!(details.observed.unwrap().torrent.extra, torrent(&listing, hash).extra);
}

#[tokio::test]
async fn rule_9_a_restarted_rtorrent_is_another_run_and_its_torrents_are_loaded_again() {
    let Some(mut server) = start().await else { return };
    let client = server.client();
    let (hash, file) = metafile(b"stays", &[1; 10], TRACKER);
    apply(&client, &Action::Add(adding(hash, file, false))).await.unwrap();
    let before = client.list(Scope::Full).await.unwrap();
    // Current versions write the session on a separate thread.
    let session = server.folder.path().join(format!("session/{}.torrent.rtorrent", hash.to_string().to_uppercase()));
    let deadline = Instant::now() + TIMEOUT;
    while !std::fs::read(&session).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains("addtime")) {
        assert!(Instant::now() < deadline, "the session is never written");
        tokio::time::sleep(BEAT).await;
    }

    server.restart().await;
    let after = list_until(&client, "the session", |listing| !listing.torrents.is_empty()).await;
    assert_ne!(after.run, before.run);
    assert_ne!(after.torrents[&hash].facts.load, before.torrents[&hash].facts.load);
    assert_eq!(after.torrents[&hash].torrent.tracker.as_deref(), Some("127.0.0.1"));
    assert!(after.torrents[&hash].torrent.added_at.is_some(), "the time of adding outlives a restart");
    assert_eq!(after.torrents[&hash].torrent.added_at, before.torrents[&hash].torrent.added_at);
}

impl Rtorrent {
    /// Kills rTorrent, and starts it again with the same session.
    async fn restart(&mut self) {
        self.process.kill().unwrap();
        for name in ["rtorrent.lock", "session/rtorrent.lock"] {
            let _absent = std::fs::remove_file(self.folder.path().join(name)).is_err();
        }
        self.process = launch(&self.program, self.folder.path(), &self.endpoint).await;
    }
}

// --- commands ------------------------------------------------------------------------------------

/// Adds and starts a torrent with its content in place, so that it seeds.
async fn seeding(server: &Rtorrent, client: &RtorrentClient, name: &str, content: &[u8]) -> InfoHash {
    std::fs::write(server.downloads().join(name), content).unwrap();
    let (hash, file) = metafile(name.as_bytes(), content, TRACKER);
    apply(client, &Action::Add(adding(hash, file, true))).await.unwrap();
    status_is(client, hash, Status::Seeding).await;
    hash
}

async fn status_is(client: &RtorrentClient, hash: InfoHash, status: Status) -> Listing {
    list_until(client, status.as_str(), |listing| {
        listing.torrents.get(&hash).is_some_and(|observed| observed.torrent.status == status)
    })
    .await
}

#[tokio::test]
async fn each_life_cycle_event_of_a_torrent_arrives_in_order() {
    let Some(server) = start().await else { return };
    let client = RtorrentClient::new(Settings { timeout: Duration::from_secs(15), ..server.settings() }).unwrap();
    let hash = seeding(&server, &client, "life cycle", &[3; 100_000]).await;
    let listing = client.list(Scope::Full).await.unwrap();
    let seen = torrent(&listing, hash);
    assert!(seen.finished && seen.active && !seen.playing, "{seen:#?}");
    assert_eq!((seen.length, seen.downloaded, seen.progress, seen.left), (100_000, 100_000, 100.0, Some(0)));
    assert_eq!((seen.ratio, seen.size_files, seen.tracker.as_deref()), (Some(0.0), Some(1), Some("127.0.0.1")));
    assert_eq!(seen.directory.as_deref(), server.downloads().to_str());
    assert!(seen.added_at.is_some() && seen.started_at.is_some(), "{seen:#?}");
    assert!(listing.stats.free_disk.is_some_and(|free| free > 0), "{:?}", listing.stats);

    apply(&client, &Action::Pause(hash)).await.unwrap();
    status_is(&client, hash, Status::Paused).await;
    apply(&client, &Action::Pause(hash)).await.unwrap();
    apply(&client, &Action::Resume(hash)).await.unwrap();
    status_is(&client, hash, Status::Seeding).await;
    apply(&client, &Action::Stop(hash)).await.unwrap();
    let stopped = status_is(&client, hash, Status::Stopped).await;
    assert!(torrent(&stopped, hash).finished && !torrent(&stopped, hash).active);
    let refused = apply(&client, &Action::Pause(hash)).await.unwrap_err();
    assert!(matches!(&refused, ClientError::Precondition { reason } if reason.contains("stopped")), "{refused}");
    let refused = apply(&client, &Action::Announce(hash)).await.unwrap_err();
    assert!(matches!(&refused, ClientError::Precondition { .. }), "{refused}");
    apply(&client, &Action::Start(hash)).await.unwrap();
    status_is(&client, hash, Status::Seeding).await;

    apply(&client, &Action::Delete(hash)).await.unwrap();
    list_until(&client, "its end", |listing| listing.complete && listing.torrents.is_empty()).await;
    assert!(server.downloads().join("life cycle").try_exists().unwrap(), "its data stays");
    for action in [Action::Pause(hash), Action::Delete(hash), Action::Label(hash, "x".to_owned())] {
        let error = apply(&client, &action).await.unwrap_err();
        assert!(matches!(error, ClientError::UnknownHash(unknown) if unknown == hash), "{error}");
    }
    assert_eq!(get(&client, hash, TORRENT).await.unwrap(), None);
    assert_eq!(get(&client, hash, Parts::default()).await.unwrap(), None, "no part is needed to see that");
}

#[tokio::test]
async fn a_closed_torrent_in_run_mode_is_started_again() {
    let Some(server) = start().await else { return };
    let client = server.client();
    let hash = seeding(&server, &client, "closed", &[3; 1000]).await;
    server.call("d.close", &[&hash.to_string()]);
    status_is(&client, hash, Status::Queued).await;
    apply(&client, &Action::Start(hash)).await.unwrap();
    status_is(&client, hash, Status::Seeding).await;
}

#[tokio::test]
async fn a_recheck_is_seen_and_leaves_a_paused_torrent_paused() {
    let Some(server) = start().await else { return };
    let client = server.client();
    let hash = seeding(&server, &client, "checked", &[3; 1_000_000]).await;
    assert_eq!(apply(&client, &Action::Recheck(hash)).await.unwrap(), Applied::Seen);
    status_is(&client, hash, Status::Seeding).await;
    apply(&client, &Action::Pause(hash)).await.unwrap();
    status_is(&client, hash, Status::Paused).await;
    assert_eq!(apply(&client, &Action::Recheck(hash)).await.unwrap(), Applied::Seen);
    status_is(&client, hash, Status::Paused).await;
    let answer = server.call("d.state", &[&hash.to_string()]);
    assert!(answer.contains("<i8>1</i8>"), "still wants to run: {answer}");
}

#[tokio::test]
async fn rule_3_a_torrent_is_not_stopped_during_a_hash_check() {
    let Some(server) = start().await else { return };
    let is_legacy = server.call("system.api_version", &[""]).contains("<string>10<");
    // On a busy machine the check takes longer, and so does the action that waits for it.
    let client = RtorrentClient::new(Settings { timeout: TIMEOUT, ..server.settings() }).unwrap();
    let hash = checked_at_length(&server, &client).await;
    if is_legacy {
        a_stop_is_refused(&client, hash).await;
    }
    apply(&client, &Action::Stop(hash)).await.unwrap();
    status_is(&client, hash, Status::Stopped).await;
}

#[tokio::test]
async fn a_torrent_in_a_hash_check_is_paused_after_it() {
    let Some(server) = start().await else { return };
    let client = server.client();
    let hash = checked_at_length(&server, &client).await;
    apply(&client, &Action::Pause(hash)).await.unwrap();
    status_is(&client, hash, Status::Paused).await;
}

/// Adds a torrent in run mode with a long hash check.
async fn checked_at_length(server: &Rtorrent, client: &RtorrentClient) -> InfoHash {
    // A sparse file, large enough for a long check.
    const PIECES: usize = 65_536;
    let content = std::fs::File::create(server.downloads().join("large")).unwrap();
    content.set_len((PIECES * PIECE) as u64).unwrap();
    let (hash, file) = metafile_of_pieces(b"large", PIECES, Sha1::digest([0; PIECE]).into());
    apply(client, &Action::Add(adding(hash, file, true))).await.unwrap();
    // The check on load is quick; a requested one reads all data.
    list_until(client, "the first check", |listing| listing.torrents[&hash].torrent.active).await;
    assert_eq!(apply(client, &Action::Recheck(hash)).await.unwrap(), Applied::Seen);
    hash
}

#[tokio::test]
async fn a_held_torrent_that_waits_for_its_check_goes_on_after_a_release() {
    let Some(server) = start().await else { return };
    let client = RtorrentClient::new(Settings { timeout: TIMEOUT, ..server.settings() }).unwrap();
    let waiting = seeding(&server, &client, "waiting", &[3; 1000]).await;
    checked_at_length(&server, &client).await;
    apply(&client, &Action::Hold(waiting)).await.unwrap();
    server.call("d.check_hash", &[&waiting.to_string()]);
    status_is(&client, waiting, Status::Checking).await;
    apply(&client, &Action::Release(waiting)).await.unwrap();
    status_is(&client, waiting, Status::Seeding).await;
}

/// Requests checks until one is running: on a busy machine it may end before the next request.
async fn a_stop_is_refused(client: &dyn TorrentClient, hash: InfoHash) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match client.apply_one(&Action::Stop(hash)).await {
            Err(ClientError::Busy { reason }) if reason.contains("check") => return,
            Ok(_) => {
                apply(client, &Action::Start(hash)).await.unwrap();
                apply(client, &Action::Recheck(hash)).await.unwrap();
            }
            Err(other) => panic!("{other}"),
        }
        assert!(Instant::now() < deadline, "it is not refused");
    }
}

#[tokio::test]
async fn rule_4_an_old_rtorrent_survives_a_storm_of_announces() {
    let Some(server) = start().await else { return };
    let is_legacy = server.call("system.api_version", &[""]).contains("<string>10<");
    let hasty = RtorrentClient::new(Settings { timeout: Duration::from_secs(2), ..server.settings() }).unwrap();
    let hash = seeding(&server, &hasty, "storm", &[3; 1000]).await;
    let mut refused = 0;
    for _ in 0..6 {
        match (&hasty as &dyn TorrentClient).apply_one(&Action::Announce(hash)).await {
            Ok(applied) => assert_eq!(applied, Applied::Seen),
            Err(ClientError::Busy { reason }) => {
                assert!(reason.contains("ten seconds"), "{reason}");
                refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(refused, if is_legacy { 3 } else { 0 });
    assert!(hasty.list(Scope::Full).await.unwrap().complete);
}

#[tokio::test]
async fn rule_7_a_label_round_trips_as_text() {
    let Some(server) = start().await else { return };
    let client = server.client();
    let (hash, file) = metafile(b"labelled", &[1; 10], TRACKER);
    apply(&client, &Action::Add(adding(hash, file, false))).await.unwrap();
    let proof = server.folder.path().join("executed");
    let evil = format!("$execute.nothrow=touch,{}", proof.display());
    for label in ["linux", "a, b; \"c\" \\ <&>", "Ünï ☃", "crab 🦀", "50% off", "100%41", "", evil.as_str()] {
        apply(&client, &Action::Label(hash, label.to_owned())).await.unwrap();
        let listing = client.list(Scope::Full).await.unwrap();
        assert_eq!(torrent(&listing, hash).label.as_deref(), Some(label));
    }
    assert!(!proof.try_exists().unwrap());
}

#[tokio::test]
async fn rule_10_a_priority_outside_its_range_is_not_sent() {
    let Some(server) = start().await else { return };
    let client = server.client();
    let (hash, file) = metafile(b"important", &[1; 10], TRACKER);
    apply(&client, &Action::Add(adding(hash, file, false))).await.unwrap();
    for priority in 0..=3 {
        apply(&client, &Action::Priority(hash, priority)).await.unwrap();
        assert_eq!(torrent(&client.list(Scope::Full).await.unwrap(), hash).priority, Some(priority));
    }
    let refused = apply(&client, &Action::Priority(hash, 9)).await.unwrap_err();
    assert!(matches!(refused, ClientError::Precondition { .. }), "{refused}");
    assert_eq!(torrent(&client.list(Scope::Full).await.unwrap(), hash).priority, Some(3));
}

#[tokio::test]
async fn a_torrent_is_added_with_every_option() {
    let Some(server) = start().await else { return };
    let client = server.client();
    let directory = server.folder.path().join("else where, \"here\"");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("dressed"), [5; 50_000]).unwrap();
    let (hash, file) = metafile(b"dressed", &[5; 50_000], TRACKER);
    let mut add = adding(hash, file, true);
    add.label = Some("the $label".to_owned());
    add.directory = Some(directory.to_str().unwrap().to_owned());
    add.priority = Some(3);
    apply(&client, &Action::Add(add.clone())).await.unwrap();
    let listing = status_is(&client, hash, Status::Seeding).await;
    let seen = torrent(&listing, hash);
    assert_eq!(seen.label.as_deref(), Some("the $label"));
    assert_eq!(seen.directory.as_deref(), directory.to_str());
    assert_eq!(seen.priority, Some(3));
    assert!(seen.added_at.is_some());
    apply(&client, &Action::Add(add)).await.expect("again is no error");
}

#[tokio::test]
async fn a_torrent_that_rtorrent_rejects_is_reported() {
    let Some(server) = start().await else { return };
    let client = server.client();
    let (hash, _) = metafile(b"x", &[1; 10], TRACKER);
    let error = apply(&client, &Action::Add(adding(hash, Bytes::from_static(b"d4:infoe"), true))).await.unwrap_err();
    assert!(matches!(&error, ClientError::Fault { message } if message.contains("did not list")), "{error}");
}

#[tokio::test]
async fn a_torrent_file_over_the_limit_of_a_request_is_added() {
    let Some(server) = start().await else { return };
    let client = server.client();
    // 30,000 pieces make a file of 600 kB, and a request of 800 kB.
    let (hash, file) = metafile_of_pieces(b"large", 30_000, [0x5a; 20]);
    apply(&client, &Action::Add(adding(hash, file, false))).await.unwrap();
    assert!(client.list(Scope::Full).await.unwrap().torrents.contains_key(&hash));
}

/// Returns a .torrent file with equal pieces.
fn metafile_of_pieces(name: &[u8], pieces: usize, piece: [u8; 20]) -> (InfoHash, Bytes) {
    let mut info = format!("d6:lengthi{}e4:name{}:", pieces * PIECE, name.len()).into_bytes();
    info.extend_from_slice(name);
    info.extend_from_slice(format!("12:piece lengthi{PIECE}e6:pieces{}:", pieces * 20).as_bytes());
    info.extend_from_slice(&piece.repeat(pieces));
    info.push(b'e');
    let hash = InfoHash::V1(Sha1::digest(&info).into());
    let mut file = format!("d8:announce{}:{TRACKER}4:info", TRACKER.len()).into_bytes();
    file.extend_from_slice(&info);
    file.push(b'e');
    (hash, file.into())
}

#[tokio::test]
async fn a_magnet_link_is_added_with_every_option() {
    let Some(server) = start().await else { return };
    let client = server.client();
    let hash: InfoHash = "aabbccddeeff00112233445566778899aabbccdd".parse().unwrap();
    let directory = server.folder.path().join("for magnets");
    std::fs::create_dir(&directory).unwrap();
    let link = format!("magnet:?xt=urn:btih:{hash}&dn=$execute.throw=id&tr=http%3A%2F%2F127.0.0.1%3A1%2Fannounce");
    let mut add = Add::new(hash, AddSource::Magnet(link));
    add.label = Some("$a, \"b\" 🦀".to_owned());
    add.directory = Some(directory.to_str().unwrap().to_owned());
    add.priority = Some(1);
    let odd = {
        let mut odd = add.clone();
        odd.directory = Some("/tmp/a\"b".to_owned());
        odd
    };
    let error = apply(&client, &Action::Add(odd)).await.unwrap_err();
    assert!(matches!(error, ClientError::Unsupported { .. }), "{error}");

    apply(&client, &Action::Add(add)).await.unwrap();
    let listing = status_is(&client, hash, Status::Metadata).await;
    let observed = &listing.torrents[&hash];
    assert!(!observed.facts.has_metadata && !observed.torrent.finished && observed.torrent.progress == 0.0);
    assert_eq!(observed.torrent.label.as_deref(), Some("$a, \"b\" 🦀"));
    assert_eq!((observed.torrent.priority, observed.torrent.path.as_deref()), (Some(1), None));
    assert!(observed.torrent.directory.as_deref().unwrap().starts_with(directory.to_str().unwrap()));
    let error = apply(&client, &Action::Recheck(hash)).await.unwrap_err();
    assert!(matches!(error, ClientError::Precondition { .. }), "{error}");
    apply(&client, &Action::Delete(hash)).await.unwrap();
    list_until(&client, "its end", |listing| listing.torrents.is_empty()).await;
}

#[tokio::test]
async fn one_torrent_is_read_with_files_trackers_and_peers() {
    let Some(server) = start().await else { return };
    let client = server.client();
    let hash = seeding(&server, &client, "parts", &[3; 100_000]).await;
    let parts = Parts { torrent: true, files: true, trackers: true, peers: true };
    let details = get(&client, hash, parts).await.unwrap().unwrap();
    assert_eq!(details.observed.as_ref().unwrap().torrent.status, Status::Seeding);
    let files = details.files.unwrap();
    assert_eq!((files[0].name.as_str(), files[0].length, files[0].progress), ("parts", 100_000, 100.0));
    assert_eq!(files[0].priority, Some(1));
    let trackers = details.trackers.unwrap();
    assert_eq!((trackers[0].url.as_str(), trackers[0].kind, trackers[0].enabled), (TRACKER, Some("http"), true));
    assert_eq!(details.peers.unwrap(), []);
}

#[tokio::test]
async fn many_torrents_are_listed_with_their_trackers() {
    let Some(server) = start().await else { return };
    let client = server.client();
    let mut hashes = Vec::new();
    for number in 0..150_u32 {
        let announce = format!("http://tracker-{}.example:1/announce", number % 7);
        let (hash, file) = metafile(format!("torrent {number}").as_bytes(), &number.to_be_bytes(), &announce);
        apply(&client, &Action::Add(adding(hash, file, false))).await.unwrap();
        hashes.push((hash, format!("tracker-{}.example", number % 7)));
    }
    // A new client has no cache and reads the trackers of all torrents at once.
    let listing = server.client().list(Scope::Full).await.unwrap();
    assert!(listing.complete);
    for (hash, host) in hashes {
        assert_eq!(torrent(&listing, hash).tracker.as_deref(), Some(host.as_str()));
        let details = get(&client, hash, TORRENT).await.unwrap().unwrap();
        assert_eq!(details.observed.as_ref(), Some(&listing.torrents[&hash]));
    }
}

// --- two speeds ----------------------------------------------------------------------------------

async fn changes(client: &RtorrentClient, named: &[InfoHash]) -> Listing {
    client.list(Scope::Changed { named: &named.iter().copied().collect() }).await.unwrap()
}

/// Writes the file each time, because rTorrent deletes it with the torrent.
fn load_one_of_many(server: &Rtorrent, number: u16) -> InfoHash {
    let (hash, file) = metafile(format!("many {number:05}").as_bytes(), &number.to_be_bytes(), TRACKER);
    let path = server.folder.path().join(format!("{number}.torrent"));
    std::fs::write(&path, file).unwrap();
    server.call("load.normal", &["", path.to_str().unwrap()]);
    hash
}

/// Waits for the torrent, because a load may complete after its call.
fn until_there_are(server: &Rtorrent, count: usize) {
    let deadline = Instant::now() + TIMEOUT;
    while !server.call("view.size", &["", "main"]).contains(&format!(">{count}<")) {
        assert!(Instant::now() < deadline, "there never are {count}");
        std::thread::sleep(BEAT);
    }
}

/// Loads this many tiny torrents directly, and waits for them.
async fn populate(server: &Rtorrent, client: &RtorrentClient, count: u16) -> Vec<InfoHash> {
    let hashes = (0..count).map(|number| load_one_of_many(server, number)).collect();
    list_until(client, "all of them", |listing| listing.torrents.len() == usize::from(count)).await;
    hashes
}

#[tokio::test]
async fn a_quick_poll_of_a_thousand_unchanged_torrents_reads_none_and_misses_no_change() {
    let Some(server) = start().await else { return };
    let client = server.client();
    let hashes = populate(&server, &client, 1000).await;
    for _ in 0..2 {
        // A torrent that has just been loaded counts as changed.
        let deadline = Instant::now() + TIMEOUT;
        while !changes(&client, &[]).await.torrents.is_empty() {
            assert!(Instant::now() < deadline, "they never come to rest");
            tokio::time::sleep(BEAT).await;
        }
    }
    for _ in 0..20 {
        let quick = changes(&client, &[]).await;
        assert_eq!((quick.covers, quick.torrents.len()), (Covers::Changed, 0));
    }
    let named = changes(&client, &[hashes[3], hashes[990]]).await;
    assert_eq!((named.covers, named.torrents.len()), (Covers::Changed, 2));
    assert_eq!(torrent(&named, hashes[3]).name, "many 00003", "whole, though the name was not read again");

    server.call("d.erase", &[&hashes[7].to_string()]);
    let erased = changes(&client, &[]).await;
    assert_eq!((erased.covers, erased.complete, erased.torrents.len()), (Covers::All, true, 999));
    // One torrent is removed and another added, so that the count stays the same.
    server.call("d.erase", &[&hashes[8].to_string()]);
    load_one_of_many(&server, 7);
    until_there_are(&server, 999);
    let swapped = changes(&client, &[]).await;
    assert_eq!((swapped.covers, swapped.torrents.len()), (Covers::All, 999));
    assert!(swapped.torrents.contains_key(&hashes[7]) && !swapped.torrents.contains_key(&hashes[8]));
    // The same torrent is loaded again.
    let before = swapped.torrents[&hashes[9]].facts.load.clone();
    server.call("d.erase", &[&hashes[9].to_string()]);
    load_one_of_many(&server, 9);
    until_there_are(&server, 999);
    let again = changes(&client, &[]).await;
    assert_eq!(again.covers, Covers::All);
    assert_ne!(again.torrents[&hashes[9]].facts.load, before);
    // The next poll reports the start.
    std::fs::write(server.downloads().join("many 00010"), 10_u16.to_be_bytes()).unwrap();
    server.call("d.start", &[&hashes[10].to_string()]);
    let started = changes(&client, &[]).await;
    assert_ne!(torrent(&started, hashes[10]).status, Status::Stopped);

    // What a listing for a command showed first is not lost to the next poll of changes.
    server.call("d.erase", &[&hashes[11].to_string()]);
    client.get(&hashes[20..22], Parts { torrent: true, ..Parts::default() }).await.unwrap();
    client.list(Scope::Detached).await.unwrap();
    let erased = changes(&client, &[]).await;
    assert_eq!((erased.covers, erased.torrents.len()), (Covers::All, 998));
}

#[tokio::test]
async fn a_full_poll_finds_every_change_that_quick_polls_missed() {
    let Some(server) = start().await else { return };
    let watching = server.client();
    // So many torrents that a full poll does not read unchanging columns again.
    let hashes = populate(&server, &watching, 510).await;
    let mut dice: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut roll = |sides: u64| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice % sides
    };
    for round in 0..12 {
        for _ in 0..6 {
            let number = usize::try_from(roll(40)).unwrap();
            let hash = hashes[number].to_string();
            match roll(8) {
                0 => drop(server.call("d.custom1.set", &[&hash, &format!("label{}", roll(3))])),
                1 => drop(server.call("d.priority.set", &[&hash, &roll(4).to_string()])),
                2 => drop(server.call("d.start", &[&hash])),
                3 => drop(server.call("d.stop", &[&hash])),
                4 => drop(server.call("d.pause", &[&hash])),
                5 => drop(server.call("d.erase", &[&hash])),
                6 => drop(load_one_of_many(&server, u16::try_from(number).unwrap())),
                _ => drop(server.call("d.directory.set", &[&hash, &format!("/tmp/{}", roll(3))])),
            }
            if roll(2) == 0 {
                changes(&watching, &[]).await;
            }
        }
        // The tiny torrents are checked at once, but two clients may see different moments of it.
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let swept = watching.list(Scope::Full).await.unwrap();
            let truth = server.client().list(Scope::Full).await.unwrap();
            assert_eq!((swept.covers, swept.complete), (Covers::All, true));
            if swept.torrents == truth.torrents {
                break;
            }
            assert!(Instant::now() < deadline, "round {round}: {:#?}\n{:#?}", swept.torrents, truth.torrents);
            tokio::time::sleep(BEAT).await;
        }
    }
}
