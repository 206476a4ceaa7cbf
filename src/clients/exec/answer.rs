//! What a client program says, made into what the engine knows. Pure.
//!
//! dTorrent's seven attributes are enough (`hash name length active downloaded uploaded path`); the rest is
//! worked out from them or unknown. Attributes that are not known here are passed over.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use crate::model::{
    Details, Extra, Facts, File, InfoHash, Observed, ServerName, Status, Timestamp, Torrent, eta_seconds, progress,
    ratio,
};

/// A message, as far as it is the answer that is waited for.
#[derive(Debug, PartialEq)]
pub enum Reply {
    Result(Value),
    Refusal {
        code: i64,
        message: String,
    },
    /// A notification, or the late answer to something that is not waited for any more.
    NotForUs,
}

/// What a program says of itself. All of it may be missing.
#[derive(Debug, Default, PartialEq, Deserialize)]
pub struct Hello {
    /// Another value means that the client was restarted.
    pub run: Option<String>,
    /// Its name and version, for people.
    pub name: Option<String>,
    pub methods: Option<Vec<String>>,
}

/// Takes a line as a JSON-RPC 2.0 response to the request of this id.
///
/// # Errors
/// It is none, with the reason.
pub fn reply(line: &[u8], id: u64) -> Result<Reply, String> {
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
    /// `null` is a result too.
    fn present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
        Value::deserialize(value).map(Some)
    }
    let Message { id: of, result, error } =
        serde_json::from_slice(line).map_err(|error| format!("no JSON-RPC message: {error}"))?;
    match (of, result, error) {
        (None, _, Some(refusal)) => Err(format!("it did not understand: {}", refusal.message)),
        (None, ..) => Ok(Reply::NotForUs),
        (Some(of), ..) if of < id => Ok(Reply::NotForUs),
        (Some(of), ..) if of > id => Err(format!("an answer to request {of}, which was not made")),
        (_, Some(value), None) => Ok(Reply::Result(value)),
        (_, None | Some(Value::Null), Some(Refusal { code, message })) => Ok(Reply::Refusal { code, message }),
        _ => Err("an answer has either `result` or `error`".to_owned()),
    }
}

/// # Errors
/// It speaks another protocol, or says so in a way that makes no sense.
pub fn hello(result: &Value) -> Result<Hello, String> {
    if let Some(protocol) = result.get("protocol").filter(|protocol| **protocol != super::PROTOCOL) {
        return Err(format!("it speaks protocol {protocol}, this is {}", super::PROTOCOL));
    }
    if result.is_null() {
        return Ok(Hello::default());
    }
    Hello::deserialize(result).map_err(|error| format!("its greeting: {error}"))
}

/// A torrent as a program tells of it.
#[derive(Deserialize)]
struct Told {
    hash: InfoHash,
    name: String,
    length: u64,
    active: bool,
    downloaded: u64,
    uploaded: u64,
    path: Option<String>,
    status: Option<Status>,
    finished: Option<bool>,
    error: Option<bool>,
    message: Option<String>,
    download_rate: Option<u64>,
    upload_rate: Option<u64>,
    left: Option<u64>,
    peers: Option<u64>,
    seeds: Option<u64>,
    label: Option<String>,
    directory: Option<String>,
    private: Option<bool>,
    priority: Option<u8>,
    tracker: Option<String>,
    added_at: Option<Timestamp>,
    started_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
    size_files: Option<u64>,
    #[serde(default)]
    extra: Extra,
    /// Another value means that the torrent was removed and added again.
    load: Option<String>,
}

/// All torrents that make sense, and what is wrong with the first that does not.
///
/// # Errors
/// It is no list.
pub fn listing(server: &ServerName, result: Value) -> Result<(BTreeMap<InfoHash, Observed>, Option<String>), String> {
    let Value::Array(rows) = result else { return Err("`list`: the result is no array of torrents".to_owned()) };
    let mut torrents = BTreeMap::new();
    let mut complaint = None;
    for (place, row) in rows.into_iter().enumerate() {
        match observed(server, row) {
            Ok(seen) if !torrents.contains_key(&seen.torrent.hash) => {
                torrents.insert(seen.torrent.hash, seen);
            }
            Ok(seen) => {
                complaint.get_or_insert(format!("{} is in the list twice", seen.torrent.hash));
            }
            Err(reason) => {
                complaint.get_or_insert(format!("number {} of the list: {reason}", place + 1));
            }
        }
    }
    Ok((torrents, complaint))
}

