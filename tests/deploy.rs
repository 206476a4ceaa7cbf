//! The files in `deploy/`: the broker starts with its config, its access rules are enforced, systemd accepts the unit.

#![allow(clippy::unwrap_used)] // a test that panics has failed, which is what it is for

#[path = "rules/config_keys.rs"]
mod config_keys;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use self::skip::are_installed;

#[path = "live/harness/skip.rs"]
mod skip;

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");

/// Programs of the broker, with their Debian package.
const BROKER: [(&str, &str); 4] = [
    ("mosquitto", "mosquitto"),
    ("mosquitto_passwd", "mosquitto"),
    ("mosquitto_pub", "mosquitto-clients"),
    ("mosquitto_sub", "mosquitto-clients"),
];

fn program(name: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(name);
    command.env("PATH", format!("{path}:/usr/sbin")).stdin(Stdio::null());
    command
}

/// A running broker; killed when dropped.
struct Broker {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _was_gone = self.child.kill().is_err();
        let _was_gone = self.child.wait().is_err();
    }
}

impl Broker {
    /// Starts mosquitto with the config of the compose stack, with other paths and another port. Each user's password is its
    /// name.
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let passwords = folder.path().join("passwords");
        fs::write(&passwords, ["bridge", "reader", "commander"].map(|user| format!("{user}:{user}\n")).concat())
            .unwrap();
        assert!(program("mosquitto_passwd").arg("-U").arg(&passwords).status().unwrap().success());
        Self::start_with(&passwords, folder)
    }

    fn start_with(passwords: &Path, folder: tempfile::TempDir) -> Self {
        let at = |name: &str| folder.path().join(name).display().to_string();
        fs::create_dir(folder.path().join("data")).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = fs::read_to_string(format!("{DEPLOY}/mosquitto/mosquitto.conf")).unwrap();
        let mut adapted = config.clone();
        for (from, to) in [
            ("listener 1883", format!("listener {port} 127.0.0.1\nuser root")),
            ("/run/secrets/mosquitto_passwords", passwords.display().to_string()),
            ("/mosquitto/config/acl", format!("{DEPLOY}/mosquitto/acl")),
            ("/mosquitto/data/", at("data/")),
        ] {
            assert!(adapted.contains(from), "{from} is not in\n{config}");
            adapted = adapted.replace(from, &to);
        }
        fs::write(folder.path().join("mosquitto.conf"), adapted).unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let mut command = program("mosquitto");
        let mut child = command.args(["-c", &at("mosquitto.conf")]).stderr(log).stdout(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let printed = fs::read_to_string(folder.path().join("log")).unwrap();
            assert!(child.try_wait().unwrap().is_none(), "mosquitto ended: {printed}");
            assert!(Instant::now() < deadline, "mosquitto does not listen: {printed}");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, port, _folder: folder }
    }

    fn client(&self, name: &str, user: &str, more: &[&str]) -> Output {
        self.client_as(name, user, user, more)
    }

    fn client_as(&self, name: &str, user: &str, password: &str, more: &[&str]) -> Output {
        let port = self.port.to_string();
        program(name).args(["-h", "127.0.0.1", "-p", &port, "-u", user, "-P", password]).args(more).output().unwrap()
    }

    /// Publishes a retained message and returns whether a reader receives it.
    fn accepts(&self, user: &str, topic: &str) -> bool {
        let sent = self.client("mosquitto_pub", user, &["-V", "5", "-q", "1", "-r", "-t", topic, "-m", user]);
        let found = self.client("mosquitto_sub", "reader", &["-t", topic, "-C", "1", "-W", "1", "-F", "%p"]);
        let _cleared = self.client("mosquitto_pub", "bridge", &["-q", "1", "-r", "-t", topic, "-n"]);
        sent.status.success() && found.stdout == format!("{user}\n").as_bytes()
    }
}

