//! What an endpoint's answer means for the event that was sent. Pure.
//!
//! | answer | |
//! |---|---|
//! | 2xx | taken |
//! | 410 | nobody is there any more: the endpoint is switched off |
//! | 400, 413, 415, 422 | not this one: the fault is the body's, if it stays so |
//! | everything else | not now: the fault is the endpoint's, not the event's |

use std::time::{Duration, UNIX_EPOCH};

use crate::model::{Timestamp, printable};

/// An endpoint may have us wait so long, however much more it asks for.
pub const ASKED_MAX: Duration = Duration::from_secs(6 * 60 * 60);
/// So much of what an endpoint says with a refusal is shown.
const WORDS_MAX: usize = 200;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Taken,
    /// To be sent again; `wait`: not before that, if the endpoint said so.
    NotNow {
        reason: String,
        wait: Option<Duration>,
    },
    /// It is about this event's body. Not to be believed at once.
    NotThis {
        reason: String,
    },
    Never {
        reason: String,
    },
    /// No event is taken any more.
    Gone {
        reason: String,
    },
}

/// `words`: the beginning of the answer's body.
pub fn judge(status: u16, retry_after: Option<&[u8]>, words: &[u8], now: Timestamp) -> Verdict {
    let words = said(words);
    let reason = format!("the endpoint answers {status}{words}");
    match status {
        200..=299 => Verdict::Taken,
        300..=399 => {
            let reason = format!("the endpoint answers {status}: redirects are not followed, so write where it is now");
            Verdict::NotNow { reason, wait: None }
        }
        410 => Verdict::Gone { reason },
        400 | 413 | 415 | 422 => Verdict::NotThis { reason },
        _ => Verdict::NotNow { reason, wait: retry_after.and_then(|value| wait(value, now)) },
    }
}

/// Reads `Retry-After`: seconds, or a date as HTTP has them; at most [`ASKED_MAX`].
///
/// A date that has passed is no wait, and what is neither says nothing.
pub fn wait(value: &[u8], now: Timestamp) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number has room for are a long time, too.
        let seconds = text.parse().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds).min(ASKED_MAX));
    }
    let since_1970 = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let at = Timestamp::from_seconds(i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX));
    Some(Duration::from_millis(at.millis_since(now)).min(ASKED_MAX))
}

/// The first line of what an endpoint says, in words that are fit for a log.
fn said(words: &[u8]) -> String {
    let line = words.split(|byte| matches!(byte, b'\n' | b'\r')).find(|line| !line.trim_ascii().is_empty());
    let line = printable(line.unwrap_or_default().trim_ascii());
    let short: String = line.chars().take(WORDS_MAX).collect();
    if short.is_empty() { short } else { format!(": {short}") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 784_111_777; // Sun, 06 Nov 1994 08:49:37 GMT

    fn seconds(value: &str) -> Option<u64> {
        wait(value.as_bytes(), Timestamp::from_seconds(NOW)).map(|wait| wait.as_secs())
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_has_an_end() {
        for (value, expected) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("999999999999999999999999", Some(ASKED_MAX.as_secs())),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sunday, 06-Nov-94 08:50:37 GMT", Some(60)),
            ("Sun Nov  6 08:50:37 1994", Some(60)),
            ("Sun, 06 Nov 1994 08:40:00 GMT", Some(0)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(ASKED_MAX.as_secs())),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            assert_eq!(seconds(value), expected, "{value}");
        }
    }

    #[test]
    fn each_status_has_its_meaning() {
        let now = Timestamp::from_seconds(NOW);
        for (status, expected) in [
            (200, "taken"),
            (204, "taken"),
            (301, "not now"),
            (304, "not now"),
            (400, "not this"),
            (401, "not now"),
            (404, "not now"),
            (408, "not now"),
            (410, "gone"),
            (413, "not this"),
            (422, "not this"),
            (425, "not now"),
            (429, "not now"),
            (500, "not now"),
            (503, "not now"),
            (999, "not now"),
        ] {
            let meaning = match judge(status, None, b"", now) {
                Verdict::Taken => "taken",
                Verdict::NotNow { .. } => "not now",
                Verdict::NotThis { .. } => "not this",
                Verdict::Never { .. } => "never",
                Verdict::Gone { .. } => "gone",
            };
            assert_eq!(meaning, expected, "{status}");
        }
        let slow = judge(503, Some(b"7"), b"\r\n  too\tmuch \x1b[31m\nmore", now);
        let reason = "the endpoint answers 503: too".to_owned();
        let Verdict::NotNow { reason: told, wait } = slow else { panic!("{slow:?}") };
        assert!(told.starts_with(&reason) && !told.contains('\x1b') && !told.contains("more"), "{told}");
        assert_eq!(wait, Some(Duration::from_secs(7)));
    }

    proptest! {
        #[test]
        fn no_header_has_us_wait_for_longer_than_allowed(value in prop::collection::vec(any::<u8>(), 0..60), now in any::<i64>()) {
            let wait = wait(&value, Timestamp::from_millis(now));
            prop_assert!(wait.is_none_or(|wait| wait <= ASKED_MAX));
        }

        #[test]
        fn what_an_endpoint_says_is_one_short_line(status in any::<u16>(), words in prop::collection::vec(any::<u8>(), 0..5000)) {
            let reason = match judge(status, None, &words, Timestamp::from_millis(0)) {
                Verdict::Taken => String::new(),
                Verdict::NotNow { reason, .. } | Verdict::NotThis { reason } | Verdict::Never { reason } | Verdict::Gone { reason } => reason,
            };
            prop_assert!(reason.chars().count() < WORDS_MAX + 100 && !reason.chars().any(char::is_control));
        }
    }
}
