//! The one-shot commands with a real rTorrent.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use dtorrent_peers::content::Content;
use dtorrent_peers::rtorrent::{Argument, Options, Rtorrent};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::harness::can_run;

const TIMEOUT: Duration = Duration::from_secs(60);

struct Fixture {
    home: Rtorrent,
    folder: PathBuf,
    _folder: tempfile::TempDir,
}

impl Fixture {
    async fn new() -> Self {
        let temporary = tempfile::Builder::new().prefix("dt-term-").tempdir().unwrap();
        let folder = temporary.path().to_owned();
        let home = Rtorrent::start(&folder.join("home"), &Options::default()).await.unwrap();
        let config = format!(
            "[servers.home]\nurl = \"{}\"\ninterval = \"250ms\"\nroots = [{:?}]\n",
            home.url(),
            home.downloads.to_string_lossy()
        );
        std::fs::write(folder.join("dtorrent.toml"), config).unwrap();
        Self { home, folder, _folder: temporary }
    }

    /// Starts rTorrent with complete, running torrents.
    async fn with(contents: &[&Content]) -> Self {
        let fixture = Self::new().await;
        for content in contents {
            content.write_to(&fixture.home.downloads).unwrap();
            fixture.home.load(&content.torrent, true).await.unwrap();
            fixture.home.wait_for(content.hash, "d.complete", "1").await.unwrap();
            fixture.home.wait_for(content.hash, "d.is_active", "1").await.unwrap();
        }
        fixture
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(&self.folder)
            .kill_on_drop(true)
            .env_remove("NO_COLOR")
            .env_remove("COLUMNS");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let output = self.command(env!("CARGO_BIN_EXE_dtorrent"), arguments).output();
        tokio::time::timeout(TIMEOUT, output).await.unwrap_or_else(|_| panic!("{arguments:?} took too long")).unwrap()
    }

