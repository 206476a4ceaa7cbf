//! The payloads of discovery messages: which entities a device has, and how each is made of our topics.
//!
//! Invariants, without which Home Assistant drops the whole device, or part of it, or fills its log:
//! - only keys that it knows at the top and in `device`;
//! - a platform in every component, and a `unique_id` in all but triggers;
//! - units, classes and kinds of value that go together;
//! - all keys of a document are always there, `null` if unknown, so that no template misses one;
//! - a component's key and `unique_id` stay the same for ever; with another platform it gets another key.
//!
//! Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::HomeAssistant;
use super::events::EVENT_KINDS;
use super::names::{Device, Names};
use crate::model::{InfoHash, ServerName};

/// Platforms by the keys of components.
pub type Components = BTreeMap<String, String>;

/// The payload of a discovery message.
#[derive(Clone, Debug, PartialEq)]
pub struct Payload {
    /// The keys at the top, without the components.
    pub head: Map<String, Value>,
    /// The components by their keys.
    pub components: BTreeMap<String, Value>,
}

impl Payload {
    /// Returns the platform of each component.
    pub fn platforms(&self) -> Components {
        let platform = |value: &Value| value["platform"].as_str().unwrap_or_default().to_owned();
        self.components.iter().map(|(key, value)| (key.clone(), platform(value))).collect()
    }

    /// Returns the message, which removes these components by naming them with their platforms alone.
    pub fn body(&self, removed: &Components) -> Bytes {
        let mut components = self.components.clone();
        for (key, platform) in removed {
            components.entry(key.clone()).or_insert_with(|| json!({"platform": platform}));
        }
        let mut body = self.head.clone();
        body.insert("components".to_owned(), json!(components));
        Bytes::from(Value::Object(body).to_string())
    }
}

/// The device that components are added to.
struct Builder<'a> {
    settings: &'a HomeAssistant,
    names: &'a Names,
    device: Device,
    head: Map<String, Value>,
    components: BTreeMap<String, Value>,
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

/// Returns a template that divides a number, with three decimals; `null` stays unknown.
fn scaled(field: &str, divisor: u64) -> String {
    // MQTT discovery has no suggested unit: the unit that is sent is shown, and bytes would be twelve digits.
    format!("{{{{ (value_json.{field} / {divisor}) | round(3) if value_json.{field} is number else None }}}}")
}

fn plain(field: &str) -> String {
    format!("{{{{ value_json.{field} }}}}")
}

fn on_off(condition: &str) -> String {
    format!("{{{{ 'ON' if {condition} else 'OFF' }}}}")
}

impl<'a> Builder<'a> {
    fn new(settings: &'a HomeAssistant, names: &'a Names, device: Device, about: Value) -> Self {
        let mut about = object(about);
        about.insert("identifiers".to_owned(), json!([names.identifier(&device)]));
        // Both have to be online: after a crash of the bridge the retained status of a server still says `online`.
        let mut availability = vec![json!({"topic": names.bridge("status")})];
        if let Device::Server(server) | Device::Torrent(server, _) = &device {
            availability.push(json!({"topic": names.server(server, "status")}));
        }
        let head = object(json!({
            "device": about,
            "origin": {"name": "dTorrent", "sw_version": env!("CARGO_PKG_VERSION")},
            "availability": availability,
            "availability_mode": "all",
            "qos": 1,
        }));
        Self { settings, names, device, head, components: BTreeMap::new() }
    }

    fn finish(self) -> Payload {
        Payload { head: self.head, components: self.components }
    }

    /// Adds an entity.
    fn add(&mut self, platform: &str, key: &str, name: &str, more: Value) {
        let mut body = object(more);
        body.insert("platform".to_owned(), json!(platform));
        body.insert("name".to_owned(), json!(name));
        let unique_id = format!("{}.{key}", self.names.identifier(&self.device));
        body.insert("unique_id".to_owned(), json!(unique_id));
        self.components.insert(key.to_owned(), Value::Object(body));
    }

    /// Adds an entity that shows what a template makes of the JSON on a topic.
    fn show(&mut self, what: (&str, &str, &str), topic: &str, template: impl Into<String>, more: Value) {
        let (platform, key, name) = what;
        let mut body = object(more);
        body.insert("state_topic".to_owned(), json!(topic));
        body.insert("value_template".to_owned(), json!(template.into()));
        self.add(platform, key, name, Value::Object(body));
    }

