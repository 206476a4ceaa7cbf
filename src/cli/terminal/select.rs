//! Selection of torrents: by hash, by name, or by condition.

use std::collections::BTreeMap;

use clap::Args;
use globset::GlobBuilder;
use serde_json::{Map, Value, json};

use crate::model::{Filter, InfoHash, Status, Timestamp, Torrent, known_names, printable};

/// Minimum length of a hash prefix; a shorter one might as well be a name.
const PREFIX_MIN: usize = 4;

/// Conditions that torrents have to meet.
#[derive(Clone, Debug, Default, Args)]
pub struct Conditions {
    /// Select by status: checking, downloading, seeding, paused, stopped, queued or metadata; several with commas
    #[arg(long, value_name = "STATUS", value_delimiter = ',', value_parser = status)]
    pub status: Vec<Status>,
    /// Select by label
    #[arg(long, value_name = "LABEL")]
    pub label: Option<String>,
    /// Select by a filter, as in a command: {"ratio": {"min": 2}, "age": {"min": "7days"}}
    #[arg(long, value_name = "JSON")]
    pub filter: Option<String>,
}

fn status(text: &str) -> Result<Status, String> {
    let known = || known_names(text, Status::ALL.iter().map(|status| status.as_str()));
    Status::ALL.into_iter().find(|status| status.as_str() == text).ok_or_else(known)
}

impl Conditions {
    /// Returns whether there is no condition.
    pub fn is_empty(&self) -> bool {
        let Self { status, label, filter } = self;
        status.is_empty() && label.is_none() && filter.is_none()
    }

    /// Returns the conditions as a filter. `name` is a further pattern, for the name of a torrent.
    ///
    /// # Errors
    /// `--filter` is no filter; the text is for the user.
    pub fn filter(&self, name: Option<&str>) -> Result<Filter, String> {
        let Self { status, label, filter } = self;
        let mut object = match filter.as_deref().map(serde_json::from_str) {
            None => Map::new(),
            Some(Ok(Value::Object(object))) => object,
            Some(_) => return Err("--filter: expected a JSON object, such as {\"name\": \"*.iso\"}".to_owned()),
        };
        let status = (!status.is_empty()).then(|| json!(status));
        let given = [("status", status), ("label", label.clone().map(Value::from)), ("name", name.map(Value::from))];
        // The options take precedence over the same keys of `--filter`.
        object.extend(given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        Filter::from_json(Value::Object(object)).map_err(|error| format!("--{error}"))
    }
}

/// Returns the torrents that match the filter and a selector; without selectors, all that match the filter.
///
/// A selector is a prefix of a hash, or a name, and then matches one torrent; or a pattern with `*`, `?`, `[…]` or
/// `{…}`, which may match many.
///
/// # Errors
/// A selector that matches no torrent, or several without being a pattern.
pub fn select<'a>(
    torrents: impl IntoIterator<Item = &'a Torrent>,
    selectors: &[String],
    filter: &Filter,
    now: Timestamp,
) -> Result<Vec<&'a Torrent>, String> {
    let matching: Vec<&Torrent> = torrents.into_iter().filter(|torrent| filter.matches(torrent, now)).collect();
    if selectors.is_empty() {
        return Ok(matching);
    }
    // By hash, so that a torrent that several selectors match is selected once.
    let mut selected: BTreeMap<InfoHash, &Torrent> = BTreeMap::new();
    for selector in selectors {
        let matched = matches(&matching, selector)?;
        selected.extend(matched.into_iter().map(|torrent| (torrent.hash, torrent)));
    }
    Ok(selected.into_values().collect())
}

