//! The projection for Home Assistant: MQTT discovery messages, and the documents and events that its entities show.
//!
//! ```text
//! snapshot ──► documents (rates, counts, slots …) ─► paced ─────► retained topics ─► entities
//! config ────► discovery messages ─────────────────► spaced ────► retained topics ─► devices
//! journal ───► events ── held while it is offline ─► rate-limited, not retained
//! ```
//!
//! Invariants:
//! - two discovery messages of one device are two seconds apart, and a changed one is repeated half a minute later: what
//!   arrives while Home Assistant still processes the first one is dropped there;
//! - a component that once existed is removed by name, so every component that was announced is saved on disk;
//! - when Home Assistant comes online, discovery is sent first, then documents, then events;
//! - a document shows the present; it is never more than one interval behind;
//! - the number of entities depends on the config alone, not on the number of torrents.
//!
//! No I/O and no clock: the state outbox passes the time in, asks what is due, and sends it. MQTT appears here only as topic
//! names and payloads, as Home Assistant defines them.

pub mod commands;
mod discovery;
pub mod documents;
pub mod entities;
pub mod events;
pub mod names;
mod pace;
mod paced_documents;
mod presence;
mod slots;
mod totals;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::model::{Filter, InfoHash, JournalEntry, ServerName, Snapshot, Timestamp, Torrent};
use crate::port::{Delivery, Projection, ServerView};

pub use presence::Presence;
pub use totals::Totals;

use discovery::Discovery;
use entities::Components;
use events::PendingEvents;
use names::{Device, Names};
use paced_documents::{PacedDocuments, Publishing, Volatility};
use slots::Slots;

/// Settings of the projection.
#[derive(Clone, Debug)]
pub struct HomeAssistant {
    /// First levels of Home Assistant's own topics: `homeassistant`, unless that was changed there.
    pub discovery_prefix: String,
    /// Number of numbered places that show the torrents that matter most.
    pub slots: u8,
    /// Torrents that get a device of their own; at most `torrents_max` per server.
    pub torrents: Option<Filter>,
    /// Home Assistant never forgets an entity, not even a deleted one, so the number of devices is limited.
    pub torrents_max: usize,
    /// Limits that the alternative-speed switch sets; off goes back to `normal`.
    pub alternative: Option<Limits>,
    /// Limits that are set when the switch is turned off.
    pub normal: Limits,
    /// Commands that are accepted from this broker and that a client supports.
    pub verbs: BTreeSet<String>,
}

impl HomeAssistant {
    /// Whether an entity that gives this command makes sense.
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.contains(verb)
    }
}

/// Bytes a second, 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Limit of all downloads together.
    pub download: u64,
    /// Limit of all uploads together.
    pub upload: u64,
}

/// Pause after Home Assistant comes online; up to a random second is added, as its documentation asks for.
const BIRTH_PAUSE: Duration = Duration::from_millis(500);
/// Time from a discovery message to the first event: Home Assistant needs that long to subscribe.
const SUBSCRIBED_AFTER: Duration = Duration::from_secs(3);
/// Time between two views of a server that changed.
const VIEW_INTERVAL_CHANGED: Duration = Duration::from_secs(1);
/// Time between two views of one that did not.
const VIEW_INTERVAL: Duration = Duration::from_secs(5);
/// Minimum time between two events.
const EVENT_INTERVAL: Duration = Duration::from_millis(50);
/// Time between two lists of all torrents.
const LIST_INTERVAL: Duration = Duration::from_secs(60);
/// How long a torrent that was removed keeps its device.
const DEVICE_GRACE: Duration = Duration::from_secs(60 * 60);
/// Time between two saves of what is not worth a write of its own.
const SAVE_INTERVAL: Duration = Duration::from_secs(60);

/// How the document of a torrent in a slot is published.
const SLOT: Publishing = Publishing::new(15, Volatility::Mixed, 3);
/// How the document of a torrent with a device of its own is published.
const TORRENT: Publishing = Publishing::new(15, Volatility::Mixed, 8);
/// How the list of all torrents is published.
const LIST: Publishing = Publishing::new(60, Volatility::Drifting, 1);

/// The part of the projection that outlives a restart; saved as JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct SavedState {
    /// Every component that Home Assistant may know, by device id.
    devices: BTreeMap<String, Components>,
    totals: BTreeMap<ServerName, Totals>,
    last_finished: BTreeMap<ServerName, Value>,
    /// The names of torrents that have devices.
    torrents: BTreeMap<ServerName, BTreeMap<InfoHash, String>>,
}

