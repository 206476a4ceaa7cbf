//! The body of a command, parsed.
//!
//! Pure.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

use super::errors::bad_request;
use super::scanned_text::{scanned_id, scanned_text};
use super::tree_memory::TreeMemory;
use crate::model::{
    AddRequest, CommandError, CommandId, ErrorCode, Filter, InfoHash, Level, Operation, Status, TorrentSource, Verb,
};

/// Bytes of a body that is not read which are searched for its id.
const SCANNED_BYTES_MAX: usize = 64 * 1024;
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// Time to live of a command whose sender does not say one.
pub const TTL: Duration = Duration::from_secs(5 * 60);
/// Longest time to live; results are remembered for as long, so that no id is executed twice.
const TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Most torrents of one command.
pub(super) const HASHES_MAX: usize = 10_000;
/// Most torrents of one `get`, which reads each of them on its own.
pub(super) const GET_MAX: usize = 1000;

/// The keys of a body that the envelope reads.
const ENVELOPE_KEYS: [&str; 3] = ["id", "ttl", "reply_to"];

/// The keys that are read before anything else, so that even a malformed command is answered under its id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Envelope {
    /// The sender's id.
    pub id: Option<CommandId>,
    /// Time to live, at most 24 hours.
    pub ttl: Option<Duration>,
    /// A topic for the result; not compared with the allowed prefixes yet.
    pub reply_to: Option<String>,
    /// SHA-256 of the other keys, however they are written; of the bytes, where the body is no object.
    pub arguments: [u8; 32],
}

/// A command that can be executed.
#[derive(Clone, Debug)]
pub struct Request {
    /// The verb of its topic.
    pub verb: Verb,
    /// The torrents it is for.
    pub target: Target,
    /// The operation, with the arguments of its body.
    pub operation: Operation,
    /// Torrents with another status are left alone.
    pub if_status: Option<Vec<Status>>,
    /// Everything is done but asking the client for a change.
    pub dry_run: bool,
}

/// The torrents that a command is for.
#[derive(Clone, Debug)]
pub enum Target {
    /// These, in order and each once.
    Torrents(Vec<InfoHash>),
    /// The torrents that match when the command is executed.
    Matching(Box<Filter>),
    /// None in particular.
    Server,
}

impl Envelope {
    /// Reads what can be read; the error is for the first thing that is wrong.
    pub fn read(body: &[u8], trees: &TreeMemory) -> (Self, Result<(), CommandError>) {
        let turn = trees.take(body);
        let mut object = match turn.as_ref().ok().and_then(|_| object(body).ok()) {
            Some(object) => object.unwrap_or_default(),
            // The request says what is wrong with the body as a whole.
            None => {
                let (id, arguments) = (scanned_id(body), Sha256::digest(body).into());
                return (Self { id, arguments, ..Self::default() }, Ok(()));
            }
        };
        // The id first: an error in the other keys is then answered under it.
        let mut envelope = Self::default();
        let mut check = || {
            envelope.id = id(&object, body)?;
            envelope.reply_to = text(&object, "reply_to")?.map(str::to_owned);
            if let Some(Value::Number(number)) = object.get("ttl") {
                return Err(bad_request(format!("ttl: {number} has no unit; write \"{number}s\" or \"5m\"")));
            }
            if let Some(ttl) = text(&object, "ttl")? {
                let ttl: Duration = humantime::parse_duration(ttl).map_err(|error| {
                    bad_request(format!("ttl: {error}; a duration like \"300s\" or \"5m\" is right"))
                })?;
                envelope.ttl = Some(ttl.min(TTL_MAX));
            }
            Ok(())
        };
        let result = check();
        // A repetition may wait longer, and elsewhere.
        object.retain(|key, _| !ENVELOPE_KEYS.contains(&key.as_str()));
        envelope.arguments = Sha256::digest(Value::Object(object).to_string()).into();
        (envelope, result)
    }

    /// Reads where to answer and under which id, from a body that is too large to be read, if that is near the beginning.
    pub fn read_start(body: &[u8]) -> Self {
        let start = &body[..body.len().min(SCANNED_BYTES_MAX)];
        let reply_to = scanned_text(start, "reply_to");
        Self { id: scanned_id(start), reply_to, arguments: Sha256::digest(start).into(), ..Self::default() }
    }
}

