//! What is allowed and still likely a mistake.

use std::net::IpAddr;

use url::{Host, Url};

use super::checked::Config;

/// Things in a valid config that its owner should know of, one sentence each.
pub fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, server) in &config.servers {
        let is_http = server.url.starts_with("http");
        if server.url.starts_with("scgi:") && !is_local(&server.url) {
            warnings.push(format!(
                "servers.{name}.url: SCGI has no login, and whoever reaches that port can run programs there; \
                 use a unix socket, or http(s) with a login"
            ));
        }
        if !is_http && (server.username.is_some() || server.ca_pem.is_some()) {
            warnings
                .push(format!("servers.{name}: username, password and ca_file are for http(s); nothing reads them"));
        }
        if server.url.starts_with("http:") && server.password.is_some() && !is_local(&server.url) {
            warnings.push(format!("servers.{name}.url: the password crosses the network in clear; use https"));
        }
    }
    for (name, broker) in &config.brokers {
        let is_clear = broker.url.starts_with("mqtt:") || broker.url.starts_with("ws:");
        if is_clear && broker.password.is_some() && !is_local(&broker.url) {
            warnings.push(format!("brokers.{name}.url: the password crosses the network in clear; use mqtts or wss"));
        }
        if is_clear && (broker.ca_pem.is_some() || broker.client_auth.is_some()) {
            warnings.push(format!("brokers.{name}: certificates are for mqtts and wss; nothing reads them"));
        }
    }
    if let Some(listen) = config.http.listen.filter(|listen| !listen.ip().is_loopback()) {
        warnings.push(format!("http.listen: {listen} is open to the network, and the pages have no login"));
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
