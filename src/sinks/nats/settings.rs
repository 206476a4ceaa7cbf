//! Settings of one NATS system.
//!
//! Every value may go into a subject or onto the network as it is. Errors state what is wrong and what
//! would be right, and never repeat a text that may contain a secret.
//!
//! Pure: files and network are left to others.

use nkeys::{KeyPair, KeyPairType};
use secrecy::{ExposeSecret, SecretString};

use crate::model::{ServerName, SinkName};
pub use crate::sinks::broker::prefix::Prefix;
use crate::sinks::broker::url::{self as broker_url, Endpoint};
pub use crate::sinks::invalid::InvalidText;
use crate::sinks::invalid::invalid;
pub use crate::tls::ClientCert;
use crate::tls::Trust;

/// Settings of one NATS system.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the sink.
    pub name: SinkName,
    /// Name of the bridge, which follows the rules of a server's name and is not [`RESERVED_INSTANCE`].
    pub instance: String,
    /// Servers of the system, at least one; any of them serves.
    pub urls: Vec<ServerUrl>,
    /// Login.
    pub login: Login,
    /// Which servers are trusted with TLS.
    pub trust: Trust,
    /// Certificate of the bridge.
    pub client_cert: Option<ClientCert>,
    /// First tokens of every subject.
    pub prefix: Prefix,
    /// Servers whose events are published here and whose commands are accepted from here.
    pub servers: Vec<ServerName>,
    /// `false`: the NATS servers store nothing.
    pub jetstream: bool,
    /// Copies of stream and bucket, where they have to be created.
    pub replicas: u8,
}

/// Name that a bridge may not have: its own subjects would be those of events (`*.event.>`).
pub const RESERVED_INSTANCE: &str = "event";

/// Login of the bridge.
#[derive(Clone, Debug, Default)]
pub enum Login {
    /// No login.
    #[default]
    None,
    /// A token.
    Token(SecretString),
    /// A user with a password.
    User {
        /// Name of the user.
        name: String,
        /// Empty if none is configured.
        password: SecretString,
    },
    /// The seed of a user's key. Never sent: it signs the server's nonce.
    Nkey(SecretString),
    /// The content of a credentials file.
    Creds {
        /// The user's token, sent to the server.
        jwt: SecretString,
        /// The seed of the user's key, which signs the server's nonce.
        seed: SecretString,
    },
}

const NO_SEED: &str = "contains no seed of a user's key: it is one line that begins with SU";
const NO_CREDS: &str = "is not a credentials file: name one as `nsc` writes it, with -----BEGIN NATS USER JWT----- and \
                        -----BEGIN USER NKEY SEED-----";

impl Login {
    /// Parses a file with the seed of a user's key.
    ///
    /// # Errors
    /// The text contains no seed of a user's key.
    pub fn parse_nkey(text: &str) -> Result<Self, InvalidText> {
        let seed = text.lines().map(str::trim).find(|line| line.starts_with("SU")).ok_or_else(|| invalid(NO_SEED))?;
        check_seed(seed)?;
        Ok(Self::Nkey(seed.into()))
    }

    /// Parses a credentials file.
    ///
    /// # Errors
    /// The text is not a credentials file.
    pub fn parse_creds(text: &str) -> Result<Self, InvalidText> {
        let block = |name: &str| {
            let mut lines = text.lines().map(str::trim);
            lines.find(|line| line.starts_with("-----BEGIN") && line.contains(name))?;
            lines.find(|line| !line.is_empty() && !line.starts_with('-'))
        };
        let (jwt, seed) = block("JWT").zip(block("SEED")).ok_or_else(|| invalid(NO_CREDS))?;
        check_seed(seed).map_err(|_| invalid(NO_CREDS))?;
        Ok(Self::Creds { jwt: jwt.into(), seed: seed.into() })
    }

    /// Returns the answer to a server that sent this nonce.
    pub(super) fn answer(&self, nonce: &[u8]) -> Result<async_nats::Auth, nkeys::error::Error> {
        let mut auth = async_nats::Auth::new();
        match self {
            Self::None => {}
            Self::Token(token) => auth.token = Some(token.expose_secret().to_owned()),
            Self::User { name, password } => {
                auth.username = Some(name.clone());
                auth.password = Some(password.expose_secret().to_owned());
            }
            Self::Nkey(seed) => {
                let pair = KeyPair::from_seed(seed.expose_secret())?;
                auth.nkey = Some(pair.public_key());
                auth.signature = Some(pair.sign(nonce)?);
            }
            Self::Creds { jwt, seed } => {
                auth.jwt = Some(jwt.expose_secret().to_owned());
                auth.signature = Some(KeyPair::from_seed(seed.expose_secret())?.sign(nonce)?);
            }
        }
        Ok(auth)
    }
}

fn check_seed(seed: &str) -> Result<(), InvalidText> {
    let pair = KeyPair::from_seed(seed).map_err(|_| invalid(NO_SEED))?;
    // Servers let only users log in.
    if matches!(pair.key_pair_type(), KeyPairType::User) { Ok(()) } else { Err(invalid(NO_SEED)) }
}

