//! What a NATS server says back: acknowledgements of JetStream, its refusals, and words on the line.
//!
//! Pure: no I/O.

use serde::Deserialize;

/// What became of a publish to JetStream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is stored; `is_duplicate`: it was before, under this id.
    Stored { is_duplicate: bool },
    /// JetStream will never take this one.
    Refused(String),
    /// It does not take it now.
    NotNow(String),
}

/// An error as JetStream writes it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct ApiError {
    #[serde(default)]
    pub code: u16,
    #[serde(default)]
    pub err_code: u32,
    #[serde(default)]
    pub description: String,
}

impl ApiError {
    pub const STREAM_NOT_FOUND: u32 = 10059;
    pub const STREAM_NAME_IN_USE: u32 = 10058;
    const MESSAGE_TOO_LARGE: u32 = 10054;
    const STORE_FAILED: u32 = 10077;
    const NOT_ENABLED: u32 = 10076;
    const NOT_ENABLED_FOR_ACCOUNT: u32 = 10039;
    const SUBJECTS_OVERLAP: u32 = 10065;

    /// What it means, and what would help, in a sentence.
    pub fn explained(&self) -> String {
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

/// Reads the answer to a publish; `has_no_responder`: the server itself says that nobody took it.
pub fn read_answer(has_no_responder: bool, body: &[u8]) -> Answer {
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
        return Answer::NotNow("no stream takes it: it was deleted, or JetStream is not there now".to_owned());
    }
    match serde_json::from_slice::<PubAck>(body) {
        Ok(PubAck { error: Some(error), .. }) if error.err_code == ApiError::MESSAGE_TOO_LARGE => {
            Answer::Refused(error.explained())
        }
        Ok(PubAck { error: Some(error), .. }) => Answer::NotNow(error.explained()),
        // A cluster of 2.10 says so of a repetition whose first one is not agreed upon yet, and may never be.
        Ok(PubAck { stream: Some(_), seq: 0, .. }) => Answer::NotNow("it has no place in the stream yet".to_owned()),
        Ok(PubAck { stream: Some(_), duplicate, .. }) => Answer::Stored { is_duplicate: duplicate },
        Ok(_) | Err(_) => Answer::NotNow("the acknowledgement is none".to_owned()),
    }
}

/// Whether this is an answer that a server, a stream or another service gave to somebody, and not a request.
///
/// Whoever asks chooses where the answer goes: so one who may ask, and send no command, could aim an answer at
/// the subject of a command. Answers give themselves away by one of these.
pub fn is_answer<'h>(
    has_status: bool,
    mut headers: impl Iterator<Item = &'h str>,
    reply: Option<&str>,
    body: &[u8],
) -> bool {
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
        || headers.any(|header| HEADERS.iter().any(|of_answers| header.eq_ignore_ascii_case(of_answers)))
        || reply.is_some_and(|reply| reply.starts_with("$JS"))
        || is_typed()
}

/// What the server does not let us do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied<'a> {
    Publish(&'a str),
    Subscribe(&'a str),
}

/// Reads what the server says when it does not allow something.
pub fn read_denial(error: &str) -> Option<Denied<'_>> {
    let quoted = |rest: &'_ str| -> Option<(usize, usize)> {
        let begin = rest.find('"')? + 1;
        let end = begin + rest[begin..].find('"')?;
        Some((begin, end))
    };
    for (start, is_publish) in
        [("Permissions Violation for Publish to ", true), ("Permissions Violation for Subscription to ", false)]
    {
        if let Some(at) = error.find(start) {
            let rest = &error[at + start.len()..];
            let (begin, end) = quoted(rest)?;
            let subject = &rest[begin..end];
            return Some(if is_publish { Denied::Publish(subject) } else { Denied::Subscribe(subject) });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_answer_is_stored_refused_or_not_now() {
        let read = |body: &str| read_answer(false, body.as_bytes());
        assert_eq!(read(r#"{"stream":"S","seq":1}"#), Answer::Stored { is_duplicate: false });
        assert_eq!(read(r#"{"stream":"S","seq":1,"duplicate":true}"#), Answer::Stored { is_duplicate: true });
        let error = |err_code: u32| {
            read(&format!(
                r#"{{"error":{{"code":400,"err_code":{err_code},"description":"why"}},"stream":"S","seq":0}}"#
            ))
        };
        assert_eq!(error(10054), Answer::Refused("why".into()));
        assert!(matches!(error(10077), Answer::NotNow(why) if why.contains("no room (why)")));
        assert_eq!(error(1), Answer::NotNow("why".into()));
        // The first of two with one id is under way: newer clusters say it by an error, older ones by no number.
        assert_eq!(error(10158), Answer::NotNow("why".into()));
        for no_place in [r#"{"stream":"S","seq":0,"duplicate":true}"#, r#"{"stream":"S","duplicate":true}"#] {
            assert!(matches!(read(no_place), Answer::NotNow(why) if why.contains("no place")), "{no_place}");
        }
        for nonsense in ["", "[]", "{}", "{\"stream\":1}"] {
            assert!(matches!(read(nonsense), Answer::NotNow(_)), "{nonsense}");
        }
        assert!(matches!(read_answer(true, b""), Answer::NotNow(_)));
    }

    #[test]
    fn a_denial_names_its_subject() {
        for (text, expected) in [
            ("Permissions Violation for Publish to \"a.b\"", Some(Denied::Publish("a.b"))),
            ("nats: Permissions Violation for Publish to \"a\"", Some(Denied::Publish("a"))),
            ("Permissions Violation for Subscription to \"a.*\" using queue \"q\"", Some(Denied::Subscribe("a.*"))),
            ("Permissions Violation for Publish to \"a", None),
            ("Authorization Violation", None),
        ] {
            assert_eq!(read_denial(text), expected, "{text}");
        }
    }

    #[test]
    fn an_answer_is_told_from_a_request() {
        let check = |has_status, header: &str, reply, body: &str, expected| {
            let is = is_answer(has_status, header.split_terminator(','), reply, body.as_bytes());
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
        fn no_answer_panics(body in proptest::collection::vec(any::<u8>(), 0..200), text in ".{0,100}") {
            read_answer(false, &body);
            is_answer(false, std::iter::once(text.as_str()), Some(&text), &body);
            read_denial(&text);
            read_denial(&format!("Permissions Violation for Publish to {text}"));
        }
    }
}
