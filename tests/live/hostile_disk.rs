//! A disk on which somebody has put links, pipes and mounts in the way: nothing outside the roots is touched.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt as _, symlink};
use std::path::{Path, PathBuf};

use dtorrent::model::MetainfoBuilder;
use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent;
use serde_json::{Value, json};
use sha1::Digest as _;

use crate::harness::disk::{BindMount, SmallDisk};
use crate::harness::recorder::{Command, error_code};
use crate::harness::{Setup, World, base64, can_run};

fn may_delete() -> Setup {
    Setup { sink: "commands = [\"*\"]".to_owned(), ..Setup::default() }
}

fn topic(hash: InfoHash, verb: &str) -> String {
    format!("home/torrent/{hash}/command/{verb}")
}

/// Returns a folder outside the roots.
fn outside(world: &World) -> PathBuf {
    let outside = world.folder.join("outside");
    std::fs::create_dir_all(&outside).unwrap();
    outside
}

/// Returns every path below a folder, with the content of files and the targets of links.
fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let kind = path.symlink_metadata().unwrap().file_type();
            let content = if kind.is_dir() {
                folders.push(path.clone());
                b"a folder".to_vec()
            } else if kind.is_symlink() {
                path.read_link().unwrap().into_os_string().into_encoded_bytes()
            } else if kind.is_fifo() {
                b"a pipe".to_vec()
            } else {
                std::fs::read(&path).unwrap()
            };
            found.insert(path, content);
        }
    }
    found
}

async fn load(world: &World, content: &Content, directory: &Path) {
    world.home.load_into(&content.torrent, true, Some(directory)).await.unwrap();
    world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
    world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
}

#[tokio::test]
async fn a_torrent_that_is_a_link_on_disk_is_neither_moved_nor_deleted() {
    if !can_run() {
        return;
    }
    let mut world = World::new(may_delete()).await;
    let (downloads, outside) = (world.home.downloads.clone(), outside(&world));
    let file = Content::file("file.iso", 50_000, 1);
    let folder = Content::folder("folder", &[("a", 40_000), ("sub/b", 40_000)], 2);
    let inner = Content::folder("inner", &[("a", 40_000), ("sub/b", 40_000)], 4);
    let plain = Content::folder("plain", &[("a", 40_000)], 6);
    for content in [&file, &folder, &inner] {
        content.write_to(&outside).unwrap();
    }
    symlink(outside.join("file.iso"), downloads.join("file.iso")).unwrap();
    symlink(outside.join("folder"), downloads.join("folder")).unwrap();
    std::fs::create_dir(downloads.join("inner")).unwrap();
    std::fs::copy(outside.join("inner/a"), downloads.join("inner/a")).unwrap();
    symlink(outside.join("inner/sub"), downloads.join("inner/sub")).unwrap();
    plain.write_to(&downloads).unwrap();
    for content in [&file, &folder, &inner, &plain] {
        load(&world, content, &downloads).await;
    }
    // A folder of the torrent's name at the new place.
    std::fs::create_dir(downloads.join("new")).unwrap();
    symlink(&outside, downloads.join("new/plain")).unwrap();
    world.start_bridge().await;
    let before = (tree(&outside), tree(&downloads));
    let moved = json!({"data": true, "directory": downloads.join("new")});
    for (content, verb, body) in [
        (&file, "delete", json!({"data": true})),
        (&folder, "delete", json!({"data": true})),
        (&inner, "delete", json!({"data": true})),
        (&file, "move", moved.clone()),
        (&folder, "move", moved.clone()),
        (&inner, "move", moved.clone()),
        (&plain, "move", moved.clone()),
    ] {
        let result = world.recorder.command(&topic(content.hash, verb), body).await;
        assert_eq!(error_code(&result), "forbidden", "{verb} {}: {result}", content.name);
        assert!(result["error"]["message"].as_str().unwrap().contains("is a symbolic link"), "{result}");
        world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
        assert!((tree(&outside), tree(&downloads)) == before, "{verb} {}", content.name);
    }
    assert_eq!(world.home.hashes().await.unwrap().len(), 4);
}