/// The view of one server.
#[derive(Debug, Default)]
struct ServerProjection {
    viewed_at: Option<Duration>,
    has_changed: bool,
    slots: Slots,
    listed_at: Option<Duration>,
    /// Name and version of the client, as in the announced device.
    client: Option<String>,
    /// Some torrents have no device for lack of room, which was logged.
    is_full: bool,
}

impl ServerProjection {
    fn view_due(&self) -> Duration {
        let pause = if self.has_changed { VIEW_INTERVAL_CHANGED } else { VIEW_INTERVAL };
        self.viewed_at.map_or(Duration::ZERO, |viewed| viewed + pause)
    }
}

/// The projection of one broker.
pub struct HomeAssistantProjection {
    settings: HomeAssistant,
    names: Names,
    presence: Arc<Presence>,
    /// Starts of Home Assistant that were answered by publishing everything.
    births: u32,
    servers: BTreeMap<ServerName, ServerProjection>,
    discovery: Discovery,
    documents: PacedDocuments,
    events: PendingEvents,
    /// Removed torrents that still have devices, with the times of their removal.
    gone: BTreeMap<Device, Duration>,
    /// Topics to be cleared.
    clearing: Vec<String>,
    next_event_at: Duration,
    state: SavedState,
    saved: SavedState,
    saved_at: Duration,
}

impl HomeAssistantProjection {
    /// Creates the projection of these servers, with the bridge's own device.
    pub fn new(settings: HomeAssistant, names: Names, servers: &[ServerName], presence: Arc<Presence>) -> Self {
        let mut discovery = Discovery::default();
        discovery.announce(Device::Bridge, entities::bridge(&settings, &names), Duration::ZERO);
        Self {
            settings,
            names,
            births: presence.births(),
            presence,
            servers: servers.iter().map(|server| (server.clone(), ServerProjection::default())).collect(),
            discovery,
            documents: PacedDocuments::default(),
            events: PendingEvents::default(),
            gone: BTreeMap::new(),
            clearing: Vec::new(),
            next_event_at: Duration::ZERO,
            state: SavedState::default(),
            saved: SavedState::default(),
            saved_at: Duration::ZERO,
        }
    }

    /// Makes everything due again, from then on.
    fn resend_all(&mut self, from: Duration) {
        self.discovery.resend_all(from);
        self.documents.resend_all();
        self.hold_events_until(from + SUBSCRIBED_AFTER);
    }

    fn hold_events_until(&mut self, at: Duration) {
        // Not retained, so an event is lost if its entity has not subscribed yet.
        self.next_event_at = self.next_event_at.max(at);
    }

    fn note_birth(&mut self, at: Duration) {
        let births = self.presence.births();
        if births == self.births {
            return;
        }
        self.births = births;
        info!(instance = self.names.instance, "Home Assistant is online, publishing everything again");
        self.resend_all(at + BIRTH_PAUSE + Duration::from_secs(1).mul_f64(rand::random()));
    }

    fn next_discovery(&mut self, at: Duration) -> Option<Delivery> {
        let delivery = self.discovery.next(&self.names, &mut self.state.devices, at)?;
        self.hold_events_until(at + SUBSCRIBED_AFTER);
        Some(delivery)
    }

    fn next_event(&mut self, at: Duration) -> Option<Delivery> {
        if at < self.next_event_at || self.presence.is_offline() {
            return None;
        }
        let (topic, body) = self.events.next(at)?;
        self.next_event_at = at + EVENT_INTERVAL;
        // Home Assistant ignores an event that was retained.
        Some(Delivery::Projected { topic, body, retain: false })
    }

    fn show_slots(&mut self, server: &ServerName, snapshot: &Snapshot, at: Duration) {
        let Some(of_server) = self.servers.get_mut(server) else { return };
        of_server.slots.choose(snapshot, usize::from(self.settings.slots), at);
        for (number, place) in (1..).zip(of_server.slots.places()) {
            let torrent = place.and_then(|hash| snapshot.get(&hash)).map(|row| &*row.torrent);
            self.documents.show(self.names.slot(server, number), documents::torrent(torrent), SLOT);
        }
    }

