//! Content whose names rTorrent does not report as they are: it writes `?` for each byte of a name with an emoji, or
//! of one that is no UTF-8.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use dtorrent::model::MetainfoBuilder;
use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{self, Listen};
use serde_json::json;

use crate::harness::recorder::error_code;
use crate::harness::{Setup, World, can_run};

fn may_delete() -> Setup {
    Setup { sink: "commands = [\"*\"]".to_owned(), ..Setup::default() }
}

/// A torrent of two files, whose content is loaded and complete, and a folder that bears the name as rTorrent writes it.
struct Mangled {
    hash: InfoHash,
    /// The true paths of its files, below the downloads.
    files: Vec<PathBuf>,
    /// A file of nobody's torrent at the path that rTorrent reports.
    foreign: PathBuf,
}

impl Mangled {
    async fn load(world: &World, name: &[u8], file: &[u8]) -> Self {
        let content = [name, file].concat().repeat(2_000);
        let torrent = MetainfoBuilder::folder(name, 16_384)
            .file([file])
            .content(&content)
            .file([b"sub".as_slice(), file])
            .content(&content)
            .build();
        let folder = Path::new(OsStr::from_bytes(name));
        let file = Path::new(OsStr::from_bytes(file));
        let files = vec![folder.join(file), folder.join("sub").join(file)];
        let mangled =
            |path: &Path| path.as_os_str().as_bytes().iter().map(|b| if *b < 128 { *b } else { b'?' }).collect();
        let downloads = &world.home.downloads;
        let foreign = downloads.join(String::from_utf8(mangled(&files[0])).unwrap());
        let write = |path: &Path, content: &[u8]| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        if foreign != downloads.join(&files[0]) {
            write(&foreign, &content);
        }
        files.iter().for_each(|file| write(&downloads.join(file), &content));
        let hash = world.home.load(&torrent, true).await.unwrap();
        world.home.wait_for(hash, "d.complete", "1").await.unwrap();
        world.home.wait_for(hash, "d.is_active", "1").await.unwrap();
        Self { hash, files, foreign }
    }

    fn are_in(&self, folder: &Path) -> bool {
        self.files.iter().all(|file| folder.join(file).is_file())
    }

    fn is_foreign(&self, folder: &Path) -> bool {
        !self.files.iter().any(|file| folder.join(file) == self.foreign)
    }
}

/// The names of a folder and of a file in it, some as rTorrent reports them.
const NAMES: [(&[u8], &[u8]); 6] = [
    ("Holiday 🎉 2020".as_bytes(), b"a.txt"),
    (b"caf\xe9", "ü.txt".as_bytes()),
    (b"plain", "🎬 one.mkv".as_bytes()),
    (b"both \x01 \xff", b"x\xe9"),
    // Names that are really so, and could be those of others.
    (b"what? 50%41", b"is this?"),
    (b"line\nfeed", b"line\r\nfeed"),
];

#[tokio::test]
async fn delete_with_data_removes_the_files_behind_the_names_that_rtorrent_mangles() {
    if !can_run() {
        return;
    }
    let mut world = World::new(may_delete()).await;
    let mut all = Vec::new();
    for (name, file) in NAMES {
        all.push(Mangled::load(&world, name, file).await);
    }
    world.start_bridge().await;
    let downloads = world.home.downloads.clone();
    for torrent in &all {
        let topic = format!("home/torrent/{}/command/delete", torrent.hash);
        let result = world.recorder.command(&topic, json!({"data": true, "dry_run": true})).await;
        assert_eq!(
            (&result["status"], &result["results"][0]["deleted"]["count"]),
            (&json!("ok"), &json!(2)),
            "{result}"
        );
        let result = world.recorder.command(&topic, json!({"data": true})).await;
        assert_eq!(
            (&result["status"], &result["results"][0]["deleted"]["count"]),
            (&json!("ok"), &json!(2)),
            "{result}"
        );
        assert!(torrent.files.iter().all(|file| !downloads.join(file).is_file()), "{:?}", torrent.files);
        if torrent.is_foreign(&downloads) {
            assert!(torrent.foreign.is_file(), "a file of nobody's torrent is gone: {:?}", torrent.foreign);
        }
    }
    assert!(world.home.hashes().await.unwrap().is_empty());
}

