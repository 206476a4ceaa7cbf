//! The example config is rendered from the table of keys: every key is in it, and a commented key shows its default.
//! `BLESS=1` rewrites it.

#![allow(clippy::unwrap_used)] // a test that panics has failed, which is what it is for

#[path = "rules/config_keys.rs"]
mod config_keys;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use dtorrent::config;
use dtorrent::config::keys::{Default, Form, Key, ROOT, Section};

const EXAMPLE: &str = include_str!("../config/dtorrent.example.toml");

const HEAD: &str = "\
# Every key of the config. A commented-out key shows its default, or its format where it has none.
# Remove the tables that you do not need. The file is searched for at --config, $DTORRENT_CONFIG, ./dtorrent.toml,
# $XDG_CONFIG_HOME/dtorrent/dtorrent.toml and /etc/dtorrent/dtorrent.toml; the first that exists is used.
# Environment variables take precedence over the file: DTORRENT_SERVERS__HOME__URL is servers.home.url.
# Relative paths start at the working directory. `dtorrent check` reports all errors.
";

fn render() -> String {
    let mut text = HEAD.to_owned();
    render_section(&mut text, &ROOT, "", &mut BTreeSet::new());
    text
}

/// A doc is written above the first key that has it, so that keys shared by brokers are explained once.
fn render_section(text: &mut String, section: &Section, path: &str, explained: &mut BTreeSet<&'static str>) {
    if !path.is_empty() {
        let mark = if section.sample.is_empty() { "# " } else { "" };
        write!(text, "\n# {}\n{mark}[{path}]\n", section.doc).unwrap();
    } else {
        text.push('\n');
    }
    let (tables, keys): (Vec<&Key>, Vec<&Key>) =
        section.iter().partition(|key| matches!(key.form, Form::Section(_) | Form::Named(_)));
    for key in keys {
        if explained.insert(key.doc) {
            writeln!(text, "# {}", key.doc).unwrap();
        }
        let (mark, value) = match (key.default, key.default.value()) {
            (Default::Required(example), _) => ("", example.to_owned()),
            (Default::None(example), _) => ("# ", example.to_owned()),
            (_, value) => ("# ", as_toml(&value.unwrap())),
        };
        writeln!(text, "{mark}{} = {value}", key.name).unwrap();
        if let Some(file) = key.file() {
            writeln!(text, "# {file} = \"/run/secrets/{}\"", key.name).unwrap();
        }
    }
    for key in tables {
        let below = if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
        match key.form {
            Form::Section(section) => render_section(text, section, &below, explained),
            Form::Named(forms) => {
                for form in forms {
                    render_section(text, form, &format!("{below}.{}", form.sample), explained);
                }
            }
            _ => unreachable!(),
        }
    }
}

fn as_toml(value: &serde_json::Value) -> String {
    value.to_string().replace("\",\"", "\", \"")
}

#[test]
fn the_example_is_what_the_table_of_keys_renders() {
    let rendered = render();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/config/dtorrent.example.toml"), rendered).unwrap();
        return;
    }
    assert_eq!(rendered, EXAMPLE, "BLESS=1 rewrites it");
}

/// Keys without a default: the example shows their format.
fn without_default() -> BTreeSet<String> {
    fn collect(section: &Section, found: &mut BTreeSet<String>) {
        for key in section.iter() {
            match key.form {
                Form::Section(below) => collect(below, found),
                Form::Named(forms) => forms.iter().for_each(|form| collect(form, found)),
                _ if key.default.value().is_none() => {
                    found.extend([Some(key.name.to_owned()), key.file()].into_iter().flatten())
                }
                // Applies only together with a template, which has no default.
                _ if key.name == "content_type" => found.extend([key.name.to_owned()]),
                _ => {}
            }
        }
    }
    let mut found = BTreeSet::new();
    collect(&ROOT, &mut found);
    found
}

fn parse(toml: &str) -> config::Config {
    config::parse(Path::new("dtorrent.example.toml"), toml.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"))
}

/// Returns the key that a line sets, commented out or not.
fn option(line: &str) -> Option<&str> {
    let (key, _) = line.trim_start_matches("# ").split_once(" = ")?;
    key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_').then_some(key)
}

/// Returns the example with every key uncommented for which `keep` returns `true`.
fn uncommented(keep: impl Fn(&str) -> bool) -> String {
    let line = |line: &'static str| match option(line) {
        Some(key) => (!line.starts_with('#') || keep(key)).then(|| line.trim_start_matches("# ")),
        None if line.starts_with("# [") => Some(&line[2..]),
        None => Some(line),
    };
    EXAMPLE.lines().filter_map(line).map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_example_is_a_valid_config() {
    parse(EXAMPLE);
}

#[test]
fn the_example_is_valid_by_the_schema_with_and_without_its_commented_keys() {
    let schema = jsonschema::validator_for(&config::schema().to_value()).unwrap();
    for toml in [EXAMPLE.to_owned(), uncommented(|_| true)] {
        let table: toml::Table = toml.parse().unwrap();
        let faults: Vec<String> =
            schema.iter_errors(&serde_json::to_value(table).unwrap()).map(|error| error.to_string()).collect();
        assert!(faults.is_empty(), "{faults:#?}\n{toml}");
    }
}

#[test]
fn commented_keys_show_the_default() {
    let without_default = without_default();
    let all = uncommented(|key| !without_default.contains(key));
    assert_eq!(format!("{:#?}", parse(&all)), format!("{:#?}", parse(EXAMPLE)));
}

#[test]
fn every_key_is_in_the_example_and_nothing_else() {
    fn collect(table: &toml::Table, path: &str, keys: &mut BTreeSet<String>) {
        for (key, value) in table {
            let key = if ["home", "attic", "bus"].contains(&key.as_str()) {
                format!("{path}*")
            } else {
                format!("{path}{key}")
            };
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
    let tables = ["add_urls", "log", "http", "servers", "brokers", "brokers.*.home_assistant", "webhooks"];
    let known: BTreeSet<String> =
        config_keys::keys().into_iter().filter(|key| !tables.contains(&key.as_str())).collect();
    assert_eq!(keys, known);
}

#[test]
fn every_key_has_a_comment_that_fits_a_line() {
    let lines: Vec<&str> = EXAMPLE.lines().collect();
    for pair in lines.windows(2).filter(|pair| option(pair[1]).is_some()) {
        assert!(pair[0].starts_with(['#', '[']) || option(pair[0]).is_some(), "{}", pair[1]);
    }
    assert!(lines.iter().all(|line| line.chars().count() <= 130), "{:?}", lines.iter().max_by_key(|line| line.len()));
}