    /// Shows devices for the torrents that the config selects: up to a number, and for an hour after their removal.
    fn show_torrents(&mut self, server: &ServerName, snapshot: &Snapshot, now: Timestamp, at: Duration) {
        let known = self.state.torrents.entry(server.clone()).or_default();
        let filter = self.settings.torrents.as_ref();
        let is_wanted = |torrent: &Torrent| filter.is_some_and(|filter| filter.matches(torrent, now));
        let wanted: BTreeMap<_, _> = snapshot.iter().filter(|(_, row)| is_wanted(&row.torrent)).collect();
        let mut left_out = 0;
        for (hash, row) in &wanted {
            if known.contains_key(*hash) || known.len() < self.settings.torrents_max {
                // The name of the first sight stays, as the name of the device.
                known.entry(**hash).or_insert_with(|| row.torrent.name.clone());
            } else {
                left_out += 1;
            }
        }
        let known = known.clone();
        if let Some(of_server) = self.servers.get_mut(server) {
            if left_out > 0 && !of_server.is_full {
                let max = self.settings.torrents_max;
                warn!(%server, left_out, max, "more torrents match than may have a device in Home Assistant");
            }
            of_server.is_full = left_out > 0;
        }
        for (hash, name) in known {
            let device = Device::Torrent(server.clone(), hash);
            if wanted.contains_key(&hash) {
                self.gone.remove(&device);
            } else if at.saturating_sub(*self.gone.entry(device.clone()).or_insert(at)) >= DEVICE_GRACE {
                self.remove_torrent(server, hash, &device);
                continue;
            }
            let torrent = snapshot.get(&hash).map(|row| &*row.torrent);
            let document = torrent.map_or_else(|| documents::gone(&name, hash), |it| documents::torrent(Some(it)));
            self.documents.show(self.names.torrent(server, hash), document, TORRENT);
            if !self.discovery.contains(&device) {
                let payload = entities::torrent(&self.settings, &self.names, server, hash, &name);
                self.discovery.announce(device, payload, at);
            }
        }
    }

    fn remove_torrent(&mut self, server: &ServerName, hash: InfoHash, device: &Device) {
        if let Some(known) = self.state.torrents.get_mut(server) {
            known.remove(&hash);
        }
        self.gone.remove(device);
        self.state.devices.remove(&device.id());
        self.discovery.remove(device);
        let (discovery, topic) = (self.names.discovery(device), self.names.torrent(server, hash));
        self.documents.remove(&topic);
        self.clearing.extend([discovery, topic]);
    }

    /// Records the torrent that finished last, unless a removed one finished later.
    fn note_last_finished(&mut self, server: &ServerName, snapshot: &Snapshot) {
        let finished = snapshot.values().filter_map(|row| Some((row.torrent.finished_at?, &row.torrent)));
        let Some((time, torrent)) = finished.max_by_key(|(time, torrent)| (*time, torrent.hash)) else { return };
        let noted = self.state.last_finished.get(server).and_then(|last| last["time"].as_str()?.parse().ok());
        if noted.is_none_or(|noted: Timestamp| noted <= time) {
            self.state.last_finished.insert(server.clone(), documents::last_finished(torrent, time));
        }
    }

    fn documents_of(&self, server: &ServerName) -> Vec<String> {
        let words = ["rates", "totals", "counts", "limits", "last_finished", "poll", "list"];
        let slots = (1..=self.settings.slots).map(|number| self.names.slot(server, number));
        words.iter().map(|word| self.names.document(server, word)).chain(slots).collect()
    }
}

impl Projection for HomeAssistantProjection {
    fn restore(&mut self, saved: &str) {
        match serde_json::from_str::<SavedState>(saved) {
            Ok(state) => (self.saved, self.state) = (state.clone(), state),
            Err(error) => warn!(%error, "saved state for Home Assistant cannot be read, starting without it"),
        }
        // The topics of a server that is no longer configured are not among the retained ones any more, so they are cleared.
        let servers = &self.servers;
        self.state.torrents.retain(|server, _| servers.contains_key(server));
        self.state.devices.retain(|id, _| match Device::parse(id) {
            Some(Device::Server(server) | Device::Torrent(server, _)) => servers.contains_key(&server),
            Some(Device::Bridge) => true,
            None => false,
        });
    }

    fn state_to_save(&mut self, at: Duration, is_last: bool) -> Option<String> {
        // A component that Home Assistant knows and we do not could never be removed again, so devices are saved at once.
        let is_urgent = self.state.devices != self.saved.devices || self.state.torrents != self.saved.torrents;
        let is_due = is_urgent || is_last || at >= self.saved_at + SAVE_INTERVAL;
        if !is_due || self.state == self.saved {
            return None;
        }
        self.saved = self.state.clone();
        self.saved_at = at;
        Some(serde_json::to_string(&self.state).expect("names and numbers are plain JSON"))
    }

