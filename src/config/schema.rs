//! The shape of the config file, for editors.
//!
//! What a key *means* is for `checked` alone to say; here is what it looks like. Two lists of keys would
//! drift apart, so `tests/config.rs` holds them together: the same keys, and every config that is read there
//! is one by this schema too.

#![expect(dead_code, reason = "nothing is ever of these types: they are only described")]

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform as _};
use schemars::{JsonSchema, Schema};
use serde_json::{Value, json};

use crate::model::{ServerName, SinkName, Status, Verb};

/// What `humantime` reads.
const DURATION: &str = r"^\s*([0-9.]+\s*[a-zA-Zµ]+\s*)+$";
const RATE: &str = r"^[0-9]+\s*(kB|MB|GB|KiB|MiB|GiB|B)?$";
const LISTENER: &str = r"^.+:[0-9]{1,5}$";

/// The schema of `dtorrent.toml`.
pub fn schema() -> Schema {
    let mut schema = SchemaSettings::draft2020_12().for_deserialize().into_generator().into_root_schema_for::<File>();
    RecursiveTransform(without_null).transform(&mut schema);
    schema
}

/// TOML has no null: a key that may be left out is just that.
fn without_null(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else { return };
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|name| name != "null");
        if let [one] = &types[..] {
            let one = one.clone();
            object.insert("type".to_owned(), one);
        }
    }
    if let Some(Value::Array(words)) = object.get_mut("enum") {
        words.retain(|word| !word.is_null());
    }
    if let Some(Value::Array(ways)) = object.get_mut("anyOf") {
        ways.retain(|way| way["type"] != "null");
        if let [Value::Object(one)] = &ways[..] {
            let one = one.clone();
            object.remove("anyOf");
            object.extend(one);
        }
    }
}

/// The config of dtorrent: one TOML file, under environment variables, under command-line flags.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, title = "dtorrent.toml")]
struct File {
    /// The bridge's own name, a level of its topics. Two bridges on one broker need two.
    #[schemars(extend("default" = "main"))]
    instance: Option<SinkName>,
    /// What was told and what is still to be told. One process per folder, locked.
    #[schemars(length(min = 1), extend("default" = "data"))]
    data_dir: Option<String>,
    log: Option<Log>,
    http: Option<Http>,
    /// The torrent clients that are watched, by their names.
    #[schemars(extend("propertyNames" = json!({"not": {"const": "bridge"}})))]
    servers: Option<BTreeMap<ServerName, Server>>,
    /// The brokers that are told, by their names.
    #[schemars(extend("propertyNames" = json!({"not": {"const": "bridge"}})))]
    brokers: Option<BTreeMap<SinkName, Broker>>,
    /// The addresses that events are posted to, by their names.
    #[schemars(extend("propertyNames" = json!({"not": {"const": "bridge"}})))]
    webhooks: Option<BTreeMap<SinkName, Webhook>>,
}

/// What is logged, and how. Always on stderr.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Log {
    /// The quietest that is still said.
    #[schemars(extend("default" = "info"))]
    level: Option<Level>,
    /// One line of text, or one JSON object a line.
    #[schemars(extend("default" = "pretty"))]
    format: Option<Format>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase", inline)]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
    Off,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase", inline)]
enum Format {
    Pretty,
    Json,
}

/// Where the bridge itself can be asked, and rung.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Http {
    /// An address and a port where `/healthz`, `/readyz` and `/metrics` are, or `off`.
    #[schemars(regex(pattern = r"^(off|.+:[0-9]{1,5})$"), extend("default" = "127.0.0.1:8787"))]
    listen: Option<String>,
    /// Where clients ring that have `hooks`; port 0 is any that is free.
    #[schemars(regex(pattern = LISTENER), extend("default" = "127.0.0.1:0"))]
    hooks_listen: Option<String>,
    /// For requests that change something; without one none can.
    token: Option<String>,
    /// The name of a file that holds `token`.
    token_file: Option<String>,
    /// Which commands the token gives the right to; `[]` is read-only.
    #[schemars(extend("items" = command_words(), "default" = ["*", "-delete_data", "-rpc"]))]
    commands: Option<Vec<String>>,
    /// Names with dots by which browsers may ask for the pages, without a scheme and a port.
    hosts: Option<Vec<String>>,
}

/// A torrent client that is watched.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Server {
    Rtorrent(Rtorrent),
    Exec(Exec),
}

