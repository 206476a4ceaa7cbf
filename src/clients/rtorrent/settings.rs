//! Settings of one rTorrent: its address and further columns.
//!
//! Texts of a user are parsed here, once. An [`Endpoint`] contains no credentials and may be shown
//! anywhere. An [`ExtraColumn`] is one of a fixed list of getters, because rTorrent *executes* whatever
//! command a column holds.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use super::methods::COLUMNS;
pub use super::methods::{AllowedMethod, InvalidMethod};
use crate::clients::settings::DEFAULT_TIMEOUT;
use crate::model::ServerName;
use crate::tls::Trust;

/// Settings of one rTorrent.
///
/// Build on [`Settings::new`], which a later version may add to: `Settings { timeout, ..Settings::new(server, endpoint) }`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the server in the config.
    pub server: ServerName,
    /// Address of its RPC interface.
    pub endpoint: Endpoint,
    /// User for HTTP basic authentication.
    pub username: Option<String>,
    /// Password for HTTP basic authentication.
    pub password: Option<SecretString>,
    /// Which servers are trusted with TLS.
    pub trust: Trust,
    /// Limit for one exchange. Listings of many torrents get a little more.
    pub timeout: Duration,
    /// More columns, by the names that they have in `extra`.
    pub extra: BTreeMap<Arc<str>, ExtraColumn>,
    /// Methods that the command `rpc` may call.
    pub rpc: Vec<AllowedMethod>,
}

impl Settings {
    /// Returns settings without login, further columns or own authorities, with [`DEFAULT_TIMEOUT`].
    pub fn new(server: ServerName, endpoint: Endpoint) -> Self {
        Self {
            server,
            endpoint,
            username: None,
            password: None,
            trust: Trust::default(),
            timeout: DEFAULT_TIMEOUT,
            extra: BTreeMap::new(),
            rpc: Vec::new(),
        }
    }
}

/// Address of an rTorrent. Its text holds no credentials and no query.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Endpoint {
    /// SCGI on a unix socket.
    Unix(PathBuf),
    /// SCGI on a TCP port.
    Scgi {
        /// A name or an address; one of IPv6 without brackets.
        host: String,
        /// The port, which has no default.
        port: u16,
    },
    /// HTTP or HTTPS, with the path of the RPC interface.
    Http(Url),
}

const FORMS: &str = "write `unix:///path/to/rpc.sock`, `scgi://host:5000` or `http://host/RPC2`";

/// Reason why a text is not an [`Endpoint`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidEndpoint {
    /// Not a URL at all.
    #[error("is not a URL; {FORMS}")]
    NotAnAddress,
    /// A scheme other than unix, scgi, http and https.
    #[error("unknown scheme `{0}`; {FORMS}")]
    Scheme(String),
    /// A unix socket with a host, or with a relative path.
    #[error("a unix socket needs an absolute path and no host, with three slashes: `unix:///path/to/rpc.sock`")]
    UnixPath,
    /// SCGI with a path in place of a host, as some programs write a unix socket.
    #[error("SCGI on a unix socket is written `unix://` and its path, with three slashes: `unix:///path/to/rpc.sock`")]
    ScgiPath,
    /// SCGI without a port, or with more than a host and a port.
    #[error("SCGI needs a host and a port and nothing else: `scgi://host:5000`")]
    Scgi,
    /// A user or password in the URL, which would be shown.
    #[error("the URL contains a user name or password; move them to `username` and `password_file`")]
    Credentials,
    /// HTTP without a host, or with a fragment.
    #[error("an http address has a host, a path (usually `/RPC2`) and no `#`: `http://host/RPC2`")]
    Http,
}

