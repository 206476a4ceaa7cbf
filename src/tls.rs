//! TLS of connections to brokers, clients and endpoints: which authorities to trust, and the client certificate.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use reqwest::ClientBuilder;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use secrecy::{ExposeSecret, SecretSlice};

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

/// Returns the TLS configuration of all connections to one receiver; `None` for `ca_pem` trusts the machine's authorities.
///
/// # Errors
/// A file is not what it should be, or the machine trusts no authority.
pub fn client_config(ca_pem: Option<&[u8]>, client_cert: Option<&ClientCert>) -> Result<Arc<ClientConfig>, TlsError> {
    trusting(ca_pem.map_or_else(native_roots, own_roots)?, client_cert)
}

/// Returns the same configuration for connections to addresses in place of names: a certificate has to be for the name.
///
/// # Errors
/// As for [`client_config`].
pub fn client_config_for_addresses(
    ca_pem: Option<&[u8]>,
    client_cert: Option<&ClientCert>,
    names: HashMap<IpAddr, ServerName<'static>>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let roots = ca_pem.map_or_else(native_roots, own_roots)?;
    let mut config = Arc::unwrap_or_clone(trusting(roots.clone(), client_cert)?);
    let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), config.crypto_provider().clone());
    let by_name = builder.build().map_err(TlsError::Verifier)?;
    config.dangerous().set_certificate_verifier(Arc::new(NamedAddresses { by_name, names }));
    Ok(Arc::new(config))
}

/// Verifies certificates as usual, but that of an address as one for the name that led there.
#[derive(Debug)]
struct NamedAddresses {
    by_name: Arc<WebPkiServerVerifier>,
    names: HashMap<IpAddr, ServerName<'static>>,
}

impl ServerCertVerifier for NamedAddresses {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let name = match server_name {
            ServerName::IpAddress(address) => self.names.get(&IpAddr::from(*address)).unwrap_or(server_name),
            _ => server_name,
        };
        self.by_name.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_name.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_name.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_name.supported_verify_schemes()
    }
}

/// Returns an HTTP client for one peer; `None` for `ca_pem` trusts the machine's authorities. `with` adds to its settings.
///
/// # Errors
/// The file is not what it should be, or the machine trusts no authority and TLS is spoken.
pub fn http_client(
    is_encrypted: bool,
    ca_pem: Option<&[u8]>,
    with: impl FnOnce(ClientBuilder) -> ClientBuilder,
) -> Result<reqwest::Client, TlsError> {
    let tls = match is_encrypted || ca_pem.is_some() {
        true => client_config(ca_pem, None)?,
        // Whoever sends in clear needs no authority on the machine.
        false => trusting(RootCertStore::empty(), None)?,
    };
    let client = reqwest::Client::builder().tls_backend_preconfigured(Arc::unwrap_or_clone(tls));
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

fn trusting(roots: RootCertStore, client_cert: Option<&ClientCert>) -> Result<Arc<ClientConfig>, TlsError> {
    // Not the process's default provider: a program that uses the library may not have installed one.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_root_certificates(roots);
    let config = match client_cert {
        Some(client) => {
            let (chain, key) = identity(client)?;
            builder.with_client_auth_cert(chain, key).map_err(TlsError::ClientAuth)?
        }
        None => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

fn own_roots(pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(TlsError::CaUnreadable)?;
        roots.add(certificate).map_err(|_| TlsError::CaEmpty)?;
    }
    if roots.is_empty() { Err(TlsError::CaEmpty) } else { Ok(roots) }
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
        let text = |ca: &[u8]| client_config(Some(ca), None).unwrap_err().to_string();
        assert!(text(b"").contains("`ca_file` holds no certificate"));
        assert!(text(b"garbage").contains("`ca_file` holds no certificate"));
        assert!(text(broken).contains("`ca_file` is not a PEM file"));
    }
}
