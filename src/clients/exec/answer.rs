//! Conversion of a program's answers to the model. Pure.
//!
//! dTorrent's seven attributes are enough (`hash name length active downloaded uploaded path`); the rest is
//! derived from them or unknown. Other attributes are ignored.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::model::{
    Details, Extra, Facts, File, InfoHash, Observed, ServerName, Status, Torrent, eta_seconds, json_tree_bytes,
    progress, ratio,
};

/// A message of the program, by what it means for the pending request.
#[derive(Debug, PartialEq)]
pub enum Reply {
    Result(Value),
    Refusal {
        code: i64,
        message: String,
    },
    /// A notification, or the late answer to an earlier request.
    Other,
}

/// The answer to `initialize`. Every member may be missing.
#[derive(Debug, Default, PartialEq, Deserialize)]
pub struct Initialized {
    /// Identity of the run: another value means that the client was restarted.
    pub run: Option<String>,
    /// Name and version of the client.
    pub name: Option<String>,
    /// The methods that it has; all are tried if it does not list them.
    pub methods: Option<Vec<String>>,
}

/// Parses a line as a JSON-RPC 2.0 response to the request with this id.
///
/// # Errors
/// The reason why it is none.
pub fn reply(line: &[u8], id: u64, tree_bytes_max: usize) -> Result<Reply, String> {
    #[derive(Deserialize)]
    struct Refusal {
        code: i64,
        message: String,
    }
    #[derive(Deserialize)]
    struct Message {
        id: Option<u64>,
        #[serde(default, deserialize_with = "present")]
        result: Option<Value>,
        error: Option<Refusal>,
    }
    // Without this serde reads `null` as absent, and a program that answers an action with it would be refused.
    fn present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
        Value::deserialize(value).map(Some)
    }
    if json_tree_bytes(line) > tree_bytes_max {
        return Err(format!(
            "an answer that takes more than the {tree_bytes_max} bytes of memory that memory_max leaves"
        ));
    }
    let Message { id: of, result, error } =
        serde_json::from_slice(line).map_err(|error| format!("not a JSON-RPC message: {error}"))?;
    match (of, result, error) {
        // JSON-RPC 2.0, section 5: the id is null where the request itself was not understood.
        (None, _, Some(refusal)) => Err(format!("it did not understand: {}", refusal.message)),
        (None, ..) => Ok(Reply::Other),
        // A second answer to an earlier request. Nothing waits for it, and it does no harm.
        (Some(of), ..) if of < id => Ok(Reply::Other),
        (Some(of), ..) if of > id => Err(format!("an answer to request {of}, which was not made")),
        (_, Some(value), None) => Ok(Reply::Result(value)),
        // JSON-RPC 1.0 has `"result": null` with every error. 2.0 forbids it, and libraries still write it.
        (_, None | Some(Value::Null), Some(Refusal { code, message })) => Ok(Reply::Refusal { code, message }),
        _ => Err("an answer has either `result` or `error`".to_owned()),
    }
}

/// Parses the answer to `initialize`.
///
/// # Errors
/// Another version of the protocol, or an invalid member.
pub fn initialized(result: &Value) -> Result<Initialized, String> {
    if let Some(protocol) = result.get("protocol").filter(|protocol| **protocol != super::PROTOCOL) {
        return Err(format!("it speaks protocol {protocol}, this is {}", super::PROTOCOL));
    }
    if result.is_null() {
        return Ok(Initialized::default());
    }
    Initialized::deserialize(result).map_err(|error| format!("its greeting: {error}"))
}

/// The members of a torrent in an answer that others follow from, or that may be missing.
#[derive(Deserialize)]
struct Given {
    length: u64,
    active: bool,
    downloaded: u64,
    uploaded: u64,
    status: Option<Status>,
    finished: Option<bool>,
    error: Option<bool>,
    download_rate: Option<u64>,
    upload_rate: Option<u64>,
    left: Option<u64>,
    priority: Option<u8>,
    #[serde(default)]
    extra: Extra,
    /// Identity of the load: another value means that the torrent was removed and added again.
    load: Option<String>,
}

/// Parses a list: the valid torrents, and what is wrong with the first invalid one.
///
/// # Errors
/// The result is no list.
pub fn listing(server: &ServerName, result: Value) -> Result<(BTreeMap<InfoHash, Observed>, Option<String>), String> {
    let Value::Array(rows) = result else { return Err("`list`: the result is not an array of torrents".to_owned()) };
    let mut torrents = BTreeMap::new();
    let mut defect = None;
    for (place, row) in rows.into_iter().enumerate() {
        match observed(server, row) {
            // The first one stays: which of two is right cannot be known, and the listing is marked as incomplete.
            Ok(seen) if !torrents.contains_key(&seen.torrent.hash) => {
                torrents.insert(seen.torrent.hash, seen);
            }
            Ok(seen) => {
                defect.get_or_insert(format!("{} is in the list twice", seen.torrent.hash));
            }
            Err(reason) => {
                defect.get_or_insert(format!("number {} of the list: {reason}", place + 1));
            }
        }
    }
    Ok((torrents, defect))
}