/// Reads the id of an object; a number is taken as its text.
fn id(object: &Map<String, Value>, body: &[u8]) -> Result<Option<CommandId>, CommandError> {
    if let Some(Value::Number(number)) = object.get("id") {
        // As it was sent, because the sender compares texts: a parsed number may be written otherwise.
        return Ok(scanned_id(body).or_else(|| CommandId::parse(&number.to_string()).ok()));
    }
    let id = text(object, "id")?.map(CommandId::parse).transpose();
    id.map_err(|error| bad_request(format!("id: {error}")))
}

/// Reads a body that is an object; `None` for an empty one.
fn object(body: &[u8]) -> Result<Option<Map<String, Value>>, CommandError> {
    // Editors of some systems begin a text with a byte order mark.
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(Some(object)),
        Ok(_) => Err(bad_request("the body is not a JSON object; an object like {\"id\": \"1\"} or nothing is right")),
        Err(error) => Err(bad_request(format!("the body is not valid JSON: {error}"))),
    }
}

/// Returns the text of a key; `null` counts as absent, because some senders fill every key that they know.
fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, CommandError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(bad_request(format!("{key} is not a string"))),
    }
}

impl Request {
    /// Reads a body. `hash` is the torrent of a torrent's topic.
    ///
    /// # Errors
    /// The first thing that is wrong, and what would be right.
    pub fn parse(verb: Verb, hash: Option<InfoHash>, body: &[u8], trees: &TreeMemory) -> Result<Self, CommandError> {
        if verb == Verb::Add
            && let Some(source) = bare_source(body)?
        {
            let operation = Operation::Add(AddRequest::new(source));
            return Self { verb, target: Target::Server, operation, if_status: None, dry_run: false }
                .checked_target(hash);
        }
        let _turn = trees.take(body)?;
        let mut object = object(body)?.unwrap_or_default();
        // Read by the envelope; what is left in the end is an argument of the verb, or unknown.
        for key in ENVELOPE_KEYS {
            object.remove(key);
        }
        let target = take_target(&mut object, hash)?;
        let if_status = take_statuses(&mut object)?;
        let dry_run = match take(&mut object, "dry_run") {
            None => false,
            Some(Value::Bool(dry_run)) => dry_run,
            Some(_) => return Err(bad_request("dry_run is true or false")),
        };
        let operation = verb.parse_arguments(object)?;
        if let (Operation::Get(_), Target::Torrents(hashes)) = (&operation, &target)
            && hashes.len() > GET_MAX
        {
            let message = format!("get takes {GET_MAX} hashes at most; list has pages");
            return Err(CommandError::new(ErrorCode::TooLarge, message));
        }
        Self { verb, target, operation, if_status, dry_run }.checked_target(hash)
    }

    /// Checks that torrents are chosen where the verb is for torrents, and nowhere else.
    fn checked_target(self, hash: Option<InfoHash>) -> Result<Self, CommandError> {
        let name = self.verb.as_str();
        match (self.verb.level(), &self.target, hash) {
            (Level::Torrent | Level::Torrents, _, Some(_)) => Ok(self),
            (_, _, Some(_)) => Err(bad_request(format!("{name} is a command to a server, not to a torrent"))),
            (Level::Torrent, _, None) => {
                Err(bad_request(format!("{name} is a command to one torrent: publish it on that torrent's topic")))
            }
            (Level::Torrents, Target::Server, None) => {
                Err(bad_request(format!("{name} to a server needs \"hashes\" or \"filter\" to say which torrents")))
            }
            (Level::Torrents, _, None) | (_, Target::Server, None) => Ok(self),
            (Level::ServerFiltered, Target::Matching(_), None) => Ok(self),
            (Level::ServerFiltered, Target::Torrents(_), None) => {
                Err(bad_request(format!("{name} takes a filter, no hashes")))
            }
            (_, _, None) => Err(bad_request(format!("{name} takes no hashes and no filter"))),
        }
    }
}

