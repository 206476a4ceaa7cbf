//! The config as the rest of the program sees it: names parsed, secrets read, defaults filled in.
//!
//! Whoever holds a [`Config`] holds a valid one. The functions below read one table each and name
//! every key that the table may have; faults are collected by [`Table`], so one reading finds all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use globset::Glob;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::{SecretSlice, SecretString};

use super::read::{Fault, Table};
use super::secret::secret;
use crate::clients::rtorrent::settings::{AllowedMethod, Endpoint, ExtraColumn};
use crate::model::{Filter, HookAddress, Kind, ServerName, SinkName, Verb};
use crate::sinks::mqtt::settings::{BrokerUrl, Prefix};
use crate::sinks::nats::settings as nats;
use crate::sinks::webhook::settings as webhook;

#[derive(Clone, Debug)]
pub struct Config {
    /// A slug: it is a level of the bridge's own topics.
    pub instance: String,
    pub data_dir: PathBuf,
    pub log: Log,
    pub http: Http,
    /// At least one.
    pub servers: BTreeMap<ServerName, Server>,
    pub brokers: BTreeMap<SinkName, Broker>,
    pub webhooks: BTreeMap<SinkName, Webhook>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// `None`: say nothing.
    pub level: Option<tracing::Level>,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Pretty,
    Json,
}

#[derive(Clone, Debug)]
pub struct Http {
    /// `None`: off.
    pub listen: Option<SocketAddr>,
    /// Where clients ring; port 0 is any that is free.
    pub hooks_listen: SocketAddr,
    pub token: Option<SecretString>,
    /// What the token gives the right to.
    pub commands: Rights,
    /// Names with dots by which browsers may ask for the pages, in lower case.
    pub hosts: Vec<String>,
}

impl Http {
    /// Where the bridge is reached from this machine; `None`: nowhere.
    pub fn address(&self) -> Option<SocketAddr> {
        let listen = self.listen?;
        let ip = match listen.ip() {
            // Who listens on every address is reached on loopback.
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        Some(SocketAddr::new(ip, listen.port()))
    }
}

#[derive(Clone, Debug)]
pub struct Server {
    pub client: Client,
    pub interval: Duration,
    /// Never shorter than `interval`.
    pub sweep: Duration,
    pub timeout: Duration,
    /// Absolute, without `..`.
    pub roots: Vec<PathBuf>,
}

impl Server {
    pub fn rtorrent(&self) -> Option<&Rtorrent> {
        match &self.client {
            Client::Rtorrent(rtorrent) => Some(rtorrent),
            Client::Exec { .. } => None,
        }
    }
}

/// What speaks to the torrent program, and what it has to know for that.
#[derive(Clone, Debug)]
pub enum Client {
    Rtorrent(Box<Rtorrent>),
    Exec {
        /// The program and its arguments; at least the program.
        command: Vec<String>,
    },
}

#[derive(Clone, Debug)]
pub struct Rtorrent {
    /// As it was written; without a password.
    pub url: String,
    pub username: Option<String>,
    pub password: Option<SecretString>,
    /// At least one certificate.
    pub ca_pem: Option<Vec<u8>>,
    pub hooks: Hooks,
    /// Column expressions by the user's names for them.
    pub extra: BTreeMap<String, String>,
    /// Methods of the client that the command `rpc` may call.
    pub rpc: Vec<String>,
}

/// Whether a client rings by itself, and where.
#[derive(Clone, Debug)]
pub struct Hooks {
    pub is_wanted: bool,
    /// `None`: where we listen.
    pub address: Option<HookAddress>,
}

#[derive(Clone, Debug)]
pub struct Broker {
    /// As it was written, several joined by commas; without a password.
    pub url: String,
    pub username: Option<String>,
    pub password: Option<SecretString>,
    /// At least one certificate.
    pub ca_pem: Option<Vec<u8>>,
    pub client_auth: Option<ClientAuth>,
    pub kind: BrokerKind,
    pub prefix: String,
    /// Which servers it gets, in order; at least one.
    pub servers: Vec<ServerName>,
    pub events: EventFilter,
    pub commands: Rights,
    /// Where a `reply_to` in a command's body may point: topics below one of these.
    pub reply_prefixes: Vec<String>,
}

/// What only brokers of one kind know.
#[derive(Clone, Debug)]
pub enum BrokerKind {
    Mqtt(Box<Mqtt>),
    Nats(Nats),
}

#[derive(Clone, Debug)]
pub struct Mqtt {
    pub version: MqttVersion,
    pub retain: Retain,
    /// `None`: not enabled.
    pub home_assistant: Option<HomeAssistant>,
}

/// What Home Assistant gets of a broker.
#[derive(Clone, Debug)]
pub struct HomeAssistant {
    pub discovery_prefix: String,
    pub slots: u8,
    /// Which torrents have devices of their own; none, if there is no filter.
    pub torrents: Option<Filter>,
    pub torrents_max: usize,
    /// Download and upload limit in bytes a second, 0 for none; without them there is no switch.
    pub alternative: Option<(u64, u64)>,
    /// What the switch goes back to.
    pub normal: (u64, u64),
}

#[derive(Clone, Debug)]
pub struct Nats {
    /// At least one.
    pub urls: Vec<String>,
    pub login: nats::Login,
    pub jetstream: bool,
    pub replicas: u8,
}

/// The certificate by which the bridge shows who it is.
#[derive(Clone, Debug)]
pub struct ClientAuth {
    pub cert_pem: Vec<u8>,
    pub key_pem: SecretSlice<u8>,
}

#[derive(Clone, Debug)]
pub struct Webhook {
    /// Which servers it gets, in order; at least one.
    pub servers: Vec<ServerName>,
    pub events: EventFilter,
    /// What the adapter has to know of it.
    pub endpoint: webhook::Settings,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MqttVersion {
    /// 5, and 3.1.1 if the broker does not know that.
    Auto,
    V5,
    V311,
}

/// Which states of torrents a broker keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retain {
    /// All up to 500 on a server; above, those that are worth it.
    Auto,
    All,
    None,
}

/// Which kinds of events a sink gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventFilter(BTreeSet<Kind>);

impl EventFilter {
    pub(super) fn of(kinds: impl Iterator<Item = Kind>) -> Self {
        Self(kinds.collect())
    }

