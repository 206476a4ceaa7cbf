//! The first levels of every topic or subject: `dtorrent`, or several as `home/dtorrent`.

use crate::sinks::invalid::{InvalidText, invalid};

/// A topic prefix, checked and in the notation of its protocol.
///
/// May be published to as it is: no empty level, no wildcard, no name that brokers reserve.
#[derive(Clone, Debug, derive_more::Display, PartialEq, Eq, Hash)]
pub struct Prefix(String);

/// The rules of one protocol.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Rules {
    protocol: &'static str,
    separators: &'static [char],
    wildcards: [char; 2],
    /// First characters of topics that a broker keeps for itself.
    reserved: &'static [char],
    allows_spaces: bool,
}

/// MQTT 5, sections 4.7.1 and 4.7.2.
const MQTT: Rules =
    Rules { protocol: "MQTT", separators: &['/'], wildcards: ['+', '#'], reserved: &['$'], allows_spaces: true };

/// NATS separates tokens by dots; a prefix written for MQTT means the same there.
const NATS: Rules = Rules {
    protocol: "NATS",
    separators: &['.', '/'],
    wildcards: ['*', '>'],
    reserved: &['$', '_'],
    allows_spaces: false,
};

impl Prefix {
    /// Prefix where none is configured.
    pub const DEFAULT: &str = "dtorrent";

    /// Maximum length, which leaves room below it for the longest topic that brokers accept.
    pub const BYTES_MAX: usize = 200;

    /// Reads a prefix of MQTT topics.
    ///
    /// # Errors
    /// The text is empty or too long, or has an empty level, a wildcard or a reserved start.
    pub fn of_topics(text: &str) -> Result<Self, InvalidText> {
        check(text, &MQTT)?;
        Ok(Self(text.to_owned()))
    }

    /// Reads a prefix of NATS subjects. Its tokens may be separated by `/` too.
    ///
    /// # Errors
    /// As for [`Self::of_topics`], and if the text contains white space.
    pub fn of_subjects(text: &str) -> Result<Self, InvalidText> {
        check(text, &NATS)?;
        Ok(Self(text.replace('/', ".")))
    }

    /// Returns the text as it is written in topics or subjects.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check(text: &str, rules: &Rules) -> Result<(), InvalidText> {
    let [one, other] = rules.wildcards;
    if text.is_empty() {
        return Err(invalid("the prefix is empty; leave the key out, or name at least one level"));
    }
    if text.len() > Prefix::BYTES_MAX {
        return Err(invalid(format!("the prefix is too long; use at most {} bytes", Prefix::BYTES_MAX)));
    }
    if text.split(rules.separators).any(str::is_empty) {
        let wrong = "the prefix has an empty level";
        return Err(invalid(format!("{wrong}; write levels with one separator between them, as in `home/torrents`")));
    }
    // Brokers refuse a publish to it, and a subscription to it would match topics of other programs.
    if text.contains(rules.wildcards) {
        let wrong = format!("the prefix contains a wildcard of {} (`{one}` or `{other}`)", rules.protocol);
        return Err(invalid(format!("{wrong}; use other characters")));
    }
    if let Some(first) = text.chars().next().filter(|first| rules.reserved.contains(first)) {
        let wrong = format!("the prefix begins with `{first}`, which is reserved for brokers");
        return Err(invalid(format!("{wrong}; begin with a letter")));
    }
    if text.chars().any(|c| c.is_control() || (c.is_whitespace() && !rules.allows_spaces)) {
        return Err(invalid("the prefix contains a control character or white space; use printable characters"));
    }
    Ok(())
}

impl Default for Prefix {
    fn default() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_of_topics_is_one_or_more_levels_without_wildcards() {
        for good in ["dtorrent", "a/b", "Haus/Keller 1/tørrent", &"x".repeat(200)] {
            assert_eq!(Prefix::of_topics(good).unwrap().as_str(), good);
        }
        for (bad, expected) in [
            ("", "is empty"),
            ("/a", "empty level"),
            ("a/", "empty level"),
            ("a//b", "empty level"),
            ("a/+", "wildcard of MQTT (`+` or `#`)"),
            ("a#", "wildcard of MQTT (`+` or `#`)"),
            ("$SYS", "begins with `$`"),
            ("a\0b", "control character"),
            ("a\n", "control character"),
            (&"x".repeat(201), "too long"),
        ] {
            let error = Prefix::of_topics(bad).unwrap_err().to_string();
            assert!(error.contains(expected), "{bad:?}: {error}");
        }
    }

    #[test]
    fn a_prefix_of_subjects_is_one_or_more_tokens_without_wildcards() {
        for (good, subject) in [("dtorrent", "dtorrent"), ("a/b", "a.b"), ("a.b", "a.b"), ("tørrent", "tørrent")] {
            assert_eq!(Prefix::of_subjects(good).unwrap().as_str(), subject);
        }
        for (bad, expected) in [
            ("", "is empty"),
            ("a/", "empty level"),
            (".a", "empty level"),
            ("a..b", "empty level"),
            ("a.*", "wildcard of NATS (`*` or `>`)"),
            ("a>", "wildcard of NATS (`*` or `>`)"),
            ("$JS", "begins with `$`"),
            ("_INBOX", "begins with `_`"),
            ("a b", "control character"),
            ("a\r\nPUB x 0", "control character"),
            (&"x".repeat(201), "too long"),
        ] {
            let error = Prefix::of_subjects(bad).unwrap_err().to_string();
            assert!(error.contains(expected), "{bad:?}: {error}");
        }
    }
}
