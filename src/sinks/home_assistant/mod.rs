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
pub mod documents;
pub mod entities;
pub mod events;
pub mod names;
pub mod pace;
pub mod slots;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::model::{Filter, InfoHash, JournalEntry, Kind, ServerName, Snapshot, Timestamp, Torrent};
use crate::port::{Delivery, Projection, ServerView};

use entities::{Components, Payload};
use events::Waiting;
use names::{Device, Names};
use pace::{Haste, Pace};
use slots::Slots;

/// Settings of the projection.
#[derive(Clone, Debug)]
pub struct HomeAssistant {
    pub discovery_prefix: String,
    pub slots: u8,
    /// Torrents that get a device of their own; at most `torrents_max` per server.
    pub torrents: Option<Filter>,
    pub torrents_max: usize,
    /// Limits that the alternative-speed switch sets; off goes back to `normal`.
    pub alternative: Option<Limits>,
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
    pub download: u64,
    pub upload: u64,
}

/// Kinds of events that become events of an entity.
pub const EVENT_KINDS: [Kind; 23] = [
    Kind::Added,
    Kind::Removed,
    Kind::Started,
    Kind::Stopped,
    Kind::Paused,
    Kind::Resumed,
    Kind::Finished,
    Kind::Unfinished,
    Kind::Error,
    Kind::ErrorCleared,
    Kind::Stalled,
    Kind::Unstalled,
    Kind::Checking,
    Kind::Checked,
    Kind::Metadata,
    Kind::Moved,
    Kind::Renamed,
    Kind::LabelChanged,
    Kind::PriorityChanged,
    Kind::ServerOnline,
    Kind::ServerOffline,
    Kind::ServerRestarted,
    Kind::JournalReset,
];

/// Minimum time between two discovery messages of one device.
const DISCOVERY_INTERVAL: Duration = Duration::from_secs(2);
/// Minimum time between discovery messages of two devices.
const DEVICE_INTERVAL: Duration = Duration::from_millis(100);
/// Time after which a changed discovery message is repeated.
const CONFIRM_AFTER: Duration = Duration::from_secs(30);
/// Pause after Home Assistant comes online; up to a random second is added, as its documentation asks for.
const BIRTH_PAUSE: Duration = Duration::from_millis(500);
/// Time from a discovery message to the first event: Home Assistant needs that long to subscribe.
const SUBSCRIBED_AFTER: Duration = Duration::from_secs(3);
/// Time between two views of a server that changed, and of one that did not.
const VIEW_INTERVAL_CHANGED: Duration = Duration::from_secs(1);
const VIEW_INTERVAL: Duration = Duration::from_secs(5);
/// Minimum time between two messages of one document if something happened.
const URGENT_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum time between two events.
const EVENT_INTERVAL: Duration = Duration::from_millis(50);
/// Time after which a document that the pace held back is tried again.
const PACE_AGAIN: Duration = Duration::from_millis(200);
/// Time between two lists of all torrents.
const LIST_INTERVAL: Duration = Duration::from_secs(60);
/// How long a torrent that was removed keeps its device.
const DEVICE_GRACE: Duration = Duration::from_secs(60 * 60);
/// Time between two saves of what is not worth a write of its own.
const SAVE_INTERVAL: Duration = Duration::from_secs(60);

/// Whether Home Assistant is online, as its status topic says.
#[derive(Debug, Default)]
pub struct Presence {
    is_offline: AtomicBool,
    births: AtomicU32,
    changed: Arc<Notify>,
}

impl Presence {
    /// Takes in a message of the status topic; a retained one is old, and no start of Home Assistant.
    pub fn on_status(&self, body: &[u8], is_retained: bool) {
        match body {
            b"online" => {
                self.is_offline.store(false, Ordering::Relaxed);
                if !is_retained {
                    self.births.fetch_add(1, Ordering::Relaxed);
                }
            }
            b"offline" => self.is_offline.store(true, Ordering::Relaxed),
            _ => return,
        }
        self.changed.notify_one();
    }
}

