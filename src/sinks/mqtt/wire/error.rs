//! The reasons why an MQTT connection fails or ends, by what the caller can do.

use std::time::Duration;

use async_tungstenite::tungstenite;

use crate::model::{OutsideText, error_chain};
use crate::port::DeliverError;
use crate::tls;

use super::super::demands::Failure;

/// Delay after a quota of the broker was used up.
const QUOTA_RETRY: Duration = Duration::from_secs(30);

/// The reason of a connection that was closed without one.
pub const CLOSED: &str = "the broker closed the connection";
/// The reason of a connection whose client id another one took.
pub const TAKEN_OVER: &str =
    "another connection uses our client id: give each bridge its own `instance` or `client_id`";
pub(super) const SILENT: &str = "the broker does not answer";
pub(super) const UNREADABLE: &str = "the answer is not MQTT";
pub(super) const WILL_REFUSED: &str = "the broker refuses our last will";
pub(super) const SENT_TOO_LARGE: &str = "the broker finds a message too large";
pub(super) const BAD_PASSWORD: &str = "the broker refuses the user name or password: check `username` and `password`";
pub(super) const NOT_AUTHORIZED: &str =
    "the broker does not let us in: check `username`, `password` and its access rules";
pub(super) const BAD_CLIENT_ID: &str = "the broker refuses our client id: set `client_id` to one that it accepts";

/// A connection could not be made, or is over.
#[derive(Clone, Debug)]
pub struct ConnectionError {
    /// Kind, by which the caller decides.
    pub kind: ErrorKind,
    /// Text for people, without the broker's address.
    pub reason: String,
}

/// The kinds of [`ConnectionError`], by what the caller can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The broker said that it does not speak this version.
    VersionRefused,
    /// The broker has QoS 0 only, and so refuses a last will with QoS 1.
    QosRefused,
    /// The broker retains nothing, and so refuses a retained last will.
    RetainRefused,
    /// The connection was closed before CONNECT was sent, which says nothing about that.
    ClosedBefore,
    /// The broker closed the connection without a reason, in place of CONNACK.
    Closed,
    /// The broker closed the connection without a reason, after CONNACK.
    ClosedInUse,
    /// The broker sent bytes that are not MQTT.
    Unreadable,
    /// Nothing came in time.
    Silent,
    /// The broker rejected the size of something we sent.
    SentTooLarge,
    /// The broker sent something larger than we accept.
    ReceivedTooLarge,
    /// The broker put off a message, and may have taken a later one.
    Deferred,
    /// A quota of the broker is used up.
    Quota,
    /// Anything else; another attempt may succeed.
    Other,
}

impl ConnectionError {
    /// Returns an error of this kind.
    pub fn new(kind: ErrorKind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into() }
    }

    /// Returns an error that asks for nothing but another attempt.
    pub fn other(reason: impl Into<String>) -> Self {
        Self::new(ErrorKind::Other, reason)
    }

    /// Returns the same error for a connection that was established.
    pub fn once_connected(self) -> Self {
        // After CONNACK it is about something else than the protocol version or the last will.
        let kind = match self.kind {
            ErrorKind::Closed => ErrorKind::ClosedInUse,
            ErrorKind::Unreadable => ErrorKind::Other,
            kind => kind,
        };
        Self { kind, ..self }
    }

    /// Returns the same error for a connection on which nothing was sent yet.
    pub fn before_connect(self) -> Self {
        let kind = if self.kind == ErrorKind::Closed { ErrorKind::ClosedBefore } else { self.kind };
        Self { kind, ..self }
    }

    /// Whether the broker closed the connection without a reason.
    pub fn is_close(&self) -> bool {
        matches!(self.kind, ErrorKind::ClosedBefore | ErrorKind::Closed | ErrorKind::ClosedInUse)
    }

    /// Returns which demand may have been too much.
    pub fn failure(&self) -> Failure {
        match self.kind {
            // A broker that reads the CONNECT as one of MQTT 3.1.1 waits for the rest of it, or answers in that version.
            ErrorKind::VersionRefused | ErrorKind::Unreadable => Failure::Version,
            ErrorKind::Silent => Failure::Silent,
            ErrorKind::QosRefused => Failure::WillQos,
            ErrorKind::RetainRefused => Failure::WillRetain,
            ErrorKind::Closed => Failure::ClosedInHandshake,
            ErrorKind::ClosedInUse => Failure::ClosedInUse,
            ErrorKind::ClosedBefore
            | ErrorKind::SentTooLarge
            | ErrorKind::ReceivedTooLarge
            | ErrorKind::Deferred
            | ErrorKind::Quota
            | ErrorKind::Other => Failure::Explained,
        }
    }
}

impl From<ConnectionError> for DeliverError {
    fn from(ConnectionError { kind, reason }: ConnectionError) -> Self {
        let reason = OutsideText::from(reason);
        match kind {
            // The broker's quota needs time; a link that comes back at once would be refused again.
            ErrorKind::Deferred => Self::Deferred { reason, retry_after: Some(QUOTA_RETRY) },
            ErrorKind::Quota => Self::Unavailable { reason, retry_after: Some(QUOTA_RETRY), gave_reason: true },
            // Without a reason from the broker: it may have hung up over a message, so the quarantine counts it.
            _ => Self::Unavailable { reason, retry_after: None, gave_reason: false },
        }
    }
}

/// Returns the error of a connection that ended without a reason.
pub(super) fn closed() -> ConnectionError {
    ConnectionError::new(ErrorKind::Closed, CLOSED)
}

pub(super) fn received_too_large(bytes: usize) -> ConnectionError {
    ConnectionError::new(ErrorKind::ReceivedTooLarge, format!("the broker sent a packet of {bytes} bytes"))
}

pub(super) fn from_io(error: &std::io::Error) -> ConnectionError {
    use std::io::ErrorKind as Io;
    // With TLS 1.3 a client certificate is refused after the handshake, so the alert comes as an I/O error (RFC 8446 §4.4.2.4).
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return from_rustls(error);
    }
    match error.kind() {
        Io::UnexpectedEof | Io::ConnectionReset | Io::BrokenPipe | Io::ConnectionAborted => closed(),
        _ => ConnectionError::other(error.to_string()),
    }
}

pub(super) fn unreadable(error: &(dyn std::error::Error + 'static)) -> ConnectionError {
    // The words of the parser help nobody who has written the wrong port, and may help with a broken broker.
    tracing::debug!(error, "packet unreadable");
    ConnectionError::new(ErrorKind::Unreadable, UNREADABLE)
}

pub(super) fn from_web_socket(error: &tungstenite::Error) -> ConnectionError {
    let error = error_chain(error);
    ConnectionError::other(format!("no MQTT over WebSocket at this address: check port and path of `url` ({error})"))
}

fn from_rustls(error: &rustls::Error) -> ConnectionError {
    ConnectionError::other(tls::problem(error, "mqtt:// (ws:// for WebSocket)"))
}