/// # Errors
/// It is not this torrent, or makes no sense.
pub fn details(server: &ServerName, hash: InfoHash, result: Value) -> Result<Details, String> {
    #[derive(Deserialize)]
    struct ToldFile {
        path: String,
        length: u64,
        downloaded: Option<u64>,
        priority: Option<u8>,
    }
    #[derive(Deserialize)]
    struct Lists {
        files: Option<Vec<ToldFile>>,
    }
    let Lists { files } = Lists::deserialize(&result).map_err(|error| format!("`get`: {error}"))?;
    let observed = observed(server, result).map_err(|reason| format!("`get`: {reason}"))?;
    if observed.torrent.hash != hash {
        return Err(format!("`get`: asked for {hash}, it told of {}", observed.torrent.hash));
    }
    let is_whole = observed.torrent.finished;
    let file = |told: ToldFile| File {
        name: told.path.rsplit('/').next().unwrap_or_default().to_owned(),
        progress: progress(told.downloaded.unwrap_or(if is_whole { told.length } else { 0 }), told.length),
        path: told.path,
        length: told.length,
        priority: told.priority,
    };
    let files = files.map(|files| files.into_iter().map(file).collect());
    Ok(Details { observed, is_folder: None, files, trackers: None, peers: None })
}

fn observed(server: &ServerName, row: Value) -> Result<Observed, String> {
    let told = Told::deserialize(row).map_err(|error| error.to_string())?;
    let finished = told.finished.unwrap_or(told.length > 0 && told.downloaded >= told.length);
    let status = told.status.unwrap_or(match (told.active, finished) {
        (false, _) => Status::Stopped,
        (true, true) => Status::Seeding,
        (true, false) => Status::Downloading,
    });
    let left = told.left.unwrap_or(if finished { 0 } else { told.length.saturating_sub(told.downloaded) });
    let facts = Facts {
        load: told.load,
        complete: finished,
        has_metadata: status != Status::Metadata,
        received_bytes: told.downloaded,
        moved_bytes: told.downloaded.saturating_add(told.uploaded),
    };
    let torrent = Torrent {
        hash: told.hash,
        name: told.name,
        server: server.clone(),
        active: told.active,
        downloaded: told.downloaded,
        uploaded: told.uploaded,
        length: told.length,
        path: told.path,
        progress: progress(told.downloaded, told.length),
        ratio: ratio(told.uploaded, told.downloaded),
        finished: finished && status != Status::Checking,
        playing: told.download_rate.unwrap_or(0) > 0 || told.upload_rate.unwrap_or(0) > 0,
        extra: told.extra,
        status,
        error: told.error.unwrap_or(false),
        message: told.message.map(Arc::from),
        stalled: false,
        download_rate: told.download_rate,
        upload_rate: told.upload_rate,
        left: Some(left),
        eta: eta_seconds(left, told.download_rate.unwrap_or(0)),
        peers: told.peers,
        seeds: told.seeds,
        label: told.label.map(Arc::from),
        directory: told.directory.map(Arc::from),
        private: told.private,
        priority: told.priority.map(|priority| priority.min(3)),
        tracker: told.tracker.map(Arc::from),
        added_at: told.added_at,
        started_at: told.started_at,
        finished_at: told.finished_at,
        size_files: told.size_files,
    };
    Ok(Observed { torrent, facts })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

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
            (r#"{"id":1,"result":1}"#, Ok(Reply::NotForUs)),
            (r#"{"method":"changed"}"#, Ok(Reply::NotForUs)),
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
            ("hello", Err("no JSON-RPC message")),
            ("", Err("no JSON-RPC message")),
        ] {
            match (reply(line.as_bytes(), 2), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{line}"),
                (Err(reason), Err(part)) => assert!(reason.contains(part), "{line}: {reason}"),
                (found, expected) => panic!("{line}: {found:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn a_greeting_may_be_short_and_must_be_of_our_protocol() {
        assert_eq!(hello(&Value::Null), Ok(Hello::default()));
        assert_eq!(hello(&json!({"protocol": 1, "run": "7"})).unwrap().run.as_deref(), Some("7"));
        assert!(hello(&json!({"protocol": 2})).unwrap_err().contains("protocol 2"));
        assert!(hello(&json!({"methods": "list"})).unwrap_err().contains("greeting"));
    }

    #[test]
    fn seven_attributes_are_enough() {
        let (torrents, complaint) = listing(&server(), json!([seven()])).unwrap();
        assert_eq!(complaint, None);
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
    fn what_makes_no_sense_is_left_out_and_named_and_the_rest_is_read() {
        let broken = |key: &str, value: Value| {
            let mut row = seven();
            row[key] = value;
            row
        };
        for (row, reason) in [
            (json!({"hash": HASH}), "missing field `name`"),
            (broken("hash", json!("xyz")), "hash"),
            (broken("length", json!(-1)), "-1"),
            (broken("length", json!("10")), "string"),
            (broken("status", json!("asleep")), "asleep"),
            (seven(), "twice"),
            (json!(7), "7"),
        ] {
            let (torrents, complaint) = listing(&server(), json!([seven(), row])).unwrap();
            assert_eq!(torrents.len(), 1);
            assert!(complaint.as_ref().is_some_and(|complaint| complaint.contains(reason)), "{complaint:?}: {reason}");
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
            if let Ok(Reply::Result(value)) = reply(&line, id) {
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
