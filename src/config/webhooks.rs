//! The tables `[webhooks.NAME]`.

use std::collections::BTreeMap;
use std::path::Path;

use reqwest::header::HeaderMap;
use secrecy::SecretString;

use super::checked::Webhook;
use super::choose::{events, patterns, servers};
use super::login::{UrlLogin, login, take_login};
use super::read::{Fault, Table};
use super::secret::{mask_words, parsed_secret, read_file, read_secret, secret, warn_of_readers};
use super::values::{torrents, trust};
use crate::model::{Kind, Mask, ServerName, SinkName, names_secret};
use crate::sinks::webhook::settings::{
    Address, EventFilter, FORMATS, Format, InvalidTemplate, Login, Secrets, Settings, Template, header,
};

/// Reads all webhooks.
pub fn webhooks(root: &Table<'_>, names: &[ServerName]) -> BTreeMap<SinkName, Webhook> {
    let tables = root.named("webhooks", SinkName::parse).into_iter();
    let read = |(name, table): (Option<SinkName>, _)| {
        let webhook = webhook(name.clone(), &table, names);
        name.zip(webhook)
    };
    tables.filter_map(read).collect()
}

fn webhook(name: Option<SinkName>, table: &Table<'_>, names: &[ServerName]) -> Option<Webhook> {
    let named = table.choice("format", &FORMATS);
    let is_chat = named.as_ref().is_some_and(Format::is_chat);
    let mut in_url = None;
    let address = parsed_secret(
        table,
        "url",
        |text| Address::parse(&take_login(text, &mut in_url)?).map_err(Fault::from),
        Mask::add_url,
    );
    let (address, format) = match (template(table), named) {
        (Some(template), _) => (address, Some(Format::Own(template))),
        (None, Some(Format::Ntfy { .. })) => {
            let split = address.map(|address| address.split_topic());
            let split = split.and_then(|split| split.map_err(|error| table.fault("url", error.into())).ok());
            split.map(|(address, topic)| (address, Format::Ntfy { topic })).unzip()
        }
        (None, named) => (address, named),
    };
    let servers = servers(table, names);
    let events = events(table);
    let causes = EventFilter::CAUSES.map(|(name, _)| (name, name));
    let mut causes = patterns(table, "causes", "cause", &causes);
    // The table of keys has one default for all formats.
    if is_chat && !table.has("causes") {
        causes.iter_mut().for_each(|causes| causes.retain(|cause| *cause != "snapshot"));
    }
    let torrents = torrents(table);
    let secrets = parsed_secret(table, "secret", Secrets::parse, mask_words);
    let login = webhook_login(table, in_url);
    let headers = headers(table, login.is_some());
    let trust = trust(table);
    let (timeout, keep_trying) = (table.duration("timeout"), table.duration("keep_trying"));
    let events = events?;
    let settings = Settings {
        name: name?,
        address: address?,
        format: format?,
        filter: EventFilter {
            has_updates: events.contains(&Kind::Updated),
            causes: causes?.into_iter().collect(),
            torrents,
        },
        secrets,
        login,
        headers,
        trust,
        timeout: timeout?,
        keep_trying: keep_trying?,
    };
    Some(Webhook { servers: servers?, events, settings })
}

fn template(table: &Table<'_>) -> Option<Template> {
    let keys: Vec<&str> = ["format", "template", "template_file"].into_iter().filter(|key| table.has(key)).collect();
    if let [first, second, ..] = keys[..] {
        let right = "keep one of format, template and template_file";
        table.fault(second, Fault::new(format!("and `{first}` are both given"), right));
    }
    if table.has("content_type") && !table.has("template") && !table.has("template_file") {
        let right = "leave it out, or write a template";
        table.fault("content_type", Fault::new("applies only to a template of your own", right));
    }
    let content_type = table.text("content_type")?;
    let parse = |source: &str| {
        let template = Template::parse(source, &content_type);
        template.map_err(|InvalidTemplate { wrong, right }| Fault::new(wrong, right))
    };
    let in_place = table.parsed("template", parse);
    let in_file = table.parsed("template_file", |path| {
        let source = String::from_utf8(read_file(path)?);
        parse(&source.map_err(|_| Fault::new(format!("`{path}` is not UTF-8"), "save the file as UTF-8"))?)
    });
    in_place.or(in_file)
}

fn webhook_login(table: &Table<'_>, in_url: Option<UrlLogin>) -> Option<Login> {
    let (username, password) = login(table, in_url);
    let user = username.map(|name| Login::User { name, password: password.unwrap_or_default() });
    let token = secret(table, "token").map(Login::Token);
    if user.is_some() && token.is_some() {
        table.fault("token", Fault::new("and `username` are two ways to log in", "keep one of them"));
    }
    user.or(token)
}

fn headers(table: &Table<'_>, has_login: bool) -> HeaderMap {
    let in_place = table.named_texts("headers").into_iter().map(|(name, text)| ("headers", name, Ok(text)));
    let in_files = table.named_texts("header_files").into_iter();
    let in_files = in_files.map(|(name, path)| {
        warn_of_readers(table, "header_files", Path::new(&path));
        ("header_files", name, read_secret(Path::new(&path)))
    });
    let mut headers = HeaderMap::new();
    for (key, name, value) in in_place.chain(in_files) {
        // `Priority: 5` and `Markdown: yes` are no secrets, and in many texts. In a file is what nobody is to read.
        if key == "header_files" || names_secret(&name) {
            table.mask(|mask| value.iter().for_each(|value| mask.add_header(&name, value)));
        }
        match value.and_then(|text| Ok(header(&name, &SecretString::from(text))?)) {
            Ok((name, _)) if headers.contains_key(&name) => {
                table.fault(key, Fault::new(format!("has `{name}` twice"), "keep one of them"));
            }
            Ok((name, _)) if has_login && name == "authorization" => {
                table.fault(key, Fault::new("has `Authorization` in addition to a login", "keep one of them"));
            }
            Ok((name, value)) => {
                headers.insert(name, value);
            }
            Err(fault) => table.fault(key, fault),
        }
    }
    headers
}
