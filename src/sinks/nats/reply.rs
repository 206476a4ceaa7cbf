//! Replies of a NATS server: JetStream's acknowledgements and errors, and permission violations.
//!
//! Pure: no I/O.

use serde::Deserialize;

/// JetStream's reply to a publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishReply {
    /// The message is stored; `is_duplicate`: it was already, under this id.
    Stored {
        /// JetStream dropped this one as a repetition.
        is_duplicate: bool,
    },
    /// JetStream will never store this message.
    Refused(String),
    /// JetStream cannot store it now.
    Deferred(String),
}

/// An error of JetStream's API, as it is encoded in a reply.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP-like status.
    #[serde(default)]
    pub code: u16,
    /// JetStream's number for the error.
    #[serde(default)]
    pub err_code: u32,
    /// The server's text.
    #[serde(default)]
    pub description: String,
}

impl ApiError {
    // Numbers from the server's `server/errors.json`; the texts differ between versions.
    /// The stream does not exist.
    pub const STREAM_NOT_FOUND: u32 = 10059;
    /// The stream was created by somebody else in between.
    pub const STREAM_NAME_IN_USE: u32 = 10058;
    const MESSAGE_TOO_LARGE: u32 = 10054;
    const STORE_FAILED: u32 = 10077;
    const NOT_ENABLED: u32 = 10076;
    const NOT_ENABLED_FOR_ACCOUNT: u32 = 10039;
    const SUBJECTS_OVERLAP: u32 = 10065;

    /// Returns the server's description with what an operator can do about it.
    pub fn explain(&self) -> String {
        let said = &self.description;
        match self.err_code {
            Self::NOT_ENABLED | Self::NOT_ENABLED_FOR_ACCOUNT => {
                format!("{said}: switch JetStream on, for this account too, or write jetstream = false")
            }
            Self::STORE_FAILED => {
                format!("the stream has no room ({said}): raise its limits or free space; it goes on by itself then")
            }
            Self::SUBJECTS_OVERLAP => format!("{said}: another stream catches the same subjects; take them from it"),
            _ => said.clone(),
        }
    }
}

/// Parses the reply to a publish; `has_no_responder`: the server replied itself, because no stream captures the subject.
pub fn parse_publish_reply(has_no_responder: bool, body: &[u8]) -> PublishReply {
    #[derive(Deserialize)]
    struct PubAck {
        stream: Option<String>,
        #[serde(default)]
        seq: u64,
        #[serde(default)]
        duplicate: bool,
        error: Option<ApiError>,
    }
    if has_no_responder {
        return PublishReply::Deferred("no stream takes it: it was deleted, or JetStream is not there now".to_owned());
    }
    match serde_json::from_slice::<PubAck>(body) {
        Ok(PubAck { error: Some(error), .. }) if error.err_code == ApiError::MESSAGE_TOO_LARGE => {
            PublishReply::Refused(error.explain())
        }
        // Unknown errors too: an event that waits can still be delivered, unlike one that was dead-lettered for a passing fault.
        Ok(PubAck { error: Some(error), .. }) => PublishReply::Deferred(error.explain()),
        // nats-server 2.10 in a cluster replies so to a repetition while the first copy is not agreed upon, and it may
        // never be: to take it as stored would lose the event.
        Ok(PubAck { stream: Some(_), seq: 0, .. }) => {
            PublishReply::Deferred("it has no place in the stream yet".to_owned())
        }
        Ok(PubAck { stream: Some(_), duplicate, .. }) => PublishReply::Stored { is_duplicate: duplicate },
        Ok(_) | Err(_) => PublishReply::Deferred("the acknowledgement cannot be read".to_owned()),
    }
}

/// Whether a message is a reply of a server, a stream or another service, and not a request.
pub fn is_reply<'h>(
    has_status: bool,
    mut headers: impl Iterator<Item = &'h str>,
    reply: Option<&str>,
    body: &[u8],
) -> bool {
    // A requester chooses the reply subject. One who may send requests but no commands could direct a reply to the subject of
    // a command; these marks distinguish replies.
    const HEADERS: [&str; 11] = [
        "Nats-Stream",
        "Nats-Subject",
        "Nats-Sequence",
        "Nats-Time-Stamp",
        "Nats-Last-Sequence",
        "Nats-Last-Consumer",
        "Nats-Last-Stream",
        "Nats-Num-Pending",
        "Nats-Pending-Messages",
        "Nats-Service-Error",
        "KV-Operation",
    ];
    #[derive(Deserialize)]
    struct Body {
        r#type: String,
    }
    let is_typed = || serde_json::from_slice::<Body>(body).is_ok_and(|body| body.r#type.starts_with("io.nats."));
    has_status
        || headers.any(|header| HEADERS.iter().any(|of_replies| header.eq_ignore_ascii_case(of_replies)))
        || reply.is_some_and(|reply| reply.starts_with("$JS"))
        || is_typed()
}

/// The operation that a server's permissions forbid, with its subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// A publish to this subject.
    Publish(String),
    /// A subscription to this subject.
    Subscribe(String),
}

