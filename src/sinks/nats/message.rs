//! What a delivery is on the wire: one or more publishes, each with how sure it has to be.
//!
//! Pure: no I/O.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;

use crate::model::{
    CommandError, Entity, ErrorCode, EventId, Kind, OutcomeStatus, Seq, ServerName, Timestamp, printable,
};
use crate::port::{Delivery, ReplyTo};

use super::subjects::{Subjects, bucket_subject};
use super::tally::Told;

const ONLINE: &[u8] = b"online";
const OFFLINE: &[u8] = b"offline";

/// A header is one line, and nobody reads a longer one.
const HEADER_CHARS_MAX: usize = 300;

/// When a publish counts as delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surety {
    /// The server has read it: whoever listens gets it.
    Heard,
    /// JetStream has it.
    Stored,
}

/// One publish.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub subject: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
    pub surety: Surety,
    /// For a journal entry: whose and which.
    pub entry: Option<(ServerName, Seq)>,
}

impl Message {
    fn new(subject: String, body: Bytes) -> Self {
        Self { subject, headers: Vec::new(), body, surety: Surety::Heard, entry: None }
    }

    fn json(subject: String, body: Bytes) -> Self {
        Self { headers: vec![("content-type", "application/json".to_owned())], ..Self::new(subject, body) }
    }

    /// Whether the bridge is there. NATS knows no last will: after a crash nobody says `offline`.
    pub fn bridge_status(subjects: &Subjects, is_online: bool) -> Self {
        Self::new(subjects.bridge_status(), status(is_online))
    }

    /// Takes a value back as a purge of its key: its history goes, and who watches hears of it.
    pub fn cleared(key: &str) -> Self {
        let headers = vec![("KV-Operation", "PURGE".to_owned()), ("Nats-Rollup", "sub".to_owned())];
        Self { headers, surety: Surety::Stored, ..Self::new(bucket_subject(key), Bytes::new()) }
    }

    /// How many bytes the server counts against the most that it takes.
    pub fn payload_bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        let frame = if self.headers.is_empty() { 0 } else { "NATS/1.0\r\n\r\n".len() };
        self.body.len() + headers + frame
    }
}

/// The messages of a delivery.
#[derive(Debug, PartialEq)]
pub struct Messages {
    /// All of them have to arrive.
    pub own: Vec<Message>,
    /// To the sender of a command, who chose where: if it is not taken, that is all.
    pub reply: Option<Reply>,
}

#[derive(Debug, PartialEq)]
pub struct Reply {
    pub message: Message,
    /// For whoever counts.
    pub told: Told,
}

fn status(is_online: bool) -> Bytes {
    Bytes::from_static(if is_online { ONLINE } else { OFFLINE })
}

/// `is_stored`: there is JetStream behind it.
pub fn messages(subjects: &Subjects, instance: &str, is_stored: bool, delivery: Delivery) -> Messages {
    let subject = subjects.of(&delivery);
    let key = subjects.retained_topic(&delivery);
    let mut reply_message = None;
    let own = match delivery {
        Delivery::Event(entry) => {
            let about = attributes(instance, &entry.server, &entry.id, entry.kind, entry.hash, entry.time);
            let surety = if is_stored { Surety::Stored } else { Surety::Heard };
            let which = Some((entry.server, entry.seq));
            vec![Message { headers: about, surety, entry: which, ..Message::new(subject, entry.body) }]
        }
        Delivery::Updated { server, hash, id, time, body } => {
            let about = attributes(instance, &server, &id, Kind::Updated, Some(hash), time);
            vec![Message { headers: about, ..Message::new(subject, body) }]
        }
        Delivery::State { body, .. } => {
            let kept =
                key.map(|key| Message { surety: Surety::Stored, ..Message::new(bucket_subject(&key), body.clone()) });
            std::iter::once(Message::json(subject, body)).chain(kept).collect()
        }
        Delivery::Files { body, .. }
        | Delivery::Stats { body, .. }
        | Delivery::Info { body }
        | Delivery::Health { body } => vec![Message::json(subject, body)],
        Delivery::ServerStatus { is_online, .. } => vec![Message::new(subject, status(is_online))],
        Delivery::Result { body, reply, .. } => {
            reply_message = reply.map(|reply| answer(reply, &body));
            vec![Message::json(subject, body)]
        }
        // This sink has no projection.
        Delivery::Shown { .. } => Vec::new(),
        Delivery::Clear { name } => vec![Message::cleared(&name)],
    };
    Messages { own, reply: reply_message }
}

/// The result as the reply to a request: an error is in the headers too, as of any micro service.
fn answer(ReplyTo { topic, correlation: mark }: ReplyTo, body: &Bytes) -> Reply {
    let mut message = Message::json(topic, body.clone());
    let result: Option<Judged> = serde_json::from_slice(body).ok();
    let took = Duration::from_millis(result.as_ref().map_or(0, |result| result.took_ms));
    let mut error = None;
    if let Some(CommandError { code, message: text, .. }) = result.and_then(error_in) {
        let text: String = printable(text.as_bytes()).chars().take(HEADER_CHARS_MAX).collect();
        let code = http_code(code).to_string();
        error = Some(format!("{code}:{text}"));
        message.headers.push(("Nats-Service-Error", text));
        message.headers.push(("Nats-Service-Error-Code", code));
    }
    Reply { message, told: Told { mark: mark.unwrap_or_default(), error, took } }
}

