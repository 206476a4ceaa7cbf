//! Changes to the trackers of a torrent, by their URLs.
//!
//! Pure.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};
use serde_json::json;
use url::Url;

use super::tracker_name::{NAME_PATTERN, is_tracker_name};

/// Most URLs of one list.
const TRACKERS_MAX: usize = 50;
/// Longest URL, in bytes.
const URL_BYTES_MAX: usize = 2048;
/// The schemes of trackers that clients ask. Another one may be anything to a client, also a file.
const SCHEMES: &[&str] = &["http", "https", "udp"];
/// A pattern for schemas: what [`TrackerChanges::checked`] takes, but for the host.
const URL_PATTERN: &str = "^([hH][tT][tT][pP][sS]?|[uU][dD][pP])://[!-.0-~][!-~]{0,2039}$";
/// The same for a tracker that the torrent has, which may be meant by its name.
static KNOWN_PATTERN: LazyLock<String> = LazyLock::new(|| {
    let url = URL_PATTERN.trim_matches(['^', '$']);
    format!("^({url}|{NAME_PATTERN})$")
});

/// Changes to the trackers of a torrent. A tracker is in one of the lists at most.
// In `Debug` numbers only: URLs of trackers hold passkeys.
#[derive(Clone, derive_more::Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = any_list)]
#[non_exhaustive]
pub struct TrackerChanges {
    /// URLs of trackers that are to be asked, too; one that the torrent has is enabled.
    #[schemars(length(max = TRACKERS_MAX), inner(regex(pattern = URL_PATTERN)))]
    #[debug("{}", add.len())]
    pub add: Vec<String>,
    /// Trackers to remove, by their URLs or names, where the client can (rTorrent cannot: disable them).
    #[schemars(length(max = TRACKERS_MAX), inner(regex(pattern = KNOWN_PATTERN)))]
    #[debug("{}", remove.len())]
    pub remove: Vec<String>,
    /// Trackers of the torrent that are to be asked again, by their URLs or names.
    #[schemars(length(max = TRACKERS_MAX), inner(regex(pattern = KNOWN_PATTERN)))]
    #[debug("{}", enable.len())]
    pub enable: Vec<String>,
    /// Trackers of the torrent that are not to be asked any more, by their URLs or names.
    #[schemars(length(max = TRACKERS_MAX), inner(regex(pattern = KNOWN_PATTERN)))]
    #[debug("{}", disable.len())]
    pub disable: Vec<String>,
}

fn any_list(schema: &mut Schema) {
    let given = |key: &str| json!({"required": [key], "properties": {key: {"minItems": 1}}});
    schema.insert("anyOf".to_owned(), ["add", "remove", "enable", "disable"].map(given).to_vec().into());
}

/// The lists do not say what is to be done. Names places in the lists, because a URL may hold a passkey.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidTrackerChanges(String);

