//! The JSON Schema of the body of each command.
//!
//! [`Request`](super::Request) parses what this describes; the tests compare both.
//!
//! Pure.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::request;
use crate::model::{CommandId, FilterArguments, Level, OneOrMore, Status, Verb};

/// The keys that every command may have.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "nothing is ever of this type: it is only described")]
struct Common {
    /// The sender's; made up if there is none. An id that comes again within 24 hours gets the result of the first.
    #[schemars(schema_with = "id")]
    id: (),
    /// The torrents, where the topic names none; where it names one, nothing or the same.
    #[schemars(schema_with = "hashes")]
    hashes: (),
    /// The same as `hashes`.
    #[schemars(schema_with = "hashes")]
    hash: (),
    /// Conditions on the torrents, where the topic names none.
    filter: Option<FilterArguments>,
    /// Time to live, after which the command is not executed: `"300s"`, `"5m"`; 24 hours at most.
    #[schemars(regex(pattern = r"^\s*(0|([0-9.]+\s*[a-zA-Zµ]+\s*)+)$"))]
    ttl: Option<String>,
    /// Torrents with another status are left alone.
    if_status: Option<OneOrMore<Status>>,
    /// Check everything and change nothing.
    dry_run: Option<bool>,
    /// A topic for the result, besides the result topic; only below the config's `reply_prefixes`.
    reply_to: Option<String>,
}

fn id(generator: &mut SchemaGenerator) -> Schema {
    let id = CommandId::json_schema(generator);
    json_schema!({"anyOf": [id, {"type": "number"}, {"type": "null"}]})
}

fn hashes(_generator: &mut SchemaGenerator) -> Schema {
    let hash = json!({"type": "string", "pattern": "^([0-9a-fA-F]{40}|[0-9a-fA-F]{64})$"});
    let hashes = json!({"type": "array", "items": hash, "maxItems": request::HASHES_MAX});
    json_schema!({"anyOf": [hash, hashes, {"type": "null"}]})
}

/// Returns the schema of a body with this verb, as JSON. `add` also takes a bare link, and the bytes of a .torrent file.
pub fn body_schema(verb: Verb, generator: &mut SchemaGenerator) -> Schema {
    let mut schema = verb.arguments_schema(generator);
    let Some(Value::Object(mut common)) = Common::json_schema(generator).remove("properties") else {
        unreachable!("it is a struct with fields")
    };
    if verb.level() != Level::Torrents {
        if verb.level() != Level::Torrent {
            common.remove("hashes");
            common.remove("hash");
        }
        if verb.level() != Level::ServerFiltered {
            common.remove("filter");
        }
    }
    if let Value::Object(properties) = schema.ensure_object().entry("properties").or_insert_with(|| json!({})) {
        properties.append(&mut common);
    }
    schema.insert("title".to_owned(), verb.as_str().into());
    schema.insert("description".to_owned(), verb.summary().into());
    schema
}

#[cfg(test)]
mod tests {
    use jsonschema::Validator;
    use proptest::prelude::*;
    use schemars::generate::SchemaSettings;

    use super::*;
    use crate::commands::{Envelope, Request, TreeMemory};
    use crate::model::InfoHash;

    const HASH: &str = "abcdef0123456789ABCDEF0123456789abcdef01";

    fn validator(verb: Verb) -> Validator {
        let mut generator = SchemaSettings::draft2020_12().for_deserialize().into_generator();
        let mut schema = body_schema(verb, &mut generator).to_value();
        schema["$defs"] = Value::Object(generator.take_definitions(true));
        jsonschema::validator_for(&schema).unwrap()
    }

    /// Whether a body is parsed on one of the topics of its verb.
    fn is_parsed(verb: Verb, body: &Value) -> bool {
        let bytes = body.to_string();
        let (hash, trees): (InfoHash, _) = (HASH.parse().unwrap(), TreeMemory::default());
        let is_readable = Envelope::read(bytes.as_bytes(), &trees).1.is_ok();
        is_readable
            && [None, Some(hash)].into_iter().any(|hash| Request::parse(verb, hash, bytes.as_bytes(), &trees).is_ok())
    }

