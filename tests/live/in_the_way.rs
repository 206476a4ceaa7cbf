//! `add` without `data_file` where something is already: rTorrent overwrites on start, so it is looked at first.

use std::os::unix::fs::symlink;
use std::path::Path;

use dtorrent::model::MetainfoBuilder;
use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent;
use serde_json::{Value, json};

use crate::harness::recorder::error_code;
use crate::harness::{Setup, World, base64, can_run};

async fn add(world: &World, torrent: &[u8], directory: Option<&Path>, start: bool) -> Value {
    let body = json!({"torrent": base64(torrent), "directory": directory, "start": start});
    world.recorder.command("home/command/add", body).await
}

#[tokio::test]
async fn content_of_somebody_else_is_not_overwritten() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let downloads = world.home.downloads.clone();
    let outside = world.folder.join("private");
    let single = Content::file("secret", 50_000, 1);
    let folder = Content::folder("folder", &[("a", 40_000), ("sub/b", 40_000)], 2);
    let below = downloads.join("below");
    std::fs::create_dir_all(downloads.join("folder/sub")).unwrap();
    std::fs::create_dir(&below).unwrap();
    // As long as the torrent's, shorter, and another name of a file outside.
    std::fs::write(downloads.join("secret"), vec![7; 50_000]).unwrap();
    std::fs::write(downloads.join("folder/sub/b"), b"mine").unwrap();
    std::fs::write(&outside, b"outside").unwrap();
    std::fs::hard_link(&outside, below.join("secret")).unwrap();
    for (content, directory) in
        [(&single, None), (&single, Some(&*below)), (&folder, None), (&folder, Some(&*downloads))]
    {
        for start in [true, false] {
            let result = add(&world, &content.torrent, directory, start).await;
            assert_eq!(error_code(&result), "precondition", "{} in {directory:?}: {result}", content.name);
            assert!(world.home.hashes().await.unwrap().is_empty(), "{result}");
        }
    }
    let body = json!({"torrent": base64(&single.torrent), "dry_run": true});
    assert_eq!(error_code(&world.recorder.command("home/command/add", body).await), "precondition");
    assert_eq!(std::fs::read(downloads.join("secret")).unwrap(), vec![7; 50_000]);
    assert_eq!(std::fs::read(downloads.join("folder/sub/b")).unwrap(), b"mine");
    assert_eq!(std::fs::read(&outside).unwrap(), b"outside");
    // A file beside those of the torrent is in nobody's way.
    std::fs::remove_file(downloads.join("folder/sub/b")).unwrap();
    std::fs::write(downloads.join("folder/sub/mine"), b"mine").unwrap();
    assert_eq!(add(&world, &folder.torrent, None, true).await["status"], "ok");
}

#[tokio::test]
async fn content_of_the_torrent_itself_is_taken_up_again() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let downloads = world.home.downloads.clone();
    let whole = Content::file("whole", 100_000, 1);
    let half = Content::folder("half", &[("a", 100_000), ("b", 100_000), ("c", 100_000)], 2);
    whole.write_to(&downloads).unwrap();
    half.write_to(&downloads).unwrap();
    // As an interrupted download leaves it: some pieces of `b`, nothing of `c`, and both at their full length.
    let mut b = half.files[1].1.clone();
    // Up to the end of piece 9 of 16 KiB, which is in `b`.
    b[10 * 16_384 - 100_000..].fill(0);
    std::fs::write(downloads.join("half/b"), &b).unwrap();
    std::fs::write(downloads.join("half/c"), vec![0; 100_000]).unwrap();
    for (content, complete) in [(&whole, "1"), (&half, "0")] {
        let result = add(&world, &content.torrent, None, true).await;
        assert_eq!(result["status"], "ok", "{}: {result}", content.name);
        world.home.wait_for(content.hash, "d.hashing", "0").await.unwrap();
        world.home.wait_for(content.hash, "d.complete", complete).await.unwrap();
    }
    assert_ne!(world.home.get(half.hash, "d.completed_bytes").await.unwrap(), "0");
    // It is loaded already, and whatever it has written is its own.
    std::fs::write(downloads.join("half/c"), vec![9; 100_000]).unwrap();
    let result = add(&world, &half.torrent, None, true).await;
    assert_eq!(result["status"], "ok", "{result}");
}

