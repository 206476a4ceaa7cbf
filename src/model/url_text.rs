//! URLs in texts: shown by scheme and host, because the rest may hold a passkey.
//!
//! Trackers, clients and people write URLs into messages, custom values and reasons. A private tracker's URL has the
//! key of its user in the path or the query, and nothing in a text says which part that is. Pure.

use std::borrow::Cow;

/// The text in place of what follows the host.
const HIDDEN: &str = "…";
/// The end of a scheme, as it is and percent-encoded; and the beginning of a magnet link, whose trackers follow.
const MARKS: [&str; 3] = ["://", "%3a%2f%2f", "magnet:?"];

/// Returns a text in which each URL ends after its host, and each magnet link after its scheme.
///
/// A text without a URL is returned as it is, and one that was returned is returned the same again.
pub fn hide_urls(text: &str) -> Cow<'_, str> {
    let (mut hidden, mut rest) = (String::new(), text);
    while let Some((at, mark)) = first_mark(rest) {
        let (before, url) = rest.split_at(at + mark.len());
        let (url, behind) = url.split_at(url.find(ends_url).unwrap_or(url.len()));
        hidden += before;
        hidden += &shown(mark, url);
        rest = behind;
    }
    if hidden.is_empty() { text.into() } else { (hidden + rest).into() }
}

/// Returns the first mark and its place, in one pass: texts from outside may have thousands of one mark and none of another.
fn first_mark(text: &str) -> Option<(usize, &'static str)> {
    let bytes = text.as_bytes();
    let mark_at = |at: usize| {
        let begins =
            |mark: &&str| bytes[at..].get(..mark.len()).is_some_and(|b| b.eq_ignore_ascii_case(mark.as_bytes()));
        Some((at, MARKS.into_iter().find(begins)?))
    };
    (0..bytes.len()).filter(|at| matches!(bytes[*at], b':' | b'%' | b'm' | b'M')).find_map(mark_at)
}

/// Whether a character is in no URL. Others that are seldom in one are taken along: they are shown nowhere else either.
fn ends_url(c: char) -> bool {
    c.is_whitespace() || c.is_control() || matches!(c, '"' | '<' | '>')
}

/// Returns what is shown of a URL behind its mark.
fn shown(mark: &str, url: &str) -> String {
    if mark != "://" {
        return if url.is_empty() { String::new() } else { HIDDEN.to_owned() };
    }
    let (authority, path) = url.split_at(url.find(['/', '?', '#']).unwrap_or(url.len()));
    // A name and a password come before the last `@`.
    let host = authority.rsplit('@').next().unwrap_or_default();
    match path {
        "" | "/" => format!("{host}{path}"),
        _ => format!("{host}/{HIDDEN}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_url_is_shown_up_to_its_host() {
        for (text, expected) in [
            ("", ""),
            ("no URL: a/b?c", "no URL: a/b?c"),
            ("see http://a.example/x/announce?passkey=1 now", "see http://a.example/… now"),
            ("\"udp://a.example:6969/announce\"", "\"udp://a.example:6969/…\""),
            ("HTTPS://me:pass@word@a.example", "HTTPS://a.example"),
            ("http://[::1]:80/?key", "http://[::1]:80/…"),
            ("http://a.example/", "http://a.example/"),
            ("http://a.example?key=1", "http://a.example/…"),
            ("http://a/1 http://b/2", "http://a/… http://b/…"),
            ("tr=http%3A%2F%2Fa.example%2Fkey&x", "tr=http%3A%2F%2F…"),
            ("Magnet:?xt=urn:btih:1&tr=http%3A%2F%2Fa%2Fkey", "Magnet:?…"),
            ("://", "://"),
        ] {
            assert_eq!(hide_urls(text), expected);
            assert_eq!(hide_urls(expected), expected, "it stays so");
        }
    }

    #[test]
    fn many_urls_take_one_pass() {
        // Minutes, if each URL had the rest of the text searched.
        let text = "://a/k ".repeat(1 << 20);
        assert_eq!(hide_urls(&text).len(), "://a/… ".len() << 20);
    }

    proptest! {
        #[test]
        fn nothing_behind_a_host_is_left(before in "\\PC{0,20}", key in "[0-9]{8,20}", mark in "[/?#]") {
            let hidden = hide_urls(&format!("{before} http://a.example{mark}{key}")).into_owned();
            prop_assert!(!hidden.contains(&key), "{hidden}");
            prop_assert_eq!(hide_urls(&hidden), &*hidden);
        }
    }
}