/// Parses the details of one torrent.
///
/// # Errors
/// The result is another torrent, or invalid.
pub fn details(server: &ServerName, hash: InfoHash, result: Value) -> Result<Details, String> {
    #[derive(Deserialize)]
    struct WireFile {
        path: String,
        length: u64,
        downloaded: Option<u64>,
        priority: Option<u8>,
    }
    #[derive(Deserialize)]
    struct Lists {
        files: Option<Vec<WireFile>>,
    }
    let Lists { files } = Lists::deserialize(&result).map_err(|error| format!("`get`: {error}"))?;
    let observed = observed(server, result).map_err(|reason| format!("`get`: {reason}"))?;
    // A program that mixes up its torrents must not have the files of one deleted for another.
    if observed.torrent.hash != hash {
        return Err(format!("`get`: asked for {hash}, the answer is about {}", observed.torrent.hash));
    }
    // A program that counts no bytes of single files still knows that a finished torrent has all of them.
    let is_whole = observed.torrent.finished;
    let file = |wire: WireFile| {
        File {
            name: wire.path.rsplit('/').next().unwrap_or_default().to_owned(),
            progress: progress(wire.downloaded.unwrap_or(if is_whole { wire.length } else { 0 }), wire.length),
            path: wire.path,
            length: wire.length,
            priority: wire.priority,
        }
        .within_limits()
    };
    let files = files.map(|files| files.into_iter().map(file).collect());
    Ok(Details { files, ..Details::from(observed) })
}

