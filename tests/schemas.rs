//! The JSON Schemas describe every message, and the AsyncAPI document the address of each.

#![allow(clippy::unwrap_used)] // a test that panics has failed, which is what it is for

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use dtorrent::model::*;
use dtorrent::port::Delivery;
use dtorrent::schema::{self, MakeSchema, SENT, sent};
use dtorrent::sinks::mqtt::topics::{Qos, Topics};
use dtorrent::sinks::nats::subjects::Subjects;
use dtorrent::sinks::{mqtt, nats};
use jsonschema::{Draft, Validator};
use proptest::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};

#[path = "rules/schemas.rs"]
mod rules;

use rules::at;

fn strict(body: MakeSchema) -> Validator {
    rules::strict(body().to_value(), Draft::Draft202012)
}

fn open(body: MakeSchema) -> Validator {
    jsonschema::validator_for(&body().to_value()).unwrap()
}

#[track_caller]
fn assert_valid(body: MakeSchema, sent: &impl Serialize) {
    let value = serde_json::to_value(sent).unwrap();
    let faults = rules::faults(&strict(body), &value);
    assert!(faults.is_empty(), "{faults:#?}\n{value:#}");
}

fn golden(name: &str) -> Value {
    serde_json::from_slice(&fs::read(format!("tests/golden/{name}.json")).unwrap()).unwrap()
}

#[test]
fn messages_of_every_topic_have_the_shape_of_their_schemas() {
    for (body, names) in [
        (sent::<Event> as MakeSchema, &["event-finished", "event-server-online", "event-updated"][..]),
        (sent::<Torrent>, &["torrent"]),
        (sent::<Stats>, &["stats"]),
        (sent::<Outcome>, &["result-list", "result-partial", "result-too-large"]),
    ] {
        for name in names {
            assert_valid(body, &golden(name));
        }
    }
}

#[test]
fn malformed_events_are_invalid_by_the_schema() {
    let finished = golden("event-finished");
    let changes: [fn(&mut Value); 12] = [
        |event| event["schema"] = json!("dtorrent.event/2"),
        |event| event["event_type"] = json!("done"),
        |event| event["event_type"] = json!("server_online"),
        |event| event["seq"] = json!(null),
        |event| event["seq"] = json!(0),
        |event| event["id"] = json!("home-4182"),
        |event| event["time"] = json!("2026-11-22T06:25:01Z"),
        |event| event["hash"] = json!("3F786850E387550FDAB836ED7E6DC881DE23001B"),
        |event| event["torrent"]["progress"] = json!("40.1"),
        |event| event["torrent"]["priority"] = json!(4),
        |event| drop(event.as_object_mut().unwrap().remove("torrent")),
        |event| drop(event["torrent"].as_object_mut().unwrap().remove("eta")),
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut event = finished.clone();
        change(&mut event);
        assert!(!open(sent::<Event>).is_valid(&event), "change {number} is not found");
    }
}

#[test]
fn unknown_keys_are_valid_for_consumers_and_faults_in_tests() {
    let mut event = golden("event-finished");
    event["torrent"]["unknown"] = json!("good");
    assert!(open(sent::<Event>).is_valid(&event));
    assert_eq!(rules::faults(&strict(sent::<Event>), &event).len(), 1);
}

// --- strategies --------------------------------------------------------------------------------

fn hash() -> impl Strategy<Value = InfoHash> {
    prop_oneof![any::<[u8; 20]>().prop_map(InfoHash::V1), any::<[u8; 32]>().prop_map(InfoHash::V2)]
}

fn server() -> impl Strategy<Value = ServerName> {
    "[a-z0-9][a-z0-9_-]{0,62}".prop_filter_map("it is reserved", |name| ServerName::parse(&name).ok())
}

fn time() -> impl Strategy<Value = Timestamp> {
    any::<i64>().prop_map(Timestamp::from_millis)
}

fn status() -> impl Strategy<Value = Status> {
    prop::sample::select(Status::ALL.to_vec())
}

