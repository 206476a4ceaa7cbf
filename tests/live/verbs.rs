//! The verbs other than pause, resume, start and stop, each verified at rTorrent.

use dtorrent_peers::InfoHash;
use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent;
use serde_json::{Value, json};

use crate::harness::recorder::{Command, Message, error_code};
use crate::harness::{Setup, World, can_run};

fn topic(hash: InfoHash, verb: &str) -> String {
    format!("home/torrent/{hash}/command/{verb}")
}

#[tokio::test]
async fn rate_limits_are_set_and_zero_means_no_limit() {
    if !can_run() {
        return;
    }
    let world = World::running(Setup::default()).await;
    let limit = async |direction: &str| {
        let values = world.home.rpc.call(&format!("throttle.global_{direction}.max_rate"), &[]).await.unwrap();
        values[0].parse::<u64>().unwrap()
    };
    let body = json!({"download_limit": 500_000, "upload_limit": 102_400});
    let result = world.recorder.command("home/command/limits", body).await;
    assert_eq!((&result["status"], &result["results"]), (&json!("ok"), &json!([])), "{result}");
    assert!(limit("down").await.abs_diff(500_000) < 1024, "rTorrent counts in KiB");
    assert_eq!(limit("up").await, 102_400);

    let result = world.recorder.command("home/command/limits", json!({"download_limit": 0})).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_eq!((limit("down").await, limit("up").await), (0, 102_400), "the other one stays");

    let result = world.recorder.command("home/command/limits", json!({"upload_limit": 1})).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_eq!(limit("up").await, 1024, "as little as there is, not none");
    let shown = |all: &[Message]| {
        let stats = all.iter().rev().find(|m| m.topic == "dtorrent/home/stats")?.json();
        (stats["upload_limit"] == 1024 && stats["download_limit"] == 0).then_some(())
    };
    world.recorder.wait_for("the limits in the statistics", shown).await;
    for bad in [json!({}), json!({"upload_limit": -1}), json!({"download_limit": 1_u64 << 40})] {
        assert_eq!(error_code(&world.recorder.command("home/command/limits", bad).await), "bad_request");
    }
    assert_eq!(limit("up").await, 1024);
}

#[tokio::test]
async fn a_running_torrent_joins_a_throttle_group_and_keeps_running() {
    if !can_run() {
        return;
    }
    let mut setup = Setup::default();
    setup.rtorrent = rtorrent::Options { lines: vec!["throttle.up = slow,10".to_owned()], ..setup.rtorrent };
    setup.server = "extra = { throttle = \"d.throttle_name=\" }".to_owned();
    let content = Content::file("throttled", 50_000, 1);
    let world = World::seeding(setup, [&content]).await;
    for group in ["slow", "NULL", ""] {
        let result = world.recorder.command(&topic(content.hash, "throttle"), json!({"throttle": group})).await;
        assert_eq!(result["status"], "ok", "{group}: {result}");
        assert_eq!(world.home.get(content.hash, "d.throttle_name").await.unwrap(), group);
        assert_eq!(world.home.get(content.hash, "d.is_active").await.unwrap(), "1");
    }
    let result = world.recorder.command(&topic(content.hash, "throttle"), json!({"throttle": "unknown"})).await;
    assert_eq!(error_code(&result), "precondition", "rTorrent would take it: {result}");
    assert_eq!(world.home.get(content.hash, "d.throttle_name").await.unwrap(), "");
}