    #[test]
    fn valid_bodies_are_parsed_and_valid_by_the_schema() {
        for (verb, body) in [
            (Verb::Pause, json!({})),
            (Verb::Pause, json!({"id": "1", "ttl": "5m", "dry_run": true, "if_status": ["seeding"], "reply_to": "x"})),
            (Verb::Stop, json!({"filter": {"status": "seeding", "name": "*.iso", "size": {"max": "700 MiB"}}})),
            (Verb::Recheck, json!({"hashes": [HASH]})),
            (Verb::Recheck, json!({"hash": HASH, "id": 1_795_984_023})),
            (Verb::FilePriority, json!({"files": [0], "priority": 1, "hashes": HASH})),
            (Verb::Add, json!({"magnet": " MAGNET:?x"})),
            (Verb::Delete, json!({"data": true})),
            (Verb::Label, json!({"label": "$x; \"y\"", "hashes": null})),
            (Verb::Limits, json!({"upload_limit": 0})),
            (Verb::Add, json!({"torrent": "ZGU=", "start": false, "magnet": null})),
            (Verb::Add, json!({"url": "HTTPS://x", "label": "a", "priority": 3})),
            (Verb::List, json!({"filter": {"age": {"min": "30days"}}, "fields": ["name"], "page_size": 1000})),
            (Verb::FilePriority, json!({"files": [0, 3], "priority": 2})),
            (Verb::Trackers, json!({"add": ["HTTP://a/x?y", "udp://b:1"], "enable": [], "disable": ["https://c/"]})),
            (Verb::Add, json!({"url": "http://x", "custom": {"a.b-c_D": "v ☃ 🦀", "e": ""}})),
            (Verb::Add, json!({"url": "http://x", "custom": null})),
            (Verb::Rpc, json!({"method": "d.ratio", "params": ["x", -1]})),
            (Verb::Resync, json!({"from_seq": 7})),
            (Verb::LogLevel, json!({"level": "debug"})),
        ] {
            assert!(is_parsed(verb, &body), "{verb:?} {body}");
            assert!(validator(verb).is_valid(&body), "{verb:?} {body}");
        }
    }