/// Bytes transferred in total, which count on through restarts of the client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub downloaded: u64,
    pub uploaded: u64,
    /// The client's own counts and run at the last addition.
    session: (u64, u64),
    run: Option<String>,
}

impl Totals {
    /// Adds what the client has transferred since the last addition.
    fn add(&mut self, view: &ServerView<'_>) {
        let (Some(down), Some(up)) = (view.stats.downloaded, view.stats.uploaded) else { return };
        let is_same_run = self.run == view.state.run && down >= self.session.0 && up >= self.session.1;
        let (before_down, before_up) = if is_same_run { self.session } else { (0, 0) };
        self.downloaded = self.downloaded.saturating_add(down - before_down);
        self.uploaded = self.uploaded.saturating_add(up - before_up);
        self.session = (down, up);
        self.run.clone_from(&view.state.run);
    }

    /// Returns totals that begin with what the torrents report of their own past.
    fn begin(view: &ServerView<'_>) -> Self {
        let sum = |of: fn(&Torrent) -> u64| view.snapshot.values().map(|snapshot| of(&snapshot.torrent)).sum::<u64>();
        let (down, up) = (view.stats.downloaded.unwrap_or(0), view.stats.uploaded.unwrap_or(0));
        Self {
            downloaded: sum(|torrent| torrent.downloaded).max(down),
            uploaded: sum(|torrent| torrent.uploaded).max(up),
            session: (down, up),
            run: view.state.run.clone(),
        }
    }
}

/// What outlives a restart; saved as JSON.
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

/// The discovery message of one device.
#[derive(Debug)]
struct Announced {
    payload: Payload,
    /// The message sent last on this link.
    sent: Option<Bytes>,
    sent_at: Option<Duration>,
    /// When to send, or to repeat.
    due: Option<Duration>,
}

/// One retained document, as it is and as it was sent last.
#[derive(Debug)]
struct Document {
    wanted: Value,
    sent: Option<Value>,
    sent_at: Duration,
    each: Duration,
    dynamics: Dynamics,
    /// Number of entities that show the document: no more can change.
    entities: usize,
    /// Not sent on this link yet.
    is_unsent: bool,
    /// The difference between `wanted` and `sent`: number of values, and how urgent they are.
    changed: (usize, Haste),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dynamics {
    /// Every value drifts.
    Drifts,
    /// Some values drift, see [`documents::DRIFTING`].
    Mixed,
    /// Each change is something that happened.
    Happens,
}

impl Document {
    fn compare(&mut self) {
        let (Some(Value::Object(sent)), Value::Object(wanted)) = (&self.sent, &self.wanted) else {
            let known = self.wanted.as_object().map_or(0, |all| all.values().filter(|value| !value.is_null()).count());
            self.changed = (known.min(self.entities), Haste::Now);
            return;
        };
        let is_other = |(key, value): &(&String, &Value)| sent.get(*key) != Some(*value);
        let changed: Vec<&str> = wanted.iter().filter(is_other).map(|(key, _)| key.as_str()).collect();
        let drifts = match self.dynamics {
            Dynamics::Drifts => true,
            Dynamics::Mixed => changed.iter().all(|key| documents::DRIFTING.contains(key)),
            Dynamics::Happens => false,
        };
        self.changed = (changed.len().min(self.entities), if drifts { Haste::Drift } else { Haste::Now });
    }

