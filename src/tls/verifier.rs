//! Which certificate of a server is accepted: one that a trusted authority has signed for the name, or exactly one that the
//! config names. Homes and seedboxes have certificates that no authority has signed, that are for another name, or that are
//! of a kind that no library verifies any more.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, PeerMisbehaved, SignatureScheme};
use sha2::{Digest as _, Sha256};

/// The SHA-256 hash of a certificate in DER form, written `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Reads one as other programs write it as well: in capitals, with colons between the bytes. `None` for other texts.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sha256:")?.replace(':', "");
        let mut bytes = [0; 32];
        let is_hex = digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        for (place, byte) in bytes.iter_mut().enumerate().filter(|_| is_hex) {
            *byte = u8::from_str_radix(&digits[2 * place..2 * place + 2], 16).ok()?;
        }
        is_hex.then_some(Self(bytes))
    }

    fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Why a certificate is refused, and which one that is.
#[derive(Debug)]
pub struct Refused {
    /// What is wrong with it.
    pub error: CertificateError,
    /// By which it could be accepted.
    pub fingerprint: Fingerprint,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Refused {}

impl Refused {
    /// Returns the refusal that an error is, if it is one of [`Verifier`].
    pub fn of(error: &Error) -> Option<&Self> {
        match error {
            Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => inner.downcast_ref(),
            _ => None,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Verifier {
    /// `None` if no authority is trusted.
    pub authorities: Option<Arc<WebPkiServerVerifier>>,
    /// Certificates that are trusted themselves.
    pub known: Vec<CertificateDer<'static>>,
    /// Certificates that are accepted whatever is in them.
    pub fingerprints: Vec<Fingerprint>,
    /// The names that certificates have to be for, where connections are to addresses in place of them.
    pub names: HashMap<IpAddr, ServerName<'static>>,
    pub algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    /// Returns the public key of a certificate that the config names, which the library may not be able to read.
    fn known_key(&self, certificate: &CertificateDer<'_>) -> Result<Option<SubjectPublicKeyInfoDer<'static>>, Error> {
        let is_known = self.fingerprints.contains(&Fingerprint::of(certificate)) || self.known.contains(certificate);
        is_known.then(|| public_key(certificate).ok_or(CertificateError::BadEncoding.into())).transpose()
    }

    /// The library verifies no signature of TLS 1.2 by a key alone.
    fn verify_tls12_signature_with_key(
        &self,
        message: &[u8],
        key: &SubjectPublicKeyInfoDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = webpki::RawPublicKeyEntity::try_from(key).map_err(|_| CertificateError::BadEncoding)?;
        let (_, algorithms) = (self.algorithms.mapping.iter().find(|(scheme, _)| *scheme == signed.scheme))
            .ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
        let is_signed = algorithms.iter().any(|it| key.verify_signature(*it, message, signed.signature()).is_ok());
        is_signed.then(HandshakeSignatureValid::assertion).ok_or(CertificateError::BadSignature.into())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let fingerprint = Fingerprint::of(end_entity);
        if self.fingerprints.contains(&fingerprint) {
            return Ok(ServerCertVerified::assertion());
        }
        let name = match server_name {
            ServerName::IpAddress(address) => self.names.get(&IpAddr::from(*address)).unwrap_or(server_name),
            _ => server_name,
        };
        let error = match &self.authorities {
            Some(authorities) => {
                match authorities.verify_server_cert(end_entity, intermediates, name, ocsp_response, now) {
                    Err(Error::InvalidCertificate(error)) => error,
                    verified => return verified,
                }
            }
            None => CertificateError::UnknownIssuer,
        };
        use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
        let is_out_of_date = matches!(error, Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. });
        // It may be an authority's itself, for another name or for none, or too old a kind.
        if !is_out_of_date && self.known.contains(end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        let refused = Refused { error, fingerprint };
        Err(CertificateError::Other(OtherError(Arc::new(refused))).into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if let Some(key) = self.known_key(certificate)? {
            return self.verify_tls12_signature_with_key(message, &key, signed);
        }
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if let Some(key) = self.known_key(certificate)? {
            return rustls::crypto::verify_tls13_signature_with_raw_key(message, &key, signed, &self.algorithms);
        }
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Returns the public key of a certificate of any version, as its own DER value.
fn public_key(certificate: &CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'static>> {
    let anchor = webpki::anchor_from_trusted_cert(certificate).ok()?;
    let content: &[u8] = anchor.subject_public_key_info.as_ref();
    let length = u16::try_from(content.len()).ok()?.to_be_bytes();
    let header = match length {
        [0, short @ 0..0x80] => vec![0x30, short],
        [0, one] => vec![0x30, 0x81, one],
        [two, one] => vec![0x30, 0x82, two, one],
    };
    Some([&header, content].concat().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_read_as_other_programs_write_it() {
        let digits = "0A".repeat(31);
        let bytes = [&[10; 31][..], &[255]].concat();
        let right = Fingerprint(bytes.try_into().unwrap());
        assert_eq!(Fingerprint::parse(&format!("sha256:{digits}FF")), Some(right));
        assert_eq!(Fingerprint::parse(&format!("sha256:{}ff", "0a:".repeat(31))), Some(right));
        assert_eq!(Fingerprint::parse(&right.to_string()), Some(right));
        for wrong in ["", "sha256:", &digits, &format!("sha1:{digits}FF"), &format!("sha256:{digits}FG"), "sha256:ÿ"] {
            assert_eq!(Fingerprint::parse(wrong), None, "{wrong}");
        }
    }
}