    pub fn all() -> Self {
        Self(Kind::ALL.iter().copied().collect())
    }

    pub fn allows(&self, kind: Kind) -> bool {
        self.0.contains(&kind)
    }
}

/// Which verbs are accepted from a sink, and the rights that go beyond a verb (`delete_data`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights(BTreeSet<&'static str>);

impl Rights {
    pub fn allows(&self, verb: &str) -> bool {
        self.0.contains(verb)
    }

    /// Read-only: no command is accepted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().copied()
    }
}

pub const INTERVAL_MIN: Duration = Duration::from_millis(250);
const HOUR: Duration = Duration::from_secs(3600);

// --- the tables ----------------------------------------------------------------------------------

/// Reads the whole config. What it returns is only to be used if no fault was noted.
pub(super) fn config(root: Table<'_>) -> Config {
    let instance = root.parsed("instance", slug).unwrap_or_else(|| "main".to_owned());
    let data_dir = root.parsed("data_dir", folder).unwrap_or_else(|| PathBuf::from("data"));
    let log = log(root.table("log"));
    let http = http(root.table("http"));
    let mut names = Vec::new();
    let mut servers = BTreeMap::new();
    for (name, table) in root.named("servers") {
        let name = ServerName::parse(&name).map_err(|error| table.fault_here(told(&error))).ok();
        names.extend(name.clone());
        servers.extend(name.zip(server(table, &http)));
    }
    let mut brokers: BTreeMap<SinkName, Broker> = BTreeMap::new();
    for (name, table) in root.named("brokers") {
        let name = SinkName::parse(&name).map_err(|error| table.fault_here(told(&error))).ok();
        let Some((name, broker)) = name.zip(broker(table, &names, &instance)) else { continue };
        let is_same = |one: &Broker| (&one.url, &one.prefix) == (&broker.url, &broker.prefix);
        if let Some((other, _)) = brokers.iter().find(|(_, one)| is_same(one)) {
            let wrong =
                format!("{name} and {other} are the same broker with the same prefix: each would speak for the other");
            root.fault("brokers", Fault::new(wrong, "one table for each broker and prefix"));
        }
        let discovery = |one: &Broker| match &one.kind {
            BrokerKind::Mqtt(mqtt) => Some((one.url.clone(), mqtt.home_assistant.as_ref()?.discovery_prefix.clone())),
            BrokerKind::Nats(_) => None,
        };
        if let Some((other, _)) =
            brokers.iter().find(|(_, one)| discovery(one).is_some() && discovery(one) == discovery(&broker))
        {
            let wrong = format!("{name} and {other} would tell one Home Assistant of the same devices");
            root.fault("brokers", Fault::new(wrong, "enable home_assistant for one of them"));
        }
        brokers.insert(name, broker);
    }
    let mut webhooks = BTreeMap::new();
    for (name, table) in root.named("webhooks") {
        let name = SinkName::parse(&name).map_err(|error| table.fault_here(told(&error))).ok();
        let webhook = name.as_ref().and_then(|name| super::webhooks::webhook(table, name, &names));
        webhooks.extend(name.zip(webhook));
    }
    root.finish();
    Config { instance, data_dir, log, http, servers, brokers, webhooks }
}

