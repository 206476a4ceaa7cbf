//! Torrent files that are malformed, or unusual: each is either loaded under its own hash, or refused before it is sent.

use dtorrent_peers::InfoHash;
use dtorrent_peers::rtorrent;
use serde_json::{Value, json};

use crate::harness::recorder::error_code;
use crate::harness::{Setup, World, base64, can_run};

/// Returns a file below `tests/fixtures/torrents`.
fn fixture(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/fixtures/torrents/{name}.torrent", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("read {path}: {error}"))
}

/// Returns a torrent with these bytes as its `info`.
fn torrent(info: &str) -> Vec<u8> {
    format!("d8:announce27:http://127.0.0.1:9/announce4:info{info}e").into_bytes()
}

/// Returns a torrent of one file of 20,000 bytes. `before` are pairs that sort before `length`, `after_name` and
/// `after_pieces` those that sort behind these keys.
fn single(before: &str, name: &str, after_name: &str, after_pieces: &str) -> Vec<u8> {
    let name = format!("{}:{name}", name.len());
    let pieces = format!("40:{}", "x".repeat(40));
    torrent(&format!(
        "d{before}6:lengthi20000e4:name{name}{after_name}12:piece lengthi16384e6:pieces{pieces}{after_pieces}e"
    ))
}

/// Returns a torrent of a folder with one file of 20,000 bytes, whose entry in the list has these pairs.
fn folder(name: &str, file: &str) -> Vec<u8> {
    let name = format!("{}:{name}", name.len());
    let pieces = format!("40:{}", "x".repeat(40));
    torrent(&format!("d5:filesld{file}ee4:name{name}12:piece lengthi16384e6:pieces{pieces}e"))
}

/// Returns a torrent of a folder with files of 10,000 bytes at these paths.
fn files(name: &str, paths: &[&str]) -> Vec<u8> {
    let files: String = paths.iter().map(|path| format!("d6:lengthi10000e4:pathl{path}ee")).collect();
    let pieces = format!("40:{}", "x".repeat(40));
    torrent(&format!("d5:filesl{files}e4:name1:{name}12:piece lengthi16384e6:pieces{pieces}e"))
}

async fn add(world: &World, torrent: &[u8]) -> Value {
    let body = json!({"torrent": base64(torrent), "label": "odd"});
    world.recorder.command("home/command/add", body).await
}

/// Asserts that a torrent is refused with this code and a message that has `named`, and that rTorrent shows nothing.
async fn assert_refused(world: &World, what: &str, torrent: &[u8], code: &str, named: &str) {
    let result = add(world, torrent).await;
    assert_eq!(error_code(&result), code, "{what}: {result}");
    assert!(result["error"]["message"].as_str().unwrap_or_default().contains(named), "{what}: {result}");
    assert_eq!(world.home.hashes().await.unwrap(), [], "{what}: {result}");
}

#[tokio::test]
async fn a_torrent_that_leaves_its_folder_under_any_of_its_names_is_forbidden() {
    if !can_run() {
        return;
    }
    // rTorrent takes `name.utf-8` as the path with the first line, and `name.utf8` with the second.
    let lines = vec!["encoding.add = utf-8".to_owned(), "encoding.add = utf8".to_owned()];
    let setup = Setup { rtorrent: rtorrent::Options { lines, ..Default::default() }, ..Setup::default() };
    let world = World::running(setup).await;
    let root = "r".repeat(32);
    let leaf = format!("d0:d6:lengthi20000e11:pieces root32:{root}ee");
    for (what, bytes, key) in [
        ("fixture", fixture("name-utf8-traversal"), "`name.utf-8`"),
        ("another spelling", single("", "a", "9:name.utf813:../../outside", ""), "`name.utf8`"),
        ("an absolute name", single("", "b", "10:name.utf-812:/tmp/outside", ""), "`name.utf-8`"),
        ("the folder above", single("", "c", "10:name.utf-82:..", ""), "`name.utf-8`"),
        ("name", single("", "../outside", "", ""), "`name`"),
        ("path", folder("d", "6:lengthi20000e4:pathl2:..7:outsidee"), "`path`"),
        (
            "path in another encoding",
            folder("e", "6:lengthi20000e4:pathl1:ae10:path.utf-8l2:..7:outsidee"),
            "`path.utf-8`",
        ),
        ("path with a slash", folder("f", "6:lengthi20000e4:pathl13:../../outsidee"), "`path`"),
        ("a link", folder("g", "6:lengthi20000e4:pathl1:ae12:symlink pathl2:..7:outsidee"), "`symlink path`"),
        ("the tree of a hybrid", single(&format!("9:file treed2:..d7:outside{leaf}ee"), "h", "", ""), "`file tree`"),
    ] {
        assert_refused(&world, what, &bytes, "forbidden", key).await;
        for outside in [world.folder.join("outside"), world.home.downloads.join("../outside")] {
            assert!(outside.symlink_metadata().is_err(), "{what}: {}", outside.display());
        }
    }
    let harmless = single("", "i", "10:name.utf-82:\u{e9}", "");
    assert_eq!(add(&world, &harmless).await["status"], "ok");
    assert_eq!(world.home.hashes().await.unwrap(), [InfoHash::of_torrent(&harmless).unwrap()]);
}

