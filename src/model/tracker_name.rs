//! The names of trackers: host and fingerprint, in place of an announce URL that may hold a passkey.
//!
//! `tracker.example#3fa9c1`: the host says which tracker it is, the fingerprint tells two URLs of one host apart and stays
//! the same over a restart. It is a keyed hash (24 bits of SHA-256): without the key, which stays in the data directory,
//! nobody can try out passkeys against it. Pure.

use sha2::{Digest as _, Sha256};
use url::Url;

/// Digits of a fingerprint: a torrent has some dozens of trackers at most.
const DIGITS: usize = 6;

/// Names the trackers of this bridge.
#[derive(Clone, derive_more::Debug)]
#[debug("TrackerNames")]
pub struct TrackerNames {
    key: [u8; 32],
}

impl TrackerNames {
    /// Returns the names that belong to a key.
    pub fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    /// Returns the name of an announce URL. One without a host, as `dht://` is, has no secret either, and is returned.
    pub fn of(&self, url: &str) -> String {
        let host = Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned));
        let host = host.filter(|host| !host.is_empty());
        match (host, url.split_once("://")) {
            (Some(host), _) => format!("{host}#{}", self.fingerprint(url)),
            (None, Some((_, ""))) => url.to_owned(),
            (None, _) => format!("#{}", self.fingerprint(url)),
        }
    }

    fn fingerprint(&self, url: &str) -> String {
        // A key of fixed length in front needs no HMAC: what is cut off cannot be extended.
        let bytes = Sha256::new().chain_update(self.key).chain_update(url).finalize();
        bytes.iter().take(DIGITS / 2).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// A pattern for schemas: what [`is_tracker_name`] takes.
pub(super) const NAME_PATTERN: &str = r"[A-Za-z0-9.:_\[\]-]{0,255}#[0-9A-Fa-f]{6}";

/// Whether a text has the form of a name.
pub(super) fn is_tracker_name(text: &str) -> bool {
    let is_fingerprint = |text: &str| text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let host = |host: &str| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".:_-[]".contains(&byte));
    text.len() <= 262 && text.rsplit_once('#').is_some_and(|(name, print)| host(name) && is_fingerprint(print))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_host_and_fingerprint_and_shows_nothing_else_of_the_url() {
        let names = TrackerNames::new([7; 32]);
        let one = names.of("https://tracker.example:443/0123456789abcdef/announce");
        let other = names.of("https://tracker.example:443/0123456789abcdee/announce");
        assert!(one.starts_with("tracker.example#") && one.len() == "tracker.example#".len() + 6, "{one}");
        assert!(is_tracker_name(&one) && one != other);
        assert_eq!(one, names.of("https://tracker.example:443/0123456789abcdef/announce"), "always the same");
        assert_ne!(one, TrackerNames::new([8; 32]).of("https://tracker.example:443/0123456789abcdef/announce"));
        assert!(names.of("udp://[2001:db8::1]:6969").starts_with("[2001:db8::1]#"));
        assert_eq!(names.of("dht://"), "dht://");
        assert!(names.of("/home/me/passkey").starts_with('#'));
    }

    #[test]
    fn no_url_has_the_form_of_a_name() {
        for text in ["", "#", "a.example#12345", "a.example#12345g", "http://a.example/#123456", "a b#123456"] {
            assert!(!is_tracker_name(text), "{text}");
        }
        for text in ["a.example#12abCD", "[::1]#000000", "#123456"] {
            assert!(is_tracker_name(text), "{text}");
        }
    }
}
