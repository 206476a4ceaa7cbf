//! Settings of one MQTT broker.
//!
//! Every value may go into a topic or onto the network as it is. Errors state what is wrong and what
//! would be right, and never repeat a text that may contain a password.
//!
//! Pure: files and network are left to others.

use secrecy::SecretString;
use url::Url;

pub use super::client_id::ClientIdTemplate;
use super::client_id::{Role, client_id};
use crate::model::{Retain, ServerName, SinkName};
pub use crate::sinks::broker::prefix::Prefix;
use crate::sinks::broker::url::{self as broker_url, Endpoint};
pub use crate::sinks::home_assistant::{HomeAssistant, Limits};
use crate::sinks::invalid::{InvalidText, invalid};
pub use crate::tls::ClientCert;
use crate::tls::Trust;

/// Settings of one broker.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the sink.
    pub name: SinkName,
    /// Name of the bridge, which follows the rules of a server's name: a level of its own topics, part of its client ids.
    pub instance: String,
    /// Address of the broker.
    pub url: BrokerUrl,
    /// User to log in as.
    pub username: Option<String>,
    /// Password to log in with.
    pub password: Option<SecretString>,
    /// Which servers are trusted with TLS.
    pub trust: Trust,
    /// Certificate of the bridge.
    pub client_cert: Option<ClientCert>,
    /// Client ids, where the broker restricts them.
    pub client_id: Option<ClientIdTemplate>,
    /// Version of MQTT.
    pub version: Version,
    /// First levels of every topic.
    pub prefix: Prefix,
    /// Servers whose events are published here and whose commands are accepted from here.
    pub servers: Vec<ServerName>,
    /// Which torrents' states the broker retains.
    pub retain: Retain,
    /// `None`: nothing is published for Home Assistant.
    pub home_assistant: Option<HomeAssistant>,
}

impl Settings {
    /// Returns the client id of a connection.
    pub(super) fn client_id(&self, role: Role) -> String {
        client_id(self.client_id.as_ref(), &self.instance, &self.name, role)
    }
}

/// Version of MQTT to speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// 5, and 3.1.1 if the broker refuses it.
    #[default]
    Auto,
    /// 5 only.
    V5,
    /// 3.1.1 only.
    V311,
}

impl Version {
    /// Versions by their names in a config.
    pub const NAMES: [(&str, Self); 3] = [("auto", Self::Auto), ("5", Self::V5), ("3.1.1", Self::V311)];
}

/// Transport of the MQTT connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// `mqtt://`
    Tcp,
    /// `mqtts://`
    Tls,
    /// `ws://`
    WebSocket,
    /// `wss://`
    SecureWebSocket,
}

impl Transport {
    /// Returns whether TLS is spoken.
    pub fn is_encrypted(self) -> bool {
        matches!(self, Self::Tls | Self::SecureWebSocket)
    }

    fn scheme_and_port(self) -> (&'static str, u16) {
        match self {
            Self::Tcp => ("mqtt", 1883),
            Self::Tls => ("mqtts", 8883),
            Self::WebSocket => ("ws", 80),
            Self::SecureWebSocket => ("wss", 443),
        }
    }
}

/// Address of a broker. Contains no user name and no password, and is shown without its query.
#[derive(Clone, derive_more::Debug, derive_more::Display, PartialEq, Eq, Hash)]
#[display("{}://{endpoint}{}", transport.scheme_and_port().0, path.as_deref().unwrap_or_default())]
pub struct BrokerUrl {
    /// Transport that the scheme names.
    pub transport: Transport,
    /// Host and port.
    pub endpoint: Endpoint,
    /// Path of a WebSocket, which begins with `/`; other transports have none.
    pub path: Option<String>,
    /// What follows `?` in the URL of a WebSocket: a token, for one.
    #[debug("{}", query.as_ref().map_or("None", |_| "***"))]
    pub query: Option<String>,
}

impl BrokerUrl {
    /// Parses `mqtt://host[:1883]`, `mqtts://host[:8883]`, `ws://host[:80][/path][?query]` or `wss://host[:443][/path][?query]`.
    ///
    /// A WebSocket without a path gets `/mqtt`, which most brokers expect.
    ///
    /// # Errors
    /// The text is not such a URL. Errors never repeat it.
    pub fn parse(text: &str) -> Result<Self, InvalidText> {
        let transport = match text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase()).as_deref() {
            Some("mqtt" | "tcp") => Transport::Tcp,
            Some("mqtts" | "ssl") => Transport::Tls,
            Some("ws") => Transport::WebSocket,
            Some("wss") => Transport::SecureWebSocket,
            _ => {
                return Err(invalid(
                    "unknown scheme; write mqtt://host, mqtts://host, ws://host/path or wss://host/path",
                ));
            }
        };
        let (endpoint, url) = broker_url::parse(text, transport.scheme_and_port().1)?;
        let is_web = matches!(transport, Transport::WebSocket | Transport::SecureWebSocket);
        if url.fragment().is_some() || (url.query().is_some() && !is_web) {
            let wrong = "the broker's URL has a `?` or `#` part, which MQTT does not know";
            return Err(invalid(format!("{wrong}: remove it; `?` goes with ws:// and wss://")));
        }
        let before_query = text.split('?').next().unwrap_or(text);
        let path = path(&url, transport, before_query.ends_with('/'))?;
        Ok(Self { transport, endpoint, path, query: url.query().map(str::to_owned) })
    }

    /// Returns the whole URL, with what may be a secret in it.
    pub(super) fn with_query(&self) -> String {
        let query = self.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
        format!("{self}{query}")
    }
}