fn log(table: Table<'_>) -> Log {
    let level = table.parsed("level", |text| {
        choice(
            text,
            &[
                ("error", Some(tracing::Level::ERROR)),
                ("warn", Some(tracing::Level::WARN)),
                ("info", Some(tracing::Level::INFO)),
                ("debug", Some(tracing::Level::DEBUG)),
                ("trace", Some(tracing::Level::TRACE)),
                ("off", None),
            ],
        )
    });
    let format =
        table.parsed("format", |text| choice(text, &[("pretty", LogFormat::Pretty), ("json", LogFormat::Json)]));
    table.finish();
    Log { level: level.unwrap_or(Some(tracing::Level::INFO)), format: format.unwrap_or(LogFormat::Pretty) }
}

fn http(table: Table<'_>) -> Http {
    let default = SocketAddr::from(([127, 0, 0, 1], 8787));
    let listen = table.parsed("listen", listener).unwrap_or(Some(default));
    let hooks_listen = table.parsed("hooks_listen", |text| match listener(text) {
        Ok(Some(listen)) => Ok(listen),
        Ok(None) | Err(_) => {
            let right =
                "write an address and a port, \"127.0.0.1:0\" (0: any that is free); `hooks` of a server is on or off";
            Err(Fault::new(format!("`{text}` is no address to listen on"), right))
        }
    });
    let token = secret(&table, "token", "token_file");
    let commands = commands(&table);
    let hosts = table.texts("hosts").unwrap_or_default();
    let hosts = hosts.iter().filter_map(|text| host(text).map_err(|fault| table.fault("hosts", fault)).ok()).collect();
    table.finish();
    let hooks_listen = hooks_listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
    Http { listen, hooks_listen, token, commands, hosts }
}

fn server(table: Table<'_>, http: &Http) -> Option<Server> {
    let is_exec = table.parsed("client", |text| choice(text, &[("rtorrent", false), ("exec", true)])).unwrap_or(false);
    let client = if is_exec { exec(&table) } else { rtorrent(&table, http) };
    let interval = duration(&table, "interval", INTERVAL_MIN, HOUR).unwrap_or(Duration::from_secs(1));
    let sweep = duration(&table, "sweep", INTERVAL_MIN, 24 * HOUR).unwrap_or(Duration::from_secs(30)).max(interval);
    let timeout = duration(&table, "timeout", Duration::from_millis(100), HOUR).unwrap_or(Duration::from_secs(10));
    let roots = table.texts("roots").unwrap_or_default();
    let roots = roots.iter().filter_map(|text| root(text).map_err(|fault| table.fault("roots", fault)).ok()).collect();
    table.finish();
    Some(Server { client: client?, interval, sweep, timeout, roots })
}

