//! What an operator sees: the log, the metrics, and the reason why a start fails.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use dtorrent_peers::content::Content;
use dtorrent_peers::process::free_port;
use serde_json::json;

use crate::harness::bridge::Bridge;
use crate::harness::http::get;
use crate::harness::recorder::error_code;
use crate::harness::{Setup, World, can_run};

/// Writes a config with a server and a broker that do not answer, on this port.
fn write_config(folder: &Path, name: &str, port: u16, data_dir: &str) -> std::path::PathBuf {
    let (client, broker) = (free_port().unwrap(), free_port().unwrap());
    let text = format!(
        "data_dir = {:?}\n[http]\nlisten = \"127.0.0.1:{port}\"\n[servers.home]\nurl = \"scgi://127.0.0.1:{client}\"\n\
         hooks = true\n[brokers.b]\nkind = \"mqtt\"\nurl = \"mqtt://127.0.0.1:{broker}\"\n",
        folder.join(data_dir)
    );
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn every_metric_that_the_docs_name_is_there_from_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port().unwrap();
    let mut bridge = Bridge::start(&write_config(folder.path(), "dtorrent.toml", port, "data"));
    bridge.wait_for_log("poll failed").await;
    let text = get(port, "/metrics").await.body;
    let mut values: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        values.entry(series.split('{').next().unwrap()).or_default().push(value);
    }
    let page = include_str!("../../docs/operations.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `dtorrent_")?.split_once('`'));
    let named: Vec<(String, &str)> = rows.map(|(name, rest)| (format!("dtorrent_{name}"), rest)).collect();
    assert!(named.len() > 30, "{named:?}");
    for (name, rest) in &named {
        let name = name.split('{').next().unwrap();
        // The first of these is answered when a client answers.
        if ["dtorrent_torrents", "dtorrent_poll_duration_seconds"].contains(&name) {
            continue;
        }
        let values = values.get(name).unwrap_or_else(|| panic!("{name} is missing in {text}"));
        if rest.starts_with(" | counter") && !["dtorrent_polls_total", "dtorrent_full_polls_total"].contains(&name) {
            assert!(values.iter().all(|value| *value == "0"), "{name}: {values:?}");
        }
    }
    for series in [
        "dtorrent_commits_full_total{server=\"home\"} 0",
        "dtorrent_polls_total{server=\"home\",result=\"ok\"} 0",
        "dtorrent_events_total{server=\"home\",kind=\"finished\"} 0",
        "dtorrent_commands_total{server=\"home\",verb=\"pause\",status=\"refused\"} 0",
        "dtorrent_commands_total{server=\"\",verb=\"log_level\",status=\"ok\"} 0",
        "dtorrent_task_restarts_total{task=\"sink b\"} 0",
        "dtorrent_deliveries_total{sink=\"b\",result=\"rejected\"} 0",
        "dtorrent_hook_wakes_total{server=\"home\"} 0",
    ] {
        assert!(text.contains(series), "{series} is not in {text}");
    }
}

#[tokio::test]
async fn a_second_start_on_the_same_port_names_the_key_and_what_holds_it() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port().unwrap();
    let config = write_config(folder.path(), "dtorrent.toml", port, "data");
    let mut bridge = Bridge::start(&config);
    bridge.wait_for_log("poll failed").await;
    let other = write_config(folder.path(), "other.toml", port, "other");
    let away = folder.path().join("away.toml");
    let text = std::fs::read_to_string(&other).unwrap();
    std::fs::write(&away, text.replace(&format!("127.0.0.1:{port}"), "192.0.2.1:8787")).unwrap();
    let same =
        format!("http.listen: cannot listen on 127.0.0.1:{port}: another dtorrent is running with the same data_dir");
    for (config, expected) in [
        (&config, same.as_str()),
        (&other, "another program uses this port, perhaps a dtorrent with another data_dir"),
        (&away, "http.listen: cannot listen on 192.0.2.1:8787: this machine does not have the address"),
    ] {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_dtorrent"));
        let output = command.args(["run", "--config"]).arg(config).output().await.unwrap();
        let printed = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{printed}");
        assert!(printed.contains(expected), "{expected} is not in {printed}");
    }
    assert!(!folder.path().join("other").try_exists().unwrap(), "nothing was created for the others");
}

