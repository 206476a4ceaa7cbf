//! The stream of events and the bucket of states: created where they are missing, checked otherwise.
//!
//! An existing one belongs to whoever made it and is never changed. If it breaks a promise (events lost, captured twice,
//! held in memory), the sink does not connect and says what has to be changed; other differences become notes.
//!
//! The bucket is created as the stream that implements it: async-nats cannot read what servers before 2.10 reply to its
//! own call.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tracing::info;

use super::connection::{Connection, ConnectionError};
use super::message::{INSTANCE_HEADER, Message};
use super::reply::{ApiError, PublishReply, parse_publish_reply};
use super::settings::Settings;
use super::subjects::{BUCKET, BUCKET_STREAM, STREAM, Subjects, bucket_subject, covers, overlap};
use crate::model::ServerName;
use crate::port::EventOrdering;

/// How long JetStream recognizes a repetition: longer than any outage after which unacknowledged events are sent again.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(2 * 60 * 60);
/// How long events are stored for consumers that come later.
const AGE_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Maximum number of keys that a scan collects; no server has as many torrents.
const KEYS_MAX: usize = 200_000;
/// Duplicate window of the bucket: the default of servers. States are sent without ids, so it matches nothing.
const BUCKET_DUPLICATE_WINDOW: Duration = Duration::from_secs(2 * 60);

/// How stream and bucket are set up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamSetup {
    /// `Strict` where the stream may refuse one event and take the next.
    pub ordering: EventOrdering,
    /// Differences from what this program would have created, one sentence each.
    pub notes: Vec<String>,
}

/// Creates stream and bucket where they are missing, and checks them.
pub async fn ensure(
    connection: &mut Connection,
    settings: &Settings,
    subjects: &Subjects,
) -> Result<StreamSetup, ConnectionError> {
    let replicas = settings.replicas;
    let stream = ensure_one(connection, STREAM, stream(subjects, replicas)).await?;
    let mut setup = check_stream(&stream, subjects, replicas).map_err(ConnectionError::refused)?;
    // A message that passes through another server may be lost between the two, and the next one not.
    // In a cluster the leader need not be the server that we are connected to.
    if stream.leader.as_ref().is_some_and(|leader| *leader != connection.client.server_info().server_name) {
        setup.ordering = EventOrdering::Strict;
    }
    let bucket = ensure_one(connection, BUCKET_STREAM, bucket(replicas)).await?;
    setup.notes.extend(check_bucket(&bucket, replicas).map_err(ConnectionError::refused)?);
    Ok(setup)
}

/// Checks stream and bucket where they exist, and creates nothing.
pub async fn check(
    connection: &mut Connection,
    settings: &Settings,
    subjects: &Subjects,
) -> Result<(), ConnectionError> {
    if let Some(stream) = read(connection, STREAM).await? {
        check_stream(&stream, subjects, settings.replicas).map_err(ConnectionError::refused)?;
    }
    if let Some(bucket) = read(connection, BUCKET_STREAM).await? {
        check_bucket(&bucket, settings.replicas).map_err(ConnectionError::refused)?;
    }
    Ok(())
}

async fn ensure_one(connection: &mut Connection, name: &str, wanted: Value) -> Result<Config, ConnectionError> {
    if let Some(there) = read(connection, name).await? {
        return Ok(there);
    }
    let made = connection.request_api(&format!("$JS.API.STREAM.CREATE.{name}"), wanted.to_string()).await?;
    match config_in(&made) {
        Ok(config) => {
            info!(stream = name, replicas = config.num_replicas, "stream created");
            Ok(config)
        }
        // Another bridge created it in between.
        Err(Some(error)) if error.err_code == ApiError::STREAM_NAME_IN_USE => {
            let there = read(connection, name).await?;
            there.ok_or_else(|| ConnectionError::other(format!("the stream {name} was created and deleted meanwhile")))
        }
        Err(error) => Err(cannot("create", name, error)),
    }
}

async fn read(connection: &mut Connection, name: &str) -> Result<Option<Config>, ConnectionError> {
    let answer = connection.request_api(&format!("$JS.API.STREAM.INFO.{name}"), String::new()).await?;
    match config_in(&answer) {
        Ok(config) => Ok(Some(config)),
        Err(Some(error)) if error.err_code == ApiError::STREAM_NOT_FOUND => Ok(None),
        Err(error) => Err(cannot("read", name, error)),
    }
}

