//! The publishes of a delivery: its own, each with the acknowledgement it needs, and the reply to a command's sender.
//!
//! Pure: no I/O.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use serde::Deserialize;

use crate::model::{CommandError, ErrorCode, OutcomeStatus, Seq, ServerName, printable};
use crate::port::{Delivery, ReplyTo};
use crate::sinks::broker::{cloud_event, status_body};

use super::service_stats::RequestOutcome;
use super::subjects::{Subjects, bucket_subject};

/// Maximum length of an error text in a header; longer ones are of no use to readers of `nats req`.
const HEADER_CHARS_MAX: usize = 300;

/// The header of a state in the bucket that names the instance which stored it.
pub const INSTANCE_HEADER: &str = "dtorrent-instance";

/// The acknowledgement of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckKind {
    /// An echo behind it: the server has read it and passes it on to whoever listens.
    Echo,
    /// JetStream: it is stored.
    JetStream,
}

/// One publish.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The subject, without wildcards.
    pub subject: String,
    /// Header lines; their order on the wire is not defined.
    pub headers: HeaderMap,
    /// The payload.
    pub body: Bytes,
    /// Acknowledgement that the message counts as delivered with.
    pub ack: AckKind,
    /// Server and number of a journal entry.
    pub entry: Option<(ServerName, Seq)>,
}

impl Message {
    fn new(subject: String, body: Bytes) -> Self {
        Self { subject, headers: HeaderMap::new(), body, ack: AckKind::Echo, entry: None }
    }

    fn json(subject: String, body: Bytes) -> Self {
        Self { headers: headers([("content-type", "application/json")]), ..Self::new(subject, body) }
    }

    /// Returns the bridge's own status. NATS has no last will: after a crash no `offline` is published.
    pub fn bridge_status(subjects: &Subjects, is_online: bool) -> Self {
        Self::new(subjects.addresses.bridge_status(), status_body(is_online))
    }

    /// Returns the value of a key in the bucket, with the name of the instance that stores it.
    fn state(key: &str, body: Bytes, instance: &str) -> Self {
        let headers = headers([(INSTANCE_HEADER, instance)]);
        Self { headers, ack: AckKind::JetStream, ..Self::new(bucket_subject(key), body) }
    }

    /// Returns the purge of a key in the bucket: its history goes, and watchers are notified (ADR-8).
    pub fn purge(key: &str) -> Self {
        let headers = headers([("KV-Operation", "PURGE"), ("Nats-Rollup", "sub")]);
        Self { headers, ack: AckKind::JetStream, ..Self::new(bucket_subject(key), Bytes::new()) }
    }

    /// Returns the size that the server compares with its `max_payload`: headers as written, and body.
    pub fn payload_bytes(&self) -> usize {
        let lines = self.headers.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value)));
        let headers: usize =
            lines.map(|(name, value)| AsRef::<str>::as_ref(name).len() + value.as_str().len() + 4).sum();
        let frame = if self.headers.is_empty() { 0 } else { "NATS/1.0\r\n\r\n".len() };
        self.body.len() + headers + frame
    }
}

fn headers<'v>(pairs: impl IntoIterator<Item = (&'static str, &'v str)>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    pairs.into_iter().for_each(|(name, value)| headers.insert(name, value));
    headers
}

/// The publishes of one delivery.
#[derive(Debug, PartialEq)]
pub struct Messages {
    /// All of them have to be acknowledged.
    pub own: Vec<Message>,
    /// To the address that a command's sender chose: a refusal of it is not the delivery's.
    pub reply: Option<Reply>,
}

/// The reply to a command.
#[derive(Debug, PartialEq)]
pub struct Reply {
    /// The publish to the reply subject.
    pub message: Message,
    /// For the counters of the service.
    pub outcome: RequestOutcome,
}

/// Returns the messages of a delivery. `is_stored`: whether JetStream is used.
pub fn messages(subjects: &Subjects, instance: &str, is_stored: bool, delivery: Delivery) -> Messages {
    let subject = subjects.of(&delivery);
    let key = subjects.retained_topic(&delivery);
    let event_headers = event_headers(instance, &delivery);
    let mut reply = None;
    let own = match delivery {
        Delivery::Event(entry) => {
            let ack = if is_stored { AckKind::JetStream } else { AckKind::Echo };
            let id = Some((entry.server, entry.seq));
            vec![Message { headers: event_headers, ack, entry: id, ..Message::new(subject, entry.body) }]
        }
        Delivery::Updated { body, .. } => vec![Message { headers: event_headers, ..Message::new(subject, body) }],
        Delivery::State { body, .. } => {
            // Twice: whoever subscribes to the subject gets changes without JetStream, and the bucket shows the last one.
            let stored = key.map(|key| Message::state(&key, body.clone(), instance));
            std::iter::once(Message::json(subject, body)).chain(stored).collect()
        }
        Delivery::Files { body, .. }
        | Delivery::Stats { body, .. }
        | Delivery::Info { body }
        | Delivery::Health { body } => vec![Message::json(subject, body)],
        Delivery::ServerStatus { is_online, .. } => vec![Message::new(subject, status_body(is_online))],
        Delivery::Result { body, reply: reply_to, .. } => {
            reply = reply_to.map(|reply_to| reply_message(reply_to, &body));
            vec![Message::json(subject, body)]
        }
        // No projection has NATS as its consumer, so this never comes.
        Delivery::Projected { .. } => Vec::new(),
        Delivery::Clear { topic } => vec![Message::purge(&topic)],
    };
    Messages { own, reply }
}

