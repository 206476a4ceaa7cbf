//! The tables `[webhooks.NAME]`.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::header::HeaderMap;
use secrecy::{ExposeSecret as _, SecretString};

use super::checked::{EventFilter, Webhook, certificates, choice, duration, login, patterns, read, told, torrents};
use super::read::{Fault, Table};
use super::secret::{read_secret, secret};
use crate::model::{Kind, ServerName, SinkName};
use crate::sinks::webhook::settings::{
    self as webhook, Address, EventFilter as Chosen, Format, InvalidTemplate, Login, Secrets, Settings, Template,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const TEMPLATES: &str = "keep one of format, template and template_file";

/// The formats by their names. ntfy's topic is found in the address.
#[derive(Clone, Copy)]
enum Shape {
    Standard,
    Dtorrent,
    Ntfy,
    Discord,
    Slack,
    Apprise,
}

impl Shape {
    /// Whether people read it, who would not want every torrent told when a server is seen first.
    fn is_for_people(self) -> bool {
        match self {
            Self::Standard | Self::Dtorrent => false,
            Self::Ntfy | Self::Discord | Self::Slack | Self::Apprise => true,
        }
    }
}

pub(super) fn webhook(table: Table<'_>, name: &SinkName, names: &[ServerName]) -> Option<Webhook> {
    let address = address(&table);
    let shape = table.parsed("format", |text| {
        choice(
            text,
            &[
                ("standard", Shape::Standard),
                ("dtorrent", Shape::Dtorrent),
                ("ntfy", Shape::Ntfy),
                ("discord", Shape::Discord),
                ("slack", Shape::Slack),
                ("apprise", Shape::Apprise),
            ],
        )
    });
    let own = template(&table);
    let (address, format) = match (shape.unwrap_or(Shape::Standard), own) {
        (_, Some(template)) => (address, Some(Format::Own(template))),
        (Shape::Standard, None) => (address, Some(Format::Standard)),
        (Shape::Dtorrent, None) => (address, Some(Format::Dtorrent)),
        (Shape::Discord, None) => (address, Some(Format::Discord)),
        (Shape::Slack, None) => (address, Some(Format::Slack)),
        (Shape::Apprise, None) => (address, Some(Format::Apprise)),
        (Shape::Ntfy, None) => {
            let split = address
                .and_then(|address| address.split_topic().map_err(|error| table.fault("url", told(&error))).ok());
            split.map_or((None, None), |(address, topic)| (Some(address), Some(Format::Ntfy { topic })))
        }
    };
    let servers = patterns(&table, "servers", names.iter().map(ServerName::as_str), "server");
    let servers = names.iter().filter(|name| servers.contains(name.as_str())).cloned().collect();
    let events = events(&table);
    let all_causes = Chosen::CAUSES.iter().map(|(name, _)| *name);
    let causes: BTreeSet<&'static str> = match table.has("causes") {
        true => {
            let chosen = patterns(&table, "causes", all_causes.clone(), "cause");
            all_causes.filter(|cause| chosen.contains(cause)).collect()
        }
        false => {
            let is_for_people = shape.is_some_and(Shape::is_for_people);
            all_causes.filter(|cause| !(is_for_people && *cause == "snapshot")).collect()
        }
    };
    let filter = Chosen { has_updates: events.allows(Kind::Updated), causes, torrents: torrents(&table) };
    let secrets = secret(&table, "secret", "secret_file").and_then(|text| {
        let key = if table.rank("secret_file") > table.rank("secret") { "secret_file" } else { "secret" };
        Secrets::parse(text.expose_secret()).map_err(|error| table.fault(key, told(&error))).ok()
    });
    let login = who(&table);
    let headers = headers(&table, login.is_some());
    let ca_pem = certificates(&table, "ca_file");
    let timeout = duration(&table, "timeout", Duration::from_millis(100), Duration::from_secs(60));
    let keep_trying = duration(&table, "keep_trying", Duration::from_secs(1), 30 * DAY);
    table.finish();
    let endpoint = Settings {
        name: name.clone(),
        address: address?,
        format: format?,
        filter,
        secrets,
        login,
        headers,
        ca_pem,
        timeout: timeout.unwrap_or(Duration::from_secs(20)),
        keep_trying: keep_trying.unwrap_or(3 * DAY),
    };
    Some(Webhook { servers, events, endpoint })
}

