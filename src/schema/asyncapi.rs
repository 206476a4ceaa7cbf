//! The AsyncAPI 3 document: topics and subjects, their messages, and who sends them.
//!
//! Written from the bridge's side: others subscribe to what it *sends*. The table of channels is the only
//! place that repeats topics; `tests/schemas.rs` compares it with the routes that messages take.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::commands;
use crate::model::{Entity, Event, Files, Health, Info, Kind, Outcome, Stats, Torrent, Verb};

/// A topic with parameters in braces, and its messages.
struct Channel {
    key: &'static str,
    /// One of the three roots below, and what follows it.
    address: Address,
    title: &'static str,
    direction: Direction,
}

enum Direction {
    /// One kind of message, which the bridge sends.
    Sent { message: &'static str, qos: u8, is_retained: bool },
    /// Commands, whose results are sent on another channel.
    Received { verbs: fn(Verb) -> bool },
}

const BRIDGE: &str = "{prefix}/bridge/{instance}";
const SERVER: &str = "{prefix}/{server}";
const TORRENT: &str = "{prefix}/{server}/torrent/{hash}";

const ON_MANY: &str = "Commands to a server, or on many torrents";
const STATE: &str = "Current state of a torrent; retained according to the broker's `retain`, empty when it is gone";
const EVENT: &str = "Events of a torrent, each at least once and in order";

const CHANNELS: [Channel; 15] = [
    sent("bridgeStatus", (BRIDGE, "status"), "Whether the bridge runs", "status", 1, true),
    sent("bridgeInfo", (BRIDGE, "info"), "Version and limits of the bridge", "info", 1, true),
    sent("bridgeHealth", (BRIDGE, "health"), "Condition of servers and sinks, every 30 seconds", "health", 0, false),
    sent("bridgeResult", (BRIDGE, "result"), "Results of commands to the bridge", "result", 1, false),
    sent("serverStatus", (SERVER, "status"), "Whether the client is reachable", "status", 1, true),
    sent("serverStats", (SERVER, "stats"), "Statistics of a server", "stats", 1, true),
    sent("serverEvent", (SERVER, "event/{serverKind}"), "Events of a server", "event", 1, false),
    sent("serverResult", (SERVER, "result"), "Results of commands", "result", 1, false),
    sent("torrentState", (TORRENT, "state"), STATE, "torrent", 1, true),
    sent("torrentEvent", (TORRENT, "event/{torrentKind}"), EVENT, "event", 1, false),
    sent(
        "torrentUpdated",
        (TORRENT, "event/updated"),
        "Other changes of a torrent; the latest wins",
        "event",
        0,
        false,
    ),
    sent("torrentFiles", (TORRENT, "files"), "The files of a torrent", "files", 1, false),
    received("bridgeCommand", (BRIDGE, "command/{bridgeVerb}"), "Commands to the bridge", Verb::is_for_bridge),
    received("serverCommand", (SERVER, "command/{serverVerb}"), ON_MANY, Verb::is_for_servers),
    received("torrentCommand", (TORRENT, "command/{torrentVerb}"), "Commands on one torrent", Verb::is_for_torrents),
];

type Address = (&'static str, &'static str);

const fn sent(
    key: &'static str,
    address: Address,
    title: &'static str,
    message: &'static str,
    qos: u8,
    is_retained: bool,
) -> Channel {
    Channel { key, address, title, direction: Direction::Sent { message, qos, is_retained } }
}

const fn received(key: &'static str, address: Address, title: &'static str, verbs: fn(Verb) -> bool) -> Channel {
    Channel { key, address, title, direction: Direction::Received { verbs } }
}

/// Queue group of NATS micro services: of several bridges on one system one receives each request.
const NATS_QUEUE: &str = "q";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Mqtt,
    Nats,
}