impl Endpoint {
    /// Parses `unix:///path`, `scgi://host:port` or `http(s)://host[:port]/path`.
    ///
    /// # Errors
    /// The text is not such an address. Errors never repeat it: it may contain a password.
    pub fn parse(text: &str) -> Result<Self, InvalidEndpoint> {
        if let Some(path) = text.strip_prefix("unix://") {
            let is_path = path.starts_with('/') && path.len() > 1 && !path.contains('\0');
            return is_path.then(|| Self::Unix(PathBuf::from(path))).ok_or(InvalidEndpoint::UnixPath);
        }
        let after_scgi = text.strip_prefix("scgi:").map(|rest| rest.strip_prefix("//").unwrap_or(rest));
        if after_scgi.is_some_and(|rest| rest.starts_with('/') && rest.len() > 1) {
            return Err(InvalidEndpoint::ScgiPath);
        }
        // A bare path can only be a socket.
        if text.starts_with('/') {
            return Err(InvalidEndpoint::UnixPath);
        }
        let url = Url::parse(text).map_err(|_| InvalidEndpoint::NotAnAddress)?;
        // An endpoint is shown in logs and on the status page (I14).
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidEndpoint::Credentials);
        }
        match url.scheme() {
            "unix" => Err(InvalidEndpoint::UnixPath),
            "scgi" => {
                let is_bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
                match (url.host_str(), url.port()) {
                    (Some(host), Some(port)) if is_bare && !host.is_empty() && port != 0 => {
                        // The brackets of an IPv6 address are the URL's, not the socket's.
                        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                        Ok(Self::Scgi { host, port })
                    }
                    _ => Err(InvalidEndpoint::Scgi),
                }
            }
            "http" | "https" if url.host_str().is_some() && url.fragment().is_none() => Ok(Self::Http(url)),
            "http" | "https" => Err(InvalidEndpoint::Http),
            other => Err(InvalidEndpoint::Scheme(other.chars().take(20).collect())),
        }
    }

    /// Returns whether anybody on the network can reach it without a login.
    ///
    /// SCGI has no password, and whoever can connect can run programs: only this machine should.
    pub fn is_open_to_the_network(&self) -> bool {
        match self {
            Self::Scgi { host, .. } => {
                let is_loopback = host.parse::<IpAddr>().map_or(host == "localhost", |address| address.is_loopback());
                !is_loopback
            }
            // A socket has permissions, and a web server can ask for a password.
            Self::Unix(_) | Self::Http(_) => false,
        }
    }

    /// Returns the host that the address names; `None` for a unix socket.
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Unix(_) => None,
            Self::Scgi { host, .. } => Some(host),
            Self::Http(url) => url.host_str(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(out, "unix://{}", path.display()),
            Self::Scgi { host, port } if host.contains(':') => write!(out, "scgi://[{host}]:{port}"),
            Self::Scgi { host, port } => write!(out, "scgi://{host}:{port}"),
            Self::Http(url) => {
                // A query may hold a token.
                let mut shown = url.clone();
                shown.set_query(None);
                write!(out, "{shown}")
            }
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// A further column of a listing: a getter of one field, or `d.custom=KEY`.
///
/// Created by [`ExtraColumn::parse`] alone, so its text is safe to send.
#[derive(Clone, Debug, derive_more::Display, PartialEq, Eq)]
#[display("{method}={}", key.as_deref().unwrap_or_default())]
pub struct ExtraColumn {
    method: &'static str,
    /// Key of `d.custom`.
    key: Option<String>,
}

/// Reason why a text is not an [`ExtraColumn`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidColumn {
    /// A `d.custom` without a key, or with other characters in it.
    #[error("the key of `d.custom=` has the letters A-Z a-z 0-9 _ . - and at least one: `d.custom=my-tag`")]
    Key,
    /// An argument to a getter that takes none.
    #[error("only one value can be read, without an argument: write it like `d.throttle_name=`")]
    Argument,
    /// A command that is not one of the getters.
    #[error(
        "`{0}` is not among the values that can be read (like `d.throttle_name=`, `d.ratio=`, `d.custom2=` or `d.custom=my-tag`); \
         commands and expensive ones are left out on purpose"
    )]
    NotAReader(String),
}

