//! Bodies, topics, schemas, CLI help and tables, compared with the files in `tests/golden/`.

#![allow(clippy::unwrap_used)] // a test that panics has failed, which is what it is for

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use dtorrent::model::*;
use dtorrent::port::{Delivery, ReplyTo};
use dtorrent::schema;
use dtorrent::sinks::home_assistant::entities::{self, Components};
use dtorrent::sinks::home_assistant::names::{Device, Names};
use dtorrent::sinks::mqtt::{HomeAssistant, Limits, Prefix, topics::Topics};
use dtorrent::sinks::nats;
use dtorrent::sinks::nats::subjects::{STREAM, Subjects, covers};
use serde::Serialize;
use serde_json::json;

use self::samples::{assert_golden, event, hash, home, time, torrent};

#[path = "rules/homeassistant.rs"]
mod rules;
#[path = "rules/samples.rs"]
mod samples;

fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap()
}

#[test]
fn events_match_the_golden_files() {
    let epoch = Epoch(0x7f3a_9c21);
    let journal = EventId::Journal { server: home(), epoch, seq: Seq(4182) };
    let caused = {
        let mut event = event(Kind::Finished, journal.clone());
        event.cause = Cause::Command;
        event.command_id = Some(CommandId::parse("9b1c").unwrap());
        event
    };
    assert_golden("event-finished.json", &pretty(&caused));
    assert_golden("event-server-online.json", &pretty(&event(Kind::ServerOnline, journal)));
    let updated = EventId::Updated { server: home(), epoch, rev: Rev(9001) };
    assert_golden("event-updated.json", &pretty(&event(Kind::Updated, updated)));
}

#[test]
fn a_state_and_statistics_match_the_golden_files() {
    assert_golden("torrent.json", &pretty(&torrent()));
    let server = {
        let mut stats = ServerStats::default();
        stats.client = Some("rTorrent 0.9.8".to_owned());
        stats
    };
    let finished = {
        let mut torrent = torrent();
        torrent.finished_at = Some(time());
        torrent
    };
    assert_golden("stats.json", &pretty(&Stats::of(server, [&torrent(), &finished].into_iter())));
}

#[test]
fn results_match_the_golden_files() {
    let outcome = |verb: Verb, status, results, error, page| {
        let mut outcome = Outcome::new(CommandId::parse("9b1c").unwrap(), verb.as_str(), status, time());
        outcome.server = Some(home());
        outcome.took_ms = 41;
        outcome.results = results;
        outcome.error = error;
        outcome.page = page;
        outcome
    };
    let unknown = CommandError::new(ErrorCode::UnknownHash, "the client has no torrent of that hash");
    let rows = vec![TorrentOutcome::ok(hash()), TorrentOutcome::failed(InfoHash::V2([7; 32]), unknown.clone())];
    let partial = outcome(Verb::Pause, OutcomeStatus::Partial, rows, Some(unknown), None);
    assert_golden("result-partial.json", &pretty(&partial));
    let listed = vec![{
        let mut row = TorrentOutcome::ok(hash());
        row.torrent = Some(json!({"name": "x"}));
        row
    }];
    let page = Page { total: 1, page: 0, page_size: 200, next_page: None };
    let list = outcome(Verb::List, OutcomeStatus::Ok, listed, None, Some(page));
    assert_golden("result-list.json", &pretty(&list));
    let body = shorter(&serde_json::to_vec(&list).unwrap(), "the packet is too large").unwrap();
    assert_golden("result-too-large.json", &pretty(&serde_json::from_slice::<serde_json::Value>(&body).unwrap()));
}

/// Returns one delivery of each kind.
fn deliveries() -> Vec<Delivery> {
    let (server, hash, body) = (home(), hash(), Bytes::new());
    let id = EventId::Journal { server: home(), epoch: Epoch(1), seq: Seq(1) };
    let entry = |kind: Kind| {
        let hash = (kind.entity() == Entity::Torrent).then_some(hash);
        let (id, body) = (id.clone(), body.clone());
        Delivery::Event(JournalEntry::stored(id, kind, hash, Rev(1), time(), body))
    };
    let mut deliveries: Vec<Delivery> =
        Kind::ALL.iter().filter(|kind| **kind != Kind::Updated).map(|k| entry(*k)).collect();
    deliveries.extend([
        Delivery::Updated { hash, event: Arc::new(Event::new(id.clone(), Kind::Updated, time())), body: body.clone() },
        Delivery::State { server: server.clone(), hash, body: body.clone(), retain: true },
        Delivery::State { server: server.clone(), hash, body: body.clone(), retain: false },
        Delivery::Files { server: server.clone(), hash, body: body.clone() },
        Delivery::ServerStatus { server: server.clone(), is_online: true },
        Delivery::Stats { server: server.clone(), body: body.clone() },
        Delivery::Info { body: body.clone() },
        Delivery::Health { body: body.clone() },
        Delivery::Result { server: Some(server), body: body.clone(), reply: None::<ReplyTo> },
        Delivery::Result { server: None, body, reply: None },
    ]);
    deliveries
}

