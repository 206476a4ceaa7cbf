//! The filter of a webhook: which deliveries are for its endpoint, besides their kind.

use std::collections::BTreeSet;

use crate::model::{Cause, Event, Filter};
use crate::port::Delivery;

/// Which events are sent, besides their kind.
#[derive(Clone, Debug)]
pub struct EventFilter {
    /// Whether `updated` events are sent.
    pub has_updates: bool,
    /// Causes by their names in the config.
    pub causes: BTreeSet<&'static str>,
    /// Restricts events of torrents; events of servers have none, and pass.
    pub torrents: Option<Filter>,
}

impl EventFilter {
    /// Every cause with its name in the config.
    pub const CAUSES: [(&'static str, Cause); 4] = [
        ("observed", Cause::Observed),
        ("command", Cause::Command),
        ("recovered", Cause::Recovered),
        ("snapshot", Cause::Snapshot),
    ];

    /// Whether a delivery is for this endpoint.
    pub fn wants(&self, delivery: &Delivery) -> bool {
        match delivery {
            // An entry that cannot be decoded is rejected when it is sent, and so reaches the dead letters.
            Delivery::Event(entry) => entry.event().map_or(true, |event| self.allows(event)),
            Delivery::Updated { event, .. } => self.has_updates && self.allows(event),
            // Not posted, but acknowledged behind the `updated` before it: only then is the torrent no longer dirty.
            Delivery::State { .. } => self.has_updates,
            _ => false,
        }
    }

    fn allows(&self, event: &Event) -> bool {
        let has_cause = Self::CAUSES.iter().any(|(name, cause)| *cause == event.cause && self.causes.contains(name));
        let matches =
            |filter: &Filter| event.torrent.as_ref().is_none_or(|torrent| filter.matches(torrent, event.time));
        has_cause && self.torrents.as_ref().is_none_or(matches)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const OF_TORRENT: &str = include_str!("../../../tests/golden/event-finished.json");
    const OF_SERVER: &str = include_str!("../../../tests/golden/event-server-online.json");

    #[test]
    fn events_are_filtered_by_cause_and_torrent() {
        let filter = |causes: &[&'static str], torrents: Option<serde_json::Value>| EventFilter {
            has_updates: true,
            causes: causes.iter().copied().collect(),
            torrents: torrents.map(|torrents| Filter::from_json(torrents).unwrap()),
        };
        let event = |json: &str| -> Event { serde_json::from_str(json).unwrap() };
        // The one is the effect of a command on a torrent that seeds, the other was observed of a server.
        for (filter, of_torrent, of_server) in [
            (filter(&["observed", "command", "recovered", "snapshot"], None), true, true),
            (filter(&["command"], None), true, false),
            (filter(&["observed", "snapshot"], None), false, true),
            (filter(&["command", "observed"], Some(json!({"status": "seeding"}))), true, true),
            (filter(&["command", "observed"], Some(json!({"status": "paused"}))), false, true),
            (filter(&["observed"], Some(json!({}))), false, true),
        ] {
            assert_eq!(filter.allows(&event(OF_TORRENT)), of_torrent, "{filter:?}");
            assert_eq!(filter.allows(&event(OF_SERVER)), of_server, "{filter:?}");
        }
    }
}
