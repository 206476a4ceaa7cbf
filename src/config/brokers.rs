//! The tables `[brokers.NAME]`.

use std::collections::BTreeMap;

use super::checked::{Broker, BrokerKind};
use super::choose::{Rights, commands, events, servers};
use super::login::{UrlLogin, login, take_login};
use super::read::{Fault, Table};
use super::secret::{mask_words, note_secret, read_file, secret, warn_of_readers};
use super::values::{client_cert, rate, topic, torrents, trust};
use secrecy::ExposeSecret as _;

use crate::model::{Retain, ServerName, SinkName, Verb};
use crate::sinks::mqtt::settings::{self as mqtt, BrokerUrl, ClientIdTemplate, HomeAssistant, Limits, Prefix, Version};
use crate::sinks::nats::settings::{self as nats, InvalidText, Login, RESERVED_INSTANCE, ServerUrl};

/// Reads all brokers.
pub fn brokers(root: &Table<'_>, names: &[ServerName], instance: &str) -> BTreeMap<SinkName, Broker> {
    let mut brokers = BTreeMap::new();
    for (name, table) in root.named("brokers", SinkName::parse) {
        let broker = broker(name.as_ref(), &table, names, instance);
        let Some((name, broker)) = name.zip(broker) else { continue };
        if let Some(other) = find(&brokers, |other| is_same_place(&other.kind, &broker.kind)) {
            let wrong = format!(
                "{name} and {other} are the same broker with the same prefix, and would publish to the same topics"
            );
            root.fault("brokers", Fault::new(wrong, "use one table for each broker and prefix"));
        }
        if let Some(other) = find(&brokers, |other| is_same_discovery(&other.kind, &broker.kind)) {
            let wrong = format!("{name} and {other} would announce the same devices to one Home Assistant");
            root.fault("brokers", Fault::new(wrong, "enable home_assistant for one of them"));
        }
        brokers.insert(name, broker);
    }
    brokers
}

fn find(brokers: &BTreeMap<SinkName, Broker>, is_wanted: impl Fn(&Broker) -> bool) -> Option<&SinkName> {
    brokers.iter().find(|(_, broker)| is_wanted(broker)).map(|(name, _)| name)
}

fn is_same_place(one: &BrokerKind, other: &BrokerKind) -> bool {
    match (one, other) {
        (BrokerKind::Mqtt(one), BrokerKind::Mqtt(other)) => (&one.url, &one.prefix) == (&other.url, &other.prefix),
        (BrokerKind::Nats(one), BrokerKind::Nats(other)) => (&one.urls, &one.prefix) == (&other.urls, &other.prefix),
        _ => false,
    }
}

fn is_same_discovery(one: &BrokerKind, other: &BrokerKind) -> bool {
    let place = |kind: &'_ BrokerKind| match kind {
        BrokerKind::Mqtt(mqtt) => Some((mqtt.url.clone(), mqtt.home_assistant.as_ref()?.discovery_prefix.clone())),
        BrokerKind::Nats(_) => None,
    };
    place(one).is_some() && place(one) == place(other)
}

fn broker(name: Option<&SinkName>, table: &Table<'_>, names: &[ServerName], instance: &str) -> Option<Broker> {
    let servers = servers(table, names);
    let (events, commands) = (events(table), commands(table));
    let (kind, reply_prefixes) = match table.tag() {
        // NATS requests carry their reply subject, so there is no `reply_to`.
        "nats" => {
            let nats = nats(name, table, servers, instance);
            (nats.map(|nats| BrokerKind::Nats(Box::new(nats))), Some(Vec::new()))
        }
        _ => {
            let mqtt = mqtt(name, table, servers, instance, commands.as_ref());
            let reply_prefixes = table.each("reply_prefixes", table.texts("reply_prefixes"), topic);
            (mqtt.map(|mqtt| BrokerKind::Mqtt(Box::new(mqtt))), reply_prefixes)
        }
    };
    Some(Broker { kind: kind?, events: events?, commands: commands?, reply_prefixes: reply_prefixes? })
}

fn mqtt(
    name: Option<&SinkName>,
    table: &Table<'_>,
    servers: Option<Vec<ServerName>>,
    instance: &str,
    commands: Option<&Rights>,
) -> Option<mqtt::Settings> {
    // All keys are read before the first `?`, so that every error is reported at once. So in the functions below.
    let mut in_url = None;
    let url = table.parsed("url", |text| BrokerUrl::parse(&take_login(text, &mut in_url)?).map_err(Fault::from));
    if let Some(query) = url.as_ref().and_then(|url| url.query.as_deref()) {
        table.mask(|mask| mask.add(query));
    }
    let (username, password) = login(table, in_url);
    let trust = trust(table);
    let client_cert = client_cert(table);
    let client_id = table.parsed("client_id", ClientIdTemplate::parse);
    let version = table.choice("version", &Version::NAMES);
    let prefix = table.parsed("prefix", Prefix::of_topics);
    let retain = table.choice("retain", &Retain::NAMES);
    let home_assistant = table.table("home_assistant").and_then(|table| home_assistant(&table, commands));
    Some(mqtt::Settings {
        name: name?.clone(),
        instance: instance.to_owned(),
        url: url?,
        username,
        password,
        trust,
        client_cert,
        client_id,
        version: version?,
        prefix: prefix?,
        servers: servers?,
        retain: retain?,
        home_assistant,
    })
}