fn exec(table: &Table<'_>) -> Option<Client> {
    const RIGHT: &str = "write command = [\"./my-client\", \"an argument\"]; there is no shell";
    let Some(command) = table.texts("command") else {
        if !table.has("command") {
            table.missing("command", RIGHT);
        }
        return None;
    };
    if command.first().is_none_or(String::is_empty) {
        table.fault("command", Fault::new("no program is named", RIGHT));
        return None;
    }
    Some(Client::Exec { command })
}

fn rtorrent(table: &Table<'_>, http: &Http) -> Option<Client> {
    let url = required(
        table,
        "url",
        endpoint,
        "write url = \"unix:///path/of/rpc.sock\", scgi://host:port or http(s)://host/RPC2",
    );
    let (username, password) = login(table);
    let ca_pem = certificates(table, "ca_file");
    let hooks = hooks(table, http.hooks_listen);
    let mut extra = BTreeMap::new();
    for (name, column) in table.named_texts("extra") {
        match extra_column(&name, &column) {
            Ok(()) => {
                extra.insert(name, column);
            }
            Err(fault) => table.fault("extra", fault),
        }
    }
    let rpc = table.texts("rpc").unwrap_or_default();
    for method in &rpc {
        if let Err(error) = AllowedMethod::parse(method) {
            table.fault("rpc", told(&error));
        }
    }
    Some(Client::Rtorrent(Box::new(Rtorrent { url: url?, username, password, ca_pem, hooks, extra, rpc })))
}

fn hooks(table: &Table<'_>, listen: SocketAddr) -> Hooks {
    let is_wanted = table.boolean("hooks") == Some(true);
    let address = table.parsed("hooks_address", |text| HookAddress::parse(text).map_err(|error| told(&error)));
    let is_anywhere = listen.ip().is_unspecified();
    if is_wanted && is_anywhere && address.is_none() && !table.has("hooks_address") {
        let right = "http.hooks_listen says no address to ring at: write hooks_address = \"host:port\", as the client reaches it";
        table.missing("hooks_address", right);
    }
    if is_wanted && address.is_some() && listen.port() == 0 {
        let wrong = "points at a port that is another one with each start";
        table.fault("hooks_address", Fault::new(wrong, "write http.hooks_listen with a port that is not 0"));
    }
    Hooks { is_wanted, address }
}

fn broker(table: Table<'_>, names: &[ServerName], instance: &str) -> Option<Broker> {
    let is_nats = required(
        &table,
        "kind",
        |text| choice(text, &[("mqtt", false), ("nats", true)]),
        "write kind = \"mqtt\" or kind = \"nats\"",
    );
    if is_nats.is_none() && table.has("kind") {
        return None; // Another kind has other keys: what they mean cannot be said.
    }
    let is_nats = is_nats.unwrap_or(false);
    let url = match is_nats {
        false => required(&table, "url", broker_url, "write url = \"mqtt://host:1883\""),
        true => Some(String::new()),
    };
    let (username, password) = login(&table);
    let ca_pem = certificates(&table, "ca_file");
    let client_auth = client_auth(&table);
    let prefix = table.parsed("prefix", if is_nats { subject_prefix } else { prefix });
    let servers = patterns(&table, "servers", names.iter().map(ServerName::as_str), "server");
    let servers = names.iter().filter(|name| servers.contains(name.as_str())).cloned().collect();
    let events = patterns(&table, "events", Kind::ALL.iter().map(|kind| kind.as_str()), "kind of event");
    let events = EventFilter(events.iter().filter_map(|kind| Kind::parse(kind)).collect());
    let commands = commands(&table);
    let kind = match is_nats {
        true => nats_broker(&table, username.as_deref(), password.as_ref(), instance).map(BrokerKind::Nats),
        false => Some(BrokerKind::Mqtt(Box::new(mqtt_broker(&table)))),
    };
    // A request on NATS has its reply subject with it.
    let reply_prefixes = if is_nats { Vec::new() } else { reply_prefixes(&table) };
    table.finish();
    let kind = kind?;
    let url = match &kind {
        BrokerKind::Mqtt { .. } => url?,
        BrokerKind::Nats(nats) => nats.urls.join(", "),
    };
    Some(Broker {
        url,
        username,
        password,
        ca_pem,
        client_auth,
        kind,
        prefix: prefix.unwrap_or_else(|| "dtorrent".to_owned()),
        servers,
        events,
        commands,
        reply_prefixes,
    })
}

