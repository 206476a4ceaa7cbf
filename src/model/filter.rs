//! Which torrents a command means, said by their properties.

use globset::{Glob, GlobMatcher};
use serde::Deserialize;

use super::{Status, Torrent};

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
    /// An unknown key, an unknown status, or a glob that cannot be read.
    pub fn from_json(value: serde_json::Value) -> Result<Self, InvalidFilter> {
        let written: Written = serde_json::from_value(value).map_err(|error| InvalidFilter(error.to_string()))?;
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
