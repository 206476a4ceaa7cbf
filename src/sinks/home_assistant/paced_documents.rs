//! The retained documents: each as it is and as it was sent last, and which is due at the pace that Home Assistant can take.
//!
//! Invariants:
//! - a document shows the present: a newer value replaces one that was not sent yet (I8);
//! - the most overdue one goes first, so that none waits for ever behind those that change all the time.
//!
//! Pure: the time is passed in.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

use super::documents::DRIFTING;
use super::pace::{Pace, Urgency};
use crate::port::Delivery;

/// Minimum time between two messages of one document if something happened.
const URGENT_INTERVAL: Duration = Duration::from_secs(1);
/// Time after which a document that the pace held back is tried again.
const PACE_RETRY: Duration = Duration::from_millis(200);

/// The documents of one broker.
#[derive(Debug, Default)]
pub struct PacedDocuments {
    documents: BTreeMap<String, Document>,
    pace: Pace,
}

/// How a document is published.
#[derive(Clone, Copy, Debug)]
pub struct Publishing {
    /// Minimum time between two messages of values that drift.
    pub interval: Duration,
    /// Which of its values drift.
    pub volatility: Volatility,
    /// Number of entities that show the document: no more can change.
    pub entities: usize,
}

impl Publishing {
    /// Returns how a document of that many entities is published.
    pub const fn new(interval_secs: u64, volatility: Volatility, entities: usize) -> Self {
        Self { interval: Duration::from_secs(interval_secs), volatility, entities }
    }
}

/// Which values of a document change by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Volatility {
    /// All of them.
    Drifting,
    /// The keys in [`DRIFTING`].
    Mixed,
    /// None: each change is something that happened.
    Stable,
}

#[derive(Debug)]
struct Document {
    wanted: Value,
    /// `None` if it was never sent, on any link.
    sent: Option<Value>,
    sent_at: Duration,
    publishing: Publishing,
    /// Not sent on this link yet.
    is_unsent: bool,
    /// The difference between `wanted` and `sent`: number of values, and how urgent they are.
    changed: (usize, Urgency),
}

impl Document {
    fn compare(&mut self) {
        let Publishing { volatility, entities, .. } = self.publishing;
        let (Some(Value::Object(sent)), Value::Object(wanted)) = (&self.sent, &self.wanted) else {
            let known = self.wanted.as_object().map_or(0, |all| all.values().filter(|value| !value.is_null()).count());
            self.changed = (known.min(entities), Urgency::Immediate);
            return;
        };
        let is_other = |(key, value): &(&String, &Value)| sent.get(*key) != Some(*value);
        let changed: Vec<&str> = wanted.iter().filter(is_other).map(|(key, _)| key.as_str()).collect();
        let drifts = match volatility {
            Volatility::Drifting => true,
            Volatility::Mixed => changed.iter().all(|key| DRIFTING.contains(key)),
            Volatility::Stable => false,
        };
        self.changed = (changed.len().min(entities), if drifts { Urgency::Drift } else { Urgency::Immediate });
    }

    /// Returns when to send, if at all.
    fn due(&self) -> Option<Duration> {
        if self.is_unsent {
            return Some(Duration::ZERO);
        }
        match self.changed {
            (0, _) => None,
            (_, Urgency::Drift) => Some(self.sent_at + self.publishing.interval),
            (_, Urgency::Immediate) => Some(self.sent_at + self.publishing.interval.min(URGENT_INTERVAL)),
        }
    }
}

impl PacedDocuments {
    /// Sets what a document shows from now on.
    pub fn show(&mut self, topic: String, wanted: Value, publishing: Publishing) {
        let document = self.documents.entry(topic).or_insert_with(|| Document {
            wanted: Value::Null,
            sent: None,
            sent_at: Duration::ZERO,
            publishing,
            is_unsent: true,
            changed: (0, Urgency::Immediate),
        });
        if document.wanted != wanted {
            document.wanted = wanted;
            document.compare();
        }
    }

    /// Forgets a document; its topic is left as it is.
    pub fn remove(&mut self, topic: &str) {
        self.documents.remove(topic);
    }

    /// Makes every document due again.
    pub fn resend_all(&mut self) {
        self.documents.values_mut().for_each(|document| document.is_unsent = true);
    }

    /// Returns the next message that is due and that the pace allows.
    pub fn next(&mut self, at: Duration) -> Option<Delivery> {
        let mut due: Vec<(Duration, &String, &mut Document)> = self
            .documents
            .iter_mut()
            .filter_map(|(topic, document)| Some((document.due()?, topic, document)))
            .collect();
        due.retain(|(due, ..)| *due <= at);
        due.sort_unstable_by_key(|(due, topic, _)| (*due, *topic));
        // A large document that the pace holds back does not hold back the smaller ones behind it.
        let (_, topic, document) = due.into_iter().find(|(.., document)| {
            let (changes, urgency) = document.changed;
            self.pace.allows(changes, urgency, at)
        })?;
        document.sent = Some(document.wanted.clone());
        document.sent_at = at;
        document.is_unsent = false;
        document.compare();
        let body = Bytes::from(document.wanted.to_string());
        Some(Delivery::Projected { topic: topic.clone(), body, retain: true })
    }

    /// Returns when to ask for the next message; `None` if nothing is due.
    pub fn wake_at(&self, at: Duration) -> Option<Duration> {
        // One that is due and was not sent waits for the pace.
        self.documents.values().filter_map(|document| Some(document.due()?.max(at + PACE_RETRY))).min()
    }
}