fn take_target(object: &mut Map<String, Value>, hash: Option<InfoHash>) -> Result<Target, CommandError> {
    let (hashes, filter) = (take_hashes(object)?, take(object, "filter"));
    match (hash, hashes, filter) {
        (Some(hash), None, None) => Ok(Target::Torrents(vec![hash])),
        (Some(hash), Some(hashes), None) if hashes == [hash] => Ok(Target::Torrents(hashes)),
        (Some(_), ..) => {
            Err(bad_request("the topic names the torrent, so other hashes and a filter have no place here"))
        }
        (None, Some(_), Some(_)) => Err(bad_request("hashes or filter, not both")),
        (None, None, None) => Ok(Target::Server),
        (None, None, Some(filter)) => Filter::from_json(filter)
            .map(|filter| Target::Matching(Box::new(filter)))
            .map_err(|error| bad_request(error.to_string())),
        (None, Some(hashes), None) => Ok(Target::Torrents(hashes)),
    }
}

/// Takes the hashes, each once, from `hashes` or `hash`; one may be written without a list around it.
fn take_hashes(object: &mut Map<String, Value>) -> Result<Option<Vec<InfoHash>>, CommandError> {
    let (key, hashes) = match (take(object, "hashes"), take(object, "hash")) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err(bad_request("hashes or hash, not both")),
        (Some(hashes), None) => ("hashes", hashes),
        (None, Some(hash)) => ("hash", hash),
    };
    let hashes = if hashes.is_array() { hashes } else { Value::Array(vec![hashes]) };
    let mut hashes: Vec<InfoHash> =
        serde_json::from_value(hashes).map_err(|error| bad_request(format!("{key}: {error}")))?;
    if hashes.len() > HASHES_MAX {
        return Err(CommandError::new(ErrorCode::TooLarge, format!("more than {HASHES_MAX} hashes")));
    }
    // Once each: two actions for one torrent in a batch would wait for the same effect.
    hashes.sort_unstable();
    hashes.dedup();
    Ok(Some(hashes))
}

fn take_statuses(object: &mut Map<String, Value>) -> Result<Option<Vec<Status>>, CommandError> {
    let Some(statuses) = take(object, "if_status") else { return Ok(None) };
    let statuses = if statuses.is_array() { statuses } else { Value::Array(vec![statuses]) };
    serde_json::from_value(statuses).map(Some).map_err(|error| bad_request(format!("if_status: {error}")))
}

/// Takes a value out of the body; `null` counts as absent.
fn take(object: &mut Map<String, Value>, key: &str) -> Option<Value> {
    object.remove(key).filter(|value| !value.is_null())
}

