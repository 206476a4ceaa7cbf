//! Fuzz targets, one function for each parser of untrusted input: none may panic, hang, or accept more than its format.
//!
//! `cargo +nightly fuzz run --fuzz-dir tests/fuzz NAME` runs one target with coverage guidance; `make fuzz` runs all of
//! them without it, on any compiler.

use std::path::Path;

use dtorrent::clients::rtorrent::calls::{Answers, Cell, Fault};
use dtorrent::clients::rtorrent::transport::reply_header;
use dtorrent::clients::rtorrent::{jsonrpc, xmlrpc as xml};
use dtorrent::commands::{Envelope, Request, TreeMemory};
use dtorrent::model::{EventId, HookFile, HookSignals, InfoHash, Magnet, Metainfo, Timestamp, Verb, WrittenNames};
use dtorrent::sinks::home_assistant::commands::command;
use dtorrent::sinks::home_assistant::names::Device;
use dtorrent::sinks::mqtt::topics::Topics;
use dtorrent::sinks::mqtt::{BrokerUrl, HomeAssistant, Limits, Prefix};
use dtorrent::sinks::nats::reply::{is_reply, parse_publish_reply, parse_violation};
use dtorrent::sinks::nats::subjects::Subjects;
use dtorrent::sinks::nats::{self, Login, ServerUrl};
use dtorrent::sinks::webhook::response::{AttemptOutcome, RETRY_AFTER_MAX, classify};
use dtorrent::sinks::webhook::{Address, Secrets};

/// Splits an input in two: the first line, and the rest.
fn halves(bytes: &[u8]) -> (&[u8], &[u8]) {
    let at = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    (&bytes[..at], bytes.get(at + 1..).unwrap_or_default())
}

/// Splits an input into two texts; `None` if one of them is not UTF-8.
fn texts(bytes: &[u8]) -> Option<(&str, &str)> {
    let (first, second) = halves(bytes);
    Some((std::str::from_utf8(first).ok()?, std::str::from_utf8(second).ok()?))
}

struct Ignore;