    /// Adds a number with a unit.
    fn measured(&mut self, key: &str, name: &str, topic: &str, what: (&str, &str, &str), template: &str) {
        let (device_class, unit, state_class) = what;
        let precision = if device_class == "duration" { 1 } else { 2 };
        let more = json!({
            "device_class": device_class, "unit_of_measurement": unit, "state_class": state_class,
            "suggested_display_precision": precision,
        });
        self.show(("sensor", key, name), topic, template, more);
    }

    fn rate(&mut self, key: &str, name: &str, topic: &str, field: &str) {
        self.measured(key, name, topic, ("data_rate", "MB/s", "measurement"), &scaled(field, 1_000_000));
    }

    fn size(&mut self, key: &str, name: &str, topic: &str, field: &str, state_class: &str) {
        self.measured(key, name, topic, ("data_size", "GB", state_class), &scaled(field, 1_000_000_000));
    }

    /// Adds a ratio.
    fn ratio(&mut self, key: &str, name: &str, topic: &str) {
        // No device class: `power_factor` is a percentage, and wrong for a ratio above 1.
        let more =
            json!({"state_class": "measurement", "suggested_display_precision": 3, "icon": "mdi:percent-circle"});
        self.show(("sensor", key, name), topic, plain(key), more);
    }

    /// Adds the progress of a torrent in percent.
    fn progress(&mut self, key: &str, name: &str, topic: &str) {
        let more = json!({
            "unit_of_measurement": "%", "state_class": "measurement", "suggested_display_precision": 1,
            "icon": "mdi:progress-download",
        });
        self.show(("sensor", key, name), topic, plain("progress"), more);
    }

    /// Adds a number of torrents.
    fn count(&mut self, key: &str, name: &str, icon: &str, topic: &str) {
        let more = json!({"state_class": "measurement", "unit_of_measurement": "torrents", "icon": icon});
        self.show(("sensor", key, name), topic, plain(key), more);
    }

    fn set(&mut self, component: &str, key: &str, value: Value) {
        if let Some(Value::Object(body)) = self.components.get_mut(component) {
            body.insert(key.to_owned(), value);
        }
    }

    /// Returns the availability of an entity that is shown also while the torrent client is unreachable.
    fn of_bridge(&self) -> Value {
        json!([{"topic": self.names.bridge("status")}])
    }
}

/// Returns the device of the bridge itself.
pub fn bridge(settings: &HomeAssistant, names: &Names) -> Payload {
    let about = json!({
        "name": format!("dTorrent {}", names.instance),
        "manufacturer": "dTorrent", "model": "Bridge", "sw_version": env!("CARGO_PKG_VERSION"),
    });
    let mut device = Builder::new(settings, names, Device::Bridge, about);
    let (info, health) = (names.bridge("info"), names.bridge("health"));
    let status = json!({
        "state_topic": names.bridge("status"), "payload_on": "online", "payload_off": "offline",
        // Always available: `offline` is one of its states.
        "device_class": "connectivity", "availability": [], "entity_category": "diagnostic",
    });
    device.add("binary_sensor", "status", "Status", status);
    let version = json!({"icon": "mdi:tag", "entity_category": "diagnostic"});
    device.show(("sensor", "version", "Version"), &info, plain("version"), version);
    let servers = json!({
        "icon": "mdi:server", "entity_category": "diagnostic",
        "json_attributes_topic": info, "json_attributes_template": "{{ {'servers': value_json.servers} | tojson }}",
    });
    device.show(("sensor", "servers", "Servers"), &info, "{{ value_json.servers | count }}", servers);
    let mb = "{{ (value_json.memory_bytes / 1000000) | round(1) if value_json.memory_bytes is number else None }}";
    device.measured("memory", "Memory", &health, ("data_size", "MB", "measurement"), mb);
    device.set("memory", "entity_category", json!("diagnostic"));
    result(&mut device, &names.bridge("result"));
    if settings.can("resync") {
        resync(&mut device, &names.bridge("command/resync"));
    }
    device.finish()
}

/// Adds the result of the last command.
fn result(device: &mut Builder<'_>, topic: &str) {
    // A script that publishes a command and then waits for its result times out, unless an entity has subscribed to the topic
    // before: the result comes before Home Assistant would have.
    let about = "{{ {'id': value_json.id, 'verb': value_json.verb, 'time': value_json.time, \
                 'torrents': value_json.results | count, \
                 'error': (value_json.error or {}).get('message')} | tojson }}";
    let more = json!({
        "device_class": "enum", "options": ["ok", "partial", "error", "expired", "refused"], "icon": "mdi:reply",
        "json_attributes_topic": topic, "json_attributes_template": about,
        "availability": device.of_bridge(), "entity_category": "diagnostic",
    });
    device.show(("sensor", "last_result", "Last result"), topic, plain("status"), more);
}

