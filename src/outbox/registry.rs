//! The registry: under which names one sink's far side keeps something, or may do so.
//!
//! A name is in the registry before anything is first sent under it, and leaves it when its clearing
//! was acknowledged and nothing was kept there again meanwhile. So whatever is killed, what was ever
//! kept can be taken back.
//!
//! Pure: the copy on disk, which is never behind this one, is the dispatcher's.

use std::collections::{BTreeSet, HashSet};

#[derive(Debug, Default)]
pub struct Registry {
    names: HashSet<String>,
    /// Nobody wants them any more; to be cleared when there is time.
    leftover: BTreeSet<String>,
    /// Their clearing is under way.
    clearing: HashSet<String>,
    /// Cleared, and to be crossed out on disk.
    cleared: BTreeSet<String>,
}

impl Registry {
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self { names: names.into_iter().collect(), ..Self::default() }
    }

    pub fn knows(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Those that have to be written down before anything is sent under them.
    pub fn unknown(&self, names: impl IntoIterator<Item = String>) -> Vec<String> {
        let unknown: BTreeSet<String> = names.into_iter().filter(|name| !self.knows(name)).collect();
        unknown.into_iter().collect()
    }

    /// They are written down.
    pub fn add(&mut self, names: impl IntoIterator<Item = String>) {
        self.names.extend(names);
    }

    /// Something is kept there from now on: a clearing that was planned is off, one under way counts for nothing.
    pub fn keep(&mut self, name: &str) {
        self.leftover.remove(name);
        self.clearing.remove(name);
        self.cleared.remove(name);
    }

    /// Plans to clear everything but these.
    pub fn keep_only(&mut self, wanted: &HashSet<String>) {
        self.leftover = self.names.iter().filter(|name| !wanted.contains(*name)).cloned().collect();
    }

    /// The next name to clear; its clearing counts as under way.
    pub fn next_leftover(&mut self) -> Option<String> {
        let name = self.leftover.pop_first()?;
        self.clearing.insert(name.clone());
        Some(name)
    }

    /// Its clearing is under way.
    pub fn clear(&mut self, name: &str) {
        self.leftover.remove(name);
        self.clearing.insert(name.to_owned());
    }

    /// Its clearing was acknowledged.
    pub fn cleared(&mut self, name: String) {
        if self.clearing.remove(&name) {
            self.cleared.insert(name);
        }
    }

    /// Its clearing was refused: it may still be kept there, and stays until a clearing is taken.
    pub fn not_cleared(&mut self, name: &str) {
        self.clearing.remove(name);
    }

    /// What is to be crossed out on disk.
    pub fn to_cross_out(&self) -> Vec<String> {
        self.cleared.iter().cloned().collect()
    }

    /// All of that is crossed out.
    pub fn crossed_out(&mut self) {
        for name in std::mem::take(&mut self.cleared) {
            self.names.remove(&name);
        }
    }

    /// The connection is over: nothing is known of what was under way.
    pub fn go_back(&mut self) {
        self.clearing.clear();
    }

    pub fn has_leftovers(&self) -> bool {
        !self.leftover.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> Registry {
        Registry::new(["a", "b", "c"].map(str::to_owned))
    }

    #[test]
    fn what_nobody_wants_is_cleared_and_crossed_out() {
        let mut registry = registry();
        registry.keep_only(&HashSet::from(["b".to_owned()]));
        let cleared: Vec<String> = std::iter::from_fn(|| registry.next_leftover()).collect();
        assert_eq!(cleared, ["a", "c"]);
        registry.cleared("a".to_owned());
        assert_eq!(registry.to_cross_out(), ["a"]);
        assert!(registry.knows("a"), "it may still be on disk");
        registry.crossed_out();
        assert!(!registry.knows("a"));
        assert!(registry.knows("b") && registry.knows("c"), "not acknowledged yet");
    }

    #[test]
    fn a_name_that_is_wanted_again_stays_whether_its_clearing_is_planned_or_under_way() {
        let mut registry = registry();
        registry.keep_only(&HashSet::new());
        registry.keep("a");
        assert_eq!(registry.next_leftover().as_deref(), Some("b"));
        registry.keep("b");
        registry.cleared("b".to_owned());
        assert_eq!(registry.next_leftover().as_deref(), Some("c"));
        registry.cleared("c".to_owned());
        registry.keep("c");
        assert_eq!(registry.next_leftover(), None);
        assert!(registry.to_cross_out().is_empty());
    }

    #[test]
    fn a_name_whose_clearing_was_refused_stays_and_is_cleared_with_the_next_plan() {
        let mut registry = registry();
        registry.clear("a");
        registry.not_cleared("a");
        assert!(registry.to_cross_out().is_empty() && registry.knows("a"));
        registry.keep_only(&HashSet::from(["b".to_owned(), "c".to_owned()]));
        assert_eq!(registry.next_leftover().as_deref(), Some("a"));
        registry.cleared("a".to_owned());
        assert_eq!(registry.to_cross_out(), ["a"]);
    }

    #[test]
    fn a_lost_connection_crosses_nothing_out() {
        let mut registry = registry();
        registry.clear("a");
        registry.go_back();
        registry.cleared("a".to_owned());
        assert!(registry.to_cross_out().is_empty());
    }
}
