//! Lists that choose: servers, events and causes by patterns, rights by names.

use std::collections::BTreeSet;
use std::iter::once;

use globset::Glob;

use super::read::{Fault, Table};
use crate::model::{Kind, ServerName, Verb, known_names};

/// Verbs that are accepted from somewhere, and the rights that go beyond a verb (`delete_data`, `secrets`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights(BTreeSet<&'static str>);

impl Rights {
    /// Returns whether a verb is accepted, or a right is given.
    pub fn allows(&self, right: &str) -> bool {
        self.0.contains(right)
    }

    /// Returns whether no command at all is accepted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns all rights that are given, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().copied()
    }
}

/// Reads `commands`.
pub fn commands(table: &Table<'_>) -> Option<Rights> {
    let mut allowed = BTreeSet::new();
    for item in &table.texts("commands")? {
        let (is_removed, name) = item.strip_prefix('-').map_or((false, item.as_str()), |name| (true, name));
        let right = Verb::rights().find(|right| *right == name);
        match (is_removed, right) {
            (false, None) if name == "*" => allowed.extend(Verb::rights_of_all()),
            (_, None) => {
                let right =
                    format!("{}; a `-` before one removes it", known_names(name, once("*").chain(Verb::rights())));
                table.fault("commands", Fault::new(format!("`{item}` is an unknown command"), right));
            }
            (false, Some(right)) => {
                allowed.insert(right);
            }
            // Otherwise `["-rpc"]`, meant as "all but rpc", would be read-only.
            (true, Some(_)) if allowed.is_empty() => {
                let wrong = format!("`{item}` removes something from an empty list");
                table.fault("commands", Fault::new(wrong, format!("write [\"*\", \"{item}\"], or [] for read-only")));
            }
            (true, Some(right)) => {
                allowed.remove(right);
            }
        }
    }
    Some(Rights(allowed))
}

/// Reads `servers`: which of `names`, in their order.
pub fn servers(table: &Table<'_>, names: &[ServerName]) -> Option<Vec<ServerName>> {
    let all: Vec<_> = names.iter().map(|name| (name.as_str(), name.clone())).collect();
    let chosen = patterns(table, "servers", "server", &all)?;
    if chosen.is_empty() && !names.is_empty() {
        table.fault("servers", Fault::new("leaves no server", "name at least one, or leave the key out for all"));
    }
    Some(chosen)
}

/// Reads `events`.
pub fn events(table: &Table<'_>) -> Option<BTreeSet<Kind>> {
    let all: Vec<_> = Kind::ALL.iter().map(|kind| (kind.as_str(), *kind)).collect();
    Some(patterns(table, "events", "kind of event", &all)?.into_iter().collect())
}

/// Returns those of `all` that the patterns under `key` choose; `*` matches anything, a `-` before one removes.
pub fn patterns<T: Clone>(table: &Table<'_>, key: &str, what: &str, all: &[(&str, T)]) -> Option<Vec<T>> {
    let mut chosen = BTreeSet::new();
    for item in &table.texts(key)? {
        let (is_removed, pattern) = item.strip_prefix('-').map_or((false, item.as_str()), |pattern| (true, pattern));
        let matcher = Glob::new(pattern).ok().map(|glob| glob.compile_matcher());
        let is_match = |name: &str| matcher.as_ref().is_some_and(|matcher| matcher.is_match(name));
        let matching: Vec<&str> = all.iter().map(|(name, _)| *name).filter(|name| is_match(name)).collect();
        // `*` may match nothing: the config may have no server with a valid name.
        if matching.is_empty() && pattern != "*" {
            let right = known_names(pattern, once("*").chain(all.iter().map(|(name, _)| *name)));
            table.fault(key, Fault::new(format!("`{item}` is an unknown {what}"), right));
        }
        // In order, so that a later item can restore what an earlier one removed.
        match is_removed {
            true => chosen.retain(|name| !matching.contains(name)),
            false => chosen.extend(matching),
        }
    }
    Some(all.iter().filter(|(name, _)| chosen.contains(name)).map(|(_, value)| value.clone()).collect())
}
