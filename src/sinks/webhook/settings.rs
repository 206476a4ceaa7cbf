//! Settings of one webhook, and the parsers of its texts.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use secrecy::{ExposeSecret as _, SecretString};
use url::{Position, Url};

pub use super::body::{FORMATS, Format};
pub use super::filter::EventFilter;
pub use super::sign::Secrets;
pub use super::template::{InvalidTemplate, Template};
use crate::model::{ANYWHERE_CHARS_MIN, Mask, SinkName};
use crate::sinks::invalid::{InvalidText, invalid};
use crate::tls::Trust;

/// Settings of one endpoint.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the webhook in the config.
    pub name: SinkName,
    /// URL that events are posted to.
    pub address: Address,
    /// Format of the body.
    pub format: Format,
    /// Events that are posted.
    pub filter: EventFilter,
    /// Secrets that sign each request.
    pub secrets: Option<Secrets>,
    /// Login of the bridge.
    pub login: Option<Login>,
    /// More headers; each may be a secret.
    pub headers: HeaderMap,
    /// Which servers are trusted with TLS.
    pub trust: Trust,
    /// Limit for one request with its answer.
    pub timeout: Duration,
    /// Age at which an undelivered event becomes a dead letter.
    pub keep_trying: Duration,
}

impl Settings {
    /// Returns what is a secret between the bridge and this endpoint: also a path of plain words, and every long header, which
    /// the mask of the whole config leaves out because they are in other texts as well.
    pub(super) fn mask(&self) -> Mask {
        let (mut mask, url) = (Mask::default(), self.address.url());
        let is_long = |text: &&str| text.chars().count() >= ANYWHERE_CHARS_MIN;
        [url.path(), &url[Position::BeforePath..]].into_iter().filter(is_long).for_each(|text| mask.add(text));
        url.query_pairs().filter(|(_, value)| is_long(&&**value)).for_each(|(_, value)| mask.add(&value));
        let headers = self.headers.iter().filter_map(|(name, value)| Some((name, value.to_str().ok()?)));
        headers.filter(|(_, value)| is_long(value)).for_each(|(name, value)| mask.add_header(name.as_str(), value));
        mask.built()
    }
}

/// Login of the bridge at an endpoint.
#[derive(Clone, Debug)]
pub enum Login {
    /// HTTP basic authentication.
    User {
        /// Name of the user.
        name: String,
        /// Empty if none is configured.
        password: SecretString,
    },
    /// `Authorization: Bearer`.
    Token(SecretString),
}

/// URL that events are posted to.
///
/// The URL's path and query may be a secret (Discord's and Slack's are), so they are never shown.
#[derive(Clone, derive_more::Debug, derive_more::Display, PartialEq, Eq)]
#[display("{}/…", self.host())]
#[debug("{self}")]
pub struct Address(Url);

impl Address {
    /// Parses an http or https URL.
    ///
    /// # Errors
    /// The text is not such a URL. Errors never repeat it.
    pub fn parse(text: &str) -> Result<Self, InvalidText> {
        let text = text.trim();
        let url = Url::parse(text).map_err(|_| invalid("is not a URL; write url = \"https://host/path\""))?;
        // Compared with the text: `Url` lower-cases the scheme, and adds the slashes that are missing.
        if !text.starts_with("http://") && !text.starts_with("https://") {
            return Err(invalid("unknown scheme; write http://… or https://…"));
        }
        if url.username() != "" || url.password().is_some() {
            let wrong = "the URL contains a user name or password";
            return Err(invalid(format!("{wrong}; move them to `username` and `password_file`")));
        }
        if url.fragment().is_some() {
            return Err(invalid("has a `#`, which is never sent; leave it and what follows out"));
        }
        Ok(Self(url))
    }

    /// Divides an address of ntfy into its parent and the topic: JSON is posted to the parent of all topics.
    ///
    /// # Errors
    /// The address does not end in a topic.
    pub fn split_topic(&self) -> Result<(Self, String), InvalidText> {
        let no_topic = || invalid("names no topic; write it at the end, as \"https://ntfy.sh/my-topic\"");
        // JSON is posted to the root of the server, with the topic in the body; posted to the topic's own path it would be shown
        // as the text of the message.
        let mut url = self.0.clone();
        let path = url.path().trim_end_matches('/');
        let (parent, topic) = path.rsplit_once('/').ok_or_else(no_topic)?;
        let topic = percent_encoding::percent_decode_str(topic).decode_utf8().map_err(|_| no_topic())?;
        if topic.is_empty() {
            return Err(no_topic());
        }
        let (parent, topic) = (format!("{parent}/"), topic.into_owned());
        url.set_path(&parent);
        Ok((Self(url), topic))
    }

