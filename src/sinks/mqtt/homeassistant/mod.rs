//! Home Assistant by MQTT discovery: devices and entities out of what was told, in Home Assistant's own time.
//!
//! ```text
//! board ─look─► documents (rates, counts, slots …) ─► paced ─► retained topics ─► entities
//! config ─────► discovery messages ───────────────► spaced ─► retained topics ─► devices
//! journal ────► events ── held while it is away ──► rate-limited, not retained
//! ```
//!
//! What must hold:
//! - two discovery messages of one device are two seconds apart, and one that changed is said once more
//!   half a minute later: what comes while Home Assistant still works on the first is dropped there;
//! - a component that there once was is taken back by name; what there was is remembered on disk;
//! - when Home Assistant says that it is up, discovery comes first, then what entities show, then events;
//! - documents say what is now; the oldest picture is never more than an interval behind;
//! - the number of entities depends on the config alone, not on the number of torrents.
//!
//! Pure but for the log and a random pause: what is due is asked for, and sent, by the dispatcher.

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
use crate::port::{Clock, Delivery, Projection, ServerView, SystemClock};

use entities::{Components, Payload};
use events::Waiting;
use names::{Device, Names};
use pace::{Haste, Pace};
use slots::Slots;

/// What a user wants of it.
#[derive(Clone, Debug)]
pub struct HomeAssistant {
    pub discovery_prefix: String,
    pub slots: u8,
    /// Torrents that get a device of their own, and how many.
    pub torrents: Option<Filter>,
    pub torrents_max: usize,
    /// What the alternative-speed switch sets, and goes back to.
    pub alternative: Option<Limits>,
    pub normal: Limits,
    /// The commands that are taken from this broker and that there are.
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

/// What becomes an event.
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

/// Between two discovery messages of one device.
const DISCOVERY_EACH: Duration = Duration::from_secs(2);
/// Between those of two devices.
const DEVICE_EACH: Duration = Duration::from_millis(100);
/// A changed one is said once more after this.
const CONFIRM_AFTER: Duration = Duration::from_secs(30);
/// Home Assistant is given so long from `online` on, and a random second more.
const BIRTH_PAUSE: Duration = Duration::from_millis(500);
/// From a discovery message to the first event: so long it takes to subscribe.
const SUBSCRIBED_AFTER: Duration = Duration::from_secs(3);
/// Between two looks at a server, where something happened and where nothing did.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const LOOK_EACH: Duration = Duration::from_secs(5);
/// Between two messages to one document if something happened.
const URGENT_EACH: Duration = Duration::from_secs(1);
/// At most so many events a second.
const EVENT_EACH: Duration = Duration::from_millis(50);
/// What is held back by the pace is tried again after this.
const PACE_AGAIN: Duration = Duration::from_millis(200);
const LIST_EACH: Duration = Duration::from_secs(60);
/// A torrent that is gone keeps its device for so long.
const GONE_FOR: Duration = Duration::from_secs(60 * 60);
/// What is not worth a write of its own is written down at this distance.
const MEMORIZE_EACH: Duration = Duration::from_secs(60);

/// Whether Home Assistant is there, as far as it said so.
#[derive(Debug, Default)]
pub struct Presence {
    is_away: AtomicBool,
    births: AtomicU32,
    news: Arc<Notify>,
}

impl Presence {
    /// It said `online` or `offline`; a kept word is old, and no birth.
    pub fn heard(&self, body: &[u8], is_retained: bool) {
        match body {
            b"online" => {
                self.is_away.store(false, Ordering::Relaxed);
                if !is_retained {
                    self.births.fetch_add(1, Ordering::Relaxed);
                }
            }
            b"offline" => self.is_away.store(true, Ordering::Relaxed),
            _ => return,
        }
        self.news.notify_one();
    }
}

/// Counts on through restarts of the client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub downloaded: u64,
    pub uploaded: u64,
    /// The client's own counts and run when that was added up.
    session: (u64, u64),
    run: Option<String>,
}

impl Totals {
    /// Adds what the client has moved since the last time.
    fn add(&mut self, view: &ServerView<'_>) {
        let (Some(down), Some(up)) = (view.stats.downloaded, view.stats.uploaded) else { return };
        let is_same_run = self.run == view.state.run && down >= self.session.0 && up >= self.session.1;
        let (before_down, before_up) = if is_same_run { self.session } else { (0, 0) };
        self.downloaded = self.downloaded.saturating_add(down - before_down);
        self.uploaded = self.uploaded.saturating_add(up - before_up);
        self.session = (down, up);
        self.run.clone_from(&view.state.run);
    }

