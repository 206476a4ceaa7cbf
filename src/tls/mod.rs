//! TLS of connections to brokers, clients and endpoints: which authorities to trust, and the client certificate.

mod problem;
mod verifier;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use reqwest::ClientBuilder;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use secrecy::{ExposeSecret, SecretSlice};

pub use self::problem::{problem, problem_of};
use self::verifier::Verifier;
pub use self::verifier::{Fingerprint, Refused};
use crate::connect::CONNECT_TIMEOUT;

/// A client certificate with its key, both PEM.
#[derive(Clone, Debug)]
pub struct ClientCert {
    /// The certificate chain, the client's own first.
    pub cert_pem: Vec<u8>,
    /// The private key, not encrypted.
    pub key_pem: SecretSlice<u8>,
}

/// Certificates or keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A block of the file is no certificate.
    #[error("`ca_file` is not a PEM file of certificates: it begins with -----BEGIN CERTIFICATE-----")]
    CaUnreadable(#[source] rustls::pki_types::pem::Error),
    /// No block, or only some that rustls does not accept.
    #[error("`ca_file` holds no certificate that can be used")]
    CaEmpty,
    /// The system's store of certificates is empty, as in a container image without `ca-certificates`.
    #[error("the machine trusts no certificate authority: install ca-certificates, or set `ca_file`")]
    NoNativeRoots,
    /// The file has no block of a certificate.
    #[error("`cert_file` is not a PEM file with a certificate")]
    CertUnreadable,
    /// The file has no block of a key, or of an encrypted one.
    #[error("`key_file` is not a PEM file with an unencrypted private key")]
    KeyUnreadable,
    /// The key belongs to another certificate, or is of a kind that is not supported.
    #[error("the certificate and the key of the client do not fit together")]
    ClientAuth(#[source] rustls::Error),
    /// The crypto provider has no protocol version in common with rustls, which is a bug.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
    /// The authorities cannot be used to verify names, which is a bug.
    #[error("TLS cannot be set up")]
    Verifier(#[source] rustls::client::VerifierBuilderError),
    /// The HTTP client refuses the settings, which is a bug.
    #[error("HTTP cannot be set up")]
    Http(#[source] reqwest::Error),
}

/// Which servers are trusted.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// PEM of the authorities that are trusted in place of the machine's. A server may also have one of these certificates
    /// itself, whatever its name, its version and what it is for.
    pub ca_pem: Option<Vec<u8>>,
    /// Certificates that are accepted in any case. If there are any, no authorities of the machine are trusted.
    pub fingerprints: Vec<Fingerprint>,
}

impl Trust {
    /// Whether the config says more than to trust the machine's authorities.
    pub fn is_set(&self) -> bool {
        self.ca_pem.is_some() || !self.fingerprints.is_empty()
    }
}

/// Returns the TLS configuration of all connections to one receiver.
///
/// # Errors
/// A file is not what it should be, or the machine trusts no authority.
pub fn client_config(trust: &Trust, client_cert: Option<&ClientCert>) -> Result<Arc<ClientConfig>, TlsError> {
    client_config_for_addresses(trust, client_cert, HashMap::new())
}

/// Returns the same configuration for connections to addresses in place of names: a certificate has to be for the name.
///
/// # Errors
/// As for [`client_config`].
pub fn client_config_for_addresses(
    trust: &Trust,
    client_cert: Option<&ClientCert>,
    names: HashMap<IpAddr, ServerName<'static>>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let (roots, known) = match &trust.ca_pem {
        Some(pem) => own_roots(pem)?,
        None if !trust.fingerprints.is_empty() => (RootCertStore::empty(), Vec::new()),
        None => (native_roots()?, Vec::new()),
    };
    let mut config = trusting_none(client_cert)?;
    let provider = config.crypto_provider();
    let authorities = match roots.is_empty() {
        true => None,
        false => {
            let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
            Some(builder.build().map_err(TlsError::Verifier)?)
        }
    };
    let (fingerprints, algorithms) = (trust.fingerprints.clone(), provider.signature_verification_algorithms);
    let verifier = Verifier { authorities, known, fingerprints, names, algorithms };
    config.dangerous().set_certificate_verifier(Arc::new(verifier));
    Ok(Arc::new(config))
}

/// Returns an HTTP client for one peer. `with` adds to its settings.
///
/// # Errors
/// The file is not what it should be, or the machine trusts no authority and TLS is spoken.
pub fn http_client(
    is_encrypted: bool,
    trust: &Trust,
    with: impl FnOnce(ClientBuilder) -> ClientBuilder,
) -> Result<reqwest::Client, TlsError> {
    let tls = match is_encrypted || trust.is_set() {
        true => Arc::unwrap_or_clone(client_config(trust, None)?),
        // Whoever sends in clear needs no authority on the machine.
        false => trusting_none(None)?,
    };
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls);
    // HTTP/2 has nothing to offer where there is one exchange at a time. An environment variable must not send
    // commands for a local program through a proxy.
    let client = client.http1_only().no_proxy();
    // Shared out among the addresses of a name, which are tried one after the other, the families beside each other.
    let client = client.connect_timeout(CONNECT_TIMEOUT);
    // A redirect would send the credentials, or the body and its signature, to another address than the one in the
    // config. Retries are the engine's: nothing is to be done twice because a connection broke.
    let client = client.redirect(reqwest::redirect::Policy::none()).retry(reqwest::retry::never());
    with(client).build().map_err(TlsError::Http)
}

fn trusting_none(client_cert: Option<&ClientCert>) -> Result<ClientConfig, TlsError> {
    // Not the process's default provider: a program that uses the library may not have installed one.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_root_certificates(RootCertStore::empty());
    match client_cert {
        Some(client) => {
            let (chain, key) = identity(client)?;
            builder.with_client_auth_cert(chain, key).map_err(TlsError::ClientAuth)
        }
        None => Ok(builder.with_no_client_auth()),
    }
}

/// Returns the certificates of a file: those that are authorities, and all of them.
fn own_roots(pem: &[u8]) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(TlsError::CaUnreadable)?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates.iter().cloned());
    // One that cannot be read at all has no key either.
    if roots.is_empty() { Err(TlsError::CaEmpty) } else { Ok((roots, certificates)) }
}

fn native_roots() -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    // A machine's store often has some certificates that rustls does not accept.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() { Err(TlsError::NoNativeRoots) } else { Ok(roots) }
}

fn identity(client: &ClientCert) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = CertificateDer::pem_slice_iter(&client.cert_pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| TlsError::CertUnreadable)?;
    if chain.is_empty() {
        return Err(TlsError::CertUnreadable);
    }
    let key = PrivateKeyDer::from_pem_slice(client.key_pem.expose_secret()).map_err(|_| TlsError::KeyUnreadable)?;
    Ok((chain, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invalid_certificate_is_refused_with_the_name_of_its_option() {
        let broken = b"-----BEGIN CERTIFICATE-----\nnot base64 !\n-----END CERTIFICATE-----\n";
        let text = |ca: &[u8]| {
            let trust = Trust { ca_pem: Some(ca.to_vec()), ..Trust::default() };
            client_config(&trust, None).unwrap_err().to_string()
        };
        assert!(text(b"").contains("`ca_file` holds no certificate"));
        assert!(text(b"garbage").contains("`ca_file` holds no certificate"));
        assert!(text(broken).contains("`ca_file` is not a PEM file"));
    }
}