/// Returns the keys of a server in the bucket, also of purged values; none if there is no bucket.
pub async fn keys(connection: &mut Connection, server: &ServerName) -> Result<Vec<String>, ConnectionError> {
    let filter = bucket_subject(&format!("{server}.>"));
    let mut keys = Vec::new();
    loop {
        let request = json!({"subjects_filter": filter, "offset": keys.len()});
        let answer =
            connection.request_api(&format!("$JS.API.STREAM.INFO.{BUCKET_STREAM}"), request.to_string()).await?;
        let page = keys_in(&answer);
        // Servers before 2.10 ignore `offset` and return all keys each time.
        if page.is_empty() || keys.len() >= KEYS_MAX || keys.first() == page.first() {
            return Ok(keys);
        }
        keys.extend(page);
    }
}

/// Returns these keys with the instance that stored the value; `None` if there is none, or an earlier version stored it.
pub async fn writers(
    connection: &mut Connection,
    keys: BTreeSet<String>,
) -> Result<Vec<(String, Option<String>)>, ConnectionError> {
    let requests: Vec<String> =
        keys.iter().map(|key| json!({"last_by_subj": bucket_subject(key)}).to_string()).collect();
    let writers = connection.read_states(requests, writer_in).await?;
    Ok(keys.into_iter().zip(writers).collect())
}

fn writer_in(answer: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        message: Stored,
    }
    #[derive(Deserialize)]
    struct Stored {
        hdrs: String,
    }
    let Answer { message: Stored { hdrs } } = serde_json::from_slice(answer).ok()?;
    let headers = String::from_utf8(data_encoding::BASE64.decode(hdrs.as_bytes()).ok()?).ok()?;
    let mut lines = headers.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(name, _)| name.eq_ignore_ascii_case(INSTANCE_HEADER)).map(|(_, value)| value.trim().to_owned())
}

/// Whether there is a bucket.
pub async fn has_bucket(connection: &mut Connection) -> Result<bool, ConnectionError> {
    Ok(read(connection, BUCKET_STREAM).await?.is_some())
}

/// Purges a key from the bucket.
pub async fn purge(connection: &mut Connection, key: &str) -> Result<(), ConnectionError> {
    match parse_publish_reply(false, &connection.store(Message::purge(key)).await?) {
        PublishReply::Stored { .. } => Ok(()),
        PublishReply::Refused(reason) | PublishReply::Deferred(reason) => {
            Err(ConnectionError::other(format!("{key} is not cleared: {reason}")))
        }
    }
}

fn keys_in(answer: &[u8]) -> Vec<String> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        state: State,
    }
    #[derive(Default, Deserialize)]
    struct State {
        #[serde(default)]
        subjects: BTreeMap<String, u64>,
    }
    let subjects = serde_json::from_slice::<Answer>(answer).map(|answer| answer.state.subjects).unwrap_or_default();
    let prefix = bucket_subject("");
    subjects.keys().filter_map(|subject| subject.strip_prefix(&prefix).map(str::to_owned)).collect()
}

fn cannot(what: &str, name: &str, error: Option<ApiError>) -> ConnectionError {
    let why = error.map_or_else(|| "the answer cannot be read".to_owned(), |error| error.explain());
    ConnectionError::other(format!("cannot {what} the stream {name}: {why}"))
}

fn config_in(answer: &[u8]) -> Result<Config, Option<ApiError>> {
    #[derive(Deserialize)]
    struct Answer {
        config: Option<Config>,
        error: Option<ApiError>,
        cluster: Option<Cluster>,
    }
    #[derive(Deserialize)]
    struct Cluster {
        leader: Option<String>,
    }
    match serde_json::from_slice::<Answer>(answer) {
        Ok(Answer { error: Some(error), .. }) => Err(Some(error)),
        Ok(Answer { config: Some(config), cluster, .. }) => {
            let leader = cluster.and_then(|cluster| cluster.leader).filter(|leader| !leader.is_empty());
            Ok(Config { leader, ..config })
        }
        Ok(_) | Err(_) => Err(None),
    }
}

