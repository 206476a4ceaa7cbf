//! Errors on the way to a host, in words that say how to correct them: those of the libraries name neither.

use std::error::Error;
use std::io::ErrorKind;

use tracing::debug;

use crate::model::error_chain;

/// No address of a name may be fetched from.
#[derive(Debug, thiserror::Error)]
#[error("no address that may be fetched from")]
pub(super) struct NotPermitted;

/// A name has no address.
#[derive(Debug, thiserror::Error)]
#[error("the name cannot be resolved")]
pub(super) struct NotResolved;

/// Why a host gave no answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unreachable {
    /// The rules for links do not permit it.
    NotPermitted,
    /// The same request may have another answer later.
    ForNow(&'static str),
    /// Somebody has to change something first.
    ForGood(&'static str),
}

/// Returns why a host gave no answer.
pub(super) fn reason_of(error: reqwest::Error) -> Unreachable {
    // The path and query of the link may have a passkey (I14).
    let error = error.without_url();
    debug!(error = error_chain(&error), "link not fetched");
    if error.is_builder() {
        return Unreachable::ForGood(
            "this machine's certificates of authorities cannot be read; install them (`ca-certificates`)",
        );
    }
    let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(this) = cause {
        if let Some(reason) = reason_of_cause(this) {
            return reason;
        }
        cause = this.source();
    }
    Unreachable::ForNow("it gave no complete answer of HTTP; is this the right port?")
}

fn reason_of_cause(cause: &(dyn Error + 'static)) -> Option<Unreachable> {
    if cause.is::<NotPermitted>() {
        return Some(Unreachable::NotPermitted);
    }
    if cause.is::<NotResolved>() {
        let advice = "the name cannot be resolved; check it, and the DNS of the machine or container of the bridge";
        return Some(Unreachable::ForNow(advice));
    }
    if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
        return Some(Unreachable::ForGood(reason_of_tls(tls)));
    }
    let io = cause.downcast_ref::<std::io::Error>()?;
    // An error inside one of I/O is not among its sources.
    if let Some(inner) = io.get_ref().and_then(|inner| reason_of_cause(inner)) {
        return Some(inner);
    }
    let reason = match io.kind() {
        ErrorKind::ConnectionRefused => "nothing listens at this port; is the server running, and the port right?",
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
            "there is no route to it from the machine or container of the bridge"
        }
        ErrorKind::TimedOut => "it did not answer in time",
        ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::UnexpectedEof => "it closed the connection before its answer was complete",
        _ => return None,
    };
    Some(Unreachable::ForNow(reason))
}

fn reason_of_tls(error: &rustls::Error) -> &'static str {
    use rustls::{CertificateError as Certificate, Error};
    match error {
        Error::InvalidCertificate(Certificate::NotValidForName | Certificate::NotValidForNameContext { .. }) => {
            "its certificate is for another name; use that name in the link"
        }
        Error::InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. }) => {
            "its certificate has expired; the owner of the server has to renew it, unless this machine's clock is wrong"
        }
        Error::InvalidCertificate(Certificate::NotValidYet | Certificate::NotValidYetContext { .. }) => {
            "its certificate is not valid yet; is this machine's clock right?"
        }
        Error::InvalidCertificate(_) => {
            "its certificate is not signed by an authority that this machine trusts; install that authority's certificate \
             on it (or name a file with it in SSL_CERT_FILE), or send the .torrent file itself"
        }
        Error::InvalidMessage(_) => "the port does not speak TLS; write http:// in place of https://",
        _ => "it refuses the TLS connection; it may want a certificate of its clients, or another version of TLS",
    }
}

#[cfg(test)]
mod tests {
    use rustls::{CertificateError as Certificate, Error as Tls};

    use super::*;

    #[test]
    fn an_error_within_an_error_of_io_is_found() {
        let io = |inner: Tls| std::io::Error::other(std::io::Error::other(inner));
        for (error, named) in [
            (Tls::InvalidCertificate(Certificate::UnknownIssuer), "authority"),
            (Tls::InvalidCertificate(Certificate::Expired), "expired"),
            (Tls::InvalidCertificate(Certificate::NotValidForName), "another name"),
            (Tls::HandshakeNotComplete, "refuses"),
        ] {
            let found = reason_of_cause(&io(error));
            assert!(
                matches!(found, Some(Unreachable::ForGood(reason)) if reason.contains(named)),
                "{named}: {found:?}"
            );
        }
        let refused = std::io::Error::from(ErrorKind::ConnectionRefused);
        assert!(matches!(reason_of_cause(&refused), Some(Unreachable::ForNow(reason)) if reason.contains("listens")));
        assert_eq!(reason_of_cause(&std::io::Error::other(NotPermitted)), Some(Unreachable::NotPermitted));
    }
}