#[tokio::test]
async fn a_torrent_that_rtorrent_would_refuse_or_load_under_another_hash_is_refused_with_the_reason() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let pieces = |count: usize| format!("6:pieces{}:{}", 20 * count, "x".repeat(20 * count));
    let piece_length = |length: u64| {
        let count = 20_000_u64.div_ceil(length.max(1)).min(100) as usize;
        torrent(&format!("d6:lengthi20000e4:name1:n12:piece lengthi{length}e{}e", pieces(count)))
    };
    let announced = |list: &str| {
        let info = format!("d6:lengthi20000e4:name1:n12:piece lengthi16384e{}e", pieces(2));
        format!("d8:announce27:http://127.0.0.1:9/announce13:announce-list{list}4:info{info}e").into_bytes()
    };
    for (what, bytes, named) in [
        ("an unordered info", fixture("info-unordered"), "in order"),
        ("an unordered entry", folder("a", "4:pathl1:ae6:lengthi20000e"), "in order"),
        ("a key twice", single("", "b", "4:name1:c", ""), "`name`"),
        ("an unknown key twice", single("", "b", "", "1:xi1e1:xi1e"), "in order"),
        ("an unknown value out of order", single("", "d", "", "1:xd1:bi1e1:ai1ee"), "in order"),
        ("i020000e", fixture("int-leading-zero"), "integer"),
        ("i-0e", single("", "e", "", "1:xi-0e"), "integer"),
        ("i+1e", single("", "f", "", "1:xi+1e"), "integer"),
        ("04:name", fixture("text-leading-zero"), "leading zero"),
        ("a text deep inside", single("", "g", "", "1:xll01:aee"), "leading zero"),
        ("announce-list", fixture("announce-list-mixed"), "`announce-list`"),
        ("a number in a tier", announced("lli5eee"), "`announce-list`"),
        ("a list in a tier", announced("lll1:aeee"), "`announce-list`"),
        ("length and files", fixture("length-and-files"), "`files`"),
        ("length and no files", single("5:filesle", "h", "", ""), "`files`"),
        ("pieces of 512 bytes", piece_length(512), "`piece length`"),
        ("pieces of 1 KiB", piece_length(1024), "`piece length`"),
        ("pieces of 1 GiB", piece_length(1 << 30), "`piece length`"),
        (
            "too few pieces",
            torrent(&format!("d6:lengthi20000e4:name1:n12:piece lengthi16384e{}e", pieces(1))),
            "`pieces`",
        ),
        (
            "half a piece hash",
            torrent("d6:lengthi20e4:name1:n12:piece lengthi16384e6:pieces21:xxxxxxxxxxxxxxxxxxxxxe"),
            "`pieces`",
        ),
        ("a name that no file system takes", fixture("name-300-bytes"), "`name`"),
        (
            "a path that no file system takes",
            folder("i", &format!("6:lengthi20000e4:pathl256:{}e", "p".repeat(256))),
            "`path`",
        ),
        (
            "a name in another encoding that no file system takes",
            single("", "i", &format!("10:name.utf-8256:{}", "p".repeat(256)), ""),
            "`name.utf-8`",
        ),
        (
            "a path in another encoding that no file system takes",
            folder("i", &format!("6:lengthi20000e4:pathl1:ae10:path.utf-8l256:{}e", "p".repeat(256))),
            "`path.utf-8`",
        ),
        (
            "a path in another encoding as long as no file system takes",
            folder(
                "i",
                &format!("6:lengthi20000e4:pathl1:ae10:path.utf-8l{}e", format!("250:{}", "p".repeat(250)).repeat(17)),
            ),
            "`path.utf-8`",
        ),
        ("a file without a name", folder("j", "6:lengthi20000e4:pathl1:a0:e"), "`path`"),
        ("a path twice, not in a row", files("k", &["1:a", "1:b", "1:a"]), "`files`"),
        ("a path twice, with an empty name", files("l", &["1:a", "1:b", "0:1:a"]), "`files`"),
        ("a file in a file", files("m", &["1:a", "1:b", "1:a1:c"]), "`files`"),
        ("a file in the place of a folder", files("n", &["1:a1:c", "1:b", "1:a"]), "`files`"),
        (
            "a path as long as no file system takes",
            files("o", &[&format!("250:{}", "p".repeat(250)).repeat(17)]),
            "`path`",
        ),
    ] {
        assert_refused(&world, what, &bytes, "bad_request", named).await;
    }
    // Other programs write such padding, and rTorrent 0.9.8 takes it for files.
    let file = |kind: &str, path: &str| format!("d{kind}6:lengthi16384e4:pathl{path}ee");
    let paths = [("", "1:a"), ("4:attr1:p", "4:.pad"), ("", "1:b"), ("4:attr1:p", "4:.pad"), ("", "1:c")];
    let list: String = paths.iter().map(|(kind, path)| file(kind, path)).collect();
    let padded = torrent(&format!("d5:filesl{list}e4:name1:p12:piece lengthi16384e{}e", pieces(5)));
    assert_refused(&world, "the same padding twice", &padded, "unsupported", "padding").await;
    let events = world.recorder.assert_gap_free("home");
    assert!(events.iter().all(|event| event["event_type"] != "added"), "{events:?}");
}

