//! The dependency rule of `src/lib.rs`, checked by reading the source.

#![allow(clippy::unwrap_used)] // a test that panics has failed, which is what it is for

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use self::files::Files;

#[path = "architecture/files.rs"]
mod files;

/// The rooms that each room may use; all others are forbidden.
const USES: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("port", &["model"]),
    ("connect", &[]),
    ("tls", &["connect"]),
    ("live_state", &["model", "port"]),
    ("log_throttle", &["port"]),
    // the engine
    ("diff", &["model"]),
    ("outbox", &["model", "port", "live_state", "log_throttle"]),
    ("commands", &["connect", "model", "port", "live_state", "log_throttle", "outbox"]),
    ("watch", &["model", "port", "live_state", "log_throttle", "diff", "commands"]),
    // adapters, which do not use each other
    ("clients", &["connect", "model", "port", "tls"]),
    ("sinks", &["connect", "model", "port", "tls"]),
    ("store", &["model", "port"]),
    ("http", &["model", "port", "log_throttle"]),
    ("config", &["model", "clients", "sinks", "tls"]),
    ("telemetry", &["model", "port", "live_state", "config"]),
    ("supervise", &["port", "outbox"]),
    // composition
    ("servers", &["model", "port", "live_state", "commands", "watch", "supervise"]),
    (
        "manager",
        &["model", "port", "live_state", "outbox", "commands", "watch", "servers", "clients", "store", "supervise"],
    ),
    (
        "app",
        &[
            "model",
            "port",
            "live_state",
            "log_throttle",
            "outbox",
            "commands",
            "watch",
            "clients",
            "sinks",
            "store",
            "tls",
            "http",
            "config",
            "telemetry",
            "servers",
            "supervise",
        ],
    ),
    ("demo", &[]),
    ("testing", &["model", "port"]),
    ("schema", &["model", "commands"]),
    (
        "cli",
        &[
            "model",
            "port",
            "outbox",
            "clients",
            "config",
            "telemetry",
            "supervise",
            "manager",
            "app",
            "demo",
            "testing",
            "schema",
        ],
    ),
    ("main", &["cli"]),
    ("lib", &[]),
];

/// Rooms that are pure as a whole. Other files say `Pure` in their module doc.
const PURE_ROOMS: [&str; 3] = ["model", "diff", "schema"];

/// Words that a pure file does not contain. Addresses are plain values, sockets are not.
const PURE_LACKS: [&str; 11] = [
    "tokio",
    "std::fs",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "ToSocketAddrs",
    "std::env",
    "Instant",
    "SystemTime",
    "Timestamp::now",
    "async ",
];

/// Returns every source file with its text, without its tests, which are at the end of a file and may use any room.
fn sources() -> Vec<(PathBuf, String)> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    collect(Path::new("src"), &mut paths);
    paths.sort();
    let without_tests = |text: String| text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned();
    paths.into_iter().map(|path| (path.clone(), without_tests(fs::read_to_string(&path).unwrap()))).collect()
}

/// Returns the folder or file directly below `src/` that a file belongs to.
fn room(path: &Path) -> String {
    let first = path.components().nth(1).unwrap();
    Path::new(&first).file_stem().unwrap().to_string_lossy().into_owned()
}

/// Returns, for each room, the rooms that it uses, with the files that do.
fn uses_of_rooms(files: &Files) -> BTreeMap<String, BTreeMap<String, Vec<String>>> {
    let mut rooms: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    for (file, used) in files.uses() {
        let of_room = rooms.entry(room(file)).or_default();
        for other in used.keys().filter(|other| room(other) != room(file)) {
            of_room.entry(room(other)).or_default().push(file.display().to_string());
        }
    }
    rooms
}

