//! JSON Schemas of all messages, and an AsyncAPI document that maps topics and subjects to messages.
//!
//! Generated from the types that are sent, so they cannot differ from them; live tests validate every
//! message that they receive. The schema of a message that the bridge sends is open, because a later
//! version may add keys. The schema of a command is closed, because an unknown key is refused.
//!
//! Pure.

mod asyncapi;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value};

use crate::commands;
use crate::model::{Event, Files, Health, Info, Outcome, Stats, Torrent, Verb};

pub use asyncapi::document as asyncapi;

/// A function that makes the schema of a message.
pub type MakeSchema = fn() -> Schema;

/// The messages that the bridge sends, by name.
pub const SENT: [(&str, MakeSchema); 7] = [
    ("event", sent::<Event>),
    ("result", sent::<Outcome>),
    ("torrent", sent::<Torrent>),
    ("files", sent::<Files>),
    ("stats", sent::<Stats>),
    ("info", sent::<Info>),
    ("health", sent::<Health>),
];

/// Returns the schema of a message that the bridge sends.
pub fn sent<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>()
}

/// Returns the schema of the body of a command.
pub fn command(verb: Verb) -> Schema {
    whole(|generator| commands::body_schema(verb, generator))
}

/// Returns the schema of any command's body, with each one by its name below `$defs`.
pub fn any_command() -> Schema {
    whole(|generator| {
        let names = Verb::ALL.iter().map(|verb| verb.as_str());
        let refs = names.map(|name| serde_json::json!({"$ref": format!("#/$defs/{name}")})).collect();
        for verb in Verb::ALL {
            let body = commands::body_schema(*verb, generator);
            // Inserted by hand: the body of a verb is put together and has no type of its own.
            generator.definitions_mut().insert(verb.as_str().to_owned(), body.to_value());
        }
        let mut schema = Schema::default();
        schema.insert("title".to_owned(), "command".into());
        schema.insert("anyOf".to_owned(), Value::Array(refs));
        schema
    })
}

/// Completes the schema that `make` returns by the definitions that it refers to and its dialect.
fn whole(make: impl FnOnce(&mut schemars::SchemaGenerator) -> Schema) -> Schema {
    let mut generator = SchemaSettings::draft2020_12().for_deserialize().into_generator();
    let mut schema = make(&mut generator);
    let dialect = generator.settings().meta_schema.clone();
    schema.insert("$schema".to_owned(), dialect.map(|dialect| dialect.into_owned()).into());
    let definitions: Map<String, Value> = generator.take_definitions(true);
    if !definitions.is_empty() {
        schema.insert("$defs".to_owned(), Value::Object(definitions));
    }
    schema
}