prop_compose! {
    fn torrent()(
        (hash, server, name, status) in (hash(), server(), ".{0,20}", status()),
        (length, done, uploaded, rate) in any::<(u64, u64, u64, u64)>(),
        flags in any::<[bool; 5]>(),
        texts in prop::collection::vec(prop::option::of(".{0,12}"), 5),
        numbers in prop::collection::vec(prop::option::of(any::<u64>()), 4),
        times in prop::collection::vec(prop::option::of(time()), 3),
        priority in prop::option::of(0..=3_u8),
        private in any::<Option<bool>>(),
        extra in prop::collection::btree_map(".{1,8}".prop_map(Into::into), ".{0,8}".prop_map(Value::from), 0..3),
    ) -> Torrent {
        let [active, finished, playing, error, stalled] = flags;
        let [path, message, label, directory, tracker] = <[Option<String>; 5]>::try_from(texts).unwrap();
        let [message, label, directory, tracker] = [message, label, directory, tracker].map(|text| text.map(Into::into));
        let [download_rate, upload_rate, peers, seeds] = <[_; 4]>::try_from(numbers).unwrap();
        let [added_at, started_at, finished_at] = <[_; 3]>::try_from(times).unwrap();
        let mut torrent = Torrent::new(server, hash, name);
        torrent.active = active;
        torrent.downloaded = done;
        torrent.uploaded = uploaded;
        torrent.length = length;
        torrent.path = path;
        torrent.progress = progress(done, length);
        torrent.ratio = ratio(uploaded, done);
        torrent.finished = finished;
        torrent.playing = playing;
        torrent.extra = extra;
        torrent.status = status;
        torrent.error = error;
        torrent.message = message;
        torrent.stalled = stalled;
        torrent.download_rate = download_rate;
        torrent.upload_rate = upload_rate;
        torrent.left = peers;
        torrent.eta = eta_seconds(length, rate);
        torrent.peers = peers;
        torrent.seeds = seeds;
        torrent.label = label;
        torrent.directory = directory;
        torrent.private = private;
        torrent.priority = priority;
        torrent.tracker = tracker;
        torrent.added_at = added_at;
        torrent.started_at = started_at;
        torrent.finished_at = finished_at;
        torrent.size_files = seeds;
        torrent
    }
}

prop_compose! {
    fn event()(
        kind in prop::sample::select(Kind::ALL.to_vec()),
        cause in prop::sample::select(vec![Cause::Observed, Cause::Command, Cause::Recovered, Cause::Snapshot]),
        (before, after) in (torrent(), torrent()),
        (epoch, number) in (any::<u32>(), 1..=u64::MAX),
        time in time(),
        command_id in prop::option::of("[^\\p{Cc}]{1,30}"),
    ) -> Event {
        let (server, epoch, hash) = (after.server.clone(), Epoch(epoch), after.hash);
        let is_updated = kind == Kind::Updated;
        let id = match is_updated {
            true => EventId::Updated { server: server.clone(), epoch, rev: Rev(number) },
            false => EventId::Journal { server: server.clone(), epoch, seq: Seq(number) },
        };
        let is_torrents = kind.entity() == Entity::Torrent;
        let mut event = Event::new(id, kind, time);
        event.hash = is_torrents.then_some(hash);
        event.cause = cause;
        event.command_id = command_id.and_then(|id| CommandId::parse(&id).ok());
        event.changes = if is_torrents { before.changes_to(&after) } else { Changes::new() };
        event.torrent = is_torrents.then(|| Arc::new(after));
        event
    }
}

fn error() -> impl Strategy<Value = CommandError> {
    let codes = [ErrorCode::UnknownServer, ErrorCode::Forbidden, ErrorCode::Unconfirmed, ErrorCode::TooLarge];
    (prop::sample::select(codes.to_vec()), ".{0,20}").prop_map(|(code, message)| CommandError::new(code, message))
}

prop_compose! {
    fn row()(torrent in torrent(), error in prop::option::of(error()), shown in any::<bool>(), fields in any::<u32>()) -> TorrentOutcome {
        let mut object = serde_json::to_value(&torrent).unwrap();
        let mut place = 0_u32;
        object.as_object_mut().unwrap().retain(|_, _| { place += 1; fields >> (place % 32) & 1 == 1 });
        let mut file = File::new("a/x", 1);
        file.priority = torrent.priority.map(|p| p % 3);
        object["files"] = json!([file]);
        let is_whole = fields % 2 == 0;
        let mut peer = Peer::new("::1");
        peer.progress = Some(0.5);
        if is_whole {
            object["peers"] = json!([peer]);
        }
        let left = RemainingFile { path: "/x".into(), reason: "it is mounted".into() };
        let mut deleted = DeletedFiles::default();
        deleted.files = vec!["/y".into()];
        deleted.count = 1;
        deleted.bytes = torrent.length;
        deleted.left = vec![left];
        let mut row = TorrentOutcome::ok(torrent.hash);
        row.torrent = shown.then_some(object);
        row.deleted = (!shown).then_some(deleted);
        row.error = error;
        row
    }
}