#[test]
fn topics_match_the_golden_file() {
    let topics = Topics::new(Prefix::of_topics("dtorrent").unwrap(), "main", true);
    let mut lines = String::new();
    for delivery in &deliveries() {
        let route = topics.route(delivery);
        let retained = if route.is_retained { " retained" } else { "" };
        writeln!(lines, "{} {:?}{retained}", route.topic, route.qos).unwrap();
    }
    assert_golden("topics.txt", &lines);
}

/// Discovery messages with every command allowed, and with none.
fn home_assistant(verbs: &[&str]) -> HomeAssistant {
    HomeAssistant {
        discovery_prefix: "homeassistant".to_owned(),
        slots: 2,
        torrents: None,
        torrents_max: 20,
        alternative: Some(Limits { download: 100_000, upload: 50_000 }),
        normal: Limits::default(),
        verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(),
    }
}

#[test]
fn discovery_messages_match_the_golden_files_and_the_rules_of_home_assistant() {
    let names = Names {
        prefix: Prefix::of_topics("dtorrent").unwrap(),
        instance: "main".to_owned(),
        discovery_prefix: "homeassistant".to_owned(),
    };
    let all = home_assistant(&["pause", "resume", "start", "stop", "add", "limits", "resync", "delete"]);
    let none = home_assistant(&[]);
    let client = Some("rTorrent 0.9.8");
    let server = || Device::Server(home());
    let messages = [
        ("bridge", Device::Bridge, entities::bridge(&all, &names)),
        ("server", server(), entities::server(&all, &names, &home(), client)),
        ("server-read-only", server(), entities::server(&none, &names, &home(), None)),
        ("torrent", Device::Torrent(home(), hash()), entities::torrent(&all, &names, &home(), hash(), "Ünï ☃")),
    ];
    for (name, device, payload) in messages {
        let body = payload.body(&Components::new());
        let faults = rules::faults(&names.discovery(&device), &body);
        assert!(faults.is_empty(), "{name}: {faults:#?}");
        let mut value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        // A release changes only the version of the program.
        value["origin"]["sw_version"] = json!("VERSION");
        if name == "bridge" {
            value["device"]["sw_version"] = json!("VERSION");
        }
        assert_golden(&format!("discovery-{name}.json"), &pretty(&value));
        let old = Components::from([("gone".to_owned(), "sensor".to_owned())]);
        let body = payload.body(&old);
        let taken_back: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(taken_back["components"]["gone"], json!({"platform": "sensor"}));
        assert!(rules::faults(&names.discovery(&device), &body).is_empty());
    }
}

#[test]
fn the_checker_of_discovery_messages_reports_what_home_assistant_refuses() {
    let names = Names {
        prefix: Prefix::of_topics("dtorrent").unwrap(),
        instance: "main".to_owned(),
        discovery_prefix: "homeassistant".to_owned(),
    };
    let payload = entities::server(&home_assistant(&["limits"]), &names, &home(), None);
    let good: serde_json::Value = serde_json::from_slice(&payload.body(&Components::new())).unwrap();
    let topic = names.discovery(&Device::Server(home()));
    let faults = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut bad = good.clone();
        change(&mut bad);
        rules::faults(&topic, bad.to_string().as_bytes()).len()
    };
    let rate = "download_rate";
    assert_eq!(faults(&|_| {}), 0);
    assert_eq!(rules::faults("homeassistant/device/a b/config", good.to_string().as_bytes()).len(), 1);
    type Change = fn(&mut serde_json::Value, &str);
    let changes: [Change; 13] = [
        |value, _| value["icon"] = json!("mdi:x"),
        |value, _| value["device"]["colour"] = json!("red"),
        |value, _| value["origin"] = json!({}),
        |value, key| value["components"][key]["platform"] = json!("sensors"),
        |value, key| drop(value["components"][key].as_object_mut().unwrap().remove("unique_id")),
        |value, key| value["components"][key]["unit_of_measurement"] = json!("bytes"),
        |value, key| value["components"][key]["state_class"] = json!("total_increasing"),
        |value, key| value["components"][key]["entity_category"] = json!("config"),
        |value, key| value["components"][key]["icon"] = json!("fire"),
        |value, key| value["components"][key]["enabled_by_default"] = json!(false),
        |value, _| value["components"]["status"]["unit_of_measurement"] = json!("x"),
        |value, key| value["components"][key]["availability_topic"] = json!("x"),
        |value, _| drop(value["components"]["download_limit"].as_object_mut().unwrap().remove("max")),
    ];
    for (number, change) in changes.iter().enumerate() {
        assert!(faults(&|value| change(value, rate)) > 0, "change {number} is not found");
    }
}