fn resync(device: &mut Builder<'_>, topic: &str) {
    let more = json!({
        "command_topic": topic, "payload_press": "{}", "icon": "mdi:sync", "entity_category": "config",
    });
    device.add("button", "resync", "Resync", more);
}

/// Returns the device of a server. `client`: name and version, as `rTorrent 0.9.8`; `None` before its first answer.
pub fn server(settings: &HomeAssistant, names: &Names, server: &ServerName, client: Option<&str>) -> Payload {
    let (model, version) = client.and_then(|client| client.rsplit_once(' ')).unzip();
    let mut about = object(json!({
        "name": format!("dTorrent {server}"),
        "manufacturer": "dTorrent", "model": model.unwrap_or("Torrent client"),
        "via_device": names.identifier(&Device::Bridge),
    }));
    about.extend(version.map(|version| ("sw_version".to_owned(), json!(version))));
    let mut device = Builder::new(settings, names, Device::Server(server.clone()), Value::Object(about));
    for add in [traffic, counts, condition, limits, controls, events] {
        add(&mut device, server);
    }
    for number in 1..=settings.slots {
        slot(&mut device, server, number);
    }
    device.finish()
}

fn traffic(device: &mut Builder<'_>, server: &ServerName) {
    let rates = device.names.document(server, "rates");
    let totals = device.names.document(server, "totals");
    let options = ["idle", "downloading", "seeding", "both"];
    let status = json!({"device_class": "enum", "options": options, "icon": "mdi:swap-vertical"});
    device.show(("sensor", "status", "Status"), &rates, plain("status"), status);
    device.rate("download_rate", "Download speed", &rates, "download_rate");
    device.rate("upload_rate", "Upload speed", &rates, "upload_rate");
    for (key, name) in [
        ("session_downloaded", "Session download"),
        ("session_uploaded", "Session upload"),
        ("all_time_downloaded", "All-time download"),
        ("all_time_uploaded", "All-time upload"),
    ] {
        device.size(key, name, &totals, key, "total_increasing");
    }
    device.ratio("session_ratio", "Session ratio", &totals);
    device.ratio("all_time_ratio", "All-time ratio", &totals);
    device.size("free_space", "Free space", &totals, "free_space", "measurement");
}

fn counts(device: &mut Builder<'_>, server: &ServerName) {
    let counts = device.names.document(server, "counts");
    for (key, name, icon) in [
        ("all", "Torrents", "mdi:file-multiple"),
        ("active", "Active torrents", "mdi:swap-vertical-bold"),
        ("inactive", "Inactive torrents", "mdi:sleep"),
        ("downloading", "Downloading torrents", "mdi:download"),
        ("seeding", "Seeding torrents", "mdi:sprout"),
        ("uploading", "Uploading torrents", "mdi:upload"),
        ("completed", "Completed torrents", "mdi:check-all"),
        ("incomplete", "Incomplete torrents", "mdi:progress-download"),
        ("started", "Started torrents", "mdi:play"),
        ("stopped", "Stopped torrents", "mdi:stop"),
        ("paused", "Paused torrents", "mdi:pause"),
        ("queued", "Queued torrents", "mdi:tray-full"),
        ("checking", "Checking torrents", "mdi:magnify-scan"),
        ("metadata", "Magnet links without metadata", "mdi:magnet"),
        ("errored", "Errored torrents", "mdi:alert-circle"),
        ("stalled", "Stalled torrents", "mdi:timer-sand"),
    ] {
        device.count(key, name, icon, &counts);
    }
    let list = device.names.document(server, "list");
    let icon = "mdi:format-list-bulleted";
    let more = json!({"icon": icon, "unit_of_measurement": "torrents", "json_attributes_topic": list});
    device.show(("sensor", "list", "Torrent list"), &list, plain("shown"), more);
}

