//! The real binary: what it prints where, and the code it ends with.

#![allow(clippy::unwrap_used)] // a test that panics has failed, which is what it is for

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
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
    fs::write(folder.path().join("dtorrent.toml"), config).unwrap();
    folder
}

#[test]
fn check_of_a_good_config_says_on_stdout_what_will_run() {
    let folder = folder_with(CONFIG);
    let output = dtorrent(folder.path(), &["check"]);
    let stdout = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(text(&output.stderr), "");
    for part in ["server home  unix:///run/rtorrent.sock, every 1s", "broker home  mqtt://localhost, topics dtorrent/…"]
    {
        assert!(stdout.contains(part), "{stdout}");
    }
    assert!(!stdout.contains("sesame"), "{stdout}");
}

#[test]
fn check_of_a_bad_config_says_on_stderr_all_that_is_wrong() {
    let folder = folder_with("a = 1\nb = 2\n[servers.home]\n");
    let output = dtorrent(folder.path(), &["check", "--log-level", "loud"]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(text(&output.stdout), "");
    let starts = ["dtorrent.toml:1: a:", "dtorrent.toml:2: b:", "dtorrent.toml:3: servers.home.url: is missing"];
    for start in starts.iter().chain(&["flag --log-level: log.level: `loud`", "4 faults in the config"]) {
        assert!(stderr.lines().any(|line| line.starts_with(start)), "{start} in {stderr}");
    }
}

#[test]
fn what_is_no_command_ends_with_2() {
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
fn health_is_what_healthz_answers() {
    let folder = folder_with(CONFIG);
    for (answer, code, said) in [
        ("HTTP/1.1 200 OK\r\n\r\nok", 0, ""),
        ("HTTP/1.1 503 Service Unavailable\r\n\r\n", 1, "503"),
        ("\x1b[31mwhat?", 1, "what?"),
        ("", 1, "not well"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let count = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..count]).into_owned()
        });
        let output = dtorrent(folder.path(), &["health", "--listen", &address]);
        assert!(server.join().unwrap().starts_with("GET /healthz HTTP/1.1\r\n"));
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(stderr.contains(said) && !stderr.contains('\x1b'), "{stderr:?}");
    }
}

#[test]
fn health_without_a_bridge_fails_and_without_an_address_cannot_be_asked() {
    let folder = folder_with(CONFIG);
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let output = dtorrent(folder.path(), &["health", "--listen", &address]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let output = dtorrent(folder.path(), &["health", "--listen", "off"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(text(&output.stderr).contains("http.listen is off"));
}

#[test]
fn check_connect_names_each_one_that_nobody_answers_for() {
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