/// An rTorrent.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Rtorrent {
    #[schemars(extend("const" = "rtorrent", "default" = "rtorrent"))]
    client: Option<String>,
    /// `unix:///path/of/rpc.sock`, `scgi://host:port` or `http(s)://host[:port]/RPC2`.
    #[schemars(regex(pattern = r"^(unix:///|scgi://|https?://)."))]
    url: String,
    /// For HTTP basic authentication.
    username: Option<String>,
    /// For HTTP basic authentication.
    password: Option<String>,
    /// The name of a file that holds `password`.
    password_file: Option<String>,
    /// The certificate authority to trust with https, instead of the system's (PEM).
    ca_file: Option<String>,
    /// rTorrent itself wakes the bridge when something happens.
    #[schemars(extend("default" = false))]
    hooks: Option<bool>,
    /// `host:port` at which this rTorrent reaches `http.hooks_listen`, where that is not the address itself.
    #[schemars(regex(pattern = LISTENER))]
    hooks_address: Option<String>,
    /// Methods that the command `rpc` may call, by their full names.
    rpc: Option<Vec<String>>,
    /// More columns, by your names for them: `{ throttle = "d.throttle_name=" }`.
    extra: Option<BTreeMap<String, String>>,
    #[schemars(flatten)]
    watching: Watching,
}

/// A program of yours as a client.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Exec {
    #[schemars(extend("const" = "exec"))]
    client: String,
    /// The program and its arguments; there is no shell.
    #[schemars(length(min = 1))]
    command: Vec<String>,
    #[schemars(flatten)]
    watching: Watching,
}

#[derive(JsonSchema)]
struct Watching {
    /// How often it is asked what changed: 250ms to 1h.
    #[schemars(regex(pattern = DURATION), extend("default" = "1s"))]
    interval: Option<String>,
    /// All torrents are read at least this often: 250ms to 24h.
    #[schemars(regex(pattern = DURATION), extend("default" = "30s"))]
    sweep: Option<String>,
    /// For one exchange: 100ms to 1h.
    #[schemars(regex(pattern = DURATION), extend("default" = "10s"))]
    timeout: Option<String>,
    /// The only folders that a command may name or delete from, with all below them. Absolute.
    #[schemars(inner(regex(pattern = r"^/")), extend("default" = []))]
    roots: Option<Vec<String>>,
}

/// A broker that is told.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum Broker {
    Mqtt(Mqtt),
    Nats(Nats),
}

/// A broker that speaks MQTT.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Mqtt {
    #[schemars(extend("const" = "mqtt"))]
    kind: String,
    /// `mqtt://`, `mqtts://`, `ws://` or `wss://`, a host, and a port where it is not the usual one.
    #[schemars(regex(pattern = r"^(mqtts?|wss?)://."))]
    url: String,
    /// `auto` is 5 where the broker has it.
    #[schemars(extend("default" = "auto"))]
    version: Option<Version>,
    /// Which torrents' states are retained; `auto`: 500 on a server at most.
    #[schemars(extend("default" = "auto"))]
    retain: Option<Retain>,
    /// Topics below which a command's `reply_to` may point.
    #[schemars(inner(length(min = 1, max = 200)), extend("default" = []))]
    reply_prefixes: Option<Vec<String>>,
    home_assistant: Option<HomeAssistant>,
    #[schemars(flatten)]
    told: Told,
}

#[derive(JsonSchema)]
#[schemars(inline)]
enum Version {
    #[schemars(rename = "auto")]
    Auto,
    #[schemars(rename = "5")]
    V5,
    #[schemars(rename = "3.1.1")]
    V311,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase", inline)]
enum Retain {
    Auto,
    All,
    None,
}

/// A NATS system.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Nats {
    #[schemars(extend("const" = "nats"))]
    kind: String,
    /// `nats://host[:4222]` or `tls://host[:4222]`, or a list of several servers of one system.
    url: NatsUrls,
    /// Instead of a name and a password.
    token: Option<String>,
    /// The name of a file that holds `token`.
    token_file: Option<String>,
    /// The name of a file with the seed of a user's key.
    nkey_file: Option<String>,
    /// The name of a credentials file.
    creds_file: Option<String>,
    /// Events in a stream, states in a bucket. `false`: only who listens hears.
    #[schemars(extend("default" = true))]
    jetstream: Option<bool>,
    /// How many servers of a cluster hold a copy.
    #[schemars(range(min = 1, max = 5), extend("default" = 1))]
    replicas: Option<u8>,
    #[schemars(flatten)]
    told: Told,
}

#[derive(JsonSchema)]
#[schemars(untagged, inline)]
enum NatsUrls {
    One(
        #[schemars(regex(pattern = r"^(nats|tls)://."))]
        String,
    ),
    Several(
        #[schemars(length(min = 1), inner(regex(pattern = r"^(nats|tls)://.")))]
        Vec<String>,
    ),
}

#[derive(JsonSchema)]
struct Told {
    username: Option<String>,
    password: Option<String>,
    /// The name of a file that holds `password`.
    password_file: Option<String>,
    /// The certificate authority to trust, instead of the system's (PEM).
    ca_file: Option<String>,
    /// A certificate of the bridge's own (PEM). It goes with `key_file`.
    cert_file: Option<String>,
    /// The key of the certificate in `cert_file` (PEM).
    key_file: Option<String>,
    /// The first levels of all topics.
    #[schemars(length(min = 1), extend("default" = "dtorrent"))]
    prefix: Option<String>,
    /// Which servers it gets: names or patterns, in order; a `-` before one takes it away.
    #[schemars(extend("default" = ["*"]))]
    servers: Option<Vec<String>>,
    /// Which kinds of events it gets: names or patterns, in order; a `-` before one takes it away.
    #[schemars(extend("default" = ["*"]))]
    events: Option<Vec<String>>,
    /// Which commands are accepted from it, in order; a `-` before one takes it away; `[]` is read-only.
    #[schemars(extend("items" = command_words(), "default" = ["*", "-delete_data", "-rpc"]))]
    commands: Option<Vec<String>>,
}