prop_compose! {
    fn outcome()(
        rows in prop::collection::vec(row(), 0..3),
        (id, verb, server) in ("[a-z0-9]{1,128}", ".{0,12}", prop::option::of(server())),
        status in prop::sample::select(vec![OutcomeStatus::Ok, OutcomeStatus::Partial, OutcomeStatus::Error, OutcomeStatus::Expired, OutcomeStatus::Refused]),
        (time, took_ms) in (time(), any::<u64>()),
        error in prop::option::of(error()),
        page in prop::option::of(any::<(u64, u64, u64, Option<u64>)>()),
        value in prop::option::of(Just(json!({"from_seq": 1}))),
    ) -> Outcome {
        let page = page.map(|(total, page, page_size, next_page)| Page { total, page, page_size, next_page });
        let id = CommandId::parse(&id).unwrap();
        let mut outcome = Outcome::new(id, verb, status, time);
        outcome.server = server;
        outcome.took_ms = took_ms;
        outcome.results = rows;
        outcome.error = error;
        outcome.page = page;
        outcome.value = value;
        outcome
    }
}

#[test]
fn every_message_is_valid_by_its_schema() {
    let (torrents, events, results) = (strict(sent::<Torrent>), strict(sent::<Event>), strict(sent::<Outcome>));
    let stats = strict(sent::<Stats>);
    let mut runner = proptest::test_runner::TestRunner::default();
    let run = runner.run(&(torrent(), event(), outcome()), |(torrent, event, outcome)| {
        let sums = Stats::of(ServerStats::default(), [&torrent].into_iter());
        let values = [
            (&torrents, serde_json::to_value(&torrent).unwrap()),
            (&events, serde_json::to_value(&event).unwrap()),
            (&results, serde_json::to_value(&outcome).unwrap()),
            (&stats, serde_json::to_value(&sums).unwrap()),
        ];
        for (validator, value) in values {
            let faults = rules::faults(validator, &value);
            prop_assert!(faults.is_empty(), "{faults:#?}\n{value:#}");
        }
        Ok(())
    });
    run.unwrap_or_else(|error| panic!("{error}"));
}

// --- addresses ---------------------------------------------------------------------------------

fn deliveries() -> Vec<Delivery> {
    let (server, hash, body) = (ServerName::parse("home").unwrap(), InfoHash::V1([7; 20]), Bytes::new());
    let time = Timestamp::from_millis(0);
    let id = EventId::Journal { server: server.clone(), epoch: Epoch(1), seq: Seq(1) };
    let entry = |kind: &Kind| {
        let hash = (kind.entity() == Entity::Torrent).then_some(hash);
        let (id, body) = (id.clone(), body.clone());
        Delivery::Event(JournalEntry::stored(id, *kind, hash, Rev(1), time, body))
    };
    let events = Kind::ALL.iter().filter(|kind| **kind != Kind::Updated).map(entry);
    let others = [
        Delivery::Updated { hash, event: Arc::new(Event::new(id.clone(), Kind::Updated, time)), body: body.clone() },
        Delivery::State { server: server.clone(), hash, body: body.clone(), retain: true },
        Delivery::Files { server: server.clone(), hash, body: body.clone() },
        Delivery::ServerStatus { server: server.clone(), is_online: true },
        Delivery::Stats { server: server.clone(), body: body.clone() },
        Delivery::Info { body: body.clone() },
        Delivery::Health { body: body.clone() },
        Delivery::Result { server: Some(server.clone()), body: body.clone(), reply: None },
        Delivery::Result { server: None, body: body.clone(), reply: None },
    ];
    events.chain(others).collect()
}

