//! Valid settings that are likely a mistake.

use std::net::IpAddr;

use super::checked::{Broker, BrokerKind, Client, Config, Server, Webhook};
use crate::clients::rtorrent::settings::{Endpoint, Settings};
use crate::sinks::nats::settings::Login;

/// Returns what the owner of a valid config should know, one sentence each.
pub fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Warnings(Vec::new());
    for (name, server) in &config.servers {
        if let Client::Rtorrent(settings) = &server.client {
            warnings.note_rtorrent(&format!("servers.{name}"), settings, server, config);
        }
    }
    for (name, broker) in &config.brokers {
        warnings.note_broker(&format!("brokers.{name}"), broker);
    }
    for (name, webhook) in &config.webhooks {
        warnings.note_webhook(&format!("webhooks.{name}"), webhook);
    }
    if let Some(listen) = config.http.listen {
        let text = format!(
            "{listen} is open to the network, and everybody who reaches it can read everything without a login"
        );
        warnings.note(!listen.ip().is_loopback(), "http", "listen", &text);
    }
    warnings.0
}

struct Warnings(Vec<String>);

impl Warnings {
    fn note(&mut self, applies: bool, table: &str, key: &str, text: &str) {
        if applies {
            self.0.push(format!("{table}.{key}: {text}"));
        }
    }

    fn note_rtorrent(&mut self, table: &str, settings: &Settings, server: &Server, config: &Config) {
        let Settings { endpoint, username, password, ca_pem, .. } = settings;
        let is_http = matches!(endpoint, Endpoint::Http(_));
        let is_clear = matches!(endpoint, Endpoint::Http(url) if url.scheme() == "http");
        let is_far = endpoint.host().is_some_and(|host| !is_local(host));
        let text = "SCGI has no login, and everybody who reaches that port can run programs there; \
                    use a unix socket, or http(s) with a login";
        self.note(endpoint.is_open_to_the_network(), table, "url", text);
        self.note(!is_http && username.is_some(), table, "username", "applies to http(s) only and is not used");
        self.note(!is_http && ca_pem.is_some(), table, "ca_file", "applies to https only and is not used");
        self.note(is_clear && is_far && password.is_some(), table, "url", &crosses("password", "https"));
        let hooks_listen = config.http.hooks_listen.ip();
        let lacks_address = server.hooks.as_ref().is_some_and(|hooks| hooks.address.is_none());
        let text = format!(
            "rTorrent runs on another machine and would notify its own {hooks_listen}; \
             write http.hooks_listen and hooks_address as it reaches them"
        );
        self.note(lacks_address && hooks_listen.is_loopback() && is_far, table, "hooks", &text);
    }

    fn note_broker(&mut self, table: &str, broker: &Broker) {
        match &broker.kind {
            BrokerKind::Mqtt(mqtt) => {
                let is_clear = !mqtt.url.transport.is_encrypted();
                let is_far = !is_local(&mqtt.url.endpoint.host);
                let text = crosses("password", "mqtts or wss");
                self.note(is_clear && is_far && mqtt.password.is_some(), table, "url", &text);
                let text = "applies to mqtts and wss only and is not used";
                self.note(is_clear && mqtt.ca_pem.is_some(), table, "ca_file", text);
                self.note(is_clear && mqtt.client_cert.is_some(), table, "cert_file", text);
            }
            BrokerKind::Nats(nats) => {
                let secret = match nats.login {
                    Login::User { .. } => Some("password"),
                    Login::Token(_) => Some("token"),
                    // A seed never crosses the network: it signs.
                    Login::Nobody | Login::Nkey(_) | Login::Creds { .. } => None,
                };
                let is_exposed = nats.urls.iter().any(|url| !url.needs_tls && !is_local(&url.endpoint.host));
                // Certificates without tls:// are no mistake: a NATS server may ask for TLS all the same.
                self.note(is_exposed && secret.is_some(), table, "url", &crosses(secret.unwrap_or_default(), "tls"));
            }
        }
    }

    fn note_webhook(&mut self, table: &str, webhook: &Webhook) {
        let settings = &webhook.settings;
        let is_clear = !settings.address.is_encrypted();
        let is_far = !settings.address.url().host_str().is_some_and(is_local);
        let has_secrets = settings.login.is_some() || !settings.headers.is_empty();
        self.note(is_clear && is_far && has_secrets, table, "url", &crosses("login", "https"));
        self.note(is_clear && settings.ca_pem.is_some(), table, "ca_file", "applies to https only and is not used");
    }
}

fn crosses(secret: &str, encrypted: &str) -> String {
    format!("the {secret} crosses the network unencrypted; use {encrypted}")
}

/// Returns whether a host of a URL is this machine.
fn is_local(host: &str) -> bool {
    host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
