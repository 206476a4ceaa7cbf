//! Home Assistant's rules for discovery messages, found with Home Assistant Core 2025.4 and 2026.11: faults that make it
//! drop a device or a component, or log a warning. With them a message is checked without Home Assistant.

use serde_json::{Map, Value};

const TOP: &[&str] = &[
    "device",
    "origin",
    "components",
    "availability",
    "availability_topic",
    "availability_template",
    "availability_mode",
    "payload_available",
    "payload_not_available",
    "state_topic",
    "command_topic",
    "qos",
    "encoding",
];
const DEVICE: &[&str] = &[
    "identifiers",
    "connections",
    "name",
    "manufacturer",
    "model",
    "model_id",
    "hw_version",
    "sw_version",
    "serial_number",
    "suggested_area",
    "configuration_url",
    "via_device",
];
const ORIGIN: &[&str] = &["name", "sw_version", "support_url"];
const ALL: &[&str] = &[
    "platform",
    "unique_id",
    "name",
    "icon",
    "entity_category",
    "enabled_by_default",
    "entity_picture",
    "json_attributes_topic",
    "json_attributes_template",
    "qos",
    "encoding",
    "availability",
    "availability_topic",
    "availability_template",
    "availability_mode",
    "payload_available",
    "payload_not_available",
    "default_entity_id",
];

/// Further keys of a platform, its required keys, and its device classes.
type Platform = (&'static [&'static str], &'static [&'static str], &'static [&'static str]);

fn platform(name: &str) -> Option<Platform> {
    Some(match name {
        "sensor" => (
            &[
                "state_topic",
                "value_template",
                "unit_of_measurement",
                "state_class",
                "suggested_display_precision",
                "options",
                "expire_after",
                "force_update",
                "last_reset_value_template",
                "device_class",
            ],
            &["state_topic"],
            &["data_rate", "data_size", "duration", "timestamp", "enum"],
        ),
        "binary_sensor" => (
            &[
                "state_topic",
                "value_template",
                "payload_on",
                "payload_off",
                "off_delay",
                "expire_after",
                "force_update",
                "device_class",
            ],
            &["state_topic"],
            &["connectivity", "problem", "running", "update"],
        ),
        "button" => (
            &["command_topic", "command_template", "payload_press", "retain", "device_class"],
            &["command_topic"],
            &["identify", "restart", "update"],
        ),
        "switch" => (
            &[
                "command_topic",
                "state_topic",
                "value_template",
                "payload_on",
                "payload_off",
                "state_on",
                "state_off",
                "optimistic",
                "command_template",
                "retain",
                "device_class",
            ],
            &["command_topic"],
            &["outlet", "switch"],
        ),
        "event" => (&["state_topic", "event_types", "value_template"], &["state_topic", "event_types"], &[]),
        "number" => (
            &[
                "command_topic",
                "state_topic",
                "value_template",
                "command_template",
                "min",
                "max",
                "step",
                "mode",
                "unit_of_measurement",
                "payload_reset",
                "optimistic",
                "retain",
                "device_class",
            ],
            &["command_topic"],
            &["data_rate", "data_size", "duration"],
        ),
        "text" => (
            &[
                "command_topic",
                "state_topic",
                "value_template",
                "command_template",
                "min",
                "max",
                "pattern",
                "mode",
                "optimistic",
                "retain",
            ],
            &["command_topic"],
            &[],
        ),
        "notify" => (&["command_topic", "command_template", "retain"], &["command_topic"], &[]),
        _ => return None,
    })
}

fn units(device_class: &str) -> &'static [&'static str] {
    match device_class {
        "data_rate" => {
            &["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "B/s", "kB/s", "MB/s", "GB/s", "KiB/s", "MiB/s", "GiB/s"]
        }
        "data_size" => &["B", "kB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"],
        "duration" => &["s", "ms", "min", "h", "d"],
        _ => &[],
    }
}

/// Returns every fault of a discovery message, one sentence each.
pub fn faults(topic: &str, body: &[u8]) -> Vec<String> {
    let mut faults = Vec::new();
    let levels: Vec<&str> = topic.split('/').collect();
    let is_word = |level: &&str| level.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let is_discovery = matches!(levels[..], [.., "device", node, id, "config"] if is_word(&node) && is_word(&id));
    if !is_discovery {
        faults.push(format!("{topic} is no discovery topic"));
    }
    let Ok(Value::Object(payload)) = serde_json::from_slice(body) else {
        faults.push("no JSON object".to_owned());
        return faults;
    };
    only(&payload, TOP, "the message", &mut faults);
    let empty = Map::new();
    let table = |key: &str| payload.get(key).and_then(Value::as_object).unwrap_or(&empty);
    only(table("device"), DEVICE, "device", &mut faults);
    only(table("origin"), ORIGIN, "origin", &mut faults);
    if table("origin").get("name").and_then(Value::as_str).is_none() {
        faults.push("origin has no name".to_owned());
    }
    if table("device").get("identifiers").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        faults.push("device has no identifiers".to_owned());
    }
    if table("device").get("name").and_then(Value::as_str).is_none() {
        faults.push("device has no name".to_owned());
    }
    let mut ids = std::collections::BTreeSet::new();
    let mut names = std::collections::BTreeSet::new();
    for (key, component) in table("components") {
        let Some(component) = component.as_object() else {
            faults.push(format!("{key} is no object"));
            continue;
        };
        if component.len() == 1 && component.contains_key("platform") {
            continue; // cleared
        }
        let mut found = Vec::new();
        component_faults(component, &mut found);
        if let Some(id) = component.get("unique_id").and_then(Value::as_str)
            && !ids.insert(id)
        {
            found.push(format!("{id} twice"));
        }
        let name = (component["platform"].as_str(), component.get("name").and_then(Value::as_str));
        if name.1.is_some() && !names.insert(name) {
            found.push(format!("two of the name {name:?}"));
        }
        faults.extend(found.into_iter().map(|fault| format!("{key}: {fault}")));
    }
    faults
}

