//! What is allowed and still likely a mistake.

use std::net::IpAddr;

use url::{Host, Url};

use super::checked::{BrokerKind, Config};
use crate::clients::rtorrent::settings::Endpoint;
use crate::sinks::mqtt::settings::BrokerUrl;
use crate::sinks::nats::settings::Login;

/// Things in a valid config that its owner should know of, one sentence each.
pub fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    let rtorrents = config.servers.iter().filter_map(|(name, server)| Some((name, server.rtorrent()?)));
    for (name, server) in rtorrents {
        let is_http = server.url.starts_with("http");
        if Endpoint::parse(&server.url).is_ok_and(|endpoint| endpoint.is_open_to_the_network()) {
            warnings.push(format!(
                "servers.{name}.url: SCGI has no login, and whoever reaches that port can run programs there; \
                 use a unix socket, or http(s) with a login"
            ));
        }
        if !is_http && (server.username.is_some() || server.ca_pem.is_some()) {
            warnings
                .push(format!("servers.{name}: username, password and ca_file are for http(s); nothing reads them"));
        }
        let is_far = Endpoint::parse(&server.url).is_ok_and(|endpoint| endpoint.is_open_to_the_network())
            || (is_http && !is_local(&server.url));
        if server.hooks.is_wanted
            && server.hooks.address.is_none()
            && config.http.hooks_listen.ip().is_loopback()
            && is_far
        {
            warnings.push(format!(
                "servers.{name}.hooks: rTorrent is on another machine and would ring at its own {}; \
                 write http.hooks_listen and hooks_address as it reaches them",
                config.http.hooks_listen.ip()
            ));
        }
        if server.url.starts_with("http:") && server.password.is_some() && !is_local(&server.url) {
            warnings.push(format!("servers.{name}.url: the password crosses the network in clear; use https"));
        }
    }
    for (name, broker) in &config.brokers {
        let (is_clear, encrypted) = match &broker.kind {
            BrokerKind::Mqtt { .. } => {
                (BrokerUrl::parse(&broker.url).is_ok_and(|url| !url.transport.is_encrypted()), "mqtts or wss")
            }
            BrokerKind::Nats(nats) => (nats.urls.iter().any(|url| url.starts_with("nats:")), "tls"),
        };
        let is_nats = matches!(broker.kind, BrokerKind::Nats(_));
        let has_token = matches!(&broker.kind, BrokerKind::Nats(nats) if matches!(nats.login, Login::Token(_)));
        let is_local = broker.url.split(", ").all(is_local);
        if is_clear && (broker.password.is_some() || has_token) && !is_local {
            let what = if has_token { "token" } else { "password" };
            warnings.push(format!("brokers.{name}.url: the {what} crosses the network in clear; use {encrypted}"));
        }
        // A NATS server may ask for TLS also where the URL does not.
        if is_clear && !is_nats && (broker.ca_pem.is_some() || broker.client_auth.is_some()) {
            warnings.push(format!("brokers.{name}: certificates are for mqtts and wss; nothing reads them"));
        }
    }
    for (name, webhook) in &config.webhooks {
        let endpoint = &webhook.endpoint;
        let address = endpoint.address.host();
        let has_secrets = endpoint.login.is_some() || !endpoint.headers.is_empty();
        if has_secrets && !endpoint.address.is_encrypted() && !is_local(address) {
            warnings.push(format!("webhooks.{name}.url: the login crosses the network in clear; use https"));
        }
        if endpoint.ca_pem.is_some() && !endpoint.address.is_encrypted() {
            warnings.push(format!("webhooks.{name}: ca_file is for https; nothing reads it"));
        }
    }
    if let Some(listen) = config.http.listen.filter(|listen| !listen.ip().is_loopback()) {
        warnings.push(format!(
            "http.listen: {listen} is open to the network, where whoever reaches it can read all without a login"
        ));
    }
    warnings
}

fn is_local(url: &str) -> bool {
    match Url::parse(url).as_ref().map(Url::host) {
        Ok(Some(Host::Ipv4(ip))) => ip.is_loopback(),
        Ok(Some(Host::Ipv6(ip))) => ip.is_loopback(),
        Ok(Some(Host::Domain(name))) => {
            name == "localhost" || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        }
        Ok(None) | Err(_) => false,
    }
}
