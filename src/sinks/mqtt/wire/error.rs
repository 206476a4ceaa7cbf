//! The reasons why an MQTT connection fails or ends, classified from rumqttc's errors.

use std::time::Duration;

use rumqttc::v5::{self, mqttbytes::v5 as packet5};
use rumqttc::{self as v4};

use crate::model::{OutsideText, error_chain};
use crate::port::DeliverError;

/// Delay after a quota of the broker was used up.
const QUOTA_RETRY: Duration = Duration::from_secs(30);

/// The reason of a connection that was closed without one.
pub const CLOSED: &str = "the broker closed the connection";
/// The reason of a connection whose client id another one took.
pub const TAKEN_OVER: &str = "another connection uses our client id: give each bridge its own `instance`";
const SILENT: &str = "the broker does not answer";
const UNREADABLE: &str = "the answer is not MQTT";
const WILL_REFUSED: &str = "the broker refuses our last will";
const SENT_TOO_LARGE: &str = "the broker finds a message too large";
const BAD_PASSWORD: &str = "the broker refuses the user name or password: check `username` and `password`";
const NOT_AUTHORIZED: &str = "the broker does not let us in: check `username`, `password` and its access rules";
const BAD_CLIENT_ID: &str = "the broker refuses our client id: try a shorter `instance`";

/// A connection could not be made, or is over.
#[derive(Debug)]
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
    /// The broker closed the connection without a reason.
    Closed,
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
        // A close after CONNACK is not about the protocol version, so MQTT 3.1.1 must not be tried over it.
        let kind = if self.kind == ErrorKind::Closed { ErrorKind::Other } else { self.kind };
        Self { kind, ..self }
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

pub(super) fn from_311(error: v4::ConnectionError) -> ConnectionError {
    use v4::ConnectReturnCode as Code;
    use v4::{ConnectionError as Error, StateError, mqttbytes};
    match error {
        Error::ConnectionRefused(code) => match code {
            Code::RefusedProtocolVersion => {
                ConnectionError::new(ErrorKind::VersionRefused, "the broker does not speak MQTT 3.1.1")
            }
            Code::BadClientId => ConnectionError::other(BAD_CLIENT_ID),
            Code::BadUserNamePassword => ConnectionError::other(BAD_PASSWORD),
            Code::NotAuthorized => ConnectionError::other(NOT_AUTHORIZED),
            code => ConnectionError::other(format!("the broker refused the connection: {code:?}")),
        },
        Error::MqttState(StateError::ConnectionAborted) => ConnectionError::new(ErrorKind::Closed, CLOSED),
        // No PINGRESP within the keep-alive: the connection is dead without a FIN or RST.
        Error::MqttState(StateError::AwaitPingResp) => ConnectionError::other(SILENT),
        Error::MqttState(StateError::Io(io) | StateError::Deserialization(mqttbytes::Error::Io(io)))
        | Error::Io(io) => from_io(&io),
        Error::MqttState(StateError::Deserialization(mqttbytes::Error::PayloadSizeLimitExceeded(bytes))) => {
            ConnectionError::new(ErrorKind::ReceivedTooLarge, format!("the broker sent a packet of {bytes} bytes"))
        }
        Error::MqttState(StateError::Deserialization(error)) => unreadable(&error),
        Error::NetworkTimeout | Error::FlushTimeout => ConnectionError::new(ErrorKind::Silent, SILENT),
        Error::Tls(error) => from_tls(&error),
        Error::Websocket(error) => from_web_socket(&error_chain(&error)),
        error => ConnectionError::other(error_chain(&error)),
    }
}