fn condition(device: &mut Builder<'_>, server: &ServerName) {
    let names = device.names;
    let connection = json!({
        "state_topic": names.server(server, "status"), "payload_on": "online", "payload_off": "offline",
        "device_class": "connectivity", "availability": device.of_bridge(), "entity_category": "diagnostic",
    });
    device.add("binary_sensor", "connection", "Connection", connection);
    let counts = names.document(server, "counts");
    let about = "{{ {'problem': value_json.problem, 'torrents': value_json.errored_torrents} | tojson }}";
    let problem = json!({
        "device_class": "problem", "availability": device.of_bridge(),
        "json_attributes_topic": counts, "json_attributes_template": about,
    });
    device.show(("binary_sensor", "problem", "Problem"), &counts, on_off("value_json.has_problem"), problem);
    let finished = names.document(server, "last_finished");
    let last = json!({
        "icon": "mdi:flag-checkered",
        "json_attributes_topic": finished, "json_attributes_template": "{{ value_json | tojson }}",
    });
    device.show(("sensor", "last_finished", "Last finished"), &finished, plain("name"), last);
    let at = json!({"device_class": "timestamp"});
    device.show(("sensor", "last_finished_at", "Last finished at"), &finished, plain("time"), at);
    let poll = names.document(server, "poll");
    device.measured("poll_duration", "Poll duration", &poll, ("duration", "s", "measurement"), &plain("seconds"));
    device.set("poll_duration", "suggested_display_precision", json!(3));
    device.measured("poll_age", "Poll age", &poll, ("duration", "s", "measurement"), &plain("age_seconds"));
    device.set("poll_age", "suggested_display_precision", json!(0));
    // While the client is unreachable its age grows, which is what it is for.
    device.set("poll_age", "availability", device.of_bridge());
    device.show(("sensor", "client", "Client"), &poll, plain("client"), json!({"icon": "mdi:tag"}));
    for key in ["poll_duration", "poll_age", "client"] {
        device.set(key, "entity_category", json!("diagnostic"));
    }
    result(device, &names.server(server, "result"));
}

/// Adds limits: numbers that can be set where the command is accepted, else numbers that are shown.
fn limits(device: &mut Builder<'_>, server: &ServerName) {
    let topic = device.names.document(server, "limits");
    for (field, name) in [("download_limit", "Download limit"), ("upload_limit", "Upload limit")] {
        let icon = if field == "download_limit" { "mdi:download-lock" } else { "mdi:upload-lock" };
        if device.settings.can("limits") {
            let shown = format!(
                "{{{{ ([value_json.{field} / 1024, {LIMIT_MAX}] | min) | round(0) | int \
                 if value_json.{field} is number else None }}}}"
            );
            let more = json!({
                "icon": icon, "command_topic": device.names.server(server, "command/limits"),
                "command_template": format!("{{{{ {{'{field}': (value * 1024) | int}} | tojson }}}}"),
                "min": 0, "max": LIMIT_MAX, "step": 1, "mode": "box",
                "device_class": "data_rate", "unit_of_measurement": "KiB/s", "entity_category": "config",
            });
            device.show(("number", field, name), &topic, shown, more);
        } else {
            // Another platform, so another key: with the same one both entities would exist.
            let key = format!("{field}_shown");
            device.measured(&key, name, &topic, ("data_rate", "MB/s", "measurement"), &scaled(field, 1_000_000));
            device.set(&key, "icon", json!(icon));
            device.set(&key, "entity_category", json!("diagnostic"));
        }
    }
    if device.settings.can("limits") && device.settings.alternative.is_some() {
        let command = device.names.document(server, "command/alternative");
        let (shown, more) =
            (on_off("value_json.is_alternative"), json!({"icon": "mdi:tortoise", "command_topic": command}));
        device.show(("switch", "alternative", "Alternative speed"), &topic, shown, more);
    }
}

/// Maximum that the number of a limit shows, in KiB/s, in which rTorrent counts them. A larger state would be an error there.
const LIMIT_MAX: u32 = 10_000_000;

fn controls(device: &mut Builder<'_>, server: &ServerName) {
    let (settings, names) = (device.settings, device.names);
    if settings.can("start") && settings.can("stop") {
        let more = json!({"command_topic": names.document(server, "command/all"), "icon": "mdi:power"});
        let counts = names.document(server, "counts");
        device.show(("switch", "all_switch", "Torrents"), &counts, on_off("value_json.started > 0"), more);
    }
    for (verb, key, name, icon) in [
        ("pause", "pause_all", "Pause all", "mdi:pause-circle"),
        ("resume", "resume_all", "Resume all", "mdi:play-circle"),
    ] {
        if settings.can(verb) {
            let topic = names.server(server, &format!("command/{verb}"));
            let more = json!({"command_topic": topic, "payload_press": "{\"filter\": {}}", "icon": icon});
            device.add("button", key, name, more);
        }
    }
    if settings.can("resync") {
        resync(device, &names.server(server, "command/resync"));
    }
    if settings.can("add") {
        let topic = names.server(server, "command/add");
        let text = json!({"command_topic": topic, "max": 255, "icon": "mdi:link-plus"});
        device.add("text", "add_link", "Add a link", text);
        let notify = json!({"command_topic": topic, "icon": "mdi:link-plus"});
        device.add("notify", "add", "Add", notify);
    }
}

