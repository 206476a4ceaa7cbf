//! Results that are too large for their receiver: shortened, or divided into parts.
//!
//! Works on the bytes of the command log, which a run before this one, or another version, may have written.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{CommandError, ErrorCode, OutcomeStatus};

/// Returns the result to send in place of one that the receiver rejected; `None` if there is nothing shorter.
///
/// A page of a list is halved: its first half becomes a page of its own. Anything else, and a single torrent, is sent
/// without its rows or the value of an `rpc`: what was asked for with `get`, `list` and `rpc` has not arrived then, so that is
/// an error; what another command did stays as it was. A `body` that is no result gives a plain error.
pub fn shorter(body: &[u8], reason: &str) -> Option<Vec<u8>> {
    let mut outcome = shortenable(body)?;
    if !halve_page(&mut outcome) {
        drop_rows(&mut outcome, reason);
    }
    Some(Value::Object(outcome).to_string().into_bytes())
}

/// As [`shorter`], and at once without any rows: for a receiver with which each attempt is costly.
pub fn shortest(body: &[u8], reason: &str) -> Option<Vec<u8>> {
    let mut outcome = shortenable(body)?;
    drop_rows(&mut outcome, reason);
    Some(Value::Object(outcome).to_string().into_bytes())
}

fn shortenable(body: &[u8]) -> Option<serde_json::Map<String, Value>> {
    // Bytes that are no result become an empty one: the sender gets an error rather than nothing.
    let outcome: serde_json::Map<String, Value> = serde_json::from_slice(body).unwrap_or_default();
    let has_rows = outcome.get("results").and_then(Value::as_array).is_some_and(|rows| !rows.is_empty());
    let is_shortest = !has_rows
        && !outcome.contains_key("value")
        && outcome.get("error").is_some_and(|error| error["code"] == json!(ErrorCode::TooLarge));
    (!is_shortest).then_some(outcome)
}

/// Cuts a page of a list down to a size by which the place where it begins can still be counted in pages, so that
/// whoever goes on with the next of that size misses nothing. `false` if it is none, or has a single torrent.
fn halve_page(outcome: &mut serde_json::Map<String, Value>) -> bool {
    let number = |key: &str| outcome.get(key).and_then(Value::as_u64);
    let (Some(page), Some(page_size)) = (number("page"), number("page_size")) else { return false };
    let Some(rows) = outcome.get_mut("results").and_then(Value::as_array_mut).filter(|rows| rows.len() > 1) else {
        return false;
    };
    let begin = page.saturating_mul(page_size);
    let fits = |size: &u64| begin.is_multiple_of(*size);
    let size = (1..=rows.len() as u64 / 2).rev().find(fits).unwrap_or(1);
    rows.truncate(usize::try_from(size).unwrap_or(1));
    let page = begin / size;
    for (key, number) in [("page", page), ("page_size", size), ("next_page", page + 1)] {
        outcome.insert(key.to_owned(), json!(number));
    }
    true
}

fn drop_rows(outcome: &mut serde_json::Map<String, Value>, reason: &str) {
    // The effect of another verb has been seen and stays as it was reported, with or without rows (I15).
    let is_question = matches!(outcome.get("verb").and_then(Value::as_str), None | Some("get" | "list" | "rpc"));
    if is_question {
        outcome.insert("status".to_owned(), json!(OutcomeStatus::Error));
    }
    let message = format!("the whole result was not taken: {reason}; ask for less at once");
    outcome.insert("results".to_owned(), json!([]));
    outcome.remove("value");
    outcome.insert("error".to_owned(), json!(CommandError::new(ErrorCode::TooLarge, message)));
}

