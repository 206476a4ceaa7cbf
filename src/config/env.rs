//! The layers over the file: environment variables and command-line flags.
//!
//! Each variable and each flag is a layer of its own, so that figment knows for every value which one
//! it came from. The value stays the given text, and the key decides how it is parsed:
//! guessing from the text would turn a password `12345` into a number and ` 007 ` into 7.

use std::ffi::OsString;

use figment::value::{Dict, Map, Tag, Value};
use figment::{Metadata, Profile, Provider};

use super::error::{ConfigError, Place};

const PREFIX: &str = "DTORRENT_";

/// Variables with the prefix that are not keys.
const OTHER_VARIABLES: [&str; 2] = ["DTORRENT_CONFIG", "DTORRENT_LIVE"];

/// Maximum number of parts of a key; no key has as many.
const DEPTH_MAX: usize = 8;

/// A text for one key, as a layer of figment.
#[derive(Clone, Debug)]
pub struct Layer {
    path: Vec<String>,
    text: String,
    /// Name in figment's metadata, from which [`place`] is read.
    name: String,
}

const FLAG: &str = "flag ";

impl Layer {
    /// Returns the layer of a flag: its name with the dashes, its dotted key, its value.
    pub fn flag(name: &str, key: &str, text: String) -> Self {
        Self { path: key.split('.').map(str::to_owned).collect(), text, name: format!("{FLAG}{name}") }
    }
}

/// Returns the place of a layer of this module.
pub fn place(metadata: &Metadata) -> Place {
    match metadata.name.strip_prefix(FLAG) {
        Some(flag) => Place::Flag(flag.to_owned()),
        None => Place::Variable(metadata.name.to_string()),
    }
}

/// Returns the layers of all variables that name a key, sorted by name.
///
/// A part of a name means the key of `below` (the layers under this one) that is equal except for
/// case and for `-`, which a shell does not allow in the name of a variable.
pub fn layers(variables: &[(OsString, OsString)], below: &Dict) -> (Vec<Layer>, Vec<ConfigError>) {
    let mut layers = Vec::new();
    let mut errors = Vec::new();
    for (name, text) in variables {
        let name = name.to_string_lossy().into_owned();
        if is_of_service(&name, &text.to_string_lossy()) {
            continue;
        }
        let Some(parts) = key_parts(&name) else { continue };
        let mut fault = |wrong: &str, right: &str| {
            let place = Place::Variable(name.clone());
            errors.push(ConfigError { place, key: String::new(), wrong: wrong.to_owned(), right: right.to_owned() });
        };
        if parts.iter().any(String::is_empty) || parts.len() > DEPTH_MAX {
            fault("names no key", "write DTORRENT_ and the parts of the key, joined by two underscores");
            continue;
        }
        let Some(text) = text.to_str() else {
            fault("is not UTF-8", "set it to text");
            continue;
        };
        layers.push(Layer { path: as_below(&parts, below), text: text.to_owned(), name });
    }
    // The environment has no order, and errors need one that is the same each time.
    layers.sort_by(|a, b| a.name.cmp(&b.name));
    (layers, errors)
}

fn key_parts(variable: &str) -> Option<Vec<String>> {
    let rest = variable.strip_prefix(PREFIX).filter(|_| !OTHER_VARIABLES.contains(&variable))?;
    Some(rest.split("__").map(str::to_lowercase).collect())
}

/// Returns whether Kubernetes has set the variable, in every pod, for a Service whose name begins with `dtorrent`:
/// `…_SERVICE_HOST`, `…_SERVICE_PORT`, `…_SERVICE_PORT_{NAME}`, and in the form of Docker's links `…_PORT` and
/// `…_PORT_{NUMBER}_{PROTOCOL}`, the latter also with `_PROTO`, `_PORT` and `_ADDR`.
///
/// A `…_PORT` without the URL that Kubernetes writes there is a key whose name is wrong.
fn is_of_service(variable: &str, text: &str) -> bool {
    let Some(service) = variable.strip_prefix("DTORRENT").filter(|rest| !rest.contains("__")) else { return false };
    let is_link = |(_, rest): (&str, &str)| {
        let mut parts = rest.split('_');
        let is_number = parts.next().is_some_and(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
        is_number && parts.next().is_some_and(|protocol| ["TCP", "UDP", "SCTP"].contains(&protocol))
    };
    let is_url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| text.starts_with(scheme));
    service.ends_with("_SERVICE_HOST")
        || service.ends_with("_SERVICE_PORT")
        || service.contains("_SERVICE_PORT_")
        || service.ends_with("_PORT") && is_url
        || service.split_once("_PORT_").is_some_and(is_link)
}

/// Returns the variable whose last part is `first` and `rest` instead of the two joined by one underscore.
///
/// For a person who knows the dots of a key, and not that they are two underscores here.
pub fn split(variable: &str, first: &str, rest: &str) -> Option<String> {
    let [first, rest] = [first, rest].map(str::to_uppercase);
    let before = variable.strip_suffix(&format!("{first}_{rest}"))?;
    Some(format!("{before}{first}__{rest}"))
}

fn as_below(parts: &[String], below: &Dict) -> Vec<String> {
    let same = |key: &str, part: &str| key.to_lowercase() == part;
    let alike = |key: &str, part: &str| key.to_lowercase().replace('-', "_") == part;
    let mut here = Some(below);
    let mut path = Vec::new();
    for part in parts {
        let keys = || here.into_iter().flat_map(|dict| dict.keys());
        // Exact first: two keys of the file may differ only in case or in `-` and `_`.
        let exact = keys().find(|key| *key == part);
        let found =
            exact.or_else(|| keys().find(|key| same(key, part))).or_else(|| keys().find(|key| alike(key, part)));
        let key = found.unwrap_or(part).clone();
        here = here.and_then(|dict| dict.get(&key)).and_then(Value::as_dict);
        path.push(key);
    }
    path
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let leaf = Value::String(Tag::Default, self.text.clone());
        let tree = self
            .path
            .iter()
            .rev()
            .fold(leaf, |inner, key| Value::Dict(Tag::Default, Dict::from([(key.clone(), inner)])));
        Ok(Profile::Default.collect(tree.into_dict().unwrap_or_default()))
    }
}