    /// Returns when to send, if at all.
    fn due(&self) -> Option<Duration> {
        if self.is_unsent {
            return Some(Duration::ZERO);
        }
        match self.changed {
            (0, _) => None,
            (_, Haste::Drift) => Some(self.sent_at + self.each),
            (_, Haste::Now) => Some(self.sent_at + self.each.min(URGENT_INTERVAL)),
        }
    }
}

/// The view of one server.
#[derive(Debug, Default)]
struct ServerProjection {
    viewed_at: Option<Duration>,
    has_changed: bool,
    slots: Slots,
    listed_at: Option<Duration>,
    client: Option<String>,
    /// Removed torrents that still have devices, with the times of their removal.
    gone: BTreeMap<InfoHash, Duration>,
    was_full: bool,
}

/// The projection of one broker.
pub struct HomeAssistantProjection {
    settings: HomeAssistant,
    names: Names,
    presence: Arc<Presence>,
    births: u32,
    servers: BTreeMap<ServerName, ServerProjection>,
    devices: BTreeMap<Device, Announced>,
    documents: BTreeMap<String, Document>,
    pace: Pace,
    waiting: Waiting,
    /// Topics to be cleared.
    clearing: Vec<String>,
    next_device_at: Duration,
    next_event_at: Duration,
    state: SavedState,
    saved: SavedState,
    saved_at: Duration,
}

impl HomeAssistantProjection {
    pub fn new(settings: HomeAssistant, names: Names, servers: &[ServerName], presence: Arc<Presence>) -> Self {
        let births = presence.births.load(Ordering::Relaxed);
        let servers = servers.iter().map(|server| (server.clone(), ServerProjection::default())).collect();
        let mut projection = Self {
            settings,
            names,
            presence,
            births,
            servers,
            devices: BTreeMap::new(),
            documents: BTreeMap::new(),
            pace: Pace::default(),
            waiting: Waiting::default(),
            clearing: Vec::new(),
            next_device_at: Duration::ZERO,
            next_event_at: Duration::ZERO,
            state: SavedState::default(),
            saved: SavedState::default(),
            saved_at: Duration::ZERO,
        };
        let bridge = entities::bridge(&projection.settings, &projection.names);
        projection.announce(Device::Bridge, bridge, Duration::ZERO);
        projection
    }

    /// Sets how a device is to look from now on.
    fn announce(&mut self, device: Device, payload: Payload, at: Duration) {
        match self.devices.get_mut(&device) {
            Some(announced) if announced.payload == payload => {}
            Some(announced) => {
                announced.payload = payload;
                announced.due = Some(announced.sent_at.map_or(at, |sent| at.max(sent + DISCOVERY_INTERVAL)));
            }
            None => {
                self.devices.insert(device, Announced { payload, sent: None, sent_at: None, due: Some(at) });
            }
        }
    }

    /// Makes everything due again, from then on.
    fn resend_all(&mut self, from: Duration) {
        for announced in self.devices.values_mut() {
            announced.sent = None;
            announced.due = Some(announced.sent_at.map_or(from, |sent| from.max(sent + DISCOVERY_INTERVAL)));
        }
        for document in self.documents.values_mut() {
            document.is_unsent = true;
        }
        self.next_event_at = self.next_event_at.max(from + SUBSCRIBED_AFTER);
    }

    fn note_birth(&mut self, at: Duration) {
        let births = self.presence.births.load(Ordering::Relaxed);
        if births == self.births {
            return;
        }
        self.births = births;
        info!(instance = self.names.instance, "Home Assistant is online, publishing everything again");
        self.resend_all(at + BIRTH_PAUSE + Duration::from_secs(1).mul_f64(rand::random()));
    }

