//! The shapes of all that goes over a wire, for those who read and write it: JSON Schemas, and an AsyncAPI
//! document that says on which topic each of them is.
//!
//! They are made from the types that are sent, so they cannot say something else; and the live tests hold
//! every message that they hear against them. A schema of what we send is open: a later version may say more.
//! One of what we take is closed, because a key that is not known is refused.
//!
//! Pure.

mod asyncapi;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value};

use crate::commands;
use crate::model::{Event, Files, Health, Info, Outcome, Stats, Torrent, Verb};

pub use asyncapi::document as asyncapi;

/// A body that the bridge sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Body {
    Event,
    Result,
    Torrent,
    Files,
    Stats,
    Info,
    Health,
}

impl Body {
    pub const ALL: [Self; 7] =
        [Self::Event, Self::Result, Self::Torrent, Self::Files, Self::Stats, Self::Info, Self::Health];

    pub fn schema(self) -> Schema {
        match self {
            Self::Event => sent::<Event>(),
            Self::Result => sent::<Outcome>(),
            Self::Torrent => sent::<Torrent>(),
            Self::Files => sent::<Files>(),
            Self::Stats => sent::<Stats>(),
            Self::Info => sent::<Info>(),
            Self::Health => sent::<Health>(),
        }
    }
}

fn sent<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>()
}

/// The body of a command, as JSON.
pub fn command(verb: Verb) -> Schema {
    whole(|generator| commands::body_schema(verb, generator))
}

/// The bodies of all commands: any of them, each also by its name below `$defs`.
pub fn any_command() -> Schema {
    whole(|generator| {
        let names = Verb::ALL.iter().map(|verb| verb.as_str());
        let refs = names.map(|name| serde_json::json!({"$ref": format!("#/$defs/{name}")})).collect();
        for verb in Verb::ALL {
            let body = commands::body_schema(*verb, generator);
            generator.definitions_mut().insert(verb.as_str().to_owned(), body.to_value());
        }
        let mut schema = Schema::default();
        schema.insert("title".to_owned(), "command".into());
        schema.insert("anyOf".to_owned(), Value::Array(refs));
        schema
    })
}

/// What `make` makes, with the definitions that it needs and the mark of its dialect.
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