    #[test]
    fn invalid_bodies_are_refused_and_invalid_by_the_schema() {
        for (verb, body) in [
            (Verb::Pause, json!([])),
            (Verb::Pause, json!({"wait": 1})),
            (Verb::Pause, json!({"id": ""})),
            (Verb::Pause, json!({"id": "a\n"})),
            (Verb::Pause, json!({"ttl": "soon"})),
            (Verb::Pause, json!({"hashes": ["xyz"]})),
            (Verb::Pause, json!({"filter": {"status": "asleep"}})),
            (Verb::Pause, json!({"filter": {"colour": "red"}})),
            (Verb::Pause, json!({"filter": {"size": {"min": "big"}}})),
            (Verb::Pause, json!({"filter": {"size": {"min": -1}}})),
            (Verb::Pause, json!({"filter": {"age": {"max": 5}}})),
            (Verb::Pause, json!({"filter": {"ratio": {"least": 5}}})),
            (Verb::Pause, json!({"if_status": "asleep"})),
            (Verb::Pause, json!({"dry_run": "yes"})),
            (Verb::Label, json!({})),
            (Verb::Label, json!({"label": 5})),
            (Verb::Label, json!({"label": "a\u{7}"})),
            (Verb::Priority, json!({"priority": 4})),
            (Verb::Priority, json!({"priority": -1})),
            (Verb::Delete, json!({"data": 1})),
            (Verb::Move, json!({})),
            (Verb::FilePriority, json!({"files": [], "priority": 1})),
            (Verb::FilePriority, json!({"files": [0], "priority": 3})),
            (Verb::FilePriority, json!({"files": [0], "priority": 1, "hashes": ["xyz"]})),
            (Verb::Pause, json!({"hash": "xyz"})),
            (Verb::Pause, json!({"id": true})),
            (Verb::Trackers, json!({})),
            (Verb::Trackers, json!({"add": [], "remove": []})),
            (Verb::Trackers, json!({"add": "http://a/"})),
            (Verb::Trackers, json!({"add": ["ftp://a/"]})),
            (Verb::Trackers, json!({"disable": ["http://a/ b"]})),
            (Verb::Trackers, json!({"remove": ["http://a/"], "hashes": ["xyz"]})),
            (Verb::Add, json!({"url": "http://x", "custom": {"a b": "v"}})),
            (Verb::Add, json!({"url": "http://x", "custom": {"addtime": "1"}})),
            (Verb::Add, json!({"url": "http://x", "custom": {"dtorrent_x": "1"}})),
            (Verb::Add, json!({"url": "http://x", "custom": {"a": 1}})),
            (Verb::Add, json!({"url": "http://x", "custom": {"a": "\n"}})),
            (Verb::Limits, json!({})),
            (Verb::Limits, json!({"download_limit": 99_999_999_999_u64})),
            (Verb::Limits, json!({"filter": {}, "download_limit": 1})),
            (Verb::Rpc, json!({"method": "x", "params": [[]]})),
            (Verb::Rpc, json!({"method": "x", "params": [1.5]})),
            (Verb::Resync, json!({"from_seq": "1"})),
            (Verb::Add, json!({})),
            (Verb::Add, json!({"magnet": "http://x"})),
            (Verb::Add, json!({"url": "file:///etc/passwd"})),
            (Verb::Add, json!({"magnet": "magnet:?x", "url": "http://x"})),
            (Verb::List, json!({"page_size": 0})),
            (Verb::List, json!({"hashes": [HASH]})),
        ] {
            assert!(!is_parsed(verb, &body), "{verb:?} {body}");
            assert!(!validator(verb).is_valid(&body), "{verb:?} {body}");
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let texts = ["", "1", "5m", "seeding", "magnet:?x", "http://x", "*.iso", "debug", "ZGU=", HASH, "/a", "\u{85}"];
        prop_oneof![
            prop::sample::select(texts.to_vec()).prop_map(Value::from),
            prop::sample::select(vec![
                json!(null),
                json!(true),
                json!([]),
                json!({}),
                json!([HASH]),
                json!(["seeding"])
            ]),
            prop::sample::select(vec![
                json!({"status": "seeding"}),
                json!({"size": {"min": 5}}),
                json!({"name": null}),
                json!({"a": "b"}),
                json!({"addtime": "1"})
            ]),
            prop::sample::select(vec![json!(["http://a/"]), json!(["udp://b", "HTTP://a/"]), json!(["dht://"])]),
            (-1_i64..1002).prop_map(Value::from),
            prop::collection::vec(0..3_u8, 0..3).prop_map(|files| json!(files)),
        ]
    }

    fn bodies() -> impl Strategy<Value = (Verb, Value)> {
        prop::sample::select(Verb::ALL.to_vec()).prop_flat_map(|verb| {
            let mut generator = SchemaSettings::draft2020_12().for_deserialize().into_generator();
            let schema = body_schema(verb, &mut generator).to_value();
            let keys: Vec<String> = schema["properties"].as_object().unwrap().keys().cloned().collect();
            let body = prop::collection::btree_map(prop::sample::select(keys), value(), 0..4);
            (Just(verb), body.prop_map(|body| json!(body)))
        })
    }

    proptest! {
        #[test]
        fn whatever_is_parsed_is_valid_by_the_schema((verb, body) in bodies()) {
            prop_assert!(!is_parsed(verb, &body) || validator(verb).is_valid(&body), "{verb:?} {body}");
        }
    }
}
