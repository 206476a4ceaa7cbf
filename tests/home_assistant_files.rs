//! The files for Home Assistant: every YAML file parses, and names only existing entities and topics.

#![allow(clippy::unwrap_used)] // a test that panics has failed, which is what it is for

#[path = "rules/config_keys.rs"]
mod config_keys;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use dtorrent::model::{ServerName, Verb};
use dtorrent::sinks::home_assistant::entities;
use dtorrent::sinks::home_assistant::names::Names;
use dtorrent::sinks::mqtt::{HomeAssistant, Limits, Prefix};
use serde_yaml_ng::Value;

const PAGE: &str = include_str!("../docs/home-assistant.md");

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/home-assistant")
}

fn parsed(what: &str, text: &str) -> Value {
    serde_yaml_ng::from_str(text).unwrap_or_else(|error| panic!("{what}: {error}"))
}

/// Returns all YAML files below the folder and all YAML blocks of the page, by their places.
fn all() -> BTreeMap<String, String> {
    let mut texts = BTreeMap::new();
    let mut folders = vec![folder()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "yaml") {
                texts.insert(path.display().to_string(), fs::read_to_string(&path).unwrap());
            }
        }
    }
    for (number, block) in PAGE.split("```yaml\n").skip(1).enumerate() {
        texts.insert(format!("block {number} of the page"), block.split("```").next().unwrap().to_owned());
    }
    texts
}

/// Returns the ids that Home Assistant assigns to the entities of a server `home` with all commands allowed.
fn entity_ids() -> BTreeSet<String> {
    let verbs = Verb::ALL.iter().map(|verb| verb.as_str()).chain(["limits", "resync"]);
    let settings = HomeAssistant {
        discovery_prefix: "homeassistant".to_owned(),
        slots: 10,
        torrents: None,
        torrents_max: 20,
        alternative: Some(Limits::default()),
        normal: Limits::default(),
        verbs: verbs.map(str::to_owned).collect(),
    };
    let names = Names { prefix: Prefix::default(), instance: "main".into(), discovery_prefix: "homeassistant".into() };
    let payload = entities::server(&settings, &names, &ServerName::parse("home").unwrap(), None);
    let slug = |text: &str| -> String {
        text.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
    };
    let named =
        payload.components.values().filter_map(|value| Some((value["platform"].as_str()?, value["name"].as_str()?)));
    named.map(|(platform, name)| format!("{platform}.dtorrent_home_{}", slug(name))).collect()
}

#[test]
fn every_yaml_file_parses() {
    let all = all();
    assert!(all.len() >= 10, "{:?}", all.keys());
    for (what, text) in &all {
        parsed(what, text);
    }
}

#[test]
fn every_entity_that_the_files_name_exists() {
    let ids = entity_ids();
    let mut named = 0;
    for (what, text) in all() {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'));
        for id in words.filter(|word| word.contains(".dtorrent_home_")) {
            assert!(ids.contains(id), "{id} in {what}");
            named += 1;
        }
    }
    assert!(named > 20, "{named}");
    // Includes ids that the page lists by their suffixes.
    for part in PAGE.split('`').filter(|part| part.contains("…_")) {
        let end = part.rsplit("…_").next().unwrap();
        assert!(ids.iter().any(|id| id.ends_with(&format!("dtorrent_home_{end}"))), "{part} in the page");
    }
}

#[test]
fn every_entity_of_a_server_is_documented() {
    for id in entity_ids() {
        let end = id.split("dtorrent_home_").nth(1).unwrap();
        let is_slot = end.starts_with("slot_");
        assert!(is_slot || PAGE.contains(&format!("_{end}`")), "{id}");
    }
}

#[test]
fn blueprints_declare_every_input_that_they_use() {
    for path in fs::read_dir(folder().join("blueprints")).unwrap().map(|entry| entry.unwrap().path()) {
        let text = fs::read_to_string(&path).unwrap();
        let value = parsed(&path.display().to_string(), &text);
        assert_eq!(value["blueprint"]["domain"], "automation");
        let inputs = value["blueprint"]["input"].as_mapping().unwrap();
        let used: BTreeSet<&str> = text
            .split("!input ")
            .skip(1)
            .map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap())
            .collect();
        let known: BTreeSet<&str> = inputs.keys().filter_map(Value::as_str).collect();
        assert_eq!(used, known, "{}", path.display());
        assert_ne!(value["mode"], "single", "a burst would be dropped");
    }
}

#[test]
fn the_actions_of_the_native_integrations_have_scripts() {
    let scripts = parsed("scripts", &all()["block 0 of the page"]);
    for name in ["add_torrent", "remove_torrent", "start_torrent", "stop_torrent", "get_torrents"] {
        let script = &scripts["script"][format!("dtorrent_{name}").as_str()];
        assert!(script["sequence"].is_sequence(), "{name}");
        assert_eq!(script["mode"], "parallel", "{name}");
    }
}

#[test]
fn the_add_on_has_a_valid_config_and_translations() {
    let read = |name: &str| parsed(name, &fs::read_to_string(folder().join("addons").join(name)).unwrap());
    assert!(read("repository.yaml")["name"].is_string());
    let config = read("dtorrent/config.yaml");
    for key in ["name", "version", "slug", "description"] {
        assert!(config[key].is_string(), "{key}");
    }
    assert_eq!(config["version"], env!("CARGO_PKG_VERSION"));
    assert!(config["arch"].as_sequence().is_some_and(|arch| !arch.is_empty()));
    assert!(["initialize", "system", "services", "application", "once"].contains(&config["startup"].as_str().unwrap()));
    let known = config_keys::keys();
    for name in config["environment"].as_mapping().unwrap().keys().filter_map(Value::as_str) {
        let key = name.trim_start_matches("DTORRENT_").to_lowercase().replace("__", ".");
        assert!(name == "DTORRENT_CONFIG" || known.contains(&key), "{name}");
    }
    for language in ["en", "de"] {
        let translation = read(&format!("dtorrent/translations/{language}.yaml"));
        let ports = |value: &Value| value.as_mapping().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(ports(&translation["network"]), ports(&config["ports"]), "{language}");
    }
}
