//! Content that the bridge does not see as rTorrent does, or may not change: nothing is begun, and nothing changes.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use dtorrent::model::MetainfoBuilder;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{self, Listen};
use serde_json::{Value, json};

use crate::harness::disk::{self, SmallDisk};
use crate::harness::recorder::error_code;
use crate::harness::{Setup, World, can_run};

fn launched_by(words: &[&str]) -> Setup {
    let launcher = words.iter().map(|word| (*word).to_owned()).collect();
    let rtorrent = rtorrent::Options { listen: Listen::Tcp, ..rtorrent::Options::default() };
    Setup { sink: "commands = [\"*\"]".to_owned(), launcher, rtorrent, ..Setup::default() }
}

/// A bridge without the rights of root.
fn unprivileged() -> Setup {
    launched_by(&["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "--"])
}

async fn load(world: &World, content: &Content) {
    content.write_to(&world.home.downloads).unwrap();
    world.home.load(&content.torrent, true).await.unwrap();
    world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
    world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Sends every command that touches the content; each is refused, names `path`, and leaves the torrent as it was.
async fn assert_refused(world: &World, content: &Content, path: &Path) {
    let to = world.home.downloads.join("new");
    for (verb, body) in [
        ("delete", json!({"data": true, "dry_run": true})),
        ("delete", json!({"data": true})),
        ("move", json!({"data": true, "directory": to, "dry_run": true})),
        ("move", json!({"data": true, "directory": to})),
    ] {
        let result = world.recorder.command(&format!("home/torrent/{}/command/{verb}", content.hash), body).await;
        assert_eq!(error_code(&result), "precondition", "{verb}: {result}");
        let message = result["error"]["message"].as_str().unwrap();
        assert!(message.contains(&path.display().to_string()), "{verb}: {message}");
    }
    assert_eq!(world.home.get(content.hash, "d.is_active").await.unwrap(), "1");
    assert_eq!(world.home.get(content.hash, "d.complete").await.unwrap(), "1");
    let directory = world.home.get(content.hash, "d.directory").await.unwrap();
    assert!(Path::new(&directory).starts_with(&world.home.downloads) && !Path::new(&directory).starts_with(&to));
    for (file, _) in &content.files {
        assert!(world.home.downloads.join(file).is_file(), "{file}");
    }
    let events = world.recorder.events("home");
    let is_of_it = |event: &&Value| event["hash"] == json!(content.hash) && event["cause"] != "snapshot";
    let kinds: Vec<_> = events.iter().filter(is_of_it).map(|event| &event["event_type"]).collect();
    assert!(kinds.iter().all(|kind| **kind == "updated"), "it was not even stopped: {kinds:?}");
}

#[tokio::test]
async fn content_on_a_mount_that_the_bridge_does_not_see_is_left_alone() {
    if !can_run() {
        return;
    }
    // In its view an empty folder is mounted over the downloads, as in a container without that volume.
    let script = "mount --bind \"$(dirname \"$3\")/empty\" \"$(dirname \"$3\")/home/downloads\" && exec \"$@\"";
    let script = script.replace("$3", "${@: -1}");
    let mut world = World::new(launched_by(&["unshare", "--mount", "bash", "-c", &script, "bash"])).await;
    std::fs::create_dir(world.folder.join("empty")).unwrap();
    let single = Content::file("single.iso", 50_000, 1);
    let folder = Content::folder("folder", &[("a", 40_000), ("sub/b", 40_000)], 2);
    for content in [&single, &folder] {
        load(&world, content).await;
    }
    world.start_bridge().await;
    assert_refused(&world, &single, &world.home.downloads.join("single.iso")).await;
    assert_refused(&world, &folder, &world.home.downloads.join("folder/a")).await;
    // Nothing has to be seen for a move to where it is.
    let body = json!({"data": true, "directory": world.home.downloads});
    let result = world.recorder.command(&format!("home/torrent/{}/command/move", folder.hash), body).await;
    assert_eq!(result["status"], "ok", "{result}");
}

#[tokio::test]
async fn another_file_in_the_place_of_the_content_is_left_alone() {
    if !can_run() {
        return;
    }
    let content = Content::folder("folder", &[("a", 40_000), ("b", 40_000)], 1);
    let world = World::seeding(launched_by(&[]), [&content]).await;
    std::fs::write(world.home.downloads.join("folder/b"), "somebody else's").unwrap();
    assert_refused(&world, &content, &world.home.downloads.join("folder/b")).await;
}

#[tokio::test]
async fn content_that_the_bridge_may_not_remove_is_left_alone() {
    if !can_run() {
        return;
    }
    let mut world = World::new(unprivileged()).await;
    let [plain, sticky, hidden] =
        ["plain", "sticky", "hidden"].map(|name| Content::folder(name, &[("a", 40_000), ("sub/b", 40_000)], 1));
    for content in [&plain, &sticky, &hidden] {
        load(&world, content).await;
    }
    let downloads = world.home.downloads.clone();
    disk::give(&world.folder, 1234);
    let own = |folder: &str, mode| {
        disk::close(&downloads.join(folder));
        set_mode(&downloads.join(folder), mode);
    };
    own("plain/sub", 0o755);
    own("sticky/sub", 0o1777);
    disk::close(&downloads.join("sticky/sub/b"));
    own("hidden/sub", 0o700);
    world.start_bridge().await;
    assert_refused(&world, &plain, &downloads.join("plain/sub")).await;
    assert_refused(&world, &sticky, &downloads.join("sticky/sub/b")).await;
    assert_refused(&world, &hidden, &downloads.join("hidden/sub")).await;
}

#[tokio::test]
async fn a_move_to_where_the_content_is_changes_nothing() {
    if !can_run() {
        return;
    }
    let single = Content::file("single.iso", 50_000, 1);
    let folder = Content::folder("folder", &[("a", 40_000), ("sub/b", 40_000)], 2);
    let world = World::seeding(Setup::default(), [&single, &folder]).await;
    for content in [&single, &folder] {
        for body in [
            json!({"data": true, "directory": world.home.downloads}),
            json!({"data": true, "directory": format!("{}/", world.home.downloads.display()), "dry_run": true}),
        ] {
            let result = world.recorder.command(&format!("home/torrent/{}/command/move", content.hash), body).await;
            assert_eq!(result["status"], "ok", "{result}");
        }
        assert_eq!(world.home.get(content.hash, "d.is_active").await.unwrap(), "1");
    }
    let events = world.recorder.events("home");
    let changed = events.iter().find(|event| event["entity"] == "torrent" && event["cause"] == "command");
    assert_eq!(changed, None, "no torrent was touched");
    // The same folder through a link: none is followed below a root, wherever it leads.
    let link = world.home.downloads.join("link");
    std::os::unix::fs::symlink(&world.home.downloads, &link).unwrap();
    let body = json!({"data": true, "directory": link});
    let result = world.recorder.command(&format!("home/torrent/{}/command/move", folder.hash), body).await;
    assert_eq!(error_code(&result), "forbidden", "{result}");
    assert!(world.home.downloads.join("folder/a").is_file());
    assert_eq!(world.home.get(folder.hash, "d.is_active").await.unwrap(), "1");
}

#[tokio::test]
async fn a_move_that_fails_half_way_is_taken_back() {
    if !can_run() {
        return;
    }
    // The first file fits on the disk, the second does not.
    let content = Content::folder("large", &[("a", 1 << 20), ("b", 30 << 20)], 1);
    let world = World::seeding(Setup::default(), [&content]).await;
    let downloads = world.home.downloads.clone();
    let small = downloads.join("small");
    let Some(_disk) = SmallDisk::mount(&small) else { return };
    let body = json!({"data": true, "directory": small.join("deep"), "id": "too large"});
    let result = world.recorder.command(&format!("home/torrent/{}/command/move", content.hash), body).await;
    assert_ne!(result["status"], "ok", "{result}");
    assert!(result["error"]["message"].as_str().unwrap().contains("large/b"), "{result}");
    for (file, bytes) in &content.files {
        assert_eq!(std::fs::metadata(downloads.join(file)).unwrap().len(), bytes.len() as u64, "{file}");
    }
    assert_eq!(std::fs::read_dir(&small).unwrap().count(), 0, "nothing is left at the new place");
    world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
    assert_eq!(world.home.get(content.hash, "d.complete").await.unwrap(), "1");
    let directory = world.home.get(content.hash, "d.directory").await.unwrap();
    assert_eq!(Path::new(&directory), downloads.join("large"));
}

#[tokio::test]
async fn a_torrent_that_has_downloaded_nothing_is_deleted_with_data() {
    if !can_run() {
        return;
    }
    let mut world = World::new(launched_by(&[])).await;
    let content = Content::folder("nothing", &[("a", 40_000), ("sub/b", 40_000)], 1);
    world.home.load(&content.torrent, false).await.unwrap();
    world.start_bridge().await;
    let topic = format!("home/torrent/{}/command/delete", content.hash);
    let result = world.recorder.command(&topic, json!({"data": true})).await;
    assert_eq!((&result["status"], &result["results"][0]["deleted"]["count"]), (&json!("ok"), &json!(0)), "{result}");
    assert!(world.home.hashes().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_path_with_an_empty_name_leads_to_the_same_file() {
    if !can_run() {
        return;
    }
    let torrent =
        MetainfoBuilder::folder("odd", 16_384).file(["", "", "a"]).content(b"a").file(["sub", "", "b"]).content(b"b");
    let mut world = World::new(launched_by(&[])).await;
    let odd = world.home.downloads.join("odd");
    std::fs::create_dir_all(odd.join("sub")).unwrap();
    std::fs::write(odd.join("a"), b"a").unwrap();
    std::fs::write(odd.join("sub/b"), b"b").unwrap();
    let hash = world.home.load(&torrent.build(), true).await.unwrap();
    world.home.wait_for(hash, "d.complete", "1").await.unwrap();
    world.start_bridge().await;
    let result = world.recorder.command(&format!("home/torrent/{hash}/command/delete"), json!({"data": true})).await;
    assert_eq!((&result["status"], &result["results"][0]["deleted"]["count"]), (&json!("ok"), &json!(2)), "{result}");
    assert!(!odd.try_exists().unwrap());
}
