//! A strict check of messages against the schema of their topic.
//!
//! The published schemas are open, because a later version may add keys. Here they are closed: a key that is sent and not
//! described is a fault. The AsyncAPI document yields the schema of a topic, so that it is tested too.

use jsonschema::{Draft, Validator};
use serde_json::{Value, json};

pub struct Rules {
    /// The levels of each topic, with a name in braces for any level, and the form of its body.
    sent: Vec<(Vec<String>, Shape)>,
}

enum Shape {
    /// One of these texts.
    Words(Vec<String>),
    Json(Box<Validator>),
}

impl Rules {
    /// Returns the rules for `prefix`, whose levels are joined by `/`.
    pub fn new(prefix: &str) -> Self {
        let document = dtorrent::schema::asyncapi();
        let sent = document["operations"].as_object().unwrap().values().filter(|one| one["action"] == "send");
        let sent = sent.filter_map(|operation| {
            let channel = at(&document, &operation["channel"]["$ref"]);
            let address = channel["address"].as_str().unwrap();
            let levels = address.contains('/').then(|| address.replace("{prefix}", prefix))?;
            let [message] = &operation["messages"].as_array().unwrap()[..] else { panic!("one message: {operation}") };
            let message = at(&document, &at(&document, &message["$ref"])["$ref"]);
            Some((levels.split('/').map(str::to_owned).collect(), shape(&document, &message["payload"])))
        });
        Self { sent: sent.collect() }
    }

    /// Returns the faults of a message, each with its place in the body; `None` if the topic is not in the document.
    pub fn faults(&self, topic: &str, body: &[u8]) -> Option<Vec<String>> {
        let levels: Vec<&str> = topic.split('/').collect();
        // Among several matches the most literal one applies: `event/updated`.
        let fitting = self.sent.iter().filter(|(pattern, _)| fits(pattern, &levels));
        let (_, shape) = fitting.min_by_key(|(pattern, _)| pattern.iter().filter(|level| is_name(level)).count())?;
        Some(match shape {
            Shape::Words(words) => {
                let is_one = words.iter().any(|word| word.as_bytes() == body);
                if is_one { Vec::new() } else { vec![format!("none of {words:?}")] }
            }
            Shape::Json(validator) => match serde_json::from_slice(body) {
                Ok(body) => faults(validator, &body),
                Err(error) => vec![format!("no JSON: {error}")],
            },
        })
    }
}

pub fn faults(validator: &Validator, body: &Value) -> Vec<String> {
    validator.iter_errors(body).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

fn is_name(level: &str) -> bool {
    level.starts_with('{')
}

fn fits(pattern: &[String], levels: &[&str]) -> bool {
    let one = |(pattern, level): (&String, &&str)| {
        // No server can have this name.
        if is_name(pattern) { *level != "bridge" } else { pattern == level }
    };
    pattern.len() == levels.len() && pattern.iter().zip(levels).all(one)
}

/// Returns the target of a reference within the document.
pub fn at<'d>(document: &'d Value, reference: &Value) -> &'d Value {
    let pointer = reference.as_str().and_then(|text| text.strip_prefix('#')).unwrap_or_else(|| panic!("{reference}"));
    document.pointer(pointer).unwrap_or_else(|| panic!("{reference} points at nothing"))
}

fn shape(document: &Value, payload: &Value) -> Shape {
    if let Some(words) = payload["enum"].as_array() {
        return Shape::Words(words.iter().map(|word| word.as_str().unwrap().to_owned()).collect());
    }
    let mut schema = payload.clone();
    schema["components"] = json!({"schemas": document["components"]["schemas"]});
    Shape::Json(Box::new(strict(schema, Draft::Draft7)))
}

/// Forbids every key that is not described.
pub fn strict(mut schema: Value, draft: Draft) -> Validator {
    close(&mut schema);
    for definitions in ["/$defs", "/components/schemas"] {
        let definitions = schema.pointer_mut(definitions).and_then(Value::as_object_mut);
        definitions.into_iter().flat_map(|all| all.values_mut()).for_each(close);
    }
    jsonschema::options().with_draft(draft).should_validate_formats(true).build(&schema).unwrap()
}

/// Conditions (`if`, `allOf`) add to keys described elsewhere, so they stay open.
fn close(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    if object.contains_key("properties") && !object.contains_key("additionalProperties") {
        object.insert("additionalProperties".to_owned(), false.into());
    }
    for (key, below) in object.iter_mut() {
        match key.as_str() {
            "properties" | "patternProperties" => {
                below.as_object_mut().into_iter().flat_map(|all| all.values_mut()).for_each(close);
            }
            "items" | "additionalProperties" => close(below),
            _ => {}
        }
    }
}