    fn retained_topics(&self) -> Vec<String> {
        let mut topics = vec![self.names.discovery(&Device::Bridge)];
        for server in self.servers.keys() {
            topics.push(self.names.discovery(&Device::Server(server.clone())));
            topics.extend(self.documents_of(server));
            for hash in self.state.torrents.get(server).into_iter().flat_map(BTreeMap::keys) {
                topics.push(self.names.discovery(&Device::Torrent(server.clone(), *hash)));
                topics.push(self.names.torrent(server, *hash));
            }
        }
        topics
    }

    fn begin(&mut self, at: Duration) {
        self.births = self.presence.births();
        self.events.reset_in_flight();
        // Not lost: a registered topic that is not among the retained ones any more is cleared on each new link.
        self.clearing.clear();
        self.resend_all(at);
    }

    fn on_event(&mut self, entry: &JournalEntry, at: Duration) {
        self.on_change(&entry.server);
        if self.servers.contains_key(&entry.server)
            && let Some(body) = events::body(entry)
        {
            self.events.push(self.names.document(&entry.server, "event"), body, at);
        }
    }

    fn acknowledged(&mut self, topic: &str) {
        if topic.ends_with("/homeassistant/event") {
            self.events.acknowledged();
        }
    }

    fn on_change(&mut self, server: &ServerName) {
        if let Some(of_server) = self.servers.get_mut(server) {
            of_server.has_changed = true;
        }
    }

    fn needs_view(&self, server: &ServerName, at: Duration) -> bool {
        self.servers.get(server).is_some_and(|of_server| at >= of_server.view_due())
    }

    fn update(&mut self, server: &ServerName, view: ServerView<'_>, at: Duration) {
        use Volatility::{Drifting, Mixed, Stable};
        let Some(of_server) = self.servers.get_mut(server) else { return };
        of_server.has_changed = false;
        of_server.viewed_at = Some(at);
        // Name and version of the client are part of the device, and known only once it has answered.
        let is_other_client = view.stats.client.is_some() && of_server.client != view.stats.client;
        if is_other_client {
            of_server.client.clone_from(&view.stats.client);
        }
        let device = Device::Server(server.clone());
        if is_other_client || !self.discovery.contains(&device) {
            let payload = entities::server(&self.settings, &self.names, server, of_server.client.as_deref());
            self.discovery.announce(device, payload, at);
        }
        let mut show = |word: &str, document: Value, publishing: Publishing| {
            self.documents.show(self.names.document(server, word), document, publishing);
        };
        show("counts", documents::counts(&view), Publishing::new(10, Mixed, 17));
        if !view.state.is_known {
            return;
        }
        show("rates", documents::rates(&view), Publishing::new(10, Drifting, 3));
        show("poll", documents::poll(&view), Publishing::new(60, Drifting, 3));
        let limits = documents::limits(&view, self.settings.alternative.as_ref());
        show("limits", limits, Publishing::new(1, Stable, 3));
        let totals = self.state.totals.entry(server.clone()).or_insert_with(|| Totals::begin(&view));
        totals.add(&view);
        show("totals", documents::totals(&view, totals), Publishing::new(30, Drifting, 7));
        if of_server.listed_at.is_none_or(|listed| at >= listed + LIST_INTERVAL) {
            of_server.listed_at = Some(at);
            show("list", documents::list(&view), LIST);
        }
        self.note_last_finished(server, view.snapshot);
        let finished = self.state.last_finished.get(server).cloned().unwrap_or_else(documents::nothing_finished);
        self.documents.show(self.names.document(server, "last_finished"), finished, Publishing::new(1, Stable, 2));
        self.show_slots(server, view.snapshot, at);
        self.show_torrents(server, view.snapshot, view.now, at);
    }

    fn next(&mut self, at: Duration) -> Option<Delivery> {
        self.note_birth(at);
        if let Some(topic) = self.clearing.pop() {
            return Some(Delivery::Clear { topic });
        }
        // Documents first: entities have something to show as soon as they are created.
        self.documents.next(at).or_else(|| self.next_discovery(at)).or_else(|| self.next_event(at))
    }

    fn wake_at(&self, at: Duration) -> Duration {
        let views = self.servers.values().map(ServerProjection::view_due);
        let event = (!self.events.is_empty() && !self.presence.is_offline()).then_some(self.next_event_at);
        let messages = [self.discovery.due(), self.documents.wake_at(at), event];
        views.chain(messages.into_iter().flatten()).min().unwrap_or(at + VIEW_INTERVAL)
    }

    fn wake(&self) -> Arc<Notify> {
        self.presence.changed()
    }
}

#[cfg(test)]
mod tests;
