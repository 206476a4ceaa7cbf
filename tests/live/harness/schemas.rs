//! A check of every received message against the schema of its topic.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use self::rules::Rules;

#[path = "../../rules/schemas.rs"]
mod rules;

static RULES: LazyLock<Rules> = LazyLock::new(|| Rules::new("dtorrent"));

/// Panics if a message does not match the schema of its topic. During a panic it does nothing, so that the first failure
/// is the one reported.
pub fn assert_fit<'m>(messages: impl Iterator<Item = (&'m str, &'m [u8])>) {
    if std::thread::panicking() {
        return;
    }
    let mut faults = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for (topic, body) in messages.filter(|message| seen.insert(*message)) {
        for fault in RULES.faults(topic, body).unwrap_or_default() {
            faults.insert(format!("{topic}: {fault} in {}", String::from_utf8_lossy(&body[..body.len().min(400)])));
        }
    }
    let first: Vec<&String> = faults.iter().take(10).collect();
    assert!(faults.is_empty(), "{} messages are not what the schemas say:\n{first:#?}", faults.len());
}
