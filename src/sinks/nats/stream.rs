//! The stream of events and the bucket of states: made where they are missing, else looked at.
//!
//! What is there already belongs to whoever made it and is never changed. If it breaks a promise
//! (events lost, caught twice, kept in memory), the sink stays away and says what would be right; what
//! is merely different is remarked upon.
//!
//! The bucket is made as the stream that it is: so it can be made on servers before 2.10, whose
//! answers the crate's own call does not read.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tracing::info;

use super::answer::{Answer, ApiError, read_answer};
use super::dial::{Ended, Line};
use super::message::Message;
use super::settings::Settings;
use super::subjects::{BUCKET, BUCKET_STREAM, STREAM, Subjects, bucket_subject, covers, overlap};
use crate::model::ServerName;

/// A repetition is known as one for so long.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(2 * 60 * 60);
/// So long an event is there for whoever comes later.
const AGE_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// So many keys are taken in; a server has fewer torrents.
const KEYS_MAX: usize = 200_000;
const BUCKET_DUPLICATE_WINDOW: Duration = Duration::from_secs(2 * 60);

/// What is known of stream and bucket once both are there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// One may be refused and the next one taken: then events go one at a time.
    pub may_refuse_one: bool,
    /// What is different from what would have been made, for people.
    pub remarks: Vec<String>,
}

/// Makes sure of both.
pub async fn ensure(line: &mut Line, settings: &Settings, subjects: &Subjects) -> Result<Found, Ended> {
    let replicas = settings.replicas;
    let stream = ensure_one(line, STREAM, stream(subjects, replicas)).await?;
    let mut found = check_stream(&stream, subjects, replicas).map_err(Ended::refused)?;
    // What passes through another server may be lost on the way, and the next one not.
    found.may_refuse_one |=
        stream.leader.as_ref().is_some_and(|leader| *leader != line.client.server_info().server_name);
    let bucket = ensure_one(line, BUCKET_STREAM, bucket(replicas)).await?;
    found.remarks.extend(check_bucket(&bucket, replicas).map_err(Ended::refused)?);
    Ok(found)
}

/// Looks at those that are there, and makes none.
pub async fn look(line: &mut Line, settings: &Settings, subjects: &Subjects) -> Result<(), Ended> {
    if let Some(stream) = read(line, STREAM).await? {
        check_stream(&stream, subjects, settings.replicas).map_err(Ended::refused)?;
    }
    if let Some(bucket) = read(line, BUCKET_STREAM).await? {
        check_bucket(&bucket, settings.replicas).map_err(Ended::refused)?;
    }
    Ok(())
}

async fn ensure_one(line: &mut Line, name: &str, wanted: Value) -> Result<Config, Ended> {
    if let Some(there) = read(line, name).await? {
        return Ok(there);
    }
    let made = line.ask(&format!("$JS.API.STREAM.CREATE.{name}"), wanted.to_string()).await?;
    match config_in(&made) {
        Ok(config) => {
            info!(stream = name, replicas = config.num_replicas, "made the stream");
            Ok(config)
        }
        // Another bridge was faster.
        Err(Some(error)) if error.err_code == ApiError::STREAM_NAME_IN_USE => {
            let there = read(line, name).await?;
            there.ok_or_else(|| Ended::other(format!("the stream {name} comes and goes")))
        }
        Err(error) => Err(cannot("make", name, error)),
    }
}

async fn read(line: &mut Line, name: &str) -> Result<Option<Config>, Ended> {
    let answer = line.ask(&format!("$JS.API.STREAM.INFO.{name}"), String::new()).await?;
    match config_in(&answer) {
        Ok(config) => Ok(Some(config)),
        Err(Some(error)) if error.err_code == ApiError::STREAM_NOT_FOUND => Ok(None),
        Err(error) => Err(cannot("look at", name, error)),
    }
}

/// The keys that the bucket has of a server, if there is a bucket; those of purged values too.
pub async fn keys(line: &mut Line, server: &ServerName) -> Result<Vec<String>, Ended> {
    let filter = bucket_subject(&format!("{server}.>"));
    let mut keys = Vec::new();
    loop {
        let question = json!({"subjects_filter": filter, "offset": keys.len()});
        let answer = line.ask(&format!("$JS.API.STREAM.INFO.{BUCKET_STREAM}"), question.to_string()).await?;
        let page = keys_in(&answer);
        if page.is_empty() || keys.len() >= KEYS_MAX {
            return Ok(keys);
        }
        // A server that knows no pages says everything at once, each time.
        let is_again = keys.first() == page.first();
        if is_again {
            return Ok(keys);
        }
        keys.extend(page);
    }
}

