//! The house as `src/lib.rs` draws it, held by reading the source.

#![allow(clippy::unwrap_used)] // a test that panics has failed, which is what it is for

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which rooms a room may use. Whatever is not named here may not be used.
const ARROWS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("repeat", &["port"]),
    ("port", &["model"]),
    ("board", &["model", "port"]),
    // the engine
    ("diff", &["model"]),
    ("deliver", &["model", "port", "board", "repeat"]),
    ("commands", &["model", "port", "board", "repeat", "deliver"]),
    ("watch", &["model", "port", "board", "repeat", "diff", "commands"]),
    // adapters: of each other they know nothing
    ("clients", &["model", "port"]),
    ("sinks", &["model", "port"]),
    ("store", &["model", "port"]),
    ("http", &["model"]),
    // leaves; a config asks the adapters how their own settings are read
    ("config", &["model", "clients", "sinks"]),
    ("telemetry", &["model", "port", "board", "config"]),
    ("supervise", &["port", "deliver"]),
    // what puts it together
    ("servers", &["model", "port", "board", "commands", "watch", "supervise"]),
    ("manager", &["model", "port", "board", "deliver", "commands", "servers", "clients", "store", "supervise"]),
    ("demo", &["model"]),
    (
        "app",
        &[
            "model",
            "port",
            "board",
            "deliver",
            "commands",
            "watch",
            "clients",
            "sinks",
            "store",
            "http",
            "config",
            "telemetry",
            "repeat",
            "servers",
            "supervise",
        ],
    ),
    ("testing", &["model", "port"]),
    ("schema", &["model", "commands"]),
    (
        "cli",
        &[
            "model",
            "port",
            "config",
            "telemetry",
            "supervise",
            "demo",
            "app",
            "clients",
            "manager",
            "deliver",
            "testing",
            "schema",
        ],
    ),
    ("main", &["cli"]),
    ("lib", &[]),
];

/// Rooms that are plain computation: no async, no I/O, no clock.
const PURE: &[&str] = &[
    "src/model/",
    "src/diff/",
    "src/deliver/lane.rs",
    "src/deliver/dirty.rs",
    "src/deliver/backoff.rs",
    "src/deliver/caution.rs",
    "src/deliver/retention.rs",
    "src/cli/terminal/human.rs",
    "src/cli/terminal/paint.rs",
    "src/cli/terminal/select.rs",
    "src/cli/terminal/table.rs",
    "src/commands/request.rs",
    "src/commands/shape.rs",
    "src/schema/",
    "src/sinks/mqtt/topics.rs",
    "src/sinks/mqtt/homeassistant/commands.rs",
    "src/sinks/mqtt/homeassistant/documents.rs",
    "src/sinks/mqtt/homeassistant/entities.rs",
    "src/sinks/mqtt/homeassistant/names.rs",
    "src/sinks/mqtt/homeassistant/pace.rs",
    "src/sinks/mqtt/homeassistant/slots.rs",
    "src/sinks/nats/answer.rs",
    "src/sinks/nats/message.rs",
    "src/sinks/nats/subjects.rs",
    "src/sinks/webhook/filter.rs",
    "src/sinks/webhook/response.rs",
    "src/sinks/webhook/body.rs",
    "src/sinks/webhook/retry.rs",
    "src/sinks/webhook/sign.rs",
    "src/sinks/webhook/template.rs",
    "src/sinks/webhook/chat_message.rs",
];

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
    paths.into_iter().map(|path| (path.clone(), without_tests(&fs::read_to_string(&path).unwrap()))).collect()
}

/// Tests may reach across; they stand at the end of a file.
fn without_tests(text: &str) -> String {
    text.split("#[cfg(test)]").next().unwrap_or_default().to_owned()
}

fn is_test_file(path: &Path) -> bool {
    path.file_stem().is_some_and(|stem| stem == "tests")
}

fn room(path: &Path) -> String {
    let first = path.components().nth(1).unwrap();
    Path::new(&first).file_stem().unwrap().to_string_lossy().into_owned()
}

/// The rooms that a text names by `crate::` or, in the binary, by `dtorrent::`.
fn used(text: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    for line in code {
        for (at, prefix) in line.match_indices("crate::").chain(line.match_indices("dtorrent::")) {
            let rest = &line[at + prefix.len()..];
            // `use crate::{app, config};`
            let names = rest.strip_prefix('{').map_or(rest, |list| list.split('}').next().unwrap_or_default());
            let count = if rest.starts_with('{') { usize::MAX } else { 1 };
            for name in names.split(',').take(count) {
                let name: String = name.trim().chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                used.insert(name);
            }
        }
    }
    used
}

#[test]
fn no_arrow_points_the_wrong_way() {
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        if is_test_file(&path) {
            continue;
        }
        let room = room(&path);
        let allowed = arrows.get(room.as_str()).unwrap_or_else(|| panic!("{room} is a new room: say what it may use"));
        for other in used(&text) {
            if arrows.contains_key(other.as_str()) && other != room && !allowed.contains(&other.as_str()) {
                wrong.push(format!("{}: {room} → {other}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_arrow_that_is_allowed_is_used() {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in sources() {
        found.entry(room(&path)).or_default().extend(used(&text));
    }
    for (room, allowed) in ARROWS {
        let found = found.get(*room).cloned().unwrap_or_default();
        let idle: Vec<_> = allowed.iter().filter(|other| !found.contains(**other)).collect();
        assert!(idle.is_empty(), "{room} no longer uses {idle:?}");
    }
}

#[test]
fn a_config_asks_adapters_for_their_settings_only() {
    for (path, text) in sources().iter().filter(|(path, _)| room(path) == "config") {
        for line in text.lines().filter(|line| line.contains("crate::clients") || line.contains("crate::sinks")) {
            assert!(line.contains("settings"), "{}: {line}", path.display());
        }
    }
}

#[test]
fn what_is_pure_neither_waits_nor_reads_nor_looks_at_the_clock() {
    for (path, text) in sources() {
        let name = path.display().to_string();
        if !PURE.iter().any(|pure| name.starts_with(pure)) {
            continue;
        }
        for word in ["tokio", "std::fs", "std::net", "std::env", "Instant", "SystemTime", "Timestamp::now", "async "] {
            let is_in = text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(word));
            assert!(!is_in, "{name} has `{word}`");
        }
    }
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
fn every_metric_that_is_written_is_in_the_list_and_in_the_docs() {
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