#[tokio::test]
async fn files_are_selected_by_index() {
    if !can_run() {
        return;
    }
    let content = Content::folder("several", &[("a", 40_000), ("b", 40_000), ("sub/c", 40_000)], 1);
    let mut world = World::new(Setup::default()).await;
    let hash = world.home.load(&content.torrent, true).await.unwrap();
    world.home.wait_for(hash, "d.is_active", "1").await.unwrap();
    world.start_bridge().await;
    let priorities = async || {
        use rtorrent::Argument::Text;
        world.home.rpc.call("f.multicall", &[Text(&hash.to_rpc()), Text(""), Text("f.priority=")]).await.unwrap()
    };
    assert_eq!(priorities().await, ["1", "1", "1"]);
    let body = json!({"files": [0, 2, 2], "priority": 0});
    let result = world.recorder.command(&topic(hash, "file_priority"), body).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_eq!(priorities().await, ["0", "1", "0"]);
    let result = world.recorder.command(&topic(hash, "file_priority"), json!({"files": [2], "priority": 2})).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_eq!(priorities().await, ["0", "1", "2"]);
    let result = world.recorder.command(&topic(hash, "get"), json!({"files": true})).await;
    let files: Vec<&Value> = result["results"][0]["torrent"]["files"].as_array().unwrap().iter().collect();
    assert_eq!(files.iter().map(|file| file["priority"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);

    for (bad, expected) in [
        (json!({"files": [3], "priority": 1}), "precondition"),
        (json!({"files": [0], "priority": 3}), "bad_request"),
        (json!({"files": [], "priority": 1}), "bad_request"),
        (json!({"files": [4_294_967_295_u64], "priority": 1}), "precondition"),
    ] {
        let result = world.recorder.command(&topic(hash, "file_priority"), bad).await;
        assert_eq!(error_code(&result), expected, "{result}");
    }
    assert_eq!(priorities().await, ["0", "1", "2"]);
}

#[tokio::test]
async fn a_torrent_is_moved_with_and_without_its_data() {
    if !can_run() {
        return;
    }
    let single = Content::file("single.iso", 50_000, 1);
    let folder = Content::folder("folder", &[("a", 40_000), ("sub/b", 40_000)], 2);
    let world = World::seeding(Setup::default(), [&single, &folder]).await;
    let downloads = world.home.downloads.clone();
    let (away, there) = (downloads.join("away"), downloads.join("there, \"too\""));

    // Without `data`: the content is already in the new directory.
    single.write_to(&away).unwrap();
    let body = json!({"directory": away, "id": "bare"});
    let result = world.recorder.command(&topic(single.hash, "move"), body).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_eq!(world.home.get(single.hash, "d.directory").await.unwrap(), away.to_str().unwrap());
    world.home.wait_for(single.hash, "d.is_active", "1").await.unwrap();
    world.home.wait_for(single.hash, "d.complete", "1").await.unwrap();
    let moved = world.recorder.event("home", "moved", single.hash).await;
    assert_eq!((&moved["cause"], &moved["command_id"]), (&json!("command"), &json!("bare")));
    assert!(downloads.join("single.iso").is_file(), "nothing was touched");

    // With `data`, and a torrent of several files.
    for (content, start) in [(&single, away.clone()), (&folder, downloads.clone())] {
        let body = json!({"directory": there, "data": true});
        let result = world.recorder.command(&topic(content.hash, "move"), body).await;
        assert_eq!(result["status"], "ok", "{result}");
        for (path, bytes) in &content.files {
            assert_eq!(std::fs::read(there.join(path)).unwrap(), *bytes, "{path}");
            assert!(!start.join(path).try_exists().unwrap(), "{path}");
        }
        world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
        world.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
        assert_eq!(world.home.get(content.hash, "d.hashing_failed").await.unwrap(), "0");
        world.recorder.event("home", "moved", content.hash).await;
    }
    assert!(!downloads.join("folder").try_exists().unwrap(), "its empty folder went");
    assert!(away.is_dir(), "a folder that is not its own stays");

    // A paused torrent stays paused.
    for (verb, state, active) in [("pause", "1", "0"), ("stop", "0", "0")] {
        assert_eq!(world.recorder.command(&topic(folder.hash, verb), Value::Null).await["status"], "ok");
        let place = downloads.join(verb);
        let result =
            world.recorder.command(&topic(folder.hash, "move"), json!({"directory": place, "data": true})).await;
        assert_eq!(result["status"], "ok", "{result}");
        world.home.wait_for(folder.hash, "d.state", state).await.unwrap();
        world.home.wait_for(folder.hash, "d.is_active", active).await.unwrap();
        assert_eq!(std::fs::read(place.join("folder/a")).unwrap(), folder.files[0].1);
    }
    assert_eq!(world.home.get(folder.hash, "d.custom=dtorrent_held").await.unwrap_or_default(), "");
    world.recorder.assert_gap_free("home");
}

#[tokio::test]
async fn a_move_outside_the_roots_is_refused() {
    if !can_run() {
        return;
    }
    let content = Content::file("stays.iso", 50_000, 1);
    let world = World::seeding(Setup::default(), [&content]).await;
    let downloads = world.home.downloads.clone();
    std::os::unix::fs::symlink("/etc", downloads.join("link")).unwrap();
    std::fs::create_dir(downloads.join("taken")).unwrap();
    std::fs::write(downloads.join("taken/stays.iso"), b"somebody's").unwrap();
    for (directory, data, expected) in [
        ("/etc".to_owned(), false, "forbidden"),
        ("/".to_owned(), true, "forbidden"),
        ("films".to_owned(), true, "bad_request"),
        (format!("{}/../x", downloads.display()), true, "bad_request"),
        (downloads.join("link").display().to_string(), true, "forbidden"),
        (downloads.join("taken").display().to_string(), true, "precondition"),
    ] {
        let body = json!({"directory": directory, "data": data});
        let result = world.recorder.command(&topic(content.hash, "move"), body).await;
        assert_eq!(error_code(&result), expected, "{directory}: {result}");
        world.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
        assert_eq!(world.home.get(content.hash, "d.directory").await.unwrap(), downloads.to_str().unwrap());
    }
    assert_eq!(std::fs::read(downloads.join("stays.iso")).unwrap(), content.files[0].1);
    assert_eq!(std::fs::read(downloads.join("taken/stays.iso")).unwrap(), b"somebody's");
}

#[tokio::test]
async fn a_list_has_fields_pages_and_a_filter() {
    if !can_run() {
        return;
    }
    let contents: Vec<_> = (1..=5).map(|n| Content::file(&format!("list-{n}.iso"), 10_000 * n as usize, n)).collect();
    let world = World::seeding(Setup::default(), &contents).await;
    let body = json!({"fields": ["name", "status"], "page_size": 2, "page": 2});
    let result = world.recorder.command("home/command/list", body).await;
    assert_eq!(
        (&result["total"], &result["page"], &result["page_size"]),
        (&json!(5), &json!(2), &json!(2)),
        "{result}"
    );
    let rows = result["results"].as_array().unwrap();
    assert_eq!(rows.len(), 1, "{result}");
    let torrent = rows[0]["torrent"].as_object().unwrap();
    assert_eq!(torrent.keys().collect::<Vec<_>>(), ["name", "status"], "{result}");
    for (filter, expected) in [
        (json!({"size": {"min": "30kB", "max": 40_000}}), 2),
        (json!({"name": "LIST-[12]*", "status": ["seeding", "paused"]}), 2),
        (json!({"private": true}), 0),
        (json!({"ratio": {"min": 0.5}}), 0),
        (json!({"tracker": "*"}), 0),
    ] {
        let result = world.recorder.command("home/command/list", json!({"filter": filter})).await;
        assert_eq!(result["total"], expected, "{filter}: {result}");
    }
    let result = world
        .recorder
        .command("home/command/pause", json!({"filter": {"size": {"max": "10kB"}}, "dry_run": true}))
        .await;
    assert_eq!(result["results"], json!([{"hash": contents[0].hash, "status": "ok"}]), "what would be hit");
    assert_eq!(world.home.get(contents[0].hash, "d.is_active").await.unwrap(), "1");
}

#[tokio::test]
async fn events_are_sent_again_with_their_own_ids() {
    if !can_run() {
        return;
    }
    let contents: Vec<_> = (1..=3).map(|n| Content::file(&format!("again-{n}"), 20_000, n)).collect();
    let mut world = World::seeding(Setup::default(), &contents).await;
    for verb in ["pause", "resume"] {
        assert_eq!(world.recorder.command(&topic(contents[0].hash, verb), Value::Null).await["status"], "ok");
    }
    world.recorder.event("home", "resumed", contents[0].hash).await;
    let before = world.recorder.events("home");
    let mark = world.recorder.mark();
    let result = world.recorder.command("home/command/resync", json!({"from_seq": 3})).await;
    assert_eq!(result["status"], "ok", "{result}");
    let (from, to) = (result["value"]["from_seq"].as_u64(), result["value"]["to_seq"].as_u64().unwrap());
    assert_eq!((from, to), (Some(3), before.len() as u64), "{result}");
    let repeated = |all: &[Message]| {
        let events = crate::harness::recorder::events_in(&all[mark..], "home");
        (events.len() as u64 >= to - 2).then_some(events)
    };
    let repeated = world.recorder.wait_for("the events again", repeated).await;
    assert_eq!(repeated, before[2..], "the same, in their order");

    // A new event arrives once, also across a restart of the bridge.
    assert_eq!(world.recorder.command(&topic(contents[1].hash, "stop"), Value::Null).await["status"], "ok");
    world.recorder.event("home", "stopped", contents[1].hash).await;
    world.recorder.assert_gap_free("home");
    for (from_seq, status) in [(1_000_000, "ok"), (0, "ok")] {
        let result = world.recorder.command("home/command/resync", json!({"from_seq": from_seq})).await;
        assert_eq!(result["status"], status, "{result}");
    }
    world.bridge().stop().await;
    world.recorder.assert_gap_free("home");
}

#[tokio::test]
async fn resync_republishes_everything_and_log_level_changes_the_log() {
    if !can_run() {
        return;
    }
    let contents: Vec<_> = (1..=3).map(|n| Content::file(&format!("state-{n}"), 20_000, n)).collect();
    let setup = Setup { sink: "commands = [\"*\", \"log_level\"]".to_owned(), ..Setup::default() };
    let mut world = World::seeding(setup, &contents).await;
    for (asked, others) in [("bridge/main/command/resync", true), ("home/command/resync", false)] {
        let mark = world.recorder.mark();
        let result = world.recorder.command(asked, Value::Null).await;
        assert_eq!(result["status"], "ok", "{result}");
        let mut topics: Vec<String> =
            contents.iter().map(|content| format!("dtorrent/home/torrent/{}/state", content.hash)).collect();
        topics.extend(["dtorrent/home/status".to_owned(), "dtorrent/home/stats".to_owned()]);
        topics.extend(others.then(|| "dtorrent/bridge/main/info".to_owned()));
        for topic in topics {
            let is_again = |all: &[Message]| all[mark..].iter().any(|m| m.topic == topic).then_some(());
            world.recorder.wait_for(&format!("{topic} again"), is_again).await;
        }
    }
    let result = world.recorder.command("bridge/main/command/log_level", json!({"level": "trace"})).await;
    assert_eq!(result["status"], "ok", "{result}");
    let result = world.recorder.command("bridge/main/command/log_level", json!({"level": "error"})).await;
    assert_eq!(result["status"], "ok", "{result}");
    let log = world.bridge().log();
    assert_eq!(world.recorder.command("home/command/list", Value::Null).await["status"], "ok");
    let added = world.bridge().log().split_off(log.len());
    assert!(added.lines().all(|line| line.contains("audit: ")), "only errors and commands are logged now: {added}");
    for (topic, body, expected) in [
        ("bridge/main/command/log_level", json!({"level": "loud"}), "bad_request"),
        ("bridge/main/command/log_level", json!({"level": "loud", "dry_run": true}), "bad_request"),
        ("bridge/main/command/resync", json!({"from_seq": 1}), "bad_request"),
        ("bridge/main/command/pause", json!({}), "unsupported"),
        ("home/command/log_level", json!({"level": "info"}), "bad_request"),
    ] {
        let result = world.recorder.command(topic, body).await;
        assert_eq!(error_code(&result), expected, "{topic}: {result}");
    }
}

#[tokio::test]
async fn rpc_calls_only_the_methods_that_the_config_allows() {
    if !can_run() {
        return;
    }
    let mut setup = Setup { sink: "commands = [\"*\"]".to_owned(), ..Setup::default() };
    setup.server = "rpc = [\"system.pid\", \"d.custom.set\", \"d.custom\", \"d.name\", \"f.path\"]".to_owned();
    let content = Content::file("called", 20_000, 1);
    let world = World::seeding(setup, [&content]).await;
    let hash = content.hash.to_string().to_ascii_uppercase();
    let pid = world.home.rpc.call("system.pid", &[]).await.unwrap()[0].parse::<u64>().unwrap();
    let result = world.recorder.command("home/command/rpc", json!({"method": "system.pid"})).await;
    assert_eq!((&result["status"], &result["value"]), (&json!("ok"), &json!(pid)), "{result}");
    let evil = "$execute.capture={touch,/tmp/dtorrent-never},\";\n'";
    let set = json!({"method": "d.custom.set", "params": [hash, "k", evil]});
    assert_eq!(world.recorder.command("home/command/rpc", set).await["status"], "ok");
    let get = json!({"method": "d.custom", "params": [hash, "k"]});
    assert_eq!(world.recorder.command("home/command/rpc", get).await["value"], evil, "stored as it is");
    for (body, expected) in [
        (json!({"method": "system.client_version"}), "client_fault"),
        (json!({"method": "execute.capture", "params": ["", "id"]}), "client_fault"),
        (json!({"method": "system.pid\u{0}"}), "client_fault"),
        (json!({"method": "f.path", "params": [hash]}), "precondition"),
        (json!({"method": "d.name", "params": ["0".repeat(40)]}), "client_fault"),
        (json!({"method": "d.name", "params": [[]]}), "bad_request"),
        (json!({}), "bad_request"),
    ] {
        let expected = if expected == "client_fault" && body["method"] != "d.name" { "forbidden" } else { expected };
        // A dry run asks rTorrent nothing.
        for dry_run in [false, true].into_iter().filter(|dry_run| !dry_run || expected != "client_fault") {
            let mut body = body.clone();
            body["dry_run"] = dry_run.into();
            let result = world.recorder.command("home/command/rpc", body.clone()).await;
            assert_eq!(error_code(&result), expected, "{body}: {result}");
        }
    }
    assert_eq!(world.home.hashes().await.unwrap(), [content.hash], "rTorrent still runs");
}

#[tokio::test]
async fn the_log_names_the_sender_and_the_outcome_of_a_command() {
    if !can_run() {
        return;
    }
    let content = Content::file("watched", 20_000, 1);
    let mut world = World::seeding(Setup::default(), [&content]).await;
    let at = format!("dtorrent/{}", topic(content.hash, "pause"));
    let mut command = Command::new(&at, r#"{"id": "audited"}"#);
    command.properties.user_properties = vec![("user".to_owned(), "ann <not proven>".to_owned())];
    world.recorder.send(command).await;
    assert_eq!(world.recorder.result("audited").await["status"], "ok");
    let log = world.bridge().log();
    let line = log.lines().find(|line| line.contains("command done") && line.contains("audited")).unwrap();
    for word in ["sink=b", "server=\"home\"", "ann", "verb=\"pause\"", "status=ok", &content.hash.to_string()] {
        assert!(line.contains(word), "{word} is not in {line}");
    }
    let result = world.recorder.command("home/command/explode", json!({"id": "odd"})).await;
    assert_eq!(result["status"], "error");
    world.bridge().wait_for_log("id=odd").await;
}

#[tokio::test]
async fn hundreds_of_torrents_are_read_in_one_request() {
    if !can_run() {
        return;
    }
    const COUNT: u64 = 350;
    let mut world = World::new(Setup::default()).await;
    let mut hashes = Vec::new();
    for n in 0..COUNT {
        let content = Content::file(&format!("many-{n}"), 100, n);
        hashes.push(world.home.load(&content.torrent, false).await.unwrap());
    }
    world.start_bridge().await;
    let unknown: InfoHash = "ab".repeat(20).parse().unwrap();
    let with_unknown: Vec<InfoHash> = hashes.iter().copied().chain([unknown]).collect();
    let body = json!({"hashes": with_unknown, "label": "all of them"});
    let result = world.recorder.command("home/command/label", body).await;
    let rows = result["results"].as_array().unwrap();
    assert_eq!((&result["status"], rows.len()), (&json!("partial"), COUNT as usize + 1), "{}", result["error"]);
    let failed: Vec<&Value> = rows.iter().filter(|row| row["status"] != "ok").collect();
    assert_eq!((failed.len(), &failed[0]["hash"]), (1, &json!(unknown)));
    for hash in hashes.iter().step_by(50) {
        assert_eq!(world.home.get(*hash, "d.custom1").await.unwrap(), "all%20of%20them");
    }
    for (verb, column, value) in [("start", "d.state", "1"), ("stop", "d.state", "0")] {
        let body = json!({"filter": {"label": "all of them"}});
        let result = world.recorder.command(&format!("home/command/{verb}"), body).await;
        assert_eq!(result["status"], "ok", "{verb}: {}", result["error"]);
        assert_eq!(result["results"].as_array().unwrap().len(), COUNT as usize);
        for hash in hashes.iter().step_by(50) {
            assert_eq!(world.home.get(*hash, column).await.unwrap(), value);
        }
    }
    let body = json!({"hashes": hashes, "files": true});
    let result = world.recorder.command("home/command/get", body).await;
    let row = &result["results"][0]["torrent"];
    assert_eq!((&result["status"], row["files"].as_array().map(Vec::len)), (&json!("ok"), Some(1)));
    let result = world.recorder.command("home/command/delete", json!({"filter": {}})).await;
    assert_eq!(result["status"], "ok", "{}", result["error"]);
    assert!(world.home.hashes().await.unwrap().is_empty());
    world.recorder.assert_gap_free("home");
}

#[tokio::test]
async fn a_command_waits_while_the_torrent_is_hashed_and_logs_it() {
    if !can_run() {
        return;
    }
    use sha1::Digest as _;
    const PIECE: usize = 64 << 10;
    const PIECES: usize = 65_536;
    let hash: [u8; 20] = sha1::Sha1::digest([0; PIECE]).into();
    let mut torrent =
        format!("d4:infod6:lengthi{}e4:name5:large12:piece lengthi{PIECE}e6:pieces{}:", PIECE * PIECES, 20 * PIECES);
    let mut bytes = std::mem::take(&mut torrent).into_bytes();
    bytes.extend(hash.repeat(PIECES));
    bytes.extend_from_slice(b"ee");
    let mut world = World::new(Setup { server: "timeout = \"1500ms\"".to_owned(), ..Setup::default() }).await;
    let content = std::fs::File::create(world.home.downloads.join("large")).unwrap();
    content.set_len((PIECE * PIECES) as u64).unwrap();
    world
        .home
        .rpc
        .call("network.xmlrpc.size_limit.set", &[rtorrent::Argument::Text(""), rtorrent::Argument::Text("8M")])
        .await
        .unwrap();
    let hash = world.home.load(&bytes, false).await.unwrap();
    world.start_bridge().await;
    world.home.act(hash, "d.check_hash", &[]).await.unwrap();
    let result = world.recorder.command(&topic(hash, "stop"), json!({"id": "patient"})).await;
    assert_eq!(result["status"], "ok", "{result}");
    assert_eq!(world.home.get(hash, "d.is_open").await.unwrap(), "0");
    assert_eq!(world.home.get(hash, "d.hashing").await.unwrap(), "0");
    world.bridge().wait_for_log("client busy, command waits").await;
}