impl ExtraColumn {
    /// Parses `d.throttle_name=` or `d.custom=tag`; the `=` of a bare name may be left out.
    ///
    /// # Errors
    /// The text names no getter, or has an argument that it does not take.
    pub fn parse(text: &str) -> Result<Self, InvalidColumn> {
        let (name, argument) = text.split_once('=').unwrap_or((text, ""));
        if name == "d.custom" {
            let is_key = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-');
            return if !argument.is_empty() && argument.bytes().all(is_key) {
                Ok(Self { method: "d.custom", key: Some(argument.to_owned()) })
            } else {
                Err(InvalidColumn::Key)
            };
        }
        // A list of what is allowed: rTorrent runs whatever command stands in a column, programs included.
        let Some(method) = COLUMNS.iter().find(|reader| **reader == name) else {
            let shown = name.chars().filter(|c| !c.is_control()).take(60).collect();
            return Err(InvalidColumn::NotAReader(shown));
        };
        if argument.is_empty() { Ok(Self { method, key: None }) } else { Err(InvalidColumn::Argument) }
    }

    /// Returns the name of the command, which not every version of rTorrent has.
    pub(super) fn method(&self) -> &'static str {
        self.method
    }

    /// Returns the argument of the command after the torrent.
    pub(super) fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_in_three_forms_and_shown_the_same() {
        for text in [
            "unix:///run/rtorrent/rpc.sock",
            "scgi://localhost:5000",
            "scgi://[::1]:5000",
            "http://host/RPC2",
            "https://host:8443/some/RPC2",
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Endpoint::parse("http://host/RPC2?token=x").unwrap().to_string(), "http://host/RPC2");
    }

    #[test]
    fn a_wrong_address_is_refused_with_what_would_be_right_and_without_its_password() {
        for (text, needle) in [
            ("", "unix:///path"),
            ("/run/rpc.sock", "unix:///path"),
            ("unix://run/rpc.sock", "three slashes"),
            ("unix:/run/rpc.sock", "three slashes"),
            ("scgi://host", "scgi://host:5000"),
            ("scgi:///run/rtorrent/rpc.sock", "`unix:///path"),
            ("scgi:/run/rtorrent/rpc.sock", "`unix:///path"),
            ("scgi:////run/rtorrent/rpc.sock", "`unix:///path"),
            ("/run/rtorrent/rpc.sock", "`unix:///path"),
            ("scgi://host:5000/RPC2", "nothing else"),
            ("ftp://host/", "ftp"),
            ("http://u:hunter2@host/RPC2", "password_file"),
            ("scgi://u:hunter2@host:5000", "password_file"),
        ] {
            let said = Endpoint::parse(text).unwrap_err().to_string();
            assert!(said.contains(needle) && !said.contains("hunter2"), "{text}: {said}");
        }
    }

    #[test]
    fn plain_scgi_to_another_machine_is_known_as_such() {
        for (text, expected) in [
            ("unix:///x", false),
            ("scgi://127.0.0.1:1", false),
            ("scgi://[::1]:1", false),
            ("scgi://localhost:1", false),
            ("scgi://10.0.0.7:1", true),
            ("scgi://seedbox:1", true),
            ("http://seedbox/RPC2", false),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().is_open_to_the_network(), expected, "{text}");
        }
    }

    #[test]
    fn rule_7_a_column_is_one_of_a_fixed_list_of_readers_and_executes_nothing() {
        for (text, shown) in [
            ("d.throttle_name=", "d.throttle_name="),
            ("d.throttle_name", "d.throttle_name="),
            ("d.custom=my-tag_1.x", "d.custom=my-tag_1.x"),
            ("d.custom5=", "d.custom5="),
        ] {
            assert_eq!(ExtraColumn::parse(text).unwrap().to_string(), shown);
        }
        for bad in [
            "",
            "=",
            "d.erase=",
            "d.start=",
            "d.priority.set=3",
            "d.custom=",
            "d.custom=a,b",
            "d.custom=$execute.capture={id}",
            "d.custom=\"x\"",
            "d.custom=a b",
            "d.custom=ä",
            "d.custom.items=",
            "d.bitfield=",
            "d.chunks_seen=",
            "d.free_diskspace=",
            "d.throttle_name=x",
            "d.throttle_name=$d.erase=",
            "execute.throw=rm",
            "cat=$d.name=",
            "d.name=\n",
            " d.name=",
            "system.pid=",
        ] {
            assert!(ExtraColumn::parse(bad).is_err(), "{bad}");
        }
    }
}