#[tokio::test]
async fn an_unusual_torrent_that_rtorrent_loads_is_loaded() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let trailing = [single("", "trailing", "", ""), b"\r\n".to_vec()].concat();
    let outside_info = b"d8:announce027:http://127.0.0.1:9/announce13:creation datei007e4:info".to_vec();
    let info = format!("d6:lengthi20000e4:name5:outer12:piece lengthi16384e6:pieces40:{}e", "x".repeat(40));
    for (what, bytes) in [
        ("an empty name first", fixture("path-empty-first")),
        ("an empty name between", folder("between", "6:lengthi20000e4:pathl1:a0:5:a.mkve")),
        ("two empty names first", folder("first", "6:lengthi20000e4:pathl0:0:5:a.mkve")),
        ("only one name that is not empty", folder("only", "6:lengthi20000e4:pathl0:3:sub0:5:a.mkve")),
        ("surplus piece hashes", fixture("pieces-too-many")),
        ("one surplus piece hash", {
            let pieces = format!("6:pieces60:{}", "x".repeat(60));
            torrent(&format!("d6:lengthi20000e4:name7:surplus12:piece lengthi16384e{pieces}e"))
        }),
        ("a tier that is a text alone", {
            let mut bytes = b"d13:announce-listl27:http://127.0.0.1:9/announcee4:info".to_vec();
            bytes.extend(info.replace("outer", "tiers").bytes().chain(*b"e"));
            bytes
        }),
        ("a line break behind it", trailing),
        ("zeros outside of info", [outside_info, info.into_bytes(), b"e".to_vec()].concat()),
    ] {
        let hash = InfoHash::of_torrent(&bytes).unwrap();
        let result = add(&world, &bytes).await;
        assert_eq!(result["status"], "ok", "{what}: {result}");
        assert_eq!(result["results"][0]["hash"], json!(hash), "{what}");
        assert!(world.home.hashes().await.unwrap().contains(&hash), "{what}: {result}");
        assert_eq!(world.home.get(hash, "d.custom1").await.unwrap(), "odd", "{what}");
        assert_eq!(world.home.get(hash, "d.state").await.unwrap(), "1", "{what}");
    }
}