fn home_assistant(table: &Table<'_>, commands: Option<&Rights>) -> Option<HomeAssistant> {
    let is_enabled = table.boolean("enabled");
    let discovery_prefix = table.parsed("discovery_prefix", topic);
    let slots = table.whole("slots");
    let filter = torrents(table);
    let torrents_max = table.whole("torrents_max");
    let (download, upload) = (table.parsed("alternative_download", rate), table.parsed("alternative_upload", rate));
    let alternative = (download.is_some() || upload.is_some())
        // One limit alone leaves the other direction unlimited.
        .then(|| Limits { download: download.unwrap_or(0), upload: upload.unwrap_or(0) });
    let normal = (table.parsed("normal_download", rate), table.parsed("normal_upload", rate));
    // After all keys were read: errors are reported for a switched-off table, too.
    if !is_enabled? {
        return None;
    }
    Some(HomeAssistant {
        discovery_prefix: discovery_prefix?,
        slots: slots?,
        torrents: filter,
        torrents_max: torrents_max?,
        alternative,
        normal: Limits { download: normal.0?, upload: normal.1? },
        // Only commands become buttons, not the rights beyond them.
        verbs: commands?.iter().filter(|right| Verb::parse(right).is_some()).map(str::to_owned).collect(),
    })
}

fn nats(
    name: Option<&SinkName>,
    table: &Table<'_>,
    servers: Option<Vec<ServerName>>,
    instance: &str,
) -> Option<nats::Settings> {
    if instance == RESERVED_INSTANCE {
        let wrong = format!("does not go with instance = \"{instance}\": its subjects would look like events");
        table.fault("kind", Fault::new(wrong, "give the bridge another instance name"));
    }
    let (texts, in_url) = without_logins(table, table.one_or_more("url"));
    let urls = table.each("url", texts, ServerUrl::parse);
    let login = nats_login(table, in_url);
    let trust = trust(table);
    let client_cert = client_cert(table);
    let prefix = table.parsed("prefix", Prefix::of_subjects);
    let (jetstream, replicas) = (table.boolean("jetstream"), table.whole("replicas"));
    Some(nats::Settings {
        name: name?.clone(),
        instance: instance.to_owned(),
        urls: urls?,
        login,
        trust,
        client_cert,
        prefix: prefix?,
        servers: servers?,
        jetstream: jetstream?,
        replicas: replicas?,
    })
}

/// Takes the logins out of the URLs of one system, all of which have to be the same.
fn without_logins(table: &Table<'_>, texts: Option<Vec<String>>) -> (Option<Vec<String>>, Option<UrlLogin>) {
    let mut logins = Vec::new();
    let mut without_login = |text: String| {
        let mut login = None;
        let text = take_login(&text, &mut login).map_err(|fault| table.fault("url", fault)).ok();
        logins.extend(login);
        text
    };
    let texts = texts.map(|texts| texts.into_iter().filter_map(&mut without_login).collect());
    if logins.iter().any(|login| !login.is_same(&logins[0])) {
        table.fault("url", Fault::new("contains different logins", "write the login once, with the first URL"));
    }
    (texts, logins.into_iter().next())
}

fn nats_login(table: &Table<'_>, in_url: Option<UrlLogin>) -> Login {
    let from_file = |key: &str, parse: fn(&str) -> Result<Login, InvalidText>| {
        table.parsed(key, |path| {
            warn_of_readers(table, key, path.as_ref());
            let bytes = read_file(path)?;
            let text = String::from_utf8_lossy(&bytes);
            table.mask(|mask| mask_words(mask, &text));
            parse(&text).map_err(|error| {
                let Fault { wrong, right } = error.into();
                Fault::new(format!("`{path}`: {wrong}"), right)
            })
        })
    };
    // As NATS has it, a word alone is a token.
    let token_in_url =
        in_url.as_ref().and_then(UrlLogin::word).filter(|_| !table.has("password") && !table.has("password_file"));
    let (username, password) = login(table, in_url.filter(|_| token_in_url.is_none()));
    if let Some(token) = &token_in_url {
        note_secret(table, "url", token.expose_secret());
    }
    let logins = [
        ("url", token_in_url.map(Login::Token)),
        ("username", username.map(|name| Login::User { name, password: password.unwrap_or_default() })),
        ("token", secret(table, "token").map(Login::Token)),
        ("nkey_file", from_file("nkey_file", Login::parse_nkey)),
        ("creds_file", from_file("creds_file", Login::parse_creds)),
    ];
    let mut given = logins.into_iter().filter_map(|(key, login)| Some((key, login?)));
    let Some((first, login)) = given.next() else { return Login::None };
    if let Some((second, _)) = given.next() {
        let wrong = format!("and `{first}` are two ways to log in");
        table.fault(
            second,
            Fault::new(wrong, "keep one of username, token, nkey_file, creds_file and a login in the URL"),
        );
    }
    login
}