#[test]
fn no_room_uses_one_that_it_must_not() {
    let allowed: BTreeMap<&str, &[&str]> = USES.iter().copied().collect();
    let mut wrong = Vec::new();
    for (room, used) in uses_of_rooms(&Files::read(Path::new("src"))) {
        let allowed = allowed.get(room.as_str()).unwrap_or_else(|| panic!("{room} is new: add what it may use"));
        let forbidden = used.into_iter().filter(|(other, _)| !allowed.contains(&other.as_str()));
        wrong.extend(forbidden.map(|(other, files)| format!("{room} uses {other} in {files:?}")));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_allowed_use_of_a_room_occurs() {
    let found = uses_of_rooms(&Files::read(Path::new("src")));
    for (room, allowed) in USES {
        let idle: Vec<_> = allowed.iter().filter(|other| !found[*room].contains_key(**other)).collect();
        assert!(idle.is_empty(), "{room} no longer uses {idle:?}");
    }
}

/// A file that no module names is not compiled, and the tests in it are not run.
#[test]
fn every_source_file_is_a_module() {
    let is_named = |path: &Path| {
        let is_mod = path.ends_with("mod.rs");
        let module = if is_mod { path.parent().unwrap() } else { path };
        let name = module.file_stem().unwrap().to_string_lossy().into_owned();
        let parents = ["mod.rs", "lib.rs", "main.rs"].map(|parent| module.with_file_name(parent));
        parents
            .into_iter()
            .filter_map(|parent| fs::read_to_string(parent).ok())
            .any(|text| text.lines().any(|line| line.trim_end().ends_with(&format!("mod {name};"))))
    };
    let crates = ["lib.rs", "main.rs"].map(|name| Path::new("src").join(name));
    let stray: Vec<_> =
        sources().into_iter().map(|(path, _)| path).filter(|path| !crates.contains(path) && !is_named(path)).collect();
    assert!(stray.is_empty(), "{stray:?}");
}

/// A submodule is a part of its parent, so that it may use what the parent's file defines.
#[test]
fn files_do_not_use_each_other_in_a_circle() {
    let files = Files::read(Path::new("src"));
    let mut uses = files.uses();
    for (file, used) in &mut uses {
        used.retain(|other, _| !(other.ends_with("mod.rs") && file.starts_with(other.parent().unwrap())));
    }
    let mut circles: BTreeSet<Vec<String>> = BTreeSet::new();
    for file in uses.keys() {
        circles.extend(circle_through(file, &uses));
    }
    assert!(circles.is_empty(), "{circles:#?}");
}

/// Returns a shortest circle from a file back to itself, with the paths by which each uses the next.
fn circle_through(file: &Path, uses: &BTreeMap<&Path, BTreeMap<&Path, BTreeSet<String>>>) -> Option<Vec<String>> {
    let mut came_from: BTreeMap<&Path, &Path> = BTreeMap::new();
    let mut queue = VecDeque::from([file]);
    while let Some(current) = queue.pop_front() {
        for &next in uses.get(current).into_iter().flat_map(BTreeMap::keys) {
            if came_from.contains_key(next) {
                continue;
            }
            came_from.insert(next, current);
            queue.push_back(next);
        }
    }
    let mut steps = Vec::new();
    let mut to = file;
    loop {
        let from = *came_from.get(to)?;
        let by: Vec<&str> = uses[from][to].iter().map(String::as_str).collect();
        steps.push(format!("{} uses {} as {}", from.display(), to.display(), by.join(", ")));
        to = from;
        if from == file {
            // Each file of a circle finds the same one; sorting makes them equal, so that it is reported once.
            steps.sort();
            return Some(steps);
        }
    }
}

#[test]
fn config_uses_only_the_settings_of_adapters() {
    for (path, text) in sources().iter().filter(|(path, _)| room(path) == "config") {
        for line in text.lines().filter(|line| line.contains("crate::clients") || line.contains("crate::sinks")) {
            assert!(line.contains("settings"), "{}: {line}", path.display());
        }
    }
}

#[test]
fn pure_files_have_no_async_no_io_and_no_clock() {
    let is_pure = |path: &Path, text: &str| {
        let mut docs = text.lines().take_while(|line| line.starts_with("//!"));
        PURE_ROOMS.contains(&room(path).as_str()) || docs.any(|line| line.contains("Pure"))
    };
    let mut count = 0;
    for (path, text) in sources().into_iter().filter(|(path, text)| is_pure(path, text) && room(path) != "lib") {
        count += 1;
        for word in PURE_LACKS {
            let is_in = text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(word));
            assert!(!is_in, "{} is pure and has `{word}`", path.display());
        }
    }
    assert!(count >= 50, "only {count} files are pure");
}

#[test]
fn only_the_supervisor_spawns() {
    for (path, text) in sources() {
        let is_supervisor = path.ends_with("supervise.rs");
        for word in ["tokio::spawn", "JoinSet::new"] {
            assert!(is_supervisor || !text.contains(&format!("{word}(")), "{} has {word}", path.display());
        }
    }
}

#[test]
fn every_metric_is_in_the_list_and_in_the_docs() {
    let listed: BTreeSet<&str> = dtorrent::telemetry::metrics::ALL.iter().map(|(name, ..)| *name).collect();
    let mut written = BTreeSet::new();
    for (path, text) in sources() {
        for macro_name in ["counter!(\"", "gauge!(\"", "histogram!(\""] {
            for (at, _) in text.match_indices(macro_name) {
                let name = text[at + macro_name.len()..].split('"').next().unwrap();
                assert!(listed.contains(name), "{}: {name} is not in the list", path.display());
                written.insert(name.to_owned());
            }
        }
    }
    let operations = fs::read_to_string("docs/operations.md").unwrap();
    for name in listed {
        assert!(written.contains(name), "{name} is never written");
        assert!(operations.contains(name), "{name} is not in docs/operations.md");
    }
}