/// Address of a NATS server. Contains no user name and no password, so it may be shown.
#[derive(Clone, Debug, derive_more::Display, PartialEq, Eq, Hash)]
#[display("{}://{endpoint}", self.scheme())]
pub struct ServerUrl {
    /// Whether TLS is required. With `nats://` TLS is spoken too if the server asks for it.
    pub needs_tls: bool,
    /// Host and port.
    pub endpoint: Endpoint,
}

/// The port where the URL names none.
const PORT: u16 = 4222;

impl ServerUrl {
    /// Parses `nats://host[:4222]` or `tls://host[:4222]`.
    ///
    /// # Errors
    /// The text is not such a URL. Errors never repeat it.
    pub fn parse(text: &str) -> Result<Self, InvalidText> {
        let needs_tls = match text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase()).as_deref() {
            Some("nats") => false,
            Some("tls") => true,
            _ => return Err(invalid("unknown scheme; write nats://host or tls://host")),
        };
        let (endpoint, url) = broker_url::parse(text, PORT)?;
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(invalid("the URL continues after the port, which NATS does not allow; remove that part"));
        }
        Ok(Self { needs_tls, endpoint })
    }

    /// Returns another server of the same system, which one of them names as `host:port`.
    pub(super) fn sibling(&self, address: &str) -> Result<Self, InvalidText> {
        // The address has no scheme. TLS that the config requires is required of the siblings too.
        Self::parse(&format!("{}://{address}", self.scheme()))
    }

    fn scheme(&self) -> &'static str {
        if self.needs_tls { "tls" } else { "nats" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_shows_its_port_and_parses_back() {
        for (text, shown) in [
            ("nats://localhost", "nats://localhost:4222"),
            ("NATS://Bus.Example:4333/", "nats://bus.example:4333"),
            ("tls://bus.example", "tls://bus.example:4222"),
            ("nats://[::1]", "nats://[::1]:4222"),
        ] {
            let url = ServerUrl::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(url.to_string(), shown);
            assert_eq!(ServerUrl::parse(shown).unwrap(), url);
        }
        let url = ServerUrl::parse("tls://a").unwrap();
        assert_eq!(url.sibling("10.0.0.1:4223").unwrap().to_string(), "tls://10.0.0.1:4223");
    }

    #[test]
    fn an_invalid_url_is_refused_with_its_reason() {
        for (text, expected) in [
            ("", "unknown scheme"),
            ("localhost:4222", "unknown scheme"),
            ("mqtt://host", "unknown scheme"),
            ("nats://", "names no host"),
            ("nats://host:port", "port"),
            ("nats://host:0", "port"),
            ("nats://bröker", "plain name"),
            ("nats://user:hunter2@host", "user name"),
            ("nats://hunter2@host", "user name"),
            ("nats://host/path", "continues after the port"),
            ("tls://host?x", "continues after the port"),
        ] {
            let error = ServerUrl::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{text}: {error}");
        }
    }

    #[test]
    fn a_seed_and_a_credentials_file_are_parsed_and_never_shown() {
        let seed = KeyPair::new_user().seed().unwrap();
        let nkey = Login::parse_nkey(&format!("# mine\n{seed}\n")).unwrap();
        let creds = format!(
            "-----BEGIN NATS USER JWT-----\neyJ0.x.y\n------END NATS USER JWT------\n\n*** IMPORTANT ***\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        let creds = Login::parse_creds(&creds).unwrap();
        for login in [&nkey, &creds] {
            assert!(!format!("{login:?}").contains(&seed) && !format!("{login:?}").contains("eyJ0"));
            assert_eq!(login.answer(b"nonce").unwrap().signature.unwrap().len(), 64);
        }
        assert!(nkey.answer(b"").unwrap().nkey.unwrap().starts_with('U'));
        assert_eq!(creds.answer(b"").unwrap().jwt.as_deref(), Some("eyJ0.x.y"));
        let account = KeyPair::new_account().seed().unwrap();
        for bad in ["", "SUxx", &account, "eyJ0"] {
            assert_eq!(Login::parse_nkey(bad).unwrap_err(), invalid(NO_SEED));
            assert_eq!(Login::parse_creds(bad).unwrap_err(), invalid(NO_CREDS));
        }
    }

    proptest::proptest! {
        #[test]
        fn every_accepted_url_parses_back_and_no_error_shows_a_secret(rest in "[ -~]{0,40}", scheme in "nats|tls") {
            if let Ok(url) = ServerUrl::parse(&format!("{scheme}://{rest}")) {
                proptest::prop_assert_eq!(ServerUrl::parse(&url.to_string()), Ok(url));
            }
            if let Err(error) = ServerUrl::parse(&format!("{scheme}://user:hunter2@{rest}")) {
                let shown = format!("{error} {error:?}");
                proptest::prop_assert!(!shown.contains("hunter2"));
            }
        }

        #[test]
        fn no_login_file_panics(text in "[ -~\n]{0,200}") {
            Login::parse_nkey(&text).ok();
            Login::parse_creds(&text).ok();
        }
    }
}
