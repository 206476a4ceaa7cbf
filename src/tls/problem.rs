//! Why a TLS connection cannot be made, in the same words for every kind of peer, and what to do about it.

use std::error::Error;

use rustls::{AlertDescription as Alert, CertificateError as Certificate};

use super::verifier::Refused;

/// Returns what is wrong with a connection if TLS is the cause of `error`. `plain` is the scheme that a peer needs which does
/// not speak TLS, such as `mqtt://`.
pub fn problem_of(error: &(dyn Error + 'static), plain: &str) -> Option<String> {
    std::iter::successors(Some(error), |cause| (*cause).source()).find_map(|cause| {
        let found = cause.downcast_ref::<rustls::Error>().map(|error| problem(error, plain));
        found.or_else(|| {
            // An error inside one of I/O is not among its sources.
            let inner = cause.downcast_ref::<std::io::Error>()?.get_ref()?;
            problem_of(inner, plain)
        })
    })
}

/// The same, of an error of the TLS library.
pub fn problem(error: &rustls::Error, plain: &str) -> String {
    use rustls::Error as Tls;
    let text = match error {
        Tls::InvalidCertificate(of_certificate) => match Refused::of(error) {
            Some(Refused { error, fingerprint }) => {
                format!(
                    "{}, or accept exactly this certificate with `tls_fingerprint = \"{fingerprint}\"`",
                    of_certificate_error(error)
                )
            }
            None => of_certificate_error(of_certificate),
        },
        Tls::AlertReceived(Alert::CertificateRequired) => {
            "the server wants a certificate of ours: set `cert_file` and `key_file`".to_owned()
        }
        Tls::AlertReceived(Alert::HandshakeFailure | Alert::InsufficientSecurity) => {
            "the server refuses the handshake: it may want a certificate of ours (set `cert_file` and `key_file`), or have no \
             cipher or curve in common with us"
                .to_owned()
        }
        Tls::AlertReceived(Alert::ProtocolVersion) | Tls::PeerIncompatible(_) => {
            "the server has no version of TLS, cipher or curve in common with us: it has to speak TLS 1.2 or 1.3".to_owned()
        }
        Tls::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateUnknown
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::AccessDenied
            | Alert::DecryptError,
        ) => "the server does not accept our certificate: check `cert_file`".to_owned(),
        Tls::AlertReceived(Alert::UnrecognisedName) => {
            "the server has no certificate for the name in `url`: write one of its names there".to_owned()
        }
        Tls::InvalidMessage(_) => {
            format!("the port does not speak TLS: correct the port in `url`, or write {plain} there")
        }
        other => other.to_string(),
    };
    format!("TLS: {text}")
}

fn of_certificate_error(error: &Certificate) -> String {
    match error {
        Certificate::Expired => "the server's certificate has expired: renew it".to_owned(),
        Certificate::ExpiredContext { time, not_after } => format!(
            "the server's certificate expired on {}: renew it (unless this machine's clock is wrong, where it is {})",
            date(*not_after),
            date(*time)
        ),
        Certificate::NotValidYet => "the server's certificate is not valid yet: check this machine's clock".to_owned(),
        Certificate::NotValidYetContext { time, not_before } => format!(
            "the server's certificate is not valid before {}: check this machine's clock, where it is {}",
            date(*not_before),
            date(*time)
        ),
        Certificate::UnknownIssuer => {
            "the server's certificate is not signed by a trusted authority: set `ca_file` to its authority's certificate, or \
             to the certificate itself if it has signed itself"
                .to_owned()
        }
        Certificate::NotValidForName => {
            "the server's certificate is for another name: write its name in `url`".to_owned()
        }
        Certificate::NotValidForNameContext { expected, presented } if presented.is_empty() => format!(
            "the server's certificate is for no name that counts, and not for {}: a common name (CN) alone no longer does, it \
             needs a subjectAltName; set `ca_file` to the certificate itself",
            expected.to_str()
        ),
        Certificate::NotValidForNameContext { expected, presented } => format!(
            "the server's certificate is for {}, and not for {}: write its name in `url`",
            presented.join(", "),
            expected.to_str()
        ),
        Certificate::Revoked => "the server's certificate is revoked: renew it".to_owned(),
        // Of an authority itself, for one.
        other => format!(
            "the server's certificate is none that an authority would sign for a server ({other}): set `ca_file` to the \
             certificate itself"
        ),
    }
}

fn date(time: rustls::pki_types::UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX).to_string()
}
