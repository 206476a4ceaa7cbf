//! Errors of a config, each with its place, its key and what would be right.

use std::fmt;
use std::path::PathBuf;

use crate::model::printable;

/// Place where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line of the config file.
    File {
        /// Path of the file.
        path: PathBuf,
        /// Counted from 1; `None` if the whole file is meant.
        line: Option<usize>,
    },
    /// An environment variable.
    Variable(String),
    /// A command-line flag.
    Flag(String),
    /// No place: something is missing.
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

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line: Some(line) } => write!(out, "{}:{line}", path.display()),
            Self::File { path, line: None } => write!(out, "{}", path.display()),
            Self::Variable(name) => write!(out, "environment variable {name}"),
            Self::Flag(name) => write!(out, "flag {name}"),
            Self::Nowhere => out.write_str("config"),
        }
    }
}

/// One error of a config.
///
/// Its text never contains the value of a secret, and is safe to print on a terminal.
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        out.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}