    /// Begins with what the torrents say of their own past.
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

/// What is not to be forgotten.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Memory {
    /// Every component that Home Assistant may know, by the ids of devices.
    devices: BTreeMap<String, Components>,
    totals: BTreeMap<ServerName, Totals>,
    last_finished: BTreeMap<ServerName, Value>,
    /// The names of torrents that have devices.
    torrents: BTreeMap<ServerName, BTreeMap<InfoHash, String>>,
}

/// How far a device has been announced.
#[derive(Debug)]
struct Announced {
    payload: Payload,
    /// What was sent last on this connection.
    sent: Option<Bytes>,
    sent_at: Option<Duration>,
    /// When it is to be sent, again if need be.
    due: Option<Duration>,
}

/// What a document says, and what it said.
#[derive(Debug)]
struct Document {
    wanted: Value,
    sent: Option<Value>,
    sent_at: Duration,
    each: Duration,
    temper: Temper,
    /// How many entities it feeds: no more can change.
    entities: usize,
    /// This connection has not heard it.
    is_owed: bool,
    /// What was made of comparing `wanted` with `sent`: how many values differ, and how urgent that is.
    changed: (usize, Haste),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Temper {
    /// All of it drifts.
    Drifts,
    /// Some of it is what happened, see [`documents::DRIFTING`].
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
        let drifts = match self.temper {
            Temper::Drifts => true,
            Temper::Mixed => changed.iter().all(|key| documents::DRIFTING.contains(key)),
            Temper::Happens => false,
        };
        self.changed = (changed.len().min(self.entities), if drifts { Haste::Drift } else { Haste::Now });
    }

    /// When it is to be sent, if it is.
    fn due(&self) -> Option<Duration> {
        if self.is_owed {
            return Some(Duration::ZERO);
        }
        match self.changed {
            (0, _) => None,
            (_, Haste::Drift) => Some(self.sent_at + self.each),
            (_, Haste::Now) => Some(self.sent_at + self.each.min(URGENT_EACH)),
        }
    }
}

/// What is kept of one server.
#[derive(Debug, Default)]
struct Server {
    looked_at: Option<Duration>,
    is_touched: bool,
    slots: Slots,
    listed_at: Option<Duration>,
    client: Option<String>,
    /// Torrents with devices; since when they are gone.
    gone: BTreeMap<InfoHash, Duration>,
    was_full: bool,
}

/// The projection for Home Assistant of one broker.
pub struct HomeAssistantProjection {
    settings: HomeAssistant,
    names: Names,
    presence: Arc<Presence>,
    births: u32,
    servers: BTreeMap<ServerName, Server>,
    devices: BTreeMap<Device, Announced>,
    documents: BTreeMap<String, Document>,
    pace: Pace,
    waiting: Waiting,
    /// Topics and names to be taken back.
    clearing: Vec<String>,
    next_device_at: Duration,
    next_event_at: Duration,
    memory: Memory,
    memorized: Memory,
    memorized_at: Duration,
}

