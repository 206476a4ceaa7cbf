//! The first levels of every topic or subject: `dtorrent`, or several as `home/dtorrent`.

use std::fmt;

/// A topic prefix, checked and in the notation of its protocol.
///
/// May be published to as it is: no empty level, no wildcard, no name that brokers reserve.
#[derive(Clone, PartialEq, Eq, Hash)]
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

/// Reason why a text is not a [`Prefix`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidPrefix {
    /// No text at all.
    #[error("the prefix is empty; leave the key out, or name at least one level")]
    Empty,
    /// More than [`Prefix::BYTES_MAX`].
    #[error("the prefix is too long; use at most {} bytes", Prefix::BYTES_MAX)]
    TooLong,
    /// A separator at an end, or two together.
    #[error("the prefix has an empty level; write levels with one separator between them, as in `home/torrents`")]
    EmptyLevel,
    /// A wildcard of the protocol.
    #[error("the prefix contains a wildcard of {0} (`{1}` or `{2}`); use other characters")]
    Wildcard(&'static str, char, char),
    /// The first character marks topics of the broker itself.
    #[error("the prefix begins with `{0}`, which is reserved for brokers; begin with a letter")]
    Reserved(char),
    /// A control character or, in NATS, white space.
    #[error("the prefix contains a control character or white space; use printable characters")]
    Unprintable,
}

impl Prefix {
    /// Prefix where none is configured.
    pub const DEFAULT: &str = "dtorrent";

    /// Maximum length, which leaves room below it for the longest topic that brokers accept.
    pub const BYTES_MAX: usize = 200;

    /// Reads a prefix of MQTT topics.
    ///
    /// # Errors
    /// The text is empty or too long, or has an empty level, a wildcard or a reserved start.
    pub fn of_topics(text: &str) -> Result<Self, InvalidPrefix> {
        check(text, &MQTT)?;
        Ok(Self(text.to_owned()))
    }

    /// Reads a prefix of NATS subjects. Its tokens may be separated by `/` too.
    ///
    /// # Errors
    /// As for [`Self::of_topics`], and if the text contains white space.
    pub fn of_subjects(text: &str) -> Result<Self, InvalidPrefix> {
        check(text, &NATS)?;
        Ok(Self(text.replace('/', ".")))
    }

    /// Returns the text as it stands in topics or subjects.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check(text: &str, rules: &Rules) -> Result<(), InvalidPrefix> {
    let [one, other] = rules.wildcards;
    if text.is_empty() {
        return Err(InvalidPrefix::Empty);
    }
    if text.len() > Prefix::BYTES_MAX {
        return Err(InvalidPrefix::TooLong);
    }
    if text.split(rules.separators).any(str::is_empty) {
        return Err(InvalidPrefix::EmptyLevel);
    }
    if text.contains(rules.wildcards) {
        return Err(InvalidPrefix::Wildcard(rules.protocol, one, other));
    }
    if let Some(first) = text.chars().next().filter(|first| rules.reserved.contains(first)) {
        return Err(InvalidPrefix::Reserved(first));
    }
    if text.chars().any(|c| c.is_control() || (c.is_whitespace() && !rules.allows_spaces)) {
        return Err(InvalidPrefix::Unprintable);
    }
    Ok(())
}

impl Default for Prefix {
    fn default() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
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
            ("", InvalidPrefix::Empty),
            ("/a", InvalidPrefix::EmptyLevel),
            ("a/", InvalidPrefix::EmptyLevel),
            ("a//b", InvalidPrefix::EmptyLevel),
            ("a/+", InvalidPrefix::Wildcard("MQTT", '+', '#')),
            ("a#", InvalidPrefix::Wildcard("MQTT", '+', '#')),
            ("$SYS", InvalidPrefix::Reserved('$')),
            ("a\0b", InvalidPrefix::Unprintable),
            ("a\n", InvalidPrefix::Unprintable),
            (&"x".repeat(201), InvalidPrefix::TooLong),
        ] {
            assert_eq!(Prefix::of_topics(bad), Err(expected), "{bad:?}");
        }
    }

    #[test]
    fn a_prefix_of_subjects_is_one_or_more_tokens_without_wildcards() {
        for (good, subject) in [("dtorrent", "dtorrent"), ("a/b", "a.b"), ("a.b", "a.b"), ("tørrent", "tørrent")] {
            assert_eq!(Prefix::of_subjects(good).unwrap().as_str(), subject);
        }
        for (bad, expected) in [
            ("", InvalidPrefix::Empty),
            ("a/", InvalidPrefix::EmptyLevel),
            (".a", InvalidPrefix::EmptyLevel),
            ("a..b", InvalidPrefix::EmptyLevel),
            ("a.*", InvalidPrefix::Wildcard("NATS", '*', '>')),
            ("a>", InvalidPrefix::Wildcard("NATS", '*', '>')),
            ("$JS", InvalidPrefix::Reserved('$')),
            ("_INBOX", InvalidPrefix::Reserved('_')),
            ("a b", InvalidPrefix::Unprintable),
            ("a\r\nPUB x 0", InvalidPrefix::Unprintable),
            (&"x".repeat(201), InvalidPrefix::TooLong),
        ] {
            assert_eq!(Prefix::of_subjects(bad), Err(expected), "{bad:?}");
        }
    }
}