/// The part of a stream's configuration that matters here; servers send every value that is not their type's zero.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
struct Config {
    subjects: Vec<String>,
    retention: String,
    storage: String,
    discard: String,
    max_msgs: i64,
    max_bytes: i64,
    max_age: u64,
    max_msgs_per_subject: i64,
    max_msg_size: i64,
    num_replicas: u8,
    duplicate_window: u64,
    no_ack: bool,
    sealed: bool,
    allow_rollup_hdrs: bool,
    /// The server that leads the stream, in a cluster.
    #[serde(skip)]
    leader: Option<String>,
}

impl Config {
    fn has_limits(&self) -> bool {
        self.max_msgs > 0 || self.max_bytes > 0 || self.max_msgs_per_subject > 0
    }

    /// Returns each setting that breaks a promise in the stream as well as in the bucket.
    fn common_faults(&self) -> Vec<String> {
        applicable([
            // What is in memory is gone when the server stops, after it was acknowledged (I3).
            (self.storage != "file", format!("its storage is {}, and has to be file", self.storage)),
            // The others delete a message once it was read, or when it has no consumer.
            (self.retention != "limits", format!("its retention is {}, and has to be limits", self.retention)),
            (self.no_ack, "it acknowledges nothing (no_ack)".to_owned()),
            (self.sealed, "it is sealed".to_owned()),
        ])
    }
}

/// Returns the texts whose condition holds.
fn applicable<const N: usize>(texts: [(bool, String); N]) -> Vec<String> {
    texts.into_iter().filter_map(|(applies, text)| applies.then_some(text)).collect()
}

fn duration_text(nanos: u64) -> String {
    humantime::format_duration(Duration::from_nanos(nanos)).to_string()
}

/// Returns nanoseconds, in which NATS counts time.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn stream(subjects: &Subjects, replicas: u8) -> Value {
    json!({
        "name": STREAM, "description": "events of torrents, published by dtorrent", "subjects": subjects.of_stream(),
        "retention": "limits", "storage": "file", "discard": "old", "num_replicas": replicas,
        "max_age": nanos(AGE_MAX), "duplicate_window": nanos(DUPLICATE_WINDOW),
        "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_msgs_per_subject": -1, "max_msg_size": -1,
    })
}

fn bucket(replicas: u8) -> Value {
    json!({
        "name": BUCKET_STREAM, "description": "the last state of each torrent, published by dtorrent",
        "subjects": [bucket_subject(">")],
        "retention": "limits", "storage": "file", "num_replicas": replicas,
        "max_age": 0, "duplicate_window": nanos(BUCKET_DUPLICATE_WINDOW),
        "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_msg_size": -1,
        // The settings by which a stream is a key-value bucket (ADR-8): one value per key, purged by roll-up.
        "max_msgs_per_subject": 1, "discard": "new", "deny_delete": true, "allow_rollup_hdrs": true, "allow_direct": true,
    })
}

fn check_stream(config: &Config, subjects: &Subjects, replicas: u8) -> Result<StreamSetup, String> {
    let ours = subjects.of_stream();
    let is_caught = |ours: &String| config.subjects.iter().any(|there| covers(there, ours));
    let missing: Vec<&str> = ours.iter().filter(|ours| !is_caught(ours)).map(String::as_str).collect();
    let updates = subjects.of_updates();
    let too_wide = config.subjects.iter().find(|there| overlap(there, &updates));
    let mut faults = config.common_faults();
    faults.extend(applicable([
        (!missing.is_empty(), format!("it does not catch {}", missing.join(", "))),
        // A repetition after that would be stored a second time, and consumers would get the event twice.
        (
            config.duplicate_window < nanos(DUPLICATE_WINDOW),
            format!("its duplicate window is {}, and has to be 2h at least", duration_text(config.duplicate_window)),
        ),
    ]));
    faults.extend(
        too_wide.map(|there| format!("its subject {there} catches {updates}, of which there is far too much to keep")),
    );
    if !faults.is_empty() {
        return Err(format!(
            "the stream {STREAM} is there and is not as it has to be: {}. It is not changed from here: \
             correct it, or delete it and it is created again (subjects {})",
            faults.join("; "),
            ours.join(",")
        ));
    }
    let age = if config.max_age == 0 { "for ever".to_owned() } else { duration_text(config.max_age) };
    let when_full = match config.discard.as_str() {
        "new" => "events wait when it is full",
        _ => "its oldest events go when it is full",
    };
    let mut notes = applicable([
        (config.max_age != nanos(AGE_MAX), format!("the stream {STREAM} keeps events {age}, not 30days")),
        (config.has_limits(), format!("the stream {STREAM} has limits: {when_full}")),
        (
            config.max_msg_size > 0,
            format!("the stream {STREAM} takes no event of more than {} bytes", config.max_msg_size),
        ),
    ]);
    notes.extend(other_replicas(STREAM, config, replicas));
    // Replicas have to agree on a message, and a full stream may have room again for the next one: either way it may refuse one
    // event and take the one behind it (I5).
    let ordering = match config.num_replicas > 1 || config.discard == "new" && config.has_limits() {
        true => EventOrdering::Strict,
        false => EventOrdering::Pipelined,
    };
    Ok(StreamSetup { ordering, notes })
}

