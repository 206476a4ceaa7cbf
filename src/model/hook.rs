//! Hooks of a client that notify the bridge, and the signals that they send.
//!
//! A client with hooks appends a line to a file when something happens in it: the hash of the torrent. The path is part
//! of a command of the client, so it consists of characters that no client interprets. A signal is a hint, never
//! evidence: the hash says which torrent to poll.

use std::collections::BTreeSet;

use super::{InfoHash, InvalidServerName, ServerName};

/// The absolute path of the file that a client appends its signals to.
#[derive(Clone, Debug, derive_more::Display, PartialEq, Eq)]
pub struct HookFile(String);

/// A path that is no [`HookFile`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` cannot be the file of a hook: the path has to be absolute, of letters, digits and `/ . _ - + @`, because the \
     client interprets others", .0.escape_default()
)]
pub struct InvalidHookFile(String);

impl HookFile {
    /// Parses a path.
    ///
    /// # Errors
    /// The path is not absolute, or has a character that a client could interpret.
    pub fn parse(path: &str) -> Result<Self, InvalidHookFile> {
        let is_plain = path.chars().all(|c| c.is_alphanumeric() || "/._-+@".contains(c));
        match is_plain && path.starts_with('/') && !path.ends_with('/') {
            true => Ok(Self(path.to_owned())),
            false => Err(InvalidHookFile(path.chars().take(200).collect())),
        }
    }

    /// Returns the path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of the bridge's hooks in a client.
///
/// The same in each run of a bridge, so that hooks of an earlier run are found and replaced, and different for each
/// bridge and server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookKey(String);

impl HookKey {
    /// Begin of every key of this program. rTorrent runs hooks in the order of their keys, so these run first.
    // Behind a foreign hook that erases the torrent, 0.15.7 and 0.16.20 crash when ours asks for its hash.
    pub const PREFIX: &str = "!!dtorrent.";
    /// Begin of the keys that earlier versions of this program used.
    pub(crate) const FORMER_PREFIX: &str = "zz_dtorrent.";

    /// Makes the key of a bridge and a server.
    ///
    /// # Errors
    /// The instance is no slug.
    pub fn new(instance: &str, server: &ServerName) -> Result<Self, InvalidServerName> {
        let instance = ServerName::parse(instance)?;
        // A slug has no dot, so no two pairs make the same key.
        Ok(Self(format!("{}{instance}.{server}", Self::PREFIX)))
    }

    /// Returns the key that earlier versions used for the same bridge and server.
    pub(crate) fn former(&self) -> Self {
        Self(self.0.replacen(Self::PREFIX, Self::FORMER_PREFIX, 1))
    }

    /// Returns the key as the client stores it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A hook to install in a client.
#[derive(Clone, Debug)]
pub struct Hook {
    /// The name under which the client stores it.
    pub key: HookKey,
    /// Where it writes its signals.
    pub file: HookFile,
}

/// The signals of some lines in a [`HookFile`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HookSignals {
    /// The torrents to poll. Hints.
    pub hashes: BTreeSet<InfoHash>,
    /// An empty line was there, by which a client proves that it writes where the bridge reads.
    pub has_proof: bool,
}

impl HookSignals {
    /// Parses whole lines. Others than hashes are ignored.
    pub fn parse(lines: &[u8]) -> Self {
        let mut signals = Self::default();
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            signals.has_proof |= line.is_empty();
            signals.hashes.extend(InfoHash::from_hex(line));
        }
        signals
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "ABCDEF0123456789abcdef0123456789ABCDEF01";

    #[test]
    fn a_path_has_no_character_that_a_command_interprets() {
        for good in ["/x", "/var/lib/dtorrent/hooks/main.home", "/srv/müller/a-b_c+d@e"] {
            assert_eq!(HookFile::parse(good).unwrap().as_str(), good);
        }
        for bad in [
            "", "x", "./x", "~/x", "/x/", "/a b", "/a,b", "/a\"b", "/a$b", "/a;b", "/a=b", "/a(b", "/{a}", "/a\\b",
            "/a\n",
        ] {
            assert!(HookFile::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_bridge_and_server_has_a_key_of_its_own() {
        let key = |instance, server| HookKey::new(instance, &ServerName::parse(server).unwrap()).unwrap();
        assert_eq!(key("main", "home").as_str(), "!!dtorrent.main.home");
        assert_eq!(key("main", "home").former().as_str(), "zz_dtorrent.main.home");
        assert_ne!(key("a_b", "c"), key("a", "b_c"));
        assert!(HookKey::new("a.b", &ServerName::parse("c").unwrap()).is_err());
    }

    #[test]
    fn a_key_sorts_before_those_of_rtorrent_and_of_others() {
        for theirs in
            ["!_timestamp", "!view.seeding", "+first", "00_first", "1_prepare", "A", "_first", "move_complete"]
        {
            assert!(HookKey::PREFIX < theirs, "{theirs}");
        }
    }

    #[test]
    fn lines_are_hashes_or_a_proof_and_nothing_else() {
        let (hash, other) = (HASH.parse().unwrap(), "1".repeat(40));
        let parse = |text: &str| HookSignals::parse(text.as_bytes());
        let signals =
            |hashes: &[InfoHash], has_proof| HookSignals { hashes: hashes.iter().copied().collect(), has_proof };
        assert_eq!(parse(""), signals(&[], false));
        assert_eq!(parse("\n"), signals(&[], true));
        assert_eq!(parse(&format!("{HASH}\n")), signals(&[hash], false));
        assert_eq!(parse(&format!("{HASH}\n\nx\n{other}\n{HASH}\n")), signals(&[hash, other.parse().unwrap()], true));
        for wrong in [&HASH[1..], &format!(" {HASH}"), &format!("{HASH}\r")] {
            assert_eq!(parse(&format!("{wrong}\n")), signals(&[], false), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_lines_are_read_without_a_panic(lines in ".*") {
            prop_assert!(HookSignals::parse(lines.as_bytes()).hashes.len() <= lines.len() / 40);
        }

        #[test]
        fn any_text_taken_for_a_path_stays_as_it_is(text in ".*|/[a-z./]{1,20}") {
            if let Ok(file) = HookFile::parse(&text) {
                prop_assert_eq!(file.as_str(), text);
                let is_interpreted = file.as_str().contains(['"', '$', ',', ';', '=', ' ', '\\', '{', '(']);
                prop_assert!(!is_interpreted);
            }
        }
    }
}
