//! Parsers of single values that no adapter knows better.

use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::SecretSlice;

use super::read::{Fault, Table};
use super::secret::{read_file, warn_of_readers};
use crate::model::{Filter, MemoryBudget, SinkName, UrlRule, parse_bytes};
use crate::sinks::mqtt::settings::ClientCert;
use crate::tls::{Fingerprint, Trust};

/// Reads the name of an instance, which follows the rules of a sink's name.
pub fn instance(text: &str) -> Result<String, Fault> {
    SinkName::parse(text).map(|name| name.as_str().to_owned()).map_err(|_| {
        let right = "use a-z, 0-9, _ and -, at most 63, the first a letter or digit; `bridge` is reserved";
        Fault::new(format!("`{text}` is not an instance name"), right)
    })
}

/// Reads the path of the state directory.
pub fn directory(text: &str) -> Result<PathBuf, Fault> {
    // The system accepts no path with a NUL.
    if text.is_empty() || text.contains('\0') {
        return Err(Fault::new("is not a path", "write data_dir = \"data\""));
    }
    Ok(PathBuf::from(text))
}

/// Reads a directory that commands may name.
pub fn root(text: &str) -> Result<PathBuf, Fault> {
    let path = Path::new(text);
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) || text.contains('\0') {
        let right = "write directories that begin with `/`, without `..`";
        return Err(Fault::new(format!("`{text}` is not an absolute path"), right));
    }
    Ok(path.to_owned())
}

/// Reads an address to listen on; `None` for `off`.
pub fn listener(text: &str) -> Result<Option<SocketAddr>, Fault> {
    if text == "off" {
        return Ok(None);
    }
    let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    numeric.as_deref().unwrap_or(text).parse().map(Some).map_err(|_| {
        let right = "write an IP address and a port, \"127.0.0.1:8787\", or \"off\"";
        Fault::new(format!("`{text}` is not an address to listen on"), right)
    })
}

/// Reads a host name as browsers send it, without a port.
pub fn host(text: &str) -> Result<String, Fault> {
    // 253 is the longest name in DNS (RFC 1035).
    let is_right = !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    is_right.then(|| text.to_ascii_lowercase()).ok_or_else(|| {
        let right = "write a name, \"torrents.example.org\", without a scheme and a port";
        Fault::new(format!("`{text}` is not a host name"), right)
    })
}

/// Reads a host or a network that links may or may not lead to.
pub fn url_rule(text: &str) -> Result<UrlRule, Fault> {
    UrlRule::parse(text).map_err(|error| {
        let right = "write \"example.org\", \"*.example.org\", \"192.0.2.1\" or \"192.0.2.0/24\"";
        Fault::new(format!("`{text}` {error}"), right)
    })
}

/// Reads bytes a second: a whole number and a unit.
pub fn rate(text: &str) -> Result<u64, Fault> {
    let right = "write bytes a second with a unit, as in \"500kB\" or \"2MiB\"; \"0\" is no limit";
    parse_bytes(text).ok_or_else(|| Fault::new(format!("`{text}` is not a rate"), right))
}

/// Reads the memory that queues and buffers share.
pub fn memory(text: &str) -> Result<MemoryBudget, Fault> {
    let least = format!("{}MiB", MemoryBudget::BYTES_MIN >> 20);
    let right = format!("write at least {least}, as in \"256MiB\"");
    let bytes = parse_bytes(text).ok_or_else(|| Fault::new(format!("`{text}` is not an amount of bytes"), &right))?;
    MemoryBudget::new(bytes).ok_or_else(|| Fault::new(format!("`{text}` is less than {least}"), right))
}

/// Reads one or more levels of a topic that may be published to.
pub fn topic(text: &str) -> Result<String, Fault> {
    // MQTT 5.0 §4.7: `+` and `#` are wildcards, and topics that begin with `$` are the broker's own.
    let is_right = text.split('/').all(|level| !level.is_empty())
        && !text.starts_with('$')
        && text.len() <= 200
        && !text.chars().any(|c| c.is_control() || c == '+' || c == '#');
    is_right.then(|| text.to_owned()).ok_or_else(|| {
        let right =
            "write levels joined by `/`, as in \"home/torrents\": none empty, no + or #, not $… , at most 200 bytes";
        Fault::new(format!("`{text}` is not the start of a topic"), right)
    })
}

/// Reads a PEM file with at least one certificate.
pub fn certificates(path: &str) -> Result<Vec<u8>, Fault> {
    // Parsed here, although the adapters parse it again, so that `dtorrent check` reports a wrong file.
    let bytes = read_file(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    if found.is_ok_and(|found| !found.is_empty()) {
        return Ok(bytes);
    }
    Err(Fault::new(format!("`{path}` holds no certificate"), "name a certificate file in PEM form"))
}

/// Reads which servers are trusted with TLS.
pub fn trust(table: &Table<'_>) -> Trust {
    let ca_pem = table.parsed("ca_file", certificates);
    let written = table.has("tls_fingerprint").then(|| table.one_or_more("tls_fingerprint")).flatten();
    let fingerprint = |text: &str| {
        let right = "write tls_fingerprint = \"sha256:…\" with 64 hexadecimal digits, as `openssl x509 -noout -fingerprint -sha256` \
                     and `dtorrent check --connect` print it";
        Fingerprint::parse(text).ok_or_else(|| Fault::new(format!("`{text}` is not a fingerprint"), right))
    };
    let fingerprints = table.each("tls_fingerprint", written, fingerprint).unwrap_or_default();
    Trust { ca_pem, fingerprints }
}

fn private_key(path: &str) -> Result<SecretSlice<u8>, Fault> {
    let bytes = read_file(path)?;
    match PrivateKeyDer::from_pem_slice(&bytes) {
        Ok(_) => Ok(bytes.into()),
        Err(_) => Err(Fault::new(format!("`{path}` holds no private key"), "name a key file in PEM form")),
    }
}

/// Reads `cert_file` and `key_file`, which go together.
pub fn client_cert(table: &Table<'_>) -> Option<ClientCert> {
    // By presence, not by value: a file that cannot be read has an error of its own.
    match (table.has("cert_file"), table.has("key_file")) {
        (true, false) => table.missing("key_file", "cert_file needs the key of the certificate: write both or none"),
        (false, true) => table.missing("cert_file", "key_file needs the certificate of the key: write both or none"),
        _ => {}
    }
    let cert_pem = table.parsed("cert_file", certificates);
    let key_pem = table.parsed("key_file", private_key);
    if let Some(file) = table.text("key_file") {
        warn_of_readers(table, "key_file", file.as_ref());
    }
    Some(ClientCert { cert_pem: cert_pem?, key_pem: key_pem? })
}

/// Reads which torrents are meant; `None` if nothing is written.
pub fn torrents(table: &Table<'_>) -> Option<Filter> {
    let torrents: serde_json::Map<_, _> =
        table.named_texts("torrents").into_iter().map(|(key, text)| (key, text.into())).collect();
    if torrents.is_empty() {
        return None;
    }
    Filter::from_json(torrents.into()).map_err(|error| table.fault("torrents", error.into())).ok()
}