fn check_bucket(config: &Config, replicas: u8) -> Result<Vec<String>, String> {
    let all = bucket_subject(">");
    let mut faults = config.common_faults();
    faults.extend(applicable([
        (!config.subjects.iter().any(|there| covers(there, &all)), format!("it does not catch {all}")),
        (
            config.max_age > 0,
            format!(
                "its values go after {}, also of torrents that are still there: no ttl may be set",
                duration_text(config.max_age)
            ),
        ),
        // Purging a key rolls up its subject, which the server otherwise refuses.
        (!config.allow_rollup_hdrs, "its keys cannot be purged (allow_rollup_hdrs is off)".to_owned()),
        // With `discard: new` a full bucket refuses further states, and loses none.
        (
            config.max_msgs > 0 || config.max_bytes > 0 && config.discard == "old",
            "it has limits by which states of torrents go that are still there".to_owned(),
        ),
    ]));
    if !faults.is_empty() {
        return Err(format!(
            "the bucket {BUCKET} is there and is not as it has to be: {}. It is not changed from here: \
             correct it (as the stream {BUCKET_STREAM}), or delete it and it is created again",
            faults.join("; ")
        ));
    }
    let (history, bytes) = (config.max_msgs_per_subject, config.max_bytes);
    let mut notes = applicable([
        (history != 1, format!("the bucket {BUCKET} keeps a history of {history}, not 1")),
        (bytes > 0, format!("the bucket {BUCKET} takes no more states when it holds {bytes} bytes")),
    ]);
    notes.extend(other_replicas(BUCKET_STREAM, config, replicas));
    Ok(notes)
}