#[test]
fn the_access_rules_of_the_broker_are_enforced() {
    if !are_installed(&BROKER) {
        return;
    }
    let broker = Broker::start();
    let state = "dtorrent/home/torrent/3f78000000000000000000000000000000000000/state";
    let one = "dtorrent/home/torrent/3f78000000000000000000000000000000000000/command/pause";
    for (user, topic, is_accepted) in [
        ("bridge", state, true),
        ("bridge", "dtorrent/bridge/main/status", true),
        ("bridge", "elsewhere", false),
        ("reader", state, false),
        ("reader", "dtorrent/home/command/pause", false),
        ("commander", "dtorrent/home/command/pause", true),
        ("commander", one, true),
        ("commander", "dtorrent/bridge/main/command/resync", true),
        ("commander", state, false),
        ("commander", "dtorrent/home/status", false),
    ] {
        assert_eq!(broker.accepts(user, topic), is_accepted, "{user} on {topic}");
    }
    let port = broker.port.to_string();
    let anonymous = program("mosquitto_pub").args(["-h", "127.0.0.1", "-p", &port, "-t", "x", "-n"]).output().unwrap();
    assert!(!anonymous.status.success(), "the broker refuses connections without a login");
}

#[test]
fn a_retained_state_of_a_thousand_torrents_and_more_reaches_a_new_reader() {
    if !are_installed(&BROKER) {
        return;
    }
    let broker = Broker::start();
    let port = broker.port.to_string();
    let count = 1500;
    // One client publishes one message a line, so that a thousand messages need one connection.
    for chunk in (0..count).collect::<Vec<u32>>().chunks(100) {
        let children: Vec<Child> = chunk
            .iter()
            .map(|number| {
                let topic = format!("dtorrent/home/torrent/{number:040x}/state");
                let login = ["-h", "127.0.0.1", "-p", &port, "-u", "bridge", "-P", "bridge"];
                program("mosquitto_pub").args(login).args(["-q", "1", "-r", "-t", &topic, "-m", "{}"]).spawn().unwrap()
            })
            .collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
    }
    let all = count.to_string();
    let found =
        broker.client("mosquitto_sub", "reader", &["-q", "1", "-t", "dtorrent/#", "-C", &all, "-W", "20", "-F", "%t"]);
    assert_eq!(String::from_utf8(found.stdout).unwrap().lines().count(), count as usize);
}

#[test]
fn passwords_are_made_unreadable_for_others_and_never_passed_as_arguments() {
    if !are_installed(&BROKER) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::copy(format!("{DEPLOY}/make-secrets.sh"), at("make-secrets.sh")).unwrap();
    // In the place of the real one: notes its arguments, and what others may read at that moment.
    let real = program("sh").args(["-c", "command -v mosquitto_passwd"]).output().unwrap().stdout;
    let noting = format!(
        "#!/bin/sh\necho \"$@\" >>{0}/arguments\nfind {0}/secrets -perm /o+rwx >>{0}/readable\nexec {1} \"$@\"\n",
        folder.path().display(),
        String::from_utf8(real).unwrap().trim()
    );
    fs::create_dir(at("bin")).unwrap();
    fs::write(at("bin/mosquitto_passwd"), noting).unwrap();
    fs::set_permissions(at("bin/mosquitto_passwd"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", at("bin").display(), std::env::var("PATH").unwrap());
    let run = || {
        let made = program("bash").arg(at("make-secrets.sh")).env("PATH", &path).output().unwrap();
        assert!(made.status.success(), "{made:?}");
    };
    run();
    let files = || fs::read_dir(at("secrets")).unwrap().map(|entry| entry.unwrap().path());
    let password = |user: &str| fs::read_to_string(at(&format!("secrets/{user}_password"))).unwrap().trim().to_owned();
    let arguments = fs::read_to_string(at("arguments")).unwrap();
    for user in ["bridge", "reader", "commander", "homeassistant"] {
        assert!(password(user).len() >= 24 && !arguments.contains(&password(user)), "{user}: {arguments}");
    }
    assert_eq!(fs::read_to_string(at("readable")).unwrap(), "", "while they are made");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&at("secrets")), 0o700);
    assert_eq!(files().count(), 5, "nothing else is left there");
    assert!(files().all(|file| [0o600, 0o640].contains(&mode(&file))), "the group is that of the containers");

    // A second run changes nothing, but for permissions that an earlier version gave.
    let before = fs::read(at("secrets/mosquitto_passwords")).unwrap();
    files().for_each(|file| fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap());
    run();
    assert_eq!(fs::read(at("secrets/mosquitto_passwords")).unwrap(), before);
    assert!(files().all(|file| mode(&file) & 0o007 == 0));

    let broker = Broker::start_with(&at("secrets/mosquitto_passwords"), tempfile::tempdir().unwrap());
    let login = |password: &str| {
        broker.client_as("mosquitto_sub", "reader", password, &["-t", "dtorrent/#", "-E", "-W", "5"]).status.success()
    };
    assert!(login(&password("reader")) && !login(&password("bridge")));
}

