//! Host and port of a broker's URL, which the URLs of all brokers have in common.

use std::fmt;

use url::Url;

/// A host and a port, shown as they stand in a URL.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// A name in lower case or an address; one of IPv6 without brackets.
    pub host: String,
    /// The port in the URL, or else the default of the protocol.
    pub port: u16,
}

/// Reason why a URL names no usable host and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidEndpoint {
    /// No host.
    #[error("the URL names no host: write it as scheme://host:port")]
    NoHost,
    /// A host with other characters than names and addresses have.
    #[error("the host in the URL is not a plain name or address: letters, digits, `.`, `-` and `_`, or [IPv6]")]
    Host,
    /// A port out of range.
    #[error("the port in the URL is not a number from 1 to 65535")]
    Port,
    /// A login in the URL, which would be shown.
    #[error("the URL contains a user name, password or token: move them to `username` and `password_file`")]
    Credentials,
    /// Any other fault of syntax.
    #[error("the URL cannot be read: write it as scheme://host:port")]
    Unreadable,
}

/// Parses a URL and checks host, port and login; scheme, path and query are left to the caller.
///
/// # Errors
/// Host or port are missing or wrong, or there is a login. Errors never repeat `text`: it may contain a password.
pub fn parse(text: &str, default_port: u16) -> Result<(Endpoint, Url), InvalidEndpoint> {
    let url = Url::parse(text).map_err(|error| match error {
        url::ParseError::EmptyHost => InvalidEndpoint::NoHost,
        url::ParseError::InvalidPort => InvalidEndpoint::Port,
        url::ParseError::IdnaError
        | url::ParseError::InvalidIpv4Address
        | url::ParseError::InvalidIpv6Address
        | url::ParseError::InvalidDomainCharacter => InvalidEndpoint::Host,
        _ => InvalidEndpoint::Unreadable,
    })?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(InvalidEndpoint::Credentials);
    }
    let port = match url.port() {
        Some(0) => return Err(InvalidEndpoint::Port),
        port => port.unwrap_or(default_port),
    };
    Ok((Endpoint { host: host(&url)?, port }, url))
}

fn host(url: &Url) -> Result<String, InvalidEndpoint> {
    let host = url.host_str().unwrap_or_default();
    if host.is_empty() {
        return Err(InvalidEndpoint::NoHost);
    }
    if let Some(v6) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return v6.parse::<std::net::Ipv6Addr>().map(|v6| v6.to_string()).map_err(|_| InvalidEndpoint::Host);
    }
    let is_plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    if is_plain { Ok(host.to_ascii_lowercase()) } else { Err(InvalidEndpoint::Host) }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(out, "[{}]:{}", self.host, self.port),
            false => write!(out, "{}:{}", self.host, self.port),
        }
    }
}