fn mqtt_broker(table: &Table<'_>) -> Mqtt {
    let version = table.parsed("version", |text| {
        choice(text, &[("auto", MqttVersion::Auto), ("5", MqttVersion::V5), ("3.1.1", MqttVersion::V311)])
    });
    let retain = table
        .parsed("retain", |text| choice(text, &[("auto", Retain::Auto), ("all", Retain::All), ("none", Retain::None)]));
    Mqtt {
        version: version.unwrap_or(MqttVersion::Auto),
        retain: retain.unwrap_or(Retain::Auto),
        home_assistant: home_assistant(table.table("home_assistant")),
    }
}

fn reply_prefixes(table: &Table<'_>) -> Vec<String> {
    let prefixes = table.texts("reply_prefixes").unwrap_or_default();
    for prefix in &prefixes {
        if let Err(fault) = topic(prefix) {
            table.fault("reply_prefixes", fault);
        }
    }
    prefixes
}

/// NATS keeps five copies at most.
const REPLICAS: std::ops::RangeInclusive<i64> = 1..=5;

fn nats_broker(
    table: &Table<'_>,
    username: Option<&str>,
    password: Option<&SecretString>,
    instance: &str,
) -> Option<Nats> {
    let elsewhere = "it listens to MQTT: move this table to a broker with kind = \"mqtt\"";
    table.refuse("home_assistant", Fault::new("is nothing for NATS", elsewhere));
    if !table.has("url") {
        table.missing("url", "write url = \"nats://host:4222\", or a list of several servers");
    }
    let urls = table.one_or_more("url");
    if urls.as_ref().is_some_and(Vec::is_empty) {
        table.fault("url", Fault::new("is an empty list", "write url = \"nats://host:4222\""));
    }
    for url in urls.iter().flatten() {
        if let Err(error) = nats::ServerUrl::parse(url) {
            table.fault("url", told(&error));
        }
    }
    let token = secret(table, "token", "token_file");
    let from_file = |key: &'static str, parse: fn(&str) -> Result<nats::Login, nats::InvalidLogin>| {
        table.parsed(key, |path| {
            let bytes = read(path)?;
            let text = String::from_utf8_lossy(&bytes);
            parse(&text).map_err(|error| {
                let Fault { wrong, right } = told(&error);
                Fault::new(format!("`{path}`: {wrong}"), right)
            })
        })
    };
    let nkey = from_file("nkey_file", nats::Login::parse_nkey);
    let creds = from_file("creds_file", nats::Login::parse_creds);
    let user = username.map(|name| nats::Login::User {
        name: name.to_owned(),
        password: password.cloned().unwrap_or_else(|| SecretString::from("")),
    });
    let ways =
        [("username", user), ("token", token.map(nats::Login::Token)), ("nkey_file", nkey), ("creds_file", creds)];
    let mut given = ways.into_iter().filter_map(|(key, login)| Some((key, login?)));
    let login = given.next();
    if let (Some((first, _)), Some((second, _))) = (&login, given.next()) {
        let wrong = format!("and `{first}` are two ways to log in");
        table.fault(second, Fault::new(wrong, "keep one of username, token, nkey_file and creds_file"));
    }
    if instance == nats::RESERVED_INSTANCE {
        let wrong = format!("does not go with instance = \"{instance}\": its subjects would look like events");
        table.fault("kind", Fault::new(wrong, "give the bridge another instance name"));
    }
    let jetstream = table.boolean("jetstream").unwrap_or(true);
    let replicas = table.whole("replicas", REPLICAS).and_then(|count| u8::try_from(count).ok()).unwrap_or(1);
    let login = login.map(|(_, login)| login).unwrap_or_default();
    Some(Nats { urls: urls?, login, jetstream, replicas })
}

