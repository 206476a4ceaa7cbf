//! The real binary: its output on each stream, and its exit codes.

#![allow(clippy::unwrap_used)] // a test that panics has failed, which is what it is for

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

const CONFIG: &str = "[servers.home]\nurl = \"unix:///run/rtorrent.sock\"\n\
    [brokers.home]\nkind = \"mqtt\"\nurl = \"mqtt://localhost\"\nusername = \"u\"\npassword = \"sesame\"\n";

fn dtorrent(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dtorrent"));
    command.args(arguments).current_dir(folder).env_clear().env("XDG_CONFIG_HOME", folder.join("none"));
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn folder_with(config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dtorrent.toml");
    fs::write(&file, config).unwrap();
    // It has a password.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    folder
}

#[test]
fn check_of_a_good_config_prints_what_will_run_to_stdout() {
    let folder = folder_with(CONFIG);
    let output = dtorrent(folder.path(), &["check"]);
    let stdout = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(text(&output.stderr), "");
    for part in
        ["server home  unix:///run/rtorrent.sock, every 1s", "broker home  mqtt://localhost:1883, topics dtorrent/…"]
    {
        assert!(stdout.contains(part), "{stdout}");
    }
    assert!(!stdout.contains("sesame"), "{stdout}");
}

#[test]
fn check_of_a_bad_config_prints_every_error_to_stderr() {
    let folder = folder_with("a = 1\nb = 2\n[servers.home]\n");
    let output = dtorrent(folder.path(), &["check", "--log-level", "loud"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(text(&output.stdout), "");
    let starts = ["dtorrent.toml:1: a:", "dtorrent.toml:2: b:", "dtorrent.toml:3: servers.home.url: is missing"];
    for start in starts.iter().chain(&["flag --log-level: log.level: `loud`", "4 errors in the config"]) {
        assert!(stderr.lines().any(|line| line.starts_with(start)), "{start} in {stderr}");
    }
}

#[test]
fn wrong_usage_exits_with_2() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in
        [&["fly"][..], &["check", "--explode"], &["check"], &["check", "--config", "missing.toml"], &["health"]]
    {
        let output = dtorrent(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn health_exits_as_healthz_answers() {
    let folder = folder_with(CONFIG);
    for (answers, code, printed) in [
        (&["HTTP/1.1 200 OK\r\n\r\nok"][..], 0, ""),
        (&["HTTP/1.1 503 Service Unavailable\r\n\r\n"], 1, "503"),
        (&["\x1b[31mwhat?"], 1, "what?"),
        (&["", "", "HTTP/1.1 200 OK\r\n\r\nok"], 0, ""),
        (&["", "HTTP/1.1 503 Service Unavailable\r\n\r\n"], 1, "503"),
        (&[""], 1, "no answer"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = thread::spawn(move || {
            let answer_one = |answer: &str| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 4096];
                let count = stream.read(&mut request).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                String::from_utf8_lossy(&request[..count]).into_owned()
            };
            answers.iter().map(|answer| answer_one(answer)).collect::<String>()
        });
        let output = dtorrent(folder.path(), &["health", "--listen", &address]);
        assert!(server.join().unwrap().starts_with("GET /healthz HTTP/1.1\r\n"));
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(stderr.contains(printed) && !stderr.contains('\x1b'), "{stderr:?}");
    }
}

#[test]
fn health_without_a_bridge_fails_and_without_an_address_is_wrong_usage() {
    let folder = folder_with(CONFIG);
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let output = dtorrent(folder.path(), &["health", "--listen", &address]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let output = dtorrent(folder.path(), &["health", "--listen", "off"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(text(&output.stderr).contains("http.listen is off"));
}

#[test]
fn check_connect_names_each_peer_that_does_not_answer() {
    let free = |()| TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (server, broker) = (free(()), free(()));
    let folder = folder_with(&format!(
        "[servers.home]\nurl = \"scgi://127.0.0.1:{server}\"\n[brokers.bus]\nkind = \"mqtt\"\nurl = \"mqtt://127.0.0.1:{broker}\"\n"
    ));
    let output = dtorrent(folder.path(), &["check", "--connect"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    for start in ["server home: ", "broker bus: "] {
        assert!(stderr.lines().any(|line| line.starts_with(start)), "{start} in {stderr}");
    }
    assert!(stderr.contains(&server.to_string()), "{stderr}");
}

#[test]
fn a_schema_is_json_on_stdout_and_needs_no_config() {
    let folder = tempfile::tempdir().unwrap();
    let about: [&[&str]; 11] = [
        &["config"],
        &["event"],
        &["result"],
        &["torrent"],
        &["files"],
        &["stats"],
        &["info"],
        &["health"],
        &["command"],
        &["command", "add"],
        &["asyncapi"],
    ];
    for what in about {
        let output = dtorrent(folder.path(), &[&["schema"], what].concat());
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{what:?}");
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let dialect = if what == ["asyncapi"] { &document["asyncapi"] } else { &document["$schema"] };
        assert!(dialect.is_string(), "{what:?}: {document:#}");
    }
    for wrong in [&["schema"][..], &["schema", "everything"], &["schema", "command", "fly"]] {
        let output = dtorrent(folder.path(), wrong);
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(2), ""), "{wrong:?}");
    }
}

#[test]
fn completions_know_every_command_in_every_shell() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = dtorrent(folder.path(), &["completions", shell]);
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{shell}");
        let script = text(&output.stdout);
        for word in ["make-torrent", "completions", "asyncapi", "log-level"] {
            assert!(script.contains(word), "{word} is not in the script for {shell}");
        }
    }
    assert_eq!(dtorrent(folder.path(), &["completions", "cmd"]).status.code(), Some(2));
}

/// Completes as a user's shell does: reads the script, sets a partial line, and calls the completion function.
#[test]
fn bash_completes_a_partial_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let script = dtorrent(folder.path(), &["completions", "bash"]).stdout;
    fs::write(folder.path().join("dtorrent.bash"), script).unwrap();
    let ask = |words: &str| {
        let count = words.split(' ').count() - 1;
        let text = format!(
            "complete() {{ :; }}; source dtorrent.bash; COMP_WORDS=({words}); COMP_CWORD={count}; \
             _dtorrent dtorrent \"${{COMP_WORDS[$COMP_CWORD]}}\" \"${{COMP_WORDS[$((COMP_CWORD - 1))]}}\"; echo \"${{COMPREPLY[@]}}\""
        );
        let output = Command::new("bash").args(["-c", &text]).current_dir(folder.path()).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    assert_eq!(ask("dtorrent mak"), "make-torrent");
    assert_eq!(ask("dtorrent schema asy"), "asyncapi");
    assert_eq!(ask("dtorrent completions fi"), "fish");
    assert_eq!(ask("dtorrent schema command file"), "file_priority");
}

#[test]
fn the_manual_has_a_page_for_each_command() {
    let folder = tempfile::tempdir().unwrap();
    let output = dtorrent(folder.path(), &["man"]);
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
    let first = text(&output.stdout);
    assert!(first.contains(".TH") && first.contains("dtorrent\\-check(1)"), "{first}");
    let output = dtorrent(folder.path(), &["man", "pages"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0), "{output:?}");
    let page = |name: &str| fs::read_to_string(folder.path().join("pages").join(name)).unwrap();
    assert_eq!(page("dtorrent.1"), first);
    for (name, words) in [
        ("dtorrent-check.1", "connect"),
        ("dtorrent-make-torrent.1", "tracker"),
        ("dtorrent-client-check.1", "PROGRAM"),
        ("dtorrent-schema-command.1", "VERB"),
        ("dtorrent-completions.1", "zsh"),
    ] {
        assert!(page(name).contains(words), "{words} is not in {name}");
    }
    let output = dtorrent(folder.path(), &["man", "pages/dtorrent.1/x"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).starts_with("dtorrent: create pages/dtorrent.1/x: "), "{output:?}");
}

#[test]
fn make_torrent_of_its_own_folder_twice_makes_the_same_torrent_and_finds_a_missing_folder_before_it_hashes() {
    let folder = folder_with(CONFIG);
    let content = folder.path().join("content");
    fs::create_dir(&content).unwrap();
    fs::write(content.join("a"), [7; 100_000]).unwrap();
    let make = |arguments: &[&str]| dtorrent(&content, &[&["make-torrent", "."], arguments].concat());
    assert_eq!(make(&[]).status.code(), Some(0));
    let first = fs::read(content.join("content.torrent")).unwrap();
    for output in ["content.torrent", "./content.torrent", content.join("content.torrent").to_str().unwrap()] {
        let made = make(&["--force", "-o", output]);
        assert_eq!(made.status.code(), Some(0), "{output}: {made:?}");
        assert_eq!(fs::read(content.join("content.torrent")).unwrap(), first, "{output}");
    }
    // Sparse, and too large to be hashed within the test.
    fs::File::create(content.join("large")).unwrap().set_len(1 << 40).unwrap();
    for output in ["none/x.torrent", "a/x.torrent", ".."] {
        let refused = make(&["--force", "-o", output]);
        assert_eq!(refused.status.code(), Some(1), "{output}: {refused:?}");
        assert!(text(&refused.stderr).contains(output), "{output}: {refused:?}");
    }
}

#[test]
fn an_argument_that_is_not_utf_8_is_named_where_json_cannot_carry_it() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    let folder = folder_with(CONFIG);
    let odd = OsStr::from_bytes(b"caf\xe9");
    for (arguments, named) in [
        (["add", "x.torrent", "--data-file"], "--data-file: "),
        (["add", "x.torrent", "--directory"], "--directory: "),
        (["move", "x", "--"], ""),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dtorrent"));
        let output = command.args(arguments).arg(odd).current_dir(folder.path()).output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let message = format!("{named}`caf\u{fffd}` is not UTF-8");
        assert!(stderr.starts_with(&message) && stderr.contains("symbolic link"), "{stderr}");
    }
    // Not the source, which may be anything, and in one word with its option.
    let joined = OsStr::from_bytes(b"--directory=/x/\xff");
    let mut command = Command::new(env!("CARGO_BIN_EXE_dtorrent"));
    let output = command.args([OsStr::new("add"), odd, joined]).current_dir(folder.path()).output().unwrap();
    let stderr = text(&output.stderr);
    assert!(stderr.starts_with("--directory: `/x/\u{fffd}` is not UTF-8"), "{stderr}");
    // The name of a file that is only read here may be anything.
    let mut command = Command::new(env!("CARGO_BIN_EXE_dtorrent"));
    let output = command.arg("add").arg(odd).current_dir(folder.path()).output().unwrap();
    assert!(text(&output.stderr).contains("No such file"), "{output:?}");
}
