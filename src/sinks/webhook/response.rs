//! The outcome of an attempt: how an endpoint's response is classified. Pure.
//!
//! | status | outcome |
//! |---|---|
//! | 2xx | accepted |
//! | 410 | gone: the endpoint is switched off |
//! | 400, 413, 415, 422 | body refused: the event's fault, if the endpoint keeps saying so |
//! | everything else | retry: the endpoint's fault, not the event's |

use std::time::{Duration, UNIX_EPOCH};

use crate::model::{OutsideText, Timestamp, outside_text};

/// Maximum wait that is granted to a `Retry-After`, however much more an endpoint asks for.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(6 * 60 * 60);
/// Maximum length of what is quoted from a response.
const QUOTE_CHARS_MAX: usize = 200;

/// The outcome of one attempt to post an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// 2xx: the endpoint took responsibility.
    Accepted,
    /// To be sent again.
    Retry {
        /// Status and beginning of the response, or the failure of the request.
        reason: OutsideText,
        /// The wait that the endpoint asked for.
        retry_after: Option<Duration>,
    },
    /// The endpoint refuses this body. Not final at once: some endpoints answer so while they are set up.
    BodyRefused {
        /// Status and beginning of the response.
        reason: OutsideText,
    },
    /// No further attempt can succeed.
    Undeliverable {
        /// The fault of the template, or why the endpoint is switched off.
        reason: OutsideText,
    },
    /// The endpoint takes no events any more.
    Gone {
        /// Status and beginning of the response.
        reason: OutsideText,
    },
}

/// Classifies a response; `body_start`: the beginning of its body.
pub fn classify(status: u16, retry_after: Option<&[u8]>, body_start: &[u8], now: Timestamp) -> AttemptOutcome {
    let reason = OutsideText::from(format!("the endpoint answers {status}{}", quote(body_start)));
    match status {
        200..=299 => AttemptOutcome::Accepted,
        300..=399 => {
            let reason = format!("the endpoint answers {status}: redirects are not followed, so write where it is now");
            AttemptOutcome::Retry { reason: reason.into(), retry_after: None }
        }
        // Standard Webhooks asks senders to disable an endpoint that answers so.
        410 => AttemptOutcome::Gone { reason },
        400 | 413 | 415 | 422 => AttemptOutcome::BodyRefused { reason },
        _ => {
            let retry_after = retry_after.and_then(|value| parse_retry_after(value, now));
            AttemptOutcome::Retry { reason, retry_after }
        }
    }
}

/// Parses `Retry-After` (RFC 9110 §10.2.3): seconds, or an HTTP date; at most [`RETRY_AFTER_MAX`].
///
/// A date in the past is a wait of zero; anything else is ignored.
pub fn parse_retry_after(value: &[u8], now: Timestamp) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit into a number are a long time, too.
        let seconds = text.parse().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
    }
    let since_1970 = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let at = Timestamp::from_seconds(i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX));
    Some(Duration::from_millis(at.millis_since(now)).min(RETRY_AFTER_MAX))
}

/// Returns the first line of a response body, without secrets and with a leading `: `; empty for an empty body.
fn quote(body: &[u8]) -> String {
    let line = body.split(|byte| matches!(byte, b'\n' | b'\r')).find(|line| !line.trim_ascii().is_empty());
    // Before it is cut, because the beginning of a secret is not recognized.
    let line = outside_text(&String::from_utf8_lossy(line.unwrap_or_default().trim_ascii()));
    let short: String = line.chars().take(QUOTE_CHARS_MAX).collect();
    if short.is_empty() { short } else { format!(": {short}") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 784_111_777; // Sun, 06 Nov 1994 08:49:37 GMT

    fn seconds(value: &str) -> Option<u64> {
        parse_retry_after(value.as_bytes(), Timestamp::from_seconds(NOW)).map(|wait| wait.as_secs())
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_bounded() {
        for (value, expected) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("999999999999999999999999", Some(RETRY_AFTER_MAX.as_secs())),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sunday, 06-Nov-94 08:50:37 GMT", Some(60)),
            ("Sun Nov  6 08:50:37 1994", Some(60)),
            ("Sun, 06 Nov 1994 08:40:00 GMT", Some(0)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(RETRY_AFTER_MAX.as_secs())),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            assert_eq!(seconds(value), expected, "{value}");
        }
    }

    #[test]
    fn each_status_has_one_outcome() {
        let now = Timestamp::from_seconds(NOW);
        for (status, expected) in [
            (200, "accepted"),
            (204, "accepted"),
            (301, "retry"),
            (304, "retry"),
            (400, "body refused"),
            (401, "retry"),
            (404, "retry"),
            (408, "retry"),
            (410, "gone"),
            (413, "body refused"),
            (422, "body refused"),
            (425, "retry"),
            (429, "retry"),
            (500, "retry"),
            (503, "retry"),
            (999, "retry"),
        ] {
            let outcome = match classify(status, None, b"", now) {
                AttemptOutcome::Accepted => "accepted",
                AttemptOutcome::Retry { .. } => "retry",
                AttemptOutcome::BodyRefused { .. } => "body refused",
                AttemptOutcome::Undeliverable { .. } => "undeliverable",
                AttemptOutcome::Gone { .. } => "gone",
            };
            assert_eq!(outcome, expected, "{status}");
        }
        let slow = classify(503, Some(b"7"), b"\r\n  too\tmuch \x1b[31m\nmore", now);
        let reason = "the endpoint answers 503: too".to_owned();
        let AttemptOutcome::Retry { reason: quoted, retry_after } = slow else { panic!("{slow:?}") };
        assert!(quoted.starts_with(&reason) && !quoted.contains('\x1b') && !quoted.contains("more"), "{quoted}");
        assert_eq!(retry_after, Some(Duration::from_secs(7)));
    }

    proptest! {
        #[test]
        fn no_retry_after_exceeds_the_maximum(value in prop::collection::vec(any::<u8>(), 0..60), now in any::<i64>()) {
            let wait = parse_retry_after(&value, Timestamp::from_millis(now));
            prop_assert!(wait.is_none_or(|wait| wait <= RETRY_AFTER_MAX));
        }

        #[test]
        fn a_quoted_response_is_one_short_line(status in any::<u16>(), words in prop::collection::vec(any::<u8>(), 0..5000)) {
            let reason = match classify(status, None, &words, Timestamp::from_millis(0)) {
                AttemptOutcome::Accepted => OutsideText::default(),
                AttemptOutcome::Retry { reason, .. } | AttemptOutcome::BodyRefused { reason } | AttemptOutcome::Undeliverable { reason } | AttemptOutcome::Gone { reason } => reason,
            };
            prop_assert!(reason.chars().count() < QUOTE_CHARS_MAX + 100 && !reason.chars().any(char::is_control));
        }
    }
}
