//! Magnet links as people and programs write them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;

use dtorrent_peers::InfoHash;
use serde_json::json;

use crate::harness::recorder::error_code;
use crate::harness::{Setup, World, can_run};

/// Links as other programs write them; each is for the hash `c0ffee…`.
fn links() -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/torrents/magnets.txt");
    let mut links: Vec<String> = std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect();
    // Two info-hashes, which is another test.
    links.pop();
    let hash = "c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff";
    links.extend([
        format!("Magnet:?xt=URN:BTIH:{hash}&tr=udp://127.0.0.1:9"),
        format!("magnet:?xt=urn:btih:{hash}&amp;dn=a&amp;tr=http://127.0.0.1:9/announce"),
        format!(
            "magnet:?dn=100%&xt=urn%3Abtih%3A{}&tr=http%3a%2f%2f127.0.0.1%3a9%2fa%3Fk%3D1%262",
            hash.to_uppercase()
        ),
        format!("magnet:?xt=urn:btih:{hash}&xt=urn:btih:{}&tr=http://127.0.0.1:9/a b", hash.to_uppercase()),
        format!("magnet:?xt=urn:sha1:ABC&xt=urn:btih:{hash}&dn=\u{1f600} %F0%9F%98%80&tr="),
        format!("  magnet:?xt=urn:btih:{hash}&dn=x&ws=http://127.0.0.1:9/x&x.pe=127.0.0.1:9\n"),
        format!("magnet:?xt=urn:btih:{hash}&tr=http://127.0.0.1:9/\"$execute={{touch,/tmp/never}}\""),
    ]);
    links
}

/// Removes a torrent that was added after `mark`, as soon as the bridge knows it.
async fn erase(world: &World, hash: InfoHash, mark: usize) {
    world.recorder.event_after(mark, "home", "added", hash).await;
    world.home.act(hash, "d.erase", &[]).await.unwrap();
    world.recorder.event_after(mark, "home", "removed", hash).await;
}

#[tokio::test]
async fn a_magnet_link_is_loaded_in_each_of_its_spellings() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let hash: InfoHash = "c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff".parse().unwrap();
    for link in links() {
        let mark = world.recorder.mark();
        let result = world.recorder.command("home/command/add", json!({"magnet": link, "label": "100% m"})).await;
        assert_eq!(result["status"], "ok", "{link}: {result}");
        assert_eq!(world.home.hashes().await.unwrap(), [hash], "{link}");
        erase(&world, hash, mark).await;
    }
    // On the command line, where a file may have the link, and its name need not be UTF-8.
    let named = world.folder.join(std::ffi::OsStr::from_bytes(b"caf\xe9.magnet"));
    std::fs::write(&named, links()[2].clone() + "\r\n").unwrap();
    let mark = world.recorder.mark();
    let arguments = [
        OsString::from("add"),
        named.into_os_string(),
        "--config".into(),
        world.folder.join("dtorrent.toml").into_os_string(),
    ];
    let added = tokio::process::Command::new(env!("CARGO_BIN_EXE_dtorrent")).args(arguments).output().await.unwrap();
    assert!(added.status.success(), "{added:?}");
    assert_eq!(world.home.hashes().await.unwrap(), [hash]);
    erase(&world, hash, mark).await;
    for link in &links()[2..4] {
        let mark = world.recorder.mark();
        let (code, _, errors) = world.ask(&["add", link], &[]).await;
        assert_eq!(code, 0, "{link}: {errors}");
        assert_eq!(world.home.hashes().await.unwrap(), [hash], "{link}");
        erase(&world, hash, mark).await;
    }
}

#[tokio::test]
async fn a_magnet_link_that_names_no_torrent_or_two_is_refused_with_the_reason() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let (one, other) = ("c0ffee".repeat(7)[..40].to_owned(), "ff0cee".repeat(7)[..40].to_owned());
    let v2 = |byte: &str| format!("urn:btmh:1220{}", byte.repeat(32));
    for (what, link, named) in [
        ("two hashes", format!("magnet:?xt=urn:btih:{one}&xt=urn:btih:{other}"), "different"),
        ("two hashes, numbered", format!("magnet:?xt.1=urn:btih:{one}&xt.2=urn:btih:{other}"), "different"),
        ("two of version 2", format!("magnet:?xt={}&xt={}&xt=urn:btih:{one}", v2("ab"), v2("cd")), "different"),
        ("no hash", "magnet:?dn=x".to_owned(), "xt=urn:btih"),
        ("a short hash", "magnet:?xt=urn:btih:c0ffee".to_owned(), "40 hex"),
    ] {
        let result = world.recorder.command("home/command/add", json!({"magnet": link})).await;
        assert_eq!(error_code(&result), "bad_request", "{what}: {result}");
        assert!(result["error"]["message"].as_str().unwrap().contains(named), "{what}: {result}");
        assert_eq!(world.home.hashes().await.unwrap(), [], "{what}");
    }
}