impl TrackerChanges {
    fn lists(&self) -> [(&'static str, &Vec<String>); 4] {
        [("add", &self.add), ("remove", &self.remove), ("enable", &self.enable), ("disable", &self.disable)]
    }

    /// Checks the URLs, and writes their schemes in lower case, the only one that rTorrent knows.
    ///
    /// # Errors
    /// There is no URL, one is wrong, one is in two lists, or a list is too long.
    pub(super) fn checked(mut self) -> Result<Self, InvalidTrackerChanges> {
        let lists = [&mut self.add, &mut self.remove, &mut self.enable, &mut self.disable];
        for (list, name) in lists.into_iter().zip(["add", "remove", "enable", "disable"]) {
            if list.len() > TRACKERS_MAX {
                return Err(InvalidTrackerChanges(format!("{name}: at most {TRACKERS_MAX} trackers are right")));
            }
            for (place, url) in list.iter_mut().enumerate() {
                // One that is added is not there yet, so it has no name.
                if name != "add" && is_tracker_name(url) {
                    continue;
                }
                *url = checked_url(url).ok_or_else(|| {
                    let right = "use an http, https or udp URL of at most 2048 ASCII characters, without spaces";
                    InvalidTrackerChanges(format!("{name}[{place}]: {right}"))
                })?;
            }
        }
        self.each_in_one_list()
    }

    /// Returns the changes with each tracker once, unless one is in two lists.
    pub(crate) fn each_in_one_list(mut self) -> Result<Self, InvalidTrackerChanges> {
        for list in [&mut self.add, &mut self.remove, &mut self.enable, &mut self.disable] {
            list.sort_unstable();
            list.dedup();
        }
        let mut seen = BTreeMap::new();
        for (name, url) in self.lists().into_iter().flat_map(|(name, urls)| urls.iter().map(move |url| (name, url))) {
            if let Some(other) = seen.insert(url, name) {
                return Err(InvalidTrackerChanges(format!("a tracker is in `{other}` and in `{name}`; one is right")));
            }
        }
        if seen.is_empty() {
            return Err(InvalidTrackerChanges(
                "trackers takes add, remove, enable or disable: lists of URLs".to_owned(),
            ));
        }
        Ok(self)
    }

    /// Whether a tracker is meant by its name.
    pub(crate) fn has_names(&self) -> bool {
        [&self.remove, &self.enable, &self.disable].into_iter().flatten().any(|text| is_tracker_name(text))
    }

    /// Puts the URL in place of each name.
    ///
    /// # Errors
    /// The first of `find`.
    pub(crate) fn resolve_names<E>(&mut self, find: impl Fn(&str) -> Result<String, E>) -> Result<(), E> {
        let known = [&mut self.remove, &mut self.enable, &mut self.disable].into_iter().flatten();
        for text in known.filter(|text| is_tracker_name(text)) {
            *text = find(text)?;
        }
        Ok(())
    }

    /// Returns the trackers that the torrent has to have afterwards, each with whether it is asked.
    pub fn wanted(&self) -> impl Iterator<Item = (&str, bool)> {
        let on = self.add.iter().chain(&self.enable).map(|url| (url.as_str(), true));
        on.chain(self.disable.iter().map(|url| (url.as_str(), false)))
    }
}

fn checked_url(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let scheme = scheme.to_ascii_lowercase();
    // The parser would find a host behind a third slash, where a client finds none.
    let is_written_right =
        url.len() <= URL_BYTES_MAX && url.bytes().all(|byte| byte.is_ascii_graphic()) && !rest.starts_with('/');
    if !is_written_right || !SCHEMES.contains(&scheme.as_str()) {
        return None;
    }
    // Only checked by the parser, which would write it anew: trackers compare what they were asked with.
    let url = format!("{scheme}://{rest}");
    Url::parse(&url).ok()?.host_str().is_some_and(|host| !host.is_empty()).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tracker_is_an_http_https_or_udp_url() {
        for (url, expected) in [
            ("http://a.example/announce?passkey=x", Some("http://a.example/announce?passkey=x")),
            ("HTTPS://A.example:443/", Some("https://A.example:443/")),
            ("Udp://[::1]:6969", Some("udp://[::1]:6969")),
            ("udp://127.0.0.1:9/%20x", Some("udp://127.0.0.1:9/%20x")),
            ("", None),
            ("http:a.example", None),
            ("http://", None),
            ("udp:///announce", None),
            ("ftp://a.example/", None),
            ("wss://a.example/", None),
            ("dht://", None),
            ("file:///etc/passwd", None),
            ("$execute={id}://x", None),
            ("http:///a.example/", None),
            ("http://a.example/a b", None),
            ("http://a.example/ü", None),
            ("http://a.example/\n", None),
            (" http://a.example/", None),
        ] {
            assert_eq!(checked_url(url).as_deref(), expected, "{url:?}");
        }
        assert!(checked_url(&format!("http://a/{}", "x".repeat(2048))).is_none());
    }

    #[test]
    fn each_tracker_is_in_one_list_and_errors_hold_no_url() {
        let lists = |add: &[&str], disable: &[&str]| {
            let owned = |urls: &[&str]| urls.iter().map(|url| (*url).to_owned()).collect();
            TrackerChanges { add: owned(add), disable: owned(disable), ..TrackerChanges::default() }.checked()
        };
        let taken = lists(&["http://b/", "http://a/", "HTTP://b/"], &["udp://c:1"]).unwrap();
        assert_eq!(
            taken.wanted().collect::<Vec<_>>(),
            [("http://a/", true), ("http://b/", true), ("udp://c:1", false)]
        );
        assert_eq!(format!("{taken:?}"), "TrackerChanges { add: 2, remove: 0, enable: 0, disable: 1 }");
        for (add, disable, expected) in [
            (&[][..], &[][..], "lists of URLs"),
            (&["http://a/?key=secret"], &["HTTP://a/?key=secret"], "in `add` and in `disable`"),
            (&["http://a/", "ftp://secret/"], &[], "add[1]: "),
            (&["http://a/"; 51], &[], "at most 50"),
        ] {
            let error = lists(add, disable).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("secret"), "{error}");
        }
    }
}