fn path(url: &Url, transport: Transport, ends_with_slash: bool) -> Result<Option<String>, InvalidText> {
    // `Url` shows `ws://host` and `ws://host/` alike, and only the former leaves the path to us.
    match (transport, url.path()) {
        (Transport::Tcp | Transport::Tls, "" | "/") => Ok(None),
        (Transport::Tcp | Transport::Tls, _) => {
            let wrong = "the broker's URL has a path, which only ws:// and wss:// know";
            Err(invalid(format!("{wrong}: remove what follows the port")))
        }
        (Transport::WebSocket | Transport::SecureWebSocket, "" | "/") if !ends_with_slash => {
            Ok(Some("/mqtt".to_owned()))
        }
        (Transport::WebSocket | Transport::SecureWebSocket, path) => Ok(Some(path.to_owned())),
    }
}

#[cfg(test)]
impl Settings {
    /// Settings of a broker without a login and without servers.
    pub fn of_tests(url: &str) -> Self {
        Self {
            name: SinkName::parse("b").unwrap(),
            instance: "main".to_owned(),
            url: BrokerUrl::parse(url).unwrap(),
            username: None,
            password: None,
            trust: Trust::default(),
            client_cert: None,
            client_id: None,
            version: Version::Auto,
            prefix: Prefix::default(),
            servers: Vec::new(),
            retain: Retain::All,
            home_assistant: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_url_shows_every_default_and_parses_back() {
        for (text, shown) in [
            ("mqtt://localhost", "mqtt://localhost:1883"),
            ("mqtt://localhost:1884/", "mqtt://localhost:1884"),
            ("MQTT://Broker.Example", "mqtt://broker.example:1883"),
            ("tcp://10.0.0.1", "mqtt://10.0.0.1:1883"),
            ("mqtts://broker.example", "mqtts://broker.example:8883"),
            ("mqtt://[::1]:1883", "mqtt://[::1]:1883"),
            ("ws://host", "ws://host:80/mqtt"),
            ("ws://host:9001/", "ws://host:9001/"),
            ("wss://host/a/b", "wss://host:443/a/b"),
            ("wss://[fe80::1]:8084", "wss://[fe80::1]:8084/mqtt"),
        ] {
            let url = BrokerUrl::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(url.to_string(), shown);
            assert_eq!(BrokerUrl::parse(shown).unwrap(), url);
        }
    }

    #[test]
    fn a_query_goes_to_the_broker_and_is_shown_nowhere() {
        for (text, whole) in [
            ("wss://host/a?token=hunter2", "wss://host:443/a?token=hunter2"),
            ("ws://host?token=hunter2", "ws://host:80/mqtt?token=hunter2"),
            ("ws://host/?x=/&token=hunter2/", "ws://host:80/?x=/&token=hunter2/"),
        ] {
            let url = BrokerUrl::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(url.with_query(), whole);
            assert!(!format!("{url} {url:?}").contains("hunter2"), "{url} {url:?}");
        }
    }

    #[test]
    fn an_invalid_broker_url_is_refused_with_its_reason() {
        for (text, expected) in [
            ("", "unknown scheme"),
            ("localhost", "unknown scheme"),
            ("localhost:1883", "unknown scheme"),
            ("http://host", "unknown scheme"),
            ("mqtt://", "names no host"),
            ("mqtt://:1883", "names no host"),
            ("mqtt://host:port", "port"),
            ("mqtt://host:0", "port"),
            ("mqtt://host:70000", "port"),
            ("mqtt://[::1", "plain name"),
            ("mqtt://bröker", "plain name"),
            ("mqtt://user:secret@host", "user name"),
            ("mqtt://user@host", "user name"),
            ("ws://:secret@host/mqtt", "user name"),
            ("mqtt://host/topic", "has a path"),
            ("mqtts://host?x=1", "`?` or `#`"),
            ("mqtt://host/?x=1", "`?` or `#`"),
            ("ws://host/mqtt#x", "`?` or `#`"),
        ] {
            let error = BrokerUrl::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_accepted_broker_url_parses_back_and_no_error_shows_a_secret(rest in "[ -~]{0,40}", scheme in "mqtts?|wss?") {
            if let Ok(url) = BrokerUrl::parse(&format!("{scheme}://{rest}")) {
                proptest::prop_assert_eq!(BrokerUrl::parse(&url.with_query()), Ok(url));
            }
            if let Err(error) = BrokerUrl::parse(&format!("{scheme}://user:hunter2@{rest}")) {
                let snapshot = format!("{error} {error:?}");
                proptest::prop_assert!(!snapshot.contains("hunter2"));
            }
        }
    }
}
