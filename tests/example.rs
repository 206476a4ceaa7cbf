//! The example config says the truth: every option is in it, and what is commented out is the default.

#![allow(clippy::unwrap_used)] // a test that panics has failed, which is what it is for

use std::collections::BTreeSet;
use std::path::Path;

use dtorrent::config;

const EXAMPLE: &str = include_str!("../config/dtorrent.example.toml");

/// Options that have no default: the example shows their form.
const NO_DEFAULT: [&str; 21] = [
    "alternative_download",
    "alternative_upload",
    "command",
    "hooks_address",
    "hosts",
    "token",
    "token_file",
    "username",
    "password",
    "password_file",
    "ca_file",
    "cert_file",
    "key_file",
    "nkey_file",
    "creds_file",
    "url_file",
    "template",
    "template_file",
    "content_type",
    "secret",
    "secret_file",
];

fn parse(toml: &str) -> config::Config {
    config::parse(Path::new("dtorrent.example.toml"), toml.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The option that a line sets, in force or commented out.
fn option(line: &str) -> Option<&str> {
    let (key, _) = line.trim_start_matches("# ").split_once(" = ")?;
    key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_').then_some(key)
}

/// The example with every option in force that `keep` wants.
fn uncommented(keep: impl Fn(&str) -> bool) -> String {
    let line = |line: &'static str| match option(line) {
        Some(key) => keep(key).then(|| line.trim_start_matches("# ")),
        None if line.starts_with("# [") => Some(&line[2..]),
        None => Some(line),
    };
    EXAMPLE.lines().filter_map(line).map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_example_is_a_config_as_it_stands() {
    parse(EXAMPLE);
}

#[test]
fn it_is_right_by_the_schema_also_with_all_that_is_commented_out() {
    let schema = jsonschema::validator_for(&config::schema().to_value()).unwrap();
    // A program as a client has a command, and not what an rTorrent has.
    for toml in [EXAMPLE.to_owned(), uncommented(|key| key != "command")] {
        let table: toml::Table = toml.parse().unwrap();
        let faults: Vec<String> =
            schema.iter_errors(&serde_json::to_value(table).unwrap()).map(|error| error.to_string()).collect();
        assert!(faults.is_empty(), "{faults:#?}\n{toml}");
    }
}

#[test]
fn what_is_commented_out_is_the_default() {
    let all = uncommented(|key| !NO_DEFAULT.contains(&key));
    assert_eq!(format!("{:#?}", parse(&all)), format!("{:#?}", parse(EXAMPLE)));
}

#[test]
fn every_option_is_in_the_example_and_nothing_else() {
    fn collect(table: &toml::Table, path: &str, keys: &mut BTreeSet<String>) {
        for (key, value) in table {
            let key = if ["home", "bus"].contains(&key.as_str()) { format!("{path}*") } else { format!("{path}{key}") };
            let is_free = [".extra", ".torrents", ".headers", ".header_files"].iter().any(|end| key.ends_with(end));
            match value.as_table().filter(|_| !is_free) {
                Some(table) => collect(table, &format!("{key}."), keys),
                None => {
                    keys.insert(key);
                }
            }
        }
    }
    let mut keys = BTreeSet::new();
    collect(&uncommented(|_| true).parse().unwrap(), "", &mut keys);
    let tables = ["log", "http", "servers", "brokers", "brokers.*.home_assistant", "webhooks"];
    let known: BTreeSet<String> = config::keys().into_iter().filter(|key| !tables.contains(&key.as_str())).collect();
    assert_eq!(keys, known);
}

#[test]
fn every_option_has_a_comment_above_it() {
    let lines: Vec<&str> = EXAMPLE.lines().collect();
    for pair in lines.windows(2).filter(|pair| option(pair[1]).is_some()) {
        let is_explained = pair[0].starts_with('#') || option(pair[0]).is_some() || pair[0].starts_with("[brokers");
        assert!(is_explained, "{}", pair[1]);
    }
}
