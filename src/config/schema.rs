//! The JSON Schema of the config file, for editors. Made from the table of keys.

use schemars::{JsonSchema as _, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::keys::{Default, Form, Key, ROOT, Section};
use crate::model::{SinkName, Status, Verb};

/// Durations that `humantime` reads.
const DURATION: &str = r"^\s*([0-9.]+\s*[a-zA-Zµ]+\s*)+$";
const BYTES: &str = r"^[0-9]+\s*([kKMGT]?B|[KMGT]iB)?\s*$";

/// Returns the schema of `dtorrent.toml`.
pub fn schema() -> Schema {
    let mut schema = Map::new();
    schema.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    schema.insert("title".to_owned(), json!("dtorrent.toml"));
    schema.extend(section(&ROOT));
    schema.into()
}

fn section(section: &Section) -> Map<String, Value> {
    let mut properties = Map::new();
    let mut required = Vec::new();
    let mut either = Vec::new();
    for key in section.iter() {
        properties.insert(key.name.to_owned(), value(key).into());
        let file = key.file();
        if let Some(file) = &file {
            properties.insert(
                file.clone(),
                json!({"type": "string", "description": format!("File that holds `{}`.", key.name)}),
            );
        }
        match (key.default, file) {
            (Default::Required(_), None) => required.push(json!(key.name)),
            // A required secret may be in a file, so either key satisfies the schema.
            (Default::Required(_), Some(file)) => {
                either.extend([json!({"required": [key.name]}), json!({"required": [file]})]);
            }
            _ => {}
        }
    }
    let mut schema = Map::from_iter([
        ("description".to_owned(), json!(section.doc)),
        ("type".to_owned(), json!("object")),
        ("properties".to_owned(), properties.into()),
        ("additionalProperties".to_owned(), json!(false)),
    ]);
    if !required.is_empty() {
        schema.insert("required".to_owned(), required.into());
    }
    if !either.is_empty() {
        schema.insert("anyOf".to_owned(), either.into());
    }
    schema
}

fn value(key: &Key) -> Map<String, Value> {
    let mut schema = Map::from_iter([("description".to_owned(), json!(key.doc))]);
    if let Some(default) = key.default.value() {
        schema.insert("default".to_owned(), default);
    }
    let form = match key.form {
        Form::Text(pattern) | Form::Secret(pattern) => text(pattern),
        Form::Name => name(),
        Form::Choice(choices) => json!({"type": "string", "enum": choices}),
        Form::Tag(value) => json!({"const": value}),
        // A pattern cannot express the range, which only `dtorrent check` finds.
        Form::Duration(..) => text(DURATION),
        Form::Rate | Form::Size => text(BYTES),
        Form::Bool => json!({"type": "boolean"}),
        Form::Whole(min, max) => json!({"type": "integer", "minimum": min, "maximum": max}),
        Form::List(pattern) => {
            let min = usize::from(matches!(key.default, Default::Required(_)));
            json!({"type": "array", "items": text(pattern), "minItems": min})
        }
        Form::OneOrMore(pattern) => {
            json!({"anyOf": [text(pattern), {"type": "array", "items": text(pattern), "minItems": 1}]})
        }
        Form::Rights => {
            let words: Vec<String> = Verb::rights().flat_map(|right| [right.to_owned(), format!("-{right}")]).collect();
            json!({"type": "array", "items": {"anyOf": [{"const": "*"}, {"enum": words}]}})
        }
        Form::Texts => json!({"type": "object", "additionalProperties": {"type": "string"}}),
        Form::Filter => filter(),
        Form::Section(below) => section(below).into(),
        Form::Named(forms) => {
            let forms: Vec<Value> = forms.iter().map(|form| section(form).into()).collect();
            json!({"type": "object", "propertyNames": name(), "additionalProperties": {"anyOf": forms}})
        }
    };
    if let Value::Object(form) = form {
        schema.extend(form);
    }
    schema
}

fn text(pattern: &str) -> Value {
    if pattern.is_empty() { json!({"type": "string"}) } else { json!({"type": "string", "pattern": pattern}) }
}

fn name() -> Value {
    let mut name = SinkName::json_schema(&mut SchemaGenerator::default());
    name.remove("description");
    name.to_value()
}

/// The part of a command's filter that a config may use.
fn filter() -> Value {
    let statuses: Vec<&str> = Status::ALL.iter().map(|status| status.as_str()).collect();
    let glob = json!({"type": "string", "description": "Glob; case does not matter."});
    json!({
        "type": "object",
        "properties": {"status": {"enum": statuses}, "label": {"type": "string"}, "name": glob, "tracker": glob},
        "additionalProperties": false,
    })
}