pub(super) fn from_5(error: v5::ConnectionError) -> ConnectionError {
    use packet5::{ConnectReturnCode as Code, DisconnectReasonCode as Reason};
    use v5::mqttbytes::Error as Bytes5;
    use v5::{ConnectionError as Error, StateError};
    match error {
        Error::ConnectionRefused(code) => match code {
            Code::RefusedProtocolVersion | Code::UnsupportedProtocolVersion => {
                ConnectionError::new(ErrorKind::VersionRefused, "the broker does not speak MQTT 5")
            }
            Code::BadClientId | Code::ClientIdentifierNotValid => ConnectionError::other(BAD_CLIENT_ID),
            Code::BadUserNamePassword => ConnectionError::other(BAD_PASSWORD),
            Code::NotAuthorized => ConnectionError::other(NOT_AUTHORIZED),
            Code::QoSNotSupported => ConnectionError::new(ErrorKind::QosRefused, format!("{WILL_REFUSED}: {code:?}")),
            Code::RetainNotSupported => {
                ConnectionError::new(ErrorKind::RetainRefused, format!("{WILL_REFUSED}: {code:?}"))
            }
            Code::QuotaExceeded | Code::ConnectionRateExceeded | Code::ServerBusy => {
                ConnectionError::new(ErrorKind::Quota, format!("the broker has no room for us now: {code:?}"))
            }
            code => ConnectionError::other(format!("the broker refused the connection: {code:?}")),
        },
        Error::MqttState(StateError::ServerDisconnect { reason_code, reason_string }) => {
            let said = reason_string.map(|text| format!(" ({text})")).unwrap_or_default();
            let reason = format!("the broker hung up: {reason_code:?}{said}");
            match reason_code {
                // Compared by the namesake suspicion: another bridge may have our client id.
                Reason::SessionTakenOver => ConnectionError::other(TAKEN_OVER),
                Reason::PacketTooLarge => ConnectionError::new(ErrorKind::SentTooLarge, SENT_TOO_LARGE),
                Reason::QuotaExceeded | Reason::MessageRateTooHigh => ConnectionError::new(ErrorKind::Quota, reason),
                _ => ConnectionError::other(reason),
            }
        }
        Error::MqttState(StateError::ConnectionAborted) => ConnectionError::new(ErrorKind::Closed, CLOSED),
        Error::MqttState(StateError::AwaitPingResp) => ConnectionError::other(SILENT),
        Error::MqttState(StateError::Io(io) | StateError::Deserialization(Bytes5::Io(io))) | Error::Io(io) => {
            from_io(&io)
        }
        // mosquitto's DISCONNECT over its `message_size_limit`; rumqttc does not know that reason code (0x95).
        Error::MqttState(StateError::Deserialization(Bytes5::InvalidConnectReturnCode(0x95))) => {
            ConnectionError::new(ErrorKind::SentTooLarge, SENT_TOO_LARGE)
        }
        Error::MqttState(StateError::Deserialization(Bytes5::PayloadSizeLimitExceeded { pkt_size, .. })) => {
            ConnectionError::new(ErrorKind::ReceivedTooLarge, format!("the broker sent a packet of {pkt_size} bytes"))
        }
        Error::MqttState(StateError::Deserialization(error)) => unreadable(&error),
        Error::Timeout(_) => ConnectionError::new(ErrorKind::Silent, SILENT),
        Error::Tls(error) => from_tls(&error),
        Error::Websocket(error) => from_web_socket(&error_chain(&error)),
        error => ConnectionError::other(error_chain(&error)),
    }
}

fn from_io(error: &std::io::Error) -> ConnectionError {
    use std::io::ErrorKind as Io;
    // With TLS 1.3 a client certificate is refused after the handshake, so the alert comes as an I/O error (RFC 8446 §4.4.2.4).
    if let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return from_rustls(error);
    }
    let is_closed = match error.kind() {
        Io::UnexpectedEof | Io::ConnectionReset | Io::BrokenPipe | Io::ConnectionAborted => true,
        // From rumqttc, when a broker that speaks only MQTT 3.1.1 answers with its shorter CONNACK and closes.
        Io::Other => error.to_string().contains("bytes remaining on stream"),
        _ => false,
    };
    match is_closed {
        true => ConnectionError::new(ErrorKind::Closed, CLOSED),
        false => ConnectionError::other(error.to_string()),
    }
}

fn unreadable(error: &(dyn std::error::Error + 'static)) -> ConnectionError {
    // The words of the parser help nobody who has written the wrong port, and may help with a broken broker.
    tracing::debug!(error, "packet unreadable");
    ConnectionError::new(ErrorKind::Unreadable, UNREADABLE)
}

fn from_web_socket(error: &str) -> ConnectionError {
    ConnectionError::other(format!("no MQTT over WebSocket at this address: check port and path of `url` ({error})"))
}

fn from_tls(error: &v4::TlsError) -> ConnectionError {
    match error {
        v4::TlsError::TLS(error) => from_rustls(error),
        v4::TlsError::Io(error) => from_io(error),
        error => ConnectionError::other(format!("TLS: {error}")),
    }
}

fn from_rustls(error: &rustls::Error) -> ConnectionError {
    use rustls::{AlertDescription as Alert, CertificateError as Certificate, Error, InvalidMessage};
    let advice = match error {
        Error::InvalidCertificate(Certificate::UnknownIssuer) => {
            ": the broker's certificate is not signed by a trusted authority; set `ca_file` to its authority's certificate"
        }
        Error::InvalidCertificate(Certificate::NotValidForName | Certificate::NotValidForNameContext { .. }) => {
            ": the certificate is for another name than the one in `url`"
        }
        Error::AlertReceived(Alert::CertificateRequired | Alert::HandshakeFailure) => {
            ": the broker wants a certificate of ours; set `cert_file` and `key_file`"
        }
        Error::AlertReceived(Alert::UnknownCA | Alert::BadCertificate | Alert::CertificateUnknown) => {
            ": the broker does not accept our certificate; check `cert_file`"
        }
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            ": the port does not speak TLS; correct the port in `url`, or write mqtt:// (ws:// for WebSocket) there"
        }
        _ => "",
    };
    ConnectionError::other(format!("TLS: {error}{advice}"))
}