fn home_assistant(table: Table<'_>) -> Option<HomeAssistant> {
    let is_enabled = table.boolean("enabled") == Some(true);
    let discovery_prefix = table.parsed("discovery_prefix", |text| topic(text).map(|()| text.to_owned()));
    let slots = table.whole("slots", 0..=50).and_then(|slots| u8::try_from(slots).ok());
    let filter = torrents(&table);
    let torrents_max = table.whole("torrents_max", 1..=50).and_then(|max| usize::try_from(max).ok());
    let alternative = (table.parsed("alternative_download", rate), table.parsed("alternative_upload", rate));
    let normal = (table.parsed("normal_download", rate), table.parsed("normal_upload", rate));
    table.finish();
    is_enabled.then(|| HomeAssistant {
        discovery_prefix: discovery_prefix.unwrap_or_else(|| "homeassistant".to_owned()),
        slots: slots.unwrap_or(10),
        torrents: filter,
        torrents_max: torrents_max.unwrap_or(20),
        alternative: match alternative {
            (None, None) => None,
            (download, upload) => Some((download.unwrap_or(0), upload.unwrap_or(0))),
        },
        normal: (normal.0.unwrap_or(0), normal.1.unwrap_or(0)),
    })
}

/// Which torrents are meant; `None` if nothing is said.
pub(super) fn torrents(table: &Table<'_>) -> Option<Filter> {
    let torrents = table.named_texts("torrents");
    let filter = (!torrents.is_empty())
        .then(|| Filter::from_json(serde_json::json!(torrents.into_iter().collect::<BTreeMap<_, _>>())));
    filter.and_then(|filter| filter.map_err(|error| table.fault("torrents", told(&error))).ok())
}

pub(super) fn login(table: &Table<'_>) -> (Option<String>, Option<SecretString>) {
    let username = table.text("username");
    let password = secret(table, "password", "password_file");
    if password.is_some() && !table.has("username") {
        table.missing("username", "a password goes with a username: write both");
    }
    (username, password)
}

fn client_auth(table: &Table<'_>) -> Option<ClientAuth> {
    match (table.has("cert_file"), table.has("key_file")) {
        (true, false) => table.missing("key_file", "cert_file needs the key of the certificate: write both or none"),
        (false, true) => table.missing("cert_file", "key_file needs the certificate of the key: write both or none"),
        _ => {}
    }
    let cert_pem = certificates(table, "cert_file");
    let key_pem = table.parsed("key_file", |path| {
        let bytes = read(path)?;
        PrivateKeyDer::from_pem_slice(&bytes)
            .map_err(|_| Fault::new(format!("`{path}` holds no private key"), "name a key file in PEM form"))?;
        Ok(SecretSlice::from(bytes))
    });
    Some(ClientAuth { cert_pem: cert_pem?, key_pem: key_pem? })
}

fn commands(table: &Table<'_>) -> Rights {
    let Some(words) = table.texts("commands") else {
        return Rights(Verb::rights().filter(|right| !["delete_data", "rpc"].contains(right)).collect());
    };
    let mut allowed = BTreeSet::new();
    for word in &words {
        let (is_taken, name) = word.strip_prefix('-').map_or((false, word.as_str()), |name| (true, name));
        let Some(right) = Verb::rights().find(|right| *right == name || (name == "*" && !is_taken)) else {
            let list: Vec<&str> = Verb::rights().collect();
            let right = format!("known: *, {}; a `-` before one takes it away", list.join(", "));
            table.fault("commands", Fault::new(format!("`{word}` is no command"), right));
            continue;
        };
        match (is_taken, name) {
            (false, "*") => allowed.extend(Verb::rights()),
            (false, _) => {
                allowed.insert(right);
            }
            (true, _) if allowed.is_empty() => {
                let wrong = format!("`{word}` takes away from nothing");
                table.fault("commands", Fault::new(wrong, format!("write [\"*\", \"{word}\"], or [] for read-only")));
            }
            (true, _) => {
                allowed.remove(right);
            }
        }
    }
    Rights(allowed)
}