#[tokio::test]
async fn hard_links_and_mounts_lead_nowhere() {
    if !can_run() {
        return;
    }
    let mut world = World::new(may_delete()).await;
    let (downloads, outside) = (world.home.downloads.clone(), outside(&world));
    let hard = Content::file("hard.iso", 50_000, 1);
    let mounted = Content::file("mounted.iso", 50_000, 2);
    let folder = Content::folder("folder", &[("a", 40_000), ("sub/b", 40_000)], 3);
    for content in [&hard, &mounted, &folder] {
        content.write_to(&outside).unwrap();
    }
    let kept = outside.join("kept");
    std::fs::create_dir(&kept).unwrap();
    std::fs::hard_link(outside.join("hard.iso"), downloads.join("hard.iso")).unwrap();
    std::fs::write(downloads.join("mounted.iso"), b"").unwrap();
    let Some(_file) = BindMount::of(&outside.join("mounted.iso"), &downloads.join("mounted.iso")) else { return };
    std::fs::create_dir_all(downloads.join("folder/sub")).unwrap();
    std::fs::copy(outside.join("folder/a"), downloads.join("folder/a")).unwrap();
    let Some(_sub) = BindMount::of(&kept, &downloads.join("folder/sub")) else { return };
    std::fs::copy(outside.join("folder/sub/b"), downloads.join("folder/sub/b")).unwrap();
    for content in [&hard, &mounted, &folder] {
        load(&world, content, &downloads).await;
    }
    world.start_bridge().await;
    let (hard_bytes, mounted_bytes) = (&hard.files[0].1, &mounted.files[0].1);
    // Another name of the file goes, the file stays.
    let result = world.recorder.command(&topic(hard.hash, "delete"), json!({"data": true})).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert!(
        !downloads.join("hard.iso").try_exists().unwrap()
            && &std::fs::read(outside.join("hard.iso")).unwrap() == hard_bytes
    );
    // The kernel does not let a mount point go.
    let result = world.recorder.command(&topic(mounted.hash, "delete"), json!({"data": true})).await;
    assert_eq!(error_code(&result), "precondition", "{result}");
    world.home.wait_for(mounted.hash, "d.is_active", "1").await.unwrap();
    assert_eq!(&std::fs::read(outside.join("mounted.iso")).unwrap(), mounted_bytes);
    // What is mounted below a root is below it, and stays mounted there when it is empty.
    let result = world.recorder.command(&topic(folder.hash, "delete"), json!({"data": true})).await;
    assert_eq!((&result["status"], &result["results"][0]["deleted"]["count"]), (&json!("ok"), &json!(2)), "{result}");
    assert_eq!(result["results"][0]["deleted"]["left"][0]["path"], json!(downloads.join("folder/sub")), "{result}");
    assert!(kept.is_dir() && std::fs::read_dir(&kept).unwrap().count() == 0);
}

/// A torrent of 2 GiB of zeros, whose file takes no room on disk and whose check takes seconds.
fn zeros() -> (Vec<u8>, InfoHash, u64) {
    const PIECE: u64 = 64 << 10;
    const PIECES: u64 = 32_768;
    let hash: [u8; 20] = sha1::Sha1::digest([0; PIECE as usize]).into();
    let head =
        format!("d4:infod6:lengthi{}e4:name5:zeros12:piece lengthi{PIECE}e6:pieces{}:", PIECE * PIECES, 20 * PIECES);
    let torrent = [head.as_bytes(), &hash.repeat(PIECES as usize), b"ee"].concat();
    let hash = InfoHash::of_torrent(&torrent).unwrap();
    (torrent, hash, PIECE * PIECES)
}

#[tokio::test]
async fn a_folder_that_becomes_a_link_while_a_command_waits_for_a_check_leads_nowhere() {
    if !can_run() {
        return;
    }
    let (torrent, hash, length) = zeros();
    for swapped in ["new", "old"] {
        let mut world = World::new(may_delete()).await;
        let (downloads, outside) = (world.home.downloads.clone(), outside(&world));
        let sized = |path: &Path| std::fs::File::create(path).unwrap().set_len(length).unwrap();
        let limit = [rtorrent::Argument::Text(""), rtorrent::Argument::Text("8M")];
        world.home.rpc.call("network.xmlrpc.size_limit.set", &limit).await.unwrap();
        std::fs::create_dir(downloads.join("old")).unwrap();
        std::fs::create_dir(downloads.join("new")).unwrap();
        sized(&downloads.join("old/zeros"));
        if swapped == "old" {
            sized(&outside.join("zeros"));
        }
        world.home.load_into(&torrent, false, Some(&downloads.join("old"))).await.unwrap();
        world.home.act(hash, "d.check_hash", &[]).await.unwrap();
        world.home.wait_for(hash, "d.hashing", "0").await.unwrap();
        world.start_bridge().await;
        world.home.act(hash, "d.check_hash", &[]).await.unwrap();
        let body = json!({"id": "waits", "data": true, "directory": downloads.join("new")});
        world.recorder.send(Command::new(&format!("dtorrent/{}", topic(hash, "move")), body.to_string())).await;
        world.bridge().wait_for_log("client busy, command waits").await;
        std::fs::rename(downloads.join(swapped), downloads.join("aside")).unwrap();
        symlink(&outside, downloads.join(swapped)).unwrap();
        let result = world.recorder.result("waits").await;
        assert_eq!(error_code(&result), "forbidden", "{swapped}: {result}");
        assert_eq!(outside.join("zeros").try_exists().unwrap(), swapped == "old", "{swapped}: {result}");
        let home = if swapped == "old" { "aside/zeros" } else { "old/zeros" };
        assert!(downloads.join(home).is_file(), "{swapped}: {result}");
    }
}