/// Whether there is a bucket.
pub async fn has_bucket(line: &mut Line) -> Result<bool, Ended> {
    Ok(read(line, BUCKET_STREAM).await?.is_some())
}

/// Takes a value out of the bucket.
pub async fn clear(line: &mut Line, key: &str) -> Result<(), Ended> {
    match read_answer(false, &line.store(Message::cleared(key)).await?) {
        Answer::Stored { .. } => Ok(()),
        Answer::Refused(reason) | Answer::NotNow(reason) => {
            Err(Ended::other(format!("{key} is not cleared: {reason}")))
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

fn cannot(what: &str, name: &str, error: Option<ApiError>) -> Ended {
    let why = error.map_or_else(|| "the answer is none".to_owned(), |error| error.explained());
    Ended::other(format!("cannot {what} the stream {name}: {why}"))
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

/// Of the configuration of a stream, what matters here.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
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
    /// The server that has it, if that is one of several.
    #[serde(skip)]
    leader: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            subjects: Vec::new(),
            retention: "limits".to_owned(),
            storage: "file".to_owned(),
            discard: "old".to_owned(),
            max_msgs: -1,
            max_bytes: -1,
            max_age: 0,
            max_msgs_per_subject: -1,
            max_msg_size: -1,
            num_replicas: 1,
            duplicate_window: 0,
            no_ack: false,
            sealed: false,
            allow_rollup_hdrs: false,
            leader: None,
        }
    }
}

impl Config {
    fn has_limits(&self) -> bool {
        self.max_msgs > 0 || self.max_bytes > 0 || self.max_msgs_per_subject > 0
    }

    /// What no stream of ours may be.
    fn common_faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.storage != "file" {
            faults.push(format!("its storage is {}, and has to be file", self.storage));
        }
        if self.retention != "limits" {
            faults.push(format!("its retention is {}, and has to be limits", self.retention));
        }
        if self.no_ack {
            faults.push("it acknowledges nothing (no_ack)".to_owned());
        }
        if self.sealed {
            faults.push("it is sealed".to_owned());
        }
        faults
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn stream(subjects: &Subjects, replicas: u8) -> Value {
    json!({
        "name": STREAM,
        "description": "events of torrents, as dtorrent tells them",
        "subjects": subjects.of_stream(),
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msgs_per_subject": -1,
        "max_msg_size": -1,
        "max_age": nanos(AGE_MAX),
        "duplicate_window": nanos(DUPLICATE_WINDOW),
        "num_replicas": replicas,
    })
}

fn bucket(replicas: u8) -> Value {
    json!({
        "name": BUCKET_STREAM,
        "description": "the last state of each torrent, as dtorrent tells it",
        "subjects": [format!("$KV.{BUCKET}.>")],
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msgs_per_subject": 1,
        "max_msg_size": -1,
        "max_age": 0,
        "duplicate_window": nanos(BUCKET_DUPLICATE_WINDOW),
        "num_replicas": replicas,
        "deny_delete": true,
        "allow_rollup_hdrs": true,
        "allow_direct": true,
    })
}

fn check_stream(config: &Config, subjects: &Subjects, replicas: u8) -> Result<Found, String> {
    let mut faults = config.common_faults();
    let missing: Vec<String> = subjects
        .of_stream()
        .into_iter()
        .filter(|ours| !config.subjects.iter().any(|there| covers(there, ours)))
        .collect();
    if !missing.is_empty() {
        faults.push(format!("it does not catch {}", missing.join(", ")));
    }
    let updates = subjects.of_updates();
    if let Some(there) = config.subjects.iter().find(|there| overlap(there, &updates)) {
        faults.push(format!("its subject {there} catches {updates}, of which there is far too much to keep"));
    }
    if config.duplicate_window < nanos(DUPLICATE_WINDOW) {
        let there = humantime::format_duration(Duration::from_nanos(config.duplicate_window));
        faults.push(format!("its duplicate window is {there}, and has to be 2h at least"));
    }
    if !faults.is_empty() {
        let subjects = subjects.of_stream().join(",");
        return Err(format!(
            "the stream {STREAM} is there and is not as it has to be: {}. It is not changed from here: \
             mend it, or take it away and it is made anew (subjects {subjects})",
            faults.join("; ")
        ));
    }
    let mut remarks = Vec::new();
    if config.max_age != nanos(AGE_MAX) {
        let there = match config.max_age {
            0 => "for ever".to_owned(),
            age => humantime::format_duration(Duration::from_nanos(age)).to_string(),
        };
        remarks.push(format!("the stream {STREAM} keeps events {there}, not 30days"));
    }
    if config.has_limits() {
        let what = match config.discard.as_str() {
            "new" => "events wait when it is full",
            _ => "its oldest events go when it is full",
        };
        remarks.push(format!("the stream {STREAM} has limits: {what}"));
    }
    if config.max_msg_size > 0 {
        remarks.push(format!("the stream {STREAM} takes no event of more than {} bytes", config.max_msg_size));
    }
    remarks.extend(other_replicas(STREAM, config, replicas));
    let may_refuse_one = config.num_replicas > 1 || config.discard == "new" && config.has_limits();
    Ok(Found { may_refuse_one, remarks })
}

fn check_bucket(config: &Config, replicas: u8) -> Result<Vec<String>, String> {
    let mut faults = config.common_faults();
    let all = format!("$KV.{BUCKET}.>");
    if !config.subjects.iter().any(|there| covers(there, &all)) {
        faults.push(format!("it does not catch {all}"));
    }
    if config.max_age > 0 {
        let there = humantime::format_duration(Duration::from_nanos(config.max_age));
        faults.push(format!("its values go after {there}, also of torrents that are still there: no ttl may be set"));
    }
    if !config.allow_rollup_hdrs {
        faults.push("its keys cannot be purged (allow_rollup_hdrs is off)".to_owned());
    }
    if config.max_msgs > 0 || config.max_bytes > 0 && config.discard == "old" {
        faults.push("it has limits by which states of torrents go that are still there".to_owned());
    }
    if !faults.is_empty() {
        return Err(format!(
            "the bucket {BUCKET} is there and is not as it has to be: {}. It is not changed from here: \
             mend it (as the stream {BUCKET_STREAM}), or take it away and it is made anew",
            faults.join("; ")
        ));
    }
    let mut remarks = Vec::new();
    if config.max_msgs_per_subject != 1 {
        remarks.push(format!("the bucket {BUCKET} keeps a history of {}, not 1", config.max_msgs_per_subject));
    }
    if config.max_bytes > 0 {
        remarks.push(format!("the bucket {BUCKET} takes no more states when it holds {} bytes", config.max_bytes));
    }
    remarks.extend(other_replicas(BUCKET_STREAM, config, replicas));
    Ok(remarks)
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
    fn what_we_make_is_as_it_has_to_be() {
        assert_eq!(check_stream(&parsed(&stream(&subjects(), 1)), &subjects(), 1), Ok(Found::default()));
        assert_eq!(check_bucket(&parsed(&bucket(1)), 1), Ok(Vec::new()));
        let clustered = check_stream(&parsed(&stream(&subjects(), 3)), &subjects(), 3).unwrap();
        assert!(clustered.may_refuse_one && clustered.remarks.is_empty());
    }

    #[test]
    fn the_server_that_leads_is_known_where_there_are_several() {
        let leader = |cluster: Value| {
            let answer = json!({"config": stream(&subjects(), 1), "cluster": cluster}).to_string();
            config_in(answer.as_bytes()).unwrap().leader
        };
        assert_eq!(leader(json!({"name": "c", "leader": "n1", "replicas": []})), Some("n1".to_owned()));
        assert_eq!(leader(json!({"name": "c"})), None);
        assert_eq!(leader(Value::Null), None);
    }

    #[test]
    fn a_stream_that_breaks_a_promise_is_refused_and_the_fault_named() {
        let check = |key: &str, value: Value, told: &str| {
            let wrong = check_stream(&with(stream(&subjects(), 1), key, value), &subjects(), 1).unwrap_err();
            assert!(wrong.contains(told), "{key}: {wrong}");
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
    fn a_stream_that_is_merely_different_is_remarked_upon() {
        let check = |key: &str, value: Value| {
            let found = check_stream(&with(stream(&subjects(), 1), key, value), &subjects(), 1).unwrap();
            (found.may_refuse_one, found.remarks.join(" "))
        };
        assert!(check("max_age", json!(0)).1.contains("for ever, not 30days"));
        assert!(check("max_bytes", json!(1000)).1.contains("its oldest events go"));
        assert!(
            check("num_replicas", json!(3))
                == (true, "the stream DTORRENT_EVENTS has 3 replicas, not the 1 of the config".into())
        );
        let mut full = stream(&subjects(), 1);
        full["max_bytes"] = json!(1000);
        full["discard"] = json!("new");
        let found = check_stream(&parsed(&full), &subjects(), 1).unwrap();
        assert!(found.may_refuse_one && found.remarks[0].contains("events wait"), "{found:?}");
    }

    #[test]
    fn a_bucket_is_refused_if_states_would_go_from_it_and_remarked_upon_if_it_keeps_more() {
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
        fn no_answer_panics(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            config_in(&body).ok();
            keys_in(&body);
        }
    }
}