/// A result in parts, in their order, each with at most so many rows, and no more bytes if its rows allow that.
///
/// Each part is a result of its own, with the same id and the status of the whole; it has its share of the rows, and says
/// which part of how many it is. One that is small enough, or no result, stays as it is; so does a page of a
/// list, which has a way of its own to be shorter.
pub fn in_parts(body: &Bytes, rows_max: usize, bytes_max: usize) -> Vec<Bytes> {
    // A row has a hash, so in fewer bytes there are fewer rows.
    if body.len() <= bytes_max && body.len() / ROW_BYTES_MIN <= rows_max {
        return vec![body.clone()];
    }
    divided(body, rows_max, bytes_max).filter(|parts| parts.len() > 1).unwrap_or_else(|| vec![body.clone()])
}

const ROW_BYTES_MIN: usize = 40;
/// `"part":1000,"parts":1000` and what is between the keys.
const PART_BYTES_MAX: usize = 64;

fn divided(body: &[u8], rows_max: usize, bytes_max: usize) -> Option<Vec<Bytes>> {
    // Raw, so that rows are copied as they were written and numbers stay what they are.
    let mut keys: BTreeMap<&str, &RawValue> = serde_json::from_slice(body).ok()?;
    if keys.contains_key("page_size") {
        // A page is halved instead: its sender can ask for the rest.
        return None;
    }
    let rows: Vec<&RawValue> = serde_json::from_str(keys.remove("results")?.get()).ok()?;
    let mut head = String::new();
    for (key, value) in &keys {
        head += &format!("{}:{},", Value::from(*key), value.get());
    }
    let room = bytes_max.saturating_sub(head.len() + PART_BYTES_MAX);
    let mut shares: Vec<Vec<&str>> = vec![Vec::new()];
    let mut bytes = 0;
    for row in rows {
        let share = shares.last_mut().expect("there is one from the beginning");
        if !share.is_empty() && (share.len() >= rows_max || bytes + row.get().len() + 1 > room) {
            shares.push(Vec::new());
            bytes = 0;
        }
        bytes += row.get().len() + 1;
        shares.last_mut().expect("there is one from the beginning").push(row.get());
    }
    let parts = shares.len();
    let part = |(index, share): (usize, Vec<&str>)| {
        Bytes::from(format!("{{{head}\"part\":{},\"parts\":{parts},\"results\":[{}]}}", index + 1, share.join(",")))
    };
    Some(shares.into_iter().enumerate().map(part).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{CommandId, InfoHash, Outcome, RESULT_SCHEMA, Timestamp, TorrentOutcome};

    fn whole(rows: usize) -> Outcome {
        Outcome {
            schema: RESULT_SCHEMA,
            id: CommandId::parse("7 \"x\"").unwrap(),
            verb: "pause".to_owned(),
            server: None,
            status: OutcomeStatus::Partial,
            time: Timestamp::from_millis(0),
            took_ms: 5,
            results: (0..rows).map(|n| TorrentOutcome::ok(InfoHash::V1([n as u8; 20]))).collect(),
            omitted: BTreeMap::new(),
            error: None,
            page: None,
            part: None,
            value: None,
        }
    }

    #[test]
    fn a_small_result_stays_as_it_is() {
        for body in [serde_json::to_vec(&whole(10)).unwrap(), b"no result".to_vec(), vec![b'x'; 100_000]] {
            let body = Bytes::from(body);
            assert_eq!(in_parts(&body, 10, 1000), [body]);
        }
    }

    proptest! {
        #[test]
        fn the_parts_of_a_result_are_the_whole(rows in 0..200_usize, rows_max in 1..50_usize, bytes_max in 300..5000_usize) {
            let body = Bytes::from(serde_json::to_vec(&whole(rows)).unwrap());
            let parts = in_parts(&body, rows_max, bytes_max);
            let mut expected: Value = serde_json::from_slice(&body).unwrap();
            let mut put_together = Vec::new();
            for (index, part) in parts.iter().enumerate() {
                prop_assert!(part.len() <= bytes_max);
                let mut part: Value = serde_json::from_slice(part).unwrap();
                let object = part.as_object_mut().unwrap();
                if parts.len() > 1 {
                    prop_assert_eq!(object.remove("part"), Some(json!(index + 1)));
                    prop_assert_eq!(object.remove("parts"), Some(json!(parts.len())));
                }
                let Some(Value::Array(rows)) = object.insert("results".to_owned(), json!([])) else { panic!() };
                prop_assert!(rows.len() <= rows_max);
                put_together.extend(rows);
                expected["results"] = json!([]);
                prop_assert_eq!(&part, &expected);
            }
            prop_assert_eq!(put_together.len(), rows);
        }
    }

    #[test]
    fn a_result_without_its_rows_says_so_and_still_says_what_was_done() {
        let outcome = |verb: &str| Outcome {
            schema: RESULT_SCHEMA,
            id: CommandId::parse("7").unwrap(),
            verb: verb.to_owned(),
            server: None,
            status: OutcomeStatus::Ok,
            time: Timestamp::from_millis(0),
            took_ms: 5,
            results: vec![TorrentOutcome::ok(InfoHash::V1([1; 20]))],
            omitted: BTreeMap::new(),
            error: None,
            page: None,
            part: None,
            value: None,
        };
        for (verb, status) in [("list", "error"), ("get", "error"), ("pause", "ok"), ("rpc", "error")] {
            let value = (verb == "rpc").then(|| json!(vec!["x"; 10_000]));
            let results = if verb == "rpc" { Vec::new() } else { outcome(verb).results };
            let body = serde_json::to_vec(&Outcome { value, results, ..outcome(verb) }).unwrap();
            let snapshot = shorter(&body, "too much").unwrap();
            assert!(snapshot.len() < 1000, "{verb}: {} bytes", snapshot.len());
            assert_eq!(shorter(&snapshot, "still too much"), None);
            assert_eq!(shortest(&body, "too much").as_ref(), Some(&snapshot));
            assert_eq!(shortest(&snapshot, "still too much"), None);
            let snapshot: Value = serde_json::from_slice(&snapshot).unwrap();
            assert_eq!(
                (&snapshot["id"], &snapshot["status"], &snapshot["results"]),
                (&json!("7"), &json!(status), &json!([]))
            );
            assert_eq!(snapshot["error"]["code"], "too_large", "{snapshot}");
        }
    }

    /// Asks for pages as a client does, of a receiver that takes so many rows at most.
    fn pages_of(total: u64, page_size: u64, rows_max: usize) -> Vec<u64> {
        let (mut listed, mut page, mut page_size) = (Vec::new(), 0, page_size);
        loop {
            let begin = page * page_size;
            let rows: Vec<u64> = (begin..total.min(begin + page_size)).collect();
            let next_page = (begin + page_size < total).then_some(page + 1);
            let snapshot = json!({"verb": "list", "status": "ok", "error": null, "results": rows, "total": total,
                "page": page, "page_size": page_size, "next_page": next_page});
            let mut body = snapshot.to_string().into_bytes();
            let snapshot = loop {
                let snapshot: Value = serde_json::from_slice(&body).unwrap();
                if snapshot["results"].as_array().unwrap().len() <= rows_max {
                    break snapshot;
                }
                body = shorter(&body, "too much").unwrap();
            };
            assert_eq!((&snapshot["status"], &snapshot["error"]), (&json!("ok"), &Value::Null));
            listed.extend(snapshot["results"].as_array().unwrap().iter().map(|row| row.as_u64().unwrap()));
            match snapshot["next_page"].as_u64() {
                Some(next) => (page, page_size) = (next, snapshot["page_size"].as_u64().unwrap()),
                None => return listed,
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn whoever_follows_the_pages_gets_each_torrent_once_however_short_they_are(
            total in 0u64..400, page_size in 1u64..200, rows_max in 1usize..50
        ) {
            assert_eq!(pages_of(total, page_size, rows_max), (0..total).collect::<Vec<_>>());
        }

        #[test]
        fn what_is_no_result_is_shortened_to_an_error_once(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..50)) {
            let snapshot = shorter(&body, "too much").unwrap();
            assert_eq!(shorter(&snapshot, "too much"), None);
        }
    }
}