fn matches<'a>(torrents: &[&'a Torrent], selector: &str) -> Result<Vec<&'a Torrent>, String> {
    let shown = printable(selector.as_bytes());
    let is_prefix = selector.len() >= PREFIX_MIN && selector.bytes().all(|b| b.is_ascii_hexdigit());
    let prefix = selector.to_ascii_lowercase();
    let is_this =
        |torrent: &&&Torrent| torrent.name == selector || is_prefix && torrent.hash.to_string().starts_with(&prefix);
    // Names before patterns, because a name may contain `[` or `{`.
    let found: Vec<&Torrent> = torrents.iter().filter(is_this).copied().collect();
    match found.as_slice() {
        [] => {}
        [_] => return Ok(found),
        several => {
            let some: Vec<String> = several.iter().take(5).map(|torrent| torrent.hash.to_string()).collect();
            return Err(format!(
                "`{shown}` matches {} torrents; select one by its hash: {}",
                several.len(),
                some.join(" ")
            ));
        }
    }
    let is_pattern = selector.contains(['*', '?', '[', '{']);
    let glob =
        GlobBuilder::new(selector).case_insensitive(true).build().map_err(|error| format!("`{shown}`: {error}"))?;
    let glob = glob.compile_matcher();
    let found: Vec<&Torrent> = torrents.iter().filter(|torrent| glob.is_match(&torrent.name)).copied().collect();
    match found.len() {
        0 => Err(format!("no torrent matches `{shown}`")),
        1 => Ok(found),
        _ if is_pattern => Ok(found),
        count => Err(format!("`{shown}` matches {count} torrents; select one by its hash")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServerName;

    fn torrents() -> Vec<Torrent> {
        let torrent = |n: u8, name: &str| {
            Torrent::new(ServerName::parse("home").unwrap(), InfoHash::V1([n; 20]), name).with_status(Status::Seeding)
        };
        let mut torrents = vec![
            torrent(0xab, "debian.iso"),
            torrent(0xac, "Fedora.iso"),
            torrent(0xad, "abab"),
            torrent(0xae, "same"),
            torrent(0xaf, "same"),
            torrent(0xb0, "[x] odd {name"),
        ];
        torrents[1].status = Status::Paused;
        torrents
    }

    fn check(selectors: &[&str], expected: &str) {
        let torrents = torrents();
        let selectors: Vec<String> = selectors.iter().map(|text| (*text).to_owned()).collect();
        let found = match select(&torrents, &selectors, &Filter::default(), Timestamp::from_millis(0)) {
            Ok(found) => {
                found.iter().map(|torrent| torrent.hash.to_string()[..2].to_owned()).collect::<Vec<_>>().join(" ")
            }
            Err(error) => format!("error: {error}"),
        };
        assert!(found.starts_with(expected), "{selectors:?}: {found}");
    }

    #[test]
    fn a_selector_is_a_hash_prefix_a_name_or_a_pattern() {
        check(&[], "ab ac ad ae af b0");
        check(&["ACAC"], "ac");
        check(&["debian.iso"], "ab");
        check(&["DEBIAN.ISO"], "ab");
        check(&["*.iso"], "ab ac");
        check(&["*.iso", "acac", "abab*"], "ab ac ad");
        check(&["same*"], "ae af");
        check(&["[x] odd {name"], "b0");
    }

    #[test]
    fn a_selector_that_matches_no_torrent_or_is_ambiguous_is_refused() {
        check(&["aca"], "error: no torrent matches `aca`");
        check(&["cccc"], "error: no torrent matches");
        check(&["same"], "error: `same` matches 2 torrents; select one by its hash: aeae");
        check(&["abab"], "error: `abab` matches 2 torrents");
        check(&["*.iso", "nothing"], "error: no torrent matches `nothing`");
        check(&["a{b"], "error: `a{b`: ");
    }

    #[test]
    fn conditions_are_a_filter() {
        let conditions =
            Conditions { status: vec![Status::Paused], label: None, filter: Some("{\"name\": \"fed*\"}".to_owned()) };
        let torrents = torrents();
        let filter = conditions.filter(None).unwrap();
        let found = select(&torrents, &[], &filter, Timestamp::from_millis(0)).unwrap();
        assert_eq!(found.iter().map(|torrent| torrent.name.as_str()).collect::<Vec<_>>(), ["Fedora.iso"]);
        for wrong in ["[]", "{", "{\"colour\": 1}"] {
            let conditions = Conditions { filter: Some(wrong.to_owned()), ..Conditions::default() };
            assert!(conditions.filter(None).unwrap_err().starts_with("--filter"), "{wrong}");
        }
    }
}