#[test]
fn subjects_match_the_golden_file_and_are_the_topics_with_dots() {
    let subjects = Subjects::new(nats::Prefix::of_subjects("dtorrent").unwrap(), "main", true);
    let topics = Topics::new(Prefix::of_topics("dtorrent").unwrap(), "main", true);
    let caught = subjects.of_stream();
    let mut lines = String::new();
    for delivery in &deliveries() {
        let subject = subjects.of(delivery);
        assert_eq!(subject, topics.route(delivery).topic.replace('/', "."));
        let stored = if caught.iter().any(|caught| covers(caught, &subject)) { " stored" } else { "" };
        let kept = subjects.retained_topic(delivery).map_or(String::new(), |key| format!(" kept as {key}"));
        writeln!(lines, "{subject}{stored}{kept}").unwrap();
    }
    writeln!(lines, "\nthe stream {}:\n{}", STREAM, caught.join("\n")).unwrap();
    let home = subjects.addresses.command_patterns(&[home()]);
    let endpoints: Vec<String> =
        home.iter().map(|endpoint| format!("{} {}", endpoint.name, endpoint.pattern)).collect();
    writeln!(lines, "\nthe service:\n{}", endpoints.join("\n")).unwrap();
    assert_golden("subjects.txt", &lines);
}

#[test]
fn schemas_match_the_golden_files() {
    for (name, body) in schema::SENT {
        assert_golden(&format!("schema-{name}.json"), &pretty(&body()));
    }
    assert_golden("schema-command.json", &pretty(&schema::any_command()));
    assert_golden("schema-config.json", &pretty(&dtorrent::config::schema()));
    let mut asyncapi = schema::asyncapi();
    asyncapi["info"]["version"] = json!("VERSION");
    // The schemas are compared above.
    let components = asyncapi["components"].as_object_mut().unwrap();
    let names: Vec<String> = components["schemas"].as_object().unwrap().keys().cloned().collect();
    components["schemas"] = json!(names);
    for verb in Verb::ALL {
        components["messages"][verb.as_str()]["payload"] = json!("schema-command.json");
    }
    assert_golden("asyncapi.json", &pretty(&asyncapi));
}

#[test]
fn help_matches_the_golden_file() {
    let mut text = String::new();
    for arguments in [
        &["--help"][..],
        &["run", "--help"],
        &["demo", "--help"],
        &["check", "--help"],
        &["watch", "--help"],
        &["list", "--help"],
        &["show", "--help"],
        &["add", "--help"],
        &["pause", "--help"],
        &["label", "--help"],
        &["trackers", "--help"],
        &["delete", "--help"],
        &["limits", "--help"],
        &["make-torrent", "--help"],
        &["purge", "--help"],
        &["dead-letters", "list", "--help"],
        &["dead-letters", "replay", "--help"],
        &["dead-letters", "drop", "--help"],
        &["health", "--help"],
        &["schema", "--help"],
        &["completions", "--help"],
        &["man", "--help"],
    ] {
        let output =
            Command::new(env!("CARGO_BIN_EXE_dtorrent")).args(arguments).env("COLUMNS", "100").output().unwrap();
        writeln!(text, "$ dtorrent {}\n{}", arguments.join(" "), String::from_utf8(output.stdout).unwrap()).unwrap();
    }
    let text: Vec<&str> = text.lines().map(str::trim_end).collect();
    assert_golden("help.txt", &text.join("\n"));
}

/// The output of the one-shot commands for a client with fixed torrents.
#[test]
fn tables_match_the_golden_file_on_wide_and_narrow_terminals() {
    let folder = tempfile::tempdir().unwrap();
    let client = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/client.py");
    let torrents = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/terminal/torrents.json");
    let config = folder.path().join("dtorrent.toml");
    fs::write(
        &config,
        format!("[servers.attic]\nclient = \"exec\"\ncommand = [\"python3\", {client:?}, {torrents:?}]\n"),
    )
    .unwrap();
    let mut text = String::new();
    for (columns, arguments) in [
        ("", &["list"][..]),
        ("100", &["list"]),
        ("60", &["list", "--sort", "size"]),
        ("30", &["list", "--reverse"]),
        ("100", &["list", "--status", "seeding,paused", "--name", "*o*"]),
        ("", &["list", "--name", "Fedora", "--json"]),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dtorrent"));
        command.args(arguments).arg("--config").arg(&config).env("COLUMNS", columns).env("NO_COLOR", "1");
        let output = command.output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(!printed.contains('\x1b'), "{printed:?}");
        let columns = if columns.is_empty() { "a pipe" } else { columns };
        writeln!(text, "$ dtorrent {} # {columns}\n{printed}", arguments.join(" ")).unwrap();
    }
    assert_golden("list.txt", &text);
}