fn observed(server: &ServerName, mut row: Value) -> Result<Observed, String> {
    let given = Given::deserialize(&row).map_err(|error| error.to_string())?;
    let Given { length, downloaded, uploaded, .. } = given;
    let finished = given.finished.unwrap_or(length > 0 && downloaded >= length);
    let status = given.status.unwrap_or(match (given.active, finished) {
        (false, _) => Status::Stopped,
        (true, true) => Status::Seeding,
        (true, false) => Status::Downloading,
    });
    // With deselected files a torrent is finished while bytes are missing, so `length` proves nothing then.
    let left = given.left.unwrap_or(if finished { 0 } else { length.saturating_sub(downloaded) });
    let (down, up) = (given.download_rate.unwrap_or(0), given.upload_rate.unwrap_or(0));
    for (key, value) in [
        ("server", json!(server)),
        ("progress", json!(progress(downloaded, length))),
        ("ratio", json!(ratio(uploaded, downloaded))),
        // The contract: what is being checked is not finished, whatever it was before.
        ("finished", json!(finished && status != Status::Checking)),
        ("playing", json!(down > 0 || up > 0)),
        ("extra", json!(given.extra)),
        ("status", json!(status)),
        ("error", json!(given.error.unwrap_or(false))),
        ("stalled", json!(false)),
        ("left", json!(left)),
        ("eta", json!(eta_seconds(left, down))),
        // The scale of the contract ends at 3; a client with more steps has its highest there.
        ("priority", json!(given.priority.map(|priority| priority.min(3)))),
    ] {
        row[key] = value;
    }
    let facts = Facts {
        load: given.load,
        complete: finished,
        has_metadata: status != Status::Metadata,
        received_bytes: downloaded,
        moved_bytes: downloaded.saturating_add(uploaded),
    };
    let torrent = Torrent::deserialize(row).map_err(|error| error.to_string())?;
    Ok(Observed { torrent, facts }.within_limits())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TREE_BYTES: usize = 96 << 20;

    const HASH: &str = "3f786850e387550fdab836ed7e6dc881de23001b";

    fn server() -> ServerName {
        ServerName::parse("attic").unwrap()
    }

    fn seven() -> Value {
        json!({"hash": HASH, "name": "n", "length": 10, "active": true, "downloaded": 4, "uploaded": 2, "path": null})
    }

    #[test]
    fn an_answer_is_taken_by_its_id() {
        for (line, expected) in [
            (r#"{"jsonrpc":"2.0","id":2,"result":[]}"#, Ok(Reply::Result(json!([])))),
            (r#"{"id":2,"result":null}"#, Ok(Reply::Result(Value::Null))),
            (r#"{"id":1,"result":1}"#, Ok(Reply::Other)),
            (r#"{"method":"changed"}"#, Ok(Reply::Other)),
            (
                r#"{"id":2,"error":{"code":-32601,"message":"no"}}"#,
                Ok(Reply::Refusal { code: -32601, message: "no".to_owned() }),
            ),
            (
                r#"{"id":2,"result":null,"error":{"code":1,"message":"no"}}"#,
                Ok(Reply::Refusal { code: 1, message: "no".to_owned() }),
            ),
            (r#"{"id":2}"#, Err("either")),
            (r#"{"id":2,"result":1,"error":{"code":1,"message":"no"}}"#, Err("either")),
            (r#"{"id":3,"result":1}"#, Err("request 3, which was not made")),
            (r#"{"id":null,"error":{"code":-32700,"message":"what?"}}"#, Err("did not understand: what?")),
            ("hello", Err("not a JSON-RPC message")),
            ("", Err("not a JSON-RPC message")),
        ] {
            match (reply(line.as_bytes(), 2, TREE_BYTES), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{line}"),
                (Err(reason), Err(part)) => assert!(reason.contains(part), "{line}: {reason}"),
                (found, expected) => panic!("{line}: {found:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn an_initialization_may_be_short_and_must_be_of_this_protocol() {
        assert_eq!(initialized(&Value::Null), Ok(Initialized::default()));
        assert_eq!(initialized(&json!({"protocol": 1, "run": "7"})).unwrap().run.as_deref(), Some("7"));
        assert!(initialized(&json!({"protocol": 2})).unwrap_err().contains("protocol 2"));
        assert!(initialized(&json!({"methods": "list"})).unwrap_err().contains("greeting"));
    }

    #[test]
    fn an_answer_that_is_small_as_text_and_huge_as_a_tree_is_refused() {
        for (part, count) in [("0,", 4_000_000), (r#"{"":0},"#, 200_000), (r#"{"a":{}},"#, 200_000), ("[],", 2_000_000)]
        {
            let line = format!(r#"{{"id":2,"result":[{}0]}}"#, part.repeat(count));
            assert!(line.len() < 16 << 20);
            assert!(reply(line.as_bytes(), 2, TREE_BYTES).unwrap_err().contains("memory"), "{part}");
        }
        let torrent = |_| {
            let mut row = seven();
            row["name"] = json!("{[:,\"\\".repeat(20));
            row
        };
        let line = json!({"id": 2, "result": (0..20_000).map(torrent).collect::<Vec<_>>()}).to_string();
        assert!(matches!(reply(line.as_bytes(), 2, TREE_BYTES), Ok(Reply::Result(_))));
        assert!(reply(line.as_bytes(), 2, TREE_BYTES / 4).unwrap_err().contains("memory_max"), "with less memory");
    }

    #[test]
    fn seven_attributes_are_enough() {
        let (torrents, defect) = listing(&server(), json!([seven()])).unwrap();
        assert_eq!(defect, None);
        let Observed { torrent, facts } = &torrents[&HASH.parse().unwrap()];
        assert_eq!((torrent.progress, torrent.ratio, torrent.left), (40.0, Some(0.5), Some(6)));
        assert_eq!((torrent.status, torrent.finished), (Status::Downloading, false));
        assert_eq!((facts.received_bytes, facts.moved_bytes), (4, 6));
        for (active, downloaded, status) in
            [(true, 10, Status::Seeding), (false, 10, Status::Stopped), (false, 0, Status::Stopped)]
        {
            let mut row = seven();
            row["active"] = active.into();
            row["downloaded"] = downloaded.into();
            let seen = observed(&server(), row).unwrap().torrent;
            assert_eq!((seen.status, seen.finished), (status, downloaded == 10));
        }
    }

    #[test]
    fn an_invalid_torrent_is_left_out_and_named_and_the_rest_is_read() {
        let broken = |key: &str, value: Value| {
            let mut row = seven();
            row[key] = value;
            row
        };
        for (row, reason) in [
            (json!({"hash": HASH}), "missing field `length`"),
            (broken("hash", json!("xyz")), "hash"),
            (broken("length", json!(-1)), "-1"),
            (broken("length", json!("10")), "string"),
            (broken("status", json!("asleep")), "asleep"),
            (seven(), "twice"),
            (json!(7), "7"),
        ] {
            let (torrents, defect) = listing(&server(), json!([seven(), row])).unwrap();
            assert_eq!(torrents.len(), 1);
            assert!(defect.as_ref().is_some_and(|defect| defect.contains(reason)), "{defect:?}: {reason}");
        }
        assert!(listing(&server(), json!({})).is_err());
    }

    #[test]
    fn details_are_of_the_torrent_that_was_asked_for() {
        let mut row = seven();
        row["files"] = json!([{"path": "a/b.txt", "length": 4, "downloaded": 1}]);
        let hash = HASH.parse().unwrap();
        let files = details(&server(), hash, row.clone()).unwrap().files.unwrap();
        assert_eq!((files[0].name.as_str(), files[0].progress), ("b.txt", 25.0));
        row["hash"] = json!("0000000000000000000000000000000000000000");
        assert!(details(&server(), hash, row).unwrap_err().contains("asked for"));
    }

    proptest! {
        #[test]
        fn no_line_is_a_panic(line in proptest::collection::vec(any::<u8>(), 0..200), id in any::<u64>()) {
            if let Ok(Reply::Result(value)) = reply(&line, id, TREE_BYTES) {
                drop(listing(&server(), value));
            }
        }

        #[test]
        fn no_numbers_are_too_large(length in any::<u64>(), downloaded in any::<u64>(), uploaded in any::<u64>()) {
            let mut row = seven();
            row["length"] = length.into();
            row["downloaded"] = downloaded.into();
            row["uploaded"] = uploaded.into();
            prop_assert!(observed(&server(), row).is_ok());
        }
    }
}
