//! Recognition of another service that answers at the port of a broker.
//!
//! An attempt that ends without a reason leaves the operator with the words of a protocol library. A second connection
//! to the same port tells more: it waits for a greeting, and then sends a request for a web page, which a broker answers by
//! closing the connection.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::url::Endpoint;
use crate::connect::connect;

/// Maximum time for the connection, and for the answer to the request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum time for a greeting, which a server that sends one sends at once.
const GREETING_TIMEOUT: Duration = Duration::from_millis(500);
const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
/// First byte of a TLS alert (RFC 8446 §5.1).
const TLS_ALERT: u8 = 21;

/// A service, as its first bytes show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherService {
    /// A web server.
    Http,
    /// An SSH server.
    Ssh,
    /// A NATS server.
    Nats,
    /// A mail or FTP server.
    Mail,
    /// Anything that speaks TLS.
    Tls,
    /// Something that closes the connection without a word: a broker or rTorrent, which do not understand the request, or a
    /// server that accepts no connections from here.
    Closes,
}

impl OtherService {
    /// Connects and looks; `None` if nothing can be said.
    pub async fn at(endpoint: &Endpoint) -> Option<Self> {
        let connecting = connect(&endpoint.host, endpoint.port);
        let mut stream = timeout(ANSWER_TIMEOUT, connecting).await.ok()?.ok()?;
        match first_bytes(&mut stream, GREETING_TIMEOUT).await {
            Some(greeting) => return Self::of(&greeting),
            // One that closes at once may do so before this is written.
            None => stream.write_all(REQUEST).await.unwrap_or_default(),
        }
        Self::of(&first_bytes(&mut stream, ANSWER_TIMEOUT).await?)
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        Some(match bytes {
            [] => Self::Closes,
            [TLS_ALERT, ..] => Self::Tls,
            _ if bytes.starts_with(b"HTTP/") => Self::Http,
            _ if bytes.starts_with(b"SSH-") => Self::Ssh,
            _ if bytes.starts_with(b"INFO ") => Self::Nats,
            _ if bytes.starts_with(b"220") => Self::Mail,
            _ => return None,
        })
    }

    /// Returns what answers, as the end of a sentence with what to do; `None` for [`Self::Closes`], which each protocol words
    /// for itself.
    pub fn description(self) -> Option<&'static str> {
        Some(match self {
            Self::Http => "an HTTP server answers there",
            Self::Ssh => "an SSH server answers there",
            Self::Nats => "a NATS server answers there",
            Self::Mail => "a mail or FTP server answers there",
            Self::Tls => "the port speaks TLS",
            Self::Closes => return None,
        })
    }
}

/// Returns the first bytes that come, none if the connection ends; `None` if nothing comes in time.
async fn first_bytes(stream: &mut TcpStream, limit: Duration) -> Option<Vec<u8>> {
    let mut bytes = [0; 16];
    // A reset is an end, too.
    let count = timeout(limit, stream.read(&mut bytes)).await.ok()?.unwrap_or(0);
    Some(bytes[..count].to_vec())
}