/// The address may be a secret as a whole, so it may come from a file.
fn address(table: &Table<'_>) -> Option<Address> {
    if !table.has("url") && !table.has("url_file") {
        table.missing("url", "write url = \"https://host/path\", or url_file if nobody may see it");
    }
    let text = secret(table, "url", "url_file")?;
    let key = if table.rank("url_file") > table.rank("url") { "url_file" } else { "url" };
    Address::parse(text.expose_secret()).map_err(|error| table.fault(key, told(&error))).ok()
}

/// Everything but `updated`, unless it is asked for.
fn events(table: &Table<'_>) -> EventFilter {
    let all = Kind::ALL.iter().map(|kind| kind.as_str());
    let is_said = table.has("events");
    let chosen = patterns(table, "events", all, "kind of event");
    let kinds = chosen.iter().filter_map(|kind| Kind::parse(kind));
    EventFilter::of(kinds.filter(|kind| is_said || *kind != Kind::Updated))
}

fn template(table: &Table<'_>) -> Option<Template> {
    let content_type = table.text("content_type");
    let keys: Vec<&'static str> =
        ["format", "template", "template_file"].into_iter().filter(|key| table.has(key)).collect();
    if let [_, second, ..] = keys.as_slice() {
        table.fault(second, Fault::new(format!("and `{}` are both given", keys[0]), TEMPLATES));
    }
    let is_own = table.has("template") || table.has("template_file");
    if content_type.is_some() && !is_own {
        table.fault("content_type", Fault::new("is for a template of your own", "leave it out, or write a template"));
    }
    let content_type = content_type.unwrap_or_else(|| "application/json".to_owned());
    let parse = |source: &str| {
        let template = Template::parse(source, &content_type);
        template.map_err(|InvalidTemplate { wrong, right }| Fault::new(wrong, right))
    };
    let in_place = table.parsed("template", parse);
    let in_file = table.parsed("template_file", |path| {
        let source = String::from_utf8(read(path)?)
            .map_err(|_| Fault::new(format!("`{path}` is no UTF-8"), "save the file as UTF-8"))?;
        parse(&source)
    });
    in_place.or(in_file)
}

fn who(table: &Table<'_>) -> Option<Login> {
    let (username, password) = login(table);
    let token = secret(table, "token", "token_file");
    if username.is_some() && token.is_some() {
        table.fault("token", Fault::new("and `username` are two ways to log in", "keep one of them"));
    }
    let user = username.map(|name| {
        let password = password.unwrap_or_else(|| SecretString::from(""));
        Login::User { name, password }
    });
    user.or(token.map(Login::Token))
}

fn headers(table: &Table<'_>, has_login: bool) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let in_place = table.named_texts("headers").into_iter().map(|(name, text)| ("headers", name, Ok(text)));
    let in_files = table.named_texts("header_files").into_iter();
    let in_files = in_files.map(|(name, path)| ("header_files", name, read_secret(std::path::Path::new(&path))));
    for (key, name, value) in in_place.chain(in_files) {
        let read =
            value.and_then(|text| webhook::header(&name, &SecretString::from(text)).map_err(|error| told(&error)));
        match read {
            Ok((name, _)) if headers.contains_key(&name) => {
                table.fault(key, Fault::new(format!("has `{name}` twice"), "keep one of them"));
            }
            Ok((name, _)) if has_login && name == "authorization" => {
                table.fault(key, Fault::new("has `Authorization` beside a login", "keep one of them"));
            }
            Ok((name, value)) => {
                headers.insert(name, value);
            }
            Err(fault) => table.fault(key, fault),
        }
    }
    headers
}
