//! The one-shot commands on a terminal and in a pipe, with hostile torrent names.

#![allow(clippy::unwrap_used)] // a test that panics has failed, which is what it is for

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use dtorrent::model::is_active;
use serde_json::{Value, json};

/// A name with control characters that colour, beep, set the window's title, move the cursor and reverse text.
const HOSTILE: &str = "a\u{1b}]0;mine\u{7}\u{1b}[2Jb\u{9b}31mc\u{7f}d\u{202e}gpj.exe\r\nx";

struct Fixture {
    folder: tempfile::TempDir,
}

fn torrent(hash: u8, name: &str) -> Value {
    json!({"hash": format!("{hash:02x}").repeat(20), "name": name, "length": 100, "active": true, "downloaded": 50,
           "uploaded": 0, "path": null, "label": name, "message": name, "error": true})
}

impl Fixture {
    /// Returns a setup with these servers and torrents.
    fn new(servers: &[(&str, Vec<Value>)]) -> Self {
        Self::slow(servers, "0")
    }

    /// Delays each answer by this many seconds.
    fn slow(servers: &[(&str, Vec<Value>)], seconds: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let client = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/client.py");
        let late = folder.path().join("late.sh");
        fs::write(
            &late,
            format!("while read -r line; do sleep {seconds}; echo \"$line\"; done | python3 {client} $1\n"),
        )
        .unwrap();
        let mut config = String::new();
        for (name, torrents) in servers {
            let file = folder.path().join(format!("{name}.json"));
            fs::write(&file, json!(torrents).to_string()).unwrap();
            let root = folder.path();
            config += &format!(
                "[servers.{name}]\nclient = \"exec\"\nroots = [{root:?}]\ncommand = [\"sh\", {late:?}, {file:?}]\n"
            );
        }
        fs::write(folder.path().join("dtorrent.toml"), config).unwrap();
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(self.path()).env_remove("COLUMNS").env_remove("NO_COLOR");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(env!("CARGO_BIN_EXE_dtorrent"), arguments).output().unwrap()
    }

