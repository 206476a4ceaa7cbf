//! Query strings of the API. Pure.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use url::form_urlencoded;

use crate::model::{Filter, Kind, ServerName, Torrent, known_names};

/// Torrents on a page, unless the query says otherwise.
const PAGE_SIZE_DEFAULT: u64 = 200;
/// Most torrents on a page, which is rendered in memory.
const PAGE_SIZE_MAX: u64 = 1000;

const TORRENTS_PARAMETERS: [&str; 9] =
    ["filter", "status", "label", "name", "tracker", "private", "fields", "page", "page_size"];
const EVENTS_PARAMETERS: [&str; 3] = ["server", "event", "last_event_id"];

/// The query of a list of torrents.
#[derive(Clone, Debug)]
pub struct TorrentsQuery {
    /// The torrents that match.
    pub filter: Filter,
    /// The number of the page, from 0.
    pub page: u64,
    /// Torrents on a page.
    pub page_size: u64,
    /// Puts torrents in error first, then those with the highest rates. Otherwise they are in the order of their hashes.
    pub busiest_first: bool,
}

/// The query of the event stream.
#[derive(Clone, Debug, Default)]
pub struct EventsQuery {
    /// Only events of these servers; `None` is all.
    pub servers: Option<BTreeSet<ServerName>>,
    /// Only events of these kinds.
    pub kinds: BTreeSet<Kind>,
    /// The id of the last event that the listener has. `None` starts with what happens from now on.
    pub after: Option<String>,
}

fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// Parses `status`, `label`, `name`, `tracker`, `private`, or all of them as JSON in `filter`; `page` and `page_size`;
/// and `fields`, which are returned apart from the query because they concern only the rendering.
///
/// # Errors
/// The first parameter that is wrong, and what would be right.
pub(super) fn torrents(query: &str) -> Result<(TorrentsQuery, Option<Vec<String>>), String> {
    let (mut page, mut page_size, mut fields) = (0, PAGE_SIZE_DEFAULT, None);
    let mut filter = Map::new();
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        let number = || value.parse::<u64>().map_err(|_| format!("{key}: expected a whole number"));
        match &*key {
            // Merged with the other parameters, of which each is one condition of the same filter.
            "filter" => match serde_json::from_str(&value) {
                Ok(Value::Object(object)) => filter.extend(object),
                Ok(_) | Err(_) => return Err("filter: expected a JSON object, {\"status\": \"seeding\"}".to_owned()),
            },
            "status" => drop(filter.insert("status".to_owned(), items(&value).collect())),
            "label" | "name" | "tracker" => drop(filter.insert(key.into_owned(), Value::from(&*value))),
            "private" => {
                let is_private = value.parse::<bool>().map_err(|_| "private: expected true or false".to_owned())?;
                filter.insert("private".to_owned(), Value::from(is_private));
            }
            "fields" => fields = Some(items(&value).map(str::to_owned).collect()),
            "page" => page = number()?,
            "page_size" => page_size = number()?,
            other => return Err(unknown(other, &TORRENTS_PARAMETERS)),
        }
    }
    if !(1..=PAGE_SIZE_MAX).contains(&page_size) {
        return Err(format!("page_size: expected 1 to {PAGE_SIZE_MAX}"));
    }
    Torrent::check_fields(fields.as_deref().unwrap_or_default())?;
    let filter = Filter::from_json(Value::Object(filter)).map_err(|error| error.to_string())?;
    Ok((TorrentsQuery { filter, page, page_size, busiest_first: false }, fields))
}

/// Parses `server` and `event`, each a list of names, and `last_event_id`, for clients that cannot set the header.
///
/// # Errors
/// The first parameter that is wrong, and what would be right.
pub(super) fn events(query: &str) -> Result<EventsQuery, String> {
    let mut events = EventsQuery { kinds: Kind::ALL.iter().copied().collect(), ..EventsQuery::default() };
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            "server" => {
                let names = items(&value).map(ServerName::parse).collect::<Result<_, _>>();
                events.servers = Some(names.map_err(|error| error.to_string())?);
            }
            "event" => {
                let kind = |name: &str| {
                    let known = || known_names(name, Kind::ALL.iter().map(|kind| kind.as_str()));
                    Kind::parse(name)
                        .ok_or_else(|| format!("event: unknown kind `{}`; {}", name.escape_default(), known()))
                };
                events.kinds = items(&value).map(kind).collect::<Result<_, _>>()?;
            }
            "last_event_id" => events.after = Some(value.into_owned()),
            other => return Err(unknown(other, &EVENTS_PARAMETERS)),
        }
    }
    Ok(events)
}

fn unknown(parameter: &str, known: &[&str]) -> String {
    format!("unknown parameter `{}`; {}", parameter.escape_default(), known_names(parameter, known.iter().copied()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn torrents_are_selected_by_filter_fields_and_page() {
        let (query, fields) =
            torrents("status=seeding,paused&name=*.iso&fields=hash,%20name&page=2&page_size=10").unwrap();
        assert_eq!((query.page, query.page_size), (2, 10));
        assert_eq!(fields.as_deref(), Some(&["hash".to_owned(), "name".to_owned()][..]));
        assert!(torrents("filter=%7B%22label%22%3A%22a%26b%22%7D").is_ok() && torrents("").is_ok());
        for bad in [
            "page=x",
            "page_size=0",
            "page_size=1001",
            "status=asleep",
            "filter=7",
            "private=1",
            "x=1",
            "name=[",
            "fields=nam",
        ] {
            assert!(torrents(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn events_are_selected_by_server_and_kind() {
        let query = events("server=home,attic&event=finished&last_event_id=home-1").unwrap();
        assert_eq!(query.servers.unwrap().len(), 2);
        assert_eq!(query.kinds, [Kind::Finished].into());
        assert_eq!(query.after.as_deref(), Some("home-1"));
        assert_eq!(events("").unwrap().kinds.len(), Kind::ALL.len());
        for bad in ["server=A", "event=exploded", "x="] {
            assert!(events(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_query_panics(query in "[a-z_]{0,10}=?[ -~]{0,40}|\\PC{0,60}") {
            drop(torrents(&query));
            drop(events(&query));
        }
    }
}
