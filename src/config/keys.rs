//! The table of keys: name, form, default and documentation of everything that a config may contain.
//!
//! Reader, JSON Schema (`dtorrent schema config`) and `config/dtorrent.example.toml` are made from
//! this table, so a key, its default and its documentation are written once. Adapters state the
//! defaults that also hold for those who build their settings by hand.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::formats::FORMATS;
use crate::clients::settings::{DEFAULT_INTERVAL, DEFAULT_SWEEP, DEFAULT_TIMEOUT};
use crate::model::Retain;
use crate::sinks::mqtt::settings::{Prefix, Version};

/// A table of the config, or one of the forms that a table may have.
#[derive(Debug)]
pub struct Section {
    /// What the table is for.
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
    /// What its value looks like.
    pub form: Form,
    /// What applies where it is left out.
    pub default: Default,
    /// A value that shows the form, as TOML, where there is no default.
    pub example: &'static str,
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
    /// The text that says which of several sections the table is.
    Tag(&'static str),
    /// A time span from the first to the second.
    Duration(Duration, Duration),
    /// Bytes a second, as a number and a unit.
    Rate,
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
    /// A table that says which torrents are meant.
    Filter,
    /// A table.
    Section(&'static Section),
    /// Tables by free names, each of one of these forms.
    Named(&'static [&'static Section]),
}

/// What applies where a key is left out.
#[derive(Clone, Copy, Debug)]
pub enum Default {
    /// Nothing.
    None,
    /// An error: the key has to be given.
    Required,
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
            Self::None | Self::Required => return None,
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

    /// Returns the key that tells this section from its siblings, and its value here.
    pub fn tag(&self) -> Option<(&'static Key, &'static str)> {
        self.iter().find_map(|key| match key.form {
            Form::Tag(value) => Some((key, value)),
            _ => None,
        })
    }
}

impl Key {
    const fn new(name: &'static str, form: Form, doc: &'static str) -> Self {
        Self { name, form, default: Default::None, example: "", doc }
    }

    const fn or(self, default: Default) -> Self {
        Self { default, ..self }
    }

    const fn like(self, example: &'static str) -> Self {
        Self { example, ..self }
    }

    const fn required(self, example: &'static str) -> Self {
        Self { default: Default::Required, example, ..self }
    }

