//! The registry of retained topics: the topics where the receiver of one sink retains, or may retain, something of ours.
//!
//! A topic is in the registry before anything is first sent to it, and leaves it when its clearing was acknowledged and
//! nothing was retained there again meanwhile. Whatever is killed, everything that was ever retained can be cleared.
//!
//! Pure: the copy on disk, which is never behind this one for long, belongs to the state outbox.

use std::collections::{BTreeSet, HashSet};

/// The topics of one sink, and the progress of clearing the orphans among them.
#[derive(Debug, Default)]
pub struct Registry {
    topics: HashSet<String>,
    /// Topics that nothing is sent to any more: to be cleared when the window has room.
    orphans: BTreeSet<String>,
    /// Their clearing is in flight.
    clearing: HashSet<String>,
    /// Cleared, and to be unregistered on disk.
    cleared: BTreeSet<String>,
}

impl Registry {
    /// A registry of these topics, as the store has them.
    pub fn new(topics: impl IntoIterator<Item = String>) -> Self {
        Self { topics: topics.into_iter().collect(), ..Self::default() }
    }

    /// Returns every topic that is registered.
    pub fn topics(&self) -> impl Iterator<Item = &String> {
        self.topics.iter()
    }

    /// Whether a topic is registered.
    pub fn contains(&self, topic: &str) -> bool {
        self.topics.contains(topic)
    }

    /// Returns those that have to be registered before anything is sent to them; each once.
    pub fn unknown(&self, topics: impl IntoIterator<Item = String>) -> Vec<String> {
        let unknown: BTreeSet<String> = topics.into_iter().filter(|topic| !self.contains(topic)).collect();
        unknown.into_iter().collect()
    }

    /// Adds topics; the caller has written them to the store, or will.
    pub fn add(&mut self, topics: impl IntoIterator<Item = String>) {
        self.topics.extend(topics);
    }

    /// Records that something is retained there from now on: a planned clearing is off, one in flight does not count.
    pub fn retain(&mut self, topic: &str) {
        self.orphans.remove(topic);
        self.clearing.remove(topic);
        self.cleared.remove(topic);
    }

    /// Plans to clear everything but these.
    pub fn retain_only(&mut self, wanted: &HashSet<String>) {
        self.orphans = self.topics.iter().filter(|topic| !wanted.contains(*topic)).cloned().collect();
    }

    /// Returns the next orphan; its clearing counts as in flight.
    pub fn next_orphan(&mut self) -> Option<String> {
        let topic = self.orphans.pop_first()?;
        self.clearing.insert(topic.clone());
        Some(topic)
    }

    /// Records that a clearing is in flight; returns whether there is something to clear.
    pub fn clear(&mut self, topic: &str) -> bool {
        let is_known = self.contains(topic);
        if is_known {
            self.orphans.remove(topic);
            self.clearing.insert(topic.to_owned());
        }
        is_known
    }

    /// Records that a clearing was acknowledged.
    pub fn cleared(&mut self, topic: String) {
        if self.clearing.remove(&topic) {
            self.cleared.insert(topic);
        }
    }

    /// Records that a clearing was refused: the topic stays until one is acknowledged.
    pub fn not_cleared(&mut self, topic: &str) {
        self.clearing.remove(topic);
    }

    /// Returns the topics to be unregistered on disk.
    pub fn to_unregister(&self) -> Vec<String> {
        self.cleared.iter().cloned().collect()
    }

    /// Records that all of those are unregistered on disk.
    pub fn unregistered(&mut self) {
        // Known until here, because a topic that is on disk has to be cleared by whoever reads that.
        for topic in std::mem::take(&mut self.cleared) {
            self.topics.remove(&topic);
        }
    }

    /// Forgets what was in flight: nothing is known of it.
    pub fn reset_in_flight(&mut self) {
        self.clearing.clear();
    }

    /// Returns how many topics are still to be cleared.
    pub fn orphans(&self) -> usize {
        self.orphans.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> Registry {
        Registry::new(["a", "b", "c"].map(str::to_owned))
    }

    #[test]
    fn an_orphan_is_cleared_and_then_unregistered() {
        let mut registry = registry();
        registry.retain_only(&HashSet::from(["b".to_owned()]));
        let cleared: Vec<String> = std::iter::from_fn(|| registry.next_orphan()).collect();
        assert_eq!(cleared, ["a", "c"]);
        registry.cleared("a".to_owned());
        assert_eq!(registry.to_unregister(), ["a"]);
        assert!(registry.contains("a"), "it may still be on disk");
        registry.unregistered();
        assert!(!registry.contains("a"));
        assert!(registry.contains("b") && registry.contains("c"), "not acknowledged yet");
    }

    #[test]
    fn a_topic_that_is_wanted_again_stays_whether_its_clearing_is_planned_or_in_flight() {
        let mut registry = registry();
        registry.retain_only(&HashSet::new());
        registry.retain("a");
        assert_eq!(registry.next_orphan().as_deref(), Some("b"));
        registry.retain("b");
        registry.cleared("b".to_owned());
        assert_eq!(registry.next_orphan().as_deref(), Some("c"));
        registry.cleared("c".to_owned());
        registry.retain("c");
        assert_eq!(registry.next_orphan(), None);
        assert!(registry.to_unregister().is_empty());
    }

    #[test]
    fn a_topic_whose_clearing_was_refused_stays_and_is_cleared_with_the_next_plan() {
        let mut registry = registry();
        registry.clear("a");
        registry.not_cleared("a");
        assert!(registry.to_unregister().is_empty() && registry.contains("a"));
        registry.retain_only(&HashSet::from(["b".to_owned(), "c".to_owned()]));
        assert_eq!(registry.next_orphan().as_deref(), Some("a"));
        registry.cleared("a".to_owned());
        assert_eq!(registry.to_unregister(), ["a"]);
    }

    #[test]
    fn a_lost_connection_unregisters_nothing() {
        let mut registry = registry();
        registry.clear("a");
        registry.reset_in_flight();
        registry.cleared("a".to_owned());
        assert!(registry.to_unregister().is_empty());
    }
}
