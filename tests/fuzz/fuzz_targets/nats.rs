//! No subject, answer or denial from outside panics or becomes more than it says.
#![no_main]

use dtorrent::sinks::nats::answer::{read_answer, read_denial};
use dtorrent::sinks::nats::subjects::Subjects;
use dtorrent::sinks::nats::{Login, Prefix, ServerUrl};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &str)| {
    let (prefix, text) = input;
    read_answer(false, text.as_bytes());
    read_denial(text);
    Login::parse_nkey(text).ok();
    Login::parse_creds(text).ok();
    if let Ok(url) = ServerUrl::parse(text) {
        assert_eq!(ServerUrl::parse(&url.to_string()), Ok(url));
    }
    let Ok(prefix) = Prefix::parse(prefix) else { return };
    let below = format!("{prefix}.{text}");
    let subjects = Subjects::new(prefix, "main", true);
    for subject in [text, &below] {
        if let Some(address) = subjects.command(subject) {
            assert!(subjects.check_reply(subject).is_err());
            for word in [address.server, address.hash, Some(address.verb)].into_iter().flatten() {
                assert!(!word.is_empty() && !word.contains('.'));
            }
        }
    }
});