/// Which of `all` the patterns under `key` choose; `*` matches anything, a `-` before one takes away.
pub(super) fn patterns<'n>(
    table: &Table<'_>,
    key: &'static str,
    all: impl Iterator<Item = &'n str> + Clone,
    what: &str,
) -> BTreeSet<&'n str> {
    let Some(words) = table.texts(key) else { return all.collect() };
    let mut chosen = BTreeSet::new();
    for word in &words {
        let (is_taken, pattern) = word.strip_prefix('-').map_or((false, word.as_str()), |pattern| (true, pattern));
        let matcher = Glob::new(pattern).ok().map(|glob| glob.compile_matcher());
        let matching: Vec<&str> =
            all.clone().filter(|name| matcher.as_ref().is_some_and(|matcher| matcher.is_match(name))).collect();
        if matching.is_empty() && pattern != "*" {
            let list: Vec<&str> = all.clone().collect();
            let right = format!("known: *, {}", list.join(", "));
            table.fault(key, Fault::new(format!("`{word}` is no {what}"), right));
        }
        for name in matching {
            if is_taken {
                chosen.remove(name)
            } else {
                chosen.insert(name)
            };
        }
    }
    if chosen.is_empty() && key == "servers" && all.clone().next().is_some() {
        table.fault(key, Fault::new("leaves no server", "name at least one, or leave the key out for all"));
    }
    chosen
}

// --- single values -------------------------------------------------------------------------------

pub(super) fn required<T>(
    table: &Table<'_>,
    key: &'static str,
    parse: impl FnOnce(&str) -> Result<T, Fault>,
    right: &str,
) -> Option<T> {
    if !table.has(key) {
        table.missing(key, right);
    }
    table.parsed(key, parse)
}

/// What another parser says, `wrong: right` or `wrong; right`.
pub(super) fn told(error: &impl std::fmt::Display) -> Fault {
    let text = error.to_string();
    let (wrong, right) =
        text.split_once(": ").or_else(|| text.split_once("; ")).unwrap_or((&text, "see docs/configuration.md"));
    Fault::new(wrong, right)
}

fn bad_choice(text: &str, known: &[&str]) -> Fault {
    let known: Vec<String> = known.iter().map(|word| format!("\"{word}\"")).collect();
    Fault::new(format!("`{text}` is not known here"), format!("write {}", known.join(" or ")))
}

pub(super) fn choice<T: Copy>(text: &str, known: &[(&str, T)]) -> Result<T, Fault> {
    let found = known.iter().find(|(word, _)| *word == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
        bad_choice(text, &words)
    })
}

fn slug(text: &str) -> Result<String, Fault> {
    SinkName::parse(text).map(|name| name.as_str().to_owned()).map_err(|_| {
        let right = "use a-z, 0-9, _ and -, at most 63, the first a letter or digit; `bridge` is reserved";
        Fault::new(format!("`{text}` is no instance name"), right)
    })
}

fn folder(text: &str) -> Result<PathBuf, Fault> {
    if text.is_empty() || text.contains('\0') {
        return Err(Fault::new("is no path", "write data_dir = \"data\""));
    }
    Ok(PathBuf::from(text))
}

fn listener(text: &str) -> Result<Option<SocketAddr>, Fault> {
    if text == "off" {
        return Ok(None);
    }
    let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    numeric.as_deref().unwrap_or(text).parse().map(Some).map_err(|_| {
        let right = "write an address and a port, \"127.0.0.1:8787\", or \"off\"";
        Fault::new(format!("`{text}` is no address to listen on"), right)
    })
}

/// A name as browsers say it, without a port.
fn host(text: &str) -> Result<String, Fault> {
    let is_right = !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    is_right.then(|| text.to_ascii_lowercase()).ok_or_else(|| {
        let right = "write a name, \"torrents.example.org\", without a scheme and a port";
        Fault::new(format!("`{text}` is no name of a host"), right)
    })
}