/// Returns the channels whose address matches `topic`, each parameter one level.
fn channels_of<'d>(document: &'d Value, topic: &str, separator: char) -> Vec<(&'d String, &'d Value)> {
    let fits = |address: &str| {
        let (pattern, levels): (Vec<_>, Vec<_>) =
            (address.split(separator).collect(), topic.split(separator).collect());
        pattern.len() == levels.len()
            && pattern.iter().zip(&levels).all(|(pattern, level)| {
                let Some(name) = pattern.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else {
                    return pattern == level;
                };
                let allowed = &document["components"]["parameters"][name]["enum"];
                (name != "server" || *level != "bridge")
                    && allowed.as_array().is_none_or(|allowed| allowed.contains(&json!(level)))
            })
    };
    let channels = document["channels"].as_object().unwrap().iter();
    channels.filter(|(_, channel)| channel["address"].as_str().is_some_and(fits)).collect()
}

#[test]
fn every_message_goes_to_a_channel_of_the_asyncapi_document() {
    let document = schema::asyncapi();
    let topics = Topics::new(mqtt::Prefix::of_topics("dtorrent").unwrap(), "main", true);
    let subjects = Subjects::new(nats::Prefix::of_subjects("dtorrent").unwrap(), "main", true);
    let operation_of = |key: &str| {
        let channel = json!({"$ref": format!("#/channels/{key}")});
        let mut all = document["operations"].as_object().unwrap().values();
        all.find(|operation| operation["channel"] == channel).unwrap_or_else(|| panic!("no operation uses {key}"))
    };
    let mut used = BTreeSet::new();
    for delivery in deliveries() {
        let route = topics.route(&delivery);
        let on_mqtt = channels_of(&document, &route.topic, '/');
        let on_nats = channels_of(&document, &subjects.of(&delivery), '.');
        let ([(mqtt_key, _)], [(nats_key, _)]) = (&on_mqtt[..], &on_nats[..]) else {
            panic!("{}: {on_mqtt:?} {on_nats:?}", route.topic)
        };
        let operation = operation_of(mqtt_key);
        let qos = if route.qos == Qos::AtMostOnce { 0 } else { 1 };
        let binding = &operation["bindings"]["mqtt"];
        assert_eq!((&binding["qos"], &binding["retain"]), (&json!(qos), &json!(route.is_retained)), "{mqtt_key}");
        assert_eq!((&operation["action"], &operation_of(nats_key)["action"]), (&json!("send"), &json!("send")));
        used.extend([mqtt_key.to_string(), nats_key.to_string()]);
    }
    let status = topics.addresses.bridge_status();
    used.extend(["bridgeStatus", "bridgeStatusOnNats", "reply"].map(str::to_owned));
    assert_eq!(channels_of(&document, &status, '/')[0].0, "bridgeStatus");
    let will = &document["servers"]["mqtt"]["bindings"]["mqtt"]["lastWill"];
    assert_eq!((&will["topic"], &will["message"]), (&json!(status), &json!("offline")));
    let idle = document["channels"].as_object().unwrap().keys().filter(|key| !used.contains(*key));
    let only_commands: Vec<_> = idle.filter(|key| !key.contains("Command")).collect();
    assert!(only_commands.is_empty(), "no message is sent to {only_commands:?}");
}

#[test]
fn every_command_is_accepted_on_a_channel_of_the_asyncapi_document() {
    let document = schema::asyncapi();
    let topics = Topics::new(mqtt::Prefix::of_topics("dtorrent").unwrap(), "main", true);
    for verb in Verb::ALL.iter().map(|verb| verb.as_str()) {
        let mut places = 0;
        for topic in [
            format!("dtorrent/bridge/main/command/{verb}"),
            format!("dtorrent/home/command/{verb}"),
            format!("dtorrent/home/torrent/{}/command/{verb}", InfoHash::V2([1; 32])),
        ] {
            assert!(topics.addresses.command(&topic).is_some());
            for (key, channel) in channels_of(&document, &topic, '/') {
                places += 1;
                assert!(channel["messages"][verb]["$ref"].is_string(), "{key} has no message {verb}");
            }
        }
        assert!(places > 0, "{verb} is nowhere");
    }
}