    fn next_discovery(&mut self, at: Duration) -> Option<Delivery> {
        if at < self.next_device_at {
            return None;
        }
        let (device, announced) =
            self.devices.iter_mut().find(|(_, announced)| announced.due.is_some_and(|due| due <= at))?;
        let id = device.id();
        let wanted = announced.payload.platforms();
        let known = self.state.devices.entry(id).or_default();
        let removed: Components =
            known.iter().filter(|(key, _)| !wanted.contains_key(*key)).map(|(k, p)| (k.clone(), p.clone())).collect();
        let mut body = announced.payload.body(&removed);
        if announced.sent.as_ref() == Some(&body) && !removed.is_empty() {
            // Sent half a minute ago: what was removed is gone there.
            known.retain(|key, _| wanted.contains_key(key));
            body = announced.payload.body(&Components::new());
        }
        known.extend(wanted);
        let is_new = announced.sent.as_ref() != Some(&body);
        announced.due = is_new.then_some(at + CONFIRM_AFTER);
        announced.sent = Some(body.clone());
        announced.sent_at = Some(at);
        self.next_device_at = at + DEVICE_INTERVAL;
        self.next_event_at = self.next_event_at.max(at + SUBSCRIBED_AFTER);
        Some(Delivery::Projected { topic: self.names.discovery(device), body, retain: true })
    }

    fn next_document(&mut self, at: Duration) -> Option<Delivery> {
        let mut due: Vec<(Duration, &String)> =
            self.documents.iter().filter_map(|(topic, document)| Some((document.due()?, topic))).collect();
        due.retain(|(due, _)| *due <= at);
        due.sort_unstable();
        let topic = due.into_iter().map(|(_, topic)| topic.clone()).find(|topic| {
            let (changes, haste) = self.documents[topic].changed;
            self.pace.allows(changes, haste, at)
        })?;
        let document = self.documents.get_mut(&topic)?;
        document.sent = Some(document.wanted.clone());
        document.sent_at = at;
        document.is_unsent = false;
        document.compare();
        let body = Bytes::from(document.wanted.to_string());
        Some(Delivery::Projected { topic, body, retain: true })
    }

    fn next_event(&mut self, at: Duration) -> Option<Delivery> {
        if at < self.next_event_at || self.presence.is_offline.load(Ordering::Relaxed) {
            return None;
        }
        let (topic, body) = self.waiting.next(at)?;
        self.next_event_at = at + EVENT_INTERVAL;
        Some(Delivery::Projected { topic, body, retain: false })
    }

    fn show(&mut self, topic: String, wanted: Value, each: u64, dynamics: Dynamics, entities: usize) {
        let each = Duration::from_secs(each);
        let document = self.documents.entry(topic).or_insert_with(|| Document {
            wanted: Value::Null,
            sent: None,
            sent_at: Duration::ZERO,
            each,
            dynamics,
            entities,
            is_unsent: true,
            changed: (0, Haste::Now),
        });
        if document.wanted != wanted {
            document.wanted = wanted;
            document.compare();
        }
    }

    fn show_slots(&mut self, server: &ServerName, snapshot: &Snapshot, at: Duration) {
        let Some(of_server) = self.servers.get_mut(server) else { return };
        of_server.slots.choose(snapshot, usize::from(self.settings.slots), at);
        let places = of_server.slots.places().to_vec();
        for (number, place) in (1..).zip(places) {
            let torrent = place.and_then(|hash| snapshot.get(&hash)).map(|snapshot| &*snapshot.torrent);
            self.show(self.names.slot(server, number), documents::torrent(torrent), 15, Dynamics::Mixed, 3);
        }
    }