    /// Returns whether TLS is spoken.
    pub fn is_encrypted(&self) -> bool {
        self.0.scheme() == "https"
    }

    /// Returns the whole URL, which may be a secret.
    pub fn url(&self) -> &Url {
        &self.0
    }

    /// Returns scheme, host and port, without the path.
    pub fn host(&self) -> &str {
        &self.0[..Position::BeforePath]
    }
}

/// Headers that every request has, or that would change where it ends.
const RESERVED: [&str; 8] = [
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "connection",
    "webhook-id",
    "webhook-timestamp",
    "webhook-signature",
];

/// Parses one header, whose value becomes sensitive.
///
/// # Errors
/// The name or the value cannot be sent. Errors never show the value.
pub fn header(name: &str, value: &SecretString) -> Result<(HeaderName, HeaderValue), InvalidText> {
    let shown = || name.escape_default().take(80).collect::<String>();
    let parsed = HeaderName::try_from(name)
        .map_err(|_| invalid(format!("`{}` is not a header name; write one like \"X-Api-Key\"", shown())))?;
    if RESERVED.contains(&parsed.as_str()) {
        return Err(invalid(format!("`{}` is written by dtorrent itself; leave it out", shown())));
    }
    let mut value = HeaderValue::try_from(value.expose_secret()).map_err(|_| {
        let wrong = format!("the value of `{}` has a line break or another control character", shown());
        invalid(format!("{wrong}; write one line of text"))
    })?;
    // Sensitive, so that `Debug` of a request does not show it (I14).
    value.set_sensitive(true);
    Ok((parsed, value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A header that is taken is one line; a fault never shows what it has not.
        #[test]
        fn whatever_is_written_as_an_address_or_a_header_is_read_or_refused(
            text in "(https?://)?\\PC{0,40}",
            name in "[A-Za-z0-9 :\r\n-]{0,12}",
            value in "\\PC{0,12}|[\u{0}-\u{1f}a]{0,6}",
        ) {
            if let Ok(address) = Address::parse(&text) {
                prop_assert!(["http", "https"].contains(&address.url().scheme()));
                prop_assert!(address.url().has_host() && address.url().username().is_empty());
                drop(address.split_topic());
            }
            if let Ok((_, value)) = header(&name, &SecretString::from(value)) {
                prop_assert!(!value.as_bytes().iter().any(|byte| b"\r\n\0".contains(byte)) && value.is_sensitive());
            }
        }
    }

    #[test]
    fn an_address_is_http_without_a_login_and_shows_no_path() {
        let address = Address::parse("https://discord.com/api/webhooks/1/sesame?wait=sesame").unwrap();
        assert_eq!((address.to_string().as_str(), address.host()), ("https://discord.com/…", "https://discord.com"));
        assert!(!format!("{address:?}").contains("sesame"));
        for text in [
            "",
            "sesame",
            "ftp://sesame",
            "https://me:sesame@host",
            "https://sesame@host",
            "http://h/#sesame",
            "http://",
        ] {
            let error = Address::parse(text).unwrap_err().to_string();
            assert!(!error.contains("sesame"), "{error}");
        }
    }

    #[test]
    fn the_topic_of_ntfy_is_the_end_of_its_address() {
        for (text, expected) in [
            ("https://ntfy.sh/my-topic", Some(("https://ntfy.sh/", "my-topic"))),
            ("https://host/ntfy/a%20b/", Some(("https://host/ntfy/", "a b"))),
            ("https://ntfy.sh/", None),
            ("https://ntfy.sh", None),
        ] {
            let split = Address::parse(text).unwrap().split_topic().ok();
            let split = split.as_ref().map(|(address, topic)| (address.url().as_str(), topic.as_str()));
            assert_eq!(split, expected, "{text}");
        }
    }

    #[test]
    fn a_header_is_one_line_and_none_of_ours() {
        let secret = |text: &str| SecretString::from(text);
        let (_, value) = header("X-Api-Key", &secret("sesame")).unwrap();
        assert!(!format!("{value:?}").contains("sesame"));
        for (name, value) in [("", "x"), ("a b", "x"), ("Host", "x"), ("Webhook-Id", "x"), ("X", "sesame\r\nHost: y")] {
            let error = header(name, &secret(value)).unwrap_err().to_string();
            assert!(!error.contains("sesame"), "{error}");
        }
    }
}