/// Returns every reference in a document.
fn collect_references(value: &Value, found: &mut Vec<Value>) {
    match value {
        Value::Object(object) => {
            found.extend(object.get("$ref").cloned());
            object.values().for_each(|below| collect_references(below, found));
        }
        Value::Array(items) => items.iter().for_each(|below| collect_references(below, found)),
        _ => {}
    }
}

/// Rules of AsyncAPI 3.0, among them some that its official JSON Schema cannot express.
#[test]
fn every_reference_in_the_asyncapi_document_resolves() {
    let document = schema::asyncapi();
    assert_eq!(document["asyncapi"], "3.0.0");
    let mut references = Vec::new();
    collect_references(&document, &mut references);
    assert!(references.len() > 200);
    for reference in &references {
        at(&document, reference);
    }
    for (key, channel) in document["channels"].as_object().unwrap() {
        let address = channel["address"].as_str().unwrap_or_default();
        let names: BTreeSet<&str> = address.split('{').skip(1).map(|rest| rest.split('}').next().unwrap()).collect();
        let declared = channel["parameters"].as_object().into_iter().flatten().map(|(name, _)| name.as_str());
        assert_eq!(names, declared.collect(), "the parameters of {key}");
        assert!(!channel["messages"].as_object().unwrap().is_empty(), "{key} has no message");
    }
    for (key, operation) in document["operations"].as_object().unwrap() {
        let channel = operation["channel"]["$ref"].as_str().unwrap();
        for message in operation["messages"].as_array().unwrap() {
            let message = message["$ref"].as_str().unwrap();
            assert!(message.starts_with(&format!("{channel}/messages/")), "{key}: {message} is not of its channel");
        }
        let is_command = operation["action"] == "receive";
        assert_eq!(operation["reply"].is_object(), is_command, "{key}: a command has an answer, a message has none");
    }
    let parts = document["components"].as_object().unwrap();
    for (part, below) in parts {
        for name in below.as_object().unwrap().keys() {
            let is_used = references.contains(&json!(format!("#/components/{part}/{name}")));
            assert!(is_used, "nothing refers to {part} {name}");
        }
    }
}

#[test]
fn the_asyncapi_document_has_the_same_schemas() {
    let rules = rules::Rules::new("dtorrent");
    let faults = |topic: &str, body: &Value| rules.faults(topic, body.to_string().as_bytes());
    let torrent = format!("dtorrent/home/torrent/{}", InfoHash::V1([7; 20]));
    let (state, event) = (golden("torrent"), golden("event-finished"));
    assert_eq!(faults(&format!("{torrent}/state"), &state), Some(Vec::new()));
    assert_eq!(faults(&format!("{torrent}/event/finished"), &event), Some(Vec::new()));
    assert_eq!(faults(&format!("{torrent}/event/updated"), &golden("event-updated")), Some(Vec::new()));
    assert_eq!(faults("dtorrent/home/stats", &golden("stats")), Some(Vec::new()));
    assert_eq!(faults("dtorrent/home/result", &golden("result-list")), Some(Vec::new()));
    assert_eq!(rules.faults("dtorrent/bridge/main/status", b"offline"), Some(Vec::new()));
    assert_eq!(rules.faults("dtorrent/home/status", b"away").map(|faults| faults.len()), Some(1));
    assert!(faults(&format!("{torrent}/state"), &event).is_some_and(|faults| !faults.is_empty()));
    assert_eq!(faults("dtorrent/home/command/pause", &json!({})), None);
    assert_eq!(faults("another/topic", &json!({})), None);
    let mut more = state.clone();
    more["unknown"] = json!("good");
    assert_eq!(faults(&format!("{torrent}/state"), &more).map(|faults| faults.len()), Some(1));
}

#[test]
fn every_schema_is_valid_in_its_dialect_and_resolves() {
    let mut all: Vec<Value> = SENT.iter().map(|(_, body)| body().to_value()).collect();
    all.extend(Verb::ALL.iter().map(|verb| schema::command(*verb).to_value()));
    all.extend([schema::any_command().to_value(), dtorrent::config::schema().to_value()]);
    for document in all {
        assert_eq!(document["$schema"], "https://json-schema.org/draft/2020-12/schema");
        assert!(jsonschema::meta::is_valid(&document), "{document:#}");
        let mut references = Vec::new();
        collect_references(&document, &mut references);
        for reference in &references {
            at(&document, reference);
        }
    }
}