    /// Shows devices for the torrents that the config selects: up to a number, and for an hour after their removal.
    fn show_torrents(&mut self, server: &ServerName, snapshot: &Snapshot, now: Timestamp, at: Duration) {
        let Some(of_server) = self.servers.get_mut(server) else { return };
        let known = self.state.torrents.entry(server.clone()).or_default();
        let filter = self.settings.torrents.as_ref();
        let is_wanted = |torrent: &Torrent| filter.is_some_and(|filter| filter.matches(torrent, now));
        let mut left_out = 0;
        for (hash, snapshot) in snapshot.iter().filter(|(_, snapshot)| is_wanted(&snapshot.torrent)) {
            let has_room = known.len() < self.settings.torrents_max;
            if known.contains_key(hash) || has_room {
                known.entry(*hash).or_insert_with(|| snapshot.torrent.name.clone());
                of_server.gone.remove(hash);
            } else {
                left_out += 1;
            }
        }
        if left_out > 0 && !of_server.was_full {
            let max = self.settings.torrents_max;
            warn!(%server, left_out, max, "more torrents match than may have a device in Home Assistant");
        }
        of_server.was_full = left_out > 0;
        let mut shown = Vec::new();
        let mut over = Vec::new();
        for (hash, name) in known.iter() {
            let torrent = snapshot.get(hash).map(|snapshot| &*snapshot.torrent);
            let is_there = torrent.is_some_and(is_wanted);
            if !is_there && at.saturating_sub(*of_server.gone.entry(*hash).or_insert(at)) >= DEVICE_GRACE {
                over.push(*hash);
                continue;
            }
            let document = torrent.map_or_else(|| documents::gone(name, *hash), |it| documents::torrent(Some(it)));
            shown.push((*hash, name.clone(), document));
        }
        for hash in over {
            known.remove(&hash);
            of_server.gone.remove(&hash);
            let device = Device::Torrent(server.clone(), hash);
            self.state.devices.remove(&device.id());
            self.devices.remove(&device);
            let (discovery, topic) = (self.names.discovery(&device), self.names.torrent(server, hash));
            self.documents.remove(&topic);
            self.clearing.extend([discovery, topic]);
        }
        for (hash, name, document) in shown {
            self.show(self.names.torrent(server, hash), document, 15, Dynamics::Mixed, 8);
            let device = Device::Torrent(server.clone(), hash);
            if !self.devices.contains_key(&device) {
                let payload = entities::torrent(&self.settings, &self.names, server, hash, &name);
                self.announce(device, payload, at);
            }
        }
    }

    /// Records the torrent that finished last, unless a removed one finished later.
    fn note_last_finished(&mut self, server: &ServerName, snapshot: &Snapshot) {
        let finished =
            snapshot.values().filter_map(|snapshot| Some((snapshot.torrent.finished_at?, &snapshot.torrent)));
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
            Ok(memory) => {
                self.saved = memory.clone();
                self.state = memory;
            }
            Err(error) => warn!(%error, "saved state for Home Assistant cannot be read, starting without it"),
        }
        let servers = &self.servers;
        self.state.torrents.retain(|server, _| servers.contains_key(server));
        self.state.devices.retain(|id, _| match Device::parse(id) {
            Some(Device::Server(server) | Device::Torrent(server, _)) => servers.contains_key(&server),
            Some(Device::Bridge) => true,
            None => false,
        });
    }

    fn state_to_save(&mut self, at: Duration, is_last: bool) -> Option<String> {
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
        let mut names = vec![self.names.discovery(&Device::Bridge)];
        for server in self.servers.keys() {
            names.push(self.names.discovery(&Device::Server(server.clone())));
            names.extend(self.documents_of(server));
            for hash in self.state.torrents.get(server).into_iter().flat_map(BTreeMap::keys) {
                names.push(self.names.discovery(&Device::Torrent(server.clone(), *hash)));
                names.push(self.names.torrent(server, *hash));
            }
        }
        names
    }

    fn begin(&mut self, at: Duration) {
        self.births = self.presence.births.load(Ordering::Relaxed);
        self.waiting.reset_in_flight();
        self.clearing.clear();
        self.resend_all(at);
    }

    fn on_event(&mut self, entry: &JournalEntry, at: Duration) {
        self.on_change(&entry.server);
        if self.servers.contains_key(&entry.server)
            && let Some(body) = events::body(entry)
        {
            self.waiting.push(self.names.document(&entry.server, "event"), body, at);
        }
    }

    fn acknowledged(&mut self, topic: &str) {
        if topic.ends_with("/homeassistant/event") {
            self.waiting.acknowledged();
        }
    }

    fn on_change(&mut self, server: &ServerName) {
        if let Some(of_server) = self.servers.get_mut(server) {
            of_server.has_changed = true;
        }
    }

