//! Host and port of a broker's URL, which the URLs of all brokers have in common.

use std::fmt;

use url::Url;

use crate::sinks::invalid::{InvalidText, invalid};

/// A host and a port, shown as in a URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// A name in lower case or an address; one of IPv6 without brackets.
    pub host: String,
    /// The port in the URL, or else the default of the protocol.
    pub port: u16,
}

const NO_HOST: &str = "the URL names no host: write it as scheme://host:port";
const PORT: &str = "the port in the URL is not a number from 1 to 65535";
const HOST: &str = "the host in the URL is not a plain name or address: letters, digits, `.`, `-` and `_`, or [IPv6]";

/// Parses a URL and checks host, port and login; scheme, path and query are left to the caller.
///
/// # Errors
/// Host or port are missing or wrong, or there is a login. Errors never repeat `text`: it may contain a password.
pub fn parse(text: &str, default_port: u16) -> Result<(Endpoint, Url), InvalidText> {
    let url = Url::parse(text).map_err(|error| match error {
        url::ParseError::EmptyHost => invalid(NO_HOST),
        url::ParseError::InvalidPort => invalid(PORT),
        url::ParseError::IdnaError
        | url::ParseError::InvalidIpv4Address
        | url::ParseError::InvalidIpv6Address
        | url::ParseError::InvalidDomainCharacter => invalid(HOST),
        _ => invalid("the URL cannot be read: write it as scheme://host:port"),
    })?;
    // A login in a URL would be shown in logs, in `check` and with the sink's health (I14).
    if !url.username().is_empty() || url.password().is_some() {
        let wrong = "the URL contains a user name, password or token";
        return Err(invalid(format!("{wrong}: move them to `username` and `password_file`")));
    }
    let port = match url.port() {
        Some(0) => return Err(invalid(PORT)),
        port => port.unwrap_or(default_port),
    };
    Ok((Endpoint { host: host(&url)?, port }, url))
}

fn host(url: &Url) -> Result<String, InvalidText> {
    let host = url.host_str().unwrap_or_default();
    if host.is_empty() {
        return Err(invalid(NO_HOST));
    }
    // `Url` neither checks nor lower-cases the host of a scheme that it does not know, such as `mqtt`.
    if let Some(v6) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return v6.parse::<std::net::Ipv6Addr>().map(|v6| v6.to_string()).map_err(|_| invalid(HOST));
    }
    let is_plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    if is_plain { Ok(host.to_ascii_lowercase()) } else { Err(invalid(HOST)) }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(out, "[{}]:{}", self.host, self.port),
            false => write!(out, "{}:{}", self.host, self.port),
        }
    }
}
