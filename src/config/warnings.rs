//! Valid settings that are likely a mistake.

use std::net::IpAddr;

use super::checked::{Broker, BrokerKind, Client, Config, Server, Webhook};
use crate::clients::rtorrent::settings::{Endpoint, Settings};
use crate::sinks::nats::settings::Login;

/// Returns what the owner of a valid config should know, one sentence each.
pub fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, server) in &config.servers {
        if let Client::Rtorrent(settings) = &server.client {
            warnings.extend(
                of_rtorrent(settings, server, config).map(|(key, text)| format!("servers.{name}{key}: {text}")),
            );
        }
    }
    for (name, broker) in &config.brokers {
        warnings.extend(of_broker(broker).map(|(key, text)| format!("brokers.{name}{key}: {text}")));
    }
    for (name, webhook) in &config.webhooks {
        warnings.extend(of_webhook(webhook).map(|(key, text)| format!("webhooks.{name}{key}: {text}")));
    }
    if let Some(listen) = config.http.listen.filter(|listen| !listen.ip().is_loopback()) {
        warnings.push(format!(
            "http.listen: {listen} is open to the network, where everybody who reaches it can read everything without a login"
        ));
    }
    warnings
}

/// A warning that applies if the condition holds: the key, if one is meant, and the text.
type Warning = (&'static str, String);

fn of_rtorrent(settings: &Settings, server: &Server, config: &Config) -> impl Iterator<Item = Warning> {
    let Settings { endpoint, username, password, ca_pem, .. } = settings;
    let is_http = matches!(endpoint, Endpoint::Http(_));
    let is_clear = matches!(endpoint, Endpoint::Http(url) if url.scheme() == "http");
    let is_far = !endpoint.host().is_none_or(is_local);
    let hooks_listen = config.http.hooks_listen.ip();
    let hooks_miss = server.hooks.as_ref().is_some_and(|hooks| hooks.address.is_none()) && hooks_listen.is_loopback();
    applying([
        (
            endpoint.is_open_to_the_network(),
            ".url",
            "SCGI has no login, and everybody who reaches that port can run programs there; \
             use a unix socket, or http(s) with a login"
                .to_owned(),
        ),
        (
            !is_http && (username.is_some() || ca_pem.is_some()),
            "",
            "username, password and ca_file apply to http(s) only and are not used".to_owned(),
        ),
        (
            hooks_miss && is_far,
            ".hooks",
            format!(
                "rTorrent runs on another machine and would notify its own {hooks_listen}; \
                 write http.hooks_listen and hooks_address as it reaches them"
            ),
        ),
        (
            is_clear && is_far && password.is_some(),
            ".url",
            "the password crosses the network unencrypted; use https".to_owned(),
        ),
    ])
}

fn of_broker(broker: &Broker) -> impl Iterator<Item = Warning> {
    let (is_clear, is_far, secret, encrypted) = match &broker.kind {
        BrokerKind::Mqtt(mqtt) => (
            !mqtt.url.transport.is_encrypted(),
            !is_local(&mqtt.url.endpoint.host),
            mqtt.password.is_some().then_some("password"),
            "mqtts or wss",
        ),
        BrokerKind::Nats(nats) => (
            nats.urls.iter().any(|url| !url.needs_tls),
            nats.urls.iter().any(|url| !is_local(&url.endpoint.host)),
            match nats.login {
                Login::User { .. } => Some("password"),
                Login::Token(_) => Some("token"),
                // Neither ever crosses the network.
                Login::Nobody | Login::Nkey(_) | Login::Creds { .. } => None,
            },
            "tls",
        ),
    };
    // A NATS server may ask for TLS also where the URL does not.
    let has_idle_certificates = match &broker.kind {
        BrokerKind::Mqtt(mqtt) => is_clear && (mqtt.ca_pem.is_some() || mqtt.client_cert.is_some()),
        BrokerKind::Nats(_) => false,
    };
    let secret_in_clear = secret.filter(|_| is_clear && is_far);
    applying([
        (
            secret_in_clear.is_some(),
            ".url",
            format!("the {} crosses the network unencrypted; use {encrypted}", secret_in_clear.unwrap_or_default()),
        ),
        (has_idle_certificates, "", "certificates apply to mqtts and wss only and are not used".to_owned()),
    ])
}

fn of_webhook(webhook: &Webhook) -> impl Iterator<Item = Warning> {
    let settings = &webhook.settings;
    let is_clear = !settings.address.is_encrypted();
    let is_far = !settings.address.url().host_str().is_some_and(is_local);
    let has_secrets = settings.login.is_some() || !settings.headers.is_empty();
    applying([
        (is_clear && is_far && has_secrets, ".url", "the login crosses the network unencrypted; use https".to_owned()),
        (is_clear && settings.ca_pem.is_some(), "", "ca_file applies to https only and is not used".to_owned()),
    ])
}

fn applying<const N: usize>(warnings: [(bool, &'static str, String); N]) -> impl Iterator<Item = Warning> {
    warnings.into_iter().filter(|(applies, ..)| *applies).map(|(_, key, text)| (key, text))
}

/// Returns whether a host of a URL is this machine.
fn is_local(host: &str) -> bool {
    host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