fn command_words() -> Value {
    let words = Verb::rights().flat_map(|right| [right.to_owned(), format!("-{right}")]);
    let words: Vec<String> = ["*".to_owned()].into_iter().chain(words).collect();
    json!({"type": "string", "enum": words})
}

/// Devices and entities in Home Assistant.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct HomeAssistant {
    #[schemars(extend("default" = false))]
    enabled: Option<bool>,
    /// As Home Assistant has it in its MQTT settings.
    #[schemars(length(min = 1, max = 200), extend("default" = "homeassistant"))]
    discovery_prefix: Option<String>,
    /// So many torrents are shown at a time.
    #[schemars(range(min = 0, max = 50), extend("default" = 10))]
    slots: Option<u8>,
    /// Which torrents have devices of their own. None, if it is empty.
    torrents: Option<Torrents>,
    /// So many torrents of a server have devices of their own at most.
    #[schemars(range(min = 1, max = 50), extend("default" = 20))]
    torrents_max: Option<u8>,
    /// What the switch for alternative speed sets: bytes a second with a unit, `"500kB"`; `"0"` for none.
    #[schemars(regex(pattern = RATE))]
    alternative_download: Option<String>,
    /// The same, for uploads.
    #[schemars(regex(pattern = RATE))]
    alternative_upload: Option<String>,
    /// What the switch goes back to.
    #[schemars(regex(pattern = RATE), extend("default" = "0"))]
    normal_download: Option<String>,
    /// The same, for uploads.
    #[schemars(regex(pattern = RATE), extend("default" = "0"))]
    normal_upload: Option<String>,
}

/// Torrents, by what they are.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Torrents {
    status: Option<Status>,
    label: Option<String>,
    /// A glob; case counts not.
    name: Option<String>,
    /// A glob; case counts not.
    tracker: Option<String>,
}

/// An address that events are posted to.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, extend("anyOf" = [{"required": ["url"]}, {"required": ["url_file"]}]))]
struct Webhook {
    /// It may be a secret as a whole, and is never shown.
    #[schemars(regex(pattern = r"^\s*https?://."))]
    url: Option<String>,
    /// The name of a file that holds `url`.
    url_file: Option<String>,
    /// The shape of what is posted.
    #[schemars(extend("default" = "standard"))]
    format: Option<WebhookFormat>,
    /// A body of your own, as a template.
    template: Option<String>,
    /// The name of a file that holds `template`.
    template_file: Option<String>,
    /// What the template makes.
    #[schemars(regex(pattern = "/"), extend("default" = "application/json"))]
    content_type: Option<String>,
    /// Which servers it gets: names or patterns, in order; a `-` before one takes it away.
    #[schemars(extend("default" = ["*"]))]
    servers: Option<Vec<String>>,
    /// Which kinds of events it gets: names or patterns, in order; a `-` before one takes it away.
    #[schemars(extend("default" = ["*", "-updated"]))]
    events: Option<Vec<String>>,
    /// Why they are told: names or patterns, in order; a `-` before one takes it away. What people read goes
    /// without `snapshot`, if it is not said.
    #[schemars(extend("default" = ["*"]))]
    causes: Option<Vec<String>>,
    /// Of which torrents. Events of servers come all the same.
    torrents: Option<Torrents>,
    /// `whsec_…`: signs each request. Several, while they change, with white space between.
    #[schemars(regex(pattern = "^\\s*whsec_"))]
    secret: Option<String>,
    /// The name of a file that holds `secret`.
    secret_file: Option<String>,
    /// For HTTP basic authentication.
    username: Option<String>,
    /// For HTTP basic authentication.
    password: Option<String>,
    /// The name of a file that holds `password`.
    password_file: Option<String>,
    /// `Authorization: Bearer …`, instead of a name and a password.
    token: Option<String>,
    /// The name of a file that holds `token`.
    token_file: Option<String>,
    /// More headers.
    headers: Option<BTreeMap<String, String>>,
    /// More headers, whose values are in files of these names.
    header_files: Option<BTreeMap<String, String>>,
    /// The certificate authority to trust with https, instead of the system's (PEM).
    ca_file: Option<String>,
    /// For one exchange: 100ms to 60s.
    #[schemars(regex(pattern = DURATION), extend("default" = "20s"))]
    timeout: Option<String>,
    /// An event that is older, and is not taken, is put aside: 1s to 30days.
    #[schemars(regex(pattern = DURATION), extend("default" = "3days"))]
    keep_trying: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase", inline)]
enum WebhookFormat {
    Standard,
    Dtorrent,
    Ntfy,
    Discord,
    Slack,
    Apprise,
}