fn only(object: &Map<String, Value>, known: &[&str], what: &str, faults: &mut Vec<String>) {
    for key in object.keys().filter(|key| !known.contains(&key.as_str())) {
        faults.push(format!("{what} may not have {key}"));
    }
}

fn component_faults(component: &Map<String, Value>, faults: &mut Vec<String>) {
    let text = |key: &str| component.get(key).and_then(Value::as_str);
    let name = text("platform").unwrap_or_default();
    if name == "device_automation" {
        only(
            component,
            &["platform", "automation_type", "type", "subtype", "topic", "payload", "value_template", "qos"],
            "a trigger",
            faults,
        );
        if text("automation_type") != Some("trigger") || ["type", "subtype", "topic"].iter().any(|k| text(k).is_none())
        {
            faults.push("a trigger without type, subtype or topic".to_owned());
        }
        return;
    }
    let Some((keys, needed, classes)) = platform(name) else {
        faults.push(format!("no such platform: {name}"));
        return;
    };
    let known: Vec<&str> = ALL.iter().chain(keys).copied().collect();
    only(component, &known, name, faults);
    for key in needed.iter().chain(&["unique_id", "name"]).filter(|key| !component.contains_key(**key)) {
        faults.push(format!("{key} is missing"));
    }
    let class = text("device_class");
    if class.is_some_and(|class| !classes.contains(&class)) {
        faults.push(format!("device class {class:?} is none of {name}"));
    }
    if text("icon").is_some_and(|icon| !icon.starts_with("mdi:")) {
        faults.push("icon without mdi:".to_owned());
    }
    let category = text("entity_category");
    let is_read_only = matches!(name, "sensor" | "binary_sensor");
    if category.is_some_and(|category| category != "diagnostic" && (is_read_only || category != "config")) {
        faults.push(format!("category {category:?}"));
    }
    // On the removal of a device, Home Assistant clears the discovery topic once for each such component, and logs a
    // warning about its own message (2025.4, seen in the broker's log).
    if component.get("enabled_by_default") == Some(&Value::Bool(false)) {
        faults.push("off by default".to_owned());
    }
    if component.contains_key("availability_topic") {
        faults.push("availability_topic below an availability list".to_owned());
    }
    if component.get("retain").is_some_and(|retain| retain != &Value::Bool(false)) {
        faults.push("retained commands".to_owned());
    }
    for key in component.keys().filter(|key| key.ends_with("template")) {
        let template = text(key).unwrap_or_default();
        if !template.contains("{{") || template.matches("{{").count() != template.matches("}}").count() {
            faults.push(format!("{key} is no template: {template}"));
        }
    }
    for key in component.keys().filter(|key| key.ends_with("_topic")) {
        let topic = text(key).unwrap_or_default();
        if topic.is_empty() || topic.contains(['#', '+']) {
            faults.push(format!("{key} is {topic}"));
        }
    }
    values(component, name, faults);
}

fn values(component: &Map<String, Value>, name: &str, faults: &mut Vec<String>) {
    let text = |key: &str| component.get(key).and_then(Value::as_str);
    let (class, unit, state_class) = (text("device_class"), text("unit_of_measurement"), text("state_class"));
    match class {
        Some("data_rate" | "data_size" | "duration") => {
            let known = units(class.unwrap_or_default());
            if !unit.is_some_and(|unit| known.contains(&unit)) {
                faults.push(format!("unit {unit:?} of {class:?}"));
            }
            if class == Some("data_rate") && state_class == Some("total_increasing") {
                faults.push("a rate that only increases".to_owned());
            }
        }
        Some("timestamp" | "enum")
            if name == "sensor"
                && (unit.is_some()
                    || state_class.is_some()
                    || component.contains_key("suggested_display_precision")) =>
        {
            faults.push(format!("unit, state class or precision with {class:?}"));
        }
        _ => {}
    }
    if state_class.is_some_and(|class| !["measurement", "total", "total_increasing"].contains(&class)) {
        faults.push(format!("state class {state_class:?}"));
    }
    let has_options = component.get("options").and_then(Value::as_array).is_some_and(|options| !options.is_empty());
    if has_options != (class == Some("enum")) {
        faults.push("options and enum go together".to_owned());
    }
    if name == "text" && component.get("max").and_then(Value::as_u64).is_some_and(|max| max > 255) {
        faults.push("a text of more than 255".to_owned());
    }
    if name == "number" && component.get("max").is_none() {
        faults.push("a number without its range".to_owned());
    }
    let types = component.get("event_types").and_then(Value::as_array);
    if types.is_some_and(Vec::is_empty) {
        faults.push("no event types".to_owned());
    }
}
