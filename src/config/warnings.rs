//! Valid settings that are likely a mistake.

use std::net::IpAddr;

use secrecy::ExposeSecret as _;

use super::checked::{Broker, BrokerKind, Client, Config, Http, Server, Webhook};
use crate::clients::rtorrent::settings::{Endpoint, Settings};
use crate::model::{MemoryBudget, MemoryShares};
use crate::sinks::nats::settings::Login;

/// Shortest token that is no easy guess: 64 bits, where each of the characters is a hexadecimal digit.
const TOKEN_BYTES_MIN: usize = 16;

/// Whether it applies, the key that it is about, and its text.
type Warning = (bool, &'static str, String);

/// Returns the likely mistakes in a valid config, one sentence each.
pub fn warnings(config: &Config) -> Vec<String> {
    let servers = config.servers.iter().map(|(name, server)| {
        let of_client = match &server.client {
            Client::Rtorrent(settings) => of_rtorrent(settings, server),
            Client::Exec(_) => Vec::new(),
        };
        (format!("servers.{name}"), [of_client, of_roots(server)].concat())
    });
    let brokers = config.brokers.iter().map(|(name, broker)| (format!("brokers.{name}"), of_broker(broker)));
    let webhooks = config.webhooks.iter().map(|(name, webhook)| (format!("webhooks.{name}"), of_webhook(webhook)));
    let http = [("http".to_owned(), of_http(&config.http))];
    let all = servers.chain(brokers).chain(webhooks).chain(http);
    let applying = all.flat_map(|(table, warnings)| {
        let applying = warnings.into_iter().filter(|(applies, ..)| *applies);
        applying.map(move |(_, key, text)| format!("{table}.{key}: {text}"))
    });
    config.weak_secrets.iter().cloned().chain(of_memory(config)).chain(applying).collect()
}

fn of_memory(config: &Config) -> Option<String> {
    let holders = config.memory_holders();
    let (events, right) = (config.memory_shares().events, MemoryBudget::bytes_for_events(holders));
    let text = format!(
        "memory_max: {}MiB leave {} KiB for the events of each of {} pairs of server and receiver, which are read few at a \
         time then; at least {}MiB is right",
        config.memory_max.bytes() >> 20,
        events >> 10,
        holders.cursors,
        right.div_ceil(1 << 20)
    );
    (events < MemoryShares::EVENTS_BYTES_MIN).then_some(text)
}

fn of_roots(server: &Server) -> Vec<Warning> {
    let text = "is every folder of this machine, so that commands may read, move and delete any file; name the folders of \
                your downloads";
    vec![(server.roots.iter().any(|root| root.parent().is_none()), "roots", text.to_owned())]
}

fn of_http(http: &Http) -> Vec<Warning> {
    let Some(listen) = http.listen else { return Vec::new() };
    let is_short = http.token.as_ref().is_some_and(|token| token.expose_secret().len() < TOKEN_BYTES_MIN);
    let guessed =
        format!("fewer than {TOKEN_BYTES_MIN} characters can be guessed; `openssl rand -hex 16` makes a good one");
    let text =
        format!("{listen} is open to the network, and everybody who reaches it can read everything without a login");
    vec![(!listen.ip().is_loopback(), "listen", text), (is_short, "token", guessed)]
}

fn of_rtorrent(settings: &Settings, server: &Server) -> Vec<Warning> {
    let Settings { endpoint, username, password, trust, .. } = settings;
    let is_http = matches!(endpoint, Endpoint::Http(_));
    let is_clear = matches!(endpoint, Endpoint::Http(url) if url.scheme() == "http");
    let is_far = endpoint.host().is_some_and(|host| !is_local(host));
    let open = "SCGI has no login, and everybody who reaches that port can run programs there; \
                use a unix socket, or http(s) with a login";
    let remote_hooks = "rTorrent runs on another machine, and hooks need one: what happens there is found by polls";
    vec![
        (endpoint.is_open_to_the_network(), "url", open.to_owned()),
        (!is_http && username.is_some(), "username", "applies to http(s) only and is not used".to_owned()),
        (!is_http && trust.is_set(), "ca_file", "applies to https only and is not used".to_owned()),
        (is_clear && is_far && password.is_some(), "url", crosses("password", "https")),
        (server.hooks.is_some() && is_far, "hooks", remote_hooks.to_owned()),
    ]
}

fn of_broker(broker: &Broker) -> Vec<Warning> {
    match &broker.kind {
        BrokerKind::Mqtt(mqtt) => {
            let is_clear = !mqtt.url.transport.is_encrypted();
            let is_far = !is_local(&mqtt.url.endpoint.host);
            let unused = "applies to mqtts and wss only and is not used".to_owned();
            vec![
                (is_clear && is_far && mqtt.password.is_some(), "url", crosses("password", "mqtts or wss")),
                (is_clear && mqtt.trust.is_set(), "ca_file", unused.clone()),
                (is_clear && mqtt.client_cert.is_some(), "cert_file", unused),
            ]
        }
        BrokerKind::Nats(nats) => {
            let secret = match nats.login {
                Login::User { .. } => "password",
                Login::Token(_) => "token",
                // A seed never crosses the network: it signs.
                Login::None | Login::Nkey(_) | Login::Creds { .. } => return Vec::new(),
            };
            let is_exposed = nats.urls.iter().any(|url| !url.needs_tls && !is_local(&url.endpoint.host));
            // Certificates without tls:// are no mistake: a NATS server may require TLS all the same.
            vec![(is_exposed, "url", crosses(secret, "tls"))]
        }
    }
}

fn of_webhook(Webhook { settings, .. }: &Webhook) -> Vec<Warning> {
    let is_clear = !settings.address.is_encrypted();
    let is_far = !settings.address.url().host_str().is_some_and(is_local);
    let has_secrets = settings.login.is_some() || !settings.headers.is_empty();
    vec![
        (is_clear && is_far && has_secrets, "url", crosses("login", "https")),
        (is_clear && settings.trust.is_set(), "ca_file", "applies to https only and is not used".to_owned()),
    ]
}

fn crosses(secret: &str, encrypted: &str) -> String {
    format!("the {secret} crosses the network unencrypted; use {encrypted}")
}

/// Returns whether a host of a URL is this machine.
fn is_local(host: &str) -> bool {
    // Without a lookup: `dtorrent check` must not depend on the network.
    host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
