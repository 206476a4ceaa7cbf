//! The docs are complete and correct: they name every option, kind, verb, code and field, and every link resolves.

#![allow(clippy::unwrap_used)] // a test that panics has failed, which is what it is for

#[path = "rules/config_keys.rs"]
mod config_keys;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dtorrent::config;
use dtorrent::model::{
    Cause, Change, Changes, CommandError, CommandId, EVENT_SCHEMA, Epoch, ErrorCode, Event, EventId, InfoHash, Kind,
    LastFinished, Outcome, OutcomeStatus, Page, Part, Seq, ServerName, ServerStats, Stats, Status, Timestamp, Torrent,
    TorrentOutcome, Verb,
};
use serde_json::{Value, json};

const REFERENCE: &str = include_str!("../docs/reference.md");
const CONFIGURATION: &str = include_str!("../docs/configuration.md");

#[track_caller]
fn assert_named(page: &str, names: impl IntoIterator<Item = impl AsRef<str>>) {
    let missing: Vec<String> = names
        .into_iter()
        .map(|name| name.as_ref().to_owned())
        .filter(|name| !page.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "not in the page: {missing:?}");
}

fn hash() -> InfoHash {
    "3f78000000000000000000000000000000000000".parse().unwrap()
}

fn torrent() -> Torrent {
    Torrent::new(ServerName::parse("home").unwrap(), hash(), "")
}

/// Returns the keys of an object, and of the objects in it that have a schema of their own.
fn keys(value: &Value) -> Vec<String> {
    let object = value.as_object().unwrap();
    object.keys().cloned().collect()
}

#[test]
fn every_field_of_a_torrent_is_explained() {
    assert_named(REFERENCE, keys(&serde_json::to_value(torrent()).unwrap()));
    assert_named(REFERENCE, Status::ALL.iter().map(|status| status.as_str()));
}

#[test]
fn every_field_and_every_kind_of_an_event_is_explained() {
    let server = ServerName::parse("home").unwrap();
    let change = Change { from: Value::Null, to: Value::Null };
    let mut event = Event::new(
        EventId::Journal { server, epoch: Epoch(1), seq: Seq(1) },
        Kind::Finished,
        Timestamp::from_millis(0),
    );
    event.hash = Some(hash());
    event.changes = Changes::from([("status".to_owned(), change.clone())]);
    event.torrent = Some(Arc::new(torrent()));
    assert_named(REFERENCE, keys(&serde_json::to_value(event).unwrap()));
    assert_named(REFERENCE, keys(&serde_json::to_value(change).unwrap()));
    assert_named(REFERENCE, Kind::ALL.iter().map(|kind| kind.as_str()));
    for cause in [Cause::Observed, Cause::Command, Cause::Recovered, Cause::Snapshot] {
        assert_named(REFERENCE, [serde_json::to_value(cause).unwrap().as_str().unwrap()]);
    }
    assert_named(REFERENCE, [EVENT_SCHEMA]);
}

#[test]
fn every_field_of_the_statistics_is_explained() {
    let stats = Stats::of(ServerStats::default(), std::iter::empty());
    assert_named(REFERENCE, keys(&serde_json::to_value(stats).unwrap()));
    let last: LastFinished =
        serde_json::from_value(json!({"hash": hash(), "name": "", "time": Timestamp::from_millis(0)})).unwrap();
    assert_named(REFERENCE, keys(&serde_json::to_value(last).unwrap()));
}