#[tokio::test]
async fn what_is_no_plain_file_is_not_opened_by_rtorrent() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let downloads = world.home.downloads.clone();
    let outside = world.folder.join("private");
    std::fs::write(&outside, b"outside").unwrap();
    let single = Content::file("thing", 50_000, 1);
    let folder = Content::folder("folder", &[("a", 40_000), ("sub/b", 40_000)], 2);
    std::fs::create_dir(downloads.join("folder")).unwrap();
    let pipe = |path: &Path| {
        let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
        assert!(made.success());
    };
    type Plant<'a> = &'a dyn Fn(&Path);
    let plants: [(&str, Plant<'_>, &str); 6] = [
        ("a pipe", &pipe, "precondition"),
        ("a folder", &|path| std::fs::create_dir(path).unwrap(), "precondition"),
        ("a longer file", &|path| std::fs::write(path, vec![0; 50_001]).unwrap(), "precondition"),
        ("a link to a file", &|path| symlink(&outside, path).unwrap(), "forbidden"),
        ("a link to a folder", &|path| symlink(outside.parent().unwrap(), path).unwrap(), "forbidden"),
        ("a link to nothing", &|path| symlink("/tmp/none/of/it", path).unwrap(), "forbidden"),
    ];
    for (what, plant, code) in plants {
        for (content, place) in
            [(&single, "thing"), (&folder, "folder/sub/b"), (&folder, "folder/a"), (&folder, "folder/sub")]
        {
            let path = downloads.join(place);
            if place == "folder/sub" && code != "forbidden" {
                continue;
            }
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            plant(&path);
            for start in [true, false] {
                let result = add(&world, &content.torrent, None, start).await;
                assert_eq!(error_code(&result), code, "{what} at {place}: {result}");
                assert!(world.home.hashes().await.unwrap().is_empty(), "{what}: {result}");
            }
            if path.is_dir() && !path.is_symlink() {
                std::fs::remove_dir(&path).unwrap();
            } else {
                std::fs::remove_file(&path).unwrap();
            }
            if place == "folder/sub/b" {
                std::fs::remove_dir(path.parent().unwrap()).unwrap();
            }
        }
    }
    assert_eq!(std::fs::read(&outside).unwrap(), b"outside");
    assert_eq!(add(&world, &folder.torrent, None, true).await["status"], "ok");
}

#[tokio::test]
async fn every_name_that_rtorrent_may_choose_is_looked_at() {
    if !can_run() {
        return;
    }
    let utf8 = rtorrent::Options { lines: vec!["encoding.add = utf-8".to_owned()], ..rtorrent::Options::default() };
    let world = World::running(Setup { rtorrent: utf8, ..Setup::default() }).await;
    let torrent = MetainfoBuilder::folder("plain", 16_384).file(["a"]).content(&vec![3; 50_000]).build();
    let (at, names) = (b"4:name5:plain", b"4:name5:plain10:name.utf-85:other");
    let start = torrent.windows(at.len()).position(|bytes| bytes == at).unwrap();
    let torrent = [&torrent[..start], names, &torrent[start + at.len()..]].concat();
    let other = world.home.downloads.join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("a"), b"mine").unwrap();
    let result = add(&world, &torrent, None, true).await;
    assert_eq!(error_code(&result), "precondition", "{result}");
    assert_eq!(std::fs::read(other.join("a")).unwrap(), b"mine");
    std::fs::remove_file(other.join("a")).unwrap();
    let result = add(&world, &torrent, None, true).await;
    assert_eq!(result["status"], "ok", "{result}");
    let hash = InfoHash::of_torrent(&torrent).unwrap();
    assert_eq!(world.home.get(hash, "d.directory").await.unwrap(), other.to_str().unwrap());
}