    #[track_caller]
    fn does(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command on a terminal, and returns its output there.
    fn output_of(&self, line: &str, variables: &[(&str, &str)]) -> String {
        let line = format!("{} {line}", env!("CARGO_BIN_EXE_dtorrent"));
        let mut command = self.command("script", &["--quiet", "--return", "--command", &line, "/dev/null"]);
        let output = command.env("TERM", "xterm").envs(variables.iter().copied()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn torrents(&self, server: &str) -> Vec<Value> {
        serde_json::from_slice(&fs::read(self.path().join(format!("{server}.json"))).unwrap()).unwrap()
    }
}

#[track_caller]
fn does_nothing(shown: &str) {
    let bad: Vec<char> = shown.chars().filter(|c| is_active(*c) && !matches!(c, '\r' | '\n')).collect();
    assert!(bad.is_empty(), "{bad:?} in {shown:?}");
    assert!(shown.contains("gpj.exe"), "the name is there: {shown:?}");
}

#[test]
fn no_torrent_name_sends_control_sequences_to_a_terminal() {
    let fixture = Fixture::new(&[("home", vec![torrent(0xab, HOSTILE)])]);
    let plain = [("NO_COLOR", "1")];
    for line in ["list", "list --json", "show abab", "show abab --json", "pause abab", "resume --all --json"] {
        // The spinner clears its line.
        does_nothing(&fixture.output_of(line, &plain).replace("\u{1b}[2K", ""));
    }
    let printed = fixture.run(&["show", HOSTILE, HOSTILE]);
    assert_eq!(printed.status.code(), Some(2), "{printed:?}");
    let printed = fixture.run(&["pause", &format!("no{HOSTILE}")]);
    does_nothing(&String::from_utf8(printed.stderr).unwrap());
    fs::write(fixture.path().join(format!("{}.torrent", HOSTILE.replace('/', ""))), "x").unwrap();
    let printed = fixture.run(&["make-torrent", &format!("{HOSTILE}.torrent"), "-o", &format!("none/{HOSTILE}")]);
    does_nothing(&String::from_utf8(printed.stderr).unwrap());
}

#[test]
fn json_keeps_names_unchanged_and_escapes_control_characters() {
    let fixture = Fixture::new(&[("home", vec![torrent(0xab, HOSTILE)])]);
    for arguments in [&["list", "--json"][..], &["show", "abab", "--json"]] {
        let text = fixture.does(arguments);
        does_nothing(&text);
        let value: Value = serde_json::from_str(&text).unwrap();
        let torrent = if value.is_array() { &value[0] } else { &value };
        assert_eq!(torrent["name"], HOSTILE);
    }
    let mut watch =
        fixture.command(env!("CARGO_BIN_EXE_dtorrent"), &["watch", "--json", "--events", "added"]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(watch.stdout.take().unwrap()).read_line(&mut line).unwrap();
    does_nothing(&line);
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["torrent"]["name"], HOSTILE);
    end(watch);
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn torrents_with_equal_names_and_one_torrent_on_two_servers_are_all_listed() {
    let one = torrent(0xab, "same");
    let fixture = Fixture::new(&[("home", vec![one.clone(), torrent(0xcd, "same")]), ("attic", vec![one])]);
    for pattern in ["same", "SAM?", "*"] {
        let list: Vec<Value> = serde_json::from_str(&fixture.does(&["list", "--name", pattern, "--json"])).unwrap();
        assert_eq!(list.len(), 3, "{pattern}: {list:?}");
    }
    assert_eq!(fixture.does(&["list", "--name", "other", "--json"]), "[]\n");
    let wrong = fixture.run(&["list", "--name", "a[", "--json"]);
    assert_eq!((wrong.status.code(), &wrong.stdout[..]), (Some(2), &b""[..]), "{wrong:?}");
}

/// Runs with a closed pipe as stdout.
fn unread(fixture: &Fixture, arguments: &[&str]) -> (Option<i32>, String) {
    let mut child = fixture.command(env!("CARGO_BIN_EXE_dtorrent"), arguments).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_closed_pipe_ends_the_output_quietly_and_the_command_is_still_executed() {
    let fixture = Fixture::new(&[("home", vec![torrent(0xab, "one")])]);
    for arguments in [
        &["list"][..],
        &["list", "--json"],
        &["show", "one"],
        &["check"],
        &["man"],
        &["completions", "zsh"],
        &["schema", "asyncapi"],
        &["make-torrent", "dtorrent.toml", "-o", "-"],
    ] {
        let (code, printed) = unread(&fixture, arguments);
        let has_summary = arguments[0] == "make-torrent";
        assert_eq!((code, printed.is_empty() || has_summary), (Some(0), true), "{arguments:?}: {printed}");
    }
    let magnets: Vec<String> =
        (1..=3).map(|n| format!("magnet:?xt=urn:btih:{}", format!("{n:02}").repeat(20))).collect();
    let arguments: Vec<&str> = ["add"].into_iter().chain(magnets.iter().map(String::as_str)).collect();
    assert_eq!(unread(&fixture, &arguments), (Some(0), String::new()));
    assert_eq!(fixture.torrents("home").len(), 4, "all were added");
    let (code, printed) = unread(&fixture, &["announce", "one", "--json"]);
    assert_eq!(code, Some(1), "the failure is reported all the same: {printed}");
}

/// A file whose check takes a moment.
fn large(fixture: &Fixture, bytes: u64) -> PathBuf {
    let path = fixture.path().join("large.iso");
    fs::File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

#[test]
fn long_work_shows_its_progress_on_a_terminal_and_nothing_in_a_pipe() {
    let fixture = Fixture::slow(&[("home", vec![torrent(0xab, "one")])], "0.7");
    let large = large(&fixture, 32 << 20);
    let made = fixture.output_of("make-torrent large.iso", &[]);
    assert!(made.contains("reading ") && made.contains("/32.00 MiB"), "{made:?}");
    let piped = fixture.run(&["make-torrent", "large.iso", "--force"]);
    assert_eq!(String::from_utf8(piped.stderr).unwrap().lines().count(), 1, "only the summary");

    let waited = fixture.output_of("pause one", &[]);
    assert!(waited.contains("reading home") && waited.contains("waiting until it is seen"), "{waited:?}");
    assert_eq!(fixture.run(&["resume", "one"]).stderr, b"one: resumed\n");

    let add = format!("add large.iso.torrent --data-file {}", large.display());
    let checked = fixture.output_of(&add, &[]);
    assert!(checked.contains("checking ") && checked.contains("/32.00 MiB"), "{checked:?}");
    fixture.run(&["make-torrent", "large.iso", "--private", "-o", "other.torrent"]);
    let piped = fixture.run(&["add", "other.torrent", "--data-file", large.to_str().unwrap()]);
    assert!(!String::from_utf8_lossy(&piped.stderr).contains("checking "), "{piped:?}");
}

#[test]
fn a_list_shows_the_status_of_a_torrent_in_error_and_the_error_beside_it() {
    let paused = json!({"hash": "ab".repeat(20), "name": "one", "length": 100, "active": false, "downloaded": 50,
                        "uploaded": 0, "path": null, "status": "paused", "error": true,
                        "message": "Tracker: [Failure reason \"torrent not registered with this tracker\"]"});
    let mut silent = paused.clone();
    silent["hash"] = json!("cd".repeat(20));
    silent["message"] = json!("");
    let fixture = Fixture::new(&[("home", vec![paused, silent])]);
    let list = fixture.does(&["list"]);
    let narrow = fixture.output_of("list", &[("COLUMNS", "40"), ("NO_COLOR", "1")]);
    for table in [list, narrow] {
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].starts_with("HASH      STATUS  ERROR  "), "{table}");
        assert!(lines[1].starts_with("abababab  paused  yes    "), "{table}");
    }
    let silent = fixture.does(&["show", "cdcd"]);
    assert!(silent.contains("\nerror       without a message\n"), "{silent}");
    let page = fixture.does(&["show", "abab"]);
    assert!(page.contains("\nstatus      paused\nerror       Tracker: "), "{page}");
}

#[test]
fn an_unknown_name_is_an_error_that_names_the_nearest_and_all_that_exist() {
    let fixture = Fixture::new(&[("home", vec![torrent(0xab, "one")]), ("attic", vec![])]);
    let config = fixture.path().join("dtorrent.toml");
    let text = fs::read_to_string(&config).unwrap();
    let sinks =
        "[brokers.bus]\nkind = \"mqtt\"\nurl = \"mqtt://localhost\"\n[webhooks.ntfy]\nurl = \"http://localhost/x\"\n";
    fs::write(&config, format!("{text}{sinks}")).unwrap();
    for (arguments, expected) in [
        (&["list", "hone"][..], "unknown server `hone`; did you mean `home`? known: attic, home"),
        (&["watch", "cellar"], "unknown server `cellar`; known: attic, home"),
        (&["pause", "--all", "--server", "Attic"], "unknown server `Attic`; did you mean `attic`? known: attic, home"),
        (&["limits", "hom"], "did you mean `home`?"),
        (&["dead-letters", "list", "buss"], "unknown broker or webhook `buss`; did you mean `bus`? known: bus, ntfy"),
        (&["dead-letters", "list", "other", "--json"], "unknown broker or webhook `other`; known: bus, ntfy"),
        (&["dead-letters", "replay", "nfty", "--all"], "did you mean `ntfy`?"),
        (&["dead-letters", "drop", "ntfy.home", "--all"], "unknown broker or webhook `ntfy.home`; known: bus, ntfy"),
        (&["watch", "--events", "finised"], "did you mean `finished`? known: journal_reset, "),
        (&["list", "--status", "pause"], "did you mean `paused`? known: checking, "),
        (&["priority", "home", "one", "hihg"], "unknown priority `hihg`; did you mean `high`? known: off, low, "),
        (&["check", "--log-level", "inof"], "`inof` is an unknown value; did you mean \"info\"? write \"error\" or "),
        (&["schema", "command", "pose"], "pause"),
    ] {
        let output = fixture.run(arguments);
        let printed = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(2), &b""[..]), "{arguments:?}: {printed}");
        assert!(printed.contains(expected), "{arguments:?}: {printed}");
    }
    fs::write(&config, format!("{text}{sinks}servers = [\"hone\"]\nevents = [\"finised\"]\n")).unwrap();
    let output = fixture.run(&["check"]);
    let printed = String::from_utf8(output.stderr).unwrap();
    assert!(printed.contains("`hone` is an unknown server; did you mean `home`? known: "), "{printed}");
    assert!(printed.contains("`finised` is an unknown kind of event; did you mean `finished`? known: "), "{printed}");
}