fn other_replicas(name: &str, config: &Config, replicas: u8) -> Option<String> {
    let there = config.num_replicas;
    (there != replicas).then(|| format!("the stream {name} has {there} replicas, not the {replicas} of the config"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::nats::settings::Prefix;

    fn subjects() -> Subjects {
        Subjects::new(Prefix::default(), "main", true)
    }

    fn parsed(config: &Value) -> Config {
        config_in(json!({"config": config}).to_string().as_bytes()).unwrap()
    }

    fn with(mut config: Value, key: &str, value: Value) -> Config {
        config[key] = value;
        parsed(&config)
    }

    #[test]
    fn stream_and_bucket_as_created_pass_the_checks() {
        assert_eq!(check_stream(&parsed(&stream(&subjects(), 1)), &subjects(), 1), Ok(StreamSetup::default()));
        assert_eq!(check_bucket(&parsed(&bucket(1)), 1), Ok(Vec::new()));
        let clustered = check_stream(&parsed(&stream(&subjects(), 3)), &subjects(), 3).unwrap();
        assert!(clustered.ordering == EventOrdering::Strict && clustered.notes.is_empty());
    }

    #[test]
    fn the_instance_that_stored_a_state_is_read_from_its_headers() {
        let answer = |headers: &str| {
            let hdrs = data_encoding::BASE64.encode(headers.as_bytes());
            json!({"type": "x", "message": {"subject": "s", "seq": 1, "hdrs": hdrs, "data": ""}}).to_string()
        };
        for (headers, expected) in [
            ("NATS/1.0\r\ndtorrent-instance: main\r\n\r\n", Some("main")),
            ("NATS/1.0\r\nKV-Operation: PURGE\r\nDtorrent-Instance:b\r\n\r\n", Some("b")),
            ("NATS/1.0\r\nKV-Operation: PURGE\r\n\r\n", None),
        ] {
            assert_eq!(writer_in(answer(headers).as_bytes()).as_deref(), expected, "{headers}");
        }
        let none = json!({"error": {"code": 404, "err_code": 10037, "description": "no message found"}});
        assert_eq!(writer_in(none.to_string().as_bytes()), None);
        assert_eq!(writer_in(br#"{"message": {"subject": "s", "seq": 1, "data": ""}}"#), None);
    }

    #[test]
    fn the_leader_is_known_in_a_cluster() {
        let leader = |cluster: Value| {
            let answer = json!({"config": stream(&subjects(), 1), "cluster": cluster}).to_string();
            config_in(answer.as_bytes()).unwrap().leader
        };
        assert_eq!(leader(json!({"name": "c", "leader": "n1", "replicas": []})), Some("n1".to_owned()));
        assert_eq!(leader(json!({"name": "c"})), None);
        assert_eq!(leader(Value::Null), None);
    }

    #[test]
    fn a_stream_that_breaks_a_promise_is_refused_with_the_fault() {
        let check = |key: &str, value: Value, fault: &str| {
            let wrong = check_stream(&with(stream(&subjects(), 1), key, value), &subjects(), 1).unwrap_err();
            assert!(wrong.contains(fault), "{key}: {wrong}");
        };
        check("storage", json!("memory"), "storage is memory");
        check("subjects", json!(["dtorrent.*.event.>"]), "does not catch dtorrent.*.torrent.*.event.");
        check("subjects", json!(["dtorrent.>"]), "dtorrent.> catches dtorrent.*.torrent.*.event.updated");
        check("retention", json!("workqueue"), "retention is workqueue");
        check("duplicate_window", json!(120_000_000_000_u64), "duplicate window is 2m");
        check("no_ack", json!(true), "no_ack");
        check("sealed", json!(true), "sealed");
    }

    #[test]
    fn a_stream_that_is_merely_different_gets_a_note() {
        let check = |key: &str, value: Value| {
            let found = check_stream(&with(stream(&subjects(), 1), key, value), &subjects(), 1).unwrap();
            (found.ordering, found.notes.join(" "))
        };
        assert!(check("max_age", json!(0)).1.contains("for ever, not 30days"));
        assert!(check("max_bytes", json!(1000)).1.contains("its oldest events go"));
        assert!(
            check("num_replicas", json!(3))
                == (EventOrdering::Strict, "the stream DTORRENT_EVENTS has 3 replicas, not the 1 of the config".into())
        );
        let mut full = stream(&subjects(), 1);
        full["max_bytes"] = json!(1000);
        full["discard"] = json!("new");
        let found = check_stream(&parsed(&full), &subjects(), 1).unwrap();
        assert!(found.ordering == EventOrdering::Strict && found.notes[0].contains("events wait"), "{found:?}");
    }

    #[test]
    fn a_bucket_is_refused_if_it_loses_states_and_gets_a_note_if_it_stores_more() {
        let fault = |key: &str, value: Value| check_bucket(&with(bucket(1), key, value), 1).unwrap_err();
        assert!(fault("max_age", json!(3_600_000_000_000_u64)).contains("values go after 1h"));
        assert!(fault("storage", json!("memory")).contains("storage is memory"));
        assert!(fault("allow_rollup_hdrs", json!(false)).contains("cannot be purged"));
        assert!(fault("max_msgs", json!(10)).contains("has limits"));
        assert!(fault("subjects", json!(["x"])).contains("does not catch $KV.dtorrent_state.>"));
        let history = check_bucket(&with(bucket(1), "max_msgs_per_subject", json!(5)), 1).unwrap();
        assert_eq!(history, ["the bucket dtorrent_state keeps a history of 5, not 1"]);
    }

    proptest::proptest! {
        #[test]
        fn no_reply_panics(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            config_in(&body).ok();
            keys_in(&body);
        }
    }
}