/// Returns the document.
pub fn document() -> Value {
    let (messages, schemas) = messages();
    let mut channels = Map::new();
    let mut operations = Map::new();
    for protocol in [Protocol::Mqtt, Protocol::Nats] {
        // Each channel twice: AsyncAPI 3 gives a channel one address, and NATS separates levels by dots.
        for channel in &CHANNELS {
            channels.insert(protocol.key(channel.key), channel.describe(protocol));
            operations.insert(channel.operation_key(protocol), channel.operation(protocol));
        }
    }
    channels.insert(
        "reply".to_owned(),
        json!({
            "address": null,
            "title": "Reply subject of a request on NATS",
            "servers": [{"$ref": "#/servers/nats"}],
            "messages": {"result": {"$ref": "#/components/messages/result"}},
        }),
    );
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "dtorrent",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A bridge between torrent clients and message brokers, as its brokers see it. Messages \
                that it sends may gain keys in a later version; commands may not contain unknown keys.",
            "license": {"name": "GPL-3.0-or-later", "url": "https://www.gnu.org/licenses/gpl-3.0.html"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "mqtt": {
                "host": "localhost:1883",
                "protocol": "mqtt",
                "description": "MQTT 5 or 3.1.1. With MQTT 5 events carry the attributes of CloudEvents as user \
                    properties, and a command's Response Topic and Correlation Data are used for its result too.",
                "bindings": {"mqtt": {
                    "lastWill": {"topic": "dtorrent/bridge/main/status", "qos": 1, "message": "offline", "retain": true},
                    "bindingVersion": "0.2.0",
                }},
            },
            "nats": {
                "host": "localhost:4222",
                "protocol": "nats",
                "description": "Events are stored in the stream DTORRENT_EVENTS under their ids (Nats-Msg-Id), with \
                    the attributes of CloudEvents as ce- headers; states in the key-value bucket dtorrent_state.",
            },
        },
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "parameters": parameters(), "schemas": schemas},
    })
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Nats => "nats",
        }
    }

    /// Returns the key of a channel. Both protocols have the same channels, so the second needs names of its own.
    fn key(self, key: &str) -> String {
        match self {
            Self::Mqtt => key.to_owned(),
            Self::Nats => format!("{key}OnNats"),
        }
    }
}

impl Channel {
    fn address(&self) -> String {
        format!("{}/{}", self.address.0, self.address.1)
    }

    fn messages(&self) -> Vec<&'static str> {
        match &self.direction {
            Direction::Sent { message, .. } => vec![message],
            Direction::Received { verbs, .. } => {
                let chosen = Verb::ALL.iter().filter(|verb| verbs(**verb)).map(|verb| verb.as_str());
                let is_bare = verbs(Verb::Add);
                chosen.chain(["addLink", "addTorrentFile"].into_iter().filter(|_| is_bare)).collect()
            }
        }
    }

    fn describe(&self, protocol: Protocol) -> Value {
        let refs = |part: &str, names: Vec<&str>| -> Map<String, Value> {
            let reference = |name| json!({"$ref": format!("#/components/{part}/{name}")});
            names.into_iter().map(|name| (name.to_owned(), reference(name))).collect()
        };
        let address = match protocol {
            Protocol::Mqtt => self.address(),
            Protocol::Nats => self.address().replace('/', "."),
        };
        json!({
            "address": address,
            "title": self.title,
            "servers": [{"$ref": format!("#/servers/{}", protocol.name())}],
            "messages": refs("messages", self.messages()),
            "parameters": refs("parameters", names_in(&self.address()).collect()),
        })
    }

    fn action(&self) -> &'static str {
        match self.direction {
            Direction::Sent { .. } => "send",
            Direction::Received { .. } => "receive",
        }
    }

    fn operation_key(&self, protocol: Protocol) -> String {
        let (first, rest) = self.key.split_at(1);
        protocol.key(&format!("{}{}{rest}", self.action(), first.to_uppercase()))
    }

    fn operation(&self, protocol: Protocol) -> Value {
        let channel = protocol.key(self.key);
        let reference = |name: &str| json!({"$ref": format!("#/channels/{channel}/messages/{name}")});
        let refs: Vec<Value> = self.messages().into_iter().map(reference).collect();
        let mut operation = json!({
            "action": self.action(),
            "title": self.title,
            "channel": {"$ref": format!("#/channels/{channel}")},
            "messages": refs,
        });
        match (&self.direction, protocol) {
            (Direction::Sent { qos, is_retained, .. }, Protocol::Mqtt) => {
                operation["bindings"] = json!({"mqtt": {"qos": qos, "retain": is_retained, "bindingVersion": "0.2.0"}});
            }
            (Direction::Sent { .. }, Protocol::Nats) => {}
            (Direction::Received { .. }, Protocol::Mqtt) => {
                let result = if self.address.0 == BRIDGE { "bridgeResult" } else { "serverResult" };
                // Retained commands are refused (I12).
                operation["bindings"] = json!({"mqtt": {"qos": 1, "retain": false, "bindingVersion": "0.2.0"}});
                operation["reply"] = json!({
                    "channel": {"$ref": format!("#/channels/{result}")},
                    "messages": [{"$ref": format!("#/channels/{result}/messages/result")}],
                });
            }
            (Direction::Received { .. }, Protocol::Nats) => {
                operation["bindings"] = json!({"nats": {"queue": NATS_QUEUE, "bindingVersion": "0.1.0"}});
                operation["reply"] = json!({
                    "address": {"location": "$message.header#/reply", "description": "The reply subject of the request"},
                    "channel": {"$ref": "#/channels/reply"},
                    "messages": [{"$ref": "#/channels/reply/messages/result"}],
                });
            }
        }
        operation
    }
}