    fn needs_view(&self, server: &ServerName, at: Duration) -> bool {
        let Some(of_server) = self.servers.get(server) else { return false };
        let pause = if of_server.has_changed { VIEW_INTERVAL_CHANGED } else { VIEW_INTERVAL };
        of_server.viewed_at.is_none_or(|viewed| at >= viewed + pause)
    }

    fn update(&mut self, server: &ServerName, view: ServerView<'_>, at: Duration) {
        let Some(of_server) = self.servers.get_mut(server) else { return };
        of_server.has_changed = false;
        of_server.viewed_at = Some(at);
        let is_news = view.stats.client.is_some() && of_server.client != view.stats.client;
        if is_news {
            of_server.client.clone_from(&view.stats.client);
        }
        let device = Device::Server(server.clone());
        if is_news || !self.devices.contains_key(&device) {
            let payload = entities::server(&self.settings, &self.names, server, of_server.client.as_deref());
            self.announce(device, payload, at);
        }
        if !view.state.is_known {
            self.show(self.names.document(server, "counts"), documents::counts(&view), 10, Dynamics::Mixed, 17);
            return;
        }
        let totals = self.state.totals.entry(server.clone()).or_insert_with(|| Totals::begin(&view));
        totals.add(&view);
        let totals = documents::totals(&view, totals);
        let limits = documents::limits(&view, self.settings.alternative.as_ref());
        self.note_last_finished(server, view.snapshot);
        let finished = self.state.last_finished.get(server).cloned().unwrap_or_else(documents::nothing_finished);
        for (word, document, each, dynamics, entities) in [
            ("rates", documents::rates(&view), 10, Dynamics::Drifts, 3),
            ("totals", totals, 30, Dynamics::Drifts, 7),
            ("counts", documents::counts(&view), 10, Dynamics::Mixed, 17),
            ("limits", limits, 1, Dynamics::Happens, 3),
            ("last_finished", finished, 1, Dynamics::Happens, 2),
            ("poll", documents::poll(&view), 60, Dynamics::Drifts, 3),
        ] {
            self.show(self.names.document(server, word), document, each, dynamics, entities);
        }
        self.show_slots(server, view.snapshot, at);
        self.show_torrents(server, view.snapshot, view.now, at);
        if let Some(of_server) = self.servers.get_mut(server)
            && of_server.listed_at.is_none_or(|listed| at >= listed + LIST_INTERVAL)
        {
            of_server.listed_at = Some(at);
            self.show(self.names.document(server, "list"), documents::list(&view), 60, Dynamics::Drifts, 1);
        }
    }

    fn next(&mut self, at: Duration) -> Option<Delivery> {
        self.note_birth(at);
        if let Some(topic) = self.clearing.pop() {
            return Some(Delivery::Clear { topic });
        }
        // Documents first: entities have something to show as soon as they are created.
        self.next_document(at).or_else(|| self.next_discovery(at)).or_else(|| self.next_event(at))
    }

    fn wake_at(&self, at: Duration) -> Duration {
        let looks = self.servers.values().map(|server| {
            let pause = if server.has_changed { VIEW_INTERVAL_CHANGED } else { VIEW_INTERVAL };
            server.viewed_at.map_or(at, |viewed| viewed + pause)
        });
        let devices = self.devices.values().filter_map(|device| Some(device.due?.max(self.next_device_at)));
        let events = (!self.waiting.is_empty() && !self.presence.is_offline.load(Ordering::Relaxed))
            .then_some(self.next_event_at);
        // A document that is due and was not sent waits for the pace.
        let documents = self.documents.values().filter_map(|document| Some(document.due()?.max(at + PACE_AGAIN)));
        looks.chain(devices).chain(events).chain(documents).min().unwrap_or(at + VIEW_INTERVAL)
    }

    fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.presence.changed)
    }
}

#[cfg(test)]
mod tests;
