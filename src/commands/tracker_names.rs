//! Names of trackers in commands: shown in place of announce URLs, and understood where one of a torrent's is meant.

use serde_json::Value;

use super::errors::{bad_request, precondition, unknown_hash};
use super::execution::{Attempt, Execution};
use crate::model::{Action, Parts, Tracker, reported_text};

impl Execution<'_> {
    /// Returns the trackers as the sender may see them.
    pub(super) fn shown_trackers(&self, mut trackers: Vec<Tracker>) -> Vec<Tracker> {
        if !self.sees_secrets() {
            trackers.iter_mut().for_each(|tracker| tracker.url = self.parts.tracker_names.of(&tracker.url));
        }
        trackers
    }

    /// Returns the answer of a client as the sender may see it.
    pub(super) fn shown_answer(&self, mut answer: Value) -> Value {
        if !self.sees_secrets() {
            hide_urls(&mut answer);
        }
        answer
    }

    /// Returns an action with the announce URLs of the torrent in place of their names.
    pub(super) async fn with_announce_urls(&self, action: Action) -> Attempt<Action> {
        let (hash, mut changes) = match action {
            Action::Trackers(hash, changes) if changes.has_names() => (hash, changes),
            action => return Ok(action),
        };
        let parts = Parts { trackers: true, ..Parts::default() };
        let details = self.details(&[hash], parts).await?.pop().flatten().ok_or_else(|| unknown_hash(hash))?;
        let urls: Vec<String> = details.trackers.unwrap_or_default().into_iter().map(|tracker| tracker.url).collect();
        let names = &self.parts.tracker_names;
        changes.resolve_names(|name| {
            let mut named: Vec<&String> = urls.iter().filter(|url| names.of(url).eq_ignore_ascii_case(name)).collect();
            named.sort_unstable();
            named.dedup();
            match named[..] {
                [url] => Ok(url.clone()),
                [] => Err(precondition(format!("it has no tracker {name}; `get` with `trackers` shows those it has"))),
                _ => Err(precondition(format!("{name} stands for several of its trackers; write the whole URL"))),
            }
        })?;
        let changes = changes.each_in_one_list().map_err(|error| bad_request(error.to_string()))?;
        Ok(Action::Trackers(hash, changes))
    }
}

fn hide_urls(value: &mut Value) {
    match value {
        Value::String(text) => *text = reported_text(text).into_owned(),
        Value::Array(items) => items.iter_mut().for_each(hide_urls),
        Value::Object(fields) => fields.values_mut().for_each(hide_urls),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