    /// Runs a command, asserts success, and returns its output.
    #[track_caller]
    fn good(output: &Output) -> String {
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout.clone()).unwrap()
    }

    async fn does(&self, arguments: &[&str]) -> String {
        Self::good(&self.run(arguments).await)
    }

    async fn fails(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments).await;
        assert_eq!(
            (output.status.code(), output.stdout.as_slice()),
            (Some(code), &b""[..]),
            "{arguments:?}: {output:?}"
        );
        String::from_utf8(output.stderr).unwrap()
    }

    /// Runs a command on a terminal with these lines as input.
    async fn on_a_terminal(&self, line: &str, typed: &str, variables: &[(&str, &str)]) -> (Option<i32>, String) {
        let line = format!("{} {line}", env!("CARGO_BIN_EXE_dtorrent"));
        let mut command = self.command("script", &["--quiet", "--return", "--command", &line, "/dev/null"]);
        command.stdin(Stdio::piped()).envs(variables.iter().copied());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(typed.as_bytes()).await.unwrap();
        let output = tokio::time::timeout(TIMEOUT, child.wait_with_output()).await.expect("it ends").unwrap();
        drop(stdin);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

#[tokio::test]
async fn torrents_are_listed_shown_and_controlled_from_a_terminal() {
    if !can_run() {
        return;
    }
    let (one, other) =
        (Content::file("one.iso", 50_000, 1), Content::folder("Album ü", &[("a", 40_000), ("sub/b", 1)], 2));
    let fixture = Fixture::with(&[&one]).await;
    std::fs::write(fixture.folder.join("other.torrent"), &other.torrent).unwrap();
    let added =
        fixture.does(&["add", "other.torrent", "--stopped", "--label", "music", "--custom", "source=a=b"]).await;
    assert_eq!(added.trim(), other.hash.to_string());

    let rpc_hash = other.hash.to_rpc();
    let of_other = [&rpc_hash[..], "source"].map(Argument::Text);
    assert_eq!(fixture.home.rpc.call("d.custom", &of_other).await.unwrap(), ["a=b"]);

    let table = fixture.does(&["list"]).await;
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("HASH      STATUS   ") && lines[0].ends_with("NAME"), "{table}");
    assert!(lines[1].contains("stopped") && lines[1].contains("music") && lines[1].ends_with("Album ü"), "{table}");
    assert!(lines[2].contains("seeding") && lines[2].contains("100.0%"), "{table}");
    let list: Value =
        serde_json::from_str(&fixture.does(&["list", "home", "--status", "seeding", "--json"]).await).unwrap();
    assert_eq!((list.as_array().unwrap().len(), &list[0]["name"]), (1, &Value::from("one.iso")));
    assert_eq!(fixture.does(&["list", "--label", "none", "--json"]).await, "[]\n");

    let shown: Value = serde_json::from_str(&fixture.does(&["show", "Album ü", "--trackers", "--json"]).await).unwrap();
    assert_eq!((&shown["label"], shown["files"].as_array().unwrap().len()), (&Value::from("music"), 2), "{shown}");
    let page = fixture.does(&["show", &other.hash.to_string()[..8]]).await;
    assert!(page.contains("sub/b") && page.contains("stopped"), "{page}");

    let hash = one.hash.to_string();
    for (arguments, what, value) in [
        (&["pause", &hash[..6]][..], "d.is_active", "0"),
        (&["resume", "home", "one.iso"], "d.is_active", "1"),
        (&["stop", "*.iso"], "d.state", "0"),
        (&["start", "--status", "stopped", "--filter", r#"{"name": "one*"}"#], "d.state", "1"),
        (&["label", "one.iso", "linux"], "d.custom1", "linux"),
        (&["priority", "one.iso", "high"], "d.priority", "3"),
        (&["recheck", "one.iso"], "d.complete", "1"),
    ] {
        assert_eq!(fixture.does(arguments).await, "", "{arguments:?}");
        fixture.home.wait_for(one.hash, what, value).await.unwrap();
    }
    let result: Value = serde_json::from_str(&fixture.does(&["pause", "--all", "--dry-run", "--json"]).await).unwrap();
    assert_eq!(
        (&result["schema"], result["results"].as_array().unwrap().len()),
        (&Value::from("dtorrent.result/1"), 2)
    );
    assert_eq!(fixture.home.get(one.hash, "d.is_active").await.unwrap(), "1", "a dry run does nothing");

    let moved = fixture.home.downloads.join("moved");
    std::fs::create_dir(&moved).unwrap();
    fixture.does(&["move", "one.iso", &moved.to_string_lossy(), "--data"]).await;
    assert!(is_there(&moved.join("one.iso")));
    fixture.does(&["delete", "Album*"]).await;
    assert_eq!(fixture.home.hashes().await.unwrap(), [one.hash]);
    fixture.does(&["limits", "--download", "500KiB"]).await;
    assert_eq!(fixture.home.rpc.call("throttle.global_down.max_rate", &[]).await.unwrap(), ["512000"]);
}

#[tokio::test]
async fn a_command_that_fails_has_its_exit_code_and_prints_the_reason() {
    if !can_run() {
        return;
    }
    let one = Content::file("one.iso", 50_000, 1);
    let mut fixture = Fixture::with(&[&one]).await;
    for (arguments, code, reason) in [
        (&["pause"][..], 2, "no torrents selected"),
        (&["pause", "nothing"], 1, "no torrent matches `nothing`"),
        (&["pause", "--all", "--server", "attic"], 2, "unknown server `attic`; known: home"),
        (&["list", "--status", "asleep"], 2, "checking, downloading"),
        (&["list", "--filter", "{"], 2, "--filter"),
        (&["label", "one.iso"], 2, "no torrents selected"),
        (&["priority", "one.iso", "highest"], 2, "unknown priority"),
        (&["move", "one.iso", "/etc"], 1, "directory: "),
        (&["announce", "one.iso"], 1, "one.iso: it has no tracker"),
        (&["add", "missing.torrent"], 1, "missing.torrent"),
        (&["add", "dtorrent.toml"], 2, "torrent"),
        (&["delete", "one.iso", "--data"], 2, "--yes"),
        (&["pause", "one.iso", "--config", "missing.toml"], 2, "missing.toml"),
    ] {
        let printed = fixture.fails(arguments, code).await;
        assert!(printed.contains(reason), "{arguments:?}: {printed}");
    }
    fixture.home.process().kill().unwrap();
    for arguments in [
        &["list"][..],
        &["pause", "--all"],
        &["show", "one.iso"],
        &["add", "magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567"],
    ] {
        let printed = fixture.fails(arguments, 3).await;
        assert!(printed.contains("server home"), "{arguments:?}: {printed}");
    }
}

#[tokio::test]
async fn files_are_deleted_only_after_confirmation() {
    if !can_run() {
        return;
    }
    let (one, other) = (Content::file("one.iso", 50_000, 1), Content::file("other.iso", 2_000, 2));
    let fixture = Fixture::with(&[&one, &other]).await;
    let (code, printed) = fixture.on_a_terminal("delete one.iso --data", "n\n", &[]).await;
    assert!(
        code == Some(1) && printed.contains("Delete this torrent and 1 file (48.8 KiB) permanently? [y/N]"),
        "{code:?} {printed}"
    );
    assert!(is_there(&fixture.home.downloads.join("one.iso")));
    let (code, printed) = fixture.on_a_terminal("delete one.iso --data", "y\n", &[]).await;
    assert_eq!(code, Some(0), "{printed}");
    assert!(!is_there(&fixture.home.downloads.join("one.iso")));
    fixture.does(&["delete", "other.iso", "--data", "--yes"]).await;
    assert!(!is_there(&fixture.home.downloads.join("other.iso")));
    assert_eq!(fixture.home.hashes().await.unwrap(), []);
}

#[tokio::test]
async fn a_terminal_has_colours_unless_they_are_turned_off() {
    if !can_run() {
        return;
    }
    let fixture = Fixture::with(&[&Content::file("one.iso", 50_000, 1)]).await;
    let (_, coloured) = fixture.on_a_terminal("list", "", &[("TERM", "xterm")]).await;
    assert!(coloured.contains("\x1b[32mseeding"), "{coloured:?}");
    let (_, plain) = fixture.on_a_terminal("list", "", &[("TERM", "xterm"), ("NO_COLOR", "1")]).await;
    assert!(!plain.contains('\x1b') && plain.contains("seeding"), "{plain:?}");
    let (_, narrow) = fixture.on_a_terminal("list", "", &[("COLUMNS", "20"), ("NO_COLOR", "1")]).await;
    assert!(narrow.lines().all(|line| line.trim_end().chars().count() <= 20), "{narrow:?}");
}

/// A running `dtorrent watch` and its output.
fn watch(fixture: &Fixture, arguments: &[&str]) -> (Child, tokio::io::Lines<BufReader<tokio::process::ChildStdout>>) {
    let arguments: Vec<&str> = ["watch"].iter().chain(arguments).copied().collect();
    let mut child = fixture.command(env!("CARGO_BIN_EXE_dtorrent"), &arguments).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

async fn line(
    lines: &mut tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
    is_it: impl Fn(&str) -> bool,
) -> String {
    let find = async {
        loop {
            let line = lines.next_line().await.unwrap().expect("another line");
            if is_it(&line) {
                return line;
            }
        }
    };
    tokio::time::timeout(TIMEOUT, find).await.expect("the line comes")
}

#[tokio::test]
async fn watch_prints_events_and_ends_quietly_when_its_reader_closes() {
    if !can_run() {
        return;
    }
    let one = Content::file("one.iso", 50_000, 1);
    let fixture = Fixture::with(&[&one]).await;
    let (mut machine, mut json) = watch(&fixture, &["home", "--json"]);
    let (mut person, mut pretty) = watch(&fixture, &[]);
    line(&mut json, |line| line.contains("snapshot_done")).await;
    line(&mut pretty, |line| line.contains("snapshot_done")).await;
    fixture.home.act(one.hash, "d.stop", &[]).await.unwrap();
    let stopped: Value =
        serde_json::from_str(&line(&mut json, |line| line.contains("\"event_type\":\"stopped\"")).await).unwrap();
    assert_eq!((&stopped["schema"], &stopped["cause"]), (&Value::from("dtorrent.event/1"), &Value::from("observed")));
    let stopped = line(&mut pretty, |line| line.contains("  stopped")).await;
    assert!(
        stopped.contains("██████████ 100.0%") && stopped.ends_with("one.iso") && !stopped.contains('\x1b'),
        "{stopped:?}"
    );

    drop((json, pretty));
    fixture.home.act(one.hash, "d.start", &[]).await.unwrap();
    for child in [&mut machine, &mut person] {
        let status = tokio::time::timeout(TIMEOUT, child.wait()).await.expect("it ends").unwrap();
        assert_eq!(status.code(), Some(0));
    }
    let mut printed = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut machine.stderr.take().unwrap(), &mut printed).await.unwrap();
    assert_eq!(printed, "");
}

#[tokio::test]
async fn watch_waits_for_an_unreachable_client_and_stops_on_a_signal() {
    if !can_run() {
        return;
    }
    let mut fixture = Fixture::new().await;
    fixture.home.process().kill().unwrap();
    let (mut child, mut lines) = watch(&fixture, &[]);
    let mut printed = BufReader::new(child.stderr.take().unwrap()).lines();
    let unreachable = tokio::time::timeout(TIMEOUT, printed.next_line()).await.unwrap().unwrap().unwrap();
    assert!(unreachable.starts_with("server home does not answer: "), "{unreachable}");
    fixture.home.restart().await.unwrap();
    line(&mut lines, |line| line.contains("server_online")).await;
    let pid = child.id().unwrap().to_string();
    Command::new("kill").args(["-TERM", &pid]).status().await.unwrap();
    let status = tokio::time::timeout(TIMEOUT, child.wait()).await.expect("it ends").unwrap();
    assert_eq!(status.code(), Some(0));
}