impl HomeAssistantProjection {
    pub fn new(settings: HomeAssistant, names: Names, servers: &[ServerName], presence: Arc<Presence>) -> Self {
        let births = presence.births.load(Ordering::Relaxed);
        let servers = servers.iter().map(|server| (server.clone(), Server::default())).collect();
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
            memory: Memory::default(),
            memorized: Memory::default(),
            memorized_at: Duration::ZERO,
        };
        let bridge = entities::bridge(&projection.settings, &projection.names);
        projection.announce(Device::Bridge, bridge, Duration::ZERO);
        projection
    }

    /// This is how the device is to be from now on.
    fn announce(&mut self, device: Device, payload: Payload, at: Duration) {
        match self.devices.get_mut(&device) {
            Some(announced) if announced.payload == payload => {}
            Some(announced) => {
                announced.payload = payload;
                announced.due = Some(announced.sent_at.map_or(at, |sent| at.max(sent + DISCOVERY_EACH)));
            }
            None => {
                self.devices.insert(device, Announced { payload, sent: None, sent_at: None, due: Some(at) });
            }
        }
    }

    /// Everything is owed again, from then on.
    fn owe_all(&mut self, from: Duration) {
        for announced in self.devices.values_mut() {
            announced.sent = None;
            announced.due = Some(announced.sent_at.map_or(from, |sent| from.max(sent + DISCOVERY_EACH)));
        }
        for document in self.documents.values_mut() {
            document.is_owed = true;
        }
        self.next_event_at = self.next_event_at.max(from + SUBSCRIBED_AFTER);
    }

    fn note_birth(&mut self, at: Duration) {
        let births = self.presence.births.load(Ordering::Relaxed);
        if births == self.births {
            return;
        }
        self.births = births;
        info!(instance = self.names.instance, "Home Assistant is up: telling it all again");
        self.owe_all(at + BIRTH_PAUSE + Duration::from_secs(1).mul_f64(rand::random()));
    }

    fn next_discovery(&mut self, at: Duration) -> Option<Delivery> {
        if at < self.next_device_at {
            return None;
        }
        let (device, announced) =
            self.devices.iter_mut().find(|(_, announced)| announced.due.is_some_and(|due| due <= at))?;
        let id = device.id();
        let wanted = announced.payload.platforms();
        let known = self.memory.devices.entry(id).or_default();
        let removed: Components =
            known.iter().filter(|(key, _)| !wanted.contains_key(*key)).map(|(k, p)| (k.clone(), p.clone())).collect();
        let mut body = announced.payload.body(&removed);
        if announced.sent.as_ref() == Some(&body) && !removed.is_empty() {
            // It was said half a minute ago: what is taken back is gone there.
            known.retain(|key, _| wanted.contains_key(key));
            body = announced.payload.body(&Components::new());
        }
        known.extend(wanted);
        let is_new = announced.sent.as_ref() != Some(&body);
        announced.due = is_new.then_some(at + CONFIRM_AFTER);
        announced.sent = Some(body.clone());
        announced.sent_at = Some(at);
        self.next_device_at = at + DEVICE_EACH;
        self.next_event_at = self.next_event_at.max(at + SUBSCRIBED_AFTER);
        Some(Delivery::Shown { topic: self.names.discovery(device), body, keep: true })
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
        document.is_owed = false;
        document.compare();
        let body = Bytes::from(document.wanted.to_string());
        Some(Delivery::Shown { topic, body, keep: true })
    }

    fn next_event(&mut self, at: Duration) -> Option<Delivery> {
        if at < self.next_event_at || self.presence.is_away.load(Ordering::Relaxed) {
            return None;
        }
        let (topic, body) = self.waiting.next(at)?;
        self.next_event_at = at + EVENT_EACH;
        Some(Delivery::Shown { topic, body, keep: false })
    }

    fn show(&mut self, topic: String, wanted: Value, each: u64, temper: Temper, entities: usize) {
        let each = Duration::from_secs(each);
        let document = self.documents.entry(topic).or_insert_with(|| Document {
            wanted: Value::Null,
            sent: None,
            sent_at: Duration::ZERO,
            each,
            temper,
            entities,
            is_owed: true,
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
            self.show(self.names.slot(server, number), documents::torrent(torrent), 15, Temper::Mixed, 3);
        }
    }

    /// Devices for the torrents that the config chose: they come up to a number, and go after an hour.
    fn show_torrents(&mut self, server: &ServerName, snapshot: &Snapshot, at: Duration) {
        let Some(of_server) = self.servers.get_mut(server) else { return };
        let known = self.memory.torrents.entry(server.clone()).or_default();
        let filter = self.settings.torrents.as_ref();
        let now = SystemClock.now();
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
            if !is_there && at.saturating_sub(*of_server.gone.entry(*hash).or_insert(at)) >= GONE_FOR {
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
            self.memory.devices.remove(&device.id());
            self.devices.remove(&device);
            let (discovery, topic) = (self.names.discovery(&device), self.names.torrent(server, hash));
            self.documents.remove(&topic);
            self.clearing.extend([discovery, topic]);
        }
        for (hash, name, document) in shown {
            self.show(self.names.torrent(server, hash), document, 15, Temper::Mixed, 8);
            let device = Device::Torrent(server.clone(), hash);
            if !self.devices.contains_key(&device) {
                let payload = entities::torrent(&self.settings, &self.names, server, hash, &name);
                self.announce(device, payload, at);
            }
        }
    }

    /// The newest of what is there, unless something that is gone finished later.
    fn note_last_finished(&mut self, server: &ServerName, snapshot: &Snapshot) {
        let finished =
            snapshot.values().filter_map(|snapshot| Some((snapshot.torrent.finished_at?, &snapshot.torrent)));
        let Some((time, torrent)) = finished.max_by_key(|(time, torrent)| (*time, torrent.hash)) else { return };
        let noted = self.memory.last_finished.get(server).and_then(|last| last["time"].as_str()?.parse().ok());
        if noted.is_none_or(|noted: Timestamp| noted <= time) {
            self.memory.last_finished.insert(server.clone(), documents::last_finished(torrent, time));
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
        match serde_json::from_str::<Memory>(saved) {
            Ok(memory) => {
                self.memorized = memory.clone();
                self.memory = memory;
            }
            Err(error) => warn!(%error, "what was remembered for Home Assistant cannot be read"),
        }
        let servers = &self.servers;
        self.memory.torrents.retain(|server, _| servers.contains_key(server));
        self.memory.devices.retain(|id, _| match Device::parse(id) {
            Some(Device::Server(server) | Device::Torrent(server, _)) => servers.contains_key(&server),
            Some(Device::Bridge) => true,
            None => false,
        });
    }

    fn state_to_save(&mut self, at: Duration, is_last: bool) -> Option<String> {
        let is_urgent =
            self.memory.devices != self.memorized.devices || self.memory.torrents != self.memorized.torrents;
        let is_due = is_urgent || is_last || at >= self.memorized_at + MEMORIZE_EACH;
        if !is_due || self.memory == self.memorized {
            return None;
        }
        self.memorized = self.memory.clone();
        self.memorized_at = at;
        Some(serde_json::to_string(&self.memory).expect("names and numbers are plain JSON"))
    }

    fn retained_topics(&self) -> Vec<String> {
        let mut names = vec![self.names.discovery(&Device::Bridge)];
        for server in self.servers.keys() {
            names.push(self.names.discovery(&Device::Server(server.clone())));
            names.extend(self.documents_of(server));
            for hash in self.memory.torrents.get(server).into_iter().flat_map(BTreeMap::keys) {
                names.push(self.names.discovery(&Device::Torrent(server.clone(), *hash)));
                names.push(self.names.torrent(server, *hash));
            }
        }
        names
    }

    fn begin(&mut self, at: Duration) {
        self.births = self.presence.births.load(Ordering::Relaxed);
        self.waiting.go_back();
        self.clearing.clear();
        self.owe_all(at);
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
            self.waiting.taken();
        }
    }

    fn on_change(&mut self, server: &ServerName) {
        if let Some(of_server) = self.servers.get_mut(server) {
            of_server.is_touched = true;
        }
    }

    fn needs_view(&self, server: &ServerName, at: Duration) -> bool {
        let Some(of_server) = self.servers.get(server) else { return false };
        let pause = if of_server.is_touched { LOOK_AGAIN } else { LOOK_EACH };
        of_server.looked_at.is_none_or(|looked| at >= looked + pause)
    }

    fn update(&mut self, server: &ServerName, view: ServerView<'_>, at: Duration) {
        let Some(of_server) = self.servers.get_mut(server) else { return };
        of_server.is_touched = false;
        of_server.looked_at = Some(at);
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
            self.show(self.names.document(server, "counts"), documents::counts(&view), 10, Temper::Mixed, 17);
            return;
        }
        let totals = self.memory.totals.entry(server.clone()).or_insert_with(|| Totals::begin(&view));
        totals.add(&view);
        let totals = documents::totals(&view, totals);
        let limits = documents::limits(&view, self.settings.alternative.as_ref());
        self.note_last_finished(server, view.snapshot);
        let finished = self.memory.last_finished.get(server).cloned().unwrap_or_else(documents::nothing_finished);
        for (word, document, each, temper, entities) in [
            ("rates", documents::rates(&view), 10, Temper::Drifts, 3),
            ("totals", totals, 30, Temper::Drifts, 7),
            ("counts", documents::counts(&view), 10, Temper::Mixed, 17),
            ("limits", limits, 1, Temper::Happens, 3),
            ("last_finished", finished, 1, Temper::Happens, 2),
            ("poll", documents::poll(&view), 60, Temper::Drifts, 3),
        ] {
            self.show(self.names.document(server, word), document, each, temper, entities);
        }
        self.show_slots(server, view.snapshot, at);
        self.show_torrents(server, view.snapshot, at);
        if let Some(of_server) = self.servers.get_mut(server)
            && of_server.listed_at.is_none_or(|listed| at >= listed + LIST_EACH)
        {
            of_server.listed_at = Some(at);
            self.show(self.names.document(server, "list"), documents::list(&view), 60, Temper::Drifts, 1);
        }
    }

    fn next(&mut self, at: Duration) -> Option<Delivery> {
        self.note_birth(at);
        if let Some(name) = self.clearing.pop() {
            return Some(Delivery::Clear { name });
        }
        // Documents first: what entities show is there when they come.
        self.next_document(at).or_else(|| self.next_discovery(at)).or_else(|| self.next_event(at))
    }

    fn wake_at(&self, at: Duration) -> Duration {
        let looks = self.servers.values().map(|server| {
            let pause = if server.is_touched { LOOK_AGAIN } else { LOOK_EACH };
            server.looked_at.map_or(at, |looked| looked + pause)
        });
        let devices = self.devices.values().filter_map(|device| Some(device.due?.max(self.next_device_at)));
        let events =
            (!self.waiting.is_empty() && !self.presence.is_away.load(Ordering::Relaxed)).then_some(self.next_event_at);
        // What is due and was not sent waits for the pace.
        let documents = self.documents.values().filter_map(|document| Some(document.due()?.max(at + PACE_AGAIN)));
        looks.chain(devices).chain(events).chain(documents).min().unwrap_or(at + LOOK_EACH)
    }

    fn wake(&self) -> Arc<Notify> {
        Arc::clone(&self.presence.news)
    }
}

#[cfg(test)]
mod tests;