#[tokio::test]
async fn a_file_is_copied_under_a_name_that_nobody_can_plant() {
    if !can_run() {
        return;
    }
    let content = Content::folder("copied", &[("a", 300_000)], 1);
    let world = World::seeding(may_delete(), [&content]).await;
    let (downloads, outside) = (world.home.downloads.clone(), outside(&world));
    let small = downloads.join("small");
    let Some(_disk) = SmallDisk::mount(&small) else { return };
    std::fs::write(outside.join("secret"), b"secret").unwrap();
    std::fs::create_dir(small.join("copied")).unwrap();
    let part = |digit: &str| small.join(format!("copied/.dtorrent-{}.part", digit.repeat(32)));
    symlink(outside.join("secret"), small.join("copied/a.dtorrent-part")).unwrap();
    symlink(outside.join("secret"), part("b")).unwrap();
    // Left by a bridge that was killed.
    std::fs::write(part("a"), b"half a file").unwrap();
    let body = json!({"data": true, "directory": small});
    let result = world.recorder.command(&topic(content.hash, "move"), body).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_eq!(std::fs::read(outside.join("secret")).unwrap(), b"secret");
    assert_eq!(std::fs::read(small.join("copied/a")).unwrap(), content.files[0].1);
    assert!(!part("a").try_exists().unwrap(), "what was left is removed");
    assert!(part("b").is_symlink(), "a link is not ours");
    assert_eq!(world.home.get(content.hash, "d.complete").await.unwrap(), "1");
}

#[tokio::test]
async fn existing_data_is_not_taken_through_a_link_or_another_name_of_its_folder() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let (downloads, outside) = (world.home.downloads.clone(), outside(&world));
    let content = Content::folder("data", &[("a", 40_000), ("sub/b", 40_000)], 1);
    for folder in ["real", "real/linked"] {
        content.write_to(&downloads.join(folder)).unwrap();
    }
    content.write_to(&outside).unwrap();
    symlink(&outside, downloads.join("way-out")).unwrap();
    symlink(downloads.join("real"), downloads.join("inside")).unwrap();
    let linked = downloads.join("real/linked/data/sub");
    std::fs::remove_dir_all(&linked).unwrap();
    symlink(outside.join("data/sub"), &linked).unwrap();
    let before = (tree(&outside), tree(&downloads));
    let shown = downloads.display();
    for data_file in [
        format!("{shown}/way-out/data"),
        format!("{shown}/inside/data"),
        format!("{shown}/real/linked/data"),
        format!("{shown}/way-out/../real/data"),
        format!("{shown}/real/../real/data"),
        format!("/proc/self/root{shown}/real/data"),
        format!("/proc/self/cwd/../../../../../../../../..{shown}/real/data"),
        outside.join("data").display().to_string(),
    ] {
        let body = json!({"torrent": base64(&content.torrent), "data_file": data_file});
        let result = world.recorder.command("home/command/add", body).await;
        assert_eq!(error_code(&result), "forbidden", "{data_file}: {result}");
        assert!(world.home.hashes().await.unwrap().is_empty(), "{data_file}");
        assert!((tree(&outside), tree(&downloads)) == before, "{data_file}");
    }
    let body = json!({"torrent": base64(&content.torrent), "data_file": format!("{shown}/real/data/"), "start": false});
    let result = world.recorder.command("home/command/add", body).await;
    assert_eq!(result["status"], "ok", "{result}");
}

#[tokio::test]
async fn padding_is_not_made_through_a_link() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let (downloads, outside) = (world.home.downloads.clone(), outside(&world));
    let files = [("a", vec![1; 20_000]), ("b", vec![2; 10_000])];
    let torrent = MetainfoBuilder::folder("padded", 16_384)
        .file(["a"])
        .content(&files[0].1)
        .file([".pad", "12768"])
        .content(&vec![0; 12_768])
        .file(["b"])
        .content(&files[1].1)
        .build();
    let at = b"d6:lengthi12768e";
    let start = torrent.windows(at.len()).position(|bytes| bytes == at).unwrap();
    let torrent = [&torrent[..start], b"d4:attr1:p6:lengthi12768e", &torrent[start + at.len()..]].concat();
    std::fs::create_dir(downloads.join("padded")).unwrap();
    for (name, bytes) in &files {
        std::fs::write(downloads.join("padded").join(name), bytes).unwrap();
    }
    for link in [".pad", ".pad/12768"] {
        let path = downloads.join("padded").join(link);
        let target = if link == ".pad" { outside.clone() } else { outside.join("12768") };
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, &path).unwrap();
        let body = json!({"torrent": base64(&torrent), "data_file": downloads.join("padded"), "start": false});
        let result = world.recorder.command("home/command/add", body).await;
        assert_eq!(error_code(&result), "forbidden", "{link}: {result}");
        assert!(tree(&outside).is_empty() && world.home.hashes().await.unwrap().is_empty(), "{link}: {result}");
        std::fs::remove_file(&path).unwrap();
    }
    assert_eq!(world.recorder.command("home/command/list", Value::Null).await["total"], 0);
}