/// Returns the source that a body is by itself: a link, or the bytes of a .torrent file.
fn bare_source(body: &[u8]) -> Result<Option<TorrentSource>, CommandError> {
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    // A bencoded dictionary begins with `d` and the length of its first key.
    if body.first() == Some(&b'd') && body.get(1).is_some_and(u8::is_ascii_digit) {
        return Ok(Some(TorrentSource::Torrent(Bytes::copy_from_slice(body))));
    }
    let Ok(text) = std::str::from_utf8(body) else {
        return Err(bad_request("the body is neither a .torrent file nor a link nor a JSON object"));
    };
    Ok(TorrentSource::from_link(text.trim()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Action;

    const HASH: &str = "abcdef0123456789abcdef0123456789abcdef01";

    fn parse(verb: &str, on_torrent: bool, body: &str) -> Result<Operation, String> {
        let hash = on_torrent.then(|| HASH.parse().unwrap());
        Request::parse(Verb::parse(verb).unwrap(), hash, body.as_bytes(), &TreeMemory::default())
            .map(|request| request.operation)
            .map_err(|error| error.message)
    }

    fn action(verb: &str, on_torrent: bool, body: &str) -> Action {
        let Ok(Operation::Act(action)) = parse(verb, on_torrent, body) else { panic!("{verb} {body}") };
        action.torrent(HASH.parse().unwrap())
    }

    fn add(body: &str) -> AddRequest {
        let Ok(Operation::Add(add)) = parse("add", false, body) else { panic!("{body}") };
        add
    }

    #[test]
    fn valid_bodies_are_parsed() {
        let hash = HASH.parse().unwrap();
        assert_eq!(action("pause", true, ""), Action::Pause(hash));
        assert_eq!(action("pause", true, " {\"id\": \"1\", \"ttl\": \"5m\"} "), Action::Pause(hash));
        assert_eq!(action("stop", false, r#"{"filter": {"status": "seeding", "name": "*.iso"}}"#), Action::Stop(hash));
        assert_eq!(action("delete", true, r#"{"data": false}"#), Action::Delete(hash));
        assert!(matches!(parse("delete", true, r#"{"data": true}"#), Ok(Operation::DeleteWithData)));
        assert_eq!(action("label", true, r#"{"label": "$x; \"y\""}"#), Action::Label(hash, "$x; \"y\"".into()));
        assert_eq!(action("priority", true, r#"{"priority": 3}"#), Action::Priority(hash, 3));
        assert!(matches!(parse("list", false, ""), Ok(Operation::List { fields: None, page: 0, page_size: 200 })));
        let link = "magnet:?xt=urn:btih:x";
        assert_eq!(add("magnet:?xt=urn:btih:x\n"), AddRequest::new(TorrentSource::Magnet(link.into())));
        assert_eq!(add("\u{feff} magnet:?xt=urn:btih:x").source, TorrentSource::Magnet(link.into()));
        assert_eq!(add("d4:infode").source, TorrentSource::Torrent(Bytes::from_static(b"d4:infode")));
        let stopped = add(r#"{"torrent": "ZGU=", "start": false}"#);
        assert_eq!((stopped.source, stopped.start), (TorrentSource::Torrent(Bytes::from_static(b"de")), false));
    }

    #[test]
    fn invalid_bodies_are_refused_with_what_is_wrong() {
        for (verb, on_torrent, body, expected) in [
            ("pause", false, "", "needs \"hashes\" or \"filter\""),
            ("pause", true, "pause!", "not valid JSON"),
            ("pause", true, "[]", "not a JSON object"),
            ("pause", true, r#"{"wait": 1}"#, "unknown field `wait`"),
            ("pause", true, r#"{"filter": {}}"#, "the topic names the torrent"),
            ("pause", false, r#"{"hashes": ["xyz"]}"#, "hashes: "),
            ("pause", false, r#"{"filter": {"status": "asleep"}}"#, "unknown variant `asleep`"),
            ("pause", false, r#"{"filter": 5}"#, "filter: an object like"),
            ("pause", true, r#"{"if_status": "asleep"}"#, "if_status: "),
            ("label", true, "", "missing field `label`"),
            ("label", true, r#"{"label": 5}"#, "label: invalid type"),
            ("label", true, r#"{"label": "a\u0007"}"#, "no control characters"),
            ("priority", true, r#"{"priority": 4}"#, "priority is 0"),
            ("priority", true, r#"{"priority": -1}"#, "priority: invalid value: integer `-1`, expected a whole number"),
            ("delete", true, r#"{"data": 1}"#, "invalid type"),
            ("move", true, "{}", "missing field `directory`"),
            ("throttle", true, r#"{"throttle": 5}"#, "invalid type"),
            ("file_priority", true, r#"{"files": [], "priority": 1}"#, "files is a list"),
            ("file_priority", true, r#"{"files": [0], "priority": 3}"#, "priority of a file"),
            (
                "file_priority",
                false,
                r#"{"hashes": ["abcdef0123456789abcdef0123456789abcdef01"], "files": [0], "priority": 1}"#,
                "one torrent",
            ),
            ("limits", false, "", "limits takes"),
            ("limits", false, r#"{"download_limit": -1}"#, "invalid value"),
            ("limits", false, r#"{"download_limit": 99999999999}"#, "a limit is 0"),
            ("limits", true, r#"{"download_limit": 1}"#, "to a server"),
            ("limits", false, r#"{"filter": {}, "download_limit": 1}"#, "no hashes and no filter"),
            ("rpc", false, r#"{"method": "x", "params": [[]]}"#, "params is a list"),
            ("rpc", false, r#"{"method": "x", "params": [1e99]}"#, "params is a list"),
            ("resync", false, r#"{"from_seq": "1"}"#, "invalid type"),
            ("add", false, r#"{"magnet": "magnet:?x", "data_file": "/x"}"#, "data_file needs"),
            ("add", true, r#"{"magnet": "magnet:?x"}"#, "to a server"),
            ("add", false, r#"{"magnet": "http://x"}"#, "magnet: "),
            ("add", false, r#"{"url": "file:///etc/passwd"}"#, "url: "),
            ("add", false, r#"{"torrent": "***"}"#, "not valid base64"),
            ("add", false, r#"{"magnet": "magnet:?x", "url": "http://x"}"#, "exactly one"),
            ("add", false, "", "exactly one"),
            ("list", false, r#"{"page_size": 0}"#, "page_size"),
            ("list", true, "", "to a server"),
        ] {
            let error = parse(verb, on_torrent, body).expect_err(body);
            assert!(error.contains(expected), "{verb} {body}: {error}");
        }
    }

    #[test]
    fn a_malformed_command_still_has_its_id() {
        for wreck in [&br#"{"id": "7", "ttl": "soon", "x": }"#[..], br#"{"x": {"id": "8"}, "id": 7, "hashes": ["ab"#] {
            let (envelope, result) = Envelope::read(wreck, &TreeMemory::default());
            assert_eq!((envelope.id.unwrap().as_str(), result), ("7", Ok(())), "no JSON: the request says so");
        }
        for (body, id, start) in [
            (r#"{"id": "7", "ttl": "soon"}"#, Some("7"), "ttl: "),
            (r#"{"id": "7", "ttl": 300}"#, Some("7"), "ttl: 300 has no unit; write \"300s\""),
            (r#"{"reply_to": 5, "id": 7}"#, Some("7"), "reply_to "),
            (r#"{"id": {"id": "7"}}"#, None, "id "),
            (r#"{"id": ""}"#, None, "id: "),
        ] {
            let (envelope, result) = Envelope::read(body.as_bytes(), &TreeMemory::default());
            assert_eq!(envelope.id.as_ref().map(CommandId::as_str), id, "{body}");
            assert!(result.unwrap_err().message.starts_with(start), "{body}");
        }
    }

    #[test]
    fn an_id_that_is_a_number_is_taken_as_its_text() {
        for (number, id) in [
            ("1795984023", "1795984023"),
            ("-1.50", "-1.50"),
            ("1e3", "1e3"),
            ("18446744073709551616", "18446744073709551616"),
        ] {
            for body in
                [format!(r#"{{"id":{number}}}"#), format!("\u{feff}{{\"x\": {{\"id\": 8}}, \"id\" : {number} }}\n")]
            {
                let (envelope, result) = Envelope::read(body.as_bytes(), &TreeMemory::default());
                assert_eq!((envelope.id.unwrap().as_str(), result), (id, Ok(())), "{body}");
            }
        }
    }

    #[test]
    fn one_hash_may_be_named_in_several_ways_and_beside_its_topic_again() {
        let parsed = |on_torrent: bool, body: String| {
            let hash = on_torrent.then(|| HASH.parse().unwrap());
            let request = Request::parse(Verb::Pause, hash, body.as_bytes(), &TreeMemory::default());
            request.map(|request| matches!(request.target, Target::Torrents(hashes) if hashes.len() == 1))
        };
        for body in
            [r#"{"hash": "H"}"#, r#"{"hash": ["H"]}"#, r#"{"hashes": "H"}"#, r#"{"hashes": ["H", "H"], "hash": null}"#]
        {
            assert_eq!(parsed(false, body.replace('H', HASH)), Ok(true), "{body}");
            assert_eq!(parsed(true, body.replace('H', &HASH.to_uppercase())), Ok(true), "{body}");
        }
        for body in [r#"{"hash": "H", "hashes": ["H"]}"#, r#"{"hash": "H", "filter": {}}"#, r#"{"hashes": "H,H"}"#] {
            assert!(parsed(false, body.replace('H', HASH)).is_err(), "{body}");
            assert!(parsed(true, body.replace('H', HASH)).is_err(), "{body}");
        }
        assert!(parsed(true, format!(r#"{{"hash": "{}"}}"#, "a".repeat(40))).is_err());
    }

    proptest! {
        #[test]
        fn no_body_makes_the_parser_panic(body in prop::collection::vec(any::<u8>(), 0..200), verb in 0..Verb::ALL.len()) {
            drop(Envelope::read(&body, &TreeMemory::default()));
            drop(Request::parse(Verb::ALL[verb], None, &body, &TreeMemory::default()));
        }

        #[test]
        fn no_json_makes_the_parser_panic(key in "[a-z_]{1,8}|hashes|filter|priority|page", value in "[0-9a-z\\[\\]{}\":,.-]{0,20}", verb in 0..Verb::ALL.len()) {
            let body = format!("{{\"{key}\": {value}}}");
            drop(Envelope::read(body.as_bytes(), &TreeMemory::default()));
            drop(Request::parse(Verb::ALL[verb], None, body.as_bytes(), &TreeMemory::default()));
        }
    }
}
