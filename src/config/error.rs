//! Errors of a config, each with its place, its key and what would be right.

use std::fmt;
use std::path::PathBuf;

use crate::model::printable;

/// Place where a value was written.
#[derive(Clone, Debug, derive_more::Display, PartialEq, Eq)]
pub enum Place {
    /// A line of the config file.
    #[display("{}{}", path.display(), line.map_or(String::new(), |line| format!(":{line}")))]
    File {
        /// Path of the file.
        path: PathBuf,
        /// Counted from 1; `None` if the whole file is meant.
        line: Option<usize>,
    },
    /// An environment variable.
    #[display("environment variable {_0}")]
    Variable(String),
    /// A command-line flag.
    #[display("flag {_0}")]
    Flag(String),
    /// No place: something is missing.
    #[display("config")]
    Nowhere,
}

impl Place {
    /// Returns the line, if the place is one.
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::File { line, .. } => *line,
            Self::Variable(_) | Self::Flag(_) | Self::Nowhere => None,
        }
    }
}

/// One error of a config.
///
/// The text never contains the value of a secret, and is safe to print on a terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Place where the value was written.
    pub place: Place,
    /// Dotted path of the key; empty if no key is meant.
    pub key: String,
    /// The fault, worded to follow the key: `is missing`.
    pub wrong: String,
    /// The remedy: what would be right.
    pub right: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, key, wrong, right } = self;
        let key = if key.is_empty() { String::new() } else { format!("{key}: ") };
        out.write_str(&printable(format!("{place}: {key}{wrong}; {right}").as_bytes()))
    }
}

/// All errors of a config; never empty. Shown one a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigErrors(pub Vec<ConfigError>);