fn events(device: &mut Builder<'_>, server: &ServerName) {
    let topic = device.names.document(server, "event");
    let kinds: Vec<&str> = EVENT_KINDS.iter().map(|kind| kind.as_str()).collect();
    let more = json!({
        "state_topic": topic, "event_types": kinds, "icon": "mdi:bell", "availability": device.of_bridge(),
    });
    device.add("event", "event", "Event", more);
    for kind in ["added", "finished", "removed", "error"] {
        let trigger = json!({
            "platform": "device_automation", "automation_type": "trigger", "type": kind, "subtype": "torrent",
            "topic": topic, "payload": kind, "value_template": "{{ value_json.event_type }}",
        });
        device.components.insert(format!("trigger_{kind}"), trigger);
    }
}

/// Adds the entities of a slot, which are the same whatever torrent is in it.
fn slot(device: &mut Builder<'_>, server: &ServerName, number: u8) {
    let topic = device.names.slot(server, number);
    let key = format!("slot_{number}");
    let more = json!({"icon": "mdi:file-download", "json_attributes_topic": topic});
    device.show(("sensor", &key, &format!("Slot {number}")), &topic, plain("name"), more);
    device.progress(&format!("{key}_progress"), &format!("Slot {number} progress"), &topic);
    run_switch(device, server, &format!("{key}_run"), &format!("Slot {number} running"), &topic);
}

/// Adds a switch that pauses and resumes the torrent that the document shows.
fn run_switch(device: &mut Builder<'_>, server: &ServerName, key: &str, name: &str, topic: &str) {
    // The command has the hash that was shown at the press, so a torrent that has come into the slot meanwhile is not hit.
    if !(device.settings.can("pause") && device.settings.can("resume")) {
        return;
    }
    let more = json!({
        "command_topic": device.names.document(server, "command/torrent"),
        "command_template": "{{ {'state': value, 'hash': this.attributes.get('hash')} | tojson }}",
        "json_attributes_topic": topic,
        "json_attributes_template": "{{ {'hash': value_json.hash} | tojson }}", "icon": "mdi:play-pause",
    });
    device.show(("switch", key, name), topic, "{{ {true: 'ON', false: 'OFF'}.get(value_json.running) }}", more);
}

/// Returns the device of a torrent that the config selects.
pub fn torrent(
    settings: &HomeAssistant,
    names: &Names,
    server: &ServerName,
    hash: InfoHash,
    torrent_name: &str,
) -> Payload {
    let about = json!({
        "name": torrent_name, "manufacturer": "dTorrent", "model": "Torrent",
        "via_device": names.identifier(&Device::Server(server.clone())),
    });
    let mut device = Builder::new(settings, names, Device::Torrent(server.clone(), hash), about);
    let topic = names.torrent(server, hash);
    let status = json!({
        "device_class": "enum", "json_attributes_topic": topic, "icon": "mdi:list-status",
        "options": ["checking", "downloading", "seeding", "paused", "stopped", "queued", "metadata", "gone"],
    });
    device.show(("sensor", "status", "Status"), &topic, plain("status"), status);
    device.progress("progress", "Progress", &topic);
    device.rate("download_rate", "Download speed", &topic, "download_rate");
    device.rate("upload_rate", "Upload speed", &topic, "upload_rate");
    device.ratio("ratio", "Ratio", &topic);
    device.measured("eta", "Time left", &topic, ("duration", "s", "measurement"), &plain("eta"));
    device.set("eta", "suggested_display_precision", json!(0));
    let problem = json!({
        "device_class": "problem",
        "json_attributes_topic": topic, "json_attributes_template": "{{ {'message': value_json.message} | tojson }}",
    });
    device.show(("binary_sensor", "problem", "Problem"), &topic, on_off("value_json.error"), problem);
    run_switch(&mut device, server, "run", "Running", &topic);
    device.finish()
}