impl Answers for Ignore {
    fn scalar(&mut self, _: usize, _: Cell<'_>) {}
    fn row(&mut self, _: usize, _: &[Cell<'_>]) {}
    fn broken_row(&mut self, _: usize) {}
    fn fault(&mut self, _: usize, _: Fault) {}
}

/// Reads any bytes as an XML-RPC answer.
pub fn xmlrpc(bytes: &[u8]) {
    let _either = xml::scan(bytes, &mut Ignore).is_ok();
    let _either = xml::read(bytes).is_ok();
}

/// Reads any bytes as a JSON-RPC answer.
pub fn json_rpc(bytes: &[u8]) {
    let _either = jsonrpc::scan(bytes, &mut Ignore).is_ok();
}

/// Reads any bytes as the header of an SCGI answer: the body never begins beyond the input.
pub fn scgi_header(bytes: &[u8]) {
    if let Ok(Some((body_at, _length))) = reply_header(bytes) {
        assert!(body_at <= bytes.len());
    }
}

/// Reads an untrusted .torrent file: a torrent or an error, in time and memory proportional to its size.
pub fn bencode(bytes: &[u8]) {
    if let Ok(metainfo) = Metainfo::parse(bytes) {
        metainfo.client_hash();
        assert!(metainfo.length > 0 && !metainfo.files.is_empty());
        for name in metainfo.files.iter().flat_map(|file| &file.path) {
            assert!(!name.is_empty() && name != b".." && !name.contains(&b'/') && !name.contains(&0));
        }
    }
}

/// Reads the names in an untrusted .torrent file: none leads out of the place that it is put into.
pub fn names(bytes: &[u8]) {
    let Some(names) = WrittenNames::parse(bytes) else { return };
    let paths = names.files.iter().flatten().flatten();
    for path in names.names.iter().chain(paths) {
        let parts: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        assert!(!parts.contains(&&b".."[..]) && !parts.contains(&&b"."[..]) && !path.contains(&0));
        assert!(parts.last().is_some_and(|name| !name.is_empty()));
    }
    assert!(names.names.iter().all(|name| !name.contains(&b'/')));
    // What is a torrent has names for each of its files, or it would not be found where it is.
    if let Ok(metainfo) = Metainfo::parse(bytes)
        && metainfo.v1.is_some()
    {
        assert!(!names.names.is_empty());
        assert_eq!(names.files.map(|files| files.len()), metainfo.is_folder.then_some(metainfo.files.len()));
    }
}

/// Reads an untrusted magnet link: a parsed one is rebuilt without blanks and control characters, for the same torrent.
pub fn magnet(bytes: &[u8]) {
    if let Ok(magnet) = Magnet::parse(&String::from_utf8_lossy(bytes)) {
        let link = magnet.to_link();
        assert!(link.bytes().all(|byte| byte.is_ascii_graphic()));
        assert_eq!(Magnet::parse(&link).map(|rebuilt| rebuilt.client_hash()), Ok(magnet.client_hash()));
    }
}

/// Reads a command body for every verb, on a torrent's topic and on a server's.
pub fn command_body(body: &[u8]) {
    let trees = TreeMemory::default();
    drop(Envelope::read(body, &trees));
    for verb in Verb::ALL {
        drop(Request::parse(*verb, None, body, &trees));
        drop(Request::parse(*verb, Some(InfoHash::V1([0; 20])), body, &trees));
    }
}

/// Reads a `Last-Event-ID`: a parsed id is formatted the same again.
pub fn event_id(bytes: &[u8]) {
    if let Ok(id) = String::from_utf8_lossy(bytes).parse::<EventId>() {
        assert_eq!(id.to_string().parse::<EventId>().ok(), Some(id));
    }
}

/// Reads a prefix and a topic: a parsed topic is formatted the same again, and a command topic is never a reply topic.
pub fn mqtt_topics(bytes: &[u8]) {
    let Some((prefix, topic)) = texts(bytes) else { return };
    if let Ok(url) = BrokerUrl::parse(topic) {
        assert_eq!(BrokerUrl::parse(&url.to_string()), Ok(url));
    }
    let Ok(prefix) = Prefix::of_topics(prefix) else { return };
    let below = format!("{prefix}/{topic}");
    let topics = Topics::new(prefix, "main", true);
    for topic in [topic, &below] {
        let is_answerable = topics.addresses.check_reply(topic).is_ok();
        if let Some(address) = topics.addresses.command(topic) {
            assert!(!is_answerable);
            for word in [address.server, address.hash, Some(address.verb)].into_iter().flatten() {
                assert!(!word.is_empty() && !word.contains('/'));
            }
        }
    }
}

/// Reads a prefix, and a subject, an answer or a denial: a parsed subject is formatted the same again.
pub fn nats(bytes: &[u8]) {
    let Some((prefix, text)) = texts(bytes) else { return };
    parse_publish_reply(false, text.as_bytes());
    parse_violation(text);
    is_reply(false, [text].into_iter(), Some(text), text.as_bytes());
    Login::parse_nkey(text).ok();
    Login::parse_creds(text).ok();
    if let Ok(url) = ServerUrl::parse(text) {
        assert_eq!(ServerUrl::parse(&url.to_string()), Ok(url));
    }
    let Ok(prefix) = nats::Prefix::of_subjects(prefix) else { return };
    let below = format!("{prefix}.{text}");
    let subjects = Subjects::new(prefix, "main", true);
    for subject in [text, &below] {
        if let Some(address) = subjects.addresses.command(subject) {
            assert!(subjects.addresses.check_reply(subject).is_err());
            for word in [address.server, address.hash, Some(address.verb)].into_iter().flatten() {
                assert!(!word.is_empty() && !word.contains('.'));
            }
        }
    }
}

/// Reads any text as a config file: it is accepted or refused, and every error can be displayed.
pub fn config(bytes: &[u8]) {
    if let Err(errors) = dtorrent::config::parse(Path::new("fuzz.toml"), bytes) {
        assert!(!errors.0.is_empty());
        assert!(!errors.to_string().chars().any(|c| c.is_control() && c != '\n'));
    }
}

/// Reads any bytes as lines of a hook's file, and any text as its path.
pub fn hook_signal(bytes: &[u8]) {
    assert!(HookSignals::parse(bytes).hashes.len() <= bytes.len() / 40);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(file) = HookFile::parse(text) {
        assert!(!file.as_str().contains(['"', '$', ',', ';', '=', ' ', '\\', '{', '(']));
    }
}

/// Reads a message of a Home Assistant entity: it is one command at most, and device topics round-trip.
pub fn home_assistant(bytes: &[u8]) {
    let (text, body) = halves(bytes);
    let Ok(text) = std::str::from_utf8(text) else { return };
    let settings = HomeAssistant {
        discovery_prefix: "homeassistant".to_owned(),
        slots: 1,
        torrents: None,
        torrents_max: 1,
        alternative: Some(Limits { download: 1, upload: 1 }),
        normal: Limits::default(),
        verbs: Default::default(),
    };
    let (address, _) = command(&settings, "home", text, body);
    assert_eq!(address.server.as_deref(), Some("home"));
    if let Some(device) = Device::parse(text) {
        assert_eq!(Device::parse(&device.id()), Some(device));
    }
}

/// Reads the answer of a webhook endpoint: the wait is bounded, and its text is one line in the log. The input is two
/// bytes of the status, eight of the time, a `Retry-After`, and the body.
pub fn webhook(bytes: &[u8]) {
    let Some((status, rest)) = bytes.split_first_chunk() else { return };
    let Some((now, rest)) = rest.split_first_chunk() else { return };
    let (retry_after, words) = halves(rest);
    let retry_after = Some(retry_after).filter(|text| !text.is_empty());
    let now = Timestamp::from_millis(i64::from_le_bytes(*now));
    let reason = match classify(u16::from_le_bytes(*status), retry_after, words, now) {
        AttemptOutcome::Accepted => String::new(),
        AttemptOutcome::Retry { reason, retry_after } => {
            assert!(retry_after.is_none_or(|wait| wait <= RETRY_AFTER_MAX));
            reason
        }
        AttemptOutcome::BodyRefused { reason }
        | AttemptOutcome::Undeliverable { reason }
        | AttemptOutcome::Gone { reason } => reason,
    };
    assert!(!reason.chars().any(char::is_control) && reason.chars().count() < 400);
    let Ok(text) = std::str::from_utf8(words) else { return };
    Secrets::parse(text).ok();
    if let Ok(address) = Address::parse(text) {
        assert!(!address.host().contains('@') && address.url().as_str().starts_with(address.host()));
        if let Ok((parent, topic)) = address.split_topic() {
            assert!(!topic.is_empty() && parent.host() == address.host());
        }
    }
}
