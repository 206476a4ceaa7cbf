//! What stands behind the `?` of an address. Pure.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use url::form_urlencoded;

use crate::model::{Filter, Kind, ServerName};

const PAGE_SIZE: u64 = 200;
const PAGE_SIZE_MAX: u64 = 1000;

/// Which torrents somebody wants to see, and what of them.
#[derive(Clone, Debug)]
pub struct ListWish {
    pub filter: Filter,
    /// `None`: all fields.
    pub fields: Option<Vec<String>>,
    pub page: u64,
    pub page_size: u64,
    /// Those that are in error or move most come first; else they are in the order of their hashes.
    pub busiest_first: bool,
}

/// Which events somebody wants to see.
#[derive(Clone, Debug, Default)]
pub struct EventsWish {
    /// `None`: of all servers.
    pub servers: Option<BTreeSet<ServerName>>,
    pub kinds: BTreeSet<Kind>,
    /// The id of the event that he saw last.
    pub after: Option<String>,
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty())
}

/// `status`, `label`, `name`, `tracker`, `private`, or all of it as JSON in `filter`; `fields`, `page`, `page_size`.
///
/// # Errors
/// What is wrong with the first wrong thing, and what would be right.
pub(super) fn list(query: &str) -> Result<ListWish, String> {
    let mut wish =
        ListWish { filter: Filter::default(), fields: None, page: 0, page_size: PAGE_SIZE, busiest_first: false };
    let mut filter = Map::new();
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        let number = || value.parse::<u64>().map_err(|_| format!("{key} is a whole number"));
        match &*key {
            "filter" => match serde_json::from_str(&value) {
                Ok(Value::Object(object)) => filter.extend(object),
                Ok(_) | Err(_) => return Err("filter is a JSON object, {\"status\": \"seeding\"}".to_owned()),
            },
            "status" => drop(filter.insert("status".to_owned(), words(&value).collect())),
            "label" | "name" | "tracker" => drop(filter.insert(key.into_owned(), Value::from(&*value))),
            "private" => {
                let is_private = value.parse::<bool>().map_err(|_| "private is true or false".to_owned())?;
                filter.insert("private".to_owned(), Value::from(is_private));
            }
            "fields" => wish.fields = Some(words(&value).map(str::to_owned).collect()),
            "page" => wish.page = number()?,
            "page_size" => wish.page_size = number()?,
            other => return Err(format!("`{}` is not known here", other.escape_default())),
        }
    }
    if !(1..=PAGE_SIZE_MAX).contains(&wish.page_size) {
        return Err(format!("page_size is 1 to {PAGE_SIZE_MAX}"));
    }
    wish.filter = Filter::from_json(Value::Object(filter)).map_err(|error| error.to_string())?;
    Ok(wish)
}

/// `server` and `event`, each a list of names; `last_event_id`, for whom has no header to say it in.
///
/// # Errors
/// As for [`list`].
pub(super) fn events(query: &str) -> Result<EventsWish, String> {
    let mut wish = EventsWish { kinds: Kind::ALL.iter().copied().collect(), ..EventsWish::default() };
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            "server" => {
                let names = words(&value).map(ServerName::parse).collect::<Result<_, _>>();
                wish.servers = Some(names.map_err(|error| error.to_string())?);
            }
            "event" => {
                let kind =
                    |word: &str| Kind::parse(word).ok_or_else(|| format!("`{}` is no event", word.escape_default()));
                wish.kinds = words(&value).map(kind).collect::<Result<_, _>>()?;
            }
            "last_event_id" => wish.after = Some(value.into_owned()),
            other => return Err(format!("`{}` is not known here", other.escape_default())),
        }
    }
    Ok(wish)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_query_says_what_a_list_says() {
        let wish = list("status=seeding,paused&name=*.iso&fields=hash,%20name&page=2&page_size=10").unwrap();
        assert_eq!((wish.page, wish.page_size), (2, 10));
        assert_eq!(wish.fields.as_deref(), Some(&["hash".to_owned(), "name".to_owned()][..]));
        assert!(list("filter=%7B%22label%22%3A%22a%26b%22%7D").is_ok() && list("").is_ok());
        for bad in
            ["page=x", "page_size=0", "page_size=1001", "status=asleep", "filter=7", "private=1", "x=1", "name=["]
        {
            assert!(list(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn events_are_chosen_by_server_and_kind() {
        let wish = events("server=home,attic&event=finished&last_event_id=home-1").unwrap();
        assert_eq!(wish.servers.unwrap().len(), 2);
        assert_eq!(wish.kinds, [Kind::Finished].into());
        assert_eq!(wish.after.as_deref(), Some("home-1"));
        assert_eq!(events("").unwrap().kinds.len(), Kind::ALL.len());
        for bad in ["server=A", "event=exploded", "x="] {
            assert!(events(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_query_makes_it_panic(query in "[a-z_]{0,10}=?[ -~]{0,40}|\\PC{0,60}") {
            drop(list(&query));
            drop(events(&query));
        }
    }
}