/// Of a result, what is looked at here.
#[derive(Deserialize)]
struct Judged {
    status: OutcomeStatus,
    #[serde(default)]
    took_ms: u64,
    error: Option<CommandError>,
    #[serde(default)]
    results: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    error: Option<CommandError>,
}

/// What went wrong, as a result says it; nothing if it is `ok`.
fn error_in(result: Judged) -> Option<CommandError> {
    if result.status == OutcomeStatus::Ok {
        return result.error; // the effect was seen, but the rows were too many
    }
    let of_rows = result.results.into_iter().find_map(|row| row.error);
    let unnamed = || CommandError::new(ErrorCode::ClientFault, format!("{:?}", result.status).to_lowercase());
    Some(result.error.or(of_rows).unwrap_or_else(unnamed))
}

/// Service errors have numbers, and these are the ones that everybody knows.
pub fn http_code(code: ErrorCode) -> u16 {
    match code {
        ErrorCode::BadRequest | ErrorCode::Retained => 400,
        ErrorCode::Forbidden => 403,
        ErrorCode::UnknownServer | ErrorCode::UnknownHash => 404,
        ErrorCode::Precondition => 409,
        ErrorCode::TooLarge => 413,
        ErrorCode::Unsupported => 501,
        ErrorCode::ClientFault => 502,
        ErrorCode::ClientOffline => 503,
        ErrorCode::Unconfirmed => 504,
    }
}

/// The attributes of a CloudEvent in the binary mode of its NATS binding, and the id by which JetStream
/// knows a repetition.
fn attributes(
    instance: &str,
    server: &ServerName,
    id: &EventId,
    kind: Kind,
    hash: Option<crate::model::InfoHash>,
    time: Timestamp,
) -> Vec<(&'static str, String)> {
    let entity = match kind.entity() {
        Entity::Torrent => "torrent",
        Entity::Server => "server",
    };
    vec![
        ("Nats-Msg-Id", id.to_string()),
        ("content-type", "application/json".to_owned()),
        ("ce-specversion", "1.0".to_owned()),
        ("ce-id", id.to_string()),
        ("ce-source", format!("dtorrent/{instance}/{server}")),
        ("ce-type", format!("dtorrent.{entity}.{}", kind.as_str())),
        ("ce-subject", hash.map_or_else(|| server.to_string(), |hash| hash.to_string())),
        ("ce-time", time.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::sinks::nats::settings::Prefix;

    const HASH: &str = "3f786850e387550fdab836ed7e6dc881de23001b";

    fn of(delivery: Delivery, is_stored: bool) -> Messages {
        messages(&Subjects::new(Prefix::default(), "main", is_stored), "main", is_stored, delivery)
    }

    fn home() -> ServerName {
        ServerName::parse("home").unwrap()
    }

    #[test]
    fn a_state_is_published_and_put_into_the_bucket_if_there_is_one() {
        let state =
            || Delivery::State { server: home(), hash: HASH.parse().unwrap(), body: Bytes::from("{}"), keep: true };
        let subjects = |messages: Messages| -> Vec<(String, Surety)> {
            messages.own.into_iter().map(|message| (message.subject, message.surety)).collect()
        };
        let own = (format!("dtorrent.home.torrent.{HASH}.state"), Surety::Heard);
        assert_eq!(subjects(of(state(), false)), std::slice::from_ref(&own));
        let kept = (format!("$KV.dtorrent_state.home.{HASH}"), Surety::Stored);
        assert_eq!(subjects(of(state(), true)), [own, kept]);
    }

    #[test]
    fn a_reply_has_the_error_in_its_headers_and_one_that_is_ok_has_none() {
        let reply = |result: serde_json::Value| {
            let body = Bytes::from(result.to_string());
            let reply = Some(ReplyTo { topic: "_INBOX.1".into(), correlation: None });
            of(Delivery::Result { server: Some(home()), body, reply }, true).reply.unwrap().message
        };
        let error = json!({"code": "unknown_hash", "message": "no such\r\nPUB x 0", "retryable": false});
        let ok = reply(json!({"status": "ok", "error": null, "results": []}));
        assert_eq!(ok.headers, [("content-type", "application/json".to_owned())]);
        for result in [
            json!({"status": "error", "error": error, "results": []}),
            json!({"status": "partial", "error": null, "results": [{"error": null}, {"error": error}]}),
        ] {
            let headers = reply(result).headers;
            assert_eq!(headers[2], ("Nats-Service-Error-Code", "404".to_owned()));
            assert!(headers[1].0 == "Nats-Service-Error" && !headers[1].1.contains(['\r', '\n']), "{headers:?}");
        }
        let plain = reply(json!({"status": "expired", "error": null}));
        assert_eq!(plain.headers[1], ("Nats-Service-Error", "expired".to_owned()));
    }

    #[test]
    fn what_the_server_counts_is_the_body_and_the_headers() {
        let mut message = Message::new("a".into(), Bytes::from("12345"));
        assert_eq!(message.payload_bytes(), 5);
        message.headers.push(("a", "b".into()));
        assert_eq!(message.payload_bytes(), 5 + "NATS/1.0\r\na: b\r\n\r\n".len());
    }
}