/// Returns the names in braces.
fn names_in(address: &str) -> impl Iterator<Item = &str> {
    address.split('{').skip(1).filter_map(|rest| rest.split('}').next())
}

fn parameters() -> Value {
    let kinds = |entity| {
        let of_entity = move |kind: &&Kind| kind.entity() == entity && **kind != Kind::Updated;
        Kind::ALL.iter().filter(of_entity).map(|kind| kind.as_str()).collect::<Vec<_>>()
    };
    let verbs = |is_one: fn(Verb) -> bool| {
        Verb::ALL.iter().filter(|verb| is_one(**verb)).map(|verb| verb.as_str()).collect::<Vec<_>>()
    };
    json!({
        "prefix": {"description": "The broker's `prefix`, one or more levels.", "default": "dtorrent"},
        "instance": {"description": "The bridge's `instance`.", "default": "main"},
        "server": {"description": "Name of a monitored torrent client."},
        "hash": {"description": "Info-hash of a torrent in lower-case hex; any case is accepted."},
        "serverKind": {"description": "Kind of event.", "enum": kinds(Entity::Server)},
        "torrentKind": {"description": "Kind of event.", "enum": kinds(Entity::Torrent)},
        "bridgeVerb": {"description": "Verb.", "enum": verbs(Verb::is_for_bridge)},
        "serverVerb": {"description": "Verb.", "enum": verbs(Verb::is_for_servers)},
        "torrentVerb": {"description": "Verb.", "enum": verbs(Verb::is_for_torrents)},
    })
}

/// Returns the messages, and the schemas that they refer to.
///
/// AsyncAPI's own dialect is JSON Schema 7 with references from the root of the document.
fn messages() -> (Map<String, Value>, Map<String, Value>) {
    let settings = || {
        SchemaSettings::draft07().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
    };
    let mut messages = Map::new();
    let status = json!({"type": "string", "enum": ["online", "offline"]});
    messages.insert("status".to_owned(), json!({"title": "Status", "contentType": "text/plain", "payload": status}));

    let mut out = settings().for_serialize().into_generator();
    let sent = [
        ("event", "Event", of::<Event>(&mut out)),
        ("torrent", "Torrent", of::<Torrent>(&mut out)),
        ("files", "Files of a torrent", of::<Files>(&mut out)),
        ("stats", "Statistics", of::<Stats>(&mut out)),
        ("info", "Version and limits of the bridge", of::<Info>(&mut out)),
        ("health", "Condition of the bridge", of::<Health>(&mut out)),
        ("result", "Result of a command", of::<Outcome>(&mut out)),
    ];
    for (name, title, payload) in sent {
        messages.insert(name.to_owned(), json!({"title": title, "payload": payload}));
    }
    let id = json!({"location": "$message.payload#/id", "description": "The id of the command"});
    messages["result"]["correlationId"] = id.clone();

    let mut received = settings().for_deserialize().into_generator();
    for verb in Verb::ALL {
        let payload = commands::body_schema(*verb, &mut received).to_value();
        let name = verb.as_str().to_owned();
        let title = format!("Command {name}; an empty body is an empty object");
        messages.insert(name, json!({"title": title, "payload": payload, "correlationId": id}));
    }
    let link = json!({"type": "string", "description": "A magnet link, or an http(s) URL of a .torrent file."});
    let file = json!({"type": "string", "format": "binary", "description": "The bytes of a .torrent file."});
    for (name, content_type, payload) in
        [("addLink", "text/plain", link), ("addTorrentFile", "application/x-bittorrent", file)]
    {
        messages
            .insert(name.to_owned(), json!({"title": "Command add", "contentType": content_type, "payload": payload}));
    }

    let mut schemas = out.take_definitions(true);
    schemas.extend(received.take_definitions(true));
    (messages, schemas)
}

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}