    /// Returns the key that names a file with the value, if the value is a secret.
    pub fn file(&self) -> Option<String> {
        matches!(self.form, Form::Secret(_)).then(|| format!("{}_file", self.name))
    }
}

/// Returns every key of the config, with `*` for the name of a server, broker or webhook: `servers.*.url`.
pub fn keys() -> BTreeSet<String> {
    fn collect(section: &Section, path: &str, keys: &mut BTreeSet<String>) {
        keys.extend(section.names().iter().map(|name| format!("{path}{name}")));
        for key in section.iter() {
            match key.form {
                Form::Section(below) => collect(below, &format!("{path}{}.", key.name), keys),
                Form::Named(forms) => {
                    forms.iter().for_each(|form| collect(form, &format!("{path}{}.*.", key.name), keys))
                }
                _ => {}
            }
        }
    }
    let mut keys = BTreeSet::new();
    collect(&ROOT, "", &mut keys);
    keys
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Shortest interval between two polls; a client answers no faster.
pub const INTERVAL_MIN: Duration = Duration::from_millis(250);
const TIMEOUT_MIN: Duration = Duration::from_millis(100);

const ALL: Default = Default::List(&["*"]);
/// Neither content nor arbitrary methods, unless they are asked for.
const SAFE_COMMANDS: Default = Default::List(&["*", "-delete_data", "-rpc"]);
const PEM_OF_AUTHORITY: &str =
    "PEM file with the certificate authority to trust in place of the system's, where TLS is spoken.";
const SERVERS: &str = "Servers that it receives events of: names or patterns in order; a `-` removes what it names.";
const EVENTS: &str = "Kinds of events that it receives: names or patterns in order; a `-` removes what it names.";

/// The top level.
pub static ROOT: Section = Section {
    doc: "Config of dtorrent: one TOML file, under environment variables, under command-line flags.",
    sample: "",
    keys: &[&[
        Key::new(
            "instance",
            Form::Name,
            "Name of this bridge: a level of its own topics, so two bridges on one broker need two names.",
        )
        .or(Default::Text("main")),
        Key::new(
            "data_dir",
            Form::Text("."),
            "Directory of the durable state: snapshot, journal, command log. Locked by one process.",
        )
        .or(Default::Text("data")),
        Key::new("log", Form::Section(&LOG), LOG.doc),
        Key::new("http", Form::Section(&HTTP), HTTP.doc),
        Key::new("servers", Form::Named(&[&RTORRENT, &EXEC]), "Torrent clients to monitor, by their names."),
        Key::new("brokers", Form::Named(&[&MQTT, &NATS]), "Message brokers to publish to, by their names."),
        Key::new("webhooks", Form::Named(&[&WEBHOOK]), "URLs to post events to, by their names."),
    ]],
};

static LOG: Section = Section {
    doc: "Log, always on standard error.",
    sample: "",
    keys: &[&[
        Key::new(
            "level",
            Form::Choice(&["error", "warn", "info", "debug", "trace", "off"]),
            "Least severe level that is logged: error, warn, info, debug, trace or off.",
        )
        .or(Default::Text("info")),
        Key::new("format", Form::Choice(&["pretty", "json"]), "`pretty`, or `json` for one object a line.")
            .or(Default::Text("pretty")),
    ]],
};

static HTTP: Section = Section {
    doc: "HTTP: page, API, health and metrics; and the address for rTorrent's hooks.",
    sample: "",
    keys: &[&[
        Key::new(
            "listen",
            Form::Text("^(off|.+:[0-9]{1,5})$"),
            "Address of the page, the API, `/healthz`, `/readyz` and `/metrics`, or `off`.",
        )
        .or(Default::Text("127.0.0.1:8787")),
        Key::new(
            "hosts",
            Form::List(""),
            "Host names with dots by which browsers may ask for the page, such as `torrents.example.org`.",
        )
        .or(Default::List(&[])),
        Key::new(
            "hooks_listen",
            Form::Text("^.+:[0-9]{1,5}$"),
            "Address that rTorrent's hooks notify; port 0 is any free one.",
        )
        .or(Default::Text("127.0.0.1:0")),
        Key::new(
            "token",
            Form::Secret(""),
            "Token for requests that change something; without one they are all refused.",
        )
        .like("\"a long random text\""),
        Key::new(
            "commands",
            Form::Rights,
            "Commands that the token allows; `[]` is read-only, `delete_data` is the right to delete content.",
        )
        .or(SAFE_COMMANDS),
    ]],
};

static POLLING: [Key; 4] = [
    Key::new("interval", Form::Duration(INTERVAL_MIN, HOUR), "Time between two polls: 250ms to 1h.")
        .or(Default::Duration(DEFAULT_INTERVAL)),
    Key::new("sweep", Form::Duration(INTERVAL_MIN, DAY), "Maximum time between two full polls: 250ms to 24h.")
        .or(Default::Duration(DEFAULT_SWEEP)),
    Key::new("timeout", Form::Duration(TIMEOUT_MIN, HOUR), "Limit for one exchange: 100ms to 1h.")
        .or(Default::Duration(DEFAULT_TIMEOUT)),
    Key::new(
        "roots",
        Form::List("^/"),
        "Absolute directories that commands may name or delete from, with all below them; no others.",
    )
    .or(Default::List(&[])),
];

static RTORRENT: Section = Section {
    doc: "An rTorrent. The name of the table is a level of the topics: a-z, 0-9, _ and -.",
    sample: "home",
    keys: &[
        &[
            Key::new("client", Form::Tag("rtorrent"), "Kind of client: `rtorrent`, or `exec` for a program of your own.")
                .or(Default::Text("rtorrent")),
            Key::new(
                "url",
                Form::Text("^(unix:///|scgi://|https?://)."),
                "`unix:///path/of/rpc.sock`, `scgi://host:port` or `http(s)://host[:port]/RPC2`.",
            )
            .required("\"unix:///run/rtorrent/rpc.sock\""),
            Key::new("username", Form::Text(""), "User for HTTP basic authentication.").like("\"me\""),
            Key::new("password", Form::Secret(""), "Password for HTTP basic authentication.").like("\"sesame\""),
            Key::new("ca_file", Form::Text(""), PEM_OF_AUTHORITY).like("\"ca.pem\""),
            Key::new(
                "hooks",
                Form::Bool,
                "Whether rTorrent notifies the bridge of changes, which it then polls without waiting for the interval.",
            )
            .or(Default::Bool(false)),
            Key::new(
                "hooks_address",
                Form::Text("^.+:[0-9]{1,5}$"),
                "Address at which this rTorrent reaches `http.hooks_listen`, if it runs elsewhere or in a container.",
            )
            .like("\"bridge:8788\""),
            Key::new(
                "rpc",
                Form::List(""),
                "Methods that the command `rpc` may call, such as `system.pid`; harmful ones are refused here.",
            )
            .or(Default::List(&[])),
            Key::new(
                "extra",
                Form::Texts,
                "More columns, by your names for them: `{ throttle = \"d.throttle_name=\", \"my-tag\" = \"d.custom=tag\" }`.",
            )
            .or(Default::Empty),
        ],
        &POLLING,
    ],
};

static EXEC: Section = Section {
    doc: "A program of your own that speaks for a torrent client, see docs/clients.md.",
    sample: "attic",
    keys: &[
        &[
            Key::new("client", Form::Tag("exec"), "Kind of client: `rtorrent`, or `exec` for a program of your own.")
                .required("\"exec\""),
            Key::new("command", Form::List(""), "The program and its arguments; there is no shell.")
                .required("[\"./my-client\", \"an argument\"]"),
        ],
        &POLLING,
    ],
};

static BROKER_TLS: [Key; 3] = [
    Key::new("ca_file", Form::Text(""), PEM_OF_AUTHORITY).like("\"ca.pem\""),
    Key::new("cert_file", Form::Text(""), "PEM file with the bridge's own certificate; goes with `key_file`.")
        .like("\"dtorrent.pem\""),
    Key::new("key_file", Form::Text(""), "PEM file with the key of the certificate in `cert_file`.")
        .like("\"dtorrent.key\""),
];

static BROKER: [Key; 4] = [
    Key::new(
        "prefix",
        Form::Text("."),
        "First levels of every topic, such as `home/torrents`; in NATS they become tokens of the subject.",
    )
    .or(Default::Text(Prefix::DEFAULT)),
    Key::new("servers", Form::List(""), SERVERS).or(ALL),
    Key::new("events", Form::List(""), EVENTS).or(ALL),
    Key::new(
        "commands",
        Form::Rights,
        "Commands accepted from it; `[]` is read-only, `delete_data` is the right to delete content.",
    )
    .or(SAFE_COMMANDS),
];

static MQTT: Section = Section {
    doc: "An MQTT broker. Without brokers and webhooks there are the page, the API and its event stream.",
    sample: "home",
    keys: &[
        &[
            Key::new("kind", Form::Tag("mqtt"), "Kind of broker: `mqtt` or `nats`.").required("\"mqtt\""),
            Key::new(
                "url",
                Form::Text("^(mqtts?|wss?)://."),
                "`mqtt://`, `mqtts://`, `ws://` or `wss://`, a host, and the port if it is not the usual one.",
            )
            .required("\"mqtt://localhost:1883\""),
            Key::new("username", Form::Text(""), "User to log in as.").like("\"dtorrent\""),
            Key::new("password", Form::Secret(""), "Password of that user.").like("\"sesame\""),
        ],
        &BROKER_TLS,
        &[Key::new(
            "version",
            Form::Choice(&names(&Version::NAMES)),
            "Version of MQTT: `5`, `3.1.1`, or `auto` for 5 where the broker has it.",
        )
        .or(Default::Text("auto"))],
        &BROKER,
        &[
            Key::new(
                "retain",
                Form::Choice(&names(&Retain::NAMES)),
                "Torrents whose state is retained: `all`, `none`, or `auto` for at most 500 of a server.",
            )
            .or(Default::Text("auto")),
            Key::new(
                "reply_prefixes",
                Form::List("^.{1,200}$"),
                "Topics below which the `reply_to` of a command may point.",
            )
            .or(Default::List(&[])),
            Key::new("home_assistant", Form::Section(&HOME_ASSISTANT), HOME_ASSISTANT.doc),
        ],
    ],
};

static NATS: Section = Section {
    doc: "A NATS system, see docs/nats.md.",
    sample: "bus",
    keys: &[
        &[
            Key::new("kind", Form::Tag("nats"), "Kind of broker: `mqtt` or `nats`.").required("\"nats\""),
            Key::new(
                "url",
                Form::OneOrMore("^(nats|tls)://."),
                "`nats://` or `tls://`, a host, and the port if it is not 4222; a list for several servers of one system.",
            )
            .required("\"nats://localhost:4222\""),
            Key::new("username", Form::Text(""), "User to log in as; give one of `username`, `token`, `nkey_file`, `creds_file`.")
                .like("\"dtorrent\""),
            Key::new("password", Form::Secret(""), "Password of that user.").like("\"sesame\""),
            Key::new("token", Form::Secret(""), "Token to log in with.").like("\"a long random text\""),
            Key::new("nkey_file", Form::Text(""), "File with the seed of a user's key.").like("\"dtorrent.nk\""),
            Key::new("creds_file", Form::Text(""), "Credentials file as `nsc` writes it.").like("\"dtorrent.creds\""),
        ],
        &BROKER_TLS,
        &[
            Key::new(
                "jetstream",
                Form::Bool,
                "Whether events are stored in the stream DTORRENT_EVENTS and states in the bucket dtorrent_state.",
            )
            .or(Default::Bool(true)),
            Key::new(
                "replicas",
                // NATS stores at most five copies.
                Form::Whole(1, 5),
                "Servers that store a copy, where stream and bucket are created: 1 to 5.",
            )
            .or(Default::Whole(1)),
        ],
        &BROKER,
    ],
};

static HOME_ASSISTANT: Section = Section {
    doc: "Devices and entities in Home Assistant, see docs/home-assistant.md.",
    sample: "",
    keys: &[&[
        Key::new("enabled", Form::Bool, "Whether discovery messages are published.").or(Default::Bool(false)),
        Key::new("discovery_prefix", Form::Text("^.{1,200}$"), "Discovery prefix in Home Assistant's MQTT settings.")
            .or(Default::Text("homeassistant")),
        Key::new("slots", Form::Whole(0, 50), "Number of entities that show active torrents: 0 to 50.")
            .or(Default::Whole(10)),
        Key::new(
            "torrents",
            Form::Filter,
            "Torrents with devices of their own: `{ label = \"ha\" }`, `{ name = \"*.iso\" }`; none if empty.",
        )
        .or(Default::Empty),
        Key::new("torrents_max", Form::Whole(1, 50), "Maximum number of torrents of a server with devices: 1 to 50.")
            .or(Default::Whole(20)),
        Key::new(
            "alternative_download",
            Form::Rate,
            "Download limit of the switch for alternative speed, in bytes a second; without limits there is no switch.",
        )
        .like("\"500kB\""),
        Key::new("alternative_upload", Form::Rate, "Upload limit of that switch; `0` for none.").like("\"100kB\""),
        Key::new("normal_download", Form::Rate, "Download limit while the switch is off; `0` for none.")
            .or(Default::Text("0")),
        Key::new("normal_upload", Form::Rate, "Upload limit while the switch is off; `0` for none.")
            .or(Default::Text("0")),
    ]],
};

static WEBHOOK: Section = Section {
    doc: "A URL that events are posted to, see docs/webhooks.md.",
    sample: "home",
    keys: &[&[
        Key::new(
            "url",
            Form::Secret(r"^\s*https?://."),
            "`http://…` or `https://…`. May be a secret as a whole, so it is never shown.",
        )
        .required("\"http://localhost:8080/hook\""),
        Key::new(
            "format",
            Form::Choice(&names(&FORMATS)),
            "Format of the body: `standard` (Standard Webhooks), `dtorrent` (as dTorrent for Node) or that of a service.",
        )
        .or(Default::Text("standard")),
        Key::new("template", Form::Text(""), "Template of a body of your own, in place of `format`.")
            .like(r#"'{"text": {{ title }}}'"#),
        Key::new("template_file", Form::Text(""), "File with the template.").like("\"hook.json.j2\""),
        Key::new("content_type", Form::Text("/"), "Media type that the template renders.")
            .or(Default::Text("application/json")),
        Key::new("servers", Form::List(""), SERVERS).or(ALL),
        Key::new("events", Form::List(""), EVENTS).or(Default::List(&["*", "-updated"])),
        Key::new(
            "causes",
            Form::List(""),
            "Causes of events: observed, command, recovered, snapshot. Formats of chat services go without snapshot by default.",
        )
        .or(ALL),
        Key::new(
            "torrents",
            Form::Filter,
            "Torrents whose events are sent: `{ label = \"linux\" }`, `{ status = \"seeding\", name = \"*.iso\" }`.",
        )
        .or(Default::Empty),
        Key::new(
            "secret",
            Form::Secret(r"^\s*whsec_"),
            "Secret that signs each request: `whsec_` and 24 to 64 bytes in base64; several, separated by spaces, to rotate.",
        )
        .like("\"whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD\""),
        Key::new("username", Form::Text(""), "User for HTTP basic authentication.").like("\"me\""),
        Key::new("password", Form::Secret(""), "Password for HTTP basic authentication.").like("\"sesame\""),
        Key::new("token", Form::Secret(""), "Token for `Authorization: Bearer`, in place of a user.")
            .like("\"a long random text\""),
        Key::new("headers", Form::Texts, "More headers.").or(Default::Empty),
        Key::new(
            "header_files",
            Form::Texts,
            "More headers, whose values are in files: `{ X-Api-Key = \"/run/secrets/api_key\" }`.",
        )
        .or(Default::Empty),
        Key::new("ca_file", Form::Text(""), PEM_OF_AUTHORITY).like("\"ca.pem\""),
        Key::new("timeout", Form::Duration(TIMEOUT_MIN, MINUTE), "Limit for one request: 100ms to 60s.")
            .or(Default::Duration(Duration::from_secs(20))),
        Key::new(
            "keep_trying",
            Form::Duration(Duration::from_secs(1), Duration::from_secs(30 * DAY.as_secs())),
            "Age at which an undelivered event becomes a dead letter: 1s to 30days.",
        )
        .or(Default::Duration(Duration::from_secs(3 * DAY.as_secs()))),
    ]],
};

/// Returns the names of a choice.
const fn names<T: Copy, const N: usize>(choices: &[(&'static str, T); N]) -> [&'static str; N] {
    let mut names = [""; N];
    let mut index = 0;
    while index < N {
        names[index] = choices[index].0;
        index += 1;
    }
    names
}
