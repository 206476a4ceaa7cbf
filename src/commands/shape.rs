//! What the body of each command looks like, for those who send them. Pure.
//!
//! [`Request`](super::Request) reads what this describes; the tests hold that it takes nothing else.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::Value;

use super::request;
use crate::model::{CommandId, Filter, OneOrMore, Status, Verb};

/// What every command may say.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "nothing is ever of this type: it is only described")]
struct Common {
    /// The sender's; made up if it gives none. The same id within 24 hours is carried out once and answered the same again.
    id: Option<CommandId>,
    /// Which torrents, where the topic names none.
    #[schemars(length(max = request::HASHES_MAX), inner(regex(pattern = r"^([0-9a-fA-F]{40}|[0-9a-fA-F]{64})$")))]
    hashes: Option<Vec<String>>,
    /// Which torrents, where the topic names none.
    filter: Option<Filter>,
    /// Later than that it is not carried out: `"300s"`, `"5m"`; 24 hours at most.
    #[schemars(regex(pattern = r"^\s*(0|([0-9.]+\s*[a-zA-Zµ]+\s*)+)$"))]
    ttl: Option<String>,
    /// Torrents with another status are left alone.
    if_status: Option<OneOrMore<Status>>,
    /// Everything but the doing.
    dry_run: Option<bool>,
    /// A topic for the result, besides the result topic; only below the config's `reply_prefixes`.
    reply_to: Option<String>,
}

/// The body of a command with this verb, as JSON. `add` also takes a bare link, and the bytes of a .torrent file.
pub fn body(verb: Verb, generator: &mut SchemaGenerator) -> Schema {
    let mut schema = request::arguments_of(verb, generator);
    let Some(Value::Object(mut common)) = Common::json_schema(generator).remove("properties") else {
        unreachable!("it is a struct with fields")
    };
    let names_torrents = verb.is_for_torrents() && verb != Verb::FilePriority;
    if !names_torrents {
        common.remove("hashes");
    }
    if !names_torrents && verb != Verb::List {
        common.remove("filter");
    }
    match schema.ensure_object().entry("properties").or_insert_with(|| Value::Object(Default::default())) {
        Value::Object(properties) => properties.append(&mut common),
        _ => unreachable!("properties are an object"),
    }
    schema.insert("title".to_owned(), verb.as_str().into());
    schema
}
