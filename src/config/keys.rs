//! The table of keys: name, form, default and documentation of everything that a config may contain.
//!
//! Reader, JSON Schema (`dtorrent schema config`) and `config/dtorrent.example.toml` are made from
//! this table, so a key, its default and its documentation are written once. Defaults that also apply to settings built in
//! code are constants of the adapters. Formatted by hand, two lines a key, to be read as a table.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use self::{Default as D, Form as F};
use super::log::{Log, LogFormat};
use crate::clients::settings::DEFAULT_TIMEOUT;
use crate::model::{PollSettings, Retain};
use crate::sinks::mqtt::settings::{Prefix, Version};
use crate::sinks::webhook::settings::FORMATS;

/// A table of the config, or one of the forms that a table may have.
#[derive(Debug)]
pub struct Section {
    /// Purpose of the table.
    pub doc: &'static str,
    /// Name of the table in the example, where names are free.
    pub sample: &'static str,
    /// The keys, in groups that sections may share.
    pub keys: &'static [&'static [Key]],
}

/// One key of a section.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Name as written in the file.
    pub name: &'static str,
    /// Form of its value.
    pub form: Form,
    /// The value where it is left out.
    pub default: Default,
    /// Meaning, in one line.
    pub doc: &'static str,
}

/// Form of a value.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    /// A text; where a pattern (a regular expression) is given, one that matches it.
    Text(&'static str),
    /// The name of an instance.
    Name,
    /// A text that no log, error or `Debug` shows. The key `NAME_file` names a file that holds it.
    Secret(&'static str),
    /// One of these texts.
    Choice(&'static [&'static str]),
    /// The text that selects one of several sections.
    Tag(&'static str),
    /// A time span from the first to the second.
    Duration(Duration, Duration),
    /// Bytes a second, as a number and a unit.
    Rate,
    /// Bytes, as a number and a unit.
    Size,
    /// `true` or `false`.
    Bool,
    /// A whole number from the first to the second.
    Whole(i64, i64),
    /// A list of texts that match the pattern.
    List(&'static str),
    /// A text that matches the pattern, or a list of at least one of them.
    OneOrMore(&'static str),
    /// A list of commands and rights, each perhaps with a `-` before it.
    Rights,
    /// A table of texts, by free names.
    Texts,
    /// A table that selects torrents.
    Filter,
    /// A table.
    Section(&'static Section),
    /// Tables by free names, each of one of these forms.
    Named(&'static [&'static Section]),
}

/// The value of a key that is left out.
#[derive(Clone, Copy, Debug)]
pub enum Default {
    /// Nothing; this TOML shows the form.
    None(&'static str),
    /// An error: the key has to be given, for example as this TOML.
    Required(&'static str),
    /// This text.
    Text(&'static str),
    /// This time span.
    Duration(Duration),
    /// This switch.
    Bool(bool),
    /// This number.
    Whole(i64),
    /// These texts.
    List(&'static [&'static str]),
    /// An empty table.
    Empty,
}

impl Default {
    /// Returns the default as it would be written; `None` if there is none.
    pub fn value(&self) -> Option<Value> {
        Some(match self {
            Self::None(_) | Self::Required(_) => return None,
            Self::Text(text) => json!(text),
            Self::Duration(duration) => json!(humantime::format_duration(*duration).to_string()),
            Self::Bool(is_true) => json!(is_true),
            Self::Whole(number) => json!(number),
            Self::List(items) => json!(items),
            Self::Empty => json!({}),
        })
    }
}

impl Section {
    /// Returns all keys, in the order of the example.
    pub fn iter(&self) -> impl Iterator<Item = &'static Key> + use<> {
        self.keys.iter().flat_map(|group| group.iter())
    }

    /// Returns the key of this name.
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.iter().find(|key| key.name == name)
    }

    /// Returns every name that may be written, those of secret files included.
    pub fn names(&self) -> BTreeSet<String> {
        self.iter().flat_map(|key| [Some(key.name.to_owned()), key.file()]).flatten().collect()
    }

    /// Returns the key that distinguishes this section from its siblings, and its value here.
    pub fn tag(&self) -> Option<(&'static Key, &'static str)> {
        self.iter().find_map(|key| match key.form {
            Form::Tag(value) => Some((key, value)),
            _ => None,
        })
    }
}

impl Key {
    /// Returns the key that names a file with the value, if the value is a secret.
    pub fn file(&self) -> Option<String> {
        matches!(self.form, Form::Secret(_)).then(|| format!("{}_file", self.name))
    }
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = days(1);
/// Shortest interval between two polls.
const INTERVAL_MIN: Duration = Duration::from_millis(250);
const TIMEOUT_MIN: Duration = Duration::from_millis(100);

const ALL: D = D::List(&["*"]);
/// All commands except the deletion of content and arbitrary methods, which the config has to allow explicitly.
const SAFE_COMMANDS: D = D::List(&["*", "-delete_data", "-rpc"]);
#[rustfmt::skip]
const CA_FILE: Key = key("ca_file", F::Text(""), D::None("\"ca.pem\""),
    "PEM file with the certificate authority to trust in place of the system's, where TLS is spoken; or the server's own.");
#[rustfmt::skip]
const FINGERPRINT: Key = key("tls_fingerprint", F::OneOrMore("^sha256:"), D::None("\"sha256:…\""),
    "Accept exactly this certificate, whoever has signed it: its SHA-256 fingerprint, or a list of several.");
#[rustfmt::skip]
const SERVERS: Key = key("servers", F::List(""), ALL,
    "Servers that it receives events of: names or patterns in order; a `-` removes what it names.");
const EVENTS: &str = "Kinds of events that it receives: names or patterns in order; a `-` removes what it names.";

const fn key(name: &'static str, form: Form, default: Default, doc: &'static str) -> Key {
    Key { name, form, default, doc }
}

const fn table(name: &'static str, form: Form, doc: &'static str) -> Key {
    Key { name, form, default: D::None(""), doc }
}

/// The top level.
#[rustfmt::skip]
pub static ROOT: Section = Section {
    doc: "Config of dtorrent: one TOML file, under environment variables, under command-line flags.",
    sample: "",
    keys: &[&[
        key("instance", F::Name, D::Text("main"),
            "Name of this bridge: a level of its own topics, so two bridges on one broker need two names."),
        key("data_dir", F::Text("."), D::Text("data"),
            "Directory of the durable state: snapshot, journal, command log. Locked by one process."),
        key("memory_max", F::Size, D::Text("256MiB"),
            "Memory that queues and buffers share, above what the snapshot takes; at least 32MiB."),
        table("add_urls", F::Section(&ADD_URLS), ADD_URLS.doc),
        table("log", F::Section(&LOG), LOG.doc),
        table("http", F::Section(&HTTP), HTTP.doc),
        table("servers", F::Named(&[&RTORRENT, &EXEC]), "Torrent clients to monitor, by their names."),
        table("brokers", F::Named(&[&MQTT, &NATS]), "Message brokers to publish to, by their names."),
        table("webhooks", F::Named(&[&WEBHOOK]), "URLs to post events to, by their names."),
    ]],
};

#[rustfmt::skip]
static ADD_URLS: Section = Section {
    doc: "Hosts and networks that the command `add` may fetch from: host, *.host, address or network. Link-local ones never.",
    sample: "",
    keys: &[&[
        key("allow", F::List(""), D::List(&[]), "If any are given, no others."),
        key("deny", F::List(""), D::List(&[]), "Never these, also if `allow` has them."),
    ]],
};

#[rustfmt::skip]
static LOG: Section = Section {
    doc: "Log, always on standard error.",
    sample: "",
    keys: &[&[
        key("level", F::Choice(&names(&Log::LEVELS)), D::Text("info"),
            "Least severe level that is logged: error, warn, info, debug, trace or off. Commands and refusals always are."),
        key("format", F::Choice(&names(&LogFormat::NAMES)), D::Text("pretty"), "`pretty`, or `json` for one object a line."),
    ]],
};

#[rustfmt::skip]
static HTTP: Section = Section {
    doc: "HTTP: page, API, health and metrics.",
    sample: "",
    keys: &[&[
        key("listen", F::Text("^(off|.+:[0-9]{1,5})$"), D::Text("127.0.0.1:8787"),
            "Address of the page, the API, `/healthz`, `/readyz` and `/metrics`, or `off`."),
        key("hosts", F::List(""), D::List(&[]),
            "Host names with dots by which browsers may ask for the page, such as `torrents.example.org`."),
        key("token", F::Secret(""), D::None("\"a long random text\""),
            "Token for requests that change something; without one they are all refused. Shows the reasons of problems, too."),
        key("commands", F::Rights, SAFE_COMMANDS,
            "Commands that the token allows; `[]` is read-only. Not in `*`: `log_level`, and `secrets` (to see announce URLs whole)."),
    ]],
};

#[rustfmt::skip]
static POLLING: [Key; 4] = [
    key("interval", F::Duration(INTERVAL_MIN, HOUR), D::Duration(PollSettings::DEFAULT.interval),
        "Time between two polls: 250ms to 1h."),
    key("sweep", F::Duration(INTERVAL_MIN, DAY), D::Duration(PollSettings::DEFAULT.full_interval),
        "Maximum time between two full polls: 250ms to 24h."),
    key("timeout", F::Duration(TIMEOUT_MIN, HOUR), D::Duration(DEFAULT_TIMEOUT), "Limit for one exchange: 100ms to 1h."),
    key("roots", F::List("^/"), D::List(&[]),
        "Absolute directories that commands may name or delete from, with all below them; no others."),
];

#[rustfmt::skip]
static RTORRENT: Section = Section {
    doc: "An rTorrent. The name of the table is a level of the topics: a-z, 0-9, _ and -.",
    sample: "home",
    keys: &[&[
        key("client", F::Tag("rtorrent"), D::Text("rtorrent"),
            "Kind of client: `rtorrent`, or `exec` for a program of your own."),
        key("url", F::Text("^(unix:///|scgi://|https?://)."), D::Required("\"unix:///run/rtorrent/rpc.sock\""),
            "`unix:///path/of/rpc.sock`, `scgi://host:port` or `http(s)://host[:port]/RPC2`."),
        key("username", F::Text(""), D::None("\"me\""), "User for HTTP basic authentication."),
        key("password", F::Secret(""), D::None("\"sesame\""), "Password for HTTP basic authentication."),
        CA_FILE,
        FINGERPRINT,
        key("hooks", F::Bool, D::Bool(false),
            "Whether rTorrent notifies the bridge of changes, which it then polls without waiting for the interval."),
        key("hooks_dir", F::Text("^/"), D::None("\"/run/dtorrent\""),
            "Folder for hook signals, if rTorrent cannot write to `data_dir/hooks`: both see it under this path, no other user writes there."),
        key("rpc", F::List(""), D::List(&[]),
            "Methods that the command `rpc` may call, such as `system.pid`; others than getters and named setters are refused."),
        key("extra", F::Texts, D::Empty,
            "More columns, by your names for them: `{ throttle = \"d.throttle_name=\", \"my-tag\" = \"d.custom=tag\" }`."),
    ], &POLLING],
};

#[rustfmt::skip]
static EXEC: Section = Section {
    doc: "A program of your own that speaks for a torrent client, see docs/clients.md.",
    sample: "attic",
    keys: &[&[
        key("client", F::Tag("exec"), D::Required("\"exec\""),
            "Kind of client: `rtorrent`, or `exec` for a program of your own."),
        key("command", F::List(""), D::Required("[\"./my-client\", \"an argument\"]"),
            "The program and its arguments; there is no shell."),
        key("environment", F::List("^[^=]+$"), D::List(&[]),
            "Variables of the bridge's environment that the program gets, besides PATH, HOME, LANG, TZ and the like."),
    ], &POLLING],
};

#[rustfmt::skip]
static BROKER_TLS: [Key; 4] = [
    CA_FILE,
    FINGERPRINT,
    key("cert_file", F::Text(""), D::None("\"dtorrent.pem\""),
        "PEM file with the bridge's own certificate; goes with `key_file`."),
    key("key_file", F::Text(""), D::None("\"dtorrent.key\""),
        "PEM file with the key of the certificate in `cert_file`."),
];

#[rustfmt::skip]
static BROKER: [Key; 4] = [
    key("prefix", F::Text("."), D::Text(Prefix::DEFAULT),
        "First levels of every topic, such as `home/torrents`; in NATS they become tokens of the subject."),
    SERVERS,
    key("events", F::List(""), ALL, EVENTS),
    key("commands", F::Rights, SAFE_COMMANDS,
        "Commands accepted from it; `[]` is read-only. Not in `*`: `log_level`, and `secrets` (to see announce URLs whole)."),
];

#[rustfmt::skip]
static MQTT: Section = Section {
    doc: "An MQTT broker. Without brokers and webhooks there are the page, the API and its event stream.",
    sample: "home",
    keys: &[&[
        key("kind", F::Tag("mqtt"), D::Required("\"mqtt\""), "Kind of broker: `mqtt` or `nats`."),
        key("url", F::Text("^(mqtts?|wss?)://."), D::Required("\"mqtt://localhost:1883\""),
            "`mqtt://`, `mqtts://`, `ws://` or `wss://`, a host, and the port if it is not the usual one."),
        key("username", F::Text(""), D::None("\"dtorrent\""), "User to log in as."),
        key("password", F::Secret(""), D::None("\"sesame\""), "Password of that user."),
    ], &BROKER_TLS, &[
        key("client_id", F::Text("^.{1,200}$"), D::None("\"me-{role}\""),
            "Client ids, where the broker restricts them; `{instance}`, `{name}` and `{role}` (events, commands, probe) are replaced."),
        key("version", F::Choice(&names(&Version::NAMES)), D::Text("auto"),
            "Version of MQTT: `5`, `3.1.1`, or `auto` for 5 where the broker has it."),
    ], &BROKER, &[
        key("retain", F::Choice(&names(&Retain::NAMES)), D::Text("auto"),
            "Torrents whose state is retained: `all`, `none`, or `auto` for at most 500 of a server."),
        key("reply_prefixes", F::List("^.{1,200}$"), D::List(&[]),
            "Topics below which the `reply_to` of a command may point."),
        table("home_assistant", F::Section(&HOME_ASSISTANT), HOME_ASSISTANT.doc),
    ]],
};

#[rustfmt::skip]
static NATS: Section = Section {
    doc: "A NATS system, see docs/nats.md.",
    sample: "bus",
    keys: &[&[
        key("kind", F::Tag("nats"), D::Required("\"nats\""), "Kind of broker: `mqtt` or `nats`."),
        key("url", F::OneOrMore("^(nats|tls)://."), D::Required("\"nats://localhost:4222\""),
            "`nats://` or `tls://`, a host, and the port if it is not 4222; a list for several servers of one system."),
        key("username", F::Text(""), D::None("\"dtorrent\""),
            "User to log in as; give one of `username`, `token`, `nkey_file`, `creds_file`."),
        key("password", F::Secret(""), D::None("\"sesame\""), "Password of that user."),
        key("token", F::Secret(""), D::None("\"a long random text\""), "Token to log in with."),
        key("nkey_file", F::Text(""), D::None("\"dtorrent.nk\""), "File with the seed of a user's key."),
        key("creds_file", F::Text(""), D::None("\"dtorrent.creds\""), "Credentials file as `nsc` writes it."),
    ], &BROKER_TLS, &[
        key("jetstream", F::Bool, D::Bool(true),
            "Whether events are stored in the stream DTORRENT_EVENTS and states in the bucket dtorrent_state."),
        // NATS stores at most five copies.
        key("replicas", F::Whole(1, 5), D::Whole(1),
            "Servers that store a copy, where stream and bucket are created: 1 to 5."),
    ], &BROKER],
};

#[rustfmt::skip]
static HOME_ASSISTANT: Section = Section {
    doc: "Devices and entities in Home Assistant, see docs/home-assistant.md.",
    sample: "",
    keys: &[&[
        key("enabled", F::Bool, D::Bool(false), "Whether discovery messages are published."),
        key("discovery_prefix", F::Text("^.{1,200}$"), D::Text("homeassistant"),
            "Discovery prefix in Home Assistant's MQTT settings."),
        key("slots", F::Whole(0, 50), D::Whole(10), "Number of entities that show active torrents: 0 to 50."),
        key("torrents", F::Filter, D::Empty,
            "Torrents with devices of their own: `{ label = \"ha\" }`, `{ name = \"*.iso\" }`; none if empty."),
        key("torrents_max", F::Whole(1, 50), D::Whole(20),
            "Maximum number of torrents of a server with devices: 1 to 50."),
        key("alternative_download", F::Rate, D::None("\"500kB\""),
            "Download limit of the switch for alternative speed, in bytes a second; without limits there is no switch."),
        key("alternative_upload", F::Rate, D::None("\"100kB\""), "Upload limit of that switch; `0` for none."),
        key("normal_download", F::Rate, D::Text("0"), "Download limit while the switch is off; `0` for none."),
        key("normal_upload", F::Rate, D::Text("0"), "Upload limit while the switch is off; `0` for none."),
    ]],
};

#[rustfmt::skip]
static WEBHOOK: Section = Section {
    doc: "A URL that events are posted to, see docs/webhooks.md.",
    sample: "home",
    keys: &[&[
        key("url", F::Secret(r"^\s*https?://."), D::Required("\"http://localhost:8080/hook\""),
            "`http://…` or `https://…`. May be a secret as a whole, so it is never shown."),
        key("format", F::Choice(&names(&FORMATS)), D::Text("standard"),
            "Format of the body: `standard` (Standard Webhooks), `dtorrent` (as dTorrent for Node) or that of a service."),
        key("template", F::Text(""), D::None(r#"'{"text": {{ title }}}'"#),
            "Template of a body of your own, in place of `format`."),
        key("template_file", F::Text(""), D::None("\"hook.json.j2\""), "File with the template."),
        key("content_type", F::Text("/"), D::Text("application/json"), "Media type that the template renders."),
        SERVERS,
        key("events", F::List(""), D::List(&["*", "-updated"]), EVENTS),
        key("causes", F::List(""), ALL,
            "Causes of events: observed, command, recovered, snapshot. Chat formats go without snapshot by default."),
        key("torrents", F::Filter, D::Empty,
            "Torrents whose events are sent: `{ label = \"linux\" }`, `{ status = \"seeding\", name = \"*.iso\" }`."),
        key("secret", F::Secret(r"^\s*whsec_"), D::None("\"whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD\""),
            "Secret that signs each request: `whsec_` and 24 to 64 bytes in base64; several, with spaces, to rotate."),
        key("username", F::Text(""), D::None("\"me\""), "User for HTTP basic authentication."),
        key("password", F::Secret(""), D::None("\"sesame\""), "Password for HTTP basic authentication."),
        key("token", F::Secret(""), D::None("\"a long random text\""),
            "Token for `Authorization: Bearer`, in place of a user."),
        key("headers", F::Texts, D::Empty, "More headers."),
        key("header_files", F::Texts, D::Empty,
            "More headers, whose values are in files: `{ X-Api-Key = \"/run/secrets/api_key\" }`."),
        CA_FILE,
        FINGERPRINT,
        key("timeout", F::Duration(TIMEOUT_MIN, MINUTE), D::Duration(Duration::from_secs(20)),
            "Limit for one request: 100ms to 60s."),
        key("keep_trying", F::Duration(Duration::from_secs(1), days(30)), D::Duration(days(3)),
            "Age at which an undelivered event becomes a dead letter: 1s to 30days."),
    ]],
};

const fn days(count: u64) -> Duration {
    Duration::from_secs(count * 24 * 60 * 60)
}

/// Returns the names of a choice.
const fn names<T, const N: usize>(choices: &[(&'static str, T); N]) -> [&'static str; N] {
    let mut names = [""; N];
    let mut index = 0;
    while index < N {
        names[index] = choices[index].0;
        index += 1;
    }
    names
}