#[tokio::test]
async fn move_with_data_takes_the_files_behind_the_names_that_rtorrent_mangles() {
    if !can_run() {
        return;
    }
    let mut world = World::new(Setup::default()).await;
    let mut all = Vec::new();
    for (name, file) in NAMES {
        all.push(Mangled::load(&world, name, file).await);
    }
    world.start_bridge().await;
    let downloads = world.home.downloads.clone();
    // The second is a name that rTorrent reports mangled, too.
    for (to, from) in [("new", ""), ("Ünï 🎉", "new")] {
        let (to, from) = (downloads.join(to), downloads.join(from));
        for torrent in &all {
            let topic = format!("home/torrent/{}/command/move", torrent.hash);
            let result = world.recorder.command(&topic, json!({"directory": to, "data": true})).await;
            assert_eq!(result["status"], "ok", "{result}");
            assert!(
                torrent.are_in(&to) && !torrent.files.iter().any(|file| from.join(file).try_exists().unwrap()),
                "{result}"
            );
            world.home.wait_for(torrent.hash, "d.is_active", "1").await.unwrap();
            assert_eq!(world.home.get(torrent.hash, "d.complete").await.unwrap(), "1", "{:?}", torrent.files);
            assert!(torrent.foreign.is_file() || !torrent.is_foreign(&downloads), "{:?}", torrent.foreign);
        }
    }
}

#[tokio::test]
async fn a_mangled_name_is_not_acted_on_where_the_session_of_rtorrent_cannot_be_read() {
    if !can_run() {
        return;
    }
    let launcher = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "--"].map(str::to_owned).to_vec();
    let rtorrent = rtorrent::Options { listen: Listen::Tcp, ..rtorrent::Options::default() };
    let mut world = World::new(Setup { launcher, rtorrent, ..may_delete() }).await;
    let holiday = Mangled::load(&world, "Holiday 🎉 2020".as_bytes(), b"a.txt").await;
    let plain = Mangled::load(&world, b"plain", b"a.txt").await;
    crate::harness::disk::give(&world.folder, 1234);
    let session = world.folder.join("home/session");
    crate::harness::disk::close(&session);
    world.start_bridge().await;
    let downloads = world.home.downloads.clone();
    for (verb, body) in [
        ("delete", json!({"data": true, "dry_run": true})),
        ("delete", json!({"data": true})),
        ("move", json!({"data": true, "directory": downloads.join("new")})),
    ] {
        let result = world.recorder.command(&format!("home/torrent/{}/command/{verb}", holiday.hash), body).await;
        assert_eq!(error_code(&result), "precondition", "{result}");
        assert!(result["error"]["message"].as_str().unwrap().contains("home/session"), "{result}");
        assert!(holiday.are_in(&downloads) && holiday.foreign.is_file());
        assert_eq!(world.home.get(holiday.hash, "d.is_active").await.unwrap(), "1", "it goes on as before");
    }
    // Names that cannot be mistaken need no session.
    let topic = format!("home/torrent/{}/command/delete", plain.hash);
    assert_eq!(world.recorder.command(&topic, json!({"data": true})).await["status"], "ok");
    assert!(!plain.are_in(&downloads));
}

#[tokio::test]
async fn a_file_shared_under_a_mangled_name_is_left_alone() {
    if !can_run() {
        return;
    }
    let mut world = World::new(may_delete()).await;
    let holiday = Mangled::load(&world, "Holiday 🎉 2020".as_bytes(), b"a.txt").await;
    // The same file in a torrent of other pieces.
    let bytes = std::fs::read(world.home.downloads.join(&holiday.files[0])).unwrap();
    let twin = MetainfoBuilder::folder("Holiday 🎉 2020", 32_768).file(["a.txt"]).content(&bytes).build();
    let twin = world.home.load(&twin, true).await.unwrap();
    world.home.wait_for(twin, "d.complete", "1").await.unwrap();
    world.start_bridge().await;
    for hash in [twin, holiday.hash] {
        let topic = format!("home/torrent/{hash}/command/delete");
        let result = world.recorder.command(&topic, json!({"data": true})).await;
        assert_eq!(error_code(&result), "precondition", "{result}");
        assert!(holiday.are_in(&world.home.downloads));
    }
}

#[tokio::test]
async fn a_directory_that_rtorrent_mangles_is_confirmed() {
    if !can_run() {
        return;
    }
    let content = Content::file("plain.iso", 50_000, 1);
    let world = World::seeding(Setup::default(), [&content]).await;
    let directory = world.home.downloads.join("Ünï 🎉 100%41");
    let topic = format!("home/torrent/{}/command/move", content.hash);
    let result = world.recorder.command(&topic, json!({"directory": directory, "data": true})).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert!(directory.join("plain.iso").is_file());
    world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
    assert_eq!(world.home.get(content.hash, "d.complete").await.unwrap(), "1");
    // Without data, back to where nothing is: only the client changes, and knows that nothing is there.
    let result = world.recorder.command(&topic, json!({"directory": world.home.downloads})).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_eq!(world.home.get(content.hash, "d.completed_bytes").await.unwrap(), "0");
    assert_eq!(world.home.get(content.hash, "d.is_active").await.unwrap(), "1");
    assert!(directory.join("plain.iso").is_file());
}