#[test]
fn every_verb_field_and_code_of_commands_is_explained() {
    let codes = [
        ErrorCode::UnknownServer,
        ErrorCode::UnknownHash,
        ErrorCode::BadRequest,
        ErrorCode::Forbidden,
        ErrorCode::Precondition,
        ErrorCode::ClientOffline,
        ErrorCode::ClientFault,
        ErrorCode::Unconfirmed,
        ErrorCode::Retained,
        ErrorCode::TooLarge,
        ErrorCode::Unsupported,
    ];
    assert_named(REFERENCE, codes.map(|code| serde_json::to_value(code).unwrap().as_str().unwrap().to_owned()));
    let statuses = [
        OutcomeStatus::Ok,
        OutcomeStatus::Partial,
        OutcomeStatus::Error,
        OutcomeStatus::Expired,
        OutcomeStatus::Refused,
    ];
    assert_named(REFERENCE, statuses.map(|status| serde_json::to_value(status).unwrap().as_str().unwrap().to_owned()));
    assert_named(REFERENCE, Verb::ALL.iter().map(|verb| verb.as_str()));
    let error = CommandError::new(ErrorCode::BadRequest, "");
    let mut row = TorrentOutcome::ok(hash());
    row.error = Some(error.clone());
    row.torrent = Some(serde_json::to_value(torrent()).unwrap());
    assert_named(REFERENCE, keys(&serde_json::to_value(&row).unwrap()));
    for key in keys(&serde_json::to_value(error).unwrap()) {
        assert!(REFERENCE.contains(&format!("\"{key}\"")), "{key}");
    }
    let outcome = {
        let mut outcome =
            Outcome::new(CommandId::parse("1").unwrap(), "list", OutcomeStatus::Ok, Timestamp::from_millis(0));
        outcome.results = vec![row];
        outcome.page = Some(Page { total: 0, page: 0, page_size: 0, next_page: None });
        outcome.part = Some(Part { part: 1, parts: 1 });
        outcome.value = Some(Value::Null);
        outcome
    };
    for key in keys(&serde_json::to_value(outcome).unwrap()) {
        let is_named = REFERENCE.contains(&format!("`{key}`")) || REFERENCE.contains(&format!("\"{key}\":"));
        assert!(is_named, "{key} of a result");
    }
}

#[test]
fn every_option_is_explained() {
    let names = config_keys::keys().into_iter().filter_map(|key| key.rsplit('.').next().map(str::to_owned));
    let tables = ["log", "http", "servers", "brokers", "home_assistant", "webhooks"];
    assert_named(CONFIGURATION, names.filter(|name| !tables.contains(&name.as_str())));
    for heading in [
        "`[log]`",
        "`[http]`",
        "`[servers.NAME]`",
        "`[brokers.NAME]`",
        "`[brokers.NAME.home_assistant]`",
        "`[webhooks.NAME]`",
    ] {
        assert!(CONFIGURATION.contains(heading), "{heading}");
    }
}

#[test]
fn every_metric_named_in_the_docs_exists() {
    let page = include_str!("../docs/operations.md");
    let words = page.split(|c: char| !c.is_ascii_lowercase() && c != '_');
    for name in words.filter(|word| word.starts_with("dtorrent_")) {
        assert!(dtorrent::telemetry::metrics::ALL.iter().any(|(known, ..)| *known == name), "{name}");
    }
}

/// Every TOML block with a server in the docs is a valid config, except for files that do not exist.
#[test]
fn the_configs_in_the_docs_are_valid() {
    let mut count = 0;
    for (path, text) in pages() {
        let blocks = text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
        for block in blocks.filter(|block| block.contains("[servers.")) {
            let lines = block.lines().filter(|line| !line.contains("_file"));
            let block: String = lines.map(|line| format!("{line}\n")).collect();
            if let Err(errors) = config::parse(&path, block.as_bytes()) {
                panic!("{errors}\n{block}");
            }
            count += 1;
        }
    }
    assert!(count >= 2, "the README has one, nginx.md has one");
}

#[test]
fn no_link_between_the_docs_is_broken() {
    for (path, text) in pages() {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.starts_with("http") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let aim = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(aim.try_exists().unwrap(), "{target} in {}", path.display());
            if !anchor.is_empty() {
                let headings = fs::read_to_string(&aim).unwrap().to_lowercase();
                let heading = format!("# {}\n", anchor.replace('-', " "));
                assert!(headings.contains(&heading), "{target} in {}", path.display());
            }
        }
    }
}

