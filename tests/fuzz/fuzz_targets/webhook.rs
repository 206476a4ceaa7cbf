//! Nothing that an endpoint answers panics, has us wait for ever, or reaches a log as more than a line.
#![no_main]

use dtorrent::model::Timestamp;
use dtorrent::sinks::webhook::answer::{ASKED_MAX, Verdict, judge};
use dtorrent::sinks::webhook::{Address, Secrets};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, Option<&[u8]>, &[u8], i64)| {
    let (status, retry_after, words, now) = input;
    let reason = match judge(status, retry_after, words, Timestamp::from_millis(now)) {
        Verdict::Taken => String::new(),
        Verdict::NotNow { reason, wait } => {
            assert!(wait.is_none_or(|wait| wait <= ASKED_MAX));
            reason
        }
        Verdict::Never { reason } | Verdict::Gone { reason } => reason,
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
});