pub(super) fn duration(table: &Table<'_>, key: &'static str, min: Duration, max: Duration) -> Option<Duration> {
    table.parsed(key, |text| {
        let right = format!(
            "write {} to {} with a unit, as \"1s\" or \"500ms\"",
            humantime::format_duration(min),
            humantime::format_duration(max)
        );
        let duration = humantime::parse_duration(text).ok();
        match duration {
            None => Err(Fault::new(format!("`{text}` is no duration"), right)),
            Some(duration) if duration < min => Err(Fault::new(format!("`{text}` is too short"), right)),
            Some(duration) if duration > max => Err(Fault::new(format!("`{text}` is too long"), right)),
            Some(duration) => Ok(duration),
        }
    })
}

/// Bytes a second: a whole number and a unit.
fn rate(text: &str) -> Result<u64, Fault> {
    let units = [("kB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000), ("KiB", 1 << 10), ("MiB", 1 << 20)];
    let units = units.into_iter().chain([("GiB", 1 << 30), ("B", 1), ("", 1)]);
    let bytes = units.filter_map(|(unit, bytes): (&str, u64)| {
        let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
        number.checked_mul(bytes)
    });
    let right = "write bytes a second with a unit, as \"500kB\" or \"2MiB\"; \"0\" is no limit";
    bytes.into_iter().next().ok_or_else(|| Fault::new(format!("`{text}` is no rate"), right))
}

fn root(text: &str) -> Result<PathBuf, Fault> {
    let path = Path::new(text);
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) || text.contains('\0') {
        let right = "write folders from / on, without `..`";
        return Err(Fault::new(format!("`{text}` is no absolute path"), right));
    }
    Ok(path.to_owned())
}

pub(super) fn read(path: &str) -> Result<Vec<u8>, Fault> {
    let right = "name a file that this user may read; a relative path starts at the working directory";
    super::file::read_limited(Path::new(path))
        .map_err(|error| Fault::new(format!("`{path}` cannot be read: {error}"), right))
}

pub(super) fn certificates(table: &Table<'_>, key: &'static str) -> Option<Vec<u8>> {
    table.parsed(key, |path| {
        let bytes = read(path)?;
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        match certificates {
            Ok(found) if !found.is_empty() => Ok(bytes),
            _ => Err(Fault::new(format!("`{path}` holds no certificate"), "name a certificate file in PEM form")),
        }
    })
}

// --- what the adapters know best -----------------------------------------------------------------

fn endpoint(text: &str) -> Result<String, Fault> {
    Endpoint::parse(text).map(|_| text.to_owned()).map_err(|error| told(&error))
}

fn broker_url(text: &str) -> Result<String, Fault> {
    BrokerUrl::parse(text).map(|_| text.to_owned()).map_err(|error| told(&error))
}

fn prefix(text: &str) -> Result<String, Fault> {
    Prefix::parse(text).map(|prefix| prefix.as_str().to_owned()).map_err(|error| told(&error))
}

fn subject_prefix(text: &str) -> Result<String, Fault> {
    nats::Prefix::parse(text).map(|prefix| prefix.as_str().to_owned()).map_err(|error| told(&error))
}

fn extra_column(name: &str, column: &str) -> Result<(), Fault> {
    if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
        return Err(Fault::new(format!("`{name}` is no name for a column"), "use 1 to 64 bytes of text"));
    }
    ExtraColumn::parse(column).map(drop).map_err(|error| {
        let Fault { wrong, right } = told(&error);
        Fault::new(format!("`{column}`: {wrong}"), right)
    })
}

/// One or more levels of a topic that may be published to.
fn topic(text: &str) -> Result<(), Fault> {
    let is_right = text.split('/').all(|level| !level.is_empty())
        && !text.starts_with('$')
        && text.len() <= 200
        && !text.chars().any(|c| c.is_control() || c == '+' || c == '#');
    is_right.then_some(()).ok_or_else(|| {
        let right =
            "write levels joined by `/`, as \"home/torrents\": none empty, no + or #, not $… , at most 200 bytes";
        Fault::new(format!("`{text}` is no topic to start with"), right)
    })
}