#[tokio::test]
async fn the_log_says_when_a_client_is_reached_lost_and_back_and_warns_of_failed_commands() {
    if !can_run() {
        return;
    }
    let port = free_port().unwrap();
    let (http, sink) = (format!("listen = \"127.0.0.1:{port}\""), "commands = [\"*\", \"-stop\"]".to_owned());
    let mut world = World::running(Setup { http, sink, ..Setup::default() }).await;
    let version = world.home.rpc.call("system.client_version", &[]).await.unwrap().remove(0);
    let log = world.bridge().log();
    let reached = log.lines().find(|line| line.contains("client reached")).unwrap();
    assert!(reached.contains("INFO") && reached.contains(&format!("client=\"rTorrent {version}\"")), "{reached}");
    assert!(log.lines().any(|line| line.contains("INFO") && line.contains(" connected sink=b")), "{log}");

    world.home.process().kill().unwrap();
    world.bridge().wait_for_log("server offline").await;
    world.home.restart().await.unwrap();
    world.bridge().wait_for_log("client answers again").await;
    world.bridge().wait_for_log("client restarted").await;
    for (text, times) in [("client reached", 1), ("server offline", 1), ("client answers again", 1)] {
        assert_eq!(world.bridge().count_in_log(text), times, "{text}");
    }

    let hash = "ab".repeat(20);
    for (verb, body, code) in [
        ("pause", json!({"id": "gone", "hashes": [hash]}), "unknown_hash"),
        ("stop", json!({"id": "forbidden", "hashes": [hash]}), "forbidden"),
        ("puase", json!({"id": "misspelt"}), "unsupported"),
    ] {
        let id = body["id"].as_str().unwrap().to_owned();
        let result = world.recorder.command(&format!("home/command/{verb}"), body).await;
        assert_eq!(error_code(&result), code, "{result}");
        world.bridge().wait_for_log(&format!("id={id} ")).await;
        let log = world.bridge().log();
        let line = log.lines().find(|line| line.contains(&format!("id={id} "))).unwrap();
        assert!(line.contains("WARN") && line.contains(&format!("code=\"{code}\"")), "{line}");
        let is_suggested = result["error"]["message"].as_str().unwrap().contains("did you mean `pause`?");
        assert_eq!(is_suggested, verb == "puase", "{result}");
    }
    let metrics = get(port, "/metrics").await.body;
    for series in [
        "{server=\"home\",verb=\"pause\",status=\"error\"} 1",
        "{server=\"home\",verb=\"stop\",status=\"refused\"} 1",
        "{server=\"home\",verb=\"\",status=\"error\"} 1",
    ] {
        assert!(metrics.contains(&format!("dtorrent_commands_total{series}")), "{series} is not in {metrics}");
    }
}

/// Returns everything below a folder that others than its owner have rights to.
fn open_to_others(folder: &Path) -> Vec<(PathBuf, u32)> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        for path in entries.chain([folder.clone()]) {
            let metadata = path.symlink_metadata().unwrap();
            let mode = metadata.permissions().mode() & 0o7777;
            let own = if metadata.is_dir() { 0o700 } else { 0o600 };
            if mode != own {
                found.push((path.clone(), mode));
            }
            if metadata.is_dir() && path != folder {
                folders.push(path);
            }
        }
    }
    found
}

#[tokio::test]
async fn whatever_the_umask_all_that_the_bridge_makes_is_for_its_owner_alone() {
    if !can_run() {
        return;
    }
    for umask in ["000", "022", "077", "0277"] {
        for is_there in [true, false] {
            let launcher = vec!["sh".to_owned(), "-c".to_owned(), format!("umask {umask}; exec \"$0\" \"$@\"")];
            let server = "hooks = true".to_owned();
            let content = Content::file("one.iso", 20_000, 1);
            let mut world = World::new(Setup { launcher, server, ..Setup::default() }).await;
            if is_there {
                std::fs::create_dir_all(world.data_dir().join("hooks")).unwrap();
                std::fs::write(world.data_dir().join("hooks/main.home"), "").unwrap();
                for folder in ["", "hooks"] {
                    let everybody = std::fs::Permissions::from_mode(0o755);
                    std::fs::set_permissions(world.data_dir().join(folder), everybody).unwrap();
                }
            }
            world.start_bridge().await;
            world.bridge().wait_for_log("hooks installed").await;
            world.home.load(&content.torrent, false).await.unwrap();
            world.recorder.event("home", "added", content.hash).await;
            let names: BTreeSet<String> = std::fs::read_dir(world.data_dir())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            for name in ["dtorrent.sqlite3", "dtorrent.sqlite3-wal", "dtorrent.sqlite3-shm", "hooks"] {
                assert!(names.contains(name), "{umask}: {names:?}");
            }
            assert_eq!(open_to_others(&world.data_dir()), [], "{umask}, while it runs");
            let times = world.bridge().count_in_log("client reached");
            world.bridge().restart();
            world.bridge().wait_for_log_again(times, "client reached").await;
            world.bridge().stop().await;
            assert_eq!(open_to_others(&world.data_dir()), [], "{umask}, after a crash and a stop");
        }
    }
}
