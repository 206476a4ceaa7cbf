//! Which torrents a command means, said by their properties.

use globset::{Glob, GlobMatcher};
use serde::Deserialize;

use super::{Status, Torrent};

/// A longer pattern is refused. Each opening brace of a glob is a level of recursion, and its automaton
/// costs about a kilobyte a letter: without a limit one pattern overflows the stack or fills the memory.
const NAME_PATTERN_BYTES_MAX: usize = 1000;

/// Conditions on torrents; all that are given must hold. Without any it matches everything.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    status: Option<Status>,
    label: Option<String>,
    name: Option<GlobMatcher>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filter: {0}")]
pub struct InvalidFilter(String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    status: Option<Status>,
    label: Option<String>,
    name: Option<String>,
}

impl Filter {
    /// Reads `{"status": "seeding", "label": "linux", "name": "*.iso"}`; `name` is a glob, case counts not.
    ///
    /// # Errors
    /// An unknown key, an unknown status, or a glob that cannot be read or is too long.
    pub fn from_json(value: serde_json::Value) -> Result<Self, InvalidFilter> {
        let written: Written = serde_json::from_value(value).map_err(|error| InvalidFilter(error.to_string()))?;
        if written.name.as_ref().is_some_and(|pattern| pattern.len() > NAME_PATTERN_BYTES_MAX) {
            return Err(InvalidFilter(format!("name: a pattern has at most {NAME_PATTERN_BYTES_MAX} bytes")));
        }
        let name = written
            .name
            .map(|pattern| globset::GlobBuilder::new(&pattern).case_insensitive(true).build())
            .transpose()
            .map_err(|error| InvalidFilter(format!("name: {error}")))?;
        let name = name.as_ref().map(Glob::compile_matcher);
        Ok(Self { status: written.status, label: written.label, name })
    }

    pub fn matches(&self, torrent: &Torrent) -> bool {
        self.status.is_none_or(|status| torrent.status == status)
            && self.label.as_ref().is_none_or(|label| torrent.label.as_ref() == Some(label))
            && self.name.as_ref().is_none_or(|name| name.is_match(&torrent.name))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_pattern_of_a_stranger_exhausts_the_stack_or_the_memory() {
        let deep = |depth: usize| json!({"name": "{".repeat(depth) + &"}".repeat(depth)});
        let error = Filter::from_json(deep(1_000_000)).unwrap_err();
        assert_eq!(error.to_string(), "filter: name: a pattern has at most 1000 bytes");
        for allowed in [deep(500), json!({"name": "[!a]".repeat(250)}), json!({"name": "*a".repeat(500)})] {
            Filter::from_json(allowed).unwrap();
        }
    }
}
