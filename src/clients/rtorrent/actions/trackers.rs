//! The trackers of a torrent: added, and switched on and off.
//!
//! rTorrent 0.9.8, on which this was tried, has no method that removes a tracker. One that was added stays, and one that is
//! switched off stays so over a restart of rTorrent once the session is saved; so to disable is the nearest.

use super::super::Access;
use super::super::calls::{Call, Value};
use super::super::map;
use super::Outcome;
use super::single::{CurrentTorrent, SingleAction};
use crate::model::TrackerChanges;
use crate::port::{Applied, ClientError};

/// The tier of a tracker that is added: asked with the first ones.
const TIER: &str = "0";

/// Refuses what rTorrent has no method for.
pub(super) fn check(changes: &TrackerChanges) -> Result<(), ClientError> {
    if changes.remove.is_empty() {
        return Ok(());
    }
    let what = "remove a tracker: rTorrent has no method for it; disable it instead".to_owned();
    Err(ClientError::Unsupported { what })
}

struct Tracker {
    url: String,
    is_enabled: bool,
}

impl SingleAction<'_> {
    /// Changes the trackers, and reads them again.
    pub(super) async fn trackers(&self, changes: &TrackerChanges) -> Outcome {
        check(changes)?;
        let CurrentTorrent { access, probe, row } = self.read().await?;
        if row.fixed.is_meta {
            let reason = "it is a magnet link, which forgets its trackers when it is resolved; change them then";
            return Err(ClientError::Precondition { reason: reason.to_owned() });
        }
        let before = self.read_trackers(&access).await?;
        let is_listed = |url: &str| before.iter().any(|tracker| tracker.url == *url);
        if let Some(unknown) = changes.enable.iter().chain(&changes.disable).find(|url| !is_listed(url)) {
            // The host alone: the rest may be a passkey.
            let host = map::tracker_host([(true, unknown.as_str())].into_iter()).unwrap_or_default();
            return Err(ClientError::Precondition { reason: format!("it has no tracker of this URL at {host}") });
        }
        if is_as_wanted(&before, changes) {
            return Ok(Applied::Seen);
        }
        if row.is_active {
            // A running torrent asks a tracker that it gets.
            self.client.admit_announce(self.hash, &probe)?;
        }
        let insert = |url: &String| self.call("d.tracker.insert").text(TIER).text(url);
        let inserts: Vec<Call> = changes.add.iter().filter(|url| !is_listed(url)).map(insert).collect();
        access.call_torrent(self.hash, &inserts).await?;
        // Read again, because a tracker that was inserted shifts the places of others.
        let places = self.read_trackers(&access).await?;
        let mut calls: Vec<Call> = changes.wanted().flat_map(|wanted| self.switches(&places, wanted)).collect();
        calls.push(self.call("d.save_full_session"));
        access.call_torrent(self.hash, &calls).await?;
        let after = self.read_trackers(&access).await?;
        // The first one that is asked names the torrent's tracker, and their number may be the same as before.
        self.client.state().listing.forget_tracker(self.hash);
        if is_as_wanted(&after, changes) {
            return Ok(Applied::Seen);
        }
        Err(ClientError::Fault { message: "the trackers are others after they were set".to_owned() })
    }

    /// Returns the calls that switch a tracker on or off, at each place where the torrent has it.
    fn switches(&self, trackers: &[Tracker], (url, is_on): (&str, bool)) -> Vec<Call> {
        let is_other = |(_, tracker): &(usize, &Tracker)| tracker.url == url && tracker.is_enabled != is_on;
        let switch = |(place, _)| Call::on_tracker(self.hash, place, "t.is_enabled.set").int(is_on.into());
        trackers.iter().enumerate().filter(is_other).map(switch).collect()
    }

    async fn read_trackers(&self, access: &Access<'_>) -> Result<Vec<Tracker>, ClientError> {
        let call = self.call("t.multicall").text("").text("t.url=").text("t.is_enabled=");
        let values = access.call_torrent(self.hash, &[call]).await?;
        let tracker = |row: &Value| match row.array() {
            [url, is_enabled] => Some(Tracker { url: url.to_text()?, is_enabled: is_enabled.int()? != 0 }),
            _ => None,
        };
        // All or none: a place that is left out would shift the others.
        let rows = values.first().map(Value::array).unwrap_or_default();
        let trackers: Option<Vec<Tracker>> = rows.iter().map(tracker).collect();
        trackers.ok_or_else(|| ClientError::Protocol { reason: "a tracker is not readable".to_owned() })
    }
}

/// Whether the torrent has every tracker that is wanted, asked or not as it should be.
fn is_as_wanted(trackers: &[Tracker], changes: &TrackerChanges) -> bool {
    changes.wanted().all(|(url, is_on)| {
        let mut same = trackers.iter().filter(|tracker| tracker.url == url).peekable();
        same.peek().is_some() && same.all(|tracker| tracker.is_enabled == is_on)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tracker_is_as_wanted_at_every_place_where_the_torrent_has_it() {
        let trackers = |listed: &[(&str, bool)]| {
            let tracker =
                |(url, is_enabled): &(&str, bool)| Tracker { url: (*url).to_owned(), is_enabled: *is_enabled };
            listed.iter().map(tracker).collect::<Vec<_>>()
        };
        let wanted = |on: &str, off: &str| {
            let list = |url: &str| url.split_whitespace().map(str::to_owned).collect();
            let mut changes = TrackerChanges::default();
            (changes.add, changes.disable) = (list(on), list(off));
            changes
        };
        for (listed, on, off, expected) in [
            (&[("a", true), ("b", false)][..], "a", "b", true),
            (&[("a", true), ("a", false)], "a", "", false),
            (&[("a", true), ("a", true)], "a", "", true),
            (&[("a", true)], "a b", "", false),
            (&[("a", true)], "", "a", false),
        ] {
            assert_eq!(is_as_wanted(&trackers(listed), &wanted(on, off)), expected, "{listed:?} +{on} -{off}");
        }
    }
}