/// Returns the headers of an event: its id, by which JetStream drops repetitions, and the CloudEvents attributes.
fn event_headers(instance: &str, delivery: &Delivery) -> HeaderMap {
    let attributes = cloud_event::attributes(instance, delivery);
    if attributes.is_empty() {
        return HeaderMap::new();
    }
    let mut headers = headers([("content-type", "application/json")]);
    for (name, value) in attributes {
        if name == "id" {
            headers.insert(async_nats::header::NATS_MESSAGE_ID, &*value);
        }
        headers.insert(format!("ce-{name}"), value);
    }
    headers
}

/// Returns the result as the reply to a request: an error is in the headers too, as micro services have it (ADR-32).
fn reply_message(ReplyTo { topic, correlation: request_id }: ReplyTo, body: &Bytes) -> Reply {
    let mut message = Message::json(topic, body.clone());
    let result: Option<ResultHead> = serde_json::from_slice(body).ok();
    let took = Duration::from_millis(result.as_ref().map_or(0, |result| result.took_ms));
    let mut error = None;
    if let Some(CommandError { code, message: text, .. }) = result.and_then(first_error) {
        // A line break in it would end the header: the text is a client's, and so anybody's (I14).
        let text: String = printable(text.as_bytes()).chars().take(HEADER_CHARS_MAX).collect();
        let code = code.http_status().to_string();
        error = Some(format!("{code}:{text}"));
        message.headers.insert("Nats-Service-Error", text);
        message.headers.insert("Nats-Service-Error-Code", code);
    }
    Reply { message, outcome: RequestOutcome { request_id: request_id.unwrap_or_default(), error, took } }
}

/// The fields of a result that the reply's headers are made of.
#[derive(Deserialize)]
struct ResultHead {
    status: OutcomeStatus,
    #[serde(default)]
    took_ms: u64,
    error: Option<CommandError>,
    #[serde(default)]
    results: Vec<ResultRow>,
}

#[derive(Deserialize)]
struct ResultRow {
    error: Option<CommandError>,
}

/// Returns the error of a result, or the first of its rows; `None` if it is `ok`.
fn first_error(result: ResultHead) -> Option<CommandError> {
    if result.status == OutcomeStatus::Ok {
        // `ok` with an error: the effect was seen, but the rows were too many for a message.
        return result.error;
    }
    let of_rows = result.results.into_iter().find_map(|row| row.error);
    let unnamed = || CommandError::new(ErrorCode::ClientFault, format!("{:?}", result.status).to_lowercase());
    Some(result.error.or(of_rows).unwrap_or_else(unnamed))
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
    fn a_state_is_published_and_stored_in_the_bucket_if_there_is_one() {
        let state =
            || Delivery::State { server: home(), hash: HASH.parse().unwrap(), body: Bytes::from("{}"), retain: true };
        let subjects = |messages: Messages| -> Vec<(String, AckKind)> {
            messages.own.into_iter().map(|message| (message.subject, message.ack)).collect()
        };
        let own = (format!("dtorrent.home.torrent.{HASH}.state"), AckKind::Echo);
        assert_eq!(subjects(of(state(), false)), std::slice::from_ref(&own));
        let stored = (format!("$KV.dtorrent_state.home.{HASH}"), AckKind::JetStream);
        assert_eq!(subjects(of(state(), true)), [own, stored]);
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
        assert_eq!(ok.headers, headers([("content-type", "application/json")]));
        for result in [
            json!({"status": "error", "error": error, "results": []}),
            json!({"status": "partial", "error": null, "results": [{"error": null}, {"error": error}]}),
        ] {
            let headers = reply(result).headers;
            let header = |name: &str| headers.get(name).unwrap().as_str();
            assert_eq!(header("Nats-Service-Error-Code"), "404");
            assert!(!header("Nats-Service-Error").contains(['\r', '\n']), "{headers:?}");
        }
        let plain = reply(json!({"status": "expired", "error": null}));
        assert_eq!(plain.headers.get("Nats-Service-Error").unwrap().as_str(), "expired");
    }

    #[test]
    fn the_payload_is_the_body_and_the_headers_as_written() {
        let mut message = Message::new("a".into(), Bytes::from("12345"));
        assert_eq!(message.payload_bytes(), 5);
        message.headers.insert("a", "b");
        assert_eq!(message.payload_bytes(), 5 + "NATS/1.0\r\na: b\r\n\r\n".len());
    }
}