/// Returns the Rust files below these folders, with their texts.
fn sources(folders: &[&str]) -> BTreeMap<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    let mut sources = BTreeMap::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                sources.insert(path, text);
            }
        }
    }
    sources
}

/// The pages and the docs of modules name no file that was renamed or removed.
#[test]
fn every_source_file_that_the_docs_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources = sources(&["src", "tests", "peers", "examples"]);
    let mut texts = pages();
    for page in ["ARCHITECTURE.md", "CONTRIBUTING.md"] {
        texts.insert(root.join(page), fs::read_to_string(root.join(page)).unwrap());
    }
    texts.extend(sources.iter().map(|(path, text)| {
        let module_doc: String = text.lines().filter(|line| line.starts_with("//!")).collect();
        (path.clone(), module_doc)
    }));
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || "_-./".contains(c);
    for (path, text) in texts {
        let names = text.split(|c| !is_of_name(c)).map(|name| name.trim_start_matches(['.', '/']));
        for name in names.filter(|name| name.ends_with(".rs")) {
            // A page names a file from some folder on; `ends_with` compares whole components.
            assert!(sources.keys().any(|source| source.ends_with(name)), "{name} in {}", path.display());
        }
    }
}

#[test]
fn every_type_that_the_description_of_the_architecture_names_exists() {
    let sources: String = sources(&["src"]).into_values().collect();
    let page = include_str!("../ARCHITECTURE.md");
    let is_type =
        |word: &&str| word.starts_with(|c: char| c.is_ascii_uppercase()) && !word.contains(' ') && *word != "Debug";
    let named: Vec<&str> =
        page.split('`').skip(1).step_by(2).flat_map(|code| code.split("::")).filter(is_type).collect();
    assert!(named.len() > 10, "{named:?}");
    let is_there = |word: &&str| {
        ["struct", "enum", "trait", "type"].iter().any(|item| sources.contains(&format!("{item} {word}")))
    };
    let missing: Vec<_> = named.iter().filter(|word| !is_there(word)).collect();
    assert!(missing.is_empty(), "no such type: {missing:?}");
}

fn pages() -> BTreeMap<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = vec![root.join("README.md"), root.join("CHANGELOG.md")];
    for folder in ["docs", "docs/decisions", "deploy"] {
        let entries = fs::read_dir(root.join(folder)).unwrap();
        paths.extend(
            entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "md")),
        );
    }
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(&path).unwrap())).collect()
}

/// The docs cite tests as evidence; every cited test exists.
#[test]
fn every_test_that_the_docs_cite_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources: String = sources(&["tests", "src"]).into_values().collect();
    let is_test = |name: &&str| {
        name.matches('_').count() > 3
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            && !name.starts_with("dtorrent_") // a metric
    };
    let mut count_by_page = BTreeMap::new();
    for (path, page) in pages() {
        let codes: Vec<&str> = page.split('`').skip(1).step_by(2).collect();
        let cited: Vec<&&str> = codes.iter().filter(|name| is_test(name)).collect();
        let missing: Vec<_> = cited.iter().filter(|name| !sources.contains(&format!("fn {name}("))).collect();
        assert!(missing.is_empty(), "{}: no such test: {missing:?}", path.display());
        for example in codes.iter().filter(|name| name.starts_with("examples/")) {
            assert!(root.join(example).is_file(), "{}: no such example: {example}", path.display());
        }
        count_by_page.insert(path, cited.len());
    }
    for (page, count) in [("docs/delivery.md", 40), ("docs/from-dtorrent.md", 25), ("docs/security.md", 25)] {
        let cited = count_by_page[&root.join(page)];
        assert!(cited > count, "{page} names its proofs: {cited}");
    }
}
