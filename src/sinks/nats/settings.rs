//! What a user says about one NATS system, parsed and checked.
//!
//! Whoever holds a [`Settings`] holds values that may go into a subject or onto the network as they
//! are. Every parser says what is wrong and what would be right, and never repeats a text that may
//! hold a secret.
//!
//! Pure: reading files and the network are left to others.

use std::fmt;

use nkeys::{KeyPair, KeyPairType};
use secrecy::{ExposeSecret, SecretString};

use crate::model::{ServerName, SinkName};
pub use crate::sinks::broker::prefix::Prefix;
use crate::sinks::broker::url::{self as broker_url, Endpoint, InvalidEndpoint};
pub use crate::sinks::tls::ClientCert;

/// One NATS system, and what it gets.
#[derive(Clone, Debug)]
pub struct Settings {
    pub name: SinkName,
    /// Checked as a server's name is, and not [`RESERVED_INSTANCE`].
    pub instance: String,
    /// At least one; any of them will do.
    pub urls: Vec<ServerUrl>,
    pub login: Login,
    /// Instead of the certificate authorities that the machine trusts.
    pub ca_pem: Option<Vec<u8>>,
    pub client_cert: Option<ClientCert>,
    pub prefix: Prefix,
    /// The servers whose events go here and whose commands are taken from here.
    pub servers: Vec<ServerName>,
    /// `false`: nothing is stored by the NATS servers.
    pub jetstream: bool,
    /// Of the stream and the bucket, where they have to be made.
    pub replicas: u8,
    /// `false`: the service is there, but has no endpoints.
    pub takes_commands: bool,
}

/// With this name of a bridge its own subjects would look like those of events.
pub const RESERVED_INSTANCE: &str = "event";

/// As who we come.
#[derive(Clone, Debug, Default)]
pub enum Login {
    #[default]
    Nobody,
    Token(SecretString),
    User {
        name: String,
        password: SecretString,
    },
    /// The seed of a user's key.
    Nkey(SecretString),
    /// What a credentials file holds: who we are, and the seed of the key that proves it.
    Creds {
        jwt: SecretString,
        seed: SecretString,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidLogin {
    #[error("there is no seed of a user's key in it: it is one line that begins with SU")]
    Seed,
    #[error(
        "it is no credentials file: name one as `nsc` writes it, with -----BEGIN NATS USER JWT----- and -----BEGIN USER NKEY SEED-----"
    )]
    Creds,
}

impl Login {
    /// # Errors
    /// The text holds no seed of a user's key.
    pub fn parse_nkey(text: &str) -> Result<Self, InvalidLogin> {
        let seed = text.lines().map(str::trim).find(|line| line.starts_with("SU")).ok_or(InvalidLogin::Seed)?;
        check_seed(seed)?;
        Ok(Self::Nkey(seed.into()))
    }

    /// # Errors
    /// The text is no credentials file.
    pub fn parse_creds(text: &str) -> Result<Self, InvalidLogin> {
        let block = |name: &str| {
            let mut lines = text.lines().map(str::trim);
            lines.find(|line| line.starts_with("-----BEGIN") && line.contains(name))?;
            lines.find(|line| !line.is_empty() && !line.starts_with('-'))
        };
        let (jwt, seed) = block("JWT").zip(block("SEED")).ok_or(InvalidLogin::Creds)?;
        check_seed(seed).map_err(|_| InvalidLogin::Creds)?;
        Ok(Self::Creds { jwt: jwt.into(), seed: seed.into() })
    }

    /// What the server is shown when it says `nonce`.
    pub(super) fn answer(&self, nonce: &[u8]) -> Result<async_nats::Auth, nkeys::error::Error> {
        let mut auth = async_nats::Auth::new();
        match self {
            Self::Nobody => {}
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

fn check_seed(seed: &str) -> Result<(), InvalidLogin> {
    let pair = KeyPair::from_seed(seed).map_err(|_| InvalidLogin::Seed)?;
    if matches!(pair.key_pair_type(), KeyPairType::User) { Ok(()) } else { Err(InvalidLogin::Seed) }
}

/// Where a NATS server is. Holds no user name and no password, so it may be shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ServerUrl {
    /// Not without TLS. With `nats://` there is TLS too, if the server wants it.
    pub needs_tls: bool,
    pub endpoint: Endpoint,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidServerUrl {
    #[error("the URL has no scheme that is known here: write nats://host or tls://host")]
    Scheme,
    #[error(transparent)]
    Endpoint(#[from] InvalidEndpoint),
    #[error("the URL has something behind the port, which NATS does not know: remove it")]
    Path,
}

const PORT: u16 = 4222;

impl ServerUrl {
    /// Reads `nats://host[:4222]` or `tls://host[:4222]`.
    pub fn parse(text: &str) -> Result<Self, InvalidServerUrl> {
        let needs_tls = match text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase()).as_deref() {
            Some("nats") => false,
            Some("tls") => true,
            _ => return Err(InvalidServerUrl::Scheme),
        };
        let (endpoint, url) = broker_url::parse(text, PORT)?;
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(InvalidServerUrl::Path);
        }
        Ok(Self { needs_tls, endpoint })
    }

    /// Another server of the same system, as one of them names it: `host:port`.
    pub(super) fn sibling(&self, address: &str) -> Result<Self, InvalidServerUrl> {
        let scheme = if self.needs_tls { "tls" } else { "nats" };
        Self::parse(&format!("{scheme}://{address}"))
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.needs_tls { "tls" } else { "nats" };
        write!(out, "{scheme}://{}", self.endpoint)
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_shows_its_port_and_reads_back() {
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
    fn a_wrong_url_is_told_what_would_be_right() {
        use {InvalidEndpoint as At, InvalidServerUrl as Wrong};
        for (text, expected) in [
            ("", Wrong::Scheme),
            ("localhost:4222", Wrong::Scheme),
            ("mqtt://host", Wrong::Scheme),
            ("nats://", At::NoHost.into()),
            ("nats://host:port", At::Port.into()),
            ("nats://host:0", At::Port.into()),
            ("nats://bröker", At::Host.into()),
            ("nats://user:hunter2@host", At::Credentials.into()),
            ("nats://hunter2@host", At::Credentials.into()),
            ("nats://host/path", Wrong::Path),
            ("tls://host?x", Wrong::Path),
        ] {
            assert_eq!(ServerUrl::parse(text), Err(expected.clone()), "{text}");
            assert!(!format!("{expected} {expected:?}").contains("hunter2"));
        }
    }

    #[test]
    fn a_seed_and_a_credentials_file_are_read_and_never_shown() {
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
            assert_eq!(Login::parse_nkey(bad).unwrap_err(), InvalidLogin::Seed);
            assert_eq!(Login::parse_creds(bad).unwrap_err(), InvalidLogin::Creds);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_url_that_is_taken_reads_back_and_no_error_tells_a_secret(rest in "[ -~]{0,40}", scheme in "nats|tls") {
            if let Ok(url) = ServerUrl::parse(&format!("{scheme}://{rest}")) {
                proptest::prop_assert_eq!(ServerUrl::parse(&url.to_string()), Ok(url));
            }
            if let Err(error) = ServerUrl::parse(&format!("{scheme}://user:hunter2@{rest}")) {
                let told = format!("{error} {error:?}");
                proptest::prop_assert!(!told.contains("hunter2"));
            }
        }

        #[test]
        fn no_login_file_panics(text in "[ -~\n]{0,200}") {
            Login::parse_nkey(&text).ok();
            Login::parse_creds(&text).ok();
        }
    }
}