/// Parses a permissions violation; `None` for another error. The texts are those of nats-server's `client.go`.
pub fn parse_violation(error: &str) -> Option<Denied> {
    let subject_after = |start: &str| -> Option<String> {
        let (_, rest) = error.split_once(start)?;
        Some(rest.split_once('"')?.1.split_once('"')?.0.to_owned())
    };
    subject_after("Permissions Violation for Publish to ")
        .map(Denied::Publish)
        .or_else(|| subject_after("Permissions Violation for Subscription to ").map(Denied::Subscribe))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_publish_is_stored_refused_or_deferred() {
        let read = |body: &str| parse_publish_reply(false, body.as_bytes());
        assert_eq!(read(r#"{"stream":"S","seq":1}"#), PublishReply::Stored { is_duplicate: false });
        assert_eq!(read(r#"{"stream":"S","seq":1,"duplicate":true}"#), PublishReply::Stored { is_duplicate: true });
        let error = |err_code: u32| {
            read(&format!(
                r#"{{"error":{{"code":400,"err_code":{err_code},"description":"why"}},"stream":"S","seq":0}}"#
            ))
        };
        assert_eq!(error(10054), PublishReply::Refused("why".into()));
        assert!(matches!(error(10077), PublishReply::Deferred(why) if why.contains("no room (why)")));
        assert_eq!(error(1), PublishReply::Deferred("why".into()));
        // The first of two with one id is not agreed upon yet: newer clusters say it by an error, older ones by no number.
        assert_eq!(error(10158), PublishReply::Deferred("why".into()));
        for no_place in [r#"{"stream":"S","seq":0,"duplicate":true}"#, r#"{"stream":"S","duplicate":true}"#] {
            assert!(matches!(read(no_place), PublishReply::Deferred(why) if why.contains("no place")), "{no_place}");
        }
        for nonsense in ["", "[]", "{}", "{\"stream\":1}"] {
            assert!(matches!(read(nonsense), PublishReply::Deferred(_)), "{nonsense}");
        }
        assert!(matches!(parse_publish_reply(true, b""), PublishReply::Deferred(_)));
    }

    #[test]
    fn a_violation_names_its_subject() {
        for (text, expected) in [
            ("Permissions Violation for Publish to \"a.b\"", Some(Denied::Publish("a.b".into()))),
            ("nats: Permissions Violation for Publish to \"a\"", Some(Denied::Publish("a".into()))),
            (
                "Permissions Violation for Subscription to \"a.*\" using queue \"q\"",
                Some(Denied::Subscribe("a.*".into())),
            ),
            ("Permissions Violation for Publish to \"a", None),
            ("Authorization Violation", None),
        ] {
            assert_eq!(parse_violation(text), expected, "{text}");
        }
    }

    #[test]
    fn a_reply_is_distinguished_from_a_request() {
        let check = |has_status, header: &str, reply, body: &str, expected| {
            let is = is_reply(has_status, header.split_terminator(','), reply, body.as_bytes());
            assert_eq!(is, expected, "{has_status} {header} {reply:?} {body}");
        };
        check(false, "", Some("_INBOX.1"), r#"{"label": "a", "id": "1"}"#, false);
        check(false, "traceparent,Nats-Msg-Id", None, "", false);
        check(false, "", None, r#"{"type": "magnet"}"#, false);
        check(true, "", None, "", true);
        check(false, "x,nats-stream", None, "", true);
        check(false, "KV-Operation", None, "", true);
        check(false, "", Some("$JS.ACK.a.b.1.1.1.1.0"), "", true);
        check(false, "", None, r#"{"type":"io.nats.jetstream.api.v1.stream_info_response"}"#, true);
        check(false, "", None, r#"{"type":"io.nats.micro.v1.ping_response","name":"x"}"#, true);
    }

    proptest! {
        #[test]
        fn no_reply_panics(body in proptest::collection::vec(any::<u8>(), 0..200), text in ".{0,100}") {
            parse_publish_reply(false, &body);
            is_reply(false, std::iter::once(text.as_str()), Some(&text), &body);
            parse_violation(&text);
            parse_violation(&format!("Permissions Violation for Publish to {text}"));
        }
    }
}