#[test]
fn no_program_of_the_stack_gets_a_password_as_an_argument() {
    let text = fs::read_to_string(Path::new(DEPLOY).join("compose.yaml")).unwrap();
    let as_argument = text.lines().filter(|line| !line.trim_start().starts_with('#') && line.contains("$$(cat"));
    // A variable of the shell's own is no argument.
    let wrong: Vec<&str> = as_argument.filter(|line| !line.trim_start().starts_with("NATS_")).collect();
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn systemd_understands_the_unit() {
    if !are_installed(&[("systemd-analyze", "systemd")]) {
        return;
    }
    // systemd checks that the program exists; it is not installed here, so another one takes its place.
    let folder = tempfile::tempdir().unwrap();
    let unit = fs::read_to_string(format!("{DEPLOY}/dtorrent.service")).unwrap();
    let adapted = folder.path().join("dtorrent.service");
    fs::write(&adapted, unit.replace("/usr/local/bin/dtorrent", "/bin/true")).unwrap();
    let output = program("systemd-analyze").arg("verify").arg(&adapted).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!printed.contains("dtorrent.service"), "{printed}");
}

#[test]
fn the_compose_stack_is_consistent_with_and_without_each_profile() {
    let text = fs::read_to_string(format!("{DEPLOY}/compose.yaml")).unwrap();
    let mut stack: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text).unwrap();
    stack.apply_merge().unwrap();
    let names = |value: &serde_yaml_ng::Value| -> Vec<String> {
        let of_list = value.as_sequence().into_iter().flatten();
        let of_table = value.as_mapping().into_iter().flat_map(|table| table.keys());
        of_list.chain(of_table).map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    let services = stack["services"].as_mapping().unwrap();
    let profiles = |service: &str| names(&stack["services"][service]["profiles"]);
    assert_eq!(profiles("mosquitto"), Vec::<String>::new());
    for service in ["nats", "dtorrent-nats"] {
        assert_eq!(profiles(service), ["nats"]);
    }
    let mut states = Vec::new();
    for (name, service) in services {
        let name = name.as_str().unwrap();
        for other in names(&service["depends_on"]) {
            assert!(services.contains_key(other.as_str()), "{name} needs {other}");
            let comes_along = profiles(&other).iter().all(|profile| profiles(name).contains(profile));
            assert!(comes_along, "{name} needs {other}, which its profile does not start");
        }
        for secret in names(&service["secrets"]) {
            assert!(names(&stack["secrets"]).contains(&secret), "{name}: the secret {secret}");
        }
        for mount in names(&service["volumes"]) {
            let (from, to) = mount.split_once(':').unwrap();
            let is_there = match from.strip_prefix("./") {
                Some(file) => Path::new(DEPLOY).join(file).try_exists().unwrap(),
                None => names(&stack["volumes"]).contains(&from.to_owned()),
            };
            assert!(is_there, "{name}: {mount}");
            if to == "/var/lib/dtorrent" {
                states.push(from.to_owned());
            }
        }
    }
    assert_eq!(states, ["state", "state-nats"], "two bridges with one state");
}

#[test]
fn every_environment_variable_in_the_stack_is_a_config_key() {
    let keys = config_keys::keys();
    for file in ["compose.yaml", "Dockerfile", "dtorrent.service"] {
        let text = fs::read_to_string(Path::new(DEPLOY).join(file)).unwrap();
        let names =
            text.split(|c: char| !c.is_ascii_uppercase() && c != '_').filter(|word| word.starts_with("DTORRENT_"));
        for name in names {
            let key = name
                .trim_start_matches("DTORRENT_")
                .to_lowercase()
                .replace("__home__", ".*.")
                .replace("__bus__", ".*.")
                .replace("__", ".");
            assert!(keys.contains(&key), "{name} in {file}");
        }
    }
}
